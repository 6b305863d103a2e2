"""What users and graders say of answers, taken so that saying it twice counts once."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Any

from router.errors import OutcomeLogError
from router.outcomes.columns import row_id
from router.outcomes.log import OutcomeLog
from router.outcomes.reading import LogReader

RECORDED, REPEATED, WAITING = "recorded", "already recorded", "waiting for its decision"
"""What became of an outcome: it is new; the log had it already; the log has no such decision yet."""


class ContradictionError(OutcomeLogError):
    """Another outcome of this decision is in the log.

    decision_id: of the decision. found: what the log has. given: what was said now; both from 0 to 1.
    """

    def __init__(self, decision_id: str, found: float, given: float) -> None:
        self.decision_id, self.found, self.given = decision_id, found, given
        super().__init__(
            f"decision {decision_id} has the outcome {found:g} already and now gets {given:g}; "
            'send "replace": true if the new one shall hold'
        )


class NotStoredError(OutcomeLogError):
    """The log could not store an outcome, for example because the disk is full."""

    exit_code = 1


@dataclass(frozen=True)
class Taken:
    """What became of an outcome. status: RECORDED, REPEATED or WAITING. is_known: the log has the decision."""

    status: str
    is_known: bool


class Feedback:
    """Takes outcomes of decisions for a log, from many threads.

    An outcome that is given again changes nothing. One that contradicts what is there is refused, unless it shall
    replace it. Within one process no two outcomes of a decision get past each other; where two processes take
    contradicting ones at the same moment, the later one holds.
    """

    def __init__(self, log: OutcomeLog, reader: LogReader) -> None:
        self._log, self._reader = log, reader
        self._one_at_a_time = Lock()

    def take(
        self,
        decision_id: str,
        correct: float,
        *,
        judged_by: str | None = None,
        comment: str | None = None,
        replace: bool = False,
    ) -> Taken:
        """Take whether the answer to a decision was right, or its score; it is stored when this returns.

        correct: from 0 to 1. judged_by, comment: as OutcomeLog.outcome takes them. replace: this one holds, whatever
            is there.
        Raises ContradictionError where another outcome is there, and NotStoredError where it could not be stored.
        """
        with self._one_at_a_time:
            self._flush(decision_id)  # Else a decision that waits for its object store is not found.
            found = self._reader.find(decision_id)
            row = next((row for row in found.rows if row_id(row) == decision_id), None)
            said = found.waiting if row is None else row
            given = {"correct": correct, "judged_by": judged_by, "comment": comment}
            before = said.get("correct")
            if before is not None and before != correct and not replace:
                raise ContradictionError(decision_id, before, correct)
            is_new = any(value is not None and value != said.get(name) for name, value in given.items())
            if is_new:
                self._store(decision_id, given)
        if row is None:
            return Taken(status=WAITING, is_known=False)
        return Taken(status=RECORDED if is_new else REPEATED, is_known=True)

    def _store(self, decision_id: str, given: dict[str, Any]) -> None:
        if not self._log.outcome(decision_id, **given):
            raise NotStoredError(f"the outcome of {decision_id} could not be stored; the log of the service says why")
        self._flush(decision_id)

    def _flush(self, decision_id: str) -> None:
        try:
            self._log.flush()
        except OSError as error:
            raise NotStoredError(f"the outcome of {decision_id} could not be stored: {error}") from error
