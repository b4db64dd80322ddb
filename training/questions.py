"""A training step's questions, and the requests for this rank's share of them."""

import random
import sys
from collections.abc import Sequence

from plumbing.ranks import World
from rollout import Request
from tasks import RL_START, Problem, for_training, get, use_bbh


def problems(tasks: Sequence[str], step: int, prompts: int, seed: int) -> list[Problem]:
    """The questions of a step. They depend on (seed, step) alone; no number occurs twice in a run."""
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


class StepQuestions:
    """The questions of every step: new ones of --tasks, or those of --curriculum in stages. Raises UsageError
    for tasks that are unknown or held out, and for a file that is none."""

    def __init__(self, cfg, world: World):
        self.cfg = cfg
        use_bbh(cfg.bbh)
        self.tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
        self.course = None
        if cfg.curriculum is not None:
            from training.course import Course, read

            rows = read(cfg.curriculum, cfg.train_on_test_tasks)
            self.course = Course(rows, cfg.order, cfg.stage_steps, cfg.prompts, cfg.seed)
            if world.main:
                print(self.course.describe(), file=sys.stderr)

    def problems(self, step: int) -> list[Problem]:
        """The questions of a step (from 0)."""
        if self.course:
            return self.course.problems(step)
        return problems(self.tasks, step, self.cfg.prompts, self.cfg.seed)

    def metrics(self, step: int) -> dict[str, int]:
        """The step's stage, for the log; nothing without a curriculum."""
        return self.course.metrics(step) if self.course else {}
