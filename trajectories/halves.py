"""A program in two halves: the first prints a value that the second needs.

found = halves(program, rng)        None where no place to divide it suits
found.name                          the variable that the first half prints
found.first, found.then("[3, 1]")   the two programs, given what the first one printed

Each half is a program of its own: it holds the imports, functions and given values that it uses, no others.
"""

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 120  # characters of a value that is copied from one program into the next
WORK = (ast.Call, ast.BinOp, ast.Compare, ast.For, ast.While)
# calls that only read a value or show it
SHOWS = {"print", "map", "str", "list", "values", "dumps", "round", "len", "split", "strip", "int", "float"}
UNWRITABLE = {"set", "deque", "Counter", "Fraction", "iter"}  # what these make is no literal, or has no order


@dataclass(frozen=True)
class Halves:
    """A divided program. `head` and `rest` are the second half before and after the value."""

    name: str
    first: str
    head: str
    rest: str

    def then(self, printed: str) -> str:
        """The second half, with the value that the first one printed."""
        value = literal(printed)
        return _joined([self.head, f"{self.name} = {value!r}", self.rest])


def literal(printed: str) -> object:
    """The value that a program printed; text where it is no literal of Python."""
    try:
        return ast.literal_eval(printed.strip())
    except (ValueError, SyntaxError):
        return printed.strip()


def can_be_copied(printed: str) -> bool:
    """Whether a printed value is short and can be written into a program: numbers, text, lists, no sets."""
    text, value = printed.strip(), literal(printed)
    if text in ("", "[]", "{}") or len(text) > LONGEST or "\n" in text:
        return False
    if "set(" in text or re.search(r"\{[^:{}]+\}", text):
        return False  # its order differs from run to run
    return repr(value) == text or isinstance(value, str) and re.fullmatch(r"[\w .,'/%:-]+", text) is not None


def halves(program: str, rng: random.Random) -> Halves | None:
    """A program divided where both halves have work to do and one computed value goes over."""
    body = ast.parse(program).body
    found = [half for cut in range(1, len(body)) if (half := _divided(program, body, cut))]
    return rng.choice(found) if found else None


def _divided(program: str, body: Sequence[ast.stmt], cut: int) -> Halves | None:
    before, after = list(body[:cut]), list(body[cut:])
    printing = any(isinstance(n, ast.Name) and n.id == "print" for s in before for n in ast.walk(s))
    if printing or not _works(after) or isinstance(after[0], ast.Import | ast.ImportFrom | ast.FunctionDef):
        return None
    wanted = {name for s in after for name in _loads(s)}
    computed = [n for n in sorted(wanted) if any(n in _sets(s) and not _is_given(s, before) for s in before)]
    if len(computed) != 1:
        return None
    (name,) = computed
    if not all(_writable(s) for s in before if name in _sets(s)):
        return None
    head = [s for s in _slice(before, wanted - {name}) if name not in _sets(s)]
    first = _slice(before, {name})
    if not all(_is_given(s, before) for s in head) or not _works(first):
        return None
    first_text = _joined([*(_text(program, s) for s in first), f"print({name})"])
    head_text = _joined([_text(program, s) for s in head])
    return Halves(name, first_text, head_text, _joined([_text(program, s) for s in after]))


def _works(statements: Sequence[ast.stmt]) -> bool:
    """Whether the statements compute something: definitions do not, nor does writing out a value."""
    own = [s for s in statements if not isinstance(s, ast.FunctionDef | ast.Import | ast.ImportFrom)]
    nodes = [n for s in own for n in ast.walk(s)]
    texts = [n for n in nodes if _called(n) == "join" or isinstance(n, ast.BinOp) and _is_text(n)]
    written = {id(n) for text in texts for n in ast.walk(text)}
    return any(isinstance(n, WORK) and id(n) not in written and _called(n) not in SHOWS for n in nodes)


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str) for n in (node.left, node.right))


def _called(node: ast.expr) -> str:
    """The name of the function or method that an expression calls; "" for another expression."""
    return getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""


def _writable(statement: ast.stmt) -> bool:
    """Whether what it assigns can be written down as a literal, as far as one can see without running it."""
    nodes = [n for n in ast.walk(statement) if isinstance(n, ast.Lambda | ast.Set | ast.SetComp)]
    return not nodes and _called(getattr(statement, "value", statement)) not in UNWRITABLE


def _slice(statements: Sequence[ast.stmt], wanted: set[str]) -> list[ast.stmt]:
    """The statements that these names depend on, in order."""
    kept, wanted = [], set(wanted)
    for s in reversed(statements):
        if _sets(s) & wanted:
            kept.insert(0, s)
            wanted |= _loads(s)
    return kept


def _loads(statement: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _sets(statement: ast.stmt) -> set[str]:
    """The names that a statement binds or changes; a function binds its own name only."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found |= _loads(node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found |= _loads(node.value)  # it may change what it is given
    return found


def _is_given(statement: ast.stmt, statements: Sequence[ast.stmt]) -> bool:
    """Whether it is an import, a function, or gives a name its only value, a literal."""
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef):
        return True
    if not isinstance(statement, ast.Assign):
        return False
    try:
        ast.literal_eval(statement.value)
    except ValueError:
        return False
    return not any(_sets(s) & _sets(statement) for s in statements if s is not statement)


def _text(program: str, statement: ast.stmt) -> str:
    """A statement, and the comment above it."""
    lines = program.split("\n")
    start = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))]) - 1
    while start and lines[start - 1].startswith("#"):
        start -= 1
    return "\n".join(lines[start : statement.end_lineno])


def _joined(parts: Sequence[str]) -> str:
    """Statements as a program: an empty line after the imports, and around functions."""
    parts = [part.strip("\n") for part in parts if part.strip()]
    text = parts[0] if parts else ""
    for above, below in zip(parts, parts[1:], strict=False):
        kinds = [
            re.match(r"(?:#.*\n)*(import|from|def|@)?", part)[1] for part in (above.split("\n\n")[-1], below)
        ]
        imports = [kind in ("import", "from") for kind in kinds]
        apart = imports[0] != imports[1] or "def" in kinds or "@" in kinds
        text += ("\n\n" if apart else "\n") + below
    return text
