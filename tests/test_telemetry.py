"""Laws of metrics and traces: the real service with LiteLLM's own exporters, and a collector that reads everything."""

import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from router import Router, Watcher
from router.errors import ServiceError
from router.outcomes.reading import LogReader

if any(importlib.util.find_spec(name) is None for name in ("litellm", "prometheus_client", "opentelemetry")):
    pytest.skip("litellm or opentelemetry is missing: make test-gateway installs both", allow_module_level=True)

import httpx
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from router.serve.config import litellm_config

PROMPT_MARK, COMMENT_MARK, ECHO_MARK, START_LIMIT_S = "Zanzibar-4711", "Timbuktu-0815", "Casablanca-1942", 240
CHAT = [{"role": "user", "content": f"Sign with {PROMPT_MARK}."}]
FAILING = [{"role": "user", "content": f"Sign with {ECHO_MARK}."}]
SESSION = "talk-17"


# ---- the service -----------------------------------------------------------------------------------


@dataclass
class Collector:
    """What exporters of OpenTelemetry have sent."""

    bodies: list[bytes] = field(default_factory=list)

    def spans(self, *, litellms: bool = True) -> list:
        """litellms: those of LiteLLM's callback as well."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in list(self.bodies)]
        scopes = [scope for each in requests for resource in each.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes if litellms or scope.scope.name != "litellm" for span in scope.spans]


@dataclass
class Served:
    """The service in a process of its own. cheapest: the model that is asked first without a dial but worth=0."""

    process: subprocess.Popen
    http: httpx.Client
    collector: Collector
    outcomes: Path
    err: Path
    key: str
    cheapest: str

    def ask(self, model: str = "broker/worth=0", chat=CHAT, **body) -> httpx.Response:
        content = {"model": model, "messages": chat, "litellm_session_id": SESSION, **body}
        return self.http.post("/v1/chat/completions", json=content)

    def rows(self) -> list[dict]:
        return LogReader(self.outcomes).table().to_pylist()


def handled(answer) -> type[BaseHTTPRequestHandler]:
    """A handler whose status and body are those of `answer`, which takes the body of the request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, content = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_) -> None:
            pass

    return Handler


@contextmanager
def listening(answer) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handled(answer))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def echoed(body: bytes) -> tuple[int, bytes]:
    """A provider that fails where the prompt is FAILING, and repeats the prompt in its error."""
    if ECHO_MARK.encode() in body:
        error = {"message": f"cannot answer {body.decode()}", "type": "server_error"}
        return 500, json.dumps({"error": error}).encode()
    choice = {"index": 0, "message": {"role": "assistant", "content": "signed"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    head = {"id": "1", "created": 1, "model": "m", "object": "chat.completion"}
    return 200, json.dumps({**head, "choices": [choice], "usage": usage}).encode()


def wait_until(is_so, limit_s: float = START_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory) -> Iterator[Served]:
    """With LiteLLM's own exporters, and `echoed` as the provider of the cheapest offer."""
    folder, key, collector = tmp_path_factory.mktemp("telemetry"), f"sk-{secrets.token_hex(32)}", Collector()
    router = Router.load(bundle)
    cheapest = router.route(messages=CHAT, worth_usd=0).offer.model

    def collected(body: bytes) -> tuple[int, bytes]:
        collector.bodies.append(body)
        return 200, b""

    with ExitStack() as stack:
        failing, sink = stack.enter_context(listening(echoed)), stack.enter_context(listening(collected))
        bases = {f"{name}_API_BASE": "" for name in ("LOCAL", "SIM_EAST", "SIM_WEST", "SIM_CLOUD")}
        config = litellm_config(router.prices.tiers, bases, {"openai"})
        for entry in config["model_list"]:
            if entry["model_name"] == cheapest:
                entry["litellm_params"]["api_base"] = failing
        config["litellm_settings"] = {"callbacks": ["otel", "prometheus"]}
        (folder / "litellm.yaml").write_text(json.dumps(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "router", "serve", "--demo", "--bundle", bundle, "--port", str(port)]
        command += ["--config", folder / "litellm.yaml", "--outcomes", folder / "outcomes"]
        otel = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        out, err = (stack.enter_context((folder / name).open("wb")) for name in ("out", "err"))
        process = subprocess.Popen(
            command,
            env={**os.environ, **otel, "OTEL_BSP_SCHEDULE_DELAY": "200", "NO_PROXY": "*", "LITELLM_MASTER_KEY": key},
            stdout=out,
            stderr=err,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        http = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {key}"},
                trust_env=False,
                timeout=60,
            )
        )
        wait_until(lambda: "The broker answers" in (folder / "out").read_text() or process.poll() is not None)
        if process.poll() is not None:
            pytest.fail(f"the service did not start: {(folder / 'err').read_text()[-3000:]}")
        yield Served(process, http, collector, folder / "outcomes", folder / "err", key, cheapest)


@pytest.fixture(scope="module")
def used(served) -> list[str]:
    """Decisions of requests of all kinds, all of them logged: whole, streamed, refused, failed first, judged."""
    answers = [served.ask(), served.ask("broker"), served.ask("broker/quality=1", stream=True)]
    answers += [served.ask(chat=FAILING) for _ in range(4)]  # Each asks the offer that fails, until it is left alone.
    assert {answer.status_code for answer in answers} == {200}
    assert served.ask("broker/quality=7").status_code == 400 and served.ask(served.cheapest, FAILING).status_code == 500
    ids = [answer.headers["x-broker-decision-id"] for answer in answers]
    for number, score in enumerate((1, 0.5)):
        body = {"decision_id": ids[number], "score": score, "comment": COMMENT_MARK}
        assert served.http.post("/v1/outcomes", json=body).status_code == 200
    wait_until(lambda: Counter(row["ended"] for row in served.rows())["complete"] == len(answers), 60)
    return ids


def scraped(served) -> dict[str, dict[tuple, float]]:
    """The values of all samples, by the name of the sample and its labels."""
    found: dict[str, dict[tuple, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(served.http.get("/metrics").text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


def sums(samples: dict[tuple, float], *labels: str) -> dict[tuple, float]:
    found: dict[tuple, float] = defaultdict(float)
    for key, value in samples.items():
        found[tuple(dict(key)[label] for label in labels)] += value
    return found


# ---- metrics ---------------------------------------------------------------------------------------


def test_the_sums_of_the_metrics_are_those_of_the_outcome_log(served, used):
    metrics, rows = scraped(served), served.rows()
    attempts, billed, decided = Counter(), Counter(), Counter()
    for row in rows:
        attempts[row["tier"], row["provider"], row["model"], row["ended"]] += 1
        billed[row["tier"], row["provider"]] += row["cost_usd"] or 0
        if row["attempt_id"] is None:
            decision = json.loads(row["decision"])
            decided[decision["tier"], decision["offer"]["model"], str(decision["promised"]).lower()] += 1
    assert attempts[next(key for key in attempts if key[3] == "failed")] >= 3
    assert sums(metrics["broker_attempts_total"], "tier", "provider", "model", "ended") == attempts
    assert sums(metrics["broker_billed_cost_usd_total"], "tier", "provider") == pytest.approx(
        {key: usd for key, usd in billed.items() if usd}
    )
    assert sums(metrics["broker_decisions_total"], "tier", "model", "promised") == decided
    told = [row["correct"] for row in rows if row["correct"] is not None]
    assert metrics["broker_outcome_score_count"][()] == len(told) and metrics["broker_outcome_score_sum"][()] == 1.5
    assert metrics["broker_route_duration_seconds_count"][()] == len(used) == sum(decided.values())


def test_the_metrics_say_how_the_service_is(served, used, bundle):
    metrics, router = scraped(served), Router.load(bundle)
    states = {dict(key)["model"]: dict(key)["state"] for key, is_so in metrics["broker_offer_state"].items() if is_so}
    assert states.keys() == {offer.model for tier in router.prices.tiers for offer in tier.offers}
    assert states[served.cheapest] != "up"
    assert max(metrics["broker_cap_max_share_ratio"].values()) <= 1
    ids = {"bundle_id": router.bundle.manifest.bundle_id, "price_table_id": router.prices.id}
    assert metrics["broker_serving_info"] == {tuple(sorted(ids.items())): 1}
    assert metrics["broker_log_lost_lines_total"] == {(): 0} and metrics["broker_files_followed"] == {(): 1}
    assert any(name.startswith("litellm_spend") for name in metrics)  # LiteLLM's own stand beside them.


def test_no_label_has_a_value_of_a_client(served, used):
    names = {"tier", "provider", "region", "model", "state", "ended", "reason", "promised", "cap", "le"}
    names |= {"bundle_id", "price_table_id"}
    for name, samples in scraped(served).items():
        if name.startswith("broker_"):
            labels = {label: value for key in samples for label, value in key}
            assert labels.keys() <= names and not {"broker/worth=0", SESSION} & set(labels.values())


def test_without_a_key_of_litellm_there_are_no_metrics(served):
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer sk-of-nobody"}):
        answer = served.http.get("/metrics", headers=headers)
        assert answer.status_code == 401 and "broker_" not in answer.text


def test_a_model_that_is_no_offer_is_counted_without_its_name(decisions):
    from router.serve.metrics import RequestMetrics

    registry = CollectorRegistry()
    metrics = RequestMetrics(registry)
    metrics.attempted("1", "complete", {"tier": "", "provider": "openai", "model": "gpt-9"})
    metrics.decided(replace(decisions["quality"], offer=None))
    labels = [s.labels for family in registry.collect() for s in family.samples if s.name == "broker_attempts_total"]
    assert labels == [{"tier": "other", "provider": "other", "model": "other", "ended": "complete"}]


def test_caps_budgets_and_trouble_are_gauges_that_every_scraper_can_read(bundle, tmp_path):
    from router.serve.metrics import StateMetrics

    router, registry, prices = Router.load(bundle), CollectorRegistry(), tmp_path / "prices.toml"
    limits = '[[budgets]]\nusd = 50.0\nper = "day"\n[[caps]]\nprovider = "sim-east"\nmax_share = 0.5\n'
    prices.write_text(limits + (bundle / "tiers.toml").read_text())
    router.update_prices(prices)
    prices.write_text("[[tiers")
    watcher = Watcher(router, prices=prices).start()
    watcher.stop()
    router.route("Hello!")
    registry.register(StateMetrics(router, watcher, lambda: 3))
    families = text_string_to_openmetrics_families(generate_openmetrics(registry).decode())
    found = {(sample.name, *sample.labels.values()): sample.value for each in families for sample in each.samples}
    assert found["broker_budget_limit_usd", "all offers at most USD 50 per day"] == 50
    assert 0 < found["broker_budget_spent_usd", "all offers at most USD 50 per day"] < 50
    assert found["broker_cap_max_share_ratio", "sim-east at most 50% of requests"] == 0.5
    assert 0 <= found["broker_cap_share_ratio", "sim-east at most 50% of requests"] <= 1
    assert found["broker_log_lost_lines_total",] == 3
    assert (found["broker_files_followed",], found["broker_files_refused",]) == (0, 1)


# ---- traces ----------------------------------------------------------------------------------------


def attributes(item) -> dict:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in item.attributes}


def test_each_request_is_a_span_below_litellms_own_and_says_what_the_log_says(served, used):
    wait_until(lambda: sum(span.name == "broker.route" for span in served.collector.spans()) >= len(used), 60)
    spans = served.collector.spans()
    names = {span.span_id: span.name for span in spans}
    found = {attributes(span)["broker.decision_id"]: span for span in spans if span.name == "broker.route"}
    for row in served.rows():
        if row["attempt_id"] is None:
            span, said = found[row["decision_id"]], attributes(found[row["decision_id"]])
            assert said["gen_ai.provider.name"] == json.loads(row["decision"])["offer"]["provider"]
            assert said["gen_ai.response.model"] == row["model"] and said["broker.ended"] == row["ended"]
            assert said["gen_ai.usage.input_tokens"] == row["input_tokens"]
            assert said["gen_ai.usage.output_tokens"] == row["output_tokens"]
            assert said["broker.cost_usd"] == pytest.approx(row["cost_usd"])
            assert said["gen_ai.conversation.id"] == SESSION
            assert names[span.parent_span_id] in ("Received Proxy Server Request", "POST /v1/chat/completions")
    events = [event for span in found.values() for event in span.events]
    assert {attributes(event)["broker.ended"] for event in events} == {"failed"}


def test_an_outcome_is_an_event_linked_to_the_span_of_its_request(served, used):
    def judged() -> dict:
        spans = [span for span in served.collector.spans() if span.name == "broker.outcome"]
        return {attributes(span)["broker.decision_id"]: span for span in spans}

    wait_until(lambda: judged().keys() == set(used[:2]), 60)
    routes = {attributes(s)["broker.decision_id"]: s for s in served.collector.spans() if s.name == "broker.route"}
    for decision_id, score in zip(used, (1.0, 0.5), strict=False):
        [link], [event] = judged()[decision_id].links, judged()[decision_id].events
        assert link.span_id == routes[decision_id].span_id and event.name == "gen_ai.evaluation.result"
        assert attributes(event) == {"gen_ai.evaluation.name": "correct", "gen_ai.evaluation.score.value": score}


def test_no_prompt_no_comment_and_no_key_is_in_metrics_traces_or_output(served, used):
    wait_until(lambda: any(span.name == "broker.outcome" for span in served.collector.spans()), 60)
    exported, metrics = b"".join(served.collector.bodies), served.http.get("/metrics").content
    assert len(exported) > 10_000
    for mark in (PROMPT_MARK, COMMENT_MARK, served.key):
        found = [mark.encode() in each for each in (exported, metrics, served.err.read_bytes())]
        assert found == [False, False, False], mark
    # What a provider says in an error is in LiteLLM's spans, where the operator has turned its callback on.
    assert ECHO_MARK.encode() not in metrics and ECHO_MARK not in str(served.collector.spans(litellms=False))


@pytest.fixture(scope="module")
def decisions(bundle) -> dict:
    """A decision of each kind, by the dial that decided."""
    router = Router.load(bundle)
    asked = {"quality": {"quality": 0.9}, "worth": {"worth_usd": 0.01}, "critical": {"critical": True}}
    return {kind: router.route("Hello!", **dials) for kind, dials in asked.items()}


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(memory):
    from router.serve.spans import Spans

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return Spans(provider.get_tracer("test"))


def test_all_names_of_generative_ai_are_opentelemetrys(spans, memory, decisions):
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    spans.routed(decisions["quality"], 0.001, {"messages": CHAT, "metadata": {}}, "talk")
    from router.serve.spans import USAGE

    spans.answered(decisions["quality"].decision_id, "complete", {**dict.fromkeys(USAGE, 1), "model": "m", "tier": "t"})
    spans.judged(decisions["quality"].decision_id, 1.0)
    route, outcome = memory.get_finished_spans()
    names = {*route.attributes, *outcome.events[0].attributes}
    assert {name for name in names if not name.startswith("broker.")} - {"error.type"} <= known
    assert {"gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.reasoning.output_tokens"} <= names


@pytest.mark.parametrize("ended", ["cut", "failed"])
def test_a_request_that_got_no_whole_answer_is_a_span_with_an_error(spans, memory, decisions, ended):
    decision = decisions["worth"]
    spans.routed(decision, 0.001, {}, None)
    if ended == "cut":
        spans.answered(decision.decision_id, ended, {"model": "m"})
    spans.gave_up(decision)
    [span] = memory.get_finished_spans()
    assert span.attributes["error.type"] == ended and not span.status.is_ok
    assert span.attributes["gen_ai.operation.name"] == "text_completion"


def test_the_trace_of_the_client_goes_on(spans, memory, decisions):
    headers = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    spans.routed(decisions["worth"], 0.001, {"proxy_server_request": {"headers": headers}}, None)
    spans.close()
    [span] = memory.get_finished_spans()
    assert (f"{span.context.trace_id:x}", f"{span.parent.span_id:x}") == ("a" * 32, "b" * 16)


def test_spans_that_never_end_do_not_pile_up(spans, memory, decisions, monkeypatch):
    monkeypatch.setattr("router.serve.spans.MOST_OPEN", 3)
    for number in range(5):
        spans.routed(replace(decisions["worth"], decision_id=str(number)), 0.001, {}, None)
    assert [span.attributes["broker.decision_id"] for span in memory.get_finished_spans()] == ["0", "1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_SERVICE_NAME": "mine"},
    ],
)
def test_nothing_is_exported_unless_the_operator_says_so(environment, monkeypatch):
    from router.serve.spans import tracer_provider

    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    assert tracer_provider(environment) is None


def test_an_exporter_that_is_not_installed_is_said(monkeypatch):
    from router.serve.spans import tracer_provider

    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    with pytest.raises(ServiceError, match=r"token-broker\[telemetry\]"):
        tracer_provider({"OTEL_TRACES_EXPORTER": "carrier-pigeon"})


# ---- both ------------------------------------------------------------------------------------------


def test_why_a_tier_was_chosen_is_one_of_few_words(decisions):
    from router.outcomes.observers import reason_kind

    assert {kind: reason_kind(decision) for kind, decision in decisions.items()} == {kind: kind for kind in decisions}
    other = next(tier for tier in decisions["worth"].eligible if tier != decisions["worth"].tier)
    assert reason_kind(replace(decisions["worth"], tier=other, propensity=0.01)) == "explored"
    assert reason_kind(replace(decisions["worth"], propensity=0.98)) == "worth"
    assert reason_kind(replace(decisions["quality"], best_tier="frontier")) == "unproven"
    assert reason_kind(replace(decisions["quality"], fallback=True)) == "fallback"


def test_an_observer_that_raises_stops_nothing(tmp_path, decisions, caplog):
    from router.outcomes.observers import ObservedLog, Observers

    with ObservedLog(tmp_path, Observers(object())) as log:  # It has no method at all.
        log.decided(decisions["worth"], PROMPT_MARK)
        assert log.outcome(decisions["worth"].decision_id, correct=1, ended="complete")
    assert log.n_lost == 0 and len(caplog.records) == 1 and PROMPT_MARK not in caplog.text
    assert LogReader(tmp_path).find(decisions["worth"].decision_id).rows[0]["correct"] == 1


def test_errors_here_and_there_close_no_offer(served):
    """LiteLLM would leave a model alone after two failures a minute, and answer 429 in its place."""
    assert [served.ask(served.cheapest, FAILING).status_code for _ in range(4)] == [500] * 4
    assert served.ask(served.cheapest).status_code == 200


# ---- the end ---------------------------------------------------------------------------------------


def test_a_killed_service_has_lost_and_doubled_nothing_that_it_acknowledged(served):
    """The last test of this file: it kills the service while clients ask and judge."""
    decided: list[str] = []
    told: dict[str, float] = {}

    def client(number: int) -> None:
        with suppress(httpx.HTTPError):
            for turn in range(1000):
                decided.append(served.ask("broker").headers["x-broker-decision-id"])
                body = {"decision_id": decided[-1], "correct": (number + turn) % 2 == 0}
                if served.http.post("/v1/outcomes", json=body).status_code == 200:
                    told[body["decision_id"]] = float(body["correct"])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(told) >= 8, 120)
    served.process.kill()
    for thread in threads:
        thread.join()
    found = Counter(row["decision_id"] for row in served.rows() if row["attempt_id"] is None)
    correct = {row["decision_id"]: row["correct"] for row in served.rows() if row["attempt_id"] is None}
    assert all(found[each] == 1 for each in decided) and max(found.values()) == 1
    assert {each: correct[each] for each in told} == told
