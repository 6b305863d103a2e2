"""Laws of routing: what must hold of every decision."""

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from chat_shapes import MEDIA_MESSAGES, TEXT_MESSAGES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router import BundleError, DialError, Policy, PriceError, Router

PROMPTS = [
    "Hello!",
    "Prove that the square root of 2 is irrational.",
    "用一句话解释什么是量子纠缠。",
    "SELECT name FROM users WHERE age > 30 ORDER BY name;",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive?",
    "",
    "🚀" * 40,
    "word " * 3000,
]
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=[]), max_size=300)  # lone surrogates included
QUALITY = st.floats(0.5, 1.0)
shared_router = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def same(first, second) -> bool:
    """Equal but for rounding of the estimates."""
    estimates = ("success", "output_tokens", "cost_usd", "familiarity")

    def rest(decision):
        values = {name: value for name, value in asdict(decision).items() if name not in (*estimates, "decision_id")}
        return {**values, "reason": re.sub(r"familiarity 0\.\d+", "familiarity", decision.reason)}

    return rest(first) == rest(second) and all(
        getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-4) for name in estimates
    )


# ---- laws ------------------------------------------------------------------------------------------


@shared_router
@given(prompt=st.one_of(st.sampled_from(PROMPTS), ANY_TEXT), qualities=st.tuples(QUALITY, QUALITY))
def test_raising_quality_never_lowers_expected_success(router, prompt, qualities):
    low, high = (router.route(prompt, quality=quality) for quality in sorted(qualities))
    assert high.success[high.tier] >= low.success[low.tier]


@shared_router
@given(prompt=st.sampled_from(PROMPTS), worths=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_correct_answer_worth_more_never_lowers_expected_success(router, prompt, worths):
    low, high = (router.route(prompt, worth_usd=worth) for worth in sorted(worths))
    assert high.success[high.tier] >= low.success[low.tier]


@pytest.fixture
def scaled(bundle):
    """Another router, whose prices change."""
    return Router.load(bundle)


@shared_router
@given(prompt=st.sampled_from(PROMPTS), worth=st.floats(0, 0.1), power=st.integers(-6, 6), quality=QUALITY)
def test_scaling_prices_and_worth_together_changes_no_decision(
    bundle, tmp_path, router, scaled, prompt, worth, power, quality
):
    scaled.update_prices(_scaled_prices(bundle, tmp_path, 2.0**power))
    before = router.route(prompt, worth_usd=worth, quality=quality)
    after = scaled.route(prompt, worth_usd=worth * 2.0**power, quality=quality)
    assert after.tier == before.tier
    assert after.cost_usd == pytest.approx({tier: cost * 2.0**power for tier, cost in before.cost_usd.items()})


@shared_router
@given(prompts=st.lists(st.one_of(st.sampled_from(PROMPTS), ANY_TEXT), max_size=80), quality=QUALITY)
def test_a_batch_equals_its_singles(router, prompts, quality):
    batch = router.route_batch(prompts, quality=quality)
    assert len(batch) == len(prompts)
    assert all(same(one, router.route(prompt, quality=quality)) for one, prompt in zip(batch, prompts, strict=True))


def test_saved_and_loaded_equals_original(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    first, second = Router.load(bundle), Router.load(copy)
    assert [first.route(prompt) for prompt in PROMPTS] == [second.route(prompt) for prompt in PROMPTS]


@shared_router
@given(prompt=ANY_TEXT)
def test_no_text_makes_route_raise(router, prompt):
    decision = router.route(prompt)
    assert not decision.fallback
    assert decision.reason


@pytest.mark.parametrize(
    "prompt", ["x" * 10_000_000, "\ud800", "\x00", "a\u0300" * 5000, " " * 100_000, "😀" * 50_000], ids=range(6)
)
def test_no_extreme_text_makes_route_raise(router, prompt):
    assert router.route(prompt).reason


@pytest.mark.parametrize("prompt", [None, 3, b"bytes", ["a"], {"role": "user"}])
def test_what_is_no_prompt_gets_the_fallback_with_a_reason(router, prompt):
    decision = router.route(prompt)
    assert decision.fallback
    assert decision.tier == router.bundle.manifest.best_tier
    assert "cannot be read" in decision.reason
    assert router.route_batch([prompt, "Hello!"])[0] == decision


def test_success_is_a_probability_and_cost_is_tokens_times_price(router):
    for prompt in PROMPTS:
        decision = router.route(prompt)
        assert all(0 < success < 1 for success in decision.success.values())
        for tier in router.prices.tiers:
            offer = tier.offers[0]
            expected = decision.context_tokens * offer.usd_per_mtok_input
            expected += decision.output_tokens[tier.name] * offer.usd_per_mtok_output
            assert decision.cost_usd[tier.name] == pytest.approx(expected / 1e6, rel=1e-5)


def test_the_rule_is_the_designs(router):
    """Among eligible tiers within the slack of the highest success, the largest worth x success - cost."""
    rng = np.random.default_rng(0)
    for prompt in PROMPTS * 5:
        quality, worth = rng.uniform(0.8, 1.0), rng.choice([0.0, 1e-4, 1e-2])
        decision = router.route(prompt, quality=quality, worth_usd=worth)
        bar = max(decision.success.values()) - decision.slack
        value = {
            tier: worth * decision.success[tier] - decision.cost_usd[tier]
            for tier in decision.success
            if decision.success[tier] >= bar
        }
        assert value[decision.tier] == pytest.approx(max(value.values()), abs=1e-8)


# ---- dials -----------------------------------------------------------------------------------------


def test_without_dials_the_bundles_default_quality_holds(router):
    decision = router.route(PROMPTS[1])
    assert decision.quality == router.bundle.manifest.default_quality == 0.98
    assert decision.slack == router.bundle.manifest.dial_point(0.98).slack
    assert decision == router.route(PROMPTS[1], quality=0.98)


def test_worth_alone_lets_money_decide_freely(router):
    nothing, fortune = router.route(PROMPTS[1], worth_usd=0.0), router.route(PROMPTS[1], worth_usd=1000.0)
    assert nothing.slack == fortune.slack == 1.0
    assert nothing.cost_usd[nothing.tier] == min(nothing.cost_usd.values())
    assert fortune.success[fortune.tier] == max(fortune.success.values())


def test_critical_asks_only_reserved_tiers(router):
    reserved = {tier.name for tier in router.prices.tiers if tier.critical}
    assert reserved == {"frontier"}
    for prompt in PROMPTS:
        decision = router.route(prompt, critical=True)
        assert decision.tier in reserved
        assert "critical" in decision.reason


OUT_OF_RANGE = (
    {"quality": 0}, {"quality": 1.2}, {"quality": float("nan")}, {"quality": "high"}, {"worth_usd": -1},
    {"worth_usd": float("inf")}, {"worth_usd": 1e39}, {"context_tokens": -5}, {"context_tokens": 1e39},
    {"context_tokens": "9"}, {"quality": [1]}, {"critical": "no"}, {"regions": "eu"}, {"capabilities": 3},
    {"regions": [3]}, {"capabilities": "tools"}, {"capabilities": [None]},
)  # fmt: skip


@pytest.mark.parametrize("dials", OUT_OF_RANGE, ids=str)
def test_a_dial_out_of_range_is_refused_by_name(router, dials):
    with pytest.raises(DialError, match=next(iter(dials))):
        router.route("Hello!", **dials)


def test_a_policy_sets_what_a_request_leaves_open(bundle):
    router = Router.load(bundle, Policy(default_quality=0.85, fallback_tier="edge"))
    assert router.route("Hello!").quality == 0.85
    assert router.route(None).tier == "edge"
    with pytest.raises(BundleError, match="nowhere"):
        Router.load(bundle, Policy(fallback_tier="nowhere"))


# ---- eligibility -----------------------------------------------------------------------------------


def test_a_tier_whose_context_window_is_too_small_is_not_asked(router):
    decision = router.route("Hello!", context_tokens=100_000, quality=0.5)
    assert decision.tier != "edge"
    assert "not eligible: edge" in decision.reason
    assert decision.offer.context_window >= 100_000


def test_where_nothing_is_eligible_the_fallback_says_why(router):
    decision = router.route("Hello!", context_tokens=10**9)
    assert decision.fallback
    assert decision.offer is None
    assert not decision.promised
    assert decision.tier == router.bundle.manifest.best_tier
    assert "no tier is eligible for 1000000000 input tokens" in decision.reason
    assert f"the largest context window is {router.prices.tiers[2].offers[0].context_window}" in decision.reason


@pytest.mark.parametrize(
    ("request_", "missing"),
    [
        ({"regions": ["mars"]}, "no offer is in region mars"),
        ({"regions": ["mars", "Moon"]}, "no offer is in region mars or moon"),
        ({"regions": []}, "the request admits no region"),
        ({"capabilities": ["vision"]}, "no offer has vision"),
        ({"capabilities": ["vision"], "regions": ["eu"]}, "no offer has vision"),
        ({"regions": ["local"], "critical": True}, "no offer is in region local"),
    ],
)
def test_a_fallback_names_what_no_offer_has(router, request_, missing):
    decision = router.route("Hello!", **request_)
    assert decision.fallback and missing in decision.reason
    assert "input tokens" not in decision.reason


def test_a_fallback_names_what_no_offer_has_at_once(bundle, tmp_path, router):
    router.update_prices(prices_that_state(bundle, tmp_path, edge="tools"))
    assert "no offer is in region us and has tools" in router.route("Hi", regions=["us"], capabilities=["tools"]).reason


def test_regions_and_capabilities_are_names_in_upper_or_lower_case(bundle, tmp_path, router):
    router.update_prices(prices_that_state(bundle, tmp_path, frontier="Tools"))
    for regions in (["US"], ["us"], {"Us"}):
        assert router.route("Hello!", regions=regions).offer.region == "us"
    assert router.route("Hello!", capabilities=["tOOLS"]).tier == "frontier"
    assert Router.load(bundle, Policy(regions=frozenset({"EU"}))).route("Hello!").offer.region == "eu"


def test_the_fallback_goes_to_a_tier_that_may_answer(router):
    """Here the best tier has no offer in the region."""
    decision = router.route(messages=[{"role": "user", "content": ""}], regions=["local"])
    assert decision.fallback and decision.tier == "edge" and decision.offer.region == "local"


def test_regions_limit_the_offers(router):
    assert router.route("Hello!", regions={"local"}).tier == "edge"
    assert router.route("Hello!", regions={"eu"}).offer.region == "eu"
    assert router.route("Hello!", regions={"mars"}).fallback
    assert router.route("Hello!", capabilities={"vision"}).fallback


@shared_router
@given(
    prompt=st.sampled_from(PROMPTS),
    worth=st.sampled_from([None, 0.0, 0.01]),
    critical=st.booleans(),
    regions=st.sampled_from([None, ("eu",), ("cn", "local"), ("mars",)]),
    context_tokens=st.sampled_from([None, 60_000, 100_000, 10**9]),
)
def test_the_offers_to_try_begin_with_the_decisions_own_and_only_get_better(
    router, prompt, worth, critical, regions, context_tokens
):
    call = router.snapshot.call(worth_usd=worth, critical=critical, regions=regions)
    decision = call.route(prompt, context_tokens=context_tokens)
    offers = call.offers_to_try(decision)
    tiers = {offer: tier for tier in router.prices.tiers for offer in tier.offers}
    names = [tiers[offer].name for offer in offers]
    assert len(set(offers)) == len(offers) and all(regions is None or offer.region in regions for offer in offers)
    assert [decision.success[name] for name in names] == sorted(decision.success[name] for name in names)
    if not decision.fallback:
        assert offers[0] == decision.offer and set(names) <= set(decision.eligible)
        assert all(offer.context_window >= decision.context_tokens for offer in offers)
        assert not critical or all(tiers[offer].critical for offer in offers)
    for name in set(names):
        costs = [decision.context_tokens * offer.usd_per_mtok_input for offer in offers if tiers[offer].name == name]
        assert costs == sorted(costs)


def test_a_fallback_tries_the_offers_that_seem_too_small_too(router):
    call = router.snapshot.call(regions=["us"])
    decision = call.route("Hello!", context_tokens=10**9)
    assert decision.fallback and decision.offer is None
    assert [offer.model for offer in call.offers_to_try(decision)] == ["sim/frontier-1"]


def test_a_chat_is_read_newest_message_first(router):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    decision = router.route(messages=chat)
    assert same(decision, router.route("Hi\n\nBe brief."))
    assert router.route(messages=[]).fallback
    assert router.route(messages=[{"role": "user", "content": 7}]).fallback
    assert router.route("Hi", messages=chat).fallback


@pytest.mark.parametrize("message", TEXT_MESSAGES.values(), ids=TEXT_MESSAGES)
def test_a_text_decides_in_whatever_shape_it_comes(router, message):
    system = {"role": "system", "content": "Be brief."}
    assert same(router.route(messages=[system, message]), router.route("Hi\n\nBe brief."))


NO_TEXT = [{"content": None}, {"content": ""}, {"content": []}, {}, {"parts": []}, {"content": [{"type": "text"}]}]


@pytest.mark.parametrize("message", [*MEDIA_MESSAGES.values(), *NO_TEXT], ids=str)
def test_a_chat_without_a_text_says_so_and_claims_no_promise(router, message):
    decision = router.route(messages=[message, message])
    assert "no text found" in decision.reason
    assert decision.fallback and not decision.promised and decision.tier == router.bundle.manifest.best_tier


def prices_that_state(bundle: Path, folder: Path, **capabilities: str) -> Path:
    """The bundle's prices; each tier of `capabilities` has that capability."""
    text = _scaled_prices(bundle, folder, 1.0).read_text()
    for tier, capability in capabilities.items():
        before, after = text.split(f'name = "{tier}"', 1)
        stated = after.replace("context_window", f'capabilities = ["{capability}"]\ncontext_window', 1)
        text = f'{before}name = "{tier}"{stated}'
    (folder / "capable.toml").write_text(text)
    return folder / "capable.toml"


@pytest.mark.parametrize("message", MEDIA_MESSAGES.values(), ids=MEDIA_MESSAGES)
def test_an_image_goes_to_an_offer_with_vision_where_any_states_it(bundle, tmp_path, router, message):
    chat = [message, {"role": "user", "content": "What is this?"}]
    assert "vision" not in router.route(messages=chat, worth_usd=0).reason
    router.update_prices(prices_that_state(bundle, tmp_path, distilled="Vision"))
    decision, alone = router.route(messages=chat, worth_usd=0), router.route(messages=chat[:1])
    assert decision.tier == "distilled" and not decision.fallback
    assert "not eligible: edge, frontier" in decision.reason
    assert alone.tier == "distilled" and alone.offer.capabilities and "no text found" in alone.reason
    assert router.route(messages=chat[1:], worth_usd=0) == router.route("What is this?", worth_usd=0)
    call = router.snapshot.call().needing({"vision"})
    assert {offer.capabilities for offer in call.offers_to_try(call.route(None, chat[:1]))} == {("Vision",)}


def test_audio_goes_to_an_offer_with_audio_where_any_states_that(bundle, tmp_path, router):
    router.update_prices(prices_that_state(bundle, tmp_path, distilled="vision", edge="audio"))
    chat = [{"role": "user", "content": [{"type": "input_audio"}, {"type": "text", "text": "What does she say?"}]}]
    assert router.route(messages=chat).tier == "edge"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), ANY_TEXT, st.sampled_from([*MEDIA_MESSAGES.values()])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["content", "parts", "text", "type", "source", "output", "inline_data", "refusal"]), inner
    ),
    max_leaves=12,
)  # fmt: skip


@shared_router
@given(messages=st.one_of(JSON, st.lists(JSON, max_size=4)))
def test_no_messages_make_route_raise(router, messages):
    assert router.route(messages=messages).reason


def test_no_depth_of_messages_makes_route_raise(router):
    part: object = "Hi"
    for _ in range(100_000):
        part = [{"content": part}]
    assert "no text found" in router.route(messages=part).reason


# ---- prices and bundles in use ---------------------------------------------------------------------


def _scaled_prices(bundle: Path, folder: Path, factor: float) -> Path:
    blocks = []
    for tier in Router.load(bundle).prices.tiers:
        blocks.append(f'[[tiers]]\nname = "{tier.name}"\ncritical = {str(tier.critical).lower()}')
        blocks += [
            f'[[tiers.offers]]\nmodel = "{offer.model}"\nprovider = "{offer.provider}"\nregion = "{offer.region}"\n'
            f"context_window = {offer.context_window}\nusd_per_mtok_input = {offer.usd_per_mtok_input * factor!r}\n"
            f"usd_per_mtok_output = {offer.usd_per_mtok_output * factor!r}"
            for offer in tier.offers
        ]
    path = folder / "prices.toml"
    path.write_text("\n".join(blocks))
    return path


def test_a_price_change_moves_decisions_without_a_new_bundle(bundle, tmp_path, router):
    before = router.route(PROMPTS[0], worth_usd=0.001)
    text = _scaled_prices(bundle, tmp_path, 1.0).read_text()
    free_frontier = text[: text.index('name = "frontier"')] + text[text.index('name = "frontier"') :].replace(
        "usd_per_mtok_input = 1.25", "usd_per_mtok_input = 0.0"
    ).replace("usd_per_mtok_output = 5.0", "usd_per_mtok_output = 0.0")
    (tmp_path / "free.toml").write_text(free_frontier)
    router.update_prices(tmp_path / "free.toml")
    after = router.route(PROMPTS[0], worth_usd=0.001)
    assert after.tier == "frontier"
    assert after.cost_usd["frontier"] == 0
    assert after.success == before.success
    assert after.bundle_id == before.bundle_id
    assert after.price_table_id != before.price_table_id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("usd_per_mtok_input = 1.25", "usd_per_mtok_input = -1"),
        ("usd_per_mtok_input = 1.25", "usd_per_mtok_input = nan"),
        ("usd_per_mtok_input = 1.25", 'usd_per_mtok_input = "cheap"'),
        ("usd_per_mtok_input = 1.25", "usd_per_mtok_inptu = 1.25"),
        ("usd_per_mtok_output = 5.0", ""),
        ('name = "frontier"', 'name = "other"'),
        ("[[tiers]]", "[[tiers"),
    ],
)
def test_a_broken_price_table_never_replaces_a_good_one(bundle, tmp_path, router, old, new):
    before = router.prices
    text = _scaled_prices(bundle, tmp_path, 1.0).read_text()
    assert old in text
    (tmp_path / "broken.toml").write_text(text.replace(old, new))
    with pytest.raises(PriceError, match="expected|not valid"):
        router.update_prices(tmp_path / "broken.toml")
    assert router.prices is before


def test_a_broken_bundle_never_replaces_a_good_one(bundle, tmp_path, router):
    before = router.bundle
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "router.onnx").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="SHA-256"):
        router.reload(broken)
    with pytest.raises(BundleError, match="no readable manifest"):
        router.reload(tmp_path)
    assert router.bundle is before


def test_a_price_reload_between_the_steps_of_a_request_cannot_mix_tables(bundle, tmp_path, router):
    """What the gateway does: one snapshot, then a decision, then the offers to try."""
    snapshot, before = router.snapshot, {tier.name: tier.offers for tier in router.prices.tiers}
    router.update_prices(_scaled_prices(bundle, tmp_path, 7.0))
    call = snapshot.call(worth_usd=0.0)
    decision = call.route(PROMPTS[0])
    router.update_prices(_scaled_prices(bundle, tmp_path, 3.0))
    offers = call.offers_to_try(decision)
    assert decision.price_table_id == snapshot.prices.id != router.prices.id
    assert offers[0] == decision.offer and set(offers) <= {offer for tier in before.values() for offer in tier}
    assert router.route(PROMPTS[0]).price_table_id == router.prices.id
    with pytest.raises(AttributeError):
        snapshot.prices = router.prices


def test_threads_decide_as_one(bundle, tmp_path, router):
    expected = [router.route(prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        rounds = pool.map(lambda _: [router.route(prompt) for prompt in PROMPTS], range(40))
        assert all(found == expected for found in rounds)


def test_a_decision_is_one_line_of_json_without_the_prompt(router):
    decision = router.route("a very secret prompt", request_id="r-1")
    document = json.loads(decision.to_json())
    assert "\n" not in decision.to_json()
    assert "secret" not in decision.to_json()
    assert document["tier"] == decision.tier
    assert document["request_id"] == "r-1"
    assert document["propensity"] == 1.0
    assert document["offer"]["model"] == decision.offer.model


# ---- the runtime is light --------------------------------------------------------------------------


IMPORT_THE_CORE = """
import importlib, pkgutil, sys
import numpy, onnxruntime, tokenizers

BEHIND_EXTRAS = (
    "router.outcomes", "router.gateway", "router.serve", "router.redis",
    "router.checks.schema", "router.checks.pattern", "router.checks.endpoint",
)

def packages():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

def import_all(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name not in BEHIND_EXTRAS:
            print(module.name)
            found = importlib.import_module(module.name)
            if module.ispkg:
                import_all(found)

before = packages()
import router
import_all(router)
print("others:", *packages() - before - {"router"})
"""


def test_the_core_imports_only_numpy_onnxruntime_and_tokenizers():
    """Every module of router/ but those behind an extra."""
    run = subprocess.run([sys.executable, "-c", IMPORT_THE_CORE], capture_output=True, text=True, check=True)
    *core, others = run.stdout.splitlines()
    assert {"router.routing", "router.request", "router.bundle.manifest", "router.portfolio.quote"} <= set(core)
    assert {"router.checks.judge", "router.checks.normalise", "router.checks.python_tests"} <= set(core)
    assert others == "others:"
