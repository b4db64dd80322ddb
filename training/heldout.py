"""Evaluation during training: accuracy on held-out questions, before the first step and every few steps."""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from plumbing.config import UsageError
from plumbing.ranks import Dropped, World
from rollout import Environment, Request, rollout
from sample import Sampler
from tasks import select, split_of, use_symbench
from training.evaluation import questions
from training.limits import PromptLimit

NO_STEP = 2**32 - 1  # in the keys of randomness, where a training step has its number


class HeldOut:
    """The held-out questions of a run: `seen`, of tasks that it trains on, and `unseen`, of others. Their
    indices are those of the evaluation (below SFT_START). `sampling(rows, temperature=)` opens a sampler on
    the present weights. Raises UsageError where no question is left, and for a file that is trained on."""

    def __init__(
        self,
        cfg,
        trained: Sequence[str],
        environment: Environment,
        sampling: Callable[..., AbstractContextManager[Sampler]],
        world: World,
    ):
        self.cfg, self.environment, self.sampling, self.world = cfg, environment, sampling, world
        use_symbench(cfg.symbench)
        names = cfg.eval_tasks or (",".join(trained) if cfg.curriculum else cfg.tasks)
        tasks = list(dict.fromkeys(select(names, flag="--eval-tasks")))
        if files := [t for t in tasks if t in trained and split_of(t) is None]:
            raise UsageError(
                f"--eval-every: {files[0]} is trained on, and a file holds no questions back; expected other "
                "--eval-tasks"
            )
        kinds = {"seen": [t for t in tasks if t in trained], "unseen": [t for t in tasks if t not in trained]}
        fits = PromptLimit(environment, cfg.max_prompt)
        found = {kind: questions(names, cfg.eval_questions, fits) for kind, names in kinds.items() if names}
        self.asked = {kind: problems for kind, problems in found.items() if problems}
        if not self.asked:
            raise UsageError(f"--eval-every: all prompts are longer than --max-prompt {cfg.max_prompt}")
        content = repr([(kind, p.digest, str(p.answer)) for kind, ps in self.asked.items() for p in ps])
        self.digest = hashlib.sha256(content.encode(errors="replace")).hexdigest()

    def due(self, done: int) -> bool:
        """Whether to evaluate after `done` steps: every --eval-every, and at the end."""
        return done % self.cfg.eval_every == 0 or done == self.cfg.steps

    def measure(self) -> dict[str, float]:
        """accuracy_seen and accuracy_unseen, over all ranks. Raises Dropped if any rank got SIGTERM."""
        found = {}
        for kind, problems in self.asked.items():
            wanted = [
                Request(problem, place, key=(self.cfg.seed, NO_STEP, place, 0))
                for place, problem in self.world.share(enumerate(problems))
            ]
            rows = -(-len(problems) // self.world.size)
            sampling = self.sampling(rows, temperature=self.cfg.eval_temperature)
            with sampling as sampler, contextlib.suppress(Dropped):
                episodes = rollout(sampler, self.environment, wanted, between=self.world.look_alone)
            self.world.look()
            right = self.world.sum(torch.tensor(float(sum(e.correct for e in episodes))))
            found[f"accuracy_{kind}"] = right.item() / len(problems)
        return found
