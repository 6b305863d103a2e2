"""Which offers may answer a request: its regions, its capabilities, and the rules that a policy sets for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from router.errors import DialError
from router.portfolio.fields import first_of
from router.portfolio.health import Key, key_of
from router.portfolio.tiers import Offer

_MOST_USD = 1e12


@dataclass(frozen=True)
class Restrictions:
    """Rules for some requests: those of a class, those of a client's key, or all of them.

    regions, providers: an offer must be in one of them, in upper or lower case; None admits all. An offer that states
        no region is in none.
    tiers: names of the tiers that may answer; None admits all.
    critical: every one of the requests is critical.
    max_usd: the largest expected cost of one request, in USD; None sets no limit.
    exploration: whether the requests take part in the policy's exploration.
    name: where the rules stand, for messages, as in "policy.toml [classes.internal]".
    Raises DialError where a value is of another type or out of range.
    """

    regions: Collection[str] | None = None
    providers: Collection[str] | None = None
    tiers: Collection[str] | None = None
    critical: bool = False
    max_usd: float | None = None
    exploration: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("regions", "providers"):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if self.tiers is not None:
            _names("tiers", self.tiers)
            object.__setattr__(self, "tiers", frozenset(self.tiers))
        for name in ("critical", "exploration"):
            if not isinstance(getattr(self, name), bool):
                raise DialError(f"{name} is {getattr(self, name)!r}; expected True or False")
        usd = self.max_usd
        if usd is not None and (isinstance(usd, bool) or not isinstance(usd, int | float) or not 0 < usd <= _MOST_USD):
            raise DialError(f"max_usd is {usd!r}; expected a number of USD above 0 and at most {_MOST_USD:g}")

    @property
    def restricts_offers(self) -> bool:
        """Whether some offers may not answer."""
        return (self.regions, self.providers, self.tiers, self.max_usd) != (None, None, None, None)

    def admits(self, tier: str, offer: Offer) -> bool:
        """Whether the offer may answer; says nothing of what it costs."""
        return all(has in allowed for _, has, allowed in self._rules(tier, offer))

    def trouble(self, offers: Sequence[tuple[str, Offer]]) -> str:
        """The rule that none of the offers keeps, in words; empty where one of them keeps each rule.

        offers: with the names of their tiers.
        """
        found = [self._rules(tier, offer) for tier, offer in offers]
        for number, (rule, _, allowed) in enumerate(found[0] if found else ()):
            there = {rules[number][1] for rules in found}
            if not there & set(allowed):
                has = first_of(sorted(name or "none stated" for name in there))
                return (
                    f"{self.name} allows the {rule} {_listed(allowed)}; the offers that could answer have {has}; "
                    "ask in another class, or add such an offer to the price table"
                )
        if found and not any(self.admits(tier, offer) for tier, offer in offers):
            return f"{self.name}: no offer keeps all of its rules; add one that does, or ask in another class"
        return ""

    def _rules(self, tier: str, offer: Offer) -> list[tuple[str, str, Collection[str]]]:
        """The rules in force for an offer: each with its name, what the offer has, and what is allowed."""
        found = (
            ("regions", offer.region.lower(), self.regions),
            ("providers", offer.provider.lower(), self.providers),
            ("tiers", tier, self.tiers),
        )
        return [(name, has, allowed) for name, has, allowed in found if allowed is not None]


@dataclass(frozen=True, slots=True)
class CostLimit:
    """The largest expected cost of one request, and what the request says of its answers.

    max_usd: in USD. name: where the limit stands. n_answers: how many the request asks for.
    most_output_tokens: the longest answer that it takes; infinite where it says nothing.
    """

    max_usd: float
    name: str
    n_answers: int = 1
    most_output_tokens: float = math.inf

    @classmethod
    def strictest(cls, restrictions: Collection[Restrictions]) -> CostLimit | None:
        """The least limit of all; None where there is none."""
        limits = [cls(max_usd=each.max_usd, name=each.name) for each in restrictions if each.max_usd is not None]
        return min(limits, key=lambda limit: limit.max_usd, default=None)

    def usd(self, offer: Offer, input_tokens: float, output_tokens: float) -> float:
        """What the request is expected to cost at an offer. output_tokens: expected of one answer without a limit."""
        billed_output = self.n_answers * min(output_tokens, self.most_output_tokens)
        return (input_tokens * offer.usd_per_mtok_input + billed_output * offer.usd_per_mtok_output) / 1e6

    def trouble(self, costs: Mapping[Key, float]) -> str:
        """That every offer costs more, in words. costs: expected of each offer that could answer, in USD."""
        (_, _, model), usd = min(costs.items(), key=lambda each: each[1])
        return (
            f"{self.name} allows a max_usd of {self.max_usd:g} for a request; the cheapest offer that could answer, "
            f"{model}, is expected to cost USD {usd:.6f}; ask for less, or in another class"
        )


@dataclass(frozen=True, slots=True)
class OfferFilter:
    """Which offers a request accepts; upper and lower case do not matter.

    regions: the offer must be in one of them; None admits all. capabilities: the offer must have all of them.
    restrictions: of a policy; the offer must keep every one. tier_of: by an offer's model the name of its tier.
    excluded: offers that may not answer for another reason, such as their cost.
    """

    regions: frozenset[str] | None
    capabilities: frozenset[str]
    restrictions: tuple[Restrictions, ...] = ()
    tier_of: Mapping[str, str] | None = None
    excluded: frozenset[Key] = frozenset()

    def __call__(self, offer: Offer) -> bool:
        """Whether the request accepts the offer."""
        return (
            self._is_near(offer)
            and self._is_able(offer)
            and (not self.restrictions or self._is_allowed(offer))
            and (not self.excluded or key_of(offer) not in self.excluded)
        )

    def needing(self, capabilities: Collection[str]) -> OfferFilter:
        """The same filter for offers that have these capabilities too."""
        return replace(self, capabilities=self.capabilities | _lower("capabilities", capabilities))

    def trouble(self, offers: Collection[Offer]) -> str:
        """What none of the offers has, in words; empty where the filter accepts one of them."""
        if any(self(offer) for offer in offers):
            return ""
        if self.restrictions and (trouble := self._forbidden(offers)):
            return trouble
        if self.regions is not None and not self.regions:
            return "the request admits no region"
        where = f"is in region {' or '.join(sorted(self.regions))}" if self.regions else ""
        if not any(self._is_near(offer) for offer in offers):
            return f"no offer {where}"
        missing = sorted(self.capabilities - stated_capabilities(offers))
        able = f"has {' and '.join(missing or sorted(self.capabilities))}"
        return f"no offer {able}" if missing or not where else f"no offer {where} and {able}"

    def _forbidden(self, offers: Collection[Offer]) -> str:
        """The rule of the policy that none of the offers keeps, in words; empty where one keeps all."""
        able = [offer for offer in offers if self._is_near(offer) and self._is_able(offer)]
        named = [(self._tier(offer), offer) for offer in able or offers]
        for each in self.restrictions:
            if trouble := each.trouble(named):
                return trouble
        if able and not any(self._is_allowed(offer) for offer in able):
            names = " and ".join(each.name for each in self.restrictions if each.restricts_offers)
            return f"no offer keeps the rules of {names} together; add one that does, or ask in another class"
        if self.excluded and all(key_of(offer) in self.excluded for offer in able if self._is_allowed(offer)):
            return (
                "each offer that may answer has the model name of one that may not; "
                "give every offer a model name of its own in the price table"
            )
        return ""

    def _is_allowed(self, offer: Offer) -> bool:
        tier = self._tier(offer)
        return all(each.admits(tier, offer) for each in self.restrictions)

    def _tier(self, offer: Offer) -> str:
        return "" if self.tier_of is None else self.tier_of.get(offer.model, "")

    def _is_near(self, offer: Offer) -> bool:
        return self.regions is None or offer.region.lower() in self.regions

    def _is_able(self, offer: Offer) -> bool:
        return not self.capabilities or self.capabilities <= {word.lower() for word in offer.capabilities}


def offer_filter(
    regions: Collection[str] | None,
    capabilities: Collection[str],
    restrictions: Sequence[Restrictions] = (),
    tier_of: Mapping[str, str] | None = None,
) -> OfferFilter | None:
    """The filter of a request; None where it accepts all offers.

    regions: None admits all. restrictions: of a policy. tier_of: by an offer's model the name of its tier.
    Raises DialError where regions or capabilities is no collection of names.
    """
    strict = tuple(each for each in restrictions if each.restricts_offers)
    if regions is None and not capabilities and not strict:
        return None
    return OfferFilter(
        regions=None if regions is None else _lower("regions", regions),
        capabilities=_lower("capabilities", capabilities),
        restrictions=strict,
        tier_of=tier_of,
    )


def stated_capabilities(offers: Collection[Offer]) -> frozenset[str]:
    """Every capability that any of the offers states, in lower case."""
    return frozenset(word.lower() for offer in offers for word in offer.capabilities)


def _names(name: str, values: Collection[str] | None) -> frozenset[str] | None:
    if values is None:
        return None
    names = _lower(name, values)
    if not names or "" in names:
        raise DialError(f"{name} is {values!r}; expected at least one name, and no empty one")
    return names


def _lower(name: str, values: Collection[str]) -> frozenset[str]:
    is_list = isinstance(values, Collection) and not isinstance(values, str)
    if not is_list or not all(isinstance(value, str) for value in values):
        raise DialError(f"{name} is {values!r}; expected a list of names")
    return frozenset(value.lower() for value in values)


def _listed(names: Collection[str]) -> str:
    return first_of(sorted(names))
