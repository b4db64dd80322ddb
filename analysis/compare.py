"""Two runs on the same questions, side by side."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis import behaviour
from plumbing.config import UsageError


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sqrt(variance / n) with n - 1 in the variance; None for one value."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def macro(rows: Sequence[dict]) -> dict:
    """The mean of tasks' rows: accuracy and pass@k, every task with the same weight. The tasks are taken as
    given, so that the error is that of their questions alone: sqrt(sum of squared errors) / tasks."""
    mean: dict = {"tasks": len(rows), "questions": sum(r["questions"] for r in rows)}
    for name in ["accuracy", *(n for n in rows[0] if n.startswith("pass@") and not n.endswith("_stderr"))]:
        error = "stderr" if name == "accuracy" else f"{name}_stderr"
        errors = [r[error] for r in rows]
        mean[name] = math.fsum(r[name] for r in rows) / len(rows)
        mean[error] = None if None in errors else math.hypot(*errors) / len(rows)
    return mean


def measured(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + (f" +-{error:.3f}" if error is not None else "")


def permutation_test(differences: Sequence[int]) -> float:
    """Two-sided p-value of the paired permutation test, exact. differences: per question, B's right answers
    minus A's, in whole numbers.

    If the runs were the same, exchanging their answers to any question would change nothing: each difference
    would be as likely with the other sign. p is the share of the 2^n choices of signs whose sum is at least
    as far from 0 as the observed one. The sum has the characteristic function prod cos(d_i theta), and its
    Fourier transform over enough points gives the chance of each sum without drawing or enumerating signs.
    With differences of -1, 0 and 1 it is the exact McNemar (sign) test. Rounding is about 1e-15.
    """
    sizes = Counter(abs(d) for d in differences if d)
    observed, reach = abs(sum(differences)), sum(size * n for size, n in sizes.items())
    if observed == 0:
        return 1.0
    points = 2 * reach + 1  # one for each sum from -reach to reach
    theta = 2 * np.pi / points * np.arange(points)
    wave = np.ones(points)
    for size, n in sizes.items():
        wave *= np.cos(size * theta) ** n
    chances = np.fft.fft(wave).real / points  # of the sums 0, 1, ..., reach, -reach, ..., -1
    return float(np.clip(2 * chances[observed : reach + 1].sum(), 0.0, 1.0))


def read_results(path: str) -> dict:
    """A file written by --out. Raises UsageError where it is none."""
    fields = {"task", "index", "family", "digest", "correct"}
    row = {"purposes", *(statistic.__name__ for statistic in behaviour.STATISTICS)}
    try:
        found = json.loads(Path(path).read_text())
        complete = row <= found["overall"]["micro"].keys() and "model" in found["config"]
        complete &= len(found["questions"]) > 0
        complete &= all(fields <= q.keys() and len(q["correct"]) > 0 for q in found["questions"])
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected a file written by evaluate.py --out") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UsageError(f"{path}: no results of an evaluation; expected a file written by evaluate.py --out")
    return found


def _asked(found: dict) -> dict[tuple, dict]:
    return {(q["task"], q["index"], q["digest"]): q for q in found["questions"]}


def check_same_questions(runs: dict[str, dict], paths: dict[str, str]) -> None:
    """Raises UsageError naming a question that one run was asked and the first was not, or the other way."""
    first, *others = runs
    for name in others:
        here, there = _asked(runs[first]).keys(), _asked(runs[name]).keys()
        only = [f"{len(a - b)} only in {paths[x]}" for a, b, x in ((here, there, first), (there, here, name))]
        if here != there:
            task, index, _ = min(here ^ there)
            raise UsageError(
                f"{paths[first]} and {paths[name]} asked different questions ({', '.join(only)}; one is "
                f"{task}, question {index}); expected runs with the same tasks, --split and --questions"
            )


def paired(a: Sequence[dict], b: Sequence[dict]) -> dict:
    """Two runs' answers to the same questions, in the same order: the difference of their accuracies (b - a),
    its standard error over questions, and the p-value of permutation_test."""
    share = [[sum(q["correct"]) / len(q["correct"]) for q in run] for run in (a, b)]
    row: dict = {"questions": len(a)}
    row["accuracy"], row["stderr"] = mean_error([y - x for x, y in zip(*share, strict=True)])
    unit = math.lcm(*(len(q["correct"]) for q in (*a, *b)))
    whole = [[round(x * unit) for x in run] for run in share]
    row["p"] = permutation_test([y - x for x, y in zip(*whole, strict=True)])
    return row


def compare(paths: Sequence[str]) -> str:
    """Runs side by side, each against the first: a table of accuracies, differences and p-values, then the
    behaviour statistics. Raises UsageError where they asked other questions."""
    if len(paths) < 2 or any(p.startswith("-") for p in paths):
        raise UsageError(
            "compare takes files written by --out: evaluate.py compare A.json B.json [C.json ...]"
        )
    named = {chr(ord("A") + i): path for i, path in enumerate(paths)}
    runs = {name: read_results(path) for name, path in named.items()}
    check_same_questions(runs, named)
    asked = [_asked(found) for found in runs.values()]
    rows: dict[str, list[dict]] = {}
    for label, keys in _groups(asked[0]).items():
        answers = [[run[key] for key in keys] for run in asked]
        rows[label] = [_accuracy(a) | {"than_first": paired(answers[0], a)} for a in answers]
    tasks = [row for label, row in rows.items() if label in {key[0] for key in asked[0]}]
    if len(tasks) > 1:
        columns = list(zip(*tasks, strict=True))
        rows[f"mean of {len(tasks)} tasks"] = [
            macro(c) | {"than_first": macro([row["than_first"] for row in c])} for c in columns
        ]
    behaviours = {name: found["overall"]["micro"] for name, found in runs.items()}
    parts = [_legend(named, runs), _side_by_side(rows, list(runs)), behaviour.table(behaviours)]
    return "\n\n".join(parts)


def _groups(asked: dict[tuple, dict]) -> dict[str, list[tuple]]:
    """Label -> questions: each task, each family where there are several, all."""
    tasks: dict[str, list[tuple]] = {}
    families: dict[str, list[tuple]] = {}
    for key, q in sorted(asked.items()):
        tasks.setdefault(q["task"], []).append(key)
        families.setdefault(f"{q['family']}, all questions", []).append(key)
    return tasks | (families if len(families) > 1 else {}) | {"all questions": list(asked)}


def _accuracy(answers: Sequence[dict]) -> dict:
    mean, error = mean_error([sum(q["correct"]) / len(q["correct"]) for q in answers])
    return {"questions": len(answers), "accuracy": mean, "stderr": error}


def _legend(named: dict[str, str], runs: dict[str, dict]) -> str:
    """A line per run: its file, and the options in which the runs differ."""
    options = [found["config"] for found in runs.values()]
    differ = [k for k in options[0] if k != "out" and any(o.get(k) != options[0][k] for o in options)]
    lines = []
    for name, found in runs.items():
        words = [f"--{k.replace('_', '-')} {found['config'].get(k)}" for k in differ]
        lines.append(f"{name}  {named[name]}  {' '.join(words)}".rstrip())
    return "\n".join(lines)


def _side_by_side(rows: dict[str, list[dict]], names: Sequence[str]) -> str:
    """Accuracies of all runs, then each later run minus the first; p where all questions of a kind count."""
    width = max(map(len, rows))
    head = f"{'':{width}} questions  " + "".join(f"{name:<15}" for name in names)
    lines = [head + "".join(f"{f'{name} - {names[0]}':<16}{'p':<9}" for name in names[1:])]
    for label, row in rows.items():
        line = f"{label:{width}} {row[0]['questions']:9}  "
        line += "".join(f"{measured(r['accuracy'], r['stderr']):<15}" for r in row)
        for gain in (r["than_first"] for r in row[1:]):
            p = gain.get("p") if label.endswith("all questions") else None
            shown = "" if p is None else f"{p:.3g}" if p >= 1e-12 else "<1e-12"
            line += f"{measured(gain['accuracy'], gain['stderr'], '+'):<16}{shown:<9}"
        lines.append(line.rstrip())
    test = "p: exact paired permutation test over questions, two-sided, uncorrected for the number of tests"
    return "\n".join([*lines, test])
