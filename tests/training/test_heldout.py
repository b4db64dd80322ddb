"""Evaluation during training: the same lines on one rank and two, after a resume, and after SIGTERM.

Oracle: one rank that nobody has disturbed; evaluate.py on the final model.
"""

import contextlib
import dataclasses
import functools
import json
import signal
from pathlib import Path

import pytest
import torch
from fakes import SMALL, StopAfter
from ranks import on_processes

import grpo
import model as models
import ppo
from episode import Episode
from plumbing import shards
from plumbing.config import UsageError
from plumbing.ranks import World
from tasks import SFT_START, get, names, select
from tasks.math import load as get_file
from training import heldout
from training.loading import load_model

torch.set_num_threads(1)

SHORT = {"steps": 3, "prompts": 2, "group": 2, "lr": 1e-3, "max_prompt": 160, "max_tokens": 8, "seed": 0}
SHORT |= {"sandbox": "none", "preload": "", "tasks": "toy", "save_every": 1, "protocol": "text"}
SHORT |= {"eval_every": 2, "eval_questions": 15, "eval_temperature": 1.0}
SCRIPTS = {
    "grpo": (grpo, grpo.Config(**SHORT)),
    "ppo": (ppo, ppo.Config(**SHORT, critic_warmup=1)),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    _, tokenizer = load_model("tiny", World("cpu"), "float32")
    models.save(models.Qwen(dataclasses.replace(SMALL, vocab_size=896)).init_weights(0), folder, tokenizer)
    return str(folder)


def by_tokens(episode: Episode) -> Episode:
    """In the place of a grader: right where 3 divides the sum of the sampled tokens."""
    episode.correct = sum(episode.policy_tokens) % 3 == 0
    return episode


def train(name: str, world: World, **changes) -> None:
    """A run whose held-out answers are graded by their tokens; the reward is the tasks' own."""
    script, cfg = SCRIPTS[name]
    kept = heldout.rollout

    def rollout(*args, between, **options) -> list[Episode]:
        return [by_tokens(e) for e in kept(*args, between=getattr(world, "measure", between), **options)]

    heldout.rollout = rollout
    try:
        script.train(dataclasses.replace(cfg, **changes), world)
    finally:
        heldout.rollout = kept


def train_on_this_rank(name: str, **changes) -> None:
    with World("cpu", 60.0) as world:
        train(name, world, **changes)


def accuracies(out: Path) -> list[tuple]:
    """(step, accuracy_seen, accuracy_unseen) of every line that has them."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "accuracy_seen", "accuracy_unseen")
    return [tuple(line[k] for k in keys) for line in lines if "accuracy_seen" in line]


@pytest.mark.parametrize("name", SCRIPTS)
def test_ranks_and_resumed_runs_log_the_lines_of_one(name: str, small: str, tmp_path: Path) -> None:
    """Before the first step, every second step, and at the end. A run that is killed in its first step begins
    again, with one line for step 0."""
    one, two, broken = (tmp_path / folder for folder in ("one", "two", "broken"))
    train(name, World("cpu"), model=small, out=str(one))
    want = accuracies(one)
    assert [step for step, *_ in want] == [0, 2, 3]
    assert len({x for _, *found in want for x in found}) > 1, "they measure something"
    on_processes(2, functools.partial(train_on_this_rank, name, model=small, out=str(two)))
    assert accuracies(two) == want
    broken.mkdir()
    (broken / "config.json").write_text((one / "config.json").read_text().replace(str(one), str(broken)))
    (broken / "metrics.jsonl").write_text(json.dumps({"step": 0, "accuracy_seen": 9, "accuracy_unseen": 9}))
    train(name, StopAfter(2), model=small, out=str(broken), resume=True)
    assert accuracies(broken) == want[:2]
    train(name, World("cpu"), model=small, out=str(broken), resume=True)
    assert accuracies(broken) == want


class StopAt(World):
    """A world that gets SIGTERM when held-out answers are sampled for the n-th time."""

    def __init__(self, left: int):
        super().__init__("cpu")
        self.left = left

    def measure(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        self.look_alone()


def test_sigterm_while_it_measures_keeps_the_step_that_is_done(small: str, tmp_path: Path) -> None:
    """Its weights are those after the step, not saved as those before it: the end has the same bits."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    counting = StopAt(0)
    with counting as world:
        train("grpo", world, model=small, out=str(straight), save_every=10)
    with StopAt(-counting.left) as world:
        train("grpo", world, model=small, out=str(stopped), save_every=10)
    assert shards.steps(stopped)[-1].name == "step-000003" and not (stopped / "final").exists()
    train("grpo", World("cpu"), model=small, out=str(stopped), save_every=10, resume=True)
    a, b = ((out / "final" / "model.safetensors").read_bytes() for out in (straight, stopped))
    assert a == b


def test_seen_and_unseen_questions_are_the_evaluations(tiny) -> None:
    """Of the tasks that are trained on, and of the others of their suites."""
    from training.reinforcement import make_environment

    cfg = grpo.Config(**SHORT | {"eval_questions": 50})
    environment = make_environment(cfg, cfg, tiny[1], None)
    held = heldout.HeldOut(cfg, select("toy", "train"), environment, None, World("cpu"))
    assert {p.task for p in held.asked["seen"]} <= set(names("toy", "train"))
    assert {p.task for p in held.asked["unseen"]} <= set(names("toy", "test"))
    assert all(len(problems) == 50 for problems in held.asked.values())
    assert max(p.index for problems in held.asked.values() for p in problems) < SFT_START
    assert [done for done in range(1, 4) if held.due(done)] == [2, 3]
    one = dataclasses.replace(cfg, eval_tasks="toy_add_sum")
    assert set(heldout.HeldOut(one, ["toy_add_sum"], environment, None, World("cpu")).asked) == {"seen"}


def test_held_out_questions_that_training_asks_are_refused(small: str, tmp_path: Path) -> None:
    """A file of questions has no split. The tasks of a curriculum are those that it trains on."""
    file, other = tmp_path / "questions.jsonl", tmp_path / "other.jsonl"
    rows = [{"question": f"Which number is {i}?", "answer": str(i)} for i in range(20)]
    for path, some in ((file, rows[:10]), (other, rows[10:])):
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    course = tmp_path / "curriculum.jsonl"
    row = {"task": str(file), "index": 100_000, "p": 0.5, "potential": 1.0, "samples": 2, "by_way": {}}
    course.write_text(json.dumps(row) + "\n")
    out = {"model": small, "steps": 1, "out": str(tmp_path / "run")}
    for given in ({"tasks": str(file)}, {"curriculum": str(course)}, {"tasks": f"toy,{file}"}):
        with pytest.raises(UsageError, match="questions.jsonl is trained on, and a file holds no questions"):
            train_on_this_rank("grpo", **out, **given)
    with pytest.raises(UsageError, match="--eval-tasks: unknown task or suite toys"):
        train_on_this_rank("grpo", **out, eval_tasks="toys")
    train_on_this_rank("grpo", **out, curriculum=str(course), eval_tasks=f"toy_add_sum,{other}")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all("accuracy_unseen" in line and "accuracy_seen" not in line for line in lines)
    other.write_text(other.read_text().replace("Which", "What"))
    get_file.cache_clear()
    with pytest.raises(UsageError, match="held_out has changed since"):
        train(
            "grpo",
            World("cpu"),
            **out | {"steps": 2, "resume": True},
            curriculum=str(course),
            eval_tasks=f"toy_add_sum,{other}",
        )


def test_accuracy_is_right_answers_over_questions(monkeypatch) -> None:
    """By hand: of four questions of a seen task three are answered right, of two unseen ones one."""
    asked = {"seen": [get("toy_add_sum").problem(i) for i in range(4)]}
    asked["unseen"] = [get("toy_add_mean").problem(i) for i in range(2)]
    right = {"seen": (True, True, False, True), "unseen": (False, True)}
    answers = iter(right.values())

    def rollout(sampler, environment, requests, between) -> list[Episode]:
        return [Episode(r.problem, r.group, correct=c) for r, c in zip(requests, next(answers), strict=True)]

    monkeypatch.setattr(heldout, "rollout", rollout)
    measured = object.__new__(heldout.HeldOut)
    measured.asked, measured.environment, measured.world = asked, None, World("cpu")
    measured.cfg = grpo.Config(**SHORT)
    measured.sampling = lambda rows, temperature: contextlib.nullcontext()
    assert measured.measure() == {"accuracy_seen": 0.75, "accuracy_unseen": 0.5}
