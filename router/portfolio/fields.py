"""Reading one value at a time from a document that people wrote, with an error that says where and what to do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.errors import TierError

_LARGEST = sys.float_info.max
_MOST_SHOWN = 80


def table_of(entry: Any, place: str) -> Mapping[str, Any]:
    """The entry where it is a table; raises TierError."""
    if not isinstance(entry, Mapping):
        raise TierError(f"{place}: found {shown(entry)}; expected a table")
    return entry


def number_of(
    entry: Mapping[str, Any], key: str, place: str, *, above: float | None = None, most: float = _LARGEST
) -> float:
    """A finite number of at most `most`, and above `above` or, where that is None, of at least 0; raises TierError."""
    value: Any = entry.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value >= 0 if above is None else value > above) or not value <= most:
        least = "of at least 0" if above is None else f"above {above:g}"
        limit = "" if most == _LARGEST else f" and at most {most:g}"
        raise TierError(f"{place}: {key} is {shown(value)}; expected a number {least}{limit}")
    return float(value)


def optional_number_of(entry: Mapping[str, Any], key: str, place: str) -> float | None:
    """A number as `number_of` reads it; None where the key is missing."""
    return number_of(entry, key, place) if key in entry else None


def text_of(entry: Mapping[str, Any], key: str, place: str) -> str:
    """A text that is not empty; raises TierError."""
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise TierError(f"{place}: {key} is {shown(value)}; expected a text")
    return value


def texts_of(entry: Mapping[str, Any], key: str, place: str) -> tuple[str, ...]:
    """A list of texts, empty where the key is missing; raises TierError."""
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TierError(f"{place}: {key} is {shown(value)}; expected a list of texts")
    return tuple(value)


def refuse_unknown(entry: Mapping[str, Any], known: set[str], place: str) -> None:
    """Raises TierError where the entry has other keys than the known ones."""
    if unknown := sorted(set(entry) - known):
        raise TierError(f"{place}: unknown {first_of(unknown)}; expected only {', '.join(sorted(known))}")


def refuse_missing(entry: Mapping[str, Any], needed: Sequence[str], place: str) -> None:
    """Raises TierError where the entry lacks a key that it needs."""
    if missing := [key for key in needed if key not in entry]:
        verb = "is" if len(missing) == 1 else "are"
        raise TierError(f"{place}: {', '.join(missing)} {verb} missing; expected {', '.join(needed)}")


def refuse_repeated(names: list[str], what: str) -> None:
    """Raises TierError where a name stands twice. what: in words, for the message."""
    if repeated := sorted(name for name, n in Counter(names).items() if n > 1):
        raise TierError(f"{what} {first_of(repeated)} appears more than once; each may stand once")


def first_of(names: Iterable[str], most: int = 8) -> str:
    """The first of many names, cut short, for a message."""
    shown = [name if len(name) <= _MOST_SHOWN else f"{name[:_MOST_SHOWN]}..." for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most:,} more" if len(shown) > most else "")


def shown(value: object) -> str:
    """A wrong value as a message shows it, cut short."""
    try:
        return first_of([repr(value)])
    except (ValueError, RecursionError):  # An integer of very many digits; lists in lists in lists.
        return f"a very long {type(value).__name__}"
