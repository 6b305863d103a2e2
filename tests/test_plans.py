"""Plans: what looking at answers is worth, weighed exactly, and proven at the prices in force."""

import hashlib
import json
import shutil
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import Router
from router.bundle import Bundle
from router.bundle.manifest import read_manifest
from router.errors import BundleError, CheckError, DialError
from router.golden import GoldenCheck, check_golden
from router.plans.betting import keeps, least_proven
from router.plans.calibration import Calibration
from router.plans.checks import CheckModel, KnownChecks, combined
from router.plans.engine import PlanEngine, look_inputs
from router.plans.planner import PLAN_FILES
from router.plans.replay import ALL, FIRST_SECOND, FIRST_THIRD, NONE, SECOND_THIRD, LoggedAnswers, replay
from router.plans.tree import Choices
from training.export.golden import GOLDEN_PROMPTS, golden_files
from training.fit.agreement import AgreementModel
from training.fit.joint import N_NODES, JointModel
from training.fit.plan_graph import plan_graph
from training.fit.verifiers import fit_verifier

N_TIERS = 3
AGREE = {ALL: 0, FIRST_SECOND: 0, FIRST_THIRD: 1, SECOND_THIRD: 1, NONE: 1}


class Simulated:
    """Prompts with a known difficulty: estimates are exact, tiers fail together, wrong answers are often the same."""

    def __init__(self, n=1500, n_tiers=N_TIERS, seed=0, loading=1.4):
        rng = np.random.default_rng(seed)
        self.joint = JointModel(loadings=np.full(n_tiers, loading), gain=0.0, n_prompts=0)
        self.success = rng.uniform(0.15, 0.95, (n, n_tiers))
        node = rng.choice(N_NODES, n, p=self.joint.weights)
        right = self.joint.at_nodes(self.success)[np.arange(n), :, node]
        self.correct = (rng.random((n, n_tiers)) < right).astype(float)
        popular = rng.random((n, n_tiers)) < 0.6
        own = 2 + np.arange(n_tiers)
        self.answers = np.where(self.correct == 1, 0, np.where(popular, 1, own))


@pytest.fixture(scope="module")
def simulated():
    return Simulated()


@pytest.fixture(scope="module")
def models(simulated):
    joint = JointModel.fit(simulated.success, simulated.correct)
    agreement = AgreementModel.fit(simulated.success, simulated.correct, simulated.answers)
    return joint, agreement


@pytest.fixture(scope="module")
def engine(models):
    return PlanEngine(plan_graph(*models).SerializeToString())


CHECK = CheckModel.with_figures("tests", N_TIERS, sensitivity=0.9, specificity=0.75, usd=0.02)


# ---- an oracle that shares nothing with the graph but the chances it starts from --------------------------------


class Oracle:
    """Weighs every plan of at most three calls of one prompt, by writing down everything that may happen."""

    def __init__(self, models, success, cost, worth, check, *, agreement, max_calls):
        joint, self.agreement = models
        self.cost, self.worth, self.check, self.compares = cost, worth, check, agreement
        self.max_calls, self.n = max_calls, len(success)
        self.easy = float(success.mean())
        self.nodes = joint.at_nodes(success[None])[0]  # (K, Q)
        self.weights = joint.weights

    def chance_of(self, tiers, right):
        each = [self.nodes[t] if r else 1 - self.nodes[t] for t, r in zip(tiers, right, strict=True)]
        return float(np.prod(each, axis=0) @ self.weights)

    def score_chance(self, tier, score, right):
        if self.check is None:
            return 1.0
        hard, easy = (self.check.verdicts_input[end, tier, score, right] for end in (0, 1))
        return float((1 - self.easy) * hard + self.easy * easy)

    def pattern_chance(self, tiers, right, pattern):
        ends = np.array([1 - self.easy, self.easy])
        if len(tiers) == 2:
            table = self.agreement.of_two[tiers].reshape(2, 2, 2, 2, 3)
            chances = ends @ table[:, right[0], right[1], :, 0]
        else:
            table = self.agreement.of_three[tiers].reshape(2, 2, 2, 2, 5, 4)
            chances = ends @ table[:, right[0], right[1], right[2], :, 0]
        if not self.compares:
            return 1.0 if pattern == 0 else 0.0
        return float(chances[pattern])

    def seen(self, tiers, scores, pattern, n_scored):
        """P(seen), and P(seen and each answer is right), after these tiers, the first n_scored answers checked."""
        total, rights = 0.0, np.zeros(len(tiers))
        for right in product((0, 1), repeat=len(tiers)):
            chance = self.chance_of(tiers, right)
            for tier, score, is_right in zip(tiers[:n_scored], scores, right, strict=False):
                chance *= self.score_chance(tier, score, is_right)
            if len(tiers) > 1:
                chance *= self.pattern_chance(tiers, right, pattern)
            total += chance
            rights += chance * np.array(right)
        return total, rights

    @property
    def fee(self):
        return 0.0 if self.check is None else float(self.check.usd[0])

    @property
    def scores(self):
        return range(1 if self.check is None else self.check.n_classes)

    def best(self):
        direct = max(self.worth * self.chance_of((t,), (1,)) - self.cost[t] for t in range(self.n))
        return max(direct, *(self.looked_at(t) for t in range(self.n)))

    def looked_at(self, first):
        value = -self.cost[first] - self.fee
        for score in self.scores:
            reached, rights = self.seen((first,), (score,), 0, 1)
            options = [self.worth * rights[0]]
            if self.max_calls >= 2:
                options += [self.second(first, t, score, reached) for t in range(self.n) if t != first]
            value += max(options)
        return value

    def second(self, first, second, score, reached):
        pair, agreements = (first, second), (0, 1)
        unchecked = -self.cost[second] * reached
        for agree in agreements:
            rights = sum(self.seen(pair, (score, other), agree, 2)[1] for other in self.scores)
            unchecked += self.worth * rights.max()
        checked = -(self.cost[second] + self.fee) * reached
        for agree, other in product(agreements, self.scores):
            seen, rights = self.seen(pair, (score, other), agree, 2)
            options = [self.worth * rights.max()]
            if self.max_calls >= 3:
                options += [self.third(pair, t, (score, other), agree, seen) for t in range(self.n) if t not in pair]
            checked += max(options)
        return max(unchecked, checked)

    def third(self, pair, third, scores, agree, reached):
        value = -self.cost[third] * reached
        for pattern in range(5):
            if AGREE[pattern] == agree:
                value += self.worth * self.seen((*pair, third), scores, pattern, 2)[1].max()
        return value


def tables_of(engine, success, cost, worth, check, *, agreement, max_calls=3):
    return engine.run(
        success[None].astype(np.float32),
        cost[None].astype(np.float32),
        np.ones((1, len(success)), bool),
        np.array([[worth]], np.float32),
        look_inputs(check, len(success), agreement=agreement, max_calls=max_calls),
    )


def value_of(tables, success, cost, worth, check, *, agreement):
    """The value of the plan in the tables, from its own expected success and cost."""
    if not tables.is_plan[0, 0]:
        tier = tables.direct[0, 0]
        return worth * success[tier] - cost[tier]
    choices = Choices.of(tables, tuple("abc"), agreement=agreement)
    fees = [0.0] * len(success) if check is None else list(check.usd)
    right, paid = choices.expected(cost.tolist(), fees)
    return worth * right - paid


@settings(max_examples=40)
@given(
    success=st.lists(st.floats(0.02, 0.98), min_size=N_TIERS, max_size=N_TIERS),
    cost=st.lists(st.floats(0.001, 0.5), min_size=N_TIERS, max_size=N_TIERS),
    worth=st.floats(0.05, 20),
    max_calls=st.integers(1, 3),
    looks=st.sampled_from([(None, True), (CHECK, False), (CHECK, True)]),
)
def test_the_plan_is_the_best_of_all_plans(models, engine, success, cost, worth, max_calls, looks):
    check, agreement = looks
    success, cost = np.array(success, np.float32).astype(float), np.array(cost)
    tables = tables_of(engine, success, cost, worth, check, agreement=agreement, max_calls=max_calls)
    found = value_of(tables, success, cost, worth, check, agreement=agreement)
    best = Oracle(models, success, cost, worth, check, agreement=agreement, max_calls=max_calls).best()
    assert found == pytest.approx(best, abs=2e-5 * max(1.0, worth))


def test_without_a_check_the_order_of_calls_does_not_hang_on_rounding(engine):
    """To ask one tier and then another is worth the same as the other way round: the earlier of the manifest begins.

    But where a third call may follow, the tables of agreement are not quite the same for every order.
    """
    rng = np.random.default_rng(5)
    success, cost = rng.uniform(0.1, 0.9, (2000, N_TIERS)), rng.uniform(0.01, 0.2, (2000, N_TIERS))
    tables = engine.run(
        success.astype(np.float32),
        cost.astype(np.float32),
        np.ones(success.shape, bool),
        rng.uniform(0.5, 200, (len(success), 1)).astype(np.float32),
        look_inputs(None, N_TIERS, agreement=True, max_calls=3),
    )
    rows = np.flatnonzero(tables.is_plan)
    first = tables.first[rows, 0]
    second = tables.second[rows, 0, first, 0]
    assert len(rows) > 400 and (first < second).mean() > 0.97


@settings(max_examples=30)
@given(
    success=st.lists(st.floats(0.05, 0.95), min_size=N_TIERS, max_size=N_TIERS),
    cost=st.lists(st.floats(0.001, 0.5), min_size=N_TIERS, max_size=N_TIERS),
    worth=st.floats(0.05, 20),
)
def test_more_calls_and_more_checks_never_lower_the_value(engine, success, cost, worth):
    success, cost = np.array(success), np.array(cost)
    free = CheckModel.with_figures("tests", N_TIERS, sensitivity=0.9, specificity=0.75)

    def value(check, agreement, max_calls):
        tables = tables_of(engine, success, cost, worth, check, agreement=agreement, max_calls=max_calls)
        return value_of(tables, success, cost, worth, check, agreement=agreement)

    rounding = 2e-5 * max(1.0, worth)
    by_calls = [value(free, True, n) for n in (1, 2, 3)]
    assert np.diff(by_calls).min() >= -rounding
    assert by_calls[0] == pytest.approx((worth * success - cost).max(), abs=rounding)
    assert by_calls[2] >= max(value(None, True, 3), value(free, False, 3)) - rounding


def test_without_a_look_every_plan_is_direct(engine, simulated):
    tables = tables_of(engine, simulated.success[0], np.array([0.1, 0.2, 0.3]), 5.0, None, agreement=False)
    assert not tables.is_plan[0, 0]


def test_a_tier_that_is_not_eligible_is_never_asked(engine, simulated):
    n = 200
    eligible = np.tile([True, False, True], (n, 1))
    tables = engine.run(
        simulated.success[:n].astype(np.float32),
        np.full((n, 3), 0.01, np.float32),
        eligible,
        np.full((n, 1), 5.0, np.float32),
        look_inputs(CHECK, N_TIERS, agreement=True, max_calls=3),
    )
    classes = (simulated.correct[:n] == 1).astype(int)
    found = replay(tables, LoggedAnswers(simulated.answers[:n], classes, np.zeros((n, 3))))
    assert set(np.unique(found.asked)) <= {-1, 0, 2}


def test_a_perfect_free_check_answers_what_any_of_three_tiers_can_answer(engine, simulated):
    n = len(simulated.success)
    perfect = CheckModel.with_figures("tests", N_TIERS, sensitivity=1.0, specificity=1.0)
    tables = engine.run(
        simulated.success.astype(np.float32),
        np.full((n, 3), 1e-4, np.float32),
        np.ones((n, 3), bool),
        np.full((n, 1), 100.0, np.float32),
        look_inputs(perfect, N_TIERS, agreement=False, max_calls=3),
    )
    found = replay(tables, LoggedAnswers(None, simulated.correct.astype(int), np.zeros((n, 3))))
    assert found.outcome(simulated.correct).mean() == simulated.correct.max(axis=1).mean()


def test_two_tiers_have_plans_too():
    two = Simulated(n=400, n_tiers=2)
    joint = JointModel.fit(two.success, two.correct)
    agreement = AgreementModel.fit(two.success, two.correct, two.answers)
    engine = PlanEngine(plan_graph(joint, agreement).SerializeToString())
    engine.try_out(2)
    success, cost, check = (
        two.success[0],
        np.array([0.001, 0.1]),
        CheckModel.with_figures("tests", 2, sensitivity=0.95, specificity=0.9),
    )
    tables = tables_of(engine, success, cost, 1.0, check, agreement=True)
    found = value_of(tables, success, cost, 1.0, check, agreement=True)
    best = Oracle((joint, agreement), success, cost, 1.0, check, agreement=True, max_calls=3).best()
    assert found == pytest.approx(best, abs=1e-4)


# ---- what is learned ---------------------------------------------------------------------------------------------


@given(
    loadings=st.lists(st.sampled_from([0.0, 0.6, 1.4, 4.0]), min_size=2, max_size=4),
    estimate=st.floats(0, 1),
)
def test_the_joint_model_keeps_every_tiers_own_estimate(loadings, estimate):
    joint = JointModel(loadings=np.array(loadings), gain=0.0, n_prompts=0)
    at_nodes = joint.at_nodes(np.full((1, len(loadings)), estimate))[0]
    assert at_nodes @ joint.weights == pytest.approx(np.full(len(loadings), estimate), abs=1e-9)
    assert (np.diff(at_nodes, axis=1) * (np.array(loadings)[:, None] > 0) >= -1e-9).all()


def test_the_joint_model_finds_how_much_tiers_fail_together():
    together, alone = Simulated(loading=1.4), Simulated(loading=0.0)
    found = JointModel.fit(together.success, together.correct)
    assert found.loadings == pytest.approx(np.full(N_TIERS, 1.4), abs=0.45) and found.gain > 0.05
    assert JointModel.fit(alone.success, alone.correct).loadings.max() <= 0.4
    unseen = Simulated(loading=1.4, seed=1)
    independent = JointModel(loadings=np.zeros(N_TIERS), gain=0.0, n_prompts=0)
    gain = found.log_likelihood(unseen.success, unseen.correct) - independent.log_likelihood(
        unseen.success, unseen.correct
    )
    assert gain.mean() > 0.05


def test_after_a_failure_the_next_tiers_chance_is_what_the_log_shows(simulated, engine, models):
    unseen = Simulated(seed=2)
    verifier = CheckModel.with_figures("perfect", N_TIERS, sensitivity=1.0, specificity=1.0)
    n = len(unseen.success)
    tables = engine.run(
        unseen.success.astype(np.float32),
        np.full((n, 3), 0.01, np.float32),
        np.ones((n, 3), bool),
        np.ones((n, 1), np.float32),
        look_inputs(verifier, N_TIERS, agreement=False, max_calls=3),
    )
    failed = unseen.correct[:, 0] == 0
    after = tables.after_two[:, 0, 1, 0, :, 0]  # first tier 0, second tier 1, first score "fails"
    expected = after[..., 2].sum(axis=1) / after[..., 0].sum(axis=1)
    assert expected[failed].mean() == pytest.approx(unseen.correct[failed, 1].mean(), abs=0.04)
    assert expected[failed].mean() < unseen.success[failed, 1].mean() - 0.05


def test_answers_that_agree_are_right_as_often_as_the_log_shows(engine):
    unseen = Simulated(seed=3)
    n = len(unseen.success)
    tables = engine.run(
        unseen.success.astype(np.float32),
        np.full((n, 3), 0.01, np.float32),
        np.ones((n, 3), bool),
        np.ones((n, 1), np.float32),
        look_inputs(None, N_TIERS, agreement=True, max_calls=3),
    )
    agree = unseen.answers[:, 0] == unseen.answers[:, 1]
    seen = tables.after_two[:, 0, 1, 0, 0]  # (n, 2, 3)
    assert seen[:, 0, 0].mean() == pytest.approx(agree.mean(), abs=0.04)
    right = seen[agree, 0, 1] / seen[agree, 0, 0]
    assert right.mean() == pytest.approx(unseen.correct[agree, 0].mean(), abs=0.04)


@pytest.mark.parametrize(("sensitivity", "specificity"), [(0.95, 0.8), (0.85, 0.65)])
def test_a_checks_figures_are_learned_from_its_verdicts(simulated, sensitivity, specificity):
    rng = np.random.default_rng(7)
    chance = np.where(simulated.correct == 1, sensitivity, 1 - specificity)
    score = (rng.random(chance.shape) < chance).astype(float)
    check = fit_verifier("tests", simulated.success, simulated.correct, score, np.full(score.shape, 0.01))
    assert check.verdicts_input[:, :, 1, 1] == pytest.approx(np.full((2, N_TIERS), sensitivity), abs=0.05)
    assert check.verdicts_input[:, :, 0, 0] == pytest.approx(np.full((2, N_TIERS), specificity), abs=0.05)
    assert check.usd == pytest.approx((0.01,) * N_TIERS)
    low, high = (check.evidence["specificity"][end] for end in ("low", "high"))
    assert low < specificity < high


def test_errors_that_go_with_difficulty_are_learned_as_such(simulated):
    rng = np.random.default_rng(7)
    easy = simulated.success.mean(axis=1, keepdims=True)
    chance = np.where(simulated.correct == 1, 0.95, 0.1 + 0.6 * easy)  # wrong answers pass where prompts are easy
    score = (rng.random(chance.shape) < chance).astype(float)
    check = fit_verifier("judge", simulated.success, simulated.correct, score, np.zeros(score.shape))
    passes_wrong = check.verdicts_input[:, :, 1, 0]
    assert (passes_wrong[1] - passes_wrong[0] > 0.3).all()
    assert check.evidence["errors_go_with_difficulty_p"]["wrong"] < 0.01


def test_a_check_with_few_verdicts_is_not_learned(simulated):
    score = np.full(simulated.correct.shape, np.nan)
    score[:20] = simulated.correct[:20]
    assert fit_verifier("tests", simulated.success, simulated.correct, score, np.zeros(score.shape)) is None


def test_several_checks_together_are_their_product():
    one = CheckModel.with_figures("one", 2, sensitivity=0.9, specificity=0.7, usd=0.1)
    other = CheckModel.with_figures("other", 2, sensitivity=0.6, specificity=0.8, usd=0.2)
    both = combined([one, other], 2)
    assert both.n_classes == 4 and both.usd == pytest.approx((0.3, 0.3))
    assert both.verdicts_input.sum(axis=2) == pytest.approx(np.ones((2, 2, 2)))
    assert both.verdicts_input[0, 0, 3, 1] == pytest.approx(0.9 * 0.6)


# ---- the promise ---------------------------------------------------------------------------------------------------


def test_what_is_proven_is_true_in_all_but_the_stated_share_of_draws():
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(300):
        best = rng.random(400) < 0.8
        outcome = rng.random(400) < 0.8 * 0.95  # keeps exactly 0.95
        broken += keeps(outcome.astype(float), best[:, None].astype(float), 0.951, 0.95)
    assert broken / 300 <= 0.05


def test_the_proof_stops_at_the_first_policy_that_fails():
    best = np.ones((500, 1))
    good, bad = np.ones(500), np.zeros(500)
    found = least_proven(np.stack([good, bad, good], axis=1), best, (0.9,), 0.95)
    assert found == {0.9: 0}
    assert least_proven(bad[:, None], best, (0.9,), 0.95) == {0.9: None}


# ---- plans of a router --------------------------------------------------------------------------------------------

PROMPT = "What is 17 * 23?"


@pytest.fixture(scope="module")
def planned(bundle):
    router = Router.load(bundle)
    router.prove_plans(["agreement"])
    router.prove_plans(["rubric"])
    return router


def test_the_sample_logs_bundle_knows_agreement_and_its_check(planned):
    assert planned.bundle.planner.known.names == ("agreement", "rubric")


@pytest.mark.parametrize("checks", [["agreement"], ["rubric"], ["agreement", "rubric"]])
@pytest.mark.parametrize("worth", [0.0, 1e-4, 0.01, 1.0, 1e6])
def test_a_plans_tree_is_complete_and_expects_what_it_says(planned, checks, worth):
    plan = planned.plan(PROMPT, checks=checks, worth_usd=worth)

    def walk(step, reached):
        assert sum(branch.probability for branch in step.branches) == pytest.approx(1, abs=1e-3)
        success = 0.0
        for branch in step.branches:
            chance = reached * branch.probability
            assert (branch.step is None) != (branch.returned is None)
            success += chance * branch.success if branch.step is None else walk(branch.step, chance)
        return success

    assert walk(plan.first, 1.0) == pytest.approx(plan.success, abs=1e-3)
    assert 1 <= len({step.tier for step in plan.steps}) and plan.first.tier == plan.tier
    assert plan.is_direct or plan.checks
    value, of_tier = worth * plan.success - plan.cost_usd, plan.decision
    direct = max(worth * of_tier.success[tier] - of_tier.cost_usd[tier] for tier in of_tier.eligible)
    assert value >= direct - 1e-4 * max(1.0, worth)


def test_a_plan_speaks_of_everything_but_the_prompt(planned):
    prompt = "the secret of the blue door: " + PROMPT
    plan = planned.plan(prompt, checks=["agreement"], quality=0.95)
    assert "blue door" not in plan.to_json() and "blue door" not in repr(plan)
    assert json.loads(plan.to_json())["steps"]["tier"] == plan.tier
    assert plan.lines[0] == f"ask {plan.tier}" and str(plan).startswith(plan.reason)


def test_a_promised_plan_costs_less_than_the_careful_dial_on_the_log(planned):
    dial = planned.prove_plans(["rubric"])
    assert dial.n_prompts == planned.bundle.planner.calibration.n_prompts
    promised = [point for point in dial.points if point.worth_usd is not None]
    assert promised and all(point.kept >= point.quality for point in promised)
    assert all(point.cost_share <= 1 for point in promised)  # or asking the best tier always would be better
    worths = [point.worth_usd for point in promised]
    assert worths == sorted(worths)  # more quality takes more worth


def test_the_dial_is_proven_anew_when_prices_change(bundle, tmp_path):
    router = Router.load(bundle)
    before = router.prove_plans(["agreement"])
    text = (bundle / "tiers.toml").read_text().replace("usd_per_mtok_output = ", "usd_per_mtok_output = 1")
    (tmp_path / "prices.toml").write_text(text)
    router.update_prices(tmp_path / "prices.toml")
    after = router.prove_plans(["agreement"])
    assert after.worths != before.worths


def test_until_the_quality_is_proven_the_plan_is_direct(bundle):
    plan = Router.load(bundle).plan(PROMPT, checks=["agreement"], quality=0.9)
    assert plan.is_direct and "being proven" in plan.reason and plan.tier == plan.decision.tier


def test_what_cannot_be_planned_is_routed(planned):
    for plan in (
        planned.plan(PROMPT, critical=True),
        planned.plan(None),
        planned.plan(messages=[{"role": "user", "content": 5}]),
        planned.plan(PROMPT, max_calls=1, worth_usd=0.01),
        planned.plan(PROMPT, checks=[], worth_usd=0.01),
    ):
        assert plan.is_direct and plan.reason.startswith("direct: ")
        assert [step.tier for step in plan.steps] == [plan.tier]


def test_what_is_not_known_is_refused(planned):
    with pytest.raises(CheckError, match="has not learned the check 'tests'"):
        planned.plan(PROMPT, checks=["tests"])
    with pytest.raises(CheckError, match="expected a list"):
        planned.plan(PROMPT, checks="agreement")
    with pytest.raises(DialError, match="max_calls"):
        planned.plan(PROMPT, max_calls=4)
    with pytest.raises(DialError, match="quality"):
        planned.plan(PROMPT, quality=2)
    for text in ("tests", "tests:sensitivity=2,specificity=1", "tests:sensitivity=x,specificity=1", "a b:usd=1"):
        with pytest.raises(CheckError):
            CheckModel.declared_by(text, 3)


def test_a_declared_check_is_used_as_it_is_stated(planned):
    n_tiers = len(planned.bundle.manifest.tiers)
    perfect = CheckModel.with_figures("tests", n_tiers, sensitivity=1.0, specificity=1.0)
    useless = CheckModel.with_figures("coin", n_tiers, sensitivity=0.5, specificity=0.5, usd=0.01)
    assert planned.plan(PROMPT, checks=[useless], worth_usd=0.01).is_direct
    plan = planned.plan(PROMPT, checks=[perfect], worth_usd=1.0)
    assert not plan.is_direct and plan.success > max(plan.decision.success.values())
    assert CheckModel.declared_by("tests:sensitivity=1,specificity=0.86,usd=0", n_tiers).declared


def test_a_check_that_says_nothing_is_declined_however_many_scores_it_has(engine, simulated):
    even = np.full((2, N_TIERS, 4, 2), 0.25)
    one, other = (
        CheckModel(name, (0.2, 0.4, 0.6), tuple(even.tolist()), (1e-4,) * N_TIERS, declared=True, evidence={})
        for name in ("one", "other")
    )
    cost = np.array([0.01, 0.02, 0.05])
    for success in simulated.success[:20]:
        tables = tables_of(engine, success, cost, 3.0, combined([one, other], N_TIERS), agreement=False)
        assert not tables.is_plan[0, 0]


def test_nothing_is_proven_on_prompts_that_were_not_looked_at(planned):
    calibration = planned.bundle.planner.calibration
    scores = calibration.scores["rubric"].copy()
    scores[::2, 0] = np.nan
    answers = calibration.answer_number.copy()
    answers[1::2] = -1
    partly = replace(calibration, scores={"rubric": scores}, answer_number=answers)
    n_odd = calibration.n_prompts - len(scores[::2])
    assert partly.looked_at(False, ["rubric"]).n_prompts <= n_odd
    assert partly.looked_at(True, ["rubric"]).n_prompts == 0


def test_a_plan_is_promised_only_where_all_was_proven(planned, sample_log):
    top = max(planned.prove_plans(["agreement"]).worths)
    prompts = pd.read_parquet(sample_log, columns=["prompt"]).prompt[:100]
    known = next(prompt for prompt in prompts if planned.route(prompt).familiarity == 1)
    promised = planned.plan(known, checks=["agreement"], quality=0.9)
    beyond = planned.plan(known, checks=["agreement"], quality=0.9, worth_usd=2 * top)
    assert promised.promised and not beyond.promised and "not proven" in beyond.reason
    somewhere = planned.plan(known, checks=["agreement"], quality=0.9, regions=["nowhere"])
    assert not somewhere.promised


def test_checks_that_do_not_fit_the_bundle_are_refused(planned):
    with pytest.raises(CheckError, match="not the figures of 3 tiers"):
        planned.plan(PROMPT, checks=[CheckModel.with_figures("tests", 2, sensitivity=1, specificity=1)])
    many = [CheckModel.with_figures(f"check{n}", 3, sensitivity=1, specificity=0.5) for n in range(5)]
    with pytest.raises(CheckError, match="32 classes"):
        planned.plan(PROMPT, checks=many)


def test_a_proof_that_fails_leaves_direct_routing(bundle, monkeypatch):
    router = Router.load(bundle)
    monkeypatch.setattr("router.planning.prove_dial", lambda *arguments: 1 / 0)
    assert "being proven" in router.plan(PROMPT, quality=0.9).reason
    for thread in threading.enumerate():
        if thread.name == "prove plans":
            thread.join()
    assert "no plan is proven" in router.plan(PROMPT, quality=0.9).reason


@pytest.mark.parametrize("prompt", ["", "\ud800", "x" * 100_000, "一" * 5000])
def test_a_plan_is_made_for_any_prompt(planned, prompt):
    assert planned.plan(prompt, checks=["agreement", "rubric"], quality=0.95).tier in planned.bundle.manifest.tiers


def test_files_that_do_not_fit_are_refused():
    with pytest.raises(BundleError, match="not as expected"):
        Calibration.parse(b"PK\x03\x04 no archive", 3, "calibration.npz")
    with pytest.raises(BundleError, match="not as expected"):
        KnownChecks.parse(b'{"agreement": null, "verifiers": {"t": {"thresholds": [0.5]}}}', 3, "checks.json")


def test_calibration_and_checks_are_read_back_as_written(planned):
    planner, n_tiers = planned.bundle.planner, len(planned.bundle.manifest.tiers)
    again = Calibration.parse(planner.calibration.to_bytes(), n_tiers, "")
    assert all(np.array_equal(again.scores[name], scores, equal_nan=True) for name, scores in again.scores.items())
    assert np.array_equal(again.success, planner.calibration.success)
    assert KnownChecks.parse(planner.known.to_text().encode(), n_tiers, "") == planner.known


# ---- golden plans ------------------------------------------------------------------------------------------------


def resealed(
    bundle: Path,
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    golden_plans: str | None = None,
    checks: KnownChecks | None = None,
    calibration: Calibration | None = None,
) -> Path:
    """A copy of a bundle with other files of plans, or with fewer files, whose digests all hold."""
    copy = Path(shutil.copytree(bundle, folder))
    manifest = read_manifest(copy)
    files = {name: digest for name, digest in manifest.files.items() if name not in without}
    changed = {
        "golden_plans.jsonl": None if golden_plans is None else golden_plans.encode(),
        "checks.json": checks and checks.to_text().encode(),
        "calibration.npz": calibration and calibration.to_bytes(),
    }
    for name, content in changed.items():
        if content is not None:
            (copy / name).write_bytes(content)
            files[name] = hashlib.sha256(content).hexdigest()
    (copy / "manifest.json").write_text(replace(manifest, files=files).to_json())
    return copy


def entries_of(bundle):
    return [json.loads(line) for line in (bundle / "golden_plans.jsonl").read_text().splitlines()]


def test_golden_plans_are_made_as_written_for_the_golden_prompts(bundle, planned):
    entries = entries_of(bundle)
    assert [entry["prompt"] for entry in entries] == list(GOLDEN_PROMPTS)
    for entry in entries:
        looks = {"checks": entry["checks"], "max_calls": entry["max_calls"]}
        plan = planned.plan(entry["prompt"], **looks, worth_usd=entry["worth_usd"])
        assert (plan.tier, plan.is_direct, list(plan.checks)) == (entry["tier"], entry["is_direct"], ["agreement"])
        assert (plan.success, plan.cost_usd) == pytest.approx((entry["success"], entry["cost_usd"]), rel=1e-5)
    assert {entry["is_direct"] for entry in entries} == {True, False}
    check = check_golden(bundle)
    assert check.passed and check.n_plans == 20


def test_a_golden_plan_does_not_hang_on_rounding(bundle, planned):
    for entry in entries_of(bundle):
        below, above = (
            planned.plan(entry["prompt"], checks=entry["checks"], worth_usd=entry["worth_usd"] * factor)
            for factor in (0.9995, 1.0005)
        )
        assert below.lines == above.lines


def test_where_agreement_is_not_known_golden_plans_look_at_the_first_check(bundle, tmp_path):
    loaded = Bundle.load(bundle)
    planner = replace(loaded.planner, known=replace(loaded.planner.known, agreement=None))
    lines = golden_files(Router(replace(loaded, planner=planner)))["golden_plans.jsonl"].splitlines()
    assert {tuple(json.loads(line)["checks"]) for line in lines} == {("rubric",)}


@pytest.mark.parametrize(
    ("change", "is_other"),
    [({"tier": "no"}, True), ({"is_direct": None}, True), ({"success": 0.5}, False), ({"cost_usd": 1.0}, False),
     ({"success": float("nan")}, False)],
    ids=str,
)  # fmt: skip
def test_a_bundle_that_plans_otherwise_than_it_says_is_refused(bundle, tmp_path, change, is_other):
    entries = entries_of(bundle)
    entries[4].update(change)
    copy = resealed(bundle, tmp_path / "copy", golden_plans="".join(json.dumps(entry) + "\n" for entry in entries))
    check = GoldenCheck.of(Bundle.load(copy))
    assert not check.passed and check.other_plan == ((entries[4]["prompt"][:60],) if is_other else ())
    with pytest.raises(BundleError, match="of 20 golden plans were others.*; train or copy"):
        Router.load(copy)


@pytest.mark.parametrize(
    "line", ["[]", "{", '{"prompt": "a"}', '{"prompt": "a", "checks": ["no"], "max_calls": 3, "worth_usd": 1}',
             '{"prompt": "a", "checks": [[]], "max_calls": 3, "worth_usd": 1}',
             '{"prompt": "a", "checks": 3, "max_calls": 3, "worth_usd": 1}',
             '{"prompt": "a", "checks": [], "max_calls": 9, "worth_usd": 1}',
             '{"prompt": "a", "checks": [], "max_calls": 3, "worth_usd": -1}'],
)  # fmt: skip
def test_golden_plans_of_another_form_are_refused(bundle, tmp_path, line):
    copy = resealed(bundle, tmp_path / "copy", golden_plans=line + "\n")
    with pytest.raises(BundleError, match="golden_plans.jsonl is not as expected"):
        Router.load(copy)


@pytest.mark.parametrize("name", PLAN_FILES)
def test_a_bundle_has_all_files_of_plans_or_none(bundle, tmp_path, name):
    with pytest.raises(BundleError, match=f"{name} missing"):
        Bundle.load(resealed(bundle, tmp_path / "one", without=(name,)))
    others = tuple(each for each in PLAN_FILES if each != name)
    with pytest.raises(BundleError, match="missing"):
        Bundle.load(resealed(bundle, tmp_path / "others", without=others))


def test_a_bundle_without_golden_plans_passes_only_where_it_makes_none(bundle, tmp_path):
    with pytest.raises(BundleError, match="0 of 0 golden plans were others"):
        Router.load(resealed(bundle, tmp_path / "empty", golden_plans=""))
    without = resealed(bundle, tmp_path / "without", without=PLAN_FILES)
    check = check_golden(without)
    assert check.passed and check.n_plans is None
    assert "no plans" in Router.load(without).plan(PROMPT, worth_usd=1).reason
