"""Laws of the outcome log: every decision taken is one row, joined with its outcome, whatever dies in between."""

import json
import os
import random
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import count
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.decision import Decision
from router.files import UNFINISHED
from router.outcomes import Compaction, OutcomeLog, compaction, storage
from router.portfolio.tiers import parse_tiers
from training.log.ingest import ingest

TIERS = parse_tiers("""
[[tiers]]
name = "small"
offers = [{ model = "s1", provider = "east", region = "x", context_window = 2000000, usd_per_mtok_input = 1, usd_per_mtok_output = 2 }]
[[tiers]]
name = "large"
offers = [{ model = "l1", provider = "west", region = "x", context_window = 2000000, usd_per_mtok_input = 10, usd_per_mtok_output = 20 }]
""")  # noqa: E501
SMALL, LARGE = TIERS


def decide(tier=SMALL, **more):
    fields = {
        "tier": tier.name, "offer": tier.offers[0], "success": {"small": 0.5, "large": 0.9},
        "output_tokens": {"small": 10.0, "large": 20.0}, "cost_usd": {"small": 0.001, "large": 0.01},
        "reason": "cheapest of 2 tiers", "context_tokens": 5.0, "quality": 0.98, "worth_usd": 0.0, "slack": 0.1,
        "promised": True, "fallback": False, "bundle_id": "bundle", "price_table_id": "prices",
        "decision_id": uuid4().hex, "request_id": None, "propensity": 0.9,
        "familiarity": 1.0,
    }  # fmt: skip
    return Decision(**{**fields, **more})


def partitions(folder):
    return sorted(folder.glob("day=*/attempts-*.parquet"))


def rows(folder):
    """All rows of the log by decision_id; none may be there twice."""
    found = [row for file in partitions(folder) for row in pq.ParquetFile(file).read().to_pylist()]
    by_id = {row["decision_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


def compacted(folder):
    OutcomeLog(folder).compact()
    return rows(folder)


HEADER = """
import os, sys
from uuid import uuid4
from router.decision import Decision
from router.outcomes import OutcomeLog

log = OutcomeLog(sys.argv[1])

def decide():
    dials = 5.0, 0.98, 0.0, 0.1, True, False
    return Decision("small", None, {}, {}, {}, "", *dials, "", "", uuid4().hex, None, 1.0, 1.0)
"""


def run(script, *arguments):
    """A process of its own, with `decide` and with `log` at the folder that is its first argument."""
    command = [sys.executable, "-c", HEADER + script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# ---- decision and outcome meet ------------------------------------------------------------------------------


def test_the_log_is_ingested_as_it_is(tmp_path):
    log = OutcomeLog(tmp_path, keep_prompts=True)
    asked = [("p", SMALL, False, 11), ("p", LARGE, True, 22), ("q", SMALL, True, 33)]
    for prompt, tier, correct, output_tokens in asked:
        decision = decide(tier)
        log.decided(decision, prompt)
        log.outcome(decision.decision_id, input_tokens=7, output_tokens=output_tokens, cost_usd=0.5, latency_ms=80.0)
        log.outcome(decision.decision_id, correct=correct)
    log.decided(decide(LARGE), messages=[{"role": "user", "content": "not judged"}])
    log.compact()

    table = ingest(tmp_path, TIERS)
    cells = {prompt: index for index, prompt in enumerate(table.prompts)}
    assert set(cells) == {"p", "q", "not judged"}
    assert table.correct[cells["p"]].tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(table.correct[cells["q"]], [1.0, np.nan])
    np.testing.assert_array_equal(table.output_tokens[cells["p"]], [11, 22])
    np.testing.assert_array_equal(table.cost_usd[cells["q"]], [0.5, np.nan])
    assert (table.summary.n_rows, table.summary.unjudged, table.summary.quarantined) == (4, 1, {})
    assert table.first_timestamp.date() == datetime.now(UTC).date()


def test_an_answer_given_again_teaches_no_cost_and_an_estimate_no_ratio(tmp_path):
    """Both still say whether the answer was right; neither is dropped."""
    log = OutcomeLog(tmp_path, keep_prompts=True)
    told = {
        "again": {"cache_hit": True, "cost_usd": 0.0, "input_tokens": 7, "output_tokens": 9},
        "estimated": {"tokens_estimated": True, "cost_usd": 0.5, "input_tokens": 7, "output_tokens": 9},
        "counted": {"tokens_estimated": False, "cost_usd": 0.5, "input_tokens": 7, "output_tokens": 9},
    }
    for tier, prompt, outcome in [*((SMALL, *one) for one in told.items()), (LARGE, "counted", told["counted"])]:
        decision = decide(tier)
        log.decided(decision, prompt)
        log.outcome(decision.decision_id, correct=True, **outcome)
    assert {row["prompt"]: row["cache_hit"] for row in compacted(tmp_path).values()}["again"]
    table = ingest(tmp_path, TIERS)
    cells = {prompt: (index, 0) for index, prompt in enumerate(table.prompts)}
    assert table.summary.quarantined == {} and all(table.correct[cell] == 1 for cell in cells.values())
    known = {
        prompt: [name for name in ("cost_usd", "input_tokens", "output_tokens") if getattr(table, name)[cell] > 0]
        for prompt, cell in cells.items()
    }
    assert known["counted"] == ["cost_usd", "input_tokens", "output_tokens"]
    assert known["estimated"] == ["cost_usd", "output_tokens"]
    assert known["again"] == []


def test_a_log_of_rows_without_the_newer_columns_takes_outcomes_with_them(tmp_path):
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    log.compact()
    [file] = partitions(tmp_path)
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["cache_hit", "cached_input_tokens"]), file)
    log.outcome(decision.decision_id, cached_input_tokens=5, cache_hit=False)
    row = compacted(tmp_path)[decision.decision_id]
    assert (row["cached_input_tokens"], row["cache_hit"], row["tokens_estimated"]) == (5, False, None)


def test_a_row_names_its_decision(tmp_path):
    decision = decide(LARGE, request_id="r-1", propensity=0.125)
    with OutcomeLog(tmp_path) as log:
        log.decided(decision, "What is 17 * 23?")
    row = compacted(tmp_path)[decision.decision_id]
    assert json.loads(row["decision"]) == json.loads(decision.to_json())
    for name in ("request_id", "propensity", "tier", "bundle_id", "price_table_id"):
        assert row[name] == getattr(decision, name)
    assert (row["model"], row["provider"]) == (decision.offer.model, decision.offer.provider)
    assert row["correct"] is None


def test_an_outcome_finds_its_decision_whenever_it_comes(tmp_path):
    """Before it, with it, after a compaction, from another writer: the same row."""
    first = decide()
    judge = OutcomeLog(tmp_path)
    judge.outcome(first.decision_id, correct=1, model="l1", provider="west")
    assert judge.compact() == Compaction(orphans=1)
    log = OutcomeLog(tmp_path)
    log.decided(first, "p")
    assert log.compact() == Compaction(attempts=1, outcomes=1)
    judge.outcome(first.decision_id, cost_usd=0.25)
    assert log.compact() == Compaction(outcomes=1)
    row = rows(tmp_path)[first.decision_id]
    assert (row["correct"], row["cost_usd"], row["model"], row["provider"]) == (1.0, 0.25, "l1", "west")


def attempt(log, decision, ended="failed", **outcome):
    log.attempt(decision, ended=ended, model="s1", provider="east", tier="small", **outcome)


@pytest.mark.parametrize("compact_between", [False, True])
def test_an_attempt_without_an_answer_is_a_row_beside_that_of_its_decision(tmp_path, compact_between):
    log, decision = OutcomeLog(tmp_path, keep_prompts=True), decide(LARGE, request_id="r-1")
    attempt(log, decision, latency_ms=3000.0)
    log.decided(decision, "p")
    attempt(log, decision, "cut", output_tokens=3, tokens_estimated=True, cost_usd=0.5)
    if compact_between:
        assert log.compact() == Compaction(attempts=3)
    log.outcome(decision.decision_id, correct=True, ended="complete", output_tokens=9)
    log.compact()
    found = [row for file in partitions(tmp_path) for row in pq.ParquetFile(file).read().to_pylist()]
    [own] = [row for row in found if row["attempt_id"] is None]
    failed, cut = sorted((row for row in found if row["attempt_id"]), key=lambda row: row["ended"] == "cut")
    assert (own["ended"], own["correct"], own["model"], own["prompt"]) == ("complete", 1.0, "l1", "p")
    for row in (failed, cut):
        assert (row["decision_id"], row["request_id"], row["tier"]) == (decision.decision_id, "r-1", "small")
        assert {row[name] for name in ("prompt", "decision", "propensity", "correct")} == {None}
    assert (failed["ended"], failed["latency_ms"], failed["output_tokens"]) == ("failed", 3000.0, None)
    assert (cut["ended"], cut["output_tokens"], cut["tokens_estimated"], cut["cost_usd"]) == ("cut", 3, True, 0.5)
    assert log.compact() == Compaction() and failed["attempt_id"] != cut["attempt_id"]


def test_training_learns_from_the_answer_and_not_from_the_attempts_before_it(tmp_path):
    log = OutcomeLog(tmp_path, keep_prompts=True)
    for tier, correct in ((SMALL, False), (LARGE, True)):
        decision = decide(tier)
        log.decided(decision, "p")
        attempt(log, decision, output_tokens=1000)
        log.outcome(decision.decision_id, correct=correct, ended="complete", output_tokens=5)
    left = decide()
    log.decided(left, "q")
    log.outcome(left.decision_id, correct=False, ended="left", output_tokens=1)
    log.compact()
    table = ingest(tmp_path, TIERS)
    assert (table.prompts, table.correct.tolist(), table.output_tokens.tolist()) == (["p"], [[0.0, 1.0]], [[5.0, 5.0]])
    assert (table.summary.incomplete, table.summary.quarantined, table.summary.repeated) == (3, {}, 0)


def test_a_killed_compaction_doubles_no_attempt(tmp_path, monkeypatch):
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    attempt(log, decision)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(storage.Folder, "delete", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        log.close()
        log.compact()
    (tmp_path / ".journal" / "state.json").unlink()
    log.compact()
    assert sum(len(pq.ParquetFile(file).read()) for file in partitions(tmp_path)) == 2


def test_of_two_outcomes_the_later_holds_field_by_field(tmp_path):
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    log.outcome(decision.decision_id, correct=True, output_tokens=10)
    log.outcome(decision.decision_id, correct=False)
    assert compacted(tmp_path)[decision.decision_id]["correct"] == 0.0
    log.outcome(decision.decision_id, correct=0.5)
    row = compacted(tmp_path)[decision.decision_id]
    assert (row["correct"], row["output_tokens"]) == (0.5, 10)


def test_later_means_later_when_the_clock_goes_backwards(tmp_path, monkeypatch):
    clock = count(10**18, -(10**12))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    log.outcome(decision.decision_id, correct=True)
    log.outcome(decision.decision_id, correct=False)
    assert compacted(tmp_path)[decision.decision_id]["correct"] == 0.0


def test_outcomes_without_a_decision_are_kept_a_week_and_then_dropped(tmp_path, monkeypatch):
    log = OutcomeLog(tmp_path)
    log.outcome("unheard-of", correct=True)
    assert [log.compact().orphans, log.compact().orphans] == [1, 1]
    assert partitions(tmp_path) == []
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 8 * 24 * 3600 * 10**9)
    log.outcome("another", correct=True)
    assert log.compact().orphans == 1


def test_the_day_is_that_of_the_decision_in_utc(tmp_path):
    log = OutcomeLog(tmp_path)
    east = timezone(timedelta(hours=8))
    log.decided(decide(), "p", timestamp=datetime(2026, 1, 1, 7, 59, tzinfo=east))
    log.decided(decide(), "p", timestamp=datetime(2026, 1, 1, 8, 0, tzinfo=east))
    log.decided(decide(), "p", timestamp=datetime(2024, 2, 29))
    found = {row["timestamp"] for row in compacted(tmp_path).values()}
    assert [file.parent.name for file in partitions(tmp_path)] == ["day=2024-02-29", "day=2025-12-31", "day=2026-01-01"]
    assert datetime(2025, 12, 31, 23, 59, tzinfo=UTC) in found


# ---- what is stored -----------------------------------------------------------------------------------------


def all_text(folder):
    """Every byte on disk, and every value of every Parquet file, which compresses them."""
    yield from (file.read_bytes() for file in folder.rglob("*") if file.is_file())
    yield from (str(pq.ParquetFile(file).read().to_pylist()).encode() for file in partitions(folder))


@pytest.mark.parametrize("keep_prompts", [False, True])
def test_prompts_are_on_disk_only_where_kept(tmp_path, keep_prompts):
    log, secret = OutcomeLog(tmp_path, keep_prompts=keep_prompts), "my password is swordfish"
    log.decided(decide(), secret)
    log.decided(decide(), messages=[{"role": "user", "content": secret}])
    log.decided(decide(), [secret])
    before = any(b"swordfish" in text for text in all_text(tmp_path))
    log.compact()
    after = any(b"swordfish" in text for text in all_text(tmp_path))
    assert (before, after) == (keep_prompts, keep_prompts)


def test_a_log_without_text_is_trained_on_with_texts_beside(tmp_path):
    log = OutcomeLog(tmp_path)
    for tier, correct in ((SMALL, False), (LARGE, True)):
        decision = decide(tier)
        log.decided(decision, "p")
        log.outcome(decision.decision_id, correct=correct)
    log.compact()
    [prompt_id] = {row["prompt_id"] for row in rows(tmp_path).values()}
    texts = pa.table({"prompt_id": [prompt_id], "prompt": ["p"]})
    pq.write_table(texts, partitions(tmp_path)[0].with_name("prompts.parquet"))
    table = ingest(tmp_path, TIERS)
    assert (table.prompts, table.prompt_ids.tolist(), table.correct.tolist()) == (["p"], [prompt_id], [[0.0, 1.0]])
    OutcomeLog(tmp_path).outcome(decision.decision_id, correct=False)
    assert compacted(tmp_path)[decision.decision_id]["correct"] == 0.0


@given(text=st.text(st.characters(), min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_text_comes_back(tmp_path_factory, text):
    """Line ends and separators, other scripts, lone surrogates (as the router replaces them)."""
    folder = tmp_path_factory.mktemp("log")
    decision = decide(request_id=text)
    with OutcomeLog(folder, keep_prompts=True) as log:
        log.decided(decision, text)
        log.outcome(decision.decision_id, provider=text)
    row = compacted(folder)[decision.decision_id]
    expected = text.encode("utf-8", "replace").decode()
    assert (row["prompt"], row["request_id"], row["provider"]) == (expected, expected, expected)


# ---- nothing breaks serving ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome", [{"correct": 1.5}, {"correct": float("nan")}, {"cost_usd": -1}, {"latency_ms": "slow"}, {"model": 3},
                {"output_tokens": 10**400}, {"input_tokens": [1]}, {"cached_input_tokens": -1}, {"cache_hit": 1},
                {"tokens_estimated": "yes"}, {"ended": "well"}, {"ended": 1}]
)  # fmt: skip
def test_a_value_out_of_range_is_refused_and_counted(tmp_path, caplog, outcome):
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    log.outcome(decision.decision_id, **outcome)
    assert log.n_lost == 1
    assert "an outcome is not in the outcome log" in caplog.text
    assert log.compact() == Compaction(attempts=1)


def test_what_cannot_be_stored_is_counted_and_said_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    log = OutcomeLog(tmp_path / "file" / "log")
    for _ in range(3):
        log.decided(decide(), "p")
        log.outcome("x", correct=True)
    assert log.n_lost == 6
    assert len(caplog.records) == 1


def test_a_full_disk_costs_only_the_lines_that_did_not_fit(tmp_path):
    """A line that was cut short is never glued to the next one."""
    script = """
import logging, resource
logging.disable()
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for number in range(50):
    lost, decision = log.n_lost, decide()
    log.decided(decision, "p")
    print(decision.decision_id if log.n_lost == lost else "")
"""
    taken = run(script, tmp_path).communicate()[0].split("\n")[:50]
    assert 0 < taken.count("") < 10
    assert set(compacted(tmp_path)) == {decision_id for decision_id in taken if decision_id}


def test_a_journal_needs_no_extra_and_compaction_names_it(tmp_path, monkeypatch):
    code = "import router.outcomes.log, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pyarrow", "fsspec", "pandas"} & set(loaded)
    log = OutcomeLog(tmp_path)
    log.decided(decide(), "p")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"token-broker\[outcomes\]"):
        log.compact()
    assert log.n_lost == 0


# ---- many writers -------------------------------------------------------------------------------------------

WRITE = """
for number in range(int(sys.argv[2])):
    decision = decide()
    log.decided(decision, f"prompt {number}")
    log.outcome(decision.decision_id, correct=number % 2, output_tokens=number)
    print(decision.decision_id, flush=True)
"""


def test_processes_that_write_and_compact_at_once_lose_and_double_nothing(tmp_path):
    writers = [run(WRITE, tmp_path, 400) for _ in range(2)]
    compactors = [run("for _ in range(12): log.compact()", tmp_path) for _ in range(2)]
    taken = [decision_id.strip() for writer in writers for decision_id in writer.stdout]
    for process in (*writers, *compactors):
        process.communicate()
        assert process.returncode == 0
    found = compacted(tmp_path)
    assert len(taken) == 800
    assert set(found) == set(taken)
    assert all(row["correct"] == row["output_tokens"] % 2 for row in found.values())


def test_threads_share_a_log(tmp_path):
    log, decisions = OutcomeLog(tmp_path), [decide() for _ in range(400)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda decision: log.decided(decision, "p"), decisions))
        list(pool.map(lambda decision: log.outcome(decision.decision_id, correct=True), decisions))
    assert log.compact() == Compaction(attempts=400, outcomes=400)


def test_a_fork_writes_a_journal_of_its_own(tmp_path):
    """And leaves that of its parent alone, even when it is done with the log."""
    script = """
log.decided(decide(), "before")
if os.fork() == 0:
    log.decided(decide(), "in the fork")
    del log
    os._exit(0)
os.wait()
OutcomeLog(sys.argv[1]).compact()
log.decided(decide(), "after")
"""
    run(script, tmp_path).communicate()
    assert len(compacted(tmp_path)) == 3


def test_a_fork_keeps_no_journal_open_that_its_parent_has_ended(tmp_path):
    script = """
log.decided(decide(), "p")
end, other = os.pipe()
if os.fork() == 0:
    os.close(other)
    os.read(end, 1)
    os._exit(0)
log.close()
OutcomeLog(sys.argv[1]).compact()
print(*os.listdir(sys.argv[1] + "/.journal"))
"""
    assert sorted(run(script, tmp_path).communicate()[0].split()) == ["lock", "state.json"]


def test_a_journal_goes_when_its_writer_has_and_not_before(tmp_path):
    log = OutcomeLog(tmp_path)
    log.decided(decide(), "p")
    [journal] = (tmp_path / ".journal").glob("*.jsonl")
    OutcomeLog(tmp_path).compact()
    assert journal.exists()
    log.decided(decide(), "p")
    log.close()
    assert len(compacted(tmp_path)) == 2
    assert not journal.exists()
    log.decided(decide(), "p")
    assert len(compacted(tmp_path)) == 3


@pytest.mark.parametrize("journal_bytes", [25_000, 1_000_000])
def test_long_journals_are_read_in_batches(tmp_path, monkeypatch, journal_bytes):
    monkeypatch.setattr(compaction, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(storage, "MAX_JOURNAL_BYTES", journal_bytes)
    log, decisions = OutcomeLog(tmp_path, keep_prompts=True), [decide() for _ in range(50)]
    for decision in decisions:
        log.outcome(decision.decision_id, correct=True)
    for size, decision in enumerate(decisions):
        log.decided(decision, "long" * size * 20)
    assert log.compact() == Compaction(attempts=50, outcomes=50)
    assert all(row["correct"] == 1.0 for row in rows(tmp_path).values())


# ---- whatever dies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_loses_nothing_that_was_taken(tmp_path, seed):
    writer = run(WRITE, tmp_path, 100_000)
    taken = [writer.stdout.readline().strip() for _ in range(random.Random(seed).randrange(1, 500))]
    writer.kill()
    taken += [line for line in writer.communicate()[0].split("\n")[:-1] if line]
    found = compacted(tmp_path)
    assert set(taken) <= set(found)
    assert len(found) <= len(taken) + 1
    assert all(found[decision_id]["correct"] is not None for decision_id in taken)
    assert not list((tmp_path / ".journal").glob("*.jsonl"))


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_compaction_is_done_again(tmp_path, seed):
    log, decisions = OutcomeLog(tmp_path), [decide() for _ in range(200)]
    random_s = random.Random(seed).uniform(0.0, 0.1)
    for start in range(0, 200, 50):
        for number, decision in enumerate(decisions[start : start + 50]):
            log.decided(decision, "p", timestamp=datetime(2026, 1, 1 + number % 5))
        for decision in decisions[: start + 50]:
            log.outcome(decision.decision_id, output_tokens=start)
        compactor = run(
            "import pyarrow.parquet; print(flush=True)\nwhile True: log.compact(); log.outcome('x')", tmp_path
        )
        compactor.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            compactor.wait(random_s)
        compactor.kill()
        compactor.communicate()
    found = compacted(tmp_path)
    assert set(found) == {decision.decision_id for decision in decisions}
    assert {row["output_tokens"] for row in found.values()} == {150}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("n_steps", range(8))
def test_a_compaction_killed_after_any_step_is_done_again(tmp_path, monkeypatch, n_steps):
    """Steps: state, two days' new rows, an old file's update, state, two journals; more lines come before the next."""
    old, new = decide(), [decide(), decide()]
    with OutcomeLog(tmp_path) as log:
        log.decided(old, "p", timestamp=datetime(2026, 1, 1))
    if n_steps % 2:
        compacted(tmp_path)
    with OutcomeLog(tmp_path) as log, OutcomeLog(tmp_path) as judge:
        for day, decision in enumerate(new):
            log.decided(decision, "p", timestamp=datetime(2026, 1, 1 + day))
        for correct in (1.0, 0.5):
            for decision in (old, *new):
                judge.outcome(decision.decision_id, correct=correct)

    steps = count()

    def dying(original):
        def step(self, *arguments):
            if next(steps) == n_steps:
                raise Killed
            original(self, *arguments)

        return step

    for name in ("write", "delete"):
        monkeypatch.setattr(storage.Folder, name, dying(getattr(storage.Folder, name)))
    with pytest.raises(Killed):
        while True:
            OutcomeLog(tmp_path).compact()
            OutcomeLog(tmp_path).outcome("keeps compaction going", correct=True)
    monkeypatch.undo()
    monkeypatch.setattr(compaction, "_BATCH_BYTES", 1)  # the repetition may take other lines than the compaction killed

    another, unfinished = decide(), tmp_path / "day=2026-01-01" / f"{UNFINISHED}x-attempts-x.parquet"
    unfinished.parent.mkdir(exist_ok=True)
    unfinished.touch()
    with OutcomeLog(tmp_path) as log:
        log.decided(another, "p", timestamp=datetime(2026, 1, 1))
    found = compacted(tmp_path)
    assert set(found) == {decision.decision_id for decision in (old, *new, another)}
    assert [found[decision.decision_id]["correct"] for decision in (old, *new)] == [0.5, 0.5, 0.5]
    assert not unfinished.exists()


def test_a_line_cut_short_is_passed_over(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.decided(decide(), "p")
        log.decided(decide(), "p")
    [journal] = (tmp_path / ".journal").glob("*.jsonl")
    content = journal.read_bytes()
    journal.write_bytes(b"\0\0\0\n[]\n" + content[:-5])
    assert OutcomeLog(tmp_path).compact() == Compaction(attempts=1, unreadable=2)


# ---- what cannot be read is put aside -----------------------------------------------------------------------


def notes(folder):
    """What compaction says of all that it could not read."""
    files = sorted((folder / ".unreadable").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


ATTEMPT = {"at": 1, "prompt_id": "x", "prompt": "p", "decision": json.loads(decide().to_json())}
OUTCOME = {"at": 1, "outcome_of": "x", "correct": 1.0}


def attempt_line(**decision):
    return {**ATTEMPT, "decision": {**ATTEMPT["decision"], **decision}}


@pytest.mark.parametrize(
    "decision, more",
    [({"request_id": 12345}, {}), ({"decision_id": None}, {}), ({"tier": 3}, {}), ({"bundle_id": b"x"}, {}),
     ({"propensity": "1"}, {}), ({"propensity": 1.5}, {}), ({"propensity": float("nan")}, {}),
     ({"propensity": -1}, {}), ({"price_table_id": None}, {}),
     ({"offer": replace(SMALL.offers[0], model=7)}, {}), ({"offer": "s1"}, {}),
     ({}, {"timestamp": datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-8)))}),
     ({}, {"timestamp": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=8)))}),
     ({}, {"timestamp": "2026-01-01"}), ({}, {"timestamp": 1.5}), ({}, {"prompt": 5})]
)  # fmt: skip
def test_a_decision_with_a_value_of_another_type_is_refused_and_counted(tmp_path, caplog, decision, more):
    log = OutcomeLog(tmp_path, keep_prompts=True)
    log.decided(decide(), "p")
    log.decided(replace(decide(), **decision), **{"prompt": "p", **more})
    if "prompt" in more:  # The decision is a fallback, which has no text.
        assert log.n_lost == 0 and log.compact() == Compaction(attempts=2)
    else:
        assert log.n_lost == 1 and "a decision is not in the outcome log" in caplog.text
        assert log.compact() == Compaction(attempts=1)


@pytest.mark.parametrize("lost", [None, "text", {}])
def test_nothing_that_is_given_as_a_decision_raises(tmp_path, lost):
    log = OutcomeLog(tmp_path)
    log.decided(lost, "p")
    log.outcome(lost, correct=True) if lost != "text" else log.outcome("x", correct="1")
    attempt(log, lost)
    attempt(log, decide(), "well")
    assert log.n_lost == 4


@pytest.mark.parametrize(
    "line",
    [attempt_line(request_id=12345), attempt_line(propensity="high"), attempt_line(offer=[1]), attempt_line(tier=None),
     attempt_line(decision_id=["x"]), attempt_line(propensity=2), attempt_line(propensity=float("inf")),
     {**ATTEMPT, "at": "x"}, {**ATTEMPT, "at": True}, {**ATTEMPT, "at": 10**18}, {**ATTEMPT, "at": -(10**18)},
     {**ATTEMPT, "prompt": 5}, {**ATTEMPT, "prompt_id": {}}, {**ATTEMPT, "decision": None}, {"at": 1},
     {**OUTCOME, "at": "x"}, {**OUTCOME, "at": 10**30}, {**OUTCOME, "at": None}, {**OUTCOME, "outcome_of": 3},
     {**OUTCOME, "outcome_of": []}, {**OUTCOME, "correct": "yes"}, {**OUTCOME, "correct": 2},
     {**OUTCOME, "output_tokens": 1e30}, {**OUTCOME, "cache_hit": 1}, {**OUTCOME, "model": 1},
     {**OUTCOME, "latency_ms": None}, {**OUTCOME, "ended": "well"}, {"at": 1, "attempt_id": "x"},
     "outcome_of", 5, None, [], [[1]]]
)  # fmt: skip
def test_a_line_that_cannot_be_a_row_is_put_aside_with_its_reason(tmp_path, caplog, line):
    with OutcomeLog(tmp_path) as log:
        log.decided(decide(), "p")
        [journal] = (tmp_path / ".journal").glob("*.jsonl")
        text = json.dumps(line)
        start = journal.stat().st_size
        with journal.open("a") as file:
            file.write(text + "\n")
        log.decided(decide(), "p")
    assert log.compact() == Compaction(attempts=2, unreadable=1)
    [note] = notes(tmp_path)
    assert note["line"] == text and note["reason"]
    assert (note["file"], note["at_byte"]) == (f".journal/{journal.name}", start)
    assert "1 lines or files of the outcome log could not be read" in caplog.text
    assert log.compact() == Compaction()


def test_bytes_that_are_no_text_and_nests_without_end_are_put_aside(tmp_path):
    with OutcomeLog(tmp_path, keep_prompts=True) as log:
        log.decided(decide(), "p")
    [journal] = (tmp_path / ".journal").glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(b"\xff\xfe\n" + b"[" * 200_000 + b"\n" + b'{"at":' + b"9" * 5000 + b"}\n")
    assert log.compact() == Compaction(attempts=1, unreadable=3)
    assert len(rows(tmp_path)) == 1


def test_half_of_a_surrogate_in_a_journal_becomes_a_question_mark(tmp_path):
    with OutcomeLog(tmp_path) as log:
        log.decided(decide(), "p")
    [journal] = (tmp_path / ".journal").glob("*.jsonl")
    with journal.open("a") as file:
        file.write(json.dumps({**attempt_line(request_id="a\ud800", reason="\udfff"), "prompt": "\ud800b"}) + "\n")
    row = compacted(tmp_path)[ATTEMPT["decision"]["decision_id"]]
    assert (row["request_id"], row["prompt"], json.loads(row["decision"])["reason"]) == ("a?", "?b", "?")


def test_an_outcome_changes_nothing_but_its_own_columns(tmp_path):
    decision = decide()
    with OutcomeLog(tmp_path) as log:
        log.decided(decision, "p")
    [journal] = (tmp_path / ".journal").glob("*.jsonl")
    more = {"decision_id": "other", "timestamp": "never", "propensity": 7, "of a later version": 1}
    with journal.open("a") as file:
        file.write(json.dumps({**OUTCOME, "outcome_of": decision.decision_id, **more}) + "\n")
    row = compacted(tmp_path)[decision.decision_id]
    assert (row["correct"], row["propensity"]) == (1.0, 0.9)


def no_ids(file):
    pq.write_table(pa.table({"prompt": ["p"]}), file)


def other_types(file):
    table = pq.read_table(file, partitioning=None).drop_columns(["input_tokens"])
    pq.write_table(table.append_column("input_tokens", pa.array([{"yes": 1}] * len(table))), file)


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-40])


def damaged_inside(file):
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [no_ids, other_types, cut_short, damaged_inside, empty])
def test_a_damaged_partition_is_put_aside_and_compaction_goes_on(tmp_path, damage):
    log, late = OutcomeLog(tmp_path), decide()
    whole = decide()
    log.decided(late, "p", timestamp=datetime(2026, 1, 1))
    log.decided(whole, "p", timestamp=datetime(2025, 1, 1))
    log.compact()
    [_, file] = partitions(tmp_path)
    damage(file)
    content = file.read_bytes()
    for decision in (late, whole):
        log.outcome(decision.decision_id, correct=True)
    log.decided(decide(), "p")
    assert log.compact() == Compaction(attempts=1, outcomes=1, orphans=1, unreadable=1)
    [note] = notes(tmp_path)
    assert note["file"] == file.relative_to(tmp_path).as_posix() and note["reason"]
    assert (tmp_path / note["kept_as"]).read_bytes() == content
    assert not file.exists() and len(rows(tmp_path)) == 2
    assert log.compact() == Compaction(orphans=1)


@pytest.mark.parametrize("n_steps", range(8))
def test_a_disk_that_fills_while_things_are_put_aside_loses_nothing(tmp_path, monkeypatch, n_steps):
    """Steps: the copy of the damaged file, new rows, the notes, the state, the damaged file, two journals."""
    late = decide()
    with OutcomeLog(tmp_path) as log:
        log.decided(late, "p", timestamp=datetime(2026, 1, 1))
    compacted(tmp_path)
    [file] = partitions(tmp_path)
    file.write_bytes(b"damaged")
    with OutcomeLog(tmp_path) as log, OutcomeLog(tmp_path) as judge:
        judge.outcome(late.decision_id, correct=True)
        log.decided(decide(), "p")
        [journal, _] = sorted((tmp_path / ".journal").glob("*.jsonl"))
        with journal.open("a") as lines:
            lines.write("no line\n")
    steps = count()

    def full(original):
        def step(self, *arguments):
            if next(steps) == n_steps:
                raise OSError(28, "No space left on device")
            original(self, *arguments)

        return step

    with monkeypatch.context() as patch:
        for name in ("write", "delete"):
            patch.setattr(storage.Folder, name, full(getattr(storage.Folder, name)))
        with nullcontext() if n_steps == 7 else pytest.raises(OSError, match="No space"):
            log.compact()
    log.outcome(late.decision_id, cost_usd=0.5)
    assert log.compact().orphans == 1
    assert len(rows(tmp_path)) == 1 and not file.exists()
    name = file.relative_to(tmp_path).as_posix()
    assert {note.get("line", note["file"]) for note in notes(tmp_path)} == {"no line", name}
    [copy] = (tmp_path / ".unreadable").glob("*.parquet")
    assert copy.read_bytes() == b"damaged"


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), OSError("the store is unreachable"), MemoryError()]
)
def test_an_error_of_the_machine_is_no_damage(tmp_path, monkeypatch, error):
    """It is raised, nothing is put aside, and the next compaction does it all."""
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "p")
    log.compact()
    log.outcome(decision.decision_id, correct=True)

    def failing(self, name, opened=storage.Folder.opened):
        if name.startswith("day="):
            raise error
        return opened(self, name)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(storage.Folder, "opened", failing)
        log.compact()
    assert notes(tmp_path) == []
    assert log.compact() == Compaction(outcomes=1)


STATES = [
    b"", b"{", b"[]", b"{}", b'{"batch": 1, "read": {}, "orphans": {}}', b'{"batch": "x", "read": [], "orphans": {}}',
    b'{"batch": "x", "read": {"a": -1}, "orphans": {}}',
]  # fmt: skip


@pytest.mark.parametrize("state", [None, *STATES])
def test_a_lost_state_doubles_no_row(tmp_path, state):
    """The journal is still written, so it holds what the partitions hold."""
    log, decisions = OutcomeLog(tmp_path), [decide(), decide()]
    for decision in decisions:
        log.decided(decision, "p", timestamp=datetime(2020, 1, 1))
    log.outcome(decisions[0].decision_id, correct=True)
    log.compact()
    file = tmp_path / ".journal" / "state.json"
    if state is None:
        file.unlink()
    else:
        file.write_bytes(state)
    log.decided(decide(), "p")
    assert log.compact() == Compaction(attempts=1, outcomes=1, unreadable=int(state is not None))
    assert len(rows(tmp_path)) == 3
    assert [(tmp_path / note["kept_as"]).read_bytes() for note in notes(tmp_path)] == [state] * (state is not None)
    assert log.compact() == Compaction()


def test_an_orphan_that_cannot_be_read_is_put_aside_alone(tmp_path):
    log, decision = OutcomeLog(tmp_path), decide()
    log.outcome(decision.decision_id, correct=True)
    log.compact()
    file = tmp_path / ".journal" / "state.json"
    state = json.loads(file.read_text())
    state["orphans"] |= {"a": {"at": "x"}, "b": {"at": 1, "correct": "yes"}, "c": 5}
    file.write_text(json.dumps(state))
    log.decided(decision, "p")
    assert log.compact() == Compaction(attempts=1, outcomes=1, unreadable=3)
    assert len(notes(tmp_path)) == 3


def test_a_first_compaction_killed_in_its_first_write_is_done_again(tmp_path):
    script = """
import pathlib
from router.outcomes import storage
log.decided(decide(), "p")
storage.replacing = lambda path: (path.with_name(".unfinished-1-state.json").write_text("{"), os._exit(9))
log.compact()
"""
    killed = run(script, tmp_path)
    killed.communicate()
    assert killed.returncode == 9
    assert (tmp_path / ".journal" / ".unfinished-1-state.json").exists()
    assert len(compacted(tmp_path)) == 1
    assert sorted(file.name for file in (tmp_path / ".journal").iterdir()) == ["lock", "state.json"]


# ---- the same decision, the later outcome -------------------------------------------------------------------


@pytest.mark.parametrize("compact_between", [False, True])
def test_a_decision_given_twice_is_one_row(tmp_path, compact_between):
    """Also from another process, and past midnight."""
    log, decision = OutcomeLog(tmp_path), decide()
    log.decided(decision, "first", timestamp=datetime(2026, 1, 1, 23, 59))
    log.outcome(decision.decision_id, correct=True)
    if compact_between:
        log.compact()
    other = OutcomeLog(tmp_path)
    other.decided(decision, "second", timestamp=datetime(2026, 1, 2, 0, 1))
    other.outcome(decision.decision_id, cost_usd=0.5)
    log.compact()
    row = rows(tmp_path)[decision.decision_id]
    assert (row["correct"], row["cost_usd"], row["timestamp"].day) == (1.0, 0.5, 1)


@pytest.mark.parametrize("compact_between", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("same_process", [False, True])
def test_a_correction_holds_though_the_clock_went_back(tmp_path, monkeypatch, compact_between, known, same_process):
    log, decision = OutcomeLog(tmp_path), decide()
    if known:
        log.decided(decision, "p")
    log.outcome(decision.decision_id, correct=True)
    log.close()
    if compact_between:
        log.compact()
    an_hour_ago = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: an_hour_ago)
    if not same_process:
        log = OutcomeLog(tmp_path)
    log.outcome(decision.decision_id, correct=False)
    if not known:
        log.decided(decision, "p")
    assert compacted(tmp_path)[decision.decision_id]["correct"] == 0.0


def test_an_outcome_of_the_future_does_not_wait_for_ever(tmp_path, monkeypatch):
    log, now = OutcomeLog(tmp_path), time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now + 10**18)
        log.outcome("unheard-of", correct=True)
    assert log.compact().orphans == 1
    monkeypatch.setattr(time, "time_ns", lambda: now + 8 * 24 * 3600 * 10**9)
    OutcomeLog(tmp_path).outcome("another", correct=True)
    assert log.compact().orphans == 1


# ---- who may read it ----------------------------------------------------------------------------------------


def test_only_the_owner_may_read_what_the_log_writes(tmp_path):
    log, folder = OutcomeLog(tmp_path / "log", keep_prompts=True), tmp_path / "log"
    mask = os.umask(0)
    try:
        log.decided(decide(), "p")
        log.close()
        [journal] = (folder / ".journal").glob("*.jsonl")
        with journal.open("a") as file:
            file.write("unreadable\n")
        log.decided(decide(), "p")
        log.compact()
    finally:
        os.umask(mask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_folder_that_exists_keeps_its_mode(tmp_path):
    folders = [tmp_path / "log", tmp_path / "log" / ".journal", tmp_path / "log" / "day=2026-01-01"]
    for folder in folders:
        folder.mkdir()
        folder.chmod(0o750)
    log = OutcomeLog(tmp_path / "log")
    log.decided(decide(), "p", timestamp=datetime(2026, 1, 1))
    log.compact()
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o750] * 3


def test_the_lock_is_no_way_into_another_file(tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    log = OutcomeLog(tmp_path / "log")
    log.decided(decide(), "p")
    lock = tmp_path / "log" / ".journal" / "lock"
    lock.symlink_to(other)
    with pytest.raises(OSError, match="lock"):
        log.compact()
    assert other.read_text() == "precious"
    lock.unlink()
    assert log.compact() == Compaction(attempts=1)


# ---- an object store ----------------------------------------------------------------------------------------


@pytest.fixture
def store():
    """A place in fsspec's memory, empty before and after."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    yield files
    files.rm("/", recursive=True)


def download(store, folder):
    store.get("/bucket/log", str(folder), recursive=True)
    return rows(folder)


def test_an_object_store_holds_the_same_log(store, tmp_path):
    log, judge = OutcomeLog("memory://bucket/log", keep_prompts=True), OutcomeLog("memory://bucket/log")
    decisions = [decide(tier) for tier in (SMALL, LARGE)]
    for decision in decisions:
        log.decided(decision, "p")
    assert store.find("/bucket") == []
    log.flush()
    judge.outcome(decisions[0].decision_id, correct=True)
    assert judge.compact() == Compaction(attempts=2, outcomes=1)
    log.outcome(decisions[1].decision_id, correct=False)
    assert log.compact() == Compaction(outcomes=1)
    download(store, tmp_path)
    assert ingest(tmp_path, TIERS).correct.tolist() == [[1.0, 0.0]]
    assert not [name for name in store.find("/bucket") if name.endswith((".jsonl", "lock"))]


def test_an_object_store_that_fails_gets_the_lines_later(store, monkeypatch):
    log = OutcomeLog("memory://bucket/log")
    log.decided(decide(), "p")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="unreachable"):
        patch.setattr(type(store), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError("unreachable")))
        log.flush()
    log.decided(decide(), "p")
    assert log.compact() == Compaction(attempts=2)


def test_an_object_store_keeps_what_compaction_cannot_read(store):
    log, late = OutcomeLog("memory://bucket/log"), decide()
    log.decided(late, "p")
    log.compact()
    [partition] = [name for name in store.find("/bucket") if name.endswith(".parquet")]
    store.pipe_file(partition, b"damaged")
    store.pipe_file("/bucket/log/.journal/1-x.jsonl", b"no line\n")
    log.outcome(late.decision_id, correct=True)
    assert log.compact() == Compaction(orphans=1, unreadable=2)
    [copy, notes] = sorted(store.find("/bucket/log/.unreadable"), key=lambda name: name.endswith(".jsonl"))
    assert store.cat_file(copy) == b"damaged" and store.cat_file(notes).count(b"\n") == 2
    assert not store.exists(partition)


def test_memory_is_bounded_where_nobody_flushes(store, monkeypatch, caplog):
    monkeypatch.setattr(storage, "MAX_JOURNAL_BYTES", 5_000)
    log = OutcomeLog("memory://bucket/log")
    for _ in range(20):
        log.decided(decide(), "p")
    assert 0 < log.n_lost < 20
    assert "call flush() regularly" in caplog.text
    assert log.compact().attempts == 20 - log.n_lost


def test_an_object_store_is_compacted_by_one_at_a_time(store):
    log = OutcomeLog("memory://bucket/log")
    log.decided(decide(), "p")
    with log._files.alone(), pytest.raises(BlockingIOError, match="another process is compacting"):
        log.compact()
    assert log.compact() == Compaction(attempts=1)
