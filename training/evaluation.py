"""What every command that evaluates needs: questions, answers, their summary."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis import behaviour
from analysis.compare import mean_error
from episode import Episode
from model import Qwen
from plumbing.config import option
from plumbing.progress import progress
from rollout import Environment, Limits, Request, rollout
from sample import Sampler
from tasks import SFT_START, Problem, get
from training.limits import check_positions
from training.options import Prompting, Sampling
from training.papers import SAMPLES


@dataclass(frozen=True)
class Answering(Sampling, Limits, Prompting):
    """Answering: by default as the protocol's paper evaluates."""

    samples: int | None = option(None, "answers per question; by default retool 32, else 1", least=1)
    temperature: float | None = option(None, "0 is greedy; by default retool 1.0, else 0.6", least=0)
    top_p: float | None = option(None, "nucleus; by default retool 0.7, else 1", above=0, most=1)
    seed: int = option(0, "sampling", least=0)

    def __post_init__(self) -> None:
        """Sampling options that are not given are those of the protocol's paper."""
        for name, value in SAMPLES["retool" if self.protocol == "retool" else "r1ci"].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


def questions(
    tasks: Sequence[str], count: int, fits: Callable[[Problem], bool] = lambda problem: True
) -> list[Problem]:
    """`count` different evaluation questions, the tasks in turn; all that there are where there are fewer.
    For one that does not fit, the next of its task takes its place."""
    found: dict[str, Problem] = {}
    streams = [
        filter(fits, map(task.problem, range(SFT_START if task.size is None else task.size)))
        for task in map(get, tasks)
    ]
    for together in itertools.zip_longest(*streams):
        for problem in filter(None, together):
            found.setdefault(problem.question, problem)
            if len(found) == count:
                return list(found.values())
    return list(found.values())


def fitting_sampler(
    model: Qwen, cfg: Sampling, prompts: Sequence[Sequence[int]], slots: int, top_p: float = 1.0
) -> Sampler:
    """A sampler whose rows hold the longest prompt and an answer. Raises UsageError for more tokens than the
    model has positions."""
    longest = max(map(len, prompts), default=1)
    check_positions(model, longest, cfg.max_tokens)
    length = longest + cfg.max_tokens
    return Sampler(model, min(cfg.slots, slots), length, temperature=cfg.temperature, top_p=top_p)


def answer(model: Qwen, environment: Environment, asked: Sequence[Problem], cfg: Answering) -> list[Episode]:
    """`samples` graded episodes per problem, in order, with a progress bar."""
    wanted = [
        Request(problem, place, key=(cfg.seed, 0, place, sample))
        for place, problem in enumerate(asked)
        for sample in range(cfg.samples)
    ]
    sampler = fitting_sampler(model, cfg, list(map(environment.prompt, asked)), len(wanted), cfg.top_p)
    with progress(len(wanted), "evaluate") as bar:
        return rollout(sampler, environment, wanted, on_finish=lambda _: bar.update())


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k answers is right, from n answers of which c are: unbiased for k <= n
    (2107.03374, eq. 1). Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, c={c}, k={k}; expected 0 <= c <= n and 1 <= k <= n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def summary(episodes: Sequence[Episode], samples: int = 1) -> dict:
    """Accuracy (avg@samples), pass@k for k = 4, 16, ... below samples and for samples itself, standard errors
    over questions, and behaviour.measure(). The episodes of a question stand together, `samples` of each."""
    right = [sum(e.correct for e in episodes[i : i + samples]) for i in range(0, len(episodes), samples)]
    row: dict = {"questions": len(right), "episodes": len(episodes)}
    row["accuracy"], row["stderr"] = mean_error([r / samples for r in right])
    for k in answered_at(samples):
        chances = [pass_at_k(samples, r, k) for r in right]
        row[f"pass@{k}"], row[f"pass@{k}_stderr"] = mean_error(chances)
    return row | behaviour.measure(episodes)


def answered_at(samples: int) -> list[int]:
    """pass@k is shown for these; pass@1 is avg@k."""
    return [k for k in (4, 16, 64, 256) if k < samples] + [samples] * (samples > 1)
