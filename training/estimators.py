"""The parts of the success estimate; each predicts in numpy and writes itself into a graph.

Every part maps embeddings, float32 (n_prompts, n_dims), to P(tier answers correctly), (n_prompts, n_tiers).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import lightgbm
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression

from training.encoders import N_SURFACE
from training.graph import Graph

LOWEST_CLASS_PROBABILITY = 0.003
_ONE_FIT_AT_A_TIME = Lock()


@dataclass(frozen=True)
class Forest:
    """LightGBM boosters that the graph evaluates together, and where the raw scores of each begin."""

    boosters: tuple[lightgbm.Booster, ...] = field(repr=False)

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """Float64 (n_prompts, sum of the boosters' outputs)."""
        scores = [booster.predict(embedding, raw_score=True, num_threads=1) for booster in self.boosters]
        return np.concatenate([np.asarray(score).reshape(len(embedding), -1) for score in scores], axis=1)

    @classmethod
    def joined(cls, forests: Iterable[Forest]) -> Forest:
        """The boosters of several forests as one."""
        return cls(tuple(booster for forest in forests for booster in forest.boosters))

    @property
    def n_outputs(self) -> int:
        """Columns of raw_scores."""
        return sum(booster.num_model_per_iteration() for booster in self.boosters)

    @property
    def n_trees(self) -> int:
        """Trees of all boosters."""
        return sum(booster.num_trees() for booster in self.boosters)


class Estimator(Protocol):
    """One part of the estimate."""

    @property
    def forest(self) -> Forest:
        """Its boosters; may be none."""

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), (n_prompts, n_tiers)."""

    def add_to(self, graph: Graph, embedding: str, raw_scores: str, weight: float) -> str:
        """Write it into a graph, given its columns of the raw scores; returns the name of weight x P(correct)."""


# ---- kernel ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """Gaussian kernel ridge regression on landmarks (Nyström method, Williams & Seeger 2001).

    Smooth where kNN is rough: it borrows from all similar prompts, and costs one matrix product.
    The surface columns (token kinds, length) are standardised, clipped and weighed small.
    """

    mean: np.ndarray
    scale: np.ndarray
    landmarks: np.ndarray
    gamma: float
    weights: np.ndarray
    bias: np.ndarray

    @property
    def forest(self) -> Forest:
        """None: a kernel has no trees."""
        return Forest(())

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), not confined to 0..1."""
        return np.asarray(similarities(self.inputs(embedding), self.landmarks, self.gamma) @ self.weights + self.bias)

    def inputs(self, embedding: np.ndarray) -> np.ndarray:
        """What distances are taken on, (n_prompts, n_dims)."""
        return kernel_inputs(embedding, self.mean, self.scale)

    def add_to(self, graph: Graph, embedding: str, raw_scores: str, weight: float) -> str:
        """exp(2 x.c - |x|^2 - |c|^2) @ weights + bias, with x and c already scaled by sqrt(gamma)."""
        n_text = self.landmarks.shape[1] - N_SURFACE
        width = np.sqrt(self.gamma)
        scale = width * np.concatenate([np.ones(n_text), SURFACE_WEIGHT / self.scale])
        shift = width * np.concatenate([np.zeros(n_text), -SURFACE_WEIGHT * self.mean / self.scale])
        limit = np.full(n_text + N_SURFACE, np.finfo(np.float32).max)
        limit[n_text:] = width * SURFACE_WEIGHT * SURFACE_CLIP
        standard = graph.add("Add", graph.add("Mul", embedding, graph.constant(scale)), graph.constant(shift))
        x = graph.add("Max", graph.add("Min", standard, graph.constant(limit)), graph.constant(-limit))
        landmarks = width * self.landmarks
        cross = graph.affine(x, 2 * landmarks.T, -(landmarks**2).sum(axis=1))
        exponent = graph.add("Sub", cross, graph.add("ReduceSumSquare", x, axes=[1], keepdims=1))
        return graph.affine(graph.add("Exp", exponent), weight * self.weights, weight * self.bias)


SURFACE_WEIGHT = 0.25
SURFACE_CLIP = 3.0


def kernel_inputs(embedding: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Text vectors as they are; surface columns standardised, clipped, weighed."""
    surface = np.clip((embedding[:, -N_SURFACE:] - mean) / scale, -SURFACE_CLIP, SURFACE_CLIP)
    return np.concatenate([embedding[:, :-N_SURFACE], SURFACE_WEIGHT * surface], axis=1)


def similarities(x: np.ndarray, landmarks: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |x - c|^2), (n_prompts, n_landmarks)."""
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ landmarks.T + (landmarks**2).sum(axis=1)
    return np.asarray(np.exp(-gamma * np.maximum(squared, 0)))


@dataclass(frozen=True)
class KernelBasis:
    """Landmarks, fitted without outcomes, and the features of the training prompts on them."""

    mean: np.ndarray
    scale: np.ndarray
    landmarks: np.ndarray
    gamma: float
    whitening: np.ndarray

    @classmethod
    def fit(cls, embedding: np.ndarray, n_landmarks: int, seed: int) -> KernelBasis:
        """k-means centres as landmarks; the kernel's width is the spread of the prompts."""
        surface = embedding[:, -N_SURFACE:]
        mean, scale = surface.mean(axis=0), surface.std(axis=0) + 1e-6
        x = kernel_inputs(embedding, mean, scale).astype(np.float64)
        n_landmarks = min(n_landmarks, len(x) // 2)
        clusters = MiniBatchKMeans(n_landmarks, n_init=1, random_state=seed, batch_size=2048, max_iter=20).fit(x)
        gamma = 1.0 / max(float(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()), 1e-9)
        landmarks = clusters.cluster_centers_
        values, vectors = np.linalg.eigh(similarities(landmarks, landmarks, gamma))
        return cls(mean, scale, landmarks, gamma, vectors / np.sqrt(np.maximum(values, 1e-6)))

    def features(self, embedding: np.ndarray) -> np.ndarray:
        """Whitened similarities, (n_prompts, n_landmarks)."""
        x = kernel_inputs(embedding, self.mean, self.scale).astype(np.float64)
        return np.asarray(similarities(x, self.landmarks, self.gamma) @ self.whitening)

    def regress(self, features: np.ndarray, correct: np.ndarray) -> Kernel:
        """Ridge regression on the features; correct complete, (n_prompts, n_tiers)."""
        weights, bias = ridge(features, correct)
        return Kernel(self.mean, self.scale, self.landmarks, self.gamma, self.whitening @ weights, bias)


PENALTIES = np.geomspace(1e-2, 1e3, 16)


def ridge(features: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) of a ridge regression per contrast between tiers.

    Outcomes are rotated to their principal directions across tiers, and each direction gets the penalty
    with the smallest leave-one-out error (closed form, Hastie et al. 2009, section 7.10): what all tiers
    have in common is easy to learn, their differences need a much stronger penalty.
    """
    mean, offset = features.mean(axis=0), correct.mean(axis=0)
    x, y = features - mean, correct - offset
    _, directions = np.linalg.eigh(y.T @ y)
    targets = y @ directions
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    rotated = x @ vectors
    projections = rotated.T @ targets
    best = np.full(targets.shape[1], np.inf)
    weights = np.zeros((x.shape[1], targets.shape[1]))
    for penalty in PENALTIES:
        shrinkage = 1 / (values + penalty)
        coefficients = shrinkage[:, None] * projections
        leverage = (rotated**2) @ shrinkage + 1 / len(x)
        residuals = (targets - rotated @ coefficients) / (1 - np.minimum(leverage, 0.999))[:, None]
        error = (residuals**2).mean(axis=0)
        better = error < best
        best[better] = error[better]
        weights[:, better] = (vectors @ coefficients)[:, better]
    weights = weights @ directions.T
    return weights, offset - mean @ weights


# ---- trees -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContrastTrees:
    """LightGBM regressions on orthonormal contrasts between tiers: what they share, and their differences.

    Separately fitted heads have noise that does not cancel in their difference, and the difference decides.
    """

    forest: Forest
    contrasts: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(
        cls, embedding: np.ndarray, correct: np.ndarray, n_rounds: int, settings: dict[str, object]
    ) -> ContrastTrees:
        """correct: complete, (n_prompts, n_tiers)."""
        contrasts = shared_and_differences(correct.shape[1])
        offset = correct.mean(axis=0)
        targets = (correct - offset) @ contrasts
        parameters = {**settings, "objective": "regression", "boost_from_average": False}
        boosters = tuple(boost(embedding, target, parameters, n_rounds) for target in targets.T)
        return cls(Forest(boosters), contrasts, offset)

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), not confined to 0..1."""
        return np.asarray(self.forest.raw_scores(embedding) @ self.contrasts.T + self.offset)

    def add_to(self, graph: Graph, embedding: str, raw_scores: str, weight: float) -> str:
        """raw_scores @ contrasts' + offset."""
        return graph.affine(raw_scores, weight * self.contrasts.T, weight * self.offset)


def shared_and_differences(n_tiers: int) -> np.ndarray:
    """Orthonormal columns, the first of them constant, (n_tiers, n_tiers)."""
    basis = np.concatenate([np.ones((n_tiers, 1)), np.eye(n_tiers)[:, : n_tiers - 1]], axis=1)
    return np.linalg.qr(basis)[0]


@dataclass(frozen=True)
class CheapestCorrect:
    """The LightGBM classifier on the cheapest-correct label, its probabilities calibrated to success.

    P(tier k is the cheapest correct one) is no success probability; a logistic regression per tier
    over the logarithms of all class probabilities makes it one.
    """

    forest: Forest
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct)."""
        return sigmoid(log_probabilities(self.forest.raw_scores(embedding)) @ self.weights + self.bias)

    def add_to(self, graph: Graph, embedding: str, raw_scores: str, weight: float) -> str:
        """sigmoid(max(logsoftmax(raw_scores), log(floor)) @ weights + bias)."""
        floor = graph.constant(np.log(LOWEST_CLASS_PROBABILITY))
        floored = graph.add("Max", graph.add("LogSoftmax", raw_scores, axis=1), floor)
        success = graph.add("Sigmoid", graph.affine(floored, self.weights, self.bias))
        return graph.add("Mul", success, graph.constant(weight))


def fit_label_classifier(
    embedding: np.ndarray, classes: np.ndarray, n_classes: int, n_rounds: int, settings: dict[str, object]
) -> Forest:
    """LightGBM on the label; classes: int in 0 .. n_classes - 1, (n_prompts,)."""
    parameters = {**settings, "objective": "multiclass", "num_class": n_classes}
    return Forest((boost(embedding, classes, parameters, n_rounds),))


def log_probabilities(raw_scores: np.ndarray) -> np.ndarray:
    """Logarithms of the class probabilities, floored."""
    scores = np.exp(raw_scores - raw_scores.max(axis=1, keepdims=True))
    return np.asarray(np.log(np.maximum(scores / scores.sum(axis=1, keepdims=True), LOWEST_CLASS_PROBABILITY)))


def logistic_per_tier(features: np.ndarray, correct: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,); correct may have gaps (NaN) and lie between 0 and 1."""
    weights = np.zeros((features.shape[1], correct.shape[1]))
    bias = np.zeros(correct.shape[1])
    for tier in range(correct.shape[1]):
        seen = np.isfinite(correct[:, tier])
        share = correct[seen, tier]
        x = np.concatenate([features[seen], features[seen]])
        y = np.repeat([1, 0], seen.sum())
        weight = np.concatenate([share, 1 - share])
        if weight[y == 1].sum() == 0 or weight[y == 0].sum() == 0:
            bias[tier] = logit(np.array((share.sum() + 0.5) / (len(share) + 1)))
            continue
        model = LogisticRegression(C=strength, max_iter=1000).fit(x[weight > 0], y[weight > 0], weight[weight > 0])
        weights[:, tier], bias[tier] = model.coef_[0], model.intercept_[0]
    return weights, bias


def boost(embedding: np.ndarray, target: np.ndarray, parameters: dict[str, object], n_rounds: int) -> lightgbm.Booster:
    """A LightGBM booster on float32 features; one at a time, as LightGBM may crash where threads fit side by side."""
    shared = {name: parameters[name] for name in ("max_bin", "num_threads", "verbose")}
    with _ONE_FIT_AT_A_TIME:
        return lightgbm.train(parameters, lightgbm.Dataset(embedding, target, params=shared), n_rounds)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p))."""
    return np.asarray(np.log(p / (1 - p)))
