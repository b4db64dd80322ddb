"""The loop around a training step, as a generator: what is in here surrounds every algorithm.

    for step in steps(cfg, world, run, tokenizer, parts, total, shown=("loss",)):
        step.metrics |= ...                                  # one optimiser step

After the body of the loop the step's line is logged, its episodes are written, and at its time a checkpoint.
A resumed run begins after its last checkpoint. Ctrl-C ends a run after the step under way; SIGTERM drops that
step and saves the weights before it.
"""

import codecs
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from episode import Batch, Episode, spans
from plumbing.masters import masters, publish
from plumbing.ranks import World
from plumbing.run import Run
from plumbing.shards import Parts, snapshot
from tokenizer import Tokenizer


def adamw(model: nn.Module, lr: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """The optimiser of every model that learns. A step changes the masters, then the model."""
    trained, betas = masters(model).parameters(), (0.9, 0.95)
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    optimizer.register_step_post_hook(lambda *_: publish(model))
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set the learning rate; returns it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def warmed(lr: float, step: int, warmup: int) -> float:
    """The learning rate of a step (from 0): it rises linearly to `lr` over the first `warmup` steps.

    >>> [warmed(1.0, step, warmup=4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lr * min(1.0, (step + 1) / warmup) if warmup else lr


@dataclass
class Step:
    """One step under way. The script fills in `metrics`; `times` are the ends of its phases, in seconds."""

    number: int  # from 0
    episodes: list[Episode] = field(default_factory=list)
    batch: Batch | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    logged: list[Episode] = field(default_factory=list)  # for episodes.jsonl
    per_token: dict[str, Tensor] = field(default_factory=dict)  # of them, (B, T) each: logprobs, trained, ...
    times: dict[str, float] = field(default_factory=lambda: {"begin": time.perf_counter()})

    def mark(self, phase: str) -> None:
        """Note that a phase of the step has ended: "rollout", "prepare"."""
        self.times[phase] = time.perf_counter()

    def transcripts(self, tokenizer: Tokenizer) -> list[dict]:
        """The records of the logged episodes, which are the first rows of `per_token`."""
        rows = ({name: values[i] for name, values in self.per_token.items()} for i in range(len(self.logged)))
        return [transcript(e, tokenizer, row) for e, row in zip(self.logged, rows, strict=True)]


def steps(
    cfg,
    world: World,
    run: Run,
    tokenizer: Tokenizer,
    parts: Parts,
    total: int,
    *,
    shown: tuple[str, ...],
    updates: int = 1,
) -> Iterator[Step]:
    """The steps that are still to be made of `total`; `shown` names the metrics beside the progress bar.

    updates: the optimiser steps in each. With several, a copy of weights and optimiser states is kept on the
    host, to which a step that is dropped goes back.
    """
    done = run.restore(parts)
    world.discard = None  # from now on the folder holds results
    bar = world.progress(done, total, run.folder.name)
    for number in bar:
        step = Step(number)
        restore = snapshot(parts) if updates > 1 else None
        world.rescue = functools.partial(run.rescue, number, parts, tokenizer, restore)
        yield step
        run.log(number + 1, step.metrics | {"threads": torch.get_num_threads()})
        run.log_episodes(number + 1, step.transcripts(tokenizer))
        bar.set_postfix({name: f"{step.metrics[name]:.3f}" for name in shown}, refresh=False)
        stop = world.should_stop()
        if stop or (number + 1) % cfg.save_every == 0 or number + 1 == total:
            run.save(number + 1, parts, tokenizer)
        if stop:
            return
    world.rescue = None
    run.finish()


def transcript(episode: Episode, tokenizer: Tokenizer, per_token: Mapping[str, Tensor] | None = None) -> dict:
    """A whole episode for episodes.jsonl; `spans` says who wrote which part of the text. sft.py reads these
    lines: `tokens` and `source` are what was sampled, nothing is encoded again.

    `characters` has an entry per token, as has each of `per_token`, (T,) with padding: how many characters of
    the spans' text the token ends. Together they cut the text into tokens, without a tokenizer.
    """
    parts = list(spans(episode.tokens, episode.source))
    rows = {name: values[: len(episode.tokens)].tolist() for name, values in (per_token or {}).items()}
    return {
        "task": episode.problem.task,
        "index": episode.problem.index,
        "spans": [[kind.name, tokenizer.decode(ids)] for kind, ids in parts],
        "tokens": episode.tokens,
        "source": episode.source,
        "answer": episode.answer,
        "correct": episode.correct,
        "reward": episode.reward,
        "calls": [call.result.status for call in episode.calls],
        "finish": episode.finish,
        "characters": [size for _, ids in parts for size in characters(ids, tokenizer)],
    } | {name: [_short(x) for x in row] for name, row in rows.items()}


def characters(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """How many characters of decode(ids) end in each token. An emoji of two tokens gives 0 and 1."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [len(decoder.decode(tokenizer.piece(id), i == len(ids))) for i, id in enumerate(ids, 1)]


def _short(x: bool | float) -> int | float:
    """A number in few characters: 0 and 1 for a bool, four decimals, 0 for -0.0."""
    return round(float(x), 4) or 0 if isinstance(x, float) else int(x)
