r"""Whether two mathematical answers are the same, however they are written: math_equal(answer, right).

    "0.5" = "1/2" = "\\frac{1}{2}" = "50\\%"      "\\sqrt{8}" = "2\\sqrt2"      "(x+1)^2" = "x^2+2x+1"
    "\\{1, 2\\}" = "2, 1"      "(0, 1]" = "\\left(0,1\\right]"      "12\\text{ cm}" = "12", but not "12 m"

tasks/notation.py brings a text into one notation, and tasks/expressions.py reads it as a structure (union,
set, sequence, matrix) of expressions. Expressions are compared exactly where they are rational, else to 150
digits by mpmath. Expressions with variables are compared at random points: real ones if they are defined
there, else complex values. What is no mathematics is compared as text.
"""

import itertools
import operator
import random
import re
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from math import ceil, comb, factorial, floor, isqrt

from tasks.answers import normal
from tasks.expressions import (
    DEGREE,
    FUNCTIONS,
    LENGTH,
    ROUNDED,
    Group,
    Node,
    OutOfTime,
    Scalar,
    Unreadable,
    Value,
    cased,
    look_at_clock,
    names,
    negative,
    readings,
    variables,
)
from tasks.notation import plain, words

BITS = 20_000  # of a number
DIGITS = 180  # of inexact numbers; they are the same if they agree to 150
POINTS = 6  # at which expressions with variables are compared
FAR = (20, 50, 200, 1000, 10**6)  # and sizes of points, of both signs, at which no difference may be found
SECONDS = 10.0  # for one comparison


class NotReal(Exception):
    """A value that is no real number, such as the root of a negative one."""


def math_equal(answer: object, right: object) -> bool:
    r"""Whether an answer means the same as the right one. Never raises; takes about a millisecond, at most
    SECONDS.

    The two are alike but for two rules. An answer rounded to two or more decimals is right where the right
    one has more of them. An answer of equal sides is its last side.

    >>> math_equal("\\frac{3}{4}", "0.75"), math_equal("x=5", "5"), math_equal("[1, 2)", "(1, 2)")
    (True, True, False)
    >>> math_equal("3.14", "3.14159"), math_equal("3.14159", "3.14")
    (True, False)
    """
    a, b = str(answer), str(right)
    if max(len(a), len(b)) > LENGTH:
        return " ".join(a.split()) == " ".join(b.split())
    a, b = plain(a), plain(b)
    if _text(a) == _text(b) != "" and (len(_text(a)) == 1 or _letters(a) == _letters(b)):
        return True
    if _same_option(a, b):
        return True
    try:
        deadline = time.monotonic() + SECONDS
        if _same(a, b, deadline):
            return True
        last = _last_side(a, deadline)
        return bool(last) and _same(last, b, deadline)
    except (OutOfTime, RecursionError):
        return False


def _same(a: str, b: str, deadline: float) -> bool:
    """Whether a reading of one text is the same as a reading of the other."""
    try:
        pairs = itertools.product(readings(a, deadline), readings(b, deadline))
        return any(itertools.starmap(_Comparison().same, pairs))
    except Unreadable:
        return False


def _last_side(text: str, deadline: float) -> str:
    """The last of equal sides, after its name: "5" of "10/2 = 5", "x=5" of "x = 10/2 = 5". Empty where the
    sides are not equal."""
    *sides, last = text.split("=")
    equal = [_same(side, last, deadline) for side in sides]
    if not equal or not all(equal[1:]):
        return ""
    return last if equal[0] else f"{sides[0]}={last}"


def _text(text: str) -> str:
    """The answer as text, for answers that are no mathematics: "\\\\text{(C)}" is "c"."""
    text = words(text)
    if "[[" in text:
        return ""
    if "," not in text:
        return normal(text)
    return ("" if not _SPACED_LIST.search(text) else " ").join(text.lower().split())


def _letters(text: str) -> str:
    """The letters of an answer, which have the same case in the same answer, but in words."""
    return "".join(filter(str.isalpha, cased(words(text))))


_SPACED_LIST = re.compile(r"\d,\s+\d{3}")  # "1, 234" is no 1,234
_OPTION = re.compile(
    r"(?:(?i:option|choice)\s+)?(?:\(?([A-J])\)?[.:]?|(?:\(([A-J])\)|([A-J])[).:])[.:]?\s*(.*))", re.DOTALL
)
# What makes an option's text another option's too: its letter, also a small one that stands alone, or "not".
_SEVERAL = re.compile(
    r"\\or\b|\b(?!A [a-z])[A-J]\b|(?<=\d)[A-Ja-j](?=[).:])|\b(?:not|but|rather|neither|except|wrong)\b"
    r"|\([a-j]\)|(?<![\w+*/^=\\{-])\s*\b(?!a [a-z])[a-j]\b(?!\s*[\w+*/^={(-])"
)


def _same_option(a: str, b: str) -> bool:
    """Whether the two are one option's letter, at least one of them without the option's text."""
    found = [_OPTION.fullmatch(words(text).strip()) for text in (a, b)]
    if not all(found) or any(_SEVERAL.search(option[4] or "") for option in found):
        return False
    letters = {option[1] or option[2] or option[3] for option in found}
    return len(letters) == 1 and any(not option[4] for option in found)


# -- comparison --------------------------------------------------------------------------------------


class _Comparison:
    """One call's comparisons, which share the time of its readings."""

    def same(self, a: Value, b: Value) -> bool:
        look_at_clock()
        if a.name and b.name and a.name != b.name:
            return False
        if isinstance(a, Scalar) and isinstance(b, Scalar):
            try:
                return self.scalars(a, b)
            except Unreadable:
                return False
        if isinstance(a, Scalar) or isinstance(b, Scalar):
            group = a if isinstance(a, Group) else b
            if group.kind not in ("list", "set", "[]") or len(group.items) != 1:
                return False
            return self.same(group.items[0], b) if group is a else self.same(a, group.items[0])
        return len(a.items) == len(b.items) and self.groups(a, b)

    def groups(self, a: Group, b: Group) -> bool:
        kinds = {a.kind, b.kind}
        if kinds == {"list", "[]"} and len(a.items) > 2:  # as Python prints a list; no interval
            kinds = {"list"}
        named = [item.name for item in (*a.items, *b.items) if item.name]
        if kinds == {"list", "()"} and named == sorted(set(named)) and len(named) == len(a.items):
            kinds = {"()"}  # "x = 1, y = 2" is "(1, 2)"
        ordered = _repeats(a) or _repeats(b) or _several_names(a) != _several_names(b)
        if kinds <= {"list", "set"} and not ordered or kinds in ({"set"}, {"union"}):
            return self.sets(list(a.items), list(b.items))
        sequences = all(kind[0] in "([{" for kind in kinds)
        if len(kinds) > 1 and (not sequences or len(a.items) == 2):
            return False
        return all(self.same(x, y) for x, y in zip(a.items, b.items, strict=True))

    def sets(self, a: list[Value], b: list[Value]) -> bool:
        """Whether the items match one to one; being the same is transitive enough to match greedily."""
        for x in a:
            found = next((i for i, y in enumerate(b) if self.same(x, y)), None)
            if found is None:
                return False
            b.pop(found)
        return True

    def scalars(self, a: Scalar, b: Scalar) -> bool:
        if a.unit != b.unit and (a.unit and b.unit or a.required or b.required):
            return False
        if a.percent != b.percent:
            hundredth = [("/", x.node, ("number", Fraction(100), 0)) if x.percent else x.node for x in (a, b)]
            return not (a.unit or b.unit) and (self.nodes(a.node, b.node) or self.nodes(*hundredth))
        if self.nodes(a.node, b.node):
            return True
        radians = [("*", x.node, DEGREE) if x.unit == "degree" else x.node for x in (a, b)]
        return {a.unit, b.unit} == {"", "degree"} and self.nodes(*radians)

    def nodes(self, a: Node, b: Node) -> bool:
        """Two expressions, or two equations or inequalities."""
        if a == b:
            return True
        kinds = {a[0], b[0]}
        if "words" in kinds:
            return False
        if kinds & set("=≠<≤"):
            if len(kinds) > 1:
                return False
            left, right = ("-", a[1], a[2]), ("-", b[1], b[2])
            return self.relations(left, right, a[0])
        if "infinity" in names(a) | names(b):
            return False
        return _rounded(a, b) or self.numbers(a, b)

    def relations(self, a: Node, b: Node, sign: str) -> bool:
        """Whether a = 0 and b = 0 (or another relation) hold together: they are the same but for a sign, or,
        equations in several variables, proportional."""
        if self.nodes(a, b):
            return True
        if sign in "<≤":
            return False
        if self.nodes(negative(a), b):
            return True
        if len(variables(a) | variables(b)) < 2 or any(self.nodes(side, negative(side)) for side in (a, b)):
            return False
        return self.nodes(("*", a, _primed(b)), ("*", b, _primed(a)))

    def numbers(self, a: Node, b: Node) -> bool:
        """Equal wherever both are real; if they are so nowhere, equal as complex values."""
        if "i" not in names(a) | names(b):
            verdict = self.at_points(a, b, real=True)
            if verdict is not None:
                return verdict
        return bool(self.at_points(a, b, real=False))

    def at_points(self, a: Node, b: Node, real: bool) -> bool | None:
        """Whether the two agree at every random point at which both are defined; None if there is no such
        point. Without variables there is one point."""
        letters = sorted(variables(a) | variables(b))
        allowed = max(_allowed(a), _allowed(b))
        rng = random.Random(0)
        compared = 0
        for turn in range(4 * POINTS if letters else 1):
            point = {letter: _coordinate(rng, turn) for letter in letters}
            try:
                x, y = map(_Values(point, real).of, (a, b))
            except (NotReal, ZeroDivisionError, OverflowError, ValueError):  # ValueError: a pole, says mpmath
                continue
            if not _close(x, y, allowed):
                return False
            compared += 1
            if compared == POINTS:
                break
        return not (real and letters and self.differ_far(a, b, letters)) if compared else None

    def differ_far(self, a: Node, b: Node, letters: list[str]) -> bool:
        """Whether the two differ at a large point by more than a rounding error. Every value in the
        computation has 150 right digits."""
        rng = random.Random(1)
        for size in FAR:
            for sign in (1, -1):
                signs = [sign, *(rng.choice((1, -1)) for _ in letters[1:])]
                point = {
                    x: s * Fraction(size * rng.randint(97, 193), 97)
                    for x, s in zip(letters, signs, strict=True)
                }
                values = _Values(point, real=True)
                try:
                    x, y = map(values.of, (a, b))
                except (NotReal, ZeroDivisionError, OverflowError, ValueError, Unreadable):
                    continue
                if not _close(x, y, Fraction(0), values.largest):
                    return True
        return False


def _coordinate(rng: random.Random, turn: int) -> Fraction:
    """One coordinate of a random point. The first two points have different signs, to tell |x| from x. The
    third is an integer. Half of the others lie between -1 and 1."""
    size = Fraction(rng.randint(1, 96) if turn % 2 else rng.randint(100, 999), 97)
    if turn < 2:
        return -size if turn else size
    return Fraction(rng.randint(2, 9)) if turn == 2 else rng.choice((1, -1)) * size


def _primed(node: Node) -> Node:
    """The tree with new names for its variables."""
    if node[0] == "name":
        return node if node[1] in ("e", "i") else ("name", node[1] + "'")
    return (node[0], *(_primed(child) if isinstance(child, tuple) else child for child in node[1:]))


def _repeats(group: Group) -> bool:
    """Whether an item of a list is there twice, so that it is a sequence, such as digits."""
    return group.kind != "set" and len(set(group.items)) < len(group.items)


def _several_names(group: Group) -> bool:
    """Whether the items are values of several variables: "x = 1, y = 2" is "1, 2", not "2, 1"."""
    return len({item.name for item in group.items} - {""}) > 1


def _decimal(node: Node) -> tuple[Fraction, int]:
    """Value and decimals of a plain number; (0, 0) of anything else."""
    sign = 1
    if node[0] == "-" and node[1] == negative(node)[1]:
        node, sign = node[2], -1
    return (sign * node[1], node[2]) if node[0] == "number" else (Fraction(0), 0)


def _allowed(node: Node) -> Fraction:
    """The allowed difference of a decimal: half of its last place, from ROUNDED places on, else 0. Numbers of
    16 or 17 digits are printed floats, which may have a float's rounding error."""
    value, places = _decimal(node)
    if places < ROUNDED:
        return Fraction(0)
    last = Fraction(1, 10**places)
    shown = int(abs(value) / last)
    printed = 16 <= len(str(shown)) <= 17 and shown % 10
    return max(last / 2, abs(value) / 10**15 if printed else Fraction(0))


def _rounded(answer: Node, right: Node) -> bool:
    """Whether the answer is the right decimal rounded to two or more decimals, with two digits or more."""
    (value, places), (exact, more) = _decimal(answer), _decimal(right)
    unit = Fraction(1, 10**places)
    return 2 <= places < more and abs(value) >= 10 * unit and 2 * abs(value - exact) <= unit


def _close(x, y, allowed: Fraction, size=1) -> bool:
    """Whether two values differ by at most `allowed`. Irrational values may also differ in the 150th digit of
    `size`, the largest value in their computation."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return abs(x - y) <= allowed
    x, y = _inexact(x), _inexact(y)
    rounding = _mpmath().mpf(10) ** -150 * max(abs(x), abs(y), size)
    return abs(x - y) <= max(rounding, _inexact(allowed))


# -- values ------------------------------------------------------------------------------------------

_threads = threading.local()


def _mpmath():
    """The thread's own mpmath, with DIGITS: its precision is a state that threads must not share."""
    if not hasattr(_threads, "context"):
        from mpmath import MPContext

        _threads.context = MPContext()
        _threads.context.dps = DIGITS
    return _threads.context


def _inexact(value):
    return _mpmath().mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class _Values:
    """Evaluates trees at a point: Fractions where they are rational, else mpmath's real or complex numbers.
    Raises Unreadable if a value is too large, NotReal if it is not real and has to be."""

    def __init__(self, point: dict[str, Fraction], real: bool):
        self.point, self.real = point, real
        self.largest = 1  # of the inexact values so far, by their size

    def of(self, node: Node):
        kind = node[0]
        if kind == "number":
            return node[1]
        if kind == "name" and node[1] in self.point:
            return self.point[node[1]]
        if kind == "pi":
            return +_mpmath().pi
        if kind == "name":
            return +_mpmath().e if node[1] == "e" else _mpmath().mpc(0, 1)
        if kind in ("words", "=", "≠", "<", "≤"):
            raise Unreadable("no expression")
        look_at_clock()
        return self.checked(self.applied(kind, [self.of(child) for child in node[1:]]))

    def checked(self, value):
        """The value, where it is finite, not too large, and real if it has to be."""
        if isinstance(value, Fraction):
            size = max(abs(value.numerator), value.denominator).bit_length()
        else:
            mp = _mpmath()
            if isinstance(value, mp.mpc) and self.real:
                raise NotReal
            if not mp.isfinite(value):
                raise ZeroDivisionError
            size = abs(mp.mag(value)) if value else 0
            self.largest = max(self.largest, abs(value))
        if size > BITS:
            raise Unreadable("too large")
        return value

    def applied(self, kind: str, values: list):
        """An operator or a function of values."""
        if kind == "^":
            return self.power(*values)
        if kind == "sqrt":
            return self.power(values[0], 1 / values[1] if len(values) > 1 else Fraction(1, 2))
        if kind == "cbrt":
            return self.power(values[0], Fraction(1, 3))
        exact = _EXACT.get(kind) if all(isinstance(value, Fraction) for value in values) else None
        if exact and (value := exact(*values)) is not None:
            return value
        values = [_inexact(value) for value in values]
        self.largest = max(self.largest, *map(abs, values))
        if kind in "+-*/":
            return _EXACT[kind](*values)
        if any(_mpmath().mag(value) > _LARGEST[kind] for value in values if value):
            raise Unreadable("too large")
        return _INEXACT[kind](_mpmath(), *values)

    def power(self, base, exponent):
        """base ^ exponent; among real numbers an odd root of a negative number is negative."""
        if isinstance(base, Fraction) and isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                size = max(abs(base.numerator), base.denominator).bit_length()
                if (size - 1) * abs(exponent) > BITS:
                    raise Unreadable("too large")
                return base ** int(exponent)
            if exponent == Fraction(1, 2) and base >= 0:
                root = Fraction(isqrt(base.numerator), isqrt(base.denominator))
                if root * root == base:
                    return root
        if self.real and isinstance(exponent, Fraction) and exponent.denominator % 2 and base < 0:
            return (-1) ** exponent.numerator * self.power(-base, exponent)
        mp = _mpmath()
        base, exponent = _inexact(base), _inexact(exponent)
        if base and mp.mag(exponent) + mp.mag(mp.log(base) or 1) > 20:
            raise Unreadable("too large")
        return base**exponent


def _factorial(x) -> Fraction | None:
    if isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000:
        return Fraction(factorial(int(x)))
    return None


def _binomial(n, k) -> Fraction | None:
    if all(isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 1000 for x in (n, k)):
        return Fraction(comb(int(n), int(k)))
    return None


def _whole(rounded: Callable) -> Callable:
    return lambda x: Fraction(rounded(x)) if isinstance(x, Fraction) else None


_EXACT: dict[str, Callable] = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
_EXACT |= {"abs": lambda x: abs(x), "floor": _whole(floor), "ceil": _whole(ceil)}
_EXACT |= {"!": _factorial, "binom": _binomial}

_HYPERBOLIC = ("sinh", "cosh", "tanh", "coth", "sech", "csch")
# named otherwise by mpmath
_OTHERS = ("ln", "sqrt", "cbrt", "lg", "lb", "!", "binom", "/", "^", "abs", "cis")
_INEXACT: dict[str, Callable] = {
    name: lambda mp, x, name=name: getattr(mp, name)(x)
    for name in set(FUNCTIONS.values()).difference(_OTHERS)
}
_INEXACT |= {
    "abs": lambda mp, x: abs(x),
    "ln": lambda mp, x, base=None: mp.log(x) if base is None else mp.log(x) / mp.log(base),
    "lg": lambda mp, x: mp.log(x) / mp.log(10),
    "lb": lambda mp, x: mp.log(x) / mp.log(2),
    "cis": lambda mp, x: mp.expj(x),
    "!": lambda mp, x: mp.gamma(x + 1),
    "binom": lambda mp, n, k: mp.binomial(n, k),
}
# The power of two that an argument may reach: the sine of a larger one, or a larger power, takes long.
_LARGEST = dict.fromkeys(_INEXACT, 1000) | dict.fromkeys(("ln", "lg", "lb", "abs", "floor", "ceil"), BITS)
_LARGEST |= dict.fromkeys(("exp", "cis", *_HYPERBOLIC), 14) | dict.fromkeys(("!", "binom"), 10)
