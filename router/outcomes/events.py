"""The lines of the journals, read: each is a decision, an attempt or an outcome, or is put aside with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from router.outcomes.columns import (
    OF_A_DECISION,
    OF_AN_ATTEMPT,
    checked,
    checked_attempt,
    checked_time,
    given_by_outcome,
    row_id,
)

DATA_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading bad data may raise. Errors of the machine (OSError, MemoryError) are never among them."""


@dataclass(frozen=True)
class Lines:
    """Whole lines of one journal; start: the byte where the first begins."""

    journal: str
    start: int
    lines: list[bytes]


@dataclass(frozen=True)
class Events:
    """What lines say.

    attempts: new rows by their row_id: of decisions, and of attempts without a whole answer. A decision given twice is
        the one given first.
    outcomes: each with the id of its decision, the later ones last.
    unreadable: a note for each line that is neither: where it stood, the reason, the line.
    """

    attempts: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    unreadable: list[dict[str, Any]] = field(default_factory=list)


def read_events(journals: list[Lines]) -> Events:
    """What the lines of all journals say."""
    events = Events()
    for journal in journals:
        latest, start = 0, journal.start
        for line in journal.lines:
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise TypeError(f"the line is {type(event).__name__}; expected an object")
                if "outcome_of" in event:
                    outcome = read_outcome(event)
                    outcome["at"] = latest = max(outcome["at"], latest)  # Lines are in order, clocks may not be.
                    events.outcomes.append((checked("decision_id", event["outcome_of"]), outcome))
                else:
                    row = _read_attempt(event) if "attempt_id" in event else _read_decision(event)
                    events.attempts.setdefault(row_id(row), row)
            except DATA_ERRORS as error:
                events.unreadable.append(
                    {"file": journal.journal, "at_byte": start, "reason": reason(error),
                     "line": line.decode("utf-8", "backslashreplace")}
                )  # fmt: skip
            start += len(line) + 1
    events.outcomes.sort(key=lambda pair: pair[1]["at"])
    return events


def read_outcome(event: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that an outcome gives, and `at`, when it was given; raises one of DATA_ERRORS where it is none."""
    given = {name: checked(name, value) for name, value in given_by_outcome(event).items()}
    return {"at": checked_time("at", event["at"]), **given}


def reason(error: Exception) -> str:
    """An error as the reason why something was put aside."""
    return f"{type(error).__name__}: {error}"[:500]


def _read_attempt(event: Mapping[str, Any]) -> dict[str, Any]:
    """The row of an attempt beside the decision's. It has no propensity, and a prompt where it gave an answer."""
    row = {name: event[name] for name in OF_AN_ATTEMPT}
    asked = {name: event[name] for name in ("prompt", "prompt_id") if name in event}
    return checked_attempt({"timestamp": event["at"], **row, **asked, **given_by_outcome(event)})


def _read_decision(event: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a decision whose outcome is not known yet."""
    decision = event["decision"]
    offer = decision["offer"] or {}
    row = {
        "prompt": event["prompt"],
        "prompt_id": event["prompt_id"],
        "model": offer.get("model"),
        "provider": offer.get("provider"),
        "timestamp": event["at"],
        "decision": json.dumps(decision, ensure_ascii=False),
        **{name: decision[name] for name in OF_A_DECISION},
    }
    if event.get("is_planned"):
        del row["propensity"]
    return checked_attempt(row)
