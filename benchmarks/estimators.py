"""Compare estimators of success on identical features and folds; writes the tables of estimators.md.

    python benchmarks/estimators.py --logs DIR        DIR holds the folders mmlu_pro, zeroeval and routellm

An estimator is a function of a Split (training embeddings and outcomes, test embeddings) that returns
success on the test prompts and its number of trees; ESTIMATORS lists them all. Those made of several
parts are averaged or stacked on out-of-fold predictions and calibrated like the product's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import process_time
from typing import Protocol

import lightgbm
import numpy as np
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.portfolio.tiers import Tier, read_tiers
from training import SuccessEstimator
from training.encoders.embed import embed
from training.encoders.static import learn_static
from training.evaluation import baselines
from training.evaluation.metrics import (
    Outcomes,
    Policy,
    calibration_error,
    choices_by_worth,
    interval,
    policy_figures,
    resamples,
    worth_grid,
)
from training.export.versions import versions
from training.fit.calibrate import fit_calibration
from training.fit.classifier import LABEL_ROUNDS, fit_forest, lightgbm_settings
from training.fit.estimator import CLASSIFIER_TRUST, LABEL_STRENGTH
from training.fit.kernel import SURFACE_WEIGHT, Kernel, KernelBasis
from training.fit.logistic import logistic_per_tier, logit, sigmoid
from training.fit.ridge import ridge
from training.fit.task import N_LANDMARKS
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.labels import label_cheapest_correct
from training.log.split import fold_numbers, test_mask
from training.log.table import OutcomeTable

HERE = Path(__file__).parent
N_FOLDS = 5
N_BOOTSTRAP = 500
SMALL_REPEATS = {300: 8, 1000: 5}
REFERENCE = "**product**"
STACKING_STRENGTH = 1.0
LOGISTIC_STRENGTH = 0.01
TREE_ROUNDS = 60
RESIDUAL_ROUNDS, PATIENCE = 150, 10
START, END = "<!-- tables: written by estimators.py -->", "<!-- end of tables -->"

Figures = dict[str, np.ndarray]
"""Values per bootstrap resample, the sample itself first."""


# ---- tasks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fold:
    """Rows of the log, and their embeddings by an encoder learned on the training rows."""

    train: np.ndarray
    test: np.ndarray
    train_x: np.ndarray = field(repr=False)
    test_x: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Task:
    """A log and what is measured on it.

    rounds: the folds of one round together test each row of `tested` once; figures are means over rounds.
    """

    name: str
    log: OutcomeTable
    tiers: Sequence[Tier]
    tested: np.ndarray
    rounds: list[list[Fold]]

    @cached_property
    def cost(self) -> np.ndarray:
        """USD of every attempt, (n_prompts, n_tiers)."""
        return attempt_costs(self.log, self.tiers).cost_usd

    @property
    def outcomes(self) -> Outcomes:
        """Of the tested rows."""
        correct = self.log.correct[self.tested]
        return Outcomes(correct, self.cost[self.tested], int(correct.mean(axis=0).argmax()))


def read_log(logs: Path, name: str) -> tuple[OutcomeTable, Sequence[Tier]]:
    """The prompts that every tier answered."""
    tiers = read_tiers(HERE / "tiers" / f"{name}.toml")
    log = ingest(logs / name, tiers)
    return log.rows(np.isfinite(log.correct).all(axis=1)), tiers


def cross_validation(logs: Path, name: str) -> Task:
    """Each prompt is tested once, by what was fitted on the folds of other questions."""
    log, tiers = read_log(logs, name)
    numbers = fold_numbers(log.groups, N_FOLDS, seed=100)  # not the folds that estimators make inside
    masks = tqdm([numbers == number for number in range(N_FOLDS)], desc=f"{name}: encoders", file=sys.stderr)
    folds = [embedded(log, np.flatnonzero(~mask), np.flatnonzero(mask)) for mask in masks]
    return Task(name, log, tiers, np.arange(log.n_prompts), [folds])


def small_data(logs: Path, n_train: int) -> Task:
    """n_train random prompts of mmlu_pro to learn from, half of all prompts to test on; several times."""
    log, tiers = read_log(logs, "mmlu_pro")
    tested = test_mask(log.groups, 0.5, seed=0)
    pool, rng = np.flatnonzero(~tested), np.random.default_rng(n_train)
    samples = [np.sort(rng.choice(pool, n_train, replace=False)) for _ in range(SMALL_REPEATS[n_train])]
    name = f"mmlu_pro, {n_train:,} training prompts"
    bar = tqdm(samples, desc=f"{name}: encoders", file=sys.stderr)
    rounds = [[embedded(log, sample, np.flatnonzero(tested))] for sample in bar]
    return Task(name, log, tiers, np.flatnonzero(tested), rounds)


def embedded(log: OutcomeTable, train: np.ndarray, test: np.ndarray) -> Fold:
    """A fold with the static encoder of its training prompts."""
    encoder = learn_static([log.prompts[row] for row in train])
    rows = np.concatenate([train, test])
    vectors = embed(encoder, [log.prompts[row] for row in rows], log.prompt_ids[rows]).vectors
    return Fold(train, test, vectors[: len(train)], vectors[len(train) :])


def with_gaps(task: Task, hide: Callable[[np.ndarray], np.ndarray], seed: int = 0) -> Task:
    """The same task with outcomes hidden; hide: from uniform numbers per cell to a mask."""
    hidden = hide(np.random.default_rng(seed).random(task.log.correct.shape))
    columns = {name: np.where(hidden, np.nan, getattr(task.log, name)) for name in ("correct", "cost_usd")}
    return replace(task, log=replace(task.log, **columns))


def all_but_one(draw: np.ndarray) -> np.ndarray:
    """All cells but one of seven prompts in ten; rows stand in the order of a digest, so these are random."""
    return (draw < draw.max(axis=1, keepdims=True)) & (np.arange(len(draw))[:, None] % 10 < 7)


# ---- what estimators see ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Boosters:
    """LightGBM boosters side by side."""

    boosters: tuple[lightgbm.Booster, ...]

    @property
    def n_trees(self) -> int:
        """Trees of all boosters."""
        return sum(booster.num_trees() for booster in self.boosters)

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """(n_prompts, sum of the boosters' outputs)."""
        scores = [booster.predict(embedding, raw_score=True, num_threads=1) for booster in self.boosters]
        return np.concatenate([np.asarray(score).reshape(len(embedding), -1) for score in scores], axis=1)


class Model(Protocol):
    """What a fit returns."""

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """(n_prompts, n_outputs)."""


@dataclass(frozen=True)
class Mapped:
    """A model made of a function, and of boosters whose raw scores it may use."""

    forest: Boosters
    function: Callable[[np.ndarray], np.ndarray]

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """The function of the embedding, or of the raw scores where there are boosters."""
        return self.function(self.forest.raw_scores(embedding) if self.forest.boosters else embedding)


@dataclass(frozen=True)
class Estimates:
    """Predictions of one part: out of fold for the training prompts, and for the test prompts."""

    out_of_fold: np.ndarray
    test: np.ndarray
    n_trees: int = 0
    seconds: float = 0.0


Fit = Callable[["Split", np.ndarray], Model]
"""Fits a part on the training rows of a mask."""


@dataclass(eq=False)
class Split:
    """One training part and the embeddings to test on; parts are fitted once and kept.

    borrowed: CPU seconds of kept parts that the present estimator took.
    """

    x: np.ndarray
    correct: np.ndarray
    cost: np.ndarray
    groups: np.ndarray
    test_x: np.ndarray
    kept: dict[Fit, Estimates] = field(default_factory=dict)
    borrowed: float = 0.0

    @cached_property
    def folds(self) -> np.ndarray:
        """For predictions out of fold, as the product makes them."""
        return fold_numbers(self.groups, N_FOLDS, seed=0)

    @cached_property
    def settings(self) -> dict[str, object]:
        """The product's, of LightGBM."""
        return lightgbm_settings(len(self.x), seed=0)

    @cached_property
    def basis(self) -> KernelBasis:
        """The product's landmarks."""
        return KernelBasis.fit(self.x, N_LANDMARKS, seed=0)

    @cached_property
    def features(self) -> np.ndarray:
        """Of the training prompts on the landmarks."""
        return self.basis.features(self.x)

    @cached_property
    def standard(self) -> StandardScaler:
        """Of the embeddings' columns."""
        return StandardScaler().fit(self.x)

    def estimates(self, part: Fit) -> Estimates:
        """Cross-fit a part, or take it from the estimator that did."""
        if part in self.kept:
            self.borrowed += self.kept[part].seconds
            return self.kept[part]
        start = process_time()
        _ = self.features, self.standard, self.settings
        everything = np.ones(len(self.x), dtype=bool)
        masks = [self.folds != number for number in np.unique(self.folds)]
        *models, final = (part(self, rows) for rows in [*masks, everything])
        test = final.predict(self.test_x)
        out_of_fold = np.empty((len(self.x), test.shape[1]))
        for rows, model in zip(masks, models, strict=True):
            out_of_fold[~rows] = model.predict(self.x[~rows])
        n_trees = final.forest.n_trees if isinstance(final, Mapped) else 0
        self.kept[part] = Estimates(out_of_fold, test, n_trees, process_time() - start)
        return self.kept[part]


# ---- parts: fitted on some rows --------------------------------------------------------------------


def kernel(split: Split, rows: np.ndarray) -> Kernel:
    """The product's kernel regression."""
    return split.basis.regress(split.features[rows], split.correct[rows])


def kernel_per_tier(split: Split, rows: np.ndarray) -> Kernel:
    """The kernel regression of each tier apart, on its own observed cells."""
    weights, bias = np.zeros((split.features.shape[1], split.correct.shape[1])), np.zeros(split.correct.shape[1])
    for tier, outcome in enumerate(split.correct.T):
        seen = rows & np.isfinite(outcome)
        weights[:, [tier]], bias[[tier]] = ridge(split.features[seen], outcome[seen, None])
    return Kernel(split.basis, split.basis.whitening @ weights, bias)


def contrast_trees(split: Split, rows: np.ndarray) -> Mapped:
    """LightGBM regressions on orthonormal contrasts between tiers: what they share, and their differences."""
    contrasts, offset = shared_and_differences(split.correct.shape[1]), split.correct[rows].mean(axis=0)
    settings = {**split.settings, "boost_from_average": False}
    forest = _boosted(split, rows, (split.correct - offset) @ contrasts, "regression", settings)
    return Mapped(forest, lambda scores: scores @ contrasts.T + offset)


def shared_and_differences(n_tiers: int) -> np.ndarray:
    """Orthonormal columns, the first of them constant, (n_tiers, n_tiers)."""
    basis = np.concatenate([np.ones((n_tiers, 1)), np.eye(n_tiers)[:, : n_tiers - 1]], axis=1)
    return np.linalg.qr(basis)[0]


def label_classifier(split: Split, rows: np.ndarray) -> Mapped:
    """LightGBM on the cheapest-correct label; raw scores of its classes."""
    label = label_cheapest_correct(split.correct, split.cost)
    present = np.unique(label)
    classes = np.searchsorted(present, label)
    forest = fit_forest(split.x[rows], classes[rows], max(2, len(present)), split.settings)
    return Mapped(Boosters((forest.booster,)), np.asarray)


def success_heads(split: Split, rows: np.ndarray) -> Mapped:
    """Plain LightGBM: one binary classifier per tier."""
    return Mapped(_boosted(split, rows, split.correct, "binary"), sigmoid)


def difficulty_and_deviations(split: Split, rows: np.ndarray) -> Mapped:
    """LightGBM on the prompt's mean outcome, then on each tier's deviation from it; (n_prompts, 1 + n_tiers)."""
    difficulty = split.correct.mean(axis=1, keepdims=True)
    targets = np.concatenate([difficulty, split.correct - difficulty], axis=1)
    return Mapped(_boosted(split, rows, targets, "regression"), np.asarray)


def linear_ridge(split: Split, rows: np.ndarray) -> Mapped:
    """The product's ridge regression, on the embedding itself."""
    weights, bias = ridge(split.standard.transform(split.x[rows]), split.correct[rows])
    return Mapped(Boosters(()), lambda x: split.standard.transform(x) @ weights + bias)


def linear_logistic(split: Split, rows: np.ndarray) -> Mapped:
    """Logistic regression per tier on the embedding."""
    x = split.standard.transform(split.x[rows])
    weights, bias = logistic_per_tier(x, split.correct[rows], LOGISTIC_STRENGTH)
    return Mapped(Boosters(()), lambda x: sigmoid(split.standard.transform(x) @ weights + bias))


def residual_of(base: Fit, objective: str) -> Fit:
    """LightGBM that starts from another part's out-of-fold estimates and stops early, possibly at no tree.

    objective: "regression" corrects contrasts between tiers, "binary" the logit of each tier.
    """

    def residual(split: Split, rows: np.ndarray) -> Mapped:
        start, target = split.kept[base].out_of_fold, split.correct
        back = np.eye(target.shape[1])
        if objective == "binary":
            start = _confined_logit(start)
        else:
            back = shared_and_differences(target.shape[1])
            start, target = start @ back, target @ back
        watched = rows & (fold_numbers(split.groups, N_FOLDS, seed=7) == 0)
        boosters, columns = [], []
        for column in range(target.shape[1]):
            booster = _boost_from(split, rows & ~watched, watched, start[:, column], target[:, column], objective)
            if booster is not None:
                boosters.append(booster)
                columns.append(column)
        if not columns:
            return Mapped(Boosters(()), lambda x: np.zeros((len(x), len(back))))
        return Mapped(Boosters(tuple(boosters)), lambda scores: scores @ back[:, columns].T)

    return residual


def _boosted(
    split: Split, rows: np.ndarray, targets: np.ndarray, objective: str, settings: dict[str, object] | None = None
) -> Boosters:
    """One booster per column."""
    parameters = {**(settings or split.settings), "objective": objective}
    bins = {name: parameters[name] for name in ("max_bin", "num_threads", "verbose")}
    data = lightgbm.Dataset(split.x[rows], params=bins)
    return Boosters(
        tuple(lightgbm.train(parameters, data.set_label(target[rows]), TREE_ROUNDS) for target in targets.T)
    )


def _boost_from(
    split: Split, rows: np.ndarray, watched: np.ndarray, start: np.ndarray, target: np.ndarray, objective: str
) -> lightgbm.Booster | None:
    """A booster on top of scores; None where not even one tree helps the watched rows."""
    data = lightgbm.Dataset(
        split.x[rows],
        target[rows],
        init_score=start[rows],
        params={"max_bin": split.settings["max_bin"], "num_threads": 1, "verbose": -1},
    )
    valid = data.create_valid(split.x[watched], target[watched], init_score=start[watched])
    settings = {**split.settings, "objective": objective, "boost_from_average": False}
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(settings, data, RESIDUAL_ROUNDS, valid_sets=[valid], callbacks=[stop])
    (reached,) = booster.best_score["valid_0"].values()
    z, y = start[watched], target[watched]
    before = float(np.mean((z - y) ** 2 if objective == "regression" else np.logaddexp(0, z) - y * z))
    if reached >= before:
        return None
    return lightgbm.Booster(model_str=booster.model_to_string(num_iteration=booster.best_iteration))


# ---- estimators: success on the test prompts, number of trees --------------------------------------

Estimator = Callable[[Split], tuple[np.ndarray, int]]


def product(split: Split) -> tuple[np.ndarray, int]:
    """The product's SuccessEstimator."""
    fitted = SuccessEstimator(seed=0).fit(split.x, split.correct, cost_usd=split.cost, groups=split.groups)
    classifier = fitted.model_.classifier
    return fitted.predict_proba(split.test_x), 0 if classifier is None else classifier.forest.n_trees


def baseline(function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Estimator:
    """One of training.baselines."""
    return lambda split: (function(split.x, split.correct, split.test_x), 0)


def mean_of(*parts: Callable[[Split], Estimates]) -> Estimator:
    """Plain average of parts, calibrated."""

    def estimator(split: Split) -> tuple[np.ndarray, int]:
        found = [part(split) for part in parts]
        calibration = fit_calibration(np.mean([each.out_of_fold for each in found], axis=0), split.correct)
        success = calibration.apply(np.mean([each.test for each in found], axis=0))
        return success, sum(each.n_trees for each in found)

    return estimator


def stack_of(*parts: Callable[[Split], Estimates]) -> Estimator:
    """Logistic regression per tier over the logits of the parts, its weights learned out of fold."""

    def estimator(split: Split) -> tuple[np.ndarray, int]:
        found = [part(split) for part in parts]
        success = np.empty((len(split.test_x), split.correct.shape[1]))
        for tier in range(split.correct.shape[1]):
            known = np.stack([_confined_logit(each.out_of_fold[:, tier]) for each in found], axis=1)
            asked = np.stack([_confined_logit(each.test[:, tier]) for each in found], axis=1)
            weights, bias = logistic_per_tier(known, split.correct[:, [tier]], STACKING_STRENGTH)
            success[:, tier] = sigmoid(asked @ weights + bias)[:, 0]
        return success, sum(each.n_trees for each in found)

    return estimator


def part(fitted: Fit) -> Callable[[Split], Estimates]:
    """A part's own estimates."""
    return lambda split: split.estimates(fitted)


def classifier(split: Split) -> Estimates:
    """The cheapest-correct classifier, made to success per tier."""
    found = split.estimates(label_classifier)
    weights, bias = logistic_per_tier(found.out_of_fold, split.correct, LABEL_STRENGTH)
    return replace(
        found, out_of_fold=sigmoid(found.out_of_fold @ weights + bias), test=sigmoid(found.test @ weights + bias)
    )


def shrunken_deviation(split: Split) -> Estimates:
    """Difficulty + deviation x the share of it that holds out of fold, per tier."""
    found = split.estimates(difficulty_and_deviations)
    mean = (split.correct - split.correct.mean(axis=1, keepdims=True)).mean(axis=0)
    predicted = found.out_of_fold[:, 1:] - mean
    measured = split.correct - split.correct.mean(axis=1, keepdims=True) - mean
    share = np.clip((predicted * measured).sum(axis=0) / (predicted**2).sum(axis=0), 0, 1)

    def whole(estimate: np.ndarray) -> np.ndarray:
        return estimate[:, :1] + mean + share * (estimate[:, 1:] - mean)

    return replace(found, out_of_fold=whole(found.out_of_fold), test=whole(found.test))


def boosted_from(base: Fit, objective: str) -> Callable[[Split], Estimates]:
    """A part and LightGBM on its residual."""
    residual = residual_of(base, objective)

    def added(start: np.ndarray, correction: np.ndarray) -> np.ndarray:
        return sigmoid(_confined_logit(start) + correction) if objective == "binary" else start + correction

    def estimates(split: Split) -> Estimates:
        start = split.estimates(base)
        more = split.estimates(residual)
        return Estimates(added(start.out_of_fold, more.out_of_fold), added(start.test, more.test), more.n_trees)

    return estimates


def _confined_logit(p: np.ndarray) -> np.ndarray:
    return logit(np.clip(p, 0.01, 0.99))


ESTIMATORS: dict[str, Estimator] = {
    REFERENCE: product,
    "kernel": mean_of(part(kernel)),
    "contrast trees": mean_of(part(contrast_trees)),
    "classifier": mean_of(classifier),
    "mean of kernel, contrast trees": mean_of(part(kernel), part(contrast_trees)),
    "LightGBM heads": mean_of(part(success_heads)),
    "difficulty + shrunken deviation": mean_of(shrunken_deviation),
    "ridge": mean_of(part(linear_ridge)),
    "ridge, LightGBM on the residual": mean_of(boosted_from(linear_ridge, "regression")),
    "logistic, LightGBM on the residual": mean_of(boosted_from(linear_logistic, "binary")),
    "kernel, LightGBM on the residual": mean_of(boosted_from(kernel, "regression")),
    "mean of kernel, classifier": mean_of(part(kernel), classifier),
    "mean of contrast trees, classifier": mean_of(part(contrast_trees), classifier),
    "mean of kernel, contrast trees, classifier": mean_of(part(kernel), part(contrast_trees), classifier),
    "stack of kernel, classifier": stack_of(part(kernel), classifier),
    "stack of kernel, contrast trees, classifier": stack_of(part(kernel), part(contrast_trees), classifier),
    "baseline kNN": baseline(baselines.knn),
    "baseline k-means": baseline(baselines.kmeans),
    "baseline logistic per tier": baseline(baselines.linear),
}

GAPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "nothing": lambda draw: draw < 0,
    "15 % of cells": lambda draw: draw < 0.15,
    "50 % of cells": lambda draw: draw < 0.5,
    "all but one tier, for 70 % of prompts": all_but_one,
}
GAP_ESTIMATORS: dict[str, Estimator] = {
    REFERENCE: product,
    "kernel, each tier on its own cells": mean_of(part(kernel_per_tier)),
    **{name: ESTIMATORS[name] for name in ("baseline kNN", "baseline logistic per tier")},
}


# ---- measuring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Figures of an estimator, CPU seconds and trees of one fit."""

    figures: Figures
    seconds: float
    n_trees: float


def measure(task: Task, named: dict[str, Estimator], truth: Outcomes | None = None) -> dict[str, Result]:
    """Results of every estimator. truth: outcomes to test on, where the task's own have gaps."""
    outcomes = truth or task.outcomes
    weights = resamples(len(task.tested), n_bootstrap=N_BOOTSTRAP)
    found: dict[str, list[Result]] = {name: [] for name in named}
    n_fits = len(named) * sum(len(folds) for folds in task.rounds)
    with tqdm(total=n_fits, desc=task.name, unit="fit", file=sys.stderr) as bar:
        for folds in task.rounds:
            splits = [_split(task, fold) for fold in folds]
            for name, estimator in named.items():
                bar.set_postfix_str(name)
                found[name].append(_round(task, folds, splits, estimator, outcomes, weights))
                bar.update(len(folds))
    return {name: _mean_result(results) for name, results in found.items()}


def _split(task: Task, fold: Fold) -> Split:
    rows = fold.train[np.isfinite(task.log.correct[fold.train]).any(axis=1)]
    kept = np.isin(fold.train, rows)
    return Split(fold.train_x[kept], task.log.correct[rows], task.cost[rows], task.log.groups[rows], fold.test_x)


def _round(
    task: Task,
    folds: Iterable[Fold],
    splits: Iterable[Split],
    estimator: Estimator,
    outcomes: Outcomes,
    weights: np.ndarray,
) -> Result:
    """One round: every tested row estimated once; decisions by the training folds' mean costs."""
    worths = worth_grid(task.cost.mean(axis=0))
    success = np.empty(outcomes.correct.shape)
    choices = np.empty((len(success), len(worths)), dtype=int)
    seconds, n_trees = [], []
    for fold, split in zip(folds, splits, strict=True):
        split.borrowed, start = 0.0, process_time()
        estimate, trees = estimator(split)
        seconds.append(process_time() - start + split.borrowed)
        n_trees.append(trees)
        rows = np.searchsorted(task.tested, fold.test)
        success[rows] = estimate
        choices[rows] = choices_by_worth(estimate, split.cost.mean(axis=0), worths)
    gain = success[:, outcomes.best] - success[:, 1 - outcomes.best] if success.shape[1] == 2 else None
    figures = policy_figures(Policy(choices, gain), outcomes, weights)
    errors = [calibration_error(success[:, k], outcomes.correct[:, k], weights) for k in range(success.shape[1])]
    return Result(figures | {"ece": np.max(errors, axis=0)}, float(np.mean(seconds)), float(np.mean(n_trees)))


def _mean_result(results: Sequence[Result]) -> Result:
    figures = {name: np.mean([result.figures[name] for result in results], axis=0) for name in results[0].figures}
    return Result(
        figures,
        float(np.mean([result.seconds for result in results])),
        float(np.mean([result.n_trees for result in results])),
    )


# ---- the page --------------------------------------------------------------------------------------


def table(task: Task, results: dict[str, Result], headline: str) -> str:
    """One task's table; a star marks a figure whose difference to the blend has an interval without 0."""
    outcomes, reference = task.outcomes, results[REFERENCE]
    accuracy, cost = outcomes.correct.mean(axis=0), outcomes.cost_usd.mean(axis=0) * 1000
    tiers = ", ".join(f"{tier} {a:.3f} / {c:.3f}" for tier, a, c in zip(task.log.tiers, accuracy, cost, strict=True))
    n_train = int(np.mean([len(fold.train) for folds in task.rounds for fold in folds]))
    lines = [
        f"### {task.name}",
        "",
        f"{len(task.tested):,} test prompts, {n_train:,} training prompts per fit, {len(task.rounds)} x "
        f"{len(task.rounds[0])} fits. Tiers, accuracy / USD per 1,000 requests: {tiers}.",
        "",
        f"| estimator | {headline.upper()} | difference to blend | cost at 98 % | difference to blend "
        "| cost at 95 % | worst ECE | CPU s | trees |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        cells = [f"{result.figures[headline][0]:.4f}", _difference(result, reference, headline, 4)]
        cells += [f"{result.figures['cost_at_98'][0]:.3f}", _difference(result, reference, "cost_at_98", 3)]
        cells += [_starred(result, reference, figure) for figure in ("cost_at_95", "ece")]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{result.seconds:.1f}", f"{result.n_trees:.0f}"]) + " |")
    return "\n".join(lines)


def gaps_table(results: dict[str, dict[str, Result]]) -> str:
    """AIQ and cost at 98 % by share of hidden cells."""
    lines = ["### Unobserved cells: mmlu_pro, training outcomes hidden at random", ""]
    lines += ["AIQ (difference to the blend at the same gaps); cost at 98 %; worst ECE.", ""]
    lines += [
        "| estimator | " + " | ".join(f"hidden: {gap}" for gap in results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    for name in GAP_ESTIMATORS:
        cells = []
        for found in results.values():
            figures = found[name].figures
            difference = "" if name == REFERENCE else f" ({_difference(found[name], found[REFERENCE], 'aiq', 4)})"
            cells.append(
                f"{figures['aiq'][0]:.4f}{difference}; {figures['cost_at_98'][0]:.2f}; {figures['ece'][0]:.3f}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(result: Result, reference: Result, figure: str, digits: int) -> str:
    if result is reference:
        return ""
    found = interval(result.figures[figure] - reference.figures[figure])
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def _starred(result: Result, reference: Result, figure: str) -> str:
    found = interval(result.figures[figure] - reference.figures[figure])
    return f"{result.figures[figure][0]:.3f}{'*' if found.low > 0 or found.high < 0 else ''}"


def made_with() -> str:
    """Versions and the product's settings."""
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        f"{packages}. Settings: {N_LANDMARKS} landmarks, surface weight {SURFACE_WEIGHT}, "
        f"{TREE_ROUNDS} rounds of contrast trees, {LABEL_ROUNDS} rounds of the classifier, "
        f"classifier trust {CLASSIFIER_TRUST}, {N_BOOTSTRAP} bootstrap resamples."
    )


def write_tables(page: Path, tables: str) -> None:
    """Replace what stands between the markers; the rest of the page is written by hand."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Estimators compared\n\n{START}\n{END}\n"
    before, rest = text.split(START)
    after = rest.split(END)[1]
    page.write_text(f"{before}{START}\n\n{tables}\n\n{END}{after}", encoding="utf-8")


def run(logs: Path) -> str:
    """Every table, in Markdown."""
    tables = [made_with()]
    with threadpool_limits(1):
        mmlu_pro = cross_validation(logs, "mmlu_pro")
        tables.append(table(mmlu_pro, measure(mmlu_pro, ESTIMATORS), "aiq"))
        for name, headline in (("zeroeval", "aiq"), ("routellm", "apgr")):
            task = cross_validation(logs, name)
            tables.append(table(task, measure(task, ESTIMATORS), headline))
        for n_train in SMALL_REPEATS:
            task = small_data(logs, n_train)
            tables.append(table(task, measure(task, ESTIMATORS), "aiq"))
        by_gap = {
            gap: measure(with_gaps(mmlu_pro, hide), GAP_ESTIMATORS, mmlu_pro.outcomes) for gap, hide in GAPS.items()
        }
        tables.append(gaps_table(by_gap))
    return "\n\n".join(tables)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description="Compare estimators of success; writes the tables of a Markdown page.")
    parser.add_argument("--logs", default=os.environ.get("BROKER_REAL_LOGS"), help="folder of the logs")
    parser.add_argument("--out", type=Path, default=HERE / "estimators.md")
    arguments = parser.parse_args()
    if not arguments.logs or not Path(arguments.logs).is_dir():
        parser.error(
            f"found no folder of logs ({arguments.logs or 'nothing given'}); pass --logs DIR or set BROKER_REAL_LOGS "
            "to the folder that holds mmlu_pro, zeroeval and routellm"
        )
    write_tables(arguments.out, run(Path(arguments.logs)))
    print(arguments.out)


if __name__ == "__main__":
    main()
