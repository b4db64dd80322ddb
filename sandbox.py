"""Runs untrusted Python in confined processes, many at once.

    with Sandbox(preload=("numpy",)) as sandbox:
        print(sandbox.run("print(1 + 1)").stdout)             # "2\n"
        results = sandbox.map(["1 / 0", "while True: pass"])  # an error, a timeout

A program is judged by how its process ends, never by what it prints. Four kinds of process take part:

    trainer    holds a `Sandbox` and sends programs; one of its threads resolves their futures
    template   started by exec, never forked from the trainer; empty environment, modules preloaded;
               keeps the queue and hands the next program to an idle worker
    worker     a fork of the template, one per core; forks once per program and supervises it
    snippet    a fork of its worker that gives up its rights and then runs the program

When the trainer dies, the template sees the end of its socket and exits. The workers follow it, and each
kills its snippet. The folder isolation/ holds the code of these processes: isolation/syscalls.py gives up
the rights. docs/sandbox.md says what is promised and what is not.

    python sandbox.py          attacks every layer and shows what stopped each attack
    python sandbox.py FILE     runs a file
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import Future

from isolation import selftest
from isolation.base import BaseSandbox
from isolation.connection import TemplateProcess
from isolation.result import LAYERS, Result, SandboxError, failure

__all__ = ["LAYERS", "LEVELS", "Result", "Sandbox", "SandboxError", "failure", "remote_sandbox"]

LEVELS = {"none": (), "core": LAYERS[1:], "full": LAYERS}  # the layers that each level needs


class Sandbox(BaseSandbox):
    """Runs programs in confined processes; thread-safe; use it as a context manager or call `close`.

    `run(code)` returns a Result, `map(codes)` a list of them; both come from BaseSandbox and call `submit`.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,  # programs at the same time; default: one per core
        timeout: float = 5.0,  # wall seconds from a program's own start; the CPU limit has the same size
        memory_mb: int = 512,  # address space that a program may add to what is preloaded
        output_kb: int = 64,  # kept of each stream
        preload: tuple[str, ...] = (),  # modules imported once, in the template
        require: str = "core",  # the lowest level accepted; the strongest available is used
        without: tuple[str, ...] = (),  # layers left out on purpose, for tests
        max_failed_share: float = 0.01,  # of `sandbox_error` among recent results; above it, submit raises
        quiet: bool = False,  # no line on stderr with level and layers
    ):
        super().__init__(timeout, max_failed_share)
        for name, known in [(require, LEVELS), *((layer, LAYERS) for layer in without)]:
            if name not in known:
                raise ValueError(
                    f"unknown sandbox level or layer {name!r}; expected one of {', '.join(known)}"
                )
        workers = available_cores() if workers is None else workers
        for name, number, most in (
            ("workers", workers, 4096),
            ("memory_mb", memory_mb, 1 << 30),
            ("output_kb", output_kb, 1 << 30),
        ):
            if type(number) is not int or not 1 <= number <= most:
                raise ValueError(f"{name}={number!r}; expected a whole number from 1 to {most}")
        self._config = {
            "trainer": os.getpid(),
            "workers": workers,
            "memory_mb": memory_mb,
            "output_kb": output_kb,
            "preload": list(preload),
            "without": list(without),
            "places": [tempfile.gettempdir(), "/tmp", "/dev/shm"],  # for the programs' folders
            "path": [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")],
        }
        self._ids = itertools.count()
        self._waiting: dict[int, tuple[Future, dict]] = {}  # sent and not answered: future, job
        self._owner, self._last_death = os.getpid(), -math.inf
        self._require, self._needed = require, LEVELS[require]
        self.layers: dict[str, str] = {}  # layer: "on", or "off: " and why
        self.attacks: list[tuple[selftest.Attack, str]] = []  # of the self-test, and what stopped each
        self._start()
        self._needed = [name for name in LAYERS if self.layers[name] == "on"]  # after a restart
        if not quiet:
            print(self, file=sys.stderr)
            if self.layers["namespaces"] != "on" and not self._template.folder:
                print("sandbox: no place for the programs' folders: they can write no file", file=sys.stderr)
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()

    @property
    def level(self) -> str:
        """The strongest level whose layers all hold."""
        return [name for name, needed in LEVELS.items() if all(self.layers[k] == "on" for k in needed)][-1]

    def __str__(self) -> str:
        return f"sandbox: level {self.level}; " + ", ".join(f"{k} {v}" for k, v in self.layers.items())

    def submit(self, code: str, timeout: float | None = None) -> Future[Result]:
        """The future of a program's Result; returns at once. The clock of `timeout` (seconds) starts when the
        program does.

        Raises SandboxError after `close`, in a fork of the process that made the sandbox, when the template
        died twice within ten seconds, and when too many recent programs could not be run.
        """
        if os.getpid() != self._owner:
            raise SandboxError("this sandbox belongs to the process that made it; make another after a fork")
        return super().submit(code, timeout)

    def restart(self) -> None:
        """Kill a template that hangs; the reader starts another, for the programs that wait."""
        self._template.process.kill()

    def close(self) -> None:
        """End every process of the sandbox; programs still waiting get a `sandbox_error`."""
        if os.getpid() != self._owner:
            return  # in a fork: the processes belong to the one that started them
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._template.stop()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _start(self) -> None:
        """Start a template and attack its layers; refuse it if a needed layer does not hold."""
        self._template = TemplateProcess(self._config)
        try:
            layers, attacks = selftest.attack_layers(self._template, self._config["memory_mb"])
            selftest.refuse_weaker(layers, self._needed, self._require)
        except BaseException:
            self._template.stop()
            self._template.close()
            raise
        self.layers, self.attacks = layers, attacks

    def _queue(self, code: str, timeout: float) -> Future[Result]:
        """Send a program to the template; called with the lock held."""
        job = {"id": next(self._ids), "code": code, "timeout": timeout}
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # it cannot be cancelled from here on
        self._template.send(job)  # first: what cannot be sent must not be waited for
        self._waiting[job["id"]] = future, job
        return future

    def _read(self) -> None:
        """The reader thread: resolve futures, and replace a template that dies."""
        while not self._closed and not self._broken:
            while answer := self._template.receive():
                self._resolve(answer["id"], Result(**answer["result"]))
            if not self._closed and not self._broken:
                self._revive()
        with self._lock:  # whoever submits from here on is refused
            left = [future for future, _ in self._waiting.values()]
            self._waiting.clear()
        for future in left:
            settle(future, failure(self._broken or "the sandbox was closed"))
        self._template.close()

    def _resolve(self, number: int, result: Result) -> None:
        """Give a waiting program its result. One that could not be run is first sent once more."""
        with self._lock:
            future, job = self._waiting.pop(number)
            if result.status == "sandbox_error" and not job.get("retry"):
                self._again(future, job)
                return
            self._count(result)
        settle(future, result)

    def _again(self, future: Future, job: dict) -> None:
        """Send a program a second time; called with the lock held."""
        self._waiting[job["id"]] = future, {**job, "retry": True}
        self._template.send(job)

    def _revive(self) -> None:
        """Start a new template for the programs still waiting; a second death within 10 s is the end."""
        with self._lock:
            self._template.stop()
            self._template.close()
            if time.monotonic() - self._last_death < 10:
                self._broken = "the sandbox template died twice within 10 seconds"
                return
            self._last_death = time.monotonic()
            try:
                self._start()
            except (SandboxError, OSError) as error:
                self._broken = f"the restarted sandbox does not hold: {error}"
                return
            unlucky = [number for number, (_, job) in self._waiting.items() if job.get("retry")]
            for number, (future, job) in list(self._waiting.items()):
                if number not in unlucky:
                    self._again(future, job)
        for number in unlucky:  # without the lock: a callback of the future may submit
            self._resolve(number, failure("the sandbox template died twice while this program waited"))


def remote_sandbox(url: str, **options) -> BaseSandbox:
    """A sandbox whose programs run on a SandboxFusion server; isolation/fusion.py has the options."""
    from isolation.fusion import RemoteSandbox  # http.client and ssl are slow to import

    return RemoteSandbox(url, **options)


def settle(future: Future, result: Result) -> None:
    """Resolve a future; a callback that raises, even SystemExit, must not end the reader thread."""
    try:
        future.set_result(result)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()


def available_cores() -> int:
    """Cores this process may use, shared among the ranks that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def main(arguments: list[str]) -> int:
    """The command line's exit code: show the self-test, or run one file and show how it ended."""
    if len(arguments) > 1 or arguments and arguments[0].startswith("-"):
        print(__doc__.partition("\n\n    python sandbox.py ")[2].join(["    python sandbox.py ", ""]))
        return 0 if arguments[0] in ("-h", "--help") else 2
    try:
        return run_file(arguments[0]) if arguments else show_attacks()
    except (SandboxError, OSError) as error:
        print(f"sandbox.py: {error}", file=sys.stderr)
        return 1


def run_file(path: str) -> int:
    """Run one file with the default limits; 0 if it ended well, else 1."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        code = file.read()
    with Sandbox(timeout=60.0, output_kb=1024) as sandbox:
        result = sandbox.run(code)
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    print(f"{result.status}: {result.wall:.3f} s, {result.max_rss_mb:.0f} MiB", file=sys.stderr)
    return 0 if result.status == "ok" else 1


def show_attacks() -> int:
    """Print the self-test's attacks and what stopped each; 0 if some level holds, else 1."""
    with Sandbox(require="none", quiet=True) as sandbox:
        print(selftest.table(sandbox.attacks))
        print(sandbox)
        return 0 if sandbox.level != "none" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
