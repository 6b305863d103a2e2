"""The page at `/broker/`: what requests cost, what routing saves, which offers answer, what was decided last.

The page itself holds no figure. It asks `/broker/data` for them with a key of LiteLLM's, which must be an admin's. No
prompt and no comment is among them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth

from router.outcomes.queries import SPEND_COLUMNS, Spend, spend_of
from router.outcomes.reading import LogReader
from router.outcomes.savings import savings
from router.portfolio.caps import Cap
from router.portfolio.health import OfferHealth, State, key_of
from router.portfolio.portfolio import LimitState
from router.router import Router
from router.watch import Watcher

if TYPE_CHECKING:
    from router.redis import SharedState

PERIODS = {"1h": timedelta(hours=1), "24h": timedelta(days=1), "7d": timedelta(days=7)}
RECENT, MOST_ESTIMATED = 25, 10_000
"""Decisions that are listed, and the newest ones from which savings are estimated."""

KEPT_S = 10.0
"""Seconds for which figures are given again, however many pages ask for them."""

_CONTENT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


class Dashboard:
    """The figures of a service. n_lost: asks how many lines its log has lost. state: that it shares with others."""

    def __init__(
        self,
        router: Router,
        watcher: Watcher,
        reader: LogReader,
        n_lost: Callable[[], int],
        state: SharedState | None = None,
    ) -> None:
        self._router, self._watcher, self._reader, self._n_lost = router, watcher, reader, n_lost
        self._state = state
        self._one_at_a_time = Lock()
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    def data(self, period: str) -> dict[str, Any]:
        """All figures of a period that ends now, as JSON; period: one of PERIODS. Figures are kept for some seconds."""
        with self._one_at_a_time:
            made_s, figures = self._kept.get(period, (-KEPT_S, {}))
            if time.monotonic() - made_s > KEPT_S:
                figures = self._figures(period)
                self._kept[period] = time.monotonic(), figures
            return figures

    def _figures(self, period: str) -> dict[str, Any]:
        now = datetime.now(UTC)
        since = now - PERIODS[period]
        table = self._reader.table(since=since, columns=[*SPEND_COLUMNS, "model", "latency_ms"])
        newest = self._newest(table, since)
        found = savings(newest)
        total = next(iter(spend_of(table)), None)
        return {
            "as_of": now.isoformat(timespec="seconds"),
            "period": period,
            "bundle_id": self._router.bundle.manifest.bundle_id,
            "price_table_id": self._router.prices.id,
            "total": total and asdict(total),
            "savings": found and asdict(found),
            "tiers": [asdict(group) for group in spend_of(table, ["tier"])],
            "offers": self._offers(table),
            "limits": [_fullness(state) for state in self._router.portfolio.state()],
            "recent": [_decided(row) for row in reversed(newest) if row["attempt_id"] is None][:RECENT],
            "service": {
                "follows files": self._watcher.alive,
                "trouble with files": self._watcher.trouble,
                "lines of the log that were lost": self._n_lost(),
                "bytes of the log that are not compacted": self._reader.pending_bytes(),
                **_sharing(self._state),
            },
        }

    def _newest(self, table: Any, since: datetime) -> list[dict[str, Any]]:
        """The newest rows of a table, with all that is shown or estimated of them, the oldest first."""
        if len(table) > MOST_ESTIMATED:
            since = table["timestamp"].combine_chunks().sort()[-MOST_ESTIMATED].as_py()
        names = ["decision", "cost_usd", "correct", "ended", "model", "check_*"]
        rows: list[dict[str, Any]] = self._reader.table(since=since, columns=names).sort_by("timestamp").to_pylist()
        return rows

    def _offers(self, table: Any) -> list[dict[str, Any]]:
        """Each offer with its price, its share of what was spent and answered, and how it fares."""
        by_model = {group.group["model"]: group for group in spend_of(table, ["model"])}
        latency: dict[str | None, list[float]] = {model: [] for model in by_model}
        for model, ended, taken in zip(
            *(table[name].to_pylist() for name in ("model", "ended", "latency_ms")), strict=True
        ):
            if taken is not None and ended == "complete":
                latency[model].append(taken)
        health = {each.offer: each for each in self._router.portfolio.health.state()}
        n_requests = sum(group.requests for group in by_model.values())
        return [
            {
                "tier": tier.name, "model": offer.model, "provider": offer.provider, "region": offer.region,
                "usd_per_mtok_input": offer.usd_per_mtok_input, "usd_per_mtok_output": offer.usd_per_mtok_output,
                "max_share": offer.max_share,
                **_healthy(health.get(key_of(offer))),
                **_fare(by_model.get(offer.model), latency.get(offer.model, []), n_requests),
            }
            for tier in self._router.prices.tiers
            for offer in tier.offers
        ]  # fmt: skip


def _fare(group: Spend | None, latency_ms: list[float], n_requests: int) -> dict[str, Any]:
    """How an offer fares: its share of requests, its attempts, the share that failed, and its latency."""
    p50, p95 = np.percentile(latency_ms, [50, 95]).tolist() if latency_ms else (None, None)
    attempts = group.attempts if group else 0
    return {
        "attempts": attempts,
        "share": group.requests / n_requests if group and n_requests else 0.0,
        "usd": group.usd if group else 0.0,
        "failed": group.failed / attempts if group and attempts else None,
        "p50_ms": p50,
        "p95_ms": p95,
    }


def _healthy(health: OfferHealth | None) -> dict[str, Any]:
    """Whether an offer gets requests now, and why not; an offer that was never asked is up."""
    if health is None:
        return {"state": State.UP, "why": ""}
    return {"state": health.state, "why": health.why if health.state != State.UP else ""}


def _sharing(state: SharedState | None) -> dict[str, Any]:
    """With how many workers a service shares its caps and budgets, and what is wrong with that."""
    if state is None:
        return {}
    return {"workers that share caps and budgets": state.n_workers, "trouble with their shared state": state.trouble}


def _fullness(state: LimitState) -> dict[str, Any]:
    """How full a cap or a budget is now: used, of which 1 is all."""
    limit = state.limit
    used = (state.share or 0.0) / limit.max_share if isinstance(limit, Cap) else (state.spent_usd or 0.0) / limit.usd
    return {"limit": str(limit), "share": state.share, "spent_usd": state.spent_usd, "used": used}


def _decided(row: dict[str, Any]) -> dict[str, Any]:
    """A decision as the page lists it."""
    decision = json.loads(row["decision"]) if row["decision"] else {}
    names = ("decision_id", "tier", "model", "cost_usd", "correct", "ended")
    at = row["timestamp"].isoformat(timespec="seconds")
    return {"at": at, "reason": decision.get("reason", ""), **{name: row[name] for name in names}}


def dashboard_router(dashboard: Dashboard) -> APIRouter:
    """The routes of the page, for the app of LiteLLM's proxy."""
    router = APIRouter()
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-broker-page")  # LiteLLM needs its own.
    page = files("router.serve").joinpath("dashboard.html").read_text(encoding="utf-8")

    @router.get("/broker/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _CONTENT_POLICY, "Cache-Control": "no-store"})

    @router.get("/broker", include_in_schema=False)
    async def to_page() -> RedirectResponse:
        return RedirectResponse("/broker/")

    @router.get("/broker/data", dependencies=[Depends(user_api_key_auth)], tags=["broker"])
    async def give_data(request: Request) -> JSONResponse:
        """The figures of the page; `period` is 1h, 24h or 7d."""
        period = request.query_params.get("period", "24h")
        if period not in PERIODS:
            return JSONResponse({"error": {"message": f"expected one of {', '.join(PERIODS)}"}}, status_code=400)
        data = await asyncio.get_running_loop().run_in_executor(worker, dashboard.data, period)
        return JSONResponse(data, headers={"Cache-Control": "no-store"})

    return router
