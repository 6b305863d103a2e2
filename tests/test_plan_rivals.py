"""Laws of other ways to ask several tiers: they see what plans see, and by what that says no way is worth more."""

from itertools import permutations

import numpy as np
import pytest
from test_plans import Simulated

from router.plans.checks import CheckModel
from router.plans.dial import replayed, simulated_classes
from router.plans.engine import PlanEngine
from router.plans.planner import MOST_CALLS, Looks
from router.plans.replay import LoggedAnswers
from training.evaluation.cascades import cascades, verified
from training.evaluation.metrics import resamples
from training.evaluation.plan_prompts import PlanPrompts
from training.evaluation.plan_rivals import cascade_routing, fixed_cascades, threshold_cascades
from training.evaluation.posteriors import Posteriors
from training.evaluation.together import judge_agreement, judge_joint
from training.fit.agreement import AgreementModel
from training.fit.joint import JointModel
from training.fit.plan_graph import plan_graph

N_TIERS = 3
COST = np.array([1.0, 3.0, 10.0])
PERFECT = CheckModel.with_figures("perfect", N_TIERS, sensitivity=1, specificity=1)
NOISY = CheckModel.with_figures("noisy", N_TIERS, sensitivity=0.85, specificity=0.65, usd=0.2)
BY_NAME = {"agreement": None, "perfect": PERFECT, "noisy": NOISY}
WORTHS = np.geomspace(0.5, 500, 20)


def looks_at(name):
    check = BY_NAME[name]
    verifiers = () if check is None else (check,)
    return Looks(verifiers=verifiers, agreement=check is None, max_calls=MOST_CALLS, n_tiers=N_TIERS)


def prompts_of(simulated, name):
    """The simulated prompts at known costs, with what is looked at."""
    looks = looks_at(name)
    shape = simulated.correct.shape
    classes = np.zeros(shape, int) if looks.agreement else simulated_classes(BY_NAME[name], simulated.correct, seed=1)
    fees = looks.inputs["check_usd"]
    return PlanPrompts(
        success=simulated.success,
        cost_usd=np.broadcast_to(COST, shape),
        eligible=np.ones(shape, bool),
        correct=simulated.correct,
        paid=np.broadcast_to(COST, shape),
        answers=LoggedAnswers(simulated.answers if looks.agreement else None, classes, np.broadcast_to(fees, shape)),
        fees=fees,
    )


@pytest.fixture(scope="module")
def worlds():
    """Prompts to learn from and prompts to judge on."""
    return Simulated(n=1500, seed=0), Simulated(n=3000, seed=1)


@pytest.fixture(scope="module")
def engine(worlds):
    seen = worlds[0]
    agreement = AgreementModel.fit(seen.success, seen.correct, seen.answers)
    return PlanEngine(plan_graph(JointModel.fit(seen.success, seen.correct), agreement).SerializeToString())


@pytest.fixture(scope="module")
def replays(worlds, engine):
    """By what is looked at: outcomes and costs of each rival and of plans, on the prompts to judge on."""

    def of(name):
        training, held_out = (prompts_of(world, name) for world in worlds)
        looks = looks_at(name)
        of_training, expected = (Posteriors.of(engine, looks, prompts) for prompts in (training, held_out))
        plans = replayed(
            engine, held_out.success, held_out.cost_usd, held_out.eligible, WORTHS, looks.inputs, held_out.answers
        )
        return {
            "fixed": fixed_cascades(training, held_out),
            "thresholds": threshold_cascades(training, of_training, held_out, expected),
            "routing": cascade_routing(held_out, expected, WORTHS),
            "plans": (
                np.stack([each.outcome(held_out.correct) for each in plans], axis=1),
                np.stack([each.cost_usd(held_out.paid, held_out.answers.check_usd) for each in plans], axis=1),
            ),
        }

    return {name: of(name) for name in BY_NAME}


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_expected_before_an_answer_is_the_mean_of_what_is_expected_after_it(worlds, engine, name):
    prompts = prompts_of(worlds[1], name)
    expected = Posteriors.of(engine, looks_at(name), prompts)
    noise = 4 * 0.5 / np.sqrt(prompts.n_prompts)
    for first, second in permutations(range(N_TIERS), 2):
        third = ({*range(N_TIERS)} - {first, second}).pop()
        assert expected.one_seen[:, first].mean() == pytest.approx(expected.one[:, first].mean(), abs=noise)
        pair = expected.two[:, first, second].mean()
        assert expected.two_after_one[:, first, second].mean() == pytest.approx(pair, abs=noise)
        three = expected.three[:, first, second, third].mean()
        assert expected.three_after_one[:, first, second, third].mean() == pytest.approx(three, abs=noise)
        assert expected.three_after_two[:, first, second, third].mean() == pytest.approx(three, abs=noise)
        assert three >= pair >= expected.one[:, [first, second]].max(axis=1).mean() - 1e-6


@pytest.mark.parametrize("name", BY_NAME)
def test_the_best_answer_is_right_as_often_as_expected(worlds, engine, name):
    prompts = prompts_of(worlds[1], name)
    expected = Posteriors.of(engine, looks_at(name), prompts)
    rows, noise = np.arange(prompts.n_prompts), 4 * 0.5 / np.sqrt(prompts.n_prompts)
    for first, second in permutations(range(N_TIERS), 2):
        pair = np.array([first, second])[expected.best_of_two_seen[:, first, second]]
        assert expected.two_seen[:, first, second].mean() == pytest.approx(
            prompts.correct[rows, pair].mean(), abs=noise
        )
        third = ({*range(N_TIERS)} - {first, second}).pop()
        best = np.array([first, second, third])[expected.best_of_three[:, first, second, third]]
        assert expected.three[:, first, second, third].mean() == pytest.approx(
            prompts.correct[rows, best].mean(), abs=noise
        )


@pytest.mark.parametrize("name", BY_NAME)
def test_no_rival_is_worth_more_than_plans_where_estimates_are_exact(replays, name):
    found = replays[name]
    outcomes, costs = found["plans"]
    for rival in ("fixed", "thresholds", "routing"):
        others, their_costs = found[rival]
        for at, worth in enumerate(WORTHS):
            plan = worth * outcomes[:, at] - costs[:, at]
            values = worth * others - their_costs
            best = values[:, values.mean(axis=0).argmax()]
            difference = plan - best
            assert difference.mean() >= -4 * difference.std() / np.sqrt(len(plan)) - 0.01 * worth


def test_cascade_routing_stops_where_a_perfect_check_passes_and_is_worth_more_than_asking_one_tier(worlds, replays):
    outcomes, costs = replays["perfect"]["routing"]
    value = (WORTHS * outcomes - costs).mean(axis=0)
    alone = (WORTHS[:, None] * worlds[1].correct.mean(axis=0) - COST).max(axis=1)
    assert (value >= alone - 0.02 * WORTHS).all() and value[-1] > 1.1 * alone[-1]
    assert outcomes[:, -1].mean() == pytest.approx(worlds[1].correct.max(axis=1).mean(), abs=0.002)
    everywhere = worlds[1].correct[:, :2].max(axis=1) == 1
    assert (costs[everywhere, -1] < COST.sum()).all()


def test_thresholds_and_a_perfect_check_do_what_the_fixed_cascade_does(worlds, replays):
    judged = prompts_of(worlds[1], "perfect")
    outcomes, costs = (each.mean(axis=0) for each in replays["perfect"]["thresholds"])
    fails = judged.answers.classes == 0
    for cascade in cascades(N_TIERS, agreement=False):
        outcome, cost = verified(cascade, judged.correct, judged.paid, fails, judged.answers.check_usd)
        cheaper = costs <= cost.mean() * 1.02
        assert not cheaper.any() or outcomes[cheaper].max() >= outcome.mean() - 0.02
    assert len(outcomes) > 1
    by_cost = np.argsort(costs)
    assert (np.diff(outcomes[by_cost]) > -0.02).all()


# ---- what one answer says of another -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(worlds, engine):
    """Of a world in which tiers fail together, and of one in which they do not, each judged on prompts not seen."""

    def of(engine, world):
        prompts = prompts_of(world, "agreement")
        weights = resamples(prompts.n_prompts, n_bootstrap=100)
        return judge_joint(engine, prompts, weights), judge_agreement(engine, prompts, weights)

    seen, alone = (Simulated(n=1500, seed=seed, loading=0.0) for seed in (2, 3))
    agreement = AgreementModel.fit(seen.success, seen.correct, seen.answers)
    of_alone = PlanEngine(plan_graph(JointModel.fit(seen.success, seen.correct), agreement).SerializeToString())
    return of(engine, worlds[1]), of(of_alone, alone)


def test_the_likelihood_gains_where_tiers_fail_together_and_only_there(worlds, together):
    (fit, _), _ = together[0]
    assert fit.n_tiers == 3 and fit.gain.low > 0.05
    world = worlds[1]
    exact = world.joint.log_likelihood(world.success, world.correct).mean()
    assert fit.log_likelihood.value == pytest.approx(exact, abs=0.01)
    assert fit.log_likelihood.value - fit.if_independent.value == pytest.approx(fit.gain.value, abs=1e-4)
    (fit, _), _ = together[1]
    assert abs(fit.gain.value) < 0.01


def test_what_is_expected_after_an_answer_is_calibrated_and_what_ignores_it_is_not(worlds, together):
    (_, after_failure), agreed = together[0]
    correct, n_pairs = worlds[1].correct, N_TIERS - 1
    assert after_failure.n_cases == (correct < 0.5).sum() * n_pairs
    for found in (after_failure, agreed):
        assert found.expected == pytest.approx(found.measured, abs=0.02)
        assert found.calibration_error.value < 0.04
        assert found.calibration_error_if_independent.low > 2 * found.calibration_error.value
    (_, after_failure), _ = together[1]
    assert after_failure.calibration_error_if_independent.value < 0.04


def test_two_tiers_have_a_likelihood_too():
    world = Simulated(n=800, n_tiers=2)
    joint = JointModel.fit(world.success, world.correct)
    agreement = AgreementModel.fit(world.success, world.correct, world.answers)
    engine = PlanEngine(plan_graph(joint, agreement).SerializeToString())
    shape = world.correct.shape
    prompts = PlanPrompts(
        success=world.success, cost_usd=np.ones(shape), eligible=np.ones(shape, bool), correct=world.correct,
        paid=np.ones(shape), answers=LoggedAnswers(world.answers, np.zeros(shape, int), np.zeros(shape)),
        fees=np.zeros(2),
    )  # fmt: skip
    fit, _ = judge_joint(engine, prompts, resamples(prompts.n_prompts, n_bootstrap=20))
    expected = joint.log_likelihood(world.success, world.correct).mean()
    assert fit.n_tiers == 2 and fit.log_likelihood.value == pytest.approx(expected, abs=0.01)
