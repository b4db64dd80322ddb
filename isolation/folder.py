"""The writable folder of a program where no namespace gives it a /tmp of its own.

base = make_base(places, root)          one per sandbox; a worker's programs use one folder in it
announce(folder)                        to the programs of a worker
enter(folder)                           by the program's own user, who makes it where it is missing
over_quota(folder, free)                the worker asks every WATCH seconds
clear(folder)                           when the program has ended
"""

from __future__ import annotations

import contextlib
import os
import sys

TMP_MB = 64  # a program's files, whether in its folder or in a /tmp of its own
ENTRIES = 4096
WATCH = 0.05  # seconds


def announce(folder: str) -> None:
    """Let programs look there for home and temporary files. A worker does this once, since every page of
    memory that a snippet touches costs it time."""
    os.umask(0o022)
    os.environ["HOME"] = os.environ["TMPDIR"] = folder
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None  # a preloaded module may have asked for it


def enter(folder: str) -> None:
    """Enter the folder, which is made where the last program left something in it."""
    try:
        os.chdir(folder)
    except FileNotFoundError:
        os.mkdir(folder)
        os.chdir(folder)


def free_bytes(folder: str) -> int:
    """Bytes that can still be written to the disk of a folder."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def over_quota(folder: str, free: int) -> bool:
    """Whether the folder holds more than TMP_MB or ENTRIES entries, or its disk has less than half of
    the `free` bytes that it had: files that are deleted but open are in no folder."""
    if free_bytes(os.path.dirname(folder)) < free // 2:
        return True
    room, entries, waiting = TMP_MB << 20, ENTRIES, [folder]
    while waiting:
        # the program may be changing what is read here
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                entries -= 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    room -= entry.stat(follow_symlinks=False).st_blocks * 512
                if min(room, entries) < 0:
                    return True
    return False


def clear(folder: str) -> None:
    """Remove a folder unless it is empty: to make one on a disk takes longer than most programs."""
    with contextlib.suppress(FileNotFoundError):
        if os.listdir(folder):
            remove(folder)


def remove(folder: str) -> None:
    """Remove a folder with all that it holds, when no process writes to it any more. Links are not followed.
    Inner folders are first moved beside it: however deep they are, paths stay short."""
    waiting, moved = [folder], 0
    try:
        while waiting:
            path = waiting.pop()
            os.chmod(path, 0o700)
            with os.scandir(path) as found:
                entries = list(found)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                moved += 1
                waiting.append(f"{folder}-{moved}")
                os.chmod(entry.path, 0o700)  # else its own user could not move it
                os.rename(entry.path, waiting[-1])
            os.rmdir(path)
    except FileNotFoundError:
        pass  # somebody else has done it
    except OSError as error:
        print(f"sandbox: {folder} is not removed: {error}", file=sys.stderr)
