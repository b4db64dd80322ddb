"""The curriculum: potentials and stages by hand, draws that follow from the step alone, files kept whole."""

import contextlib
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from fakes import StopAfter
from ranks import on_ranks

import grpo
import model as models
import ppo
from episode import Episode
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from tasks import PROTOCOLS, RL_START, names
from training import curriculum, evaluation
from training.course import Course, groups, read
from training.curriculum import potential, questions
from training.questions import requests

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "right, samples, value",
    [(0, 20, 0.0), (1, 20, 0.19), (2, 20, 0.36), (3, 20, 0.51), (4, 20, 0.64), (5, 20, 0.75), (10, 20, 1.0)]
    + [(16, 20, 0.64), (17, 20, 0.51), (20, 20, 0.0), (1, 5, 0.64), (1, 8, 0.4375), (8, 40, 0.64)],
)
def test_potential_by_hand(right: int, samples: int, value: float) -> None:
    """Exactly: 4 x .8 x (1 - .8) is .6399999999999999, which would put 16 of 20 into the second stage."""
    assert potential(right, samples) == value


def rows(*potentials: float, task: str = "toy_add_sum") -> list[dict]:
    """Questions with these potentials, all of the harder half: p = (1 - sqrt(1 - P)) / 2."""
    share = [(1 - math.sqrt(1 - value)) / 2 for value in potentials]
    return [
        {"task": task, "index": RL_START + i, "p": p, "potential": value}
        for i, (p, value) in enumerate(zip(share, potentials, strict=True))
    ]


@pytest.mark.parametrize(
    "value, stage",
    [(1.0, 1), (0.64, 1), (math.nextafter(0.64, 0), 2), (0.48, 2), (math.nextafter(0.48, 0), 3)]
    + [(0.32, 3), (math.nextafter(0.32, 0), 4), (0.0, 4)],
)
def test_a_bound_belongs_to_the_group_above_it(value: float, stage: int) -> None:
    """The paper's intervals: [.64, 1], [.48, .64), [.32, .48), [0, .32)."""
    assert [len(group) for group in groups(rows(value))] == [int(i == stage) for i in (1, 2, 3, 4)]


# -- which questions a step asks -------------------------------------------------------------------

MIXED = [1.0, 0.64, 0.7, 0.5, 0.48, 0.4, 0.0, 0.1, 0.2, 0.3]  # 3, 2, 1 and 4 questions


def asked(course: Course, steps: range) -> list[int]:
    """The questions of these steps, counted from 0."""
    return [p.index - RL_START for step in steps for p in course.problems(step)]


def test_stages_add_up_and_the_last_one_lasts() -> None:
    course = Course(rows(*MIXED), "curriculum", stage_steps=15, prompts=2, seed=0)
    for place, members in enumerate([{0, 1, 2}, set(range(5)), set(range(6)), set(range(10))]):
        steps = range(15 * place, 15 * place + 15)
        assert set(asked(course, steps)) == members
        assert Counter(asked(course, steps)).most_common()[0][1] == 30 // len(members)  # evenly
        for step in (steps[0], steps[-1]):
            assert course.metrics(step) == {"stage": place + 1, "stage_questions": len(members)}
    assert course.metrics(10_000) == {"stage": 4, "stage_questions": 10}
    assert course.describe().startswith(
        "curriculum: stage 1 from step 1 with 3 questions; stage 2 from step 16"
    )


def test_every_pass_over_a_stage_has_another_order_and_every_question_once() -> None:
    course = Course(rows(*[1.0] * 12), "curriculum", stage_steps=100, prompts=4, seed=0)
    passes = [tuple(asked(course, range(first, first + 3))) for first in (0, 3, 6)]
    assert [sorted(each) for each in passes] == [list(range(12))] * 3
    assert len(set(passes)) == 3
    other = Course(rows(*[1.0] * 12), "curriculum", stage_steps=100, prompts=4, seed=1)
    assert tuple(asked(other, range(3))) != passes[0]


def test_fewer_questions_than_a_step_asks_come_again() -> None:
    course = Course(rows(1.0, 1.0), "curriculum", stage_steps=5, prompts=5, seed=0)
    assert sorted(Counter(asked(course, range(1))).values()) == [2, 3]


def test_a_steps_questions_need_no_steps_before_it() -> None:
    """A resumed run begins in the middle of a stage."""
    options = {"stage_steps": 7, "prompts": 3, "seed": 5}
    straight = Course(rows(*MIXED), "curriculum", **options)
    expected = [asked(straight, range(step, step + 1)) for step in range(40)]
    for step in (39, 11, 0, 25):
        assert asked(Course(rows(*MIXED), "curriculum", **options), range(step, step + 1)) == expected[step]


def test_empty_groups_are_said_and_left_out() -> None:
    course = Course(rows(0.5, 0.5, 0.1), "curriculum", stage_steps=2, prompts=2, seed=0)
    assert [course.metrics(step)["stage"] for step in range(5)] == [2, 2, 4, 4, 4]
    words = course.describe()
    assert "stage 1 left out: no question has P in [0.64, 1]" in words
    assert "stage 3 left out: no question has P in [0.32, 0.48)" in words and "\n" not in words


def test_difficulty_goes_from_easy_to_hard_in_stages_of_the_same_sizes() -> None:
    shares = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 0.95, 1.0, 1.0]
    made = [dict(r, p=p, potential=4 * p * (1 - p)) for r, p in zip(rows(*MIXED), shares, strict=True)]
    assert [len(group) for group in groups(made)] == [3, 0, 2, 5]
    course = Course(made, "difficulty", stage_steps=10, prompts=1, seed=0)
    assert set(asked(course, range(10))) == {7, 8, 9}  # p of .95, 1 and 1
    assert set(asked(course, range(10, 20))) == {5, 6, 7, 8, 9}
    assert set(asked(course, range(20, 30))) == set(range(10))
    assert [course.metrics(step)["stage"] for step in (0, 10, 20)] == [1, 3, 4]


def test_equally_hard_questions_are_not_taken_in_the_files_order() -> None:
    """The file has the tasks in turn; the first stage must not be the first tasks."""
    alike = rows(*[1.0] * 5, *[0.0] * 5)
    alike = [dict(r, p=1.0) for r in alike]
    first = [set(asked(Course(alike, "difficulty", 5, 1, seed), range(5))) for seed in range(4)]
    assert all(len(each) == 5 for each in first) and len(set(map(frozenset, first))) > 1


def test_without_an_order_all_questions_are_drawn_from_the_start() -> None:
    course = Course(rows(*MIXED), "none", stage_steps=1, prompts=5, seed=0)
    assert sorted(asked(course, range(2))) == list(range(10)) == sorted(asked(course, range(100, 102)))
    assert course.metrics(0) == course.metrics(99) == {"stage": 1, "stage_questions": 10}


def test_ranks_share_the_questions_of_one() -> None:
    course = Course(rows(*MIXED), "curriculum", stage_steps=7, prompts=3, seed=0)
    for step in (3, 12):
        alone = requests(course.problems(step), 2, 0, step, World("cpu"))
        shares = on_ranks(2, lambda world, step=step: requests(course.problems(step), 2, 0, step, world))
        assert {r.group for r in shares[0]} == {0, 2} and {r.group for r in shares[1]} == {1}
        assert sorted(shares[0] + shares[1], key=lambda r: r.key) == alone


# -- files -----------------------------------------------------------------------------------------

LINE = {"task": "toy_add_sum", "index": RL_START, "p": 0.5, "potential": 1.0}


def write(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 2: {; expected a line of training.curriculum"),
        ("[1]", "line 2"),
        ("", "line 2"),
        (json.dumps({k: v for k, v in LINE.items() if k != "p"}), "task, index, p in"),
        (json.dumps(LINE | {"p": 1.5, "potential": -3.0}), "line 2.*p in"),
        (json.dumps(LINE | {"p": "half"}), "line 2.*p in"),
        (json.dumps(LINE | {"p": math.nan}), "line 2.*p in"),
        (json.dumps(LINE | {"potential": 0.9}), "potential = 4p"),
        (json.dumps(LINE | {"index": 100_001.5}), "line 2"),
        (json.dumps(LINE | {"index": RL_START - 1}), "line 2: question 99999 is not for training"),
        (json.dumps(LINE | {"task": "toy_ad_sum"}), "line 2: unknown task toy_ad_sum; did you mean"),
        (json.dumps(LINE | {"task": names("toy", "test")[0]}), "line 2: .* held out"),
        (json.dumps(LINE), "line 2: the question of line 1 again"),
    ],
)
def test_wrong_lines_are_refused_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=words) as error:
        read(str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_missing_and_empty_files_are_refused_and_held_out_tasks_accepted_when_asked_for(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="nowhere.jsonl"):
        read(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(UsageError, match="no questions"):
        read(write(tmp_path / "empty.jsonl", []))
    held_out = [LINE | {"task": names("toy", "test")[0]}]
    assert read(write(tmp_path / "held.jsonl", held_out), test_tasks=True) == held_out


@pytest.mark.parametrize("script", [grpo, ppo])
def test_orders_that_are_none_or_have_no_file_are_refused(script) -> None:
    with pytest.raises(UsageError, match="did you mean difficulty"):
        script.check(script.Config(order="dificulty", curriculum="file.jsonl"))
    with pytest.raises(UsageError, match="--order none without --curriculum"):
        script.check(script.Config(order="none"))


# -- training --------------------------------------------------------------------------------------


def options(script, out: Path, file: str, **changes):
    base = {"steps": 5, "prompts": 2, "group": 2, "lr": 1e-3, "max_prompt": 64, "max_tokens": 8}
    base |= {"sandbox": "none", "log_every": 1, "curriculum": file, "stage_steps": 2}
    base |= {"critic_warmup": 0} if script is ppo else {}
    return script.Config(out=str(out), **{**base, **changes})


def logged(run: Path, name: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def test_a_run_resumed_within_a_stage_equals_an_uninterrupted_one(tmp_path: Path, capsys) -> None:
    file = write(tmp_path / "file.jsonl", rows(1.0, 0.9, 0.8, 0.5, 0.1))
    grpo.train(options(grpo, tmp_path / "straight", file), World("cpu"))
    words = capsys.readouterr().err
    assert words.count("stage 2 from step 3 with 4 questions") == 1 and "stage 3 left out" in words
    grpo.train(options(grpo, tmp_path / "broken", file), StopAfter(3))
    (tmp_path / "broken" / "metrics.jsonl").open("a").write('{"step": 3, "cut')  # a crash in mid-line
    grpo.train(options(grpo, tmp_path / "broken", file, resume=True), World("cpu"))
    a, b = (models.load(tmp_path / name / "final") for name in ("straight", "broken"))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for name in ("metrics.jsonl", "episodes.jsonl"):
        assert logged(tmp_path / "straight", name) == logged(tmp_path / "broken", name)
    metrics = logged(tmp_path / "broken", "metrics.jsonl")
    assert [m["stage"] for m in metrics] == [1, 1, 2, 2, 4]
    assert [m["stage_questions"] for m in metrics] == [3, 3, 4, 4, 5]
    trained = {e["index"] - RL_START for e in logged(tmp_path / "broken", "episodes.jsonl")[:4]}
    assert trained <= {0, 1, 2}, "the first stage's"


def test_a_resumed_run_must_have_the_file_it_began_with(tmp_path: Path) -> None:
    file = write(tmp_path / "file.jsonl", rows(1.0, 0.9))
    grpo.train(options(grpo, tmp_path / "run", file, steps=1), World("cpu"))
    write(tmp_path / "file.jsonl", rows(1.0, 0.8))
    with pytest.raises(UsageError, match="curriculum has changed"):
        grpo.train(options(grpo, tmp_path / "run", file, steps=2, resume=True), World("cpu"))


# -- measuring -------------------------------------------------------------------------------------


def measured(out: Path, **changes) -> curriculum.Config:
    base = {"questions": 4, "samples": 5, "max_tokens": 8, "sandbox": "none", "preload": ""}
    return curriculum.Config(out=str(out), **{**base, **changes})


def measure(cfg: curriculum.Config) -> list[dict]:
    return curriculum.measure(cfg, World("cpu"))


class Killed(Exception):
    """The end of a start that is interrupted."""


@pytest.fixture
def script_answers(monkeypatch, tiny):
    """A function that does as `scripted` says; all measurements of a test have one model and no sandbox."""
    monkeypatch.setattr(curriculum, "open_sandbox", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(curriculum, "load_model", lambda *_: tiny)
    return lambda counts, stop_after=None: scripted(monkeypatch, counts, stop_after)


def scripted(monkeypatch, counts: dict[str, int], stop_after: int | None) -> list[tuple]:
    """In the place of sampling: `counts[way]` of the samples of each question are right. Returns the keys of
    all answers that were asked for; after `stop_after` of them it is Killed."""
    keys: list[tuple] = []

    def rollout(sampler, environment, wanted, on_finish):
        protocol = environment.protocol
        way = next(way for way, name in curriculum.WAYS.items() if protocol is PROTOCOLS[name])
        for request in reversed(list(wanted)):  # episodes end in any order
            if len(keys) == stop_after:
                raise Killed
            keys.append(request.key)
            episode = Episode(request.problem, request.group)
            episode.correct = request.key[-1] < counts[way]
            on_finish(episode)

    monkeypatch.setattr(evaluation, "rollout", rollout)
    return keys


def test_right_answers_of_all_ways_make_p(tmp_path: Path, script_answers) -> None:
    keys = script_answers({"text": 0, "code": 3, "free": 5, "guided": 2})
    rows = measure(measured(tmp_path / "out.jsonl", tasks="toy_add_sum,fact_colour"))
    assert [(r["task"], r["index"]) for r in rows] == [
        ("toy_add_sum", 100_000),
        ("fact_colour", 100_001),
        ("toy_add_sum", 100_002),
        ("fact_colour", 100_003),
    ]
    for r in rows:
        assert r["by_way"] == {"text": 0, "code": 3, "free": 5, "guided": 2}
        assert r["p"] == 0.5 and r["potential"] == 1.0 and r["samples"] == 5
    assert len(keys) == len(set(keys)) == 4 * 4 * 5  # no two answers have the same random numbers
    assert read(str(tmp_path / "out.jsonl")) == rows
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_fewer_ways_count_alone_and_with_the_same_random_numbers(tmp_path: Path, script_answers) -> None:
    counts = {"text": 0, "code": 3, "free": 1, "guided": 2}
    four = script_answers(counts)
    measure(measured(tmp_path / "four.jsonl"))
    two = script_answers(counts)
    rows = measure(measured(tmp_path / "two.jsonl", ways="free, code"))
    assert [r["by_way"] for r in rows] == [{"code": 3, "free": 1}] * 4 and rows[0]["p"] == 0.4
    assert set(two) < set(four) and len(two) == len(four) / 2
    with pytest.raises(UsageError, match="--ways fre; did you mean free"):
        measure(measured(tmp_path / "no.jsonl", ways="text,fre"))
    with pytest.raises(UsageError, match="names none"):
        measure(measured(tmp_path / "no.jsonl", ways=","))


@pytest.mark.parametrize("stops", [(0, 1), (33, 10), (79, 0)])
def test_an_interrupted_measurement_goes_on_and_asks_nothing_twice(
    tmp_path: Path, script_answers, stops: tuple
) -> None:
    counts = {"text": 1, "code": 2, "free": 4, "guided": 3}
    every = script_answers(counts)
    whole = measure(measured(tmp_path / "whole.jsonl"))
    parts = []
    for stop_after in stops:
        parts += [script_answers(counts, stop_after)]
        with pytest.raises(Killed):
            measure(measured(tmp_path / "broken.jsonl"))
        assert not (tmp_path / "broken.jsonl").exists()
        with open(tmp_path / "broken.jsonl.part", "a") as part:
            part.write('{"way": "text", "ind')  # and killed in the middle of a line
    parts += [script_answers(counts)]
    assert measure(measured(tmp_path / "broken.jsonl", slots=3)) == whole
    assert [len(keys) for keys in parts[:2]] == list(stops) and sorted(sum(parts, [])) == sorted(every)
    assert (tmp_path / "broken.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not (tmp_path / "broken.jsonl.part").exists()


def test_an_interrupted_measurement_goes_on_with_its_own_options_only(tmp_path: Path, script_answers) -> None:
    script_answers(dict.fromkeys(curriculum.WAYS, 1), stop_after=6)
    cfg = measured(tmp_path / "out.jsonl")
    with pytest.raises(Killed):
        measure(cfg)
    part = tmp_path / "out.jsonl.part"
    before = part.read_bytes()
    with pytest.raises(UsageError, match="--temperature is 0.5, was 1.0"):
        measure(measured(tmp_path / "out.jsonl", temperature=0.5))
    assert part.read_bytes() == before
    part.write_text(part.read_text() + "{}\n")
    with pytest.raises(UsageError, match="remove it"):
        measure(cfg)
    part.rename(tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="exists"):
        measure(cfg)


def test_questions_are_for_training_and_no_two_alike(tmp_path: Path) -> None:
    """A file of two questions gives two, however many are asked for; a task named twice is asked twice."""
    file = tmp_path / "two.jsonl"
    write(file, [{"question": "1 + 1?", "answer": "2"}, {"question": "1 + 2?", "answer": "3"}])
    assert [p.question for p in questions([str(file)], 5)] == ["1 + 1?", "1 + 2?"]
    found = questions(["toy_add_sum", "fact_colour", "fact_colour"], 30)
    assert len({p.question for p in found}) == 30 == len({p.index for p in found})
    assert min(p.index for p in found) == RL_START
    assert Counter(p.task for p in found)["fact_colour"] > Counter(p.task for p in found)["toy_add_sum"]


def test_the_command_measures_and_the_file_trains(tmp_path: Path, monkeypatch, capsys) -> None:
    """For real, with random weights: they solve nothing, so all questions are in the last group."""
    out = tmp_path / "out.jsonl"
    words = "curriculum.py --tasks toy --questions 3 --samples 1 --max-tokens 12 --sandbox none --out"
    monkeypatch.setattr("sys.argv", [*words.split(), str(out)])
    curriculum.main()
    assert "stage 4:      3 questions with P in [0, 0.32)" in capsys.readouterr().out
    assert [r["p"] for r in read(str(out))] == [0.0] * 3
    grpo.train(options(grpo, tmp_path / "run", str(out), steps=1), World("cpu"))
    assert logged(tmp_path / "run", "metrics.jsonl")[0]["stage"] == 4
    assert config.read_found(tmp_path / "run" / "config.json")["sandbox"]
