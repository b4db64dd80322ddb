"""How a Linux process gives up its rights: namespaces, user id, Landlock, seccomp.

Every function acts on the calling process. It raises OSError with the name of the call that the kernel
refuses. isolation/selftest.py finds out whether a layer holds.

What each mechanism leaves open, and another must close:

    namespaces  anything that the kernel offers without a name to look up: memory, io_uring, keyrings
    Landlock    chmod, chown, utime, setxattr, stat; limits and priorities of processes of the same user
    seccomp     files: a filter sees numbers, not paths
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import platform
import resource
import socket
import struct
import sys
from collections.abc import Iterator

from isolation.folder import TMP_MB

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD, CLONE_FILES = 0x20000000, 0x40000000, 0x00010000, 0x00000400
ANY_NAMESPACE, CLOSE_RANGE_UNSHARE = 0x7E020000, 2
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH, AT_RECURSIVE, AT_FDCWD = 2, 0x8000, -100
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 4, 8, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETGID, CAP_SETUID = 1 << 1, 1 << 2, 1 << 6, 1 << 7
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446  # on every machine
NOBODY = 65534
KEPT = "/.kept"  # where the new root keeps what a fresh /tmp hides


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def call(name: str, *args) -> int:
    """The result of a libc function. Raises OSError with its name if the result is -1."""
    result = getattr(libc(), name)(*args)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def prctl(option: int, value: int, more: ctypes.Array | None = None) -> None:
    zero = ctypes.c_ulong(0)
    call("prctl", option, ctypes.c_ulong(value), zero if more is None else more, zero, zero)


def may_become_nobody() -> bool:
    """Whether this process is root and can become nobody. Some containers do not allow that."""

    def mapped(name: str) -> bool:
        with open(f"/proc/self/{name}") as file:
            ranges = [list(map(int, line.split())) for line in file]
        return any(first <= NOBODY < first + count for first, _, count in ranges)

    with open("/proc/self/setgroups") as file:
        allowed = file.read() != "deny\n" and have_capabilities(CAP_SETUID | CAP_SETGID)
    return os.geteuid() == 0 and mapped("uid_map") and mapped("gid_map") and allowed


def enter_namespaces(readable: list[str], root: bool) -> None:
    """Enter new user, pid, mount, network, ipc and host-name namespaces, with a new, read-only root.

    The new root holds only the paths in `readable` and an empty /tmp. The calling process ends; this function
    returns in a child, process 1 of the new pid namespace. `root`: the value of may_become_nobody().
    """
    os.umask(0o022)
    with user_map(root):
        if root:  # before the user namespace: Python may be in a home that only real root can enter
            call("unshare", CLONE_NEWNS)
            build_root(readable)
        pid_net_ipc_uts = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
        call("unshare", CLONE_NEWUSER | CLONE_NEWNS | pid_net_ipc_uts)
    if not root:
        build_root(readable)
    socket.sethostname("sandbox")
    if os.fork():  # a new pid namespace begins with the next child
        os._exit(0)


@contextlib.contextmanager
def user_map(root: bool) -> Iterator[None]:
    """Write the user map of the user namespace that the body enters.

    A child process writes it from outside. Root maps itself and nobody, which needs rights outside; other
    users map themselves only.
    """
    pid, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    nobody = f"{NOBODY} {NOBODY} 1\n" if root else ""
    texts = {} if root else {"setgroups": "deny"}
    texts |= {"uid_map": f"{uid} {uid} 1\n{nobody}", "gid_map": f"{gid} {gid} 1\n{nobody}"}
    wait_fd, go_fd = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(go_fd)
        os.read(wait_fd, 1)
        try:
            for name, text in texts.items():
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(text)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    yield
    os.close(wait_fd)
    os.close(go_fd)
    error = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
    if error:
        raise OSError(error, f"uid_map: {os.strerror(error)}")


def build_root(readable: list[str]) -> None:
    """Make a read-only root of bind mounts and enter it. The caller has its own mount namespace."""
    new = "/sys"  # mounted over: every system has this folder, and programs need nothing from it
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    call("mount", b"tmpfs", new.encode(), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=4m,mode=755")
    for path in readable:
        show(path, new + path)
    for i, path in enumerate(below_tmp(readable)):
        show(path, f"{new}{KEPT}/{i}")
    os.makedirs(f"{new}/tmp", exist_ok=True)
    os.chdir(new)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call("syscall", MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))


def show(path: str, target: str) -> None:
    """Make `target` a bind mount of `path`, or a copy of it where it is a symbolic link."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT, 0o644))
    call("mount", os.fsencode(path), os.fsencode(target), None, MS_BIND | MS_REC, None)


def below_tmp(readable: list[str]) -> list[str]:
    """The readable paths below /tmp, which a fresh /tmp hides."""
    return [path for path in readable if path.startswith("/tmp/")]


def fresh_tmp(readable: list[str]) -> None:
    """Mount an empty /tmp in memory and enter it; it vanishes with the caller. The readable paths below /tmp
    are mounted again, from KEPT."""
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    options = f"size={TMP_MB}m,nr_inodes=4096,mode=1777".encode()
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", MS_NOSUID | MS_NODEV, options)
    for i, path in enumerate(below_tmp(readable)):
        show(f"{KEPT}/{i}", path)
    os.chdir("/tmp")


def drop_privileges(root: bool, keep_capabilities: int = 0) -> None:
    """Become nobody if `root`, drop all capabilities but those to keep, and never gain a right again."""
    if root:
        prctl(PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        keep_capabilities = 0
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", header, struct.pack("6I", keep_capabilities, keep_capabilities, 0, 0, 0, 0))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)  # RLIMIT_CORE does not stop core dumps that go to a program


def die_with(parent: int) -> None:
    """Get SIGKILL when the thread of `parent` that started this process ends. A change of user undoes it."""
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != parent:
        os._exit(1)


def reading_capability() -> int:
    """The weakest capability of this process that can read private folders; 0 if it has none."""
    return next(filter(have_capabilities, (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE)), 0)


def have_capabilities(wanted: int) -> bool:
    """Whether this process has all the capabilities in a bit mask."""
    with open("/proc/self/status") as status:
        have = next(int(line.split()[1], 16) for line in status if line.startswith("CapPrm"))
    return have & wanted == wanted


def readable_paths(packages: list[str]) -> list[str]:
    """The paths that a snippet may read: Python, packages, shared libraries, time zones, harmless devices."""
    python = [p for p in sys.path if p not in packages] + [os.path.join(sys.base_prefix, "lib"), *packages]
    system = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]
    system += ["/etc/ld.so.cache", "/etc/alternatives"]  # Debian names some libraries in the latter
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    found: list[str] = []
    for path in itertools.chain.from_iterable((p, os.path.realpath(p)) for p in system + python):
        inside = any(path == top or path.startswith(top + "/") for top in found)
        if os.path.isabs(path) and os.path.exists(path) and not inside:
            found.append(path)
    return found + [path for path in devices if os.path.exists(path)]


def readable_by_all(path: str) -> bool:
    """Whether a user without rights can read a path."""
    while os.stat(path).st_mode & (1 if os.path.isdir(path) else 4):
        if path == "/":
            return True
        path = os.path.dirname(path)
    return False


def limit_resources(seconds: int, memory: int, tasks: int) -> None:
    """Limit CPU seconds, bytes of address space, and tasks (threads and processes); also files.

    The hard limit of memory is a little above the soft one, so that a MemoryError can be printed.
    """
    for name, soft, hard in (
        ("AS", memory, memory + (16 << 20)),
        ("CPU", seconds, seconds),
        ("FSIZE", TMP_MB << 20, TMP_MB << 20),
        ("NPROC", tasks, tasks),
        ("NOFILE", 128, 128),
        ("MEMLOCK", 0, 0),
        ("SIGPENDING", 256, 256),  # timers too, which take memory of the kernel
        ("CORE", 0, 0),
    ):
        number = getattr(resource, f"RLIMIT_{name}")
        ceiling = resource.getrlimit(number)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(number, (soft, hard))


def running_tasks() -> int:
    """The number of threads on this machine: an upper bound of the user's own, which RLIMIT_NPROC counts."""
    with open("/proc/loadavg") as load:
        return int(load.read().split()[3].partition("/")[2])


WRITE_FILE, READ_FILE, READ_DIR, MAKE_CHAR, MAKE_BLOCK = 2, 4, 8, 64, 2048


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Landlock: only these paths can be opened; no TCP; no signal to a process outside."""
    abi = call("syscall", LANDLOCK_CREATE, None, 0, 1)
    files = (1 << (13 if abi < 2 else 14 if abi < 3 else 15 if abi < 5 else 16)) - 1
    rules = struct.pack("QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]  # files, TCP, scopes
    ruleset = call("syscall", LANDLOCK_CREATE, rules, len(rules), 0)
    allowed = [(path, READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE) for path in readable]
    allowed += [(path, files & ~(MAKE_CHAR | MAKE_BLOCK)) for path in writable]
    if os.path.exists("/dev/null"):
        allowed.append(("/dev/null", READ_FILE | WRITE_FILE))
    for path, access in allowed:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call("syscall", LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)
    call("syscall", LANDLOCK_RESTRICT, ruleset, 0)
    os.close(ruleset)


# name, number on x86-64, number on aarch64; "-" where that machine has no such call
ALLOWED = """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69,
    pwritev 296 70, preadv2 327 286, pwritev2 328 287, lseek 8 62, close 3 57,
    dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, sendfile 40 71, copy_file_range 326 285,
    ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83, fadvise64 221 223,
    stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79, statx 332 291, access 21 -, faccessat 269 48,
    faccessat2 439 439, readlink 89 -, readlinkat 267 78, getdents 78 -, getdents64 217 61, getcwd 79 17,
    chdir 80 49, fchdir 81 50, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35,
    rename 82 -, renameat 264 38, renameat2 316 276, symlink 88 -, symlinkat 266 36, link 86 -,
    linkat 265 37, umask 95 166, statfs 137 43, fstatfs 138 44,

    mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, brk 12 214, msync 26 227,
    membarrier 324 283,

    exit 60 93, exit_group 231 94, futex 202 98, set_robust_list 273 99, rseq 334 293,
    set_tid_address 218 96, gettid 186 178, getpid 39 172, getppid 110 173, getuid 102 174, geteuid 107 175,
    getgid 104 176, getegid 108 177, getgroups 115 158, getresuid 118 148, getresgid 120 150,
    getpgid 121 155, getpgrp 111 -, getsid 124 156, getpriority 140 141, getrlimit 97 163,
    setrlimit 160 164, getrusage 98 165, times 100 153, uname 63 160, sysinfo 99 179, getcpu 309 168,
    sched_yield 24 124, sched_getaffinity 204 123, sched_getparam 143 121, sched_getscheduler 145 120,
    sched_get_priority_max 146 125, sched_get_priority_min 147 126, sched_rr_get_interval 148 127,
    wait4 61 260, waitid 247 95, arch_prctl 158 -, capget 125 90, getrandom 318 278,
    restart_syscall 219 128,

    rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigpending 127 136,
    rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, pause 34 -, signalfd4 289 74,

    clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101,
    gettimeofday 96 169, time 201 -, setitimer 38 103, getitimer 36 102, alarm 37 -, timer_create 222 107,
    timer_settime 223 110, timer_gettime 224 108, timer_delete 226 111, timer_getoverrun 225 109,
    timerfd_create 283 85, timerfd_settime 286 86, timerfd_gettime 287 87,

    poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
    epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -,
    eventfd2 290 19, recvfrom 45 207, sendto 44 206, recvmsg 47 212, sendmsg 46 211, shutdown 48 210,
    getsockname 51 204, getpeername 52 205, getsockopt 55 209
"""


CHECKED = """open 2 -, openat 257 56, clone 56 220, kill 62 129, tgkill 234 131, fcntl 72 25, ioctl 16 29,
    prctl 157 167, prlimit64 302 261, socketpair 53 199, close_range 436 436"""
CLONE3 = 435  # its flags are in memory, where a filter cannot read them
OWN_PID = 0x5EEDBEEF  # in a filter: where each process puts its own number
WORD = 0xFFFFFFFF
# A checked call is allowed if (argument & mask) is one of the values, for each of its rows.
CHECKS = {
    # reading with O_TRUNC is refused: Landlock before version 3 allows it
    "open": [(1, 0x203, (0, 1, 2, 3, 0x201, 0x202, 0x203))],
    "openat": [(2, 0x203, (0, 1, 2, 3, 0x201, 0x202, 0x203))],
    # threads only, and all with one table of open files: RLIMIT_AS does not count the buffers of sockets,
    # so only the number of open files bounds them
    "clone": [(0, CLONE_THREAD | CLONE_FILES | ANY_NAMESPACE, (CLONE_THREAD | CLONE_FILES,))],
    "close_range": [(2, CLOSE_RANGE_UNSHARE, (0,))],
    "kill": [(0, WORD, (OWN_PID,))],
    "tgkill": [(0, WORD, (OWN_PID,))],
    "prlimit64": [(0, WORD, (0, OWN_PID))],
    # duplicates, flags, locks, pipe size; not F_SETOWN and F_SETSIG, which send any signal anywhere
    "fcntl": [(1, WORD, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032))],
    # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": [(1, WORD, (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451))],
    # get death signal, dumpable, name, seccomp, bounding set, no-new-privileges; set name, name of memory
    "prctl": [(0, WORD, (2, 3, 15, 16, 21, 23, 39, 0x53564D41))],
    # a pair of connected streams, for asyncio; a datagram socket can send to any abstract socket
    "socketpair": [(0, WORD, (socket.AF_UNIX,)), (1, 0xFF, (socket.SOCK_STREAM,))],
}
ARCHITECTURES = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}  # audit number, column of the tables
LOAD, AND, JEQ, JGE, JGT, RET = 0x20, 0x54, 0x15, 0x35, 0x25, 0x06
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


def numbers(table: str, column: int) -> dict[str, int]:
    """Name -> number of the calls in a table, for one machine (its column)."""
    rows = [row.split() for row in table.split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def range_tree(ranges: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """A binary search for the loaded number: allowed inside one of the ranges, EPERM elsewhere."""
    if len(ranges) == 1:
        low, high = ranges[0]
        return [(JGE, 0, 2, low), (JGT, 1, 0, high), (RET, 0, 0, ALLOW), (RET, 0, 0, EPERM)]
    middle = len(ranges) // 2
    left, right = range_tree(ranges[:middle]), range_tree(ranges[middle:])
    return [(JGE, len(left), 0, ranges[middle][0]), *left, *right]


def seccomp_filter(machine: str) -> bytes:
    """The allow-list as a BPF program (instructions: code u16, jump-true u8, jump-false u8, operand u32).

    A call of another architecture, such as 32-bit x86, kills the process. A call that is not in the list
    returns EPERM. clone3 returns ENOSYS; libc then uses clone. Raises OSError for an unknown machine.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"no system-call table for {machine}, only for {', '.join(ARCHITECTURES)}")
    audit, column = ARCHITECTURES[machine]
    program = [(LOAD, 0, 0, 4), (JEQ, 1, 0, audit), (RET, 0, 0, KILL), (LOAD, 0, 0, 0)]
    program += [(JEQ, 0, 1, CLONE3), (RET, 0, 0, ENOSYS)]
    for name, number in numbers(CHECKED, column).items():
        body = []
        for argument, mask, values in CHECKS[name]:
            body += [(LOAD, 0, 0, 16 + 8 * argument), (AND, 0, 0, mask)]
            body += [(JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
            body += [(RET, 0, 0, EPERM)]
        body += [(RET, 0, 0, ALLOW)]
        program += [(JEQ, 0, len(body), number), *body]
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers(ALLOWED, column).values()):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program + range_tree(ranges))


def install_filter(program: bytes) -> None:
    """Put this process under a filter made by `seccomp_filter`. It cannot be removed."""
    program = program.replace(struct.pack("I", OWN_PID), struct.pack("I", os.getpid()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)))


def machine() -> str:
    """The name of this machine in ARCHITECTURES, or another name where they have no table for it."""
    name = platform.machine() if sys.maxsize > 1 << 32 else "32-bit"
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(name, name)
