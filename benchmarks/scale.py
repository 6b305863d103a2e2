"""How training grows with the log, on SIMULATED logs: wall time and peak resident memory, step by step.

    .venv/bin/python benchmarks/scale.py retrain --prompts 1000000        a million cached prompts, then 1 % new
    .venv/bin/python benchmarks/scale.py cluster --rows 1000000           `train(cluster=...)`, two worker processes

Nothing here is about a real model. A prompt is put together from phrases of one of forty topics, each of which makes it
easier or harder; a tier's outcome is a coin whose bias is sigmoid(skill on the topic - difficulty). Logs are Parquet,
one file a day. Every run is a process of its own, so that no peak is another run's. Results: benchmarks/scale.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TIERS = ("edge", "distilled", "open", "flagship", "frontier")
USD_PER_MTOK = ((0.05, 0.05), (0.1, 0.3), (0.5, 1.5), (1.0, 4.0), (3.0, 12.0))
N_TOPICS, N_SLOTS, N_PHRASES, N_WORDS = 40, 6, 120, 6000
DAYS = 30
SHARE_NEW = 0.01
_SAMPLE_SECONDS = 0.05


# ---- the simulated log -----------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Phrases per topic and slot, and what they do; made once from a seed, whatever the log's length.

    phrases: text (N_TOPICS * N_SLOTS * N_PHRASES,). harder: of each phrase, in logits. skill: (N_TOPICS, n_tiers).
    """

    phrases: pa.Array
    harder: np.ndarray
    skill: np.ndarray

    @classmethod
    def simulated(cls, seed: int = 0) -> World:
        """Topics have words of their own, and share a fifth of theirs with all."""
        rng = np.random.default_rng(seed)
        syllables = np.array([a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")])
        words = np.unique(["".join(rng.choice(syllables, rng.integers(2, 5))) for _ in range(N_WORDS)])
        rng.shuffle(words)
        shared, own = words[: len(words) // 5], np.array_split(words[len(words) // 5 :], N_TOPICS)
        phrases = [
            " ".join(np.where(rng.random(n) < 0.3, rng.choice(shared, n), rng.choice(own[topic], n)))
            for topic in range(N_TOPICS)
            for n in rng.integers(2, 7, N_SLOTS * N_PHRASES)
        ]
        harder = rng.normal(0, 0.6, len(phrases))
        skill = np.linspace(-0.4, 1.8, len(TIERS)) + rng.normal(0, 0.7, (N_TOPICS, len(TIERS)))
        return cls(pa.array(phrases), harder, skill)

    def day(self, first: int, n_prompts: int, day: int) -> pa.Table:
        """The attempts of all tiers on prompts `first`, `first + 1`, ..., which no other day has."""
        rng = np.random.default_rng([1, first])
        topic = rng.integers(0, N_TOPICS, n_prompts)
        slots = rng.integers(0, N_PHRASES, (n_prompts, N_SLOTS)) + N_PHRASES * np.arange(N_SLOTS)
        picked = slots + (topic * N_SLOTS * N_PHRASES)[:, None]
        n_phrases = rng.integers(2, N_SLOTS + 1, n_prompts)
        used = np.arange(N_SLOTS) < n_phrases[:, None]
        numbers = pc.cast(pa.array(np.arange(first, first + n_prompts)), pa.string())
        columns = [
            pc.if_else(pa.array(used[:, slot]), self.phrases.take(pa.array(picked[:, slot])), pa.scalar(""))
            for slot in range(N_SLOTS)
        ]
        prompts = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*columns, numbers, " "))
        difficulty = (self.harder[picked] * used).sum(axis=1) + rng.normal(0, 0.5, n_prompts)
        success = 1 / (1 + np.exp(-(self.skill[topic] - difficulty[:, None])))
        n_tiers = len(TIERS)
        correct = rng.random(success.shape) < success
        input_tokens = np.repeat(8 + 4 * n_phrases, n_tiers).reshape(n_prompts, n_tiers)
        output_tokens = np.exp(rng.normal(5, 0.3, success.shape) + 0.2 * difficulty[:, None]).round() + 1
        price = np.array(USD_PER_MTOK)
        cost = (input_tokens * price[:, 0] + output_tokens * price[:, 1]) / 1e6
        rows = pa.array(np.repeat(np.arange(n_prompts), n_tiers))
        model = pa.DictionaryArray.from_arrays(
            pa.array(np.tile(np.arange(n_tiers), n_prompts), pa.int8()), pa.array([f"sim/{tier}" for tier in TIERS])
        )
        asked = np.datetime64("2026-01-01T08:00:00", "ms") + np.timedelta64(day, "D")
        return pa.table(
            {
                "prompt": prompts.take(rows),
                "model": model.cast(pa.string()),
                "correct": correct.ravel(),
                "dataset": pa.array(np.char.add("topic-", (topic % 8).astype(str))).take(rows),
                "input_tokens": input_tokens.ravel(),
                "output_tokens": output_tokens.ravel(),
                "cost_usd": cost.ravel(),
                "timestamp": pa.array(np.full(len(rows), asked)),
            }
        )


def write_log(folder: Path, n_prompts: int, days: range, first: int = 0) -> None:
    """One file a day in `folder`, n_prompts in all, numbered from `first` on."""
    world = World.simulated()
    folder.mkdir(parents=True, exist_ok=True)
    bounds = first + n_prompts * np.arange(len(days) + 1) // len(days)
    for day, start, end in zip(days, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        pq.write_table(world.day(start, end - start, day), folder / f"day-{day:03d}.parquet", compression="zstd")


def write_tiers(path: Path) -> Path:
    """A tiers.toml of SIMULATED models at invented prices."""
    path.write_text(
        "\n".join(
            f'[[tiers]]\nname = "{tier}"\n[[tiers.offers]]\nmodel = "sim/{tier}"\nprovider = "sim"\nregion = "sim"\n'
            f"context_window = 131072\nusd_per_mtok_input = {price[0]}\nusd_per_mtok_output = {price[1]}"
            for tier, price in zip(TIERS, USD_PER_MTOK, strict=True)
        ),
        encoding="utf-8",
    )
    return path


# ---- measuring -------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Wall and processor time between one step and the next, and the peak resident memory of some processes meanwhile.

    Where the machine has other work, the processor time is what to go by.
    """

    processes: dict[str, psutil.Process] = field(default_factory=lambda: {"peak MB": psutil.Process()})
    steps: list[dict[str, Any]] = field(default_factory=list)
    _peaks: dict[str, int] = field(default_factory=dict)
    _cpu: float = 0.0
    _since: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def done(self, step: str) -> None:
        """A step is done: note what it took, begin the next."""
        now = time.perf_counter()
        self._look()
        with self._lock:
            peaks = {name: peak / 2**20 for name, peak in self._peaks.items()}
            cpu = self._cpu_seconds()
            self.steps.append({"step": step, "seconds": now - self._since, "cpu": cpu - self._cpu, **peaks})
            self._since, self._cpu, self._peaks = now, cpu, {}
        self._look()

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes.values())

    def _look(self) -> None:
        found = {name: process.memory_info().rss for name, process in self.processes.items()}
        with self._lock:
            self._peaks = {name: max(self._peaks.get(name, 0), now) for name, now in found.items()}

    @contextmanager
    def running(self) -> Iterator[Callable[[str], None]]:
        """Sample memory until the block ends."""
        stopped = threading.Event()

        def sample() -> None:
            while not stopped.wait(_SAMPLE_SECONDS):
                self._look()

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield self.done
        finally:
            stopped.set()
            thread.join()


def in_a_process_of_its_own(work: Callable[..., None], *arguments: Any) -> None:
    """Run it where no earlier run has left anything; raises RuntimeError where it fails."""
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} failed with exit code {process.exitcode}")


def report(title: str, clock: Clock, facts: dict[str, Any]) -> None:
    """A table in Markdown."""
    total = sum(step["seconds"] for step in clock.steps)
    peaks = {name: max(step[name] for step in clock.steps) for name in clock.processes}
    print(f"\n{title}: {total:,.0f} s {json.dumps(facts)}\n")
    rows = [*clock.steps, {"step": "all", "seconds": total, "cpu": sum(step["cpu"] for step in clock.steps), **peaks}]
    print(f"| step | seconds | CPU seconds | {' | '.join(peaks)} |\n|{'---|' * (3 + len(peaks))}")
    for row in rows:
        memory = " | ".join(f"{row[name]:,.0f}" for name in peaks)
        print(f"| {row['step']} | {row['seconds']:.1f} | {row['cpu']:.1f} | {memory} |", flush=True)


# ---- retraining ------------------------------------------------------------------------------------


def one_retraining(title: str, folder: Path) -> None:
    """One turn of `retrain` on all there is."""
    from training.retrain import retrain

    clock = Clock()
    with clock.running() as done:
        receipt = retrain(folder / "logs", folder / "tiers.toml", folder / "store", tracking_uri="none", on_step=done)
    report(title, clock, {"reason": receipt.reason, "rows_new": receipt.rows_new})


def retraining(options: argparse.Namespace, folder: Path) -> None:
    """Fill the store once, then 1 % more prompts, a file of their own."""
    write_tiers(folder / "tiers.toml")
    if not (folder / "store").exists():
        in_a_process_of_its_own(write_log, folder / "logs", options.prompts, range(DAYS))
        in_a_process_of_its_own(one_retraining, f"first run, {options.prompts:,} prompts x {len(TIERS)} tiers", folder)
    known = len(list((folder / "logs").glob("*.parquet")))
    n_new = int(SHARE_NEW * options.prompts)
    first = options.prompts + (known - DAYS) * n_new
    in_a_process_of_its_own(write_log, folder / "logs", n_new, range(known, known + 1), first)
    in_a_process_of_its_own(one_retraining, f"again, {n_new:,} new prompts", folder)


# ---- a cluster -------------------------------------------------------------------------------------


def one_training(title: str, folder: Path, n_workers: int, only_workers: bool) -> None:
    """`train(cluster=...)` with worker processes of one thread each on this machine."""
    from dask.distributed import Client, LocalCluster

    with LocalCluster(n_workers, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as cluster:
        with Client(cluster) as client:
            pids = sorted(client.run(os.getpid).values())
        processes = {"client MB": psutil.Process()}
        processes |= {f"worker {number} MB": psutil.Process(pid) for number, pid in enumerate(pids, 1)}
        clock = Clock(processes)
        with clock.running() as done:
            work = what_workers_do if only_workers else all_of_it
            facts = work(cluster.scheduler_address, folder, done)
    report(title, clock, facts)


def all_of_it(address: str, folder: Path, done: Callable[[str], None]) -> dict[str, Any]:
    """The whole line."""
    from training import TrainingConfig, train

    result = train(
        folder / "logs", folder / "tiers.toml", folder / "bundle", TrainingConfig(),
        cluster=address, tracking_uri="none", on_step=done,
    )  # fmt: skip
    return {name: result.manifest.training.get(name) for name in ("n_prompts", "n_trained_on", "n_sampled")}


def what_workers_do(address: str, folder: Path, done: Callable[[str], None]) -> dict[str, Any]:
    """What grows with the log: the table, its sample, vectors and labels, and one of the six fits."""
    from router.portfolio.tiers import read_tiers
    from training import TrainingConfig
    from training.context import RunContext
    from training.distributed.cluster import cluster_at
    from training.encoders.static import learn_static
    from training.log.costs import attempt_costs
    from training.tracking import NoTracker

    tiers = read_tiers(folder / "tiers.toml")
    context = RunContext(TrainingConfig(), folder / "cache", NoTracker(), done)
    with cluster_at(address, context) as place:
        sample = place.ingest(folder / "logs", tiers, folder / "quarantine.parquet")
        done("sample")
        encoder = learn_static(sample.prompts[:20_000])
        done("encoder, on fewer prompts")
        place.fit_label_forest(encoder, tiers, attempt_costs(sample, tiers).mean_output_tokens)(None)
        done("final fit, one of six")
    return {"n_prompts": sample.summary.n_prompts, "n_trained_on": place.n_trained_on(0), "n_sampled": sample.n_prompts}


def on_a_cluster(options: argparse.Namespace, folder: Path) -> None:
    """The same line at one size of the log."""
    write_tiers(folder / "tiers.toml")
    in_a_process_of_its_own(write_log, folder / "logs", options.rows // len(TIERS), range(DAYS))
    size = sum(path.stat().st_size for path in (folder / "logs").iterdir()) / 2**20
    title = f"{options.rows:,} rows in {size:,.0f} MB, {options.workers} workers"
    in_a_process_of_its_own(one_training, title, folder, options.workers, options.only_workers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure training on SIMULATED logs of any size.")
    commands = parser.add_subparsers(required=True)
    of_retrain = commands.add_parser("retrain", help="a store filled once, then 1 %% new prompts")
    of_retrain.add_argument("--prompts", type=int, default=1_000_000)
    of_retrain.set_defaults(work=retraining)
    of_cluster = commands.add_parser("cluster", help="train(cluster=...) on worker processes of this machine")
    of_cluster.add_argument("--rows", type=int, default=1_000_000)
    of_cluster.add_argument("--workers", type=int, default=2)
    of_cluster.add_argument("--only-workers", action="store_true", help="leave out what is fitted on the sample")
    of_cluster.set_defaults(work=on_a_cluster)
    for command in (of_retrain, of_cluster):
        command.add_argument("--keep", type=Path, help="work here and leave it; a further call adds another 1 %%")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        options.work(options, folder)


if __name__ == "__main__":
    main()
