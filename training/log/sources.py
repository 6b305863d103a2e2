"""What can be given as a log, and the files that it stands for."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from training.errors import LogError
from training.log.checked import CheckedLogs
from training.log.rows import PROMPTS_FILE, format_of

LogSource: TypeAlias = str | Path | pd.DataFrame | CheckedLogs
"""A file, a folder, a glob, a DataFrame, or the rows of files that were read before. The last stands alone."""


def log_sources(logs: Sequence[Any], quarantine: Path | None) -> Iterator[Path | pd.DataFrame]:
    """The DataFrames, and the files that all else stands for.

    quarantine: a file that is no log, even where it stands among them.
    Raises LogError where there is no log.
    """
    for log in logs:
        if isinstance(log, pd.DataFrame):
            yield log
        elif isinstance(log, str | Path):
            yield from (file for file in _files(str(log)) if quarantine is None or not _is_same(file, quarantine))
        else:
            raise LogError(f"found {type(log).__name__} for a log; expected a path, a glob or a DataFrame")


def _files(source: str) -> list[Path]:
    """The log files of a file, a folder or a glob; hidden files and `prompts.parquet` are not logs."""
    path = Path(source)
    if path.is_dir():
        found = [item for item in path.rglob("*") if item.is_file() and not _is_hidden(item.relative_to(path))]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(_pattern(source), recursive=True) if Path(name).is_file()]
    files = sorted(item for item in found if format_of(item) and item.name != PROMPTS_FILE)
    if not files:
        raise LogError(f"{source}: found no log; expected a file, folder or glob of .parquet, .jsonl or .csv")
    return files


def _pattern(source: str) -> str:
    """A glob in which the leading folders that exist as they are written stand for themselves."""
    path = Path(source)
    for folder in path.parents:
        if folder.is_dir():
            return str(Path(glob.escape(str(folder))) / path.relative_to(folder))
    return source


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
