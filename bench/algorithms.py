"""PPO beside GRPO on three seeds, and every objective and reward once, on the embedded model.

    for s in 0 1 2; do python demo.py --seed $s --out runs/seed-$s; done
    python bench/algorithms.py --runs runs/seed-0,runs/seed-1,runs/seed-2 --out runs/algorithms

From each demo's SFT checkpoint PPO trains, and it and the demo's GRPO are asked the demo's new questions.
Then, from the first run alone, each variant of grpo.py and ppo.py trains. All train --steps steps. The bars:

    PPO       sampled accuracy within .05 of GRPO's, on new questions of seen tasks and on unseen tasks,
              in the mean over the seeds
    variant   no collapse: accuracy in the last ten steps, and afterwards on new questions of seen tasks, at
              most .05 below where it began; no step skipped

Prints a table and writes results.json in --out; a run that is finished there is not trained again.
"""

import dataclasses
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import demo
import grpo
import ppo
from plumbing import config
from plumbing.config import UsageError, option
from plumbing.ranks import World
from sandbox import Sandbox
from training.interpreter import open_sandbox
from training.options import SandboxOptions

# Above the papers' rates, as the demo's: the model is small. Four steps of a critic per rollout batch.
PPO = {"critic_lr": 5e-4, "critic_warmup": 3}
TWICE = {"updates": 2}  # so that ratios leave 1 and the objectives differ
VARIANTS = {
    "grpo": {},
    "two updates": TWICE,
    "dual clip": {"dual_clip": 3.0, **TWICE},
    "GSPO": {"kind": "gspo", "weights": "seq_mean", "clip_low": 3e-4, "clip_high": 4e-4, **TWICE},
    "CISPO": {"kind": "cispo", **TWICE},
    "sequence mean": {"weights": "seq_mean"},
    "Dr. GRPO": {"weights": "constant", "advantage": "group_mean"},
    "REINFORCE++": {"advantage": "reinforce++", "kl_coef": 0.001, **TWICE},
    "KL in the loss": {"kl_coef": 0.001},
    "entropy bonus": {"entropy_coef": 0.001},
    "sampler's weights": {"importance_cap": 2.0},
    "equal groups dropped": {"drop_equal_groups": True},
    "overlong filter": {"filter_overlong": True},
    "overlong penalty": {"overlong_buffer": 64},
    "interpreter unmasked": {"train_on_tool_output": True},
    "reward outcome": {"reward": "outcome"},
    "reward r1ci": {"reward": "r1ci"},
    "reward retool": {"reward": "retool"},
    "ppo lambda .95": {"lam": 0.95, **PPO},
    "ppo KL in the reward": {"kl_coef": 0.001, **PPO},
    "ppo reward retool": {"reward": "retool", **PPO},
}


@dataclass(frozen=True)
class Config:
    runs: str = option("runs/demo", "folders of demo.py, comma separated; variants start from the first")
    out: str = option("runs/algorithms", "folder for all runs and results.json")
    steps: int = option(40, "rollout batches of each variant", least=1)
    variants: str | None = option(None, "names of variants, comma separated; all: " + ", ".join(VARIANTS))
    questions: int = option(2000, "at most so many of each of the demo's sets of new questions", least=1)
    sandbox: str = option("core", "least isolation accepted for running programs: full, core, none")


def train(name: str, options: dict, run: Path, out: Path, cfg: Config, world: World) -> list[dict]:
    """Train a variant from a demo's SFT checkpoint, with the demo's other options; its metric lines."""
    seed = json.loads((run / "config.json").read_text())["seed"]
    base = demo.stages(demo.Config(seed=seed, sandbox=cfg.sandbox), run)["grpo"][1]
    base = dataclasses.replace(base, out=str(out), steps=cfg.steps, save_every=cfg.steps)
    script = ppo if name.startswith("ppo") else grpo
    if not (out / "final").exists():
        names = [f.name for f in dataclasses.fields(script.Config) if hasattr(base, f.name)]
        known = {name: getattr(base, name) for name in names}
        script.train(script.Config(**known | options), world)
        if world.stopping:
            sys.exit(130)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def row(lines: list[dict], found: dict) -> dict[str, float]:
    """What a run did: accuracy while training, at its begin and end, and on new questions afterwards."""
    accuracy = [m["accuracy"] for m in lines]
    span = min(10, len(lines) // 2 or 1)
    return {
        "first": statistics.fmean(accuracy[:span]),
        "last": statistics.fmean(accuracy[-span:]),
        "code": statistics.fmean(m["code_ratio"] for m in lines[-span:]),
        "entropy": statistics.fmean(m["entropy"] for m in lines[-span:]),
        "ratio_max": max(m.get("ratio_max", 1.0) for m in lines),
        "skipped": sum(m["skipped"] for m in lines),
        "seen": found["seen_tasks"]["sampled"],
        "unseen": found["unseen_tasks"]["sampled"],
        "seconds": sum(m["seconds_rollout"] + m["seconds_prepare"] + m["seconds_update"] for m in lines),
    }


def collapsed(r: dict[str, float], before: dict) -> bool:
    """Whether a run is worse than it began, or had steps without a finite gradient."""
    return bool(r["skipped"] or r["last"] < r["first"] - 0.05 or r["seen"] < before["seen"] - 0.05)


def asked(folder: Path, questions: dict, seed: int, sandbox: Sandbox) -> dict:
    """Sampled accuracy of a model folder, by set of questions."""
    return demo.measure(folder, "r1ci", questions, seed, sandbox)[0]


def compare(cfg: Config, questions: dict, world: World, sandbox: Sandbox) -> dict[str, dict]:
    """SFT, GRPO and PPO of each seed on the same new questions: {run: {stage: {set: accuracy}}}."""
    table = {}
    for run in map(Path, cfg.runs.split(",")):
        out = Path(cfg.out) / run.name / "ppo"
        train("ppo", PPO, run, out, cfg, world)
        stages = {"sft": run / "sft" / "final", "grpo": run / "grpo" / "final", "ppo": out / "final"}
        found = {name: asked(folder, questions, 0, sandbox) for name, folder in stages.items()}
        table[run.name] = {
            name: {"seen": r["seen_tasks"]["sampled"], "unseen": r["unseen_tasks"]["sampled"]}
            for name, r in found.items()
        }
        print(run.name, json.dumps(table[run.name]), flush=True)
    return table


def report(results: dict) -> str:
    """Both tables and whether the bars are met, as Markdown."""
    lines = ["| sampled accuracy | SFT seen, unseen | GRPO | PPO |", "|---|---|---|---|"]
    for run, stages in results["seeds"].items():
        cells = (f"{s['seen']:.3f}, {s['unseen']:.3f}" for s in stages.values())
        lines.append(f"| {run} | " + " | ".join(cells) + " |")
    for name in ("seen", "unseen"):
        gap = statistics.fmean(s["ppo"][name] - s["grpo"][name] for s in results["seeds"].values())
        lines.append(f"\nPPO - GRPO, {name}: {gap:+.3f}; bar -.05: {'met' if gap >= -0.05 else 'NOT met'}")
    lines += [
        "",
        "| variant | first, last | code | entropy | ratio max | seen, unseen | seconds | collapse |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name, r in results["variants"].items():
        lines.append(
            f"| {name} | {r['first']:.3f}, {r['last']:.3f} | {r['code']:.2f} | {r['entropy']:.3f} "
            f"| {r['ratio_max']:.2f} | {r['seen']:.3f}, {r['unseen']:.3f} | {r['seconds']:.0f} "
            f"| {'YES' if r['collapsed'] else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    cfg = config.parse(Config, __doc__)
    first, out = Path(cfg.runs.split(",")[0]), Path(cfg.out)
    names = (
        list(VARIANTS) if cfg.variants is None else [n.strip() for n in cfg.variants.split(",") if n.strip()]
    )
    if unknown := [name for name in names if name not in VARIANTS]:
        raise UsageError(f"--variants {unknown[0]}{config.nearest(unknown[0], VARIANTS)}")
    if missing := [r for r in cfg.runs.split(",") if not (Path(r) / "grpo" / "final").is_dir()]:
        raise UsageError(f"--runs {missing[0]}: no grpo/final there; expected a finished run of demo.py")
    questions = {name: found[: cfg.questions] for name, found in demo.evaluation_questions().items()}
    results = {"config": config.to_json(cfg), "seeds": {}, "variants": {}}
    with World() as world, open_sandbox(SandboxOptions(sandbox=cfg.sandbox, preload="")) as sandbox:
        results["seeds"] = compare(cfg, questions, world, sandbox)
        for name in names:
            folder = out / "variants" / name.replace(" ", "-")
            lines = train(name, VARIANTS[name], first, folder, cfg, world)
            r = row(lines, asked(folder / "final", questions, 0, sandbox))
            results["variants"][name] = r | {"collapsed": collapsed(r, results["seeds"][first.name]["sft"])}
            print(name, json.dumps(results["variants"][name]), flush=True)
            (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print("\n" + report(results))


if __name__ == "__main__":
    config.run(main)
