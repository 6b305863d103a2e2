"""How much a prompt is like those trained on, and what is estimated for one that is not.

A prompt is compared with its nearest landmark, the one with the largest similarity. All but a stated share of prompts
like the log's reach a threshold. Below it the estimates are drawn towards the tiers' means, the more the farther.
Leverage in the kernel's space (its Nyström residual) separates no better on the whole, and would cost a second matrix
product in every decision: benchmarks/out_of_distribution.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.calibrate import LOWEST_SUCCESS
from training.fit.kernel import KernelBasis, squared_distances
from training.graph.builder import Graph

FALSE_ALARM_RATE = 0.01
"""Share of prompts like the log's whose estimates are drawn towards the means."""

MAX_PLACED_PROMPTS = 20_000
"""Prompts that the threshold is learned from, at most: its own error is then a tenth of the rate."""


@dataclass(frozen=True)
class Familiarity:
    """Success is familiarity x estimate + (1 - familiarity) x mean; familiarity is 1 up to the threshold.

    threshold: similarity to the nearest landmark, in (0, 1], at or above which a prompt counts as familiar.
    means: success of each tier over the training prompts, (n_tiers,).
    """

    basis: KernelBasis
    threshold: float
    means: np.ndarray

    def of(self, embedding: np.ndarray) -> np.ndarray:
        """Min(1, similarity to the nearest landmark / threshold), (n_prompts,)."""
        return relative_to(self.threshold, self.basis.similarities(embedding).max(axis=1))

    def shrink(self, success: np.ndarray, familiarity: np.ndarray) -> np.ndarray:
        """Estimates drawn towards the means, (n_prompts, n_tiers); where familiarity is 1, exactly as they were."""
        return np.asarray(familiarity[:, None] * success + (1 - familiarity)[:, None] * self.means)

    def add_to(self, graph: Graph, embedding: str, success: str) -> str:
        """Outputs `familiarity` (n) and `success`, from what the estimates were before.

        Returns the name of the similarities to the landmarks, (n, n_landmarks).
        """
        similarity = self.basis.add_to(graph, embedding)
        nearest = graph.add("ReduceMax", similarity, axes=[1], keepdims=1)
        familiarity = graph.add("HardSigmoid", nearest, alpha=1 / self.threshold, beta=0.0)
        graph.add("Squeeze", familiarity, graph.constant([1], np.int64), output="familiarity")
        unfamiliarity = graph.add("Sub", graph.constant(1.0), familiarity)
        kept = graph.add("Mul", success, familiarity)
        graph.add("Gemm", unfamiliarity, graph.constant(self.means[None]), kept, output="success")
        return similarity


def fit_familiarity(
    basis: KernelBasis, embedding: np.ndarray, folds: np.ndarray, success: np.ndarray, seed: int
) -> tuple[Familiarity, np.ndarray]:
    """The threshold from training prompts, and the familiarity of each by landmarks that it had no part in.

    folds: of each prompt, (n_prompts,); landmarks are placed on the other folds for each. success: calibrated, out of
    fold, (n_prompts, n_tiers); its means stand in for estimates of prompts unlike the log's.

    With n prompts the threshold is the (1 - FALSE_ALARM_RATE)(n + 1)-th smallest distance (split conformal, Vovk et
    al. 2005), so that of prompts like the log's at most this share is expected beyond it. Below 99 prompts it is the
    largest distance, and that share 1 / (n + 1).
    """
    chosen = np.random.default_rng(seed).permutation(len(embedding))[:MAX_PLACED_PROMPTS]
    sampled = np.zeros(len(embedding), dtype=bool)
    sampled[chosen] = True
    distance = np.empty(len(embedding))
    for fold in np.unique(folds):
        held_out = folds == fold
        others = KernelBasis.fit(embedding[~held_out & sampled], len(basis.landmarks), seed, basis.n_surface)
        distance[held_out] = squared_distances(others.inputs(embedding[held_out]), others.landmarks).min(axis=1)
    similarity = np.exp(-basis.gamma * distance)
    among = np.sort(distance[sampled])
    rank = min(len(among), int(np.ceil((1 - FALSE_ALARM_RATE) * (len(among) + 1))))
    threshold = float(np.exp(-basis.gamma * among[rank - 1]))
    means = np.clip(success.mean(axis=0), LOWEST_SUCCESS, 1 - LOWEST_SUCCESS)
    return Familiarity(basis, threshold, means), relative_to(threshold, similarity)


def relative_to(threshold: float, similarity: np.ndarray) -> np.ndarray:
    """Min(1, similarity / threshold)."""
    return np.asarray(np.minimum(1.0, similarity / threshold))
