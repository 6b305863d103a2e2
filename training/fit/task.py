"""What success is learned from: embeddings, outcomes with their gaps, and the folds of cross-fitting."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from training.encoders.encoder import N_SURFACE
from training.fit.calibrate import doubly_robust
from training.fit.cross_fit import folds_of
from training.fit.gaps import gap_weights, with_gaps_filled
from training.fit.kernel import Kernel, KernelBasis
from training.fit.ridge import ridge_on_cells
from training.log.labels import UNKNOWN, label_cheapest_correct
from training.log.sample import evenly
from training.log.table import is_partial

N_LANDMARKS = 300
MAX_KERNEL_PROMPTS = 100_000

MAX_FIT_WEIGHT = 3.0
"""Of an outcome of partial feedback in a fit, at most. A smaller propensity would add more noise than it removes bias:
benchmarks/partial_feedback.md."""


@dataclass(frozen=True)
class Task:
    """All that kernel and classifier are fitted on.

    embedding: float32 (n_prompts, n_dims). observed: outcomes 0..1, (n_prompts, n_tiers), NaN where not observed.
    propensity: complete, same shape, for partial feedback; else None. label: the cheapest correct tier or UNKNOWN,
    (n_prompts,). folds: (n_prompts,). seed: of LightGBM.
    """

    embedding: np.ndarray
    observed: np.ndarray
    propensity: np.ndarray | None
    label: np.ndarray
    folds: np.ndarray
    basis: KernelBasis
    seed: int
    _first_estimates: dict[bytes, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def prepare(
        cls,
        embedding: np.ndarray,
        correct: np.ndarray,
        cost_usd: np.ndarray,
        groups: np.ndarray,
        seed: int,
        propensity: np.ndarray,
        *,
        n_landmarks: int = N_LANDMARKS,
        n_surface: int = N_SURFACE,
    ) -> Task:
        """Place landmarks, label prompts, make folds; raises LogError where all prompts are of one group."""
        return cls(
            embedding=embedding,
            observed=correct,
            propensity=propensity if is_partial(correct) else None,
            label=label_cheapest_correct(correct, cost_usd),
            folds=folds_of(groups, seed),
            basis=KernelBasis.fit(embedding, n_landmarks, seed, n_surface),
            seed=seed,
        )

    @property
    def n_labelled(self) -> int:
        """Prompts whose cheapest correct tier is known, or that no tier answers correctly."""
        return int((self.label != UNKNOWN).sum())

    @cached_property
    def kernel_rows(self) -> np.ndarray:
        """The prompts that the kernel is fitted on, a mask: all, or a random MAX_KERNEL_PROMPTS of them."""
        rows = np.random.default_rng(0).permutation(len(self.folds))[:MAX_KERNEL_PROMPTS]
        sampled = np.zeros(len(self.folds), dtype=bool)
        sampled[rows] = True
        return sampled

    @cached_property
    def _features(self) -> np.ndarray:
        """Of all prompts, (n_prompts, n_landmarks)."""
        return self.basis.features(self.embedding)

    def features(self, rows: np.ndarray) -> np.ndarray:
        """Whitened similarities of some prompts (a mask) to the landmarks, (n_rows, n_landmarks).

        They take four times the memory of the embeddings: of a large log, ask for `a_few` of its prompts only.
        """
        if len(self.embedding) <= MAX_KERNEL_PROMPTS:
            return np.asarray(self._features[rows])
        return np.asarray(self.basis.features(self.embedding[rows]))

    @cached_property
    def _shares(self) -> np.ndarray:
        """Of all prompts, (n_prompts, n_landmarks)."""
        return self.basis.shares(self.embedding)

    def shares(self, rows: np.ndarray) -> np.ndarray:
        """How some prompts (a mask) are shared out to the landmarks, (n_rows, n_landmarks); as large as `features`."""
        if len(self.embedding) <= MAX_KERNEL_PROMPTS:
            return np.asarray(self._shares[rows])
        return self.basis.shares(self.embedding[rows])

    def a_few(self, rows: np.ndarray) -> np.ndarray:
        """At most MAX_KERNEL_PROMPTS of some prompts; both masks."""
        chosen = np.zeros(len(rows), dtype=bool)
        among = np.flatnonzero(rows)
        chosen[among[evenly(len(among), MAX_KERNEL_PROMPTS)]] = True
        return chosen

    def linear(self, rows: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Features of some prompts (a mask) @ weights + bias, (n_rows, n_targets)."""
        if len(self.embedding) <= MAX_KERNEL_PROMPTS:
            return np.asarray(self.features(rows) @ weights + bias)
        return Kernel(self.basis, self.basis.whitening @ weights, bias).predict(self.embedding[rows])

    def complete_outcomes(self, rows: np.ndarray) -> np.ndarray:
        """Outcomes of some prompts (a mask), (n_rows, n_tiers), without gaps; from what these prompts show alone.

        Gaps are filled from the observed tiers. Outcomes of partial feedback are made doubly robust instead.
        """
        if self.propensity is not None:
            return self._robust(rows, np.maximum(self.propensity, 1 / MAX_FIT_WEIGHT))
        observed = np.asarray(self.observed[rows])
        if np.isfinite(observed).all():
            return observed
        few = self.a_few(rows)
        return with_gaps_filled(observed, self.linear(rows, *gap_weights(self.observed[few], self.features(few))))

    def _robust(self, rows: np.ndarray, propensity: np.ndarray) -> np.ndarray:
        """Doubly robust outcomes of these prompts, from estimates that are cross-fitted over their folds."""
        success = np.empty(self.observed.shape)
        for fold in np.unique(self.folds[rows]):
            held_out = rows & (self.folds == fold)
            others = rows & (self.folds != fold)
            train = others if others.any() else held_out
            key = train.tobytes()  # two folds left out are the same two in either order
            if key not in self._first_estimates:
                few = self.a_few(train)
                self._first_estimates[key] = ridge_on_cells(self.features(few), self.observed[few], 1 / propensity[few])
            success[held_out] = np.clip(self.linear(held_out, *self._first_estimates[key]), 0, 1)
        return doubly_robust(success[rows], self.observed[rows], propensity[rows])
