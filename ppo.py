"""Proximal Policy Optimisation of a model that uses a Python interpreter (1707.06347, 2504.11536).

    python ppo.py --model runs/sft/final --tasks toy --steps 40 --out runs/ppo
    torchrun --nproc_per_node 2 ppo.py --model DIR --tasks toy --out runs/ppo

One step:

    1. draw `prompts` questions; sample `group` episodes of each, programs really run      rollouts()
    2. reward the last token of each by its final answer, every token by -KL               token_rewards()
    3. advantage of each token = what followed it, beyond what the critic expected         gae()
    4. `epochs` times over the batch, in `minibatches` parts: maximise the clipped
       likelihood ratio x advantage; fit the critic to the returns                         update()

In grpo.py the baseline is the mean of a question's other episodes, and all tokens of an episode get the same
advantage. Here a second network, the critic, predicts the reward at every token: a question needs no group,
and tokens are told apart. In return two models are trained. In the first `critic_warmup` steps only the
critic is, because an untrained critic gives bad advantages.

An episode contains what the interpreter printed. Those tokens are no actions: they have no reward and no
value. GAE steps from the last token before a result to the first one after it, as if the result took no time.

--preset retool sets what ReTool publishes; options given beside a preset win. Of the batch it publishes only
the mini-batch size, 512: here 512 questions, one episode each, one optimiser step per pass.
R1-Code-Interpreter trains with GRPO and says that PPO reaches about the same: --preset r1ci has its GRPO
settings, with KL in the reward. docs/papers.md says which values the papers do not publish, and what stands
in for them.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from episode import Batch, Episode, Finish
from fast.packing import Packing, read_lengths
from loss import (
    importance_weights,
    kl,
    policy_loss,
    policy_stats,
    token_logprobs,
    token_weights,
    value_loss,
    weighted_sum,
    whiten,
)
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from plumbing.run import Run
from plumbing.shards import Parts
from tokenizer import Source
from training.batches import micro_batch, micro_batches, score, score_logprobs
from training.loading import load_model
from training.loop import rollouts
from training.metrics import Mismatch, accumulate, means
from training.papers import REINFORCEMENT
from training.questions import StepQuestions
from training.reinforcement import ReinforcementOptions, check_objective
from training.steps import adamw, set_rate, warmed


@dataclass(frozen=True)
class Config(ReinforcementOptions):
    """PPO."""

    epochs: int = option(2, "passes over each rollout batch; the clip keeps the later ones honest", least=1)
    minibatches: int = option(2, "optimiser steps per pass, each on its share of the episodes", least=1)
    critic_lr: float = option(1e-5, "learning rate of the critic, which starts from nothing", above=0)
    critic_warmup: int = option(5, "first steps, in which the critic alone is trained", least=0)
    gamma: float = option(
        1.0, "discount per token; 1: a right answer is worth the same however long", least=0, most=1
    )
    lam: float = option(1.0, "GAE's lambda; 0.95 forgets the reward within 60 tokens", least=0, most=1)
    value_clip: float = option(0.2, "largest move of a value per rollout batch; 0: no limit", least=0)
    out: str = option("runs/ppo", "run folder")


PRESETS = {
    "r1ci": REINFORCEMENT["r1ci"],
    "retool": REINFORCEMENT["retool"] | {"prompts": 512, "group": 1, "minibatches": 1},
}


# -- from rewards to advantages --------------------------------------------------------------------


@torch.no_grad()
def token_rewards(scores: Tensor, mask: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0) -> Tensor:
    """Rewards (B, T) float32: scores (B,) on the last policy token of each row, and -kl_coef x kl (B, T) on
    all of them; 0 off the mask. kl is loss.kl(..., kind="k1"); with another sign it would reward drifting.

    The last *policy* token: a reward on an interpreter token that trails it would be skipped, hence lost.

    >>> token_rewards(torch.tensor([1.0]), torch.tensor([[0, 1, 0, 1, 0]])).tolist()
    [[0.0, 0.0, 0.0, 1.0, 0.0]]
    """
    mask = mask.bool()
    left = mask.flip(1).cumsum(1).flip(1)  # policy tokens from here on, this one included
    rewards = torch.where(mask & (left == 1), scores.float().unsqueeze(1), 0.0)
    return rewards if kl is None else rewards - kl_coef * kl.float().masked_fill(~mask, 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over policy tokens (1506.02438): advantages and returns, (B, T) each.

    rewards, values, mask: (B, T); bootstrap (B,): the value after the last token, 0 if the episode is over.
    Right to left, delta_t = r_t + gamma V_next - V_t and A_t = delta_t + gamma lam A_next. `next` is the next
    token of the mask: what lies between changes neither V_next nor A_next. Returns, the critic's targets, are
    A + V. Both are 0 off the mask.

    Example: V = 0.5, lam = 0.95, two policy tokens, any number of interpreter tokens, two policy tokens,
    reward 1: A = 0.4287, 0.4513, ..., 0.475, 0.5. With lam = gamma = 1 also wrong versions agree with that.
    """
    mask = mask.bool()
    rewards, values = rewards.float().masked_fill(~mask, 0.0), values.float().masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    next_advantage = values.new_zeros(values.size(0))
    next_value = next_advantage if bootstrap is None else bootstrap.float()
    for t in range(values.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
    return advantages, advantages + values


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 for a perfect critic, 0 for a constant one,
    below 0 for one that is worse. Constant returns, up to float32 rounding, give 0."""
    values, returns = values[mask.bool()].double(), returns[mask.bool()].double()
    if returns.numel() < 2 or returns.max() - returns.min() <= 1e-6 * (values.abs() + returns.abs()).max():
        return 0.0
    return (1 - (returns - values).var() / returns.var()).item()


# -- actor and critic ------------------------------------------------------------------------------


class Critic(nn.Module):
    """A copy of the actor's body with a scalar head that starts at zero: so does every value."""

    def __init__(self, actor: Qwen):
        super().__init__()
        self.body = copy.deepcopy(actor)
        self.body.lm_head = None
        weight = next(actor.parameters())
        self.head = nn.Linear(actor.config.hidden_size, 1, device=weight.device)  # float32 in any case
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Values (B, T) float32 of tokens (B, T); column 0 is 0. Entry t is what the critic expects before it
        has seen token t, its output one position earlier: a baseline depends on the state, not the action.
        With a mask (B, T), entries off it mean nothing, and most of their computation is saved.
        """
        p = Packing(tokens, [tokens.shape[1]] * len(tokens) if mask is None else read_lengths(mask))
        hidden = self.body(p.tokens, positions=p.positions, attend=p.attend).flatten(0, 1)
        values = F.embedding(p.place, self.head(hidden.float())).squeeze(-1)
        return F.pad(values[:, :-1], (1, 0))


class Agent:
    """Actor and critic, each with its optimiser."""

    def __init__(self, actor: Qwen, critic: Critic, cfg: Config):
        self.actor, self.critic = actor, critic
        self.actor_optimizer, self.critic_optimizer = adamw(actor, cfg.lr), adamw(critic, cfg.critic_lr)

    def parts(self) -> Parts:
        """What a checkpoint holds."""
        pairs = (self.actor, self.actor_optimizer), (self.critic, self.critic_optimizer)
        return dict(zip(("model", "critic"), pairs, strict=True))


def apply_gradients(agent: Agent, cfg: Config, world: World, warm: bool) -> dict[str, Tensor]:
    """One optimiser step of the critic, and if `warm` of the actor; their gradient norms over all ranks. If a
    norm is not finite, both optimisers skip the step, because both learn from the same returns."""
    parts = {"critic_grad_norm": (agent.critic, agent.critic_optimizer)}
    if warm:
        parts["grad_norm"] = (agent.actor, agent.actor_optimizer)
    norms = {name: world.clip_gradients(model, cfg.grad_clip) for name, (model, _) in parts.items()}
    finite = all(norm.isfinite() for norm in norms.values())
    for _, optimizer in parts.values():
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norms


# -- one rollout batch -----------------------------------------------------------------------------


@dataclass
class Experience:
    """What all optimiser steps on a rollout batch share, fixed before the first: (B, T) each."""

    tokens: Tensor
    mask: Tensor
    sampler_logprobs: Tensor
    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor  # whitened
    returns: Tensor  # not whitened: the critic predicts rewards


def loss_mask(batch: Batch, episodes: Sequence[Episode], cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained: the policy's own, in episodes that could be graded."""
    kept = ~batch.rewards.isnan()
    if cfg.filter_overlong:
        kept &= torch.tensor([e.finish != Finish.LENGTH for e in episodes], dtype=torch.bool)
    return (batch.source == Source.POLICY) & kept[:, None]


@torch.no_grad()
def make_experience(
    agent: Agent, reference: Qwen | None, batch: Batch, mask: Tensor, cfg: Config, world: World
) -> tuple[Experience, dict[str, float]]:
    """Rewards, advantages and returns of a rollout batch; with their metrics.

    Truncated episodes count as over: running out of tokens is part of the task. Advantages are whitened once,
    over the episodes of all ranks.
    """

    def policy(tokens: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(agent.actor, tokens, mask=used, temperature=cfg.temperature, entropy=True)

    def values(tokens: Tensor, used: Tensor) -> tuple[Tensor]:
        return (agent.critic(tokens, used),)

    old_logprobs, entropy = score(agent.actor, policy, batch, mask, cfg, world, count=2)
    (old_values,) = score(agent.critic, values, batch, mask, cfg, world)
    sums = {"tokens": mask.sum().double(), "entropy": entropy.sum().double()}
    divergence = None
    if reference is not None:
        ref_logprobs = score_logprobs(reference, batch, mask, cfg, world)
        divergence = kl(old_logprobs, ref_logprobs, mask, "k1")
        sums["kl"] = divergence.sum().double()
    rewards = token_rewards(batch.rewards, mask, divergence, cfg.kl_coef)
    advantages, returns = gae(rewards, old_values, mask, cfg.gamma, cfg.lam)
    advantages = whiten(advantages, mask, world.sum)

    sums |= {"value": old_values[mask].double().sum(), "return": returns[mask].double().sum()}
    metrics = means([sums], world)
    metrics["policy_tokens"] = int(metrics.pop("tokens"))
    pairs = torch.cat(world.gather([torch.stack([old_values[mask], returns[mask]])]), dim=1)
    metrics["explained_variance"] = explained_variance(*pairs, torch.ones(pairs.size(1)))
    mismatch = Mismatch()
    mismatch.add(old_logprobs, batch.sampler_logprobs, mask)
    scores = batch.sampler_logprobs, old_logprobs, old_values
    return Experience(batch.tokens, mask, *scores, advantages, returns), metrics | mismatch.metrics(world)


def minibatches(batch: Batch, cfg: Config, step: int, epoch: int) -> Iterator[Tensor]:
    """This rank's rows of each minibatch. All ranks' episodes are shuffled by (seed, step, epoch) and dealt
    out, so which episodes meet does not depend on how many ranks there are; a rank may have no row in one."""
    order = list(range(cfg.prompts * cfg.group))
    random.Random(f"ppo {cfg.seed} {step} {epoch}").shuffle(order)
    number = batch.groups * cfg.group + torch.arange(len(batch.groups)) % cfg.group  # groups are neighbours
    for i in range(cfg.minibatches):
        yield torch.isin(number, torch.tensor(order[i :: cfg.minibatches])).nonzero().squeeze(1)


def objective(actor: Qwen, here: Experience, cfg: Config) -> tuple[Tensor, Tensor]:
    """The actor's log-probs of a micro-batch, (B, T), and the loss of each token, whose weighted sum is
    minimised. KL is not in it: it is in the reward."""
    options = {"mask": here.mask, "temperature": cfg.temperature, "entropy": bool(cfg.entropy_coef)}
    scores = token_logprobs(actor, here.tokens, **options)
    logprobs, entropy = scores if cfg.entropy_coef else (scores, None)
    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    terms = policy_loss(logprobs, here.old_logprobs, here.advantages, here.mask, **clip)
    if cfg.importance_cap:
        cap = cfg.importance_cap
        terms = terms * importance_weights(here.old_logprobs, here.sampler_logprobs, here.mask, cap)
    if cfg.entropy_coef:
        terms = terms - cfg.entropy_coef * entropy
    return logprobs, terms


def minibatch_step(
    agent: Agent, data: Experience, lengths: Tensor, cfg: Config, world: World, *, warm: bool
) -> dict[str, Tensor] | None:
    """One optimiser step of the critic, and if `warm` of the actor, on one minibatch: what to log, as sums
    over this rank's tokens. None, and no step, if no rank has a token.

    The weights of the minibatch are made once, over all ranks; micro-batches only slice them.
    """
    weights = token_weights(data.mask, cfg.weights, max_tokens=cfg.max_tokens, all_reduce=world.sum)
    if not world.sum(data.mask.sum()):
        return None
    sums: dict[str, Tensor] = {}
    models = [agent.critic, agent.actor] if warm else [agent.critic]
    used = lengths * data.mask.any(1)  # rows without a trained token are not computed
    for rows, width in world.passes(micro_batches(used, cfg.micro_tokens, world), *models):
        here, w = micro_batch(data, rows, width, world.device), weights[rows, :width].to(world.device)
        values = agent.critic(here.tokens, here.mask)
        terms = value_loss(values, here.old_values, here.returns, here.mask, clip=cfg.value_clip or None)
        parts = {"value_loss": weighted_sum(terms, w)}
        parts["value_loss"].backward()
        if warm:
            logprobs, terms = objective(agent.actor, here, cfg)
            parts["loss"] = weighted_sum(terms, w)
            parts["loss"].backward()
            clips = cfg.clip_low, cfg.clip_high
            parts |= policy_stats(logprobs, here.old_logprobs, here.advantages, here.mask, *clips)
        accumulate(sums, parts)
    return sums | apply_gradients(agent, cfg, world, warm)


def update(
    agent: Agent, batch: Batch, data: Experience, cfg: Config, world: World, step: int
) -> dict[str, float]:
    """`epochs` x `minibatches` optimiser steps on a rollout batch, and their metrics: means over all trained
    tokens (losses: over optimiser steps) of all ranks, the largest ratio and gradient norms.

    Steps without a token to train, or with a gradient that is not finite, are left out and counted as
    skipped. While the critic alone is trained, the actor's metrics (loss, approx_kl, clip shares, ratios) are
    missing.
    """
    warm, steps = step >= cfg.critic_warmup, []
    for epoch in range(cfg.epochs):
        for rows in minibatches(batch, cfg, step, epoch):
            part = micro_batch(data, rows, data.tokens.size(1), data.tokens.device)
            steps.append(minibatch_step(agent, part, batch.lengths[rows], cfg, world, warm=warm))
    empty = steps.count(None)
    steps = [sums for sums in steps if sums is not None]
    if not steps:
        return {"updates": 0, "skipped": empty}
    names = ("critic_grad_norm", "grad_norm")[: 1 + warm]
    norms = {name: torch.stack([sums.pop(name) for sums in steps]) for name in names}
    skipped = empty + int((~torch.stack(list(norms.values())).isfinite()).any(0).sum())
    metrics = {"updates": len(steps), "skipped": skipped} | {k: v.max().item() for k, v in norms.items()}
    return metrics | {k: v for k, v in means(steps, world).items() if k != "tokens"}


# -- the script ------------------------------------------------------------------------------------


def check(cfg: Config) -> None:
    """Refuse what cannot work before anything is loaded. Raises UsageError."""
    check_objective(cfg)
    episodes = cfg.prompts * cfg.group
    if cfg.minibatches > episodes:
        raise UsageError(
            f"--minibatches {cfg.minibatches}; expected at most {episodes}, the episodes of a step"
        )


def train(cfg: Config, world: World) -> None:
    """The whole run: rollout, experience and update, `steps` times; then final/, the actor."""
    check(cfg)
    if cfg.steps <= cfg.critic_warmup and world.main:
        line = f"--steps {cfg.steps} with --critic-warmup {cfg.critic_warmup}: only the critic is trained"
        world.tell("warm-up", line)
    questions = StepQuestions(cfg, world)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world)
    reference = world.shard(copy.deepcopy(model).requires_grad_(False), cfg) if cfg.kl_coef else None
    critic = Critic(model)
    critic = world.shard(critic, cfg, float32=[critic.head])
    agent = Agent(world.shard(model, cfg), critic, cfg)
    shown = ("reward", "explained_variance")
    options = {"shown": shown, "updates": cfg.epochs * cfg.minibatches}
    for step in rollouts(cfg, world, run, tokenizer, agent.parts(), questions, **options):
        mask = loss_mask(step.batch, step.episodes, cfg)
        experience, metrics = make_experience(agent, reference, step.batch, mask, cfg, world)
        step.per_token |= {"trained": mask, "advantages": experience.advantages}
        step.mark("prepare")
        since = step.number - cfg.critic_warmup  # steps of the actor before this one
        lr = set_rate(agent.actor_optimizer, warmed(cfg.lr, since, cfg.warmup)) if since >= 0 else 0.0
        step.metrics |= metrics | update(agent, step.batch, experience, cfg, world, step.number)
        step.metrics |= {"lr": lr, "critic_lr": cfg.critic_lr}


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=PRESETS, first=("model", "tasks", "steps"))
    with World(cfg.device, cfg.rank_timeout) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
