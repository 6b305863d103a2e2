"""LightGBM on the label of the cheapest correct tier, calibrated to the success of each tier."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import lightgbm
import numpy as np

from training.fit.logistic import sigmoid
from training.graph.builder import Graph
from training.graph.readout import Readout

LABEL_ROUNDS = 20
N_LEAVES = 15

MANY_PROMPTS = 1_000_000
"""From here on LightGBM uses all cores. With fewer prompts its threads wait for each other in every small step: on a
machine that has other work, two threads are then ten times slower than one (benchmarks/scale.md)."""

_ONE_FIT_AT_A_TIME = Lock()


@dataclass(frozen=True)
class Forest:
    """A LightGBM booster."""

    booster: lightgbm.Booster = field(repr=False)

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """Float64 (n_prompts, n_classes), before any link function."""
        scores = self.booster.predict(embedding, raw_score=True, num_threads=1)
        return np.asarray(scores).reshape(len(embedding), -1)

    @property
    def n_trees(self) -> int:
        """Trees of the booster."""
        return int(self.booster.num_trees())


FitForest: TypeAlias = Callable[[int | None], Forest]
"""Fits LightGBM on the cheapest-correct label. Given is the fold to leave out, or None for the final fit."""


@dataclass(frozen=True)
class Classifier:
    """The classifier of the cheapest-correct label, its scores turned into success.

    P(tier k is the cheapest correct one) is no success probability. A logistic regression per tier over the raw scores
    of all classes makes it one. weights: (n_classes, n_tiers); bias: (n_tiers,).
    """

    forest: Forest
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), (n_prompts, n_tiers)."""
        return sigmoid(self.forest.raw_scores(embedding) @ self.weights + self.bias)

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """sigmoid(raw_scores @ weights + bias)."""
        raw_scores = graph.trees(embedding, [self.forest.booster])
        success = graph.add("Sigmoid", graph.affine(raw_scores, self.weights, self.bias))
        n_tiers = len(self.bias)
        return Readout(success, np.eye(n_tiers), np.zeros(n_tiers))


def fit_forest(
    embedding: np.ndarray, classes: np.ndarray, n_classes: int, settings: dict[str, Any], n_rounds: int = LABEL_ROUNDS
) -> Forest:
    """LightGBM on float32 features (n_prompts, n_dims) and classes, int in 0 .. n_classes - 1, (n_prompts,).

    One fit at a time: LightGBM may crash where threads fit side by side.
    """
    shared = {name: settings[name] for name in ("max_bin", "num_threads", "verbose")}
    parameters = {**settings, "objective": "multiclass", "num_class": n_classes}
    with _ONE_FIT_AT_A_TIME:
        data = lightgbm.Dataset(embedding, params=shared).set_label(classes)
        return Forest(lightgbm.train(parameters, data, n_rounds))


def lightgbm_settings(n_prompts: int, seed: int, n_leaves: int = N_LEAVES) -> dict[str, Any]:
    """Small, strongly regularised trees: outcomes are noisy, and only differences between tiers decide."""
    return {
        "learning_rate": 0.04,
        "num_leaves": n_leaves,
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
