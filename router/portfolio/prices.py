"""The price table: the offers and prices of every tier now."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from router.errors import PriceError, TierError
from router.portfolio.quote import Quote, usable_offers
from router.portfolio.tiers import PRICES, Offer, Tier, first_of, parse_tiers, tiers_text


@dataclass(frozen=True)
class PriceTable:
    """Offers and prices of every tier, in the order of the tiers of a bundle.

    id: the first 16 hexadecimal digits of the SHA-256 of the file's text, without a byte order mark.
    """

    tiers: tuple[Tier, ...]
    id: str
    text: str = field(repr=False)
    _quotes: dict[tuple[int, ...], Quote] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, source: str = "tiers.toml") -> PriceTable:
        """From the text of a tiers.toml; raises TierError."""
        return cls(tiers=parse_tiers(text, source), id=_digest(text), text=text)

    @classmethod
    def read(cls, path: str | Path, tier_names: Sequence[str]) -> PriceTable:
        """From a file in the format of tiers.toml that has exactly the tiers `tier_names`, in any order.

        A file whose name ends in .json has the same document in JSON.
        Raises PriceError where the file cannot be read, is not valid, or has other tiers.
        """
        try:
            text = tiers_text(path)
            tiers = parse_tiers(text, str(path), is_json=Path(path).suffix.lower() == ".json")
        except TierError as error:
            raise PriceError(f"price table refused: {error}") from error
        found = {tier.name: tier for tier in tiers}
        if set(found) != set(tier_names):
            raise PriceError(
                f"price table refused: {path} has the tiers {first_of(sorted(found))}; "
                f"expected exactly those of the bundle: {', '.join(sorted(tier_names))}"
            )
        return cls(tiers=tuple(found[name] for name in tier_names), id=_digest(text), text=text)

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
            prices = {name: getattr(offer, name) for name in PRICES}
            return replace(offer, **{name: factor * usd for name, usd in prices.items() if usd is not None})

        tiers = tuple(replace(tier, offers=tuple(scale(offer) for offer in tier.offers)) for tier in self.tiers)
        change = "".join(f"\n# {provider} x {factor!r}" for provider, factor in sorted(factors.items()))
        text = self.text + change
        return PriceTable(tiers=tiers, id=_digest(text), text=text)

    def quote(
        self,
        context_tokens: float,
        output_tokens: Sequence[float],
        accepts: Callable[[Offer], bool] | None = None,
        *,
        critical: bool = False,
    ) -> Quote:
        """The cheapest usable offer of each tier for one request, and the tiers that may answer it.

        context_tokens: tokens that the provider bills as input.
        output_tokens: the typical answer of each tier, in tokens (n_tiers,).
        accepts: further conditions on an offer (region, capability); None accepts all.
        critical: only the tiers reserved for critical requests may answer, if any are.
        """
        usable = usable_offers(self.tiers, context_tokens, output_tokens, accepts)
        key = (critical, *[offers[0][1] if offers else -1 for offers in usable])
        quote = self._quotes.get(key)
        if quote is None:
            cheapest = {
                tier.name: tier.offers[offers[0][1]] for tier, offers in zip(self.tiers, usable, strict=True) if offers
            }
            quote = self._quotes[key] = Quote.of(self.tiers, cheapest, self.may_answer(critical=critical))
        return quote

    def may_answer(self, *, critical: bool) -> tuple[str, ...]:
        """Names of the tiers that a request may ask: all; for a critical one those reserved for such, if any are."""
        reserved = tuple(tier.name for tier in self.tiers if tier.critical)
        return reserved if critical and reserved else tuple(tier.name for tier in self.tiers)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
