"""How long `import grpo` takes, against `import torch` alone: fresh interpreters, in turns."""

import subprocess
import sys
from pathlib import Path

from timing import Row, median, options, parse, report, take_turns, timed

ROOT = Path(__file__).resolve().parent.parent


def fresh(module: str) -> None:
    """An interpreter that imports a module and ends."""
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)


def main(argv: list[str] | None = None) -> list[Row]:
    chosen = parse(options(__doc__, ("torch",)), argv)
    modules = {"grpo": lambda: timed(fresh, "grpo")}
    if chosen.against == "torch":
        modules["torch"] = lambda: timed(fresh, "torch")
    found = take_turns(modules, chosen)
    row = Row("import grpo", f"{median(found['grpo']):.2f} s", turns=found, asked="<= 1.15 of it")
    if "torch" in found:
        row.against = f"import torch: {median(found['torch']):.2f} s"
        row.share = median(found["grpo"]) / median(found["torch"])
        row.note = "share of the other side's, not of a limit"
    report([row], chosen)
    return [row]


if __name__ == "__main__":
    main()
