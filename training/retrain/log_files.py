"""The log files of a run of `retrain`: which are new, which are taken, and what the store remembers of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.errors import ConfigError
from training.log.sources import log_sources
from training.retrain.store import LogFile, State


def find_log_files(logs: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Log files by the SHA-256 of their content; of equal files the first.

    Raises ConfigError for a log that is no file, and LogError where there is no log.
    """
    sources = [logs] if isinstance(logs, str | Path) else list(logs)
    if unfit := [type(source).__name__ for source in sources if not isinstance(source, str | Path)]:
        raise ConfigError(f"found {unfit[0]} for a log; retrain needs files, or it cannot know what is new")
    found: dict[str, Path] = {}
    for path in log_sources(sources, None):
        assert isinstance(path, Path)
        with path.open("rb") as file:
            found.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)
    return found


def with_present_names(state: State, found: Mapping[str, Path]) -> State:
    """The state with the names that known files have now: a log file that was renamed is the same file."""
    files = {
        digest: replace(file, path=str(found[digest])) if digest in found else file
        for digest, file in state.files.items()
    }
    return replace(state, files=files)


def new_files(found: Mapping[str, Path], known: Mapping[str, LogFile], *, accept_change: bool) -> dict[str, Path]:
    """The files that were not read before; with `accept_change` also those that were set aside."""
    return {
        digest: path
        for digest, path in found.items()
        if digest not in known or (accept_change and known[digest].set_aside)
    }


@dataclass(frozen=True)
class NewFile:
    """A new log file after its check. is_unreadable: it is set aside because it cannot be read as it is."""

    file: LogFile
    is_unreadable: bool


@dataclass(frozen=True)
class LogFiles:
    """All log files of a run; every mapping is by the SHA-256 of a file's content.

    found: all files. new: the new ones of them, checked. former: what the store knew of files before.
    """

    found: Mapping[str, Path]
    new: Mapping[str, NewFile]
    former: Mapping[str, LogFile]

    @property
    def set_aside(self) -> dict[str, str]:
        """Why a file is kept out of training and judging, by its path."""
        known = self._known
        return {str(path): known[digest].set_aside for digest, path in self.found.items() if known[digest].set_aside}

    @property
    def taken(self) -> list[Path]:
        """All files that are not set aside."""
        return [self.found[digest] for digest in self._taken]

    @property
    def taken_before(self) -> list[Path]:
        """Those of them that are not new."""
        return [self.found[digest] for digest in self._taken if digest not in self.new]

    @property
    def taken_new(self) -> list[Path]:
        """Those of them that are new."""
        return [self.found[digest] for digest in self._taken if digest in self.new]

    @property
    def watermark(self) -> dict[str, LogFile]:
        """What the store knows of files after this run; a file that has grown takes the place of what it was.

        A file that cannot be read is left out: it may be half written, or the disk may be full, or a column map may
        be missing. The next run looks at it again.
        """
        read = {digest: new.file for digest, new in self.new.items() if not new.is_unreadable}
        paths = {file.path for file in read.values()}
        kept = {digest: file for digest, file in self.former.items() if file.path not in paths}
        return {**kept, **read}

    @property
    def n_new_rows(self) -> tuple[int, int]:
        """Rows, and broken rows, of the new files; of a file that has grown, only those that were added."""
        before = {file.path: file for file in self.former.values()}
        n_rows = n_broken = 0
        for new in self.new.values():
            file, old = new.file, before.get(new.file.path)
            n_old, n_old_broken = (old.n_rows, old.n_quarantined) if old and file.n_rows > old.n_rows else (0, 0)
            n_rows += file.n_rows - n_old
            n_broken += max(0, file.n_quarantined - n_old_broken)
        return n_rows, n_broken

    def newest(self, n_prompts: float) -> list[Path]:
        """The newest of the files taken, as many as hold so many prompts.

        The newest is the one with the latest timestamp, of equal ones the one that was read last.
        """
        known = self._known
        order = {digest: number for number, digest in enumerate(self.watermark)}
        newest: list[Path] = []
        n_found = 0
        for digest in sorted(self._taken, key=lambda d: (known[d].last_timestamp, order[d]), reverse=True):
            if n_found >= n_prompts:
                break
            newest.append(self.found[digest])
            n_found += known[digest].n_prompts
        return newest

    @property
    def can_be_accepted(self) -> bool:
        """Whether `accept_change` would take a file that is set aside; it cannot take one that cannot be read."""
        unreadable = {str(self.found[digest]) for digest, new in self.new.items() if new.is_unreadable}
        return bool(self.set_aside.keys() - unreadable)

    def explain(self, reason: str) -> str:
        """The reason, and which new file was set aside, and why; where no file is new, which is still set aside."""
        new = {new.file.path: new.file.set_aside for new in self.new.values() if new.file.set_aside}
        files, still = (new, "") if self.new else (self.set_aside, "still ")
        if not files:
            return reason
        others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        path, why = next(iter(files.items()))
        return f"{reason}; {still}set aside: {path}{others}: {why}"

    @property
    def _known(self) -> dict[str, LogFile]:
        return {**self.former, **{digest: new.file for digest, new in self.new.items()}}

    @property
    def _taken(self) -> list[str]:
        known = self._known
        return [digest for digest in self.found if not known[digest].set_aside]
