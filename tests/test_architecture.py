"""The house rules that a program can check: imports flow upward in levels, files and functions stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from mutants import MUTANTS

ROOT = Path(__file__).parent.parent
COMMANDS = ["sft", "grpo", "ppo", "evaluate", "coldstart", "chat"]
LEVELS = {  # room -> level; a file imports from lower levels and from its own folder only
    "plumbing": 0,
    **dict.fromkeys(["isolation", "model", "tokenizer"], 1),
    **dict.fromkeys(["fast", "sandbox"], 2),
    **dict.fromkeys(["loss", "sample", "tasks"], 3),
    "episode": 4,
    **dict.fromkeys(["rollout", "analysis"], 5),
    **dict.fromkeys(["training", "trajectories"], 6),
    **dict.fromkeys(COMMANDS, 7),
    "demo": 8,
}
ONLY_FOR = {  # room -> who may import it, beside itself
    "isolation": {"sandbox"},
    "fast": {"loss", "sample", "ppo", "training", "analysis.plan"},
}
PACKAGES = {"torch", "safetensors", "tokenizers", "numpy", "tqdm"}
EXTRAS = {"matplotlib", "reasoning_gym", "sympy", "pyarrow", "jinja2"}  # imported inside functions only
TIES = {  # imports that the next steps cut
    ("analysis.plan", "loss"),
}


def tracked() -> dict[str, Path]:
    """Module name -> file, of the product."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True
    )
    paths = [Path(line) for line in listed.stdout.decode().splitlines() if (ROOT / line).exists()]
    paths = [p for p in paths if p.parts[0] not in ("tests", "bench")]
    return {".".join(p.with_suffix("").parts).removesuffix(".__init__"): ROOT / p for p in paths}


FILES = tracked()
ROOMS = {name.split(".")[0] for name in FILES}


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether inside a function) of every import statement; of ours, the file."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if n is not f
    }
    found = []
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{a.name}" for a in node.names]
        for name in names:
            ours = name.split(".")[0] in ROOMS
            while ours and name not in FILES:
                name = name.rpartition(".")[0]
            found.append((name, id(node) in inside))
    return found


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_imports_only_from_lower_levels(name: str) -> None:
    for target, _ in imports(FILES[name]):
        if room(target) not in ROOMS or room(target) == room(name):
            continue
        if (name, room(target)) in TIES:
            continue
        assert LEVELS[room(target)] < LEVELS[room(name)], f"{name} imports {target}"
        allowed = ONLY_FOR.get(room(target))
        assert allowed is None or {name, room(name)} & allowed, (
            f"{name} imports {target}, which is {allowed}'s"
        )


@pytest.mark.parametrize("name", sorted(FILES))
def test_third_party_imports_are_on_the_list(name: str) -> None:
    for target, inside in imports(FILES[name]):
        package = room(target)
        if package in ROOMS or package in sys.stdlib_module_names or package in PACKAGES:
            continue
        assert package in EXTRAS and inside, f"{name} imports {target}; extras belong inside a function"


@pytest.mark.parametrize("name", sorted(FILES))
def test_functions_are_short_and_public_ones_documented(name: str) -> None:
    tree = ast.parse(FILES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 80, f"{name}.{node.name} has {lines} lines"
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


def test_every_room_has_a_level() -> None:
    missing = ROOMS - set(LEVELS)
    assert not missing, f"give {missing} a level in this file"


@pytest.mark.parametrize("name", sorted(n for n in FILES if room(n) != "tasks" and n != "demo"))
def test_importing_has_no_side_effects(name: str) -> None:
    """Top-level statements are imports, definitions, constants, docstrings and the main guard."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in ast.parse(FILES[name].read_text()).body:
        guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        extend = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
        assert isinstance(node, allowed) or guard or text or extend, f"{name}, line {node.lineno}"
