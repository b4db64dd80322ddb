"""Parsers of answers: numbers, lists, pairs and words in any common notation.

They ignore white space, outer quotes and brackets, a final full stop, and typesetting around the whole text
($...$, \\(...\\), **...**, \\boxed{...}, \\text{...}). They guess nothing: a text with anything else than the
expected value gives None. Every function takes any string, never raises, and takes linear time.
"""

import re
from fractions import Fraction

QUOTES = "'\"`\u2018\u2019\u201c\u201d"
OUTER = QUOTES + " \t\r\n"
BRACKETS = {"(": ")", "[": "]", "{": "}"}
DEPTH = 8  # levels of outer quotes and brackets that normal() removes
DIGITS = 1000  # of the longest number: int() refuses 4300 digits, and no question needs so many

_INTEGER = re.compile(rf"[+-]?[0-9]{{1,{DIGITS}}}")
_WORD = re.compile(r"\w(?:[\w'\u2019&.-]*\w)?")
_DECIMAL = (
    rf"(?:[0-9]{{1,3}}(?:,[0-9]{{3}}){{1,{DIGITS // 3}}}|[0-9]{{0,{DIGITS}}})(?:\.[0-9]{{0,{DIGITS}}})?"
)
_NUMBER = re.compile(rf"([+-]?{_DECIMAL})(?:[eE]([+-]?[0-9]{{1,3}}))?(?:\s*/\s*({_DECIMAL}))?")


_TYPESET = re.compile(
    r"\$\$?([^$]+)\$\$?|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*((?:(?!\*\*).)+)\*\*"
    r"|\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}",
    re.DOTALL,
)


_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*([0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")


def untypeset(text: str | None) -> str:
    """The text without typesetting around the whole of it; "" for None.

    >>> untypeset(r"**$\\boxed{12}$**."), untypeset("$5"), untypeset("$1$ or $2$")
    ('12', '$5', '$1$ or $2$')
    """
    text = (text or "").strip()
    for _ in range(DEPTH):
        found = _TYPESET.fullmatch(text.removesuffix("."))
        if not found:
            break
        text = next(inside for inside in found.groups() if inside is not None).strip()
    return text


_SIGNS = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"), ("\\left", ""), ("\\right", ""))
_SIGNS += (("\u00d7", "*"), ("\u00b7", "*"), ("\u00f7", "/"), ("\u2212", "-"), ("\u2013", "-"))


def operators(text: str | None) -> str:
    """A calculation with the signs + - * /, without typesetting.

    >>> operators(r"$(6-4)\\times(9+3)$")
    '(6-4)*(9+3)'
    """
    text = untypeset(text)
    for typeset, sign in _SIGNS:
        text = text.replace(typeset, sign)
    return text


def normal(text: str | None) -> str:
    """The text in lower case with single spaces, without outer quotes, outer brackets and final full stop; ""
    for None.

    >>> normal(' ["Red  Queen"]. ')
    'red queen'
    """
    text = " ".join(untypeset(text).split()).lower()
    for _ in range(DEPTH):
        inner = _peeled(text)
        if inner == text:
            break
        text = inner
    return text


def _peeled(text: str) -> str:
    """The text without its final full stop, or without its outermost quotes or brackets."""
    if text.endswith("."):
        return text[:-1].rstrip()
    if len(text) > 1 and text[0] in QUOTES and text[-1] in QUOTES:
        return text[1:-1].strip() if not set(text[1:-1]) & set(QUOTES[:3]) else text
    return text[1:-1].strip() if _enclosed(text) else text


def _enclosed(text: str) -> bool:
    """Whether the last character closes a bracket that the first one opens: in "(1)", not in "(1) (2)"."""
    if not text or BRACKETS.get(text[0]) != text[-1]:
        return False
    depth = 0
    for i, character in enumerate(text):
        depth += (character == text[0]) - (character == text[-1])
        if depth == 0:
            return i == len(text) - 1
    return False


def _items(text: str | None) -> list[str] | None:
    """The items between commas, semicolons, white space and brackets; None if one is empty, as in "1,,2"."""
    flat = re.sub(r"[\[\](){}]", " ", _bare(text))
    places = re.split(r"[,;]", flat)
    if len(places) > 1 and not places[-1].strip():
        places.pop()  # Python's tuple of one, "1,"
    if len(places) > 1 and not all(p.strip() for p in places):
        return None
    return [item for place in places for item in place.split()]


def _bare(text: str | None) -> str:
    """The text without outer quotes and final full stop."""
    return untypeset(text).strip(OUTER).removesuffix(".").strip(OUTER)


def integers(text: str | None) -> list[int] | None:
    """The integers of a list or a grid, flattened, with any brackets, commas, quotes or line breaks between
    them; [] for "[]"; None for an empty text, for anything else in it, and for a gap as in "1,,2".

    >>> integers("[[1, 2], [3, -4]]"), integers("1 2\\n3 -4"), integers("1, two"), integers("1.5")
    ([1, 2, 3, -4], [1, 2, 3, -4], None, None)
    """
    items = _items((text or "").replace("\u2212", "-"))  # the minus sign of typeset text
    if items is None or not (text or "").strip():
        return None
    items = [item.strip(QUOTES) for item in items]
    return [int(item) for item in items] if all(map(_INTEGER.fullmatch, items)) else None


def digits(text: str | None, width: int) -> list[int] | None:
    """The single digits of rows that are written without marks between them; None for anything else.

    >>> digits("001203", 6), digits("[00100, 11010]", 5), digits("00100 11", 5)
    ([0, 0, 1, 2, 0, 3], [0, 0, 1, 0, 0, 1, 1, 0, 1, 0], None)
    """
    items = [item.strip(QUOTES) for item in _items(text) or []]
    rows = bool(items) and all(re.fullmatch(f"[0-9]{{{width}}}", item) for item in items)
    return [int(digit) for digit in "".join(items)] if rows else None


def words(text: str | None) -> list[str] | None:
    """The words or letters of a list or a grid, flattened, with their case and without quotes; None for an
    empty text and for anything that is not a word (letters, digits, and inside it ' & . -).

    >>> words('["A", "B"]'), words("left, right, o'clock"), words("A -> B")
    (['A', 'B'], ['left', 'right', "o'clock"], None)
    """
    items = _items(text)
    if items is None or not (text or "").strip():
        return None
    items = [item.strip(QUOTES) for item in items]
    return items if all(map(_WORD.fullmatch, items)) else None


def pairs(text: str | None) -> list[tuple[int, int]] | None:
    """Pairs of integers, such as positions; None if the integers are not in pairs.

    >>> pairs("0 4, 1 2"), pairs("[(0, 4), (1, 2)]"), pairs("0 4, 1"), pairs("(0, 4, 1), (2)")
    ([(0, 4), (1, 2)], [(0, 4), (1, 2)], None, None)
    """
    flat = integers(text)
    if flat is None or len(flat) % 2:
        return None
    groups = re.findall(r"[\[({]([^\[\](){}]*)[\])}]", text)  # innermost brackets
    if len(groups) < 2:
        groups = [g for g in re.split(r"[,;\n]", _bare(text)) if re.search("[0-9]", g)]
    sizes = {len(integers(group) or []) for group in groups}
    if not sizes <= {2} and not sizes <= {1}:  # ones: a flat list "0, 4, 1, 2"
        return None
    return list(zip(flat[::2], flat[1::2], strict=True))


def number(text: str | None, units: tuple[str, ...] = ()) -> Fraction | None:
    """The number in a text: an integer, a decimal (also 1.5e3) or a fraction a/b, with or without commas
    between thousands. `units` before or after it ("$", "%", "cm") are ignored: "12 %" with units=("%",) is
    12. None for anything else.

    >>> number("1,234.50"), number("-3/4"), number("$5", ("$",)), number("5 cm"), number("1/0")
    (Fraction(2469, 2), Fraction(-3, 4), Fraction(5, 1), None, None)
    """
    text = _FRACTION.sub(r"\1/\2", normal(text).replace("\u2212", "-"))
    for unit in map(str.lower, units):
        if unit and text.startswith(unit):
            text = text.removeprefix(unit).lstrip()
        elif unit and text.endswith(unit):
            text = text.removesuffix(unit).rstrip()
    found = _NUMBER.fullmatch(text)
    if not found or not all(part is None or re.search("[0-9]", part) for part in (found[1], found[3])):
        return None
    top, bottom = Fraction(found[1].replace(",", "")), Fraction((found[3] or "1").replace(",", ""))
    top *= Fraction(10) ** int(found[2] or 0)
    return top / bottom if bottom else None
