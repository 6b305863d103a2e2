"""What the dial is calibrated on: logged outcomes, or doubly robust ones where feedback is partial."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from router.bundle.manifest import DialPoint
from training.dial.dial import COMPLETE_PROMPTS, EXPLORED_PROMPTS, calibrate_dial
from training.evaluation.evaluate import MIN_COMPLETE_PROMPTS
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.overlap import MAX_UNSUPPORTED_SHARE, Overlap
from training.fit.calibrate import doubly_robust
from training.log.table import OutcomeTable, is_partial


@dataclass(frozen=True)
class CalibratedDial:
    """The dial and the outcomes behind it.

    outcomes: (n_prompts, n_tiers): logged ones, NaN where not observed; for partial feedback doubly robust ones.
    points: the dial. n_prompts: how many prompts it rests on. prompts: which prompts these are.
    """

    outcomes: np.ndarray
    points: tuple[DialPoint, ...]
    n_prompts: int
    prompts: str = COMPLETE_PROMPTS

    @classmethod
    def of(cls, known: OutcomeTable, cost_usd: np.ndarray, success: np.ndarray, confidence: float) -> CalibratedDial:
        """Calibrate the dial on training prompts.

        cost_usd: of each attempt; success: out of fold; both (n_prompts, n_tiers). For partial feedback, the dial
        rests on the panel (the prompts that every tier answered) where the log is not explored and the panel has at
        least MIN_COMPLETE_PROMPTS prompts. Otherwise it rests on all prompts, and promises only if the log is explored.
        """
        n_complete = int(np.isfinite(known.correct).all(axis=1).sum())
        calibrate = partial(
            calibrate_dial,
            success,
            confidence=confidence,
            cost_usd=cost_usd,
            segments=known.segments,
            asked_at=known.asked_at,
        )
        if not is_partial(known.correct):
            return cls(outcomes=known.correct, points=calibrate(known.correct), n_prompts=n_complete)
        explored = _is_explored(known, cost_usd)
        # In explored feedback, a fallback's rare answer does not show how its tier was chosen, so it is left out.
        correct = np.where(np.isfinite(known.propensity), known.correct, np.nan) if explored else known.correct
        outcomes = doubly_robust(success, correct, known.propensity)
        if not explored and n_complete >= MIN_COMPLETE_PROMPTS:
            return cls(outcomes=outcomes, points=calibrate(known.correct), n_prompts=n_complete)
        largest = float(1 / np.nanmin(known.propensity)) if explored else 1.0
        points = calibrate(outcomes, largest=largest, promise=explored)
        prompts = EXPLORED_PROMPTS if explored else "prompts in the training part"
        return cls(outcomes=outcomes, points=points, n_prompts=len(outcomes), prompts=prompts)

    @property
    def best_tier(self) -> int:
        """The tier with the highest accuracy, on the prompts with the outcome of every tier where there are any."""
        full = np.isfinite(self.outcomes).all(axis=1)
        return int(np.nanmean(self.outcomes[full] if full.any() else self.outcomes, axis=0).argmax())


def _is_explored(known: OutcomeTable, cost_usd: np.ndarray) -> bool:
    """Whether all but 1 % of the outcomes have a propensity, and the log says what each tier alone would achieve."""
    share = np.isfinite(known.propensity)[np.isfinite(known.correct)].mean()
    if share < 1 - MAX_UNSUPPORTED_SHARE:
        return False

    def is_carried(tier: int) -> bool:
        always = np.full(known.n_prompts, tier)
        log = LoggedChoices.of(known, cost_usd, always)
        return Overlap.of(log, np.eye(len(known.tiers))[always]).refusal is None

    return all(is_carried(tier) for tier in range(len(known.tiers)))
