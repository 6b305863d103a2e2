"""What must hold on real outcome logs; skipped where BROKER_REAL_LOGS does not name them."""

from pathlib import Path

import pandas as pd
import pytest

from router import Router
from training import TrainingConfig, evaluate, train

TIERS = Path(__file__).parent.parent / "benchmarks" / "tiers"


@pytest.fixture(scope="module", params=["zeroeval", "routellm"])
def real_run(request, real_logs, tmp_path_factory):
    """The log and a bundle of it; of routellm every third prompt, which are 4,000."""
    folder = tmp_path_factory.mktemp("real")
    log, out = real_logs / request.param, folder / "bundle"
    if request.param == "routellm":
        log = every_third_prompt(log, folder)
    return log, train(log, TIERS / f"{request.param}.toml", out, TrainingConfig(), tracking_uri="none")


def every_third_prompt(log, folder):
    prompts, outcomes = (pd.read_parquet(log / f"{name}.parquet") for name in ("prompts", "outcomes"))
    some = folder / "log"
    some.mkdir()
    prompts[::3].to_parquet(some / "prompts.parquet")
    outcomes[outcomes.prompt_id.isin(prompts.prompt_id[::3])].to_parquet(some / "outcomes.parquet")
    return some


def test_a_real_log_is_used_whole(real_run):
    _, result = real_run
    summary = result.log.summary
    assert not summary.quarantined
    assert summary.n_used + sum(summary.in_no_tier.values()) == summary.n_rows


def test_the_router_saves_money_at_98_percent_of_the_best_tiers_accuracy(real_run):
    _, result = real_run
    assert result.evaluation.router.figures["cost_at_98"].value < 0.9
    mix = result.evaluation.baselines["random"].figures["aiq"].value
    assert result.evaluation.router.figures["aiq"].value > mix + 0.005


def test_no_baseline_is_significantly_better(real_run):
    _, result = real_run
    assert result.evaluation.lead.high > 0, result.evaluation.verdict


def test_calibration_is_within_what_chance_allows(real_run):
    _, result = real_run
    allowed = 0.03 + 0.8 / result.evaluation.n_prompts**0.5
    assert all(ece.value < allowed for ece, _ in result.evaluation.calibration.values())


def test_the_bundle_is_small(real_run):
    _, result = real_run
    assert sum(path.stat().st_size for path in result.bundle.iterdir()) < 20e6


def test_evaluating_the_training_log_judges_only_what_was_held_out(real_run):
    log, result = real_run
    again = evaluate(result.bundle, log)
    assert again.n_prompts == result.evaluation.n_prompts
    assert again.router.figures["aiq"].value == pytest.approx(result.evaluation.router.figures["aiq"].value, abs=1e-6)


def test_every_prompt_of_the_log_is_routed(real_run):
    _, result = real_run
    decisions = Router.load(result.bundle).route_batch(result.log.prompts[:500])
    assert not any(decision.fallback for decision in decisions)
