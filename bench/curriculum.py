"""Training by curriculum, by difficulty and in no order, on the same questions of the embedded model.

    for s in 0 1 2; do python demo.py --seed $s --out runs/seed-$s; done
    python bench/curriculum.py --runs runs/seed-0,runs/seed-1,runs/seed-2 --out runs/curriculum

From each demo's SFT checkpoint curriculum.py measures --questions questions, of the demo's tasks in its
proportions, with --samples answers each in the way that training samples: of the paper's four ways this
model masters one (seed 0: right on .05 of the answers in words, .44 that begin with code, .93 free), which
put 297 of 300 questions into the first stage. Then grpo.py trains three times with the demo's options, the
same --steps steps of as many rollouts each, on the file's questions: in no order, by curriculum, by
difficulty. All models of a seed are asked the demo's new questions, of tasks seen and unseen, sampled.

Prints mean and spread over the seeds and writes results.json in --out; what is finished there is not done
again.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from algorithms import asked, train
from seeds import SETS, spread

import demo
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from sandbox import Sandbox
from training import course, curriculum
from training.interpreter import open_sandbox
from training.options import SandboxOptions

ARMS = {"none": "no order", "curriculum": "curriculum", "difficulty": "easy to hard"}


@dataclass(frozen=True)
class Config:
    runs: str = option("runs/demo", "folders of demo.py, comma separated")
    out: str = option("runs/curriculum", "folder for all files, runs and results.json")
    questions: int = option(500, "measured for each run, and trained on; few have a large potential", least=1)
    ways: str = option("free", "of answering; the embedded model is right in too few of the paper's four")
    samples: int = option(20, "answers per question and way", least=1)
    steps: int = option(40, "rollout batches of each training", least=1)
    stage_steps: int = option(10, "of them in each stage but the last", least=1)
    asked: int = option(2000, "at most so many of each of the demo's sets of new questions", least=1)
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


def measure(run: Path, file: Path, cfg: Config) -> list[dict]:
    """The lines of a run's file of curriculum.py, measured now or before."""
    if file.exists():
        return course.read(str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    seed = json.loads((run / "config.json").read_text())["seed"]
    trained = demo.stages(demo.Config(seed=seed, sandbox=cfg.sandbox), run)["grpo"][1]
    names = {f.name for f in dataclasses.fields(curriculum.Config)} - {"out"}
    same = {name: getattr(trained, name) for name in names if hasattr(trained, name)}
    options = {name: getattr(cfg, name) for name in ("questions", "ways", "samples")} | {"out": str(file)}
    return curriculum.measure(curriculum.Config(**same | options))


def accuracy(folder: Path, questions: dict, sandbox: Sandbox) -> dict[str, float]:
    """Sampled accuracy of a model folder on each of the demo's sets."""
    return {name: r["sampled"] for name, r in asked(folder, questions, 0, sandbox).items()}


def potentials(run: Path, cfg: Config) -> dict:
    """The begin of a run's part of the results: questions of each stage, right answers by way."""
    rows = measure(run, Path(cfg.out) / run.name / "curriculum.jsonl", cfg)
    ways = rows[0]["by_way"]
    return {
        "questions": [len(group) for group in course.groups(rows)],
        "by_way": {way: statistics.fmean(r["by_way"][way] / cfg.samples for r in rows) for way in ways},
    }


def compare(run: Path, found: dict, cfg: Config, questions: dict, world: World, sandbox: Sandbox) -> None:
    """Train and ask what `found`, a run's part of the results, does not hold yet; add it."""
    folder = Path(cfg.out) / run.name
    if "sft" not in found:
        found["sft"] = accuracy(run / "sft" / "final", questions, sandbox)
    for arm in ARMS:
        if arm in found:
            continue
        options = {"curriculum": str(folder / "curriculum.jsonl"), "order": arm}
        lines = train(arm, options | {"stage_steps": cfg.stage_steps}, run, folder / arm, cfg, world)
        teaching = statistics.fmean(m["groups_mixed"] for m in lines)
        found[arm] = {"groups_mixed": teaching} | accuracy(folder / arm / "final", questions, sandbox)
        print(run.name, arm, json.dumps(found[arm]), flush=True)
        write(cfg, {run.name: found})


def write(cfg: Config, more: dict[str, dict]) -> dict:
    """results.json with these runs' parts in it; all of it. Without any, what an earlier start has left.
    Raises UsageError where that had other options."""
    path = Path(cfg.out) / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {"config": config.to_json(cfg), "runs": {}}
    own, old = (dict(c, runs=0, out=0, sandbox=0) for c in (config.to_json(cfg), results["config"]))
    if own != old:
        raise UsageError(f"--out {cfg.out}: holds results of {old}; give its options, or another folder")
    results["runs"] |= more
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    temporary.replace(path)
    return results


def report(runs: Sequence[dict]) -> str:
    """Mean (smallest-largest) over the runs as a Markdown table; differences are within each run."""
    lines = [
        f"| {' | '.join(['sampled accuracy', *SETS.values(), 'seen - no order', 'unseen - no order'])} "
        "| groups that teach |",
        "|---" * (len(SETS) + 4) + "|",
    ]
    for name, label in {"sft": "SFT", **ARMS}.items():
        cells = [spread([r[name][key] for r in runs]) for key in SETS]
        for key in ("seen_tasks", "unseen_tasks"):
            gaps = [r[name][key] - r["none"][key] for r in runs]
            shown = f"{statistics.fmean(gaps):+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})"
            cells.append("" if name in ("sft", "none") else shown)
        cells.append("" if name == "sft" else spread([r[name]["groups_mixed"] for r in runs]))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for number, interval in enumerate(course.intervals()):
        sizes = ", ".join(str(r["questions"][number]) for r in runs)
        lines.append(f"{'' if number else chr(10)}questions with P in {interval}: {sizes}")
    ways = ", ".join(f"{way} {spread([r['by_way'][way] for r in runs])}" for way in runs[0]["by_way"])
    return "\n".join([*lines, f"right answers by way: {ways}"])


def main() -> None:
    cfg = config.parse(Config, __doc__)
    runs = list(map(Path, cfg.runs.split(",")))
    if missing := [r for r in runs if not (r / "sft" / "final").is_dir()]:
        raise UsageError(f"--runs {missing[0]}: no sft/final there; expected a run of demo.py")
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    questions = {name: found[: cfg.asked] for name, found in demo.evaluation_questions().items()}
    results = write(cfg, {})
    for run in runs:  # before World takes Ctrl-C for itself: measuring may stop at any answer
        results["runs"].setdefault(run.name, {}).update(potentials(run, cfg))
    with World() as world, open_sandbox(SandboxOptions(sandbox=cfg.sandbox, preload="")) as sandbox:
        for run in runs:
            compare(run, results["runs"][run.name], cfg, questions, world, sandbox)
    print("\n" + report([results["runs"][run.name] for run in runs]))


if __name__ == "__main__":
    config.run(main)
