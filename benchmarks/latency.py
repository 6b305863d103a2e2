"""How long a decision takes, against the bare tokenizer.

    .venv/bin/python benchmarks/latency.py --bundle models/NAME --prompts LOG [--tokens 16 64 128 256 1024]

Each contender runs in a process of its own, on one thread, over the same prompts, every one of them
different; contenders take turns in short rounds, so that a change of the machine's speed meets all alike.
Prints a Markdown table of microseconds (p50, p95, p99) and of the ratio of medians to the bare tokenizer.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from router import Router

ROUND_PROMPTS = 50
WARM_UP_PROMPTS = 300


def bare_tokenizer(bundle: Path) -> Callable[[str], object]:
    """The floor: what any router that reads the prompt must pay."""
    return Tokenizer.from_file(str(bundle / "tokenizer.json")).encode


def router(bundle: Path) -> Callable[[str], object]:
    """The whole decision."""
    return Router.load(bundle).route


CONTENDERS = {"bare tokenizer": bare_tokenizer, "router": router}


def serve(name: str, bundle: Path, connection: Connection) -> None:
    """Time a contender on each list of prompts that arrives; None ends it."""
    decide = CONTENDERS[name](bundle)
    while (prompts := connection.recv()) is not None:
        seconds = []
        for prompt in prompts:
            start = time.perf_counter()
            decide(prompt)
            seconds.append(time.perf_counter() - start)
        connection.send(seconds)


def measure(bundle: Path, prompts: list[str], warm_up: list[str]) -> dict[str, np.ndarray]:
    """Microseconds per prompt of each contender, in turns."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, bundle, theirs), daemon=True))
        processes[-1].start()
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for name in CONTENDERS:
        pipes[name].send(warm_up)
        pipes[name].recv()
    for start in range(0, len(prompts), ROUND_PROMPTS):
        names = list(CONTENDERS)
        for name in names if (start // ROUND_PROMPTS) % 2 else reversed(names):
            pipes[name].send(prompts[start : start + ROUND_PROMPTS])
            seconds[name] += pipes[name].recv()
    for name, process in zip(CONTENDERS, processes, strict=True):
        pipes[name].send(None)
        process.join()
    return {name: np.array(values) * 1e6 for name, values in seconds.items()}


def by_length(bundle: Path, logs: list[Path], n_tokens: int, most: int) -> list[str]:
    """Different prompts of about so many tokens (within 15 %); long ones are cut from several prompts together."""
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.no_truncation()
    prompts = sorted({text for log in logs for text in pq.read_table(log, columns=["prompt"])["prompt"].to_pylist()})
    np.random.default_rng(0).shuffle(prompts)
    lengths = [len(encoding) for encoding in tokenizer.encode_batch_fast(prompts)]
    if n_tokens > 256:
        prompts, lengths = join_until(prompts, lengths, n_tokens)
    near = [text for text, n in zip(prompts, lengths, strict=True) if abs(n - n_tokens) <= 0.15 * n_tokens]
    return near[:most]


def join_until(prompts: list[str], lengths: list[int], n_tokens: int) -> tuple[list[str], list[int]]:
    """Prompts put together, each used once, until they reach a length."""
    joined, totals, texts, total = [], [], [], 0
    for text, n in zip(prompts, lengths, strict=True):
        texts.append(text)
        total += n
        if total >= n_tokens:
            joined.append("\n\n".join(texts))
            totals.append(total)
            texts, total = [], 0
    return joined, totals


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Latency of a decision, against the bare tokenizer.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True, help="Parquet files with a column prompt")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128, 256, 1024])
    parser.add_argument("--most", type=int, default=2000, help="prompts of each length")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    for n_tokens in options.tokens:
        prompts = by_length(options.bundle, options.prompts, n_tokens, options.most)
        if len(prompts) < 100:
            sys.stderr.write(f"{n_tokens} tokens: only {len(prompts)} prompts of that length, left out\n")
            continue
        warm_up = prompts[: min(WARM_UP_PROMPTS, len(prompts) // 5)]
        found = measure(options.bundle, prompts[len(warm_up) :], warm_up)
        floor = float(np.median(found["bare tokenizer"]))
        for name, microseconds in found.items():
            p50, p95, p99 = np.percentile(microseconds, [50, 95, 99])
            rows.append(
                {"tokens": n_tokens, "contender": name, "n": len(microseconds), "p50_us": p50, "p95_us": p95,
                 "p99_us": p99, "ratio": p50 / floor}
            )  # fmt: skip
    if options.json:
        print(json.dumps(rows))
        return 0
    print("| tokens | contender | prompts | p50 us | p95 us | p99 us | ratio |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['tokens']} | {row['contender']} | {row['n']} | {row['p50_us']:.0f} | {row['p95_us']:.0f} "
            f"| {row['p99_us']:.0f} | {row['ratio']:.2f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
