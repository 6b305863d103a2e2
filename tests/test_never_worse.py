"""Never worse than doing nothing: at every quality the best tier answers, unless something else is proven."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from simulated import draw

from router import Policy, Router
from router.policy import resolve_dials
from router.rule import admissible, best, or_best_tier
from training import TrainingConfig, train
from training.dial.dial import calibrate_dial, saves
from training.evaluation.bundle_graph import BundleGraph
from training.fit.logistic import logit, sigmoid

PROMPTS = (
    "Hello!",
    "Write a SQL query that returns the three newest orders of each customer.",
    "Five friends sit in a row. Anna is not next to Ben. Prove who sits in the middle, step by step.",
    "请用一句话介绍一下这家公司的退货政策。",
    "",
)
QUALITY = st.floats(0.5, 1.0)
WORTH = st.sampled_from([1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0])
SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.fixture(scope="module")
def unproven(bundle):
    """The sample bundle as if its log promised qualities up to 0.9 only."""
    loaded = Router.load(bundle).bundle
    dial = tuple(
        point if point.quality <= 0.9 else replace(point, slack=0.0, promised=False, n_needed=5000)
        for point in loaded.manifest.dial
    )
    return Router(replace(loaded, manifest=replace(loaded.manifest, dial=dial)))


# ---- the runtime -----------------------------------------------------------------------------------


@SHARED
@given(prompt=st.sampled_from(PROMPTS), quality=st.floats(0.901, 1.0))
def test_at_a_quality_that_is_not_promised_the_best_tier_answers_and_says_why(unproven, prompt, quality):
    decision = unproven.route(prompt, quality=quality)
    name = unproven.bundle.manifest.best_tier
    assert decision.tier == decision.best_tier == name and not decision.promised and not decision.fallback
    assert decision.reason.startswith(f"{name}: the best tier of the log; the training log carries no promise")
    assert unproven.route_batch([prompt], quality=quality) == [decision]


@SHARED
@given(prompt=st.sampled_from(PROMPTS), qualities=st.tuples(QUALITY, QUALITY))
def test_raising_quality_never_lowers_what_is_promised(unproven, prompt, qualities):
    """Within the promised qualities not even the expected success of one prompt falls. Beyond them stands the best
    tier, whose accuracy is the measure of every promise."""
    low, high = (unproven.route(prompt, quality=quality) for quality in sorted(qualities))
    if high.quality <= 0.9:
        assert high.success[high.tier] >= low.success[low.tier]
    else:
        assert high.tier == unproven.bundle.manifest.best_tier


@SHARED
@given(prompt=st.sampled_from(PROMPTS), quality=st.floats(0.901, 1.0), worth=WORTH)
def test_a_worth_leaves_the_best_tier_only_for_one_that_is_worth_more(unproven, prompt, quality, worth):
    decision = unproven.route(prompt, quality=quality, worth_usd=worth)
    value = {tier: worth * decision.success[tier] - decision.cost_usd[tier] for tier in decision.success}
    name, strongest = unproven.bundle.manifest.best_tier, max(decision.success, key=decision.success.__getitem__)
    assert decision.tier in (name, strongest)
    assert value[decision.tier] == max(value[name], value[strongest])


def test_where_the_best_tier_may_not_answer_the_highest_success_of_the_others_does(unproven):
    decision = unproven.route(PROMPTS[1], quality=0.98, regions=["local", "eu"])
    assert unproven.bundle.manifest.best_tier not in decision.eligible and decision.best_tier is None
    assert decision.tier == max(decision.eligible, key=decision.success.__getitem__)
    assert "the best tier of the log, frontier, may not answer" in decision.reason


def test_critical_requests_and_worth_alone_are_as_ever(unproven, router):
    for prompt in PROMPTS:
        for dials in ({"critical": True}, {"worth_usd": 1e-4}, {"worth_usd": 0.0}, {"quality": 0.85}):
            found, expected = unproven.route(prompt, **dials), router.route(prompt, **dials)
            assert (found.tier, found.slack, found.reason) == (expected.tier, expected.slack, expected.reason)
            assert found.best_tier is None


def test_exploration_stays_within_the_slack_and_the_best_tier(bundle, unproven):
    curious = Router(unproven.bundle, Policy(exploration=0.5))
    for prompt in PROMPTS:
        for _ in range(40):
            decision = curious.route(prompt, quality=0.98)
            highest = max(decision.success.values())
            assert decision.tier == decision.best_tier or decision.success[decision.tier] == highest
            assert decision.propensity in (0.5, 1.0)


# ---- the explanation -------------------------------------------------------------------------------


@SHARED
@given(prompt=st.sampled_from(PROMPTS), worth=st.one_of(st.just(0.0), WORTH))
def test_what_would_change_a_decision_for_the_best_tier_does_change_it(unproven, prompt, worth):
    decision = unproven.route(prompt, quality=0.98, worth_usd=worth)
    explanation = decision.explain()
    assert explanation.tier == decision.tier and decision.tier in explanation.admissible
    for change in explanation.changes:
        if change.worth_usd is not None and decision.cost_usd[change.tier] > decision.cost_usd[decision.tier]:
            beyond = unproven.route(prompt, quality=0.98, worth_usd=change.worth_usd * 1.001)
            assert beyond.tier == change.tier
        if change.slack is not None:
            assert "a lower quality would admit it, if the bundle promises that one" in str(explanation)
    assert "does not support a promise of quality 0.98" in str(explanation)


def test_a_tier_that_is_no_worse_and_cheaper_would_win_at_any_worth(unproven):
    decision = unproven.route(PROMPTS[0], quality=0.98)
    success = {**decision.success, "distilled": decision.success["frontier"] + 0.01}
    explanation = replace(decision, success=success).explain()
    (change,) = [change for change in explanation.changes if change.tier == "distilled"]
    assert change.worth_usd == 0 and "distilled" in explanation.admissible
    assert "if a correct answer were given any worth" in str(explanation)


# ---- one rule --------------------------------------------------------------------------------------


def test_evaluation_judges_what_the_router_answers(unproven):
    """The rule in numpy and the rule of the runtime, at dials of every kind."""
    graph = BundleGraph(unproven.bundle)
    prompts = [f"{prompt} {number}" for prompt in PROMPTS for number in range(20)]
    estimates = graph.estimates(prompts)
    for quality in (None, 0.85, 0.95, 1.0):
        for worth in (None, 0.0, 1e-5, 1e-4, 1e-3, 1e-1):
            dials = resolve_dials(unproven.bundle.manifest, Policy(), quality, worth, critical=False)
            decisions = unproven.route_batch(prompts, quality=quality, worth_usd=worth)
            found = [unproven.bundle.manifest.tiers[k] for k in graph.answers(estimates, dials)]
            assert found == [decision.tier for decision in decisions]


@given(
    success=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    cost=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    worth=st.floats(0, 10),
    slack=st.floats(0, 1),
)
def test_no_answer_in_the_best_tiers_place_is_worth_less(success, cost, worth, slack):
    success, cost = dict(enumerate(success)), dict(enumerate(cost))
    chosen = best(admissible([0, 1, 2], success, slack), success, cost, worth)
    tier = or_best_tier(chosen, 2, success, cost, worth)
    assert tier in (chosen, 2)
    assert worth * success[tier] - cost[tier] >= worth * success[2] - cost[2]
    assert worth > 0 or tier == 2


# ---- the dial --------------------------------------------------------------------------------------


def estimates_and_costs(n_prompts, seed, usd):
    """Noisy estimates, outcomes and costs of each attempt, (n_prompts, 3); usd: mean cost of each tier."""
    success, correct = draw(n_prompts, 3, seed)
    rng = np.random.default_rng([seed, 1])
    estimate = sigmoid(0.8 * logit(success) + 0.5 * rng.normal(size=success.shape))
    return estimate, correct, np.array(usd) * rng.lognormal(-0.32, 0.8, size=success.shape)


LADDERS = {
    "dear": (1.0, 5.0, 25.0),
    "close": (9.0, 10.0, 10.0),
    "the best is cheap": (10.0, 20.0, 4.0),
    "hardly dearer": (20.0, 9.9, 10.0),
}


@pytest.mark.parametrize("usd", LADDERS.values(), ids=LADDERS)
def test_on_small_logs_no_quality_is_worse_than_the_best_tier_in_quality_or_cost(usd):
    """Hundreds of logs of 60 to 300 prompts, judged by the truth. At each quality, at most one log in twenty, by the
    confidence, may cost more than the best tier of that log, or keep less than the quality: binomial, at 99.9 %."""
    n_logs, rng = 200, np.random.default_rng(0)
    qualities = (0.8, 0.9, 0.95, 0.98, 1.0)
    fresh, outcome, paid = estimates_and_costs(20_000, 100_000, usd)
    dearer, broken = dict.fromkeys(qualities, 0), dict.fromkeys(qualities, 0)
    for seed in range(n_logs):
        success, correct, cost = estimates_and_costs(int(rng.integers(60, 301)), seed, usd)
        of_log = int(correct.mean(axis=0).argmax())
        for point in calibrate_dial(success, correct, 0.95, cost_usd=cost, qualities=qualities):
            chosen = np.full(len(fresh), of_log)
            if point.promised:
                within = fresh >= fresh.max(axis=1, keepdims=True) - point.slack
                chosen = np.where(within, np.array(usd), np.inf).argmin(axis=1)
            rows = np.arange(len(fresh))
            dearer[point.quality] += paid[rows, chosen].mean() > 1.005 * paid[:, of_log].mean()
            kept = outcome[rows, chosen].mean() / outcome[:, of_log].mean()
            broken[point.quality] += kept < point.quality - 0.005
    most = binom.ppf(0.999, n_logs, 0.05)
    assert max(dearer.values()) <= most and max(broken.values()) <= most, (dearer, broken)


def test_a_choice_that_costs_more_than_the_best_tier_is_not_promised_and_needs_no_more_prompts():
    success, correct = draw(2000, 3)
    cheap, dear = np.tile([1.0, 5.0, 25.0], (2000, 1)), np.tile([10.0, 20.0, 4.0], (2000, 1))
    free, paying = (calibrate_dial(success, correct, 0.95, cost_usd=cost) for cost in (cheap, dear))
    assert free == calibrate_dial(success, correct, 0.95)
    for proven, point in zip(free, paying, strict=True):
        assert point.slack == proven.slack
        assert not (proven.promised and point.promised and point.slack < 0.1)
        if proven.promised and not point.promised:
            assert point.n_needed is None


def test_a_slack_saves_only_where_chance_does_not_explain_it():
    rng = np.random.default_rng(0)
    success, correct = np.tile([0.5, 0.5], (400, 1)), np.tile([0.0, 1.0], (400, 1))
    of_best = rng.lognormal(-0.5, 1.0, 400)
    cost = np.stack([np.full(400, 0.98), of_best / of_best.mean()], axis=1)
    assert not saves(0.0, success, correct, cost, 0.95)
    assert saves(0.0, success, correct, cost * [0.5, 1.0], 0.95)
    assert saves(0.0, success, correct, 0 * cost, 0.95)  # nothing costs anything, so nothing is lost


# ---- the whole line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(sample_log, sample_tiers, tmp_path_factory):
    """Trained on about 120 prompts, judged on 80."""
    log = pd.read_parquet(sample_log)
    some = log[log.question_key.isin(sorted(log.question_key.unique())[:200])]
    out = tmp_path_factory.mktemp("tiny") / "bundle"
    return train(some, sample_tiers, out, TrainingConfig(test_share=0.4), tracking_uri="none")


def test_of_a_tiny_log_what_is_not_promised_keeps_and_costs_exactly_what_the_best_tier_does(tiny):
    refused = [point for point in tiny.evaluation.dial if not point.promised]
    assert refused and any(point.quality == 1 for point in refused)
    for point in refused:
        assert (point.kept.value, point.cost_of_best.value) == (1, 1)
        assert point.shares[tiny.manifest.best_tier] == 1
    for point in tiny.evaluation.dial:
        assert point.cost_of_best.low <= 1 and point.kept.high >= point.quality


def test_the_card_says_who_answers_where_nothing_is_promised(tiny):
    card = re.sub(r"\s+", " ", (tiny.bundle / "README.md").read_text())
    assert "the best tier of the log" in card and "answers, unless worth_usd says otherwise" in card
