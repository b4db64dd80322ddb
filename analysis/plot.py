"""Curves of training metrics, one picture for any number of runs.

python -m analysis.plot --runs runs/demo/grpo --out curves.png
python -m analysis.plot --runs runs/a,runs/b --out compare.png      # one line per run in every panel
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.transcripts import metrics
from plumbing import config
from plumbing.config import UsageError, option

# Title of a panel -> its metrics and their labels.
PANELS = {
    "reward": {"reward": "mean reward", "groups_mixed": "groups with a difference"},
    "accuracy": {
        "accuracy": "in training",
        "accuracy_seen": "held-out questions, seen tasks",
        "accuracy_unseen": "held-out questions, unseen tasks",
    },
    "code use": {"code_ratio": "episodes with code", "calls_failed": "failed programs per episode"},
    "entropy": {"entropy": "nats per token"},
}


@dataclass(frozen=True)
class Config:
    runs: str = option("runs/demo/grpo", "run folders, comma separated")
    out: str = option("curves.png", "file to write; its ending decides the format")


def read(folder: Path) -> list[dict]:
    """The metrics of each step of a run. Raises UsageError where there are none."""
    if not (found := metrics(folder)):
        said = "no metrics; expected the folder of a run that made at least one step"
        raise UsageError(f"{folder / 'metrics.jsonl'}: {said}")
    return found


def draw(runs: Sequence[Path], out: Path) -> Path:
    """The picture `out`, drawn from the metrics of the runs. Raises UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plots need matplotlib, which is missing; pip install '.[plot]'") from None
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for axis, (title, shown) in zip(axes, PANELS.items(), strict=True):
        for folder in runs:
            lines = read(folder)
            for style, (name, label) in zip(("-", "--", "-."), shown.items(), strict=False):
                points = [(r["step"], r[name]) for r in lines if name in r]
                if points:
                    who = label if len(runs) == 1 else f"{folder.name}: {label}"
                    drawn = axis.plot(*zip(*points, strict=True), style, label=who)[0]
                    if points[0][0] == 0:  # measured before training
                        axis.axhline(points[0][1], color=drawn.get_color(), linestyle=":", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="best", fontsize="small")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return out


def main() -> None:
    cfg = config.parse(Config, __doc__)
    print(draw([Path(name) for name in cfg.runs.split(",")], Path(cfg.out)))


if __name__ == "__main__":
    config.run(main)
