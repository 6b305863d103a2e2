"""Other ways to ask more than one tier, replayed on the same prompts, with the same estimates and prices as plans.

- Fixed cascades: the same tiers in the same order for every prompt, and only what was seen says when to stop.
- Cascades with thresholds (FrugalGPT, Chen et al. 2023): the same tiers in the same order, and a threshold for each
  step: where P(the best answer so far is right) reaches it, that answer is returned.
- Cascade routing (Dekoninck et al. 2025, "A Unified Approach to Routing and Cascading for LLMs"): before each call, the
  set of tiers that is worth most, if all of it were asked, is chosen anew, and its cheapest tier is asked next.

Tiers, order and thresholds of the first two are chosen on the training part: all that lie on its upper hull.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from router.plans.engine import FORBIDDEN_USD
from training.evaluation.cascades import Cascade, agreed, cascades, verified
from training.evaluation.metrics import hull
from training.evaluation.plan_prompts import PlanPrompts
from training.evaluation.posteriors import Posteriors

N_THRESHOLDS = 12
"""Thresholds that are tried at each step: so many quantiles, and one that no answer reaches."""

Replays = tuple[np.ndarray, np.ndarray]
"""Outcomes and costs of some policies on n prompts, each (n, n_policies)."""


# ---- fixed cascades ----------------------------------------------------------------------------------------------


def fixed_cascades(training: PlanPrompts, held_out: PlanPrompts) -> Replays:
    """The cascades on the hull of the training prompts, replayed on the held-out ones."""
    accuracy_of = training.correct.mean(axis=0)

    def follow(cascade: Cascade, prompts: PlanPrompts) -> Replays:
        answers = prompts.answers
        if answers.answer_number is None:
            return verified(cascade, prompts.correct, prompts.paid, answers.classes == 0, answers.check_usd)
        most_accurate = max(cascade, key=lambda tier: accuracy_of[tier])
        return agreed(cascade, prompts.correct, prompts.paid, answers.answer_number, most_accurate)

    every = cascades(training.n_tiers, agreement=training.answers.answer_number is not None)
    tried = [follow(cascade, training) for cascade in every]
    on_hull = _on_hull(
        training, np.array([outcome.mean() for outcome, _ in tried]), np.array([paid.mean() for _, paid in tried])
    )
    return _stacked([follow(every[at], held_out) for at in on_hull], held_out)


# ---- cascades with thresholds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """What comes of stopping a cascade after 1, 2, ... answers on n prompts.

    outcomes, costs: of stopping there, each (n,). posteriors: P(the best answer is right) there, (n,), of all steps but
    the last.
    """

    outcomes: tuple[np.ndarray, ...]
    costs: tuple[np.ndarray, ...]
    posteriors: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, cascade: Cascade, prompts: PlanPrompts, expected: Posteriors) -> _Steps:
        """The last answer is not checked, all before it are."""
        first, second = cascade[:2]
        rows, tiers, correct = np.arange(prompts.n_prompts), np.array(cascade), prompts.correct
        checked = (prompts.paid + prompts.answers.check_usd)[:, list(cascade)]
        paid = prompts.paid[:, list(cascade)]
        if len(cascade) == 2:
            best = expected.best_of_two[:, first, second]
            return cls(
                outcomes=(correct[:, first], correct[rows, tiers[best]]),
                costs=(checked[:, 0], checked[:, 0] + paid[:, 1]),
                posteriors=(expected.one_seen[:, first],),
            )
        third = cascade[2]
        best, best_of_all = expected.best_of_two_seen[:, first, second], expected.best_of_three[:, first, second, third]
        return cls(
            outcomes=(correct[:, first], correct[rows, tiers[best]], correct[rows, tiers[best_of_all]]),
            costs=(checked[:, 0], checked[:, 0] + checked[:, 1], checked[:, 0] + checked[:, 1] + paid[:, 2]),
            posteriors=(expected.one_seen[:, first], expected.two_seen[:, first, second]),
        )

    def follow(self, thresholds: tuple[float, ...]) -> Replays:
        """Outcome and cost with a threshold for each step but the last, each (n,)."""
        outcome, cost = self.outcomes[-1], self.costs[-1]
        for step in reversed(range(len(thresholds))):
            stops = self.posteriors[step] >= thresholds[step]
            outcome = np.where(stops, self.outcomes[step], outcome)
            cost = np.where(stops, self.costs[step], cost)
        return outcome, cost

    def means(self, values: tuple[np.ndarray, ...], thresholds: tuple[np.ndarray, ...]) -> np.ndarray:
        """Mean of `outcomes` or `costs` with each combination of thresholds, (n_thresholds,) * number of them."""
        first = (self.posteriors[0][:, None] < thresholds[0]).astype(float)  # who goes on, (n, n_thresholds)
        sums = values[0].sum() + first.T @ (values[1] - values[0])
        if len(values) == 3:
            second = (self.posteriors[1][:, None] < thresholds[1]) * (values[2] - values[1])[:, None]
            sums = sums[:, None] + first.T @ second
        return np.asarray(sums / len(values[0]))


def threshold_cascades(
    training: PlanPrompts, of_training: Posteriors, held_out: PlanPrompts, of_held_out: Posteriors
) -> Replays:
    """The cascades and thresholds on the hull of the training prompts, replayed on the held-out ones."""
    tried: list[tuple[Cascade, tuple[float, ...]]] = []
    accuracy, cost = [], []

    @cache
    def tries(asked: Cascade) -> np.ndarray:
        seen = of_training.one_seen[:, asked[0]] if len(asked) == 1 else of_training.two_seen[:, asked[0], asked[1]]
        return np.append(np.unique(np.quantile(seen, np.linspace(0, 1, N_THRESHOLDS))), np.inf)

    for cascade in cascades(training.n_tiers, agreement=False):
        steps = _Steps.of(cascade, training, of_training)
        thresholds = tuple(tries(cascade[:n_asked]) for n_asked in range(1, len(cascade)))
        combinations = np.stack(np.meshgrid(*thresholds, indexing="ij"), axis=-1).reshape(-1, len(thresholds))
        tried += [(cascade, tuple(each)) for each in combinations.tolist()]
        accuracy.append(steps.means(steps.outcomes, thresholds).ravel())
        cost.append(steps.means(steps.costs, thresholds).ravel())
    chosen = [tried[at] for at in _on_hull(training, np.concatenate(accuracy), np.concatenate(cost))]
    return _stacked(
        [_Steps.of(cascade, held_out, of_held_out).follow(thresholds) for cascade, thresholds in chosen], held_out
    )


# ---- cascade routing ---------------------------------------------------------------------------------------------


def cascade_routing(held_out: PlanPrompts, expected: Posteriors, worths: np.ndarray) -> Replays:
    """Cascade routing with at most three calls, at each worth of a correct answer; worths: (n_worths,)."""
    return _stacked([_cascade_routed(held_out, expected, float(worth)) for worth in worths], held_out)


def _cascade_routed(prompts: PlanPrompts, expected: Posteriors, worth: float) -> Replays:
    """Outcome and cost at one worth, each (n_prompts,).

    An answer is checked where more tiers are to be asked, and where that costs nothing.
    """
    rows, fees = np.arange(prompts.n_prompts), prompts.answers.check_usd
    usd = np.where(prompts.eligible, prompts.cost_usd, FORBIDDEN_USD).astype(float)
    checked = usd + prompts.fees
    rank = np.argsort(np.argsort(usd, axis=1, kind="stable"), axis=1)
    in_order = np.where(rank[:, :, None] < rank[:, None, :], 0.0, FORBIDDEN_USD)  # The cheaper one is asked first.
    two_usd = checked[:, :, None] + usd[:, None, :] + in_order
    three_usd = checked[:, :, None, None] + two_usd[:, None] + in_order[..., None]

    more, first = _best_set(
        worth * expected.one - usd, worth * expected.two - two_usd, worth * expected.three - three_usd
    )
    outcome, paid = prompts.correct[rows, first], prompts.paid[rows, first]
    looks = (more > 0) | (prompts.fees[first] == 0)
    paid = paid + np.where(looks, fees[rows, first], 0.0)

    more, second = _best_set(
        worth * expected.one_seen[rows, first][:, None],
        worth * expected.two_after_one[rows, first] - usd,
        worth * expected.three_after_one[rows, first] - two_usd,
    )
    is_asked = looks & (more > 0)
    looks = is_asked & ((more > 1) | (prompts.fees[second] == 0))
    best = np.where(looks, expected.best_of_two_seen[rows, first, second], expected.best_of_two[rows, first, second])
    outcome = np.where(is_asked, prompts.correct[rows, np.where(best == 0, first, second)], outcome)
    paid = paid + np.where(is_asked, prompts.paid[rows, second], 0.0) + np.where(looks, fees[rows, second], 0.0)

    more, third = _best_set(
        worth * expected.two_seen[rows, first, second][:, None],
        worth * expected.three_after_two[rows, first, second] - usd,
    )
    is_asked = looks & (more > 0)
    best = expected.best_of_three[rows, first, second, third]
    returned = np.stack([first, second, third], axis=1)[rows, best]
    paid = paid + np.where(is_asked, prompts.paid[rows, third], 0.0)
    return np.where(is_asked, prompts.correct[rows, returned], outcome), paid


def _best_set(*values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the arguments, and the first of the tiers that it asks, int (n,) each.

    values: of sets of rising size, (n, K), (n, K, K), ...; (n, 1) for the set that asks nobody.
    """
    rows = np.arange(len(values[0]))
    flat = [value.reshape(len(rows), -1) for value in values]
    size = np.stack([value.max(axis=1) for value in flat], axis=1).argmax(axis=1)
    first = [
        np.unravel_index(each.argmax(axis=1), value.shape[1:])[0] for each, value in zip(flat, values, strict=True)
    ]
    return size, np.stack(first, axis=1)[rows, size]


# ---- all of them -------------------------------------------------------------------------------------------------


def _on_hull(training: PlanPrompts, accuracy: np.ndarray, cost: np.ndarray) -> list[int]:
    """Which of some policies are on the upper hull of their points, (n_policies,), and those of single tiers."""
    xs, ys = hull(np.append(cost, training.paid.mean(axis=0)), np.append(accuracy, training.correct.mean(axis=0)))
    found = []
    for x, y in zip(xs, ys, strict=True):
        at = np.flatnonzero((cost == x) & (accuracy == y))
        found += at[:1].tolist()
    return found


def _stacked(replays: list[Replays], prompts: PlanPrompts) -> Replays:
    """The replays of single policies, each (n,), side by side."""
    if not replays:
        return np.empty((prompts.n_prompts, 0)), np.empty((prompts.n_prompts, 0))
    outcomes, costs = zip(*replays, strict=True)
    return np.stack(outcomes, axis=1), np.stack(costs, axis=1)
