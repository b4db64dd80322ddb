"""The planning tasks: plans carried out by a second simulation, small cases by brute force and by hand."""

import itertools
import json
import math
import re
from fractions import Fraction

import pytest

from tasks import Problem
from tasks.symbench_planning import TASKS, calculation, sudoku_solutions

INDICES = range(500, 530)


def grid_of(text: str) -> list[list[int]]:
    return [[int(d) if d != "_" else 0 for d in row.split()] for row in text.strip().split("\n")]


def fills(grid: list[list[int]]) -> list[list[list[int]]]:
    """All ways to fill a Sudoku, the slow way: the first empty cell, every digit."""
    for r, c in itertools.product(range(9), repeat=2):
        if not grid[r][c]:
            block = [grid[r // 3 * 3 + i][c // 3 * 3 + j] for i in range(3) for j in range(3)]
            taken = {*grid[r], *(row[c] for row in grid), *block}
            found = []
            for digit in set(range(1, 10)) - taken:
                grid[r][c] = digit
                found += fills(grid)
            grid[r][c] = 0
            return found
    return [[row[:] for row in grid]]


def test_every_sudoku_has_the_one_solution_that_brute_force_finds() -> None:
    for index in range(6):
        problem = TASKS["standard_sudoku"].problem(index)
        shown = re.search(r":\n([_\d \n]+)\n\n", problem.question)[1]
        assert fills(grid_of(shown)) == [grid_of(problem.answer)]


def test_sudoku_solutions_are_as_many_as_brute_force_finds() -> None:
    full = sum(grid_of(TASKS["standard_sudoku"].problem(0).answer), [])
    for digits in ({1, 2}, {3, 4}, {5, 8, 9}):  # without some digits there are several ways
        cells = [0 if d in digits else d for d in full]
        rows = [cells[9 * r : 9 * r + 9] for r in range(9)]
        expected = sorted(sum(grid, []) for grid in fills(rows))
        assert len(expected) >= 2
        assert sorted(sudoku_solutions(cells, 10_000)) == expected
        assert len(sudoku_solutions(cells, 2)) == 2


def test_a_sudoku_that_breaks_one_rule_is_refused() -> None:
    task, problem = TASKS["standard_sudoku"], TASKS["standard_sudoku"].problem(0)
    rows = problem.answer.split("\n")
    empty = Problem("standard_sudoku", 0, "?", "", {"cells": [0] * 81})
    for right in (rows, rows[3:] + rows[:3], rows[::-1]):  # valid grids
        assert task.grade(empty, "\n".join(right)).correct
    assert not task.grade(problem, "\n".join(rows[::-1])).correct, "but not this question's"
    assert "block" in task.grade(empty, "\n".join([rows[3], *rows[1:3], rows[0], *rows[4:]])).detail
    assert not task.grade(empty, "\n".join([rows[0]] * 9)).correct
    assert not task.grade(empty, "\n".join(["1 2 3 4 5 6 7 8 9"] * 9)).correct
    for form in (
        str(grid_of(problem.answer)),
        problem.answer.replace(" ", ""),
        problem.answer.replace("\n", " "),
    ):
        assert task.grade(problem, form).correct


def stacks_of(text: str) -> list[list[str]]:
    return [re.findall("[A-J]", line.split(":")[1]) for line in text.strip().split("\n")]


def test_blocks_are_moved_as_a_second_simulation_moves_them() -> None:
    """All plans of up to three moves, possible or not, and the plan of the question itself."""
    task, right = TASKS["blocksworld"], 0
    for index in range(500, 504):
        problem = task.problem(index)
        now, goal = re.search(r"Now:\n(.*)\nGoal:\n(.*)\n\nIn one", problem.question, re.S).groups()
        count = len(stacks_of(now))
        own = [tuple(line.split()[1::2]) for line in problem.answer.split("\n")]
        moves = [(b, str(s), str(t)) for b in "AB" for s in range(1, count + 2) for t in range(1, count + 2)]
        plans = [own, own[:-1], own[1:], own[::-1], *itertools.product(moves, repeat=2)]
        for plan in plans:
            stacks, possible = [*stacks_of(now)], True
            stacks = [stack[:] for stack in stacks]
            for block, s, t in plan:
                s, t = int(s) - 1, int(t) - 1
                possible &= (
                    s != t and s < count and t < count and stacks[s : s + 1] and stacks[s][-1:] == [block]
                )
                if not possible:
                    break
                stacks[t].append(stacks[s].pop())
            fits = bool(possible) and stacks == stacks_of(goal)
            lines = "\n".join(f"Move {b} from {s} to {t}" for b, s, t in plan)
            assert task.grade(problem, lines).correct == fits
            right += fits
    assert right >= 4


def test_blocks_worked_by_hand() -> None:
    task = TASKS["blocksworld"]
    problem = Problem("blocksworld", 0, "?", "", {"start": ("AB", "", ""), "goal": ("", "", "AB")})
    right = "Move B from 1 to 2\nMove A from 1 to 3\nMove B from 2 to 3"
    glued = right.replace("from ", "from stack").replace("to ", "to stack")
    for form in (
        right,
        glued,
        right.lower(),
        "1. " + right,
        right.replace("\n", ".\n"),
        right.replace("\n", "; "),
    ):
        assert task.grade(problem, form).correct, form
    assert task.grade(problem, "\n".join(["Move B from 1 to 2", "Move B from 2 to 1", right])).correct
    for wrong in (
        "Move A from 1 to 3\nMove B from 1 to 3",  # A is under B
        "Move B from 1 to 3\nMove A from 1 to 3",  # upside down
        right + "\nMove C from 3 to 1",
        right.replace("2 to 3", "2 to 4"),
        "Move B from 1 to 1\n" + right,
        right.replace("Move B from 1", "Move A from 1"),  # the block on top is B
        "Then " + right,
    ):
        assert not task.grade(problem, wrong).correct, wrong


def test_boxes_lifted_by_hand() -> None:
    task = TASKS["boxlift"]
    problem = Problem("boxlift", 0, "?", "", {"lifters": [40, 30, 30], "boxes": [60, 40, 30], "steps": 2})
    for right in (
        "Step 1: [(60, [1, 2]), (40, [0])]\nStep 2: [(30, [0])]",
        "step 1: (60, [2, 1]) (40, [0]); Step 2: [(30, [0, 1, 2])].",
        "Step 1: [(40, [0]), (30, [1])]\nStep 2: [(60, [0, 1])]",
    ):
        assert task.grade(problem, right).correct, right
    for wrong in (
        "Step 1: [(60, [1, 2]), (40, [0])]",  # 30 waits
        "Step 1: [(60, [1, 2])]\nStep 2: [(40, [0])]\nStep 3: [(30, [0])]",  # too many steps
        "Step 1: [(60, [1, 2]), (40, [1, 2])]\nStep 2: [(30, [0])]",  # lifters used twice
        "Step 1: [(60, [1]), (40, [0])]\nStep 2: [(30, [0])]",  # too weak
        "Step 1: [(60, [1, 1]), (40, [0])]\nStep 2: [(30, [0])]",
        "Step 1: [(60, [1, 3]), (40, [0])]\nStep 2: [(30, [0])]",  # no lifter 3
        "Step 1: [(60, [1, 2]), (40, [0])]\nStep 2: [(30, [0]), (40, [1, 2])]",  # lifted twice
        "Step 1: [(60, [1, 2]), (50, [0])]\nStep 2: [(30, [0])]",  # no box of 50
        "Step 2: [(60, [1, 2]), (40, [0])]\nStep 1: [(30, [0])]",
        "[(60, [1, 2]), (40, [0])]\n[(30, [0])]",
    ):
        assert not task.grade(problem, wrong).correct, wrong


def test_the_plans_for_boxes_keep_the_rules_and_need_the_steps_allowed() -> None:
    for index in INDICES:
        problem = TASKS["boxlift"].problem(index)
        weights = sorted(map(int, re.search(r"weights \[(.*?)\]", problem.question)[1].split(",")))
        strength = dict(re.findall(r"^lifter (\d): (\d+)$", problem.question, re.M))
        limit = int(re.search(r"at most (\d+) steps", problem.question)[1])
        steps = re.findall(r"\[((?:\(\d+, \[[\d, ]+\]\)(?:, )?)*)\]", problem.answer)
        assert len(steps) == limit
        lifted = []
        for step in steps:
            lifts = [(int(w), g.split(", ")) for w, g in re.findall(r"\((\d+), \[(.*?)\]\)", step)]
            busy = sum((group for _, group in lifts), [])
            assert len(busy) == len(set(busy))
            assert all(sum(int(strength[i]) for i in group) >= weight for weight, group in lifts)
            lifted += [weight for weight, _ in lifts]
        assert sorted(lifted) == weights


def test_boxes_handed_on_by_hand() -> None:
    meta = {"rows": 2, "columns": 2, "start": ((0, 0), (0, 1)), "goal": ((0, 1), (1, 1)), "names": "AB"}
    task, problem = TASKS["boxnet"], Problem("boxnet", 0, "?", "", meta)
    start, end = '{"A": [0, 0], "B": [0, 1]}', '{"A": [0, 1], "B": [1, 1]}'
    middle = '{"A": [0, 0], "B": [1, 1]}'
    for right in (
        f"[{start}, {end}]",  # A follows B into its cell, in one step
        f"[{start}, {middle}, {end}]",
        f"{start}\n{start}\n{end}".replace("[", "(").replace("]", ")"),
        f"[{start}, {end}]".replace('"', "'"),
    ):
        assert task.grade(problem, right).correct, right
    for wrong in (
        f"[{end}]",
        f"[{middle}, {end}]",
        f"[{start}, {middle}]",
        f"[{start}, {end}, {start}]",
        f"[{start}, {end}, 7]",
        f'[{start}, {{"A": [0, 1]}}, {end}]',
        f'[{start}, {{"A": [1, 1], "B": [0, 1]}}, {end}]',  # diagonally
        f'[{start}, {{"A": [0, 1], "B": [0, 1]}}, {end}]',  # both in one cell
        f'[{start}, {{"A": [0, 0], "B": [0, 2]}}, {end}]',  # off the grid
        f'[{start}, {{"A": [0, 1], "B": [0, 0]}}, {{"A": [0, 1], "B": [1, 0]}}, {end}]',  # exchanged
        f'[{start}, {{"A": [0, 1], "B": [1, 1], "A": [0, 1]}}]',
    ):
        assert not task.grade(problem, wrong).correct, wrong


def test_the_states_of_boxnet_keep_the_rules_of_its_text() -> None:
    for index in INDICES:
        problem = TASKS["boxnet"].problem(index)
        rows, columns = map(int, re.search(r"of (\d) rows and (\d) columns", problem.question).groups())
        asked = re.findall(r"^box ([A-D]): from \[(\d), (\d)\] to \[(\d), (\d)\]$", problem.question, re.M)
        states = [
            {name: (int(r), int(c)) for name, r, c in re.findall(r'"([A-D])": \[(\d), (\d)\]', state)}
            for state in problem.answer.split("}")[:-1]
        ]
        assert states[0] == {name: (int(r), int(c)) for name, r, c, *_ in asked}
        assert states[-1] == {name: (int(r), int(c)) for name, *_, r, c in asked}
        for old, new in itertools.pairwise(states):
            moved = [name for name in old if old[name] != new[name]]
            assert len(moved) == 1 and new[moved[0]] not in old.values()
            (r, c), (s, d) = old[moved[0]], new[moved[0]]
            assert abs(r - s) + abs(c - d) == 1 and 0 <= s < rows and 0 <= d < columns


def keeps_the_rules(question: str, states: list[dict[str, list[int]]]) -> bool:
    """The rules of boxnet once more, cell by cell."""
    rows, columns = map(int, re.search(r"of (\d) rows and (\d) columns", question).groups())
    asked = re.findall(r"^box ([A-D]): from (.*) to (.*)$", question, re.M)
    if states[0] != {n: json.loads(a) for n, a, _ in asked} or states[-1] != {
        n: json.loads(b) for n, _, b in asked
    }:
        return False
    for state in states:
        cells = {tuple(cell) for cell in state.values()}
        if len(cells) < len(state) or not all(0 <= r < rows and 0 <= c < columns for r, c in cells):
            return False
    for old, new in itertools.pairwise(states):
        if any(math.dist(old[name], new[name]) > 1 for name in old):
            return False
        if any(old[a] == new[b] and old[b] == new[a] for a, b in itertools.permutations(old, 2)):
            return False
    return True


def test_plans_of_boxnet_with_a_changed_number_are_graded_as_a_second_simulation_has_it() -> None:
    verdicts = set()
    for index in range(500, 508):
        problem = TASKS["boxnet"].problem(index)
        for digit in re.finditer("[0-9]", problem.answer):
            for other in "0123".replace(digit[0], ""):
                plan = problem.answer[: digit.start()] + other + problem.answer[digit.end() :]
                fits = keeps_the_rules(problem.question, json.loads(plan))
                assert TASKS["boxnet"].grade(problem, plan).correct == fits, plan
                verdicts.add(fits)
    assert verdicts == {True, False}


def drawn(problem: Problem) -> list[str]:
    return re.search(r"free cells:\n([SG.#\n]+)\n\n", problem.question)[1].split("\n")


def test_all_short_walks_are_graded_as_the_drawing_says() -> None:
    """Every walk of up to six steps from S, into walls and off the grid too, on small grids."""
    task, right = TASKS["gridworld"], 0
    grids = (["SG", ".G"], ["G#", "SG"], ["S.#", "#GG"], ["GSG"])
    for grid in grids:
        places = {
            cell: x for r, row in enumerate(grid) for cell, x in (((r, c), x) for c, x in enumerate(row))
        }
        start = next(cell for cell, x in places.items() if x == "S")
        goals = {cell for cell, x in places.items() if x == "G"}
        problem = Problem("gridworld", 0, "?", "", {"grid": grid, "start": start, "goals": goals})
        for steps in itertools.product(((0, 1), (1, 0), (0, -1), (-1, 0)), repeat=5):
            path = [start]
            for dr, dc in steps:
                path.append((path[-1][0] + dr, path[-1][1] + dc))
            fits = all(places.get(cell, "#") != "#" for cell in path) and goals <= set(path)
            assert task.grade(problem, str(path)).correct == fits
            right += fits
        for wrong in ([*path[:1], *path[2:]], path[1:], [start, *goals, start, start]):
            assert not task.grade(problem, str(wrong)).correct
    assert right > 20


def test_the_goals_of_gridworld_can_be_reached_and_its_path_visits_them() -> None:
    for index in INDICES:
        problem = TASKS["gridworld"].problem(index)
        grid = drawn(problem)
        path = [tuple(map(int, cell)) for cell in re.findall(r"\((\d+), (\d+)\)", problem.answer)]
        assert grid[path[0][0]][path[0][1]] == "S" and all(grid[r][c] != "#" for r, c in path)
        assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in itertools.pairwise(path))
        goals = {(r, c) for r, row in enumerate(grid) for c, x in enumerate(row) if x == "G"}
        assert goals and goals <= set(path)
        for cell in goals:  # a path that leaves one goal out
            short = [p for p in path if p != cell]
            assert not TASKS["gridworld"].grade(problem, str(short)).correct


def makes(numbers: list[int]) -> set[Fraction]:
    """All values of four numbers, built up over subsets rather than by joining pairs."""
    values = {(n,): {Fraction(n)} for n in numbers}
    whole = tuple(range(len(numbers)))
    values = {(i,): {Fraction(numbers[i])} for i in whole}
    for size in range(2, len(numbers) + 1):
        for group in itertools.combinations(whole, size):
            values[group] = set()
            for k in range(1, size):
                for left in itertools.combinations(group, k):
                    right = tuple(i for i in group if i not in left)
                    for a, b in itertools.product(values[left], values[right]):
                        values[group] |= {a + b, a - b, a * b, *([a / b] if b else [])}
    return values[whole]


def test_game24_is_solvable_and_graded_exactly() -> None:
    task = TASKS["game24"]
    for index in INDICES:
        problem = task.problem(index)
        numbers = [int(n) for n in re.search("numbers (.*): write", problem.question)[1].split(", ")]
        if index < 506:
            assert 24 in makes(numbers)
        exactly = re.sub(r"(\d+)", r"Fraction(\1)", problem.answer)
        assert eval(exactly) == 24 and sorted(map(int, re.findall(r"\d+", problem.answer))) == sorted(numbers)
        assert task.grade(problem, problem.answer + " = 24").correct
        assert not task.grade(problem, problem.answer + " = 25").correct
        assert not task.grade(problem, f"{problem.answer} + 1 - 1").correct
        assert not task.grade(problem, "24").correct and not task.grade(problem, "4 * 6").correct


def test_every_calculation_with_four_numbers_is_graded_as_python_has_it() -> None:
    task, right = TASKS["game24"], 0
    problem = Problem("game24", 0, "?", "", {"numbers": [3, 3, 8, 8]})
    for numbers in set(itertools.permutations([3, 3, 8, 8])):
        for a, b, c in itertools.product("+-*/", repeat=3):
            for form in ("{}{}{}{}{}{}{}", "({}{}{}){}({}{}{})", "{}{}({}{}{}{}{})", "{}{}({}{}({}{}{}))"):
                text = form.format(numbers[0], a, numbers[1], b, numbers[2], c, numbers[3])
                try:
                    fits = eval(re.sub(r"(\d)", r"Fraction(\1)", text)) == 24
                except ZeroDivisionError:
                    fits = False
                assert task.grade(problem, text).correct == fits, text
                right += fits
    assert right > 0, "8 / (3 - 8/3)"
    for wrong in ("8 / (3 - 8/3) ** 1", "33 - 8 // 8", "8/(3-8/3", "-8/(8/3-3)", "8 3 8 3"):
        assert not task.grade(problem, wrong).correct


@pytest.mark.parametrize(
    "text", ["", "1+", "__import__('os')", "1" * 200, "(" * 100, "2**3", "7//2", "1/0", "a+1"]
)
def test_no_calculation(text: str) -> None:
    assert calculation(text) is None


@pytest.mark.parametrize(("name", "fewest"), [("blocksworld", 1), ("boxnet", 1), ("gridworld", 2)])
def test_plans_are_not_trivial(name: str, fewest: int) -> None:
    lengths = [len(re.split(r"\n|\}, |\), ", TASKS[name].problem(i).answer)) for i in range(100)]
    assert min(lengths) >= fewest and sum(lengths) / len(lengths) > 5
