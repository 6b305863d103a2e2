"""How long a decision takes, beside the bare tokenizer and other routers.

    .venv/bin/python benchmarks/latency.py --static models/NAME --minilm models/OTHER --prompts LOG.parquet...

Each contender (see contenders.py) runs in a process of its own, on one thread, over the same prompts, every one of
them different; contenders take turns in short rounds, so that a change of the machine's speed meets all alike. Slow
contenders get the first few prompts of each round. Prints Markdown tables: microseconds (p50, p95, p99) and the ratio
of medians to the bare tokenizer, then the ratios that have a goal. A ratio of two contenders is taken over the prompts
that both were given. `--throughput` and `--memory` measure those of the static bundle instead.

A prompt's length is counted in the static bundle's tokens; whatever runs MiniLM cuts at 256 of its own.
Contenders whose packages are missing are left out; benchmarks/requirements.txt says what to install, in which order.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from contenders import BATCH, CONTENDERS, ENVIRONMENT, N_EXAMPLES, Setting
from tokenizers import Tokenizer
from tqdm import tqdm

ROUND_PROMPTS = 50
WARM_UP_PROMPTS = 300
WARM_UP_PROMPTS_SLOW = 20
FEWEST_PROMPTS = 100
JOINED_BEYOND_TOKENS = 256

FLOOR = "bare tokenizer"
GOAL_TOKENS = 64
GOALS = {
    ("static bundle", "bare tokenizer"): 2.0,
    ("static bundle", "LiteLLM weighted heuristic"): 0.45,
    ("static bundle", "LiteLLM heuristic_v2"): 1.0,
    ("minilm bundle", "bare MiniLM encoder"): 1.05,
}
"""Largest ratio of medians at GOAL_TOKENS."""

BATCH_PROMPTS = 1000
MOST_BATCHES = 4
BATCH_ROUNDS = 5
FEWEST_PROMPTS_THROUGHPUT = WARM_UP_PROMPTS + 2 * BATCH_PROMPTS
GOAL_PROMPTS_PER_SECOND = 10_000
COLD_STARTS = 9

VERSIONS_OF = ("token-broker", "onnxruntime", "tokenizers", "litellm", "sentence-transformers", "semantic-router")


# ---- processes -------------------------------------------------------------------------------------


class Process:
    """A contender in a process of its own, from `with` to its end."""

    def __init__(self, contender: str, setting: Setting, core: int | None = None) -> None:
        self.contender = contender
        self._popen = _start("serve")
        self._send({"contender": contender, "core": core, "setting": asdict(setting)})

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.communicate()

    def missing(self) -> str | None:
        """What it needs and does not find installed; waits until it is ready."""
        return self._receive()["missing"]

    def start(self, items: Sequence[Any]) -> None:
        """Let it decide on each item."""
        self._send(items)

    def seconds(self) -> list[float]:
        """How long each of the items took; waits for the last."""
        return self._receive()

    def _send(self, document: object) -> None:
        self._popen.stdin.write(json.dumps(document) + "\n")
        self._popen.stdin.flush()

    def _receive(self) -> Any:
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.contender!r} ended before its answer; its error stands above")
        return json.loads(line)


def _start(task: str) -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).with_name("contenders.py")), task]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
    )


def ready(processes: Sequence[Process]) -> list[Process]:
    """Those that have all they need; a line on stderr for each other."""
    found = []
    for process in processes:
        if missing := process.missing():
            complain(f"{process.contender}: left out ({missing}); install what benchmarks/requirements.txt says")
        else:
            found.append(process)
    return found


def complain(message: str) -> None:
    """A line on stderr."""
    sys.stderr.write(message + "\n")


# ---- prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Different prompts in random order, and how many tokens each has."""

    texts: list[str]
    n_tokens: list[int]

    @classmethod
    def read(cls, logs: Sequence[Path], tokenizer: Tokenizer) -> "Prompts":
        """Of the column `prompt` of Parquet files."""
        texts = sorted({text for log in logs for text in pq.read_table(log, columns=["prompt"])["prompt"].to_pylist()})
        np.random.default_rng(0).shuffle(texts)
        return cls(texts, [len(encoding) for encoding in tokenizer.encode_batch_fast(texts)])

    def split(self, n: int) -> "tuple[Prompts, Prompts]":
        """The first n, and the others."""
        return Prompts(self.texts[:n], self.n_tokens[:n]), Prompts(self.texts[n:], self.n_tokens[n:])

    def joined(self, n_tokens: int) -> "Prompts":
        """Prompts put together, each used once, until they reach a length."""
        texts, totals, parts, total = [], [], [], 0
        for text, n in zip(self.texts, self.n_tokens, strict=True):
            parts.append(text)
            total += n
            if total >= n_tokens:
                texts.append("\n\n".join(parts))
                totals.append(total)
                parts, total = [], 0
        return Prompts(texts, totals)

    def of_about(self, n_tokens: int) -> list[str]:
        """Those within 15 % of a length; long ones are put together from several."""
        prompts = self.joined(n_tokens) if n_tokens > JOINED_BEYOND_TOKENS else self
        lengths = zip(prompts.texts, prompts.n_tokens, strict=True)
        return [text for text, n in lengths if abs(n - n_tokens) <= 0.15 * n_tokens]

    def nearest(self, n_tokens: int, n: int) -> "Prompts":
        """The n whose length is nearest to one, in their order."""
        order = np.sort(np.argsort(np.abs(np.array(self.n_tokens) - n_tokens), kind="stable")[:n])
        return Prompts([self.texts[row] for row in order], [self.n_tokens[row] for row in order])


# ---- latency ---------------------------------------------------------------------------------------


def latency(setting: Setting, prompts: Prompts, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of both tables."""
    usable = [name for name in options.contenders if usable_with(name, setting)]
    rows, found_at = [], {}
    with ExitStack() as stack:
        processes = ready([stack.enter_context(Process(name, setting)) for name in usable])
        for n_tokens in options.tokens:
            texts = prompts.of_about(n_tokens)
            n_warm_up = min(WARM_UP_PROMPTS, len(texts) // 5)
            timed = texts[n_warm_up:][: options.most]
            if len(timed) < FEWEST_PROMPTS:
                complain(f"{n_tokens} tokens: left out, only {len(texts)} prompts of that length")
                continue
            warm_up(processes, texts[:n_warm_up])
            found = measure(processes, timed, options.most_slow, f"{n_tokens} tokens")
            rows += [latency_row(n_tokens, name, found) for name in found]
            found_at[n_tokens] = found
    return {"latency": rows, "ratios": [ratio_row(pair, goal, found_at) for pair, goal in GOALS.items()]}


def usable_with(name: str, setting: Setting) -> bool:
    """Whether the bundle that a contender needs is there; a line on stderr otherwise."""
    needs = CONTENDERS[name].needs
    if needs is None or getattr(setting, needs):
        return True
    complain(f"{name}: left out, it needs --{needs}")
    return False


def warm_up(processes: Sequence[Process], texts: list[str]) -> None:
    """Prompts that are not counted."""
    for process in processes:
        process.start(texts[:WARM_UP_PROMPTS_SLOW] if CONTENDERS[process.contender].is_slow else texts)
        process.seconds()


def measure(processes: Sequence[Process], texts: list[str], most_slow: int, title: str) -> dict[str, np.ndarray]:
    """Microseconds of each contender on each prompt, (n_prompts,); NaN where a slow one was not asked."""
    found = {process.contender: np.full(len(texts), np.nan) for process in processes}
    n_rounds = math.ceil(len(texts) / ROUND_PROMPTS)
    n_asked_slow = math.ceil(most_slow / n_rounds)
    for turn in tqdm(range(n_rounds), desc=title, unit="round"):
        start = turn * ROUND_PROMPTS
        asked = texts[start : start + ROUND_PROMPTS]
        for process in processes if turn % 2 else reversed(processes):
            process.start(asked[:n_asked_slow] if CONTENDERS[process.contender].is_slow else asked)
            seconds = process.seconds()
            found[process.contender][start : start + len(seconds)] = np.array(seconds) * 1e6
    return found


def latency_row(n_tokens: int, name: str, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of one contender at one length."""
    microseconds = found[name][np.isfinite(found[name])]
    p50, p95, p99 = np.percentile(microseconds, [50, 95, 99]).tolist()
    return {
        "tokens": n_tokens, "contender": name, "n": len(microseconds), "p50_us": p50, "p95_us": p95, "p99_us": p99,
        "ratio": ratio(found, name, FLOOR),
    }  # fmt: skip


def ratio_row(pair: tuple[str, str], goal: float, found_at: dict[int, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Of one pair at all lengths."""
    ratios = {n_tokens: ratio(found, *pair) for n_tokens, found in found_at.items()}
    return {"contender": pair[0], "to": pair[1], "goal": goal, "goal_tokens": GOAL_TOKENS, "ratios": ratios}


def ratio(found: dict[str, np.ndarray], name: str, other: str) -> float | None:
    """Of the medians over the prompts that both were given; None where one of the two was left out."""
    if name not in found or other not in found:
        return None
    both = np.isfinite(found[name]) & np.isfinite(found[other])
    return float(np.median(found[name][both]) / np.median(found[other][both]))


# ---- throughput ------------------------------------------------------------------------------------


def throughput(setting: Setting, prompts: Prompts) -> dict[str, Any]:
    """Prompts per second of `route_batch` in one process, and in two at once.

    Each process has one thread and, where the system can, one core; it meets every prompt once, the two start
    at opposite ends of the same batches. The two processes' rate is the sum of theirs.
    """
    n_batches = min(MOST_BATCHES, (len(prompts.texts) - WARM_UP_PROMPTS) // BATCH_PROMPTS)
    chosen = prompts.nearest(GOAL_TOKENS, WARM_UP_PROMPTS + n_batches * BATCH_PROMPTS)
    first, timed = chosen.split(WARM_UP_PROMPTS)
    batches = [timed.texts[start : start + BATCH_PROMPTS] for start in range(0, len(timed.texts), BATCH_PROMPTS)]
    shares = [batches, batches[::-1]]
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in tqdm(range(2 * BATCH_ROUNDS), desc="throughput", unit="run"):
        n_processes = 1 + turn % 2
        rates[n_processes].append(sum(batch_rates(setting, shares[:n_processes], first.texts)))
    one, two = (float(np.median(rates[n])) for n in (1, 2))
    return {
        "batch_prompts": BATCH_PROMPTS, "mean_tokens": float(np.mean(timed.n_tokens)),
        "one_process_prompts_per_s": one, "two_processes_prompts_per_s": two, "scaling": two / one,
        "goal_prompts_per_s_per_core": GOAL_PROMPTS_PER_SECOND,
    }  # fmt: skip


def batch_rates(setting: Setting, shares: Sequence[list[list[str]]], warm_up_texts: list[str]) -> list[float]:
    """Prompts per second of fresh processes at work side by side, each on its share of the batches."""
    with ExitStack() as stack:
        processes = ready([stack.enter_context(Process(BATCH, setting, core)) for core in range(len(shares))])
        for process in processes:
            process.start([warm_up_texts])
            process.seconds()
        for process, batches in zip(processes, shares, strict=True):
            process.start(batches)
        return [BATCH_PROMPTS * len(batches) / sum(process.seconds())
                for process, batches in zip(processes, shares, strict=True)]  # fmt: skip


# ---- memory and cold start -------------------------------------------------------------------------


def memory(bundle: Path, prompts: Prompts) -> dict[str, Any]:
    """Medians over fresh processes, and the bundle's files, which are in the system's cache after the first start."""
    texts = prompts.nearest(GOAL_TOKENS, 1000).texts
    starts = [cold_start(bundle, texts) for _ in tqdm(range(COLD_STARTS), desc="cold starts", unit="run")]
    return {
        "import_ms": float(np.median([start["import_ms"] for start in starts])),
        "load_ms": float(np.median([start["load_ms"] for start in starts])),
        "routes": len(texts),
        "memory_mb": {
            moment: {name: middle([start["memory_mb"][moment][name] for start in starts]) for name in ("now", "most")}
            for moment in starts[0]["memory_mb"]
        },
        "files_bytes": {path.name: path.stat().st_size for path in sorted(bundle.iterdir())},
    }


def cold_start(bundle: Path, texts: list[str]) -> dict[str, Any]:
    """What one fresh process says of itself."""
    with _start("footprint") as popen:
        answer, _ = popen.communicate(json.dumps({"bundle": str(bundle), "prompts": texts}) + "\n")
    if popen.returncode:
        raise RuntimeError("the process that loads the bundle failed; its error stands above")
    return json.loads(answer)


def middle(values: list[float | None]) -> float | None:
    """The median; None where the system does not tell."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


# ---- printing --------------------------------------------------------------------------------------


def tables(document: dict[str, Any]) -> list[str]:
    """The document as Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in document["machine"].items()), ""]
    if document.get("latency"):
        lines += latency_table(document["latency"]) + ratio_table(document["ratios"])
    if "throughput" in document:
        lines += throughput_table(document["throughput"])
    if "memory" in document:
        lines += memory_table(document["memory"])
    return lines


def latency_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Microseconds of every contender at every length."""
    lines = [
        "| tokens | contender | prompts | p50 us | p95 us | p99 us | to bare tokenizer |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = " | ".join(f"{row[key]:.0f}" for key in ("p50_us", "p95_us", "p99_us"))
        lines.append(f"| {row['tokens']} | {row['contender']} | {row['n']} | {figures} | {number(row['ratio'])} |")
    return [*lines, ""]


def ratio_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The pairs that have a goal."""
    lengths = list(rows[0]["ratios"])
    lines = [
        f"| ratio of medians | goal at {GOAL_TOKENS} | " + " | ".join(f"{n} tokens" for n in lengths) + " |",
        "|---" * (2 + len(lengths)) + "|",
    ]
    for row in rows:
        found = " | ".join(number(row["ratios"][n]) for n in lengths)
        lines.append(f"| {row['contender']} / {row['to']} | <= {row['goal']:.2f} | {found} |")
    return [*lines, ""]


def throughput_table(found: dict[str, Any]) -> list[str]:
    """One process and two."""
    lines = [
        f"`route_batch` of {found['batch_prompts']} prompts, {found['mean_tokens']:.0f} tokens on average, static "
        f"bundle; goal: {found['goal_prompts_per_s_per_core']} prompts/s per core",
        "",
        "| processes, one thread and core each | prompts/s | prompts/s per core | scaling |",
        "|---|---|---|---|",
    ]
    for n, key in ((1, "one_process_prompts_per_s"), (2, "two_processes_prompts_per_s")):
        scaling = found[key] / found["one_process_prompts_per_s"]
        lines.append(f"| {n} | {found[key]:.0f} | {found[key] / n:.0f} | {scaling:.2f} |")
    return [*lines, ""]


def memory_table(found: dict[str, Any]) -> list[str]:
    """Time and memory of a fresh process, then the files."""
    now = {moment: number(mb["now"], 0) for moment, mb in found["memory_mb"].items()}
    most = {moment: number(mb["most"], 0) for moment, mb in found["memory_mb"].items()}
    lines = ["| fresh process | ms | resident MB | most so far MB |", "|---|---|---|---|"]
    lines.append(f"| import router | {found['import_ms']:.0f} | {now['imported']} | {most['imported']} |")
    lines.append(f"| Router.load | {found['load_ms']:.0f} | {now['loaded']} | {most['loaded']} |")
    lines.append(f"| {found['routes']} routes | | {now['routed']} | {most['routed']} |")
    lines += ["", "| file of the bundle | kB |", "|---|---|"]
    lines += [f"| {name} | {size / 1e3:.0f} |" for name, size in found["files_bytes"].items()]
    lines.append(f"| all | {sum(found['files_bytes'].values()) / 1e3:.0f} |")
    return [*lines, ""]


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def machine() -> dict[str, str]:
    """What the figures hold for."""
    found = {"system": f"{platform.system()} {platform.machine()}", "cores": str(os.cpu_count())}
    found["python"] = platform.python_version()
    for package in VERSIONS_OF:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> int:
    """Measure and print; exit code 1 where no length had enough prompts, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Latency of a decision, beside the bare tokenizer and other routers.")
    parser.add_argument("--static", type=Path, required=True, help="a bundle with the static encoder")
    parser.add_argument("--minilm", type=Path, help="a bundle with the encoder minilm")
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="Parquet files with a column prompt")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128, 256, 1024])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--most", type=int, default=2000, help="prompts of each length")
    parser.add_argument("--most-slow", type=int, default=300, help="of these, for contenders of 10 ms and more")
    parser.add_argument("--throughput", action="store_true", help="route_batch of the static bundle, on two cores")
    parser.add_argument("--memory", action="store_true", help="memory, cold start and size of the static bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    for bundle in filter(None, (options.static, options.minilm)):
        if not (bundle / "manifest.json").exists():
            parser.error(f"{bundle} is no bundle: found no manifest.json; train one with `broker train --out {bundle}`")

    tokenizer = Tokenizer.from_file(str(options.static / "tokenizer.json"))
    tokenizer.no_truncation()
    examples, prompts = Prompts.read(options.prompts, tokenizer).split(N_EXAMPLES)
    setting = Setting(str(options.static), str(options.minilm or ""), examples.texts)
    document: dict[str, Any] = {"machine": machine()}
    if options.throughput:
        if len(prompts.texts) < FEWEST_PROMPTS_THROUGHPUT:
            parser.error(f"found {len(prompts.texts)} prompts; --throughput takes {FEWEST_PROMPTS_THROUGHPUT} and more")
        document["throughput"] = throughput(setting, prompts)
    if options.memory:
        document["memory"] = memory(options.static, prompts)
    if not (options.throughput or options.memory):
        document |= latency(setting, prompts, options)
    print(json.dumps(document) if options.json else "\n".join(tables(document)))
    return 1 if document.get("latency") == [] else 0


if __name__ == "__main__":
    sys.exit(main())
