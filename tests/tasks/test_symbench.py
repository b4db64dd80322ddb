"""What every generated SymBench task promises; what is particular to one is in the files of its module."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys

import pytest

from tasks import Problem, Task
from tasks.symbench_grids import TASKS as GRIDS
from tasks.symbench_mathematics import TASKS as MATHEMATICS
from tasks.symbench_numbers import TASKS as NUMBERS
from tasks.symbench_planning import TASKS as PLANNING
from tasks.symbench_strings import TASKS as STRINGS

TASKS = NUMBERS | GRIDS | STRINGS | PLANNING | MATHEMATICS
SEVERAL = {"permutations_and_combinations", "logical_equation", "combinatorial_calculation", "eight_queens"}
SEVERAL |= {"constrained_linear_arrangement", "logic_puzzle", "letter_logic_diagram", "game24"}
SEVERAL |= set(PLANNING) - {"standard_sudoku"}  # several answers can be right
LETTERS = {"string_insertion", "string_deletion_and_modification"}  # no number in the answer
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)

# Runs programs one after the other, each as if alone, and prints what each printed.
RUN_ALL = """
import contextlib, io, json, sys
printed = []
for program in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    printed.append(out.getvalue())
print(json.dumps(printed))
"""
DIGEST = """
import hashlib
from tests.tasks.test_symbench import TASKS
for task in TASKS.values():
    problems = [task.problem(i) for i in (0, 7, 10_003, 100_009)]
    text = repr([(p, task.solution(p)) for p in problems])
    print(task.name, hashlib.sha256(text.encode()).hexdigest())
"""


def digests(seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    run = [sys.executable, "-c", DIGEST]
    return subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout


def test_names_are_the_papers_and_belong_to_the_suite() -> None:
    assert len(TASKS) == 33
    for name, task in TASKS.items():
        assert task.name == name and task.suite == "symbench"


def test_questions_and_programs_do_not_depend_on_the_process() -> None:
    first, second = digests("1"), digests("2")
    assert first == second and len(first.splitlines()) == len(TASKS)
    name, digest = first.splitlines()[0].split()
    problems = [TASKS[name].problem(i) for i in (0, 7, 10_003, 100_009)]
    text = repr([(p, TASKS[name].solution(p)) for p in problems])
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@every_task
def test_questions_differ_and_their_answers_are_right(task: Task) -> None:
    problems = [task.problem(i) for i in range(250)]
    assert len({p.question for p in problems}) >= 230
    for problem in problems:
        grade = task.grade(problem, str(problem.answer))
        assert grade.correct, (problem, grade)
        assert problem.question == task.problem(problem.index).question


def test_reference_programs_are_graded_right() -> None:
    """Eight questions of each task, in one other interpreter that knows none of the project's code."""
    problems = [task.problem(i) for task in TASKS.values() for i in range(300, 308)]
    programs = [TASKS[p.task].solution(p) for p in problems]
    run = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        check=True,
    )
    for problem, printed in zip(problems, json.loads(run.stdout), strict=True):
        grade = TASKS[problem.task].grade(problem, printed)
        assert grade.correct, (problem, printed, grade)


@every_task
def test_programs_are_not_given_the_answer(task: Task) -> None:
    """A program made from a problem without its answer is the same program."""
    for i in range(5):
        p = task.problem(i)
        assert task.solution(Problem(p.task, p.index, p.question, None, p.meta)) == task.solution(p)


def perturbed(answer: str, rng: random.Random) -> list[str]:
    """The answer with a number, letter or operator left out, and with one doubled: wrong in every task."""
    token = rng.choice(list(re.finditer(r"[0-9]+|[A-Za-z]|[-+/]", answer)))  # "3 pi" is as good as "3 * pi"
    before, after = answer[: token.start()], answer[token.end() :]
    return [before + after, f"{before}{token[0]}, {token[0]}{after}", f"{answer}, 1", f"{answer} 1"]


@every_task
def test_truncated_and_extended_answers_are_refused(task: Task) -> None:
    rng = random.Random(task.name)
    for i in range(20):
        problem = task.problem(i)
        for wrong in perturbed(str(problem.answer), rng):
            grade = task.grade(problem, wrong)
            assert not grade.correct and grade.detail, (problem, wrong)


@pytest.mark.parametrize("name", sorted(set(TASKS) - SEVERAL - LETTERS))
def test_a_changed_number_is_refused_where_one_answer_is_right(name: str) -> None:
    task, rng = TASKS[name], random.Random(name)
    for i in range(20):
        problem = task.problem(i)
        number = rng.choice(list(re.finditer("[0-9]+", str(problem.answer))))
        for change in (-10, -1, 1, 10):
            wrong = f"{problem.answer}"[: number.start()] + str(int(number[0]) + change)
            wrong += f"{problem.answer}"[number.end() :]
            assert not task.grade(problem, wrong).correct, (problem, wrong)


@every_task
def test_answers_to_other_questions_are_refused(task: Task) -> None:
    """Where several answers can be right, another question's may be; see the module's tests."""
    problems = [task.problem(i) for i in range(21)]
    accepted = 0
    for problem, other in zip(problems, problems[1:], strict=False):
        if task.grade(problem, str(other.answer)).correct:
            assert task.name in SEVERAL or other.answer == problem.answer
            accepted += 1
    assert accepted <= 3


@every_task
@pytest.mark.parametrize(
    "nothing", [None, "", " ", "[]", "()", "none", "I do not know", "?", "0x1", "\x00", "1e9"]
)
def test_no_answer_and_nonsense_are_refused_with_a_reason(task: Task, nothing: str | None) -> None:
    grade = task.grade(task.problem(1), nothing)
    assert not grade.correct and grade.detail


@every_task
def test_no_string_makes_a_checker_fail(task: Task) -> None:
    rng = random.Random(task.name)
    problem = task.problem(2)
    alphabet = "0123456789,;.-+*/()[]{}<>'\"` \n\tABCabc=\u0663\u00d7\u2212\u2019\U0001f600\x00\ud800"
    texts = ["".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(200)]
    texts += [c * 20_000 for c in "([9A-,. "] + [
        "9" * 5000 + " 1, 2",
        "(" * 9999 + "1" + ")" * 9999,
        "1/0",
        "9**9**9",
    ]
    answer = str(problem.answer)
    for _ in range(200):  # damaged right answers go deeper into a checker than noise
        i = rng.randrange(len(answer))
        texts.append(answer[:i] + rng.choice(alphabet) * rng.randrange(3) + answer[i + rng.randrange(2) :])
    for text in texts:
        assert isinstance(task.grade(problem, text).correct, bool)


CASE_MATTERS = {"string_insertion", "string_deletion_and_modification"}


@every_task
def test_spelling_without_meaning_does_not_matter(task: Task) -> None:
    for i in range(10):
        problem = task.problem(i)
        answer = str(problem.answer)
        spellings = [f"  {answer}\n", f"{answer}.", f'"{answer}"', answer.replace(", ", " ,  ")]
        spellings += [answer.replace("[", "").replace("]", "")]
        spellings += [answer.lower()] * (task.name not in CASE_MATTERS)
        if answer.startswith("["):
            spellings += [answer.replace(", ", ","), answer.replace(", ", "\n"), f"[{answer}]"]
            spellings += [re.sub("([^][, ]+)", r"'\1'", answer)]
        for spelling in spellings:
            grade = task.grade(problem, spelling)
            assert grade.correct, (spelling, grade)
