"""Groups of like training prompts, so that a decision can name what speaks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

from router.bundle.clusters import Cluster
from training.fit.kernel import KernelBasis
from training.graph.builder import Graph
from training.log.table import OutcomeTable

PROMPTS_PER_CLUSTER = 100
"""On average: enough that a share of correct answers means something."""

MAX_CLUSTERS = 60
N_EXAMPLES = 3
MAX_EXAMPLE_CHARS = 160
MAX_SEGMENTS = 3
_CHUNK = 50_000


@dataclass(frozen=True)
class PromptClusters:
    """The cluster of a prompt is that of the kernel's landmark nearest to it.

    of_landmark: int (n_landmarks,). members: of the training prompts, cluster by cluster.
    """

    basis: KernelBasis
    of_landmark: np.ndarray
    members: tuple[Cluster, ...]

    @classmethod
    def fit(
        cls,
        basis: KernelBasis,
        embedding: np.ndarray,
        log: OutcomeTable,
        outcomes: np.ndarray,
        seed: int,
        *,
        keep_examples: bool = False,
    ) -> PromptClusters:
        """k-means of the landmarks, each as heavy as the training prompts nearest to it.

        embedding: of the log's prompts, (n_prompts, n_dims). outcomes: what tiers are judged by, (n_prompts, n_tiers),
        NaN where nothing is known: those of the log, or doubly robust ones. keep_examples: take some texts along.
        """
        nearest, similarity = _nearest(basis, embedding)
        weight = np.bincount(nearest, minlength=len(basis.landmarks)).astype(float)
        n_clusters = int(np.clip(len(embedding) // PROMPTS_PER_CLUSTER, 1, min(MAX_CLUSTERS, (weight > 0).sum())))
        found = KMeans(n_clusters, n_init=5, random_state=seed).fit(basis.landmarks, sample_weight=weight)
        # Only clusters that have a prompt: a landmark that has none goes to the nearest of them.
        numbers = np.unique(found.labels_[nearest])
        distance = ((basis.landmarks[:, None] - found.cluster_centers_[numbers]) ** 2).sum(axis=2)
        of_landmark = np.where(
            np.isin(found.labels_, numbers), np.searchsorted(numbers, found.labels_), distance.argmin(axis=1)
        )
        cluster_of = of_landmark[nearest]
        members = []
        for number in range(len(numbers)):
            rows = np.flatnonzero(cluster_of == number)
            known = np.isfinite(outcomes[rows])
            share = np.clip(np.nansum(outcomes[rows], axis=0) / np.maximum(known.sum(axis=0), 1), 0, 1)
            n_outcomes = np.isfinite(log.correct[rows]).sum(axis=0)
            asked = np.flatnonzero(n_outcomes)
            members.append(
                Cluster(
                    number=number,
                    n_prompts=len(rows),
                    success={log.tiers[k]: float(share[k]) for k in asked},
                    n_outcomes={log.tiers[k]: int(n_outcomes[k]) for k in asked},
                    segments=_shares(log.segments[rows]),
                    examples=_examples(rows, nearest, similarity, weight, log.prompts) if keep_examples else (),
                )
            )
        return cls(basis, of_landmark, tuple(members))

    def nearest(self, embedding: np.ndarray, tolerance: float = 0.0) -> list[set[int]]:
        """Number of the cluster of each prompt; several where similarities differ by no more than the tolerance."""
        similarity = self.basis.similarities(embedding)
        is_nearest = similarity >= similarity.max(axis=1, keepdims=True) - tolerance
        return [set(self.of_landmark[row].tolist()) for row in is_nearest]

    def add_to(self, graph: Graph, similarity: str) -> None:
        """Output `cluster` (n) from the similarities to the landmarks, (n, n_landmarks)."""
        nearest = graph.add("ArgMax", similarity, axis=1, keepdims=0)
        graph.add("Gather", graph.constant(self.of_landmark, np.int64), nearest, output="cluster")


def _nearest(basis: KernelBasis, embedding: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The landmark nearest to each prompt, and the similarity to it, (n_prompts,) each."""
    at, value = np.empty(len(embedding), int), np.empty(len(embedding))
    for start in range(0, len(embedding), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similarity = basis.similarities(embedding[rows])
        at[rows], value[rows] = similarity.argmax(axis=1), similarity.max(axis=1)
    return at, value


def _shares(segments: np.ndarray) -> dict[str, float]:
    """The largest segments, without those that have no name."""
    names, sizes = np.unique(segments, return_counts=True)
    largest = [at for at in np.argsort(-sizes, kind="stable") if names[at]][:MAX_SEGMENTS]
    return {str(names[at]): float(sizes[at] / len(segments)) for at in largest}


def _examples(
    rows: np.ndarray, nearest: np.ndarray, similarity: np.ndarray, weight: np.ndarray, prompts: Sequence[str]
) -> tuple[str, ...]:
    """The prompts closest to the landmarks that most prompts of the cluster are near to, one of each."""
    landmarks = np.unique(nearest[rows])
    chosen = landmarks[np.argsort(-weight[landmarks], kind="stable")][:N_EXAMPLES]
    closest = [rows[nearest[rows] == landmark] for landmark in chosen]
    texts = [" ".join(prompts[at[similarity[at].argmax()]].split()) for at in closest]
    return tuple(t if len(t) <= MAX_EXAMPLE_CHARS else t[: MAX_EXAMPLE_CHARS - 3] + "..." for t in texts)
