"""The last 1,000 requests, and the shares that the offers of each cap have in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from router.portfolio.caps import REQUESTS, USD, WINDOW_REQUESTS, Cap, Limit
from router.portfolio.health import Key
from router.portfolio.tiers import Offer


class Asked(NamedTuple):
    """One request that was sent to an offer. limits: the numbers of the limits that the offer counts for."""

    limits: Collection[int]
    usd: float
    tier: str = ""
    offer: Offer | Key | None = None


class Windows:
    """How full each cap is in the rolling window.

    A request counts from the moment in which it was decided, with its expected cost; `settle` puts what it has cost in
    place of that. A window that is not full yet counts as one of WINDOW_REQUESTS requests all the same.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._asked: list[Asked] = []  # of the window, the next one to leave it at `n % WINDOW_REQUESTS`
        self.n = 0  # requests since the beginning
        self._requests = [0] * len(limits)
        self._of_usd = any(isinstance(limit, Cap) and limit.of == USD for limit in limits)
        self._usd = [0.0] * len(limits)
        self._total_usd = 0.0

    def copy(self) -> Windows:
        """The same requests, to be counted on from here on their own."""
        new = Windows(self._limits)
        new._asked, new.n, new._total_usd = self._asked.copy(), self.n, self._total_usd
        new._requests, new._usd = self._requests.copy(), self._usd.copy()
        return new

    def under(self, limits: Sequence[Limit], limits_of: Callable[[str, Offer | Key], Collection[int]]) -> Windows:
        """The same requests under other limits.

        limits_of: the numbers of the new limits for which an offer of a tier counts.
        """
        new = Windows(limits)
        new.n = self.n
        for asked in self._asked:
            counts = () if asked.offer is None else limits_of(asked.tier, asked.offer)
            new._asked.append(asked._replace(limits=counts))
            new._count(new._asked[-1], 1)
        return new

    def add(self, asked: Asked, times: int = 1) -> int:
        """Count one more request, as so many; returns the number by which `settle` finds it (the first of them)."""
        first = self.n
        for number in range(first, first + times):
            if number < WINDOW_REQUESTS:
                self._asked.append(asked)
            else:
                at = number % WINDOW_REQUESTS
                gone = self._asked[at]
                self._asked[at] = asked
                if gone.limits or self._of_usd:
                    self._count(gone, -1)
                if at == 0 and self._of_usd:
                    self._sum_again()
            if asked.limits or self._of_usd:
                self._count(asked, 1)
        self.n = first + times
        return first

    def settle(self, number: int, asked: Asked, times: int = 1) -> None:
        """Put who has answered, and what it has cost, in place of what was expected of a request, if it is still in."""
        for each in range(max(number, self.n - len(self._asked)), number + times):
            at = each % WINDOW_REQUESTS
            self._count(self._asked[at], -1)
            self._asked[at] = asked
            self._count(asked, 1)

    def excess(self, limit: int, usd: float, times: int = 1) -> float:
        """By how much so many more requests would exceed a cap, as a share of it; 0 or less where they would not.

        usd: what each of them is expected to cost.
        """
        rule = self._limits[limit]
        assert isinstance(rule, Cap)
        leaving = self._leaving(times)
        if rule.of == REQUESTS:
            n = self._requests[limit] + times - sum(limit in asked.limits for asked in leaving)
            return (n - 1e-9) / (rule.max_share * WINDOW_REQUESTS) - 1 if n > rule.max_share * WINDOW_REQUESTS else 0.0
        own, total = self._usd[limit] + times * usd, self._total_usd + times * usd
        if leaving:
            own -= sum(asked.usd for asked in leaving if limit in asked.limits)
            total -= sum(asked.usd for asked in leaving)
        else:  # The requests that are still missing are taken to cost as much as those so far.
            total *= WINDOW_REQUESTS / (len(self._asked) + times)
        return own / (rule.max_share * total) - 1 if own > rule.max_share * total > 0 else 0.0

    def share(self, limit: int) -> float:
        """The share of a cap's offers in the window, of requests or of what they cost; 0 before the first request."""
        rule = self._limits[limit]
        if isinstance(rule, Cap) and rule.of == REQUESTS:
            return self._requests[limit] / max(len(self._asked), 1)
        return self._usd[limit] / self._total_usd if self._total_usd > 0 else 0.0

    def _leaving(self, times: int) -> Sequence[Asked]:
        """The requests that the next ones push out of the window."""
        if self.n + times <= WINDOW_REQUESTS:
            return ()
        at = self.n % WINDOW_REQUESTS
        if times == 1:
            return (self._asked[at],)
        first = max(self.n, WINDOW_REQUESTS)
        return [self._asked[number % WINDOW_REQUESTS] for number in range(first, self.n + times)]

    def _count(self, asked: Asked, sign: int) -> None:
        for limit in asked.limits:
            self._requests[limit] += sign
            self._usd[limit] += sign * asked.usd
        self._total_usd += sign * asked.usd

    def _sum_again(self) -> None:
        """Sum what all requests but the first of the list cost: adding and taking away leaves rounding errors."""
        counted = self._asked[1:]
        self._total_usd = math.fsum(each.usd for each in counted)
        for limit in range(len(self._limits)):
            self._usd[limit] = math.fsum(each.usd for each in counted if limit in each.limits)
