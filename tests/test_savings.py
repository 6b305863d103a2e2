"""Laws of what routing has saved: an estimate that the truth lies in, and never a mere repricing."""

import json

import numpy as np
import pytest

from router.outcomes.savings import FEWEST, savings

TIERS = ("small", "large")


def simulated(n=3000, *, exploration=0.2, cost_factor=1.0, success_shift=0.0, judged=1.0, seed=0):
    """Rows of a log in which an easy half goes to small, and what always asking large would have cost and got right.

    cost_factor: what large really costs, relative to what its bundle expects. success_shift: the same for success.
    """
    draw = np.random.default_rng(seed)
    rows, cost, right = [], 0.0, 0.0
    for number in range(n):
        is_easy, explored = draw.random() < 0.5, draw.random() < exploration
        tier = TIERS[bool(draw.integers(2))] if explored else TIERS[not is_easy]
        of_large = exploration / 2 + (1 - exploration) * (not is_easy)
        success = {"small": 0.9 if is_easy else 0.3, "large": 0.95 if is_easy else 0.8}
        expected = {"small": 0.001, "large": 0.01 if is_easy else 0.03}
        usd = {"small": 0.001, "large": cost_factor * expected["large"] * draw.uniform(0.5, 1.5)}
        is_right = {name: draw.random() < value - success_shift for name, value in success.items()}
        cost, right = cost + usd["large"], right + is_right["large"]
        rows.append({
            "decision_id": str(number), "attempt_id": None, "tier": tier, "ended": "complete", "cost_usd": usd[tier],
            "correct": float(is_right[tier]) if draw.random() < judged else None,
            "propensity": of_large if tier == "large" else 1 - of_large,
            "decision": json.dumps({"success": success, "cost_usd": expected}),
        })  # fmt: skip
    spent = sum(row["cost_usd"] for row in rows)
    got = sum(row["correct"] for row in rows if row["correct"] is not None)
    return rows, 1 - spent / cost, got / right if judged == 1 else None


@pytest.mark.parametrize("cost_factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("success_shift", [0.0, 0.2])
def test_the_truth_lies_within_the_interval_however_wrong_the_bundle_expects(cost_factor, success_shift):
    """Repricing by expectations would be wrong by that factor."""
    rows, saved, kept = simulated(cost_factor=cost_factor, success_shift=success_shift)
    found = savings(rows)
    assert found.strongest == "large" and found.saved.low <= saved <= found.saved.high
    assert found.saved.high - found.saved.low < 0.1
    assert found.kept.low - 0.01 <= kept <= found.kept.high + 0.01


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    misses = 0
    for seed in range(40):
        rows, saved, _ = simulated(400, seed=seed, cost_factor=2.0)
        found = savings(rows).saved
        misses += not found.low <= saved <= found.high
    assert misses <= 6


def test_attempts_and_checks_are_part_of_what_was_spent():
    rows, _, _ = simulated(200)
    before = savings(rows)
    extra = {**rows[0], "attempt_id": "x", "cost_usd": 1.0, "decision": None, "ended": "failed"}
    after = savings([*rows, extra, {**rows[1], "attempt_id": "y", "cost_usd": None, "check_tests_usd": 0.5}])
    assert after.usd == pytest.approx(before.usd + 1.5) and after.n_requests == before.n_requests
    assert after.saved.value < before.saved.value


def test_without_answers_of_the_strongest_tier_its_cost_is_the_expectation_and_that_is_said():
    rows = [row for row in simulated(200, exploration=0.0)[0] if row["tier"] == "small"]
    found = savings(rows)
    assert found.n_asked == 0 < FEWEST
    expected = sum(json.loads(row["decision"])["cost_usd"]["large"] for row in rows)
    assert found.saved.value == pytest.approx(1 - found.usd / expected)


def test_nothing_judged_keeps_nothing_and_nothing_answered_saves_nothing():
    rows, _, _ = simulated(100, judged=0.0)
    assert savings(rows).kept is None and savings(rows).n_judged == 0
    assert savings([]) is None and savings([{**rows[0], "cost_usd": None}]) is None
    assert savings([{**rows[0], "ended": "failed"}]) is None
