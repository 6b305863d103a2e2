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
    """n_prompts checked, and which of them went to another tier.

    largest_difference: of any success or familiarity, or relative of any output_tokens or cost_usd; NaN where one is.
    """

    n_prompts: int
    largest_difference: float
    other_tier: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Every tier the same, every estimate within TOLERANCE."""
        return self.n_prompts > 0 and not self.other_tier and self.largest_difference <= TOLERANCE


def check_golden(path: str | Path) -> GoldenCheck:
    """Load a bundle, which checks its digests, and route its golden prompts at its own prices.

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
    return GoldenCheck(len(entries), float(np.max(differences)), tuple(other_tier))
