"""The tasks of the package reasoning-gym: which they are, that they are the same everywhere, and strictness.
The package itself is the oracle of its answers; what is checked here is the interface around it."""

import hashlib
import os
import random
import re
import subprocess
import sys

import pytest

from tasks import get, names
from tasks.reasoning_gym import EXCLUDED, JUDGED, TASKS, _is_polynomial
from tasks.reasoning_gym_programs import DAYS, MATRIX_STEPS, PROGRAMS, STRING_RULES
from training.interpreter import open_sandbox
from training.options import SandboxOptions

PRINT_HASHES = """
import hashlib
from tasks.reasoning_gym import TASKS
for name, task in TASKS.items():
    found = [task.problem(i) for i in (1, 0)]
    print(name, hashlib.sha256(repr([(p.question, p.answer) for p in found]).encode()).hexdigest())
"""


@pytest.fixture(scope="module", autouse=True)
def package():
    return pytest.importorskip("reasoning_gym", reason="the package reasoning-gym (extra) is not installed")


def test_every_dataset_of_the_package_is_a_task_or_left_out_with_a_reason() -> None:
    from reasoning_gym.factory import DATASETS

    assert len(TASKS) == 84 and set(TASKS) == set(names("reasoning_gym"))
    assert set(TASKS) | set(EXCLUDED) == set(DATASETS) and not set(TASKS) & set(EXCLUDED)
    assert set(JUDGED) <= set(TASKS) and all(EXCLUDED.values())
    assert {"binary_matrix", "dice", "polynomial_equations"} <= set(TASKS), "the paper names these"


def test_questions_do_not_depend_on_process_hash_seed_or_order() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PRINT_HASHES],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    elsewhere = dict(line.split() for line in run.stdout.splitlines())
    for name, task in TASKS.items():
        found = [task.problem(i) for i in range(2)][::-1]
        here = hashlib.sha256(repr([(p.question, p.answer) for p in found]).encode()).hexdigest()
        assert elsewhere[name] == here, name


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_are_right_and_nonsense_is_not(name: str) -> None:
    task = get(name)
    problems = [task.problem(i) for i in range(6)]
    for problem in problems:
        right = problem.answer
        assert task.grade(problem, f" {right}\n").correct
        tried = [
            None,
            "",
            "nonsense",
            "\U0001f600\ud800",
            "[" * 3000,
            "9" * 5000,
            f"{right} 17",
            f"17 {right}x",
        ]
        for wrong in tried:
            if name == "simple_integration" and wrong == f"{right} 17":
                continue
            assert not task.grade(problem, wrong).correct, (right, wrong)


def test_answers_that_are_right_too() -> None:
    hanoi = get("number_sorting").problem(3)
    flat = hanoi.answer.replace("'", "").strip("[]")
    assert get("number_sorting").grade(hanoi, flat).correct
    moved = flat.replace(flat.split(",")[0], str(float(flat.split(",")[0]) + 0.5), 1)
    assert not get("number_sorting").grade(hanoi, moved).correct, "the package's scorer would take it"
    halting = get("game_of_life_halting").problem(3)
    other = {"True": "False", "False": "True"}[halting.answer]
    assert not get("game_of_life_halting").grade(halting, other).correct, "the package's scorer takes both"
    board = get("game_of_life").problem(3)
    assert not get("game_of_life").grade(board, board.answer[:-1] + ",[1,1]]").correct
    anagrams = get("group_anagrams").problem(0)
    assert not get("group_anagrams").grade(anagrams, anagrams.answer.replace("], [", ", ", 1)).correct
    colours = get("graph_color").problem(3)
    same = colours.answer.replace(": 1", ": 9").replace(": 2", ": 1").replace(": 9", ": 2")
    assert get("graph_color").grade(colours, same).correct, "colours exchanged"
    assert not get("graph_color").grade(colours, colours.answer.replace(": 2", ": 1")).correct
    integral = get("simple_integration").problem(3)
    assert get("simple_integration").grade(integral, integral.answer.replace("+ C", "")).correct


def test_text_that_would_be_evaluated_is_looked_at_first() -> None:
    assert _is_polynomial("-5*X**9 - 2*X**6/3 + C")
    for text in (
        "open('x')",
        "9**9**9",
        "(9**9)**9",
        "x.y",
        "exec",
        "x**99",
        "[x]",
        "lambda: x",
        "'a'*9",
        "x if y else z",
    ):
        assert not _is_polynomial(text), text


def test_the_global_generator_is_left_as_it_was() -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    get("list_functions").problem(77)
    assert random.random() == expected


# -- reference programs --------------------------------------------------------------------------------

OPEN = {"family_relationships", "propositional_logic", "survo", "tsumego"}  # not all of their questions


def test_reference_programs_compute_the_answer() -> None:
    """The package's answers are the oracle. A program computes its answer: a long one stands in it only where
    it stands in the question, or in what the task's programs have in common."""
    assert set(PROGRAMS) <= set(TASKS)
    asked = [(get(name), get(name).problem(40 + i)) for name in PROGRAMS for i in range(2)]
    codes = [task.solution(problem) for task, problem in asked]
    assert None not in codes
    assert all(get(name).solution(get(name).problem(0)) is None for name in set(TASKS) - set(PROGRAMS))
    with open_sandbox(SandboxOptions(sandbox="none"), timeout=20.0, quiet=True) as sandbox:
        results = sandbox.map(codes)
    for (task, problem), code, result in zip(asked, codes, results, strict=True):
        right = task.grade(problem, result.stdout.strip()).correct
        assert right or task.name in OPEN, (task.name, problem.index, result.stdout, result.stderr)
        known = problem.question + PROGRAMS[task.name].body + " ".join(DAYS)  # the same for all questions
        answer, code, known = (re.sub(r"\W", "", text) for text in (str(problem.answer), code, known))
        assert len(answer) < 8 or answer not in code or answer in known, (task.name, problem.index)


def test_every_instruction_of_the_package_has_a_line() -> None:
    """All rules and steps that the package can draw, over many questions."""
    steps, rules = set(), set()
    for i in range(300):
        steps |= {s for s, _ in MATRIX_STEPS if re.search(s, get("manipulate_matrix").problem(i).question)}
        rules |= {r for r in STRING_RULES if r in get("string_manipulation").problem(i).question}
        for name in ("manipulate_matrix", "string_manipulation", "calendar_arithmetic", "kakurasu", "survo"):
            assert get(name).solution(get(name).problem(i)), f"{name} {i}"
    assert len(steps) == len(MATRIX_STEPS) and rules == set(STRING_RULES)
