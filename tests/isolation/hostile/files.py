"""Reads or changes files outside, and mounts others in their place."""

# ruff: noqa

# %% read outside
print("ESCAPED", open(CANARY).read())

# %% write outside
open(CANARY, "a").write("x")
print("ESCAPED")

# %% truncate outside
os.truncate(CANARY, 0)
print("ESCAPED")

# %% truncate outside by reading
os.open(CANARY, os.O_RDONLY | os.O_TRUNC)
print("ESCAPED")

# %% truncate the library
os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)
print("ESCAPED")

# %% delete outside
os.unlink(CANARY)
print("ESCAPED")

# %% rename outside
os.rename(CANARY, OUTSIDE + "/abacus-escape")
print("ESCAPED")

# %% link outside
os.link(CANARY, OUTSIDE + "/abacus-escape")
print("ESCAPED")

# %% folder outside
os.mkdir(OUTSIDE + "/abacus-escape")
print("ESCAPED")

# %% list outside
each(os.listdir, (OUTSIDE, "/", "/home", "/root", "/etc", "/var"))

# %% chmod outside
os.chmod(CANARY, 0o700)
print("ESCAPED")

# %% chown outside
os.chown(CANARY, os.getuid(), os.getgid())
print("ESCAPED")

# %% utime outside
os.utime(CANARY, (1, 1))
print("ESCAPED")

# %% extended attribute outside
os.setxattr(CANARY, "user.x", b"x")
print("ESCAPED")

# %% symbolic link
os.symlink(CANARY, "/tmp/abacus-escape")
print("ESCAPED", open("/tmp/abacus-escape").read())

# %% symbolic link upwards
os.symlink("../" * 40 + CANARY, "/tmp/l")
print("ESCAPED", open("/tmp/l").read())

# %% passwords
each(open, ("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/hosts"))

# %% keys and history
each(
    open,
    [
        h + f
        for h in ("/root", "/home/" + os.environ.get("USER", "x"), os.environ["HOME"])
        for f in ("/.ssh/id_rsa", "/.bashrc", "/.profile", "/.netrc", "/.cache")
    ],
)

# %% /proc
each(
    open,
    [
        f"/proc/{p}/{f}"
        for p in ("self", 1, TRAINER, os.getppid())
        for f in ("maps", "environ", "cmdline", "mem")
    ]
    + ["/proc/sysrq-trigger", "/proc/kcore"],
)

# %% /sys and devices
each(open, ("/sys/kernel", "/dev/kmsg", "/dev/mem", "/dev/tty", "/dev/vda", "/dev/sda", "/dev/ptmx"))

# %% the trainer's environment
print("ESCAPED") if "ABACUS_SECRET" in os.environ else None

# %% inherited descriptors
each(os.fstat, range(3, 4096))

# %% other ends of its own pipes
each(lambda fd: os.read(fd, 1), (1, 2))

# %% a device of its own
os.mknod("/tmp/abacus-escape", 0o60600, os.makedev(8, 0))
print("ESCAPED")

# %% file handles
b = ctypes.create_string_buffer(256)
call("name_to_handle_at", -100, CANARY.encode(), b, b, 0)
print("ESCAPED")

# %% mount
call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None)
print("ESCAPED")

# %% chroot
os.chroot("/tmp")
print("ESCAPED")

# %% import the project
import sandbox

print("ESCAPED")

# %% open by handle
call("open_by_handle_at", -100, ctypes.create_string_buffer(64), 0)
print("ESCAPED")

# %% openat2
h = struct.pack("QQQ", 0, 0, 0)
fd = call("syscall", 437, -100, CANARY.encode(), h, 24)
print("ESCAPED")

# %% creat
call("creat", (OUTSIDE + "/abacus-escape").encode(), 0o600)
print("ESCAPED")

# %% O_PATH and reopen
fd = os.open(CANARY, os.O_PATH)
print("ESCAPED", open(f"/proc/self/fd/{fd}").read())

# %% O_PATH folder and openat
fd = os.open(OUTSIDE, os.O_PATH)
print("ESCAPED", os.read(os.open("canary", 0, dir_fd=fd), 9))

# %% O_PATH root and fchdir
fd = os.open("/", os.O_PATH)
os.fchdir(fd)
print("ESCAPED", os.listdir("."))

# %% AT_EMPTY_PATH link
fd = os.open(CANARY, os.O_PATH)
call("linkat", fd, b"", -100, b"/tmp/x", 0x1000)
print("ESCAPED", open("/tmp/x").read())

# %% hard link of a library
os.link(os.__file__, "/tmp/x")
print("ESCAPED")

# %% rename a library
each(lambda p: os.rename(p, "/tmp/x"), (os.__file__, "/dev/null"))

# %% write a library
each(lambda p: open(p, "r+b"), (os.__file__, sys.executable, "/lib/x86_64-linux-gnu/libc.so.6"))

# %% mkdir in the root
each(
    os.mkdir,
    (
        "/abacus-escape",
        "/dev/abacus-escape",
        "/usr/abacus-escape",
        "/.kept/abacus-escape",
        "/sys/abacus-escape",
    ),
)

# %% mount api
each(lambda n: call("syscall", n, 0, 0, 0, 0, 0), (428, 429, 430, 431, 432, 433, 442))

# %% pivot root
call("syscall", number(155, 41), b"/tmp", b"/tmp")
print("ESCAPED")

# %% unsafe pickle
import pickle


class E:
    def __reduce__(self):
        return (os.system, ("echo ESCAPED > " + CANARY,))


pickle.loads(pickle.dumps(E()))
