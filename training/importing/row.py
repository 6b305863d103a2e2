"""The rows that adapters make, and how they read what others write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
"""What stands in a file for one entry: an object of JSON, or a row of a table."""

Row: TypeAlias = dict[str, Any]
"""Values of columns of the log format, by name."""


@dataclass(frozen=True)
class LeftOut:
    """What is not taken over, and why."""

    reason: str


Rows: TypeAlias = Iterable[Row | LeftOut]


@dataclass(frozen=True)
class Adapter:
    """How the entries of one kind of file become rows.

    rows: the rows of an entry, and what of it is left out. expand: the entries inside an entry, for files in which one
        object holds many; it may keep what later entries need.
    """

    rows: Callable[[Record], Rows]
    expand: Callable[[Record], Iterator[Record | LeftOut]] = lambda record: iter([record])


def at(record: Any, *paths: str) -> Any:
    """The first value that is not missing at some dotted paths; texts that are JSON are looked into."""
    for path in paths:
        found = record
        for name in path.split("."):
            found = parsed(found)
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, Mapping) else None
        if found is not None and found != "":
            return found
    return None


def parsed(value: Any) -> Any:
    """A text that is an object or a list of JSON as such; all else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def asked(value: Any) -> Row:
    """The columns for what was asked: `messages` for a chat, `prompt` for a text; none where it is neither."""
    value = parsed(value)
    if isinstance(value, Mapping):
        for name in ("messages", "contents", "input", "prompt"):
            if found := asked(value.get(name)):
                return found
        return {"messages": _json([value])} if "role" in value else {}
    if isinstance(value, list) and value:
        return {"messages": _json(value)} if all(isinstance(item, Mapping) for item in value) else {}
    return {"prompt": value} if isinstance(value, str) and value else {}


def tokens(usage: Any) -> Row:
    """The token counts of a usage object of OpenAI (chat and responses), Anthropic, or those who write alike.

    OpenAI counts cached tokens inside the input tokens, Anthropic beside them; the log counts them inside.
    """
    cached = at(usage, "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens")
    read, written = at(usage, "cache_read_input_tokens"), at(usage, "cache_creation_input_tokens")
    n_input = at(usage, "prompt_tokens", "input_tokens")
    if n_input is not None and at(usage, "prompt_tokens") is None and cached is None:
        n_input = sum(number(each) or 0 for each in (n_input, read, written))
    return {
        "input_tokens": n_input,
        "output_tokens": at(usage, "completion_tokens", "output_tokens"),
        "cached_input_tokens": read if cached is None else cached,
        "cache_write_tokens": written,
        "reasoning_tokens": at(
            usage, "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens"
        ),
    }


def number(value: Any) -> float | None:
    """A number, also where it is written as a text; None where there is none, or it is not finite."""
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if abs(found) < float("inf") else None


def time_of(value: Any) -> datetime | None:
    """A point in time in UTC, from ISO text, or from seconds or milliseconds since 1970."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    try:
        if (seconds := number(value)) is not None:
            return datetime.fromtimestamp(seconds / (1000 if seconds > 1e11 else 1), UTC)
        return time_of(datetime.fromisoformat(str(value).strip().replace(" UTC", "")))
    except (ValueError, OverflowError, OSError):
        return None


def ms_between(start: Any, end: Any) -> float | None:
    """Milliseconds between two points in time; None where one is missing."""
    first, last = time_of(start), time_of(end)
    return (last - first).total_seconds() * 1000 if first and last and last >= first else None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
