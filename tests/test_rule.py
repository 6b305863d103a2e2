"""Laws of bounded exploration."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import DialError, Policy, Router
from router.rule import admissible, best, explored

IDS = [f"id-{number}" for number in range(4000)]
PROMPT = "Hello!"


@given(share=st.floats(0, 0.99), n=st.integers(1, 6), decision_id=st.text())
def test_a_draw_replays_and_stays_among_the_admissible(share, n, decision_id):
    admissible = [tier * 2 for tier in range(n)]
    tier, propensity = explored(0, admissible, share, decision_id)
    assert (tier, propensity) == explored(0, admissible, share, decision_id)
    assert tier in admissible and 0 < propensity <= 1


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_tiers_are_asked_as_often_as_their_propensity_says(share):
    drawn = [explored(1, [0, 1, 3], share, decision_id) for decision_id in IDS]
    counts = Counter(tier for tier, _ in drawn)
    propensities = dict(drawn)
    assert set(counts) == {0, 1, 3} and sum(propensities.values()) == pytest.approx(1)
    for tier, propensity in propensities.items():
        spread = (len(IDS) * propensity * (1 - propensity)) ** 0.5
        assert abs(counts[tier] - len(IDS) * propensity) < 4 * spread


def test_without_another_admissible_tier_nothing_is_drawn():
    assert {explored(2, [2], 0.5, decision_id) for decision_id in IDS} == {(2, 1.0)}


SUCCESSES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@given(successes=SUCCESSES, slack=st.floats(0, 1))
def test_admissible_tiers_are_within_the_slack_of_the_highest_eligible_success(successes, slack):
    success = dict(enumerate(successes))
    eligible = list(success)[1:] or [0]
    tiers = admissible(eligible, success, slack)
    highest = max(success[tier] for tier in eligible)
    assert tiers == [tier for tier in eligible if success[tier] >= highest - slack]
    assert highest in [success[tier] for tier in tiers]


@given(successes=SUCCESSES, worth=st.floats(0, 10))
def test_the_best_tier_has_the_largest_net_value_and_among_equals_the_highest_success(successes, worth):
    success = dict(enumerate(successes))
    free, dear = dict.fromkeys(success, 0.0), {tier: float(tier) for tier in success}
    assert success[best(list(success), success, free, worth)] == max(successes) or worth < 1e-6
    assert best(list(success), success, dear, 0.0) == 0
    assert best(list(success), success, free, 0.0) == successes.index(max(successes))


def test_a_router_explores_inside_the_slack_only_and_says_so(bundle):
    still, curious = Router.load(bundle), Router.load(bundle, Policy(exploration=0.3))
    best = still.route(PROMPT, quality=0.8)
    bar = max(best.success.values()) - best.slack
    admissible = {tier for tier, p in best.success.items() if p >= bar}
    assert len(admissible) > 1
    decisions = [curious.route(PROMPT, quality=0.8) for _ in range(300)]
    assert {decision.tier for decision in decisions} == admissible
    for decision in decisions:
        assert ("explored" in decision.reason) == (decision.tier != best.tier)
        expected = 0.7 if decision.tier == best.tier else 0.3 / (len(admissible) - 1)
        assert decision.propensity == pytest.approx(expected)
        assert decision.promised == best.promised
        assert decision.offer is not None and decision.offer != best.offer or decision.tier == best.tier


def test_critical_requests_and_fallbacks_never_explore(bundle):
    curious = Router.load(bundle, Policy(exploration=0.9))
    for _ in range(50):
        assert curious.route(PROMPT, critical=True).propensity == 1
        assert curious.route(PROMPT, context_tokens=10**9).propensity == 1


def test_no_request_id_is_explored_more_often_than_the_share_says(bundle):
    """The id may be a client's: whoever finds one that is explored must not be explored with it again."""
    share, n = 0.2, 400
    curious = Router.load(bundle, Policy(exploration=share))
    lucky = next(name for name in IDS if "explored" in curious.route(PROMPT, quality=0.8, request_id=name).reason)
    decisions = [curious.route(PROMPT, quality=0.8, request_id=lucky) for _ in range(n)]
    n_explored = sum("explored" in decision.reason for decision in decisions)
    assert abs(n_explored - n * share) < 5 * (n * share * (1 - share)) ** 0.5
    assert {decision.request_id for decision in decisions} == {lucky}


def test_an_explored_decision_replays_from_its_own_record(bundle):
    """One by one or in a batch: what the decision holds, and the share of its policy, give its tier and propensity."""
    share = 0.5
    curious = Router.load(bundle, Policy(exploration=share))
    single = [curious.route(PROMPT, quality=0.8, request_id="mine") for _ in range(30)]
    batch = curious.route_batch([PROMPT] * 30, quality=0.8)
    for decisions in (single, batch):
        assert len({decision.tier for decision in decisions}) > 1
        for decision in decisions:
            record = json.loads(decision.to_json())
            tiers = admissible(record["eligible"], record["success"], record["slack"])
            chosen = best(tiers, record["success"], record["cost_usd"], record["worth_usd"])
            replayed = explored(chosen, tiers, share, record["decision_id"])
            assert replayed == (record["tier"], record["propensity"])


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, "much", float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(DialError, match="exploration"):
        Policy(exploration=share)
