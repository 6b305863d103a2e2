"""What a log says at this moment: its Parquet files, and the lines of the journals that are not compacted yet.

Reading needs no lock and changes nothing. A compaction that finishes meanwhile changes the state file, and then what
was read is read again. One that is still under way may have written rows or outcomes that the journals have too:
joining them twice changes nothing, and a row that is in Parquet counts once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from os import SEEK_END
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from router.outcomes.columns import (
    COLUMNS,
    day,
    given_by_outcome,
    is_of_check,
    microseconds,
    moment,
    row_id,
)
from router.outcomes.compaction import STATE, joined_outcomes, journal_names
from router.outcomes.days import hashed, list_days, may_hold
from router.outcomes.events import DATA_ERRORS, Lines, read_events, read_outcome
from router.outcomes.partitions import (
    join,
    schema_of,
    with_all_columns,
    with_outcomes,
)
from router.outcomes.storage import Files, extra, files_at

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_MOST_TRIES = 100

_MOST_IDS = 1_000_000
"""So many ids of compacted rows are kept in memory, about 36 bytes each."""

_Rows = dict[str, dict[str, Any]]

_ALWAYS = ("decision_id", "attempt_id", "timestamp", "tier", "propensity")
"""Columns that are read whatever is asked for: rows are told apart, and outcomes joined, by them."""


@dataclass(frozen=True)
class LoggedDecision:
    """What a log has under one id.

    rows: of the decision, its own first, then those of attempts beside it; or the one row of an attempt_id. Empty
        where the log has no such decision (yet).
    waiting: what an outcome said of it that still waits for the decision; empty where none waits.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    waiting: Mapping[str, Any] = field(default_factory=dict)


class LogReader:
    """Reads an outcome log while others write and compact it.

    path: a folder or an fsspec URL, as of OutcomeLog. A log that is not there yet is empty.
    """

    def __init__(self, path: str | Path) -> None:
        self._files = files_at(path)
        self._ids: dict[str, Any] = {}
        self._one_at_a_time = Lock()

    def find(self, wanted: str) -> LoggedDecision:
        """All that the log has of a decision, by its decision_id; or of an attempt, by its attempt_id.

        Raises ImportError without pyarrow, where a part of the log is compacted.
        """
        return self._undisturbed(lambda: self._find(wanted))

    def table(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        columns: Collection[str] | None = None,
    ) -> Any:
        """The rows from a time on (included), and before another, as a pyarrow.Table; times without a zone are UTC.

        columns: which ones are read, besides those that name a row; None reads all. `check_*` stands for what all
            checks said and cost.
        Raises ImportError without pyarrow.
        """
        first = None if since is None else microseconds(since)
        end = None if until is None else microseconds(until)
        return self._undisturbed(lambda: self._table(first, end, columns))

    def pending_bytes(self) -> int:
        """How much of the journals is not compacted yet, in bytes: what every reading has to look through."""

        def count() -> int:
            read, _ = _state(self._state_text())
            return sum(_size(self._files, name) - read.get(name, 0) for name in journal_names(self._files))

        return self._undisturbed(count)

    def _undisturbed(self, read: Callable[[], _Result]) -> _Result:
        """What `read` returns, read again where a compaction has finished or has deleted what is read meanwhile."""
        for _ in range(_MOST_TRIES):
            before = self._state_text()
            try:
                found = read()
            except FileNotFoundError:  # It was there when the names were listed.
                continue
            if self._state_text() == before:
                return found
        return read()

    def _state_text(self) -> bytes:
        try:
            with self._files.opened(STATE) as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def _pending(self, wanted: Collection[str] | None) -> tuple[_Rows, _Rows]:
        """Rows and outcomes that are not in Parquet yet, by row_id. wanted: only lines in which one of these stands."""
        read, orphans = _state(self._state_text())
        events = read_events(list(_pending_lines(self._files, read, wanted)))
        if events.unreadable:
            first = events.unreadable[0]
            logger.warning(
                "%d lines of the outcome log cannot be read and are left out; the first, of %s: %s",
                len(events.unreadable), first["file"], first["reason"],
            )  # fmt: skip
        return events.attempts, joined_outcomes(orphans, events.outcomes)

    def _find(self, wanted: str) -> LoggedDecision:
        attempts, outcomes = self._pending([wanted])
        rows = {key: row for key, row in attempts.items() if wanted in (key, row["decision_id"])}
        rows |= {row_id(row): row for row in self._compacted(wanted)}
        if others := rows.keys() - {wanted}:
            outcomes |= self._pending(others)[1]
        waiting = {} if wanted in rows else outcomes.get(wanted, {})
        for key in rows.keys() & outcomes.keys():
            join(rows[key], outcomes[key])
        own_first = sorted(rows.values(), key=lambda row: (row.get("attempt_id") is not None, row_id(row)))
        return LoggedDecision(rows=[_whole(row) for row in own_first], waiting=given_by_outcome(waiting))

    def _compacted(self, wanted: str) -> list[dict[str, Any]]:
        """The rows of a decision, or of an attempt, in the Parquet files, which are searched from the newest on."""
        rows: list[dict[str, Any]] = []
        for each in reversed(list_days(self._files.names())):
            if not may_hold(self._files, each, hashed([wanted])):
                continue
            for name in reversed(each.names):
                if self._has(name, wanted):
                    rows += self._read(name, lambda file: _rows_of(file, wanted)) or []
            if any(row["attempt_id"] in (None, wanted) for row in rows):
                break  # Attempts are made after the decision, so older days have none.
        return rows

    def _has(self, name: str, wanted: str) -> bool:
        """Whether an id stands in a Parquet file. The ids of a file never change, so they are kept for the next time.

        Those of the newest days are kept, up to _MOST_IDS: outcomes mostly come soon.
        """
        with self._one_at_a_time:
            ids = self._ids.get(name)
            if ids is None:
                if (ids := self._read(name, _ids_of)) is None:
                    return False
                self._ids[name] = ids
                while sum(map(len, self._ids.values())) > _MOST_IDS:
                    del self._ids[min(self._ids)]
        return bool(extra("pyarrow.compute").index(ids, wanted).as_py() >= 0)

    def _table(self, first: int | None, end: int | None, columns: Collection[str] | None) -> Any:
        pa = extra("pyarrow")
        attempts, outcomes = self._pending(None)
        wanted = None if columns is None else {*_ALWAYS, *columns}
        tables = [
            table
            for each in list_days(self._files.names())
            if (first is None or each.date >= day(first)) and (end is None or each.date <= day(end))
            for name in each.names
            if (table := self._read(name, lambda file: _columns_of(file, wanted))) is not None
        ]
        known = {key for table in tables for key in _ids_among(table, attempts)}  # A compaction is still under way.
        new = [row for key, row in attempts.items() if key not in known]
        for row in new:
            join(row, outcomes.pop(row_id(row), {}))
        names = {name for table in tables for name in table.column_names}.union(*outcomes.values(), *new)
        tables = [with_all_columns(table, names) for table in tables]
        table = pa.concat_tables([*tables, pa.Table.from_pylist(new, schema_of(names))])
        if outcomes:
            table = with_outcomes(table, outcomes)
        table = _between(table, first, end)
        return table if wanted is None else table.select([name for name in table.column_names if _is_in(name, wanted)])

    def _read(self, name: str, read: Callable[[Any], _Result]) -> _Result | None:
        """What `read` makes of a Parquet file; None where it is damaged: the next compaction puts it aside."""
        with self._files.opened(name) as opened:
            try:
                return read(extra("pyarrow.parquet").ParquetFile(opened))
            except (OSError, ValueError) as error:  # Arrow raises both for damaged data.
                if getattr(error, "errno", None) is not None:
                    raise
                logger.warning("%s is damaged and left out: %s", name, error)
                return None


def _state(text: bytes) -> tuple[dict[str, int], _Rows]:
    """How far each journal is in Parquet, and the outcomes that wait, by decision_id; what is damaged is left out."""
    orphans = {}
    try:
        state = json.loads(text or "{}")
        read, waiting = dict(state.get("read", {})), dict(state.get("orphans", {}))
    except DATA_ERRORS:  # The next compaction puts it aside.
        return {}, {}
    for decision_id, outcome in waiting.items():
        try:
            orphans[decision_id] = read_outcome(outcome)
        except DATA_ERRORS:
            logger.warning("an outcome that waits for decision %.40s is damaged", decision_id)
    return read, orphans


def _pending_lines(files: Files, read: Mapping[str, int], wanted: Collection[str] | None) -> Iterator[Lines]:
    """The whole lines of each journal beyond what is in Parquet. wanted: only those in which one of these stands."""
    needles = None if wanted is None else [json.dumps(each, ensure_ascii=False)[1:-1].encode() for each in wanted]
    for name in journal_names(files):
        start = read.get(name, 0)
        with files.opened(name) as file:
            file.seek(start)
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        lines = content.split(b"\n")[:-1] if needles is None else _lines_with(content, needles)
        yield Lines(journal=name, start=start, lines=lines)


def _size(files: Files, name: str) -> int:
    with files.opened(name) as file:
        return file.seek(0, SEEK_END)


def _lines_with(content: bytes, needles: Iterable[bytes]) -> list[bytes]:
    """The lines in which one of some texts stands, in order. To search is much faster than to read each line."""
    found: dict[int, bytes] = {}
    for needle in needles:
        at = content.find(needle)
        while at >= 0:
            start, end = content.rfind(b"\n", 0, at) + 1, content.index(b"\n", at)
            found[start] = content[start:end]
            at = content.find(needle, end)
    return [found[start] for start in sorted(found)]


def _ids_of(file: Any) -> Any:
    """All decision_ids and attempt_ids in a Parquet file."""
    pa = extra("pyarrow")
    table = file.read([name for name in ("decision_id", "attempt_id") if name in file.schema_arrow.names])
    chunks = [chunk.drop_null() for column in table.columns for chunk in column.chunks]
    return pa.chunked_array(chunks, "string").unique()


def _rows_of(file: Any, wanted: str) -> list[dict[str, Any]]:
    """The rows of a decision, or of an attempt, in a Parquet file, of which only the row groups with it are read."""
    compute = extra("pyarrow.compute")
    rows: list[dict[str, Any]] = []
    ids = [name for name in ("decision_id", "attempt_id") if name in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        keys = file.read_row_group(group, ids)
        if any(compute.index(keys[name], wanted).as_py() >= 0 for name in ids):
            table = with_all_columns(file.read_row_group(group), set())
            is_own, is_attempt = (compute.equal(table[name], wanted) for name in ("decision_id", "attempt_id"))
            rows += table.filter(compute.or_kleene(is_own, is_attempt)).to_pylist()
    return rows


def _columns_of(file: Any, wanted: Collection[str] | None) -> Any:
    names = None if wanted is None else [name for name in file.schema_arrow.names if _is_in(name, wanted)]
    return file.read(names)


def _is_in(name: str, wanted: Collection[str]) -> bool:
    return name in wanted or ("check_*" in wanted and is_of_check(name))


def _ids_among(table: Any, row_ids: Collection[str]) -> list[str]:
    """Which of some row_ids the table has."""
    if not row_ids:
        return []
    pa, compute = extra("pyarrow"), extra("pyarrow.compute")
    found = table["decision_id"]
    if "attempt_id" in table.column_names:
        found = compute.coalesce(table["attempt_id"], found)
    among: list[str] = found.filter(compute.is_in(found, value_set=pa.array(list(row_ids), "string"))).to_pylist()
    return among


def _between(table: Any, first: int | None, end: int | None) -> Any:
    """The rows of a time, in microseconds since 1970: the first is included, the end is not."""
    compute = extra("pyarrow.compute")
    if first is not None:
        table = table.filter(compute.greater_equal(table["timestamp"].cast("int64"), first))
    if end is not None:
        table = table.filter(compute.less(table["timestamp"].cast("int64"), end))
    return table


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all columns, the time as a datetime in UTC, and without what only the journals have."""
    at = row["timestamp"]
    checks = {name: value for name, value in row.items() if is_of_check(name)}
    whole = {**{name: row.get(name) for name in COLUMNS}, **checks}
    return {**whole, "timestamp": moment(at) if isinstance(at, int) else at}
