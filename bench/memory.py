"""Measured peak memory of updates and rollouts against the plan (analysis/plan.py), on a CPU.

    taskset -c 0 python bench/memory.py

Each figure comes from a fresh process. The process first runs a tiny model through the same code, so that the
libraries' own memory is there before the measurement begins. The figure is the growth of the resident memory
to its peak (VmHWM). Weights, tokens and rewards are random; the steps are the scripts' own. Training is one
step on a short sequence and one of two micro-batches: the peak is in the backward pass of the second, which
meets AdamW's moments and the gradients of the first.

MALLOC_MMAP_THRESHOLD_=65536 tells the C library to return every freed block at once. Resident memory is then
what is held, which is what a plan adds up. With --as-it-is glibc keeps freed blocks of up to 32 MiB.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not bench/rollout.py

import grpo  # noqa: E402
import ppo  # noqa: E402
import sft  # noqa: E402
from analysis import plan  # noqa: E402
from episode import Episode  # noqa: E402
from fast.products import use_fast_products  # noqa: E402
from model import Config, Qwen  # noqa: E402
from plumbing.ranks import World  # noqa: E402
from sample import Sampler  # noqa: E402
from tasks import Problem  # noqa: E402

TINY = Config(1024, 64, 96, 2, 4, 2, tie_word_embeddings=True)
SHAPES = {
    "54M": Config(8192, 1024, 2816, 4, 16, 4, tie_word_embeddings=True),  # large blocks
    "62M untied": Config(65536, 384, 1536, 6, 6, 2),  # a large head
    # several vocabulary chunks
    "47M, vocabulary 152k": Config(151936, 256, 1024, 8, 8, 2, tie_word_embeddings=True),
}


@dataclass(frozen=True)
class Work:
    """The work of one process: an update of two micro-batches of `tokens` tokens in sequences of `length`.
    With algorithm "sample": `slots` answers of `new` tokens to different prompts of `prompt` tokens, in a
    cache of `length` each."""

    shape: str
    algorithm: str
    length: int
    tokens: int = 0
    checkpointing: bool = False
    slots: int = 0
    prompt: int = 0
    new: int = 0

    def planned(self) -> float:
        """The planned peak in bytes, without the tensors that this process does not have."""
        longest = {"prompt": self.prompt, "response": self.length - self.prompt}
        options = {"device": "cpu", "prompts": self.slots or 1, "group": 1} | longest
        if self.algorithm == "sample":
            parts = plan.rollout(SHAPES[self.shape], plan.Config(**options), self.slots)
            missing = "AdamW's moments"
        else:
            options |= {"algorithm": self.algorithm, "micro_tokens": self.tokens}
            cfg = plan.Config(**options, checkpointing=self.checkpointing)
            parts, missing = plan.update(SHAPES[self.shape], cfg), "packed weights"
        return sum(size for kind, size in parts.items() if kind != missing)


WORKS = [
    Work("47M, vocabulary 152k", "sft", 128, tokens=512),
    Work("47M, vocabulary 152k", "grpo", 128, tokens=512, checkpointing=True),
    Work("54M", "grpo", 128, tokens=256),
    Work("54M", "ppo", 128, tokens=256, checkpointing=True),
    Work("54M", "sample", 1024, slots=16, prompt=256, new=4),
    Work("62M untied", "ppo", 64, tokens=128),
    Work("62M untied", "sft", 128, tokens=512, checkpointing=True),
    Work("47M, vocabulary 152k", "sample", 2048, slots=16, prompt=64, new=4),
]


# -- inside the measured process -------------------------------------------------------------------


def resident(name: str) -> int:
    """Bytes that this process holds now ("VmRSS") or has held at most ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}; this measurement needs Linux")


def train(shape: Config, work: Work) -> None:
    """Two optimiser steps: one on a short sequence, one on two micro-batches."""
    cfg = {"sft": sft, "grpo": grpo, "ppo": ppo}[work.algorithm].Config(micro_tokens=work.tokens)
    world, model = World("cpu"), use_fast_products(Qwen(shape).init_weights(0))
    model.checkpointing = work.checkpointing
    if work.algorithm == "ppo":
        agent = ppo.Agent(model, ppo.Critic(model), cfg)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for rows, length in ((1, 16), (2 * work.tokens // work.length, work.length)):
        tokens = torch.randint(shape.vocab_size, (rows, length))
        lengths = torch.full((rows,), length)
        mask = (torch.arange(length) > 0).expand(rows, length)
        noise = torch.randn(rows, length)
        if work.algorithm == "sft":
            source = [0] + [1] * (length - 1)
            problem = Problem("", 0, "", None)
            episodes = [Episode(problem, 0, row.tolist(), source, [0.0] * length) for row in tokens]
            sft.train_step(model, optimizer, episodes, cfg, world)
        elif work.algorithm == "grpo":
            data = grpo.Experience(tokens, mask, mask, noise, noise, None, None)
            grpo.update(model, optimizer, data, lengths, cfg, world)
        else:
            data = ppo.Experience(tokens, mask, noise, noise, noise, noise, noise)
            ppo.minibatch_step(agent, data, lengths, cfg, world, warm=True)


def sample(shape: Config, work: Work) -> None:
    """Feed different prompts, then decode."""
    sampler = Sampler(Qwen(shape).init_weights(0), work.slots, work.length)
    for i, prompt in enumerate(torch.randint(shape.vocab_size, (work.slots, work.prompt)).tolist()):
        sampler.add(prompt, (i,))
    for _ in range(work.new):
        sampler.step()


def child(work: Work) -> None:
    """Print the growth to the peak of one work, in bytes."""
    run = sample if work.algorithm == "sample" else train
    small = {"length": 16, "tokens": 32, "slots": 4, "prompt": 8, "new": 4}
    run(TINY, Work(**vars(work) | small))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    run(SHAPES[work.shape], work)
    print(resident("VmHWM") - before)


# -- the table -------------------------------------------------------------------------------------


def measure(work: Work, keep_freed: bool) -> int:
    """Peak bytes of the work in a fresh process. keep_freed: with glibc's own settings."""
    environment = dict(os.environ) | ({} if keep_freed else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    command = [sys.executable, __file__, "--child", json.dumps(vars(work))]
    return int(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--as-it-is", action="store_true", help="with glibc's own settings")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    if chosen.child:
        child(Work(**json.loads(chosen.child)))
        return
    print("| shape | work | planned, MB | measured, MB | planned / measured |\n|---|---|---|---|---|")
    for work in WORKS:
        planned, measured = work.planned() / 1e6, measure(work, chosen.as_it_is) / 1e6
        what = f"{work.algorithm}, {work.slots * work.length or work.tokens} tokens"
        what += ", checkpointing" * work.checkpointing
        numbers = f"{planned:.0f} | {measured:.0f} | {planned / measured:.3f}"
        print(f"| {work.shape} | {what} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
