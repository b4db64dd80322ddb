"""Float32 matrix products on CPUs: oneDNN's, where MKL's are slow."""

import functools

import torch
from torch import Tensor, nn

from model import MLP, Attention


def amd_with_onednn() -> bool:
    """Whether this is an AMD processor, and torch was built with oneDNN."""
    return torch.backends.mkldnn.is_available() and "AMD" in torch.cpu.get_capabilities().get("cpu_name", "")


@functools.cache
def mkl_is_slow() -> bool:
    """Whether MKL, which F.linear uses in float32, is slower than oneDNN: on AMD with AVX-512 (Zen 5: 65-95
    GFLOP/s, oneDNN 175-220). On Intel oneDNN is a tenth slower."""
    return amd_with_onednn() and torch.cpu.get_capabilities().get("avx512_f", False)


def use_fast_products(model: nn.Module) -> nn.Module:
    """The same model, whose linear layers use oneDNN where MKL is slow. Parameters keep their names."""
    if mkl_is_slow():
        for block in model.modules():
            if isinstance(block, Attention | MLP):
                for layer in block.children():
                    if isinstance(layer, nn.Linear):
                        layer.__class__ = OneDNNLinear
    return model


class OneDNNLinear(nn.Linear):
    """nn.Linear, with oneDNN's products in float32 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel():
            return OneDNNProduct.apply(x, self.weight, self.bias)
        return super().forward(x)


class OneDNNProduct(torch.autograd.Function):
    """x @ weight.T + bias in float32, as F.linear gives it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by_y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        product, (x_needed, weight_needed, _) = torch.ops.mkldnn._linear_pointwise, ctx.needs_input_grad
        rows, by_rows = x.reshape(-1, x.shape[-1]), by_y.reshape(-1, by_y.shape[-1])
        by_x = product(by_y, weight.t(), None, "none", [], "") if x_needed else None
        by_weight = product(by_rows.t(), rows.t(), None, "none", [], "") if weight_needed else None
        return by_x, by_weight, by_rows.sum(0) if ctx.has_bias else None
