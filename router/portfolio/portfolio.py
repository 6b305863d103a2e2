"""The portfolio: which offers are open to a request, and what the limits on them add to their price.

A limit has a shadow price: what one more request of its offers costs the requests to come. The choice is made at price
and shadow price together, so the requests that gain most get the offers that are short. Shadow prices are those at
which the last requests would just have kept to all limits (router.portfolio.clearing), found anew every few requests.
What they cannot hold, the windows do: an offer that would exceed a limit is closed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import RLock

import numpy as np

from router.portfolio.caps import REQUESTS, WINDOW_REQUESTS, Budget, Cap, Limit
from router.portfolio.clearing import clearing_prices
from router.portfolio.health import Health, key_of
from router.portfolio.prices import PriceTable
from router.portfolio.quote import billed_input, usable_offers
from router.portfolio.sessions import Sessions
from router.portfolio.terms import Request, Terms
from router.portfolio.tiers import Offer
from router.portfolio.windows import Asked, Windows, period_start, seconds_left
from router.rule import admissible

LOOK_BACK, EVERY = 150, 25
"""Shadow prices are those of the last 150 requests, found anew after each 25. A longer look back is a little better
where requests come in a steady mix, and worse where their topics change (benchmarks/portfolio.md)."""

DOWN = math.inf
"""The excess of an offer that is down."""

_MEMORY = 0.98  # of the time between requests, per request


@dataclass(slots=True, eq=False)
class _Recent:
    """A request that was routed. free: of the offer that would have been best without limits.

    offers: what each usable offer is worth to it, by the offer's number, and costs; None while nobody has asked.
    """

    request: Request
    free: Terms
    offers: list[tuple[int, float, float]] | None = None


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

    clock: seconds since 1970. sessions: conversations that are in a provider's cache.
    health: is told how each attempt ended, and says which offers get requests.
    one_choice: whoever holds this lock chooses alone, so that what `terms` says still holds when `take` is called.
    """

    def __init__(self, prices: PriceTable, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = self.one_choice = RLock()
        self.sessions = Sessions(clock)
        self._prices = prices
        self._has_caches = prices.has_caches
        self.health = Health(clock, on_change=lambda _: self.solve())
        self._recent: deque[_Recent] = deque(maxlen=LOOK_BACK)
        self._seconds_between = 0.0
        self._last_at: float | None = None
        self._is_used = False
        self._until_solved = EVERY
        self._numbers: dict[str, int] = {}  # decision_id -> its number in the windows
        self._windows = Windows(())
        self._take_limits(prices.limits)

    def take_prices(self, prices: PriceTable) -> None:
        """Take another price table. What was counted stays, also under other limits."""
        with self._lock:
            self._prices = prices
            self._has_caches = prices.has_caches
            if prices.limits != self._limits:
                self._take_limits(prices.limits)
            for recent in self._recent:
                recent.offers = None
                recent.free = recent.free._replace(limits=self._limits_for(recent.free.tier, recent.free.offer))
            self._is_used = any(recent.free.limits for recent in self._recent)
            self._solve(self._clock())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to say: no cap, no budget, no offer that is down, and no price of cached input."""
        return not self._limits and self.health.all_up and not self.has_caches

    @property
    def has_caches(self) -> bool:
        """Whether any offer has a price of its own for cached input."""
        return self._has_caches

    def takes_freely(self, request: Request, tier: str) -> bool:
        """Count a request that goes to its tier's cheapest offer, where no limit says anything of it.

        Returns False, and counts nothing, where limits have a say.
        """
        if any(self._shadow) or not self.health.all_up or request.warm is not None:
            return False
        terms = self.free(request, tier)
        if terms.limits:
            now = self._clock()
            if any(self._windows.excess(limit, terms.cost_usd, now) > 0 for limit in terms.limits):
                return False
        self.take(request, terms, terms)
        return True

    def free(self, request: Request, tier: str) -> Terms:
        """The terms of a tier's cheapest offer, as if there were no limits."""
        offer = request.quoted[tier]
        return Terms(tier, offer, request.cost_usd[tier], 0.0, self._limits_for(tier, offer), 0.0, -1)

    def terms(self, request: Request) -> dict[str, Terms]:
        """For each tier the offer that is best within the limits: the least of cost and shadow price together.

        Tiers all of whose offers are closed are missing. Where that would leave no tier, the offer with the least
        excess stands for its tier: no request is left without an offer.
        """
        now = self._clock()
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
            now = self._clock()
            return any(self._windows.excess(limit, cost_usd, now) > 0 for limit in self._limits_for(tier, offer))

    def closed(self, request: Request) -> dict[str, str]:
        """Why each of a request's tiers is closed, in words; tiers with an open offer are missing."""
        found: dict[str, str] = {}
        every = list(self._every(request, self._clock()))
        for tier in request.tiers:
            own = [terms for terms in every if terms.tier == tier]
            if own and all(terms.excess > 0 for terms in own):
                found[tier] = self.words(min(own, key=lambda terms: terms.excess))
        return found

    def words(self, terms: Terms) -> str:
        """The limit that an offer is beyond, or that it is down, in words."""
        return "down" if terms.excess == DOWN else str(self._limits[terms.fullest])

    def take(self, request: Request, terms: Terms, free: Terms) -> None:
        """Count a request that goes to an offer.

        free: of the offer that would have been best without limits.
        """
        now = self._clock() if self._has_budgets or terms.limits else 0.0
        number = self._windows.add(Asked(terms.limits, terms.cost_usd, terms.tier, terms.offer), now)
        self._numbers[request.decision_id] = number
        if number >= 4 * WINDOW_REQUESTS:
            del self._numbers[next(iter(self._numbers))]
        if self._has_budgets:
            self._note_rate(now)
        if not self.health.all_up:
            self.health.asked(terms.offer)
        self.sessions.answered(request.turn, terms.offer, request.context_tokens)
        self._recent.append(_Recent(request, free))
        self._is_used |= bool(free.limits)
        self._until_solved -= 1
        if self._until_solved == 0:
            self._until_solved = EVERY
            if self._is_used:  # While no limited offer is wanted, there is nothing to solve.
                self._solve(self._clock())

    def settle(self, decision_id: str, tier: str, offer: Offer, cost_usd: float | None) -> None:
        """Count who has answered a request and what it has cost, in place of what was decided and expected.

        Call it for each further attempt, too: `cost_usd` is then what all of them have cost together.
        cost_usd: None where it is not known; then what was expected stays.
        """
        if not self._limits:
            return
        with self._lock:
            number = self._numbers.get(decision_id)
            if number is None or cost_usd is None:
                return
            self._windows.settle(number, Asked(self._limits_for(tier, offer), cost_usd, tier, offer), self._clock())

    def count(self, tier: str, offer: Offer, cost_usd: float) -> None:
        """Count one more call of a request that was decided before: of a plan, after its first."""
        if not self._limits:
            return
        with self._lock:
            self._windows.add(Asked(self._limits_for(tier, offer), cost_usd, tier, offer), self._clock())

    def recall(self, spent_usd: Callable[[float], Mapping[str, float]]) -> None:
        """Count in each budget what its offers have cost in its present period before this process began.

        spent_usd: from seconds since 1970 to what each model has cost since then, in USD.
        """
        with self._lock:
            now = self._clock()
            for number, limit in enumerate(self._limits):
                if isinstance(limit, Budget):
                    by_model = spent_usd(period_start(limit, now))
                    own = {
                        offer.model
                        for tier in self._prices.tiers
                        for offer in tier.offers
                        if limit.holds_for(tier.name, offer)
                    }
                    self._windows.add_spend(number, math.fsum(by_model.get(model, 0.0) for model in own), now)

    def state(self) -> tuple[LimitState, ...]:
        """How full each limit is now."""
        with self._lock:
            now = self._clock()
            return tuple(
                LimitState(
                    limit=limit,
                    share=self._windows.share(number) if isinstance(limit, Cap) else None,
                    spent_usd=self._windows.spent_usd(number, now) if isinstance(limit, Budget) else None,
                    shadow_price=self._shadow[number],
                )
                for number, limit in enumerate(self._limits)
            )

    def solve(self) -> None:
        """Find the shadow prices of the last requests anew: after an offer has gone down or has come back."""
        with self._lock:
            self._solve(self._clock())

    def _take_limits(self, limits: tuple[Limit, ...]) -> None:
        self._limits = limits
        self._limits_of: dict[tuple[str, str, str, str], tuple[int, ...]] = {}
        self._windows = self._windows.under(limits, self._limits_for)
        self._shadow = [0.0] * len(limits)
        self._has_budgets = any(isinstance(limit, Budget) for limit in limits)

    def _every(self, request: Request, now: float) -> Iterator[Terms]:
        """The terms of each usable offer of the admissible tiers and the others."""
        tiers = self._prices.tiers
        found = usable_offers(
            tiers, request.context_tokens, request.typical_output_tokens, request.accepts, minute=self._prices.minute()
        )
        for tier, offers in zip(tiers, found, strict=True):
            name = tier.name
            quoted = request.quoted.get(name)
            if quoted is None:
                continue
            n_output = request.output_tokens[name]
            n_input = billed_input(request.cost_usd[name], quoted, n_output, request.context_tokens)
            for _, _, offer in offers:
                cost = (n_input * offer.usd_per_mtok_input + n_output * offer.usd_per_mtok_output) / 1e6
                n_cached = 0.0
                if request.warm is not None and (cached_price := offer.usd_per_mtok_cached_input) is not None:
                    n_cached = request.warm.cached_tokens(offer, n_input)
                    cost -= n_cached * (offer.usd_per_mtok_input - cached_price) / 1e6
                limits = self._limits_for(name, offer)
                excess, fullest = (0.0, -1) if self.health.all_up or self.health.admits(offer) else (DOWN, -1)
                for limit in limits:
                    over = self._windows.excess(limit, cost, now)
                    if over > excess:
                        excess, fullest = over, limit
                yield Terms(name, offer, cost, self._shadow_usd(limits, cost), limits, excess, fullest, n_cached)

    def _note_rate(self, now: float) -> None:
        """Learn how often requests come, by which budgets are paced."""
        if self._last_at is not None:
            gap = max(0.0, now - self._last_at)
            before = self._seconds_between
            self._seconds_between = _MEMORY * before + (1 - _MEMORY) * gap if before else gap
        self._last_at = now

    def _shadow_usd(self, limits: tuple[int, ...], cost_usd: float) -> float:
        """What the limits add to the price of one request."""
        total = 0.0
        for number, price in enumerate(self._shadow):
            if not price:
                continue
            limit = self._limits[number]
            counts = number in limits
            if isinstance(limit, Budget):
                total += price * cost_usd * counts
            elif limit.of == REQUESTS:
                total += price * counts
            else:  # What others cost makes room for these.
                total += price * cost_usd * (counts - limit.max_share)
        return total

    def _solve(self, now: float) -> None:
        """Shadow prices at which the last requests would just have kept to all limits."""
        n = len(self._recent)
        if not self._limits or n == 0:
            return
        targets = [self._target_usd(number, now) for number in range(len(self._limits))]
        budgets = [None if target is None else n * target for target in targets]
        if not any(self._shadow) and self.health.all_up and self._free_choices_keep_to(budgets):
            self._is_used = any(recent.free.limits for recent in self._recent)
            return
        values, costs, counts = self._arrays(now)
        self._shadow = clearing_prices(values, costs, counts, self._limits, budgets, self._shadow)

    def _arrays(self, now: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What each offer is worth to each of the last requests, what it costs, and for which limits it counts.

        Values and costs are (n_requests, n_offers), counts (n_limits, n_offers).
        """
        offers = {(tier.name, key_of(offer)): offer for tier in self._prices.tiers for offer in tier.offers}
        numbers = {key: number for number, key in enumerate(offers)}
        shape = len(self._recent), len(numbers)
        values, costs = np.full(shape, -np.inf), np.zeros(shape)
        for row, recent in enumerate(self._recent):
            if recent.offers is None:
                request = recent.request
                tiers = admissible(request.tiers, request.success, request.slack)
                recent.offers = [
                    (numbers[terms.tier, key_of(terms.offer)], _value(request, terms), terms.cost_usd)
                    for terms in self._every(request, now)
                    if terms.tier in tiers
                ]
            for number, value, cost in recent.offers:
                values[row, number], costs[row, number] = value, cost
        is_down = [self.health.is_down(offer) for offer in offers.values()]
        values[:, is_down] = -np.inf
        counted = [self._limits_for(tier, offer) for (tier, _), offer in offers.items()]
        return values, costs, np.array([[limit in own for own in counted] for limit in range(len(self._limits))])

    def _free_choices_keep_to(self, budgets_usd: Sequence[float | None]) -> bool:
        """Whether the last requests would have kept to all limits without any shadow price."""
        n, total = len(self._recent), math.fsum(recent.free.cost_usd for recent in self._recent)
        for number, limit in enumerate(self._limits):
            own = [recent.free.cost_usd for recent in self._recent if number in recent.free.limits]
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

    def _target_usd(self, number: int, now: float) -> float | None:
        """What a budget allows for the next request, so that it lasts until its period ends; None for a cap.

        None, too, before it is known how often requests come.
        """
        limit = self._limits[number]
        if not isinstance(limit, Budget) or self._seconds_between <= 0:
            return None
        left = max(0.0, limit.usd - self._windows.spent_usd(number, now))
        return left * min(1.0, self._seconds_between / seconds_left(limit, now))

    def _limits_for(self, tier: str, offer: Offer) -> tuple[int, ...]:
        key = (tier, offer.provider, offer.region, offer.model)
        found = self._limits_of.get(key)
        if found is None:
            found = tuple(number for number, limit in enumerate(self._limits) if limit.holds_for(tier, offer))
            self._limits_of[key] = found
        return found


def _value(request: Request, terms: Terms) -> float:
    """What an offer is worth to a request, without shadow prices."""
    return request.worth_usd * request.success[terms.tier] - terms.cost_usd
