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
How a process gives up its rights is in syscalls.py; both need the standard library only, because the
template is this file run as a script. What is promised, and what is not, is in docs/sandbox.md.

    python sandbox.py          attacks every layer and shows what stopped each attack
    python sandbox.py FILE     runs a file
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import gc
import io
import itertools
import json
import linecache
import math
import os
import resource
import select
import signal
import site
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import types
import zlib
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import syscalls

LAYERS = ("namespaces", "landlock", "seccomp", "rlimits")
LEVELS = {"none": (), "core": LAYERS[1:], "full": LAYERS}  # a level is the layers that must hold
EXPOSED = {  # without a layer
    "namespaces": "programs see this machine's processes, network and file names, and get no /tmp",
    "landlock": "programs can read and write files of this user",
    "seccomp": "programs can open sockets, start processes and signal yours",
    "rlimits": "programs can take all memory and processor time",
}
REMEDY = {
    "namespaces": "allow user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0 or "
    "kernel.unprivileged_userns_clone=1; not in a default Docker container), or ask for require='core'",
    "landlock": "run on Linux 5.13 or newer with landlock in its lsm= list",
    "seccomp": "run on Linux on x86-64 or aarch64, outside an emulator without seccomp filters",
    "rlimits": "run on Linux",
}
RECENT, FEW = 1000, 5  # programs over which failures of ours are counted; how many never exceed a share > 0
TASKS = 64  # threads, and processes where allowed
FLOOD = 16 << 20  # bytes on one stream after which a snippet is killed
FAULTS = 10  # workers that may fail one after another, with no program run between
SETUP_SECONDS = 10.0  # a snippet that has not begun after this long is our failure, not the model's


class SandboxError(RuntimeError):
    """The sandbox itself cannot do what was asked; never the fault of the program that was run."""


@dataclass(frozen=True)
class Result:
    """How one program ended.

    status: "ok" (exit code 0) | "error" (any other exit code: uncaught exception, sys.exit(3)) | "timeout"
    | "signal" (it crashed) | "output" (killed for printing too much) | "sandbox_error" (our failure: do not
    blame the program). stdout and stderr: the first `output_kb` of each; truncated: there was more.
    exit_code or signal is set, as the process ended; wall and cpu in seconds, max_rss_mb in MiB.
    """

    status: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    wall: float
    cpu: float
    max_rss_mb: float
    truncated: bool


def failure(reason: str) -> Result:
    """The result of a program that we failed to run, or to see the end of."""
    return Result("sandbox_error", "", reason, None, None, 0.0, 0.0, 0.0, False)


class Failures:
    """Counts the programs that we failed to run among recent ones, up to the share that is tolerated."""

    def __init__(self, max_share: float):
        if not max_share >= 0:
            raise ValueError(f"max_failed_share={max_share!r}; expected a share from 0 to 1")
        self.max_share, self.count = max_share, 0
        self._recent: deque[bool] = deque(maxlen=RECENT)  # of the last programs: did we fail to run it?

    def add(self, result: Result) -> str:
        """Note how a program ended, its further tries included. Why to stop, or "" while there is no reason:
        with a share of 0 the first failure is one, else never fewer than a few."""
        self._recent.append(result.status == "sandbox_error")
        self.count = sum(self._recent)
        if self.count <= (self.max_share and max(FEW, self.max_share * len(self._recent))):
            return ""
        return (
            f"{self.count} of the last {len(self._recent)} programs could not be run, each tried "
            f"again; the last because: {result.stderr}"
        )


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
        self.attacks: list[tuple[syscalls.Attack, str]] = []  # of the self-test, with what stopped each
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
                [sys.executable, "-s", "-S", os.path.abspath(__file__), "--template", str(theirs.fileno())],
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
        for attack in syscalls.ATTACKS:
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

    def _attack(self, attack: syscalls.Attack, layers: list[str]) -> str:
        """Run one attack with only these layers, before the reader has started; returns what stopped it."""
        pids = (os.getpid(), self._template.pid)
        code = (
            syscalls.PRELUDE.format(pids=pids, file=os.path.abspath(__file__), **self._config) + attack.code
        )
        self._send({"id": 0, "code": code, "timeout": 10.0, "only": layers})
        if (answer := self._receive()) is None:
            raise SandboxError(f"the sandbox template died in the self-test, when it tried to {attack.name}")
        result = Result(**answer["result"])
        if result.status == "ok":
            return ""
        if result.status == "signal":
            return f"killed by {signal.Signals(result.signal).name}"
        last = result.stderr.strip().splitlines()[-1:] or [""]
        if result.status == "error" and last[0].partition(":")[0] in syscalls.REFUSALS:
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


def seconds(timeout) -> float:
    """A timeout as a float; ValueError where it is no number of seconds that one can wait."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(timeout, str) and 0 < float(timeout) < 1e6:
            return float(timeout)
    raise ValueError(f"expected a timeout in seconds, above 0 and below 1e6, found {timeout!r}")


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
    if arguments[:1] == ["--template"]:
        template_main(int(arguments[1]))
        return 0
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


# --------------------------------------------------------------------------------------------- template


class Channel:
    """Lines over a socket that never makes the sender wait."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        self.sock, self.incoming, self.outgoing = sock, bytearray(), bytearray()

    def receive(self) -> list[bytes] | None:
        """The whole lines that have arrived; None at the end of the connection."""
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        self.incoming += data
        if b"\n" not in data:
            return []
        *lines, rest = self.incoming.split(b"\n")
        self.incoming = bytearray(rest)
        return [bytes(line) for line in lines]

    def send(self, line: bytes) -> None:
        self.outgoing += line + b"\n"
        self.flush()

    def flush(self) -> None:
        with contextlib.suppress(OSError):  # full: the rest goes later; gone: receive() will say so
            while self.outgoing:
                del self.outgoing[: self.sock.send(self.outgoing)]


class Template:
    """The queue and its workers. Single-threaded, so that forking it is safe."""

    def __init__(self, control: socket.socket, config: dict):
        self.config = config
        self.control = Channel(control)
        self.queue: deque[bytes] = deque()  # jobs as they came; only the workers parse them
        self.busy: dict[Channel, bytes | None] = {}  # every worker, and the job it has
        self.faults = 0  # workers that failed since the last result
        self.trainer = open_pidfd(os.getppid())  # a fork of the trainer may hold the socket open: watch both

    def serve(self) -> None:
        """Pass jobs to workers and results back until the trainer is gone."""
        layers = {name: self.probe(name) for name in LAYERS}
        self.config["layers"] = [name for name in LAYERS if layers[name] == "on"]
        for _ in range(self.config["workers"]):
            self.start_worker()
        self.control.send(json.dumps({"layers": layers}).encode())
        while True:
            for worker in [w for w, job in self.busy.items() if job is None and self.queue]:
                if self.queue:
                    self.busy[worker] = self.queue.popleft()
                    worker.send(self.busy[worker])
            ready = self.wait()
            self.reap()
            if self.trainer in ready or self.faults > FAULTS:
                return
            if self.control.sock.fileno() in ready:
                jobs = self.control.receive()
                if jobs is None:
                    return
                self.queue.extend(jobs)
            for worker in [w for w in self.busy if w.sock.fileno() in ready]:
                self.hear(worker)

    def wait(self) -> set[int]:
        """Descriptors with something to read, after sending what could not be sent before; none of them after
        a second, so that a stopped worker is found."""
        poll = select.poll()
        for channel in (self.control, *self.busy):
            channel.flush()
            poll.register(channel.sock, select.POLLIN | (select.POLLOUT if channel.outgoing else 0))
        if self.trainer is not None:
            poll.register(self.trainer, select.POLLIN)
        return {fd for fd, event in poll.poll(1000) if event != select.POLLOUT}

    def hear(self, worker: Channel) -> None:
        """Pass on a worker's result; replace a worker that died."""
        results = worker.receive()
        job = self.busy[worker]
        if results is None:
            worker.sock.close()
            del self.busy[worker]
            if job is not None:
                answer = {"id": json.loads(job)["id"], "result": vars(failure("the worker died"))}
                self.control.send(json.dumps(answer).encode())
            self.start_worker()
        for result in results or ():
            self.control.send(result)
            self.busy[worker], self.faults = None, 0

    def probe(self, layer: str) -> str:
        """Try to apply one layer in a fork; "on", or "off: " and the reason."""
        if layer in self.config["without"]:
            return "off: left out on request"
        if sys.platform != "linux":
            return f"off: {sys.platform} has no such thing, only Linux"
        read_fd, write_fd = os.pipe()
        if os.fork() == 0:
            try:
                close_all_but(write_fd)
                self.apply(layer)
            except BaseException as error:  # noqa: BLE001 - whatever it is, the layer is not there
                os.write(write_fd, str(error).encode())
            os._exit(0)
        os.close(write_fd)
        with open(read_fd, "rb") as reason:
            found = reason.read().decode()
        self.reap()
        return f"off: {found}" if found else "on"

    def apply(self, layer: str) -> None:
        """Put the calling process under one layer, to see whether this machine has it."""
        config = self.config
        if layer == "namespaces":
            syscalls.enter_namespaces(config["readable"], config["root"])
            syscalls.fresh_tmp(config["readable"])
        elif layer == "rlimits":
            syscalls.limit_resources(1, config["base"] + (1 << 30), syscalls.running_tasks())
        else:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            if layer == "landlock":
                syscalls.restrict_files(config["readable"], [])
            else:
                syscalls.install_filter(syscalls.seccomp_filter(syscalls.machine()))

    def reap(self, options: int = os.WNOHANG) -> None:
        """Collect the dead, who are ours even where their parents died first; count workers that failed; kill
        those that someone stopped, for whose programs we would wait for ever. options=0: wait for all."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, options | os.WUNTRACED)
                if pid == 0:
                    return
                if os.WIFSTOPPED(status):
                    os.kill(pid, signal.SIGKILL)
                self.faults += os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1

    def end_workers(self) -> None:
        """Let every worker see the end of its socket, and wait until all are gone."""
        for worker in self.busy:
            worker.sock.close()
        self.reap(0)

    def start_worker(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                close_all_but(theirs.fileno())
                self.queue.clear()  # a snippet is a copy of this process: no program of others may be in it
                self.busy.clear()
                Worker(theirs, self.config).serve()
                os._exit(0)
            except ConnectionError:  # the template is gone
                os._exit(0)
            except BaseException:  # noqa: BLE001 - a fork must never run on into the template's code
                traceback.print_exc()
            os._exit(1)
        theirs.close()
        self.busy[Channel(ours)] = None


def template_main(control_fd: int) -> None:
    """Body of the template process: preload, then serve until the trainer is gone."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.makefile("rb").readline() or "null")
    if config is None:
        return
    if sys.platform == "linux":  # nobody watches the socket while modules are imported
        syscalls.die_with(config["trainer"])
    sys.path[0:1] = []  # the folder of this file: nothing of the project is importable by a snippet
    sys.path += config["path"]
    site.setquit()  # exit() and quit(), which -S leaves out
    modules = [*config["preload"], *(["random"] if config["seed"] is not None else [])]
    for module in modules:
        try:
            __import__(module)
        except Exception as error:  # noqa: BLE001 - whatever a module raises
            reason = f"cannot preload {module!r}: {type(error).__name__}: {error}"
            control.sendall(json.dumps({"error": reason}).encode() + b"\n")
            return
    seed_generators(config["seed"], "")  # now, because numpy loads its generators on first use
    config["readable"] = syscalls.readable_paths(config["path"], config["processes"])
    if config["processes"]:
        sys.executable = os.path.realpath(sys.executable)  # a virtual environment's bin is not there
    config["root"] = False
    if sys.platform == "linux":
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)  # the workers' own parents end at once
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # when the machine runs out of memory: us, not the trainer
        config["root"] = syscalls.may_become_nobody()
        config["reading"] = syscalls.reading_capability()
        with open("/proc/self/statm") as pages:
            config["base"] = int(pages.read().split()[0]) * resource.getpagesize()
    sys.modules.pop(syscalls.__name__)  # this name is free for a snippet's own module
    gc.collect()
    gc.freeze()  # so that a collection in a snippet does not copy every page of the template
    template = Template(control, config)
    if sys.platform == "linux":  # the thread of the trainer that started us may end from here on
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
    template.serve()
    template.end_workers()
    os._exit(0)  # nothing to clean up, and the trainer may be waiting


def open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable when the process has ended; None where the system has no such thing."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def close_all_but(*keep: int) -> None:
    """Close every descriptor above stderr, except those in `keep`."""
    edges = [2, *sorted(keep), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


# ----------------------------------------------------------------------------------------------- worker


class Worker:
    """Runs one program after another, each in a fork of its own."""

    def __init__(self, control: socket.socket, config: dict):
        self.control, self.config, layers = control, config, config["layers"]
        self.vmstat, self.oom_kills = None, 0
        with contextlib.suppress(OSError):
            self.vmstat = open("/proc/vmstat", "rb", buffering=0)  # noqa: SIM115 - out of reach from inside
            self.ran_out_of_memory()
        if "namespaces" in layers:
            syscalls.enter_namespaces(config["readable"], config["root"])
        if "seccomp" in layers:
            config["filter"] = syscalls.seccomp_filter(syscalls.machine(), config["processes"])
        if not config["root"] or all(map(syscalls.readable_by_all, config["readable"])):
            config["reading"] = 0
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # with a handler, even process 1 could be interrupted

    def serve(self) -> None:
        """Answer every job on the control socket with one result, until the template is gone."""
        for line in self.control.makefile("rb"):
            job = json.loads(line)
            answer = json.dumps({"id": job["id"], "result": self.run(job)}).encode() + b"\n"
            del line, job  # the next snippet is a copy of this process: nothing of this one may stay
            self.control.sendall(answer)
            del answer

    def run(self, job: dict) -> dict:
        """Fork, confine, run and watch one program; returns the fields of its Result."""
        pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and the one that tells of the start
        worker, pid = os.getpid(), os.fork()
        if pid == 0:
            begin_snippet(job, self.config, [write for _, write in pipes], worker)  # never returns
        for _, write in pipes:
            os.close(write)
        fds = [read for read, _ in pipes]
        own_pids = "namespaces" in self.config["layers"]  # then we are process 1, and all others are its
        watch = Watch(pid, -1 if own_pids else -pid, fds, self.control.fileno(), self.config["output_kb"])
        try:
            result = watch.until_end(job["timeout"])
        finally:
            for fd in fds:
                os.close(fd)
        if result["signal"] == signal.SIGKILL and result["status"] == "signal" and self.ran_out_of_memory():
            return vars(failure("killed from outside while the machine or container ran out of memory"))
        return result

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed anything for want of memory since the last call."""
        if self.vmstat is None:
            return False
        self.vmstat.seek(0)
        counts = dict(line.split() for line in self.vmstat.readall().splitlines())
        before, self.oom_kills = self.oom_kills, int(counts.get(b"oom_kill", 0))
        return self.oom_kills != before


class Watch:
    """Follows one snippet from its fork to its end."""

    def __init__(self, pid: int, everyone: int, fds: list[int], control_fd: int, keep_kb: int):
        self.pid, self.everyone, self.control_fd, self.keep = pid, everyone, control_fd, keep_kb << 10
        self.started_fd = fds[2]
        self.kept = {fd: bytearray() for fd in fds}
        self.seen = dict.fromkeys(fds, 0)
        self.pidfd = open_pidfd(pid)

    def until_end(self, timeout: float) -> dict:
        """Read its output until its process ends, or end it; returns the fields of its Result."""
        poll = select.poll()
        for fd in (*self.kept, self.control_fd, *([] if self.pidfd is None else [self.pidfd])):
            poll.register(fd, select.POLLIN)
        deadline, verdict = time.monotonic() + SETUP_SECONDS, None
        while True:
            left = max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left if self.pidfd is not None else min(left, 5))}
            for fd in ready & self.kept.keys():
                if not self.read(fd):
                    poll.unregister(fd)
            if self.started_fd in ready and self.started() is not None:
                deadline = self.started() + timeout
            if self.control_fd in ready:  # one job at a time comes in: this is the template's end
                self.kill()
                os._exit(0)
            status, usage = self.ended()
            if usage is not None:
                return self.result(verdict, status, usage, time.monotonic(), timeout)
            flooded = max(self.seen.values()) > FLOOD
            if flooded or time.monotonic() >= deadline:
                verdict = verdict or ("output" if flooded else "timeout")
                self.kill()
                deadline = time.monotonic() + 1.0  # dying takes a moment

    def started(self) -> float | None:
        """When the program began, by time.monotonic(), as its process said just before."""
        note = self.kept[self.started_fd]
        return struct.unpack("d", note)[0] if len(note) == 8 else None

    def read(self, fd: int) -> bool:
        """Take what one pipe has now; False at its end."""
        data = os.read(fd, 1 << 16)
        self.seen[fd] += len(data)
        self.kept[fd] += data[: self.keep - len(self.kept[fd])]
        return bool(data)

    def ended(self) -> tuple[int, resource.struct_rusage | None]:
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        return status, usage if pid else None

    def kill(self) -> None:
        """End the snippet and all that it started."""
        for pid in (self.everyone, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def result(self, verdict, status, usage, end: float, timeout: float) -> dict:
        """Read what is left in the pipes and judge by the way the process ended."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.everyone, signal.SIGKILL)
            while self.everyone == -1:
                os.waitpid(-1, 0)
        if self.pidfd is not None:
            os.close(self.pidfd)
        for fd in self.kept:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while self.seen[fd] <= FLOOD and self.read(fd):
                    pass
        out, err, note = (bytes(data) for data in self.kept.values())
        if self.started() is None:
            return vars(failure(note.decode(errors="replace") or "the snippet did not begin"))
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        if verdict is None and code == -signal.SIGKILL and cpu >= math.floor(timeout) + 0.95:
            verdict = "timeout"  # RLIMIT_CPU: several threads used up the time together
        return vars(
            Result(
                status=verdict or ("signal" if code < 0 else "error" if code else "ok"),
                stdout=out.decode(errors="replace"),
                stderr=err.decode(errors="replace"),
                exit_code=code if code >= 0 else None,
                signal=-code if code < 0 else None,
                wall=end - self.started(),
                cpu=cpu,
                max_rss_mb=usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20),
                truncated=max(self.seen.values()) > self.keep,
            )
        )


# ---------------------------------------------------------------------------------------------- snippet


def begin_snippet(job: dict, config: dict, fds: list[int], worker: int) -> None:
    """Body of the snippet's process: confine it, tell the worker, run the program. Never returns."""
    leave, exit_code = os._exit, 1  # what a program puts in the place of os._exit is its own affair
    try:
        connect(fds)
        confine(job, config, worker)
        seed_generators(config["seed"], job["code"])
        os.write(fds[2], struct.pack("d", time.monotonic()))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(fds[2], f"confining failed: {type(error).__name__}: {error}".encode()[:4096])
        leave(1)
    os.close(fds[2])
    try:
        exit_code = run_program(job["code"])
    except MemoryError:  # before the program began: so large is it
        os.write(2, b"MemoryError\n")
    finally:  # also when the program's signal handlers or trace functions raise in our own lines
        leave(exit_code)


def connect(fds: list[int]) -> None:
    """Standard streams of its own, of which not even the flags and locks are shared; all else is closed."""
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    for number, fd in enumerate((null, *fds[:2])):
        os.dup2(fd, number)
    close_all_but(fds[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def confine(job: dict, config: dict, worker: int) -> None:
    """Give up all rights, layer by layer."""
    layers = [name for name in config["layers"] if name in job.get("only", LAYERS)]
    os.chdir("/")
    writable = []
    if "namespaces" in config["layers"]:
        syscalls.fresh_tmp(config["readable"])
        writable = ["/tmp"]
        sys.path.insert(0, "")
    if "rlimits" in layers:
        memory = config["base"] + (config["memory_mb"] << 20)
        seconds = math.floor(job["timeout"]) + 1  # the next whole number: the wall clock comes first
        alone = "namespaces" in config["layers"]  # else the limit counts all that this user runs
        syscalls.limit_resources(seconds, memory, TASKS + (0 if alone else syscalls.running_tasks()))
    if config["layers"]:
        syscalls.drop_privileges(config["root"], config["reading"])
    if sys.platform == "linux":
        syscalls.die_with(worker)
    if "landlock" in layers:
        syscalls.restrict_files(config["readable"], writable, config["processes"])
    if "seccomp" in layers:
        syscalls.install_filter(config["filter"])


def seed_generators(seed: int | None, code: str) -> None:
    """Give each program its own random numbers, where a fork would give all of them the same."""
    if seed is None:
        number = int.from_bytes(os.urandom(4), "little")
    else:
        number = zlib.crc32(code.encode(errors="surrogatepass"), seed & 0xFFFFFFFF)
    if seed is not None:
        sys.modules["random"].seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(number)


def run_program(code: str) -> int:
    """Run a program as `python -u FILE` would, with the file named "<code>"; returns its exit code."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered survives a kill
        errors = "surrogateescape" if number == 1 else "backslashreplace"
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", errors, write_through=True))
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.argv = [""]
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = builtins
    lines = io.StringIO(code if code.endswith("\n") else code + "\n", None).readlines()
    linecache.cache["<code>"] = (len(code), None, lines, "<code>")
    sys.excepthook, threading.excepthook = print_exception, print_thread_exception
    exit_code = 0
    try:
        exec(compile(code, "<code>", "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt too
        exit_code = report(error)
    for finish in (threading._shutdown, atexit._run_exitfuncs, flush_output):
        try:
            finish()
        except BaseException as error:  # noqa: BLE001
            exit_code = exit_code or report(error) or 120
    return exit_code


def report(error: BaseException) -> int:
    """Show an uncaught exception as Python does, without our own frame; returns the exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            code = (
                int.__int__(error.code) if error.code is not None else 0
            )  # of a subclass, whose methods are the program's
            return code & 0xFF if -(1 << 31) <= code < 1 << 31 else 255
        print(error.code, file=sys.stderr)
        return 1
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # a MemoryError needs memory to be shown
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
    except BaseException:  # noqa: BLE001 - the program may have closed stderr or broken the hook
        return 1
    return 1


def print_exception(kind, error, trace) -> None:
    """sys.excepthook in Python, because the built-in one cannot show the lines of "<code>"."""
    lines = traceback.format_exception(kind, error, trace)
    if sys.version_info < (3, 12) and isinstance(error, NameError | AttributeError):
        with contextlib.redirect_stderr(io.StringIO()) as text:  # only the built-in one knows "Did you mean"
            sys.__excepthook__(kind, error, trace)
        lines[-1] = text.getvalue().splitlines(keepends=True)[-1]
    print("".join(lines), end="", file=sys.stderr)


def print_thread_exception(args) -> None:
    """threading.excepthook likewise."""
    if not issubclass(args.exc_type, SystemExit):
        print(f"Exception in thread {args.thread.name if args.thread else '?'}:", file=sys.stderr)
        print_exception(args.exc_type, args.exc_value, args.exc_traceback)


def flush_output() -> None:
    syscalls.libc().fflush(None)  # what C code printed
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
