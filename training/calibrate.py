"""Calibrate success to what held-out prompts showed, and the dial to what it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from router.bundle import DialPoint

LOWEST_SUCCESS = 0.01
PRIOR_PROMPTS = 10.0
PRIOR_VARIANCE = 1 / 12
"""Of the estimates of the prior's prompts: spread evenly from 0 to 1."""

DIAL_QUALITIES = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.00)
SLACKS = np.concatenate([np.arange(0, 0.1, 0.005), np.arange(0.1, 0.3, 0.01), np.arange(0.3, 1.0001, 0.05)])


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


# ---- the dial --------------------------------------------------------------------------------------


def doubly_robust(success: np.ndarray, correct: np.ndarray, propensity: np.ndarray) -> np.ndarray:
    """Outcomes of all tiers that are right on average: success, moved by (correct - success) / propensity where seen.

    success: estimates that did not see the prompt's own outcome; correct, propensity: NaN where not observed or
    not known; an unknown propensity counts as 1. All (n_prompts, n_tiers). A single value may lie far outside 0..1.
    With the right propensities means over prompts, and over any choice of tiers that does not look at the
    outcomes, are unbiased however wrong `success` is; the better it is, the less they scatter.
    """
    error = np.nan_to_num(correct - success)
    return np.asarray(success + error / np.where(np.isfinite(propensity), propensity, 1.0))


def calibrate_dial(
    success: np.ndarray, correct: np.ndarray, confidence: float, *, largest: float = 1.0, promise: bool = True
) -> tuple[DialPoint, ...]:
    """For each quality the largest slack that keeps it, with confidence, in whatever order prices rank the tiers.

    success: calibrated, for prompts that were not trained on, (n_prompts, n_tiers).
    correct: 0..1, same shape; only prompts that every tier answered count. Of partial feedback: `doubly_robust`
        outcomes, as the bound takes nothing but means and mean squares over prompts.
    largest: what one outcome can come to; of doubly robust outcomes the largest 1 / propensity.
    promise: False where `correct` is not to be relied on, as of partial feedback without propensities: slacks are
        found in the same way, as the best estimate there is, and none is promised.

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then test") from slack 0 upwards: a slack
    holds where the lower confidence bound of `accuracy kept - quality x best tier's accuracy` is at
    least 0, and testing stops at the first that does not hold. It must hold for the tier of the lowest
    estimate among the admissible ones and for every order in which prices can rank the tiers; as all must
    pass, none needs a correction (intersection-union test). A quality that not even slack 0 keeps is not
    promised. Each quality is tested for itself, at the full confidence.
    """
    full = np.isfinite(correct).all(axis=1)
    success, correct = success[full], correct[full]
    points = {quality: DialPoint(quality, 0.0, 0.0, promised=False) for quality in DIAL_QUALITIES}
    if len(correct):
        best = correct[:, correct.mean(axis=0).argmax()]
        holding = list(DIAL_QUALITIES)
        for slack in SLACKS.tolist():
            admitted = _Admitted.at(slack, success, correct, best, largest)
            for quality in tuple(holding):
                bound = admitted.lower_bound(quality, confidence)
                kept = max(0.0, quality + bound / max(float(best.mean()), 1e-9))
                if bound >= 0:
                    points[quality] = DialPoint(quality, slack, kept, promised=promise)
                    continue
                holding.remove(quality)
                if slack == 0:
                    points[quality] = DialPoint(quality, 0.0, kept, promised=False)
    return _monotone(list(points.values()))


def _monotone(points: Sequence[DialPoint]) -> tuple[DialPoint, ...]:
    """No higher quality with a larger slack."""
    result: list[DialPoint] = []
    for point in points:
        slack = min(point.slack, result[-1].slack) if result else point.slack
        result.append(DialPoint(point.quality, slack, point.kept, point.promised))
    return tuple(result)


LOSS = np.array([0.0, 1.0, 0.0, 0.0, 1.0])
"""The sums of one prompt on which the choice is wrong and the best tier right."""


@dataclass(frozen=True)
class _Admitted:
    """What the tiers admissible at one slack got right, as sums over prompts that give moments at any quality.

    The five sums are of y, b, y^2, y b, b^2: y the outcome of the tier chosen, b that of the best tier.
    loss: LOSS, of the largest size it can have.
    lowest: where the admissible tier of the lowest estimate is chosen, (5,).
    placed: of the prompts that tier k decides when prices rank it next after the tiers of set S (a bit
        mask), being admissible where none of S is, (5, n_sets, n_tiers).
    """

    n_prompts: int
    loss: np.ndarray
    lowest: np.ndarray
    placed: np.ndarray

    @classmethod
    def at(
        cls, slack: float, success: np.ndarray, correct: np.ndarray, best: np.ndarray, largest: float = 1.0
    ) -> _Admitted:
        n_prompts, n_tiers = correct.shape
        admissible = success >= success.max(axis=1, keepdims=True) - slack
        lowest = np.where(admissible, success, np.inf).argmin(axis=1)
        b = np.broadcast_to(best[:, None], correct.shape)
        terms = np.stack([correct, b, correct**2, correct * b, b**2])
        sets = admissible @ (1 << np.arange(n_tiers))
        within = np.empty((len(terms), 2**n_tiers, n_tiers))  # where the admissible set is, then lies within, a set
        for index, tier in np.ndindex(len(terms), n_tiers):
            within[index, :, tier] = np.bincount(sets, terms[index, :, tier] * admissible[:, tier], 2**n_tiers)
        for tier in range(n_tiers):
            halves = within.reshape(len(terms), -1, 2, 1 << tier, n_tiers)
            halves[:, :, 1] += halves[:, :, 0]
        lowest_sums = terms[:, np.arange(n_prompts), lowest].sum(axis=1)
        # Reversed: none of S is all within its complement.
        return cls(n_prompts, LOSS * largest ** np.array([1, 1, 2, 2, 2]), lowest_sums, placed=within[:, ::-1])

    def lower_bound(self, quality: float, confidence: float) -> float:
        """Lower confidence bound of the mean of `y - quality x b`, for the lowest estimate and every order.

        A normal bound, with one loss counted in, without which it would be far too sure of itself where
        few losses were seen. It is a convex function of mean and mean square, so its tangent plane at the
        choice of the lowest estimate lies below it for every order, and the least value of that plane, a
        sum over prompts, is found without trying all orders.
        """
        n = self.n_prompts + 1
        mean_of, square_of = np.array([1, -quality, 0, 0, 0]), np.array([0, 0, 1, -2 * quality, quality**2])
        lowest = self.lowest + self.loss
        mean, square = float(mean_of @ lowest) / n, float(square_of @ lowest) / n
        deviation = np.sqrt(max(square - mean**2, 1e-12))
        width = norm.ppf(confidence) / np.sqrt(self.n_prompts)
        plane = (1 + width * mean / deviation) * mean_of - width / (2 * deviation) * square_of
        worst = _least_over_orders(np.tensordot(plane, self.placed, 1))
        return float(mean - width * deviation + min(0.0, worst - plane @ self.lowest) / n)


def _least_over_orders(gain: np.ndarray) -> float:
    """The least sum over all orders of the tiers, where tier k after the set S adds gain[S, k]; (n_sets, n_tiers)."""
    n_sets, n_tiers = gain.shape
    sets = np.arange(n_sets)
    sizes = np.bitwise_count(sets)
    least = np.where(sets == 0, 0.0, np.inf)
    for size in range(n_tiers):
        layer = sets[sizes == size]
        for tier in range(n_tiers):
            before = layer[(layer >> tier) & 1 == 0]
            after = before | (1 << tier)
            least[after] = np.minimum(least[after], least[before] + gain[before, tier])
    return float(least[-1])
