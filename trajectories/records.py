"""A trajectory as a line of a file: how it is made and written; format.py reads it.

{"task": ..., "index": ..., "source": "programs", "protocol": "r1ci", "turns": 2, "messages": [
    {"role": "user", "content": question},
    {"role": "assistant", "content": text and a code block}, {"role": "tool", "content": output}, ...,
    {"role": "assistant", "content": the answer}]}

A program with a mistake is read and not trained: its message has `"weight": 0`.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from episode import Episode, spans
from plumbing.config import write_text
from tasks import Problem, Protocol, output
from tokenizer import Source, Tokenizer


def trajectory(
    problem: Problem,
    messages: list[dict],
    source: str,
    protocol: str,
    system: str | None = None,
    template: str | None = None,
) -> dict:
    """One line of the file; `system` and `template` are a prompt other than the protocol's."""
    head = [] if system is None else [{"role": "system", "content": system}]
    turns = sum(m["role"] == "assistant" for m in messages)
    record = {"task": problem.task, "index": problem.index, "source": source, "protocol": protocol}
    record |= {} if template is None else {"prompt": template}
    return record | {"turns": turns, "messages": head + messages}


def answer_messages(episode: Episode, tokenizer: Tokenizer, protocol: Protocol) -> list[dict]:
    """The messages after an episode's prompt. The tokens' tags decide the roles, never the text. A tool's
    message is the sandbox's whole output, of which the model may have read a shortened form."""
    results = iter([output(call.result) for call in episode.calls])
    found: list[dict] = []
    for source, ids in list(spans(episode.tokens, episode.source))[1:]:
        if source == Source.TOOL:
            found.append({"role": "tool", "content": next(results)})
        elif source == Source.POLICY:
            text = tokenizer.decode([t for t in ids if t not in tokenizer.stop_ids])
            found.append({"role": "assistant", "content": text})
        else:
            question = protocol.follow_up[any(m["role"] == "tool" for m in found)]
            found.append({"role": "user", "content": question})
    return found


def write(records: Iterable[dict], path: str | Path) -> int:
    """Write records as JSON lines, all or none. Returns their number."""
    lines = [json.dumps(record) + "\n" for record in records]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return len(lines)
