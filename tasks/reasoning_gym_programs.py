"""Reference programs for tasks of reasoning-gym: Python that computes the answer from what the question says.

The package has answers but no programs. A program here is a few literal assignments, read from the question
(PROGRAMS: the inputs of a question), and a body that works on them. None of them is told the answer. Tasks
whose rule must be guessed from examples (arc_1d, list_functions) or that need a dictionary (word_ladder) have
no program.
"""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

from tasks import Problem


@dataclass(frozen=True)
class Program:
    """inputs: question text and the package's metadata -> name -> literal, or lines to begin with; body: what
    follows them. Raises ValueError where the question does not have the expected form."""

    inputs: Callable[[str, dict], dict[str, object] | str]
    body: str


def program(problem: Problem) -> str | None:
    """The program for a question of reasoning-gym, or None where its task has none."""
    found = PROGRAMS.get(problem.task)
    if found is None:
        return None
    try:
        inputs = found.inputs(problem.question, problem.meta["entry"]["metadata"])
    except (ValueError, KeyError):
        return None
    if not isinstance(inputs, str):
        inputs = "\n".join(f"{name} = {_literal(value)}" for name, value in inputs.items())
    imports, body = re.match(r"\s*((?:(?:from|import) [^\n]*\n+)*)(.*)", found.body, re.DOTALL).groups()
    head = f"{imports.strip()}\n\n" if imports else ""
    return f"{head}{inputs}\n{body}".strip()


def _literal(value: object) -> str:
    """A literal as people write it: a matrix row by row, and text of several lines in three quotes."""
    if isinstance(value, str) and "\n" in value and not set(value) & set("\\'\""):
        return f'"""\\\n{value}"""'
    if isinstance(value, list) and value and all(isinstance(row, list | tuple) for row in value):
        rows = "".join(f"    {_literal(row)},\n" for row in value)
        return f"[\n{rows}]" if len(repr(value)) > 60 else repr(value)
    return repr(value)


def _find(pattern: str, text: str) -> str:
    """What the first group matches. Raises ValueError where nothing matches."""
    found = re.search(pattern, text, re.DOTALL)
    if found is None:
        raise ValueError(f"no {pattern!r} in the question")
    return found[1]


def _rows(text: str) -> list[list[int]]:
    """A block of whole numbers, row by row."""
    rows = [[int(number) for number in re.findall(r"-?\d+", line)] for line in text.strip().split("\n")]
    return [row for row in rows if row]


def _last_block(question: str) -> str:
    """What follows the last line that ends with a colon."""
    return _find(r".*:\n(.*)", question).strip("\n")


def _quoted(text: str) -> list[str]:
    return re.findall(r"['\"]([^'\"]*)['\"]", text)


def _base(text: str) -> int:
    """base-7, or its name."""
    named = {"binary": 2, "octal": 8, "decimal": 10, "hexadecimal": 16}
    return named[text] if text in named else int(text.removeprefix("base-"))


# -- inputs that take more than a pattern ------------------------------------------------------------


def _acre(question: str, data: dict) -> dict:
    lines = _find(r"results:\n(.*?)\n\n", question).split("\n")
    results = [(shown.split(", "), light) for shown, light in (line.split(" → ") for line in lines)]
    return {"results": results, "case": _find(r"test case:\n(.*?)\n", question).split(", ")}


DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def _calendar(question: str, data: dict) -> str:
    """The whole program: there are seven kinds of questions."""

    def day(text: str) -> str:
        found = datetime.date.fromisoformat(text)
        return f"date({found.year}, {found.month}, {found.day})"

    head, kind = "from datetime import date\n\n", data["task"]
    counting = "from datetime import date, timedelta\n\n"
    if kind == "weekday_offset":
        offset = int(data["offset_days"])
        return f"{counting}day = {day(data['start_date'])} + timedelta(days={offset})\nprint(f'{{day:%A}}')"
    if kind == "weekday_of_date":
        return f"{head}print(f'{{{day(data['target_date'])}:%A}}')"
    if kind == "weekday_of_date_from_first_date":
        return (
            f"{head}days = {list(DAYS)}\nfirst = days.index({data['first_day']!r})\n"
            f"# a year of 365 days\npassed = {day(data['target_date'])} - date({data['year']}, 1, 1)\n"
            "print(days[(first + passed.days) % 7])"
        )
    if kind in ("count_days", "count_business_days"):
        span = f"{counting}day, end = {day(data['start_date'])}, {day(data['end_date'])}\ncount = 0\n"
        asked = "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)"
        if kind == "count_days":
            name = _find(rf"(?:How many|occurrences of|times does) ({asked}day)", question)
            test = f"f'{{day:%A}}' == {name!r}"
        else:
            test = "day.weekday() < 5"
        return f"{span}while day <= end:\n    count += {test}\n    day += timedelta(days=1)\nprint(count)"
    if kind == "is_leap_year":
        return f"import calendar\n\nprint('Yes' if calendar.isleap({data['year']}) else 'No')"
    place = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": -1}[data["ordinal"]]
    return (
        f"import calendar\n\nweeks = calendar.monthcalendar({data['year']}, {data['month']})\n"
        f"days = [week[{DAYS.index(data['weekday'])}] for week in weeks]  # {data['weekday']}s\n"
        f"days = [day for day in days if day]\nprint(days[{place}])"
    )


def _complex(question: str, data: dict) -> dict:
    a, b = (complex(*data[name]) for name in ("num1", "num2"))
    return {"a": a, "b": b, "operation": data["operation"]}


def _family(question: str, data: dict) -> dict:
    from reasoning_gym.graphs.family_relationships import FamilyRelationshipsConfig

    story = question.split("\n\n")[0]
    married = re.findall(r"(\w+) is married to (\w+)", story)
    couple, parents = (), {}
    for sentence in story.split(". "):
        if found := re.search(r"(\w+) is married to (\w+)", sentence):
            couple = found.groups()
        elif found := re.search(r"(?:child|children) called (.*)", sentence):
            for child in re.findall(r"[A-Z]\w+", found[1]):
                parents[child] = couple
    people = sorted({name for pair in married for name in pair} | set(parents))
    women = set(FamilyRelationshipsConfig().female_names)
    asked = re.search(r"(?:What is|How is|What relation is) (\w+) (?:related )?to (\w+)", question)
    if asked is None:
        raise ValueError("no question about two people")
    female = [name for name in people if name in women]
    return {"married": married, "parents": parents, "female": female, "a": asked[1], "b": asked[2]}


def _knights(question: str, data: dict) -> str:
    """The whole program: each statement becomes an expression."""
    names = [str(name) for name in data["names"]]
    words = [name.lower() for name in names]

    def say(statement: tuple) -> str:
        kind, *parts = statement
        if kind in ("telling-truth", "lying"):
            return words[parts[0]] if kind == "telling-truth" else f"(not {words[parts[0]]})"
        inner = [say(part) for part in parts]
        if kind == "not":
            return f"(not {inner[0]})"
        if kind in ("and", "or"):
            return "(" + f" {kind} ".join(inner) + ")"
        return f"({inner[0]} {'<=' if kind == '->' else '=='} {inner[1]})"

    terms = data["knight_knave_terms"]
    claims = " and ".join(
        f"{word} == {say(claim)}" for word, claim in zip(words, data["statements"], strict=True)
    )
    lines = ["import itertools", "", f"# True: {terms['knight']}, who tells the truth; each says:"]
    lines += [f"for {', '.join(words)} in itertools.product([True, False], repeat={len(words)}):"]
    lines += [f"    if {claims}:"]
    told = [
        f"{name} is {{{str(terms['a_knight'])!r} if {word} else {str(terms['a_knave'])!r}}}"
        for name, word in zip(names, words, strict=True)
    ]
    return "\n".join([*lines, f'        print(f"{", and ".join(told)}")'])


def _legs(question: str, data: dict) -> dict:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    animals = dict(data["animals"])
    return {"animals": animals, "legs": {name: ANIMALS[name] for name in animals}}


MATRIX_STEPS = (  # an instruction -> a line of Python
    (r"Identity|Rotate the matrix 360", "pass  # nothing changes"),
    (r"Rotate the matrix 90 ", "m = [list(row) for row in zip(*m[::-1])]"),
    (r"Rotate the matrix 180 ", "m = [row[::-1] for row in m[::-1]]"),
    (r"Rotate the matrix 270 ", "m = [list(row) for row in zip(*m)][::-1]"),
    (r"Horizontally mirror", "m = m[::-1]"),
    (r"Vertically mirror", "m = [row[::-1] for row in m]"),
    (r"along the diagonal", "m = [list(row) for row in zip(*m)]"),
    (r"along the counterdiagonal", "m = [list(row) for row in zip(*[row[::-1] for row in m[::-1]])]"),
    (r"Map each occurrence of (\d+) to (\d+)", "m = [[{1} if x == {0} else x for x in row] for row in m]"),
    (r"divisible by (\d+) to zero", "m = [[0 if x % {0} == 0 else x for x in row] for row in m]"),
    (r"rows (\d+)-(\d+) and columns (\d+)-(\d+)", "m = [row[{2} - 1 : {3}] for row in m[{0} - 1 : {1}]]"),
    (r"Remove every (\d+)-\w+ row", "m = [row for i, row in enumerate(m, 1) if i % {0}]"),
    (r"Remove every (\d+)-\w+ column", "m = [[x for i, x in enumerate(row, 1) if i % {0}] for row in m]"),
)


def _matrix(question: str, data: dict) -> str:
    matrix = _rows(_find(r"matrix:\n(.*?)\n\n", question))
    lines = [f"m = {_literal(matrix)}"]
    for instruction in re.findall(r"^- (.*)$", question, re.MULTILINE):
        pattern, line = next((p, line) for p, line in MATRIX_STEPS if re.search(p, instruction))
        lines.append(line.format(*re.search(pattern, instruction).groups()))
    return "\n".join(line for line in lines if not line.startswith("pass"))


STRING_RULES = {  # what a rule says -> when it applies, what it makes of s
    "prefix is 'ab', replace it with 'ca'": ("s.startswith('ab')", "'ca' + s[2:]"),
    "suffix is 'ac', replace it with 'cb'": ("s.endswith('ac')", "s[:-2] + 'cb'"),
    "prefix is 'bc', delete the first two": ("s.startswith('bc')", "s[2:] + 'aa'"),
    "suffix is 'bb', delete the last two": ("s.endswith('bb')", "s[:-2]"),
    "prefix is 'cb', replace it with 'aa' and": ("s.startswith('cb')", "'aa' + s[2:-1]"),
    "prefix is 'ca', replace it with 'bb' and": ("s.startswith('ca')", "'bb' + s[2:] + 'c'"),
    "suffix is 'cc', replace it with 'b' and": ("s.endswith('cc')", "'a' + s[:-2] + 'b'"),
    "prefix is 'aa', remove the first": ("s.startswith('aa')", "s[1:]"),
    "contains 'abc', replace": ("'abc' in s", "s.replace('abc', 'cab', 1)"),
    "contains 'bca', delete": ("'bca' in s", "s.replace('bca', '', 1)"),
    "ends with 'ba', replace": ("s.endswith('ba')", "s[:-2] + 'ab'"),
    "starts with 'cc', remove": ("s.startswith('cc')", "s[2:]"),
    "contains 'acb', replace": ("'acb' in s", "s.replace('acb', 'bca', 1)"),
    "ends with 'ca', remove": ("s.endswith('ca')", "s[:-1]"),
    "starts with 'bb', remove": ("s.startswith('bb')", "s[0] + s[2:]"),
    "ends with 'aa', replace": ("s.endswith('aa')", "s[:-2] + 'cc'"),
    "contains 'ca' (not at the start)": ("'ca' in s[1:]", "s[0] + s[1:].replace('ca', '', 1)"),
    "an even number of 'b's": ("s.count('b') in range(2, 999, 2)", "s + 'ab'"),
    "length is greater than 15": ("len(s) > 15", "s[: len(s) // 2] + s[len(s) // 2 + 1 :]"),
    "starts with 'ac', replace": ("s.startswith('ac')", "'zz' + s[2:]"),
}


def _string(question: str, data: dict) -> str:
    lines = ["def step(s):"]
    for rule in re.findall(r"^\d+\. (.*)$", question, re.MULTILINE):
        condition, change = next(made for part, made in STRING_RULES.items() if part in rule)
        lines += [f"    if {condition}:", f"        return {change}"]
    text = _find(r"of rules:\n(\S+)", question)
    return "\n".join([*lines, "    return s", "", f"states = [{text!r}]"])


def _propositions(question: str, data: dict) -> dict:
    """The premises in Python's words: `not`, `and`, `or`, <= for implication, == for equivalence."""
    signs = {"∧": "and", "∨": "or", "→": "<=", "↔": "=="}

    def say(text: str) -> tuple[str, str]:  # one expression in Python, and what follows it
        if text[0] == "¬":
            inner, rest = say(text[1:])
            return f"(not {inner})", rest
        if text[0] != "(":
            return text[0], text[1:]
        left, rest = say(text[1:])
        sign, rest = rest.strip()[0], rest.strip()[1:].strip()
        right, rest = say(rest)
        return f"({left} {signs[sign]} {right})", rest[1:]

    premises = [p.strip() for p in re.findall(r"^\.?\d+\. (.*)$", question, re.MULTILINE)]
    letters = sorted(set(re.findall("[A-Z]", "".join(premises))))
    return {"letters": letters, "premises": [say(p)[0] for p in premises], "written": premises}


def _self_reference(question: str, data: dict) -> dict:
    a, b, c, d = (int(n) for n in re.findall(r"(?:At least|At most|Exactly) (\d) of", question))
    return {"a": a, "b": b, "c": c, "d": d}


# -- the table: inputs and body of each task --------------------------------------------------------

PROGRAMS = {
    "acre": Program(
        _acre,
        """
import itertools

objects = sorted({name for shown, _ in results for name in shown} | set(case))
answers = set()
for choice in itertools.product([False, True], repeat=len(objects)):
    blickets = {name for name, chosen in zip(objects, choice) if chosen}
    if all(bool(blickets & set(shown)) == (light == "on") for shown, light in results):
        answers.add("on" if blickets & set(case) else "off")
print(answers.pop() if len(answers) == 1 else "undetermined")
""",
    ),
    "base_conversion": Program(
        lambda q, _: {
            "number": _find(r"number (\w+) to", q),
            "source": _base(_find(r"the (\S+) number", q)),
            "target": _base(_find(r" to (\S+)\s*\Z", q)),
        },
        """
digits = "0123456789abcdefghijklmnopqrstuvwxyz"
value = int(number, source)
converted = ""
while value:
    value, rest = divmod(value, target)
    converted = digits[rest] + converted
print(converted or "0")
""",
    ),
    "binary_alternation": Program(
        lambda q, _: {"text": _find(r"alternating: ([01]+)", q)},
        """
swaps = []
for first in "01":
    wanted = [first if i % 2 == 0 else "10"[int(first)] for i in range(len(text))]
    if sorted(wanted) == sorted(text):
        swaps.append(sum(a != b for a, b in zip(text, wanted)) // 2)
print(min(swaps, default=-1))
""",
    ),
    "binary_matrix": Program(
        lambda q, _: {"text": _last_block(q)},
        """
matrix = [[int(x) for x in line.split()] for line in text.split("\\n")]
n = len(matrix)
zeros = [(i, j) for i in range(n) for j in range(n) if matrix[i][j] == 0]
for i in range(n):
    print(*[min(abs(i - a) + abs(j - b) for a, b in zeros) for j in range(n)])
""",
    ),
    "calendar_arithmetic": Program(_calendar, ""),
    "chain_sum": Program(lambda q, _: f"total = {_find(r'problem: (.*) =', q)}", "print(total)"),
    "complex_arithmetic": Program(
        _complex,
        """
result = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else 0}[operation]
real, imag = round(result.real, 6), round(result.imag, 6)
print(f"{real} {'-' if imag < 0 else '+'} {abs(imag)}i")
""",
    ),
    "count_bits": Program(lambda q, _: {"n": int(_find(r"number (\d+)", q))}, 'print(bin(n).count("1"))'),
    "cryptarithm": Program(
        lambda q, data: {
            "words": re.findall(r"[A-Z]+", _find(r"cryptarithm:\n(.*?)-----", q)),
            "result": _find(r"-----\s+([A-Z]+)", q),
        },
        """
leading = {word[0] for word in [*words, result]}

def solve(column, carry, digits):  # column by column from the right
    if column == len(result):
        return digits if carry == 0 else None
    here = [word[-1 - column] for word in words if column < len(word)]
    total = result[-1 - column]
    new = next((c for c in [*here, total] if c not in digits), None)
    if new is None:
        carry, last = divmod(carry + sum(digits[c] for c in here), 10)
        return solve(column + 1, carry, digits) if last == digits[total] else None
    for d in range(new in leading, 10):
        if d not in digits.values():
            if found := solve(column, carry, {**digits, new: d}):
                return found
    return None

found = solve(0, 0, {})
print(",".join(f"{letter}={found[letter]}" for letter in sorted(found)))
""",
    ),
    "dice": Program(
        lambda q, _: {
            "dice": [int(n) for n in re.findall(r"1d(\d+)", q.split(".")[0])],
            "target": int(_find(r"rolling (\d+) or higher", q)),
        },
        """
from collections import Counter
from fractions import Fraction

ways = Counter({0: 1})  # sum -> number of ways to throw it
for sides in dice:
    more = Counter()
    for total, count in ways.items():
        for face in range(1, sides + 1):
            more[total + face] += count
    ways = more
good = sum(count for total, count in ways.items() if total >= target)
print(Fraction(good, sum(ways.values())))
""",
    ),
    "emoji_mystery": Program(
        lambda q, _: {"text": _find(r"from the emoji: (\S+)", q)},
        """
found = []
for character in text[1:]:
    code = ord(character)
    if 0xFE00 <= code <= 0xFE0F:
        found.append(code - 0xFE00)
    elif 0xE0100 <= code <= 0xE01EF:
        found.append(code - 0xE0100 + 16)
print(bytes(found).decode())
""",
    ),
    "family_relationships": Program(
        _family,
        """
spouse = dict(married) | {wife: husband for husband, wife in married}

def above(person):
    return set(parents.get(person, ()))

def second(person):
    return {g for parent in above(person) for g in above(parent)}

if a in above(b):
    words = "father", "mother"
elif b in above(a):
    words = "son", "daughter"
elif spouse.get(a) == b:
    words = "husband", "wife"
elif above(a) and above(a) == above(b):
    words = "brother", "sister"
elif a in second(b):
    words = "grandfather", "grandmother"
elif b in second(a):
    words = "grandson", "granddaughter"
elif above(a) & second(b):
    words = "uncle", "aunt"
elif above(b) & second(a):
    words = "nephew", "niece"
elif spouse.get(b) and a in above(spouse[b]):
    words = "father-in-law", "mother-in-law"
else:
    words = "son-in-law", "daughter-in-law"
print(words[a in female])
""",
    ),
    "futoshiki": Program(
        lambda q, _: {"text": _find(r"puzzle:\n\n(.*?)\n\nEnsure", q)},
        """
lines = text.split("\\n")
n = (len(lines) + 1) // 2
width = 4 * n - 3
lines = [line.ljust(width) for line in lines]
grid = [[0 if lines[2 * i][4 * j] == "_" else int(lines[2 * i][4 * j]) for j in range(n)] for i in range(n)]
smaller = []  # pairs of cells, the smaller one first
for i in range(n):
    for j in range(n):
        if j + 1 < n and lines[2 * i][4 * j + 2] in "<>":
            pair = [(i, j), (i, j + 1)]
            smaller.append(pair if lines[2 * i][4 * j + 2] == "<" else pair[::-1])
        if i + 1 < n and lines[2 * i + 1][4 * j] in "\\u2227\\u2228":
            pair = [(i, j), (i + 1, j)]
            smaller.append(pair if lines[2 * i + 1][4 * j] == "\\u2227" else pair[::-1])

def fits():
    for (a, b), (c, d) in smaller:
        if grid[a][b] and grid[c][d] and grid[a][b] >= grid[c][d]:
            return False
    return True

def solve():
    for i in range(n):
        for j in range(n):
            if grid[i][j] == 0:
                for value in range(1, n + 1):
                    if value in grid[i] or any(row[j] == value for row in grid):
                        continue
                    grid[i][j] = value
                    if fits() and solve():
                        return True
                    grid[i][j] = 0
                return False
    return True

solve()
for i, line in enumerate(lines):
    marks = list(line)
    if i % 2 == 0:
        for j in range(n):
            marks[4 * j] = str(grid[i // 2][j])
    print("".join(marks))
""",
    ),
    "game_of_life": Program(
        lambda q, _: {
            "grid": _rows(_find(r"(\[\[[01,\[\]\s]+\]\])\.?\s*\Z", q)),
            "steps": int(_find(r"after (\d+) step", q)),
        },
        """
import json

rows, columns = len(grid), len(grid[0])

def alive(i, j):
    around = sum(
        grid[(i + a) % rows][(j + b) % columns] for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b
    )
    return int(around == 3 or grid[i][j] and around == 2)

for _ in range(steps):
    grid = [[alive(i, j) for j in range(columns)] for i in range(rows)]
print(json.dumps(grid, separators=(",", ":")))
""",
    ),
    "game_of_life_halting": Program(
        lambda q, _: {"text": _last_block(q), "steps": int(_find(r"before (\d+) steps", q))},
        """
grid = [[int(x) for x in line.strip("[] ").split()] for line in text.split("\\n")]
rows, columns = len(grid), len(grid[0])
living = {(i, j) for i in range(rows) for j in range(columns) if grid[i][j]}
for _ in range(steps):
    around = {}
    for i, j in living:
        for a in (-1, 0, 1):
            for b in (-1, 0, 1):
                if a or b:
                    cell = (i + a) % rows, (j + b) % columns
                    around[cell] = around.get(cell, 0) + 1
    living = {cell for cell, n in around.items() if n == 3 or n == 2 and cell in living}
print(not living)
""",
    ),
    "gcd": Program(
        lambda q, _: {"numbers": [int(n) for n in re.findall(r"\d+", _find(r"numbers: ([\d, ]+)", q))]},
        "import math\n\nprint(math.gcd(*numbers))",
    ),
    "graph_color": Program(
        lambda q, _: {
            "vertices": [int(n) for n in re.findall(r"\d+", _find(r"Vertices: (.*?)\n", q))],
            "edges": [
                (int(a), int(b)) for a, b in re.findall(r"\((\d+), (\d+)\)", _find(r"Edges: (.*?)\n", q))
            ],
            "colors": [int(n) for n in re.findall(r"\d+", _find(r"colors: (.*?)\n", q))],
        },
        """
import json

near = {v: set() for v in vertices}
for a, b in edges:
    near[a].add(b)
    near[b].add(a)

def paint(i, chosen):
    if i == len(vertices):
        return chosen
    v = vertices[i]
    for color in colors:
        if all(chosen.get(w) != color for w in near[v]):
            if found := paint(i + 1, {**chosen, v: color}):
                return found
    return None

print(json.dumps(paint(0, {})))
""",
    ),
    "group_anagrams": Program(
        lambda q, _: {"words": _quoted(_find(r"into anagrams:\n(\[.*\])", q))},
        """
import json

groups = {}
for word in words:
    groups.setdefault("".join(sorted(word)), []).append(word)
print(json.dumps(list(groups.values())))
""",
    ),
    "isomorphic_strings": Program(
        lambda q, _: dict(zip(("first", "second"), _find(r"otherwise:\n(.*)", q).split(), strict=True)),
        """
pairs = set(zip(first, second))
print(len(first) == len(second) and len(pairs) == len(set(first)) == len(set(second)))
""",
    ),
    "jugs": Program(
        lambda q, _: {
            "size": {name: int(n) for name, n in re.findall(r"([A-Z]):(\d+)", q)},
            "target": int(_find(r"target is: (\d+)", q)),
        },
        """
import json
from collections import deque

names = list(size)
start = tuple(0 for _ in names)
queue, moves = deque([start]), {start: []}
while queue:
    state = queue.popleft()
    if target in state:
        print(json.dumps(moves[state]))
        break
    after = []
    for i, a in enumerate(names):
        full, empty = list(state), list(state)
        full[i], empty[i] = size[a], 0
        after += [(f"fill {a}", full), (f"empty {a}", empty)]
        for j, b in enumerate(names):
            if i != j:
                poured = list(state)
                amount = min(state[i], size[b] - state[j])
                poured[i], poured[j] = state[i] - amount, state[j] + amount
                after.append((f"pour {a}->{b}", poured))
    for move, new in after:
        if tuple(new) not in moves:
            moves[tuple(new)] = [*moves[state], move]
            queue.append(tuple(new))
""",
    ),
    "kakurasu": Program(
        lambda q, _: {
            "row_sums": [int(n) for n in re.findall(r"\d+", _find(r"[Rr]ow sums\D*\[(.*?)\]", q))],
            "column_sums": [int(n) for n in re.findall(r"\d+", _find(r"[Cc]olumn sums\D*\[(.*?)\]", q))],
        },
        """
import itertools

n = len(column_sums)
lines = list(itertools.product([0, 1], repeat=n))

def weight(line):
    return sum(place for place, cell in enumerate(line, 1) if cell)

def solve(grid):
    sums = [weight([line[j] for line in grid]) for j in range(n)]
    if any(s > wanted for s, wanted in zip(sums, column_sums)):
        return None
    if len(grid) == len(row_sums):
        return grid if sums == column_sums else None
    for line in lines:
        if weight(line) == row_sums[len(grid)]:
            if found := solve([*grid, line]):
                return found
    return None

for line in solve([]):
    print(*line)
""",
    ),
    "knights_knaves": Program(_knights, ""),
    "lcm": Program(
        lambda q, _: {"numbers": [int(n) for n in re.findall(r"\d+", _find(r"numbers: ([\d, ]+)", q))]},
        "import math\n\nprint(math.lcm(*numbers))",
    ),
    "leg_counting": Program(_legs, "print(sum(count * legs[name] for name, count in animals.items()))"),
    "letter_counting": Program(
        lambda q, _: {"text": _find(r'text: "(.*)"', q), "letter": _find(r'letter "(.)"', q)},
        "print(text.lower().count(letter))",
    ),
    "manipulate_matrix": Program(_matrix, 'print("\\n".join(" ".join(map(str, row)) for row in m))'),
    "maze": Program(
        lambda q, _: {
            "maze": _find(r"```\n(.*?)\n```", q),
            "start": _find(r"from '(.)'", q),
            "goal": _find(r"to '(.)'", q),
            "wall": _find(r"'(.)' = Wall", q),
        },
        """
from collections import deque

cells = {(i, j): c for i, line in enumerate(maze.split("\\n")) for j, c in enumerate(line)}
place = next(cell for cell, c in cells.items() if c == start)
queue, steps = deque([place]), {place: 0}
while queue:
    i, j = place = queue.popleft()
    if cells[place] == goal:
        print(steps[place])
        break
    for new in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
        if cells.get(new, wall) != wall and new not in steps:
            steps[new] = steps[place] + 1
            queue.append(new)
else:
    print("infeasible")
""",
    ),
    "mini_sudoku": Program(
        lambda q, _: {"grid": _rows(_find(r"puzzle:\n(.*?)\nFormat", q).replace("_", "0"))},
        """
def solve():
    for i in range(4):
        for j in range(4):
            if grid[i][j] == 0:
                for value in range(1, 5):
                    a, b = i // 2 * 2, j // 2 * 2
                    block = grid[a][b : b + 2] + grid[a + 1][b : b + 2]
                    if value in grid[i] or value in block or any(row[j] == value for row in grid):
                        continue
                    grid[i][j] = value
                    if solve():
                        return True
                    grid[i][j] = 0
                return False
    return True

solve()
for row in grid:
    print(*row)
""",
    ),
    "modulo_grid": Program(
        lambda q, _: {"grid": q.split("\n\n")[1].split("\n")},
        """
operations = [lambda x, y: x + y, lambda x, y: abs(x - y), lambda x, y: x * y, lambda x, y: x**y]
cells = [(x, y, mark) for y, row in enumerate(grid) for x, mark in enumerate(row) if mark != "❔"]

def rules():
    for made in operations:
        for divisor in range(1, 21):
            for target in range(divisor):
                yield lambda x, y: "✅" if made(x, y) % divisor == target else "❌"

rule = next(rule for rule in rules() if all(rule(x, y) == mark for x, y, mark in cells))
for y, row in enumerate(grid):
    print("".join(rule(x, y) for x in range(len(row))))
""",
    ),
    "number_filtering": Program(
        lambda q, _: {
            "numbers": _quoted(_find(r"(\[.*?\])", q)),
            "action": _find(r"^(Keep|Remove)", q),
            "side": _find(r"(larger|smaller) than", q),
            "limit": float(_find(r"than (-?[\d.]+)", q)),
        },
        """
beyond = [n for n in numbers if (float(n) > limit if side == "larger" else float(n) < limit)]
print(beyond if action == "Keep" else [n for n in numbers if n not in beyond])
""",
    ),
    "number_format": Program(
        lambda q, _: {
            "numbers": _find(r"candidates: (.*)", q).split(),
            "wanted": _find(r"pick the (largest|smallest) number of", q),
        },
        """
values = [float(n.replace(",", "")) for n in numbers]
print(f"{max(values) if wanted == 'largest' else min(values):.3f}")
""",
    ),
    "number_sorting": Program(
        lambda q, _: {
            "numbers": re.findall(r"-?[\d.]+", _find(r"order: ([^\n]*)", q)),
            "order": _find(r"in (ascending|descending)", q),
        },
        'print(sorted(numbers, key=float, reverse=order == "descending"))',
    ),
    "palindrome_generation": Program(
        lambda q, _: {"letters": re.findall(r"[a-z]", _find(r"letters: (.*)", q))},
        """
half = "".join(c * (letters.count(c) // 2) for c in sorted(set(letters)))
middle = "".join(c for c in sorted(set(letters)) if letters.count(c) % 2)
print(half + middle + half[::-1])
""",
    ),
    "palindrome_partitioning": Program(
        lambda q, _: {"text": _find(r"into palindromes: (\w+)", q)},
        """
import json

def parts(text):
    if not text:
        return [[]]
    found = []
    for i in range(1, len(text) + 1):
        if text[:i] == text[:i][::-1]:
            found += [[text[:i], *rest] for rest in parts(text[i:])]
    return found

print(json.dumps(parts(text)))
""",
    ),
    "path_star": Program(
        lambda q, _: {
            "edges": _find(r"task:\n\|(.*?)/", q),
            "start": _find(r"task:.*/(\d+) ", q),
            "goal": _find(r"task:.*/\d+ (\d+)", q),
        },
        """
before = {}  # each node but the start has one edge into it
for edge in edges.split("|"):
    a, b = edge.split()
    before[b] = a
path = [goal]
while path[-1] != start:
    path.append(before[path[-1]])
print(*path[::-1])
""",
    ),
    "polynomial_multiplication": Program(
        lambda q, data: {"text": data["polynomial_expr"]},
        "from sympy import expand, sympify\n\nprint(expand(sympify(text)))",
    ),
    "prime_factorization": Program(
        lambda q, _: {"n": int(_find(r"factorization of (\d+)", q))},
        """
factors, divisor = [], 2
while n > 1:
    while n % divisor == 0:
        factors.append(divisor)
        n //= divisor
    divisor += 1
print(" × ".join(map(str, factors)))
""",
    ),
    "products": Program(
        lambda q, _: f"product = {_find(r'([0-9][0-9 *]*[0-9])', q)}",
        "print(product)",
    ),
    "propositional_logic": Program(
        _propositions,
        """
import itertools

worlds = [
    dict(zip(letters, values)) for values in itertools.product([False, True], repeat=len(letters))
]
possible = [world for world in worlds if all(eval(p, {}, world) for p in premises)]
literals = [(f"{c}", f"¬{c}")[negated] for c in letters for negated in (0, 1)]

def holds(literal, world):
    return world[literal[-1]] != literal.startswith("¬")

found = []  # what is true in every possible world, but not in all
for a, b in itertools.combinations(literals, 2):
    if all(holds(a, w) or holds(b, w) for w in possible) and a[-1] != b[-1]:
        found.append(f"({a} ∨ {b})")
for premise, text in zip(premises, written):
    if len(text) > 1 and not all(eval(premise, {}, w) for w in worlds):
        found.append(text)
print(found[0])
""",
    ),
    "quantum_lock": Program(
        lambda q, _: {
            "start": int(_find(r"Start: (-?\d+)", q)),
            "target": int(_find(r"Target: (-?\d+)", q)),
            "buttons": [
                (name, verb.lower(), int(n), when)
                for name, verb, n, when in re.findall(r"([A-Z]): (\w+) (-?\d+) \(when (\w+)\)", q)
            ],
        },
        """
from collections import deque

operations = {
    "add": lambda x, k: x + k, "subtract": lambda x, k: x - k, "multiply": lambda x, k: x * k
}
queue, seen = deque([(start, "red", [])]), {(start, "red")}
while queue:
    value, light, pressed = queue.popleft()
    if value == target:
        print(" → ".join(pressed))
        break
    for name, verb, k, when in buttons:
        if when not in (light, "any"):
            continue  # it does nothing now
        state = operations[verb](value, k), "green" if light == "red" else "red"
        if state not in seen and abs(state[0]) < 10000:
            seen.add(state)
            queue.append((*state, [*pressed, name]))
""",
    ),
    "ransom_note": Program(
        lambda q, _: {"note": _find(r"note: (\w+)\n", q), "magazine": _find(r"Magazine: (\w+)", q)},
        "from collections import Counter\n\nprint(Counter(note) <= Counter(magazine))",
    ),
    "rectangle_count": Program(
        lambda q, _: {"text": _find(r"grid below\?\n(.*)", q).rstrip()},
        """
lines = text.split("\\n")
height, width = len(lines), max(map(len, lines))
grid = [[{" ": 0, "#": 1}.get(c, 2) for c in line.ljust(width)] for line in lines]

def border(top, left, bottom, right):
    cells = {(i, j) for i in (top, bottom) for j in range(left, right + 1)}
    return cells | {(i, j) for i in range(top, bottom + 1) for j in (left, right)}

def count():  # the first mark is a rectangle's upper left corner: take it away, go on
    first = next(((i, j) for i in range(height) for j in range(width) if grid[i][j]), None)
    if first is None:
        return 0
    top, left = first
    right = left
    while right + 1 < width and grid[top][right + 1]:
        right += 1
    bottom = top
    while bottom + 1 < height and grid[bottom + 1][left]:
        bottom += 1
    for r in range(right, left + 1, -1):
        for b in range(bottom, top + 1, -1):
            cells = border(top, left, b, r)
            if all(grid[i][j] for i, j in cells):
                for i, j in cells:
                    grid[i][j] -= 1
                rest = count()
                if rest is not None:
                    return 1 + rest
                for i, j in cells:
                    grid[i][j] += 1
    return None

print(count())
""",
    ),
    "rotten_oranges": Program(
        lambda q, _: {"text": _last_block(q)},
        """
grid = [[int(x) for x in line.split()] for line in text.split("\\n")]
n = len(grid)
fresh = {(i, j) for i in range(n) for j in range(len(grid[i])) if grid[i][j] == 1}
front = {(i, j) for i in range(n) for j in range(len(grid[i])) if grid[i][j] == 2}
minutes = 0
while fresh and front:
    front = {(i + a, j + b) for i, j in front for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))} & fresh
    fresh -= front
    minutes += 1
print(-1 if fresh else minutes)
""",
    ),
    "self_reference": Program(
        _self_reference,
        """
import itertools

solutions = 0
for s in itertools.product([True, False], repeat=7):
    true = sum(s)
    false = 7 - true
    claims = (true >= a, false <= b, true == c, false == d)
    claims += (s[2] != s[3], true in (2, 3, 5, 7), false in (4, 6))
    solutions += s == claims
print(solutions)
""",
    ),
    "simple_geometry": Program(
        lambda q, _: {
            "sides": int(_find(r"(\d+)(?: sides|-gon| angles)", q)),
            "known": [float(x) for x in re.findall(r"(\d+\.?\d*)°", q)],
        },
        "print(round(180 * (sides - 2) - sum(known), 2))",
    ),
    "simple_integration": Program(
        lambda q, data: {"text": data["integrand"], "variable": str(data["variable"])},
        "from sympy import Symbol, integrate, sympify\n\n"
        'print(integrate(sympify(text), Symbol(variable)), "+ C")',
    ),
    "spell_backward": Program(lambda q, _: {"word": _find(r"nus\): (\S+)", q)}, "print(word[::-1])"),
    "spiral_matrix": Program(
        lambda q, _: {"text": _find(r"spiral order\?\n(.*)", q).strip("\n")},
        """
matrix = [[int(x) for x in line.split()] for line in text.split("\\n")]
found = []
while matrix:
    found += matrix[0]
    matrix = [list(row) for row in zip(*matrix[1:])][::-1]  # the rest, turned to the left
print(*found)
""",
    ),
    "string_manipulation": Program(
        _string,
        """
while (new := step(states[-1])) not in states:
    states.append(new)
print(states[-1])
""",
    ),
    "survo": Program(
        lambda q, _: {
            "matrix": _rows(_find(r":\n([\d\s]+)\n", q)),
            "numbers": [int(n) for n in re.findall(r"\d+", _find(r"\[([\d, ]+)\]", q))],
        },
        """
import itertools

n = len(matrix)
empty = [(i, j) for i in range(n) for j in range(n) if matrix[i][j] == 0]
for chosen in itertools.permutations(numbers):
    for (i, j), value in zip(empty, chosen):
        matrix[i][j] = value
    rows = all(sum(row[:-1]) == row[-1] for row in matrix)
    if rows and all(sum(column[:-1]) == column[-1] for column in zip(*matrix)):
        break
for row in matrix:
    print(*row)
""",
    ),
    "tsumego": Program(
        lambda q, _: {"text": _find(r"```\n(.*?)\n```", q)},
        """
board = [line.split()[1:] for line in text.strip().split("\\n")[1:]]
n = len(board)

def captured(row, column):  # white stones taken by a black stone here
    taken = set()
    for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        group, queue, free = set(), [(row + a, column + b)], False
        while queue:
            i, j = queue.pop()
            if not (0 <= i < n and 0 <= j < n) or (i, j) in group or (i, j) == (row, column):
                continue
            free |= board[i][j] == "."
            if board[i][j] == "O":
                group.add((i, j))
                queue += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        if not free:
            taken |= group
    return len(taken)

moves = [(i, j) for i in range(n) for j in range(n) if board[i][j] == "."]
i, j = max(moves, key=lambda move: captured(*move))
print(f"{chr(ord('A') + j)}{n - i}")
""",
    ),
    "word_sequence_reversal": Program(
        lambda q, _: {"words": _find(r"list of words: ([^\n]*)", q).split(", ")},
        'print(", ".join(words[::-1]))',
    ),
}
