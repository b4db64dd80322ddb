"""Sampling and training beside another process that computes all the time.

    python bench/busy.py

Four turns per round: alone and beside a busy process, which is not pinned; each with as many threads as there
are free cores (plumbing/cores.py, what the scripts do) and with all --threads at every step (`fixed`, what
they do where OMP_NUM_THREADS is set). Sampling: steps of --rows rows of one prompt. Training: gradients of
--sequences sequences, micro-batch by micro-batch. No peer takes part: the ratio is `busy` to `busy, fixed`,
the share is `busy` to `alone`.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the product's rollout.py, not this folder's

from decode import decode_ours  # noqa: E402
from shapes import SHAPES, prompts, ragged_lengths, random_model  # noqa: E402
from timing import DTYPES, Row, median, options, parse, per_second, report, take_turns, timed  # noqa: E402
from train import gradients_ours  # noqa: E402

from plumbing.cores import cores  # noqa: E402


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes on one core, wherever the system puts it."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """All threads at every step. Torch itself has read the variable long ago."""
    os.environ["OMP_NUM_THREADS"] = str(cores().most)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


def turn(work: Callable[[], float], *surroundings: Callable[[], contextlib.AbstractContextManager]) -> float:
    """Seconds of the work in these surroundings. It begins with all threads."""
    torch.set_num_threads(cores().most)
    cores().looked = 0.0
    with contextlib.ExitStack() as stack:
        for surrounding in surroundings:
            stack.enter_context(surrounding())
        return work()


def row(title: str, count: float, work: Callable[[], float], chosen) -> Row:
    turns = {
        "ours": lambda: turn(work, neighbour),
        "busy, fixed": lambda: turn(work, neighbour, fixed),
        "alone": lambda: turn(work),
        "alone, fixed": lambda: turn(work, fixed),
    }
    found = take_turns(turns, chosen)
    seconds = {name: median(values) for name, values in found.items()}
    note = ", ".join(f"{name} {per_second(count, s)}" for name, s in seconds.items() if name != "ours")
    return Row(
        title,
        per_second(count, seconds["ours"]),
        ratio=seconds["busy, fixed"] / seconds["ours"],
        share=seconds["alone"] / seconds["ours"],
        asked=">= 55 %",
        note=f"{note}; alone: {seconds['alone, fixed'] / seconds['alone']:.2f} of fixed",
        turns=found,
    )


def main(argv: list[str] | None = None) -> list[Row]:
    os.environ.pop("OMP_NUM_THREADS", None)
    parser = options(__doc__, ("itself",))
    parser.set_defaults(threads=len(os.sched_getaffinity(0)))
    parser.add_argument("--shape", default="0.5B", choices=SHAPES)
    parser.add_argument("--dtype", default="bf16", choices=DTYPES)
    parser.add_argument("--rows", default=32, type=int, help="of a sampling step")
    parser.add_argument("--new", default=66, type=int, help="tokens; the first two are not timed")
    parser.add_argument("--sequences", default=8, type=int, help="of a training step")
    parser.add_argument("--most", default=400, type=int, help="tokens of the longest sequence")
    parser.add_argument("--micro-tokens", default=512, type=int, help="of a pass")
    chosen = parse(parser, argv)
    model = random_model(chosen.shape, DTYPES[chosen.dtype], chosen.device, chosen.seed)
    vocabulary = model.config.vocab_size
    prompt = prompts(1, 64, vocabulary, chosen.seed)[0]
    lengths = ragged_lengths(chosen.sequences, 20, chosen.most, chosen.seed)
    sequences = [prompts(1, length, vocabulary, n)[0] for n, length in enumerate(lengths)]

    def sampling() -> float:
        return decode_ours(model, prompt, chosen.rows, chosen.new, 1.0)

    def passes() -> None:
        for sequence in sequences:
            cores().look()
            gradients_ours(model, [sequence], chosen)

    title = f"{chosen.shape}, {chosen.dtype}, {chosen.threads} threads"
    rows = [row(f"sampling, {chosen.rows} rows, {title}", chosen.rows * (chosen.new - 2), sampling, chosen)]
    model.train()
    rows.append(row(f"forward and backward, {title}", sum(lengths), lambda: timed(passes), chosen))
    report(rows, chosen)
    return rows


if __name__ == "__main__":
    main()
