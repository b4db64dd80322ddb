"""Supervised fine-tuning on trajectories that contain code and its results.

    python sft.py --model tiny --tasks toy --steps 100 --out runs/sft
    torchrun --nproc_per_node 2 sft.py --model DIR --data trajectories.jsonl --out runs/sft

Ordinary next-token training with one difference: a trajectory holds text that the interpreter wrote. The
model must not learn to write that itself, so only tokens of Source.POLICY carry loss, the end-of-text token
included (--train-on-tool-output is the ablation). Without --data, trajectories are made from the tasks'
reference programs.

A line of --data is one trajectory, in any of three forms:

    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": text and code},
                  {"role": "tool", "content": output}, {"role": "assistant", "content": the answer}]}
    {"messages": [{"role": "user", ...}, {"role": "assistant", "content": text, code, result, ..., answer}]}
    {"tokens": [ids], "source": [0 prompt, 1 policy, 2 tool]}      as in episodes.jsonl, nothing encoded again

In the second, results stand in the text as the protocol writes them: after a code block, for retool between
<interpreter> and </interpreter>, for r1ci from `Code Execution Results:` to the first empty line. Nothing
marks the end of the latter, so a line where it could be elsewhere is malformed: an empty result, another
empty line between a result and the next code block or the text's end, or a further code block there; give
such results as messages of role tool. A line of messages may begin with a system message and name its
"protocol". More keys do no harm.

--preset r1ci: 3 epochs of batches of 32. --preset retool: 2 epochs. Options given beside a preset win.
Neither paper gives the learning rate, its schedule or the longest trajectory, and ReTool not the batch:
there the options' defaults stand.
"""

import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from episode import Episode, collate, micro_batches
from loss import token_logprobs, token_weights, weighted_sum
from model import Qwen
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from plumbing.run import CHANGEABLE, Run
from rollout import open_sandbox
from sandbox import LEVELS
from tasks import PROTOCOLS, Problem, for_training, get_protocol, split_of, use_bbh
from tokenizer import Source, Tokenizer
from training.loading import load_model
from training.loop import transcript
from trajectories.format import conversation
from trajectories.programs import execute, from_programs


@dataclass(frozen=True)
class Config:
    model: str = option("tiny", "checkpoint folder, or tiny: the embedded model with random weights")
    data: str | None = option(None, "trajectories as JSON lines; without it, made from --tasks")
    max_bad: float = option(
        0.0,
        "share of malformed lines in --data that is reported and left out; more stop the run",
        least=0,
        most=1,
    )
    validation: str | None = option(
        None, "share of the questions held out, such as 0.05, or another file like --data; its loss is logged"
    )
    validate_every: int = option(
        20, "steps between validations, and between measurements of the loss on interpreter tokens", least=1
    )
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
        0.1, "share of the steps over which the rate rises; then a cosine to a tenth", least=0, most=1
    )
    weight_decay: float = option(0.0, "AdamW's decoupled decay", least=0)
    grad_clip: float = option(1.0, "largest norm of the gradient", above=0)
    train_on_tool_output: bool = option(False, "ablation: interpreter tokens carry loss too")
    micro_tokens: int = option(
        2048,
        "tokens per forward and backward pass, or one trajectory; a CPU is slower with more, a GPU faster",
        least=1,
    )
    max_length: int = option(16384, "longer trajectories are left out, and counted", least=1)
    seed: int = option(0, "order of the data, and weights of tiny", least=0)
    save_every: int = option(100, "steps between checkpoints", least=1)
    keep: int = option(2, "newest checkpoints that stay", least=1)
    resume: bool = option(False, "go on from the run folder's last checkpoint")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")
    device: str | None = option(None, "cpu or cuda; without it, cuda where there is one")
    checkpointing: bool = option(
        False, "compute each block again in the backward pass instead of keeping its activations: less memory"
    )
    offload: bool = option(False, "keep masters and optimiser on the host: less GPU memory, a slower step")
    rank_timeout: float = option(
        1800.0, "seconds that a rank waits for the others; more than a step and a save take", above=0
    )
    dtype: str = option(
        "auto",
        "what is computed in, float32 or bfloat16; the weights that learn are float32 in any case; "
        "auto: float32 on CPU, bfloat16 on CUDA",
    )


PRESETS = {  # the docstring above says what of this the papers do not publish
    "r1ci": {"protocol": "r1ci", "epochs": 3, "batch": 32},
    "retool": {"protocol": "retool", "epochs": 2},
}


# -- from lines to tagged tokens -------------------------------------------------------------------


def encode(record: dict, tokenizer: Tokenizer, protocol: str, system: str | None = None) -> Episode:
    """One trajectory, in any of the forms above, as tagged tokens, built exactly as rollout.py builds an
    episode. Raises ValueError saying what is wrong with the record.
    """
    if not isinstance(record, dict) or not isinstance(record.get("protocol", ""), str):
        raise ValueError("expected an object whose protocol, if it names one, is text")
    if "tokens" in record:
        return sampled(record, tokenizer)
    shape = PROTOCOLS.get(record.get("protocol", protocol))
    if shape is None:
        raise ValueError(f"unknown protocol {record['protocol']!r}; known are {', '.join(PROTOCOLS)}")
    head, turns = conversation(record, shape)
    if head is None:
        head = shape.system if system is None else system

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
            episode.append(tokenizer.encode(text, marks=True), Source.POLICY)
        else:
            episode.append(tokenizer.encode(shape.wrap(text)), Source.TOOL)
    episode.append(end, Source.POLICY)
    return episode


def sampled(record: dict, tokenizer: Tokenizer) -> Episode:
    """An episode as it was sampled: ids and who wrote each. Where the record holds their text too (`spans`),
    another model's ids are noticed. Raises ValueError."""
    tokens, source = record["tokens"], record.get("source")
    for name, found, size in (("tokens", tokens, tokenizer.vocab_size), ("source", source, len(Source))):
        good = isinstance(found, list) and all(type(x) is int and 0 <= x < size for x in found)
        if not good:
            raise ValueError(f"{name}: expected a list of integers from 0 to {size - 1}")
    if len(tokens) != len(source):
        raise ValueError(f"{len(tokens)} tokens and {len(source)} entries of source; expected as many")
    if not source or source[0] != Source.PROMPT or source[-1] != Source.POLICY:
        raise ValueError("expected a source that begins with the prompt (0) and ends with the policy (1)")
    problem = Problem(record.get("task", ""), record.get("index", -1), "", None)
    episode = Episode(problem, 0, tokens, source, [0.0] * len(tokens))
    if "spans" in record and record["spans"] != transcript(episode, tokenizer)["spans"]:
        raise ValueError("spans are not the text of tokens; were they sampled with another tokenizer?")
    return episode


def read(
    path: str,
    tokenizer: Tokenizer,
    protocol: str,
    system: str | None = None,
    max_bad: float = 0.0,
    test_tasks: bool = False,
) -> tuple[list[Episode], list[str]]:
    """All trajectories of a JSONL file, and a line of complaint naming file, line and reason for each that is
    malformed. Raises UsageError where that is more than a share of `max_bad`, and for a trajectory of a
    held-out task without `test_tasks`."""
    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file of trajectories; coldstart.py makes one")
    episodes, bad = [], []
    with open(path, "rb") as f:  # bytes: a line that is not UTF-8 is one bad line, named like any other
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                episodes.append(encode(json.loads(line), tokenizer, protocol, system))
            except (ValueError, RecursionError) as error:
                bad.append(f"{path}, line {number}: {' '.join(str(error).split())}")
                continue
            task = episodes[-1].problem.task
            if not test_tasks and isinstance(task, str) and split_of(task) == "test":
                why = f"{task} is held out for the evaluation; --train-on-test-tasks takes it"
                raise UsageError(f"{path}, line {number}: {why}")
    total = len(episodes) + len(bad)
    if len(bad) > max_bad * total:
        raise UsageError(f"{bad[0]} ({len(bad)} of {total} lines are malformed, --max-bad is {max_bad})")
    return episodes, bad


def trajectories(
    cfg: Config, tokenizer: Tokenizer, run: Run
) -> tuple[list[Episode], list[Episode], list[str]]:
    """The training data, from --data or made from the reference programs of --tasks; what is held out of it
    or comes from the file of --validation; and what there is to say about both."""
    system = config.read_text(cfg.system_file, "--system-file")
    if cfg.data:
        found, notes = read(cfg.data, tokenizer, cfg.protocol, system, cfg.max_bad, cfg.train_on_test_tasks)
        notes += [f"left out {len(notes)} malformed lines of {len(found) + len(notes)}"] * bool(notes)
    else:
        use_bbh(cfg.bbh)
        tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
        drafts = from_programs(tasks, cfg.protocol, cfg.per_task, cfg.repair, cfg.seed)
        with open_sandbox(cfg.sandbox, quiet=not run.world.main) as sandbox:
            run.note_sandbox(sandbox.level, sandbox.layers, LEVELS)
            # by rank 0 for all: a program that is late on one rank must not give it other data
            made = run.world.gather(list(execute(drafts, sandbox)) if run.world.main else [])
        found = [encode(record, tokenizer, cfg.protocol, system) for record in made]
        notes = []
    kept = fitting(found, cfg.max_length, notes, "trajectories")
    share, held = validation_share(cfg.validation), []
    if share is not None:
        kept, held = hold_out(kept, share, cfg.seed)
    elif cfg.validation:
        held, bad = read(cfg.validation, tokenizer, cfg.protocol, system, cfg.max_bad, test_tasks=True)
        notes += bad
        held = fitting(held, cfg.max_length, notes, "validation trajectories")
    if not kept:
        raise UsageError("no trajectory to train on; check --data or --tasks")
    if cfg.validation and not held:
        raise UsageError(f"--validation {cfg.validation}: no trajectory is left to validate on")
    return kept, held, notes


def fitting(found: list[Episode], limit: int, notes: list[str], what: str) -> list[Episode]:
    """Those of at most `limit` tokens; a note if that is not all."""
    kept = [e for e in found if len(e.tokens) <= limit]
    if len(kept) < len(found):
        notes.append(f"left out {len(found) - len(kept)} of {len(found)} {what} longer than {limit}")
    return kept


def validation_share(text: str | None) -> float | None:
    """The number in --validation, or None where it is a file. Raises UsageError for a share out of range."""
    try:
        share = float(text or "")
    except ValueError:
        return None
    if not 0 < share < 1:
        raise UsageError(f"--validation {text}: expected a share between 0 and 1, or a file")
    return share


def hold_out(data: Sequence[Episode], share: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """What to train on and what to validate on. Whole questions are held out, not trajectories: two answers
    to one question, one on either side, would make the validation a test of memory."""

    def question(e: Episode) -> tuple:
        return tuple(e.tokens[: e.source.index(Source.POLICY)])

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


def train_step(
    model: Qwen, optimizer: torch.optim.Optimizer, episodes: Sequence[Episode], cfg: Config, world: World
) -> dict[str, float]:
    """One optimiser step on this rank's episodes: -sum of weight x log-prob over the whole global batch. In
    order of length, which changes nothing but how well they pack."""
    batch = collate(sorted(episodes, key=lambda e: len(e.tokens)))
    mask = batch.source == Source.POLICY
    if cfg.train_on_tool_output:
        mask |= batch.source == Source.TOOL
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
    """-log-prob, mean over the policy's ("policy") and over the interpreter's tokens ("tool") of the episodes
    of all ranks, trained on or not. Without any token of a kind, it is left out."""
    batch = collate(episodes)
    sums = torch.zeros(2, 2, dtype=torch.float64)  # policy, tool; loss, tokens
    for rows, width in micro_batches(batch.lengths, cfg.micro_tokens, world):
        source = batch.source[rows, :width]
        tokens, used = batch.tokens[rows, :width].to(world.device), (source != Source.PROMPT).to(world.device)
        logprobs = token_logprobs(model, tokens, mask=used).cpu()
        for i, kind in enumerate((Source.POLICY, Source.TOOL)):
            here = logprobs[source == kind]
            sums[i] += torch.stack([-here.double().sum(), torch.tensor(float(len(here)))])
    world.release(model)
    total = dict(zip(("policy", "tool"), world.sum(sums).tolist(), strict=True))
    return {kind: loss / tokens for kind, (loss, tokens) in total.items() if tokens}


def train(cfg: Config, world: World) -> None:
    """The whole run: data, steps, checkpoints, final/."""
    get_protocol(cfg.protocol)
    model, tokenizer = load_model(cfg.model, world, cfg.dtype, cfg.seed, train=True)
    run = Run(cfg, world, changeable=CHANGEABLE - {"steps"})  # the cosine needs them
    data, held, notes = trajectories(cfg, tokenizer, run)
    if world.main and notes:
        print("\n".join(notes), file=sys.stderr)
    steps = cfg.steps or math.ceil(len(data) * cfg.epochs / cfg.batch)
    run.remember("data", digest(data))
    model = world.shard(model, cfg)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.95), weight_decay=cfg.weight_decay, fused=True
    )
    parts = {"model": (model, optimizer)}
    done = run.restore(parts)
    bar = world.progress(done, steps, "sft")
    for step in bar:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, cfg.lr, cfg.warmup)
        episodes = world.share(pick(data, step, cfg.batch, cfg.seed))
        metrics = {}
        if step % cfg.validate_every == 0:  # before the step, as the loss is
            metrics = {f"loss_{kind}": x for kind, x in measure(model, episodes, cfg, world).items()}
        metrics |= train_step(model, optimizer, episodes, cfg, world)
        seconds = time.perf_counter() - start
        metrics |= {"lr": optimizer.param_groups[0]["lr"], "seconds": seconds}
        metrics["tokens_per_second"] = metrics["tokens"] / seconds
        if held and ((step + 1) % cfg.validate_every == 0 or step + 1 == steps):
            found = measure(model, world.share(held), cfg, world)
            metrics |= {f"validation_loss_{kind}": x for kind, x in found.items()}
        run.log(step + 1, metrics)
        if step == 0:
            run.log_episodes(1, [transcript(e, tokenizer) for e in episodes[:4]])
        bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
        stop = world.should_stop()
        if stop or (step + 1) % cfg.save_every == 0 or step + 1 == steps:
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
