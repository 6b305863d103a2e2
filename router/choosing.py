"""From the graph's answer to who is asked: the rule, exploration, and the limits of the portfolio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from router.policy import Dials, OfferFilter
from router.portfolio.portfolio import Portfolio
from router.portfolio.quote import Quote
from router.portfolio.terms import Request, Terms
from router.portfolio.tiers import Offer
from router.rule import admissible, best, explored, or_best_tier

_NOTHING: Mapping[str, float] = {}


class Ask(NamedTuple):
    """A request and what the graph says of it.

    best: the tier that the graph chose. best_tier: that of the log. success, output_tokens, cost_usd: per tier.
    """

    decision_id: str
    names: tuple[str, ...]
    best: str
    best_tier: str
    quote: Quote
    success: Mapping[str, float]
    output_tokens: Mapping[str, float]
    cost_usd: Mapping[str, float]
    context_tokens: float
    typical_output_tokens: Sequence[float]
    dials: Dials
    exploration: float
    accepts: OfferFilter | None


@dataclass(frozen=True, slots=True)
class Choice:
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
    shadow_usd: Mapping[str, float] = field(default_factory=dict)
    covered: bool = True
    best_tier: str | None = None
    why_limited: str = ""


def choose(ask: Ask, portfolio: Portfolio | None) -> Choice:
    """Who is asked. portfolio: is told of the choice; None where there are no limits."""
    free = _by_rule(ask, ask.quote.open, ask.quote.offers, ask.cost_usd, _NOTHING)
    if portfolio is None or portfolio.is_idle:
        return free
    request = Request(
        tiers=ask.quote.open,
        quoted=ask.quote.offers,
        success=ask.success,
        output_tokens=ask.output_tokens,
        cost_usd=ask.cost_usd,
        admissible=tuple(admissible(ask.quote.open, ask.success, ask.dials.slack)),
        context_tokens=ask.context_tokens,
        worth_usd=ask.dials.worth_usd,
        typical_output_tokens=ask.typical_output_tokens,
        accepts=ask.accepts,
    )
    with portfolio.one_choice():
        if (taken := portfolio.unlimited(request, free.tier)) is not None:
            portfolio.take(ask.decision_id, request, taken, taken)
            return free
        terms = portfolio.terms(request)
        limited = _within_limits(ask, free, request, terms, portfolio)
        portfolio.take(ask.decision_id, request, terms[limited.tier], portfolio.free(request, free.tier))
    return limited


def _within_limits(
    ask: Ask, free: Choice, request: Request, terms: Mapping[str, Terms], portfolio: Portfolio
) -> Choice:
    """The choice among the offers that are open within the limits, at their shadow prices."""
    opened = tuple(name for name in ask.quote.open if name in terms)
    cost_usd = {**ask.cost_usd, **{name: each.cost_usd for name, each in terms.items()}}
    shadow_usd = {name: terms[name].shadow_usd for name in opened}
    found = _by_rule(ask, opened, {name: each.offer for name, each in terms.items()}, cost_usd, shadow_usd)
    bar = max(ask.success[name] for name in ask.quote.open) - ask.dials.slack
    taken = terms[found.tier]
    words = ""
    if taken.excess > 0:
        words = f"; every offer is closed, and the one least beyond its limit gives way: {portfolio.words(taken)}"
    elif found.best != free.best:
        why = portfolio.closed(request).get(free.best)
        words = f"; without limits {free.best}: " + (f"closed, {why}" if why else "its offers are short")
    elif found.offer is not None and free.offer is not None and found.offer != free.offer and found.tier == free.tier:
        words = f"; from {found.offer.provider}, since the offer of {free.offer.provider} is at its limit or short"
    return Choice(
        tier=found.tier,
        offer=found.offer,
        cost_usd=cost_usd,
        best=found.best,
        propensity=found.propensity,
        n_admissible=found.n_admissible,
        eligible=opened,
        shadow_usd=shadow_usd if any(shadow_usd.values()) else _NOTHING,
        covered=ask.success[found.tier] >= bar,
        best_tier=found.best_tier,
        why_limited=words,
    )


def _by_rule(
    ask: Ask,
    opened: tuple[str, ...],
    offers: Mapping[str, Offer],
    cost_usd: Mapping[str, float],
    shadow_usd: Mapping[str, float],
) -> Choice:
    """The choice of the rule among open tiers, or the one explored."""
    dials, success = ask.dials, ask.success
    tiers = admissible(opened, success, dials.slack)
    price = {name: cost_usd[name] + shadow_usd.get(name, 0.0) for name in opened} if shadow_usd else cost_usd
    chosen = ask.best if not shadow_usd and opened is ask.quote.open else best(tiers, success, price, dials.worth_usd)
    best_tier = ask.best_tier if dials.unproven and ask.best_tier in opened else None
    if best_tier is not None:
        chosen = or_best_tier(chosen, best_tier, success, price, dials.worth_usd)
    share = ask.exploration
    tier, propensity = explored(chosen, tiers, share, ask.decision_id) if share else (chosen, 1.0)
    return Choice(
        tier=tier,
        offer=offers.get(tier),
        cost_usd=cost_usd,
        best=chosen,
        propensity=propensity,
        n_admissible=len(tiers),
        eligible=opened,
        best_tier=best_tier,
    )
