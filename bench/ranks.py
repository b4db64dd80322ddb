"""Weak scaling: a GRPO step on two ranks and two cores against one rank on one core, the same work per rank.

    python bench/ranks.py                    # needs two idle cores

Every rank samples as many rollouts of the same length and trains on them, in micro-batches. One rank holds
plain tensors, as without torchrun; two hold shards, gather them in every pass and add up their gradients, so
the efficiency t(1) / t(2) says what all of that costs. Each turn starts its processes anew; times are medians
over their steps.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import DTYPES, Row, median, options, parse, report, take_turns

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from shapes import SHAPES, random_model  # noqa: E402

import grpo  # noqa: E402
from distributed import World  # noqa: E402
from rollout import Episode, collate  # noqa: E402
from sample import generate  # noqa: E402
from tasks import Problem  # noqa: E402
from tokenizer import Source  # noqa: E402

PHASES = ("rollout", "update", "step")


def step(model, optimizer, cfg, world: World, prompt: list[int], new: int) -> dict[str, float]:
    """Seconds of sampling and of the update, all ranks' included, and of both."""
    began = time.perf_counter()
    with world.whole(model):
        samples = generate(model, [prompt] * cfg.group, max_new_tokens=new, seed=world.rank)
    sampled = time.perf_counter()
    episodes = []
    for i, sample in enumerate(samples):
        e = Episode(Problem("", 0, "", None), group=world.rank, reward=float(i % 2), finish="stop")
        e.append(prompt, Source.PROMPT)
        e.append(sample.tokens, Source.POLICY, sample.logprobs)
        episodes.append(e)
    batch = collate(episodes)
    data = grpo.prepare(model, None, batch, grpo.loss_mask(batch, episodes, cfg), cfg, world)
    grpo.update(model, optimizer, data, batch.lengths, cfg, world)
    world.barrier()
    ended = time.perf_counter()
    return {"rollout": sampled - began, "update": ended - sampled, "step": ended - began}


def rank(chosen) -> None:
    """One rank on one core: `--steps` steps after a first one; the first rank prints their medians."""
    with World("cpu") as world:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[world.rank % len(cores)]})
        cfg = grpo.Config(group=chosen.group, dtype={"fp32": "float32", "bf16": "bfloat16"}[chosen.dtype])
        model = world.shard(random_model(chosen.shape, DTYPES["fp32"], seed=chosen.seed), cfg)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        generator = torch.Generator().manual_seed(chosen.seed)
        vocabulary = SHAPES[chosen.shape].vocab_size
        prompt = torch.randint(0, vocabulary, (chosen.prompt,), generator=generator).tolist()
        turns = [step(model, optimizer, cfg, world, prompt, chosen.new) for _ in range(1 + chosen.steps)]
        if world.main:
            print(json.dumps({name: median([turn[name] for turn in turns[1:]]) for name in PHASES}))


def launch(size: int, chosen, arguments: list[str]) -> dict[str, float]:
    """Seconds of the phases of a step on `size` ranks, in processes of their own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(size)]
    command = [sys.executable, *(launcher if size > 1 else []), __file__, *arguments, "--rank"]
    env = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> list[Row]:
    parser = options(__doc__, ("one rank",))
    parser.add_argument("--rank", action="store_true", help="be one of the ranks (used by the script itself)")
    parser.add_argument("--ranks", type=int, default=2, help="as many cores are needed (default: 2)")
    parser.add_argument("--shape", choices=SHAPES, default="4M")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--group", type=int, default=64, help="rollouts per rank (default: 64)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens (default: 64)")
    parser.add_argument("--new", type=int, default=64, help="tokens per rollout (default: 64)")
    parser.add_argument("--steps", type=int, default=3, help="per turn, after a first one (default: 3)")
    chosen = parse(parser, argv)
    if chosen.rank:
        rank(chosen)
        return []
    arguments = sys.argv[1:] if argv is None else argv
    sizes = (1, chosen.ranks) if chosen.against == "one rank" else (chosen.ranks,)
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}

    def turn(size: int) -> float:
        found[size].append(launch(size, chosen, arguments))
        return found[size][-1]["step"]

    take_turns({f"{size} ranks": lambda size=size: turn(size) for size in sizes}, chosen)
    rows = []
    for name in PHASES:
        turns = {f"{size} ranks": [t[name] for t in found[size][chosen.warmup :]] for size in sizes}
        times = [median(values) for values in turns.values()]
        row = Row(
            f"{name}, {chosen.ranks} ranks, {chosen.shape}, {chosen.dtype}", f"{times[-1]:.3f} s", turns=turns
        )
        if len(times) > 1:
            row.against, row.share = f"1 rank: {times[0]:.3f} s", times[0] / times[-1]
            row.note = "share of one rank's speed, per rank"
        row.asked = ">= 85 %" if name == "step" else ""
        rows.append(row)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
