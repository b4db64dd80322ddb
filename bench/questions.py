"""Time and memory of a large file of questions: 1.8 million rows, as DAPO-Math-17k has.

    python bench/questions.py --folder DIR              # each question about a hundred times, as published
    python bench/questions.py --folder DIR --different  # no two rows alike

The file is made once. A fresh process loads it, draws the questions of a training step, and prints seconds
and the largest resident memory, of which importing torch takes a part that is printed too.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
ROWS, BATCH = 1_800_000, 20_000
HEAD = "Solve the following math problem step by step. The last line of your response should be of the form "
HEAD += "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
TAIL = '\n\nRemember to put your answer on its own line after "Answer:".'


def make(path: Path, questions: int) -> None:
    """Write ROWS rows with so many different questions, in DAPO's layout."""
    import pyarrow
    from pyarrow import parquet

    writer = None
    for first in range(0, ROWS, BATCH):
        rows = []
        for i in range(first, first + BATCH):
            n = i % questions
            text = (
                f"Number {n} of the list: a train leaves at {n % 24} o'clock. " + "It goes on and on. " * 20
            )
            said = [{"role": "user", "content": HEAD + text + "How far is it?" + TAIL}]
            rows.append({"prompt": said, "reward_model": {"ground_truth": str(n % 997), "style": "rule"}})
        table = pyarrow.Table.from_pylist(rows)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table, row_group_size=BATCH)
    writer.close()


def peak() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: str) -> None:
    """Load the file in this process and draw the questions of a step."""
    from tasks import get
    from training.questions import problems

    before, began = peak(), time.perf_counter()
    task = get(path)
    loaded = time.perf_counter()
    problems([path], 0, 128, seed=0)
    drawn = time.perf_counter()
    print(f"{task.size} questions of {len(task.number)} rows: {loaded - began:.0f} s to load")
    print(f"{drawn - loaded:.2f} s for a step's questions")
    print(f"{peak():.0f} MiB, of which imports {before:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True, help="for the file, about 100 MB")
    parser.add_argument("--different", action="store_true", help="no two rows alike")
    parser.add_argument("--measure", metavar="FILE", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    path = Path(chosen.folder) / ("different.parquet" if chosen.different else "repeated.parquet")
    if not path.exists():
        make(path, ROWS if chosen.different else 17_000)
    subprocess.run([sys.executable, __file__, "--folder", chosen.folder, "--measure", str(path)], check=True)


if __name__ == "__main__":
    main()
