"""Calibrate success to what held-out prompts showed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LOWEST_SUCCESS = 0.01
PRIOR_PROMPTS = 10.0
PRIOR_VARIANCE = 1 / 12
"""Of the estimates of the prior's prompts: spread evenly from 0 to 1."""


@dataclass(frozen=True)
class Calibration:
    """slope x p + intercept per tier, confined to LOWEST_SUCCESS from either end; slope, intercept: (n_tiers,)."""

    slope: np.ndarray
    intercept: np.ndarray

    def apply(self, success: np.ndarray) -> np.ndarray:
        """Calibrated P(correct), (n_prompts, n_tiers), strictly between 0 and 1."""
        return np.asarray(np.clip(self.slope * success + self.intercept, LOWEST_SUCCESS, 1 - LOWEST_SUCCESS))


def fit_calibration(success: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None) -> Calibration:
    """Linear recalibration per tier (Cox 1958, on the scale of probabilities) for prompts that were not trained on.

    success: uncalibrated, (n_prompts, n_tiers); correct: 0..1, NaN where not observed. weight: of each outcome,
    same shape, of which only the proportions within a tier count; None weighs all alike. Least squares, with a
    prior worth PRIOR_PROMPTS prompts that holds the slope near 1 and the mean where it is: that of a tier with few
    outcomes, or with few that carry most of the weight (Kish's effective sample size counts). A slope is never
    negative, so no ranking of prompts is ever reversed. On the logistic scale (Platt 1999) the same fits are no
    better calibrated, and cost more at run time.
    """
    slope, intercept = np.ones(correct.shape[1]), np.zeros(correct.shape[1])
    for tier in range(correct.shape[1]):
        seen = np.isfinite(correct[:, tier])
        if not seen.any():
            continue
        p, error = success[seen, tier], correct[seen, tier] - success[seen, tier]
        w = np.ones(len(p)) if weight is None else weight[seen, tier]
        w = w * (w.sum() / (w @ w))  # sums to the effective sample size
        centre = (w @ p) / w.sum()
        away = p - centre
        steeper = (w * away @ error) / (w * away @ away + PRIOR_PROMPTS * PRIOR_VARIANCE)
        higher = (w @ error) / (w.sum() + PRIOR_PROMPTS)
        slope[tier] = max(0.0, 1 + steeper)
        intercept[tier] = centre + higher - slope[tier] * centre
    return Calibration(slope, intercept)


def doubly_robust(success: np.ndarray, correct: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """Outcomes of all tiers that are right on average: success, moved by (correct - success) / propensity where seen.

    success: estimates that did not see the prompt's own outcome; correct, propensity: NaN where not observed or
    not known; an unknown propensity counts as 1. All (n_prompts, n_tiers). A single value may lie far outside 0..1.
    With the right propensities means over prompts, and over any choice of tiers that does not look at the
    outcomes, are unbiased however wrong `success` is; the better it is, the less they scatter.
    """
    error = np.nan_to_num(correct - success)
    return np.asarray(success + error / np.where(np.isfinite(propensity), propensity, 1.0))
