"""The Parquet files of a log: which decisions they hold, and how rows come into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import chain
from typing import Any, TypeVar

from router.outcomes.columns import COLUMNS, day, is_of_check, row_id
from router.outcomes.days import INDEX, hashed, index_of, list_days, may_hold
from router.outcomes.storage import Files, extra

_ROWS_PER_GROUP = 16_384
"""Rows that Parquet keeps together: who looks for one decision reads no more than these."""

_Result = TypeVar("_Result")


class Partitions:
    """The files `day=<day>/attempts-<batch>.parquet`.

    put_aside: called with the name of a file that is damaged and the error; it is passed over from then on.
    """

    def __init__(self, files: Files, put_aside: Callable[[str, Exception], None]) -> None:
        self._files = files
        self._put_aside = put_aside
        self._damaged: set[str] = set()
        names = files.names()
        self._days = list_days(names)
        self._indexes = {name for name in names if name.startswith(INDEX)}

    def index(self) -> None:
        """Write the index of each day but the newest where it is missing; delete those of files that have changed.

        No file may be one of a compaction that was killed: its rows may still change.
        """
        for each in self._days[:-1]:
            if each.is_indexed:
                continue
            ids = [self._read(name, _ids) or () for name in each.names]
            if self._damaged.isdisjoint(each.names):
                self._files.write(each.index, index_of(chain.from_iterable(ids)))
        for name in self._indexes.difference(each.index for each in self._days):
            self._files.delete(name)

    def known(self, decision_ids: Set[str], dates: Set[str]) -> set[str]:
        """Which decisions have a row in the files of these days."""
        found: set[str] = set()
        for name in self._names_with(decision_ids, dates):
            found |= decision_ids & set(self._read(name, _row_ids) or ())
        return found

    def update(self, outcomes: Mapping[str, Mapping[str, Any]]) -> set[str]:
        """Join outcomes to the rows of their decisions, newest file first; the decisions that have a row.

        Each file is replaced in one step.
        """
        missing = dict(outcomes)
        for name in self._names_with(outcomes.keys()):
            if not missing:
                break
            found, content = self._read(name, lambda file: _joined(file, missing)) or (set(), b"")
            if found:
                self._files.write(name, content)
            for decision_id in found:
                del missing[decision_id]
        return outcomes.keys() - missing.keys()

    def add(self, rows: Iterable[dict[str, Any]], batch: str) -> None:
        """Write the rows of new decisions, one file per day."""
        days: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            days.setdefault(day(row["timestamp"]), []).append(row)
        for name, rows_of_day in days.items():
            names = {name for row in rows_of_day for name in row}
            table = extra("pyarrow").Table.from_pylist(rows_of_day, schema_of(names))
            self._files.write(f"day={name}/attempts-{batch}.parquet", _as_parquet(table))

    def _names_with(self, row_ids: Set[str], dates: Set[str] | None = None) -> Iterator[str]:
        """The files that may hold any of some rows, newest first. dates: of the days to look in; None means all."""
        wanted = hashed(row_ids)
        for each in reversed(self._days):
            if (dates is None or each.date in dates) and may_hold(self._files, each, wanted):
                yield from (name for name in reversed(each.names) if name not in self._damaged)

    def _read(self, name: str, read: Callable[[Any], _Result]) -> _Result | None:
        """What `read` makes of a file; None where it is damaged, and put aside.

        Errors of the machine are raised. Arrow raises OSError for damaged data too, so a file that cannot be read is
        read again into memory: what fails then is the data.
        """
        pa, parquet = extra("pyarrow"), extra("pyarrow.parquet")
        try:
            with self._files.opened(name) as file:
                return read(parquet.ParquetFile(file))
        except MemoryError:
            raise
        except Exception:
            with self._files.opened(name) as file:
                content = file.read()
        try:
            return read(parquet.ParquetFile(pa.BufferReader(content)))
        except Exception as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
                raise
            self._put_aside(name, error)
            self._damaged.add(name)
            return None


def join(row: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    """Complete the row of a decision by what became of it."""
    if outcome.get("tier", row["tier"]) != row["tier"]:
        row["propensity"] = None
    row.update(outcome)


def _ids(file: Any) -> list[str]:
    """All decision_ids and attempt_ids in a Parquet file; raises KeyError where it has no decision_id."""
    table = file.read(["decision_id", "attempt_id"])
    columns = [table["decision_id"], *(table[name] for name in table.column_names if name == "attempt_id")]
    return [each for column in columns for each in column.cast("string").drop_null().to_pylist()]


def _row_ids(file: Any) -> list[str]:
    """The row_id of each row; raises KeyError where the file has no decision_id."""
    table = file.read(["decision_id", "attempt_id"])
    decision_ids: list[str] = table["decision_id"].to_pylist()
    if "attempt_id" not in table.column_names:  # A file of an earlier version.
        return decision_ids
    attempt_ids = table["attempt_id"].to_pylist()
    return [attempt_id or decision_id for attempt_id, decision_id in zip(attempt_ids, decision_ids, strict=True)]


def _joined(file: Any, outcomes: Mapping[str, Mapping[str, Any]]) -> tuple[set[str], bytes]:
    """The rows of a Parquet file that outcomes were given for, and the file with these outcomes, these rows last."""
    found = outcomes.keys() & set(_row_ids(file))
    if not found:
        return set(), b""
    return found, _as_parquet(with_outcomes(file.read(), {each: outcomes[each] for each in found}))


def with_outcomes(table: Any, outcomes: Mapping[str, Mapping[str, Any]]) -> Any:
    """A table of the log with outcomes joined to its rows; the rows that have one come last.

    outcomes: by row_id. Only the rows that have one become Python objects.
    """
    pa, compute = extra("pyarrow"), extra("pyarrow.compute")
    table = with_all_columns(table, {name for outcome in outcomes.values() for name in outcome})
    row_ids = compute.coalesce(table["attempt_id"], table["decision_id"])
    mask = compute.is_in(row_ids, value_set=pa.array(list(outcomes), "string"))
    rows = table.filter(mask).to_pylist()
    for row in rows:
        join(row, outcomes[row_id(row)])
    others = table.filter(compute.invert(mask))
    return pa.concat_tables([others, pa.Table.from_pylist(rows, table.schema)])


def with_all_columns(table: Any, names: Set[str]) -> Any:
    """The table in the schema of the log with all columns of checks: a file of an earlier version lacks columns.

    names: of columns that rows are about to get.
    """
    has = set(table.column_names)
    pa, schema = extra("pyarrow"), schema_of(has | names)
    columns = [table[name] if name in has else pa.nulls(len(table), schema.field(name).type) for name in schema.names]
    return pa.table(columns, names=schema.names).cast(schema)


def schema_of(names: Set[str]) -> Any:
    """The schema of the log, with the columns of checks that are among these names."""
    pa = extra("pyarrow")
    checks = dict.fromkeys(sorted(filter(is_of_check, names)), "double")
    return pa.schema([*{**COLUMNS, "timestamp": pa.timestamp("us", "UTC"), **checks}.items()])


def _as_parquet(table: Any) -> bytes:
    sink = extra("pyarrow").BufferOutputStream()
    extra("pyarrow.parquet").write_table(table, sink, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    content: bytes = sink.getvalue().to_pybytes()
    return content
