"""Trajectories that someone else writes: a teacher answers with our interpreter, or rewrites text solutions.

    gather(jobs, work, journal, threads)      every outcome is in FILE.part as soon as it is known
    answered(endpoint, problem, ...)          one conversation of the teacher with our sandbox
    rewrite(teacher, solutions, ...)          ReTool's (2504.11536) code-augmented traces

A Teacher is a function from conversations to what is said next in each: a checkpoint folder (local_teacher),
a model behind HTTP (remote_teacher), a script in a test. Nothing it says is believed; see traces.py.
"""

import concurrent.futures
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from model import Qwen
from plumbing.config import UsageError
from plumbing.http import CallError
from rollout import Limits
from sample import generate
from sandbox import Sandbox
from tasks import RL_START, SFT_START, Problem, for_training, get, get_protocol
from tokenizer import Tokenizer
from trajectories import checks
from trajectories.endpoint import Endpoint, converse
from trajectories.format import Fault, split_results, trajectory

Teacher = Callable[[list[list[dict]]], list[str | Fault]]  # conversations -> what it says to each, in order


Outcome = dict | Fault


REFUSED = (400, 413, 422)  # HTTP statuses that speak of this one question: too long, filtered


FIRST = 5  # refusals before any answer that end a run: then it is not about the questions


def progress(items: Iterable, total: int, name: str) -> Iterable:
    """The items, with a bar on stderr; on a terminal often, in a log every half minute."""
    pause = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(items, total=total, desc=name, leave=False, delay=2, mininterval=pause)


class Journal:
    """FILE.part: what has become of each question that was asked, a line as soon as it is known, so that no
    kill loses an answer that was paid for and no restart asks for it again. Its first line says what the run
    is about; a last line that a kill has torn is cut off. What our sandbox failed to run is not written: the
    next start asks for it again. Threads may add at once. Raises UsageError for a file that is no journal."""

    def __init__(self, path: str, about: dict):
        self.path = Path(f"{path}.part")
        self.outcomes: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        lines = whole.splitlines()
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if number > 1:
                    self._read(*entry)
                elif not isinstance(entry, dict):
                    raise ValueError("expected a run's options")
            except (ValueError, TypeError, RecursionError) as error:
                raise UsageError(
                    f"{self.path}: not a journal, line {number}: {error}; remove it to begin anew"
                ) from None
            if number == 1 and entry != about:
                raise UsageError(
                    f"{self.path} is of a run with other options; give those again, or remove it"
                )
        with open(self.path, "ab") as f:
            f.truncate(len(whole))
        if not lines:
            self._write(about)

    def _read(self, key: str, record: dict | None, fault: list | None) -> None:
        if not isinstance(key, str) or isinstance(record, dict) == isinstance(fault, list):
            raise ValueError("expected [question, trajectory, null] or [question, null, fault]")
        self.outcomes[key] = Fault(*fault) if record is None else record

    def _write(self, line: object) -> None:
        data = json.dumps(line).encode() + b"\n"
        with open(self.path, "ab", buffering=0) as f:  # handed to the system line by line
            size = f.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[f.write(data) :]
            except OSError as error:
                f.truncate(size)  # half a line would spoil the next one as well
                raise UsageError(f"{self.path}: {error}; the same command goes on from it") from None

    def add(self, key: str, outcome: Outcome) -> None:
        """Enter what became of a question."""
        fault = [outcome.reason, outcome.detail] if isinstance(outcome, Fault) else None
        with self._lock:
            if fault is None or outcome.reason != "sandbox":
                self._write([key, outcome if fault is None else None, fault])
            self.outcomes[key] = outcome


def gather(
    jobs: dict[str, object],
    work: Callable[[list], list[Outcome]],
    journal: Journal,
    size: int = 1,
    threads: int = 1,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Do the jobs that the journal does not have, `size` at a time in each of `threads` threads, and enter
    every outcome as soon as it is there. The first CallError ends it, once what is in flight is entered; any
    other exception, Ctrl-C among them, calls `stop`, which ends what is in flight.

    A refused question is dropped, but where the first FIRST outcomes are all refused, UsageError shows the
    server's words, and nothing is entered: the fault is not the questions'."""
    left = [key for key in jobs if key not in journal.outcomes]
    batches = [left[i : i + size] for i in range(0, len(left), size)]
    held: list[tuple[str, Fault]] = []  # refusals, as long as nothing else came
    answers, lock = 0, threading.Lock()

    def enter(key: str, outcome: Outcome) -> None:
        nonlocal answers
        if isinstance(outcome, Fault) and outcome.reason == "refused" and not answers:
            held.append((key, outcome))
            if len(held) >= FIRST:
                raise UsageError(f"{outcome.detail}; so were the first {FIRST} questions refused")
            return
        answers += 1
        while held:
            journal.add(*held.pop())
        journal.add(key, outcome)

    def one(keys: list[str]) -> None:
        for key, outcome in zip(keys, work([jobs[key] for key in keys]), strict=True):
            with lock:
                enter(key, outcome)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running: list[concurrent.futures.Future] = []
        try:
            running += [pool.submit(one, keys) for keys in batches]
            for future in progress(concurrent.futures.as_completed(running), len(running), "asking"):
                future.result()
        except CallError as error:
            raise UsageError(f"{error}; the same command goes on from {journal.path}") from None
        except BaseException:
            stop()
            raise
        finally:
            for future in running:
                future.cancel()
    for key, outcome in held:
        journal.add(key, outcome)


def refusal(error: CallError) -> Fault:
    """What becomes of a question that the server refuses for good. Raises any other error again."""
    if error.status not in REFUSED:
        raise error
    return Fault("refused", str(error))


def answered(
    endpoint: Endpoint,
    problem: Problem,
    protocol: str,
    sandbox: Sandbox,
    limits: Limits,
    temperature: float,
    system: str | None = None,
) -> Outcome:
    """One question answered by a model behind HTTP, its programs run here as it writes them, if it holds:
    right, and the same when all of it runs again. Raises CallError where no answer is to be had to any."""
    shape = get_protocol(protocol)
    options = {"temperature": temperature, "system": system}
    try:
        exchange = converse(endpoint, problem.question, shape, sandbox, limits, **options)
    except CallError as error:
        return refusal(error)
    if exchange.finish != "stop":
        reason = {"length": "unanswered", "calls": "limit"}.get(exchange.finish, "sandbox")
        return Fault(reason, exchange.finish)
    head = [{"role": "system", "content": system}] if system is not None else []
    record = trajectory(problem, head + exchange.messages, "endpoint", protocol)
    return checks.verify([record], [problem], sandbox, limits.timeout)[0] or record


REWRITE = (
    "Below are a question and a solution in words. Write the solution anew. Wherever it calculates or counts "
    "by hand and a program would do it better, put a Python program in its place, between {open} and "
    "{close}, followed by what it prints, between {before} and {after}. Leave the rest of the reasoning as "
    "it is, and finish with the same answer as {answer}. Write nothing else."
)


def rewriting(problem: Problem, solution: str, protocol: str) -> list[dict]:
    """What the teacher is asked: our own words around the task that ReTool's prompt sets."""
    shape = get_protocol(protocol)
    fence = ("<code>\n```python", "```\n</code>") if shape.open == "<code>" else (shape.open, "```")
    marks = {"open": fence[0], "close": fence[1], "before": shape.before.strip()}
    marks |= {"after": shape.after.strip() or "an empty line", "answer": shape.answer.format("answer")}
    asked = f"Question:\n{problem.question}\n\nSolution:\n{solution}"
    return [{"role": "system", "content": REWRITE.format(**marks)}, {"role": "user", "content": asked}]


def rewrite(
    teacher: Teacher, solutions: Sequence[tuple[Problem, str]], protocol: str, sandbox: Sandbox
) -> list[Outcome]:
    """ReTool's cold start: each solution rewritten by the teacher, if it passes both checks, of the format
    (all markers matched, all programs parse, all results as the sandbox gives them) and of the answer."""
    shape, found = get_protocol(protocol), []
    texts = teacher([rewriting(problem, solution, protocol) for problem, solution in solutions])
    for (problem, _), text in zip(solutions, texts, strict=True):
        if isinstance(text, Fault):
            found.append(text)
            continue
        try:
            turns = split_results(text.strip(), shape)
        except ValueError as error:
            found.append(Fault("markup", str(error)))
            continue
        messages = [
            {"role": role, "content": content} for role, content in (("user", problem.question), *turns)
        ]
        found.append(trajectory(problem, messages, "rewrite", protocol))
    whole = [i for i, outcome in enumerate(found) if not isinstance(outcome, Fault)]
    problems = [solutions[i][0] for i in whole]
    faults = checks.verify([found[i] for i in whole], problems, sandbox, sandbox.timeout, rewritten=True)
    for i, fault in zip(whole, faults, strict=True):
        found[i] = fault or found[i]
    return found


def read_solutions(path: str, test_tasks: bool = False) -> list[tuple[Problem, str]]:
    """(problem, solution in words) of each line: {"task", "index", "solution"}, or a question file of
    tasks/math.py whose rows have a "solution" too. Raises UsageError naming file, line and reason."""
    found: list[tuple[Problem, str]] = []
    if not Path(path).is_file():
        raise UsageError(f"--data {path}: no such file")
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"--data {path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: {error}; expected one JSON object per line") from None
        if not isinstance(row, dict) or not isinstance(row.get("solution"), str):
            raise UsageError(f'{where}: no text under "solution"; expected a solution in words')
        if not {"task", "index"} <= row.keys():
            found.append((get(path).problem(len(found)), row["solution"]))
            continue
        task, index = row.get("task"), row.get("index")
        if not isinstance(task, str) or type(index) is not int or not SFT_START <= index < RL_START:
            raise UsageError(
                f"{where}: task {task!r}, index {index!r}; expected a question and its answer, or a task and "
                f"an index from {SFT_START} to {RL_START - 1}"
            )
        for_training(task, test_tasks)  # raises UsageError for a task that is held out or unknown
        found.append((get(task).problem(index), row["solution"]))
    return found


def local_teacher(
    model: Qwen, tokenizer: Tokenizer, max_tokens: int, temperature: float, seed: int, slots: int
) -> Teacher:
    """A model of ours as a teacher that writes without running anything."""

    def answer(conversations: list[list[dict]]) -> list[str]:
        prompts = [tokenizer.chat(system["content"], user["content"]) for system, user in conversations]
        samples = generate(
            model,
            prompts,
            max_new_tokens=max_tokens,
            temperature=temperature,
            stop_ids=tokenizer.stop_ids,
            seed=seed,
            slots=slots,
        )
        return [tokenizer.decode([t for t in s.tokens if t not in tokenizer.stop_ids]) for s in samples]

    return answer


def remote_teacher(endpoint: Endpoint, max_tokens: int, temperature: float) -> Teacher:
    """A model behind HTTP as a teacher; raises CallError where no answer is to be had to any question."""

    def one(messages: list[dict]) -> str | Fault:
        try:
            return endpoint.complete(messages, max_tokens=max_tokens, temperature=temperature).text
        except CallError as error:
            return refusal(error)

    return lambda conversations: [one(messages) for messages in conversations]
