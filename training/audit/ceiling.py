"""How accurate the best possible router could be.

- A log with one attempt per prompt and tier cannot tell skill from luck. All it proves is that the accuracy of the best
  possible router lies between the best single tier's and the oracle's. The estimate takes off the oracle what luck
  alone gives one: the oracle of `training.audit.difficulty`, where outcomes are independent given the prompt's
  difficulty, less the accuracy of knowing that difficulty. It stays within the two bounds. It is too low where tiers
  have reliable specialities, or fail together for other reasons than difficulty.
- Repeated attempts need no such assumption. Choosing on one half of the attempts of each cell and judging on the other
  half is unbiased for a choice that exists, so it is a lower bound in expectation. The best mean of attempts is an
  upper bound in expectation (Jensen's inequality).
"""

from __future__ import annotations

import numpy as np

from training.audit.difficulty import Difficulty, fit_difficulty
from training.audit.result import Ceiling
from training.evaluation.metrics import interval

MIN_COMPLETE = 200
"""With fewer prompts that every tier answered, no verdict is given."""

N_REFITS = 100
"""Resamples to which the difficulty model is fitted again."""


def fit_resamples(correct: np.ndarray, weights: np.ndarray) -> list[Difficulty]:
    """The difficulty model, fitted to the sample and to N_REFITS resamples.

    correct: (n_prompts, n_tiers). weights: of `resamples`.
    """
    patterns, which = np.unique(correct >= 0.5, axis=0, return_inverse=True)
    right = patterns.astype(np.float64)
    counts = [np.bincount(which.ravel(), weights=w * len(correct)) for w in weights[: 1 + N_REFITS]]
    first = fit_difficulty(right, counts[0])
    return [first, *(fit_difficulty(right, count, first.parameters) for count in counts[1:])]


def reachable(fits: list[Difficulty], oracle: np.ndarray, best: np.ndarray) -> np.ndarray:
    """The oracle's accuracy less what luck alone adds, not below the best single tier, (n_fits,).

    oracle, best: accuracy of the oracle and of the best single tier, (n_resamples,), in the order of the fits.
    """
    found = [np.clip(o - (fit.lucky_oracle - fit.ceiling), b, o) for fit, o, b in zip(fits, oracle, best, strict=False)]
    return np.array(found, dtype=np.float64)


def ceiling_of(
    fit: Difficulty,
    reach: np.ndarray,
    oracle: np.ndarray,
    best: np.ndarray,
    attempts: tuple[np.ndarray, np.ndarray] | None,
    seed: int,
) -> Ceiling:
    """The ceiling with its bounds.

    fit: of the sample itself. reach: of `reachable`. oracle, best: as there.
    attempts: (n_attempts, n_correct), each (n_prompts, n_tiers); None where the log does not repeat attempts.
    """
    repeats, noise = (None, None) if attempts is None else repeated_ceiling(*attempts, seed=seed)
    low, high = float(best[0]), float(oracle[0])
    return Ceiling(
        low=low,
        high=high,
        estimate=interval(reach),
        lead=interval(reach - best[: len(reach)]),
        lucky_oracle=fit.lucky_oracle,
        repeats=repeats,
        label_noise=noise,
    )


def repeated_ceiling(
    n_attempts: np.ndarray, n_correct: np.ndarray, seed: int = 0
) -> tuple[tuple[float, float] | None, float | None]:
    """Bounds of the ceiling in expectation, and the mean p (1 - p) of an outcome, from repeated attempts.

    Uses the prompts that every tier answered twice or more; (None, None) where there are fewer than MIN_COMPLETE.
    """
    twice = (n_attempts >= 2).all(axis=1)
    if twice.sum() < MIN_COMPLETE:
        return None, None
    n, right = n_attempts[twice].astype(int), n_correct[twice].astype(int)
    n_first = n // 2
    first = np.random.default_rng(seed).hypergeometric(right, n - right, n_first)
    overall = right.sum(axis=0) / n.sum(axis=0)  # breaks ties between tiers
    chosen = np.argmax(first / n_first + 1e-6 * overall, axis=1)[:, None]
    judged = np.take_along_axis((right - first) / (n - n_first), chosen, axis=1)
    noise = (right * (n - right) / (n * (n - 1))).mean()
    return (float(judged.mean()), float((right / n).max(axis=1).mean())), float(noise)
