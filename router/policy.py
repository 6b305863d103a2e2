"""From the dials of a request to the numbers that the graph takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from numbers import Real

import numpy as np

from router.bundle import Manifest
from router.errors import DialError
from router.tiers import Offer


@dataclass(frozen=True)
class Policy:
    """What holds for every request of a router unless the request says otherwise.

    default_quality: the quality of a request without dials; None takes the bundle's.
    fallback_tier: answers where the router cannot decide; None takes the bundle's best tier.
    regions: only offers of these regions are eligible; None admits all.
    """

    default_quality: float | None = None
    fallback_tier: str | None = None
    regions: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Dials:
    """What a request's dials come to.

    quality: None where it has no say. promised: whether the bundle stands by it.
    worth_input, slack_input: the two numbers as the graph takes them, float32 (1,).
    """

    quality: float | None
    slack: float
    worth_usd: float
    critical: bool
    promised: bool
    worth_input: np.ndarray = field(init=False, repr=False, compare=False)
    slack_input: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worth_input", np.array([self.worth_usd], np.float32))
        object.__setattr__(self, "slack_input", np.array([self.slack], np.float32))


def resolve_dials(
    manifest: Manifest, policy: Policy, quality: float | None, worth_usd: float | None, *, critical: bool
) -> Dials:
    """The dials in force for one request.

    critical: only the highest success counts.
    worth_usd alone: every eligible tier is admissible, money decides freely.
    Raises DialError where quality is not in (0, 1] or worth_usd is negative or not finite.
    """
    if quality is not None and not (isinstance(quality, Real) and 0 < quality <= 1):
        raise DialError(f"quality is {quality!r}; expected a share above 0 and at most 1")
    if worth_usd is not None and not (isinstance(worth_usd, Real) and 0 <= worth_usd < math.inf):
        raise DialError(f"worth_usd is {worth_usd!r}; expected what a correct answer is worth, at least 0 USD")
    if critical:
        return Dials(None, 0.0, 0.0, critical=True, promised=False)
    if quality is None and worth_usd is not None:
        return Dials(None, 1.0, worth_usd, critical=False, promised=False)
    if quality is None:
        quality = manifest.default_quality if policy.default_quality is None else policy.default_quality
    point = manifest.dial_point(quality)
    return Dials(quality, point.slack, worth_usd or 0.0, critical=False, promised=point.promised)


def offer_filter(regions: Collection[str] | None, capabilities: Collection[str]) -> Callable[[Offer], bool] | None:
    """Which offers a request accepts; None where it accepts all."""
    if regions is None and not capabilities:
        return None
    needed = frozenset(capabilities)
    return lambda offer: (regions is None or offer.region in regions) and needed.issubset(offer.capabilities)
