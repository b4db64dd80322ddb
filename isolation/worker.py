"""A worker process: it runs one program after another, each in a fork of its own, the snippet."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib.machinery
import io
import itertools
import json
import linecache
import math
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
import types

from isolation import folder as folders
from isolation import syscalls
from isolation.result import LAYERS, SETUP_SECONDS, Result, failure

TASKS = 64  # threads
FLOOD = 16 << 20  # bytes on one stream after which a snippet is killed


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def close_all_but(*keep: int) -> None:
    """Close every descriptor above stderr, except those in `keep`."""
    edges = [2, *sorted(keep), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


class Worker:
    """Runs one program after another, each in a fork of its own."""

    def __init__(self, control: socket.socket, config: dict):
        self.control, self.config, layers = control, config, config["layers"]
        self.vmstat, self.oom_kills = None, 0
        with contextlib.suppress(OSError):
            self.vmstat = open("/proc/vmstat", "rb", buffering=0)  # noqa: SIM115 - the new root has no /proc
            self.ran_out_of_memory()
        if "namespaces" in layers:
            syscalls.enter_namespaces(config["readable"], config["root"])
        if "seccomp" in layers:
            config["filter"] = syscalls.seccomp_filter(syscalls.machine())
        if not config["root"] or all(map(syscalls.readable_by_all, config["readable"])):
            config["reading"] = 0
        self.folder = config["base_folder"] and f"{config['base_folder']}/{os.getpid()}"
        if self.folder:
            folders.announce(self.folder)
        # made here and not in each snippet, since every page of memory that one touches costs it time
        config["main"], config["hook"] = new_main(), ExceptHook()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # with a handler, a program could interrupt process 1

    def serve(self) -> None:
        """Answer each job on the control socket with a result, until the template is gone."""
        for line in self.control.makefile("rb"):
            job = json.loads(line)
            answer = json.dumps({"id": job["id"], "result": self.run(job)}).encode() + b"\n"
            del line, job  # the next snippet is a copy of this process and must not see this program
            self.control.sendall(answer)
            del answer

    def run(self, job: dict) -> dict:
        """The fields of the Result of one program, which runs in a fork."""
        pipes = [os.pipe() for _ in range(3)]  # stdout, stderr, and the note of the start
        worker, pid = os.getpid(), os.fork()
        if pid == 0:
            job["folder"] = self.folder
            begin_snippet(job, self.config, [write for _, write in pipes], worker)  # never returns
        for _, write in pipes:
            os.close(write)
        fds = [read for read, _ in pipes]
        own_pids = "namespaces" in self.config["layers"]  # this is process 1, and -1 means the snippet's
        watch = Watch(pid, -1 if own_pids else -pid, fds, self.control.fileno(), self.config["output_kb"])
        if self.folder:
            watch.folder, watch.free = self.folder, folders.free_bytes(self.config["base_folder"])
        try:
            result = watch.until_end(job["timeout"])
        finally:
            for fd in fds:
                os.close(fd)
            if self.folder:
                folders.clear(self.folder)
        if result["signal"] == signal.SIGKILL and result["status"] == "signal" and self.ran_out_of_memory():
            return vars(failure("killed from outside while the machine or container ran out of memory"))
        return result

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel has killed a process for want of memory since the last call."""
        if self.vmstat is None:
            return False
        self.vmstat.seek(0)
        counts = dict(line.split() for line in self.vmstat.readall().splitlines())
        before, self.oom_kills = self.oom_kills, int(counts.get(b"oom_kill", 0))
        return self.oom_kills != before


class Watch:
    """Supervises one snippet from its fork to its end.

    `everyone`: what os.kill takes to kill the snippet and all processes that it started.
    """

    def __init__(self, pid: int, everyone: int, fds: list[int], control_fd: int, keep_kb: int):
        self.pid, self.everyone, self.control_fd, self.keep = pid, everyone, control_fd, keep_kb << 10
        self.started_fd = fds[2]
        self.kept = {fd: bytearray() for fd in fds}
        self.seen = dict.fromkeys(fds, 0)
        self.pidfd = open_pidfd(pid)
        self.folder, self.free = "", 0  # the program's folder, and the bytes free on its disk at the start

    def until_end(self, timeout: float) -> dict:
        """Read the output until the process ends or must be killed; the fields of its Result."""
        poll = select.poll()
        for fd in (*self.kept, self.control_fd, *([] if self.pidfd is None else [self.pidfd])):
            poll.register(fd, select.POLLIN)
        deadline, verdict = time.monotonic() + SETUP_SECONDS, None
        look = time.monotonic() + folders.WATCH if self.folder else math.inf
        while True:
            left = max(0.0, min(deadline, look) - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left if self.pidfd is not None else min(left, 5))}
            for fd in ready & self.kept.keys():
                if not self.read(fd):
                    poll.unregister(fd)
            if self.started_fd in ready and self.started() is not None:
                deadline = self.started() + timeout
            if self.control_fd in ready:  # no second job comes, so the template has ended
                self.kill()
                os._exit(0)
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                return self.result(verdict, status, usage, time.monotonic(), timeout)
            flooded = max(self.seen.values()) > FLOOD
            if time.monotonic() >= look:
                flooded = flooded or folders.over_quota(self.folder, self.free)
                look = time.monotonic() + folders.WATCH
            if flooded or time.monotonic() >= deadline:
                verdict = verdict or ("output" if flooded else "timeout")
                self.kill()
                deadline = time.monotonic() + 1.0  # the kernel needs a moment; then kill again

    def started(self) -> float | None:
        """The time.monotonic() at which the program began, as the snippet noted; None before."""
        note = self.kept[self.started_fd]
        return struct.unpack("d", note)[0] if len(note) == 8 else None

    def read(self, fd: int) -> bool:
        """Read once from a pipe; False at its end."""
        data = os.read(fd, 1 << 16)
        self.seen[fd] += len(data)
        self.kept[fd] += data[: self.keep - len(self.kept[fd])]
        return bool(data)

    def kill(self) -> None:
        """Kill the snippet and all processes that it started."""
        for pid in (self.everyone, self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def result(self, verdict, status, usage, end: float, timeout: float) -> dict:
        """The fields of the Result, from the rest of the output and from how the process ended."""
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
            verdict = "timeout"  # RLIMIT_CPU, reached by several threads
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


def begin_snippet(job: dict, config: dict, fds: list[int], worker: int) -> None:
    """The snippet process: give up rights, note the start, run the program. Never returns."""
    leave, exit_code = os._exit, 1  # a program may replace os._exit
    try:
        connect(fds)
        confine(job, config, worker)
        seed_generators()
        os.write(fds[2], struct.pack("d", time.monotonic()))
    except BaseException as error:  # noqa: BLE001 - after any error the program must not run
        os.write(fds[2], f"confining failed: {type(error).__name__}: {error}".encode()[:4096])
        leave(1)
    os.close(fds[2])
    try:
        exit_code = run_program(job["code"], config["main"], config["hook"])
    except MemoryError:  # the program is too large to begin
        os.write(2, b"MemoryError\n")
    finally:  # also when a signal handler or trace function of the program raises in the lines above
        leave(exit_code)


def connect(fds: list[int]) -> None:
    """Connect the standard streams and close every other descriptor but the pipe of the note.

    The snippet opens /dev/null itself: flags and locks of a shared file would reach other snippets.
    """
    os.setsid()
    null = os.open("/dev/null", os.O_RDONLY)
    for number, fd in enumerate((null, *fds[:2])):
        os.dup2(fd, number)
    close_all_but(fds[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def confine(job: dict, config: dict, worker: int) -> None:
    """Give up rights, layer by layer. An attack of the self-test names the `only` layers to use."""
    layers = [name for name in config["layers"] if name in job.get("only", LAYERS)]
    os.chdir("/")
    writable = []
    if "namespaces" in config["layers"]:
        syscalls.fresh_tmp(config["readable"])
        writable = ["/tmp"]
    if "rlimits" in layers:
        memory = config["base"] + (config["memory_mb"] << 20)
        seconds = math.floor(job["timeout"]) + 1  # more than the timeout: the wall clock comes first
        alone = "namespaces" in config["layers"]  # else the limit counts all tasks of the user
        syscalls.limit_resources(seconds, memory, TASKS + (0 if alone else syscalls.running_tasks()))
    if config["layers"]:
        syscalls.drop_privileges(config["root"], config["reading"])
    if sys.platform == "linux":
        syscalls.die_with(worker)
    if job["folder"]:
        folders.enter(job["folder"])
        writable = [job["folder"]]
    if writable:
        sys.path.insert(0, "")
    if "landlock" in layers:
        syscalls.restrict_files(config["readable"], writable)
    if "seccomp" in layers:
        syscalls.install_filter(config["filter"])


def seed_generators() -> None:
    """Seed the preloaded generators anew; else every fork would draw the same random numbers."""
    seed = int.from_bytes(os.urandom(4), "little")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    if "sympy.core.random" in sys.modules:
        sys.modules["sympy.core.random"].seed(seed)


def new_main() -> types.ModuleType:
    """The module __main__ of a program, as `python FILE` makes it for a file named "<code>"."""
    main = types.ModuleType("__main__")
    vars(main).update(__builtins__=builtins, __file__="<code>", __cached__=None, __annotations__={})
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", "<code>")
    return main


def run_program(code: str, main: types.ModuleType, hook: ExceptHook) -> int:
    """The exit code of a program that runs in `main` as in `python -u FILE`; `hook` prints its errors."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = open(number, "wb", buffering=0, closefd=False)  # noqa: SIM115 - unbuffered output survives a kill
        errors = "surrogateescape" if number == 1 else "backslashreplace"
        setattr(sys, name, io.TextIOWrapper(raw, "utf-8", errors, write_through=True))
        setattr(sys, f"__{name}__", getattr(sys, name))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.argv = ["<code>"]
    sys.modules["__main__"] = main
    code = code.removeprefix("\ufeff")  # a byte order mark
    hook.read(code)
    sys.excepthook = sys.__excepthook__ = hook
    threading.excepthook, sys.unraisablehook = hook.of_thread, hook.of_unraisable
    exit_code = 0
    try:
        exec(compile(code, "<code>", "exec", dont_inherit=True), main.__dict__)
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt too
        exit_code = report(error, hook)
    for finish in (threading._shutdown, atexit._run_exitfuncs, flush_output):
        try:
            finish()
        except BaseException as error:  # noqa: BLE001
            exit_code = exit_code or report(error, hook) or 120
    return exit_code


def report(error: BaseException, hook: ExceptHook) -> int:
    """Print an uncaught exception as Python does, without the frame of this file; returns the exit code.
    Where a program has broken sys.excepthook, `hook` prints the hook's error and the program's."""
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        if isinstance(error.code, int):
            code = int.__int__(error.code)  # a subclass may have other methods
            return code & 0xFF if -(1 << 31) <= code < 1 << 31 else 255
        sys.stderr.write(f"{error.code}\n")
        return 1
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))  # to print a MemoryError takes memory
        trace = error.__traceback__ and error.__traceback__.tb_next
        error = error.with_traceback(trace)
        if not hasattr(sys, "excepthook"):
            sys.stderr.write("sys.excepthook is missing\n")
            hook(type(error), error, trace)
            return 1
        try:
            sys.excepthook(type(error), error, trace)
        except Exception as second:  # noqa: BLE001
            second_trace = second.__traceback__ and second.__traceback__.tb_next
            last = second
            while last.__context__ not in (None, error):
                last = last.__context__
            last.__context__ = None  # Python calls the hook after the program's error, not inside it
            sys.stderr.write("Error in sys.excepthook:\n")
            hook(type(second), second.with_traceback(second_trace), second_trace)
            sys.stderr.write("\nOriginal exception was:\n")
            hook(type(error), error, trace)
    except BaseException:  # noqa: BLE001 - the program may have closed stderr
        return 1
    return 1


class ExceptHook:
    """sys.excepthook of a program: the built-in one cannot show the lines of "<code>"."""

    def __init__(self):
        self.python, self.builtins = sys.excepthook, builtins.__dict__.copy()
        self.entry = (0, None, [], "<code>")  # of linecache

    def read(self, code: str) -> None:
        """Keep the program's lines."""
        lines = io.StringIO(code if code.endswith("\n") else code + "\n", None).readlines()
        self.entry = linecache.cache["<code>"] = (len(code), None, lines, "<code>")

    def __call__(self, kind, error, trace) -> None:
        """Print a traceback; Python's own, without source lines, where a program has broken this one."""
        linecache.cache["<code>"] = self.entry
        changed = builtins.__dict__.copy()
        builtins.__dict__.update(self.builtins)  # a program may have replaced print or len
        try:
            text = self.text(kind, error, trace)
        except Exception:  # noqa: BLE001
            self.python(kind, error, trace)
        else:
            sys.stderr.write(text)
        finally:
            builtins.__dict__.update(changed)

    def text(self, kind, error, trace) -> str:
        """The traceback as Python prints it."""
        if isinstance(error, SyntaxError) and error.filename == "<code>":
            self.complete(error)
        lines = traceback.format_exception(kind, error, trace)
        if sys.version_info < (3, 12) and isinstance(error, NameError | AttributeError):
            with contextlib.redirect_stderr(io.StringIO()) as text:  # which adds "Did you mean"
                self.python(kind, error, trace)
            lines[-1] = text.getvalue().splitlines(keepends=True)[-1]
        return "".join(lines)

    def complete(self, error: SyntaxError) -> None:
        """Give an error of the compiler its line, for which Python looks into the file; as Python prints it,
        without indentation, and marked up to its end where the error goes on below."""
        if error.text is None:
            error.text = "".join(self.entry[2][error.lineno - 1 : error.lineno]) or None
            if error.text and (error.end_lineno or 0) > error.lineno:
                error.end_offset = len(error.text)
        if isinstance(error, IndentationError):
            error.end_offset = error.offset  # in a file Python marks one character
        indent = len(error.text or "") - len((error.text or "").lstrip(" \t\f"))
        if indent and error.offset and error.end_offset:
            error.text = error.text[indent:]
            error.offset, error.end_offset = error.offset - indent, error.end_offset - indent

    def of_thread(self, args) -> None:
        """Print the traceback of a thread."""
        if not issubclass(args.exc_type, SystemExit):
            sys.stderr.write(f"Exception in thread {args.thread.name if args.thread else '?'}:\n")
            self(args.exc_type, args.exc_value, args.exc_traceback)

    def of_unraisable(self, args) -> None:
        """Print the traceback of an exception that cannot be raised, such as one of __del__."""
        sys.stderr.write(f"{args.err_msg or 'Exception ignored in'}: {args.object!r}\n")
        self(args.exc_type, args.exc_value, args.exc_traceback)


def flush_output() -> None:
    syscalls.libc().fflush(None)  # what C code printed
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
