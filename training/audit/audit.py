"""Whether a log says that routing can pay, before any training.

Everything is counted on the prompts that every tier answered; in brackets stand 95 % bootstrap intervals over prompts.

- Ceiling. A log with one attempt per prompt and tier cannot tell skill from luck: all it proves is that the accuracy of
  the best possible router lies between the best single tier's and the oracle's. The estimate takes off the oracle what
  luck alone gives one: the oracle of `training/audit/difficulty.py`, where outcomes are independent given the prompt's
  difficulty, less the accuracy of knowing that difficulty. It stays within the two bounds, and is low where tiers
  have specialities that are sure, or fail together for other reasons than difficulty.
- Repeated attempts need no such assumption. Choosing on one half of the attempts of each cell and judging on the other
  is without bias for a choice that exists, so a lower bound in expectation; the best mean of attempts is an upper
  bound in expectation (Jensen's inequality).
- Effective models: the participation ratio of the eigenvalues of the correlation matrix of errors, (their sum)^2 / sum
  of their squares: K where errors are uncorrelated, 1 where tiers always fail together.
- Outcomes needed for a promise q with confidence 1 - delta: 2 ln(1/delta) var / ((1 - q) accuracy)^2, with the variance
  of the paired difference between the best tier and its best substitute; what a betting test (Waudby-Smith & Ramdas
  2024) needs to first order where the router is exactly as good as the best tier. At q = 1 no number is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from router.portfolio.tiers import Tier
from training.audit.difficulty import Difficulty, fit_difficulty
from training.evaluation.metrics import Interval, hull, interval, resamples
from training.log.costs import attempt_costs
from training.log.table import OutcomeTable

MIN_COMPLETE = 200
"""Prompts that every tier answered, below which no verdict is given."""
MIN_LEAD = 0.01
"""Accuracy, and relative saving beyond mixing single tiers, from which on routing is worth the trouble."""
MIN_LOSS = 0.002
"""Accuracy, or its worth in money, from which on a tier pays."""
QUALITIES = (0.95, 0.98, 0.99, 1.0)
CONFIDENCE = 0.95
_N_REFITS = 100


@dataclass(frozen=True)
class TierAudit:
    """One tier.

    usd_per_correct, output_tokens_per_correct: NaN where it is never right or nothing is logged.
    only_right: share of prompts that it alone answered correctly. cheapest_correct: that it was the cheapest to.
    pays: it is on the cost-accuracy hull of the single tiers, or a router that knows each prompt's difficulty would,
    at some worth of a correct answer, lose MIN_LOSS without it.
    """

    n_outcomes: int
    accuracy: Interval
    usd_per_1k: Interval
    usd_per_correct: Interval
    output_tokens_per_correct: float
    only_right: Interval
    cheapest_correct: float
    on_hull: bool
    pays: bool


@dataclass(frozen=True)
class Pair:
    """Two tiers: shares of prompts, and phi, the correlation of their errors."""

    both_right: float
    one_right: float
    none_right: float
    phi: float


@dataclass(frozen=True)
class Ceiling:
    """What the best possible router could reach.

    low, high: best single tier and oracle, which bound it. estimate: rests on what the module says; lead: estimate
    less best single. lucky_oracle: the oracle's accuracy if outcomes were independent given the difficulty.
    repeats: lower and upper bound from repeated attempts. label_noise: mean p (1 - p) of an outcome, from repeats.
    """

    low: float
    high: float
    estimate: Interval
    lead: Interval
    lucky_oracle: float
    repeats: tuple[float, float] | None
    label_noise: float | None


@dataclass(frozen=True)
class Money:
    """Cost relative to always asking the best tier, at a share of its accuracy; None where it is out of reach."""

    quality: float
    mix_of_singles: Interval
    knowing_difficulty: Interval


@dataclass(frozen=True)
class Audit:
    """All of it; what needs complete prompts is None or empty where there are fewer than MIN_COMPLETE."""

    tiers: tuple[str, ...]
    n_prompts: int
    n_complete: int
    n_outcomes: dict[str, int]
    observed_accuracy: dict[str, float | None]
    estimated_cost_share: float
    action: str
    verdict: str
    best: str | None = None
    per_tier: dict[str, TierAudit] | None = None
    pairs: dict[tuple[str, str], Pair] | None = None
    effective_models: Interval | None = None
    oracle: Interval | None = None
    ceiling: Ceiling | None = None
    money: tuple[Money, ...] = ()
    needed: dict[float, float] | None = None
    frontier: tuple[tuple[float, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """One document; what is not finite is null."""
        document = asdict(self)
        document["pairs"] = [{"tiers": list(names), **asdict(pair)} for names, pair in (self.pairs or {}).items()]
        document["needed"] = [{"quality": q, "n_prompts": n} for q, n in (self.needed or {}).items()]
        return dict(_finite(document))


def audit(
    table: OutcomeTable, tiers: Sequence[Tier], attempts: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> Audit:
    """Audit a table. attempts: (n_attempts, n_correct) of `count_attempts`, where the log repeats attempts."""
    costs = attempt_costs(table, tiers)
    complete = np.isfinite(table.correct).all(axis=1)
    n_outcomes = np.isfinite(table.correct).sum(axis=0)
    mean = np.nansum(table.correct, axis=0) / np.maximum(n_outcomes, 1)
    counted: dict[str, Any] = {
        "tiers": table.tiers,
        "n_prompts": table.n_prompts,
        "n_complete": int(complete.sum()),
        "n_outcomes": dict(zip(table.tiers, n_outcomes.tolist(), strict=True)),
        "observed_accuracy": {
            tier: float(a) if n else None for tier, a, n in zip(table.tiers, mean, n_outcomes, strict=True)
        },
        "estimated_cost_share": costs.estimated_share,
    }
    if complete.sum() < MIN_COMPLETE:
        return Audit(
            **counted,
            action="not enough outcomes",
            verdict=f"Not enough outcomes: every tier answered only {complete.sum():,} of {table.n_prompts:,} prompts, "
            f"and a comparison needs {MIN_COMPLETE}; ask all tiers some of the same prompts.",
        )
    correct, usd = table.correct[complete], costs.cost_usd[complete]
    weights = resamples(len(correct), seed)
    accuracy, cost = weights @ correct, weights @ usd  # (n_resamples, n_tiers)
    best = int(np.lexsort((cost[0], -accuracy[0]))[0])
    fits = _fits(correct, weights)
    oracle = weights @ correct.max(axis=1)
    reach = _reach(fits, oracle, accuracy[:, best])
    frontiers = [
        np.minimum(fit.frontier(c), [np.inf, most]) for fit, c, most in zip(fits, cost, reach, strict=False)
    ]  # no router passes the ceiling
    ceiling = _ceiling(
        fits[0], reach, oracle, accuracy[:, best], None if attempts is None else _rows(attempts, complete), seed
    )
    money = _money(accuracy, cost, best, frontiers)
    needed = _needed(correct, best, float(accuracy[0, best]))
    action, verdict = _verdict(table.tiers[best], ceiling, money, len(correct), needed)
    return Audit(
        **counted,
        action=action,
        verdict=verdict,
        best=table.tiers[best],
        per_tier=_per_tier(table.tiers, correct, usd, table.output_tokens[complete], weights, n_outcomes, fits[0]),
        pairs=_pairs(table.tiers, correct),
        effective_models=interval(np.array([_effective(correct, w) for w in weights[: 1 + _N_REFITS]])),
        oracle=interval(oracle),
        ceiling=ceiling,
        money=money,
        needed=needed,
        frontier=tuple(sorted({(c * 1000, a) for c, a in frontiers[0].tolist()})),
    )


def _rows(attempts: tuple[np.ndarray, np.ndarray], index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return attempts[0][index], attempts[1][index]


def _fits(correct: np.ndarray, weights: np.ndarray) -> list[Difficulty]:
    """The difficulty model on the sample and on _N_REFITS resamples."""
    patterns, which = np.unique(correct >= 0.5, axis=0, return_inverse=True)
    right = patterns.astype(np.float64)
    counts = [np.bincount(which.ravel(), weights=w * len(correct)) for w in weights[: 1 + _N_REFITS]]
    first = fit_difficulty(right, counts[0])
    return [first, *(fit_difficulty(right, count, first.parameters) for count in counts[1:])]


def _reach(fits: list[Difficulty], oracle: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The oracle less what luck gives it, not below the best single tier, per fit."""
    found = [np.clip(o - (fit.lucky_oracle - fit.ceiling), b, o) for fit, o, b in zip(fits, oracle, best, strict=False)]
    return np.array(found, dtype=np.float64)


def _ceiling(
    fit: Difficulty,
    reach: np.ndarray,
    oracle: np.ndarray,
    best: np.ndarray,
    attempts: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
) -> Ceiling:
    repeats, noise = (None, None) if attempts is None else repeated_ceiling(*attempts, seed=seed)
    low, high = float(best[0]), float(oracle[0])
    return Ceiling(
        low=low,
        high=high,
        estimate=interval(reach),
        lead=interval(reach - best[: len(reach)]),
        lucky_oracle=fit.lucky_oracle,
        repeats=repeats,
        label_noise=noise,
    )


def repeated_ceiling(
    n_attempts: np.ndarray, n_correct: np.ndarray, seed: int = 0
) -> tuple[tuple[float, float] | None, float | None]:
    """Bounds of the ceiling in expectation, and the mean p (1 - p) of an outcome, from repeated attempts.

    Uses the prompts that every tier answered twice or more; (None, None) where there are fewer than MIN_COMPLETE.
    """
    twice = (n_attempts >= 2).all(axis=1)
    if twice.sum() < MIN_COMPLETE:
        return None, None
    n, right = n_attempts[twice].astype(int), n_correct[twice].astype(int)
    n_first = n // 2
    first = np.random.default_rng(seed).hypergeometric(right, n - right, n_first)
    overall = right.sum(axis=0) / n.sum(axis=0)  # breaks ties between tiers
    chosen = np.argmax(first / n_first + 1e-6 * overall, axis=1)[:, None]
    judged = np.take_along_axis((right - first) / (n - n_first), chosen, axis=1)
    noise = (right * (n - right) / (n * (n - 1))).mean()
    return (float(judged.mean()), float((right / n).max(axis=1).mean())), float(noise)


def _money(accuracy: np.ndarray, cost: np.ndarray, best: int, frontiers: list[np.ndarray]) -> tuple[Money, ...]:
    def relative(points: np.ndarray, a: np.ndarray, c: np.ndarray, quality: float) -> float:
        xs, ys = hull(np.append(points[:, 0], c), np.append(points[:, 1], a))
        return float(np.interp(quality * a[best], ys, xs)) / c[best] if c[best] > 0 else 1.0

    def one(quality: float) -> Money:
        pairs = list(zip(accuracy, cost, strict=True))
        mix = [relative(np.empty((0, 2)), a, c, quality) for a, c in pairs]
        known = [relative(points, a, c, quality) for (a, c), points in zip(pairs, frontiers, strict=False)]
        return Money(quality, interval(np.array(mix)), interval(np.array(known)))

    return tuple(one(quality) for quality in (1.0, 0.98))


def _per_tier(
    names: tuple[str, ...],
    correct: np.ndarray,
    usd: np.ndarray,
    output_tokens: np.ndarray,
    weights: np.ndarray,
    n_outcomes: np.ndarray,
    difficulty: Difficulty,
) -> dict[str, TierAudit]:
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


def _effective(correct: np.ndarray, weight: np.ndarray) -> float:
    return float(correct.shape[1] ** 2 / (_correlation(correct, weight) ** 2).sum())


def _pairs(names: tuple[str, ...], correct: np.ndarray) -> dict[tuple[str, str], Pair]:
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


def _needed(correct: np.ndarray, best: int, accuracy: float) -> dict[float, float]:
    """Prompts per promised quality; infinite where no number is enough."""
    others = np.delete(correct, best, axis=1)
    substitute = others[:, int(np.argmax(others.mean(axis=0)))]
    variance = float(np.var(correct[:, best] - substitute))

    def prompts(quality: float) -> float:
        margin = (1 - quality) * accuracy
        return float(np.ceil(2 * np.log(1 / (1 - CONFIDENCE)) * variance / margin**2)) if margin > 0 else float("inf")

    return {quality: prompts(quality) for quality in QUALITIES}


def _verdict(
    best: str, ceiling: Ceiling, money: tuple[Money, ...], n_complete: int, needed: dict[float, float]
) -> tuple[str, str]:
    lead, least_lead = ceiling.lead.value, ceiling.lead.low
    if ceiling.repeats:
        lead = least_lead = max(0.0, ceiling.repeats[0] - ceiling.low)
    at_98 = money[-1]
    saving = at_98.mix_of_singles.value - at_98.knowing_difficulty.high
    if saving < MIN_LEAD and least_lead < MIN_LEAD:
        return "do not route", (
            f"Do not route: always ask {best}, or mix single tiers; the log shows neither accuracy (ceiling about "
            f"{ceiling.low + lead:.1%}, {best} {ceiling.low:.1%}) nor money to be won beyond that."
        )
    accuracy = (
        f"accuracy could rise from {ceiling.low:.1%} to about {ceiling.low + lead:.1%}"
        if least_lead >= MIN_LEAD
        else f"do not count on more accuracy than its {ceiling.low:.1%}"
    )
    reason = (
        f"at 98 % of {best}'s accuracy, knowing each prompt's difficulty would at best cut cost to "
        f"{at_98.knowing_difficulty.value:.0%} of always asking it (mixing single tiers: "
        f"{at_98.mix_of_singles.value:.0%}), of which a router gets a part; {accuracy}"
    )
    if n_complete < needed[0.95]:
        return "not enough outcomes", (
            f"Not enough outcomes to promise anything: {n_complete:,} complete prompts, and a promise of 0.95 takes "
            f"about {needed[0.95]:,.0f}; it looks worth logging them: {reason}."
        )
    few = f" A promise of 0.98 takes about {needed[0.98]:,.0f} prompts: there are {n_complete:,}."
    return "route", f"Route: {reason}." + (few if n_complete < needed[0.98] else "")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
