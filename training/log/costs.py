"""What each attempt cost, also where the log does not say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier
from training.log.billing import BilledTokens, billed_tokens
from training.log.table import OutcomeTable

UNLOGGED_OUTPUT_TOKENS = 256.0
"""Output tokens of an answer, for a tier of which the log has neither output tokens nor costs."""

TYPICAL_QUANTILE = 0.99
"""Longer answers count as long as this quantile of a tier's answers: no single count decides what is typical."""


@dataclass(frozen=True)
class AttemptCosts:
    """Costs and token counts of all tiers on all prompts, also of attempts that were not made.

    cost_usd, input_tokens, output_tokens: float64 (n_prompts, n_tiers), without NaN. Tokens are those that were billed.
    billed: the same tokens, NaN where the log says nothing.
    mean_output_tokens: of a tier's attempts, as billed, else UNLOGGED_OUTPUT_TOKENS, (n_tiers,).
    typical_output_tokens: of a tier's answers, as logged, else UNLOGGED_OUTPUT_TOKENS; robust, (n_tiers,).
    estimated_share: share of observed attempts whose cost was not logged.
    """

    cost_usd: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    billed: BilledTokens
    mean_output_tokens: np.ndarray
    typical_output_tokens: np.ndarray
    estimated_share: float


def attempt_costs(
    table: OutcomeTable, tiers: Sequence[Tier], mean_output_tokens: np.ndarray | None = None
) -> AttemptCosts:
    """The logged cost of each attempt, else billed tokens x list price of the tier's first offer.

    Missing input tokens: those of the prompt (see BilledTokens). Missing output tokens: the tier's mean, else
    UNLOGGED_OUTPUT_TOKENS. mean_output_tokens: (n_tiers,), used instead of the table's own means, where the table is a
    part of a log.
    """
    usd_input = np.array([tier.offers[0].usd_per_mtok_input for tier in tiers])
    usd_output = np.array([tier.offers[0].usd_per_mtok_output for tier in tiers])
    billed = billed_tokens(table, tiers)
    input_tokens = np.where(np.isnan(billed.input_tokens), billed.prompt_tokens, billed.input_tokens)
    mean_output = _means(billed.output_tokens) if mean_output_tokens is None else mean_output_tokens
    output_tokens = np.where(np.isnan(billed.output_tokens), mean_output, billed.output_tokens)
    list_price = (input_tokens * usd_input + output_tokens * usd_output) / 1e6
    is_estimated = np.isnan(table.cost_usd)
    observed = np.isfinite(table.correct)
    return AttemptCosts(
        cost_usd=np.where(is_estimated, list_price, table.cost_usd),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        billed=billed,
        mean_output_tokens=mean_output,
        typical_output_tokens=_means(_without_extremes(table.output_tokens)),
        estimated_share=float((is_estimated & observed).sum() / max(1, observed.sum())),
    )


def costs_at_prices(table: OutcomeTable, prices: PriceTable, logged_at: Sequence[Tier] | None = None) -> AttemptCosts:
    """What all attempts would have cost at these prices: tokens x price of the tier's cheapest offer.

    logged_at: the tiers with the prices at which the logged costs were paid, in the order of the table's. With them, an
    attempt whose tokens do not tell its cost is billed for the tokens that its cost was worth. Without them it keeps
    its logged cost.
    """
    if logged_at is not None:
        billed = billed_tokens(table, logged_at)
        table = replace(table, input_tokens=billed.input_tokens, output_tokens=billed.output_tokens)
    has_tokens = np.isfinite(table.input_tokens) & np.isfinite(table.output_tokens)
    unpriced = replace(table, cost_usd=np.where(has_tokens, np.nan, table.cost_usd))
    found = attempt_costs(unpriced, prices.tiers)
    quote = prices.quote(float(found.input_tokens.mean()), found.mean_output_tokens.tolist())
    cheapest = [
        replace(tier, offers=(quote.offers[tier.name],)) if tier.name in quote.offers else tier for tier in prices.tiers
    ]
    return attempt_costs(unpriced, cheapest)


def _means(tokens: np.ndarray) -> np.ndarray:
    """Mean of each tier's tokens, (n_tiers,), else UNLOGGED_OUTPUT_TOKENS; NaN stands for unknown tokens."""
    count = np.isfinite(tokens).sum(axis=0)
    return np.where(count > 0, np.nansum(tokens, axis=0) / np.maximum(count, 1), UNLOGGED_OUTPUT_TOKENS)


def _without_extremes(tokens: np.ndarray) -> np.ndarray:
    """Each tier's tokens, cut off at TYPICAL_QUANTILE of them; same shape, NaN where unknown."""
    cut = tokens.copy()
    for column in cut.T:
        known = column[np.isfinite(column)]
        if len(known):
            np.minimum(column, np.quantile(known, TYPICAL_QUANTILE, method="higher"), out=column)
    return cut
