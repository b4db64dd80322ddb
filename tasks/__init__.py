"""Problems, graders, and the split into training and test tasks.

A task is a deterministic stream of problems: `index` is the seed of a problem. The range of the index is its
purpose, so that no problem is used for two purposes:

         0 ..  9,999   evaluation
    10,000 .. 99,999   supervised trajectories (sft.py, coldstart.py)
   100,000 ..          reinforcement learning (grpo.py, ppo.py)

Tasks are split by name as well. Of the papers' 144 tasks 107 are "train" and 37 are "test", held out of all
training (tasks/split.py). The toy suite has its own split, 107 / 37. A file of questions is a task too: its
name is its path, and it has no split (tasks/math.py).

    python -m tasks          # lists them, shows questions, solves and grades
"""

import functools
import hashlib
import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

from plumbing.config import UsageError, nearest
from tasks.blocks import Turn
from tasks.protocols import (
    FIRST_ONLY,
    PROTOCOLS,
    Protocol,
    extract_answer,
    in_words,
    instructions,
    output,
    read_prompt,
    well_formed,
)
from tasks.split import SPLIT

__all__ = [
    "FIRST_ONLY",
    "PROTOCOLS",
    "RL_START",
    "SFT_START",
    "SUITES",
    "Grade",
    "Problem",
    "Protocol",
    "Task",
    "Turn",
]
__all__ += [
    "add",
    "extract_answer",
    "for_training",
    "get",
    "get_protocol",
    "in_words",
    "instructions",
    "math_equal",
    "names",
    "output",
    "read_prompt",
]
__all__ += ["select", "split_of", "toy_corpus", "use_bbh", "use_symbench", "well_formed"]

SFT_START, RL_START = 10_000, 100_000
SUITES = {  # suite -> the modules with its TASKS, imported at the first use of the suite
    "symbench": ("symbench_numbers", "symbench_grids", "symbench_strings", "symbench_planning")
    + ("symbench_mathematics",),
    "bbh": ("bbh_logic", "bbh_language", "bbh_worlds", "bbh_files"),
    "reasoning_gym": ("reasoning_gym",),
    "math": (),  # files and folders: --tasks path/to/questions.jsonl,MATH/train/geometry
    "toy": ("toy",),
    "facts": ("toy",),
    "mine": (),  # tasks of your own: add()
}
_MINE: dict[str, "Task"] = {}  # filled by add(): the suite "mine"
_PUBLISHED: dict[str, "Task"] = {}  # filled by use_symbench(): tasks that ask published questions


@dataclass(frozen=True)
class Problem:
    """One question. grade() compares with `answer`; `meta` is the task's own data."""

    task: str
    index: int
    question: str
    answer: object
    meta: dict = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the question's text."""
        return hashlib.sha256(self.question.encode(errors="replace")).hexdigest()[:16]


@dataclass(frozen=True)
class Grade:
    correct: bool
    detail: str  # the reason, for people


class Task(ABC):
    """Problems that share a form of question, a grader and a reference program."""

    name: str
    suite: str
    size: int | None = None  # number of questions in a file; None: one per index
    by_heart: bool = False  # a fact: neither a program nor reasoning finds the answer
    apart: bool = False  # the task itself keeps question texts from occurring in two ranges of indices

    @abstractmethod
    def problem(self, index: int) -> Problem:
        """The problem with this index, the same on every machine."""

    @abstractmethod
    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """The grade of an extracted final answer; None: no answer was given."""

    @abstractmethod
    def solution(self, problem: Problem) -> str | None:
        """A Python program that prints the answer; None if there is none."""

    @property
    def missing(self) -> str:
        """One line with what to install or download; empty if the task can be used."""
        return ""


@functools.cache
def _tasks(suite: str) -> dict[str, Task]:
    """All tasks of a suite by name, in the order of the papers' table."""
    found: dict[str, Task] = {}
    for module in SUITES[suite]:
        held = importlib.import_module(f"tasks.{module}").TASKS
        found |= {name: task for name, task in held.items() if task.suite == suite}
    return {n: found[n] for n in SPLIT.get(suite, found) if n in found}


def add(task: Task) -> None:
    """Make a task of your own known by its name to all commands: a training task of the suite "mine". Raises
    ValueError for a name that is taken (docs/extending.md)."""
    if task.name in SUITES or _suite(task.name) is not None:
        raise ValueError(f"a task or suite {task.name} is there already; expected a new name")
    _MINE[task.name] = task


def _suite(name: str) -> str | None:
    """The suite of a task, found without importing the papers' suites; None for an unknown name."""
    if name in _MINE:
        return "mine"
    for suite, parts in SPLIT.items():
        if name in parts:
            return suite
    if is_file(name):
        return "math"
    return next((suite for suite in ("toy", "facts") if name in _tasks(suite)), None)


def is_file(name: str) -> bool:
    """Whether the name is a file of questions, or the path of a folder of them."""
    return name.lower().endswith((".jsonl", ".json", ".parquet", ".csv")) or is_folder(name)


def is_folder(name: str) -> bool:
    """Whether the name is the path of a folder, such as MATH/train/geometry or ./geometry."""
    return os.sep in name and os.path.isdir(name)


def get(name: str) -> Task:
    """The task of this name. Raises UsageError naming the nearest one."""
    suite = _suite(name)
    if suite == "math":
        return importlib.import_module("tasks.folders" if is_folder(name) else "tasks.math").load(name)
    if suite is None:
        raise UsageError(f"unknown task {name}{nearest(name, _known())}; `python -m tasks` lists all")
    return _PUBLISHED.get(name) or _MINE.get(name) or _tasks(suite)[name]


def _known() -> list[str]:
    return [*names(), *names("toy"), *names("facts"), *_MINE]


def _parts(suite: str) -> dict[str, str]:
    """Task name -> "train" | "test" for the tasks of a suite."""
    if suite in SPLIT:
        return SPLIT[suite]
    if suite == "mine":
        return dict.fromkeys(_MINE, "train")
    return {n: importlib.import_module("tasks.toy").SPLIT[n] for n in _tasks(suite)}


def names(suite: str | None = None, split: str | None = None) -> list[str]:
    """Task names of a suite (by default the papers' 144) and of a split ("train" | "test", by default both),
    including tasks that are not available here. Raises UsageError for an unknown suite or split."""
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite}{nearest(suite, SUITES)}; known are {', '.join(SUITES)}")
    if split not in (None, "train", "test"):
        raise UsageError(f"unknown split {split}; expected train or test")
    suites = SPLIT if suite is None else [suite]
    return [n for each in suites for n, part in _parts(each).items() if split in (None, part)]


def split_of(name: str) -> str | None:
    """The split of a task, "train" or "test"; None for a file and for an unknown name."""
    suite = _suite(name)
    return None if suite in (None, "math") else _parts(suite)[name]


def select(spec: str, split: str | None = None, flag: str = "--tasks") -> list[str]:
    """Task names from the option `flag`: names of tasks, files or suites, comma separated.

    A suite selects its available tasks of `split`; one line on stderr names the absent ones. A task given
    twice is listed twice, and is drawn twice as often in training. Raises UsageError for an unknown name, an
    absent task given by name, and an empty selection.
    """
    chosen: list[str] = []
    for word in filter(None, (w.strip() for w in spec.split(","))):
        if word in SUITES:
            chosen += _available(word, split, flag)
            continue
        if _suite(word) is None:
            if os.path.isfile(word):
                raise UsageError(
                    f"{flag} {word}: a file; expected .jsonl, .json, .csv or .parquet: convert it"
                )
            close = nearest(word, [*SUITES, *_known()])
            suites = f"suites are {', '.join(SUITES)}; docs/tasks.md lists the tasks"
            raise UsageError(f"{flag}: unknown task or suite {word}{close}; {suites}")
        if missing := get(word).missing:
            raise UsageError(f"{flag} {word}: {missing}")
        chosen.append(word)
    if not chosen:
        raise UsageError(f"{flag} {spec!r} selects nothing; expected task or suite names, comma separated")
    return chosen


def _available(suite: str, split: str | None, flag: str) -> list[str]:
    """The available tasks of a suite. Raises UsageError if there are none."""
    if suite == "math":
        raise UsageError(f"{flag} math: its tasks are files; name them, as in {flag} data/aime24.jsonl")
    absent = {n: missing for n in names(suite, split) if (missing := get(n).missing)}
    found = [n for n in names(suite, split) if n not in absent]
    if absent:
        reason = next(iter(absent.values()))
        if not found:
            raise UsageError(f"{flag} {suite}: {reason}")
        count = f"{len(absent)} of {len(absent) + len(found)} tasks are absent"
        _say_once(f"{suite}: {count}: {', '.join(absent)} ({reason})")
    return found


@functools.cache
def _say_once(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun, one process only
        print(line, file=sys.stderr)


def for_training(spec: str, test_tasks: bool = False) -> list[str]:
    """select() for training: a suite selects its training tasks. Raises UsageError for a test task given by
    name. With `test_tasks` (--train-on-test-tasks) test tasks are selected too."""
    chosen = select(spec, None if test_tasks else "train")
    held_out = [] if test_tasks else [n for n in dict.fromkeys(chosen) if split_of(n) == "test"]
    if held_out:
        raise UsageError(
            f"--tasks: {', '.join(held_out)} held out for the evaluation; --train-on-test-tasks trains on "
            "them all the same"
        )
    return chosen


def use_bbh(folder: str | None) -> None:
    """Use the official questions of BIG-Bench Hard in `folder` (--bbh). Raises UsageError."""
    if folder is not None:
        importlib.import_module("tasks.bbh_files").use(folder)


def use_symbench(folder: str | None) -> None:
    """Ask SymBench's published questions in `folder` in the evaluation (--symbench); None goes back to
    generated ones. One line on stderr names the tasks without a folder there. Raises UsageError."""
    _PUBLISHED.clear()
    if folder is None:
        return
    _PUBLISHED.update(importlib.import_module("tasks.published").use(folder))
    if absent := [name for name in names("symbench") if name not in _PUBLISHED]:
        _say_once(f"--symbench {folder}: asked from generated questions instead: {', '.join(absent)}")


def toy_corpus() -> Iterator[str]:
    """The text that the embedded tokenizer is trained on: see tasks/toy.py."""
    return importlib.import_module("tasks.toy").corpus()


def get_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises UsageError naming the nearest one."""
    if name not in PROTOCOLS:
        known = f"{', '.join(PROTOCOLS)}; docs/extending.md adds one"
        raise UsageError(f"--protocol {name}{nearest(name, PROTOCOLS)}; known are {known}")
    return PROTOCOLS[name]


def math_equal(answer: str, right: str) -> bool:
    """Whether a mathematical answer equals the right one (tasks/equality.py)."""
    return importlib.import_module("tasks.math").math_equal(answer, right)
