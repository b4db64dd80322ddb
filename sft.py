"""Supervised fine-tuning on trajectories that contain code and its results.

    python sft.py --model tiny --tasks toy --steps 100 --out runs/sft
    torchrun --nproc_per_node 2 sft.py --model DIR --data trajectories.jsonl --out runs/sft

Ordinary next-token training with one difference: a trajectory holds text that the interpreter wrote. The
model must not learn to write it, so only tokens of Source.POLICY carry loss, the end-of-text token included
(--train-on-tool-output is the ablation). Without --data, trajectories are made from the tasks' reference
programs.

A row of --data (JSON lines, a JSON list, Parquet) is one trajectory, in one of these forms:

    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text and code},
                  {"role": "tool", "content": output}, {"role": "assistant", "content": the answer}]}
    {"messages": [{"role": "user", ...}, {"role": "assistant", "content": text, code, result, ..., answer}]}
    {"tokens": [ids], "source": [0 prompt, 1 policy, 2 tool]}      as in episodes.jsonl, nothing encoded again

In the second form results stand in the text as the protocol writes them. trajectories/format.py says where
such a result ends, and which rows are refused because it cannot be told. Messages may be OpenAI's, with
`tool_calls` (as ReTool's are published), parts, `weight` and `reasoning_content`, or ShareGPT's
(trajectories/layouts.py). A row may name its "protocol". More keys do no harm.

The first question gets the protocol's prompt, unless the row begins with a system message or has a "prompt"
of its own, with {question} in it. Where the user's message holds its instructions already, as in ReTool's
published data, give a --prompt-file that holds {question} alone.

--preset r1ci sets 3 epochs of batches of 32, --preset retool 2 epochs. Neither paper gives the learning rate,
its schedule or the longest trajectory, nor ReTool the batch: there the options' defaults stand.
"""

import contextlib
import hashlib
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from episode import Batch, Episode, collate
from loss import token_logprobs, token_weights, weighted_sum
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import Dropped, World
from plumbing.run import CHANGEABLE, Run
from tasks import for_training, get_protocol, read_prompt, use_bbh
from tokenizer import Source, Tokenizer
from training.batches import micro_batches, score
from training.loading import load_model
from training.options import (
    Memory,
    ModelOptions,
    Prompting,
    RunOptions,
    SandboxOptions,
    TrainingQuestions,
)
from training.steps import adamw, set_rate, steps
from trajectories.encoding import encode, read


@dataclass(frozen=True)
class Config(TrainingQuestions, Prompting, ModelOptions, SandboxOptions, RunOptions, Memory):
    """SFT."""

    data: str | None = option(None, "trajectories, .jsonl, .json or .parquet; without it, made from --tasks")
    max_bad: float = option(
        0.0, "share of malformed lines in --data that is reported and left out", least=0, most=1
    )
    validation_data: str | None = option(None, "another file like --data; its loss is logged")
    validation_share: float = option(
        0.0, "share of the questions held out, such as 0.05; their loss is logged", least=0, most=0.9
    )
    validate_every: int = option(
        20, "steps between validations, and between measurements of the loss on interpreter tokens", least=1
    )
    per_task: int = option(2, "trajectories per task without --data", least=1)
    repair: float = option(0.2, "share of those that first fail and then repair their program", least=0)
    steps: int | None = option(None, "optimiser steps; without it, --epochs passes over the data", least=1)
    epochs: int = option(3, "passes over the data (R1-Code-Interpreter: 3, ReTool: 2)", least=1)
    batch: int = option(32, "trajectories per step (R1-Code-Interpreter: 32)", least=1)
    lr: float = option(1e-5, "peak learning rate; the papers do not give theirs", above=0)
    warmup: float = option(
        0.1, "share of the steps over which the rate rises; then a cosine to a tenth", least=0, most=1
    )
    weight_decay: float = option(0.0, "AdamW's decoupled decay", least=0)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    train_on_tool_output: bool = option(False, "ablation: interpreter tokens carry loss too")
    max_length: int = option(16384, "longer trajectories are left out, and counted", least=1)
    out: str = option("runs/sft", "run folder")
    save_every: int = option(100, "steps between checkpoints", least=1)


PRESETS = {  # the docstring above says what of this the papers do not publish
    "r1ci": {"protocol": "r1ci", "epochs": 3, "batch": 32},
    "retool": {"protocol": "retool", "epochs": 2},
}


# -- data ----------------------------------------------------------------------------------------


def trajectories(
    cfg: Config, tasks: Sequence[str], tokenizer: Tokenizer, run: Run
) -> tuple[list[Episode], list[Episode], list[str]]:
    """The training data, from --data or made from the tasks' reference programs; the validation data; and
    what there is to say about both."""
    prompt = read_prompt(cfg)
    if cfg.data:
        found, notes = read(
            cfg.data,
            tokenizer,
            cfg.protocol,
            **prompt,
            max_bad=cfg.max_bad,
            test_tasks=cfg.train_on_test_tasks,
        )
        notes += [f"left out {len(notes)} malformed lines of {len(found) + len(notes)}"] * bool(notes)
    else:
        found = [encode(record, tokenizer, cfg.protocol, **prompt) for record in made(cfg, tasks, run)]
        notes = []
    kept, held = fitting(found, cfg.max_length, notes, "trajectories"), []
    if cfg.validation_data:
        held, bad = read(
            cfg.validation_data, tokenizer, cfg.protocol, **prompt, max_bad=cfg.max_bad, test_tasks=True
        )
        notes += bad
        held = fitting(held, cfg.max_length, notes, "validation trajectories")
    elif cfg.validation_share:
        kept, held = hold_out(kept, cfg.validation_share, cfg.seed)
    if not kept:
        raise UsageError("no trajectory to train on; check --data or --tasks")
    if (cfg.validation_data or cfg.validation_share) and not held:
        raise UsageError("--validation-data or --validation-share: no trajectory is left to validate on")
    return kept, held, notes


def made(cfg: Config, tasks: Sequence[str], run: Run) -> list[dict]:
    """Trajectories of the tasks' reference programs, the same on all ranks. Rank 0 runs the programs for all:
    one that is late on one rank must not give it other data."""
    # with --data, SFT needs no sandbox
    from training.interpreter import note_sandbox, open_sandbox
    from trajectories.programs import execute, from_programs

    drafts = from_programs(tasks, cfg.protocol, cfg.per_task, cfg.repair, cfg.seed)
    with open_sandbox(cfg, quiet=not run.world.main) as sandbox:
        note_sandbox(run, sandbox)
        return run.world.gather(list(execute(drafts, sandbox)) if run.world.main else [])


def fitting(found: list[Episode], limit: int, notes: list[str], what: str) -> list[Episode]:
    """Those of at most `limit` tokens; a note if that is not all."""
    kept = [e for e in found if len(e.tokens) <= limit]
    if len(kept) < len(found):
        notes.append(f"left out {len(found) - len(kept)} of {len(found)} {what} longer than {limit}")
    return kept


def hold_out(data: Sequence[Episode], share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """What to train on and what to validate on. Whole questions are held out, not trajectories: two answers
    to one question, one on either side, would make the validation a test of memory."""

    def question(e: Episode) -> tuple | str:
        # before the first trained token there may be a mistake, too
        return e.problem.question or tuple(e.tokens[: e.source.index(Source.POLICY)])

    asked = list(dict.fromkeys(map(question, data)))
    random.Random(f"validation {seed}").shuffle(asked)
    held = set(asked[: max(1, round(share * len(asked)))])
    return [e for e in data if question(e) not in held], [e for e in data if question(e) in held]


# -- training --------------------------------------------------------------------------------------


def digest(data: Sequence[Episode]) -> str:
    """A fingerprint of the tagged tokens, so that a resumed run goes on with the same data."""
    return hashlib.sha256(repr([(e.tokens, e.source) for e in data]).encode()).hexdigest()


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear rise over the first share `warmup` of the steps, then half a cosine down to peak / 10."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def pick(data: Sequence[Episode], step: int, batch: int, seed: int) -> list[Episode]:
    """The trajectories of a step, known from the step alone: slices of a fresh shuffle per epoch."""
    chosen = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, i = divmod(place, len(data))
        if not chosen or i == 0:
            order = list(range(len(data)))
            random.Random(f"{seed} {epoch}").shuffle(order)
        chosen.append(data[order[i]])
    return chosen


def loss_mask(batch: Batch, cfg: Config) -> Tensor:
    """(B, T) bool: which tokens are trained."""
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
    return mask


def train_step(
    model: Qwen, optimizer: torch.optim.Optimizer, episodes: Sequence[Episode], cfg: Config, world: World
) -> dict[str, float]:
    """One optimiser step on this rank's episodes: -sum of weight x log-prob over the whole global batch. In
    order of length, which changes nothing but how well they pack."""
    batch = collate(sorted(episodes, key=lambda e: len(e.tokens)))
    mask = loss_mask(batch, cfg)
    weights = token_weights(mask, all_reduce=world.sum)
    total = torch.zeros(())
    for rows, width in world.passes(micro_batches(batch.lengths, cfg.micro_tokens, world), model):
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        logprobs = token_logprobs(model, tokens, mask=used)
        loss = weighted_sum(-logprobs, weights[rows, :width].to(world.device))
        loss.backward()
        total += loss.detach().cpu()
    norm = world.clip_gradients(model, cfg.grad_clip)
    if norm.isfinite():  # else the step is skipped, on all ranks, and the log says so
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": world.sum(total).item(),
        "grad_norm": norm.item(),
        "tokens": int(world.sum(mask.sum())),
        "skipped": int(not norm.isfinite()),
    }


@torch.no_grad()
def measure(model: Qwen, episodes: Sequence[Episode], cfg: Config, world: World) -> dict[str, float]:
    """Mean -log-prob over the policy's and over the interpreter's tokens of all ranks ("policy", "tool"),
    trained or not; a kind without tokens is left out."""
    batch = collate(episodes)

    def logprobs(tokens: Tensor, used: Tensor) -> tuple[Tensor]:
        return (token_logprobs(model, tokens, mask=used),)

    (found,) = score(model, logprobs, batch, batch.source != Source.PROMPT, cfg, world)
    masks = [batch.source == kind for kind in (Source.POLICY, Source.TOOL)]
    sums = torch.stack([torch.stack([-found[mask].double().sum(), mask.sum()]) for mask in masks])
    total = dict(zip(("policy", "tool"), world.sum(sums).tolist(), strict=True))
    return {kind: loss / tokens for kind, (loss, tokens) in total.items() if tokens}


def train(cfg: Config, world: World) -> None:
    """The whole run: data, steps, checkpoints, final/."""
    get_protocol(cfg.protocol)
    if cfg.validation_data and cfg.validation_share:
        raise UsageError("--validation-data and --validation-share: expected one of them")
    use_bbh(cfg.bbh)
    tasks = [] if cfg.data else for_training(cfg.tasks, cfg.train_on_test_tasks)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world, changeable=CHANGEABLE - {"steps"})  # the cosine needs them
    data, held, notes = trajectories(cfg, tasks, tokenizer, run)
    if world.main and notes:
        print("\n".join(notes), file=sys.stderr)
    total = cfg.steps or math.ceil(len(data) * cfg.epochs / cfg.batch)
    run.remember("data", digest(data))
    model = world.shard(model, cfg)
    optimizer = adamw(model, cfg.lr, cfg.weight_decay)
    parts = {"model": (model, optimizer)}
    for step in steps(cfg, world, run, tokenizer, parts, total, shown=("loss",)):
        start, number = time.perf_counter(), step.number
        lr = set_rate(optimizer, learning_rate(number, total, cfg.lr, cfg.warmup))
        episodes = world.share(pick(data, number, cfg.batch, cfg.seed))
        if number % cfg.validate_every == 0:  # before the step, as the loss is
            step.metrics = {f"loss_{kind}": x for kind, x in measure(model, episodes, cfg, world).items()}
        step.metrics |= train_step(model, optimizer, episodes, cfg, world)
        seconds = time.perf_counter() - start
        step.metrics |= {"lr": lr, "seconds": seconds, "tokens_per_second": step.metrics["tokens"] / seconds}
        if held and ((number + 1) % cfg.validate_every == 0 or number + 1 == total):
            with contextlib.suppress(Dropped):  # SIGTERM: the step is done, and ends without this
                found = measure(model, world.share(held), cfg, world)
                step.metrics |= {f"validation_loss_{kind}": x for kind, x in found.items()}
        if number == 0:
            step.logged = episodes[:4]
            step.per_token["trained"] = loss_mask(collate(step.logged), cfg)


def main() -> None:
    cfg = config.parse(Config, __doc__, presets=PRESETS, first=("model", "data", "epochs"))
    with World(cfg.device, cfg.rank_timeout) as world:
        train(cfg, world)


if __name__ == "__main__":
    config.run(main)
