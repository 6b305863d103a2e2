"""What shared difficulty explains: a two-parameter item response model of the tiers, fitted to one outcome per cell.

P(tier k is right on a prompt of ease z) = sigmoid(slope_k z + intercept_k), z standard normal, outcomes independent
given z; marginal maximum likelihood (Bock & Aitkin 1981) on Gauss-Hermite nodes, with a weak prior on the parameters.
Two tiers share one slope, without which the model is not identified.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())
_PRIOR_SCALE = 3.0  # of slopes and intercepts, in log-odds: keeps tiers that are always right finite


@dataclass(frozen=True)
class Difficulty:
    """Success of each tier at each node of ease.

    success: (n_nodes, n_tiers). share: of prompts at each node, (n_nodes,), sums to 1.
    parameters: slopes and intercepts, from which a fit to a resample starts.
    """

    success: np.ndarray
    share: np.ndarray
    parameters: np.ndarray

    @property
    def ceiling(self) -> float:
        """Accuracy of asking the tier with the highest success at every ease: the most that knowing the ease gives."""
        return float(self.share @ self.success.max(axis=1))

    @property
    def lucky_oracle(self) -> float:
        """P(some tier is right) if outcomes are independent given the ease: the oracle's accuracy by luck alone."""
        return float(self.share @ (1 - np.prod(1 - self.success, axis=1)))

    def frontier(self, usd_per_request: np.ndarray) -> np.ndarray:
        """(USD per request, accuracy) of a router that knows the ease, a row per worth of an answer, (n_worths, 2)."""
        chosen = self._value(usd_per_request).argmax(axis=2)  # (n_worths, n_nodes)
        accuracy = self.success[np.arange(len(self.share)), chosen]
        return np.stack([usd_per_request[chosen] @ self.share, accuracy @ self.share], axis=1)

    def loss_without(self, usd_per_request: np.ndarray) -> np.ndarray:
        """What a router that knows the ease loses without each tier, at the worth where it loses most, (n_tiers,).

        In units of accuracy: the loss of worth x success - cost, divided by the worth.
        """
        value = self._value(usd_per_request)
        others = (np.delete(value, k, axis=2).max(axis=2) for k in range(value.shape[2]))
        return np.array([((value.max(axis=2) - without) @ self.share).max() for without in others])

    def _value(self, usd_per_request: np.ndarray) -> np.ndarray:
        """Success - cost / worth, (n_worths, n_nodes, n_tiers)."""
        worths = np.geomspace(1e-3, 1e6, 400) * max(float(usd_per_request.max()), 1e-12)
        return np.asarray(self.success - (usd_per_request / worths[:, None])[:, None, :])


def fit_difficulty(patterns: np.ndarray, counts: np.ndarray, start: np.ndarray | None = None) -> Difficulty:
    """Fit to distinct rows of right (1) and wrong (0), (n_patterns, n_tiers), and how often each occurs."""
    n_tiers = patterns.shape[1]
    if start is None:
        rate = np.clip(counts @ patterns / counts.sum(), 0.01, 0.99)
        start = np.concatenate([np.ones(1 if n_tiers == 2 else n_tiers), 1.2 * np.log(rate / (1 - rate))])

    def logits(parameters: np.ndarray) -> np.ndarray:
        return np.asarray(_NODES[:, None] * parameters[:-n_tiers] + parameters[-n_tiers:])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = logits(parameters)
        # log P(pattern, node): sum over tiers of y z - log(1 + exp z)
        joint = patterns @ z.T - np.logaddexp(0, z).sum(axis=1) + _LOG_WEIGHTS
        total = logsumexp(joint, axis=1)
        posterior = np.exp(joint - total[:, None]) * counts[:, None]
        slope_of_logit = posterior.T @ patterns - posterior.sum(axis=0)[:, None] * expit(z)  # (n_nodes, n_tiers)
        of_slopes = _NODES @ slope_of_logit
        if n_tiers == 2:
            of_slopes = of_slopes.sum(keepdims=True)
        gradient = np.concatenate([of_slopes, slope_of_logit.sum(axis=0)])
        penalty = 0.5 * float((parameters**2).sum()) / _PRIOR_SCALE**2
        scale = counts.sum()
        return (
            (penalty - float(counts @ total)) / scale,
            (parameters / _PRIOR_SCALE**2 - gradient) / scale,
        )

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return Difficulty(np.asarray(expit(logits(found))), np.exp(_LOG_WEIGHTS), found)
