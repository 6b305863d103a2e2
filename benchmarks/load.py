"""What `broker serve` keeps under load, while providers fail and while it is killed.

    .venv/bin/python benchmarks/load.py --bundle models/NAME [--streams 200] [--seconds 120]

Takes about six minutes with the defaults, and the extra `gateway`. It talks to the loopback only and writes into a
temporary folder only. The service is the real one, in a process of its own; providers are simulated in another process
(faulty_upstreams.py), where 5 % of the attempts meet an error, 5 % a stall and 5 % a cut stream, and one provider is
dead for a quarter of the time. Half of the streams ask for `broker`, half for a model of LiteLLM, without faults.
Prints a Markdown table; ends with 1 where a guarantee does not hold.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from load_clients import Asked, Clients, Service, Upstreams, processor_ms

from router.bundle.manifest import GOLDEN_FILE
from router.outcomes.reading import LogReader

ADDED_P50_MS = 2.0
N_KILLS, KILL_STREAMS, KILL_AFTER_OUTCOMES, KILL_AFTER_S = 3, 20, 40, 30.0
SETTLED_S = 15.0
"""Seconds in which the service must have logged its last answers."""


# ---- what must hold --------------------------------------------------------------------------------


@dataclass
class Guarantee:
    """What was done, and how often it did not hold."""

    what: str
    done: str
    broken: dict[str, int]

    def line(self) -> str:
        """A row of the table."""
        return f"| {self.what} | {self.done} | {', '.join(f'{n} {name}' for name, n in self.broken.items())} |"


def rows_of(log: Path) -> list[dict[str, Any]]:
    """All rows of an outcome log."""
    names = ["decision_id", "attempt_id", "model", "tier", "ended", "correct", "cost_usd", "tokens_estimated"]
    rows: list[dict[str, Any]] = LogReader(str(log)).table(columns=names).to_pylist()
    return rows


def kept(what: str, asked: Sequence[Asked], told: dict[str, float], rows: Sequence[dict[str, Any]]) -> Guarantee:
    """Nothing that was acknowledged is lost or doubled: decisions by their header, outcomes by their answer."""
    by_id = {row["decision_id"]: row for row in rows if row["attempt_id"] is None}
    n_rows = Counter(row["decision_id"] for row in rows if row["attempt_id"] is None)
    ids = {each.decision_id for each in asked if each.decision_id}
    broken = {
        "decisions lost": len(ids - by_id.keys()),
        "decisions doubled": sum(n > 1 for n in n_rows.values()),
        "outcomes lost": sum(by_id.get(each, {}).get("correct") != correct for each, correct in told.items()),
    }
    return Guarantee(what, f"{len(ids):,} decisions, {len(told):,} outcomes acknowledged", broken)


def answers(asked: Sequence[Asked]) -> Guarantee:
    """Every client got its answer, or a clear error."""
    whole, errors = sum(each.is_whole for each in asked), Counter(each.status for each in asked if each.error)
    words = ", ".join(f"{n} with HTTP {status}" for status, n in sorted(errors.items())) or "none"
    unclear = [each for each in asked if not each.is_clear]
    for each in unclear[:5]:
        sys.stderr.write(f"unclear: {each}\n")
    done = f"{len(asked):,} streams; {whole:,} whole answers, errors: {words}"
    return Guarantee("answers to `broker`", done, {"without an answer or a clear error": len(unclear)})


def ends(asked: Sequence[Asked], rows: Sequence[dict[str, Any]]) -> Guarantee:
    """The log says of each request what its client saw."""
    ended = {row["decision_id"]: row["ended"] for row in rows if row["attempt_id"] is None}
    wrong = [each for each in asked if each.decision_id and each.is_whole != (ended[each.decision_id] == "complete")]
    for each in wrong[:5]:
        sys.stderr.write(f"logged as {ended[each.decision_id]}: {each}\n")
    found = ", ".join(f"{n:,} {end or 'failed'}" for end, n in Counter(ended.values()).most_common())
    return Guarantee("how they ended, in the log", found, {"otherwise than the client saw": len(wrong)})


def spend(
    asked: Sequence[Asked], rows: Sequence[dict[str, Any]], attempts: Sequence[dict[str, Any]], dead: str
) -> list[Guarantee]:
    """Each attempt that a provider saw is a row; the log's spend is the providers' own count."""
    ids = {each.number: each.decision_id for each in asked}
    logged, sent, failed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    usd, billed = defaultdict[str, float](float), defaultdict[str, float](float)
    cut_usd, cut_billed = 0.0, 0.0
    for row in rows:
        if row["ended"] is not None:
            logged[row["decision_id"], row["model"]] += 1
            failed[row["decision_id"], row["model"]] += row["ended"] == "failed"
        if row["ended"] == "complete":
            usd[row["decision_id"]] += row["cost_usd"] or 0.0
        else:
            cut_usd += row["cost_usd"] or 0.0
    for each in attempts:
        if each["kind"] == "load":
            sent[ids[each["number"]], each["model"]] += 1
            if each["whole"]:
                billed[ids[each["number"]]] += each["usd"]
            else:
                cut_billed += each["usd"]
    unseen = {key: n for key, n in failed.items() if n and not sent[key]}  # The connection was refused, or too slow.
    n_dead = sum(n for (_, model), n in unseen.items() if model == dead)
    wrong_usd = [each for each in usd.keys() | billed.keys() if abs(usd[each] - billed[each]) > 1e-10]
    return [
        Guarantee(
            "attempts",
            f"{sum(sent.values()):,} reached a provider; {n_dead:,} failed at the dead one, and "
            f"{sum(unseen.values()) - n_dead:,} on the way to others",
            {
                "without a row": sum(max(0, n - logged[key]) for key, n in sent.items()),
                "rows without an attempt": sum(max(0, n - sent[key] - unseen.get(key, 0)) for key, n in logged.items()),
                "attempts doubled": sum(n > 1 for n in logged.values()),
            },
        ),
        Guarantee(
            "spend on whole answers",
            f"USD {sum(usd.values()):.6f} in the log, USD {sum(billed.values()):.6f} by the providers' count",
            {"answers with another bill": len(wrong_usd)},
        ),
        Guarantee(
            "spend on broken streams, whose tokens no provider has told",
            f"USD {cut_usd:.6f} estimated, USD {cut_billed:.6f} by the providers' count",
            {},
        ),
    ]


def counted(metrics: dict[tuple[str, str], float], rows: Sequence[dict[str, Any]]) -> Guarantee:
    """The sums of `/metrics` are those of the log."""
    log: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        log["broker_decisions_total", ""] += row["attempt_id"] is None
        log["broker_attempts_total", row["ended"]] += 1
        log["broker_billed_cost_usd_total", row["tier"]] += row["cost_usd"] or 0.0
    found: dict[tuple[str, str], float] = defaultdict(float)
    for (name, label), value in metrics.items():
        if name in ("broker_decisions_total", "broker_attempts_total", "broker_billed_cost_usd_total"):
            found[name, "" if name == "broker_decisions_total" else label] += value
    log = {key: value for key, value in log.items() if key[1] is not None}
    n_wrong = sum(abs(found[key] - log.get(key, 0.0)) > 1e-9 for key in {*log, *found})
    return Guarantee("sums of `/metrics`", f"{len(log)} sums", {"other than in the log": n_wrong})


# ---- both runs -------------------------------------------------------------------------------------


async def under_load(bundle: Path, folder: Path, n_streams: int, seconds: float) -> list[Guarantee]:
    """Clients ask while providers fail."""
    upstreams = Upstreams(bundle)
    service = Service(bundle, folder / "outcomes", upstreams.urls)
    dead, alone = "sim-east", upstreams.models["sim-west"]
    try:
        with service.running() as process:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                clients = Clients(service, session, prompts_of(bundle), alone)
                before_ms = processor_ms(process.pid)
                running = asyncio.create_task(clients.run(n_streams, seconds, "load"))
                await asyncio.sleep(seconds / 4)
                await asyncio.to_thread(upstreams.tell, f"die {dead}")
                await asyncio.sleep(seconds / 4)
                await asyncio.to_thread(upstreams.tell, f"live {dead}")
                await running
                used = (processor_ms(process.pid) - before_ms) / 1000 / seconds
                await asyncio.sleep(SETTLED_S)
                metrics, rows = await clients.metrics(), rows_of(service.log)
                times = added(await clients.pairs(), await clients.processor_ms(process))
        attempts = upstreams.tell("count")
    finally:
        upstreams.close()
    asked = [each for each in clients.asked if each.is_broker]
    return [
        answers(asked),
        kept("the log", asked, clients.told, rows),
        ends(asked, rows),
        *spend(asked, rows, attempts, upstreams.models[dead]),
        counted(metrics, rows),
        first_words(clients.asked, n_streams, used),
        *times,
    ]


def first_words(asked: Sequence[Asked], n_streams: int, used: float) -> Guarantee:
    """How long whole answers took to begin. used: share of one processor that the service took."""
    alone, broker = (
        statistics.median([each.first_word_ms for each in asked if each.is_whole and each.is_broker is is_broker])
        for is_broker in (False, True)
    )
    done = f"{alone:.0f} ms alone, {broker:.0f} ms with the broker, fallbacks included; "
    done += f"the service used {used:.0%} of a processor, load average {os.getloadavg()[0]:.1f}"
    return Guarantee(f"p50 to the first word, {n_streams} streams at once", done, {})


def added(pairs: tuple[list[float], list[float]], processor: tuple[float, float]) -> list[Guarantee]:
    """What the broker adds to a request."""
    alone, broker = statistics.median(pairs[0]), statistics.median(pairs[1])
    each = statistics.median([b - a for a, b in zip(*pairs, strict=True)])
    done = f"{alone:.1f} ms alone, {broker:.1f} ms with the broker: {broker - alone:+.1f} ms; "
    done += f"median of the differences {each:+.1f} ms; load average {os.getloadavg()[0]:.1f}"
    cpu = f"{processor[0]:.1f} ms alone, {processor[1]:.1f} ms with the broker: {processor[1] - processor[0]:+.1f} ms"
    name = f"added more than {ADDED_P50_MS:g} ms"
    return [
        Guarantee("p50 of a request, one at a time", done, {name: int(broker - alone > ADDED_P50_MS)}),
        Guarantee("processor time of a request", cpu, {}),
    ]


async def under_kill(bundle: Path, folder: Path) -> list[Guarantee]:
    """The service is killed while clients ask, and started again."""
    upstreams = Upstreams(bundle)
    service = Service(bundle, folder / "killed", upstreams.urls)
    asked: list[Asked] = []
    told: dict[str, float] = {}
    try:
        for _ in range(N_KILLS):
            with service.running() as process:
                async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
                    clients = Clients(service, session, prompts_of(bundle), "")
                    running = asyncio.create_task(clients.run(KILL_STREAMS, 600, "killed", judged_of=1))
                    end_s = time.monotonic() + KILL_AFTER_S
                    while len(clients.told) < KILL_AFTER_OUTCOMES and time.monotonic() < end_s:
                        await asyncio.sleep(0.01)
                    process.kill()
                    await running
            asked += clients.asked
            told |= clients.told
    finally:
        upstreams.close()
    rows = rows_of(service.log)
    costs = {row["decision_id"]: row["cost_usd"] for row in rows if row["attempt_id"] is None}
    n_unbilled = sum(each.is_whole and costs.get(each.decision_id) is None for each in asked)
    n_whole = sum(each.is_whole for each in asked)
    return [
        kept(f"the log, after {N_KILLS} times `kill -9` of the service", asked, told, rows),
        Guarantee("whole answers before these", f"{n_whole:,}; the cost of {n_unbilled} is not in the log", {}),
    ]


def prompts_of(bundle: Path) -> list[str]:
    """The golden prompts of a bundle."""
    lines = (bundle / GOLDEN_FILE).read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["prompt"] for line in lines if line]


def main() -> int:
    """Do it all and print the table."""
    parser = argparse.ArgumentParser(description="What `broker serve` keeps under load and while it is killed.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=200, help="streams at once; default: 200")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long; default: 120")
    options = parser.parse_args()
    print("| | done | what did not hold |\n|---|---|---|", flush=True)
    n_broken = 0
    with tempfile.TemporaryDirectory() as folder:
        for part in (
            under_load(options.bundle, Path(folder), options.streams, options.seconds),
            under_kill(options.bundle, Path(folder)),
        ):
            for guarantee in asyncio.run(part):
                print(guarantee.line(), flush=True)
                n_broken += sum(guarantee.broken.values())
    return int(n_broken > 0)


if __name__ == "__main__":
    sys.exit(main())
