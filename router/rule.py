"""Bounded exploration: now and then another admissible tier, so that logs can tell what it would have done."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b


def explored(chosen: int, admissible: Sequence[int], share: float, request_id: str) -> tuple[int, float]:
    """The tier to ask, and the propensity of that choice: the probability with which it is made.

    chosen: the best of the admissible tiers. With probability `share` one of the others is asked instead, each
    as likely as the other (epsilon-greedy, Sutton & Barto 2018, section 2.2). The draw is a hash of the request's
    id, so that it replays. Where no other tier is admissible, nothing is drawn and the propensity is 1.
    """
    others = [tier for tier in admissible if tier != chosen]
    if not others or share == 0:
        return chosen, 1.0
    draw = int.from_bytes(blake2b(request_id.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64
    if draw >= share:
        return chosen, 1 - share
    return others[min(int(draw / share * len(others)), len(others) - 1)], share / len(others)
