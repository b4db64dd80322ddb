"""The registry: names, split, what is absent, what may be trained on, and the table in docs/."""

import subprocess
import sys
from pathlib import Path

import pytest

import coldstart
import grpo
import ppo
import sft
from plumbing.config import UsageError
from tasks import SUITES, for_training, get, names, select, split_of
from tasks import __main__ as command
from tasks.split import HELD_OUT, SPLIT, draw
from trajectories.programs import from_programs

ROOT = Path(__file__).parents[2]


def test_144_tasks_of_three_families() -> None:
    assert {suite: len(names(suite)) for suite in SPLIT} == {"symbench": 33, "bbh": 27, "reasoning_gym": 84}
    assert (len(names()), len(names(split="train")), len(names(split="test"))) == (144, 107, 37)
    assert set(names(split="train")) | set(names(split="test")) == set(names()) and len(set(names())) == 144
    assert not set(names()) & {*names("toy"), *names("facts")}


def test_the_table_is_what_its_seed_gives() -> None:
    held_out = {n for parts in SPLIT.values() for n, part in parts.items() if part == "test"}
    assert (
        held_out == draw({suite: list(parts) for suite, parts in SPLIT.items()}) and len(held_out) == HELD_OUT
    )
    assert held_out != draw({suite: list(parts) for suite, parts in SPLIT.items()}, seed=1)
    assert [len(names(suite, "test")) for suite in SPLIT] == [8, 7, 22]
    for puzzle in ("logical_deduction", "tracking_shuffled_objects"):
        assert len({split_of(n) for n in names("bbh") if n.startswith(puzzle)}) == 1


def test_every_name_is_a_task_of_its_suite() -> None:
    for suite in SUITES:
        for name in names(suite):
            task = get(name)
            assert (task.name, task.suite) == (name, suite)
            assert "\n" not in task.missing
    assert sum(not get(n).missing for n in names("symbench") + names("bbh")) == 53, "but for seven BBH files"


def test_a_suite_says_once_what_is_absent_and_an_absent_task_is_an_error(
    capsys: pytest.CaptureFixture,
) -> None:
    chosen = select("bbh")
    assert len(chosen) == 20 and not any(get(n).missing for n in chosen)
    select("bbh")
    said = capsys.readouterr().err
    assert said.count("\n") <= 1
    assert not said or "7 of 27" in said and "snarks" in said
    with pytest.raises(UsageError, match="snarks.json"):
        select("snarks")
    with pytest.raises(UsageError, match="its tasks are files"):
        select("math")


def test_training_refuses_held_out_tasks_unless_told_in_so_many_words() -> None:
    assert set(for_training("symbench")) == set(names("symbench", "train"))
    held_out = names("symbench", "test")[0]
    with pytest.raises(UsageError, match="--train-on-test-tasks") as error:
        for_training(f"toy,{held_out}")
    assert held_out in str(error.value)
    assert for_training(held_out, test_tasks=True) == [held_out]
    assert set(for_training("symbench", test_tasks=True)) == set(names("symbench"))
    with pytest.raises(UsageError, match="--train-on-test-tasks"):
        for_training(names("toy", "test")[0])


@pytest.mark.parametrize("script", [grpo, ppo, sft, coldstart], ids=lambda script: script.__name__)
def test_every_training_script_refuses_them(script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [f"{script.__name__}.py", "--tasks", "blocksworld", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UsageError, match="blocksworld.*--train-on-test-tasks"):
        script.main()


def test_no_bare_answers_are_made_into_trajectories(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{"question": "2+2?", "answer": "4"}\n')
    drafts = from_programs(["game24", str(path), "fact_colour"], "r1ci", 1, 0.0, 0)
    assert {d.problem.task for d in drafts} == {"game24", "fact_colour"}
    assert str(path) in capsys.readouterr().err
    with pytest.raises(UsageError, match="reference program"):
        from_programs([str(path)], "r1ci", 1, 0.0, 0)
    with pytest.raises(UsageError, match="guided"):
        from_programs(["game24"], "guided", 1, 0.0, 0)


def test_naming_a_toy_task_imports_no_other_suite() -> None:
    code = "import sys, tasks; tasks.get('toy_add_sum'); tasks.select('toy'); tasks.names();"
    code += "heavy = ('tasks.bbh', 'tasks.symbench', 'tasks.math', 'reasoning_gym');"
    code += "print([m for m in sys.modules if m.startswith(heavy)])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_docs_tasks_md_is_current() -> None:
    assert (ROOT / "docs" / "tasks.md").read_text() == "\n".join(command.table()) + "\n"


def lines(*words: str, **options: object) -> list[str]:
    return list(command.run(words, command.Config(**options)))


def test_the_command_lists_shows_and_grades() -> None:
    assert len(lines()) == 145 and lines()[-1].startswith("144 tasks")
    assert len(lines("list", tasks="bbh", split="test")) == 8
    (shown,) = lines("show", "game24", index=3)
    problem = get("game24").problem(3)
    assert problem.question in shown and str(problem.answer) in shown
    assert lines("grade", "game24", str(problem.answer), index=3) == ["right"]
    assert lines("grade", "game24", "24", index=3)[0].startswith("wrong: ")
    for words in (("shwo",), ("show",), ("show", "game25"), ("show", "snarks")):
        with pytest.raises(UsageError):
            lines(*words)


def test_the_command_solves_and_checks() -> None:
    solved = "\n".join(lines("solve", "number_multiply", sandbox="none"))
    assert get("number_multiply").solution(get("number_multiply").problem(0)) in solved
    assert solved.endswith("-- right")
    checked = lines("check", tasks="number_multiply", per_task=2, sandbox="none")
    assert "2/2" in checked[1] and "0 of" in checked[2]
