"""Uses the Python objects that a program inherits from its worker, and what it leaves for the next one."""

# ruff: noqa

# %% an exit code that is none
import builtins


class Code(int):
    def __and__(self, other):
        return "x"

    __rand__ = __bool__ = __index__ = __int__ = __and__


os._exit = print
raise SystemExit(Code(7))

# %% outlive its own end
os._exit = lambda code: print("ESCAPED")


# %% a signal handler that raises in our lines
def handler(*_):
    raise KeyboardInterrupt


signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0001)
os._exit = print


# %% a trace function that raises in our lines
def t(frame, event, arg):
    raise ValueError("late")


sys.settrace(t)
threading.settrace(t)
f = sys._getframe()
while f:
    f.f_trace = t
    f = f.f_back

# %% break what ends it
import ctypes

os._exit = None
threading._shutdown = None
sys.stdout = None
sys.stderr = None

# %% other programs in the queue
import gc
from collections import deque

if any(
    isinstance(o, deque) and any(b"code" in x for x in o if isinstance(x, bytes)) for o in gc.get_objects()
):
    print("ESCAPED")

# %% sockets of the worker through frames
f = sys._getframe()
while f := f.f_back:
    for v in list(f.f_locals.values()):
        for s in (v, getattr(v, "control", None), getattr(v, "sock", None)):
            if isinstance(s, socket.socket):
                each(lambda _: s.send(b"{}\n"), [f.f_lineno])

# %% import the sandbox's tables
import isolation.syscalls

print("ESCAPED")

# %% flags of its input
fcntl.fcntl(0, 4, os.O_NONBLOCK | os.O_APPEND)
print("set")

# %% a lock on its input
fcntl.flock(0, fcntl.LOCK_EX)
