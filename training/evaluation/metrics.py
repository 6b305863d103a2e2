"""How accurate a policy's decisions are for what they cost, with bootstrap intervals.

A policy is a set of configurations (one per value of a dial); each answers every prompt with one tier,
which gives an accuracy and a cost. All figures follow from these and from the single tiers' points:

- AIQ (RouterBench, Hu et al. 2024): mean over cost, from the cheapest tier's mean cost to the best
  tier's, of the accuracy on the non-decreasing convex hull of the policy's and the single tiers' points.
- PerfGain, CostSave (LLMRouterBench): best accuracy / best tier's - 1; 1 - least cost at which the best
  tier's accuracy is reached / the best tier's cost.
- cost at q %: cost on the hull, relative to always asking the best tier, at q % of its accuracy.
- APGR, CPT (RouteLLM, Ong et al. 2024), two tiers: area under the recovered share of the accuracy gap
  over the share of calls to the better tier; share of calls that recovers x of the gap.
- ECE: expected calibration error over 10 bins of equal width; Brier: mean squared error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_BOOTSTRAP = 1000
N_BINS = 10
_MAX_CELLS = 50_000_000
_NO_GAP = 1e-6  # accuracies that differ by less are equal: sums are float32


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval, by bootstrap over prompts unless stated otherwise.

    A bootstrap interval is widened to hold the value where it does not. Noise can only raise some figures (ECE, a
    hull), so they are higher in most resamples than in the sample itself.
    """

    value: float
    low: float
    high: float

    def times(self, factor: float) -> Interval:
        """The same figure in another unit."""
        return Interval(factor * self.value, factor * self.low, factor * self.high)

    def text(self, digits: int = 3) -> str:
        """Such as "0.95 (0.93 to 0.97)", with so many significant digits."""
        return f"{self.value:.{digits}g} ({self.low:.{digits}g} to {self.high:.{digits}g})"

    def to_json(self) -> dict[str, float]:
        """As it stands in the JSON of an evaluation."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Outcomes:
    """Observed outcomes of every tier on the prompts that are judged, without gaps.

    correct, cost_usd: (n_prompts, n_tiers). best: the tier that all figures are relative to.
    """

    correct: np.ndarray
    cost_usd: np.ndarray
    best: int


@dataclass(frozen=True)
class Policy:
    """What a router answers, configuration by configuration.

    choices: int (n_prompts, n_configurations), the tier chosen.
    gain: for two tiers, (n_prompts,) the predicted gain of the better tier, which ranks the prompts;
        None where the policy does not rank them.
    """

    choices: np.ndarray
    gain: np.ndarray | None = None


FIGURES = ("aiq", "perf_gain", "cost_save", "cost_at_98", "cost_at_95", "apgr", "cpt50", "cpt80")


def resamples(n_prompts: int, seed: int = 0, n_bootstrap: int = N_BOOTSTRAP) -> np.ndarray:
    """Weights of the prompts, float32 (1 + n_bootstrap, n_prompts); row 0 is the sample itself."""
    n_bootstrap = min(n_bootstrap, max(100, _MAX_CELLS // n_prompts))
    rng = np.random.default_rng(seed)
    weights = np.ones((1 + n_bootstrap, n_prompts), dtype=np.float32)
    share = np.full(n_prompts, 1 / n_prompts)
    for row in weights[1:]:  # one at a time: whole numbers take twice the memory
        row[:] = rng.multinomial(n_prompts, share)
    weights /= n_prompts
    return weights


def interval(values: np.ndarray) -> Interval:
    """From one value per resample, the sample itself first; NaN where a resample does not define it."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    value = float(values[0])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def policy_figures(policy: Policy, outcomes: Outcomes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of FIGURES that applies, per resample, (n_resamples,).

    APGR and CPT need two tiers, one of them better than the other.
    """
    rows = np.arange(len(outcomes.correct))[:, None]
    accuracy = weights @ outcomes.correct[rows, policy.choices].astype(np.float32)
    cost = weights @ outcomes.cost_usd[rows, policy.choices].astype(np.float32)
    tier_accuracy = weights @ outcomes.correct.astype(np.float32)
    tier_cost = weights @ outcomes.cost_usd.astype(np.float32)
    figures = [
        _hull_figures(*resample, outcomes.best)
        for resample in zip(accuracy, cost, tier_accuracy, tier_cost, strict=True)
    ]
    named = dict(zip(FIGURES[:5], np.array(figures).T, strict=True))
    if policy.gain is None or np.ptp(tier_accuracy[0]) <= _NO_GAP:
        return named
    return named | _gap_figures(policy.gain, outcomes, weights)


def curve(policy: Policy, outcomes: Outcomes) -> list[tuple[float, float]]:
    """(usd_per_1k, accuracy) of each configuration, by rising cost."""
    rows = np.arange(len(outcomes.correct))[:, None]
    accuracy = outcomes.correct[rows, policy.choices].mean(axis=0)
    usd_per_1k = outcomes.cost_usd[rows, policy.choices].mean(axis=0) * 1000
    return sorted({(float(cost), float(share)) for cost, share in zip(usd_per_1k, accuracy, strict=True)})


def hull(cost: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The non-decreasing upper convex hull of points, by rising cost (random mixtures included)."""
    order = np.lexsort((-accuracy, cost))
    xs: list[float] = []
    ys: list[float] = []
    for x, y in zip(cost[order].tolist(), accuracy[order].tolist(), strict=True):
        if ys and y <= ys[-1]:
            continue
        while len(xs) > 1 and (ys[-1] - ys[-2]) * (x - xs[-2]) <= (y - ys[-2]) * (xs[-1] - xs[-2]):
            xs.pop()
            ys.pop()
        xs.append(x)
        ys.append(y)
    return np.array(xs), np.array(ys)


def _hull_figures(
    accuracy: np.ndarray, cost: np.ndarray, tier_accuracy: np.ndarray, tier_cost: np.ndarray, best: int
) -> tuple[float, ...]:
    best_accuracy, best_cost = float(tier_accuracy[best]), float(tier_cost[best])
    xs, ys = hull(np.concatenate([cost, tier_cost]), np.concatenate([accuracy, tier_accuracy]))

    def cost_at(target: float) -> float:
        reached = ys[-1] >= target
        return float(np.interp(target, ys, xs)) / best_cost if reached and best_cost > 0 else 1.0

    aiq = float(np.interp(np.linspace(float(tier_cost.min()), best_cost, 401), xs, ys).mean())
    reaches = cost[accuracy >= best_accuracy - _NO_GAP]
    least = min(float(reaches.min()) if len(reaches) else best_cost, best_cost)
    return (
        aiq,
        float(accuracy.max()) / best_accuracy - 1 if best_accuracy > 0 else 0.0,
        1 - least / best_cost if best_cost > 0 else 0.0,
        cost_at(0.98 * best_accuracy),
        cost_at(0.95 * best_accuracy),
    )


def _gap_figures(gain: np.ndarray, outcomes: Outcomes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """APGR and CPT: the better tier is asked first where the predicted gain is largest.

    Prompts of equal gain are asked in random order: a straight line on the curve of recovered gap.
    """
    order = np.argsort(-gain, kind="stable")
    better = outcomes.best
    measured = (outcomes.correct[:, better] - outcomes.correct[:, 1 - better])[order]
    ends = np.flatnonzero(np.append(np.diff(gain[order]) != 0, True))
    figures = [_recovery(resample[order].astype(np.float64), measured, ends) for resample in weights]
    return dict(zip(FIGURES[5:], np.array(figures).T, strict=True))


def _recovery(weight: np.ndarray, measured: np.ndarray, ends: np.ndarray) -> tuple[float, float, float]:
    """APGR, CPT(50 %), CPT(80 %) of one resample; ends: where runs of equal gain end, in order."""
    calls = np.concatenate([[0.0], np.cumsum(weight)[ends]])
    recovered = np.concatenate([[0.0], np.cumsum(weight * measured)[ends]])
    if abs(recovered[-1]) <= _NO_GAP:
        return np.nan, np.nan, np.nan
    share = recovered / recovered[-1]
    return float(np.trapezoid(share, calls)), _calls_at(share, calls, 0.5), _calls_at(share, calls, 0.8)


def _calls_at(share: np.ndarray, calls: np.ndarray, target: float) -> float:
    """The least share of calls at which `target` of the gap is recovered."""
    end = int((share >= target).argmax())  # never 0: no call recovers nothing
    return float(np.interp(target, share[end - 1 : end + 1], calls[end - 1 : end + 1]))


def calibration_error(success: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ECE of one tier per resample, (n_resamples,). success, correct: (n_prompts,)."""
    bins = np.minimum((success * N_BINS).astype(int), N_BINS - 1)
    in_bin = np.eye(N_BINS, dtype=np.float32)[bins]  # (n_prompts, N_BINS)
    return np.asarray(np.abs(weights @ (in_bin * (success - correct)[:, None].astype(np.float32))).sum(axis=1))


def calibration_error_by_chance(success: np.ndarray, seed: int = 0) -> float:
    """The ECE to expect of estimates that are exactly right, on so many prompts: the mean of 100 simulated draws."""
    rng = np.random.default_rng(seed)
    one = np.full((1, len(success)), 1 / len(success), dtype=np.float32)
    draws = (calibration_error(success, (rng.random(len(success)) < success).astype(float), one) for _ in range(100))
    return float(np.mean([draw[0] for draw in draws]))


def reliability(success: np.ndarray, correct: np.ndarray) -> list[tuple[float, float, int]]:
    """(mean predicted, share correct, number of prompts) of each bin that has any."""
    bins = np.minimum((success * N_BINS).astype(int), N_BINS - 1)
    return [
        (float(success[bins == b].mean()), float(correct[bins == b].mean()), int((bins == b).sum()))
        for b in np.unique(bins)
    ]


def worth_grid(mean_cost_usd: np.ndarray) -> np.ndarray:
    """Values of worth_usd that take a policy from cheapest to best: 0, then a geometric grid."""
    priced = mean_cost_usd[mean_cost_usd > 0]
    if not len(priced):
        return np.array([0.0, 1.0])
    return np.concatenate([[0.0], np.geomspace(priced.min() * 0.3, priced.max() * 3e3, 60)])


def choices_by_worth(success: np.ndarray, cost_usd: np.ndarray, worth_usd: np.ndarray) -> np.ndarray:
    """Argmax of worth x success - cost, int (n_prompts, n_worths), for estimates made outside a graph."""
    return np.stack([np.argmax(worth * success - cost_usd, axis=1) for worth in worth_usd], axis=1)
