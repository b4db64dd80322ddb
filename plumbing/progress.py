"""The progress bar of every command."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(total: int, name: str, items: Iterable | None = None, done: int = 0, **options) -> tqdm:
    """A bar over `items`, or one to update() by hand. In a log file it prints a line every half minute."""
    pause = 0.1 if sys.stderr.isatty() else 30.0
    options = {"leave": False, "mininterval": pause} | options
    return tqdm(items, desc=name, total=total, initial=done, **options)
