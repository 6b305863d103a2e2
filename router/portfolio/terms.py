"""A request as the portfolio sees it, and what an offer would cost it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from router.portfolio.tiers import Offer


class Request(NamedTuple):
    """What the choice of an offer takes to know of a request.

    tiers: those that may answer. success, output_tokens, cost_usd: by tier; the cost is that of `quoted`, the tier's
    cheapest offer. admissible: the tiers within the slack.
    """

    tiers: tuple[str, ...]
    quoted: Mapping[str, Offer]
    success: Mapping[str, float]
    output_tokens: Mapping[str, float]
    cost_usd: Mapping[str, float]
    admissible: tuple[str, ...]
    context_tokens: float
    worth_usd: float
    typical_output_tokens: Sequence[float]
    accepts: Callable[[Offer], bool] | None


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
