"""Laws of `retrain`: only a better challenger takes over, whatever happens meanwhile."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import CHEAPER_IS_BETTER, assert_sound, bundle_id, flipped, instead_of_training

import training.log.checked as checked
import training.log.ingest as reading
import training.retrain.run as line
import training.retrain.verdict as judging
from router import Router
from router.bundle import Bundle
from router.bundle.manifest import read_manifest
from router.cli import main
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import read_tiers
from router.watch import Watcher
from training import TrainingConfig
from training.cli import receipt_text, retrain_config
from training.cli import retrain as retrain_command
from training.config import RetrainConfig
from training.errors import ConfigError, LogError, StoreBusyError, StoreError
from training.evaluation.metrics import Interval
from training.log.ingest import ingest
from training.retrain import Receipt, retrain, rollback
from training.retrain.command import command_of
from training.retrain.compare import Comparison, Measure, compare, cost_of_a_correct_answer, worse_segments_of
from training.retrain.context import RetrainContext
from training.retrain.drift import DriftReport, Finding
from training.retrain.registry import register
from training.retrain.store import Store
from training.tracking import EXPERIMENT, sqlite_uri, tracked_run

STEPS = ("recovered", "trained", "committed", "linked", "registered")
"""Those that find something new on the disk."""
CONTRACT = {
    "promoted", "reason", "champion", "challenger", "rows_new", "rows_quarantined", "net_value", "quality", "cost",
    "drift",
}  # fmt: skip


@pytest.fixture(scope="module")
def sample(request):
    data = request.config.rootpath / "data"
    return pd.read_parquet(data / "sample-log.parquet"), data / "tiers.toml"


# ---- the circle ------------------------------------------------------------------------------------


def test_the_first_bundle_becomes_champion_and_its_receipt_says_why(first_turn):
    folder, receipt = first_turn
    document = receipt.to_json()
    assert set(document) >= CONTRACT
    assert document == json.loads((folder / "store" / "receipts.jsonl").read_text())
    assert (receipt.promoted, receipt.run, receipt.rows_new) == (True, 1, len(pd.read_parquet(folder / "logs")))
    assert receipt.champion == receipt.challenger == bundle_id(folder / "store" / "champion")
    assert "first bundle" in receipt.reason
    assert_sound(Store(folder / "store"))


def test_the_same_logs_again_change_nothing(turn, monkeypatch, first_turn):
    def contents():
        return {path: path.read_bytes() for path in sorted(turn.folder.rglob("*")) if path.is_file()}

    def never(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(line, "train", never)
    before = contents()
    receipt = turn()
    assert (receipt.promoted, receipt.rows_new) == (False, 0)
    assert receipt.reason.startswith("nothing new")
    assert receipt.champion == first_turn[1].champion
    lock = turn.folder / "lock"
    assert {**contents(), lock: b""} == {**before, lock: b""}


def test_a_renamed_log_file_is_not_new(turn):
    (turn.logs / "day0.parquet").rename(turn.logs / "other.parquet")
    assert turn().rows_new == 0


def test_a_rotated_log_is_the_same_log(turn, day, quick):
    """What was day0 is called otherwise now, and its name is that of another file."""
    (turn.logs / "day0.parquet").rename(turn.logs / "day0.1.parquet")
    more = pd.concat([day(number) for number in range(1, 6)])
    more.to_parquet(turn.logs / "day0.parquet")
    assert turn().rows_new == len(more)
    assert turn().rows_new == 0


def test_a_better_challenger_takes_over_and_watchers_follow(turn, day, quick, challenger):
    router = Router.load(turn.store.champion)
    watcher = Watcher(router, turn.store.champion)
    watcher.look()
    day(1).to_parquet(turn.logs / "day1.parquet")
    former = router.bundle.manifest.bundle_id
    receipt = turn()
    assert receipt.promoted and "net value is better" in receipt.reason
    assert (receipt.champion, receipt.rows_new) == (bundle_id(challenger), len(day(1)))
    assert receipt.cost["challenger"] < receipt.cost["champion"]
    assert receipt.cost["difference"]["high"] < 0 < receipt.net_value["difference"]["low"]
    assert receipt.n_judged >= 10 and receipt.worth_usd == 1e-9
    assert watcher.look() and router.bundle.manifest.bundle_id == receipt.champion != former
    assert_sound(turn.store)


def test_a_store_may_have_any_name(turn, day, quick, challenger):
    folder = turn.folder.parent / "50%20 off? #[1] it's été"
    turn.folder.rename(folder)
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = retrain(turn.logs, turn.tiers, folder, CHEAPER_IS_BETTER, tracking_uri="none")
    assert receipt.champion == bundle_id(challenger) == bundle_id(folder / "champion")
    assert_sound(Store(folder))


def test_what_is_not_better_with_confidence_does_not_take_over(turn, day, monkeypatch, first_turn):
    """The same bundle again decides the same, so nothing is better."""
    monkeypatch.setattr(line, "train", instead_of_training(turn.store.champion.resolve()))
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert not receipt.promoted
    assert receipt.reason.startswith("net value is not better with 80% confidence: +0 USD")
    assert receipt.champion == first_turn[1].champion


def test_too_few_prompts_to_judge_on_keep_the_champion(turn, day, quick):
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn(replace(CHEAPER_IS_BETTER, min_judged=5000))
    assert not receipt.promoted and "5,000 needed" in receipt.reason


def test_a_challenger_that_fails_its_golden_prompts_does_not_take_over(turn, day, quick, monkeypatch):
    day(1).to_parquet(turn.logs / "day1.parquet")
    failed = SimpleNamespace(passed=False, in_words="1 of 20 golden prompts went to another tier")
    monkeypatch.setattr(judging, "GoldenCheck", SimpleNamespace(of=lambda bundle: failed))
    receipt = turn()
    assert not receipt.promoted and "golden prompts failed: 1 of 20" in receipt.reason


def test_rolling_back_holds_until_there_is_something_new(turn, day, quick, first_turn):
    day(1).to_parquet(turn.logs / "day1.parquet")
    taken_back = turn()
    receipt = rollback(turn.folder, tracking_uri="none")
    assert receipt.champion == first_turn[1].champion == bundle_id(turn.store.champion)
    assert taken_back.champion in receipt.reason and "add new log files" in receipt.reason
    assert_sound(turn.store)
    nothing = turn()
    assert not nothing.promoted and "was rolled back: add new log files and run retrain again" in nothing.reason
    again = turn(replace(CHEAPER_IS_BETTER, worth_usd=1e-8))  # another setting, the same data
    assert not again.promoted and "rolled back" in again.reason
    with pytest.raises(StoreError, match="no earlier champion"):
        rollback(turn.folder, tracking_uri="none")


def test_a_store_without_a_past_has_nothing_to_roll_back_to(tmp_path):
    with pytest.raises(StoreError, match="no earlier champion"):
        rollback(tmp_path / "store", tracking_uri="none")


@pytest.mark.parametrize(
    "wrong",
    [
        {"worth_usd": 0},
        {"worth_usd": float("nan")},
        {"quality_margin": -1},
        {"promotion_confidence": 0.4},
        {"promotion_confidence": 1.0},
        {"min_judged": 1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RetrainConfig(**wrong)


def test_a_frame_is_no_log_of_a_store(tmp_path, sample):
    with pytest.raises(ConfigError, match="retrain needs files"):
        retrain([sample[0]], sample[1], tmp_path)


# ---- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quality", "net_value", "worse", "promoted", "reason"),
    [
        ((-0.01, 0.02), (0.1, 0.3), {}, True, "net value is better"),
        ((-0.03, 0.02), (0.1, 0.3), {}, False, "quality may be worse"),
        ((-0.01, 0.02), (-0.1, 0.3), {}, True, "net value is better with 80% confidence"),
        ((-0.01, 0.02), (-0.2, 0.3), {}, False, "net value is not better with 80% confidence"),
        ((-0.01, 0.02), (-0.3, 0.3), {}, False, "net value is not better"),
        ((0.01, 0.02), (0.1, 0.3), {"code": "-9 points"}, False, "worse in a segment: code -9 points"),
    ],
)
def test_a_challenger_must_be_no_worse_anywhere_and_better_with_confidence(quality, net_value, worse, promoted, reason):
    measures = [Measure(0.5, 0.5, Interval(sum(pair) / 2, *pair)) for pair in (quality, (0, 0), net_value)]
    found = Comparison(1000, 0.01, *measures, worse_segments=worse).verdict(0.02, 0.8)
    assert found[0] is promoted and reason in found[1] and "\n" not in found[1]


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_who_asks_for_more_confidence_takes_over_no_challenger_that_others_keep_out(value, width, less, more):
    """And nobody takes one over whose net value is not higher."""
    better = Measure(0.0, value, Interval(value, value - width, value + width))
    found = Comparison(1000, 0.01, Measure(0.5, 0.5, Interval(0.0, 0.0, 0.0)), better, better)
    at_less, at_more = (found.verdict(0.02, confidence)[0] for confidence in sorted((less, more)))
    assert at_less >= at_more
    assert value > 0 or not at_less
    assert "better with 97.5% confidence" in found.verdict(0.02, 0.975)[1]
    if abs(value - width) > 1e-9:  # at 97.5 % it is the interval's own lower end that counts
        assert found.verdict(0.02, 0.975)[0] == (value > width)


def test_a_champion_that_surely_breaks_its_promise_falls_to_a_better_one_even_where_that_costs_more():
    quality, dearer = Measure(0.6, 0.7, Interval(0.1, 0.05, 0.15)), Measure(0.0, -1.0, Interval(-1.0, -1.2, -0.8))
    found = Comparison(500, 1.0, quality, dearer, dearer, promised=0.95, champion_kept=Interval(0.85, 0.80, 0.90))
    promoted, reason = found.verdict(0.02, 0.8)
    assert promoted and "no longer keeps the quality it promises: 0.850" in reason and "0.95 promised" in reason
    assert not replace(found, champion_kept=Interval(0.93, 0.90, 0.96)).verdict(0.02, 0.8)[0]  # it may still keep it
    assert not replace(found, quality=Measure(0.6, 0.5, Interval(-0.1, -0.2, 0.0))).verdict(0.02, 0.8)[0]


def test_the_tolerated_loss_is_what_the_default_quality_gives_away_unless_set():
    assert RetrainConfig(training=TrainingConfig(default_quality=0.95)).tolerated_loss == pytest.approx(0.05)
    assert RetrainConfig(quality_margin=0.01).tolerated_loss == 0.01


def test_of_a_panel_among_partial_feedback_only_the_panel_is_judged_on(challenger, turn, sample):
    """Where every tier was asked of a random few hundred prompts, they say what weights on the others say less well."""
    champion, challenger = Bundle.load(turn.store.champion.resolve()), Bundle.load(challenger)
    text, tiers = sample[1].read_text(), read_tiers(sample[1])
    keys = sample[0].question_key.drop_duplicates().sample(frac=1, random_state=0)
    panel = sample[0][sample[0].question_key.isin(keys[:400])]
    rest = sample[0][sample[0].question_key.isin(keys[400:])].drop_duplicates("question_key")
    mixed, alone = ingest(pd.concat([panel, rest]), tiers), ingest(panel, tiers)
    complete = alone.prompt_ids[np.isfinite(alone.correct).all(axis=1)]
    found = compare(champion, challenger, mixed, PriceTable.parse(text), mixed.prompt_ids, CHEAPER_IS_BETTER)
    expected = compare(champion, challenger, alone, PriceTable.parse(text), complete, CHEAPER_IS_BETTER)
    assert not found.refused and found.n_prompts == expected.n_prompts
    assert found.quality == expected.quality


def test_a_segment_counts_only_where_it_is_surely_worse():
    rng = np.random.default_rng(0)
    segments = np.repeat(["bad", "even", "few"], [200, 200, 20])
    difference = np.concatenate([rng.choice([0, -1], 200, p=[0.8, 0.2]), rng.choice([-1, 1], 200), -np.ones(20)])
    assert list(worse_segments_of(difference, segments)) == ["bad"]
    assert worse_segments_of(difference, np.full(len(segments), "")) == {}  # all prompts: the verdict judges them


def test_worth_by_default_makes_always_the_best_tier_worth_nothing():
    correct = np.array([[0, 1], [0, 1], [1, 0], [np.nan, 1.0]])
    cost = np.array([[0.0, 0.03]] * 4)
    worth = cost_of_a_correct_answer(correct, cost)
    assert worth * 0.75 - 0.03 == pytest.approx(0)


def test_partial_feedback_is_compared_off_policy(challenger, turn, sample):
    """One outcome a prompt, its tier drawn at random: the doubly robust difference has the paired one inside."""
    champion, challenger = Bundle.load(turn.store.champion.resolve()), Bundle.load(challenger)
    text, tiers = sample[1].read_text(), read_tiers(sample[1])
    full = ingest(sample[0], tiers)
    paired = compare(champion, challenger, full, PriceTable.parse(text), full.prompt_ids, CHEAPER_IS_BETTER)
    frame = sample[0].sample(frac=1, random_state=0).drop_duplicates("question_key").assign(propensity=1 / 3)
    partial = ingest(frame, tiers)
    found = compare(champion, challenger, partial, PriceTable.parse(text), partial.prompt_ids, CHEAPER_IS_BETTER)
    assert not paired.refused and not found.refused
    for name in ("quality", "cost_usd"):
        wide, sharp = getattr(found, name).difference, getattr(paired, name).difference
        assert wide.low < sharp.value < wide.high
    unknown = ingest(frame.drop(columns="propensity"), tiers)
    assert (
        "propensity"
        in compare(champion, challenger, unknown, PriceTable.parse(text), unknown.prompt_ids, CHEAPER_IS_BETTER).refused
    )


def test_both_are_judged_at_the_prices_of_today(turn, challenger, sample):
    champion = Bundle.load(turn.store.champion.resolve())
    log = ingest(sample[0].head(1500), read_tiers(sample[1]))
    text = sample[1].read_text().replace("usd_per_mtok_output = 5.00", "usd_per_mtok_output = 50.00")
    before, after = (
        compare(champion, Bundle.load(challenger), log, PriceTable.parse(prices), log.prompt_ids, CHEAPER_IS_BETTER)
        for prices in (sample[1].read_text(), text)
    )
    assert after.cost_usd.champion > 2 * before.cost_usd.champion


# ---- drift -----------------------------------------------------------------------------------------


def test_a_drift_alarm_is_in_the_receipt_and_its_reason_and_stops_no_promotion(
    turn, day, quick, challenger, monkeypatch
):
    """Retraining is the answer to most drift, and the challenger is judged on the prompts that drifted."""
    dearer = Finding("cost", "edge", None, 1000, 1000, statistic=9.0, p_value=1e-9, effect=2.0)
    report = DriftReport(1000, 1000, (dearer,))
    assert report.level == "alarm"
    monkeypatch.setattr(judging, "drift_report", lambda *windows: report)
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert receipt.promoted and receipt.champion == bundle_id(challenger)
    assert receipt.drift == {"level": "alarm", "summary": report.summary}
    assert "net value is better" in receipt.reason and "; drift: alarm; cost of edge: x 2.00" in receipt.reason


def test_where_nothing_drifted_the_reason_does_not_speak_of_it(turn, day, quick):
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn()
    assert receipt.drift["level"] in ("none", "too few") and "drift" not in receipt.reason


# ---- each log file is read once --------------------------------------------------------------------


@pytest.fixture
def n_read(monkeypatch):
    """How often each log file was read, by its name."""
    counted, read = Counter(), checked.append_log

    def counting(db, source, number, maps=()):
        counted[Path(source).name] += 1
        read(db, source, number, maps)

    for module in (checked, reading):
        monkeypatch.setattr(module, "append_log", counting)
    return counted


def test_each_log_file_is_read_once(turn, day, quick, n_read):
    """For the check, for training, for judging and for the drift report."""
    day(1).to_parquet(turn.logs / "day1.parquet")
    day(2).to_json(turn.logs / "day2.jsonl", orient="records", lines=True, date_format="iso")
    flipped(pd.concat([day(3), day(4), day(5)]), "edge").to_parquet(turn.logs / "day3.parquet")
    receipt = turn()
    assert receipt.promoted and receipt.drift and receipt.n_judged and receipt.set_aside
    assert n_read == {"day0.parquet": 1, "day1.parquet": 1, "day2.jsonl": 1, "day3.parquet": 1}


def test_where_no_new_row_can_be_used_nothing_else_is_read(turn, n_read):
    (turn.logs / "day1.jsonl").write_text('{"modle": "x"}\n' * 50)
    assert "no new row that can be used" in turn().reason
    assert n_read == {"day1.jsonl": 1}


def test_rows_that_were_set_aside_are_in_no_table(turn, day, quick, sample, monkeypatch):
    tables = []
    train = line.train

    def keeping(*arguments, **options):
        result = train(*arguments, **options)
        tables.append(result.log)
        return result

    monkeypatch.setattr(line, "train", keeping)
    flipped(pd.concat([day(1), day(2), day(3)]), "edge").to_parquet(turn.logs / "day1.parquet")
    day(4).to_parquet(turn.logs / "day4.parquet")
    assert list(turn().set_aside) == [str(turn.logs / "day1.parquet")]
    expected = ingest([turn.logs / "day0.parquet", turn.logs / "day4.parquet"], read_tiers(sample[1]))
    assert tables[0].digest == expected.digest and tables[0].summary == expected.summary


def test_nothing_of_the_rows_stays_in_the_store(turn, day, quick):
    day(1).to_parquet(turn.logs / "day1.parquet")
    turn()
    assert not list(turn.store.cache.rglob("*.duckdb*"))


def test_a_known_file_that_cannot_be_read_any_more_stops_the_run(turn, day, quick, first_turn, monkeypatch):
    def odd(db, path, number, maps):
        if Path(path).name != "day0.parquet":
            return read(db, path, number, maps)
        return db.execute(
            f"INSERT INTO raw BY NAME SELECT {number} AS file, 'it is odd' AS reason, true AS is_unreadable"
        )

    read = checked.append_log
    monkeypatch.setattr(checked, "append_log", odd)
    day(1).to_parquet(turn.logs / "day1.parquet")
    with pytest.raises(LogError, match=r"day0.parquet could be read by an earlier run, but not now \(it is odd\)"):
        turn()
    assert bundle_id(turn.store.champion) == first_turn[1].champion
    assert_sound(turn.store)


# ---- bad logs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["edge", "distilled", "frontier"])
def test_labels_flipped_for_one_model_are_set_aside(turn, day, quick, model):
    flipped(pd.concat([day(1), day(2), day(3)]), model).to_parquet(turn.logs / "day1.parquet")
    path = str(turn.logs / "day1.parquet")
    receipt = turn()
    assert not receipt.promoted and list(receipt.set_aside) == [path]
    assert model in receipt.set_aside[path] and "--accept-change" in receipt.reason
    assert list(receipt.accept_commands) == [model]
    assert shlex.split(receipt.accept_commands[model])[-2:] == ["--accept-change", f"{model}@{path}"]


def test_what_is_set_aside_stays_so_until_it_is_accepted(turn, day, quick):
    flipped(pd.concat([day(1), day(2), day(3)]), "edge").to_parquet(turn.logs / "day1.parquet")
    path, receipt = str(turn.logs / "day1.parquet"), turn()
    again = turn()  # nothing new, but what is set aside is not forgotten
    assert list(again.set_aside) == [path]
    assert again.set_aside == receipt.set_aside and again.accept_commands == receipt.accept_commands
    assert f"still set aside: {path}: edge" in again.reason
    day(4).to_parquet(turn.logs / "day4.parquet")
    assert list(turn().set_aside) == [path]
    accepted = turn(replace(CHEAPER_IS_BETTER, accept_change=("edge",)))
    assert accepted.rows_new > 0 and not accepted.set_aside and not accepted.accept_commands


def test_an_honest_day_is_never_set_aside(turn, day, quick):
    for number in range(1, 6):
        day(number).to_parquet(turn.logs / f"day{number}.parquet")
    assert not turn().set_aside


def test_a_day_of_garbage_is_set_aside(turn, first_turn):
    (turn.logs / "day1.jsonl").write_text("".join(f'{{"prompt": "{n}", "modle": "x"}}\n' for n in range(50)))
    receipt = turn()
    assert not receipt.promoted and receipt.champion == first_turn[1].champion
    assert (receipt.rows_new, receipt.rows_quarantined) == (50, 50)
    assert "50 of 50 rows are broken" in receipt.reason
    assert turn().reason.startswith("nothing new")


def test_the_receipt_says_what_was_not_read_of_the_files_that_were_taken(turn, day, quick):
    strangers = day(1).head(5).assign(model="nobody's")
    broken = day(1).tail(5).assign(model=None)
    pd.concat([day(1), strangers, broken]).to_parquet(turn.logs / "day1.parquet")
    log = turn().to_json()["log"]
    assert log["in_no_tier"] == {"nobody's": 5} and log["quarantined"] == {"no model": 5}
    assert log["n_rows"] == log["n_used"] + 10
    assert len(pd.read_parquet(log["quarantine"])) == 5


def test_a_day_in_another_encoding_is_set_aside_and_the_receipt_says_so(turn, day, quick):
    path = turn.logs / "day1.csv"
    day(1).to_csv(path, index=False, encoding="utf-16")
    assert "the file is UTF-16; save it again as UTF-8" in turn().set_aside[str(path)]
    day(1).to_csv(path, index=False)
    assert not turn().set_aside


def test_a_day_with_outcomes_on_another_scale_is_set_aside_until_a_map_says_what_they_mean(turn, day, quick):
    path = turn.logs / "day1.parquet"
    day(1).assign(correct=day(1).correct * 2.0 - 1).to_parquet(path)
    for _ in range(2):
        receipt = turn()
        assert "-1.0 (" in receipt.set_aside[str(path)] and "--map" in receipt.reason and not receipt.accept_commands
    training = replace(CHEAPER_IS_BETTER.training, maps=("correct=correct:1",))
    assert not turn(replace(CHEAPER_IS_BETTER, training=training)).set_aside


def test_a_half_written_file_is_taken_when_it_is_whole(turn, day, quick):
    whole = turn.folder / "whole.parquet"
    day(1).to_parquet(whole)
    (turn.logs / "day1.parquet").write_bytes(whole.read_bytes()[:2000])
    receipt = turn()
    assert "cannot be read" in receipt.set_aside[str(turn.logs / "day1.parquet")]
    assert not receipt.accept_commands  # which would not help
    receipts = (turn.folder / "receipts.jsonl").read_text()
    assert not turn().promoted and (turn.folder / "receipts.jsonl").read_text() == receipts
    shutil.copy(whole, turn.logs / "day1.parquet")
    receipt = turn()
    assert (receipt.rows_new, receipt.set_aside) == (len(day(1)), {})


def test_a_file_that_grows_counts_by_its_growth(turn, day, quick):
    lines = day(1).to_json(orient="records", lines=True, date_format="iso").splitlines(keepends=True)
    path = turn.logs / "day1.jsonl"
    path.write_text("".join(lines[:100]) + lines[100][:40])
    receipt = turn()
    assert (receipt.rows_new, receipt.rows_quarantined) == (101, 1)
    path.write_text("".join(lines[:120]))
    receipt = turn()
    assert (receipt.rows_new, receipt.rows_quarantined) == (19, 0)


# ---- tiers that come and go ------------------------------------------------------------------------


def test_a_champion_whose_tier_vanished_is_replaced(turn, sample):
    edge, distilled, frontier = sample[1].read_text().split("[[tiers]]\n")[1:]
    (turn.folder / "tiers.toml").write_text(f"[[tiers]]\n{distilled}[[tiers]]\n{frontier}")
    receipt = turn(tiers=turn.folder / "tiers.toml")
    assert receipt.promoted and "asks edge, no longer in tiers.toml" in receipt.reason
    assert Router.load(turn.store.champion).route("Hello").tier in ("distilled", "frontier")


def test_a_new_tier_with_thirty_outcomes_does_not_take_over(turn, day, sample, first_turn):
    """It was right thirty times out of thirty, for nothing: too little to send requests there."""
    newcomer = '[[tiers]]\nname = "newcomer"\n[[tiers.offers]]\nmodel = "sim/new"\nprovider = "x"\nregion = "us"\n'
    newcomer += "context_window = 100000\nusd_per_mtok_input = 0.0001\nusd_per_mtok_output = 0.0001\n"
    (turn.folder / "tiers.toml").write_text(sample[1].read_text() + newcomer)
    log = pd.concat([day(0), day(1), day(2)])
    some = log.drop_duplicates("question_key")[::8][:30]
    some.assign(model="sim/new", correct=True, cost_usd=1e-9).to_parquet(turn.logs / "new.parquet")
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn(tiers=turn.folder / "tiers.toml")
    router = Router.load(turn.store.champion)
    if receipt.promoted:  # only where it leaves the newcomer alone wherever that was not tried
        decisions = router.route_batch(sorted(set(day(3).prompt)))
        assert sum(decision.tier == "newcomer" for decision in decisions) < 0.2 * len(decisions)
    else:
        assert receipt.champion == first_turn[1].champion
    assert_sound(turn.store)


def test_a_damaged_champion_is_replaced(turn, day, quick, challenger):
    day(1).to_parquet(turn.logs / "day1.parquet")
    (turn.store.champion / "router.onnx").write_bytes(b"")
    receipt = turn()
    assert receipt.promoted and "no earlier bundle of this store can be loaded" in receipt.reason
    assert receipt.champion == bundle_id(challenger) == bundle_id(turn.store.champion)
    assert "cannot be loaded" in turn.store.receipts()[-2]["reason"]


# ---- killed, full, twice, at the wrong time --------------------------------------------------------


def test_two_runs_at_once_are_one_run(turn, first_turn):
    with turn.store.hold():
        with pytest.raises(StoreBusyError):
            turn()
        with pytest.raises(StoreBusyError):
            rollback(turn.folder)
    assert bundle_id(turn.store.champion) == first_turn[1].champion


def test_a_clock_that_goes_backwards_changes_no_decision(turn, day, quick, challenger, monkeypatch):
    for module in ("run", "receipt"):
        monkeypatch.setattr(f"training.retrain.{module}.utc_now", lambda: "1970-01-01T00:00:00+00:00")
    old = day(1)
    old["timestamp"] -= pd.Timedelta(days=20_000)
    old.to_parquet(turn.logs / "day1.parquet")
    os.utime(turn.logs / "day1.parquet", (0, 0))
    assert turn().champion == bundle_id(challenger)
    assert_sound(turn.store)


KILLED = """
import os, sys, time, random
from pathlib import Path
sys.path.insert(0, {tests!r})
import training.retrain.run as line
from stores import CHEAPER_IS_BETTER, assert_sound, bundle_id, instead_of_training, pictures
from training.retrain.store import Store

STEPS, root, tiers, bundle = {steps!r}, Path({root!r}), Path({tiers!r}), Path({bundle!r})


def run(name, on_step=lambda step: None):
    place = root / name
    with pictures(are_drawn=False):
        line.retrain(place / "logs", tiers, place / "store", CHEAPER_IS_BETTER, tracking_uri="none", on_step=on_step)


def child(work, *arguments):
    '''In a process of its own, so that threads of one do not reach the next; its wait status.'''
    pid = os.fork()
    if pid == 0:
        try:
            work(*arguments)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dies_at(step):
    def on_step(done):
        if done == step:
            os.kill(os.getpid(), 9)
    run(step, on_step)


def recovers(step):
    run(step)
    sound(step, better)


def sound(name, *champions):
    store = Store(root / name / "store")
    assert_sound(store)
    assert bundle_id(store.champion) in champions, name


{work}
"""


def run_killed(work, tmp_path, first_turn, sample, challenger, names, day):
    """Run Python code that forks and kills, on one store for each name."""
    for name in names:
        shutil.copytree(first_turn[0], tmp_path / name, symlinks=True)
        day(1).to_parquet(tmp_path / name / "logs" / "day1.parquet")
    known = {
        "tests": str(Path(__file__).parent),
        "steps": STEPS,
        "root": str(tmp_path),
        "tiers": str(sample[1]),
        "bundle": str(challenger),
    }
    known["work"] = f"first, better = {first_turn[1].champion!r}, {bundle_id(challenger)!r}\n{work}"
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(**known)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def test_killed_at_any_step_there_is_a_champion_and_the_next_run_recovers(
    tmp_path, first_turn, sample, challenger, day
):
    work = """
line.train = instead_of_training(bundle)
for step in STEPS:
    assert wait(child(dies_at, step)) == -9
    assert wait(child(sound, step, *((first,) if step in STEPS[:3] else (better,)))) == 0
    assert wait(child(recovers, step)) == 0
"""
    run_killed(work, tmp_path, first_turn, sample, challenger, STEPS, day)


def test_killed_at_random_times_in_training_too(tmp_path, first_turn, sample, challenger, day):
    work = """
rng = random.Random(0)
for _ in range(3):
    pid = child(run, "store")
    time.sleep(rng.uniform(0.2, 2))
    os.kill(pid, 9)
    wait(pid)
    store = Store(root / "store" / "store")
    assert wait(child(assert_sound, store)) == 0
assert wait(child(run, "store")) == 0
assert wait(child(assert_sound, store)) == 0
assert len(store.recover().bundles) == 2
"""
    run_killed(work, tmp_path, first_turn, sample, challenger, ["store"], day)


# ---- MLflow ----------------------------------------------------------------------------------------


def test_the_registry_has_aliases_and_lineage_also_after_the_server_was_away(
    turn, day, quick, challenger, first_turn, empty_database
):
    from mlflow import MlflowClient

    shutil.copy(empty_database, turn.folder / "mlflow.db")
    day(1).to_parquet(turn.logs / "day1.parquet")
    away = turn(tracking_uri="http://127.0.0.1:9")
    assert away.promoted and "127.0.0.1:9 failed" in away.tracking
    assert turn(tracking_uri=turn.store.tracking_uri).tracking == "ok"

    client = MlflowClient(turn.store.tracking_uri)
    champion = client.get_model_version_by_alias("token-broker", "champion")
    assert champion.version == client.get_model_version_by_alias("token-broker", "challenger").version
    manifest = read_manifest(challenger)
    assert champion.tags["bundle_id"] == manifest.bundle_id
    assert champion.tags["data_digest"] == manifest.training["data_digest"]
    assert champion.tags["parent"] == first_turn[1].champion
    assert champion.tags["code_version"] == line.code_version()
    folder = Path(champion.source.removeprefix("file://"))
    assert (folder / "manifest.json").read_bytes() == (challenger / "manifest.json").read_bytes()
    assert len(client.search_model_versions("name='token-broker'")) == 2  # nothing lost, nothing twice

    rollback(turn.folder)
    assert client.get_model_version_by_alias("token-broker", "champion").tags["bundle_id"] == first_turn[1].champion


def test_an_artifact_store_that_cannot_be_written_holds_nothing_up_and_the_next_run_makes_up_for_it(
    turn, day, challenger, empty_database, unwritable, tmp_path, monkeypatch
):
    from mlflow import MlflowClient

    trained, train = [], instead_of_training(challenger)

    def counting(*arguments, **options):
        trained.append(arguments)
        return train(*arguments, **options)

    monkeypatch.setattr(line, "train", counting)
    uri = sqlite_uri(Path(shutil.copy(empty_database, tmp_path / "mlflow.db")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)
    experiment = client.create_experiment(EXPERIMENT, artifact_location=unwritable.as_uri())
    day(1).to_parquet(turn.logs / "day1.parquet")
    receipt = turn(tracking_uri=None)
    assert receipt.promoted and len(trained) == 1
    assert receipt.tracking.startswith(f"tracking at {uri} failed: ") and str(unwritable.parent) in receipt.tracking
    assert json.loads((turn.folder / "receipts.jsonl").read_text().splitlines()[-1])["tracking"] == receipt.tracking
    assert str(unwritable.parent) in turn(tracking_uri=None).tracking  # still away, still no matter

    unwritable.parent.unlink()
    assert turn(tracking_uri=None).tracking == "ok"
    champion = client.get_model_version_by_alias("token-broker", "champion")
    assert champion.tags["bundle_id"] == receipt.champion
    assert (Path(champion.source.removeprefix("file://")) / "manifest.json").exists()
    assert not (turn.folder / "mlflow.db").exists() and client.search_runs([experiment])


def test_files_that_the_run_of_training_lacks_are_added_to_it_and_a_run_of_another_mlflow_is_made_anew(
    turn, challenger, empty_database, tmp_path
):
    from mlflow import MlflowClient

    first, second = (
        sqlite_uri(Path(shutil.copy(empty_database, tmp_path / name))) for name in ("first.db", "second.db")
    )
    with tracked_run(first, "000001") as tracker:
        pass
    state = turn.store.recover()
    state = replace(
        state,
        bundles={"000001": replace(state.bundles["000001"], mlflow_run_id=tracker.run_id)},
        is_registry_current=False,
    )
    for uri, is_same in ((first, True), (second, False)):
        context = RetrainContext(store=turn.store, config=CHEAPER_IS_BETTER, uri=uri)
        assert register(state, context)[1] == "ok"
        version = MlflowClient(uri).get_model_version_by_alias("token-broker", "champion")
        assert (version.run_id == tracker.run_id) is is_same
        assert (Path(version.source.removeprefix("file://")) / "router.onnx").exists()


def test_a_server_that_never_answers_holds_nothing_up(turn, day, quick, silent_server):
    day(1).to_parquet(turn.logs / "day1.parquet")
    began = time.monotonic()
    receipt = turn(tracking_uri=silent_server)
    assert receipt.promoted and f"tracking at {silent_server} failed" in receipt.tracking
    assert time.monotonic() - began < 60


# ---- what people read ------------------------------------------------------------------------------


def test_a_receipt_never_names_the_champion_as_its_own_challenger(turn, day, quick, first_turn, capsys):
    def told(*words):
        assert main([str(word) for word in words]) == 0
        return capsys.readouterr().out.splitlines()

    first = first_turn[1].champion
    day(1).to_parquet(turn.logs / "day1.parquet")
    promoted = turn().champion
    back = told("rollback", "--store", turn.folder, "--tracking-uri", "none")
    assert back[0].startswith(f"rolled back from {promoted} to {first}; add new log files and run retrain again")
    assert back[1:] == [f"champion {first}; the last challenger, {promoted}, is not in use"]
    words = ["retrain", "--logs", turn.logs, "--tiers", turn.tiers, "--store", turn.folder, "--tracking-uri", "none"]
    flipped(pd.concat([day(2), day(3), day(4)]), "frontier").to_parquet(turn.logs / "day2.parquet")
    aside = told(*words, "--default-quality", "1.0", "--worth-usd", "1e-9", "--quality-margin", "1.0")
    assert str(turn.logs / "day2.parquet") in aside[0]
    assert shlex.split(aside[-1])[:2] == ["broker", "retrain"]
    assert shlex.split(aside[-1])[-2:] == ["--accept-change", f"frontier@{turn.logs / 'day2.parquet'}"]


def test_what_is_told_of_a_store_without_a_champion_or_with_a_new_one():
    nothing = Receipt(run=1, promoted=False, reason="no new row", champion=None, challenger=None)
    assert receipt_text(nothing) == "no new row\nno champion yet"
    new = replace(nothing, promoted=True, reason="better", champion="a1", challenger="a1", tracking="ok")
    assert receipt_text(new) == "promoted: better\nchampion a1"
    assert receipt_text(replace(new, tracking="tracking at x failed: y")).endswith(
        "\ntracking at x failed: y; the next run tries again"
    )


def test_the_command_of_a_run_repeats_it(tmp_path):
    config = RetrainConfig(
        training=TrainingConfig(encoder="minilm", default_quality=0.9, drop_unparsed=True, keep_examples=True),
        worth_usd=0.25,
        quality_margin=0.01,
        promotion_confidence=0.9,
        model_name="ours",
    )
    logs, tiers = ["my logs/*.parquet", tmp_path / "it's.jsonl"], tmp_path / "tiers.toml"
    command = command_of(logs, tiers, "store", config, "sqlite:///a b.db")
    broker, name, *words = shlex.split(command)
    parser = argparse.ArgumentParser()
    retrain_command.add_arguments(parser)
    options = parser.parse_args(words)
    assert (broker, name, options.logs) == ("broker", "retrain", [str(log) for log in logs])
    assert retrain_config(options) == config
    assert (options.tiers, str(options.store), options.tracking_uri) == (tiers, "store", "sqlite:///a b.db")
    plain = command_of("logs", "tiers.toml", "store", RetrainConfig(), None)
    assert plain == "broker retrain --logs logs --tiers tiers.toml --store store"
