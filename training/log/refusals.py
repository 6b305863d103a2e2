"""Why a log is refused as a whole, in words that say what was found and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np

from training.errors import LabelError, LogError
from training.log.columns import KNOWN_COLUMNS, RESERVED_CHECK, ColumnMap, not_used, reserved_columns, suggested_maps
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


def refuse_missing_sources(columns: Sequence[str], near: Mapping[str, str], maps: Sequence[ColumnMap]) -> None:
    """Raises LogError where a map's source is in no log. columns: of all logs. near: as `not_used` finds them."""
    if columns and (missing := sorted({made.source for made in maps if not made.is_in(columns)})):
        advice = what_is_missing(columns, near, maps)
        raise LogError(f"no log has the column {', '.join(missing)} that --map names; {advice}")


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
    advice = what_is_missing(columns, near, maps) if columns else "each row needs a prompt, a model and `correct`"
    if quarantine:
        advice += f"; the rows are in {quarantine}"
    raise LogError(f"the log has no usable row (found {found}); {advice}")


_ASKED = ("prompt", "messages", "prompt_id")
_REQUIRED = (*_ASKED, "model", "correct")


def what_is_missing(columns: Sequence[str], near: Mapping[str, str], maps: Sequence[ColumnMap] = ()) -> str:
    """All that a log lacks, the columns that it has, the maps that are likely meant, and what else could be used.

    columns: of all logs. near: as `not_used` finds them.
    """
    present = {*columns, *(made.target for made in maps)}
    missing = [name for name in ("model", "correct") if name not in present]
    if not present.intersection(_ASKED):
        missing.insert(0, "prompt (or messages, or prompt_id)")
    parts = [f"missing: {', '.join(missing)}"] if missing else []
    parts.append(_columns_found(columns))
    if likely := suggested_maps(near, _REQUIRED):
        parts.append(f"perhaps {likely}")
    if useful := suggested_maps(near, [name for name in KNOWN_COLUMNS if name not in _REQUIRED]):
        parts.append(f"useful, but not used: {useful}")
    return "; ".join(parts)


def _columns_found(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _MAX_COLUMNS} more" if len(columns) > _MAX_COLUMNS else ""
    return f"found the columns {', '.join(columns[:_MAX_COLUMNS])}{more}"


def refuse_single_tier_log(table: OutcomeTable, maps: Sequence[ColumnMap] = ()) -> None:
    """Raises LogError where fewer than two tiers have outcomes. maps: of the log."""
    n_tiers, summary = int(np.isfinite(table.correct).any(axis=0).sum()), table.summary
    if n_tiers >= 2:
        return
    if summary.n_used == 0:
        most = list(summary.in_no_tier.items())[:_MAX_NAMED]
        models = ", ".join(f"{model} ({count:,} rows)" for model, count in most)
        problem = (
            f"no tier of tiers.toml names a model of the log, which has {models}; "
            "add the names that the log uses to the `aliases` of the offers"
        )
        is_judged = "correct" in summary.columns or any(made.target == "correct" for made in maps)
        raise LogError(problem if is_judged else f"{problem}. Besides, {_no_outcomes(summary, maps)}")
    if n_tiers == 0:
        raise LogError(f"no row has an outcome: {_why_unjudged(summary, maps)} (found: {summary})")
    raise LogError(
        f"the log has outcomes of fewer than two tiers (found: {summary}); routing is learned from the "
        "difference between tiers, so log outcomes of two or more, or check that tiers.toml names the log's models"
    )


def _why_unjudged(summary: IngestSummary, maps: Sequence[ColumnMap]) -> str:
    if summary.unparsed:
        return "all are truncated generations, which --drop-unparsed leaves out"
    if source := next((made.source for made in maps if made.target == "correct"), None):
        return f"`{source}`, of which `correct` is made, is empty in all of them"
    return "`correct` is empty in all of them" if "correct" in summary.columns else _no_outcomes(summary, maps)


def _no_outcomes(summary: IngestSummary, maps: Sequence[ColumnMap]) -> str:
    return (
        f"{what_is_missing(summary.columns, summary.not_used, maps)}; say whether an answer was right in a column "
        "`correct`, or name the column that does: --map correct=COLUMN, correct=COLUMN:VALUE or correct=COLUMN/5"
    )
