"""What the router keeps and costs at given settings of its dials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.policy import Dials
from training.evaluation.judged import LEAST_ACCURACY, JudgedPrompts
from training.evaluation.metrics import Interval, interval

_LEAST_COST = 1e-12


@dataclass(frozen=True)
class DialResult:
    """What the router kept and cost at one setting of the dials.

    quality: None where worth_usd alone decided.
    kept, cost_of_best: accuracy and cost relative to always asking the best tier. shares: of requests, per tier.
    output_tokens_per_correct: None where a tier that answered has no logged lengths.
    """

    quality: float | None
    worth_usd: float
    slack: float
    promised: bool
    accuracy: Interval
    usd_per_1k: Interval
    kept: Interval
    cost_of_best: Interval
    usd_per_correct: Interval
    output_tokens_per_correct: Interval | None
    shares: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One entry of "dial", or "chosen_dials"."""
        names = ("accuracy", "usd_per_1k", "kept", "cost_of_best", "usd_per_correct")
        return {
            "quality": self.quality,
            "worth_usd": self.worth_usd,
            "slack": self.slack,
            "promised": self.promised,
            **{name: getattr(self, name).to_json() for name in names},
            "output_tokens_per_correct": self.output_tokens_per_correct and self.output_tokens_per_correct.to_json(),
            "shares": dict(self.shares),
        }


def judge_dials(judged: JudgedPrompts, dials: Dials) -> DialResult:
    """What the router keeps and costs at one setting of the dials."""
    outcomes, weights = judged.outcomes, judged.weights
    rows = np.arange(len(outcomes.correct))
    choice = judged.graph.answers(judged.estimates, dials)
    correct, cost_usd, tokens = (
        each[rows, choice] for each in (outcomes.correct, outcomes.cost_usd, judged.output_tokens)
    )
    best = weights @ outcomes.correct[:, outcomes.best].astype(np.float32)
    best_cost = weights @ outcomes.cost_usd[:, outcomes.best].astype(np.float32)
    accuracy, cost = weights @ correct.astype(np.float32), weights @ cost_usd.astype(np.float32)
    share = np.bincount(choice, minlength=outcomes.correct.shape[1]) / len(rows)
    return DialResult(
        quality=dials.quality,
        worth_usd=dials.worth_usd,
        slack=dials.slack,
        promised=dials.promised,
        accuracy=interval(accuracy),
        usd_per_1k=interval(1000 * cost),
        kept=interval(accuracy / np.maximum(best, LEAST_ACCURACY)),
        cost_of_best=interval(cost / np.maximum(best_cost, _LEAST_COST)),
        usd_per_correct=judged.per_correct(cost_usd, correct),
        output_tokens_per_correct=judged.per_correct(tokens, correct) if np.isfinite(tokens).all() else None,
        shares=dict(zip(judged.tiers, share.tolist(), strict=True)),
    )


def judge_whole_dial(judged: JudgedPrompts) -> list[DialResult]:
    """What each quality of the bundle's dial keeps and costs."""
    return [
        judge_dials(judged, Dials(point.quality, point.slack, 0.0, critical=False, promised=point.promised))
        for point in judged.graph.bundle.manifest.dial
    ]


def dials_text(quality: float | None, worth_usd: float) -> str:
    """Such as "at quality 0.98, worth USD 0.002"."""
    parts = [] if quality is None else [f"quality {quality:g}"]
    if worth_usd or quality is None:
        parts.append(f"worth USD {worth_usd:g}")
    return f"at {', '.join(parts)}"
