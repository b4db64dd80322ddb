"""The turns of a trajectory, read from the messages of a line; records.py shows such a line.

checks.py judges a trajectory, faults.py says why one is dropped.
"""

import re

from tasks import Protocol


def conversation(record: dict, shape: Protocol) -> tuple[str | None, list[tuple[str, str]]]:
    """The record's own head prompt or None, and (role, text) of each turn. A result in the assistant's text
    becomes a turn of role tool. Raises ValueError for roles that are not (user, assistant, (tool,
    assistant)*)+, and for text that is none."""
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
    """The assistant's text split at its interpreter results. `opened` is the prompt's part of the first code
    block. Raises ValueError for a result that does not follow a code block, or whose end is unclear.

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
    """Whether a result in the assistant's text ends certainly where `text` begins.

    `runs`: the text ends with a code block, which another result follows. A protocol without an end marker
    ends a result at an empty line. The result and the text before the code block must then hold neither an
    empty line nor a code block."""
    if shape.before.strip() in result:
        return False
    if shape.after:
        return shape.after.strip() not in text
    text = text.rpartition(shape.open)[0] if runs else text.rstrip()
    elsewhere = any(shape.open in part or re.search(r"\n\s*\n", part) for part in (result.strip(), text))
    return bool(result.strip()) and not elsewhere
