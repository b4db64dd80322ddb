"""The progress bar of every command."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

LINE = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"


class _Lines:
    """Where a bar goes that nobody watches: each drawing is a line of its own, an empty one is none."""

    def write(self, text: str) -> None:
        text = text.strip()
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(total: int, name: str, items: Iterable | None = None, done: int = 0, **options) -> tqdm:
    """A bar over `items`, or one to update() by hand. In a log file it is a line a minute."""
    options = {"leave": False} | options
    if not sys.stderr.isatty():
        options |= {"mininterval": 60.0, "delay": 1.0, "file": _Lines(), "bar_format": LINE}
    return tqdm(items, desc=name, total=total, initial=done, **options)
