"""What tiers achieved near a prompt: rates at the landmarks, averaged over those that the prompt is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.kernel import KernelBasis
from training.graph.builder import Graph
from training.graph.readout import Readout

LOCAL_TRUST = 1000
"""Prompts at which the local rates have half of their final weight in the average, which is one half."""

PRIOR_PROMPTS = 5.0
"""So many prompts of average outcome stand at each landmark before any training prompt does."""


@dataclass(frozen=True)
class LocalRates:
    """The rate of correct answers near a prompt (Nadaraya 1964, Watson 1964), by way of the kernel's landmarks.

    Where the kernel regression is smooth and sees the whole log, this is local, as kNN and clusters are: where tiers
    differ from one kind of prompt to the next, it follows. It costs one more matrix product at run time.

    rates: success of each tier at each landmark, (n_landmarks, n_tiers).
    """

    basis: KernelBasis
    rates: np.ndarray

    @classmethod
    def fit(cls, basis: KernelBasis, shares: np.ndarray, correct: np.ndarray) -> LocalRates:
        """shares: of `KernelBasis.shares`, (n_prompts, n_landmarks). correct: complete, (n_prompts, n_tiers)."""
        near = shares.T @ correct + PRIOR_PROMPTS * correct.mean(axis=0)
        return cls(basis, near / (shares.sum(axis=0) + PRIOR_PROMPTS)[:, None])

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """P(correct), (n_prompts, n_tiers)."""
        return np.asarray(self.basis.shares(embedding) @ self.rates)

    def add_to(self, graph: Graph, embedding: str) -> Readout:
        """Shares @ rates."""
        return Readout(self.basis.add_shares_to(graph, embedding), self.rates, np.zeros(self.rates.shape[1]))


def weight_of_local(n_prompts: int) -> float:
    """Their share in the average with kernel and classifier, from 0 to one half; it grows with the prompts."""
    return 0.5 * n_prompts / (n_prompts + LOCAL_TRUST)
