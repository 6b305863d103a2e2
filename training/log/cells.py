"""From checked rows to cells: what was observed of each tier on each prompt, and which values count as not logged."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from router.portfolio.tiers import Tier, log_names
from training.log.table import CELL_MEASURES

MAX_CALLS = 1000
"""An attempt may be a run of many calls, and its counts the sum over them, of at most so many context windows."""

MIN_SHARE_PAID = 0.1
"""Of the price of a count beyond the context window: an attempt that cost less did not have so many tokens. Tokens
read from a cache cost a tenth of others."""

_MEANS = [name for name in CELL_MEASURES if name != "propensity"]


def _is_absurd(count: str, usd_per_mtok: str) -> str:
    """SQL for whether a count of tokens is beyond the context window, and not a sum over calls that were paid for."""
    is_paid_for = f"cost_usd > 0 AND cost_usd * 1e6 >= {MIN_SHARE_PAID} * {count} * {usd_per_mtok}"
    return (
        f"{count} > context_window AND ({count} > {MAX_CALLS} * context_window OR NOT coalesce({is_paid_for}, false))"
    )


_DOUBTS = {
    "input_tokens": {
        "input_tokens is 0": "input_tokens = 0",
        "input_tokens is beyond the context window": _is_absurd("input_tokens", "usd_in"),
    },
    "output_tokens": {
        "output_tokens is 0": "output_tokens = 0",
        "output_tokens is beyond the context window": _is_absurd("output_tokens", "usd_out"),
    },
    "cost_usd": {"cost_usd is 0 in a paid tier": "cost_usd = 0 AND is_paid"},
    "usd_per_mtok_input": {"usd_per_mtok_input is 0 in a paid tier": "usd_per_mtok_input = 0 AND listed_in > 0"},
    "usd_per_mtok_output": {"usd_per_mtok_output is 0 in a paid tier": "usd_per_mtok_output = 0 AND listed_out > 0"},
}
"""Values that count as not logged: by column, what is wrong, and SQL for it. The rest of the row is used."""

_OF_ATTEMPTS = ", ".join(
    ("prompt_key", "name", "model", "tier", *CELL_MEASURES, "dataset", "question_key", "timestamp", "answer",
     "verdicts", "doubts", "is_unjudged", "is_set_aside")
)  # fmt: skip
"""The columns of `attempts`."""


def to_cells(db: duckdb.DuckDBPyConnection, tiers: Sequence[Tier], drop_unparsed: bool) -> None:
    """Make `prompts` and `cells` (prompt, tier) from the rows: first repeats are averaged, then the models of a tier.

    An alias counts as its model. Sums are exact, so that no mean depends on the order of the rows. The propensity of a
    cell is that of its attempts. Where a prompt was asked more than once, it is the probability that at least one of
    these requests chose the tier, if all of them had the mean propensity of the cell's attempts.
    """
    _create_offers(db, tiers)
    _create_attempts(db, drop_unparsed)
    db.execute("""
        CREATE TABLE prompts AS
        WITH asked AS (
            SELECT prompt_key, coalesce(min(dataset), '') AS segment, min(question_key) AS question_key,
                   max(timestamp) AS asked_at
            FROM attempts WHERE tier IS NOT NULL GROUP BY 1),
        texts AS (SELECT prompt_key, any_value(prompt) AS prompt FROM raw WHERE reason IS NULL GROUP BY 1)
        SELECT prompt_key, prompt, sha256(prompt)[:16] AS prompt_id, segment, question_key, asked_at
        FROM asked JOIN texts USING (prompt_key)
    """)
    db.execute(
        "CREATE TABLE places AS SELECT prompt_key, row_number() OVER (ORDER BY prompt_id) - 1 AS row FROM prompts"
    )
    db.execute("CREATE MACRO exact_mean(x) AS CASE WHEN min(x) = max(x) THEN min(x) ELSE avg(x::DECIMAL(38, 18)) END")
    means = ", ".join(f"exact_mean({name}) AS {name}" for name in _MEANS)
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


def _create_offers(db: duckdb.DuckDBPyConnection, tiers: Sequence[Tier]) -> None:
    """The offers, a row for each name under which a log may know them."""
    db.execute(
        "CREATE TABLE offers (name VARCHAR, model INTEGER, provider VARCHAR, tier INTEGER, context_window DOUBLE, "
        "usd_in DOUBLE, usd_out DOUBLE)"
    )
    offers = [(index, offer) for index, tier in enumerate(tiers) for offer in tier.offers]
    models = {offer.model: number for number, (_, offer) in enumerate(offers)}
    rows = [
        (
            name, models[offer.model], offer.provider, index, offer.context_window, offer.usd_per_mtok_input,
            offer.usd_per_mtok_output,
        )
        for index, offer in offers
        for name in log_names(offer)
    ]  # fmt: skip
    places = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(rows))
    values = [value for row in rows for value in row]
    db.execute(f"INSERT INTO offers VALUES {places}", values)  # one statement: executemany plans one for each row


def _create_attempts(db: duckdb.DuckDBPyConnection, drop_unparsed: bool) -> None:
    """The usable rows, with their tier, and without the values that count as not logged.

    A cost that was not logged is tokens x price: that of the row, else the listed one of its provider, else the mean of
    the model's offers. doubts: what is wrong with the row's values, a list. The text of the prompt stays in `raw`.
    """
    is_set_aside = f"{drop_unparsed} AND correct IS NOT NULL AND coalesce(NOT parsed, false)"
    known = {
        name: f"CASE WHEN NOT coalesce({' OR '.join(f'({is_so})' for is_so in doubts.values())}, false) THEN {name} END"
        for name, doubts in _DOUBTS.items()
    }
    doubts = ", ".join(
        f"CASE WHEN {is_so} THEN '{what}' END" for found in _DOUBTS.values() for what, is_so in found.items()
    )
    replaced = ", ".join(f"{sql} AS {name}" for name, sql in known.items())
    averages = "avg(usd_in) AS usd_in, avg(usd_out) AS usd_out, min(greatest(usd_in, usd_out)) > 0 AS is_paid"
    db.execute(f"""
        CREATE TABLE attempts AS
        WITH named AS (SELECT name, min(model) AS model, min(tier) AS tier, max(context_window) AS context_window,
                              {averages} FROM offers GROUP BY 1),
        priced AS (SELECT name, provider, {averages} FROM offers GROUP BY 1, 2),
        listed AS (
            SELECT raw.* REPLACE (named.model AS model), raw.model AS name, named.tier, named.context_window,
                   coalesce(priced.usd_in, named.usd_in) AS listed_in,
                   coalesce(priced.usd_out, named.usd_out) AS listed_out,
                   coalesce(nullif(raw.usd_per_mtok_input, 0), listed_in) AS usd_in,
                   coalesce(nullif(raw.usd_per_mtok_output, 0), listed_out) AS usd_out,
                   coalesce(priced.is_paid, named.is_paid) AS is_paid,
                   raw.correct IS NULL AS is_unjudged, {is_set_aside} AS is_set_aside
            FROM raw LEFT JOIN named ON raw.model = named.name
                     LEFT JOIN priced ON raw.model = priced.name AND raw.provider = priced.provider
            WHERE reason IS NULL),
        known AS (SELECT * REPLACE ({replaced}), [{doubts}] AS doubts FROM listed)
        SELECT {_OF_ATTEMPTS}
        FROM (SELECT * REPLACE (
                  CASE WHEN NOT is_set_aside THEN correct END AS correct,
                  coalesce(cost_usd, (input_tokens * usd_in + output_tokens * usd_out) / 1e6) AS cost_usd)
              FROM known)
    """)
