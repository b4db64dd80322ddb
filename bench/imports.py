"""Seconds of `import sft` and `import grpo` beside `import torch`, and the lines of ours that they load.

Every import runs in a fresh interpreter, in turns.
"""

import subprocess
import sys
from pathlib import Path

from timing import Row, median, options, parse, report, take_turns, timed

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("sft", "grpo")


def files_loaded(module: str) -> list[str]:
    """The files that importing the module loads in a fresh interpreter."""
    listing = "print(*{getattr(m, '__file__', None) for m in list(sys.modules.values())}, sep='\\n')"
    command = [sys.executable, "-c", f"import sys, {module}; {listing}"]
    run = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return run.stdout.splitlines()


def lines_of_ours(files: list[str]) -> int:
    """Lines of this repository's files among them."""
    ours = [p for p in map(Path, files) if p.is_relative_to(ROOT) and "site-packages" not in p.parts]
    return sum(len(path.read_text().splitlines()) for path in ours)


def main(argv: list[str] | None = None) -> list[Row]:
    chosen = parse(options(__doc__, ("torch",)), argv)
    modules = [*SCRIPTS, *(["torch"] if chosen.against == "torch" else [])]
    loaded: dict[str, list[str]] = {}

    def start(module: str) -> None:
        loaded[module] = files_loaded(module)

    found = take_turns({name: lambda name=name: timed(start, name) for name in modules}, chosen)
    rows = []
    for script in SCRIPTS:
        ours = f"{median(found[script]):.2f} s, {lines_of_ours(loaded[script]):,} lines"
        row = Row(f"import {script}", ours, turns=found, asked="<= 1.15 of it")
        if "torch" in found:
            row.against = f"import torch: {median(found['torch']):.2f} s"
            row.share = median(found[script]) / median(found["torch"])
            row.note = "share of the other side's, not of a limit"
        rows.append(row)
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
