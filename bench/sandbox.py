"""What the sandbox costs, beside a fresh interpreter and bubblewrap, measured in the same run.

    python bench/sandbox.py [--snippets 10000]

Ratios compare medians of rounds in which each contestant runs once, so a busy machine slows all of them: read
them first. The sandbox's own milliseconds are of programs one after another, as in a rollout. Between fresh
interpreters it takes longer, because they evict its data from the processor's caches. Throughput is per core
that this process may use.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from sandbox import Sandbox, available_cores

PRINT = "print(1 + 1)"
NUMPY = "import numpy as np\nprint(np.arange(10).sum())"
MIXED = [
    PRINT,
    "1 / 0",
    "import os; os._exit(3)",
    "open('/tmp/x', 'w').write('y' * 1000)",
    "print('x' * 200_000)",
]
MIXED += [
    "import ctypes; ctypes.string_at(0)",
    "import threading\nthreading.Thread(target=print).start()",
    "exit()",
]


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def fresh(code: str, *prefix: str) -> None:
    subprocess.run([*prefix, sys.executable, "-c", code], check=True, capture_output=True)


def latencies(contestants: dict, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contestant, sorted; one turn each per round."""
    taken = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, function in contestants.items():
            taken[name].append(timed(function))
    return {name: sorted(values) for name, values in taken.items()}


def row(what: str, target: str, measured: str) -> None:
    print(f"| {what} | {target} | {measured} |", flush=True)


def compare_latency(modules: tuple[str, ...], rounds: int) -> None:
    options = ("--ro-bind", "/", "/", "--unshare-all", "--die-with-parent")
    with Sandbox(workers=1, quiet=True) as box:
        contestants = {"sandbox": lambda: box.run(PRINT), "python -c": lambda: fresh(PRINT)}
        if bwrap := shutil.which("bwrap"):
            contestants["bubblewrap"] = lambda: fresh(PRINT, bwrap, *options)
        taken = latencies(contestants, rounds)
        alone = sorted(timed(contestants["sandbox"]) for _ in range(rounds))
    row("print(1+1), all layers", "median <= 4 ms", f"{statistics.median(alone):.1f} ms")
    row("", "p95 <= 10 ms", f"{alone[int(0.95 * len(alone))]:.1f} ms")
    middle = statistics.median(taken.pop("sandbox"))
    row("the same, in turns with those below", "", f"median {middle:.1f} ms")
    for name, target in (("python -c", "2x"), ("bubblewrap", "4x")):
        found = f"{statistics.median(taken[name]) / middle:.1f}x" if name in taken else "not installed"
        row(f"faster than {name}", f">= {target}", found)
    if "numpy" in modules:
        with Sandbox(workers=1, preload=("numpy",), quiet=True) as box:
            taken = latencies({"ours": lambda: box.run(NUMPY), "fresh": lambda: fresh(NUMPY)}, rounds // 4)
        ours, other = statistics.median(taken["ours"]), statistics.median(taken["fresh"])
        row("numpy, preloaded, than fresh", ">= 8x faster", f"{other / ours:.1f}x ({ours:.1f} ms)")


def compare_throughput(modules: tuple[str, ...]) -> None:
    for preload, target in (((), ">= 250/s"), (modules, ">= 100/s")):
        with Sandbox(preload=preload, quiet=True) as box:
            box.map([PRINT] * 20)
            rates = [200 / timed(lambda: box.map([PRINT] * 200)) * 1000 for _ in range(5)]
        per_core = statistics.median(rates) / available_cores()
        row(f"throughput per core, {' and '.join(preload) or 'bare'}", target, f"{per_core:.0f}/s")


def measure_timeouts() -> None:
    """Measure the time from a timeout to the end of the process, in which the kernel frees its memory."""
    hold = "x = bytearray(b'x') * (480 << 20)\n"
    with Sandbox(workers=1, quiet=True) as box:
        for what, before, timeout in (("", "", 0.2), (", 480 MiB in use", hold, 1.0)):
            over = [(box.run(f"{before}while True: pass", timeout).wall - timeout) * 1000 for _ in range(20)]
            found = f"median {statistics.median(over):.1f}, worst {max(over):.1f} ms"
            row(f"overshoot of a timeout{what}", "<= 20 ms", found)


def measure_death() -> None:
    """Measure the time from the trainer's death to the end of its last process."""
    code = "from sandbox import Sandbox\nbox = Sandbox(workers=2, quiet=True)\n"
    code += "f = [box.submit('while True: pass', 60) for _ in '12']\nprint(box._template.pid, flush=True)\n"
    taken = []
    for _ in range(5):
        command = [sys.executable, "-c", code + "import time; time.sleep(60)"]
        trainer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        template = int(trainer.stdout.readline())
        time.sleep(0.3)
        below = family(template)
        os.kill(trainer.pid, signal.SIGKILL)
        start = time.perf_counter()
        while any(alive(pid) for pid in below):
            time.sleep(0.001)
        taken.append((time.perf_counter() - start) * 1000)
        trainer.wait()
    row("alive after the trainer is killed", "<= 100 ms", f"median {statistics.median(taken):.0f} ms")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def family(pid: int) -> list[int]:
    """A process and those below it."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [pid, *(each for child in children.stdout.split() for each in family(int(child)))]


def measure_growth(count: int) -> None:
    def state(box):
        pids = [os.getpid(), *family(box._template.pid)]
        status = Path(f"/proc/{box._template.pid}/smaps_rollup").read_text().split()
        descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        return descriptors, len(pids), len(os.listdir("/tmp")), int(status[status.index("Rss:") + 1])

    with Sandbox(quiet=True) as box:
        box.map(MIXED * 50)
        before = state(box)
        statuses = {result.status for result in box.map((MIXED * (count // len(MIXED) + 1))[:count])}
        after = state(box)
    names = ("descriptors", "processes and zombies", "entries in /tmp")
    for name, old, new in zip(names, before, after, strict=False):
        row(f"{count} mixed snippets: {name}", "no growth", f"{old} -> {new}")
    row(
        "template memory", "<= +10 %", f"{(after[3] / before[3] - 1) * 100:+.1f} % of {before[3] // 1024} MiB"
    )
    row("statuses seen", "no sandbox_error", ", ".join(sorted(statuses)))


def installed(*names: str) -> tuple[str, ...]:
    import importlib.util

    return tuple(name for name in names if importlib.util.find_spec(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snippets", type=int, default=10_000, help="of the run that looks for growth")
    parser.add_argument("--rounds", type=int, default=200, help="of the latency comparison")
    options = parser.parse_args()
    modules = installed("numpy", "sympy")
    with Sandbox(workers=1, quiet=True) as box:
        print(f"{box}\nload of the machine {os.getloadavg()[0]:.1f} on {available_cores()} cores\n")
    print("| | target | measured |\n|---|---|---|")
    compare_latency(modules, options.rounds)
    compare_throughput(modules)
    measure_timeouts()
    measure_death()
    measure_growth(options.snippets)


if __name__ == "__main__":
    main()
