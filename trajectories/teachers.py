"""Trajectories that a teacher writes: it answers with our interpreter, or rewrites solutions in words.

    outcomes = gather(jobs, work, journal)                       each outcome is kept as soon as it is known
    outcome = answered(endpoint, problem, environment, 0.6)      one conversation with our interpreter
    outcomes = rewrite(teacher, solutions, "retool", sandbox)    ReTool's cold start (2504.11536)

A Teacher is a function from conversations to the next message of each: a checkpoint (local_teacher), a model
behind HTTP (remote_teacher), or a script in a test. checks.py judges what it writes.
"""

import concurrent.futures
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from model import Qwen
from plumbing.config import UsageError
from plumbing.http import CallError
from plumbing.journal import Journal
from plumbing.progress import progress
from rollout import Environment, Finish
from sample import generate
from sandbox import Sandbox
from tasks import RL_START, SFT_START, Problem, for_training, get, get_protocol
from tokenizer import Tokenizer
from trajectories import checks
from trajectories.endpoint import REFUSED, Endpoint, converse
from trajectories.faults import Fault, unfinished
from trajectories.format import split_results
from trajectories.records import trajectory

Outcome = dict | Fault
Teacher = Callable[[list[list[dict]]], list[str | Fault]]  # conversations -> the next message of each


def gather(
    jobs: dict[str, object],
    work: Callable[[list], list[Outcome]],
    journal: Journal | None,
    *,
    size: int = 1,
    threads: int = 1,
    endpoint: Endpoint | None = None,
) -> dict[str, Outcome]:
    """The outcome of each job, `size` jobs at a time in each of `threads` threads.

    The journal, if any, keeps every outcome but the sandbox's failures, which the next start tries again; a
    job in it is not done again. However it ends, the endpoint's cost is printed. Raises UsageError after a
    CallError, when the requests in progress have ended, and where the server refused all questions. Any other
    exception, Ctrl-C among them, ends the endpoint's requests.
    """
    outcomes = {
        key: Fault(*kept) if isinstance(kept, list) else kept
        for key, kept in (journal.entries if journal else {}).items()
    }
    left = [key for key in jobs if key not in outcomes]

    def one(keys: list[str]) -> None:
        for key, outcome in zip(keys, work([jobs[key] for key in keys]), strict=True):
            outcomes[key] = outcome
            if journal is None:
                continue
            if not isinstance(outcome, Fault):
                journal.add(key, outcome)
            elif outcome.reason != "sandbox":
                journal.add(key, [outcome.reason, outcome.detail])

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running: list[concurrent.futures.Future] = []
        try:
            running += [pool.submit(one, left[i : i + size]) for i in range(0, len(left), size)]
            for future in progress(len(running), "asking", concurrent.futures.as_completed(running)):
                future.result()
        except CallError as error:
            kept = "with --out FILE the answers so far would have been kept"
            if journal:
                kept = f"the same command goes on from {journal.path}"
            raise UsageError(f"{error}; {kept}") from None
        except BaseException:
            if endpoint:
                endpoint.close()
            raise
        finally:
            for future in running:
                future.cancel()
            if endpoint:
                print(endpoint.cost())
    faults = [outcome for key in jobs if isinstance(outcome := outcomes[key], Fault)]
    if jobs and [fault.reason for fault in faults] == ["refused"] * len(jobs):
        if journal:
            journal.remove()  # the next start asks again
        raise UsageError(f"{faults[-1].detail}; so were all {len(jobs)} questions refused")
    return outcomes


def refusal(error: CallError) -> Fault:
    """The fault of a question that the server refuses for good. Raises any other error again."""
    if error.status not in REFUSED:
        raise error
    return Fault("refused", str(error))


def answered(endpoint: Endpoint, problem: Problem, environment: Environment, temperature: float) -> Outcome:
    """The trajectory of a question that a model behind HTTP answers, if checks.verify finds no fault in it.
    Raises CallError where the server answers no question at all."""
    environment = replace(environment, system=environment.head(problem))
    try:
        exchange = converse(endpoint, problem.question, environment, temperature=temperature)
    except CallError as error:
        return refusal(error)
    if exchange.finish == Finish.REFUSED:
        return Fault("refused", "the server kept the answer back")
    if exchange.finish != Finish.STOP:
        return unfinished(exchange.finish)
    name = environment.protocol.name
    prompt = environment.system, environment.template
    record = trajectory(problem, exchange.messages, "endpoint", name, *prompt)
    timeout = environment.limits.timeout
    return checks.verify([record], [problem], environment.sandbox, timeout)[0] or record


def answer_with(endpoint: Endpoint, temperature: float) -> Callable[[list], list[Outcome]]:
    """The work for gather() on jobs (problem, environment)."""
    return lambda jobs: [answered(endpoint, *job, temperature) for job in jobs]


REWRITE = (
    "Below are a question and a solution in words. Write the solution anew. Wherever it calculates or counts "
    "by hand and a program would do it better, put a Python program in its place, between {open} and "
    "{close}, followed by what it prints, between {before} and {after}. Leave the rest of the reasoning as "
    "it is, and finish with the same answer as {answer}. Write nothing else."
)


def rewriting(problem: Problem, solution: str, protocol: str) -> list[dict]:
    """The teacher's prompt: the task of ReTool's prompt in our own words."""
    shape = get_protocol(protocol)
    fence = ("<code>\n```python", "```\n</code>") if shape.open == "<code>" else (shape.open, "```")
    marks = {"open": fence[0], "close": fence[1], "before": shape.before.strip()}
    marks |= {"after": shape.after.strip() or "an empty line", "answer": shape.answer.format("answer")}
    asked = f"Question:\n{problem.question}\n\nSolution:\n{solution}"
    return [{"role": "system", "content": REWRITE.format(**marks)}, {"role": "user", "content": asked}]


def rewrite(
    teacher: Teacher, solutions: Sequence[tuple[Problem, str]], protocol: str, sandbox: Sandbox
) -> list[Outcome]:
    """ReTool's cold start: a trajectory of each solution that the teacher rewrites, if it passes both checks,
    of the format (all markers match, all programs parse, all results are the sandbox's) and of the answer."""
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
        turns = [("user", problem.question), *turns]
        messages = [{"role": role, "content": content} for role, content in turns]
        found.append(trajectory(problem, messages, "rewrite", protocol))
    whole = [i for i, outcome in enumerate(found) if not isinstance(outcome, Fault)]
    problems = [solutions[i][0] for i in whole]
    faults = checks.verify([found[i] for i in whole], problems, sandbox, sandbox.timeout, rewritten=True)
    for i, fault in zip(whole, faults, strict=True):
        found[i] = fault or found[i]
    return found


def read_solutions(path: str, test_tasks: bool = False) -> list[tuple[Problem, str]]:
    """(problem, solution in words) of each line: {"task", "index", "solution"}, or a row of a question file
    (tasks/math.py) with a "solution". Raises UsageError naming file, line and reason."""
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
            questions = get(path)  # equal rows of the file are one question
            found.append((questions.problem(questions.number[len(found)]), row["solution"]))
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
    """A checkpoint as a teacher; it writes text and runs nothing."""

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
    """A model behind HTTP as a teacher. Raises CallError where the server answers no question at all."""

    def one(messages: list[dict]) -> str | Fault:
        try:
            reply = endpoint.complete(messages, max_tokens=max_tokens, temperature=temperature)
        except CallError as error:
            return refusal(error)
        if reply.finish == Finish.REFUSED:
            return Fault("refused", "the server kept the answer back")
        return reply.text

    return lambda conversations: [one(messages) for messages in conversations]
