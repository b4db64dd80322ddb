"""The self-test: attacks on every layer, each by a program that only this layer confines."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from isolation.connection import TemplateProcess
from isolation.result import Result, SandboxError

# An attack that ends well has succeeded. A signal or one of these exceptions has stopped it. Any other end
# means that the attack itself is broken.
REFUSALS = ("OSError", "PermissionError", "FileNotFoundError", "ProcessLookupError", "MemoryError")

PRELUDE = """
import ctypes, fcntl, os, socket
OUTSIDE, FILE, MEMORY = {pids}, {file!r}, {memory_mb} << 20
def call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)
"""


@dataclass(frozen=True)
class Attack:
    """What a program must not be able to do, and the layer that stops it even when alone."""

    layer: str
    name: str
    code: str


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
    Attack("seccomp", "start a process", "os.fork() or os._exit(0)"),
    Attack("seccomp", "signal the parent", "os.kill(os.getppid(), 0)"),
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

EXPOSED = {  # without the layer
    "namespaces": "programs see this machine's processes, network and file names",
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


def attack_layers(
    template: TemplateProcess, memory_mb: int
) -> tuple[dict[str, str], list[tuple[Attack, str]]]:
    """The state of each layer ("on", or "off: " and the reason), and the attacks with what stopped each.

    Raises SandboxError when the template cannot start, or an attack ends in an unexpected way.
    """
    hello = template.receive()
    if hello is None:
        raise SandboxError("the sandbox template died while starting; its error is above")
    if "error" in hello:
        raise SandboxError(hello["error"])
    layers, template.folder = hello["layers"], hello["folder"]
    pids = (os.getpid(), template.pid)
    prelude = PRELUDE.format(pids=pids, file=os.path.abspath(__file__), memory_mb=memory_mb)
    stopped = []
    for attack in [attack for attack in ATTACKS if layers[attack.layer] == "on"]:
        stopped.append((attack, run_attack(template, attack, prelude)))
        if not stopped[-1][1]:
            layers[attack.layer] = f"off: in the self-test a program could {attack.name}"
    return layers, stopped


def run_attack(template: TemplateProcess, attack: Attack, prelude: str) -> str:
    """What stopped an attack, "" if nothing did. Only the attack's own layer confines it."""
    template.send({"id": 0, "code": prelude + attack.code, "timeout": 10.0, "only": [attack.layer]})
    if (answer := template.receive()) is None:
        raise SandboxError(f"the sandbox template died in the self-test, when it tried to {attack.name}")
    result = Result(**answer["result"])
    if result.status == "ok":
        return ""
    if result.status == "signal":
        return f"killed by {signal.Signals(result.signal).name}"
    last = result.stderr.strip().splitlines()[-1:] or [""]
    if result.status == "error" and last[0].partition(":")[0] in REFUSALS:
        return last[0]
    raise SandboxError(f"the sandbox cannot test itself: {attack.name}: {result.status} {result.stderr}")


def refuse_weaker(layers: dict[str, str], needed: Iterable[str], level: str) -> None:
    """Raise SandboxError if a needed layer is off; it says what that exposes and what to do."""
    for name in needed:
        if layers[name] != "on":
            raise SandboxError(
                f"sandbox level {level} was asked for, but {name} is {layers[name]}, so "
                f"{EXPOSED[name]}; {REMEDY[name]}; or accept the risk with require='none', "
                "--sandbox none (docs/sandbox.md)"
            )


def table(attacks: Iterable[tuple[Attack, str]]) -> str:
    """The attacks as lines of text: layer, attack, and what stopped it."""
    lines = [f"{'layer':12}{'attack':34}stopped, by this layer alone, with"]
    lines += [f"{a.layer:12}{a.name:34}{stopped_by or 'NOT STOPPED'}" for a, stopped_by in attacks]
    return "\n".join(lines)
