"""The interpreter loop: problem -> prompt -> text, code, output, text, ... -> Episode -> Batch.

    rollout(sampler, tokenizer, requests, protocol, sandbox, limits)

One sequence per episode, append-only. The model's tokens are appended as it samples them and never decoded
and encoded again; the interpreter's text is encoded once, when it arrives. Each token is tagged with who
wrote it, and the loss mask is that tag. While an episode's program runs, the others go on decoding.
"""

import bisect
import concurrent.futures
import contextlib
import importlib.util
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config import UsageError, nearest
from distributed import World
from loss import kl
from model import Qwen
from remote import RemoteSandbox
from sample import Event, Sampler
from sandbox import Result, Sandbox, SandboxError
from tasks import PROTOCOLS, RL_START, Problem, Protocol, extract_answer, get, output
from tokenizer import Source, Tokenizer

__all__ = [
    "PROTOCOLS",
    "REWARDS",
    "Batch",
    "Call",
    "Episode",
    "Limits",
    "Protocol",
    "Request",
    "collate",
    "rollout",
]

MEMORY_SHARE = 0.8  # of what is free, for the sampler's slots; the rest is left to the forward passes
HUNG_SECONDS = 60.0  # beyond what programs may take, until a sandbox counts as hung
NOTICE = "The limit of programs is reached; this one was not run. Give the final answer now."


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


@dataclass(frozen=True)
class Limits:
    max_calls: int = 8  # programs run per episode (R1-Code-Interpreter: 8)
    max_tokens: int = 512  # of the model and the interpreter together, after the prompt
    max_output: int = 1000  # characters of interpreter text; its middle is left out beyond
    timeout: float = 5.0  # seconds per program


@dataclass(frozen=True)
class Request:
    """One episode to be sampled; `key` decides its random numbers."""

    problem: Problem
    group: int
    key: tuple[int, ...]


# -- rewards ---------------------------------------------------------------------------------------


def outcome(episode: Episode) -> float:
    """1 for a right answer, else 0 (R1-Code-Interpreter, first version)."""
    return float(episode.correct)


def cost_per_call(episode: Episode) -> float:
    """A right answer is worth 5 % less per program run. Multiplied, not subtracted: a cost that is charged
    to wrong answers too teaches a small model to give up code."""
    return float(episode.correct) * (1 - 0.05 * len(episode.calls))


def r1ci(episode: Episode) -> float:
    """R1-Code-Interpreter: 1 if right, + 0.1 or - 0.1 for the answer's form, - 0.1 beyond six turns."""
    form = 0.1 if episode.answer else -0.1
    return float(episode.correct) + form - (0.1 if len(episode.calls) + 1 > 6 else 0.0)


def retool(episode: Episode) -> float:
    """ReTool: 1 if right, else -1; nothing for code that runs."""
    return 1.0 if episode.correct else -1.0


REWARDS: dict[str, Callable[[Episode], float]] = {
    "outcome": outcome,
    "cost": cost_per_call,
    "r1ci": r1ci,
    "retool": retool,
}


def overlong_penalty(episode: Episode, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (2503.14476, eq. 13), to be added to a reward: 0 up to max_tokens -
    buffer tokens after the prompt, then falling evenly to -1 at max_tokens. A truncated episode gets -1, also
    one that ended early because an interpreter result no longer fitted."""
    if episode.finish == "length":
        return -1.0
    used = sum(s != Source.PROMPT for s in episode.source)
    return min(0.0, max(-1.0, (max_tokens - buffer - used) / buffer))


def get_reward(name: str, max_tokens: int, overlong_buffer: int = 0) -> Callable[[Episode], float]:
    """The reward of this name; with `overlong_buffer` tokens, plus `overlong_penalty`. Raises UsageError."""
    if name not in REWARDS:
        raise UsageError(f"--reward {name}{nearest(name, REWARDS)}; known are {', '.join(REWARDS)}")
    if overlong_buffer > max_tokens:
        raise UsageError(f"--overlong-buffer {overlong_buffer}; expected at most --max-tokens {max_tokens}")
    reward = REWARDS[name]
    if not overlong_buffer:
        return reward
    return lambda episode: reward(episode) + overlong_penalty(episode, max_tokens, overlong_buffer)


# -- the loop ---------------------------------------------------------------------------------------


class Turn:
    """One turn of the model: from the prompt or a result to the end of its first code block. feed() finds the
    markers across token borders; a token is never cut, what follows the closing marker in it stays."""

    def __init__(self, protocol: Protocol, start: int, prefill: str = ""):
        self.protocol, self.start = protocol, start  # start: index of the turn's first token in the episode
        self.text = b""
        self.ends: list[int] = []  # in bytes of text, of each token
        self.opened: int | None = None  # where in text the opening marker begins
        self.closed: int | None = None  # where the closing marker ends
        self.program: str | None = None
        if prefill:
            self._search(prefill.encode())

    def feed(self, piece: bytes) -> bool:
        """Add a token's bytes; True when they complete a code block, which is then in `program`."""
        self._search(piece)
        self.ends.append(len(self.text))
        return self.program is not None

    def _search(self, piece: bytes) -> None:
        old = len(self.text)
        self.text += piece
        if not self.protocol.open:
            return
        opening, closing = self.protocol.open.encode(), self.protocol.close.encode()
        if self.opened is None:
            found = self.text.find(opening, max(0, old - len(opening) + 1))
            if found < 0:
                return
            self.opened = found
        body = self.opened + len(opening)
        found = self.text.find(closing, max(body, old - len(closing) + 1))
        if found >= 0:
            self.closed = found + len(closing)
            self.program = self.protocol.code(self.text[body:found].decode("utf-8", errors="replace"))

    @property
    def block_start(self) -> int:
        """Index in the episode of the token in which the code block begins."""
        return self.start + bisect.bisect_right(self.ends, self.opened)


class Conversation:
    """One episode while it is being sampled, and what it may still do. `prefill` is what its last prompt ends
    with, where the protocol opens the answer itself."""

    def __init__(self, episode: Episode, protocol: Protocol, tokenizer: Tokenizer, limits: Limits):
        self.episode, self.protocol, self.tokenizer, self.limits = episode, protocol, tokenizer, limits
        self.end = len(episode.tokens) + limits.max_tokens
        self.turn = Turn(protocol, len(episode.tokens), protocol.prefill)
        self.noticed = False
        self.followed = protocol.follow_up is None

    def take(self, event: Event) -> str | None:
        """Append a sampled token. Returns what follows: "run" | "notice" | "follow" | a finish | None to go
        on."""
        episode = self.episode
        episode.append([event.token], Source.POLICY, [event.logprob])
        if event.token in self.tokenizer.stop_ids:
            follows = not self.followed and event.token == self.tokenizer.stop_ids[0]
            return "follow" if follows else "stop"
        if self.turn.feed(self.tokenizer.piece(event.token)):
            if self.noticed:
                return "calls"
            self.noticed = len(episode.calls) >= self.limits.max_calls
            return "notice" if self.noticed else "run"
        return "length" if len(episode.tokens) >= self.end else None

    def hear(self, text: str) -> list[int] | None:
        """Append the interpreter's text; its ids, or None where no token would be left to answer with."""
        return self._append(self.tokenizer.encode(text), Source.TOOL)

    def follow(self) -> list[int] | None:
        """Append the protocol's one question after an answer; its ids, or None where they do not fit."""
        self.followed = True
        question = self.protocol.follow_up[bool(self.episode.calls)]
        return self._append(self.tokenizer.follow_up(question), Source.PROMPT)

    def _append(self, ids: list[int], source: Source) -> list[int] | None:
        if len(self.episode.tokens) + len(ids) >= self.end:
            return None
        self.episode.append(ids, source)
        self.turn = Turn(self.protocol, len(self.episode.tokens))
        return ids


def rollout(
    sampler: Sampler,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    protocol: Protocol,
    sandbox: Sandbox | RemoteSandbox | None,
    limits: Limits,
    reward: Callable[[Episode], float] = outcome,
    forgive: bool = False,
    on_finish: Callable[[Episode], None] | None = None,
    system: str | None = None,
) -> list[Episode]:
    """Sample one graded episode per request, in the order of the requests.

    The sampler's slots are refilled as episodes end. `system` replaces the protocol's head prompt. Raises
    UsageError where a prompt and limits.max_tokens do not fit the sampler's rows.

    A program that the sandbox cannot run (it has tried twice) says nothing about the model: there is no true
    output to go on with. Without `forgive` that raises UsageError, since a result that lacks questions is
    another one; with it (training) the episode ends there, its reward NaN, as where a grader crashes.
    """
    encode = PromptEncoder(tokenizer, protocol, system)
    waiting = list(enumerate(requests))[::-1]
    episodes: list[Episode | None] = [None] * len(requests)
    talks: dict[int, tuple[int, Conversation]] = {}  # slot -> (place in episodes, conversation)
    running: dict[concurrent.futures.Future, int] = {}  # program -> slot

    def finish(slot: int, reason: str) -> None:
        place, talk = talks.pop(slot)
        sampler.release(slot)
        episodes[place] = grade(talk.episode, reason, protocol, tokenizer, reward, forgive)
        if on_finish:
            on_finish(talk.episode)

    def reply(slot: int, ids: list[int] | None, otherwise: str = "length") -> None:
        if ids is None:
            finish(slot, otherwise)
        else:
            sampler.extend(slot, ids)

    while waiting or talks:
        while waiting and sampler.free:
            place, request = waiting.pop()
            prompt = _fitting(encode(request.problem.question), request.problem, sampler, limits)
            episode = Episode(request.problem, request.group)
            episode.append(prompt, Source.PROMPT)
            slot = sampler.add(prompt, request.key)
            talks[slot] = (place, Conversation(episode, protocol, tokenizer, limits))

        for event in sampler.step():
            talk = talks[event.slot][1]
            what = talk.take(event)
            if what == "run":
                sampler.park(event.slot)
                running[sandbox.submit(talk.turn.program, limits.timeout)] = event.slot
            elif what == "notice":
                sampler.park(event.slot)
                reply(event.slot, talk.hear(protocol.wrap(NOTICE)))
            elif what == "follow":
                sampler.park(event.slot)
                reply(event.slot, talk.follow(), otherwise="stop")  # the answer is there
            elif what:
                finish(event.slot, what)

        refill = waiting and sampler.free
        for future in _done(running, not (sampler.active or refill), sandbox, limits):
            slot = running.pop(future)
            talk, result = talks[slot][1], future.result()
            if result.status == "sandbox_error":
                blame_sandbox(talk.episode.problem, result, forgive)
                finish(slot, "sandbox")
                continue
            talk.episode.calls.append(Call(talk.turn.program, result, talk.turn.block_start))
            reply(slot, talk.hear(protocol.wrap(output(result), limits.max_output)))
    return episodes


def _fitting(prompt: list[int], problem: Problem, sampler: Sampler, limits: Limits) -> list[int]:
    """The prompt, if an episode fits behind it into the sampler's rows. Raises UsageError."""
    room = sampler.max_len - limits.max_tokens
    if len(prompt) > room:
        which = f"{problem.task}, question {problem.index}"
        raise UsageError(f"{which}: a prompt of {len(prompt)} tokens, --max-prompt allows {room}; raise it")
    return prompt


def _done(running: dict, block: bool, sandbox: Sandbox | RemoteSandbox | None, limits: Limits) -> list:
    """The programs that have ended; with `block`, waits for at least one where any is running. A program has
    its time, twice; a sandbox of this machine from which nothing comes for longer hangs, and is started anew
    (a call over HTTP has a time-out of its own)."""
    if block and running:
        patience = 3 * limits.timeout + HUNG_SECONDS if isinstance(sandbox, Sandbox) else None
        first = concurrent.futures.FIRST_COMPLETED
        if not concurrent.futures.wait(running, patience, first).done:
            print(f"the sandbox has not answered for {patience:g} s: starting it anew", file=sys.stderr)
            sandbox.restart()
    return [future for future in running if future.done()]


def blame_sandbox(problem: Problem, result: Result, forgive: bool) -> None:
    """Say which program the sandbox failed to run, and why. Raises UsageError unless it is to be forgiven."""
    where = f"{problem.task}, question {problem.index}" if problem.task else f"question {problem.index}"
    reason = f"sandbox failed, twice: {where}: {' '.join(result.stderr.split())}"
    if not forgive:
        raise UsageError(f"{reason}; expected every program to be run; see docs/sandbox.md and start again")
    print(f"{reason}; the episode does not count", file=sys.stderr)


@contextlib.contextmanager
def open_sandbox(
    level: str,
    timeout: float = 5.0,
    preload: str = "numpy,sympy",
    max_errors: float = 0.01,
    quiet: bool = False,
    url: str | None = None,
) -> Iterator[Sandbox | RemoteSandbox]:
    """The sandbox that a script's options ask for, with those modules imported ahead that are installed here;
    with `url`, a SandboxFusion server, whose modules and isolation are its own affair. Unless `quiet` (the
    other ranks), one line on stderr says its level and layers.

    Raises UsageError where `level` is unknown or cannot be reached on this machine, and at the first program
    after more than the share `max_errors` of recent ones could not be run, or the sandbox died for good."""
    if url and level == "full":
        raise UsageError("--sandbox full: cannot be checked on the server of --sandbox-url; give one of them")
    installed = []
    for name in filter(None, map(str.strip, preload.split(","))):
        with contextlib.suppress(ImportError, ValueError):  # the folder of "folder.module" is not installed
            installed += [name] if importlib.util.find_spec(name) else []
    options = {
        "timeout": timeout,
        "preload": tuple(installed),
        "max_failed_share": max_errors,
        "quiet": quiet,
    }
    try:
        if url:
            sandbox = RemoteSandbox(url, timeout=timeout, max_failed_share=max_errors, quiet=quiet)
        else:
            sandbox = Sandbox(require=level, **options)
    except (ValueError, SandboxError) as error:
        raise UsageError(f"--sandbox {level}: {' '.join(str(error).split())}") from None
    try:
        with sandbox:
            yield sandbox
    except SandboxError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"the sandbox does not work any more: {reason}; see docs/sandbox.md") from None


class PromptEncoder:
    """Question -> ids of the prompt with the assistant's turn opened; a group shares one encoding."""

    def __init__(self, tokenizer: Tokenizer, protocol: Protocol, system: str | None = None):
        self.tokenizer, self.protocol = tokenizer, protocol
        self.system = protocol.system if system is None else system
        self.last: tuple[str, list[int]] = ("", [])

    def __call__(self, question: str) -> list[int]:
        if self.last[0] != question or not self.last[1]:
            ids = self.tokenizer.chat(self.system, question) + self.tokenizer.encode(self.protocol.prefill)
            self.last = (question, ids)
        return self.last[1]


def grade(
    episode: Episode,
    finish: str,
    protocol: Protocol,
    tokenizer: Tokenizer,
    reward: Callable[[Episode], float] = outcome,
    forgive: bool = False,
) -> Episode:
    """Fill in how an episode ended. Only the model's own text can hold its answer.

    A problem without a task (chat.py) is not graded. A grader that crashes raises, with question and answer
    in the traceback; with `forgive` (training) it says so in a line and the reward is NaN, which
    group_advantages leaves out. So it is where the sandbox failed; rollout() has said so.
    """
    return grade_text(episode, finish, tokenizer.decode(episode.policy_tokens), protocol, reward, forgive)


def grade_text(
    episode: Episode,
    finish: str,
    text: str,
    protocol: Protocol,
    reward: Callable[[Episode], float] = outcome,
    forgive: bool = False,
) -> Episode:
    """grade(), where the model's own text is at hand and its tokens perhaps are not (an API's)."""
    episode.finish = finish
    if finish == "sandbox":
        episode.reward = math.nan
        return episode
    episode.answer = extract_answer(text, protocol)
    if not episode.problem.task:
        return episode
    try:
        episode.correct = get(episode.problem.task).grade(episode.problem, episode.answer).correct
    except Exception as error:
        where = f"{episode.problem.task}, question {episode.problem.index}"
        if not forgive:
            error.add_note(f"grader failed: {where}, answer {episode.answer!r}\n{episode.problem.question}")
            raise
        print(f"grader failed: {where}, answer {episode.answer!r}: {error!r}", file=sys.stderr)
        episode.reward = math.nan
        return episode
    episode.reward = reward(episode)
    return episode


def transcript(episode: Episode, tokenizer: Tokenizer) -> dict:
    """A whole episode for episodes.jsonl; `spans` says who wrote which part of the text. sft.py reads these
    lines: `tokens` and `source` are what was sampled, with nothing encoded again."""
    spans: list[list] = []
    for token, source in zip(episode.tokens, episode.source, strict=True):
        if not spans or spans[-1][0] != Source(source).name:
            spans.append([Source(source).name, []])
        spans[-1][1].append(token)
    return {
        "task": episode.problem.task,
        "index": episode.problem.index,
        "spans": [[name, tokenizer.decode(ids)] for name, ids in spans],
        "tokens": episode.tokens,
        "source": episode.source,
        "answer": episode.answer,
        "correct": episode.correct,
        "reward": episode.reward,
        "calls": [call.result.status for call in episode.calls],
        "finish": episode.finish,
    }


def statistics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Sums over episodes, to be added over ranks and divided by "episodes": what they were worth, how they
    used the interpreter, how long they were."""
    calls = [call for e in episodes for call in e.calls]
    sandbox_failed = sum(e.finish == "sandbox" for e in episodes)
    return {
        "episodes": float(len(episodes)),
        "reward": sum(e.reward for e in episodes if not math.isnan(e.reward)),
        "grader_failed": float(sum(math.isnan(e.reward) for e in episodes) - sandbox_failed),
        "sandbox_failed": float(sandbox_failed),
        "accuracy": float(sum(e.correct for e in episodes)),
        "code_ratio": float(sum(bool(e.calls) for e in episodes)),
        "graded_with_code": float(sum(bool(e.calls) and not math.isnan(e.reward) for e in episodes)),
        "right_with_code": float(sum(e.correct and bool(e.calls) for e in episodes)),
        "calls": float(len(calls)),
        "calls_timed_out": float(sum(c.result.status == "timeout" for c in calls)),
        "calls_failed": float(sum(c.result.status != "ok" for c in calls)),
        "truncated": float(sum(e.finish == "length" for e in episodes)),
        "response_tokens": float(sum(len(e.policy_tokens) for e in episodes)),
        "tool_tokens": float(sum(s == Source.TOOL for e in episodes for s in e.source)),
    }


# -- a training step's questions, and what became of them ------------------------------------------


def problems(tasks: Sequence[str], step: int, prompts: int, seed: int) -> list[Problem]:
    """The questions of a step: known from (seed, step) alone, and never the same number twice in a run."""
    rng = random.Random(f"grpo {seed} {step}")  # ppo.py draws the same questions
    first = RL_START + step * prompts
    return [get(rng.choice(list(tasks))).problem(first + i) for i in range(prompts)]


def requests(found: Sequence[Problem], group: int, seed: int, step: int, world: World) -> list[Request]:
    """`group` requests per question, for the questions of this rank."""
    return [
        Request(problem, place, key=(seed, step, place, sample))
        for place, problem in world.share(enumerate(found))
        for sample in range(group)
    ]


def describe(episodes: Sequence[Episode], group: int, world: World) -> dict[str, float]:
    """What the episodes of all ranks were like: rewards, code use, and how many groups can teach anything.

    Means over episodes, but for calls_ran and calls_timed_out, which are shares of the calls, and accuracy
    with and without code, which are of the episodes that called, and did not. A share of nothing is left out.
    Where grader or sandbox failed, nobody knows whether the answer was right: reward, accuracies and groups
    are of the other episodes, 0 without any.
    """
    sums = statistics(episodes)
    for i in range(0, len(episodes), group):
        graded = [e.correct for e in episodes[i : i + group] if not math.isnan(e.reward)]
        kind = "all_wrong" if not any(graded) else "all_right" if all(graded) else "mixed"
        sums[f"groups_{kind}"] = sums.get(f"groups_{kind}", 0.0) + group
    names = sorted({*sums, "groups_all_right", "groups_all_wrong", "groups_mixed"})
    total = world.sum(torch.tensor([sums.get(n, 0.0) for n in names], dtype=torch.float64)).tolist()
    total = dict(zip(names, total, strict=True))
    right, coded, calls = total.pop("right_with_code"), total.pop("graded_with_code"), total["calls"]
    count = max(1.0, total.pop("episodes"))
    graded = count - total["grader_failed"] - total["sandbox_failed"]
    shares = {
        "calls_ran": (calls - total["calls_failed"], calls),
        "calls_timed_out": (total.pop("calls_timed_out"), calls),
        "accuracy_with_code": (right, coded),
        "accuracy_without_code": (total["accuracy"] - right, graded - coded),
    }
    means = {name: value / count for name, value in total.items()}
    means |= {name: total[name] / max(1.0, graded) for name in ("reward", "accuracy")}
    return means | {name: part / whole for name, (part, whole) in shares.items() if whole}


def speed(
    metrics: dict[str, float], episodes: int, began: float, sampled: float, prepared: float
) -> dict[str, float]:
    """Seconds of a step's three phases, of which the last ends now, from the times (time.perf_counter) of its
    begin, of the end of sampling and of the forward passes before the first update; and tokens per second of
    the whole step: what the model and the interpreter wrote, without prompts."""
    ended = time.perf_counter()
    tokens = episodes * (metrics["response_tokens"] + metrics["tool_tokens"])
    return {
        "seconds_rollout": sampled - began,
        "seconds_prepare": prepared - sampled,
        "seconds_update": ended - prepared,
        "tokens_per_second": tokens / (ended - began),
    }


@contextlib.contextmanager
def sampling(model: Qwen, cfg, world: World) -> Iterator[Sampler]:
    """A sampler on the model's present weights, whole on every rank, for a script's rollouts. Its cache has
    room for --slots episodes, or as many as fit into memory (the others wait their turn), and is freed at the
    end, for the update. Raises UsageError where not one fits."""
    length, wanted = cfg.max_prompt + cfg.max_tokens, min(cfg.slots, cfg.prompts * cfg.group)
    with world.whole(model):
        free, each = world.free_memory(), Sampler.slot_bytes(model, length)
        fitting = int(MEMORY_SHARE * free / each)
        if not fitting:
            raise UsageError(
                f"not one episode of --max-prompt + --max-tokens = {length} tokens fits: it needs "
                f"{each / 1e9:.2f} GB, {free / 1e9:.2f} GB are free on {world.device.type}; lower these, or "
                "take more ranks or --offload"
            )
        if fitting < wanted:
            world.tell("slots", f"{fitting} of {wanted} --slots fit into memory; the others wait their turn")
        sampler = Sampler(model, min(wanted, fitting), length, temperature=cfg.temperature)
        yield sampler
        sampler.close()


class Mismatch:
    """How far the sampler's log-probs are from the trainer's: they are the same function of the same weights,
    so anything but rounding is a bug. mean k3 and largest difference over the tokens that were compared."""

    def __init__(self):
        self.k3, self.tokens, self.largest = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, trainer: Tensor, sampler: Tensor, mask: Tensor) -> None:
        """Add a micro-batch: log-probs (B, T), and a mask of the tokens that were sampled and scored."""
        self.k3 += kl(sampler, trainer, mask).sum()
        self.tokens += mask.sum()
        gaps = (sampler - trainer).masked_fill(~mask, 0).abs().flatten()
        self.largest = torch.cat([gaps, self.largest[None]]).max()

    def metrics(self, world: World) -> dict[str, float]:
        """The figures of all ranks, for the log."""
        k3, tokens = world.sum(torch.stack([self.k3, self.tokens])).tolist()
        return {"mismatch_k3": k3 / max(1.0, tokens), "mismatch_max": world.max(self.largest).item()}


# -- batches ---------------------------------------------------------------------------------------


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
    length of the longest; neighbours, because a group's rows share their prompt (model.Packing). Every rank
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
