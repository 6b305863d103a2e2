"""From outcome logs to one table.

DuckDB reads, checks and pivots the rows in a database on disk, so that only the pivoted table must fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from router.portfolio.tiers import Tier
from training.log.answers import Answers, find_answers
from training.log.cells import to_cells
from training.log.checked import MEMORY_LIMIT, CheckedLogs, checked_logs
from training.log.columns import parse_maps, quoted
from training.log.refusals import (
    found_columns,
    refuse_missing_sources,
    refuse_reserved_columns,
    refuse_single_tier_log,
    refuse_unreadable_labels,
    refuse_unusable_log,
)
from training.log.rows import append_log, fetch
from training.log.sources import LogSource, as_sources, log_sources
from training.log.table import CELL_MEASURES, IngestSummary, OutcomeTable, is_partial


def ingest(
    logs: LogSource | Sequence[LogSource],
    tiers: Sequence[Tier],
    *,
    quarantine: Path | None = None,
    drop_unparsed: bool = False,
    maps: Sequence[str] = (),
    memory_limit: str = MEMORY_LIMIT,
) -> OutcomeTable:
    """Read logs into one table.

    logs: files, folders, globs (Parquet, JSONL, CSV), DataFrames of pandas or with the Arrow interface; or one
        CheckedLogs, of which no file is read again.
    quarantine: a Parquet file to write broken rows to, each with its source and reason. It is not written where no
        row is broken, and never read as a log.
    drop_unparsed: treat the outcome of a truncated generation (`parsed` = false) as unobserved.
    maps: how columns are made from others, for example "correct=score/5"; see data/README.md.
    memory_limit: of DuckDB; what goes beyond it is spilled to disk. CheckedLogs have maps and a limit of their own.

    Raises LabelError where outcomes are on another scale than 0..1; LogError where no row can be used, where fewer than
    two tiers have outcomes, or where no log has a column that a map names; MapError. Errors of the machine are no
    errors of the log: OSError where a file cannot be read or the disk is full, MemoryError where memory_limit is too
    small.
    """
    with _cells(logs, tiers, quarantine, drop_unparsed, maps, memory_limit) as (db, facts):
        table = pivot(db, tuple(tier.name for tier in tiers))
    table = replace(table, summary=replace(table.summary, **facts))
    refuse_single_tier_log(table, logs.maps if isinstance(logs, CheckedLogs) else parse_maps(maps))
    return table


def count_attempts(
    logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], *, maps: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """How often each tier was asked each prompt and answered it correctly; `ingest` has only the mean.

    Returns (n_attempts, n_correct), float64 (n_prompts, n_tiers), with rows and columns as `ingest` of the same log.
    A fractional outcome counts as correct from 0.5 on. The models of a tier are counted together.
    Raises LogError as `ingest` does.
    """
    settings: dict[str, Any] = {"quarantine": None, "drop_unparsed": False, "maps": maps, "memory_limit": MEMORY_LIMIT}
    with _cells(logs, tiers, **settings) as (db, _):
        [(n_prompts,)] = fetch(db, "SELECT count(*) FROM prompts")
        counts = np.zeros((2, n_prompts, len(tiers)))
        for row, tier, n_attempts, n_correct in fetch(db, _ATTEMPT_COUNTS):
            counts[:, row, tier] = n_attempts, n_correct
    return counts[0], counts[1]


_ATTEMPT_COUNTS = """
    SELECT row, tier, count(correct), count(*) FILTER (correct >= 0.5)
    FROM attempts JOIN places USING (prompt_key) WHERE tier IS NOT NULL GROUP BY 1, 2
"""


@contextmanager
def _cells(
    logs: LogSource | Sequence[LogSource],
    tiers: Sequence[Tier],
    quarantine: Path | None,
    drop_unparsed: bool,
    maps: Sequence[str],
    memory_limit: str,
) -> Iterator[tuple[duckdb.DuckDBPyConnection, dict[str, Any]]]:
    """A database with the logs' rows, prompts and cells, and what the summary says of the logs as a whole.

    The broken rows are in `quarantine`.
    """
    with _rows(logs, quarantine, maps, memory_limit) as rows:
        db = rows.connection
        columns, near = found_columns(db, rows.maps)
        written = write_quarantine(db, quarantine)
        refuse_missing_sources(columns, near, rows.maps)
        refuse_reserved_columns(columns, rows.maps)
        refuse_unreadable_labels(db)
        refuse_unusable_log(db, columns, near, rows.maps, quarantine if written else None)
        to_cells(db, tiers, drop_unparsed)
        yield db, {"columns": columns, "not_used": near, "quarantine": str(quarantine) if written else None}


@contextmanager
def _rows(
    logs: LogSource | Sequence[LogSource], quarantine: Path | None, maps: Sequence[str], memory_limit: str
) -> Iterator[CheckedLogs]:
    """The logs' rows as table `raw` of a database, for tables that are made from it."""
    if isinstance(logs, CheckedLogs):
        with logs.derived():
            yield logs
        return
    made = parse_maps(maps)
    with checked_logs(memory_limit=memory_limit, maps=made) as rows:
        for number, source in enumerate(log_sources(as_sources(logs), quarantine)):
            append_log(rows.connection, source, number, made)
        yield rows


def write_quarantine(db: duckdb.DuckDBPyConnection, quarantine: Path | None) -> bool:
    """Write broken rows to a Parquet file, if there are any and `quarantine` is not None; returns whether it did."""
    [(n_broken,)] = fetch(db, "SELECT count(reason) FROM raw")
    if quarantine is None or not n_broken:
        return False
    quarantine.parent.mkdir(parents=True, exist_ok=True)
    db.execute(
        "COPY (SELECT source, reason, content FROM raw WHERE reason IS NOT NULL ORDER BY ALL) "
        f"TO {quoted(str(quarantine))} (FORMAT parquet, COMPRESSION zstd)"
    )
    return True


def pivot(db: duckdb.DuckDBPyConnection, tiers: tuple[str, ...]) -> OutcomeTable:
    """The table of a database's cells, ordered by prompt_id."""
    [(n_prompts,)] = fetch(db, "SELECT count(*) FROM prompts")
    measures: dict[str, Any] = {name: np.full((n_prompts, len(tiers)), np.nan) for name in CELL_MEASURES}
    for batch in db.sql("SELECT * FROM cells").to_arrow_reader():
        rows, columns = batch["row"].to_numpy(), batch["tier"].to_numpy()
        for name, values in measures.items():
            values[rows, columns] = batch[name].to_numpy(zero_copy_only=False)
    prompts: list[str] = []
    names: dict[str, list[np.ndarray]] = {"prompt_id": [], "question_group": [], "segment": []}
    asked_at = [np.empty(0, "datetime64[us]")]
    for batch in db.sql(_PROMPTS_IN_ORDER).to_arrow_reader():
        prompts += batch["prompt"].to_pylist()
        asked_at.append(batch["asked_at"].to_numpy(zero_copy_only=False).astype("datetime64[us]"))
        for name, parts in names.items():
            parts.append(np.array(batch[name].to_pylist(), dtype=np.str_))
    prompt_ids, groups, segments = (np.concatenate(parts or [np.empty(0, np.str_)]) for parts in names.values())
    answers = find_answers(db, n_prompts, len(tiers))
    [(first, last)] = fetch(db, "SELECT min(timestamp), max(timestamp) FROM raw WHERE reason IS NULL")
    return OutcomeTable(
        tiers=tiers,
        prompts=prompts,
        prompt_ids=prompt_ids,
        groups=groups,
        segments=segments,
        asked_at=np.concatenate(asked_at),
        first_timestamp=first,
        last_timestamp=last,
        summary=_summary(db, tiers, measures["correct"], measures["propensity"], answers),
        answer_number=answers.number,
        checks=answers.checks,
        **measures,
    )


_PROMPTS_IN_ORDER = r"""
    WITH bare AS (SELECT *, nullif(lower(regexp_replace(prompt, '[^\p{L}\p{N}]', '', 'g')), '') AS letters FROM prompts)
    SELECT prompt_id, prompt, coalesce(question_key, sha256(coalesce(letters, prompt))[:16]) AS question_group, segment,
           asked_at
    FROM bare ORDER BY prompt_id
"""


def _summary(
    db: duckdb.DuckDBPyConnection,
    tiers: tuple[str, ...],
    correct: np.ndarray,
    propensity: np.ndarray,
    answers: Answers,
) -> IngestSummary:
    [(n_rows,)] = fetch(db, "SELECT count(*) FROM raw")
    n_incomplete = incomplete_rows(db)
    totals = "sum(n_rows), sum(n_unjudged), sum(n_set_aside), count(*)"
    [counts] = fetch(db, f"SELECT {totals} FROM per_model")
    n_used, n_unjudged, n_unparsed, n_distinct = (int(count or 0) for count in counts)
    in_no_tier = fetch(db, "SELECT name, count(*) FROM attempts WHERE tier IS NULL GROUP BY 1 ORDER BY 2 DESC, 1")
    return IngestSummary(
        n_rows=n_rows + n_incomplete,
        n_used=n_used,
        n_prompts=len(correct),
        quarantined=broken_rows(db),
        in_no_tier=dict(in_no_tier),
        incomplete=n_incomplete,
        unjudged=n_unjudged,
        unparsed=n_unparsed,
        repeated=n_used - n_distinct,
        observed_per_tier={tier: int(n) for tier, n in zip(tiers, np.isfinite(correct).sum(0), strict=True)},
        unknown=dict(
            fetch(
                db,
                "SELECT doubt, count(*) FROM (SELECT unnest(doubts) AS doubt FROM attempts WHERE tier IS NOT NULL) "
                "WHERE doubt IS NOT NULL GROUP BY 1 ORDER BY 1",
            )
        ),
        answers=answers.n_answers,
        checks=answers.n_verdicts,
        without_propensity=int((np.isfinite(correct) & np.isnan(propensity)).sum()) if is_partial(correct) else 0,
    )


def incomplete_rows(db: duckdb.DuckDBPyConnection) -> int:
    """How many rows are attempts that gave no whole answer."""
    [(n,)] = fetch(db, "SELECT coalesce(sum(n), 0) FROM incomplete")
    return int(n)


def broken_rows(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows are broken, by reason, the most frequent reason first."""
    query = "SELECT reason, count(*) FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return dict(fetch(db, query))
