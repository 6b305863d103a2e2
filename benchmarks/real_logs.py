"""The router on public outcome logs: the tables of docs/results.md and the picture of the README.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/real_logs.py [--splits 5] [--picture benchmarks/mmlu_pro.png]
        [--logs LOG...] [--leads leads.json]

FOLDER holds one log per sub-folder (mmlu_pro, zeroeval, routellm, llmrouter, bfcl, lexeval, mbpp), in the format of
data/README.md. The tiers of the first four logs stand in benchmarks/tiers, those of the others in FOLDER/pools. Each
split holds out another fifth of the questions. Everything (tokenizer, token vectors, estimator, dial) is learned on
the rest by `training.train` with its defaults, and the bundle is judged on the fifth through the graph that ships.
Figures are means over the splits; in brackets stands the standard error of that mean, which is somewhat too small,
since the splits share prompts. All policies but the router decide by worth x success - mean cost of the tier.

At the end stands the mean lead in AIQ over the best baseline: that with the highest mean on the log, so it is chosen in
hindsight, for the baselines. Each log counts alike. Its interval is a bootstrap at 95 %: logs are drawn with
replacement, and within each log its splits. With --leads, the leads of logs from earlier runs count as well.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.bundle import Bundle
from training import TrainingConfig, train
from training.evaluation.baselines import gain, kmeans, knn, linear
from training.evaluation.bundle_graph import embed_with
from training.evaluation.judged import JudgedPrompts
from training.evaluation.metrics import Interval, Policy, choices_by_worth, policy_figures, worth_grid
from training.evaluation.result import FullEvaluation
from training.evaluation.training_data import TrainingData
from training.fit.classifier import lightgbm_settings
from training.log.ingest import ingest
from training.reports.figures import cost_quality_figure

LOGS = ("mmlu_pro", "zeroeval", "routellm", "llmrouter", "bfcl", "lexeval", "mbpp")
TIERS = Path(__file__).parent / "tiers"
FIGURES = ("aiq", "cost_at_98", "cost_at_95", "apgr", "brier")
HEAD_ROUNDS = 60
N_BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Split:
    """One split of one log.

    policies: the figures of every policy, by its name and theirs; those that do not apply are missing.
    seconds: that the whole training run took.
    """

    evaluation: FullEvaluation
    policies: Mapping[str, Mapping[str, float]]
    seconds: float


def lightgbm_heads(train: np.ndarray, correct: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Success as a LightGBM regression per tier; as `training.evaluation.baselines.knn`."""
    settings = {**lightgbm_settings(len(train), seed=0), "objective": "regression", "learning_rate": 0.05}
    success = np.empty((len(test), correct.shape[1]))
    for tier, outcomes in enumerate(correct.T):
        seen = np.isfinite(outcomes)
        booster = lightgbm.train(settings, lightgbm.Dataset(train[seen], outcomes[seen]), HEAD_ROUNDS)
        success[:, tier] = np.clip(booster.predict(test, num_threads=1), 0, 1)
    return success


BASELINES = {"kNN": knn, "k-means": kmeans, "logistic": linear, "LightGBM heads": lightgbm_heads}


def splits_of(log: Path, n_splits: int, folder: Path, bar: tqdm) -> list[Split]:
    """Train and judge on every split of a log."""
    own = TIERS / f"{log.name}.toml"
    tiers = own if own.exists() else log.parent / "pools" / own.name
    found = []
    for seed in range(n_splits):
        start = time.perf_counter()
        out, cache = folder / f"{log.name}-{seed}", folder / f"cache-{seed}"
        evaluation = train(log, tiers, out, TrainingConfig(seed=seed, cache=cache), tracking_uri="none").evaluation
        seconds = time.perf_counter() - start
        found.append(Split(evaluation, policies(Bundle.load(out), evaluation, log), seconds))
        bar.update()
    return found


def policies(bundle: Bundle, evaluation: FullEvaluation, log: Path) -> dict[str, dict[str, float]]:
    """The figures of router, learned baselines and mixes of single tiers, on the prompts held out."""
    training = TrainingData.load(bundle)
    table = ingest(log, bundle.prices.tiers)
    judged = JudgedPrompts.of(
        bundle, table.rows(~training.saw(table.groups) & np.isfinite(table.correct).all(axis=1)), seed=0
    )
    outcomes, vectors = judged.outcomes, embed_with(bundle, judged.table.prompts)
    once = np.full((1, len(vectors)), 1 / len(vectors), np.float32)
    correct, worths = training.correct[training.embedded], worth_grid(training.mean_cost_usd)

    def brier(success: np.ndarray) -> float:
        return float(((success - outcomes.correct) ** 2).mean())

    def reported(result: Mapping[str, Interval]) -> dict[str, float]:
        return {name: result[name].value for name in FIGURES if name in result}

    rates = np.broadcast_to(np.nanmean(training.correct, axis=0), outcomes.correct.shape)
    found = {
        "router": {**reported(evaluation.router.figures), "brier": brier(judged.estimates["success"])},
        "mix of single models": {**reported(evaluation.baselines["random"].figures), "brier": brier(rates)},
    }
    for name, fit in BASELINES.items():
        with threadpool_limits(1):
            success = fit(training.embedding, correct, vectors)
        policy = Policy(choices_by_worth(success, training.mean_cost_usd, worths), gain(success, outcomes.best))
        figures = policy_figures(policy, outcomes, once)
        found[name] = {each: float(figures[each][0]) for each in FIGURES if each in figures} | {"brier": brier(success)}
    return found


def cell(values: Sequence[float], digits: int) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.{digits}f} ({error:.{digits}f})"


def leads(splits: Sequence[Split], policy: str) -> list[float]:
    """AIQ of the router minus that of a policy, in every split."""
    return [split.policies["router"]["aiq"] - split.policies[policy]["aiq"] for split in splits]


def table(splits: Sequence[Split]) -> list[str]:
    """Markdown rows for one log."""
    first = splits[0].policies
    names = [name for name in FIGURES if name in first["router"]]
    lines = [f"| policy | {' | '.join(names)} | AIQ lead of the router |", "|---" * (len(names) + 2) + "|"]
    for policy in first:
        cells = [cell([split.policies[policy][name] for split in splits], 3) for name in names]
        lead = "" if policy == "router" else cell(leads(splits, policy), 4)
        lines.append(f"| {policy} | {' | '.join(cells)} | {lead} |")
    return lines


def mean_lead(by_log: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """The mean lead over the best baseline, and over each, with intervals, in a sentence.

    by_log: for every log the leads over each baseline, (n_splits, n_baselines).
    """
    rng, names = np.random.default_rng(0), list(BASELINES)
    cubes = [np.array(each) for each in by_log.values()]

    def text(values: Sequence[np.ndarray]) -> str:
        drawn = []
        for _ in range(N_BOOTSTRAP):
            logs = rng.integers(len(values), size=len(values))
            drawn.append(np.mean([rng.choice(values[log], len(values[log])).mean() for log in logs]))
        low, high = np.quantile(drawn, [0.025, 0.975])
        return f"{np.mean([each.mean() for each in values]):+.4f} ({low:+.4f} to {high:+.4f})"

    best = text([cube[:, cube.mean(axis=0).argmin()] for cube in cubes])
    each = ", ".join(f"{name} {text([cube[:, at] for cube in cubes])}" for at, name in enumerate(names))
    return (
        f"Mean lead in AIQ over {len(cubes)} logs: over the best baseline of each log {best}; "
        f"over one baseline for all logs: {each}."
    )


def facts(splits: Sequence[Split]) -> str:
    """Calibration, the dial, time, in a sentence."""
    results, seconds = [split.evaluation for split in splits], [split.seconds for split in splits]
    first = results[0]
    ece = {tier: np.mean([result.calibration[tier][0].value for result in results]) for tier in first.tiers}
    dial = [next(point for point in result.dial if point.quality == 0.98) for result in results]
    kept, cost = [point.kept.value for point in dial], []
    for result, point in zip(results, dial, strict=True):
        cost.append(point.usd_per_1k.value / result.single[result.best_tier][1].value)
    promised = sum(point.promised for point in dial)
    refused = [point.cost_of_best.value for result in results for point in result.dial if not point.promised]
    proven = [point.cost_of_best.value for result in results for point in result.dial if point.promised]
    return (
        f"{np.mean([r.n_prompts for r in results]):.0f} prompts judged per split. Expected calibration error per tier: "
        + ", ".join(f"{tier} {value:.3f}" for tier, value in ece.items())
        + f". Dial at quality 0.98 (promised in {promised} of {len(results)} splits): kept {cell(kept, 3)} of the best "
        f"tier's accuracy at {cell(cost, 2)} of its cost. Of all {len(refused + proven)} rows of the dials, "
        f"{len(refused)} are not promised and cost at most {max(refused, default=0):.3f} of the best tier, the others "
        f"at most {max(proven, default=0):.3f}. Training and evaluation: {np.mean(seconds):.0f} s."
    )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The router on public outcome logs.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--picture", type=Path, help="write the cost-quality curve of mmlu_pro's first split here")
    parser.add_argument("--leads", type=Path, help="keep the leads of each log here, to run one log at a time")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    by_log: dict[str, list[list[float]]] = {}
    if options.leads and options.leads.exists():
        by_log = json.loads(options.leads.read_text())
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(options.logs) * options.splits, unit="run") as bar:
        for name in options.logs:
            splits = splits_of(Path(root) / name, options.splits, Path(folder), bar)
            print("\n".join([f"**{name}**", "", *table(splits), "", facts(splits), ""]), flush=True)
            by_log[name] = np.array([leads(splits, baseline) for baseline in BASELINES]).T.tolist()
            if name == "mmlu_pro" and options.picture:
                cost_quality_figure(splits[0].evaluation).savefig(options.picture)
    if options.leads:
        options.leads.write_text(json.dumps(by_log))
    print(mean_lead(by_log))
    return 0


if __name__ == "__main__":
    sys.exit(main())
