"""Group Relative Policy Optimisation of a model that uses a Python interpreter (2402.03300, 2505.21668).

    python grpo.py --model runs/sft/final --tasks toy --steps 40 --out runs/grpo
    torchrun --nproc_per_node 2 grpo.py --model DIR --tasks toy --out runs/grpo

One step:

    1. draw `prompts` questions; sample `group` episodes of each, programs really run      rollout()
    2. reward each by its final answer                                                     REWARDS
    3. advantage = how much better than the group's mean, in units of its spread           group_advantages()
    4. every token that the model wrote gets its episode's advantage; maximise the
       clipped likelihood ratio x advantage                                                update()

How it differs from the textbook's PPO: no critic, the group's mean is the baseline. How it differs from text
only GRPO: an episode contains what the interpreter printed. The model did not choose those tokens, so they
are in its context but not in the loss. With --protocol text the same script is the text-only baseline.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import checkpoint
import config
from config import UsageError, nearest, option
from distributed import World
from loss import kl, policy_loss, policy_stats, token_logprobs, token_weights, weighted_sum
from model import Qwen
from rollout import (
    REWARDS,
    Batch,
    Episode,
    Limits,
    Mismatch,
    collate,
    describe,
    micro_batches,
    open_sandbox,
    problems,
    requests,
    rollout,
    transcript,
)
from sample import Sampler
from tasks import PROTOCOLS, for_training, get_protocol, use_bbh
from tokenizer import Source


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder, usually from sft.py; tiny: random weights")
    tasks: str = option(
        "toy", "task or suite names, comma separated; of a suite, its training tasks; twice: twice as often"
    )
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    protocol: str = option("r1ci", "how code and answers are written: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with another head prompt than the protocol's")
    reward: str = option("outcome", "what an episode is worth: " + ", ".join(REWARDS))
    out: str = option("runs/grpo", "run folder")
    steps: int = option(100, "rollout batches", least=1)
    prompts: int = option(16, "questions per step (R1-Code-Interpreter: 128)", least=1)
    group: int = option(8, "episodes per question (R1-Code-Interpreter: 5)", least=1)
    updates: int = option(1, "optimiser steps per rollout batch; 1 is exactly on-policy", least=1)
    lr: float = option(1e-6, "learning rate (both papers)", above=0)
    scale_std: bool = option(True, "divide by the group's standard deviation; off is Dr. GRPO")
    weights: str = option("token_mean", "token_mean (DAPO), seq_mean (GRPO) or constant (Dr. GRPO)")
    kind: str = option("ppo", "ratio and clip: ppo, gspo (per sequence) or cispo")
    clip_low: float = option(0.2, "lower clip of the ratio; the papers do not give theirs", least=0)
    clip_high: float = option(0.28, "upper clip of the ratio, a little wider (DAPO)", least=0)
    kl_coef: float = option(
        0.0, "weight of KL to the starting model (R1-Code-Interpreter: 0.001, ReTool: 0)", least=0
    )
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    filter_overlong: bool = option(
        False, "episodes that ran out of tokens teach nothing, but stay in their group"
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
    micro_tokens: int = option(8192, "tokens, padding included, per forward and backward pass", least=1)
    seed: int = option(0, "questions and sampling; weights of tiny", least=0)
    save_every: int = option(20, "steps between checkpoints", least=1)
    log_every: int = option(10, "steps between whole episodes in episodes.jsonl", least=1)
    resume: bool = option(False, "go on from the run folder's last checkpoint")
    preload: str = option("numpy,sympy", "modules imported before any program runs, where installed")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    max_sandbox_errors: float = option(
        0.01, "share of recent programs that the sandbox may fail to run; beyond, stop", least=0, most=1
    )
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


def group_advantages(rewards: Tensor, groups: Tensor, scale_std: bool = True, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean of its group) / (std of its group + eps), (B,), float32 (2402.03300, 4.1.2).

    The standard deviation has ddof 1. A group of one, or of equal rewards, gets exactly 0: that is tested
    directly, since 0.1 is not representable and eps alone would turn rounding into an advantage. A reward of
    NaN means that the grader failed: it is left out of its group and gets 0.

    >>> group_advantages(torch.tensor([1.0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), scale_std=False).tolist()
    [0.5, -0.5, -0.5, 0.5]
    """
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    for group in groups.unique():
        members = (groups == group) & ~rewards.isnan()
        r = rewards[members].float()
        if len(r) < 2 or r.max() == r.min():
            continue
        centred = r - r.mean()
        advantages[members] = centred / (r.std() + eps) if scale_std else centred
    return advantages


def loss_mask(batch: Batch, episodes: Sequence[Episode], cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained on. Who wrote them decides, nothing else."""
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
    if cfg.filter_overlong:
        mask &= torch.tensor([e.finish != "length" for e in episodes], dtype=torch.bool)[:, None]
    return mask


SUMS = ("tokens", "approx_kl", "clip_low", "clip_high", "ratio", "ratio_max", "loss", "entropy")


def update(
    model: Qwen,
    reference: Callable[[], Qwen],
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    mask: Tensor,
    advantages: Tensor,
    cfg: Config,
    world: World,
) -> dict[str, float]:
    """`updates` optimiser steps on a rollout batch, each on the whole of it. Returns the last one's metrics.

    A loss is a weighted sum of token terms; the weights are made once for the batch of all ranks, so that
    micro-batches only slice. With one update the ratio is 1 and its gradient is that of REINFORCE.
    """
    slices = [
        (rows, int(batch.lengths[rows].max())) for rows in micro_batches(batch.lengths, cfg.micro_tokens)
    ]
    weights = token_weights(mask, cfg.weights, max_tokens=cfg.max_tokens, all_reduce=world.sum)
    any_tokens = bool(
        world.sum(mask.sum())
    )  # on any rank; without, Adam's momentum must not move the weights

    def score(m: Qwen, rows: Tensor, width: int, **options):
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        return token_logprobs(m, tokens, mask=used, temperature=cfg.temperature, **options)

    clip = {"clip_low": cfg.clip_low, "clip_high": cfg.clip_high}
    old: list[Tensor | None] = [None] * len(slices)
    ref: list[Tensor | None] = [None] * len(slices)
    with torch.no_grad():
        if cfg.updates > 1:
            old = [score(model, *s) for s in slices]
        if cfg.kl_coef:
            ref = [score(reference(), *s) for s in slices]

    for _ in range(cfg.updates):
        sums = dict.fromkeys(SUMS + ("kl",) * bool(cfg.kl_coef), torch.zeros((), device=world.device))
        mismatch = Mismatch()
        for i, (rows, width) in enumerate(slices):
            used, w = mask[rows, :width].to(world.device), weights[rows, :width].to(world.device)
            advantage = advantages[rows].to(world.device)
            logprobs, entropy = score(model, rows, width, entropy=True)
            before = logprobs.detach() if old[i] is None else old[i]
            terms = policy_loss(logprobs, before, advantage, used, kind=cfg.kind, **clip)
            if cfg.kl_coef:
                terms = terms + cfg.kl_coef * kl(logprobs, ref[i], used)
            loss = weighted_sum(terms, w)
            loss.backward()

            parts = policy_stats(logprobs, before, advantage, used, **clip)
            parts |= {"loss": loss.detach(), "entropy": entropy.detach().sum()}
            if cfg.kl_coef:
                parts["kl"] = kl(logprobs.detach(), ref[i], used).sum()
            for name, value in parts.items():
                new = torch.maximum if name == "ratio_max" else torch.add
                sums[name] = new(sums[name], value)
            sampled = (batch.source == Source.POLICY)[rows, :width] & used.cpu()
            mismatch.add(before.cpu(), batch.logprobs[rows, :width], sampled)
        world.sum_gradients(model)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        if norm.isfinite() and any_tokens:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    skipped = {"grad_norm": norm.item(), "skipped": int(not (norm.isfinite() and any_tokens))}
    return averages(sums, world) | mismatch.metrics(world) | skipped


def averages(sums: dict[str, Tensor], world: World) -> dict[str, float]:
    """Sums over this rank's tokens -> means over all ranks' tokens; the loss is a sum already."""
    ratio_max = world.max(sums.pop("ratio_max")).item()
    total = dict(zip(sums, world.sum(torch.stack(list(sums.values()))).tolist(), strict=True))
    tokens = max(1.0, total.pop("tokens"))
    loss = total.pop("loss")
    means = {name: value / tokens for name, value in total.items()}
    return {"loss": loss, "policy_tokens": int(tokens), "ratio_max": ratio_max} | means


def check(cfg: Config) -> None:
    """Refuse what cannot work before anything is loaded."""
    if cfg.reward not in REWARDS:
        raise UsageError(
            f"--reward {cfg.reward}{nearest(cfg.reward, REWARDS)}; known are {', '.join(REWARDS)}"
        )
    if cfg.temperature <= 0:
        raise UsageError(
            f"--temperature {cfg.temperature}: training samples from the model; expected above 0"
        )
    if cfg.weights not in ("token_mean", "seq_mean", "constant"):
        raise UsageError(f"--weights {cfg.weights}; expected token_mean, seq_mean or constant")
    if cfg.kind not in ("ppo", "gspo", "cispo"):
        raise UsageError(f"--kind {cfg.kind}; expected ppo, gspo or cispo")
    get_protocol(cfg.protocol)


def train(cfg: Config, world: World) -> None:
    """The whole run: rollout and update, `steps` times; then final/."""
    check(cfg)
    use_bbh(cfg.bbh)
    tasks, protocol = for_training(cfg.tasks, cfg.train_on_test_tasks), get_protocol(cfg.protocol)
    system = config.read_text(cfg.system_file, "--system-file")
    model, tokenizer = checkpoint.load_model(cfg.model, world, cfg.dtype, cfg.seed)
    run = checkpoint.Run(cfg, world)
    start_model = copy.deepcopy(model).requires_grad_(False) if cfg.kl_coef else None
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    done = run.restore(model, optimizer)
    limits = Limits(cfg.max_calls, cfg.max_tokens, cfg.max_output, cfg.timeout)
    slots = min(cfg.slots, cfg.prompts * cfg.group)
    sampler = Sampler(model, slots, cfg.max_prompt + cfg.max_tokens, temperature=cfg.temperature)
    bar = world.progress(done, cfg.steps, "grpo")
    walls = (cfg.sandbox, cfg.timeout, cfg.preload, cfg.max_sandbox_errors)
    with open_sandbox(*walls, quiet=not world.main) as sandbox:
        run.note_sandbox(sandbox)
        for step in bar:
            began = time.perf_counter()
            found = problems(tasks, step, cfg.prompts, cfg.seed)
            asked = requests(found, cfg.group, cfg.seed, step, world)
            reward = REWARDS[cfg.reward]
            episodes = rollout(
                sampler, tokenizer, asked, protocol, sandbox, limits, reward, forgive=True, system=system
            )
            sampled = time.perf_counter()
            batch = collate(episodes)
            advantages = group_advantages(batch.rewards, batch.groups, cfg.scale_std)
            mask = loss_mask(batch, episodes, cfg)
            metrics = describe(episodes, cfg.group, world)
            metrics |= update(model, lambda: start_model, optimizer, batch, mask, advantages, cfg, world)
            ended = time.perf_counter()
            metrics |= {"seconds_rollout": sampled - began, "seconds_update": ended - sampled, "lr": cfg.lr}
            run.log(step + 1, metrics)
            if step % cfg.log_every == 0:
                run.log_episodes(step + 1, [transcript(e, tokenizer) for e in episodes[: cfg.group : 2]])
            bar.set_postfix(
                reward=f"{metrics['reward']:.3f}", code=f"{metrics['code_ratio']:.2f}", refresh=False
            )
            stop = world.should_stop()
            if stop or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                run.save(step + 1, model, optimizer, tokenizer)
            if stop:
                return
    run.finish(model, tokenizer)


def main() -> None:
    cfg = config.parse(Config, __doc__)
    with World(cfg.device) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
