"""Where an outcome log lies: in a plain folder, or in an object store through fsspec."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol
from uuid import uuid4

from router.extras import install_command
from router.files import replacing, sync

JOURNALS = ".journal/"
"""The folder of the journals; hidden, so that no reader takes it for a log."""

MAX_JOURNAL_BYTES = 64 * 1024 * 1024
"""After so many bytes a journal in a folder is ended and the next begun; more cannot wait for an object store."""

_LOCK = JOURNALS + "lock"
_CLOCK_TICK_US = 10_000  # The times of files are so much coarser than the clock.


class Journal(Protocol):
    """The lines of one process."""

    def append(self, line: bytes) -> None:
        """Take a line; raises OSError where it cannot be kept."""

    def flush(self) -> None:
        """Hand over what waits in memory; raises OSError, and keeps what it has, where that fails."""

    def close(self) -> None:
        """Flush, and let compaction delete the journal once it is read."""


class Files(Protocol):
    """The files of a log, by names with slashes that are relative to its root."""

    def journal(self) -> Journal:
        """A new journal for this process."""

    def names(self) -> list[str]:
        """All files, sorted."""

    def opened(self, name: str) -> BinaryIO:
        """A file to read."""

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, or replace it, in one step; it is stored for good before this returns."""

    def delete(self, name: str) -> None:
        """Delete a file."""

    def latest_write(self) -> int:
        """When journals were last written, in microseconds since 1970; 0 where that is past or unknown.

        It is not past where the clock has gone back since.
        """

    def is_closed(self, name: str) -> bool:
        """Whether the writer of a journal has ended it or died, so that no line will follow."""

    def alone(self) -> AbstractContextManager[None]:
        """Within it, no other process compacts the log."""


def files_at(path: str | Path) -> Files:
    """The files of a log in a folder, or at a URL of fsspec; raises ImportError without fsspec."""
    location = str(path).removeprefix("file://")
    return ObjectStore(location) if "://" in location else Folder(Path(location))


def extra(package: str) -> Any:
    """A package of the extra `outcomes`; raises ImportError that says how to install it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"the outcome log needs {package}: {install_command('outcomes')}") from error


def _new_journal() -> str:
    """The name of a new journal, which no other process takes; the names of older ones sort first."""
    return f"{time.time_ns()}-{uuid4().hex}.jsonl"


# ---- a plain folder ----------------------------------------------------------------------------------------


class FolderJournal:
    """A file to which each line is appended by one call of the operating system.

    The file is locked as long as its writer lives. Other processes learn from the lock whether lines may still follow.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = root / JOURNALS
        self._one_line_at_a_time = Lock()
        self._file: FileIO | None = None
        self._n_bytes = 0

    def append(self, line: bytes) -> None:
        """Hand a line to the operating system; raises OSError where it is not written whole."""
        with self._one_line_at_a_time:
            if self._file is None:
                self._file, self._n_bytes = self._opened(), 0
            n_written = self._file.write(line) or 0
            self._n_bytes += n_written
            if n_written < len(line) or self._n_bytes > MAX_JOURNAL_BYTES:
                self._end()
        if n_written < len(line):
            raise OSError(f"{n_written} of {len(line)} bytes fitted into {self._folder}; is the disk full?")

    def flush(self) -> None:
        """Do nothing: no line waits in memory."""

    def close(self) -> None:
        """End the file; the next line starts another one."""
        with self._one_line_at_a_time:
            self._end()

    def __del__(self) -> None:
        if self._file is not None:  # Without unlocking: in a fork this may be the journal of its parent.
            self._file.close()

    def _opened(self) -> FileIO:
        """A new file, which gets its name when it is locked, so that nobody sees it unlocked."""
        _make_folder(self._root, self._folder)
        path = self._folder / _new_journal()
        unseen = path.with_suffix(".new")
        file = FileIO(unseen, "ab", opener=_private)
        fcntl.flock(file, fcntl.LOCK_EX)
        unseen.rename(path)
        return file

    def _end(self) -> None:
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # Closing does not unlock it where a fork has the file too.
            self._file.close()
            self._file = None


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read or write; raises OSError for a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _make_folder(root: Path, folder: Path) -> None:
    """Make the root of a log and a folder in it, which only their owner may open; those that exist keep their mode."""
    root.parent.mkdir(parents=True, exist_ok=True)
    for path in (root, folder):
        path.mkdir(mode=0o700, exist_ok=True)


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds; nothing where it is not there or may not be read. Much faster than pathlib's glob."""
    with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:
        return list(entries)
    return []


class Folder:
    """The files of a log in a plain folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def journal(self) -> FolderJournal:
        """A new journal, whose file is made with its first line."""
        return FolderJournal(self._root)

    def names(self) -> list[str]:
        """All files one folder deep, hidden ones too."""
        found = []
        for folder in _entries(self._root):
            if folder.is_dir():
                found += [f"{folder.name}/{entry.name}" for entry in _entries(folder.path) if entry.is_file()]
        return sorted(found)

    def opened(self, name: str) -> BinaryIO:
        """A file to read."""
        return (self._root / name).open("rb")

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file, or replace it, in one step; it is on the disk before this returns."""
        path = self._root / name
        _make_folder(self._root, path.parent)
        with replacing(path) as unfinished, open(unfinished, "xb", opener=_private) as file:
            file.write(content)
        sync(self._root)  # The file's folder may be new.

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self._root / name).unlink(missing_ok=True)

    def latest_write(self) -> int:
        """When journals were last written, where the clock has gone back since; else 0."""
        latest = 0
        with suppress(OSError):
            latest = max((path.stat().st_mtime_ns // 1000 for path in (self._root / JOURNALS).iterdir()), default=0)
        return latest + _CLOCK_TICK_US if latest > time.time_ns() // 1000 else 0

    def is_closed(self, name: str) -> bool:
        """Whether the writer of a journal has ended it or died: then its file is not locked."""
        with (self._root / name).open("rb") as file, suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        return False

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process compacts; a process that dies lets the next one in."""
        lock = self._root / _LOCK
        _make_folder(self._root, lock.parent)
        with open(lock, "ab", opener=_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # A fork made meanwhile would keep the lock.


# ---- an object store ---------------------------------------------------------------------------------------


class BufferedJournal:
    """Lines that wait in memory until `flush` writes them as one object, since an object store cannot append."""

    def __init__(self, files: ObjectStore) -> None:
        self._files = files
        self._one_change_at_a_time = Lock()
        self._lines: list[bytes] = []
        self._n_bytes = 0

    def append(self, line: bytes) -> None:
        """Keep a line in memory; raises OSError where MAX_JOURNAL_BYTES wait already."""
        with self._one_change_at_a_time:
            if self._n_bytes + len(line) > MAX_JOURNAL_BYTES:
                raise OSError(f"{self._n_bytes} bytes wait to be flushed, which is the most; call flush() regularly")
            self._lines.append(line)
            self._n_bytes += len(line)

    def flush(self) -> None:
        """Write all lines as one object; raises what the store raises, and keeps them, where it does not take them."""
        with self._one_change_at_a_time:
            lines, self._lines, self._n_bytes = self._lines, [], 0
        try:
            if lines:
                self._files.write(JOURNALS + _new_journal(), b"".join(lines))
        except BaseException:
            with self._one_change_at_a_time:
                self._lines = lines + self._lines
                self._n_bytes = sum(map(len, self._lines))
            raise

    def close(self) -> None:
        """Flush."""
        self.flush()


class ObjectStore:
    """The files of a log in an object store, through fsspec: an object is written whole and never changed in part."""

    def __init__(self, url: str) -> None:
        self._store, root = extra("fsspec.core").url_to_fs(url)
        self._root = root.rstrip("/") + "/"

    def journal(self) -> BufferedJournal:
        """A new journal."""
        return BufferedJournal(self)

    def names(self) -> list[str]:
        """All objects below the root."""
        self._store.invalidate_cache()
        return sorted(path.removeprefix(self._root) for path in self._store.find(self._root))

    def opened(self, name: str) -> BinaryIO:
        """An object to read."""
        file: BinaryIO = self._store.open(self._root + name, "rb")
        return file

    def write(self, name: str, content: bytes) -> None:
        """Write a whole object, or replace it."""
        self._store.pipe_file(self._root + name, content)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._store.rm_file(self._root + name)

    def latest_write(self) -> int:
        """Unknown: 0."""
        return 0

    def is_closed(self, name: str) -> bool:
        """Always: an object gets no further lines."""
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises BlockingIOError where another process compacts, since a store cannot make this one wait."""
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
