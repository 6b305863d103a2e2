"""Whose fault an error is: that of a file's content, or that of the machine that reads it."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

_OF_DUCKDB = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.InternalException)
_CHUNK_BYTES = 2**20


def of_machine(error: BaseException) -> bool:
    """Whether the machine fails: no room on the disk or in memory, no right to read, no open file left.

    Arrow raises OSError for damaged content as well, but then without an error number of the system. DuckDB raises
    IOException for both; it counts as the machine's, unless `is_damaged` finds otherwise.
    """
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, (MemoryError, *_OF_DUCKDB))


def is_damaged(path: Path | None, error: Exception) -> bool:
    """Whether an error that came up while a log was read is the fault of its content. path: None for a DataFrame.

    Where the error does not tell, the file is read once more by someone who writes nothing.
    Raises OSError or MemoryError where the machine fails meanwhile.
    """
    if path is None or not isinstance(error, duckdb.IOException):
        return not of_machine(error)
    try:
        if path.suffix.lower() == ".parquet":
            for _ in pq.ParquetFile(path).iter_batches():
                pass
        else:
            with pa.input_stream(str(path), compression="detect") as stream:
                while stream.read(_CHUNK_BYTES):
                    pass
    except (OSError, pa.ArrowException) as found:
        if of_machine(found):
            raise
        return True
    return False
