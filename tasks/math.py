"""Questions and answers from files, graded by the meaning of the answers.

    python evaluate.py --model DIR --tasks data/aime24.jsonl,data/gpqa_diamond.csv

A file is a task of suite "math", and its path is the task's name. Formats are JSON lines, JSON, CSV, and
Parquet, which needs the extra pyarrow. AIME, MATH-500, GSM8K, GSM-hard, DAPO-Math-17k and GPQA load as they
are. Keys are found by name, in any case:

    question | problem | input | prompt          a text, or messages: prompt[0].content
    answer | output | solution | target          a text or a number; the last \\boxed{} or what follows ####
    reward_model.ground_truth                    if there is none of those
    Question, Correct Answer, Incorrect Answer 1..3      multiple choice; the options are shuffled

A file has no split. Problem i is row i modulo the number of rows, in every range of indices: never train on
the file that is evaluated.
"""

import csv
import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from plumbing.config import UsageError
from tasks import Grade, Problem, Task
from tasks.answers import normal
from tasks.bbh_answers import Choice
from tasks.equality import math_equal
from tasks.protocols import extract_answer

__all__ = ["QuestionFile", "load", "math_equal", "read"]

QUESTION = ("question", "problem", "input", "prompt")
ANSWER = ("answer", "output", "solution", "target")
CORRECT, INCORRECT = "correct answer", "incorrect answer "
LETTERS = "ABCDEFGHIJ"


class QuestionFile(Task):
    """The questions of one file. problem(i) is row i modulo the number of rows."""

    suite = "math"

    def __init__(self, name: str, rows: list[tuple[str, str, tuple[str, ...]]]):
        """rows: question, right answer, wrong options; the options are () unless it is multiple choice."""
        self.name, self.rows, self.size = name, rows, len(rows)

    def problem(self, index: int) -> Problem:
        row = index % len(self.rows)
        question, answer, wrong = self.rows[row]
        if not wrong:
            return Problem(self.name, index, question, answer, {"row": row})
        options = [answer, *wrong]
        random.Random(f"options {row} {question}").shuffle(options)
        lines = [f"({letter}) {text}" for letter, text in zip(LETTERS, options, strict=False)]
        asked = "\n".join([question, "", *lines, "", "Answer with the letter of the right option."])
        letter = LETTERS[options.index(answer)]
        return Problem(self.name, index, asked, letter, {"row": row, "options": options})

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
    rows = []
    for where, record in read(path):
        try:
            rows.append(_row(record))
        except ValueError as error:
            raise UsageError(f"{path}, {where}: {error}") from None
    if not rows:
        raise UsageError(f"{path}: no questions in it; expected one per line or list entry")
    return QuestionFile(path, rows)


def read(path: str) -> Iterator[tuple[str, object]]:
    """(place, record) of every record in a file. Raises UsageError naming file and reason."""
    if not Path(path).is_file():
        raise UsageError(f"--tasks {path}: no such file")
    suffix = Path(path).suffix
    try:
        if suffix == ".parquet":
            yield from _parquet(path)
        elif suffix == ".csv":
            with open(path, newline="", encoding="utf-8-sig") as f:
                reader = csv.DictReader(f)
                yield from ((f"line {reader.line_num}", record) for record in reader)
        else:
            yield from _json(path)
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None


def _json(path: str) -> Iterator[tuple[str, object]]:
    """(place, record) of JSON lines, a JSON list, or an object with one list in it ({"examples": [...]})."""
    data = Path(path).read_bytes()
    if Path(path).suffix == ".json":
        try:
            whole = json.loads(data)
        except (ValueError, RecursionError):
            whole = None  # JSON lines in a file named .json
        lists = [v for v in whole.values() if isinstance(v, list)] if isinstance(whole, dict) else [whole]
        if len(lists) == 1 and isinstance(lists[0], list):
            yield from ((f"entry {i}", record) for i, record in enumerate(lists[0]))
            return
    for number, line in enumerate(data.splitlines(), 1):
        try:
            if line.strip():
                yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else error
            raise UsageError(f"{path}, line {number}: {reason}; expected one JSON object per line") from None


def _parquet(path: str) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"{path}: needs the package pyarrow; pip install '.[tasks]'") from None
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: {reason}; expected a Parquet file") from None
    yield from ((f"row {i}", record) for i, record in enumerate(table.to_pylist()))


def _row(record: object) -> tuple[str, str, tuple[str, ...]]:
    """(question, answer, wrong options) of a record. Raises ValueError with the record's fault."""
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; expected an object with a question and an answer")
    keys = {str(key).strip().lower(): value for key, value in record.items()}
    question = next((keys[name] for name in QUESTION if keys.get(name) is not None), None)
    if isinstance(question, list):  # messages: the first one is the question
        question = question[0].get("content") if question and isinstance(question[0], dict) else None
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"no question; keys are {', '.join(keys)}, expected text as {' | '.join(QUESTION)}")
    if CORRECT in keys:
        options = [keys[CORRECT], *(v for k, v in sorted(keys.items()) if k.startswith(INCORRECT))]
        options = [str(option or "").strip() for option in options]
        if not all(options) or not 1 < len(set(options)) == len(options) <= len(LETTERS):
            raise ValueError("expected one right and some wrong options, all different")
        return question.strip(), options[0], tuple(options[1:])
    answer = next((keys[name] for name in ANSWER if keys.get(name) is not None), None)
    if answer is None and isinstance(keys.get("reward_model"), dict):
        answer = keys["reward_model"].get("ground_truth")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        expected = f"{' | '.join(ANSWER)} or reward_model.ground_truth"
        raise ValueError(f"no answer; keys are {', '.join(keys)}, expected text or a number as {expected}")
    answer = _final(str(answer))
    if not answer:
        raise ValueError("an empty answer")
    return question.strip(), answer, ()


def _final(text: str) -> str:
    """The final answer of a solution: after "####", or inside the last \\boxed{}, or the whole text."""
    if "####" in text:
        return text.rsplit("####", 1)[1].strip()
    return extract_answer(text, "retool") or text.strip()
