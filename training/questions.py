"""A training step's questions."""

import random
from collections.abc import Sequence

from plumbing.ranks import World
from rollout import Request
from tasks import RL_START, Problem, get


def problems(tasks: Sequence[str], step: int, prompts: int, seed: int) -> list[Problem]:
    """The questions of a step: known from (seed, step) alone, and never the same number twice in a run."""
    rng = random.Random(f"grpo {seed} {step}")  # ppo.py draws the same questions
    first = RL_START + step * prompts
    return [get(rng.choice(list(tasks))).problem(first + i) for i in range(prompts)]


def requests(found: Sequence[Problem], group: int, seed: int, step: int, world: World) -> list[Request]:
    """`group` requests per question, for the questions of this rank."""
    return [
        Request(problem, place, key=(seed, step, place, sample))
        for place, problem in world.share(enumerate(found))
        for sample in range(group)
    ]
