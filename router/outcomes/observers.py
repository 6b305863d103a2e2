"""Who is told of requests besides the outcome log: metrics and traces.

All that the log takes passes through `ObservedLog`, so what observers are told is what is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from router.decision import Decision
from router.outcomes.log import OutcomeLog
from router.prompt import Messages
from router.rule import admissible, best, or_best_tier

logger = logging.getLogger(__name__)


class Observer(Protocol):
    """Is told of all that happens to requests. Texts of prompts, answers and comments are not among it.

    It must not wait: some of its methods run in the event loop that serves requests. `columns` are those of the outcome
    log: tokens, cost, latency, and who was asked.
    """

    def routed(self, decision: Decision, seconds: float, data: Mapping[str, Any], session_id: str | None) -> None:
        """A request was routed, which took `seconds`. data: its body. session_id: the client's name for the chat."""

    def decided(self, decision: Decision) -> None:
        """A decision was logged."""

    def attempted(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """An attempt has ended, and another offer may be asked. ended: one of router.outcomes.columns.ENDS."""

    def answered(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """The attempt has ended that is the decision's own row in the log: its answer is what the client got."""

    def judged(self, decision_id: str, correct: float) -> None:
        """Someone has said whether an answer was right. correct: from 0 to 1."""

    def gave_up(self, decision: Decision) -> None:
        """The client of a routed request got an error, and no other model is asked."""


class Observers:
    """Tells several observers of everything. What one of them raises is logged once and goes no further."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = list(observers)
        self._troubles: set[str] = set()

    def add(self, observer: Observer) -> None:
        """Tell one more, from now on."""
        self._observers.append(observer)

    def routed(self, decision: Decision, seconds: float, data: Mapping[str, Any], session_id: str | None) -> None:
        """As Observer says."""
        self._tell(lambda each: each.routed(decision, seconds, data, session_id))

    def gave_up(self, decision: Decision) -> None:
        """As Observer says."""
        self._tell(lambda each: each.gave_up(decision))

    def decided(self, decision: Decision) -> None:
        """As Observer says."""
        self._tell(lambda each: each.decided(decision))

    def attempted(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """As Observer says."""
        self._tell(lambda each: each.attempted(decision_id, ended, columns))

    def answered(self, decision_id: str, ended: str, columns: Mapping[str, Any]) -> None:
        """As Observer says."""
        self._tell(lambda each: each.answered(decision_id, ended, columns))

    def judged(self, decision_id: str, correct: float) -> None:
        """As Observer says."""
        self._tell(lambda each: each.judged(decision_id, correct))

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception as error:  # Whatever it is, it must not stop serving.
                trouble = f"{type(observer).__name__}: {type(error).__name__}"
                if trouble not in self._troubles:
                    self._troubles.add(trouble)
                    logger.warning("a request is not in metrics or traces: %s", trouble)


class ObservedLog(OutcomeLog):
    """An outcome log that tells observers of all that it takes."""

    def __init__(
        self, path: str | Path, observers: Observers, *, keep_prompts: bool = False, keep_answers: bool = False
    ) -> None:
        super().__init__(path, keep_prompts=keep_prompts, keep_answers=keep_answers)
        self.observers = observers

    def decided(
        self,
        decision: Decision,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        timestamp: datetime | None = None,
        is_planned: bool = False,
    ) -> None:
        """As OutcomeLog takes it."""
        super().decided(decision, prompt, messages=messages, timestamp=timestamp, is_planned=is_planned)
        self.observers.decided(decision)

    def outcome(self, decision_id: str, **given: Any) -> bool:
        """As OutcomeLog takes it."""
        is_taken = super().outcome(decision_id, **given)
        if is_taken and (ended := given.get("ended")) is not None:
            self.observers.answered(decision_id, ended, given)
        if is_taken and (correct := given.get("correct")) is not None:
            self.observers.judged(decision_id, correct)
        return is_taken

    def attempt(self, decision: Decision, **given: Any) -> None:
        """As OutcomeLog takes it."""
        super().attempt(decision, **given)
        self.observers.attempted(decision.decision_id, given["ended"], given)


def reason_kind(decision: Decision) -> str:
    """Why a tier was chosen, as one of few words.

    "fallback": the router could not decide. "explored": another tier than the rule's own. "critical", "worth",
    "quality": which dial decided. "unproven": the quality is not promised, so the best tier of the log stands in.
    """
    if decision.fallback:
        return "fallback"
    if decision.propensity < 1 and decision.tier != _winner(decision):
        return "explored"
    if decision.quality is None:
        return "critical" if decision.slack == 0 else "worth"
    return "quality" if decision.best_tier is None else "unproven"


def _winner(decision: Decision) -> str:
    """The tier that the rule chooses without exploration."""
    success, price, worth = decision.success, decision.price_usd, decision.worth_usd
    winner = best(admissible(decision.eligible, success, decision.slack), success, price, worth)
    return winner if decision.best_tier is None else or_best_tier(winner, decision.best_tier, success, price, worth)
