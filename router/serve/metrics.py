"""`GET /metrics`: what is counted of requests, and how the service is, in the format of Prometheus.

Labels are names from the price table and words of few values. No request, client, key or text is one. LiteLLM's own
exporter, where the operator turns it on, writes into the same registry, so its metrics stand on the same page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from router.decision import Decision
from router.outcomes.observers import reason_kind
from router.portfolio.caps import Cap
from router.portfolio.health import State, key_of
from router.router import Router
from router.watch import Watcher

PATH = "/metrics"
"""LiteLLM asks for a key at this path, unless `require_auth_for_metrics_endpoint` is false in its configuration."""

NO_OFFER = "other"
"""Stands for the name of a model that is no offer of the price table."""

_ROUTE_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SCORE_BUCKETS = (0.0, 0.25, 0.5, 0.75, 1.0)
_OFFER = ("tier", "provider", "model")


class RequestMetrics:
    """Counts requests; an Observer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._decisions = Counter(
            "broker_decisions",
            "Decisions, by the offer chosen, what decided, and whether the bundle's promise of quality covers them.",
            [*_OFFER, "reason", "promised"],
            registry=registry,
        )
        self._expected = Counter(
            "broker_expected_cost_usd", "What the chosen offers are expected to cost.", _OFFER[:2], registry=registry
        )
        self._attempts = Counter(
            "broker_attempts", "Attempts to answer, by the offer asked and how they ended.", [*_OFFER, "ended"],
            registry=registry,
        )  # fmt: skip
        self._billed = Counter(
            "broker_billed_cost_usd",
            "What attempts have cost at the prices of their offers, broken ones included.",
            _OFFER[:2],
            registry=registry,
        )
        self._route_s = Histogram(
            "broker_route_duration_seconds", "Time to route a request.", buckets=_ROUTE_BUCKETS, registry=registry
        )
        self._scores = Histogram(
            "broker_outcome_score",
            "Outcomes that clients and graders have told: 1 for right, 0 for wrong, or a score between.",
            buckets=_SCORE_BUCKETS,
            registry=registry,
        )

    def routed(self, decision: Decision, seconds: float, data: Mapping[str, Any], session_id: str | None) -> None:
        """Count the time."""
        self._route_s.observe(seconds)

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        offer, promised = decision.offer, "true" if decision.promised else "false"
        provider, model = (NO_OFFER, NO_OFFER) if offer is None else (offer.provider, offer.model)
        self._decisions.labels(decision.tier, provider, model, reason_kind(decision), promised).inc()
        self._expected.labels(decision.tier, provider).inc(decision.cost_usd.get(decision.tier, 0.0))

    def attempted(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """Count an attempt and what it has cost."""
        tier, provider, model = (str(columns.get(name) or NO_OFFER) for name in _OFFER)
        if tier == NO_OFFER:  # LiteLLM's name of it is not among those of the price table.
            provider = model = NO_OFFER
        self._attempts.labels(tier, provider, model, ended).inc()
        if cost_usd := columns.get("cost_usd"):
            self._billed.labels(tier, provider).inc(cost_usd)

    answered = attempted

    def judged(self, decision_id: str, correct: float) -> None:
        """Count an outcome."""
        self._scores.observe(correct)

    def gave_up(self, decision: Decision) -> None:
        """Count nothing: the attempts are counted."""


class StateMetrics(Collector):
    """How the service is at the moment of a scrape. n_lost: asks how many lines its log has lost."""

    def __init__(self, router: Router, watcher: Watcher, n_lost: Callable[[], int]) -> None:
        self._router, self._watcher, self._n_lost = router, watcher, n_lost

    def describe(self) -> Iterator[Metric]:
        """Nothing; else the registry would collect to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All of them, now."""
        yield self._health()
        yield from self._limits()
        yield CounterMetricFamily(
            "broker_log_lost_lines", "Lines that the outcome log could not store.", value=self._n_lost()
        )
        yield GaugeMetricFamily(
            "broker_files_followed", "1 while bundle and prices on disk are followed.", value=self._watcher.alive
        )
        yield GaugeMetricFamily(
            "broker_files_refused",
            "1 while a bundle or a price table on disk is refused, and the earlier one is kept.",
            value=bool(self._watcher.trouble),
        )
        ids = {"bundle_id": self._router.bundle.manifest.bundle_id, "price_table_id": self._router.prices.id}
        yield InfoMetricFamily("broker_serving", "The bundle and the price table in use.", value=ids)

    def _health(self) -> Metric:
        states = {health.offer: health.state for health in self._router.portfolio.health.state()}
        offers = {
            (tier.name, offer.provider, offer.region, offer.model): states.get(key_of(offer), State.UP)
            for tier in self._router.prices.tiers
            for offer in tier.offers
        }
        found = GaugeMetricFamily(
            "broker_offer_state",
            "1 for the state an offer is in. up: gets all its requests. recovering: some. probed: one at a time.",
            labels=["tier", "provider", "region", "model", "state"],
        )
        for names, present in offers.items():
            for state in State:
                found.add_metric([*names, state], state is present)
        return found

    def _limits(self) -> Iterator[Metric]:
        share = GaugeMetricFamily("broker_cap_share_ratio", "Share that a cap's offers have now.", labels=["cap"])
        most = GaugeMetricFamily("broker_cap_max_share_ratio", "Share that they may have.", labels=["cap"])
        spent = GaugeMetricFamily("broker_budget_spent_usd", "Spent in the budget's present period.", labels=["budget"])
        budget = GaugeMetricFamily("broker_budget_limit_usd", "What may be spent in a period.", labels=["budget"])
        for state in self._router.portfolio.state():
            limit, name = state.limit, [str(state.limit)]
            if isinstance(limit, Cap):
                share.add_metric(name, state.share or 0.0)
                most.add_metric(name, limit.max_share)
            else:
                spent.add_metric(name, state.spent_usd or 0.0)
                budget.add_metric(name, limit.usd)
        yield from (share, most, spent, budget)


def metrics_router(registry: CollectorRegistry) -> APIRouter:
    """The route, for the app of LiteLLM's proxy."""
    router = APIRouter()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-broker-metrics")  # LiteLLM needs its own.

    @router.get(PATH, tags=["broker"])
    async def give_metrics(request: Request) -> Response:
        """All metrics, in the format that the scraper accepts."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        body = await asyncio.get_running_loop().run_in_executor(worker, encode, registry)
        return Response(body, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

    return router
