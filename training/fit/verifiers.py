"""What a check is worth: how often it passes right and wrong answers of each tier, learned from logged verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import beta, chi2

from router.plans.checks import MOST_SCORES, CheckModel

MIN_VERDICTS = 40
"""Verdicts on right answers, and on wrong ones, that a check needs before it is learned."""

TIER_PROMPTS = 20.0
"""What a tier shows counts against what all tiers show as if that had been seen so often."""

POOL_PROMPTS = 2.0
"""What all tiers show counts against even chances in the same way."""

SIGNIFICANCE = 0.01
"""A check's errors are taken to go with difficulty where chance alone would show as much less often than this."""

_LEAST = 1e-4


def fit_verifier(
    name: str, success: np.ndarray, correct: np.ndarray, score: np.ndarray, usd: np.ndarray
) -> CheckModel | None:
    """Learn a check; None where the log has too few verdicts on right or on wrong answers, or all are the same.

    success: out-of-fold estimates; correct: 0..1, NaN where not observed; score: 0..1, NaN where the check was not
    made; usd: what each check cost. All (n_prompts, n_tiers).

    P(class of the score | right or wrong) is a share of the pooled verdicts of all tiers, then of the tier's own,
    shrunk towards the pool. Where the errors go with difficulty (likelihood-ratio test against a constant), each is a
    straight line in the mean estimate of the prompt.
    """
    seen = np.isfinite(correct) & np.isfinite(score)
    right = correct >= 0.5
    if min((seen & right).sum(), (seen & ~right).sum()) < MIN_VERDICTS or np.ptp(score[seen]) == 0:
        return None
    thresholds = _thresholds(score[seen])
    classes = np.searchsorted(thresholds, np.nan_to_num(score), side="right")
    n_tiers, n_classes = score.shape[1], len(thresholds) + 1
    easy = np.broadcast_to(success.mean(axis=1, keepdims=True), score.shape)
    verdicts = np.empty((2, n_tiers, n_classes, 2))
    p_values = {}
    for outcome in (0, 1):
        rows = seen & (right == bool(outcome))
        even = np.full((2, n_classes), 1 / n_classes)
        flat = _shares(classes[rows], easy[rows], n_classes, even, POOL_PROMPTS, is_line=False)
        sloped = _shares(classes[rows], easy[rows], n_classes, even, POOL_PROMPTS, is_line=True)
        gain = _log_likelihood(sloped, classes[rows], easy[rows]) - _log_likelihood(flat, classes[rows], easy[rows])
        p_value = float(chi2.sf(max(0.0, 2 * gain), n_classes - 1))
        is_line = p_value < SIGNIFICANCE
        p_values["right" if outcome else "wrong"] = p_value
        pool = sloped if is_line else flat
        for tier in range(n_tiers):
            of_tier = rows[:, tier]
            verdicts[:, tier, :, outcome] = _shares(
                classes[of_tier, tier], easy[of_tier, tier], n_classes, pool, TIER_PROMPTS, is_line=is_line
            )
    return CheckModel(
        name=name,
        thresholds=tuple(thresholds.tolist()),
        verdicts=tuple(verdicts.tolist()),
        usd=tuple(_mean_usd(usd, seen).tolist()),
        declared=False,
        evidence=_evidence(seen, right, score, p_values),
    )


def _thresholds(scores: np.ndarray) -> np.ndarray:
    """A pass is a score of 0.5 and more; a check with more than two scores gets up to MOST_SCORES classes."""
    values = np.unique(scores)
    if len(values) <= 2:
        return np.array([0.5]) if values.max() >= 0.5 > values.min() else values[-1:]
    cuts = np.quantile(scores, np.arange(1, MOST_SCORES) / MOST_SCORES, method="higher")
    cuts = np.unique(cuts)
    return cuts[cuts > values[0]] if (cuts > values[0]).any() else values[1:2]


def _shares(
    classes: np.ndarray, easy: np.ndarray, n_classes: int, prior: np.ndarray, weight: float, *, is_line: bool
) -> np.ndarray:
    """P(class) at the hard and the easy end, (2, n_classes); prior: the same, which counts as `weight` prompts each."""
    seen = np.eye(n_classes)[classes]
    if not is_line:
        total = seen.sum(axis=0) + weight * prior.mean(axis=0)
        return np.asarray(np.tile(np.maximum(total, _LEAST) / np.maximum(total, _LEAST).sum(), (2, 1)))
    ends = np.stack([1 - easy, easy], axis=1)
    solved = np.linalg.solve(ends.T @ ends + weight * np.eye(2), ends.T @ seen + weight * prior)
    solved = np.maximum(solved, _LEAST)
    return np.asarray(solved / solved.sum(axis=1, keepdims=True))


def _log_likelihood(ends: np.ndarray, classes: np.ndarray, easy: np.ndarray) -> float:
    chance = (1 - easy)[:, None] * ends[0] + easy[:, None] * ends[1]
    return float(np.log(chance[np.arange(len(classes)), classes]).sum())


def _mean_usd(usd: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Mean price of a check per tier; that of all tiers where a tier has none."""
    counts = seen.sum(axis=0)
    total = np.where(seen, np.nan_to_num(usd), 0.0).sum(axis=0)
    return np.asarray(np.where(counts > 0, total / np.maximum(counts, 1), total.sum() / max(1, counts.sum())))


def _evidence(seen: np.ndarray, right: np.ndarray, score: np.ndarray, p_values: dict[str, float]) -> dict[str, Any]:
    """Sensitivity and specificity with exact intervals (Clopper & Pearson 1934), and what they rest on."""
    passed = score >= 0.5
    rights, wrongs = seen & right, seen & ~right
    return {
        "n_verdicts": int(seen.sum()),
        "sensitivity": _interval(int((rights & passed).sum()), int(rights.sum())),
        "specificity": _interval(int((wrongs & ~passed).sum()), int(wrongs.sum())),
        "sensitivity_per_tier": [
            _interval(int((rights & passed)[:, k].sum()), int(rights[:, k].sum())) for k in range(seen.shape[1])
        ],
        "specificity_per_tier": [
            _interval(int((wrongs & ~passed)[:, k].sum()), int(wrongs[:, k].sum())) for k in range(seen.shape[1])
        ],
        "errors_go_with_difficulty_p": {name: round(p_value, 6) for name, p_value in p_values.items()},
    }


def _interval(k: int, n: int) -> dict[str, float] | None:
    if n == 0:
        return None
    low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
    return {"value": k / n, "low": low, "high": high}
