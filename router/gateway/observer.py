"""Who is told of each routed request: metrics and traces, where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from router.decision import Decision


class RequestObserver(Protocol):
    """Is told of routed requests, in LiteLLM's event loop. It must not raise, and must not wait."""

    def routed(self, decision: Decision, seconds: float, data: Mapping[str, Any], session_id: str | None) -> None:
        """A request was routed, which took `seconds`. data: its body, as LiteLLM knows it."""

    def gave_up(self, decision: Decision) -> None:
        """The client of a routed request got an error, and no other model is asked."""
