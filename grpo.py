"""Group Relative Policy Optimisation of a model that uses a Python interpreter (2402.03300, 2505.21668).

    python grpo.py --model runs/sft/final --tasks toy --steps 40 --out runs/grpo
    torchrun --nproc_per_node 2 grpo.py --model DIR --tasks toy --out runs/grpo

One step:

    1. draw `prompts` questions; sample `group` episodes of each, programs really run      rollout()
    2. reward each by its final answer                                                     REWARDS
    3. advantage = how much better than the group's mean, in units of its spread           prepare()
    4. every token that the model wrote gets its episode's advantage; maximise the
       clipped likelihood ratio x advantage                                                objective()

How it differs from the textbook's PPO: no critic, the group's mean is the baseline. How it differs from text
only GRPO: an episode contains what the interpreter printed. The model did not choose those tokens, so they
are in its context but not in the loss. With --protocol text the same script is the text-only baseline.

--advantage reinforce++ is REINFORCE++ (2501.03262), with which R1-Code-Interpreter compares: no groups, the
return of each token whitened over the whole batch, KL charged in the reward. Everything else stays.

--preset r1ci sets what R1-Code-Interpreter publishes of its GRPO. --preset retool sets what ReTool
publishes of its PPO (see ppo.py), with groups in the place of the critic: its mini-batch of 512 episodes is
64 questions x 8 here. Options given beside a preset win. Not in the papers, so the options' defaults stand:
clips, updates per batch, warm-up, AdamW's betas, gradient clip; of R1-Code-Interpreter the lengths (2048 +
8192 tokens stand in), of ReTool the temperature in training, the token weights, the number of programs and
their time limit; its 16384 tokens are the longest sequence, here an episode after its prompt.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from episode import Batch, Episode, collate, micro_batches
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
from plumbing.config import UsageError, option
from plumbing.ranks import World
from plumbing.run import Run
from rollout import REWARDS, Limits, get_reward, open_sandbox, rollout
from sandbox import LEVELS
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
    tasks: str = option(
        "toy", "task or suite names, comma separated; of a suite, its training tasks; twice: twice as often"
    )
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
    out: str = option("runs/grpo", "run folder")
    steps: int = option(100, "rollout batches", least=1)
    prompts: int = option(16, "questions per step (R1-Code-Interpreter: 128)", least=1)
    group: int = option(8, "episodes per question (R1-Code-Interpreter: 5)", least=1)
    updates: int = option(1, "optimiser steps per rollout batch; 1 is exactly on-policy", least=1)
    lr: float = option(1e-6, "learning rate (both papers)", above=0)
    advantage: str = option(
        "group",
        "group: distance from the group's mean in units of its spread (GRPO); group_mean: distance alone "
        "(Dr. GRPO); reinforce++: return whitened over the batch, KL in the reward",
    )
    weights: str = option("token_mean", "token_mean (DAPO), seq_mean (GRPO) or constant (Dr. GRPO)")
    kind: str = option(
        "ppo", "ratio and clip: ppo, gspo (per sequence; its clips are 3e-4 and 4e-4) or cispo"
    )
    clip_low: float = option(0.2, "lower clip of the ratio; the papers do not give theirs", least=0)
    clip_high: float = option(0.28, "upper clip of the ratio, a little wider (DAPO)", least=0)
    dual_clip: float | None = option(
        None, "limits the loss of a token of negative advantage to this times its size", above=1
    )
    kl_coef: float = option(
        0.0, "weight of KL to the starting model (R1-Code-Interpreter: 0.001, ReTool: 0)", least=0
    )
    entropy_coef: float = option(0.0, "weight of an entropy bonus; neither paper has one", least=0)
    importance_cap: float = option(
        0.0, "weigh tokens by trainer's over sampler's probability, up to this; 0: log the gap only", least=0
    )
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    filter_overlong: bool = option(
        False, "episodes that ran out of tokens teach nothing, but stay in their group"
    )
    overlong_buffer: int = option(
        0, "reward falls to -1 over the last so many of --max-tokens (DAPO: 4096 of 20480); 0: no", least=0
    )
    drop_equal_groups: bool = option(
        False,
        "groups of equal rewards count in no mean, KL or entropy, only in the fixed divisor of --weights "
        "constant; their advantage is 0 in any case",
    )
    train_on_tool_output: bool = option(False, "ablation: interpreter tokens carry loss too")
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
    seed: int = option(0, "questions and sampling; weights of tiny", least=0)
    save_every: int = option(20, "steps between checkpoints", least=1)
    keep: int = option(2, "newest checkpoints that stay", least=1)
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
        "weights": "seq_mean",
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
        "prompts": 64,
        "group": 8,
        "lr": 1e-6,
        "kl_coef": 0.0,
        "max_prompt": 2048,
        "max_tokens": 16384,
    },
}


# -- advantages ------------------------------------------------------------------------------------


def group_advantages(rewards: Tensor, groups: Tensor, scale_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (std of its group + eps), (B,), float32 (2402.03300, 4.1.2).

    The standard deviation has ddof 1. A group of one, or of equal rewards, gets exactly 0: that is tested
    directly, since 0.1 is not representable and eps alone would turn rounding into an advantage. Statistics
    are float64. A reward of
    NaN means that the grader failed: it is left out of its group and gets 0.

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
    0 off the mask, and where the reward is NaN: the grader failed.

    >>> reinforce_advantages(torch.tensor([1.0, 0.0]), torch.tensor([[0, 1], [0, 1]]))[:, 1].tolist()
    [0.7071067690849304, -0.7071067690849304]
    """
    mask = mask.bool() & ~rewards.isnan().unsqueeze(1)
    returns = rewards.float().unsqueeze(1).expand(mask.shape)
    if kl is not None:
        returns = returns - kl_coef * kl.float().masked_fill(~mask, 0.0).flip(1).cumsum(1).flip(1)
    return whiten(returns, mask, all_reduce)


def loss_mask(batch: Batch, episodes: Sequence[Episode], cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained on. Who wrote them decides, and what the options drop; nothing
    of an episode without a reward, whose grader or sandbox failed."""
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
    mask &= ~batch.rewards.isnan()[:, None]
    if cfg.filter_overlong:
        mask &= torch.tensor([e.finish != "length" for e in episodes], dtype=torch.bool)[:, None]
    if cfg.drop_equal_groups:
        moved = group_advantages(batch.rewards, batch.groups) != 0  # somebody in a group that differs
        mask &= torch.isin(batch.groups, batch.groups[moved])[:, None]
    return mask


# -- one rollout batch -----------------------------------------------------------------------------


@dataclass
class Experience:
    """What all optimiser steps on a rollout batch share, fixed before the first: (B, T) each."""

    tokens: Tensor
    mask: Tensor  # what is trained
    sampled: Tensor  # the part of it that the model sampled: only there the sampler has log-probs
    sampler: Tensor  # the sampler's log-probs
    advantages: Tensor
    logprobs: Tensor | None  # of the policy before the steps; None: it takes one, and the ratio is exactly 1
    reference: Tensor | None  # log-probs of the starting model; None without KL

    def take(self, rows: Tensor, width: int, device: torch.device) -> "Experience":
        """Some rows, cut to the longest of them: a micro-batch."""
        parts = (getattr(self, f.name) for f in fields(self))
        return Experience(*(x if x is None else x[rows, :width].to(device) for x in parts))


@torch.no_grad()
def score(model: Qwen, batch: Batch, mask: Tensor, cfg: Config, world: World) -> Tensor:
    """Log-probs (B, T) of the masked-in tokens under a model that is not being trained."""
    logprobs = torch.zeros(mask.shape)
    for rows, width in micro_batches(batch.lengths, cfg.micro_tokens, world):
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        logprobs[rows, :width] = token_logprobs(model, tokens, mask=used, temperature=cfg.temperature).cpu()
    world.release(model)
    return logprobs


def prepare(
    model: Qwen, reference: Qwen | None, batch: Batch, mask: Tensor, cfg: Config, world: World
) -> Experience:
    """Advantages, and the log-probs that the optimiser steps compare with, where they need any."""
    ref = None if reference is None else score(reference, batch, mask, cfg, world)
    old = None
    if cfg.updates > 1 or (cfg.advantage == "reinforce++" and ref is not None):
        old = score(model, batch, mask, cfg, world)
    if cfg.advantage == "reinforce++":
        divergence = None if ref is None else kl(old, ref, mask, "k1")
        advantages = reinforce_advantages(batch.rewards, mask, divergence, cfg.kl_coef, world.sum)
    else:
        advantages = group_advantages(batch.rewards, batch.groups, scale_std=cfg.advantage == "group")
        advantages = advantages.unsqueeze(1).expand(mask.shape)
    sampled = mask & (batch.source == Source.POLICY)
    if cfg.updates == 1:
        old = None
    return Experience(batch.tokens, mask, sampled, batch.logprobs, advantages, old, ref)


def objective(logprobs: Tensor, entropy: Tensor, old: Tensor, data: Experience, cfg: Config) -> Tensor:
    """The loss of each token, (B, T), from its log-prob and entropy now and its log-prob `old` before the
    updates. Its weighted sum is minimised. The correction for the sampler concerns sampled tokens only; the
    KL of REINFORCE++ is in its advantages already.
    """
    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high, "dual_clip": cfg.dual_clip}
    terms = policy_loss(logprobs, old, data.advantages, data.mask, kind=cfg.kind, **clip)
    if cfg.importance_cap:
        weights = importance_weights(old, data.sampler, data.sampled, cfg.importance_cap)
        terms = terms * torch.where(data.sampled, weights, 1.0)
    if cfg.kl_coef and cfg.advantage != "reinforce++":
        terms = terms + cfg.kl_coef * kl(logprobs, data.reference, data.mask)
    if cfg.entropy_coef:
        terms = terms - cfg.entropy_coef * entropy
    return terms


@torch.no_grad()
def watch(logprobs: Tensor, old: Tensor, data: Experience, cfg: Config) -> dict[str, Tensor]:
    """What to log beside the loss, as sums over the tokens that the model sampled, trained on others or not.
    GSPO clips sequences, so there clip shares and ratios are of each token's sequence."""
    clips = (cfg.clip_low, cfg.clip_high)
    parts = policy_stats(logprobs, old, data.advantages, data.sampled, *clips)
    if cfg.kind == "gspo":
        mean = sequence_log_ratio(logprobs, old, data.mask)
        whole = policy_stats(old + mean, old, data.advantages, data.sampled, *clips)
        parts |= {name: whole[name] for name in ("clip_low", "clip_high", "ratio", "ratio_max")}
    if data.reference is not None:
        parts["kl"] = kl(logprobs, data.reference, data.sampled).sum()
    return parts


SUMS = ("tokens", "approx_kl", "clip_low", "clip_high", "ratio", "ratio_max", "loss", "entropy", "kl")


def backward(
    model: Qwen, data: Experience, lengths: Tensor, weights: Tensor, cfg: Config, world: World
) -> tuple[dict[str, Tensor], Mismatch]:
    """Gradients of this rank's share of the batch, in micro-batches; what to watch, as sums over tokens."""
    sums = dict.fromkeys(SUMS, torch.zeros((), device=world.device))
    mismatch = Mismatch()
    for rows, width in world.passes(micro_batches(lengths, cfg.micro_tokens, world), model):
        here, w = data.take(rows, width, world.device), weights[rows, :width].to(world.device)
        logprobs, entropy = token_logprobs(
            model, here.tokens, mask=here.mask, temperature=cfg.temperature, entropy=True
        )
        old = logprobs.detach() if here.logprobs is None else here.logprobs
        loss = weighted_sum(objective(logprobs, entropy, old, here, cfg), w)
        loss.backward()

        parts = watch(logprobs.detach(), old, here, cfg)
        parts |= {"loss": loss.detach(), "entropy": weighted_sum(entropy.detach(), here.sampled.float())}
        for name, value in parts.items():
            new = torch.maximum if name == "ratio_max" else torch.add
            sums[name] = new(sums[name], value)
        mismatch.add(old.cpu(), here.sampler.cpu(), here.sampled.cpu())
    return sums, mismatch


def update(
    model: Qwen,
    optimizer: torch.optim.Optimizer,
    data: Experience,
    lengths: Tensor,
    cfg: Config,
    world: World,
) -> dict[str, float]:
    """`updates` optimiser steps on a rollout batch, each on the whole of it, and their metrics: means over
    all trained tokens (the loss: over steps) and all ranks, and the largest ratio and gradient norm.

    A loss is a weighted sum of token terms; the weights are made once for the batch of all ranks, so that
    micro-batches only slice. With one update the ratio is 1 and its gradient is that of REINFORCE. A step
    whose gradient is not finite is left out and counted, on all ranks: they have the same gradient.
    """
    weights = token_weights(data.mask, cfg.weights, max_tokens=cfg.max_tokens, all_reduce=world.sum)
    any_tokens = bool(
        world.sum(data.mask.sum())
    )  # on any rank; without, Adam's momentum must not move weights
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
    metrics = averages(steps, world) | mismatch.metrics(world)
    if not cfg.kl_coef:
        del metrics["kl"]
    return metrics | {"grad_norm": norms.max().item(), "skipped": skipped}


def averages(steps: Sequence[dict[str, Tensor]], world: World) -> dict[str, float]:
    """Each step's sums over this rank's tokens -> means over steps and all ranks' tokens."""
    columns = {name: torch.stack([sums[name] for sums in steps]) for name in steps[0]}
    ratio_max = world.max(columns.pop("ratio_max").max()).item()
    total = world.sum(torch.stack([column.sum() for column in columns.values()])).tolist()
    total = dict(zip(columns, total, strict=True))
    tokens = total.pop("tokens")
    loss = total.pop("loss") / len(steps)
    means = {name: value / max(1.0, tokens) for name, value in total.items()}
    return {"loss": loss, "policy_tokens": int(tokens / len(steps)), "ratio_max": ratio_max} | means


# -- the script ------------------------------------------------------------------------------------


def check(cfg: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    if cfg.advantage not in ("group", "group_mean", "reinforce++"):
        raise UsageError(f"--advantage {cfg.advantage}; expected group, group_mean or reinforce++")
    if cfg.temperature <= 0:
        raise UsageError(
            f"--temperature {cfg.temperature}: training samples from the model; expected above 0"
        )
    if cfg.weights not in ("token_mean", "seq_mean", "constant"):
        raise UsageError(f"--weights {cfg.weights}; expected token_mean, seq_mean or constant")
    if cfg.kind not in ("ppo", "gspo", "cispo"):
        raise UsageError(f"--kind {cfg.kind}; expected ppo, gspo or cispo")
    if cfg.kind == "gspo" and cfg.weights != "seq_mean":
        raise UsageError(
            f"--weights {cfg.weights} with --kind gspo, whose ratio is a sequence's; expected --weights "
            "seq_mean --clip-low 3e-4 --clip-high 4e-4"
        )
    if cfg.advantage == "reinforce++" and cfg.drop_equal_groups:
        raise UsageError(
            "--drop-equal-groups with --advantage reinforce++, which knows no groups; leave one out"
        )
    if cfg.advantage == "reinforce++" and cfg.train_on_tool_output:
        raise UsageError(
            "--train-on-tool-output with --advantage reinforce++, whose returns are of the model's own "
            "tokens; leave one out"
        )
    if cfg.kind == "cispo" and cfg.dual_clip is not None:
        raise UsageError(
            f"--dual-clip {cfg.dual_clip} with --kind cispo, which has no such clip; leave one out"
        )
    get_protocol(cfg.protocol)
    check_order(cfg)


def train(cfg: Config, world: World) -> None:
    """The whole run: rollout and update, `steps` times; then final/."""
    check(cfg)
    use_bbh(cfg.bbh)
    tasks, protocol = for_training(cfg.tasks, cfg.train_on_test_tasks), get_protocol(cfg.protocol)
    course = plan_course(cfg, world)
    system = config.read_text(cfg.system_file, "--system-file")
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world)
    reference = world.shard(copy.deepcopy(model).requires_grad_(False), cfg) if cfg.kl_coef else None
    model = world.shard(model, cfg)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    parts = {"model": (model, optimizer)}
    done = run.restore(parts)
    limits = Limits(cfg.max_calls, cfg.max_tokens, cfg.max_output, cfg.timeout)
    reward = get_reward(cfg.reward, cfg.max_tokens, cfg.overlong_buffer)
    bar = world.progress(done, cfg.steps, "grpo")
    walls = (cfg.sandbox, cfg.timeout, cfg.preload, cfg.max_sandbox_errors)
    with open_sandbox(*walls, quiet=not world.main, url=cfg.sandbox_url) as sandbox:
        run.note_sandbox(sandbox.level, sandbox.layers, LEVELS)
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
            data = prepare(model, reference, batch, loss_mask(batch, episodes, cfg), cfg, world)
            prepared = time.perf_counter()
            metrics = (course.metrics(step) if course else {}) | describe(episodes, cfg.group, world)
            metrics |= update(model, optimizer, data, batch.lengths, cfg, world) | {"lr": cfg.lr}
            run.log(step + 1, metrics | speed(metrics, cfg.prompts * cfg.group, began, sampled, prepared))
            if step % cfg.log_every == 0:
                run.log_episodes(step + 1, [transcript(e, tokenizer) for e in episodes[: cfg.group : 2]])
            bar.set_postfix(
                reward=f"{metrics['reward']:.3f}", code=f"{metrics['code_ratio']:.2f}", refresh=False
            )
            stop = world.should_stop()
            if stop or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                run.save(step + 1, parts, tokenizer)
            if stop:
                return
    run.finish()


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=PRESETS)
    with World(cfg.device, cfg.rank_timeout) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
