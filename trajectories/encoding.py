"""Trajectories as tagged tokens: what sft.py trains on, from the lines of a file.

encode({"messages": [...]}, tokenizer, "r1ci")                    text and results, encoded once
encode({"tokens": [...], "source": [...]}, tokenizer, "r1ci")     an episode as it was sampled
read("trajectories.jsonl", tokenizer, "r1ci")                     all lines; the malformed ones are named
"""

import os
from pathlib import Path

from episode import Episode, spans
from plumbing.config import UsageError
from plumbing.progress import lines_in, progress
from tasks import PROTOCOLS, Problem, split_of
from tasks.files import records
from tokenizer import Source, Tokenizer
from trajectories.format import conversation


def encode(
    record: dict,
    tokenizer: Tokenizer,
    protocol: str,
    system: str | None = None,
    template: str | None = None,
) -> Episode:
    """A trajectory, in any of the forms above, as tagged tokens: the episode that rollout() would have made.
    `system` and `template` replace the protocol's prompt, as Protocol.opening says; a record that has a
    prompt or a system message of its own keeps it. Raises ValueError for a malformed record."""
    if not isinstance(record, dict) or not isinstance(record.get("protocol"), (str, type(None))):
        raise ValueError("expected an object whose protocol, if it names one, is text")
    if "tokens" in record:
        return sampled(record, tokenizer)
    shape = PROTOCOLS.get(record.get("protocol") or protocol)
    if shape is None:
        raise ValueError(f"unknown protocol {record['protocol']!r}; known are {', '.join(PROTOCOLS)}")
    head, turns = conversation(record, shape, lambda text: unended(text, tokenizer))
    own = record.get("prompt")
    own = own if isinstance(own, str) and "{question}" in own else None
    if head is None and own is None:
        head, own = system, template
    question = turns[0][1]
    episode = Episode(Problem(record.get("task", ""), record.get("index", -1), question, None), group=0)
    end, said = [tokenizer.stop_ids[0]], ""
    read = {"assistant": Source.POLICY, "context": Source.PROMPT}  # a context is read, not trained
    for i, (role, text) in enumerate(turns):
        if role == "user":
            if i:
                episode.append(end, read[turns[i - 1][0]])
            opening = shape.opening(question, head, own)
            ids = tokenizer.follow_up(text, said) if i else tokenizer.chat(*opening)
            episode.append(ids, Source.PROMPT)
        elif role in read:
            if turns[i - 1][0] == "user":
                text = continuing(text, tokenizer.opened)
            said += text
            episode.append(tokenizer.encode(text, marks=True), read[role])
        else:
            episode.append(tokenizer.encode(shape.wrap(text)), Source.TOOL)
    episode.append(end, read[turns[-1][0]])
    return episode


def unended(text: str, tokenizer: Tokenizer) -> str:
    """The assistant's text without an end-of-turn token that is written out at its end. Raises ValueError for
    a token of the chat template inside it."""
    ends = [tokenizer.piece(i).decode(errors="replace") for i in tokenizer.stop_ids]
    text = next((text.rstrip().removesuffix(end) for end in ends if text.rstrip().endswith(end)), text)
    for mark in {*ends, "<|im_start|>", "<|im_end|>"}:
        if mark in text:
            raise ValueError(f"{mark} inside the assistant's text; expected a message per turn")
    return text


def continuing(text: str, opened: str) -> str:
    """The answer without what the prompt has already written of it.

    >>> continuing("<think>\\nWell", "<think>\\n")
    'Well'
    """
    if not opened.strip() or not text.lstrip().startswith(opened.strip()):
        return text
    blanks = opened[len(opened.rstrip()) :]
    return text.lstrip().removeprefix(opened.strip()).removeprefix(blanks)


def sampled(record: dict, tokenizer: Tokenizer) -> Episode:
    """An episode as it was sampled, from its ids and their source. Raises ValueError for a malformed record,
    and where the record's `spans` show that another tokenizer made the ids."""
    tokens, source = record["tokens"], record.get("source")
    for name, found, size in (("tokens", tokens, tokenizer.vocab_size), ("source", source, len(Source))):
        good = isinstance(found, list) and all(type(x) is int and 0 <= x < size for x in found)
        if not good:
            raise ValueError(f"{name}: expected a list of integers from 0 to {size - 1}")
    if len(tokens) != len(source):
        raise ValueError(f"{len(tokens)} tokens and {len(source)} entries of source; expected as many")
    if not source or source[0] != Source.PROMPT or source[-1] != Source.POLICY:
        raise ValueError("expected a source that begins with the prompt (0) and ends with the policy (1)")
    problem = Problem(record.get("task", ""), record.get("index", -1), "", None)
    episode = Episode(problem, 0, tokens, source, [0.0] * len(tokens))
    said = [[kind.name, tokenizer.decode(ids)] for kind, ids in spans(tokens, source)]
    if "spans" in record and record["spans"] != said:
        raise ValueError("spans are not the text of tokens; were they sampled with another tokenizer?")
    return episode


def read(
    path: str,
    tokenizer: Tokenizer,
    protocol: str,
    system: str | None = None,
    template: str | None = None,
    *,
    max_bad: float = 0.0,
    test_tasks: bool = False,
) -> tuple[list[Episode], list[str]]:
    """All trajectories of a file, and a message with file, place and reason for each malformed row. Raises
    UsageError where their share exceeds `max_bad`, and for a held-out task without `test_tasks`."""
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file of trajectories; coldstart.py makes one")
    episodes, bad = [], []
    alone = os.environ.get("RANK", "0") == "0"  # all ranks read; one shows it
    for place, record in progress(lines_in(path), Path(path).name, records(path), disable=not alone):
        try:
            if isinstance(record, ValueError):
                raise record
            if isinstance(record, dict):  # a Parquet file has all columns in every row
                record = {key: value for key, value in record.items() if value is not None}
            episodes.append(encode(record, tokenizer, protocol, system, template))
        except (ValueError, RecursionError) as error:
            bad.append(f"{path}, {place}: {' '.join(str(error).split())}")
            continue
        task = episodes[-1].problem.task
        if not test_tasks and isinstance(task, str) and split_of(task) == "test":
            why = f"{task} is held out for the evaluation; --train-on-test-tasks takes it"
            raise UsageError(f"{path}, {place}: {why}")
    total = len(episodes) + len(bad)
    if len(bad) > max_bad * total:
        raise UsageError(f"{bad[0]} ({len(bad)} of {total} lines are malformed, --max-bad is {max_bad})")
    return episodes, bad
