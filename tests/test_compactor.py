"""Laws of the compaction that a service starts: what is logged becomes Parquet by itself, while the service goes on."""

import time

from router.outcomes import OutcomeLog
from router.outcomes.reading import LogReader
from router.serve import compactor


def test_a_log_is_compacted_once_enough_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(compactor, "AFTER_BYTES", 1)
    log = OutcomeLog(tmp_path / "log")
    log.outcome("x" * 32, correct=True)
    running = compactor.Compactor(log, str(tmp_path / "log"), look_every_s=0.05).start()
    try:
        deadline = time.monotonic() + 60
        while LogReader(tmp_path / "log").pending_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        running.stop()
    assert LogReader(tmp_path / "log").find("x" * 32).waiting == {"correct": 1.0}


def test_a_look_that_fails_is_said_and_the_next_one_comes(unwritable, caplog, monkeypatch):
    def fail(reader):
        raise OSError("no network")

    monkeypatch.setattr(LogReader, "pending_bytes", fail)
    running = compactor.Compactor(OutcomeLog(unwritable), str(unwritable), look_every_s=0.01).start()
    deadline = time.monotonic() + 10
    while caplog.text.count("no network") < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.stop()
    assert caplog.text.count("no network") >= 2
