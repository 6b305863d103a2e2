"""Laws of a store that lost something: the next run recovers from what is there, or says in one line what to do."""

import json
import shutil

import numpy as np
import pytest
from stores import CHEAPER_IS_BETTER, SAMPLE_TIERS, Turn, bundle_id, instead_of_training

import training.retrain.run
from router.errors import RouterError
from router.golden import check_golden
from training.errors import StoreError
from training.evaluation.training_data import TrainingData
from training.retrain import rollback

BUNDLE_FILES = (
    "README.md", "clusters.json", "golden.jsonl", "manifest.json", "report.html", "report.json", "router.onnx",
    "tiers.toml", "tokenizer.json", "plan.onnx", "checks.json", "calibration.npz", "golden_plans.jsonl",
)  # fmt: skip
RECOVERED = (
    *(f"bundles/{name}/{file}" for name in ("000001", "000002") for file in BUNDLE_FILES),
    "bundles/000001-training.parquet", "bundles/000002-training.parquet", "receipts.jsonl", "lock",
)  # fmt: skip
REFUSED = ("state.json",)
DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(2000)),
}


@pytest.fixture(scope="module")
def second_turn(first_turn, challenger, day, tmp_path_factory):
    """A store with two champions, the cheaper one the latest, and its logs beside it."""
    folder = tmp_path_factory.mktemp("second") / "turn"
    shutil.copytree(first_turn[0], folder, symlinks=True)
    day(1).to_parquet(folder / "logs" / "day1.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.retrain.run, "train", instead_of_training(challenger))
        assert Turn(folder, SAMPLE_TIERS)().promoted
    return folder


@pytest.fixture
def turn(second_turn, tmp_path, quick):
    shutil.copytree(second_turn, tmp_path / "turn", symlinks=True)
    return Turn(tmp_path / "turn", SAMPLE_TIERS)


def outcome_of(turn):
    """The receipt of a run, or its error in one line, as the command line tells it."""
    try:
        return turn()
    except (RouterError, OSError, MemoryError) as error:
        assert getattr(error, "exit_code", 1) in (1, 2)
        assert "\n" not in str(error)
        return str(error)
    finally:
        assert not turn.store.champion.is_symlink() or turn.store.champion.exists()


def assert_has_champion(turn, receipt):
    assert check_golden(turn.store.champion).passed
    assert bundle_id(turn.store.champion) == receipt.champion


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", RECOVERED)
def test_what_can_be_made_good_is(turn, name, damage):
    """The bundle in use, an earlier one, what they were trained on, receipts, the lock: twice, so that it lasts."""
    DAMAGES[damage](turn.folder / name)
    for _ in range(2):
        assert_has_champion(turn, outcome_of(turn))
    assert [entry["run"] for entry in turn.store.receipts()] == sorted({e["run"] for e in turn.store.receipts()})


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", REFUSED)
def test_where_what_was_decided_is_lost_the_run_says_what_to_do_and_changes_nothing(turn, name, damage):
    before = bundle_id(turn.store.champion)
    DAMAGES[damage](turn.folder / name)
    assert "restore the file from a backup, or start a new store" in outcome_of(turn)
    assert bundle_id(turn.store.champion) == before


def test_every_file_of_a_store_is_tried(turn):
    """But for those of the cache, which may be deleted at any time."""
    files = {str(path.relative_to(turn.folder)) for path in turn.folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith(("cache/", "champion/"))} == {*RECOVERED, *REFUSED}


def test_a_lost_champion_gives_way_to_the_last_one_that_loads_and_is_judged_anew(turn, monkeypatch):
    first, second = (bundle_id(turn.store.bundle(name)) for name in ("000001", "000002"))
    shutil.rmtree(turn.store.bundle("000002"))

    def no_training(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training.retrain.run, "train", no_training)
        with pytest.raises(OSError, match="No space left"):
            turn()
    assert bundle_id(turn.store.champion) == first  # at once, not only when a challenger is there
    receipt = turn()  # no log file is new
    assert receipt.promoted and "net value is better" in receipt.reason and receipt.champion == second
    told = turn.store.receipts()[-2]["reason"]
    assert f"the champion {second} cannot be loaded" in told and f"{first} is champion again" in told
    assert turn().reason.startswith("nothing new")


def test_where_no_champion_is_left_the_link_goes_until_there_is_one(turn, monkeypatch):
    for name in ("000001", "000002"):
        shutil.rmtree(turn.store.bundle(name))

    def no_training(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(training.retrain.run, "train", no_training)
        with pytest.raises(OSError, match="No space left"):
            turn()
    assert not turn.store.champion.is_symlink()
    receipt = turn()
    assert receipt.promoted and "no earlier bundle of this store can be loaded" in receipt.reason
    assert_has_champion(turn, receipt)


def test_a_machine_that_fails_says_nothing_of_the_champion(turn, monkeypatch):
    """Not even where it fails only while the champion is read: it stays champion, and nothing is written."""
    before = (turn.folder / "state.json").read_bytes()

    def too_many_open_files(path, most_bytes):
        raise OSError(24, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("router.bundle.bundle.read_bounded", too_many_open_files)
        with pytest.raises(OSError, match="Too many open files"):
            turn()
    assert (turn.folder / "state.json").read_bytes() == before
    assert turn().reason.startswith("nothing new")


def test_without_its_training_data_a_champion_is_judged_on_what_every_training_holds_out(turn, day, monkeypatch):
    kept = turn.store.bundle("000002")
    data = TrainingData.load(kept)
    TrainingData.path_of(kept).unlink()
    day(2).to_parquet(turn.logs / "day2.parquet")
    receipt = turn()
    assert not receipt.promoted and receipt.champion == bundle_id(kept)
    n_prompts = len({prompt for number in (0, 1, 2) for prompt in day(number).prompt})
    assert 10 <= receipt.n_judged < 0.4 * n_prompts
    assert receipt.n_judged < n_prompts - len(data.prompt_ids)


def test_a_rollback_past_a_lost_champion_goes_to_the_one_before(turn):
    shutil.rmtree(turn.store.bundle("000002"))
    receipt = rollback(turn.folder, tracking_uri="none")
    assert_has_champion(turn, receipt)
    assert receipt.champion == bundle_id(turn.store.bundle("000001"))


@pytest.mark.parametrize(
    "end", [b"\n", b"\n\n", b"[1]\n", b"\xff\xfe\n", b'{"run": "x"}\n', b'{"run": 2, "rea', b"[" * 9999]
)
def test_whatever_the_receipts_end_with_they_go_on(turn, end):
    path = turn.folder / "receipts.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + end)
    turn()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"champion": "000009"}, {"challenger": "000009"}, {"former": ["000009"]}, {"unregistered": ["000009"]},
        {"champion": 5}, {"champion": ["000001"]}, {"n_runs": "2"}, {"receipt": {}}, {"receipt": []}, {"files": []},
        {"bundles": {"000001": {}}}, {"accepted": [{}]}, {"evidence": {"a": {"edge": {}}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_contradicts_itself_is_refused(turn, change):
    path = turn.folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError, match="not a state of this version") as refusal:
        turn()
    assert refusal.value.exit_code == 2 and "\n" not in str(refusal.value)


def test_a_lost_state_is_missed_where_the_link_is_lost_too(turn):
    """Bundles that no state names are removed; so a store whose state is gone is not taken for a new one."""
    (turn.folder / "state.json").unlink()
    turn.store.champion.unlink()
    assert "restore the file" in outcome_of(turn)
    assert turn.store.bundle("000002").is_dir()


def test_the_link_comes_back(turn):
    turn.store.champion.unlink()
    receipt = turn()
    assert receipt.reason.startswith("nothing new")
    assert_has_champion(turn, receipt)
    turn.store.champion.unlink()
    turn.store.champion.symlink_to("bundles/000077")
    assert_has_champion(turn, turn())


def test_a_store_of_before_knows_no_acceptance_and_no_evidence(turn):
    path = turn.folder / "state.json"
    state = json.loads(path.read_text())
    for name in ("evidence", "accepted"):
        del state[name]
    path.write_text(json.dumps(state))
    assert turn(CHEAPER_IS_BETTER).reason.startswith("nothing new")
