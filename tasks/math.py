"""Questions and answers from files, graded by the meaning of the answers.

    python evaluate.py --model DIR --tasks data/aime24.jsonl,data/gpqa_diamond.csv

A file is a task of suite "math", and its path is the task's name. Formats are JSON lines, JSON, CSV, and
Parquet, which needs the extra pyarrow. tasks/rows.py says what a row may look like. Of equal rows one is
kept. The kept rows lie in a temporary file without a name, so that memory does not grow with them.

A file has no split. Problem i is row i modulo the number of rows, in every range of indices: never train on
the file that is evaluated.
"""

import functools
import hashlib
import json
import os
import random
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

from plumbing.config import UsageError
from tasks import Grade, Problem, Task
from tasks.answers import normal
from tasks.bbh_answers import Choice
from tasks.equality import math_equal
from tasks.files import records
from tasks.rows import LETTERS, Row, row

__all__ = ["QuestionFile", "load", "math_equal"]


class QuestionFile(Task):
    """The questions of one file. problem(i) is kept row i modulo the number of kept rows."""

    suite = "math"

    def __init__(self, name: str, rows: Iterable[Row]):
        self.name = name
        self.number = array("I")  # of each row of the file: its place among the kept ones
        self._ends = array("Q", [0])
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is open as long as the task is there)
        seen: dict[bytes, int] = {}
        for each in rows:
            text = json.dumps(each).encode()
            place = seen.setdefault(hashlib.sha256(text).digest()[:12], len(seen))
            self.number.append(place)
            if place == len(self._ends) - 1:
                self._file.write(text)
                self._ends.append(self._ends[-1] + len(text))
        self._file.flush()
        self.size, self.rows = len(seen), len(self.number)
        self.digest = hashlib.sha256(b"".join(seen)).hexdigest()  # of the kept rows, in their order

    def problem(self, index: int) -> Problem:
        place = index % self.size
        start, end = self._ends[place : place + 2]
        question, right, options, system, fixed = json.loads(
            os.pread(self._file.fileno(), end - start, start)
        )
        meta = {"row": place} | ({} if system is None else {"system": system})
        if not options:
            return Problem(self.name, index, question, right, meta)
        if not fixed:
            random.Random(f"options {place} {question}").shuffle(options)
        lines = [f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
        asked = "\n".join([question, "", *lines, "", "Answer with the letter of the right option."])
        letter = LETTERS[options.index(right)]
        return Problem(self.name, index, asked, letter, meta | {"options": options})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        if not (answer or "").strip():
            return Grade(False, "no answer given")
        right = problem.answer
        if "options" in problem.meta:
            options = problem.meta["options"]
            texts = dict(zip(LETTERS.lower(), map(normal, options), strict=False))
            chosen = (Choice().chosen(answer, texts) or _letter(options, answer) or "none").upper()
            return Grade(chosen == right, f"option {chosen} given, {right} expected")
        return Grade(math_equal(answer, right), f"{answer!r} given, {right!r} expected")

    def solution(self, problem: Problem) -> None:
        return None


def _letter(options: list[str], answer: str) -> str | None:
    """The letter of the only option whose text equals the answer; None if there is none, or several."""
    same = [i for i, option in enumerate(options) if math_equal(option, answer)]
    return LETTERS[same[0]] if len(same) == 1 else None


@functools.cache
def load(path: str) -> QuestionFile:
    """The task of a file. Raises UsageError naming file, line and reason."""
    if not Path(path).is_file():
        raise UsageError(f"--tasks {path}: no such file")
    found = QuestionFile(path, _rows(path))
    if not found.size:
        raise UsageError(f"{path}: no questions in it; expected one per line or list entry")
    return found


def _rows(path: str) -> Iterator[Row]:
    for place, record in records(path):
        try:
            yield row(record)
        except ValueError as error:
            raise UsageError(f"{path}, {place}: {error}") from None
