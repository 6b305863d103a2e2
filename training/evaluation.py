"""The result of judging a bundle: figures with intervals, and what they come to in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from training.metrics import FIGURES, Interval


@dataclass(frozen=True)
class PolicyResult:
    """One policy's figures and the points of its curve."""

    figures: dict[str, Interval]
    curve: Sequence[tuple[float, float]]
    aiq: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """M of the evaluation's JSON; figures that do not apply are null."""
        named = {name: self.figures[name].to_json() if name in self.figures else None for name in FIGURES}
        return {**named, "curve": [list(point) for point in self.curve]}


@dataclass(frozen=True)
class DialResult:
    """What one quality of the dial kept and cost."""

    quality: float
    slack: float
    promised: bool
    accuracy: Interval
    usd_per_1k: Interval
    kept: Interval

    def to_json(self) -> dict[str, Any]:
        """One entry of "dial"."""
        figures = {name: getattr(self, name).to_json() for name in ("accuracy", "usd_per_1k", "kept")}
        return {"quality": self.quality, "slack": self.slack, "promised": self.promised, **figures}


@dataclass(frozen=True)
class Evaluation:
    """All that `broker evaluate` says.

    single: (accuracy, usd_per_1k) per tier. calibration: (ece, brier) per tier; ece_by_chance: what exactly
        right estimates would show on so many prompts.
    reliability: per tier, (mean predicted, share correct, n) per bin.
    lead: AIQ of the router minus that of the best baseline, paired.
    shares: share of requests per tier at each quality of the dial, (n_qualities, n_tiers).
    """

    bundle_id: str
    tiers: tuple[str, ...]
    best_tier: str
    n_prompts: int
    n_trained_on: int
    n_incomplete: int
    estimated_cost_share: float
    single: Mapping[str, tuple[Interval, Interval]]
    router: PolicyResult
    baselines: Mapping[str, PolicyResult]
    best_baseline: str
    lead: Interval
    calibration: Mapping[str, tuple[Interval, Interval]]
    ece_by_chance: Mapping[str, float]
    reliability: Mapping[str, Sequence[tuple[float, float, int]]]
    dial: Sequence[DialResult]
    shares: np.ndarray
    segments: Mapping[str, Mapping[str, Any]]
    length_log_error: Mapping[str, tuple[float, float]]
    cost_ratio: Mapping[str, float]

    @cached_property
    def verdict(self) -> str:
        """Whether the router beats the best baseline, in a sentence."""
        rival, lead = self.baselines[self.best_baseline], self.lead
        figures = (
            f"AIQ {self.router.figures['aiq'].value:.4f} against {rival.figures['aiq'].value:.4f} "
            f"of {self.best_baseline}, difference {lead.value:+.4f} ({lead.low:+.4f} to {lead.high:+.4f})"
        )
        if self.lead.low > 0:
            return f"The router beats the best baseline: {figures}."
        if self.lead.value > 0:
            return f"The router is ahead of the best baseline, but within noise: {figures}."
        if self.lead.high >= 0:
            return f"The router does NOT beat the best baseline (the difference is within noise): {figures}."
        return f"The router does NOT beat the best baseline: {figures}."

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker evaluate --json`."""

        def pair(values: tuple[Interval, Interval], names: tuple[str, str]) -> dict[str, Any]:
            return {name: value.to_json() for name, value in zip(names, values, strict=True)}

        worst = max(self.calibration.values(), key=lambda tier: tier[0].value)
        return {
            "verdict": self.verdict,
            "bundle_id": self.bundle_id,
            "n_prompts": self.n_prompts,
            "n_trained_on": self.n_trained_on,
            "n_incomplete": self.n_incomplete,
            "estimated_cost_share": self.estimated_cost_share,
            "tiers": list(self.tiers),
            "best_tier": self.best_tier,
            "single": {tier: pair(values, ("accuracy", "usd_per_1k")) for tier, values in self.single.items()},
            "router": self.router.to_json(),
            "baselines": {name: result.to_json() for name, result in self.baselines.items()},
            "best_baseline": self.best_baseline,
            "lead_aiq": self.lead.to_json(),
            "calibration": {
                **pair(worst, ("ece", "brier")),
                "per_tier": {
                    tier: {**pair(values, ("ece", "brier")), "ece_by_chance": self.ece_by_chance[tier]}
                    for tier, values in self.calibration.items()
                },
            },
            "dial": [point.to_json() for point in self.dial],
            "segments": {name: dict(entry) for name, entry in self.segments.items()},
            "output_tokens": {
                tier: {"log_error": model, "log_error_of_mean": mean}
                for tier, (model, mean) in self.length_log_error.items()
            },
            "cost_predicted_over_measured": dict(self.cost_ratio),
        }
