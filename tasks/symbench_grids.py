"""Seven SymBench tasks on grids, generated from the question's index.

As in symbench_numbers.py the kinds of question and the forms of their answers are the benchmark's, rules and
wording our own. A grid as an answer is a flat list of its numbers, row by row.
"""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from tasks import Grade, Problem, Task
from tasks.answers import digits, integers, pairs
from tasks.symbench_numbers import LETTERS, Symbench, exact, first_broken

Grid = list[list[int]]
FLAT = "Give the grid at the end as a flat list of integers, row by row from the top, such as [1, 2, 3, 4]."


def lines(grid: list[list]) -> str:
    """A grid as text, a line a row."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def flat(grid: list[list]) -> list:
    return [value for row in grid for value in row]


class GridTask(Symbench):
    """A task whose answer is one grid."""

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return exact(integers(answer), problem.answer, "a list of integers")


class Pooling(GridTask):
    """Slide a window over a matrix and take the largest, smallest or average number in it."""

    name = "pooling"
    SIDES = (5, 9)  # of the matrix
    WINDOWS = (2, 4)
    STRIDES = (1, 3)
    LARGEST = 30
    WORDS = {
        "max": "the largest of its numbers",
        "min": "the smallest of its numbers",
        "average": "the average of its numbers, rounded down to an integer",
    }
    code = """DATA
pooled = []
for top in range(0, len(matrix) - window + 1, stride):
    for left in range(0, len(matrix[0]) - window + 1, stride):
        inside = [v for row in matrix[top:top + window] for v in row[left:left + window]]
        if kind == "average":
            pooled.append(sum(inside) // len(inside))
        else:
            pooled.append(max(inside) if kind == "max" else min(inside))
print(pooled)"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        height, width = rng.randint(*self.SIDES), rng.randint(*self.SIDES)
        matrix = [[rng.randint(0, self.LARGEST) for _ in range(width)] for _ in range(height)]
        window, stride, kind = (
            rng.randint(*self.WINDOWS),
            rng.randint(*self.STRIDES),
            rng.choice(list(self.WORDS)),
        )
        question = (
            f"A window of {window} x {window} numbers moves over this matrix:\n{lines(matrix)}\nIt starts in "
            f"the top left corner, moves {stride} to the right at a time, then begins anew at the left edge, "
            f"{stride} further down, and so on. It takes only places where it lies in the matrix with all of "
            f"its numbers; there is no padding. Each place gives one number: {self.WORDS[kind]}. Give these "
            "numbers in the order in which the window takes its places, as a list of integers such as [1, 2]."
        )
        meta = {"matrix": matrix, "window": window, "stride": stride, "kind": kind}
        return Problem(self.name, index, question, self.pooled(**meta), meta)

    def pooled(self, matrix: Grid, window: int, stride: int, kind: str) -> list[int]:
        reduce = {"max": max, "min": min, "average": lambda v: math.floor(sum(v) / len(v))}[kind]
        starts = [range(0, side - window + 1, stride) for side in (len(matrix), len(matrix[0]))]
        near = list(itertools.product(range(window), repeat=2))
        return [reduce([matrix[r + i][c + j] for i, j in near]) for r, c in itertools.product(*starts)]


class Reversi(GridTask):
    """Carry out the moves of a game of reversi."""

    name = "reversi"
    SIDES = (4, 6, 8)
    PLAYED = (0, 8)  # moves before the question starts
    MOVES = (1, 5)  # moves to carry out
    DIRECTIONS = tuple(d for d in itertools.product((-1, 0, 1), repeat=2) if d != (0, 0))
    code = """DATA
side = len(board)
for player, row, column in moves:
    board[row][column] = player
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            r, c, between = row + dr, column + dc, []
            while 0 <= r < side and 0 <= c < side and board[r][c] == 3 - player:
                between.append((r, c))
                r, c = r + dr, c + dc
            if 0 <= r < side and 0 <= c < side and board[r][c] == player:
                for r, c in between:
                    board[r][c] = player
print([disc for row in board for disc in row])"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        side = rng.choice(self.SIDES)
        moves: list[tuple[int, int, int]] = []
        while not moves:  # a game that ended before the first move to be asked for
            discs = {(side // 2 - i, side // 2 - j): 1 + (i == j) for i in (0, 1) for j in (0, 1)}
            before = self.play(rng, discs, side, rng.randint(*self.PLAYED), 1)
            board = [[discs.get((r, c), 0) for c in range(side)] for r in range(side)]
            player = 3 - before[-1][0] if before else 1
            moves = self.play(rng, discs, side, rng.randint(*self.MOVES), player)
        told = "\n".join(f"{'black' if p == 1 else 'white'} at {r} {c}" for p, r, c in moves)
        question = (
            f"A game of reversi on {side} x {side} squares stands like this (0 empty, 1 black, 2 white):\n"
            f"{lines(board)}\nRows and columns are numbered from 0. When a player puts a disc of the own "
            "colour on an empty square, then in each of the eight directions (horizontal, vertical and "
            "diagonal) the unbroken line of the other colour's discs that starts next to the new disc turns "
            "to the player's colour, if a disc of the player's colour, which was there before the move, "
            "directly follows at the end of the line; otherwise nothing turns in that direction. These moves "
            f"are made one after the other (row column):\n{told}\n{FLAT}"
        )
        final = [discs.get(square, 0) for square in itertools.product(range(side), repeat=2)]
        return Problem(self.name, index, question, final, {"board": board, "moves": moves})

    def play(
        self, rng: random.Random, discs: dict, side: int, count: int, player: int
    ) -> list[tuple[int, int, int]]:
        """Make up to `count` random legal moves on `discs`; a player who has none passes."""
        moves = []
        for _ in range(count):
            move = self.legal(rng, discs, side, player)
            if not move:
                player = 3 - player
                move = self.legal(rng, discs, side, player)
            if not move:
                break
            discs |= dict.fromkeys([move, *self.turned(discs, move, player)], player)
            moves.append((player, *move))
            player = 3 - player
        return moves

    def legal(self, rng: random.Random, discs: dict, side: int, player: int) -> tuple[int, int] | None:
        """A random square on which the player turns something, if there is one."""
        empty = [s for s in itertools.product(range(side), repeat=2) if s not in discs]
        rng.shuffle(empty)
        return next((square for square in empty if self.turned(discs, square, player)), None)

    def turned(self, discs: dict, square: tuple[int, int], player: int) -> list[tuple[int, int]]:
        """The squares of the discs that a move turns."""
        found = []
        for dr, dc in self.DIRECTIONS:
            line = []
            for step in itertools.count(1):
                place = square[0] + step * dr, square[1] + step * dc
                if discs.get(place) != 3 - player:
                    break
                line.append(place)
            if discs.get(place) == player:
                found += line
        return found


class LightPuzzles(GridTask):
    """Press buttons that switch lights around them."""

    name = "light_puzzles"
    SIDES = (3, 6)
    PRESSES = (2, 10)
    PLUS = ((-1, 0), (0, -1), (0, 1), (1, 0))
    CORNERS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
    SHAPES = {
        "itself and its neighbours above, below, left and right": ((0, 0), *PLUS),
        "its neighbours above, below, left and right, but not itself": PLUS,
        "itself and its four diagonal neighbours": ((0, 0), *CORNERS),
        "itself and all eight neighbours, diagonal ones included": ((0, 0), *PLUS, *CORNERS),
    }
    code = """DATA
for row, column in presses:
    for dr, dc in switched:
        r, c = row + dr, column + dc
        if 0 <= r < len(lights) and 0 <= c < len(lights[0]):
            lights[r][c] = 1 - lights[r][c]
print([light for row in lights for light in row])"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        height, width = rng.randint(*self.SIDES), rng.randint(*self.SIDES)
        lights = [[rng.randint(0, 1) for _ in range(width)] for _ in range(height)]
        presses = [(rng.randrange(height), rng.randrange(width)) for _ in range(rng.randint(*self.PRESSES))]
        words = rng.choice(list(self.SHAPES))
        switched = self.SHAPES[words]
        question = (
            f"Lights stand in a grid, 1 is on and 0 is off:\n{lines(lights)}\nRows and columns are numbered "
            "from 0. To press a light switches (on to off, off to on) "
            f"{words}, as far as these are in the grid. These lights are pressed, one after the other (row "
            f"column): {', '.join(f'{r} {c}' for r, c in presses)}.\n{FLAT}"
        )
        # A light is switched by each press that it lies next to: the order does not matter.
        final = [
            (lights[r][c] + sum((r - row, c - column) in switched for row, column in presses)) % 2
            for r, c in itertools.product(range(height), range(width))
        ]
        meta = {"lights": lights, "presses": presses, "switched": switched}
        return Problem(self.name, index, question, final, meta)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        """Rows may be written 00100, and so may the whole list."""
        widths = len(problem.meta["lights"][0]), len(problem.answer)
        given = digits(answer, widths[0]) or digits(answer, widths[1]) or integers(answer)
        return exact(given, problem.answer, "a list of integers")


class Game2048(GridTask):
    """Slide and merge the tiles of 2048, without new tiles."""

    name = "2048"
    SIDES = (3, 5)
    MOVES = (2, 6)
    EMPTY = 0.3  # share of empty squares
    EXPONENTS = (1, 4)  # tiles are 2 to 16
    code = """DATA

def slide(row):
    \"\"\"The row after a move to the left.\"\"\"
    tiles, merged, i = [v for v in row if v], [], 0
    while i < len(tiles):
        double = i + 1 < len(tiles) and tiles[i] == tiles[i + 1]
        merged.append(tiles[i] * (2 if double else 1))
        i += 2 if double else 1
    return merged + [0] * (len(row) - len(merged))

for move in moves:
    if move in ("up", "down"):
        board = [list(column) for column in zip(*board)]
    if move in ("right", "down"):
        board = [slide(row[::-1])[::-1] for row in board]
    else:
        board = [slide(row) for row in board]
    if move in ("up", "down"):
        board = [list(column) for column in zip(*board)]
print([tile for row in board for tile in row])"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        side = rng.randint(*self.SIDES)
        tiles = [
            0 if rng.random() < self.EMPTY else 2 ** rng.randint(*self.EXPONENTS) for _ in range(side * side)
        ]
        board = [tiles[i : i + side] for i in range(0, side * side, side)]
        moves = rng.choices(("left", "right", "up", "down"), k=rng.randint(*self.MOVES))
        question = (
            f"Tiles lie on a board, 0 is an empty square:\n{lines(board)}\nIn a move to one side all tiles "
            "slide towards that side as far as they can, over empty squares only. When two tiles of equal "
            "value meet in the direction of the move they merge into one tile of twice the value, which does "
            "not merge again in the same move. Pairs are formed beginning at the side moved to, so that of "
            "three equal tiles in a line the two nearer to it merge. No new tiles appear. These moves are "
            f"made in this order: {', '.join(moves)}.\n{FLAT}"
        )
        final = board
        for move in moves:
            final = self.moved(final, move)
        return Problem(self.name, index, question, flat(final), {"board": board, "moves": moves})

    def moved(self, board: Grid, move: str) -> Grid:
        """The board after a move, tile by tile."""
        side = len(board)
        after = [[0] * side for _ in range(side)]
        for line in range(side):
            free, closed = 0, True  # the next free place counted from the side moved to; last tile merged
            for step in range(side):
                r, c = self.place(move, line, step, side)
                if not board[r][c]:
                    continue
                at = self.place(move, line, free - 1, side)
                if not closed and after[at[0]][at[1]] == board[r][c]:
                    after[at[0]][at[1]], closed = 2 * board[r][c], True
                else:
                    at = self.place(move, line, free, side)
                    after[at[0]][at[1]], closed, free = board[r][c], False, free + 1
        return after

    def place(self, move: str, line: int, step: int, side: int) -> tuple[int, int]:
        """The square that is `step` away from the side moved to, in a row or column."""
        along = side - 1 - step if move in ("right", "down") else step
        return (line, along) if move in ("left", "right") else (along, line)


@dataclass(frozen=True)
class Change:
    """A step of matrix_transformation. `says` and `code` hold {i}, {j} (from 1, in `code` from 0) and {k}."""

    says: str
    code: str
    does: Callable[[Grid, int, int, int], Grid]
    needs: str = ""  # "rows" or "columns", where two different ones are named


def _swapped(items: list, i: int, j: int) -> list:
    order = list(range(len(items)))
    order[i - 1], order[j - 1] = j - 1, i - 1
    return [items[place] for place in order]


class MatrixTransformation(GridTask):
    """Turn, mirror and shift a matrix."""

    name = "matrix_transformation"
    SIDES = (2, 5)
    STEPS = (2, 6)
    LARGEST = 50
    CHANGES = (
        Change(
            "turn it by 90 degrees clockwise",
            "matrix = [list(column) for column in zip(*matrix[::-1])]",
            lambda m, i, j, k: [[m[-1 - c][r] for c in range(len(m))] for r in range(len(m[0]))],
        ),
        Change(
            "turn it by 90 degrees counterclockwise",
            "matrix = [list(column) for column in zip(*matrix)][::-1]",
            lambda m, i, j, k: [[m[c][-1 - r] for c in range(len(m))] for r in range(len(m[0]))],
        ),
        Change(
            "turn it by 180 degrees",
            "matrix = [row[::-1] for row in matrix[::-1]]",
            lambda m, i, j, k: [[m[-1 - r][-1 - c] for c in range(len(m[0]))] for r in range(len(m))],
        ),
        Change(
            "transpose it (rows become columns, the first row the first column)",
            "matrix = [list(column) for column in zip(*matrix)]",
            lambda m, i, j, k: [[m[c][r] for c in range(len(m))] for r in range(len(m[0]))],
        ),
        Change(
            "mirror it left to right (the first column becomes the last)",
            "matrix = [row[::-1] for row in matrix]",
            lambda m, i, j, k: [[row[-1 - c] for c in range(len(row))] for row in m],
        ),
        Change(
            "mirror it top to bottom (the first row becomes the last)",
            "matrix = matrix[::-1]",
            lambda m, i, j, k: [m[-1 - r] for r in range(len(m))],
        ),
        Change(
            "swap rows {i} and {j}",
            "matrix[{i}], matrix[{j}] = matrix[{j}], matrix[{i}]",
            lambda m, i, j, k: _swapped(m, i, j),
            "rows",
        ),
        Change(
            "swap columns {i} and {j}",
            "for row in matrix:\n    row[{i}], row[{j}] = row[{j}], row[{i}]",
            lambda m, i, j, k: [_swapped(row, i, j) for row in m],
            "columns",
        ),
        Change(
            "shift every row by {k} to the right, what leaves at the right end coming in again at the left",
            "for _ in range({k}):\n    matrix = [row[-1:] + row[:-1] for row in matrix]",
            lambda m, i, j, k: [[row[(c - k) % len(row)] for c in range(len(row))] for row in m],
        ),
        Change(
            "add {k} to every number",
            "matrix = [[number + {k} for number in row] for row in matrix]",
            lambda m, i, j, k: [[number + k for number in row] for row in m],
        ),
    )

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        height, width = rng.randint(*self.SIDES), rng.randint(*self.SIDES)
        matrix = [[rng.randint(0, self.LARGEST) for _ in range(width)] for _ in range(height)]
        final, steps = matrix, []
        for _ in range(rng.randint(*self.STEPS)):
            which = rng.randrange(len(self.CHANGES))
            change = self.CHANGES[which]
            count = len(final) if change.needs == "rows" else len(final[0])
            i, j = sorted(rng.sample(range(1, count + 1), 2))
            numbers = {"i": i, "j": j, "k": rng.randint(1, 3)}
            final = change.does(final, **numbers)
            steps.append((which, numbers))
        told = "\n".join(
            f"{n}. {self.CHANGES[w].says.format(**numbers)}" for n, (w, numbers) in enumerate(steps, 1)
        )
        question = (
            f"A matrix is changed step by step:\n{lines(matrix)}\nThe steps, with rows counted from 1 at the "
            f"top and columns from 1 at the left of the matrix as it is then:\n{told}\n"
            "Give the matrix at the end as a flat list of integers, row by row from the top, such as [1, 2]."
        )
        return Problem(self.name, index, question, flat(final), {"matrix": matrix, "steps": steps})

    def solution(self, problem: Problem) -> str:
        steps = [
            self.CHANGES[which].code.format(i=numbers["i"] - 1, j=numbers["j"] - 1, k=numbers["k"])
            for which, numbers in problem.meta["steps"]
        ]
        end = "print([number for row in matrix for number in row])"
        return "\n".join([f"matrix = {problem.meta['matrix']}", *steps, end])


def _square(side: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(side), repeat=2))


class PatternRecognition(Symbench):
    """Find the one place in a grid of letters where a pattern occurs."""

    name = "pattern_recognition"
    SIDES = (6, 12)
    KINDS = (4, 6)  # different letters
    # name of the letter that is asked for, and offsets from it, of shapes of equal letters
    EQUAL = {
        "a square of 2 x 2 letters": ("its top left letter", _square(2)),
        "a square of 3 x 3 letters": ("its top left letter", _square(3)),
        "a horizontal line of 4 letters": ("its left end", [(0, i) for i in range(4)]),
        "a vertical line of 4 letters": ("its upper end", [(i, 0) for i in range(4)]),
        "a diagonal of 4 letters running down to the right": ("its upper end", [(i, i) for i in range(4)]),
        "a diagonal of 4 letters running down to the left": ("its upper end", [(i, -i) for i in range(4)]),
        "a plus sign of a letter and its four neighbours": ("its middle", [(0, 0), *LightPuzzles.PLUS]),
    }
    PATTERNS = (2, 3)  # sides of a pattern that is shown
    HIDDEN = 1 / 3  # the largest share of its places that may hold any letter
    SHOWN = 0.5  # share of questions that show a pattern
    code = """DATA
for row in range(len(grid)):
    for column in range(len(grid[0])):
        cells = [(row + dr, column + dc) for dr, dc in offsets]
        if all(0 <= r < len(grid) and 0 <= c < len(grid[0]) for r, c in cells):
            found = "".join(grid[r][c] for r, c in cells)
            fits = all(w in ("?", f) for w, f in zip(wanted, found)) if wanted else len(set(found)) == 1
            if fits:
                print(f"{row},{column}")"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        kinds = rng.sample(LETTERS, rng.randint(*self.KINDS))
        words, place, offsets, wanted = (self.shown if rng.random() < self.SHOWN else self.equal)(rng, kinds)
        while True:
            grid = [rng.choices(kinds, k=rng.randint(*self.SIDES))]
            grid += [rng.choices(kinds, k=len(grid[0])) for _ in range(rng.randint(*self.SIDES) - 1)]
            row, column = rng.choice(self.places(grid, offsets))
            same = rng.choice(kinds) * len(offsets)
            for (dr, dc), letter in zip(offsets, wanted or same, strict=True):
                if letter != "?":
                    grid[row + dr][column + dc] = letter
            rows = ["".join(letters) for letters in grid]
            if self.count(rows, offsets, wanted) == 1:
                break
        question = (
            "Rows and columns of this grid of letters are numbered from 0:\n" + "\n".join(rows) + "\n"
            f"There is exactly one place in it {words}\nWhere is {place}? Give its row and its column, "
            "separated by a comma, such as 3,0."
        )
        meta = {"grid": rows, "offsets": offsets, "wanted": wanted}
        return Problem(self.name, index, question, f"{row},{column}", meta)

    def equal(self, rng: random.Random, kinds: list[str]) -> tuple[str, str, list, str]:
        """Words for the pattern and the letter asked for, offsets from it, "" for letters that are equal."""
        words = rng.choice(list(self.EQUAL))
        return f"where all letters of {words} are equal.", *self.EQUAL[words], ""

    def shown(self, rng: random.Random, kinds: list[str]) -> tuple[str, str, list, str]:
        """The same for a rectangle of given letters, some of which may be any."""
        height, width = rng.randint(*self.PATTERNS), rng.randint(*self.PATTERNS)
        cells = list(itertools.product(range(height), range(width)))
        hidden = rng.sample(cells[1:], rng.randint(0, int(len(cells) * self.HIDDEN)))
        letters = {cell: "?" if cell in hidden else rng.choice(kinds) for cell in cells}
        rows = "\n".join("".join(letters[r, c] for c in range(width)) for r in range(height))
        words = f"that looks like this pattern, in which ? stands for any letter:\n{rows}"
        return words, "its top left letter", cells, "".join(letters.values())

    def places(self, grid: list, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Where the pattern can lie."""
        (top, bottom), (left, right) = ((min(side), max(side)) for side in zip(*offsets, strict=True))
        return list(
            itertools.product(range(-top, len(grid) - bottom), range(-left, len(grid[0]) - right)),
        )

    def count(self, rows: list[str], offsets: list[tuple[int, int]], wanted: str) -> int:
        """How often the pattern occurs."""
        count = 0
        for row, column in self.places(rows, offsets):
            found = [rows[row + dr][column + dc] for dr, dc in offsets]
            if wanted:
                count += not any(w != "?" and w != f for w, f in zip(wanted, found, strict=True))
            else:
                count += found.count(found[0]) == len(found)
        return count

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return exact(integers(answer), integers(problem.answer), "a row and a column")


class LogicPuzzle(Symbench):
    """Mark numbers of a grid so that rows and columns have given sums or products; several ways may do."""

    name = "logic_puzzle"
    SIDES = (3, 5)
    LARGEST = 9
    MARKED = 0.45  # share of marked numbers
    code = """from itertools import combinations, product
from math import prod

DATA
combine = sum if rule == "sum" else prod

def choices(row, target):
    columns = range(len(row))
    subsets = [s for size in range(1, len(row) + 1) for s in combinations(columns, size)]
    return [s for s in subsets if combine(row[c] for c in s) == target]

# All ways to be right in every row; keep one that is right in every column.
for chosen in product(*map(choices, grid, row_targets)):
    columns = [[row[c] for row, s in zip(grid, chosen) if c in s] for c in range(len(grid[0]))]
    if all(column and combine(column) == t for column, t in zip(columns, column_targets)):
        print(", ".join(f"{r} {c}" for r, s in enumerate(chosen) for c in s))
        break"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        height, width = rng.randint(*self.SIDES), rng.randint(*self.SIDES)
        grid = [[rng.randint(1, self.LARGEST) for _ in range(width)] for _ in range(height)]
        marked = self.draw(rng, height, width)
        rule = rng.choice(("sum", "product"))
        row_targets, column_targets = self.totals(grid, marked, rule)
        question = (
            f"Mark some of the numbers in this grid:\n{lines(grid)}\nRows are numbered from 0 at the top and "
            f"columns from 0 at the left. In each row and in each column at least one number is marked, and "
            f"the {rule} of the marked numbers (a single marked number counts as its own {rule}) is:\n"
            f"rows, from 0 on: {', '.join(map(str, row_targets))}\n"
            f"columns, from 0 on: {', '.join(map(str, column_targets))}\n"
            "Give the positions of all marked numbers, each as row and column, separated by commas, such as "
            "0 2, 1 0. If several ways are possible, give any one of them."
        )
        answer = ", ".join(f"{r} {c}" for r, c in sorted(marked))
        meta = {"grid": grid, "rule": rule, "row_targets": row_targets, "column_targets": column_targets}
        return Problem(self.name, index, question, answer, meta)

    def draw(self, rng: random.Random, height: int, width: int) -> set[tuple[int, int]]:
        """Cells to mark, at least one in every row and column."""
        cells = itertools.product(range(height), range(width))
        marked = {cell for cell in cells if rng.random() < self.MARKED}
        for row in range(height):
            if all(r != row for r, _ in marked):
                marked.add((row, rng.randrange(width)))
        for column in range(width):
            if all(c != column for _, c in marked):
                marked.add((rng.randrange(height), column))
        return marked

    def totals(self, grid: Grid, marked: set[tuple[int, int]], rule: str) -> tuple[list[int], list[int]]:
        """Sums or products of the marked numbers of the rows and of the columns; 0 where none is marked."""
        combine = sum if rule == "sum" else math.prod
        groups = [[[grid[r][c] for r, c in marked if r == row] for row in range(len(grid))]]
        groups += [[[grid[r][c] for r, c in marked if c == column] for column in range(len(grid[0]))]]
        rows, columns = ([combine(line) if line else 0 for line in side] for side in groups)
        return rows, columns

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given, meta = pairs(answer), problem.meta
        if not given:
            return Grade(False, "expected pairs of row and column")
        grid, cells = meta["grid"], set(given)
        if len(cells) < len(given) or not all(
            r in range(len(grid)) and c in range(len(grid[0])) for r, c in cells
        ):
            return Grade(False, "a position stands twice or is not in the grid")
        rows, columns = self.totals(grid, cells, meta["rule"])
        checks = [(rows == meta["row_targets"], f"the rows give {rows}, not {meta['row_targets']}")]
        checks += [
            (columns == meta["column_targets"], f"the columns give {columns}, not {meta['column_targets']}")
        ]
        return first_broken(checks)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Pooling(),
        Reversi(),
        LightPuzzles(),
        Game2048(),
        MatrixTransformation(),
        PatternRecognition(),
        LogicPuzzle(),
    )
}
