"""A training step's questions, and the requests for this rank's share of them."""

import functools
import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence

import numpy as np

from plumbing.config import UsageError
from plumbing.ranks import World
from rollout import Environment, Request
from tasks import RL_START, Problem, for_training, get, use_bbh
from training.limits import PromptLimit

TRIES = 1000  # questions of a task that are generated to find one that fits
NEXT = 10**9  # from a question to the one that takes its place: beyond the numbers of a run


def problems(
    tasks: Sequence[str],
    step: int,
    prompts: int,
    seed: int,
    draw: Callable[[str, int], Problem] | None = None,
) -> list[Problem]:
    """The questions of a step. They depend on (seed, step) alone; no number occurs twice in a run. `draw`
    gives the question of a task for a number."""
    rng = random.Random(f"grpo {seed} {step}")  # ppo.py draws the same questions
    first = RL_START + step * prompts
    draw = draw or (lambda name, number: get(name).problem(number))
    return [draw(rng.choice(list(tasks)), first + i) for i in range(prompts)]


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
        self.cfg, self.world = cfg, world
        use_bbh(cfg.bbh)
        self.tasks = for_training(cfg.tasks, cfg.train_on_test_tasks)
        self.course = None
        self.fits: Callable[[Problem], bool] = lambda problem: True
        self.rows: dict[str, np.ndarray] = {}  # file -> its rows that are asked
        self.too_long = 0  # drawn in the last step, and replaced
        if cfg.curriculum is not None:
            from training.course import read

            self.course = self._stages(read(cfg.curriculum, cfg.train_on_test_tasks))
            self.tasks = list(dict.fromkeys(r["task"] for r in self.course.rows))
            if world.main:
                print(self.course.describe(), file=sys.stderr)

    def _stages(self, rows: list[dict]):
        from training.course import Course

        return Course(rows, self.cfg.order, self.cfg.stage_steps, self.cfg.prompts, self.cfg.seed)

    def leave_out_long(self, environment: Environment) -> None:
        """Leave out the questions whose prompts are longer than --max-prompt: those of files now, with a line
        that counts them, generated ones when they are drawn. Raises UsageError where a task has no other."""
        self.fits = PromptLimit(environment, self.cfg.max_prompt)
        if self.course:
            found = self.course.rows
            kept = [r for r in found if self.fits(get(r["task"]).problem(r["index"]))]
            self._say(self.cfg.curriculum, len(kept), len(found))
            self.course = self._stages(kept)
            return
        for name in dict.fromkeys(self.tasks):
            task = get(name)
            if task.suite == "math":
                kept = [i for i in range(task.size) if self.fits(task.problem(i))]
                self._say(name, len(kept), task.size)
                self.rows[name] = np.array(kept)
            else:
                self.draw(name, RL_START)
        self.too_long = 0

    def _say(self, name: str, kept: int, count: int) -> None:
        if not kept:
            raise UsageError(f"--max-prompt {self.cfg.max_prompt}: all {count} prompts of {name} are longer")
        if kept < count and self.world.main:
            said = f"left out {count - kept} of {count} questions, longer than --max-prompt"
            print(f"{name}: {said}", file=sys.stderr)

    def digest(self, environment: Environment) -> str:
        """A fingerprint of what files say: questions, prompt; a resumed run must have the same."""
        names = [] if self.course else sorted({n for n in self.tasks if get(n).suite == "math"})
        content = [environment.system, environment.template, [[name, get(name).digest] for name in names]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def problems(self, step: int) -> list[Problem]:
        """The questions of a step (from 0)."""
        self.too_long = 0
        if self.course:
            return self.course.problems(step)
        return problems(self.tasks, step, self.cfg.prompts, self.cfg.seed, self.draw)

    def draw(self, name: str, number: int) -> Problem:
        """The question of a task for a number. A file's rows come in the seed's order, each pass in another.
        A generated question that is too long is replaced by the next of its task that fits."""
        task = get(name)
        if name in self.rows:
            turn, place = divmod(number - RL_START, len(self.rows[name]))
            passes = RL_START // task.size + 1 + turn  # so that the index is of the range for RL
            return task.problem(passes * task.size + int(self._order(name, turn)[place]))
        for attempt in range(TRIES):
            problem = task.problem(number + attempt * NEXT)
            if self.fits(problem):
                self.too_long += attempt
                return problem
        raise UsageError(
            f"--max-prompt {self.cfg.max_prompt}: {TRIES} prompts of {name} in a row are longer; raise it, "
            "or leave the task out"
        )

    @functools.lru_cache(maxsize=8)  # noqa: B019 (one object per run)
    def _order(self, name: str, turn: int) -> np.ndarray:
        """A file's rows in the order of one pass."""
        words = hashlib.sha256(f"rows {self.cfg.seed} {turn}".encode()).digest()
        return np.random.Generator(np.random.Philox(int.from_bytes(words[:8]))).permutation(self.rows[name])

    def metrics(self, step: int) -> dict[str, int]:
        """For the log: how many questions were too long, and the stage of a curriculum."""
        return {"too_long": self.too_long} | (self.course.metrics(step) if self.course else {})
