"""The official files of BBH: how they are read and shared out, on files of our own; and the graders on the
official ones, where these are on the machine (folder named by ABACUS_BBH, or ../shared/data/bbh)."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from plumbing.config import UsageError
from tasks import RL_START, SFT_START, Task, bbh_files
from tasks.bbh_answers import Choice, ClosingBrackets, Integer, OneOf, Text, WordList
from tasks.bbh_files import FORMS
from tasks.bbh_files import TASKS as COLLECTED
from tasks.bbh_language import TASKS as LANGUAGE
from tasks.bbh_logic import TASKS as LOGIC
from tasks.bbh_worlds import TASKS as WORLDS

GENERATED = LOGIC | WORLDS | LANGUAGE
TASKS = GENERATED | COLLECTED
OFFICIAL = Path(os.environ.get("ABACUS_BBH", Path(__file__).parents[3] / "shared" / "data" / "bbh"))


@pytest.fixture(autouse=True)
def no_files_left() -> Iterator[None]:
    yield
    bbh_files.use(None)


def write(folder: Path, name: str, examples: object) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"canary": "of our own making", "examples": examples}))
    return path


def puns(count: int) -> list[dict[str, str]]:
    """Questions of the form of snarks, of our own making."""
    text = "Which is meant seriously?\nOptions:\n(A) number {}\n(B) another"
    return [{"input": text.format(i), "target": "(AB"[0] + "AB"[i % 2] + ")"} for i in range(count)]


def test_without_files_seven_tasks_say_what_to_download() -> None:
    for name, task in COLLECTED.items():
        assert f"{name}.json" in task.missing and "suzgunmirac/BIG-Bench-Hard" in task.missing
        assert task.size == 0
        for index in (0, SFT_START, RL_START):
            with pytest.raises(UsageError, match="suzgunmirac/BIG-Bench-Hard"):
                task.problem(index)
    assert all(task.size is None for task in GENERATED.values())


def test_seven_tasks_share_their_file_between_the_purposes(tmp_path: Path) -> None:
    write(tmp_path, "snarks", puns(41))
    assert bbh_files.use(tmp_path) == ["snarks"]
    task = COLLECTED["snarks"]
    assert task.missing == "" and task.size == 20 and task.solution(task.problem(0)) is None
    everything = [task.problem(i) for i in range(41)]
    for i, problem in enumerate(everything):
        assert f"(A) number {i}\n" in problem.question and problem.index == i
        assert task.grade(problem, problem.answer).correct
    supervised = [task.problem(SFT_START + i).question for i in range(30)]
    rl = [task.problem(RL_START + i).question for i in range(30)]
    evaluation = [p.question for p in everything[: task.size]]
    assert len(set(evaluation)) == 20 and len(set(supervised)) == 10 and len(set(rl)) == 11
    assert set(evaluation) | set(supervised) | set(rl) == {p.question for p in everything}
    assert supervised[:10] == supervised[10:20] and supervised[0] == everything[20].question
    with pytest.raises(UsageError, match="snarks has 41 official questions"):
        task.problem(41)


def test_generated_tasks_are_evaluated_on_their_file_and_trained_without_it(tmp_path: Path) -> None:
    task = GENERATED["navigate"]
    before = [task.problem(i) for i in (0, SFT_START, RL_START)]
    asked = {"input": "Hop once. Are you back?\nOptions:\n- Yes\n- No", "target": "No"}
    write(tmp_path, "navigate", [asked] * 3)
    assert bbh_files.use(tmp_path) == ["navigate"]
    problem = task.problem(2)
    assert problem.question.startswith(asked["input"]) and problem.answer == "No" and task.size == 3
    assert problem.question.endswith("Answer with one word: Yes or No.")
    assert task.solution(problem) is None, "no program of ours reads official wording"
    assert task.grade(problem, "no").correct and not task.grade(problem, "Yes").correct
    assert [task.problem(i) for i in (SFT_START, RL_START)] == before[1:]
    with pytest.raises(UsageError, match="navigate has 3 official questions"):
        task.problem(3)
    bbh_files.use(None)
    assert task.problem(0) == before[0] and task.size is None


def test_a_target_that_is_no_letter_is_the_text_itself(tmp_path: Path) -> None:
    """As where a title with commas was taken for several options."""
    cut = {
        "input": "Which is it?\nOptions:\n(A) salt\n(B) pepper & co\n(C) sugar",
        "target": "salt, pepper & co",
    }
    write(tmp_path, "movie_recommendation", [cut, *puns(3)])
    bbh_files.use(tmp_path)
    problem = COLLECTED["movie_recommendation"].problem(0)
    assert problem.question.endswith(Text().asks)
    for answer, right in {
        "Salt, pepper & Co.": True,
        "(A)": False,
        "salt": False,
        "sugar": False,
        "": False,
    }.items():
        assert COLLECTED["movie_recommendation"].grade(problem, answer).correct == right


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "snarks.json"),
        ("[" * 100_000, "snarks.json"),
        ("[1, 2]", "snarks.json"),
        ('{"questions": []}', "examples"),
        ('{"examples": []}', "list of questions"),
        ('{"examples": {"input": "a"}}', "list of questions"),
        ('{"examples": [{"input": "Which?\\n(A) a\\n(B) b", "target": "(B)"}, {"input": "a"}]}', "example 1"),
        ('{"examples": [["input", "target"]]}', "example 0"),
        ('{"examples": [{"input": "Why?", "target": " "}]}', "example 0"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "snarks.json").write_text(text)
    with pytest.raises(UsageError) as error:
        bbh_files.use(tmp_path)
    assert says in str(error.value) and "snarks.json" in str(error.value) and "\n" not in str(error.value)


def test_folders_and_targets_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        bbh_files.use(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no file such as"):
        bbh_files.use(tmp_path)
    write(tmp_path, "sports_understanding", [{"input": "Is it plausible?", "target": "perhaps"}])
    with pytest.raises(UsageError, match="example 0: target 'perhaps' .* yes or no"):
        bbh_files.use(tmp_path)
    assert COLLECTED["sports_understanding"].missing, "nothing is used of a folder that was refused"
    (tmp_path / "sports_understanding.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="sports_understanding.json"):
        bbh_files.use(tmp_path)


def test_too_few_questions_to_train_on(tmp_path: Path) -> None:
    write(tmp_path, "snarks", puns(1))
    bbh_files.use(tmp_path)
    with pytest.raises(UsageError, match="too few to train on"):
        COLLECTED["snarks"].problem(SFT_START)
    assert COLLECTED["snarks"].problem(RL_START).meta == {"place": 0}


def others(task: Task, question: str, target: str) -> list[str]:
    """Answers that are wrong: every other option, by letter and by text, or the target a little changed."""
    form, right = FORMS[task.name], FORMS[task.name].read(target, question)
    if isinstance(form, Choice):
        texts = Choice.options(question)
        wrong = [f"({each.upper()})" for each in texts if each != right]
        return wrong + [text for each, text in texts.items() if each != right and text != texts.get(right)]
    if isinstance(form, OneOf):
        return [word for word in form.words if word.lower() != right]
    if isinstance(form, Integer):
        return [str(right + d) for d in (-1, 1)] + [f"{right} {right}"]
    parts = target.split()
    changed = [parts[1:], parts[:-1], [*parts, parts[0]], parts[::-1], [*parts[1:], parts[0]]]
    if isinstance(form, ClosingBrackets):
        changed += [[*parts[:-1], c] for c in ")]}>"]
    return [" ".join(each) for each in changed if each != parts]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_graders_on_all_official_examples(task: Task) -> None:
    """The target is right and every other option wrong, for all examples of the file in their order."""
    path = OFFICIAL / f"{task.name}.json"
    if not path.is_file():
        pytest.skip(f"no official file {path}; set ABACUS_BBH to {bbh_files.SOURCE}")
    bbh_files.use(OFFICIAL)
    examples = json.loads(path.read_text())["examples"]
    assert len(examples) == len(task.examples) > 100
    for index, example in enumerate(examples):
        problem = task.problem(index)
        assert problem.question.startswith(example["input"]) and problem.answer == example["target"]
        assert task.grade(problem, example["target"]).correct, example
        assert task.grade(problem, f"The answer is {example['target']}.").correct, example
        wrong = [
            *others(task, example["input"], example["target"]),
            "",
            None,
            "none of these",
            example["input"],
        ]
        assert len(wrong) > 4
        for answer in wrong:
            assert not task.grade(problem, answer).correct, (example, answer)


def test_official_examples_of_other_questions_are_wrong() -> None:
    """Sorted words and brackets of another question, which are different, do not pass."""
    lists = [
        n
        for n in TASKS
        if isinstance(FORMS[n], WordList | ClosingBrackets) and (OFFICIAL / f"{n}.json").is_file()
    ]
    if not lists:
        pytest.skip(f"no official files in {OFFICIAL}")
    bbh_files.use(OFFICIAL)
    rng = random.Random(0)
    for name in lists:
        problems = [TASKS[name].problem(i) for i in range(len(TASKS[name].examples))]
        for _ in range(1000):
            one, other = rng.sample(problems, 2)
            if one.answer != other.answer:
                assert not TASKS[name].grade(one, other.answer).correct
