"""Gaps in a table of outcomes, filled from the tiers that were observed."""

from __future__ import annotations

import numpy as np

from training.fit.ridge import ridge


def gap_weights(correct: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) of the estimates that fill gaps.

    correct: (n_prompts, n_tiers), NaN where not observed; features: (n_prompts, n_features). A ridge regression is
    fitted twice: first on outcomes whose gaps are filled from the tiers' means, then from the first fit's estimates.
    """
    observed = np.isfinite(correct)
    means = np.nan_to_num(correct).sum(axis=0) / np.maximum(observed.sum(axis=0), 1)
    estimate = np.broadcast_to(means, correct.shape)
    for _ in range(2):
        weights, bias = ridge(features, with_gaps_filled(correct, estimate))
        estimate = features @ weights + bias
    return weights, bias


def with_gaps_filled(correct: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Each gap gets the tier's estimate, moved by how the prompt's observed tiers differ from their estimates.

    Both (n_prompts, n_tiers); correct is NaN where not observed.
    """
    observed = np.isfinite(correct)
    known = np.nan_to_num(correct)
    surprise = (observed * (known - estimate)).sum(axis=1, keepdims=True) / (observed.sum(axis=1, keepdims=True) + 1)
    return np.asarray(np.where(observed, known, np.clip(estimate + surprise, 0, 1)))
