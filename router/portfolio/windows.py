"""What was asked lately of whom: shares in a rolling window of requests, and spend in periods of the calendar."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from router.portfolio.caps import REQUESTS, SECONDS, USD, WINDOW_REQUESTS, Budget, Cap, Limit
from router.portfolio.tiers import Offer


class Asked(NamedTuple):
    """One request that was sent to an offer. limits: the numbers of the limits that the offer counts for."""

    limits: Collection[int]
    usd: float
    tier: str = ""
    offer: Offer | None = None


class Windows:
    """How full each limit is.

    A request counts from the moment in which it was decided, with its expected cost; `settle` puts what it has cost in
    place of that. A window that is not full yet counts as one of WINDOW_REQUESTS requests all the same.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        self._limits = limits
        self._asked: list[Asked] = []  # of the window, the next one to leave it at `_n % WINDOW_REQUESTS`
        self._n = 0  # requests since the beginning
        self._requests = [0] * len(limits)
        self._of_usd = any(isinstance(limit, Cap) and limit.of == USD for limit in limits)
        self._usd = [0.0] * len(limits)
        self._total_usd = 0.0
        self._periods = [_period(limit, 0.0) for limit in limits]
        self._spent = [0.0] * len(limits)

    def under(self, limits: Sequence[Limit], limits_of: Callable[[str, Offer], Collection[int]]) -> Windows:
        """The same requests under other limits. A budget keeps what was spent, also where its amount is another one.

        limits_of: the numbers of the new limits for which an offer of a tier counts.
        """
        new = Windows(limits)
        new._n = self._n
        for asked in self._asked:
            counts = () if asked.offer is None else limits_of(asked.tier, asked.offer)
            new._asked.append(asked._replace(limits=counts))
            new._count(new._asked[-1], 1)
        before = {_whose(limit): number for number, limit in enumerate(self._limits) if isinstance(limit, Budget)}
        for number, limit in enumerate(limits):
            if isinstance(limit, Budget) and (old := before.get(_whose(limit))) is not None:
                new._periods[number], new._spent[number] = self._periods[old], self._spent[old]
        return new

    def add(self, asked: Asked, now: float) -> int:
        """Count one more request; returns the number by which `settle` finds it."""
        number = self._n
        if number < WINDOW_REQUESTS:
            self._asked.append(asked)
        else:
            at = number % WINDOW_REQUESTS
            gone = self._asked[at]
            self._asked[at] = asked
            if gone.limits or self._of_usd:
                self._count(gone, -1)
            if at == 0 and self._of_usd:
                self._sum_again(without=asked)
        if asked.limits or self._of_usd:
            self._count(asked, 1)
            self._spend(asked.limits, asked.usd, now)
        self._n = number + 1
        return number

    def settle(self, number: int, asked: Asked, now: float) -> None:
        """Put who has answered, and what it has cost, in place of what was expected of a request."""
        if number >= self._n - len(self._asked):
            at = number % WINDOW_REQUESTS
            before = self._asked[at]
            self._asked[at] = asked
            self._count(before, -1)
            self._count(asked, 1)
            self._spend(before.limits, -before.usd, now)
        self._spend(asked.limits, asked.usd, now)

    def excess(self, limit: int, usd: float, now: float) -> float:
        """By how much one more request would exceed a limit, as a share of it; 0 or less where it would not.

        usd: what the request is expected to cost.
        """
        rule = self._limits[limit]
        if isinstance(rule, Budget):
            return (self.spent_usd(limit, now) + usd) / rule.usd - 1
        leaves = self._asked[self._n % WINDOW_REQUESTS] if self._n >= WINDOW_REQUESTS else None
        if rule.of == REQUESTS:
            n = self._requests[limit] + 1 - (leaves is not None and limit in leaves.limits)
            return (n - 1e-9) / (rule.max_share * WINDOW_REQUESTS) - 1 if n > rule.max_share * WINDOW_REQUESTS else 0.0
        own, total = self._usd[limit] + usd, self._total_usd + usd
        if leaves is not None:
            own -= leaves.usd if limit in leaves.limits else 0.0
            total -= leaves.usd
        else:  # The requests that are still missing are taken to cost as much as those so far.
            total *= WINDOW_REQUESTS / (len(self._asked) + 1)
        return own / (rule.max_share * total) - 1 if own > rule.max_share * total > 0 else 0.0

    def share(self, limit: int) -> float:
        """The share of a cap's offers in the window, of requests or of what they cost; 0 before the first request."""
        rule = self._limits[limit]
        if isinstance(rule, Cap) and rule.of == REQUESTS:
            return self._requests[limit] / max(len(self._asked), 1)
        return self._usd[limit] / self._total_usd if self._total_usd > 0 else 0.0

    def spent_usd(self, limit: int, now: float) -> float:
        """What the offers of a budget have cost in its present period."""
        period = _period(self._limits[limit], now)
        if period != self._periods[limit]:
            self._periods[limit], self._spent[limit] = period, 0.0
        return self._spent[limit]

    def add_spend(self, limit: int, usd: float, now: float) -> None:
        """Count in the present period of a budget what was spent in it before this process began."""
        self._spent[limit] = self.spent_usd(limit, now) + usd

    def _spend(self, limits: Collection[int], usd: float, now: float) -> None:
        for limit in limits:
            if isinstance(self._limits[limit], Budget):
                self._spent[limit] = max(0.0, self.spent_usd(limit, now) + usd)

    def _count(self, asked: Asked, sign: int) -> None:
        for limit in asked.limits:
            self._requests[limit] += sign
            self._usd[limit] += sign * asked.usd
        self._total_usd += sign * asked.usd

    def _sum_again(self, without: Asked) -> None:
        """Adding and taking away leaves rounding errors, which must not grow for ever."""
        counted = [each for each in self._asked if each is not without]
        self._total_usd = math.fsum(each.usd for each in counted)
        for limit in range(len(self._limits)):
            self._usd[limit] = math.fsum(each.usd for each in counted if limit in each.limits)


def _whose(budget: Budget) -> tuple[str, str, str, str]:
    """What makes two budgets one, whatever their amounts."""
    return budget.per, budget.provider, budget.region, budget.tier


def _period(limit: Limit, now: float) -> object:
    """What names the present hour, day or month of a budget. now: seconds since 1970."""
    if not isinstance(limit, Budget):
        return None
    if seconds := SECONDS[limit.per]:
        return int(now // seconds)
    moment = datetime.fromtimestamp(now, UTC)
    return moment.year, moment.month


def period_start(budget: Budget, now: float) -> float:
    """When the present period of a budget began, in seconds since 1970."""
    if seconds := SECONDS[budget.per]:
        return now - now % seconds
    moment = datetime.fromtimestamp(now, UTC)
    return datetime(moment.year, moment.month, 1, tzinfo=UTC).timestamp()


def seconds_left(budget: Budget, now: float) -> float:
    """Seconds until the present period of a budget ends."""
    if seconds := SECONDS[budget.per]:
        return seconds - now % seconds
    moment = datetime.fromtimestamp(now, UTC)
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp() - now
