"""Changes of a tier that someone has looked at and accepted: what is expected of its answers from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.fit.calibrate import Calibration, fit_calibration

MIN_ANSWERS = 100
"""Answers that an expectation is fitted to, where the files that show the change have so many."""


@dataclass(frozen=True)
class Acceptance:
    """An accepted change of a tier.

    since: `last_timestamp` of the first log file that shows it; it holds for this file and for later ones, until the
        next change of the tier. champion: the bundle whose expectation p is moved, to slope * p + intercept.
    """

    tier: str
    since: str
    champion: str
    slope: float
    intercept: float

    @classmethod
    def fit(cls, tier: str, since: str, champion: str, correct: np.ndarray, expected: np.ndarray) -> Acceptance:
        """Move the champion's expectation to what some answers show; correct, expected: 0..1, (n_answers,)."""
        fitted = fit_calibration(expected[:, None], correct[:, None])
        return cls(
            tier=tier,
            since=since,
            champion=champion,
            slope=float(fitted.slope[0]),
            intercept=float(fitted.intercept[0]),
        )

    def apply(self, expected: np.ndarray) -> np.ndarray:
        """What is expected now, where the champion expects `expected`; (n_answers,)."""
        return Calibration(slope=np.array(self.slope), intercept=np.array(self.intercept)).apply(expected)


@dataclass(frozen=True)
class Accepting:
    """A change of a tier that this run is to accept. since: as of an Acceptance."""

    tier: str
    since: str


def in_force(accepted: Sequence[Acceptance], tier: str, at: str) -> Acceptance | None:
    """The last change of a tier that was accepted for a file with this `last_timestamp`; None where there is none."""
    known = [change for change in accepted if change.tier == tier and change.since <= at]
    return max(known, key=lambda change: change.since, default=None)


def expected_since(accepted: Sequence[Acceptance], tier: str, at: str, expected: np.ndarray) -> np.ndarray:
    """What is expected of a tier's answers in a file of this time, where the champion expects `expected`."""
    change = in_force(accepted, tier, at)
    return expected if change is None else change.apply(expected)
