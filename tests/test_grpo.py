"""GRPO: advantages by hand, the update against a brute-force loop, and the script stopped and resumed."""

import dataclasses
import itertools
import math
import statistics
from pathlib import Path

import pytest
import torch
from fakes import SMALL, lines, random_episodes
from ranks import on_ranks

import grpo
from episode import Episode, collate
from grpo import group_advantages, reinforce_advantages
from model import Qwen
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from tokenizer import Source

torch.set_num_threads(1)


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


def test_an_ungraded_episode_is_left_out_of_its_group() -> None:
    rewards, groups = tensor(1, 0, math.nan, 1, math.nan), torch.tensor([0, 0, 0, 1, 1])
    got = group_advantages(rewards, groups)
    assert got[2:].tolist() == [0.0, 0.0, 0.0]
    assert got[:2].tolist() == pytest.approx(group_advantages(tensor(1, 0), torch.zeros(2)).tolist())


def test_statistics_are_float64() -> None:
    """In float32 the mean of these two is one of them: -0.1 and 0, not a half on either side."""
    got = group_advantages(tensor(1.1, 1.1000001), torch.zeros(2), scale_std=False)
    assert got[0] == -got[1] != 0


def test_nothing_of_an_episode_without_a_reward_is_trained() -> None:
    """Neither by its own terms (KL, entropy) nor in the denominators of the others."""
    rows = episodes()
    rows[2].reward = math.nan
    for options in ({"kl_coef": 0.1}, {"entropy_coef": 0.1}, {"train_on_tool_output": True}):
        mask = grpo.loss_mask(collate(rows), rows, grpo.Config(**options))
        assert not mask[2].any() and all(mask[i].any() for i in (0, 1, 3, 4, 5, 6))


def experience(rows: list[Episode], cfg: grpo.Config) -> grpo.Experience:
    """Advantages of 1, and log-probs of the sampler alone."""
    batch = collate(rows)
    mask = grpo.loss_mask(batch, rows, cfg)
    ones = torch.ones(mask.shape)
    sampled = mask & (batch.source == Source.POLICY)
    return grpo.Experience(batch.tokens, mask, sampled, batch.sampler_logprobs, ones, None, None)


def test_what_is_logged_is_of_the_models_own_tokens_whatever_else_is_trained() -> None:
    rows, found = episodes(), []
    noise = torch.randn(collate(rows).tokens.shape, generator=torch.Generator().manual_seed(5))
    for unmasked in (False, True):
        cfg = grpo.Config(train_on_tool_output=unmasked)
        found.append(
            grpo.policy_metrics(noise, torch.zeros_like(noise), noise * 0.5, experience(rows, cfg), cfg)
        )
    assert found[0] == found[1] and found[0]["tokens"] == sum(len(e.policy_tokens) for e in rows)


def test_clips_of_gspo_are_those_of_sequences() -> None:
    """Log-ratios +.5 and -.5 are a sequence's ratio of 1; two of +.1 are exp(.1), which is clipped."""
    rows = episodes(2)
    for e in rows:
        e.tokens, e.source, e.logprobs = [1, 2, 3], [0, 1, 1], [0.0] * 3
    cfg = grpo.Config(kind="gspo", weights="seq_mean", clip_low=3e-4, clip_high=4e-4)
    ratios = torch.tensor([[0.0, 0.5, -0.5], [0.0, 0.1, 0.1]])
    found = grpo.policy_metrics(ratios, torch.zeros(2, 3), torch.zeros(2, 3), experience(rows, cfg), cfg)
    assert found["tokens"] == 4 and found["clip_high"] == 2 and found["clip_low"] == 0
    assert found["ratio_max"].item() == pytest.approx(math.exp(0.1))
    assert found["ratio"].item() == pytest.approx(2 + 2 * math.exp(0.1))
    expected = sum(math.expm1(r) - r for r in (0.5, -0.5, 0.1, 0.1))  # of tokens: how far the policy moved
    assert found["approx_kl"].item() == pytest.approx(expected, rel=1e-5)


def test_reinforce_advantages_by_hand() -> None:
    """Three episodes of 2, 1 and 0 trained tokens, KL charged from each token on; then whitened together."""
    mask = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    kl = torch.tensor([[9.0, 2.0, math.nan, 1.0], [9.0, math.inf, -4.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
    got = reinforce_advantages(tensor(1, 0, 5), mask, kl, 0.1)
    returns = [1 - 0.1 * (2 + 1), 1 - 0.1 * 1, 0 + 0.1 * 4]
    mean, std = statistics.fmean(returns), statistics.stdev(returns)
    want = [(r - mean) / std for r in returns]
    assert got[mask.bool()].tolist() == pytest.approx(want, abs=1e-5)
    assert not got[~mask.bool()].any() and got.dtype == torch.float32


def test_reinforce_advantages_of_equal_rewards_failed_graders_and_ranks() -> None:
    mask = torch.ones(4, 3)
    assert not reinforce_advantages(torch.full((4,), 0.1), mask).any()
    got = reinforce_advantages(tensor(1, math.nan, 0, 0), mask)
    assert not got[1].any()
    torch.testing.assert_close(got[[0, 2, 3]], reinforce_advantages(tensor(1, 0, 0), mask[:3]))
    torch.manual_seed(0)
    rewards, kl = torch.rand(4), torch.randn(4, 3)
    want = reinforce_advantages(rewards, mask, kl, 0.5)

    def work(world: World) -> torch.Tensor:
        mine = slice(2 * world.rank, 2 * world.rank + 2)
        return reinforce_advantages(rewards[mine], mask[mine], kl[mine], 0.5, world.sum)

    torch.testing.assert_close(torch.cat(on_ranks(2, work)), want)


# -- one update ------------------------------------------------------------------------------------


def episodes(count: int = 7) -> list[Episode]:
    return random_episodes(count, group=4)


def run_update(
    model: Qwen, optimizer: torch.optim.Optimizer, rows: list[Episode], cfg: grpo.Config, world=None
) -> dict:
    """One rollout batch, as train() does it; the reference is another model."""
    batch, world = collate(rows), world or World("cpu")
    reference = Qwen(SMALL).init_weights(4) if cfg.kl_coef else None
    data = grpo.make_experience(model, reference, batch, grpo.loss_mask(batch, rows, cfg), cfg, world)
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


def plain_advantages(rows: list[Episode], d: list[list[float]], cfg: grpo.Config) -> list[list[float]]:
    """One list per episode of the advantage of each trained token; d is lp - ref of the same tokens."""
    if cfg.advantage == "reinforce++":
        returns = [
            [e.reward - cfg.kl_coef * sum(gaps[i:]) for i in range(len(gaps))]
            for e, gaps in zip(rows, d, strict=True)
        ]
        flat = [r for part in returns for r in part]
        mean, std = statistics.fmean(flat), statistics.stdev(flat)
        return [[(r - mean) / std for r in part] for part in returns]
    found = []
    for e, gaps in zip(rows, d, strict=True):
        group = [x.reward for x in rows if x.group == e.group]
        spread = statistics.stdev(group) + 1e-6 if cfg.advantage == "group" else 1
        found.append([(e.reward - statistics.fmean(group)) / spread] * len(gaps))
    return found


def plain_loss(model: Qwen, old: Qwen, reference: Qwen, rows: list[Episode], cfg: grpo.Config):
    """The whole objective, one token at a time, from its formulas: no masks, no batches, no loss.py."""
    trained = {Source.POLICY, Source.TOOL} if cfg.train_on_tool_output else {Source.POLICY}
    places = [[t for t, s in enumerate(e.source) if s in trained] for e in rows]
    now, before, ref = (
        [m.head(m(torch.tensor([e.tokens])))[0].log_softmax(-1) for e in rows]
        for m in (model, old, reference)
    )
    gaps = [
        [(before[i][t - 1, e.tokens[t]] - ref[i][t - 1, e.tokens[t]]).item() for t in places[i]]
        for i, e in enumerate(rows)
    ]
    advantages = plain_advantages(rows, gaps, cfg)
    loss = torch.zeros(())
    for i, e in enumerate(rows):
        for t, a in zip(places[i], advantages[i], strict=True):
            lp, was = now[i][t - 1, e.tokens[t]], before[i][t - 1, e.tokens[t]].detach()
            ratio = (lp - was).exp()
            term = -torch.min(ratio * a, ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high) * a)
            if cfg.dual_clip and a < 0:
                term = term.clamp(max=-cfg.dual_clip * a)
            if cfg.importance_cap and e.source[t] == Source.POLICY:
                term = term * min(math.exp(was.item() - e.logprobs[t]), cfg.importance_cap)
            if cfg.kl_coef and cfg.advantage != "reinforce++":
                d = lp - ref[i][t - 1, e.tokens[t]].detach()
                term = term + cfg.kl_coef * ((-d).exp() - 1 + d)
            p = now[i][t - 1].exp()
            term = term + cfg.entropy_coef * (p * now[i][t - 1]).sum()
            loss = loss + term
    return loss / sum(map(len, places))


EVERYTHING = {"kl_coef": 0.3, "entropy_coef": 0.2, "importance_cap": 1.1}


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.5},
        {"kl_coef": 0.3},
        {"importance_cap": 1.1},
        {"importance_cap": 1.1, "train_on_tool_output": True},
        {"advantage": "group_mean"},
        {"advantage": "reinforce++"},
        {"advantage": "reinforce++", **EVERYTHING},
        {"train_on_tool_output": True, **EVERYTHING},
        {"dual_clip": 1.05, **EVERYTHING},
    ],
)
@pytest.mark.parametrize("updates", [1, 2])
def test_gradient_of_every_option_against_a_plain_loop(options: dict, updates: int) -> None:
    """The last step's gradient; of two, the second comes after a step so long that both clips are reached."""
    rows, generator = episodes(), torch.Generator().manual_seed(2)
    model, old = Qwen(SMALL).init_weights(3), Qwen(SMALL).init_weights(3)
    for e in rows:  # a sampler that is a little off: some weights above the cap, some below
        logprobs = old.head(old(torch.tensor([e.tokens])))[0].log_softmax(-1).detach()
        noise = torch.randn(len(e.tokens), generator=generator) * 0.3
        e.logprobs = [0.0] + [
            (logprobs[t - 1, e.tokens[t]] + noise[t]).item() if e.source[t] == Source.POLICY else 0.0
            for t in range(1, len(e.tokens))
        ]
    cfg = grpo.Config(grad_clip=1e9, updates=updates, micro_tokens=60, **options)
    seen = []

    class Step(torch.optim.SGD):
        def step(self, closure=None) -> None:
            at = {n: p.detach().clone() for n, p in model.named_parameters()}
            seen.append((at, {n: p.grad.clone() for n, p in model.named_parameters()}))
            super().step()

    metrics = run_update(model, Step(model.parameters(), lr=2.0), rows, cfg)
    assert len(seen) == updates and metrics["skipped"] == 0
    weights, got = seen[-1]
    now = Qwen(SMALL).init_weights(3)
    now.load_state_dict(weights)
    loss = plain_loss(now, old, Qwen(SMALL).init_weights(4), rows, cfg)
    loss.backward()
    for name, p in now.named_parameters():
        torch.testing.assert_close(got[name], p.grad, atol=2e-6, rtol=1e-3)
    if updates == 1:
        assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5) and metrics["ratio_max"] == 1.0
    else:
        assert metrics["clip_low"] > 0 and metrics["clip_high"] > 0


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("options", [{}, {"advantage": "reinforce++", "updates": 2, **EVERYTHING}])
def test_ranks_change_nothing(size: int, options: dict) -> None:
    """Two questions: with four ranks, two of them have no episode at all."""
    rows, cfg = episodes(), grpo.Config(grad_clip=1e9, **options)

    def work(world: World) -> tuple:
        model = Qwen(SMALL).init_weights(3)
        mine = [e for e in rows if e.group % world.size == world.rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return run_update(model, optimizer, mine, cfg, world), list(model.parameters())

    want = work(World("cpu"))
    for got in on_ranks(size, work):
        assert got[0] == pytest.approx(want[0], rel=1e-3, abs=1e-5)
        for p, q in zip(got[1], want[1], strict=True):
            torch.testing.assert_close(p, q, atol=5e-6, rtol=1e-4)


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


def test_dropped_groups_are_as_if_never_sampled() -> None:
    """With KL, which would teach even where all rewards are equal."""
    rows = episodes(12)
    for e in rows[4:8]:
        e.reward = 0.1
    rows[10].reward = math.nan
    cfg = grpo.Config(grad_clip=1e9, kl_coef=0.3, drop_equal_groups=True)
    mask = grpo.loss_mask(collate(rows), rows, cfg)
    assert mask.any(dim=1).tolist() == [True] * 4 + [False] * 4 + [True, True, False, True]
    got, want = gradients(cfg, rows), gradients(cfg, rows[:4] + rows[8:])
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=2e-6, rtol=1e-4)
    kept = gradients(dataclasses.replace(cfg, drop_equal_groups=False), rows)
    assert any(not torch.allclose(got[n], kept[n], atol=1e-4) for n in got)


def test_dropped_groups_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything where all groups are equal: the loss is 0 then, and no weight moves."""
    computed = []

    def counted(model: Qwen, tokens: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor]:
        computed.extend(tokens.tolist())
        return grpo_logprobs(model, tokens, **options)

    grpo_logprobs = grpo.token_logprobs
    monkeypatch.setattr(grpo, "token_logprobs", counted)
    rows = episodes(12)
    for e in rows[4:8]:
        e.reward = 0.1
    cfg = grpo.Config(grad_clip=1e9, drop_equal_groups=True)
    gradients(cfg, rows)
    assert len(computed) == 8
    for e in rows:
        e.reward = 0.1
    model = Qwen(SMALL).init_weights(3)
    before = [p.clone() for p in model.parameters()]
    metrics = run_update(model, torch.optim.AdamW(model.parameters()), rows, cfg, World("cpu"))
    assert len(computed) == 8 and metrics["loss"] == 0 and metrics["policy_tokens"] == 0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_divisor_of_constant_weights_counts_dropped_groups_too() -> None:
    """It is a constant of the run: without KL and entropy, dropping changes no gradient."""
    rows = episodes(8)
    for e in rows[4:]:
        e.reward = 0.1
    cfg = grpo.Config(grad_clip=1e9, weights="constant", drop_equal_groups=True)
    assert not grpo.loss_mask(collate(rows), rows, cfg)[4:].any()
    got, kept = gradients(cfg, rows), gradients(dataclasses.replace(cfg, drop_equal_groups=False), rows)
    without = gradients(cfg, rows[:4])
    for name in got:
        torch.testing.assert_close(got[name], kept[name], atol=1e-7, rtol=1e-4)
        torch.testing.assert_close(got[name], without[name] / 2, atol=1e-7, rtol=1e-4)
    assert any(g.any() for g in got.values())


@pytest.mark.parametrize("size", [1, 2])
def test_a_step_with_a_broken_gradient_is_skipped_on_all_ranks_and_counted(size: int) -> None:
    """One rank's reward is infinite; Adam's momentum must move no rank's weights."""
    rows = episodes()

    def work(world: World) -> tuple:
        model = Qwen(SMALL).init_weights(3)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        mine = [e for e in rows if e.group % world.size == world.rank]
        cfg = grpo.Config(advantage="group_mean", updates=2)
        run_update(model, optimizer, mine, cfg, world)
        before = [p.detach().clone() for p in model.parameters()]
        bad = [dataclasses.replace(e, reward=math.inf if e is rows[0] else e.reward) for e in mine]
        metrics = run_update(model, optimizer, bad, cfg, world)
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        return metrics["skipped"], all(same)

    world = World("cpu")
    for skipped, same in on_ranks(size, work) if size > 1 else [work(world)]:
        assert skipped == 2 and same


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
        assert metrics["skipped"] == 1 and metrics["policy_tokens"] == 0
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


# -- the script ------------------------------------------------------------------------------------


def options(out: Path, **changes) -> grpo.Config:
    base = {"steps": 3, "prompts": 2, "group": 2, "lr": 1e-3, "max_prompt": 64, "max_tokens": 24}
    base |= {"sandbox": "none", "log_every": 1, "save_every": 100}
    return grpo.Config(out=str(out), **{**base, **changes})


def test_the_samplers_log_probs_are_the_trainers(tmp_path: Path) -> None:
    grpo.train(options(tmp_path / "run", steps=2, protocol="code", temperature=0.7), World("cpu"))
    for m in lines(tmp_path / "run" / "metrics.jsonl"):
        assert m["policy_tokens"] > 0 and m["mismatch_max"] <= 1e-4 and abs(m["mismatch_k3"]) <= 1e-6


METRICS = """
reward accuracy groups_all_right groups_all_wrong groups_mixed response_tokens tool_tokens truncated
calls calls_failed code_ratio grader_failed policy_tokens loss entropy approx_kl clip_low clip_high
ratio ratio_max grad_norm lr mismatch_k3 mismatch_max skipped seconds_rollout seconds_prepare
seconds_update tokens_per_second too_long
"""


def test_every_step_logs_what_to_watch(tmp_path: Path) -> None:
    """Random weights call code under protocol `code`; a reward that falls with length, and KL. One group."""
    changes = {
        "protocol": "code",
        "steps": 1,
        "prompts": 1,
        "group": 4,
        "kl_coef": 0.1,
        "overlong_buffer": 24,
        "max_tokens": 48,
    }
    grpo.train(options(tmp_path / "run", **changes), World("cpu"))
    (m,) = lines(tmp_path / "run" / "metrics.jsonl")
    assert set(METRICS.split()) <= m.keys() and m["kl"] == 0.0
    assert ("calls_ran" in m) == ("calls_timed_out" in m) == ("accuracy_with_code" in m) == (m["calls"] > 0)
    assert m["tokens_per_second"] > 0 and m["reward"] < 0
    entropy = []
    for episode in lines(tmp_path / "run" / "episodes.jsonl"):
        assert episode["trained"] == [int(source == Source.POLICY) for source in episode["source"]]
        assert len(episode["advantages"]) == len(episode["characters"]) == len(episode["tokens"])
        assert all(
            (logprob < 0) <= trained
            for logprob, trained in zip(episode["logprobs"], episode["trained"], strict=True)
        )
        entropy += itertools.compress(episode["entropy"], episode["trained"])
    assert m["policy_tokens"] == len(entropy)  # the whole group
    assert m["entropy"] == pytest.approx(sum(entropy) / len(entropy), rel=1e-3)


# What the papers publish; see the header of grpo.py and ppo.py for what they do not.
R1CI = {"lr": 1e-6, "prompts": 128, "group": 5, "kl_coef": 0.001, "temperature": 1.0, "reward": "r1ci"}
R1CI |= {
    "protocol": "r1ci",
    "max_calls": 8,
    "timeout": 60.0,
    "steps": 600,
    "stage_steps": 150,
    "train_on_tool_output": False,
}
RETOOL = {"lr": 1e-6, "kl_coef": 0.0, "max_tokens": 16384, "reward": "retool", "protocol": "retool"}
RETOOL |= {"steps": 400}


@pytest.mark.parametrize("name, published", [("r1ci", R1CI), ("retool", RETOOL)])
def test_presets_are_what_the_papers_publish(name: str, published: dict) -> None:
    cfg = config.parse(grpo.Config, argv=["--preset", name], presets=grpo.PRESETS)
    assert {k: getattr(cfg, k) for k in published} == published
    assert name == "r1ci" or cfg.prompts * cfg.group == 512
    grpo.check(cfg)


def test_a_run_folder_is_complete(tmp_path: Path) -> None:
    grpo.train(options(tmp_path / "run", steps=2, save_every=1), World("cpu"))
    names = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*")}
    assert {"config.json", "metrics.jsonl", "episodes.jsonl", "final/config.json"} <= names
    assert {f"checkpoints/step-00000{i}/manifest.json" for i in (1, 2)} <= names
    assert not [n for n in names if "tmp" in n or "/.step" in n]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward": "outcom"}, "did you mean outcome"),
        ({"protocol": "r1c"}, "did you mean r1ci"),
        ({"tasks": "toys"}, "did you mean toy"),
        ({"temperature": 0.0}, "--temperature"),
        ({"weights": "mean"}, "token_mean"),
        ({"kind": "trpo"}, "cispo"),
        ({"kind": "cispo", "dual_clip": 3.0}, "--dual-clip"),
        ({"kind": "gspo"}, "--weights seq_mean --clip-low 3e-4 --clip-high 4e-4"),
        ({"advantage": "rloo"}, "reinforce"),
        ({"advantage": "reinforce++", "drop_equal_groups": True}, "--drop-equal-groups"),
        ({"overlong_buffer": 25}, "--max-tokens 24"),
        ({"model": "nowhere"}, "nowhere"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"advantage": "reinforce++", "train_on_tool_output": True}, "--train-on-tool-output"),
        ({"max_prompt": 8}, "--max-prompt"),
        ({"max_prompt": 1001}, "the model has 1024 positions"),
        ({"group": 1}, "--group 1 with --advantage group: an episode alone has advantage 0"),
        ({"group": 1, "advantage": "group_mean"}, "--group 1 with --advantage group_mean"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        grpo.train(options(tmp_path / "run", **changes), World("cpu"))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_existing_folders_and_changed_options_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    grpo.train(options(out, steps=1), World("cpu"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="--resume"):
        grpo.train(options(out, steps=1), World("cpu"))
    with pytest.raises(UsageError, match="--lr is 0.5, the run has 0.001"):
        grpo.train(options(out, steps=2, lr=0.5, resume=True), World("cpu"))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_resume_refuses_what_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="no config.json"):
        grpo.train(options(tmp_path / "mine", resume=True), World("cpu"))
    (tmp_path / "mine" / "config.json").write_text("{")
    with pytest.raises(UsageError, match="expected JSON"):
        grpo.train(options(tmp_path / "mine", resume=True), World("cpu"))
