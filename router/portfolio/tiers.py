"""Tiers and their offers, as tiers.toml states them."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from router.errors import TierError
from router.files import read_bounded
from router.portfolio.fields import (
    first_of,
    number_of,
    optional_number_of,
    refuse_missing,
    refuse_repeated,
    refuse_unknown,
    shown,
    table_of,
    text_of,
    texts_of,
)
from router.portfolio.schedule import PRICES, Above, Hours, parse_above, parse_hours, prices_times

MOST_BYTES = 16 * 2**20
"""No tiers.toml is larger: this is room for more than 50,000 offers."""

_PART = r"""\.\s*(?:[\w-]+|"[^"\n]*"|'[^'\n]*')\s*"""
_LONG_KEY = re.compile(f"{_PART}(?:{_PART}){{15}}")
"""A dotted key of more parts than the format ever needs. The TOML parser takes hours for a key of 100,000 parts."""


@dataclass(frozen=True)
class Offer:
    """A model at a provider at a price.

    context_window: tokens of input and answer together.
    usd_per_mtok_input, usd_per_mtok_output: USD per million tokens.
    usd_per_mtok_cached_input, usd_per_mtok_cache_write: of input tokens that the provider reads from its prompt cache,
        or writes into it; None where they cost as much as other input tokens.
    aliases: other names under which a log may know the model.
    capabilities: what it can do beyond text, such as "tools".
    max_share: largest share of the requests of any rolling window, in (0, 1].
    above: other prices for long requests, lowest threshold first. hours: cheaper or dearer times of the day.
    """

    model: str
    provider: str
    region: str
    context_window: int
    usd_per_mtok_input: float
    usd_per_mtok_output: float
    usd_per_mtok_cached_input: float | None = None
    usd_per_mtok_cache_write: float | None = None
    aliases: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    max_share: float = 1.0
    above: tuple[Above, ...] = ()
    hours: tuple[Hours, ...] = ()

    def at(self, context_tokens: float, minute: int | None = None) -> Offer:
        """The same offer at the prices of one request: itself where they do not depend on the request.

        context_tokens: tokens billed as input. minute: since midnight UTC, 0 to 1439; None for the prices outside
        all `hours`.
        """
        if not self.above and (minute is None or not self.hours):
            return self
        step = sum(context_tokens > each.input_tokens for each in self.above) - 1
        factor = next((each.factor for each in self.hours if minute in each), 1.0) if minute is not None else 1.0
        return self if step < 0 and factor == 1 else _repriced(self, step, factor)


@lru_cache(4096)
def _repriced(offer: Offer, step: int, factor: float) -> Offer:
    """The offer at the prices above a threshold (-1: at its own), each times a factor, whatever is asked of it."""
    return replace(offer, **prices_times(offer if step < 0 else offer.above[step], factor), above=(), hours=())


@dataclass(frozen=True)
class Tier:
    """Offers that serve the same purpose and are exchangeable in quality.

    critical: this tier may answer critical requests; where no tier says so, all may.
    """

    name: str
    offers: tuple[Offer, ...] = field(repr=False)
    critical: bool = False


@dataclass(frozen=True)
class SelfHosted:
    """What an hour of one's own hardware costs, and how much it serves.

    utilization: share of the time in which it serves, in (0, 1]. mtok_per_hour: million tokens that it serves in an
        hour at full use.
    """

    electricity_usd_per_hour: float
    bandwidth_usd_per_hour: float
    hardware_usd_per_hour: float
    utilization: float
    mtok_per_hour: float

    @property
    def usd_per_mtok(self) -> float:
        """(electricity + bandwidth + hardware) / (utilization x million tokens per hour)."""
        usd_per_hour = self.electricity_usd_per_hour + self.bandwidth_usd_per_hour + self.hardware_usd_per_hour
        return usd_per_hour / (self.utilization * self.mtok_per_hour)


def read_tiers(path: str | Path) -> tuple[Tier, ...]:
    """Read tiers.toml.

    Raises TierError, which names the file, the place and the remedy.
    """
    return parse_tiers(tiers_text(path), source=str(path))


def tiers_text(path: str | Path) -> str:
    """The text of a tiers.toml, without a byte order mark; raises TierError where it cannot be read."""
    try:
        return read_bounded(Path(path), MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise TierError(f"{path}: cannot be read ({error.strerror}); expected a tiers.toml") from error
    except UnicodeDecodeError as error:
        raise TierError(f"{path}: byte {error.start} is not UTF-8; save the file with the encoding UTF-8") from error


def parse_tiers(text: str, source: str = "tiers.toml") -> tuple[Tier, ...]:
    """Tiers from the text of a tiers.toml.

    Raises TierError, which names `source`, the place and the remedy.
    """
    return tiers_of(parse_document(text, source), source)


def parse_document(text: str, source: str, *, is_json: bool = False) -> Mapping[str, Any]:
    """The text of a tiers.toml as tables and lists.

    is_json: the text is the same document in JSON, which is read in about a quarter of the time.
    Raises TierError.
    """
    try:
        document = json.loads(text, object_pairs_hook=_object) if is_json else load_toml(text)
    except ValueError as error:  # Also an integer of 5,000 digits.
        raise TierError(f"{source}: not valid {'JSON' if is_json else 'TOML'}: {error}") from error
    except RecursionError as error:
        raise TierError(
            f"{source}: lists or tables are nested too deep; expected [[tiers]] and their offers"
        ) from error
    refuse_unknown(table_of(document, source), _DOCUMENT_KEYS, source)
    return document


def tiers_of(document: Mapping[str, Any], source: str) -> tuple[Tier, ...]:
    """The tiers of a document; raises TierError."""
    entries = document.get("tiers")
    if not isinstance(entries, list) or not entries:
        raise TierError(f"{source}: found no [[tiers]]; expected at least one")
    tiers = tuple(_tier(entry, f"{source}: tier {number}") for number, entry in enumerate(entries, 1))
    refuse_repeated([tier.name for tier in tiers], f"{source}: tier name")
    model_tiers = {(name, tier.name) for tier in tiers for offer in tier.offers for name in log_names(offer)}
    refuse_repeated([name for name, _ in model_tiers], f"{source}: in more than one tier: model or alias")
    return tiers


def load_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML file; raises ValueError where it is none, RecursionError where they are nested too deep."""
    if _LONG_KEY.search(text):
        raise ValueError("a name of more than 16 parts, joined by dots")
    return tomllib.loads(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; raises ValueError where a key stands in it twice, as TOML does."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key stands twice among {first_of([key for key, _ in pairs])}")
    return found


def log_names(offer: Offer) -> tuple[str, ...]:
    """Every name under which a log may know this offer's model."""
    return (offer.model, *offer.aliases)


_DOCUMENT_KEYS = {"tiers", "caps", "budgets"}
_TIER_KEYS = {"name", "offers", "critical"}
_OFFER_KEYS = {entry.name for entry in fields(Offer)} | {"self_hosted"}
_OFFER_NEEDS = ("model", "provider", "region", "context_window")
_PRICE_KEYS = PRICES[:2]
_SELF_HOSTED_KEYS = tuple(entry.name for entry in fields(SelfHosted))

_LEAST_USD_PER_MTOK = 1e-4
"""No model is so cheap: the cheapest cost about 0.01 USD per million tokens. A price per token is below this."""


def _tier(entry: Any, place: str) -> Tier:
    refuse_unknown(table_of(entry, place), _TIER_KEYS, place)
    refuse_missing(entry, ("name",), place)
    name = text_of(entry, "name", place)
    offers = entry.get("offers")
    if not isinstance(offers, list) or not offers:
        raise TierError(f"{place} ({name}): found no [[tiers.offers]]; expected at least one offer")
    critical = entry.get("critical", False)
    if not isinstance(critical, bool):
        raise TierError(f"{place} ({name}): critical is {shown(critical)}; expected true or false")
    return Tier(
        name=name,
        offers=tuple(_offer(offer, f"{place} ({name}), offer {n}") for n, offer in enumerate(offers, 1)),
        critical=critical,
    )


def _offer(entry: Any, place: str) -> Offer:
    refuse_unknown(table_of(entry, place), _OFFER_KEYS, place)
    refuse_missing(entry, _OFFER_NEEDS + (() if "self_hosted" in entry else _PRICE_KEYS), place)
    usd_per_mtok_input, usd_per_mtok_output = _prices(entry, place)
    return Offer(
        model=text_of(entry, "model", place),
        provider=text_of(entry, "provider", place),
        region=text_of(entry, "region", place),
        context_window=int(number_of(entry, "context_window", place, above=0)),
        usd_per_mtok_input=usd_per_mtok_input,
        usd_per_mtok_output=usd_per_mtok_output,
        usd_per_mtok_cached_input=optional_number_of(entry, "usd_per_mtok_cached_input", place),
        usd_per_mtok_cache_write=optional_number_of(entry, "usd_per_mtok_cache_write", place),
        aliases=texts_of(entry, "aliases", place),
        capabilities=texts_of(entry, "capabilities", place),
        max_share=number_of(entry, "max_share", place, above=0, most=1) if "max_share" in entry else 1.0,
        above=parse_above(entry, place),
        hours=parse_hours(entry, place),
    )


def _prices(entry: Mapping[str, Any], place: str) -> tuple[float, float]:
    if "self_hosted" not in entry:
        prices = number_of(entry, "usd_per_mtok_input", place), number_of(entry, "usd_per_mtok_output", place)
        _refuse_prices_per_token(prices, place)
        return prices
    if listed := sorted(set(_PRICE_KEYS) & set(entry)):
        raise TierError(f"{place}: both self_hosted and {', '.join(listed)}; expected one of the two")
    hourly = table_of(entry["self_hosted"], f"{place}, self_hosted")
    refuse_unknown(hourly, set(_SELF_HOSTED_KEYS), f"{place}, self_hosted")
    refuse_missing(hourly, _SELF_HOSTED_KEYS, f"{place}, self_hosted")
    cost = SelfHosted(
        electricity_usd_per_hour=number_of(hourly, "electricity_usd_per_hour", place),
        bandwidth_usd_per_hour=number_of(hourly, "bandwidth_usd_per_hour", place),
        hardware_usd_per_hour=number_of(hourly, "hardware_usd_per_hour", place),
        utilization=number_of(hourly, "utilization", place, above=0, most=1),
        mtok_per_hour=number_of(hourly, "mtok_per_hour", place, above=0),
    )
    served = cost.utilization * cost.mtok_per_hour
    if not served > 0 or not math.isfinite(cost.usd_per_mtok):
        raise TierError(
            f"{place}: self_hosted serves {served:g} million tokens per hour, which gives no finite price; "
            "expected utilization x mtok_per_hour to be well above 0"
        )
    return cost.usd_per_mtok, cost.usd_per_mtok


def _refuse_prices_per_token(prices: tuple[float, float], place: str) -> None:
    """Raises TierError where the prices can only be meant per token; prices of 0 say nothing."""
    paid = [price for price in prices if price > 0]
    if paid and max(paid) < _LEAST_USD_PER_MTOK:
        found = " and ".join(f"{price:g}" for price in prices)
        meant = " and ".join(f"{1e6 * price:g}" for price in prices)
        raise TierError(
            f"{place}: usd_per_mtok_input and usd_per_mtok_output are {found}, which look like prices per token; "
            f"expected USD per million tokens: {meant}"
        )
