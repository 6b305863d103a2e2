"""The Parquet files of a log by day, and the index of each day: which ids its files hold.

    .index/<day>-<digest of the names of the day's files>

Whoever looks for an id opens the index of a day, and the files of the day only where the index has the id. Compaction
writes the index of each day but the newest, whose files it still adds to. The ids in a file never change once the
compaction that wrote it has finished. So an index is right as long as the day has the same files, which its name says:
where files come or go, the index no longer counts, and the files themselves are opened until it is written anew. An
index can be deleted at any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from router.outcomes.storage import Files

INDEX = ".index/"
"""The folder of the indexes; hidden, so that no reader takes it for a log."""

_HASH = np.dtype("<u4")


@dataclass(frozen=True)
class Day:
    """The Parquet files of one day.

    date: of their rows, as `2026-11-24`. names: of the files, sorted. is_indexed: whether the index of just these files
    is there.
    """

    date: str
    names: tuple[str, ...]
    is_indexed: bool

    @property
    def index(self) -> str:
        """The name of the index of just these files."""
        return _index_name(self.date, self.names)


def list_days(names: Iterable[str]) -> list[Day]:
    """The days among the files of a log, older ones first; names: of all its files."""
    by_date: dict[str, list[str]] = {}
    indexes = set()
    for name in names:
        if name.startswith("day=") and "/attempts-" in name and name.endswith(".parquet"):
            by_date.setdefault(name.split("/")[0].removeprefix("day="), []).append(name)
        elif name.startswith(INDEX):
            indexes.add(name)
    days = [(date, tuple(sorted(by_date[date]))) for date in sorted(by_date)]
    return [Day(date=date, names=files, is_indexed=_index_name(date, files) in indexes) for date, files in days]


def hashed(ids: Iterable[str]) -> NDArray[np.uint32]:
    """A hash of each distinct id, ascending; shape (n_ids,)."""
    return np.unique(np.array([crc32(each.encode("utf-8", "replace")) for each in ids], _HASH))


def may_hold(files: Files, day: Day, wanted: NDArray[np.uint32]) -> bool:
    """Whether the files of a day may hold any of some ids; False only where they hold none.

    wanted: the ids, `hashed`. Of a million ids that are not there, about 23 seem to be in a day of 100,000 ids.
    """
    held = _held(files, day.index) if day.is_indexed else None
    if held is None:
        return True
    places = np.searchsorted(held, wanted)
    is_within = places < len(held)
    return bool((held[places[is_within]] == wanted[is_within]).any())


def index_of(ids: Iterable[str]) -> bytes:
    """The content of the index of a day whose files hold these ids."""
    held = hashed(ids).tobytes()
    return _checksum(held) + held


def _held(files: Files, index: str) -> NDArray[np.uint32] | None:
    """What an index holds: hashes, ascending, shape (n_ids,); None where it is damaged, or has just been deleted."""
    try:
        with files.opened(index) as file:
            content = file.read()
    except FileNotFoundError:
        return None
    held = content[_HASH.itemsize :]
    is_whole = len(held) % _HASH.itemsize == 0 and content[: _HASH.itemsize] == _checksum(held)
    return np.frombuffer(held, _HASH) if is_whole else None


def _checksum(content: bytes) -> bytes:
    return crc32(content).to_bytes(_HASH.itemsize, "little")


def _index_name(date: str, names: Iterable[str]) -> str:
    return f"{INDEX}{date}-{sha256(chr(10).join(names).encode()).hexdigest()[:16]}"
