"""Runs side by side on the same questions, and the paired permutation test between them."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis import behaviour
from plumbing.config import UsageError


def mean_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error, sqrt(variance / n) with n - 1 in the variance; None for one value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def macro(rows: Sequence[dict]) -> dict:
    """Accuracy and pass@k as means over tasks, every task with the same weight. The tasks are fixed and only
    their questions are a sample, so the standard error is sqrt(sum of squared errors) / tasks."""
    mean: dict = {"tasks": len(rows), "questions": sum(r["questions"] for r in rows)}
    for name in ["accuracy", *(n for n in rows[0] if n.startswith("pass@") and not n.endswith("_stderr"))]:
        error = "stderr" if name == "accuracy" else f"{name}_stderr"
        errors = [r[error] for r in rows]
        mean[name] = math.fsum(r[name] for r in rows) / len(rows)
        mean[error] = None if None in errors else math.hypot(*errors) / len(rows)
    return mean


def with_error(value: float, error: float | None, sign: str = "") -> str:
    """'0.500 +-0.100'; without the error where it is None."""
    return f"{value:{sign}.3f}" + (f" +-{error:.3f}" if error is not None else "")


def permutation_test(differences: Sequence[int]) -> float:
    """Exact two-sided p-value of the paired permutation test. differences: per question, B's right answers
    minus A's, in whole numbers.

    If both runs were the same, exchanging their answers to a question would change nothing: each difference
    would be as likely with the other sign. p is the share of the 2^n choices of signs whose sum is at least
    as far from 0 as the observed sum. The sum has the characteristic function prod cos(d_i theta). Its
    Fourier transform gives the probability of each sum without enumerating signs. For differences of -1, 0
    and 1 this is the exact McNemar (sign) test. The rounding error is about 1e-15.
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
    """A file written by evaluate.py --out. Raises UsageError for any other file."""
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


def check_same_questions(paths: Sequence[str], asked: Sequence[dict[tuple, dict]]) -> None:
    """Raises UsageError where a run has other questions than the first. asked: per run, the entries by (task,
    index, digest of the text)."""
    for path, there in zip(paths, asked, strict=True):
        here = asked[0].keys()
        if here != there.keys():
            task, index, _ = min(here ^ there.keys())
            only = f"{len(here - there.keys())} only in {paths[0]}, {len(there.keys() - here)} only in {path}"
            raise UsageError(
                f"{paths[0]} and {path} asked different questions ({only}; one is {task}, question {index}); "
                "expected runs with the same tasks, --split and --questions"
            )


def compare(paths: Sequence[str]) -> str:
    """Tables of runs: accuracy, difference to the first run and its p-value, then the behaviour statistics.
    Raises UsageError for runs on different questions."""
    if len(paths) < 2 or any(p.startswith("-") for p in paths):
        raise UsageError(
            "compare takes files written by --out: evaluate.py compare A.json B.json [C.json ...]"
        )
    names = [chr(ord("A") + i) for i in range(len(paths))]
    runs = [read_results(path) for path in paths]
    asked = [{(q["task"], q["index"], q["digest"]): q for q in found["questions"]} for found in runs]
    check_same_questions(paths, asked)
    rows = {label: paired([[run[key] for key in keys] for run in asked]) for label, keys in _groups(asked[0])}
    tasks = [rows[task] for task in sorted({task for task, *_ in asked[0]})]
    if len(tasks) > 1:
        rows[f"mean of {len(tasks)} tasks"] = [
            macro(run) | {"gain": macro([row["gain"] for row in run])} for run in zip(*tasks, strict=True)
        ]
    behaviours = {name: found["overall"]["micro"] for name, found in zip(names, runs, strict=True)}
    parts = [_legend(names, paths, runs), _side_by_side(rows, names), behaviour.table(behaviours)]
    return "\n\n".join(parts)


def _groups(asked: dict[tuple, dict]) -> list[tuple[str, list[tuple]]]:
    """(label, keys of its questions): each task, each family where there are several, all questions."""
    tasks: dict[str, list[tuple]] = {}
    families: dict[str, list[tuple]] = {}
    for key, q in sorted(asked.items()):
        tasks.setdefault(q["task"], []).append(key)
        families.setdefault(f"{q['family']}, all questions", []).append(key)
    return [*tasks.items(), *(families.items() if len(families) > 1 else ()), ("all questions", list(asked))]


def paired(answers: Sequence[Sequence[dict]]) -> list[dict]:
    """Per run: accuracy, its standard error over questions, and as "gain" the difference to the first run
    with its error and its p-value. answers: per run, the entries of the same questions in the same order."""
    shares = [[sum(q["correct"]) / len(q["correct"]) for q in run] for run in answers]
    unit = math.lcm(*(len(q["correct"]) for run in answers for q in run))
    rows = []
    for share in shares:
        gains = [y - x for x, y in zip(shares[0], share, strict=True)]
        row, gain = {"questions": len(share)}, {"questions": len(share)}
        row["accuracy"], row["stderr"] = mean_error(share)
        gain["accuracy"], gain["stderr"] = mean_error(gains)
        gain["p"] = permutation_test([round(unit * x) for x in gains])
        rows.append(row | {"gain": gain})
    return rows


def _legend(names: Sequence[str], paths: Sequence[str], runs: Sequence[dict]) -> str:
    """A line per run: its file, and the options in which the runs differ."""
    options = [found["config"] for found in runs]
    differ = [k for k in options[0] if k != "out" and any(o.get(k) != options[0][k] for o in options)]
    lines = []
    for name, path, chosen in zip(names, paths, options, strict=True):
        words = [f"--{k.replace('_', '-')} {chosen.get(k)}" for k in differ]
        lines.append(f"{name}  {path}  {' '.join(words)}".rstrip())
    return "\n".join(lines)


def _side_by_side(rows: dict[str, list[dict]], names: Sequence[str]) -> str:
    """Accuracies of all runs, then each later run minus the first. p stands beside whole families only."""
    width = max(map(len, rows))
    head = f"{'':{width}} questions  " + "".join(f"{name:<15}" for name in names)
    lines = [head + "".join(f"{f'{name} - {names[0]}':<16}{'p':<9}" for name in names[1:])]
    for label, row in rows.items():
        line = f"{label:{width}} {row[0]['questions']:9}  "
        line += "".join(f"{with_error(r['accuracy'], r['stderr']):<15}" for r in row)
        for gain in (r["gain"] for r in row[1:]):
            p = gain["p"] if label.endswith("all questions") else None
            shown = "" if p is None else f"{p:.3g}" if p >= 1e-12 else "<1e-12"
            line += f"{with_error(gain['accuracy'], gain['stderr'], '+'):<16}{shown:<9}"
        lines.append(line.rstrip())
    test = "p: exact paired permutation test over questions, two-sided, uncorrected for the number of tests"
    return "\n".join([*lines, test])
