"""Nine SymBench tasks about numbers, letters and their arrangement, generated from the question's index.

The kinds of question and the forms of their answers are those of the benchmark that R1-Code-Interpreter
(2505.21668) trains on; rules and wording are our own and stand in each question. A puzzle is built around a
hidden solution, so that it has one; where it may have several, grade() checks the rules and not the solution.
"""

import functools
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tasks import Grade, Problem, Task
from tasks.answers import OUTER, digits, integers, number, operators, pairs, words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Symbench(Task):
    """A generated task. `meta` holds the data of the question's text; written as assignments, they take the
    place of DATA in `code`: the program knows no more than a reader of the question."""

    suite = "symbench"
    code: str

    def rng(self, index: int) -> random.Random:
        """The generator of question `index`; a str seeds it alike in every process."""
        return random.Random(f"{self.name} {index}")

    def solution(self, problem: Problem) -> str:
        data = "\n".join(f"{name} = {value!r}" for name, value in problem.meta.items())
        return self.code.replace("DATA", data)


def exact(given, expected, form: str) -> Grade:
    """Compare what was read from an answer (None: unreadable) with the only right value."""
    if given is None:
        return Grade(False, f"expected {form}")
    return Grade(given == expected, f"{str(given)[:200]} given, {expected} expected")


def first_broken(checks: list[tuple[bool, str]]) -> Grade:
    """Correct if every check holds; otherwise refused with what the first broken one says."""
    broken = [says for holds, says in checks if not holds]
    return Grade(not broken, broken[0] if broken else "all rules hold")


def letters(text: str | None) -> list[str] | None:
    """Single capital letters of a list, or of one word that is spelled without spaces."""
    found = words(text)
    if found and len(found) == 1:
        found = list(found[0])
    if not found or any(len(letter) != 1 for letter in found):
        return None
    return [letter.upper() for letter in found]


def bullets(lines) -> str:
    return "\n".join(f"- {line}" for line in lines)


@dataclass(frozen=True)
class Rule:
    """A rule about places: `says` and `code` hold {a}, {b}, {k}; at maps each letter to its position."""

    says: str
    code: str
    holds: Callable[[dict[str, int], str, str, int], bool]


class PermutationsAndCombinations(Symbench):
    """Put things in a row so that all rules hold; several orders may."""

    name = "permutations_and_combinations"
    SIZES = (5, 8)  # things in the row; the reference program tries all orders
    MORE_RULES = (0, 3)  # rules beyond one for each thing
    THINGS = ("books stand on a shelf", "people stand side by side", "cars are parked along a wall")
    THINGS += ("flags hang on a line", "boxes stand on a conveyor belt", "paintings hang side by side")
    RULES = {
        "at": Rule("{a} is at position {k}", "at['{a}'] == {k}", lambda at, a, b, k: at[a] == k),
        "not at": Rule("{a} is not at position {k}", "at['{a}'] != {k}", lambda at, a, b, k: at[a] != k),
        "left": Rule(
            "{a} is somewhere to the left of {b}", "at['{a}'] < at['{b}']", lambda at, a, b, k: at[a] < at[b]
        ),
        "directly": Rule(
            "{a} is directly to the left of {b}",
            "at['{a}'] + 1 == at['{b}']",
            lambda at, a, b, k: at[b] - at[a] == 1,
        ),
        "next": Rule(
            "{a} and {b} are next to each other",
            "abs(at['{a}'] - at['{b}']) == 1",
            lambda at, a, b, k: at[a] - at[b] in (1, -1),
        ),
        "apart": Rule(
            "{a} and {b} are not next to each other",
            "abs(at['{a}'] - at['{b}']) > 1",
            lambda at, a, b, k: at[a] - at[b] not in (1, -1),
        ),
        "between": Rule(
            "the number of others between {a} and {b} is exactly {k}",
            "abs(at['{a}'] - at['{b}']) - 1 == {k}",
            lambda at, a, b, k: max(at[a], at[b]) - min(at[a], at[b]) == k + 1,
        ),
        "end": Rule(
            "{a} is at one of the two ends",
            "at['{a}'] in (1, len(items))",
            lambda at, a, b, k: at[a] in (1, len(at)),
        ),
    }

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        items = list(LETTERS[: rng.randint(*self.SIZES)])
        order = rng.sample(items, len(items))
        at = {item: i for i, item in enumerate(order, 1)}
        rules = []
        wanted = len(items) + rng.randint(*self.MORE_RULES)
        while len(rules) < wanted:
            kind, (a, b), k = rng.choice(list(self.RULES)), rng.sample(items, 2), rng.randint(1, len(items))
            if kind in ("next", "apart", "between"):  # say the same of b and a
                a, b = min(a, b), max(a, b)
            rule = [kind, a, b, k]
            told = self.say(rule) in map(self.say, rules) or (kind == "at" and rng.random() < 0.5)
            if not told and self.RULES[kind].holds(at, a, b, k):
                rules.append(rule)
        question = (
            f"{len(items)} {rng.choice(self.THINGS)}, in a row with positions 1 (left end) to {len(items)} "
            f"(right end). They are called {', '.join(items)}. Find an order for which all of this holds:\n"
            f"{bullets(map(self.say, rules))}\n"
            "Give the names from left to right as a list of letters such as [B, A, C]. "
            "If several orders are possible, give any one of them."
        )
        return Problem(self.name, index, question, f"[{', '.join(order)}]", {"items": items, "rules": rules})

    def say(self, rule: list) -> str:
        kind, a, b, k = rule
        return self.RULES[kind].says.format(a=a, b=b, k=k)

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        order, items = letters(answer), problem.meta["items"]
        if order is None or sorted(order) != items:
            return Grade(False, f"expected each of {', '.join(items)} once, as a list")
        at = {item: i for i, item in enumerate(order, 1)}
        rules = problem.meta["rules"]
        return first_broken(
            [(self.RULES[kind].holds(at, a, b, k), self.say([kind, a, b, k])) for kind, a, b, k in rules]
        )

    def solution(self, problem: Problem) -> str:
        rules = [self.RULES[kind].code.format(a=a, b=b, k=k) for kind, a, b, k in problem.meta["rules"]]
        conditions = "\n        and ".join(rules)
        return f"""from itertools import permutations

items = {problem.meta["items"]}
for order in permutations(items):
    at = {{item: position for position, item in enumerate(order, 1)}}
    if (
        {conditions}
    ):
        print("[" + ", ".join(order) + "]")
        break"""


class LogicalEquation(Symbench):
    """Find values of letters for which equations and inequalities hold; several assignments may do."""

    name = "logical_equation"
    SIZES = (4, 7)  # letters with different values
    SIZES_REPEATED = (3, 5)  # letters that may have equal values
    SPARE = (0, 2)  # values on offer beyond one for each letter
    LARGEST = 20
    MORE_RULES = (0, 2)  # rules beyond one for each letter
    REPEATED = 0.3  # share of questions in which values may be equal

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        distinct = rng.random() >= self.REPEATED
        names = list(LETTERS[: rng.randint(*(self.SIZES if distinct else self.SIZES_REPEATED))])
        values = sorted(rng.sample(range(1, self.LARGEST + 1), len(names) + rng.randint(*self.SPARE)))
        hidden = rng.sample(values, len(names)) if distinct else rng.choices(values, k=len(names))
        value = dict(zip(names, hidden, strict=True))
        rules = []
        wanted = len(names) + rng.randint(*self.MORE_RULES)
        while len(rules) < wanted:
            rule = self.draw(rng, names, value)
            if rule not in rules:
                rules.append(rule)
        different = "Different letters stand for different numbers."
        question = (
            f"The letters {', '.join(names)} stand for numbers out of {values}. "
            f"{different if distinct else 'Different letters may stand for the same number.'} "
            f"All of this holds (* is multiplication):\n{bullets(map(self.say, rules))}\n"
            f"Find numbers for the letters. Give them in the order {', '.join(names)} as a list of integers "
            "such as [1, 2]. If several assignments are possible, give any one of them."
        )
        meta = {"names": names, "values": values, "distinct": distinct, "rules": rules}
        return Problem(self.name, index, question, hidden, meta)

    def draw(self, rng: random.Random, names: list[str], value: dict[str, int]) -> list:
        """A rule that the hidden values fulfil: [terms, relation, constant] with terms [factor, letter], or
        [two letters, "*", product]."""
        if rng.random() < 0.15:
            a, b = sorted(rng.sample(names, 2))
            return [[a, b], "*", value[a] * value[b]]
        chosen = sorted(rng.sample(names, rng.choice((2, 2, 3))))
        terms = [[rng.choice((1, 1, 1, 2, 3)), letter] for letter in chosen]
        for term in terms[1:]:
            term[0] *= rng.choice((1, 1, -1))
        total = sum(factor * value[letter] for factor, letter in terms)
        relation = rng.choice("===<>")
        return [terms, relation, total + {"=": 0, "<": 1, ">": -1}[relation] * rng.randint(1, 5)]

    def say(self, rule: list) -> str:
        left, relation, constant = rule
        if relation == "*":
            return f"{left[0]} * {left[1]} = {constant}"
        text = ""
        for factor, letter in left:
            sign = " - " if factor < 0 else " + " if text else ""
            text += sign + (letter if abs(factor) == 1 else f"{abs(factor)} * {letter}")
        return f"{text} {relation} {constant}"

    def holds(self, rule: list, value: dict[str, int]) -> bool:
        left, relation, constant = rule
        if relation == "*":
            return value[left[0]] * value[left[1]] == constant
        total = sum(factor * value[letter] for factor, letter in left)
        return {"=": total == constant, "<": total < constant, ">": total > constant}[relation]

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given, meta = integers(answer), problem.meta
        if given is None or len(given) != len(meta["names"]):
            return Grade(False, f"expected a list of {len(meta['names'])} integers")
        value = dict(zip(meta["names"], given, strict=True))
        checks = [(set(given) <= set(meta["values"]), f"only the values {meta['values']} are allowed")]
        checks += [(not meta["distinct"] or len(set(given)) == len(given), "all values must be different")]
        return first_broken(checks + [(self.holds(rule, value), self.say(rule)) for rule in meta["rules"]])

    def solution(self, problem: Problem) -> str:
        meta = problem.meta
        conditions = "\n        and ".join(self.say(rule).replace("=", "==") for rule in meta["rules"])
        search = "permutations(values, {})" if meta["distinct"] else "product(values, repeat={})"
        names = ", ".join(meta["names"])
        return f"""from itertools import {search.split("(")[0]}

values = {meta["values"]}
for {names} in {search.format(len(meta["names"]))}:
    if (
        {conditions}
    ):
        print([{names}])
        break"""


class CombinatorialCalculation(Symbench):
    """Put operators and brackets between numbers to reach a target."""

    name = "combinatorial_calculation"
    SIZES = (4, 6)  # numbers
    LARGEST = 12  # of the numbers
    TARGETS = (1, 200)
    code = '''from fractions import Fraction
from functools import cache

DATA

@cache
def reach(i, j):
    """Every value that numbers[i:j] can make, with the tokens of one way to make it."""
    if j - i == 1:
        return {Fraction(numbers[i]): [str(numbers[i])]}
    found = {}
    for k in range(i + 1, j):
        for a, left in reach(i, k).items():
            for b, right in reach(k, j).items():
                values = [("+", a + b), ("-", a - b), ("*", a * b)]
                if b:
                    values.append(("/", a / b))
                for sign, value in values:
                    found.setdefault(value, ["(", *left, sign, *right, ")"])
    return found

tokens = reach(0, len(numbers))[target]
print("[" + ", ".join(tokens[1:-1]) + "]")'''

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        count = rng.randint(*self.SIZES)
        value = 0
        while not self.TARGETS[0] <= value <= self.TARGETS[1]:
            numbers = [rng.randint(1, self.LARGEST) for _ in range(count)]
            value, tokens = self.draw(rng, numbers)
        question = (
            f"Put one of the operators +, -, * and / between each two neighbours of the numbers "
            f"{', '.join(map(str, numbers))}, keeping their order, and brackets ( ) where you need them, so "
            f"that the value is exactly {value}. The usual precedence holds, / is exact division (no "
            "rounding), and a minus sign in front of a number or bracket is not allowed. Give the tokens as "
            "a list such as [(, 6, +, 2, ), /, 4]. If several expressions are possible, give any one of them."
        )
        answer = f"[{', '.join(tokens[1:-1])}]"  # without the outermost brackets
        return Problem(self.name, index, question, answer, {"numbers": numbers, "target": value})

    def draw(self, rng: random.Random, numbers: list[int]) -> tuple[int, list[str]]:
        """The value of a random expression whose divisions have no remainder, and its tokens."""
        if len(numbers) == 1:
            return numbers[0], [str(numbers[0])]
        middle = rng.randrange(1, len(numbers))
        (a, left), (b, right) = self.draw(rng, numbers[:middle]), self.draw(rng, numbers[middle:])
        sign = rng.choice("+-*/" if b and a % b == 0 else "+-*")
        value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else None}[sign]
        return value, ["(", *left, sign, *right, ")"]

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        tokens = expression_tokens(answer)
        if tokens is None:
            return Grade(False, "expected a list of numbers, operators and brackets")
        numbers = [int(token) for token in tokens if token.isdigit()]
        if numbers != problem.meta["numbers"]:
            return Grade(False, f"the numbers must be {problem.meta['numbers']}, in this order")
        value = evaluate(tokens)
        if value is None:
            return Grade(False, "not an expression, or a division by zero")
        return exact(value, Fraction(problem.meta["target"]), "an expression")


def expression_tokens(text: str | None) -> list[str] | None:
    """Numbers (at most 20 digits), + - * / and round brackets of an expression in any notation; None if
    there is anything else, or more than 200 tokens."""
    text = operators(text).strip(OUTER).removesuffix(".").strip(OUTER + "[]")
    text = re.sub(r"[\s,'\"`]+", " ", text)
    tokens = re.findall(r"[0-9]{1,20}|[-+*/()]", text)
    return tokens if tokens and len(tokens) <= 200 and "".join(tokens) == text.replace(" ", "") else None


def evaluate(tokens: list[str]) -> Fraction | None:
    """The exact value of an infix expression, by the shunting-yard algorithm, without recursion; None
    if it is none or divides by zero. There is no unary minus."""
    values: list[Fraction] = []
    waiting: list[str] = []
    expects_number = True
    for token in ["(", *tokens, ")"]:
        if expects_number != (token.isdigit() or token == "("):
            return None
        if token.isdigit():
            values.append(Fraction(int(token)))
        elif token == "(":
            waiting.append(token)
            continue
        else:
            while waiting and _binds(waiting[-1]) >= _binds(token) and waiting[-1] != "(":
                if not _apply(waiting.pop(), values):
                    return None
            if token == ")":
                if not waiting:
                    return None
                waiting.pop()
                continue
            waiting.append(token)
        expects_number = not token.isdigit()
    return values[0] if len(values) == 1 and not waiting else None


def _binds(sign: str) -> int:
    return {")": 0, "(": 0, "+": 1, "-": 1, "*": 2, "/": 2}[sign]


def _apply(sign: str, values: list[Fraction]) -> bool:
    """Replace the last two values by the result; False for a division by zero."""
    b, a = values.pop(), values.pop()
    if sign == "/" and not b:
        return False
    values.append({"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b)
    return True


class EightQueens(Symbench):
    """Complete a placement of eight queens around blocked squares."""

    name = "eight_queens"
    GIVEN = (1, 4)  # queens that stand already
    BLOCKED = (4, 16)  # squares that must stay empty
    code = """from itertools import permutations

DATA
# One queen in each row and column: only the diagonals are left to check.
for columns in permutations(range(8)):
    board = set(enumerate(columns))
    if len({r + c for r, c in board}) < 8 or len({r - c for r, c in board}) < 8:
        continue
    if board >= set(queens) and not board & set(blocked):
        print(", ".join(f"{r} {c}" for r, c in sorted(board)))
        break"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        board = list(enumerate(rng.choice(placements())))
        queens = sorted(rng.sample(board, rng.randint(*self.GIVEN)))
        empty = sorted(set(itertools.product(range(8), repeat=2)) - set(board))
        blocked = sorted(rng.sample(empty, rng.randint(*self.BLOCKED)))
        question = (
            "Place eight queens on a chessboard of 8 x 8 squares so that no two are in the same row, the "
            "same column or on the same diagonal. Rows and columns are numbered from 0 to 7.\n"
            f"Queens that stand already and count among the eight (row column): {self.squares(queens)}.\n"
            f"Squares on which no queen may stand: {self.squares(blocked)}.\n"
            "Give the squares of all eight queens, each as row and column, separated by commas, such as "
            "0 4, 1 2. If several placements are possible, give any one of them."
        )
        meta = {"queens": queens, "blocked": blocked}
        return Problem(self.name, index, question, self.squares(board), meta)

    def squares(self, squares: list[tuple[int, int]]) -> str:
        return ", ".join(f"{r} {c}" for r, c in squares) or "none"

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = pairs(answer)
        if given is None or len(given) != 8:
            return Grade(False, "expected eight pairs of row and column")
        on_board = all(r in range(8) and c in range(8) for r, c in given)
        checks = [(on_board, "rows and columns are 0 to 7")]
        checks += [(set(problem.meta["queens"]) <= set(given), "a queen that stood already is missing")]
        checks += [(not set(problem.meta["blocked"]) & set(given), "a queen stands on a blocked square")]
        for (r1, c1), (r2, c2) in itertools.combinations(given, 2):
            safe = r1 != r2 and c1 != c2 and abs(r1 - r2) != abs(c1 - c2)
            checks.append((safe, f"the queens on {r1} {c1} and {r2} {c2} attack each other"))
        return first_broken(checks)


@functools.cache
def placements() -> list[tuple[int, ...]]:
    """The 92 ways to place eight queens: the column of the queen in each row."""
    partial: list[tuple[int, ...]] = [()]
    for row in range(8):
        partial = [
            (*columns, new)
            for columns in partial
            for new in range(8)
            if all(new != c and abs(new - c) != row - r for r, c in enumerate(columns))
        ]
    return partial


class NewOperator(Symbench):
    """Evaluate an expression in operators that the question defines."""

    name = "new_operator"
    OPERATORS = (1, 3)
    SIGNS = "@#&"
    LEAVES = (3, 5)  # numbers in the expression
    LARGEST = 10**6  # numerator and denominator of the value

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        count, leaves = rng.randint(*self.OPERATORS), rng.randint(*self.LEAVES)
        value = Fraction(self.LARGEST + 1)
        while max(abs(value.numerator), value.denominator) > self.LARGEST:
            operators = {sign: self.draw_operator(rng) for sign in self.SIGNS[:count]}
            tree = self.draw_tree(rng, leaves, list(operators))
            value = self.value(tree, operators)
        definitions = [f"a {sign} b = {self.formula(*operators[sign])}" for sign in operators]
        question = (
            "New operators on numbers are defined, where + - * / have their usual meaning and / is exact "
            "division; `x if a > b else y` stands for x where a is greater than b and for y otherwise:\n"
            f"{bullets(definitions)}\nWhat is the value of {self.infix(tree)[1:-1]}? Give it as "
            "an integer, or as a fraction such as 7/2 if it is no integer."
        )
        return Problem(self.name, index, question, str(value), {"operators": operators, "tree": tree})

    def draw_operator(self, rng: random.Random) -> tuple[list, list | None]:
        """Coefficients [a, b, ab, 1, divisor] of the formula; a second set if a > b has its own."""
        both = rng.random() < 0.3
        sets = [
            [rng.choice((-2, -1, 1, 2, 3)), rng.choice((-3, -2, -1, 1, 2)), rng.choice((0, 0, 0, -1, 1))]
            + [rng.choice((0, 0, rng.randint(-9, 9))), rng.choice((1, 1, 1, 2, 3))]
            for _ in range(1 + both)
        ]
        return sets[0], sets[1] if both else None

    def draw_tree(self, rng: random.Random, leaves: int, signs: list[str]) -> list | int:
        """A number, or [left, sign, right]."""
        if leaves == 1:
            return rng.randint(1, 9)
        left = rng.randrange(1, leaves)
        parts = self.draw_tree(rng, left, signs), self.draw_tree(rng, leaves - left, signs)
        return [parts[0], rng.choice(signs), parts[1]]

    def value(self, tree: list | int, operators: dict) -> Fraction:
        if isinstance(tree, int):
            return Fraction(tree)
        a, b = self.value(tree[0], operators), self.value(tree[2], operators)
        usual, larger = operators[tree[1]]
        of_a, of_b, of_ab, constant, divisor = larger if larger and a > b else usual
        return (of_a * a + of_b * b + of_ab * a * b + constant) / divisor

    def formula(self, usual: list[int], larger: list[int] | None) -> str:
        """The definition in words that are also Python."""
        if larger:
            return f"{self.formula(larger, None)} if a > b else {self.formula(usual, None)}"
        text = ""
        for factor, term in zip(usual, ("a", "b", "a * b", ""), strict=False):
            if factor:
                text += (" - " if text else "-") if factor < 0 else (" + " if text else "")
                text += " * ".join(
                    filter(None, ["" if term and abs(factor) == 1 else str(abs(factor)), term])
                )
        return text if usual[4] == 1 else f"({text}) / {usual[4]}"

    def infix(self, tree: list | int) -> str:
        if isinstance(tree, int):
            return str(tree)
        return f"({self.infix(tree[0])} {tree[1]} {self.infix(tree[2])})"

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return exact(number(answer), Fraction(problem.answer), "an integer or a fraction")

    def solution(self, problem: Problem) -> str:
        names = dict(zip(self.SIGNS, ("at", "sharp", "amp"), strict=True))

        def call(tree: list | int) -> str:
            if isinstance(tree, int):
                return f"Fraction({tree})"
            return f"{names[tree[1]]}({call(tree[0])}, {call(tree[2])})"

        lines = ["from fractions import Fraction", ""]
        for sign, operator in problem.meta["operators"].items():
            lines += [f"def {names[sign]}(a, b):  # a {sign} b", f"    return {self.formula(*operator)}", ""]
        return "\n".join([*lines, f"print({call(problem.meta['tree'])})"])


class MahjongPattern(Symbench):
    """Follow a hand of letter tiles through some rounds and add up the points of its patterns."""

    name = "mahjong_pattern"
    TILES = 13  # in the hand
    KINDS = (7, 12)  # different letters in the game
    ROUNDS = (3, 9)
    code = """DATA
score = 0
for new, discard in rounds:
    i = ord(new)
    near = {d: chr(i + d) in hand for d in (-2, -1, 1, 2)}
    if hand.count(new) >= 3:
        score += 5  # kong
    elif hand.count(new) == 2:
        score += 3  # peng
    elif near[-2] and near[-1] or near[-1] and near[1] or near[1] and near[2]:
        score += 1  # chi
    hand.append(new)
    hand.remove(discard)
print(score)"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        tiles = list(LETTERS[: rng.randint(*self.KINDS)])
        bag = tiles * 4
        rng.shuffle(bag)
        hand = sorted(bag.pop() for _ in range(self.TILES))
        held, rounds, score = Counter(hand), [], 0
        for _ in range(rng.randint(*self.ROUNDS)):
            new = rng.choice(tiles)
            while held[new] == 4:
                new = rng.choice(tiles)
            score += self.points(held, new)
            held[new] += 1
            discard = rng.choice(sorted(held.elements()))
            held[discard] -= 1
            rounds.append((new, discard))
        steps = "\n".join(f"Round {i}: draw {n}, discard {d}" for i, (n, d) in enumerate(rounds, 1))
        question = (
            f"A game is played with tiles that bear letters. Your hand is {' '.join(hand)}. In each round a "
            "tile is drawn and compared with the hand as it is before the draw:\n"
            "- kong: the hand holds three tiles of the drawn letter; 5 points\n"
            "- peng: the hand holds exactly two tiles of the drawn letter; 3 points\n"
            "- chi: neither kong nor peng, and the hand holds two tiles that together with the drawn one "
            "bear three letters which follow one another in the alphabet, such as C, D, E, the drawn tile "
            "being any of the three; 1 point, in however many ways it is possible\n"
            "- otherwise 0 points\n"
            "Then the drawn tile joins the hand and one tile is discarded from it; nothing else leaves the "
            f"hand.\n{steps}\nHow many points are scored in total? Give an integer such as 7."
        )
        return Problem(self.name, index, question, score, {"hand": hand, "rounds": rounds})

    def points(self, held: Counter, new: str) -> int:
        if held[new] >= 2:
            return 5 if held[new] > 2 else 3
        place = LETTERS.index(new)
        for first in range(max(place - 2, 0), place + 1):
            others = set(LETTERS[first : first + 3]) - {new}
            if len(others) == 2 and all(held[letter] for letter in others):
                return 1
        return 0

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return exact(number(answer, ("points", "point")), problem.answer, "an integer")


class StatisticalCounting(Symbench):
    """Add up the points that rules give to a string of letters."""

    name = "statistical_counting"
    LENGTHS = (15, 60)  # of the string
    KINDS = (2, 5)  # different letters in it
    RULES = (3, 5)
    # kind -> (what it says, its program, what counts it); {x} a letter, {w} a word, {k} a length
    COUNTS: dict[str, tuple[str, str, Callable[[str, str, str, int], int]]] = {
        "letter": ("each {x}", "text.count('{x}')", lambda text, x, w, k: Counter(text)[x]),
        "double": (
            "each place where a letter is followed by the same letter (AAA has two such places)",
            "sum(a == b for a, b in zip(text, text[1:]))",
            lambda text, x, w, k: len(re.findall(r"(?=(.)\1)", text)),
        ),
        "word": (
            "each occurrence of {w}, overlapping ones included",
            "sum(text.startswith('{w}', i) for i in range(len(text)))",
            lambda text, x, w, k: len(re.findall(f"(?={w})", text)),
        ),
        "inside": (
            "each {x} whose left and right neighbours are equal to each other",
            "sum(b == '{x}' and a == c for a, b, c in zip(text, text[1:], text[2:]))",
            lambda text, x, w, k: len(re.findall(rf"(?=(.){x}\1)", text)),
        ),
        "run": (
            "each run of {k} or more equal letters (a run extends as far as the letter repeats, so AAAA is "
            "one run of 4)",
            "sum(len(list(run)) >= {k} for _, run in groupby(text))",
            lambda text, x, w, k: len(re.findall(rf"(.)\1{{{k - 1},}}", text)),
        ),
        "odd": (
            "each {x} at an odd position, the first letter being at position 1",
            "text[::2].count('{x}')",
            lambda text, x, w, k: sum(c == x for i, c in enumerate(text, 1) if i % 2),
        ),
    }

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        kinds = sorted(rng.sample(LETTERS, rng.randint(*self.KINDS)))
        text = "".join(rng.choices(kinds, k=rng.randint(*self.LENGTHS)))
        rules, score = [], 0
        for kind in rng.sample(sorted(self.COUNTS), rng.randint(*self.RULES)):
            x, w, k = rng.choice(kinds), "".join(rng.choices(kinds, k=rng.randint(2, 3))), rng.randint(2, 3)
            points = rng.choice((-3, -2, -1, 1, 2, 3, 4, 5))
            rules.append([kind, points, {"x": x, "w": w, "k": k}])
            score += points * self.COUNTS[kind][2](text, x, w, k)
        lines = [f"{p:+d} for {self.COUNTS[kind][0].format(**data)}" for kind, p, data in rules]
        question = (
            f"A string of letters is scored:\n{text}\nIts score is the sum of these points, the rules "
            f"being applied independently of one another:\n{bullets(lines)}\n"
            "What is the score? Give an integer such as 7."
        )
        return Problem(self.name, index, question, score, {"text": text, "rules": rules})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        return exact(number(answer, ("points", "point")), problem.answer, "an integer")

    def solution(self, problem: Problem) -> str:
        rules = problem.meta["rules"]
        lines = [f"text = {problem.meta['text']!r}", "score = 0"]
        if "run" in [kind for kind, _, _ in rules]:
            lines = ["from itertools import groupby", "", *lines]
        for kind, points, data in rules:
            lines.append(f"score += {points} * {self.COUNTS[kind][1].format(**data)}")
        return "\n".join([*lines, "print(score)"])


class SynthesisDecomposition(Symbench):
    """Turn materials into one another by given rules, as often as the stock allows."""

    name = "synthesis_decomposition"
    MATERIALS = (3, 6)
    STOCK = (0, 25)
    RULES = (2, 4)
    ROUNDS = (1, 3)
    code = """DATA
for _ in range(rounds):
    for uses, makes in rules:
        times = min(stock[m] // n for m, n in uses.items())
        for m, n in uses.items():
            stock[m] -= times * n
        for m, n in makes.items():
            stock[m] += times * n
print(list(stock.values()))"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        names = list(LETTERS[: rng.randint(*self.MATERIALS)])
        stock = {name: rng.randint(*self.STOCK) for name in names}
        rules = [self.draw(rng, names) for _ in range(rng.randint(*self.RULES))]
        rounds = rng.randint(*self.ROUNDS)
        lines = [
            f"Rule {i}: {self.sum(uses)} -> {self.sum(makes)}" for i, (uses, makes) in enumerate(rules, 1)
        ]
        question = (
            f"A workshop has these units of the materials {', '.join(names)}: {self.sum(stock)}. It can turn "
            "materials into others; what stands left of the arrow is used up, what stands right of it is "
            f"made:\n{bullets(lines)}\nIn a round the rules are taken in the order of their numbers. Each "
            "is applied again and again until the stock is too small to apply it once more, before the next "
            f"rule is taken. What is in stock after {rounds} round{'s' * (rounds > 1)}? Give the units "
            f"of {', '.join(names)}, in this order, as a list of integers such as [1, 2]."
        )
        meta = {"stock": stock, "rules": rules, "rounds": rounds}
        return Problem(self.name, index, question, self.result(stock, rules, rounds), meta)

    def draw(self, rng: random.Random, names: list[str]) -> tuple[dict[str, int], dict[str, int]]:
        """What a rule uses and what it makes: different materials, so that it cannot go on for ever."""
        some = rng.sample(names, rng.randint(2, min(4, len(names))))
        middle = rng.randrange(1, len(some))
        uses = {name: rng.randint(1, 4) for name in sorted(some[:middle])}
        return uses, {name: rng.randint(1, 3) for name in sorted(some[middle:])}

    def sum(self, amounts: dict[str, int]) -> str:
        return " + ".join(f"{count} {name}" for name, count in amounts.items())

    def result(self, stock: dict[str, int], rules: list, rounds: int) -> list[int]:
        """The stock at the end, one application at a time."""
        left = Counter(stock)
        for uses, makes in rules * rounds:
            while all(left[name] >= count for name, count in uses.items()):
                left.subtract(uses)
                left.update(makes)
        return [left[name] for name in stock]

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = digits(answer, len(problem.answer)) or integers(answer)
        return exact(given, problem.answer, "a list of integers")


class ConstrainedLinearArrangement(Symbench):
    """Find out which cards were played in a game from the opponent's cards and the results."""

    name = "constrained_linear_arrangement"
    KINDS = (3, 6)  # different cards
    ROUNDS = (4, 10)
    SPARE = (0, 3)  # cards in the hand that were not played
    code = """DATA

def result(mine, other):
    if mine == other:
        return "draw"
    if {mine, other} == {order[0], order[-1]}:  # the weakest beats the strongest
        return "win" if mine == order[-1] else "loss"
    return "win" if order.index(mine) < order.index(other) else "loss"

def play(played, hand):
    if len(played) == len(results):
        return played
    for card in sorted(hand):
        if hand[card] == 0 or (no_repeat and played and played[-1] == card):
            continue
        if result(card, opponent[len(played)]) == results[len(played)]:
            found = play(played + [card], {**hand, card: hand[card] - 1})
            if found:
                return found

print("[" + ", ".join(play([], hand)) + "]")"""

    def problem(self, index: int) -> Problem:
        rng = self.rng(index)
        order = rng.sample(LETTERS[:12], rng.randint(*self.KINDS))
        rounds, no_repeat = rng.randint(*self.ROUNDS), rng.random() < 0.5
        played: list[str] = []
        for _ in range(rounds):
            played.append(rng.choice([c for c in order if not (no_repeat and played and c == played[-1])]))
        opponent = rng.choices(order, k=rounds)
        results = [self.result(order, mine, other) for mine, other in zip(played, opponent, strict=True)]
        hand = Counter(played + rng.choices(order, k=rng.randint(*self.SPARE)))
        meta = {"order": order, "hand": dict(sorted(hand.items())), "opponent": opponent}
        meta |= {"results": results, "no_repeat": no_repeat}
        return Problem(self.name, index, self.question(meta), f"[{', '.join(played)}]", meta)

    def question(self, meta: dict) -> str:
        order = meta["order"]
        hand = ", ".join(f"{count} x {card}" for card, count in meta["hand"].items())
        seen = zip(meta["opponent"], meta["results"], strict=True)
        lines = [
            f"Round {i}: the opponent plays {card}; {result} for you"
            for i, (card, result) in enumerate(seen, 1)
        ]
        repeat = "You never play the same letter in two consecutive rounds. " if meta["no_repeat"] else ""
        return (
            f"In a card game the letters rank {' > '.join(order)}, the strongest first. The stronger card "
            f"wins, with one exception: {order[-1]}, the weakest, beats {order[0]}, the strongest. Equal "
            "letters are a draw. In every round you and the opponent play one card each; a card that was "
            f"played is out of the game. Your hand is {hand}. "
            f"{repeat}This was seen:\n"
            + "\n".join(lines)
            + "\nWhich cards did you play? Give your letters in "
            "the order of the rounds as a list such as [A, C, B]. If several answers are possible, give any "
            "one of them."
        )

    def result(self, order: list[str], mine: str, other: str) -> str:
        """What a round is for me."""
        difference = order.index(other) - order.index(mine)
        if abs(difference) == len(order) - 1:
            difference = -difference
        return "win" if difference > 0 else "loss" if difference else "draw"

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given, meta = letters(answer), problem.meta
        if given is None or len(given) != len(meta["results"]) or not set(given) <= set(meta["order"]):
            return Grade(False, f"expected {len(meta['results'])} letters out of {meta['order']}, as a list")
        checks = [
            (n <= meta["hand"].get(c, 0), f"too few {c} in the hand") for c, n in Counter(given).items()
        ]
        repeats = any(a == b for a, b in itertools.pairwise(given))
        checks.append((not (meta["no_repeat"] and repeats), "a letter is played in two consecutive rounds"))
        rounds = zip(given, meta["opponent"], meta["results"], strict=True)
        for i, (mine, other, seen) in enumerate(rounds, 1):
            now = self.result(meta["order"], mine, other)
            checks.append((now == seen, f"round {i}: {mine} against {other} is a {now}, not a {seen}"))
        return first_broken(checks)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        PermutationsAndCombinations(),
        LogicalEquation(),
        CombinatorialCalculation(),
        EightQueens(),
        NewOperator(),
        MahjongPattern(),
        StatisticalCounting(),
        SynthesisDecomposition(),
        ConstrainedLinearArrangement(),
    )
}
