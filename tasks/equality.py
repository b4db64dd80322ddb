r"""Whether two mathematical answers are the same, however they are written: math_equal(a, b).

    "0.5" = "1/2" = "\\frac{1}{2}" = "50\\%"      "\\sqrt{8}" = "2\\sqrt2"      "(x+1)^2" = "x^2+2x+1"
    "\\{1, 2\\}" = "2, 1"      "(0, 1]" = "\\left(0,1\\right]"      "12\\text{ cm}" = "12", but not "12 m"

A text is read as a structure (union, set, sequence, matrix) of expressions by a parser of its own: nothing of
it is ever evaluated as Python. Expressions without variables are compared exactly where they are rational,
else to 50 digits; those with variables at random points, to 50 digits. What is left (complex numbers, inverse
functions) goes to sympy (extra) in a process with a time limit, written anew from the parsed tree. What is no
mathematics is compared as text. Length, depth and the size of every number are limited.
"""

import functools
import importlib.util
import json
import random
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from decimal import Context, Decimal, DecimalException, localcontext
from fractions import Fraction

from tasks.answers import normal

LENGTH, DEPTH, BITS = 1000, 40, 20_000  # of a text that is parsed, of its brackets, of a number
DIGITS = 60  # of inexact numbers; they are the same if they agree to 50
POINTS = 6  # at which expressions with variables are compared
SECONDS = 10.0  # for sympy, its start included
ROUNDED = 6  # a decimal with so many places or more may have been rounded

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
FUNCTIONS = ("arcsin", "arccos", "arctan", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp")
FUNCTIONS += ("sqrt", "abs")
GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega")
# What counts as a unit after a number though it is short, and the name it stands for.
UNITS = {"cm": "centimeter", "mm": "millimeter", "km": "kilometer", "kg": "kilogram", "mg": "milligram"}
UNITS |= {"ml": "milliliter", "ft": "foot", "in": "inch", "lb": "pound", "oz": "ounce", "mi": "mile"}
UNITS |= {"hr": "hour", "min": "minute", "sec": "second", "mph": "mile/hour", "sq": "square"}
LETTERS = {"m": "meter", "s": "second", "h": "hour", "g": "gram", "l": "liter"}  # units after a plain number
SYNONYMS = UNITS | LETTERS | {"per": "/", "feet": "foot", "inches": "inch", "lbs": "pound", "cents": "cent"}
SYNONYMS |= {"metre": "meter", "kilometre": "kilometer", "centimetre": "centimeter", "litre": "liter"}

Node = tuple  # ("number", Fraction, places) | ("name", x) | (operator, node, ...)


class Unreadable(ValueError):
    """A text that is no expression, or a value that is too large."""


class Unknown(Exception):
    """A value that only sympy knows."""


def math_equal(a: object, b: object) -> bool:
    r"""Whether two answers mean the same. Never raises; takes a few milliseconds, where sympy has to decide
    at most SECONDS.

    >>> math_equal("\\frac{3}{4}", "0.75"), math_equal("x=5", "5"), math_equal("[1, 2)", "(1, 2)")
    (True, True, False)
    """
    a, b = str(a)[: 10 * LENGTH], str(b)[: 10 * LENGTH]
    if _words(a) == _words(b) != "":
        return True
    if len(a) > LENGTH or len(b) > LENGTH:
        return False
    try:
        return any(_same(x, y) for x in _readings(a) for y in _readings(b))
    except (Unreadable, RecursionError):
        return False


# -- text --------------------------------------------------------------------------------------------

_SIGNS = {"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/", "∞": "\\infty ", "∪": "\\cup ", "√": "\\sqrt "}
_SIGNS |= {"π": "\\pi ", "°": "^\\circ ", "²": "^2", "³": "^3", "±": "\\pm ", "∈": "\\in ", "≤": "\\le "}
_SIGNS |= {"≥": "\\ge ", "**": "^", "{,}": ",", "\\%": "%", "\\$": "$", "\\dfrac": "\\frac"}
_SIGNS |= {"\\tfrac": "\\frac", "\\cdot": "*", "\\times": "*", "\\div": "/", "\\leq": "\\le", "\\geq": "\\ge"}
_SIGNS |= {"\\lbrace": "\\{", "\\rbrace": "\\}", "\\lvert": "|", "\\rvert": "|", "\\neq": "\\ne"}
_PRICE = re.compile(r"(?:\\\$|\A\s*\$(?=[^$]*\Z))\s*(\d(?:[\d,]|\{,\})*(?:\.\d+)?)(?!\s*[\\a-zA-Z])(?=\D|\Z)")
_DROPPED = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|[!,;: ]|quad|qquad|big|Big|bigg|Bigg)(?![a-zA-Z])|~"
)
_WRAPPED = re.compile(r"\\(?:boxed|mathbf|mathbb|mathcal|operatorname|fbox)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|hbox|rm)\s*\{([^{}]*)\}")


def _clean(text: str) -> str:
    """Other notations of the same thing made one, dollar signs and full stops around it gone."""
    text = _PRICE.sub(r"\1\\text{dollars}", text)
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = _DROPPED.sub(lambda m: "" if m[0] in ("\\left", "\\right", "\\!") else " ", text)
    for _ in range(3):
        text = _WRAPPED.sub(r" \1 ", text)
    text = re.sub(r"\\[()\[\]]", " ", text) if not text.lstrip().startswith("\\begin") else text
    return re.sub(r"[.\s]+$", "", text.replace("$", " ").strip())


def _words(text: str) -> str:
    """The text as words, for answers that are no mathematics: "\\\\text{(C)}" is "c"."""
    text = _TEXT.sub(r"\1", _clean(text))
    return "".join(text.lower().split()) if "," in text else normal(text)


# -- structure: unions, sets, sequences, matrices ----------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Several values. kind: "union" | "set" (no order) | "matrix" (rows) | the brackets of a sequence."""

    kind: str
    items: tuple
    name: str = ""  # x in "x \\in [0, 1]"


@dataclass(frozen=True)
class Scalar:
    """One expression; `unit` may be missing on one side, and a percentage is meant as x / 100 or as x."""

    node: Node
    unit: str = ""
    percent: bool = False
    name: str = ""  # x in "x = 5"


def _readings(text: str) -> list:
    """The values that a text may stand for: "1,234" is a number, or a list of two; "y = 2x" is an equation,
    or says what y is."""
    text = _clean(text)
    found = [_value(text)]
    if re.match(r"[a-zA-Z]\s*=", text) and _NAMED.sub("", text) != text:
        found += [Scalar(_parse(text))] if text.count("=") == 1 and "," not in text else []
    if measured := re.fullmatch(r"([+-]?\d+(?:\.\d+)?)\s+([mshgl])", text):  # a product, or 5 meters
        found.append(replace(_value(measured[1]), unit=_unit(measured[2])))
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", text):
        found.append(Group("set", tuple(_value(part) for part in text.split(","))))
    return found


_NAMED = re.compile(r"^[a-zA-Z]\s*(=|\\in(?![a-zA-Z]))(?![^=]*=)")  # "x = 5", "x \\in [0, 1]"


def _value(text: str, depth: int = 0):
    """Scalar or Group. Raises Unreadable."""
    text = text.strip()
    if depth > DEPTH:
        raise Unreadable("too deep")
    if named := _NAMED.match(text):
        return replace(_value(text[named.end() :], depth + 1), name=text[0])
    if len(parts := _split(text, "\\cup")) > 1:
        return Group("union", tuple(_value(p, depth + 1) for p in parts))
    if matrix := re.fullmatch(r"\\begin\{[a-z]*matrix\}(.*)\\end\{[a-z]*matrix\}", text, re.DOTALL):
        rows = [r for r in re.split(r"\\\\", matrix[1]) if r.strip()]
        return _group("matrix", [[_value(cell, depth + 1) for cell in row.split("&")] for row in rows])
    if "\\pm" in text:
        return Group("set", tuple(_value(text.replace("\\pm", sign), depth + 1) for sign in "+-"))
    if not re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?(?!\d).*", text, re.DOTALL):
        parts = _split(re.sub(r",?\s+(and|or)\s+|\\text\{,? ?(and|or) ?\}", ",", text), ",")
        if len(parts) > 1:
            return Group("set", tuple(_value(p, depth + 1) for p in parts))
    if brackets := _brackets(text):
        kind, inside = brackets
        parts = _split(inside, ",") if inside.strip() else []
        if len(parts) != 1 or kind in ("{}", "[]"):
            items = [_value(p, depth + 1) for p in parts]
            if kind == "[]" and items and all(isinstance(i, Group) and i.kind == "[]" for i in items):
                return _group("matrix", [list(i.items) for i in items])
            return Group("set" if kind == "{}" else kind, tuple(items))
    return _scalar(text)


def _group(kind: str, rows: list[list]) -> Group:
    return Group(kind, tuple(Group("[]", tuple(row)) for row in rows))


def _brackets(text: str) -> tuple[str, str] | None:
    """("(]", inside) where the first bracket is closed by the last one, whatever the two are."""
    text = text.replace("\\{", "{").replace("\\}", "}")
    if len(text) < 2 or text[0] not in "([{" or text[-1] not in ")]}":
        return None
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and i < len(text) - 1:
            return None
    return text[0] + text[-1], text[1:-1]


def _split(text: str, mark: str) -> list[str]:
    """The parts between marks that stand in no bracket."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0 and text.startswith(mark, i):
            parts.append(text[start:i])
            start = i + len(mark)
            i = start
        else:
            i += 1
    return [*parts, text[start:]]


def _scalar(text: str) -> Scalar:
    """An expression with what may follow it: a unit, a percent sign, the base of its digits (101_2 is 5)."""
    unit = ""
    if found := re.fullmatch(r"(.*[^\s])\s*\\(?:text|mathrm|mbox|rm)\s*\{([^{}]*)\}(\^\{?[23]\}?)?", text):
        text, unit = found[1], found[2] + (found[3] or "")
    elif found := re.fullmatch(r"(.*[\d})])\s+([a-zA-Z]{2,}[a-zA-Z ]*)(\^\{?[23]\}?)?", text):
        first = found[2].split()[0].lower()
        if first in UNITS or len(first) > 2 and first not in (*FUNCTIONS, *GREEK):
            text, unit = found[1], found[2] + (found[3] or "")
    elif found := re.fullmatch(r"(.*)\^\{?\s*\\circ\s*\}?|(.*\d)\s*degrees?", text):
        text, unit = found[1] or found[2], "degree"
    elif (found := re.fullmatch(r"([0-9A-F]+)_\{?(\d{1,2})\}?", text)) and re.search(r"\d", found[1]):
        return Scalar(("number", Fraction(_in_base(found[1], int(found[2]))), 0))
    percent = text.rstrip().endswith("%") or unit.strip().lower() in ("percent", "percents")
    unit = "" if percent else _unit(unit)
    return Scalar(_parse(text.rstrip().removesuffix("%")), unit, percent)


def _unit(text: str) -> str:
    """One name for all names of a unit: "meter2" for square metres, sq m, m^2."""

    def named(word: re.Match) -> str:
        one = word[0].removesuffix("s") or "s"
        return SYNONYMS.get(word[0]) or SYNONYMS.get(one, one)

    text = re.sub(r"[a-z]+", named, text.lower())
    text = re.sub(r"(square|cubic)\W+([a-z]+)", lambda m: m[2] + "23"[m[1] == "cubic"], text)
    return re.sub(r"[^a-z0-9/]", "", text)


def _in_base(digits: str, base: int) -> int:
    try:
        return int(digits, base)
    except ValueError:
        raise Unreadable(f"{digits} is no number in base {base}") from None


# -- expressions -------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:,\d{3})+(?:\.\d+)?|\d*\.\d+|\d+\.?)(?:[eE](?P<power>[+-]?\d{1,3})(?![\w.]))?"
    r"|\\(?P<command>[a-zA-Z]+)|(?P<word>" + "|".join((*FUNCTIONS, "pi", "infty", "inf")) + r")"
    r"|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^(){}\[\]|!=_]))"
)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise Unreadable(f"{text[at : at + 10]!r} is no mathematics")
        kind = found.lastgroup if found.lastgroup != "power" else "number"
        tokens.append((kind, found.group().strip()))
        at = found.end()
    return tokens


def _parse(text: str) -> Node:
    """The syntax tree of an expression or an equation, in plain text or LaTeX. Raises Unreadable."""
    left, equals, right = text.partition("=")
    if equals and "=" not in right:
        return ("=", _parse(left), _parse(right))
    if _is_words(text):
        return ("words", " ".join(text.lower().split()))
    parser = _Parser(_tokens(text))
    node = parser.sum()
    if parser.rest:
        raise Unreadable(f"{parser.rest[0][1]!r} in the middle of an expression")
    return node


def _is_words(text: str) -> bool:
    """Whether the text is plain words, which are no products of their letters: "listen" is not "silent".
    Single letters are variables, and "sinx" and "pi" are mathematics."""
    found = re.findall(r"[a-zA-Z]{2,}", text) if re.fullmatch(r"[a-zA-Z\s'-]+", text) else []
    return any(not _MATHEMATICS.fullmatch(word) for word in found)


_MATHEMATICS = re.compile(rf"[a-zA-Z]?(?:{'|'.join((*FUNCTIONS, 'pi', 'infty', 'inf'))})+[a-zA-Z]?")


class _Parser:
    """Recursive descent: sum > product (signs, juxtaposition) > power > atom."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.rest, self.depth = tokens, 0

    def peek(self) -> str:
        return self.rest[0][1] if self.rest else ""

    def take(self, *signs: str) -> str:
        """The next token if it is one of these, which is then passed; else ""."""
        if self.peek() not in signs:
            return ""
        return self.rest.pop(0)[1]

    def expect(self, sign: str) -> None:
        if not self.take(sign):
            raise Unreadable(f"{sign} expected before {self.peek()!r}")

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable("too deep")
        node = self.product()
        while sign := self.take("+", "-"):
            node = (sign, node, self.product())
        self.depth -= 1
        return node

    def product(self) -> Node:
        if sign := self.take("-", "+"):
            inner = self.product()
            return ("-", ("number", Fraction(0), 0), inner) if sign == "-" else inner
        node = self.power()
        while self.rest:
            if sign := self.take("*", "/"):
                negative = self.take("-")
                right = self.power()
                node = (sign, node, ("-", ("number", Fraction(0), 0), right) if negative else right)
            elif node[0] == "number" and self.mixed():
                node = ("+", node, self.fraction())
            elif self.rest[0][0] in ("command", "word", "letter") or self.peek() in ("(", "{"):
                node = ("*", node, self.power())
            else:
                break
        return node

    def mixed(self) -> bool:
        """Whether 1\\\\frac{1}{2} or 1 1/2 follows: a mixed number, not a product."""
        values = [token for _, token in self.rest[:7]]
        if values[:1] == ["\\frac"]:
            return values[1] == "{" and values[2:3] != [] and values[2].isdigit() and values[3] == "}"
        return len(values) > 2 and values[0].isdigit() and values[1] == "/" and values[2].isdigit()

    def fraction(self) -> Node:
        if self.peek() == "\\frac":
            return self.power()
        top, sign, bottom = self.atom(), self.take("/"), self.atom()
        return (sign, top, bottom)

    def power(self) -> Node:
        node = self.atom()
        while self.take("!"):
            node = ("!", node)
        if self.take("^"):
            negative = self.take("-")
            exponent = self.power()
            return ("^", node, ("-", ("number", Fraction(0), 0), exponent) if negative else exponent)
        return node

    def atom(self) -> Node:
        if not self.rest:
            raise Unreadable("the expression ends too early")
        kind, token = self.rest.pop(0)
        if kind == "number":
            digits = token.replace(",", "").lower()
            mantissa, _, power = digits.partition("e")
            places = len(mantissa.partition(".")[2])
            return ("number", Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(power or 0), places)
        if token in ("(", "[", "{", "|"):
            node = self.sum()
            self.expect({"(": ")", "[": "]", "{": "}", "|": "|"}[token])
            return ("abs", node) if token == "|" else node
        if kind == "letter":
            return ("name", token + self.index())
        name = token.removeprefix("\\")
        if name == "frac":
            return ("/", self.argument(), self.argument())
        if name in ("infty", "inf"):
            return ("name", "infinity")
        if name == "pi":
            return ("pi",)
        if name in GREEK:
            return ("name", name + self.index())
        if name in FUNCTIONS:
            return self.function(name)
        raise Unreadable(f"{token} is not known")

    def index(self) -> str:
        """The index of a variable, "_1" of x_1."""
        if not self.take("_"):
            return ""
        braced = self.take("{")
        found = self.rest.pop(0)[1] if self.rest else ""
        if braced:
            self.expect("}")
        return f"_{found}"

    def argument(self) -> Node:
        """{...}, or one digit or letter as in \\\\frac12."""
        if self.peek() == "{":
            return self.atom()
        kind, token = self.rest[0] if self.rest else ("", "")
        if kind == "number" and token.isdigit() and len(token) > 1:
            self.rest[0] = (kind, token[1:])
            return ("number", Fraction(token[0]), 0)
        return self.atom()

    def function(self, name: str) -> Node:
        degree: Node | None = None
        if name == "sqrt" and self.take("["):
            degree = self.sum()
            self.expect("]")
        if name == "log" and self.take("_"):
            degree = self.argument()
        exponent = self.power() if self.take("^") else None
        inner = self.argument() if name == "sqrt" else self.power()
        node = (name, inner) if degree is None else (name, inner, degree)
        return node if exponent is None else ("^", node, exponent)


# -- values ------------------------------------------------------------------------------------------


def _number(node: Node, names: dict[str, Fraction]):
    """The value of a tree: Fraction where it is rational, else Decimal. Raises Unreadable."""
    kind = node[0]
    if kind == "number":
        return node[1]
    if kind == "pi":
        return PI
    if kind == "words":
        raise Unreadable(f"{node[1]!r} has no value")
    if kind == "name" and node[1] == "e":
        return Decimal(1).exp()
    if node == ("name", "i"):
        raise Unknown("i")
    if kind == "name":
        return names[node[1]]
    values = [_number(child, names) for child in node[1:]]
    if kind in ("+", "-", "*", "/") and not all(isinstance(v, Fraction) for v in values):
        values = [_decimal(v) for v in values]
    if kind == "+":
        value = values[0] + values[1]
    elif kind == "-":
        value = values[0] - values[1]
    elif kind == "*":
        value = values[0] * values[1]
    elif kind == "/":
        value = values[0] / values[1]
    elif kind == "^":
        value = _power(*values)
    else:
        value = _function(kind, values)
    if isinstance(value, Fraction) and max(abs(value.numerator), value.denominator).bit_length() > BITS:
        raise Unreadable("too large")
    return value


def _decimal(value: Fraction | Decimal) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(value.numerator) / Decimal(value.denominator)


def _power(base, exponent):
    """base ^ exponent; an odd root of a negative number is negative."""
    if isinstance(exponent, Fraction) and exponent.denominator == 1 and isinstance(base, Fraction):
        size = max(abs(base.numerator), base.denominator).bit_length() * abs(exponent.numerator)
        if size > BITS:
            raise Unreadable("too large")
        return base ** int(exponent)
    if base < 0 and isinstance(exponent, Fraction) and exponent.denominator % 2:
        root = -(_decimal(-base) ** (Decimal(1) / exponent.denominator))
        return root**exponent.numerator
    if base < 0:
        raise Unknown("a root of a negative number")
    if isinstance(base, Fraction) and exponent == Fraction(1, 2):
        roots = [_decimal(Fraction(part)).sqrt() for part in (base.numerator, base.denominator)]
        return roots[0] / roots[1]
    return _decimal(base) ** _decimal(exponent)


def _function(name: str, values: list):
    """The functions that the decimal module has; the others are sympy's."""
    x = values[0]
    if name == "abs":
        return abs(x)
    if name == "sqrt":
        return _power(x, 1 / values[1] if len(values) > 1 else Fraction(1, 2))
    if name == "!" and isinstance(x, Fraction) and x.denominator == 1 and 0 <= x <= 200:
        return functools.reduce(lambda a, b: a * b, range(1, int(x) + 1), Fraction(1))
    if name == "exp":
        return _decimal(x).exp()
    if name in ("ln", "log") and x > 0:
        value = _decimal(x).ln()
        return value / _decimal(values[1]).ln() if len(values) > 1 else value
    if name in ("sin", "cos", "tan", "cot", "sec", "csc"):
        sine, cosine = _circle(_decimal(x))
        return {
            "sin": lambda: sine,
            "cos": lambda: cosine,
            "tan": lambda: sine / cosine,
            "cot": lambda: cosine / sine,
            "sec": lambda: 1 / cosine,
            "csc": lambda: 1 / sine,
        }[name]()
    raise Unknown(name)


def _circle(x: Decimal) -> tuple[Decimal, Decimal]:
    """Sine and cosine by their series, of an angle that is first brought near zero."""
    if abs(x) > 1000:
        raise Unreadable("too large an angle")
    x = x % (2 * PI)
    sums, term = [Decimal(0), Decimal(0)], Decimal(1)
    for n in range(1, 100):
        sums[n % 2 == 0] += term if n % 4 in (1, 2) else -term
        term *= x / n
    return sums[1], sums[0]


def _names(node: Node) -> set[str]:
    if node[0] == "name":
        return {node[1]}
    return set().union(*(_names(child) for child in node[1:] if isinstance(child, tuple)))


def _places(node: Node) -> int:
    """Decimals with which a plain number is written; 0 for anything else."""
    if node[0] == "-" and node[1] == ("number", Fraction(0), 0):
        node = node[2]
    return node[2] if node[0] == "number" else 0


# -- comparison --------------------------------------------------------------------------------------


def _same(a, b) -> bool:
    if a.name and b.name and a.name != b.name:
        return False
    if isinstance(a, Scalar) and isinstance(b, Scalar):
        return _same_scalars(a, b)
    if isinstance(a, Scalar) or isinstance(b, Scalar):
        a, b = (a, b) if isinstance(a, Group) else (b, a)
        return a.kind == "set" and len(a.items) == 1 and _same(a.items[0], b)
    if len(a.items) != len(b.items):
        return False
    if a.kind in ("set", "union") and b.kind == a.kind:
        return _same_sets(list(a.items), list(b.items))
    interval = len(a.items) == 2 and not {"matrix", "set", "union"} & {a.kind, b.kind}
    if interval and a.kind != b.kind or {"set", "union", "matrix"} & {a.kind, b.kind} and a.kind != b.kind:
        return False
    return all(_same(x, y) for x, y in zip(a.items, b.items, strict=True))


def _same_sets(a: list, b: list) -> bool:
    """Whether the items match one to one; being the same is transitive enough to match greedily."""
    for x in a:
        found = next((i for i, y in enumerate(b) if _same(x, y)), None)
        if found is None:
            return False
        b.pop(found)
    return True


def _same_scalars(a: Scalar, b: Scalar) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False
    if a.percent != b.percent:
        percent, plain = (a, b) if a.percent else (b, a)
        hundredth = ("/", percent.node, ("number", Fraction(100), 0))
        return not plain.unit and (
            _same_nodes(percent.node, plain.node) or _same_nodes(hundredth, plain.node)
        )
    return _same_nodes(a.node, b.node)


def _same_nodes(a: Node, b: Node) -> bool:
    """Two expressions, or two equations: those hold together if their differences are the same but for a
    sign."""
    if a == b:
        return True
    if "words" in (a[0], b[0]):
        return False
    if "=" in (a[0], b[0]):
        if a[0] != b[0]:
            return False
        left, right = ("-", a[1], a[2]), ("-", b[1], b[2])
        return _same_nodes(left, right) or _same_nodes(("-", a[2], a[1]), right)
    if "infinity" in _names(a) | _names(b):
        return False
    try:
        return _same_numbers(a, b)
    except Unknown:
        return _same_for_sympy(a, b)


def _same_numbers(a: Node, b: Node) -> bool:
    """Equal at every point, positive and negative, that both are defined at; without variables there is one.
    Raises Unknown."""
    names = sorted(_names(a) | _names(b))
    rng = random.Random(0)
    compared, unknown = 0, None
    for i in range(4 * POINTS):
        signs = [(1,), (-1,)][i] if i < 2 else (1, -1)  # |x| and x differ at one of the first two
        point = {n: rng.choice(signs) * Fraction(rng.randint(100, 999), 97) for n in names}
        try:
            with localcontext(Context(prec=DIGITS)):
                x, y = _number(a, point), _number(b, point)
                if not _close(x, y, max(_places(a), _places(b))):
                    return False
        except (ZeroDivisionError, DecimalException):
            if not names:
                return False
            continue
        except Unknown as reason:  # such as the root of a negative number
            unknown = reason
            continue
        compared += 1
        if compared == POINTS or not names:
            return True
    if unknown and not compared:
        raise unknown
    return compared > 0  # else not defined anywhere


def _close(x: Fraction | Decimal, y: Fraction | Decimal, places: int) -> bool:
    """Equal; to 50 digits where one is irrational. A decimal of ROUNDED places or more also stands for what
    rounds to it, or differs as sums of floats do."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        if x == y:
            return True
        if places < ROUNDED:
            return False
    x, y = _decimal(x), _decimal(y)
    allowed = Decimal(10) ** -50 * max(abs(x), abs(y), Decimal(1))
    if places >= ROUNDED:
        half = Decimal(10) ** -places / 2
        allowed = max(allowed, half, Decimal("1e-9") * max(abs(x), abs(y)))
    return abs(x - y) <= allowed


# -- sympy -------------------------------------------------------------------------------------------

_PROGRAM = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
import sympy
def build(node):
    kind, *rest = node
    if kind == "number":
        return sympy.Rational(*rest)
    if kind == "name":
        known = {"i": sympy.I, "e": sympy.E}
        return known.get(rest[0]) or sympy.Symbol(rest[0], real=True)
    if kind == "pi":
        return sympy.pi
    a, b = (list(map(build, rest)) + [None])[:2]
    if kind in "+-*/^":
        return {"+": sympy.Add, "*": sympy.Mul, "^": sympy.Pow}[kind](a, b) if kind in "+*^" else (
            a - b if kind == "-" else a / b)
    if kind == "!":
        return sympy.factorial(a)
    if kind == "sqrt":
        return sympy.root(a, b or 2)
    names = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "abs": "Abs"}
    function = getattr(sympy, names.get(kind, kind))
    return function(a) if b is None else function(a, b)
a, b = map(build, json.load(sys.stdin))
print(sympy.simplify(a - b) == 0)
"""


def _plain(node: Node) -> list:
    """A tree as JSON can hold it."""
    if node[0] == "number":
        return ["number", node[1].numerator, node[1].denominator]
    return [node[0], *(_plain(child) if isinstance(child, tuple) else child for child in node[1:])]


@functools.lru_cache(maxsize=4096)
def _same_for_sympy(a: Node, b: Node) -> bool:
    """sympy's word, from a process that is killed after SECONDS; False where it does not know in time."""
    if importlib.util.find_spec("sympy") is None:
        _say_once("sympy is not installed: some answers are compared as text; pip install '.[tasks]'")
        return False
    if not all(_modest(node) for node in (a, b)):
        return False
    try:
        run = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM],
            input=json.dumps([_plain(a), _plain(b)]),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return run.stdout.strip() == "True"


def _modest(node: Node) -> bool:
    """No tower of powers and no large exponent or factorial, which sympy would start to write out."""
    if node[0] == "^" and node[2][0] == "number" and abs(node[2][1]) > 1000:
        return False
    if node[0] == "^" and node[2][0] == "^" or node[0] == "!" and node[1][0] != "name":
        return False
    return all(_modest(child) for child in node[1:] if isinstance(child, tuple))


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
