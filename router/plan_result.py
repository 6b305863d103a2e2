"""What came of running a plan: its answer, and all attempts that led to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.checks.verdict import Verdict
from router.errors import CheckError
from router.portfolio.tiers import Offer


@dataclass(frozen=True, slots=True)
class Answer:
    """What `ask` may return in place of a text, where it knows what the call cost.

    cost_usd: at least 0. Where it is missing, it is the tokens at the offer's prices, or else what was expected.
    input_tokens, output_tokens: as billed. Raises ValueError where one of these is below 0 or no number.
    """

    text: str
    cost_usd: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("cost_usd", "input_tokens", "output_tokens"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} of an answer is {value}; expected at least 0")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One call of a plan that was run.

    answer: its text; None where the call failed, and then `error` says why.
    verdicts: what the checks said, by name. blind: the checks that could not look at the answer, with their errors.
    seen: what the plan went on by, in words; empty where it looked at nothing, or the call failed.
    cost_usd: of the call; cost_is_estimated: it is what was expected, since nobody said more. A failed call costs 0.
    latency_ms: until the answer was there, or the call failed.
    attempt_id: by which an outcome finds this answer in the log; the decision_id for the answer that was returned.
    """

    tier: str
    offer: Offer
    latency_ms: float
    attempt_id: str
    answer: str | None = None
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    blind: Mapping[str, CheckError] = field(default_factory=dict)
    seen: str = ""
    cost_usd: float = 0.0
    cost_is_estimated: bool = False
    input_tokens: int | None = None
    output_tokens: int | None = None
    error: Exception | None = None

    @property
    def checks_usd(self) -> float:
        """What all checks of this answer cost, in USD."""
        return sum(said.cost_usd for each in (self.verdicts, self.blind) for said in each.values())

    def to_json(self) -> dict[str, Any]:
        """As plain values, without any text of an answer, a verdict or an error."""
        return {
            "tier": self.tier,
            "model": self.offer.model,
            "provider": self.offer.provider,
            "verdicts": {name: verdict.score for name, verdict in self.verdicts.items()},
            "blind": list(self.blind),
            "seen": self.seen,
            "cost_usd": self.cost_usd,
            "cost_is_estimated": self.cost_is_estimated,
            "checks_usd": self.checks_usd,
            "latency_ms": self.latency_ms,
            "attempt_id": self.attempt_id,
            "error": None if self.error is None else type(self.error).__name__,
        }


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """The answer that a plan came to.

    answer: its text. tier, offer: who gave it. success: P(it is right), given all that was seen.
    cost_usd: of all attempts and checks; cost_is_estimated: a part of it is what was expected.
    attempts: all calls, in the order in which they were made. reason: what was asked and seen, and why it stopped.
    """

    answer: str
    tier: str
    offer: Offer
    success: float
    cost_usd: float
    cost_is_estimated: bool
    attempts: tuple[Attempt, ...]
    reason: str

    def to_json(self) -> str:
        """One line of JSON, without any text of the prompt or of an answer."""
        names = ("tier", "success", "cost_usd", "cost_is_estimated", "reason")
        document = {name: getattr(self, name) for name in names}
        document |= {"model": self.offer.model, "attempts": [attempt.to_json() for attempt in self.attempts]}
        return json.dumps(document, ensure_ascii=False, allow_nan=False)
