"""What must happen to the traffic of an offer that fails, throttles or turns slow, and when it gets it back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import Router
from router.portfolio.health import (
    FAILURES,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    LONGEST_RETRY_AFTER_S,
    PROBE_TIMEOUT_S,
    SLOW_AFTER,
    Health,
    State,
)
from router.portfolio.tiers import Offer


def offer(provider="there"):
    return Offer(provider, provider, "eu", 8192, 1.0, 1.0)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def health(clock):
    return Health(clock, draw=lambda: 0.5)


def break_it(health, one):
    for _ in range(FAILURES):
        health.failed(one, "HTTP 500")


def state_of(health, one):
    return {each.offer: each.state for each in health.state()}[one.provider, one.region, one.model]


def test_one_failure_changes_nothing_and_a_few_take_the_offer_out(health):
    one = offer()
    health.failed(one, "HTTP 500")
    assert health.admits(one)
    assert health.all_up
    break_it(health, one)
    assert not health.admits(one)
    assert health.admits(offer("another"))
    assert not health.all_up
    assert health.state()[0].why == "HTTP 500"


def test_retry_after_takes_an_offer_out_at_once_for_as_long_as_it_says(health, clock):
    one = offer()
    health.failed(one, "HTTP 429", retry_after_s=17)
    assert not health.admits(one)
    clock.now += 16.9
    assert not health.admits(one)
    clock.now += 0.2
    assert health.admits(one)
    health.failed(one, "HTTP 429", retry_after_s=1e9)
    clock.now += LONGEST_RETRY_AFTER_S + 1
    assert health.admits(one)


def test_one_probe_at_a_time_tries_it_again(health, clock):
    one = offer()
    break_it(health, one)
    clock.now += FIRST_PAUSE_S
    assert health.admits(one)
    health.asked(one)
    assert not health.admits(one)
    clock.now += PROBE_TIMEOUT_S + 1  # Nobody has heard of the probe.
    assert health.admits(one)


def test_probes_that_fail_wait_longer_and_longer_but_never_very_long(health, clock):
    one, pauses = offer(), []
    break_it(health, one)
    for _ in range(8):
        begin = clock.now
        while not health.admits(one):
            clock.now += 0.5
        pauses.append(clock.now - begin)
        health.failed(one, "no connection")
    assert pauses == sorted(pauses)
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses[-1] == LONGEST_PAUSE_S


def test_it_gets_its_traffic_back_little_by_little(clock):
    drawn = iter([0.05, 0.15, 0.15, 0.25] + [0.99] * 50)
    health, one = Health(clock, draw=lambda: next(drawn)), offer()
    break_it(health, one)
    clock.now += FIRST_PAUSE_S
    assert health.admits(one)
    health.succeeded(one)
    assert state_of(health, one) is State.RECOVERING
    assert [health.admits(one), health.admits(one)] == [True, False]  # A tenth of the requests.
    health.succeeded(one)
    assert [health.admits(one), health.admits(one)] == [True, False]  # A fifth.
    for _ in range(3):
        health.succeeded(one)
    assert health.all_up
    assert health.admits(one)


def test_a_failure_while_it_recovers_takes_it_out_again(health, clock):
    one = offer()
    break_it(health, one)
    clock.now += FIRST_PAUSE_S
    health.succeeded(one)
    health.failed(one, "HTTP 500")
    assert not health.admits(one)


def test_answers_far_slower_than_usual_are_failures(health):
    one = offer()
    for _ in range(SLOW_AFTER):
        health.succeeded(one, latency_ms=300.0)
    health.succeeded(one, latency_ms=900.0)
    assert health.all_up
    for _ in range(FAILURES):
        health.succeeded(one, latency_ms=8000.0)
    assert not health.admits(one)
    assert "slow: 8000 ms, where 3" in health.state()[0].why


def test_only_times_of_the_same_kind_are_compared(health):
    one = offer()
    for _ in range(SLOW_AFTER):
        health.succeeded(one, latency_ms=300.0, kind="first token")
    for _ in range(FAILURES):
        health.succeeded(one, latency_ms=8000.0, kind="whole answer")
    assert health.all_up


def test_whoever_asks_is_told_of_each_change_once(clock):
    told = []
    health, one = Health(clock, on_change=told.append), offer()
    break_it(health, one)
    break_it(health, one)
    clock.now += LONGEST_PAUSE_S
    for _ in range(6):
        health.succeeded(one)
    assert told == [("there", "eu", "there")] * 2


@given(events=st.lists(st.tuples(st.sampled_from("fasr"), st.floats(0, 40)), max_size=60))
def test_whatever_happens_an_offer_that_answers_again_is_up_in_the_end(events):
    clock = Clock()
    health, one = Health(clock, draw=lambda: 0.0), offer()
    for event, seconds in events:
        clock.now += seconds
        if event == "f":
            health.failed(one, "HTTP 500")
        elif event == "r":
            health.failed(one, "HTTP 429", retry_after_s=seconds)
        elif event == "a":
            health.asked(one)
        else:
            health.succeeded(one)
    for _ in range(20):
        clock.now += LONGEST_RETRY_AFTER_S
        if health.admits(one):
            health.asked(one)
            health.succeeded(one)
    assert health.all_up
    assert health.admits(one)


# ---- decisions --------------------------------------------------------------------------------------------------


def test_requests_go_round_an_offer_that_is_down(bundle):
    router = Router.load(bundle)
    prompt = "Prove that sqrt(2) is irrational."
    before = router.route(prompt, worth_usd=10.0)
    break_it(router.portfolio.health, before.offer)
    after = router.route(prompt, worth_usd=10.0)
    assert after.offer != before.offer
    assert f"without limits {before.tier}: closed, down" in after.reason
    assert not after.promised


def test_where_all_are_down_somebody_is_asked_all_the_same(bundle):
    router = Router.load(bundle)
    for tier in router.prices.tiers:
        for each in tier.offers:
            break_it(router.portfolio.health, each)
    decision = router.route("What is 2 + 2?")
    assert decision.offer is not None
    assert "gives way: down" in decision.reason


def test_offers_to_try_end_with_those_that_are_down(bundle):
    router = Router.load(bundle)
    call = router.snapshot.call(None, 0.0)
    decision = call.route("What is 2 + 2?")
    first = call.offers_to_try(decision)[0]
    break_it(router.portfolio.health, first)
    tried = call.offers_to_try(call.route("What is 2 + 2?"))
    assert tried[0] != first
    assert first not in tried[:-1]
