"""What routing has saved against always asking the strongest tier, estimated from the log, with its uncertainty.

Nobody asked the strongest tier for every request, so what it would have cost and got right is estimated. Each decision
states what its bundle expected of it. These expectations are put right by the requests that it did answer, each weighed
by one over its propensity (a ratio estimate: Cochran, Sampling Techniques, chapter 6; weights after Horvitz and
Thompson). Intervals come from a Poisson bootstrap over requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.outcomes.columns import is_of_check

_Numbers = NDArray[np.float64]

FEWEST = 30
"""With fewer answers of the strongest tier, expectations are not put right."""

_RESAMPLES = 400


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Savings:
    """What routing has saved against always asking the strongest tier.

    strongest: the tier with the highest expected success on average. n_requests: that were answered, at a known cost.
    n_asked: those of them that the strongest tier answered; below FEWEST, its cost is the bundle's expectation alone.
    usd: of all requests, attempts and checks included. saved: 1 - usd / cost of always asking the strongest tier.
    n_judged, n_judged_asked: the same counts among the requests that someone judged.
    kept: correct answers per correct answer of always asking the strongest tier; None where nobody judged any.
    """

    strongest: str
    n_requests: int
    n_asked: int
    usd: float
    saved: Estimate
    n_judged: int
    n_judged_asked: int
    kept: Estimate | None


def savings(rows: Sequence[Mapping[str, Any]]) -> Savings | None:
    """The savings over some rows of a log, attempts beside decisions included; None where no request has a known cost.

    rows: with decision_id, attempt_id, tier, ended, cost_usd, correct, propensity, decision, and what checks cost.
    """
    costs: dict[str, float] = {}
    for row in rows:
        costs[row["decision_id"]] = costs.get(row["decision_id"], 0.0) + _usd(row)
    answered = [
        (row, json.loads(row["decision"]))
        for row in rows
        if row["attempt_id"] is None and row["decision"] and row["ended"] == "complete" and row["cost_usd"] is not None
    ]
    answered = [(row, decision) for row, decision in answered if decision["success"] and decision["cost_usd"]]
    if not answered:
        return None
    tiers = list(answered[-1][1]["success"])
    answered = [(row, decision) for row, decision in answered if list(decision["success"]) == tiers]
    means = np.mean([[decision["success"][tier] for tier in tiers] for _, decision in answered], axis=0)
    strongest = tiers[int(np.argmax(means))]
    usd = np.array([costs[row["decision_id"]] for row, _ in answered])
    expected = np.array([decision["cost_usd"][strongest] for _, decision in answered], float)
    own = np.array([row["cost_usd"] for row, _ in answered])
    asked = np.array([row["tier"] == strongest for row, _ in answered])
    weight = asked / np.array([row["propensity"] or 1.0 for row, _ in answered])
    judged = np.array([row["correct"] is not None for row, _ in answered])
    correct = np.array([row["correct"] or 0.0 for row, _ in answered])
    success = np.array([decision["success"][strongest] for _, decision in answered], float)
    draws = np.random.default_rng(0).poisson(1.0, (_RESAMPLES, len(answered))).astype(float)
    cost_ratio = _ratio(usd, own, expected, weight, draws)
    kept = None
    if judged.any():
        right = correct[judged]
        kept = _ratio(right, right, success[judged], weight[judged], draws[:, judged])
    return Savings(
        strongest=strongest,
        n_requests=len(answered),
        n_asked=int(asked.sum()),
        usd=float(usd.sum()),
        saved=Estimate(value=1 - cost_ratio.value, low=1 - cost_ratio.high, high=1 - cost_ratio.low),
        n_judged=int(judged.sum()),
        n_judged_asked=int((judged & asked).sum()),
        kept=kept,
    )


def _ratio(found: _Numbers, own: _Numbers, expected: _Numbers, weight: _Numbers, draws: _Numbers) -> Estimate:
    """The sum of what was found, relative to that of always asking the strongest tier.

    found: of each request. own: of the answer alone. expected: of the strongest tier. weight: above 0 where that tier
        answered.
    draws: how often each request stands in each resample, shape (n_resamples, n_requests).
    """
    is_enough = np.count_nonzero(weight) >= FEWEST

    def ratio(counts: _Numbers) -> _Numbers:
        correction: Any = 1.0
        if is_enough:
            correction = (counts @ (weight * own)) / np.maximum(counts @ (weight * expected), 1e-300)
        return np.asarray((counts @ found) / np.maximum(correction * (counts @ expected), 1e-300))

    low, high = np.quantile(ratio(draws), [0.025, 0.975])
    value = float(ratio(np.ones((1, len(found))))[0])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))


def _usd(row: Mapping[str, Any]) -> float:
    checks = sum(value for name, value in row.items() if value and is_of_check(name) and name.endswith("_usd"))
    return float((row["cost_usd"] or 0.0) + checks)
