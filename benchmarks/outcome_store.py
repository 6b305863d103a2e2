"""Which store keeps decisions and outcomes: the outcome log, or SQLite in WAL mode.

    .venv/bin/python benchmarks/outcome_store.py [--rows 1000000]

Each decision is taken as the service takes it: a line of about a kilobyte, and its outcome as a second one, from one
thread, durable against the death of the process and not against loss of power (SQLite: `synchronous = OFF` and
`NORMAL`, one transaction for each write, since a request waits for none but its own). Then three questions are asked:
what is known of one decision (100 of them, and one that is not there), and what yesterday cost, by tier. The log
answers as it is compacted, and with its last 20,000 decisions still in the journal; Parquet is asked through pyarrow
(`LogReader`, which the command line uses) and through DuckDB. All times are processor time, which other work on the
machine changes little. Prints a Markdown table; needs the extra `train`.
"""

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np

from router.decision import Decision
from router.outcomes import OutcomeLog
from router.outcomes.queries import spend
from router.outcomes.reading import LogReader
from router.portfolio.tiers import Offer

TIERS = ("edge", "distilled", "flagship", "frontier")
DAYS, PENDING, LOOKUPS = 10, 20_000, 100
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
SCHEMA = """
CREATE TABLE decisions (decision_id TEXT, timestamp INTEGER, tier TEXT, model TEXT, provider TEXT,
    prompt_id TEXT, propensity REAL, decision TEXT, cost_usd REAL, input_tokens INTEGER, output_tokens INTEGER,
    correct REAL, ended TEXT);
CREATE UNIQUE INDEX by_id ON decisions (decision_id);
CREATE INDEX by_time ON decisions (timestamp, tier, cost_usd);
"""
QUERY = "SELECT tier, count(*), sum(cost_usd) FROM decisions WHERE timestamp >= ? AND timestamp < ? GROUP BY tier"


def decisions(n_rows: int) -> Iterator[tuple[Decision, datetime, float]]:
    """So many decisions over the last days, in the order of time, and what each cost."""
    draw = random.Random(0)
    for row in range(n_rows):
        tier = draw.choice(TIERS)
        success = {name: draw.random() for name in TIERS}
        decision = Decision(
            tier=tier,
            offer=Offer(f"{tier}-1", f"provider-{tier}", "eu", 131072, 0.3, 1.2),
            success=success,
            output_tokens={name: 400 * value for name, value in success.items()},
            cost_usd={name: value / 1000 for name, value in success.items()},
            reason="cheapest of 3 tiers that keep 98 % of the best tier's accuracy",
            context_tokens=500.0, quality=0.98, worth_usd=0.0, slack=0.02, promised=True, fallback=False,
            bundle_id="0123456789abcdef", price_table_id="0123456789abcdef",
            decision_id=f"{draw.getrandbits(128):032x}", request_id=f"{draw.getrandbits(128):032x}",
            propensity=1.0, familiarity=1.0,
        )  # fmt: skip
        when = TODAY - timedelta(days=DAYS) + timedelta(days=DAYS) * ((row + 0.5) / n_rows)
        yield decision, when, draw.random() / 100


def fill_log(log: OutcomeLog, n_rows: int, first: int = 0) -> tuple[list[str], float]:
    """Ids of the decisions from `first` on, and the seconds that the log needed to take them."""
    ids, spent_s = [], 0.0
    for number, (decision, when, usd) in enumerate(decisions(n_rows)):
        if number < first:
            continue
        begun = time.process_time()
        log.decided(decision, decision.reason, timestamp=when)
        log.outcome(decision.decision_id, cost_usd=usd, input_tokens=500, output_tokens=200, ended="complete")
        spent_s += time.process_time() - begun
        ids.append(decision.decision_id)
    return ids, spent_s


def fill_sqlite(connection: sqlite3.Connection, n_rows: int) -> float:
    """Seconds that SQLite needed to take all decisions and their outcomes, each in a transaction of its own."""
    spent_s = 0.0
    insert = "INSERT INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL, NULL, NULL, NULL)"
    update = (
        "UPDATE decisions SET cost_usd = ?, input_tokens = 500, output_tokens = 200, ended = ? WHERE decision_id = ?"
    )
    for decision, when, usd in decisions(n_rows):
        begun = time.process_time()
        at, offer = round(when.timestamp() * 1e6), decision.offer
        row = (decision.decision_id, at, decision.tier, offer.model, offer.provider, "digest", 1.0, decision.to_json())
        connection.execute(insert, row)
        connection.execute(update, (usd, "complete", decision.decision_id))
        spent_s += time.process_time() - begun
    return spent_s


def milliseconds(ask: Callable[[], object], times: int = 5) -> float:
    """The median time of a question, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        begun = time.process_time()
        ask()
        found.append((time.process_time() - begun) * 1000)
    return float(np.median(found[1:]))


def size_mb(folder: Path) -> float:
    """Megabytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def measure_log(folder: Path, n_rows: int) -> dict[str, dict[str, float]]:
    """Figures of the log, by who reads it."""
    log, reader = OutcomeLog(folder), LogReader(folder)
    ids, spent_s = fill_log(log, n_rows)
    log.close()
    begun = time.process_time()
    log.compact()
    compacted_s = time.process_time() - begun
    some = random.Random(1).sample(ids, LOOKUPS)
    yesterday, per_second = TODAY - timedelta(days=1), n_rows / spent_s
    common = {"decisions a second": per_second, "MB": size_mb(folder), "compaction, s": compacted_s}

    def asked(label: str) -> dict[str, float]:
        return {
            "one decision, ms": milliseconds(lambda: [reader.find(each) for each in some], 1) / LOOKUPS,
            "an unknown one, ms": milliseconds(lambda: reader.find("0" * 32)),
            "yesterday by tier, ms": milliseconds(lambda: spend(reader, ["tier"], since=yesterday, until=TODAY)),
        }

    found = {"log, pyarrow": {**common, **asked("compacted")}}
    with closing(duckdb.connect()) as connection:
        files = f"read_parquet('{folder}/day=*/*.parquet', hive_partitioning = true)"
        one = f"SELECT * FROM {files} WHERE decision_id = ?"
        query = (
            f"SELECT tier, count(*), sum(cost_usd) FROM {files} WHERE day = '{yesterday.date()}' "
            f"AND timestamp >= ? AND timestamp < ? GROUP BY tier"
        )
        found["log, DuckDB"] = {
            **common,
            "one decision, ms": milliseconds(lambda: connection.sql(one, params=[some[0]]).to_arrow_table()),
            "an unknown one, ms": milliseconds(lambda: connection.sql(one, params=["0" * 32]).to_arrow_table()),
            "yesterday by tier, ms": milliseconds(
                lambda: connection.sql(query, params=[yesterday, TODAY]).to_arrow_table()
            ),
        }
    fill_log(log, n_rows + PENDING, first=n_rows)
    found[f"log, pyarrow, {PENDING:,} decisions in the journal"] = asked("pending")
    return found


def measure_sqlite(folder: Path, n_rows: int, synchronous: str) -> dict[str, float]:
    """Figures of SQLite in WAL mode."""
    folder.mkdir()
    with closing(sqlite3.connect(folder / "store.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.executescript(SCHEMA)
        spent_s = fill_sqlite(connection, n_rows)
        some = [row[0] for row in connection.execute("SELECT decision_id FROM decisions LIMIT ?", [LOOKUPS])]
        bounds = [round((TODAY - timedelta(days=1)).timestamp() * 1e6), round(TODAY.timestamp() * 1e6)]

        def find(decision_ids: list[str]) -> None:
            for each in decision_ids:
                connection.execute("SELECT * FROM decisions WHERE decision_id = ?", [each]).fetchall()

        return {
            "decisions a second": n_rows / spent_s,
            "MB": size_mb(folder),
            "one decision, ms": milliseconds(lambda: find(some)) / LOOKUPS,
            "an unknown one, ms": milliseconds(lambda: find(["0" * 32])),
            "yesterday by tier, ms": milliseconds(lambda: connection.execute(QUERY, bounds).fetchall()),
        }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The outcome log against SQLite in WAL mode.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="decisions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure_log(Path(folder, "log"), options.rows)
        for synchronous in ("OFF", "NORMAL"):
            found[f"SQLite, WAL, {synchronous}"] = measure_sqlite(Path(folder, synchronous), options.rows, synchronous)
    columns = list(dict.fromkeys(name for figures in found.values() for name in figures))
    print(f"{options.rows:,} decisions with an outcome each, over {DAYS} days\n\n| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(f'{figures[key]:,.2f}' if key in figures else '' for key in columns)} |")
    print(f"\n{json.dumps(found)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
