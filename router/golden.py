"""Check a bundle against the golden prompts it ships with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router.bundle.manifest import GOLDEN_FILE
from router.errors import BundleError
from router.router import Router

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


def check_golden(path: str | Path) -> GoldenCheck:
    """Load a bundle, which checks its digests, and route its golden prompts at the bundle's own prices.

    Raises BundleError where it is not a complete, unaltered bundle.
    """
    router = Router.load(path)
    differences, other_tier = [0.0], []
    try:
        lines = (Path(path) / GOLDEN_FILE).read_text(encoding="utf-8").split("\n")
        entries = [json.loads(line) for line in lines if line]
        for entry in entries:
            decision = router.route(entry["prompt"])
            for name in ("success", "output_tokens", "cost_usd"):
                for found, expected in zip(getattr(decision, name).values(), entry[name], strict=True):
                    scale = 1.0 if name == "success" else max(abs(expected), 1e-12)
                    differences.append(abs(found - expected) / scale)
            differences.append(abs((decision.familiarity or 0.0) - entry["familiarity"]))
            if decision.tier != entry["tier"]:
                other_tier.append(entry["prompt"][:60])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: {GOLDEN_FILE} is not as expected ({error})") from error
    return GoldenCheck(
        bundle_id=router.bundle.manifest.bundle_id,
        n_prompts=len(entries),
        largest_difference=float(np.max(differences)),
        other_tier=tuple(other_tier),
    )
