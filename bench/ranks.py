"""Weak scaling: a GRPO step on two ranks and two cores against one rank on one core, the same work per rank.

    python bench/ranks.py                    # needs two idle cores

Every rank samples as many rollouts of the same length and trains on them, in micro-batches. One rank holds
plain tensors, as without torchrun; two hold shards, gather them and add up their gradients, so the efficiency
t(1) / t(2) says what all of that costs, and what two busy cores take from each other. To tell these apart a
third turn runs two processes of one rank at the same time, which exchange nothing: t(1) / t(apart) is the
most that this machine allows. The row "answers" is evaluate.py's: the ranks share a queue of questions, 4 x
--group for each rank, which the embedded model answers in up to 4 x --new tokens; 90 % are 1.8 times one
rank's speed. Each turn starts its processes anew; times are medians over their steps.
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
from episode import Episode, collate  # noqa: E402
from plumbing.ranks import World  # noqa: E402
from sample import generate  # noqa: E402
from tasks import Problem, names  # noqa: E402
from tokenizer import Source  # noqa: E402
from training.evaluation import Answering, answer, questions  # noqa: E402
from training.loading import load_model  # noqa: E402
from training.reinforcement import make_environment  # noqa: E402
from training.steps import adamw  # noqa: E402

PHASES = ("rollout", "update", "step", "answers")
ASKED = {"step": ">= 85 %", "answers": ">= 90 %"}


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
    data = grpo.make_experience(model, None, batch, grpo.loss_mask(batch, episodes, cfg), cfg, world)
    grpo.update(model, optimizer, data, batch.lengths, cfg, world)
    world.barrier()
    ended = time.perf_counter()
    return {"rollout": sampled - began, "update": ended - sampled, "step": ended - began}


def answers(model, tokenizer, chosen, world: World) -> float:
    """Seconds in which the ranks answer their questions, in words."""
    cfg = Answering(protocol="text", max_tokens=4 * chosen.new, slots=chosen.group)
    asked = questions(names("toy"), 4 * chosen.group * world.size)
    environment = make_environment(cfg, cfg, tokenizer, None)
    world.barrier()
    began = time.perf_counter()
    answer(model, environment, asked, cfg, world)
    return time.perf_counter() - began


def rank(chosen) -> None:
    """One rank on one core: `--steps` steps after a first one; the first rank prints their medians."""
    with World("cpu") as world:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[world.rank % len(cores)]})
        cfg = grpo.Config(group=chosen.group, dtype={"fp32": "float32", "bf16": "bfloat16"}[chosen.dtype])
        model = world.shard(random_model(chosen.shape, DTYPES["fp32"], seed=chosen.seed), cfg)
        optimizer = adamw(model, lr=1e-6)
        generator = torch.Generator().manual_seed(chosen.seed)
        vocabulary = SHAPES[chosen.shape].vocab_size
        prompt = torch.randint(0, vocabulary, (chosen.prompt,), generator=generator).tolist()
        turns = [step(model, optimizer, cfg, world, prompt, chosen.new) for _ in range(1 + chosen.steps)]
        found = {name: median([turn[name] for turn in turns[1:]]) for name in turns[0]}
        found["answers"] = answers(*load_model("tiny", world, "float32"), chosen, world)
        if world.main:
            print(json.dumps(found))


def launch_apart(count: int, chosen, arguments: list[str]) -> dict[str, float]:
    """Seconds of the phases of a step of one rank while count - 1 others run beside it, of the slowest."""
    env = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads)}
    cores = sorted(os.sched_getaffinity(0))[:count]
    command = [sys.executable, __file__, *arguments, "--rank"]
    processes = [
        subprocess.Popen(["taskset", "-c", str(core), *command], env=env, stdout=subprocess.PIPE, text=True)
        for core in cores
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
    return {name: max(times[name] for times in found) for name in PHASES}


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
    runs = {f"{size} ranks": lambda size=size: launch(size, chosen, arguments) for size in sizes}
    if len(sizes) > 1:
        runs[f"{chosen.ranks} apart"] = lambda: launch_apart(chosen.ranks, chosen, arguments)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}

    def turn(name: str) -> float:
        found[name].append(runs[name]())
        return found[name][-1]["step"]

    take_turns({name: lambda name=name: turn(name) for name in runs}, chosen)
    rows = []
    for name in PHASES:
        turns = {run: [t[name] for t in times[chosen.warmup :]] for run, times in found.items()}
        times = {run: median(values) for run, values in turns.items()}
        ours = times[f"{chosen.ranks} ranks"]
        title = f"{name}, {chosen.ranks} ranks, {chosen.shape}, {chosen.dtype}"
        row = Row(title, f"{ours:.3f} s", turns=turns)
        if len(times) > 1:
            one, apart = times["1 ranks"], times[f"{chosen.ranks} apart"]
            row.against, row.share = f"1 rank: {one:.3f} s", one / ours
            row.note = (
                f"share of one rank's speed, per rank; {chosen.ranks} processes apart: {one / apart:.0%}"
            )
        row.asked = ASKED.get(name, "")
        rows.append(row)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
