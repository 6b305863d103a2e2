"""What caps, budgets, schedules and the health of offers must do to decisions, whatever is asked in what order."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from router import Router
from router.cli import main
from router.errors import TierError
from router.portfolio.caps import WINDOW_REQUESTS, Budget, Cap
from router.portfolio.clearing import clearing_prices
from router.portfolio.ledger import Ledger
from router.portfolio.periods import seconds_left
from router.portfolio.prices import PriceTable
from router.portfolio.windows import Asked, Windows

OFFERS = """
[[tiers]]
name = "edge"
[[tiers.offers]]
model = "small"
provider = "here"
region = "eu"
context_window = 8192
usd_per_mtok_input = 0.1
usd_per_mtok_output = 0.2
[[tiers]]
name = "frontier"
critical = true
[[tiers.offers]]
model = "large"
provider = "there"
region = "us"
context_window = 8192
usd_per_mtok_input = 5.0
usd_per_mtok_output = 15.0
"""

HERE, THERE = (tier.offers[0] for tier in PriceTable.parse(OFFERS).tiers)


def limited(*limits):
    """The example's tiers under these lines of a tiers.toml."""
    return PriceTable.parse(OFFERS + "\n".join(limits))


# ---- reading ----------------------------------------------------------------------------------------------------


def test_caps_and_budgets_are_read_as_they_stand():
    table = limited(
        '[[caps]]\nprovider = "there"\nmax_share = 0.6',
        '[[caps]]\nregion = "us"\nmax_share = 0.5\nof = "usd"',
        '[[budgets]]\nusd = 50.0\nper = "day"\ntier = "frontier"',
    )
    assert table.limits == (
        Cap(max_share=0.6, provider="there"),
        Cap(max_share=0.5, region="us", of="usd"),
        Budget(usd=50.0, per="day", tier="frontier"),
    )


def test_max_share_of_an_offer_is_a_cap():
    table = PriceTable.parse(OFFERS.replace('region = "us"', 'region = "us"\nmax_share = 0.25'))
    assert table.limits == (Cap(max_share=0.25, provider="there", region="us", model="large"),)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('[[caps]]\nprovider = "nobody"\nmax_share = 0.6', "holds for no offer; there are providers: here, there"),
        ("[[caps]]\nmax_share = 0.6", "neither provider nor region"),
        ('[[caps]]\nprovider = "there"\nmax_share = 1.5', "max_share is 1.5; expected a number above 0 and at most 1"),
        ('[[caps]]\nprovider = "there"\nmax_share = 0.5\nof = "tokens"', "of is 'tokens'; expected requests or usd"),
        ('[[budgets]]\nusd = 5\nper = "week"', "per is 'week'; expected hour, day, month"),
        ('[[budgets]]\nusd = 5\nper = ["day"]', "expected hour, day, month"),
        ('[[budgets]]\nusd = 0\nper = "day"', "usd is 0; expected a number above 0"),
        ("caps = 3", r"caps is 3; expected \[\[caps\]\]"),
    ],
)
def test_a_wrong_limit_names_the_place_and_the_remedy(lines, words):
    with pytest.raises(TierError, match=words):
        limited(lines) if lines.startswith("[[") else PriceTable.parse(f"{lines}\n{OFFERS}")


SCHEDULE = """usd_per_mtok_output = 15.0
above = [{ input_tokens = 4000, usd_per_mtok_input = 10.0, usd_per_mtok_output = 20.0 }]
hours = [{ utc_start = "16:30", utc_end = "00:30", factor = 0.5 }]
"""


@pytest.mark.parametrize(
    ("context_tokens", "clock", "paid"),
    [
        (4000, "12:00", (5.0, 15.0)),
        (4001, "12:00", (10.0, 20.0)),
        (100, "16:29", (5.0, 15.0)),
        (100, "16:30", (2.5, 7.5)),
        (100, "23:59", (2.5, 7.5)),
        (100, "00:29", (2.5, 7.5)),
        (100, "00:30", (5.0, 15.0)),
        (4001, "00:00", (5.0, 10.0)),
    ],
)
def test_a_long_request_and_the_hour_reprice_the_whole_request(context_tokens, clock, paid):
    table = PriceTable.parse(OFFERS.replace("usd_per_mtok_output = 15.0\n", SCHEDULE))
    minute = int(clock[:2]) * 60 + int(clock[3:])
    quote = table.quote(context_tokens, [10, 10], minute=minute)
    offer = quote.offers["frontier"]
    assert (offer.usd_per_mtok_input, offer.usd_per_mtok_output) == paid
    assert (quote.usd_per_mtok_input[0, 1], quote.usd_per_mtok_output[0, 1]) == paid


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('hours = [{ utc_start = "25:00", utc_end = "00:30", factor = 0.5 }]', "expected a time from 00:00 to 23:59"),
        ('hours = [{ utc_start = "01:00", utc_end = "01:00", factor = 0.5 }]', "are the same"),
        (
            'hours = [{ utc_start = "01:00", utc_end = "03:00", factor = 0.5 }, '
            '{ utc_start = "02:00", utc_end = "04:00", factor = 0.2 }]',
            "two entries of hours hold at 02:00",
        ),
        ("above = [{ input_tokens = 10 }]", "usd_per_mtok_input, usd_per_mtok_output are missing"),
        ("above = 3", "above is 3; expected a list of tables"),
    ],
)
def test_a_wrong_schedule_names_the_place_and_the_remedy(lines, words):
    with pytest.raises(TierError, match=words):
        PriceTable.parse(OFFERS.replace("usd_per_mtok_output = 15.0\n", f"usd_per_mtok_output = 15.0\n{lines}\n"))


def test_scaled_prices_scale_those_of_long_requests_too():
    table = PriceTable.parse(OFFERS.replace("usd_per_mtok_output = 15.0\n", SCHEDULE)).scaled({"there": 0.1})
    assert table.quote(5000, [10, 10]).offers["frontier"].usd_per_mtok_input == pytest.approx(1.0)


# ---- windows ----------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    rolls=st.lists(st.tuples(st.booleans(), st.floats(1e-6, 1.0)), min_size=1, max_size=60),
    share=st.floats(0.05, 0.95),
    of=st.sampled_from(["requests", "usd"]),
)
def test_whoever_asks_only_what_is_open_never_exceeds_a_cap_in_any_window(rolls, share, of):
    windows, asked = Windows([Cap(max_share=share, provider="there", of=of)]), []
    for wants, usd in rolls * (2500 // len(rolls)):
        inside = wants and windows.excess(0, usd) <= 0
        asked.append((inside, usd))
        windows.add(Asked((0,) if inside else (), usd))
    inside, usd = np.array([each[0] for each in asked]), np.array([each[1] for each in asked])
    weights = usd if of == "usd" else np.ones(len(asked))
    ones = np.ones(WINDOW_REQUESTS)
    own, total = np.convolve(weights * inside, ones, "valid"), np.convolve(weights, ones, "valid")
    if of == "requests":
        assert (own <= share * WINDOW_REQUESTS + 1e-6).all()
    else:  # Each request leaves others behind it that cost less, so only the window of the moment can be held.
        assert (own <= share * total + usd.max() + 1e-6).all()


@pytest.mark.parametrize(
    ("per", "begin", "left"),
    [("hour", 3600 * 5, 3600), ("day", 86_400 * 3 + 3600, 82_800), ("month", 1_790_812_800, 31 * 86_400)],
)
def test_a_budget_begins_anew_with_each_period(per, begin, left):
    budget = Budget(usd=1.0, per=per)
    ledger = Ledger((budget,))
    assert seconds_left(budget, begin) == left
    ledger.add("a", "edge", HERE, 0.9, begin)
    assert ledger.excess(0, 0.2, begin) > 0
    assert ledger.excess(0, 0.2, begin + left - 1) > 0
    assert ledger.excess(0, 0.2, begin + left) < 0
    ledger.settle("a", "edge", HERE, 0.1)  # It belongs to the period that is over.
    assert ledger.spent_usd(0, begin + left) == 0


def test_what_was_paid_takes_the_place_of_what_was_expected():
    ledger = Ledger((Budget(usd=1.0, per="day"), Cap(max_share=0.5, provider="here")))
    ledger.add("a", "edge", HERE, 0.9, 0.0)
    ledger.settle("a", "frontier", THERE, 0.1)
    assert ledger.spent_usd(0, 0.0) == pytest.approx(0.1)
    assert ledger.share(1) == 0


def test_a_request_that_has_left_the_window_is_still_paid_once():
    ledger = Ledger((Budget(usd=1.0, per="day"),))
    ledger.add("a", "edge", HERE, 0.9, 0.0)
    for _ in range(WINDOW_REQUESTS):
        ledger.add(None, "edge", HERE, 0.0, 0.0)
    ledger.settle("a", "edge", HERE, 0.1)
    ledger.settle("a", "edge", HERE, 0.3)  # of two attempts together
    assert ledger.spent_usd(0, 0.0) == pytest.approx(0.3)


# ---- shadow prices ----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), shares=st.lists(st.floats(0.05, 0.9), min_size=1, max_size=2))
def test_clearing_prices_keep_to_the_caps_and_lose_nothing_against_the_linear_programme(seed, shares):
    rng = np.random.default_rng(seed)
    n, values = 120, rng.random((120, 4))
    counts = np.array([[True, False, False, False], [False, True, True, False]])[: len(shares)]
    limits = [Cap(max_share=share, provider=str(number)) for number, share in enumerate(shares)]
    costs = np.ones_like(values)
    prices = clearing_prices(values, costs, counts, limits, [None] * len(limits), [0.0] * len(limits))
    priced = values - np.array(prices) @ counts
    best = priced.max(axis=1)
    rows = np.arange(n)
    chosen = np.where((priced >= best[:, None] - 1e-9) & ~counts.any(axis=0), 1, 0)
    chosen = np.where(chosen.any(axis=1), chosen.argmax(axis=1), priced.argmax(axis=1))  # Ties go to what is free.
    for inside, share in zip(counts, shares, strict=True):
        assert inside[chosen].sum() <= int(share * n) + 2
    solved = linprog(
        -values.ravel(),
        A_ub=np.array([np.tile(inside, n) for inside in counts], float),
        b_ub=[share * n for share in shares],
        A_eq=np.repeat(np.eye(n), 4, axis=1),
        b_eq=np.ones(n),
    )
    assert values[rows, chosen].sum() >= -solved.fun - 2.0 * len(shares)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), budget=st.floats(0.05, 2.0))
def test_clearing_prices_keep_to_a_budget(seed, budget):
    rng = np.random.default_rng(seed)
    values, costs = rng.random((100, 3)), rng.random((100, 3))
    counts, limits = np.array([[True, True, False]]), [Budget(usd=budget, per="day")]
    (price,) = clearing_prices(values, costs, counts, limits, [budget * 10], [0.0])
    chosen = (values - price * costs * counts[0]).argmax(axis=1)
    assert (costs * counts[0])[np.arange(100), chosen].sum() <= budget * 10 + 1e-6
    if price > 0:  # No lower price would do.
        chosen = (values - 0.99 * price * costs * counts[0]).argmax(axis=1)
        assert (costs * counts[0])[np.arange(100), chosen].sum() >= budget * 10 - 1.0


# ---- decisions --------------------------------------------------------------------------------------------------

PROMPTS = ["What is 2 + 2?", "Prove that sqrt(2) is irrational.", "Translate 'good morning'.", "Sort a list in Rust."]


@pytest.fixture
def with_limits(bundle, tmp_path):
    """Makes a router of the sample bundle whose price table ends with these lines."""

    def make(*lines):
        router = Router.load(bundle)
        path = tmp_path / "limited.toml"
        path.write_text(router.prices.text + "\n" + "\n".join(lines))
        router.update_prices(path)
        return router

    return make


def answered_by(decisions):
    return [decision.offer.provider for decision in decisions]


def test_limits_that_do_not_bind_change_no_decision(bundle, with_limits):
    free, loose = Router.load(bundle), with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.99')
    for prompt in PROMPTS * 30:
        before, after = free.route(prompt, worth_usd=0.01), loose.route(prompt, worth_usd=0.01)
        assert replace(after, price_table_id=before.price_table_id) == before


def test_a_cap_holds_in_every_window_and_says_so(with_limits):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.2')
    decisions = router.route_batch(PROMPTS * 500, worth_usd=10.0)  # so much that all would go to the best tier
    inside = np.array([name == "sim-cloud" for name in answered_by(decisions)])
    assert np.convolve(inside, np.ones(WINDOW_REQUESTS), "valid").max() <= 0.2 * WINDOW_REQUESTS
    assert inside.sum() >= 0.17 * len(decisions)  # What is allowed is used.
    other = [decision for decision in decisions[200:] if decision.offer.provider != "sim-cloud"]
    assert all("without limits frontier" in decision.reason for decision in other)


def test_the_requests_that_gain_most_get_the_offers_that_are_short(with_limits):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.3')
    prompts = [f"{prompt} {number}" for number in range(400) for prompt in PROMPTS]
    decisions = router.route_batch(prompts, worth_usd=0.05)[200:]
    gain = np.array([each.success["frontier"] - max(each.success["edge"], each.success["distilled"])
                     for each in decisions])  # fmt: skip
    inside = np.array([each.tier == "frontier" for each in decisions])
    assert 0 < inside.sum() < len(inside)
    assert gain[inside].mean() > gain[~inside].mean()
    assert any(each.shadow_usd for each in decisions)


def test_no_request_is_left_without_an_offer(with_limits):
    router = with_limits(
        *(f'[[caps]]\nprovider = "{name}"\nmax_share = 0.1' for name in ("local", "sim-east", "sim-west", "sim-cloud"))
    )
    decisions = router.route_batch(PROMPTS * 300, worth_usd=0.01)
    assert all(decision.offer is not None and not decision.fallback for decision in decisions)
    assert "gives way" in decisions[-1].reason
    counts = np.unique(answered_by(decisions[-1000:]), return_counts=True)[1]
    assert counts.max() - counts.min() <= 10  # Whoever is least beyond its cap gives way, so all are alike.


def test_a_budget_is_kept_and_lasts_until_its_period_ends(with_limits):
    router = with_limits('[[budgets]]\nusd = 0.05\nper = "month"\ntier = "frontier"')
    decisions = router.route_batch(PROMPTS * 500, worth_usd=10.0)
    assert sum(each.cost_usd["frontier"] for each in decisions if each.tier == "frontier") <= 0.05
    (state,) = [state for state in router.portfolio.state() if state.spent_usd is not None]
    assert 0 < state.spent_usd <= 0.05


def test_a_budget_remembers_what_was_spent_before_the_process_began(with_limits):
    router = with_limits(
        '[[budgets]]\nusd = 0.05\nper = "month"\ntier = "frontier"', '[[budgets]]\nusd = 9.0\nper = "hour"'
    )
    asked = []

    def spent_usd(since_s):
        asked.append(since_s)
        return {"sim/frontier-1": 0.05, "sim/edge-4b": 0.01, "a model of yesterday": 7.0}

    router.portfolio.recall(spent_usd)
    assert sorted(asked, reverse=True)[0] % 3600 == 0
    spent = [state.spent_usd for state in router.portfolio.state() if state.spent_usd is not None]
    assert spent == [pytest.approx(0.05), pytest.approx(0.06)]
    assert router.route(PROMPTS[1], worth_usd=10.0).tier != "frontier"


def test_the_promise_covers_a_choice_under_limits_only_within_the_slack_of_all_tiers(with_limits):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.1')
    qualities = [point.quality for point in router.bundle.manifest.dial if point.promised]
    assert qualities
    decisions = router.route_batch(PROMPTS * 300, quality=max(qualities))
    beyond = [each for each in decisions if each.success[each.tier] < max(each.success.values()) - each.slack]
    assert beyond
    assert not any(each.promised for each in beyond)
    assert all(each.promised for each in decisions if each not in beyond and each.familiarity == 1)


def test_a_batch_under_limits_equals_its_singles(with_limits):
    limit = '[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.15'
    one, other = with_limits(limit), with_limits(limit)
    prompts = [prompt * (1 + number % 7) for number in range(300) for prompt in PROMPTS]
    batch = one.route_batch(prompts, worth_usd=10.0)
    assert [each.tier for each in batch] == [other.route(prompt, worth_usd=10.0).tier for prompt in prompts]


def test_many_threads_exceed_no_cap(with_limits):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.2')
    with ThreadPoolExecutor(8) as threads:
        decisions = list(threads.map(lambda prompt: router.route(prompt, worth_usd=10.0), PROMPTS * 300))
    (share,) = [state.share for state in router.portfolio.state() if state.limit.provider == "sim-cloud"]
    assert share <= 0.2
    assert all(decision.offer is not None for decision in decisions)


def test_new_prices_with_the_same_limits_forget_nothing(with_limits, tmp_path):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.2')
    router.route_batch(PROMPTS * 300, worth_usd=10.0)
    path = tmp_path / "cheaper.toml"
    path.write_text(router.prices.text.replace("usd_per_mtok_output = 5.00", "usd_per_mtok_output = 4.00"))
    router.update_prices(path)
    (share,) = [state.share for state in router.portfolio.state() if state.limit.provider == "sim-cloud"]
    assert 0.15 < share <= 0.2


def test_other_limits_forget_neither_requests_nor_what_was_spent(with_limits, tmp_path):
    router = with_limits('[[budgets]]\nusd = 0.05\nper = "month"\ntier = "frontier"')
    first = router.route_batch(PROMPTS * 20, worth_usd=10.0)
    n_frontier = sum(each.tier == "frontier" for each in first)
    [spent] = [state.spent_usd for state in router.portfolio.state() if state.spent_usd is not None]
    assert spent > 0.01 and n_frontier > 0
    path = tmp_path / "other.toml"
    text = router.prices.text.replace("usd = 0.05", "usd = 0.06")
    path.write_text(text + '\n[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.1\n')
    router.update_prices(path)
    states = {type(state.limit).__name__ + state.limit.provider: state for state in router.portfolio.state()}
    assert states["Budget"].spent_usd == pytest.approx(spent)
    assert states["Capsim-cloud"].share == pytest.approx(n_frontier / len(first))
    more = router.route_batch(PROMPTS * 50, worth_usd=10.0)
    assert n_frontier + sum(each.tier == "frontier" for each in more) <= max(0.1 * WINDOW_REQUESTS, n_frontier)


def test_an_explanation_under_limits_names_the_same_winner(with_limits):
    router = with_limits('[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.2')
    for decision in router.route_batch(PROMPTS * 100, worth_usd=0.05):
        assert decision.explain().tier == decision.tier
        assert decision.tier not in {change.tier for change in decision.explain().changes}


# ---- broker portfolio -------------------------------------------------------------------------------------------


def test_the_command_shows_what_limits_do_to_recent_requests(bundle, sample_log, sample_tiers, tmp_path, capsys):
    tiers = tmp_path / "tiers.toml"
    tiers.write_text(sample_tiers.read_text() + '\n[[caps]]\nprovider = "sim-cloud"\nmax_share = 0.1\n')
    words = ["portfolio", "--tiers", str(tiers), "--bundle", str(bundle), "--logs", str(sample_log), "--worth-usd", "9"]
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    before, after = shown["replay"]["without"], shown["replay"]["within"]
    assert before["shares"]["sim/frontier-1"] > 0.1 >= after["shares"]["sim/frontier-1"] - 1e-9
    assert sum(after["shares"].values()) == pytest.approx(1)
    assert before["success"] > after["success"]
    assert {limit["limit"] for limit in shown["limits"]} >= {"sim-cloud at most 10% of requests"}
    assert main(words) == 0
    assert re.search(r"sim-cloud at most 10% of requests: (9\.\d|10\.0)% now, shadow price", capsys.readouterr().out)


def test_without_a_log_the_command_shows_offers_and_limits(bundle, sample_tiers, capsys):
    assert main(["portfolio", "--tiers", str(sample_tiers), "--bundle", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "sim/frontier-1" in shown
    assert "sim-west eu sim/distilled-14b-eu at most 60% of requests" in shown
