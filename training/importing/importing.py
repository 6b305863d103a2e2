"""`broker import`: reads the files of others, writes an outcome log, and says what it took and what it left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from router.files import replacing
from router.prompt import valid_unicode
from training.errors import LogError
from training.importing import benchmarks, gateways
from training.importing.records import records_of
from training.importing.row import Adapter, LeftOut, Record, Row, asked, number, parsed, time_of
from training.log.columns import KNOWN_COLUMNS, ColumnMap, check_of, likely_maps, parse_maps
from training.log.readers import columns_of_records
from training.log.rows import fetch


def other() -> Adapter:
    """Files of any other kind: columns that have the names of the log format are taken, all else by maps."""
    return Adapter(rows=lambda record: [{name: record[name] for name in KNOWN_COLUMNS if name in record}])


KINDS: Mapping[str, Callable[[], Adapter]] = {
    "openai": gateways.openai,
    "litellm": gateways.litellm,
    "langfuse": gateways.langfuse,
    "helicone": gateways.helicone,
    "openrouter": gateways.openrouter,
    "routerbench": benchmarks.routerbench,
    "sprout": benchmarks.sprout,
    "llmrouterbench": benchmarks.llmrouterbench,
    "routellm": benchmarks.routellm,
    "other": other,
}
"""What `import_log` reads, by name."""

_TYPES = {
    "correct": pa.float64(), "input_tokens": pa.int64(), "output_tokens": pa.int64(), "cost_usd": pa.float64(),
    "latency_ms": pa.float64(), "timestamp": pa.timestamp("us", "UTC"), "propensity": pa.float64(),
    "parsed": pa.bool_(), "usd_per_mtok_input": pa.float64(), "usd_per_mtok_output": pa.float64(),
    "cache_hit": pa.bool_(), "tokens_estimated": pa.bool_(), "cached_input_tokens": pa.int64(),
    "cache_write_tokens": pa.int64(), "reasoning_tokens": pa.int64(),
}  # fmt: skip
_BATCH = 1_000
_MAX_NAMED = 5


@dataclass(frozen=True)
class Imported:
    """What became of some files.

    n_read: entries that were read. n_taken: rows written; a wide table gives several for each entry.
    n_judged: those of them with `correct`. left_out: how many entries or parts of entries were not taken, by reason.
    columns: of the files. unused: columns that may be what the log lacks, by the column of the log format.
    """

    out: str
    n_read: int
    n_taken: int
    n_judged: int
    left_out: dict[str, int]
    columns: tuple[str, ...]
    unused: dict[str, list[str]]

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.n_taken:,} rows from {self.n_read:,} entries, {self.n_judged:,} of them judged"]
        lines += [f"left out: {reason} ({count:,})" for reason, count in self.left_out.items()]
        lines += [
            f"no row has {target}: perhaps --map {target}={found[0]}"
            + (f" (or {', '.join(found[1:_MAX_NAMED])})" if found[1:] else "")
            for target, found in self.unused.items()
        ]
        if not self.n_judged and "correct" not in self.unused:
            lines.append(
                "no row says whether the answer was right: name the column that does with --map correct=COLUMN, for "
                "example correct=grade:pass or correct=score/5"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """What `broker import --json` prints."""
        return asdict(self)


def import_log(kind: str, files: Sequence[Path], out: Path, maps: Sequence[str] = ()) -> Imported:
    """Read files of a kind (see KINDS) and write them as an outcome log in Parquet, complete or not at all.

    maps: columns that are made from others, as in data/README.md; they go before what the kind says.
    Raises LogError where a file cannot be read, no row can be taken, or no entry has what a map names;
    MapError; OSError.
    """
    made = parse_maps(maps)
    adapter = KINDS[kind]()
    counts: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    columns: dict[str, None] = {}
    names = [*KNOWN_COLUMNS, *(target.target for target in made if check_of(target.target))]
    schema = pa.schema([(name, _TYPES.get(name, pa.float64() if check_of(name) else pa.string())) for name in names])
    filled: Counter[str] = Counter()
    with replacing(out) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        entries = _entries(adapter, files, counts, left_out)
        while records := list(islice(entries, _BATCH)):
            columns |= dict.fromkeys(columns_of_records(records))
            rows = [row for row in _rows(adapter, records, made) if _counted(row, left_out)]
            filled.update(name for row in rows for name, value in row.items() if value is not None)
            writer.write_table(pa.Table.from_pylist(rows, schema))
            counts["taken"] += len(rows)
        imported = Imported(
            out=str(out),
            n_read=counts["read"],
            n_taken=counts["taken"],
            n_judged=filled["correct"],
            left_out=dict(left_out.most_common()),
            columns=tuple(columns),
            unused=likely_maps(columns, [name for name in KNOWN_COLUMNS if not filled[name]]),
        )
        _refuse(imported, files, made)
    return imported


def _refuse(imported: Imported, files: Sequence[Path], maps: Sequence[ColumnMap]) -> None:
    """Raises LogError where no entry has what a map names, or no row was taken."""
    found = f"found the columns {', '.join(imported.columns[:30]) or 'none'}"
    if missing := [made.source for made in maps if not made.is_in(imported.columns)]:
        raise LogError(f"no entry has {', '.join(missing)}, which --map names; {found}")
    if not imported.n_taken:
        why = "; ".join(f"{reason} ({count:,})" for reason, count in imported.left_out.items()) or "no entry at all"
        guesses = ", ".join(f"--map {target}={names[0]}" for target, names in imported.unused.items())
        perhaps = f"; perhaps {guesses}" if guesses else ""
        raise LogError(f"{', '.join(map(str, files))}: no row can be taken: {why}; {found}{perhaps}")


def _entries(adapter: Adapter, files: Iterable[Path], counts: Counter[str], left_out: Counter[str]) -> Iterator[Record]:
    for path in files:
        for record in records_of(path):
            for entry in [record] if isinstance(record, LeftOut) else adapter.expand(record):
                counts["read"] += 1
                if isinstance(entry, LeftOut):
                    left_out[entry.reason] += 1
                else:
                    yield entry


def _counted(row: Row | LeftOut, left_out: Counter[str]) -> bool:
    if isinstance(row, LeftOut):
        left_out[row.reason] += 1
    return not isinstance(row, LeftOut)


def _rows(adapter: Adapter, records: Sequence[Record], maps: Sequence[ColumnMap]) -> Iterator[Any]:
    for record, values in zip(records, _mapped(records, maps), strict=True):
        for row in adapter.rows(record):
            yield row if isinstance(row, LeftOut) else _checked({**row, **values})


def _mapped(records: Sequence[Record], maps: Sequence[ColumnMap]) -> list[Row]:
    """The columns that maps make of some entries."""
    if not maps:
        return [{}] * len(records)
    outer = {made.source.partition(".")[0] for made in maps if "." in made.source}
    opened = [{name: parsed(value) if name in outer else value for name, value in record.items()} for record in records]
    lines = pa.table({"line": [valid_unicode(json.dumps(record, default=str)) for record in opened]})
    sources = [f"coalesce({', '.join(f'(line ->> {pointer})' for pointer in made.pointers)})" for made in maps]
    with duckdb.connect() as db:
        db.register("lines", lines)
        found = fetch(db, f"SELECT {', '.join(map(ColumnMap.sql, maps, sources))} FROM lines")
    rows: list[Row] = []
    for values in found:
        row = {made.target: value for made, value in zip(maps, values, strict=True)}
        chat = asked(row.pop("prompt", None)) | asked(row.pop("messages", None))
        rows.append({**row, **chat})
    return rows


def _checked(row: Row) -> Row | LeftOut:
    """The row with values of its columns' types, or why it cannot be taken."""
    found = {name: _typed(name, value) for name, value in row.items() if value is not None and value != ""}
    if not found.get("model"):
        return LeftOut("no model")
    if not any(found.get(name) for name in ("prompt", "messages", "prompt_id")) and not found.get("ended"):
        return LeftOut(gateways.NO_CHAT)
    for name in ("correct", *(name for name in found if check_of(name) and not name.endswith("_usd"))):
        if name in found and not (found[name] is not None and 0 <= found[name] <= 1):
            return LeftOut(f"{name} is not true, false or a number in 0..1, for example {str(row[name])[:40]}")
    return found


_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _typed(name: str, value: Any) -> Any:
    kind = pa.float64() if check_of(name) else _TYPES.get(name, pa.string())
    if pa.types.is_string(kind):
        is_nested = isinstance(value, list | dict)
        return valid_unicode(json.dumps(value, ensure_ascii=False, default=str) if is_nested else str(value))
    if pa.types.is_timestamp(kind):
        return time_of(value)
    if pa.types.is_boolean(kind):
        return _TRUTH.get(str(value).lower())
    truth = _TRUTH.get(str(value).lower())
    amount = float(truth) if truth is not None else number(value)
    if amount is None or not pa.types.is_integer(kind):
        return amount
    return round(amount) if 0 <= amount <= 1e12 else None
