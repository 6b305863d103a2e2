"""Proof by betting that plans keep a quality (Waudby-Smith & Ramdas 2024, JRSS B 86).

Prompt by prompt a stake is set on z = outcome - quality x outcome of the best tier. If the mean of z were at most 0,
the wealth would reach 1 / delta at any time with probability delta at most (Ville's inequality). Nothing is assumed of
how outcomes are distributed, and no number of prompts is too small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_STAKE = 0.5
"""Largest share of the wealth that one prompt can lose."""


def keeps(outcome: np.ndarray, references: np.ndarray, quality: float, confidence: float) -> bool:
    """Whether these outcomes prove the quality against every reference.

    outcome: 0..1, of the answers returned, (n_prompts,). references: 0..1, the outcomes of each tier that may be the
    best one, (n_prompts, n_references). The order of the prompts must have nothing to do with their outcomes.
    """
    enough = -np.log(1 - confidence)
    hardest_first = np.argsort(-references.mean(axis=0), kind="stable")
    return all(_log_wealth(outcome - quality * references[:, at], quality, enough) >= enough for at in hardest_first)


def _log_wealth(z: np.ndarray, quality: float, enough: float) -> float:
    """The highest log wealth that is reached; z: (n_prompts,)."""
    n = len(z)
    if n == 0:
        return 0.0
    before = np.arange(n)
    mean = np.concatenate([[0.0], np.cumsum(z)[:-1]]) / np.maximum(before, 1)
    square = np.concatenate([[0.0], np.cumsum(z**2)[:-1]])
    variance = (0.25 + np.maximum(square - before * mean**2, 0.0)) / (before + 1)
    stake = np.minimum(np.sqrt(2 * enough / (n * variance)), MAX_STAKE / quality)
    return float(np.cumsum(np.log1p(stake * z)).max())


def least_proven(
    outcomes: np.ndarray, references: np.ndarray, qualities: Sequence[float], confidence: float
) -> dict[float, int | None]:
    """For each quality the last policy of a fixed sequence that is proven; None where the first one is not.

    outcomes: (n_prompts, n_policies), the most careful policy first. Testing stops at the first policy that does not
    pass (fixed-sequence testing; Angelopoulos et al. 2021, "Learn then test"), so no correction is needed.
    """
    found: dict[float, int | None] = {}
    for quality in qualities:
        passed = 0
        while passed < outcomes.shape[1] and keeps(outcomes[:, passed], references, quality, confidence):
            passed += 1
        found[quality] = passed - 1 if passed else None
    return found
