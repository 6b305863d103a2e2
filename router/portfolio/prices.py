"""The price table: what each tier's cheapest eligible offer costs now."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from router.errors import PriceError, TierError
from router.portfolio.tiers import Offer, Tier, parse_tiers


@dataclass(frozen=True, slots=True)
class Quote:
    """The cheapest eligible offer of each tier, and its prices as the graph takes them.

    offers: None where a tier has no eligible offer.
    usd_per_mtok_input, usd_per_mtok_output: float32 (1, n_tiers), 0 where there is no offer.
    open, open_critical: which tiers have an offer, and which of them may answer critical requests.
    eligible, eligible_critical: the same as bool (1, n_tiers).
    """

    offers: tuple[Offer | None, ...]
    usd_per_mtok_input: np.ndarray
    usd_per_mtok_output: np.ndarray
    open: tuple[bool, ...]
    open_critical: tuple[bool, ...]
    eligible: np.ndarray
    eligible_critical: np.ndarray

    @classmethod
    def of(cls, tiers: Sequence[Tier], offers: tuple[Offer | None, ...]) -> Quote:
        """The quote for one offer, or none, of each tier."""
        has_offer = tuple(offer is not None for offer in offers)
        any_reserved = any(tier.critical for tier in tiers)
        may_answer = tuple(
            is_open and (tier.critical or not any_reserved) for tier, is_open in zip(tiers, has_offer, strict=True)
        )
        return cls(
            offers,
            np.array([[offer.usd_per_mtok_input if offer else 0.0 for offer in offers]], np.float32),
            np.array([[offer.usd_per_mtok_output if offer else 0.0 for offer in offers]], np.float32),
            has_offer,
            may_answer,
            np.array([has_offer]),
            np.array([may_answer]),
        )


@dataclass(frozen=True)
class PriceTable:
    """Offers and prices of every tier, in the order of the tiers of a bundle.

    id: the first 16 hexadecimal digits of the SHA-256 of the file's text.
    """

    tiers: tuple[Tier, ...]
    id: str
    text: str = field(repr=False)
    _quotes: dict[tuple[int, ...], Quote] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, source: str = "tiers.toml") -> PriceTable:
        """From the text of a tiers.toml; raises TierError."""
        return cls(parse_tiers(text, source), hashlib.sha256(text.encode()).hexdigest()[:16], text)

    @classmethod
    def read(cls, path: str | Path, tier_names: Sequence[str]) -> PriceTable:
        """From a file in the format of tiers.toml, its tiers in any order, but exactly `tier_names`.

        Raises PriceError, so that a broken table never replaces a good one.
        """
        try:
            table = cls.parse(Path(path).read_bytes().decode("utf-8"), str(path))
        except (OSError, UnicodeDecodeError, TierError) as error:
            raise PriceError(f"price table refused: {error}") from error
        found = {tier.name: tier for tier in table.tiers}
        if set(found) != set(tier_names):
            raise PriceError(
                f"price table refused: {path} has the tiers {', '.join(sorted(found))}; "
                f"expected exactly those of the bundle: {', '.join(sorted(tier_names))}"
            )
        return cls(tuple(found[name] for name in tier_names), table.id, table.text)

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
            return replace(
                offer,
                usd_per_mtok_input=factor * offer.usd_per_mtok_input,
                usd_per_mtok_output=factor * offer.usd_per_mtok_output,
            )

        tiers = tuple(replace(tier, offers=tuple(scale(offer) for offer in tier.offers)) for tier in self.tiers)
        change = "".join(f"\n# {provider} x {factor!r}" for provider, factor in sorted(factors.items()))
        text = self.text + change
        return PriceTable(tiers, hashlib.sha256(text.encode()).hexdigest()[:16], text)

    def quote(
        self, context_tokens: float, output_tokens: Sequence[float], accepts: Callable[[Offer], bool] | None = None
    ) -> Quote:
        """The cheapest eligible offer of each tier for one request.

        context_tokens: tokens that the provider bills as input.
        output_tokens: typical answer of each tier, in tokens; it must fit into the context window
        too, and weighs an offer's two prices against each other.
        accepts: further conditions on an offer (region, capability).
        """
        chosen = []
        for tier, n_output in zip(self.tiers, output_tokens, strict=True):
            best, best_usd = -1, math.inf
            for index, offer in enumerate(tier.offers):
                if context_tokens + n_output > offer.context_window or (accepts is not None and not accepts(offer)):
                    continue
                usd = context_tokens * offer.usd_per_mtok_input + n_output * offer.usd_per_mtok_output
                if usd < best_usd:
                    best, best_usd = index, usd
            chosen.append(best)
        key = tuple(chosen)
        quote = self._quotes.get(key)
        if quote is None:
            offers = tuple(
                None if index < 0 else tier.offers[index] for tier, index in zip(self.tiers, key, strict=True)
            )
            quote = self._quotes[key] = Quote.of(self.tiers, offers)
        return quote
