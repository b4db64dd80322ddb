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
The file needs the standard library only, because the template is this file run as a script.
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
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

LAYERS = ("namespaces", "landlock", "seccomp", "rlimits")
LEVELS = {"none": (), "core": LAYERS[1:], "full": LAYERS}  # a level is the layers that must hold
FLOOD = 16 << 20  # bytes on one stream after which a snippet is killed
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
    ):
        for name, known in [(require, LEVELS), *((layer, LAYERS) for layer in without)]:
            if name not in known:
                raise ValueError(
                    f"unknown sandbox level or layer {name!r}; expected one of {', '.join(known)}"
                )
        self.timeout, self.require = timeout, require
        self._config = {
            "workers": workers or available_cores(),
            "memory_mb": memory_mb,
            "output_kb": output_kb,
            "preload": list(preload),
            "without": list(without),
            "path": [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")],
        }
        self._ids = itertools.count()
        self._lock = threading.Lock()  # guards the socket's sending side and the restart
        self._waiting: dict[int, tuple[Future, dict]] = {}  # sent and not answered: future, job
        self._owner, self._closed, self._broken, self._last_death = os.getpid(), False, "", -math.inf
        self._start()
        self._reader = threading.Thread(target=self._read, name="sandbox", daemon=True)
        self._reader.start()

    def submit(self, code: str, timeout: float | None = None) -> Future[Result]:
        """Queue a program; returns at once. The clock of `timeout` (seconds) starts when the program does.

        Raises SandboxError after `close`, in a fork of the process that made the sandbox, and when the
        template died twice within ten seconds.
        """
        if os.getpid() != self._owner:
            raise SandboxError("this sandbox belongs to the process that made it; make another after a fork")
        job = {"id": next(self._ids), "code": code, "timeout": self.timeout if timeout is None else timeout}
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # it cannot be cancelled from here on
        with self._lock:
            if self._closed or self._broken:
                raise SandboxError(self._broken or "the sandbox is closed")
            self._waiting[job["id"]] = future, job
            self._send(job)
        return future

    def run(self, code: str, timeout: float | None = None) -> Result:
        """Run one program and wait for its end."""
        return self.submit(code, timeout).result()

    def map(self, codes, timeout: float | None = None) -> list[Result]:
        """Run many programs, as many at once as there are workers; results in the order of `codes`."""
        return [future.result() for future in [self.submit(code, timeout) for code in codes]]

    def close(self) -> None:
        """End every process of the sandbox; programs still waiting get a `sandbox_error`."""
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
        self._send(self._config)
        line = self._stream.readline()
        if not line:
            self._stop()
            raise SandboxError("the sandbox template died while starting; its error is above")
        self.layers = json.loads(line)["layers"]

    def _stop(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._template.wait()

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):  # a dead template is noticed, and restarted, by the reader
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _read(self) -> None:
        """The reader thread: resolve futures, and restart the template when it dies."""
        while not self._closed and not self._broken:
            with contextlib.suppress(OSError):
                for line in self._stream:
                    self._resolve(json.loads(line))
            if not self._closed:
                self._revive()
        while self._waiting:
            self._waiting.popitem()[1][0].set_result(failure(self._broken or "the sandbox was closed"))
        self._stream.close()
        self._socket.close()

    def _resolve(self, answer: dict) -> None:
        future, job = self._waiting.pop(answer["id"])
        result = Result(**answer["result"])
        if result.status == "sandbox_error" and not job.get("retry"):
            with self._lock:
                self._waiting[job["id"]] = future, {**job, "retry": True}
                self._send(job)
            return
        future.set_result(result)

    def _revive(self) -> None:
        """Start a new template for the programs still waiting; a second death within 10 s is the end."""
        with self._lock:
            self._stop()
            self._stream.close()
            self._socket.close()
            if time.monotonic() - self._last_death < 10:
                self._broken = "the sandbox template died twice within 10 seconds"
                return
            self._last_death, layers = time.monotonic(), self.layers
            try:
                self._start()
            except SandboxError as error:
                self._broken = str(error)
                return
            if any(self.layers[name] != "on" for name in LAYERS if layers[name] == "on"):
                self._broken = f"the restarted sandbox has fewer layers: {self.layers}, before {layers}"
                self._stop()
                return
            for number, (future, job) in list(self._waiting.items()):
                if job.get("retry"):
                    del self._waiting[number]
                    future.set_result(failure("the sandbox template died twice while this program waited"))
                else:
                    self._waiting[number] = future, {**job, "retry": True}
                    self._send(job)


def available_cores() -> int:
    """Cores this process may use, shared among the ranks that torchrun started on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def template_environment() -> dict[str, str]:
    """All that a snippet sees of any environment."""
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    fixed = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    return {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", **fixed, **one_thread}


# --------------------------------------------------------------------------------------------- template


class Channel:
    """JSON messages, one a line, over a socket that never makes the sender wait."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        self.sock, self.incoming, self.outgoing = sock, bytearray(), bytearray()

    def receive(self) -> list | None:
        """The messages that have arrived; None at the end of the connection."""
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
        return [json.loads(line) for line in lines]

    def send(self, message: dict) -> None:
        self.outgoing += json.dumps(message).encode() + b"\n"
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
        self.queue: deque[dict] = deque()
        self.busy: dict[Channel, dict | None] = {}  # every worker, and the job it has
        self.trainer = open_pidfd(os.getppid())  # a fork of the trainer may hold the socket open: watch both

    def serve(self) -> None:
        """Pass jobs to workers and results back until the trainer is gone."""
        for _ in range(self.config["workers"]):
            self.start_worker()
        self.control.send({"layers": {name: "off: not built yet" for name in LAYERS}})
        while True:
            for worker in [w for w, job in self.busy.items() if job is None and self.queue]:
                if self.queue:
                    self.busy[worker] = self.queue.popleft()
                    worker.send(self.busy[worker])
            ready = self.wait()
            if self.trainer in ready:
                return
            if self.control.sock.fileno() in ready:
                jobs = self.control.receive()
                if jobs is None:
                    return
                self.queue.extend(jobs)
            for worker in [w for w in self.busy if w.sock.fileno() in ready]:
                self.hear(worker)

    def wait(self) -> set[int]:
        """Descriptors with something to read, after sending what could not be sent before."""
        poll = select.poll()
        for channel in (self.control, *self.busy):
            channel.flush()
            poll.register(channel.sock, select.POLLIN | (select.POLLOUT if channel.outgoing else 0))
        if self.trainer is not None:
            poll.register(self.trainer, select.POLLIN)
        return {fd for fd, event in poll.poll() if event != select.POLLOUT}

    def hear(self, worker: Channel) -> None:
        """Pass on a worker's result; replace a worker that died."""
        results = worker.receive()
        job = self.busy[worker]
        if results is None:
            worker.sock.close()
            del self.busy[worker]
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if job is not None:
                answer = {"id": job["id"], "result": vars(failure("the worker died"))}
                self.control.send(answer)
            self.start_worker()
        for result in results or ():
            self.control.send({"id": job["id"], "result": result})
            self.busy[worker] = None

    def start_worker(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                close_all_but(theirs.fileno())
                Worker(theirs, self.config).serve()
            except BaseException:  # noqa: BLE001 - a fork must never run on into the template's code
                traceback.print_exc()
            os._exit(1)
        theirs.close()
        self.busy[Channel(ours)] = None


def template_main(control_fd: int) -> None:
    """Body of the template process: preload, then serve until the trainer is gone."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.makefile("rb").readline())
    sys.path[0:1] = []  # the folder of this file: nothing of the project is importable by a snippet
    sys.path += config["path"]
    site.setquit()  # exit() and quit(), which -S leaves out
    for module in config["preload"]:
        __import__(module)
    gc.collect()
    gc.freeze()  # so that a collection in a snippet does not copy every page of the template
    Template(control, config).serve()


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
        self.control, self.config = control, config
        with open("/dev/null", "rb") as null:
            os.dup2(null.fileno(), 0)

    def serve(self) -> None:
        """Answer every job on the control socket with one result, until the template is gone."""
        for line in self.control.makefile("rb"):
            job = json.loads(line)
            result = self.run(job)
            del line, job  # the next snippet is a copy of this process: nothing of this one may stay
            self.control.sendall(json.dumps(result).encode() + b"\n")
            del result

    def run(self, job: dict) -> dict:
        """Fork, confine, run and watch one program; returns the fields of its Result."""
        pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and the one that tells of the start
        pid = os.fork()
        if pid == 0:
            begin_snippet(job, self.config, [write for _, write in pipes])  # never returns
        for _, write in pipes:
            os.close(write)
        fds = [read for read, _ in pipes]
        watch = Watch(pid, fds, self.control.fileno(), self.config["output_kb"] << 10)
        try:
            return watch.until_end(job["timeout"])
        finally:
            for fd in fds:
                os.close(fd)


class Watch:
    """Follows one snippet from its fork to its end."""

    def __init__(self, pid: int, fds: list[int], control_fd: int, keep: int):
        self.pid, self.control_fd, self.keep = pid, control_fd, keep
        self.started_fd = fds[2]
        self.kept = {fd: bytearray() for fd in fds}
        self.seen = dict.fromkeys(fds, 0)
        self.pidfd = open_pidfd(pid)

    def until_end(self, timeout: float) -> dict:
        """Read its output until its process ends, or end it; returns the fields of its Result."""
        poll = select.poll()
        for fd in (*self.kept, self.control_fd, *([] if self.pidfd is None else [self.pidfd])):
            poll.register(fd, select.POLLIN)
        start, deadline, verdict = time.monotonic(), time.monotonic() + SETUP_SECONDS, None
        begun = False
        while True:
            left = max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left if self.pidfd is not None else min(left, 5))}
            for fd in ready & self.kept.keys():
                if not self.read(fd):
                    poll.unregister(fd)
            if not begun and len(self.kept[self.started_fd]) == 8:
                begun, start = True, struct.unpack("d", self.kept[self.started_fd])[0]
                deadline = start + timeout
            if self.control_fd in ready:  # one job at a time comes in: this is the template's end
                self.kill()
                os._exit(0)
            status, usage = self.ended()
            if usage is not None:
                break
            if max(self.seen.values()) > FLOOD or time.monotonic() >= deadline:
                verdict = verdict or ("output" if max(self.seen.values()) > FLOOD else "timeout")
                self.kill()
        wall = time.monotonic() - start
        return self.result(begun, verdict, status, usage, wall, timeout)

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
        """End the snippet's whole session."""
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self.pid, signal.SIGKILL)

    def result(self, begun, verdict, status, usage, wall, timeout) -> dict:
        """Read what is left in the pipes and judge by the way the process ended."""
        self.kill()  # what is left of its session
        if self.pidfd is not None:
            os.close(self.pidfd)
        for fd in self.kept:
            os.set_blocking(fd, False)
            with contextlib.suppress(BlockingIOError):
                while self.seen[fd] <= FLOOD and self.read(fd):
                    pass
        out, err, note = (bytes(data) for data in self.kept.values())
        if not begun:
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
                wall=wall,
                cpu=cpu,
                max_rss_mb=usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20),
                truncated=max(self.seen.values()) > self.keep,
            )
        )


# ---------------------------------------------------------------------------------------------- snippet


def begin_snippet(job: dict, config: dict, fds: list[int]) -> None:
    """Body of the snippet's process: confine it, tell the worker, run the program. Never returns."""
    try:
        os.setsid()
        os.dup2(fds[0], 1)
        os.dup2(fds[1], 2)
        close_all_but(fds[2])
        limit(job["timeout"], config["memory_mb"])
        os.write(fds[2], struct.pack("d", time.monotonic()))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the program must not run
        os.write(fds[2], f"{type(error).__name__}: {error}".encode()[:4096])
        os._exit(1)
    os.close(fds[2])
    os._exit(run_program(job["code"]))


def limit(timeout: float, memory_mb: int) -> None:
    """Resource limits. Memory has a small reserve above the soft limit, for printing the MemoryError."""
    with open("/proc/self/statm") as statm:
        base = int(statm.read().split()[0]) * resource.getpagesize()
    memory = base + (memory_mb << 20)
    seconds = math.floor(timeout) + 1  # the least whole number above: the wall clock comes first
    for name, soft, hard in (
        ("AS", memory, memory + (16 << 20)),
        ("CPU", seconds, seconds),
        ("FSIZE", 64 << 20, 64 << 20),
        ("NOFILE", 128, 128),
        ("CORE", 0, 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def run_program(code: str) -> int:
    """Run a program as `python -u FILE` would, with the file named "<code>"; returns its exit code."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered survives a kill
        errors = "surrogateescape" if number == 1 else "backslashreplace"
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", errors, write_through=True))
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.argv = [""]
    sys.path.insert(0, "")
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = builtins
    linecache.cache["<code>"] = (len(code), None, io.StringIO(code, None).readlines(), "<code>")
    sys.excepthook, threading.excepthook = traceback.print_exception, print_thread_exception
    exit_code = 0
    try:
        exec(compile(code, "<code>", "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt too
        exit_code = report(error)
    for finish in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            finish()
        except BaseException as error:  # noqa: BLE001
            exit_code = exit_code or report(error) or 120
    return exit_code


def report(error: BaseException) -> int:
    """Show an uncaught exception as Python does, without our own frame; returns the exit code."""
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
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


def print_thread_exception(args) -> None:
    """threading.excepthook in Python, because the built-in one cannot show the lines of "<code>"."""
    if not issubclass(args.exc_type, SystemExit):
        print(f"Exception in thread {args.thread.name if args.thread else '?'}:", file=sys.stderr)
        traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--template"]:
        template_main(int(sys.argv[2]))
