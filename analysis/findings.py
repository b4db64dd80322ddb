"""The page of analysis/reproduce.py: tables, pictures and sentences, all from the lines of a results file.

    write_page(Path("docs/results.jsonl"), Sizes())          docs/results.md, docs/results/ROW.png

No number or sentence is written by hand. A claim of the papers (analysis/comparisons.py) is judged by
`judge`: differences are taken within each seed, and must exceed their error and have one sign.
"""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from analysis.comparisons import Claim, Row, Sizes, Variant, all_rows
from plumbing.config import UsageError, write_text

HEADINGS = {
    "sampled": "sampled",
    "greedy": "greedy",
    "code_ratio": "with code",
    "response_tokens": "tokens",
    "calls_failed": "failed programs per answer",
    "calls_ran": "programs without error",
    "code_lines": "lines of code",
    "first_call": "place of the first program",
    "groups_mixed": "groups with right and wrong answers",
    "stage_questions": "questions of the first stage",
    "ratio_max": "largest ratio",
    "mismatch_max": "largest difference of sampler and trainer",
    "0": "begin",
    "-1": "end",
}
Found = dict[str, dict[int, dict]]  # variant -> seed -> its line


# -- the file of results ---------------------------------------------------------------------------


def read(path: Path) -> list[dict]:
    """The lines of a results file; none where there is no file. Raises UsageError for a damaged one."""
    found = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), 1):
        try:
            found.append(json.loads(line))
            found[-1]["row"], found[-1]["variant"], found[-1]["seed"], found[-1]["digest"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{path}, line {number}: no result; remove the line to measure it again"
            ) from None
    return found


def append(path: Path, line: dict) -> None:
    """Add a line, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text() if path.exists() else ""
    write_text(path, text + json.dumps(line) + "\n")


def digest(variant: Variant, sizes: Sizes) -> str:
    """A fingerprint of what a variant is trained with and asked."""
    asked = [variant.stage.digest, variant.protocol, variant.longer, sizes.tokens, sizes.questions]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]


def of_row(name: str, row: Row, lines: Sequence[dict], sizes: Sizes) -> Found:
    """A row's lines that belong to the present comparison; of two alike, the later one."""
    found: Found = {}
    for label, variant in row.variants.items():
        mine = (name, label, digest(variant, sizes))
        here = {r["seed"]: r for r in lines if (r["row"], r["variant"], r["digest"]) == mine}
        if here:
            found[label] = dict(sorted(here.items()))
    return found


def value(line: dict, quantity: str) -> float | None:
    """The number at a path such as "unseen.sampled" or "curve.reward.-1"; None where there is none."""
    for key in quantity.split("."):
        if isinstance(line, list) and line:
            line = line[int(key)]
        else:
            line = line.get(key) if isinstance(line, dict) else None
    return line


# -- sentences -------------------------------------------------------------------------------------


def short(x: float, sign: str = "") -> str:
    """A number for people: three decimals, fewer where it is large."""
    if 0 < abs(x) < 0.001:
        return f"{x:{sign}.0e}"
    return f"{x:{sign}.{3 if abs(x) < 10 else 1 if abs(x) < 1000 else 0}f}"


def spread(values: Sequence[float | None], sign: str = "") -> str:
    """'0.960 (0.951 to 0.968)': the mean, and the smallest and largest."""
    known = [v for v in values if v is not None]
    if not known:
        return ""
    mean = short(statistics.fmean(known), sign)
    return mean if len(known) == 1 else f"{mean} ({short(min(known), sign)} to {short(max(known), sign)})"


def duration(seconds: float) -> str:
    """'1 h 20 min'."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


@dataclasses.dataclass(frozen=True)
class Judgement:
    verdict: str  # agrees, disagrees, undecided, not run
    gaps: tuple[float, ...] = ()  # more - less, a number per seed


def error(line: dict, quantity: str) -> float | None:
    """The standard error of a sampled accuracy over its questions; of other quantities it is not known."""
    place, _, name = quantity.rpartition(".")
    return value(line, f"{place}.stderr") if name == "sampled" else None


def judge(claim: Claim, found: Found) -> Judgement:
    """Whether the measured numbers agree with a claim.

    The gaps are `more` - `less` within each seed. A claim of a difference agrees where all gaps are positive
    and their mean exceeds twice its standard error, and disagrees where the same holds with the other sign.
    The error is the larger of two: the questions' (both variants', as if independent), and the seeds'. A
    claim of equality agrees where the mean is at most `near`, and disagrees where it is more than that by
    twice its error. Everything else is undecided, as is a single seed of a quantity without an error.
    """
    more, less = found.get(claim.more, {}), found.get(claim.less, {})
    gaps, errors = [], []
    for seed in sorted(more.keys() & less.keys()):
        sides = ((more[seed], claim.on), (less[seed], claim.than or claim.on))
        a, b = (value(*side) for side in sides)
        if a is not None and b is not None:
            gaps.append(a - b)
            errors.append([error(*side) for side in sides])
    if not gaps:
        return Judgement("not run")
    known = [e for pair in errors for e in pair if e is not None]
    noise = [2 * math.hypot(*known) / len(gaps)] if known else []
    noise += [2 * statistics.stdev(gaps) / math.sqrt(len(gaps))] if len(gaps) > 1 else []
    middle, noise = statistics.fmean(gaps), max(noise, default=math.inf)
    if claim.near is not None:
        verdict = "agrees" if abs(middle) <= claim.near else "undecided"
        verdict = "disagrees" if abs(middle) > claim.near + noise else verdict
    else:
        verdict = "agrees" if middle > noise and min(gaps) > 0 else "undecided"
        verdict = "disagrees" if middle < -noise and max(gaps) < 0 else verdict
    return Judgement(verdict, tuple(gaps))


def sentence(claim: Claim, judged: Judgement) -> str:
    """What is said of a claim on the page."""
    if judged.verdict == "not run":
        return f"Not measured yet: {claim.says}."
    where = claim.on if claim.than in ("", claim.on) else f"{claim.on} less {claim.than}"
    seeds = f"{len(judged.gaps)} seed{'s' * (len(judged.gaps) > 1)}"
    paper = "" if claim.paper == "n.s." else f" The papers: {claim.paper}."
    said = f"{claim.says}: {spread(judged.gaps, '+')} in {where}, {seeds}.{paper}"
    guess = "" if judged.verdict == "agrees" else f" A guess why: {claim.guess}."
    return f"**{judged.verdict.capitalize()}**: {said}{guess}"


# -- the page --------------------------------------------------------------------------------------


def heading(column: str) -> str:
    """A column's title: 'unseen, sampled'."""
    words = [HEADINGS.get(key, key.replace("_", " ")) for key in column.split(".")]
    return ", ".join(words[1:] if words[0] in ("behaviour", "training", "curve") else words)


def table(row: Row, found: Found) -> list[str]:
    """A row's numbers: mean (smallest to largest) over the seeds, and the papers'."""
    head = ["", *map(heading, row.columns), "papers"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for label, variant in row.variants.items():
        here = found.get(label, {}).values()
        cells = [spread([value(line, column) for line in here]) for column in row.columns]
        lines.append("| " + " | ".join([label, *cells, variant.paper]) + " |")
    return lines


def draw(row: Row, found: Found, path: Path) -> bool:
    """The picture of a row: accuracy of its variants, a dot per seed, and curves along training, as mean and
    range over seeds. False without matplotlib, which is an extra, or without numbers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not found:
        return False
    count = 1 + len(row.curves)
    wide, high = min(3, count), math.ceil(count / 3)
    size = 4.4 * wide + 1.5, max(2.6, 0.32 * len(found) + 1) + 2.6 * (high - 1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(high, wide, squeeze=False).flat
    dots = next(axes)
    for color, quantity in (("C0", "seen.sampled"), ("C1", "unseen.sampled")):
        for place, lines in enumerate(found.values()):
            values = [value(line, quantity) for line in lines.values()]
            dots.plot(values, [-place] * len(values), "o-", color=color, alpha=0.6,
                      label=heading(quantity) if place == 0 else None)  # fmt: skip
    dots.set_yticks([-place for place in range(len(found))], list(found))
    dots.set_title("accuracy")
    dots.legend(fontsize="small")
    for name in row.curves:
        axis = next(axes)
        for label, lines in found.items():
            curve(axis, label, [line["curve"] for line in lines.values() if "curve" in line], name)
        axis.set_title(HEADINGS.get(name, name.replace("_", " ")))
        axis.set_xlabel("step")
        if axis.lines:
            axis.legend(fontsize="small")
    for axis in axes:
        axis.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    return True


def curve(axis, label: str, curves: Sequence[dict], name: str) -> None:
    """Draw a quantity along the steps: mean over seeds, and the range of them."""
    points = []
    for i, step in enumerate(curves[0]["step"] if curves else []):
        values = [c[name][i] for c in curves if i < len(c[name]) and c[name][i] is not None]
        points += [(step, statistics.fmean(values), min(values), max(values))] if values else []
    if points:
        steps, middle, low, high = zip(*points, strict=True)
        axis.fill_between(steps, low, high, alpha=0.2)
        axis.plot(steps, middle, label=label)


def section(name: str, row: Row, found: Found, picture: str) -> list[str]:
    """A row's part of the page."""
    lines = [f"## {row.title}", "", row.about, "", f"`python -m analysis.reproduce {name}`", ""]
    lines += [*table(row, found), ""]
    lines += [f"- {sentence(claim, judge(claim, found))}" for claim in row.claims]
    lines += ["", f"Left out: {row.left_out}"] if row.left_out else []
    return [*lines, "", *([f"![{row.title}]({picture})", ""] if picture else [])]


INTRO = """\
The model has 0.9M parameters and its tasks are small (README.md). Accuracy is sampled at temperature 1, or greedy,
on new questions of tasks seen and never seen in training. Numbers are the mean over the seeds (smallest to
largest). The papers' are percentages of their own test sets, with models of 14B (R1-CI) and 32B (ReTool): signs
and order can be compared, sizes cannot. n.s.: they state no number.

A claim *agrees* where all seeds have its sign and the mean exceeds twice its standard error. It *disagrees* where
both hold with the other sign; else it is *undecided*.
"""  # noqa: E501 (the page's width)


def overview(rows: dict[str, Row], found: dict[str, Found]) -> list[str]:
    """The papers' claims in one table."""
    lines = ["| comparison | claim | papers | here | |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        for claim in () if row.ours else row.claims:
            judged = judge(claim, found[name])
            cells = [row.title, claim.says, claim.paper, spread(judged.gaps, "+"), judged.verdict]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def write_page(results: Path, sizes: Sizes) -> Path:
    """Write the page beside the results, and its pictures in a folder of the same name. The page's path."""
    lines, rows = read(results), all_rows(sizes)
    found = {name: of_row(name, row, lines, sizes) for name, row in rows.items()}
    used = [line for row in found.values() for seeds in row.values() for line in seeds.values()]
    seconds: dict[int, float] = {}
    for line in used:
        seconds[line["seed"]] = seconds.get(line["seed"], 0.0) + line.get("seconds", 0.0)
    times = ", ".join(f"seed {seed} {duration(total)}" for seed, total in sorted(seconds.items()))
    page = [
        "# The papers' comparisons in miniature",
        "",
        f"`python -m analysis.reproduce` wrote this page from {results.name}. Nothing is corrected by hand.",
        f"Time: {times or 'nothing is measured yet'}. Lines of other options, or repeated: "
        f"{len(lines) - len(used)}.",
        "",
        INTRO,
        *overview(rows, found),
    ]
    for name, row in rows.items():
        picture = results.with_suffix("") / f"{name}.png"
        drawn = draw(row, found[name], picture)
        page += section(name, row, found[name], f"{picture.parent.name}/{picture.name}" if drawn else "")
    path = results.with_suffix(".md")
    write_text(path, "\n".join(page).rstrip() + "\n")
    return path
