"""The result of judging a bundle: figures with intervals, and what they come to in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from training.evaluation.metrics import FIGURES, Interval
from training.evaluation.net_value import NetValue
from training.evaluation.off_policy import OffPolicyReport, PolicyValue

ESTIMATORS = ("direct_method", "ips", "snips", "doubly_robust")


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
    """What the router kept and cost at some dials. quality: None where worth_usd alone decided.

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

    @property
    def text(self) -> str:
        """What it comes to, in a sentence."""
        shares = ", ".join(f"{tier} {share:.0%}" for tier, share in self.shares.items())
        return (
            f"{dials_text(self).capitalize()} it keeps {_range(self.kept)} of the best tier's accuracy at "
            f"{_range(self.cost_of_best)} of its cost; requests go to {shares}."
        )

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


@dataclass(frozen=True)
class OffPolicyResult:
    """What held-out partial feedback says, doubly robust: the router at some dials, and each tier alone.

    quality: None where worth_usd alone decides. refused: why nothing can be said of any of them; each report has its
    own refusal.
    """

    quality: float | None
    worth_usd: float
    router: OffPolicyReport | None
    single: Mapping[str, OffPolicyReport]
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The entry "off_policy"."""
        return {
            "quality": self.quality,
            "worth_usd": self.worth_usd,
            "refused": self.refused,
            "router": self.router and _report_json(self.router),
            "single": {tier: _report_json(report) for tier, report in self.single.items()},
        }


def _report_json(report: OffPolicyReport) -> dict[str, Any]:
    accuracy, usd_per_1k = off_policy_figures(report)
    return {
        "accuracy": accuracy and accuracy.to_json(),
        "usd_per_1k": usd_per_1k and usd_per_1k.to_json(),
        "estimates": {
            name: None if found is None else {each: asdict(getattr(found, each)) for each in ESTIMATORS}
            for name, found in (("accuracy", report.quality), ("usd_per_request", report.cost_usd))
        },
        "effective_sample_size": report.effective_sample_size,
        "refused": report.refused,
    }


def off_policy_figures(report: OffPolicyReport) -> tuple[Interval, Interval] | tuple[None, None]:
    """Accuracy and USD per 1,000 requests; None where the report gives none."""
    if report.quality is None or report.cost_usd is None:
        return None, None

    def scaled(value: PolicyValue, factor: float) -> Interval:
        return Interval(factor * value.value, factor * value.low, factor * value.high)

    return scaled(report.quality.doubly_robust, 1.0), scaled(report.cost_usd.doubly_robust, 1000.0)


@dataclass(frozen=True)
class Evaluation:
    """All that `broker evaluate` says.

    off_policy: stands in for all figures where too few prompts have the outcome of every tier; single,
        baselines, calibration, dial, segments and the like are then empty, best_baseline and lead None.
    n_not_drawn: prompts that could be judged, beyond the sample of MAX_JUDGED_PROMPTS that is.
    single: (accuracy, usd_per_1k) per tier. calibration: (ece, brier) per tier; ece_by_chance: what exactly
        right estimates would show on so many prompts.
    reliability: per tier, (mean predicted, share correct, n) per bin.
    lead: AIQ of the router minus that of the best baseline, paired.
    usd_per_correct, output_tokens_per_correct: what a correct answer costs, per tier; the latter of tiers with logged
        lengths only. chosen: at the dials that were asked for, or by default.
    shares: share of requests per tier at each quality of the dial, (n_qualities, n_tiers).
    """

    bundle_id: str
    tiers: tuple[str, ...]
    best_tier: str
    n_prompts: int
    n_trained_on: int
    n_incomplete: int
    n_not_drawn: int
    estimated_cost_share: float
    single: Mapping[str, tuple[Interval, Interval]]
    router: PolicyResult
    baselines: Mapping[str, PolicyResult]
    best_baseline: str | None
    lead: Interval | None
    calibration: Mapping[str, tuple[Interval, Interval]]
    ece_by_chance: Mapping[str, float]
    reliability: Mapping[str, Sequence[tuple[float, float, int]]]
    usd_per_correct: Mapping[str, Interval]
    output_tokens_per_correct: Mapping[str, Interval]
    net_value: NetValue | None
    chosen: DialResult | None
    dial: Sequence[DialResult]
    shares: np.ndarray
    segments: Mapping[str, Mapping[str, Any]]
    length_log_error: Mapping[str, tuple[float, float]]
    cost_ratio: Mapping[str, Interval]
    off_policy: OffPolicyResult | None = None

    @cached_property
    def verdict(self) -> str:
        """Whether the router beats the best baseline, or what is known of it off-policy, in a sentence."""
        if self.best_baseline is None or self.lead is None:
            return self._off_policy_verdict
        rival, lead = self.baselines[self.best_baseline], self.lead
        figures = (
            f"AIQ {self.router.figures['aiq'].value:.4f} against {rival.figures['aiq'].value:.4f} "
            f"of {self.best_baseline}, difference {lead.value:+.4f} ({lead.low:+.4f} to {lead.high:+.4f})"
        )
        if lead.low > 0:
            return f"The router beats the best baseline: {figures}."
        if lead.value > 0:
            return f"The router is ahead of the best baseline, but within noise: {figures}."
        if lead.high >= 0:
            return f"The router does NOT beat the best baseline (the difference is within noise): {figures}."
        return f"The router does NOT beat the best baseline: {figures}."

    @property
    def _off_policy_verdict(self) -> str:
        found = self.off_policy
        if found is None or found.router is None:
            return f"The router CANNOT BE JUDGED on this log: {found.refused if found else 'no prompt is held out'}."
        accuracy, cost = off_policy_figures(found.router)
        if accuracy is None or cost is None:
            return f"The router CANNOT BE JUDGED on this log: {found.router.refused}."
        best_accuracy, best_cost = off_policy_figures(found.single[self.best_tier])
        against = f"always asking {self.best_tier} cannot be judged on this log"
        if best_accuracy is not None and best_cost is not None:
            against = f"always asking {self.best_tier}: {_range(best_accuracy)} at USD {_range(best_cost, 4)}"
        return (
            f"Judged off-policy, on the outcome of the tier that was chosen alone: {dials_text(found)} the router is "
            f"right on {_range(accuracy)} of the requests at USD {_range(cost, 4)} per 1,000; {against}."
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker evaluate --json`."""

        def pair(values: tuple[Interval, Interval], names: tuple[str, str]) -> dict[str, Any]:
            return {name: value.to_json() for name, value in zip(names, values, strict=True)}

        worst: dict[str, Any] = {"ece": None, "brier": None}
        if self.calibration:
            worst = pair(max(self.calibration.values(), key=lambda tier: tier[0].value), ("ece", "brier"))
        return {
            "verdict": self.verdict,
            "bundle_id": self.bundle_id,
            "n_prompts": self.n_prompts,
            "n_trained_on": self.n_trained_on,
            "n_incomplete": self.n_incomplete,
            "n_not_drawn": self.n_not_drawn,
            "estimated_cost_share": self.estimated_cost_share,
            "tiers": list(self.tiers),
            "best_tier": self.best_tier,
            "single": {
                tier: {
                    **pair(values, ("accuracy", "usd_per_1k")),
                    "usd_per_correct": self.usd_per_correct[tier].to_json(),
                    "output_tokens_per_correct": (
                        self.output_tokens_per_correct[tier].to_json()
                        if tier in self.output_tokens_per_correct
                        else None
                    ),
                }
                for tier, values in self.single.items()
            },
            "router": self.router.to_json(),
            "baselines": {name: result.to_json() for name, result in self.baselines.items()},
            "best_baseline": self.best_baseline,
            "lead_aiq": self.lead and self.lead.to_json(),
            "off_policy": self.off_policy and self.off_policy.to_json(),
            "calibration": {
                **worst,
                "per_tier": {
                    tier: {**pair(values, ("ece", "brier")), "ece_by_chance": self.ece_by_chance[tier]}
                    for tier, values in self.calibration.items()
                },
            },
            "chosen_dials": self.chosen and self.chosen.to_json(),
            "net_value": self.net_value and self.net_value.to_json(),
            "dial": [point.to_json() for point in self.dial],
            "segments": {name: dict(entry) for name, entry in self.segments.items()},
            "output_tokens": {
                tier: {"log_error": model, "log_error_of_mean": mean}
                for tier, (model, mean) in self.length_log_error.items()
            },
            "cost_predicted_over_measured": {tier: ratio.to_json() for tier, ratio in self.cost_ratio.items()},
        }


def _range(figure: Interval, digits: int = 3) -> str:
    return f"{figure.value:.{digits}g} ({figure.low:.{digits}g} to {figure.high:.{digits}g})"


def dials_text(found: DialResult | OffPolicyResult) -> str:
    """As "at quality 0.98, worth USD 0.002"."""
    quality = [] if found.quality is None else [f"quality {found.quality:g}"]
    worth = [f"worth USD {found.worth_usd:g}"] if found.worth_usd or found.quality is None else []
    return f"at {', '.join(quality + worth)}"
