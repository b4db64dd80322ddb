"""Starts processes, or too many threads."""

# ruff: noqa

# %% fork
pid = os.fork()
print("ESCAPED")

# %% fork bomb
for _ in range(200):
    os.fork()
print("ESCAPED")

# %% vfork
call("vfork") or os._exit(0)
print("ESCAPED")

# %% raw clone
call("syscall", number(56, 220), 17, 0, 0, 0, 0)
print("ESCAPED")

# %% clone3
a = struct.pack("11Q", 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
call("syscall", 435, a, 88)
print("ESCAPED")


# %% thread bomb
def f():
    time.sleep(2)


threading.stack_size(32768)
for _ in range(5000):
    threading.Thread(target=f, daemon=True).start()
print("ESCAPED")

# %% a shell
import subprocess

subprocess.run("true", shell=True, check=True)
print("ESCAPED")

# %% another Python
import subprocess

subprocess.run([sys.executable, "-c", "1"], check=True)
print("ESCAPED")

# %% exec
try:
    os.execv("/bin/sh", ["sh", "-c", "echo ESCAPED"])
except OSError:
    raise SystemExit(1)

# %% exec from memory
fd = os.memfd_create("x")
print("ESCAPED")

# %% daemon
if os.fork() == 0:
    os.setsid()
    os.fork()
    open(CANARY, "a").write("x")
print("ESCAPED")

# %% zombies
for _ in range(50):
    if os.fork() == 0:
        os._exit(0)
print("ESCAPED")

# %% multiprocessing
import multiprocessing

multiprocessing.Process(target=print).start()
print("ESCAPED")

# %% leave the session
call("syscall", number(109, 154), 0, 0)
os.setsid()
print("ESCAPED")

# %% clone parent
call("syscall", number(56, 220), 0x8000 | 17, 0, 0, 0, 0)
print("ESCAPED")

# %% clone thread in a new namespace
call("syscall", number(56, 220), 0x00010F00 | 0x20000000, 0, 0, 0, 0)
print("ESCAPED")

# %% execveat
call("syscall", number(322, 281), -100, b"/bin/sh", 0, 0, 0)
print("ESCAPED")

# %% the loader runs a program
import glob

each(
    lambda ld: os.execv(ld, [ld, sys.executable, "-c", 'print("ESCAPED")']),
    glob.glob("/lib*/ld-linux*") or ["/lib64/ld-linux-x86-64.so.2"],
)
