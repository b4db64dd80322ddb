"""The logged episodes of a run: read, checked and selected. And what else its folder says of it.

episodes = Episodes(Path("runs/grpo/episodes.jsonl"), Filter(wrong=True))
for record in episodes:                                  # as training/steps.py wrote it
    ...
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plumbing.config import UsageError, nearest, option
from tokenizer import Source

SCRIPTS = {"per_task": "sft", "advantage": "grpo", "critic_lr": "ppo"}  # an option that one script alone has
PER_TOKEN = ("tokens", "source", "logprobs", "entropy", "advantages", "trained")
KEYS = {"step": int, "task": str, "index": int, "spans": list, "answer": (str, type(None)), "correct": bool}
KEYS |= {"reward": (int, float), "calls": list, "finish": str}
HEAD = re.compile(rb'{"step":\s*(\d+),\s*"task":\s*"([^"]*)"')


@dataclass(frozen=True)
class Filter:
    """Episodes; all that is given must hold."""

    task: str | None = option(None, "of this task")
    step: int | None = option(None, "of this step")
    right: bool = option(False, "with a right answer")
    wrong: bool = option(False, "with a wrong answer")
    error: bool = option(False, "with a program that failed")
    search: str | None = option(None, "with this text, upper and lower case told apart")


def records(path: Path) -> list[dict]:
    """The objects of a JSON or JSON Lines file, without what is damaged; none where it cannot be read."""
    found = []
    with contextlib.suppress(OSError):
        text = path.read_bytes()
        for part in [text] if path.suffix == ".json" else text.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(part))
    return [record for record in found if isinstance(record, dict)]


def metrics(folder: Path) -> list[dict]:
    """The metrics of each step of a run, oldest first; none before the first."""
    lines = [line for line in records(folder / "metrics.jsonl") if isinstance(line.get("step"), int)]
    return [{name: x for name, x in line.items() if isinstance(x, (int, float))} for line in lines]


def options_of(folder: Path) -> dict:
    """The options of a run, and under "script" the one that made it, or "" if that is not known."""
    options = next(iter(records(folder / "config.json")), {})
    return options | {"script": next((name for key, name in SCRIPTS.items() if key in options), "")}


def verdict(record: dict) -> str:
    """Whether an episode's answer is right, wrong or not graded."""
    return "not graded" if math.isnan(record["reward"]) else "right" if record["correct"] else "wrong"


def is_whole(record: object) -> bool:
    """Whether an episode has all that is shown, in the right form; numbers of its tokens may be missing."""
    if not isinstance(record, dict) or not all(isinstance(record.get(k), v) for k, v in KEYS.items()):
        return False
    rows = [record[name] for name in (*PER_TOKEN, "characters") if name in record]
    if not all(isinstance(row, list) and len(row) == len(record.get("tokens", ())) for row in rows):
        return False
    for span in record["spans"]:
        good = isinstance(span, list) and len(span) == 2 and span[0] in [*Source.__members__]
        if not good or not isinstance(span[1], str):
            return False
    whole = sum(len(text) for _, text in record["spans"])
    if not all(isinstance(x, (int, float)) for row in rows for x in row):
        return False
    sizes = record.get("characters", [whole])
    return all(isinstance(size, int) and size >= 0 for size in sizes) and sum(sizes) == whole


def patterns(chosen: Filter) -> list[re.Pattern]:
    """What the line of a selected episode contains. Most lines do not, and need not be parsed."""
    wanted = [
        chosen.task is not None and rf'"task":\s*{re.escape(json.dumps(chosen.task))}',
        chosen.step is not None and rf'"step":\s*{chosen.step}\b',
        chosen.right and r'"correct":\s*true',
        chosen.wrong and r'"correct":\s*false',
        chosen.error and r'"calls":\s*\[(?!(?:"ok"[,\s]*)*\])',
        chosen.search is not None and re.escape(json.dumps(chosen.search)[1:-1]),
    ]
    return [re.compile(pattern.encode()) for pattern in wanted if pattern]


def selects(chosen: Filter, record: dict) -> bool:
    """Whether all filters given hold for an episode."""
    return (
        chosen.task in (None, record["task"])
        and chosen.step in (None, record["step"])
        and (not chosen.right or verdict(record) == "right")
        and (not chosen.wrong or verdict(record) == "wrong")
        and (not chosen.error or any(status != "ok" for status in record["calls"]))
        and (chosen.search is None or any(chosen.search in text for _, text in record["spans"]))
    )


class Episodes:
    """The selected episodes of a file, parsed one by one as they are asked for.

    After the last one, `total` and `damaged` count the lines of the file, `selected` the episodes. Raises
    UsageError where none is selected, and says what there is to select.
    """

    def __init__(self, path: Path, chosen: Filter):
        self.path, self.chosen = path, chosen
        self.total = self.damaged = self.selected = 0

    def __iter__(self) -> Iterator[dict]:
        wanted, seen = patterns(self.chosen), set()
        with open(self.path, "rb") as f:
            for line in filter(bytes.strip, f):
                self.total += 1
                seen |= {head.groups() for head in [HEAD.match(line)] if head}
                if not all(pattern.search(line) for pattern in wanted):
                    continue
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = None
                if not is_whole(record):
                    self.damaged += 1
                elif selects(self.chosen, record):
                    self.selected += 1
                    yield record
        if not self.selected:
            raise UsageError(f"{self.path}: {self._nothing(seen)}")

    def _nothing(self, seen: set[tuple[bytes, bytes]]) -> str:
        """Why nothing is selected; `seen` are the steps and tasks in the file."""
        if self.damaged == self.total:
            return f"no episode in its {self.total} lines; expected the file of a run that made a step"
        steps, tasks = {int(step) for step, _ in seen}, {task.decode(errors="replace") for _, task in seen}
        guess = "" if self.chosen.task in (None, *tasks) else nearest(self.chosen.task, tasks)
        known = f"steps {shortened(steps)}; tasks {shortened(tasks)}"
        return f"none of its {self.total} episodes is selected{guess}; it has {known}"

    def count(self) -> str:
        """What was selected, in a line; after the last episode."""
        damaged = f"; {self.damaged} damaged lines left out" if self.damaged else ""
        return f"{self.selected} of {self.total} episodes{damaged}"


def shortened(names: set) -> str:
    """The first names of a set, in a line."""
    first = ", ".join(map(str, sorted(names)[:8]))
    return first + (f" and {len(names) - 8} more" if len(names) > 8 else "")
