"""SIGTERM in a step: it is dropped, and a resumed run ends with the bits of an undisturbed one.

Oracle: the undisturbed run.
"""

import signal
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import SMALL, Answers, Pieces

import grpo
import model as models
import ppo
import sft
from plumbing import shards
from plumbing.config import UsageError
from plumbing.ranks import World
from rollout import Environment, _Loop
from tasks import PROTOCOLS
from training.loading import load_model

torch.set_num_threads(1)


class StopAt(World):
    """A world that gets SIGTERM before its n-th look."""

    def __init__(self, left: int):
        super().__init__("cpu")
        self.left = left

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)

    def look(self) -> None:
        self.count()
        super().look()

    def look_alone(self) -> None:
        self.count()
        super().look_alone()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "small"
    _, tokenizer = load_model("tiny", World("cpu"), "float32")
    models.save(models.Qwen(replace(SMALL, vocab_size=896)).init_weights(0), folder, tokenizer)
    return str(folder)


COMMON = {"steps": 4, "seed": 0, "lr": 1e-3, "sandbox": "none", "save_every": 10, "preload": ""}
SAMPLING = {
    "prompts": 2,
    "group": 2,
    "max_prompt": 160,
    "max_tokens": 12,
    "entropy_coef": 0.1,
    "overlong_buffer": 8,
}
SAMPLING |= {"micro_tokens": 200, "protocol": "code"}
HELD = {"validation_share": 0.2, "validate_every": 2}
RUNS = {
    "sft": (sft, sft.Config(**COMMON, **HELD, tasks="toy_add_sum", batch=4, micro_tokens=200, per_task=12)),
    "grpo": (grpo, grpo.Config(**COMMON, **SAMPLING, updates=2)),
    "ppo": (ppo, ppo.Config(**COMMON, **SAMPLING, critic_warmup=1)),
}


def weights(out: Path) -> bytes:
    return (out / "final" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_a_dropped_step_leaves_the_weights_after_the_last_one(small: str, tmp_path: Path, name: str) -> None:
    script, cfg = RUNS[name]
    cfg = replace(cfg, model=small, resume=True)
    straight, counting = tmp_path / "straight", StopAt(0)
    with counting as world:
        script.train(replace(cfg, out=str(straight)), world)
    looks = -counting.left
    for moment in (looks // 2 + 1, looks):
        out = tmp_path / f"stopped at {moment}"
        stopped = StopAt(moment)
        with pytest.raises(SystemExit) as ended, stopped as world:
            script.train(replace(cfg, out=str(out)), world)
            raise SystemExit(0)  # the signal came in the last thing of a step, which is then done
        assert ended.value.code == 0 and not (out / "final").exists()
        saved = [int(folder.name[5:]) for folder in shards.steps(out)]
        logged = (
            len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0
        )
        assert max(saved, default=0) == logged < 4 or name == "sft"
        with World("cpu") as world:
            script.train(replace(cfg, out=str(out)), world)
        assert weights(out) == weights(straight), moment


@pytest.mark.parametrize("name", RUNS)
def test_what_is_saved_is_said(small: str, tmp_path: Path, capsys, name: str) -> None:
    script, cfg = RUNS[name]
    with pytest.raises(SystemExit), StopAt(1) as world:
        script.train(replace(cfg, model=small, out=str(tmp_path / "run")), world)
    assert "no step is finished, nothing is saved" in capsys.readouterr().err
    assert not shards.steps(tmp_path / "run")


def test_a_run_refused_before_its_first_step_leaves_no_folder(small: str, tmp_path: Path) -> None:
    script, cfg = RUNS["grpo"]
    out = tmp_path / "runs" / "one"
    with pytest.raises(UsageError, match="max_position_embeddings"), World("cpu") as world:
        script.train(replace(cfg, model=small, out=str(out), max_tokens=10**6), world)
    assert not list(tmp_path.iterdir())
    out.mkdir(parents=True)
    (out / "notes").write_text("mine")
    with pytest.raises(UsageError, match="exists"), World("cpu") as world:
        script.train(replace(cfg, model=small, out=str(out)), world)
    assert (out / "notes").read_text() == "mine"


def test_ctrl_c_ends_after_the_step_and_sigterm_before_the_first_at_once() -> None:
    with World("cpu") as world:
        world.rescue = lambda: None
        signal.raise_signal(signal.SIGINT)
        world.look()
        assert world.should_stop()
    with pytest.raises(SystemExit) as ended, World("cpu"):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
    assert ended.value.code == 0


def test_sigterm_reaches_a_rollout_that_waits_for_programs() -> None:
    """A program may run for a minute, longer than torchrun waits."""
    with pytest.raises(SystemExit), World("cpu") as world:
        world.rescue = lambda: None
        loop = _Loop(None, Environment(Pieces(), PROTOCOLS["r1ci"], Answers()), None, None, world.look_alone)
        loop.programs = {Future(): 0}
        signal.raise_signal(signal.SIGTERM)
        loop.ended(wait=True)
