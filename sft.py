"""Supervised fine-tuning on trajectories that contain code and its results.

    python sft.py --model tiny --tasks toy --steps 100 --out runs/sft
    torchrun --nproc_per_node 2 sft.py --model DIR --data trajectories.jsonl --out runs/sft

Ordinary next-token training with one difference: a trajectory holds text that the interpreter wrote. The
model must not learn to write that itself, so only tokens of Source.POLICY carry loss, the end-of-text token
included (--train-on-tool-output is the ablation). Without --data, trajectories are made from the tasks'
reference programs.
"""

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import coldstart
import config
from config import UsageError, option
from distributed import World
from loss import token_logprobs, token_weights, weighted_sum
from model import Qwen
from rollout import Episode, collate, micro_batches, open_sandbox, transcript
from tasks import PROTOCOLS, Problem, for_training, get_protocol, split_of, use_bbh
from tokenizer import Source, Tokenizer


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder, or tiny: the embedded model with random weights")
    data: str | None = option(None, "trajectories as JSON lines; without it, made from --tasks")
    tasks: str = option("toy", "tasks or suites whose reference programs give trajectories without --data")
    train_on_test_tasks: bool = option(False, "accept held-out tasks, which the test split measures")
    bbh: str | None = option(None, "folder with the official BIG-Bench Hard files; see tasks/bbh_files.py")
    per_task: int = option(2, "trajectories per task without --data", least=1)
    repair: float = option(0.2, "share of those that first fail and then repair their program", least=0)
    protocol: str = option("r1ci", "for lines of --data that name none: " + ", ".join(PROTOCOLS))
    system_file: str | None = option(None, "text file with a head prompt for lines without one of their own")
    out: str = option("runs/sft", "run folder")
    steps: int | None = option(None, "optimiser steps; without it, --epochs passes over the data", least=1)
    epochs: int = option(3, "passes over the data (R1-Code-Interpreter: 3, ReTool: 2)", least=1)
    batch: int = option(32, "trajectories per step (R1-Code-Interpreter: 32)", least=1)
    lr: float = option(1e-5, "peak learning rate; the papers do not give theirs", above=0)
    warmup: float = option(
        0.1, "share of the steps over which the rate rises; then a cosine to a tenth", least=0
    )
    weight_decay: float = option(0.0, "AdamW's decoupled decay", least=0)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    train_on_tool_output: bool = option(False, "ablation: interpreter tokens carry loss too")
    micro_tokens: int = option(8192, "tokens, padding included, per forward and backward pass", least=1)
    max_length: int = option(16384, "longer trajectories are left out, and counted", least=1)
    seed: int = option(0, "order of the data, and weights of tiny", least=0)
    save_every: int = option(100, "steps between checkpoints", least=1)
    resume: bool = option(False, "go on from the run folder's last checkpoint")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    dtype: str = option("auto", "float32, bfloat16 or float16; auto: float32 on CPU, bfloat16 on CUDA")


def encode(record: dict, tokenizer: Tokenizer, protocol: str, system: str | None = None) -> Episode:
    """One trajectory as tagged tokens, built exactly as rollout.py builds an episode.

    Roles: an optional system, then user, assistant, and tool and assistant in turn; further questions may
    follow an answer. Raises ValueError saying what is wrong with the record.
    """
    if not isinstance(record, dict) or not isinstance(record.get("protocol", ""), str):
        raise ValueError("expected an object whose protocol, if it names one, is text")
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError('expected {"messages": [{"role": ..., "content": ...}, ...]}')
    shape = PROTOCOLS.get(record.get("protocol", protocol))
    if shape is None:
        raise ValueError(f"unknown protocol {record['protocol']!r}; known are {', '.join(PROTOCOLS)}")
    turns = [(m.get("role"), m.get("content")) for m in messages]
    if not all(isinstance(text, str) for _, text in turns):
        raise ValueError("a message without text content")
    head = shape.system if system is None else system
    if turns and turns[0][0] == "system":
        head = turns.pop(0)[1]
    roles = [role for role, _ in turns]
    if not re.fullmatch("(user assistant (tool assistant )*)+", "".join(f"{role} " for role in roles)):
        raise ValueError(f"roles are {roles}; expected (user, assistant, (tool, assistant)*)+")

    question = turns[0][1]
    episode = Episode(Problem(record.get("task", ""), record.get("index", -1), question, None), group=0)
    end = [tokenizer.stop_ids[0]]
    for i, (role, text) in enumerate(turns):
        if role == "user":
            if i:
                episode.append(end, Source.POLICY)
            ids = tokenizer.follow_up(text) if i else tokenizer.chat(head, text)
            episode.append(ids + tokenizer.encode(shape.prefill), Source.PROMPT)
        elif role == "assistant":
            episode.append(tokenizer.encode(text), Source.POLICY)
        else:
            episode.append(tokenizer.encode(shape.wrap(text)), Source.TOOL)
    episode.append(end, Source.POLICY)
    return episode


def read(
    path: str, tokenizer: Tokenizer, protocol: str, system: str | None = None, test_tasks: bool = False
) -> list[Episode]:
    """All trajectories of a JSONL file; one of a held-out task is refused without `test_tasks`. Raises
    UsageError naming file, line and reason."""
    if not Path(path).is_file():
        raise UsageError(f"--data {path}: no such file; coldstart.py makes one")
    episodes = []
    with open(path, "rb") as f:  # bytes: a line that is not UTF-8 is one bad line, named like any other
        for number, line in enumerate(f, 1):
            try:
                episodes.append(encode(json.loads(line), tokenizer, protocol, system))
                task = episodes[-1].problem.task
                if not test_tasks and isinstance(task, str) and split_of(task) == "test":
                    raise ValueError(f"{task} is held out for the evaluation; --train-on-test-tasks takes it")
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}") from None
    return episodes


def trajectories(cfg: Config, tokenizer: Tokenizer, run: checkpoint.Run) -> list[Episode]:
    """The training data: from --data, or made from the reference programs of --tasks."""
    system = config.read_text(cfg.system_file, "--system-file")
    if cfg.data:
        found = read(cfg.data, tokenizer, cfg.protocol, system, cfg.train_on_test_tasks)
    else:
        use_bbh(cfg.bbh)
        tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
        drafts = coldstart.from_programs(tasks, cfg.protocol, cfg.per_task, cfg.repair, cfg.seed)
        with open_sandbox(cfg.sandbox, quiet=not run.world.main) as sandbox:
            run.note_sandbox(sandbox)
            found = [encode(r, tokenizer, cfg.protocol, system) for r in coldstart.execute(drafts, sandbox)]
    kept = [e for e in found if len(e.tokens) <= cfg.max_length]
    if len(kept) < len(found):
        print(f"left out {len(found) - len(kept)} of {len(found)} trajectories longer than {cfg.max_length}")
    if not kept:
        raise UsageError("no trajectory to train on; check --data or --tasks")
    return kept


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


def train_step(
    model: Qwen, optimizer: torch.optim.Optimizer, episodes: Sequence[Episode], cfg: Config, world: World
) -> dict[str, float]:
    """One optimiser step on this rank's episodes: -sum of weight x log-prob over the whole global batch."""
    batch = collate(episodes)
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
    weights = token_weights(mask, all_reduce=world.sum)
    total = torch.zeros(())
    for rows in micro_batches(batch.lengths, cfg.micro_tokens):
        width = int(batch.lengths[rows].max())
        tokens, used = batch.tokens[rows, :width].to(world.device), mask[rows, :width].to(world.device)
        logprobs = token_logprobs(model, tokens, mask=used)
        loss = weighted_sum(-logprobs, weights[rows, :width].to(world.device))
        loss.backward()
        total += loss.detach().cpu()
    world.sum_gradients(model)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
    if norm.isfinite():  # else the step is skipped, on all ranks, and the log says so
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        "loss": world.sum(total).item(),
        "grad_norm": norm.item(),
        "tokens": int(world.sum(mask.sum())),
        "skipped": int(not norm.isfinite()),
    }


def train(cfg: Config, world: World) -> None:
    """The whole run: data, steps, checkpoints, final/."""
    get_protocol(cfg.protocol)
    model, tokenizer = checkpoint.load_model(cfg.model, world, cfg.dtype, cfg.seed)
    run = checkpoint.Run(cfg, world, changeable=checkpoint.CHANGEABLE - {"steps"})  # the cosine needs them
    data = trajectories(cfg, tokenizer, run)
    steps = cfg.steps or math.ceil(len(data) * cfg.epochs / cfg.batch)
    run.remember("data", digest(data))
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=True
    )
    done = run.restore(model, optimizer)
    bar = world.progress(done, steps, "sft")
    for step in bar:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, cfg.lr, cfg.warmup)
        episodes = world.share(pick(data, step, cfg.batch, cfg.seed))
        metrics = train_step(model, optimizer, episodes, cfg, world)
        metrics |= {"lr": optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
        run.log(step + 1, metrics)
        if step == 0:
            run.log_episodes(1, [transcript(e, tokenizer) for e in episodes[:4]])
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
        stop = world.should_stop()
        if stop or (step + 1) % cfg.save_every == 0 or step + 1 == steps:
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
