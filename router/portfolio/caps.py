"""Caps on shares of the traffic, and budgets, as tiers.toml states them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.errors import TierError
from router.portfolio.fields import first_of, number_of, refuse_missing, refuse_unknown, shown, table_of, text_of
from router.portfolio.health import Key
from router.portfolio.tiers import Offer, Tier

WINDOW_REQUESTS = 1000
"""Shares are those of the last 1,000 requests."""

REQUESTS, USD = "requests", "usd"

SECONDS = {"hour": 3600, "day": 86_400, "month": None}
"""The periods of budgets; a month has no fixed length."""


@dataclass(frozen=True)
class Cap:
    """The largest share of the requests, or of what they cost, that some offers may have in any rolling window.

    provider, region, model: which offers; "" where any. of: "requests" or "usd". max_share: in (0, 1).
    """

    max_share: float
    provider: str = ""
    region: str = ""
    model: str = ""
    of: str = REQUESTS

    def holds_for(self, tier: str, offer: Offer | Key) -> bool:
        """Whether the offer counts."""
        found = (self.provider, offer.provider), (self.region, offer.region), (self.model, offer.model)
        return all(wanted in ("", has) for wanted, has in found)

    def __str__(self) -> str:
        of = "requests" if self.of == REQUESTS else "spend"
        return f"{_who(self.provider, self.region, self.model)} at most {self.max_share:.0%} of {of}"


@dataclass(frozen=True)
class Budget:
    """The most that some offers may cost in each hour, day or month (UTC).

    per: "hour", "day" or "month". provider, region, tier: which offers; "" where any.
    """

    usd: float
    per: str
    provider: str = ""
    region: str = ""
    tier: str = ""

    def holds_for(self, tier: str, offer: Offer | Key) -> bool:
        """Whether the offer counts."""
        found = (self.provider, offer.provider), (self.region, offer.region), (self.tier, tier)
        return all(wanted in ("", has) for wanted, has in found)

    def __str__(self) -> str:
        return f"{_who(self.provider, self.region, self.tier) or 'all offers'} at most USD {self.usd:g} per {self.per}"


Limit = Cap | Budget


def parse_limits(document: Mapping[str, Any], tiers: Sequence[Tier], source: str) -> tuple[Limit, ...]:
    """The caps and budgets of a document, and a cap for each offer with a `max_share` below 1.

    Raises TierError where one is wrong, or holds for no offer.
    """
    offers = [(tier.name, offer) for tier in tiers for offer in tier.offers]
    limits: list[Limit] = []
    for number, entry in enumerate(_list(document, "caps", source), 1):
        limits.append(_of_some(_cap(entry, f"{source}: cap {number}"), offers, f"{source}: cap {number}"))
    for number, entry in enumerate(_list(document, "budgets", source), 1):
        limits.append(_of_some(_budget(entry, f"{source}: budget {number}"), offers, f"{source}: budget {number}"))
    for _, offer in offers:
        if offer.max_share < 1:
            limits.append(
                Cap(max_share=offer.max_share, provider=offer.provider, region=offer.region, model=offer.model)
            )
    return tuple(dict.fromkeys(limits))


def _cap(entry: Any, place: str) -> Cap:
    refuse_unknown(table_of(entry, place), {"provider", "region", "max_share", "of"}, place)
    refuse_missing(entry, ("max_share",), place)
    if "provider" not in entry and "region" not in entry:
        raise TierError(f"{place}: found neither provider nor region; expected at least one of them")
    of = entry.get("of", REQUESTS)
    if of not in (REQUESTS, USD):
        raise TierError(f"{place}: of is {shown(of)}; expected {REQUESTS} or {USD}")
    return Cap(
        max_share=number_of(entry, "max_share", place, above=0, most=1),
        provider=text_of(entry, "provider", place) if "provider" in entry else "",
        region=text_of(entry, "region", place) if "region" in entry else "",
        of=of,
    )


def _budget(entry: Any, place: str) -> Budget:
    refuse_unknown(table_of(entry, place), {"usd", "per", "provider", "region", "tier"}, place)
    refuse_missing(entry, ("usd", "per"), place)
    per = entry["per"]
    if not isinstance(per, str) or per not in SECONDS:
        raise TierError(f"{place}: per is {shown(per)}; expected {', '.join(SECONDS)}")
    which = {key: text_of(entry, key, place) for key in ("provider", "region", "tier") if key in entry}
    return Budget(usd=number_of(entry, "usd", place, above=0), per=per, **which)


def _of_some(limit: Limit, offers: Sequence[tuple[str, Offer]], place: str) -> Limit:
    if not any(limit.holds_for(tier, offer) for tier, offer in offers):
        known = "; ".join(
            f"{name}s: {first_of(sorted(values))}"
            for name, values in (
                ("provider", {offer.provider for _, offer in offers}),
                ("region", {offer.region for _, offer in offers}),
                ("tier", {tier for tier, _ in offers}),
            )
        )
        raise TierError(f"{place}: it holds for no offer; there are {known}")
    return limit


def _list(document: Mapping[str, Any], key: str, source: str) -> list[Any]:
    value = document.get(key, [])
    if not isinstance(value, list):
        raise TierError(f"{source}: {key} is {shown(value)}; expected [[{key}]]")
    return value


def _who(*names: str) -> str:
    return " ".join(name for name in names if name)
