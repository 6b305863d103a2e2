"""The thread that exchanges a portfolio's state with the other workers through Redis or Valkey."""

from __future__ import annotations

import logging
import secrets
import time
from importlib.resources import files
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Any

from router.errors import StateError
from router.extras import install_command
from router.portfolio.portfolio import Portfolio
from router.portfolio.shared import SharedPortfolio
from router.redis.wire import PREFIX, Place, heard_of, message_of

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise ImportError(f"shared state needs redis: {install_command('redis')}") from error

logger = logging.getLogger(__name__)

INTERVAL_S, LEAST_INTERVAL_S, REQUESTS_PER_EXCHANGE = 0.1, 0.02, 10
"""Seconds between two exchanges. A busy worker exchanges earlier, so that others miss about ten requests of it."""

TIMEOUT_S = 0.5
"""Seconds for which Redis is waited for, in the background."""

AWAY_S = 1.0
"""Seconds until a Redis that did not answer is tried again."""

PROBE_S = 2.0
"""Seconds for which a worker that may probe an offer waits for a request to do it with; then another one may."""


class SharedState:
    """Shares the state of a portfolio with all workers that name the same Redis: Redis 6.2 or Valkey 7.2, or newer.

    >>> with SharedState(router.portfolio, "redis://localhost:6379/0"):     # doctest: +SKIP
    ...     serve(router)

    Caps, budgets, the health of offers and conversations are then those of all workers together (docs/portfolio.md).
    Requests never wait for Redis: they are decided on what this worker knows, and a thread exchanges news in the
    background. While Redis does not answer, this worker goes on with its share of what was left. That is logged once,
    and once more when Redis is back.

    url: redis://, rediss:// or unix://, with user and password where Redis asks for them. They are never logged.
    Raises StateError where the URL is none.
    """

    def __init__(self, portfolio: Portfolio, url: str, *, interval_s: float = INTERVAL_S) -> None:
        self._client = _client(url)
        self._script = self._client.register_script(files(__package__).joinpath("exchange.lua").read_text("utf-8"))
        self._portfolio = portfolio
        self._worker = secrets.token_hex(8)
        self._shared = SharedPortfolio(portfolio, self._worker)
        self._interval_s = interval_s
        self._place = Place()
        self._ahead_s = 0.0
        self._n_workers = 1
        self._pause_s = interval_s
        self._one_at_a_time = Lock()
        self._trouble = ""
        self._was_away = True
        self._away_since = 0.0
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def alive(self) -> bool:
        """Whether the thread runs; False before `start`, after `stop`, and in a process that was forked."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def trouble(self) -> str:
        """Why Redis has not answered last; empty where it has."""
        return self._trouble

    @property
    def where(self) -> str:
        """Host, port and database, or the path of the socket; no user, no password."""
        found = self._client.get_connection_kwargs()
        place = found.get("path") or f"{found.get('host')}:{found.get('port')}"
        return f"{place}/{found.get('db') or 0}"

    @property
    def n_workers(self) -> int:
        """How many workers share the state, as far as this one has heard."""
        return self._n_workers

    def start(self) -> SharedState:
        """Take the present state, then exchange it in a daemon thread. Raises nothing: trouble is logged.

        Changes nothing where the thread runs already.
        """
        if not self.alive:
            self.exchange()
            self._stop.clear()
            self._thread = Thread(target=self._run, name="token-broker-state", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Tell the others what they don't know yet, and end the thread; the portfolio keeps what it has."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self.exchange():
                self._leave()
        self._client.close()

    def __enter__(self) -> SharedState:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def exchange(self) -> bool:
        """Exchange once, now; returns whether Redis has answered. Raises nothing."""
        with self._one_at_a_time:
            news = self._shared.news(PROBE_S)
            try:
                message = message_of(news, self._place, ahead_s=self._ahead_s, raises=self._was_away)
                before_s = time.monotonic()
                reply: Any = self._script(keys=message.keys, args=message.arguments)
                half_s = (time.monotonic() - before_s) / 2
                self._ahead_s = float(reply[0]) / 1000 - (self._portfolio.clock() - half_s)
                heard = heard_of(
                    reply,
                    message,
                    self._place,
                    at_s=before_s,  # At the earliest: a request that may be news to the others counts as such.
                    ahead_s=self._ahead_s,
                    probe_s=PROBE_S / 2,
                )
                self._shared.hear(heard)
            except Exception as error:  # Whatever it is, serving goes on.
                self._shared.missed(news)
                self._was_away = True
                self._say_away(error)
                return False
            self._was_away = False
            n_told = max(1, len(news.batch.asked))
            soon_s = self._pause_s * REQUESTS_PER_EXCHANGE / n_told
            self._pause_s = min(self._interval_s, max(LEAST_INTERVAL_S, soon_s))
            self._n_workers = 1 + len(heard.others_s)
            self._say_back()
            return True

    def _run(self) -> None:
        wait_s = self._pause_s
        while not self._stop.wait(wait_s):
            wait_s = self._pause_s if self.exchange() else AWAY_S

    def _leave(self) -> None:
        """Be counted as a worker no longer."""
        try:
            self._client.zrem(f"{PREFIX}:workers", self._worker)
        except redis.RedisError:
            pass  # It is forgotten after some seconds.

    def _say_away(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if password := self._client.get_connection_kwargs().get("password"):
            text = text.replace(password, "***")
        if not self._trouble:
            self._away_since = time.monotonic()
            logger.warning("shared state: %s does not answer (%s); going on without the others", self.where, text)
        self._trouble = text

    def _say_back(self) -> None:
        if self._trouble:
            away_s = time.monotonic() - self._away_since
            logger.warning("shared state: %s is back after %.0f s", self.where, away_s)
        self._trouble = ""


def _client(url: str) -> redis.Redis:
    try:
        return redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
    except (ValueError, TypeError):  # Its text may hold a part of a password.
        raise StateError(
            "the URL of the shared state cannot be read; expected redis://HOST:PORT/DB, rediss:// or unix://PATH"
        ) from None
