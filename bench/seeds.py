"""The demo's table over several seeds, as mean and spread: the one in README.md.

for s in 0 1 2; do python demo.py --seed $s --out runs/seed-$s; done
python bench/seeds.py runs/seed-0 runs/seed-1 runs/seed-2
"""

import json
import statistics
import sys
from pathlib import Path

SETS = {"seen_tasks": "seen tasks", "unseen_tasks": "unseen tasks", "facts": "facts"}


def spread(values: list[float]) -> str:
    """'.960 (.951-.968)': the mean, and the smallest and largest."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.fmean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    summaries = [json.loads((Path(folder) / "summary.json").read_text()) for folder in sys.argv[1:]]
    seeds = ", ".join(str(s["seed"]) for s in summaries)
    print(f"seeds {seeds}; {summaries[0]['questions']} questions; mean (smallest-largest)\n")
    print("| stage | " + " | ".join(f"{n}: sampled | greedy | code" for n in SETS.values()) + " |")
    print("|---|" + "---|" * 3 * len(SETS))
    for stage in summaries[0]["stages"]:
        cells = []
        for name in SETS:
            rows = [s["stages"][stage][name] for s in summaries]
            cells += [spread([r[k] for r in rows]) for k in ("sampled", "greedy", "code_ratio")]
        print(f"| {stage} | " + " | ".join(cells) + " |")
    print()
    for name in ("seen_tasks", "unseen_tasks"):
        sft, grpo = ([s["stages"][x][name]["sampled"] for s in summaries] for x in ("sft", "grpo"))
        removed = [1 - (1 - b) / (1 - a) for a, b in zip(sft, grpo, strict=True)]
        gained = [b - a for a, b in zip(sft, grpo, strict=True)]
        print(
            f"{SETS[name]}: GRPO over SFT +{spread(gained)}, share of SFT's errors removed {spread(removed)}"
        )
    totals = [sum(s["seconds"].values()) for s in summaries]
    print(
        f"seconds: {spread(totals)}; " + ", ".join(f"{k} {v:.0f}" for k, v in summaries[0]["seconds"].items())
    )
    logs = [(Path(folder) / "grpo" / "metrics.jsonl").read_text().splitlines() for folder in sys.argv[1:]]
    worst = [max(json.loads(line)["mismatch_max"] for line in log) for log in logs]
    print(f"largest difference of sampler and trainer log-probs in any step: {max(worst):.1e}")


if __name__ == "__main__":
    main()
