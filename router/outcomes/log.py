"""The outcome log: decisions and, later, their outcomes; on disk, the attempts that training reads.

Serving appends lines to a journal of its own process, which needs nothing but the standard library. `compact` brings
the journals of all processes into Parquet, one row per decision, joined with what is known of its outcome:

    day=2026-11-24/attempts-<batch>.parquet    the log, in the format of data/README.md; the day is the decision's, UTC
    .journal/<writer>.jsonl                    what was appended; hidden, so that no reader takes it for a log
    .journal/state.json                        how far the journals are in Parquet, and outcomes without a decision

A row lives in one file from the first compaction that sees it; later outcomes replace that file in one step. The
state names the batch that comes next, and is replaced when all files of that batch are written. So the next
compaction knows what a killed one has left: it removes these files, whose lines the journals still have, and begins
again. No row is lost, and none is there twice.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib import import_module
from io import FileIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias
from uuid import uuid4

from router.decision import Decision
from router.errors import PromptError
from router.prompt import Messages, prompt_text, valid_unicode

logger = logging.getLogger(__name__)

_JOURNALS = ".journal/"
_STATE = _JOURNALS + "state.json"
_LOCK = _JOURNALS + "lock"
_UNFINISHED = ".unfinished"
_JOURNAL_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 64 * 1024 * 1024
_ORPHAN_AGE_US = 7 * 24 * 3600 * 1_000_000
_MOST = {"correct": 1.0, "input_tokens": 1e12, "output_tokens": 1e12, "cost_usd": 1e12, "latency_ms": 1e12}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Compaction:
    """What one compaction brought into Parquet.

    attempts: new rows. outcomes: rows, new or old, that outcomes were joined to.
    orphans: outcomes whose decision is not in the log; kept for a week, in case it comes.
    unreadable: lines that say nothing, as a machine may leave them that loses power.
    """

    attempts: int = 0
    outcomes: int = 0
    orphans: int = 0
    unreadable: int = 0


class OutcomeLog:
    """Takes decisions and their outcomes, from many threads, processes and forks at once.

    >>> log = OutcomeLog("logs/router")                                                     # doctest: +SKIP
    >>> log.decided(decision, prompt)                                                       # doctest: +SKIP
    >>> log.outcome(decision.decision_id, output_tokens=212, cost_usd=0.0004)               # doctest: +SKIP
    >>> log.outcome(decision.decision_id, correct=True)   # days later, in any process      # doctest: +SKIP
    >>> log.compact()                                     # now and then, in any process    # doctest: +SKIP

    path: a folder; or a URL of fsspec (`s3://...`), whose stores cannot append: there lines wait in memory for `flush`.
    keep_prompts: store the text of prompts. Without it a row has only `prompt_id`, a digest, and can be trained on
        only with a `prompts.parquet` (prompt_id, prompt) in the folder of its day. Whoever has a text can make its
        digest: it hides prompts from readers, not from those who guess them.

    `decided` and `outcome` never raise and never wait for another process: what cannot be stored (a full disk, a value
    out of range) is counted in `n_lost` and logged as a warning. What they have taken outlives the process.
    Needs POSIX; `compact` and URLs need the extra `outcomes`: pip install "token-broker[outcomes]".
    """

    def __init__(self, path: str | Path, *, keep_prompts: bool = False) -> None:
        self.n_lost = 0
        self._keep_prompts = keep_prompts
        self._trouble = ""
        location = str(path).removeprefix("file://")
        self._files: _Files = _Objects(location) if "://" in location else _Folder(Path(location))
        self._journals: dict[int, _Journal | _Buffer] = {}

    def decided(
        self,
        decision: Decision,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        """Take a decision, once, with the prompt or messages it was made for.

        timestamp: when it was asked, UTC unless it says otherwise; now where missing.
        """
        try:
            at = time.time_ns() // 1000 if timestamp is None else _microseconds(timestamp)
            try:
                text = valid_unicode(prompt_text(prompt, messages))
                prompt_id = f'"{sha256(text.encode()).hexdigest()[:16]}"'
            except PromptError:  # the decision is a fallback that says so
                text, prompt_id = None, "null"
            kept = json.dumps(text if self._keep_prompts else None, ensure_ascii=False)
            self._append(f'{{"at":{at},"prompt_id":{prompt_id},"prompt":{kept},"decision":{decision.to_json()}}}\n')
        except (OSError, TypeError, ValueError, OverflowError) as error:
            self._lose("a decision", error)

    def outcome(
        self,
        decision_id: str,
        *,
        correct: float | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
        latency_ms: float | None = None,
        model: str | None = None,
        provider: str | None = None,
        tier: str | None = None,
    ) -> None:
        """Take what became of a decision, at once or piece by piece; the later value of a field holds.

        correct: whether the answer was right, or 0 to 1; missing as long as nobody has judged it.
        model, provider, tier: who answered, where it was not the decision's offer. Of another tier than the one chosen
            the decision's propensity says nothing, so the row has none.
        A second attempt, as after an escalation, is a second decision with its own outcome.
        """
        try:
            given = {
                "correct": correct,
                "input_tokens": input_tokens,
                "output_tokens": output_tokens,
                "cost_usd": cost_usd,
                "latency_ms": latency_ms,
                "model": model,
                "provider": provider,
                "tier": tier,
            }
            values = {name: _checked(name, value) for name, value in given.items() if value is not None}
            event = {"at": time.time_ns() // 1000, "outcome_of": _checked("decision_id", decision_id), **values}
            self._append(json.dumps(event, ensure_ascii=False) + "\n")
        except (OSError, TypeError, ValueError, OverflowError) as error:
            self._lose("an outcome", error)

    def flush(self) -> None:
        """Hand what this process has in memory to the store; on a plain folder there is nothing to do.

        Raises OSError, and keeps what it has, where the store does not take it.
        """
        if journal := self._journals.get(os.getpid()):
            journal.flush()

    def close(self) -> None:
        """Flush and end this process's journal; the log can be used again, and starts another one."""
        if journal := self._journals.get(os.getpid()):
            journal.close()

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def compact(self) -> Compaction:
        """Bring all that any process has taken so far into Parquet; the next compaction takes what comes meanwhile.

        On a folder, one process at a time does it and others wait. An object store cannot make them wait: there
        BlockingIOError is raised. Raises ImportError without pyarrow, OSError where files cannot be written.
        """
        self.flush()
        _extra("pyarrow")
        total = Compaction()
        with self._files.alone():
            has_more = True
            while has_more:
                done, has_more = _compact_batch(self._files)
                total = Compaction(
                    total.attempts + done.attempts,
                    total.outcomes + done.outcomes,
                    done.orphans,
                    total.unreadable + done.unreadable,
                )
        return total

    def _append(self, line: str) -> None:
        process = os.getpid()  # a fork writes a journal of its own
        journal = self._journals.get(process) or self._journals.setdefault(process, self._files.journal())
        journal.append(line.encode("utf-8", "replace"))

    def _lose(self, what: str, error: Exception) -> None:
        self.n_lost += 1
        if str(error) != self._trouble:
            logger.warning("%s is not in the outcome log: %s", what, error)
        self._trouble = str(error)


# ---- lines -------------------------------------------------------------------------------------------------


def _microseconds(timestamp: datetime) -> int:
    aware = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def _checked(name: str, value: Any) -> str | float | int:
    """A value as the log stores it; raises TypeError or ValueError where it is none."""
    if name not in _MOST:
        if not isinstance(value, str):
            raise TypeError(f"{name} is {type(value).__name__}; expected a text")
        return value
    number = float(value)
    if not 0 <= number <= _MOST[name]:
        raise ValueError(f"{name} is {number:g}; expected a number from 0 to {_MOST[name]:g}")
    return round(number) if name.endswith("_tokens") else number


def _attempt(event: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a decision whose outcome is not known yet."""
    decision = event["decision"]
    offer = decision["offer"] or {}
    return {
        "prompt": event["prompt"],
        "prompt_id": event["prompt_id"],
        "model": offer.get("model"),
        "provider": offer.get("provider"),
        "timestamp": event["at"],
        "decision": json.dumps(decision, ensure_ascii=False),
        **{name: decision[name] for name in _OF_THE_DECISION},
    }


_OF_THE_DECISION = ("decision_id", "request_id", "propensity", "tier", "bundle_id", "price_table_id")
_COLUMNS = {
    "prompt": "string", "prompt_id": "string", "model": "string", "provider": "string", "correct": "double",
    "input_tokens": "int64", "output_tokens": "int64", "cost_usd": "double", "latency_ms": "double",
    "propensity": "double", "request_id": "string", "decision_id": "string", "tier": "string", "bundle_id": "string",
    "price_table_id": "string", "decision": "string",
}  # fmt: skip


def _journal_name() -> str:
    """A name that nobody else takes; older journals come first."""
    return f"{time.time_ns()}-{uuid4().hex}.jsonl"


# ---- compaction --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    """What the Parquet files hold, and the name of the batch that comes next.

    read: bytes of each journal that are in Parquet. orphans: outcomes by decision_id, each with `at`.
    """

    batch: str
    read: Mapping[str, int]
    orphans: Mapping[str, dict[str, Any]]


def _compact_batch(files: _Files) -> tuple[Compaction, bool]:
    """Bring one batch of lines into Parquet; what was done, and whether there may be more."""
    state = _begun(files)
    names = files.names()
    journals = [name for name in names if name.startswith(_JOURNALS) and name.endswith(".jsonl")]
    partitions = [name for name in names if name.startswith("day=") and "/attempts-" in name]
    lines, read, finished, has_more = _new_lines(files, journals, state.read)
    attempts, outcomes, n_unreadable = _events(lines)
    waiting = _joined(state.orphans, outcomes)
    n_waiting = len(waiting)
    for decision_id in attempts.keys() & waiting.keys():
        _join(attempts[decision_id], waiting.pop(decision_id))
    for name in reversed(partitions):
        if new := {decision_id: waiting[decision_id] for decision_id, _ in outcomes if decision_id in waiting}:
            for decision_id in _update_partition(files, name, new):
                del waiting[decision_id]
    days: dict[str, list[dict[str, Any]]] = {}
    for row in attempts.values():
        days.setdefault(str((_EPOCH + timedelta(microseconds=row["timestamp"])).date()), []).append(row)
    for day, rows in days.items():
        _write_rows(files, f"day={day}/attempts-{state.batch}.parquet", rows)
    n_joined = n_waiting - len(waiting)
    orphans = _young(waiting)
    if read != state.read:
        _write_state(files, _State(uuid4().hex, read, orphans))
    for name in finished:
        files.delete(name)
    return Compaction(len(attempts), n_joined, len(orphans), n_unreadable), has_more


def _begun(files: _Files) -> _State:
    """The state to go on from; what a killed compaction wrote beyond it goes, since the journals still have it."""
    names = files.names()
    if _STATE not in names:
        _write_state(files, _State(uuid4().hex, {}, {}))
    with files.opened(_STATE) as file:
        state = _State(**json.loads(file.read()))
    for name in names:
        if name.endswith((f"/attempts-{state.batch}.parquet", _UNFINISHED)):
            files.delete(name)
    return state


def _write_state(files: _Files, state: _State) -> None:
    files.write(_STATE, json.dumps(vars(state)).encode())


def _young(orphans: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Orphans that may still find their decision."""
    oldest = time.time_ns() // 1000 - _ORPHAN_AGE_US
    young = {decision_id: outcome for decision_id, outcome in orphans.items() if outcome["at"] >= oldest}
    if len(young) < len(orphans):
        logger.warning("%d outcomes dropped: their decisions did not come in a week", len(orphans) - len(young))
    return young


def _new_lines(
    files: _Files, journals: list[str], read: Mapping[str, int]
) -> tuple[list[list[bytes]], dict[str, int], list[str], bool]:
    """Whole lines beyond what was read, by journal; what is read then; journals at their end; whether there is more."""
    lines: list[list[bytes]] = []
    ends: dict[str, int] = {}
    finished: list[str] = []
    n_bytes, has_more = 0, False
    for name in journals:
        start = ends[name] = read.get(name, 0)
        if n_bytes >= _BATCH_BYTES:
            has_more = True
            continue
        is_closed = files.is_closed(name)  # asked before reading, so that nothing can come after
        with files.opened(name) as file:
            file.seek(start)
            content = file.read(_BATCH_BYTES) + file.readline()
        whole = content.rfind(b"\n") + 1
        lines.append(content[:whole].split(b"\n")[:-1])
        ends[name] += whole
        n_bytes += len(content)
        if len(content) >= _BATCH_BYTES and whole:
            has_more = True
        elif is_closed:  # a last line that was cut short goes with it: nobody was told that it was taken
            finished.append(name)
    return lines, ends, finished, has_more


def _events(journals: list[list[bytes]]) -> tuple[dict[str, dict[str, Any]], list[tuple[str, dict[str, Any]]], int]:
    """New attempts by decision_id; outcomes, each with the id of its decision; the number of unreadable lines."""
    attempts: dict[str, dict[str, Any]] = {}
    outcomes: list[tuple[str, dict[str, Any]]] = []
    unreadable = 0
    for lines in journals:
        latest = 0
        for line in lines:
            try:
                event = json.loads(line)
                if "outcome_of" in event:
                    event["at"] = latest = max(event["at"], latest)  # lines are in order, a clock may not be
                    outcomes.append((event.pop("outcome_of"), event))
                else:
                    attempt = _attempt(event)
                    attempts[attempt["decision_id"]] = attempt
            except (ValueError, TypeError, KeyError, AttributeError):
                unreadable += 1
    return attempts, outcomes, unreadable


def _joined(
    orphans: Mapping[str, dict[str, Any]], outcomes: list[tuple[str, dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """One outcome per decision: of each field the latest value."""
    joined: dict[str, dict[str, Any]] = {}
    for decision_id, outcome in sorted([*orphans.items(), *outcomes], key=lambda pair: pair[1]["at"]):
        joined.setdefault(decision_id, {}).update(outcome)
    return joined


def _join(row: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    """Complete the row of a decision by what became of it."""
    if outcome.get("tier", row["tier"]) != row["tier"]:
        row["propensity"] = None
    row.update(outcome)


def _update_partition(files: _Files, name: str, outcomes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Join outcomes to the rows of a Parquet file; the decisions that were there."""
    parquet = _extra("pyarrow.parquet")
    with files.opened(name) as file:
        table = parquet.ParquetFile(file)
        found = outcomes.keys() & set(table.read(["decision_id"])["decision_id"].to_pylist())
        rows = table.read().to_pylist() if found else []
    for row in rows:
        _join(row, outcomes.get(row["decision_id"], {}))
    if rows:
        _write_rows(files, name, rows)
    return found


def _write_rows(files: _Files, name: str, rows: list[dict[str, Any]]) -> None:
    pa, parquet = _extra("pyarrow"), _extra("pyarrow.parquet")
    schema = pa.schema([*_COLUMNS.items(), ("timestamp", pa.timestamp("us", "UTC"))])
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    files.write(name, sink.getvalue().to_pybytes())


def _extra(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"the outcome log needs {package}: pip install 'token-broker[outcomes]'") from error


# ---- a plain folder ----------------------------------------------------------------------------------------


class _Journal:
    """Lines of one process, each handed to the operating system in one call.

    The file is locked as long as its writer lives; from the lock others know that no line will come after.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._one_line_at_a_time = Lock()
        self._file: FileIO | None = None
        self._n_bytes = 0

    def append(self, line: bytes) -> None:
        with self._one_line_at_a_time:
            if self._file is None:
                self._file, self._n_bytes = self._opened(), 0
            n_written = self._file.write(line) or 0
            self._n_bytes += n_written
            if n_written < len(line) or self._n_bytes > _JOURNAL_BYTES:
                self._end()
        if n_written < len(line):
            raise OSError(f"{n_written} of {len(line)} bytes fitted into {self._folder}; is the disk full?")

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        with self._one_line_at_a_time:
            self._end()

    def __del__(self) -> None:
        if self._file is not None:  # without unlocking: in a fork this may be the journal of its parent
            self._file.close()

    def _opened(self) -> FileIO:
        """A new file, which nobody sees before it is locked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / _journal_name()
        unseen = path.with_suffix(".new")
        file = FileIO(unseen, "ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        unseen.rename(path)
        return file

    def _end(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would not do it where a fork has the file too
            self._file.close()
            self._file = None


class _Folder:
    """The files of a log in a plain folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def journal(self) -> _Journal:
        return _Journal(self._root / _JOURNALS)

    def names(self) -> list[str]:
        return sorted(path.relative_to(self._root).as_posix() for path in self._root.glob("*/*") if path.is_file())

    def opened(self, name: str) -> BinaryIO:
        return (self._root / name).open("rb")

    def write(self, name: str, content: bytes) -> None:
        """In one step, and on disk before this returns."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        for folder in (path.parent, self._root):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def delete(self, name: str) -> None:
        (self._root / name).unlink()

    def is_closed(self, name: str) -> bool:
        """Whether the writer of a journal has ended it, or died."""
        with (self._root / name).open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process compacts; a process that dies lets the next one in."""
        lock = self._root / _LOCK
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a fork made meanwhile would keep the lock


# ---- an object store ---------------------------------------------------------------------------------------


class _Buffer:
    """Lines of one process in memory, which become whole objects."""

    def __init__(self, files: _Objects) -> None:
        self._files = files
        self._one_change_at_a_time = Lock()
        self._lines: list[bytes] = []
        self._n_bytes = 0

    def append(self, line: bytes) -> None:
        with self._one_change_at_a_time:
            if self._n_bytes + len(line) > _JOURNAL_BYTES:
                raise OSError(f"{self._n_bytes} bytes wait to be flushed, which is the most; call flush() regularly")
            self._lines.append(line)
            self._n_bytes += len(line)

    def flush(self) -> None:
        with self._one_change_at_a_time:
            lines, self._lines, self._n_bytes = self._lines, [], 0
        try:
            if lines:
                self._files.write(_JOURNALS + _journal_name(), b"".join(lines))
        except BaseException:
            with self._one_change_at_a_time:
                self._lines = lines + self._lines
                self._n_bytes = sum(map(len, self._lines))
            raise

    def close(self) -> None:
        self.flush()


class _Objects:
    """The files of a log in an object store, through fsspec: objects are written whole and never changed half."""

    def __init__(self, url: str) -> None:
        self._store, root = _extra("fsspec.core").url_to_fs(url)
        self._root = root.rstrip("/") + "/"

    def journal(self) -> _Buffer:
        return _Buffer(self)

    def names(self) -> list[str]:
        self._store.invalidate_cache()
        return sorted(path.removeprefix(self._root) for path in self._store.find(self._root))

    def opened(self, name: str) -> BinaryIO:
        file: BinaryIO = self._store.open(self._root + name, "rb")
        return file

    def write(self, name: str, content: bytes) -> None:
        self._store.pipe_file(self._root + name, content)

    def delete(self, name: str) -> None:
        self._store.rm_file(self._root + name)

    def is_closed(self, name: str) -> bool:
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        lock = self._root + _LOCK
        try:
            self._store.pipe_file(lock, b"compacting", mode="create")
        except FileExistsError as error:
            raise BlockingIOError(
                f"found {lock}: another process is compacting; if it died, delete that object and compact again"
            ) from error
        try:
            yield
        finally:
            self._store.rm_file(lock)


_Files: TypeAlias = _Folder | _Objects
