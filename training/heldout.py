"""Evaluation during training: the accuracy on held-out questions, before training and every few steps."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from plumbing.config import UsageError, option
from plumbing.ranks import World
from rollout import Environment, Request, rollout
from sample import Sampler
from tasks import select
from training.evaluation import questions

NO_STEP = 2**32 - 1  # in the keys of randomness, where a training step has its number


@dataclass(frozen=True)
class HeldOutOptions:
    """Evaluation during training."""

    eval_every: int = option(0, "steps between evaluations on held-out questions; 0: none", least=0)
    eval_tasks: str | None = option(
        None, "tasks, suites or files of these questions; without it, the suites of --tasks, test tasks too"
    )
    eval_questions: int = option(128, "questions of seen tasks, and of unseen ones", least=1)
    eval_temperature: float = option(0.0, "of their answers; 0 is greedy", least=0)


class HeldOut:
    """The held-out questions of a run: `seen`, of tasks that it trains on, and `unseen`, of others. Their
    indices are those of the evaluation (below SFT_START)."""

    def __init__(self, cfg, trained: list[str], world: World):
        self.cfg, self.world = cfg, world
        tasks = list(dict.fromkeys(select(cfg.eval_tasks or cfg.tasks))) if cfg.eval_every else []
        self.sets = {
            "seen": [t for t in tasks if t in trained],
            "unseen": [t for t in tasks if t not in trained],
        }
        self.sets = {name: questions(found, cfg.eval_questions) for name, found in self.sets.items() if found}
        if cfg.eval_every and not self.sets:
            raise UsageError(f"--eval-tasks {cfg.eval_tasks}: no task; expected names of tasks or suites")

    def due(self, done: int) -> bool:
        """Whether to evaluate after `done` steps: at the start, every --eval-every, and at the end."""
        every = self.cfg.eval_every
        return bool(every) and (done % every == 0 or done == self.cfg.steps)

    def measure(
        self, sampling: Callable[[int], AbstractContextManager[Sampler]], environment: Environment
    ) -> dict[str, float]:
        """accuracy_seen and accuracy_unseen, over all ranks; `sampling` opens a sampler for so many rows."""
        found = {}
        for name, asked in self.sets.items():
            wanted = [
                Request(problem, place, key=(self.cfg.seed, NO_STEP, place, 0))
                for place, problem in self.world.share(enumerate(asked))
            ]
            with sampling(len(asked)) as sampler:
                right = sum(e.correct for e in rollout(sampler, environment, wanted))
            total = self.world.sum(torch.tensor(float(right)))
            found[f"accuracy_{name}"] = total.item() / len(asked)
        return found
