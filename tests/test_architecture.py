"""The house rules that a program can check: imports flow upward in levels, and functions fit on a screen."""

import ast
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parent.parent
LEVELS = {
    **dict.fromkeys(["config", "model", "tokenizer", "sandbox", "syscalls", "loss"], 0),
    **dict.fromkeys(["tasks", "distributed", "plan", "decode", "sample", "remote"], 1),
    **dict.fromkeys(["checkpoint", "rollout"], 2),
    **dict.fromkeys(["chat", "behaviour", "endpoint", "curriculum", "traces"], 3),
    **dict.fromkeys(["evaluate", "drafts", "teacher"], 4),
    "coldstart": 5,
    **dict.fromkeys(["sft", "grpo", "ppo"], 6),
}
OUTSIDE = {"demo", "plot"}  # the embedded run and the pictures may use everything, nothing uses them
PACKAGES = {"torch", "safetensors", "tokenizers", "numpy", "tqdm"}
EXTRAS = {"matplotlib", "reasoning_gym", "sympy", "pyarrow"}  # imported inside functions only
# parts with a file of their own
EXCEPTIONS = {("sandbox", "syscalls"), ("sample", "decode"), ("distributed", "plan")}

MODULES = {p.stem: p for p in ROOT.glob("*.py")}
FILES = {**MODULES, **{f"tasks.{p.stem}": p for p in (ROOT / "tasks").glob("*.py")}}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(top-level package, whether inside a function) of every import statement."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if n is not f
    }
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        found += [(name.split(".")[0], id(node) in inside) for name in names]
    return found


def level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_lower_levels(name: str) -> None:
    for target, _ in imports(FILES[name]):
        if target not in MODULES and target != "tasks":
            continue
        if name.split(".")[0] in OUTSIDE:
            assert target != name
        elif name.startswith("tasks.") and target == "tasks" or (name, target) in EXCEPTIONS:
            continue
        else:
            assert target not in OUTSIDE and level(target) < level(name), f"{name} imports {target}"


@pytest.mark.parametrize("name", sorted(FILES))
def test_third_party_imports_are_on_the_list(name: str) -> None:
    for target, inside in imports(FILES[name]):
        own = target in MODULES or target == "tasks"
        if own or target in sys.stdlib_module_names or target in PACKAGES:
            continue
        assert target in EXTRAS and inside, f"{name} imports {target}; extras belong inside a function"


@pytest.mark.parametrize("name", sorted(FILES))
def test_functions_are_short_and_public_ones_documented(name: str) -> None:
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 80, f"{name}.{node.name} has {lines} lines"
    tree = ast.parse(FILES[name].read_text())
    assert ast.get_docstring(tree), f"{name} does not say what it is"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "main"
        if public and node.end_lineno - node.lineno > 6:
            assert ast.get_docstring(node), f"{name}.{node.name} does not say what it does"


def test_every_mutants_line_is_there() -> None:
    """Else tests/mutants.py, which is no part of this run, could not start."""
    for mutant in MUTANTS:
        found = (ROOT / mutant.file).read_text().count(mutant.old)
        assert found == 1, f"{mutant.name}: its text is {found} times in {mutant.file}, expected once"


def test_every_level_exists_and_every_file_has_one() -> None:
    missing = set(MODULES) - set(LEVELS) - OUTSIDE
    assert not missing, f"give {missing} a level in this file, as the README's table does"


@pytest.mark.parametrize("name", sorted(set(MODULES) - OUTSIDE))
def test_importing_has_no_side_effects(name: str) -> None:
    """Top-level statements are imports, definitions, constants, docstrings and the main guard."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(MODULES[name].read_text()).body:
        guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        extend = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
        assert isinstance(node, allowed) or guard or text or extend, f"{name}, line {node.lineno}"
