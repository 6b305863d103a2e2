"""Fit success per tier, out of fold first, then on all training prompts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from training.errors import ConfigError, LogError
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth, policy_figures, resamples, worth_grid
from training.fit.calibrate import doubly_robust, fit_calibration
from training.fit.estimator import (
    CheapestCorrect,
    ContrastTrees,
    Estimator,
    Forest,
    Kernel,
    KernelBasis,
    evenly,
    fit_label_classifier,
    logistic_per_tier,
    ridge,
    ridge_on_cells,
    sigmoid,
)
from training.fit.familiarity import fit_familiarity
from training.log.labels import UNKNOWN, label_cheapest_correct
from training.log.split import fold_numbers
from training.log.table import is_partial

Target = Literal["auto", "success", "cheapest-correct", "blend"]
PARTS: dict[str, tuple[str, ...]] = {
    "success": ("kernel", "contrast_trees"),
    "cheapest-correct": ("cheapest_correct",),
    "blend": ("kernel", "cheapest_correct"),
}
"""What each target averages."""

LabelForest: TypeAlias = Callable[[int | None], Forest]
"""Fits LightGBM on the cheapest-correct label; given is the fold to leave out, or None for the final fit."""

CLASSIFIER_TRUST = 1000
"""Labelled prompts at which the blend gives the classifier half of its final weight, which is one half."""

MAX_FIT_WEIGHT = 3.0
MAX_CALIBRATION_WEIGHT = 20.0
"""Of an outcome of partial feedback, at most: what a smaller propensity would add in noise is worse than the bias.

Two numbers per tier are learned in calibration, hundreds before, so calibration stands larger weights. Measured in
benchmarks/partial_feedback.md.
"""

N_FOLDS = 5
N_LANDMARKS = 300
MAX_KERNEL_PROMPTS = 100_000
CONTRAST_ROUNDS = 60
LABEL_ROUNDS = 20
MIN_PROMPTS = 60
MANY_PROMPTS = 1_000_000
"""From here on LightGBM uses all cores. With fewer, its threads wait for each other in every small step: as soon as the
machine has other work, two threads are ten times slower than one (benchmarks/scale.md)."""

LABEL_STRENGTH = 0.1
MAX_SELECTION_PROMPTS = 100_000
"""Targets are chosen by a difference of two standard errors, which more prompts would shrink below what matters."""

_MIN_SELECTION_PROMPTS = 100
_SELECTION_RESAMPLES = 100


class SuccessEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """P(each tier answers a prompt correctly), from embeddings, calibrated out of fold.

    target: "success" averages a kernel regression with LightGBM on contrasts between tiers;
        "cheapest-correct" is the LightGBM classifier on that label, calibrated to success per tier;
        "blend" averages the kernel with that classifier, which counts the more the more prompts have a
        label; "auto" takes the blend unless the out-of-fold decisions of another are better by more
        than two standard errors of their AIQ, or hardly any prompt has a label.

    Learned: target_, parts_ (averaged with weights_), calibration_, out_of_fold_ (calibrated P(correct) of every
    training prompt by models that did not see it, (n_prompts, n_tiers)), selection_ (AIQ per target), basis_ (the
    kernel's landmarks), familiarity_ (draws estimates of prompts unlike those trained on towards the tiers' means,
    in out_of_fold_ too).

    Gaps are filled from the tiers that were observed, which is right where they are few or random. Partial
    feedback (see training.log.table.is_partial) is learned from otherwise: "success" is fitted to doubly robust
    outcomes, an estimate of every cell moved by the inverse-propensity weighted error of the one that was observed,
    so what the old router chose does not decide what is learned; calibration weighs outcomes likewise. Labels are
    then known almost only of prompts on which the cheapest tier was asked and right: no basis for a classifier.
    """

    def __init__(self, target: Target = "auto", seed: int = 0) -> None:
        self.target = target
        self.seed = seed

    def fit(
        self,
        X: np.ndarray,  # noqa: N803 (scikit-learn's name)
        outcomes: np.ndarray,
        *,
        propensity: np.ndarray | None = None,
        cost_usd: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        label_forest: LabelForest | None = None,
        on_step: Callable[[str], None] = lambda step: None,
    ) -> SuccessEstimator:
        """Fit on embeddings.

        X: float32 (n_prompts, n_dims), as an encoder of training.encoders gives them.
        outcomes: 0..1, (n_prompts, n_tiers); NaN where not observed.
        propensity: with which each outcome came to be observed, in (0, 1], same shape; NaN, or None for all, counts
            as 1. Only partial feedback needs it.
        cost_usd: of each attempt, same shape; None takes the order of the tiers for that of their costs.
        groups: rows of one group stay in one fold; None makes each row its own.
        label_forest: fits the classifier of the cheapest-correct label; None fits it on these embeddings.
        on_step: called with the name of each step when it is done.

        Raises ConfigError for an unknown target, LogError where there is too little to learn from or a propensity is
        out of range.
        """
        if self.target not in get_args(Target):
            raise ConfigError(f"target is {self.target!r}; expected one of {', '.join(get_args(Target))}")
        embedding = np.ascontiguousarray(X, dtype=np.float32)
        correct = np.asarray(outcomes, dtype=np.float64)
        n_prompts, n_tiers = correct.shape
        if n_prompts < MIN_PROMPTS or n_tiers < 2:
            raise LogError(
                f"found {n_prompts} training prompts and {n_tiers} tiers; "
                f"expected at least {MIN_PROMPTS} prompts (300 and more are sensible) and 2 tiers"
            )
        cost = np.broadcast_to(np.arange(1.0, n_tiers + 1), correct.shape) if cost_usd is None else cost_usd
        certain = np.ones(correct.shape) if propensity is None else np.where(np.isnan(propensity), 1.0, propensity)
        if certain.shape != correct.shape or not ((certain > 0) & (certain <= 1)).all():
            raise LogError(
                f"propensity has shape {certain.shape}, from {certain.min():g} to {certain.max():g}; "
                f"expected {correct.shape}, above 0 and at most 1"
            )
        names = np.arange(n_prompts).astype(str) if groups is None else groups
        with threadpool_limits(1):  # as in training.train
            return self._fit(embedding, correct, certain, cost, names, label_forest, on_step)

    def _fit(
        self,
        embedding: np.ndarray,
        correct: np.ndarray,
        propensity: np.ndarray,
        cost: np.ndarray,
        groups: np.ndarray,
        label_forest: LabelForest | None,
        on_step: Callable[[str], None],
    ) -> SuccessEstimator:
        task = _Task.prepare(embedding, correct, cost, groups, self.seed, propensity, label_forest)
        self.basis_ = task.basis
        on_step("landmarks")

        n_labelled = int((task.label != UNKNOWN).sum())
        wanted = _usable_targets(self.target, n_labelled, task.propensity is not None)
        cross_fits = {}
        for part, cross_fit in _CROSS_FITS.items():
            if any(part in PARTS[target] for target in wanted):
                cross_fits[part] = cross_fit(task)
                on_step(f"{part}, out of fold")
        weights = {target: part_weights(target, n_labelled) for target in wanted}
        averages = {
            target: np.average(
                [cross_fits[part].out_of_fold for part in PARTS[target]], axis=0, weights=weights[target]
            )
            for target in wanted
        }
        weight = None if task.propensity is None else np.minimum(1 / task.propensity, MAX_CALIBRATION_WEIGHT)
        calibrations = {target: fit_calibration(average, correct, weight) for target, average in averages.items()}
        calibrated = {target: calibrations[target].apply(averages[target]) for target in wanted}
        qualities = {target: decision_quality(calibrated[target], correct, cost) for target in wanted}
        self.selection_ = {target: float(quality[0]) for target, quality in qualities.items()}
        self.target_ = _preferred(qualities)
        self.weights_ = weights[self.target_]
        self.calibration_ = calibrations[self.target_]
        self.familiarity_, familiarity = fit_familiarity(
            task.basis, embedding, task.folds, calibrated[self.target_], self.seed
        )
        self.out_of_fold_ = self.familiarity_.shrink(calibrated[self.target_], familiarity)
        on_step("familiarity")
        self.parts_ = tuple(cross_fits[part].finish() for part in PARTS[self.target_])
        on_step("final fit")
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:  # noqa: N803
        """P(correct) per tier, (n_prompts, n_tiers); rows do not sum to one: tiers do not exclude each other."""
        check_is_fitted(self, "parts_")
        embedding = np.ascontiguousarray(X, dtype=np.float32)
        predictions = [part.predict(embedding) for part in self.parts_]
        calibrated = self.calibration_.apply(np.average(predictions, axis=0, weights=self.weights_))
        return self.familiarity_.shrink(calibrated, self.familiarity_.of(embedding))


def _usable_targets(target: str, n_labelled: int, feedback_is_partial: bool) -> tuple[str, ...]:
    """What a target stands for; raises LogError where the classifier is asked for and has too few labels."""
    if feedback_is_partial:
        if target in ("auto", "success"):
            return ("success",)
        raise LogError(
            f"most training prompts have the outcome of one tier only, so target {target!r} has no labels that are "
            "more than what was logged; expected 'auto' or 'success'"
        )
    if n_labelled >= MIN_PROMPTS:
        return tuple(PARTS) if target == "auto" else (target,)
    if target in ("auto", "success"):
        return ("success",)
    raise LogError(
        f"the cheapest correct tier is known of {n_labelled} training prompts, too few for target {target!r}; "
        f"expected at least {MIN_PROMPTS}, or target 'success'"
    )


def part_weights(target: str, n_labelled: int) -> tuple[float, ...]:
    """Weights of a target's parts; in the blend the classifier's grows with the prompts that have a label."""
    if target != "blend":
        return (1 / len(PARTS[target]),) * len(PARTS[target])
    classifier = 0.5 * n_labelled / (n_labelled + CLASSIFIER_TRUST)
    return (1 - classifier, classifier)


def decision_quality(success: np.ndarray, correct: np.ndarray, cost_usd: np.ndarray) -> np.ndarray:
    """AIQ of `worth x success - mean cost` on the prompts that every tier answered, (n_resamples,).

    The first value is that of the prompts themselves, the others are of bootstrap resamples, the same
    for every estimate. All 0 where too few prompts have outcomes of all tiers.
    """
    full = np.flatnonzero(np.isfinite(correct).all(axis=1) & np.isfinite(cost_usd).all(axis=1))
    full = full[evenly(len(full), MAX_SELECTION_PROMPTS)]
    if len(full) < _MIN_SELECTION_PROMPTS:
        return np.zeros(1 + _SELECTION_RESAMPLES)
    outcomes = Outcomes(correct[full], cost_usd[full], best=int(correct[full].mean(axis=0).argmax()))
    mean_cost = cost_usd[full].mean(axis=0)
    policy = Policy(choices_by_worth(success[full], mean_cost, worth_grid(mean_cost)))
    weights = resamples(len(full), n_bootstrap=_SELECTION_RESAMPLES)
    return policy_figures(policy, outcomes, weights)["aiq"]


def _preferred(qualities: dict[str, np.ndarray]) -> str:
    """The blend, unless another target is better by more than two standard errors of the difference."""
    preferred = "blend" if "blend" in qualities else next(iter(qualities))
    for target, quality in qualities.items():
        advantage = quality - qualities[preferred]
        if advantage[0] > 2 * advantage[1:].std():
            preferred = target
    return preferred


def lightgbm_settings(n_prompts: int, seed: int) -> dict[str, object]:
    """Small, strongly regularised trees: outcomes are noisy, and only differences between tiers decide."""
    return {
        "learning_rate": 0.04,
        "num_leaves": 15,
        "min_data_in_leaf": int(np.clip(n_prompts // 20, 10, 80)),
        "feature_fraction": 0.4,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "max_bin": 63,
        "seed": seed,
        "num_threads": 1 if n_prompts < MANY_PROMPTS else os.cpu_count(),
        "deterministic": True,
        "force_col_wise": True,
        "verbose": -1,
    }


@dataclass(frozen=True)
class _Task:
    """What every part is fitted on. observed has NaN where it is not; label may be UNKNOWN.

    propensity: complete, (n_prompts, n_tiers), of partial feedback; else None.
    first_estimates: linear maps from features to success, on which doubly robust outcomes build, per training mask.
    """

    embedding: np.ndarray
    observed: np.ndarray
    propensity: np.ndarray | None
    label: np.ndarray
    folds: np.ndarray
    basis: KernelBasis
    settings: dict[str, object]
    label_forest: LabelForest | None = None
    first_estimates: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def prepare(
        cls,
        embedding: np.ndarray,
        correct: np.ndarray,
        cost: np.ndarray,
        groups: np.ndarray,
        seed: int,
        propensity: np.ndarray,
        label_forest: LabelForest | None = None,
    ) -> _Task:
        basis = KernelBasis.fit(embedding, N_LANDMARKS, seed)
        return cls(
            embedding=embedding,
            observed=correct,
            propensity=propensity if is_partial(correct) else None,
            label=label_cheapest_correct(correct, cost),
            folds=_usable_folds(groups, seed),
            basis=basis,
            settings=lightgbm_settings(len(embedding), seed),
            label_forest=label_forest,
        )

    @cached_property
    def _features(self) -> np.ndarray:
        """Of all prompts, (n_prompts, n_landmarks)."""
        return self.basis.features(self.embedding)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Whitened similarities of some prompts (a mask) to the landmarks, (n_rows, n_landmarks).

        They take four times the memory of the embeddings: of a large log, ask for `a_few` of its prompts only.
        """
        if len(self.embedding) <= MAX_KERNEL_PROMPTS:
            return np.asarray(self._features[rows])
        return np.asarray(self.basis.features(self.embedding[rows]))

    def a_few(self, rows: np.ndarray) -> np.ndarray:
        """At most MAX_KERNEL_PROMPTS of some prompts; both masks."""
        chosen = np.zeros(len(rows), dtype=bool)
        among = np.flatnonzero(rows)
        chosen[among[evenly(len(among), MAX_KERNEL_PROMPTS)]] = True
        return chosen

    def linear(self, rows: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Features of some prompts (a mask) @ weights + bias, (n_rows, n_targets)."""
        if len(self.embedding) <= MAX_KERNEL_PROMPTS:
            return np.asarray(self.features(rows) @ weights + bias)
        return Kernel(self.basis, self.basis.whitening @ weights, bias).predict(self.embedding[rows])

    def correct(self, rows: np.ndarray) -> np.ndarray:
        """Outcomes of some prompts (a mask), complete: each gap is filled from these prompts alone."""
        if self.propensity is None:
            observed = np.asarray(self.observed[rows])
            if np.isfinite(observed).all():
                return observed
            few = self.a_few(rows)
            return _with_gaps_filled(observed, self.linear(rows, *_gap_weights(self.observed[few], self.features(few))))
        return self._robust(rows, np.maximum(self.propensity, 1 / MAX_FIT_WEIGHT))

    def _robust(self, rows: np.ndarray, propensity: np.ndarray) -> np.ndarray:
        """Doubly robust outcomes of these prompts, from estimates that are cross-fitted over their folds."""
        success = np.empty(self.observed.shape)
        for fold in np.unique(self.folds[rows]):
            held_out = rows & (self.folds == fold)
            others = rows & (self.folds != fold)
            train = others if others.any() else held_out
            key = train.tobytes()  # two folds left out are the same two in either order
            if key not in self.first_estimates:
                few = self.a_few(train)
                self.first_estimates[key] = ridge_on_cells(self.features(few), self.observed[few], 1 / propensity[few])
            success[held_out] = np.clip(self.linear(held_out, *self.first_estimates[key]), 0, 1)
        return doubly_robust(success[rows], self.observed[rows], propensity[rows])


@dataclass(frozen=True)
class _CrossFit:
    """Out-of-fold estimates, (n_prompts, n_tiers), and how to fit the part on all prompts."""

    out_of_fold: np.ndarray
    finish: Callable[[], Estimator]


def _kernel(task: _Task) -> _CrossFit:
    rows = np.random.default_rng(0).permutation(len(task.folds))[:MAX_KERNEL_PROMPTS]
    sampled = np.zeros(len(task.folds), dtype=bool)
    sampled[rows] = True

    def fit(train: np.ndarray) -> Kernel:
        train = train & sampled
        return task.basis.regress(task.features(train), task.correct(train))

    return _CrossFit(_out_of_fold(task, fit), lambda: fit(np.ones(len(task.folds), dtype=bool)))


def _contrast_trees(task: _Task) -> _CrossFit:
    def fit(train: np.ndarray) -> ContrastTrees:
        return ContrastTrees.fit(task.embedding[train], task.correct(train), CONTRAST_ROUNDS, task.settings)

    return _CrossFit(_out_of_fold(task, fit), lambda: fit(np.ones(len(task.folds), dtype=bool)))


def _cheapest_correct(task: _Task) -> _CrossFit:
    fit = task.label_forest or _forest_of(task)

    def raw_scores(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return fit(int(task.folds[rows][0])).raw_scores(task.embedding[rows])

    features = _by_fold(task, raw_scores)

    def success(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        weights, bias = logistic_per_tier(features[train], task.observed[train], LABEL_STRENGTH)
        return sigmoid(features[rows] @ weights + bias)

    def finish() -> CheapestCorrect:
        weights, bias = logistic_per_tier(features, task.observed, LABEL_STRENGTH)
        return CheapestCorrect(fit(None), weights, bias)

    return _CrossFit(_by_fold(task, success), finish)


def _forest_of(task: _Task) -> LabelForest:
    """The classifier of the label, fitted on the prompts of the task."""
    known = task.label != UNKNOWN
    present = np.unique(task.label[known])  # NONE and the tiers that are ever the cheapest correct one
    classes = np.searchsorted(present, task.label)

    def fit(left_out: int | None) -> Forest:
        rows = known if left_out is None else known & (task.folds != left_out)
        return fit_label_classifier(
            task.embedding[rows], classes[rows], max(2, len(present)), LABEL_ROUNDS, task.settings
        )

    return fit


_CROSS_FITS = {"kernel": _kernel, "contrast_trees": _contrast_trees, "cheapest_correct": _cheapest_correct}


def _out_of_fold(task: _Task, fit: Callable[[np.ndarray], Estimator]) -> np.ndarray:
    """Predictions for each prompt by the part fitted on the other folds."""
    return _by_fold(task, lambda train, rows: fit(train).predict(task.embedding[rows]))


def _by_fold(task: _Task, fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """fit_predict(mask of the other folds, mask of the fold) of every fold, in the order of the prompts."""
    held_out = [task.folds == fold for fold in np.unique(task.folds)]
    order = np.concatenate([np.flatnonzero(rows) for rows in held_out])
    predictions = np.concatenate([fit_predict(~rows, rows) for rows in held_out])
    return predictions[np.argsort(order)]


def _usable_folds(groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each row; raises LogError where all rows are of one group."""
    folds = fold_numbers(groups, N_FOLDS, seed)
    if len(np.unique(folds)) < 2:
        raise LogError("all training prompts are of one or two groups (question_key); expected many")
    return folds


def _gap_weights(correct: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and bias of estimates that fill gaps: a ridge regression on outcomes that were filled by earlier ones.

    Starts from the tiers' means and takes the kernel's estimates from there, twice.
    """
    observed = np.isfinite(correct)
    means = np.nan_to_num(correct).sum(axis=0) / np.maximum(observed.sum(axis=0), 1)
    estimate = np.broadcast_to(means, correct.shape)
    for _ in range(2):
        weights, bias = ridge(features, _with_gaps_filled(correct, estimate))
        estimate = features @ weights + bias
    return weights, bias


def _with_gaps_filled(correct: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    """Each gap is the tier's estimate, moved by how the prompt's observed tiers differ from theirs."""
    observed = np.isfinite(correct)
    known = np.nan_to_num(correct)
    surprise = (observed * (known - estimate)).sum(axis=1, keepdims=True) / (observed.sum(axis=1, keepdims=True) + 1)
    return np.asarray(np.where(observed, known, np.clip(estimate + surprise, 0, 1)))
