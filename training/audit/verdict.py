"""Whether to route, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping

from training.audit.promises import promise_takes
from training.audit.result import Ceiling, Money, PromptsNeeded
from training.evaluation.metrics import Interval

MIN_LEAD = 0.01
"""Routing is worth the trouble if it gains this much accuracy, or saves this share beyond mixing single tiers."""


def verdict_of(
    best: str, ceiling: Ceiling, money: tuple[Money, ...], n_training: int, needed: Mapping[float, PromptsNeeded]
) -> tuple[str, str]:
    """The action and its reason.

    best: name of the best tier. n_training: complete prompts of the training part; needed: how many of these a promise
    of each quality takes.
    """
    lead, least_lead = ceiling.lead.value, ceiling.lead.low
    if ceiling.repeats:
        lead = least_lead = max(0.0, ceiling.repeats[0] - ceiling.low)
    at_98 = money[-1]
    saving = at_98.mix_of_singles.value - at_98.knowing_difficulty.high
    if saving < MIN_LEAD and least_lead < MIN_LEAD:
        return "do not route", (
            f"Do not route: always ask {best}, or mix single tiers. The log does not show that routing could gain "
            f"accuracy (ceiling about {ceiling.low + lead:.1%}, {best} {ceiling.low:.1%}) or money beyond that."
        )
    accuracy = (
        f"accuracy could rise from {ceiling.low:.1%} to about {ceiling.low + lead:.1%}"
        if least_lead >= MIN_LEAD
        else f"do not count on more accuracy than its {ceiling.low:.1%}"
    )
    reason = (
        f"98 % of {best}'s accuracy costs {_percent(at_98.mix_of_singles)} of always asking it by mixing single tiers, "
        f"{_percent(at_98.knowing_difficulty)} for a router that knows how hard each prompt is and nothing else, and "
        f"{_percent(at_98.knowing_outcomes)} for an oracle that knows every outcome; a router that also learns which "
        f"tier is good at what comes between the last two at best; {accuracy}"
    )
    least = needed[0.95].like_best
    if least is None or n_training < least:
        takes = promise_takes(0.95, needed[0.95], best, n_training)
        return "not enough outcomes", f"Not enough outcomes. {takes} It looks worth logging more: {reason}."
    return "route", f"Route: {reason}. {promise_takes(0.98, needed[0.98], best, n_training)}"


def _percent(figure: Interval) -> str:
    return f"{100 * figure.value:.0f} %"
