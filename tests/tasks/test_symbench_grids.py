"""The tasks of symbench_grids: numpy over the text of a question, brute force, and small cases by hand."""

import io
import itertools
import math
import re
from contextlib import redirect_stdout

import numpy as np
import pytest

from tasks import Problem
from tasks.symbench_grids import TASKS, LightPuzzles


def by_hand(name: str, **meta) -> str:
    """What the reference program prints for data that are not of any question."""
    program = TASKS[name].solution(Problem(name, 0, "", None, meta))
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "<program>", "exec"), {})
    return out.getvalue().strip()


def grid(question: str) -> np.ndarray:
    """The rows of numbers that stand in a question."""
    return np.array([[int(n) for n in row.split()] for row in re.findall(r"^\d+(?: \d+)+$", question, re.M)])


def test_pooling_is_numpys() -> None:
    drawn = set()
    for problem in map(TASKS["pooling"].problem, range(100)):
        text = problem.question
        size, stride = int(re.search(r"of (\d) x", text)[1]), int(re.search(r"moves (\d) to", text)[1])
        kind = re.search("the (largest|smallest|average) of its numbers", text)[1]
        windows = np.lib.stride_tricks.sliding_window_view(grid(text), (size, size))[::stride, ::stride]
        reduce = {"largest": np.max, "smallest": np.min, "average": np.mean}[kind]
        assert np.floor(reduce(windows, axis=(2, 3))).ravel().tolist() == problem.answer
        drawn.add((kind, size, stride))
    assert len(drawn) >= 20


def test_reversi_by_hand() -> None:
    opening = [[0, 0, 0, 0], [0, 2, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    played = by_hand("reversi", board=[list(row) for row in opening], moves=[(1, 0, 1), (2, 0, 2)])
    assert played == str([0, 1, 2, 0] + [0, 1, 2, 0] + [0, 1, 2, 0] + [0, 0, 0, 0])
    row = [[0, 2, 2, 1, 2, 0]] + [[0] * 6] * 5
    assert by_hand("reversi", board=[list(r) for r in row], moves=[(1, 0, 0)])[:19] == "[1, 1, 1, 1, 2, 0, "
    assert by_hand("reversi", board=[list(r) for r in row], moves=[(1, 0, 5)])[:19] == "[0, 2, 2, 1, 1, 1, "
    gap = [[0, 2, 0, 1]] + [[0] * 4] * 3
    assert by_hand("reversi", board=[list(r) for r in gap], moves=[(1, 0, 0)])[:12] == "[1, 2, 0, 1,", "a gap"


def test_moves_of_reversi_turn_discs_and_boards_keep_all_others() -> None:
    """Each move fills one empty square and turns some disc; no disc goes away."""
    for problem in map(TASKS["reversi"].problem, range(60)):
        before, after = grid(problem.question), np.array(problem.answer)
        moves = re.findall(r"^(black|white) at (\d) (\d)$", problem.question, re.MULTILINE)
        assert len(moves) == len(problem.meta["moves"]) >= 1
        filled = {(int(r), int(c)) for _, r, c in moves}
        assert len(filled) == len(moves) and not any(before[square] for square in filled)
        after = after.reshape(before.shape)
        assert {tuple(s) for s in np.argwhere((before == 0) & (after != 0)).tolist()} == filled
        assert ((before != 0) <= (after != 0)).all() and (before != after).sum() > len(moves) - 1


def test_lights_are_a_sum_modulo_two() -> None:
    """Lights at the end = lights + (switching matrix) x (presses) modulo 2, the matrix read off the words."""
    task, drawn = TASKS["light_puzzles"], set()
    near = {
        "itself and its neighbours above, below, left and right": lambda r, c: abs(r) + abs(c) <= 1,
        "its neighbours above, below, left and right, but not itself": lambda r, c: abs(r) + abs(c) == 1,
        "itself and its four diagonal neighbours": lambda r, c: abs(r) == abs(c) <= 1,
        "itself and all eight neighbours, diagonal ones included": lambda r, c: max(abs(r), abs(c)) <= 1,
    }
    for problem in map(task.problem, range(60)):
        lights = grid(problem.question)
        words = re.search(r"off to on\) (.*?), as far", problem.question)[1]
        presses = re.findall(r"(\d) (\d)", problem.question.rpartition("column):")[2])
        cells = list(np.ndindex(lights.shape))
        matrix = np.array([[near[words](a - c, b - d) for c, d in cells] for a, b in cells], int)
        pressed = np.zeros(len(cells), int)
        for r, c in presses:
            pressed[cells.index((int(r), int(c)))] += 1
        assert ((lights.ravel() + matrix @ pressed) % 2).tolist() == problem.answer
        drawn.add(words)
    assert drawn == set(near) == set(LightPuzzles.SHAPES)


def test_lights_may_be_written_row_by_row() -> None:
    problem = Problem("light_puzzles", 0, "?", [0, 0, 1, 1, 0, 0], {"lights": [[0] * 3] * 2})
    for text in ("001\n100", "[001, 100]", "001100", "0 0 1 1 0 0"):
        assert TASKS["light_puzzles"].grade(problem, text).correct, text
    for text in ("00\n11\n00", "100\n001", "001", "0011000"):
        assert not TASKS["light_puzzles"].grade(problem, text).correct, text


ROWS = [
    ([2, 2, 2, 0], [4, 2, 0, 0]),
    ([2, 2, 2, 2], [4, 4, 0, 0]),
    ([4, 2, 2, 0], [4, 4, 0, 0]),  # no second merge in the move
    ([2, 0, 0, 2], [4, 0, 0, 0]),
    ([2, 4, 2, 4], [2, 4, 2, 4]),
    ([0, 0, 2, 4], [2, 4, 0, 0]),
    ([2, 2, 4, 8], [4, 4, 8, 0]),
]


@pytest.mark.parametrize(("row", "moved"), ROWS)
def test_moves_of_2048_by_hand(row: list[int], moved: list[int]) -> None:
    """A row, moved to all four sides, by the program and by the task."""
    rest = [[0] * 4] * 3
    boards = {"left": np.array([row, *rest]), "right": np.array([row[::-1], *rest])}
    after = {"left": np.array([moved, *rest]), "right": np.array([moved[::-1], *rest])}
    boards |= {"up": boards["left"].T, "down": boards["right"].T}
    after |= {"up": after["left"].T, "down": after["right"].T}
    for move, board in boards.items():
        assert TASKS["2048"].moved(board.tolist(), move) == after[move].tolist()
        printed = by_hand("2048", board=board.tolist(), moves=[move])
        assert printed == str(after[move].ravel().tolist())


NUMPY = {
    r"turn it by 90 degrees clockwise": lambda m: np.rot90(m, -1),
    r"turn it by 90 degrees counterclockwise": np.rot90,
    r"turn it by 180 degrees": lambda m: np.rot90(m, 2),
    r"transpose it .*": np.transpose,
    r"mirror it left to right .*": np.fliplr,
    r"mirror it top to bottom .*": np.flipud,
    r"swap rows (\d) and (\d)": lambda m, i, j: m[[{i: j, j: i}.get(k, k) - 1 for k in range(1, len(m) + 1)]],
    r"swap columns (\d) and (\d)": lambda m, i, j: NUMPY[r"swap rows (\d) and (\d)"](m.T, i, j).T,
    r"shift every row by (\d) to the right, .*": lambda m, k: np.roll(m, k, axis=1),
    r"add (\d) to every number": lambda m, k: m + k,
}


def test_matrix_steps_are_numpys() -> None:
    """The text's steps, read anew and done by numpy; the program prints the same."""
    drawn = set()
    for problem in map(TASKS["matrix_transformation"].problem, range(150)):
        matrix = grid(problem.question)
        for step in re.findall(r"^\d\. (.*)$", problem.question, re.MULTILINE):
            pattern = next(p for p in NUMPY if re.fullmatch(p, step))
            matrix = NUMPY[pattern](matrix, *map(int, re.fullmatch(pattern, step).groups()))
            drawn.add(pattern)
        assert matrix.ravel().tolist() == problem.answer
        assert by_hand("matrix_transformation", **problem.meta) == str(problem.answer)
    assert drawn == set(NUMPY)


EQUAL = {  # regular expressions over the grid in one line, W characters a row with its line break
    "a square of 2 x 2 letters": "(.)\1.{W-2}\1\1",
    "a square of 3 x 3 letters": "(.)\1\1.{W-3}\1\1\1.{W-3}\1\1\1",
    "a horizontal line of 4 letters": "(.)\1\1\1",
    "a vertical line of 4 letters": "(.).{W-1}\1.{W-1}\1.{W-1}\1",
    "a diagonal of 4 letters running down to the right": "(.).{W-0}\1.{W-0}\1.{W-0}\1",
    "a diagonal of 4 letters running down to the left": "(.).{W-2}\1.{W-2}\1.{W-2}\1",
    "a plus sign of a letter and its four neighbours": "(.).{W-2}\1\1\1.{W-2}\1",
}


def test_patterns_are_found_by_regular_expressions() -> None:
    """There is one match in the whole text of the grid, and it is where the answer says."""
    drawn = set()
    for problem in map(TASKS["pattern_recognition"].problem, range(150)):
        head, _, rest = problem.question.partition("numbered from 0:\n")
        rows = re.match(r"((?:[A-Z]+\n)+)", rest)[1]
        width = rows.index("\n") + 1  # the line break keeps a pattern from going round the edge
        shape = re.search("all letters of (.*) are equal", rest)
        if shape:
            pattern = re.sub(
                r"W-(\d)", lambda m, w=width: str(w - int(m[1])), EQUAL[shape[1]].replace("\1", r"\1")
            )
            pattern = pattern.replace("(.)", r"(\w)")
        else:
            shown = re.search(r"any letter:\n((?:[A-Z?]+\n)+)", rest)[1].split()
            between = f".{{{width - len(shown[0])}}}"
            pattern = between.join(shown).replace("?", r"\w")
        drawn.add(shape and shape[1])
        places = [m.start() for m in re.finditer(f"(?={pattern})", rows, re.DOTALL)]
        assert len(places) == 1, problem
        row, column = divmod(places[0], width)
        row += bool(shape and "plus" in shape[1])  # its first letter is the one above the middle
        assert f"{row},{column}" == problem.answer
    assert drawn == {None, *EQUAL}


def test_markings_by_brute_force() -> None:
    """Every subset of a small grid is graded as the text, read anew, says."""
    task, drawn = TASKS["logic_puzzle"], set()
    small = [p for p in map(task.problem, range(80)) if len(grid(p.question).ravel()) == 9]
    assert len(small) >= 5
    for problem in small[:8]:
        numbers = grid(problem.question)
        rule = re.search("the (sum|product) of the marked", problem.question)[1]
        drawn.add(rule)
        rows, columns = (
            [int(n) for n in line.split(", ")]
            for line in re.findall(r"from 0 on: (.*)$", problem.question, re.M)
        )
        combine, right = {"sum": sum, "product": math.prod}[rule], 0
        for chosen in itertools.product((False, True), repeat=9):
            mask = np.array(chosen).reshape(3, 3)
            sides = [*zip(numbers, mask, rows, strict=True), *zip(numbers.T, mask.T, columns, strict=True)]
            holds = all(m.any() and combine(line[m].tolist()) == target for line, m, target in sides)
            text = ", ".join(f"{r} {c}" for r, c in np.argwhere(mask))
            assert task.grade(problem, text).correct == holds, (problem, text)
            right += holds
        assert right >= 1
        first = problem.answer.split(", ")[0]
        for wrong in (
            f"{problem.answer}, {first}",
            problem.answer.replace(first, "9 9"),
            f"{problem.answer}, -1 0",
        ):
            assert not task.grade(problem, wrong).correct, "a position twice, or outside"
    assert drawn == {"sum", "product"}


def test_a_product_of_one_needs_a_marked_one() -> None:
    task = TASKS["logic_puzzle"]
    ones = {"grid": [[1, 1], [1, 1]], "rule": "product", "row_targets": [1, 1], "column_targets": [1, 1]}
    problem = Problem(task.name, 0, "", "0 0, 1 1", ones)
    assert task.grade(problem, "0 0, 1 1").correct and task.grade(problem, "0 0, 0 1, 1 0").correct
    assert not task.grade(problem, "0 0").correct and not task.grade(problem, "0 0, 1 0").correct
