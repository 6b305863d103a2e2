"""Files that are whole or not there: written under another name, forced to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
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
