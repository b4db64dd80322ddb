"""FILE.part: every answer of a long run, on the disk as soon as it is known.

journal = Journal("out.jsonl", about={"seed": 0})     # goes on with out.jsonl.part where there is one
journal.add("task 7", {"correct": True})              # written and in journal.entries
finish("out.jsonl", text)                             # writes out.jsonl itself

Under torchrun every rank has a file of its own, FILE.part.1 for rank 1. Rank 0 reads them all, so that a run
goes on with any number of ranks; on several machines FILE needs shared storage.
"""

import glob
import json
import os
import threading
from pathlib import Path

from plumbing.config import UsageError, write_text


class Journal:
    """Answers by key, appended to PATH.part one line each, so that a killed run loses none and asks for none
    twice. The first line, `about`, holds the options that decide what is asked. A last line that a kill has
    cut is removed. Threads may add at once. Raises UsageError for a file of other options, or no journal."""

    def __init__(self, path: str | Path, about: dict, rank: int = 0):
        self.path = Path(f"{path}.part.{rank}" if rank else f"{path}.part")
        self.entries: dict[str, object] = {}
        self._lock = threading.Lock()
        for other in parts(path):
            if rank == 0 and other != self.path:
                self._read(other, about)
        whole = self._read(self.path, about)
        with open(self.path, "ab") as f:
            f.truncate(len(whole))
        if not whole:
            self._write(about)

    def _read(self, path: Path, about: dict) -> bytes:
        """Enter the answers of a file; its text up to the last whole line."""
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                if number == 1:
                    self._check_same(path, entry, about)
                else:
                    key, value = entry
                    self.entries[key] = value
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise UsageError(
                    f"{path}: not a journal, line {number}: {error}; remove it to begin anew"
                ) from None
        return whole

    @staticmethod
    def _check_same(path: Path, old: dict, about: dict) -> None:
        names = sorted(name for name in old.keys() | about.keys() if old.get(name) != about.get(name))
        if names:
            what = "; ".join(f"--{n.replace('_', '-')} is {about.get(n)}, was {old.get(n)}" for n in names)
            raise UsageError(
                f"{path} was begun with other options: {what}; give those to go on, or remove it"
            )

    def add(self, key: str, value: object) -> None:
        """Keep the answer to `key`, a JSON value. Raises UsageError where the disk is full."""
        with self._lock:
            self._write([key, value])
            self.entries[key] = value

    def remove(self) -> None:
        """Delete the file: its answers are not wanted."""
        self.path.unlink(missing_ok=True)

    def _write(self, line: object) -> None:
        data = json.dumps(line).encode() + b"\n"
        with open(self.path, "ab", buffering=0) as f:
            size = f.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[f.write(data) :]
            except OSError as error:
                f.truncate(size)  # half a line would spoil the next one
                raise UsageError(f"{self.path}: {error}; the same command goes on from it") from None


def parts(path: str | Path) -> list[Path]:
    """FILE.part and those of the other ranks, which are there."""
    name = glob.escape(f"{path}.part")
    return [Path(found) for found in glob.glob(name) + sorted(glob.glob(f"{name}.[0-9]*"))]


def remove_parts(path: str | Path) -> None:
    """Delete them: their answers are in FILE itself now."""
    for part in parts(path):
        part.unlink()


def finish(path: str | Path, text: str) -> None:
    """Write FILE itself, and remove its parts."""
    write_text(path, text)
    remove_parts(path)


def new_file(path: str | None, flag: str) -> None:
    """Raises UsageError, before any work, where an option's new file cannot be written. Makes its folder."""
    if path is None:
        return
    try:
        if Path(path).exists():
            raise UsageError(f"{flag} {path} exists; expected a new file")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        open(path, "x").close()  # the one sure way to know
        Path(path).unlink()
    except OSError as error:
        raise UsageError(f"{flag} {path}: {error}; expected a new file that can be written") from None
