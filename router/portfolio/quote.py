"""Which offers a request could use, and the cheapest of each tier as the graph takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from router.portfolio.tiers import Offer, Tier


@dataclass(frozen=True, slots=True)
class Quote:
    """The cheapest usable offer of each tier, its prices, and the tiers that may answer the request.

    offers: by the name of the tier; a tier without a usable offer is missing.
    open: names of the tiers that may answer: they have an offer and, for a critical request, are reserved for such.
    usd_per_mtok_input, usd_per_mtok_output: float32 (1, n_tiers), 0 where there is no offer.
    eligible: whether each tier is open, bool (1, n_tiers).
    """

    offers: Mapping[str, Offer]
    open: tuple[str, ...]
    usd_per_mtok_input: np.ndarray
    usd_per_mtok_output: np.ndarray
    eligible: np.ndarray

    @classmethod
    def of(cls, tiers: Sequence[Tier], offers: Mapping[str, Offer], may_answer: Collection[str]) -> Quote:
        """The quote for at most one offer of each tier; may_answer: names of the tiers that the request may ask."""
        input_prices = [offers[tier.name].usd_per_mtok_input if tier.name in offers else 0.0 for tier in tiers]
        output_prices = [offers[tier.name].usd_per_mtok_output if tier.name in offers else 0.0 for tier in tiers]
        is_open = [tier.name in offers and tier.name in may_answer for tier in tiers]
        return cls(
            offers=offers,
            open=tuple(tier.name for tier, can in zip(tiers, is_open, strict=True) if can),
            usd_per_mtok_input=np.array([input_prices], np.float32),
            usd_per_mtok_output=np.array([output_prices], np.float32),
            eligible=np.array([is_open]),
        )


def graph_inputs(quotes: Sequence[Quote]) -> dict[str, np.ndarray]:
    """Quotes of at least one request as the graph takes them, each (n_requests, n_tiers)."""
    names = ("usd_per_mtok_input", "usd_per_mtok_output", "eligible")
    return {name: np.concatenate([getattr(quote, name) for quote in quotes]) for name in names}


def usable_offers(
    tiers: Sequence[Tier],
    context_tokens: float,
    output_tokens: Sequence[float],
    accepts: Callable[[Offer], bool] | None = None,
    *,
    any_window: bool = False,
    minute: int | None = None,
) -> list[list[tuple[float, int, Offer]]]:
    """For each tier the offers that a request could use, cheapest first: its cost, the offer's number, and the offer.

    The offer has the prices of this request, which may depend on its length and on the hour.

    context_tokens: tokens that the provider bills as input.
    output_tokens: the typical answer of each tier in tokens, (n_tiers,). Together with the input it must fit into the
        offer's context window.
    accepts: further conditions on an offer (region, capability); None accepts all.
    any_window: take the offers whose context window is too small as well.
    minute: since midnight UTC; None takes the prices outside all `hours`.
    Costs are in millionths of a USD; among equal costs the order of the file holds.
    """
    found = []
    for tier, n_output in zip(tiers, output_tokens, strict=True):
        usable = []
        for number, offer in enumerate(tier.offers):
            fits = context_tokens + n_output <= offer.context_window or any_window
            if fits and (accepts is None or accepts(offer)):
                now = offer.at(context_tokens, minute)
                cost = context_tokens * now.usd_per_mtok_input + n_output * now.usd_per_mtok_output
                usable.append((cost, number, now))
        if len(usable) > 1:
            usable.sort()
        found.append(usable)
    return found


def billed_input(cost_usd: float, quoted: Offer, output_tokens: float, context_tokens: float) -> float:
    """The input tokens that an expected cost stands for: a provider may bill other ones than were counted.

    quoted: the offer that the cost is of, at the prices of the request.
    """
    if quoted.usd_per_mtok_input <= 0:
        return context_tokens
    return max(0.0, (1e6 * cost_usd - output_tokens * quoted.usd_per_mtok_output) / quoted.usd_per_mtok_input)
