"""Where the next turn of a conversation goes while a provider has its beginning in a cache."""

import pytest

from router import Router
from router.portfolio.sessions import LEAST_TOKENS, WARM_S, Sessions, turn_of
from router.portfolio.tiers import Offer

LONG = "We debug a distributed system that loses messages. " * 400
CHAT = [{"role": "user", "content": LONG}]
NEXT = [*CHAT, {"role": "assistant", "content": "Look at the broker."}, {"role": "user", "content": "commit it"}]
OTHER = [{"role": "user", "content": LONG + "!"}, *NEXT[1:]]
CACHED = "usd_per_mtok_output = 5.00\nusd_per_mtok_cached_input = 0.001"


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def router(bundle, tmp_path):
    """The sample's tiers, where frontier has a cache and its fresh input is dear."""
    made = Router.load(bundle)
    path = tmp_path / "cached.toml"
    text = made.prices.text.replace("usd_per_mtok_output = 5.00", CACHED)
    path.write_text(text.replace("usd_per_mtok_input = 1.25", "usd_per_mtok_input = 12.5"))
    made.update_prices(path)
    return made


def test_a_turn_is_known_by_the_messages_before_the_last_answer():
    first, second = turn_of(CHAT, None), turn_of(NEXT, None)
    assert first.before is None
    assert second.before == first.after
    assert turn_of(OTHER, None).before != first.after
    assert turn_of([*NEXT, {"role": "tool", "content": "done"}], None).before == first.after


def test_a_session_id_names_a_conversation_whatever_its_messages():
    assert turn_of(CHAT, "a").after == turn_of(OTHER, "a").before
    assert turn_of(CHAT, "a") != turn_of(CHAT, "b")
    assert turn_of(None, None) is None
    assert turn_of("no chat", None) is None


def test_a_conversation_is_warm_for_some_minutes_where_the_offer_has_a_cache():
    clock = Clock()
    sessions = Sessions(clock)
    offer = Offer("m", "p", "r", 100_000, 1.0, 1.0, usd_per_mtok_cached_input=0.1)
    sessions.answered(turn_of(CHAT, None), offer, 5000.0)
    warm = sessions.warm(turn_of(NEXT, None))
    assert warm.cached_tokens(offer, 6000.0) == 5000
    assert warm.cached_tokens(offer, 400.0) == 400
    assert warm.cached_tokens(Offer("m", "other", "r", 100_000, 1.0, 1.0, 0.1), 6000.0) == 0
    clock.now += WARM_S + 1
    assert sessions.warm(turn_of(NEXT, None)) is None
    sessions.answered(turn_of(CHAT, "short"), offer, LEAST_TOKENS - 1)
    sessions.answered(turn_of(CHAT, "dear"), Offer("m", "p", "r", 100_000, 1.0, 1.0), 5000.0)
    assert sessions.warm(turn_of(NEXT, "short")) is None
    assert sessions.warm(turn_of(NEXT, "dear")) is None


def worth_where_the_cache_decides(router):
    """What a correct answer is worth where frontier loses at the price of fresh input, and wins at that of cached."""
    fresh = router.route(messages=NEXT, worth_usd=0.0)
    gain = fresh.success["frontier"] - max(fresh.success[name] for name in ("edge", "distilled"))
    assert gain > 0
    return 0.3 * fresh.cost_usd["frontier"] / gain


def test_a_conversation_stays_while_leaving_costs_more(router):
    worth = worth_where_the_cache_decides(router)
    assert router.route(messages=NEXT, worth_usd=worth).tier != "frontier"
    first = router.route(messages=CHAT, worth_usd=100.0)
    assert first.tier == "frontier"
    second = router.route(messages=NEXT, worth_usd=worth)
    assert second.tier == "frontier"
    assert "of the conversation in its cache; without that" in second.reason
    assert second.cost_usd["frontier"] < 0.3 * first.cost_usd["frontier"]
    assert router.route(messages=OTHER, worth_usd=worth).tier != "frontier"


def test_a_conversation_leaves_where_another_tier_is_worth_more_all_the_same(router, tmp_path):
    path = tmp_path / "dearer.toml"
    path.write_text(router.prices.text.replace("usd_per_mtok_cached_input = 0.001", "usd_per_mtok_cached_input = 6.0"))
    router.update_prices(path)
    router.route(messages=CHAT, worth_usd=100.0)
    decision = router.route(messages=NEXT, worth_usd=0.0)
    assert decision.tier != "frontier"
    assert "in its cache" not in decision.reason


def test_an_id_keeps_a_conversation_together_whose_messages_were_shortened(router):
    worth = worth_where_the_cache_decides(router)
    router.route(messages=CHAT, worth_usd=100.0, session_id="talk-1")
    assert router.route(messages=OTHER, worth_usd=worth, session_id="talk-1").tier == "frontier"


def test_an_easy_word_after_hard_turns_is_read_with_the_whole_chat(router):
    """Without any cache, too: the text that is routed by is that of all messages."""
    alone = router.route(messages=[{"role": "user", "content": "commit it"}], worth_usd=0.01)
    assert router.route(messages=NEXT, worth_usd=0.01).success != alone.success


def test_the_offer_with_the_cache_is_tried_first_though_another_of_its_tier_is_cheaper(bundle, tmp_path):
    """Also where the prices of cached input are all that the portfolio has to say: no limit, and no offer is down."""
    router, path = Router.load(bundle), tmp_path / "cached.toml"
    text = router.prices.text.replace("max_share = 0.6", "usd_per_mtok_cached_input = 0.001")
    path.write_text(text.replace("usd_per_mtok_input = 0.36", "usd_per_mtok_input = 3.6"))
    router.update_prices(path)
    assert not router.portfolio.ledger.limits
    first = router.route(messages=CHAT)
    offers = {offer.region: offer for tier in router.prices.tiers if tier.name == "distilled" for offer in tier.offers}
    router.portfolio.sessions.answered(turn_of(CHAT, None), offers["eu"], first.context_tokens)
    call = router.snapshot.call(regions=["eu", "cn"], worth_usd=1e-9)
    decision = call.route(None, NEXT)
    assert decision.offer == offers["eu"] and "in its cache" in decision.reason
    assert call.offers_to_try(decision)[0] == decision.offer
