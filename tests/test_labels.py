"""The cheapest-correct label, word by word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.log.labels import NONE, UNKNOWN, label_cheapest_correct, label_distribution

NAN = float("nan")


@pytest.mark.parametrize(
    ("correct", "cost_usd", "label"),
    [
        ([1, 1, 1], [3, 1, 2], 1),  # the cheapest of those that are right, wherever it stands
        ([1, 0, 1], [3, 1, 2], 2),  # a wrong answer does not count, however cheap
        ([0, 1, 1], [1, 2, 2], 1),  # equal cost: the first
        ([0, 0, 0], [1, 2, 3], NONE),  # no tier was right
        ([0.5, 1, 0], [1, 2, 3], 0),  # right from 0.5 on
        ([0.49, 1, 0], [1, 2, 3], 1),
        ([NAN, 1, 1], [1, 2, 3], UNKNOWN),  # the one not asked is cheaper: it could be the label
        ([NAN, 1, 1], [2, 2, 3], 1),  # not cheaper: it could not
        ([1, NAN, 0], [1, 2, 3], 0),
        ([1, NAN, 0], [1, NAN, 3], UNKNOWN),  # of unknown cost: it could be cheaper
        ([0, NAN, 0], [1, 9, 2], UNKNOWN),  # none right so far: the one not asked could be
        ([NAN, NAN, NAN], [1, 2, 3], UNKNOWN),
        ([1, 1, 0], [NAN, 5, 1], 1),  # a right answer of unknown cost counts as the dearest
        ([0, 1, 0], [1, NAN, 1], 1),  # and is the label where it is the only one
        ([0, 1, NAN], [1, NAN, 1], UNKNOWN),
        ([1, 0, 0], [0, 0, 0], 0),  # free is a cost
    ],
)
def test_the_definition(correct, cost_usd, label):
    assert label_cheapest_correct(np.array([correct], float), np.array([cost_usd], float)).tolist() == [label]


def oracle(correct, cost_usd):
    """By trying every outcome of the tiers not asked: the label is known where it is always the same.

    A tier not asked whose cost is unknown may cost nothing or more than all others.
    """

    def label(outcome, costs):
        right = [tier for tier, value in enumerate(outcome) if value >= 0.5]
        return min(right, key=lambda tier: (costs[tier], tier in unasked, tier), default=NONE)

    unasked = {tier for tier, value in enumerate(correct) if np.isnan(value)}
    seen = set()
    for pattern in range(3 ** len(unasked)):
        outcome, costs = list(correct), [np.inf if np.isnan(cost) else cost for cost in cost_usd]
        for digit, tier in enumerate(sorted(unasked)):
            choice = pattern // 3**digit % 3
            outcome[tier] = 1.0 if choice else 0.0
            if np.isnan(cost_usd[tier]):
                costs[tier] = -1.0 if choice == 1 else np.inf
        seen.add(label(outcome, costs))
    return seen.pop() if len(seen) == 1 else UNKNOWN


row = st.lists(
    st.tuples(st.sampled_from([0.0, 0.49, 0.5, 1.0, NAN]), st.sampled_from([0.0, 1.0, 2.0, 3.0, NAN])),
    min_size=4,
    max_size=4,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(row, min_size=1, max_size=20))
def test_it_equals_trying_every_outcome_of_the_tiers_not_asked(rows):
    table = np.array(rows)
    label = label_cheapest_correct(table[:, :, 0], table[:, :, 1])
    assert label.tolist() == [oracle(*zip(*cells, strict=True)) for cells in rows]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(row, min_size=1, max_size=20), st.floats(1e-6, 1e6))
def test_it_depends_on_the_order_of_costs_alone(rows, factor):
    table = np.array(rows)
    correct, cost_usd = table[:, :, 0], table[:, :, 1]
    np.testing.assert_array_equal(
        label_cheapest_correct(correct, cost_usd), label_cheapest_correct(correct, cost_usd * factor)
    )


def test_shares_add_up_to_one_in_all_and_in_every_segment():
    label = np.array([0, 0, 1, NONE, UNKNOWN, 1])
    shares = label_distribution(label, ("a", "b"), np.array(["x", "x", "x", "x", "", ""]))
    assert shares["x"] == {"none": 0.25, "unknown": 0.0, "a": 0.5, "b": 0.25}
    assert shares["all"] == pytest.approx({"none": 1 / 6, "unknown": 1 / 6, "a": 1 / 3, "b": 1 / 3})
    assert set(shares) == {"all", "x"}
