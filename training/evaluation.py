"""Questions for the evaluation, and what was found."""

import math
from collections.abc import Sequence

from analysis import behaviour
from analysis.compare import mean_error
from episode import Episode
from tasks import SFT_START, Problem, get


def questions(tasks: Sequence[str], count: int) -> list[Problem]:
    """`count` different evaluation questions, the tasks in turn; all that there are where there are fewer."""
    found: dict[str, Problem] = {}
    sources = [get(name) for name in tasks]
    for i in range(SFT_START * len(tasks)):
        number, place = divmod(i, len(tasks))
        if number >= (sources[place].size or SFT_START):
            continue  # a file has no more questions for the evaluation
        problem = sources[place].problem(number)
        found.setdefault(problem.question, problem)
        if len(found) == count:
            break
    return list(found.values())


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
    for k in _ks(samples):
        chances = [pass_at_k(samples, r, k) for r in right]
        row[f"pass@{k}"], row[f"pass@{k}_stderr"] = mean_error(chances)
    return row | behaviour.measure(episodes)


def _ks(samples: int) -> list[int]:
    """pass@k is shown for these; pass@1 is avg@k."""
    return [k for k in (4, 16, 64, 256) if k < samples] + [samples] * (samples > 1)
