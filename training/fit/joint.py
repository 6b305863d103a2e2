"""How tiers fail together: the joint success of all tiers on a prompt, with every tier's own estimate kept.

One latent normal difficulty per prompt: a tier is right where its threshold, set by its estimate, is above a mixture of
the shared difficulty and noise of its own (the one-factor normal copula; Vasicek 1987, Li 2000). So a tier that failed
says that the prompt is hard, and the next tier's chance falls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.special import ndtr, ndtri

N_NODES = 9
"""Gauss-Hermite nodes for the difficulty; more change no probability by 0.002."""

N_CELLS = 64
"""The table of a tier has so many cells from estimate 0 to estimate 1. Within a cell the table is linear, which keeps
the tier's own estimate exactly."""

LOADINGS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0)
"""How much of a tier's success hangs on the shared difficulty; 0: nothing, the tier fails on its own."""

SHRINKAGE = 2.0
"""Log likelihood that a tier's own loading must gain for each step away from the loading of all tiers."""

MIN_PROMPTS = 30
"""With fewer prompts that two tiers answered, tiers are taken to fail on their own."""

_HALVINGS = 50
_LEAST = 1e-9


@dataclass(frozen=True)
class JointModel:
    """P(each set of tiers is right), given every tier's own estimate.

    loadings: (n_tiers,). gain: log likelihood per prompt above that of tiers that fail on their own, in nats, on the
    prompts it was fitted on. n_prompts: prompts with the outcomes of two tiers or more.
    """

    loadings: np.ndarray
    gain: float
    n_prompts: int

    @classmethod
    def fit(cls, success: np.ndarray, correct: np.ndarray) -> JointModel:
        """Find the loadings by maximum likelihood: one for all tiers, then each tier's own, shrunk towards that one.

        success: estimates that did not see these prompts, (n_prompts, n_tiers). correct: 0..1, NaN where a tier was not
        asked; an outcome of 0.5 and more counts as right.
        """
        rows = np.isfinite(correct).sum(axis=1) >= 2
        success, correct = success[rows], correct[rows]
        n_prompts, n_tiers = success.shape
        if n_prompts < MIN_PROMPTS:
            return cls(loadings=np.zeros(n_tiers), gain=0.0, n_prompts=n_prompts)
        logs = np.stack([_log_of_outcome(loading, success, correct) for loading in LOADINGS])  # (L, n, K, Q)
        shared = [_log_likelihood(each) for each in logs]
        start = int(np.argmax(shared))
        chosen = np.full(n_tiers, start)
        for _ in range(2):
            for tier in range(n_tiers):
                found = []
                for candidate in range(len(LOADINGS)):
                    trial = np.where(np.arange(n_tiers) == tier, candidate, chosen)
                    likelihood = _log_likelihood(logs[trial, :, np.arange(n_tiers)].transpose(1, 0, 2))
                    found.append(likelihood - SHRINKAGE * abs(candidate - start))
                chosen[tier] = int(np.argmax(found))
        best = _log_likelihood(logs[chosen, :, np.arange(n_tiers)].transpose(1, 0, 2))
        return cls(loadings=np.array(LOADINGS)[chosen], gain=(best - shared[0]) / n_prompts, n_prompts=n_prompts)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return len(self.loadings)

    @property
    def weights(self) -> np.ndarray:
        """Of the nodes, (N_NODES,); they add up to 1."""
        return _nodes()[1]

    @cached_property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """P(wrong) and P(right) at each node where a cell begins, and how much they change over the cell.

        Both (n_tiers, N_CELLS, 2, N_NODES).
        """
        right = np.stack([_table(float(loading)) for loading in self.loadings])  # (K, N_CELLS + 1, Q)
        both = np.stack([1 - right, right], axis=2)
        return both[:, :-1], np.diff(both, axis=1)

    def at_nodes(self, success: np.ndarray) -> np.ndarray:
        """P(right) of each tier at each node, (n_prompts, n_tiers, N_NODES); the mean over the nodes is `success`."""
        tiers = zip(self.loadings.tolist(), success.T, strict=True)
        return np.stack([_interpolated(_table(loading), estimate) for loading, estimate in tiers], axis=1)

    def log_likelihood(self, success: np.ndarray, correct: np.ndarray) -> np.ndarray:
        """Of the observed outcomes of each prompt, in nats, (n_prompts,); arguments as for `fit`."""
        right = self.at_nodes(success)
        return _by_prompt(_log_of(right, correct))


@cache
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES)
    return nodes, weights / weights.sum()


@cache
def _table(loading: float) -> np.ndarray:
    """P(right) at each node for estimates 0, 1 / N_CELLS, ..., 1, (N_CELLS + 1, N_NODES).

    The threshold is found by bisection, so that the mean over the nodes is the estimate to rounding.
    """
    nodes, weights = _nodes()
    estimate = np.arange(N_CELLS + 1) / N_CELLS
    inner = estimate[1:-1]
    middle = ndtri(inner) * np.sqrt(1 + loading**2)
    low, high = middle - 5.0 - loading, middle + 5.0 + loading
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_low = ndtr(middle[:, None] + loading * nodes) @ weights < inner
        low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
    table = np.zeros((N_CELLS + 1, N_NODES))
    table[1:-1] = ndtr(((low + high) / 2)[:, None] + loading * nodes)
    table[-1] = 1.0
    return table


def _interpolated(table: np.ndarray, estimate: np.ndarray) -> np.ndarray:
    place = np.clip(estimate, 0, 1) * N_CELLS
    cell = np.minimum(place.astype(int), N_CELLS - 1)
    within = (place - cell)[:, None]
    return np.asarray(table[cell] * (1 - within) + table[cell + 1] * within)


def _log_of_outcome(loading: float, success: np.ndarray, correct: np.ndarray) -> np.ndarray:
    right = np.stack([_interpolated(_table(loading), estimate) for estimate in success.T], axis=1)
    return _log_of(right, correct)


def _log_of(right: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Log probability of each outcome at each node, 0 where there is none; (n_prompts, n_tiers, N_NODES)."""
    was_right = (correct >= 0.5)[:, :, None]
    log = np.log(np.maximum(np.where(was_right, right, 1 - right), _LEAST))
    return np.where(np.isfinite(correct)[:, :, None], log, 0.0)


def _by_prompt(log: np.ndarray) -> np.ndarray:
    total = log.sum(axis=1)
    highest = total.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(total - highest) @ _nodes()[1]) + highest[:, 0])


def _log_likelihood(log: np.ndarray) -> float:
    return float(_by_prompt(log).sum())
