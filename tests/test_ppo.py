"""PPO: rewards, GAE and whitening by hand and by loop, the update against brute force, the script resumed."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fakes import SMALL, StopAfter, lines, random_episodes
from ranks import on_ranks
from torch import Tensor

import ppo
from episode import Episode, collate
from loss import whiten
from model import Qwen
from plumbing import config
from plumbing.config import UsageError
from plumbing.ranks import World
from ppo import Agent, Critic, explained_variance, gae, token_rewards
from tokenizer import Source

torch.set_num_threads(1)
NAN = math.nan


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


# -- rewards ---------------------------------------------------------------------------------------


def test_the_reward_sits_on_the_last_policy_token() -> None:
    """Tool tokens and padding may trail it; a row of which nothing is trained has no place for a reward."""
    mask = torch.tensor([[0, 1, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]])
    got = token_rewards(torch.tensor([1.0, -0.5, NAN, 2.0]), mask)
    want = [[0, 0, 1, 0, 0], [0, 0, 0, -0.5, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 2]]
    assert got.tolist() == want and got.dtype == torch.float32


def test_kl_is_charged_on_every_policy_token_and_nowhere_else() -> None:
    kl = row(NAN, 0.5, NAN, -0.25, math.inf)
    got = token_rewards(torch.tensor([1.0]), torch.tensor([[0, 1, 0, 1, 0]]), kl, 0.1)
    assert got[0].tolist() == pytest.approx([0, -0.05, 0, 1.025, 0])


def test_a_reward_behind_the_last_policy_token_would_be_lost() -> None:
    """Two policy tokens and a trailing tool token: on the tool token the reward teaches nothing."""
    values, mask = row(0, 0.2, 0.4, 0), torch.tensor([[0, 1, 1, 0]])
    advantages, returns = gae(token_rewards(torch.tensor([1.0]), mask), values, mask, lam=0.95)
    assert advantages[0].tolist() == pytest.approx([0, 0.77, 0.6, 0])
    assert returns[0].tolist() == pytest.approx([0, 0.97, 1.0, 0])
    lost, _ = gae(row(0, 0, 0, 1), values, mask, lam=0.95)
    assert lost[0].tolist() == pytest.approx([0, -0.18, -0.4, 0])


# -- generalised advantage estimation --------------------------------------------------------------


def test_gae_by_hand_with_a_tool_in_between() -> None:
    """A = 0.5, 0.95 x 0.5, ... whatever the tool printed; two wrong ways give other numbers."""
    mask = torch.tensor([[1, 1] + [0] * 20 + [1, 1]])
    values = torch.full((1, 24), 0.5)
    rewards = token_rewards(torch.tensor([1.0]), mask)
    advantages, returns = gae(rewards, values, mask, lam=0.95)
    want = [0.5 * 0.95**3, 0.5 * 0.95**2, 0.5 * 0.95, 0.5]
    assert advantages[mask.bool()].tolist() == pytest.approx(want, abs=1e-6)
    assert want[:2] == pytest.approx([0.4287, 0.4513], abs=5e-5)
    assert returns[mask.bool()].tolist() == pytest.approx([a + 0.5 for a in want], abs=1e-6)
    assert not advantages[~mask.bool()].any() and not returns[~mask.bool()].any()

    everything = torch.ones_like(mask)
    zeroed, _ = gae(rewards, values * mask, everything, lam=0.95)
    assert zeroed[0, :2].tolist() == pytest.approx([-0.151, -0.159], abs=5e-4)
    unmasked, _ = gae(rewards, values, everything, lam=0.95)
    assert unmasked[0, :2].tolist() == pytest.approx([0.154, 0.162], abs=5e-4)


def loop(rewards: list, values: list, gamma: float, lam: float, last: float = 0.0) -> list[float]:
    """A_t = sum_k (gamma lam)^k delta_{t+k} of a sequence of policy tokens only, straight from the paper."""
    following = (values + [last])[1:]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 1.0), (0.97, 0.8), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_gae_against_a_float64_loop(gamma: float, lam: float, bootstrapped: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 30, generator=generator)
    mask = torch.rand(6, 30, generator=generator) < 0.6
    mask[4], mask[5, -1] = False, True
    bootstrap = torch.randn(6, generator=generator) if bootstrapped else None
    advantages, returns = gae(rewards, values, mask, gamma, lam, bootstrap)
    assert advantages.dtype == returns.dtype == torch.float32
    for i in range(6):
        r, v = rewards[i][mask[i]].double().tolist(), values[i][mask[i]].double().tolist()
        want = loop(r, v, gamma, lam, bootstrap[i].item() if bootstrapped else 0.0)
        assert advantages[i][mask[i]].tolist() == pytest.approx(want, abs=1e-5)
        targets = [a + x for a, x in zip(want, v, strict=True)]
        assert returns[i][mask[i]].tolist() == pytest.approx(targets, abs=1e-5)


@pytest.mark.parametrize("span", [0, 1, 20, 500])
def test_gae_with_tool_tokens_is_gae_without_them(span: int) -> None:
    generator = torch.Generator().manual_seed(span)
    rewards, values = torch.randn(2, 3, 8, generator=generator)
    bootstrap = torch.randn(3, generator=generator)
    want = gae(rewards, values, torch.ones(3, 8), 0.99, 0.95, bootstrap)
    junk = torch.full((3, span), NAN)
    mask = torch.cat([torch.zeros(3, 2), torch.ones(3, 5), torch.zeros(3, span), torch.ones(3, 3)], dim=1)
    prompt = torch.full((3, 2), NAN)
    got = gae(
        torch.cat([prompt, rewards[:, :5], junk, rewards[:, 5:]], dim=1),
        torch.cat([prompt, values[:, :5], junk, values[:, 5:]], dim=1),
        mask,
        0.99,
        0.95,
        bootstrap,
    )
    for x, y in zip(got, want, strict=True):
        assert torch.equal(torch.cat([x[:, 2:7], x[:, 7 + span :]], dim=1), y)
        assert not x[:, :2].any() and not x[:, 7 : 7 + span].any()


def test_with_lambda_and_gamma_1_the_advantage_is_return_minus_value() -> None:
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 4, 20, generator=generator)
    mask = torch.rand(4, 20, generator=generator) < 0.5
    advantages, returns = gae(rewards, values, mask)
    for i in range(4):
        r = rewards[i][mask[i]]
        to_go = r.flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(returns[i][mask[i]], to_go, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(advantages[i][mask[i]], to_go - values[i][mask[i]], atol=1e-5, rtol=1e-5)


def test_bootstrap_is_the_value_after_the_last_token() -> None:
    """By hand, gamma 0.5, lambda 1: delta = 0 + 0.5 x 8 - 1 = 3, then 0 + 0.5 x 1 - 2 + 0.5 x 3 = 0."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    values = torch.tensor([[2.0, 1.0, NAN], [2.0, 1.0, NAN]])
    advantages, returns = gae(torch.zeros(2, 3), values, mask, 0.5, 1.0, torch.tensor([8.0, 0.0]))
    assert advantages.tolist() == [[0.0, 3.0, 0.0], [-2.0, -1.0, 0.0]]
    assert returns.tolist() == [[2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]


# -- whitening and explained variance --------------------------------------------------------------


def test_whitening_by_hand() -> None:
    """2, 4, 9 have mean 5 and unbiased variance (9 + 1 + 16) / 2 = 13."""
    got = whiten(row(NAN, 2, 4, math.inf, 9), torch.tensor([[0, 1, 1, 0, 1]]))
    want = [0, -3 / 13**0.5, -1 / 13**0.5, 0, 4 / 13**0.5]
    assert got[0].tolist() == pytest.approx(want, abs=1e-6) and got.dtype == torch.float32


def test_the_epsilon_of_whitening_is_inside_the_root() -> None:
    x = row(1e-4, -1e-4)  # unbiased variance 2e-8
    assert whiten(x, torch.ones(1, 2))[0, 0].item() == pytest.approx(1e-4 / (2e-8 + 1e-8) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("value", [0.1, -7.3, 1e8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_one_token_or_no_spread_whitens_to_exactly_zero(value: float, count: int) -> None:
    mask = torch.arange(1001)[None] < count
    x = torch.where(mask, value, NAN)
    assert not whiten(x, mask).any()


def test_whitening_ignores_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.randn(3, 9, generator=generator), torch.rand(3, 9, generator=generator) < 0.7
    want = whiten(x, mask)
    padded = torch.cat([x, torch.full((3, 40), 5.0)], dim=1)
    got = whiten(padded, torch.cat([mask, torch.zeros(3, 40, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(got[:, :9], want)
    assert not got[:, 9:].any()
    kept = want[mask].double()
    assert kept.mean().abs() < 1e-6 and kept.var().item() == pytest.approx(1.0, abs=1e-6)


def test_whitening_is_the_same_on_any_number_of_ranks() -> None:
    generator = torch.Generator().manual_seed(3)
    x, mask = torch.randn(8, 6, generator=generator), torch.rand(8, 6, generator=generator) < 0.5
    mask[5:7] = False  # of four ranks, one has nearly nothing
    x[:2] += 4
    want = whiten(x, mask)
    for size in (2, 4):
        rows = [slice(8 // size * r, 8 // size * (r + 1)) for r in range(size)]
        parts = on_ranks(size, lambda w, rows=rows: whiten(x[rows[w.rank]], mask[rows[w.rank]], w.sum))
        torch.testing.assert_close(torch.cat(parts), want)


def test_all_reduce_gets_one_scalar_and_its_result_is_what_counts() -> None:
    """A reduction that returns a new tensor: two ranks that hold the same entries, so the variance is that of
    2 5 2 5 = 3, not 4.5. Whoever ignores the result, or expects it in place, gets another number."""
    seen = []

    def twice(x: Tensor) -> Tensor:
        seen.append((x.dim(), x.clone(), x))
        return x * 2

    got = whiten(row(2, 5), torch.ones(1, 2), twice)
    assert got[0].tolist() == pytest.approx([-1.5 / 3**0.5, 1.5 / 3**0.5], abs=1e-6)
    assert all(dim == 0 and torch.equal(before, after) for dim, before, after in seen)


def test_explained_variance_by_hand() -> None:
    returns, mask = row(1, 2, 3, NAN), torch.tensor([[1, 1, 1, 0]])
    assert explained_variance(row(1, 2, 3, 9), returns, mask) == 1.0
    assert explained_variance(row(0, 1, 2, NAN), returns, mask) == 1.0  # off by a constant
    assert explained_variance(row(7, 7, 7, NAN), returns, mask) == 0.0
    assert explained_variance(row(3, 2, 1, NAN), returns, mask) == pytest.approx(-3.0)  # errors -2 0 2
    assert explained_variance(row(1, 2, 2, NAN), returns, mask) == pytest.approx(2 / 3)  # errors 0 0 1
    assert explained_variance(row(1, 2, 3, 4), row(0.1, 0.1, 0.1, 0.1), torch.ones(1, 4)) == 0.0
    assert explained_variance(row(1), row(2), torch.ones(1, 1)) == 0.0
    # rewards of -0.1 and values near 0, added up in float32: returns that differ by rounding do not vary
    values = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) * 0.01
    _, returns = gae(torch.zeros(1, 50).index_fill(1, torch.tensor([49]), -0.1), values, torch.ones(1, 50))
    assert returns.max() > returns.min() and explained_variance(values, returns, torch.ones(1, 50)) == 0.0
    assert explained_variance(row(1), row(2), torch.zeros(1, 1)) == 0.0


# -- critic ----------------------------------------------------------------------------------------


def awake(critic: Critic) -> Critic:
    """With a head that is not zero, as after some training."""
    generator = torch.Generator().manual_seed(7)  # not the global one: ranks are threads here
    torch.nn.init.normal_(critic.head.weight, std=0.1, generator=generator)
    return critic


def test_a_new_critic_expects_nothing_and_owns_its_body() -> None:
    actor = Qwen(dataclasses.replace(SMALL, tie_word_embeddings=False)).init_weights(0)
    critic = Critic(actor)
    values = critic(torch.randint(0, 50, (2, 9)))
    assert values.shape == (2, 9) and values.dtype == torch.float32 and not values.any()
    assert not {p.data_ptr() for p in critic.parameters()} & {p.data_ptr() for p in actor.parameters()}
    assert torch.equal(critic.body.model.embed_tokens.weight, actor.model.embed_tokens.weight)
    assert Critic(actor.bfloat16())(torch.randint(0, 50, (2, 9))).dtype == torch.float32


def test_the_value_of_a_token_does_not_see_the_token() -> None:
    critic = awake(Critic(Qwen(SMALL).init_weights(0)))
    tokens = torch.randint(1, 50, (1, 12), generator=torch.Generator().manual_seed(0))
    values = critic(tokens)
    mask = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.testing.assert_close(critic(tokens, mask)[mask], values[mask], rtol=1e-5, atol=1e-6)
    outputs = critic.head(critic.body(tokens)).squeeze(-1)
    assert torch.equal(values[:, 1:], outputs[:, :-1]) and values[0, 0] == 0
    for t in range(1, 12):
        changed = tokens.clone()
        changed[0, t] = 0
        other = critic(changed)
        assert torch.equal(other[0, : t + 1], values[0, : t + 1]), "the value of t knows token t"
        assert t == 11 or other[0, t + 1] != values[0, t + 1], "the value of t + 1 does not know token t"


# -- one update ------------------------------------------------------------------------------------


def episodes(count: int = 6, group: int = 1) -> list[Episode]:
    return random_episodes(count, group)


def options(**changes) -> ppo.Config:
    base = {"prompts": 6, "group": 1, "epochs": 1, "minibatches": 1, "critic_warmup": 0, "grad_clip": 1e9}
    return ppo.Config(**{**base, "lam": 0.95, **changes})


def agent(cfg: ppo.Config, lr: float = 0.0) -> Agent:
    """A small actor and a critic that already says something; plain SGD, whose steps are the gradients."""
    actor = Qwen(SMALL).init_weights(3)
    made = Agent(actor, Critic(actor), cfg)
    awake(made.critic)
    made.actor_optimizer = torch.optim.SGD(made.actor.parameters(), lr=lr)
    made.critic_optimizer = torch.optim.SGD(made.critic.parameters(), lr=lr)
    return made


def experience(made: Agent, rows: list[Episode], cfg: ppo.Config, world: World | None = None):
    batch = collate(rows)
    reference = Qwen(SMALL).init_weights(4) if cfg.kl_coef else None
    mask = ppo.loss_mask(batch, rows, cfg)
    return batch, *ppo.make_experience(made, reference, batch, mask, cfg, world or World("cpu"))


def test_advantages_and_returns_of_a_batch_against_a_loop() -> None:
    """One episode at a time: log-probs, KL, values, GAE, and whitening over the tokens of all episodes."""
    cfg = options(kl_coef=0.3)
    made, reference, rows = agent(cfg), Qwen(SMALL).init_weights(4), episodes()
    _, data, metrics = experience(made, rows, cfg)
    raw, targets = [], []
    for e in rows:
        tokens = torch.tensor([e.tokens])
        places = [t for t, s in enumerate(e.source) if s == Source.POLICY]
        with torch.no_grad():
            scores = [m.head(m(tokens))[0].log_softmax(-1) for m in (made.actor, reference)]
            values = made.critic.head(made.critic.body(tokens))[0, :, 0]
        new, old = ([s[t - 1, e.tokens[t]].item() for t in places] for s in scores)
        v = [values[t - 1].item() for t in places]
        r = [-0.3 * (a - b) for a, b in zip(new, old, strict=True)]
        r[-1] += e.reward
        raw.append(loop(r, v, 1.0, 0.95))
        targets += [a + x for a, x in zip(raw[-1], v, strict=True)]
    flat = torch.tensor([a for part in raw for a in part], dtype=torch.float64)
    want = ((flat - flat.mean()) / (flat.var() + 1e-8).sqrt()).tolist()
    assert data.advantages[data.mask].tolist() == pytest.approx(want, abs=1e-4)
    assert data.returns[data.mask].tolist() == pytest.approx(targets, abs=1e-4)
    assert not data.advantages[~data.mask].any() and not data.returns[~data.mask].any()
    assert metrics["policy_tokens"] == len(want)
    assert metrics["return"] == pytest.approx(sum(targets) / len(targets), abs=1e-4)


def moved(data: ppo.Experience) -> ppo.Experience:
    """As in a later epoch: the policy and the critic are no longer what they were before the updates."""
    generator = torch.Generator().manual_seed(5)
    shift = torch.randn(2, *data.mask.shape, generator=generator)
    return dataclasses.replace(
        data, old_logprobs=data.old_logprobs + 0.4 * shift[0], old_values=data.old_values + 0.5 * shift[1]
    )


@pytest.mark.parametrize(
    "changes", [{}, {"dual_clip": 1.05}, {"entropy_coef": 0.5}, {"importance_cap": 0.05}]
)
def test_gradients_of_a_step_against_a_loop(changes: dict) -> None:
    """A plain loop over tokens that have moved beyond both clips, over the full softmax."""
    cfg, rows = options(**changes), episodes()
    made = agent(cfg, lr=1.0)
    batch, data, _ = experience(made, rows, cfg)
    data = moved(data)
    before = [[p.detach().clone() for p in m.parameters()] for m in (made.actor, made.critic)]
    sums = ppo.minibatch_step(made, data, batch.lengths, cfg, World("cpu"), warm=True)
    assert sums["clip_low"] > 0 and sums["clip_high"] > 0

    again = agent(cfg)
    policy, value, total = 0.0, 0.0, int(data.mask.sum())
    for i, e in enumerate(rows):
        tokens = torch.tensor([e.tokens])
        logprobs = again.actor.head(again.actor(tokens))[0].log_softmax(-1)
        values = again.critic.head(again.critic.body(tokens))[0, :, 0]
        for t in [t for t, s in enumerate(e.source) if s == Source.POLICY]:
            a, target = data.advantages[i, t], data.returns[i, t]
            ratio = (logprobs[t - 1, e.tokens[t]] - data.old_logprobs[i, t]).exp()
            term = -torch.min(ratio * a, ratio.clamp(0.8, 1.28) * a)
            if cfg.dual_clip and a < 0:
                term = term.clamp(max=-1.05 * a)
            if cfg.importance_cap:
                term = term * min(math.exp(data.old_logprobs[i, t] - e.logprobs[t]), 0.05)
            policy += (term + cfg.entropy_coef * (logprobs[t - 1].exp() * logprobs[t - 1]).sum()) / total
            v, old = values[t - 1], data.old_values[i, t]
            clipped = old + (v - old).clamp(-0.2, 0.2)
            value += 0.5 * torch.max((v - target) ** 2, (clipped - target) ** 2) / total
    (policy + value).backward()
    assert sums["loss"].item() == pytest.approx(policy.item(), abs=1e-5)
    assert sums["value_loss"].item() == pytest.approx(value.item(), rel=1e-5)
    for m, n, old in zip((made.actor, made.critic), (again.actor, again.critic), before, strict=True):
        for p, q, was in zip(m.parameters(), n.parameters(), old, strict=True):
            torch.testing.assert_close(was - p.detach(), q.grad, atol=2e-5, rtol=1e-3)


def run_update(rows: list[Episode], cfg: ppo.Config, world: World | None = None, step: int = 0):
    """The agent after one whole update of a rollout batch, and the metrics."""
    made = agent(cfg, lr=0.05)
    world = world or World("cpu")
    batch, data, metrics = experience(made, rows, cfg, world)
    metrics |= ppo.update(made, batch, data, cfg, world, step)
    return [*made.actor.parameters(), *made.critic.parameters()], metrics


def close(got: tuple, want: tuple) -> None:
    for p, q in zip(got[0], want[0], strict=True):
        torch.testing.assert_close(p, q, atol=5e-6, rtol=1e-4)
    assert got[1].keys() == want[1].keys()
    for name in got[1]:
        if not name.startswith("mismatch"):
            assert got[1][name] == pytest.approx(want[1][name], rel=2e-3, abs=2e-5), name


@pytest.mark.parametrize("weights", ["token_mean", "seq_mean", "constant"])
def test_micro_batches_and_order_change_nothing(weights: str) -> None:
    shape = {"weights": weights, "epochs": 2, "minibatches": 2, "kl_coef": 0.1}
    rows = episodes()
    want = run_update(rows, options(micro_tokens=10_000, **shape))
    for micro, order in ((1, rows), (40, rows[4:] + rows[:4])):
        close(run_update(order, options(micro_tokens=micro, **shape)), want)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_change_nothing(size: int) -> None:
    """Three questions of two episodes: with four ranks, one has no episode at all."""
    cfg, rows = options(prompts=3, group=2, epochs=2, minibatches=3), episodes(6, group=2)
    want = run_update(rows, cfg)

    def work(world: World):
        return run_update([e for e in rows if e.group % size == world.rank], cfg, world)

    for got in on_ranks(size, work):
        close(got, want)


def test_every_episode_is_in_one_minibatch_of_each_epoch() -> None:
    cfg = options(prompts=3, group=2, minibatches=4)
    batch = collate(episodes(6, group=2))
    epochs = [[part.tolist() for part in ppo.minibatches(batch, cfg, 0, epoch)] for epoch in range(3)]
    for parts in epochs:
        assert sorted(i for part in parts for i in part) == list(range(6))
        assert sorted(map(len, parts)) == [1, 1, 2, 2]
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_in_the_first_pass_the_ratio_is_one() -> None:
    _, first = run_update(episodes(), options())
    assert first["ratio_max"] == pytest.approx(1.0, abs=1e-5) and abs(first["approx_kl"]) < 1e-9
    assert first["clip_low"] == first["clip_high"] == 0.0
    assert first["updates"] == 1 and first["skipped"] == 0
    _, several = run_update(episodes(), options(epochs=4))
    assert several["ratio_max"] > 1.01 and several["approx_kl"] > 0.0 and several["updates"] == 4


def test_warm_up_leaves_the_actor_untouched() -> None:
    cfg, start = options(critic_warmup=2, epochs=2), agent(options())
    before = [*start.actor.parameters(), *start.critic.parameters()]
    actor = len(list(start.actor.parameters()))
    for step, frozen in ((0, True), (1, True), (2, False)):
        after, metrics = run_update(episodes(), cfg, step=step)
        same = [torch.equal(p, q) for p, q in zip(before, after, strict=True)]
        assert all(same[:actor]) == frozen and not all(same[actor:])
        assert ("loss" in metrics) != frozen and metrics["value_loss"] > 0


def test_training_the_critic_explains_the_returns() -> None:
    cfg = options(epochs=60, critic_warmup=1, critic_lr=3e-3, value_clip=0.0)
    actor = Qwen(SMALL).init_weights(3)
    made = Agent(actor, Critic(actor), cfg)
    batch, data, first = experience(made, episodes(), cfg)
    assert first["value"] == 0.0 and first["explained_variance"] == 0.0
    ppo.update(made, batch, data, cfg, World("cpu"), step=0)
    assert experience(made, episodes(), cfg)[2]["explained_variance"] > 0.8


def test_what_carries_loss() -> None:
    """The policy's tokens only; no episode that could not be graded; with --filter-overlong no truncated."""
    rows = episodes()
    rows[1].reward, rows[2].finish = NAN, "length"
    batch = collate(rows)
    policy = batch.source == Source.POLICY
    mask = ppo.loss_mask(batch, rows, options())
    assert not mask[1].any() and torch.equal(mask[[0, 2, 3, 4, 5]], policy[[0, 2, 3, 4, 5]])
    assert not ppo.loss_mask(batch, rows, options(filter_overlong=True))[[1, 2]].any()
    parameters, metrics = run_update(rows, options())
    assert all(p.isfinite().all() for p in parameters) and metrics["skipped"] == 0


def test_without_a_token_to_train_nothing_moves() -> None:
    rows = episodes()
    for e in rows:
        e.reward = NAN
    parameters, metrics = run_update(rows, options(epochs=2))
    before = agent(options())
    for p, q in zip(parameters, [*before.actor.parameters(), *before.critic.parameters()], strict=True):
        assert torch.equal(p, q)
    assert metrics["updates"] == 0 and metrics["policy_tokens"] == 0 and metrics["skipped"] == 2


def test_a_step_with_a_broken_gradient_is_skipped_and_counted() -> None:
    cfg = options(epochs=2)
    made = agent(cfg, lr=0.1)
    before = [p.detach().clone() for p in made.actor.parameters()]
    batch, data, _ = experience(made, episodes(), cfg)
    data.advantages[data.mask] = math.inf
    metrics = ppo.update(made, batch, data, cfg, World("cpu"), 0)
    assert metrics["skipped"] == 2
    assert all(torch.equal(p, q) for p, q in zip(made.actor.parameters(), before, strict=True))


@pytest.mark.parametrize("broken", ["advantages", "returns"])
def test_a_broken_gradient_of_one_network_skips_both(broken: str) -> None:
    made = agent(options(), lr=0.1)
    before = [p.detach().clone() for p in (*made.actor.parameters(), *made.critic.parameters())]
    batch, data, _ = experience(made, episodes(), options())
    getattr(data, broken)[data.mask] = math.inf
    metrics = ppo.update(made, batch, data, options(), World("cpu"), 0)
    assert metrics["skipped"] == 1
    assert math.isfinite(metrics["grad_norm"]) != math.isfinite(metrics["critic_grad_norm"])
    after = (*made.actor.parameters(), *made.critic.parameters())
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


# -- the script ------------------------------------------------------------------------------------


def script(out: Path, **changes) -> ppo.Config:
    base = {"steps": 4, "prompts": 2, "group": 2, "lr": 1e-3, "critic_lr": 1e-2, "critic_warmup": 1}
    base |= {"max_prompt": 64, "max_tokens": 24, "sandbox": "none", "log_every": 1, "save_every": 100}
    return ppo.Config(out=str(out), **{**base, **changes})


def saved(folder: Path) -> dict:
    """All tensors of a checkpoint: weights and states of both optimisers."""
    reader = dcp.FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    kind = dcp.metadata.TensorStorageMetadata
    tensors = {k: torch.empty(v.size) for k, v in entries.items() if isinstance(v, kind)}
    dcp.load(tensors, storage_reader=reader)
    return tensors


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """The reward is -KL to a reference that resuming must not move, and format, which random weights vary."""
    same = {"kl_coef": 0.1, "reward": "r1ci", "steps": 3}
    ppo.train(script(tmp_path / "straight", **same), World("cpu"))
    ppo.train(script(tmp_path / "broken", **same), StopAfter(2))
    assert not (tmp_path / "broken" / "final").exists()
    ppo.train(script(tmp_path / "broken", resume=True, **same), World("cpu"))
    straight, broken = (
        saved(tmp_path / name / "checkpoints" / "step-000003") for name in ("straight", "broken")
    )
    assert straight["critic.weights.head.weight"].any() and straight.keys() == broken.keys()
    for name in straight:
        assert torch.equal(straight[name], broken[name]), name
    metrics = [lines(tmp_path / name / "metrics.jsonl") for name in ("straight", "broken")]
    assert [m["step"] for m in metrics[1]] == [1, 2, 3]
    for left, right in zip(*metrics, strict=True):
        assert left.keys() == right.keys()
        assert all(left[k] == right[k] for k in left if "second" not in k)
    logged, again = (lines(tmp_path / name / "episodes.jsonl") for name in ("straight", "broken"))
    assert logged == again
    advantages, trained = logged[-1]["advantages"], logged[-1]["trained"]
    assert any(advantages) and all(t for a, t in zip(advantages, trained, strict=True) if a)
    assert metrics[0][0]["kl"] == 0.0 and metrics[0][2]["kl"] != 0.0
    assert all(m["mismatch_max"] <= 1e-4 and abs(m["mismatch_k3"]) <= 1e-6 for m in metrics[0])


METRICS = """
reward accuracy groups_all_right groups_all_wrong groups_mixed response_tokens tool_tokens truncated calls
calls_failed code_ratio grader_failed policy_tokens loss value_loss value return explained_variance entropy
approx_kl clip_low clip_high ratio ratio_max grad_norm critic_grad_norm lr critic_lr mismatch_k3 mismatch_max
updates skipped seconds_rollout seconds_prepare seconds_update tokens_per_second too_long
"""


@pytest.mark.slow
def test_every_step_logs_what_to_watch(tmp_path: Path) -> None:
    """Random weights call code under protocol `code`, and the reward falls with length."""
    changes = {"protocol": "code", "steps": 2, "overlong_buffer": 24, "max_tokens": 48}
    ppo.train(script(tmp_path / "run", **changes), World("cpu"))
    warmup, m = lines(tmp_path / "run" / "metrics.jsonl")
    assert set(METRICS.split()) <= m.keys() and m["reward"] < 0
    assert ("calls_ran" in m) == ("calls_timed_out" in m) == ("accuracy_with_code" in m) == (m["calls"] > 0)
    assert warmup["lr"] == 0 and m["lr"] == 1e-3 and warmup["value_loss"] > 0 and "loss" not in warmup


RETOOL = {"lr": 1e-6, "kl_coef": 0.0, "max_tokens": 16384, "reward": "retool", "protocol": "retool"}
RETOOL |= {"steps": 400}
R1CI = {"lr": 1e-6, "prompts": 128, "group": 5, "kl_coef": 0.001, "temperature": 1.0, "reward": "r1ci"}
R1CI |= {"protocol": "r1ci", "max_calls": 8, "timeout": 60.0, "steps": 600, "stage_steps": 150}


@pytest.mark.parametrize("name, published", [("r1ci", R1CI), ("retool", RETOOL)])
def test_presets_are_what_the_papers_publish(name: str, published: dict) -> None:
    cfg = config.parse(ppo.Config, argv=["--preset", name], presets=ppo.PRESETS)
    assert {k: getattr(cfg, k) for k in published} == published
    assert name == "r1ci" or cfg.prompts * cfg.group == 512 * cfg.minibatches
    ppo.check(cfg)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"reward": "outcom"}, "did you mean outcome"),
        ({"protocol": "r1c"}, "did you mean r1ci"),
        ({"tasks": "toys"}, "did you mean toy"),
        ({"temperature": 0.0}, "--temperature"),
        ({"weights": "mean"}, "token_mean"),
        ({"minibatches": 5}, "--minibatches 5; expected at most 4"),
        ({"model": "nowhere"}, "nowhere"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"dtype": "float16"}, "vanish"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        ppo.train(script(tmp_path / "run", **changes), World("cpu"))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("--lam", "1.5", "at most 1"),
        ("--gamma", "-0.1", "at least 0"),
        ("--epochs", "0", "at least 1"),
        ("--minibatches", "0", "at least 1"),
        ("--critic-warmup", "-1", "at least 0"),
        ("--critic-lr", "0", "above 0"),
        ("--value-clip", "-0.2", "at least 0"),
        ("--kl-coef", "-1", "at least 0"),
        ("--critic-rate", "1", "did you mean --critic-"),
    ],
)
def test_numbers_out_of_range_are_refused_in_one_line(flag: str, value: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        config.parse(ppo.Config, "", [f"{flag}={value}"])
    assert flag in str(error.value) and "\n" not in str(error.value)
