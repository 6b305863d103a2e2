"""The price table: the offers and prices of every tier now."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from router.errors import PriceError, TierError
from router.portfolio.caps import Limit, parse_limits
from router.portfolio.fields import first_of
from router.portfolio.quote import Quote, usable_offers
from router.portfolio.schedule import MINUTES_PER_DAY, prices_times
from router.portfolio.tiers import Offer, Tier, parse_document, tiers_of, tiers_text


class TierOffer(NamedTuple):
    """An offer, and the name of its tier."""

    tier: str
    offer: Offer


@dataclass(frozen=True)
class PriceTable:
    """Offers and prices of every tier, in the order of the tiers of a bundle, and limits of shares and spend.

    limits: caps and budgets, and a cap for each offer with a `max_share`.
    id: the first 16 hexadecimal digits of the SHA-256 of the file's text, without a byte order mark.
    """

    tiers: tuple[Tier, ...]
    id: str
    text: str = field(repr=False)
    limits: tuple[Limit, ...] = ()
    _quotes: dict[tuple[object, ...], Quote] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, source: str = "tiers.toml") -> PriceTable:
        """From the text of a tiers.toml; raises TierError."""
        return cls.of(parse_document(text, source), text, source)

    @classmethod
    def of(cls, document: Mapping[str, Any], text: str, source: str) -> PriceTable:
        """From the document that a text holds; raises TierError."""
        tiers = tiers_of(document, source)
        return cls(tiers=tiers, limits=parse_limits(document, tiers, source), id=_digest(text), text=text)

    @classmethod
    def read(cls, path: str | Path, tier_names: Sequence[str]) -> PriceTable:
        """From a file in the format of tiers.toml that has exactly the tiers `tier_names`, in any order.

        A file whose name ends in .json has the same document in JSON.
        Raises PriceError where the file cannot be read, is not valid, or has other tiers.
        """
        try:
            text = tiers_text(path)
            document = parse_document(text, str(path), is_json=Path(path).suffix.lower() == ".json")
            table = cls.of(document, text, str(path))
        except TierError as error:
            raise PriceError(f"price table refused: {error}") from error
        found = {tier.name: tier for tier in table.tiers}
        if set(found) != set(tier_names):
            raise PriceError(
                f"price table refused: {path} has the tiers {first_of(sorted(found))}; "
                f"expected exactly those of the bundle: {', '.join(sorted(tier_names))}"
            )
        return replace(table, tiers=tuple(found[name] for name in tier_names))

    def scaled(self, factors: Mapping[str, float]) -> PriceTable:
        """The same offers with all prices of some providers multiplied: {"alibaba": 0.1} is a cut by 90 %.

        Raises PriceError for a provider that has no offer, or a factor that is negative or not finite.
        """
        providers = {offer.provider for tier in self.tiers for offer in tier.offers}
        for provider, factor in factors.items():
            if provider not in providers:
                raise PriceError(f"no offer of provider {provider!r}; expected one of {', '.join(sorted(providers))}")
            if not (math.isfinite(factor) and factor >= 0):
                raise PriceError(f"the factor of {provider} is {factor!r}; expected a number of at least 0")

        def scale(offer: Offer) -> Offer:
            factor = factors.get(offer.provider, 1.0)
            above = tuple(replace(step, **prices_times(step, factor)) for step in offer.above)
            return replace(offer, **prices_times(offer, factor), above=above)

        tiers = tuple(replace(tier, offers=tuple(scale(offer) for offer in tier.offers)) for tier in self.tiers)
        change = "".join(f"\n# {provider} x {factor!r}" for provider, factor in sorted(factors.items()))
        text = self.text + change
        return PriceTable(tiers=tiers, limits=self.limits, id=_digest(text), text=text)

    def quote(
        self,
        context_tokens: float,
        output_tokens: Sequence[float],
        accepts: Callable[[Offer], bool] | None = None,
        *,
        critical: bool = False,
        minute: int | None = None,
    ) -> Quote:
        """The cheapest usable offer of each tier for one request, and the tiers that may answer it.

        context_tokens: tokens that the provider bills as input.
        output_tokens: the typical answer of each tier, in tokens (n_tiers,).
        accepts: further conditions on an offer (region, capability); None accepts all.
        critical: only the tiers reserved for critical requests may answer, if any are.
        minute: since midnight UTC, for prices that depend on the hour; None takes those outside all `hours`.
        """
        usable = usable_offers(self.tiers, context_tokens, output_tokens, accepts, minute=minute)
        which = slice(1, 3) if self._has_schedules else 1  # To hash a whole offer takes longer than its number.
        key = (critical, *[offers[0][which] if offers else -1 for offers in usable])
        quote = self._quotes.get(key)
        if quote is None:
            cheapest = {tier.name: offers[0][2] for tier, offers in zip(self.tiers, usable, strict=True) if offers}
            quote = self._quotes[key] = Quote.of(self.tiers, cheapest, self.may_answer(critical=critical))
        return quote

    @cached_property
    def _has_schedules(self) -> bool:
        return any(offer.hours or offer.above for tier in self.tiers for offer in tier.offers)

    @cached_property
    def has_caches(self) -> bool:
        """Whether any offer has a price of its own for cached input."""
        return any(offer.usd_per_mtok_cached_input is not None for tier in self.tiers for offer in tier.offers)

    @cached_property
    def has_hours(self) -> bool:
        """Whether any price depends on the hour of the day."""
        return any(offer.hours for tier in self.tiers for offer in tier.offers)

    def minute(self) -> int | None:
        """Minutes since midnight UTC now; None where no price depends on it."""
        return int(time.time()) // 60 % MINUTES_PER_DAY if self.has_hours else None

    def find(self, model: object) -> TierOffer | None:
        """The tier and the offer of a model by the offer's own name, the first where several have it; None for none."""
        return self._by_model.get(model) if isinstance(model, str) else None

    @cached_property
    def _by_model(self) -> dict[str, TierOffer]:
        found: dict[str, TierOffer] = {}
        for tier in self.tiers:
            for offer in tier.offers:
                found.setdefault(offer.model, TierOffer(tier.name, offer))
        return found

    @cached_property
    def tier_of(self) -> Mapping[str, str]:
        """By the name of an offer's model the name of its tier."""
        return {offer.model: tier.name for tier in self.tiers for offer in tier.offers}

    @cached_property
    def namesakes(self) -> Mapping[str, tuple[Offer, ...]]:
        """By its name the offers of each model that several offers have: at other providers, or in other regions."""
        found: dict[str, list[Offer]] = {}
        for tier in self.tiers:
            for offer in tier.offers:
                found.setdefault(offer.model, []).append(offer)
        return {model: tuple(offers) for model, offers in found.items() if len(offers) > 1}

    def may_answer(self, *, critical: bool) -> tuple[str, ...]:
        """Names of the tiers that a request may ask: all; for a critical one those reserved for such, if any are."""
        reserved = tuple(tier.name for tier in self.tiers if tier.critical)
        return reserved if critical and reserved else tuple(tier.name for tier in self.tiers)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
