"""What every command that evaluates needs: questions, answers shared over the ranks, their summary."""

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis import behaviour
from analysis.compare import mean_error
from episode import Call, Episode, Finish
from model import Qwen
from plumbing.config import UsageError, option
from plumbing.journal import Journal
from plumbing.progress import progress
from plumbing.ranks import World
from rollout import Environment, Limits, Request, rollout
from sandbox import Result
from tasks import SFT_START, Problem, get
from training.limits import check_positions
from training.options import Prompting, Sampling
from training.papers import SAMPLES
from training.slots import sampling


@dataclass(frozen=True)
class Answering(Sampling, Limits, Prompting):
    """Answering, by default as the protocol's paper evaluates."""

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


# -- answers ---------------------------------------------------------------------------------------


def answer_all(
    model: Qwen,
    cfg,
    world: World,
    jobs: Sequence[tuple[Environment, dict[str, Request]]],
    keep: Callable[[Episode, Environment], object],
    journal: Journal | None = None,
    *,
    name: str,
    top_p: float = 1.0,
) -> dict[str, object]:
    """keep(episode, environment), a JSON value, of every request by its key; the same on all ranks.

    A rank takes the next request from a queue of all ranks when it has a free slot. The journal keeps each
    answer by its answer_key, but for those that the sandbox has spoiled, and what it holds is not asked
    again. cfg: options of Sampling and Limits. Raises UsageError for more tokens than the model has
    positions, and where the ranks have different questions.
    """
    kept = {key: answer_key(env, r.problem, key) for env, requests in jobs for key, r in requests.items()}
    _check_same(list(kept.values()), world)
    known = dict(world.gather(list(journal.entries.items()) if journal and world.main else []))
    found = {key: known[entry] for key, entry in kept.items() if entry in known}
    left = [(env, {k: r for k, r in requests.items() if k not in found}) for env, requests in jobs]
    fresh: dict[str, object] = {}
    longest = max((len(env.prompt(r.problem)) for env, some in left for r in some.values()), default=1)
    check_positions(model, longest, cfg.max_tokens)
    # a rank's share, so that the first one does not take all
    rows = max((-(-len(some) // world.size) for _, some in left if some), default=1)
    total, begun = sum(len(requests) for _, requests in jobs), len(found)
    answered = world.counter()
    with (
        sampling(model, cfg, world, rows, length=longest + cfg.max_tokens, top_p=top_p) as sampler,
        progress(total, name, done=begun, disable=not world.main) as bar,
    ):
        for environment, requests in left:
            keys = list(requests)

            def on_finish(episode: Episode, environment: Environment = environment, keys=keys) -> None:
                key = keys[episode.group]
                fresh[key] = keep(episode, environment)
                if journal and episode.finish != Finish.SANDBOX:
                    journal.add(kept[key], fresh[key])
                # the rollout lists all episodes until its end
                episode.tokens, episode.source, episode.logprobs = [], [], []
                bar.update(begun + answered() - bar.n)

            numbered = [replace(request, group=i) for i, request in enumerate(requests.values())]
            rollout(sampler, environment, world.take(numbered), on_finish=on_finish)
    return found | dict(world.gather(list(fresh.items())))


def _check_same(asked: list, world: World) -> None:
    """Raises UsageError where the ranks do not ask the same."""
    if len(set(world.gather([hashlib.sha256(repr(asked).encode()).hexdigest()]))) > 1:
        raise UsageError("the ranks have different questions; give all of them the same options and files")


def answer(
    model: Qwen,
    environment: Environment,
    asked: Sequence[Problem],
    cfg: Answering,
    world: World,
    journal: Journal | None = None,
) -> list[Episode]:
    """`samples` graded episodes per problem, in order, with a progress bar; without log-probs."""
    requests = {
        str(place * cfg.samples + sample): Request(problem, place, (cfg.seed, 0, place, sample))
        for place, problem in enumerate(asked)
        for sample in range(cfg.samples)
    }
    jobs = [(environment, requests)]
    found = answer_all(model, cfg, world, jobs, _record, journal, name="evaluate", top_p=cfg.top_p)
    return [_episode(request, found[key]) for key, request in requests.items()]


def answer_key(environment: Environment, problem: Problem, name: object) -> str:
    """The journal's key of an answer: its name, and a digest of the prompt and of what is right, since files
    of questions and prompts may be edited between two starts."""
    asked = repr((environment.opening(problem), str(problem.answer)))
    return f"{name} {hashlib.sha256(asked.encode(errors='replace')).hexdigest()[:16]}"


def _record(episode: Episode, environment: Environment) -> dict:
    """A graded episode as JSON, without its log-probs and its problem."""
    left_out = ("problem", "group", "logprobs")
    found = {name: value for name, value in vars(episode).items() if name not in left_out}
    return found | {"calls": [[call.code, vars(call.result), call.start] for call in episode.calls]}


def _episode(request: Request, record: dict) -> Episode:
    """The episode of _record."""
    calls = [Call(code, Result(**result), start) for code, result, start in record["calls"]]
    logprobs = [0.0] * len(record["tokens"])
    return Episode(request.problem, request.group, **(record | {"calls": calls, "logprobs": logprobs}))


# -- summary ---------------------------------------------------------------------------------------


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
