"""Compaction: the journals of all processes become Parquet, one row per decision, joined with its outcome.

A row lives in one file from the first compaction that sees it; later outcomes replace that file in one step. The
state names the batch that comes next, and is replaced when all files of that batch are written. So the next
compaction knows what a killed one has left: it removes these files, whose lines the journals still have, and begins
again. No row is lost, and none is there twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from router.files import UNFINISHED
from router.outcomes.storage import JOURNALS, Files, extra

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STATE = JOURNALS + "state.json"
_BATCH_BYTES = 64 * 1024 * 1024
_ORPHAN_AGE_US = 7 * 24 * 3600 * 1_000_000
_OF_THE_DECISION = ("decision_id", "request_id", "propensity", "tier", "bundle_id", "price_table_id")
_COLUMNS = {
    "prompt": "string", "prompt_id": "string", "model": "string", "provider": "string", "correct": "double",
    "input_tokens": "int64", "output_tokens": "int64", "cached_input_tokens": "int64", "cache_write_tokens": "int64",
    "reasoning_tokens": "int64", "tokens_estimated": "bool", "cache_hit": "bool", "cost_usd": "double",
    "latency_ms": "double", "propensity": "double", "request_id": "string", "decision_id": "string", "tier": "string",
    "bundle_id": "string", "price_table_id": "string", "decision": "string",
}  # fmt: skip


@dataclass(frozen=True)
class Compaction:
    """What one compaction brought into Parquet.

    attempts: new rows.
    outcomes: rows, new or old, that outcomes were joined to.
    orphans: outcomes whose decision is not in the log; they are kept for a week, in case it comes.
    unreadable: lines that are no decision and no outcome; a machine that loses power may leave some.
    """

    attempts: int = 0
    outcomes: int = 0
    orphans: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class _State:
    """What the Parquet files hold, and the name of the batch that comes next.

    read: bytes of each journal that are in Parquet. orphans: outcomes by decision_id, each with `at`.
    """

    batch: str
    read: Mapping[str, int]
    orphans: Mapping[str, dict[str, Any]]


def compact(files: Files) -> Compaction:
    """Bring all that the journals hold into Parquet, batch by batch; `files.alone()` must hold."""
    total, has_more = Compaction(), True
    while has_more:
        done, has_more = _compact_batch(files)
        total = Compaction(
            attempts=total.attempts + done.attempts,
            outcomes=total.outcomes + done.outcomes,
            orphans=done.orphans,
            unreadable=total.unreadable + done.unreadable,
        )
    return total


def _compact_batch(files: Files) -> tuple[Compaction, bool]:
    """Bring one batch of lines into Parquet; what was done, and whether there may be more."""
    state = _begun(files)
    names = files.names()
    journals = [name for name in names if name.startswith(JOURNALS) and name.endswith(".jsonl")]
    partitions = [name for name in names if name.startswith("day=") and "/attempts-" in name]
    lines, read, finished, has_more = _new_lines(files, journals, state.read)
    attempts, outcomes, n_unreadable = _events(lines)
    waiting = _joined(state.orphans, outcomes)
    n_waiting = len(waiting)
    for decision_id in attempts.keys() & waiting.keys():
        _join(attempts[decision_id], waiting.pop(decision_id))
    for name in reversed(partitions):
        if new := {decision_id: waiting[decision_id] for decision_id, _ in outcomes if decision_id in waiting}:
            for decision_id in _update_partition(files, name, new):
                del waiting[decision_id]
    days: dict[str, list[dict[str, Any]]] = {}
    for row in attempts.values():
        days.setdefault(str((EPOCH + timedelta(microseconds=row["timestamp"])).date()), []).append(row)
    for day, rows in days.items():
        _write_rows(files, f"day={day}/attempts-{state.batch}.parquet", rows)
    n_joined = n_waiting - len(waiting)
    orphans = _young(waiting)
    if read != state.read:
        _write_state(files, _State(batch=uuid4().hex, read=read, orphans=orphans))
    for name in finished:
        files.delete(name)
    done = Compaction(attempts=len(attempts), outcomes=n_joined, orphans=len(orphans), unreadable=n_unreadable)
    return done, has_more


def _begun(files: Files) -> _State:
    """The state to go on from. Deletes what a killed compaction wrote after it, since the journals still have it."""
    names = files.names()
    if _STATE not in names:
        _write_state(files, _State(batch=uuid4().hex, read={}, orphans={}))
    with files.opened(_STATE) as file:
        state = _State(**json.loads(file.read()))
    for name in names:
        if name.endswith(f"/attempts-{state.batch}.parquet") or f"/{UNFINISHED}" in name:
            files.delete(name)
    return state


def _write_state(files: Files, state: _State) -> None:
    files.write(_STATE, json.dumps(vars(state)).encode())


def _young(orphans: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Orphans that may still find their decision."""
    oldest = time.time_ns() // 1000 - _ORPHAN_AGE_US
    young = {decision_id: outcome for decision_id, outcome in orphans.items() if outcome["at"] >= oldest}
    if len(young) < len(orphans):
        logger.warning("%d outcomes dropped: their decisions did not come in a week", len(orphans) - len(young))
    return young


def _new_lines(
    files: Files, journals: list[str], read: Mapping[str, int]
) -> tuple[list[list[bytes]], dict[str, int], list[str], bool]:
    """Whole lines beyond what was read, by journal; what is read then; journals at their end; whether there is more."""
    lines: list[list[bytes]] = []
    ends: dict[str, int] = {}
    finished: list[str] = []
    n_bytes, has_more = 0, False
    for name in journals:
        start = ends[name] = read.get(name, 0)
        if n_bytes >= _BATCH_BYTES:
            has_more = True
            continue
        is_closed = files.is_closed(name)  # Asked before reading, so that no line can follow.
        with files.opened(name) as file:
            file.seek(start)
            content = file.read(_BATCH_BYTES) + file.readline()
        whole = content.rfind(b"\n") + 1
        lines.append(content[:whole].split(b"\n")[:-1])
        ends[name] += whole
        n_bytes += len(content)
        if len(content) >= _BATCH_BYTES and whole:
            has_more = True
        elif is_closed:  # A last line that was cut short goes with it: nobody was told that it was taken.
            finished.append(name)
    return lines, ends, finished, has_more


def _events(journals: list[list[bytes]]) -> tuple[dict[str, dict[str, Any]], list[tuple[str, dict[str, Any]]], int]:
    """New attempts by decision_id; outcomes, each with the id of its decision; the number of unreadable lines."""
    attempts: dict[str, dict[str, Any]] = {}
    outcomes: list[tuple[str, dict[str, Any]]] = []
    unreadable = 0
    for lines in journals:
        latest = 0
        for line in lines:
            try:
                event = json.loads(line)
                if "outcome_of" in event:
                    event["at"] = latest = max(event["at"], latest)  # Lines are in order, clocks may not be.
                    outcomes.append((event.pop("outcome_of"), event))
                else:
                    attempt = _attempt(event)
                    attempts[attempt["decision_id"]] = attempt
            except (ValueError, TypeError, KeyError, AttributeError):
                unreadable += 1
    return attempts, outcomes, unreadable


def _joined(
    orphans: Mapping[str, dict[str, Any]], outcomes: list[tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """One outcome per decision: of each field the latest value."""
    joined: dict[str, dict[str, Any]] = {}
    for decision_id, outcome in sorted([*orphans.items(), *outcomes], key=lambda pair: pair[1]["at"]):
        joined.setdefault(decision_id, {}).update(outcome)
    return joined


def _join(row: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    """Complete the row of a decision by what became of it."""
    if outcome.get("tier", row["tier"]) != row["tier"]:
        row["propensity"] = None
    row.update(outcome)


def _update_partition(files: Files, name: str, outcomes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Join outcomes to the rows of a Parquet file; the decisions that were there."""
    parquet = extra("pyarrow.parquet")
    with files.opened(name) as file:
        table = parquet.ParquetFile(file)
        found = outcomes.keys() & set(table.read(["decision_id"])["decision_id"].to_pylist())
        rows = table.read().to_pylist() if found else []
    for row in rows:
        _join(row, outcomes.get(row["decision_id"], {}))
    if rows:
        _write_rows(files, name, rows)
    return found


def _write_rows(files: Files, name: str, rows: list[dict[str, Any]]) -> None:
    pa, parquet = extra("pyarrow"), extra("pyarrow.parquet")
    schema = pa.schema([*_COLUMNS.items(), ("timestamp", pa.timestamp("us", "UTC"))])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    files.write(name, sink.getvalue().to_pybytes())


def _attempt(event: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a decision whose outcome is not known yet."""
    decision = event["decision"]
    offer = decision["offer"] or {}
    return {
        "prompt": event["prompt"],
        "prompt_id": event["prompt_id"],
        "model": offer.get("model"),
        "provider": offer.get("provider"),
        "timestamp": event["at"],
        "decision": json.dumps(decision, ensure_ascii=False),
        **{name: decision[name] for name in _OF_THE_DECISION},
    }
