"""The attacks of the self-test."""

from __future__ import annotations

from dataclasses import dataclass

# The attacks run as programs in the sandbox. One that ends well has succeeded; the exceptions in REFUSALS,
# or death by a signal, say that it was stopped; anything else is a broken attack.
REFUSALS = ("OSError", "PermissionError", "FileNotFoundError", "ProcessLookupError", "MemoryError")


PRELUDE = """
import ctypes, fcntl, mmap, os, platform, resource, socket
OUTSIDE, FILE, MEMORY = {pids}, {file!r}, {memory_mb} << 20
def call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)
"""


@dataclass(frozen=True)
class Attack:
    """Something a program must not be able to do, and the layer that stops it even when alone."""

    layer: str
    name: str
    code: str
    allowed_with_processes: bool = False


ATTACKS = [
    Attack("namespaces", "see this machine's files", "os.stat(FILE)"),
    Attack("namespaces", "see this machine's processes", "[os.kill(p, 0) for p in OUTSIDE if p > 1]"),
    Attack(
        "namespaces",
        "reach the network",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 9))",
    ),
    Attack("landlock", "list a folder outside", "os.listdir('/')"),
    Attack("landlock", "read a file outside", "open(FILE).read(1)"),
    Attack("landlock", "write to a file outside", "open(FILE, 'ab')"),
    Attack("seccomp", "open a TCP socket", "socket.socket(socket.AF_INET)"),
    Attack("seccomp", "open a netlink socket", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
    Attack("seccomp", "make a datagram pair", "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    Attack("seccomp", "start a process", "os.fork() or os._exit(0)", True),
    Attack("seccomp", "signal the parent", "os.kill(os.getppid(), 0)", True),
    Attack("seccomp", "aim a pipe's signals", "fcntl.fcntl(os.pipe()[0], 8, os.getpid())"),
    Attack("seccomp", "change its priority", "os.setpriority(os.PRIO_PROCESS, 0, 5)"),
    Attack("seccomp", "change a file's mode", "os.fchmod(os.pipe()[0], 0o600)"),
    Attack("seccomp", "get memory outside its limit", "os.memfd_create('x')"),
    Attack("seccomp", "get shared memory", "call('shmget', 0, 4096, 0o1600)"),
    Attack("seccomp", "undo its death signal", "call('prctl', 1, 0, 0, 0, 0)"),
    Attack("seccomp", "trace itself", "call('ptrace', 0, 0, 0, 0)"),
    Attack("seccomp", "make a user namespace", "call('unshare', 0x10000000)"),
    Attack("seccomp", "use io_uring", "call('syscall', 425, 1, ctypes.create_string_buffer(120))"),
    Attack("rlimits", "take more memory than allowed", "bytearray(MEMORY + (64 << 20))"),
    Attack("rlimits", "open many files", "[os.dup(1) for _ in range(400)]"),
]
