"""Check a bundle against the golden prompts and plans it ships with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from router.bundle.bundle import Bundle
from router.bundle.manifest import GOLDEN_FILE
from router.bundle.signature import TrustedKeys
from router.errors import BundleError, CheckError
from router.planning import PlanDials, make_plan
from router.plans.planner import GOLDEN_PLANS_FILE, Planner
from router.policy import Policy, resolve_dials
from router.routing import Call

TOLERANCE = 1e-4

_Compare = Callable[[Any], tuple[list[float], bool]]
"""From an entry of a golden file to the difference of each estimate, and whether the answer is another."""


@dataclass(frozen=True)
class GoldenCheck:
    """What the check of a bundle's golden prompts and plans found.

    bundle_id: of the bundle checked. n_prompts: how many prompts were checked.
    n_plans: how many plans were checked; None where the bundle makes no plans.
    largest_difference: between found and expected estimates: absolute for success and familiarity, relative for
        output_tokens and cost_usd; NaN where any of them is.
    other_tier: the prompts, cut short, that went to another tier than expected.
    other_plan: those whose plan asks another tier first than expected, or looks at answers where none was expected to.
    """

    bundle_id: str
    n_prompts: int
    n_plans: int | None
    largest_difference: float
    other_tier: tuple[str, ...]
    other_plan: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there were prompts and plans, every tier is the same, and every estimate is within TOLERANCE."""
        are_any = self.n_prompts > 0 and self.n_plans != 0
        return are_any and not self.other_tier and not self.other_plan and self.largest_difference <= TOLERANCE

    @property
    def in_words(self) -> str:
        """What was found, as a part of a sentence."""
        prompts = f"{len(self.other_tier)} of {self.n_prompts} golden prompts went to another tier"
        plans = "" if self.n_plans is None else f", {len(self.other_plan)} of {self.n_plans} golden plans were others"
        return f"{prompts}{plans}, the largest difference of an estimate is {self.largest_difference:.1e}"

    @classmethod
    def of(cls, bundle: Bundle) -> GoldenCheck:
        """Route and plan the golden prompts of a bundle at its own prices and without any policy.

        Raises BundleError where golden.jsonl or golden_plans.jsonl is not as expected.
        """
        planner = bundle.planner
        compare: _Compare = partial(_decision_differences, bundle)
        n_prompts, differences, other_tier = _checked(bundle.path / GOLDEN_FILE, bundle.golden, compare)
        n_plans: int | None = None
        other_plan: tuple[str, ...] = ()
        if planner is not None:
            compare = partial(_plan_differences, bundle, planner)
            n_plans, of_plans, other_plan = _checked(bundle.path / GOLDEN_PLANS_FILE, planner.golden, compare)
            differences += of_plans
        return cls(
            bundle_id=bundle.manifest.bundle_id,
            n_prompts=n_prompts,
            n_plans=n_plans,
            largest_difference=float(np.max(differences)),
            other_tier=other_tier,
            other_plan=other_plan,
        )


def check_golden(path: str | Path, trusted_keys: TrustedKeys | None = None) -> GoldenCheck:
    """Load a bundle and check its golden prompts and plans; loading checks its digests and, with keys, its signature.

    Raises BundleError where it is not a complete, unaltered bundle, or none of the keys has signed it.
    """
    return GoldenCheck.of(Bundle.load(path, trusted_keys=trusted_keys))


def proven(bundle: Bundle) -> Bundle:
    """The same bundle; raises BundleError where it does not route and plan its golden prompts as it says."""
    check = GoldenCheck.of(bundle)
    if not check.passed:
        plans = "" if check.n_plans is None else f", the plans of {GOLDEN_PLANS_FILE}"
        raise BundleError(
            f"{bundle.path}: {check.in_words}; expected at least one of each, the tiers of {GOLDEN_FILE}{plans}, "
            f"and differences of at most {TOLERANCE:g}; train or copy the bundle again"
        )
    return bundle


def _checked(path: Path, content: bytes, compare: _Compare) -> tuple[int, list[float], tuple[str, ...]]:
    """How many entries a golden file has, all differences, and the prompts, cut short, whose answer is another."""
    differences, others = [0.0], []
    try:
        entries = [json.loads(line) for line in content.decode().split("\n") if line]
        for entry in entries:
            found, is_other = compare(entry)
            differences += found
            if is_other:
                others.append(entry["prompt"][:60])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, CheckError) as error:
        raise BundleError(f"{path.parent}: {path.name} is not as expected ({error})") from error
    return len(entries), differences, tuple(others)


def _decision_differences(bundle: Bundle, entry: Any) -> tuple[list[float], bool]:
    """Of a line of golden.jsonl: the difference of each estimate, and whether the decision is another."""
    decision = _call(bundle, None).route(entry["prompt"])
    differences = [abs((decision.familiarity or 0.0) - entry["familiarity"])]
    for name in ("success", "output_tokens", "cost_usd"):
        for found, expected in zip(getattr(decision, name).values(), entry[name], strict=True):
            differences.append(abs(found - expected) if name == "success" else _relative(found, expected))
    return differences, decision.tier != entry["tier"]


def _plan_differences(bundle: Bundle, planner: Planner, entry: Any) -> tuple[list[float], bool]:
    """Of a line of golden_plans.jsonl: the difference of each estimate, and whether the plan is another."""
    call = _call(bundle, entry["worth_usd"])
    dials = PlanDials(planner=planner, manifest=bundle.manifest, prices=bundle.prices)
    looks = planner.looks(entry["checks"], entry["max_calls"])
    plan = make_plan(dials, looks, call.dials, call.route(entry["prompt"]), {}, None)
    differences = [abs(plan.success - entry["success"]), _relative(plan.cost_usd, entry["cost_usd"])]
    return differences, (plan.tier, plan.is_direct) != (entry["tier"], entry["is_direct"])


def _call(bundle: Bundle, worth_usd: float | None) -> Call:
    policy = Policy()
    dials = resolve_dials(bundle.manifest, policy, None, worth_usd, critical=False)
    return Call(bundle=bundle, prices=bundle.prices, policy=policy, dials=dials, accepts=None)


def _relative(found: float, expected: float) -> float:
    return abs(found - expected) / max(abs(expected), 1e-12)
