"""The rule that chooses a tier: who is admissible, who is best, when the log's best tier answers, who is explored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")  # What stands for a tier: its name, or its number.


def admissible(eligible: Sequence[T], success: Mapping[T, float], slack: float) -> list[T]:
    """The eligible tiers whose success is at most `slack` below the highest among them, in the order given.

    eligible: at least one tier. success: P(the tier answers correctly), of every eligible tier.
    """
    bar = max([success[tier] for tier in eligible]) - slack
    return [tier for tier in eligible if success[tier] >= bar]


def best(tiers: Sequence[T], success: Mapping[T, float], cost_usd: Mapping[T, float], worth_usd: float) -> T:
    """The tier with the largest worth_usd * success - cost_usd among admissible tiers, as the graph chooses it.

    Among equal values the higher success wins, then the earlier tier.
    """
    return max(tiers, key=lambda tier: (worth_usd * success[tier] - cost_usd[tier], success[tier]))


def or_best_tier(
    chosen: T, best_tier: T, success: Mapping[T, float], cost_usd: Mapping[T, float], worth_usd: float
) -> T:
    """Who answers where the bundle does not promise the quality: the log's best tier, unless another is worth more.

    chosen: the best of the admissible tiers. Without worth_usd (0) the best tier answers: to leave it takes a proof.
    With worth_usd the chosen tier answers where its worth_usd * success - cost_usd is larger; of equals the one with
    the higher success, then the best tier.
    """
    return best([best_tier, chosen], success, cost_usd, worth_usd) if worth_usd > 0 else best_tier


def explored(chosen: T, tiers: Sequence[T], share: float, decision_id: str) -> tuple[T, float]:
    """The tier to ask, and the propensity of that choice: the probability with which it is made.

    chosen: the best of the admissible `tiers`. With probability `share` one of the others is asked instead, each with
        the same probability (epsilon-greedy, Sutton & Barto 2018, section 2.2). Where there is no other, the chosen
        tier is asked with propensity 1.
    decision_id: seeds the draw, so that the record of a decision is enough to replay it. It must be random: whoever
        could choose it would choose what is explored, and the propensity would be wrong.
    """
    others = [tier for tier in tiers if tier != chosen]
    if not others or share == 0:
        return chosen, 1.0
    draw = int.from_bytes(blake2b(decision_id.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64
    if draw >= share:
        return chosen, 1 - share
    return others[min(int(draw / share * len(others)), len(others) - 1)], share / len(others)
