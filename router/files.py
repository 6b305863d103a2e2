"""Files that are whole or not there: written under another name, forced to the disk, then renamed.

And files that are read: regular ones only, and no more of them than the caller has room for.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

UNFINISHED = ".unfinished-"
"""How the names of files and folders begin that are not complete; a process that is killed may leave some behind."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free path beside `path` to write a file, a folder or a link to; at the end it takes the place of `path`.

    It does so in one step, and is on the disk before this returns. A folder takes the place of an empty folder only.
    Where writing or replacing fails, the error is raised, nothing is left behind, and `path` is as it was.
    """
    unfinished = path.with_name(f"{UNFINISHED}{uuid4().hex}-{path.name}")
    try:
        yield unfinished
        if not unfinished.is_symlink():
            for item in unfinished.rglob("*"):
                sync(item)
            sync(unfinished)
        unfinished.replace(path)
    except BaseException:
        if unfinished.is_dir() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file, or of one that a link leads to.

    Raises OSError where it cannot be read, has more than `most_bytes`, or is a folder, pipe or device. Its size is
    checked before anything is read, and a pipe is not waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = b"" if status.st_size > most_bytes else file.read(most_bytes + 1)
    if (size := max(status.st_size, len(content))) > most_bytes:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes; expected at most {most_bytes:,}", str(path))
    return content


def sync(path: Path) -> None:
    """Have the kernel write a file, or the names in a folder, to the disk.

    Raises OSError, but not where the file system cannot sync a folder, as some network file systems cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
