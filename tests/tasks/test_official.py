"""The bars that all tasks of SymBench and BIG-Bench Hard share, on a sample; `python -m tasks check` runs 50
questions of each. What only one task can get wrong is tested beside it."""

import pytest

from sandbox import Sandbox
from tasks import get, names
from tasks.__main__ import check_task

GENERATED = [n for n in names("symbench") + names("bbh") if not get(n).missing]
# several answers are right: a changed one may be another, which the tasks' own tests decide
SEVERAL = {"boxnet", "constrained_linear_arrangement", "logical_equation", "permutations_and_combinations"}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(require="none", quiet=True, workers=2) as found:
        yield found


def test_which_tasks_need_no_file() -> None:
    assert len(GENERATED) == 53


@pytest.mark.parametrize("name", GENERATED)
def test_programs_answers_and_questions(name: str, sandbox: Sandbox) -> None:
    found = check_task(get(name), 2, sandbox)
    assert found.programs == found.own == 2, "the reference program and the stored answer are graded right"
    assert found.wrong >= 8 and (name in SEVERAL or not found.taken), "wrong answers are refused"
    assert found.distinct >= 200, "of the first 250 questions"
