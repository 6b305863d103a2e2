"""What the quality dial promises must hold."""

from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import binom
from simulated import draw, log_one_tier, shares_by_difficulty

from training.dial.betting import N_CHECKPOINTS, Bets, prompts_needed
from training.dial.dial import (
    COMPLETE_PROMPTS,
    DIAL_QUALITIES,
    SLACKS,
    calibrate_dial,
    newest_prompts,
    promise_statement,
)
from training.fit.calibrate import doubly_robust
from training.fit.logistic import logit, sigmoid

ENOUGH = np.log(1 / 0.05)


@pytest.mark.parametrize("n_tiers", [2, 4, 7])
def test_slack_never_rises_with_quality_and_every_promise_is_kept_on_paper(n_tiers):
    dial = calibrate_dial(*draw(3000, n_tiers), confidence=0.95)
    assert [point.quality for point in dial] == list(DIAL_QUALITIES)
    assert all(lower.slack >= higher.slack for lower, higher in zip(dial, dial[1:], strict=False))
    assert dial[0].promised and dial[0].slack > 0
    for point in dial:
        assert point.slack in SLACKS
        assert point.kept >= point.quality if point.promised else point.slack == 0


def kept_by(orders, success, correct, slack):
    """The least accuracy kept over orders in which prices can rank the tiers, and over the lowest estimates."""
    admissible = success >= success.max(axis=1, keepdims=True) - slack
    rows = np.arange(len(correct))
    chosen = [np.array(order)[admissible[:, order].argmax(axis=1)] for order in orders]
    chosen.append(np.where(admissible, success, np.inf).argmin(axis=1))
    return min(correct[rows, tier].mean() for tier in chosen) / correct.mean(axis=0).max()


def test_promises_hold_as_often_as_stated_whatever_the_prices():
    """Drawn again and again, hardly more than delta of the logs may promise what does not hold: binomial, at 99.9 %."""
    n_logs, violations = 80, dict.fromkeys((0.9, 0.95, 0.98), 0)
    fresh, outcome = draw(20_000, 3, seed=1000)
    estimated = sigmoid(0.8 * logit(fresh) + 0.1)  # an imperfect estimate, as any is
    truth = {}
    for seed in range(n_logs):
        success, correct = draw(600, 3, seed)
        dial = calibrate_dial(sigmoid(0.8 * logit(success) + 0.1), correct, 0.95, qualities=tuple(violations))
        for point in dial:
            if point.promised:
                if point.slack not in truth:
                    truth[point.slack] = kept_by(list(permutations(range(3))), estimated, outcome, point.slack)
                violations[point.quality] += truth[point.slack] < point.quality
    assert max(violations.values()) <= binom.ppf(0.999, n_logs, 0.05)
    assert len(truth) > 3


def test_a_promise_is_not_just_caution_it_leaves_room_to_save():
    dial = {point.quality: point.slack for point in calibrate_dial(*draw(5000, 3), confidence=0.95)}
    assert dial[0.8] > dial[0.95] > 0


CHECKPOINTS = 40 * np.arange(1, N_CHECKPOINTS + 1) - 1


@pytest.mark.parametrize("n_tiers", [2, 3, 4, 5])
def test_no_order_of_prices_has_less_wealth_than_the_one_that_decides(n_tiers):
    success, correct = draw(40 * N_CHECKPOINTS, n_tiers, seed=n_tiers)
    rows = np.arange(len(correct))
    for slack, quality in product((0.0, 0.05, 0.3, 1.0), (0.8, 0.98)):
        admissible = success >= success.max(axis=1, keepdims=True) - slack
        chosen = [np.array(order)[admissible[:, order].argmax(axis=1)] for order in permutations(range(n_tiers))]
        lowest = np.where(admissible, success, np.inf).argmin(axis=1)
        least = np.inf
        for best in range(n_tiers):
            stake = stakes(correct[rows, lowest] - quality * correct[:, best], quality, enough=3.0)
            wealth = [
                np.log1p(stake * (correct[rows, tier] - quality * correct[:, best])).cumsum()[CHECKPOINTS]
                for tier in (*chosen, lowest)
            ]
            least = min(least, np.min(wealth, axis=0).max())
        found = Bets.at(slack, success, correct, enough=3.0, largest=1.0).log_wealth(quality)
        assert 3 <= found <= least + 1e-9 if least >= 3 else least - 1e-9 <= found < 3


def stakes(z, quality, enough):
    """Prompt by prompt, from the prompts before alone."""
    result = []
    for n in range(len(z)):
        before = z[:n]
        variance = (0.25 + ((before - before.mean()) ** 2).sum()) / (n + 1) if n else 0.25
        result.append(min((2 * enough / (len(z) * variance)) ** 0.5, 0.5 / quality))
    return np.array(result)


def test_the_wealth_that_proves_is_hardly_ever_come_to_where_the_quality_is_just_not_kept():
    """A betting game: with a mean of 0 the wealth comes to 1 / delta with probability delta at most."""
    rng, quality, delta, n_games = np.random.default_rng(0), 0.9, 0.05, 1000
    for share in (0.02, 0.5):  # rare large losses, and frequent ones
        n_proofs = 0
        for _ in range(n_games):
            best = (rng.random(60) < 0.8).astype(float)
            other = np.where(rng.random(60) < share, (rng.random(60) < 0.72).astype(float), quality * best)
            table = Bets.at(0.0, np.tile([0.6, 0.5], (60, 1)), np.stack([other, best], axis=1), 3.0, 1.0, (1,))
            n_proofs += table.log_wealth(quality) >= np.log(1 / delta)
        assert n_proofs <= binom.ppf(0.999, n_games, delta)


def test_ten_tiers_are_promised_for_too():
    success, correct = draw(1000, 10)
    dial = calibrate_dial(success, correct, 0.95, qualities=(0.8, 0.9, 0.98))
    assert dial[0].promised and dial[0].slack > 0
    orders = [np.random.default_rng(seed).permutation(10) for seed in range(100)]
    for slack in {point.slack for point in dial if point.promised}:
        highest = max(point.quality for point in dial if point.promised and point.slack == slack)
        assert kept_by(orders, success, correct, slack) >= highest


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


def test_the_order_of_tiers_changes_nothing_and_that_of_prompts_hardly_anything():
    success, correct = draw(1000, 4)
    rows = np.random.default_rng(0).permutation(1000)
    dial = calibrate_dial(success, correct, 0.95)
    mirrored = calibrate_dial(success[:, ::-1], correct[:, ::-1], 0.95)
    assert [(a.slack, a.promised) for a in dial] == [(b.slack, b.promised) for b in mirrored]
    for point, shuffled in zip(dial, calibrate_dial(success[rows], correct[rows], 0.95), strict=True):
        assert abs(point.slack - shuffled.slack) <= 0.05


def test_so_many_prompts_as_are_said_to_be_needed_carry_the_promise_and_a_quarter_of_them_do_not():
    sample = draw(500, 3)
    for quality in (0.98, 0.99):
        (point,) = calibrate_dial(*sample, 0.95, qualities=(quality,))
        assert not point.promised and point.n_needed > 500
        repeats = -(-2 * point.n_needed // 500)
        many = [np.tile(values, (repeats, 1)) for values in sample]
        (enough,) = calibrate_dial(*many, 0.95, qualities=(quality,))
        (few,) = calibrate_dial(*(values[: point.n_needed // 4] for values in many), 0.95, qualities=(quality,))
        assert enough.promised and not few.promised


def estimated(n_prompts, seed=0):
    """Success with errors, as training estimates it, and outcomes, (n_prompts, 3)."""
    success, correct = draw(n_prompts, 3, seed)
    return sigmoid(0.8 * logit(success) + 0.3 * np.random.default_rng(seed).normal(size=success.shape)), correct


@pytest.mark.parametrize("quality", [0.9, 0.97])
def test_with_as_many_prompts_as_a_promise_takes_about_half_of_all_logs_carry_it(quality):
    """Half as many seldom carry it, twice as many mostly."""
    success, correct = estimated(20_000)
    n_needed = Bets.at(0.0, success, correct, ENOUGH, 1.0).n_needed(quality)

    def share_of_logs(n_prompts):
        rng = np.random.default_rng(1)
        logs = (rng.integers(len(correct), size=n_prompts) for _ in range(60))
        return np.mean(
            [Bets.at(0.0, success[log], correct[log], ENOUGH, 1.0).log_wealth(quality) >= ENOUGH for log in logs]
        )

    assert share_of_logs(n_needed // 2) <= 0.4
    assert 0.3 <= share_of_logs(n_needed) <= 0.75
    assert share_of_logs(2 * n_needed) >= 0.7


def test_a_router_that_only_asks_the_best_tier_is_proven_at_the_largest_stake():
    """Such a router never loses, so the best stake is the largest: growth = accuracy x log(1 + 0.5 (1 - q) / q)."""
    best = np.repeat([1.0, 0.0], [800, 200])
    expected = ENOUGH / (0.8 * np.log1p(0.5 * 0.02 / 0.98))
    assert prompts_needed(best, best[:, None], 0.98, ENOUGH) == np.ceil(expected)
    assert prompts_needed(best, best[:, None], 1.0, ENOUGH) is None
    assert prompts_needed(best[:0], best[:0, None], 0.9, ENOUGH) is None


def test_a_small_margin_takes_two_log_wealths_times_variance_over_margin_squared():
    rng = np.random.default_rng(0)
    best, other = (rng.random((2, 100_000)) < 0.8).astype(float)
    z = other - 0.99 * best
    first_order = 2 * ENOUGH * z.var() / z.mean() ** 2
    assert prompts_needed(other, best[:, None], 0.99, ENOUGH) == pytest.approx(first_order, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_what_a_promise_takes_is_never_at_odds_with_what_is_promised(seed):
    for n_prompts in (60, 300, 1000):
        for point in calibrate_dial(*estimated(n_prompts, seed), 0.95):
            if point.promised:
                assert point.n_needed <= n_prompts
            else:
                assert point.n_needed is None or point.n_needed > n_prompts


def test_a_quality_that_the_estimates_do_not_keep_needs_more_than_any_number_of_prompts():
    success, correct = draw(2000, 3)
    (point,) = calibrate_dial(1 - success, correct, 0.95, qualities=(1.0,))
    assert not point.promised and point.n_needed is None


def test_bounds_within_segments_are_below_what_was_kept_there_and_small_segments_have_none():
    success, correct = draw(4000, 3)
    segments = np.array(["large"] * 2000 + ["other"] * 1900 + ["small"] * 100)
    for point in calibrate_dial(success, correct, 0.95, segments=segments, qualities=(0.9, 0.98)):
        assert set(point.segments) == {"large", "other"}
        for name, bound in point.segments.items():
            rows = segments == name
            assert 0.5 < bound < kept_by(list(permutations(range(3))), success[rows], correct[rows], point.slack)


def test_the_statement_names_the_highest_quality_that_is_promised_its_assumption_and_its_evidence():
    dial = calibrate_dial(*draw(2000, 3), 0.95)
    highest = max(point.quality for point in dial if point.promised)
    said = promise_statement(dial, 0.95, "best", 2000)
    assert f"up to {highest:g}," in said["statement"] and "95%" in said["statement"] and "best" in said["statement"]
    assert "exchangeable" in said["assumption"] and "2,000 prompts" in said["evidence"]
    assert (said["n_prompts"], said["prompts"]) == (2000, COMPLETE_PROMPTS)
    nothing = promise_statement(dial[:0], 0.95, "best", 7)
    assert nothing["statement"].startswith("None") and f"7 {COMPLETE_PROMPTS}" in nothing["evidence"]


def test_promises_of_partial_feedback_hold_as_often_as_stated():
    n_logs, violations, room, truth = 30, dict.fromkeys((0.85, 0.9), 0), 0.0, {}
    fresh, outcome = draw(20_000, 3, seed=1000)
    for seed in range(n_logs):
        success, correct = draw(4000, 3, seed)
        observed, propensity = log_one_tier(correct, shares_by_difficulty(success), np.random.default_rng(seed))
        outcomes = doubly_robust(success, observed, propensity)
        largest = 1 / np.nanmin(propensity)
        for point in calibrate_dial(success, outcomes, 0.95, largest=largest, qualities=tuple(violations)):
            room += point.slack
            if point.promised:
                if point.slack not in truth:
                    truth[point.slack] = kept_by(list(permutations(range(3))), fresh, outcome, point.slack)
                violations[point.quality] += truth[point.slack] < point.quality
    assert max(violations.values()) <= binom.ppf(0.999, n_logs, 0.05)
    assert room > 0


def test_without_the_right_to_promise_the_slacks_are_the_same():
    sample = draw(3000, 3)
    for bold, shy in zip(calibrate_dial(*sample, 0.95), calibrate_dial(*sample, 0.95, promise=False), strict=True):
        assert (bold.slack, bold.kept) == (shy.slack, shy.kept)
        assert not shy.promised and shy.n_needed is None


def test_larger_weights_make_the_dial_more_careful():
    sample = draw(1000, 3)
    for light, heavy in zip(calibrate_dial(*sample, 0.95), calibrate_dial(*sample, 0.95, largest=30.0), strict=True):
        assert heavy.slack <= light.slack


def with_times(n_old, n_new):
    """Hours: the last n_new rows are asked last."""
    return np.datetime64("2026-01-01T00:00", "us") + np.arange(n_old + n_new).astype("timedelta64[h]")


def drifted(n_old, n_new, seed):
    """Estimates that are right of old prompts; on new ones the first tier is worse than it is thought to be."""
    success, correct = draw(n_old + n_new, 3, seed)
    rng = np.random.default_rng([seed, 7])
    correct[n_old:, 0] = rng.random(n_new) < np.clip(success[n_old:, 0] - 0.3, 0, 1)
    return success, correct


def test_the_newest_prompts_have_a_veto_and_nothing_but_a_veto():
    success, correct = drifted(2000, 500, seed=0)
    times = with_times(2000, 500)
    before = calibrate_dial(success, correct, 0.95)
    after = calibrate_dial(success, correct, 0.95, asked_at=times)
    assert all(new.slack <= old.slack for new, old in zip(after, before, strict=True))
    assert any(new.slack < old.slack for new, old in zip(after, before, strict=True))
    newest = newest_prompts(times)
    for point in after:
        kept = kept_by(list(permutations(range(3))), success[newest], correct[newest], point.slack)
        assert point.slack == 0 or kept >= point.quality - 1e-9
    unknown = np.full(2500, np.datetime64("NaT"), "datetime64[us]")
    assert calibrate_dial(success, correct, 0.95, asked_at=unknown) == before


def test_where_requests_drift_the_veto_keeps_more_of_the_promise_for_requests_to_come():
    """The truth of what comes after the drift, over 15 logs."""
    kept = {"without": [], "with": []}
    success, correct = drifted(0, 50_000, seed=1000)
    for seed in range(15):
        log = drifted(2000, 500, seed)
        for name, times in (("without", None), ("with", with_times(2000, 500))):
            (point,) = calibrate_dial(*log, 0.95, asked_at=times, qualities=(0.95,))
            kept[name].append(kept_by(list(permutations(range(3))), success, correct, point.slack))
    assert np.mean(kept["without"]) < 0.94 and np.mean(kept["with"]) > 0.95, kept


@pytest.mark.parametrize(("n_known", "expected"), [(99, 0), (100, 100), (400, 100), (2000, 400)])
def test_the_newest_are_a_fifth_but_never_too_few_to_say_anything(n_known, expected):
    times = np.concatenate([with_times(n_known, 0), np.full(50, np.datetime64("NaT"), "datetime64[us]")])
    newest = newest_prompts(times)
    assert len(newest) == expected
    assert not len(newest) or (newest.min() == n_known - expected and newest.max() == n_known - 1)
