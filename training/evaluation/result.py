"""The result of judging a bundle: figures with intervals, and a verdict in a sentence.

`FullEvaluation` where prompts have the outcome of every tier; `OffPolicyEvaluation` where too few have.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from router.notebook import card
from training.evaluation.dials import DialResult, dials_text
from training.evaluation.headline import Headline
from training.evaluation.metrics import FIGURES, Interval
from training.evaluation.net_value import NetValue
from training.evaluation.off_policy import ESTIMATORS, OffPolicyReport
from training.evaluation.plan_result import PlanEvaluation
from training.log.table import IngestSummary


@dataclass(frozen=True)
class PolicyResult:
    """The figures of one policy and the points of its curve.

    figures: by name, those of FIGURES that apply. curve: (usd_per_1k, accuracy) of each configuration, by rising cost.
    aiq: per resample, (n_resamples,), for paired differences.
    """

    figures: Mapping[str, Interval]
    curve: Sequence[tuple[float, float]]
    aiq: np.ndarray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """The entry "router", or one of "baselines"; figures that do not apply are null."""
        return {**_named_figures(self.figures), "curve": [list(point) for point in self.curve]}


def _named_figures(figures: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: figures[name].to_json() if name in figures else None for name in FIGURES}


@dataclass(frozen=True, kw_only=True)
class Evaluation(ABC):
    """What every judgement of a bundle says.

    n_prompts: prompts judged. n_trained_on: left out because the bundle was, or may have been, trained on them.
    n_incomplete: left out because they lack outcomes. n_not_drawn: left out because the sample was large enough.
    estimated_cost_share: share of the judged attempts without a logged cost.
    log: what was read of the log, and what was not; None where a table was judged.
    """

    bundle_id: str
    tiers: tuple[str, ...]
    best_tier: str
    n_prompts: int
    n_trained_on: int
    n_incomplete: int
    n_not_drawn: int
    estimated_cost_share: float
    log: IngestSummary | None = None

    @property
    @abstractmethod
    def verdict(self) -> str:
        """What is known of the router, in a sentence."""

    @property
    @abstractmethod
    def summary(self) -> tuple[str, ...]:
        """What everybody should read first, a sentence or two each: the headline, then what the curve says."""

    @property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Figures for an experiment tracker, by name."""

    def _repr_html_(self) -> str:
        """The verdict, and what kind of evaluation adds to it, in a notebook."""
        return card([self.verdict, f"{self.n_prompts:,} prompts judged."], [], [])

    @abstractmethod
    def _findings(self) -> dict[str, Any]:
        """Entries of the JSON that this kind of evaluation has."""

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker evaluate --json`. It always has the same keys; what is not known is null or empty."""
        return {
            "headline": self.summary[0],
            "verdict": self.verdict,
            "bundle_id": self.bundle_id,
            "n_prompts": self.n_prompts,
            "n_trained_on": self.n_trained_on,
            "n_incomplete": self.n_incomplete,
            "n_not_drawn": self.n_not_drawn,
            "estimated_cost_share": self.estimated_cost_share,
            "tiers": list(self.tiers),
            "best_tier": self.best_tier,
            "single": {},
            "router": {**_named_figures({}), "curve": []},
            "baselines": {},
            "best_baseline": None,
            "lead_aiq": None,
            "off_policy": None,
            "calibration": {"ece": None, "brier": None, "per_tier": {}},
            "chosen_dials": None,
            "net_value": None,
            "dial": [],
            "segments": {},
            "plans": {},
            "output_tokens": {},
            "cost_predicted_over_measured": {},
            **self._findings(),
        }


@dataclass(frozen=True, kw_only=True)
class FullEvaluation(Evaluation):
    """A judgement on prompts with the outcome of every tier. Mappings have an entry for every tier unless noted.

    single: (accuracy, usd_per_1k) per tier.
    router, baselines: the policies compared; best_baseline: the one with the highest AIQ, without the oracle.
    lead: AIQ of the router minus that of the best baseline, paired.
    calibration: (ece, brier) per tier.
    ece_by_chance: the ECE that exactly right estimates would show on so many prompts.
    reliability: per tier, (mean predicted, share correct, n) per bin.
    usd_per_correct, output_tokens_per_correct: what a correct answer costs, per tier; the second only for tiers with
        logged lengths.
    net_value: of router and single tiers, by the worth of a correct answer.
    chosen: at the dials that were asked for, otherwise at the default quality. dial: at each quality of the dial.
    segments: by name, segments with enough prompts. plans: with each check that bundle and log know, by its name.
    length_log_error: mean absolute error of log output tokens, of the model and of the tier's mean; only for tiers with
        logged lengths. cost_ratio: predicted over measured cost; cost_explained: the share of the logged cost that
        prompt and logged answer explain at list price; both only for tiers that cost something.
    """

    single: Mapping[str, tuple[Interval, Interval]]
    router: PolicyResult
    baselines: Mapping[str, PolicyResult]
    best_baseline: str
    lead: Interval
    calibration: Mapping[str, tuple[Interval, Interval]]
    ece_by_chance: Mapping[str, float]
    reliability: Mapping[str, Sequence[tuple[float, float, int]]]
    usd_per_correct: Mapping[str, Interval]
    output_tokens_per_correct: Mapping[str, Interval]
    net_value: NetValue
    chosen: DialResult
    dial: Sequence[DialResult]
    segments: Mapping[str, Mapping[str, Any]]
    plans: Mapping[str, PlanEvaluation]
    length_log_error: Mapping[str, tuple[float, float]]
    cost_ratio: Mapping[str, Interval]
    cost_explained: Mapping[str, float]

    @property
    def verdict(self) -> str:
        """Whether the router beats the best baseline, in a sentence."""
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

    def _repr_html_(self) -> str:
        """Headline and verdict above a row per quality of the dial, in a notebook."""
        rows = [
            [f"{point.quality:g}", "yes" if point.promised else "no", point.kept.text(), point.cost_of_best.text()]
            for point in self.dial
        ]
        header = ["quality", "promised", f"kept of {self.best_tier}'s accuracy", "of its cost"]
        return card(list(self.summary), header, rows)

    @property
    def headline(self) -> Headline:
        """What the dial keeps and costs: the figure of terminal, report, picture and tracker."""
        quality = self.chosen.quality
        lower = (
            [] if quality is None else [each for each in self.dial if each.promised and (each.quality or 0) < quality]
        )
        return Headline(
            dial=self.chosen,
            instead=lower[-1] if lower and not self.chosen.promised else None,
            best_tier=self.best_tier,
            best_usd_per_1k=self.single[self.best_tier][1].value,
            n_prompts=self.n_prompts,
        )

    @property
    def summary(self) -> tuple[str, ...]:
        """The headline, and the curve's figures by their names."""
        at_98 = self.router.figures["cost_at_98"]
        return (
            self.headline.text,
            f"The curve, over all budgets instead of one dial: {self.verdict[0].lower()}{self.verdict[1:]} Its point "
            f"at 98 % of {self.best_tier}'s accuracy costs {100 * at_98.value:.0f} % ({100 * at_98.low:.0f} to "
            f"{100 * at_98.high:.0f}): it is found on these very prompts, so it is no promise.",
        )

    @property
    def shares(self) -> np.ndarray:
        """Share of requests per tier at each quality of the dial, (n_qualities, n_tiers)."""
        return np.array([list(point.shares.values()) for point in self.dial])

    @property
    def metrics(self) -> dict[str, float]:
        """The headline, the curve's figures, baselines' AIQ, each tier's ECE, and what each quality keeps and costs."""
        found = self.headline.metrics | {name: figure.value for name, figure in self.router.figures.items()}
        found |= {f"baseline.{name}.aiq": result.figures["aiq"].value for name, result in self.baselines.items()}
        for point in self.dial:
            name = f"dial.{point.quality:g}"
            found |= {f"{name}.kept": point.kept.value, f"{name}.cost_of_best": point.cost_of_best.value}
        return found | {f"ece.{tier}": ece.value for tier, (ece, _) in self.calibration.items()}

    def _findings(self) -> dict[str, Any]:
        worst_ece, its_brier = max(self.calibration.values(), key=lambda tier: tier[0].value)
        lengths = self.output_tokens_per_correct
        return {
            "single": {
                tier: {
                    "accuracy": accuracy.to_json(),
                    "usd_per_1k": usd_per_1k.to_json(),
                    "usd_per_correct": self.usd_per_correct[tier].to_json(),
                    "output_tokens_per_correct": lengths[tier].to_json() if tier in lengths else None,
                }
                for tier, (accuracy, usd_per_1k) in self.single.items()
            },
            "router": self.router.to_json(),
            "baselines": {name: result.to_json() for name, result in self.baselines.items()},
            "best_baseline": self.best_baseline,
            "lead_aiq": self.lead.to_json(),
            "calibration": {
                "ece": worst_ece.to_json(),
                "brier": its_brier.to_json(),
                "per_tier": {
                    tier: {"ece": ece.to_json(), "brier": brier.to_json(), "ece_by_chance": self.ece_by_chance[tier]}
                    for tier, (ece, brier) in self.calibration.items()
                },
            },
            "chosen_dials": self.chosen.to_json(),
            "net_value": self.net_value.to_json(),
            "dial": [point.to_json() for point in self.dial],
            "segments": {name: dict(entry) for name, entry in self.segments.items()},
            "plans": {name: each.to_json() for name, each in self.plans.items()},
            "output_tokens": {
                tier: {"log_error": model, "log_error_of_mean": mean}
                for tier, (model, mean) in self.length_log_error.items()
            },
            "cost_predicted_over_measured": {tier: ratio.to_json() for tier, ratio in self.cost_ratio.items()},
            "cost_explained_by_tokens": dict(self.cost_explained),
        }


@dataclass(frozen=True, kw_only=True)
class OffPolicyEvaluation(Evaluation):
    """What held-out partial feedback says, doubly robust: the router at some dials, and each tier alone.

    quality: None where worth_usd alone decides.
    router, single: their reports, each with a refusal of its own; None and empty where `refused` says why there are
        none at all.
    """

    quality: float | None
    worth_usd: float
    router: OffPolicyReport | None = None
    single: Mapping[str, OffPolicyReport] = field(default_factory=dict)
    refused: str | None = None

    @property
    def verdict(self) -> str:
        """What the router achieves against the best tier alone, or why that cannot be said, in a sentence."""
        refused = self.refused if self.router is None else self.router.refused
        if self.router is None or self.router.accuracy is None or self.router.usd_per_1k is None:
            return f"The router CANNOT BE JUDGED on this log: {refused}."
        best = self.single[self.best_tier]
        against = f"always asking {self.best_tier} cannot be judged on this log"
        if best.accuracy is not None and best.usd_per_1k is not None:
            against = f"always asking {self.best_tier}: {best.accuracy.text()} at USD {best.usd_per_1k.text(4)}"
        return (
            "Judged off-policy, on the outcome of the tier that was chosen alone: "
            f"{dials_text(self.quality, self.worth_usd)} the router is right on {self.router.accuracy.text()} of the "
            f"requests at USD {self.router.usd_per_1k.text(4)} per 1,000; {against}."
        )

    @property
    def summary(self) -> tuple[str, ...]:
        """The verdict alone: a curve takes the outcome of every tier."""
        return (self.verdict,)

    @property
    def metrics(self) -> dict[str, float]:
        """None: trackers get figures of full evaluations only."""
        return {}

    def _findings(self) -> dict[str, Any]:
        return {
            "off_policy": {
                "quality": self.quality,
                "worth_usd": self.worth_usd,
                "refused": self.refused,
                "router": self.router and _report_json(self.router),
                "single": {tier: _report_json(report) for tier, report in self.single.items()},
            }
        }


def _report_json(report: OffPolicyReport) -> dict[str, Any]:
    return {
        "accuracy": report.accuracy and report.accuracy.to_json(),
        "usd_per_1k": report.usd_per_1k and report.usd_per_1k.to_json(),
        "estimates": {
            name: None if found is None else {each: asdict(getattr(found, each)) for each in ESTIMATORS}
            for name, found in (("accuracy", report.quality), ("usd_per_request", report.cost_usd))
        },
        "effective_sample_size": report.effective_sample_size,
        "refused": report.refused,
    }
