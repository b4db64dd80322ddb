"""docs/papers.md names files, functions and tests that exist, and says of every row whose value it is."""

import ast
import re
from pathlib import Path

import pytest
from torch import nn

from training.steps import adamw

ROOT = Path(__file__).parent.parent.parent
CELLS = re.compile(r"(?<!\\)\|")
TABLES = (ROOT / "docs" / "papers.md").read_text().split("\n## Other published forms")[0]
ROWS = [
    [cell.strip() for cell in CELLS.split(line)[1:-1]]
    for line in TABLES.splitlines()
    if line.startswith("| ") and not line.startswith("| part |")
]


def defined(tree: ast.AST) -> dict[str, ast.AST]:
    """The names that a module or a class defines."""
    found: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                found[target.id] = node
    return found


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_file_name_and_test_of_a_row_exists(row: list[str]) -> None:
    *_, here, value, code, tests = row
    assert len(row) == 7 and here
    first, second = value.split(" / ")
    assert {first, second} <= {"same", "other", "n.s.", "-"}
    assert all(
        (stated == "-") == (kind == "-") for stated, kind in zip(row[1:3], (first, second), strict=True)
    )
    named, checked = re.findall("`([^`]+)`", code), re.findall("`([^`]+)`", tests)
    assert named and checked
    for path, _, name in [x.partition(":") for x in named] + [x.partition("::") for x in checked]:
        found: ast.AST = ast.parse((ROOT / path).read_text())
        for part in filter(None, name.split(".")):
            assert part in defined(found), f"{path} defines no {name}"
            found = defined(found)[part]


def test_what_stands_in_for_the_optimiser() -> None:
    (group,) = adamw(nn.Linear(1, 1), 1e-6).param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-6, (0.9, 0.95), 0.0)
