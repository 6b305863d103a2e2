"""The answer to one request: which tier, and all that it was chosen from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from router.bundle.clusters import Cluster
from router.explanation import Explanation, explain
from router.notebook import card
from router.portfolio.tiers import Offer


@dataclass(frozen=True, slots=True)
class Decision:
    """The tier chosen for a request, with all that it was chosen from.

    offer: the cheapest usable offer of the tier; None where a fallback has none.
    success: P(the tier answers correctly), calibrated, per tier; empty where the prompt could not be read.
    output_tokens, cost_usd: expected length and expected cost of the answer, per tier.
    context_tokens: tokens counted as billed input.
    quality: the dial in force; None where worth_usd alone or `critical` decided.
    slack: how far below the highest success a tier was still admissible.
    promised: whether the bundle's promise of `quality` covers this decision. The promise speaks of requests like the
        log's, so it does not cover one with a familiarity below 1.
    fallback: the router could not decide; `reason` says why.
    decision_id: 32 random hexadecimal digits, by which an outcome finds its decision; request_id: the caller's own.
    propensity: probability with which this tier was chosen (1 without exploration, see Policy).
    familiarity: 1 where the prompt is like those trained on; falls towards 0 as the prompt gets less familiar, and
        `success` then moves towards the tiers' means. None where the prompt could not be read.
    eligible: the tiers that could have been asked; none in a fallback.
    cluster: the logged prompts that this one is most like; None where the prompt could not be read.
    best_tier: the best tier of the log, where it answers unless another is worth more, because the bundle does not
        promise the quality (router.rule.or_best_tier); None where the slack alone decides.
    shadow_usd: what caps and budgets add to the cost of each tier's best offer, since it is short; empty where nothing
        is. The rule chose at cost and shadow price together.
    request_class: the class of the policy that the request is in; None where it is in none.
    """

    tier: str
    offer: Offer | None
    success: Mapping[str, float]
    output_tokens: Mapping[str, float]
    cost_usd: Mapping[str, float]
    reason: str
    context_tokens: float
    quality: float | None
    worth_usd: float
    slack: float
    promised: bool
    fallback: bool
    bundle_id: str
    price_table_id: str
    decision_id: str = field(compare=False)
    request_id: str | None
    propensity: float
    familiarity: float | None
    eligible: tuple[str, ...] = ()
    cluster: Cluster | None = None
    best_tier: str | None = None
    shadow_usd: Mapping[str, float] = field(default_factory=dict)
    request_class: str | None = None

    @property
    def price_usd(self) -> Mapping[str, float]:
        """What the rule compared: expected cost and shadow price of each tier together."""
        if not self.shadow_usd:
            return self.cost_usd
        return {name: usd + self.shadow_usd.get(name, 0.0) for name, usd in self.cost_usd.items()}

    def explain(self) -> Explanation:
        """Why this tier, and what would make another one win, in words; `str` of it is some lines of text.

        An explored decision says what would change the rule's own choice.
        """
        return explain(self)

    def to_json(self) -> str:
        """One line of JSON. It never holds the prompt, and of the cluster it holds only the number."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_as_json)

    def _repr_html_(self) -> str:
        """The reason above a row per tier, in a notebook."""
        tiers = list(self.success)
        rows = [
            [name, f"{self.success[name]:.1%}", f"{self.cost_usd[name]:.6f}", self._standing(name)] for name in tiers
        ]
        chosen = tiers.index(self.tier) if self.tier in tiers else None
        return card([self.reason], ["tier", "success", "USD", ""], rows, chosen)

    def _standing(self, tier: str) -> str:
        if tier == self.tier:
            return "chosen"
        return "" if tier in self.eligible else "not eligible"


def _as_json(value: Offer | Cluster) -> Any:
    return value.number if isinstance(value, Cluster) else asdict(value)
