"""A portfolio that several workers share: what one tells the others, and what it takes from them.

Each worker decides on what it knows, without waiting for the others, and exchanges news with them in the background
(router.redis). It takes each of the others to do what it does itself since that one was last heard of, so that all
together keep to the limits. Where nobody answers, each goes on with its share of what was left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import NamedTuple

from router.portfolio.caps import WINDOW_REQUESTS, Budget, Limit
from router.portfolio.health import Condition, Key, key_of
from router.portfolio.ledger import NANO, Account, Counted, Ledger
from router.portfolio.portfolio import Portfolio
from router.portfolio.sessions import Warm
from router.portfolio.shadow import Routed
from router.portfolio.tiers import Offer
from router.portfolio.windows import Asked


class Entry(NamedTuple):
    """A request in a batch. number: among those of its worker. nano: its cost, in billionths of a USD."""

    number: int
    tier: str
    offer: Key
    nano: int


class Batch(NamedTuple):
    """What a worker has counted since it last told the others.

    settled: what is known better of older requests. routed: the last ones, from which shadow prices are learned.
    """

    worker: str
    asked: Sequence[Entry]
    settled: Sequence[Entry]
    routed: Sequence[Routed]


class SharedLedger(Ledger):
    """A ledger of which other workers have parts, too.

    The window holds what all workers have told each other, in the order in which they did, and then the requests that
    this worker has not told yet. Each of its requests also stands for one of every other worker that has told nothing
    since then. Budgets are counted in the same way.
    """

    def __init__(self, ledger: Ledger, worker: str) -> None:
        super().__init__(ledger.limits)
        self._told = ledger._windows
        self._n, self._nano = ledger._n, ledger._nano
        self._worker = worker
        self._rank = 0
        self._places: dict[tuple[str, int], int] = {}  # in the window, of requests that were told
        self._untold: dict[int, Counted] = {}  # by number
        self._settled: dict[int, Counted] = {}  # since they were told
        self._unsent: dict[Account, int] = {}
        self._others_s: Sequence[float] = ()  # when each other worker has last told something
        self._late: deque[Counted] = deque()  # told, but later than one of the others has told something
        self._stand_in: dict[Account, int] = {}  # what these stand for in others
        self._sent: dict[int, Counted] = {}
        self._sent_nano: dict[Account, int] = {}
        self._batch: Batch | None = None
        self._begin_anew()

    def take_limits(self, limits: tuple[Limit, ...]) -> None:
        """Take other limits; what was asked and spent stays."""
        self._set_limits(limits)
        self._told = self._told.under(limits, self.limits_for)
        self._begin_anew()

    def add(self, decision_id: str | None, tier: str, offer: Offer, usd: float, now: float) -> Counted:
        """Count one more request with its expected cost."""
        counted = super().add(decision_id, tier, offer, usd, now)
        counted.monotonic_s = monotonic()
        self._untold[counted.number] = counted
        if len(self._untold) > WINDOW_REQUESTS:  # It has left the window before anybody heard of it.
            self._untold.pop(next(iter(self._untold))).times = 0
        return counted

    def settle(self, decision_id: str, tier: str, offer: Offer, usd: float) -> Counted | None:
        """Put who has answered and what it has cost in place of what is known; None for a request of long ago."""
        counted = super().settle(decision_id, tier, offer, usd)
        if counted is not None and counted.times and counted.number not in self._untold:
            self._settled[counted.number] = counted
        return counted

    def excess(self, limit: int, usd: float, now: float) -> float:
        """By how much one more request would exceed a limit, as a share of it.

        The last room is not for all: one of `n_workers` workers may use the last place, two the last two, and so on.
        Who comes first changes with each exchange.
        """
        rule = self.limits[limit]
        if isinstance(rule, Budget):
            account = self.account(limit, now)
            unheard = self._unsent.get(account, 0) + self._sent_nano.get(account, 0)
            others = (self.n_workers - 1) * unheard + self._stand_in.get(account, 0)
            spent = (self._nano.get(account, 0) + others) / NANO
            return (spent + (1 + self._rank) * usd) / rule.usd - 1
        return self._windows.excess(limit, usd, 1 + self._rank)

    def batch(self, routed: Callable[[], Sequence[Routed]]) -> tuple[Batch, Mapping[Account, int]]:
        """What the others have not heard of: requests, and what was spent. The same again until `hear` is called."""
        if self._batch is None:
            self._batch = Batch(
                self._worker,
                [_entry(counted) for counted in self._untold.values()],
                [_entry(counted) for counted in self._settled.values()],
                routed(),
            )
            self._sent, self._untold, self._settled = self._untold, {}, {}
            self._sent_nano, self._unsent = self._unsent, {}
        return self._batch, self._sent_nano

    @property
    def is_heard(self) -> bool:
        """Whether the last `batch` was heard by the others."""
        return self._batch is None

    def known(self, now: float) -> dict[Account, int]:
        """What all workers have spent of each budget in its present period, as far as this one has heard."""
        accounts = [self.account(n, now) for n, limit in enumerate(self.limits) if isinstance(limit, Budget)]
        unheard = (self._unsent, self._sent_nano)
        return {
            account: self._nano.get(account, 0) - sum(nano.get(account, 0) for nano in unheard) for account in accounts
        }

    def hear(
        self, batches: Sequence[Batch], spent: Mapping[Account, int], others_s: Sequence[float], rank: int
    ) -> None:
        """Take what all workers have told since the last call, the last `batch` of this one included.

        spent: in all, of the budgets that are in `known`. others_s: when each other worker has last told something, in
        seconds of time.monotonic. rank: from 0 to the number of the others, another one for each worker.
        """
        self.n_workers, self._others_s, self._rank = 1 + len(others_s), others_s, rank
        for batch in batches:
            for entry in batch.asked:
                place = self._told.add(self._asked(entry.tier, entry.offer, entry.nano / NANO))
                self._places[batch.worker, entry.number] = place
                if batch.worker == self._worker and (own := self._sent.pop(entry.number, None)) is not None:
                    own.place, own.times = place, 1
                    self._late.append(own)
            for entry in batch.settled:
                if (found := self._places.get((batch.worker, entry.number))) is not None:
                    self._told.settle(found, self._asked(entry.tier, entry.offer, entry.nano / NANO))
        while len(self._places) > 4 * WINDOW_REQUESTS:
            del self._places[next(iter(self._places))]
        for lost in self._sent.values():
            lost.times = 0
        self._sent, self._sent_nano, self._batch = {}, {}, None
        for account, nano in spent.items():
            self._nano[account] = nano + self._unsent.get(account, 0)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Make the window of what was told, and count what was not told yet on top of it."""
        self._windows = self._told.copy()
        self._stand_in = {}
        most, oldest_s = WINDOW_REQUESTS // self.n_workers, min(self._others_s, default=inf)
        while self._late and (len(self._late) > most or self._late[0].monotonic_s <= oldest_s):
            self._late.popleft()
        for counted in self._late:
            times = sum(counted.monotonic_s > told_s for told_s in self._others_s)
            asked = self._asked(counted.tier, counted.offer, counted.usd)
            self._windows.add(asked, times)
            for account in self._accounts_of(asked.limits, counted.at):
                self._stand_in[account] = self._stand_in.get(account, 0) + times * round(counted.usd * NANO)
        for counted in (*self._sent.values(), *self._untold.values()):
            counted.times = self.n_workers
            asked = self._asked(counted.tier, counted.offer, counted.usd)
            counted.place = self._windows.add(asked, counted.times)
        for counted in self._settled.values():
            asked = self._asked(counted.tier, counted.offer, counted.usd)
            self._windows.settle(counted.place, asked, counted.times)

    def _asked(self, tier: str, offer: Offer | Key, usd: float) -> Asked:
        return Asked(self.limits_for(tier, offer), usd, tier, offer)

    def _spend(self, limits: Iterable[int], usd: float, at: float) -> dict[Account, int]:
        added = super()._spend(limits, usd, at)
        for account, nano in added.items():
            self._unsent[account] = self._unsent.get(account, 0) + nano
        return added


def _entry(counted: Counted) -> Entry:
    return Entry(counted.number, counted.tier, key_of(counted.offer), round(counted.usd * NANO))


@dataclass(frozen=True)
class News:
    """What a worker tells the others.

    number: of the batch, from 1; a batch of the same number is the same. spent: since the batch before, in billionths
    of a USD. known: what has been spent in all, as far as the worker has heard. probes: offers it wants to probe, and
    for how many seconds. turns: of conversations, by digest.
    """

    number: int
    batch: Batch
    spent: Mapping[Account, int]
    known: Mapping[Account, int]
    conditions: Mapping[Key, Condition]
    probes: Mapping[Key, float]
    turns: Mapping[bytes, Warm]


@dataclass(frozen=True)
class Heard:
    """What a worker hears of all workers, itself included.

    conditions: of other workers only. may_probe: offers, and for how many seconds. turns: with their time, in seconds
    of this worker's clock. spent, others_s, rank: see SharedLedger.hear.
    """

    batches: Sequence[Batch]
    spent: Mapping[Account, int]
    others_s: Sequence[float]
    rank: int
    conditions: Mapping[Key, Condition]
    may_probe: Mapping[Key, float]
    turns: Sequence[tuple[bytes, float, Warm]]


class SharedPortfolio:
    """One worker's end of a portfolio that several workers share. worker: the name of this one, unlike all others'."""

    def __init__(self, portfolio: Portfolio, worker: str) -> None:
        self._portfolio, self._worker = portfolio, worker
        self._number = 0
        with portfolio.one_choice:
            self._ledger = portfolio.ledger = SharedLedger(portfolio.ledger, worker)
            portfolio.sessions.untold = {}

    def news(self, probe_s: float) -> News:
        """What to tell the others. Each call is followed by `hear` or `missed`.

        probe_s: seconds for which this worker wants to be the only one that probes an offer.
        """
        portfolio = self._portfolio
        with portfolio.one_choice:
            is_new = self._ledger.is_heard
            batch, spent = self._ledger.batch(portfolio.shadow.untold)
            self._number += is_new and bool(batch.asked or batch.settled or spent)
            turns, portfolio.sessions.untold = portfolio.sessions.untold or {}, {}
            return News(
                number=self._number,
                batch=batch,
                spent=spent,
                known=self._ledger.known(portfolio.clock()),
                conditions=portfolio.health.untold(),
                probes=portfolio.health.probes(probe_s),
                turns=turns,
            )

    def hear(self, heard: Heard) -> None:
        """Take what was heard in answer to the last news."""
        portfolio = self._portfolio
        with portfolio.one_choice:
            self._ledger.hear(heard.batches, heard.spent, heard.others_s, heard.rank)
            for after, at, warm in heard.turns:
                portfolio.sessions.hear(after, at, warm)
            for batch in heard.batches:
                for routed in batch.routed if batch.worker != self._worker else ():
                    portfolio.shadow.hear(routed, self._ledger)
            portfolio.health.probes_alone = False
            for key, condition in heard.conditions.items():
                portfolio.health.hear(key, condition)
            for key, for_s in heard.may_probe.items():
                portfolio.health.may_probe(key, for_s)

    def missed(self, news: News) -> None:
        """Nobody has answered: keep the news for the next time, and decide alone until then."""
        portfolio = self._portfolio
        with portfolio.one_choice:
            portfolio.health.probes_alone = True
            portfolio.health.tell_again(news.conditions)
            portfolio.sessions.untold = {**news.turns, **(portfolio.sessions.untold or {})}
