"""How many tokens attempts were billed for, from what the log says of tokens and of cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from router.portfolio.tiers import Tier
from training.log.table import OutcomeTable

CHARS_PER_TOKEN = 4.0
"""Used for a prompt whose input tokens the log never has."""

TOLERANCE = 0.02
"""Costs that differ by so small a share are of one price; counts and prices are rounded."""

EXPLAINED_SHARE = 0.9
"""Share of a tier's attempts that a few price levels must explain, so that another price is taken for the reason."""

_LEAST_COST = 1e-6  # in millionths of a USD: less is nothing, and its inverse no number

MAX_PRICE_LEVELS = 5
MIN_ATTEMPTS = 20
"""With fewer attempts that have tokens and cost but no stated price, nothing is concluded from their ratio."""


@dataclass(frozen=True)
class BilledTokens:
    """Tokens that attempts were billed for at the two prices of their tier.

    input_tokens, output_tokens: float64 (n_prompts, n_tiers), NaN where the log says nothing.
    prompt_tokens: tokens of the prompt, as far as the log tells, else from its characters, (n_prompts, n_tiers).
    """

    input_tokens: np.ndarray
    output_tokens: np.ndarray
    prompt_tokens: np.ndarray


def billed_tokens(table: OutcomeTable, tiers: Sequence[Tier]) -> BilledTokens:
    """What each attempt was billed for; cost = input tokens x input price + output tokens x output price.

    Logged tokens stand where they explain the logged cost. They also stand where another price would and the log
    states none (see `_price_explains`): then the price has changed since, not the tokens. Else the cost is right and
    the tokens are not all that was billed. What it holds beyond them (reasoning, more calls, context sent again)
    counts as output tokens; what it lacks (tokens read from a cache) is taken from the input tokens. An attempt with
    a cost and no output tokens gets those that its cost is worth. Prices are those that the log states for the
    attempt, else those of the tier's first offer.
    """
    usd_input, usd_output = attempt_prices(table, tiers)
    prompt = np.where(np.isnan(table.input_tokens), tokens_of_prompts(table)[:, None], table.input_tokens)
    given, answer = table.input_tokens.copy(), table.output_tokens.copy()
    cost = table.cost_usd * 1e6
    for tier in range(len(tiers)):
        if _price_explains(table, tier):
            continue
        is_priced = np.isfinite(cost[:, tier]) & (usd_input[:, tier] > 0) & (usd_output[:, tier] > 0)
        rows = np.flatnonzero(is_priced)
        paid, p_in, p_out = cost[rows, tier], usd_input[rows, tier], usd_output[rows, tier]
        n_in, n_out = prompt[rows, tier], np.nan_to_num(answer[rows, tier])
        beyond = paid - n_in * p_in - n_out * p_out
        n_out = np.where(beyond > 0, n_out + beyond / p_out, np.minimum(n_out, paid / p_out))
        n_in = np.where(beyond < 0, np.maximum(0, paid - n_out * p_out) / p_in, n_in)
        changed = (beyond != 0) | np.isnan(answer[rows, tier])
        given[rows[changed], tier], answer[rows[changed], tier] = n_in[changed], n_out[changed]
    return BilledTokens(given, answer, prompt)


def attempt_prices(table: OutcomeTable, tiers: Sequence[Tier]) -> tuple[np.ndarray, np.ndarray]:
    """Input and output price of each attempt in USD per million tokens, (n_prompts, n_tiers) each.

    It is the price that the log states, else that of the tier's first offer.
    """
    usd_input = np.array([tier.offers[0].usd_per_mtok_input for tier in tiers])
    usd_output = np.array([tier.offers[0].usd_per_mtok_output for tier in tiers])
    stated_input, stated_output = table.usd_per_mtok_input, table.usd_per_mtok_output
    return (
        np.where(np.isnan(stated_input), usd_input, stated_input),
        np.where(np.isnan(stated_output), usd_output, stated_output),
    )


def tokens_of_prompts(table: OutcomeTable) -> np.ndarray:
    """Input tokens of each prompt, (n_prompts,): the median of its attempts, else characters / CHARS_PER_TOKEN."""
    median = np.array([max(1.0, len(prompt) / CHARS_PER_TOKEN) for prompt in table.prompts])
    is_logged = np.isfinite(table.input_tokens).any(axis=1)
    if is_logged.any():
        median[is_logged] = np.nanmedian(table.input_tokens[is_logged], axis=1)
    return median


def _price_explains(table: OutcomeTable, tier: int) -> bool:
    """Whether a tier's logged costs are its logged tokens at some prices, perhaps not those of today.

    So it is where costs are linear in the two token counts (one pair of prices, by non-negative least squares, Lawson
    & Hanson 1974), or where cost / (input + output tokens at that fit) has only a few values (several prices in turn).
    """
    tokens = np.stack([table.input_tokens[:, tier], table.output_tokens[:, tier]], axis=1)
    cost = table.cost_usd[:, tier] * 1e6
    known = np.isfinite(tokens).all(axis=1) & (cost > _LEAST_COST) & np.isnan(table.usd_per_mtok_output[:, tier])
    if known.sum() < MIN_ATTEMPTS:
        return False
    scale = 1 / cost[known]  # relative errors count
    prices, _ = nnls(tokens[known] * scale[:, None], np.ones(int(known.sum())))
    ratio = cost[known] / np.maximum(tokens[known] @ prices, np.finfo(float).tiny)
    _, n_at_level = np.unique(np.round(np.log(ratio) / TOLERANCE), return_counts=True)
    return bool(np.sort(n_at_level)[-MAX_PRICE_LEVELS:].sum() >= EXPLAINED_SHARE * known.sum())
