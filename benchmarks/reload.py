"""What a reload costs the requests that go on meanwhile.

    .venv/bin/python benchmarks/reload.py --bundle models/NAME [--threads 16] [--rounds 20]

Threads route without a pause while, in every second window, the main thread reloads the bundle or takes other
prices. Windows with and without a change alternate, so that the machine's other work meets both alike. Prints
microseconds per request (p50, p99, worst) of both kinds of window and the ratio of their p99. Simulated load: every
thread is always busy, which no real service is.
"""

import argparse
import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from router import Router
from router.bundle.manifest import GOLDEN_FILE, TIERS_FILE

WINDOW_S = 0.5


def prompts_of(bundle: Path) -> list[str]:
    """Different short prompts, made from the bundle's golden ones."""
    texts = [json.loads(line)["prompt"] for line in (bundle / GOLDEN_FILE).read_text().split("\n") if line]
    return [f"{number}. {text[:300]}" for number in range(50) for text in texts]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Latency of requests while bundle and prices change.")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20, help="pairs of windows")
    options = parser.parse_args()
    router, prompts = Router.load(options.bundle), prompts_of(options.bundle)
    done, kind = threading.Event(), ["quiet"]
    seconds: dict[str, list[float]] = {"quiet": [], "reload": [], "prices": []}

    def work(start: int) -> None:
        for text in itertools.islice(itertools.cycle(prompts), start, None):
            began, window = time.perf_counter(), kind[0]
            router.route(text)
            seconds[window].append(time.perf_counter() - began)
            if done.is_set():
                return

    with ThreadPoolExecutor(options.threads) as threads:
        running = [threads.submit(work, start) for start in range(options.threads)]
        time.sleep(WINDOW_S)  # warm-up
        for values in seconds.values():
            values.clear()
        for number in range(options.rounds):
            kind[0] = "quiet"
            time.sleep(WINDOW_S)
            kind[0] = "reload" if number % 2 else "prices"
            ends = time.perf_counter() + WINDOW_S
            while time.perf_counter() < ends:
                if kind[0] == "reload":
                    router.reload(options.bundle)
                else:
                    router.update_prices(options.bundle / TIERS_FILE)
                time.sleep(0.1)
        done.set()
        for each in running:
            each.result()
    print("| window | requests | p50 us | p99 us | worst us | p99 ratio |\n|---|---|---|---|---|---|")
    quiet_p99 = float(np.percentile(seconds["quiet"], 99))
    for window, values in seconds.items():
        p50, p99, worst = np.percentile(values, [50, 99, 100]) * 1e6
        print(f"| {window} | {len(values)} | {p50:.0f} | {p99:.0f} | {worst:.0f} | {p99 / quiet_p99 / 1e6:.2f} |")


if __name__ == "__main__":
    main()
