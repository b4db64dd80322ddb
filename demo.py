"""The whole loop on a model small enough for two CPU cores: base -> SFT -> GRPO -> evaluation.

    python demo.py                      about 8 minutes; everything lies in runs/demo afterwards
    python demo.py --seed 1 --out runs/demo-1

Each stage is one of the real scripts with its options, as anyone would call it:

    base    sft.py on a documented mixture of ways to answer, right and wrong: a pretrained model's habits
    sft     sft.py on few right trajectories
    grpo    grpo.py, rewarded by the outcome of real programs
    evaluation    the base model in text only, and all three, on the same new questions

The mixture stands in for pretraining. Without it there would be nothing to show: a random model solves
nothing, and a model trained on right answers alone has no habit left for reinforcement learning to change.
"""

import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import coldstart
import config
from coldstart import Draft
from config import UsageError, option
from sandbox import Sandbox
from tasks import SFT_START, Problem, get, names, words

# How the base model was brought up: share of its training -> what it does there.
MIXTURE = {
    "guess": 0.20,  # writes an answer without computing it
    "right": 0.27,  # writes a right program and reads its result
    "silent bug": 0.15,  # a program that runs and computes something else
    "repair": 0.10,  # a program that fails, its traceback, the right program
    "give up": 0.10,  # a program that fails, its traceback, a guess
    "text": 0.06,  # asked for words alone: the right answer, which it has no way to compute
    "fact": 0.12,  # a fact, in words
}


@dataclass(frozen=True)
class Config:
    out: str = option("runs/demo", "folder for all stages")
    seed: int = option(0, "weights, data and sampling")
    base_examples: int = option(12_000, "trajectories of the base mixture")
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


def with_bug(program: str, rng: random.Random) -> str:
    """A program that runs but computes something else: a step left out, or a number or sign mistaken."""
    lines = program.split("\n")
    kind = rng.choice(["skip", "number", "sign"])
    if kind == "skip" and len(lines) > 2:
        del lines[rng.randrange(1, len(lines) - 1)]
    elif kind == "sign" and len(lines) > 2:
        i = rng.randrange(1, len(lines) - 1)
        swaps = {"+": "-", "-": "+", ">": "<", "<": ">", "*": "+", "%": "-", "==": "!="}
        lines[i] = re.sub(r" (\+|-|>|<|\*|%|==) ", lambda m: f" {swaps[m[1]]} ", lines[i], count=1)
    else:
        digits = [m.start() for m in re.finditer(r"\d", lines[0])]
        at = rng.choice(digits)
        lines[0] = lines[0][:at] + rng.choice("123456789") + lines[0][at + 1 :]
    return "\n".join(lines)


def habit(kind: str, problem: Problem, rng: random.Random) -> Draft:
    """One trajectory of the base mixture."""
    guess = f"{rng.choice(words.AFTER)}<<<{rng.randrange(10 ** rng.randint(1, 3))}>>>"
    program = get(problem.task).solution(problem)
    before = rng.choice(words.BEFORE)
    if kind in ("fact", "right", "repair"):
        return coldstart.straight(problem, rng, repair=kind == "repair")
    if kind == "text":
        answer = f"{rng.choice(words.AFTER)}<<<{problem.answer}>>>"
        return Draft(problem, [], lambda _: answer, protocol="text")
    if kind == "guess":
        return Draft(problem, [], lambda _: guess)
    if kind == "give up":
        return Draft(problem, [(before, coldstart.with_crash(program, rng))], lambda _: guess)
    draft = coldstart.straight(problem, rng, repair=False)
    draft.programs = [(before, with_bug(program, rng))]
    return draft


def mixture(count: int, seed: int) -> Iterator[Draft]:
    """`count` trajectories on the training tasks, kinds drawn by MIXTURE."""
    rng = random.Random(f"base {seed}")
    tasks = names("toy", "train")
    for i in range(count):
        kind = rng.choices(list(MIXTURE), MIXTURE.values())[0]
        task = "facts" if kind == "fact" else rng.choice(tasks)
        yield habit(kind, get(task).problem(SFT_START + 10_000 + i), rng)
