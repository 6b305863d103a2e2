"""The entries of a file: lines of JSONL, a document of JSON, rows of CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from training.errors import LogError
from training.importing.row import LeftOut, Record
from training.log.readers import OtherEncodingError, check_encoding, csv_header, first_line, format_of, json_lines

_PICKLES = (".pkl", ".pickle")
_BATCH_ROWS = 1_000
NO_OBJECT = "not a JSON object"


def records_of(path: Path) -> Iterator[Record | LeftOut]:
    """The entries of a file, and what of it is none.

    Raises LogError where the file is of no known format or its content cannot be read, OSError where the machine fails.
    """
    if path.suffix.lower() in _PICKLES:
        raise LogError(
            f"{path}: a pickle is never read, since it can run any code. Where you trust it, convert it once: "
            f"python -c \"import pandas; pandas.read_pickle('{path.name}').to_parquet('{path.stem}.parquet')\""
        )
    try:
        if format_of(path) == "parquet":
            for batch in pq.ParquetFile(path).iter_batches(_BATCH_ROWS):
                yield from batch.to_pylist()
            return
        check_encoding(path)
        if format_of(path) == "csv":
            yield from _csv_rows(path)
        elif path.suffix.lower() == ".json":
            yield from _document(path)
        elif format_of(path) == "jsonl":
            yield from _lines(path)
        else:
            raise LogError(f"{path}: expected a file of .jsonl, .json, .csv or .parquet")
    except (pa.ArrowException, OtherEncodingError, csv.Error) as error:
        raise LogError(f"{path}: cannot be read: {first_line(error)}") from error


def _csv_rows(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)
    _, delimiter = csv_header(path)
    with pa.input_stream(str(path), compression="detect") as stream:
        text = io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", errors="replace", newline="")
        for row in csv.DictReader(text, delimiter=delimiter):
            yield {name: value for name, value in row.items() if name is not None}


def _document(path: Path) -> Iterator[Record | LeftOut]:
    """The objects of a document of JSON: of a list, of a list under `data`, or the document itself."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        yield from _lines(path)
        return
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    for entry in document if isinstance(document, list) else [document]:
        yield entry if isinstance(entry, dict) else LeftOut(NO_OBJECT)


def _lines(path: Path) -> Iterator[Record | LeftOut]:
    for batch in json_lines(path):
        for line, broken in zip(*(batch[name].to_pylist() for name in ("line", "broken")), strict=True):
            if broken or (line or "").strip():
                yield LeftOut(broken) if broken else _object(line)


def _object(line: str) -> Record | LeftOut:
    try:
        entry: Any = json.loads(line)
    except (ValueError, RecursionError):
        return LeftOut(NO_OBJECT)
    return entry if isinstance(entry, dict) else LeftOut(NO_OBJECT)
