"""What an attempt costs where the log does not say: tokens x price, from the nearest count there is."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.portfolio.tiers import parse_tiers
from training.log.billing import CHARS_PER_TOKEN, billed_tokens
from training.log.costs import UNLOGGED_OUTPUT_TOKENS, attempt_costs
from training.log.ingest import ingest

TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{{ model = "{name}", provider = "p", region = "x", '
        f"context_window = 99999, usd_per_mtok_input = {price}, usd_per_mtok_output = {10 * price} }}]\n"
        for name, price in (("a", 1), ("b", 2), ("c", 3))
    )
)


def costs_of(*rows):
    """Costs of a log of (prompt, model, input_tokens, output_tokens, cost_usd), and the table's row of each prompt."""
    names = ["prompt", "model", "input_tokens", "output_tokens", "cost_usd"]
    table = ingest(pd.DataFrame(rows, columns=names).assign(correct=1), TIERS)
    return attempt_costs(table, TIERS), {prompt: row for row, prompt in enumerate(table.prompts)}


def test_a_logged_cost_stands_whatever_the_price_list_says():
    costs, _ = costs_of(("p", "a", 100, 10, 7.0), ("p", "b", 100, 10, 0.5))
    assert costs.cost_usd[0, :2].tolist() == [7.0, 0.5]
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
    worth = (1e6 - 100 * 2) / 20  # an answer without tokens is as long as its cost is worth
    assert costs.output_tokens[0].tolist() == [UNLOGGED_OUTPUT_TOKENS, worth, UNLOGGED_OUTPUT_TOKENS]
    assert costs.typical_output_tokens.tolist() == [UNLOGGED_OUTPUT_TOKENS] * 3
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
            f"context_window = 99999, usd_per_mtok_input = {2 * tier.offers[0].usd_per_mtok_input}, "
            f"usd_per_mtok_output = {2 * tier.offers[0].usd_per_mtok_output} }}]\n"
            for tier in TIERS
        )
    )
    before, after = attempt_costs(table, TIERS).cost_usd, attempt_costs(table, dear).cost_usd
    np.testing.assert_allclose(after[:, 1:], 2 * before[:, 1:])
    is_logged = np.isfinite(table.cost_usd[:, 0])
    assert is_logged.sum() == 1 and (after[is_logged, 0] == before[is_logged, 0]).all()


# ---- billed tokens ---------------------------------------------------------------------------------


def bills(cost_of, n=200, answers=True, seed=0):
    """A log of one tier at 1 and 10 USD per million tokens, costs as `cost_of(input, output, rng)` says in tokens."""
    rng = np.random.default_rng(seed)
    n_in, n_out = rng.integers(50, 500, n).astype(float), rng.integers(20, 400, n).astype(float)
    frame = pd.DataFrame(
        {
            "prompt": [f"{number} " + "word " * int(length) for number, length in enumerate(n_in / 2)],
            "model": "a",
            "correct": 1.0,
            "input_tokens": n_in,
            "output_tokens": n_out if answers else np.nan,
            "cost_usd": cost_of(n_in, n_out, rng) / 1e6,
        }
    )
    other = frame.assign(model="b", cost_usd=np.nan)
    table = ingest(pd.concat([frame, other]), TIERS)
    known = table.input_tokens[:, 0]
    return billed_tokens(table, TIERS), table, known


def paid_usd(billed):
    return (billed.input_tokens[:, 0] * 1 + billed.output_tokens[:, 0] * 10) / 1e6


def test_tokens_that_explain_the_cost_stand_as_they_were_logged():
    billed, table, _ = bills(lambda n_in, n_out, rng: n_in + 10 * n_out)
    np.testing.assert_array_equal(billed.input_tokens[:, 0], table.input_tokens[:, 0])
    np.testing.assert_array_equal(billed.output_tokens[:, 0], table.output_tokens[:, 0])


@pytest.mark.parametrize(
    "cost_of",
    [
        lambda n_in, n_out, rng: 3 * n_in + 7 * n_out,  # two other prices
        lambda n_in, n_out, rng: (n_in + 10 * n_out) * np.where(np.arange(len(n_in)) < 90, 1.0, 0.1),  # a price cut
    ],
)
def test_a_price_that_has_changed_since_changes_no_tokens(cost_of):
    billed, table, _ = bills(cost_of)
    np.testing.assert_array_equal(billed.input_tokens[:, 0], table.input_tokens[:, 0])
    np.testing.assert_array_equal(billed.output_tokens[:, 0], table.output_tokens[:, 0])


def test_what_a_bill_holds_beyond_the_tokens_counts_as_output_tokens():
    """Reasoning that was not logged, or more calls: any amount per attempt."""
    billed, table, _ = bills(lambda n_in, n_out, rng: n_in + 10 * (n_out + rng.integers(100, 5000, len(n_in))))
    np.testing.assert_allclose(paid_usd(billed), table.cost_usd[:, 0])
    np.testing.assert_array_equal(billed.input_tokens[:, 0], table.input_tokens[:, 0])
    assert (billed.output_tokens[:, 0] > table.output_tokens[:, 0]).all()


def test_what_a_bill_lacks_is_taken_from_the_input_tokens():
    """Tokens read from a cache at a lower price: any share of the prompt."""
    billed, table, _ = bills(lambda n_in, n_out, rng: rng.uniform(0.1, 1, len(n_in)) * n_in + 10 * n_out)
    np.testing.assert_allclose(paid_usd(billed), table.cost_usd[:, 0])
    assert (billed.input_tokens[:, 0] <= table.input_tokens[:, 0]).all()


def test_a_cost_without_output_tokens_is_worth_so_many():
    billed, table, _ = bills(lambda n_in, n_out, rng: n_in + 10 * n_out, answers=False)
    np.testing.assert_allclose(paid_usd(billed), table.cost_usd[:, 0])


def test_a_stated_price_decides_whether_a_bill_holds_more_than_its_tokens():
    """Three times what the tokens cost is a change of price, or at a stated price tokens that were not logged."""
    rows = {"prompt": [f"p{n}" for n in range(60)], "model": "a", "correct": 1.0, "input_tokens": 100.0}
    frame = pd.DataFrame({**rows, "output_tokens": 10.0 + np.arange(60), "cost_usd": 3e-6 * (200 + 10 * np.arange(60))})
    unstated = billed_tokens(ingest(pd.concat([frame, frame.assign(model="b")]), TIERS), TIERS)
    priced = frame.assign(usd_per_mtok_input=1.0, usd_per_mtok_output=10.0)
    stated = billed_tokens(ingest(pd.concat([priced, frame.assign(model="b")]), TIERS), TIERS)
    before = billed_tokens(ingest(pd.concat([frame.assign(cost_usd=np.nan), frame.assign(model="b")]), TIERS), TIERS)
    np.testing.assert_array_equal(unstated.output_tokens[:, 0], before.output_tokens[:, 0])
    assert (stated.output_tokens[:, 0] > 2 * before.output_tokens[:, 0]).all()


@given(st.lists(st.floats(0, 1e7), min_size=30, max_size=60))
@settings(max_examples=5)
def test_no_bill_makes_a_count_negative_or_unknown(costs):
    billed, _, _ = bills(lambda n_in, n_out, rng: np.array(costs), n=len(costs))
    for tokens in (billed.input_tokens[:, 0], billed.output_tokens[:, 0]):
        assert np.isfinite(tokens).all() and (tokens >= 0).all()


def test_one_absurd_count_hardly_moves_the_typical_answer():
    rows = [(f"p{n}", "a", 10, 100, None) for n in range(200)]
    costs, _ = costs_of(*rows[:-1], ("p199", "a", 10, 1_000_000, None), ("p0", "b", 1, 1, None))
    assert costs.typical_output_tokens[0] == pytest.approx(100, rel=0.1)
