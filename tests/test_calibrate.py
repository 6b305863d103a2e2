"""What calibration and doubly robust outcomes must hold to."""

import numpy as np
import pytest
from simulated import draw, log_one_tier, shares_by_difficulty

from training.fit.calibrate import doubly_robust, fit_calibration
from training.fit.logistic import logit, sigmoid


def brier(success, correct):
    return np.nanmean((success - correct) ** 2)


# ---- calibration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distort", "loss"),
    [
        (lambda p: 0.3 * p + 0.3, 0.001),
        (lambda p: 1.5 * p - 0.4, 0.001),
        (lambda p: sigmoid(3 * logit(p)), 0.008),
        (lambda p: sigmoid(0.3 * logit(p)), 0.008),
        (lambda p: sigmoid(logit(p) + 1.5), 0.008),
    ],
)
def test_calibration_repairs_distorted_estimates(distort, loss):
    success, correct = draw(4000, 3)
    distorted = distort(success)
    train, test = slice(0, 2000), slice(2000, None)
    repaired = fit_calibration(distorted[train], correct[train]).apply(distorted[test])
    assert brier(repaired, correct[test]) < brier(distorted[test], correct[test])
    assert brier(repaired, correct[test]) < brier(success[test], correct[test]) + loss


def test_calibration_leaves_good_estimates_alone():
    success, correct = draw(4000, 2)
    calibration = fit_calibration(success, correct)
    np.testing.assert_allclose(calibration.slope, 1, atol=0.1)
    np.testing.assert_allclose(calibration.intercept, 0, atol=0.1)


def test_few_outcomes_hardly_move_it_and_none_not_at_all():
    success, correct = draw(500, 3)
    correct[4:, 1] = np.nan
    correct[:, 2] = np.nan
    calibration = fit_calibration(success, correct)
    assert abs(calibration.slope[1] - 1) < 0.5 and abs(calibration.intercept[1]) < 0.5
    assert (calibration.slope[2], calibration.intercept[2]) == (1, 0)


def test_unobserved_cells_count_for_nothing():
    success, correct = draw(600, 2)
    hidden = np.random.default_rng(1).random(600) < 0.5
    with_gaps = correct.copy()
    with_gaps[hidden, 0] = np.nan
    alone = fit_calibration(success[~hidden, :1], correct[~hidden, :1])
    both = fit_calibration(success, with_gaps)
    np.testing.assert_allclose([both.slope[0], both.intercept[0]], [alone.slope[0], alone.intercept[0]])


def test_estimates_that_point_the_wrong_way_become_the_mean():
    success, correct = draw(2000, 1)
    calibrated = fit_calibration(1 - success, correct).apply(1 - success)
    np.testing.assert_allclose(calibrated, correct.mean(), atol=0.02)


def test_calibrated_success_is_a_probability_and_never_turns_the_order_round():
    success, correct = draw(300, 2)
    calibration = fit_calibration(success, correct)
    ladder = np.tile(np.linspace(-0.5, 1.5, 101)[:, None], 2)  # parts are not confined to 0..1
    calibrated = calibration.apply(ladder)
    assert np.all((calibrated > 0) & (calibrated < 1))
    assert np.all(np.diff(calibrated, axis=0) >= 0)


def test_outcomes_between_zero_and_one_and_constant_ones_are_fine():
    success, _ = draw(200, 3)
    correct = np.stack([success[:, 0], np.ones(200), np.zeros(200)], axis=1)
    calibrated = fit_calibration(success, correct).apply(success)
    assert brier(calibrated[:, 0], correct[:, 0]) < 0.001
    assert calibrated[:, 1].mean() > 0.85
    assert calibrated[:, 2].mean() < 0.15


# ---- partial feedback ------------------------------------------------------------------------------


def test_doubly_robust_outcomes_are_right_on_average_however_wrong_the_estimates():
    success, correct = draw(20_000, 3)
    observed, propensity = log_one_tier(correct, shares_by_difficulty(success), np.random.default_rng(1))
    assert np.abs(np.nanmean(observed, axis=0) - correct.mean(axis=0)).max() > 0.1
    for estimates in (np.full_like(success, 0.1), 1 - success, success):
        outcomes = doubly_robust(estimates, observed, propensity)
        assert np.isfinite(outcomes).all()
        np.testing.assert_allclose(outcomes.mean(axis=0), correct.mean(axis=0), atol=0.05)


def test_doubly_robust_outcomes_are_the_outcomes_themselves_where_all_were_certain_to_be_seen():
    success, correct = draw(100, 3)
    np.testing.assert_allclose(doubly_robust(success, correct, np.ones_like(success)), correct, atol=1e-12)
    np.testing.assert_allclose(doubly_robust(success, correct, np.full_like(success, np.nan)), correct, atol=1e-12)


def test_weights_calibrate_for_all_prompts_and_not_for_those_that_were_logged():
    success, correct = draw(20_000, 3, noise=0.0)
    flat = np.broadcast_to(correct.mean(axis=0) - 0.1, success.shape)  # knows nothing of the prompt
    observed, propensity = log_one_tier(correct, shares_by_difficulty(success), np.random.default_rng(1))
    plain = fit_calibration(flat, observed).apply(flat).mean(axis=0)
    weighted = fit_calibration(flat, observed, 1 / propensity).apply(flat).mean(axis=0)
    assert np.abs(plain - correct.mean(axis=0)).max() > 0.05
    np.testing.assert_allclose(weighted, correct.mean(axis=0), atol=0.04)


def test_of_weights_only_the_proportions_count():
    success, correct = draw(300, 2)
    plain, scaled = fit_calibration(success, correct), fit_calibration(success, correct, np.full_like(correct, 7.0))
    np.testing.assert_allclose(plain.slope, scaled.slope)
    np.testing.assert_allclose(plain.intercept, scaled.intercept, atol=1e-12)
