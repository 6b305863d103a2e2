"""A check's verdicts put right by how often it is wrong: from what it said to the probability that an answer is right.

A check errs, a judging model above all. How often is measured on answers that people have judged, too: its sensitivity
and its specificity. By Bayes' rule, a verdict then turns what was expected of the answer into the probability that it
is right (Dawid & Skene, 1979; with estimates as the prior: Raykar et al., Learning from Crowds, JMLR 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.errors import CheckError

_Numbers = NDArray[np.float64]

FEWEST = 20
"""So many right and so many wrong answers that people have judged are needed to measure a check."""

_SHIFTS = np.linspace(-6.0, 6.0, 481)


@dataclass(frozen=True)
class Accuracy:
    """How often a check is right, measured on answers that people have judged.

    sensitivity: share of the right answers that it passes. specificity: share of the wrong answers that it fails. Both
    with half an answer of each kind added (Jeffreys' prior), so neither is ever 0 or 1.
    n_right, n_wrong: answers that they rest on.
    """

    sensitivity: float
    specificity: float
    n_right: int
    n_wrong: int

    @classmethod
    def measured(cls, passed: Sequence[bool], right: Sequence[bool]) -> Accuracy:
        """From answers: whether the check passed them, and whether people found them right.

        Raises CheckError where fewer than FEWEST were right or wrong, and where the check tells them apart no better
        than chance (sensitivity + specificity - 1 within two standard errors of 0, or below).
        """
        said, truth = np.array(passed, bool), np.array(right, bool)
        n_right, n_wrong = int(truth.sum()), int((~truth).sum())
        if min(n_right, n_wrong) < FEWEST:
            raise CheckError(
                f"people have judged {n_right} of the answers that it looked at right and {n_wrong} wrong; expected "
                f"{FEWEST} of each to measure how often a check is wrong"
            )
        sensitivity = (int((said & truth).sum()) + 0.5) / (n_right + 1)
        specificity = (int((~said & ~truth).sum()) + 0.5) / (n_wrong + 1)
        error = np.sqrt(sensitivity * (1 - sensitivity) / n_right + specificity * (1 - specificity) / n_wrong)
        if sensitivity + specificity - 1 <= 2 * error:
            raise CheckError(
                f"it passes {sensitivity:.0%} of the right answers and {1 - specificity:.0%} of the wrong ones; "
                f"expected a check that tells them apart better than chance"
            )
        return cls(sensitivity=sensitivity, specificity=specificity, n_right=n_right, n_wrong=n_wrong)

    def corrected(self, expected: _Numbers, passed: NDArray[np.bool_]) -> _Numbers:
        """The probability that each answer is right, in 0..1, shape (n_answers,).

        expected: what the router expected of each answer before it was there, in 0..1, shape (n_answers,); of one tier.
        passed: what the check said, shape (n_answers,).

        Estimates may be too high or too low for the tier as a whole. So their log odds are first moved by the one
        number that makes the verdicts most likely. Then the answers are right as often as the verdicts show, and the
        estimates say only which of them more likely.
        """
        odds = _logit(expected)
        likelihood = [self._log_likelihood(_sigmoid(odds + shift), passed) for shift in _SHIFTS]
        prior = _sigmoid(odds + _SHIFTS[int(np.argmax(likelihood))])
        if_right = np.where(passed, self.sensitivity, 1 - self.sensitivity)
        if_wrong = np.where(passed, 1 - self.specificity, self.specificity)
        return np.asarray(prior * if_right / (prior * if_right + (1 - prior) * if_wrong))

    def _log_likelihood(self, prior: _Numbers, passed: NDArray[np.bool_]) -> float:
        pass_rate = prior * self.sensitivity + (1 - prior) * (1 - self.specificity)
        return float(np.log(np.where(passed, pass_rate, 1 - pass_rate)).sum())


def _logit(share: _Numbers) -> _Numbers:
    clipped = np.clip(share, 0.001, 0.999)
    return np.asarray(np.log(clipped / (1 - clipped)))


def _sigmoid(odds: _Numbers) -> _Numbers:
    return np.asarray(1 / (1 + np.exp(-odds)))
