"""Accuracy tables: pass@k against brute force, and that evaluation is clean."""

import itertools
import json
import sys
from pathlib import Path

import pytest
import torch

import checkpoint
import config
import demo
import evaluate
import plot
from config import UsageError
from distributed import World
from evaluate import pass_at_k
from rollout import Episode
from sandbox import Sandbox
from tasks import Problem, names

torch.set_num_threads(1)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_against_all_subsets(n: int) -> None:
    for c in range(n + 1):
        answers = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(itertools.combinations(answers, k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("n, c, k", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"n={n}"):
        pass_at_k(n, c, k)


def test_summary_by_hand() -> None:
    """Three questions, two samples each, with 2, 1 and 0 right."""
    right = [True, True, True, False, False, False]
    rows = [Episode(Problem("toy", i, "?", 0), i // 2, correct=r, finish="stop") for i, r in enumerate(right)]
    row = evaluate.summary(rows, samples=2)
    assert row["episodes"] == 6 and row["accuracy"] == 0.5
    assert row["pass_at_k"] == pytest.approx(2 / 3)
    assert row["stderr"] == pytest.approx((0.25 / 3) ** 0.5)  # variance of 1, .5, 0 is .25


def test_same_answers_with_other_slots_and_greedy_twice() -> None:
    model, tokenizer = checkpoint.load_model("tiny", World("cpu"), "float32")
    asked = evaluate.questions(names("toy", "test"), 5)
    options = {"max_prompt": 64, "max_tokens": 24, "samples": 2, "protocol": "code"}
    with Sandbox(require="none") as sandbox:
        runs = [
            evaluate.answer(model, tokenizer, asked, evaluate.Config(slots=slots, **options), sandbox)
            for slots in (2, 10)
        ]
    assert [e.tokens for e in runs[0]] == [e.tokens for e in runs[1]]
    assert [e.problem for e in runs[0]] == [p for p in asked for _ in range(2)]


def test_the_script_writes_its_table_once(tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "table.json"
    argv = ["evaluate.py", "--tasks", "facts", "--questions", "3", "--max-tokens", "8", "--sandbox", "none"]
    monkeypatch.setattr(sys, "argv", [*argv, "--out", str(out)])
    config.run(evaluate.main)
    rows = json.loads(out.read_text())["rows"]
    assert rows["all"]["episodes"] == 3 and "avg@1" in capsys.readouterr().out
    with pytest.raises(SystemExit) as leave:
        config.run(evaluate.main)
    assert leave.value.code == 2 and "exists" in capsys.readouterr().err


# -- the demo --------------------------------------------------------------------------------------


def test_the_demos_questions_are_new_and_the_check_can_fail(tmp_path: Path) -> None:
    cfg = demo.Config(out=str(tmp_path), base_examples=300, grpo_steps=2, sandbox="none")
    with Sandbox(require="none", quiet=True) as sandbox:
        demo.write_data(cfg, tmp_path, sandbox)
    asked = demo.evaluation_questions()
    assert sum(map(len, asked.values())) >= 1000
    assert {p.task for p in asked["seen_tasks"]} == set(names("toy", "train"))
    assert {p.task for p in asked["unseen_tasks"]} == set(names("toy", "test"))
    assert "none of the" in demo.check_disjoint(cfg, tmp_path, asked)
    leaked = {**asked, "unseen_tasks": asked["unseen_tasks"][:-1]}
    line = json.loads((tmp_path / "sft.jsonl").read_text().splitlines()[0])
    question = line["messages"][0]["content"]
    leaked["unseen_tasks"].append(Problem(line["task"], 0, question, 0))
    with pytest.raises(RuntimeError, match="not clean"):
        demo.check_disjoint(cfg, tmp_path, leaked)


def test_the_mixture_has_every_habit_in_its_share() -> None:
    drafts = list(demo.mixture(4000, seed=0))
    assert abs(sum(d.protocol == "text" for d in drafts) / 4000 - demo.MIXTURE["text"]) < 0.02
    assert abs(sum(d.problem.task.startswith("fact_") for d in drafts) / 4000 - demo.MIXTURE["fact"]) < 0.02
    assert abs(sum(len(d.programs) == 2 for d in drafts) / 4000 - demo.MIXTURE["repair"]) < 0.02
    assert sum(demo.MIXTURE.values()) == pytest.approx(1.0)
    assert {d.problem.task for d in drafts} == set(names("toy", "train") + names("facts"))


def test_plot_draws_and_refuses_an_empty_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots are an extra")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UsageError, match="no metrics"):
        plot.draw([run], tmp_path / "x.png")
    lines = [{"step": s, "reward": s / 3, "accuracy": 0.5, "entropy": 0.1} for s in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    picture = plot.draw([run], tmp_path / "deep" / "x.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
