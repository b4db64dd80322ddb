r"""What a mathematical text stands for: readings(text), which are Scalars and Groups of expressions.

    "2\\frac12" -> Scalar(("+", 2, ("/", 1, 2)))      "(0, 1]" -> Group("(]", (0, 1))

A recursive descent parser reads plain text, LaTeX, and what Python and sympy print; nothing of the text is
ever evaluated as Python. Length, depth and the size of every number are limited.
"""

import re
import threading
import time
from dataclasses import dataclass, replace
from fractions import Fraction

from tasks.notation import NO_UNIT, known_unit, unit, words

LENGTH, DEPTH = 1000, 40  # of a text that is parsed, of its brackets
ROUNDED = 6  # a decimal with so many places or more may have been rounded

_CIRCULAR = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "sech", "csch")
_INVERSE = {f"a{name}": f"arc{name} ar{name}" for name in _CIRCULAR}
# The name of a function in a tree, and the other names that it has in texts.
_FUNCTIONS = dict.fromkeys(_CIRCULAR, "") | _INVERSE | {
    "tan": "tg", "cot": "ctg cotg", "csc": "cosec", "atan": "arctan arctg",
    "ln": "log", "lg": "log10", "lb": "log2", "exp": "", "cis": "", "sqrt": "root", "cbrt": "",
    "abs": "Abs fabs", "floor": "", "ceil": "ceiling", "binom": "binomial comb", "!": "factorial",
    "/": "Rational Fraction", "^": "Pow", "re": "", "im": "", "conj": "conjugate",
}  # fmt: skip
FUNCTIONS = {
    each: name for name, others in _FUNCTIONS.items() for each in (name, *others.split()) if each.isalnum()
}
# The functions that plain text has without brackets too: "xsinx" is a product, and so is "re".
_OPEN = {*_CIRCULAR, *(f"arc{name}" for name in _CIRCULAR), "log", "ln", "exp", "sqrt", "cbrt", "abs", "Abs"}
_OPEN |= {"cis"}
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi"
_GREEK += " chi psi omega Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
GREEK = tuple(_GREEK.split())
INFINITY = ("infty", "infinity", "Infinity", "inf", "oo")

# ("number", Fraction, places) | ("name", x) | ("words", text) | ("pi",) | (operator or function, node, ...)
Node = tuple
ZERO: Node = ("number", Fraction(0), 0)
DEGREE: Node = ("/", ("pi",), ("number", Fraction(180), 0))


class Unreadable(Exception):
    """A text that is no expression, or a value that is too large."""


class OutOfTime(Exception):
    """A comparison that has used up its time."""


_clock = threading.local()  # its deadline: of the comparison that the thread is at


def look_at_clock() -> None:
    if time.monotonic() > _clock.deadline:
        raise OutOfTime


def negative(node: Node) -> Node:
    return ("-", ZERO, node)


# -- structure: lists, unions, sets, sequences, matrices ---------------------------------------------


@dataclass(frozen=True)
class Group:
    """Several values. kind: "list" (no order, unless one repeats) | "set" (no order) | "union" (no order) |
    "ratio" | "matrix" (rows) | "determinant" | the brackets of a sequence or an interval."""

    kind: str
    items: tuple
    name: str = ""  # x in "x \\in [0, 1]"


@dataclass(frozen=True)
class Scalar:
    """One expression. A percentage is meant as x / 100 or as x. A unit may be missing on one side, unless it
    is `required`: "12m" is 12 meters, but may be the product of 12 and m."""

    node: Node
    unit: str = ""
    percent: bool = False
    name: str = ""  # x in "x = 5"
    required: bool = False


Value = Scalar | Group
INFINITE = Scalar(negative(("name", "infinity"))), Scalar(("name", "infinity"))


_REVERSED = re.compile(r"\A([^=<>≤≥≠a-zA-Z]+)=\s*([a-zA-Z])\s*\Z")  # "5 = x"


_DATE = re.compile(r"\d{4}([-/])\d\d?\1\d\d?|\d\d?([-/])\d\d?\2\d{4}")  # no differences, no quotients


def readings(text: str, deadline: float) -> list[Value]:
    """The values that a text in tasks/notation.py's form may stand for: "y = 2x" is an equation, or says what
    y is. Raises Unreadable if there is none, and OutOfTime after the deadline, a time.monotonic()."""
    _clock.deadline = deadline
    if len(text) > LENGTH:
        raise Unreadable("too long")
    if _DATE.fullmatch(text):
        return [Group("date", tuple(map(_scalar, re.split("[-/]", text))))]
    text = _REVERSED.sub(r"\2 = \1", text)
    found = []
    for reading in (_value, _equation, _measured, _assigned):
        try:
            found += [value] if (value := reading(text)) else []
        except Unreadable as error:
            reason = error
    if not found:
        raise reason
    return found


def _equation(text: str) -> Scalar | None:
    """ "y = 2x", which is also a label and a value."""
    single = text.count("=") == 1 and not re.search(r"[,<>≤≥≠]", text)
    return Scalar(parse(text)) if single and _label(text) else None


_LETTER_UNIT = re.compile(
    r"([+-]?\d+(?:\.\d+)?)(\s*)((?:[mshgl]|[a-zA-Z]+(?:\s*/\s*[a-zA-Z]+)+)(?:\^\{?\d\}?)?)"
)


def _measured(text: str) -> Scalar | None:
    """ "5 m" and "15 m/s", which are also products."""
    found = _LETTER_UNIT.fullmatch(text)
    if not found or not all(map(known_unit, re.findall("[a-zA-Z]+", found[3]))):
        return None
    return Scalar(parse(found[1]), unit(found[3]), required=not found[2] and len(found[3]) == 1)


def _assigned(text: str) -> Group | None:
    """ "(x, y) = (1, 2)" as the list "x = 1, y = 2"."""
    label = _label(text)
    if not label or not label[0].startswith("("):
        return None
    value, letters = _value(label[1]), label[0][1:-1].split(",")
    if not isinstance(value, Group) or len(letters) != len(value.items):
        return None
    return Group("list", tuple(replace(v, name=n) for n, v in zip(letters, value.items, strict=True)))


_NAME = r"(?:[a-zA-Z]|\\(?:" + "|".join(GREEK) + r")(?![a-zA-Z]))(?:_(?:\w|\{\w+\}))?'*"
_ARGUMENT = r"(?:\^\{-1\})?\([^()=<>]*\)"
_LABEL = re.compile(
    rf"(?:(?:{_NAME})(?:[+-]?{_NAME})*(?:{_ARGUMENT})?|\({_NAME}(?:,{_NAME})+\)|\|[A-Z]+\||\\\{{{_NAME}(?:,{_NAME})+\\\}})"
)
_IS = re.compile(r"=|\\in(?![a-zA-Z])|(?<=^[a-zA-Z]):")


def _label(text: str) -> tuple[str, str] | None:
    """("x", "5") of "x = 5": name and value. A name is a letter, a word, f(x), m + n, (x, y)."""
    found = _IS.search(text)
    if not found or re.search(r"[=<>≤≥≠]|\\in(?![a-zA-Z])", text[found.end() :]):
        return None
    name = re.sub(
        r"\\text\s*\{([a-zA-Z ]*)\}|\\(?:angle|triangle|overline)(?![a-zA-Z])|\s+",
        r"\1",
        text[: found.start()],
    )
    name = re.sub(r"\s+|\{(?=[A-Z]+\})|(?<=[A-Z])\}", "", name)
    return (name, text[found.end() :]) if _LABEL.fullmatch(name) else None


_MATRIX = re.compile(
    r"([(\[|]|\\abs\s*\()?\s*\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\2\}\s*[)\]|]?",
    re.DOTALL,
)
_PRINTED = re.compile(r"(?:(?:np|numpy|sympy|sp)\.)?([A-Za-z_.0-9]+)\s*\((.*)\)", re.DOTALL)
_ONE = re.compile(
    "(?:float|int)(?:32|64)|Decimal|mpf|mpc|Integer|Float|array|Tuple|(?:Immutable(?:Dense)?)?Matrix"
)
_INTERVALS = {"Interval": "[]", "Interval.open": "()", "Interval.Lopen": "(]", "Interval.Ropen": "[)"}


def _value(text: str, depth: int = 0) -> Value:
    """Scalar or Group. Raises Unreadable."""
    look_at_clock()
    text = text.strip()
    if depth > DEPTH:
        raise Unreadable("too deep")
    if label := _label(text):
        return replace(_value(label[1], depth + 1), name=label[0])
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix[1] or "", matrix[2], matrix[3], depth)
    if len(parts := _split(text, "\\cup")) > 1:
        return Group("union", tuple(_value(p, depth + 1) for p in parts))
    if len(parts := _split(text, "\\or")) > 1:
        items = [_value(p, depth + 1) for p in parts]
        intervals = all(isinstance(item, Group) and item.kind[0] in "([" for item in items)
        return Group("union", tuple(items)) if intervals else _list(items)
    if len(parts := _split(text, "&")) == 2:
        return _intersection(*(_value(p, depth + 1) for p in parts))
    if len(parts := _split(_without_thousands(text), ",")) > 1:
        return _list([_value(p, depth + 1) for p in parts if p.strip() or p is not parts[-1]])
    text = parts[0]
    if "\\pm" in text or "\\mp" in text:
        signed = (text.replace("\\pm", one).replace("\\mp", other) for one, other in ("+-", "-+"))
        return Group("list", tuple(_value(each, depth + 1) for each in signed))
    if value := _printed(text, depth) or _bracketed(text, depth) or _relation(text, depth):
        return value
    if len(parts := _split(text, ":")) > 1:
        return Group("ratio", tuple(_value(p, depth + 1) for p in parts))
    return Group("set", ()) if text == "\\emptyset" else _scalar(text)


def _list(items: list[Value]) -> Group:
    """A list, with lists in it (1 \\\\pm 2, or "1, 2" before "or") made part of it."""
    flat = [item.items if isinstance(item, Group) and item.kind == "list" else (item,) for item in items]
    return Group("list", tuple(each for part in flat for each in part))


def _matrix(bracket: str, environment: str, inside: str, depth: int) -> Group:
    rows = [row for row in re.split(r"\\\\(?:\s*\[[^\[\]]*\])?", inside) if row.strip()]
    determinant = environment[0] in "vV" or bracket[:1] in ("|", "\\")
    kind = "determinant" if determinant else "matrix"
    return _rows(kind, [[_value(cell, depth + 1) for cell in row.split("&")] for row in rows])


def _rows(kind: str, rows: list[list[Value]]) -> Group:
    return Group(kind, tuple(Group("[]", tuple(row)) for row in rows))


_SUCH_THAT = re.compile(r"\s*[a-zA-Z]\s*(?:\\in\s*[RZN]\s*)?[|:]")  # of {x | x > 2}


def _bracketed(text: str, depth: int) -> Group | None:
    """A set, a sequence, an interval or nested lists; None if the brackets are of an expression."""
    brackets = _brackets(text)
    if not brackets:
        return None
    kind, inside = brackets
    if kind == "{}" and (found := _SUCH_THAT.match(inside)) and _RELATION.search(inside):
        return _value(inside[found.end() :], depth + 1)
    parts = _split(inside, ",") if inside.strip() else []
    if len(parts) == 1 and kind not in ("{}", "[]"):
        return _value(inside, depth + 1) if _RELATION.search(inside) else None
    items = [_value(p, depth + 1) for p in parts if p.strip() or p is not parts[-1]]
    if kind == "[]" and items and all(isinstance(i, Group) and i.kind == "[]" for i in items):
        return _rows("matrix", [list(item.items) for item in items])
    return Group("set" if kind == "{}" else kind, tuple(items))


def _printed(text: str, depth: int) -> Value | None:
    """What numpy and sympy print with a name before the bracket: Matrix([[1, 2]]), Interval.open(0, 1)."""
    found = _PRINTED.fullmatch(text)
    if not found or not _brackets(f"({found[2]})"):
        return None
    name, inside = found.groups()
    if _ONE.fullmatch(name):
        return _value(inside.strip(" '\""), depth + 1)
    if name == "Eq":
        return _value(" = ".join(_split(inside, ",")), depth + 1)
    if name in ("FiniteSet", "Union") or name in _INTERVALS:
        items = tuple(_value(p, depth + 1) for p in _split(inside, ","))
        if name in _INTERVALS:
            return _interval(_INTERVALS[name], *items) if len(items) == 2 else None
        return Group("set" if name == "FiniteSet" else "union", items)
    return None


def _interval(kind: str, low: Value, high: Value, name: str = "") -> Group:
    """An interval, which is open where it is infinite."""
    infinite = [isinstance(end, Scalar) and names(end.node) == {"infinity"} for end in (low, high)]
    return Group(("(" if infinite[0] else kind[0]) + (")" if infinite[1] else kind[1]), (low, high), name)


def _intersection(a: Value, b: Value) -> Group:
    """The interval between two half-lines, "(1 < x) & (x < 2)"; other values as a list."""
    for low, high in ((a, b), (b, a)):
        named = isinstance(low, Group) and isinstance(high, Group) and low.name == high.name != ""
        if named and low.items[1] == INFINITE[1] and high.items[0] == INFINITE[0]:
            return Group(low.kind[0] + high.kind[1], (low.items[0], high.items[1]), low.name)
    return _list([a, b])


_RELATION = re.compile("[<>≤≥]")


def _relation(text: str, depth: int) -> Value | None:
    """An inequality: of one variable and constants an interval, "x > 5" is (5, oo); else its expression."""
    signs = _RELATION.findall(text)
    parts = _RELATION.split(text)
    if not 1 <= len(signs) <= 2 or "=" in text or not all(part.strip() for part in parts):
        return None
    if signs[0] in ">≥":  # from the small side to the large one
        signs, parts = [{">": "<", "≥": "≤"}.get(sign, ">") for sign in reversed(signs)], parts[::-1]
    if not set(signs) <= set("<≤"):
        raise Unreadable("relations in both directions")
    nodes = [parse(part) for part in parts]
    ends = [INFINITE[0], *map(Scalar, nodes), INFINITE[1]]
    kinds = {"<": "()", "≤": "[]"}
    for i, node in enumerate(nodes):
        others = nodes[:i] + nodes[i + 1 :]
        if (
            node[0] == "name"
            and len(nodes) - i < 3
            and (i or len(nodes) == 2)
            and not any(map(variables, others))
        ):
            kind = (kinds[signs[i - 1]][0] if i else "(") + (kinds[signs[i]][1] if i < len(signs) else ")")
            return _interval(kind, ends[i], ends[i + 2], node[1])
    relations = [Scalar((sign, *pair)) for sign, *pair in zip(signs, nodes, nodes[1:], strict=False)]
    return relations[0] if len(relations) == 1 else Group("chain", tuple(relations))


def _brackets(text: str) -> tuple[str, str] | None:
    """("(]", inside) where the first bracket is closed by the last one, whatever the two are."""
    text = text.replace("\\{", "{").replace("\\}", "}").strip()
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
    if mark not in text:
        return [text]
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


_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")


def _without_thousands(text: str) -> str:
    """The text with 1,234 as 1234 outside brackets: in "(1,234)" are two numbers."""

    def joined(found: re.Match) -> str:
        before = text[: found.start()]
        depth = sum(map(before.count, "([{")) - sum(map(before.count, ")]}"))
        return found[0] if depth else found[0].replace(",", "")

    return _THOUSANDS.sub(joined, text) if "," in text else text


_DEGREES = re.compile(
    r"(.*\S)\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\text\s*\{\s*([CFK])\s*\}|([CFK]))?|(.*\d)\s*degrees?"
)
_WITH_TEXT = re.compile(
    r"(.*?\S)\s*((?:\\text\s*\{(?!\s*[eiI]\s*\})[^{}]*\}(?:\s*\^\s*\{?-?\d\}?)?[\s/*]*)+)"
)
_WITH_UNIT = re.compile(r"(.*[\d})\]!]|.*\\[a-z]+(?=\s))(\s*)([a-zA-Z][a-zA-Z\s/.^{}\d-]*)")
_BASED = re.compile(r"\(?([0-9A-F]+)\)?_\s*\{?\s*(\d{1,2}|two|three|eight|ten|sixteen)\s*\}?")
_BASES = {"two": 2, "three": 3, "eight": 8, "ten": 10, "sixteen": 16}
_PYTHON_BASED = re.compile(r"0(?:x[0-9a-f]+|b[01]+|o[0-7]+)")


def _scalar(text: str) -> Scalar:
    """An expression with what may follow it: a unit, a percent sign, the base of its digits (101_2 is 5)."""
    text = re.sub(r"\\frac\s*\{\s*(\\text\{[^{}]*\})\s*\}\s*\{\s*(\\text\{[^{}]*\})\s*\}", r"\1/\2", text)
    if (found := _BASED.fullmatch(re.sub(r"\\text\s*\{(\w+)\}", r"\1", text))) and re.search(r"\d", found[1]):
        return Scalar(("number", Fraction(_in_base(found[1], int(_BASES.get(found[2], found[2])))), 0))
    if _PYTHON_BASED.fullmatch(text):
        return Scalar(("number", Fraction(int(text, 0)), 0))
    name = ""
    if (found := _DEGREES.fullmatch(text)) and not re.search("sin|cos|tan|cot|sec|csc|cis", text):
        text, name = found[1] or found[4], "degree" + (found[2] or found[3] or "")
    elif found := _WITH_TEXT.fullmatch(text):
        text, name = found.groups()
        if _says_more(words(name)):
            raise Unreadable(f"{name} is no unit")
    elif (found := _WITH_UNIT.fullmatch(text)) and _is_unit(found[1], found[2], found[3]):
        text, name = found[1], found[3]
    name = unit(name) if name else ""
    percent = text.rstrip().endswith("%") or name == "percent"
    return Scalar(parse(text.rstrip().removesuffix("%")), "" if percent else name, percent)


def _says_more(text: str) -> bool:
    """Whether a word in the text is of the value, "thirds", or of a sentence, "is wrong"."""
    return not NO_UNIT.isdisjoint(re.findall("[a-z]+", text.lower())) or text.strip() in ("M", "B")


def _is_unit(number: str, space: str, text: str) -> bool:
    """Whether a text behind a number is a unit, not a factor: known ones of two letters or more, and, behind
    a space, all words but functions."""
    found = re.findall("[a-zA-Z]+", text)
    if _says_more(text):
        return False
    if all(map(known_unit, found)):
        return max(map(len, found)) > 1
    first = found[0].lower()
    word = (
        len(first) > 2 and first not in FUNCTIONS and first not in GREEK and not re.fullmatch("[w-z]+", first)
    )
    return (
        bool(space)
        and word
        and re.fullmatch(r"[a-zA-Z ]+(?:\^\{?[23]\}?)?", text) is not None
        and number[-1:] in "0123456789})"
    )


def _in_base(digits: str, base: int) -> int:
    try:
        return int(digits, base)
    except ValueError:
        raise Unreadable(f"{digits} is no number in base {base}") from None


def names(node: Node) -> set[str]:
    """The names in a tree; with "e", "i" and "infinity"."""
    if node[0] == "name":
        return {node[1]}
    return set().union(*(names(child) for child in node[1:] if isinstance(child, tuple)))


def variables(node: Node) -> set[str]:
    return names(node) - {"e", "i", "infinity"}


# -- expressions -------------------------------------------------------------------------------------

_WORDS = sorted({*_OPEN, "pi", *INFINITY}, key=len, reverse=True)
_CALLED = sorted(FUNCTIONS.keys() - _OPEN, key=len, reverse=True)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.\d+|\d+\.?)(?:[eE](?P<power>[+-]?\d{1,3})(?![\w.]))?"
    r"|\\(?P<command>[a-zA-Z]+)|(?P<word>" + "|".join(_WORDS) + r"|"
    r"(?:" + "|".join(_CALLED) + r")(?=\s*[({]))"
    r"|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^(){}\[\]|!_,]))"
)
_MATHEMATICS = re.compile(rf"[a-zA-Z]?(?:{'|'.join(_WORDS)})+[a-zA-Z]?|[w-z]+")
_SPELLED = re.compile(rf"\\text\s*\{{\s*([a-zA-Z]|\d+|{'|'.join(FUNCTIONS)})\s*\}}")
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_QUOTIENT = [("number", False), ("sign", "/"), ("number", False)]
_ENDS = {"rfloor", "rceil", "over", "choose", "circ", "cup", "in"}  # commands that begin no factor


def parse(text: str) -> Node:
    """The syntax tree of an expression or an equation. Raises Unreadable."""
    for sign in "=≠":
        left, found, right = text.partition(sign)
        if found and not re.search("[=≠]", right):
            return (sign, parse(left), parse(right))
    if _is_words(text):
        return ("words", " ".join(cased(text).split()))
    text = _SPELLED.sub(r" \1 ", text)
    text = re.sub(r"\b(?:np|numpy|sympy|sp|math|cmath)\.(?=[a-z])", "", text)
    if "j" in text and "i" not in text:  # Python's complex numbers; in 2i + 3j, i and j are vectors
        text = re.sub(r"(?<=\d)j(?![a-zA-Z])", "i", text)
    parser = _Parser(_tokens(text))
    node = parser.whole()
    if parser.kind:
        raise Unreadable(f"{parser.token!r} in the middle of an expression")
    return node


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, at, text = [], 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise Unreadable(f"{text[at : at + 10]!r} is no mathematics")
        kind = found.lastgroup if found.lastgroup != "power" else "number"
        tokens.append((kind, found.group().strip().removeprefix("\\")))
        at = found.end()
    return tokens


def _is_words(text: str) -> bool:
    """Whether the text is plain words, which are no products of their letters: "listen" is not "silent".
    Single letters are variables, and "sinx", "pi" and "xy" are mathematics."""
    found = re.findall(r"[a-zA-Z]{2,}", text) if re.fullmatch(r"[a-zA-Z\s'-]+", text) else []
    return any(not _MATHEMATICS.fullmatch(word) for word in found)


# A word in a usual case; of two letters, a common one.
_WORD = re.compile(
    r"(?<![a-zA-Z\\])(?:[A-Za-z][a-z]{2,}|[A-Z]{3,}|[nN][oO]|[oO][nN]|[uU][pP]|[iI][nNfFsStT]|[tT][oO]|[oO][rR])"
    r"(?![a-zA-Z])"
)


def cased(text: str) -> str:
    """The text with its words in lower case; letters that may be variables keep their case: "AA", "R - r"."""
    return _WORD.sub(
        lambda found: found[0] if _MATHEMATICS.fullmatch(found[0].lower()) else found[0].lower(), text
    )


class _Parser:
    """Recursive descent: whole > sum > product (signs, juxtaposition) > factor (mixed numbers) > power >
    atom."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.fractions: dict[int, tuple[Node, int]] = {}  # by the place of their arguments, with their end
        self.bars = False  # whether the innermost open bracket is "|", which the next one closes

    @property
    def kind(self) -> str:
        """ "number", "command", "word", "letter" or "sign"; "" at the end."""
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    @property
    def token(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def next(self) -> tuple[str, str]:
        look_at_clock()
        if not self.kind:
            raise Unreadable("the expression ends too early")
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, *tokens: str) -> str:
        """The next token if it is one of these, which is then passed; else ""."""
        if self.token not in tokens or not self.kind:
            return ""
        return self.next()[1]

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise Unreadable(f"{token} expected before {self.token!r}")

    def whole(self) -> Node:
        """A sum, or two with TeX's \\\\over or \\\\choose between them."""
        node = self.sum()
        if sign := self.take("over", "choose"):
            return ("/" if sign == "over" else "binom", node, self.sum())
        return node

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable("too deep")
        node = self.product()
        while sign := self.take("+", "-"):
            node = (sign, node, self.product())
        self.depth -= 1
        return node

    def signed(self, inner) -> Node:
        """What `inner` reads, with signs before it."""
        sign = False
        while found := self.take("+", "-"):
            sign ^= found == "-"
        return negative(inner()) if sign else inner()

    def product(self) -> Node:
        return self.signed(self.factors)

    def factors(self) -> Node:
        node = last = self.factor()
        while True:
            if sign := self.take("*", "/"):
                last = self.signed(self.factor)
                node = _scientific(sign, node, last)
            elif self.begins_factor(last):
                last = self.factor()
                node = ("*", node, last)
            else:
                return node

    def begins_factor(self, last: Node) -> bool:
        """Whether a factor follows without a sign: no number after a number or a letter, as in "1 2"."""
        if self.kind == "number":
            return last[0] not in ("number", "name")
        if self.kind == "sign":
            return self.token in ("(", "{") or self.token == "|" and not self.bars
        return self.kind != "" and self.token not in _ENDS

    def factor(self) -> Node:
        """A power, or a mixed number: 2\\\\frac13 and 2 1/3 are 7/3."""
        start, node = self.at, self.power()
        if node[0] != "number" or self.at != start + 1 or node[1].denominator != 1:
            return node
        start = self.at
        if self.take("frac"):
            fraction = self.fraction()
            if fraction[1][0] == fraction[2][0] == "number" and self.token not in ("^", "!"):
                return ("+", node, fraction)
        elif [
            (kind, kind == "sign" and token) for kind, token in self.tokens[start : start + 3]
        ] == _QUOTIENT:
            top, sign, bottom = self.power(), self.next()[1], self.power()
            return ("+", node, (sign, top, bottom))
        self.at = start
        return node

    def power(self) -> Node:
        return self.raised(self.atom())

    def raised(self, node: Node) -> Node:
        while self.take("!"):
            if node[0] == "!":
                raise Unreadable("!! is not known")
            node = ("!", node)
        if not self.take("^"):
            return node
        start = self.at
        if self.take("{") and self.take("circ") and self.take("}"):
            return ("*", node, DEGREE)
        self.at = start
        return ("*", node, DEGREE) if self.take("circ") else ("^", node, self.signed(self.power))

    def atom(self) -> Node:
        kind, token = self.next()
        if kind == "number":
            return _literal(token)
        if token in _CLOSING:
            return self.inside(token)
        if kind == "letter":
            index = self.index()
            constant = {"I": "i", "E": "e"}.get(token) if not index else None  # as sympy prints them
            return ("name", constant or token + index)
        if token == "frac":
            return self.fraction()
        if token == "binom":
            return self.call("binom") if self.token == "(" else ("binom", self.argument(), self.argument())
        if token in ("lfloor", "lceil"):
            return self.inside(token)
        if token in INFINITY:
            return ("name", "infinity")
        if token == "pi":
            return ("pi",)
        if token in GREEK:
            return ("name", token + self.index())
        if token in FUNCTIONS:
            return self.function(token)
        raise Unreadable(f"{token} is not known")

    def inside(self, opening: str) -> Node:
        """The expression up to the closing bracket; of |x|, floor and ceiling with their meaning."""
        bars, self.bars = self.bars, opening == "|"
        node = self.whole()
        self.expect(_CLOSING.get(opening) or "r" + opening[1:])
        self.bars = bars
        name = {"|": "abs", "lfloor": "floor", "lceil": "ceil"}.get(opening)
        return (name, node) if name else node

    def index(self) -> str:
        """The index of a variable, "_1" of x_1."""
        if not self.take("_"):
            return ""
        if not self.take("{"):
            return f"_{self.next()[1]}"
        found = ""
        while not self.take("}"):
            found += self.next()[1]
        return f"_{found}"

    def fraction(self) -> Node:
        """The two arguments of \\frac as a quotient; they are read once, also where factor() goes back."""
        start = self.at
        if start not in self.fractions:
            self.fractions[start] = ("/", self.argument(), self.argument()), self.at
        node, self.at = self.fractions[start]
        return node

    def argument(self) -> Node:
        """{...}, or one digit or letter as in \\\\frac12."""
        kind, token = self.kind, self.token
        if kind == "number" and token.isdigit() and len(token) > 1:
            self.tokens[self.at] = (kind, token[1:])
            return _literal(token[0])
        return self.atom()

    def function(self, token: str) -> Node:
        name = FUNCTIONS[token]
        if name == "sqrt" and token == "sqrt" and self.take("["):
            degree = self.sum()
            self.expect("]")
            return ("sqrt", self.argument(), degree)
        base = self.argument() if name == "ln" and self.take("_") else None
        exponent = self.signed(self.argument) if name != "sqrt" and self.take("^") else None
        if exponent == negative(_literal("1")) and name in _CIRCULAR:
            name, exponent = "a" + name, None
        if self.kind == "sign" and self.token in _CLOSING and (self.token != "|" or not self.bars):
            node = self.call(name)
        elif name == "sqrt":
            node = (name, self.argument() if token == "sqrt" else self.atom())
        else:
            node = (name, self.signed(self.factors_of_function))
        if base:
            node = (*node, base)
        return node if exponent is None else ("^", node, exponent)

    def call(self, name: str) -> Node:
        """A function of what stands in brackets, log(8, 2); a power behind them is the function's."""
        opening = self.token
        if opening == "|":
            return (name, self.atom())
        bars, self.bars = self.bars, False
        self.next()
        arguments = [self.whole()]
        while self.take(","):
            arguments.append(self.whole())
        self.expect(_CLOSING[opening])
        self.bars = bars
        most = 2 if name in ("ln", "sqrt", "binom", "/", "^") else 1
        least = 2 if name in ("binom", "/", "^") else 1
        if not least <= len(arguments) <= most:
            raise Unreadable(f"{name} of {len(arguments)} arguments")
        return (name, *arguments)

    def factors_of_function(self) -> Node:
        """The product behind a function without brackets, up to a sign, a bracket or another function."""
        node = last = self.factor()
        while self.begins_factor(last) and self.kind != "sign":
            if FUNCTIONS.get(self.token) not in (None, "sqrt"):
                break
            last = self.factor()
            node = ("*", node, last)
        return node


def _literal(token: str) -> Node:
    """A number. `places` are its decimals; with a power of ten, of the mantissa's only if they are many."""
    if token.isdigit():
        return ("number", Fraction(int(token)), 0)
    mantissa, _, power = token.replace(",", "").lower().partition("e")
    value = Fraction(mantissa.rstrip("."))
    return _shifted(value, len(mantissa.partition(".")[2]), int(power or 0))


def _shifted(value: Fraction, places: int, power: int) -> Node:
    shifted = max(places - power, 0) if places >= ROUNDED else places
    return ("number", value * Fraction(10) ** power, shifted)


def _scientific(sign: str, left: Node, right: Node) -> Node:
    """A product or quotient; of a number and a power of ten, one number: 2.31 * 10^{-3}."""
    if sign == "*" and left[0] == "number" and right[0] == "^" and right[1] == ("number", Fraction(10), 0):
        power, minus = right[2], 1
        if power[0] == "-" and power[1] == ZERO:
            power, minus = power[2], -1
        if power[0] == "number" and power[1].denominator == 1 and power[1] < 1000:
            return _shifted(left[1], left[2], minus * int(power[1]))
    return (sign, left, right)
