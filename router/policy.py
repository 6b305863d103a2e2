"""What holds for requests: the policy of the operator, and the dials, as the numbers that the graph takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import numpy as np

from router.bundle.manifest import Manifest
from router.clients import Clients
from router.errors import DialError, PolicyError
from router.restrictions import Restrictions

_MOST_USD = 1e12


@dataclass(frozen=True)
class Policy:
    """What holds for the requests of a router; docs/policy.md has the file that an operator writes.

    default_quality: the quality of a request without dials, in (0, 1]; None takes the bundle's.
    fallback_tier: the tier that answers where the router cannot decide; None takes the bundle's best tier.
    regions: of a request that names none, only offers of these regions are eligible; None admits all.
    exploration: share of requests that ask another admissible tier than the best, in [0, 1); 0.02 is a good start.
        Explored tiers are within the slack of the request's quality, so the promise covers them. The decision's
        propensity lets training and off-policy evaluation use the outcomes. Critical requests never explore. The
        random decision_id seeds the draw (router.rule.explored): no caller can choose what is explored, and the record
        of a decision replays it.
    every_request: rules that every request keeps, whatever it says. classes: by its name the rules of each class of
        requests, which those of a request's `request_class` keep as well.
    clients: what each client of an endpoint may ask for; None lets the gateway's usual limits hold for all.
    Raises DialError where exploration is out of range.
    """

    default_quality: float | None = None
    fallback_tier: str | None = None
    regions: frozenset[str] | None = None
    exploration: float = 0.0
    every_request: Restrictions | None = None
    classes: Mapping[str, Restrictions] = field(default_factory=dict)
    clients: Clients | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.exploration, Real) and 0 <= self.exploration < 1):
            raise DialError(f"exploration is {self.exploration!r}; expected a share of at least 0 and below 1")
        named = {
            name: each if each.name else replace(each, name=f"class {name}") for name, each in self.classes.items()
        }
        object.__setattr__(self, "classes", named)
        if self.every_request is not None and not self.every_request.name:
            object.__setattr__(self, "every_request", replace(self.every_request, name="the policy"))

    def check_tiers(self, tiers: Collection[str]) -> None:
        """Raises PolicyError where a rule names a tier that is not among these."""
        of_clients = () if self.clients is None else self.clients.restrictions
        for each in (self.every_request, *self.classes.values(), *of_clients):
            if each is not None and each.tiers is not None and (unknown := sorted(set(each.tiers) - set(tiers))):
                raise PolicyError(
                    f"{each.name}: tiers names {', '.join(unknown)}; expected any of the bundle's: {', '.join(tiers)}"
                )

    def restrictions(self, request_class: str | None, client: Restrictions | None) -> tuple[Restrictions, ...]:
        """All rules that a request must keep: those of every request, of its class, and of its client.

        Raises DialError where there is no such class.
        """
        of_class = None
        if request_class is not None:
            try:
                of_class = self.classes[request_class]
            except (KeyError, TypeError):
                known = ", ".join(self.classes) or "no class: the policy has none"
                raise DialError(f"request_class is {request_class!r}; expected {known}") from None
        return tuple(each for each in (self.every_request, of_class, client) if each is not None)


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
