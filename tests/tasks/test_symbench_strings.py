"""The string tasks against second solvers that know nothing but the text of the question."""

import itertools
import re
from collections import Counter

import pytest

from tasks import Problem
from tasks.symbench_strings import (
    TASKS,
    Exchange,
    LetterLogicDiagram,
    StringDeletionAndModification,
    compact,
    feedback,
)

INDICES = range(500, 540)


def side(text: str) -> Counter:
    return Counter({kind: int(n) for n, kind in (term.split() for term in text.split(" + "))})


@pytest.mark.parametrize("name", ["string_synthesis", "string_splitting"])
def test_exchanges_read_from_the_question(name: str) -> None:
    for index in INDICES:
        problem = TASKS[name].problem(index)
        have = side(re.search("there are (.*)[.] These rules", problem.question)[1])
        rules = [(side(a), side(b)) for a, b in re.findall(r"^\d+[.] (.*) -> (.*)$", problem.question, re.M)]
        history = [+have]
        while True:
            for used, made in rules:
                if used <= have:
                    have = have - used + made
            if +have in history:
                break
            history.append(+have)
        kinds = re.search("in the order (.*), such as", problem.question)[1].split(", ")
        assert problem.answer == [have[kind] for kind in kinds], problem


def test_exchanges_worked_by_hand() -> None:
    """A + B -> C twice over two rounds, then nothing fits; and X -> Y, Y -> X comes back at once."""
    assert Exchange.end([3, 2, 0], [([1, 1, 0], [0, 0, 1])]) == [1, 0, 2]
    assert Exchange.end([1, 0], [([1, 0], [0, 1]), ([0, 1], [1, 0])]) == [1, 0]
    back = [([1, 0], [0, 1]), ([0, 4], [4, 0])]
    assert Exchange.end([2, 1], back) == [0, 3]
    # (1, 3), then (0, 4) and in the same round (4, 0), then (3, 1), then the start again
    assert Exchange.end([2, 2], back) == [2, 2]


def test_insertions_read_from_the_question() -> None:
    for index in INDICES:
        problem = TASKS["string_insertion"].problem(index)
        text = re.search(r"string\n([A-E]+)\n", problem.question)[1]
        rules = re.findall(r"^\d+[.] ([A-E]+) -> ([A-E]+)$", problem.question, re.M)
        for old, new in rules:
            assert any(new[:i] + new[i + 1 :] == old for i in range(len(new))), "one letter is inserted"
        written = ""
        while text:
            old, new = next(((a, b) for a, b in rules if text.startswith(a)), (text[0], text[0]))
            text, written = text[len(old) :], written + new
        assert problem.answer == written, problem


def changed(text: str, rule: str) -> str | None:
    """The string after a rule as the question words it, or None where its condition does not hold."""
    if rule.startswith("If there are two"):
        return text[:-1] if len(text) > 1 and text[0] == text[-1] else None
    if many := re.match(r"If the letter (.) occurs more than (\d)", rule):
        places = [i for i, x in enumerate(text) if x == many[1]]
        return text[: places[-1]] + text[places[-1] + 1 :] if len(places) > int(many[2]) else None
    new = found[1] if (found := re.search("replace it by ([a-f]+)[.]", rule)) else ""
    assert found or "delete it" in rule
    if inside := re.match("If ([a-f]+) occurs in", rule):
        before, met, after = text.partition(inside[1])
        return before + new + after if met else None
    where, old = re.match("If the string (starts|ends) with ([a-f]+),", rule).groups()
    if where == "starts":
        return new + text[len(old) :] if text[: len(old)] == old else None
    return text[: -len(old)] + new if text[-len(old) :] == old else None


def test_deletions_read_from_the_question() -> None:
    for index in INDICES:
        problem = TASKS["string_deletion_and_modification"].problem(index)
        text = re.search(r"string\n([a-f]+)\n", problem.question)[1]
        rules = re.findall(r"^\d+[.] (.*)$", problem.question, re.M)
        while after := [x for x in (changed(text, rule) for rule in rules) if x is not None]:
            text = after[0]
        assert problem.answer == text, problem


def test_deletions_worked_by_hand() -> None:
    end = StringDeletionAndModification.end
    assert end("abcab", [("start", "ab", ""), ("end", "b", "c")]) == ("cac", 2)
    assert end("bab", [("inside", "ba", "ab")]) == ("abb", 1)
    assert end("abcba", [("same", "", "")]) == ("abcb", 1)
    assert end("cacbc", [("many", "c", 1)]) == ("cab", 2)  # the last c, then the one before it


def test_the_lock_has_one_code_by_brute_force() -> None:
    for index in INDICES:
        problem = TASKS["cryptanalysis"].problem(index)
        said = "digits: {} right, {} elsewhere, {} too low; letters: {} right, {} elsewhere, {} too low"
        lines = re.findall(
            r"^\d+[.] (\d+)([A-Z]+) - " + said.replace("{}", r"(\d)") + "$", problem.question, re.M
        )
        count = len(lines[0][0]), len(lines[0][1])
        if sum(count) > 4:
            continue  # the fewer codes will do
        found = []
        for digits in itertools.permutations("0123456789", count[0]):
            if any(clues(line[0], digits) != line[2:5] for line in lines):
                continue
            for letters in itertools.permutations("ABCDEFGHIJKLMNOPQRSTUVWXYZ", count[1]):
                if all(clues(line[1], letters) == line[5:] for line in lines):
                    found.append("".join(digits + letters))
        assert found == [problem.answer]


def clues(guess: str, code: tuple[str, ...]) -> tuple[str, ...]:
    same = [g for g, c in zip(guess, code, strict=True) if g == c]
    elsewhere = [g for i, g in enumerate(guess) if g in code and code[i] != g]
    low = [g for g, c in zip(guess, code, strict=True) if ord(g) < ord(c)]
    return str(len(same)), str(len(elsewhere)), str(len(low))


def test_feedback_worked_by_hand() -> None:
    assert feedback("12", "21") == (0, 2, 1)
    assert feedback("123", "142") == (1, 1, 1)
    assert feedback("AZ", "AB") == (1, 0, 0)


def test_letters_counted_by_hand_and_from_the_question() -> None:
    task = TASKS["letters"]
    for index in INDICES:
        problem = task.problem(index)
        letter, text = re.findall('"(.*?)"', problem.question)
        places = [i + 1 for i in range(len(text)) if text[i] == letter]
        assert problem.answer == f"Count: {text.count(letter)}, Positions: {places}"
    straw = Problem("letters", 0, "?", "Count: 3, Positions: [3, 8, 9]", {"places": [3, 8, 9]})
    for right in (
        "count 3 positions 3 8 9",
        "Count: 3\nPositions: [3,8,9].",
        "{'count': 3, 'positions': [3, 8, 9]}",
        "Count: 3, Positions: [9, 3, 8]",
    ):
        assert task.grade(straw, right).correct, right
    for wrong in (
        "3",
        "[3, 8, 9]",
        "Count: 3",
        "Count: 2, Positions: [3, 8, 9]",
        "Count: 3, Positions: [3, 8]",
        "Count: 3, Positions: [3, 3, 8]",
    ):
        assert not task.grade(straw, wrong).correct, wrong
    none = Problem("letters", 0, "?", "Count: 0, Positions: []", {"places": []})
    assert task.grade(none, "Count: 0, Positions: []").correct
    assert not task.grade(none, "Count: 0, Positions: [1]").correct
    assert not task.grade(none, "Count: 0, Positions: none or one").correct


def test_counts_may_be_written_without_marks_between_them() -> None:
    problem = Problem("string_splitting", 0, "?", [0, 0, 1, 2, 0, 3], {})
    for text, right in (
        ("001203", True),
        ("'001203'.", True),
        ("001230", False),
        ("1203", False),
        ("0012030", False),
    ):
        assert TASKS["string_splitting"].grade(problem, text).correct is right, text


def test_a_diagram_that_breaks_one_rule_is_refused() -> None:
    task = LetterLogicDiagram()
    empty = Problem("letter_logic_diagram", 0, "?", "", {"grid": [[""] * 3 for _ in range(3)]})
    squares = []
    for cells in itertools.product("abc", repeat=9):  # brute force over all 3 x 3 grids
        rows = [cells[:3], cells[3:6], cells[6:]]
        lines = [*rows, *zip(*rows, strict=True)]
        fits = all(len(set(line)) == 3 for line in lines) and cells[2] == cells[4] == cells[6]
        assert task.grade(empty, ",".join(cells)).correct == fits
        squares += [cells] if fits else []
    assert len(squares) == 6
    given = Problem("letter_logic_diagram", 0, "?", "", {"grid": [["b", "", ""], ["", "", ""], ["", "", ""]]})
    assert sum(task.grade(given, " ".join(cells)).correct for cells in squares) == 2


def test_every_other_grid_of_a_diagram_is_refused() -> None:
    """Two rows exchanged keep rows and columns valid; the diagonal, or what was shown, is broken."""
    for index in INDICES:
        problem = TASKS["letter_logic_diagram"].problem(index)
        rows = problem.answer.split("\n")
        shown = re.search(r":\n([a-g_,\n]+)\n\n", problem.question)[1]
        assert all(a in (b, "_") for a, b in zip(shown, problem.answer, strict=True))
        rows[0], rows[-1] = rows[-1], rows[0]
        assert not TASKS["letter_logic_diagram"].grade(problem, "\n".join(rows)).correct


@pytest.mark.parametrize("name", ["string_insertion", "string_deletion_and_modification", "cryptanalysis"])
def test_every_changed_string_is_refused(name: str) -> None:
    task = TASKS[name]
    for index in INDICES:
        problem = task.problem(index)
        for i, x in enumerate(problem.answer):
            other = next(c for c in "ABabXY07" if c.lower() != x.lower())
            assert not task.grade(problem, problem.answer[:i] + other + problem.answer[i + 1 :]).correct
        assert not task.grade(problem, f"The answer is {problem.answer}").correct
        assert task.grade(problem, str(list(problem.answer))).correct
        assert task.grade(problem, " ".join(problem.answer)).correct
        # letters of another case are other letters, but for the lock, whose code is in capitals
        other_case = task.grade(problem, problem.answer.swapcase()).correct
        assert other_case == (name == "cryptanalysis") or problem.answer.swapcase() == problem.answer


def test_compact_keeps_what_carries_meaning() -> None:
    assert compact(" 'aB c'. ") == "aBc" and compact("a-b") == "a-b" and compact(None) == ""
