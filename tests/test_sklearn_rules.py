"""SuccessEstimator under scikit-learn's rules: its checks, cross-validation, searches, scorers, pipelines."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from training import PromptEncoder, SuccessEstimator, TrainingData, scorers
from training.encoders.encoder import N_SURFACE
from training.errors import EncoderError, FitError

COST_USD = np.array([0.1, 1.0, 4.0]) / 1000

WRONG_RANGE = "the check's targets are the numbers of classes; outcomes are from 0 (wrong) to 1 (correct)"
EXPECTED_FAILURES = dict.fromkeys(
    [
        "check_fit_score_takes_y", "check_estimators_overwrite_params", "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self", "check_readonly_memmap_input", "check_n_features_in_after_fitting",
        "check_positive_only_tag_during_fit", "check_estimators_dtypes", "check_dtype_object",
        "check_f_contiguous_array_estimator", "check_methods_sample_order_invariance",
        "check_methods_subset_invariance", "check_fit2d_1feature", "check_dict_unchanged", "check_fit2d_predict1d",
    ],
    WRONG_RANGE,
)  # fmt: skip


class OnClassNumbers(SuccessEstimator):
    """Takes the numbers of classes for outcomes: the first is wrong, the last correct."""

    def fit(self, X, y):
        try:
            numbers = np.asarray(y, dtype=float)
        except (TypeError, ValueError):
            return super().fit(X, y)
        if numbers.size and np.isfinite(numbers).all():
            y = (numbers - numbers.min()) / max(np.ptp(numbers), 1.0)
        return super().fit(X, y)


def outcomes_of(n_prompts, seed=0):
    """Vectors without surface columns, and outcomes of three tiers that depend on them."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n_prompts, 8)).astype(np.float32)
    skill = np.array([-1.0, 0.0, 1.0]) + 1.5 * vectors[:, :1]
    return vectors, (rng.random((n_prompts, 3)) < 1 / (1 + np.exp(-skill))).astype(float)


@pytest.fixture(scope="module")
def data():
    vectors, outcomes = outcomes_of(240)
    outcomes[::7, 1] = np.nan
    return vectors, outcomes


def estimator(**settings):
    return SuccessEstimator(n_surface=0, n_landmarks=20, n_rounds=4, **settings)


@pytest.mark.filterwarnings("ignore")  # the checks themselves use what numpy and scikit-learn deprecate
def test_scikit_learns_own_checks_pass_but_for_those_whose_targets_are_no_outcomes():
    found = check_estimator(SuccessEstimator(), expected_failed_checks=EXPECTED_FAILURES, on_fail=None, on_skip=None)
    by_status = {each["check_name"]: each["status"] for each in found}
    assert {name for name, status in by_status.items() if status == "failed"} == set()
    assert {name for name, status in by_status.items() if status == "xfail"} == set(EXPECTED_FAILURES)


@pytest.mark.filterwarnings("ignore")
def test_these_checks_pass_too_where_their_targets_are_brought_into_range():
    found = check_estimator(OnClassNumbers(), on_fail=None, on_skip=None)
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}


def test_a_search_finds_settings_by_any_shipped_scorer(data):
    for scoring in (
        scorers.brier_scorer,
        scorers.aiq_scorer(COST_USD),
        scorers.net_value_scorer(0.002, COST_USD),
    ):
        search = GridSearchCV(estimator(), {"n_landmarks": [2, 20]}, scoring=scoring, cv=2).fit(*data)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        assert search.best_estimator_.predict_proba(data[0]).shape == data[1].shape


def test_a_cross_validated_score_is_above_that_of_the_means_and_groups_stay_together(data):
    groups = np.arange(240) // 4
    scores = cross_val_score(estimator(), *data, groups=groups, cv=GroupKFold(3), params={"groups": groups})
    assert (scores > 0).all()


def test_it_stands_at_the_end_of_a_pipeline(data):
    line = make_pipeline(StandardScaler(), estimator())
    line.set_params(successestimator__n_rounds=3).fit(*data)
    assert line[-1].n_rounds == 3
    assert line.score(*data) > 0
    np.testing.assert_array_equal(line.predict(data[0]), line.predict_proba(data[0]))


def test_one_tier_alone_is_one_column(data):
    vectors, outcomes = outcomes_of(120)
    fitted = estimator().fit(vectors, outcomes[:, 0])
    assert fitted.predict(vectors).shape == (120,)
    assert fitted.score(vectors, outcomes[:, 0]) > 0


def test_costs_of_each_attempt_reach_fit_and_score_by_metadata_routing(data):
    vectors, outcomes = outcomes_of(240)
    cost_usd = COST_USD * np.random.default_rng(0).uniform(0.5, 2, outcomes.shape)
    with config_context(enable_metadata_routing=True):
        scores = cross_val_score(
            estimator().set_fit_request(cost_usd=True),
            vectors,
            outcomes,
            cv=2,
            scoring=scorers.aiq_scorer(),
            params={"cost_usd": cost_usd},
        )
    assert ((outcomes.mean(axis=0).min() < scores) & (scores < 1)).all()


def test_scores_of_exact_estimates_are_the_best_there_are(data):
    vectors, outcomes = outcomes_of(100)
    exact, flat = outcomes, np.broadcast_to(outcomes.mean(axis=0), outcomes.shape)
    assert scorers.brier_score(outcomes, exact) == 0
    assert scorers.skill_score(outcomes, exact) == 1
    assert scorers.skill_score(outcomes, flat) == pytest.approx(0)
    for score in (
        lambda success: scorers.aiq_score(outcomes, success, cost_usd=COST_USD),
        lambda success: scorers.net_value_score(outcomes, success, cost_usd=COST_USD, worth_usd=0.01),
    ):
        assert score(exact) > score(flat)
    right = outcomes.max(axis=1)
    assert scorers.net_value_score(outcomes, exact, cost_usd=np.zeros(3), worth_usd=0.01) == pytest.approx(
        10 * right.mean()
    )


def test_costs_of_another_shape_and_logs_without_complete_prompts_are_refused():
    _, outcomes = outcomes_of(20)
    with pytest.raises(FitError, match="cost_usd"):
        scorers.aiq_score(outcomes, outcomes, cost_usd=np.ones(2))
    with pytest.raises(FitError, match="mean cost"):
        scorers.aiq_scorer(np.ones((20, 3)))
    with pytest.raises(FitError, match="every tier"):
        scorers.aiq_score(np.where(np.arange(3) == 1, np.nan, outcomes), outcomes, cost_usd=np.ones(3))


def test_what_is_cross_validated_is_what_ships(trained):
    """The estimator on the kept training data is, to rounding of what is kept, the one in the bundle."""
    kept = TrainingData.load(trained.bundle)
    vectors, outcomes, fit_params = kept.for_sklearn()
    fitted = SuccessEstimator().fit(vectors, outcomes, **fit_params)
    np.testing.assert_allclose(fitted.out_of_fold_, kept.out_of_fold, atol=1e-3)


class Lengths:
    """An encoder of one's own: lengths of prompts and of their first words."""

    def encode(self, texts):
        return [[len(text), len(text.split()[0])] for text in texts]


@pytest.mark.parametrize(("encoder", "n_surface"), [("static", N_SURFACE), (Lengths(), 0)])
def test_a_pipeline_goes_from_prompts_to_success_with_a_named_encoder_or_ones_own(encoder, n_surface):
    rng = np.random.default_rng(0)
    hard = rng.random(120) < 0.5
    prompts = [f"{'prove that' if each else 'hello'} number {n}" for n, each in enumerate(hard)]
    line = make_pipeline(PromptEncoder(encoder), SuccessEstimator(n_surface=n_surface, n_landmarks=10))
    line.fit(prompts, np.stack([~hard, np.ones(120)], axis=1).astype(float))
    assert line[0].n_surface_ == n_surface
    success = line.predict(["prove that number 300", "hello number 300"])
    assert success[1, 0] - success[0, 0] > 0.05


def test_what_cannot_encode_is_refused():
    with pytest.raises(EncoderError, match="encode"):
        PromptEncoder(3).fit(["a prompt"])
