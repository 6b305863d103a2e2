"""Fit success per tier: out of fold first, then on all training prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from training.errors import LogError
from training.fit.calibrate import fit_calibration
from training.fit.classifier import Classifier, FitForest, Forest, fit_forest, lightgbm_settings
from training.fit.cross_fit import out_of_fold
from training.fit.familiarity import fit_familiarity
from training.fit.kernel import Kernel
from training.fit.local import LocalRates, weight_of_local
from training.fit.logistic import logistic_per_tier, sigmoid
from training.fit.success import SuccessModel, blend
from training.fit.task import Task
from training.log.labels import UNKNOWN

MIN_PROMPTS = 60
"""To learn from at all; and with a label, to fit the classifier."""

CLASSIFIER_TRUST = 1000
"""Labelled prompts at which the classifier has half of its final weight in the average, which is one half."""

MAX_CALIBRATION_WEIGHT = 20.0
"""Of an outcome of partial feedback in calibration, at most. Calibration learns two numbers per tier where a fit learns
hundreds, so it stands larger weights: benchmarks/partial_feedback.md."""

LABEL_STRENGTH = 0.1
"""Inverse regularisation of the logistic regressions from the classifier's scores to success."""


class SuccessEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """P(each tier answers a prompt correctly), from embeddings, calibrated out of fold.

    The average of three voices: a kernel regression, a LightGBM classifier of the cheapest-correct label, which is
    calibrated to success per tier, and the rates of correct answers near the prompt. The weights of the last two grow
    with the number of prompts (for the classifier: of those that have a label).

    Learned: model_ (training.fit.success.SuccessModel, fitted on all prompts), out_of_fold_ (calibrated P(correct) of
    every training prompt by models that did not see it, (n_prompts, n_tiers)).

    Gaps are filled from the tiers that were observed, which is right where they are few or random. Partial feedback
    (see training.log.table.is_partial) is learned from otherwise: the kernel is fitted to doubly robust outcomes, an
    estimate of every cell moved by the inverse-propensity weighted error of the one that was observed, so what the old
    router chose does not decide what is learned. Calibration weighs outcomes likewise. Labels are then known almost
    only for prompts on which the cheapest tier was asked and right, which is no basis for a classifier, and near a
    prompt there are few outcomes: the kernel stands alone. Where fewer than MIN_PROMPTS prompts have a label, there is
    no classifier.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(
        self,
        X: np.ndarray,  # noqa: N803 (scikit-learn's name)
        outcomes: np.ndarray,
        *,
        propensity: np.ndarray | None = None,
        cost_usd: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        fit_label_forest: FitForest | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> SuccessEstimator:
        """Fit on embeddings.

        X: float32 (n_prompts, n_dims), as an encoder of training.encoders gives them.
        outcomes: 0..1, (n_prompts, n_tiers); NaN where not observed.
        propensity: with which each outcome came to be observed, in (0, 1], same shape; NaN, or None for all, counts
            as 1. Only partial feedback needs it.
        cost_usd: of each attempt, same shape; None takes the order of the tiers for that of their costs.
        groups: rows of one group stay in one fold; None makes each row its own.
        fit_label_forest: fits LightGBM on the cheapest-correct label; None fits it on these embeddings.
        on_step: called with the name of each step when it is done.

        Raises LogError where there is too little to learn from or a propensity is out of range.
        """
        embedding = np.ascontiguousarray(X, dtype=np.float32)
        correct = np.asarray(outcomes, dtype=np.float64)
        n_prompts, n_tiers = correct.shape
        if n_prompts < MIN_PROMPTS or n_tiers < 2:
            raise LogError(
                f"found {n_prompts} training prompts and {n_tiers} tiers; "
                f"expected at least {MIN_PROMPTS} prompts (300 and more are sensible) and 2 tiers"
            )
        cost = np.broadcast_to(np.arange(1.0, n_tiers + 1), correct.shape) if cost_usd is None else cost_usd
        names = np.arange(n_prompts).astype(str) if groups is None else groups
        certain = _checked_propensity(propensity, correct.shape)
        with threadpool_limits(1):  # as in training.train
            task = Task.prepare(embedding, correct, cost, names, self.seed, certain)
            on_step("landmarks")
            return self._fit(task, fit_label_forest, on_step)

    def _fit(self, task: Task, fit_label_forest: FitForest | None, on_step: Callable[[str], None]) -> SuccessEstimator:
        estimate, of_local, finish_kernel = _cross_fit_kernel(task)
        on_step("kernel, out of fold")
        finish_classifier, classifier_weight = None, 0.0
        if task.propensity is None and task.n_labelled >= MIN_PROMPTS:
            of_classifier, finish_classifier = _cross_fit_classifier(task, fit_label_forest or label_forest_of(task))
            classifier_weight = weight_of_classifier(task.n_labelled)
            estimate = blend(estimate, of_classifier, classifier_weight)
            on_step("classifier, out of fold")
        local_weight = 0.0 if of_local is None else weight_of_local(len(task.folds))
        if of_local is not None:
            estimate = blend(estimate, of_local, local_weight)
        weight = None if task.propensity is None else np.minimum(1 / task.propensity, MAX_CALIBRATION_WEIGHT)
        calibration = fit_calibration(estimate, task.observed, weight)
        calibrated = calibration.apply(estimate)
        familiarity, of_prompts = fit_familiarity(task.basis, task.embedding, task.folds, calibrated, self.seed)
        self.out_of_fold_ = familiarity.shrink(calibrated, of_prompts)
        on_step("familiarity")
        kernel, local = finish_kernel()
        self.model_ = SuccessModel(
            kernel=kernel,
            classifier=finish_classifier and finish_classifier(),
            classifier_weight=classifier_weight,
            local=local,
            local_weight=local_weight,
            calibration=calibration,
            familiarity=familiarity,
        )
        on_step("final fit")
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """P(correct) per tier, (n_prompts, n_tiers); rows do not sum to one: tiers do not exclude each other."""
        check_is_fitted(self, "model_")
        model: SuccessModel = self.model_
        return model.predict(np.ascontiguousarray(X, dtype=np.float32))


def weight_of_classifier(n_labelled: int) -> float:
    """Its share in the average with the kernel, from 0 to one half; it grows with the prompts that have a label."""
    return 0.5 * n_labelled / (n_labelled + CLASSIFIER_TRUST)


def label_forest_of(task: Task) -> FitForest:
    """LightGBM on the cheapest-correct label, fitted on the prompts of the task that have one."""
    known = task.label != UNKNOWN
    present = np.unique(task.label[known])  # NONE and the tiers that are ever the cheapest correct one
    classes = np.searchsorted(present, task.label)
    settings = lightgbm_settings(len(task.embedding), task.seed)

    def fit(left_out: int | None) -> Forest:
        rows = known if left_out is None else known & (task.folds != left_out)
        return fit_forest(task.embedding[rows], classes[rows], max(2, len(present)), settings)

    return fit


def _checked_propensity(propensity: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Complete propensities; an unknown one counts as 1. Raises LogError for a wrong shape or range."""
    certain = np.ones(shape) if propensity is None else np.where(np.isnan(propensity), 1.0, propensity)
    if certain.shape != shape or not ((certain > 0) & (certain <= 1)).all():
        raise LogError(
            f"propensity has shape {certain.shape}, from {certain.min():g} to {certain.max():g}; "
            f"expected {shape}, above 0 and at most 1"
        )
    return certain


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
