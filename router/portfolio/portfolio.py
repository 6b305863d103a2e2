"""The portfolio: which offers are open to a request, and what the limits on them add to their price.

A limit has a shadow price: what one more request of its offers costs the requests to come (router.portfolio.shadow).
The choice is made at price and shadow price together, so the requests that gain most get the offers that are short.
What shadow prices cannot hold, the ledger does: an offer that would exceed a limit is closed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import RLock

from router.portfolio.caps import Budget, Cap, Limit
from router.portfolio.health import Health
from router.portfolio.ledger import Ledger
from router.portfolio.periods import period_start
from router.portfolio.prices import PriceTable
from router.portfolio.sessions import Sessions
from router.portfolio.shadow import ShadowPrices
from router.portfolio.terms import Request, Terms, offer_costs
from router.portfolio.tiers import Offer

DOWN = math.inf
"""The excess of an offer that is down."""


@dataclass(frozen=True)
class LimitState:
    """How full a limit is now.

    share: of the window, for a cap. spent_usd: of the present period, for a budget. shadow_price: USD per request for
    a cap on requests, else USD per USD.
    """

    limit: Limit
    share: float | None
    spent_usd: float | None
    shadow_price: float


class Portfolio:
    """The offers of a price table under its limits, without those that are down; safe to share between threads.

    clock: seconds since 1970.
    health: is told how each attempt ended, and says which offers get requests.
    sessions: conversations that are in a provider's cache. ledger: what counts for the limits.
    one_choice: whoever holds this lock chooses alone, so that what `terms` says still holds when `take` is called.
    """

    def __init__(self, prices: PriceTable, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self._lock = self.one_choice = RLock()
        self._prices = prices
        self._has_caches = prices.has_caches
        self.sessions = Sessions(clock)
        self.health = Health(clock, on_change=lambda _: self.solve())
        self.shadow = ShadowPrices(prices, self.health)
        self.ledger = Ledger(prices.limits)

    def take_prices(self, prices: PriceTable) -> None:
        """Take another price table. What was counted stays, also under other limits."""
        with self._lock:
            self._prices = prices
            self._has_caches = prices.has_caches
            if prices.limits != self.ledger.limits:
                self.ledger.take_limits(prices.limits)
            self.shadow.take_prices(prices, self.ledger, self.clock())

    @property
    def is_idle(self) -> bool:
        """Whether nothing limits the choice: no cap, no budget, and no offer that is down."""
        return not self.ledger.limits and self.health.all_up

    @property
    def has_caches(self) -> bool:
        """Whether any offer has a price of its own for cached input."""
        return self._has_caches

    def takes_freely(self, request: Request, tier: str) -> bool:
        """Count a request that goes to its tier's cheapest offer, where no limit says anything of it.

        Returns False, and counts nothing, where limits have a say.
        """
        if any(self.shadow.of_limits) or not self.health.all_up or request.warm is not None:
            return False
        terms = self.free(request, tier)
        if terms.limits:
            now = self.clock()
            if any(self.ledger.excess(limit, terms.cost_usd, now) > 0 for limit in terms.limits):
                return False
        self.take(request, terms, terms)
        return True

    def free(self, request: Request, tier: str) -> Terms:
        """The terms of a tier's cheapest offer, as if there were no limits."""
        offer = request.quoted[tier]
        return Terms(tier, offer, request.cost_usd[tier], 0.0, self.ledger.limits_for(tier, offer), 0.0, -1)

    def terms(self, request: Request) -> dict[str, Terms]:
        """For each tier the offer that is best within the limits: the least of cost and shadow price together.

        Tiers all of whose offers are closed are missing. Where that would leave no tier, the offer with the least
        excess stands for its tier: no request is left without an offer.
        """
        now = self.clock()
        every = [terms for terms in self._every(request, now) if terms.tier in request.tiers]
        opened = [terms for terms in every if terms.excess <= 0]
        if not opened:  # Whoever is not down comes first, then whoever is least beyond a limit.
            opened = sorted(every, key=lambda terms: terms.excess)[:1]
        best: dict[str, Terms] = {}
        for terms in opened:
            present = best.get(terms.tier)
            if present is None or terms.cost_usd + terms.shadow_usd < present.cost_usd + present.shadow_usd:
                best[terms.tier] = terms
        return best

    def is_closed(self, tier: str, offer: Offer, cost_usd: float) -> bool:
        """Whether an offer is down, or a request of this cost would exceed one of its limits."""
        if self.health.is_down(offer):
            return True
        with self._lock:
            now = self.clock()
            return any(self.ledger.excess(limit, cost_usd, now) > 0 for limit in self.ledger.limits_for(tier, offer))

    def closed(self, request: Request) -> dict[str, str]:
        """Why each of a request's tiers is closed, in words; tiers with an open offer are missing."""
        found: dict[str, str] = {}
        every = list(self._every(request, self.clock()))
        for tier in request.tiers:
            own = [terms for terms in every if terms.tier == tier]
            if own and all(terms.excess > 0 for terms in own):
                found[tier] = self.words(min(own, key=lambda terms: terms.excess))
        return found

    def words(self, terms: Terms) -> str:
        """The limit that an offer is beyond, or that it is down, in words."""
        return "down" if terms.excess == DOWN else str(self.ledger.limits[terms.fullest])

    def take(self, request: Request, terms: Terms, free: Terms) -> None:
        """Count a request that goes to an offer.

        free: of the offer that would have been best without limits.
        """
        now = self.clock()
        self.ledger.add(request.decision_id, terms.tier, terms.offer, terms.cost_usd, now)
        if not self.health.all_up:
            self.health.asked(terms.offer)
        self.sessions.answered(request.turn, terms.offer, request.context_tokens)
        self.shadow.learn(request, free, self.ledger, now)

    def settle(self, decision_id: str, tier: str, offer: Offer, cost_usd: float | None) -> None:
        """Count who has answered a request and what it has cost, in place of what was decided and expected.

        Call it for each further attempt, too: `cost_usd` is then what all of them have cost together.
        cost_usd: None where it is not known; then what was expected stays.
        """
        if cost_usd is not None and self.ledger.limits:
            with self._lock:
                self.ledger.settle(decision_id, tier, offer, cost_usd)

    def count(self, tier: str, offer: Offer, cost_usd: float) -> None:
        """Count one more call of a request that was decided before: of a plan, after its first."""
        if self.ledger.limits:
            with self._lock:
                self.ledger.add(None, tier, offer, cost_usd, self.clock())

    def recall(self, spent_usd: Callable[[float], Mapping[str, float]]) -> None:
        """Count in each budget what its offers have cost in its present period before this process began.

        spent_usd: from seconds since 1970 to what each model has cost since then, in USD.
        """
        with self._lock:
            now = self.clock()
            for number, limit in enumerate(self.ledger.limits):
                if isinstance(limit, Budget):
                    by_model = spent_usd(period_start(limit, now))
                    own = {
                        offer.model
                        for tier in self._prices.tiers
                        for offer in tier.offers
                        if limit.holds_for(tier.name, offer)
                    }
                    self.ledger.recall(number, math.fsum(by_model.get(model, 0.0) for model in own), now)

    def state(self) -> tuple[LimitState, ...]:
        """How full each limit is now."""
        with self._lock:
            now = self.clock()
            return tuple(
                LimitState(
                    limit=limit,
                    share=self.ledger.share(number) if isinstance(limit, Cap) else None,
                    spent_usd=self.ledger.spent_usd(number, now) if isinstance(limit, Budget) else None,
                    shadow_price=self.shadow.of_limits[number],
                )
                for number, limit in enumerate(self.ledger.limits)
            )

    def solve(self) -> None:
        """Find the shadow prices of the last requests anew: after an offer has gone down or has come back."""
        with self._lock:
            self.shadow.solve(self.ledger, self.clock())

    def _every(self, request: Request, now: float) -> Iterator[Terms]:
        """The terms of each usable offer of the admissible tiers and the others."""
        all_up = self.health.all_up
        for tier, offer, cost_usd, n_cached in offer_costs(self._prices, request):
            limits = self.ledger.limits_for(tier, offer)
            excess, fullest = (0.0, -1) if all_up or self.health.admits(offer) else (DOWN, -1)
            for limit in limits:
                over = self.ledger.excess(limit, cost_usd, now)
                if over > excess:
                    excess, fullest = over, limit
            yield Terms(tier, offer, cost_usd, self.shadow.usd(limits, cost_usd), limits, excess, fullest, n_cached)
