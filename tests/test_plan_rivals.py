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
from training.evaluation.plan_prompts import PlanPrompts
from training.evaluation.plan_rivals import cascade_routing, fixed_cascades, threshold_cascades
from training.evaluation.posteriors import Posteriors
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
