"""As many threads as there are free cores.

At the end of a product its threads wait for one another. If another process holds one thread's core, all of
them wait, and two threads are slower than one (bench/busy.py).
"""

import functools
import os
import time

import torch

PERIOD = 0.5  # seconds between two looks at what the machine does
TICK = os.sysconf("SC_CLK_TCK")  # per second: the unit of /proc/stat


class Cores:
    """The cores that this process may use, and what other processes take of them.

    look() sets torch's threads to the cores that are left: at least one, at most as many as torch had. It is
    called between steps and reads the counters at most twice a second. The programs of a sandbox are other
    processes too. Nothing changes where OMP_NUM_THREADS is set, where threads are bound to cores
    (OMP_PROC_BIND), or without /proc/stat.
    """

    def __init__(self):
        self.most = self.threads = torch.get_num_threads()
        self.looked = self.busy = self.own = 0.0

    def look(self) -> None:
        now = time.perf_counter()
        if now - self.looked < PERIOD or "OMP_NUM_THREADS" in os.environ:
            return
        if torch.get_num_threads() != self.threads:  # somebody chose another number
            self.most = self.threads = torch.get_num_threads()
        before = self.looked, self.busy, self.own
        self.looked, self.busy, self.own = now, busy_seconds(), time.process_time()
        if self.most == 1 or not before[0] or not self.busy:
            return
        elapsed, busy, own = (b - a for a, b in zip(before, (now, self.busy, self.own), strict=True))
        count = len(os.sched_getaffinity(0))
        if count >= self.most:  # else OpenMP has bound this thread to a core of its own
            self.threads = threads(count, (busy - own) / elapsed, self.most)
            torch.set_num_threads(self.threads)


@functools.cache
def cores() -> Cores:
    """Those of this process."""
    return Cores()


def threads(cores: int, taken: float, most: int) -> int:
    """How many threads to use where other processes take `taken` of the cores.

    Two of ours and one of theirs on two cores: theirs gets a half to two thirds of a core.

    >>> [threads(2, taken, most=2) for taken in (0.0, 0.3, 0.5, 1.0, 1.9)]
    [2, 2, 1, 1, 1]
    """
    return min(max(int(cores - taken + 0.4), 1), most)


def busy_seconds() -> float:
    """Processor time, in seconds, that all processes have used of the cores that this one may use; 0 where
    nobody counts it. Nice processes are left out, unless this is one: they take what others leave."""
    try:
        with open("/proc/stat") as file:
            lines = [line.split() for line in file if line.startswith("cpu")]
    except OSError:
        return 0.0
    mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    # user, nice, system, idle, iowait, irq, softirq
    counted = (1, 2, 3, 6, 7) if os.getpriority(os.PRIO_PROCESS, 0) > 0 else (1, 3, 6, 7)
    return sum(int(line[i]) for line in lines if line[0] in mine for i in counted) / TICK
