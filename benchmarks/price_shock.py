"""Prices change overnight: a bundle left as it is, labels that froze the old prices, and a training from scratch.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/price_shock.py [--logs zeroeval] [--splits 2]

Outcomes are logged ones; costs are logged tokens x list price (a tier's mean length where none was logged) and the
changes of prices are made up: one provider's cut by 90 %, another's doubled. Judged on the questions held out.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from lightgbm import LGBMClassifier

from router.bundle.bundle import Bundle
from router.policy import Policy, resolve_dials
from router.portfolio.prices import PriceTable
from training import TrainingConfig, train
from training.evaluation.bundle_graph import BundleGraph, embed_with
from training.evaluation.metrics import Interval, interval, resamples
from training.evaluation.training_data import TrainingData
from training.log.costs import costs_at_prices
from training.log.ingest import ingest
from training.log.labels import NONE, label_cheapest_correct
from training.log.table import OutcomeTable

TIERS = Path(__file__).parent / "tiers"
SHOCKS = {
    "mmlu_pro": ({"google": 0.1}, {"deepseek": 2.0}),
    "zeroeval": ({"anthropic": 0.1}, {"openai": 2.0}),
    "routellm": ({"openai": 0.1}, {"mistral": 2.0}),
}
WORTHS_OF_COST = np.geomspace(0.3, 300, 13)
"""Worths of a correct answer, as multiples of the mean cost of an attempt at the new prices."""


@dataclass(frozen=True)
class Judged:
    """Held-out prompts at one price table; cost_usd: (n_prompts, n_tiers); worths: USD, (n_worths,)."""

    table: OutcomeTable
    cost_usd: np.ndarray
    worths: np.ndarray

    def net_value(self, choices: np.ndarray) -> np.ndarray:
        """Per prompt, mean over worths in units of the worth; choices: (n_prompts, n_worths)."""
        rows = np.arange(len(choices))[:, None]
        return np.asarray((self.table.correct[rows, choices] - self.cost_usd[rows, choices] / self.worths).mean(axis=1))


def bundle_choices(bundle: Bundle, judged: Judged) -> np.ndarray:
    """With worth_usd as the only dial, (n_prompts, n_worths)."""
    shipped = BundleGraph(bundle)
    estimates = shipped.estimates(judged.table.prompts)
    return np.stack([shipped.choices(estimates, float(worth), 1.0) for worth in judged.worths], axis=1)


def frozen_choices(bundle: Bundle, seed: int, vectors: np.ndarray) -> np.ndarray:
    """A classifier of the cheapest correct tier at the training's prices, (n_prompts,); no tier right: the cheapest."""
    part = TrainingData.load(bundle)
    correct, cost_usd = part.correct[part.embedded], part.cost_usd[part.embedded]
    complete = np.isfinite(correct).all(axis=1)
    label = label_cheapest_correct(correct[complete], cost_usd[complete])
    label[label == NONE] = int(part.mean_cost_usd.argmin())
    model = LGBMClassifier(n_estimators=50, n_jobs=1, random_state=seed, verbose=-1)
    model.fit(part.embedding[complete], label)
    score = np.asarray(model.booster_.predict(vectors))
    score = np.stack([1 - score, score], axis=1) if score.ndim == 1 else score
    return np.asarray(model.classes_[score.argmax(axis=1)])


def tiers_toml(prices: PriceTable) -> str:
    """A tiers.toml with these prices."""
    lines = []
    for tier in prices.tiers:
        lines += ["[[tiers]]", f"name = {json.dumps(tier.name)}"]
        for offer in tier.offers:
            entries = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(offer).items()}
            lines += ["[[tiers.offers]]", *(f"{name} = {json.dumps(value)}" for name, value in entries.items())]
    return "\n".join(lines) + "\n"


def loss(ours: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> Interval:
    """Share of the reference's net value that is lost, paired."""
    return interval(1 - (weights @ ours.astype(np.float32)) / (weights @ reference.astype(np.float32)))


def cell(figure: Interval) -> str:
    """In per cent."""
    return f"{100 * figure.value:+.1f} ({100 * figure.low:+.1f} to {100 * figure.high:+.1f})"


def without_costs(log: Path, folder: Path) -> Path:
    """The log without its cost_usd, so that every cost is tokens x list price, whatever the list."""
    folder.mkdir()
    (folder / "prompts.parquet").symlink_to((log / "prompts.parquet").resolve())
    pq.write_table(pq.read_table(log / "outcomes.parquet").drop_columns("cost_usd"), folder / "outcomes.parquet")
    return folder


def trained_on(log: Path, prices: PriceTable, seed: int, folder: Path) -> Bundle:
    """Trained by `training.train` with its defaults, on the log as these prices would have had it."""
    folder.mkdir()
    tiers = folder / "tiers.toml"
    tiers.write_text(tiers_toml(prices))
    return Bundle.load(train(log, tiers, folder / "bundle", TrainingConfig(seed=seed), tracking_uri="none").bundle)


def rows_of(log: Path, seed: int, folder: Path) -> list[str]:
    """A row of the table per price table."""
    listed = PriceTable.parse((TIERS / f"{log.name}.toml").read_text())
    shocks = SHOCKS[log.name]
    name_of_log, log = log.name, without_costs(log, folder / log.name)
    logged = ingest(log, listed.tiers)
    bundle = trained_on(log, listed, seed, folder / "listed")
    part = TrainingData.load(bundle)
    held_out = ~part.saw(logged.groups) & np.isfinite(logged.correct).all(axis=1)
    table = logged.rows(held_out)
    frozen = frozen_choices(bundle, seed, embed_with(bundle, table.prompts))[:, None]
    weights = resamples(table.n_prompts, seed)
    best = bundle.manifest.tiers.index(bundle.manifest.best_tier)
    rows = []
    for number, factors in enumerate(({}, *shocks)):
        shocked = replace(bundle, prices=bundle.prices.scaled(factors))
        cost_usd = costs_at_prices(logged, shocked.prices).cost_usd[held_out]
        judged = Judged(table, cost_usd, cost_usd.mean() * WORTHS_OF_COST)
        ours = judged.net_value(bundle_choices(shocked, judged))
        old = judged.net_value(np.tile(frozen, (1, len(judged.worths))))
        new = ours
        if factors:
            retrained = trained_on(log, shocked.prices, seed, folder / f"shock-{number}")
            new = judged.net_value(bundle_choices(retrained, judged))
        shipped = BundleGraph(shocked)
        dials = resolve_dials(bundle.manifest, Policy(), 0.98, None, critical=False)
        answering = shipped.answers(shipped.estimates(table.prompts), dials)
        kept = table.correct[np.arange(len(answering)), answering].mean() / table.correct[:, best].mean()
        name = ", ".join(f"{provider} x {factor:g}" for provider, factor in factors.items()) or "as listed"
        rows.append(
            f"| {name_of_log} | {seed} | {name} | {cell(loss(ours, new, weights)) if factors else ''} "
            f"| {cell(loss(old, new, weights))} | {100 * kept:.1f} |"
        )
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Price shocks on public outcome logs.")
    parser.add_argument("--logs", nargs="+", default=list(SHOCKS), choices=list(SHOCKS))
    parser.add_argument("--splits", type=int, default=2)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    print("| log | split | prices | bundle left as it is, % lost | frozen labels, % lost | kept at 0.98, % |")
    print("|---|---|---|---|---|---|")
    for name in options.logs:
        for seed in range(options.splits):
            with tempfile.TemporaryDirectory() as folder:
                print("\n".join(rows_of(Path(root) / name, seed, Path(folder))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
