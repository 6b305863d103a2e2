"""LiteLLM's proxy in this process, with the router, the outcomes API and the watcher in it.

LiteLLM sets itself up from its configuration as its own command does. Around its start and its end stand ours: the
hook comes in after it has read the configuration; at the end, running requests finish first, then what LiteLLM still
has to log is logged, then the outcome log is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litellm
import uvicorn
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.proxy import proxy_server
from litellm.proxy._types import LiteLLMRoutes
from litellm.proxy.proxy_cli import run_server
from prometheus_client import REGISTRY

from router.errors import ServiceError
from router.gateway.hook import BrokerHook
from router.outcomes.feedback import Feedback
from router.outcomes.observers import ObservedLog, Observers
from router.outcomes.queries import SPEND_COLUMNS, spend_of
from router.outcomes.reading import LogReader
from router.policy import Policy
from router.policy_file import read_policy
from router.portfolio.tiers import Offer
from router.router import Router
from router.serve.compactor import Compactor
from router.serve.dashboard import Dashboard, dashboard_router
from router.serve.metrics import RequestMetrics, StateMetrics, metrics_router
from router.serve.offers import OfferKeeper
from router.serve.outcomes_api import PATH, outcomes_router
from router.serve.spans import Spans, tracer_provider
from router.serve.unknown_keys import UnknownKeys
from router.watch import Watcher

if TYPE_CHECKING:
    from router.redis import SharedState

logger = logging.getLogger(__name__)

LAST_LINES_S = 10.0
"""Seconds in which LiteLLM must log the answers that it gave last."""


@dataclass(frozen=True)
class Service:
    """What is served.

    outcomes: folder or fsspec URL of the outcome log, which `log` writes. state: that of all workers; None for one.
    """

    router: Router
    watcher: Watcher
    log: ObservedLog
    outcomes: str
    state: SharedState | None = None

    @classmethod
    def load(
        cls,
        bundle: Path,
        prices: Path | None,
        policy: Policy,
        outcomes: str,
        log: ObservedLog,
        policy_file: Path | None = None,
        state_url: str | None = None,
    ) -> Service:
        """A router on a bundle, which follows it, the prices and the policy's file on disk.

        Budgets count what the log says was spent. state_url: of the Redis by which several workers share caps, budgets,
        health and conversations; None for none.
        Raises what Router.load, update_prices and read_policy raise, and StateError where that URL is none.
        """
        if policy_file is not None:
            policy = read_policy(policy_file, policy)
        router = Router.load(bundle, policy)
        if prices is not None:
            router.update_prices(prices)
        reader = LogReader(outcomes)

        def spent_usd(since_s: float) -> dict[str, float]:
            table = reader.table(since=datetime.fromtimestamp(since_s, UTC), columns=[*SPEND_COLUMNS, "model"])
            return {str(group.group["model"]): group.usd for group in spend_of(table, ["model"])}

        router.portfolio.recall(spent_usd)
        watcher = Watcher(router, bundle, prices=prices, policy=policy_file)
        return cls(router=router, watcher=watcher, log=log, outcomes=outcomes, state=_state(router, state_url))


def _state(router: Router, url: str | None) -> SharedState | None:
    if not url:
        return None
    from router.redis import SharedState

    return SharedState(router.portfolio, url)


def serve(
    service: Service,
    config: Path,
    *,
    host: str,
    port: int,
    drain_s: float,
    announce: Callable[[], None],
    entry_of: Callable[[Offer], dict[str, Any]] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; returns when running requests have finished and all is logged.

    config: LiteLLM's configuration. drain_s: seconds that running requests get to finish. announce: called once, when
    requests are answered. entry_of: makes LiteLLM's entry of an offer that comes into the price table later; None
    where the configuration is the operator's own.
    Raises ServiceError where LiteLLM's configuration names a BrokerHook of its own, or where LiteLLM does not start.
    """
    with contextlib.redirect_stdout(sys.stderr):
        app = _litellm_app(config, host, port)
        observers = service.log.observers
        hook = BrokerHook(service.router, service.log, observer=observers)
        reader = LogReader(service.outcomes)
        app.include_router(outcomes_router(Feedback(service.log, reader)))
        dashboard = Dashboard(service.router, service.watcher, reader, lambda: service.log.n_lost, service.state)
        app.include_router(dashboard_router(dashboard))
        observers.add(RequestMetrics(REGISTRY))
        REGISTRY.register(StateMetrics(service.router, service.watcher, lambda: service.log.n_lost))
        app.include_router(metrics_router(REGISTRY))
        _allow_every_key(PATH)
        app.router.lifespan_context = _around(
            app.router.lifespan_context, service, hook, OfferKeeper(service.router, entry_of)
        )
        grace_s = max(1, round(drain_s))
        settings = uvicorn.Config(
            app, host=host, port=port, log_level="warning", server_header=False, timeout_graceful_shutdown=grace_s
        )
        _end_quietly_on_sigterm()
        server = _Server(settings, announce)
        server.run()
    if not server.started:
        raise ServiceError("LiteLLM's proxy did not start; what it says stands above")


class _Server(uvicorn.Server):
    """Calls `announce` as soon as requests are answered."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: Any = None) -> None:
        """Start as uvicorn does."""
        await super().startup(sockets)
        if self.started:
            self._announce()


def _litellm_app(config: Path, host: str, port: int) -> Any:
    """The app of LiteLLM's proxy, set up as its own command `litellm` does."""
    options = ["--config", str(config), "--host", host, "--port", str(port), "--skip_server_startup"]
    run_server.main(options, standalone_mode=False)
    for name in ("LiteLLM", "LiteLLM Proxy", "LiteLLM Router"):
        logging.getLogger(name).propagate = False  # It has a handler of its own; without this, each line stands twice.
    return proxy_server.app


def _allow_every_key(path: str) -> None:
    """Let keys call a path that are no admin's. LiteLLM knows only its own paths, and refuses such keys all others."""
    allowed = LiteLLMRoutes.self_managed_routes.value
    if path not in allowed:
        allowed.append(path)


def _around(
    litellms: Callable[[Any], AbstractAsyncContextManager[Any]],
    service: Service,
    hook: BrokerHook,
    keeper: OfferKeeper,
) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    """LiteLLM's beginning and end, with ours around them."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        async with litellms(app) as state:
            _add(hook)
            litellm.logging_callback_manager.add_litellm_callback(UnknownKeys())
            spans = _spans(service.log.observers)
            service.watcher.start()
            if service.state is not None:
                service.state.start()
            compactor = Compactor(service.log, service.outcomes).start()
            following = asyncio.create_task(keeper.run(lambda: proxy_server.llm_router))
            try:
                yield state
            finally:  # No request runs any more.
                following.cancel()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(GLOBAL_LOGGING_WORKER.flush(), LAST_LINES_S)
                compactor.stop()
                service.watcher.stop()
                if service.state is not None:
                    service.state.stop()
                service.log.close()
                if spans is not None:
                    spans.close()

    return lifespan


def _add(hook: BrokerHook) -> None:
    """Make the hook one of LiteLLM's callbacks."""
    if any(isinstance(callback, BrokerHook) for callback in litellm.callbacks):
        raise ServiceError(
            "LiteLLM's configuration names a BrokerHook; leave it out of `callbacks`: serve adds its own"
        )
    litellm.logging_callback_manager.add_litellm_callback(hook)


def _spans(observers: Observers) -> Spans | None:
    """Begin to make spans where they are to be exported. LiteLLM has started, so its own provider is there."""
    provider = tracer_provider(os.environ)
    if provider is None:
        return None
    spans = Spans(provider.get_tracer("token-broker"))
    observers.add(spans)
    return spans


def _end_quietly_on_sigterm() -> None:
    """Uvicorn raises the signal again once it has stopped, which would end this process before it has tidied up."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
