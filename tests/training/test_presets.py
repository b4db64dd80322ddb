"""Every preset of every command makes one step of the smallest model, with the sizes typed beside it."""

import json
from pathlib import Path

import pytest
import torch

import evaluate
import grpo
import ppo
import sft
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from training import curriculum, evaluation, papers
from training.course import Course
from training.reinforcement import check_objective
from training.steps import warmed

torch.set_num_threads(1)

SMALL = ["--model", "tiny", "--device", "cpu", "--tasks", "toy_add_sum,fact_colour", "--sandbox", "none"]
SMALL += ["--preload", ""]
SIZES = ["--prompts", "2", "--max-prompt", "200", "--max-tokens", "12", "--steps", "1", "--slots", "8"]
SAMPLED = ["--max-tokens", "8", "--questions", "2", "--slots", "64"]


def parsed(module, presets: dict, *argv: str):
    return config.parse(module.Config, argv=[*argv, *SMALL], presets=presets)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["r1ci", "retool"])
@pytest.mark.parametrize("script", [grpo, ppo], ids=["grpo", "ppo"])
def test_a_step_of_each_preset(script, name: str, tmp_path: Path) -> None:
    cfg = parsed(script, script.PRESETS, "--preset", name, *SIZES, "--out", str(tmp_path / "run"))
    script.train(cfg, World("cpu"))
    (line,) = metrics(tmp_path / "run")
    assert (cfg.protocol, cfg.reward, cfg.max_calls) == (name, name, 8) and "reward" in line


@pytest.mark.parametrize("name, epochs", [("r1ci", 3), ("retool", 2)])
def test_a_step_of_each_preset_of_sft(name: str, epochs: int, tmp_path: Path) -> None:
    argv = ["--preset", name, "--steps", "1", "--per-task", "1", "--out", str(tmp_path / "run")]
    cfg = parsed(sft, sft.PRESETS, *argv)
    sft.train(cfg, World("cpu"))
    assert cfg.epochs == epochs and len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("name, tokens, samples", [("r1ci", 8192, 1), ("retool", 16384, 32)])
def test_each_preset_evaluates(name: str, tokens: int, samples: int) -> None:
    cfg = parsed(evaluate, papers.EVALUATION, "--preset", name)
    assert (cfg.max_tokens, cfg.samples, cfg.max_calls) == (tokens, samples, 8) and cfg.timeout >= 30
    found = evaluate.run(parsed(evaluate, papers.EVALUATION, "--preset", name, *SAMPLED), World())
    assert [len(q["correct"]) for q in found["questions"]] == [samples] * 2


def test_the_preset_measures_a_curriculum_that_training_takes_to_stage_4(tmp_path: Path, monkeypatch) -> None:
    """Each of a question's five samples has its own temperature, in every way of answering."""
    heat = []
    monkeypatch.setattr(evaluation, "rollout", _noting(evaluation.rollout, heat))
    argv = ["--preset", "r1ci", *SAMPLED, "--out", str(tmp_path / "c.jsonl")]
    rows = curriculum.measure(parsed(curriculum, papers.CURRICULUM, *argv), World())
    assert [r["samples"] for r in rows] == [5, 5]
    assert sorted(heat) == sorted([(t, {i}) for i, t in enumerate([0.2, 0.4, 0.6, 0.8, 1.0])] * 4)
    values = [0.9, 0.5, 0.4, 0.1]
    many = [dict(rows[0], index=100_000 + i, potential=p) for i, p in enumerate(values * 2)]
    argv = ["--preset", "r1ci", "--curriculum", "c.jsonl"]
    for order in ("curriculum", "equal"):
        cfg = parsed(grpo, grpo.PRESETS, *argv, "--order", order)
        check_objective(cfg)
        course = Course(many, cfg.order, cfg.stage_steps, cfg.prompts, cfg.seed)
        stages = [course.metrics(step)["stage"] for step in range(cfg.steps)]
        assert stages == [1] * 150 + [2] * 150 + [3] * 150 + [4] * 150
    lopsided = [dict(r, potential=0.0) for r in many[:6]]
    course = Course(lopsided, "equal", 1, 1, 0)
    assert [len(stage.questions) for stage in course.stages] == [2, 4, 5, 6]


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("--temperature 0", "--temperature 0.0: samples must differ"),
        ("--temperatures 0.5,x", "--temperatures 0.5,x: samples must differ"),
        ("--temperatures 0.5,0", "numbers above 0"),
        ("--preset r1ci --temperature 0.5", "--temperature 0.5 beside --temperatures 0.2,0.4"),
    ],
)
def test_temperatures_that_cannot_be_meant_are_refused(typed: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        curriculum.temperatures(parsed(curriculum, papers.CURRICULUM, *typed.split()))


def _noting(rollout, heat: list):
    """rollout(), which notes its sampler's temperature and the samples that are asked."""

    def noting(sampler, environment, wanted, **options):
        wanted = list(wanted)
        heat.append((sampler.temperature, {request.key[-1] for request in wanted}))
        return rollout(sampler, environment, wanted, **options)

    return noting


# -- warm-up ---------------------------------------------------------------------------------------


def test_warm_up_by_hand() -> None:
    assert [warmed(8.0, step, 4) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert warmed(8.0, 0, 0) == 8.0


@pytest.mark.parametrize("script", [grpo, ppo], ids=["grpo", "ppo"])
def test_a_warm_up_goes_on_where_the_run_was_stopped(script, tmp_path: Path) -> None:
    """The rate follows from the step: the weights are bit by bit those of a run that was never stopped. The
    actor of PPO warms up after its critic."""
    argv = [*SIZES, "--lr", "1e-3", "--warmup", "3", "--group", "2", "--save-every", "1", "--timeout", "1"]
    argv += ["--critic-warmup", "1"] if script is ppo else []

    def run(folder: str, steps: str, *more: str) -> Path:
        out = tmp_path / folder
        script.train(
            parsed(script, script.PRESETS, *argv, "--steps", steps, "--out", str(out), *more), World("cpu")
        )
        return out

    whole, parts = run("whole", "4"), run("parts", "2")
    run("parts", "4", "--resume")
    rates = [1e-3 * share for share in ((0, 1 / 3, 2 / 3, 1) if script is ppo else (1 / 3, 2 / 3, 1, 1))]
    for folder in (whole, parts):
        assert [m["lr"] for m in metrics(folder)] == pytest.approx(rates)
        if folder is parts:
            file = "final/model.safetensors"
            assert (whole / file).read_bytes() == (parts / file).read_bytes()
