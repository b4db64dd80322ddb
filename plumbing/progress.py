"""The progress bar of every command, and whether a stream shows colours."""

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"


def colourful(stream: TextIO) -> bool:
    """Whether to write colours: to a terminal only, and not where NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


class _Lines:
    """Where a bar goes that nobody watches: each drawing is a line of its own, but the one before the first
    item. An empty one is none."""

    drawn = 0

    def write(self, text: str) -> None:
        text = text.strip()
        self.drawn += bool(text)
        if text and self.drawn > 1:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def lines_in(path: str | Path) -> int | None:
    """The number of lines of a JSON Lines file; None for another, or where it cannot be read."""
    if Path(path).suffix != ".jsonl":
        return None
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return sum(1 for _ in file)


def progress(total: int | None, name: str, items: Iterable | None = None, done: int = 0, **options) -> tqdm:
    """A bar over `items`, or one to update() by hand. In a log file it is a line a minute, and with `leave` a
    last one."""
    options = {"leave": False} | options
    if not sys.stderr.isatty():
        # miniters: else tqdm's monitor writes the same line again after ten seconds
        options |= {"mininterval": 60.0, "miniters": 1, "file": _Lines(), "bar_format": LINE}
    return tqdm(items, desc=name, total=total, initial=done, **options)
