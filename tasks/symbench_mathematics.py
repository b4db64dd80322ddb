"""SymBench's tasks on mathematics: products, word problems in large numbers, geometry, counting and chance.

The last three are in the manner of GSM-hard and of MATH's geometry and counting & probability, without their
texts: each is a list of templates of our own. A template gives the answer by one way (`answer`) and the
program by another (`program`: a formula here and a search or a simulation there, wherever both exist), so
that each checks the other. tasks/math.py reads the real sets.
"""

import itertools
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from tasks import Grade, Problem, Task
from tasks.answers import normal, number, untypeset


@dataclass(frozen=True)
class Exact:
    """A number sign * sqrt(square) * pi^power: what integers, fractions, surds and multiples of pi have in
    common. Two of them are equal exactly where the numbers are."""

    square: Fraction
    power: int = 0
    sign: int = 1

    def __str__(self) -> str:
        inside = self.square.numerator * self.square.denominator  # sqrt(p/q) = sqrt(p q) / q
        outside, k = 1, 2
        if math.isqrt(inside) ** 2 == inside:
            outside, inside = math.isqrt(inside), 1
        while k * k <= inside:
            while inside % (k * k) == 0:
                outside, inside = outside * k, inside // (k * k)
            k += 1
        factor = Fraction(self.sign * outside, self.square.denominator)
        factors = [f"sqrt({inside})"] * (inside > 1) + ["pi"] * self.power
        if factor.numerator != 1 or not factors:
            factors.insert(0, str(factor.numerator))
        return "*".join(factors) + (f"/{factor.denominator}" if factor.denominator > 1 else "")


def rational(value: Fraction | int, power: int = 0) -> Exact:
    """value * pi^power"""
    return Exact(Fraction(value) ** 2, power if value else 0, -1 if value < 0 else 1)


TOKEN = re.compile(r"\s*(\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?|\.\d+|sqrt|pi|[*/()])\s*", re.ASCII)
LATEX = (("\\left", ""), ("\\right", ""), ("\\cdot", "*"), ("\\times", "*"), ("\\pi", " pi"), ("\\,", ""))
LATEX += (("\\sqrt", " sqrt"), ("\\dfrac", "\\frac"), ("{", "("), ("}", ")"), ("$", ""))
LATEX += (("π", " pi"), ("√", " sqrt"), ("×", "*"), ("·", "*"), ("−", "-"), ("°", ""))


def exact(text: str | None) -> Exact | None:
    """Read a product or quotient of numbers, square roots and pi, in plain or LaTeX form, from left to right;
    None for anything else, and for texts longer than any answer.

    >>> exact("3*sqrt(8)/2") == exact("3√2") == exact(r"\\frac{6}{\\sqrt{2}}") == Exact(Fraction(18))
    True
    """
    if len(text or "") > 200:
        return None
    text = re.sub(r"^[a-z]\s*=", "", normal(text))  # "r = 5"
    for old, new in LATEX:
        text = text.replace(old, new)
    text = re.sub(r"\\frac\s*(\([^()]*\)|\([^()]*\([^()]*\)[^()]*\))\s*\(", r"\1/(", text)
    sign, text = (-1, text.strip()[1:]) if text.strip().startswith("-") else (1, text)
    tokens = TOKEN.findall(text)
    if not tokens or TOKEN.sub("", text):
        return None
    try:
        value = _product(tokens)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    if tokens:  # a bracket closes that was never opened
        return None
    return Exact(value.square, value.power, sign) if value.square else Exact(value.square)


def _product(tokens: list[str]) -> Exact:
    """The value of the tokens up to the end or a closing bracket; takes them off the list."""
    square, power = Fraction(1), 0
    sign = "*"
    while True:
        value = _factor(tokens)
        if sign == "*":
            square, power = square * value.square, power + value.power
        else:
            square, power = square / value.square, power - value.power
        if not tokens or tokens[0] == ")":
            return Exact(square, power)
        if tokens[0] in "*/":
            sign = tokens.pop(0)
        elif tokens[0] in ("sqrt", "pi"):  # 3 pi; but "3 4" is two numbers
            sign = "*"
        else:
            raise ValueError("two numbers")


def _factor(tokens: list[str]) -> Exact:
    token = tokens.pop(0)
    if token == "(":
        value = _product(tokens)
        if tokens.pop(0) != ")":
            raise ValueError("a bracket does not close")
        return value
    if token == "pi":
        return Exact(Fraction(1), 1)
    if token == "sqrt":
        value = _factor(tokens)
        if value.power:
            raise ValueError("the root of pi is no answer to any question")
        root = math.isqrt(value.square.numerator), math.isqrt(value.square.denominator)
        if Fraction(*root) ** 2 != value.square:
            raise ValueError("nor is a root of a root")
        return Exact(Fraction(*root))
    return rational(Fraction(token.replace(",", "")))


@dataclass(frozen=True)
class Template:
    """A kind of question. `draw` gives its numbers and words by name; `text` and `program` use these names,
    and `answer` is called with them."""

    text: str
    draw: Callable[[random.Random], dict[str, object]]
    answer: Callable[..., Exact | Fraction | int]
    program: str
    units: tuple[str, ...] = ()  # may stand beside the answer


class Drawn(Task):
    """A question from a list of templates; the answer is a number, compared exactly."""

    suite = "symbench"
    templates: tuple[Template, ...]
    form: str  # how the answer is to be written

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        kind = rng.randrange(len(self.templates))
        template = self.templates[kind]
        values = template.draw(rng)
        answer = template.answer(**{name: v for name, v in values.items() if not name.startswith("_")})
        answer = answer if isinstance(answer, Exact) else rational(answer)
        question = f"{template.text.format(**values)} {self.form}"
        return Problem(self.name, index, question, str(answer), {"template": kind, "values": values})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = re.sub(r"\\(?:text|mathrm)\s*\{([^{}]*)\}", r"\1", untypeset(answer)).strip().lower()
        for unit in self.templates[problem.meta["template"]].units:
            given = given.removesuffix(".").removeprefix(unit).removesuffix(unit).strip()
        value, right = exact(given), exact(problem.answer)
        return Grade(value == right, f"{value} given, {right} expected")

    def solution(self, problem: Problem) -> str:
        """The template's program under the numbers of the question; words (named with _) are only in the "
        "text."""
        program = self.templates[problem.meta["template"]].program
        imports = [f"import {m}" for m in ("itertools", "math") if f"{m}." in program]
        imports += ["from fractions import Fraction"] * ("Fraction(" in program)
        data = [f"{n} = {v!r}" for n, v in problem.meta["values"].items() if not n.startswith("_")]
        return "\n".join([*imports, *[""] * bool(imports), *data, program])


class NumberMultiply(Task):
    """The product of some integers of several digits, some of them negative."""

    name, suite = "number_multiply", "symbench"
    FACTORS, DIGITS, NEGATIVE = (2, 4), (2, 9), 0.15

    def problem(self, index: int) -> Problem:
        rng = random.Random(f"{self.name} {index}")
        factors = []
        for _ in range(rng.randint(*self.FACTORS)):
            digits = rng.randint(*self.DIGITS)
            sign = -1 if rng.random() < self.NEGATIVE else 1
            factors.append(sign * rng.randrange(10 ** (digits - 1), 10**digits))
        shown = " * ".join(str(f) if f > 0 else f"({f})" for f in factors)
        question = f"What is {shown}? Answer with the exact product as an integer."
        return Problem(self.name, index, question, str(math.prod(factors)), {"factors": factors})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        given = number(answer)
        return Grade(given == int(problem.answer), f"{given} given, {problem.answer} expected")

    def solution(self, problem: Problem) -> str:
        return f"print({' * '.join(map(str, problem.meta['factors']))})\n"


NAMES = ("Amira", "Bruno", "Chloe", "Dario", "Elif", "Farid", "Greta", "Hiro", "Ines", "Jonas", "Kavya")
NAMES += ("Lena", "Mateo", "Nadia", "Omar", "Paula", "Quinn", "Rosa", "Samir", "Tara", "Uwe", "Wanda")
GOODS = (
    "notebooks",
    "candles",
    "lamps",
    "teapots",
    "kites",
    "postcards",
    "baskets",
    "ribbons",
    "mugs",
    "vases",
)
MONEY = ("dollars", "dollar", "$")


def person(rng: random.Random) -> dict[str, object]:
    return {"_name": rng.choice(NAMES), "_goods": rng.choice(GOODS)}


WORD_PROBLEMS = (
    Template(
        "{_name} sold {may} {_goods} in May. In June, {_name} sold {times} times as many as in May and "
        "{more} more. Each one was sold for {price} dollars. How many dollars did {_name} take in during the "
        "two months?",
        lambda rng: {
            **person(rng),
            "may": rng.randint(1_000, 900_000),
            "times": rng.randint(2, 9),
            "more": rng.randint(100, 50_000),
            "price": rng.randint(3, 400),
        },
        lambda may, times, more, price: price * (may * (times + 1) + more),
        "june = times * may + more\nprint((may + june) * price)\n",
        MONEY,
    ),
    Template(
        "A factory makes {made} {_goods} a day. On each day it gives {gifts} of them away and sells the "
        "others for {price} dollars each. Making one costs {cost} dollars, given away or not. What is the "
        "profit in dollars after {days} days? (A loss is a negative number.)",
        lambda rng: {
            **person(rng),
            "made": rng.randint(20_000, 800_000),
            "gifts": rng.randint(100, 9_999),
            "price": rng.randint(5, 90),
            "cost": rng.randint(2, 60),
            "days": rng.randint(3, 365),
        },
        lambda made, gifts, price, cost, days: days * made * (price - cost) - days * gifts * price,
        "income = (made - gifts) * price\nprofit = income - made * cost  # of a day\nprint(profit * days)\n",
        MONEY,
    ),
    Template(
        "{_name} earns {salary} dollars a month, spends {percent}% of that on food and {rent} dollars on "
        "rent, and saves the rest. How many dollars has {_name} saved after {years} years? (A debt is a "
        "negative number.)",
        lambda rng: {
            **person(rng),
            "salary": 100 * rng.randint(300, 90_000),
            "percent": rng.randint(5, 60),
            "rent": rng.randint(9_000, 900_000),
            "years": rng.randint(2, 30),
        },
        lambda salary, percent, rent, years: 12 * years * (salary - rent - salary // 100 * percent),
        "food = salary * percent // 100\nprint((salary - food - rent) * 12 * years)\n",
        MONEY,
    ),
    Template(
        "A spacecraft flies for {first} hours at {slow} kilometres an hour and then for {second} hours at "
        "{fast} kilometres an hour. How many kilometres of a journey of {total} kilometres are left then? "
        "(If it has flown further than that, the number is negative.)",
        lambda rng: {
            "first": rng.randint(12, 900),
            "slow": rng.randint(3_000, 30_000),
            "second": rng.randint(12, 900),
            "fast": rng.randint(30_000, 90_000),
            "total": rng.randint(10_000_000, 99_999_999),
        },
        lambda first, slow, second, fast, total: total - first * slow - second * fast,
        "flown = first * slow + second * fast\nprint(total - flown)\n",
        ("kilometres", "kilometers", "km"),
    ),
    Template(
        "A reservoir holds {volume} litres. First {part}/{whole} of it is used. Then {added} litres are "
        "added. Then half of what is there is pumped away. How many litres remain?",
        lambda rng: {
            "whole": (whole := rng.randint(3, 12)),
            "part": rng.randint(1, whole - 1),
            "volume": 2 * whole * rng.randint(10_000, 9_999_999),
            "added": rng.randint(10_000, 9_999_999),
        },
        lambda volume, part, whole, added: Fraction(volume * (whole - part) + added * whole, 2 * whole),
        "volume -= Fraction(volume * part, whole)\nvolume += added\nvolume /= 2\nprint(volume)\n",
        ("litres", "liters", "l"),
    ),
    Template(
        "Northford has {north} inhabitants. Southford has {less} fewer than {times} times as many as "
        "Northford. Eastford has as many as the other two together, and {more} more. How many inhabitants do "
        "the three towns have together?",
        lambda rng: {
            "north": rng.randint(20_000, 3_000_000),
            "times": rng.randint(2, 12),
            "less": rng.randint(1_000, 19_999),
            "more": rng.randint(1_000, 99_999),
        },
        lambda north, times, less, more: 2 * (north * (times + 1) - less) + more,
        "south = times * north - less\neast = north + south + more\nprint(north + south + east)\n",
        ("inhabitants", "people"),
    ),
    Template(
        "{machines} machines make {rate} parts a minute each. They run for {hours} hours, and {percent}% of "
        "the parts are faulty. How many parts are not faulty?",
        lambda rng: {
            "machines": rng.randint(12, 950),
            "rate": rng.randint(15, 4_000),
            "hours": 5 * rng.randint(2, 90),
            "percent": rng.randint(1, 35),
        },
        lambda machines, rate, hours, percent: machines * rate * hours * 6 * (100 - percent) // 10,
        "parts = machines * rate * 60 * hours\nprint(parts - parts * percent // 100)\n",
        ("parts",),
    ),
    Template(
        "A school orders {chairs} chairs at {chair} dollars each, with {percent}% off their price, and "
        "{tables} tables at {table} dollars each without a discount. Its budget is {budget} dollars. How "
        "many dollars of the budget remain? (If the budget is too small, the number is negative.)",
        lambda rng: {
            "chairs": rng.randint(50, 20_000),
            "chair": 100 * rng.randint(1, 9),
            "percent": rng.randint(3, 45),
            "tables": rng.randint(20, 9_000),
            "table": rng.randint(120, 2_000),
            "budget": rng.randint(1_000_000, 20_000_000),
        },
        lambda chairs, chair, percent, tables, table, budget: (
            budget - tables * table - chairs * (chair // 100) * (100 - percent)
        ),
        "cost = chairs * chair * (100 - percent) // 100 + tables * table\nprint(budget - cost)\n",
        MONEY,
    ),
    Template(
        "A prize of {total} dollars is shared by three winners in the ratio {a} : {b} : {c}. How many "
        "dollars more does the winner with the ratio's last number get than the one with its first? (If it "
        "is less, the number is negative.)",
        lambda rng: {
            "a": (a := rng.randint(1, 20)),
            "b": (b := rng.randint(1, 20)),
            "c": (c := rng.randint(1, 20)),
            "total": (a + b + c) * rng.randint(1_000, 900_000),
        },
        lambda a, b, c, total: Fraction(total * (c - a), a + b + c),
        "share = total // (a + b + c)\nprint(c * share - a * share)\n",
        MONEY,
    ),
    Template(
        "A culture begins with {start} cells. In each hour the number of cells doubles, and then {lost} of "
        "them are removed. How many cells are there after {hours} hours?",
        lambda rng: {
            "start": (start := rng.randint(2_000, 500_000)),
            "lost": rng.randint(100, start),
            "hours": rng.randint(4, 20),
        },
        lambda start, lost, hours: start * 2**hours - lost * (2**hours - 1),
        "cells = start\nfor hour in range(hours):\n    cells = 2 * cells - lost\nprint(cells)\n",
        ("cells",),
    ),
    Template(
        "{_name} copies an archive of {pages} pages: {first} pages on the first day, and on every later day "
        "{more} pages more than on the day before. How many pages are left after {days} days?",
        lambda rng: {
            **person(rng),
            "first": (first := rng.randint(200, 9_000)),
            "more": (more := rng.randint(15, 900)),
            "days": (days := rng.randint(5, 60)),
            "pages": days * first + days * days * more + rng.randint(0, 500_000),
        },
        lambda pages, first, more, days: pages - days * first - more * days * (days - 1) // 2,
        "for day in range(days):\n    pages -= first + day * more\nprint(pages)\n",
        ("pages",),
    ),
    Template(
        "Each of {trucks} trucks drives {distance} kilometres and needs {litres} litres of fuel for every "
        "100 kilometres. A litre costs {cents} cents. How many cents does the fuel of all trucks cost?",
        lambda rng: {
            "trucks": rng.randint(8, 3_000),
            "distance": 100 * rng.randint(12, 9_000),
            "litres": rng.randint(18, 55),
            "cents": rng.randint(95, 260),
        },
        lambda trucks, distance, litres, cents: trucks * (distance // 100) * litres * cents,
        "fuel = trucks * distance * litres // 100\nprint(fuel * cents)\n",
        ("cents", "cent"),
    ),
    Template(
        "A rectangular estate is {length} metres long and {width} metres wide. A fence around it needs a "
        "post every {gap} metres, at {post} dollars each, and wire at {wire} dollars a metre. What does the "
        "fence cost, in dollars?",
        lambda rng: {
            "gap": (gap := rng.randint(2, 12)),
            "length": gap * rng.randint(200, 9_000),
            "width": gap * rng.randint(200, 9_000),
            "post": rng.randint(4, 95),
            "wire": rng.randint(2, 40),
        },
        lambda gap, length, width, post, wire: 2 * (length // gap + width // gap) * (post + gap * wire),
        "around = 2 * (length + width)\nprint(around // gap * post + around * wire)\n",
        MONEY,
    ),
    Template(
        "A library gave {gift} books to a school, then sold half of the rest, then bought {bought} new "
        "books. Now it has {now} books. How many did it have before all that?",
        lambda rng: {
            "gift": rng.randint(1_000, 900_000),
            "bought": (bought := rng.randint(1_000, 90_000)),
            "now": bought + rng.randint(10_000, 4_000_000),
        },
        lambda gift, bought, now: 2 * now - 2 * bought + gift,
        "books = now - bought  # undo the last change first\nbooks *= 2\nbooks += gift\nprint(books)\n",
        ("books",),
    ),
    Template(
        "A machine holds {quarters} coins of 25 cents, {dimes} of 10 cents and {nickels} of 5 cents. After "
        "{cents} cents have been paid out, how much is left, in dollars? (A dollar is 100 cents; give the "
        "exact value.)",
        lambda rng: {
            "quarters": rng.randint(2_000, 90_000),
            "dimes": rng.randint(2_000, 90_000),
            "nickels": rng.randint(2_000, 90_000),
            "cents": 5 * rng.randint(200, 14_000),
        },
        lambda quarters, dimes, nickels, cents: Fraction(5 * quarters + 2 * dimes + nickels - cents // 5, 20),
        "left = 25 * quarters + 10 * dimes + 5 * nickels - cents\nprint(f'{left // 100}.{left % 100:02d}')\n",
        MONEY,
    ),
    Template(
        "In {games} rounds of a game, {_name} scored {average} points on average. How many points must "
        "{_name} score in the next round to bring the average over all rounds to {goal}? (The number may be "
        "negative.)",
        lambda rng: {
            **person(rng),
            "games": rng.randint(12, 900),
            "average": rng.randint(10_000, 900_000),
            "goal": rng.randint(10_000, 900_000),
        },
        lambda games, average, goal: goal + games * (goal - average),
        "print(goal * (games + 1) - average * games)\n",
        ("points",),
    ),
)


class GSMHard(Drawn):
    """Word problems of several steps whose numbers are too large for the head."""

    name = "gsm_hard"
    templates = WORD_PROBLEMS
    form = "Answer with a number alone: an integer, or an exact decimal or fraction."


# prints the root of the integer `square`; a program that has a fraction to take the root of uses p/q = pq/q^2
ROOT = """\
outside, inside, k = 1, square, 2
while k * k <= inside:  # take square factors out of the root
    while inside % (k * k) == 0:
        outside, inside = outside * k, inside // (k * k)
    k += 1
"""
PRINT_ROOT = ROOT + 'print(outside if inside == 1 else f"{outside}*sqrt({inside})".removeprefix("1*"))\n'
PRINT_QUOTIENT = ROOT + "factor = Fraction(outside, below)\n"
PRINT_QUOTIENT += 'print(factor if inside == 1 else f"{factor}*sqrt({inside})".removeprefix("1*"))\n'


def points(rng: random.Random, count: int, reach: int = 20) -> dict[str, object]:
    """Lattice points that are not all on a line, as x1, y1, x2 ..."""
    while True:
        drawn = [(rng.randint(-reach, reach), rng.randint(-reach, reach)) for _ in range(count)]
        (x, y), (p, q), (v, w) = (*drawn, (0, 0))[:3]
        if (p - x) * (w - y) != (v - x) * (q - y):
            return {
                f"{axis}{i}": z
                for i, point in enumerate(drawn, 1)
                for axis, z in zip("xy", point, strict=True)
            }


def sides(rng: random.Random, longest: int = 24) -> dict[str, object]:
    """Sides a, b, c of a triangle."""
    a, b = rng.randint(3, longest), rng.randint(3, longest)
    return {"a": a, "b": b, "c": rng.randint(abs(a - b) + 1, a + b - 1)}


def right_triangle(rng: random.Random, scale: int = 6) -> tuple[int, int, int]:
    """Legs and hypotenuse in integers (Euclid's formula)."""
    m, n, k = rng.randint(2, 6), 1, rng.randint(1, scale)
    n = rng.randint(1, m - 1)
    return k * (m * m - n * n), k * 2 * m * n, k * (m * m + n * n)


def doubled_area(x1: int, y1: int, x2: int, y2: int, x3: int, y3: int) -> int:
    return abs((x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1))


def heron(a: int, b: int, c: int) -> Fraction:
    """The square of the area, from the law of cosines."""
    cosine = Fraction(a * a + b * b - c * c, 2 * a * b)
    return Fraction(a * a * b * b, 4) * (1 - cosine * cosine)


GEOMETRY = (
    Template(
        "What is the distance between the points ({x1}, {y1}) and ({x2}, {y2})?",
        lambda rng: points(rng, 2),
        lambda x1, y1, x2, y2: Exact(Fraction((x1 - x2) ** 2 + (y1 - y2) ** 2)),
        "square = (x1 - x2)**2 + (y1 - y2)**2\n" + PRINT_ROOT,
    ),
    Template(
        "What is the area of the triangle with the corners ({x1}, {y1}), ({x2}, {y2}) and ({x3}, {y3})?",
        lambda rng: points(rng, 3),
        lambda **xy: Fraction(doubled_area(**xy), 2),
        "# shoelace formula\ndoubled = x1 * y2 - x2 * y1 + x2 * y3 - x3 * y2 + x3 * y1 - x1 * y3\n"
        "print(Fraction(abs(doubled), 2))\n",
    ),
    Template(
        "How many points with integer coordinates lie strictly inside the triangle with the corners ({x1}, "
        "{y1}), ({x2}, {y2}) and ({x3}, {y3})?",
        lambda rng: points(rng, 3, 9),
        lambda x1, y1, x2, y2, x3, y3: (
            (  # Pick's theorem
                doubled_area(x1, y1, x2, y2, x3, y3)
                - math.gcd(x1 - x2, y1 - y2)
                - math.gcd(x2 - x3, y2 - y3)
                - math.gcd(x3 - x1, y3 - y1)
                + 2
            )
            // 2
        ),
        "def side(x, y, ax, ay, bx, by):  # on which side of the line from a to b is (x, y)?\n"
        "    return (bx - ax) * (y - ay) - (by - ay) * (x - ax)\n\n"
        "count = 0\n"
        "for x in range(min(x1, x2, x3), max(x1, x2, x3) + 1):\n"
        "    for y in range(min(y1, y2, y3), max(y1, y2, y3) + 1):\n"
        "        s = side(x, y, x1, y1, x2, y2), side(x, y, x2, y2, x3, y3), side(x, y, x3, y3, x1, y1)\n"
        "        count += min(s) > 0 or max(s) < 0\n"
        "print(count)\n",
    ),
    Template(
        "How far is the point (0, 0) from the line through ({x1}, {y1}) and ({x2}, {y2})?",
        lambda rng: points(rng, 2),
        lambda x1, y1, x2, y2: Exact(Fraction((x1 * y2 - x2 * y1) ** 2, (x1 - x2) ** 2 + (y1 - y2) ** 2)),
        "# the foot of the perpendicular is at x1 + t dx, y1 + t dy\n"
        "dx, dy = x2 - x1, y2 - y1\nt = Fraction(-(x1 * dx + y1 * dy), dx**2 + dy**2)\n"
        "distance = (x1 + t * dx)**2 + (y1 + t * dy)**2  # squared\n"
        "square, below = distance.numerator * distance.denominator, distance.denominator\n" + PRINT_QUOTIENT,
    ),
    Template(
        "A triangle has sides of {a}, {b} and {c}. What is its area?",
        sides,
        lambda a, b, c: Exact(heron(a, b, c)),
        "# Heron's formula, times 16 under the root\n"
        "square, below = (a + b + c) * (-a + b + c) * (a - b + c) * (a + b - c), 4\n" + PRINT_QUOTIENT,
    ),
    Template(
        "A triangle has sides of {a}, {b} and {c}. What is the radius of its inscribed circle?",
        sides,
        lambda a, b, c: Exact(heron(a, b, c) * Fraction(2, a + b + c) ** 2),
        "# radius^2 = (s - a)(s - b)(s - c) / s with half the perimeter s\n"
        "r = Fraction((-a + b + c) * (a - b + c) * (a + b - c), 4 * (a + b + c))\n"
        "square, below = r.numerator * r.denominator, r.denominator\n" + PRINT_QUOTIENT,
    ),
    Template(
        "A triangle has sides of {a}, {b} and {c}. What is the radius of the circle through its corners?",
        sides,
        lambda a, b, c: Exact(Fraction(a * b * c, 4) ** 2 / heron(a, b, c)),
        "# radius = a b c / (4 area), and 16 area^2 is Heron's product\n"
        "r = Fraction((a * b * c)**2, (a + b + c) * (-a + b + c) * (a - b + c) * (a + b - c))\n"
        "square, below = r.numerator * r.denominator, r.denominator\n" + PRINT_QUOTIENT,
    ),
    Template(
        "A triangle ABC has AB = {c}, BC = {a} and CA = {b}. How long is the median from A to the middle of "
        "BC?",
        sides,
        lambda a, b, c: Exact(Fraction(2 * b * b + 2 * c * c - a * a, 4)),
        "# B = (0, 0), C = (a, 0), A = (x, y)\n"
        "x = Fraction(a * a + c * c - b * b, 2 * a)\nm = (x - Fraction(a, 2))**2 + c * c - x * x\n"
        "square, below = m.numerator * m.denominator, m.denominator\n" + PRINT_QUOTIENT,
    ),
    Template(
        "A box has edges of {a}, {b} and {c}. How long is its space diagonal?",
        lambda rng: {name: rng.randint(1, 40) for name in "abc"},
        lambda a, b, c: Exact(Fraction(a * a + b * b + c * c)),
        "square = a**2 + b**2 + c**2\n" + PRINT_ROOT,
    ),
    Template(
        "A chord of a circle with radius {r} is {d} away from the centre. How long is the chord?",
        lambda rng: {"r": (r := rng.randint(3, 60)), "d": rng.randint(1, r - 1)},
        lambda r, d: Exact(Fraction(4 * (r - d) * (r + d))),
        "square = (2 * r)**2 - (2 * d)**2\n" + PRINT_ROOT,
    ),
    Template(
        "The area of a regular hexagon is {times} times the area of an equilateral triangle with sides of "
        "{a}. How long is a side of the hexagon?",
        lambda rng: {"a": rng.randint(2, 40), "times": rng.randint(2, 60)},
        lambda a, times: Exact(Fraction(times * a * a, 6)),
        "# the hexagon is six equilateral triangles: 6 side^2 = times a^2\n"
        "square, below = 6 * times * a**2, 6\n" + PRINT_QUOTIENT,
    ),
    Template(
        "What is the area of a regular hexagon with a perimeter of {perimeter}?",
        lambda rng: {"perimeter": rng.randint(5, 300)},
        lambda perimeter: Exact(Fraction(perimeter, 6) ** 4 * Fraction(27, 4)),
        "# six equilateral triangles of side perimeter / 6, each of area side^2 sqrt(3) / 4\n"
        'print(f"{6 * Fraction(perimeter, 6)**2 / 4}*sqrt(3)")\n',
    ),
    Template(
        "A square has sides of {a}. What is the area between its inscribed circle and the circle through its "
        "corners?",
        lambda rng: {"a": rng.randint(2, 400)},
        lambda a: rational(Fraction(a * a, 4), 1),
        "inner = Fraction(a, 2)**2  # the radii, squared\nouter = 2 * inner\nprint(f'{outer - inner}*pi')\n",
    ),
    Template(
        "A sector of a circle with radius {r} has an angle of {angle} degrees at the centre. What is its "
        "area?",
        lambda rng: {"r": rng.randint(2, 60), "angle": rng.randint(5, 355)},
        lambda r, angle: rational(Fraction(r * r * angle, 360), 1),
        'print(f"{Fraction(angle, 360) * r**2}*pi")\n',
    ),
    Template(
        "A cone has a base of radius {r} and a slant height (from the tip to the rim of the base) of "
        "{slant}. What is its volume?",
        lambda rng: dict(zip(("r", "_height", "slant"), right_triangle(rng), strict=True)),
        lambda r, slant: Exact(Fraction(r**4 * (slant * slant - r * r), 9), 1),
        "height = math.isqrt(slant**2 - r**2)  # exact here\nprint(f'{Fraction(r**2 * height, 3)}*pi')\n",
    ),
    Template(
        "A ball just fits into a cube with edges of {a}. What is the volume of the ball?",
        lambda rng: {"a": rng.randint(1, 300)},
        lambda a: rational(Fraction(a**3, 6), 1),
        'r = Fraction(a, 2)\nprint(f"{Fraction(4, 3) * r**3}*pi")\n',
    ),
    Template(
        "A cylinder of radius {r} and height {h} is melted and cast into balls of radius {ball}. What is the "
        "volume of metal left after as many full balls as possible?",
        lambda rng: {"r": rng.randint(3, 30), "h": rng.randint(3, 60), "ball": rng.randint(1, 5)},
        lambda r, h, ball: rational(Fraction(3 * r * r * h % (4 * ball**3), 3), 1),
        "cylinder, one = r**2 * h, Fraction(4, 3) * ball**3  # in units of pi\n"
        "while cylinder >= one:\n    cylinder -= one\nprint(f'{cylinder}*pi')\n",
    ),
    Template(
        "The legs of a right triangle are {p} and {q}. How long is the altitude on the hypotenuse?",
        lambda rng: dict(zip("pq", right_triangle(rng), strict=False)),
        lambda p, q: Exact(Fraction(p * p * q * q, p * p + q * q)),
        "hypotenuse = math.isqrt(p**2 + q**2)  # exact here\n"
        "print(Fraction(p * q, hypotenuse))  # twice the area over the base\n",
    ),
    Template(
        "How many degrees does an interior angle of a regular polygon with {n} sides have?",
        lambda rng: {"n": rng.randint(7, 500)},
        lambda n: 180 - Fraction(360, n),
        "print(Fraction((n - 2) * 180, n))\n",
        ("degrees", "degree"),
    ),
    Template(
        "The angles of a triangle are in the ratio {p} : {q} : {r}. How many degrees has the largest angle?",
        lambda rng: {name: rng.randint(1, 30) for name in "pqr"},
        lambda p, q, r: Fraction(180 * max(p, q, r), p + q + r),
        "print(Fraction(max(p, q, r), p + q + r) * 180)\n",
        ("degrees", "degree"),
    ),
    Template(
        "Two similar triangles have corresponding sides of {p} and {q}. The area of the triangle with the "
        "side of {p} is {area}. What is the area of the other?",
        lambda rng: {"p": rng.randint(2, 30), "q": rng.randint(2, 30), "area": rng.randint(5, 900)},
        lambda p, q, area: Fraction(area * q * q, p * p),
        "print(area * Fraction(q, p)**2)\n",
    ),
    Template(
        "An isosceles trapezoid has parallel sides of {short} and {long} and legs of {leg}. What is its "
        "area?",
        lambda rng: {
            "_half": (half := right_triangle(rng))[0],
            "short": (short := rng.randint(2, 50)),
            "long": short + 2 * half[0],
            "leg": half[2],
        },
        lambda short, long, leg: Exact(
            Fraction(short + long, 2) ** 2 * (leg**2 - Fraction(long - short, 2) ** 2)
        ),
        "height = math.isqrt(leg**2 - ((long - short) // 2)**2)  # exact here\n"
        "print(Fraction((short + long) * height, 2))\n",
    ),
)


class MathGeometry(Drawn):
    """Lengths, areas, volumes and angles with exact answers."""

    name = "math_geometry"
    templates = GEOMETRY
    form = (
        "Answer with the exact value: an integer or a fraction such as 7/2, or where needed a multiple of a "
        "root or of pi such as 3*sqrt(5)/2 or 4*pi/3."
    )


def surjections(n: int, k: int) -> int:
    return sum((-1) ** i * math.comb(k, i) * (k - i) ** n for i in range(k + 1))


def bounded_sums(total: int, count: int, most: int) -> int:
    """In how many ways `count` ordered numbers of 0 to `most` have this total (inclusion and exclusion)."""
    return sum(
        (-1) ** i * math.comb(count, i) * math.comb(total - i * (most + 1) + count - 1, count - 1)
        for i in range(count + 1)
        if total >= i * (most + 1)
    )


def divisible(n: int, *divisors: int) -> int:
    """How many of 1 to n are divisible by at least one of the divisors (inclusion and exclusion)."""
    return sum(
        -((-1) ** size) * (n // math.lcm(*some))
        for size in range(1, len(divisors) + 1)
        for some in itertools.combinations(divisors, size)
    )


COUNTING = (
    Template(
        "In how many different orders can the letters {word} be written?",
        lambda rng: {"word": "".join(rng.choices("ABCDEFGH"[: rng.randint(3, 6)], k=rng.randint(5, 8)))},
        lambda word: math.factorial(len(word)) // math.prod(math.factorial(word.count(x)) for x in set(word)),
        "print(len(set(itertools.permutations(word))))\n",
    ),
    Template(
        "A committee of {size} is chosen from {women} women and {men} men. In how many ways can this be done "
        "if at least {least} women must be in it?",
        lambda rng: {
            "size": (size := rng.randint(3, 7)),
            "women": rng.randint(size, 15),
            "men": rng.randint(size, 15),
            "least": rng.randint(1, size - 1),
        },
        lambda size, women, men, least: (
            math.comb(women + men, size)
            - sum(math.comb(women, k) * math.comb(men, size - k) for k in range(least))
        ),
        "print(sum(math.comb(women, k) * math.comb(men, size - k) for k in range(least, size + 1)))\n",
    ),
    Template(
        "{dice} fair dice with the faces 1 to {faces} are thrown. What is the probability that the sum is "
        "{total}?",
        lambda rng: {
            "dice": (dice := rng.randint(2, 4)),
            "faces": (faces := rng.choice([4, 6, 8, 10])),
            "total": rng.randint(dice + 1, dice * faces - 1),
        },
        lambda dice, faces, total: Fraction(bounded_sums(total - dice, dice, faces - 1), faces**dice),
        "throws = list(itertools.product(range(1, faces + 1), repeat=dice))\n"
        "print(Fraction(sum(sum(throw) == total for throw in throws), len(throws)))\n",
    ),
    Template(
        "An urn holds {red} red and {blue} blue balls. {drawn} balls are drawn without putting any back. "
        "What is the probability that exactly {wanted} of them are red?",
        lambda rng: {
            "drawn": (drawn := rng.randint(2, 5)),
            "red": rng.randint(drawn, 9),
            "blue": rng.randint(drawn, 9),
            "wanted": rng.randint(0, drawn),
        },
        lambda drawn, red, blue, wanted: Fraction(
            math.comb(red, wanted) * math.comb(blue, drawn - wanted), math.comb(red + blue, drawn)
        ),
        "draws = list(itertools.combinations([1] * red + [0] * blue, drawn))\n"
        "print(Fraction(sum(sum(draw) == wanted for draw in draws), len(draws)))\n",
    ),
    Template(
        "On a grid, one goes from (0, 0) to ({a}, {b}) by steps of 1 to the right or 1 up, never through the "
        "point ({p}, {q}). How many ways are there?",
        lambda rng: {
            "a": (a := rng.randint(3, 12)),
            "b": (b := rng.randint(3, 12)),
            "p": rng.randint(1, a - 1),
            "q": rng.randint(1, b - 1),
        },
        lambda a, b, p, q: math.comb(a + b, a) - math.comb(p + q, p) * math.comb(a + b - p - q, a - p),
        "ways = {(0, 0): 1}\nfor x in range(a + 1):\n    for y in range(b + 1):\n"
        "        if (x, y) == (p, q):\n            ways[x, y] = 0\n"
        "        elif (x, y) != (0, 0):\n"
        "            ways[x, y] = ways.get((x - 1, y), 0) + ways.get((x, y - 1), 0)\nprint(ways[a, b])\n",
    ),
    Template(
        "How many positive integers with {digits} digits are divisible by {divisor} and have no digit twice?",
        lambda rng: {"digits": rng.randint(2, 4), "divisor": rng.randint(2, 60)},
        lambda digits, divisor: sum(
            len(set(str(n))) == digits
            for n in range(-(-(10 ** (digits - 1)) // divisor) * divisor, 10**digits, divisor)
        ),
        "count = 0\nfor p in itertools.permutations('0123456789', digits):\n"
        "    count += p[0] != '0' and int(''.join(p)) % divisor == 0\nprint(count)\n",
    ),
    Template(
        "How many of the integers from 1 to {n} are divisible by {a} or by {b}, but not by {c}?",
        lambda rng: {
            "n": rng.randint(200, 60_000),
            **dict(zip("abc", rng.sample(range(2, 20), 3), strict=True)),
        },
        lambda n, a, b, c: divisible(n, a, b, c) - n // c,
        "print(sum((k % a == 0 or k % b == 0) and k % c != 0 for k in range(1, n + 1)))\n",
    ),
    Template(
        "In how many ways can {sweets} equal sweets be given to {children} children if no child gets more "
        "than {most}? (Children may get none.)",
        lambda rng: {
            "children": (children := rng.randint(3, 7)),
            "most": (most := rng.randint(3, 9)),
            "sweets": rng.randint(2, children * most - 1),
        },
        lambda children, most, sweets: bounded_sums(sweets, children, most),
        "ways = [1] + [0] * sweets  # ways[s]: to give s sweets to the children so far\n"
        "for child in range(children):\n"
        "    ways = [sum(ways[max(0, s - most):s + 1]) for s in range(sweets + 1)]\nprint(ways[sweets])\n",
    ),
    Template(
        "A coin shows heads with probability {p}/{q}. It is tossed {n} times. What is the probability of at "
        "least {k} heads?",
        lambda rng: {
            "q": (q := rng.randint(2, 5)),
            "p": rng.randint(1, q - 1),
            "n": (n := rng.randint(3, 8)),
            "k": rng.randint(1, n),
        },
        lambda q, p, n, k: Fraction(
            sum(math.comb(n, i) * p**i * (q - p) ** (n - i) for i in range(k, n + 1)), q**n
        ),
        "chance = [Fraction(1)] + [Fraction(0)] * n  # chance[h]: of h heads so far\n"
        "for toss in range(n):\n"
        "    before = [0, *chance]\n"
        "    chance = [c * Fraction(q - p, q) + b * Fraction(p, q) for b, c in zip(before, chance)]\n"
        "print(sum(chance[k:]))\n",
    ),
    Template(
        "{n} people, among them {_name} and a rival, sit down at a round table with {n} chairs; seatings "
        "that differ by a rotation are the same, mirror images are not. How many seatings keep {_name} and "
        "the rival from sitting side by side?",
        lambda rng: {**person(rng), "n": rng.randint(4, 9)},
        lambda n: math.factorial(n - 1) - 2 * math.factorial(n - 2),
        "# person 0 is fixed; person 1 must not sit on the first or last of the other chairs\n"
        "print(sum(1 not in (p[0], p[-1]) for p in itertools.permutations(range(1, n))))\n",
    ),
    Template(
        "{n} guests leave their {_goods}, each a different one, and get them back at random, one each. In "
        "how many ways can exactly {k} guests get their own?",
        lambda rng: {**person(rng), "n": (n := rng.randint(4, 8)), "k": rng.randint(0, n - 2)},
        lambda n, k: (
            math.comb(n, k)
            * sum((-1) ** i * math.factorial(n - k) // math.factorial(i) for i in range(n - k + 1))
        ),
        "orders = itertools.permutations(range(n))\n"
        "print(sum(sum(i == x for i, x in enumerate(order)) == k for order in orders))\n",
    ),
    Template(
        "How many strings of {n} letters, each A or B, do not contain {k} letters A in a row?",
        lambda rng: {"n": rng.randint(5, 17), "k": rng.randint(2, 5)},
        lambda n, k: _without_run(n, k),
        "words = map(''.join, itertools.product('AB', repeat=n))\nprint(sum('A' * k not in word for word in "
        "words))\n",
    ),
    Template(
        "{dice} fair dice with the faces 1 to {faces} are thrown. What is the expected value of the largest "
        "number?",
        lambda rng: {"dice": rng.randint(2, 4), "faces": rng.randint(4, 20)},
        lambda dice, faces: faces - Fraction(sum(m**dice for m in range(faces)), faces**dice),
        "throws = list(itertools.product(range(1, faces + 1), repeat=dice))\n"
        "print(Fraction(sum(map(max, throws)), len(throws)))\n",
    ),
    Template(
        "In how many ways can {n} different {_goods} be given to {k} people so that everyone gets at least "
        "one?",
        lambda rng: {**person(rng), "k": (k := rng.randint(2, 4)), "n": rng.randint(k, 8)},
        lambda n, k: surjections(n, k),
        "ways = itertools.product(range(k), repeat=n)  # who gets each one\n"
        "print(sum(len(set(way)) == k for way in ways))\n",
    ),
    Template(
        "In how many ways can {k} of the numbers from 1 to {n} be chosen so that no two of them are "
        "neighbours such as 4 and 5?",
        lambda rng: {"k": (k := rng.randint(2, 5)), "n": rng.randint(2 * k, 18)},
        lambda k, n: math.comb(n - k + 1, k),
        "choices = itertools.combinations(range(1, n + 1), k)\n"
        "print(sum(all(b - a > 1 for a, b in zip(c, c[1:])) for c in choices))\n",
    ),
    Template(
        "A pack has {suits} suits of {values} cards each. {hand} cards are drawn without putting any back. "
        "What is the probability that they are all of one suit?",
        lambda rng: {"suits": rng.randint(2, 6), "values": rng.randint(4, 13), "hand": rng.randint(2, 3)},
        lambda suits, values, hand: Fraction(
            suits * math.comb(values, hand), math.comb(suits * values, hand)
        ),
        "pack = [suit for suit in range(suits) for value in range(values)]\n"
        "hands = list(itertools.combinations(pack, hand))\n"
        "print(Fraction(sum(len(set(h)) == 1 for h in hands), len(hands)))\n",
    ),
    Template(
        "The first urn holds {red1} red and {blue1} blue balls, the second {red2} red and {blue2} blue "
        "balls. One of the urns is chosen, both being equally likely, and a ball is drawn from it: it is "
        "red. What is the probability that it came from the first urn?",
        lambda rng: {name: rng.randint(1, 20) for name in ("red1", "blue1", "red2", "blue2")},
        lambda red1, blue1, red2, blue2: Fraction(
            red1 * (red2 + blue2), red1 * (red2 + blue2) + red2 * (red1 + blue1)
        ),
        "# Bayes: both urns are equally likely before the draw\n"
        "first, second = Fraction(red1, red1 + blue1), Fraction(red2, red2 + blue2)\n"
        "print(first / (first + second))\n",
    ),
    Template(
        "A board has {rows} rows and {columns} columns of squares. How many rectangles made of whole squares "
        "of the board are not squares themselves?",
        lambda rng: {"rows": rng.randint(2, 25), "columns": rng.randint(2, 25)},
        lambda rows, columns: (
            math.comb(rows + 1, 2) * math.comb(columns + 1, 2)
            - sum((rows - k) * (columns - k) for k in range(min(rows, columns)))
        ),
        "count = 0\nfor height in range(1, rows + 1):\n    for width in range(1, columns + 1):\n"
        "        if height != width:\n"
        "            count += (rows - height + 1) * (columns - width + 1)  # places of this "
        "shape\nprint(count)\n",
    ),
)


def _without_run(n: int, k: int) -> int:
    """Strings of n letters A or B without k letters A in a row: they begin with A^i B for an i < k."""
    counts = [1]
    for length in range(1, n + 1):
        counts.append(sum(counts[max(0, length - k) : length]) + (length < k))
    return counts[n]


class MathCountingProbability(Drawn):
    """Numbers of ways, probabilities and expected values."""

    name = "math_counting_probability"
    templates = COUNTING
    form = "Answer with an integer or a fraction such as 7/2."


TASKS: dict[str, Task] = {
    task.name: task for task in (NumberMultiply(), GSMHard(), MathGeometry(), MathCountingProbability())
}
