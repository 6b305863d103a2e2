"""Why a log is refused as a whole, in words that say what was found and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np

from training.errors import LabelError, LogError
from training.log.columns import RESERVED_CHECK, ColumnMap, hints, not_used, reserved_columns
from training.log.rows import fetch
from training.log.table import IngestSummary, OutcomeTable

MIN_SHARE_UNREADABLE = 0.01
MIN_UNREADABLE = 5
"""Outcomes that cannot be read refuse a log where they are at least this share and this number, or more than half."""

_MAX_NAMED = 5
_MAX_COLUMNS = 30


def found_columns(db: duckdb.DuckDBPyConnection, maps: Sequence[ColumnMap]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of all columns of the logs, sorted; and those of `not_used`, each judged within its own log."""
    logs: dict[int, list[str]] = {}
    for number, name in fetch(db, "SELECT file, name FROM log_columns ORDER BY ALL"):
        logs.setdefault(number, []).append(name)
    near = {name: meant for names in logs.values() for name, meant in not_used(names, maps).items()}
    return tuple(sorted({name for names in logs.values() for name in names})), dict(sorted(near.items()))


def refuse_missing_sources(columns: Sequence[str], maps: Sequence[ColumnMap]) -> None:
    """Raises LogError where a map's source is in no log. columns: of all logs."""
    if columns and (missing := sorted({made.source for made in maps if not made.is_in(columns)})):
        raise LogError(f"no log has the column {', '.join(missing)} that --map names; {_columns_found(columns)}")


def refuse_reserved_columns(columns: Sequence[str], maps: Sequence[ColumnMap]) -> None:
    """Raises LogError where a column has the reserved check's name. columns: of all logs."""
    if problem := reserved_problem(columns, maps):
        raise LogError(problem)


def reserved_problem(columns: Sequence[str], maps: Sequence[ColumnMap]) -> str:
    """What is wrong with columns that have the reserved check's name, and what to do; "" where there are none."""
    found = reserved_columns(columns, maps)
    if not found:
        return ""
    return (
        f"found the column {found[0]}: no check can be called {RESERVED_CHECK}, which compares the answers of two "
        f"tiers; use another name, for example --map check_same={found[0]}"
    )


def unreadable_labels(db: duckdb.DuckDBPyConnection, number: int | None = None) -> list[LabelError]:
    """The logs whose outcomes cannot be read in a real share of their rows. number: of the only log to look at."""
    only = "" if number is None else f"WHERE file = {number}"
    counts = fetch(
        db,
        "SELECT file, max(source) FILTER (label IS NOT NULL), count(label), count(coalesce(label, correct::VARCHAR)) "
        f"FROM raw {only} GROUP BY 1 HAVING count(label) > 0 ORDER BY 1",
    )
    found = []
    for file, source, n_unreadable, n_labelled in counts:
        is_many = n_unreadable >= max(MIN_UNREADABLE, MIN_SHARE_UNREADABLE * n_labelled)
        if is_many or 2 * n_unreadable > n_labelled:
            values = fetch(
                db,
                f"SELECT label, count(*) FROM raw WHERE file = {file} AND label IS NOT NULL "
                f"GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MAX_NAMED}",
            )
            found.append(LabelError(source, dict(values), n_unreadable, n_labelled))
    return found


def refuse_unreadable_labels(db: duckdb.DuckDBPyConnection) -> None:
    """Raises LabelError where the outcomes of a log are on another scale."""
    if found := unreadable_labels(db):
        raise found[0]


def refuse_unusable_log(
    db: duckdb.DuckDBPyConnection,
    columns: Sequence[str],
    near: Mapping[str, str],
    maps: Sequence[ColumnMap],
    quarantine: Path | None,
) -> None:
    """Raises LogError where every row is broken.

    columns, near: of `found_columns`. quarantine: the file that has the broken rows, or None.
    """
    [(n_good,)] = fetch(db, "SELECT count(*) FILTER (reason IS NULL) FROM raw")
    if n_good:
        return
    examples = fetch(
        db,
        "SELECT source || ': ' || reason || CASE WHEN count(*) > 1 THEN ' (' || count(*) || ' rows)' ELSE '' END "
        "FROM raw GROUP BY source, reason ORDER BY count(*) DESC, source, reason LIMIT 3",
    )
    found = "; ".join(example for (example,) in examples) or "no row at all"
    needs = "each row needs a prompt, a model and `correct`"
    if columns:
        needs = f"{_missing(columns, maps)}{_columns_found(columns)}"
    if near:
        needs += f"; {hints(near)}"
    if quarantine:
        needs += f"; the rows are in {quarantine}"
    raise LogError(f"the log has no usable row (found {found}); {needs}")


def _missing(columns: Sequence[str], maps: Sequence[ColumnMap]) -> str:
    """All required columns that no log has, in words; "" where none is missing."""
    present = {*columns, *(made.target for made in maps)}
    missing = [name for name in ("model", "correct") if name not in present]
    if not present & {"prompt", "messages", "prompt_id"}:
        missing.insert(0, "prompt (or messages, or prompt_id)")
    return f"missing: {', '.join(missing)}; " if missing else ""


def _columns_found(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _MAX_COLUMNS} more" if len(columns) > _MAX_COLUMNS else ""
    return f"found the columns {', '.join(columns[:_MAX_COLUMNS])}{more}"


def refuse_single_tier_log(table: OutcomeTable) -> None:
    """Raises LogError where fewer than two tiers have outcomes."""
    n_tiers, summary = int(np.isfinite(table.correct).any(axis=0).sum()), table.summary
    if n_tiers >= 2:
        return
    if summary.n_used == 0:
        most = list(summary.in_no_tier.items())[:_MAX_NAMED]
        models = ", ".join(f"{model} ({count:,} rows)" for model, count in most)
        raise LogError(
            f"no tier of tiers.toml names a model of the log, which has {models}; "
            "add the names that the log uses to the `aliases` of the offers"
        )
    if n_tiers == 0:
        raise LogError(f"no row has an outcome: {_why_unjudged(summary)} (found: {summary})")
    raise LogError(
        f"the log has outcomes of fewer than two tiers (found: {summary}); routing is learned from the "
        "difference between tiers, so log outcomes of two or more, or check that tiers.toml names the log's models"
    )


def _why_unjudged(summary: IngestSummary) -> str:
    if summary.unparsed:
        return "all are truncated generations, which --drop-unparsed leaves out"
    if "correct" in summary.columns:
        return "`correct` is empty in all of them"
    return (
        f"the log has no column `correct`; {_columns_found(summary.columns)}; say whether an answer was right in a "
        "column `correct`, or name the column that does with --map correct=COLUMN"
    )
