"""Off-policy evaluation on public outcome logs, where the truth is known: the tables of off_policy.md.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/off_policy.py [--repetitions 300] [--write]

Half of each log's questions trains a bundle; the complete prompts of the other half are the population, and the mean
of a policy's outcomes over them is the truth. A repetition draws n prompts from them with replacement, SIMULATES a
behavior policy that answers each with one tier, hides the outcomes of all others, and judges evaluation policies on
what is left. Estimates of success and cost are the bundle's, recalibrated out of fold on the simulated log alone.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.bundle.bundle import Bundle
from router.policy import Policy, resolve_dials
from router.portfolio.tiers import read_tiers
from training import TrainingConfig, train
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.off_policy import (
    PolicyValue,
    compare_policies,
    cross_fitted,
    estimates_regardless,
    evaluate_policy,
)
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import test_mask
from training.log.table import OutcomeTable

LOGS = ("mmlu_pro", "zeroeval", "routellm")
TIERS = Path(__file__).parent / "tiers"
PAGE = Path(__file__).with_suffix(".md")
MARKERS = ("<!-- tables -->", "<!-- end of tables -->")
SIZES = (1000, 4000)
EXPLORATIONS = (0.02, 0.1, 0.3)
ESTIMATORS = ("doubly_robust", "snips", "ips", "direct_method")
SEED = 0


@dataclass(frozen=True)
class Population:
    """Prompts with the outcomes of all tiers, the bundle's estimates for them, and who answers at two dials."""

    correct: np.ndarray
    cost_usd: np.ndarray
    success: np.ndarray
    predicted_cost_usd: np.ndarray
    n_chars: np.ndarray
    dial_98: np.ndarray
    dial_90: np.ndarray

    @classmethod
    def of(cls, log: Path, tiers_file: Path, folder: Path) -> "Population":
        """Train on half of the questions, keep the other half."""
        tiers = read_tiers(tiers_file)
        table = ingest(log, tiers)
        held_out = test_mask(table.groups, 0.5, seed=1)
        names = [tier.offers[0].model for tier in tiers]
        out = folder / log.name
        config = TrainingConfig(cache=folder / "cache")
        train(attempts(table.rows(~held_out), names), tiers_file, out, config, tracking_uri="none")
        rest = table.rows(held_out & np.isfinite(table.correct).all(axis=1))
        shipped = BundleGraph(Bundle.load(out))
        estimates = shipped.estimates(rest.prompts)
        manifest = shipped.bundle.manifest
        of_98, of_90 = (resolve_dials(manifest, Policy(), quality, None, critical=False) for quality in (0.98, 0.90))
        return cls(
            correct=rest.correct,
            cost_usd=attempt_costs(rest, tiers).cost_usd,
            success=estimates["success"].astype(float),
            predicted_cost_usd=estimates["cost_usd"].astype(float),
            n_chars=np.array([len(prompt) for prompt in rest.prompts]),
            dial_98=shipped.answers(estimates, of_98),
            dial_90=shipped.answers(estimates, of_90),
        )

    def behavior_policies(self) -> dict[str, np.ndarray]:
        """SIMULATED behavior policies: distributions over tiers, (n_prompts, n_tiers)."""
        n, n_tiers = self.correct.shape
        greedy = np.eye(n_tiers)[self.dial_98]
        policies = {
            f"dial 0.98, {share:.0%} explored": (1 - share) * greedy + share / n_tiers for share in EXPLORATIONS
        }
        policies["uniform"] = np.full((n, n_tiers), 1 / n_tiers)
        # Long prompts go to dear tiers: log odds from -3 to 3, by the ranks of length and price.
        longer = self.n_chars.argsort().argsort() / (n - 1) * 2 - 1
        dearer = self.cost_usd.mean(axis=0).argsort().argsort() / (n_tiers - 1) * 2 - 1
        odds = np.exp(3 * longer[:, None] * dearer)
        policies["by prompt length"] = odds / odds.sum(axis=1, keepdims=True)
        return policies

    def evaluation_policies(self) -> dict[str, np.ndarray]:
        """The tier that each policy takes, (n_prompts,)."""
        n = len(self.correct)
        return {
            "best single": np.full(n, self.correct.mean(axis=0).argmax()),
            "cheapest single": np.full(n, self.cost_usd.mean(axis=0).argmin()),
            "dial 0.90": self.dial_90,
        }


def attempts(table: OutcomeTable, names: list[str]) -> pd.DataFrame:
    """A table as an outcome log, one row per attempt."""
    row, tier = np.nonzero(np.isfinite(table.correct))
    cells = {name: getattr(table, name)[row, tier] for name in ("correct", "input_tokens", "output_tokens", "cost_usd")}
    return pd.DataFrame(
        {
            "prompt": [table.prompts[i] for i in row],
            "model": [names[k] for k in tier],
            "question_key": table.groups[row],
            **cells,
        }
    )


def simulate(population: Population, name: str, n: int, repetitions: int) -> Iterator[dict[str, object]]:
    """One record per repetition, behavior policy, evaluation policy, measure and estimator."""
    n_population, n_tiers = population.correct.shape
    everyone = np.arange(n_population)
    policies = population.evaluation_policies()
    measures = {"quality": population.correct, "cost": population.cost_usd}
    for behavior, distribution in population.behavior_policies().items():
        rng = np.random.default_rng([SEED, n])
        for _ in range(repetitions):
            drawn = rng.integers(n_population, size=n)
            action = (rng.random((n, 1)) > distribution[drawn].cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
            log = LoggedChoices(
                action,
                distribution[drawn, action],
                population.correct[drawn, action],
                population.cost_usd[drawn, action],
            )
            predicted = cross_fitted(
                log, population.success[drawn], population.predicted_cost_usd[drawn], drawn.astype(str)
            )
            place = {"log": name, "n": n, "behavior": behavior}
            for policy, choice in policies.items():
                probability = np.eye(n_tiers)[choice[drawn]]
                report = evaluate_policy(log, probability, *predicted)
                found = {**place, "evaluation": policy, "refused": report.refused is not None}
                found["sample_size"] = report.effective_sample_size
                if report.overlap.max_weight == 0:
                    continue
                asked = everyone[rng.integers(n_population, size=max(2, round(report.effective_sample_size)))]
                for (measure, outcomes), reward, model in zip(
                    measures.items(), (log.correct, log.cost_usd), predicted, strict=True
                ):
                    truth = float(outcomes[everyone, choice].mean())
                    estimates = estimates_regardless(log, reward, probability, model)
                    plain = plain_mean(outcomes[asked, choice[asked]])
                    for estimator in (*ESTIMATORS, "asked itself"):
                        value = plain if estimator == "asked itself" else getattr(estimates, estimator)
                        yield {**found, "measure": measure, "estimator": estimator, **judged(value, truth)}
            compared = compare_policies(
                log, np.eye(n_tiers)[population.dial_98[drawn]], np.eye(n_tiers)[population.dial_90[drawn]], *predicted
            )
            for measure, outcomes in measures.items():
                difference = compared.quality if measure == "quality" else compared.cost_usd
                if difference is not None:
                    truth = outcomes[everyone, population.dial_90] - outcomes[everyone, population.dial_98]
                    scale = float(outcomes[everyone, population.dial_98].mean())
                    found = {**place, "evaluation": "0.90 against 0.98", "refused": False, "measure": measure}
                    yield {**found, "estimator": "difference", **judged(difference, float(truth.mean()), scale)}


def plain_mean(rewards: np.ndarray) -> PolicyValue:
    """What asking the evaluation policy itself so many times would give: the same interval, no weights."""
    n = len(rewards)
    log = LoggedChoices(np.zeros(n, int), np.ones(n), np.zeros(n), rewards)
    return estimates_regardless(log, rewards, np.ones((n, 1)), np.zeros((n, 1))).ips


def judged(found: PolicyValue, truth: float, scale: float | None = None) -> dict[str, float | bool]:
    """Error and width relative to the truth (or a scale), and whether the interval covers it."""
    scale = truth if scale is None else scale
    return {
        "error": (found.value - truth) / scale,
        "width": (found.high - found.low) / scale,
        "covers": found.low <= truth <= found.high,
    }


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def figures(part: pd.DataFrame) -> list[str]:
    """Bias, RMSE and mean width in percent, and coverage."""
    rmse = float((part.error**2).mean() ** 0.5)
    percents = (f"{100 * figure:.1f}" for figure in (part.error.mean(), rmse, part.width.mean()))
    return [*percents, f"{100 * part.covers.mean():.1f}"]


def tables(records: pd.DataFrame) -> list[str]:
    """Coverage per estimator, what refusing spares, and every setting."""
    lines = ["### Per estimator, repetitions that were not refused", ""]
    rows = []
    for (measure, log), part in records.groupby(["measure", "log"], sort=False):
        for estimator in (*ESTIMATORS, "difference", "asked itself"):
            of_it = part[part.estimator == estimator]
            rows.append([measure, log, estimator.replace("_", " "), *figures(of_it[~of_it.refused])])
    lines += markdown(["measure", "log", "estimator", "bias %", "RMSE %", "width %", "coverage %"], rows)

    lines += ["### Coverage (%) of the repetitions that were refused, had they been answered", ""]
    rows = []
    refused = records[records.refused]
    for (measure, log), part in refused.groupby(["measure", "log"], sort=False):
        share = records[(records.measure == measure) & (records.log == log)].refused.mean()
        coverage = part.groupby("estimator").covers.mean() * 100
        width = part[part.estimator == "doubly_robust"].width.mean() * 100
        cells = [f"{coverage[estimator]:.1f}" for estimator in ESTIMATORS[:3]]
        rows.append([measure, log, f"{100 * share:.0f}", *cells, f"{width:.0f}"])
    header = ["measure", "log", "refused %", "doubly robust", "snips", "ips", "width % of doubly robust"]
    lines += markdown(header, rows)

    lines += ["### Doubly robust, every setting", ""]
    robust = records[records.estimator == "doubly_robust"]
    keys = ["log", "n", "behavior", "evaluation"]
    rows = []
    for place, part in robust.groupby(keys, sort=False):
        answered = part[~part.refused]
        row = [str(value) for value in place]
        row += [f"{part.sample_size.median():.0f}", f"{100 * part.refused.mean():.0f}"]
        for measure in ("quality", "cost"):
            of_it = answered[answered.measure == measure]
            row += figures(of_it) if len(of_it) >= 30 else ["refused", "", "", ""]
        rows.append(row)
    names = [f"{m}: {f}" for m in ("quality", "cost") for f in ("bias %", "RMSE %", "width %", "coverage %")]
    header = ["log", "n", "logged by (simulated)", "evaluated", "effective sample size", "refused %", *names]
    return lines + markdown(header, rows)


def write(lines: list[str], page: Path) -> None:
    """Put the tables between the markers of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    content = "\n".join([MARKERS[0], "", *lines, MARKERS[1]])
    page.write_text(before + content + after, encoding="utf-8")


def populations(root: Path, names: Mapping[str, Path], bar: tqdm) -> Iterator[tuple[str, Population]]:
    """One population per log."""
    with tempfile.TemporaryDirectory() as folder:
        for name, tiers_file in names.items():
            bar.set_description(name)
            yield name, Population.of(root / name, tiers_file, Path(folder))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Off-policy evaluation where the truth is known.")
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    records: list[dict[str, object]] = []
    names = {name: TIERS / f"{name}.toml" for name in options.logs}
    with threadpool_limits(1), tqdm(total=len(names) * len(SIZES), unit="log") as bar:
        for name, population in populations(Path(root), names, bar):
            for n in SIZES:
                records += simulate(population, name, n, options.repetitions)
                bar.update()
    lines = [f"{options.repetitions} repetitions per setting.", "", *tables(pd.DataFrame(records))]
    print("\n".join(lines))
    if options.write:
        write(lines, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
