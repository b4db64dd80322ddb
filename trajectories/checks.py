"""The faults of a trajectory: its markup, its results, its answer.

faults = verify([record], [problem], sandbox, timeout=5.0)      None, or one of faults.REASONS

The markup is parsed, every program runs again, each stored result must equal the sandbox's letter by letter,
and the task grades the answer.
"""

import ast
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from plumbing.config import UsageError
from plumbing.progress import lines_in, progress
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, RL_START, SFT_START, Problem, Protocol, extract_answer, get, output
from tasks.blocks import split_code
from trajectories.faults import REASONS, Fault
from trajectories.format import conversation

SLOW = 0.5  # share of the time limit


def parse(record: dict) -> tuple[Protocol, list[tuple[str, str]], list[str]]:
    """The protocol, (role, text) of each turn, and the programs that a result follows. Raises ValueError for
    broken markup."""
    name = record.get("protocol") if isinstance(record, dict) else None
    shape = PROTOCOLS.get(name) if isinstance(name, str) else None
    if shape is None:
        raise ValueError(f"expected an object with a protocol: {', '.join(PROTOCOLS)}")
    _, turns = conversation(record, shape)
    turns = [("assistant" if role == "context" else role, text) for role, text in turns]
    roles = [role for role, _ in turns] + [""]
    asked, said = roles.count("user"), roles.count("assistant")
    if asked > 1 + (shape.follow_up is not None):
        raise ValueError(f"{asked} turns of the user, more than protocol {name} has")
    if record.get("turns") != said:
        raise ValueError(f"turns is {record.get('turns')!r}, but the messages have {said} of the assistant")
    programs = []
    for i, (role, text) in enumerate(turns):
        if role != "assistant":
            continue
        program = _program(text, shape, runs=roles[i + 1] == "tool")
        programs += [] if program is None else [program]
    return shape, turns, programs


def _program(text: str, shape: Protocol, runs: bool) -> str | None:
    """The program that ends a turn, or None. `runs`: a result follows the turn. Raises ValueError for a
    misplaced marker."""
    if runs and not shape.open:
        raise ValueError("a result, but code is not run in this protocol")
    found = list(split_code(text, shape))
    blocks = sum(bool(part.block) for part in found)
    if blocks != runs:
        expected = "one code block at its end" if runs else "none, since none is run"
        raise ValueError(f"{blocks} code blocks in a turn; expected {expected}")
    words, block = found[0].words, found[0].block
    for mark in {shape.before.strip(), shape.after.strip()} - {"", "```"}:
        if mark in block or mark.lower() in words.lower():
            raise ValueError(f"{mark!r} in the assistant's own text")
    _check_words(words, shape)
    if not shape.open.startswith("```") and block.count("```") not in (0, 2):
        raise ValueError("an open fence in a code block")
    if runs and (found[0].program is None or found[1].words.strip()):
        raise ValueError(f"a code block that does not end the turn with {shape.close.strip()!r}")
    return found[0].program


def _check_words(words: str, shape: Protocol) -> None:
    """Raises ValueError for an unpaired marker or a Python block in the text outside the code block."""
    if shape.open and shape.close.strip() != "```" and shape.close.strip() in words:
        raise ValueError(f"{shape.close.strip()!r} without {shape.open!r}")
    if words.count("```") % 2:
        raise ValueError("an open fence outside of a code block")
    if re.search(r"```[ \t]*py", words, re.IGNORECASE):
        raise ValueError("a fenced Python program that was not run")
    for left, right in (("<<<", ">>>"), ("<answer>", "</answer>")):
        if words.count(left) != words.count(right):
            raise ValueError(f"{left} and {right} do not match")


def judge(
    record: dict, problem: Problem, results: Sequence[Result], timeout: float, rewritten: bool = False
) -> Fault | None:
    """The fault of a trajectory or None, given its programs' results in order. `rewritten` adds two rules of
    ReTool: there is a program, and every program parses. Raises ValueError for broken markup."""
    shape, turns, programs = parse(record)
    if rewritten and not programs:
        return Fault("no code")
    for program in programs if rewritten else ():
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return Fault("syntax", f"{error}")
    stored = [text for role, text in turns if role == "tool"]
    for number, (told, result) in enumerate(zip(stored, results, strict=True), 1):
        if result.status == "sandbox_error":
            return Fault("sandbox", " ".join(result.stderr.split()))
        if result.status == "timeout" or result.cpu > SLOW * timeout:
            return Fault("slow", f"program {number} took {result.cpu:.1f} of {timeout:.0f} s")
        told, given = told.strip("\n"), output(result).strip("\n")
        if told != given:
            at = len(os.path.commonprefix([told, given]))
            what = f"{told[at : at + 80]!r}, the sandbox gives {given[at : at + 80]!r}"
            return Fault("result", f"program {number}, from character {at}: {what}")
    if turns[0][1] != problem.question:
        return Fault("question", f"{turns[0][1][:80]!r}")
    answer = extract_answer(turns[-1][1], shape)
    if answer is None:
        return Fault("unanswered")
    grade = get(problem.task).grade(problem, answer)
    return None if grade.correct else Fault("answer", grade.detail)


def verify(
    records: Sequence[dict],
    problems: Sequence[Problem],
    sandbox: Sandbox,
    timeout: float,
    rewritten: bool = False,
) -> list[Fault | None]:
    """The fault of each trajectory or None, after all programs have run again, many at once."""
    codes: list[list[str] | Fault] = []
    for record in records:
        try:
            shape, _, programs = parse(record)
            codes.append([shape.to_run(program) for program in programs])
        except ValueError as error:
            codes.append(_markup(error))
    results = iter(sandbox.map([c for found in codes if isinstance(found, list) for c in found], timeout))
    faults: list[Fault | None] = []
    for record, problem, found in zip(records, problems, codes, strict=True):
        if isinstance(found, Fault):
            faults.append(found)
        else:
            own = list(itertools.islice(results, len(found)))
            faults.append(judge(record, problem, own, timeout, rewritten))
    return faults


def report(path: str, sandbox: Sandbox, timeout: float) -> int:
    """Print each trajectory of a file that has a fault. Returns their number."""
    faults: Counter = Counter()
    count = 0
    for count, fault, record in progress(lines_in(path), "check", check(path, sandbox, timeout)):
        if fault:
            faults[fault.reason] += 1
            print(f"{path}, line {count}: {record.get('task')} {record.get('index')}: {fault}")
    why = "; ".join(f"{reason} {n} ({REASONS[reason]})" for reason, n in faults.most_common())
    print(f"{count} trajectories, {faults.total()} with a fault{': ' if why else ''}{why}")
    return faults.total()


def check(path: str, sandbox: Sandbox, timeout: float) -> Iterator[tuple[int, Fault | None, dict]]:
    """(line number, fault or None, record) of each line of a file. Raises UsageError for a missing or empty
    file, and for a task that is not available here."""
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file of trajectories")
    if not os.path.getsize(path):
        raise UsageError(f"{path}: no trajectories in it; expected one JSON object per line")
    seen: set[str] = set()
    with open(path, "rb") as f:
        numbered = enumerate(f, 1)
        while lines := list(itertools.islice(numbered, 500)):
            found = [(number, *_read(line, seen)) for number, line in lines]
            whole = [(record, problem) for _, fault, record, problem in found if fault is None]
            faults = iter(verify([r for r, _ in whole], [p for _, p in whole], sandbox, timeout))
            for number, fault, record, _ in found:
                yield number, next(faults) if fault is None else fault, record


def _markup(error: Exception) -> Fault:
    return Fault("markup", " ".join(str(error).split()))


def _read(line: bytes, seen: set[str]) -> tuple[Fault | None, dict, Problem | None]:
    """(fault, record, problem) of a line, before its programs run; the problem is None with a fault."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found {str(record)[:40]}")
        text = json.dumps(record.get("messages"))
    except (ValueError, RecursionError) as error:
        return _markup(error), {}, None
    task, index = record.get("task"), record.get("index")
    if not isinstance(task, str) or type(index) is not int or index < 0:
        return Fault("markup", "expected a task and an index"), record, None
    try:
        family = get(task)
    except UsageError as error:  # no such task
        return _markup(error), record, None
    if family.missing:
        raise UsageError(f"{task}: {family.missing}")
    if family.suite != "math" and not SFT_START <= index < RL_START:
        return Fault("range", f"{task} {index}"), record, None
    if text in seen:
        return Fault("repeated"), record, None
    seen.add(text)
    return None, record, family.problem(index)
