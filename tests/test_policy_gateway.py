"""Laws of clients' rights at the endpoint: nothing that an adversary can send widens them."""

import asyncio
import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

from fastapi import HTTPException
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

from router import Router
from router.gateway import BrokerHook
from router.gateway.limits import answers_wanted, operators_names
from router.policy_file import parse_policy

CHAT = [{"role": "user", "content": "Prove that sqrt(2) is irrational."}]
POLICY = """
[classes.public]

[classes.internal]
regions = ["eu", "local"]

[classes.device]
tiers = ["edge"]

[keys.billing]
classes = ["internal", "device"]
default_class = "internal"
providers = ["local", "sim-west"]
max_usd = 0.002
may_set = { quality = [0.8, 0.95], worth_usd = [0.001, 0.02] }

[teams.research]
classes = ["public", "internal"]
may_set = { quality = true, worth_usd = true, critical = true, check = ["agreement"] }
other_models = true
"""
BILLING = UserAPIKeyAuth(api_key="sk-billing-4711", key_alias="billing", team_id="research", team_alias="research")
RESEARCH = UserAPIKeyAuth(api_key="sk-research-4711", key_alias="billing-2", team_alias="research")
STRANGER = UserAPIKeyAuth(api_key="sk-stranger-4711", key_alias="0" * 64, team_alias="billing", end_user_id="billing")


@pytest.fixture(scope="module")
def router(bundle) -> Router:
    return Router.load(bundle, parse_policy(POLICY))


@pytest.fixture(scope="module")
def hook(router) -> BrokerHook:
    return BrokerHook(router)


def ask(hook: BrokerHook, key, model="broker", call_type="acompletion", **body) -> dict | None:
    data = {"model": model, "messages": CHAT, "metadata": {}, **body}
    return asyncio.run(hook.async_pre_call_hook(key, None, data, call_type))


def refused(hook: BrokerHook, key, model="broker", code="403", **body) -> str:
    with pytest.raises(ProxyException) as refusal:
        ask(hook, key, model, **body)
    assert refusal.value.code == code
    return refusal.value.message


# ---- whatever a client sends -----------------------------------------------------------------------

OFFERS = ["sim/frontier-1", "sim/distilled-14b", "sim/edge-4b", "gpt-4o"]
words = st.sampled_from(
    ["quality=0.9", "quality=1", "quality=0.01", "worth=0", "worth=0.01", "worth=9", "critical", "class=internal",
     "class=device", "class=public", "class=personal", "check=agreement", *OFFERS]
)  # fmt: skip
values = st.sampled_from(
    [None, True, False, 0, 1, 5, 0.9, 0.01, 1e9, -1, float("nan"), "public", "device", "internal", "sim/frontier-1",
     [], {}, ["sim/frontier-1"], [{"model": "sim/frontier-1"}], [{"sim/edge-4b": ["sim/frontier-1"]}],
     {"fallbacks": ["gpt-4o"]}, {"quality": 1.0}, {"class": "public"}, {"worth_usd": 9, "critical": True}, "us",
     [{"role": "user", "content": [{"type": "image_url"}]}], "word " * 30_000]
)  # fmt: skip
names = st.sampled_from(
    ["fallbacks", "router_settings_override", "models", "provider", "route", "user", "tags", "n", "best_of", "stream",
     "max_tokens", "max_completion_tokens", "tools", "litellm_metadata", "user_api_key_dict", "user_api_key_alias",
     "key_alias", "region_name", "regions", "class", "request_class", "broker", "num_retries", "extra_body",
     "extra_headers", "api_base", "disable_fallbacks", "specific_deployment", "model_info", "service_tier", "prompt",
     "messages", "team_id"]
)  # fmt: skip
models = st.lists(words, max_size=4).map(lambda parts: "broker" + ("/" + ",".join(parts) if parts else ""))
bodies = st.dictionaries(names, values, max_size=3)
metadata = st.dictionaries(
    st.sampled_from(["broker", "broker_decision", "broker_attempts", "broker_plan", "user_api_key_alias", "tags", "x"]),
    values | st.dictionaries(st.sampled_from(["quality", "worth_usd", "critical", "class"]), values, max_size=3),
    max_size=3,
)


@settings(max_examples=250)
@given(model=models | st.sampled_from(OFFERS), body=bodies, metadata=metadata)
def test_no_body_of_a_client_leaves_the_regions_providers_cost_and_ranges_of_its_key(
    hook, router, model, body, metadata
):
    try:
        data = ask(hook, BILLING, model, **{**body, "metadata": metadata})
    except ProxyException as refusal:
        assert refusal.code in ("400", "403") and refusal.message
        return
    decision = data["metadata"]["broker_decision"]
    asked = [data["model"], *data.get("fallbacks", [])]
    offers = [router.prices.find(name).offer for name in asked]
    assert {offer.region for offer in offers} <= {"eu", "local"}
    assert {offer.provider for offer in offers} <= {"local", "sim-west"}
    assert decision.request_class in ("internal", "device")
    if decision.request_class == "device":
        assert asked == ["sim/edge-4b"]
    assert decision.fallback or 0.8 <= decision.quality <= 0.95
    assert 0.001 <= decision.worth_usd <= 0.02
    if decision.cost_usd and not data.get("max_tokens") and not data.get("max_completion_tokens"):
        assert decision.cost_usd[decision.tier] <= 0.002 * (1 + 1e-6)
    assert "router_settings_override" not in data and set(operators_names(data)) <= {"fallbacks"}
    assert len(asked) > 1 or data["disable_fallbacks"] is True
    assert data["metadata"]["broker_attempts"].may_answer == set(asked)


@pytest.mark.parametrize("call_type", ["aembedding", "aresponses", "anthropic_messages", "pass_through_endpoint", None])
@pytest.mark.parametrize("model", [*OFFERS, None, 7, "Broker", " broker", "brokers", "broker,sim/frontier-1"])
def test_a_key_without_other_models_asks_for_nothing_past_the_router(hook, model, call_type):
    said = refused(hook, BILLING, model, call_type=call_type)
    assert "[keys.billing]: other_models allows only the model broker" in said
    assert ask(hook, RESEARCH, model, call_type=call_type) is None


@pytest.mark.parametrize("key", [STRANGER, None, UserAPIKeyAuth()])
def test_a_key_without_an_entry_asks_for_nothing(hook, key):
    for model in ("broker", "broker/class=public", "sim/edge-4b"):
        assert "only the keys and teams that it names" in refused(hook, key, model)


# ---- calls that come past the hook of the proxy ----------------------------------------------------


def attempt(hook: BrokerHook, **arguments) -> None:
    asyncio.run(hook.async_pre_call_deployment_hook(arguments, "acompletion"))


def noted(key: UserAPIKeyAuth) -> dict:
    """What LiteLLM notes of a client in the metadata of its calls."""
    return {
        "user_api_key_hash": key.api_key,
        "user_api_key_alias": key.key_alias,
        "user_api_key_team_id": key.team_id,
        "user_api_key_team_alias": key.team_alias,
    }


@pytest.mark.parametrize("where", ["metadata", "litellm_metadata"])
def test_an_endpoint_that_never_calls_the_hook_is_stopped_before_the_provider(hook, where):
    """LiteLLM's /queue/chat/completions is one."""
    with pytest.raises(HTTPException, match="other_models allows only the model broker"):
        attempt(hook, model="openai/sim/frontier-1", **{where: noted(BILLING)})
    with pytest.raises(HTTPException, match="only the keys"):
        attempt(hook, model="openai/sim/frontier-1", **{where: noted(STRANGER)})
    attempt(hook, model="openai/sim/frontier-1", **{where: noted(RESEARCH)})
    attempt(hook, model="openai/sim/frontier-1", metadata={})  # No client asks: the proxy itself does.
    attempt(hook, model="x", metadata={**noted(STRANGER), "user_api_key_hash": "litellm-internal-health-check"})


def test_a_fallback_that_is_not_the_hooks_is_stopped_before_the_provider(hook):
    data = ask(hook, BILLING, "broker/class=device")
    attempt(hook, model="openai/x", metadata={**data["metadata"], "model_group": "sim/edge-4b"})
    with pytest.raises(HTTPException, match="the policy allows sim/edge-4b; found gpt-4o"):
        attempt(hook, model="openai/x", metadata={**data["metadata"], "model_group": "gpt-4o"})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (1, float("inf"))),
        ({"n": 3, "best_of": 5, "max_tokens": 10}, (5, 10)),
        ({"max_tokens": 10, "max_completion_tokens": 900}, (1, 900)),  # A provider may read either.
        ({"n": "7", "max_tokens": 1, "extra_body": {"n": 50, "max_tokens": 9000}}, (50, float("inf"))),
        ({"n": True, "best_of": -2, "max_tokens": 0}, (1, float("inf"))),
        ({"n": 10**400, "max_tokens": [1]}, (1, float("inf"))),
    ],
)
def test_the_answers_that_a_request_wants_are_never_fewer_or_shorter_than_a_provider_may_read(body, expected):
    assert answers_wanted(body) == expected


# ---- what each refusal says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("broker/quality=0.5", "[keys.billing]: may_set.quality allows 0.8 to 0.95; found 0.5; ask for quality in"),
        ("broker/worth=1", "[keys.billing]: may_set.worth_usd allows 0.001 to 0.02; found 1"),
        ("broker/critical", "[keys.billing]: may_set allows quality, worth_usd; found critical; leave critical out"),
        ("broker/check=agreement", "[keys.billing]: may_set.check allows no check; found check 'agreement'"),
        ("broker/class=public", "[keys.billing]: classes allows internal, device; found class 'public'"),
    ],
)
def test_a_refusal_names_rule_entry_what_was_found_and_what_is_allowed(hook, model, said):
    assert f"policy.toml {said}" in refused(hook, BILLING, model)


def test_a_request_must_name_its_class_where_the_key_has_several_and_no_default(hook):
    assert "found a request without a class; name one, as in the model broker/class=public" in refused(hook, RESEARCH)
    assert ask(hook, RESEARCH, "broker/class=public,critical")["metadata"]["broker_decision"].request_class == "public"


def test_where_no_offer_may_answer_the_refusal_names_the_rule(router, bundle):
    poor = BrokerHook(Router.load(bundle, parse_policy(POLICY.replace("0.002", "0.0000001"))))
    said = refused(poor, BILLING, code="400")
    assert "policy.toml [keys.billing] allows a max_usd of 1e-07 for a request" in said
    nowhere = BrokerHook(Router.load(bundle, parse_policy(POLICY.replace('"local", "sim-west"', '"sim-cloud"'))))
    assert "policy.toml [classes.internal] and policy.toml [keys.billing] together" in refused(
        nowhere, BILLING, code="400"
    )


# ---- without a policy ------------------------------------------------------------------------------


def test_without_a_policy_clients_set_quality_a_small_worth_and_checks_and_nothing_is_critical(bundle):
    hook = BrokerHook(Router.load(bundle))
    for model in ("broker", "broker/quality=1", "broker/worth=0.1", "broker/quality=0.9,worth=0"):
        ask(hook, None, model)
    ask(hook, None, metadata={"broker": {"critical": False}})
    assert ask(hook, None, "gpt-4o") is None
    for asked in ({"model": "broker/critical"}, {"metadata": {"broker": {"critical": True}}}):
        assert "quality, worth_usd, check; found critical" in refused(hook, None, **asked)
    for asked in ({"model": "broker/worth=0.11"}, {"metadata": {"broker": {"worth_usd": 1000}}}):
        assert "allows 0 to 0.1" in refused(hook, None, **asked)
    assert "the policy has none" in refused(hook, None, "broker/class=public", code="400")
