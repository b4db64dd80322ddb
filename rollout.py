"""The interpreter loop, once for training, evaluation and chat: prompt -> text, code, output, ... -> Episode.

    environment = Environment(tokenizer, get_protocol("r1ci"), sandbox, Limits(), REWARDS["outcome"])
    episodes = rollout(sampler, environment, [Request(problem, group=0, key=(0, 0, 0, 0))])

The model's tokens are appended as it samples them and never decoded and encoded again; the interpreter's text
is encoded once, when it arrives. While an episode's program runs, the other episodes go on decoding.
"""

import concurrent.futures
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from episode import Batch, Call, Episode, Finish, collate, spans
from plumbing.config import UsageError, option
from sample import Event, Sampler
from sandbox import Result, Sandbox
from tasks import FIRST_ONLY, PROTOCOLS, Problem, Protocol, Turn, extract_answer, get, output, well_formed
from tokenizer import Source, Tokenizer

__all__ = ["PROTOCOLS", "REWARDS", "Batch", "Call", "Environment", "Episode", "Finish", "Limits", "Protocol"]
__all__ += ["Request", "collate", "rollout"]

HUNG_SECONDS = 60.0  # without any result, beyond three times a program's timeout: the sandbox hangs


@dataclass(frozen=True)
class Limits:
    """Limits of an episode."""

    max_tokens: int = option(512, "tokens after the prompt, the interpreter's included", least=1)
    max_calls: int = option(8, "programs per episode (R1-Code-Interpreter: 8)", least=0)
    max_output: int = option(1000, "characters shown of an output; of more, its ends", least=1)
    timeout: float = option(5.0, "seconds per program (R1-Code-Interpreter: 60)", above=0)


@dataclass(frozen=True)
class Request:
    """One episode to sample. `key` decides its random numbers. `prompt` replaces the environment's prompt
    where a conversation goes on."""

    problem: Problem
    group: int
    key: tuple[int, ...]
    prompt: Sequence[int] | None = None


# -- rewards ---------------------------------------------------------------------------------------


def outcome(episode: Episode) -> float:
    """1 for a right answer, else 0 (R1-Code-Interpreter, first version)."""
    return float(episode.correct)


def cost_per_call(episode: Episode) -> float:
    """A right answer is worth 5 % less per program. Wrong answers pay nothing for programs: such a cost
    teaches a small model to give up code."""
    return float(episode.correct) * (1 - 0.05 * len(episode.calls))


def r1ci(episode: Episode) -> float:
    """R1-Code-Interpreter: 1 if right, + 0.1 or - 0.1 for the form of all turns, - 0.1 beyond six turns."""
    form = 0.1 if episode.well_formed else -0.1
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


# -- what surrounds the model ----------------------------------------------------------------------


@dataclass
class Environment:
    """What surrounds the model in an episode: its prompt, its interpreter, and what its answer is worth.

    `system` and `template` replace the protocol's prompt, as Protocol.opening says. An episode whose program
    the sandbox twice failed to run says nothing about the model. Evaluation stops there with an error,
    because a result that lacks questions is another result. With `skip_ungraded`, for training, a line says
    it and the reward is NaN, which the advantages leave out. An answer that makes the grader fail is a wrong
    answer.
    """

    tokenizer: Tokenizer
    protocol: Protocol
    sandbox: Sandbox | None
    limits: Limits = field(default_factory=Limits)
    reward: Callable[[Episode], float] = outcome
    system: str | None = None
    template: str | None = None  # the user's turn, {question} stands for the question
    skip_ungraded: bool = False
    # the last opening, and its ids
    _last: tuple[tuple[str | None, str] | None, list[int]] = field(default=(None, []), init=False, repr=False)

    def prompt(self, problem: Problem) -> list[int]:
        """Ids of the prompt, the assistant's turn opened; a group's episodes share one encoding."""
        opening = self.opening(problem)
        if self._last[0] != opening:
            self._last = opening, self.tokenizer.chat(*opening)
        return self._last[1]

    def opening(self, problem: Problem) -> tuple[str | None, str]:
        """The system prompt (None: the chat template's own) and the user's turn."""
        return self.protocol.opening(problem.question, self.head(problem), self.template)

    def head(self, problem: Problem) -> str | None:
        """The system prompt in place of the protocol's: `system`, else the question's own; None: neither."""
        return problem.meta.get("system") if self.system is None else self.system

    def show(self, result: Result, only_first: bool = False) -> str:
        """What the model reads of a program's result, in the protocol's marks; `only_first`: it wrote others
        in the same turn, which were not run."""
        note = f"\n{FIRST_ONLY}" if only_first else ""
        return self.protocol.wrap(output(result), self.limits.max_output, note)

    def grade(self, episode: Episode, text: str | None = None) -> Episode:
        """The episode with answer, form, correct and reward filled in. The answer is extracted from policy
        tokens, a line per turn; pass `text` for an API model. Without a task nothing is graded."""
        if episode.finish == Finish.SANDBOX:
            episode.reward = math.nan
            return episode
        problem = episode.problem
        try:
            if text is None:
                parts = spans(episode.tokens, episode.source)
                turns = [self.tokenizer.decode(ids) for source, ids in parts if source == Source.POLICY]
                episode.well_formed = bool(turns) and well_formed(turns, self.protocol)
                text = "\n".join(turns)
            episode.answer = extract_answer(text, self.protocol)
            if not problem.task:
                return episode
            episode.correct = get(problem.task).grade(problem, episode.answer).correct
        except Exception as error:  # noqa: BLE001 (no answer may spare the model its reward)
            episode.grader_failed = True
            where = f"{problem.task}, question {problem.index}, answer {episode.answer!r:.200}"
            print(f"grader failed, a wrong answer: {where}: {error!r}", file=sys.stderr)
        episode.reward = self.reward(episode)
        return episode

    def blame_sandbox(self, problem: Problem, result: Result) -> None:
        """Say which program the sandbox failed to run, and why. Raises UsageError without skip_ungraded."""
        where = f"{problem.task}, question {problem.index}" if problem.task else f"question {problem.index}"
        reason = f"sandbox failed, twice: {where}: {' '.join(result.stderr.split())}"
        if not self.skip_ungraded:
            raise UsageError(
                f"{reason}; expected every program to be run; see docs/sandbox.md and start again"
            )
        print(f"{reason}; the episode does not count", file=sys.stderr)


# -- one episode -----------------------------------------------------------------------------------


class Then(StrEnum):
    """The action after a sampled token that pauses decoding."""

    RUN = "run"  # it closed a code block
    ASK = "ask"  # it ended an answer after which the protocol asks once more


class Conversation:
    """One episode while it is sampled: which token comes next from whom."""

    def __init__(self, episode: Episode, environment: Environment):
        self.episode, self.environment, self.protocol = episode, environment, environment.protocol
        self.end = len(episode.tokens) + environment.limits.max_tokens
        self.turn = Turn(self.protocol, len(episode.tokens))
        self.asked = self.protocol.follow_up is None

    def append_token(self, event: Event) -> Then | Finish | None:
        """Append a sampled token. Returns what follows it; None: the next sampled token."""
        episode, stop_ids = self.episode, self.environment.tokenizer.stop_ids
        episode.append([event.token], Source.POLICY, [event.logprob])
        if event.token in stop_ids:
            return Then.ASK if not self.asked and event.token == stop_ids[0] else Finish.STOP
        if self.turn.feed(self.environment.tokenizer.piece(event.token)):
            return Then.RUN if len(episode.calls) < self.environment.limits.max_calls else Finish.CALLS
        return Finish.LENGTH if len(episode.tokens) >= self.end else None

    def append_tool(self, text: str) -> list[int] | None:
        """Append the interpreter's text. Returns its ids, or None where no token would be left to answer."""
        return self._append(self.environment.tokenizer.encode(text), Source.TOOL)

    def append_question(self) -> list[int] | None:
        """Append the protocol's one question after an answer. Returns its ids; None where they do not fit."""
        self.asked = True
        question, tokenizer = self.protocol.follow_up[bool(self.episode.calls)], self.environment.tokenizer
        answer = tokenizer.decode(self.episode.policy_tokens[:-1])
        return self._append(tokenizer.follow_up(question, answer), Source.PROMPT)

    def _append(self, ids: list[int], source: Source) -> list[int] | None:
        if len(self.episode.tokens) + len(ids) >= self.end:
            return None
        self.episode.append(ids, source)
        self.turn = Turn(self.protocol, len(self.episode.tokens))
        return ids


# -- the loop --------------------------------------------------------------------------------------


def rollout(
    sampler: Sampler,
    environment: Environment,
    requests: Iterable[Request],
    on_finish: Callable[[Episode], None] | None = None,
    on_token: Callable[[Episode], None] | None = None,
    *,
    between: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """One graded episode per request, in the order of the requests.

    A request is drawn when a slot is free, so that `requests` may be a queue. on_token is called after tokens
    were appended to an episode, on_finish when it is graded, `between` before every step and in every second
    of waiting: what it raises ends the rollout. Raises UsageError where a prompt and limits.max_tokens do not
    fit the sampler's rows.
    """
    loop = _Loop(sampler, environment, on_finish, on_token, between)
    waiting, episodes = iter(requests), []
    while True:
        between()
        episodes += map(loop.begin, itertools.islice(waiting, sampler.free))
        if not loop.running:
            return episodes
        for future in loop.ended(wait=not sampler.active):
            loop.resume(future)
        for event in sampler.step():
            loop.take(event)


class _Loop:
    """The episodes that are being sampled, and the programs that run."""

    def __init__(self, sampler: Sampler, environment: Environment, on_finish, on_token, between):
        self.sampler, self.environment = sampler, environment
        self.on_finish, self.on_token = on_finish or (lambda _: None), on_token or (lambda _: None)
        self.between = between
        self.running: dict[int, Conversation] = {}  # slot -> conversation
        self.programs: dict[concurrent.futures.Future, int] = {}  # program -> slot, whose sequence is parked

    def begin(self, request: Request) -> Episode:
        """Admit an episode. Raises UsageError where its prompt does not fit the sampler's rows."""
        problem, room = request.problem, self.sampler.max_len - self.environment.limits.max_tokens
        prompt = self.environment.prompt(problem) if request.prompt is None else request.prompt
        if len(prompt) > room:
            which = f"{problem.task}, question {problem.index}"
            raise UsageError(
                f"{which}: a prompt of {len(prompt)} tokens, --max-prompt allows {room}; raise it"
            )
        episode = Episode(problem, request.group)
        episode.append(prompt, Source.PROMPT)
        slot = self.sampler.add(prompt, request.key)
        self.running[slot] = Conversation(episode, self.environment)
        return episode

    def take(self, event: Event) -> None:
        """Append a sampled token and do what follows from it."""
        slot, conversation, environment = event.slot, self.running[event.slot], self.environment
        then = conversation.append_token(event)
        self.on_token(conversation.episode)
        if isinstance(then, Finish):
            self.finish(slot, then)
        elif then is not None:
            self.sampler.park(slot)
        if then == Then.RUN:
            program = environment.protocol.to_run(conversation.turn.program)
            self.programs[environment.sandbox.submit(program, environment.limits.timeout)] = slot
        elif then == Then.ASK:
            self.extend(slot, conversation.append_question(), Finish.STOP)  # the answer is there already

    def resume(self, future: concurrent.futures.Future) -> None:
        """Give an episode the result of its program."""
        slot, result = self.programs.pop(future), future.result()
        conversation, turn = self.running[slot], self.running[slot].turn
        if result.status == "sandbox_error":
            self.environment.blame_sandbox(conversation.episode.problem, result)
            self.finish(slot, Finish.SANDBOX)
            return
        conversation.episode.calls.append(Call(turn.program, result, turn.block_start))
        shown = self.environment.show(result, only_first=len(turn.blocks) > 1)
        self.extend(slot, conversation.append_tool(shown), Finish.LENGTH)

    def extend(self, slot: int, ids: list[int] | None, otherwise: Finish) -> None:
        """Feed appended ids to the sampler; where they did not fit (None), the episode ends."""
        if ids is None:
            self.finish(slot, otherwise)
        else:
            self.sampler.extend(slot, ids)
            self.on_token(self.running[slot].episode)

    def finish(self, slot: int, reason: Finish) -> None:
        """Grade an episode and give its slot back."""
        episode = self.running.pop(slot).episode
        self.sampler.release(slot)
        episode.finish = reason
        self.on_finish(self.environment.grade(episode))

    def ended(self, wait: bool) -> list[concurrent.futures.Future]:
        """The programs that have ended; with `wait`, at least one where any runs. A local sandbox that gives
        no result for longer than two runs take is restarted; a call over HTTP has a timeout of its own."""
        sandbox, timeout = self.environment.sandbox, self.environment.limits.timeout
        if wait and self.programs:
            patience = 3 * timeout + HUNG_SECONDS if isinstance(sandbox, Sandbox) else None
            first, began = concurrent.futures.FIRST_COMPLETED, time.monotonic()
            while not concurrent.futures.wait(self.programs, 1.0, first).done:
                self.between()
                if patience is None or time.monotonic() - began < patience:
                    continue
                print(f"the sandbox has not answered for {patience:g} s: starting it anew", file=sys.stderr)
                sandbox.restart()
                began = time.monotonic()
        return [future for future in self.programs if future.done()]
