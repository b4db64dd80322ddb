"""Mistakes that people and small models make in a program, put into one that is right.

LOUD slips raise an error; SILENT ones change what the program prints. A Slip changes one place and has the
sentence that names what is wrong there:

    slip("numbers = [3, 1]\\nprint(sum(numbers))", LOUD, rng)
    Slip("numbers = [3, 1]\\nprint(sum(number))", "The name is numbers, not number.", ("NameError", ...))

Whether a slip really fails, only running it tells. A new slip is a function Code -> changes, and its line in
LOUD or SILENT.
"""

import ast
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

RARELY = 0.25  # models seldom write what Python cannot parse
Change = tuple[ast.AST, str, str]  # node, what is written in its place, what is wrong with that


@dataclass(frozen=True)
class Slip:
    """A program with one mistake, what is wrong in one sentence, and the errors that it may raise."""

    program: str
    why: str
    errors: tuple[str, ...] = ()


class Code:
    """A program's text, its syntax tree, and where each node stands in the text."""

    def __init__(self, program: str):
        self.text, self.tree = program, ast.parse(program)
        inside = {  # Python before 3.12 does not say where these stand
            id(n)
            for f in ast.walk(self.tree)
            if isinstance(f, ast.JoinedStr)
            for n in ast.walk(f)
            if n is not f
        }
        self.nodes = [n for n in ast.walk(self.tree) if id(n) not in inside]
        self.lines = program.split("\n")
        self.names = {n.id for n in self.nodes if isinstance(n, ast.Name)}
        self.names |= {n.arg for n in self.nodes if isinstance(n, ast.arg)}

    def of(self, kind: type) -> list:
        return [node for node in self.nodes if isinstance(node, kind)]

    def calls(self, *names: str) -> list[ast.Call]:
        """The calls of functions or methods with one of these names."""
        return [n for n in self.of(ast.Call) if getattr(n.func, "id", getattr(n.func, "attr", "")) in names]

    def show(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.text, node)

    def place(self, line: int, column: int) -> int:
        """The character of the text at a line, from 1, and a column, in bytes."""
        before = self.lines[line - 1].encode()[:column].decode()
        return sum(len(text) + 1 for text in self.lines[: line - 1]) + len(before)

    def changed(self, node: ast.AST, new: str) -> str:
        """The program with other text in place of a node. A line that is empty then is left out."""
        start, end = (
            self.place(node.lineno, node.col_offset),
            self.place(node.end_lineno, node.end_col_offset),
        )
        if not new:
            start, end = self.place(node.lineno, 0), end + 1
        return (self.text[:start] + new + self.text[end:]).strip("\n")


# -- slips that raise an error -----------------------------------------------------------------------


def forgotten_import(code: Code) -> Iterator[Change]:
    for node in code.of(ast.Import | ast.ImportFrom):
        names = " and ".join(alias.name for alias in node.names)
        yield node, "", f"I forgot to import {names}."


def wrong_name(code: Code) -> Iterator[Change]:
    """The singular for the plural, or the other way round."""
    own = {n.id for n in code.of(ast.Name) if isinstance(n.ctx, ast.Store)}
    for node in code.of(ast.Name):
        wrong = node.id[:-1] if node.id.endswith("s") else f"{node.id}s"
        if isinstance(node.ctx, ast.Load) and node.id in own and len(node.id) > 2 and wrong not in code.names:
            yield node, wrong, f"The name is {node.id}, not {wrong}."


def no_quotes(code: Code) -> Iterator[Change]:
    """Text that Python reads as a name."""
    for node in code.of(ast.Constant):
        if isinstance(node.value, str) and node.value.isidentifier() and node.value not in code.names:
            yield node, node.value, f"{node.value} is text, so it needs quotes."


def no_start_value(code: Code) -> Iterator[Change]:
    for node in code.of(ast.Assign):
        name, value = node.targets[0], code.show(node.value)
        if isinstance(name, ast.Name) and value in ("0", "1", "[]", "{}", '""', "set()", "Counter()"):
            yield node, "", f"{name.id} needs a start value before the loop."


def no_conversion(code: Code) -> Iterator[Change]:
    """A value, or the items of a map, without int, float or str."""
    for node in code.calls("int", "float", "str"):
        if len(node.args) == 1 and isinstance(node.func, ast.Name):
            yield node, code.show(node.args[0]), f"The value has to be converted with {node.func.id} first."
    for node in code.calls("map"):
        if isinstance(node.args[0], ast.Name) and node.args[0].id in ("int", "float", "str"):
            yield (
                node,
                code.show(node.args[1]),
                f"The items have to be converted with {node.args[0].id} first.",
            )


def int_of_a_decimal(code: Code) -> Iterator[Change]:
    for node in code.of(ast.Name):
        if node.id == "float":
            yield node, "int", "int cannot read a number with a decimal point, so I use float."


def one_too_far(code: Code) -> Iterator[Change]:
    """A range or an index that goes beyond the last item."""
    indices = {n.id for s in code.of(ast.Subscript) for n in ast.walk(s.slice) if isinstance(n, ast.Name)}
    for node in [*code.of(ast.For), *code.of(ast.comprehension)]:
        last = node.iter.args[-1] if node.iter in code.calls("range") else None
        if last is not None and isinstance(node.target, ast.Name) and node.target.id in indices:
            yield (
                last,
                f"{code.show(last)} + 1",
                f"The last index is one less, so the range ends at {code.show(last)}.",
            )
    for node in code.of(ast.Subscript):
        if code.show(node.slice) == "-1" and isinstance(node.value, ast.Name):
            name = node.value.id
            yield node.slice, f"len({name})", f"The last index of {name} is -1, not len({name})."


def missing_key(code: Code) -> Iterator[Change]:
    for node in code.calls("get", "setdefault"):
        if len(node.args) == 2:
            where, key = code.show(node.func.value), code.show(node.args[0])
            yield node, f"{where}[{key}]", f"A key can be missing in {where}, so I use {node.func.attr}."


def open_bracket(code: Code) -> Iterator[Change]:
    for node in code.of(ast.Expr | ast.Assign | ast.Return):
        text = code.show(node)
        if node.lineno == node.end_lineno and text.endswith((")", "]")):
            yield node, text[:-1], f"The closing {text[-1]} is missing at the end of one line."


def no_colon(code: Code) -> Iterator[Change]:
    for node in code.of(ast.For | ast.While | ast.If | ast.FunctionDef):
        text = code.show(node)
        head, rest = text.split("\n", 1) if "\n" in text else ("", "")
        if head.endswith(":"):
            yield node, f"{head[:-1]}\n{rest}", f"The colon is missing after {head[:-1]}."


def assignment_for_comparison(code: Code) -> Iterator[Change]:
    """= for ==."""
    for node in [n.test for n in code.of(ast.If | ast.While)]:
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq) and len(node.ops) == 1:
            left, right = code.show(node.left), code.show(node.comparators[0])
            yield node, f"{left} = {right}", "A comparison needs ==, not =."


def method_of_another_type(code: Code) -> Iterator[Change]:
    """A method that another type or another language has."""
    for node in code.calls("join"):
        if isinstance(node.args[0], ast.Name):
            name = node.args[0].id
            yield (
                node,
                f"{name}.join({code.show(node.func.value)})",
                "join is a method of the text between the items.",
            )
    for node in code.calls("len"):
        if isinstance(node.args[0], ast.Name):
            name = node.args[0].id
            yield node, f"{name}.length", f"Python has no length attribute, it is len({name})."
    for right, wrong, kind in (("append", "add", "list"), ("add", "append", "set")):
        for node in code.calls(right):
            new = code.show(node).replace(f".{right}(", f".{wrong}(", 1)
            yield node, new, f"A {kind} has the method {right}, not {wrong}."


def sort_gives_nothing(code: Code) -> Iterator[Change]:
    for node in code.calls("sorted"):
        if isinstance(node.args[0], ast.Name):
            rest = ", ".join(code.show(k) for k in node.keywords)
            new = f"{node.args[0].id}.sort({rest})"
            yield node, new, "sort() changes the list and returns None, so I use sorted."


def unpacking(code: Code) -> Iterator[Change]:
    """A loop over pairs without items or enumerate."""
    for node in [*code.of(ast.For), *code.of(ast.comprehension)]:
        if not isinstance(node.target, ast.Tuple) or not isinstance(node.iter, ast.Call):
            continue
        if node.iter in code.calls("items"):
            yield node.iter, code.show(node.iter.func.value), "A loop over keys and values needs .items()."
        if node.iter in code.calls("enumerate"):
            yield node.iter, code.show(node.iter.args[0]), "The loop needs enumerate to have the index, too."


def no_star(code: Code) -> Iterator[Change]:
    """A list where a function takes single values."""
    for node in code.of(ast.Call):
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if len(node.args) == 1 and isinstance(node.args[0], ast.Starred) and name not in ("print", "zip"):
            yield (
                node.args[0],
                code.show(node.args[0].value),
                f"{name} takes single values, so the list needs a *.",
            )


def text_plus_number(code: Code) -> Iterator[Change]:
    """A concatenation in place of an f-string."""
    for node in code.of(ast.JoinedStr):
        plain = all(
            isinstance(v, ast.Constant) or (v.conversion < 0 and not v.format_spec) for v in node.values
        )
        if plain and len(node.values) > 1:
            parts = [
                f'"{v.value}"' if isinstance(v, ast.Constant) else ast.unparse(v.value) for v in node.values
            ]
            if not any("\n" in p or '"' in p[1:-1] for p in parts):
                yield node, " + ".join(parts), "Text and a number cannot be added, so I use an f-string."


def true_division(code: Code) -> Iterator[Change]:
    for node in code.of(ast.BinOp):
        if isinstance(node.op, ast.FloorDiv):
            left, right = code.show(node.left), code.show(node.right)
            yield node, f"{left} / {right}", "/ gives a float, so I use // to keep a whole number."


# -- slips that print a wrong answer -----------------------------------------------------------------


def wrong_comparison(code: Code) -> Iterator[Change]:
    """An equal value on the wrong side."""
    swap = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
    for node in code.of(ast.Compare):
        if len(node.ops) == 1 and type(node.ops[0]) in swap:
            right, wrong = swap[type(node.ops[0])]
            left, other = code.show(node.left), code.show(node.comparators[0])
            yield node, f"{left} {wrong} {other}", f"It must be {left} {right} {other}, not {wrong}."


def ends_too_early(code: Code) -> Iterator[Change]:
    for node in code.calls("range"):
        last, text = node.args[-1], code.show(node.args[-1])
        new = text.removesuffix(" + 1") if text.endswith(" + 1") else f"{text} - 1"
        yield last, new, f"The range ended one too early, it must go to {text}."


def counts_from_zero(code: Code) -> Iterator[Change]:
    for node in code.calls("enumerate"):
        start = [*node.args[1:], *(k.value for k in node.keywords)]
        if start and code.show(start[0]) == "1":
            yield node, f"enumerate({code.show(node.args[0])})", "The positions count from 1, not from 0."


def other_function(code: Code) -> Iterator[Change]:
    """The function that does the opposite."""
    for right, wrong in (("max", "min"), ("all", "any"), ("permutations", "combinations")):
        for one, other in ((right, wrong), (wrong, right)):
            for node in code.calls(one):
                new = re.sub(rf"\b{one}\(", f"{other}(", code.show(node), count=1)
                yield node, new, f"It must be {one} here, not {other}."


def forgotten_argument(code: Code) -> Iterator[Change]:
    """An order without its key or its direction."""
    for node in code.calls("sorted", "sort", "max", "min"):
        for k in node.keywords:
            if k.arg in ("key", "reverse"):
                new = code.show(node).replace(f", {code.show(k)}", "", 1)
                what = "by the right key" if k.arg == "key" else "in the right order"
                yield node, new, f"I forgot {k.arg}, so it was not sorted {what}."


def forgotten_method(code: Code) -> Iterator[Change]:
    for node in code.calls("lower", "strip", "removesuffix"):
        yield node, code.show(node.func.value), f"I forgot {node.func.attr}()."


def wrong_sign(code: Code) -> Iterator[Change]:
    swap = {ast.Add: ("+", "-"), ast.Sub: ("-", "+")}
    for node in code.of(ast.BinOp):
        if type(node.op) in swap:
            right, wrong = swap[type(node.op)]
            left, other = code.show(node.left), code.show(node.right)
            yield node, f"{left} {wrong} {other}", f"It must be {left} {right} {other}, with a {right}."


def not_reversed(code: Code) -> Iterator[Change]:
    """A sequence without its [::-1]."""
    for node in code.of(ast.Subscript):
        if code.show(node.slice) == "::-1":
            yield (
                node,
                code.show(node.value),
                f"I forgot [::-1], so {code.show(node.value)} was not reversed.",
            )


def counted_twice(code: Code) -> Iterator[Change]:
    for node in code.calls("set"):
        if node.args:
            yield node, code.show(node.args[0]), "Equal items count only once, so I need set."


def wrong_connective(code: Code) -> Iterator[Change]:
    """`or` for `and` in a condition, or the other way round."""
    conditions = {id(n.test) for n in code.of(ast.If | ast.While)}
    conditions |= {id(test) for n in code.of(ast.comprehension) for test in n.ifs}
    for node in [n for n in code.of(ast.BoolOp) if id(n) in conditions]:
        right, wrong = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        parts = [code.show(value) for value in node.values]
        if len(parts) == 2 and "\n" not in code.show(node):
            why = "Both conditions must hold" if right == "and" else "One condition is enough"
            yield node, f"{parts[0]} {wrong} {parts[1]}", f"{why}, so it is {right}, not {wrong}."


Rule = Callable[[Code], Iterator[Change]]
LOUD: dict[Rule, tuple[str, ...]] = {
    forgotten_import: ("NameError",),
    wrong_name: ("NameError", "UnboundLocalError"),
    no_quotes: ("NameError",),
    no_start_value: ("NameError", "UnboundLocalError"),
    no_conversion: ("TypeError",),
    int_of_a_decimal: ("ValueError",),
    one_too_far: ("IndexError",),
    missing_key: ("KeyError",),
    open_bracket: ("SyntaxError",),
    no_colon: ("SyntaxError",),
    assignment_for_comparison: ("SyntaxError",),
    method_of_another_type: ("AttributeError",),
    sort_gives_nothing: ("TypeError",),
    unpacking: ("TypeError", "ValueError"),
    no_star: ("TypeError",),
    text_plus_number: ("TypeError",),
    true_division: ("TypeError",),
}
SILENT: dict[Rule, tuple[str, ...]] = dict.fromkeys(
    [
        wrong_comparison,
        ends_too_early,
        counts_from_zero,
        other_function,
        forgotten_argument,
        forgotten_method,
        wrong_sign,
        not_reversed,
        counted_twice,
        wrong_connective,
    ],
    (),
)


def slips(program: str, rules: dict[Rule, tuple[str, ...]]) -> dict[Rule, list[Slip]]:
    """Every program that one slip of these rules makes of this one, per rule that suits it."""
    code = Code(program)
    found: dict[Rule, list[Slip]] = {}
    for rule, errors in rules.items():
        made = [Slip(code.changed(node, new), why, errors) for node, new, why in rule(code)]
        made = [s for s in made if s.program != program.strip("\n")]
        if made:
            found[rule] = made
    return found


def slip(program: str, rules: dict[Rule, tuple[str, ...]], rng: random.Random) -> Slip | None:
    """One of these slips, a rule of syntax RARELY; None where none suits the program."""
    found: Sequence[list[Slip]] = list(slips(program, rules).values())
    often = [RARELY if "SyntaxError" in made[0].errors else 1.0 for made in found]
    return rng.choice(rng.choices(found, often)[0]) if found else None
