"""Problems, how their answers are checked, and which of them may be trained on.

A task is a deterministic stream of problems: `index` is the seed of a question. Its number says what the
question is for, so that no question is ever used twice by accident:

         0 ..  9,999   evaluation
    10,000 .. 99,999   supervised trajectories (sft.py, coldstart.py)
   100,000 ..          reinforcement learning (grpo.py, ppo.py)

Tasks are split by name as well: "train" (107) and "test" (37), whole tasks that no stage ever sees.
"""

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from config import UsageError, nearest
from tasks.protocols import PROTOCOLS, Protocol, extract_answer, output

__all__ = ["PROTOCOLS", "RL_START", "SFT_START", "Grade", "Problem", "Protocol", "Task"]
__all__ += ["extract_answer", "get", "get_protocol", "names", "output", "select"]

SFT_START, RL_START = 10_000, 100_000
SUITES = {"toy": "tasks.toy", "facts": "tasks.toy"}  # suite -> the module whose TASKS and SPLIT hold it


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

    @abstractmethod
    def problem(self, index: int) -> Problem:
        """The problem with this number: the same on every machine."""

    @abstractmethod
    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """Check an extracted final answer; None means that none was given."""

    @abstractmethod
    def solution(self, problem: Problem) -> str | None:
        """A Python program that prints the answer; None where code is the wrong tool."""


def _tasks(suite: str) -> dict[str, Task]:
    module = importlib.import_module(SUITES[suite])
    return {name: task for name, task in module.TASKS.items() if task.suite == suite}


def get(name: str) -> Task:
    """The task of this name. Raises UsageError naming the nearest one."""
    for suite in SUITES:
        if name in (tasks := _tasks(suite)):
            return tasks[name]
    raise UsageError(f"unknown task {name}{nearest(name, names())}; `names()` in tasks/ lists all")


def names(suite: str | None = None, split: str | None = None) -> list[str]:
    """Task names of a suite (all suites by default), of one split ("train" | "test") or of both."""
    if suite is not None and suite not in SUITES:
        raise UsageError(f"unknown suite {suite}{nearest(suite, SUITES)}; known are {', '.join(SUITES)}")
    if split not in (None, "train", "test"):
        raise UsageError(f"unknown split {split}; expected train or test")
    found = []
    for each in SUITES if suite is None else [suite]:
        parts = importlib.import_module(SUITES[each]).SPLIT
        found += [n for n in _tasks(each) if split is None or parts[n] == split]
    return found


def select(spec: str, split: str | None = None) -> list[str]:
    """Task names from an option: task or suite names, comma separated. A suite gives its tasks of `split`. A
    name given twice stands twice in the list, and is drawn twice as often in training."""
    chosen: list[str] = []
    for word in filter(None, (w.strip() for w in spec.split(","))):
        if word in SUITES:
            chosen += names(word, split)
        elif word in names():
            chosen.append(word)
        else:
            known = [*SUITES, *names()]
            raise UsageError(
                f"--tasks: unknown task or suite {word}{nearest(word, known)}; suites are {', '.join(SUITES)}"
            )
    if not chosen:
        raise UsageError(f"--tasks {spec!r} selects nothing; expected task or suite names, comma separated")
    return chosen


def get_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises UsageError naming the nearest one."""
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}{nearest(name, PROTOCOLS)}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
