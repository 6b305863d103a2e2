"""Traces of requests, by OpenTelemetry's conventions for generative AI (extra `telemetry`).

A routed request is one span `broker.route`, below LiteLLM's own span of the request where its callback `otel` runs. It
ends when the answer does. An outcome is a span `broker.outcome` with the event `gen_ai.evaluation.result`, linked to
that of its request. No text of a prompt, an answer or an error is in them.

Nothing is exported unless OpenTelemetry's own environment variables say so, or LiteLLM's callback does.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

from router.decision import Decision
from router.errors import ServiceError
from router.extras import install_command
from router.outcomes.observers import reason_kind

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanContext, Tracer

logger = logging.getLogger(__name__)

MOST_OPEN, MOST_ENDED = 10_000, 10_000
"""Spans that wait for the end of their answer, and ended ones that an outcome can still be linked to."""

USAGE = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_input_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "cost_usd": "broker.cost_usd",
    "tokens_estimated": "broker.tokens_estimated",
    "cache_hit": "broker.cache_hit",
}
"""Columns of the outcome log, and the attributes that they become."""


class Spans:
    """Makes spans of requests and outcomes; an Observer, from many threads."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._lock = Lock()
        self._open: OrderedDict[str, Span] = OrderedDict()
        self._ended: OrderedDict[str, SpanContext] = OrderedDict()

    def routed(self, decision: Decision, seconds: float, data: Mapping[str, Any], session_id: str | None) -> None:
        """Begin the span of a request."""
        kind = "text_completion" if data.get("messages") is None else "chat"
        attributes = {"gen_ai.operation.name": kind, **_of_decision(decision), "broker.route_seconds": seconds}
        if session_id is not None:
            attributes["gen_ai.conversation.id"] = session_id
        span = self._tracer.start_span("broker.route", _parent(data), attributes=attributes)
        with self._lock:
            self._open[decision.decision_id] = span
            forgotten = self._open.popitem(last=False)[1] if len(self._open) > MOST_OPEN else None
        if forgotten is not None:
            forgotten.end()

    def decided(self, decision: Decision) -> None:
        """Do nothing: the span has begun."""

    def attempted(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """Note an attempt whose answer the client did not get."""
        with self._lock:
            span = self._open.get(decision_id)
        if span is not None:
            span.add_event("broker.attempt", _of_attempt(ended, columns))

    def answered(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """End the span, with what was used."""
        if (span := self._closed(decision_id)) is not None:
            span.set_attributes(_of_attempt(ended, columns))
            if ended in ("cut", "failed"):
                _set_error(span, ended)
            span.end()

    def gave_up(self, decision: Decision) -> None:
        """End the span of a request that nobody has answered."""
        if (span := self._closed(decision.decision_id)) is not None:
            _set_error(span, "failed")
            span.end()

    def judged(self, decision_id: str, correct: float) -> None:
        """Export an outcome, linked to the span of its request where that is not long ago."""
        from opentelemetry.trace import Link

        with self._lock:
            open_span, context = self._open.get(decision_id), self._ended.get(decision_id)
        if context is None and open_span is not None:
            context = open_span.get_span_context()
        links: list[Link] = [] if context is None else [Link(context)]
        span = self._tracer.start_span("broker.outcome", attributes={"broker.decision_id": decision_id}, links=links)
        span.add_event(
            "gen_ai.evaluation.result",
            {"gen_ai.evaluation.name": "correct", "gen_ai.evaluation.score.value": float(correct)},
        )
        span.end()

    def close(self) -> None:
        """End what is still open."""
        with self._lock:
            left = list(self._open.values())
            self._open.clear()
        for span in left:
            span.end()

    def _closed(self, decision_id: str) -> Span | None:
        """The span of a request that has ended; None where it is not open."""
        with self._lock:
            span = self._open.pop(decision_id, None)
            if span is not None:
                self._ended[decision_id] = span.get_span_context()
                if len(self._ended) > MOST_ENDED:
                    self._ended.popitem(last=False)
        return span


def tracer_provider(environment: Mapping[str, str]) -> TracerProvider | None:
    """Where spans go, as OpenTelemetry's environment variables say; None where nothing is to be exported.

    OTEL_TRACES_EXPORTER names exporters (`otlp`, `console`, `none`); an endpoint for OTLP alone means `otlp`. Where
    LiteLLM's callback has set up a provider for this process, it is that one. The others (OTEL_SERVICE_NAME,
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER, ...) are read by OpenTelemetry itself.
    Raises ServiceError where a package for that is missing.
    """
    names = _exporters(environment)
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        if names:
            raise ServiceError(f"traces need OpenTelemetry: {install_command('telemetry')}")
        return None
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    present = trace.get_tracer_provider()
    if isinstance(present, TracerProvider):
        return present
    if not names:
        return None
    has_name = "OTEL_SERVICE_NAME" in environment or "service.name" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if has_name else {"service.name": "token-broker"}))
    for name in names:
        provider.add_span_processor(BatchSpanProcessor(_exporter(name)))
    trace.set_tracer_provider(provider)
    return provider


def _exporters(environment: Mapping[str, str]) -> list[str]:
    """The names of the exporters that are asked for, as they are registered."""
    stated = environment.get("OTEL_TRACES_EXPORTER", "")
    if not stated and any(environment.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_")):
        stated = "otlp"
    names = [name.strip() for name in stated.split(",") if name.strip() not in ("", "none")]
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    otlp = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    return [otlp if name == "otlp" else name for name in names]


def _exporter(name: str) -> Any:
    """An exporter by the name under which its package registers it; raises ServiceError where there is none."""
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        raise ServiceError(f"no exporter {name!r} of OpenTelemetry is installed; {install_command('telemetry')}")
    return found.load()()


def _parent(data: Mapping[str, Any]) -> Context | None:
    """LiteLLM's span of the request; else the span in whose context this runs, or that the client has named."""
    from opentelemetry import propagate, trace

    span = (data.get("metadata") or {}).get("litellm_parent_otel_span")
    if isinstance(span, trace.Span):
        return trace.set_span_in_context(span)
    if trace.get_current_span().get_span_context().is_valid:
        return None
    headers = (data.get("proxy_server_request") or {}).get("headers") or {}
    return propagate.extract(headers)


def _of_decision(decision: Decision) -> dict[str, Any]:
    offer = decision.offer
    values = {
        "gen_ai.provider.name": None if offer is None else offer.provider,
        "gen_ai.request.model": None if offer is None else offer.model,
        "broker.decision_id": decision.decision_id,
        "broker.tier": decision.tier,
        "broker.reason": reason_kind(decision),
        "broker.quality": decision.quality,
        "broker.worth_usd": decision.worth_usd,
        "broker.promised": decision.promised,
        "broker.propensity": decision.propensity,
        "broker.familiarity": decision.familiarity,
        "broker.expected_cost_usd": decision.cost_usd.get(decision.tier),
        "broker.bundle_id": decision.bundle_id,
        "broker.price_table_id": decision.price_table_id,
    }
    return {name: value for name, value in values.items() if value is not None}


def _of_attempt(ended: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Who was asked, how that ended, and what was used."""
    who = {"gen_ai.response.model": columns.get("model"), "broker.answered_tier": columns.get("tier")}
    used = {attribute: columns.get(name) for name, attribute in USAGE.items()}
    values = {"broker.ended": ended, **who, **used}
    return {name: value for name, value in values.items() if value is not None}


def _set_error(span: Span, kind: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
