"""SymBench as published: the benchmark's own samples under the names of our 33 tasks, for evaluation only.

    python evaluate.py --model DIR --tasks symbench --symbench FOLDER --questions 3300

`use(FOLDER)` makes evaluation ask the published questions of every task whose folder is there. They are
graded by what their text asks for. Training goes on with generated questions, and no program of ours reads
published ones. The order of a task's samples is drawn once, from its name: the folders are sorted by
difficulty, and a table of the first hundred would be one of the easy ones.

The table below is the whole of it: task -> its folder, how samples lie in it (layouts.py), what reads one
(puzzles.py, plans.py). docs/data.md lists the published answers that contradict their questions.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from plumbing.config import UsageError
from tasks import SFT_START, Grade, Problem, Task, get
from tasks.published import layouts, plans, puzzles
from tasks.published.reading import Sample

SOURCE = "the data set yongchao98/R1-Code-Interpreter-Data on Hugging Face; see docs/data.md"


@dataclass(frozen=True)
class Layout:
    """Where a task's samples are, how they lie there, and what makes a Sample of one.

    find(folder or file) gives (path of a sample, its arguments). read(*arguments) raises ValueError,
    KeyError, TypeError or AttributeError for a sample that is not understood."""

    folder: str
    find: Callable[[Path], Iterator[tuple[Path, tuple]]]
    read: Callable[..., Sample]


TABLE = {
    "2048": Layout("2048_dataset", layouts.questions, puzzles.game_2048),
    "blocksworld": Layout("Blocksworld_dataset", layouts.texts, plans.blocksworld),
    "boxlift": Layout("BoxLift_dataset", layouts.records, plans.boxlift),
    "boxnet": Layout("BoxNet1_dataset", layouts.records, plans.boxnet),
    "game24": Layout("game24_dataset", layouts.lines, plans.game24),
    "gridworld": Layout("GridWorld1_dataset", layouts.records, plans.gridworld),
    "gsm_hard": Layout("gsmhardv2.jsonl", layouts.lines, plans.gsm_hard),
    "letters": Layout("Letters", layouts.records, plans.letters),
    "math_counting_probability": Layout(
        "MATH/train/counting_and_probability", layouts.records, plans.mathematics
    ),
    "math_geometry": Layout("MATH/train/geometry", layouts.records, plans.mathematics),
    "number_multiply": Layout("number_multiply", layouts.products, puzzles.number_multiply),
} | {
    name: Layout(folder, layouts.questions, getattr(puzzles, name))
    for folder in (
        "combinatorial_calculation",
        "constrained_linear_arrangement",
        "cryptanalysis",
        "eight_queens_dataset",
        "letter_logic_diagram",
        "light_puzzles_dataset",
        "logic_puzzle_dataset",
        "logical_equation",
        "mahjong_pattern_dataset",
        "matrix_transformation_dataset",
        "new_operator_dataset",
        "pattern_recognition",
        "permutations_and_combinations",
        "pooling_dataset",
        "reversi_dataset",
        "standard_sudoku",
        "statistical_counting_dataset",
        "string_deletion_and_modification",
        "string_insertion",
        "string_splitting",
        "string_synthesis",
        "synthesis_decomposition_dataset",
    )
    if (name := folder.removesuffix("_dataset"))
}


class Published(Task):
    """A task of ours whose evaluation questions are the published ones."""

    suite = "symbench"
    apart = True

    def __init__(self, task: Task, path: Path):
        self.task, self.name, self.path = task, task.name, path

    @cached_property
    def samples(self) -> list[tuple[Path, Sample]]:
        """All samples with their paths, in an order drawn from the task's name. Raises UsageError naming the
        first one that is not understood."""
        layout, found = TABLE[self.name], []
        for path, arguments in layout.find(self.path):
            try:
                found.append((path, sample := layout.read(*arguments)))
                if not sample.question.strip():
                    raise ValueError("an empty question")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__} {error}" if not isinstance(error, ValueError) else error
                raise UsageError(f"--symbench: {path}: not understood: {reason}") from None
        if not found:
            raise UsageError(f"--symbench: {self.path}: no samples of {self.name} in it; expected {SOURCE}")
        random.Random(f"published {self.name}").shuffle(found)
        return found

    @property
    def size(self) -> int:
        return len(self.samples)

    def problem(self, index: int) -> Problem:
        if index >= SFT_START:
            return self.task.problem(index)
        if index >= len(self.samples):
            raise UsageError(f"{self.name} has {len(self.samples)} published questions; {index} was asked")
        path, sample = self.samples[index]
        meta = {"published": index, "path": str(path)}
        return Problem(self.name, index, sample.question, sample.answer, meta)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        place = problem.meta.get("published")
        return self.task.grade(problem, answer) if place is None else self.samples[place][1].grade(answer)

    def solution(self, problem: Problem) -> str | None:
        return None if "published" in problem.meta else self.task.solution(problem)


def use(folder: str | Path) -> dict[str, Task]:
    """The tasks whose samples are in this folder, by name. Samples are read when a task is asked for them.
    Raises UsageError if there is no such folder, or no task in it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"--symbench {folder}: no such folder; expected {SOURCE}")
    found: dict[str, Task] = {}
    for name, layout in TABLE.items():
        places = [folder / place for place in (layout.folder, name, f"{name}_dataset")]
        if path := next((place for place in places if place.exists()), None):
            found[name] = Published(get(name), path)
    if not found:
        raise UsageError(
            f"--symbench {folder}: no folder such as eight_queens_dataset in it; expected {SOURCE}"
        )
    return found
