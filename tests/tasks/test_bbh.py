"""What every BIG-Bench Hard task promises; that the questions' texts say what the answers rest on is in
test_bbh_texts.py, and the official files are in test_bbh_files.py."""

import hashlib
import json
import os
import random
import subprocess
import sys

import pytest

from tasks import RL_START, SFT_START, Problem, Task, extract_answer
from tasks.bbh_answers import CLOSING, Choice, ClosingBrackets, Integer, OneOf, WordList, bare
from tasks.bbh_files import FORMS, Generated
from tasks.bbh_files import TASKS as COLLECTED
from tasks.bbh_language import TASKS as LANGUAGE
from tasks.bbh_logic import TASKS as LOGIC
from tasks.bbh_worlds import TASKS as WORLDS

TASKS = LOGIC | WORLDS | LANGUAGE
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
from tasks.bbh_language import TASKS as LANGUAGE
from tasks.bbh_logic import TASKS as LOGIC
from tasks.bbh_worlds import TASKS as WORLDS
for task in (LOGIC | WORLDS | LANGUAGE).values():
    problems = [task.problem(i) for i in (0, 7, 10_003, 100_009)]
    text = repr([(p, task.solution(p)) for p in problems])
    print(task.name, hashlib.sha256(text.encode()).hexdigest())
"""


def digests(seed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed}
    run = [sys.executable, "-c", DIGEST]
    return subprocess.run(run, capture_output=True, text=True, check=True, env=environment).stdout


def perturbed(problem: Problem, rng: random.Random) -> list[str]:
    """Wrong answers that look right: another option, the other word, a number or a list a little off."""
    form, right = FORMS[problem.task], problem.answer
    if isinstance(form, Choice):
        letters = list(Choice.options(problem.question))
        return [f"({each.upper()})" for each in letters if f"({each.upper()})" != right]
    if isinstance(form, OneOf):
        return [word for word in form.words if word != right]
    if isinstance(form, Integer):
        return [str(int(right) + d) for d in (-10, -1, 1, 10)] + [f"{right}1", f"{right} 0", f"{right}.5"]
    if isinstance(form, ClosingBrackets):
        inner = right.strip('"').split()
        other = rng.choice([c for c in CLOSING.values() if c != inner[0]])
        wrong = [inner[1:], [*inner, inner[0]], [other, *inner[1:]], inner[::-1]]
        return [" ".join(each) for each in wrong if each != inner]
    words = right.split()
    i = rng.randrange(len(words) - 1)
    swapped = [*words[:i], words[i + 1], words[i], *words[i + 2 :]]
    return [" ".join(each) for each in (swapped, words[1:], words[:-1], [*words, words[-1]], words[::-1])]


def test_27_tasks_with_the_papers_names() -> None:
    assert len(TASKS) == 20 and len(COLLECTED) == 7 and not set(TASKS) & set(COLLECTED)
    assert set(FORMS) == set(TASKS) | set(COLLECTED)
    for name, task in (TASKS | COLLECTED).items():
        assert task.name == name and task.suite == "bbh"


def test_questions_and_programs_do_not_depend_on_the_process() -> None:
    first, second = digests("1"), digests("2")
    assert first == second and len(first.splitlines()) == len(TASKS)
    name, digest = first.splitlines()[0].split()
    problems = [TASKS[name].problem(i) for i in (0, 7, 10_003, 100_009)]
    text = repr([(p, TASKS[name].solution(p)) for p in problems])
    assert digest == hashlib.sha256(text.encode()).hexdigest()


@every_task
def test_250_questions_are_distinct_and_say_how_to_answer(task: Task) -> None:
    problems = [task.problem(i) for i in range(250)]
    assert len({p.question for p in problems}) == 250
    assert all(p.question.endswith(FORMS[task.name].asks) and p.task == task.name for p in problems)
    assert [p.index for p in problems] == list(range(250))


class Few(Generated):
    """A task with sixty questions in all, so that chance alone would give one to several purposes."""

    name = "navigate"

    def draw(self, rng: random.Random) -> tuple[str, str, dict]:
        return f"Is {rng.randrange(60)} even?", "Yes", {}

    def program(self, data: dict) -> str:
        return ""


def test_no_question_serves_two_purposes() -> None:
    drawn = [{Few().problem(start + i).question for i in range(300)} for start in (0, SFT_START, RL_START)]
    assert not drawn[0] & drawn[1] and not drawn[0] & drawn[2] and not drawn[1] & drawn[2]
    assert len(drawn[0] | drawn[1] | drawn[2]) == 60 and min(map(len, drawn)) > 10


@every_task
def test_every_answer_occurs_about_equally_often(task: Task) -> None:
    """No letter and no word is a good guess: with 250 questions the largest share is below 1.5 times its due
    (seven options: 3.4 standard deviations)."""
    problems = [task.problem(i) for i in range(250)]
    form = FORMS[task.name]
    if isinstance(form, OneOf):
        shares = [sum(p.answer == word for p in problems) for word in form.words]
        assert min(shares) > 90, shares
    elif isinstance(form, Choice):
        counts = [len(Choice.options(p.question)) for p in problems]
        for place, letter in enumerate("ABCDEFG"[: max(counts)]):
            due = sum(1 / n for n in counts if n > place)
            assert sum(p.answer == f"({letter})" for p in problems) < 1.5 * due + 6, letter


def test_reference_programs_are_graded_right() -> None:
    """Run by another Python, which knows nothing of how the questions were drawn."""
    problems = [
        task.problem(start + i) for task in TASKS.values() for start in (0, SFT_START) for i in range(15)
    ]
    programs = [TASKS[p.task].solution(p) for p in problems]
    run = [sys.executable, "-c", RUN_ALL]
    printed = subprocess.run(
        run, input=json.dumps(programs), capture_output=True, text=True, check=True, cwd="/"
    )
    for problem, answer in zip(problems, json.loads(printed.stdout), strict=True):
        assert TASKS[problem.task].grade(problem, answer).correct, (problem, answer)
        assert answer.count("\n") == 1, (problem.task, answer)


@every_task
def test_wrong_answers_are_refused(task: Task) -> None:
    rng = random.Random(task.name)
    for i in range(25):
        problem, other = task.problem(i), task.problem(i + 300)
        assert task.grade(problem, problem.answer).correct
        wrong = [
            *perturbed(problem, rng),
            None,
            "",
            " ",
            "()",
            "42 or so",
            "I do not know",
            "Options:",
            "answer",
        ]
        wrong += [problem.question, f"{problem.answer} {problem.answer}", f"not {problem.answer}", "<<<>>>"]
        wrong += [other.answer] if other.answer != problem.answer else []
        for answer in wrong:
            grade = task.grade(problem, answer)
            assert not grade.correct and grade.detail, (problem, answer)


@every_task
def test_notation_does_not_matter(task: Task) -> None:
    for i in range(5):
        problem = task.problem(i)
        right = str(problem.answer)
        plain = right.strip('"')
        ways = [
            right,
            f"  {right}\n",
            f"{right}.",
            f"**{right}**",
            f"Answer: {right}",
            f"The answer is {right}.",
        ]
        ways += [f"\\text{{{right}}}"] if "}" not in right else []
        ways += [f'"{plain}"', f"'{plain}'", f"`{plain}`"]
        if not isinstance(FORMS[task.name], ClosingBrackets):
            ways += [right.lower(), right.upper(), f"[{right}]", f"final answer: {right}"]
        if isinstance(FORMS[task.name], WordList | ClosingBrackets):
            ways += [", ".join(plain.split()), "\n".join(plain.split())]
        for answer in ways:
            assert task.grade(problem, answer).correct, (problem.question, answer)


@every_task
def test_right_answers_survive_the_marks_around_them(task: Task) -> None:
    """Without its quotes, "] >" between <<< and >>> would end one bracket too early."""
    for i in range(30):
        problem = task.problem(i)
        text = f"So it is <<<{problem.answer}>>>."
        assert task.grade(problem, extract_answer(text, "r1ci")).correct, text


OPTIONS = "Which?\nOptions:\n(A) a red hat\n(B) 7\n(C) A red cap.\n(D) b\n(E) 7\n\nAnswer with the letter."


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("(A)", "a"),
        ("A", "a"),
        ("a)", "a"),
        ("A.", "a"),
        ("[A]", "a"),
        ("Option A", "a"),
        ("(A) a red hat", "a"),
    ]
    + [("A: A red hat", "a"), ("a red hat", "a"), ("the correct answer is (C)", "c"), ("A red cap", "c")]
    + [("B", "b"), ("b", "b"), ("(B) 7", "b"), ("(E) 7.", "e"), ("Choice: (D) b", "d"), ("\\text{(D)}", "d")]
    + [
        (wrong, None)
        for wrong in ("7", "(A) A red cap", "(A) or (C)", "A, C", "AC", "(A)(C)", "(F)", "F", "red")
    ]
    + [
        (wrong, None)
        for wrong in ("", "()", "(A", "a red", "A a red hat", "(A) 7", "((A) (B))", "not (A)", "-A")
    ],
)
def test_what_names_an_option(answer: str, letter: str | None) -> None:
    """A letter or a text that only one option has; b is the letter B, though it is also a text."""
    assert Choice().read(answer, OPTIONS) == letter


@pytest.mark.parametrize(
    ("name", "right", "accepted", "refused"),
    [
        ("navigate", "Yes", ["yes", "YES.", "(Yes)"], ["Y", "True", "Yes or No", "Yes, No", "no"]),
        ("formal_fallacies", "invalid", ["Invalid", "'invalid'"], ["not valid", "valid", "in valid"]),
        ("boolean_expressions", "True", ["true", "TRUE"], ["1", "T", "not False", "False"]),
        (
            "object_counting",
            "12",
            ["12", "+12", "12.0", "012", "12 items"],
            ["12 13", "1.2", "12 km", "-12", "twelve"],
        ),
        (
            "multistep_arithmetic_two",
            "-1234",
            ["-1,234", "\u22121234"],
            ["1234", "-1234 + 0", "-12 34", "- -1234"],
        ),
        (
            "word_sorting",
            "ant bee it&t",
            ["ant, bee, it&t", "['ant', 'bee', 'it&t']"],
            ["ant bee", "bee ant it&t"],
        ),
        ("dyck_languages", '") ] >"', [")]>", ") ] >", "), ], >"], [") ] > )", "( ) ] >", "> ] )"]),
    ],
)
def test_what_is_read_as_the_same(name: str, right: str, accepted: list[str], refused: list[str]) -> None:
    problem = Problem(name, 0, "?", right)
    for answer in accepted:
        assert TASKS[name].grade(problem, answer).correct, answer
    for answer in refused:
        assert not TASKS[name].grade(problem, answer).correct, answer


def test_an_opening_is_taken_off_only_where_it_is_one() -> None:
    assert (
        bare("The answer is: 7") == "7" and bare("Answer(A)") == "(A)" and bare("final answer = no") == "no"
    )
    assert bare("answering machine") == "answering machine" and bare("optional") == "optional"


def test_no_text_makes_a_grader_fail() -> None:
    rng = random.Random(0)
    texts = [
        "9" * 50_000,
        "(" * 50_000,
        "\\text{" * 9_000,
        "answer " * 9_000,
        "(A) " * 9_000,
        "\x00",
        "\ud800",
    ]
    texts += ["1/0", "1e999", "٣", "Ⅷ", "[" + "1, " * 20_000 + "]", "'\"" * 9_000, "nan", "inf"]
    for _ in range(300):
        size = rng.randint(1, 30)
        texts.append(
            "".join(chr(rng.choice((rng.randint(32, 126), rng.randrange(0x110000)))) for _ in range(size))
        )
        texts.append("".join(rng.choice("()[]{}<>\"'ABab019.,:- \n") for _ in range(size)))
    for form, task in {type(FORMS[name]): task for name, task in TASKS.items()}.items():
        problem = task.problem(0)
        for text in texts:
            same = form is ClosingBrackets and text.replace(" ", "").strip("\"'") == problem.answer.strip('"')
            assert not task.grade(problem, text).correct or len(text) < 6 or same, (task.name, text)


def test_navigate_says_that_steps_do_not_turn_where_it_speaks_of_turns() -> None:
    """Turns to the left beside steps to the left are ambiguous without it."""
    asked = [TASKS["navigate"].problem(i).question for i in range(60)]
    said = ["Only a turn changes the way it faces" in q for q in asked]
    assert said == ["without ever turning" not in q for q in asked] and {True, False} == set(said)
    assert all(told for told, q in zip(said, asked, strict=True) if "Turn " in q)
