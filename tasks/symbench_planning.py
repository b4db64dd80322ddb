"""SymBench's tasks on plans and puzzles: Sudoku, stacks of blocks, boxes, a robot on a grid, the game of 24.

Many answers can be right, so every grade() carries the answer out and looks at where it leads. Plans are
drawn first and the questions made from them, so that each can be solved. The class constants set how hard
the questions are.
"""

import ast
import itertools
import operator
import random
import re
from collections import deque
from collections.abc import Sequence
from fractions import Fraction

from tasks import Grade, Problem, Task
from tasks.answers import integers, operators, pairs, untypeset

Cell = tuple[int, int]
Stacks = tuple[str, ...]  # one string of block letters per stack, from the bottom to the top
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


def sudoku_solutions(cells: Sequence[int], limit: int) -> list[list[int]]:
    """The first `limit` ways to fill 81 cells (row by row, 0 = empty), the cell with fewest choices first.

    A set of digits is an integer whose bit d stands for digit d."""
    cells, found = list(cells), []
    units = [(i // 9, 9 + i % 9, 18 + i // 27 * 3 + i % 9 // 3) for i in range(81)]  # row, column, block
    used = [0] * 27
    for i, digit in enumerate(cells):
        for unit in units[i] if digit else ():
            used[unit] |= 1 << digit

    def fill(empty: list[int]) -> None:
        if not empty:
            found.append(cells[:])
            return
        fewest, best, choices = 10, 0, 0
        for i in empty:
            row, column, block = units[i]
            free = ~(used[row] | used[column] | used[block]) & 0x3FE
            if (count := free.bit_count()) < fewest:
                fewest, best, choices = count, i, free
                if count < 2:
                    break
        rest = [i for i in empty if i != best]
        while choices and len(found) < limit:
            bit = choices & -choices
            choices ^= bit
            cells[best] = bit.bit_length() - 1
            for unit in units[best]:
                used[unit] ^= bit
            fill(rest)
            for unit in units[best]:
                used[unit] ^= bit
        cells[best] = 0

    fill([i for i, digit in enumerate(cells) if not digit])
    return found


class StandardSudoku(Task):
    """A Sudoku of 9 x 9 with one solution."""

    name, suite = "standard_sudoku", "symbench"
    HOLES = (25, 52)  # cells emptied at first; some are filled again until there is only one solution
    PROGRAM = """\
def free(r, c):
    used = {*grid[r], *(row[c] for row in grid)}
    used |= {grid[i][j] for i in range(r // 3 * 3, r // 3 * 3 + 3) for j in range(c // 3 * 3, c // 3 * 3 + 3)}
    return set(range(1, 10)) - used

def solve():
    empty = [(r, c) for r in range(9) for c in range(9) if grid[r][c] == 0]
    if not empty:
        return True
    r, c = min(empty, key=lambda cell: len(free(*cell)))  # the cell with the fewest choices
    for digit in free(r, c):
        grid[r][c] = digit
        if solve():
            return True
    grid[r][c] = 0
    return False

solve()
for row in grid:
    print(*row)
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        digits = rng.sample(range(1, 10), 9)
        # a cyclic pattern is a Sudoku, and remains one when lines are reordered within bands, and bands
        rows, columns = (
            [3 * b + i for b in rng.sample(range(3), 3) for i in rng.sample(range(3), 3)] for _ in "rc"
        )
        full = [digits[(3 * (r % 3) + r // 3 + c) % 9] for r in rows for c in columns]
        holes = set(rng.sample(range(81), rng.randint(*self.HOLES)))
        while True:
            cells = [0 if i in holes else digit for i, digit in enumerate(full)]
            others = [s for s in sudoku_solutions(cells, 2) if s != full]
            if not others:
                break
            holes.remove(rng.choice([i for i in sorted(holes) if others[0][i] != full[i]]))
        shown = "\n".join(" ".join(str(d or "_") for d in cells[9 * r : 9 * r + 9]) for r in range(9))
        question = (
            f"Solve this Sudoku; empty cells are shown as _:\n{shown}\n\nIn the full grid, each row, each "
            "column and each of the nine blocks of 3 x 3 cells holds the digits 1 to 9 once, and the "
            "digits shown stay where they are. Answer with the full grid: nine rows of nine digits separated "
            "by spaces."
        )
        answer = "\n".join(" ".join(map(str, full[9 * r : 9 * r + 9])) for r in range(9))
        return Problem(self.name, index, question, answer, {"cells": cells})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        cells = re.sub(r"[\s,;|\[\](){}\"'`]|\.\s*$", "", untypeset(answer))
        if not re.fullmatch("[1-9]{81}", cells):
            return Grade(False, "expected 81 digits from 1 to 9, and nothing else")
        if any(given and given != int(cells[i]) for i, given in enumerate(problem.meta["cells"])):
            return Grade(False, "a digit that was shown has changed")
        for name, place in (
            ("row", lambda i: i // 9),
            ("column", lambda i: i % 9),
            ("block", lambda i: i // 27 * 3 + i % 9 // 3),
        ):
            if len({(place(i), digit) for i, digit in enumerate(cells)}) < 81:
                return Grade(False, f"a {name} holds a digit twice")
        return Grade(True, "all rules hold")

    def solution(self, problem: Problem) -> str:
        cells = problem.meta["cells"]
        rows = ",\n    ".join(str(cells[9 * r : 9 * r + 9]) for r in range(9))
        return f"grid = [\n    {rows},\n]\n\n{self.PROGRAM}"


class Blocksworld(Task):
    """Blocks in numbered stacks are moved one at a time, from top to top, until they stand as asked."""

    name, suite = "blocksworld", "symbench"
    BLOCKS, STACKS, MIXING = (4, 8), (3, 4), 4  # MIXING: random moves per block between start and goal
    PROGRAM = """\
def missing(stacks):  # blocks that still have to be moved: those that do not stand as in the goal
    return sum(len(s) - len(commonprefix([s, g])) for s, g in zip(stacks, goal))

# best-first search: the plan so far counts once, the blocks still to be moved twice
queue, seen = [(0, start, [])], {start}
while queue:
    _, stacks, plan = heapq.heappop(queue)
    if stacks == goal:
        break
    for s, t in itertools.permutations(range(len(stacks)), 2):
        if stacks[s]:
            after = list(stacks)
            block, after[s] = stacks[s][-1], stacks[s][:-1]
            after[t] += block
            after = tuple(after)
            if after not in seen:
                seen.add(after)
                moves = plan + [f"Move {block} from {s + 1} to {t + 1}"]
                heapq.heappush(queue, (len(moves) + 2 * missing(after), after, moves))
print("\\n".join(plan))
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        stacks = [""] * rng.randint(*self.STACKS)
        blocks = "ABCDEFGHIJ"[: rng.randint(*self.BLOCKS)]
        for block in rng.sample(blocks, len(blocks)):
            stacks[rng.randrange(len(stacks))] += block
        start = tuple(stacks)
        states, plan = [start], []
        for mixed in itertools.count():
            if mixed >= self.MIXING * len(blocks) and states[-1] != start:
                break
            move = rng.choice(list(self._moves(states[-1])))
            states.append(self.moved(states[-1], *move))
            plan.append(move)
            first = states.index(states[-1])  # back at an earlier state: the detour is no part of the plan
            del states[first + 1 :], plan[first:]
        question = (
            f"Blocks stand in {len(stacks)} numbered stacks. Each stack is listed from the bottom to the "
            f"top.\nNow:\n{self._shown(start)}\nGoal:\n{self._shown(states[-1])}\n\n"
            "In one move, the top block of a stack is put on top of another stack, which may be empty. Give "
            "moves that lead from the present stacks to exactly the goal. Answer with one move a line, in "
            "the form: Move B from 1 to 2"
        )
        names = [f"Move {states[i][s][-1]} from {s + 1} to {t + 1}" for i, (s, t) in enumerate(plan)]
        meta = {"start": start, "goal": states[-1]}
        return Problem(self.name, index, question, "\n".join(names), meta)

    @staticmethod
    def _moves(stacks: Stacks) -> list[tuple[int, int]]:
        return [(s, t) for s, t in itertools.permutations(range(len(stacks)), 2) if stacks[s]]

    @staticmethod
    def moved(stacks: Stacks, s: int, t: int) -> Stacks:
        """The stacks after the top of stack s has been put on stack t (counted from 0)."""
        after = list(stacks)
        after[s], after[t] = stacks[s][:-1], stacks[t] + stacks[s][-1]
        return tuple(after)

    @staticmethod
    def _shown(stacks: Stacks) -> str:
        return "\n".join(f"stack {i}: {' '.join(s) or '(empty)'}" for i, s in enumerate(stacks, 1))

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        stacks = problem.meta["start"]
        form = r"(?:\d+[.):]\s*)?move\s+(?:block\s*)?([a-z])\s+from\s+(?:stack\s*)?([1-9])"
        form += r"\s+to\s+(?:stack\s*)?([1-9])"
        for line in re.split(r"[\n,;]", untypeset(answer)):
            line = line.strip(" \t\r[]()'\"`.")
            if not line:
                continue
            if not (move := re.fullmatch(form, line, re.IGNORECASE | re.ASCII)):
                return Grade(False, f"{line!r} is not of the form Move B from 1 to 2")
            block, s, t = move[1].upper(), int(move[2]) - 1, int(move[3]) - 1
            if s == t or max(s, t) >= len(stacks) or not stacks[s].endswith(block):
                return Grade(False, f"{line!r} is not possible: the stacks are {stacks}")
            stacks = self.moved(stacks, s, t)
        goal = problem.meta["goal"]
        return Grade(stacks == goal, f"the stacks are {stacks} at the end, {goal} expected")

    def solution(self, problem: Problem) -> str:
        return (
            "import heapq\nimport itertools\nfrom os.path import commonprefix\n\n"
            "# one string of blocks per stack, from the bottom to the top\n"
            f"start = {problem.meta['start']}\ngoal = {problem.meta['goal']}\n\n{self.PROGRAM}"
        )


Lift = tuple[int, tuple[int, ...]]  # a weight and the numbers of the lifters that lift it together


class BoxLift(Task):
    """Lifters work together to lift boxes, each box once, in few steps.

    The limit is what a greedy plan needs: heaviest box first, with the lifters that waste least."""

    name, suite = "boxlift", "symbench"
    LIFTERS, STRENGTH, BOXES, WEIGHT = (3, 6), (20, 90), (4, 12), (10, 250)
    PROGRAM = """\
def groups(free):
    return [g for n in range(1, len(free) + 1) for g in itertools.combinations(free, n)]

waiting, lines = sorted(boxes, reverse=True), []
while waiting:  # one step: the heaviest boxes first, each with the lifters that waste least strength
    free, step = list(range(len(lifters))), []
    for weight in list(waiting):
        able = [g for g in groups(free) if sum(lifters[i] for i in g) >= weight]
        if able:
            best = min(able, key=lambda g: (sum(lifters[i] for i in g), len(g)))
            free = [i for i in free if i not in best]
            waiting.remove(weight)
            step.append(f"({weight}, {list(best)})")
    lines.append(f"Step {len(lines) + 1}: [{', '.join(step)}]")
print("\\n".join(lines))
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        lifters = [rng.randint(*self.STRENGTH) for _ in range(rng.randint(*self.LIFTERS))]
        heaviest = min(self.WEIGHT[1], sum(lifters))
        boxes = rng.sample(range(self.WEIGHT[0], heaviest + 1), rng.randint(*self.BOXES))
        plan = self.plan(lifters, boxes)
        strengths = "\n".join(f"lifter {i}: {strength}" for i, strength in enumerate(lifters))
        question = (
            f"{len(boxes)} boxes with the weights {boxes} have to be lifted. The lifters can lift at most:\n"
            f"{strengths}\n\nIn a step, several boxes can be lifted, each by one lifter or by several "
            "together, whose strengths must add up to at least its weight. A lifter works on at most one box "
            f"per step. Each box must be lifted exactly once. Find a plan of at most {len(plan)} steps. "
            "Boxes are named by their weights. Answer with one line per step, numbered from 1, in the form:\n"
            "Step 1: [(50, [0, 2]), (30, [1])]"
        )
        steps = [", ".join(f"({weight}, {list(group)})" for weight, group in step) for step in plan]
        lines = [f"Step {i}: [{step}]" for i, step in enumerate(steps, 1)]
        meta = {"lifters": lifters, "boxes": boxes, "steps": len(plan)}
        return Problem(self.name, index, question, "\n".join(lines), meta)

    @staticmethod
    def plan(lifters: Sequence[int], boxes: Sequence[int]) -> list[list[Lift]]:
        """The greedy plan. A group of lifters is an integer with a bit for each of them."""
        every = (1 << len(lifters)) - 1
        strength = [sum(s for i, s in enumerate(lifters) if g >> i & 1) for g in range(every + 1)]
        order = sorted(range(1, every + 1), key=lambda g: (strength[g], g.bit_count(), g))
        waiting, plan = sorted(boxes, reverse=True), []
        while waiting:
            free, step = every, []
            for weight in waiting:
                group = next((g for g in order if g & free == g and strength[g] >= weight), 0)
                free ^= group
                if group:
                    step.append((weight, tuple(i for i in range(len(lifters)) if group >> i & 1)))
            waiting = [w for w in waiting if w not in dict(step)]
            plan.append(step)
        return plan

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        lifters, waiting = problem.meta["lifters"], list(problem.meta["boxes"])
        before, *steps = re.split(r"step\s*(\d{1,4})\s*:", untypeset(answer), flags=re.IGNORECASE | re.ASCII)
        if before.strip(" \t\r\n[('\"`") or len(steps) > 2 * problem.meta["steps"]:
            return Grade(False, f"expected at most {problem.meta['steps']} steps and nothing else")
        if list(map(int, steps[::2])) != list(range(1, len(steps) // 2 + 1)):
            return Grade(False, "the steps are not numbered 1, 2, 3 ...")
        for i, text in enumerate(steps[1::2], 1):
            if (step := self._read(text)) is None:
                return Grade(False, f"step {i} is not of the form [(50, [0, 2]), (30, [1])]")
            busy = [lifter for _, group in step for lifter in group]
            if len(set(busy)) < len(busy) or not set(busy) <= set(range(len(lifters))):
                return Grade(False, f"step {i} uses a lifter twice, or one that there is not")
            for weight, group in step:
                if weight not in waiting:
                    return Grade(False, f"step {i}: no box of weight {weight} is waiting")
                if sum(lifters[lifter] for lifter in group) < weight:
                    return Grade(False, f"step {i}: lifters {group} are too weak for {weight}")
                waiting.remove(weight)
        return Grade(not waiting, f"not lifted: {waiting}")

    @staticmethod
    def _read(text: str) -> list[Lift] | None:
        """The lifts of a step; each is a group of integers in round brackets, the weight first."""
        text = re.sub(r"[\[\]\"'`\s]+", " ", text)
        groups = [integers(group) for group in re.findall(r"\(([^()]*)\)", text)]
        if re.sub(r"\([^()]*\)", "", text).strip(" ,.;") or not all(g and len(g) > 1 for g in groups):
            return None
        return [(weight, tuple(lifters)) for weight, *lifters in groups]

    def solution(self, problem: Problem) -> str:
        meta = problem.meta
        return f"import itertools\n\nlifters = {meta['lifters']}\nboxes = {meta['boxes']}\n\n{self.PROGRAM}"


class BoxNet(Task):
    """Arms in the cells of a grid hand boxes to neighbouring cells until each is where it belongs."""

    name, suite = "boxnet", "symbench"
    ROWS, COLUMNS, BOXES, MIXING = (2, 4), (3, 4), (2, 4), 12  # MIXING: random moves per box to its goal
    PROGRAM = """\
def distance(state):
    return sum(abs(r - gr) + abs(c - gc) for (r, c), (gr, gc) in zip(state, goal))

# best-first search over the places of all boxes, one box moved per step
queue, before = [(0, start)], {start: None}
while queue:
    _, state = heapq.heappop(queue)
    if state == goal:
        break
    for i, (r, c) in enumerate(state):
        for cell in ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)):
            after = state[:i] + (cell,) + state[i + 1:]
            inside = 0 <= cell[0] < rows and 0 <= cell[1] < columns
            if inside and cell not in state and after not in before:
                before[after] = state
                heapq.heappush(queue, (distance(after), after))
path = []
while state is not None:
    path.append(dict(zip(names, map(list, state))))
    state = before[state]
print(json.dumps(path[::-1]))
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        rows, columns = rng.randint(*self.ROWS), rng.randint(*self.COLUMNS)
        count = rng.randint(*self.BOXES)
        path = [tuple(rng.sample([(r, c) for r in range(rows) for c in range(columns)], count))]
        for mixed in itertools.count():
            if mixed >= self.MIXING * count and path[-1] != path[0]:
                break
            i, (dr, dc) = rng.randrange(count), rng.choice(MOVES)
            cell = path[-1][i][0] + dr, path[-1][i][1] + dc
            if 0 <= cell[0] < rows and 0 <= cell[1] < columns and cell not in path[-1]:
                path.append((*path[-1][:i], cell, *path[-1][i + 1 :]))
                del path[path.index(path[-1]) + 1 :]  # no detours
        names = "ABCD"[:count]
        lines = [
            f"box {n}: from {list(a)} to {list(b)}" for n, a, b in zip(names, path[0], path[-1], strict=True)
        ]
        question = (
            f"Boxes stand in a grid of {rows} rows and {columns} columns; a cell is written [row, column], "
            "both counted from 0. Each box has to be brought to its goal:\n" + "\n".join(lines) + "\n\n"
            "Every cell has an arm that can put a box of its cell into a cell next to it (up, down, left or "
            "right). In one step, any number of boxes may be moved, each to one neighbouring cell; the "
            "others stay. After every step each cell holds at most one box, and two boxes may not exchange "
            "their cells in one step. Give the places of all boxes at the start and after every step, up to "
            "the step that brings all boxes to their goals. Answer with a list of such states, in the form:\n"
            '[{"A": [0, 0], "B": [1, 2]}, {"A": [0, 1], "B": [1, 2]}]'
        )
        states = [dict(zip(names, map(list, s), strict=True)) for s in path]
        meta = {"rows": rows, "columns": columns, "start": path[0], "goal": path[-1], "names": names}
        return Problem(self.name, index, question, str(states).replace("'", '"'), meta)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        meta, states = problem.meta, self._read(untypeset(answer))
        if not states or any(sorted(state) != list(meta["names"]) for state in states):
            return Grade(False, 'expected states of all boxes, in the form [{"A": [0, 0], "B": [1, 2]}, ...]')
        places = [tuple(state[name] for name in meta["names"]) for state in states]
        if places[0] != meta["start"] or places[-1] != meta["goal"]:
            return Grade(False, "the first state is not the start, or the last is not the goal")
        for i, (old, new) in enumerate(itertools.pairwise(places), 1):
            if any(not (0 <= r < meta["rows"] and 0 <= c < meta["columns"]) for r, c in new):
                return Grade(False, f"step {i} leaves the grid")
            if any(abs(r - s) + abs(c - d) > 1 for (r, c), (s, d) in zip(old, new, strict=True)):
                return Grade(False, f"step {i} moves a box further than to a neighbouring cell")
            if len(set(new)) < len(new):
                return Grade(False, f"two boxes share a cell after step {i}")
            if any(
                old[a] == new[b] and old[b] == new[a] for a, b in itertools.combinations(range(len(old)), 2)
            ):
                return Grade(False, f"two boxes exchange their cells in step {i}")
        return Grade(True, "all boxes reach their goals")

    @staticmethod
    def _read(text: str) -> list[dict[str, Cell]] | None:
        text = re.sub(r"[\"'`\s]+", " ", text)
        entry = r"([A-D]) ?: ?[\[(]? ?([0-9]{1,3})[ ,]+([0-9]{1,3}) ?[\])]?"
        inner = re.findall(r"\{([^{}]*)\}", text)
        if re.sub(r"\{[^{}]*\}", "", text).strip(" [](),."):
            return None
        if any(re.sub(entry, "", state, flags=re.IGNORECASE).strip(" ,") for state in inner):
            return None
        found = [re.findall(entry, state.upper()) for state in inner]
        if any(len({name for name, *_ in state}) < len(state) for state in found):
            return None
        return [{name: (int(r), int(c)) for name, r, c in state} for state in found]

    def solution(self, problem: Problem) -> str:
        meta = problem.meta
        return (
            f"import heapq\nimport json\n\nrows, columns = {meta['rows']}, {meta['columns']}\n"
            f'names = "{meta["names"]}"\nstart = {meta["start"]}\ngoal = {meta["goal"]}\n\n{self.PROGRAM}'
        )


class GridWorld(Task):
    """A robot walks over a grid with obstacles and visits all goals, in any order and by any way."""

    name, suite = "gridworld", "symbench"
    SIZE, OBSTACLES, GOALS = (4, 10), (0.1, 0.35), (2, 6)  # OBSTACLES: share of the cells
    PROGRAM = """\
cells = {(r, c): mark for r, row in enumerate(grid) for c, mark in enumerate(row) if mark != "#"}
path = [cell for cell, mark in cells.items() if mark == "S"]
goals = {cell for cell, mark in cells.items() if mark == "G"}
while goals:  # breadth-first search for the nearest goal
    queue, before = deque([path[-1]]), {path[-1]: None}
    while queue[0] not in goals:
        r, c = queue.popleft()
        for cell in ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)):
            if cell in cells and cell not in before:
                before[cell] = r, c
                queue.append(cell)
    cell, way = queue[0], []
    goals.remove(cell)
    while before[cell]:
        way.append(cell)
        cell = before[cell]
    path += way[::-1]
print(path)
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        while True:
            rows, columns = rng.randint(*self.SIZE), rng.randint(*self.SIZE)
            share = rng.uniform(*self.OBSTACLES)
            free = [(r, c) for r in range(rows) for c in range(columns) if rng.random() > share]
            start = rng.choice(free or [(0, 0)])
            near = sorted(set(self._search(set(free), start)) - {start})
            if len(near) > self.GOALS[1]:
                break
        goals = rng.sample(near, rng.randint(*self.GOALS))
        marks = dict.fromkeys(free, ".") | dict.fromkeys(goals, "G") | {start: "S"}
        grid = ["".join(marks.get((r, c), "#") for c in range(columns)) for r in range(rows)]
        shown = "\n".join(grid)
        question = (
            "A robot stands at S on this grid; G are its goals, # are obstacles, . are free cells:\n"
            f"{shown}\n\nA cell is (row, column), both counted from 0 at the top left. In one step the robot "
            "goes up, down, left or right to the next cell, never onto an obstacle or off the grid. Find a "
            "path that visits every goal, in any order; it may use a cell more than once and need not be the "
            "shortest. Answer with the list of the cells of the path, from S to the last goal, such as [(0, "
            "0), (0, 1), (1, 1)]."
        )
        path = [start]
        for goal in goals:
            before, way, cell = self._search(set(free), goal), [], path[-1]
            while cell != goal:  # the search from the goal tells the way to it
                cell = before[cell]
                way.append(cell)
            path += way
        meta = {"grid": grid, "start": start, "goals": goals}
        return Problem(self.name, index, question, str(path), meta)

    @staticmethod
    def _search(free: set[Cell], start: Cell) -> dict[Cell, Cell]:
        """For each cell that can be reached, the next one on a shortest way to `start`."""
        queue, before = deque([start]), {start: start}
        while queue:
            r, c = queue.popleft()
            for dr, dc in MOVES:
                cell = r + dr, c + dc
                if cell in free and cell not in before:
                    before[cell] = r, c
                    queue.append(cell)
        return before

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        grid, path = problem.meta["grid"], pairs(re.sub("[\"'`]", "", untypeset(answer)))
        if not path or path[0] != problem.meta["start"]:
            return Grade(False, f"expected a list of cells that begins with {problem.meta['start']}")
        for i, (r, c) in enumerate(path):
            if not (0 <= r < len(grid) and 0 <= c < len(grid[0])) or grid[r][c] == "#":
                return Grade(False, f"({r}, {c}) is an obstacle or off the grid")
            if i and abs(r - path[i - 1][0]) + abs(c - path[i - 1][1]) != 1:
                return Grade(False, f"({r}, {c}) is not next to {path[i - 1]}")
        missed = set(problem.meta["goals"]) - set(path)
        return Grade(not missed, f"goals not visited: {sorted(missed)}")

    def solution(self, problem: Problem) -> str:
        rows = ",\n    ".join(f'"{row}"' for row in problem.meta["grid"])
        return f"from collections import deque\n\ngrid = [\n    {rows},\n]\n{self.PROGRAM}"


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculation(text: str) -> tuple[Fraction, list[int]] | None:
    """The exact value of a calculation with + - * / and brackets, and the numbers in it; None if it is none.

    >>> calculation("8 / (3 - 8/3)")
    (Fraction(24, 1), [8, 3, 8, 3])
    """
    if not re.fullmatch(r"[0-9+\-*/() ]{1,120}", text):
        return None
    numbers = []

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            numbers.append(node.value)
            return Fraction(node.value)
        if not isinstance(node, ast.BinOp) or type(node.op) not in OPERATORS:
            raise ValueError("only + - * / are allowed")
        return OPERATORS[type(node.op)](value(node.left), value(node.right))

    try:
        return value(ast.parse(text.strip(), mode="eval").body), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, MemoryError):  # MemoryError: brackets too deep
        return None


class Game24(Task):
    """Four numbers, each used once, and + - * / make 24."""

    name, suite = "game24", "symbench"
    HIGHEST = (9, 13, 20)  # largest number of a question, one of these
    PROGRAM = """\
def search(items):  # items: (value, how it was made)
    if len(items) == 1:
        return items[0][1] if items[0][0] == 24 else None
    for (a, x), (b, y) in itertools.permutations(items, 2):
        rest = list(items)
        rest.remove((a, x))
        rest.remove((b, y))
        made = [(a + b, f"({x} + {y})"), (a - b, f"({x} - {y})"), (a * b, f"({x} * {y})")]
        if b:
            made.append((a / b, f"({x} / {y})"))
        for item in made:
            if found := search([*rest, item]):
                return found
    return None

print(search([(Fraction(n), str(n)) for n in numbers]))
"""

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        highest = rng.choice(self.HIGHEST)
        text, numbers = "", []
        while not text:
            text, numbers = self._drawn(rng, highest)
        rng.shuffle(numbers)
        question = (
            f"Make 24 from the numbers {', '.join(map(str, numbers))}: write a calculation that uses each of "
            "these four numbers exactly once (a number that is listed twice, twice), only the operations "
            "+ - * / and brackets, and whose value is exactly 24. Answer with the calculation alone, such as "
            "(1 + 2) * 3 - 4."
        )
        return Problem(self.name, index, question, text, {"numbers": numbers})

    @staticmethod
    def _drawn(rng: random.Random, highest: int) -> tuple[str, list[int]]:
        """A calculation of 24 and its numbers, three drawn and the fourth what is missing; "" if that is no
        number that may be used."""
        a, b, c = (rng.randint(1, highest) for _ in range(3))
        x, text = rng.choice([(a + b, f"({a} + {b})"), (a - b, f"({a} - {b})"), (a * b, f"({a} * {b})")])

        def missing(value: Fraction, target: Fraction) -> tuple[Fraction, str]:
            """A number and how it makes the target with a value."""
            ways = [(target - value, "({x} + {y})"), (value - target, "({x} - {y})")]
            ways += [(target + value, "({y} - {x})"), (target * value, "({y} / {x})")]
            ways += [(target / value, "({x} * {y})")] if value else []
            ways += [(value / target, "({x} / {y})")] if target else []
            return rng.choice(ways)

        if rng.random() < 0.5:  # ((a b) c) d
            x, text = rng.choice(
                [(x + c, f"({text} + {c})"), (x - c, f"({text} - {c})"), (x * c, f"({text} * {c})")]
            )
            d, way = missing(Fraction(x), Fraction(24))
            text = way.format(x=text, y=d)
        else:  # (a b) (c d)
            y, outer = missing(Fraction(x), Fraction(24))
            d, way = missing(Fraction(c), y)
            text = outer.format(x=text, y=way.format(x=c, y=d))
        usable = d.denominator == 1 and 1 <= d <= highest and (calculation(text) or [0])[0] == 24
        return text if usable else "", [a, b, c, int(d)]

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        text = operators(answer).translate(str.maketrans("[]", "()")).strip(" \t\r\n'\"`.")
        made = calculation(re.sub(r"=\s*24$", "", text))
        if made is None:
            return Grade(False, "expected a calculation with + - * / and brackets, and nothing else")
        value, numbers = made
        if sorted(numbers) != sorted(problem.meta["numbers"]):
            return Grade(False, f"uses {sorted(numbers)}, not {sorted(problem.meta['numbers'])}")
        return Grade(value == 24, f"its value is {value}")

    def solution(self, problem: Problem) -> str:
        data = f"numbers = {problem.meta['numbers']}\n\n"
        return f"import itertools\nfrom fractions import Fraction\n\n{data}{self.PROGRAM}"


TASKS: dict[str, Task] = {
    task.name: task for task in (StandardSudoku(), Blocksworld(), BoxLift(), BoxNet(), GridWorld(), Game24())
}
