"""The log files of a run of `retrain`: which are new, which are taken, and what the store remembers of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from training.errors import ConfigError
from training.log.sources import log_sources
from training.retrain.acceptance import Acceptance, Accepting
from training.retrain.evidence import Evidence
from training.retrain.state import LogFile, State


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


def in_time(files: Mapping[str, LogFile], digests: Iterable[str]) -> list[str]:
    """Files by their latest timestamp, of equal ones in the order in which they were read."""
    order = {digest: number for number, digest in enumerate(files)}
    return sorted(digests, key=lambda digest: (files[digest].last_timestamp, order[digest]))


def changes_to_accept(texts: Sequence[str], state: State, found: Mapping[str, Path]) -> list[Accepting]:
    """The changes that the values of --accept-change name, TIER or TIER@FILE; TIER alone is from its first file on.

    Raises ConfigError where no such file is set aside for the tier.
    """
    accepting = []
    for text in texts:
        tier, _, name = text.partition("@")
        known = {digest: file for digest, file in state.files.items() if digest in found and file.contradicts}
        of_tier = [digest for digest in in_time(known, known) if known[digest].contradicts == tier]
        named = [digest for digest in of_tier if not name or _is_named(found[digest], name)]
        if not named:
            options = ", ".join(sorted({f"{file.contradicts}@{file.path}" for file in known.values()})) or "none"
            raise ConfigError(f"--accept-change {text}: no such file is set aside for that tier; there are: {options}")
        accepting.append(Accepting(tier=tier, since=known[named[0]].last_timestamp))
    return accepting


def _is_named(path: Path, name: str) -> bool:
    return name in (str(path), path.name) or path.resolve() == Path(name).resolve()


def new_files(
    found: Mapping[str, Path], known: Mapping[str, LogFile], accepting: Sequence[Accepting]
) -> dict[str, Path]:
    """The files that were not read before, and those that are set aside for a change that is now accepted."""
    return {
        digest: path for digest, path in found.items() if digest not in known or is_concerned(known[digest], accepting)
    }


def is_concerned(file: LogFile, accepting: Sequence[Accepting]) -> bool:
    """Whether a file is set aside for a change that is to be accepted."""
    return any(file.contradicts == change.tier and file.last_timestamp >= change.since for change in accepting)


def options_to_accept(files: Iterable[LogFile]) -> dict[str, str]:
    """By tier, what to give --accept-change for the first of these files that are set aside because of it."""
    first: dict[str, LogFile] = {}
    for file in sorted(files, key=lambda file: file.last_timestamp):
        if file.contradicts:
            first.setdefault(file.contradicts, file)
    return {tier: f"{tier}@{file.path}" for tier, file in first.items()}


@dataclass(frozen=True)
class NewFile:
    """A new log file after its check. is_read_again: it is set aside, and the next run looks at it again by itself."""

    file: LogFile
    is_read_again: bool


@dataclass(frozen=True)
class LogFiles:
    """All log files of a run; every mapping is by the SHA-256 of a file's content.

    found: all files. new: the new ones of them, checked. former: what the store knew of files before. amended: what it
    knows of some of these now. evidence, accepted: as a State has them.
    """

    found: Mapping[str, Path]
    new: Mapping[str, NewFile]
    former: Mapping[str, LogFile]
    amended: Mapping[str, LogFile] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Evidence]] = field(default_factory=dict)
    accepted: tuple[Acceptance, ...] = ()

    @property
    def known(self) -> dict[str, LogFile]:
        """What is known of files now, new and former ones."""
        return {**self.former, **self.amended, **{digest: new.file for digest, new in self.new.items()}}

    @property
    def set_aside(self) -> dict[str, str]:
        """Why a file is kept out of training and judging, by its path."""
        known = self.known
        return {str(path): known[digest].set_aside for digest, path in self.found.items() if known[digest].set_aside}

    @property
    def taken(self) -> dict[str, Path]:
        """All files that are not set aside."""
        known = self.known
        return {digest: path for digest, path in self.found.items() if not known[digest].set_aside}

    @property
    def taken_before(self) -> dict[str, Path]:
        """Those of them that are not new."""
        return {digest: path for digest, path in self.taken.items() if digest not in self.new}

    @property
    def taken_new(self) -> dict[str, Path]:
        """Those of them that are new."""
        return {digest: path for digest, path in self.taken.items() if digest in self.new}

    @property
    def watermark(self) -> dict[str, LogFile]:
        """What the store knows of files after this run; a file that has grown takes the place of what it was.

        A file that is looked at again is left out: it may be half written, or a column map may be missing.
        """
        read = {digest: new.file for digest, new in self.new.items() if not new.is_read_again}
        paths = {file.path for file in read.values()}
        before = {**self.former, **self.amended}
        kept = {digest: file for digest, file in before.items() if file.path not in paths}
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

    def set_aside_for(self, tier: str, digests: Iterable[str], why: str) -> LogFiles:
        """The same with these files set aside because of a tier; what they say of tiers is evidence no more."""
        known, new, amended = self.known, dict(self.new), dict(self.amended)
        for digest in digests:
            file = replace(known[digest], set_aside=why, contradicts=tier)
            if digest in new:
                new[digest] = replace(new[digest], file=file)
            else:
                amended[digest] = file
        evidence = {digest: of_file for digest, of_file in self.evidence.items() if digest not in set(digests)}
        return replace(self, new=new, amended=amended, evidence=evidence)

    def newest(self, n_prompts: float) -> list[Path]:
        """The newest of the files taken, as many as hold so many prompts.

        The newest is the one with the latest timestamp, of equal ones the one that was read last.
        """
        known = self.known
        newest: list[Path] = []
        n_found = 0
        for digest in reversed(in_time(self.watermark, self.taken)):
            if n_found >= n_prompts:
                break
            newest.append(self.found[digest])
            n_found += known[digest].n_prompts
        return newest

    @property
    def options_to_accept(self) -> dict[str, str]:
        """By tier, what to give --accept-change for the files of this run that are set aside because of it."""
        known = self.known
        return options_to_accept(known[digest] for digest in self.found)

    def explain(self, reason: str) -> str:
        """The reason, and which file was set aside now, and why; where none was looked at, which is still set aside."""
        known = {**self.amended, **{digest: new.file for digest, new in self.new.items()}}
        now = {file.path: file.set_aside for file in known.values() if file.set_aside}
        files, still = (now, "") if self.new else (self.set_aside, "still ")
        if not files:
            return reason
        others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        path, why = next(iter(files.items()))
        return f"{reason}; {still}set aside: {path}{others}: {why}"
