"""Problems, how their answers are checked, and which of them may be trained on.

A task is a deterministic stream of problems: `index` is the seed of a question. Its number says what the
question is for, so that no question is ever used twice by accident:

         0 ..  9,999   evaluation
    10,000 .. 99,999   supervised trajectories (sft.py, coldstart.py)
   100,000 ..          reinforcement learning (grpo.py, ppo.py)

Tasks are split by name as well: of the papers' 144, 107 are "train" and 37 "test", whole tasks that no stage
ever sees (tasks/split.py). The toy suite has a 107 / 37 of its own. A file of questions is a task too: its
name is its path, and who gives it decides what it is for (tasks/math.py).

    python -m tasks          # lists them, shows questions, solves and grades
"""

import functools
import importlib
import os
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from plumbing.config import UsageError, nearest
from tasks.protocols import PROTOCOLS, Protocol, Turn, extract_answer, output
from tasks.split import SPLIT

__all__ = ["PROTOCOLS", "RL_START", "SFT_START", "SUITES", "Grade", "Problem", "Protocol", "Task", "Turn"]
__all__ += ["extract_answer", "for_training", "get", "get_protocol", "math_equal", "names", "output"]
__all__ += ["select", "split_of", "use_bbh"]

SFT_START, RL_START = 10_000, 100_000
SUITES = {  # suite -> the modules whose TASKS hold it, imported when a task of it is asked for
    "symbench": ("symbench_numbers", "symbench_grids", "symbench_strings", "symbench_planning")
    + ("symbench_mathematics",),
    "bbh": ("bbh_logic", "bbh_language", "bbh_worlds", "bbh_files"),
    "reasoning_gym": ("reasoning_gym",),
    "math": (),  # files: --tasks path/to/questions.jsonl
    "toy": ("toy",),
    "facts": ("toy",),
}


@dataclass(frozen=True)
class Problem:
    """One question. `answer` is what grade() compares with; `meta` is the task's own data."""

    task: str
    index: int
    question: str
    answer: object
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    correct: bool
    detail: str  # why it was refused, for people


class Task(ABC):
    """A family of problems that share a question form, a checker and a reference program."""

    name: str
    suite: str
    size: int | None = None  # questions there are, where they come from a file; None: as many as numbers
    by_heart: bool = False  # the answer is known or not: no program finds it, and no reasoning
    apart: bool = False  # sees to it itself that no question's text occurs in two ranges of indices

    @abstractmethod
    def problem(self, index: int) -> Problem:
        """The problem with this number: the same on every machine."""

    @abstractmethod
    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """Check an extracted final answer; None means that none was given."""

    @abstractmethod
    def solution(self, problem: Problem) -> str | None:
        """A Python program that prints the answer; None where code is the wrong tool."""

    @property
    def missing(self) -> str:
        """ "" where the task can be used, else one line saying what to install or to download."""
        return ""


@functools.cache
def _tasks(suite: str) -> dict[str, Task]:
    """All tasks of a suite by name, in the order of the papers' table."""
    found: dict[str, Task] = {}
    for module in SUITES[suite]:
        held = importlib.import_module(f"tasks.{module}").TASKS
        found |= {name: task for name, task in held.items() if task.suite == suite}
    return {n: found[n] for n in SPLIT.get(suite, found) if n in found}


def _suite(name: str) -> str | None:
    """The suite that a task belongs to; the modules of the papers' suites are not imported for it."""
    for suite, parts in SPLIT.items():
        if name in parts:
            return suite
    if is_file(name):
        return "math"
    return next((suite for suite in ("toy", "facts") if name in _tasks(suite)), None)


def is_file(name: str) -> bool:
    """Whether a task's name is that of a file of questions."""
    return name.endswith((".jsonl", ".json", ".parquet", ".csv"))


def get(name: str) -> Task:
    """The task of this name. Raises UsageError naming the nearest one."""
    suite = _suite(name)
    if suite == "math":
        return importlib.import_module("tasks.math").load(name)
    if suite is None:
        raise UsageError(f"unknown task {name}{nearest(name, _known())}; `python -m tasks` lists all")
    return _tasks(suite)[name]


def _known() -> list[str]:
    return [*names(), *names("toy"), *names("facts")]


def _parts(suite: str) -> dict[str, str]:
    """Task name -> "train" | "test", for a suite."""
    if suite in SPLIT:
        return SPLIT[suite]
    return {n: importlib.import_module("tasks.toy").SPLIT[n] for n in _tasks(suite)}


def names(suite: str | None = None, split: str | None = None) -> list[str]:
    """Task names of a suite (by default the papers' 144), of one split ("train" | "test") or of both,
    whether the tasks are available here or not."""
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite}{nearest(suite, SUITES)}; known are {', '.join(SUITES)}")
    if split not in (None, "train", "test"):
        raise UsageError(f"unknown split {split}; expected train or test")
    suites = SPLIT if suite is None else [suite]
    return [n for each in suites for n, part in _parts(each).items() if split in (None, part)]


def split_of(name: str) -> str | None:
    """ "train" or "test"; None for a file and for what is no task: nobody has said what it is for."""
    suite = _suite(name)
    return None if suite in (None, "math") else _parts(suite)[name]


def select(spec: str, split: str | None = None) -> list[str]:
    """Task names from an option: task names, files or suites, comma separated. A suite gives its tasks of
    `split` that are available, and one line on stderr names the others; an absent task asked for by name
    raises UsageError. A name given twice stands twice in the list, and is drawn twice as often in training.
    """
    chosen: list[str] = []
    for word in filter(None, (w.strip() for w in spec.split(","))):
        if word in SUITES:
            chosen += _available(word, split)
            continue
        if _suite(word) is None:
            close = nearest(word, [*SUITES, *_known()])
            raise UsageError(f"--tasks: unknown task or suite {word}{close}; suites are {', '.join(SUITES)}")
        if missing := get(word).missing:
            raise UsageError(f"--tasks {word}: {missing}")
        chosen.append(word)
    if not chosen:
        raise UsageError(f"--tasks {spec!r} selects nothing; expected task or suite names, comma separated")
    return chosen


def _available(suite: str, split: str | None) -> list[str]:
    """The tasks of a suite that can be used here. Raises UsageError where none can."""
    if suite == "math":
        raise UsageError("--tasks math: its tasks are files; name them, as in --tasks data/aime24.jsonl")
    absent = {n: missing for n in names(suite, split) if (missing := get(n).missing)}
    found = [n for n in names(suite, split) if n not in absent]
    if absent:
        reason = next(iter(absent.values()))
        if not found:
            raise UsageError(f"--tasks {suite}: {reason}")
        count = f"{len(absent)} of {len(absent) + len(found)} tasks are absent"
        _say_once(f"{suite}: {count}: {', '.join(absent)} ({reason})")
    return found


@functools.cache
def _say_once(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # under torchrun, from one process
        print(line, file=sys.stderr)


def for_training(spec: str, test_tasks: bool = False) -> list[str]:
    """select() for code that trains: of a suite the training tasks; a held-out task by name raises
    UsageError, unless `test_tasks` (--train-on-test-tasks), which opens the held-out ones of suites too."""
    chosen = select(spec, None if test_tasks else "train")
    held_out = [] if test_tasks else [n for n in dict.fromkeys(chosen) if split_of(n) == "test"]
    if held_out:
        raise UsageError(
            f"--tasks: {', '.join(held_out)} held out for the evaluation; --train-on-test-tasks trains on "
            "them all the same"
        )
    return chosen


def use_bbh(folder: str | None) -> None:
    """Ask the official questions of BIG-Bench Hard where `folder` (--bbh) holds them. Raises UsageError."""
    if folder is not None:
        importlib.import_module("tasks.bbh_files").use(folder)


def get_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises UsageError naming the nearest one."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}{nearest(name, PROTOCOLS)}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def math_equal(a: str, b: str) -> bool:
    """Whether two answers of mathematics are the same: tasks/math.py says what counts."""
    return importlib.import_module("tasks.math").math_equal(a, b)
