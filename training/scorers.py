"""Scores of estimates of success, and the scorers that scikit-learn's cross-validation takes: Brier, net value, AIQ.

Each score takes observed outcomes and estimates, both (n_prompts, n_tiers); outcomes are 0..1, NaN where not observed.
Where it needs costs, `cost_usd` is either what each attempt cost, same shape, or the mean of each tier, (n_tiers,). The
estimates decide as in training.evaluation.baselines: by `worth x success - mean cost of the tier`.

    cross_val_score(SuccessEstimator(), X, y, scoring=aiq_scorer(cost_usd))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.metrics import make_scorer

from training.errors import FitError
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth, policy_figures, worth_grid


def brier_score(outcomes: np.ndarray, success: np.ndarray) -> float:
    """Mean squared error over all observed outcomes; less is better."""
    return float(np.nanmean((np.asarray(success) - outcomes) ** 2))


def skill_score(outcomes: np.ndarray, success: np.ndarray) -> float:
    """1 - Brier score / Brier score of the tiers' means on the same outcomes: 1 is exact, 0 knows no more than these.

    Where the outcomes of each tier are all the same, the means are exact: 1 where the estimates are, too, else 0.
    """
    of_means = brier_score(outcomes, np.broadcast_to(np.nanmean(outcomes, axis=0), outcomes.shape))
    found = brier_score(outcomes, success)
    if of_means == 0:
        return 1.0 if found == 0 else 0.0
    return 1 - found / of_means


def net_value_score(outcomes: np.ndarray, success: np.ndarray, *, cost_usd: np.ndarray, worth_usd: float) -> float:
    """Worth x accuracy - cost, in USD per 1,000 requests, where the estimates decide at this worth; more is better.

    worth_usd: what a correct answer is worth. Judged are the prompts of which the chosen tier's outcome was observed.
    """
    outcomes, success, cost = _complete_costs(outcomes, success, cost_usd)
    choice = choices_by_worth(success, cost.mean(axis=0), np.array([worth_usd]))
    value = np.take_along_axis(worth_usd * outcomes - cost, choice, axis=1)
    return float(1000 * np.nanmean(value))


def aiq_score(outcomes: np.ndarray, success: np.ndarray, *, cost_usd: np.ndarray) -> float:
    """AIQ: the mean accuracy over all budgets, see training.evaluation.metrics; more is better.

    Judged are the prompts that every tier answered. Raises FitError where there is none.
    """
    outcomes, success, cost = _complete_costs(outcomes, success, cost_usd)
    complete = np.isfinite(outcomes).all(axis=1)
    if not complete.any():
        raise FitError("AIQ needs prompts that every tier answered; found none")
    outcomes, success, cost = outcomes[complete], success[complete], cost[complete]
    mean_cost = cost.mean(axis=0)
    policy = Policy(choices_by_worth(success, mean_cost, worth_grid(mean_cost)))
    judged = Outcomes(correct=outcomes, cost_usd=cost, best=int(outcomes.mean(axis=0).argmax()))
    one = np.full((1, len(outcomes)), 1 / len(outcomes), dtype=np.float32)
    return float(policy_figures(policy, judged, one)["aiq"][0])


brier_scorer = make_scorer(brier_score, greater_is_better=False)
"""Minus the Brier score, so that more is better."""


def net_value_scorer(worth_usd: float, cost_usd: np.ndarray | None = None) -> Any:
    """A scorer of `net_value_score` at a worth; cost_usd as for `aiq_scorer`."""
    return _scorer(net_value_score, cost_usd, worth_usd=worth_usd)


def aiq_scorer(cost_usd: np.ndarray | None = None) -> Any:
    """A scorer of `aiq_score`.

    cost_usd: mean cost of each tier, (n_tiers,). None judges by what each attempt cost, which is then passed beside y:
    cross_val_score(..., params={"cost_usd": cost_usd}). That takes scikit-learn's metadata routing, and the estimator's
    word: set_config(enable_metadata_routing=True), SuccessEstimator().set_fit_request(cost_usd=True).
    """
    return _scorer(aiq_score, cost_usd)


def _scorer(score: Callable[..., float], cost_usd: np.ndarray | None, **settings: float) -> Any:
    if cost_usd is None:
        return make_scorer(score, **settings).set_score_request(cost_usd=True)
    mean_cost = np.asarray(cost_usd, dtype=np.float64)
    if mean_cost.ndim != 1:
        raise FitError(f"cost_usd has shape {mean_cost.shape}; expected the mean cost of each tier, (n_tiers,)")
    return make_scorer(score, cost_usd=mean_cost, **settings)


def _complete_costs(
    outcomes: np.ndarray, success: np.ndarray, cost_usd: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All as arrays (n_prompts, n_tiers); raises FitError where the shapes do not fit."""
    outcomes, success = np.asarray(outcomes, dtype=np.float64), np.asarray(success, dtype=np.float64)
    cost = np.asarray(cost_usd, dtype=np.float64)
    if outcomes.ndim != 2 or success.shape != outcomes.shape or cost.shape not in (outcomes.shape, outcomes.shape[1:]):
        raise FitError(
            f"outcomes have shape {outcomes.shape}, estimates {success.shape}, cost_usd {cost.shape}; expected "
            "(n_prompts, n_tiers) for all, or (n_tiers,) for cost_usd"
        )
    return outcomes, success, np.broadcast_to(cost, outcomes.shape)
