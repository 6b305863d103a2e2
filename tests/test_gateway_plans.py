"""Laws of plans at the endpoint: LiteLLM's real proxy asks as the plan says, and the headers say what came of it."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

import openai
import pandas as pd
import test_gateway
from test_gateway import MODELS, PRICES, TOOLS, USAGE, Provider, Proxy, ask, logged_attempts, serving_proxy

from router import DialError, Router
from router.errors import CheckError
from router.gateway import BrokerHook
from router.plans.checks import CheckModel
from router.request import read_dials

ENTRY = "broker"  # the entry of model_list that LiteLLM chooses for a planned request; nobody asks its provider
CHAT = [{"role": "user", "content": "What is 17 * 23?"}]
WORTH = "worth=0.03"
FIGURES = "schema:sensitivity=0.99,specificity=0.6"
HOOK = test_gateway.HOOK.replace("dials)", f"dials, max_worth_usd=10, declared_checks=[{FIGURES!r}])")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


@dataclass
class Speaker(Provider):
    """A provider that says a text of its own."""

    text: str = "42"

    def answer(self, path: str, body: dict) -> tuple[str, bytes]:
        name, self.name = self.name, self.text
        try:
            return super().answer(path, body)
        finally:
            self.name = name


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(PRICES)
    return path


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Speaker]]:
    asked: list[str] = []
    with ExitStack() as stack:
        yield {name: stack.enter_context(Speaker(name, asked).serving()) for name in [*MODELS, ENTRY]}


@pytest.fixture(scope="module")
def proxy(bundle, prices, upstreams, tmp_path_factory) -> Iterator[Proxy]:
    settings = {"num_retries": 0, "disable_cooldowns": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_gateway, "HOOK", HOOK)
        with serving_proxy(tmp_path_factory.mktemp("gateway"), bundle, prices, upstreams, settings) as running:
            yield running


@pytest.fixture
def client(proxy) -> openai.OpenAI:
    return proxy.client


@pytest.fixture
def providers(upstreams) -> dict[str, Speaker]:
    for provider in upstreams.values():
        provider.status, provider.text, provider.usage = 200, "42", USAGE
        provider.bodies.clear()
        provider.asked.clear()
    return upstreams


@pytest.fixture
def plan(bundle, prices):
    """The plan that the proxy must make."""
    router = Router.load(bundle)
    router.update_prices(prices)

    def plan(*checks):
        models = [CheckModel.declared_by(FIGURES, 3) if check == "schema" else check for check in checks]
        return router.plan(messages=CHAT, checks=models, worth_usd=0.03)

    return plan


@pytest.mark.parametrize("stream", [False, True])
def test_tiers_that_agree_answer_and_the_headers_say_so(proxy, client, providers, plan, stream):
    expected = plan("agreement")
    assert not expected.is_direct
    result = expected.run(lambda offer: "42")
    text, headers = ask(client, f"broker/check=agreement,{WORTH}", messages=CHAT, stream=stream, temperature=0.5)
    assert text == "42"
    asked = [attempt.offer.model for attempt in result.attempts]
    assert sorted(providers[ENTRY].asked) == sorted(asked)
    assert all(body["temperature"] == 0.5 and not body.get("stream") for body in providers[asked[0]].bodies)
    assert headers["x-broker-steps"] == ",".join(attempt.tier for attempt in result.attempts)
    assert headers["x-broker-tier"] == result.tier and headers["x-broker-model"] == result.offer.model
    assert headers["x-broker-reason"] == result.reason and headers["x-broker-first-tier"] == expected.tier
    assert "accepted" in headers["x-broker-stream"]
    paid = sum(attempt.offer.usd_per_mtok_input + attempt.offer.usd_per_mtok_output for attempt in result.attempts)
    assert float(headers["x-broker-cost-usd"]) == pytest.approx(paid / 1e6, abs=1e-9)
    rows = logged_attempts(proxy, headers["x-broker-decision-id"], len(asked))
    assert {row["model"] for row in rows} == set(asked) and len({row["answer"] for row in rows}) == 1
    assert all(row["ended"] == "complete" and pd.isna(row["propensity"]) for row in rows)


def test_a_failed_call_is_replaced_and_the_answer_comes(client, providers, plan):
    first = plan("agreement").first.offer.model
    providers[first].status = 500
    text, headers = ask(client, f"broker/check=agreement,{WORTH}", messages=CHAT)
    assert text == "42" and "failed: InternalServerError" in headers["x-broker-reason"]
    for provider in providers.values():
        provider.status = 500
    with pytest.raises(openai.InternalServerError, match="no answer: all calls failed"):
        ask(client, f"broker/check=agreement,{WORTH}", messages=CHAT)
    assert ENTRY not in providers[ENTRY].asked


def test_an_answer_that_does_not_fit_the_response_format_is_asked_for_again(client, providers, plan):
    expected = plan("schema")
    assert not expected.is_direct
    providers[expected.first.offer.model].text = "It is Oslo."
    for model in MODELS:
        if model != expected.first.offer.model:
            providers[model].text = '{"city":"Oslo"}'
    text, headers = ask(client, f"broker/check=schema,{WORTH}", messages=CHAT, response_format=RESPONSE_FORMAT)
    assert text.replace(" ", "") == '{"city":"Oslo"}' and "schema fails" in headers["x-broker-reason"]
    providers[ENTRY].asked.clear()
    providers[expected.first.offer.model].text = '{"city":"Bergen"}'
    text, headers = ask(client, f"broker/check=schema,{WORTH}", messages=CHAT, response_format=RESPONSE_FORMAT)
    assert "Bergen" in text and providers[ENTRY].asked == [expected.first.offer.model]


@pytest.mark.parametrize(
    ("model", "more", "why"),
    [
        ("broker/check=agreement", {"tools": TOOLS}, "the request has tools"),
        ("broker/check=schema", {}, "no response_format"),
        ("broker/check=schema", {"response_format": {"type": "text"}}, "no response_format"),
        ("broker/check=agreement", {"n": 2}, "several answers"),
    ],
)
def test_what_cannot_be_planned_is_routed_and_says_why(client, providers, model, more, why):
    raw = client.chat.completions.with_raw_response.create(model=model, messages=CHAT, **more)
    assert len(providers[ENTRY].asked) == 1
    assert raw.headers["x-broker-reason"].startswith("not planned, since") and why in raw.headers["x-broker-reason"]
    assert "x-broker-steps" not in raw.headers


@pytest.mark.parametrize(
    ("model", "more", "expected"),
    [
        ("broker/check=tests", {}, "expected agreement or schema"),
        ("broker/check=", {}, "no dial"),
        ("broker/check=schema", {"response_format": {"type": "json_schema", "json_schema": {}}}, "schema"),
    ],
)
def test_a_check_that_cannot_be_made_is_a_400(client, providers, model, more, expected):
    with pytest.raises(openai.BadRequestError, match=expected):
        ask(client, model, **more)
    assert not providers[ENTRY].asked


def test_checks_in_the_models_name():
    assert read_dials("broker/check=agreement,check=schema,quality=0.9").checks == ("agreement", "schema")
    with pytest.raises(DialError):
        read_dials("broker/check=agreement,check=agreement")
    with pytest.raises(CheckError):
        BrokerHook(None, declared_checks=["schema:sensitivity=2,specificity=1"])


def test_a_cached_call_of_a_plan_costs_nothing(client, providers):
    cached = {"extra_body": {"cache": {"use-cache": True}}, "messages": [{**CHAT[0], "content": "What is 17 * 24?"}]}
    first, second = (ask(client, f"broker/check=agreement,{WORTH}", **cached)[1] for _ in range(2))
    n_steps = len(first["x-broker-steps"].split(","))
    assert n_steps > 1 and len(providers[ENTRY].asked) == n_steps
    assert float(first["x-broker-cost-usd"]) > 0 == float(second["x-broker-cost-usd"])
