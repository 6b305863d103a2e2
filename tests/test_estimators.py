"""SuccessEstimator: scikit-learn's conventions, and logs that are small, wide, gappy or one-sided."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto
from simulated import log_one_tier
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import RidgeCV

from training import SuccessEstimator
from training.encoders.encoder import N_SURFACE
from training.errors import FitError
from training.fit import kernel, logistic
from training.fit import task as tasks
from training.fit.cross_fit import folds_of, out_of_fold
from training.fit.estimator import weight_of_classifier
from training.fit.kernel import KernelBasis
from training.fit.lengths import LengthModel, calibrating_slope
from training.fit.local import LocalRates
from training.fit.ridge import PENALTIES, ridge
from training.graph.builder import Graph
from training.graph.session import cpu_session
from training.log.sample import evenly


def log_of(n_prompts, n_tiers, seed=0):
    """Embeddings with a direction for difficulty and one for each tier's own strength, and outcomes drawn from them."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(n_prompts, 12)) / 4
    embedding = np.concatenate([text, rng.random((n_prompts, N_SURFACE))], axis=1).astype(np.float32)
    skill = np.linspace(-0.5, 1.0, n_tiers) + 6 * text[:, :1] + 3 * text[:, 1 + np.arange(n_tiers) % 11]
    correct = (rng.random((n_prompts, n_tiers)) < 1 / (1 + np.exp(-skill))).astype(float)
    return embedding, correct


def brier(success, correct):
    return np.nanmean((success - correct) ** 2)


@pytest.fixture(scope="module")
def fitted():
    return SuccessEstimator().fit(*log_of(600, 3))


# ---- conventions -----------------------------------------------------------------------------------


def test_fit_returns_the_estimator_and_learns_only_names_that_end_in_an_underscore():
    estimator = SuccessEstimator(seed=3, n_landmarks=20)
    given = dict(vars(estimator))
    assert estimator.fit(*log_of(100, 2)) is estimator
    assert all(name.endswith("_") for name in vars(estimator).keys() - given)
    assert estimator.get_params() == given


def test_a_clone_has_the_settings_and_nothing_learned(fitted):
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict_proba(log_of(5, 3)[0])


def test_predictions_are_probabilities_per_tier(fitted):
    embedding, _ = log_of(50, 3, seed=1)
    success = fitted.predict_proba(embedding)
    assert success.shape == (50, 3)
    assert np.all((success > 0) & (success < 1))
    np.testing.assert_allclose(success[:7], fitted.predict_proba(embedding[:7]), rtol=1e-12)


def test_out_of_fold_estimates_cover_every_training_prompt(fitted):
    embedding, correct = log_of(600, 3)
    assert fitted.out_of_fold_.shape == correct.shape
    assert np.isfinite(fitted.out_of_fold_).all()
    in_sample = brier(fitted.predict_proba(embedding), correct)
    assert in_sample < brier(fitted.out_of_fold_, correct) < brier(correct.mean(axis=0), correct)


def test_new_prompts_are_estimated_better_than_by_the_tiers_means():
    estimator = SuccessEstimator().fit(*log_of(500, 3))
    assert estimator.model_.classifier is not None
    embedding, correct = log_of(1000, 3, seed=1)
    assert brier(estimator.predict_proba(embedding), correct) < 0.97 * brier(correct.mean(axis=0), correct)


def test_what_nothing_can_be_learned_from_is_refused_as_a_value_error():
    embedding, correct = log_of(100, 2)
    with pytest.raises(FitError, match="group") as refused:
        SuccessEstimator().fit(embedding, correct, groups=np.full(100, "one"))
    assert isinstance(refused.value, ValueError)
    with pytest.raises(FitError, match="from 0 to 5"):
        SuccessEstimator().fit(embedding, 5 * correct)


def fitted_and_asked(seed):
    embedding, correct = log_of(300, 3)
    return SuccessEstimator(seed).fit(embedding, correct).predict_proba(embedding)


def test_the_result_depends_on_the_seed_alone():
    np.testing.assert_array_equal(fitted_and_asked(0), fitted_and_asked(0))
    assert not np.array_equal(fitted_and_asked(0), fitted_and_asked(1))


def test_fits_in_threads_side_by_side_give_what_one_fit_gives():
    alone = fitted_and_asked(0)
    with ThreadPoolExecutor(4) as pool:
        for beside in pool.map(fitted_and_asked, [0] * 4):
            np.testing.assert_allclose(beside, alone, rtol=1e-9)


# ---- logs of every kind ----------------------------------------------------------------------------


@pytest.mark.parametrize("n_tiers", [2, 12])
def test_three_hundred_prompts_are_enough_for_few_tiers_and_many(n_tiers):
    estimator = SuccessEstimator().fit(*log_of(300, n_tiers))
    embedding, correct = log_of(1000, n_tiers, seed=1)
    assert brier(estimator.predict_proba(embedding), correct) < brier(correct.mean(axis=0), correct)


def test_missing_cells_cost_little():
    embedding, correct = log_of(500, 4)
    correct[np.random.default_rng(2).random(correct.shape) < 0.3] = np.nan
    estimator = SuccessEstimator().fit(embedding, correct)
    new, truth = log_of(1000, 4, seed=1)
    assert brier(estimator.predict_proba(new), truth) < brier(np.nanmean(correct, axis=0), truth)


def test_tiers_that_are_always_right_or_always_wrong_or_never_cheapest():
    embedding, correct = log_of(300, 4)
    correct[:, 1], correct[:, 2] = 1, 0  # the last tier is then never the cheapest correct one
    success = SuccessEstimator().fit(embedding, correct).predict_proba(embedding)
    assert success[:, 1].min() > 0.85
    assert success[:, 2].max() < 0.15
    assert np.isfinite(success).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_outcomes_that_are_all_the_same(value):
    embedding, _ = log_of(100, 2)
    success = SuccessEstimator().fit(embedding, np.full((100, 2), value)).predict_proba(embedding)
    assert np.abs(success - value).max() < 0.2


def test_outcomes_between_zero_and_one():
    embedding, correct = log_of(400, 3)
    shares = (correct + log_of(400, 3)[1][::-1]) / 2
    success = SuccessEstimator().fit(embedding, shares).predict_proba(embedding)
    np.testing.assert_allclose(success.mean(axis=0), shares.mean(axis=0), atol=0.05)


def test_prompts_that_are_all_alike_get_the_tiers_means():
    embedding, correct = log_of(200, 3)
    success = SuccessEstimator().fit(np.tile(embedding[:1], (200, 1)), correct).predict_proba(embedding[:1])
    np.testing.assert_allclose(success[0], correct.mean(axis=0), atol=0.1)


def test_without_labels_the_kernel_stands_alone():
    embedding, correct = log_of(200, 3)
    correct[:, 0] = np.nan  # the cheapest is never observed: no label is ever certain
    model = SuccessEstimator().fit(embedding, correct).model_
    assert model.classifier is None and model.voices.classifier_weight == 0


# ---- what no fold may see --------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_nothing_is_found_where_nothing_is_to_be_found(missing):
    """On outcomes that are coin flips, out-of-fold estimates know nothing of the outcome they leave out."""
    embedding, _ = log_of(600, 3)
    rng = np.random.default_rng(4)
    correct = (rng.random((600, 3)) < 0.5).astype(float)
    correct[rng.random(correct.shape) < missing] = np.nan
    seen = np.isfinite(correct)
    out_of_fold = SuccessEstimator().fit(embedding, correct).out_of_fold_
    centred = (out_of_fold - out_of_fold.mean(axis=0))[seen], (correct - np.nanmean(correct, axis=0))[seen]
    assert np.corrcoef(*centred)[0, 1] < 2.5 / np.sqrt(seen.sum())


def test_a_group_is_never_on_both_sides_of_a_fold():
    groups = np.repeat(np.arange(100), 4).astype(str)
    sides = []

    def watch(train, rows):
        assert not set(groups[train]) & set(groups[rows])
        sides.append(rows)
        return np.zeros((rows.sum(), 1))

    out_of_fold(folds_of(groups, seed=0), watch)
    assert len(sides) == 5
    assert np.all(np.sum(sides, axis=0) == 1)


def test_rows_are_spread_evenly_over_a_log_and_all_are_taken_of_a_small_one():
    assert np.arange(5)[evenly(5, 5)].tolist() == [0, 1, 2, 3, 4]
    assert np.arange(10)[evenly(10, 4)].tolist() == [0, 2, 5, 7]


def test_beyond_its_caps_a_log_is_learned_from_alike_by_samples(monkeypatch):
    """Every cap below the log's length: estimates of all prompts stay close, gaps and partial feedback included."""
    embedding, correct = log_of(1200, 3)
    rng = np.random.default_rng(2)
    gaps = np.where(rng.random(correct.shape) < 0.1, np.nan, correct)
    alone, propensity = log_one_tier(correct, np.full(correct.shape, 1 / 3), rng)
    whole = [
        SuccessEstimator().fit(embedding, outcomes, propensity=chance).predict_proba(embedding)
        for outcomes, chance in ((gaps, None), (alone, propensity))
    ]
    monkeypatch.setattr(tasks, "MAX_KERNEL_PROMPTS", 1000)
    monkeypatch.setattr(logistic, "MAX_LOGISTIC_PROMPTS", 1000)
    for name in ("MAX_LANDMARK_PROMPTS", "_CHUNK_PROMPTS"):
        monkeypatch.setattr(kernel, name, 1000)
    for former, (outcomes, chance) in zip(whole, ((gaps, None), (alone, propensity)), strict=True):
        found = SuccessEstimator().fit(embedding, outcomes, propensity=chance).predict_proba(embedding)
        assert np.abs(found - former).mean() < 0.06


def test_twins_of_one_group_do_not_make_the_estimates_too_sure():
    """Each prompt is there twice with the same random outcome: by group that is nothing to learn from."""
    embedding, _ = log_of(200, 2)
    coins = (np.random.default_rng(5).random((200, 2)) < 0.5).astype(float)
    twice, twins = np.tile(embedding, (2, 1)), np.tile(coins, (2, 1))
    grouped = SuccessEstimator().fit(twice, twins, groups=np.tile(np.arange(200), 2).astype(str))
    apart = SuccessEstimator().fit(twice, twins)
    assert brier(grouped.out_of_fold_, twins) > 0.245 > brier(apart.out_of_fold_, twins)


# ---- parts -----------------------------------------------------------------------------------------


def test_ridge_finds_a_linear_map_and_leaves_noise_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 5))
    y = np.stack([x @ [1, -2, 0, 0, 0.5] + 3, rng.normal(size=500)], axis=1)
    weights, bias = ridge(x, y)
    np.testing.assert_allclose(weights[:, 0], [1, -2, 0, 0, 0.5], atol=0.05)
    assert np.abs(weights[:, 1]).max() < 0.15
    assert bias[0] == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("weighted", [False, True])
def test_ridge_is_that_of_scikit_learn_on_the_principal_directions_of_the_outcomes(weighted):
    """Ours has one eigendecomposition for all targets, and takes a third of the time."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 20)), (rng.random((300, 3)) < 0.4).astype(float)
    weight = rng.random(300) + 0.1 if weighted else np.ones(300)
    weight *= len(weight) / weight.sum()
    offset = weight @ y / len(weight)
    _, directions = np.linalg.eigh((y - offset).T @ (weight[:, None] * (y - offset)))
    theirs = RidgeCV(PENALTIES, alpha_per_target=True).fit(x, (y - offset) @ directions, sample_weight=weight)
    weights, bias = ridge(x, y, weight if weighted else None)
    np.testing.assert_allclose(weights, theirs.coef_.T @ directions.T, atol=1e-10)
    np.testing.assert_allclose(bias, offset + theirs.intercept_ @ directions.T, atol=1e-10)


def test_the_kernel_says_the_same_of_features_and_of_embeddings():
    embedding, correct = log_of(200, 3)
    basis = KernelBasis.fit(embedding, 50, seed=0)
    fitted_kernel = basis.regress(basis.features(embedding), correct)
    weights, bias = ridge(basis.features(embedding), correct)
    np.testing.assert_allclose(fitted_kernel.predict(embedding), basis.features(embedding) @ weights + bias, atol=1e-4)


def test_shares_of_landmarks_add_up_however_far_a_prompt_is_and_are_those_of_the_graph():
    embedding, _ = log_of(200, 3)
    far = np.concatenate([embedding, 50 * embedding[:5], np.zeros_like(embedding[:1])]).astype(np.float32)
    basis = KernelBasis.fit(embedding, 50, seed=0)
    shares = basis.shares(far)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (shares.argmax(axis=1) == basis.similarities(far).argmax(axis=1))[:200].all()
    graph = Graph()
    named = graph.add("Identity", basis.add_shares_to(graph, "embedding"), output="shares")
    model = graph.model(
        {"embedding": (TensorProto.FLOAT, ["n", far.shape[1]])}, {named: (TensorProto.FLOAT, ["n", None])}
    )
    np.testing.assert_allclose(cpu_session(model).run(None, {"embedding": far})[0][:200], shares[:200], atol=1e-5)


def test_local_rates_follow_what_tiers_achieved_nearby_and_stay_near_the_mean_where_little_was_seen():
    embedding, _ = log_of(400, 2)
    embedding[:200, 0] -= 3
    embedding[200:, 0] += 3
    correct = np.stack([np.repeat([1.0, 0.0], 200), np.repeat([0.0, 1.0], 200)], axis=1)
    basis = KernelBasis.fit(embedding, 20, seed=0)
    all_seen = LocalRates.fit(basis, basis.shares(embedding), correct).predict(embedding)
    few = np.r_[0:3, 200:203]
    few_seen = LocalRates.fit(basis, basis.shares(embedding[few]), correct[few]).predict(embedding)
    assert ((all_seen - 0.5) * (correct - 0.5) > 0).all()
    assert np.abs(few_seen - 0.5).max() < np.abs(all_seen - 0.5).mean()


def test_the_classifiers_weight_grows_with_labels_and_ends_below_a_half():
    shares = [weight_of_classifier(n) for n in (0, 300, 1000, 10**6)]
    assert shares[0] == 0 and shares == sorted(shares) and shares[-1] < 0.5


def test_expected_length_has_the_right_mean_and_a_tier_without_lengths_its_constant():
    embedding, _ = log_of(800, 2)
    rng = np.random.default_rng(0)
    tokens = np.stack([np.exp(5 + 2 * embedding[:, 0] + rng.normal(size=800)), np.full(800, np.nan)], axis=1)
    groups = np.arange(800).astype(str)
    lengths = LengthModel.fit(
        KernelBasis.fit(embedding, 50, seed=0), embedding, tokens, np.array([1.0, 256.0]), groups, seed=0
    )
    predicted = lengths.predict(embedding)
    assert predicted[:, 0].mean() == pytest.approx(tokens[:, 0].mean(), rel=0.1)
    assert np.corrcoef(predicted[:, 0], np.exp(2 * embedding[:, 0]))[0, 1] > 0.5
    np.testing.assert_allclose(predicted[:, 1], 256)


def test_short_answers_that_are_now_and_then_long_are_not_taken_for_cheap():
    """Two kinds of prompt; the answers to one are typically short, but scatter so far that on average they are not."""
    rng = np.random.default_rng(0)
    scatter = np.repeat([1.5, 0.1], 4000)
    predicted = np.repeat([4.0, 5.0], 4000)
    tokens = np.exp(predicted + scatter * rng.normal(size=8000))
    slope = calibrating_slope(predicted, tokens)
    expected = np.exp(slope * predicted) * tokens.mean() / np.exp(slope * predicted).mean()
    for kind in (slice(4000), slice(4000, None)):
        assert expected[kind].mean() == pytest.approx(tokens[kind].mean(), rel=0.1)
    assert np.exp(predicted)[:4000].sum() / np.exp(predicted).sum() < 0.6 * tokens[:4000].sum() / tokens.sum()


def test_where_lengths_scatter_alike_or_are_few_the_slope_stays_at_one():
    rng = np.random.default_rng(0)
    predicted = rng.normal(5, 0.7, 5000)
    tokens = np.exp(predicted + 0.5 * rng.normal(size=5000))
    assert calibrating_slope(predicted, tokens) == pytest.approx(1, abs=0.05)
    assert calibrating_slope(predicted[:4], tokens[3::-1]) > 0.8
    assert calibrating_slope(np.full(60, 5.0), tokens[:60]) == 1


def test_lengths_of_one_kind_of_prompt_are_not_extrapolated_to_another():
    embedding, _ = log_of(800, 2)
    rng = np.random.default_rng(0)
    other = np.arange(800) >= 400  # a kind of prompt whose lengths were never logged
    embedding[other, :2] += [1, 2]
    tokens = np.exp(5 + embedding[:, [0, 0]] + 0.1 * rng.normal(size=(800, 2)))
    tokens[other] = np.nan
    basis = KernelBasis.fit(embedding, 50, seed=0)
    lengths = LengthModel.fit(basis, embedding, tokens, np.nanmean(tokens, axis=0), np.arange(800).astype(str), seed=0)
    predicted = lengths.predict(embedding)
    assert np.corrcoef(predicted[~other, 0], tokens[~other, 0])[0, 1] > 0.7
    assert predicted[other].mean() == pytest.approx(np.nanmean(tokens), rel=0.1)


# ---- the sample log --------------------------------------------------------------------------------


def test_estimates_beat_the_tier_means_on_held_out_prompts_of_the_sample_log(trained):
    for tier, (_, of_router) in trained.evaluation.calibration.items():
        accuracy = trained.evaluation.single[tier][0].value
        assert of_router.value < 0.98 * accuracy * (1 - accuracy), tier
