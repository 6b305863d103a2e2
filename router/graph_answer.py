"""What the graph says of one prompt, and what that comes to where some offers cost more than a policy allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from router.policy import Dials
from router.portfolio.health import Key, key_of
from router.portfolio.quote import Quote, billed_input
from router.portfolio.tiers import Offer, Tier
from router.restrictions import CostLimit
from router.rule import admissible, best


class GraphAnswer(NamedTuple):
    """What the graph says of one prompt: the engine's OUTPUTS in their order; tier -1 where none is eligible.

    success, output_tokens, cost_usd: (n_tiers,) each; empty where the graph gave no answer.
    trouble: why there is no answer, in words; empty where the graph gave one.
    """

    success: list[float]
    output_tokens: list[float]
    cost_usd: list[float]
    tier: int
    familiarity: float | None
    cluster: int | None
    trouble: str = ""


NO_ANSWER = GraphAnswer([], [], [], -1, None, None)


class BilledTokens(NamedTuple):
    """The tokens that each tier is expected to bill for a request, (n_tiers,) each. output: of one answer."""

    input: Sequence[float]
    output: Sequence[float]

    @classmethod
    def of(
        cls, answer: GraphAnswer, quote: Quote, tiers: Sequence[Tier], typical: Sequence[float], context_tokens: float
    ) -> BilledTokens:
        """As the graph expects them; without its answer, the typical output and the tokens that were counted.

        quote: by which the graph was asked. typical: output tokens of each tier, (n_tiers,).
        """
        if not answer.cost_usd:
            return cls([context_tokens] * len(tiers), typical)
        found = [
            billed_input(cost, quote.offers[tier.name], n_output, context_tokens)
            if tier.name in quote.offers
            else context_tokens
            for tier, cost, n_output in zip(tiers, answer.cost_usd, answer.output_tokens, strict=True)
        ]
        return cls(found, answer.output_tokens)

    def costs(
        self, limit: CostLimit, tiers: Sequence[Tier], usable: Sequence[Sequence[tuple[float, int, Offer]]]
    ) -> Mapping[Key, float]:
        """What the request is expected to cost at each usable offer, in USD; usable: as `usable_offers` gives them."""
        return {
            key_of(offer): limit.usd(offer, n_input, n_output)
            for n_input, n_output, offers in zip(self.input, self.output, usable, strict=True)
            for _, _, offer in offers
        }


def rechosen(
    answer: GraphAnswer, billed: BilledTokens, quote: Quote, tiers: Sequence[Tier], dials: Dials
) -> GraphAnswer:
    """The answer as if the graph had been asked by another quote with at least one open tier.

    An answer that the graph has not given stays.
    """
    if not answer.cost_usd or not quote.open:
        return answer
    costs = list(answer.cost_usd)
    for row, tier in enumerate(tiers):
        if (offer := quote.offers.get(tier.name)) is not None:
            usd = billed.input[row] * offer.usd_per_mtok_input + billed.output[row] * offer.usd_per_mtok_output
            costs[row] = usd / 1e6
    rows = [row for row, tier in enumerate(tiers) if tier.name in quote.open]
    success = dict(enumerate(answer.success))
    chosen = best(admissible(rows, success, dials.slack), success, dict(enumerate(costs)), dials.worth_usd)
    return answer._replace(cost_usd=costs, tier=chosen)
