"""Logistic regressions of success, one per tier."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from training.log.sample import evenly

MAX_LOGISTIC_PROMPTS = 100_000
"""Of a handful of weights per tier; their error is then far below the noise of what they calibrate."""


def logistic_per_tier(features: np.ndarray, correct: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,); correct may have gaps (NaN) and lie between 0 and 1."""
    weights = np.zeros((features.shape[1], correct.shape[1]))
    bias = np.zeros(correct.shape[1])
    for tier in range(correct.shape[1]):
        seen = np.flatnonzero(np.isfinite(correct[:, tier]))
        seen = seen[evenly(len(seen), MAX_LOGISTIC_PROMPTS)]
        share = correct[seen, tier]
        x = np.concatenate([features[seen], features[seen]])
        y = np.repeat([1, 0], len(seen))
        weight = np.concatenate([share, 1 - share])
        if weight[y == 1].sum() == 0 or weight[y == 0].sum() == 0:
            bias[tier] = logit(np.array((share.sum() + 0.5) / (len(share) + 1)))
            continue
        model = LogisticRegression(C=strength, max_iter=1000).fit(x[weight > 0], y[weight > 0], weight[weight > 0])
        weights[:, tier], bias[tier] = model.coef_[0], model.intercept_[0]
    return weights, bias


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p))."""
    return np.asarray(np.log(p / (1 - p)))
