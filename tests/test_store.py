"""Laws of the store: what is committed holds, all else follows from it, whenever a run was killed."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from training.errors import StoreBusyError, StoreError
from training.retrain.acceptance import Acceptance
from training.retrain.evidence import Evidence
from training.retrain.state import LogFile, State, StoredBundle
from training.retrain.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def stored(bundle_id):
    return StoredBundle(bundle_id, "", "digest", "0.1.0", "2026-01-01T00:00:00+00:00", "")


def make_bundle(store, name):
    """Something that stands where a bundle would."""
    store.bundle(name).mkdir(parents=True)
    (store.bundle(name) / "manifest.json").write_text(name)
    store.bundle(name).with_name(f"{name}-training.parquet").write_text(name)


@pytest.fixture
def two_bundles(store):
    """A state with two bundles, the first of them champion, committed and followed."""
    state = State(n_runs=2, bundles={"000001": stored("a"), "000002": stored("b")}, receipt={"run": 2})
    with store.hold():
        make_bundle(store, "000001")
        make_bundle(store, "000002")
        state = state.with_champion("000001")
        store.commit(state)
        store.follow(state)
    return state


def champion_of(store):
    return (store.champion / "manifest.json").read_text()


def receipts_of(store):
    return [json.loads(line) for line in (store.folder / "receipts.jsonl").read_text().splitlines()]


def test_a_new_store_is_empty(store):
    with store.hold():
        assert store.recover() == State()
    assert not store.champion.exists()


def test_a_state_survives_its_file(store, two_bundles):
    file = LogFile("logs/é.jsonl", 3, 1, 2, "2026-01-01T00:00:00", "labels changed")
    state = replace(
        two_bundles,
        files={"ab": file},
        settings={"seed": 0},
        former=("000002",),
        rolled_back=("cd",),
        unregistered=("000001",),
        is_registry_current=False,
        evidence={"ab": {"edge": Evidence.of(np.array([1.0, 0.0]), np.array([0.7, 0.6]))}},
        accepted=(Acceptance("edge", "2026-01-01T00:00:00", "000001", 1.0, 0.1),),
    )
    store.commit(state)
    assert store.recover() == state


def test_the_link_is_relative_so_that_a_store_can_be_moved(store, two_bundles, tmp_path):
    store.folder.rename(tmp_path / "moved")
    assert champion_of(Store(tmp_path / "moved")) == "000001"


def test_what_is_committed_is_followed_after_a_kill(store, two_bundles):
    """Killed between the commit and the link: the next run moves the link."""
    store.commit(replace(two_bundles, receipt={"run": 3}).with_champion("000002"))
    assert champion_of(store) == "000001"
    store.recover()
    assert champion_of(store) == "000002"
    assert receipts_of(store) == [{"run": 2}, {"run": 3}]


def test_what_is_not_committed_is_gone(store, two_bundles):
    """Killed before the commit: the bundle of that run, drafts and temporary files go, the rest stays."""
    make_bundle(store, "000003")
    (store.folder / "bundles" / ".000003.abc.tmp").mkdir()
    (store.folder / ".unfinished-state").write_text("{")
    (store.folder / ".unfinished-champion").symlink_to("bundles/000003")
    (store.cache / "embeddings").mkdir(parents=True)
    (store.cache / "embeddings" / ".abc.tmp").write_text("half a shard")
    (store.cache / "embeddings" / "abc.parquet").write_text("a shard")
    assert store.recover() == two_bundles
    assert sorted(path.name for path in (store.folder / "bundles").iterdir()) == [
        "000001", "000001-training.parquet", "000002", "000002-training.parquet",
    ]  # fmt: skip
    assert [path.name for path in (store.cache / "embeddings").iterdir()] == ["abc.parquet"]
    assert not any(path.name.startswith(".") for path in store.folder.iterdir())
    assert champion_of(store) == "000001"


def test_following_twice_is_following_once(store, two_bundles):
    before = os.lstat(store.champion).st_ino
    store.recover()
    assert os.lstat(store.champion).st_ino == before
    assert receipts_of(store) == [{"run": 2}]


def test_a_receipt_that_was_cut_off_is_written_anew(store, two_bundles):
    path = store.folder / "receipts.jsonl"
    path.write_bytes(b'{"run": 1}\n{"run": 2, "rea')
    store.recover()
    assert receipts_of(store) == [{"run": 1}, {"run": 2}]
    path.write_bytes(b'{"run')
    store.recover()
    assert receipts_of(store) == [{"run": 2}]


def test_a_commit_that_fails_leaves_the_state_before(store, two_bundles, monkeypatch):
    def no_space(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("router.files.sync", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.commit(two_bundles.with_champion("000002"))
    assert store.recover() == two_bundles


def test_only_one_run_holds_the_store_and_the_other_is_told_who(store):
    with store.hold():
        with pytest.raises(StoreBusyError, match=f"process {os.getpid()} on ") as refusal:
            Store(store.folder).hold().__enter__()
        assert refusal.value.exit_code == 3
    with store.hold():
        pass


def test_the_store_is_free_again_after_an_error(store):
    with pytest.raises(ZeroDivisionError), store.hold():
        raise ZeroDivisionError
    with store.hold():
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 99}', '{"format": 1, "n_runs": 3}'])
def test_a_state_that_cannot_be_read_is_refused_never_replaced(store, two_bundles, text):
    path = store.folder / "state.json"
    path.write_text(text)
    with pytest.raises(StoreError, match="not a state of this version"):
        store.recover()
    assert path.read_text() == text
    assert champion_of(store) == "000001"


def test_a_lost_state_beside_a_champion_is_refused(store, two_bundles):
    (store.folder / "state.json").unlink()
    with pytest.raises(StoreError, match="there is a champion, or there are receipts; restore the file"):
        store.recover()
    assert champion_of(store) == "000001"


def test_a_champion_that_is_no_link_is_never_overwritten(store, two_bundles):
    store.champion.unlink()
    store.champion.mkdir()
    with pytest.raises(StoreError, match="is no link"):
        store.recover()


def test_champions_follow_each_other(two_bundles):
    state = two_bundles.with_champion("000002")
    assert (state.champion, state.former) == ("000002", ("000001",))
    assert (state.bundle_id("000002"), state.bundle_id("")) == ("b", None)
