"""Compaction: the journals of all processes become Parquet, one row per decision, joined with its outcome.

A row lives in one file from the first compaction that sees it; later outcomes replace that file in one step. The
state names the batch that comes next, and is replaced when all files of that batch are written. So the next
compaction knows what a killed one has left: it removes these files, whose lines the journals still have, and begins
again. No row is lost, and none is there twice, even if the state is lost: a decision that has a row already is passed
over. What cannot be read is put into the folder `.unreadable`, with the reasons, and the rest goes on.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from router.files import UNFINISHED
from router.outcomes.columns import checked, day
from router.outcomes.events import DATA_ERRORS, Lines, read_events, read_outcome, reason
from router.outcomes.partitions import Partitions, join
from router.outcomes.storage import JOURNALS, Files

logger = logging.getLogger(__name__)

STATE = JOURNALS + "state.json"
"""How far the journals are in Parquet, and the outcomes that wait for their decision."""

_UNREADABLE = ".unreadable/"
_BATCH_BYTES = 64 * 1024 * 1024
_DAY_US = 24 * 3600 * 1_000_000
_ORPHAN_AGE_US = 7 * _DAY_US


@dataclass(frozen=True)
class Compaction:
    """What one compaction brought into Parquet.

    attempts: new rows.
    outcomes: rows, new or old, that outcomes were joined to.
    orphans: outcomes whose decision is not in the log; they are kept for a week, in case it comes.
    unreadable: lines that are no decision and no outcome, and files that are damaged; a machine that loses power may
        leave some. They are put into the folder `.unreadable`, with the reasons.
    """

    attempts: int = 0
    outcomes: int = 0
    orphans: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class _State:
    """What the Parquet files hold, and the name of the batch that comes next.

    read: bytes of each journal that are in Parquet. orphans: outcomes by decision_id, each with `at`.
    """

    batch: str = field(default_factory=lambda: uuid4().hex)
    read: Mapping[str, int] = field(default_factory=dict)
    orphans: Mapping[str, dict[str, Any]] = field(default_factory=dict)


class _Aside:
    """What one batch could not read: the notes that say why, and the files that go when these are written."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._moved: list[str] = []
        self.notes: list[dict[str, Any]] = []

    def copy(self, name: str, error: Exception) -> None:
        """Copy a damaged file that is about to be replaced."""
        copy = _UNREADABLE + name.removeprefix(JOURNALS).replace("/", "-")
        with self._files.opened(name) as file:
            self._files.write(copy, file.read())
        self.notes.append({"file": name, "reason": reason(error), "kept_as": copy})

    def move(self, name: str, error: Exception) -> None:
        """Copy a damaged file; `delete_files` deletes it when the notes are written."""
        self.copy(name, error)
        self._moved.append(name)

    def write(self, batch: str) -> None:
        """Write the notes, one per line."""
        if self.notes:
            name = _notes_of(batch)
            self._files.write(name, b"".join(json.dumps(note).encode() + b"\n" for note in self.notes))
            first = self.notes[0]
            logger.warning(
                "%d lines or files of the outcome log could not be read and are put aside in %s; the first, of %s: %s",
                len(self.notes), name, first["file"], first["reason"],
            )  # fmt: skip

    def delete_files(self) -> None:
        """Delete the originals of the files put aside."""
        for name in self._moved:
            self._files.delete(name)


def _notes_of(batch: str) -> str:
    return f"{_UNREADABLE}{batch}.jsonl"


def compact(files: Files) -> Compaction:
    """Bring all that the journals hold into Parquet, batch by batch; `files.alone()` must hold."""
    total, has_more = Compaction(), True
    while has_more:
        done, has_more = _compact_batch(files)
        total = Compaction(
            attempts=total.attempts + done.attempts,
            outcomes=total.outcomes + done.outcomes,
            orphans=done.orphans,
            unreadable=total.unreadable + done.unreadable,
        )
    return total


def _compact_batch(files: Files) -> tuple[Compaction, bool]:
    """Bring one batch of lines into Parquet; what was done, and whether there may be more."""
    aside = _Aside(files)
    state = _begun(files, aside)
    journals = journal_names(files)
    lines, read, finished, has_more = _new_lines(files, journals, state.read)
    events = read_events(lines)
    aside.notes += events.unreadable
    partitions, attempts = Partitions(files, aside.move), events.attempts
    if not has_more:
        partitions.index()
    known = partitions.known(attempts.keys(), _days(attempts.values()))
    for decision_id in known:
        del attempts[decision_id]
    waiting = joined_outcomes(state.orphans, events.outcomes)
    n_waiting = len(waiting)
    for decision_id in attempts.keys() & waiting.keys():
        join(attempts[decision_id], waiting.pop(decision_id))
    searched = known.union(decision_id for decision_id, _ in events.outcomes)
    new = {decision_id: outcome for decision_id, outcome in waiting.items() if decision_id in searched}
    for decision_id in partitions.update(new):
        del waiting[decision_id]
    partitions.add(attempts.values(), state.batch)
    orphans = _young(waiting)
    if read != state.read or aside.notes:
        aside.write(state.batch)
        _write_state(files, _State(read=read, orphans=orphans))
        aside.delete_files()
    for name in finished:
        files.delete(name)
    done = Compaction(
        attempts=len(attempts),
        outcomes=n_waiting - len(waiting),
        orphans=len(orphans),
        unreadable=len(aside.notes),
    )
    return done, has_more


def _begun(files: Files, aside: _Aside) -> _State:
    """The state to go on from. Deletes what a killed compaction wrote after it, since the journals still have it."""
    state = _read_state(files, aside) if STATE in files.names() else None
    if state is None:
        state = _State()
        _write_state(files, state)
    for name in files.names():
        if (
            name.endswith(f"/attempts-{state.batch}.parquet")
            or name == _notes_of(state.batch)
            or f"/{UNFINISHED}" in name
        ):
            files.delete(name)
    return state


def _read_state(files: Files, aside: _Aside) -> _State | None:
    """The state as it was written, less the orphans that cannot be read; None where it cannot be read."""
    with files.opened(STATE) as file:
        content = file.read()
    orphans = {}
    try:
        state = json.loads(content)
        if any(type(n_bytes) is not int or n_bytes < 0 for n_bytes in state["read"].values()):
            raise ValueError("a journal is read up to a place that is no number of bytes")
        batch, given = checked("decision_id", state["batch"]), state["orphans"].items()
    except DATA_ERRORS as error:
        aside.copy(STATE, error)
        return None
    for decision_id, outcome in given:
        try:
            orphans[decision_id] = read_outcome(outcome)
        except DATA_ERRORS as error:
            line = json.dumps({"outcome_of": decision_id, "values": outcome})
            aside.notes.append({"file": STATE, "reason": reason(error), "line": line})
    return _State(batch=batch, read=state["read"], orphans=orphans)


def _write_state(files: Files, state: _State) -> None:
    files.write(STATE, json.dumps(vars(state)).encode())


def _young(orphans: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Orphans that may still find their decision. One with a time in the future counts as given now."""
    now = time.time_ns() // 1000
    young = {
        decision_id: {**outcome, "at": min(outcome["at"], now)}
        for decision_id, outcome in orphans.items()
        if outcome["at"] >= now - _ORPHAN_AGE_US
    }
    if len(young) < len(orphans):
        logger.warning("%d outcomes dropped: their decisions did not come in a week", len(orphans) - len(young))
    return young


def _days(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The days of decisions, with those before and after: a decision given again may have another time."""
    days = set()
    for row in rows:
        for shift in (-_DAY_US, 0, _DAY_US):
            with suppress(OverflowError):  # There is no day before year 1 or after year 9999.
                days.add(day(row["timestamp"] + shift))
    return days


def journal_names(files: Files) -> list[str]:
    """The journals of a log, the older ones first."""
    return [name for name in files.names() if name.startswith(JOURNALS) and name.endswith(".jsonl")]


def _new_lines(
    files: Files, journals: list[str], read: Mapping[str, int]
) -> tuple[list[Lines], dict[str, int], list[str], bool]:
    """Whole lines beyond what was read, by journal; what is read then; journals at their end; whether there is more."""
    lines: list[Lines] = []
    ends: dict[str, int] = {}
    finished: list[str] = []
    n_bytes, has_more = 0, False
    for name in journals:
        start = ends[name] = read.get(name, 0)
        if n_bytes >= _BATCH_BYTES:
            has_more = True
            continue
        is_closed = files.is_closed(name)  # Asked before reading, so that no line can follow.
        with files.opened(name) as file:
            file.seek(start)
            content = file.read(_BATCH_BYTES) + file.readline()
        whole = content.rfind(b"\n") + 1
        lines.append(Lines(journal=name, start=start, lines=content[:whole].split(b"\n")[:-1]))
        ends[name] += whole
        n_bytes += len(content)
        if len(content) >= _BATCH_BYTES and whole:
            has_more = True
        elif is_closed:  # A last line that was cut short goes with it: nobody was told that it was taken.
            finished.append(name)
    return lines, ends, finished, has_more


def joined_outcomes(
    orphans: Mapping[str, dict[str, Any]], outcomes: list[tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """One outcome per decision: of each field the latest value; what was read before is older, whatever its time."""
    joined = {decision_id: dict(outcome) for decision_id, outcome in orphans.items()}
    for decision_id, outcome in outcomes:
        joined.setdefault(decision_id, {}).update(outcome)
    return joined
