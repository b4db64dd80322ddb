"""Readers of the samples that come as question.txt and solution.json: (text, gold) -> Sample.

Where the text says what to do, its answer is computed here from the text, and the published one is only kept
beside it. It decides where the text leaves open what is done first (string_synthesis, string_splitting,
string_deletion_and_modification, cryptanalysis); docs/data.md lists the published answers that contradict
their questions.
"""

import ast
import itertools
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from tasks import Grade, Problem, symbench_mathematics, symbench_numbers, symbench_planning, symbench_strings
from tasks.answers import integers, pairs
from tasks.published.reading import (
    SEVERAL,
    Sample,
    block,
    characters,
    counts,
    every,
    found,
    matrix,
    near,
    whole,
)
from tasks.symbench_numbers import first_broken, letters

OURS = symbench_numbers.TASKS | symbench_planning.TASKS | symbench_strings.TASKS | symbench_mathematics.TASKS


def ours(name: str, meta: dict, right: object = "") -> Callable[[str | None], Grade]:
    """The grader of our task of this name, for a question with this data."""
    problem = Problem(name, 0, "", right, meta)
    return lambda answer: OURS[name].grade(problem, answer)


def listed(values: list) -> str:
    return ", ".join(map(str, values))


def flat(rows: list[list]) -> list:
    return [cell for row in rows for cell in row]


# -- grids -----------------------------------------------------------------------------------------


def game_2048(text: str, gold: dict) -> Sample:
    """One number walks over the board: onto an empty cell, or into an equal number, which doubles."""
    asked = found(r"position \((\d+),\s*(\d+)\) using the sequence '([udlr]*)'", text, "start and moves")
    board = matrix(text)
    r, c = int(asked[1]) - 1, int(asked[2]) - 1
    if not (0 <= r < len(board) and 0 <= c < len(board[0])):
        raise ValueError(f"position ({asked[1]}, {asked[2]}) is not on the board")
    for move in asked[3]:
        dr, dc = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}[move]
        near_r, near_c = r + dr, c + dc
        if not (0 <= near_r < len(board) and 0 <= near_c < len(board[0])):
            continue
        value, other = board[r][c], board[near_r][near_c]
        if other in (0, value):
            board[r][c], board[near_r][near_c] = 0, value + other
            r, c = near_r, near_c
    return Sample(text, listed(flat(board)), whole(flat(board)), gold["solution"])


def pooling(text: str, gold: dict) -> Sample:
    """The largest, smallest or average number of every window, which moves by one cell."""
    kind = found(r"perform (max|min|average) pooling", text, "kind of pooling")[1]
    height, width = map(int, found(r"(\d+)\*(\d+) sliding window", text, "size of the window").groups())
    rows = matrix(text)
    reduce = {"max": max, "min": min, "average": lambda v: Fraction(sum(v), len(v))}[kind]
    if height > len(rows) or width > len(rows[0]):
        raise ValueError(f"a window of {height}*{width} is larger than the matrix")
    pooled = [
        Fraction(reduce([v for row in rows[r : r + height] for v in row[c : c + width]]))
        for r in range(len(rows) - height + 1)
        for c in range(len(rows[0]) - width + 1)
    ]
    return Sample(text, listed(pooled), near(pooled), listed(flat(gold["solution"])))


def reversi(text: str, gold: dict) -> Sample:
    """Moves on the board that the text shows. A disc cannot be put on a cell that is taken: such a move
    changes nothing. The published questions show the board after the moves, and have no others."""
    board = [list(row) for row in block(text, r"[01*]{2,}", "board")]
    mine = "01"[found(r"you play (black|white)", text, "colour")[1] == "white"]
    for who, row, column in every(r"(Your|opponent)'s landing position is \((\d+),\s*(\d+)\)", text, "moves"):
        r, c = int(row) - 1, int(column) - 1
        if not (0 <= r < len(board) and 0 <= c < len(board[0])):
            raise ValueError(f"landing position ({row},{column}) is not on the board")
        disc = mine if who == "Your" else "10"[int(mine)]
        if board[r][c] == "*":
            _place(board, r, c, disc)
    cells = flat(board)
    return Sample(text, ",".join(cells), characters(cells), gold["solution"])


def _place(board: list[list[str]], r: int, c: int, disc: str) -> None:
    """Put a disc on an empty cell and turn the lines of the other colour between it and another own disc."""
    cells = {(i, j): cell for i, row in enumerate(board) for j, cell in enumerate(row)}
    board[r][c] = disc
    for dr, dc in itertools.product((-1, 0, 1), repeat=2):
        line = itertools.takewhile(
            lambda place: cells.get(place) == "10"[int(disc)],
            ((r + k * dr, c + k * dc) for k in itertools.count(1)),
        )
        line = list(line) if (dr, dc) != (0, 0) else []
        if cells.get((r + (len(line) + 1) * dr, c + (len(line) + 1) * dc)) == disc:
            for i, j in line:
                board[i][j] = disc


def light_puzzles(text: str, gold: dict) -> Sample:
    """A button switches its lights, counted from 1."""
    lights = [[int(cell) for cell in row] for row in block(text, "[01]{2,}", "network of lights")]
    buttons = {}
    for name, places in every(r"Button (\w+) controls the lights at ([^\n]*)", text, "buttons"):
        buttons[name] = pairs(places) or []
        if not all(1 <= r <= len(lights) and 1 <= c <= len(lights[0]) for r, c in buttons[name] or [(0, 0)]):
            raise ValueError(f"button {name} has no lights, or lights outside the network")
    for name in every(r"Round \d+: Button (\w+)", text, "rounds"):
        if name not in buttons:
            raise ValueError(f"button {name} is pressed, but not described")
        for r, c in buttons[name]:
            lights[r - 1][c - 1] ^= 1
    return Sample(text, listed(flat(lights)), whole(flat(lights)), listed(gold["solution"]))


def matrix_transformation(text: str, gold: dict) -> Sample:
    """A matrix of single characters, turned by 90 degrees clockwise."""
    found("rotate this matrix 90 degrees clockwise", text, "rotation by 90 degrees clockwise")
    shown = found(r"If the matrix is\s*\n(.*?)\.?\s*\nWhat is the result", text, "matrix")[1]
    rows = [line.split() for line in shown.split("\n")]
    if len({len(row) for row in rows}) > 1 or any(len(cell) != 1 for cell in flat(rows)):
        raise ValueError("the matrix is no rectangle of single characters")
    turned = [list(column) for column in zip(*rows[::-1], strict=True)]
    return Sample(text, ",".join(flat(turned)), characters(flat(turned)), gold["formatted_solution"])


def pattern_recognition(text: str, gold: dict) -> Sample:
    """The lower right corner of a square of equal letters that lies in no larger one."""
    least = int(found(r"length of at least (\d+)", text, "least length of the square")[1])
    rows = [line.split() for line in block(text, "[A-Z](?: +[A-Z])+", "matrix of letters")]
    if len({len(row) for row in rows}) > 1:
        raise ValueError("the rows of the matrix have different lengths")
    side = {}  # of the largest square with its lower right corner here
    for r, c in itertools.product(range(len(rows)), range(len(rows[0]))):
        before = [(r - 1, c), (r, c - 1), (r - 1, c - 1)]
        same = all(p in side and rows[p[0]][p[1]] == rows[r][c] for p in before)
        side[r, c] = 1 + min(side[p] for p in before) if same else 1
    squares = {place: n for place, n in side.items() if n >= least}
    right = [
        (r, c)
        for (r, c), n in squares.items()
        if not any(m > n and 0 <= i - r <= m - n and 0 <= j - c <= m - n for (i, j), m in squares.items())
    ]
    if not right:
        raise ValueError(f"the matrix has no square of at least {least} equal letters")

    def grade(answer: str | None) -> Grade:
        given = integers(answer)
        return Grade(given is not None and tuple(given) in right, f"{given} given, expected one of {right}")

    return Sample(text, listed(right[0]), grade, f"[{gold['row']}, {gold['column']}]")


def logic_puzzle(text: str, gold: dict) -> Sample:
    """So many cells of a grid, the first one given, with a rule for every row and column. Their numbers may
    be equal, as for the benchmark's checker; some questions have no answer otherwise."""
    grid = matrix(text)
    count = int(found(r"must select (\d+) different numbers", text, "number of numbers")[1])
    first = tuple(map(int, found(r"square \((\d+),\s*(\d+)\) as the first", text, "first number").groups()))
    total = re.search(r"[Tt]he sum of the selected numbers .*?less than or equal to (-?\d+)", text)
    if not total:
        found(r"[Tt]he product of .*?must be greater than 0", text, "rule about sums or products")

    def holds(values: list[int]) -> bool:
        if total:
            return sum(values) <= int(total[1])
        return 0 not in values and sum(v < 0 for v in values) % 2 == 0

    def grade(answer: str | None) -> Grade:
        cells = pairs(answer)
        if not cells or not all(r in range(len(grid)) and c in range(len(grid[0])) for r, c in cells):
            return Grade(False, "expected positions in the grid, each as row and column")
        checks = [(len(cells) == count, f"{len(cells)} positions given, {count} expected")]
        checks += [(len(set(cells)) == len(cells), "a position stands twice")]
        checks += [(first in cells, f"the first number, at {first}, is missing")]
        for axis, name in enumerate(("row", "column")):
            for i in {cell[axis] for cell in cells}:
                line = [grid[r][c] for r, c in cells if (r, c)[axis] == i]
                checks.append((holds(line), f"{name} {i} breaks the rule: {line}"))
        return first_broken(checks)

    official = ", ".join(f"{r} {c}" for r, c in gold["solution"])
    return Sample(text, official if grade(official).correct else SEVERAL, grade, official)


def eight_queens(text: str, gold: dict) -> Sample:
    """A board with queens (1) that stay and cells (X) that stay empty; any placement that holds."""
    board = block(text, "[01X]{8}", "board")
    if len(board) != 8:
        raise ValueError(f"the board has {len(board)} rows; expected 8")
    places = {
        mark: [(r, c) for r, row in enumerate(board) for c, m in enumerate(row) if m == mark] for mark in "1X"
    }
    official = ", ".join(f"{r} {c}" for r, c in gold["solution"])
    meta = {"queens": places["1"], "blocked": places["X"]}
    return Sample(text, official, ours("eight_queens", meta), official)


def standard_sudoku(text: str, gold: dict) -> Sample:
    """Nine rows of nine cells, empty ones blank; any grid that holds."""
    rows = block(text, "[1-9]?(?: *, *[1-9]?){8}", "grid")
    if len(rows) != 9:
        raise ValueError(f"the grid has {len(rows)} rows; expected 9")
    cells = [int(cell.strip() or 0) for row in rows for cell in row.split(",")]
    official = "\n".join(",".join(map(str, row)) for row in gold["solution"])
    return Sample(text, official, ours("standard_sudoku", {"cells": cells}), official)


def letter_logic_diagram(text: str, gold: dict) -> Sample:
    """Rows of letters, empty cells blank; any grid that holds."""
    rows = block(text, "[a-g]?(?:,[a-g]?)+", "grid")
    grid = [row.split(",") for row in rows]
    if {len(row) for row in grid} != {len(grid)}:
        raise ValueError("the grid is no square")
    official = "\n".join(",".join(row) for row in gold["solution"])
    return Sample(text, official, ours("letter_logic_diagram", {"grid": grid}), official)


# -- numbers and letters -----------------------------------------------------------------------------


def combinatorial_calculation(text: str, gold: dict) -> Sample:
    """Numbers in a fixed order and a target; any expression that holds."""
    asked = found(
        r"input numbers are: ([\d, ]+?), the target values? is: (-?\d+)", text, "numbers and target"
    )
    meta = {"numbers": integers(asked[1]), "target": int(asked[2])}
    official = f"[{listed(gold['solution'])}]"
    return Sample(text, official, ours("combinatorial_calculation", meta), official)


def logical_equation(text: str, gold: list) -> Sample:
    """Letters and numbers, one each; equations and inequalities such as A - C = -44, I = 3.0D, C > H."""
    names = found(r"There are \d+ letters ([A-Z, ]+), each", text, "letters")[1].split(", ")
    values = integers(found(r"one of the numbers ([\d, -]+)\.", text, "numbers")[1])
    rules = [line.strip() for line in every(r"(?m)^\s*\d+\. (.+)$", text, "equations")]
    form = (
        r"(?:([A-Z]) ([-+]) ([A-Z])|([A-Z])) ([=<>]) (?:(-?\d+(?:\.\d+)?)?\s*\*?\s*([A-Z])|(-?\d+(?:\.\d+)?))"
    )
    parts = [re.fullmatch(form, rule) for rule in rules]
    for rule, part in zip(rules, parts, strict=True):
        if not part or not set(re.findall("[A-Z]", rule)) <= set(names):
            raise ValueError(f"{rule!r} is no equation or inequality of these letters")

    def holds(part: re.Match, at: dict[str, int]) -> bool:
        a, sign, b, alone, relation, factor, letter, constant = part.groups()
        left = at[alone] if alone else at[a] + (at[b] if sign == "+" else -at[b])
        right = Fraction(constant) if constant else Fraction(factor or 1) * at[letter]
        return {"=": operator.eq, "<": operator.lt, ">": operator.gt}[relation](left, right)

    def grade(answer: str | None) -> Grade:
        given = integers(answer)
        if given is None or sorted(given) != sorted(values):
            return Grade(False, f"expected the numbers {values}, in the order of the letters")
        at = dict(zip(names, given, strict=True))
        return first_broken([(holds(p, at), rule) for p, rule in zip(parts, rules, strict=True)])

    if len(names) != len(values):
        raise ValueError(f"{len(names)} letters, but {len(values)} numbers")
    return Sample(text, str(gold), grade, str(gold))


def permutations_and_combinations(text: str, gold: dict) -> Sample:
    """Books on a shelf, with rules about places and neighbours."""
    books = found(r"books labell?ed ([A-Z, ]+) on a shelf", text, "books")[1].split(", ")
    rules = every(r"(?m)^\s*\d+\. (.+?)\.?\s*$", text, "constraints")
    forms = {
        r"Book (\w) must be placed in position (\d+)": lambda at, a, k: at[a] == int(k),
        r"Book (\w) cannot be placed in position (\d+)": lambda at, a, k: at[a] != int(k),
        r"Book (\w) must be to the left of book (\w)": lambda at, a, b: at[a] < at[b],
        r"Book (\w) must be to the right of book (\w)": lambda at, a, b: at[a] > at[b],
        r"Book (\w) must be adjacent to book (\w)": lambda at, a, b: abs(at[a] - at[b]) == 1,
    }
    read = []
    for rule in rules:
        met = [(holds, m.groups()) for form, holds in forms.items() if (m := re.fullmatch(form, rule))]
        if not met or not set(re.findall(r"\b[A-Z]\b", rule)) <= set(books):
            raise ValueError(f"{rule!r} is no rule about these books")
        read += met

    def grade(answer: str | None) -> Grade:
        given = letters(answer)
        if given is None or sorted(given) != sorted(books):
            return Grade(False, f"expected a list of the books {listed(books)}")
        at = {book: place for place, book in enumerate(given, 1)}
        return first_broken([(holds(at, *w), rule) for (holds, w), rule in zip(read, rules, strict=True)])

    official = str(gold["correct_solution"])
    return Sample(text, official, grade, official)


def new_operator(text: str, gold: dict) -> Sample:
    """Operators without a stated precedence: brackets first, then from left to right."""
    defined = every(r"Define a\s*(\S)\s*b to be ([^\n]+?)\.(?:\s|$)", text, "definitions")
    operators = {sign: _formula(formula) for sign, formula in defined}
    tokens = re.findall(r"\d+|\S", found(r"Calculate ([^\n]+?)\.\s*(?:\n|$)", text, "calculation")[1])

    def operand() -> Fraction:
        token = tokens.pop(0)
        if token != "(":
            return Fraction(token)
        value = calculate()
        if tokens.pop(0) != ")":
            raise ValueError("a bracket is not closed")
        return value

    def calculate() -> Fraction:
        value = operand()
        while tokens and tokens[0] in operators:
            value = operators[tokens.pop(0)](value, operand())
        return value

    try:
        right = calculate()
    except (IndexError, ZeroDivisionError, ValueError) as error:
        raise ValueError(f"the calculation cannot be read: {error}") from None
    if tokens:
        raise ValueError(f"{tokens[0]!r} is no operator that is defined")
    return Sample(text, str(right), near([right]), str(gold["solution"]))


def _formula(text: str) -> Callable[[Fraction, Fraction], Fraction]:
    """A formula of a and b with + - * / and brackets, as a function. Raises ValueError."""
    signs = symbench_planning.OPERATORS

    def check(node: ast.AST) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in signs:
            check(node.left), check(node.right)
        elif not (isinstance(node, ast.Name) and node.id in "ab" or isinstance(node, ast.Constant)):
            raise ValueError(f"{text!r} is no formula of a and b with + - * /")

    def value(node: ast.AST, a: Fraction, b: Fraction) -> Fraction:
        if isinstance(node, ast.BinOp):
            return signs[type(node.op)](value(node.left, a, b), value(node.right, a, b))
        return {"a": a, "b": b}[node.id] if isinstance(node, ast.Name) else Fraction(str(node.value))

    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"{text!r} is no formula of a and b with + - * /") from None
    check(tree)
    return lambda a, b: value(tree, a, b)


def mahjong_pattern(text: str, gold: dict) -> Sample:
    """The last round's result, by the rules of this text: Chi only where the text has it."""
    hand = list(found(r"initial cards:\s*([A-Z]+)", text, "initial cards")[1])
    chi = '"Chi' in text
    result = 0
    for new, old in every(r"Add a ([A-Z]) card(?: and remove an? ([A-Z]) card)?", text, "rounds"):
        around = [chr(ord(new) + step) in hand for step in (-2, -1, 1, 2)]
        straight = chi and any(a and b for a, b in itertools.pairwise(around))
        result = 1 if hand.count(new) >= 2 else 2 if straight else 0
        hand.append(new)
        if old and old not in hand:
            raise ValueError(f"card {old} is removed, but not in the hand")
        if old:
            hand.remove(old)
    return Sample(text, str(result), whole([result]), str(gold["solution"]))


def statistical_counting(text: str, gold: dict) -> Sample:
    """Points for each run of a letter that is long enough."""
    words = {"two": 2, "three": 3, "four": 4, "five": 5}
    string = found(r"total score of the string ([A-Z]+)\?", text, "string")[1]
    score = 0
    for least, letter, points in every(r"(\w+) or more consecutive ([A-Z])'s, add (\d+)", text, "rules"):
        if least not in words and not least.isdecimal():
            raise ValueError(f"{least!r} is no number")
        size = words.get(least) or int(least)
        runs = [len(list(run)) for kind, run in itertools.groupby(string) if kind == letter]
        score += int(points) * sum(run >= size for run in runs)
    return Sample(text, str(score), whole([score]), str(gold["solution"]))


def synthesis_decomposition(text: str, gold: dict) -> Sample:
    """What is left of the crops and products that the text asks for; the published list has all five."""
    asked = found(r"list showing \[([^\]]+)\]", text, "list of what is asked for")[1]
    names = re.findall(r"(?:remaining|obtained)_([A-Z])", asked)
    stock = dict(zip("ABCXY", map(int, gold["solution"]["answer"]), strict=True))
    if not names or not set(names) <= set(stock):
        raise ValueError(f"[{asked}] asks for other things than A, B, C, X, Y")
    right = [stock[name] for name in names]
    return Sample(text, str(right), whole(right), str(right))


def string_splitting(text: str, gold: dict) -> Sample:
    """Six counts, as published: each method is used once in its turn."""
    right = list(map(int, gold["expected_answer"]))
    return Sample(text, str(right), counts(right), str(gold["expected_answer"]))


def string_synthesis(text: str, gold: dict) -> Sample:
    """Nine counts, as published: each method is used in its turn as often as it can be."""
    official = " ".join(map(str, gold["final_counts"]))
    return Sample(text, official, counts(gold["final_counts"]), official)


def string_insertion(text: str, gold: dict) -> Sample:
    """Each letter is put in behind its substrings, which are looked for in the string as it was."""
    string = found(r"Given the string ([A-Z]+),", text, "string")[1]
    rules = dict(every(r"substring ([A-Z]+) in the string, insert the character ([A-Z])", text, "rules"))
    parts = [
        letter + "".join(new for old, new in rules.items() if string[:end].endswith(old))
        for end, letter in enumerate(string, 1)
    ]
    right = "".join(parts)
    return Sample(text, right, characters(right, fold=True), gold["modified_string"])


def string_deletion_and_modification(text: str, gold: dict) -> Sample:
    """The last string, as published: after each change the first rule comes again."""
    return Sample(text, gold["final_string"], characters(gold["final_string"]), gold["final_string"])


def cryptanalysis(text: str, gold: dict) -> Sample:
    """Two digits and two letters, as published: the guesses leave no other password."""
    return Sample(text, str(gold["answer"]), characters(gold["answer"], fold=True), str(gold["answer"]))


def number_multiply(text: str, gold: str) -> Sample:
    """The product of the integers in the question."""
    factors = found(r"result of (-?\d+(?:\s*\*\s*-?\d+)*)\s*\?", text, "product")[1].split("*")
    right = 1
    for factor in factors:
        right *= int(factor)
    return Sample(text, str(right), ours("number_multiply", {}, str(right)), gold)


# -- games of cards -----------------------------------------------------------------------------------

Outcome = Callable[[str, str], str]  # (my card, the opponent's card) -> win, loss or draw


def constrained_linear_arrangement(text: str, gold: dict) -> Sample:
    """The opponent's cards, each played once, that explain the results of all rounds."""
    rounds = every(r"Round \d+: ([A-Z]), (win|loss|draw)", text, "rounds")
    cards, readings = _game(text)

    def grade(answer: str | None) -> Grade:
        given = letters(answer)
        if given is None or len(given) != len(rounds) or len(set(given)) < len(given):
            return Grade(False, f"expected {len(rounds)} different letters")
        if not set(given) <= set(cards):
            return Grade(False, f"expected letters out of {listed(sorted(cards))}")
        for outcome in readings:
            wrong = [
                i
                for i, (o, (m, seen)) in enumerate(zip(given, rounds, strict=True), 1)
                if outcome(m, o) != seen
            ]
            if not wrong:
                return Grade(True, "all rounds have these results")
        return Grade(False, f"round {wrong[0]} would have another result")

    return Sample(text, ",".join(gold["solution"]), grade, ",".join(gold["solution"]))


def _game(text: str) -> tuple[set[str], list[Outcome]]:
    """The cards of one of the three games, and how its rules can be read."""
    names = dict(re.findall(r"(\w+) \(([A-Z])\)", text))
    if "generates" in text:
        generates = dict(every(r"([A-Z]) generates \w+ ([A-Z])", text, "rules"))
        overcomes = dict(every(r"([A-Z]) overcomes \w+ ([A-Z])", text, "rules"))

        def both(m: str, o: str) -> str:  # "card 1" is either player's card
            if overcomes.get(m) == o or generates.get(o) == m:
                return "win"
            return "loss" if overcomes.get(o) == m or generates.get(m) == o else "draw"

        def mine(m: str, o: str) -> str:  # "card 1" is mine: how the published results were made
            return "win" if overcomes.get(m) == o else "loss" if generates.get(m) == o else "draw"

        return {*generates, *overcomes}, [both, mine]
    if beats := re.findall(r"(\w+) (?:beats|eats) (\w+)", text):
        stronger = {(names.get(a), names.get(b)) for a, b in beats}
        if not all(a and b for a, b in stronger):
            raise ValueError("a card is beaten that is not described")
        return set(names.values()), [
            lambda m, o: "win" if (m, o) in stronger else "loss" if (o, m) in stronger else "draw"
        ]
    found("ranked from largest to smallest", text, "game")
    order = list(names.values())  # the last one, the mouse, beats the first one
    ends = {(order[-1], order[0]): "win", (order[0], order[-1]): "loss"}

    def ranked(m: str, o: str) -> str:
        if m == o:
            return "draw"
        return ends.get((m, o)) or ("win" if order.index(m) < order.index(o) else "loss")

    return set(order), [ranked]
