"""What a log of very many Parquet files costs whoever looks for a decision, compacts it, or trains on it.

    .venv/bin/python benchmarks/outcome_parts.py [--parts 20000]

The log is that of a service that compacts every hour: 24 files a day, 50 judged decisions in each. All times are
processor time, which other work on the machine changes little. Prints a Markdown table; needs the extra `train`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow.parquet as pq
from outcome_store import decisions

from router.outcomes import OutcomeLog
from router.outcomes.export import export
from router.outcomes.reading import LogReader
from router.portfolio.tiers import parse_tiers
from training.log.checked import checked_logs
from training.log.ingest import ingest
from training.log.sources import log_sources

PARTS_A_DAY, ROWS = 24, 50
DECISION = next(decisions(1))[0]
TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{{ model = "{name}-1", provider = "p", region = "eu", '
        "context_window = 8192, usd_per_mtok_input = 0.3, usd_per_mtok_output = 1.2 }]\n"
        for name in ("edge", "distilled", "flagship", "frontier")
    )
)


def decide(log: OutcomeLog, when: datetime, number: int = 0) -> str:
    """Take a decision and its outcome; the decision_id."""
    tier = TIERS[number % len(TIERS)]
    decision = replace(DECISION, tier=tier.name, offer=tier.offers[0], decision_id=uuid4().hex)
    log.decided(decision, f"What is {number} and {uuid4().hex}?", timestamp=when)
    usage = {"input_tokens": 500, "output_tokens": 200, "cost_usd": 0.001}
    log.outcome(decision.decision_id, correct=float(number % 3 > 0), ended="complete", **usage)
    return decision.decision_id


def fill(folder: Path, n_parts: int) -> str:
    """Make a log of so many files, of which the last is of this hour; a decision_id of its oldest day."""
    with OutcomeLog(folder / "one", keep_prompts=True) as log:
        for number in range(ROWS):
            decide(log, datetime.now(UTC), number)
    log.compact()
    [file] = (folder / "one").glob("day=*/*.parquet")
    table = pq.read_table(file, partitioning=None)
    place, oldest = table.schema.get_field_index("decision_id"), ""
    for part in range(n_parts):
        ids = [uuid4().hex for _ in range(ROWS)]
        oldest = oldest or ids[0]
        hour = datetime.now(UTC) - timedelta(hours=n_parts - 1 - part) * (24 / PARTS_A_DAY)
        rows = table.set_column(place, "decision_id", [ids])
        rows = rows.set_column(
            rows.schema.get_field_index("timestamp"), table.schema.field("timestamp"), [[hour] * ROWS]
        )
        day = folder / "log" / f"day={hour.date()}"
        day.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows.cast(table.schema), day / f"attempts-{uuid4().hex}.parquet", compression="zstd")
    return oldest


def seconds(do: Callable[[], object]) -> float:
    """Processor time of something that is done once."""
    begun = time.process_time()
    do()
    return time.process_time() - begun


def measure(folder: Path, n_parts: int, *, trains: bool) -> Iterator[tuple[str, float]]:
    """The figures of one log: what was done, and the seconds that it took."""
    oldest, place = fill(folder, n_parts), folder / "log"
    log, now = OutcomeLog(place, keep_prompts=True), datetime.now(UTC)

    def compacted_after(take: Callable[[], object]) -> float:
        take()
        log.close()
        return seconds(log.compact)

    reader, one_file = LogReader(place), folder / "all.parquet"
    yield "the first compaction", compacted_after(lambda: decide(log, now))
    yield "compaction of one new file", compacted_after(lambda: decide(log, now))
    yield "... of an outcome of an unknown decision", compacted_after(lambda: log.outcome("0" * 32, correct=True))
    yield "... of an outcome of the oldest day", compacted_after(lambda: log.outcome(oldest, cost_usd=0.002))
    yield "a new reader looks for an unknown decision", seconds(lambda: reader.find("0" * 32))
    yield "... and for another one", seconds(lambda: reader.find("1" * 32))
    yield "`broker outcomes export` writes one file", seconds(lambda: export(reader, one_file))
    if trains:
        yield "`broker train` reads that file", seconds(lambda: ingest(one_file, TIERS))
        yield "`broker train` reads the log", seconds(lambda: ingest(place, TIERS))
        yield "`broker retrain` reads the log", seconds(lambda: read_each(place))


def read_each(log: Path) -> None:
    """Read each file of a log on its own, as `broker retrain` does."""
    with checked_logs() as rows:
        for path in log_sources([log], None):
            assert isinstance(path, Path)
            rows.read(path)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="An outcome log of very many files.")
    parser.add_argument("--parts", type=int, nargs="+", default=[2_000, 20_000], help="files of each log")
    parser.add_argument("--no-training", action="store_true", help="leave out training, which takes half an hour")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {n_parts: {} for n_parts in options.parts}
    for n_parts, figures in found.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, took_s in measure(Path(folder), n_parts, trains=not options.no_training):
                figures[name] = took_s
                print(f"{n_parts:,} files: {name}: {took_s:,.2f} s", file=sys.stderr)
    print(f"| processor time, s | {' | '.join(f'{n_parts:,} files' for n_parts in found)} |")
    print("|---" * (len(found) + 1) + "|")
    for name in next(iter(found.values())):
        print(f"| {name} | {' | '.join(f'{figures[name]:,.2f}' for figures in found.values())} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
