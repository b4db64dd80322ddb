"""The turns of a trajectory, read from the messages of a line; records.py shows such a line.

checks.py judges a trajectory, faults.py says why one is dropped.
"""

import re
from collections.abc import Callable

from tasks import Protocol, Turn
from tasks.blocks import Part, split_code
from tasks.files import HALF
from trajectories.layouts import messages


def conversation(
    record: dict, shape: Protocol, clean: Callable[[str], str] = str
) -> tuple[str | None, list[tuple[str, str]]]:
    """The record's own head prompt or None, and (role, text) of each turn. A result in the assistant's text
    becomes a turn of role tool; an assistant's turn that is not trained has the role context. clean(text)
    takes off what ends an assistant's turn. Raises ValueError for roles that are not
    (user, assistant, (tool, assistant)*)+, for text that is none, and for a result that does not follow the
    one program that ends a turn."""
    turns = [(m["role"], m["content"]) for m in messages(record, shape)]
    if any(HALF.search(text) for _, text in turns):
        raise ValueError("a message with half a surrogate pair, which is no character; expected Unicode text")
    head = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    found: list[tuple[str, str]] = []
    for role, text in turns:
        if role in ("assistant", "context"):
            parts = split_results(text, shape)
            found += [(role, clean(t)) if r == "assistant" else (r, t) for r, t in parts]
        else:
            found.append((role, text))
    roles = [role for role, _ in found]
    letters = {"user": "u", "assistant": "a", "context": "a", "tool": "t"}
    if not re.fullmatch("(ua(ta)*)+", "".join(letters.get(role, "?") for role in roles)):
        raise ValueError(f"roles are {roles}; expected (user, assistant, (tool, assistant)*)+")
    if "assistant" not in roles:
        raise ValueError("all messages have weight 0; expected one to train on")
    for i in (i for i, role in enumerate(roles) if role == "tool"):
        if not ends_with_program(found[i - 1][1], shape):
            raise ValueError("a result that does not follow a turn which ends with one program")
    return head, found


def ends_with_program(text: str, shape: Protocol) -> bool:
    """Whether a turn pauses at its very end, as in a rollout, for the program of its one code block."""
    turn, written = Turn(shape, 0), text.rstrip().encode(errors="replace")
    return not turn.feed(written[:-1]) and turn.feed(written[-1:] + b"\n")


def split_results(text: str, shape: Protocol) -> list[tuple[str, str]]:
    """The assistant's text split at its interpreter results. Raises ValueError for a result that does not
    follow a code block, or whose end is unclear.

    >>> split_results("<code>1</code><interpreter>1</interpreter>So", PROTOCOLS["retool"])
    [('assistant', '<code>1</code>'), ('tool', '1'), ('assistant', 'So')]
    """
    begin, end = shape.before.strip(), shape.after.strip() or "\n\n"
    turns, rest = [], text
    while begin and begin in rest:
        written, rest = rest.split(begin, 1)
        written = written.rstrip()
        if shape.open not in written or not written.endswith(shape.close.strip()):
            raise ValueError(f"the assistant writes {begin!r}, but not after a code block")
        if end not in rest:
            raise ValueError(f"a result after {begin!r} without an end; expected {end!r} and text after it")
        result, rest = rest.split(end, 1)
        turns += [("assistant", written), ("tool", result)]
        rest = rest.lstrip("\n")
    if turns and not rest:
        raise ValueError("the assistant's text ends with a result; expected an answer after it")
    turns.append(("assistant", rest))
    for i in range(1, len(turns), 2):
        if not ends_surely(turns[i][1], turns[i + 1][1], i + 2 < len(turns), shape):
            raise ValueError("it cannot be told where a result in the assistant's text ends; use role tool")
    return turns


def ends_surely(result: str, text: str, runs: bool, shape: Protocol) -> bool:
    """Whether a result in the assistant's text ends certainly where `text` begins.

    `runs`: the text ends with a code block, which another result follows. A protocol without an end marker
    ends a result at an empty line. The result and the text before the code block must then hold neither an
    empty line nor a code block. An end marker must not stand in the text, but as the end of a code block."""
    if shape.before.strip() in result:
        return False
    if end := shape.after.strip():
        parts = split_code(text, shape) if end == shape.close.strip() else [Part(text)]
        return end not in "".join(part.words for part in parts)
    text = text.rpartition(shape.open)[0] if runs else text.rstrip()
    elsewhere = any(shape.open in part or re.search(r"\n\s*\n", part) for part in (result.strip(), text))
    return bool(result.strip()) and not elsewhere
