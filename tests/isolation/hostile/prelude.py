"""What every hostile program begins with.

The test puts three names before it: OUTSIDE, a writable folder of the trainer with a file "canary"; TRAINER,
the trainer's pid; PORT, a TCP and UDP port where the test listens, and the name of its abstract socket.
A program prints ESCAPED when it got what it wanted. Each file of this folder holds programs of one kind; a
line "# %% NAME" begins a program.
"""

# ruff: noqa
import ctypes, fcntl, mmap, os, platform, resource, signal, socket, struct, sys, threading, time

CANARY = OUTSIDE + "/canary"
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    result = getattr(libc, name)(*args)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def number(x86, arm):
    return {"x86_64": x86, "aarch64": arm}[platform.machine()]


def each(attempt, things):
    for thing in things:
        try:
            attempt(thing)
            print("ESCAPED", thing)
        except (OSError, ValueError):
            pass
