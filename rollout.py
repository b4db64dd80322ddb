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
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from episode import Call, Episode
from plumbing.config import UsageError, nearest
from sample import Event, Sampler
from sandbox import RemoteSandbox, Result, Sandbox, SandboxError
from tasks import Problem, Protocol, extract_answer, get, output
from tokenizer import Source, Tokenizer

HUNG_SECONDS = 60.0  # beyond what programs may take, until a sandbox counts as hung


NOTICE = "The limit of programs is reached; this one was not run. Give the final answer now."


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
