"""The checked rows of log files in a database on disk: each file is read once, and none must fit into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import numpy as np

from training.log.columns import ColumnMap, quoted
from training.log.readers import first_line
from training.log.refusals import reserved_problem, unreadable_labels
from training.log.rows import append_log, create_raw, fetch
from training.log.values import IN_FUTURE

MEMORY_LIMIT = "4GB"
"""Of DuckDB; what goes beyond it is spilled to disk."""


@contextmanager
def database(memory_limit: str = MEMORY_LIMIT) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database on disk with an empty table `raw`; it is removed at the end. Raises duckdb.Error."""
    with _temporary(None, memory_limit, ()) as rows:
        yield rows.connection


@contextmanager
def checked_logs(
    folder: Path | None = None, memory_limit: str = MEMORY_LIMIT, maps: Sequence[ColumnMap] = ()
) -> Iterator[CheckedLogs]:
    """An empty CheckedLogs, whose database is removed at the end.

    folder: where the database stands; None takes the system's folder for temporary files, as does a path with a "?".
    maps: columns that are made from others, in all files.
    While it is in use, DuckDB's errors become MemoryError where `memory_limit` is too small, and OSError where it
    cannot read or write, for example because the disk is full.
    """
    try:
        with _temporary(folder, memory_limit, maps) as rows:
            yield rows
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(
            f"memory_limit {memory_limit} is too small ({first_line(error)}); give a larger one"
        ) from error
    except (duckdb.IOException, duckdb.FatalException, duckdb.InternalException) as error:
        raise OSError(first_line(error)) from error


@contextmanager
def _temporary(folder: Path | None, memory_limit: str, maps: Sequence[ColumnMap]) -> Iterator[CheckedLogs]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if "?" in str(folder.resolve()):
            folder = None  # DuckDB cannot write its log there: it takes what follows for a query
    with tempfile.TemporaryDirectory(prefix=".token-broker-", dir=folder) as temporary:
        rows = CheckedLogs(Path(temporary) / "log.duckdb", memory_limit, maps)
        try:
            yield rows
        finally:
            rows.discard()


@dataclass(frozen=True)
class FileFacts:
    """What was found in one log file.

    n_prompts: distinct prompts of its usable rows. last_timestamp: of its usable rows, UTC; None where none has one.
    n_future: broken rows whose time is in the future.
    is_unreadable: the file, or `prompts.parquet` beside it, cannot be read, its outcomes are on another scale, or a
        column has the reserved check's name.
    reason: why; else why most of its broken rows are broken; "" where none is.
    """

    n_rows: int
    n_broken: int
    n_prompts: int
    last_timestamp: datetime | None
    n_future: int
    is_unreadable: bool
    reason: str


class CheckedLogs:
    """The checked rows of some log files. `ingest` takes it in place of the files.

    Make one with `checked_logs`. It connects to its database when it is used, and `release` gives the memory back.
    """

    def __init__(self, path: Path, memory_limit: str, maps: Sequence[ColumnMap] = ()) -> None:
        self.memory_limit, self.maps = memory_limit, tuple(maps)
        self._path = path
        self._numbers: dict[Path, int] = {}
        self._facts: dict[Path, FileFacts] = {}
        self._db: duckdb.DuckDBPyConnection | None = None

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """A connection to the database with the table `raw`."""
        if self._db is None:
            self._db = duckdb.connect(str(self._path))
            self._db.execute(f"SET memory_limit = {quoted(self.memory_limit)}")
            self._db.execute("SET preserve_insertion_order = false")
            self._db.execute("SET TimeZone = 'UTC'")
            # It makes a join of every IN with a list, which takes longer to plan than a small log takes to read.
            self._db.execute("SET disabled_optimizers = 'in_clause'")
            create_raw(self._db)
        return self._db

    def release(self) -> None:
        """Close the connection, so that DuckDB keeps nothing in memory; the rows stay on disk."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def discard(self) -> None:
        """Close the connection where the rows are not needed again: they need not be written to disk any more."""
        if self._db is not None:
            with suppress(duckdb.Error):  # after an error that DuckDB does not survive
                self._db.execute("PRAGMA disable_checkpoint_on_shutdown")
        self.release()

    @contextmanager
    def derived(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The connection, for tables that are made from `raw`. They are dropped at the end, and memory is released."""
        db = self.connection
        db.execute("DROP SCHEMA IF EXISTS derived CASCADE; CREATE SCHEMA derived; SET search_path = 'derived,main'")
        try:
            yield db
            db.execute("SET search_path = 'main'; DROP SCHEMA derived CASCADE")
        finally:
            self.release()

    def read(self, path: Path) -> FileFacts:
        """Add the rows of a log file, and say what was found; a file that was read before is not read again."""
        if path in self._facts:
            return self._facts[path]
        number = self._numbers[path] = len(self._numbers)
        append_log(self.connection, path, number, self.maps)
        [(n_rows, n_broken, n_prompts, last, n_future, is_unreadable)] = fetch(
            self.connection,
            "SELECT count(*), count(reason), count(DISTINCT prompt_key) FILTER (reason IS NULL), "
            f"max(timestamp) FILTER (reason IS NULL), count(*) FILTER (reason = {quoted(IN_FUTURE)}), "
            f"coalesce(bool_or(is_unreadable), false) FROM raw WHERE file = {number}",
        )
        reasons = fetch(
            self.connection,
            f"SELECT reason FROM raw WHERE file = {number} AND reason IS NOT NULL "
            "GROUP BY reason ORDER BY bool_or(is_unreadable) NULLS LAST, count(*) DESC, reason LIMIT 1",
        )
        columns = [name for (name,) in fetch(self.connection, f"SELECT name FROM log_columns WHERE file = {number}")]
        problems = [error.problem for error in unreadable_labels(self.connection, number)]
        problems += [problem for problem in [reserved_problem(columns, self.maps)] if problem]
        facts = self._facts[path] = FileFacts(
            n_rows=n_rows,
            n_broken=n_broken,
            n_prompts=n_prompts,
            last_timestamp=last,
            n_future=n_future,
            is_unreadable=is_unreadable or bool(problems),
            reason=problems[0] if problems and not is_unreadable else reasons[0][0] if reasons else "",
        )
        return facts

    def remove(self, path: Path) -> None:
        """Forget the rows of a file, if it was read, so that they are in no table made from these logs."""
        if (number := self._numbers.get(path)) is None:
            return
        tables = ("raw", "incomplete", "log_columns")
        self.connection.execute("; ".join(f"DELETE FROM {name} WHERE file = {number}" for name in tables))

    def outcomes(self, path: Path, max_prompts: int) -> list[tuple[str, str, float]]:
        """Prompt, model and mean correctness (0..1) of the judged rows of a file, of at most so many prompts."""
        number = self._numbers[path]
        return fetch(
            self.connection,
            f"SELECT prompt, model, avg(correct) FROM raw WHERE file = {number} AND reason IS NULL "
            "AND correct IS NOT NULL AND prompt_key IN (SELECT DISTINCT prompt_key FROM raw "
            f"WHERE file = {number} ORDER BY 1 LIMIT {max_prompts}) GROUP BY 1, 2 ORDER BY 1, 2",
        )

    def prompt_ids(self, paths: Sequence[Path]) -> np.ndarray:
        """The prompt_ids, as an OutcomeTable has them, of the usable rows of some files; ascending, distinct."""
        numbers = [self._numbers[path] for path in paths]
        rows = fetch(
            self.connection,
            "SELECT DISTINCT sha256(prompt)[:16] FROM raw WHERE reason IS NULL "
            f"AND list_contains({numbers}::INTEGER[], file) ORDER BY 1",
        )
        return np.array([prompt_id for (prompt_id,) in rows], dtype=np.str_)
