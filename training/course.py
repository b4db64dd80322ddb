"""Training in stages by improvement potential: which questions a step asks (2505.21668).

training/curriculum.py measures the questions and writes the file that is read here.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from plumbing.config import UsageError
from tasks import RL_START, Problem, get, split_of

BOUNDS = (0.64, 0.48, 0.32, 0.0)  # stage k adds the questions from the k-th on, below the one before


def groups(rows: Sequence[dict]) -> list[list[dict]]:
    """The questions that each stage adds: P in [.64, 1], [.48, .64), [.32, .48), [0, .32)."""
    found: list[list[dict]] = [[] for _ in BOUNDS]
    for r in rows:
        found[next(i for i, bound in enumerate(BOUNDS) if r["potential"] >= bound)].append(r)
    return found


def intervals() -> list[str]:
    """The groups' intervals, for people."""
    return ["[0.64, 1]"] + [f"[{low:g}, {high:g})" for high, low in zip(BOUNDS, BOUNDS[1:], strict=False)]


def by(key: str, rows: Sequence[dict], sizes: Sequence[int], seed: int) -> list[list[dict]]:
    """The questions from the largest "p" (the easiest) or "potential" to the smallest, in groups of these
    sizes; equal ones in the seed's order."""
    mixed = list(rows)
    random.Random(f"difficulty {seed}").shuffle(mixed)
    left = iter(sorted(mixed, key=lambda r: -r[key]))
    return [[next(left) for _ in range(size)] for size in sizes]


@dataclass(frozen=True)
class Stage:
    number: int  # 1 to 4
    questions: list[tuple[str, int]]  # task and index; those of the stages before among them


class Course:
    """Which questions a training step asks. It has no state: a step's questions follow from the file, the
    options and the step, so a resumed run asks what an uninterrupted one does, on any number of ranks.

    A stage goes through its questions again and again, each time in another order; when it ends, the next
    begins anew, with its larger set. A stage that would add no question is left out: the next follows in its
    place. The last stage lasts as long as the run.
    """

    def __init__(self, rows: Sequence[dict], order: str, stage_steps: int, prompts: int, seed: int):
        self.rows, self.stage_steps, self.prompts, self.seed = rows, stage_steps, prompts, seed
        self.equal = order == "equal"
        content = [[r["task"], r["index"], r["p"], r["potential"]] for r in rows]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()  # a resumed run must have it
        added = [list(rows)] if order == "none" else groups(rows)
        if order == "difficulty":
            added = by("p", rows, [len(group) for group in added], seed)
        if self.equal:
            share, rest = divmod(len(rows), len(BOUNDS))
            added = by("potential", rows, [share + (i < rest) for i in range(len(BOUNDS))], seed)
        self.empty = [number for number, group in enumerate(added, 1) if not group]
        self.stages: list[Stage] = []
        known: list[tuple[str, int]] = []
        for number, group in enumerate(added, 1):
            known = known + [(r["task"], r["index"]) for r in group]
            if group:
                self.stages.append(Stage(number, known))

    def stage(self, step: int) -> tuple[Stage, int]:
        """The stage of a step (from 0), and the step with which it begins."""
        place = min(step // self.stage_steps, len(self.stages) - 1)
        return self.stages[place], place * self.stage_steps

    def problems(self, step: int) -> list[Problem]:
        """The questions of a step."""
        stage, begin = self.stage(step)
        first, found, orders = (step - begin) * self.prompts, [], {}
        for i in range(first, first + self.prompts):
            turn, place = divmod(i, len(stage.questions))
            if turn not in orders:
                orders[turn] = list(stage.questions)
                random.Random(f"curriculum {self.seed} {stage.number} {turn}").shuffle(orders[turn])
            task, index = orders[turn][place]
            found.append(get(task).problem(index))
        return found

    def metrics(self, step: int) -> dict[str, int]:
        """A step's stage and how many questions it has, for the log."""
        stage = self.stage(step)[0]
        return {"stage": stage.number, "stage_questions": len(stage.questions)}

    def why(self, number: int) -> str:
        """Why a stage would add nothing."""
        return "no question is left" if self.equal else f"no question has P in {intervals()[number - 1]}"

    def describe(self) -> str:
        """The stages, and those that are left out, in a line."""
        parts = [
            f"stage {s.number} from step {place * self.stage_steps + 1} with {len(s.questions)} questions"
            for place, s in enumerate(self.stages)
        ]
        left_out = [f"stage {n} left out: {self.why(n)}" for n in self.empty]
        return "curriculum: " + "; ".join(parts + left_out)


def read(path: str, test_tasks: bool = False) -> list[dict]:
    """The lines of a file that `measure` wrote: task, index, p, potential. Raises UsageError naming file and
    line where one is none, its question is not for training, or stands there twice."""
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--curriculum {path}: {error}; expected a file of training.curriculum") from None
    rows: list[dict] = []
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, 1):
        where = f"--curriculum {path}, line {number}"
        rows.append(_row(line, where, test_tasks))
        key = (rows[-1]["task"], rows[-1]["index"])
        if key in seen:
            raise UsageError(f"{where}: the question of line {seen[key]} again; expected each once")
        seen[key] = number
    if not rows:
        raise UsageError(f"--curriculum {path}: no questions in it; expected a file of training.curriculum")
    return rows


def _row(line: str, where: str, test_tasks: bool) -> dict:
    """One line of the file, checked."""
    try:
        found = json.loads(line)
        task, index, p, worth = (found[name] for name in ("task", "index", "p", "potential"))
        good = isinstance(task, str) and type(index) is int and 0 <= p <= 1
        good = good and abs(4 * p * (1 - p) - worth) < 1e-6
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UsageError(
            f"{where}: {line:.80}; expected a line of training.curriculum with task, index, p in [0, 1] and "
            "potential = 4p(1 - p)"
        )
    try:
        missing = get(task).missing
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    if missing:
        raise UsageError(f"{where}: {task}: {missing}")
    if split_of(task) == "test" and not test_tasks:
        raise UsageError(
            f"{where}: {task} is held out for the evaluation; --train-on-test-tasks trains on it all the same"
        )
    if index < RL_START:
        raise UsageError(f"{where}: question {index} is not for training; expected {RL_START} or above")
    return found
