"""The store of `broker retrain`: what lasts from one run to the next.

    champion -> bundles/000007   what routers and their watchers follow
    bundles/000007/              every bundle, numbered by the run that made it, with its training data beside it
    state.json                   what the runs decided
    receipts.jsonl               one line for each decision
    cache/                       embeddings and encoders; safe to delete
    mlflow.db, mlartifacts/      unless an MLflow server is named
    lock                         locked by the kernel as long as a run lives

A run is committed when `state.json` is replaced, and not before. All else follows from that file: `Store.recover`
points the link, completes the receipts and removes what a killed run left behind. Runs are numbered, so that no
decision depends on a clock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from router.files import UNFINISHED, replacing, sync
from training.errors import StoreBusyError, StoreError
from training.tracking import sqlite_uri

STATE_FORMAT = 1


@dataclass(frozen=True)
class LogFile:
    """What was found in one log file; a file with another content is another file.

    n_prompts, last_timestamp: of the rows that can be used; the timestamp in ISO 8601, "" where none has one.
    set_aside: why the file is kept out of training and judging; "" where it is not.
    """

    path: str
    n_rows: int
    n_quarantined: int
    n_prompts: int
    last_timestamp: str
    set_aside: str


@dataclass(frozen=True)
class StoredBundle:
    """Where a bundle comes from. parent: bundle_id of the champion that it challenged; "" where there was none."""

    bundle_id: str
    parent: str
    data_digest: str
    code_version: str
    made_utc: str
    mlflow_run_id: str


@dataclass(frozen=True)
class State:
    """What the runs decided. Bundles are named by the number of the run that made them.

    files: what was read so far, by SHA-256 of the content, in the order in which the files were first read.
    settings: those of the last run. former: earlier champions, the latest last.
    rolled_back: data digests of champions that were taken back. unregistered: bundles that MLflow does not know yet.
    is_registry_current: whether MLflow's aliases are those of this state. receipt: of the last decision.
    """

    n_runs: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, LogFile] = field(default_factory=dict)
    bundles: Mapping[str, StoredBundle] = field(default_factory=dict)
    champion: str = ""
    challenger: str = ""
    former: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    unregistered: tuple[str, ...] = ()
    is_registry_current: bool = True
    receipt: Mapping[str, Any] | None = None

    def bundle_id(self, name: str) -> str | None:
        """The bundle_id of a stored bundle; None where `name` is ""."""
        return self.bundles[name].bundle_id if name else None

    @property
    def taken_back(self) -> str | None:
        """The bundle_id of the last challenger where a champion of the same data was rolled back; else None."""
        is_back = self.challenger and self.bundles[self.challenger].data_digest in self.rolled_back
        return self.bundle_id(self.challenger) if is_back else None

    @property
    def run_name(self) -> str:
        """The name of the bundle that the last run made, if it made one."""
        return f"{self.n_runs:06d}"

    def with_champion(self, name: str) -> State:
        """The state with the bundle `name` as champion."""
        former = (*self.former, self.champion) if self.champion else self.former
        return replace(self, champion=name, former=former)

    def to_json(self) -> str:
        """The text of state.json."""
        return json.dumps({"format": STATE_FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> State:
        """The state of a text. Raises StoreError where it is not one of this format; source: the file's name."""
        try:
            document = json.loads(text)
            found = document.pop("format")
            if found != STATE_FORMAT or set(document) != {entry.name for entry in fields(cls)}:
                raise ValueError(f"found format {found!r}, expected {STATE_FORMAT}")
            document["files"] = {digest: LogFile(**entry) for digest, entry in document["files"].items()}
            document["bundles"] = {name: StoredBundle(**entry) for name, entry in document["bundles"].items()}
            names = {name: tuple(document[name]) for name in ("former", "rolled_back", "unregistered")}
            return cls(**{**document, **names})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreError(
                f"{source}: not a state of this version ({error}); restore the file from a backup, or start a new store"
            ) from error


class Store:
    """The folder of a store, which `hold` makes where there is none. Change it only inside `hold`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()
        self.champion = self.folder / "champion"
        self.cache = self.folder / "cache"
        self._bundles = self.folder / "bundles"
        self._state = self.folder / "state.json"
        self._mlflow = self.folder / "mlflow.db"
        self._receipts = self.folder / "receipts.jsonl"

    def bundle(self, name: str) -> Path:
        """The folder of a bundle."""
        return self._bundles / name

    @property
    def tracking_uri(self) -> str:
        """The store's own MLflow database."""
        return sqlite_uri(self._mlflow)

    @property
    def has_tracking(self) -> bool:
        """Whether that database is there."""
        return self._mlflow.exists()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep every other run out. The kernel ends this when the process ends, however it ends.

        Raises StoreBusyError at once where another run holds the store; StoreError where the folder cannot be written
        to; OSError where the disk is full.
        """
        with self._open_lock() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StoreBusyError(
                    f"{self.folder}: another run holds the store ({file.read().strip() or 'starting'}); "
                    "nothing was done, try again later"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {utc_now()}\n")
            file.flush()
            yield

    def _open_lock(self) -> TextIO:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return (self.folder / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise StoreError(
                f"{self.folder} cannot be written to ({error.strerror}); name another folder with --store"
            ) from error

    def recover(self) -> State:
        """Return the state that was committed last, and bring link, receipts and bundles in line with it.

        Raises StoreError where state.json cannot be read, or is gone while bundles are there.
        """
        state = self._read()
        self._remove_leftovers(state)
        self.follow(state)
        return state

    def _read(self) -> State:
        try:
            return State.from_json(self._state.read_text(encoding="utf-8"), str(self._state))
        except FileNotFoundError:
            if self.champion.is_symlink():
                raise StoreError(
                    f"{self._state} is gone, but there is a champion; restore the file, or start a new store"
                ) from None
            return State()

    def _remove_leftovers(self, state: State) -> None:
        """Remove bundles of runs that did not commit, and unfinished files."""
        kept = {f"{name}{suffix}" for name in state.bundles for suffix in ("", *_BESIDE_A_BUNDLE)}
        leftovers = [path for path in _items(self._bundles) if path.name not in kept]
        leftovers += [path for path in _items(self.folder) if path.name.startswith(UNFINISHED)]
        leftovers += [path for path in self.cache.rglob(".*")]
        for path in leftovers:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def commit(self, state: State) -> None:
        """Make this the state, also after a loss of power; the bundles that it names are forced to the disk first."""
        for name in state.bundles.keys() - self._read().bundles.keys():
            folder = self.bundle(name)
            for path in (*folder.iterdir(), folder, *self._bundles.glob(f"{name}-*"), self._bundles):
                sync(path)
        with replacing(self._state) as unfinished:
            unfinished.write_text(state.to_json(), encoding="utf-8")

    def follow(self, state: State) -> None:
        """Point the link at the champion and add the last receipt; what is so already stays.

        Raises StoreError where something else stands in the place of the link.
        """
        target = str(Path("bundles") / state.champion)
        is_link = self.champion.is_symlink()
        if self.champion.exists() and not is_link:
            raise StoreError(f"{self.champion} is no link; expected a link to a bundle: move it away and run again")
        if state.champion and not (is_link and os.readlink(self.champion) == target):
            with replacing(self.champion) as unfinished:
                unfinished.symlink_to(target)
        if state.receipt is not None:
            self._add_receipt(state.receipt)

    def _add_receipt(self, receipt: Mapping[str, Any]) -> None:
        """Append a line, unless it is the last one already. A last line that was cut off is removed first."""
        with self._receipts.open("a+b") as file:
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                file.truncate(sum(map(len, lines[:-1])))
                lines.pop()
            if lines and json.loads(lines[-1])["run"] == receipt["run"]:
                return
            file.write(json.dumps(receipt, ensure_ascii=False).encode() + b"\n")
        sync(self._receipts)


_BESIDE_A_BUNDLE = ("-training.parquet", "-quarantine.parquet")


def utc_now() -> str:
    """The time, ISO 8601, for people to read; no decision depends on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _items(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
