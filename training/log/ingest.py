"""From outcome logs to one table.

DuckDB reads, checks and pivots the rows in a database on disk, so that only the pivoted table must fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd

from router.portfolio.tiers import Tier, log_names
from training.errors import LogError
from training.log.checked import MEMORY_LIMIT, CheckedLogs, checked_logs
from training.log.rows import append_log, fetch, quoted
from training.log.sources import LogSource, log_sources
from training.log.table import CELL_MEASURES, IngestSummary, OutcomeTable, is_partial


def ingest(
    logs: LogSource | Sequence[LogSource],
    tiers: Sequence[Tier],
    *,
    quarantine: Path | None = None,
    drop_unparsed: bool = False,
    memory_limit: str = MEMORY_LIMIT,
) -> OutcomeTable:
    """Read logs into one table.

    logs: files, folders, globs (Parquet, JSONL, CSV), DataFrames; or one CheckedLogs, of which no file is read again.
    quarantine: a Parquet file to write broken rows to, each with its source and reason. It is not written where no
        row is broken, and never read as a log.
    drop_unparsed: treat the outcome of a truncated generation (`parsed` = false) as unobserved.
    memory_limit: of DuckDB; what goes beyond it is spilled to disk. CheckedLogs have a limit of their own.

    Raises LogError where no row can be used, where fewer than two tiers have outcomes, or where memory_limit is too
    small; OSError where the disk is full.
    """
    with _cells(logs, tiers, quarantine, drop_unparsed, memory_limit) as db:
        table = pivot(db, tuple(tier.name for tier in tiers))
    refuse_single_tier_log(table)
    return table


def count_attempts(logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier]) -> tuple[np.ndarray, np.ndarray]:
    """How often each tier was asked each prompt and answered it correctly; `ingest` has only the mean.

    Returns (n_attempts, n_correct), float64 (n_prompts, n_tiers), with rows and columns as `ingest` of the same log.
    A fractional outcome counts as correct from 0.5 on. The models of a tier are counted together.
    Raises LogError as `ingest` does.
    """
    with _cells(logs, tiers, quarantine=None, drop_unparsed=False, memory_limit=MEMORY_LIMIT) as db:
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
    memory_limit: str,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the logs' rows, prompts and cells; the broken rows are in `quarantine`."""
    with _rows(logs, quarantine, memory_limit) as db:
        write_quarantine(db, quarantine)
        refuse_unusable_log(db)
        to_cells(db, tiers, drop_unparsed)
        yield db


@contextmanager
def _rows(
    logs: LogSource | Sequence[LogSource], quarantine: Path | None, memory_limit: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the logs' rows as table `raw`, for tables that are made from it."""
    if isinstance(logs, CheckedLogs):
        with logs.derived() as db:
            yield db
        return
    sources = list(logs) if isinstance(logs, Iterable) and not isinstance(logs, str | pd.DataFrame) else [logs]
    with checked_logs(memory_limit=memory_limit) as rows:
        for number, source in enumerate(log_sources(sources, quarantine)):
            append_log(rows.connection, source, number)
        yield rows.connection


def write_quarantine(db: duckdb.DuckDBPyConnection, quarantine: Path | None) -> None:
    """Write broken rows to a Parquet file, if there are any and `quarantine` is not None."""
    [(n_broken,)] = fetch(db, "SELECT count(reason) FROM raw")
    if quarantine is not None and n_broken:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        db.execute(
            "COPY (SELECT source, reason, content FROM raw WHERE reason IS NOT NULL ORDER BY ALL) "
            f"TO {quoted(str(quarantine))} (FORMAT parquet, COMPRESSION zstd)"
        )


def refuse_unusable_log(db: duckdb.DuckDBPyConnection) -> None:
    """Raises LogError where every row is broken."""
    [(n_good,)] = fetch(db, "SELECT count(*) FILTER (reason IS NULL) FROM raw")
    if n_good == 0:
        reasons = fetch(db, "SELECT DISTINCT source || ': ' || reason FROM raw ORDER BY 1 LIMIT 3")
        found = "; ".join(reason for (reason,) in reasons) or "no row at all"
        raise LogError(f"the log has no usable row (found {found}); each row needs a prompt, a model and `correct`")


def to_cells(db: duckdb.DuckDBPyConnection, tiers: Sequence[Tier], drop_unparsed: bool) -> None:
    """Make `prompts` and `cells` (prompt, tier) from the rows: first repeats are averaged, then the models of a tier.

    An alias counts as its model. Sums are exact, so that no mean depends on the order of the rows. The propensity of a
    cell is that of its attempts. Where a prompt was asked more than once, it is the probability that at least one of
    these requests chose the tier, if all of them had the mean propensity of the cell's attempts.
    """
    db.execute(
        "CREATE TABLE offers "
        "(name VARCHAR, model INTEGER, provider VARCHAR, tier INTEGER, usd_in DOUBLE, usd_out DOUBLE)"
    )
    offers = [(index, offer) for index, tier in enumerate(tiers) for offer in tier.offers]
    models = {offer.model: number for number, (_, offer) in enumerate(offers)}
    db.executemany(
        "INSERT INTO offers VALUES (?, ?, ?, ?, ?, ?)",
        [
            (name, models[offer.model], offer.provider, index, offer.usd_per_mtok_input, offer.usd_per_mtok_output)
            for index, offer in offers
            for name in log_names(offer)
        ],
    )
    is_set_aside = f"{drop_unparsed} AND raw.correct IS NOT NULL AND coalesce(NOT raw.parsed, false)"
    db.execute(f"""
        CREATE VIEW attempts AS
        WITH named AS (SELECT name, min(model) AS model, min(tier) AS tier,
                              avg(usd_in) AS usd_in, avg(usd_out) AS usd_out FROM offers GROUP BY 1),
        priced AS (SELECT name, provider, avg(usd_in) AS usd_in, avg(usd_out) AS usd_out FROM offers GROUP BY 1, 2)
        SELECT raw.* REPLACE (
                   named.model AS model, CASE WHEN NOT ({is_set_aside}) THEN raw.correct END AS correct,
                   coalesce(raw.cost_usd, (raw.input_tokens * coalesce(priced.usd_in, named.usd_in)
                       + raw.output_tokens * coalesce(priced.usd_out, named.usd_out)) / 1e6) AS cost_usd),
               raw.model AS name, named.tier, raw.correct IS NULL AS is_unjudged,
               {is_set_aside} AS is_set_aside
        FROM raw LEFT JOIN named ON raw.model = named.name
                 LEFT JOIN priced ON raw.model = priced.name AND raw.provider = priced.provider
        WHERE reason IS NULL
    """)
    db.execute("""
        CREATE TABLE prompts AS
        SELECT prompt_key, any_value(prompt) AS prompt, sha256(any_value(prompt))[:16] AS prompt_id,
               coalesce(min(dataset), '') AS segment, min(question_key) AS question_key, max(timestamp) AS asked_at
        FROM attempts WHERE tier IS NOT NULL GROUP BY 1
    """)
    db.execute(
        "CREATE TABLE places AS SELECT prompt_key, row_number() OVER (ORDER BY prompt_id) - 1 AS row FROM prompts"
    )
    db.execute("CREATE MACRO exact_mean(x) AS CASE WHEN min(x) = max(x) THEN min(x) ELSE avg(x::DECIMAL(38, 18)) END")
    means = ", ".join(f"exact_mean({name}) AS {name}" for name in _MEASURES)
    db.execute(f"""
        CREATE TABLE per_model AS
        SELECT prompt_key, tier, model, count(*) AS n_rows, count(*) FILTER (is_unjudged) AS n_unjudged,
               count(*) FILTER (is_set_aside) AS n_set_aside, {means}
        FROM attempts WHERE tier IS NOT NULL GROUP BY 1, 2, 3
    """)
    db.execute("""
        CREATE TABLE chosen AS
        SELECT prompt_key, tier, exact_mean(propensity) AS share, sum(count(*)) OVER (PARTITION BY prompt_key) AS n
        FROM attempts WHERE tier IS NOT NULL AND correct IS NOT NULL AND propensity IS NOT NULL GROUP BY 1, 2
    """)
    db.execute(f"""
        CREATE TABLE cells AS
        SELECT row, tier, {means}, any_value(CASE WHEN n = 1 THEN share ELSE 1 - pow(1 - share, n) END) AS propensity
        FROM per_model JOIN places USING (prompt_key) LEFT JOIN chosen USING (prompt_key, tier) GROUP BY 1, 2
    """)


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
        summary=_summary(db, tiers, measures["correct"], measures["propensity"]),
        **measures,
    )


_MEASURES = ("correct", "input_tokens", "output_tokens", "cost_usd")
_PROMPTS_IN_ORDER = r"""
    WITH bare AS (SELECT *, nullif(lower(regexp_replace(prompt, '[^\p{L}\p{N}]', '', 'g')), '') AS letters FROM prompts)
    SELECT prompt_id, prompt, coalesce(question_key, sha256(coalesce(letters, prompt))[:16]) AS question_group, segment,
           asked_at
    FROM bare ORDER BY prompt_id
"""


def _summary(
    db: duckdb.DuckDBPyConnection, tiers: tuple[str, ...], correct: np.ndarray, propensity: np.ndarray
) -> IngestSummary:
    [(n_rows,)] = fetch(db, "SELECT count(*) FROM raw")
    totals = "sum(n_rows), sum(n_unjudged), sum(n_set_aside), count(*)"
    [counts] = fetch(db, f"SELECT {totals} FROM per_model")
    n_used, n_unjudged, n_unparsed, n_distinct = (int(count or 0) for count in counts)
    in_no_tier = fetch(db, "SELECT name, count(*) FROM attempts WHERE tier IS NULL GROUP BY 1 ORDER BY 2 DESC, 1")
    return IngestSummary(
        n_rows=n_rows,
        n_used=n_used,
        n_prompts=len(correct),
        quarantined=broken_rows(db),
        in_no_tier=dict(in_no_tier),
        unjudged=n_unjudged,
        unparsed=n_unparsed,
        repeated=n_used - n_distinct,
        observed_per_tier={tier: int(n) for tier, n in zip(tiers, np.isfinite(correct).sum(0), strict=True)},
        without_propensity=int((np.isfinite(correct) & np.isnan(propensity)).sum()) if is_partial(correct) else 0,
    )


def broken_rows(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many rows are broken, by reason, the most frequent reason first."""
    query = "SELECT reason, count(*) FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
    return dict(fetch(db, query))


def refuse_single_tier_log(table: OutcomeTable) -> None:
    """Raises LogError where fewer than two tiers have outcomes."""
    if np.isfinite(table.correct).any(axis=0).sum() < 2:
        raise LogError(
            f"the log has outcomes of fewer than two tiers (found: {table.summary}); routing is learned from the "
            "difference between tiers, so log outcomes of two or more, or check that tiers.toml names the log's models"
        )
