"""From the dials of a request to the numbers that the graph takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from router.bundle.manifest import Manifest
from router.errors import DialError
from router.portfolio.tiers import Offer

_MOST_USD = 1e12


@dataclass(frozen=True)
class Policy:
    """What holds for every request of a router unless the request says otherwise.

    default_quality: the quality of a request without dials, in (0, 1]; None takes the bundle's.
    fallback_tier: the tier that answers where the router cannot decide; None takes the bundle's best tier.
    regions: only offers of these regions are eligible; None admits all.
    exploration: share of requests that ask another admissible tier than the best, in [0, 1); 0.02 is a good start.
        Explored tiers are within the slack of the request's quality, so the promise covers them. The decision's
        propensity lets training and off-policy evaluation use the outcomes. Critical requests never explore. The
        random decision_id seeds the draw (router.rule.explored): no caller can choose what is explored, and the record
        of a decision replays it.
    Raises DialError where exploration is out of range.
    """

    default_quality: float | None = None
    fallback_tier: str | None = None
    regions: frozenset[str] | None = None
    exploration: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.exploration, Real) and 0 <= self.exploration < 1):
            raise DialError(f"exploration is {self.exploration!r}; expected a share of at least 0 and below 1")


@dataclass(frozen=True, slots=True)
class Dials:
    """The dials in force for a request, and the slack they come to.

    quality: None where worth_usd alone or `critical` decides.
    promised: whether the bundle promises this quality. Where it does not, the best tier answers (`unproven`).
    n_needed: about how many prompts the promise takes; None where no number of them is enough.
    worth_input, slack_input: the two numbers as the graph takes them, float32 (1,).
    """

    quality: float | None
    slack: float
    worth_usd: float
    critical: bool
    promised: bool
    n_needed: int | None = None
    worth_input: np.ndarray = field(init=False, repr=False, compare=False)
    slack_input: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "worth_input", np.array([self.worth_usd], np.float32))
        object.__setattr__(self, "slack_input", np.array([self.slack], np.float32))

    @property
    def unproven(self) -> bool:
        """Whether a quality is asked for that the bundle does not promise: see router.rule.or_best_tier."""
        return self.quality is not None and not self.promised


def resolve_dials(
    manifest: Manifest, policy: Policy, quality: float | None, worth_usd: float | None, *, critical: bool
) -> Dials:
    """The dials in force for one request.

    critical: only the highest success counts.
    worth_usd without quality: every eligible tier is admissible, money decides freely.
    Raises DialError where quality is not in (0, 1], worth_usd is not from 0 to 1e12, or critical is no bool.
    """
    if not isinstance(critical, bool):
        raise DialError(f"critical is {critical!r}; expected True or False")
    if quality is not None and not (isinstance(quality, Real) and 0 < quality <= 1):
        raise DialError(f"quality is {quality!r}; expected a share above 0 and at most 1")
    if worth_usd is not None and not (isinstance(worth_usd, Real) and 0 <= worth_usd <= _MOST_USD):
        raise DialError(f"worth_usd is {worth_usd!r}; expected what a correct answer is worth, from 0 to {_MOST_USD:g}")
    if critical:
        return Dials(quality=None, slack=0.0, worth_usd=0.0, critical=True, promised=False)
    if quality is None and worth_usd is not None:
        return Dials(quality=None, slack=1.0, worth_usd=worth_usd, critical=False, promised=False)
    if quality is None:
        quality = manifest.default_quality if policy.default_quality is None else policy.default_quality
    point = manifest.dial_point(quality)
    return Dials(
        quality=quality,
        slack=point.slack,
        worth_usd=worth_usd or 0.0,
        critical=False,
        promised=point.promised,
        n_needed=point.n_needed,
    )


@dataclass(frozen=True, slots=True)
class OfferFilter:
    """Which offers a request accepts; upper and lower case do not matter.

    regions: the offer must be in one of them; None admits all. capabilities: the offer must have all of them.
    """

    regions: frozenset[str] | None
    capabilities: frozenset[str]

    def __call__(self, offer: Offer) -> bool:
        """Whether the request accepts the offer."""
        return self._is_near(offer) and self._is_able(offer)

    def needing(self, capabilities: Collection[str]) -> OfferFilter:
        """The same filter for offers that have these capabilities too."""
        return replace(self, capabilities=self.capabilities | _lower("capabilities", capabilities))

    def trouble(self, offers: Collection[Offer]) -> str:
        """What none of the offers has, in words; empty where the filter accepts one of them."""
        if any(self(offer) for offer in offers):
            return ""
        if self.regions is not None and not self.regions:
            return "the request admits no region"
        where = f"is in region {' or '.join(sorted(self.regions))}" if self.regions else ""
        if not any(self._is_near(offer) for offer in offers):
            return f"no offer {where}"
        missing = sorted(self.capabilities - stated_capabilities(offers))
        able = f"has {' and '.join(missing or sorted(self.capabilities))}"
        return f"no offer {able}" if missing or not where else f"no offer {where} and {able}"

    def _is_near(self, offer: Offer) -> bool:
        return self.regions is None or offer.region.lower() in self.regions

    def _is_able(self, offer: Offer) -> bool:
        return not self.capabilities or self.capabilities <= {word.lower() for word in offer.capabilities}


def offer_filter(regions: Collection[str] | None, capabilities: Collection[str]) -> OfferFilter | None:
    """The filter of a request; None where it accepts all offers.

    regions: None admits all. Raises DialError where either is no collection of names.
    """
    if regions is None and not capabilities:
        return None
    return OfferFilter(
        regions=None if regions is None else _lower("regions", regions),
        capabilities=_lower("capabilities", capabilities),
    )


def stated_capabilities(offers: Collection[Offer]) -> frozenset[str]:
    """Every capability that any of the offers states, in lower case."""
    return frozenset(word.lower() for offer in offers for word in offer.capabilities)


def _lower(name: str, values: Collection[str]) -> frozenset[str]:
    is_list = isinstance(values, Collection) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise DialError(f"{name} is {values!r}; expected a list of names")
    return frozenset(value.lower() for value in values)
