"""What an audit finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.audit.checks import AgreementAudit, CheckAudit
from training.evaluation.metrics import Interval
from training.log.counts import PromptCounts
from training.log.table import IngestSummary

MIN_LOSS = 0.002
"""A tier pays where doing without it loses at least this accuracy, or its worth in money."""


@dataclass(frozen=True)
class TierAudit:
    """One tier.

    usd_per_correct, output_tokens_per_correct: NaN where it is never right or nothing is logged.
    only_right: share of prompts that only this tier answered correctly.
    cheapest_correct: share of prompts on which it was the cheapest tier to answer correctly.
    on_hull: whether it is on the cost-accuracy hull of the single tiers.
    pays: whether it is on that hull, or a router that knows each prompt's difficulty would, at some worth of a correct
        answer, lose MIN_LOSS without it.
    """

    n_outcomes: int
    accuracy: Interval
    usd_per_1k: Interval
    usd_per_correct: Interval
    output_tokens_per_correct: float
    only_right: Interval
    cheapest_correct: float
    on_hull: bool
    pays: bool


@dataclass(frozen=True)
class Pair:
    """Two tiers: shares of prompts, and phi, the correlation of their errors."""

    both_right: float
    one_right: float
    none_right: float
    phi: float


@dataclass(frozen=True)
class Ceiling:
    """What the best possible router could reach.

    low, high: accuracy of the best single tier and of the oracle, which bound it.
    estimate: rests on the assumption in `training.audit.ceiling`. lead: estimate minus best single tier.
    lucky_oracle: the oracle's accuracy if outcomes were independent given the difficulty.
    repeats: lower and upper bound from repeated attempts. label_noise: mean p (1 - p) of an outcome, from them too.
    Both are None where too few prompts repeat attempts.
    """

    low: float
    high: float
    estimate: Interval
    lead: Interval
    lucky_oracle: float
    repeats: tuple[float, float] | None
    label_noise: float | None


@dataclass(frozen=True)
class Money:
    """Cost relative to always asking the best tier, at this share of its accuracy (quality).

    mix_of_singles: of mixing single tiers, which takes no router. knowing_difficulty: of a router that knows how hard
    each prompt is, and nothing of which tier is good at what. knowing_outcomes: of the oracle, luck included: no router
    costs less.
    """

    quality: float
    mix_of_singles: Interval
    knowing_difficulty: Interval
    knowing_outcomes: Interval


@dataclass(frozen=True)
class PromptsNeeded:
    """About how many prompts a promise takes, of those that every tier answered, in the training part.

    like_best: for a router that at slack 0 always asks the best tier. like_substitute: for one that is as accurate, but
    right on other prompts, on as many as the best substitute is. None: no number is enough.
    """

    like_best: int | None
    like_substitute: int | None


@dataclass(frozen=True)
class Audit:
    """All that an audit finds. Fields with a default need complete prompts; they keep it where these are too few.

    counts: how many prompts would serve what in training.
    n_complete: prompts that every tier answered. n_training: those of them that `broker train` would train on, by its
    default settings; the others are held out. n_outcomes, observed_accuracy: per tier, each on its own prompts.
    estimated_cost_share: share of the attempts without a logged cost.
    log: what was read of the log, and what was not.
    action: "route", "do not route" or "not enough outcomes". verdict: the reason, in a sentence.
    best: the tier with the highest accuracy, on complete prompts. oracle: accuracy of knowing which tier is right.
    needed: prompts that a promise of each quality takes.
    frontier: (usd_per_1k, accuracy) of a router that knows each prompt's difficulty.
    agreement: how often the answers of two tiers agree. checks: what looking at answers would bring.
    """

    tiers: tuple[str, ...]
    n_prompts: int
    n_complete: int
    n_training: int
    counts: PromptCounts
    n_outcomes: dict[str, int]
    observed_accuracy: dict[str, float | None]
    estimated_cost_share: float
    log: IngestSummary
    action: str
    verdict: str
    best: str | None = None
    per_tier: dict[str, TierAudit] | None = None
    pairs: dict[tuple[str, str], Pair] | None = None
    effective_models: Interval | None = None
    oracle: Interval | None = None
    ceiling: Ceiling | None = None
    money: tuple[Money, ...] = ()
    needed: dict[float, PromptsNeeded] | None = None
    frontier: tuple[tuple[float, float], ...] = ()
    agreement: tuple[AgreementAudit, ...] = ()
    checks: tuple[CheckAudit, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker audit --json`; numbers that are not finite are null."""
        document = asdict(self)
        document["prompts"] = document.pop("counts")
        document["pairs"] = [{"tiers": list(names), **asdict(pair)} for names, pair in (self.pairs or {}).items()]
        document["needed"] = [
            {"quality": quality, "n_prompts": n.like_best, "n_prompts_like_substitute": n.like_substitute}
            for quality, n in (self.needed or {}).items()
        ]
        return dict(_finite(document))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
