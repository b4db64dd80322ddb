"""Records of data files: JSON lines, JSON, CSV, and Parquet, which needs the extra pyarrow.

for place, record in records("questions.jsonl"):     # ("line 1", {...})
    ...

Lines and rows are read one after the other, so that memory does not grow with the file; a JSON list is read
whole.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

from plumbing.config import UsageError

BATCH = 1024  # rows of a Parquet file in memory at once
CONVERSATIONS = ("messages", "conversations", "prompt", "question")  # lists that belong to one record
CSV_FIELD = 2**27  # characters; Python's limit of 131,072 is shorter than some solutions
HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair, which JSON can hold, is no character
BOM = b"\xef\xbb\xbf"
FORMATS = (".jsonl", ".json", ".csv", ".parquet")


def records(path: str) -> Iterator[tuple[str, object]]:
    """(place, record) of every record of a file, such as ("line 3", {...}). A line that is no JSON gives a
    ValueError in place of its record. Raises UsageError naming file and reason."""
    try:
        with open(path, "rb") as f:
            if f.read(40).startswith(b"version https://git-lfs"):
                raise UsageError(f"{path}: a pointer of Git LFS, not the data; fetch it with `git lfs pull`")
        suffix = Path(path).suffix.lower()
        if suffix in (".tsv", ".gz", ".bz2", ".xz", ".zst", ".zip", ".arrow", ".xlsx"):
            raise UsageError(f"{path}: a {suffix} file; expected {', '.join(FORMATS)}: convert or unpack it")
        yield from {".parquet": _parquet, ".csv": _csv}.get(suffix, _json)(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None


def _csv(path: str) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(CSV_FIELD)
    with open(path, newline="", encoding="utf-8-sig") as f:
        reader = csv.DictReader(f, strict=True)
        try:
            for record in reader:
                if any(map(str.strip, record.pop(None, []))):
                    record = ValueError("more fields than names; expected quotes around a field with commas")
                yield f"line {reader.line_num}", record
        except csv.Error as error:
            reason = f"{error}; expected closed quotes, doubled inside a field"
            raise UsageError(f"{path}, after line {reader.line_num}: {reason}") from None


def _json(path: str) -> Iterator[tuple[str, object]]:
    """JSON lines, a JSON list, or an object with one list of records in it ({"examples": [...]})."""
    if (found := _whole(path)) is not None:
        yield from ((f"entry {i}", record) for i, record in enumerate(found))
        return
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                record = ValueError(f"{reason}; expected one JSON object per line")
            yield f"line {number}", record


def _whole(path: str) -> list | None:
    """The list that the whole file is, or holds; None for JSON lines."""
    with open(path, "rb") as f:
        start = f.read(4096).removeprefix(BOM).lstrip()
    json_file = Path(path).suffix.lower() == ".json"
    if not json_file and not start.startswith(b"["):
        return None
    try:
        found = json.loads(Path(path).read_bytes().removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        if not start.startswith(b"[{") and start.split(b"\n", 1)[0].strip() not in (b"[", b"{"):
            return None
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{path}: {reason}; expected a JSON list of records, or JSON lines") from None
    if isinstance(found, dict):
        lists = {k: v for k, v in found.items() if isinstance(v, list) and k.lower() not in CONVERSATIONS}
        records = {k: v for k, v in lists.items() if v and all(isinstance(r, dict) for r in v)}
        if len(records) > 1 and len(lists) == len(found):
            raise UsageError(f"{path}: several lists, {', '.join(records)}; expected one: a file for each")
        found = next(iter(lists.values())) if len(lists) == 1 else [found]
    # in a file of lines, a list such as [1, 2] is one bad line
    good = isinstance(found, list) and (json_file or all(isinstance(r, dict) for r in found))
    return found if good else None


def _parquet(path: str) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UsageError(f"{path}: needs the package pyarrow; pip install '.[tasks]'") from None
    try:
        # pages of a row group as they are needed, not all at once
        with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            number = 0
            for batch in file.iter_batches(BATCH):
                for record in batch.to_pylist():
                    yield f"row {number}", record
                    number += 1
    except ArrowException as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{path}: {reason}; expected a Parquet file") from None
