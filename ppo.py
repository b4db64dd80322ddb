"""Proximal Policy Optimisation of a model that uses a Python interpreter (1707.06347, 2504.11536).

    python ppo.py --model runs/sft/final --tasks toy --steps 40 --out runs/ppo
    torchrun --nproc_per_node 2 ppo.py --model DIR --tasks toy --out runs/ppo

One step:

    1. draw `prompts` questions; sample `group` episodes of each, programs really run      rollout()
    2. reward the last token of each by its final answer, every token by -KL               token_rewards()
    3. advantage of each token = what followed it, beyond what the critic expected         gae()
    4. `epochs` times over the batch, in `minibatches` parts: maximise the clipped
       likelihood ratio x advantage; fit the critic to the returns                         update()

How it differs from grpo.py: there the baseline is the mean of a question's other episodes, and all tokens of
an episode get the same advantage. Here a second network, the critic, predicts the reward at every token, so
that a question needs no group and tokens are told apart. In return there are two models to train; for the
first `critic_warmup` steps the critic alone, because a baseline that knows nothing misleads.

How it differs from the textbook's PPO: an episode contains what the interpreter printed. Those tokens are no
actions. They have no reward, no value and no place in time: GAE steps from the last token before a result
to the first one after it, as if the result took no time to read.

--preset retool sets what ReTool publishes. Of the batch that is the mini-batch of 512 episodes alone, here
one optimiser step per pass over 512 questions; its 16384 tokens are the longest sequence, here an episode
after its prompt. --preset r1ci: that paper trains with GRPO and says that PPO reaches about the same,
without its settings; so its GRPO's, KL in the reward. Options given beside a preset win. Not in the papers,
so the options' defaults stand: passes per batch, clips, token weights, GAE, all of the critic, gradient
clip; of ReTool the temperature in training, the number of programs and their time limit; of
R1-Code-Interpreter the lengths (2048 + 8192 tokens stand in).
"""

import copy
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from episode import Batch, Episode, collate, micro_batches
from fast.packing import Packing
from loss import (
    importance_weights,
    kl,
    policy_loss,
    policy_stats,
    read_lengths,
    token_logprobs,
    token_weights,
    value_loss,
    weighted_sum,
    whiten,
)
from model import Qwen
from plumbing import config, shards
from plumbing.config import UsageError, option
from plumbing.ranks import World
from plumbing.run import Run
from rollout import REWARDS, Limits, get_reward, open_sandbox, rollout
from tasks import PROTOCOLS, for_training, get_protocol, use_bbh
from tokenizer import Source
from training.curriculum import ORDERS, check_order, plan_course
from training.loading import load_model
from training.loop import sampling, transcript
from training.metrics import Mismatch, describe, speed
from training.questions import problems, requests


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder, usually from sft.py; tiny: random weights")
    tasks: str = option("toy", "task or suite names, comma separated; of a suite, its training tasks")
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    curriculum: str | None = option(
        None, "questions of this file of curriculum.py instead of new ones of --tasks, in stages by potential"
    )
    stage_steps: int = option(150, "with --curriculum: steps per stage (R1-Code-Interpreter: 150)", least=1)
    order: str = option("curriculum", "with --curriculum, to compare: " + ", ".join(ORDERS))
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")
    reward: str = option("outcome", "what an episode is worth: " + ", ".join(REWARDS))
    out: str = option("runs/ppo", "run folder")
    steps: int = option(100, "rollout batches", least=1)
    prompts: int = option(16, "questions per step", least=1)
    group: int = option(
        8, "episodes per question; PPO needs no group, but this compares with grpo.py", least=1
    )
    epochs: int = option(2, "passes over each rollout batch; the clip keeps the later ones honest", least=1)
    minibatches: int = option(2, "optimiser steps per pass, each on its share of the episodes", least=1)
    lr: float = option(1e-6, "learning rate of the actor (ReTool)", above=0)
    critic_lr: float = option(
        1e-5, "learning rate of the critic: it starts from nothing and must keep up", above=0
    )
    critic_warmup: int = option(5, "first steps, in which the critic alone is trained", least=0)
    gamma: float = option(
        1.0, "discount per token; 1: a right answer is worth the same however long", least=0, most=1
    )
    lam: float = option(
        1.0, "GAE's lambda; at 0.95 the reward is forgotten 60 tokens before the end", least=0, most=1
    )
    weights: str = option("token_mean", "token_mean (DAPO), seq_mean (GRPO) or constant (Dr. GRPO)")
    clip_low: float = option(0.2, "lower clip of the ratio (PPO)", least=0)
    clip_high: float = option(0.28, "upper clip of the ratio, a little wider (DAPO)", least=0)
    dual_clip: float | None = option(
        None, "limits the loss of a token of negative advantage to this times its size", above=1
    )
    value_clip: float = option(
        0.2, "how far a value may move per rollout batch; 0: as far as it likes", least=0
    )
    kl_coef: float = option(0.0, "KL to the starting model, charged in the reward (ReTool: 0)", least=0)
    entropy_coef: float = option(0.0, "weight of an entropy bonus; neither paper has one", least=0)
    importance_cap: float = option(
        0.0, "weigh tokens by trainer's over sampler's probability, up to this; 0: log the gap only", least=0
    )
    grad_clip: float = option(1.0, "largest norm of the gradient, of actor and critic each", above=0)
    filter_overlong: bool = option(False, "episodes that ran out of tokens teach nothing")
    overlong_buffer: int = option(
        0, "reward falls to -1 over the last so many of --max-tokens (DAPO: 4096 of 20480); 0: no", least=0
    )
    temperature: float = option(1.0, "of sampling, and of the log-probs that are trained", least=0)
    max_prompt: int = option(512, "tokens of the longest prompt", least=1)
    max_tokens: int = option(
        512, "tokens of an episode after its prompt, the interpreter's included", least=1
    )
    max_calls: int = option(8, "programs per episode (R1-Code-Interpreter: 8)", least=0)
    max_output: int = option(1000, "characters of interpreter output shown to the model", least=1)
    timeout: float = option(5.0, "seconds per program", above=0)
    slots: int = option(128, "episodes decoded at once", least=1)
    micro_tokens: int = option(
        2048,
        "tokens per forward and backward pass, or one episode; a CPU is slower with more, a GPU faster",
        least=1,
    )
    seed: int = option(0, "questions, sampling and minibatches; weights of tiny", least=0)
    save_every: int = option(20, "steps between checkpoints", least=1)
    keep: int = option(2, "newest checkpoints that stay, beside the best", least=1)
    log_every: int = option(10, "steps between whole episodes in episodes.jsonl", least=1)
    resume: bool = option(False, "go on from the run folder's last checkpoint")
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    sandbox_url: str | None = option(None, "SandboxFusion server that runs the programs instead")
    max_sandbox_errors: float = option(
        0.01, "share of recent programs that the sandbox may fail to run; beyond, stop", least=0, most=1
    )
    checkpointing: bool = option(
        False, "compute each block again in the backward pass instead of keeping its activations: less memory"
    )
    offload: bool = option(
        False, "keep masters, optimiser and reference on the host: less GPU memory, a slower step"
    )
    rank_timeout: float = option(
        1800.0, "seconds that a rank waits for the others; more than rollouts differ by", above=0
    )
    dtype: str = option(
        "auto",
        "what is computed in, float32 or bfloat16; the weights that learn are float32 in any case; "
        "auto: float32 on CPU, bfloat16 on CUDA",
    )


PRESETS = {  # the docstring above says what of this the papers do not publish
    "r1ci": {
        "protocol": "r1ci",
        "reward": "r1ci",
        "prompts": 128,
        "group": 5,
        "lr": 1e-6,
        "kl_coef": 0.001,
        "temperature": 1.0,
        "max_prompt": 2048,
        "max_tokens": 8192,
        "max_calls": 8,
        "timeout": 60.0,
    },
    "retool": {
        "protocol": "retool",
        "reward": "retool",
        "prompts": 512,
        "group": 1,
        "minibatches": 1,
        "lr": 1e-6,
        "kl_coef": 0.0,
        "max_prompt": 2048,
        "max_tokens": 16384,
    },
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
    below 0 for one that is worse. Returns that do not vary leave nothing to explain: 0; by no more than
    float32 rounds what they were added up from."""
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
        adam = {"betas": (0.9, 0.95), "weight_decay": 0.0, "fused": True}
        self.actor_optimizer = torch.optim.AdamW(actor.parameters(), lr=cfg.lr, **adam)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), lr=cfg.critic_lr, **adam)

    def parts(self) -> shards.Parts:
        """What a checkpoint holds."""
        return {
            "model": (self.actor, self.actor_optimizer),
            "critic": (self.critic, self.critic_optimizer),
        }


def apply_gradients(agent: Agent, cfg: Config, world: World, warm: bool) -> dict[str, Tensor]:
    """One optimiser step of the critic, and if `warm` of the actor, with the gradients of all ranks; their
    norms. One that is not finite: no step of either, since both learn from the same returns."""
    parts = {"critic_grad_norm": (agent.critic, agent.critic_optimizer)}
    if warm:
        parts["grad_norm"] = (agent.actor, agent.actor_optimizer)
    norms = {}
    for name, (model, _) in parts.items():
        norms[name] = world.clip_gradients(model, cfg.grad_clip)
    finite = all(norm.isfinite() for norm in norms.values())
    for _, optimizer in parts.values():
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norms


# -- one rollout batch -----------------------------------------------------------------------------


@dataclass
class Experience:
    """What all updates of a rollout batch share, fixed before the first: (B, T) each."""

    tokens: Tensor
    mask: Tensor
    sampler: Tensor  # the sampler's log-probs
    logprobs: Tensor  # of the policy before the updates
    values: Tensor  # of the critic before the updates
    advantages: Tensor  # whitened
    returns: Tensor  # not whitened: the critic predicts rewards

    def take(self, rows: Tensor, width: int, device: torch.device) -> "Experience":
        """Some rows, cut to the longest of them: a micro-batch."""
        return Experience(*(getattr(self, f.name)[rows, :width].to(device) for f in fields(self)))


def loss_mask(batch: Batch, episodes: Sequence[Episode], cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained on: the policy's own, in episodes that could be graded."""
    kept = ~batch.rewards.isnan()
    if cfg.filter_overlong:
        kept &= torch.tensor([e.finish != "length" for e in episodes], dtype=torch.bool)
    return (batch.source == Source.POLICY) & kept[:, None]


@torch.no_grad()
def prepare(
    agent: Agent, reference: Qwen | None, batch: Batch, mask: Tensor, cfg: Config, world: World
) -> tuple[Experience, dict[str, float]]:
    """Log-probs and values before the updates, then rewards, advantages and returns; with their metrics.

    Truncated episodes count as over: running out of tokens is part of the task. Advantages are whitened once,
    over the episodes of all ranks.
    """
    zeros = torch.zeros(mask.shape)
    data = Experience(batch.tokens, mask, batch.logprobs, *(zeros.clone() for _ in range(4)))
    entropy, reference_logprobs = zeros.clone(), zeros.clone()
    for rows, width in micro_batches(batch.lengths, cfg.micro_tokens, world):
        here = data.take(rows, width, world.device)
        options = {"mask": here.mask, "temperature": cfg.temperature}
        scores = token_logprobs(agent.actor, here.tokens, entropy=True, **options)
        data.logprobs[rows, :width], entropy[rows, :width] = (x.cpu() for x in scores)
        data.values[rows, :width] = agent.critic(here.tokens, here.mask).cpu()
        if reference is not None:
            reference_logprobs[rows, :width] = token_logprobs(reference, here.tokens, **options).cpu()
    world.release(agent.actor, agent.critic, *([reference] if reference is not None else []))

    sums = {"tokens": mask.sum().double(), "entropy": entropy.sum().double()}
    divergence = None
    if reference is not None:
        divergence = kl(data.logprobs, reference_logprobs, mask, "k1")
        sums["kl"] = divergence.sum().double()
    rewards = token_rewards(batch.rewards, mask, divergence, cfg.kl_coef)
    advantages, data.returns = gae(rewards, data.values, mask, cfg.gamma, cfg.lam)
    data.advantages = whiten(advantages, mask, world.sum)

    sums |= {"value": data.values[mask].double().sum(), "return": data.returns[mask].double().sum()}
    total = dict(zip(sums, world.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
    tokens = total.pop("tokens")
    metrics = {"policy_tokens": int(tokens)} | {k: v / max(1.0, tokens) for k, v in total.items()}
    pairs = torch.cat(world.gather([torch.stack([data.values[mask], data.returns[mask]])]), dim=1)
    metrics["explained_variance"] = explained_variance(*pairs, torch.ones(pairs.size(1)))
    mismatch = Mismatch()
    mismatch.add(data.logprobs, batch.logprobs, mask)
    return data, metrics | mismatch.metrics(world)


def minibatches(batch: Batch, cfg: Config, step: int, epoch: int) -> Iterator[Tensor]:
    """This rank's rows of each minibatch. All ranks' episodes are shuffled by (seed, step, epoch) and dealt
    out, so which episodes meet does not depend on how many ranks there are; a rank may have no row in one."""
    order = list(range(cfg.prompts * cfg.group))
    random.Random(f"ppo {cfg.seed} {step} {epoch}").shuffle(order)
    sample = torch.arange(len(batch.groups)) % cfg.group  # a question's episodes are neighbours
    number = batch.groups * cfg.group + sample
    for i in range(cfg.minibatches):
        yield torch.isin(number, torch.tensor(order[i :: cfg.minibatches])).nonzero().squeeze(1)


def objective(actor: Qwen, here: Experience, cfg: Config) -> tuple[Tensor, Tensor]:
    """The actor's log-probs of a micro-batch, (B, T), and the loss of each token, whose weighted sum is
    minimised. KL is not in it: it is charged in the reward."""
    options = {"mask": here.mask, "temperature": cfg.temperature}
    if cfg.entropy_coef:
        logprobs, entropy = token_logprobs(actor, here.tokens, entropy=True, **options)
    else:
        logprobs = token_logprobs(actor, here.tokens, **options)
    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    terms = policy_loss(logprobs, here.logprobs, here.advantages, here.mask, **clip)
    if cfg.importance_cap:
        terms = terms * importance_weights(here.logprobs, here.sampler, here.mask, cfg.importance_cap)
    if cfg.entropy_coef:
        terms = terms - cfg.entropy_coef * entropy
    return logprobs, terms


def learn(
    agent: Agent, data: Experience, lengths: Tensor, cfg: Config, world: World, warm: bool
) -> dict[str, Tensor] | None:
    """One optimiser step of the critic, and if `warm` of the actor, on one minibatch: what to watch, as sums
    over this rank's tokens. None, and no step, if no rank has a token.

    The weights of the minibatch are made once, over all ranks; micro-batches only slice them.
    """
    weights = token_weights(data.mask, cfg.weights, max_tokens=cfg.max_tokens, all_reduce=world.sum)
    if not world.sum(data.mask.sum()):
        return None
    names = ["value_loss"] + warm * [
        "loss",
        "tokens",
        "approx_kl",
        "clip_low",
        "clip_high",
        "ratio",
        "ratio_max",
    ]
    sums = {name: torch.zeros((), device=world.device) for name in names}
    models = [agent.critic] + warm * [agent.actor]
    for rows, width in world.passes(micro_batches(lengths, cfg.micro_tokens, world), *models):
        here, w = data.take(rows, width, world.device), weights[rows, :width].to(world.device)
        terms = value_loss(
            agent.critic(here.tokens, here.mask),
            here.values,
            here.returns,
            here.mask,
            clip=cfg.value_clip or None,
        )
        parts = {"value_loss": weighted_sum(terms, w)}
        parts["value_loss"].backward()
        if warm:
            logprobs, terms = objective(agent.actor, here, cfg)
            parts["loss"] = weighted_sum(terms, w)
            parts["loss"].backward()
            parts |= policy_stats(
                logprobs, here.logprobs, here.advantages, here.mask, cfg.clip_low, cfg.clip_high
            )
        for name, value in parts.items():
            new = torch.maximum if name == "ratio_max" else torch.add
            sums[name] = new(sums[name], value.detach())
    return sums | apply_gradients(agent, cfg, world, warm)


def update(
    agent: Agent, batch: Batch, data: Experience, cfg: Config, world: World, step: int
) -> dict[str, float]:
    """`epochs` x `minibatches` optimiser steps on a rollout batch, and their metrics: means over all trained
    tokens (losses: over optimiser steps) and all ranks, and the largest ratio and gradient norms. Steps
    without a token to train, or with a gradient that is not finite, are left out and counted as skipped.
    While the critic alone is trained, the actor's metrics (loss, approx_kl, clip shares, ratios) are missing.
    """
    width, warm = data.tokens.size(1), step >= cfg.critic_warmup
    steps = []
    for epoch in range(cfg.epochs):
        for rows in minibatches(batch, cfg, step, epoch):
            part = data.take(rows, width, data.tokens.device)
            steps.append(learn(agent, part, batch.lengths[rows], cfg, world, warm))
    empty = steps.count(None)
    steps = [sums for sums in steps if sums is not None]
    if not steps:
        return {"updates": 0, "skipped": empty}
    columns = {name: torch.stack([sums[name] for sums in steps]) for name in steps[0]}
    norms = {name: columns.pop(name) for name in ("grad_norm", "critic_grad_norm") if name in columns}
    skipped = empty + int((~torch.stack(list(norms.values())).isfinite()).any(0).sum())
    metrics = {"updates": len(steps), "skipped": skipped} | {k: v.max().item() for k, v in norms.items()}
    if warm:
        metrics["ratio_max"] = world.max(columns.pop("ratio_max").max()).item()
    total = world.sum(torch.stack([column.sum() for column in columns.values()])).tolist()
    total = dict(zip(columns, total, strict=True))
    tokens = max(1.0, total.pop("tokens", 0.0))
    return metrics | {k: v / (len(steps) if "loss" in k else tokens) for k, v in total.items()}


# -- the script ------------------------------------------------------------------------------------


def check(cfg: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    if cfg.temperature <= 0:
        raise UsageError(
            f"--temperature {cfg.temperature}: training samples from the model; expected above 0"
        )
    if cfg.weights not in ("token_mean", "seq_mean", "constant"):
        raise UsageError(f"--weights {cfg.weights}; expected token_mean, seq_mean or constant")
    episodes = cfg.prompts * cfg.group
    if cfg.minibatches > episodes:
        raise UsageError(
            f"--minibatches {cfg.minibatches}; expected at most {episodes}, the episodes of a step"
        )
    get_protocol(cfg.protocol)
    check_order(cfg)


def train(cfg: Config, world: World) -> None:
    """The whole run: rollout and update, `steps` times; then final/, the actor."""
    check(cfg)
    if cfg.steps <= cfg.critic_warmup and world.main:
        line = f"--steps {cfg.steps} with --critic-warmup {cfg.critic_warmup}: only the critic is trained"
        world.tell("warm-up", line)
    use_bbh(cfg.bbh)
    tasks, protocol = for_training(cfg.tasks, cfg.train_on_test_tasks), get_protocol(cfg.protocol)
    course = plan_course(cfg, world)
    system = config.read_text(cfg.system_file, "--system-file")
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world)
    reference = world.shard(copy.deepcopy(model).requires_grad_(False), cfg) if cfg.kl_coef else None
    critic = Critic(model)
    critic = world.shard(critic, cfg, float32=[critic.head])
    agent = Agent(world.shard(model, cfg), critic, cfg)
    done = run.restore(agent.parts())
    limits = Limits(cfg.max_calls, cfg.max_tokens, cfg.max_output, cfg.timeout)
    reward = get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    bar = world.progress(done, cfg.steps, "ppo")
    walls = (cfg.sandbox, cfg.timeout, cfg.preload, cfg.max_sandbox_errors)
    with open_sandbox(*walls, quiet=not world.main, url=cfg.sandbox_url) as sandbox:
        run.note_sandbox(sandbox)
        if course:
            run.remember("curriculum", course.digest)
        for step in bar:
            began = time.perf_counter()
            found = course.problems(step) if course else problems(tasks, step, cfg.prompts, cfg.seed)
            asked = requests(found, cfg.group, cfg.seed, step, world)
            with sampling(model, cfg, world) as sampler:
                episodes = rollout(
                    sampler, tokenizer, asked, protocol, sandbox, limits, reward, forgive=True, system=system
                )
            sampled = time.perf_counter()
            batch = collate(episodes)
            mask = loss_mask(batch, episodes, cfg)
            data, metrics = prepare(agent, reference, batch, mask, cfg, world)
            prepared = time.perf_counter()
            metrics = describe(episodes, cfg.group, world) | metrics
            metrics |= course.metrics(step) if course else {}
            metrics |= update(agent, batch, data, cfg, world, step)
            metrics |= {"lr": cfg.lr * (step >= cfg.critic_warmup), "critic_lr": cfg.critic_lr}
            run.log(step + 1, metrics | speed(metrics, cfg.prompts * cfg.group, began, sampled, prepared))
            if step % cfg.log_every == 0:
                run.log_episodes(step + 1, [transcript(e, tokenizer) for e in episodes[: cfg.group : 2]])
            explained = metrics["explained_variance"]
            bar.set_postfix(reward=f"{metrics['reward']:.3f}", explained=f"{explained:.2f}", refresh=False)
            stop = world.should_stop()
            if stop or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                run.save(step + 1, agent.parts(), tokenizer)
            if stop:
                return
    run.finish()


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=PRESETS)
    with World(cfg.device, cfg.rank_timeout) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
