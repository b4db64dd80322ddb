"""Rollouts whose lengths and tool calls are known in advance, for a model with random weights.

A random model writes no programs and ends nowhere, so a script says for every rollout how many tokens each of
its turns has and what the turn ends with. `Scripted` stands between the interpreter loop and the real
sampler: every token is sampled as always, and at the scripted places another one is reported in its stead.
All work of sampling, and of the loop, is done; only what is written is decided beforehand.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from sample import Event, Sampler
from sandbox import Result
from tasks import PROTOCOLS, Problem, instructions, toy
from tokenizer import Tokenizer
from training.bpe import train_tokenizer

PROTOCOL = PROTOCOLS["r1ci"]
PROGRAM = "print(1)"


@dataclass(frozen=True)
class Turn:
    """`length` tokens, of which the last ones are `closing`: a code block, the stop token, or nothing."""

    length: int
    closing: tuple[int, ...] = ()

    def __post_init__(self):
        if self.length < len(self.closing):
            raise ValueError(f"a turn of {self.length} tokens cannot end with {len(self.closing)}")


class Scripted:
    """A Sampler that follows `scripts`: key of add() -> turns. `seconds` is the time spent in its steps."""

    def __init__(self, sampler: Sampler, scripts: dict[tuple[int, ...], list[Turn]], plain: Sequence[bool]):
        self.sampler, self.scripts = sampler, scripts
        self.plain = plain  # by token: may a random model write it? Neither stop tokens nor marks of code
        self.filler = next(token for token, good in enumerate(plain) if good)
        self.at: dict[int, tuple[list[Turn], int, int]] = {}  # slot -> turns, turn, tokens written in it
        self.seconds = 0.0

    def __getattr__(self, name: str):
        return getattr(self.sampler, name)

    def add(self, prompt: Sequence[int], key: Sequence[int]) -> int:
        slot = self.sampler.add(prompt, key)
        self.at[slot] = (self.scripts[tuple(key)], 0, 0)
        return slot

    def extend(self, slot: int, ids: Sequence[int]) -> None:
        turns, turn, _ = self.at[slot]
        self.at[slot] = (turns, turn + 1, 0)
        self.sampler.extend(slot, ids)

    def step(self) -> list[Event]:
        start = time.perf_counter()
        events = self.sampler.step()
        self.seconds += time.perf_counter() - start
        return [replace(event, token=self.token(event)) for event in events]

    def token(self, event: Event) -> int:
        """The scripted token of a slot, or the sampled one where the script leaves it open."""
        turns, turn, written = self.at[event.slot]
        self.at[event.slot] = (turns, turn, written + 1)
        left = turns[turn].length - written
        closing = turns[turn].closing
        if left <= len(closing):
            return closing[len(closing) - left]
        good = event.token < len(self.plain) and self.plain[event.token]
        return event.token if good else self.filler


class Instant:
    """The sandbox's interface, with a program that has always run already and printed `text`."""

    def __init__(self, text: str):
        self.result = Result("ok", text, "", 0, None, 0.0, 0.0, 0.0, False)

    def submit(self, code: str, timeout: float | None = None) -> Future:
        future: Future = Future()
        future.set_result(self.result)
        return future


def small_tokenizer(vocabulary: int = 1024) -> Tokenizer:
    """The embedded run's tokenizer: every digit is a token, which makes texts of n tokens easy to write."""
    return train_tokenizer(toy.corpus(), vocabulary, whole=instructions())


def plain_tokens(tokenizer: Tokenizer, vocabulary: int) -> list[bool]:
    """By token: whether it neither ends a turn nor holds a character of a mark of code or answer."""
    stops = set(tokenizer.stop_ids)
    return [
        token not in stops and bool(piece := tokenizer.piece(token)) and not set(b"`<>|\n") & set(piece)
        for token in range(vocabulary)
    ]


def questions(count: int, length: int) -> list[Problem]:
    """Different questions of `length` tokens each, without a task: nothing is graded."""
    return [Problem("", i, f"{i:0{length}d}", None) for i in range(count)]


def call(tokenizer: Tokenizer, program: str = PROGRAM) -> tuple[int, ...]:
    """The tokens of a program on lines of its own, with which its turn ends."""
    return tuple(tokenizer.encode("\n" + PROTOCOL.block(program)))
