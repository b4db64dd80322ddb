"""The demo on a real model: its stages, and the whole of it on a small one."""

import dataclasses
import json
from pathlib import Path

import pytest

import demo
import model as models
from analysis import real
from analysis.stages import Stage, minutes_left, run_stages
from plumbing.config import UsageError
from tasks import names

COUNTED = ("data", "base_text_unseen", "base_unseen", "base_unseen_greedy", "sft", "sft_unseen")
COUNTED += ("sft_unseen_greedy", "sft_seen", "grpo", "grpo_unseen", "grpo_unseen_greedy", "grpo_seen")


def stage(name: str, folder: Path, ran: list, minutes: float = 1.0, fails: bool = False) -> Stage:
    def run(options, world) -> None:
        ran.append(name)
        if fails:
            raise UsageError("the disk is full")
        (folder / name).write_text("")

    return Stage(name, "does it", minutes, "sft", run, demo.Config(), folder / name)


def test_finished_stages_are_not_run_again(tmp_path: Path, capsys) -> None:
    ran: list[str] = []
    with pytest.raises(UsageError):
        run_stages([stage("a", tmp_path, ran), stage("b", tmp_path, ran, fails=True)], tmp_path)
    seconds = run_stages([stage("a", tmp_path, ran), stage("b", tmp_path, ran)], tmp_path)
    assert ran == ["a", "b", "b"]
    assert list(seconds) == ["a", "b"]
    assert json.loads((tmp_path / "seconds.json").read_text()) == seconds
    assert "b: does it; this and what follows: about 0 minutes" in capsys.readouterr().out


def test_the_time_left_by_hand(tmp_path: Path) -> None:
    stages = [stage(name, tmp_path, [], minutes) for name, minutes in (("a", 2.0), ("b", 3.0), ("c", 5.0))]
    assert minutes_left(stages, {}) == 10
    (tmp_path / "a").write_text("")
    assert minutes_left(stages, {"a": 240.0}) == 16  # four minutes in place of two: the other eight take 16


def test_all_stages_stand_in_their_order_and_ask_what_was_not_trained_on(tmp_path: Path) -> None:
    stages = {s.name: s.options for s in real.stages(demo.Config(model="DIR"), tmp_path)}
    assert tuple(stages) == COUNTED
    again = real.stages(demo.Config(model="DIR", sandbox_url="http://localhost:1"), tmp_path)
    assert {s.options.sandbox_url for s in again} == {"http://localhost:1"}
    assert {s.options.preload for s in again} == {"numpy,sympy"}
    assert stages["sft_unseen"].questions == 680
    for name, options in stages.items():
        if hasattr(options, "questions"):
            tasks = [t for suite in real.TASKS.split(",") for t in names(suite, options.split)]
            # coldstart.py compares its questions with the first `evaluation` of a task
            assert options.questions / len(tasks) <= stages["data"].evaluation, name
            assert options.max_tokens == stages["grpo"].max_tokens


def test_the_whole_of_it_on_a_small_model(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    model, tokenizer = tiny
    models.save(model, tmp_path / "model", tokenizer)
    monkeypatch.setattr(real, "TASKS", "toy")
    monkeypatch.setattr(real, "TOKENS", 24)
    monkeypatch.setattr(real, "device", lambda: "cpu")
    monkeypatch.setitem(real.SIZES, "cpu", dataclasses.replace(real.SIZES["cpu"], prompts=2))
    folder = tmp_path / "run"
    command = f"demo.py --model {tmp_path / 'model'} --out {folder} --questions 34 --sft-examples 8"
    monkeypatch.setattr("sys.argv", [*command.split(), "--grpo-steps", "1", "--sandbox", "none"])
    demo.main()
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["stages"]) == [name for name in COUNTED if name not in ("data", "sft", "grpo")]
    assert set(summary["seconds"]) == set(COUNTED)
    for row in summary["stages"].values():
        assert row["accuracy"] == 0 and row["truncated"] > 0.5  # random weights
    asked = [json.loads((folder / f"{name}_unseen.json").read_text()) for name in ("base", "sft", "grpo")]
    assert len({tuple(q["digest"] for q in found["questions"]) for found in asked}) == 1
    assert all(len(q["texts"]) == 1 for q in asked[0]["questions"])
    out = capsys.readouterr().out
    assert "grpo.py" in out and "grpo_unseen" in out
    monkeypatch.setattr("sys.argv", [*command.split(), "--grpo-steps", "1", "--sandbox", "none", "--resume"])
    demo.main()
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_questions_that_rl_turned_are_shown(tmp_path: Path) -> None:
    def line(task: str, right: bool, text: str) -> dict:
        return {"task": task, "index": 3, "correct": [right], "texts": [text]}

    before = [line("a", False, "1"), line("a", False, "2"), line("b", True, "3"), line("c", False, "4")]
    after = [line("a", True, "5"), line("a", True, "6"), line("b", True, "7"), line("c", False, "8")]
    for name, questions in (("sft", before), ("grpo", after)):
        (tmp_path / f"{name}_unseen.json").write_text(json.dumps({"questions": questions}))
    ((task, told),) = real.changed(tmp_path)
    assert task == "a" and (told["after SFT"]["texts"], told["after GRPO"]["texts"]) == (["1"], ["5"])


def test_options_of_the_other_demo_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--base-steps: has no effect with --model"):
        demo.check(demo.Config(model="DIR", base_steps=3), tmp_path / "new")
    with pytest.raises(UsageError, match="at most 107, one of each training task"):
        demo.check(demo.Config(sft_examples=108), tmp_path / "new")
    with pytest.raises(UsageError, match="--questions: has no effect without --model"):
        demo.check(demo.Config(questions=40), tmp_path / "new")
    with pytest.raises(UsageError, match="--preload: has no effect with --model"):
        demo.check(demo.Config(model="DIR", preload="math"), tmp_path / "new")


def test_a_wrong_model_is_refused_before_there_is_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", "--model", "nowhere", "--out", str(tmp_path / "run")])
    with pytest.raises(UsageError, match="--model nowhere: no such folder"):
        demo.main()
    assert not (tmp_path / "run").exists()


def test_every_stage_has_the_sandbox_that_was_asked_for(tmp_path: Path) -> None:
    cfg = demo.Config(sandbox="none", workers=3, memory_mb=99, preload="math", sandbox_url="http://a:1")
    for _, options in demo.stages(cfg, tmp_path).values():
        found = options.sandbox, options.workers, options.memory_mb, options.preload, options.sandbox_url
        assert found == ("none", 3, 99, "math", "http://a:1")
