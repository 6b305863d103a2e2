"""How good a policy's decisions are, per dollar, with bootstrap intervals.

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


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """As the evaluation's JSON has it."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Outcomes:
    """Observed outcomes of every tier on the prompts that are judged, without gaps.

    correct, cost_usd: (n_prompts, n_tiers). best: the tier against which all is measured.
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
    weights = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_bootstrap)
    return np.concatenate([np.ones((1, n_prompts)), weights]).astype(np.float32) / n_prompts


def interval(values: np.ndarray) -> Interval:
    """From one value per resample, the sample itself first."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))


def policy_figures(policy: Policy, outcomes: Outcomes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every figure of FIGURES that applies, per resample, (n_resamples,); APGR and CPT need two tiers."""
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
    return named if policy.gain is None else named | _gap_figures(policy.gain, outcomes, weights)


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

    cheapest = float(tier_cost.min())
    if best_cost > cheapest:
        aiq = float(np.interp(np.linspace(cheapest, best_cost, 401), xs, ys).mean())
    else:
        aiq = best_accuracy
    reaches = cost[accuracy >= best_accuracy - 1e-9]
    least = min(float(reaches.min()) if len(reaches) else best_cost, best_cost)
    return (
        aiq,
        float(accuracy.max()) / best_accuracy - 1 if best_accuracy > 0 else 0.0,
        1 - least / best_cost if best_cost > 0 else 0.0,
        cost_at(0.98 * best_accuracy),
        cost_at(0.95 * best_accuracy),
    )


def _gap_figures(gain: np.ndarray, outcomes: Outcomes, weights: np.ndarray) -> dict[str, np.ndarray]:
    """APGR and CPT: the better tier is asked first where the predicted gain is largest."""
    order = np.argsort(-gain, kind="stable")
    better = outcomes.best
    measured = (outcomes.correct[:, better] - outcomes.correct[:, 1 - better])[order]
    weight = weights[:, order]
    zero = np.zeros((len(weights), 1))
    calls = np.concatenate([zero, np.cumsum(weight, axis=1)], axis=1)
    recovered = np.concatenate([zero, np.cumsum(weight * measured, axis=1)], axis=1)
    gap = recovered[:, -1:]
    share = recovered / np.where(np.abs(gap) < 1e-12, np.nan, gap)
    return {
        "apgr": np.trapezoid(share, calls, axis=1),
        "cpt50": _calls_at(share, calls, 0.5),
        "cpt80": _calls_at(share, calls, 0.8),
    }


def _calls_at(share: np.ndarray, calls: np.ndarray, target: float) -> np.ndarray:
    """The least share of calls at which `target` of the gap is recovered."""
    return calls[np.arange(len(calls)), (share >= target).argmax(axis=1)]


def calibration_error(success: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """ECE of one tier per resample, (n_resamples,). success, correct: (n_prompts,)."""
    bins = np.minimum((success * N_BINS).astype(int), N_BINS - 1)
    in_bin = np.eye(N_BINS, dtype=np.float32)[bins]  # (n_prompts, N_BINS)
    return np.abs(weights @ (in_bin * (success - correct)[:, None].astype(np.float32))).sum(axis=1)


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
