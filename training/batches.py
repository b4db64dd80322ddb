"""A batch in parts that fit into memory, and its scores without gradients: log-probs, values."""

from collections.abc import Callable, Iterator
from dataclasses import fields

import torch
from torch import Tensor, nn

from episode import Batch
from loss import token_logprobs
from model import Qwen
from plumbing.ranks import World


def micro_batches(
    lengths: Tensor, max_tokens: int, world: World | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Row indices of each micro-batch, and the length of its longest row.

    A micro-batch holds neighbouring rows, since a group's rows share their prompt (fast/packing.py): at most
    max_tokens tokens; a longer row stands alone. A row of length 0 is in none. Every rank of `world` gets
    equally many micro-batches, at least one, because ranks communicate in each; a rank with fewer rows gets
    empty ones.
    """
    parts: list[list[int]] = []
    room = 0
    for row in lengths.nonzero().flatten().tolist():
        length = int(lengths[row])
        if not parts or length > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(row)
        room -= length
    most = max(1, len(parts)) if world is None else int(world.max(torch.tensor(max(1, len(parts)))))
    for rows in parts:
        yield torch.tensor(rows), int(lengths[rows].max())
    yield from [(torch.zeros(0, dtype=torch.long), 1)] * (most - len(parts))


def micro_batch(data, rows: Tensor, width: int, device: torch.device):
    """Some rows of a dataclass of (B, T) tensors, cut to their longest and on `device`; None stays None."""
    parts = (getattr(data, f.name) for f in fields(data))
    return type(data)(*(x if x is None else x[rows, :width].to(device) for x in parts))


@torch.no_grad()
def score(
    model: nn.Module,
    function: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    batch: Batch,
    mask: Tensor,
    cfg,
    world: World,
    *,
    count: int = 1,
) -> list[Tensor]:
    """The `count` results of function(tokens, mask), (B, T) each, micro-batch by micro-batch; on the host.

    `model` is the one that the function calls; its weights are sharded again afterwards. Rows that the mask
    leaves out are zeros.
    """
    found = [torch.zeros(mask.shape) for _ in range(count)]
    for rows, width in micro_batches(batch.lengths * mask.any(1), cfg.micro_tokens, world):
        world.look()
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        for whole, part in zip(found, function(tokens, used), strict=True):
            whole[rows, :width] = part.cpu()
    world.release(model)
    return found


def score_logprobs(model: Qwen, batch: Batch, mask: Tensor, cfg, world: World) -> Tensor:
    """Log-probs (B, T) of the masked-in tokens under a model that is not being trained."""

    def logprobs(tokens: Tensor, used: Tensor) -> tuple[Tensor]:
        return (token_logprobs(model, tokens, mask=used, temperature=cfg.temperature),)

    return score(model, logprobs, batch, mask, cfg, world)[0]
