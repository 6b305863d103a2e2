"""From two real models on this machine to a router of one's own: ask, log, audit, train, plan, route.

    python examples/local/run.py [--tasks 600] [--out models/local]

Nothing here is simulated: two language models of llama.cpp answer every task, and a check by equality says who was
right. It needs no key, no account and no network once the packages are installed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from asking import Asked, CorePrice, ask_all, tiers_toml
from servers import INSTALL, MODELS, Model, missing, runtime
from tasks import Task, make_tasks

PRICE = CorePrice()
QUESTIONS = (
    'Is "pear" a fruit? Answer with yes or no only.',
    "What is the capital of Egypt? Answer with one word only.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole line; returns the exit code of the first step that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=600, help="how many tasks both models are asked; default: 600")
    parser.add_argument("--seed", type=int, default=1, help="of the tasks; default: 1")
    parser.add_argument("--out", type=Path, default=Path("models/local"), help="the bundle; the log lies beside it")
    options = parser.parse_args(arguments)
    if missing():
        print(f"{', '.join(missing())}: not installed. {INSTALL}", file=sys.stderr)
        return 2
    tasks = make_tasks(options.tasks, options.seed)
    log, tiers, page = (beside(options.out, ending) for ending in ("log.parquet", "tiers.toml", "audit.html"))
    cache(options.out).mkdir(parents=True, exist_ok=True)
    print(f"{len(tasks)} tasks for {' and '.join(model.name for model in MODELS)}, on {machine()}")
    asked = ask_side_by_side(tasks, cache(options.out))
    write_log(asked, log)
    tiers.write_text(tiers_toml(asked, PRICE, machine()), encoding="utf-8")
    print(scores(tasks, asked))
    return run_broker(
        ["audit", "--logs", log, "--tiers", tiers, "--html", page],
        ["train", "--logs", log, "--tiers", tiers, "--out", options.out, "--note", note(tasks)],
        *(["route", "--bundle", options.out, "--explain", question] for question in QUESTIONS),
        ["plan", "--bundle", options.out, "--check", "agreement", QUESTIONS[0]],
    )


def ask_side_by_side(tasks: Sequence[Task], folder: Path) -> list[Asked]:
    """What each model said, in the order of MODELS; each is asked in a process of its own."""
    began = time.perf_counter()
    with ProcessPoolExecutor(len(MODELS), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(ask_with_progress, model, tasks, folder) for model in MODELS]
        asked = [each.result() for each in running]
    print(f"asked and answered in {(time.perf_counter() - began) / 60:.1f} minutes")
    return asked


def ask_with_progress(model: Model, tasks: Sequence[Task], folder: Path) -> Asked:
    """`ask_all` with a progress bar on stderr."""
    from tqdm import tqdm

    with tqdm(total=len(tasks), desc=model.name, position=MODELS.index(model), mininterval=1, unit="task") as bar:
        return ask_all(model, tasks, PRICE, folder, bar.update)


def write_log(asked: Sequence[Asked], path: Path) -> None:
    """The outcome log, in the format of data/README.md: one row for each task and model."""
    import pandas as pd

    pd.DataFrame([row for each in asked for row in each.rows]).to_parquet(path, index=False)


def scores(tasks: Sequence[Task], asked: Sequence[Asked]) -> str:
    """A table of the share of right answers by kind of task, and of what an answer cost."""
    right = {kind: [row for row, task in enumerate(tasks) if task.kind == kind] for kind in dict.fromkeys(
        sorted(task.kind for task in tasks)
    )}  # fmt: skip
    lines = [f"{'right answers':<20}" + "".join(f"{each.model.tier:>10}" for each in asked) + f"{'either':>10}"]
    for kind, places in [*right.items(), ("all", list(range(len(tasks))))]:
        said = [[bool(each.rows[place]["correct"]) for place in places] for each in asked]
        either = sum(any(both) for both in zip(*said, strict=True)) / len(places)
        shares = [sum(one) / len(places) for one in said]
        lines.append(f"{kind:<20}" + "".join(f"{share:>10.0%}" for share in [*shares, either]))
    usd = [sum(row["cost_usd"] for row in each.rows) / len(each.rows) * 1e6 for each in asked]
    lines.append(f"{'USD per 1M answers':<20}" + "".join(f"{cost:>10.2f}" for cost in usd))
    lines.append(f"{'core-s per answer':<20}" + "".join(f"{each.core_s / len(tasks):>10.2f}" for each in asked))
    return "\n".join(lines)


def run_broker(*commands: Sequence[str | Path]) -> int:
    """Run commands of `broker` one after the other, each shown as one would type it; stop at the first that fails."""
    for command in commands:
        words = [str(word) for word in command]
        print(f"\n$ broker {shlex.join(words)}", flush=True)
        done = subprocess.run([sys.executable, "-m", "router", *words], check=False)
        if done.returncode:
            return done.returncode
    return 0


def note(tasks: Sequence[Task]) -> str:
    """What stands in report and manifest: that this is real, and what it is."""
    names = " and ".join(f"{model.name} ({model.package})" for model in MODELS)
    return f"Real answers to {len(tasks)} small tasks by {names}, run by {runtime()} on one core each of {machine()}."


def cache(bundle: Path) -> Path:
    """The folder beside a bundle for what can be made again, as a model's file that is put together from parts."""
    return bundle.parent / ".cache"


def beside(bundle: Path, ending: str) -> Path:
    """The path of a file that belongs to a bundle and lies beside it: models/local-log.parquet."""
    return bundle.with_name(f"{bundle.name}-{ending}")


def machine() -> str:
    """The processor of this machine, and how many cores it has."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else processor}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
