"""Laws of the check of new log files: what contradicts the champion stays out, until someone accepts the change."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from stores import CHEAPER_IS_BETTER, bundle_id, flipped, instead_of_training

from router.cli import main
from training.errors import ConfigError, StoreError
from training.retrain.acceptance import Acceptance, in_force
from training.retrain.evidence import Evidence, find_contradiction
from training.retrain.view import StoreView


def evidence(n, expected, found, seed=0):
    """n answers that are right with probability `found` where `expected` is expected."""
    rng = np.random.default_rng(seed)
    return Evidence.of((rng.random(n) < found).astype(float), np.full(n, expected))


def in_parts(frame, n_parts, folder, name):
    """The rows of every prompt together, the prompts dealt out to files in time."""
    prompts = frame.prompt.unique()
    for number, part in enumerate(np.array_split(prompts, n_parts)):
        rows = frame[frame.prompt.isin(part)].copy()
        rows["timestamp"] = pd.Timestamp("2026-05-01") + pd.Timedelta(hours=number)
        rows.to_parquet(folder / f"{name}-{number:03}.parquet")


def dated(frame, text):
    return frame.assign(timestamp=pd.Timestamp(text))


def all_of(frame, model, value):
    return frame.assign(correct=frame.correct.where(~frame.model.str.contains(model), value))


def accepting(*texts):
    return replace(CHEAPER_IS_BETTER, accept_change=texts)


# ---- evidence --------------------------------------------------------------------------------------


def test_what_no_file_shows_alone_files_show_together():
    files = [evidence(6, 0.8, 0.1, seed) for seed in range(10)]
    assert all(find_contradiction([file], [True]) is None for file in files)
    found = find_contradiction(files, [True] * 10)
    assert (found.first, found.last) == (0, 9)
    assert found.how.endswith("right where 80% was expected (60 answers in 10 files)")


def test_what_came_before_the_change_is_not_in_it():
    files = [evidence(6, 0.8, 0.8, seed) for seed in range(40)] + [evidence(6, 0.8, 0.0, seed) for seed in range(8)]
    found = find_contradiction(files, [False] * 45 + [True] * 3)
    assert found.last == 47 and 39 <= found.first <= 41


def test_what_was_examined_before_is_not_examined_again():
    files = [evidence(50, 0.8, 0.1), evidence(50, 0.8, 0.8)]
    assert find_contradiction(files, [False, False]) is None
    assert find_contradiction(files[:1], [True]) is not None


def test_labels_that_are_flipped_contradict_also_where_their_mean_stays():
    expected = np.tile([0.9, 0.1], 60)
    found = find_contradiction([Evidence.of((expected < 0.5).astype(float), expected)], [True])
    assert "Brier score" in found.how


def test_chance_alone_hardly_ever_contradicts():
    """A thousand runs of forty files with right expectations; the bound is one of 30,000 for each."""
    rng = np.random.default_rng(0)
    n_found = 0
    for _ in range(1000):
        expected = rng.uniform(0.05, 0.95, (40, 8))
        files = [Evidence.of((rng.random(8) < p).astype(float), p) for p in expected]
        n_found += find_contradiction(files, [False] * 30 + [True] * 10) is not None
    assert n_found <= 1


def test_fewer_than_twenty_answers_show_nothing():
    assert find_contradiction([evidence(19, 0.9, 0.0)], [True]) is None
    assert find_contradiction([], []) is None


# ---- small files -----------------------------------------------------------------------------------


def test_a_flipped_day_in_twenty_files_is_set_aside_as_in_one(turn, day, quick):
    in_parts(flipped(pd.concat([day(1), day(2)]), "frontier"), 20, turn.logs, "flipped")
    receipt = turn()
    assert not receipt.promoted and len(receipt.set_aside) >= 18
    assert all("frontier" in why and "files)" in why for why in receipt.set_aside.values())


def test_a_change_in_small_files_is_accepted_as_one(turn, day, quick):
    in_parts(flipped(pd.concat([day(1), day(2)]), "frontier"), 20, turn.logs, "flipped")
    turn()
    receipt = turn(accepting("frontier"))
    assert receipt.rows_new and not receipt.set_aside


def test_an_honest_day_in_twenty_files_is_taken(turn, day, quick):
    in_parts(pd.concat([day(1), day(2)]), 20, turn.logs, "honest")
    assert not turn().set_aside


def test_of_a_flipped_day_that_trickles_in_fewer_than_twenty_answers_stay_in(turn, day, monkeypatch):
    """One small file a run; the challenger decides as the champion does, so that it does not take over."""
    monkeypatch.setattr("training.retrain.run.train", instead_of_training(turn.store.champion.resolve()))
    waiting = turn.folder.parent / "waiting"
    waiting.mkdir()
    in_parts(flipped(pd.concat([day(1), day(2), day(3)]), "frontier"), 15, waiting, "flipped")
    for path in sorted(waiting.iterdir())[:7]:
        path.rename(turn.logs / path.name)
        receipt = turn()
    taken = pd.concat(
        pd.read_parquet(path) for path in turn.logs.glob("flipped-*") if str(path) not in receipt.set_aside
    )
    assert taken.model.str.contains("frontier").sum() < 20
    dated(day(4), "2026-06-01").to_parquet(turn.logs / "honest.parquet")
    assert turn().set_aside == receipt.set_aside


# ---- times in the future ---------------------------------------------------------------------------


def test_a_row_of_2199_is_quarantined_and_does_not_keep_its_file_the_newest(turn, day, quick):
    wrong = dated(day(1), "2026-04-01")
    wrong.iloc[0, wrong.columns.get_loc("timestamp")] = pd.Timestamp("2199-12-30")
    wrong.to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert receipt.rows_quarantined == 1
    assert receipt.log["quarantined"] == {"timestamp is more than a day in the future": 1}
    newest = {file.path: file.last_timestamp for file in turn.store.read().files.values()}
    assert newest[str(turn.logs / "day1.parquet")].startswith("2026-04-01")


def test_a_clock_that_is_an_hour_fast_costs_no_row(turn, day, quick):
    day(1).assign(timestamp=pd.Timestamp.now("UTC") + pd.Timedelta(hours=1)).to_parquet(turn.logs / "day1.parquet")
    assert turn().rows_quarantined == 0


def test_a_file_of_the_future_is_looked_at_again(turn, day, quick, monkeypatch):
    """The clock of this machine may be the one that is wrong."""
    dated(day(1), "2190-01-01").to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert "in the future" in receipt.set_aside[str(turn.logs / "day1.parquet")] and not receipt.promoted
    assert str(turn.logs / "day1.parquet") not in {file.path for file in turn.store.read().files.values()}


def test_a_store_that_believed_a_time_in_the_future_is_mended(turn, day, quick):
    state = turn.store.read()
    files = {digest: replace(file, last_timestamp="2199-01-01T00:00:00") for digest, file in state.files.items()}
    turn.store.commit(replace(state, files=files))
    day(1).to_parquet(turn.logs / "day1.parquet")
    turn()
    assert all(file.last_timestamp < "2199" for file in turn.store.read().files.values())


# ---- changes that are accepted ---------------------------------------------------------------------


@pytest.fixture
def improved(turn, day, monkeypatch):
    """A store that has set day1 aside, on which `edge` is always right; day2 and day3 are to come.

    The challenger decides as the champion does, so that it does not take over.
    """
    monkeypatch.setattr("training.retrain.run.train", instead_of_training(turn.store.champion.resolve()))
    turn.days = [
        dated(all_of(pd.concat([day(2 * n), day(2 * n + 1)]), "edge", True), f"2026-05-{n:02}") for n in range(1, 5)
    ]
    turn.days[0].to_parquet(turn.logs / "day1.parquet")
    turn.first = turn()
    assert list(turn.first.set_aside) == [str(turn.logs / "day1.parquet")]
    return turn


def test_an_accepted_change_lasts_on_later_days(improved):
    turn = improved
    receipt = turn(accepting("edge"))
    assert not receipt.set_aside and receipt.rows_new == len(turn.days[0])
    for number in (1, 2):
        turn.days[number].to_parquet(turn.logs / f"day{number + 1}.parquet")
        assert not turn().set_aside


def test_an_accepted_change_is_none_of_another_tier_nor_the_next_one_of_its_own(improved, day):
    turn = improved
    turn(accepting("edge"))
    path = turn.logs / "day2.parquet"
    all_of(turn.days[1], "frontier", False).to_parquet(path)
    assert "frontier answered 0% right" in turn().set_aside[str(path)]
    all_of(turn.days[1], "edge", False).to_parquet(path)
    assert "edge answered 0% right" in turn().set_aside[str(path)]
    dated(day(9), "2026-01-15").to_parquet(turn.logs / "late.parquet")  # before the change
    assert list(turn().set_aside) == [str(path)]


def test_one_acceptance_leaves_aside_what_else_is_wrong(improved):
    turn = improved
    path = turn.logs / "zeros.parquet"
    all_of(turn.days[1], "distilled", False).to_parquet(path)
    turn()
    receipt = turn(accepting("edge"))
    assert list(receipt.set_aside) == [str(path)] and "distilled answered 0% right" in receipt.set_aside[str(path)]
    assert list(receipt.accept_commands) == ["distilled"]


def test_a_file_with_two_changes_takes_two_acceptances(turn, day, monkeypatch):
    monkeypatch.setattr("training.retrain.run.train", instead_of_training(turn.store.champion.resolve()))
    both = all_of(all_of(pd.concat([day(1), day(2)]), "edge", True), "frontier", False)
    both.to_parquet(turn.logs / "both.parquet")
    first = turn()
    [tier] = first.accept_commands
    second = turn(accepting(tier))
    [other] = second.accept_commands
    assert {tier, other} == {"edge", "frontier"} and list(second.set_aside) == [str(turn.logs / "both.parquet")]
    assert not turn(accepting(other)).set_aside


def test_an_accepted_file_stays_accepted_when_late_outcomes_come_in(improved):
    turn = improved
    turn(accepting("edge"))
    late = turn.days[0].sample(frac=1.0, random_state=0).iloc[:-3]
    late.to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert receipt.run > turn.first.run and not receipt.set_aside


def test_from_a_file_on_is_from_its_time_on(improved):
    """Of two files that contradict each other, the one that is named is believed."""
    turn = improved
    all_of(turn.days[1], "edge", False).to_parquet(turn.logs / "day2.parquet")
    turn()
    receipt = turn(accepting(f"edge@{turn.logs / 'day2.parquet'}"))
    assert list(receipt.set_aside) == [str(turn.logs / "day1.parquet")]
    assert not turn(accepting("edge@day1.parquet")).set_aside  # the earlier change, until the later one


def test_a_new_champion_expects_what_was_accepted(improved, challenger, monkeypatch):
    turn = improved
    turn(accepting("edge"))
    turn.days[1].to_parquet(turn.logs / "day2.parquet")
    monkeypatch.setattr("training.retrain.run.train", instead_of_training(challenger))
    assert turn().promoted
    turn.days[2].to_parquet(turn.logs / "day3.parquet")
    receipt = turn()
    assert not receipt.set_aside and receipt.champion == bundle_id(challenger)
    [change] = turn.store.read().accepted
    assert (change.tier, change.champion) == ("edge", turn.store.read().champion)
    all_of(turn.days[3], "edge", False).to_parquet(turn.logs / "day4.parquet")
    assert "edge answered 0% right" in turn().set_aside[str(turn.logs / "day4.parquet")]


@pytest.mark.parametrize("text", ["frontier", "edge@day9.parquet", "nobody", "@day1.parquet", ""])
def test_what_is_not_set_aside_cannot_be_accepted(improved, text):
    before = (improved.folder / "state.json").read_bytes()
    with pytest.raises(ConfigError, match="no such file is set aside for that tier; there are: edge@"):
        improved(accepting(text))
    assert (improved.folder / "state.json").read_bytes() == before


def test_the_latest_change_of_a_tier_is_in_force():
    changes = [Acceptance("edge", since, "000001", 1.0, 0.0) for since in ("2026-02", "2026-01")]
    assert in_force(changes, "edge", "2026-03").since == "2026-02"
    assert in_force(changes, "edge", "2026-01-05").since == "2026-01"
    assert in_force(changes, "edge", "2025") is None and in_force(changes, "frontier", "2026-03") is None


def test_an_accepted_level_is_what_the_answers_show():
    rng = np.random.default_rng(0)
    expected = rng.uniform(0.3, 0.7, 2000)
    correct = (rng.random(2000) < expected + 0.25).astype(float)
    change = Acceptance.fit("edge", "", "000001", correct, expected)
    assert np.abs(change.apply(expected) - expected - 0.25).max() < 0.06


# ---- what people see -------------------------------------------------------------------------------


def test_the_view_of_a_store_says_what_is_set_aside_why_and_what_accepts_it(improved, capsys):
    path = str(improved.logs / "day1.parquet")
    assert main(["store", str(improved.folder), "--json"]) == 0
    view = json.loads(capsys.readouterr().out)
    assert view["champion"] == bundle_id(improved.store.champion)
    assert view["set_aside"] == improved.first.set_aside and "edge answered 100% right" in view["set_aside"][path]
    assert view["accept_commands"] == improved.first.accept_commands
    assert shlex.split(view["accept_commands"]["edge"])[-2:] == ["--accept-change", f"edge@{path}"]
    assert [version["role"] for version in view["versions"]] == ["champion"]
    assert [entry["run"] for entry in view["receipts"]] == [1, 2]

    assert main(["store", str(improved.folder)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"champion {view['champion']}, made ")
    for part in (
        f"set aside: {path}: edge answered",
        view["accept_commands"]["edge"],
        "1 log files",
        "  1: promoted: ",
    ):
        assert part in text

    improved(accepting("edge"))
    assert "accepted: a change of edge since 2026-05-01" in StoreView.of(improved.folder).text()


def test_looking_at_a_store_changes_nothing_and_needs_no_turn(improved):
    def contents():
        return {path: path.read_bytes() for path in sorted(improved.folder.rglob("*")) if path.is_file()}

    before = contents()
    with improved.store.hold():
        lock = {improved.folder / "lock": b""}
        StoreView.of(improved.folder)
        assert {**contents(), **lock} == {**before, **lock}


def test_where_no_store_is_none_is_made(tmp_path):
    with pytest.raises(StoreError, match="no store"):
        StoreView.of(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
