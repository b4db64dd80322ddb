"""Never ends: the clock must end it, and what it printed before is kept."""

# ruff: noqa

# %% catch everything
print("kept")
while True:
    try:
        while True:
            pass
    except BaseException:
        pass

# %% ignore every signal
print("kept")
for n in range(1, 65):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    time.sleep(1)

# %% block every signal
print("kept")
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(60)

# %% C code that never returns
print("kept")
libc.usleep.argtypes = []
while True:
    libc.pause()

# %% C code that holds the lock
print("kept")
ctypes.PyDLL(None).pause()

# %% backtracking regular expression
print("kept")
import re

re.match("(a+)+$", "a" * 64 + "b")

# %% huge integer
print("kept")
x = 3**50_000_000
while True:
    x = x * x % (1 << 1_000_000)

# %% stop itself
print("kept")
os.kill(os.getpid(), signal.SIGSTOP)

# %% a thread that outlives the main one
print("kept")
threading.Thread(target=time.sleep, args=(60,)).start()

# %% an exit handler that never ends
import atexit

atexit.register(time.sleep, 60)
print("kept")

# %% a destructor that never ends
print("kept")


class A:
    def __del__(self):
        time.sleep(60)


a = A()
del a

# %% wait for input from a pipe
print("kept")
os.read(os.pipe()[0], 1)

# %% output without a line end
print("kept", end="")
time.sleep(60)

# %% recursion without a limit
print("kept")
sys.setrecursionlimit(10**9)


def f():
    return f()


f()

# %% deadlock
print("kept")
lock = threading.Lock()
lock.acquire()
lock.acquire()
