"""What an error or an answer of LiteLLM's says of the health of the offer that was asked."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

_CLIENTS_OWN = {400, 413, 415, 422}
"""HTTP statuses of errors that another offer would answer with as well: the request itself is at fault."""

_TOKENS_PER_STEP = 100


class Failure(NamedTuple):
    """Why an attempt failed, in a few words, and when the provider wants to be asked again, if it says so."""

    why: str
    retry_after_s: float | None


class Pace(NamedTuple):
    """How fast an answer came. kind: what was timed, "first token" or "whole answer"."""

    kind: str
    latency_ms: float | None


def failure_of(exception: BaseException) -> Failure | None:
    """What a failed attempt says of its offer; None where the request is at fault. No text of the error is kept."""
    status = getattr(exception, "status_code", None)
    if status in _CLIENTS_OWN:
        return None
    why = f"HTTP {status}" if isinstance(status, int) else type(exception).__name__
    return Failure(why, _retry_after_s(exception))


def pace_of(call: Mapping[str, Any], output_tokens: int | None) -> Pace | None:
    """How fast the answer of a call came, as LiteLLM knows it; None where it does not.

    A streamed answer is timed until its first token, another one until its end, and that per 100 output tokens.
    """
    begin, first, end = (call.get(name) for name in ("api_call_start_time", "completion_start_time", "end_time"))
    if call.get("stream"):
        return None if (ms := _ms_between(begin, first)) is None else Pace("first token", ms)
    ms = _ms_between(begin, end)
    return None if ms is None else Pace("whole answer", ms / max(1.0, (output_tokens or 0) / _TOKENS_PER_STEP))


def _retry_after_s(exception: BaseException) -> float | None:
    """Seconds until the provider wants to be asked again; None where it does not say."""
    response = getattr(exception, "response", None)
    for headers in (getattr(exception, "litellm_response_headers", None), getattr(response, "headers", None)):
        value = None if headers is None else headers.get("retry-after")
        try:
            if value is not None:
                return float(value)
        except (TypeError, ValueError):  # A date: rare, and the breaker has a pause of its own.
            pass
    return None


def _ms_between(begin: object, end: object) -> float | None:
    if not isinstance(begin, datetime) or not isinstance(end, datetime):
        return None
    return max(0.0, (end - begin).total_seconds() * 1000)
