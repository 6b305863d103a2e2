"""What calibration and the dial's promise must hold to."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import norm

from training.calibrate import DIAL_QUALITIES, SLACKS, calibrate_dial, doubly_robust, fit_calibration
from training.estimators import logit, sigmoid


def draw(n_prompts, n_tiers, seed=0, noise=0.5):
    """Success that tiers share in part, and outcomes drawn from it; all (n_prompts, n_tiers)."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(n_prompts, 1)), rng.normal(size=(n_prompts, n_tiers))
    success = sigmoid(np.linspace(-0.3, 0.9, n_tiers) + shared + noise * own)
    return success, (rng.random(success.shape) < success).astype(float)


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


# ---- the dial --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tiers", range(2, 8))
def test_slack_never_rises_with_quality_and_every_promise_is_kept_on_paper(n_tiers):
    dial = calibrate_dial(*draw(3000, n_tiers), confidence=0.95)
    assert [point.quality for point in dial] == list(DIAL_QUALITIES)
    assert all(lower.slack >= higher.slack for lower, higher in zip(dial, dial[1:], strict=False))
    assert dial[0].promised and dial[0].slack > 0
    for point in dial:
        assert point.slack in SLACKS
        assert point.kept >= point.quality if point.promised else point.slack == 0


def kept_by(orders, success, correct, slack, best):
    """Accuracy relative to the best tier's, for each order in which prices can rank the tiers."""
    admissible = success >= success.max(axis=1, keepdims=True) - slack
    rows = np.arange(len(correct))
    chosen = [np.array(order)[admissible[:, order].argmax(axis=1)] for order in orders]
    chosen.append(np.where(admissible, success, np.inf).argmin(axis=1))
    return np.array([correct[rows, tier].mean() for tier in chosen]) / correct[:, best].mean()


def test_promises_hold_on_fresh_prompts_as_often_as_stated_whatever_the_prices():
    n_splits, violations = 60, dict.fromkeys((0.9, 0.95, 0.98), 0)
    fresh, outcome = draw(30_000, 3, seed=1000)
    estimated = sigmoid(0.8 * logit(fresh) + 0.1)  # an imperfect estimate, as any is
    best = int(outcome.mean(axis=0).argmax())
    for seed in range(n_splits):
        success, correct = draw(800, 3, seed)
        dial = {point.quality: point for point in calibrate_dial(sigmoid(0.8 * logit(success) + 0.1), correct, 0.95)}
        for quality in violations:
            if dial[quality].promised:
                kept = kept_by(list(permutations(range(3))), estimated, outcome, dial[quality].slack, best)
                violations[quality] += kept.min() < quality
    assert max(violations.values()) / n_splits <= 0.15


def test_a_promise_is_not_just_caution_it_leaves_room_to_save():
    dial = {point.quality: point.slack for point in calibrate_dial(*draw(5000, 3), confidence=0.95)}
    assert dial[0.8] > dial[0.95] > 0


@pytest.mark.parametrize("n_tiers", [2, 3, 4, 5])
def test_no_order_of_prices_has_a_lower_bound_than_the_one_that_decides(n_tiers):
    from training.calibrate import LOSS, _Admitted

    success, correct = draw(400, n_tiers, seed=n_tiers)
    best = correct[:, correct.mean(axis=0).argmax()]
    rows = np.arange(len(correct))
    for slack in (0.0, 0.05, 0.3, 1.0):
        admissible = success >= success.max(axis=1, keepdims=True) - slack
        chosen = [np.array(order)[admissible[:, order].argmax(axis=1)] for order in permutations(range(n_tiers))]
        chosen.append(np.where(admissible, success, np.inf).argmin(axis=1))
        for quality in (0.8, 0.98):
            differences = [[*(correct[rows, tier] - quality * best), LOSS[0] - quality * LOSS[1]] for tier in chosen]
            errors = np.std(differences, axis=1, ddof=1) / np.sqrt(len(correct) + 1)
            least = (np.mean(differences, axis=1) - norm.ppf(0.95) * errors).min()
            found = _Admitted.at(slack, success, correct, best).lower_bound(quality, 0.95)
            assert least - 1e-3 <= found <= least + 1e-9


def test_twelve_tiers_are_promised_for_too():
    success, correct = draw(2000, 12)
    dial = calibrate_dial(success, correct, 0.95)
    assert dial[0].promised and dial[0].slack > 0
    orders = [np.random.default_rng(seed).permutation(12) for seed in range(200)]
    best = int(correct.mean(axis=0).argmax())
    for point in dial:
        if point.promised:
            assert kept_by(orders, success, correct, point.slack, best).min() >= point.quality


@pytest.mark.parametrize("n_prompts", [0, 1, 2, 10])
def test_a_tiny_log_promises_nothing(n_prompts):
    success, _ = draw(n_prompts, 3)
    for correct in (np.ones((n_prompts, 3)), np.zeros((n_prompts, 3))):
        dial = calibrate_dial(success, correct, 0.95)
        assert [point.quality for point in dial] == list(DIAL_QUALITIES)
        assert not any(point.promised or point.slack for point in dial)
        assert np.isfinite([point.kept for point in dial]).all()


def test_that_no_loss_was_seen_promises_no_more_than_its_number_of_prompts_can():
    """With no loss in n prompts the true rate of losses may still be 3 / n, at 95 %."""
    for n_prompts in (30, 100, 300, 3000):
        dial = calibrate_dial(np.full((n_prompts, 2), 0.5), np.ones((n_prompts, 2)), 0.95)
        promised = [point.quality for point in dial if point.promised]
        assert max(promised, default=0) <= 1 - 0.8 * 3 / n_prompts


def test_only_prompts_that_every_tier_answered_count():
    success, correct = draw(1000, 3)
    gaps = correct.copy()
    gaps[500:, 1] = np.nan
    assert calibrate_dial(success, gaps, 0.95) == calibrate_dial(success[:500], correct[:500], 0.95)


def test_more_confidence_never_means_more_slack():
    sample = draw(1500, 3)
    for sure, surer in zip(calibrate_dial(*sample, 0.8), calibrate_dial(*sample, 0.99), strict=True):
        assert surer.slack <= sure.slack


def test_the_order_of_tiers_and_prompts_changes_nothing():
    success, correct = draw(1000, 4)
    rows = np.random.default_rng(0).permutation(1000)
    dial = calibrate_dial(success, correct, 0.95)
    shuffled = calibrate_dial(success[rows][:, ::-1], correct[rows][:, ::-1], 0.95)
    assert [(a.slack, a.promised) for a in dial] == [(b.slack, b.promised) for b in shuffled]


# ---- partial feedback ------------------------------------------------------------------------------


def log_one_tier(correct, distribution, rng):
    """The outcome of one tier per prompt, drawn from a distribution over tiers, and its propensity."""
    n, n_tiers = correct.shape
    action = (rng.random((n, 1)) > distribution.cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
    is_logged = np.eye(n_tiers, dtype=bool)[action]
    return np.where(is_logged, correct, np.nan), np.where(is_logged, distribution, np.nan)


def shares_by_difficulty(success):
    """An old router that asks the first tier what it finds easy, with a fifth explored."""
    n, n_tiers = success.shape
    choice = np.where(success[:, 0] > np.median(success[:, 0]), 0, n_tiers - 1)
    return 0.8 * np.eye(n_tiers)[choice] + 0.2 / n_tiers


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


def test_promises_of_partial_feedback_hold_on_fresh_prompts_as_often_as_stated():
    n_splits, violations, room = 40, dict.fromkeys((0.85, 0.9), 0), 0.0
    fresh, outcome = draw(30_000, 3, seed=1000)
    best = int(outcome.mean(axis=0).argmax())
    for seed in range(n_splits):
        success, correct = draw(4000, 3, seed)
        observed, propensity = log_one_tier(correct, shares_by_difficulty(success), np.random.default_rng(seed))
        outcomes = doubly_robust(sigmoid(0.8 * logit(success) + 0.1), observed, propensity)
        largest = 1 / np.nanmin(propensity)
        dial = {point.quality: point for point in calibrate_dial(success, outcomes, 0.95, largest=largest)}
        for quality in violations:
            room += dial[quality].slack
            if dial[quality].promised:
                kept = kept_by(list(permutations(range(3))), fresh, outcome, dial[quality].slack, best)
                violations[quality] += kept.min() < quality
    assert max(violations.values()) / n_splits <= 0.15
    assert room > 0


def test_without_the_right_to_promise_the_slacks_are_the_same():
    sample = draw(3000, 3)
    for bold, shy in zip(calibrate_dial(*sample, 0.95), calibrate_dial(*sample, 0.95, promise=False), strict=True):
        assert (bold.slack, bold.kept) == (shy.slack, shy.kept)
        assert not shy.promised


def test_larger_weights_make_the_dial_more_careful():
    sample = draw(1000, 3)
    for light, heavy in zip(calibrate_dial(*sample, 0.95), calibrate_dial(*sample, 0.95, largest=30.0), strict=True):
        assert heavy.slack <= light.slack
