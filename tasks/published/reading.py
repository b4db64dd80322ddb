"""What every reader of a published sample uses: the record it makes, and parsers of question texts.

A reader raises ValueError with one reason for a text that it does not understand. It guesses nothing.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from tasks import Grade
from tasks.answers import integers, number, untypeset
from tasks.symbench_numbers import exact


@dataclass(frozen=True)
class Sample:
    """One published question, and the grader that its text asks for."""

    question: str
    answer: str  # a right answer, for people; where many are right and none is published, SEVERAL
    grade: Callable[[str | None], Grade]
    gold: str | None = None  # the published answer in the form that the question asks for, right or wrong


SEVERAL = "several are right: the grader carries the answer out"


def found(pattern: str, text: str, what: str) -> re.Match:
    """The first match of a pattern, over line breaks. Raises ValueError that names what is missing."""
    if (match := re.search(pattern, text, re.DOTALL)) is None:
        raise ValueError(f"no {what} found in the question")
    return match


def every(pattern: str, text: str, what: str) -> list:
    """re.findall() of a pattern. Raises ValueError that names what is missing where there is none."""
    if not (matches := re.findall(pattern, text)):
        raise ValueError(f"no {what} found in the question")
    return matches


def block(text: str, line: str, what: str) -> list[str]:
    """The first two or more consecutive lines that have a form, without outer spaces. Raises ValueError."""
    rows: list[str] = []
    for each in [*(part.strip() for part in text.split("\n")), ""]:
        if re.fullmatch(line, each):
            rows.append(each)
        elif len(rows) > 1:
            return rows
        else:
            rows = []
    raise ValueError(f"no {what} found in the question")


def matrix(text: str) -> list[list[int]]:
    """The matrix of integers in a question, its cells separated by commas. Raises ValueError."""
    lines = block(text, r"-?\d+(?:\s*,\s*-?\d+)+", "matrix of integers")
    rows = [[int(cell) for cell in line.split(",")] for line in lines]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"the rows of the matrix have {', '.join(str(len(row)) for row in rows)} cells")
    return rows


def bare(text: str | None) -> str:
    """The characters of an answer without spaces, commas, quotes and brackets.

    >>> bare("[['*', '0'], ['1', '*']]")
    '*01*'
    """
    return re.sub(r"[\s,;\"'`\u201c\u201d\u2018\u2019()\[\]{}]", "", text or "")


def characters(right: Iterable[str], fold: bool = False) -> Callable[[str | None], Grade]:
    """The grader of an answer that is a row of single characters; `fold`: the case does not matter."""
    expected = "".join(right)

    def grade(answer: str | None) -> Grade:
        given = bare(answer)
        same = given.upper() == expected.upper() if fold else given == expected
        return Grade(same and answer is not None, f"{given[:200]!r} given, {expected!r} expected")

    return grade


def whole(right: list[int]) -> Callable[[str | None], Grade]:
    """The grader of an answer that is a list of integers, in any notation of lists and grids."""
    return lambda answer: exact(integers(answer), right, f"{len(right)} integers")


def counts(right: list[int]) -> Callable[[str | None], Grade]:
    """whole(), where digits may also stand together without marks between them, as in 200110000. Raises
    ValueError where there is nothing to count."""
    if not right:
        raise ValueError("an empty answer")

    def grade(answer: str | None) -> Grade:
        given = integers(answer)
        if given is not None and len(given) == 1 and len(text := bare(answer)) == len(right) > 1:
            given = [int(digit) for digit in text] if text.isdecimal() else given
        return exact(given, right, f"{len(right)} integers")

    return grade


def near(right: list[Fraction]) -> Callable[[str | None], Grade]:
    """The grader of a list of numbers, each within 1e-6 of the right one: a decimal may be cut there."""

    def grade(answer: str | None) -> Grade:
        parts = re.sub(r"[\[\](){}]", " ", untypeset(answer).strip(" \t\r\n\"'`").removesuffix(".")).strip()
        given = [number(part) for part in re.split(r"\s*[,;]\s*|\s+", parts)] if parts else []
        if not given or None in given:
            return Grade(False, f"expected {len(right)} numbers")
        close = len(given) == len(right) and all(
            abs(a - b) <= Fraction(1, 10**6) for a, b in zip(given, right, strict=True)
        )
        return Grade(close, f"{parts[:200]} given, {', '.join(map(str, right))} expected")

    return grade
