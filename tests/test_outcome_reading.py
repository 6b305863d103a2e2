"""Laws of reading the outcome log: compacted or not, it says the same; what is said twice counts once."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pandas as pd
import pyarrow.parquet as pq
import pytest

from router.checks import Verdict
from router.cli import main
from router.decision import Decision
from router.errors import CheckError, OutcomeLogError
from router.outcomes import OutcomeLog, reading
from router.outcomes.export import export
from router.outcomes.feedback import RECORDED, REPEATED, WAITING, ContradictionError, Feedback, NotStoredError
from router.outcomes.label import Labels, label
from router.outcomes.queries import spend
from router.outcomes.reading import LogReader
from router.portfolio.tiers import Offer, Tier
from training.log.ingest import ingest

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
OFFERS = {
    tier: Offer(f"{tier}-1", f"p-{tier}", "x", 8192, usd, 2 * usd) for tier, usd in {"small": 1.0, "large": 9.0}.items()
}


def decide(tier="small", **more):
    fields = {
        "tier": tier, "offer": OFFERS[tier], "success": {"small": 0.5, "large": 0.9},
        "output_tokens": {"small": 10.0, "large": 20.0}, "cost_usd": {"small": 0.001, "large": 0.01},
        "reason": "cheapest of 2 tiers", "context_tokens": 5.0, "quality": 0.98, "worth_usd": 0.0, "slack": 0.1,
        "promised": True, "fallback": False, "bundle_id": "bundle", "price_table_id": "prices",
        "decision_id": uuid4().hex, "request_id": None, "propensity": 0.9, "familiarity": 1.0,
    }  # fmt: skip
    return Decision(**{**fields, **more})


@pytest.fixture
def log(tmp_path):
    return OutcomeLog(tmp_path / "log", keep_prompts=True)


@pytest.fixture
def reader(tmp_path):
    return LogReader(tmp_path / "log")


def answered(log, tier="small", when=NOW, usd=0.5, **more):
    decision = decide(tier)
    log.decided(decision, f"prompt of {decision.decision_id}", timestamp=when)
    log.outcome(decision.decision_id, cost_usd=usd, input_tokens=7, output_tokens=9, ended="complete", **more)
    return decision


def seen(found):
    return [{name: value for name, value in row.items() if value is not None} for row in found.rows]


# ---- one decision ----------------------------------------------------------------------------------


def test_a_decision_reads_the_same_before_and_after_compaction_and_in_between(log, reader):
    others = [answered(log) for _ in range(3)]
    decision, attempt_id = decide("large"), uuid4().hex
    log.decided(decision, 'a "quoted" prompt\nof two lines', timestamp=NOW)
    log.attempt(decision, ended="failed", model="small-1", provider="p-small", tier="small", latency_ms=3)
    who = {"model": "small-1", "provider": "p-small", "tier": "small"}
    log.attempt(
        decision, ended="complete", attempt_id=attempt_id, prompt="p", checks={"tests": Verdict(0.5, 0.1)}, **who
    )
    log.outcome(decision.decision_id, ended="complete", cost_usd=0.25, **who)
    log.outcome(attempt_id, correct=False)
    before, before_attempt = seen(reader.find(decision.decision_id)), seen(reader.find(attempt_id))
    assert [row.get("attempt_id") is None for row in before] == [True, False, False]
    own = before[0]
    assert (own["tier"], own["cost_usd"], own["timestamp"]) == ("small", 0.25, NOW) and "propensity" not in own
    assert [row["correct"] for row in before if "correct" in row] == [0.0]
    assert before_attempt == [row for row in before if row.get("attempt_id") == attempt_id]
    log.compact()
    assert seen(reader.find(decision.decision_id)) == before and seen(reader.find(attempt_id)) == before_attempt
    log.outcome(decision.decision_id, correct=True)  # still in the journal
    assert seen(reader.find(decision.decision_id))[0] == {**own, "correct": 1.0}
    log.compact()
    assert seen(reader.find(decision.decision_id))[0] == {**own, "correct": 1.0}
    assert len(seen(reader.find(others[0].decision_id))) == 1


def test_what_is_not_there_is_empty_and_reading_makes_nothing(tmp_path, reader):
    found = reader.find("0" * 32)
    assert found.rows == [] and found.waiting == {} and len(reader.table()) == 0
    assert spend(reader, ["tier"]) == [] and not (tmp_path / "log").exists()


def test_an_outcome_that_waits_is_found_in_the_journal_and_in_the_state(log, reader):
    log.outcome("later", correct=0.5)
    assert reader.find("later").waiting == {"correct": 0.5}
    log.compact()
    assert reader.find("later").waiting == {"correct": 0.5} and reader.find("late").waiting == {}
    log.decided(decide(decision_id="later"), "prompt")
    found = reader.find("later")
    assert found.rows[0]["correct"] == 0.5 and found.waiting == {}


def test_lines_and_files_that_are_damaged_are_left_out_and_said(log, reader, tmp_path, caplog):
    decision = answered(log)
    log.close()
    [journal] = (tmp_path / "log" / ".journal").glob("*.jsonl")
    journal.write_bytes(journal.read_bytes() + b'{"broken\n{"at": 1, "cut sho')
    assert len(reader.table()) == 1 and "cannot be read and are left out" in caplog.text
    log.compact()
    (tmp_path / "log" / "day=2026-11-24" / "attempts-0.parquet").write_bytes(b"PAR1 not really")
    assert len(reader.table()) == 1 and len(reader.find(decision.decision_id).rows) == 1
    assert "is damaged and left out" in caplog.text


# ---- all of them -----------------------------------------------------------------------------------


def test_the_table_is_what_compaction_makes_of_the_log(log, reader, tmp_path):
    """Twice over: with part of it compacted, rows and outcomes both."""
    for _ in range(2):
        early = [answered(log, "large") for _ in range(5)]
        log.compact()
        for decision in early[:3]:
            log.outcome(decision.decision_id, correct=True, checks={"tests": Verdict(1.0, 0.01)})
        answered(log)
        before = reader.table().to_pandas().set_index("decision_id").sort_index()
        log.compact()
        files = (tmp_path / "log").glob("day=*/*.parquet")
        after = pd.concat([pq.ParquetFile(path).read().to_pandas() for path in files]).set_index("decision_id")
        pd.testing.assert_frame_equal(before, after.sort_index()[before.columns], check_dtype=False)
        assert reader.table().to_pandas().set_index("decision_id").sort_index().equals(before)


def test_times_bound_the_table_to_the_microsecond(log, reader):
    for shift in range(-2, 3):
        answered(log, when=NOW.replace(hour=0) + timedelta(microseconds=shift))
    log.compact()
    midnight = NOW.replace(hour=0)
    assert len(reader.table(since=midnight)) == 3 and len(reader.table(until=midnight)) == 2
    assert len(reader.table(since=midnight, until=midnight + timedelta(microseconds=1))) == 1
    assert reader.table(columns=["cost_usd"]).column_names[-1] != "decision"


def test_reading_while_others_write_and_compact_sees_every_row_once(log, reader):
    known, stop = [answered(log).decision_id for _ in range(20)], threading.Event()

    def write_and_compact():
        mine = OutcomeLog(log._files._root)
        for _ in range(12):  # Each round makes one file more for the reader.
            if stop.is_set():
                return
            known.append(answered(mine).decision_id)
            mine.outcome(known[0], correct=True)
            mine.compact()

    threads = [threading.Thread(target=write_and_compact) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            sure = list(known)
            ids = reader.table(columns=["cost_usd"])["decision_id"].to_pylist()
            assert len(ids) == len(set(ids)) and set(sure) <= set(ids)
            assert all(len(reader.find(each).rows) == 1 for each in (sure[0], sure[-1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_decisions_are_found_however_few_ids_are_kept_in_memory(log, reader, monkeypatch):
    monkeypatch.setattr(reading, "_MOST_IDS", 2)
    ids = []
    for number in range(4):
        ids += [answered(log, when=NOW - timedelta(days=number)).decision_id for _ in range(2)]
        log.compact()
    for decision_id in [*ids, *reversed(ids)]:
        assert len(reader.find(decision_id).rows) == 1
    assert reader.find("0" * 32).rows == [] and len(reader._ids) == 1


def test_a_log_in_an_object_store_reads_the_same():
    url = f"memory://{uuid4().hex}"
    log, reader = OutcomeLog(url), LogReader(url)
    assert reader.find("x").rows == [] and reader.pending_bytes() == 0
    decision_id = answered(log).decision_id
    assert Feedback(log, reader).take(decision_id, 0.5).status == RECORDED
    before = seen(reader.find(decision_id))
    assert before[0]["correct"] == 0.5
    log.compact()
    assert seen(reader.find(decision_id)) == before and len(reader.table()) == 1


def test_what_is_not_compacted_yet_is_counted(log, reader, tmp_path):
    assert reader.pending_bytes() == 0
    for _ in range(2):
        before = reader.pending_bytes()
        answered(log)
        assert reader.pending_bytes() > before + 500
    log.compact()
    assert reader.pending_bytes() == 0


# ---- what was spent --------------------------------------------------------------------------------


def test_spend_is_the_sum_of_all_attempts_and_checks_by_group(log, reader):
    yesterday = NOW - timedelta(days=1)
    for usd, correct in ((0.5, True), (0.25, False), (0.125, None)):
        answered(log, "small", usd=usd, correct=correct)
    large = answered(log, "large", usd=2.0, checks={"tests": Verdict(1.0, 0.5)}, tokens_estimated=True)
    log.attempt(large, ended="failed", model="small-1", provider="p-small", tier="small", cost_usd=0.0625)
    answered(log, "large", when=yesterday, usd=8.0)
    lost = decide("large")
    log.decided(lost, "never answered", timestamp=NOW)
    for _ in range(2):
        large_group, small_group = spend(reader, ["tier"], since=NOW - timedelta(hours=12))
        assert large_group.group == {"tier": "large"} and small_group.group == {"tier": "small"}
        assert (large_group.usd, large_group.requests, large_group.attempts) == (2.5, 2, 2)
        assert (large_group.estimated, large_group.unpriced, large_group.correct) == (1, 0, None)
        assert small_group.usd == 0.5 + 0.25 + 0.125 + 0.0625
        assert (small_group.requests, small_group.attempts, small_group.failed) == (3, 4, 1)
        assert (small_group.judged, small_group.correct, small_group.input_tokens) == (2, 0.5, 21)
        [all_of_it] = spend(reader)
        assert all_of_it.usd == pytest.approx(2.5 + 0.9375 + 8.0) and all_of_it.group == {}
        days = {group.group["day"]: group.usd for group in spend(reader, ["day"], until=NOW - timedelta(hours=1))}
        assert days == {"2026-11-23": 8.0}
        log.compact()
    with pytest.raises(OutcomeLogError, match="cannot group by prompt"):
        spend(reader, ["prompt"])


# ---- the way back ----------------------------------------------------------------------------------


@pytest.fixture
def feedback(log, reader):
    return Feedback(log, reader)


@pytest.mark.parametrize("compacted", [False, True])
def test_an_outcome_counts_once_however_often_it_is_told(feedback, log, reader, compacted):
    decision_id = answered(log).decision_id
    assert feedback.take(decision_id, 1.0, judged_by="me").status == RECORDED
    if compacted:
        log.compact()
    assert feedback.take(decision_id, 1.0, judged_by="me").status == REPEATED
    assert feedback.take(decision_id, 1.0).status == REPEATED
    with pytest.raises(ContradictionError) as refusal:
        feedback.take(decision_id, 0.0)
    assert (refusal.value.found, refusal.value.given) == (1.0, 0.0)
    assert feedback.take(decision_id, 0.0, replace=True).status == RECORDED
    assert feedback.take(decision_id, 0.0).status == REPEATED
    assert reader.find(decision_id).rows[0]["correct"] == 0.0
    assert log.compact().outcomes == 1


def test_an_outcome_of_another_process_is_seen(feedback, log, tmp_path):
    decision_id = answered(log).decision_id
    code = "import sys; from router.outcomes import OutcomeLog; OutcomeLog(sys.argv[1]).outcome(sys.argv[2], correct=1)"
    subprocess.run([sys.executable, "-c", code, tmp_path / "log", decision_id], check=True)
    with pytest.raises(ContradictionError):
        feedback.take(decision_id, 0.5)


def test_an_outcome_may_come_before_its_decision(feedback, log, reader):
    decision = decide()
    assert feedback.take(decision.decision_id, 0.75).status == WAITING
    log.compact()
    assert feedback.take(decision.decision_id, 0.75).status == WAITING
    with pytest.raises(ContradictionError):
        feedback.take(decision.decision_id, 0.5)
    log.decided(decision, "prompt")
    assert feedback.take(decision.decision_id, 0.75).status == REPEATED
    log.compact()
    assert reader.find(decision.decision_id).rows[0]["correct"] == 0.75


def test_what_cannot_be_stored_is_not_acknowledged(unwritable):
    log = OutcomeLog(unwritable)
    with pytest.raises((NotStoredError, NotADirectoryError)):
        Feedback(log, LogReader(unwritable)).take("0" * 32, 1.0)


# ---- checks over answers ---------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """A log that keeps answers: two that are dates, one of which somebody has judged, one that is none, one cut off."""
    log = OutcomeLog(tmp_path / "log", keep_answers=True)
    ids = [answered(log, answer_text=text).decision_id for text in ("2026-11-26", "2026-11-27", "soon")]
    log.outcome(ids[1], correct=False, judged_by="me")
    log.outcome(answered(log, answer_text="2026-11-28").decision_id, ended="cut")
    return log, ids


def test_a_check_looks_once_at_each_whole_answer_and_leaves_what_people_said(kept, reader, tmp_path, capsys):
    log, ids = kept
    arguments = ["outcomes", "label", "--outcomes", str(tmp_path / "log"), "--json", "--decides"]
    arguments += ["--check", r"date=pattern:^\d{4}-\d{2}-\d{2}$"]
    assert main(arguments) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["looked_at"], done["passed"], done["troubled"], done["outcomes"]) == (3, 2, 0, 2)
    log.compact()
    rows = [reader.find(each).rows[0] for each in ids]
    assert [row["check_date"] for row in rows] == [1, 1, 0]
    assert [(row["correct"], row["judged_by"]) for row in rows] == [(1, "check date"), (0, "me"), (0, "check date")]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["looked_at"] == 0


def test_a_check_alone_decides_nothing_and_one_that_cannot_look_is_counted(kept, reader):
    log, ids = kept

    def check(prompt, answer):
        if answer == "soon":
            raise CheckError("no")
        return 0.25

    assert label(reader, log, "mine", check) == Labels(looked_at=2, passed=0, troubled=1, outcomes=0)
    assert reader.find(ids[0]).rows[0]["correct"] is None and reader.find(ids[0]).rows[0]["check_mine"] == 0.25


def test_an_answer_is_kept_only_where_the_log_keeps_answers(log, reader, tmp_path):
    answered(log, answer_text="secret words")
    log.compact()
    for path in (tmp_path / "log").rglob("*.*"):
        assert path.is_dir() or b"secret words" not in path.read_bytes()
    with pytest.raises(OutcomeLogError, match="no answer was kept"):
        label(reader, log, "mine", lambda prompt, answer: True)


@pytest.mark.parametrize("check", ["date", "date=regex:x", "a b=pattern:x", "date=pattern:(", "json=schema:nowhere"])
def test_a_check_that_is_none_is_refused(check, capsys):
    assert main(["outcomes", "label", "--check", check]) in (1, 2)
    assert capsys.readouterr().err


# ---- the command -----------------------------------------------------------------------------------


@pytest.fixture
def folder(log, tmp_path):
    answered(log, "small", when=datetime.now(UTC), correct=True)
    answered(log, "large", when=datetime.now(UTC), usd=2.0, correct=False)
    return str(tmp_path / "log")


def test_show_says_what_was_spent_and_what_a_decision_was(folder, reader, capsys):
    assert main(["outcomes", "show", "--outcomes", folder, "--by", "tier", "--since", "1h", "--json"]) == 0
    large, small = json.loads(capsys.readouterr().out)
    assert (large["group"], large["usd"], small["correct"]) == ({"tier": "large"}, 2.0, 1.0)
    assert main(["outcomes", "show", "--outcomes", folder, "--by", "tier", "--until", "yesterday"]) == 0
    assert capsys.readouterr().out == "no decisions in that time\n"
    assert main(["outcomes", "show", "--outcomes", folder, "--by", "tier"]) == 0
    assert "in all 2.500000 USD" in capsys.readouterr().out
    decision_id = reader.table()["decision_id"][0].as_py()
    assert main(["outcomes", "show", decision_id, "--outcomes", folder]) == 0
    assert "cheapest of 2 tiers" in capsys.readouterr().out
    assert main(["outcomes", "show", decision_id, "--outcomes", folder, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["decision_id"] == decision_id and row["decision"]["reason"] == "cheapest of 2 tiers"
    assert main(["outcomes", "show", "unheard-of", "--outcomes", folder]) == 1
    assert main(["outcomes", "show", decision_id, "--by", "tier", "--outcomes", folder]) == 2


@pytest.mark.parametrize("time", ["soon", "2026-13-01", "99999999999d"])
def test_a_time_that_is_none_is_refused(time, capsys):
    with pytest.raises(SystemExit) as leave:
        main(["outcomes", "show", "--since", time])
    assert leave.value.code == 2 and "yesterday" in capsys.readouterr().err


def test_compact_makes_the_log_ready_for_training(folder, capsys):
    assert main(["outcomes", "compact", "--outcomes", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"attempts": 2, "outcomes": 2, "orphans": 0, "unreadable": 0}


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_what_is_exported_trains_as_the_log_does(folder, tmp_path, ending, capsys):
    out = tmp_path / f"export.{ending}"
    assert main(["outcomes", "export", "--outcomes", folder, "--out", str(out)]) == 0
    assert "2 rows" in capsys.readouterr().out
    log = ingest(out, [Tier(name=tier, offers=(offer,)) for tier, offer in OFFERS.items()])
    assert log.summary.n_prompts == 2 and not log.summary.quarantined


def test_an_export_is_whole_or_not_there(reader, tmp_path):
    with pytest.raises(OutcomeLogError, match=r"ends in \.xlsx"):
        export(reader, tmp_path / "x.xlsx")
    with pytest.raises(OSError):
        export(reader, tmp_path / "nowhere" / "x.csv")
