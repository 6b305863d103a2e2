"""Fit success per tier: out of fold first, then on all training prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from training.encoders.encoder import N_SURFACE
from training.errors import ConfigError, FitError
from training.fit.calibrate import fit_calibration
from training.fit.classifier import (
    LABEL_ROUNDS,
    N_LEAVES,
    Classifier,
    FitForest,
    Forest,
    fit_forest,
    lightgbm_settings,
)
from training.fit.cross_fit import out_of_fold
from training.fit.familiarity import fit_familiarity
from training.fit.kernel import Kernel
from training.fit.local import LocalRates, weight_of_local
from training.fit.logistic import logistic_per_tier, sigmoid
from training.fit.own import OwnVoice
from training.fit.success import SuccessModel
from training.fit.task import N_LANDMARKS, Task
from training.fit.voices import ThreeVoices, blend
from training.log.labels import UNKNOWN
from training.scorers import skill_score

MIN_LABELLED = 60
"""Prompts with a label that the classifier needs."""

CLASSIFIER_TRUST = 1000
"""Labelled prompts at which the classifier has half of its final weight in the average, which is one half."""

MAX_CALIBRATION_WEIGHT = 20.0
"""Of an outcome of partial feedback in calibration, at most. Calibration learns two numbers per tier where a fit learns
hundreds, so it stands larger weights: benchmarks/partial_feedback.md."""

LABEL_STRENGTH = 0.1
"""Inverse regularisation of the logistic regressions from the classifier's scores to success."""


class SuccessEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """P(each tier answers a prompt correctly), from embeddings, calibrated out of fold.

    What `train` fits and ships, under scikit-learn's rules: clone it, search its parameters, cross-validate it with
    `training.scorers`. It is a regressor of outcomes between 0 and 1, one for each tier.

    The average of three voices: a kernel regression, a LightGBM classifier of the cheapest-correct label, which is
    calibrated to success per tier, and the rates of correct answers near the prompt. The weights of the last two grow
    with the number of prompts (for the classifier: of those that have a label).

    seed: of landmarks, folds and LightGBM.
    n_landmarks: points that the kernel and the local rates compare a prompt with; at most half the training prompts.
    n_rounds, n_leaves: boosting rounds of LightGBM, and leaves of each of its trees.
    n_surface: how many columns at the end of X are no text vector, but counts and lengths, which are standardised and
        weighed small. The encoders of this project have N_SURFACE of them; 0 where X are vectors alone.
    estimator: a classifier with `fit` and `predict_proba` that takes the place of the three voices; one copy is fitted
        for each tier, on the prompts that the tier was asked. Calibration and familiarity stay. Only models that
        training.fit.own can export can ship.

    Learned: model_ (training.fit.success.SuccessModel, fitted on all prompts), out_of_fold_ (calibrated P(correct) of
    every training prompt by models that did not see it, (n_prompts, n_tiers)), n_tiers_, n_features_in_, y_ndim_ (1
    where y was (n_prompts,)).

    Gaps are filled from the tiers that were observed, which is right where they are few or random. Partial feedback
    (see training.log.table.is_partial) is learned from otherwise: the kernel is fitted to doubly robust outcomes, an
    estimate of every cell moved by the inverse-propensity weighted error of the one that was observed, so what the old
    router chose does not decide what is learned. Calibration weighs outcomes likewise. Labels are then known almost
    only for prompts on which the cheapest tier was asked and right, which is no basis for a classifier, and near a
    prompt there are few outcomes: the kernel stands alone. Where fewer than MIN_LABELLED prompts have a label, there is
    no classifier.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        n_landmarks: int = N_LANDMARKS,
        n_rounds: int = LABEL_ROUNDS,
        n_leaves: int = N_LEAVES,
        n_surface: int = N_SURFACE,
        estimator: Any = None,
    ) -> None:
        self.seed = seed
        self.n_landmarks = n_landmarks
        self.n_rounds = n_rounds
        self.n_leaves = n_leaves
        self.n_surface = n_surface
        self.estimator = estimator

    def fit(
        self,
        X: np.ndarray,  # noqa: N803 (scikit-learn's name)
        y: np.ndarray,
        *,
        propensity: np.ndarray | None = None,
        cost_usd: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        fit_label_forest: FitForest | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> SuccessEstimator:
        """Fit on embeddings.

        X: float32 (n_prompts, n_dims), as an encoder of training.encoders gives them.
        y: outcomes, 0..1, (n_prompts, n_tiers); NaN where not observed. (n_prompts,) for one tier alone.
        propensity: with which each outcome came to be observed, in (0, 1], same shape; NaN, or None for all, counts
            as 1. Only partial feedback needs it.
        cost_usd: of each attempt, same shape; None takes the order of the tiers for that of their costs.
        groups: rows of one group stay in one fold; None makes each row its own.
        fit_label_forest: fits LightGBM on the cheapest-correct label; None fits it on these embeddings.
        on_step: called with the name of each step when it is done.

        Raises FitError, a ValueError, where an outcome or propensity is out of range, or all prompts are of one group;
        scikit-learn's own errors for what is no array of numbers.
        """
        embedding, correct = self._checked(X, y)
        shape = correct.shape
        cost = np.broadcast_to(np.arange(1.0, shape[1] + 1), shape) if cost_usd is None else np.asarray(cost_usd)
        names = np.arange(len(correct)).astype(str) if groups is None else np.asarray(groups)
        certain = _checked_propensity(propensity, shape)
        with threadpool_limits(1):  # as in training.train
            task = Task.prepare(
                embedding, correct, cost.reshape(shape), names, self.seed, certain,
                n_landmarks=self.n_landmarks, n_surface=min(self.n_surface, embedding.shape[1]),
            )  # fmt: skip
            on_step("landmarks")
            return self._fit(task, fit_label_forest, on_step)

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Embeddings, and outcomes with a column for each tier."""
        if y is None:
            raise FitError("requires y to be passed, but the target y is None; expected outcomes (n_prompts, n_tiers)")
        embedding = validate_data(self, X, dtype=np.float32, order="C", ensure_min_samples=2)
        outcomes = check_array(y, dtype=np.float64, ensure_all_finite="allow-nan", ensure_2d=False, input_name="y")
        check_consistent_length(embedding, outcomes)
        if outcomes.ndim > 2 or ((outcomes < 0) | (outcomes > 1)).any():
            raise FitError(
                f"y has shape {outcomes.shape}, from {np.nanmin(outcomes):g} to {np.nanmax(outcomes):g}; expected "
                "(n_prompts, n_tiers), from 0 (wrong) to 1 (correct), NaN where not observed"
            )
        self.n_tiers_ = 1 if outcomes.ndim == 1 else outcomes.shape[1]
        self.y_ndim_ = outcomes.ndim
        return embedding, outcomes.reshape(len(outcomes), self.n_tiers_)

    def _fit(self, task: Task, fit_label_forest: FitForest | None, on_step: Callable[[str], None]) -> SuccessEstimator:
        finish: Callable[[], ThreeVoices | OwnVoice]
        if self.estimator is None:
            fit_forest_without = fit_label_forest or label_forest_of(task, self.n_rounds, self.n_leaves)
            estimate, finish = _cross_fit_voices(task, fit_forest_without, on_step)
        else:
            estimate, finish = _cross_fit_own(task, self.estimator)
            on_step("own estimator, out of fold")
        weight = None if task.propensity is None else np.minimum(1 / task.propensity, MAX_CALIBRATION_WEIGHT)
        calibration = fit_calibration(estimate, task.observed, weight)
        calibrated = calibration.apply(estimate)
        familiarity, of_prompts = fit_familiarity(task.basis, task.embedding, task.folds, calibrated, self.seed)
        self.out_of_fold_ = familiarity.shrink(calibrated, of_prompts)
        on_step("familiarity")
        self.model_ = SuccessModel(voices=finish(), calibration=calibration, familiarity=familiarity)
        on_step("final fit")
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """P(correct) per tier, (n_prompts, n_tiers); rows do not sum to one: tiers do not exclude each other."""
        check_is_fitted(self, "model_")
        model: SuccessModel = self.model_
        return model.predict(validate_data(self, X, dtype=np.float32, order="C", reset=False))

    def predict(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """The expected outcome of each tier, which is its P(correct); (n_prompts,) where it was fitted on one tier."""
        success = self.predict_proba(X)
        return success[:, 0] if self.y_ndim_ == 1 else success

    def score(self, X: np.ndarray, y: np.ndarray) -> float:  # noqa: N803
        """1 - Brier score / Brier score of the tiers' means on these outcomes; NaN in y counts as not observed."""
        return skill_score(np.asarray(y, dtype=np.float64), self.predict(X))

    @property
    def changed_settings(self) -> dict[str, str]:
        """Settings that are not the standard, but for the seed, as text by name; of your own estimator with its own."""
        standard = SuccessEstimator().get_params(deep=False)
        found = self.get_params(deep=False)
        return {
            name: repr(value)
            for name, value in found.items()
            if name != "seed" and value is not standard[name] and value != standard[name]
        }

    def __sklearn_tags__(self) -> Any:
        """One output for each tier; single outputs stand for a single tier."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags


def success_estimator(estimator: Any, seed: int) -> SuccessEstimator:
    """A fresh SuccessEstimator: the standard one where None, a clone of one, or one around a classifier of your own.

    Raises ConfigError for what has no `fit` and `predict_proba`.
    """
    if estimator is None:
        return SuccessEstimator(seed)
    if isinstance(estimator, SuccessEstimator):
        return clone(estimator)  # type: ignore[no-any-return]
    if not all(callable(getattr(estimator, name, None)) for name in ("fit", "predict_proba")):
        raise ConfigError(
            f"found {type(estimator).__name__} for an estimator; expected a SuccessEstimator, or a classifier with "
            "fit and predict_proba"
        )
    return SuccessEstimator(seed, estimator=estimator)


def weight_of_classifier(n_labelled: int) -> float:
    """Its share in the average with the kernel, from 0 to one half; it grows with the prompts that have a label."""
    return 0.5 * n_labelled / (n_labelled + CLASSIFIER_TRUST)


def label_forest_of(task: Task, n_rounds: int = LABEL_ROUNDS, n_leaves: int = N_LEAVES) -> FitForest:
    """LightGBM on the cheapest-correct label, fitted on the prompts of the task that have one."""
    known = task.label != UNKNOWN
    present = np.unique(task.label[known])  # NONE and the tiers that are ever the cheapest correct one
    classes = np.searchsorted(present, task.label)
    settings = lightgbm_settings(len(task.embedding), task.seed, n_leaves)

    def fit(left_out: int | None) -> Forest:
        rows = known if left_out is None else known & (task.folds != left_out)
        return fit_forest(task.embedding[rows], classes[rows], max(2, len(present)), settings, n_rounds)

    return fit


def _checked_propensity(propensity: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Complete propensities; an unknown one counts as 1. Raises FitError for a wrong shape or range."""
    given = np.ones(shape) if propensity is None else np.asarray(propensity, dtype=np.float64)
    certain = np.where(np.isnan(given), 1.0, given)
    if certain.shape != shape or not ((certain > 0) & (certain <= 1)).all():
        raise FitError(
            f"propensity has shape {certain.shape}, from {certain.min():g} to {certain.max():g}; "
            f"expected {shape}, above 0 and at most 1"
        )
    return certain


def _cross_fit_voices(
    task: Task, fit_forest_without: FitForest, on_step: Callable[[str], None]
) -> tuple[np.ndarray, Callable[[], ThreeVoices]]:
    """The average of the three voices out of fold, (n_prompts, n_tiers), and the fit of all on all prompts."""
    estimate, of_local, finish_kernel = _cross_fit_kernel(task)
    on_step("kernel, out of fold")
    finish_classifier, classifier_weight = None, 0.0
    if task.propensity is None and task.n_labelled >= MIN_LABELLED:
        of_classifier, finish_classifier = _cross_fit_classifier(task, fit_forest_without)
        classifier_weight = weight_of_classifier(task.n_labelled)
        estimate = blend(estimate, of_classifier, classifier_weight)
        on_step("classifier, out of fold")
    local_weight = 0.0 if of_local is None else weight_of_local(len(task.folds))
    if of_local is not None:
        estimate = blend(estimate, of_local, local_weight)

    def finish() -> ThreeVoices:
        kernel, local = finish_kernel()
        return ThreeVoices(
            kernel=kernel,
            classifier=finish_classifier and finish_classifier(),
            classifier_weight=classifier_weight,
            local=local,
            local_weight=local_weight,
        )

    return estimate, finish


def _cross_fit_own(task: Task, estimator: Any) -> tuple[np.ndarray, Callable[[], OwnVoice]]:
    """The same for an estimator of one's own."""

    def predict(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return OwnVoice.fit(estimator, task.embedding[train], task.observed[train]).predict(task.embedding[rows])

    return out_of_fold(task.folds, predict), lambda: OwnVoice.fit(estimator, task.embedding, task.observed)


def _cross_fit_kernel(
    task: Task,
) -> tuple[np.ndarray, np.ndarray | None, Callable[[], tuple[Kernel, LocalRates | None]]]:
    """Estimates of kernel and local rates out of fold, (n_prompts, n_tiers) each, and the fit of both on all prompts.

    There are no local rates for partial feedback, in which the outcomes near one landmark are too few and too noisy.
    """

    def fit(train: np.ndarray) -> tuple[Kernel, LocalRates | None]:
        rows = train & task.kernel_rows
        outcomes = task.complete_outcomes(rows)
        local = None if task.propensity is not None else LocalRates.fit(task.basis, task.shares(rows), outcomes)
        return task.basis.regress(task.features(rows), outcomes), local

    def predict(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        kernel, local = fit(train)
        of_kernel = kernel.predict(task.embedding[rows])
        return of_kernel if local is None else np.concatenate([of_kernel, task.shares(rows) @ local.rates], axis=1)

    n_tiers = task.observed.shape[1]
    estimates = out_of_fold(task.folds, predict)
    of_local = estimates[:, n_tiers:] if estimates.shape[1] > n_tiers else None
    return estimates[:, :n_tiers], of_local, lambda: fit(np.ones(len(task.folds), dtype=bool))


def _cross_fit_classifier(task: Task, fit_forest_without: FitForest) -> tuple[np.ndarray, Callable[[], Classifier]]:
    """The same for the classifier: the trees' scores out of fold, and on these, out of fold again, success."""

    def raw_scores(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return fit_forest_without(int(task.folds[rows][0])).raw_scores(task.embedding[rows])

    scores = out_of_fold(task.folds, raw_scores)

    def success(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        weights, bias = logistic_per_tier(scores[train], task.observed[train], LABEL_STRENGTH)
        return sigmoid(scores[rows] @ weights + bias)

    def finish() -> Classifier:
        weights, bias = logistic_per_tier(scores, task.observed, LABEL_STRENGTH)
        return Classifier(fit_forest_without(None), weights, bias)

    return out_of_fold(task.folds, success), finish
