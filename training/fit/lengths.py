"""Fit the length of each tier's answers: what a request costs depends on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.cross_fit import N_FOLDS
from training.fit.kernel import Kernel, KernelBasis
from training.fit.ridge import ridge
from training.graph.builder import Graph
from training.log.sample import evenly
from training.log.split import fold_numbers

MAX_LENGTH_PROMPTS = 50_000
"""More would say the logarithm of a length no better: its noise is in the answers."""

MIN_LOGGED = 60
"""Prompts with a logged length that a tier needs, or its length is its mean."""

UNLOGGED_WEIGHT = 0.02


@dataclass(frozen=True)
class LengthModel:
    """Expected output tokens per tier: exp of a kernel regression on the logarithm, scaled to the right mean.

    regression: of the logarithm, one target per tier; 0 for a tier without logged output tokens.
    scale: per tier; for a tier without logged output tokens the constant itself, (n_tiers,).
    """

    regression: Kernel
    scale: np.ndarray

    @classmethod
    def fit(
        cls,
        basis: KernelBasis,
        embedding: np.ndarray,
        output_tokens: np.ndarray,
        fallback: np.ndarray,
        groups: np.ndarray,
        seed: int,
    ) -> LengthModel:
        """output_tokens: (n_prompts, n_tiers), NaN where not logged; fallback: constant per tier, (n_tiers,).

        A prompt whose length is not logged counts a little, as one of the tier's typical length: where a whole kind
        of prompt lacks lengths, nothing is extrapolated from other kinds.
        """
        scale = fallback.astype(float).copy()
        kernels = [Kernel(basis, np.zeros((len(basis.landmarks), 1)), np.zeros(1)) for _ in scale]
        rows = evenly(len(embedding), MAX_LENGTH_PROMPTS)
        features = basis.features(embedding[rows])
        folds = fold_numbers(groups[rows], N_FOLDS, seed)
        for tier, tokens in enumerate(output_tokens[rows].T):
            logged = tokens > 0
            if logged.sum() < MIN_LOGGED:
                continue
            typical = np.log(tokens[logged]).mean()
            logarithm = np.where(logged, np.log(np.where(logged, tokens, 1.0)), typical)[:, None]
            weight = np.where(logged, 1.0, UNLOGGED_WEIGHT)
            predicted = np.full(len(tokens), typical)
            for fold in range(N_FOLDS):
                held_out = folds == fold
                if (logged & ~held_out).any():
                    weights, bias = ridge(features[~held_out], logarithm[~held_out], weight[~held_out])
                    predicted[held_out] = (features[held_out] @ weights + bias)[:, 0]
            kernels[tier] = basis.regress(features, logarithm, weight)
            scale[tier] = tokens[logged].mean() / np.exp(predicted[logged]).mean()  # Duan's smearing, a ratio of means
        weights = np.concatenate([kernel.weights for kernel in kernels], axis=1)
        return cls(Kernel(basis, weights, np.concatenate([kernel.bias for kernel in kernels])), scale)

    def predict(self, embedding: np.ndarray) -> np.ndarray:
        """Expected output tokens, (n_prompts, n_tiers)."""
        return np.asarray(self.scale * np.exp(self.regression.predict(embedding)))

    def add_to(self, graph: Graph, embedding: str, output: str | None = None) -> str:
        """exp(regression + log(scale)); output: its name in the graph, None for any."""
        readout = self.regression.add_to(graph, embedding)
        logarithm = graph.affine(readout.value, readout.weights, readout.bias + np.log(self.scale))
        return graph.add("Exp", logarithm, output=output)
