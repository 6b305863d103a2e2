"""Brings the prices of a tiers.toml up to date with a price map, and leaves all else in the file as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from router.errors import PriceError
from router.extras import install_command
from router.feeds.formats import PricedModel
from router.feeds.price_map import PriceMap
from router.files import replacing
from router.portfolio.prices import PriceTable
from router.portfolio.schedule import PRICES, Above
from router.portfolio.tiers import Offer, Tier, parse_document, tiers_text

LARGEST_FACTOR = 20.0
"""A price that changes by more than this is not believed: maps have had prices per token for prices per 1,000."""


@dataclass(frozen=True)
class PriceChange:
    """A price of an offer that the map states otherwise.

    tier, model, provider: the offer; tier_number, offer_number: its place in the file.
    key: a price of the format, or "above". old, new: USD per million tokens, or the prices above thresholds; old is
        None where the file does not say. doubt: why the new price is not believed; "" where it is.
    """

    tier: str
    model: str
    provider: str
    tier_number: int
    offer_number: int
    key: str
    old: Any
    new: Any
    doubt: str = ""


@dataclass(frozen=True)
class PriceUpdate:
    """What a price map changes in a tiers.toml.

    changes: in the order of the file. missing: offers that the map does not have. n_self_hosted: offers whose price is
    that of one's own hardware, which no map knows.
    """

    path: Path
    table: PriceTable
    changes: tuple[PriceChange, ...]
    missing: tuple[str, ...]
    n_self_hosted: int

    @property
    def believed(self) -> tuple[PriceChange, ...]:
        """The changes that `apply` makes."""
        return tuple(change for change in self.changes if not change.doubt)

    def new_text(self) -> str:
        """The file with the believed changes; comments, order and all other values are as they were.

        Raises ImportError without the extra `feeds`, PriceError where the result would not be what was meant.
        """
        try:
            import tomlkit
        except ImportError as error:
            raise ImportError(f"changing tiers.toml needs tomlkit: {install_command('feeds')}") from error
        document: Any = tomlkit.parse(self.table.text)
        for change in self.believed:
            offer = document["tiers"][change.tier_number]["offers"][change.offer_number]
            offer[change.key] = _plain(change.new)
        text = str(tomlkit.dumps(document))
        if PriceTable.parse(text, str(self.path)).tiers != self._expected():
            raise PriceError(f"{self.path} would not say what was meant; nothing is written. Edit it by hand")
        return text

    def apply(self) -> None:
        """Write the believed changes to the file, all of them or none.

        Raises as `new_text`, OSError, and PriceError where the file was changed by someone else in the meantime.
        """
        text = self.new_text()
        place = self.path.resolve()
        with replacing(place) as unfinished:
            unfinished.write_bytes(text.encode())
            shutil.copymode(place, unfinished)
            if tiers_text(place) != self.table.text:
                raise PriceError(f"{self.path} was changed in the meantime; run the command again")

    def _expected(self) -> tuple[Tier, ...]:
        offers = [list(tier.offers) for tier in self.table.tiers]
        for change in self.believed:
            row = offers[change.tier_number]
            row[change.offer_number] = replace(row[change.offer_number], **{change.key: change.new})
        return tuple(
            replace(tier, offers=tuple(changed)) for tier, changed in zip(self.table.tiers, offers, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """What `broker prices --json` prints of it."""
        changes = [asdict(change) for change in self.changes]
        return {"changes": changes, "missing": list(self.missing), "n_self_hosted": self.n_self_hosted}


def find_changes(path: Path, prices: PriceMap) -> PriceUpdate:
    """What a price map changes in a tiers.toml. Raises TierError where the file cannot be read.

    What the map does not say stays: a price that it lacks, prices above thresholds and hours that it does not know.
    """
    text = tiers_text(path)
    document = parse_document(text, str(path))
    table = PriceTable.of(document, text, str(path))
    changes: list[PriceChange] = []
    missing: list[str] = []
    n_self_hosted = 0
    for tier_number, tier in enumerate(table.tiers):
        for offer_number, offer in enumerate(tier.offers):
            if "self_hosted" in document["tiers"][tier_number]["offers"][offer_number]:
                n_self_hosted += 1
            elif (priced := prices.offer(offer.model, offer.provider)) is None:
                missing.append(f"{offer.model} at {offer.provider}")
            else:
                changes += [
                    PriceChange(
                        tier=tier.name,
                        model=offer.model,
                        provider=offer.provider,
                        tier_number=tier_number,
                        offer_number=offer_number,
                        key=key,
                        old=old,
                        new=new,
                        doubt=_doubt(old, new),
                    )
                    for key, old, new in _differences(offer, priced)
                ]
    return PriceUpdate(
        path=path, table=table, changes=tuple(changes), missing=tuple(missing), n_self_hosted=n_self_hosted
    )


def _differences(offer: Offer, priced: PricedModel) -> Iterator[tuple[str, Any, Any]]:
    for key in PRICES:
        old, new = getattr(offer, key), getattr(priced, key)
        if new is not None and (old is None or abs(new - old) > 1e-9 * max(new, old)):
            yield key, old, new
    if priced.above and priced.above != offer.above:
        yield "above", offer.above, priced.above


def _doubt(old: Any, new: Any) -> str:
    """Why a new price is not believed; "" where it is."""
    if isinstance(new, tuple):
        olds = {step.input_tokens: step for step in old}
        pairs = [
            (getattr(olds[step.input_tokens], key), getattr(step, key))
            for step in new
            if step.input_tokens in olds
            for key in PRICES
        ]
        return next((found for was, becomes in pairs if becomes is not None and (found := _doubt(was, becomes))), "")
    if not old:
        return ""
    if new == 0:
        return "the map says 0"
    factor = max(new / old, old / new)
    return f"{factor:.0f} times {'dearer' if new > old else 'cheaper'}" if factor > LARGEST_FACTOR else ""


def _plain(new: float | Sequence[Above]) -> Any:
    if isinstance(new, int | float):
        return new
    return [{key: value for key, value in asdict(step).items() if value is not None} for step in new]
