"""How well the bundle knows what one tier's answer says of another's, on prompts that training did not see."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from router.plans.checks import CheckModel
from router.plans.engine import PlanEngine, look_inputs
from router.plans.planner import MOST_CALLS
from training.evaluation.metrics import N_BINS, interval
from training.evaluation.plan_prompts import PlanPrompts
from training.evaluation.plan_result import Conditional, JointFit
from training.evaluation.posteriors import tables_in_batches

MAX_PROMPTS = 1_000
"""Prompts that this is judged on: each of them has a case for every pair of tiers."""

_LEAST = 1e-6


def judge_joint(engine: PlanEngine, prompts: PlanPrompts, weights: np.ndarray) -> tuple[JointFit, Conditional]:
    """How tiers fail together: the likelihood of their outcomes, and how often one is right where another is wrong.

    The plan graph is asked as if a perfect check had looked at each answer. weights: of resamples of the prompts,
    (n_resamples, n_prompts).
    """
    n, k = prompts.correct.shape
    verdicts = (((1.0, 0.0), (0.0, 1.0)),) * k  # P(class | wrong or right)
    perfect = CheckModel(
        name="perfect", thresholds=(0.5,), verdicts=(verdicts,) * 2, usd=(0.0,) * k, declared=True, evidence={}
    )
    inputs = look_inputs(perfect, k, agreement=False, max_calls=MOST_CALLS)
    right = (prompts.correct >= 0.5).astype(int)
    sets = np.array(list(combinations(range(k), min(k, MOST_CALLS)))).T
    first, second, *others = sets
    chance, after = np.empty((n, sets.shape[1])), np.empty((n, k, k))
    for rows, tables in tables_in_batches(engine, prompts, inputs):
        is_right = right[rows]
        row, (one, two) = np.arange(len(is_right))[:, None], (is_right[:, each] for each in (first, second))
        if others:
            third = others[0]
            found = tables.after_three[row, first, second, third, one, two, 0]
            chance[rows] = np.where(is_right[:, third] == 1, found[..., 3], found[..., 0] - found[..., 3])
        else:
            chance[rows] = tables.after_two[row, first, second, one, two, 0, 0]
        seen, _, then_right = np.moveaxis(tables.after_two[:, :, :, 0, :, 0].sum(axis=3), -1, 0)  # (n, K, K) each
        after[rows] = then_right / np.maximum(seen, _LEAST)
    alone = np.where(right == 1, prompts.success, 1 - prompts.success)
    joint = np.log(np.maximum(chance, _LEAST)).mean(axis=1)
    independent = np.log(np.maximum(alone, _LEAST))[:, sets].sum(axis=1).mean(axis=1)
    fit = JointFit(
        n_tiers=len(sets),
        log_likelihood=interval(weights @ joint),
        if_independent=interval(weights @ independent),
        gain=interval(weights @ (joint - independent)),
    )
    failed = (right == 0)[:, :, None] & ~np.eye(k, dtype=bool)
    return fit, _conditional(failed, after, prompts.correct[:, None, :], prompts.success[:, None, :], weights)


def judge_agreement(engine: PlanEngine, prompts: PlanPrompts, weights: np.ndarray) -> Conditional:
    """How often an answer is right that two tiers agree on; arguments as for `judge_joint`."""
    n, k = prompts.correct.shape
    after = np.empty((n, k, k))
    for rows, tables in tables_in_batches(engine, prompts, look_inputs(None, k, agreement=True, max_calls=MOST_CALLS)):
        seen, first_right, _ = np.moveaxis(tables.after_two[:, :, :, 0, 0, 0], -1, 0)
        after[rows] = first_right / np.maximum(seen, _LEAST)
    agree = prompts.agree & ~np.eye(k, dtype=bool)
    return _conditional(agree, after, prompts.correct[:, :, None], prompts.success[:, :, None], weights)


def _conditional(
    is_case: np.ndarray, expected: np.ndarray, measured: np.ndarray, alone: np.ndarray, weights: np.ndarray
) -> Conditional:
    """Over the cases of all pairs of tiers; is_case: bool, the others of its shape or broadcast to it, (n, K, K)."""
    expected, measured, alone = (np.broadcast_to(each, is_case.shape)[is_case] for each in (expected, measured, alone))
    row = np.nonzero(is_case)[0]
    total = np.maximum(weights @ is_case.sum(axis=(1, 2)), _LEAST)

    def error(estimate: np.ndarray) -> np.ndarray:
        """The expected calibration error per resample."""
        gaps = np.zeros((len(is_case), N_BINS))
        bins = np.clip((estimate * N_BINS).astype(int), 0, N_BINS - 1)
        np.add.at(gaps, (row, bins), estimate - measured)
        return np.asarray(np.abs(weights @ gaps).sum(axis=1) / total)

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else 0.0

    return Conditional(
        expected=mean(expected),
        measured=mean(measured),
        if_independent=mean(alone),
        n_cases=len(row),
        calibration_error=interval(error(expected)),
        calibration_error_if_independent=interval(error(alone)),
    )
