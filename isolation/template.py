"""The template process: it preloads modules, keeps the queue of programs, and forks workers."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import site
import socket
import sys
import traceback
from collections import deque

from isolation import folder as folders
from isolation import syscalls
from isolation.result import LAYERS, failure
from isolation.worker import Worker, close_all_but, open_pidfd, seed_generators

FAULTS = 10  # workers that may fail in a row, without a result between them


class Channel:
    """Lines over a socket. Sending never blocks: the trainer's reader may itself be sending a program."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        self.sock, self.incoming, self.outgoing = sock, bytearray(), bytearray()

    def receive(self) -> list[bytes] | None:
        """The complete lines that have arrived; None at the end of the connection."""
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
    """The queue and its workers. It has one thread, so that a fork is safe."""

    def __init__(self, control: socket.socket, config: dict):
        self.config = config
        self.control = Channel(control)
        self.queue: deque[bytes] = deque()  # unparsed jobs
        self.busy: dict[Channel, bytes | None] = {}  # worker -> its job
        self.faults = 0  # workers that failed since the last result
        self.trainer = open_pidfd(os.getppid())  # a fork of the trainer can hold the socket open

    def serve(self) -> None:
        """Pass jobs to workers and results to the trainer, until the trainer is gone."""
        layers = {name: self.probe(name) for name in LAYERS}
        self.config["layers"] = [name for name in LAYERS if layers[name] == "on"]
        own_tmp = layers["namespaces"] == "on"
        self.config["base_folder"] = "" if own_tmp else make_base(self.config["places"], self.config["root"])
        for _ in range(self.config["workers"]):
            self.start_worker()
        hello = {"layers": layers, "folder": self.config["base_folder"]}
        self.control.send(json.dumps(hello).encode())
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
        """The descriptors with something to read; none after a second, so that `reap` finds stopped workers.
        Also sends what an earlier call could not send."""
        poll = select.poll()
        for channel in (self.control, *self.busy):
            channel.flush()
            poll.register(channel.sock, select.POLLIN | (select.POLLOUT if channel.outgoing else 0))
        if self.trainer is not None:
            poll.register(self.trainer, select.POLLIN)
        return {fd for fd, event in poll.poll(1000) if event != select.POLLOUT}

    def hear(self, worker: Channel) -> None:
        """Pass a worker's result to the trainer; replace a worker that died."""
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
        """The state of one layer, tried in a fork: "on", or "off: " and the reason."""
        if layer in self.config["without"]:
            return "off: left out on request"
        if sys.platform != "linux":
            return f"off: {sys.platform} has no such thing, only Linux"
        read_fd, write_fd = os.pipe()
        if os.fork() == 0:
            try:
                close_all_but(write_fd)
                self.apply(layer)
            except BaseException as error:  # noqa: BLE001 - any error: no layer
                os.write(write_fd, str(error).encode())
            os._exit(0)
        os.close(write_fd)
        with open(read_fd, "rb") as reason:
            found = reason.read().decode()
        self.reap()
        return f"off: {found}" if found else "on"

    def apply(self, layer: str) -> None:
        """Put the calling process under one layer. Raises an exception if this machine does not have it."""
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
        """Wait for the processes that have ended, grandchildren included, and count the failed workers.

        A stopped worker never answers, so it is killed. With options=0: wait until all have ended.
        """
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, options | os.WUNTRACED)
                if pid == 0:
                    return
                if os.WIFSTOPPED(status):
                    os.kill(pid, signal.SIGKILL)
                self.faults += os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1

    def end_workers(self) -> None:
        """Close the workers' sockets, upon which they exit, and wait for them and their programs."""
        for worker in self.busy:
            worker.sock.close()
        self.reap(0)
        if self.config["base_folder"]:
            folders.remove(self.config["base_folder"])

    def start_worker(self) -> None:
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            try:
                close_all_but(theirs.fileno())
                self.queue.clear()  # a snippet is a copy of this process and must not see other programs
                self.busy.clear()
                Worker(theirs, self.config).serve()
                os._exit(0)
            except ConnectionError:  # the template is gone
                os._exit(0)
            except BaseException:  # noqa: BLE001 - a fork must not return to the template's code
                traceback.print_exc()
            os._exit(1)
        theirs.close()
        self.busy[Channel(ours)] = None


def make_base(places: list[str], root: bool) -> str:
    """A new folder in the first of `places` where a program's user can make folders; "" where there is none.
    `root`: the value of syscalls.may_become_nobody()."""
    for place in places:
        base = os.path.join(os.path.abspath(place), f"abacus-{os.urandom(8).hex()}")
        with contextlib.suppress(OSError):
            os.mkdir(base)
            os.chmod(base, 0o1733)
            if _takes_folders(base, root):
                return base
            os.rmdir(base)
    return ""


def _takes_folders(base: str, root: bool) -> bool:
    """Whether a program's user can make a folder here, tried in a fork."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            syscalls.drop_privileges(root)
            folders.enter(f"{base}/try")
            os.chdir("/")
            os.rmdir(f"{base}/try")
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def template_main(control_fd: int) -> None:
    """The template process: preload modules, then serve until the trainer is gone."""
    control = socket.socket(fileno=control_fd)
    config = json.loads(control.makefile("rb").readline() or "null")
    if config is None:
        return
    if sys.platform == "linux":  # nothing reads the socket during the imports
        syscalls.die_with(config["trainer"])
    sys.path += config["path"]
    for define in (site.setquit, site.setcopyright, site.sethelper):  # which Python -S leaves out
        define()
    for module in config["preload"]:
        try:
            __import__(module)
        except Exception as error:  # noqa: BLE001 - whatever a module raises
            reason = f"cannot preload {module!r}: {type(error).__name__}: {error}"
            control.sendall(json.dumps({"error": reason}).encode() + b"\n")
            return
    seed_generators()  # loads them: numpy imports its generators on first use
    config["readable"] = syscalls.readable_paths(config["path"])
    config["root"] = False
    if sys.platform == "linux":
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)  # of workers, whose own parents end at once
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")  # out of memory, the kernel kills this process, not the trainer
        config["root"] = syscalls.may_become_nobody()
        config["reading"] = syscalls.reading_capability()
        with open("/proc/self/statm") as pages:
            config["base"] = int(pages.read().split()[0]) * resource.getpagesize()
    for name in [name for name in sys.modules if name.partition(".")[0] == "isolation"]:
        del sys.modules[name]  # a program may have its own module of this name
    gc.collect()
    gc.freeze()  # else a collection in a snippet would copy every page of the template
    template = Template(control, config)
    if sys.platform == "linux":  # the death signal follows a thread of the trainer, which may end now
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
    template.serve()
    template.end_workers()
    os._exit(0)  # at once: the trainer may be waiting
