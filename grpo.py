"""Group Relative Policy Optimisation of a model that uses a Python interpreter (2402.03300, 2505.21668).

    python grpo.py --model runs/sft/final --tasks toy --steps 40 --out runs/grpo
    torchrun --nproc_per_node 2 grpo.py --model DIR --tasks toy --out runs/grpo

One step:

    1. draw `prompts` questions; sample `group` episodes of each, programs really run      rollouts()
    2. reward each by its final answer                                                     REWARDS
    3. advantage = how much better than the group's mean, in units of its spread           make_experience()
    4. every token that the model wrote gets its episode's advantage; maximise the
       clipped likelihood ratio x advantage                                                objective()

The textbook's PPO has a critic; here the group's mean is the baseline. An episode contains what the
interpreter printed. The model did not choose those tokens: they are in its context, but not in the loss. With
--protocol text the same script is the text-only baseline.

--advantage reinforce++ is REINFORCE++ (2501.03262), with which R1-Code-Interpreter compares: no groups, the
return of each token whitened over the whole batch, KL in the reward.

--preset r1ci and --preset retool set what the papers publish (docs/papers.md); options beside a preset win.
ReTool trains with PPO (see ppo.py): its mini-batch of 512 episodes is 64 questions x 8 here.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from episode import Batch, Episode, Finish
from loss import (
    importance_weights,
    kl,
    policy_loss,
    policy_stats,
    sequence_log_ratio,
    token_logprobs,
    token_weights,
    weighted_sum,
    whiten,
)
from model import Qwen
from plumbing import config
from plumbing.config import option
from plumbing.ranks import World
from plumbing.run import Run
from tokenizer import Source
from training.batches import micro_batch, micro_batches, score_logprobs
from training.loading import load_model
from training.loop import rollouts
from training.metrics import Mismatch, accumulate, means
from training.papers import REINFORCEMENT
from training.questions import StepQuestions
from training.reinforcement import ReinforcementOptions, check_contradictions, check_objective
from training.steps import adamw, set_rate, warmed


@dataclass(frozen=True)
class Config(ReinforcementOptions):
    """GRPO."""

    advantage: str = option(
        "group",
        "group: (reward - the group's mean) / the group's spread (GRPO); group_mean: reward - mean (Dr. GRPO)"
        "; reinforce++: return whitened over the batch",
    )
    kind: str = option(
        "ppo", "ratio and clip: ppo, gspo (per sequence; its clips are 3e-4 and 4e-4) or cispo"
    )
    updates: int = option(1, "optimiser steps per batch; 1: exactly on-policy", least=1)
    drop_equal_groups: bool = option(
        False,
        "mask groups of equal rewards, whose advantage is 0: their tokens count in no mean, KL or entropy",
    )
    train_on_tool_output: bool = option(False, "ablation: interpreter tokens carry loss too")
    out: str = option("runs/grpo", "run folder")


PRESETS = {
    "r1ci": REINFORCEMENT["r1ci"] | {"weights": "seq_mean"},
    "retool": REINFORCEMENT["retool"] | {"prompts": 64, "group": 8},
}


# -- advantages ------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, groups: Tensor, scale_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (std of its group + eps), (B,), float32 (2402.03300, 4.1.2).

    The standard deviation has ddof 1; statistics are float64. A group of one, or of equal rewards, gets
    exactly 0: max == min is tested, since a rounding error / eps would look like an advantage. An ungraded
    episode, whose reward is NaN, is left out of its group and gets 0.

    >>> group_advantages(torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), scale_std=False).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    for group in groups.unique():
        members = (groups == group) & ~rewards.isnan()
        r = rewards[members].double()
        if len(r) < 2 or r.max() == r.min():
            continue
        centred = r - r.mean()
        advantages[members] = (centred / (r.std() + eps) if scale_std else centred).float()
    return advantages


@torch.no_grad()
def reinforce_advantages(
    rewards: Tensor,
    mask: Tensor,
    kl: Tensor | None = None,
    kl_coef: float = 0.0,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """REINFORCE++ (2501.03262): each token's return, whitened over the mask of all ranks, (B, T) float32.

    The return is the reward of its episode, (B,), less kl_coef x the sum of kl (B, T; k1) from this token on.
    0 off the mask, and where the reward is NaN.

    >>> reinforce_advantages(torch.tensor([1.0, 0.0]), torch.tensor([[0, 1], [0, 1]]))[:, 1].tolist()
    [0.7071067690849304, -0.7071067690849304]
    """
    mask = mask.bool() & ~rewards.isnan().unsqueeze(1)
    returns = rewards.float().unsqueeze(1).expand(mask.shape)
    if kl is not None:
        returns = returns - kl_coef * kl.float().masked_fill(~mask, 0.0).flip(1).cumsum(1).flip(1)
    return whiten(returns, mask, all_reduce)


@dataclass(frozen=True)
class Advantage:
    """An entry of ADVANTAGES: (batch, mask, kl, kl_coef, all_reduce) -> (B, T), and where KL is charged."""

    compute: Callable[..., Tensor]
    kl_in_reward: bool = False


ADVANTAGES = {
    "group": Advantage(lambda b, mask, *_: group_advantages(b.rewards, b.groups)[:, None].expand(mask.shape)),
    "group_mean": Advantage(
        lambda b, mask, *_: group_advantages(b.rewards, b.groups, False)[:, None].expand(mask.shape)
    ),
    "reinforce++": Advantage(lambda b, *rest: reinforce_advantages(b.rewards, *rest), kl_in_reward=True),
}

# --kind -> the loss of each token: (logprobs, old_logprobs, advantages, mask, clips) -> (B, T)
KINDS = {kind: functools.partial(policy_loss, kind=kind) for kind in ("ppo", "gspo", "cispo")}


# -- one rollout batch -----------------------------------------------------------------------------


@dataclass
class Experience:
    """What all optimiser steps on a rollout batch share, fixed before the first: (B, T) each."""

    tokens: Tensor
    mask: Tensor  # what is trained
    sampled: Tensor  # the part of it that the model sampled: the rest has no sampler log-prob
    sampler_logprobs: Tensor
    advantages: Tensor
    old_logprobs: Tensor | None  # None: the batch takes one step, so that the ratio is exactly 1
    ref_logprobs: Tensor | None  # None without KL


def loss_mask(batch: Batch, episodes: Sequence[Episode], cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained. Policy tokens are; interpreter tokens get no weight here, hence
    no gradient. Options may drop more. Ungraded episodes are not trained."""
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
    mask &= ~batch.rewards.isnan()[:, None]
    if cfg.filter_overlong:
        mask &= torch.tensor([e.finish != Finish.LENGTH for e in episodes], dtype=torch.bool)[:, None]
    if cfg.drop_equal_groups:
        moved = group_advantages(batch.rewards, batch.groups) != 0  # a member of a group whose rewards differ
        mask &= torch.isin(batch.groups, batch.groups[moved])[:, None]
    return mask


def make_experience(
    model: Qwen, reference: Qwen | None, batch: Batch, mask: Tensor, cfg: Config, world: World
) -> Experience:
    """Advantages, and the log-probs that the optimiser steps compare with."""
    advantage = ADVANTAGES[cfg.advantage]
    ref_logprobs = None if reference is None else score_logprobs(reference, batch, mask, cfg, world)
    in_reward = advantage.kl_in_reward and ref_logprobs is not None
    old_logprobs = score_logprobs(model, batch, mask, cfg, world) if cfg.updates > 1 or in_reward else None
    divergence = kl(old_logprobs, ref_logprobs, mask, "k1") if in_reward else None
    return Experience(
        tokens=batch.tokens,
        mask=mask,
        sampled=mask & (batch.source == Source.POLICY),
        sampler_logprobs=batch.sampler_logprobs,
        advantages=advantage.compute(batch, mask, divergence, cfg.kl_coef, world.sum),
        old_logprobs=old_logprobs if cfg.updates > 1 else None,
        ref_logprobs=ref_logprobs,
    )


def objective(
    logprobs: Tensor, entropy: Tensor, old_logprobs: Tensor, data: Experience, cfg: Config
) -> Tensor:
    """The loss of each token, (B, T), whose weighted sum is minimised. Importance weights apply to policy
    tokens only. REINFORCE++ has its KL in the reward, so none is added here."""
    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    terms = KINDS[cfg.kind](logprobs, old_logprobs, data.advantages, data.mask, **clip)
    if cfg.importance_cap:
        weights = importance_weights(old_logprobs, data.sampler_logprobs, data.sampled, cfg.importance_cap)
        terms = terms * torch.where(data.sampled, weights, 1.0)
    if cfg.kl_coef and not ADVANTAGES[cfg.advantage].kl_in_reward:
        terms = terms + cfg.kl_coef * kl(logprobs, data.ref_logprobs, data.mask)
    if cfg.entropy_coef:
        terms = terms - cfg.entropy_coef * entropy
    return terms


@torch.no_grad()
def policy_metrics(
    logprobs: Tensor, entropy: Tensor, old_logprobs: Tensor, data: Experience, cfg: Config
) -> dict[str, Tensor]:
    """What to log beside the loss, as sums over the tokens that the model sampled. GSPO clips sequences: its
    clip shares and ratios are those of each token's sequence."""
    clips = (cfg.clip_low, cfg.clip_high)
    parts = policy_stats(logprobs, old_logprobs, data.advantages, data.sampled, *clips)
    if cfg.kind == "gspo":
        mean = sequence_log_ratio(logprobs, old_logprobs, data.mask)
        whole = policy_stats(old_logprobs + mean, old_logprobs, data.advantages, data.sampled, *clips)
        parts |= {name: whole[name] for name in ("clip_low", "clip_high", "ratio", "ratio_max")}
    if data.ref_logprobs is not None:
        parts["kl"] = kl(logprobs, data.ref_logprobs, data.sampled).sum()
    return parts | {"entropy": weighted_sum(entropy, data.sampled.float())}


def backward(
    model: Qwen, data: Experience, lengths: Tensor, weights: Tensor, cfg: Config, world: World
) -> tuple[dict[str, Tensor], Mismatch]:
    """Gradients of the rows with a trained token, in micro-batches; what to log, as sums over tokens."""
    sums: dict[str, Tensor] = {}
    mismatch, lengths = Mismatch(), lengths * data.mask.any(1)
    for rows, width in world.passes(micro_batches(lengths, cfg.micro_tokens, world), model):
        here, w = micro_batch(data, rows, width, world.device), weights[rows, :width].to(world.device)
        logprobs, entropy = token_logprobs(
            model, here.tokens, mask=here.mask, temperature=cfg.temperature, entropy=True
        )
        old_logprobs = logprobs.detach() if here.old_logprobs is None else here.old_logprobs
        loss = weighted_sum(objective(logprobs, entropy, old_logprobs, here, cfg), w)
        loss.backward()
        accumulate(sums, {"loss": loss} | policy_metrics(logprobs, entropy, old_logprobs, here, cfg))
        mismatch.add(old_logprobs.cpu(), here.sampler_logprobs.cpu(), here.sampled.cpu())
    return sums, mismatch


def update(
    model: Qwen,
    optimizer: torch.optim.Optimizer,
    data: Experience,
    lengths: Tensor,
    cfg: Config,
    world: World,
) -> dict[str, float]:
    """`updates` optimiser steps, each on the whole rollout batch; their metrics: means over all trained
    tokens (the loss: over steps) of all ranks, the largest ratio and the largest gradient norm.

    The weights of the token terms are made once for the batch of all ranks; micro-batches only slice them.
    With one update the ratio is 1 and its gradient is that of REINFORCE. A step whose gradient is not finite
    is left out and counted, on all ranks: they have the same gradient.
    """
    weights = token_weights(data.mask, cfg.weights, max_tokens=cfg.max_tokens, all_reduce=world.sum)
    any_tokens = bool(world.sum(data.mask.sum()))  # without, no step: Adam's momentum would move the weights
    steps, norms = [], []
    for _ in range(cfg.updates):
        sums, mismatch = backward(model, data, lengths, weights, cfg, world)
        norms.append(world.clip_gradients(model, cfg.grad_clip))
        if norms[-1].isfinite() and any_tokens:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps.append(sums)
    norms = torch.stack(norms)
    skipped = int((~norms.isfinite()).sum()) if any_tokens else cfg.updates
    metrics = means(steps, world) | mismatch.metrics(world)
    metrics["policy_tokens"] = int(metrics.pop("tokens") / cfg.updates)
    return metrics | {"grad_norm": norms.max().item(), "skipped": skipped}


# -- the script ------------------------------------------------------------------------------------


def check(cfg: Config) -> None:
    """Refuse what cannot work before anything is loaded. Raises UsageError."""
    check_objective(cfg)
    config.one_of("--advantage", cfg.advantage, ADVANTAGES)
    config.one_of("--kind", cfg.kind, KINDS)
    check_contradictions(cfg)


def train(cfg: Config, world: World) -> None:
    """The whole run: rollout, experience and update, `steps` times; then final/."""
    check(cfg)
    questions = StepQuestions(cfg, world)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world)
    reference = world.shard(copy.deepcopy(model).requires_grad_(False), cfg) if cfg.kl_coef else None
    model = world.shard(model, cfg)
    optimizer = adamw(model, cfg.lr)
    parts = {"model": (model, optimizer)}
    for step in rollouts(cfg, world, run, tokenizer, parts, questions, updates=cfg.updates):
        batch = step.batch
        mask = loss_mask(batch, step.episodes, cfg)
        experience = make_experience(model, reference, batch, mask, cfg, world)
        step.per_token |= {"trained": mask, "advantages": experience.advantages}
        step.mark("prepare")
        step.metrics["lr"] = set_rate(optimizer, warmed(cfg.lr, step.number, cfg.warmup))
        step.metrics |= update(model, optimizer, experience, batch.lengths, cfg, world)


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=PRESETS, first=("model", "tasks", "steps"))
    with World(cfg.device, cfg.rank_timeout) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
