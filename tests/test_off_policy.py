"""Off-policy evaluation: laws of the estimators, what is refused, and that intervals cover."""

import re
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router import Router
from router.errors import DialError
from training import evaluate
from training.errors import ConfigError, LogError
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.off_policy import (
    ESTIMATORS,
    compare_policies,
    cross_fitted,
    estimates_regardless,
    evaluate_policy,
)
from training.evaluation.overlap import MIN_SAMPLE_SIZE, Overlap
from training.evaluation.result import OffPolicyEvaluation
from training.log.ingest import ingest
from training.log.split import test_mask as held_out_mask

shares = st.floats(0.05, 1.0)
unit = st.floats(0.0, 1.0)


def distributions(shape):
    return arrays(float, shape, elements=shares).map(lambda raw: raw / raw.sum(axis=1, keepdims=True))


def every_log(behavior, correct, cost_usd):
    """(probability, log) of every draw of tiers that the behavior policy can make, for given outcomes."""
    n, n_tiers = behavior.shape
    rows = np.arange(n)
    for action in product(range(n_tiers), repeat=n):
        taken = np.array(action)
        log = LoggedChoices(taken, behavior[rows, taken], correct[rows, taken], cost_usd[rows, taken])
        yield float(behavior[rows, taken].prod()), log


def simulated(n=1000, n_tiers=3, exploration=0.5, seed=0):
    """A log of a policy that explores, the evaluation policy `always the last tier`, exact predictions, the truth."""
    rng = np.random.default_rng(seed)
    hardness = rng.random(n)
    success = np.clip(np.linspace(0.5, 1.0, n_tiers) - 0.4 * hardness[:, None], 0, 1)
    cost = np.geomspace(1, 10, n_tiers) * (0.5 + hardness[:, None])
    behavior = np.full((n, n_tiers), exploration / n_tiers)
    behavior[np.arange(n), (hardness * n_tiers).astype(int)] += 1 - exploration
    action = (rng.random((n, 1)) > behavior.cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
    rows = np.arange(n)
    correct = (rng.random(n) < success[rows, action]).astype(float)
    paid = cost[rows, action] * rng.uniform(0.5, 1.5, n)
    log = LoggedChoices(action, behavior[rows, action], correct, paid)
    return log, one_hot(np.full(n, n_tiers - 1), n_tiers), success, cost


def one_hot(choice, n_tiers=3):
    return np.eye(n_tiers)[choice]


# ---- laws of the estimators ------------------------------------------------------------------------

problems = st.tuples(
    distributions((2, 3)), distributions((2, 3)), *(arrays(float, (2, 3), elements=unit) for _ in range(3))
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(problems)
def test_ips_and_doubly_robust_are_unbiased_whatever_the_model(problem):
    behavior, evaluation, correct, cost_usd, predicted = problem
    truth = (evaluation * correct).sum(axis=1).mean()
    expected = dict.fromkeys(("ips", "doubly_robust"), 0.0)
    for probability, log in every_log(behavior, correct, cost_usd):
        found = estimates_regardless(log, log.correct, evaluation, predicted)
        for name in expected:
            expected[name] += probability * getattr(found, name).value
    assert expected == pytest.approx(dict.fromkeys(expected, truth), abs=1e-9)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(problems, st.randoms(use_true_random=False))
def test_doubly_robust_and_direct_method_are_exact_with_a_right_model_whatever_the_propensities(problem, random):
    behavior, evaluation, correct, cost_usd, _ = problem
    truth = (evaluation * correct).sum(axis=1).mean()
    _, log = random.choice(list(every_log(behavior, correct, cost_usd)))
    wrong = replace(log, propensity=np.array([random.uniform(0.05, 1) for _ in log.action]))
    found = estimates_regardless(wrong, wrong.correct, evaluation, correct)
    assert found.doubly_robust.value == pytest.approx(truth)
    assert found.direct_method.value == pytest.approx(truth)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(problems, st.randoms(use_true_random=False))
def test_snips_stays_within_the_rewards_and_every_interval_holds_its_value(problem, random):
    behavior, evaluation, correct, cost_usd, predicted = problem
    _, log = random.choice(list(every_log(behavior, correct, cost_usd)))
    wrong = replace(log, propensity=np.array([random.uniform(1e-6, 1) for _ in log.action]))
    found = estimates_regardless(wrong, wrong.correct, evaluation, predicted)
    assert wrong.correct.min() - 1e-9 <= found.snips.value <= wrong.correct.max() + 1e-9
    for name in ESTIMATORS:
        estimate = getattr(found, name)
        assert estimate.low <= estimate.value <= estimate.high


def test_a_policy_judged_on_its_own_log_has_the_plain_means():
    log, *_, success, cost = simulated()
    own = replace(log, propensity=np.ones(len(log.action)))
    report = evaluate_policy(own, one_hot(log.action), success, cost)
    assert report.refused is None and report.effective_sample_size == pytest.approx(len(log.action))
    for name in ("ips", "snips", "doubly_robust"):
        assert getattr(report.quality, name).value == pytest.approx(log.correct.mean())
        assert getattr(report.cost_usd, name).value == pytest.approx(log.cost_usd.mean())


def test_a_good_model_narrows_the_doubly_robust_interval():
    log, evaluation, success, cost = simulated()
    good = evaluate_policy(log, evaluation, success, cost).cost_usd.doubly_robust
    none = evaluate_policy(log, evaluation, success, np.zeros_like(cost)).cost_usd.doubly_robust
    assert good.high - good.low < 0.7 * (none.high - none.low)


def test_more_confidence_is_a_wider_interval():
    log, evaluation, success, cost = simulated()
    widths = [
        (value := evaluate_policy(log, evaluation, success, cost, confidence=level).quality.snips).high - value.low
        for level in (0.5, 0.9, 0.99)
    ]
    assert widths == sorted(widths)


def test_intervals_cover_the_truth_at_their_nominal_rate():
    truth = {"quality": 1.0 - 0.4 * 0.5, "cost_usd": 10.0}  # over all requests: hardness is uniform on 0..1
    covers = {(name, measure): [] for name in ESTIMATORS for measure in truth}
    for seed in range(400):
        log, evaluation, success, cost = simulated(n=600, exploration=0.6, seed=seed)
        report = evaluate_policy(log, evaluation, success * 0.9, cost * 1.2)
        for name, measure in covers if report.refused is None else ():
            estimate = getattr(getattr(report, measure), name)
            covers[name, measure].append(estimate.low <= truth[measure] <= estimate.high)
    assert min(map(len, covers.values())) > 380
    assert {key: np.mean(found) for key, found in covers.items() if np.mean(found) < 0.92} == {}


# ---- comparing two policies ------------------------------------------------------------------------


def test_a_policy_does_not_differ_from_itself():
    log, evaluation, success, cost = simulated()
    compared = compare_policies(log, evaluation, evaluation, success, cost)
    assert compared.quality.value == compared.quality.low == compared.quality.high == 0
    assert compared.cost_usd.value == 0


def test_a_comparison_is_the_difference_of_the_values_with_a_narrower_interval():
    log, evaluation, success, cost = simulated()
    almost = evaluation.copy()
    almost[:20] = one_hot(np.zeros(20, int))
    compared = compare_policies(log, evaluation, almost, success, cost)
    values = [evaluate_policy(log, each, success, cost).quality.doubly_robust for each in (evaluation, almost)]
    assert compared.quality.value == pytest.approx(values[1].value - values[0].value)
    assert compared.quality.high - compared.quality.low < 0.5 * (values[0].high - values[0].low)


def test_a_comparison_is_refused_where_one_of_its_policies_is():
    log, evaluation, success, cost = simulated(exploration=0.02, n=300)
    compared = compare_policies(log, one_hot(log.action), evaluation, success, cost)
    assert compared.quality is None and compared.cost_usd is None
    assert compared.refused.startswith("challenger: ") or "; challenger: " in compared.refused


# ---- what is refused -------------------------------------------------------------------------------


def refusal(log, evaluation):
    n_tiers = evaluation.shape[1]
    report = evaluate_policy(log, evaluation, *np.ones((2, len(log.action), n_tiers)))
    assert (report.quality is None) == (report.cost_usd is None) == (report.refused is not None)
    return report.refused


def test_a_tier_that_was_never_logged_is_refused():
    log, *_ = simulated(n_tiers=3)
    found = refusal(log, one_hot(np.full(len(log.action), 3), 4))
    assert "100.0% on tiers that were never logged" in found and "exploration" in found


def test_a_log_without_exploration_judges_only_the_policy_that_made_it():
    log, *_ = simulated()
    certain = replace(log, propensity=np.ones(len(log.action)))
    assert refusal(certain, one_hot(log.action)) is None
    other = log.action.copy()
    other[: len(other) // 50] = (other[: len(other) // 50] + 1) % 3
    assert "2.0% of what the evaluation policy does had no chance of being logged" in refusal(certain, one_hot(other))


def test_little_exploration_is_refused_and_much_is_not():
    assert "effective sample size" in refusal(*simulated(exploration=0.02, n=400)[:2])
    assert refusal(*simulated(exploration=0.6, n=400)[:2]) is None


def test_a_lucky_draw_without_any_explored_request_is_refused():
    """Every weight is near 1, Kong's sample size is large, and yet half of the requests were never seen."""
    n = 1000
    log = LoggedChoices(np.arange(n) % 2, np.full(n, 0.98), np.ones(n), np.ones(n))
    overlap = Overlap.of(log, one_hot(np.zeros(n, int), 2))
    assert overlap.effective_sample_size == pytest.approx(n / 2)
    assert overlap.attainable_sample_size < MIN_SAMPLE_SIZE
    assert "effective sample size" in overlap.refusal


def test_a_few_requests_that_decide_all_are_refused():
    n = 10_000
    propensity = np.where(np.arange(n) < 4, 0.002, 0.998)
    action = (np.arange(n) < 4).astype(int)
    evaluation = one_hot((np.arange(n) < 1500).astype(int), 2)
    overlap = Overlap.of(LoggedChoices(action, propensity, np.ones(n), np.ones(n)), evaluation)
    assert overlap.variance_carriers == pytest.approx(4, abs=0.5)
    assert "requests with large weights (up to 500)" in overlap.refusal


def test_propensities_that_are_not_those_of_the_draw_are_refused():
    log, evaluation, *_ = simulated(n=4000)
    assert "the weights average" in refusal(replace(log, propensity=log.propensity / 2), evaluation)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.integers(2, 60).flatmap(lambda n: st.tuples(distributions((n, 3)), distributions((n, 3)), st.integers(0, 99)))
)
def test_the_attainable_sample_size_is_never_below_what_the_design_gives(drawn):
    behavior, evaluation, seed = drawn
    n = len(behavior)
    action = np.random.default_rng(seed).integers(3, size=n)
    log = LoggedChoices(action, behavior[np.arange(n), action], np.ones(n), np.ones(n))
    by_design = n / (evaluation**2 / behavior).sum(axis=1).mean()
    assert Overlap.of(log, evaluation).attainable_sample_size >= by_design * (1 - 1e-9)


# ---- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -0.1, 1.01, np.nan, np.inf])
def test_a_propensity_that_is_no_probability_is_named(value):
    log, *_ = simulated(n=10)
    broken = log.propensity.copy()
    broken[3] = value
    with pytest.raises(LogError, match=r"propensity of 1 of 10 rows is not above 0 and at most 1 \(found "):
        replace(log, propensity=broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": np.full(10, 1.5)}, "correct of 10 of 10 rows is not finite, from 0 to 1"),
        ({"cost_usd": np.full(10, np.nan)}, "cost_usd of 10 of 10 rows"),
        ({"cost_usd": np.ones(9)}, r"cost_usd has shape \(9,\); expected \(10,\)"),
        ({"action": np.full(10, 0.5)}, "action is not a one-dimensional array of tier numbers"),
        ({"action": np.full(1, 0)}, "found 1 logged decisions"),
    ],
)
def test_arrays_that_are_no_log_are_refused(change, message):
    log, *_ = simulated(n=10)
    with pytest.raises(LogError, match=message):
        replace(log, **change)


def test_policies_and_predictions_must_fit_the_log():
    log, evaluation, success, cost = simulated(n=100)
    with pytest.raises(LogError, match="no distribution"):
        evaluate_policy(log, evaluation * 0.9, success, cost)
    with pytest.raises(LogError, match=r"expected \(100, n_tiers\) with more than 2 tiers"):
        evaluate_policy(log, evaluation[:, :2], success[:, :2], cost[:, :2])
    with pytest.raises(LogError, match=r"expected finite values, shape \(100, 3\)"):
        evaluate_policy(log, evaluation, success[:50], cost)
    with pytest.raises(ConfigError, match="confidence is 95"):
        evaluate_policy(log, evaluation, success, cost, confidence=95)


# ---- recalibrated out of fold ----------------------------------------------------------------------


def test_an_estimate_never_sees_its_own_outcome():
    log, _, success, cost = simulated(n=300)
    groups = np.arange(300).astype(str)
    flipped = replace(log, correct=np.where(np.arange(300) == 7, 1 - log.correct, log.correct))
    before, after = (cross_fitted(each, success, cost, groups)[0] for each in (log, flipped))
    assert np.array_equal(before[7], after[7]) and not np.array_equal(before, after)


def test_recalibration_finds_a_wrong_price_and_a_wrong_success():
    log, _, success, cost = simulated(n=3000)
    found, found_cost = cross_fitted(log, success**2, cost * 3, np.arange(3000).astype(str))
    assert found.mean(axis=0) == pytest.approx(success.mean(axis=0), abs=0.05)
    assert found_cost.mean(axis=0) == pytest.approx(cost.mean(axis=0), rel=0.1)


# ---- a bundle on a log -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def production(trained):
    """SIMULATED: prompts that training did not see, each answered by one of three tiers drawn at random."""
    table = trained.log
    rows = np.flatnonzero(held_out_mask(table.groups, 0.2, 0) & np.isfinite(table.correct).all(axis=1))
    tier = np.random.default_rng(0).integers(len(table.tiers), size=len(rows))
    offers = Router.load(trained.bundle).prices.tiers
    return pd.DataFrame(
        {
            "request_id": [f"r{row}" for row in rows],
            "prompt": [table.prompts[row] for row in rows],
            "question_key": table.groups[rows],
            "model": [offers[k].offers[0].model for k in tier],
            "propensity": 1 / len(table.tiers),
            **{
                name: getattr(table, name)[rows, tier]
                for name in ("correct", "input_tokens", "output_tokens", "cost_usd")
            },
        }
    )


def test_a_bundle_is_judged_on_the_log_of_another_policy(bundle, trained, production):
    found = evaluate(bundle, production, quality=0.9)
    assert isinstance(found, OffPolicyEvaluation) and found.quality == 0.9
    assert found.n_prompts == found.router.overlap.n == len(production) and found.n_trained_on == 0
    assert found.router.refused is None and found.router.overlap.min_propensity == pytest.approx(1 / 3)
    decisions = Router.load(bundle).route_batch(production.prompt.tolist(), quality=0.9)
    column = [trained.log.tiers.index(decision.tier) for decision in decisions]
    row = [trained.log.prompts.index(prompt) for prompt in production.prompt]
    accuracy = found.router.accuracy
    assert accuracy.low <= trained.log.correct[row, column].mean() <= accuracy.high
    assert all(report.refused is None for report in found.single.values())


def test_prompts_that_the_bundle_was_trained_on_are_left_out(bundle, trained, production):
    table = trained.log
    rows = np.flatnonzero(~held_out_mask(table.groups, 0.2, 0))[:40]
    seen = production.head(40).assign(
        request_id=None, prompt=[table.prompts[row] for row in rows], question_key=table.groups[rows]
    )
    found = evaluate(bundle, pd.concat([production, seen]))
    assert (found.n_prompts, found.n_trained_on) == (len(production), 40)
    with pytest.raises(LogError, match="no prompt to judge: of 40 prompts 40 were trained on"):
        evaluate(bundle, seen)


def test_at_twice_the_price_the_same_decisions_cost_twice_as_much(bundle, production, tmp_path):
    text = (bundle / "tiers.toml").read_text()
    doubled = re.sub(r"((?:usd_per_mtok|usd_per_hour)\w* = )([\d.]+)", lambda m: f"{m[1]}{2 * float(m[2])}", text)
    costs = []
    for content in (text, doubled):
        (tmp_path / "prices.toml").write_text(content)
        found = evaluate(bundle, production, quality=0.9, prices=tmp_path / "prices.toml")
        costs.append(found.router.usd_per_1k.value)
    assert costs[1] == pytest.approx(2 * costs[0], rel=0.02)


def test_rows_that_cannot_be_judged_are_left_out_and_counted(bundle, production):
    marred = production.astype({"correct": object, "propensity": object}).reset_index(drop=True)
    marred.loc[0, "correct"] = None
    marred.loc[1, "propensity"] = None
    marred.loc[2, "model"] = "nobody's"
    marred.loc[3, "prompt"] = None
    found = evaluate(bundle, marred)
    assert found.n_prompts == len(production) - 4 and found.n_incomplete == 2  # two rows come to no prompt at all
    summary = ingest(marred, Router.load(bundle).prices.tiers).summary
    assert sum(summary.quarantined.values()) == 1 and summary.in_no_tier == {"nobody's": 1} and summary.unjudged == 1


def test_a_log_that_does_not_fit_says_so(bundle, production):
    with pytest.raises(LogError, match="or with propensities"):
        evaluate(bundle, production.drop(columns="propensity"))
    with pytest.raises(LogError, match="prompt"):
        evaluate(bundle, production.drop(columns="prompt"))
    with pytest.raises(LogError, match="propensit"):
        evaluate(bundle, production.assign(propensity=0.0))
    with pytest.raises(DialError):
        evaluate(bundle, production, quality=2)


def test_a_log_without_exploration_says_what_is_refused(bundle, production):
    found = evaluate(bundle, production.assign(propensity=1.0))
    assert found.router.accuracy is None and "had no chance of being logged" in found.verdict
    assert found.to_json()["off_policy"]["router"]["accuracy"] is None
