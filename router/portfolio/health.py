"""The health of offers: one that fails, throttles or turns slow loses its traffic, and gets it back little by little.

A circuit breaker for each offer (Nygard, "Release It!", 2007). It opens after a few failures, or at once where the
provider says when to come back. When its time is over, one request at a time tries the offer again; after the first
success a growing share of requests does.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Lock
from typing import NamedTuple

from router.portfolio.tiers import Offer

FAILURES, OF_LAST = 3, 10
"""An offer is down after 3 failures among its last 10 answers."""

FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGEST_RETRY_AFTER_S = 5.0, 30.0, 300.0
"""How long it gets no request: doubled each time that a probe fails, or as long as the provider asks for."""

PROBE_TIMEOUT_S = 60.0
"""A probe that nobody has heard of for so long counts as lost, and another one is sent."""

FIRST_SHARE = 0.1
"""The share of requests that may use an offer after its first success; each further success doubles it."""

SLOW_FACTOR, SLOW_FROM_MS, SLOW_AFTER = 5.0, 1000.0, 20
"""An answer is a failure where it takes five times as long as is usual there, and at least a second; what is usual is
known after 20 answers."""

_MEMORY = 0.95  # of the usual time, per answer


class State(StrEnum):
    """Whether an offer gets requests: all, some, one at a time, or none."""

    UP = "up"
    RECOVERING = "recovering"
    PROBED = "probed"
    DOWN = "down"


class Key(NamedTuple):
    """What names an offer, whatever its prices."""

    provider: str
    region: str
    model: str


@dataclass
class _Usual:
    """How long answers usually take."""

    ms: float = 0.0
    n: int = 0


@dataclass
class _Breaker:
    last: deque[bool] = field(default_factory=lambda: deque(maxlen=OF_LAST))
    down_until: float | None = None
    pause_s: float = FIRST_PAUSE_S
    probed_at: float | None = None
    share: float = 1.0
    usual: dict[str, _Usual] = field(default_factory=dict)
    why: str = ""
    wanted: bool = False  # by a request, since others were last asked whether this worker may probe
    may_probe_until: float = 0.0


class Condition(NamedTuple):
    """What the workers of one service tell each other of an offer.

    down_until: in seconds of the clock; None where it is not down. share: of requests that may use it, 0 to 1.
    is_opened: whether a failure has just taken it out; this holds whatever another worker says at the same time.
    """

    down_until: float | None
    pause_s: float
    share: float
    why: str
    is_opened: bool = False


@dataclass(frozen=True)
class OfferHealth:
    """How an offer does now. share: of requests that may use it, 0 to 1. why: the last failure; empty without one."""

    offer: Key
    state: State
    share: float
    why: str


class Health:
    """The health of all offers that have been asked; safe to share between threads.

    clock: seconds, of any origin. draw: random numbers in [0, 1), for offers that recover.
    on_change: called with an offer's key whenever it goes down or is fully up again.
    probes_alone: whether this process decides alone when to probe; False where workers share their probes.
    """

    probes_alone = True

    def __init__(
        self,
        clock: Callable[[], float],
        draw: Callable[[], float] = random.random,
        on_change: Callable[[Key], None] | None = None,
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._on_change = on_change or (lambda key: None)
        self._breakers: dict[Key, _Breaker] = {}
        self._lock = Lock()
        self._n_troubled = 0
        self._untold: dict[Key, bool] = {}  # what others don't know yet, and whether it is a failure

    @property
    def all_up(self) -> bool:
        """Whether every offer gets all its requests."""
        return self._n_troubled == 0

    def admits(self, offer: Offer) -> bool:
        """Whether a request may use the offer now. A request that is a probe must be answered by it."""
        breaker = self._breakers.get(key_of(offer))
        if breaker is None:
            return True
        with self._lock:
            state, now = self._state(breaker), self._clock()
            if state is State.PROBED:
                breaker.wanted = True
                is_free = breaker.probed_at is None or now - breaker.probed_at > PROBE_TIMEOUT_S
                return is_free and (self.probes_alone or now < breaker.may_probe_until)
            return state is State.UP or (state is State.RECOVERING and self._draw() < breaker.share)

    def is_down(self, offer: Offer) -> bool:
        """Whether an offer gets no request now, or only one at a time."""
        breaker = self._breakers.get(key_of(offer))
        return breaker is not None and self._state(breaker) in (State.DOWN, State.PROBED)

    def asked(self, offer: Offer) -> None:
        """Note that a request is sent to an offer; where it is tried again, this is the probe."""
        breaker = self._breakers.get(key_of(offer))
        if breaker is not None and self._state(breaker) is State.PROBED:
            breaker.probed_at = self._clock()

    def failed(self, offer: Offer, why: str, retry_after_s: float | None = None) -> None:
        """An attempt has failed: an error, a timeout, a broken stream, or an answer that is none.

        why: in a few words, for people; without texts of prompts or keys. retry_after_s: what the provider asks for.
        """
        key = key_of(offer)
        with self._lock:
            breaker = self._breakers.setdefault(key, _Breaker())
            was_up = breaker.share == 1.0 and breaker.down_until is None
            breaker.why = why[:200]
            breaker.last.append(False)
            is_probe = self._state(breaker) is not State.UP
            too_many = breaker.last.count(False) >= FAILURES
            if retry_after_s is None and not is_probe and not too_many:
                return
            if is_probe:
                breaker.pause_s = min(2 * breaker.pause_s, LONGEST_PAUSE_S)
            pause_s = breaker.pause_s if retry_after_s is None else min(max(retry_after_s, 0.0), LONGEST_RETRY_AFTER_S)
            breaker.down_until, breaker.probed_at, breaker.share = self._clock() + pause_s, None, 0.0
            self._n_troubled += was_up
            self._untold[key] = True
        if was_up:
            self._on_change(key)

    def succeeded(self, offer: Offer, latency_ms: float | None = None, kind: str = "") -> None:
        """An attempt has been answered. An answer far slower than usual is a failure all the same.

        latency_ms: how long it took. kind: what was timed; only times of the same kind are compared.
        """
        key = key_of(offer)
        with self._lock:
            breaker = self._breakers.setdefault(key, _Breaker())
            usual = breaker.usual.setdefault(kind, _Usual())
            is_slow = self._is_slow(usual, latency_ms)
        if is_slow:
            self.failed(offer, f"slow: {latency_ms:.0f} ms, where {usual.ms:.0f} ms are usual")
            return
        with self._lock:
            breaker.last.append(True)
            state = self._state(breaker)
            if state is State.UP or state is State.DOWN:  # An answer to a request from before it went down.
                return
            breaker.share = min(1.0, 2 * breaker.share) if breaker.down_until is None else FIRST_SHARE
            breaker.down_until, breaker.probed_at = None, None
            self._untold.setdefault(key, False)
            if breaker.share < 1:
                return
            breaker.pause_s = FIRST_PAUSE_S
            breaker.last.clear()
            self._n_troubled -= 1
        self._on_change(key)

    def state(self) -> tuple[OfferHealth, ...]:
        """The health of every offer that has been asked."""
        with self._lock:
            return tuple(
                OfferHealth(offer=key, state=self._state(breaker), share=breaker.share, why=breaker.why)
                for key, breaker in self._breakers.items()
            )

    def untold(self) -> dict[Key, Condition]:
        """The offers whose condition has changed since the last call."""
        with self._lock:
            untold, self._untold = self._untold, {}
            return {key: self._condition(key, is_opened) for key, is_opened in untold.items()}

    def tell_again(self, conditions: Mapping[Key, Condition]) -> None:
        """Others have not heard of these: let the next call of `untold` name them, too."""
        with self._lock:
            for key, condition in conditions.items():
                self._untold[key] = condition.is_opened or self._untold.get(key, False)

    def hear(self, key: Key, condition: Condition) -> None:
        """Take what another worker says of an offer; a failure that others have not heard of yet stands against it."""
        with self._lock:
            if self._untold.get(key):
                return
            self._untold.pop(key, None)
            breaker = self._breakers.setdefault(key, _Breaker())
            was_up = breaker.share == 1.0 and breaker.down_until is None
            breaker.down_until, breaker.pause_s, breaker.share, breaker.why = condition[:4]
            breaker.probed_at, breaker.may_probe_until = None, 0.0
            is_up = breaker.share == 1.0 and breaker.down_until is None
            if is_up:
                breaker.last.clear()
            self._n_troubled += was_up - is_up
        if was_up != is_up:
            self._on_change(key)

    def probes(self, for_s: float) -> dict[Key, float]:
        """The offers that this worker has a request for to probe them, and for how many seconds.

        for_s: how long to wait for the request. A probe that was sent holds for the rest of PROBE_TIMEOUT_S.
        """
        found = {}
        with self._lock:
            now = self._clock()
            for key, breaker in self._breakers.items():
                if self._state(breaker) is not State.PROBED:
                    continue
                left = 0.0 if breaker.probed_at is None else breaker.probed_at + PROBE_TIMEOUT_S - now
                if left > 0 or breaker.wanted:
                    found[key] = left if left > 0 else for_s
                breaker.wanted = False
        return found

    def may_probe(self, key: Key, for_s: float) -> None:
        """Let this worker probe an offer within so many seconds: no other one does."""
        with self._lock:
            self._breakers[key].may_probe_until = self._clock() + for_s

    def _condition(self, key: Key, is_opened: bool) -> Condition:
        breaker = self._breakers[key]
        return Condition(breaker.down_until, breaker.pause_s, breaker.share, breaker.why, is_opened)

    def _state(self, breaker: _Breaker) -> State:
        if breaker.down_until is not None:
            return State.DOWN if self._clock() < breaker.down_until else State.PROBED
        return State.UP if breaker.share == 1.0 else State.RECOVERING

    @staticmethod
    def _is_slow(usual: _Usual, latency_ms: float | None) -> bool:
        """Whether an answer took far longer than usual; one that did not is counted in what is usual."""
        if latency_ms is None:
            return False
        is_known = usual.n >= SLOW_AFTER
        if is_known and latency_ms > max(SLOW_FROM_MS, SLOW_FACTOR * usual.ms):
            return True
        usual.n += 1
        usual.ms += (1 - _MEMORY if is_known else 1 / usual.n) * (latency_ms - usual.ms)
        return False


def key_of(offer: Offer | Key) -> Key:
    """What names an offer, whatever its prices."""
    return Key(offer.provider, offer.region, offer.model)
