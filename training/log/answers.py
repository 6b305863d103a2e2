"""The answers of tiers and what checks said of them, from the checked rows of a log."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np

from training.log.columns import quoted
from training.log.rows import fetch
from training.log.table import CheckCells


@dataclass(frozen=True)
class Answers:
    """The answers and verdicts of a log. number, checks: as `answer_number` and `checks` of an OutcomeTable.

    n_answers: used rows with an answer. n_verdicts: used rows with a verdict, by check.
    """

    number: np.ndarray
    checks: dict[str, CheckCells]
    n_answers: int
    n_verdicts: dict[str, int]


def find_answers(db: duckdb.DuckDBPyConnection, n_prompts: int, n_tiers: int) -> Answers:
    """The answers and verdicts of a database's attempts. A log without any costs one look at two empty columns."""
    shape = n_prompts, n_tiers
    [(has_any,)] = fetch(db, "SELECT count(answer) + count(verdicts) > 0 FROM raw WHERE reason IS NULL")
    if not has_any:
        return Answers(number=np.full(shape, -1, np.int16), checks={}, n_answers=0, n_verdicts={})
    _create_said(db)
    answer, is_given = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
    for batch in db.sql("SELECT row, tier, answer FROM said WHERE answer IS NOT NULL").to_arrow_reader():
        place = batch["row"].to_numpy(), batch["tier"].to_numpy()
        answer[place], is_given[place] = batch["answer"].to_numpy(), True
    [(n_answers,)] = fetch(db, "SELECT count(answer) FROM sayings")
    verdicts = "SELECT unnest(verdicts).name AS name FROM sayings"
    n_verdicts = dict(fetch(db, f"SELECT name, count(*) FROM ({verdicts}) GROUP BY 1 ORDER BY 1"))
    found = {name: _check_cells(db, name, shape) for name in n_verdicts}
    checks = {name: cells for name, cells in found.items() if np.isfinite(cells.score).any()}
    return Answers(number=numbered(answer, is_given), checks=checks, n_answers=n_answers, n_verdicts=n_verdicts)


def numbered(answer: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """0, 1, ... for the distinct answers of each row in the order of columns, -1 where none is given; int16.

    answer, is_given: (n_prompts, n_tiers).
    """
    numbers = np.full(answer.shape, -1, np.int16)
    n_found = np.zeros(len(answer), np.int16)
    for tier in range(answer.shape[1]):
        is_new = is_given[:, tier].copy()
        for earlier in range(tier):
            is_same = is_given[:, tier] & is_given[:, earlier] & (answer[:, tier] == answer[:, earlier])
            numbers[is_same, tier] = numbers[is_same, earlier]
            is_new &= ~is_same
        numbers[is_new, tier] = n_found[is_new]
        n_found += is_new
    return numbers


def _create_said(db: duckdb.DuckDBPyConnection) -> None:
    """Make `sayings`, the used rows with an answer or a verdict, and `said`, one of them for each prompt and tier.

    Answer and verdicts of a cell are those of one attempt: a verdict belongs to that very answer. It is drawn from the
    cell's judged attempts that have either, else from all that have either. A digest of prompt and tier draws, so the
    order of rows does not matter, and tiers are drawn independently: they agree as often as single attempts do.
    """
    db.execute("""
        CREATE TABLE sayings AS
        SELECT prompt_key, tier, correct IS NOT NULL AS is_judged, answer, verdicts
        FROM attempts WHERE tier IS NOT NULL AND (answer IS NOT NULL OR verdicts IS NOT NULL)
    """)
    db.execute("""
        CREATE TABLE said AS
        WITH numbered AS (
            SELECT *, row_number() OVER (cell ORDER BY is_judged DESC, answer, verdicts) - 1 AS number,
                   coalesce(nullif(count(*) FILTER (is_judged) OVER cell, 0), count(*) OVER cell) AS n
            FROM sayings WINDOW cell AS (PARTITION BY prompt_key, tier))
        SELECT row, tier, answer, verdicts
        FROM numbered JOIN places USING (prompt_key) JOIN prompts USING (prompt_key)
        WHERE number = CASE WHEN n = 1 THEN 0 ELSE md5_number_lower(concat(prompt_id, '/', tier)) % n END
    """)


def _check_cells(db: duckdb.DuckDBPyConnection, name: str, shape: tuple[int, int]) -> CheckCells:
    """The verdicts of one check."""
    score, cost_usd = np.full(shape, np.nan), np.full(shape, np.nan)
    verdicts = "SELECT row, tier, unnest(verdicts) AS verdict FROM said"
    found = db.sql(
        f"SELECT row, tier, verdict.score, verdict.usd FROM ({verdicts}) WHERE verdict.name = {quoted(name)}"
    )
    for batch in found.to_arrow_reader():
        place = batch["row"].to_numpy(), batch["tier"].to_numpy()
        score[place], cost_usd[place] = batch["score"].to_numpy(), batch["usd"].to_numpy()
    return CheckCells(score=score, cost_usd=cost_usd)
