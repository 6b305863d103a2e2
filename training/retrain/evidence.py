"""Evidence for or against a log: how a tier's answers compare with what the champion expects of them.

Evidence is kept as sums, so that log files add up. Files are compared with the expectation alone and together with
their neighbours in time: what one file has too few answers to show, several show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import NormalDist

import numpy as np

MIN_EXAMINED = 20
"""Fewer answers of a tier show nothing."""

LEAST_SHIFT = 0.25
"""Answers contradict the champion where their accuracy is at least so far from its expectation, or ..."""

LEAST_EXCESS_BRIER = 0.03
"""... where their Brier score is at least so far above that of a calibrated champion, and by at least ..."""

LEAST_SHARE_FLIPPED = 0.7
"""... this share of what flipping all of the tier's labels would add to it."""

CHANCE = 3e-5
"""How often chance alone contradicts, at most, in all that a run compares of a tier (Bonferroni): once in 30,000."""

MAX_FILES_TOGETHER = 200
"""Most neighbouring files that are compared together."""


@dataclass(frozen=True)
class Evidence:
    """Sums over a tier's answers y (0..1) and the probabilities p with which the champion expects them to be right.

    n: of answers. correct, expected: of y and p. variance: of p (1 - p). squares: of (y - p)^2. Of the excess
    e = (y - p)^2 - p (1 - p), which is 0 on average where p is right: squares_of_excess, of e^2; variance_of_excess,
    of its variance. flipped: of (1 - 2p)^2, what flipping every label adds to e.
    """

    n: int
    correct: float
    expected: float
    variance: float
    squares: float
    squares_of_excess: float
    variance_of_excess: float
    flipped: float

    @classmethod
    def of(cls, correct: np.ndarray, expected: np.ndarray) -> Evidence:
        """The evidence of some answers; correct, expected: 0..1, (n_answers,)."""
        variance, squares = expected * (1 - expected), (correct - expected) ** 2
        flipped = (1 - 2 * expected) ** 2
        return cls(
            n=len(correct),
            correct=float(correct.sum()),
            expected=float(expected.sum()),
            variance=float(variance.sum()),
            squares=float(squares.sum()),
            squares_of_excess=float(((squares - variance) ** 2).sum()),
            variance_of_excess=float((variance * flipped).sum()),
            flipped=float(flipped.sum()),
        )


@dataclass(frozen=True)
class Contradiction:
    """Neighbouring files whose answers together contradict the champion. first, last: their places, inclusive.

    how: what was found and what was expected, in words.
    """

    first: int
    last: int
    how: str


def find_contradiction(files: Sequence[Evidence], is_new: Sequence[bool]) -> Contradiction | None:
    """The neighbours that contradict the champion most, among those that contradict it at all; None where none do.

    files: the evidence of one tier, by file, in the order of time. is_new: which of them were not examined before; only
    neighbours with at least one of these are compared.
    """
    sums = np.array([astuple(file) for file in files], dtype=float).reshape(len(files), 8)
    until = np.vstack([np.zeros(8), sums.cumsum(axis=0)])
    new_until = np.concatenate([[0], np.cumsum(is_new)])
    n_compared, strongest, found = 0, 0.0, None
    for last in range(list(is_new).index(True) if any(is_new) else len(files), len(files)):
        first = np.arange(max(0, last + 1 - MAX_FILES_TOGETHER), last + 1)
        first = first[new_until[last + 1] > new_until[first]]
        together = until[last + 1] - until[first]
        strength = np.where(together[:, 0] >= MIN_EXAMINED, _strength(together), 0.0)
        n_compared += int((together[:, 0] >= MIN_EXAMINED).sum())
        if len(first) and strength.max() > strongest:
            place = int(strength.argmax())
            strongest, found = float(strength[place]), (int(first[place]), last, together[place])
    if found is None or strongest < NormalDist().inv_cdf(1 - CHANCE / n_compared):
        return None
    return Contradiction(first=found[0], last=found[1], how=_in_words(found[2], found[1] + 1 - found[0]))


def _strength(sums: np.ndarray) -> np.ndarray:
    """By how many standard errors answers contradict; 0 where the effect is small. sums: (n, 8), as Evidence."""
    shift, excess, least_excess = _effects(sums)
    n, variance, squares = np.maximum(sums[:, 0], 1), sums[:, 3], sums[:, 4]
    squares_of_excess, variance_of_excess = sums[:, 5], sums[:, 6]
    # The larger of what a right expectation implies and what is seen: neither alone is safe with few answers.
    error = np.sqrt(np.maximum(variance, squares - n * shift**2)) / n
    error_of_excess = np.sqrt(np.maximum(variance_of_excess, squares_of_excess - n * excess**2)) / n
    by_shift = np.where(np.abs(shift) >= LEAST_SHIFT, np.abs(shift) / np.maximum(error, 1e-9), 0.0)
    by_excess = np.where(excess >= least_excess, excess / np.maximum(error_of_excess, 1e-9), 0.0)
    return np.maximum(by_shift, by_excess)


def _effects(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy minus expectation, excess of the Brier score, and the least excess that contradicts; (n,) each."""
    n = np.maximum(sums[:, 0], 1)
    shift, excess = (sums[:, 1] - sums[:, 2]) / n, (sums[:, 4] - sums[:, 3]) / n
    return shift, excess, np.maximum(LEAST_EXCESS_BRIER, LEAST_SHARE_FLIPPED * sums[:, 7] / n)


def _in_words(sums: np.ndarray, n_files: int) -> str:
    n, correct, expected, variance, squares = sums[:5]
    answers = f"{n:,.0f} answers" + (f" in {n_files} files" if n_files > 1 else "")
    [shift], _, _ = _effects(sums[None])
    if abs(shift) >= LEAST_SHIFT:
        return f"answered {correct / n:.0%} right where {expected / n:.0%} was expected ({answers})"
    return f"has a Brier score of {squares / n:.2f} where {variance / n:.2f} was expected ({answers})"
