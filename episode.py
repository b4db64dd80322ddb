"""The records that everything passes on: Episode, Call, Batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from plumbing.ranks import World
from sandbox import Result
from tasks import Problem
from tokenizer import Source


@dataclass(frozen=True)
class Call:
    """One program that the model wrote and that was run."""

    code: str
    result: Result
    start: int  # index in the episode's tokens of the first token of the code block


@dataclass
class Episode:
    """A problem, what was said about it, and what that was worth. tokens, source and logprobs have the same
    length and only ever grow; logprobs are 0.0 wherever source is not POLICY."""

    problem: Problem
    group: int  # the problem's place in the batch: episodes of one group are compared with each other
    tokens: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish: str = (
        ""  # "stop": ended its turn | "length": out of tokens | "calls": asked again after the notice |
        # "sandbox": its program could not be run, which is no fault of the model
    )
    answer: str | None = None
    correct: bool = False
    reward: float = 0.0
    written: int | None = None  # tokens the model wrote, as an API counts them, which does not show them

    def append(self, tokens: Sequence[int], source: Source, logprobs: Sequence[float] | None = None) -> None:
        self.tokens += tokens
        self.source += [int(source)] * len(tokens)
        self.logprobs += [0.0] * len(tokens) if logprobs is None else logprobs

    @property
    def policy_tokens(self) -> list[int]:
        return [t for t, s in zip(self.tokens, self.source, strict=True) if s == Source.POLICY]


@dataclass
class Batch:
    """Episodes as tensors, padded on the right; see Episode. B episodes, T the longest one's length."""

    tokens: Tensor  # (B, T) int64
    source: Tensor  # (B, T) int8; padding is PROMPT, so that no mask includes it
    logprobs: Tensor  # (B, T) float32, the sampler's
    lengths: Tensor  # (B,)
    rewards: Tensor  # (B,) float32
    groups: Tensor  # (B,)


def collate(episodes: Sequence[Episode], pad_id: int = 0) -> Batch:
    """Episodes as one right-padded Batch."""
    lengths = torch.tensor([len(e.tokens) for e in episodes], dtype=torch.long)
    shape = (len(episodes), int(lengths.max()) if episodes else 1)
    tokens = torch.full(shape, pad_id, dtype=torch.long)
    source = torch.full(shape, int(Source.PROMPT), dtype=torch.int8)
    logprobs = torch.zeros(shape, dtype=torch.float32)
    for i, e in enumerate(episodes):
        tokens[i, : len(e.tokens)] = torch.tensor(e.tokens)
        source[i, : len(e.tokens)] = torch.tensor(e.source, dtype=torch.int8)
        logprobs[i, : len(e.tokens)] = torch.tensor(e.logprobs)
    rewards = torch.tensor([e.reward for e in episodes], dtype=torch.float32)
    groups = torch.tensor([e.group for e in episodes], dtype=torch.long)
    return Batch(tokens, source, logprobs, lengths, rewards, groups)


def micro_batches(
    lengths: Tensor, max_tokens: int, world: World | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Indices of neighbouring rows, so many at a time that they hold at most max_tokens (or one row), and the
    length of the longest; neighbours, because a group's rows share their prompt (fast/packing.py). Every rank
    of `world` gets as many, the last of them without rows where its share is smaller: in each, all ranks work
    together."""
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
