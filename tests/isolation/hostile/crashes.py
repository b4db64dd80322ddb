"""Breaks the interpreter that runs it."""

# ruff: noqa

# %% wild write
for i in range(0, 1 << 30, 1 << 16):
    ctypes.memset(id(0) - i, 255, 64)

# %% set fs base and crash
libc.syscall(number(158, 9999), 0x1002, 1)
ctypes.string_at(0)


# %% endless recursion
def f():
    return f()


f()
print("ESCAPED")

# %% deep recursion in C
sys.setrecursionlimit(10**9)
x = []
for _ in range(10**5):
    x = [x]
repr(x)
print("ESCAPED")

# %% null pointer
ctypes.string_at(0)
print("ESCAPED")

# %% core dump
resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
print("ESCAPED")

# %% abort
os.abort()
print("ESCAPED")

# %% patch the interpreter
ctypes.memset(id(None), 0, 16)
