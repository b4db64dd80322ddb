"""What several test files build: a small model, and stand-ins for world, tokenizer, sampler and sandbox."""

import dataclasses
import json
from concurrent.futures import Future
from pathlib import Path

import torch

from episode import Episode
from model import TINY
from plumbing.ranks import World
from sample import Event
from sandbox import Result
from tasks import Problem
from tokenizer import Source

SMALL = dataclasses.replace(TINY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=50)
STOP = 0  # the id that ends a turn of Pieces


class StopAfter(World):
    """A world in which somebody asks for a stop during the given step."""

    def __init__(self, step: int):
        super().__init__("cpu")
        self.left = step

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


def random_episodes(count: int, group: int) -> list[Episode]:
    """Random episodes in groups of this size, of very different lengths: prompt, policy, tool, policy."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i in range(count):
        e = Episode(Problem("toy", i, "?", 0), group=i // group, reward=float(i % 3 == 0), finish="stop")
        parts = [(Source.PROMPT, 4), (Source.POLICY, 3 + 2 * i), (Source.TOOL, i), (Source.POLICY, 2)]
        for source, size in parts:
            tokens = torch.randint(SMALL.vocab_size, (size,), generator=generator).tolist()
            e.append(tokens, source, [-1.0] * size if source == Source.POLICY else None)
        found.append(e)
    return found


def lines(path: Path) -> list[dict]:
    """The records of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(stdout="", status="ok", stderr="", wall=0.1, signal=None) -> Result:
    return Result(status, stdout, stderr, 0 if status == "ok" else 1, signal, wall, 0.1, 10.0, False)


def problem(answer=42, question="q") -> Problem:
    return Problem("toy_add_sum", 0, question, answer)  # any composition: its answers are integers


class Pieces:
    """A tokenizer made of whatever bytes it is asked for. encode() gives one token per byte, so encoding what
    a script wrote in longer tokens would give other ids."""

    stop_ids = (STOP,)

    def __init__(self):
        self.pieces = [b"<stop>"]

    def id(self, piece: bytes) -> int:
        if piece not in self.pieces:
            self.pieces.append(piece)
        return self.pieces.index(piece)

    def ids(self, *pieces: str) -> list[int]:
        """One token for each text; "STOP" ends the turn."""
        return [STOP if p == "STOP" else self.id(p.encode()) for p in pieces]

    def encode(self, text: str) -> list[int]:
        return [self.id(bytes([b])) for b in text.encode()]

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def decode(self, ids) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def chat(self, system: str | None, user: str) -> list[int]:
        return self.encode(f"{user}|" if system is None else f"{system}|{user}|")


class Replay:
    """The sampler's interface; each key's script is the list of tokens it will sample. A script that is asked
    for more than it holds fails the test, and so does a call that the real sampler would refuse. The n-th
    token of a script has log-probability -n / 64, exact in float32."""

    def __init__(self, scripts: dict, slots: int = 1, max_len: int = 20_000):
        self.scripts = {key: iter(enumerate(tokens, 1)) for key, tokens in scripts.items()}
        self.slots, self.max_len = slots, max_len
        self.rows, self.parked, self.fed = {}, set(), {}

    @property
    def free(self) -> int:
        return self.slots - len(self.rows)

    @property
    def active(self) -> int:
        return len(self.rows) - len(self.parked)

    def add(self, prompt, key) -> int:
        slot = min(set(range(self.slots)) - self.rows.keys())
        self.rows[slot], self.fed[key] = key, list(prompt)
        return slot

    def step(self) -> list[Event]:
        events = []
        for slot, key in sorted(self.rows.items(), reverse=True):  # not in the order of requests
            if slot not in self.parked:
                n, token = next(self.scripts[key])
                self.fed[key].append(token)
                events.append(Event(slot, token, -n / 64))
        return events

    def park(self, slot: int):
        assert slot in self.rows and slot not in self.parked
        self.parked.add(slot)

    def extend(self, slot: int, ids):
        self.parked.remove(slot)
        self.fed[self.rows[slot]] += ids

    def release(self, slot: int):
        self.parked.discard(slot)
        del self.rows[slot]

    def left(self) -> list[int]:
        """How many tokens each script still holds."""
        return [len(list(script)) for script in self.scripts.values()]


class Answers:
    """A sandbox without processes: programs in, results by table, all programs remembered."""

    def __init__(self, table=None):
        self.table, self.programs = table or {}, []

    def submit(self, code: str, timeout: float) -> Future:
        self.programs.append(code)
        future = Future()
        answer = self.table.get(code, "42\n")
        future.set_result(answer if isinstance(answer, Result) else result(answer))
        return future
