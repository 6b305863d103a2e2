"""A log written to one file, in the format of data/README.md."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from router.errors import OutcomeLogError
from router.files import replacing
from router.outcomes.reading import LogReader
from router.outcomes.storage import extra

FORMATS = (".parquet", ".jsonl", ".csv")
"""How the name of the file may end, which says what is written."""

_ROWS_AT_ONCE = 10_000


def export(reader: LogReader, out: Path, *, since: datetime | None = None, until: datetime | None = None) -> int:
    """Write the rows of a time, from `since` on and before `until`; returns how many. The file is whole or not there.

    Raises OutcomeLogError where the name of `out` ends in none of FORMATS, OSError where it cannot be written, and
    ImportError without pyarrow.
    """
    if out.suffix not in FORMATS:
        raise OutcomeLogError(f"{out}: the name ends in {out.suffix or 'nothing'}; expected {', '.join(FORMATS)}")
    table = reader.table(since=since, until=until)
    with replacing(out) as unfinished:
        if out.suffix == ".parquet":
            extra("pyarrow.parquet").write_table(table, unfinished, compression="zstd")
        elif out.suffix == ".csv":
            extra("pyarrow.csv").write_csv(table, unfinished)
        else:
            _write_jsonl(table, unfinished)
    return len(table)


def _write_jsonl(table: Any, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for batch in table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                known = {name: value for name, value in row.items() if value is not None}
                known["timestamp"] = row["timestamp"].isoformat()
                file.write(json.dumps(known, ensure_ascii=False) + "\n")
