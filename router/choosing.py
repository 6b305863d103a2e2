"""From the graph's answer to who is asked: the rule, exploration, and the limits of the portfolio."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from router.portfolio.portfolio import Portfolio
from router.portfolio.terms import Request, Terms
from router.portfolio.tiers import Offer
from router.rule import admissible, best, explored, or_best_tier

_NOTHING: Mapping[str, float] = {}


class Choice(NamedTuple):
    """Who is asked, and why.

    best: the tier of the rule; `tier` is another one where it is explored. eligible: tiers that could have been asked.
    cost_usd: expected, per tier; of a tier with limits that of its best offer. shadow_usd: what limits add to it.
    covered: whether the tier is within the slack of all tiers that would be open without limits.
    best_tier: the best tier of the log where it answers unless another is worth more; else None.
    why_limited: what the limits changed, in words; empty for nothing.
    """

    tier: str
    offer: Offer | None
    cost_usd: Mapping[str, float]
    best: str = ""
    propensity: float = 1.0
    n_admissible: int = 0
    eligible: tuple[str, ...] = ()
    best_tier: str | None = None
    shadow_usd: Mapping[str, float] = _NOTHING
    covered: bool = True
    why_limited: str = ""


def choose(request: Request, portfolio: Portfolio | None) -> Choice:
    """Who is asked. portfolio: counts the choice where a limit or a conversation depends on it; None without one."""
    free = _by_rule(request, request.chosen, request.tiers, request.quoted, request.cost_usd, request.cost_usd)
    if portfolio is None or (portfolio.is_idle and request.turn is None):
        return free
    with portfolio.one_choice:
        if portfolio.takes_freely(request, free.tier):
            return free
        terms = portfolio.terms(request)
        limited = _within_limits(request, free, terms, portfolio)
        portfolio.take(request, terms[limited.tier], portfolio.free(request, free.tier))
    return limited


def _within_limits(request: Request, free: Choice, terms: Mapping[str, Terms], portfolio: Portfolio) -> Choice:
    """The choice among the offers that are open within the limits, at their shadow prices."""
    opened = tuple(name for name in request.tiers if name in terms)
    offers = {name: each.offer for name, each in terms.items()}
    cost_usd = {**request.cost_usd, **{name: each.cost_usd for name, each in terms.items()}}
    shadow_usd = {name: terms[name].shadow_usd for name in opened}
    price_usd = {name: cost_usd[name] + shadow_usd[name] for name in opened}
    tiers = admissible(opened, request.success, request.slack)
    chosen = best(tiers, request.success, price_usd, request.worth_usd)
    found = _by_rule(request, chosen, opened, offers, cost_usd, price_usd)
    bar = max(request.success[name] for name in request.tiers) - request.slack
    return found._replace(
        shadow_usd=shadow_usd if any(shadow_usd.values()) else _NOTHING,
        covered=request.success[found.tier] >= bar,
        why_limited=_why_limited(request, free, found, terms[found.tier], portfolio),
    )


def _why_limited(request: Request, free: Choice, found: Choice, taken: Terms, portfolio: Portfolio) -> str:
    """What the limits changed, in words; empty for nothing."""
    if taken.excess > 0:
        return f"; every offer is closed, and the one least beyond its limit gives way: {portfolio.words(taken)}"
    if taken.cached_tokens and found.tier == found.best:
        moved = f"; without that {free.best}" if found.best != free.best else ""
        who, n_cached = taken.offer.provider, taken.cached_tokens
        return f"; {who} is expected to have {n_cached:,.0f} tokens of the conversation in its cache{moved}"
    if found.best != free.best:
        why = portfolio.closed(request).get(free.best)
        return f"; without limits {free.best}: " + (f"closed, {why}" if why else "its offers are short")
    if found.tier == free.tier and found.offer != free.offer and found.offer and free.offer:
        return f"; from {found.offer.provider}, since the offer of {free.offer.provider} is at its limit or short"
    return ""


def _by_rule(
    request: Request,
    chosen: str,
    opened: tuple[str, ...],
    offers: Mapping[str, Offer],
    cost_usd: Mapping[str, float],
    price_usd: Mapping[str, float],
) -> Choice:
    """The choice of the rule among open tiers, or the one explored.

    chosen: the best of the admissible tiers. price_usd: by which tiers are compared.
    """
    success = request.success
    tiers = admissible(opened, success, request.slack)
    best_tier = request.best_tier if request.best_tier in opened else None
    if best_tier is not None:
        chosen = or_best_tier(chosen, best_tier, success, price_usd, request.worth_usd)
    share = request.exploration
    tier, propensity = explored(chosen, tiers, share, request.decision_id) if share else (chosen, 1.0)
    return Choice(tier, offers.get(tier), cost_usd, chosen, propensity, len(tiers), opened, best_tier)
