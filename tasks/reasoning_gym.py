"""84 tasks of the package reasoning-gym (extra): its generators and its scorers, behind our interface.

The paper's list of 84 is not public. The package held 101 tasks then (0.1.19) and holds 105 in the pinned
version; kakurasu, path_star and survo are newer than that. Ten of the others repeat SymBench or BIG-Bench
Hard, and EXCLUDED says why each of the rest is left out. Question i is what the package makes of seed i.

Its scorers give shares of a point for near misses; here an answer is right or wrong. It is right if it equals
the package's own answer, brackets, quotes, commas, case and the spelling of numbers aside; and where several
answers are right, or one can be written in several ways (JUDGED), if the package's scorer gives it the full
point. Some of the package's scorers evaluate the answer's text as Python, some read numbers out of any text:
they are never asked, or only about texts of the form that JUDGED and _is_polynomial allow.
"""

import ast
import contextlib
import functools
import importlib.util
import io
import random
import re
from collections.abc import Iterator

from tasks import Grade, Problem, Task
from tasks.answers import normal, number, untypeset
from tasks.reasoning_gym_programs import program
from tasks.split import SPLIT

BLOCK = 1000  # questions of one of the package's datasets; some of them make a list of that length at once
LONGEST = 10_000  # characters of an answer that is read

_REPEATED = "repeats the task of the same name or kind in SymBench or BIG-Bench Hard"
_SLOW = "takes over 20 s per 1000 questions"
EXCLUDED = {
    **dict.fromkeys(("string_insertion", "string_splitting", "string_synthesis", "boxnet"), _REPEATED),
    **dict.fromkeys(("mahjong_puzzle", "puzzle24", "pool_matrix", "n_queens", "sudoku"), _REPEATED),
    "word_sorting": _REPEATED,
    "composite": "a mixture of other tasks, not a task",
    "time_intervals": "its questions depend on today's date",
    "rush_hour": "gives no right answer to a question",
    "codeio": "runs collected programs inside our own process",
    "coin_flip": "has fewer than 200 different questions among 250",
    "tower_of_hanoi": "has fewer than 200 different questions among 250",
    "countdown": _SLOW + ", and is SymBench's game24 with another target",
    "intermediate_integration": _SLOW,
    "knight_swap": _SLOW,
    "number_sequence": _SLOW,
    "rubiks_cube": _SLOW + ", and gives no right answer to a question",
    "zebra_puzzles": _SLOW,
}
CONFIG = {  # where the package's defaults take 20 s per 1000 questions or more
    "futoshiki": {"max_board_size": 5},
    "quantum_lock": {"difficulty": 6},
    "sokoban": {"max_w": 7, "max_h": 7},
}

_REAL = r"[-+]?\d{1,40}(?:\.\d{0,40})?(?:e[-+]?\d{1,3})?"
JUDGED = {  # task -> what an answer must look like before the package's scorer is asked about it
    "bitwise_arithmetic": r"-?(?:0x[0-9a-f]{1,40}|\d{1,40})",
    "complex_arithmetic": r"[-+0-9.ij\s()]{1,80}",
    "cryptarithm": r"(?:\w\s*=\s*\d[,\s]*)+",
    "fraction_simplification": r"\$?\s*(?:\d{1,9}\s*/\s*\d{1,9}|\\d?frac\s*\{\d{1,9}\}\s*\{\d{1,9}\})\s*\$?",
    "graph_color": r'\{(?:\s*"?\d+"?\s*:\s*\d+\s*,?)+\}',
    "group_anagrams": r"\[.*\]",
    "jugs": r"\[.*\]",
    "kakurasu": r"[01\s]+",
    "knights_knaves": r"(?:(?:and\s+)?\w+ is an? \w+\b[\s,.]*)+",
    "number_format": rf"{_REAL}|\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?",
    "palindrome_generation": r"[a-z]+",
    "palindrome_partitioning": r"\[.*\]",
    "polynomial_equations": rf"\"\"|{_REAL}(?:\s*,\s*{_REAL})*",
    "polynomial_multiplication": r".*",
    "power_function": _REAL,
    "prime_factorization": r"\d{1,40}(?:\s*[\u00d7x*]\s*\d{1,40})*",
    "propositional_logic": r"[A-Z\s()\u2228\u2227\u2192\u2194\u00ac]+",
    "quantum_lock": r"[ABC](?:[\s,>\u2192-]+[ABC])*",
    "shortest_path": r"(?:(?:up|down|left|right)\s*)+",
    "simple_integration": r".*",
    "sokoban": r"[LRUD]+",
    "word_ladder": r"[A-Z]+(?:\s*,\s*[A-Z]+)*",
}
COUNTED = {
    "cryptarithm": "=",
    "graph_color": ":",
    "knights_knaves": " is ",
}  # assignments: the scorers do not mind additional ones
POLYNOMIALS = ("polynomial_multiplication", "simple_integration")


class Gym(Task):
    """One dataset of the package."""

    suite = "reasoning_gym"

    def __init__(self, name: str):
        self.name = name

    @property
    def missing(self) -> str:
        installed = importlib.util.find_spec("reasoning_gym") is not None
        return "" if installed else "needs the package reasoning-gym; pip install '.[tasks]'"

    def problem(self, index: int) -> Problem:
        """The package's question for this seed; its whole entry is in meta, for its scorer."""
        block, place = divmod(index, BLOCK)
        with contextlib.redirect_stdout(io.StringIO()), _drawing_from(index):  # some print their progress
            entry = _dataset(self.name, block)[place]
        return Problem(self.name, index, entry["question"], _right(entry), {"entry": entry})

    def grade(self, problem: Problem, answer: str | None) -> Grade:
        text = untypeset(answer).strip("` \n").removesuffix(".").replace("\u2212", "-")
        if not text:
            return Grade(False, "no answer given")
        if len(text) > LONGEST:
            return Grade(False, f"an answer of {len(text)} characters")
        correct = _same(text, problem.answer) or self._judge(problem, text)
        return Grade(correct, f"{text!r} given, for example {problem.answer!r} is right")

    def _judge(self, problem: Problem, text: str) -> bool:
        """Whether the package's scorer gives the full point."""
        pattern = JUDGED.get(self.name)
        if pattern is None or not re.fullmatch(pattern, text, re.DOTALL | re.IGNORECASE):
            return False
        entry = problem.meta["entry"]
        if self.name in POLYNOMIALS and not _is_polynomial(text):
            return False
        if self.name in COUNTED and text.count(mark := COUNTED[self.name]) != problem.answer.count(mark):
            return False
        if self.name == "number_format" and round(float(text.replace(",", "")), 3) != round(
            entry["metadata"]["solution"], 3
        ):
            return False  # the scorer would take neighbours that differ by a hundredth
        try:
            return _dataset(self.name, problem.index // BLOCK).score_answer(text, entry) == 1.0
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            return False  # it could not read the text

    def solution(self, problem: Problem) -> str | None:
        return program(problem)


@functools.lru_cache(maxsize=256)
def _dataset(name: str, block: int):
    """The package's dataset whose place i is seed block * BLOCK + i."""
    import reasoning_gym

    made = reasoning_gym.create_dataset(name, seed=block * BLOCK, size=BLOCK, **CONFIG.get(name, {}))
    if name in ("isomorphic_strings", "ransom_note"):
        made.letters = _Sorted(made.letters)
    if name == "word_ladder":
        graphs = made.word_graphs
        made.word_graphs = {n: {w: sorted(near) for w, near in g.items()} for n, g in graphs.items()}
    if name == "polynomial_multiplication":
        unordered = made._get_monomials
        made._get_monomials = lambda rng: sorted(unordered(rng), key=str)
    return made


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Python's global generator with this seed, for the moment: list_functions draws from it too."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


class _Sorted(set):
    """A set that is gone through in order: the package draws from sets, whose own order differs from process
    to process."""

    def __iter__(self):
        return iter(sorted(super().__iter__()))

    def __sub__(self, other):
        return _Sorted(super().__sub__(other))


def _right(entry: dict) -> str:
    """An answer that is right, where the package keeps it."""
    data = entry["metadata"]
    if entry["answer"] is not None:
        return entry["answer"] or '""'  # polynomial_equations without a real root
    if "possible_answer" in data:  # graph_color
        return (
            "{"
            + ", ".join(f'"{vertex}": {colour}' for vertex, colour in data["possible_answer"].items())
            + "}"
        )
    return data["example_answer"]  # propositional_logic


def _same(text: str, right: str) -> bool:
    """Equal but for brackets, quotes, commas, case, white space and how numbers are written; what stands in
    a row of its own must do so in both."""
    if normal(text) == normal(right):
        return True
    given, wanted = _rows(text), _rows(right)
    return bool(wanted) and given == wanted


def _rows(text: str) -> list[list]:
    """Words and numbers, line by line or inner bracket by inner bracket."""
    value = number(text)
    if value is not None:
        return [[value]]
    rows = re.sub(r"\]\s*,?\s*\[", "\n", text).split("\n")
    rows = [re.sub(r"[\[\](){},;'\"`\u00b0]", " ", row).lower().split() for row in rows]
    return [[item if (value := number(item)) is None else value for item in row] for row in rows if row]


def _is_polynomial(text: str) -> bool:
    """Whether the text is sums, products and small powers of numbers and one-letter names, and nothing else:
    the package's scorer hands it to sympy, which evaluates it."""
    if len(text) > 1000:
        return False
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Pow | ast.Add | ast.Sub | ast.Mult | ast.Div | ast.USub | ast.UAdd | ast.Load
        ):
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            power = node.right
            if not (isinstance(node.left, ast.Name | ast.Constant) and isinstance(power, ast.Constant)):
                return False
            if not isinstance(power.value, int) or power.value > 40:
                return False
        elif isinstance(node, ast.Name):
            if len(node.id) > 1:
                return False
        elif isinstance(node, ast.Constant):
            if type(node.value) not in (int, float) or abs(node.value) > 10**15:
                return False
        elif not isinstance(node, ast.BinOp | ast.UnaryOp):
            return False
    return True


TASKS: dict[str, Task] = {name: Gym(name) for name in SPLIT["reasoning_gym"]}
