"""Signals, traces or slows down the trainer and the worker, or takes back rights that were given up."""

# ruff: noqa

# %% kill the trainer
each(lambda s: os.kill(TRAINER, s), (0, 1, 9, 15, 19))

# %% kill the parent
each(lambda s: os.kill(os.getppid(), s), (0, 9))

# %% kill everything
each(lambda p: os.kill(p, 9), (-1, 1))

# %% kill the group of the parent
each(lambda s: os.killpg(os.getpgid(os.getppid()), s), (0, 9))

# %% queue a signal
call("sigqueue", TRAINER, 0, ctypes.c_void_p(0))
print("ESCAPED")

# %% signal through a pipe's owner
r, w = os.pipe()
fcntl.fcntl(r, 10, 9)
fcntl.fcntl(r, 8, TRAINER)
print("ESCAPED")

# %% signal a thread of the trainer
call("syscall", number(200, 130), TRAINER, 9)
print("ESCAPED")

# %% pidfd
fd = os.pidfd_open(TRAINER)
print("ESCAPED")

# %% pidfd of the parent
fd = os.pidfd_open(os.getppid())
print("ESCAPED")

# %% trace the trainer
call("ptrace", 16, TRAINER, 0, 0)
print("ESCAPED")

# %% trace the parent
call("ptrace", 16, os.getppid(), 0, 0)
print("ESCAPED")

# %% let the parent trace it
call("ptrace", 0, 0, 0, 0)
print("ESCAPED")

# %% read the trainer's memory
b = ctypes.create_string_buffer(8)
v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)
call("process_vm_readv", TRAINER, v, 1, v, 1, 0)
print("ESCAPED")

# %% re-limit the trainer
resource.prlimit(TRAINER, resource.RLIMIT_CPU, (1, 1))
print("ESCAPED")

# %% re-limit the parent
resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
print("ESCAPED")

# %% renice the trainer
os.setpriority(os.PRIO_PROCESS, TRAINER, 19)
print("ESCAPED")

# %% renice the user
os.setpriority(os.PRIO_USER, 0, 19)
print("ESCAPED")

# %% pin the trainer
os.sched_setaffinity(TRAINER, {0})
print("ESCAPED")

# %% reschedule the trainer
os.sched_setscheduler(TRAINER, 5, os.sched_param(0))
print("ESCAPED")

# %% lower the trainer's disk priority
call("syscall", number(251, 30), 1, TRAINER, 3 << 13)
print("ESCAPED")

# %% raise its own limits
for name in ("AS", "NOFILE", "NPROC", "CPU", "CORE"):
    n = getattr(resource, "RLIMIT_" + name)
    each(lambda h: resource.setrlimit(n, (h, h)), (resource.getrlimit(n)[1] + 1, -1))

# %% undo the death signal
call("prctl", 1, 0, 0, 0, 0)
print("ESCAPED")

# %% become dumpable
call("prctl", 4, 1, 0, 0, 0)
print("ESCAPED")

# %% become the reaper
call("prctl", 36, 1, 0, 0, 0)
print("ESCAPED")

# %% become root
each(lambda f: f(0), (os.setuid, os.setgid, os.seteuid))

# %% write the parent's memory
b = ctypes.create_string_buffer(8)
v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 8)
call("process_vm_writev", os.getppid(), v, 1, v, 1, 0)
print("ESCAPED")

# %% pidfd_getfd
call("syscall", 438, 3, 0, 0)
print("ESCAPED")

# %% sched affinity and priority
each(
    lambda f: f(),
    (
        lambda: os.sched_setaffinity(0, {0}),
        lambda: os.nice(5),
        lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)),
    ),
)

# %% timer to a thread of another process
ev = struct.pack("qiii", 0, 10, 4, os.getppid()) + bytes(48)
t = ctypes.c_int()
call("timer_create", 0, ev, ctypes.byref(t))
print("ESCAPED")

# %% signal every process
each(lambda p: os.kill(p, 0), [p for p in range(-5, 2000) if p != os.getpid()])
