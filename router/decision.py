"""The answer to one request: which tier, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from router.bundle.clusters import Cluster
from router.explanation import Explanation, explain
from router.portfolio.tiers import Offer


@dataclass(frozen=True, slots=True)
class Decision:
    """The tier chosen for a request, with all that it was chosen from.

    offer: the cheapest eligible offer of the tier; None where a fallback has none.
    success: P(the tier answers correctly), calibrated, per tier; empty where the prompt could not be read.
    output_tokens, cost_usd: expected length and expected cost of the answer, per tier.
    context_tokens: tokens counted as billed input.
    quality: the dial in force; None where worth_usd alone or `critical` decided.
    slack: how far below the highest success a tier was still admissible.
    promised: whether the bundle's promise of `quality` covers this decision; it speaks of requests like the log's, so
        not where familiarity is below 1.
    fallback: the router could not decide; `reason` says why.
    decision_id: 32 random hexadecimal digits, by which an outcome finds its decision; request_id: the caller's own.
    propensity: probability with which this tier was chosen (1 without exploration, see Policy).
    familiarity: 1 where the prompt is like those trained on, towards 0 the stranger it is, and `success` the nearer to
        the tiers' means; None where the prompt could not be read.
    eligible: the tiers that could have been asked; none in a fallback.
    cluster: the logged prompts that this one is most like; None where the prompt could not be read.
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

    def explain(self) -> Explanation:
        """Why this tier, and what would change it, in words; `str` of it is some lines of text."""
        return explain(self)

    def to_json(self) -> str:
        """One line of JSON; it never holds the prompt, and of the cluster only its number."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=_as_json)


def _as_json(value: Offer | Cluster) -> Any:
    return value.number if isinstance(value, Cluster) else asdict(value)
