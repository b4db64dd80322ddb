"""Folders of questions, one a file, as MATH (2103.03874) is published.

    python evaluate.py --model DIR --tasks MATH/test/geometry

A folder is a task of suite "math", and its path is the task's name. Every JSON file in it, at any depth,
holds {"problem": ..., "solution": ...}; the answer is in the solution's last \\boxed{}. As a file, a folder
has no split: never train on the folder that is evaluated.
"""

import functools
import hashlib
from pathlib import Path

from plumbing.config import UsageError
from tasks import Grade, Problem, Task
from tasks.published.layouts import records
from tasks.published.plans import mathematics
from tasks.published.reading import Sample


class QuestionFolder(Task):
    """The different questions of a folder in natural order. problem(i) is question i modulo their number."""

    suite = "math"

    def __init__(self, name: str, samples: list[Sample]):
        kept = {f"{sample.question}\0{sample.answer}": sample for sample in samples}
        self.name, self.samples, self.size, self.rows = name, list(kept.values()), len(kept), len(samples)
        text = "\0".join(kept)
        self.digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()  # as that of a file

    def problem(self, index: int) -> Problem:
        row = index % len(self.samples)
        return Problem(self.name, index, self.samples[row].question, self.samples[row].answer, {"row": row})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return self.samples[problem.meta["row"]].grade(answer)

    def solution(self, problem: Problem) -> None:
        return None


@functools.cache
def load(folder: str) -> QuestionFolder:
    """The task of a folder. Raises UsageError naming the first file that is no such question."""
    samples = []
    for path, (_, record) in records(Path(folder)):
        try:
            samples.append(mathematics(path, record))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f'{path}: {error}; expected {{"problem": text, "solution": text}}') from None
    if not samples:
        raise UsageError(f"--tasks {folder}: no JSON files in it; expected one question per file")
    return QuestionFolder(folder, samples)
