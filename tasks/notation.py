r"""One notation for the many in which mathematics is written: plain(text), and the names of units.

    "１２" -> "12"      "√12" -> "\\root 12"      "\\dfrac12" -> "\\frac12"      "10\\,000" -> "10000"
    "\\$32,\\!348" -> "32,348\\text{dollar}"      "\\bm{12}" -> "12"      "x >= 5" -> "x ≥ 5"

The result is for tasks/expressions.py: ASCII, but for the relations "≤", "≥" and "≠".
"""

import functools
import itertools
import re
import unicodedata
from decimal import Decimal

from tasks.answers import untypeset

# -- characters --------------------------------------------------------------------------------------

_CHARACTERS = {"−": "-", "×": "*", "÷": "/", "∞": "\\infty ", "∪": "\\cup ", "√": "\\root ", "°": "^\\circ "}
_CHARACTERS |= {"±": "\\pm ", "∈": "\\in ", "∅": "\\emptyset ", "º": "^\\circ ", "℃": "^\\circ C"}
_CHARACTERS |= {"⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "∣": "|", "∶": ":"}
_CHARACTERS |= {"⟨": "(", "⟩": ")", "〈": "(", "〉": ")", "、": ",", "،": ",", "。": ".", "⁄": "/", "∕": "/"}
_CHARACTERS |= {"∠": "\\angle ", "∨": "\\or ", "⩽": "≤", "⩾": "≥", "≦": "≤", "≧": "≥"}
_CHARACTERS |= {"≈": "=", "≃": "=", "ℝ": "\\mathbb{R}", "∓": "\\mp ", "∛": "\\cbrt "}
_CHARACTERS |= dict.fromkeys("·⋅∙•∗⋆", "*") | {sign: sign for sign in "≤≥≠"}


def _ascii(text: str) -> str:
    """The text with other characters replaced by ASCII ones or by LaTeX commands."""
    marks = {"<super>": "^{%s}", "<sub>": "_{%s}", "<fraction>": "\\frac{%s}"}
    written = []
    for tag, run in itertools.groupby(text, _tag):
        inside = "".join(map(_character, run)) if tag != "<fraction>" else ""
        if tag == "<fraction>":
            pieces = (unicodedata.normalize("NFKC", each).replace("⁄", "}{") for each in run)
            inside = "\\frac{".join(f"{piece}}}" for piece in pieces)
            written.append("\\frac{" + inside)
        else:
            written.append(marks[tag] % inside if tag in marks else inside)
    return "".join(written)


def _tag(character: str) -> str:
    """How Unicode says that the character is another one: "<super>" of "²", "<fraction>" of "½"."""
    if character in _CHARACTERS:
        return ""
    tag = unicodedata.decomposition(character).partition(" ")[0]
    return tag if tag in ("<super>", "<sub>", "<fraction>") else ""


@functools.lru_cache(maxsize=4096)
def _character(character: str) -> str:
    if character.isascii():
        return character
    if character in _CHARACTERS:
        return _CHARACTERS[character]
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("Zs", "Cf", "Pd", "Pi", "Pf"):
        return {"Zs": " ", "Cf": "", "Pd": "-"}.get(category, "'")
    name = unicodedata.name(character, "")
    if found := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name):
        letter = found[2].lower().replace("lamda", "lambda")
        return f"\\{letter.capitalize() if found[1] == 'CAPITAL' else letter} "
    other = unicodedata.normalize("NFKC", character)
    return other if other == character else "".join(map(_character, other))


# -- LaTeX -------------------------------------------------------------------------------------------

# What a command is replaced with, and the commands; " " and "" drop one with and without a space.
_SPELLINGS = {
    "\\frac": "dfrac tfrac cfrac sfrac nicefrac", "\\binom": "dbinom tbinom", "*": "cdot times ast bullet",
    "/": "div", "<": "lt", ">": "gt", "≤": "le leq leqslant leqq", "≥": "ge geq geqslant geqq", "≠": "ne neq",
    "=": "approx simeq",
    "\\{": "lbrace", "\\}": "rbrace", "[": "lbrack", "]": "rbrack", "(": "langle", ")": "rangle rvert",
    "\\abs(": "lvert", "|": "vert mid", ":": "colon", "%": "%", "\\\\": "cr", "\\or ": "lor vee",
    "^\\circ ": "degree degrees textdegree", "\\emptyset ": "varnothing", "\\phi ": "varphi",
    "\\epsilon ": "varepsilon", "\\theta ": "vartheta", "€": "euro", "£": "pounds", "\\$": "textdollar",
    "\\text": "text textbf textit textrm textsf texttt textup textnormal mathrm mbox hbox",
    "": "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr !",
    " ": "displaystyle textstyle scriptstyle limits nolimits hline quad qquad bf rm it sf tt bfseries small "
    "large Large LARGE huge Huge , ; : >",
}  # fmt: skip
_COMMANDS = {name: one for one, names in _SPELLINGS.items() for name in names.split()} | {" ": " ", "\n": " "}
_COMMAND = re.compile(r"\\([a-zA-Z]+|[^a-zA-Z])")
_BARS = re.compile(r"\\(?:left|[bB]igg?l)\s*\|"), re.compile(r"\\(?:right|[bB]igg?r)\s*\|")

_FONT = r"boxed|fbox|mathbf|mathbb|mathcal|mathit|mathsf|mathtt|bm|boldsymbol|pmb|underline|emph|ensuremath"
_WRAPPED = re.compile(rf"\\(?:{_FONT}|operatorname\*?)\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")
_COLOR = re.compile(r"\\(?:text)?color\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}")
TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")

_MARKDOWN = re.compile(r"\A(__|\*|`+)([^_*`]+)\1\Z")
_SPACED = re.compile(r"(?<![\d.,^_}])\d{1,3}(?:(?:\\[,;: !]|~|[ _])+\d{3})+(?![\d/_^])")
_COMMA = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}\s*(?:\\!\s*)?)(?=\d)")
_ORDINAL = re.compile(
    r"(?<=\d)\s*(?:\^\s*)?\{?\s*(?:\\text\s*\{\s*(?:st|nd|rd|th)\s*\}|(?<!\s)(?:st|nd|rd|th)(?![a-zA-Z]))\s*\}?"
)
_SEGMENT = re.compile(r"\\(?:overline|overrightarrow|widehat)\s*\{\s*([A-Z]{2,})\s*\}")
_AND_SO_ON = re.compile(r"(?<=\.)(\d*?)(\d)\2{2,}\s*(?:\.\.\.|\\[lc]?dots(?![a-zA-Z]))")
_REPEATED = re.compile(r"(\d*)\.(\d*)(?:\\overline\s*\{?\s*(\d+)\s*\}?|\\dot\s*\{?(\d)\}?|\((\d+)\))")
_BETWEEN = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(and|or)\s*\}|(?<![a-zA-Z\\])(and|or)(?![a-zA-Z]))\s*")

_REALS = re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R(?![a-zA-Z]))|\A(?:all\s+)?(?:real\s+numbers|reals)\Z", re.I)
_NO_SOLUTION = re.compile(r"no(?:\s+real)?\s+solutions?|(?:the\s+)?empty\s*set|set\(\)", re.I)

_SCALES = {"hundred": 100, "dozen": 12, "thousand": 10**3}
_SCALES |= {"million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALE = re.compile(
    rf"(?<![\w{{}}/^.,])(\d+(?:,\d{{3}})*(?:\.\d+)?)\s*(\\text\s*\{{)?\s*({'|'.join(_SCALES)})(?![a-zA-Z])(?(2)\s*(\}})?)"
)

_CURRENCY = {"$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "₩": "won", "¢": "cent"}
_AMOUNT = r"(?P<amount>[+-]?\s*\d+(?:,\d+)*(?:\.\d+)?)"
_SIGN_AS_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{\s*(\\\$|[€£¥₹₩])\s*\}")
_PRICE = re.compile(
    rf"(?:US|\\text\s*\{{\s*US\s*\}})?(?:\\\$|\A\s*(?:US\s*)?\$(?=[^$]*\Z)|(?P<sign>[€£¥₹₩]))\s*{_AMOUNT}(?!\s*[\\a-zA-Z\d])"
)
_CODES = {"USD": "dollar", "EUR": "euro", "GBP": "pound", "JPY": "yen", "INR": "rupee", "Rs": "rupee"}
_CODED = re.compile(rf"\A\s*({'|'.join(_CODES)})\b\.?\s*{_AMOUNT}\s*\Z")
_PRICED = re.compile(rf"{_AMOUNT}\s*(?:\\\$|(?P<sign>[€£¥₹₩¢]))")


def plain(text: str) -> str:
    """The text in one notation, without fonts, colours, dollar signs and full stops around it."""
    text = _MARKDOWN.sub(r"\2", untypeset(text))
    text = " ".join((text if text.isascii() else _ascii(text)).split())
    if _NO_SOLUTION.fullmatch(words(text).strip(" .")):
        return "\\emptyset"
    text = _REALS.sub(r"(-\\infty,\\infty)", _AND_SO_ON.sub(r"\1\\overline{\2}", text))
    text = _CODED.sub(lambda found: f"{found['amount']}\\text{{{_CODES[found[1]]}}}", text)
    text = _COMMA.sub(",", text)
    text = _SPACED.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _SCALE.sub(_scaled, _SIGN_AS_TEXT.sub(r"\1", text))
    for pattern in (_PRICE, _PRICED):
        text = pattern.sub(_price, text) if "$" in text or not text.isascii() else text
    if "\\" in text:
        text = _BARS[1].sub(")", _BARS[0].sub(r"\\abs(", text))
        text = _SEGMENT.sub(r"\1", re.sub(r"\\(left|right)\s*\.", "", text))
        text = _COMMAND.sub(lambda found: _COMMANDS.get(found[1], found[0]), _COLOR.sub(" ", text))
        for _ in range(3):
            text = _WRAPPED.sub(r" \1 ", text)
        text = text if "\\begin" in text else re.sub(r"\\[()\[\]]", " ", text)
    text = re.sub(r"\)\s*\|\s*\(", r") \\or (", text)  # sympy's or
    for sign, one in (("**", "^"), (">=", "≥"), ("<=", "≤"), ("==", "="), (";", ",")):
        text = text.replace(sign, one)
    text = text[:1] + text[1:].replace("~", " ")  # "~5" is about 5
    text = _ORDINAL.sub("", " ".join(text.split()))
    text = _REPEATED.sub(_fraction, text)
    both = " & " if re.search("[<>≤≥]", text) else ", "
    text = _BETWEEN.sub(lambda found: " \\or " if "or" in found.groups() else both, text)
    return text.replace("$", " ").strip().rstrip(" .").removeprefix("=").lstrip()  # "≈ 5" is "= 5" is "5"


def _scaled(found: re.Match) -> str:
    """ "2.5 million" as 2500000.0."""
    return format(Decimal(found[1].replace(",", "")) * _SCALES[found[3]], "f") + (
        "" if found[4] else found[2] or ""
    )


def _price(found: re.Match) -> str:
    return f"{found['amount']}\\text{{{_CURRENCY[found['sign'] or '$']}}}"


def _fraction(found: re.Match) -> str:
    """A repeating decimal as a fraction: 0.1\\\\overline{6} is (16 - 1) / 90."""
    whole, fixed, period = found[1], found[2], found[3] or found[4] or found[5]
    below = int("9" * len(period) + "0" * len(fixed))
    return f"{{({int(whole + fixed + period) - int(whole + fixed or '0')})/({below})}}"


def words(text: str) -> str:
    """The text inside \\\\text{} and around it: "\\\\text{(B)} 7" is "(B) 7"."""
    return TEXT.sub(r"\1", text)


# -- units -------------------------------------------------------------------------------------------

_UNITS = {
    "meter": "m metre", "second": "s sec", "hour": "h hr", "gram": "g", "liter": "l litre", "minute": "min",
    "centimeter": "cm centimetre", "millimeter": "mm millimetre", "kilometer": "km kilometre", "day": "",
    "kilogram": "kg kilo", "milligram": "mg", "milliliter": "ml", "foot": "ft feet", "inch": "in inches",
    "pound": "lb", "ounce": "oz", "mile": "mi", "yard": "yd", "gallon": "gal", "degree": "deg", "year": "yr",
    "radian": "rad", "dollar": "usd", "cent": "", "euro": "eur", "week": "wk", "month": "", "unit": "",
    "newton": "", "joule": "", "watt": "", "volt": "", "kilowatt": "kw", "hertz": "hz", "percent": "",
    "yen": "jpy", "rupee": "rs inr",
}  # fmt: skip
SYNONYMS = {each: name for name, others in _UNITS.items() for each in (name, *others.split())}
_COMPOUND = {"mph": "mile/hour", "kph": "kilometer/hour", "kmh": "kilometer/hour", "sqft": "foot^2"}
# Words that are no units behind a number: they are of its value, or say something about it.
_NO_UNIT = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred "
    "thousand million billion trillion mil mln mn bn tn k dozen score gross half halve quarter third "
    "fourth fifth sixth seventh eighth ninth tenth eleventh twelfth hundredth thousandth millionth "
    "squared cubed doubled tripled halved negative positive point plus minus times mod modulo over "
    "divided multiplied by choose factorial power root exponent base binary octal decimal hexadecimal hex "
    "remainder prime inverse infinity infinite pi sin cos tan log ln exp sqrt is isn are aren was be been "
    "not no nor none never wrong incorrect false if then unless when where while because but so than more "
    "less greater fewer most least only except about approximately approx almost nearly roughly around "
    "maybe perhaps possibly either neither both all any some other another instead rather it this that "
    "which"
)
NO_UNIT = {word + end for word in _NO_UNIT.split() for end in ("", "s")} - {"points", "primes"}
_UNIT = re.compile(r"([a-zA-Z]+)(?:\^?\{?(-?\d)\}?)?|(/)")


def known_unit(word: str) -> bool:
    """Whether a word is the name of a unit, or part of one: "km", "miles", "mph", "per"."""
    word = word.lower()
    one = word.removesuffix("s") if len(word) > 2 else word
    return bool({word, one} & (SYNONYMS.keys() | _COMPOUND.keys() | {"per", "square", "cubic", "sq", "cu"}))


def _unit_case(found: re.Match) -> str:
    """The word in lower case, but for symbols that would become another unit: "mW" is not "MW"."""
    word = found[0]
    symbol = 1 < len(word) < 4 and not word[1:].islower() and not known_unit(word)
    return word if symbol or word in ("Mg", "Ml", "Mm") else word.lower()


def unit(text: str) -> str:
    """One name for all names of a unit.

    >>> unit("sq cm"), unit("miles per hour"), unit("mph"), unit(r"\\text{m}/\\text{s}^2")
    ('centimeter^2', 'hour^-1 mile', 'hour^-1 mile', 'meter second^-2')
    """
    text = re.sub(r"[a-zA-Z]+", _unit_case, words(text).replace(".", ""))
    text = re.sub(r"\b(?:per|an?)\b", "/", text) if re.search(r"\bper\b", text) else text
    text = re.sub(
        r"\b(square|sq|cubic|cu)\s+([a-zA-Z]+)", lambda m: m[2] + ("^3" if m[1][0] == "c" else "^2"), text
    )
    text = re.sub(r"[a-zA-Z]+", lambda found: _COMPOUND.get(found[0], found[0]), text)
    powers: dict[str, int] = {}
    sign = 1
    for found in _UNIT.finditer(text):
        if found[3]:
            sign = -1
            continue
        word = found[1]
        one = word.removesuffix("s") if len(word) > 2 else word
        name = SYNONYMS.get(word) or SYNONYMS.get(one, one)
        powers[name] = powers.get(name, 0) + sign * int(found[2] or 1)
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()))
