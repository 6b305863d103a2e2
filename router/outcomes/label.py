"""Logged answers looked at by checks: what they say goes into the log, beside what people have said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from router.checks.verdict import Check, Verdict, verdict_of
from router.errors import CheckError, OutcomeLogError
from router.outcomes.columns import row_id
from router.outcomes.correction import Accuracy
from router.outcomes.log import OutcomeLog
from router.outcomes.reading import LogReader

_ROWS_AT_ONCE = 1_000

_MOST_TROUBLES = 20
"""After so many answers in a row that a check could not look at, it is not asked again."""

_PASSED = 0.5
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class Labels:
    """What one check has said. looked_at: answers. passed: with a score of at least 0.5. usd: what it cost.

    troubled: answers that it could not look at. outcomes: answers whose `correct` it has set.
    accuracy: how often it is right, where its verdicts were corrected by that.
    """

    looked_at: int = 0
    passed: int = 0
    usd: float = 0.0
    troubled: int = 0
    outcomes: int = 0
    accuracy: Accuracy | None = None


def label(
    reader: LogReader,
    log: OutcomeLog,
    name: str,
    check: Check,
    *,
    decides: bool = False,
    corrects: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    n_threads: int = 1,
) -> Labels:
    """Look at each whole answer whose text was kept, and at which this check has not looked yet.

    name: of the check; what it says becomes `check_NAME` and `check_NAME_usd`. decides: answers that nobody has judged
    get an outcome, and `check NAME` in `judged_by`. It is the check's score; with `corrects` it is the probability
    that the answer is right, given how often the check errs (router.outcomes.correction). since, until: of the answers'
    times. n_threads: so many answers are looked at side by side.
    Raises OutcomeLogError where no answer in that time was kept. Raises CheckError where the check cannot look at 20
    answers in a row, and where it should be corrected and cannot be measured; what it said until then is in the log.
    """
    rows = list(_answers(reader, name, since, until))
    if not rows:
        raise OutcomeLogError("no answer was kept in that time; expected a log of `broker serve --keep-answers`")
    seen = [(row, row[f"check_{name}"]) for row in rows if row.get(f"check_{name}") is not None]
    verdicts = list(_verdicts([row for row in rows if row.get(f"check_{name}") is None], log, name, check, n_threads))
    new = [(row, verdict) for row, verdict in verdicts if verdict is not None]
    said = [*seen, *((row, verdict.score) for row, verdict in new)]
    accuracy = _measured(said) if decides and corrects else None
    outcomes = 0
    if decides:
        scored = _corrected(said, accuracy) if accuracy else [(row, verdict.score) for row, verdict in new]
        for row, score in scored:
            if row["correct"] is None:
                outcomes += log.outcome(row_id(row), correct=score, judged_by=f"check {name}")
    return Labels(
        looked_at=len(new),
        passed=sum(verdict.score >= _PASSED for _, verdict in new),
        usd=sum(verdict.cost_usd for _, verdict in new),
        troubled=len(verdicts) - len(new),
        outcomes=outcomes,
        accuracy=accuracy,
    )


def _answers(reader: LogReader, name: str, since: datetime | None, until: datetime | None) -> Iterator[_Row]:
    """The rows with a whole answer whose text was kept."""
    columns = ("prompt", "answer_text", "ended", "correct", "judged_by", "tier", "decision", f"check_{name}")
    for batch in reader.table(since=since, until=until, columns=columns).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for row in batch.to_pylist():
            if row["answer_text"] is not None and row["ended"] == "complete":
                yield row


def _verdicts(
    rows: Sequence[_Row], log: OutcomeLog, name: str, check: Check, n_threads: int
) -> Iterator[tuple[_Row, Verdict | None]]:
    """Each row with what the check says of it, which is in the log by then; None where it could not look."""
    n_troubles = 0
    with ThreadPoolExecutor(n_threads) as threads:
        for start in range(0, len(rows), _MOST_TROUBLES):
            some = rows[start : start + _MOST_TROUBLES]
            for row, found in zip(some, threads.map(partial(_verdict, check), some), strict=True):
                if isinstance(found, CheckError):
                    n_troubles += 1
                    if n_troubles == _MOST_TROUBLES:
                        raise found
                    yield row, None
                    continue
                n_troubles = 0
                log.outcome(row_id(row), checks={name: found})
                yield row, found


def _verdict(check: Check, row: _Row) -> Verdict | CheckError:
    try:
        return verdict_of(check(row["prompt"] or "", row["answer_text"]))
    except CheckError as error:  # Nothing was seen of the answer.
        return error


def _measured(said: Sequence[tuple[_Row, float]]) -> Accuracy:
    """How often the check is right, on the answers that no check has judged."""
    judged = [
        (score >= _PASSED, row["correct"] >= _PASSED)
        for row, score in said
        if row["correct"] is not None and not (row["judged_by"] or "").startswith("check ")
    ]
    return Accuracy.measured([passed for passed, _ in judged], [right for _, right in judged])


def _corrected(said: Sequence[tuple[_Row, float]], accuracy: Accuracy) -> Iterator[tuple[_Row, float]]:
    """The probability that each answer is right, of those that nobody judged and of which the router expected much."""
    by_tier: dict[str, list[tuple[_Row, float, float]]] = {}
    for row, score in said:
        expected = json.loads(row["decision"] or "{}").get("success", {}).get(row["tier"])
        if row["correct"] is None and expected is not None:
            by_tier.setdefault(row["tier"], []).append((row, score, expected))
    for answers in by_tier.values():
        rows, scores, expected = zip(*answers, strict=True)
        probabilities = accuracy.corrected(np.array(expected, float), np.array(scores) >= _PASSED)
        yield from zip(rows, map(float, probabilities), strict=True)
