"""Ridge regressions whose penalties are chosen by their leave-one-out errors."""

from __future__ import annotations

import numpy as np

PENALTIES = np.geomspace(1e-2, 1e3, 16)


def ridge(features: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) of a ridge regression per contrast between tiers.

    correct: complete, (n_prompts, n_tiers). weight: of each prompt, (n_prompts,); None weighs all alike.
    Outcomes are rotated to their principal directions across tiers, and each direction gets the penalty
    with the smallest leave-one-out error (closed form, Hastie et al. 2009, section 7.10): what all tiers
    have in common is easy to learn, their differences need a much stronger penalty.
    """
    share = np.full(len(features), 1 / len(features)) if weight is None else weight / weight.sum()
    mean, offset = share @ features, share @ correct
    root = np.sqrt(len(share) * share)[:, None]
    x, y = root * (features - mean), root * (correct - offset)
    _, directions = np.linalg.eigh(y.T @ y)
    targets = y @ directions
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    rotated = x @ vectors
    squares = rotated**2
    projections = rotated.T @ targets
    best = np.full(targets.shape[1], np.inf)
    weights = np.zeros((x.shape[1], targets.shape[1]))
    for penalty in PENALTIES:
        shrinkage = 1 / (values + penalty)
        coefficients = shrinkage[:, None] * projections
        leverage = squares @ shrinkage + share
        residuals = (targets - rotated @ coefficients) / (1 - np.minimum(leverage, 0.999))[:, None]
        error = (residuals**2).mean(axis=0)
        better = error < best
        best[better] = error[better]
        weights[:, better] = (vectors @ coefficients)[:, better]
    weights = weights @ directions.T
    return weights, offset - mean @ weights


def ridge_on_cells(features: np.ndarray, correct: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) where hardly any prompt has outcomes of two tiers.

    correct: (n_prompts, n_tiers), NaN where not observed; weight: of each outcome, same shape.

    A ridge regression on all outcomes, each less its tier's mean, learns what tiers have in common: how hard a
    prompt is. Another per tier learns from its own outcomes what remains. So the fewer outcomes a tier has, the
    more is its estimate its mean, moved by what other tiers say of such prompts; a tier without any has the mean
    of all outcomes for its own.
    """
    is_seen = np.isfinite(correct)
    w = np.where(is_seen, weight, 0.0)
    known = np.nan_to_num(correct)
    everywhere = (w * known).sum() / w.sum()
    effective = w * (w.sum(axis=0) / np.maximum((w**2).sum(axis=0), 1e-12))  # sums to Kish's effective sample size
    means = ((effective * known).sum(axis=0) + everywhere) / (effective.sum(axis=0) + 1)

    asked = is_seen.any(axis=1)
    total = w[asked].sum(axis=1)
    surprise = (w * (known - means))[asked].sum(axis=1) / total
    shared, shared_bias = ridge(features[asked], surprise[:, None], total)
    weights, bias = shared.repeat(len(means), axis=1), means + shared_bias
    remaining = known - features @ weights - bias
    for tier, seen in enumerate(is_seen.T):
        if seen.any():
            own, own_bias = ridge(features[seen], remaining[seen, tier, None], w[seen, tier])
            weights[:, tier] += own[:, 0]
            bias[tier] += own_bias[0] * effective[:, tier].sum() / (effective[:, tier].sum() + 1)
    return weights, bias
