"""Does the quality dial keep its promise, what does it cost, and how many prompts does it take? Tables of promise.md.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/promise.py [--draws 200] [--sizes 500 2000 8000]
    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/promise.py --needed [--draws 200]

Out-of-fold estimates are made once per log, as training makes them. The log's prompts are then the population: dials
are calibrated again and again on prompts drawn from it at random, with replacement, and each dial is held against what
it keeps on the whole log, in the worst of the orders in which prices can rank the tiers (of more than six tiers, of 720
orders drawn at random). So the truth is known exactly, and a promise is broken where less is kept than was promised.
Costs are those at the log's own prices, relative to always asking the best tier.

With --needed: how many prompts a promise is said to take, by the audit and by the dial; and how often it is made, at
slack 0, on half as many prompts, on as many and on twice as many as the dial says, drawn in the same way.
"""

import argparse
import os
import sys
import tempfile
from itertools import permutations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from router.portfolio.tiers import read_tiers
from training import SuccessEstimator, TrainingConfig
from training.audit.promises import needed_by_quality
from training.dial.betting import Bets
from training.dial.dial import calibrate_dial
from training.encoders.embed import embed
from training.encoders.make import make_encoder
from training.log.costs import attempt_costs
from training.log.ingest import ingest

LOGS = ("mmlu_pro", "zeroeval", "routellm", "llmrouter")
TIERS = Path(__file__).parent / "tiers"
QUALITIES = (0.90, 0.95, 0.98, 1.00)
CONFIDENCE = 0.95
MAX_ORDERS = 720
MAX_NEEDED = 20_000
HEADER = ("prompts", "quality", "refused", "promise broken", "kept, worst order", "kept", "cost of always-best")
NEEDED_HEADER = (
    "quality", "audit: like the best tier", "audit: right elsewhere", "dial", "made on half as many", "on as many",
    "on twice as many",
)  # fmt: skip


class Population:
    """Prompts that every tier answered: out-of-fold success, outcomes and costs, (n_prompts, n_tiers) each."""

    def __init__(self, log: Path, cache: Path) -> None:
        tiers = read_tiers(TIERS / f"{log.name}.toml")
        table = ingest(log, tiers)
        encoder, _ = make_encoder(TrainingConfig(), table, cache)
        vectors = embed(encoder, table.prompts, table.prompt_ids, cache).vectors
        costs = attempt_costs(table, tiers).cost_usd
        estimator = SuccessEstimator().fit(vectors, table.correct, cost_usd=costs, groups=table.groups)
        full = np.isfinite(table.correct).all(axis=1)
        self.success, self.correct, self.cost = estimator.out_of_fold_[full], table.correct[full], costs[full]
        n_tiers = len(tiers)
        rng = np.random.default_rng(0)
        all_orders = list(permutations(range(n_tiers))) if n_tiers <= 6 else []
        self.orders = all_orders or [tuple(rng.permutation(n_tiers)) for _ in range(MAX_ORDERS)]
        self.by_cost = tuple(np.argsort(self.cost.mean(axis=0)))
        self.best = int(self.correct.mean(axis=0).argmax())
        self._kept: dict[float, tuple[float, float, float]] = {}

    def truth(self, slack: float) -> tuple[float, float, float]:
        """Accuracy kept in the worst order of prices; accuracy kept and relative cost at the log's own prices."""
        if slack not in self._kept:
            admissible = self.success >= self.success.max(axis=1, keepdims=True) - slack
            rows = np.arange(len(admissible))
            accuracy = self.correct.mean(axis=0)[self.best]
            kept = [
                self.correct[rows, np.array(order)[admissible[:, order].argmax(axis=1)]].mean() / accuracy
                for order in self.orders
            ]
            chosen = np.array(self.by_cost)[admissible[:, self.by_cost].argmax(axis=1)]
            self._kept[slack] = (
                min(kept),
                self.correct[rows, chosen].mean() / accuracy,
                self.cost[rows, chosen].mean() / self.cost[:, self.best].mean(),
            )
        return self._kept[slack]


def line(population: Population, n: int, draws: int, bar: tqdm) -> list[str]:
    """Rows of the table for one number of calibration prompts."""
    found: dict[float, list[tuple[float, float, float, float]]] = {quality: [] for quality in QUALITIES}
    for seed in range(draws):
        rows = np.random.default_rng(seed).integers(len(population.correct), size=n)
        dial = calibrate_dial(population.success[rows], population.correct[rows], CONFIDENCE, qualities=QUALITIES)
        for point in dial:
            if point.promised:
                kept_worst, kept, cost = population.truth(point.slack)
                found[point.quality].append((kept_worst < point.quality, kept_worst, kept, cost))
        bar.update()
    lines = []
    for quality, results in found.items():
        refused = 1 - len(results) / draws
        cells = ["", "", ""] if not results else [f"{value:.3f}" for value in np.mean(results, axis=0)[1:]]
        broken = sum(result[0] for result in results) / draws
        lines.append(f"| {n:,} | {quality:.2f} | {refused:.1%} | {broken:.1%} | {' | '.join(cells)} |")
    return lines


def needed_lines(population: Population, draws: int, bar: tqdm) -> list[str]:
    """Rows of the table of how many prompts a promise takes."""
    enough = float(-np.log(1 - CONFIDENCE))
    by_audit = needed_by_quality(population.correct, population.best)

    def bets(rows: np.ndarray | slice) -> Bets:
        return Bets.at(0.0, population.success[rows], population.correct[rows], enough, 1.0)

    def share_promised(n: int, quality: float) -> str:
        rng = np.random.default_rng(n)
        logs = (bets(rng.integers(len(population.correct), size=n)) for _ in range(draws))
        return f"{np.mean([log.log_wealth(quality) >= enough for log in logs]):.0%}"

    lines = []
    for quality, audited in by_audit.items():
        found = bets(slice(None)).n_needed(quality)
        counts = [audited.like_best, audited.like_substitute, found]
        sizes = [found // 2, found, 2 * found] if found and found <= MAX_NEEDED else []
        cells = [*(f"{n:,}" if n else "none" for n in counts), *(share_promised(n, quality) for n in sizes)]
        lines.append(f"| {quality:.2f} | {' | '.join([*cells, '', '', ''][:6])} |")
        bar.update()
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The promise of the quality dial on public outcome logs.")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--needed", action="store_true", help="how many prompts a promise takes")
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    steps = len(options.logs) * (len(QUALITIES) if options.needed else len(options.sizes) * options.draws)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=steps, unit="dial") as bar:
        for name in options.logs:
            population = Population(Path(root) / name, Path(folder) / name)
            shape = population.correct.shape
            header = NEEDED_HEADER if options.needed else HEADER
            print(f"**{name}**, {shape[0]:,} prompts, {shape[1]} tiers, {len(population.orders)} orders of prices\n")
            print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
            if options.needed:
                print("\n".join(needed_lines(population, options.draws, bar)), flush=True)
            for n in [] if options.needed else options.sizes:
                print("\n".join(line(population, n, options.draws, bar)), flush=True)
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
