"""The toy tasks: the reference programs, run by another Python, are the oracle of the answers."""

import re
import subprocess
import sys

import pytest

from plumbing.config import UsageError
from tasks import RL_START, SFT_START, Problem, get, names, select, toy

RANGES = (0, SFT_START, RL_START)


def test_144_tasks_of_which_37_are_held_out() -> None:
    train, test = names("toy", "train"), names("toy", "test")
    assert (len(names("toy")), len(train), len(test)) == (144, 107, 37)
    assert not set(train) & set(test)
    assert names("facts") == ["fact_capital", "fact_opposite", "fact_colour"]


def test_every_operation_of_an_unseen_task_is_met_in_training() -> None:
    def operations(part: str) -> set[tuple[int, str]]:
        return {(i, o.name) for n in names("toy", part) for i, o in enumerate(get(n).operations[::-1])}

    assert operations("test") <= operations("train")


def test_reference_programs_print_the_answers() -> None:
    """All tasks, three questions each, in one other interpreter: the programs know nothing of toy.apply."""
    problems = [get(n).problem(start + 7) for n in names("toy") for start in RANGES]
    programs = [get(p.task).solution(p) for p in problems]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], capture_output=True, text=True, check=True
    )
    printed = run.stdout.split("\n")[:-1]
    assert len(printed) == len(problems)
    for problem, line in zip(problems, printed, strict=True):
        assert get(problem.task).grade(problem, line).correct, (problem, line)
        assert int(line) == problem.answer


def test_problems_do_not_depend_on_the_process() -> None:
    code = "from tasks import get, names; print([get(n).problem(11).question for n in names('toy')])"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().strip() == str([get(n).problem(11).question for n in names("toy")])


def test_no_question_serves_two_purposes() -> None:
    """Evaluation, supervised data and RL share no question: 107 x 40 of each."""
    drawn = [
        {get(n).problem(start + i).question for n in names("toy") for i in range(40)} for start in RANGES
    ]
    assert all(len(questions) > 5000 for questions in drawn)
    assert not drawn[0] & drawn[1] and not drawn[0] & drawn[2] and not drawn[1] & drawn[2]


def test_facts_are_asked_in_new_words_in_the_evaluation() -> None:
    facts = [get(name) for name in names("facts")]
    asked = [{f.problem(start + i).question for f in facts for i in range(1000)} for start in RANGES]
    assert not asked[0] & (asked[1] | asked[2])
    answers = [{f.problem(start + i).answer for f in facts for i in range(1000)} for start in RANGES]
    assert answers[0] == answers[1], "every fact that is evaluated is taught"
    assert len(answers[0]) == sum(len(f) for f in toy.FACTS.values()) == 24


@pytest.mark.parametrize("given", ["", "12 apples", "1.5", "None", None, "0x1f", "<<<7>>>"])
def test_wrong_or_odd_answers_are_refused_with_a_reason(given: str | None) -> None:
    problem = Problem("toy", 0, "?", 31)
    grade = get(names("toy")[0]).grade(problem, given)
    assert not grade.correct and grade.detail


@pytest.mark.parametrize("given", ["31", " 31 ", "+31", "0031"])
def test_other_spellings_of_the_right_number(given: str) -> None:
    assert get(names("toy")[0]).grade(Problem("toy", 0, "?", 31), given).correct


def test_facts_ignore_case_and_space_only() -> None:
    facts, problem = get("fact_capital"), Problem("fact_capital", 0, "?", "Paris")
    assert facts.grade(problem, " paris ").correct
    assert not facts.grade(problem, "Paris is it").correct and not facts.grade(problem, None).correct


def test_text_of_a_question_holds_all_its_data() -> None:
    for name in names("toy")[::9]:
        problem = get(name).problem(3)
        numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
        ks = [k for o, k in zip(get(name).operations, problem.meta["ks"], strict=True) if "{k}" in o.words]
        assert numbers == problem.meta["numbers"] + ks


def test_select_takes_suites_and_names_and_refuses_others() -> None:
    assert select("toy", "test") == names("toy", "test")
    first = names("toy")[0]
    assert select(f"{first}, facts,{first}") == [first, *names("facts"), first], "twice counts twice"
    for spec in ("toys", "toy_ad_sum", "", ","):
        with pytest.raises(UsageError) as error:
            select(spec)
        assert "--tasks" in str(error.value)
    with pytest.raises(UsageError, match="did you mean"):
        get(first[:-1])
    with pytest.raises(UsageError, match="split"):
        names("toy", "dev")
