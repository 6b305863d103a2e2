"""The parts of the success estimate; each predicts in numpy and writes itself into a graph.

Every part maps embeddings, float32 (n_prompts, n_dims), to P(tier answers correctly), (n_prompts, n_tiers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import lightgbm
import numpy as np
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression

from training.encoders.encoder import N_SURFACE
from training.graph.builder import Graph

_ONE_FIT_AT_A_TIME = Lock()

MAX_LANDMARK_PROMPTS = 100_000
"""A few hundred centres and a mean distance are no better known from more prompts."""

MAX_LOGISTIC_PROMPTS = 100_000
"""Of a handful of weights per tier; their error is then far below the noise of what they calibrate."""

_CHUNK_PROMPTS = 50_000
"""So many prompts at once are compared with all landmarks."""


def evenly(n: int, at_most: int) -> np.ndarray | slice:
    """Rows of n, spread evenly over them and at most so many; all of them where they are few."""
    return slice(None) if n <= at_most else np.arange(at_most) * n // at_most


@dataclass(frozen=True)
class Forest:
    """LightGBM boosters that the graph evaluates together, and where the raw scores of each begin."""

    boosters: tuple[lightgbm.Booster, ...] = field(repr=False)

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """Float64 (n_prompts, sum of the boosters' outputs)."""
        scores = [booster.predict(embedding, raw_score=True, num_threads=1) for booster in self.boosters]
        return np.concatenate([np.asarray(score).reshape(len(embedding), -1) for score in scores], axis=1)

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

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """Write all but its last linear step into a graph."""


@dataclass(frozen=True)
class Readout:
    """The last step of a part, which the graph sums over the parts: P(correct) = value @ weights + bias.

    value: name of a float32 (n, n_values) in the graph; weights: (n_values, n_tiers); bias: (n_tiers,).
    """

    value: str
    weights: np.ndarray
    bias: np.ndarray


# ---- kernel ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """Gaussian kernel ridge regression on landmarks (Nyström method, Williams & Seeger 2001).

    Smooth where kNN is rough: it borrows from all similar prompts, and costs one matrix product.

    weights: of the similarities to the landmarks, (n_landmarks, n_targets); bias: (n_targets,).
    """

    basis: KernelBasis
    weights: np.ndarray
    bias: np.ndarray

    @property
    def forest(self) -> Forest:
        """None: a kernel has no trees."""
        return Forest(())

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), not confined to 0..1; or whatever else was regressed on, (n_prompts, n_targets)."""
        parts = np.array_split(embedding, max(1, -(-len(embedding) // _CHUNK_PROMPTS)))
        return np.concatenate([self.basis.similarities(part) @ self.weights + self.bias for part in parts])

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """Similarities @ weights + bias; the graph leaves out a factor of each similarity, the weights take it."""
        value, factors = self.basis.add_to(graph, embedding)
        return Readout(value, factors[:, None] * self.weights, self.bias)


SURFACE_WEIGHT = 0.25
SURFACE_CLIP = 3.0


def kernel_inputs(embedding: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Text vectors as they are; surface columns standardised, clipped, weighed."""
    surface = np.clip((embedding[:, -N_SURFACE:] - mean) / scale, -SURFACE_CLIP, SURFACE_CLIP)
    return np.concatenate([embedding[:, :-N_SURFACE], SURFACE_WEIGHT * surface], axis=1)


def squared_distances(x: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """|x - c|^2, (n_prompts, n_landmarks)."""
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ landmarks.T + (landmarks**2).sum(axis=1)
    return np.asarray(np.maximum(squared, 0))


def similarities(x: np.ndarray, landmarks: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |x - c|^2), (n_prompts, n_landmarks)."""
    return np.asarray(np.exp(-gamma * squared_distances(x, landmarks)))


@dataclass(frozen=True)
class KernelBasis:
    """Landmarks, fitted without outcomes; every regression on them shares the similarities of a prompt to them.

    The surface columns (token kinds, length) are standardised by mean and scale, clipped and weighed small.
    """

    mean: np.ndarray
    scale: np.ndarray
    landmarks: np.ndarray
    gamma: float
    whitening: np.ndarray

    @classmethod
    def fit(cls, embedding: np.ndarray, n_landmarks: int, seed: int) -> KernelBasis:
        """k-means centres as landmarks; the kernel's width is the spread of the prompts."""
        embedding = embedding[evenly(len(embedding), MAX_LANDMARK_PROMPTS)]
        surface = embedding[:, -N_SURFACE:]
        mean, scale = surface.mean(axis=0), surface.std(axis=0) + 1e-6
        x = kernel_inputs(embedding, mean, scale).astype(np.float64)
        n_landmarks = min(n_landmarks, len(x) // 2)
        clusters = MiniBatchKMeans(n_landmarks, n_init=1, random_state=seed, batch_size=2048, max_iter=20).fit(x)
        gamma = 1.0 / max(float(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()), 1e-9)
        landmarks = clusters.cluster_centers_
        values, vectors = np.linalg.eigh(similarities(landmarks, landmarks, gamma))
        return cls(mean, scale, landmarks, gamma, vectors / np.sqrt(np.maximum(values, 1e-6)))

    def inputs(self, embedding: np.ndarray) -> np.ndarray:
        """What distances are measured on, float64 (n_prompts, n_dims)."""
        return kernel_inputs(embedding, self.mean, self.scale).astype(np.float64)

    def similarities(self, embedding: np.ndarray) -> np.ndarray:
        """exp(-gamma |x - landmark|^2), float64 (n_prompts, n_landmarks)."""
        return similarities(self.inputs(embedding), self.landmarks, self.gamma)

    def features(self, embedding: np.ndarray) -> np.ndarray:
        """Whitened similarities, (n_prompts, n_landmarks)."""
        return np.asarray(self.similarities(embedding) @ self.whitening)

    def regress(self, features: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None) -> Kernel:
        """Ridge regression on the features; targets complete, (n_prompts, n_targets); weight: of each prompt."""
        weights, bias = ridge(features, targets, weight)
        return Kernel(self, self.whitening @ weights, bias)

    def add_to(self, graph: Graph, embedding: str) -> tuple[str, np.ndarray]:
        """exp(2 x.c - |x|^2), with x and the landmarks c scaled by sqrt(gamma), and the missing factors exp(-|c|^2).

        One set of nodes, however many regressions read it.
        """
        width = np.sqrt(self.gamma)
        landmarks = width * self.landmarks
        return graph.once(self, lambda: self._exponentials(graph, embedding)), np.exp(-(landmarks**2).sum(axis=1))

    def _exponentials(self, graph: Graph, embedding: str) -> str:
        n_text = self.landmarks.shape[1] - N_SURFACE
        width = np.sqrt(self.gamma)
        scale = width * np.concatenate([np.ones(n_text), SURFACE_WEIGHT / self.scale])
        offset = np.concatenate([np.zeros(n_text), self.mean])
        limit = np.full(n_text + N_SURFACE, np.finfo(np.float32).max)
        limit[n_text:] = width * SURFACE_WEIGHT * SURFACE_CLIP
        standard = graph.add("Scaler", embedding, offset=offset.tolist(), scale=scale.tolist())
        x = graph.add("Max", graph.add("Min", standard, graph.constant(limit)), graph.constant(-limit))
        squared = graph.add("ReduceSumSquare", x, axes=[1], keepdims=1)
        cross = graph.constant(2 * width * self.landmarks.T)
        return graph.add("Exp", graph.add("Gemm", x, cross, squared, beta=-1.0))


PENALTIES = np.geomspace(1e-2, 1e3, 16)


def ridge(features: np.ndarray, correct: np.ndarray, weight: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) of a ridge regression per contrast between tiers.

    correct: complete, (n_prompts, n_tiers). weight: of each prompt, (n_prompts,); None weighs all alike.
    Outcomes are rotated to their principal directions across tiers, and each direction gets the penalty
    with the smallest leave-one-out error (closed form, Hastie et al. 2009, section 7.10): what all tiers
    have in common is easy to learn, their differences need a much stronger penalty.
    """
    share = np.full(len(features), 1 / len(features)) if weight is None else weight / weight.sum()
    mean, offset = share @ features, share @ correct
    root = np.sqrt(len(share) * share)[:, None]
    x, y = root * (features - mean), root * (correct - offset)
    _, directions = np.linalg.eigh(y.T @ y)
    targets = y @ directions
    values, vectors = np.linalg.eigh(x.T @ x)
    values = np.maximum(values, 0)
    rotated = x @ vectors
    squares = rotated**2
    projections = rotated.T @ targets
    best = np.full(targets.shape[1], np.inf)
    weights = np.zeros((x.shape[1], targets.shape[1]))
    for penalty in PENALTIES:
        shrinkage = 1 / (values + penalty)
        coefficients = shrinkage[:, None] * projections
        leverage = squares @ shrinkage + share
        residuals = (targets - rotated @ coefficients) / (1 - np.minimum(leverage, 0.999))[:, None]
        error = (residuals**2).mean(axis=0)
        better = error < best
        best[better] = error[better]
        weights[:, better] = (vectors @ coefficients)[:, better]
    weights = weights @ directions.T
    return weights, offset - mean @ weights


def ridge_on_cells(features: np.ndarray, correct: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,) where hardly any prompt has outcomes of two tiers.

    correct: (n_prompts, n_tiers), NaN where not observed; weight: of each outcome, same shape.

    A ridge regression on all outcomes, each less its tier's mean, learns what tiers have in common: how hard a
    prompt is. Another per tier learns from its own outcomes what remains. So the fewer outcomes a tier has, the
    more is its estimate its mean, moved by what other tiers say of such prompts; a tier without any has the mean
    of all outcomes for its own.
    """
    is_seen = np.isfinite(correct)
    w = np.where(is_seen, weight, 0.0)
    known = np.nan_to_num(correct)
    everywhere = (w * known).sum() / w.sum()
    effective = w * (w.sum(axis=0) / np.maximum((w**2).sum(axis=0), 1e-12))  # sums to Kish's effective sample size
    means = ((effective * known).sum(axis=0) + everywhere) / (effective.sum(axis=0) + 1)

    asked = is_seen.any(axis=1)
    total = w[asked].sum(axis=1)
    surprise = (w * (known - means))[asked].sum(axis=1) / total
    shared, shared_bias = ridge(features[asked], surprise[:, None], total)
    weights, bias = shared.repeat(len(means), axis=1), means + shared_bias
    remaining = known - features @ weights - bias
    for tier, seen in enumerate(is_seen.T):
        if seen.any():
            own, own_bias = ridge(features[seen], remaining[seen, tier, None], w[seen, tier])
            weights[:, tier] += own[:, 0]
            bias[tier] += own_bias[0] * effective[:, tier].sum() / (effective[:, tier].sum() + 1)
    return weights, bias


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
        return cls(Forest(boost_each(embedding, targets.T, parameters, n_rounds)), contrasts, offset)

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), not confined to 0..1."""
        return np.asarray(self.forest.raw_scores(embedding) @ self.contrasts.T + self.offset)

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """raw_scores @ contrasts' + offset."""
        return Readout(graph.trees(embedding, self.forest.boosters), self.contrasts.T, self.offset)


def shared_and_differences(n_tiers: int) -> np.ndarray:
    """Orthonormal columns, the first of them constant, (n_tiers, n_tiers)."""
    basis = np.concatenate([np.ones((n_tiers, 1)), np.eye(n_tiers)[:, : n_tiers - 1]], axis=1)
    return np.linalg.qr(basis)[0]


@dataclass(frozen=True)
class CheapestCorrect:
    """The LightGBM classifier on the cheapest-correct label, its probabilities calibrated to success.

    P(tier k is the cheapest correct one) is no success probability; a logistic regression per tier
    over the raw scores of all classes makes it one.
    """

    forest: Forest
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct)."""
        return sigmoid(self.forest.raw_scores(embedding) @ self.weights + self.bias)

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """sigmoid(raw_scores @ weights + bias)."""
        raw_scores = graph.trees(embedding, self.forest.boosters)
        success = graph.add("Sigmoid", graph.affine(raw_scores, self.weights, self.bias))
        n_tiers = len(self.bias)
        return Readout(success, np.eye(n_tiers), np.zeros(n_tiers))


def fit_label_classifier(
    embedding: np.ndarray, classes: np.ndarray, n_classes: int, n_rounds: int, settings: dict[str, object]
) -> Forest:
    """LightGBM on the label; classes: int in 0 .. n_classes - 1, (n_prompts,)."""
    parameters = {**settings, "objective": "multiclass", "num_class": n_classes}
    return Forest((boost(embedding, classes, parameters, n_rounds),))


def logistic_per_tier(features: np.ndarray, correct: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_features, n_tiers) and bias (n_tiers,); correct may have gaps (NaN) and lie between 0 and 1."""
    weights = np.zeros((features.shape[1], correct.shape[1]))
    bias = np.zeros(correct.shape[1])
    for tier in range(correct.shape[1]):
        seen = np.flatnonzero(np.isfinite(correct[:, tier]))
        seen = seen[evenly(len(seen), MAX_LOGISTIC_PROMPTS)]
        share = correct[seen, tier]
        x = np.concatenate([features[seen], features[seen]])
        y = np.repeat([1, 0], len(seen))
        weight = np.concatenate([share, 1 - share])
        if weight[y == 1].sum() == 0 or weight[y == 0].sum() == 0:
            bias[tier] = logit(np.array((share.sum() + 0.5) / (len(share) + 1)))
            continue
        model = LogisticRegression(C=strength, max_iter=1000).fit(x[weight > 0], y[weight > 0], weight[weight > 0])
        weights[:, tier], bias[tier] = model.coef_[0], model.intercept_[0]
    return weights, bias


def boost(embedding: np.ndarray, target: np.ndarray, parameters: dict[str, object], n_rounds: int) -> lightgbm.Booster:
    """A LightGBM booster on float32 features; target: (n_prompts,)."""
    return boost_each(embedding, target[None], parameters, n_rounds)[0]


def boost_each(
    embedding: np.ndarray, targets: np.ndarray, parameters: dict[str, object], n_rounds: int
) -> tuple[lightgbm.Booster, ...]:
    """A LightGBM booster per target on float32 features, which are put into bins once; targets: (n, n_prompts).

    One at a time, as LightGBM may crash where threads fit side by side.
    """
    shared = {name: parameters[name] for name in ("max_bin", "num_threads", "verbose")}
    boosters = []
    with _ONE_FIT_AT_A_TIME:
        data = lightgbm.Dataset(embedding, params=shared)
        for target in targets:
            boosters.append(lightgbm.train(parameters, data.set_label(target), n_rounds))
    return tuple(boosters)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return np.asarray(1 / (1 + np.exp(-x)))


def logit(p: np.ndarray) -> np.ndarray:
    """log(p / (1 - p))."""
    return np.asarray(np.log(p / (1 - p)))
