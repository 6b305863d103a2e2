"""What every figure of the report means, on cases small enough to compute by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.metrics import (
    FIGURES,
    Outcomes,
    Policy,
    calibration_error,
    choices_by_worth,
    curve,
    hull,
    interval,
    policy_figures,
    reliability,
    resamples,
    worth_grid,
)

# Two tiers, four prompts: the cheap one is right on the first, the dear one on the first three.
HAND = Outcomes(
    correct=np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]),
    cost_usd=np.tile([1.0, 5.0], (4, 1)),
    best=1,
)
SAMPLE_ONLY = np.full((1, 4), 0.25, np.float32)


def figures(choices, outcomes=HAND, gain=None, weights=SAMPLE_ONLY):
    """The figures of one policy on the sample itself."""
    found = policy_figures(Policy(np.array(choices), gain), outcomes, weights)
    return {name: float(values[0]) for name, values in found.items()}


def random_outcomes(n_prompts, n_tiers, seed=0):
    rng = np.random.default_rng(seed)
    correct = (rng.random((n_prompts, n_tiers)) < np.linspace(0.3, 0.8, n_tiers)).astype(float)
    cost = rng.uniform(0.5, 1.5, (n_prompts, n_tiers)) * np.geomspace(1, 30, n_tiers)
    return Outcomes(correct, cost, best=int(correct.mean(axis=0).argmax()))


# ---- the hull --------------------------------------------------------------------------------------

points = st.lists(
    st.tuples(*(st.integers(0, 10**6).map(lambda millionths: millionths / 10**6) for _ in range(2))), min_size=1
)


@settings(deadline=None, derandomize=True)
@given(points)
def test_the_hull_rises_is_concave_and_lies_above_every_point(drawn):
    cost, accuracy = np.array(drawn).T
    xs, ys = hull(cost, accuracy)
    assert np.all(np.diff(xs) > 0) and np.all(np.diff(ys) > 0)
    slopes = np.diff(ys) / np.diff(xs)
    assert np.all(np.diff(slopes) <= 1e-9 * np.abs(slopes[1:]) + 1e-12)
    assert np.all(np.interp(cost, xs, ys) >= accuracy - 1e-9)
    assert set(zip(xs, ys, strict=True)) <= set(zip(cost, accuracy, strict=True))


def test_the_hull_leaves_out_what_a_mixture_beats():
    xs, ys = hull(np.array([0.0, 1.0, 2.0, 3.0, 1.0]), np.array([0.0, 0.4, 1.0, 0.9, 0.1]))
    assert xs.tolist() == [0, 2]
    assert ys.tolist() == [0, 1]


# ---- AIQ and costs ---------------------------------------------------------------------------------


def test_aiq_of_the_single_tiers_alone_is_their_linear_interpolation():
    assert figures([[0, 1]] * 4)["aiq"] == pytest.approx((0.25 + 0.75) / 2)


def test_aiq_of_a_policy_is_the_mean_height_of_the_hull():
    # Right on all that can be right, at a mean cost of (1 + 5 + 5 + 1) / 4 = 3.
    found = figures([[0], [1], [1], [0]])
    assert found["aiq"] == pytest.approx((0.5 + 0.75) / 2, abs=1e-3)  # rises from 1 to 3, flat from 3 to 5
    assert found["perf_gain"] == pytest.approx(0.0)
    assert found["cost_save"] == pytest.approx(1 - 3 / 5)
    # On the line from (1, 0.25) to (3, 0.75).
    for share, name in ((0.98, "cost_at_98"), (0.95, "cost_at_95")):
        assert found[name] == pytest.approx((1 + (share * 0.75 - 0.25) / 0.5 * 2) / 5)


def test_a_policy_that_loses_to_the_single_tiers_scores_as_they_do():
    losing = figures([[1], [0], [0], [1]])
    mixed = figures([[0, 1]] * 4)
    assert losing["aiq"] == pytest.approx(mixed["aiq"])
    assert losing["cost_at_95"] == pytest.approx(mixed["cost_at_95"])
    assert losing["cost_save"] == 0
    assert losing["perf_gain"] < 0


def test_perf_gain_is_relative_to_the_best_tier():
    outcomes = Outcomes(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]]), HAND.cost_usd, best=1)
    assert figures([[0], [1], [1], [0]], outcomes)["perf_gain"] == pytest.approx(0.75 / 0.5 - 1)


def test_where_the_best_tier_is_the_cheapest_aiq_is_the_hull_at_its_cost():
    outcomes = Outcomes(HAND.correct[:, ::-1], HAND.cost_usd, best=0)
    found = figures([[0], [0], [0], [0]], outcomes)
    assert found["aiq"] == pytest.approx(0.75)
    assert found["cost_save"] == 0
    assert found["cost_at_98"] == 1


def test_costs_of_zero_divide_nothing():
    found = figures([[0, 1]] * 4, Outcomes(HAND.correct, np.zeros((4, 2)), best=1))
    assert found["aiq"] == pytest.approx(0.75)
    assert (found["cost_save"], found["cost_at_98"]) == (0, 1)
    assert np.isfinite(list(found.values())).all()


def test_a_best_tier_that_is_never_right_divides_nothing():
    found = figures([[0, 1]] * 4, Outcomes(np.zeros((4, 2)), HAND.cost_usd, best=1))
    assert (found["aiq"], found["perf_gain"]) == (0, 0)
    assert np.isfinite(list(found.values())).all()


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 5))
def test_no_figure_is_better_than_the_oracles(seed, n_tiers):
    outcomes = random_outcomes(60, n_tiers, seed)
    weights = resamples(60, n_bootstrap=100)
    random_choice = np.random.default_rng(seed).integers(0, n_tiers, (60, 4))
    right = np.where(outcomes.correct > 0, outcomes.cost_usd, np.inf)
    oracle = np.where(np.isfinite(right).any(axis=1), right.argmin(axis=1), outcomes.cost_usd.argmin(axis=1))
    of_random = policy_figures(Policy(random_choice), outcomes, weights)
    of_oracle = policy_figures(Policy(oracle[:, None]), outcomes, weights)
    assert np.all(of_oracle["aiq"] >= of_random["aiq"] - 1e-6)
    assert np.all(of_oracle["perf_gain"] >= of_random["perf_gain"] - 1e-6)


def test_the_unit_of_cost_changes_no_figure():
    outcomes = random_outcomes(200, 3)
    choices = np.random.default_rng(1).integers(0, 3, (200, 5))
    in_cents = Outcomes(outcomes.correct, outcomes.cost_usd * 100, outcomes.best)
    weights = resamples(200, n_bootstrap=100)
    one, other = (policy_figures(Policy(choices), each, weights) for each in (outcomes, in_cents))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4)


def test_the_curve_is_in_dollars_per_thousand_and_rises_in_cost():
    assert curve(Policy(np.array([[1, 0]] * 4)), HAND) == [(1000.0, 0.25), (5000.0, 0.75)]


# ---- APGR and CPT ----------------------------------------------------------------------------------


def test_apgr_and_cpt_by_hand():
    # Asked in the order 3, 1, 0, 2: recovered of the gap 0, 1/2, 1/2, 1 after each call.
    found = figures([[0]] * 4, gain=np.array([0.2, 0.3, 0.1, 0.4]))
    assert found["apgr"] == pytest.approx((0 + 0.25 + 0.5 + 0.75) / 4)
    assert found["cpt50"] == pytest.approx(0.5)
    assert found["cpt80"] == pytest.approx(0.75 + 0.25 * 0.6)


def test_a_random_order_recovers_what_it_spends_and_the_oracles_order_more():
    outcomes = random_outcomes(20_000, 2)
    rng = np.random.default_rng(3)
    weights = resamples(20_000, n_bootstrap=100)[:1]
    at_random = figures(np.zeros((20_000, 1), int), outcomes, rng.random(20_000), weights)
    assert at_random["apgr"] == pytest.approx(0.5, abs=0.02)
    assert at_random["cpt50"] == pytest.approx(0.5, abs=0.03)
    oracle = figures(np.zeros((20_000, 1), int), outcomes, outcomes.correct @ [-1, 1], weights)
    gap, helped = (outcomes.correct @ [-1, 1]).mean(), (outcomes.correct @ [-1, 1] > 0).mean()
    assert oracle["cpt50"] == pytest.approx(0.5 * gap, rel=0.01)  # each of its first calls helps
    assert oracle["apgr"] > 1 - helped
    assert oracle["apgr"] > at_random["apgr"]


def test_equal_gains_count_as_a_random_order_whatever_the_order_of_the_rows():
    for rows in (slice(None), slice(None, None, -1)):
        outcomes = Outcomes(HAND.correct[rows], HAND.cost_usd, best=1)
        found = figures([[0]] * 4, outcomes, gain=np.zeros(4))
        assert found["apgr"] == pytest.approx(0.5)
        assert (found["cpt50"], found["cpt80"]) == pytest.approx((0.5, 0.8))


def test_without_a_gap_there_is_nothing_to_recover():
    level = Outcomes(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), HAND.cost_usd, best=1)
    assert set(figures([[0]] * 4, level, gain=np.arange(4.0))) == set(FIGURES[:5])


def test_three_tiers_have_no_apgr():
    assert set(figures([[0]] * 4, random_outcomes(4, 3))) == set(FIGURES[:5])


# ---- intervals -------------------------------------------------------------------------------------


def test_every_interval_holds_its_value_and_narrows_with_more_prompts():
    widths = []
    for n_prompts in (100, 1600):
        outcomes = random_outcomes(n_prompts, 2)
        weights = resamples(n_prompts, n_bootstrap=300)
        policy = Policy(np.random.default_rng(0).integers(0, 2, (n_prompts, 3)), outcomes.correct @ [-1, 1])
        found = {name: interval(values) for name, values in policy_figures(policy, outcomes, weights).items()}
        found["ece"] = interval(calibration_error(np.full(n_prompts, 0.8), outcomes.correct[:, 1], weights))
        assert set(found) == {*FIGURES, "ece"}
        assert all(figure.low <= figure.value <= figure.high for figure in found.values())
        widths.append(found["aiq"].high - found["aiq"].low)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = interval(resamples(150, n_bootstrap=300) @ (rng.random(150) < 0.7).astype(np.float32))
        covered += found.low <= 0.7 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_a_resample_that_does_not_define_a_figure_is_passed_over():
    found = interval(np.array([0.5, np.nan, 0.4, 0.6]))
    assert (found.value, np.isfinite([found.low, found.high]).all()) == (0.5, True)


def test_the_first_resample_is_the_sample_itself_and_every_one_weighs_the_same():
    weights = resamples(50, seed=1, n_bootstrap=200)
    assert weights.shape == (201, 50)
    np.testing.assert_allclose(weights[0], 1 / 50)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(weights, resamples(50, seed=1, n_bootstrap=200))


# ---- calibration -----------------------------------------------------------------------------------


def test_ece_is_zero_where_every_bin_is_right_and_the_gap_where_it_is_not():
    success = np.repeat([0.25, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 1, 0.0])
    weights = np.full((1, 8), 1 / 8, np.float32)
    assert calibration_error(success, correct, weights)[0] == pytest.approx(0, abs=1e-7)
    assert calibration_error(success + 0.1, correct, weights)[0] == pytest.approx(0.1, abs=1e-6)
    # Too high in one bin and too low in another do not cancel.
    wrong = success + np.repeat([0.1, -0.1], 4)
    assert calibration_error(wrong, correct, weights)[0] == pytest.approx(0.1, abs=1e-6)


def test_a_success_of_exactly_one_is_in_the_last_bin():
    assert calibration_error(np.ones(4), np.ones(4), SAMPLE_ONLY)[0] == 0
    assert reliability(np.array([0.95, 1.0]), np.array([1.0, 0.0])) == [(0.975, 0.5, 2)]


# ---- choices ---------------------------------------------------------------------------------------


def test_the_grid_of_worths_goes_from_the_cheapest_tier_to_the_best():
    success, cost = np.array([[0.5, 0.6, 0.7]]), np.array([1e-4, 1e-3, 1e-2])
    choices = choices_by_worth(success, cost, worth_grid(cost))[0]
    assert choices[0] == 0
    assert choices[-1] == 2
    assert np.all(np.diff(choices) >= 0)


def test_free_tiers_leave_only_success_to_decide():
    cost = np.zeros(2)
    assert choices_by_worth(np.array([[0.2, 0.9]]), cost, worth_grid(cost))[0, -1] == 1
