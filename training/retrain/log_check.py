"""Whether a log file can be believed: its outcomes against what the champion expects of its prompts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np

from router.bundle.bundle import Bundle
from router.portfolio.tiers import Tier, log_names
from training.config import RetrainConfig
from training.evaluation.bundle_graph import BundleGraph
from training.log.sources import append_log, create_raw, fetch, first_line
from training.retrain.store import LogFile

MIN_EXAMINED = 20
"""Fewer outcomes of a tier in a log file show nothing."""

LEAST_SHIFT = 0.25
"""A tier's accuracy in a file may be so far from the champion's expectation."""

LEAST_EXCESS_BRIER = 0.03
"""The Brier score of a tier in a file may be so far above the one that a calibrated champion expects."""

LEAST_SHARE_FLIPPED = 0.7
"""And by so much of what labels that are all flipped would add to it."""

N_STANDARD_ERRORS = 4.0
"""By so many standard errors a contradiction must exceed zero: chance alone does so once in 30,000."""

MAX_EXAMINED_PROMPTS = 5000
UNREADABLE = "cannot be read:"
"""How the reason begins where a file cannot be read."""


@contextmanager
def _raw_rows(paths: Sequence[Path], scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The checked rows of log files as table `raw`, in a database on disk that is removed at the end."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=scratch) as folder:
        with disk_errors(), duckdb.connect(str(Path(folder) / "rows.duckdb")) as db:
            create_raw(db)
            for number, path in enumerate(paths):
                append_log(db, path, number)
            yield db


@contextmanager
def disk_errors() -> Iterator[None]:
    """DuckDB's way to say that the disk is full is no OSError."""
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(first_line(error)) from error


def examine(
    path: Path, tiers: Sequence[Tier], champion: Bundle | None, config: RetrainConfig, scratch: Path
) -> LogFile:
    """Count a file's rows, and hold its outcomes against what the champion expects."""
    with _raw_rows([path], scratch) as db:
        [(n_rows, n_broken, n_prompts, last)] = fetch(
            db,
            "SELECT count(*), count(reason), count(DISTINCT prompt_key) FILTER (reason IS NULL), "
            "max(timestamp) FILTER (reason IS NULL) FROM raw",
        )
        reasons = fetch(
            db, "SELECT reason FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        )
        suspicion = reasons[0][0] if reasons else ""
        if not suspicion.startswith(UNREADABLE):
            if config.accept_change:
                suspicion = ""
            elif 2 * n_broken > n_rows:
                suspicion = f"{n_broken:,} of {n_rows:,} rows are broken ({suspicion})"
            else:
                suspicion = "" if champion is None else _contradiction(db, champion, tiers)
    return LogFile(str(path), n_rows, n_broken, n_prompts, last.isoformat() if last else "", suspicion)


def _contradiction(db: duckdb.DuckDBPyConnection, champion: Bundle, tiers: Sequence[Tier]) -> str:
    """Which tier's outcomes cannot be what the champion expects of these prompts, and why; "" where none."""
    rows = fetch(
        db,
        "SELECT prompt, model, avg(correct) FROM raw WHERE reason IS NULL AND correct IS NOT NULL AND prompt_key IN "
        f"(SELECT DISTINCT prompt_key FROM raw ORDER BY 1 LIMIT {MAX_EXAMINED_PROMPTS}) GROUP BY 1, 2 ORDER BY 1, 2",
    )
    tier_of = {name: tier.name for tier in tiers for offer in tier.offers for name in log_names(offer)}
    known = champion.manifest.tiers
    cells = [
        (prompt, known.index(tier_of[model]), correct) for prompt, model, correct in rows if tier_of.get(model) in known
    ]
    if not cells:
        return ""
    prompts = sorted({prompt for prompt, _, _ in cells})
    place = {prompt: row for row, prompt in enumerate(prompts)}
    success = BundleGraph(champion).estimates(prompts)["success"]
    at = np.array([(place[prompt], column) for prompt, column, _ in cells])
    expected, correct = success[at[:, 0], at[:, 1]].astype(float), np.array([value for _, _, value in cells])
    for column, tier in enumerate(known):
        of_tier = at[:, 1] == column
        if of_tier.sum() < MIN_EXAMINED:
            continue
        p, y = expected[of_tier], correct[of_tier]
        answers = f"{len(y):,} answers; labels or model changed? look, then --accept-change"
        if _exceeds(y - p, LEAST_SHIFT) or _exceeds(p - y, LEAST_SHIFT):
            return f"{tier} answered {y.mean():.0%} right where {p.mean():.0%} was expected ({answers})"
        all_flipped = float(((1 - 2 * p) ** 2).mean())  # what flipping every label adds to the Brier score
        if _exceeds((y - p) ** 2 - p * (1 - p), max(LEAST_EXCESS_BRIER, LEAST_SHARE_FLIPPED * all_flipped)):
            found, usual = ((y - p) ** 2).mean(), (p * (1 - p)).mean()
            return f"{tier} has a Brier score of {found:.2f} where {usual:.2f} was expected ({answers})"
    return ""


def _exceeds(values: np.ndarray, least: float) -> bool:
    """Whether the mean is at least so large, and surely above 0."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return bool(values.mean() >= max(least, N_STANDARD_ERRORS * error))


def prompt_ids_of(paths: Sequence[Path], scratch: Path) -> np.ndarray:
    """The prompt_ids, as an OutcomeTable has them, of the usable rows of log files."""
    with _raw_rows(paths, scratch) as db:
        rows = fetch(db, "SELECT DISTINCT sha256(prompt)[:16] FROM raw WHERE reason IS NULL ORDER BY 1")
    return np.array([prompt_id for (prompt_id,) in rows], dtype=np.str_)
