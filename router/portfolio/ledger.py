"""What was asked of whom and what it has cost, held against the limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from router.portfolio.caps import WINDOW_REQUESTS, Budget, Limit
from router.portfolio.health import Key
from router.portfolio.periods import period_end, period_start
from router.portfolio.tiers import Offer
from router.portfolio.windows import Asked, Windows

NANO = 1_000_000_000
"""Spend is counted in whole billionths of a USD, so that sums are exact in whatever order they are made."""


class Account(NamedTuple):
    """One period of one budget, whatever the budget's amount. begin: seconds since 1970."""

    per: str
    provider: str
    region: str
    tier: str
    begin: int


@dataclass(slots=True)
class Counted:
    """A request that this worker has counted, with what is known of it now.

    number: of the request among those of this worker. place: in the window, where it counts as `times` requests.
    at: when it was counted, in seconds since 1970; its cost belongs to the budgets of that time. monotonic_s: the same
    on a clock that is never set, to tell what came before what.
    """

    number: int
    place: int
    times: int
    tier: str
    offer: Offer | Key
    usd: float
    at: float
    monotonic_s: float = 0.0


class Ledger:
    """The requests of this process against the limits: shares in the window, and spend by period.

    It is not safe to share between threads; the portfolio's lock guards it.
    """

    n_workers = 1
    """How many workers the limits are shared by."""

    def __init__(self, limits: tuple[Limit, ...] = ()) -> None:
        self._n = 0
        self._windows = Windows(limits)
        self._counted: dict[str, Counted] = {}  # by decision_id
        self._nano: dict[Account, int] = {}  # spent
        self._set_limits(limits)

    def take_limits(self, limits: tuple[Limit, ...]) -> None:
        """Take other limits. What was asked and spent stays; a budget keeps its spend under another amount."""
        self._set_limits(limits)
        self._windows = self._windows.under(limits, self.limits_for)

    def limits_for(self, tier: str, offer: Offer | Key) -> tuple[int, ...]:
        """The numbers of the limits that an offer of a tier counts for."""
        key = (tier, offer.provider, offer.region, offer.model)
        found = self._limits_of.get(key)
        if found is None:
            found = tuple(number for number, limit in enumerate(self.limits) if limit.holds_for(tier, offer))
            self._limits_of[key] = found
        return found

    def add(self, decision_id: str | None, tier: str, offer: Offer, usd: float, now: float) -> Counted:
        """Count one more request with its expected cost. decision_id: by which `settle` finds it; None for never."""
        limits = self.limits_for(tier, offer)
        place = self._windows.add(Asked(limits, usd, tier, offer), self.n_workers)
        counted = Counted(self._n, place, self.n_workers, tier, offer, usd, now)
        self._n += 1
        if limits and self.has_budgets:
            self._spend(limits, usd, now)
        if decision_id is not None:
            self._counted[decision_id] = counted
            if len(self._counted) > 4 * WINDOW_REQUESTS:
                del self._counted[next(iter(self._counted))]
        return counted

    def settle(self, decision_id: str, tier: str, offer: Offer, usd: float) -> Counted | None:
        """Put who has answered and what it has cost in place of what is known; None for a request of long ago."""
        counted = self._counted.get(decision_id)
        if counted is None:
            return None
        limits = self.limits_for(tier, offer)
        self._windows.settle(counted.place, Asked(limits, usd, tier, offer), counted.times)
        if self.has_budgets:
            self._spend(self.limits_for(counted.tier, counted.offer), -counted.usd, counted.at)
            self._spend(limits, usd, counted.at)
        counted.tier, counted.offer, counted.usd = tier, offer, usd
        return counted

    def recall(self, limit: int, usd: float, now: float) -> None:
        """Count in the present period of a budget what was spent in it before this process began."""
        account = self.account(limit, now)
        self._nano[account] = self._nano.get(account, 0) + round(usd * NANO)

    def excess(self, limit: int, usd: float, now: float) -> float:
        """By how much one more request would exceed a limit, as a share of it; 0 or less where it would not.

        usd: what the request is expected to cost.
        """
        rule = self.limits[limit]
        if isinstance(rule, Budget):
            return (self.spent_usd(limit, now) + usd) / rule.usd - 1
        return self._windows.excess(limit, usd)

    def share(self, limit: int) -> float:
        """The share of a cap's offers in the window."""
        return self._windows.share(limit)

    def spent_usd(self, limit: int, now: float) -> float:
        """What the offers of a budget have cost in its present period."""
        return self._nano.get(self.account(limit, now), 0) / NANO

    def account(self, limit: int, now: float) -> Account:
        """The period of a budget at a time."""
        until, account = self._accounts[limit]
        if account.begin <= now < until:
            return account
        budget = self.limits[limit]
        assert isinstance(budget, Budget)
        begin = int(period_start(budget, now))
        account = Account(budget.per, budget.provider, budget.region, budget.tier, begin)
        if begin >= until:  # A period has begun. Requests of the one before may still be settled, but nobody asks.
            over = [each for each in self._nano if each[:4] == account[:4] and each.begin < begin]
            for each in over:
                del self._nano[each]
            self._accounts[limit] = period_end(budget, now), account
        return account

    def _set_limits(self, limits: tuple[Limit, ...]) -> None:
        self.limits = limits
        self.has_budgets = any(isinstance(limit, Budget) for limit in limits)
        self._limits_of: dict[tuple[str, str, str, str], tuple[int, ...]] = {}
        nothing = Account("", "", "", "", 0)
        self._accounts: dict[int, tuple[float, Account]] = {number: (0.0, nothing) for number in range(len(limits))}

    def _accounts_of(self, limits: Iterable[int], at: float) -> set[Account]:
        """The periods of the budgets among some limits at a time."""
        return {self.account(limit, at) for limit in limits if isinstance(self.limits[limit], Budget)}

    def _spend(self, limits: Iterable[int], usd: float, at: float) -> dict[Account, int]:
        """Count spend in each budget among some limits, in the period of a time. Returns what was added."""
        nano = round(usd * NANO)
        added = dict.fromkeys(self._accounts_of(limits, at), nano)
        for account in added:
            self._nano[account] = self._nano.get(account, 0) + nano
        return added
