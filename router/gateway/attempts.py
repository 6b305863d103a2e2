"""The attempts of a routed request: who is being asked, since when, and what a broken stream has said so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from router.decision import Decision
from router.gateway.usage import answer_text

COMPLETE, CUT, FAILED, LEFT = "complete", "cut", "failed", "left"
"""How an attempt ended; data/README.md says what each means."""

ATTEMPTS_KEY = "broker_attempts"
"""Where the Attempts stand in LiteLLM's request metadata."""


class Attempts:
    """The attempts of one request, one after the other.

    LiteLLM says when it asks a model and when that fails, but not when a stream breaks and the next model is asked.
    So an attempt that is still under way when another model is asked was cut.

    decision: of the request. may_answer: names of the models that may be asked; None where a policy has no say.
    received: the list that LiteLLM fills with the chunks of the stream under way.
    """

    def __init__(self, decision: Decision, may_answer: frozenset[str] | None = None) -> None:
        self.decision = decision
        self.may_answer = may_answer
        self.received: Sequence[object] = ()
        self._model: str | None = None
        self._is_simulated = False
        self._began_s = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Attempts:
        return self  # LiteLLM copies a request's metadata for each fallback; all of them are one request.

    @property
    def model(self) -> str | None:
        """The model that is being asked, by its name in LiteLLM; None where none is."""
        return self._model

    @property
    def ended_without_reason(self) -> bool:
        """Whether the stream has ended as one does whose provider died: without a reason, but without an error.

        The streams that LiteLLM simulates never say a reason.
        """
        return bool(self.received) and not self._is_simulated and not is_finished(self.received)

    def begin(self, model: str | None, *, is_simulated: bool = False) -> None:
        """A model is asked. Changes nothing where it is being asked already: LiteLLM may say so twice."""
        if model != self._model:
            self._model, self._is_simulated, self._began_s = model, is_simulated, time.monotonic()
            self.received = ()

    def end(self) -> float:
        """The attempt under way has ended; returns the milliseconds that it took."""
        self._model = None
        return (time.monotonic() - self._began_s) * 1000


def attempts_of(data: Mapping[str, Any]) -> Attempts | None:
    """The attempts of a request, from its body or the arguments of one of its calls; None where it is not routed."""
    metadata = data.get("metadata")
    found = metadata.get(ATTEMPTS_KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, Attempts) else None


def is_finished(chunks: Sequence[object]) -> bool:
    """Whether a stream has said why it ends, so that its answer is whole."""
    choices = (choice for chunk in chunks for choice in getattr(chunk, "choices", None) or [])
    return any(getattr(choice, "finish_reason", None) for choice in choices)


def streamed_text(chunks: Iterable[object]) -> str:
    """All that a model has written in the chunks of a stream."""
    return "".join(answer_text(chunk) for chunk in chunks)
