"""Laws of files that are whole or not there."""

import errno
import os
import stat

import pytest

from router.files import UNFINISHED, replacing


def write_file(path):
    path.write_text("new")


def write_folder(path):
    path.mkdir()
    (path / "inside").write_text("new")


def write_link(path):
    path.symlink_to("somewhere")


@pytest.mark.parametrize("write", [write_file, write_folder, write_link])
def test_what_was_written_takes_the_place_in_one_step(tmp_path, write):
    with replacing(tmp_path / "target") as unfinished:
        write(unfinished)
        assert not os.path.lexists(tmp_path / "target") and unfinished.name.startswith(UNFINISHED)
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("write", [write_file, write_folder, write_link])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path, write):
    (tmp_path / "target").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "target") as unfinished:
        write(unfinished)
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["target"] and (tmp_path / "target").read_text() == "old"


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr("router.files.os.fsync", of_files_only)
    with replacing(tmp_path / "target") as unfinished:
        write_folder(unfinished)
    assert (tmp_path / "target" / "inside").read_text() == "new"


def test_a_disk_that_fails_while_syncing_leaves_what_was_there(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "target").write_text("old")
    monkeypatch.setattr("router.files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"), replacing(tmp_path / "target") as unfinished:
        unfinished.write_text("new")
    assert os.listdir(tmp_path) == ["target"] and (tmp_path / "target").read_text() == "old"
