"""Check a bundle against the golden prompts it ships with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from router.bundle import GOLDEN_FILE
from router.errors import BundleError
from router.router import Router

TOLERANCE = 1e-4


@dataclass(frozen=True)
class GoldenCheck:
    """n_prompts checked; the largest difference of any success; which prompts went to another tier."""

    n_prompts: int
    largest_difference: float
    other_tier: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Every tier the same, every success within TOLERANCE."""
        return self.n_prompts > 0 and not self.other_tier and self.largest_difference <= TOLERANCE


def check_golden(path: str | Path) -> GoldenCheck:
    """Load a bundle, which checks its digests, and route its golden prompts at its own prices.

    Raises BundleError where it is not a complete, unaltered bundle.
    """
    router = Router.load(path)
    largest, other_tier = 0.0, []
    try:
        entries = [json.loads(line) for line in (Path(path) / GOLDEN_FILE).read_text(encoding="utf-8").splitlines()]
        for entry in entries:
            decision = router.route(entry["prompt"])
            found, expected = decision.success.values(), entry["success"]
            largest = max([largest, *(abs(p - q) for p, q in zip(found, expected, strict=True))])
            if decision.tier != entry["tier"]:
                other_tier.append(entry["prompt"][:60])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: {GOLDEN_FILE} is not as expected ({error})") from error
    return GoldenCheck(len(entries), largest, tuple(other_tier))
