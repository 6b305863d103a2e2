"""What a log says without a tiers.toml: of its models, and which prompts it has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb

from router.feeds.proposal import ModelFacts
from training.log.checked import checked_logs
from training.log.columns import parse_maps
from training.log.refusals import found_columns, refuse_missing_sources, refuse_unusable_log
from training.log.rows import append_log, fetch
from training.log.sources import as_sources, log_sources

MOST_PROMPTS = 20_000


def model_facts(logs: Sequence[str], maps: Sequence[str] = ()) -> list[ModelFacts]:
    """The models of some logs, the most frequent first. Raises LogError where no row can be used."""
    with _rows(logs, maps) as db:
        found = fetch(
            db,
            "SELECT model, mode(provider), count(correct), avg(correct), avg(input_tokens), avg(output_tokens), "
            "avg(cost_usd) FROM raw WHERE reason IS NULL GROUP BY 1 ORDER BY count(*) DESC, 1",
        )
    keys = ("name", "provider", "n_judged", "accuracy", "input_tokens", "output_tokens", "cost_usd")
    return [ModelFacts(**dict(zip(keys, row, strict=True))) for row in found]


def recent_prompts(logs: Sequence[str], maps: Sequence[str] = ()) -> list[str]:
    """The distinct prompts of some logs, of at most MOST_PROMPTS the last asked. Raises LogError as `model_facts`."""
    with _rows(logs, maps) as db:
        query = "SELECT prompt FROM raw WHERE reason IS NULL GROUP BY 1 ORDER BY max(timestamp) DESC NULLS LAST, 1"
        return [prompt for (prompt,) in fetch(db, f"{query} LIMIT {MOST_PROMPTS}")]


@contextmanager
def _rows(logs: Sequence[str], maps: Sequence[str]) -> Iterator[duckdb.DuckDBPyConnection]:
    made = parse_maps(maps)
    with checked_logs(maps=made) as rows:
        for number, source in enumerate(log_sources(as_sources(list(logs)), None)):
            append_log(rows.connection, source, number, made)
        columns, near = found_columns(rows.connection, made)
        refuse_missing_sources(columns, near, made)
        refuse_unusable_log(rows.connection, columns, near, made, None)
        yield rows.connection
