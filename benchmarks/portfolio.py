"""Caps on providers' shares, in a replay of real logs: net value against the best that hindsight could do.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/portfolio.py [--logs zeroeval] [--requests 20000]

Estimates are a bundle's own on the questions held out from its training, drawn with replacement. What is simulated: how
requests arrive, the outage and the price cut. Net value is by those estimates, for our choices and for hindsight alike.
Hindsight is one linear programme that sees all requests before it chooses: a bound that nobody can reach who does not
know what will be asked.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, vstack

from router.bundle.bundle import Bundle
from router.choosing import choose
from router.portfolio.caps import WINDOW_REQUESTS, Cap
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable
from router.portfolio.quote import Quote
from router.portfolio.terms import Request
from training import TrainingConfig, train
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.training_data import TrainingData
from training.log.ingest import ingest

TIERS = Path(__file__).parent / "tiers"
LOGS = ("mmlu_pro", "zeroeval")
CAPS = (0.4, 0.3)
"""Of the requests, for the provider that is wanted most and for the next one."""

WORTH_OF_COST = 10.0
"""Worth of a correct answer, as a multiple of the mean cost of an attempt."""

STRIDE = 100
SECONDS_BETWEEN = 0.1
CUT = 0.1  # the factor on the prices of a provider, from half of the requests on
OUTAGE = (0.4, 0.6)  # between these shares of the requests


@dataclass(frozen=True)
class Estimates:
    """What a bundle says of n prompts. success, output_tokens: (n, n_tiers); context_tokens: (n,); topic: (n,)."""

    bundle: Bundle
    success: np.ndarray
    output_tokens: np.ndarray
    context_tokens: np.ndarray
    topic: np.ndarray

    def rows(self, which: np.ndarray) -> "Estimates":
        """Some of the prompts, in this order."""
        return replace(
            self,
            success=self.success[which],
            output_tokens=self.output_tokens[which],
            context_tokens=self.context_tokens[which],
            topic=self.topic[which],
        )

    def cost_usd(self, prices: PriceTable) -> np.ndarray:
        """Expected, (n, n_tiers); each tier has one offer."""
        offers = [tier.offers[0] for tier in prices.tiers]
        paid = np.array([offer.usd_per_mtok_input for offer in offers])
        answer = np.array([offer.usd_per_mtok_output for offer in offers])
        return (self.context_tokens[:, None] * paid + self.output_tokens * answer) / 1e6


def held_out(log: Path, seed: int, folder: Path) -> tuple[Estimates, Estimates]:
    """What a bundle says of the prompts it was trained on, and of those held out."""
    prices = TIERS / f"{log.name}.toml"
    bundle = Bundle.load(train(log, prices, folder / "bundle", TrainingConfig(seed=seed), tracking_uri="none").bundle)
    table = ingest(log, bundle.prices.tiers)
    seen = TrainingData.load(bundle).saw(table.groups)
    found = []
    for which in (seen, ~seen):
        part = table.rows(which)
        estimates = BundleGraph(bundle).estimates(part.prompts)
        found.append(
            Estimates(
                bundle=bundle,
                success=estimates["success"].astype(float),
                output_tokens=estimates["output_tokens"].astype(float),
                context_tokens=estimates["context_tokens"].astype(float),
                topic=np.unique(part.segments, return_inverse=True)[1],
            )
        )
    return found[0], found[1]


def shuffled(topic: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Every request is drawn from all prompts."""
    return rng.integers(len(topic), size=n)


def by_topic(topic: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """One topic after the other."""
    drawn = shuffled(topic, n, rng)
    return drawn[np.argsort(topic[drawn], kind="stable")]


def in_bursts(topic: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """50 to 500 requests of one topic, then of another one."""
    rows: list[int] = []
    while len(rows) < n:
        among = np.flatnonzero(topic == topic[rng.integers(len(topic))])
        rows += rng.choice(among, size=int(rng.integers(50, 500))).tolist()
    return np.array(rows[:n])


ARRIVALS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "shuffled": shuffled,
    "by topic": by_topic,
    "in bursts": in_bursts,
}


@dataclass(frozen=True)
class Replay:
    """Requests in their order. down: whether the offers of `dead` are down; cut: whether prices are the lower ones."""

    estimates: Estimates
    worth_usd: float
    before: PriceTable
    after: PriceTable
    down: np.ndarray
    is_cut: np.ndarray
    dead: str

    @property
    def providers(self) -> list[str]:
        """Of each tier."""
        return [tier.offers[0].provider for tier in self.before.tiers]

    def cost_usd(self) -> np.ndarray:
        """At the prices of the moment, (n, n_tiers)."""
        costs = self.estimates.cost_usd(self.before), self.estimates.cost_usd(self.after)
        return np.where(self.is_cut[:, None], costs[1], costs[0])

    def values(self) -> np.ndarray:
        """Worth x success - cost, (n, n_tiers)."""
        return self.worth_usd * self.estimates.success - self.cost_usd()


def hindsight(replay: Replay) -> float:
    """The largest value within the caps in windows of 1,000 requests, in USD; what is down is not asked.

    It sees all requests before it chooses. Windows begin at each hundredth request, which is a little less to keep to.
    """
    tiers, limits = replay.before.tiers, replay.before.limits
    is_dead = np.array([provider == replay.dead for provider in replay.providers])
    values = np.where(replay.down[:, None] & is_dead, -np.inf, replay.values())
    rows, columns = np.nonzero(np.isfinite(values))
    n, size = len(values), len(rows)
    windows = [*range(0, n - WINDOW_REQUESTS, STRIDE), n - WINDOW_REQUESTS]
    constraints, bounds = [], []
    for limit in limits:
        assert isinstance(limit, Cap)
        inside = np.array([limit.holds_for(tier.name, tier.offers[0]) for tier in tiers])[columns]
        for start in windows:
            at = np.flatnonzero(inside & (rows >= start) & (rows < start + WINDOW_REQUESTS))
            constraints.append(csr_matrix((np.ones(len(at)), (np.zeros(len(at), int), at)), shape=(1, size)))
            bounds.append(limit.max_share * WINDOW_REQUESTS)
    scale = np.abs(values[rows, columns]).max()
    solved = linprog(
        -values[rows, columns] / scale,
        A_ub=vstack(constraints),
        b_ub=bounds,
        A_eq=csr_matrix((np.ones(size), (rows, np.arange(size))), shape=(n, size)),
        b_eq=np.ones(n),
        bounds=(0, 1),
        method="highs-ipm",
    )
    assert solved.status == 0, solved.message
    return float(-solved.fun * scale)


def request_of(replay: Replay, row: int, decision_id: str, best: str, cost_usd: np.ndarray, quote: Quote) -> Request:
    """A request as the portfolio sees it. best: its tier without limits. cost_usd: expected, (n_tiers,)."""
    estimates, manifest = replay.estimates, replay.estimates.bundle.manifest
    names = manifest.tiers
    return Request(
        decision_id=decision_id, chosen=best, best_tier=None, tiers=quote.open, quoted=quote.offers,
        success=dict(zip(names, estimates.success[row].tolist(), strict=True)),
        output_tokens=dict(zip(names, estimates.output_tokens[row].tolist(), strict=True)),
        cost_usd=dict(zip(names, cost_usd.tolist(), strict=True)),
        context_tokens=float(estimates.context_tokens[row]), typical_output_tokens=manifest.output_tokens,
        worth_usd=replay.worth_usd, slack=1.0, exploration=0.0, accepts=None,
    )  # fmt: skip


def routed(replay: Replay, portfolio: Portfolio, tick: list[float]) -> tuple[np.ndarray, int]:
    """The tier that answers each request, and how many requests met an offer that was down."""
    estimates, bundle = replay.estimates, replay.estimates.bundle
    names = bundle.manifest.tiers
    values, costs = replay.values(), replay.cost_usd()
    answered, n_failed, prices = np.empty(len(values), int), 0, replay.before
    for row in range(len(values)):
        tick[0] += SECONDS_BETWEEN
        if replay.is_cut[row] and prices is replay.before:
            prices = replay.after
            portfolio.take_prices(prices)
            portfolio.solve()
        quote = prices.quote(float(estimates.context_tokens[row]), bundle.manifest.output_tokens)
        for attempt in range(len(names)):
            best = names[int(values[row].argmax())]
            chosen = choose(request_of(replay, row, f"{row}-{attempt}", best, costs[row], quote), portfolio)
            offer = chosen.offer
            assert offer is not None
            if not (replay.down[row] and offer.provider == replay.dead):
                portfolio.health.succeeded(offer)
                break
            n_failed += 1
            was_up = portfolio.health.all_up
            portfolio.health.failed(offer, "no connection")
            if was_up and not portfolio.health.all_up:
                portfolio.solve()
        answered[row] = names.index(chosen.tier)
    return answered, n_failed


def worst_share(replay: Replay, answered: np.ndarray) -> float:
    """By how many points the share of a capped provider is above its cap in the worst window of 1,000 requests."""
    worst = -np.inf
    for limit in replay.before.limits:
        assert isinstance(limit, Cap)
        inside = np.array([limit.holds_for(tier.name, tier.offers[0]) for tier in replay.before.tiers])[answered]
        sums = np.convolve(inside, np.ones(WINDOW_REQUESTS, int), mode="valid")
        worst = max(worst, float(sums.max()) / WINDOW_REQUESTS - limit.max_share)
    return 100 * worst


class Greedy(Portfolio):
    """Without shadow prices: the best offer until its window is full, as budget filters of gateways do it."""

    def __init__(self, prices: PriceTable, clock: Callable[[], float]) -> None:
        super().__init__(prices, clock)
        self.shadow.solve = lambda ledger, now: None  # type: ignore[method-assign]


def weighted(replay: Replay, rng: np.random.Generator) -> np.ndarray:
    """Tiers drawn with fixed weights, whatever the prompt, as weighted load balancing does it.

    The weights are the best ones: the caps of the two providers wanted most, and the rest for the best other tier.
    """
    means, providers = replay.values().mean(axis=0), np.array(replay.providers)
    weights = np.zeros(len(means))
    for limit in replay.before.limits:
        assert isinstance(limit, Cap)
        own = np.flatnonzero(providers == limit.provider)
        weights[own[means[own].argmax()]] = limit.max_share
    others = np.flatnonzero(~np.isin(providers, [getattr(limit, "provider", "") for limit in replay.before.limits]))
    weights[others[means[others].argmax()]] += 1 - weights.sum()
    drawn = rng.choice(len(means), size=(len(replay.down), 20), p=weights)
    alive = ~(replay.down[:, None] & (providers[drawn] == replay.dead))
    return drawn[np.arange(len(drawn)), alive.argmax(axis=1)]


def capped(prices: PriceTable, wanted: Sequence[str]) -> PriceTable:
    """The price table with a cap on each of the providers wanted most."""
    limits = tuple(Cap(max_share=share, provider=name) for share, name in zip(CAPS, wanted, strict=True))
    return replace(prices, limits=limits)


def rows_of(log: Path, seed: int, n: int, folder: Path) -> list[str]:
    """A row of the table per arrival and fault."""
    seen, unseen = held_out(log, seed, folder)
    listed = seen.bundle.prices
    worth_usd = float(WORTH_OF_COST * seen.cost_usd(listed).mean())
    wishes = (worth_usd * seen.success - seen.cost_usd(listed)).argmax(axis=1)
    providers = np.array([tier.offers[0].provider for tier in listed.tiers])[wishes]
    names, counts = np.unique(providers, return_counts=True)
    wanted = names[np.argsort(-counts)][: len(CAPS)].tolist()
    prices = capped(listed, wanted)
    rows = []
    for arrival, order in ARRIVALS.items():
        for fault in ("none", "outage", "price cut"):
            rng = np.random.default_rng(seed)
            position = np.arange(n) / n
            replay = Replay(
                estimates=unseen.rows(order(unseen.topic, n, rng)),
                worth_usd=worth_usd,
                before=prices,
                after=replace(prices.scaled({wanted[0]: CUT}), limits=prices.limits),
                down=(position >= OUTAGE[0]) & (position < OUTAGE[1]) & (fault == "outage"),
                is_cut=(position >= 0.5) & (fault == "price cut"),
                dead=wanted[0],
            )
            values, bound = replay.values(), hindsight(replay)
            cells = []
            for kind in (Portfolio, Greedy):
                tick = [1e9]
                portfolio = kind(prices, clock=lambda tick=tick: tick[0])  # type: ignore[misc]
                warm = replace(replay, estimates=seen.rows(shuffled(seen.topic, 1500, rng)),
                               down=np.zeros(1500, bool), is_cut=np.zeros(1500, bool))  # fmt: skip
                routed(warm, portfolio, tick)
                portfolio.solve()
                answered, n_failed = routed(replay, portfolio, tick)
                value = values[np.arange(n), answered].sum()
                cells += [f"{100 * value / bound:.2f}", f"{worst_share(replay, answered):+.1f}", f"{n_failed}"]
            drawn = weighted(replay, rng)
            cells += [f"{100 * values[np.arange(n), drawn].sum() / bound:.2f}", f"{worst_share(replay, drawn):+.1f}"]
            rows.append(f"| {log.name} | {arrival} | {fault} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Caps on providers' shares, in a replay of public outcome logs.")
    parser.add_argument("--logs", nargs="+", default=list(LOGS), choices=list(LOGS))
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    print("| log | arrival | fault | value, % of hindsight | worst window, points above a cap | met a dead offer "
          "| greedy: value | worst window | met a dead offer | weighted: value | worst window |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in options.logs:
        with tempfile.TemporaryDirectory() as folder:
            rows_of(Path(root) / name, options.seed, options.requests, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
