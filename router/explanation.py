"""Why a decision was made, what speaks for it and what would change it, in words for a colleague."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.bundle.clusters import Cluster
    from router.decision import Decision


@dataclass(frozen=True)
class Change:
    """What would make another tier win, all else being equal.

    price_factor: its price times this; None where it is not admissible, or no price would do.
    worth_usd: from this worth on (where it costs more) or down to it (where it costs less); None where it is not
        admissible, or no worth would do. Another tier may win before it does: the next one is listed first.
    slack: admissible from this slack on; None where it is admissible already.
    """

    tier: str
    price_factor: float | None
    worth_usd: float | None
    slack: float | None


@dataclass(frozen=True)
class Explanation:
    """A decision in words.

    admissible: the tiers it was chosen from; changes: of the other eligible tiers. similar: the logged prompts that the
    prompt is most like, and how the tiers answered them; None where the prompt could not be read.
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


def explain(decision: Decision) -> Explanation:
    """What spoke for the tier, and what would make another one win.

    The rule: among eligible tiers, those within the slack of the highest success are admissible; of these the largest
    worth x success - cost wins. An explored decision is explained as the rule's own choice would be.
    """
    success, cost = decision.success, decision.cost_usd
    if decision.fallback or not decision.eligible:
        return Explanation(decision.tier, decision.reason, (), (), decision.cluster, (decision.reason,))
    highest = max(success[name] for name in decision.eligible)
    admissible = tuple(name for name in decision.eligible if success[name] >= highest - decision.slack)
    # The graph's rule: of equal values the highest success, then the first.
    best = max(admissible, key=lambda name: (decision.worth_usd * success[name] - cost[name], success[name]))
    changes = tuple(
        sorted(
            (_change(decision, best, name, name in admissible, highest) for name in decision.eligible if name != best),
            key=lambda change: _distance(change, decision.worth_usd),
        )
    )
    lines = [
        decision.reason,
        *_facts(decision, best),
        *_similar(decision),
        *(_line(decision, best, change) for change in changes),
    ]
    return Explanation(decision.tier, decision.reason, admissible, changes, decision.cluster, tuple(lines))


def _change(decision: Decision, best: str, other: str, is_admissible: bool, highest: float) -> Change:
    success, cost, worth = decision.success, decision.cost_usd, decision.worth_usd
    if not is_admissible:
        return Change(other, None, None, highest - success[other])
    gain, extra = success[other] - success[best], cost[other] - cost[best]
    factor = (worth * gain + cost[best]) / cost[other] if cost[other] > 0 else None
    is_tie = gain == 0 or extra / gain < 0  # better and cheaper, or worse and dearer, at any worth
    return Change(other, factor if factor is None or factor > 0 else None, None if is_tie else extra / gain, None)


def _distance(change: Change, worth_usd: float) -> tuple[bool, float]:
    return change.worth_usd is None, abs((change.worth_usd or 0.0) - worth_usd)


def _facts(decision: Decision, best: str) -> list[str]:
    """The tier chosen against the one of the highest success, and the promise."""
    success, cost = decision.success, decision.cost_usd
    strongest = max(decision.eligible, key=lambda name: success[name])
    lines = [f"{best} is expected to be right with {success[best]:.1%}, for USD {cost[best]:.6f}."]
    if strongest != best:
        share = f", {cost[best] / cost[strongest]:.0%} of its cost" if cost[strongest] > 0 else ""
        lines.append(
            f"The highest success has {strongest}: {success[strongest]:.1%}, USD {cost[strongest]:.6f}{share}."
        )
    if decision.quality is not None:
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
    line = f"Correct answers to {which}: {rates}."
    return [line, *(f'  such as: "{example}"' for example in cluster.examples)]


def _line(decision: Decision, best: str, change: Change) -> str:
    if change.slack is not None:
        remedy = ": a lower quality would admit it" if decision.quality is not None else ""  # not of a critical request
        return (
            f"{change.tier} ({decision.success[change.tier]:.1%}) is {change.slack:.3f} below the highest success, "
            f"where {decision.slack:.3f} is allowed{remedy}."
        )
    ways: list[str] = []
    if change.worth_usd is not None:
        is_dearer = decision.cost_usd[change.tier] > decision.cost_usd[best]
        bound = "at least" if is_dearer else "at most"
        ways.append(f"a correct answer were worth {bound} USD {change.worth_usd:.6f}")
    if change.price_factor is not None:
        ways.append(f"its price were at most {change.price_factor:.3g} of what it is")
    if not ways:
        return f"{change.tier} would not win at any worth or price."
    return f"{change.tier} ({decision.success[change.tier]:.1%}) would win if {' or if '.join(ways)}."
