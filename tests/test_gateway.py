"""Laws of the endpoint: LiteLLM's real proxy with the hook, between simulated providers and the openai client."""

import asyncio
import importlib.util
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from router import Router
from router.outcomes import OutcomeLog
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import parse_tiers

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

import httpx
import openai
import pandas as pd
import yaml

EXAMPLE = Path(__file__).parent.parent / "examples" / "litellm"
MARKER = "Zanzibar-4711"
PROMPT = f"Prove that the square root of 2 is irrational, and sign with {MARKER}."
CHAT = [{"role": "user", "content": PROMPT}]
LONG_CHAT = [
    {
        "role": "user" if turn % 2 == 0 else "assistant",
        "content": f"Turn {turn}: {'some words of a talk. ' * 20}{MARKER}",
    }
    for turn in range(200)
]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}]
START_LIMIT_S = 120

# worth=0 takes the cheapest tier, distilled; its cheapest offer knows no tools and holds no long chat.
# Distilled alone is reserved for critical requests, so that a tier that is not has the higher success.
PRICES = """
[[tiers]]
name = "edge"
offers = [{ model = "edge", provider = "p", region = "r", context_window = 32768, usd_per_mtok_input = 0.9, usd_per_mtok_output = 0.9 }]
[[tiers]]
name = "distilled"
critical = true
offers = [
  { model = "distilled-dear", provider = "p", region = "r", context_window = 65536, usd_per_mtok_input = 0.012, usd_per_mtok_output = 0.048, capabilities = ["tools"] },
  { model = "distilled-cheap", provider = "q", region = "r", context_window = 8192, usd_per_mtok_input = 0.010, usd_per_mtok_output = 0.040, usd_per_mtok_cached_input = 0.001, usd_per_mtok_cache_write = 0.0125 },
]
[[tiers]]
name = "frontier"
offers = [
  { model = "frontier-dear", provider = "p", region = "r", context_window = 262144, usd_per_mtok_input = 1.50, usd_per_mtok_output = 6.00, capabilities = ["tools", "vision"] },
  { model = "frontier-cheap", provider = "q", region = "r", context_window = 262144, usd_per_mtok_input = 1.25, usd_per_mtok_output = 5.00, capabilities = ["tools"] },
]
"""  # noqa: E501
MODELS = re.findall(r'model = "([^"]+)"', PRICES)
OUTSIDER = "outsider"  # a model of LiteLLM that is no offer
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}

POLICY = """
[others]
other_models = true
may_set = { quality = true, worth_usd = [0, 10], critical = true, check = true }
"""

HOOK = """
import signal
from router import Router
from router.gateway import BrokerHook
from router.outcomes import OutcomeLog
from router.policy_file import parse_policy

router = Router.load({bundle!r}, parse_policy({policy!r}))
router.update_prices({prices!r})
signal.signal(signal.SIGHUP, lambda *_: router.update_prices({prices!r}))
broker = BrokerHook(router, OutcomeLog({log!r}, keep_prompts=True), watch_health={watch_health})
"""


# ---- simulated providers ---------------------------------------------------------------------------


@dataclass
class Provider:
    """An OpenAI-compatible upstream that answers with its own name, or fails with a status."""

    name: str
    asked: list[str]  # of all providers, in the order of arrival
    status: int = 200
    retry_after: str | None = None
    usage: dict = field(default_factory=lambda: USAGE)
    silent_s: float = 0  # before the first byte
    pause_s: float = 0  # after each event of a stream
    cut_after: int | None = None  # events of a stream, after which the connection breaks
    says_length: bool = True  # else a connection that breaks looks like one that has ended
    bodies: list[dict] = field(default_factory=list)
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator["Provider"]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                provider.asked.append(provider.name)
                provider.bodies.append(body)
                content_type, payload = provider.answer(self.path, body)
                stopping.wait(provider.silent_s)
                with suppress(ConnectionError):  # Who waited may have left.
                    self.send_response(provider.status)
                    self.send_header("Content-Type", content_type)
                    if provider.retry_after:
                        self.send_header("Retry-After", provider.retry_after)
                    if provider.says_length:
                        self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    one_by_one = provider.pause_s or provider.cut_after is not None
                    for event in payload.split(b"\n\n")[: provider.cut_after or -1] if one_by_one else []:
                        self.wfile.write(event + b"\n\n")
                        stopping.wait(provider.pause_s)
                    if not one_by_one:
                        self.wfile.write(payload)

            def log_message(self, *_) -> None:
                pass

        stopping = threading.Event()
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            stopping.set()
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, path: str, body: dict) -> tuple[str, bytes]:
        if self.status != 200:
            return "application/json", json.dumps(
                {"error": {"message": f"{self.name} is simulating a failure"}}
            ).encode()
        head = {"id": "1", "created": 1, "model": body["model"]}
        if not path.endswith("/chat/completions"):
            choices = [{"index": 0, "text": self.name, "finish_reason": "stop"}]
            answer = json.dumps({**head, "object": "text_completion", "choices": choices})
            if body.get("stream"):
                return "text/event-stream", f"data: {answer}\n\ndata: [DONE]\n\n".encode()
            return "application/json", answer.encode()
        message = {"role": "assistant", "content": self.name}
        if "tools" in body:
            function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps({"by": self.name})}
            message = {
                **message,
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": function}],
            }
        if not body.get("stream"):
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            return "application/json", json.dumps(
                {**head, "object": "chat.completion", "choices": choices, "usage": self.usage}
            ).encode()
        deltas = [{"role": "assistant", "content": ""}, *({"content": letter} for letter in self.name), {}]
        events = [
            {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"} for delta in deltas
        ]  # one letter at a time
        chunks: list[dict] = [{"choices": [event]} for event in events]
        if (body.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": self.usage})
        lines = [json.dumps({**head, "object": "chat.completion.chunk", **chunk}) for chunk in chunks]
        return "text/event-stream", "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]).encode()


# ---- the proxy -------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """LiteLLM's proxy in a process of its own, and a client that calls it."""

    client: openai.OpenAI
    process: subprocess.Popen
    log: Path

    @property
    def outcomes(self) -> Path:
        return self.log.with_name("outcomes")


@contextmanager
def running_proxy(config: Path, log: Path, **environment: str) -> Iterator[Proxy]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key = f"sk-{secrets.token_hex(32)}"
    variables = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output, ExitStack() as stack:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("litellm"), "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "NO_PROXY": "127.0.0.1", **variables, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        wait_until_alive(f"http://127.0.0.1:{port}", process, log)
        http_client = stack.enter_context(httpx.Client(trust_env=False))
        base_url = f"http://127.0.0.1:{port}/v1"
        client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30, http_client=http_client)
        yield Proxy(client, process, log)


def wait_until_alive(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with opener.open(f"{url}/health/liveliness", timeout=1):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    pytest.fail(f"the proxy did not start: {log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def prices(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prices") / "prices.toml"
    path.write_text(PRICES)
    return path


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Provider]]:
    asked: list[str] = []
    with ExitStack() as stack:
        yield {name: stack.enter_context(Provider(name, asked).serving()) for name in [*MODELS, OUTSIDER]}


@contextmanager
def serving_proxy(
    folder: Path,
    bundle: Path,
    prices: Path,
    upstreams: dict[str, Provider],
    router_settings: dict,
    *,
    general_settings: Mapping[str, object] = MappingProxyType({}),
    watch_health: bool = False,
) -> Iterator[Proxy]:
    """A proxy with the hook between the client and the providers.

    watch_health: without it, what one test does to a provider says nothing to the next test.
    """
    offers = {
        name: {"model": f"openai/{name}", "api_base": provider.url, "api_key": "x"}
        for name, provider in upstreams.items()
    }
    config = {  # JSON is YAML too
        "model_list": [{"model_name": name, "litellm_params": params} for name, params in offers.items()],
        "litellm_settings": {
            "callbacks": "broker_hook.broker",
            "cache": True,
            "cache_params": {"type": "local", "mode": "default_off"},
        },
        "router_settings": router_settings,
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", **general_settings},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "broker_hook.py").write_text(
        HOOK.format(
            bundle=str(bundle),
            prices=str(prices),
            log=str(folder / "outcomes"),
            watch_health=watch_health,
            policy=POLICY,
        )
    )
    with running_proxy(folder / "config.yaml", folder / "proxy.log") as running:
        yield running


@pytest.fixture(scope="module")
def proxy(bundle, prices, upstreams, tmp_path_factory) -> Iterator[Proxy]:
    router_settings = {"num_retries": 0, "disable_cooldowns": True}
    with serving_proxy(tmp_path_factory.mktemp("gateway"), bundle, prices, upstreams, router_settings) as running:
        yield running


@pytest.fixture
def client(proxy) -> openai.OpenAI:
    return proxy.client


@pytest.fixture
def providers(upstreams) -> dict[str, Provider]:
    """The providers, healthy and not asked yet."""
    for provider in upstreams.values():
        provider.status, provider.retry_after = 200, None
        provider.usage = USAGE
        provider.silent_s = provider.pause_s = 0
        provider.cut_after, provider.says_length = None, True
        provider.bodies.clear()
        provider.asked.clear()
    return upstreams


@pytest.fixture
def reference(bundle, prices) -> Router:
    """A router that decides as the proxy's must."""
    router = Router.load(bundle)
    router.update_prices(prices)
    return router


def ask(client: openai.OpenAI, model: str = "broker", **arguments) -> tuple[str, httpx.Headers]:
    """The text of the answer, put together where it is streamed, and the headers."""
    raw = client.chat.completions.with_raw_response.create(**{"model": model, "messages": CHAT, **arguments})
    answer = raw.parse()
    if arguments.get("stream"):
        return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices), raw.headers
    return answer.choices[0].message.content, raw.headers


def logged_attempts(proxy: Proxy, decision_id: str, n_rows: int = 1) -> list[dict]:
    """All rows of a decision, its own first, once the proxy has told how so many attempts ended."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        OutcomeLog(proxy.outcomes).compact()
        rows = pd.concat([pd.read_parquet(path) for path in proxy.outcomes.rglob("*.parquet")])
        found = rows[rows.decision_id == decision_id].sort_values(["attempt_id", "timestamp"], na_position="first")
        if found.ended.notna().sum() >= n_rows:
            return found.to_dict("records")
        time.sleep(0.2)
    raise AssertionError("the proxy did not tell what became of the request")


def logged(proxy: Proxy, decision_id: str) -> dict:
    """The row that training reads of a decision, once the proxy has told what became of it."""
    while True:
        row = logged_attempts(proxy, decision_id)[0]  # until its own row is there, that of an attempt which failed
        if pd.isna(row["attempt_id"]) and row["ended"] is not None:
            return row
        time.sleep(0.2)


# ---- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "metadata", "dials"),
    [
        ("broker", None, {}),
        ("broker/quality=0.9", None, {"quality": 0.9}),
        ("broker/worth=0.002", None, {"worth_usd": 0.002}),
        ("broker/quality=0.8,worth=0.002", None, {"quality": 0.8, "worth_usd": 0.002}),
        ("broker/critical", None, {"critical": True}),
        ("broker", {"broker": {"worth_usd": 0}}, {"worth_usd": 0}),
        ("broker/quality=1", {"broker": {"quality": 0.8}}, {"quality": 0.8}),
        ("broker/critical", {"broker": {"critical": False, "worth_usd": 0}}, {"worth_usd": 0}),
        ("broker/quality=0.8", {"broker": {"worth_usd": 0.002}, "mine": "x"}, {"quality": 0.8, "worth_usd": 0.002}),
    ],
)
def test_the_routers_decision_answers_and_says_so(client, providers, reference, name, metadata, dials, stream):
    text, headers = ask(client, name, stream=stream, **({"metadata": metadata} if metadata else {}))
    decision = reference.route(messages=CHAT, **dials)
    assert text == decision.offer.model
    assert [provider for provider in MODELS if providers[provider].bodies] == [decision.offer.model]
    assert headers["x-broker-tier"] == decision.tier
    assert headers["x-broker-model"] == headers["x-litellm-model-group"] == decision.offer.model
    assert (headers["x-broker-first-tier"], headers["x-broker-first-model"]) == (decision.tier, decision.offer.model)
    assert headers["x-broker-reason"] == decision.reason
    assert float(headers["x-broker-expected-cost-usd"]) == pytest.approx(decision.cost_usd[decision.tier], abs=1e-9)
    assert headers["x-broker-decision-id"]


def test_the_cases_above_reach_more_than_one_tier(reference):
    dials = [{}, {"worth_usd": 0}, {"critical": True}]
    assert {reference.route(messages=CHAT, **each).tier for each in dials} >= {"distilled", "frontier"}


def test_every_decision_has_an_id_of_its_own(client, providers):
    assert len({ask(client)[1]["x-broker-decision-id"] for _ in range(3)}) == 3


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT]])
def test_a_text_completion_is_routed_by_its_prompt(client, providers, reference, prompt):
    raw = client.completions.with_raw_response.create(model="broker/quality=0.9", prompt=prompt)
    decision = reference.route(PROMPT, quality=0.9)
    assert raw.parse().choices[0].text == raw.headers["x-broker-model"] == decision.offer.model
    assert raw.headers["x-broker-reason"] == decision.reason


def test_a_request_with_tools_goes_to_an_offer_that_knows_tools(client, providers):
    answer = client.chat.completions.create(model="broker/worth=0", messages=CHAT, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("clock", {"by": "distilled-dear"})
    assert providers["distilled-dear"].bodies[0]["tools"] == TOOLS


def test_a_long_chat_goes_whole_to_an_offer_that_holds_it(client, providers):
    text, headers = ask(client, "broker/worth=0", messages=LONG_CHAT)
    assert text == headers["x-broker-model"] == "distilled-dear"
    assert providers["distilled-dear"].bodies[0]["messages"] == LONG_CHAT


def test_a_prompt_that_fits_no_offer_goes_to_the_fallback_tier_and_says_why(client, providers):
    text, headers = ask(client, "broker/worth=0", messages=[{"role": "user", "content": "word " * 400_000}])
    assert text == headers["x-broker-model"] == "frontier-cheap"
    assert headers["x-broker-reason"].startswith("fallback to frontier: no tier is eligible")
    assert "x-broker-expected-cost-usd" not in headers


def test_another_model_passes_untouched(client, providers):
    text, headers = ask(client, "edge", metadata={"broker": {"quality": 7}, "broker_decision": "mine"})
    assert text == "edge"
    assert not [name for name in headers if name.startswith("x-broker")]
    assert providers["edge"].bodies == [{"model": "edge", "messages": CHAT}]


def test_the_provider_sees_its_own_model_and_nothing_of_the_broker(client, providers):
    ask(client, "broker/worth=0", metadata={"broker": {"worth_usd": 0}}, temperature=0.5)
    assert providers["distilled-cheap"].bodies == [{"model": "distilled-cheap", "messages": CHAT, "temperature": 0.5}]


@pytest.mark.parametrize(
    ("name", "metadata", "found", "expected"),
    [
        ("broker/quality=1.5", None, "quality is 1.5", "at most 1"),
        ("broker/quality=nan", None, "quality is nan", "at most 1"),
        ("broker/quality=high", None, "'quality=high'", "quality=Q"),
        ("broker/worth=-1", None, "worth_usd is -1", "from 0 to"),
        ("broker/", None, "''", "quality=Q"),
        ("broker/cheap", None, "'cheap'", "critical"),
        ("broker/critical=true", None, "'critical=true'", "critical"),
        ("broker/quality=0.9,quality=0.8", None, "quality stands there more than once", "quality=Q"),
        ("broker", {"broker": {"quality": "0.9"}}, "quality is '0.9'", "a number"),
        ("broker", {"broker": {"quality": True}}, "quality is True", "a number"),
        ("broker", {"broker": {"critical": 1}}, "critical is 1", "true or false"),
        ("broker", {"broker": {"worth": 1}}, "{'worth': 1}", "worth_usd"),
        ("broker", {"broker": "quality=0.9"}, "'quality=0.9'", "an object"),
    ],
)
def test_a_bad_dial_is_a_400_that_says_found_and_expected(client, providers, name, metadata, found, expected):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, name, **({"metadata": metadata} if metadata else {}))
    assert found in refusal.value.message
    assert expected in refusal.value.message.split("expected", 1)[1]
    assert not any(provider.bodies for provider in providers.values())


def test_a_call_that_is_no_completion_is_a_400(client, providers):
    with pytest.raises(openai.BadRequestError, match="chat completions and text completions"):
        client.embeddings.create(model="broker", input="x")


# ---- providers that fail ---------------------------------------------------------------------------


def order_to_try(reference: Router) -> list[str]:
    """The offers for CHAT at worth 0: those of distilled, then of the better tiers, cheapest first in each."""
    offers = {
        "distilled": ["distilled-cheap", "distilled-dear"],
        "edge": ["edge"],
        "frontier": ["frontier-cheap", "frontier-dear"],
    }
    success = reference.route(messages=CHAT, worth_usd=0).success
    better = [tier for tier in sorted(success, key=success.get) if success[tier] > success["distilled"]]
    assert "frontier" in better
    return [name for tier in ["distilled", *better] for name in offers[tier]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 429])
@pytest.mark.parametrize("n_failing", [1, 2, 3])
def test_where_offers_fail_the_next_one_answers(client, providers, reference, n_failing, status, stream):
    order = order_to_try(reference)
    for name in order[:n_failing]:
        providers[name].status = status
    text, headers = ask(client, "broker/worth=0", stream=stream)
    assert text == headers["x-litellm-model-group"] == order[n_failing]
    assert providers[text].asked == order[: n_failing + 1]
    assert headers["x-broker-model"] == text and headers["x-broker-tier"] == text.partition("-")[0]
    assert (headers["x-broker-first-tier"], headers["x-broker-first-model"]) == ("distilled", "distilled-cheap")


# ---- how attempts end ------------------------------------------------------------------------------


def ends(rows: list[dict]) -> dict[str, str]:
    return {row["model"]: row["ended"] for row in rows}


@pytest.mark.parametrize("stream", [False, True])
def test_each_failed_attempt_is_a_row_beside_that_of_the_decision(proxy, client, providers, reference, stream):
    order = order_to_try(reference)
    for name, status in zip(order, (500, 429), strict=False):
        providers[name].status = status
    _, headers = ask(client, "broker/worth=0", stream=stream)
    decision, *attempts = logged_attempts(proxy, headers["x-broker-decision-id"], 3)
    assert ends([decision, *attempts]) == {order[0]: "failed", order[1]: "failed", order[2]: "complete"}
    assert (decision["model"], decision["prompt"]) == (order[2], PROMPT) and pd.isna(decision["attempt_id"])
    assert len({row["attempt_id"] for row in attempts}) == 2
    for row in attempts:
        assert row["tier"] == "distilled" and row["provider"] in "pq" and row["latency_ms"] > 0
        assert pd.isna([row[name] for name in ("prompt", "propensity", "cost_usd", "output_tokens")]).all()


def test_where_all_offers_fail_each_is_logged_as_failed_and_the_decision_has_no_end(
    proxy, client, providers, reference
):
    for provider in providers.values():
        provider.status = 500
    with pytest.raises(openai.InternalServerError) as failure:
        ask(client, "broker/worth=0")
    order = order_to_try(reference)
    rows = logged_attempts(proxy, failure.value.response.headers["x-broker-decision-id"], len(order))
    assert ends(rows[1:]) == dict.fromkeys(order, "failed") and pd.isna(rows[0]["ended"])


@pytest.mark.parametrize("n_failing", [0, 1])
@pytest.mark.parametrize("says_length", [True, False])
def test_a_stream_that_the_provider_cuts_is_logged_with_what_came_of_it(
    proxy, client, providers, reference, n_failing, says_length
):
    """Where the provider says no length, its stream ends without a reason, and LiteLLM tells the client no error."""
    order = order_to_try(reference)
    for name in order[:n_failing]:
        providers[name].status = 500
    cut = providers[order[n_failing]]
    cut.cut_after, cut.pause_s, cut.says_length = 6, 0.05, says_length
    raw = client.chat.completions.with_raw_response.create(model="broker/worth=0", messages=CHAT, stream=True)
    with pytest.raises(openai.APIError) if says_length else nullcontext():
        list(raw.parse())
    [row, *attempts] = logged_attempts(proxy, raw.headers["x-broker-decision-id"], n_failing + 1)
    assert ends(attempts) == dict.fromkeys(order[:n_failing], "failed")
    assert (row["ended"], row["model"], row["tokens_estimated"]) == ("cut", cut.name, True)
    assert row["input_tokens"] == round(reference.route(messages=CHAT).context_tokens)
    assert 1 <= row["output_tokens"] < 9 and row["cost_usd"] > 0


def test_a_stream_that_breaks_before_its_first_word_is_cut_and_the_next_offer_answers(
    proxy, client, providers, reference
):
    order = order_to_try(reference)
    providers[order[0]].cut_after = 1
    text, headers = ask(client, "broker/worth=0", stream=True)
    assert text == order[1]
    rows = logged_attempts(proxy, headers["x-broker-decision-id"], 2)
    assert ends(rows) == {order[0]: "cut", order[1]: "complete"} and rows[0]["model"] == order[1]


@pytest.mark.parametrize("n_words", [0, 5])
def test_a_client_that_leaves_a_stream_is_logged_with_what_it_got(proxy, client, providers, reference, n_words):
    """Its tokens are estimated by the bundle's tokenizer, and are no answer's length."""
    providers["distilled-cheap"].pause_s = 0.3
    prompt = "word " * 1000
    body = {"model": "broker/worth=0", "messages": [{"role": "user", "content": prompt}], "stream": True}
    with client.with_streaming_response.chat.completions.create(**body) as stream:
        decision_id = stream.headers["x-broker-decision-id"]
        lines = stream.iter_lines()
        for _ in range(2 * n_words):
            next(lines)
    [row] = logged_attempts(proxy, decision_id)
    assert (row["ended"], row["model"], row["tokens_estimated"]) == ("left", "distilled-cheap", True)
    assert row["input_tokens"] > 900
    assert row["output_tokens"] < 10 if n_words else pd.isna(row["output_tokens"]) or row["output_tokens"] < 3


@pytest.mark.parametrize("stream", [False, True])
def test_no_log_of_a_client_keeps_no_outcome_out_of_the_log(proxy, client, providers, stream):
    _, headers = ask(client, "broker/worth=0", stream=stream, extra_body={"no-log": True})
    row = logged(proxy, headers["x-broker-decision-id"])
    assert row["ended"] == "complete" and row["cost_usd"] > 0


def test_a_text_completion_is_one_attempt(proxy, client, providers):
    for stream in (False, True):
        raw = client.completions.with_raw_response.create(model="broker/worth=0", prompt=PROMPT, stream=stream)
        answer = raw.parse()
        if stream:
            list(answer)
        [row] = logged_attempts(proxy, raw.headers["x-broker-decision-id"])
        assert row["ended"] == "complete" and row["output_tokens"] > 0


# ---- what becomes of a decision --------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_decided_and_what_became_of_it_is_in_the_outcome_log(proxy, client, providers, reference, stream):
    _, headers = ask(client, "broker/worth=0", stream=stream)
    row, offer = logged(proxy, headers["x-broker-decision-id"]), reference.route(messages=CHAT, worth_usd=0).offer
    assert (row["model"], row["provider"], row["tier"]) == (offer.model, offer.provider, "distilled")
    assert row["propensity"] == 1 and row["prompt"] == PROMPT and row["latency_ms"] > 0
    usd = row["input_tokens"] * offer.usd_per_mtok_input + row["output_tokens"] * offer.usd_per_mtok_output
    assert row["cost_usd"] == pytest.approx(usd / 1e6) and row["cost_usd"] > 0
    assert not row["cache_hit"] and pd.isna(row["cached_input_tokens"]) and pd.isna(row["reasoning_tokens"])
    # The simulated providers do not count what they stream unless they are asked to.
    assert row["tokens_estimated"] == stream
    OutcomeLog(proxy.outcomes).outcome(row["decision_id"], correct=True)
    assert logged(proxy, row["decision_id"])["correct"] == 1


def test_tokens_that_nobody_counted_are_estimated_by_the_bundles_tokenizer(proxy, client, providers, reference):
    text, headers = ask(client, "broker/worth=0", stream=True)
    row, encoder = logged(proxy, headers["x-broker-decision-id"]), reference.bundle.manifest.encoder
    assert row["tokens_estimated"]
    assert row["input_tokens"] == round(reference.route(messages=CHAT).context_tokens) > 1
    [ids] = reference.bundle.token_ids([text])
    assert row["output_tokens"] == round(encoder.context_tokens(len(text), len(ids))) > 0


def test_a_stream_that_is_asked_for_its_usage_has_it(proxy, client, providers):
    providers["distilled-cheap"].usage = {"prompt_tokens": 31, "completion_tokens": 7, "total_tokens": 38}
    _, headers = ask(client, "broker/worth=0", stream=True, stream_options={"include_usage": True})
    row = logged(proxy, headers["x-broker-decision-id"])
    assert (row["input_tokens"], row["output_tokens"], row["tokens_estimated"]) == (31, 7, False)


@pytest.mark.parametrize("stream", [False, True])
def test_cached_and_reasoning_tokens_are_logged_and_cached_ones_have_their_price(proxy, client, providers, stream):
    providers["distilled-cheap"].usage = {
        "prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050,
        "prompt_tokens_details": {"cached_tokens": 800}, "completion_tokens_details": {"reasoning_tokens": 40},
    }  # fmt: skip
    arguments = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    _, headers = ask(client, "broker/worth=0", **arguments)
    row = logged(proxy, headers["x-broker-decision-id"])
    assert (row["input_tokens"], row["cached_input_tokens"]) == (1000, 800)
    assert (row["output_tokens"], row["reasoning_tokens"]) == (50, 40)
    assert row["cost_usd"] == pytest.approx((200 * 0.010 + 800 * 0.001 + 50 * 0.040) / 1e6)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_from_the_response_cache_costs_nothing_and_has_no_tokens(proxy, client, providers, stream):
    messages = [{"role": "user", "content": f"Say it once, stream is {stream}."}]
    rows = []
    for _ in range(2):
        arguments = {"messages": messages, "stream": stream, "extra_body": {"cache": {"use-cache": True}}}
        _, headers = ask(client, "broker/worth=0", **arguments)
        rows.append(logged(proxy, headers["x-broker-decision-id"]))
        time.sleep(1)  # LiteLLM stores the answer after it has given it.
    first, second = rows
    assert len(providers["distilled-cheap"].bodies) == 1
    assert first["cost_usd"] > 0 and not first["cache_hit"]
    assert second["cost_usd"] == 0 and second["cache_hit"] and second["model"] == "distilled-cheap"
    assert pd.isna(second["input_tokens"]) and pd.isna(second["output_tokens"])


def test_an_image_goes_to_an_offer_with_vision_and_says_where_there_is_no_text(client, providers):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    for content in ([image, {"type": "text", "text": "What is this?"}], [image]):
        text, headers = ask(client, "broker/worth=0", messages=[{"role": "user", "content": content}])
        assert text == headers["x-broker-model"] == "frontier-dear"
        assert ("no text found" in headers["x-broker-reason"]) == (len(content) == 1)


def test_the_answer_of_another_tier_is_logged_as_that_tiers_and_without_a_propensity(
    proxy, client, providers, reference
):
    order = order_to_try(reference)
    for name in order[:2]:
        providers[name].status = 500
    _, headers = ask(client, "broker/worth=0")
    deadline = time.monotonic() + 30
    while (row := logged(proxy, headers["x-broker-decision-id"]))["model"] != order[2]:
        assert time.monotonic() < deadline  # what came of a failed call may be told first
    assert row["tier"] != "distilled" and row["propensity"] != row["propensity"]


def test_where_all_offers_fail_each_was_asked_once_and_the_error_says_the_decision(client, providers, reference):
    for provider in providers.values():
        provider.status = 500
    with pytest.raises(openai.InternalServerError) as failure:
        ask(client, "broker/worth=0")
    assert providers["edge"].asked == order_to_try(reference)
    assert failure.value.response.headers["x-broker-tier"] == "distilled"


def test_a_critical_request_never_leaves_the_tiers_reserved_for_it(client, providers):
    for name in ("distilled-cheap", "distilled-dear"):
        providers[name].status = 500
    with pytest.raises(openai.InternalServerError):
        ask(client, "broker/critical")
    assert providers["edge"].asked == ["distilled-cheap", "distilled-dear"]


def test_a_long_chat_falls_back_to_offers_that_hold_it(client, providers):
    providers["distilled-dear"].status = 500
    assert ask(client, "broker/worth=0", messages=LONG_CHAT)[0] == "frontier-cheap"
    assert providers["distilled-dear"].asked == ["distilled-dear", "frontier-cheap"]


def test_a_request_with_tools_falls_back_to_offers_that_know_tools(client, providers):
    providers["distilled-dear"].status = 500
    answer = client.chat.completions.create(model="broker/worth=0", messages=CHAT, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"by": "frontier-cheap"}


def test_with_the_examples_settings_a_hanging_offer_holds_few_requests_and_long_answers_are_whole(
    bundle, prices, providers, tmp_path
):
    settings = yaml.safe_load((EXAMPLE / "config.yaml").read_text())["router_settings"]
    assert settings["stream_timeout"] == 3
    with serving_proxy(tmp_path, bundle, prices, providers, settings) as proxy:
        hanging, next_one = providers["distilled-cheap"], providers["distilled-dear"]
        hanging.silent_s = 20
        seconds = []
        for _ in range(8):
            start = time.monotonic()
            assert ask(proxy.client, "broker/worth=0", stream=True)[0] == "distilled-dear"
            seconds.append(time.monotonic() - start)
        assert len(hanging.bodies) == settings["allowed_fails"] + 1
        assert sum(each > 2 for each in seconds) == len(hanging.bodies) and max(seconds) < 10
        assert ask(proxy.client, "broker/worth=0")[0] == "distilled-dear", "the cooldown is one for all requests"
        next_one.silent_s = 4  # An answer in one piece that takes longer than a stream may be silent.
        assert ask(proxy.client, "broker/worth=0")[0] == "distilled-dear"
        next_one.silent_s, next_one.pause_s = 0, 0.3
        start = time.monotonic()
        assert ask(proxy.client, "broker/worth=0", stream=True)[0] == "distilled-dear"
        assert time.monotonic() - start > settings["stream_timeout"]
        assert len(hanging.bodies) == settings["allowed_fails"] + 1


def test_an_offer_that_fails_or_throttles_loses_its_traffic_and_gets_it_back(bundle, prices, providers, tmp_path):
    settings = {"num_retries": 0, "disable_cooldowns": True}
    with serving_proxy(tmp_path, bundle, prices, providers, settings, watch_health=True) as proxy:
        cheap = providers["distilled-cheap"]
        ask(proxy.client, "broker/worth=0")  # The first request of a proxy takes long.
        cheap.bodies.clear()
        cheap.status, cheap.retry_after = 429, "3"
        start = time.monotonic()
        answered = [ask(proxy.client, "broker/worth=0")[0] for _ in range(3)]
        assert set(answered) == {"distilled-dear"}
        assert len(cheap.bodies) <= 1 + (time.monotonic() - start) // 3, "it has said when it wants to be asked again"
        cheap.status = 200
        deadline = time.monotonic() + 60
        n_answered = 0  # One probe answers first, then a growing share of the requests is answered by it.
        while n_answered < 6:
            assert time.monotonic() < deadline
            n_answered += ask(proxy.client, "broker/worth=0")[0] == "distilled-cheap"
            time.sleep(0.05)
        cheap.bodies.clear()
        cheap.status, cheap.retry_after = 500, None
        start = time.monotonic()
        answered = [ask(proxy.client, "broker/worth=0")[0] for _ in range(8)]
        assert set(answered) == {"distilled-dear"}
        assert len(cheap.bodies) <= 3 + (time.monotonic() - start) // 5, "it is asked until it has failed three times"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fallbacks", [OUTSIDER]),
        ("fallbacks", []),
        ("fallbacks", [{"model": OUTSIDER, "messages": CHAT}]),
        ("context_window_fallbacks", [{"distilled-cheap": [OUTSIDER]}]),
        ("content_policy_fallbacks", [{"distilled-cheap": [OUTSIDER]}]),
        ("max_fallbacks", 50),
        ("num_retries", 3),
        ("max_retries", 3),
        ("model_group_retry_policy", {"distilled-cheap": {"InternalServerErrorRetries": 3}}),
        ("specific_deployment", True),
        ("custom_llm_provider", "anthropic"),
        ("aws_region_name", "us-east-1"),
        ("vertex_location", "us-east1"),
        ("region_name", "us-east-1"),
        ("provider", {"order": ["elsewhere"]}),
        ("models", [OUTSIDER]),
        ("api_key", "sk-mine"),
        ("extra_body", {"model": OUTSIDER}),
    ],
    ids=str,
)
def test_a_request_that_would_set_what_the_hook_owns_is_a_400_and_asks_nobody(client, providers, name, value):
    """Its own fallbacks would leave the policy's regions, its own retries ask again and again, and so on."""
    providers["distilled-cheap"].status = 500
    with pytest.raises(openai.BadRequestError, match=f"{name}.*the broker sets this"):
        ask(client, "broker/worth=0", extra_body={"extra_body": value} if name == "extra_body" else {name: value})
    assert not providers["edge"].asked


def test_retries_in_a_header_are_refused_like_those_in_the_body(client, providers):
    with pytest.raises(openai.BadRequestError, match="num_retries"):
        ask(client, "broker/worth=0", extra_headers={"x-litellm-num-retries": "20"})
    assert not providers["edge"].asked


def test_another_model_takes_fallbacks_and_retries_of_the_request_as_ever(client, providers):
    providers["distilled-cheap"].status = 500
    extra = {"fallbacks": [OUTSIDER], "num_retries": 1}
    assert ask(client, "distilled-cheap", extra_body=extra)[0] == OUTSIDER


def test_a_request_that_litellm_calls_off_since_its_client_is_gone_is_logged_as_left(reference, tmp_path):
    from router.gateway import BrokerHook

    hook = BrokerHook(reference, OutcomeLog(tmp_path))
    data = route_by_hook(hook, "broker/worth=0")
    call = {**data, "metadata": {**data["metadata"], "model_group": data["model"]}}
    asyncio.run(hook.async_pre_call_deployment_hook(call, "acompletion"))
    for status in (400, 499, 499):
        error = openai.APIStatusError(
            "", response=httpx.Response(status, request=httpx.Request("POST", "x:")), body=None
        )
        asyncio.run(hook.async_post_call_failure_hook(data, error, None))
    OutcomeLog(tmp_path).compact()
    [file] = tmp_path.glob("day=*/*.parquet")
    [row] = pd.read_parquet(file).to_dict("records")
    assert (row["ended"], row["model"]) == ("left", "distilled-cheap") and row["latency_ms"] > 0


def route_by_hook(hook, model: str, **body) -> dict:
    data = {"model": model, "messages": CHAT, "metadata": {}, **body}
    return asyncio.run(hook.async_pre_call_hook(None, None, data, "acompletion"))


# ---- operation -------------------------------------------------------------------------------------


def test_new_prices_hold_for_the_next_request_of_a_running_proxy(proxy, client, providers, prices):
    assert ask(client, "broker/worth=0")[0] == "distilled-cheap"
    prices.write_text(re.sub(r", capabilities = [^]]*]", "", PRICES.replace("0.040", "0.400")))
    try:
        proxy.process.send_signal(signal.SIGHUP)  # what the test's hook file makes of it: update_prices
        wait_for(lambda: ask(client, "broker/worth=0")[0] == "distilled-dear")
        answer = client.chat.completions.create(model="broker/worth=0", messages=CHAT, tools=TOOLS)
        assert answer.choices[0].message.tool_calls, "a table that says nothing about tools shuts no offer out"
        assert providers["distilled-dear"].bodies[-1]["tools"] == TOOLS
    finally:
        prices.write_text(PRICES)
        proxy.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ask(client, "broker/worth=0")[0] == "distilled-cheap")


def test_no_prompt_is_in_the_proxys_output(proxy, client, providers):
    ask(client)
    ask(client, stream=True)
    ask(client, "broker/worth=0", messages=LONG_CHAT)
    client.completions.create(model="broker", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError):
        ask(client, "broker/quality=2")
    providers["distilled-cheap"].status = 500
    ask(client, "broker/worth=0")
    for provider in providers.values():
        provider.status = 500
    with pytest.raises(openai.InternalServerError):
        ask(client, "broker/worth=0")
    wait_for(lambda: '/v1/chat/completions HTTP/1.1" 500' in proxy.log.read_text())
    output = proxy.log.read_text()
    assert "quality is 2.0" in output, "the log is the one that tells of these requests"
    assert MARKER not in output


def test_the_example_starts_with_one_command_and_two_variables(bundle, tmp_path):
    """Its simulated models answer without a provider; the bundle's own table says nothing about tools."""
    environment = {"BROKER_BUNDLE": str(bundle), "BROKER_LOG": str(tmp_path / "outcomes")}
    with running_proxy(EXAMPLE / "config.yaml", tmp_path / "proxy.log", **environment) as example:
        models = {offer.model for tier in Router.load(bundle).prices.tiers for offer in tier.offers}
        assert {model.id for model in example.client.models.list()} == {"broker", *models}
        for arguments in ({}, {"stream": True}, {"tools": TOOLS}):
            text, headers = ask(example.client, "broker/quality=0.95", **arguments)
            assert "simulated" in text
            assert headers["x-broker-model"] == headers["x-litellm-model-group"]
            row = logged(example, headers["x-broker-decision-id"])
            assert row["output_tokens"] > 0 and row["cost_usd"] > 0 and not row["tokens_estimated"]
            assert row["ended"] == "complete"
        for tier in Router.load(bundle).prices.tiers:
            for offer in tier.offers:
                assert "simulated" in ask(example.client, offer.model)[0]


# ---- what an answer has billed ---------------------------------------------------------------------


OFFER = """
[[tiers]]
name = "t"
offers = [{{ model = "m", provider = "p", region = "r", context_window = 9, usd_per_mtok_input = 10, usd_per_mtok_output = 40 {more} }}]
"""  # noqa: E501


def billed(usage: dict, more: str = "", litellm_usd: float | None = None) -> float | None:
    """In millionths of a USD."""
    from router.gateway.usage import billed_usd, reported_usage

    [tier] = parse_tiers(OFFER.format(more=more))
    usd = billed_usd(tier.offers[0], reported_usage(usage), litellm_usd)
    return None if usd is None else round(usd * 1e6, 6)


CACHED = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 60}}
WRITTEN = {"prompt_tokens": 100, "completion_tokens": 2, "prompt_tokens_details": {"cache_write_tokens": 60}}
CACHED_PRICE, WRITE_PRICE = ", usd_per_mtok_cached_input = 1", ", usd_per_mtok_cache_write = 12"


@pytest.mark.parametrize(
    ("usage", "more", "litellm_usd", "expected"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 2}, "", None, 1080),
        ({"prompt_tokens": 100, "completion_tokens": 2}, CACHED_PRICE, 7e-6, 1080),  # the price table's prices count
        (CACHED, "", None, 1080),
        (CACHED, "", 0.0, 1080),  # LiteLLM does not know the model
        (CACHED, "", 7e-6, 7),
        (CACHED, CACHED_PRICE, 7e-6, 400 + 60 + 80),
        (WRITTEN, CACHED_PRICE, 7e-6, 7),
        (WRITTEN, WRITE_PRICE, 7e-6, 400 + 720 + 80),
        ({"prompt_tokens": 100, "completion_tokens": 0}, "", 7e-6, None),
    ],
)
def test_what_an_answer_costs(usage, more, litellm_usd, expected):
    assert billed(usage, more, litellm_usd) == expected


@pytest.mark.parametrize(
    "usage",
    [
        {}, {"prompt_tokens": None}, {"prompt_tokens": "3", "prompt_tokens_details": 3}, {"prompt_tokens_details": [1]},
        {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
        {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 9}},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, {"prompt_tokens": -1},
    ],
    ids=str,
)  # fmt: skip
def test_no_usage_fails_a_request_and_no_part_is_larger_than_the_whole(usage):
    from router.gateway.usage import reported_usage

    found = reported_usage(usage)
    assert (found.cached_input_tokens or 0) + (found.cache_write_tokens or 0) <= (found.input_tokens or 0)
    assert (found.reasoning_tokens or 0) <= (found.output_tokens or 0)


def run_python(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_router_alone_imports_no_litellm():
    assert run_python("import router, sys; sys.exit('litellm' in sys.modules)").returncode == 0


def test_without_litellm_the_error_names_the_extra():
    found = run_python("import sys; sys.modules['litellm'] = None; import router.gateway.hook")
    assert "ImportError: " in found.stderr.splitlines()[-1]
    assert "pip install 'token-broker[gateway]'" in found.stderr.splitlines()[-1]


class Meddled(dict):
    """The body of a request that changes the router's prices each time it is read."""

    def __init__(self, body: dict, router: Router, tables: list[Path]) -> None:
        super().__init__(body)
        self.router, self.tables, self.n_changes = router, tables, 0

    def get(self, *arguments):
        self.n_changes += 1
        self.router.update_prices(self.tables[self.n_changes % len(self.tables)])
        return super().get(*arguments)


def test_a_price_reload_while_a_request_is_routed_cannot_mix_tables(bundle, tmp_path):
    """Each table names its offers after itself; the decision and all fallbacks must be of one of them."""
    from router.gateway import BrokerHook

    tables = []
    for name in ("one", "two", "three"):
        tables.append(tmp_path / f"{name}.toml")
        tables[-1].write_text(re.sub(r'model = "', f'model = "{name}/', PRICES))
    router = Router.load(bundle)
    router.update_prices(tables[0])
    found = set()
    for start in range(3):
        body = Meddled({"model": "broker/worth=0", "messages": CHAT, "metadata": {}}, router, tables[start:] + tables)
        asyncio.run(BrokerHook(router).async_pre_call_hook(None, None, body, "acompletion"))
        decision = body["metadata"]["broker_decision"]
        sources = {model.partition("/")[0] for model in (body["model"], *body["fallbacks"])}
        found |= sources
        [source] = sources
        assert body.n_changes > 3 and decision.offer.model == body["model"]
        assert decision.price_table_id == PriceTable.parse((tmp_path / f"{source}.toml").read_text()).id
    assert len(found) > 1


def wait_for(condition, limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
