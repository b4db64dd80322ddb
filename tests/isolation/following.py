"""Runs after each hostile program: prints 42 and what the program left in /tmp.

Fails when flags of the standard input have survived. Python's own packages may lie below /tmp.
"""

import contextlib
import fcntl
import os
import sys

assert fcntl.fcntl(0, fcntl.F_GETFL) & (os.O_APPEND | os.O_NONBLOCK) == 0, "flags of its input"
with contextlib.suppress(PermissionError):
    fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    left = [n for n in os.listdir("/tmp") if not any(p.startswith(f"/tmp/{n}/") for p in sys.path)]
except OSError:
    left = []
print(6 * 7, left)
