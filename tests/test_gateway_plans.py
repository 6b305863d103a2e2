"""Laws of plans at the endpoint: LiteLLM's real proxy asks as the plan says, and the headers say what came of it."""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

import httpx
import openai
import pandas as pd
import test_gateway
from test_gateway import MODELS, PRICES, TOOLS, USAGE, Provider, Proxy, ask, logged_attempts, serving_proxy

from router import DialError, Router
from router.errors import CheckError, PlanError
from router.outcomes import OutcomeLog
from router.plans.checks import CheckModel
from router.request import read_dials

ENTRY = "broker"  # the entry of model_list that LiteLLM chooses for a planned request; nobody asks its provider
CHAT = [{"role": "user", "content": "What is 17 * 23?"}]
WORTH = "worth=0.03"
FIGURES = "schema:sensitivity=0.99,specificity=0.6"
HOOK = test_gateway.HOOK.replace("watch_health=", f"declared_checks=[{FIGURES!r}], watch_health=")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}


def openai_error(status: int) -> openai.APIStatusError:
    response = httpx.Response(status, request=httpx.Request("POST", "http://upstream"))
    return openai.APIStatusError("simulated", response=response, body=None)


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
        folder, more = tmp_path_factory.mktemp("gateway"), {"cancel_on_disconnect": True}
        with serving_proxy(folder, bundle, prices, upstreams, settings, general_settings=more) as running:
            yield running


@pytest.fixture
def client(proxy) -> openai.OpenAI:
    return proxy.client


@pytest.fixture
def providers(upstreams) -> dict[str, Speaker]:
    for provider in upstreams.values():
        provider.status, provider.text, provider.usage, provider.silent_s = 200, "42", USAGE, 0
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
    assert ENTRY not in providers[ENTRY].asked


@pytest.mark.parametrize(("status", "error"), [(503, openai.InternalServerError), (429, openai.RateLimitError)])
def test_where_all_calls_fail_the_client_gets_the_status_of_the_last_and_what_happened(
    client, providers, plan, status, error
):
    for provider in providers.values():
        provider.status = status
    with pytest.raises(error, match="no answer: all calls failed") as caught:
        ask(client, f"broker/check=agreement,{WORTH}", messages=CHAT)
    assert caught.value.status_code == status
    assert all(model in str(caught.value) for model in set(providers[ENTRY].asked))
    assert caught.value.response.headers["x-broker-first-tier"] == plan("agreement").tier


@pytest.mark.parametrize(
    ("failures", "status"),
    [([], 503), ([OSError()], 502), ([OSError(), openai_error(401)], 401), ([openai_error(200)], 502)],
)
def test_the_status_of_a_plan_without_an_answer(failures, status):
    from router.gateway.plans import _upstream_error

    attempts = tuple(SimpleNamespace(error=failure) for failure in failures)
    found = _upstream_error(PlanError("no answer", attempts=attempts))
    assert found.status_code == status and "no answer" in str(found)


def test_a_client_that_leaves_while_its_plan_runs_is_logged_as_left(proxy, client, providers, plan):
    """LiteLLM calls the plan off, since the proxy is set to `cancel_on_disconnect`."""
    expected = plan("agreement")
    for provider in providers.values():
        provider.silent_s = 20
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=2), f"broker/check=agreement,{WORTH}", messages=CHAT)
    deadline = time.monotonic() + 30
    left = pd.DataFrame()
    while left.empty and time.monotonic() < deadline:
        time.sleep(0.2)
        OutcomeLog(proxy.outcomes).compact()
        rows = pd.concat([pd.read_parquet(path) for path in proxy.outcomes.rglob("*.parquet")])
        left = rows[rows.ended == "left"]
    assert set(left.model) == set(providers[ENTRY].asked) and expected.first.offer.model in set(left.model)
    assert left.decision_id.nunique() == 1 and left.attempt_id.isna().sum() == 1
    assert left.latency_ms.between(1000, 20_000).all() and left.propensity.isna().all()


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


def test_checks_in_the_models_name(bundle):
    from router.gateway import BrokerHook

    assert read_dials("broker/check=agreement,check=schema,quality=0.9").checks == ("agreement", "schema")
    with pytest.raises(DialError):
        read_dials("broker/check=agreement,check=agreement")
    with pytest.raises(CheckError):
        BrokerHook(Router.load(bundle), declared_checks=["schema:sensitivity=2,specificity=1"])


def test_a_cached_call_of_a_plan_costs_nothing(client, providers):
    cached = {"extra_body": {"cache": {"use-cache": True}}, "messages": [{**CHAT[0], "content": "What is 17 * 24?"}]}
    first, second = (ask(client, f"broker/check=agreement,{WORTH}", **cached)[1] for _ in range(2))
    n_steps = len(first["x-broker-steps"].split(","))
    assert n_steps > 1 and len(providers[ENTRY].asked) == n_steps
    assert float(first["x-broker-cost-usd"]) > 0 == float(second["x-broker-cost-usd"])
