"""Check a bundle against the golden prompts it ships with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router.bundle.bundle import Bundle
from router.bundle.manifest import GOLDEN_FILE
from router.bundle.signature import TrustedKeys
from router.errors import BundleError
from router.policy import Policy, resolve_dials
from router.routing import Call

TOLERANCE = 1e-4


@dataclass(frozen=True)
class GoldenCheck:
    """What the check of a bundle's golden prompts found.

    bundle_id: of the bundle checked. n_prompts: how many prompts were checked.
    largest_difference: between found and expected estimates: absolute for success and familiarity, relative for
        output_tokens and cost_usd; NaN where any of them is.
    other_tier: the prompts, cut short, that went to another tier than expected.
    """

    bundle_id: str
    n_prompts: int
    largest_difference: float
    other_tier: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there were prompts, every tier is the same, and every estimate is within TOLERANCE."""
        return self.n_prompts > 0 and not self.other_tier and self.largest_difference <= TOLERANCE

    @classmethod
    def of(cls, bundle: Bundle) -> GoldenCheck:
        """Route the golden prompts of a bundle at its own prices and without any policy.

        Raises BundleError where golden.jsonl is not as expected.
        """
        policy = Policy()
        dials = resolve_dials(bundle.manifest, policy, None, None, critical=False)
        call = Call(bundle=bundle, prices=bundle.prices, policy=policy, dials=dials, accepts=None)
        differences, other_tier = [0.0], []
        try:
            entries = [json.loads(line) for line in bundle.golden.decode().split("\n") if line]
            for entry in entries:
                decision = call.route(entry["prompt"])
                for name in ("success", "output_tokens", "cost_usd"):
                    for found, expected in zip(getattr(decision, name).values(), entry[name], strict=True):
                        scale = 1.0 if name == "success" else max(abs(expected), 1e-12)
                        differences.append(abs(found - expected) / scale)
                differences.append(abs((decision.familiarity or 0.0) - entry["familiarity"]))
                if decision.tier != entry["tier"]:
                    other_tier.append(entry["prompt"][:60])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise BundleError(f"{bundle.path}: {GOLDEN_FILE} is not as expected ({error})") from error
        return cls(
            bundle_id=bundle.manifest.bundle_id,
            n_prompts=len(entries),
            largest_difference=float(np.max(differences)),
            other_tier=tuple(other_tier),
        )


def check_golden(path: str | Path, trusted_keys: TrustedKeys | None = None) -> GoldenCheck:
    """Load a bundle, which checks its digests and, where keys are given, its signature, and check its golden prompts.

    Raises BundleError where it is not a complete, unaltered bundle, or none of the keys has signed it.
    """
    return GoldenCheck.of(Bundle.load(path, trusted_keys=trusted_keys))


def proven(bundle: Bundle) -> Bundle:
    """The same bundle; raises BundleError where it does not answer its golden prompts as it says."""
    check = GoldenCheck.of(bundle)
    if not check.passed:
        raise BundleError(
            f"{bundle.path}: of {check.n_prompts} golden prompts, {len(check.other_tier)} went to another tier, "
            f"and the largest difference of an estimate is {check.largest_difference:.1e}; "
            f"expected at least one prompt, the tiers of {GOLDEN_FILE}, and differences of at most {TOLERANCE:g}; "
            "train or copy the bundle again"
        )
    return bundle
