"""Laws of a machine that fails: its errors are never errors of the data, and a run that meets one changes nothing."""

import builtins
import errno
import hashlib
import io
import itertools
import json
import os
import shutil
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from stores import SAMPLE_TIERS, Turn, assert_sound, bundle_id

import training.log.checked as checked
from router.cli import main
from router.portfolio.tiers import read_tiers
from training.errors import ClusterError, LogError
from training.evaluation.training_data import TrainingData
from training.log.ingest import ingest
from training.log.machine import is_damaged, of_machine


def no_space(path=None):
    return OSError(errno.ENOSPC, "No space left on device", None if path is None else str(path))


class Disk:
    """A disk whose n-th write fails, whatever writes: Python's files, folders and links, Arrow, DuckDB.

    kinds: what every write was, in order. has_failed: whether the n-th was among them; n is 0 where none fails.
    """

    def __init__(self, fails_at=0):
        self.fails_at, self.kinds, self._is_counting = fails_at, [], True

    @property
    def has_failed(self):
        return 0 < self.fails_at <= len(self.kinds)

    def write(self, kind, error=no_space):
        if not self._is_counting:
            return
        self.kinds.append(kind)
        if len(self.kinds) == self.fails_at:
            raise error()

    def patch(self, monkeypatch):
        for module, name in ((builtins, "open"), (io, "open")):
            monkeypatch.setattr(module, name, self._opening(getattr(module, name)))
        for name in ("mkdir", "rename", "replace", "symlink", "fsync"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        monkeypatch.setattr(pq, "write_table", self._leaving_half(pq.write_table))
        for name in ("copytree", "copy"):  # what stands for training: one write each
            monkeypatch.setattr(shutil, name, self._as_one(getattr(shutil, name)))
        connect = duckdb.connect
        monkeypatch.setattr(checked.duckdb, "connect", lambda path: _Connection(connect(path), self))

    def _failing(self, function):
        def write(*arguments, **options):
            self.write(function.__name__)
            return function(*arguments, **options)

        return write

    def _as_one(self, function):
        def write(*arguments):
            self.write(function.__name__)
            self._is_counting = False
            try:
                return function(*arguments)
            finally:
                self._is_counting = True

        return write

    def _opening(self, function):
        def opened(file, mode="r", *arguments, **options):
            if not set(mode) & set("wax+"):
                return function(file, mode, *arguments, **options)
            self.write("open")
            return _File(function(file, mode, *arguments, **options), self)

        return opened

    def _leaving_half(self, function):
        def write_table(table, where, **options):
            try:
                self.write("write_table")
            except OSError:
                Path(where).write_bytes(b"PAR1 half")
                raise
            function(table, where, **options)

        return write_table


class _File:
    """A file whose writes are those of the disk."""

    def __init__(self, file, disk):
        self._file, self._disk = file, disk

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def write(self, content):
        self._disk.write("write")
        return self._file.write(content)


class _Connection:
    """A connection of DuckDB, every statement of which needs room on the disk or in memory."""

    def __init__(self, connection, disk):
        self._connection, self._disk = connection, disk

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def execute(self, query, *arguments):
        if query.lstrip().startswith(("INSERT", "COPY", "CREATE TABLE", "WITH")):
            found = duckdb.IOException if len(self._disk.kinds) % 2 else duckdb.OutOfMemoryException
            self._disk.write("statement", lambda: found("no room"))
        return self._connection.execute(query, *arguments)


def decided(turn):
    """What a store says: its state, its receipts, its champion, and every file of its bundles."""
    names = json.loads((turn.folder / "state.json").read_text())["bundles"]
    files = [path for name in names for path in sorted((turn.folder / "bundles").glob(f"{name}*")) if path.is_file()]
    files += [path for name in names for path in sorted((turn.folder / "bundles" / name).iterdir())]
    files += [turn.folder / "state.json", turn.folder / "receipts.jsonl"]
    digests = {str(path.relative_to(turn.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return {**digests, "champion": os.readlink(turn.store.champion)}


def places(kinds):
    """Numbers of the writes, from 1; of more than four of a kind in a row, the first two and the last two."""
    runs = [list(group) for _, group in itertools.groupby(range(1, len(kinds) + 1), lambda n: kinds[n - 1])]
    return [n for run in runs for n in (run if len(run) <= 4 else run[:2] + run[-2:])]


def test_a_disk_that_fills_at_any_write_changes_nothing_and_the_next_run_decides_as_if_it_never_had(
    turn, day, quick, challenger, tmp_path, monkeypatch
):
    """Before the decision is committed the store is as it was; after it, the next run completes what is missing."""
    day(1).to_parquet(turn.logs / "day1.parquet")
    before, n_unchanged, again = decided(turn), 0, Turn(tmp_path / "again", SAMPLE_TIERS)

    def run_on(disk):
        if not again.folder.exists():
            shutil.copytree(turn.folder.parent, tmp_path / "again", symlinks=True)
        with monkeypatch.context() as patch:
            disk.patch(patch)
            return error_of(again)

    healthy = Disk()
    assert run_on(healthy) is None and bundle_id(again.store.champion) == bundle_id(challenger)
    shutil.rmtree(tmp_path / "again")
    for number, n in enumerate(places(healthy.kinds)):
        disk = Disk(fails_at=n)
        error = run_on(disk)
        assert disk.has_failed
        assert error is None or isinstance(error, OSError | MemoryError)  # exit code 1
        if decided(again) == before:
            assert error is not None
            n_unchanged += 1
            if number % 16:  # else a healthy run follows; mostly the next one that fails does
                continue
        assert again().champion == bundle_id(again.store.champion) == bundle_id(challenger)
        assert_sound(again.store)
        assert len(again.store.receipts()) == 2 and len(again.store.read().bundles) == 2
        shutil.rmtree(tmp_path / "again")
    assert n_unchanged > 15


def error_of(run):
    try:
        run()
    except Exception as error:
        return error
    return None


# ---- logs ------------------------------------------------------------------------------------------


@pytest.fixture
def log(day, tmp_path):
    """The same rows in a file of any format."""

    def write(name):
        path, rows = tmp_path / name, day(1)
        if "parquet" in name:
            rows.to_parquet(path)
        elif "csv" in name:
            rows.to_csv(path, index=False)
        else:
            rows.to_json(path, orient="records", lines=True, date_format="iso")
        return path

    return write


FILES = ("log.parquet", "log.jsonl", "log.jsonl.gz", "log.csv", "log.csv.gz")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [0.5, 0.95])
def test_damaged_content_is_a_broken_row_of_the_log(log, day, name, cut, tmp_path):
    path = log(name)
    content = path.read_bytes()
    at = int(cut * len(content))
    if name in (
        "log.csv",
        "log.jsonl",
    ):  # within a row: one without its last columns may be whole
        at = content.index(b"\n", at) + 20
    path.write_bytes(content[:at])
    table = ingest([log("whole.parquet"), path], read_tiers(SAMPLE_TIERS))
    assert sum(table.summary.quarantined.values()) >= 1


class Failing(io.RawIOBase):
    """A file of which the machine gives only the beginning."""

    def __init__(self, content, kind):
        self.content, self.kind = io.BytesIO(content), kind

    def readable(self):
        return True

    def readinto(self, buffer):
        if n := self.content.readinto(buffer):
            return n
        raise self.kind("it cannot be read")

    def read(self, size=-1):
        return super().read(size) if size >= 0 else self.readall()


@pytest.mark.parametrize("kind", [lambda text: OSError(errno.EIO, text), MemoryError], ids=["OSError", "MemoryError"])
@pytest.mark.parametrize("n_bytes", [0, 5000, 9_000_000])
def test_lines_that_the_machine_cannot_read_are_no_broken_row(log, monkeypatch, n_bytes, kind):
    path = log("log.jsonl")
    content = (path.read_bytes() * 100)[:n_bytes]
    monkeypatch.setattr("training.log.readers.pa.input_stream", lambda *a, **o: Failing(content, kind))
    with pytest.raises((OSError, MemoryError), match="cannot be read"):
        ingest(path, read_tiers(SAMPLE_TIERS))


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
@pytest.mark.parametrize(
    ("found", "raised"),
    [
        (duckdb.IOException, OSError),
        (duckdb.OutOfMemoryException, MemoryError),
        (duckdb.FatalException, OSError),
        (lambda text: OSError(errno.EMFILE, text), OSError),
        (MemoryError, MemoryError),
    ],
)  # fmt: skip
def test_a_log_file_that_the_machine_cannot_take_in_is_no_broken_row(log, monkeypatch, name, found, raised):
    def insert(*arguments, **options):
        raise found("no room")

    monkeypatch.setattr("training.log.rows._insert", insert)
    with pytest.raises(raised, match="no room"):
        ingest(log(name), read_tiers(SAMPLE_TIERS))


def test_a_folder_of_logs_that_cannot_be_read_is_not_taken_for_empty(log, tmp_path, monkeypatch):
    (tmp_path / "logs" / "day1").mkdir(parents=True)
    log("logs/day0.parquet")
    log("logs/day1/a.parquet")
    log("logs/.hidden-is-no-log.parquet").write_bytes(b"")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("day1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PermissionError):
        ingest(tmp_path / "logs", read_tiers(SAMPLE_TIERS))


def test_what_arrow_raises_tells_content_from_machine(log, tmp_path):
    path = log("log.csv.gz")
    path.write_bytes(path.read_bytes()[:500])
    assert is_damaged(path, duckdb.IOException("unexpected end of stream"))
    assert not is_damaged(log("log.parquet"), duckdb.IOException("no space left on device"))
    assert of_machine(FileNotFoundError(errno.ENOENT, "gone")) and not of_machine(OSError("Truncated stream"))
    with pytest.raises(FileNotFoundError):
        is_damaged(tmp_path / "gone.parquet", duckdb.IOException("no such file"))


def test_training_data_that_the_machine_cannot_read_are_not_taken_for_lost(turn, monkeypatch):
    def too_many_open_files(path):
        raise OSError(errno.EMFILE, "Too many open files")

    path = TrainingData.path_of(turn.store.bundle("000001"))
    with pytest.raises(LogError, match="of bundle"):
        TrainingData.read(path, "another")
    monkeypatch.setattr("training.evaluation.training_data.pq.read_table", too_many_open_files)
    with pytest.raises(OSError, match="Too many open files"):
        TrainingData.read(path, bundle_id(turn.store.bundle("000001")))


# ---- who is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [no_space(), MemoryError("memory_limit 4GB is too small")], ids=str)
def test_the_command_ends_with_1_and_one_line(turn, monkeypatch, capsys, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr("training.retrain.run.find_log_files", fails)
    words = ["retrain", "--logs", turn.logs, "--tiers", turn.tiers, "--store", turn.folder]
    assert main([str(word) for word in words]) == 1
    told = capsys.readouterr().err
    assert str(error) in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "error", [no_space(), MemoryError(), duckdb.IOException("full"), duckdb.OutOfMemoryException()]
)
def test_a_worker_without_room_ends_the_run_with_1(error):
    workers = pytest.importorskip("training.distributed.workers")
    pytest.importorskip("distributed")
    with pytest.raises(ClusterError, match="ran out of memory or disk") as failure, workers._failures():
        raise error
    assert failure.value.exit_code == 1
