"""The price table: what each tier's cheapest eligible offer costs now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from router.errors import PriceError, TierError
from router.tiers import Offer, Tier, parse_tiers


class Quote(NamedTuple):
    """Prices of one request, one entry per tier; `offers` is None where no offer is eligible."""

    usd_per_mtok_input: list[float]
    usd_per_mtok_output: list[float]
    offers: list[Offer | None]


@dataclass(frozen=True)
class PriceTable:
    """Offers and prices of every tier, in the order of the tiers of a bundle.

    id: the first 16 hexadecimal digits of the SHA-256 of the file's text.
    """

    tiers: tuple[Tier, ...]
    id: str
    text: str = field(repr=False)

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
            table = cls.parse(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError, TierError) as error:
            raise PriceError(f"price table refused: {error}") from error
        found = {tier.name: tier for tier in table.tiers}
        if set(found) != set(tier_names):
            raise PriceError(
                f"price table refused: {path} has the tiers {', '.join(sorted(found))}; "
                f"expected exactly those of the bundle: {', '.join(sorted(tier_names))}"
            )
        return cls(tuple(found[name] for name in tier_names), table.id, table.text)

    def quote(
        self, context_tokens: float, output_tokens: Sequence[float], accepts: Callable[[Offer], bool] | None = None
    ) -> Quote:
        """The cheapest eligible offer of each tier for one request.

        context_tokens: tokens that the provider bills as input.
        output_tokens: typical answer of each tier, in tokens; it must fit into the context window
        too, and weighs an offer's two prices against each other.
        accepts: further conditions on an offer (region, capability).
        """
        usd_input: list[float] = []
        usd_output: list[float] = []
        offers: list[Offer | None] = []
        for tier, n_output in zip(self.tiers, output_tokens, strict=True):
            best: Offer | None = None
            best_usd = 0.0
            for offer in tier.offers:
                if context_tokens + n_output > offer.context_window or (accepts is not None and not accepts(offer)):
                    continue
                usd = context_tokens * offer.usd_per_mtok_input + n_output * offer.usd_per_mtok_output
                if best is None or usd < best_usd:
                    best, best_usd = offer, usd
            offers.append(best)
            usd_input.append(0.0 if best is None else best.usd_per_mtok_input)
            usd_output.append(0.0 if best is None else best.usd_per_mtok_output)
        return Quote(usd_input, usd_output, offers)
