"""What new prices move: the traffic of the tiers, the spend and the promise, on recent prompts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from router.router import Router


@dataclass(frozen=True)
class Moved:
    """A figure at the prices in the file and at the new ones."""

    now: float
    new: float


@dataclass(frozen=True)
class PriceEffect:
    """What a bundle decides on some prompts at the prices in the file and at the new ones.

    shares: of the prompts, by tier. usd_per_1k: expected spend per 1,000 requests. usd_per_1k_unmoved: at the new
    prices, if every prompt stayed at its tier. success: expected share of correct answers. promised: share of the
    decisions that the bundle's promise covers. n_moved: prompts that go to another tier.
    """

    n_prompts: int
    n_moved: int
    shares: dict[str, Moved]
    usd_per_1k: Moved
    usd_per_1k_unmoved: float
    success: Moved
    promised: Moved

    def to_json(self) -> dict[str, Any]:
        """What `broker prices --json` prints of it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"on {self.n_prompts:,} recent prompts, {self.n_moved:,} of which go to another tier:"]
        lines += [
            f"  {tier:<24} {moved.now:>7.1%} -> {moved.new:>7.1%} of requests" for tier, moved in self.shares.items()
        ]
        lines += [
            f"  expected spend  {self.usd_per_1k.now:.4g} -> {self.usd_per_1k.new:.4g} USD per 1,000 requests "
            f"({self.usd_per_1k_unmoved:.4g} if all stayed where they are)",
            f"  expected right  {self.success.now:.1%} -> {self.success.new:.1%}",
            f"  promise covers  {self.promised.now:.1%} -> {self.promised.new:.1%} of the decisions",
        ]
        return "\n".join(lines)


def effect(
    bundle: Path, path: Path, new_text: str, prompts: Sequence[str], quality: float | None, worth_usd: float | None
) -> PriceEffect:
    """Decide for recent prompts at the prices of a file and at those of its new text.

    Raises BundleError, PriceError where the file has other tiers than the bundle, DialError.
    """
    with tempfile.TemporaryDirectory(prefix=".token-broker-") as folder:
        changed = Path(folder) / "tiers.toml"
        changed.write_text(new_text, encoding="utf-8")
        decided = []
        for prices in (path, changed):
            router = Router.load(bundle)
            router.update_prices(prices)
            decided.append(router.route_batch(prompts, quality=quality, worth_usd=worth_usd))
    now, new = decided
    n = len(prompts)

    def mean(values: Sequence[float]) -> float:
        return sum(values) / n

    counts = [Counter(decision.tier for decision in decisions) for decisions in decided]
    tiers = [name for name in router.bundle.manifest.tiers]
    return PriceEffect(
        n_prompts=n,
        n_moved=sum(first.tier != second.tier for first, second in zip(now, new, strict=True)),
        shares={tier: Moved(counts[0][tier] / n, counts[1][tier] / n) for tier in tiers},
        usd_per_1k=Moved(*(1000 * mean([each.cost_usd[each.tier] for each in decisions]) for decisions in decided)),
        usd_per_1k_unmoved=1000 * mean([b.cost_usd[a.tier] for a, b in zip(now, new, strict=True)]),
        success=Moved(*(mean([each.success[each.tier] for each in decisions]) for decisions in decided)),
        promised=Moved(*(mean([each.promised for each in decisions]) for decisions in decided)),
    )
