"""Takes more memory, disk or open files than a program may have."""

# ruff: noqa

# %% memory in one shot
bytearray(900 << 20)
print("ESCAPED")

# %% memory bit by bit
kept = [bytearray(1 << 20) for _ in range(900)]
print("ESCAPED")

# %% memory by mmap
kept = [mmap.mmap(-1, 64 << 20) for _ in range(14)]
print("ESCAPED")

# %% memory by private mmap
kept = [mmap.mmap(-1, 64 << 20, mmap.MAP_PRIVATE) for _ in range(14)]
print("ESCAPED")

# %% memory by memfd
for fd in [os.memfd_create("x") for _ in range(15)]:
    os.write(fd, bytes(60 << 20))
print("ESCAPED")

# %% memory by System V
call("shmget", 0, 900 << 20, 0o1600)
print("ESCAPED")

# %% memory by POSIX
fd = call("shm_open", b"/abacus-escape", 66, 0o600)
print("ESCAPED")


# %% memory by threads
def f():
    kept = bytearray(100 << 20)
    time.sleep(2)


for _ in range(9):
    threading.Thread(target=f, daemon=True).start()
time.sleep(1)
print("ESCAPED") if resource.getrusage(0).ru_maxrss > 850 << 10 else None

# %% memory in pipes
pipes = [os.pipe() for _ in range(2000)]
print("ESCAPED")

# %% files of every thread
call("syscall", 436, 3, 4095, 2)
print("ESCAPED")

# %% a lock on what others have
each(lambda p: fcntl.flock(os.open(p, 0), fcntl.LOCK_EX), ("/dev/null", os.__file__))

# %% bigger pipes
r, w = os.pipe()
fcntl.fcntl(w, 1031, 1 << 20)
print("ESCAPED")

# %% locked memory
m = mmap.mmap(-1, 1 << 20)
call("mlockall", 3)
print("ESCAPED")

# %% fill the disk
for i in range(20):
    with open(f"/tmp/abacus-escape{i}", "wb") as f:
        f.write(bytes(16 << 20))
print("ESCAPED")

# %% fill the disk in the project
open(OUTSIDE + "/abacus-escape", "wb")
print("ESCAPED")

# %% one sparse file
f = open("/tmp/abacus-escape", "wb")
f.truncate(1 << 40)
print("ESCAPED")

# %% very many files
for i in range(10_000):
    open(f"/tmp/abacus-escape{i}", "w").close()
print("ESCAPED")

# %% deep folders
os.chdir("/tmp")
for i in range(5000):
    os.mkdir("d")
    os.chdir("d")
print("ESCAPED")

# %% shared memory folder
open("/dev/shm/abacus-escape", "w")
print("ESCAPED")
