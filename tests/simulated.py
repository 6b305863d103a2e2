"""Simulated estimates, outcomes and logging policies, whose truth is known."""

import numpy as np

from training.fit.logistic import sigmoid


def draw(n_prompts, n_tiers, seed=0, noise=0.5):
    """Success that tiers share in part, and outcomes drawn from it; all (n_prompts, n_tiers)."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(n_prompts, 1)), rng.normal(size=(n_prompts, n_tiers))
    success = sigmoid(np.linspace(-0.3, 0.9, n_tiers) + shared + noise * own)
    return success, (rng.random(success.shape) < success).astype(float)


def log_one_tier(correct, distribution, rng):
    """The outcome of one tier per prompt, drawn from a distribution over tiers, and its propensity."""
    n, n_tiers = correct.shape
    action = (rng.random((n, 1)) > distribution.cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
    is_logged = np.eye(n_tiers, dtype=bool)[action]
    return np.where(is_logged, correct, np.nan), np.where(is_logged, distribution, np.nan)


def shares_by_difficulty(success):
    """An old router that asks the first tier what it finds easy, with a fifth explored."""
    n, n_tiers = success.shape
    choice = np.where(success[:, 0] > np.median(success[:, 0]), 0, n_tiers - 1)
    return 0.8 * np.eye(n_tiers)[choice] + 0.2 / n_tiers
