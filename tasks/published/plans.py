"""Readers of the samples that are published as data, without a question: (path, record) -> Sample.

The benchmark's own programs put these data into words. The words here are ours; data, notation of the answer
and what is right are the benchmark's.
"""

import itertools
import re
from fractions import Fraction
from pathlib import Path

from tasks import Grade
from tasks.answers import normal, number, untypeset
from tasks.equality import math_equal
from tasks.protocols import extract_answer
from tasks.published.puzzles import ours
from tasks.published.reading import SEVERAL, Sample
from tasks.symbench_numbers import exact, first_broken

Boxes = dict[tuple[int, int], list[str]]  # square (row, column) -> the boxes and targets in it


def blocksworld(path: Path, text: str) -> Sample:
    """Two lists of stacks, from the bottom to the top; a stack that the goal does not name is empty there."""
    parts = re.fullmatch(r"\s*Initial State:\s*\n(.*?)\n\s*Goal State:\s*\n(.*)", text, re.DOTALL)
    if not parts:
        raise ValueError("expected an Initial State and a Goal State")
    start, goal = ({}, {})
    for part, stacks in zip(parts.groups(), (start, goal), strict=True):
        for line in filter(str.strip, part.split("\n")):
            stack = re.fullmatch(r"stack(\d+):((?: +[A-Z])*) *", line.strip())
            if not stack:
                raise ValueError(f"{line.strip()!r} is no stack such as stack1: A B")
            stacks[int(stack[1])] = stack[2].replace(" ", "")
    if sorted(start) != list(range(1, len(start) + 1)) or not set(goal) <= set(start):
        raise ValueError("the stacks are not numbered 1, 2, 3 ..., or the goal has other ones")
    if sorted("".join(start.values())) != sorted("".join(goal.values())):
        raise ValueError("start and goal hold different blocks")
    now = tuple(start[i] for i in sorted(start))
    then = tuple(goal.get(i, "") for i in sorted(start))
    shown = [
        "\n".join(f"stack{i}: {' '.join(blocks)}".rstrip() for i, blocks in enumerate(s, 1))
        for s in (now, then)
    ]
    question = (
        "Blocks stand in stacks, listed from the bottom to the top.\n"
        f"Start:\n{shown[0]}\nGoal:\n{shown[1]}\n\n"
        "In one move, the top block of a stack is put on top of another of these stacks, which may be empty. "
        "Give moves that lead from the start to exactly the goal, one a line, in the form: Move B from 1 to 2"
    )
    carried_out = ours("blocksworld", {"start": now, "goal": then})
    missing = Grade(False, "no answer given")
    return Sample(question, SEVERAL, lambda answer: missing if answer is None else carried_out(answer))


def boxlift(path: Path, record: dict) -> Sample:
    """Boxes and lifters; as many steps as the benchmark's greedy plan needs."""
    boxes, lifters = record["boxes"], record["lifters"]
    if not boxes or not all(isinstance(n, int) and n > 0 for n in [*boxes, *lifters]):
        raise ValueError("expected weights and strengths above 0")
    if max(boxes) > sum(lifters):
        raise ValueError(f"a box of {max(boxes)} is too heavy for all lifters together, {sum(lifters)}")
    steps = greedy_steps(boxes, lifters)
    question = (
        f"Boxes of the weights {boxes} have to be lifted by lifters of the strengths {lifters}; lifters are "
        "named by their places in this list, from 0.\nIn a step, several boxes can be lifted, each by one "
        "lifter or by several together, whose strengths add up to at least its weight. A lifter works on at "
        f"most one box per step. Lift every box once, in at most {steps} steps, fewer if you can. Answer "
        "with one line per step, each with the weights of its boxes and their lifters, in the form:\n"
        "Step 1: [(50, [0, 2]), (30, [1])]\nStep 2: [(40, [0, 1])]"
    )
    meta = {"boxes": boxes, "lifters": lifters, "steps": steps}
    return Sample(question, SEVERAL, ours("boxlift", meta))


def greedy_steps(boxes: list[int], lifters: list[int]) -> int:
    """The limit of the benchmark: in each step, the heaviest boxes first, each lifted by the next free
    lifters in their order, as many as it takes."""
    waiting, steps = sorted(boxes, reverse=True), 0
    while waiting:
        free, left = list(lifters), []
        for weight in waiting:
            if sum(free) < weight:
                left.append(weight)
                continue
            strength = 0
            while strength < weight:
                strength += free.pop(0)
        waiting, steps = left, steps + 1
    return steps


def boxnet(path: Path, record: dict) -> Sample:
    """Squares, named by their middles (0.5_1.5), with the boxes and targets in them."""
    squares: Boxes = {}
    for name, things in record.items():
        middle = re.fullmatch(r"(\d+)\.5_(\d+)\.5", name)
        if not middle or not all(re.fullmatch("(?:box|target)_[a-z]+", thing) for thing in things):
            raise ValueError(f"{name}: {things} is no square with boxes and targets")
        squares[int(middle[1]), int(middle[2])] = list(things)
    everything = list(itertools.chain(*squares.values()))
    for thing in set(everything):
        if thing.startswith("box_") and everything.count(thing) > everything.count("target" + thing[3:]):
            raise ValueError(f"there are more {thing} than targets of this colour")
    lines = "\n".join(
        f"{_named(square)}: {', '.join(things) or 'empty'}" for square, things in squares.items()
    )
    question = (
        "Coloured boxes and targets lie in the squares of a grid, each named by the coordinates of its "
        f"middle:\n{lines}\n\nIn every square stands an agent, named alike, such as Agent[0.5, 0.5]. In one "
        "step, an agent can move one box that lies in its square at the beginning of the step: into a square "
        "next to it (not diagonally), or onto a target of the box's colour in its own square; box and target "
        "are then done with. Agents act at the same time. Bring every box to a target of its colour. Answer "
        "with a list of steps, each with the agents that act in it, in the form:\n"
        '[{"Agent[0.5, 0.5]": "move(box_blue, square[0.5, 1.5])"}, '
        '{"Agent[0.5, 1.5]": "move(box_blue, target_blue)"}]'
    )
    return Sample(question, SEVERAL, lambda answer: grade_boxnet(squares, answer))


def _named(square: tuple[int, int]) -> str:
    return f"square[{square[0]}.5, {square[1]}.5]"


_MIDDLE = r"\[ ?(\d{1,3})\.5 ?, ?(\d{1,3})\.5 ?\]"
_ACTION = rf"Agent ?{_MIDDLE} ?: ?move ?\( ?(box_[a-z]+) ?, ?(?:(target_[a-z]+)|square ?{_MIDDLE}) ?\)"


def grade_boxnet(start: Boxes, answer: str | None) -> Grade:
    """Carry out the steps of an answer. Each agent acts at most once a step, on what lies in its square."""
    text = re.sub(r"[\"'`\s]+", " ", untypeset(answer)).replace(" :", ":").strip(" .")
    steps = re.findall(r"\{([^{}]*)\}", text)
    around = re.sub(r"\{[^{}]*\}", "", text).strip(" [],")
    if answer is None or around or any(re.sub(_ACTION, "", step).strip(" ,") for step in steps):
        return Grade(False, 'expected steps in the form [{"Agent[0.5, 0.5]": "move(box_blue, target_blue)"}]')
    squares = {square: list(things) for square, things in start.items()}
    for turn, step in enumerate(steps, 1):
        arriving = []
        acting = [(int(r), int(c)) for r, c, *_ in re.findall(_ACTION, step)]
        if len(set(acting)) < len(acting):
            return Grade(False, f"step {turn}: an agent acts twice")
        for r, c, box, target, to_r, to_c in re.findall(_ACTION, step):
            square = int(r), int(c)
            here = squares.get(square, [])
            to = square if target else (int(to_r), int(to_c))
            near = abs(to[0] - square[0]) + abs(to[1] - square[1]) == 1 and to in squares
            if box not in here or (target and (target not in here or target[7:] != box[4:])):
                return Grade(False, f"step {turn}: {box} or its target is not in {_named(square)}")
            if not target and not near:
                return Grade(False, f"step {turn}: {_named(to)} is not next to {_named(square)}")
            here.remove(box)
            if target:
                here.remove(target)
            else:
                arriving.append((to, box))
        for to, box in arriving:
            squares[to].append(box)
    left = sorted(thing for things in squares.values() for thing in things if thing.startswith("box_"))
    return Grade(not left, f"not brought to a target: {', '.join(left)}")


def gridworld(path: Path, record: dict) -> Sample:
    """A robot on a grid whose cells are named C1,1 and so on, row first."""
    rows, columns = record["grid"]["rows"], record["grid"]["cols"]
    obstacles, goals = (list(map(_cell, record[name])) for name in ("obstacles", "goals"))
    start = _cell(record["initial_robot"])
    if not all(0 <= r < rows and 0 <= c < columns for r, c in [*obstacles, *goals, start]):
        raise ValueError("a cell lies outside the grid")
    if set(obstacles) & {*goals, start}:
        raise ValueError("an obstacle stands on a goal or on the robot")
    names = [", ".join(f"C{r + 1},{c + 1}" for r, c in cells) for cells in (obstacles, goals, [start])]
    question = (
        f"A robot moves on a grid of {rows} rows and {columns} columns. The cell in row 1 and column 2 is "
        f"called C1,2; rows and columns are counted from 1.\nObstacles: {names[0]}\nGoals: {names[1]}\nThe "
        f"robot stands at {names[2]}.\n\nIn one step it goes up, down, left or right to the next cell, never "
        "onto an obstacle. Find a path that visits every goal, in any order. Answer with the list of its "
        'cells, the first one where the robot stands, such as ["C1,1", "C2,1", "C2,2"].'
    )
    grid = [["#" if (r, c) in obstacles else "." for c in range(columns)] for r in range(rows)]
    walk = ours("gridworld", {"grid": grid, "start": start, "goals": goals})

    def grade(answer: str | None) -> Grade:
        names = re.findall(r"[Cc](\d{1,3}) ?, ?(\d{1,3})", untypeset(answer))
        rest = re.sub(r"[Cc]\d{1,3} ?, ?\d{1,3}", "", untypeset(answer))
        if not names or re.search(r"[^\s\[\](),.\"'`]", rest):
            return Grade(False, 'expected a list of cells such as ["C1,1", "C2,1"]')
        return walk(", ".join(f"({int(r) - 1}, {int(c) - 1})" for r, c in names))

    return Sample(question, SEVERAL, grade)


def _cell(name: str) -> tuple[int, int]:
    if not (cell := re.fullmatch(r"C(\d+),(\d+)", str(name))):
        raise ValueError(f"{name!r} is no cell such as C1,2")
    return int(cell[1]) - 1, int(cell[2]) - 1


def letters(path: Path, word: str) -> Sample:
    """A word in the file, the letter to count at the head of its folder's name (a_1_0)."""
    folder = re.fullmatch(r"([a-z])_\d+_\d+", path.parent.name)
    if not folder or not isinstance(word, str) or not word:
        raise ValueError("expected a word, in a folder such as a_1_0")
    places = [i for i, letter in enumerate(word, 1) if letter == folder[1]]
    question = (
        f"How often does the letter '{folder[1]}' occur in '{word}', and at which positions, counted from 1? "
        "Answer in the form Count: 2, Positions: [3, 7], with the positions in rising order."
    )
    right = f"Count: {len(places)}, Positions: {places}"
    meta = {"text": word, "letter": folder[1], "places": places}
    return Sample(question, right, ours("letters", meta, right))


def game24(path: Path, record: dict) -> Sample:
    """A line of the table of four numbers each."""
    numbers = [int(number) for number in record["Puzzles"].split()]
    if len(numbers) != 4:
        raise ValueError(f"{record['Puzzles']!r} is not four numbers")
    question = (
        f"Make 24 from the numbers {' '.join(map(str, numbers))}: use each of them exactly once (a number "
        "that is listed twice, twice), with + - * / and brackets. Answer with the calculation alone, such as "
        "(1 + 2) * 3 - 4."
    )
    return Sample(question, SEVERAL, ours("game24", {"numbers": numbers}))


def gsm_hard(path: Path, record: dict) -> Sample:
    """A word problem with large numbers. A fraction may be rounded to two decimals or more."""
    target = Fraction(repr(record["target"]))
    right = str(target.numerator) if target.denominator == 1 else repr(record["target"])

    def grade(answer: str | None) -> Grade:
        decimals = re.search(r"\.(\d{2,})$", normal(answer))
        if decimals and target.denominator != 1 and (given := number(answer, ("$",))) is not None:
            return exact(given, round(target, len(decimals[1])), "a number")
        return equal(answer, right)

    return Sample(record["input"], right, grade, repr(record["target"]))


def mathematics(path: Path, record: dict) -> Sample:
    """A question of MATH, whose answer is in the last \\boxed{} of its solution; some write \\fbox{3}, or
    \\boxed 3 and then a dollar sign."""
    question, solution = record["problem"], record["solution"].replace("\\fbox", "\\boxed")
    solution = re.sub(r"\\boxed\s*([^\s{$][^$\n]*?)\.?(?=\$|\n|$)", r"\\boxed{\1}", solution)
    right = extract_answer(solution.replace("\\boxed {", "\\boxed{"), "retool")
    if not right or not question.strip():
        raise ValueError("an empty problem, or a solution without an answer in \\boxed{}")
    return Sample(question.strip(), right, lambda answer: equal(answer, right), right)


def equal(answer: str | None, right: str) -> Grade:
    """The grade of an answer that is compared as mathematics."""
    given = (answer or "").strip()
    return first_broken([(bool(given) and math_equal(given, right), f"{given!r} given, {right!r} expected")])
