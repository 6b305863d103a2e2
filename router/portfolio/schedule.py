"""Prices that depend on the request's length or on the hour of the day."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.errors import TierError
from router.portfolio.fields import (
    number_of,
    optional_number_of,
    refuse_missing,
    refuse_unknown,
    shown,
    table_of,
    text_of,
)

PRICES = ("usd_per_mtok_input", "usd_per_mtok_output", "usd_per_mtok_cached_input", "usd_per_mtok_cache_write")
"""The prices of an offer, in USD per million tokens."""

MINUTES_PER_DAY = 24 * 60

_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Above:
    """The prices of a whole request whose input is longer than a threshold, in USD per million tokens.

    input_tokens: the threshold; a request of exactly this many still has the prices below it.
    usd_per_mtok_cached_input, usd_per_mtok_cache_write: None where they cost as much as other input tokens.
    """

    input_tokens: int
    usd_per_mtok_input: float
    usd_per_mtok_output: float
    usd_per_mtok_cached_input: float | None = None
    usd_per_mtok_cache_write: float | None = None


@dataclass(frozen=True)
class Hours:
    """A time of the day in which all prices of an offer are multiplied by a factor.

    start, end: minutes since midnight UTC, 0 to 1439; the end is not part of it. An end before the start means the
        next day.
    """

    start: int
    end: int
    factor: float

    def __contains__(self, minute: int) -> bool:
        """Whether a minute since midnight UTC is within."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


def prices_times(priced: object, factor: float) -> dict[str, Any]:
    """The PRICES of an offer, or of one of its steps, each times a factor; None stays None."""
    prices = {name: getattr(priced, name) for name in PRICES}
    return {name: None if usd is None else factor * usd for name, usd in prices.items()}


def parse_above(entry: Mapping[str, Any], place: str) -> tuple[Above, ...]:
    """The prices above each threshold, lowest threshold first; raises TierError."""
    needed = ("input_tokens", "usd_per_mtok_input", "usd_per_mtok_output")
    found = [_above(step, f"{place}, above {n}", needed) for n, step in enumerate(_list(entry, "above", place), 1)]
    found.sort(key=lambda step: step.input_tokens)
    if len({step.input_tokens for step in found}) < len(found):
        raise TierError(f"{place}: two entries of above have the same input_tokens; expected one for each threshold")
    return tuple(found)


def parse_hours(entry: Mapping[str, Any], place: str) -> tuple[Hours, ...]:
    """The hours with a factor of their own, in the order given; raises TierError, also where two of them overlap."""
    found = tuple(_hours(each, f"{place}, hours {n}") for n, each in enumerate(_list(entry, "hours", place), 1))
    for minute in range(MINUTES_PER_DAY) if len(found) > 1 else ():
        if sum(minute in each for each in found) > 1:
            clock = f"{minute // 60:02}:{minute % 60:02}"
            raise TierError(f"{place}: two entries of hours hold at {clock} UTC; expected at most one at any time")
    return found


def _above(entry: Any, place: str, needed: tuple[str, ...]) -> Above:
    optional = ("usd_per_mtok_cached_input", "usd_per_mtok_cache_write")
    refuse_unknown(table_of(entry, place), {*needed, *optional}, place)
    refuse_missing(entry, needed, place)
    return Above(
        input_tokens=int(number_of(entry, "input_tokens", place, above=0)),
        usd_per_mtok_input=number_of(entry, "usd_per_mtok_input", place),
        usd_per_mtok_output=number_of(entry, "usd_per_mtok_output", place),
        usd_per_mtok_cached_input=optional_number_of(entry, "usd_per_mtok_cached_input", place),
        usd_per_mtok_cache_write=optional_number_of(entry, "usd_per_mtok_cache_write", place),
    )


def _hours(entry: Any, place: str) -> Hours:
    keys = ("utc_start", "utc_end", "factor")
    refuse_unknown(table_of(entry, place), set(keys), place)
    refuse_missing(entry, keys, place)
    start, end = _minute(entry, "utc_start", place), _minute(entry, "utc_end", place)
    if start == end:
        raise TierError(f"{place}: utc_start and utc_end are the same; for the whole day state other prices instead")
    return Hours(start=start, end=end, factor=number_of(entry, "factor", place))


def _minute(entry: Mapping[str, Any], key: str, place: str) -> int:
    found = _CLOCK.fullmatch(text_of(entry, key, place))
    if found is None:
        raise TierError(f"{place}: {key} is {shown(entry[key])}; expected a time from 00:00 to 23:59, such as 16:30")
    return int(found[1]) * 60 + int(found[2])


def _list(entry: Mapping[str, Any], key: str, place: str) -> list[Any]:
    value = entry.get(key, [])
    if not isinstance(value, list):
        raise TierError(f"{place}: {key} is {shown(value)}; expected a list of tables")
    return value
