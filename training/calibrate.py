"""Calibrate success to what held-out prompts showed, and the dial to what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

from router.bundle import DialPoint
from training.estimators import logit, sigmoid
from training.graph import Graph

LOWEST_SUCCESS = 0.01
PRIOR_PROMPTS = 10.0

DIAL_QUALITIES = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.00)
SLACKS = np.concatenate([np.arange(0, 0.1, 0.005), np.arange(0.1, 0.3, 0.01), np.arange(0.3, 1.0001, 0.05)])


@dataclass(frozen=True)
class Calibration:
    """sigmoid(slope x logit(p) + intercept) per tier (Platt 1999); slope, intercept: (n_tiers,)."""

    slope: np.ndarray
    intercept: np.ndarray

    def apply(self, success: np.ndarray) -> np.ndarray:
        """Calibrated P(correct), (n_prompts, n_tiers), strictly between 0 and 1."""
        return sigmoid(self.slope * _confined_logit(success) + self.intercept)

    def add_to(self, graph: Graph, success: str) -> str:
        """The same as nodes of a graph."""
        confined = graph.add("Clip", success, graph.constant(LOWEST_SUCCESS), graph.constant(1 - LOWEST_SUCCESS))
        odds = graph.add("Div", confined, graph.add("Sub", graph.constant(1.0), confined))
        scaled = graph.add("Mul", graph.add("Log", odds), graph.constant(self.slope))
        return graph.add("Sigmoid", graph.add("Add", scaled, graph.constant(self.intercept)), output="success")


def fit_calibration(success: np.ndarray, correct: np.ndarray) -> Calibration:
    """Platt scaling per tier on estimates for prompts that were not trained on.

    success: uncalibrated, (n_prompts, n_tiers); correct: 0..1, NaN where not observed. A prior worth
    PRIOR_PROMPTS prompts holds slope near 1 and intercept near 0 where a tier has few outcomes.
    """
    slope, intercept = np.ones(correct.shape[1]), np.zeros(correct.shape[1])
    for tier in range(correct.shape[1]):
        seen = np.isfinite(correct[:, tier])
        x, y = _confined_logit(success[seen, tier]), correct[seen, tier]

        def loss(parameters: np.ndarray, x: np.ndarray = x, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            z = parameters[0] * x + parameters[1]
            away = parameters - [1, 0]
            error = sigmoid(z) - y
            value = float((np.logaddexp(0, z) - y * z).sum() + PRIOR_PROMPTS / 2 * (away**2).sum())
            return value, np.array([error @ x, error.sum()]) + PRIOR_PROMPTS * away

        if seen.any():
            slope[tier], intercept[tier] = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    return Calibration(np.maximum(slope, 0.0), intercept)


def _confined_logit(success: np.ndarray) -> np.ndarray:
    return logit(np.clip(success, LOWEST_SUCCESS, 1 - LOWEST_SUCCESS))


# ---- the dial --------------------------------------------------------------------------------------


def calibrate_dial(success: np.ndarray, correct: np.ndarray, confidence: float) -> tuple[DialPoint, ...]:
    """For each quality the largest slack that keeps it, with confidence, whatever the prices.

    success: calibrated, for prompts that were not trained on, (n_prompts, n_tiers).
    correct: 0..1, same shape; only prompts that every tier answered count.

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then test") from slack 0 upwards: a slack
    holds where the lower confidence bound of `accuracy kept - quality x best tier's accuracy` is at
    least 0, and testing stops at the first that does not hold. The bound is a normal one, on paired
    differences. It must hold for the tier of the lowest estimate among the admissible ones and for every
    order in which prices can rank the tiers; as all must pass, none needs a correction (intersection-
    union test). A quality that not even slack 0 keeps is not promised.
    """
    full = np.isfinite(correct).all(axis=1)
    success, correct = success[full], correct[full]
    if not len(correct):
        return tuple(DialPoint(quality, 0.0, 0.0, promised=False) for quality in DIAL_QUALITIES)
    best = correct[:, correct.mean(axis=0).argmax()]
    picked = {slack: _worst_choices(success, correct, float(slack)) for slack in SLACKS}
    points = []
    for quality in DIAL_QUALITIES:
        bounds = [(float(slack), _lower_bound(picked[slack] - quality * best[:, None], confidence)) for slack in SLACKS]
        holding = [
            slack for slack, _ in bounds[: next((i for i, (_, bound) in enumerate(bounds) if bound < 0), len(bounds))]
        ]
        slack = holding[-1] if holding else 0.0
        kept = quality + dict(bounds)[slack] / max(best.mean(), 1e-9)
        points.append(DialPoint(quality, slack, float(kept), promised=bool(holding)))
    return _monotone(points)


def _monotone(points: Sequence[DialPoint]) -> tuple[DialPoint, ...]:
    """No higher quality with a larger slack."""
    result: list[DialPoint] = []
    for point in points:
        slack = min(point.slack, result[-1].slack) if result else point.slack
        result.append(DialPoint(point.quality, slack, point.kept, point.promised))
    return tuple(result)


def _lower_bound(differences: np.ndarray, confidence: float) -> float:
    """The smallest, over columns, of the one-sided lower confidence bounds of the means."""
    error = differences.std(axis=0, ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.inf
    return float((differences.mean(axis=0) - norm.ppf(confidence) * error).min())


MAX_ORDERED_TIERS = 5


def _worst_choices(success: np.ndarray, correct: np.ndarray, slack: float) -> np.ndarray:
    """Outcome of the admissible tier that each price order takes, and of the one with the lowest estimate.

    Returns (n_prompts, 1 + n_orders). Up to MAX_ORDERED_TIERS tiers all orders are tried; beyond, for
    each tier the order that prefers it and then the tiers by rising accuracy.
    """
    n_tiers = success.shape[1]
    admissible = success >= success.max(axis=1, keepdims=True) - slack
    lowest = np.where(admissible, success, np.inf).argmin(axis=1)
    rows = np.arange(len(success))
    if n_tiers <= MAX_ORDERED_TIERS:
        orders = list(permutations(range(n_tiers)))
    else:
        by_accuracy = tuple(np.argsort(correct.mean(axis=0)).tolist())
        orders = [(tier, *(other for other in by_accuracy if other != tier)) for tier in range(n_tiers)]
    outcomes = [correct[rows, lowest]]
    for order in orders:
        first = admissible[:, order].argmax(axis=1)
        outcomes.append(correct[rows, np.array(order)[first]])
    return np.stack(outcomes, axis=1)
