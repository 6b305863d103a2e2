"""The columns of the log, and what their values may be: checked when a value is taken, and when a journal is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from router.prompt import valid_unicode

COLUMNS = {
    "prompt": "string", "prompt_id": "string", "model": "string", "provider": "string", "correct": "double",
    "input_tokens": "int64", "output_tokens": "int64", "cached_input_tokens": "int64", "cache_write_tokens": "int64",
    "reasoning_tokens": "int64", "tokens_estimated": "bool", "cache_hit": "bool", "cost_usd": "double",
    "latency_ms": "double", "propensity": "double", "request_id": "string", "decision_id": "string", "tier": "string",
    "bundle_id": "string", "price_table_id": "string", "decision": "string", "timestamp": "timestamp",
    "ended": "string", "attempt_id": "string", "answer": "string", "judged_by": "string", "comment": "string",
    "answer_text": "string",
}  # fmt: skip
"""Each column with its type in Arrow, beside those of checks; `timestamp` counts microseconds since 1970, UTC."""

OF_AN_OUTCOME = (
    "correct", "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens",
    "tokens_estimated", "cache_hit", "cost_usd", "latency_ms", "model", "provider", "tier", "ended",
    "answer", "judged_by", "comment", "answer_text",
)  # fmt: skip
"""The columns that an outcome may give or replace, beside those of checks."""

ENDS = ("complete", "cut", "failed", "left")
"""What `ended` may be: how an attempt ended; data/README.md says what each means."""

OF_A_DECISION = ("decision_id", "request_id", "propensity", "tier", "bundle_id", "price_table_id")
"""The columns that are fields of `Decision` too."""

OF_AN_ATTEMPT = ("attempt_id", "decision_id", "request_id", "bundle_id", "price_table_id")
"""The columns by which an attempt without a whole answer names itself and its decision."""

_CHECK = re.compile("check_[A-Za-z0-9_]+")
_MAY_BE_MISSING = ("request_id", "model", "provider", "prompt", "prompt_id")
_NOT_NUMBERS = (str, bytes, bytearray)
"""Types that `float` reads, but that are no numbers."""
_AT_MOST_1 = ("correct", "propensity")
_MOST = 1e12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND


def checked_attempt(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a decision as the columns store it; raises TypeError or ValueError where a value cannot be stored."""
    return {
        name: None if value is None and name in _MAY_BE_MISSING else checked(name, value) for name, value in row.items()
    }


def checked(name: str, value: Any) -> Any:
    """The value as its column stores it; raises TypeError or ValueError where it has another type or is out of range.

    Lone surrogates in a text become question marks, as the router reads them.
    """
    kind = "double" if is_of_check(name) else COLUMNS[name]
    if kind == "string":
        if not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}; expected a text")
        if name == "ended" and value not in ENDS:
            raise ValueError(f"ended is {value[:80]!r}; expected one of {', '.join(ENDS)}")
        return value if value.isascii() else valid_unicode(value)
    if kind == "bool":
        if not isinstance(value, bool):
            raise TypeError(f"{name} is {type(value).__name__}; expected True or False")
        return value
    if kind == "timestamp":
        return checked_time(name, value)
    if isinstance(value, _NOT_NUMBERS):
        raise TypeError(f"{name} is {type(value).__name__}; expected a number")
    is_share = name in _AT_MOST_1 or (is_of_check(name) and not name.endswith("_usd"))
    number, most = float(value), 1.0 if is_share else _MOST
    if not 0 <= number <= most:
        raise ValueError(f"{name} is {number:g}; expected a number from 0 to {most:g}")
    return round(number) if kind == "int64" else number


def is_of_check(name: str) -> bool:
    """Whether a column has what a check said (`check_NAME`, a score from 0 to 1) or cost (`check_NAME_usd`)."""
    return _CHECK.fullmatch(name) is not None


def given_by_outcome(event: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of an event that an outcome may give or replace."""
    return {name: value for name, value in event.items() if name in OF_AN_OUTCOME or is_of_check(name)}


def row_id(row: Mapping[str, Any]) -> str:
    """What no other row has: the attempt_id of an attempt without a whole answer, else the decision_id."""
    found: str = row.get("attempt_id") or row["decision_id"]
    return found


def checked_time(name: str, value: Any) -> int:
    """Microseconds since 1970 within the years 1 to 9999; raises TypeError or ValueError otherwise."""
    if type(value) is not int:
        raise TypeError(f"{name} is {type(value).__name__}; expected microseconds since 1970")
    if not _FIRST_US <= value <= _LAST_US:
        raise ValueError(f"{name} is {value} microseconds since 1970; expected a time in the years 1 to 9999")
    return value


def microseconds(timestamp: datetime) -> int:
    """Microseconds since 1970; a time without a time zone is UTC.

    Raises TypeError for anything but a datetime, and ValueError where the time is in UTC not in the years 1 to 9999.
    """
    if not isinstance(timestamp, datetime):
        raise TypeError(f"timestamp is {type(timestamp).__name__}; expected a datetime")
    aware = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return checked_time("timestamp", (aware - _EPOCH) // _MICROSECOND)


def day(timestamp_us: int) -> str:
    """The day of a time, UTC, as `2026-11-24`."""
    return str(moment(timestamp_us).date())


def moment(timestamp_us: int) -> datetime:
    """The time so many microseconds after 1970 began, UTC."""
    return _EPOCH + timedelta(microseconds=timestamp_us)
