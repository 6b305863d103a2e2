"""What an attempt costs where the log does not say: tokens x price, from the nearest count there is."""

import numpy as np
import pandas as pd
import pytest

from router.portfolio.tiers import parse_tiers
from training.log.costs import CHARS_PER_TOKEN, UNLOGGED_OUTPUT_TOKENS, attempt_costs
from training.log.ingest import ingest

TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{{ model = "{name}", provider = "p", region = "x", context_window = 9, '
        f"usd_per_mtok_input = {price}, usd_per_mtok_output = {10 * price} }}]\n"
        for name, price in (("a", 1), ("b", 2), ("c", 3))
    )
)


def costs_of(*rows):
    """Costs of a log of (prompt, model, input_tokens, output_tokens, cost_usd), and the table's row of each prompt."""
    names = ["prompt", "model", "input_tokens", "output_tokens", "cost_usd"]
    table = ingest(pd.DataFrame(rows, columns=names).assign(correct=1), TIERS)
    return attempt_costs(table, TIERS), {prompt: row for row, prompt in enumerate(table.prompts)}


def test_a_logged_cost_stands_whatever_the_price_list_says():
    costs, _ = costs_of(("p", "a", 100, 10, 7.0), ("p", "b", 100, 10, 0.0))
    assert costs.cost_usd[0, :2].tolist() == [7.0, 0.0]
    assert costs.estimated_share == 0


def test_an_attempt_not_made_costs_the_prompts_tokens_and_the_tiers_usual_answer():
    costs, row = costs_of(
        ("p", "a", 100, 10, None), ("p", "b", 300, 30, None), ("q", "c", 5, 40, None), ("r", "c", 5, 60, None)
    )
    assert costs.input_tokens[row["p"], 2] == 200  # the median of the tiers asked
    assert costs.mean_output_tokens.tolist() == [10, 30, 50]
    assert costs.cost_usd[row["p"], 2] == pytest.approx((200 * 3 + 50 * 30) / 1e6)
    assert costs.cost_usd[row["p"], 0] == pytest.approx((100 * 1 + 10 * 10) / 1e6)
    assert np.isfinite(costs.cost_usd).all() and costs.estimated_share == 0


def test_without_any_tokens_characters_and_a_constant_stand_in():
    prompt = "x" * 400
    costs, _ = costs_of((prompt, "a", None, None, None), (prompt, "b", None, None, 1.0))
    assert costs.input_tokens[0].tolist() == [400 / CHARS_PER_TOKEN] * 3
    assert costs.output_tokens[0].tolist() == [UNLOGGED_OUTPUT_TOKENS] * 3
    assert costs.cost_usd[0, 0] == pytest.approx((100 * 1 + UNLOGGED_OUTPUT_TOKENS * 10) / 1e6)
    assert costs.estimated_share == 0.5  # one of the two attempts made; attempts not made do not count


def test_doubling_prices_doubles_what_is_estimated_and_nothing_else():
    log = (("p", "a", 10, 20, 7.0), ("p", "b", 10, None, None), ("q", "c", 30, 5, None))
    names = ["prompt", "model", "input_tokens", "output_tokens", "cost_usd"]
    table = ingest(pd.DataFrame(log, columns=names).assign(correct=1, cost_usd=[7.0, None, None]), TIERS)
    table.cost_usd[table.cost_usd != 7.0] = np.nan
    dear = parse_tiers(
        "".join(
            f'[[tiers]]\nname = "{tier.name}"\noffers = [{{ model = "m{tier.name}", provider = "p", region = "x", '
            f"context_window = 9, usd_per_mtok_input = {2 * tier.offers[0].usd_per_mtok_input}, "
            f"usd_per_mtok_output = {2 * tier.offers[0].usd_per_mtok_output} }}]\n"
            for tier in TIERS
        )
    )
    before, after = attempt_costs(table, TIERS), attempt_costs(table, dear)
    is_logged = np.isfinite(table.cost_usd)
    np.testing.assert_allclose(after.cost_usd, np.where(is_logged, before.cost_usd, 2 * before.cost_usd))
    assert is_logged.sum() == 1
