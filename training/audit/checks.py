"""What looking at answers would bring, before any training: agreement of answers, the log's own checks, and verifiers
of given figures, each with its best fixed cascade.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from training.evaluation.cascades import agreed, answers_agree, cascades, verified
from training.evaluation.metrics import Interval, hull, interval
from training.log.sample import evenly
from training.log.table import CheckCells

ASSUMED = {
    "perfect (1 / 1)": (1.0, 1.0),
    "tests (1 / 0.86)": (1.0, 0.86),
    "judge (0.85 / 0.65)": (0.85, 0.65),
}
"""Verifiers whose figures are assumed: (sensitivity, specificity). Tests that catch 86 % of wrong answers, a cheap
judge. They cost nothing."""

MAX_PROMPTS = 3_000
MAX_TIERS = 12
N_RESAMPLES = 100


@dataclass(frozen=True)
class AgreementAudit:
    """Two tiers: how often their answers agree, and how often the first is right then and else; None where never."""

    tiers: tuple[str, str]
    agree: float
    right_when_agree: float | None
    right_when_differ: float | None


@dataclass(frozen=True)
class CheckAudit:
    """The best fixed cascades with a check.

    assumed: the check's figures are assumed, not logged. cost_at_98, cost_at_100: least cost that keeps this share of
    the best tier's accuracy, relative to always asking it. most_kept: the highest accuracy, relative to it. They are
    chosen on the prompts that they are counted on, so they are somewhat too good.
    """

    check: str
    assumed: bool
    cost_at_98: Interval
    cost_at_100: Interval
    most_kept: Interval


def audit_agreement(tiers: tuple[str, ...], correct: np.ndarray, answer_number: np.ndarray) -> list[AgreementAudit]:
    """Every pair of tiers; both arrays (n_prompts, n_tiers). Empty where the log has no answers."""
    found = []
    for i, one in enumerate(tiers):
        for j in range(i + 1, len(tiers)):
            both = (answer_number[:, i] >= 0) & (answer_number[:, j] >= 0)
            if both.any():
                agree = answers_agree(answer_number, i, j)[both]
                right = correct[both, i]
                found.append(
                    AgreementAudit(
                        tiers=(one, tiers[j]),
                        agree=float(agree.mean()),
                        right_when_agree=float(right[agree].mean()) if agree.any() else None,
                        right_when_differ=float(right[~agree].mean()) if (~agree).any() else None,
                    )
                )
    return found


def audit_checks(
    correct: np.ndarray,
    cost_usd: np.ndarray,
    answer_number: np.ndarray,
    checks: Mapping[str, CheckCells],
    weights: np.ndarray,
    best: int,
) -> list[CheckAudit]:
    """What each check brings; correct, cost_usd, answer_number: of complete prompts, (n_prompts, n_tiers).

    weights: of resamples, (n_resamples, n_prompts). best: the tier that all is relative to. Empty with one tier, or
    with more than MAX_TIERS.
    """
    if not 2 <= correct.shape[1] <= MAX_TIERS:
        return []
    rows = np.arange(len(correct))[evenly(len(correct), MAX_PROMPTS)]
    correct, cost_usd, answer_number = correct[rows], cost_usd[rows], answer_number[rows]
    weights = weights[:N_RESAMPLES, rows]
    weights = weights / weights.sum(axis=1, keepdims=True)
    found = []
    for name, assumed, outcomes, costs in _every_check(correct, cost_usd, answer_number, checks, rows):
        figures = _figures(outcomes, costs, correct, cost_usd, weights, best)
        found.append(CheckAudit(name, assumed, *figures))
    return found


def _every_check(
    correct: np.ndarray,
    cost_usd: np.ndarray,
    answer_number: np.ndarray,
    checks: Mapping[str, CheckCells],
    rows: np.ndarray,
) -> Iterator[tuple[str, bool, np.ndarray, np.ndarray]]:
    """Each check with outcome and cost of all its cascades, (n_prompts, n_cascades)."""
    n_tiers = correct.shape[1]
    if (answer_number >= 0).any():
        accuracy = correct.mean(axis=0)
        followed = [
            agreed(each, correct, cost_usd, answer_number, max(each, key=lambda tier: accuracy[tier]))
            for each in cascades(n_tiers, agreement=True)
        ]
        yield "agreement of answers", False, *_stacked(followed)
    every = cascades(n_tiers, agreement=False)
    for name, cells in checks.items():
        fails = ~(np.nan_to_num(cells.score[rows]) >= 0.5)
        usd = np.nan_to_num(cells.cost_usd[rows])
        yield name, False, *_stacked([verified(each, correct, cost_usd, fails, usd) for each in every])
    for name, (sensitivity, specificity) in ASSUMED.items():
        fails = np.where(correct >= 0.5, 1 - sensitivity, specificity)
        free = np.zeros(correct.shape)
        yield name, True, *_stacked([verified(each, correct, cost_usd, fails, free) for each in every])


def _stacked(followed: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    outcomes, costs = zip(*followed, strict=True)
    return np.stack(outcomes, axis=1), np.stack(costs, axis=1)


def _figures(
    outcomes: np.ndarray,
    costs: np.ndarray,
    correct: np.ndarray,
    cost_usd: np.ndarray,
    weights: np.ndarray,
    best: int,
) -> tuple[Interval, Interval, Interval]:
    accuracy = weights @ np.concatenate([outcomes, correct], axis=1)
    cost = weights @ np.concatenate([costs, cost_usd], axis=1)
    kept, share = np.empty(len(weights)), np.empty((2, len(weights)))
    for row in range(len(weights)):
        best_accuracy, best_cost = (each[row, outcomes.shape[1] + best] for each in (accuracy, cost))
        xs, ys = hull(cost[row], accuracy[row])
        kept[row] = ys[-1] / max(best_accuracy, 1e-9)
        for place, quality in enumerate((0.98, 1.0)):
            share[place, row] = np.interp(quality * best_accuracy, ys, xs) / best_cost if best_cost > 0 else 1.0
    return interval(share[0]), interval(share[1]), interval(kept)
