"""The router on public outcome logs: the table and the picture of the README.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/real_logs.py [--splits 5] [--picture benchmarks/mmlu_pro.png]

FOLDER holds one log per sub-folder (mmlu_pro, zeroeval, routellm, llmrouter, bfcl, lexeval, mbpp), in the format of
data/README.md. The tiers of the first four logs stand in benchmarks/tiers, those of the others in FOLDER/pools. Each
split holds out another fifth of the questions. Everything (tokenizer, token vectors, estimator, dial) is learned on
the rest by `training.train` with its defaults, and the bundle is judged on the fifth through the graph that ships.
Figures are means over the splits; in brackets stands the standard error of that mean, which is somewhat too small,
since the splits share prompts.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from training import TrainingConfig, train
from training.evaluation.result import FullEvaluation
from training.reports.figures import cost_quality_figure

LOGS = ("mmlu_pro", "zeroeval", "routellm", "llmrouter", "bfcl", "lexeval", "mbpp")
TIERS = Path(__file__).parent / "tiers"
POLICIES = ("router", "knn", "kmeans", "linear", "random")
FIGURES = ("aiq", "cost_at_98", "cost_at_95", "apgr")


def evaluations(log: Path, splits: int, folder: Path, bar: tqdm) -> tuple[list[FullEvaluation], list[float]]:
    """One evaluation per split, and the seconds that each whole training run took."""
    results, seconds = [], []
    own = TIERS / f"{log.name}.toml"
    tiers = own if own.exists() else log.parent / "pools" / own.name
    for seed in range(splits):
        start = time.perf_counter()
        out, cache = folder / f"{log.name}-{seed}", folder / f"cache-{seed}"
        results.append(train(log, tiers, out, TrainingConfig(seed=seed, cache=cache), tracking_uri="none").evaluation)
        seconds.append(time.perf_counter() - start)
        bar.update()
    return results, seconds


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ({error:.{digits}f})"


def figure(evaluation: FullEvaluation, policy: str, name: str) -> float | None:
    """One figure of the router or a baseline."""
    result = evaluation.router if policy == "router" else evaluation.baselines[policy]
    return result.figures[name].value if name in result.figures else None


def table(results: Sequence[FullEvaluation]) -> list[str]:
    """Markdown rows for one log."""
    names = [name for name in FIGURES if figure(results[0], "router", name) is not None]
    lines = [f"| policy | {' | '.join(names)} | AIQ lead of the router |", "|---" * (len(names) + 2) + "|"]
    for policy in POLICIES:
        cells = [cell([figure(result, policy, name) or 0.0 for result in results], 3) for name in names]
        leads = [(figure(r, "router", "aiq") or 0) - (figure(r, policy, "aiq") or 0) for r in results]
        lines.append(f"| {policy} | {' | '.join(cells)} | {'' if policy == 'router' else cell(leads, 4)} |")
    return lines


def facts(results: Sequence[FullEvaluation], seconds: Sequence[float]) -> str:
    """Calibration, the dial, time, in a sentence."""
    first = results[0]
    ece = {tier: np.mean([result.calibration[tier][0].value for result in results]) for tier in first.tiers}
    dial = [next(point for point in result.dial if point.quality == 0.98) for result in results]
    kept, cost = [point.kept.value for point in dial], []
    for result, point in zip(results, dial, strict=True):
        cost.append(point.usd_per_1k.value / result.single[result.best_tier][1].value)
    promised = sum(point.promised for point in dial)
    return (
        f"{np.mean([r.n_prompts for r in results]):.0f} prompts judged per split. Expected calibration error per tier: "
        + ", ".join(f"{tier} {value:.3f}" for tier, value in ece.items())
        + f". Dial at quality 0.98 (promised in {promised} of {len(results)} splits): kept {cell(kept, 3)} of the best "
        f"tier's accuracy at {cell(cost, 2)} of its cost. Training and evaluation: {np.mean(seconds):.0f} s."
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The router on public outcome logs.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--picture", type=Path, help="write the cost-quality curve of mmlu_pro's first split here")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(options.logs) * options.splits, unit="run") as bar:
        for name in options.logs:
            results, seconds = evaluations(Path(root) / name, options.splits, Path(folder), bar)
            print("\n".join([f"**{name}**", "", *table(results), "", facts(results, seconds), ""]), flush=True)
            if name == "mmlu_pro" and options.picture:
                cost_quality_figure(results[0]).savefig(options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
