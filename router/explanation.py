"""A decision in words: why this tier, at what price, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from router.bundle.clusters import Cluster
from router.rule import admissible, best, or_best_tier


class _Decision(Protocol):
    """What is read of a router.Decision, which says what each of these is."""

    @property
    def tier(self) -> str: ...
    @property
    def success(self) -> Mapping[str, float]: ...
    @property
    def cost_usd(self) -> Mapping[str, float]: ...
    @property
    def shadow_usd(self) -> Mapping[str, float]: ...
    @property
    def price_usd(self) -> Mapping[str, float]: ...
    @property
    def reason(self) -> str: ...
    @property
    def quality(self) -> float | None: ...
    @property
    def worth_usd(self) -> float: ...
    @property
    def slack(self) -> float: ...
    @property
    def promised(self) -> bool: ...
    @property
    def propensity(self) -> float: ...
    @property
    def familiarity(self) -> float | None: ...
    @property
    def eligible(self) -> tuple[str, ...]: ...
    @property
    def cluster(self) -> Cluster | None: ...
    @property
    def best_tier(self) -> str | None: ...


@dataclass(frozen=True)
class Change:
    """What would make another tier win, all else being equal.

    price_factor: its price multiplied by this; None where it is not admissible, or no price would do.
    worth_usd: a worth of at least this (where it costs more than the tier chosen) or of at most this (where it costs
        less); 0 where any worth would do, if only one were given; None where it is not admissible, or no worth would
        do. Where another tier wins before it, that tier stands first in the list of changes.
    slack: the least slack of a promised quality that admits it; None where it is admissible already.
    text: all of this in a sentence.
    """

    tier: str
    price_factor: float | None = None
    worth_usd: float | None = None
    slack: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Explanation:
    """A decision in words.

    admissible: the tiers it was chosen from.
    why: sentences: who answers and why, how likely it is right and what it costs, and whether the promise holds.
    changes: what would make each of the other eligible tiers win.
    similar: the logged prompts that the prompt is most like, and how the tiers answered them; None where the prompt
        could not be read.
    lines: all of this as text.
    """

    tier: str
    reason: str
    admissible: tuple[str, ...]
    why: tuple[str, ...]
    changes: tuple[Change, ...]
    similar: Cluster | None
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def explain(decision: _Decision) -> Explanation:
    """The explanation of a decision. An explored one says so, and what would change the rule's own choice."""
    if not decision.eligible:
        return Explanation(
            tier=decision.tier,
            reason=decision.reason,
            admissible=(),
            why=(decision.reason,),
            changes=(),
            similar=decision.cluster,
            lines=(decision.reason,),
        )
    tiers = admissible(decision.eligible, decision.success, decision.slack)
    winner = best(tiers, decision.success, decision.price_usd, decision.worth_usd)
    if decision.best_tier is not None:
        winner = or_best_tier(winner, decision.best_tier, decision.success, decision.price_usd, decision.worth_usd)
        tiers = [name for name in decision.eligible if name in tiers or name == decision.best_tier]
    changes = [_change(decision, winner, name, tiers) for name in decision.eligible if name != winner]
    changes.sort(key=lambda change: _distance(change, decision.worth_usd))
    why = (_choice(decision, winner, tiers), _figures(decision), *_short_offers(decision), *_promise(decision))
    title = "What would change it:" if winner == decision.tier else f"What would change the rule's choice of {winner}:"
    what_would = [title, *(f"- {change.text}" for change in changes)] if changes else []
    return Explanation(
        tier=decision.tier,
        reason=decision.reason,
        admissible=tuple(tiers),
        why=why,
        changes=tuple(changes),
        similar=decision.cluster,
        lines=(*why, *_similar(decision), *what_would),
    )


# ---- figures in words --------------------------------------------------------------------------------------


def percent(share: float, digits: int = 1) -> str:
    """Such as "87.8 %"."""
    return f"{100 * share:.{digits}f} %"


def usd(amount: float) -> str:
    """Such as "USD 0.00287": three significant digits, never an exponent."""
    if amount == 0:
        return "USD 0"
    text = f"{float(f'{amount:.3g}'):.15f}".rstrip("0").rstrip(".")
    return f"USD {text}" if text.strip("-0.") else f"USD {amount:.3g}"


def _times(ratio: float) -> str:
    """A ratio of prices: "32 % of", or "14 times"."""
    if ratio >= 2:
        return f"{ratio:.3g} times as much as" if ratio < 100 else f"{ratio:,.0f} times as much as"
    return f"{100 * ratio:.0f} % of" if ratio >= 0.01 else f"{100 * ratio:.2g} % of"


# ---- why this tier -----------------------------------------------------------------------------------------


def _choice(decision: _Decision, winner: str, tiers: list[str]) -> str:
    """Who answers, and by what rule."""
    if winner != decision.tier:
        share = percent(decision.propensity)
        return (
            f"{decision.tier} answers to explore, a choice made with {share} probability; "
            f"{winner} would be the rule's choice: {_rule(decision, winner, tiers)}."
        )
    return f"{winner} answers: {_rule(decision, winner, tiers)}."


def _rule(decision: _Decision, winner: str, tiers: list[str]) -> str:
    worth = f"at {usd(decision.worth_usd)} for a correct answer" if decision.worth_usd > 0 else ""
    is_critical = decision.quality is None and decision.slack == 0
    if len(decision.eligible) == 1:
        return f"{'the request is critical, and ' if is_critical else ''}no other tier may answer it"
    if decision.best_tier is not None:
        lacks = f"the log does not support a promise of quality {decision.quality:g}"
        if winner == decision.best_tier:
            return f"{lacks}, so the best tier of the log answers" + (
                f"; {worth}, no other is worth more" if worth else ""
            )
        return f"{lacks}, but {worth}, it is worth more than the best tier of the log, {decision.best_tier}"
    if is_critical:
        return "the request is critical, and it has the highest success of the tiers that may answer"
    good = "" if decision.quality is None else f" that are good enough for quality {decision.quality:g}"
    if len(tiers) == 1:
        return f"no other tier is good enough for quality {decision.quality:g} on this prompt"
    price = "cost and the shadow price of limits" if decision.shadow_usd else "cost"
    if worth:
        return f"{worth}, it has the largest worth x success - {price} of the {len(tiers)} tiers{good}"
    return f"of the {len(tiers)} tiers{good}, it has the lowest {price}"


def _figures(decision: _Decision) -> str:
    """How likely the answer is right, and what it costs against the tier one would ask else."""
    success, cost, tier = decision.success, decision.cost_usd, decision.tier
    text = f"{tier} is right with {percent(success[tier])} probability and costs {usd(cost[tier])}."
    others = [name for name in decision.eligible if name != tier]
    if not others:
        return text
    strongest = max(others, key=lambda name: (success[name], cost[name]))
    if success[strongest] > success[tier]:
        who = f"{strongest}, which is more likely to be right ({percent(success[strongest])}, {usd(cost[strongest])})"
    else:
        strongest = max(others, key=cost.__getitem__)
        who = f"{strongest} ({percent(success[strongest])}, {usd(cost[strongest])}); no tier is more likely to be right"
    if cost[strongest] > 0:
        return f"{text} The choice costs {_times(cost[tier] / cost[strongest])} {who}."
    return f"{text} Compare {who}."


def _short_offers(decision: _Decision) -> list[str]:
    short = [name for name in decision.eligible if decision.shadow_usd.get(name, 0.0) > 0]
    if not short:
        return []
    added = ", ".join(f"{usd(decision.shadow_usd[name])} to {name}" for name in short)
    return [f"Caps and budgets make offers short, which adds a shadow price of {added}."]


def _promise(decision: _Decision) -> list[str]:
    """Whether the prompt is like the log, and whether the promise holds for it."""
    quality = decision.quality
    if decision.familiarity is not None and decision.familiarity < 1:
        shown = min(decision.familiarity, 0.99)  # Rounded up to 1 it would say the contrary.
        uncovered = "" if quality is None else f", and the promise of quality {quality:g} does not cover it"
        return [
            f"This prompt is unlike the log (familiarity {shown:.2f} of 1): its estimates are drawn towards the "
            f"average of each tier{uncovered}."
        ]
    if quality is None or decision.best_tier is not None:  # `_rule` has said that nothing is promised.
        return []
    digits = 0 if round(100 * quality, 6) % 1 == 0 else 1
    keeps = f"to keep {percent(quality, digits)} of the best tier's accuracy"
    if decision.promised:
        return [f"The bundle's promise {keeps}, on average over requests like the log's, covers this request."]
    return [f"The bundle's promise {keeps} does not cover this request."]


def _similar(decision: _Decision) -> list[str]:
    """How the tiers answered the logged prompts that this one is most like."""
    cluster = decision.cluster
    if cluster is None:
        return []
    kinds = [f"{percent(share, 0)} {segment}" for segment, share in list(cluster.segments.items())[:1]]
    if decision.familiarity != 1:
        kinds.append("the nearest, not quite like this one")
    which = f"a group of {cluster.n_prompts:,} similar logged prompts" + (f" ({'; '.join(kinds)})" if kinds else "")
    rates = ", ".join(
        f"{tier} {percent(success, 0)} of {cluster.n_outcomes[tier]:,}" for tier, success in cluster.success.items()
    )
    lines = [f"For comparison, on average over {which}, these were right: {rates}."]
    if unasked := [tier for tier in decision.success if tier not in cluster.n_outcomes]:
        lines.append(
            f"Never asked any of them: {', '.join(unasked)}. The estimate assumes as good answers, compared with the "
            "other tiers, as elsewhere."
        )
    return [*lines, *(f'  such as: "{example}"' for example in cluster.examples)]


# ---- what would change it ----------------------------------------------------------------------------------


def _change(decision: _Decision, winner: str, other: str, tiers: list[str]) -> Change:
    success, cost, price, worth = decision.success, decision.cost_usd, decision.price_usd, decision.worth_usd
    if other not in tiers:
        slack = max(success[name] for name in decision.eligible) - success[other]
        return Change(other, slack=slack, text=_text(decision, winner, other, slack=slack))
    gain, extra = success[other] - success[winner], price[other] - price[winner]
    no_worth_would_do = gain == 0 or extra / gain < 0  # Better and cheaper, or worse and dearer, at any worth.
    needed = None if no_worth_would_do else extra / gain
    factor = None
    if decision.best_tier is not None and worth == 0:  # The best tier answers at any price.
        any_would_do = gain >= 0 >= extra and gain != extra
        needed = 0.0 if any_would_do else needed
    else:
        shadow = price[other] - cost[other]
        factor = (worth * gain + price[winner] - shadow) / cost[other] if cost[other] > 0 else None
        factor = None if factor is None or factor <= 0 else factor
    text = _text(decision, winner, other, worth_usd=needed, price_factor=factor)
    return Change(other, price_factor=factor, worth_usd=needed, text=text)


def _distance(change: Change, worth_usd: float) -> tuple[bool, float]:
    return change.worth_usd is None, abs((change.worth_usd or 0.0) - worth_usd)


def _text(
    decision: _Decision,
    winner: str,
    other: str,
    *,
    slack: float | None = None,
    worth_usd: float | None = None,
    price_factor: float | None = None,
) -> str:
    """What would make one other tier win, in a sentence."""
    who = f"{other} ({percent(decision.success[other])}, {usd(decision.cost_usd[other])})"
    if slack is not None:
        shown, highest = (round(100 * each, 1) for each in (decision.success[other], decision.success[other] + slack))
        below = f"it is {highest - shown:.1f} points below the highest success"
        if decision.quality is None:  # A critical request has no quality that could be lowered.
            return f"{who}: not for a critical request; {below}."
        remedy = "only a lower quality would admit it"
        remedy += ", if the bundle promises that one" if decision.best_tier is not None else ""
        allowed = f"{100 * decision.slack:.1f}" if decision.slack else "none"
        return f"{who}: {remedy}; {below}, where quality {decision.quality:g} allows {allowed}."
    ways: list[str] = []
    if worth_usd == 0 and decision.best_tier is not None:
        ways.append("a correct answer were given any worth")
    elif worth_usd is not None:
        bound = "or more" if decision.price_usd[other] > decision.price_usd[winner] else "or less"
        ways.append(f"a correct answer were worth {usd(worth_usd)} {bound}")
    if price_factor is not None:
        ways.append(f"its price {_price_change(price_factor)}")
    if not ways:
        return f"{who}: it would not win at any worth or price."
    return f"{who}: if {', or if '.join(ways)}."


def _price_change(factor: float) -> str:
    """A factor on a price that another tier would need to win, in words."""
    if factor >= 1:  # It costs less already, but is worth less: no price that is higher makes it win.
        return f"were at most {factor:.3g} times today's"
    return f"fell to {100 * factor:.3g} % of today's"
