"""Shadow prices: what one more request of an offer that is short costs the requests to come.

They are the prices at which the last requests would just have kept to all limits (router.portfolio.clearing), found
anew every few requests.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from router.portfolio.caps import REQUESTS, Budget
from router.portfolio.clearing import clearing_prices
from router.portfolio.health import Health, Key, key_of
from router.portfolio.ledger import Ledger
from router.portfolio.periods import seconds_left
from router.portfolio.prices import PriceTable
from router.portfolio.terms import Request, Terms, offer_costs
from router.portfolio.tiers import Offer
from router.rule import admissible

LOOK_BACK, EVERY = 150, 25
"""Shadow prices are those of the last 150 requests, found anew after each 25. A longer look back is a little better
where requests come in a steady mix, and worse where their topics change (benchmarks/portfolio.md)."""

_MEMORY = 0.98  # of the time between requests, per request


class Worth(NamedTuple):
    """What an offer of a tier is worth to a request without shadow prices, and what it costs."""

    tier: str
    offer: Key
    value_usd: float
    cost_usd: float


@dataclass(slots=True)
class Routed:
    """A request that was routed. tier, offer, usd: who would have answered without limits, and at what cost.

    offers: what each one that it could use is worth to it; None while nobody has asked. request: it is needed to find
    that out; None where another worker has routed it.
    """

    tier: str
    offer: Offer | Key
    usd: float
    offers: Sequence[Worth] | None = None
    request: Request | None = None


class ShadowPrices:
    """The shadow price of each limit; the portfolio's lock guards it.

    of_limits: USD per request for a cap on requests, else USD per USD; in the order of the limits.
    """

    def __init__(self, prices: PriceTable, health: Health) -> None:
        self._prices = prices
        self._health = health
        self._recent: deque[Routed] = deque(maxlen=LOOK_BACK)
        self._untold: deque[Routed] = deque(maxlen=LOOK_BACK)  # of this worker, which others don't know of
        self._seconds_between = 0.0
        self._last_at: float | None = None
        self._is_used = False
        self._until_solved = EVERY
        self.of_limits = [0.0] * len(prices.limits)

    def take_prices(self, prices: PriceTable, ledger: Ledger, now: float) -> None:
        """Take another price table, under whose limits the ledger is already."""
        if prices.limits != self._prices.limits:
            self.of_limits = [0.0] * len(prices.limits)
        self._prices = prices
        own = [recent for recent in self._recent if recent.request is not None]
        self._recent = deque(own, maxlen=LOOK_BACK)  # Those of other workers are worth what they were at other prices.
        for recent in own:
            recent.offers = None
        self._is_used = any(self._limits_of_recent(ledger))
        self.solve(ledger, now)

    def usd(self, limits: tuple[int, ...], cost_usd: float) -> float:
        """What the limits add to the price of one request. limits: the numbers of those that it counts for."""
        total = 0.0
        for number, price in enumerate(self.of_limits):
            if not price:
                continue
            limit = self._prices.limits[number]
            counts = number in limits
            if isinstance(limit, Budget):
                total += price * cost_usd * counts
            elif limit.of == REQUESTS:
                total += price * counts
            else:  # What others cost makes room for these.
                total += price * cost_usd * (counts - limit.max_share)
        return total

    def learn(self, request: Request, free: Terms, ledger: Ledger, now: float) -> None:
        """Learn from a request that was routed. free: of the offer that would have been best without limits."""
        if ledger.has_budgets:
            self._note_rate(now)
        routed = Routed(tier=free.tier, offer=free.offer, usd=free.cost_usd, request=request)
        self._untold.append(routed)
        self.hear(routed, ledger)
        if self._until_solved <= 0:
            self._until_solved = EVERY
            if self._is_used:  # While no limited offer is wanted, there is nothing to solve.
                self.solve(ledger, now)

    def hear(self, routed: Routed, ledger: Ledger) -> None:
        """Learn from a request that another worker has routed."""
        self._recent.append(routed)
        self._is_used |= bool(ledger.limits_for(routed.tier, routed.offer))
        self._until_solved -= 1

    def untold(self) -> list[Routed]:
        """The last requests of this worker since the last call, if other workers have anything to learn from them."""
        untold, self._untold = self._untold, deque(maxlen=LOOK_BACK)
        if not self._is_used:
            return []
        return [Routed(tier=each.tier, offer=each.offer, usd=each.usd, offers=self._offers(each)) for each in untold]

    def solve(self, ledger: Ledger, now: float) -> None:
        """Find the shadow prices of the last requests anew."""
        n, limits = len(self._recent), self._prices.limits
        if not limits or n == 0:
            return
        targets = [self._target_usd(number, ledger, now) for number in range(len(limits))]
        budgets = [None if target is None else n * target for target in targets]
        if not any(self.of_limits) and self._health.all_up and self._free_choices_keep_to(budgets, ledger):
            self._is_used = any(self._limits_of_recent(ledger))
            return
        values, costs, counts = self._arrays(ledger)
        self.of_limits = clearing_prices(values, costs, counts, limits, budgets, self.of_limits)

    def _note_rate(self, now: float) -> None:
        """Learn how often requests come, by which budgets are paced."""
        if self._last_at is not None:
            gap = max(0.0, now - self._last_at)
            before = self._seconds_between
            self._seconds_between = _MEMORY * before + (1 - _MEMORY) * gap if before else gap
        self._last_at = now

    def _arrays(self, ledger: Ledger) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each offer is worth to each of the last requests, what it costs, and for which limits it counts.

        Values and costs are (n_requests, n_offers), counts (n_limits, n_offers).
        """
        offers = {(tier.name, key_of(offer)): offer for tier in self._prices.tiers for offer in tier.offers}
        numbers = {key: number for number, key in enumerate(offers)}
        shape = len(self._recent), len(numbers)
        values, costs = np.full(shape, -np.inf), np.zeros(shape)
        for row, recent in enumerate(self._recent):
            for tier, key, value, cost in self._offers(recent):
                if (number := numbers.get((tier, key))) is not None:
                    values[row, number], costs[row, number] = value, cost
        is_down = [self._health.is_down(offer) for offer in offers.values()]
        values[:, is_down] = -np.inf
        counted = [ledger.limits_for(tier, offer) for (tier, _), offer in offers.items()]
        n_limits = len(self._prices.limits)
        return values, costs, np.array([[limit in own for own in counted] for limit in range(n_limits)])

    def _offers(self, routed: Routed) -> Sequence[Worth]:
        """What each offer is worth to a request, of the tiers that are admissible for it."""
        if routed.offers is None:
            request = routed.request
            assert request is not None
            tiers = admissible(request.tiers, request.success, request.slack)
            routed.offers = [
                Worth(tier, key_of(offer), request.worth_usd * request.success[tier] - usd, usd)
                for tier, offer, usd, _ in offer_costs(self._prices, request)
                if tier in tiers
            ]
        return routed.offers

    def _limits_of_recent(self, ledger: Ledger) -> list[tuple[int, ...]]:
        """The numbers of the limits that each of the last requests would have counted for without limits."""
        return [ledger.limits_for(recent.tier, recent.offer) for recent in self._recent]

    def _free_choices_keep_to(self, budgets_usd: Sequence[float | None], ledger: Ledger) -> bool:
        """Whether the last requests would have kept to all limits without any shadow price."""
        n, total = len(self._recent), math.fsum(recent.usd for recent in self._recent)
        limits_of = self._limits_of_recent(ledger)
        for number, limit in enumerate(self._prices.limits):
            own = [recent.usd for recent, limits in zip(self._recent, limits_of, strict=True) if number in limits]
            if isinstance(limit, Budget):
                budget = budgets_usd[number]
                if budget is not None and math.fsum(own) > budget:
                    return False
            elif limit.of == REQUESTS:
                if len(own) > limit.max_share * n:
                    return False
            elif math.fsum(own) > limit.max_share * total:
                return False
        return True

    def _target_usd(self, number: int, ledger: Ledger, now: float) -> float | None:
        """What a budget allows for the next request, so that it lasts until its period ends; None for a cap.

        None, too, before it is known how often requests come. All workers are taken to get as many as this one.
        """
        limit = self._prices.limits[number]
        if not isinstance(limit, Budget) or self._seconds_between <= 0:
            return None
        left = max(0.0, limit.usd - ledger.spent_usd(number, now))
        return left * min(1.0, self._seconds_between / ledger.n_workers / seconds_left(limit, now))
