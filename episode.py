"""The records that everything passes on: Episode, Call, Batch.

    episode = Episode(problem, group=0)
    episode.append(prompt_ids, Source.PROMPT)
    episode.append([token], Source.POLICY, [logprob])
    batch = collate([episode, ...])                      # right-padded tensors

An episode is one sequence and only ever grows. Every token carries who wrote it from the moment it is
appended, and the loss mask is that tag.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from isolation.result import Result
from tasks import Problem
from tokenizer import Source


class Finish(StrEnum):
    """Why an episode ended."""

    NOT_YET = ""  # it is still being sampled
    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # no tokens are left
    CALLS = "calls"  # the model wrote one program more than the limit allows
    REFUSED = "refused"  # a server kept the model's answer back: filtered, or refused
    SANDBOX = "sandbox"  # the sandbox failed to run a program; the model is not to blame


@dataclass(frozen=True)
class Call:
    """One program that the model wrote, and what it gave."""

    code: str
    result: Result
    start: int  # index in the episode's tokens of the first token of the code block


@dataclass
class Episode:
    """A problem, the sequence sampled for it, and its reward. tokens, source and logprobs have the same
    length; logprobs, the sampler's, are 0.0 where source is not POLICY."""

    problem: Problem
    group: int  # the problem's place in the batch: episodes of one group are compared with each other
    tokens: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish: str = Finish.NOT_YET
    answer: str | None = None
    correct: bool = False
    well_formed: bool = False  # tasks.well_formed of the model's turns
    reward: float = 0.0  # NaN: not graded, since the sandbox failed
    grader_failed: bool = False  # on the answer, which is wrong therefore
    written: int | None = None  # completion tokens, as counted by an API that gives no token ids

    def append(self, tokens: Sequence[int], source: Source, logprobs: Sequence[float] | None = None) -> None:
        """Append tokens that `source` wrote; the model's with their log-probs."""
        self.tokens += tokens
        self.source += [int(source)] * len(tokens)
        self.logprobs += [0.0] * len(tokens) if logprobs is None else logprobs

    @property
    def graded(self) -> bool:
        """Whether the reward says anything: False where the sandbox failed."""
        return not math.isnan(self.reward)

    @property
    def policy_tokens(self) -> list[int]:
        """The tokens that the model wrote."""
        return [t for t, s in zip(self.tokens, self.source, strict=True) if s == Source.POLICY]


def spans(tokens: Sequence[int], source: Sequence[int]) -> Iterator[tuple[Source, list[int]]]:
    """The runs of neighbouring tokens that one source wrote.

    >>> list(spans([7, 8, 9], [0, 1, 1]))
    [(<Source.PROMPT: 0>, [7]), (<Source.POLICY: 1>, [8, 9])]
    """
    for kind, pairs in itertools.groupby(zip(source, tokens, strict=True), key=lambda pair: pair[0]):
        yield Source(kind), [token for _, token in pairs]


@dataclass
class Batch:
    """B episodes as tensors, padded on the right to the longest one's T tokens."""

    tokens: Tensor  # (B, T) int64
    source: Tensor  # (B, T) int8; padding is PROMPT, so that no mask includes it
    sampler_logprobs: Tensor  # (B, T) float32
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
