"""A request as the portfolio sees it, and what an offer would cost it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from router.portfolio.prices import PriceTable
from router.portfolio.quote import billed_input, usable_offers
from router.portfolio.sessions import Turn, Warm
from router.portfolio.tiers import Offer


class Request(NamedTuple):
    """A request, what the graph says of it, and its dials.

    chosen: the tier that the graph chose. best_tier: that of the log, where it answers unless another is worth more
    (router.rule.or_best_tier); else None. tiers: those that may answer; quoted: the cheapest offer of each.
    success, output_tokens, cost_usd: by tier; the cost is that of the quoted offer.
    typical_output_tokens: of every tier in the order of the price table, by which the quote was made.
    exploration: share of requests that ask another admissible tier. accepts: which offers may answer; None for all.
    turn: of its conversation; warm: who has the beginning of it in a cache. None where there is none.
    """

    decision_id: str
    chosen: str
    best_tier: str | None
    tiers: tuple[str, ...]
    quoted: Mapping[str, Offer]
    success: Mapping[str, float]
    output_tokens: Mapping[str, float]
    cost_usd: Mapping[str, float]
    context_tokens: float
    typical_output_tokens: Sequence[float]
    worth_usd: float
    slack: float
    exploration: float
    accepts: Callable[[Offer], bool] | None
    turn: Turn | None = None
    warm: Warm | None = None


class Terms(NamedTuple):
    """What one offer would cost a request.

    shadow_usd: what the limits add. limits: the numbers of those that the offer counts for.
    excess: by how much the request would exceed one of them (see Windows); above 0 the offer is closed, and infinite
        where it is down. fullest: the limit that it exceeds most; -1 for none.
    """

    tier: str
    offer: Offer
    cost_usd: float
    shadow_usd: float
    limits: tuple[int, ...]
    excess: float
    fullest: int
    cached_tokens: float = 0.0


class OfferCost(NamedTuple):
    """What a request is expected to cost at an offer. cached_tokens: that the offer is expected to have in a cache."""

    tier: str
    offer: Offer
    usd: float
    cached_tokens: float


def offer_costs(prices: PriceTable, request: Request) -> Iterator[OfferCost]:
    """What a request would cost at each offer that it could use, of the tiers that have a quote."""
    found = usable_offers(
        prices.tiers,
        request.context_tokens,
        request.typical_output_tokens,
        request.accepts,
        minute=prices.minute(),
    )
    for tier, offers in zip(prices.tiers, found, strict=True):
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
            yield OfferCost(name, offer, cost, n_cached)
