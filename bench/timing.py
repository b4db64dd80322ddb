"""What the benchmarks share: common options, taking turns, the machine's limits, one table and a JSON file.

A shared machine has no constant speed, so nothing here is measured once. All contestants of a comparison, and
the limits of the machine that they are held against, take one turn each per round, in an order that rotates;
what is printed are medians over the rounds. Read ratios and shares, not the absolute numbers.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def options(description: str, against: tuple[str, ...]) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; `against` are the peers, the default one first."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--against", choices=(*against, "none"), default=against[0], help="the peer")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on both sides (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; medians are shown (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those, not counted (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0, help="of weights, prompts and lengths")
    parser.add_argument("--json", metavar="FILE", help="write rows, every turn's time and the machine there")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    """The options, with threads and seed set. A peer that is not installed is refused in one line."""
    chosen = parser.parse_args(argv)
    if min(chosen.threads, chosen.repeats) < 1 or chosen.warmup < 0:
        parser.error("--threads and --repeats: expected at least 1, --warmup at least 0")
    if chosen.against in ("transformers", "trl") and not importlib.util.find_spec(chosen.against):
        extra = {"transformers": "oracle", "trl": "peers"}[chosen.against]
        parser.error(
            f"--against {chosen.against}: not installed; pip install '.[{extra}]', or --against none"
        )
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    chosen.started = os.getloadavg()[0]
    return chosen


# -- turns -----------------------------------------------------------------------------------------


def timed(function: Callable, *arguments, **named) -> float:
    """Seconds that a call takes, the device's work included."""
    synchronize()
    start = time.perf_counter()
    function(*arguments, **named)
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def take_turns(contestants: dict[str, Callable[[], float]], chosen) -> dict[str, list[float]]:
    """What each contestant returned (seconds, or a rate) in every counted round."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(chosen.warmup + chosen.repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            value = contestants[name]()
            if turn >= chosen.warmup:
                found[name].append(value)
    medians = ", ".join(f"{name} {median(values):.4g}" for name, values in found.items())
    print(f"{chosen.repeats} rounds: {medians}", file=sys.stderr, flush=True)  # a long run can be watched
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


# -- the machine's limits ----------------------------------------------------------------------------


def read_bandwidth(device: str = "cpu") -> float:
    """Bytes per second at which memory is streamed: the better of copying (read + written) and adding up."""
    mib = {"cpu": 256, "cuda": 4096}[device]
    x = torch.ones(mib * 2**18, device=device)
    y = torch.empty_like(x)
    copy = min(timed(y.copy_, x) for _ in range(3))
    read = min(timed(x.sum) for _ in range(3))
    return max(2 * x.nbytes / copy, x.nbytes / read)


def matmul_peak(dtype: torch.dtype, device: str = "cpu", width: int = 1024) -> float:
    """Floating-point operations per second of a product of (512, width) with (4 width, width); on CUDA, whose
    fastest products are larger, of 8192 cubed.

    On a CPU the better of the two routes torch has: the default, and oneDNN, which takes float32 products
    under 'medium' precision. That counts only if it really returns float32, not bfloat16 as with AMX.
    """
    rows, width, outputs = (512, width, 4 * width) if device == "cpu" else (8192, 8192, 8192)
    x = torch.randn(rows, width, device=device).to(dtype)
    w = torch.randn(outputs, width, device=device).to(dtype)
    best = min(timed(F.linear, x, w) for _ in range(3))
    if device == "cpu" and dtype == torch.float32:
        exact, before = F.linear(x[:8].double(), w.double()), torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            if (F.linear(x, w)[:8] - exact).abs().max() < 1e-5 * exact.abs().max():
                best = min(best, *(timed(F.linear, x, w) for _ in range(3)))
        finally:
            torch.set_float32_matmul_precision(before)
    return 2 * x.numel() * w.shape[0] / best


# -- results -----------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the table. `ratio` is how many times better ours is; `share` is of the machine's limit."""

    work: str
    ours: str = "not measured"
    against: str = ""  # the peer and what it reached
    ratio: float | None = None
    share: float | None = None
    asked: str = ""
    note: str = ""
    turns: dict[str, list[float]] = field(default_factory=dict)


def per_second(count: float, seconds: float, what: str = "tokens") -> str:
    rate = count / seconds
    return f"{rate:,.0f} {what}/s" if rate >= 100 else f"{rate:.1f} {what}/s"


def fastest(turns: dict[str, list[float]], peers: list[str]) -> str | None:
    """The peer with the smallest median, of those that took part."""
    return min((p for p in peers if turns.get(p)), key=lambda p: median(turns[p]), default=None)


def speed_row(
    work: str, count: float, turns: dict[str, list[float]], peers: list[str], *, what: str = "tokens", **rest
) -> Row:
    """A Row from seconds: `count` things per turn, "ours" in turns, against the fastest peer."""
    ours, peer = median(turns["ours"]), fastest(turns, peers)
    row = Row(work, per_second(count, ours, what), turns=turns, **rest)
    if peer:
        row.ratio = median(turns[peer]) / ours
        row.against = f"{peer}: {per_second(count, median(turns[peer]), what)}"
    return row


def machine(chosen) -> dict:
    """Where and with what this was measured."""
    packages = ("torch", "transformers", "trl", "accelerate", "tokenizers", "numpy")
    found = {p: importlib.metadata.version(p) for p in packages if importlib.util.find_spec(p)}
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    flags = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    present = Path("/proc/cpuinfo").read_text().split()
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in flags if flag in present],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": chosen.threads,
        "load": [round(chosen.started, 2), round(os.getloadavg()[0], 2)],  # before and after
        "python": platform.python_version(),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "packages": found,
    }


def report(rows: list[Row], chosen) -> None:
    """Print the machine and the table (Markdown), and write both with --json."""
    where = machine(chosen)
    print(
        f"\n{where['cpu']}, {where['cores']} of {os.cpu_count()} cores, GPU {where['gpu'] or 'none'}, ",
        end="",
    )
    print(f"{where['threads']} threads, load {where['load']}, {' '.join(where['instructions'])}")
    print(", ".join(f"{name} {version}" for name, version in where["packages"].items()))
    print(f"medians of {chosen.repeats} rounds\n")
    print("| work | ours | against | ratio | of the limit | asked | |\n|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        share = "" if row.share is None else f"{row.share:.0%}"
        print(f"| {row.work} | {row.ours} | {row.against} | {ratio} | {share} | {row.asked} | {row.note} |")
    if chosen.json:
        chosen_options = {k: v for k, v in vars(chosen).items() if k != "started"}
        content = {"machine": where, "options": chosen_options, "rows": [asdict(row) for row in rows]}
        Path(chosen.json).write_text(json.dumps(content, indent=1) + "\n")
