"""Float32 masters of a model that computes in a lower dtype on one rank.

The model's own parameters are in the dtype that it computes in. Its masters are a second module of the same
names with float32 parameters, which the optimiser, gradient clipping and checkpoints use:

    model = with_masters(model, torch.bfloat16)
    optimizer = AdamW(masters(model).parameters())
    loss.backward()                                 gradients are added up in float32, on the masters
    optimizer.step(); publish(model)                the masters are rounded into the model, in place

Several ranks shard their masters instead (World.shard). A sharded model and one in float32 are their own
masters.
"""

import copy
import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Elements that are added at a time: on a CPU a sum of two dtypes makes a float32 copy of the narrower one,
# which then stays in an L2 cache.
AT_ONCE = {"cpu": 2**17, "cuda": 2**30}


def with_masters(model: nn.Module, kind: torch.dtype, float32: Iterable[nn.Module] = ()) -> nn.Module:
    """The model in `kind`, in place, with masters. Frozen parameters have none; the modules in `float32` stay
    in float32 and are their own."""
    wide = {id(p) for module in float32 for p in module.parameters()}
    twins = {}
    for p in model.parameters():
        twins[id(p)] = p
        if id(p) in wide or kind == torch.float32:
            p.data = p.data.float()
            continue
        if p.requires_grad:
            twins[id(p)] = nn.Parameter(p.detach().to(torch.float32, copy=True))
        # a copy of a mapped file, which would be copied page by page
        p.data = p.data.to(kind, copy=True)
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(functools.partial(_add, twins[id(p)]))
    if any(id(twin) != key for key, twin in twins.items()):
        # not a submodule: the model's parameters are its own
        model.__dict__["masters"] = copy.deepcopy(model, twins)
    return model


def masters(model: nn.Module) -> nn.Module:
    """The module whose parameters an optimiser changes."""
    return model.__dict__.get("masters", model)


@torch.no_grad()
def publish(model: nn.Module) -> None:
    """Round the masters into the model."""
    for p, master in zip(model.parameters(), masters(model).parameters(), strict=True):
        if p is not master:
            p.copy_(master)


@torch.no_grad()
def _add(master: Tensor, p: Tensor) -> None:
    """Move the gradient of p to its master."""
    if master.grad is None:
        master.grad = p.grad.float()
    else:
        parts = (x.view(-1).split(AT_ONCE[p.device.type]) for x in (master.grad, p.grad))
        for total, part in zip(*parts, strict=True):
            total.add_(part)
    p.grad = None
