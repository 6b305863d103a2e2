"""`broker portfolio`: who would answer recent requests, without and with the caps and budgets of a tiers.toml."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router.decision import Decision
from router.errors import PriceError
from router.feeds.commands import log_reader
from router.portfolio.caps import Budget, Limit
from router.portfolio.portfolio import LimitState
from router.portfolio.prices import PriceTable
from router.router import Router, Snapshot

PORTFOLIO_HELP = "show the offers and limits of a tiers.toml, and what the limits do to recent requests"


@dataclass(frozen=True)
class Side:
    """What becomes of the requests without the limits, or with them.

    shares: of the requests, by the offer's model. usd_per_1k: expected spend per 1,000 requests. success: expected
    share of correct answers. promised: share of the decisions that the promise covers.
    """

    shares: dict[str, float]
    usd_per_1k: float
    success: float
    promised: float

    @classmethod
    def of(cls, decisions: Sequence[Decision]) -> Side:
        """Of at least one decision."""
        n = len(decisions)
        counts = Counter("" if each.offer is None else each.offer.model for each in decisions)
        return cls(
            shares={model: count / n for model, count in counts.items()},
            usd_per_1k=1000 * sum(each.cost_usd.get(each.tier, 0.0) for each in decisions) / n,
            success=sum(each.success.get(each.tier, 0.0) for each in decisions) / n,
            promised=sum(each.promised for each in decisions) / n,
        )


@dataclass(frozen=True)
class Shares:
    """What the limits do to some requests. limits: how full each one is after them."""

    n_prompts: int
    without: Side
    within: Side
    limits: tuple[LimitState, ...]


def portfolio_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `broker portfolio`."""
    parser.add_argument("--tiers", required=True, type=Path, help="tiers.toml")
    parser.add_argument("--bundle", required=True, type=Path, help="the bundle that decides")
    parser.add_argument("--logs", nargs="+", help="recent logs, whose prompts are routed (extra: train)")
    parser.add_argument("--map", action="append", default=[], dest="maps", metavar="COLUMN=SOURCE", help="as of train")
    parser.add_argument("--quality", type=float, help="at this dial; default: the bundle's default quality")
    parser.add_argument("--worth-usd", type=float, help="at this worth of a correct answer, in USD")
    parser.add_argument("--json", action="store_true", help="print all of it as one JSON document")


def portfolio(options: argparse.Namespace) -> tuple[int, str]:
    """Show offers, limits and, with --logs, what the limits do: the exit code, and what to say."""
    router = Router.load(options.bundle)
    router.update_prices(options.tiers)
    found = None
    if options.logs:
        prompts = log_reader("recent_prompts")(options.logs, options.maps)
        if not prompts:
            raise PriceError(f"{', '.join(options.logs)}: no prompts found; expected a log with texts")
        found = shares(router, prompts, options.quality, options.worth_usd)
    if options.json:
        return 0, json.dumps(_json(router.prices, found), ensure_ascii=False)
    return 0, "\n".join([*_offer_lines(router.prices, found), *_limit_lines(router.prices, found)])


def shares(router: Router, prompts: Sequence[str], quality: float | None, worth_usd: float | None) -> Shares:
    """Route prompts, oldest first, without the limits of the router's price table and with them.

    Budgets see all of them in one moment. Raises DialError.
    """
    free = Snapshot(router.bundle, replace(router.prices, limits=()), router.policy)
    without = free.call(quality, worth_usd).route_batch(prompts)
    within = router.route_batch(prompts, quality=quality, worth_usd=worth_usd)
    return Shares(
        n_prompts=len(prompts), without=Side.of(without), within=Side.of(within), limits=router.portfolio.state()
    )


def _offer_lines(prices: PriceTable, found: Shares | None) -> list[str]:
    lines = []
    if found is not None:
        lines.append(f"{found.n_prompts:,} recent prompts; of the requests without limits -> with them:")
    for tier in prices.tiers:
        for offer in tier.offers:
            line = f"  {tier.name:<12} {offer.model:<32} {offer.provider:<14} {offer.region:<6}"
            line += f" {offer.usd_per_mtok_input:>8g} in {offer.usd_per_mtok_output:>8g} out"
            if found is not None:
                before, after = (side.shares.get(offer.model, 0.0) for side in (found.without, found.within))
                line += f" {before:>7.1%} -> {after:>6.1%}"
            lines.append(line)
    if found is not None:
        before_side, after_side = found.without, found.within
        lines += [
            f"expected spend  {before_side.usd_per_1k:.4g} -> {after_side.usd_per_1k:.4g} USD per 1,000 requests",
            f"expected right  {before_side.success:.1%} -> {after_side.success:.1%}",
            f"promise covers  {before_side.promised:.1%} -> {after_side.promised:.1%} of the decisions",
        ]
    return lines


def _limit_lines(prices: PriceTable, found: Shares | None) -> list[str]:
    if not prices.limits:
        return ["no caps and no budgets"]
    if found is None:
        return ["limits:", *(f"  {limit}" for limit in prices.limits)]
    return ["limits, after these requests:", *(f"  {state.limit}: {_fullness(state)}" for state in found.limits)]


def _fullness(state: LimitState) -> str:
    used = f"{state.share:.1%} now" if state.share is not None else f"USD {state.spent_usd:.4g} spent"
    return f"{used}, shadow price {state.shadow_price:.3g} {_unit(state.limit)}"


def _unit(limit: Limit) -> str:
    return "USD per USD" if isinstance(limit, Budget) or limit.of == "usd" else "USD per request"


def _json(prices: PriceTable, found: Shares | None) -> dict[str, Any]:
    offers = [{"tier": tier.name, **asdict(offer)} for tier in prices.tiers for offer in tier.offers]
    replayed = None if found is None else {
        "n_prompts": found.n_prompts, "without": asdict(found.without), "within": asdict(found.within),
    }  # fmt: skip
    states = found.limits if found is not None else ()
    limits = [
        {
            "limit": str(state.limit),
            "share": state.share,
            "spent_usd": state.spent_usd,
            "shadow_price": state.shadow_price,
        }
        for state in states
    ] or [{"limit": str(limit)} for limit in prices.limits]
    return {"offers": offers, "limits": limits, "replay": replayed}
