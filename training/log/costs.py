"""What each attempt cost, also where the log does not say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier
from training.log.table import OutcomeTable

UNLOGGED_OUTPUT_TOKENS = 256.0
"""Output tokens of an answer, for a tier whose output tokens are never logged."""

CHARS_PER_TOKEN = 4.0
"""For a prompt whose input tokens are never logged."""


@dataclass(frozen=True)
class AttemptCosts:
    """Costs and token counts of all tiers on all prompts, also of attempts that were not made.

    cost_usd, input_tokens, output_tokens: float64 (n_prompts, n_tiers), without NaN.
    mean_output_tokens: (n_tiers,), the logged mean, else UNLOGGED_OUTPUT_TOKENS.
    estimated_share: share of observed attempts whose cost was not logged.
    """

    cost_usd: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    mean_output_tokens: np.ndarray
    estimated_share: float


def attempt_costs(
    table: OutcomeTable, tiers: Sequence[Tier], mean_output_tokens: np.ndarray | None = None
) -> AttemptCosts:
    """The logged cost of each attempt, else tokens x list price of the tier's first offer.

    Missing input tokens: the median of the other tiers on that prompt, else characters /
    CHARS_PER_TOKEN. Missing output tokens: the tier's logged mean, else UNLOGGED_OUTPUT_TOKENS.
    mean_output_tokens: (n_tiers,), used instead of the table's own means, where the table is a part of a log.
    """
    usd_input = np.array([tier.offers[0].usd_per_mtok_input for tier in tiers])
    usd_output = np.array([tier.offers[0].usd_per_mtok_output for tier in tiers])
    input_tokens = np.where(np.isnan(table.input_tokens), _median_of_others(table)[:, None], table.input_tokens)
    mean_output = mean_output_tokens
    if mean_output is None:
        logged = np.isfinite(table.output_tokens).any(0)
        mean_output = np.where(logged, _mean(table.output_tokens, axis=0), UNLOGGED_OUTPUT_TOKENS)
    output_tokens = np.where(np.isnan(table.output_tokens), mean_output, table.output_tokens)
    list_price = (input_tokens * usd_input + output_tokens * usd_output) / 1e6
    is_estimated = np.isnan(table.cost_usd)
    observed = np.isfinite(table.correct)
    return AttemptCosts(
        cost_usd=np.where(is_estimated, list_price, table.cost_usd),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        mean_output_tokens=mean_output,
        estimated_share=float((is_estimated & observed).sum() / max(1, observed.sum())),
    )


def costs_at_prices(table: OutcomeTable, prices: PriceTable) -> AttemptCosts:
    """What all attempts would have cost at these prices: tokens x price of the tier's cheapest offer.

    An attempt keeps its logged cost where its tokens were not logged.
    """
    has_tokens = np.isfinite(table.input_tokens) & np.isfinite(table.output_tokens)
    unpriced = replace(table, cost_usd=np.where(has_tokens, np.nan, table.cost_usd))
    found = attempt_costs(unpriced, prices.tiers)
    quote = prices.quote(float(found.input_tokens.mean()), found.mean_output_tokens.tolist())
    cheapest = [
        replace(tier, offers=(quote.offers[tier.name],)) if tier.name in quote.offers else tier for tier in prices.tiers
    ]
    return attempt_costs(unpriced, cheapest)


def _median_of_others(table: OutcomeTable) -> np.ndarray:
    by_length = np.array([max(1.0, len(prompt) / CHARS_PER_TOKEN) for prompt in table.prompts])
    is_logged = np.isfinite(table.input_tokens).any(axis=1)
    median = by_length.copy()
    if is_logged.any():
        median[is_logged] = np.nanmedian(table.input_tokens[is_logged], axis=1)
    return median


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values that are not NaN; NaN, without a warning, where there are none."""
    count = np.isfinite(values).sum(axis=axis)
    return np.where(count > 0, np.nansum(values, axis=axis) / np.maximum(count, 1), np.nan)
