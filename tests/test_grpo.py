"""GRPO: advantages by hand, the update against a brute-force loop, and the script stopped and resumed."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import pytest
import torch

import checkpoint
import grpo
from config import UsageError
from distributed import World
from grpo import group_advantages
from model import TINY, Qwen
from rollout import Episode, collate
from tasks import Problem
from tokenizer import Source

torch.set_num_threads(1)
SMALL = dataclasses.replace(TINY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=50)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


# -- advantages ------------------------------------------------------------------------------------


def test_advantages_by_hand() -> None:
    rewards, groups = tensor(1, 0, 0, 1, 2, 6), torch.tensor([5, 5, 5, 9, 9, 9])
    first, second = [1.0, 0.0, 0.0], [1.0, 2.0, 6.0]
    want = []
    for r in (first, second):
        mean, std = statistics.fmean(r), statistics.stdev(r)
        want += [(x - mean) / (std + 1e-6) for x in r]
    assert group_advantages(rewards, groups).tolist() == pytest.approx(want, abs=1e-6)
    centred = [2 / 3, -1 / 3, -1 / 3, -2, -1, 3]
    assert group_advantages(rewards, groups, scale_std=False).tolist() == pytest.approx(centred, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("eps", [1e-6, 1e-9])
def test_equal_rewards_give_exactly_zero(value: float, size: int, eps: float) -> None:
    """Seven rewards of 0.1 have a mean that is not 0.1: with eps alone their advantage would be 0.0074."""
    rewards = torch.full((size,), value)
    assert group_advantages(rewards, torch.zeros(size, dtype=torch.long), eps=eps).tolist() == [0.0] * size


def test_order_of_episodes_and_a_constant_change_nothing() -> None:
    torch.manual_seed(0)
    rewards, groups = torch.rand(24), torch.arange(24) % 4
    want = group_advantages(rewards, groups)
    order = torch.randperm(24)
    torch.testing.assert_close(group_advantages(rewards[order], groups[order]), want[order])
    torch.testing.assert_close(group_advantages(rewards + 3, groups), want, atol=1e-4, rtol=1e-4)


def test_a_failed_grader_is_left_out_of_its_group() -> None:
    rewards, groups = tensor(1, 0, math.nan, 1, math.nan), torch.tensor([0, 0, 0, 1, 1])
    got = group_advantages(rewards, groups)
    assert got[2:].tolist() == [0.0, 0.0, 0.0]
    assert got[:2].tolist() == pytest.approx(group_advantages(tensor(1, 0), torch.zeros(2)).tolist())


# -- one update ------------------------------------------------------------------------------------


def episodes(count: int = 7) -> list[Episode]:
    """Random episodes with a tool segment in the middle, of very different lengths."""
    torch.manual_seed(1)
    found = []
    for i in range(count):
        e = Episode(Problem("toy", i, "?", 0), group=i // 4, reward=float(i % 3 == 0), finish="stop")
        for source, size in ((0, 4), (1, 3 + 2 * i), (2, i), (1, 2)):
            e.append(
                torch.randint(0, 50, (size,)).tolist(), Source(source), [-1.0] * size if source == 1 else None
            )
        found.append(e)
    return found


def run_update(
    model: Qwen, optimizer: torch.optim.Optimizer, rows: list[Episode], cfg: grpo.Config, world=None
) -> dict:
    """One rollout batch, as train() does it; the reference is another model."""
    batch, world = collate(rows), world or World("cpu")
    reference = Qwen(SMALL).init_weights(4) if cfg.kl_coef else None
    data = grpo.prepare(model, reference, batch, grpo.loss_mask(batch, rows, cfg), cfg, world)
    return grpo.update(model, optimizer, data, batch.lengths, cfg, world)


def gradients(cfg: grpo.Config, rows: list[Episode]) -> dict[str, torch.Tensor]:
    """The gradient of one update: caught where the optimiser would use it."""
    model = Qwen(SMALL).init_weights(3)
    caught = {}

    class Catch(torch.optim.SGD):
        def step(self, closure=None) -> None:
            caught.update({n: p.grad.clone() for n, p in model.named_parameters()})

    run_update(model, Catch(model.parameters(), lr=0.0), rows, cfg)
    return caught


def test_gradient_is_reinforce_with_the_groups_mean_as_baseline() -> None:
    """A plain loop, one episode and one token at a time, over the full softmax."""
    rows = episodes()
    got = gradients(grpo.Config(grad_clip=1e9), rows)
    model = Qwen(SMALL).init_weights(3)
    batch = collate(rows)
    advantages = group_advantages(batch.rewards, batch.groups).tolist()
    total = sum(s == Source.POLICY for e in rows for s in e.source)
    loss = torch.zeros(())
    for e, advantage in zip(rows, advantages, strict=True):
        logits = model.head(model(torch.tensor([e.tokens])))[0]
        for t, source in enumerate(e.source):
            if source == Source.POLICY:
                loss = loss - advantage * logits[t - 1].log_softmax(-1)[e.tokens[t]] / total
    loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"weights": "seq_mean"}, {"weights": "constant"}, {"kl_coef": 0.1}])
def test_micro_batches_and_order_change_nothing(options: dict) -> None:
    rows = episodes()
    want = gradients(grpo.Config(grad_clip=1e9, micro_tokens=10_000, **options), rows)
    for micro, order in ((1, rows), (40, rows), (60, rows[4:] + rows[:4])):
        got = gradients(grpo.Config(grad_clip=1e9, micro_tokens=micro, **options), order)
        for name in want:
            torch.testing.assert_close(got[name], want[name], atol=2e-6, rtol=1e-4)


def test_interpreter_tokens_are_in_the_context_but_not_in_the_loss() -> None:
    rows = episodes()
    batch = collate(rows)
    mask = grpo.loss_mask(batch, rows, grpo.Config())
    assert torch.equal(mask, batch.source == Source.POLICY)
    unmasked = grpo.loss_mask(batch, rows, grpo.Config(train_on_tool_output=True))
    assert torch.equal(unmasked & ~mask, batch.source == Source.TOOL)
    rows[2].finish = "length"
    filtered = grpo.loss_mask(batch, rows, grpo.Config(filter_overlong=True))
    assert not filtered[2].any() and torch.equal(filtered[3:], mask[3:])


def test_groups_of_equal_rewards_leave_the_weights_alone() -> None:
    rows = episodes()
    for e in rows:
        e.reward = 0.1
    assert all(not g.any() for g in gradients(grpo.Config(), rows).values())


def test_several_updates_clip_against_the_first_policy() -> None:
    """With a huge step the second update sees ratios far from 1, and says so."""
    rows, results = episodes(), []
    for updates in (1, 2):
        model = Qwen(SMALL).init_weights(3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        results.append(run_update(model, optimizer, rows, grpo.Config(updates=updates)))
    assert results[0]["ratio_max"] == 1.0 and results[0]["approx_kl"] == 0.0
    assert results[1]["ratio_max"] > 1.05 and results[1]["approx_kl"] > 0.0


def test_a_batch_without_tokens_moves_nothing_not_even_by_momentum() -> None:
    """All episodes overlong and filtered; and a rank whose share of the questions is empty."""
    rows = episodes()
    model = Qwen(SMALL).init_weights(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    cfg = grpo.Config(filter_overlong=True)
    run_update(model, optimizer, rows, cfg)  # gives Adam a momentum
    before = [p.clone() for p in model.parameters()]
    for e in rows:
        e.finish = "length"
    for found in (rows, []):
        metrics = run_update(model, optimizer, found, cfg)
        assert metrics["skipped"] == 1 and metrics["policy_tokens"] <= 1
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# -- the script ------------------------------------------------------------------------------------


def options(out: Path, **changes) -> grpo.Config:
    base = {"steps": 3, "prompts": 2, "group": 2, "lr": 1e-3, "max_prompt": 64, "max_tokens": 24}
    base |= {"sandbox": "none", "log_every": 1, "save_every": 100}
    return grpo.Config(out=str(out), **{**base, **changes})


class StopAfter(World):
    """A world in which somebody asks for a stop during the given step."""

    def __init__(self, step: int):
        super().__init__("cpu")
        self.left = step

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    grpo.train(options(tmp_path / "straight", steps=4), World("cpu"))
    grpo.train(options(tmp_path / "broken", steps=4), StopAfter(2))
    assert not (tmp_path / "broken" / "final").exists()
    (tmp_path / "broken" / "metrics.jsonl").open("a").write('{"step": 3, "cut')  # a crash in mid-line
    grpo.train(options(tmp_path / "broken", steps=4, resume=True), World("cpu"))
    a, b = (checkpoint.models.load(tmp_path / name / "final") for name in ("straight", "broken"))
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    metrics = [lines(tmp_path / name / "metrics.jsonl") for name in ("straight", "broken")]
    assert [m["step"] for m in metrics[1]] == [1, 2, 3, 4]
    for left, right in zip(*metrics, strict=True):
        same = {k for k in left if "second" not in k}
        assert {k: left[k] for k in same} == {k: right[k] for k in same}
    episodes = [lines(tmp_path / name / "episodes.jsonl") for name in ("straight", "broken")]
    assert episodes[0] == episodes[1]


def test_the_samplers_log_probs_are_the_trainers(tmp_path: Path) -> None:
    grpo.train(options(tmp_path / "run", steps=2, protocol="code", temperature=0.7), World("cpu"))
    for m in lines(tmp_path / "run" / "metrics.jsonl"):
        assert m["policy_tokens"] > 0 and m["mismatch_max"] <= 1e-4 and abs(m["mismatch_k3"]) <= 1e-6


def test_a_run_folder_is_complete(tmp_path: Path) -> None:
    grpo.train(options(tmp_path / "run", steps=2, save_every=1), World("cpu"))
    names = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert {"config.json", "metrics.jsonl", "episodes.jsonl", "final/config.json"} <= names
    assert {"checkpoints/step-000001/optimizer.pt", "checkpoints/step-000002/model.safetensors"} <= names
    assert not [n for n in names if "tmp" in n or "/." in n]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward": "outcom"}, "did you mean outcome"),
        ({"protocol": "r1c"}, "did you mean r1ci"),
        ({"tasks": "toys"}, "did you mean toy"),
        ({"temperature": 0.0}, "--temperature"),
        ({"weights": "mean"}, "token_mean"),
        ({"kind": "trpo"}, "cispo"),
        ({"model": "nowhere"}, "nowhere"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"max_prompt": 8}, "--max-prompt"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        grpo.train(options(tmp_path / "run", **changes), World("cpu"))
    assert "\n" not in str(error.value)


def test_existing_folders_and_changed_options_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    grpo.train(options(out, steps=1), World("cpu"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="--resume"):
        grpo.train(options(out, steps=1), World("cpu"))
    with pytest.raises(UsageError, match="--lr is 0.5, the run has 0.001"):
        grpo.train(options(out, steps=2, lr=0.5, resume=True), World("cpu"))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_damaged_checkpoint_is_named_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    grpo.train(options(out, steps=1), World("cpu"))
    step = out / "checkpoints" / "step-000001"
    for file, words in (("model.safetensors", "model.safetensors"), ("optimizer.pt", "remove")):
        whole = (step / file).read_bytes()
        (step / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UsageError, match=words) as error:
            grpo.train(options(out, steps=2, resume=True), World("cpu"))
        assert "\n" not in str(error.value) and "step-000001" in str(error.value)
        (step / file).write_bytes(whole)
    grpo.train(options(out, steps=2, resume=True), World("cpu"))
    assert (out / "checkpoints" / "step-000002").is_dir()


def test_resume_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="no config.json"):
        grpo.train(options(tmp_path / "mine", resume=True), World("cpu"))
    (tmp_path / "mine" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="expected JSON"):
        grpo.train(options(tmp_path / "mine", resume=True), World("cpu"))
