"""The store of `broker retrain`: what lasts from one run to the next.

    champion -> bundles/000007   what routers and their watchers follow
    bundles/000007/              every bundle, numbered by the run that made it, with its training data beside it
    bundles/000007-lowered/      the champion of before that run, with a lower promise
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from router.files import UNFINISHED, replacing, sync
from training.errors import StoreBusyError, StoreError
from training.retrain.state import State
from training.tracking import sqlite_uri

LOWERED = "-lowered"
"""Ends the name of a version of the champion with a lower promise."""

_NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
"""Errors of the file system that say that the folder is the wrong one. All others say that the machine fails."""


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

        Raises StoreBusyError at once where another run holds the store; StoreError where the folder is none that can be
        written to; OSError where the machine fails, as where the disk is full.
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
            return (self.folder / "lock").open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            raise StoreError(
                f"{self.folder} cannot be written to ({error.strerror}); name another folder with --store"
            ) from error

    def read(self) -> State:
        """The state that was committed last, or an empty one. Changes nothing, and needs no `hold`.

        Raises StoreError where state.json cannot be used, or is gone although a run was committed; OSError.
        """
        try:
            return State.from_json(self._state.read_text(encoding="utf-8"), str(self._state))
        except UnicodeDecodeError as error:
            raise StoreError(f"{self._state}: {error}; restore the file from a backup, or start a new store") from error
        except FileNotFoundError:
            if self.champion.is_symlink() or self._receipts.exists():
                raise StoreError(
                    f"{self._state} is gone, but there is a champion, or there are receipts; restore the file from a "
                    "backup, or start a new store"
                ) from None
            return State()

    def receipts(self) -> list[dict[str, Any]]:
        """All receipts, the latest last; lines that are none are left out."""
        if not self._receipts.exists():
            return []
        lines = self._receipts.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if _run_of(line) is not None]

    def recover(self) -> State:
        """Return the state that was committed last, and bring link, receipts and bundles in line with it.

        Raises StoreError as `read` and `follow` do.
        """
        state = self.read()
        self._remove_leftovers(state)
        self.follow(state)
        return state

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
        for name in state.bundles.keys() - self.read().bundles.keys():
            folder = self.bundle(name)
            for path in (*folder.iterdir(), folder, *self._bundles.glob(f"{name}-*"), self._bundles):
                sync(path)
        with replacing(self._state) as unfinished:
            unfinished.write_text(state.to_json(), encoding="utf-8")

    def follow(self, state: State) -> None:
        """Point the link at the champion and add the last receipt; what is so already stays.

        Where there is no champion, the link is removed. Raises StoreError where something else stands in its place.
        """
        target = str(Path("bundles") / state.champion)
        is_link = self.champion.is_symlink()
        if self.champion.exists() and not is_link:
            raise StoreError(f"{self.champion} is no link; expected a link to a bundle: move it away and run again")
        if not state.champion:
            self.champion.unlink(missing_ok=True)
        elif not (is_link and os.readlink(self.champion) == target):
            with replacing(self.champion) as unfinished:
                unfinished.symlink_to(target)
        if state.receipt is not None:
            self._add_receipt(state.receipt)

    def _add_receipt(self, receipt: Mapping[str, Any]) -> None:
        """Append a line, unless it is the last one already. Lines at the end that are no receipts are removed first."""
        with self._receipts.open("a+b") as file:
            file.seek(0)
            lines = file.read().splitlines(keepends=True)
            n_lines = len(lines)
            while lines and _run_of(lines[-1]) is None:
                lines.pop()
            if len(lines) < n_lines:
                file.truncate(sum(map(len, lines)))
            if lines and _run_of(lines[-1]) == receipt["run"]:
                return
            file.write(json.dumps(receipt, ensure_ascii=False).encode() + b"\n")
        sync(self._receipts)


_BESIDE_A_BUNDLE = ("-training.parquet", "-quarantine.parquet")


def _run_of(line: bytes) -> int | None:
    """The run of a whole line of receipts.jsonl; None where it is no receipt, as a line that was cut off."""
    try:
        run = json.loads(line)["run"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return run if isinstance(run, int) and line.endswith(b"\n") else None


def utc_now() -> str:
    """The time, ISO 8601, for people to read; no decision depends on it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _items(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
