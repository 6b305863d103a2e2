"""Logged answers looked at by checks: what they say goes into the log, beside what people have said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from router.checks.verdict import Check, verdict_of
from router.errors import CheckError, OutcomeLogError
from router.outcomes.columns import row_id
from router.outcomes.log import OutcomeLog
from router.outcomes.reading import LogReader

_ROWS_AT_ONCE = 1_000


@dataclass(frozen=True)
class Labels:
    """What one check has said. looked_at: answers. passed: with a score of at least 0.5.

    troubled: answers that it could not look at. outcomes: answers whose `correct` it has set.
    """

    looked_at: int = 0
    passed: int = 0
    troubled: int = 0
    outcomes: int = 0


def label(
    reader: LogReader,
    log: OutcomeLog,
    name: str,
    check: Check,
    *,
    decides: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Labels:
    """Look at each whole answer whose text was kept, and at which this check has not looked yet.

    name: of the check; what it says becomes `check_NAME` and `check_NAME_usd`. decides: answers that nobody has judged
    get its score as `correct`, and `check NAME` in `judged_by`. since, until: of the answers' times.
    Raises OutcomeLogError where no answer in that time was kept.
    """
    looked_at = passed = troubled = outcomes = n_kept = 0
    for row in _answers(reader, name, since, until):
        n_kept += 1
        if row.get(f"check_{name}") is not None:
            continue
        try:
            verdict = verdict_of(check(row["prompt"] or "", row["answer_text"]))
        except CheckError:  # Nothing was seen of the answer.
            troubled += 1
            continue
        sets = decides and row["correct"] is None
        judged: Mapping[str, Any] = {"correct": verdict.score, "judged_by": f"check {name}"} if sets else {}
        log.outcome(row_id(row), checks={name: verdict}, **judged)
        looked_at, passed, outcomes = looked_at + 1, passed + (verdict.score >= 0.5), outcomes + sets
    if not n_kept:
        raise OutcomeLogError("no answer was kept in that time; expected a log of `broker serve --keep-answers`")
    return Labels(looked_at=looked_at, passed=passed, troubled=troubled, outcomes=outcomes)


def _answers(reader: LogReader, name: str, since: datetime | None, until: datetime | None) -> Iterator[dict[str, Any]]:
    """The rows with a whole answer whose text was kept."""
    columns = ("prompt", "answer_text", "ended", "correct", f"check_{name}")
    for batch in reader.table(since=since, until=until, columns=columns).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            if row["answer_text"] is not None and row["ended"] == "complete":
                yield row
