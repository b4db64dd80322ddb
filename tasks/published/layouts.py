"""How published samples lie in their folders: (path of a sample, arguments of its reader), in natural order.

A file that cannot be read raises UsageError with its path.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from plumbing.config import UsageError

Samples = Iterator[tuple[Path, tuple]]


def questions(folder: Path) -> Samples:
    """question.txt beside solution.json, at any depth: (text, solution)."""
    for path in _files(folder, "question.txt"):
        yield path, (_text(path), _json(path.with_name("solution.json")))


def products(folder: Path) -> Samples:
    """input_prompt_1.txt beside target_answer.txt, at any depth: (text, answer)."""
    for path in _files(folder, "input_prompt_1.txt"):
        yield path, (_text(path), _text(path.with_name("target_answer.txt")).strip())


def texts(folder: Path) -> Samples:
    """A text file per sample, at any depth: (path, text)."""
    for path in _files(folder, "*.txt"):
        yield path, (path, _text(path))


def records(folder: Path) -> Samples:
    """A JSON file per sample, at any depth: (path, value)."""
    for path in _files(folder, "*.json"):
        yield path, (path, _json(path))


def lines(path: Path) -> Samples:
    """A sample per line of a file of JSON lines, or of the CSV files in a folder: (path, record)."""
    for file in _files(path, "*.csv") if path.is_dir() else [path]:
        text = _text(file).strip()
        if file.suffix == ".csv":
            yield from ((file, (file, record)) for record in csv.DictReader(text.splitlines()))
            continue
        for number, line in enumerate(text.split("\n"), 1):
            try:
                yield file, (file, json.loads(line))
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{file}, line {number}: {error}; expected JSON") from None


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of this name below a folder; sample_2 comes before sample_10."""

    def natural(path: Path) -> list[str | int]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]

    return sorted(folder.rglob(pattern), key=natural)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: {reason}; expected a text file in UTF-8") from None


def _json(path: Path) -> object:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}; expected JSON") from None
