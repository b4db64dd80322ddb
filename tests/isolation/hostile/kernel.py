"""Calls parts of the kernel that a program does not need."""

# ruff: noqa

# %% io_uring
call("syscall", 425, 1, ctypes.create_string_buffer(120))
print("ESCAPED")

# %% keyctl
call("syscall", number(250, 219), 0, -3, 1)
print("ESCAPED")

# %% user namespace inside
call("unshare", 0x10000000)
print("ESCAPED")

# %% user namespace by clone
call("syscall", number(56, 220), 0x10000011, 0, 0, 0, 0)
print("ESCAPED")

# %% bpf
call("syscall", number(321, 280), 0, ctypes.create_string_buffer(128), 128)
print("ESCAPED")

# %% perf
call("syscall", number(298, 241), ctypes.create_string_buffer(128), 0, -1, -1, 0)
print("ESCAPED")

# %% userfaultfd
call("syscall", number(323, 282), 1)
print("ESCAPED")

# %% personality
call("personality", 0x0040000)
print("ESCAPED")

# %% message queue
call("msgget", 0, 0o1600)
print("ESCAPED")

# %% terminal input
fcntl.ioctl(0, 0x5412, b"x")
print("ESCAPED")

# %% kernel modules, reboot, clock
each(
    lambda f: f(),
    (
        lambda: call("init_module", b"", 0, b""),
        lambda: call("reboot", 0),
        lambda: call("settimeofday", None, ctypes.create_string_buffer(8)),
    ),
)

# %% 32-bit call
m = mmap.mmap(-1, 4096, prot=7)
m.write(b"\xb8\x14\0\0\0\xcd\x80\xc3" if platform.machine() == "x86_64" else bytes(4))
f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
f()
print("ESCAPED")

# %% x32 call
call("syscall", 0x40000000 + 39)
print("ESCAPED")

# %% setns
call("setns", 0, 0)
print("ESCAPED")

# %% swap
each(lambda n: call("syscall", n, b"/tmp/x", 0), (number(167, 224), number(168, 225)))

# %% acct
call("acct", b"/tmp/x")
print("ESCAPED")

# %% syslog
call("syscall", number(103, 116), 3, ctypes.create_string_buffer(4096), 4096)
print("ESCAPED")

# %% kexec
call("syscall", number(246, 104), 0, 0, 0, 0)
print("ESCAPED")

# %% modify_ldt
call("syscall", number(154, 9999), 0, ctypes.create_string_buffer(64), 64)
print("ESCAPED")

# %% inotify
call("inotify_init1", 0)
print("ESCAPED")

# %% fanotify
call("fanotify_init", 0, 0)
print("ESCAPED")

# %% memfd_secret
call("syscall", 447, 0)
print("ESCAPED")

# %% posix mq
a = struct.pack("8q", 0, 10, 8192, 0, 0, 0, 0, 0)
call("syscall", number(240, 180), b"x", 66, 0o600, a)
print("ESCAPED")

# %% semaphores
call("semget", 0, 1, 0o1600)
print("ESCAPED")

# %% add_key
call("syscall", number(248, 217), b"user", b"x", b"y", 1, -3)
print("ESCAPED")

# %% seccomp notify
call("syscall", number(317, 277), 1, 8, ctypes.create_string_buffer(16))
print("ESCAPED")

# %% vmsplice, splice, tee
r, w = os.pipe()
each(lambda n: call("syscall", n, w, 0, 0, 0, 0, 0), (number(278, 75), number(275, 76), number(276, 77)))

# %% mbind, migrate
each(lambda n: call("syscall", n, 0, 0, 0, 0, 0, 0), (number(237, 235), number(256, 238), number(279, 239)))

# %% many timers
t = ctypes.c_int()
for _ in range(2000):
    call("timer_create", 0, None, ctypes.byref(t))
print("ESCAPED")

# %% own machine code
m = mmap.mmap(-1, 4096, prot=7)
m.write(b"\xb8\x39\0\0\0\x0f\x05\xc3" if platform.machine() == "x86_64" else bytes(4))
f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
if f() >= 0:
    print("ESCAPED")
