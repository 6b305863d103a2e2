"""Kernel regression on landmarks: smooth where kNN is rough, and one matrix product at run time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from training.encoders.encoder import N_SURFACE
from training.fit.ridge import ridge
from training.graph.builder import Graph
from training.graph.readout import Readout
from training.log.sample import evenly

MAX_LANDMARK_PROMPTS = 100_000
"""A few hundred centres and a mean distance are no better known from more prompts."""

SURFACE_WEIGHT = 0.25
SURFACE_CLIP = 3.0

SHARPNESS = 8.0
"""A prompt's share of a landmark falls so many times faster with the distance than its similarity does."""

_CHUNK_PROMPTS = 50_000
"""So many prompts at once are compared with all landmarks."""


@dataclass(frozen=True)
class Kernel:
    """Gaussian kernel ridge regression on landmarks (Nyström method, Williams & Seeger 2001).

    Smooth where kNN is rough: it borrows from all similar prompts, and costs one matrix product.

    weights: of the similarities to the landmarks, (n_landmarks, n_targets); bias: (n_targets,).
    """

    basis: KernelBasis
    weights: np.ndarray
    bias: np.ndarray

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), not confined to 0..1; or whatever else was regressed on, (n_prompts, n_targets)."""
        parts = np.array_split(embedding, max(1, -(-len(embedding) // _CHUNK_PROMPTS)))
        return np.concatenate([self.basis.similarities(part) @ self.weights + self.bias for part in parts])

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """Similarities @ weights + bias."""
        return Readout(self.basis.add_to(graph, embedding), self.weights, self.bias)


@dataclass(frozen=True)
class KernelBasis:
    """Landmarks, fitted without outcomes; every regression on them shares the similarities of a prompt to them.

    The surface columns (token kinds, length), the last of an embedding, are standardised by mean and scale, clipped and
    weighed small. mean, scale: (n_surface,).
    """

    mean: np.ndarray
    scale: np.ndarray
    landmarks: np.ndarray
    gamma: float
    whitening: np.ndarray

    @classmethod
    def fit(cls, embedding: np.ndarray, n_landmarks: int, seed: int, n_surface: int = N_SURFACE) -> KernelBasis:
        """k-means centres as landmarks; the kernel's width is the spread of the prompts.

        n_landmarks: at most half as many as there are prompts are placed. n_surface: how many columns at the end of an
        embedding are surface columns.
        """
        embedding = embedding[evenly(len(embedding), MAX_LANDMARK_PROMPTS)]
        surface = embedding[:, embedding.shape[1] - n_surface :]
        mean, scale = surface.mean(axis=0), surface.std(axis=0) + 1e-6
        x = kernel_inputs(embedding, mean, scale).astype(np.float64)
        n_landmarks = max(1, min(n_landmarks, len(x) // 2))
        clusters = MiniBatchKMeans(n_landmarks, n_init=1, random_state=seed, batch_size=2048, max_iter=20).fit(x)
        gamma = 1.0 / max(float(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()), 1e-9)
        landmarks = clusters.cluster_centers_
        values, vectors = np.linalg.eigh(similarities(landmarks, landmarks, gamma))
        return cls(mean, scale, landmarks, gamma, vectors / np.sqrt(np.maximum(values, 1e-6)))

    @property
    def n_surface(self) -> int:
        """How many columns at the end of an embedding are surface columns."""
        return len(self.mean)

    def inputs(self, embedding: np.ndarray) -> np.ndarray:
        """What distances are measured on, float64 (n_prompts, n_dims)."""
        return kernel_inputs(embedding, self.mean, self.scale).astype(np.float64)

    def similarities(self, embedding: np.ndarray) -> np.ndarray:
        """exp(-gamma |x - landmark|^2), float64 (n_prompts, n_landmarks)."""
        return similarities(self.inputs(embedding), self.landmarks, self.gamma)

    def features(self, embedding: np.ndarray) -> np.ndarray:
        """Whitened similarities, (n_prompts, n_landmarks)."""
        return np.asarray(self.similarities(embedding) @ self.whitening)

    def shares(self, embedding: np.ndarray) -> np.ndarray:
        """How a prompt is shared out to the landmarks near it, rows sum to 1, float32 (n_prompts, n_landmarks).

        In proportion to similarity^SHARPNESS.
        """
        parts = np.array_split(embedding, max(1, -(-len(embedding) // _CHUNK_PROMPTS)))
        return np.concatenate([self._shares(part) for part in parts])

    def _shares(self, embedding: np.ndarray) -> np.ndarray:
        distance = squared_distances(self.inputs(embedding), self.landmarks)
        closeness = np.exp(SHARPNESS * self.gamma * (distance.min(axis=1, keepdims=True) - distance))
        return np.asarray(closeness / closeness.sum(axis=1, keepdims=True), dtype=np.float32)

    def regress(self, features: np.ndarray, targets: np.ndarray, weight: np.ndarray | None = None) -> Kernel:
        """Ridge regression on the features; targets complete, (n_prompts, n_targets); weight: of each prompt."""
        weights, bias = ridge(features, targets, weight)
        return Kernel(self, self.whitening @ weights, bias)

    def add_to(self, graph: Graph, embedding: str) -> str:
        """Name of the similarities, (n, n_landmarks): one set of nodes, however many regressions read it."""
        return graph.once(self, lambda: self._similarities(graph, embedding))

    def add_shares_to(self, graph: Graph, embedding: str) -> str:
        """Name of the shares of the landmarks, (n, n_landmarks): what all of a prompt's logarithms share cancels."""
        _, closeness = self._inputs_and_closeness(graph, embedding)
        return graph.add("Softmax", graph.add("Mul", closeness, graph.constant(SHARPNESS)), axis=1)

    def _similarities(self, graph: Graph, embedding: str) -> str:
        """exp(2 x.c - |c|^2 - |x|^2), with x and the landmarks c scaled by sqrt(gamma)."""
        x, closeness = self._inputs_and_closeness(graph, embedding)
        squared = graph.add("ReduceSumSquare", x, axes=[1], keepdims=1)
        return graph.add("Exp", graph.add("Sub", closeness, squared))

    def _inputs_and_closeness(self, graph: Graph, embedding: str) -> tuple[str, str]:
        """Names of x and of 2 x.c - |c|^2, which are added once per graph."""
        x = graph.once(self.mean, lambda: self._inputs(graph, embedding))
        landmarks = np.sqrt(self.gamma) * self.landmarks
        closeness = graph.once(self.landmarks, lambda: graph.affine(x, 2 * landmarks.T, -(landmarks**2).sum(axis=1)))
        return x, closeness

    def _inputs(self, graph: Graph, embedding: str) -> str:
        n_text = self.landmarks.shape[1] - self.n_surface
        width = np.sqrt(self.gamma)
        scale = width * np.concatenate([np.ones(n_text), SURFACE_WEIGHT / self.scale])
        offset = np.concatenate([np.zeros(n_text), self.mean])
        limit = np.full(n_text + self.n_surface, np.finfo(np.float32).max)
        limit[n_text:] = width * SURFACE_WEIGHT * SURFACE_CLIP
        standard = graph.add("Scaler", embedding, offset=offset.tolist(), scale=scale.tolist())
        return graph.add("Max", graph.add("Min", standard, graph.constant(limit)), graph.constant(-limit))


def kernel_inputs(embedding: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Text vectors as they are; surface columns, the last, standardised, clipped, weighed. mean, scale: of these."""
    text, surface = np.split(embedding, [embedding.shape[1] - len(mean)], axis=1)
    return np.concatenate(
        [text, SURFACE_WEIGHT * np.clip((surface - mean) / scale, -SURFACE_CLIP, SURFACE_CLIP)], axis=1
    )


def squared_distances(x: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """|x - c|^2, (n_prompts, n_landmarks)."""
    squared = (x**2).sum(axis=1)[:, None] - 2 * x @ landmarks.T + (landmarks**2).sum(axis=1)
    return np.asarray(np.maximum(squared, 0))


def similarities(x: np.ndarray, landmarks: np.ndarray, gamma: float) -> np.ndarray:
    """exp(-gamma |x - c|^2), (n_prompts, n_landmarks)."""
    return np.asarray(np.exp(-gamma * squared_distances(x, landmarks)))
