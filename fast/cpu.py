"""The decoder laid out for sampling on CPUs.

weights are laid out once as the faster library reads them: transposed for MKL, blocked for oneDNN
q, k and v are one product; the norms' gains are inside the weights that follow them
rotary positions are one complex product: channels are reordered so that pairs are neighbours
residual additions are inside the products that precede them
decoding rows and waiting chunks (prompts, tool results) share products; only attention is split
past the last attention only the last token of each row is computed
many prompts go through in passes whose activations stay in the CPU's cache
"""

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor

from fast.parts import Part, merged_qkv, rotary_phases
from fast.products import amd_with_onednn
from model import CacheRows, KVCache, Qwen
from plumbing.cores import cores

BEYOND_CACHE = 2**21  # elements of a weight: 8 MiB in float32, four times an L2 cache
PASS = 1024  # tokens that go through the layers together: 1 MiB of activations at width 256


def onednn_is_faster(weight: Tensor) -> bool:
    """Below float32 always, and on AMD always (Zen 5: MKL 65-95 GFLOP/s, oneDNN 175-220; Zen 3, 0.5B shape, 8
    rows: 17 and 24). On Intel, MKL is faster where the weight comes from the CPU's cache (256 x 1024, 8 rows:
    50 and 76 us), oneDNN where it comes from memory (896 x 4864: 3.1 and 1.6 ms)."""
    large = weight.numel() >= BEYOND_CACHE and torch.backends.mkldnn.is_available()
    return weight.dtype == torch.bfloat16 or amd_with_onednn() or large


class PackedLinear:
    """x @ (weight * gain).T + bias, with the weight (out, in) copied to this CPU's fastest layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, gain: Tensor | None = None):
        self.bias = bias
        weight = weight if gain is None else weight * gain
        self.onednn = onednn_is_faster(weight)
        if self.onednn:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        else:
            self.weight = weight.t().contiguous()

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """(N, in) -> (N, out), with `add` (N, out) added where given."""
        if self.onednn:
            y = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return y if add is None else y.add_(add)
        add = self.bias if add is None else add
        return torch.mm(x, self.weight) if add is None else torch.addmm(add, x, self.weight)


class PackedBlock:
    """The weights of one block: norm gains are folded into the products after them, q, k and v are merged."""

    def __init__(self, block, dtype: torch.dtype):
        attention, mlp = block.self_attn, block.mlp
        gain, self.gain1 = _gain(block.input_layernorm.weight, dtype)
        weight, bias = merged_qkv(attention)
        self.qkv = PackedLinear(weight.to(dtype), bias.to(dtype), gain)
        self.out = PackedLinear(attention.o_proj.weight.to(dtype))
        gain, self.gain2 = _gain(block.post_attention_layernorm.weight, dtype)
        self.gate = PackedLinear(mlp.gate_proj.weight.to(dtype), gain=gain)
        self.up = PackedLinear(mlp.up_proj.weight.to(dtype), gain=gain)
        self.down = PackedLinear(mlp.down_proj.weight.to(dtype))


def _gain(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """A norm's gain, for the next weight or for the activations. It stays outside bfloat16 weights, which it
    would round."""
    whole = weight.to(dtype) * weight.numel() ** 0.5
    return (whole, None) if dtype == torch.float32 else (None, whole)


class PackedModel:
    """Copies of a model's weights; `fingerprint` tells whether they are still the model's."""

    def __init__(self, model: Qwen, dtype: torch.dtype, fingerprint: list[tuple[int, int]]):
        self.fingerprint = fingerprint
        self.embedding = model.model.embed_tokens.weight
        self.layers = [PackedBlock(block, dtype) for block in model.model.layers]
        head = model.model.embed_tokens if model.lm_head is None else model.lm_head
        gain, self.gain = _gain(model.model.norm.weight, dtype)
        self.head = PackedLinear(head.weight.to(dtype), gain=gain)


def fingerprint(model: Qwen) -> list[tuple[int, int]]:
    """The address of each parameter and the sum of its bits, as integers of its own size. Version counters of
    tensors would be free, but fused optimisers do not advance them."""
    kinds = {4: torch.int32, 2: torch.int16}
    parameters = [(p.detach(), kinds[p.element_size()]) for p in model.parameters()]
    return [(p.data_ptr(), int(p.view(kind).sum(dtype=kind))) for p, kind in parameters]


class Packed:
    """The fast CPU engine. It reorders the channels of keys, so that a cache belongs to one engine."""

    graphs = None
    packed: weakref.WeakKeyDictionary[Qwen, PackedModel] = weakref.WeakKeyDictionary()  # shared by samplers

    def __init__(self, model: Qwen, cache: KVCache):
        self.model, self.cache, self.dtype = model, cache, cache.k.dtype
        self.phases = rotary_phases(cache.max_len + 1, model)
        self.eps = torch.tensor((model.config.hidden_size * model.config.rms_norm_eps) ** 0.5)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Pack the model's weights, unless those packed last are still the same."""
        self.weights, present = self.packed.get(self.model), fingerprint(self.model)
        if self.weights is None or self.weights.fingerprint != present:
            self.weights = self.packed[self.model] = None  # the old copies go before the new ones come
            self.weights = self.packed[self.model] = PackedModel(self.model, self.dtype, present)

    @torch.no_grad()
    def feed(self, parts: list[Part]) -> Tensor:
        """Hidden states (rows of all parts, D) at each row's last token, not yet through the last norm."""
        passes: list[list[Part]] = []
        room = 0
        for part in (piece for whole in parts for piece in whole.split(PASS)):
            if part.tokens.numel() > room:
                passes.append([])
                room = PASS
            passes[-1].append(part)
            room -= part.tokens.numel()
        return torch.cat([self._pass(parts) for parts in passes])

    def _pass(self, parts: list[Part]) -> Tensor:
        cores().look()
        config, weights = self.model.config, self.weights
        x = weights.embedding[torch.cat([part.tokens.flatten() for part in parts])].to(self.dtype)
        attend = [Attend(part, self.cache, config.num_attention_heads) for part in parts]
        phases = self.phases[torch.cat([a.chunk.positions.flatten() for a in attend])].unsqueeze(1)
        sizes, rows = [part.tokens.numel() for part in parts], sum(len(part.counts) for part in parts)
        rotated = config.num_attention_heads + config.num_key_value_heads
        for i, layer in enumerate(weights.layers):
            h = layer.qkv(self._norm(x, layer.gain1)).view(len(x), -1, config.head_dim)
            pairs = h[:, :rotated].float().unflatten(-1, (-1, 2))
            torch.view_as_complex(pairs).mul_(phases)
            if h.dtype != torch.float32:  # else pairs is a view of h
                h[:, :rotated] = pairs.flatten(-2)
            y = [a(i, piece) for a, piece in zip(attend, h.split(sizes), strict=True)]
            y = torch.cat(y) if len(y) > 1 else y[0]
            if i == len(weights.layers) - 1 and rows < len(x):
                last = self._last(parts)
                x, y = x[last], y[last]
            x = layer.out(y, add=x)
            h = self._norm(x, layer.gain2)
            x = layer.down(F.silu(layer.gate(h), inplace=True).mul_(layer.up(h)), add=x)
        for part, a in zip(parts, attend, strict=True):
            self.cache.lengths[part.rows] = a.chunk.lengths
        return x

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (rows, V), float32."""
        return self.weights.head(self._norm(hidden, self.weights.gain)).float()

    def _norm(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """x / sqrt(sum(x^2) + D eps): RMSNorm without its gain and sqrt(D), which the gain's factor holds."""
        y = x.float()
        y = y / torch.linalg.vector_norm(y, dim=-1, keepdim=True).hypot_(self.eps)
        return y if gain is None else y.to(x.dtype) * gain

    @staticmethod
    def _last(parts: list[Part]) -> Tensor:
        """The last token of each row, among the flattened tokens of all parts."""
        places, offset = [], 0
        for part in parts:
            width = part.tokens.shape[1]
            places += [offset + r * width + count - 1 for r, count in enumerate(part.counts)]
            offset += part.tokens.numel()
        return torch.tensor(places)


class Attend:
    """Attention of one part: stores its keys and values, then reads the cache."""

    def __init__(self, part: Part, cache: KVCache, heads: int):
        self.heads, self.fresh = heads, not any(part.starts)  # fresh prompts see themselves only: no mask
        self.chunk = CacheRows(cache, part.rows, torch.tensor(part.counts), part.tokens.shape[1], part.width)

    def __call__(self, layer: int, h: Tensor) -> Tensor:
        """h: (R * T, heads + 2 kv_heads, head_dim), rotated. Returns (R * T, heads * head_dim)."""
        h = h.view(*self.chunk.positions.shape, *h.shape[1:])
        self.chunk.store(layer, h[:, :, self.heads :])
        if self.fresh:
            q, kv = h.transpose(1, 2).split((self.heads, h.shape[2] - self.heads), dim=1)
            k, v = kv.chunk(2, dim=1)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads > k.shape[1])
        else:
            y = self.chunk.attend(layer, h[:, :, : self.heads].transpose(1, 2))
        return y.transpose(1, 2).reshape(h.shape[0] * h.shape[1], -1)
