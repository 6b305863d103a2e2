"""Flushes and compacts the outcome log of a running service now and then."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from threading import Event, Thread

from router.outcomes.log import OutcomeLog
from router.outcomes.reading import LogReader

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 30.0
"""Seconds between two looks at the log."""

AFTER_S, AFTER_BYTES = 3600.0, 16 * 1024 * 1024
"""The log is compacted when so much time has passed, or so much is in the journals: some 10,000 decisions."""


class Compactor:
    """Compacts a log in a process of its own, so that no request waits for it.

    log: of this process, which is flushed at each look. outcomes: its folder or fsspec URL.
    """

    def __init__(self, log: OutcomeLog, outcomes: str, look_every_s: float = LOOK_EVERY_S) -> None:
        self._log = log
        self._command = [sys.executable, "-m", "router", "outcomes", "compact", "--outcomes", outcomes]
        self._reader = LogReader(outcomes)
        self._look_every_s = look_every_s
        self._stop = Event()
        self._thread = Thread(target=self._run, name="token-broker-compactor", daemon=True)

    def start(self) -> Compactor:
        """Begin to look at the log."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Compact no more. A compaction under way goes on by itself."""
        self._stop.set()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(self._look_every_s):
            try:
                self._log.flush()
                pending = self._reader.pending_bytes()
                if pending >= AFTER_BYTES or (pending and time.monotonic() - last >= AFTER_S):
                    last = time.monotonic()
                    done = subprocess.run(self._command, capture_output=True, check=False)
                    if done.returncode:
                        logger.warning("the outcome log was not compacted: %s", done.stderr.decode()[-500:])
            except Exception as error:  # Whatever it is, the next look comes.
                logger.warning("the outcome log was not compacted: %s", error)
