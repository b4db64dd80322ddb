"""Where programs begin and end in a model's text, and which marks are its answer: rows decided by hand, every
split into tokens, and Python's own tokenizer."""

import io
import itertools
import random
import time
import tokenize

import pytest

from sandbox import Sandbox
from tasks import PROTOCOLS, Turn, extract_answer
from tasks.blocks import split_code
from tasks.protocols import showing_value

STRINGS = 'x = """\n```\n"""\nprint(len(x))'
FENCED = {  # text -> the programs of its blocks; None: a block that is not closed
    # the inputs
    "So:\n```python\nprint(1)\n```\n": ["print(1)"],
    "```py\nprint(1)\n```": ["print(1)"],
    "```Python\nprint(1)\n```": ["print(1)"],
    "```python3\nprint(1)\n```": ["print(1)"],
    "  ```python  \nprint(1)\n```": ["print(1)"],
    "A block begins with ```python and ends with ```.\nSo 5.": [],
    "So: ```python\nprint(1)\n```": [],
    "```python\nprint(1)\n   ```\n": ["print(1)"],
    "```python\nprint(1)```\nSo 1.": ["print(1)"],
    "```python\nprint(1)```  \n": ["print(1)"],
    "```python\nprint('```')\n```": ["print('```')"],
    f"```python\n{STRINGS}\n```": [STRINGS],
    # others of their kinds
    "```PY\nprint(1)\n```": ["print(1)"],
    "``` python\nprint(1)\n```": ["print(1)"],
    "```\tpython3.11 \t\nprint(1)\n```": ["print(1)"],
    "```python\r\nprint(1)\r\nprint(2)\r\n```\r\n": ["print(1)\r\nprint(2)"],
    "~~~python\nprint(1)\n~~~": [],
    "```\nprint(1)\n```": [],
    "```pythonic\nprint(1)\n```": [],
    "```javascript\nlet a\n```\n```python\nprint(1)\n```": ["print(1)"],
    "````python\nprint('a')\n```\nprint('b')\n````": ["print('a')\n```\nprint('b')"],
    "1. First:\n\n   ```python\n   if x:\n       print(1)\n   ```\n2. Then": ["if x:\n    print(1)"],
    "```python\nprint(1)  # ``` is a fence\nprint(2)\n```": ["print(1)  # ``` is a fence\nprint(2)"],
    "```python\nprint(1)  # done```\nSo": ["print(1)  # done"],
    "```python\nprint(1)  # done```": [None],  # whether the comment ends here is not known yet
    "```python\nprint('it's)```\nSo": ["print('it's)"],  # the second string never ends
    "```python\nx = r'\\'```'\n```": ["x = r'\\'```'"],
    "```python\nx = '\\\n```'\nprint(x)\n```": ["x = '\\\n```'\nprint(x)"],
    '```python\nx = f"""{1}\n```\n{2}"""\n```': ['x = f"""{1}\n```\n{2}"""'],
    '```python\n"""Doc\'s ""\n"""\nprint(1)\n```': ['"""Doc\'s ""\n"""\nprint(1)'],
    '```python\nx = """\n```\nSo 5': [None],  # the string may still end
    "```python\n```python\nprint(1)\n```": ["print(1)"],
    "```python\n\n```": [""],
    "```python\nprint(1)\n": [None],
    "```python\n1\n```\nand\n```py\n2\n```": ["1", "2"],
    "```python\n1\n``` ```python\n2\n```": ["1"],
    "> ```python\n> print(1)\n> ```": [],
}
TAGGED = {
    # the inputs
    "<code>\n```python\nprint(1)\n```\n</code>": ["print(1)"],
    "<code>\nprint(1)\n</code>": ["print(1)"],
    "<code>print(1)</code>": ["print(1)"],
    "<code>\n```py\nprint(1)```</code>": ["print(1)"],
    "<code>\n```python\nprint(1)\n</code>": ["print(1)"],
    "<code>\n```Python3\nprint(1)\n```</code>": ["print(1)"],
    # others of their kinds
    "<code>\n~~~\nprint(1)\n~~~\n</code>": ["print(1)"],
    "<code>\n````python\nprint(1)\n````\n</code>": ["print(1)"],
    "<code>```\nprint(1)\n```</code>": ["print(1)"],
    "<code>```print(1)```</code>": ["print(1)"],
    "<code>``` py print(1)```\n</code>": ["print(1)"],
    "<code>\n\n  ```python\n  if 1:\n      print(1)\n  ```\n</code>": ["if 1:\n    print(1)"],
    "<code>\r\n```python\r\nprint(1)\r\n```\r\n</code>": ["print(1)"],
    "<code>\nprint('</code>')\n</code>": ["print('</code>')"],
    "<code>\nx = '''\n</code>\n'''\nprint(x)\n</code>": ["x = '''\n</code>\n'''\nprint(x)"],
    "<code>\nprint(1)  # end</code>": ["print(1)  # end"],
    '<code>\nprint("1)</code>\nSo': ['print("1)'],
    f"<code>\n```python\n{STRINGS}\n```\n</code>": [STRINGS],
    "<code>\n```python\nprint(1)\n```\nThat is it's end.\n</code>": ["print(1)"],
    "<code></code>": [""],
    "<code>1</code> and <code>2</code>": ["1", "2"],
    "<code>\nprint(1)\n</cod": [None],
    "```python\nprint(1)\n```": [],
}
ROWS = [("r1ci", *row) for row in FENCED.items()] + [("retool", *row) for row in TAGGED.items()]


@pytest.mark.parametrize("name, text, programs", ROWS)
def test_programs_are_cut_as_decided_by_hand(name, text, programs):
    parts = list(split_code(text, PROTOCOLS[name]))
    assert [part.program for part in parts if part.block] == programs
    assert "".join(part.words + part.block for part in parts) == text


@pytest.mark.parametrize("name, text, programs", ROWS)
def test_every_split_into_tokens_finds_the_same_blocks(name, text, programs):
    """At the same place: feed() says so with the token that holds the byte before which nothing was known."""
    raw, protocol = text.encode(), PROTOCOLS[name]
    whole = Turn(protocol, 0)
    whole.feed(raw)
    first = next((n for n in range(len(raw) + 1) if feed(protocol, [raw[:n]]).blocks), None)
    ways = [[], range(1, len(raw)), *itertools.combinations(range(1, len(raw)), 2)]
    for cuts in random.Random(0).sample(ways, min(len(ways), 400)) + ways[:2]:
        ends = [0, *cuts, len(raw)]
        turn, told = Turn(protocol, 0), None
        for start, end in itertools.pairwise(ends):
            if turn.feed(raw[start:end]) and told is None:
                told = end
        assert (turn.blocks, turn.opened) == (whole.blocks, whole.opened)
        assert told == next((end for end in ends if first is not None and end >= first), None)


def feed(protocol, pieces) -> Turn:
    turn = Turn(protocol, 0)
    for piece in pieces:
        turn.feed(piece)
    return turn


def test_strings_and_comments_are_those_of_pythons_tokenizer():
    """Random programs of quotes, escapes, comments and fences that Python can tokenize: the block closes at
    the first fence that no string and no comment token holds, or that ends a comment's line."""
    rng, closed = random.Random(0), 0
    bits = ["'", '"', "'''", '"""', "\\", "#", "```", "a", " ", "\n", "r'", "1"]
    for _ in range(20_000):
        program = "a = " + "".join(rng.choices(bits, k=rng.randint(1, 14)))
        hidden = hidden_by_python(program.replace("```", "+++"))
        if hidden is None:
            continue
        places = [i for i in range(len(program)) if program.startswith("```", i) and i not in hidden]
        for comment, end in comments(program.replace("```", "+++")):
            if program[comment:end].rstrip().endswith("```"):
                places.append(comment + len(program[comment:end].rstrip()) - 3)
        text = f"```python\n{program}\n"
        turn = feed(PROTOCOLS["r1ci"], [text.encode()])
        first = min(places, default=None)
        assert [b[1] for b in turn.blocks[:1]] == ([] if first is None else [10 + first + 3]), program
        closed += first is not None
    assert closed > 300


def tokens(program: str) -> list:
    lines = [0, *itertools.accumulate(len(line) for line in program.splitlines(keepends=True))]
    found = tokenize.generate_tokens(io.StringIO(program + "\n").readline)
    return [(t.type, t.string, lines[t.start[0] - 1] + t.start[1]) for t in found]


def hidden_by_python(program: str) -> set[int] | None:
    """The places inside string and comment tokens; None where Python cannot tokenize the program."""
    try:
        found = tokens(program)
    except (tokenize.TokenError, IndentationError, SyntaxError, IndexError):
        return None
    if any(kind == tokenize.ERRORTOKEN and set(text) & set("'\"\\") for kind, text, _ in found):
        return None
    inside = [t for t in found if t[0] in (tokenize.STRING, tokenize.COMMENT)]
    return {i for _, text, start in inside for i in range(start, start + len(text))}


def comments(program: str) -> list[tuple[int, int]]:
    return [(start, start + len(text)) for kind, text, start in tokens(program) if kind == tokenize.COMMENT]


@pytest.mark.parametrize(
    "begin, piece",
    [("```python\n", p) for p in ("'''```", "#``` ", "``", "`", '"', "\\", " ", "x\n", "\n", "'``` ")]
    + [("", p) for p in ("`", "``` ", "```python ", " ", "word ")]
    + [("<code>", p) for p in ("</", "'</code> ", " ", "~", "```x", "\n")],
)
def test_16k_tokens_take_no_quadratic_time(begin, piece):
    protocol = PROTOCOLS["retool" if begin == "<code>" else "r1ci"]
    turn, began = Turn(protocol, 0), time.perf_counter()
    turn.feed(begin.encode())
    for _ in range(16_384):
        turn.feed(piece.encode())
    assert time.perf_counter() - began < 1.0


ANSWERS = [
    # the inputs
    ("retool", r"\boxed {42}", "42"),
    ("retool", r"\boxed 5", "5"),
    ("retool", r"\fbox{7}", "7"),
    ("retool", r"\boxed{\left\{1,2\right.}", r"\left\{1,2\right."),
    ("retool", r"So \boxed{5}. <answer>\boxed{}</answer>", "5"),
    ("r1ci", "<<<5>>> <<<>>>", "5"),
    ("retool", r"<answer>\boxed{1}</answer> or \boxed{2}", "1"),
    ("retool", r"\boxed{45} ... <answer>45</answer>", "45"),
    ("r1ci", "<<<] ] >>>>", "] ] >"),
    ("r1ci", "```python\nprint('<<<4>>>')\n```\nIt is <<<5>>>", "5"),
    ("r1ci", "It is <<<5>>>\n```python\nprint('<<<4>>>')\n```\n", "5"),
    ("retool", "\\boxed{5}\n<code>\nprint(r'\\boxed{4}')\n</code>", "5"),
    # others of their kinds
    ("retool", r"\boxed {\frac{1}{2^{3}}}", r"\frac{1}{2^{3}}"),
    ("retool", "\\boxed\n{ 3 }", "3"),
    ("retool", r"$\boxed 42$.", "42"),
    ("retool", r"\boxed -3.5.", "-3.5"),
    ("retool", r"\boxed 1,000 in all", "1,000"),
    ("retool", r"\boxed 5 + 3", None),  # where it ends is not clear
    ("retool", r"\boxed 5x", None),
    ("retool", r"\boxed x", "x"),
    ("retool", r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
    ("retool", r"Put it in \boxed form. \boxed{1}", "1"),
    ("retool", r"\boxed{1}. As \boxed says", "1"),
    ("retool", r"\fbox {\boxed{7}}", "7"),
    ("retool", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ("retool", r"\boxed{\left[0, 1\right\}}", r"\left[0, 1\right\}"),
    ("retool", r"\\boxed{5}", "5"),
    ("retool", r"\boxed{\begin{matrix}1\\{2}\end{matrix}}", r"\begin{matrix}1\\{2}\end{matrix}"),
    ("retool", r"\boxed{3}, \boxed{ }", "3"),
    ("retool", r"<answer>\boxed{1}</answer><answer></answer>", "1"),
    ("retool", r"<answer>\boxed{1}</answer> and <answer>2</answer>", None),
    ("retool", r"\boxed{\frac12} so <answer> $\frac12$. </answer>", r"\frac12"),
    ("retool", r"\boxed{44} <answer>45</answer>", None),
    ("retool", r"<answer>\boxed{1}", "1"),
    ("retool", r"<answer>\boxed{1}</answer> or <answer>\boxed{2", None),
    ("retool", "```python\nprint('\\\\boxed{4}')\n```", None),
    ("retool", "<code>\nprint('\\\\boxed{4}')", None),
    ("r1ci", "<<<42>>>>", "42"),
    ("r1ci", "<<<<42>>>", "42"),
    ("r1ci", "<<<) >>>>>", ") >>"),
    ("r1ci", "<<<>>>>", ">"),
    ("r1ci", "**<<<42>>>**", "42"),
    ("r1ci", "<<<7>>> or <<<\n>>> or <<<", "7"),
    ("r1ci", "```python\n# <<<4>>>\nprint(5)\n```", None),
    ("r1ci", "```python\nprint('''\n```\n<<<4>>>''')\n```", None),
    ("r1ci", "```\n<<<4>>>\n```", "4"),  # no program
    ("r1ci", "<<<3>>>\n```python\nprint('<<<4>>>')", "3"),
    ("text", "```python\nprint('<<<4>>>')\n```\nSo <<<5>>> it is", "5"),
    ("text", "```python\nprint('<<<4>>>')\n```", None),
]


@pytest.mark.parametrize("protocol, text, answer", ANSWERS)
def test_answers_as_decided_by_hand(protocol, text, answer):
    assert extract_answer(text, protocol) == answer


@pytest.mark.parametrize(
    "piece", ["<answer>", "\\boxed ", "\\boxed{} ", "\\boxed 5 ", "<<<", ">>>", "<", ">", " "]
)
def test_long_rubbish_is_quick(piece):
    text, began = piece * (200_000 // len(piece)), time.perf_counter()
    for protocol in PROTOCOLS:
        extract_answer("\\boxed 5" + text, protocol)
        extract_answer("<<<5" + text + "<answer>x", protocol)
    assert time.perf_counter() - began < 5


# -- the value of a last expression -------------------------------------------------------------------------

VALUES = {  # program -> what it prints
    "6 * 7": "42\n",
    "x = 6\nx * 7": "42\n",
    "x = 6; x * 7  # the answer": "42\n",
    "x = 6\nx * 7;": "",
    "print(42)": "42\n",
    "x = 42": "",
    "None": "",
    "'é'": "'é'\n",
    "é = 'é'; é": "'é'\n",
    "(1 +\n 2)": "3\n",
    "[\n  i\n  for i in range(2)\n]\n\n# done\n": "[0, 1]\n",
    "def f():\n    return 5\nf()": "5\n",
    "if True:\n    5": "",
    "from fractions import Fraction\nFraction(1, 2)": "Fraction(1, 2)\n",
    "print = None\n5": "5\n",
    "1\r\n2": "2\n",
    "": "",
    "'\\d'": "'\\\\d'\n",
}


def test_the_last_value_is_shown_as_in_a_notebook():
    """Only where the protocol says so. A failed program's error names the line that the model wrote."""
    failing = "import math\n\n\nmath.sqrt(\n    -1\n)"
    assert PROTOCOLS["retool"].echo and not PROTOCOLS["r1ci"].echo
    assert PROTOCOLS["r1ci"].to_run("5") == "5" and PROTOCOLS["retool"].to_run("5") == showing_value("5")
    for program in ("if", "x = (", "\0", "-" * 100_000 + "1", "(" * 500 + ")" * 500):
        assert showing_value(program) == program
    with Sandbox(workers=1, require="none", quiet=True) as sandbox:
        found = sandbox.map([showing_value(program) for program in [*VALUES, failing]])
    assert [r.stdout for r in found[:-1]] == list(VALUES.values())
    assert "line 4, in <module>" in found[-1].stderr and "ValueError" in found[-1].stderr
