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

PRIOR_PROMPTS = 30.0
"""What holds the slope of a tier's logarithm at 1, in prompts."""

_LARGEST_SLOPE = 1.5
_N_STEPS = 30  # of Newton's method; it takes about five


@dataclass(frozen=True)
class LengthModel:
    """Expected output tokens per tier: exp of a kernel regression on the logarithm, calibrated out of fold.

    regression: of the logarithm, times a slope (see `calibrating_slope`), one target per tier; 0 for a tier without
        logged output tokens.
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
            slope = calibrating_slope(predicted[logged], tokens[logged])
            kernel = basis.regress(features, logarithm, weight)
            kernels[tier] = Kernel(basis, slope * kernel.weights, slope * kernel.bias)
            scale[tier] = tokens[logged].mean() / np.exp(slope * predicted[logged]).mean()
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


def calibrating_slope(predicted: np.ndarray, tokens: np.ndarray) -> float:
    """The slope b for which tokens are best explained by a constant x exp(b x predicted), from 0 to 1.5.

    predicted: the logarithm, out of fold; tokens: above 0; both (n_prompts,). The mean of a length is not exp of the
    mean of its logarithm: where short answers are now and then long, exp makes them look cheaper than they are, and
    the tier that looks cheapest is then one that is not (winner's curse). This is Poisson regression, of which only the
    equations for the means matter (quasi-likelihood, Wedderburn 1974), with a prior of PRIOR_PROMPTS that holds b at 1.
    """
    x, slope = predicted - predicted.mean(), 1.0
    prior = PRIOR_PROMPTS * x.var()
    for _ in range(_N_STEPS):
        expected = np.exp(slope * x)
        expected *= len(tokens) / expected.sum()  # in units of the mean length
        centred = x - (expected @ x) / len(x)
        gradient = (tokens / tokens.mean() - expected) @ centred - prior * (slope - 1)
        step = gradient / max(expected @ centred**2 + prior, 1e-12)
        slope = float(np.clip(slope + np.clip(step, -0.5, 0.5), 0.0, _LARGEST_SLOPE))
        if abs(step) < 1e-6:
            break
    return slope
