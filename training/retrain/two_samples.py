"""Statistics of two samples: what tells them apart, and how far they are apart at equal covariates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import t
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MIN_OBSERVED = 30
"""Fewest observations on either side that are tested."""

MAX_CLASSIFIED = 20_000
"""Most prompts of either window that the classifier of `recency` sees, drawn at random."""


def recency(reference: np.ndarray, recent: np.ndarray, seed: int) -> np.ndarray:
    """How recent each prompt looks to a classifier that was not fitted on it.

    reference, recent: embeddings, (n_prompts, n_dims) each. seed: of the halves.
    Returns scores (n_reference + n_recent,), the reference first; NaN for the half that the classifier was fitted on,
    and for all prompts where a window has fewer than 2 * MIN_OBSERVED.
    """
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(window))[:MAX_CLASSIFIED] for window in (reference, recent)]
    embedding, is_recent = np.concatenate([reference, recent]), np.repeat([0, 1], [len(reference), len(recent)])
    scores = np.full(len(embedding), np.nan)
    if min(len(reference), len(recent)) < 2 * MIN_OBSERVED:
        return scores
    fitted, asked = (np.concatenate([drawn[0][half::2], len(reference) + drawn[1][half::2]]) for half in (0, 1))
    # Strong regularisation: some hundred prompts tell the shift of some hundred dimensions.
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced"))
    classifier.fit(embedding[fitted], is_recent[fitted])
    scores[asked] = classifier.decision_function(embedding[asked])
    return scores


@dataclass(frozen=True)
class Difference:
    """Recent minus reference at equal covariates, its t statistic and p-value."""

    value: float
    t: float
    p_value: float


def adjusted_difference(values: np.ndarray, is_recent: np.ndarray, covariates: np.ndarray) -> Difference | None:
    """Analysis of covariance: the coefficient of `is_recent` beside the covariates, in ordinary least squares.

    By partial regression (Frisch and Waugh 1933), with a standard error that holds under unequal variances (HC1,
    MacKinnon and White 1985) and is never below that of about one failure in each window.
    values, is_recent: (n_observed,). covariates: (n_observed, n_covariates).
    None where a window has fewer than MIN_OBSERVED, or where the covariates tell the windows apart so well that less
    is left to compare than two windows of MIN_OBSERVED.
    """
    n_recent = int(is_recent.sum())
    n_reference = len(values) - n_recent
    if min(n_reference, n_recent) < MIN_OBSERVED:
        return None
    design = np.column_stack([np.ones(len(values)), covariates])
    both = np.column_stack([values, is_recent]).astype(float)
    coefficients, _, rank, _ = np.linalg.lstsq(design, both, rcond=None)
    values_left, recent_left = (both - design @ coefficients).T
    in_common = float(recent_left @ recent_left)
    if in_common < MIN_OBSERVED / 2 - 1e-9:
        return None
    shift = float(recent_left @ values_left) / in_common
    residual = values_left - shift * recent_left
    freedom = len(values) - int(rank) - 1
    error = np.sqrt(float(recent_left**2 @ residual**2) * len(values) / freedom) / in_common
    error = max(error, np.hypot(1 / n_reference, 1 / n_recent))
    statistic = float(shift / error)
    return Difference(value=shift, t=statistic, p_value=float(2 * t.sf(abs(statistic), freedom)))


def dummies(codes: np.ndarray) -> np.ndarray:
    """One column for each segment with at least MIN_OBSERVED rows, except one; the rest counts as one segment.

    codes: int (n_rows,). Returns (n_rows, n_columns).
    """
    large = np.flatnonzero(np.bincount(codes) >= MIN_OBSERVED)
    return np.asarray(codes[:, None] == large[1:], dtype=float)
