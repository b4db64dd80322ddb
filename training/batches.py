"""A batch in parts that fit into memory."""

from collections.abc import Iterator
from dataclasses import fields

import torch
from torch import Tensor

from plumbing.ranks import World


def micro_batches(
    lengths: Tensor, max_tokens: int, world: World | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Row indices of each micro-batch, and the length of its longest row.

    A micro-batch holds neighbouring rows, since a group's rows share their prompt (fast/packing.py): at most
    max_tokens tokens, or one row. Every rank of `world` gets as many micro-batches, because in each all ranks
    work together; a rank with fewer rows gets empty ones.
    """
    parts: list[list[int]] = []
    room = 0
    for row, length in enumerate(lengths.tolist()):
        if not parts or length > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(row)
        room -= length
    most = len(parts) if world is None else int(world.max(torch.tensor(len(parts))))
    for rows in parts:
        yield torch.tensor(rows), int(lengths[rows].max())
    yield from [(torch.zeros(0, dtype=torch.long), 1)] * (most - len(parts))


def micro_batch(data, rows: Tensor, width: int, device: torch.device):
    """Some rows of a dataclass of (B, T) tensors, cut to their longest and on `device`; None stays None."""
    parts = (getattr(data, f.name) for f in fields(data))
    return type(data)(*(x if x is None else x[rows, :width].to(device) for x in parts))
