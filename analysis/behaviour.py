"""How answers use the interpreter: the behaviour statistics of both papers.

    measure(episodes)      {"code_ratio": 0.98, "calls": 1.2, ..., "purposes": {"search": 0.4, ...}}

A statistic is a function of one episode. It returns None where it does not apply: a response without code has
no last program. measure() takes the mean over the episodes where it applies. The papers, R1-Code-Interpreter
(R1-CI, 2505.21668) and ReTool (2504.11536), show curves without formulas; "n.s." (not stated) marks what is
decided here.

The purpose of a program, and whether it checks a result, come from short rules on its syntax tree. They are
crude: good for comparing runs, not for judging one program.
"""

import ast
import re
import warnings
from collections import Counter
from collections.abc import Sequence

from episode import Call, Episode
from tokenizer import Source


def response_tokens(e: Episode) -> float | None:
    """Tokens that the model wrote (both papers; whether tool tokens count is n.s.).

    For an API, the count that it reports.
    """
    return len(e.policy_tokens) if e.tokens else e.written


def tool_tokens(e: Episode) -> float | None:
    """Tokens that the interpreter wrote; unknown for an API."""
    return sum(s == Source.TOOL for s in e.source) if e.tokens else None


def truncated(e: Episode) -> float:
    """Share of responses that ran out of tokens."""
    return e.finish == "length"


def answered(e: Episode) -> float:
    """Share of responses with a final answer in the protocol's format (R1-CI's format reward)."""
    return bool(e.answer)


def code_ratio(e: Episode) -> float:
    """Share of responses in which a program ran (ReTool)."""
    return bool(e.calls)


def calls(e: Episode) -> float:
    """Programs run per response (R1-CI)."""
    return len(e.calls)


def calls_failed(e: Episode) -> float:
    """Programs per response that raised, timed out or were stopped."""
    return sum(not _passed(call) for call in e.calls)


def right_programs(e: Episode) -> float:
    """Programs that ran without error, in all responses together (ReTool's correct codes; n.s.)."""
    return sum(map(_passed, e.calls))


def code_lines(e: Episode) -> float | None:
    """Lines of code, neither blank nor comment, per response that has any (ReTool; unit n.s.)."""
    lines = [line.strip() for call in e.calls for line in call.code.splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines) if e.calls else None


def first_call(e: Episode) -> float | None:
    """Position of the first program among the model's tokens, 0 the start, 1 the end (ReTool)."""
    if not e.calls or not e.tokens:
        return None
    before = sum(s == Source.POLICY for s in e.source[: e.calls[0].start])
    return before / len(e.policy_tokens)


def last_pass_right(e: Episode) -> float | None:
    """Share of right responses with code whose last program ran without error (ReTool)."""
    return _passed(e.calls[-1]) if e.calls and e.correct else None


def last_pass_wrong(e: Episode) -> float | None:
    """Share of wrong responses with code whose last program ran without error (ReTool)."""
    return _passed(e.calls[-1]) if e.calls and not e.correct else None


def repaired(e: Episode) -> float | None:
    """Share of responses with a failed program in which a later one ran (both; base n.s.)."""
    failed = [i for i, call in enumerate(e.calls) if not _passed(call)]
    return any(map(_passed, e.calls[failed[0] :])) if failed else None


def self_checked(e: Episode) -> float:
    """Share of responses in which a program checks an earlier one's result (R1-CI; rule n.s.).

    A result is the last line that a program printed. A later program checks it with an `assert`, with == or
    != and the result as a literal, or by printing the same result from different code. Other checks are
    missed: the share is a lower bound.
    """
    results: set[str] = set()
    programs: set[str] = set()
    for call in e.calls:
        printed = _last_line(call)
        again = printed in results and call.code not in programs
        if results and (again or _tests(call.code, results)):
            return True
        results |= {printed} - {""}
        programs.add(call.code)
    return False


STATISTICS = (
    *(response_tokens, tool_tokens, truncated, answered, code_ratio, calls, calls_failed, right_programs),
    *(code_lines, first_call, last_pass_right, last_pass_wrong, repaired, self_checked),
)
TOTALS = {right_programs}  # a sum, as in the paper; all others are means


def measure(episodes: Sequence[Episode]) -> dict:
    """Every statistic by name, None where it applies to no episode, and the share of each purpose() among all
    programs (ReTool)."""
    row: dict = {}
    for statistic in STATISTICS:
        values = [float(v) for e in episodes if (v := statistic(e)) is not None]
        count = 1 if statistic in TOTALS else len(values)
        row[statistic.__name__] = sum(values) / count if values else None
    found = Counter(purpose(call.code) for e in episodes for call in e.calls)
    row["purposes"] = {name: n / found.total() for name, n in found.most_common()}
    return row


def table(runs: dict[str, dict]) -> str:
    """A table of the statistics, a column per run and the meaning of each. runs: name -> measure()."""
    lines = [f"{'behaviour':17}{''.join(f'{name:>9}' for name in runs)}  n.s.: not stated by the papers"]
    for statistic in STATISTICS:
        name, meaning = statistic.__name__, statistic.__doc__.splitlines()[0]
        lines.append(f"{name:17}{''.join(f'{_short(row[name]):>9}' for row in runs.values())}  {meaning}")
    purposes = dict.fromkeys(p for row in runs.values() for p in row["purposes"])
    if purposes:
        lines.append("What programs were for, as shares, by rules on their syntax (ReTool; classes n.s.):")
    for name in purposes:
        cells = [f"{_short(row['purposes'].get(name, 0.0)):>9}" for row in runs.values()]
        lines.append(f"{name:17}{''.join(cells)}")
    return "\n".join(lines)


def _short(value: float | None) -> str:
    """'0.123', '12.3' or '1234'; '-' for None."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _passed(call: Call) -> bool:
    return call.result.status == "ok"


def _last_line(call: Call) -> str:
    lines = call.result.stdout.split("\n") if _passed(call) else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


LOOPS = (ast.For, ast.While)
SEARCH = {"permutations", "combinations", "combinations_with_replacement", "product", "heappop", "popleft"}
TEXT = {"split", "join", "replace", "strip", "upper", "lower", "startswith", "endswith", "find", "ord", "chr"}


def purpose(code: str) -> str:
    """The purpose of a program: the first of these classes that its syntax tree fits (ReTool shows shares of
    such classes; the classes and the method are n.s.).

    unparsable    not Python
    check         asserts, or prints truth values only
    symbolic      imports sympy
    search        enumerates (permutations, product, ...), has a queue, is recursive, has nested loops with a
                  condition, or leaves a loop when a condition holds
    simulation    draws random numbers, or changes a state step by step: a while loop, or a for loop that
                  assigns to an element
    text          imports re or calls methods of strings
    calculation   anything else
    """
    tree = _parse(code)
    if tree is None:
        return "unparsable"
    nodes = list(ast.walk(tree))
    modules = {a.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module.split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    called = {_called(n) for n in nodes if isinstance(n, ast.Call)}
    if _is_check(nodes):
        return "check"
    if "sympy" in modules:
        return "symbolic"
    if called & SEARCH or any(map(_searches, nodes)):
        return "search"
    if "random" in modules | called or any(map(_changes_state, nodes)):
        return "simulation"
    return "text" if "re" in modules or called & TEXT else "calculation"


def _parse(code: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of "\d" in a string, say
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: deep nesting
            return None


def _called(call: ast.Call) -> str:
    """The function's name: f in f(...) and in a.b.f(...)."""
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _is_check(nodes: Sequence[ast.AST]) -> bool:
    prints = [n for n in nodes if isinstance(n, ast.Call) and _called(n) == "print"]
    shown = [a for call in prints for a in call.args if not isinstance(a, ast.Constant)]
    return any(isinstance(n, ast.Assert) for n in nodes) or bool(shown) and all(map(_is_truth_value, shown))


def _is_truth_value(node: ast.AST) -> bool:
    if isinstance(node, ast.BoolOp):
        return all(map(_is_truth_value, node.values))
    if isinstance(node, ast.Call):
        return bool(re.fullmatch(r"all|any|is_?[a-z]\w*|check\w*|verify\w*", _called(node)))
    return isinstance(node, ast.Compare) or isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _searches(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef):
        return any(isinstance(n, ast.Call) and _called(n) == node.name for n in ast.walk(node))
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        return len(node.generators) > 1 and any(g.ifs for g in node.generators)
    if not isinstance(node, LOOPS):
        return False
    inside = [n for n in ast.walk(node) if n is not node]
    conditions = [n for n in inside if isinstance(n, ast.If)]
    nested = any(isinstance(n, LOOPS) for n in inside) and bool(conditions)
    return nested or any(isinstance(n, ast.Break | ast.Return) for c in conditions for n in ast.walk(c))


def _changes_state(node: ast.AST) -> bool:
    if isinstance(node, ast.For):
        inside = [n for n in ast.walk(node) if isinstance(n, ast.Subscript)]
        return any(isinstance(n.ctx, ast.Store) for n in inside)
    return isinstance(node, ast.While)


def _tests(code: str, results: set[str]) -> bool:
    """Whether a program has an assertion, or compares with one of the results as a literal."""
    tree = _parse(code)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Assert):
            return True
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            for side in (node.left, *node.comparators):
                try:
                    if str(ast.literal_eval(side)) in results:
                        return True
                except (ValueError, TypeError, RecursionError, MemoryError):
                    continue  # not a literal, or one too long for str()
    return False
