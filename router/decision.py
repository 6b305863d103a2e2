"""The answer to one request: which tier, why, and what would change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from router.bundle.clusters import Cluster
from router.notebook import card
from router.portfolio.tiers import Offer
from router.rule import admissible, best, or_best_tier


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

        An explored decision is explained as if the rule's own choice had been made.
        """
        return _explained(self)

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


# ---- explanation -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What would make another tier win, all else being equal.

    price_factor: its price multiplied by this; None where it is not admissible, or no price would do.
    worth_usd: a worth of at least this (where it costs more than the tier chosen) or of at most this (where it costs
        less); 0 where any worth would do, if only one were given; None where it is not admissible, or no worth would
        do. Where another tier wins before it, that tier stands first in the list of changes.
    slack: the least slack of a promised quality that admits it; None where it is admissible already.
    """

    tier: str
    price_factor: float | None = None
    worth_usd: float | None = None
    slack: float | None = None


@dataclass(frozen=True)
class Explanation:
    """A decision in words.

    admissible: the tiers it was chosen from.
    changes: what would make each of the other eligible tiers win.
    similar: the logged prompts that the prompt is most like, and how the tiers answered them; None where the prompt
        could not be read.
    lines: all of this as text.
    """

    tier: str
    reason: str
    admissible: tuple[str, ...]
    changes: tuple[Change, ...]
    similar: Cluster | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def _explained(decision: Decision) -> Explanation:
    tiers: list[str] = []
    changes: list[Change] = []
    lines = [decision.reason]
    if decision.eligible:
        tiers = admissible(decision.eligible, decision.success, decision.slack)
        winner = best(tiers, decision.success, decision.price_usd, decision.worth_usd)
        if decision.best_tier is not None:
            winner = or_best_tier(winner, decision.best_tier, decision.success, decision.price_usd, decision.worth_usd)
            tiers = [name for name in decision.eligible if name in tiers or name == decision.best_tier]
        changes = [_change(decision, winner, name, tiers) for name in decision.eligible if name != winner]
        changes.sort(key=lambda change: _distance(change, decision.worth_usd))
        lines += [*_facts(decision, winner), *_similar(decision)]
        lines += [_line(decision, winner, change) for change in changes]
    return Explanation(
        tier=decision.tier,
        reason=decision.reason,
        admissible=tuple(tiers),
        changes=tuple(changes),
        similar=decision.cluster,
        lines=tuple(lines),
    )


def _change(decision: Decision, winner: str, other: str, tiers: list[str]) -> Change:
    success, cost, price, worth = decision.success, decision.cost_usd, decision.price_usd, decision.worth_usd
    if other not in tiers:
        return Change(other, slack=max(success[name] for name in decision.eligible) - success[other])
    gain, extra = success[other] - success[winner], price[other] - price[winner]
    no_worth_would_do = gain == 0 or extra / gain < 0  # Better and cheaper, or worse and dearer, at any worth.
    needed = None if no_worth_would_do else extra / gain
    if decision.best_tier is not None and worth == 0:  # The best tier answers at any price.
        any_would_do = gain >= 0 >= extra and gain != extra
        return Change(other, worth_usd=0.0 if any_would_do else needed)
    shadow = price[other] - cost[other]
    factor = (worth * gain + price[winner] - shadow) / cost[other] if cost[other] > 0 else None
    return Change(other, price_factor=None if factor is None or factor <= 0 else factor, worth_usd=needed)


def _distance(change: Change, worth_usd: float) -> tuple[bool, float]:
    return change.worth_usd is None, abs((change.worth_usd or 0.0) - worth_usd)


def _facts(decision: Decision, winner: str) -> list[str]:
    """The winner against the tier of the highest success, and the promise."""
    success, cost = decision.success, decision.cost_usd
    strongest = max(decision.eligible, key=lambda name: success[name])
    lines = [f"{winner} is expected to be right with {success[winner]:.1%} probability, for USD {cost[winner]:.6f}."]
    if strongest != winner:
        share = f" ({winner} costs {cost[winner] / cost[strongest]:.0%} of that)" if cost[strongest] > 0 else ""
        lines.append(
            f"{strongest} has the highest success: {success[strongest]:.1%}, for USD {cost[strongest]:.6f}{share}."
        )
    if short := [name for name in decision.eligible if decision.shadow_usd.get(name, 0.0) > 0]:
        added = ", ".join(f"USD {decision.shadow_usd[name]:.6f} to {name}" for name in short)
        lines.append(f"Caps and budgets make offers short, which adds {added}.")
    if decision.best_tier is not None:
        lines.append(
            f"The bundle does not promise to keep {decision.quality:g} of the best tier's accuracy, so the best tier "
            f"of the log, {decision.best_tier}, answers unless another is worth more."
        )
    elif decision.quality is not None:
        holds = "covers" if decision.promised else "does not cover"
        lines.append(f"The bundle's promise to keep {decision.quality:g} of the best tier's accuracy {holds} it.")
    return lines


def _similar(decision: Decision) -> list[str]:
    """How the tiers answered the logged prompts that this one is most like."""
    cluster = decision.cluster
    if cluster is None:
        return []
    kinds = [f"{share:.0%} {segment}" for segment, share in list(cluster.segments.items())[:1]]
    if decision.familiarity != 1:
        kinds.append("the nearest, not quite like this one")
    which = f"a group of {cluster.n_prompts:,} similar logged prompts" + (f" ({'; '.join(kinds)})" if kinds else "")
    rates = ", ".join(
        f"{tier} {success:.0%} of {cluster.n_outcomes[tier]:,}" for tier, success in cluster.success.items()
    )
    lines = [f"Correct answers to {which}: {rates}."]
    if unasked := [tier for tier in decision.success if tier not in cluster.n_outcomes]:
        lines.append(
            f"Never asked any of them: {', '.join(unasked)}. The estimate assumes as good answers, compared with the "
            "other tiers, as elsewhere."
        )
    return [*lines, *(f'  such as: "{example}"' for example in cluster.examples)]


def _line(decision: Decision, winner: str, change: Change) -> str:
    """What would make one other tier win, in a sentence."""
    if change.slack is not None:
        # A critical request has no quality that could be lowered.
        remedy = ": a lower quality would admit it" if decision.quality is not None else ""
        remedy += ", if the bundle promises that one" if decision.best_tier is not None else ""
        return (
            f"{change.tier} ({decision.success[change.tier]:.1%}) is {change.slack:.3f} below the highest success, "
            f"where {decision.slack:.3f} is allowed{remedy}."
        )
    ways: list[str] = []
    if change.worth_usd == 0 and decision.best_tier is not None:
        ways.append("a correct answer were given any worth")
    elif change.worth_usd is not None:
        is_dearer = decision.price_usd[change.tier] > decision.price_usd[winner]
        bound = "at least" if is_dearer else "at most"
        ways.append(f"a correct answer were worth {bound} USD {change.worth_usd:.6f}")
    if change.price_factor is not None:
        ways.append(f"its price were at most {change.price_factor:.3g} of what it is")
    if not ways:
        return f"{change.tier} would not win at any worth or price."
    return f"{change.tier} ({decision.success[change.tier]:.1%}) would win if {' or if '.join(ways)}."
