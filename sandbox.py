"""Runs untrusted Python in confined processes, many at once.

    with Sandbox(preload=("numpy",)) as sandbox:
        print(sandbox.run("print(1 + 1)").stdout)             # "2\n"
        results = sandbox.map(["1 / 0", "while True: pass"])  # an error, a timeout

Four kinds of process take part:

    trainer    holds a `Sandbox`; sends programs, and a thread of it resolves their futures
    template   started by exec, never forked from the trainer; empty environment, modules preloaded;
               keeps the queue and hands the next program to an idle worker
    worker     a fork of the template, one per core; forks once per program and supervises it
    snippet    a fork of its worker that gives up its rights and then runs the program

A snippet is judged by how its process ends, never by what it prints. When the trainer dies, the
template sees the end of its socket and leaves, the workers follow it, and each takes its snippet along.
How a process gives up its rights is in isolation/syscalls.py. What is promised,
and what is not, is in docs/sandbox.md.

    python sandbox.py          attacks every layer and shows what stopped each attack
    python sandbox.py FILE     runs a file
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import Future

from isolation import attacks
from isolation.fusion import RemoteSandbox
from isolation.result import SETUP_SECONDS, Failures, Result, SandboxError, failure, seconds
from isolation.syscalls import LAYERS

__all__ = ["LAYERS", "LEVELS", "RemoteSandbox", "Result", "Sandbox", "SandboxError", "failure"]

LEVELS = {"none": (), "core": LAYERS[1:], "full": LAYERS}  # a level is the layers that must hold


EXPOSED = {  # without a layer
    "namespaces": "programs see this machine's processes, network and file names, and get no /tmp",
    "landlock": "programs can read and write files of this user",
    "seccomp": "programs can open sockets, start processes and signal yours",
    "rlimits": "programs can take all memory and processor time",
}


# What the template runs: nothing but the standard library, and this folder is no part of a program's path.
ROOT = os.path.dirname(os.path.abspath(__file__))
TEMPLATE = (
    "import sys; sys.path[0] = sys.argv[1]; from isolation.template import template_main; "
    "del sys.path[0]; template_main(int(sys.argv[2]))"
)
REMEDY = {
    "namespaces": "allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or "
    "kernel.unprivileged_userns_clone=1; not in a default Docker container), or ask for require='core'",
    "landlock": "run on Linux 5.13 or newer with landlock in its lsm= list",
    "seccomp": "run on Linux on x86-64 or aarch64, outside an emulator without seccomp filters",
    "rlimits": "run on Linux",
}


# ---------------------------------------------------------------------------------------------- trainer


class Sandbox:
    """Runs programs in confined processes; thread-safe; use it as a context manager or call `close`."""

    def __init__(
        self,
        *,
        workers: int | None = None,  # programs at the same time; more than cores only stretches wall time
        timeout: float = 5.0,  # wall seconds from a program's own start; the CPU limit has the same size
        memory_mb: int = 512,  # address space that a program may add to what is preloaded
        output_kb: int = 64,  # kept of each stream
        preload: tuple[str, ...] = (),  # modules imported once, in the template
        require: str = "core",  # the least level accepted; the strongest available is used
        without: tuple[str, ...] = (),  # layers left out on purpose, for tests
        processes: bool = False,  # let programs start other programs (a limited number); needs level full
        seed: int | None = None,  # makes random, numpy's and sympy's generators follow (seed, program)
        max_failed_share: float = 0.01,  # of `sandbox_error` among recent results, above which submit raises
        quiet: bool = False,  # no line on stderr saying level and layers
    ):
        for name, known in [(require, LEVELS), *((layer, LAYERS) for layer in without)]:
            if name not in known:
                raise ValueError(
                    f"unknown sandbox level or layer {name!r}; expected one of {', '.join(known)}"
                )
        sizes = {
            "workers": (1 if workers is None else workers, 4096),
            "memory_mb": (memory_mb, 1 << 30),
            "output_kb": (output_kb, 1 << 30),
        }
        for name, (number, most) in sizes.items():
            if type(number) is not int or not 1 <= number <= most:
                raise ValueError(f"{name}={number!r}; expected a whole number from 1 to {most}")
        seconds(timeout)
        self.timeout, self.require, self.processes = timeout, require, processes
        self._failures = Failures(max_failed_share)
        self._config = {
            "trainer": os.getpid(),
            "workers": workers or available_cores(),
            "memory_mb": memory_mb,
            "output_kb": output_kb,
            "preload": list(preload),
            "without": list(without),
            "processes": processes,
            "seed": seed,
            "path": [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")],
        }
        self._ids = itertools.count()
        self._lock = threading.Lock()  # guards the socket's sending side and the restart
        self._waiting: dict[int, tuple[Future, dict]] = {}  # sent and not answered: future, job
        self._owner, self._closed, self._broken, self._last_death = os.getpid(), False, "", -math.inf
        self.layers: dict[str, str] = {}  # layer: "on", or "off: " and why
        self.attacks: list[tuple[attacks.Attack, str]] = []  # of the self-test, with what stopped each
        self._start()
        if not quiet:
            print(self, file=sys.stderr)
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()

    @property
    def level(self) -> str:
        """The strongest level all of whose layers hold."""
        return [name for name, needed in LEVELS.items() if all(self.layers[k] == "on" for k in needed)][-1]

    @property
    def failed(self) -> int:
        """Programs among the recent ones that could not be run."""
        return self._failures.count

    def __str__(self) -> str:
        return f"sandbox: level {self.level}; " + ", ".join(f"{k} {v}" for k, v in self.layers.items())

    def submit(self, code: str, timeout: float | None = None) -> Future[Result]:
        """Queue a program; returns at once. The clock of `timeout` (seconds) starts when the program does.

        Raises SandboxError after `close`, in a fork of the process that made the sandbox, when the template
        died twice within ten seconds, and when too many of the last programs could not be run.
        """
        if os.getpid() != self._owner:
            raise SandboxError("this sandbox belongs to the process that made it; make another after a fork")
        if not isinstance(code, str):
            raise ValueError(f"expected a program, a str, found {code!r}")
        timeout = seconds(self.timeout if timeout is None else timeout)
        job = {"id": next(self._ids), "code": code, "timeout": timeout}
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # it cannot be cancelled from here on
        with self._lock:
            if self._closed or self._broken:
                raise SandboxError(self._broken or "the sandbox is closed")
            self._send(job)  # first: what cannot be sent must not be waited for
            self._waiting[job["id"]] = future, job
        return future

    def run(self, code: str, timeout: float | None = None) -> Result:
        """Run one program and wait for its end."""
        return self.submit(code, timeout).result()

    def map(self, codes, timeout: float | None = None) -> list[Result]:
        """Run many programs, as many at once as there are workers; results in the order of `codes`."""
        return [future.result() for future in [self.submit(code, timeout) for code in codes]]

    def restart(self) -> None:
        """Kill a template that hangs; the reader starts another, for the programs that wait."""
        self._template.kill()

    def close(self) -> None:
        """End every process of the sandbox; programs still waiting get a `sandbox_error`."""
        if os.getpid() != self._owner:
            return  # in a fork: the processes belong to the one that started them
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._stop()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _start(self) -> None:
        """Start a template, wait until its workers are ready, and note the layers that hold."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._template = subprocess.Popen(
                [sys.executable, "-s", "-S", "-c", TEMPLATE, ROOT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=template_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the trainer
            )
        self._socket, self._stream = ours, ours.makefile("rb")
        try:
            self._send(self._config)
            self._self_test(self._receive())
        except BaseException:
            self._stop()
            ours.close()
            raise

    def _self_test(self, hello: dict | None) -> None:
        """Note the layers that could be applied, attack each, and refuse if too few hold."""
        if hello is None:
            raise SandboxError("the sandbox template died while starting; its error is above")
        if "error" in hello:
            raise SandboxError(hello["error"])
        before, self.layers = self.layers, hello["layers"]
        self.attacks = []
        for attack in attacks.ATTACKS:
            if self.layers[attack.layer] == "on" and not (self.processes and attack.allowed_with_processes):
                self.attacks.append((attack, self._attack(attack, [attack.layer])))
        for attack, stopped_by in self.attacks:
            if not stopped_by:
                self.layers[attack.layer] = f"off: in the self-test a program could {attack.name}"
        missing = [name for name in LEVELS[self.require] if self.layers[name] != "on"]
        missing += [name for name in before if before[name] == "on" != self.layers[name]]
        if self.processes and self.layers["namespaces"] != "on":
            missing.append("namespaces")
        if missing:
            name = missing[0]
            raise SandboxError(
                f"sandbox level {self.require} was asked for, but {name} is {self.layers[name]}, so "
                f"{EXPOSED[name]}; {REMEDY[name]}; or accept the risk with require='none'"
            )

    def _attack(self, attack: attacks.Attack, layers: list[str]) -> str:
        """Run one attack with only these layers, before the reader has started; returns what stopped it."""
        pids = (os.getpid(), self._template.pid)
        code = attacks.PRELUDE.format(pids=pids, file=os.path.abspath(__file__), **self._config) + attack.code
        self._send({"id": 0, "code": code, "timeout": 10.0, "only": layers})
        if (answer := self._receive()) is None:
            raise SandboxError(f"the sandbox template died in the self-test, when it tried to {attack.name}")
        result = Result(**answer["result"])
        if result.status == "ok":
            return ""
        if result.status == "signal":
            return f"killed by {signal.Signals(result.signal).name}"
        last = result.stderr.strip().splitlines()[-1:] or [""]
        if result.status == "error" and last[0].partition(":")[0] in attacks.REFUSALS:
            return last[0]
        raise SandboxError(f"the sandbox cannot test itself: {attack.name}: {result.status} {result.stderr}")

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._template.wait(SETUP_SECONDS)
        except subprocess.TimeoutExpired:  # stopped, or stuck in the import of a module
            self._template.kill()
            self._template.wait()

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):  # a dead template is noticed, and restarted, by the reader
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict | None:
        """The template's next message; None when it has died, be it in the middle of one."""
        with contextlib.suppress(OSError):
            line = self._stream.readline()
            return json.loads(line) if line.endswith(b"\n") else None

    def _read(self) -> None:
        """The reader thread: resolve futures, and restart the template when it dies."""
        while not self._closed and not self._broken:
            while answer := self._receive():
                self._resolve(answer["id"], Result(**answer["result"]))
            if not self._closed and not self._broken:
                self._revive()
        with self._lock:  # whoever submits from here on is refused
            left = [future for future, _ in self._waiting.values()]
            self._waiting.clear()
        for future in left:
            settle(future, failure(self._broken or "the sandbox was closed"))
        self._stream.close()
        self._socket.close()

    def _resolve(self, number: int, result: Result) -> None:
        """Answer a waiting program; but one that we failed to run is first tried once more."""
        with self._lock:
            future, job = self._waiting.pop(number)
            if result.status == "sandbox_error" and not job.get("retry"):
                self._again(future, job)
                return
            self._broken = self._failures.add(result) or self._broken
        settle(future, result)

    def _again(self, future: Future, job: dict) -> None:
        """Send a program a second time; called with the lock held."""
        self._waiting[job["id"]] = future, {**job, "retry": True}
        self._send(job)

    def _revive(self) -> None:
        """Start a new template for the programs still waiting; a second death within 10 s is the end."""
        with self._lock:
            self._stop()
            self._stream.close()
            self._socket.close()
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
        for number in unlucky:  # without the lock: whoever waits for a result may submit in its callback
            self._resolve(number, failure("the sandbox template died twice while this program waited"))


def settle(future: Future, result: Result) -> None:
    """Resolve a future; a callback that raises, even SystemExit, must not end the thread that serves all."""
    try:
        future.set_result(result)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()


def available_cores() -> int:
    """Cores this process may use, shared among the ranks that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def template_environment() -> dict[str, str]:
    """All that a snippet sees of any environment."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **fixed, **one_thread}


# -------------------------------------------------------------------------------------------- self-test


def main(arguments: list[str]) -> int:
    """Command line: the table of attacks, or one file's result; returns the exit code."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print(__doc__.partition("\n\n    python sandbox.py ")[2].join(["    python sandbox.py ", ""]))
        return 2
    try:
        return run_file(arguments[0]) if arguments else show_attacks()
    except (SandboxError, OSError) as error:
        print(f"sandbox.py: {error}", file=sys.stderr)
        return 1


def run_file(path: str) -> int:
    """Run one file with the default limits and show how it ended."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        code = file.read()
    with Sandbox(timeout=60.0, output_kb=1024) as sandbox:
        result = sandbox.run(code)
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    print(f"{result.status}: {result.wall:.3f} s, {result.max_rss_mb:.0f} MiB", file=sys.stderr)
    return 0 if result.status == "ok" else 1


def show_attacks() -> int:
    """Print the attacks of the self-test and what stopped each."""
    with Sandbox(require="none", quiet=True) as sandbox:
        print(f"{'layer':12}{'attack':34}stopped, by this layer alone, with")
        for attack, stopped_by in sandbox.attacks:
            print(f"{attack.layer:12}{attack.name:34}{stopped_by or 'NOT STOPPED'}")
        print(sandbox)
        return 0 if sandbox.level != "none" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
