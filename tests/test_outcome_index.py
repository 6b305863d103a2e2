"""Laws of the index of a day: who looks for an id opens few files, and finds what is there, whatever dies meanwhile."""

import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from uuid import uuid4

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from router.decision import Decision
from router.outcomes import OutcomeLog, compaction, storage
from router.outcomes.days import Day, hashed, index_of, may_hold
from router.outcomes.reading import LogReader

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Killed(BaseException):
    pass


def taken(log, day):
    """The id of a decision of a day that the log took."""
    dials = 5.0, 0.98, 0.0, 0.1, True, False
    decision = Decision("small", None, {}, {}, {}, "", *dials, "", "", uuid4().hex, None, 1.0, 1.0)
    log.decided(decision, "p", timestamp=NOON + timedelta(days=day))
    return decision.decision_id


def rows(folder):
    """All rows of the log by decision_id; none may be there twice."""
    files = folder.glob("day=*/*.parquet")
    found = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    assert len({row["decision_id"] for row in found}) == len(found)
    return {row["decision_id"]: row for row in found}


def indexed(folder):
    """The days that have an index."""
    return sorted(path.name[:10] for path in folder.glob(".index/*"))


@pytest.fixture
def opened(monkeypatch):
    """The names of the Parquet files that are opened, in order."""
    names, original = [], storage.Folder.opened

    def counting(self, name):
        if name.endswith(".parquet"):
            names.append(name)
        return original(self, name)

    monkeypatch.setattr(storage.Folder, "opened", counting)
    return names


@pytest.fixture
def log(tmp_path):
    """A log of five days with three files each, of which all but the newest day are indexed, and its decisions."""
    log = OutcomeLog(tmp_path)
    log.ids = []
    for _ in range(3):
        log.ids += [taken(log, day) for day in range(5)]
        log.compact()
    log.compact()
    return log


# ---- few files are opened -----------------------------------------------------------------------------------


def test_all_days_but_the_newest_are_indexed(log, tmp_path):
    assert indexed(tmp_path) == [f"2026-01-0{number}" for number in range(1, 5)]


def test_an_unknown_id_opens_only_the_files_of_the_newest_day(log, tmp_path, opened):
    log.outcome("0" * 32, correct=True)
    assert log.compact().orphans == 1
    assert LogReader(tmp_path).find("1" * 32).rows == []
    assert {name[:14] for name in opened} == {"day=2026-01-05"} and len(opened) == 6


def test_a_known_id_opens_only_the_files_of_its_day_and_the_newest(log, tmp_path, opened):
    log.outcome(log.ids[0], correct=True)
    assert log.compact().outcomes == 1
    [row] = LogReader(tmp_path).find(log.ids[0]).rows
    assert row["correct"] == 1.0
    assert {name[:14] for name in opened} == {"day=2026-01-01", "day=2026-01-05"}


def test_an_attempt_is_found_on_an_indexed_day_by_its_own_id_and_by_its_decisions(tmp_path):
    log, attempt_id = OutcomeLog(tmp_path), uuid4().hex
    dials = 5.0, 0.98, 0.0, 0.1, True, False
    decision = Decision("small", None, {}, {}, {}, "", *dials, "", "", uuid4().hex, None, 1.0, 1.0)
    log.attempt(decision, ended="failed", model="m", provider="p", tier="small", attempt_id=attempt_id)
    log.decided(decision, "p", timestamp=datetime.now(UTC))
    log.compact()
    taken(log, 365 * 1000)
    log.compact()
    log.compact()
    assert len(indexed(tmp_path)) in (1, 2)  # It may be midnight.
    reader = LogReader(tmp_path)
    assert len(reader.find(decision.decision_id).rows) == 2 and len(reader.find(attempt_id).rows) == 1
    log.outcome(attempt_id, cost_usd=0.5)
    assert log.compact().outcomes == 1 and reader.find(attempt_id).rows[0]["cost_usd"] == 0.5


# ---- an index is never wrong --------------------------------------------------------------------------------


def files_with(content):
    return SimpleNamespace(opened=lambda name: BytesIO(content))


DAY = Day(date="2026-01-01", names=("day=2026-01-01/attempts-a.parquet",), is_indexed=True)


@given(held=st.sets(st.text()), others=st.sets(st.text()))
@settings(deadline=None)
@example(held=set(), others={"x"})
@example(held={"\ud800"}, others=set())
def test_an_index_has_every_id_of_its_files(held, others):
    files = files_with(index_of(held))
    assert all(may_hold(files, DAY, hashed([each, *others])) for each in held)
    assert not may_hold(files, DAY, hashed(others)) or set(hashed(others)) & set(hashed(held))


@given(held=st.sets(st.text(), min_size=1), damage=st.data())
@settings(deadline=None)
def test_a_damaged_index_rules_nothing_out(held, damage):
    content = index_of(held)
    place = damage.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= damage.draw(st.integers(1, 255))
    for damaged in (bytes(flipped), content[:place], content + b"x"):
        assert may_hold(files_with(damaged), DAY, hashed(["not there"]))


class IndexedLog(RuleBasedStateMachine):
    """Compactions are killed before they are committed; files are lost and put back; indexes are deleted."""

    def __init__(self):
        super().__init__()
        self.folder = Path(mkdtemp())
        self.log, self.ids, self.lost = OutcomeLog(self.folder / "log"), [], {}

    @rule(day=st.integers(0, 3))
    def decide(self, day):
        self.ids.append(taken(self.log, day))

    @rule(number=st.integers(0, 20))
    def judge(self, number):
        self.log.outcome(self.ids[number] if number < len(self.ids) else "0" * 32, correct=True)

    @rule()
    def compact(self):
        self.log.compact()

    @rule()
    def compact_and_die(self):
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(compaction, "_write_state", dying)
            self.log.compact()

    @rule()
    def delete_indexes(self):
        shutil.rmtree(self.folder / "log" / ".index", ignore_errors=True)

    @precondition(lambda self: not self.lost and files_of(self.folder / "log"))
    @rule(number=st.integers(0, 20))
    def lose_a_file(self, number):
        self.log.compact()  # So that no line waits for a file that goes.
        files = files_of(self.folder / "log")
        file = files[number % len(files)]
        self.lost = {file: rows_of(file)}
        file.rename(self.folder / "lost")

    @precondition(lambda self: self.lost)
    @rule()
    def put_it_back(self):
        (self.folder / "lost").rename(next(iter(self.lost)))
        self.lost = {}

    def teardown(self):
        """Each decision is one row, which a reader finds, and to which an outcome is joined."""
        self.log.compact()
        gone, reader = sum(self.lost.values(), []), LogReader(self.folder / "log")
        assert rows(self.folder / "log").keys() == set(self.ids) - set(gone)
        for each in rows(self.folder / "log"):
            assert len(reader.find(each).rows) == 1
            self.log.outcome(each, cost_usd=0.5)
        self.log.compact()
        assert all(row["cost_usd"] == 0.5 for row in rows(self.folder / "log").values())
        shutil.rmtree(self.folder)


TestIndexedLog = IndexedLog.TestCase
TestIndexedLog.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def files_of(folder):
    return sorted(folder.glob("day=*/*.parquet"))


def rows_of(file):
    return [row["decision_id"] for row in pq.ParquetFile(file).read().to_pylist()]


def dying(*arguments):
    raise Killed


@pytest.mark.parametrize("n_steps", range(8))
def test_a_compaction_killed_at_any_step_of_its_indexes_loses_nothing(log, tmp_path, monkeypatch, n_steps):
    """Steps: two indexes are written, four that no longer count deleted; then outcomes are joined."""
    late = [taken(log, day) for day in (1, 3)]
    log.compact()
    shutil.rmtree(tmp_path / "day=2026-01-01")
    (tmp_path / ".index" / "2026-01-03-x").touch()
    ids = [*rows(tmp_path), taken(log, 0), taken(log, 6)]
    assert set(late) < set(ids)
    for each in ids:
        log.outcome(each, cost_usd=0.5)
    log.close()
    steps = count()

    def ending(original):
        def step(self, *arguments):
            if next(steps) == n_steps:
                raise Killed
            original(self, *arguments)

        return step

    with monkeypatch.context() as patch:
        for name in ("write", "delete"):
            patch.setattr(storage.Folder, name, ending(getattr(storage.Folder, name)))
        with pytest.raises(Killed):
            log.compact()
    ids.append(taken(log, 0))
    log.outcome(ids[-1], cost_usd=0.5)
    for _ in range(2):
        assert log.compact().orphans == 0
    assert {key: row["cost_usd"] for key, row in rows(tmp_path).items()} == dict.fromkeys(ids, 0.5)
    assert indexed(tmp_path) == [f"2026-01-0{number}" for number in range(1, 6)]


@pytest.mark.parametrize("dies", [False, True])
def test_a_damaged_file_that_is_mended_has_all_its_rows_again(log, tmp_path, monkeypatch, dies):
    file = files_of(tmp_path)[3]
    content = file.read_bytes()
    taken(log, 1)
    log.compact()
    file.write_bytes(b"damaged")
    if dies:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(storage.Folder, "delete", dying)
            log.compact()
        assert file.exists()
    else:
        assert log.compact().unreadable == 1 and not file.exists()
    file.write_bytes(content)
    log.outcome(rows_of(file)[0], cost_usd=0.5)
    assert log.compact().outcomes == 1


def test_a_log_in_an_object_store_is_indexed_too():
    url = f"memory://{uuid4().hex}"
    log = OutcomeLog(url)
    ids = [taken(log, day) for day in range(3)]
    log.compact()
    log.compact()
    files = storage.files_at(url)
    assert sum(name.startswith(".index/") for name in files.names()) == 2
    for each in ids:
        log.outcome(each, correct=True)
    assert log.compact().outcomes == 3 and len(LogReader(url).find(ids[0]).rows) == 1
