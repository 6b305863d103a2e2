"""Laws of expected cost on a log of agents' runs: an attempt is many calls; its cost is logged, its tokens are not."""

import numpy as np
import pandas as pd
import pytest

from router import Router
from router.portfolio.prices import PriceTable
from training import TrainingConfig, evaluate, train


@pytest.fixture(scope="module")
def runs(sample_log, sample_tiers, tmp_path_factory):
    """SIMULATED: the sample log with costs of runs of some dozen calls, the bundle learned from it, and its tiers."""
    frame = pd.read_parquet(sample_log)
    frame = frame[frame.question_key.isin(sorted(frame.question_key.unique())[::3])]
    n_calls = np.random.default_rng(0).lognormal(3.0, 0.5, len(frame)) * np.where(frame.dataset == "code", 3.0, 1.0)
    log = frame.assign(cost_usd=n_calls * 0.002).drop(columns=["input_tokens", "output_tokens"])
    tiers = tmp_path_factory.mktemp("tiers") / "tiers.toml"
    text = sample_tiers.read_text(encoding="utf-8")
    tiers.write_text(text, encoding="utf-8")
    out = tmp_path_factory.mktemp("models") / "runs"
    return log, train(log, tiers, out, TrainingConfig(), tracking_uri="none"), tiers


def priced(result):
    """The tiers that have a price; the sample's others run on the user's own machines."""
    return [tier.name for tier in PriceTable.parse((result.bundle / "tiers.toml").read_text()).tiers
            if tier.offers[0].usd_per_mtok_output > 0]  # fmt: skip


def test_expected_cost_is_what_runs_cost_and_not_what_their_prompts_would(runs):
    _, result, _ = runs
    assert priced(result)
    for tier in priced(result):
        ratio = result.evaluation.cost_ratio[tier]
        assert 0.85 < ratio.value < 1.18, (tier, ratio)
        assert result.evaluation.cost_explained[tier] < 0.2


def test_expected_cost_moves_with_prices(runs, tmp_path):
    _, result, tiers = runs
    router = Router.load(result.bundle)
    before = router.route("Write a function.", worth_usd=1.0)
    prices = PriceTable.parse(tiers.read_text(encoding="utf-8"))
    providers = {offer.provider for tier in prices.tiers for offer in tier.offers}
    changed = evaluate(result.bundle, runs[0], price_factors=dict.fromkeys(providers, 0.5))
    for tier in priced(result):
        assert changed.single[tier][1].value == pytest.approx(0.5 * result.evaluation.single[tier][1].value, rel=0.01)
        assert changed.cost_ratio[tier].value == pytest.approx(result.evaluation.cost_ratio[tier].value, rel=0.02)
    assert not before.fallback


def test_whole_runs_do_not_make_a_tier_too_small_for_a_prompt(runs):
    _, result, _ = runs
    decision = Router.load(result.bundle).route("Write a function.")
    assert len(decision.eligible) == len(result.manifest.tiers)
