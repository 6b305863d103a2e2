"""Laws of partial feedback: what the old router chose does not decide what is learned, nor what is said of it."""

import json

import numpy as np
import pandas as pd
import pytest

from router.golden import check_golden
from router.portfolio.tiers import log_names, read_tiers
from training import SuccessEstimator, TrainingConfig, evaluate, train
from training.encoders.encoder import N_SURFACE
from training.errors import LogError
from training.fit.ridge import ridge, ridge_on_cells
from training.log.table import is_partial


def prompts_of(n_prompts, n_tiers, seed=0):
    """Embeddings, outcomes of all tiers, and what of their difficulty the embeddings do not show."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n_prompts, 12)) / 4
    embedding = np.concatenate([text, rng.random((n_prompts, N_SURFACE))], axis=1).astype(np.float32)
    unseen = rng.choice([-1.0, 1.0], size=n_prompts)
    skill = np.linspace(-0.5, 1.0, n_tiers) + 4 * text[:, :1] + 1.5 * unseen[:, None]
    correct = (rng.random((n_prompts, n_tiers)) < 1 / (1 + np.exp(-skill))).astype(float)
    return embedding, correct, unseen


def logged(correct, distribution, seed=1):
    """The outcome of one tier per prompt, drawn from a distribution over tiers, and the propensity of that draw."""
    n, n_tiers = correct.shape
    draw = np.random.default_rng(seed).random((n, 1))
    action = (draw > distribution.cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
    is_logged = np.eye(n_tiers, dtype=bool)[action]
    return np.where(is_logged, correct, np.nan), np.where(is_logged, distribution, np.nan)


def chosen_by_difficulty(unseen):
    """An old router that asks tier 0 what it knows to be easy, and the others the rest; three tiers."""
    return np.where(unseen[:, None] > 0, [[0.8, 0.1, 0.1]], [[0.1, 0.45, 0.45]])


# ---- the estimate ----------------------------------------------------------------------------------


def test_a_log_that_is_biased_by_the_prompt_does_not_bias_the_mean_success_of_a_tier():
    embedding, correct, unseen = prompts_of(1500, 3)
    observed, propensity = logged(correct, chosen_by_difficulty(unseen))
    new, truth, _ = prompts_of(3000, 3, seed=2)
    naive = SuccessEstimator().fit(embedding, observed).predict_proba(new).mean(axis=0)
    weighted = SuccessEstimator().fit(embedding, observed, propensity=propensity).predict_proba(new).mean(axis=0)
    noise = 3 * np.sqrt(0.25 * np.nanmean(1 / propensity, axis=0) / np.isfinite(observed).sum(axis=0))
    assert np.all(np.abs(weighted - truth.mean(axis=0)) < noise)
    assert np.all(np.abs(naive - truth.mean(axis=0)) > noise)


def test_the_estimate_knows_prompts_apart_where_one_tier_answered_each():
    embedding, correct, unseen = prompts_of(1000, 3)
    observed, propensity = logged(correct, chosen_by_difficulty(unseen))
    new, truth, _ = prompts_of(2000, 3, seed=2)
    success = SuccessEstimator().fit(embedding, observed, propensity=propensity).predict_proba(new)
    assert ((success - truth) ** 2).mean() < 0.98 * ((truth.mean(axis=0) - truth) ** 2).mean()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_where_most_outcomes_are_there_propensities_change_nothing(missing):
    embedding, correct, _ = prompts_of(300, 4)
    correct[np.random.default_rng(3).random(correct.shape) < missing] = np.nan
    propensity = np.random.default_rng(4).uniform(0.1, 1, correct.shape)
    plain = SuccessEstimator().fit(embedding, correct)
    given = SuccessEstimator().fit(embedding, correct, propensity=propensity)
    np.testing.assert_array_equal(plain.predict_proba(embedding), given.predict_proba(embedding))


def test_an_unknown_propensity_counts_as_one():
    embedding, correct, unseen = prompts_of(300, 3)
    observed, propensity = logged(correct, chosen_by_difficulty(unseen))
    fits = [
        SuccessEstimator().fit(embedding, observed, propensity=given)
        for given in (None, np.full_like(propensity, np.nan), np.ones_like(propensity))
    ]
    for other in fits[1:]:
        np.testing.assert_array_equal(fits[0].predict_proba(embedding), other.predict_proba(embedding))


@pytest.mark.parametrize("value", [0.0, 1.5, -0.1])
def test_a_propensity_out_of_range_is_refused(value):
    embedding, correct, _ = prompts_of(100, 2)
    with pytest.raises(LogError, match="above 0 and at most 1"):
        SuccessEstimator().fit(embedding, correct, propensity=np.full_like(correct, value))


def test_there_are_no_labels_to_learn_from():
    embedding, correct, unseen = prompts_of(300, 3)
    observed, _ = logged(correct, chosen_by_difficulty(unseen))
    assert SuccessEstimator().fit(embedding, observed).model_.classifier is None


def test_nothing_is_found_where_nothing_is_to_be_found():
    """On coin flips, out-of-fold estimates know nothing of the one outcome that they leave out."""
    embedding, _, unseen = prompts_of(600, 3)
    coins = (np.random.default_rng(5).random((600, 3)) < 0.5).astype(float)
    observed, propensity = logged(coins, chosen_by_difficulty(unseen))
    out_of_fold = SuccessEstimator().fit(embedding, observed, propensity=propensity).out_of_fold_
    seen = np.isfinite(observed)
    centred = (out_of_fold - out_of_fold.mean(axis=0))[seen], (observed - np.nanmean(observed, axis=0))[seen]
    assert np.corrcoef(*centred)[0, 1] < 2.5 / np.sqrt(seen.sum())


@pytest.mark.parametrize("others_are_complete", [True, False])
def test_a_new_tier_with_thirty_outcomes_gets_its_own_mean_and_the_difficulty_that_others_know(others_are_complete):
    embedding, correct, _ = prompts_of(800, 3)
    observed = correct.copy() if others_are_complete else logged(correct, np.tile([0.5, 0.5, 0.0], (800, 1)))[0]
    asked = np.random.default_rng(6).permutation(800)[:30]
    observed[:, 2] = np.nan
    observed[asked] = np.where(np.arange(3) == 2, correct[asked], np.nan)
    assert is_partial(observed) != others_are_complete
    new, truth, _ = prompts_of(3000, 3, seed=2)
    success = SuccessEstimator().fit(embedding, observed).predict_proba(new)[:, 2]
    share = truth[:, 2].mean()
    assert abs(success.mean() - share) < 2.5 * np.sqrt(share * (1 - share) / 30)
    hard, easy = (truth[success <= np.quantile(success, 0.3), 2], truth[success >= np.quantile(success, 0.7), 2])
    assert easy.mean() > hard.mean() + 0.1


# ---- parts -----------------------------------------------------------------------------------------


def test_equal_weights_are_no_weights():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 5)), rng.random((200, 2))
    for found, expected in zip(ridge(x, y, np.full(200, 7.0)), ridge(x, y), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_fit_is_closest_where_its_weights_are():
    x = np.linspace(0, 2, 200)[:, None]
    y, is_left = x**2, x[:, 0] < 1
    plain, weighted = (ridge(x, y, weight) for weight in (None, np.where(is_left, 100.0, 1.0)))
    errors = [((x @ weights + bias - y)[is_left] ** 2).mean() for weights, bias in (plain, weighted)]
    assert errors[1] < 0.5 * errors[0]


def test_a_tier_without_outcomes_has_the_mean_of_all_and_what_tiers_share():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 4))
    correct = np.clip(0.6 + 0.2 * x[:, :1] + rng.normal(size=(600, 3)) / 10, 0, 1)
    correct[np.arange(600), rng.integers(2, size=600)] = np.nan
    correct[:, 2] = np.nan
    weights, bias = ridge_on_cells(x, correct, np.ones((600, 3)))
    assert bias[2] == pytest.approx(np.nanmean(correct), abs=0.02)
    np.testing.assert_allclose(weights[:, 2], weights[:, :2].mean(axis=1), atol=0.05)
    assert weights[0, 2] > 0.1


# ---- the whole line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_tier_per_prompt(sample_log, sample_tiers):
    """The sample log with one outcome per prompt; the longer a prompt, the dearer the tier, in most cases."""
    log = pd.read_parquet(sample_log)
    tier_of = {
        name: k for k, tier in enumerate(read_tiers(sample_tiers)) for offer in tier.offers for name in log_names(offer)
    }
    log["tier"] = log.model.map(tier_of)
    n_chars = log.groupby("prompt").prompt.first().str.len()
    odds = np.exp(1.2 * (2 * n_chars.rank(pct=True).to_numpy()[:, None] - 1) * [-1, 0, 1])
    shares = pd.DataFrame(odds / odds.sum(axis=1, keepdims=True), index=n_chars.index)
    draw = np.random.default_rng(0).random((len(shares), 1))
    action = pd.Series((draw > shares.to_numpy().cumsum(axis=1)).sum(axis=1).clip(max=2), index=shares.index)
    chosen = log[log.tier == log.prompt.map(action)]
    return chosen.assign(propensity=[shares.at[row.prompt, row.tier] for row in chosen.itertuples()])


@pytest.fixture(scope="module")
def part_of_it(one_tier_per_prompt):
    """A third of its questions."""
    keys = sorted(one_tier_per_prompt.question_key.unique())[::3]
    return one_tier_per_prompt[one_tier_per_prompt.question_key.isin(keys)]


@pytest.fixture(scope="module")
def learned(one_tier_per_prompt, sample_tiers, tmp_path_factory):
    """A run on it."""
    folder = tmp_path_factory.mktemp("partial")
    return train(one_tier_per_prompt, sample_tiers, folder / "bundle", TrainingConfig(), tracking_uri="none")


def test_a_log_of_one_tier_per_prompt_gives_a_bundle_that_verifies(learned):
    assert check_golden(learned.bundle).passed
    assert not list(learned.bundle.parent.glob("*quarantine*"))
    assert all(0 < share < 1 for share in learned.manifest.success)


def test_its_report_has_off_policy_figures_and_no_curves(learned):
    report = json.loads((learned.bundle / "report.json").read_text())
    assert report["router"]["aiq"] is None and report["router"]["curve"] == [] and report["lead_aiq"] is None
    found = report["off_policy"]["router"]
    assert found["refused"] is None and found["accuracy"]["low"] < found["accuracy"]["value"] < 1
    card = (learned.bundle / "README.md").read_text()
    assert "Judged off-policy" in card and "always frontier" in card


def test_its_router_is_nearly_as_good_as_one_that_saw_all_outcomes(learned, trained, sample_log):
    """Judged on prompts with all outcomes, on none of which either was trained."""
    part = evaluate(learned.bundle, sample_log)
    assert part.router.figures["aiq"].value > part.baselines["random"].figures["aiq"].value + 0.05
    assert part.router.figures["aiq"].value > trained.evaluation.router.figures["aiq"].value - 0.05


def test_off_policy_figures_agree_with_what_the_hidden_outcomes_say(learned, sample_log):
    truth = next(point for point in evaluate(learned.bundle, sample_log).dial if point.quality == 0.98)
    quality = learned.evaluation.router.quality.doubly_robust
    assert quality.low < truth.accuracy.value < quality.high


def test_without_propensities_it_trains_and_says_what_that_means(part_of_it, sample_tiers, tmp_path):
    log = part_of_it.drop(columns="propensity")
    result = train(log, sample_tiers, tmp_path / "bundle", TrainingConfig(), tracking_uri="none")
    assert "estimates may be biased towards what was logged" in str(result.log.summary)
    assert "CANNOT BE JUDGED" in result.evaluation.verdict and "propensit" in result.evaluation.verdict
    assert "CANNOT BE JUDGED" in (result.bundle / "README.md").read_text()
    assert not any(point.promised for point in result.manifest.dial)
    assert any(point.slack > 0 for point in result.manifest.dial)
    with pytest.raises(LogError, match="with propensities"):
        evaluate(result.bundle, log)


def test_a_log_that_never_explored_is_learned_from_and_nothing_is_promised(part_of_it, sample_tiers, tmp_path):
    certain = part_of_it.assign(propensity=1.0)
    result = train(certain, sample_tiers, tmp_path / "bundle", TrainingConfig(), tracking_uri="none")
    assert not any(point.promised for point in result.manifest.dial)
    assert "had no chance of being logged" in result.evaluation.verdict


def test_a_promise_that_rests_on_a_panel_says_how_many_prompts_that_is(part_of_it, sample_tiers, tmp_path):
    """Of some prompts every tier was asked, of all others one that was certain: the promise rests on the former."""
    full = pd.read_parquet(sample_tiers.with_name("sample-log.parquet"))
    panel = full[full.question_key.isin(sorted(full.question_key.unique())[:600])].assign(propensity=1.0)
    rest = part_of_it[~part_of_it.question_key.isin(panel.question_key)].assign(propensity=1.0)
    result = train(pd.concat([panel, rest]), sample_tiers, tmp_path / "bundle", TrainingConfig(), tracking_uri="none")
    assert any(point.promised for point in result.manifest.dial)
    n_complete = int(np.isfinite(result.log.correct).all(axis=1).sum())
    assert 300 < result.manifest.promise["n_prompts"] < n_complete < 650
    assert f"{result.manifest.promise['n_prompts']:,} prompts" in result.manifest.promise["evidence"]
