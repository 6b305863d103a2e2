"""What can be given as a log, and the files that it stands for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import pandas as pd
import pyarrow as pa

from training.errors import LogError
from training.log.checked import CheckedLogs
from training.log.readers import PROMPTS_FILE, first_line, format_of


class ArrowFrame(Protocol):
    """A frame of polars, Arrow or another library that gives its columns to Arrow."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class PandasFrame(Protocol):
    """A frame of a library that converts to pandas."""

    def to_pandas(self) -> pd.DataFrame:
        """The frame as a DataFrame of pandas."""


LogSource: TypeAlias = str | Path | pd.DataFrame | ArrowFrame | PandasFrame | CheckedLogs
"""A file, a folder, a glob, a DataFrame, or the rows of files that were read before. The last stands alone."""

QUARANTINE_FILE = "quarantine.parquet"
"""How the name of a file of broken rows ends. It is not a log, unless it is named as one."""


def as_sources(logs: LogSource | Sequence[LogSource]) -> list[Any]:
    """One log or several as a list."""
    are_several = isinstance(logs, Iterable) and not isinstance(logs, str) and not _is_frame(logs)
    return list(cast(Iterable[Any], logs)) if are_several else [logs]


def sources_text(logs: LogSource | Sequence[LogSource]) -> str:
    """Where logs come from, as text: paths and globs as they were given; the kind of what is no file."""
    return ", ".join(str(log) if isinstance(log, str | Path) else type(log).__name__ for log in as_sources(logs))


def log_sources(logs: Sequence[Any], quarantine: Path | None) -> Iterator[Path | pd.DataFrame]:
    """The DataFrames, and the files that all else stands for.

    quarantine: a file that is no log, even where it stands among them.
    Raises LogError where there is no log.
    """
    for log in logs:
        if _is_frame(log):
            yield _frame(log)
        elif isinstance(log, str | Path):
            yield from (file for file in _files(str(log)) if quarantine is None or not _is_same(file, quarantine))
        else:
            raise LogError(f"found {type(log).__name__} for a log; expected a path, a glob or a DataFrame")


def _is_frame(log: Any) -> bool:
    """Whether this is a DataFrame of some library; a Series is none."""
    has_interface = hasattr(log, "__arrow_c_stream__") or hasattr(log, "to_pandas")
    return isinstance(log, pd.DataFrame) or (has_interface and not hasattr(log, "dtype"))


def _frame(log: Any) -> pd.DataFrame:
    """Raises LogError where the object cannot be converted."""
    if isinstance(log, pd.DataFrame):
        return log
    try:
        found = pa.table(log).to_pandas() if hasattr(log, "__arrow_c_stream__") else log.to_pandas()
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise LogError(f"a {type(log).__name__} cannot be read as a DataFrame: {first_line(error)}") from error
    if not isinstance(found, pd.DataFrame):
        raise LogError(f"to_pandas of a {type(log).__name__} gave {type(found).__name__}; expected a DataFrame")
    return found


def _files(source: str) -> list[Path]:
    """The log files of a file, a folder or a glob; hidden files, `prompts.parquet` and broken rows are not logs.

    Raises LogError where there is none, OSError where a folder cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        found = [item for item in _items_below(path) if item.is_file()]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(_pattern(source), recursive=True) if Path(name).is_file()]
    if not path.is_file():
        found = [item for item in found if not item.name.endswith(QUARANTINE_FILE)]
    files = sorted(item for item in found if format_of(item) and item.name != PROMPTS_FILE)
    if not files:
        raise LogError(f"{source}: found no log; expected a file, folder or glob of .parquet, .jsonl or .csv")
    return files


def _items_below(folder: Path) -> Iterator[Path]:
    """What is no folder and not hidden, at any depth. Raises OSError where a folder cannot be read: none is missed."""

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place) / name for name in names if not name.startswith("."))


def _pattern(source: str) -> str:
    """A glob in which the leading folders that exist as they are written stand for themselves."""
    path = Path(source)
    for folder in path.parents:
        if folder.is_dir():
            return str(Path(glob.escape(str(folder))) / path.relative_to(folder))
    return source


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()
