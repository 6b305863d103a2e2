"""The result of judging plans: curves, the dial, and how often answers are right after what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from training.evaluation.metrics import Interval


@dataclass(frozen=True)
class CurveFigures:
    """A curve of accuracy over cost.

    curve: (usd_per_1k, accuracy), by rising cost. cost_at: by name, the cost that reaches 95, 98 and 100 % of the best
    tier's accuracy, relative to always asking it; 1 where that is not reached for less. max_kept: the highest accuracy,
    relative to the best tier's.
    """

    curve: tuple[tuple[float, float], ...]
    cost_at: Mapping[str, Interval]
    max_kept: Interval

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON of an evaluation."""
        return {
            "curve": [list(point) for point in self.curve],
            **{name: each.to_json() for name, each in self.cost_at.items()},
            "max_kept": self.max_kept.to_json(),
        }


@dataclass(frozen=True)
class PlanDialResult:
    """What plans keep and cost at one quality. Where no plan keeps it with proof, direct routing answers."""

    quality: float
    promised: bool
    is_direct: bool
    kept: Interval
    usd_per_1k: Interval
    cost_share: Interval

    def to_json(self) -> dict[str, Any]:
        """One entry of "dial"."""
        return {
            "quality": self.quality,
            "promised": self.promised,
            "is_direct": self.is_direct,
            **{name: getattr(self, name).to_json() for name in ("kept", "usd_per_1k", "cost_share")},
        }


@dataclass(frozen=True)
class Conditional:
    """How often an answer is right, given what was seen, over all pairs of tiers.

    expected: by the bundle. measured: on the judged prompts. if_independent: what the tiers' own estimates say, as if
    nothing had been seen. n_cases: prompts times pairs of tiers. calibration_error: the ECE of what is expected, and
    the same of what the tiers' own estimates say.
    """

    expected: float
    measured: float
    if_independent: float
    n_cases: int
    calibration_error: Interval
    calibration_error_if_independent: Interval

    def to_json(self) -> dict[str, Any]:
        """One entry of "conditionals"."""
        return asdict(self)


@dataclass(frozen=True)
class JointFit:
    """The log likelihood, in nats, of which of `n_tiers` tiers are right on a prompt: the mean over all such sets.

    log_likelihood: by the bundle. if_independent: of the tiers' own estimates, as if tiers failed on their own.
    gain: the difference, paired by prompts.
    """

    n_tiers: int
    log_likelihood: Interval
    if_independent: Interval
    gain: Interval

    def to_json(self) -> dict[str, Any]:
        """The entry "joint" of a check."""
        return asdict(self)


@dataclass(frozen=True)
class PlanEvaluation:
    """Plans with one check.

    simulated: verdicts were drawn with stated figures. n_prompts: that this rests on.
    plans, direct: their curves. fixed_cascade, threshold_cascade, cascade_routing: those of other ways to ask several
    tiers; training.evaluation.plan_rivals says what they are. dial: at each quality.
    expected_success, expected_cost: what plans expect at the default quality, relative to what was measured; None where
    no plan is promised there. asked: the sequences of tiers that plans ask at the default quality, with their shares of
    requests, the most frequent first; empty where no plan is promised there.
    conditionals: "right after a failure" of another tier and, where answers are compared, "right where two agree".
    joint: how well the bundle knows which tiers fail together; it hangs on no check.
    """

    check: str
    simulated: bool
    n_prompts: int
    plans: CurveFigures
    direct: CurveFigures
    fixed_cascade: CurveFigures
    threshold_cascade: CurveFigures
    cascade_routing: CurveFigures
    dial: tuple[PlanDialResult, ...]
    default_quality: float
    expected_success: float | None
    expected_cost: float | None
    asked: Mapping[tuple[str, ...], float]
    conditionals: Mapping[str, Conditional]
    joint: JointFit

    @property
    def shapes(self) -> dict[str, float]:
        """`asked` with each sequence in words."""
        return {" -> ".join(tiers): share for tiers, share in self.asked.items()}

    @property
    def families(self) -> dict[str, CurveFigures]:
        """All ways to ask several tiers, by their names; plans are the last."""
        return {
            "fixed cascade": self.fixed_cascade,
            "thresholds": self.threshold_cascade,
            "cascade routing": self.cascade_routing,
            "plans": self.plans,
        }

    def to_json(self) -> dict[str, Any]:
        """The entry of a check in "plans"."""
        return {
            "simulated": self.simulated,
            "n_prompts": self.n_prompts,
            **self.plans.to_json(),
            "dial": [each.to_json() for each in self.dial],
            "fixed_cascade": self.fixed_cascade.to_json(),
            "threshold_cascade": self.threshold_cascade.to_json(),
            "cascade_routing": self.cascade_routing.to_json(),
            "direct": self.direct.to_json(),
            "expected_over_measured": {"success": self.expected_success, "cost": self.expected_cost},
            "default_quality": self.default_quality,
            "shapes": self.shapes,
            "conditionals": {name: found.to_json() for name, found in self.conditionals.items()},
            "joint": self.joint.to_json(),
        }
