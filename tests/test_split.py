"""Laws of splitting: by group, by name and seed alone."""

import numpy as np
import pytest

from training.log.split import fold_numbers, group_positions, test_mask

GROUPS = np.array([f"group {number}" for number in range(5_000)]).repeat(2)
SIDES = {
    "test": lambda groups, seed: test_mask(groups, 0.2, seed),
    "folds": lambda groups, seed: fold_numbers(groups, 5, seed),
}
test_mask.__test__ = False  # a function under test, not a test


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_group_stands_on_one_side(side):
    sides = side(GROUPS, 0).reshape(-1, 2)
    assert (sides[:, 0] == sides[:, 1]).all()


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_prompt_keeps_its_side_as_the_log_grows_or_is_shuffled(side):
    order = np.random.default_rng(0).permutation(len(GROUPS))
    np.testing.assert_array_equal(side(GROUPS[order], 0), side(GROUPS, 0)[order])
    np.testing.assert_array_equal(side(GROUPS[:100], 0), side(GROUPS, 0)[:100])


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_another_seed_is_another_split(side):
    assert (side(GROUPS, 0) != side(GROUPS, 7)).mean() > 0.2


def test_shares_are_about_what_was_asked_for():
    assert test_mask(GROUPS, 0.2, 0).mean() == pytest.approx(0.2, abs=0.02)
    assert np.bincount(fold_numbers(GROUPS, 5, 0)) / len(GROUPS) == pytest.approx([0.2] * 5, abs=0.02)


def test_a_larger_test_part_contains_the_smaller():
    smaller, larger = test_mask(GROUPS, 0.1, 0), test_mask(GROUPS, 0.3, 0)
    assert (larger | ~smaller).all()
    assert not test_mask(GROUPS, 0.0, 0).any() and test_mask(GROUPS, 1.0, 0).all()


def test_folds_do_not_follow_the_test_part():
    inside = fold_numbers(GROUPS, 5, 0)[test_mask(GROUPS, 0.2, 0)]
    assert np.bincount(inside, minlength=5).min() > 0.1 * len(inside)


def test_a_position_is_never_one(monkeypatch):
    class Highest:
        def digest(self):
            return b"\xff" * 32

    monkeypatch.setattr("training.log.split.hashlib.sha256", lambda content: Highest())
    assert group_positions(GROUPS[:1], 0)[0] < 1 and fold_numbers(GROUPS[:1], 5, 0)[0] == 4
