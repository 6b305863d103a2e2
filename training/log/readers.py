"""What stands in a log file or a DataFrame, as text and Arrow tables, before anything is checked."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from router.prompt import valid_unicode
from training.log.columns import COLUMNS
from training.log.machine import of_machine

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
"""Formats by suffix. `.gz` and `.zst` may follow the suffix of a text format."""

PROMPTS_FILE = "prompts.parquet"
"""Beside a log file: the prompts that its `prompt_id` refers to. It is not a log itself."""

MAX_LINE_BYTES = 64 * 1024 * 1024
"""Of a longer line only the beginning is read."""

_BATCH_BYTES = 8 * 1024 * 1024
LINES = pa.schema([("line", pa.string()), ("broken", pa.string())])
"""The lines of a JSONL file. broken: why the line cannot be used, or NULL."""

NOT_UTF8 = "not UTF-8; save the file again as UTF-8"

_HEAD_BYTES = 4096
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
_MOST_NULS = 0.2


class OtherEncodingError(Exception):
    """A text file is UTF-16 or UTF-32, of which no line can be read as UTF-8."""


def check_encoding(path: Path) -> None:
    """Raises OtherEncodingError, OSError, pyarrow.ArrowException. Single lines that are not UTF-8 pass."""
    with pa.input_stream(str(path), compression="detect") as stream:
        head = stream.read(_HEAD_BYTES)
    found = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    if found is None and head.count(0) > _MOST_NULS * len(head):
        found = "UTF-16"
    if found:
        raise OtherEncodingError(f"the file is {found}; save it again as UTF-8")


def format_of(path: Path) -> str | None:
    """The format that a file's name tells; None where it is no log."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    return FORMATS.get(suffixes[-1]) if suffixes else None


def csv_header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter of a CSV file; no names where the file is empty."""
    with pa.input_stream(str(path), compression="detect") as stream:
        line = io.BufferedReader(stream).readline(MAX_LINE_BYTES).decode("utf-8-sig", "replace")
    delimiter = max(",;\t", key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def json_lines(path: Path) -> Iterator[pa.RecordBatch]:
    """The lines of a JSONL file in batches, with the columns of LINES; a file cut short ends with a broken line.

    Raises OSError and MemoryError where the machine fails.
    """
    lines: list[bytes] = []
    size = 0
    failure = None
    try:
        for line in _byte_lines(path):
            lines.append(line)
            size += len(line)
            if size > _BATCH_BYTES:
                yield _line_batch(lines)
                lines, size = [], 0
    except (OSError, pa.ArrowException) as error:
        if of_machine(error):
            raise
        failure = f"cannot be read to its end: {first_line(error)}"
    if lines:
        yield _line_batch(lines)
    if failure:
        yield pa.record_batch([[None], [failure]], schema=LINES)


def _byte_lines(path: Path) -> Iterator[bytes]:
    """The lines without a byte order mark; of a line beyond MAX_LINE_BYTES only its beginning."""
    with pa.input_stream(str(path), compression="detect") as file:
        stream = io.BufferedReader(file)
        if stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        while line := stream.readline(MAX_LINE_BYTES):
            yield line
            while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)


_LONE_SURROGATE = re.compile(
    rb"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
"""An escape of JSON that stands for half a character. What is to be kept is matched first, as group 1."""


def _whole_characters(line: bytes) -> bytes:
    """The line, with each lone surrogate replaced as `valid_unicode` does."""
    if b"\\ud" not in line and b"\\uD" not in line:
        return line
    return _LONE_SURROGATE.sub(lambda escape: escape[1] or b"?", line)


def _line_batch(lines: list[bytes]) -> pa.RecordBatch:
    """Lines as text; a line that is not UTF-8 says so in `broken`."""
    lines = [_whole_characters(line) for line in lines]
    try:
        return pa.record_batch(
            [pa.array(lines, pa.binary()).cast(pa.string()), pa.nulls(len(lines), pa.string())], schema=LINES
        )
    except pa.ArrowInvalid:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        broken = [None if text.encode() == line else NOT_UTF8 for text, line in zip(texts, lines, strict=True)]
        return pa.record_batch([texts, broken], schema=LINES)


def distinct(names: Sequence[str]) -> list[str]:
    """Column names that differ without regard to case, as SQL compares them; names in COLUMNS stay as they are."""
    taken = {name for name in COLUMNS if name in names}
    found: list[str] = []
    for name in names:
        free, number = name or "unnamed", 1
        while free.lower() in taken and (free not in taken or free in found or free not in COLUMNS):
            number += 1
            free = f"{name}_{number}"
        taken.add(free.lower())
        found.append(free)
    return found


def arrow_table(frame: pd.DataFrame) -> pa.Table:
    """A DataFrame as an Arrow table, with distinct column names."""
    names = distinct([str(name) for name in frame.columns])
    return pa.table([_arrow_column(frame.iloc[:, column]) for column in range(len(names))], names=names)


def _arrow_column(column: pd.Series) -> pa.Array | pa.ChunkedArray:
    """The values as they are; as text where Arrow or DuckDB has no type for them, such as numbers beside texts."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert(None)
    try:
        array = pa.array(column, from_pandas=True)
        if not isinstance(array.type, pa.BaseExtensionType) and array.type != pa.float16():
            return array
    except MemoryError:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    return pa.array([_as_text(value) for value in column], pa.string())


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict | np.ndarray):
        return json.dumps(
            value, skipkeys=True, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item)
        )
    return None if value is None or value is pd.NA or value is pd.NaT or value != value else str(value)


def first_line(error: Exception) -> str:
    """The first line of an error's message, else the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_DEEPEST_NAME = 4


def columns_of_lines(lines: pa.RecordBatch) -> list[str]:
    """The keys of the JSON objects among some lines, as `columns_of_records` names them. lines: as LINES."""
    return columns_of_records(filter(None, map(_json_object, lines["line"].to_pylist())))


def _json_object(line: str | None) -> dict[str, Any] | None:
    try:
        row = json.loads(line or "")
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def columns_of_records(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of some records in the order in which they appear, and "key.inner" of nested ones, to a depth of 4."""
    found: dict[str, None] = {}

    def add(record: Mapping[str, Any], before: str, depth: int) -> None:
        for name, value in record.items():
            found[f"{before}{name}"] = None
            if isinstance(value, dict) and depth < _DEEPEST_NAME:
                add(value, f"{before}{name}.", depth + 1)

    for record in records:
        add(record, "", 1)
    return list(found)


def columns_of_schema(schema: Iterable[pa.Field], before: str = "", depth: int = 1) -> list[str]:
    """The names of an Arrow table's columns, and "name.inner" of nested ones, to a depth of 4."""
    found: list[str] = []
    for field in schema:
        found.append(f"{before}{field.name}")
        if pa.types.is_struct(field.type) and depth < _DEEPEST_NAME:
            found += columns_of_schema(field.type, f"{before}{field.name}.", depth + 1)
    return found
