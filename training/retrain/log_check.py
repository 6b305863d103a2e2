"""Whether a log file can be believed: its outcomes against what the champion expects of its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from router.bundle.bundle import Bundle
from router.portfolio.tiers import Tier, log_names
from training.evaluation.bundle_graph import BundleGraph
from training.log.checked import CheckedLogs, FileFacts
from training.retrain.log_files import LogFiles, NewFile
from training.retrain.store import LogFile

MIN_EXAMINED = 20
"""With fewer outcomes of a tier in a file, the tier is not examined."""

LEAST_SHIFT = 0.25
"""A file is set aside where a tier's accuracy is at least so far from the champion's expectation."""

LEAST_EXCESS_BRIER = 0.03
"""A file is set aside where a tier's Brier score is at least so far above that of a calibrated champion, and ..."""

LEAST_SHARE_FLIPPED = 0.7
"""... at least this share of what flipping all of the tier's labels would add to it."""

N_STANDARD_ERRORS = 4.0
"""A contradiction must exceed zero by so many standard errors: chance alone does so once in 30,000."""

MAX_EXAMINED_PROMPTS = 5000
"""Most prompts of a file that the champion is asked about."""


def read_new_files(
    rows: CheckedLogs,
    found: Mapping[str, Path],
    new: Mapping[str, Path],
    known: Mapping[str, LogFile],
    tiers: Sequence[Tier],
    champion: Bundle | None,
    *,
    accept_change: bool,
) -> LogFiles:
    """Read the new files into `rows`, and check them; the rows of files that are set aside are removed again.

    found, new: the files of the run, and those of them to read, by digest. known: what the store knows of files.
    accept_change: take files whose outcomes contradict the champion, or most of whose rows are broken.
    """
    checked: dict[str, NewFile] = {}
    for digest, path in new.items():
        facts = rows.read(path)
        set_aside = facts.reason if facts.is_unreadable else ""
        if not facts.is_unreadable and not accept_change:
            set_aside = _suspicion(rows, path, facts, tiers, champion)
        if set_aside:
            rows.remove(path)
        last = facts.last_timestamp.isoformat() if facts.last_timestamp else ""
        file = LogFile(
            path=str(path),
            n_rows=facts.n_rows,
            n_quarantined=facts.n_broken,
            n_prompts=facts.n_prompts,
            last_timestamp=last,
            set_aside=set_aside,
        )
        checked[digest] = NewFile(file=file, is_unreadable=facts.is_unreadable)
    return LogFiles(found=found, new=checked, former=known)


def read_known_files(rows: CheckedLogs, paths: Sequence[Path]) -> None:
    """Read files that were taken by an earlier run into `rows`. Raises OSError where one cannot be read."""
    for path in paths:
        facts = rows.read(path)
        if facts.is_unreadable:
            raise OSError(
                f"{path} could be read by an earlier run, but not now ({facts.reason}); is the disk full, or --map new?"
            )


def _suspicion(rows: CheckedLogs, path: Path, facts: FileFacts, tiers: Sequence[Tier], champion: Bundle | None) -> str:
    """Why a file cannot be believed; "" where it can, or where nothing tells."""
    if 2 * facts.n_broken > facts.n_rows:
        return f"{facts.n_broken:,} of {facts.n_rows:,} rows are broken ({facts.reason})"
    if champion is None:
        return ""
    return _contradiction(rows.outcomes(path, MAX_EXAMINED_PROMPTS), champion, tiers)


def _contradiction(outcomes: Sequence[tuple[str, str, float]], champion: Bundle, tiers: Sequence[Tier]) -> str:
    """Which tier's outcomes contradict what the champion expects of these prompts, and how; "" where none does.

    outcomes: prompt, model, mean correctness.
    """
    tier_of = {name: tier.name for tier in tiers for offer in tier.offers for name in log_names(offer)}
    known = champion.manifest.tiers
    cells = [
        (prompt, known.index(tier_of[model]), correct)
        for prompt, model, correct in outcomes
        if tier_of.get(model) in known
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
        answers = f"{len(y):,} answers; did the labels or the model change? if that is right: --accept-change"
        if _exceeds(y - p, LEAST_SHIFT) or _exceeds(p - y, LEAST_SHIFT):
            return f"{tier} answered {y.mean():.0%} right where {p.mean():.0%} was expected ({answers})"
        all_flipped = float(((1 - 2 * p) ** 2).mean())  # what flipping every label adds to the Brier score
        if _exceeds((y - p) ** 2 - p * (1 - p), max(LEAST_EXCESS_BRIER, LEAST_SHARE_FLIPPED * all_flipped)):
            found, usual = ((y - p) ** 2).mean(), (p * (1 - p)).mean()
            return f"{tier} has a Brier score of {found:.2f} where {usual:.2f} was expected ({answers})"
    return ""


def _exceeds(values: np.ndarray, least: float) -> bool:
    """Whether the mean is at least `least`, and N_STANDARD_ERRORS above 0."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return bool(values.mean() >= max(least, N_STANDARD_ERRORS * error))
