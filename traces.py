"""A trajectory as it is kept in a file, and every reason for which one is not kept.

    {"task": ..., "index": ..., "source": "programs", "protocol": "r1ci", "turns": 2, "messages": [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text and a code block}, {"role": "tool", "content": output}, ...,
        {"role": "assistant", "content": the answer}]}

Nothing is believed: the markup is parsed, every program is run again and its result compared with the stored
one, letter by letter, and the answer is graded by its task. `python coldstart.py check FILE` does so for a
file, coldstart.py for all that others wrote.
"""

import ast
import itertools
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from config import UsageError
from rollout import NOTICE
from sandbox import Result, Sandbox
from tasks import PROTOCOLS, RL_START, SFT_START, Problem, Protocol, extract_answer, get, output

REASONS = {
    "markup": "a marker without its partner, a block that was not run, or roles out of order",
    "no code": "a rewritten solution without a program",
    "syntax": "a rewritten solution with a program that Python cannot parse",
    "sandbox": "the sandbox could not run a program",
    "refused": "a question that the teacher's server refuses: too long, or filtered",
    "result": "a result that is not what the sandbox gives",
    "slow": "a program took more than half of its time limit, so that elsewhere it may not end in time",
    "limit": "a program beyond the limit of calls, which was not run",
    "unanswered": "no answer between the protocol's marks in the last turn, or out of tokens before it",
    "answer": "a wrong answer",
    "shape": "a slip that did not fail, or a check that did not hold",
    "question": "not the question with this number of this task",
    "range": "a number that belongs to evaluation or reinforcement learning",
    "evaluation": "a question that the evaluation asks too",
    "repeated": "the same question, or the same trajectory, again",
    "quota": "more of this task than asked for",
}
SLOW = 0.5  # share of the time limit


@dataclass(frozen=True)
class Fault:
    """Why a trajectory is not kept: one of REASONS, and what was found."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail or REASONS[self.reason]}"


def trajectory(problem: Problem, messages: list[dict], source: str, protocol: str) -> dict:
    """One line of the file."""
    turns = sum(m["role"] == "assistant" for m in messages)
    return {
        "task": problem.task,
        "index": problem.index,
        "source": source,
        "protocol": protocol,
        "turns": turns,
        "messages": messages,
    }


# -- text with results in it -> turns ----------------------------------------------------------------


def conversation(record: dict, shape: Protocol) -> tuple[str | None, list[tuple[str, str]]]:
    """The head prompt, if the record has its own, and (role, text) of each turn, results in the assistant's
    text made turns of their own: user, assistant, and tool and assistant in turn; further questions may
    follow an answer. Raises ValueError."""
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError(
            'expected {"messages": [{"role": ..., "content": ...}, ...]} or {"tokens": ..., ...}'
        )
    turns = [(m.get("role"), m.get("content")) for m in messages]
    if not all(isinstance(text, str) for _, text in turns):
        raise ValueError("a message without text content")
    if any(re.search("[\ud800-\udfff]", text) for _, text in turns):
        raise ValueError("a message with half a surrogate pair, which is no character; expected Unicode text")
    head = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    found = []
    for role, text in turns:
        opened = shape.prefill if found and found[-1][0] == "user" else ""
        found += split_results(text, shape, opened) if role == "assistant" else [(role, text)]
    roles = [role for role, _ in found]
    letters = {"user": "u", "assistant": "a", "tool": "t"}
    if not re.fullmatch("(ua(ta)*)+", "".join(letters.get(str(role), "?") for role in roles)):
        raise ValueError(f"roles are {roles}; expected (user, assistant, (tool, assistant)*)+")
    return head, found


def split_results(text: str, shape: Protocol, opened: str = "") -> list[tuple[str, str]]:
    """Text of an assistant that may hold interpreter results, as ("assistant", ...), ("tool", ...), ... in
    turn. Each result follows a code block; `opened` is what the prompt wrote of the first. Raises ValueError.

    >>> split_results("<code>1</code><interpreter>1</interpreter>So", PROTOCOLS["retool"])
    [('assistant', '<code>1</code>'), ('tool', '1'), ('assistant', 'So')]
    """
    begin, end = shape.before.strip(), shape.after.strip() or "\n\n"
    turns, rest = [], text
    while begin and begin in rest:
        written, rest = rest.split(begin, 1)
        written = written.rstrip()
        if shape.open not in opened + written or not written.endswith(shape.close.strip()):
            raise ValueError(f"the assistant writes {begin!r}, but not after a code block")
        if end not in rest:
            raise ValueError(f"a result after {begin!r} without an end; expected {end!r} and text after it")
        result, rest = rest.split(end, 1)
        turns += [("assistant", written), ("tool", result)]
        rest, opened = rest.lstrip("\n"), ""
    if turns and not rest:
        raise ValueError("the assistant's text ends with a result; expected an answer after it")
    turns.append(("assistant", rest))
    for i in range(1, len(turns), 2):
        if not ends_surely(turns[i][1], turns[i + 1][1], i + 2 < len(turns), shape):
            raise ValueError("it cannot be told where a result in the assistant's text ends; use role tool")
    return turns


def ends_surely(result: str, text: str, runs: bool, shape: Protocol) -> bool:
    """Whether `result` can only have ended where the assistant's `text` behind it begins. `runs`: that text
    ends with a code block, which another result follows. Without an end marker, what stands before that block
    must hold no empty line, at which the result might have ended too, and no code block that has not run."""
    if shape.before.strip() in result:
        return False
    if shape.after:
        return shape.after.strip() not in text
    text = text.rpartition(shape.open)[0] if runs else text.rstrip()
    elsewhere = any(shape.open in part or re.search(r"\n\s*\n", part) for part in (result.strip(), text))
    return bool(result.strip()) and not elsewhere


# -- what is wrong with it ---------------------------------------------------------------------------


def parse(record: dict) -> tuple[Protocol, list[tuple[str, str]], list[str]]:
    """The protocol, the turns (role, text) and the program of each turn that a result follows. Raises
    ValueError where the markup is broken."""
    name = record.get("protocol") if isinstance(record, dict) else None
    shape = PROTOCOLS.get(name) if isinstance(name, str) else None
    if shape is None:
        raise ValueError(f"expected an object with a protocol: {', '.join(PROTOCOLS)}")
    _, turns = conversation(record, shape)
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
        opened = shape.prefill if roles[i - 1] == "user" and i == 1 else ""
        program = _program(opened + text, shape, runs=roles[i + 1] == "tool")
        programs += [] if program is None else [program]
    return shape, turns, programs


def _program(text: str, shape: Protocol, runs: bool) -> str | None:
    """The one program at the end of a turn that runs one. Raises ValueError for any marker out of place."""
    if runs and not shape.open:
        raise ValueError("a result, but code is not run in this protocol")
    blocks = text.count(shape.open) if shape.open else 0
    if blocks != runs:
        expected = "one code block at its end" if runs else "none, since none is run"
        raise ValueError(f"{blocks} code blocks in a turn; expected {expected}")
    words, _, block = text.partition(shape.open) if runs else (text, "", "")
    for mark in filter(None, (shape.before.strip(), shape.after.strip())):
        if mark in block or mark.lower() in words.lower():
            raise ValueError(f"{mark!r} in the assistant's own text")
    _check_words(words, shape)
    if not runs:
        return None
    inside, close, behind = block.partition(shape.close)
    if not close or behind.strip():
        raise ValueError(f"a code block that does not end the turn with {shape.close.strip()!r}")
    if shape.open != "```python" and inside.count("```") not in (0, 2):
        raise ValueError("an open fence in a code block")
    return shape.code(inside)


def _check_words(words: str, shape: Protocol) -> None:
    """Raises ValueError for a marker without its partner, or a program, in what is not run of a turn."""
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
    """What is wrong with a trajectory whose markup is right, given what its programs really give (in order).
    `rewritten` adds ReTool's rules: there is code, and all of it parses."""
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
        if told.strip() == NOTICE:
            return Fault("limit")
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
    """What is wrong with each of these trajectories, all of their programs run anew, many at once."""
    codes: list[list[str] | Fault] = []
    for record in records:
        try:
            codes.append(parse(record)[2])
        except ValueError as error:
            codes.append(Fault("markup", " ".join(str(error).split())))
    results = iter(sandbox.map([c for found in codes if isinstance(found, list) for c in found], timeout))
    faults: list[Fault | None] = []
    for record, problem, found in zip(records, problems, codes, strict=True):
        if isinstance(found, Fault):
            faults.append(found)
        else:
            own = list(itertools.islice(results, len(found)))
            faults.append(judge(record, problem, own, timeout, rewritten))
    return faults


def check(path: str, sandbox: Sandbox, timeout: float) -> Iterator[tuple[int, Fault | None, dict]]:
    """Line number, fault or None, and record, for every line of a file of trajectories. Raises UsageError
    where there is no such file, or nothing in it, and for a task that is not available here."""
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


def _read(line: bytes, seen: set[str]) -> tuple[Fault | None, dict, Problem | None]:
    """Fault, record and its problem; without its problem it has a fault that needs no program to be seen."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found {str(record)[:40]}")
        text = json.dumps(record.get("messages"))
    except (ValueError, RecursionError) as error:
        return Fault("markup", " ".join(str(error).split())), {}, None
    task, index = record.get("task"), record.get("index")
    if not isinstance(task, str) or type(index) is not int or index < 0:
        return Fault("markup", "expected a task and an index"), record, None
    try:
        family = get(task)
    except UsageError as error:  # no such task
        return Fault("markup", str(error)), record, None
    if family.missing:
        raise UsageError(f"{task}: {family.missing}")
    if family.suite != "math" and not SFT_START <= index < RL_START:
        return Fault("range", f"{task} {index}"), record, None
    if text in seen:
        return Fault("repeated"), record, None
    seen.add(text)
    return None, record, family.problem(index)
