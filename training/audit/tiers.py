"""What each tier is good for, and which tiers fail together."""

from __future__ import annotations

import numpy as np

from training.audit.difficulty import Difficulty
from training.audit.result import MIN_LOSS, Pair, TierAudit
from training.evaluation.metrics import Interval, hull, interval


def audit_tiers(
    names: tuple[str, ...],
    correct: np.ndarray,
    usd: np.ndarray,
    output_tokens: np.ndarray,
    weights: np.ndarray,
    n_outcomes: np.ndarray,
    difficulty: Difficulty,
) -> dict[str, TierAudit]:
    """Every tier on the complete prompts.

    correct, usd, output_tokens: (n_prompts, n_tiers), tokens NaN where not logged. weights: of `resamples`.
    n_outcomes: of all prompts, (n_tiers,).
    """
    accuracy, cost = weights @ correct, weights @ usd
    right = correct >= 0.5
    only = right & (right.sum(axis=1, keepdims=True) == 1)
    cheapest = np.where(right.any(axis=1), np.argmin(np.where(right, usd, np.inf), axis=1), -1)
    xs, ys = hull(cost[0], accuracy[0])
    loss = difficulty.loss_without(cost[0])
    found = {}
    for k, name in enumerate(names):
        logged = np.isfinite(output_tokens[:, k])
        n_right = float(correct[logged, k].sum())
        share = np.divide(cost[:, k], accuracy[:, k], out=np.full(len(cost), np.nan), where=accuracy[:, k] > 0)
        on_hull = bool(((xs == cost[0, k]) & (ys == accuracy[0, k])).any())
        found[name] = TierAudit(
            n_outcomes=int(n_outcomes[k]),
            accuracy=interval(accuracy[:, k]),
            usd_per_1k=interval(cost[:, k] * 1000),
            usd_per_correct=interval(share) if accuracy[0, k] > 0 else Interval(np.nan, np.nan, np.nan),
            output_tokens_per_correct=float(output_tokens[logged, k].sum()) / n_right if n_right else np.nan,
            only_right=interval(weights @ only[:, k]),
            cheapest_correct=float((cheapest == k).mean()),
            on_hull=on_hull,
            pays=on_hull or bool(loss[k] >= MIN_LOSS),
        )
    return found


def _correlation(correct: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation of the tiers' errors; 0 with a tier that is always right or always wrong."""
    centred = correct - weight @ correct / weight.sum()
    covariance = (centred * weight[:, None]).T @ centred
    scale = np.sqrt(np.maximum(np.diag(covariance), 1e-15))
    found = np.clip(covariance / np.outer(scale, scale), -1, 1)
    np.fill_diagonal(found, 1.0)
    return np.asarray(found)


def effective_models(correct: np.ndarray, weight: np.ndarray) -> float:
    """How many tiers with uncorrelated errors are worth as much as these, from 1 to n_tiers.

    correct: (n_prompts, n_tiers). weight: of each prompt, (n_prompts,).
    """
    return float(correct.shape[1] ** 2 / (_correlation(correct, weight) ** 2).sum())


def audit_pairs(names: tuple[str, ...], correct: np.ndarray) -> dict[tuple[str, str], Pair]:
    """Every pair of tiers. correct: (n_prompts, n_tiers)."""
    right = correct >= 0.5
    phi = _correlation(correct, np.ones(len(correct)))
    return {
        (names[j], names[k]): Pair(
            both_right=float((right[:, j] & right[:, k]).mean()),
            one_right=float((right[:, j] ^ right[:, k]).mean()),
            none_right=float((~right[:, j] & ~right[:, k]).mean()),
            phi=float(phi[j, k]),
        )
        for j in range(len(names))
        for k in range(j + 1, len(names))
    }
