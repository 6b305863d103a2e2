"""Whether a log says that routing can pay, before any training.

Everything is counted on the prompts that every tier answered; 95 % bootstrap intervals over prompts.

- Ceiling: see `training.audit.ceiling`.
- Effective models: the participation ratio of the eigenvalues of the correlation matrix of errors, (their sum)^2 / sum
  of their squares: K where errors are uncorrelated, 1 where tiers always fail together.
- Looking at answers: see `training.audit.checks`.
- Prompts needed for a promise: see `training.audit.promises`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from router.portfolio.tiers import Tier
from training.audit.ceiling import MIN_COMPLETE, N_REFITS, ceiling_of, fit_resamples, reachable
from training.audit.checks import audit_agreement, audit_checks
from training.audit.promises import held_out, needed_by_quality
from training.audit.result import Audit, Money
from training.audit.tiers import audit_pairs, audit_tiers, effective_models
from training.audit.verdict import verdict_of
from training.evaluation.metrics import hull, interval, resamples
from training.log.costs import attempt_costs
from training.log.counts import PromptCounts
from training.log.table import CheckCells, OutcomeTable


def audit(
    table: OutcomeTable, tiers: Sequence[Tier], attempts: tuple[np.ndarray, np.ndarray] | None = None, seed: int = 0
) -> Audit:
    """Audit the outcomes of a log.

    attempts: (n_attempts, n_correct) of `count_attempts`, each (n_prompts, n_tiers), where the log repeats attempts.
    """
    costs = attempt_costs(table, tiers)
    complete, in_test = np.isfinite(table.correct).all(axis=1), held_out(table)
    to_train_on = complete & ~in_test
    n_outcomes = np.isfinite(table.correct).sum(axis=0)
    mean = np.nansum(table.correct, axis=0) / np.maximum(n_outcomes, 1)
    counted: dict[str, Any] = {
        "tiers": table.tiers,
        "n_prompts": table.n_prompts,
        "n_complete": int(complete.sum()),
        "n_training": int(to_train_on.sum()),
        "counts": PromptCounts.of(table, in_test),
        "n_outcomes": dict(zip(table.tiers, n_outcomes.tolist(), strict=True)),
        "observed_accuracy": {
            tier: float(a) if n else None for tier, a, n in zip(table.tiers, mean, n_outcomes, strict=True)
        },
        "estimated_cost_share": costs.estimated_share,
        "log": table.summary,
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
    fits = fit_resamples(correct, weights)
    oracle = weights @ correct.max(axis=1)
    reach = reachable(fits, oracle, accuracy[:, best])
    frontiers = [
        np.minimum(fit.frontier(c), [np.inf, most]) for fit, c, most in zip(fits, cost, reach, strict=False)
    ]  # no router passes the ceiling
    repeated = None if attempts is None else (attempts[0][complete], attempts[1][complete])
    ceiling = ceiling_of(fits[0], reach, oracle, accuracy[:, best], repeated, seed)
    money = _money(accuracy, cost, best, frontiers, _oracle_cost(correct, usd, weights), oracle)
    checks = {
        name: CheckCells(score=cells.score[complete], cost_usd=cells.cost_usd[complete])
        for name, cells in table.checks.items()
    }
    needed = needed_by_quality(table.correct[to_train_on], best)
    action, verdict = verdict_of(table.tiers[best], ceiling, money, counted["n_training"], needed)
    return Audit(
        **counted,
        action=action,
        verdict=verdict,
        best=table.tiers[best],
        per_tier=audit_tiers(table.tiers, correct, usd, table.output_tokens[complete], weights, n_outcomes, fits[0]),
        pairs=audit_pairs(table.tiers, correct),
        effective_models=interval(np.array([effective_models(correct, w) for w in weights[: 1 + N_REFITS]])),
        oracle=interval(oracle),
        ceiling=ceiling,
        money=money,
        needed=needed,
        frontier=tuple(sorted({(c * 1000, a) for c, a in frontiers[0].tolist()})),
        agreement=tuple(audit_agreement(table.tiers, correct, table.answer_number[complete])),
        checks=tuple(audit_checks(correct, usd, table.answer_number[complete], checks, weights, best)),
    )


def _oracle_cost(correct: np.ndarray, usd: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cost of asking the cheapest of the tiers that did best on each prompt, per resample, (n_resamples,)."""
    is_best = correct == correct.max(axis=1, keepdims=True)
    return np.asarray(weights @ np.where(is_best, usd, np.inf).min(axis=1))


def _money(
    accuracy: np.ndarray,
    cost: np.ndarray,
    best: int,
    frontiers: list[np.ndarray],
    oracle_cost: np.ndarray,
    oracle: np.ndarray,
) -> tuple[Money, ...]:
    """What money routing can save, at all and at 98 % of the best tier's accuracy.

    accuracy, cost: of every tier per resample, (n_resamples, n_tiers). frontiers: (cost, accuracy) of a router that
    knows each prompt's difficulty, of the first resamples. oracle_cost, oracle: cost and accuracy of knowing which tier
    is right, per resample, (n_resamples,).
    """

    def relative(points: np.ndarray, a: np.ndarray, c: np.ndarray, quality: float) -> float:
        xs, ys = hull(np.append(points[:, 0], c), np.append(points[:, 1], a))
        return float(np.interp(quality * a[best], ys, xs)) / c[best] if c[best] > 0 else 1.0

    def one(quality: float) -> Money:
        pairs = list(zip(accuracy, cost, strict=True))
        mix = [relative(np.empty((0, 2)), a, c, quality) for a, c in pairs]
        known = [relative(points, a, c, quality) for (a, c), points in zip(pairs, frontiers, strict=False)]
        lucky = [
            relative(np.array([[paid, right]]), a, c, quality)
            for (a, c), paid, right in zip(pairs, oracle_cost, oracle, strict=True)
        ]
        return Money(
            quality=quality,
            mix_of_singles=interval(np.array(mix)),
            knowing_difficulty=interval(np.array(known)),
            knowing_outcomes=interval(np.array(lucky)),
        )

    return tuple(one(quality) for quality in (1.0, 0.98))
