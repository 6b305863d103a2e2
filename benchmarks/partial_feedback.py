"""Learning from the outcome of the chosen tier alone, on public logs whose other outcomes are hidden.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/partial_feedback.py [--splits 3] [--write]

FOLDER holds one log per sub-folder, in the format of data/README.md. Of every split a fifth of the questions is held
out with all outcomes. Of each training prompt one outcome is kept, that of the tier which a SIMULATED logging policy
drew, with its propensity. Each way of fitting then estimates success on the held-out prompts.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.portfolio.tiers import read_tiers
from training import SuccessEstimator, TrainingConfig
from training.encoders.embed import embed
from training.encoders.make import make_encoder
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth, policy_figures, worth_grid
from training.fit.calibrate import doubly_robust, fit_calibration
from training.fit.cross_fit import N_FOLDS
from training.fit.estimator import MAX_CALIBRATION_WEIGHT
from training.fit.gaps import gap_weights, with_gaps_filled
from training.fit.kernel import KernelBasis
from training.fit.ridge import ridge, ridge_on_cells
from training.fit.task import MAX_FIT_WEIGHT, N_LANDMARKS
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import fold_numbers, test_mask

LOGS = ("mmlu_pro", "zeroeval", "routellm")
TIERS = Path(__file__).parent / "tiers"
PAGE = Path(__file__).with_suffix(".md")
MARKERS = ("<!-- tables -->", "<!-- end of tables -->")
EXPLORATION = 0.1
N_OLD_PROMPTS = 600
OLD_WORTH = 7.0

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(features, correct, propensity, folds) to weights and bias of a linear map from features to success."""


@dataclass(frozen=True)
class Split:
    """Training prompts with all outcomes, and held-out prompts to judge on."""

    vectors: np.ndarray
    correct: np.ndarray
    cost_usd: np.ndarray
    groups: np.ndarray
    n_chars: np.ndarray
    test_vectors: np.ndarray
    test: Outcomes
    seed: int

    @classmethod
    def of(cls, log: Path, tiers_file: Path, seed: int, cache: Path) -> "Split":
        """The log's prompts with all outcomes; the encoder is learned on the training prompts."""
        tiers = read_tiers(tiers_file)
        table = ingest(log, tiers)
        table = table.rows(np.isfinite(table.correct).all(axis=1))
        held_out = test_mask(table.groups, 0.2, seed)
        encoder, _ = make_encoder(TrainingConfig(seed=seed), table.rows(~held_out), cache)
        vectors = embed(encoder, table.prompts, table.prompt_ids, cache).vectors
        cost_usd = attempt_costs(table, tiers).cost_usd
        best = int(table.correct[~held_out].mean(axis=0).argmax())
        return cls(
            vectors=vectors[~held_out],
            correct=table.correct[~held_out],
            cost_usd=cost_usd[~held_out],
            groups=table.groups[~held_out],
            n_chars=np.array([len(prompt) for prompt in table.prompts])[~held_out],
            test_vectors=vectors[held_out],
            test=Outcomes(table.correct[held_out], cost_usd[held_out], best),
            seed=seed,
        )

    def logging_policies(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """SIMULATED: distributions over tiers, (n_prompts, n_tiers)."""
        n, n_tiers = self.correct.shape
        mean_cost = self.cost_usd.mean(axis=0)
        weights, bias = ridge(features[:N_OLD_PROMPTS], self.correct[:N_OLD_PROMPTS])
        choice = (OLD_WORTH * np.ptp(mean_cost) * (features @ weights + bias) - mean_cost).argmax(axis=1)
        longer = self.n_chars.argsort().argsort() / (n - 1) * 2 - 1
        odds = np.exp(3 * longer[:, None] * (mean_cost.argsort().argsort() / (n_tiers - 1) * 2 - 1))
        return {
            "uniform": np.full((n, n_tiers), 1 / n_tiers),
            f"an older router, {EXPLORATION:.0%} explored": (1 - EXPLORATION) * np.eye(n_tiers)[choice]
            + EXPLORATION / n_tiers,
            "by prompt length": odds / odds.sum(axis=1, keepdims=True),
        }

    def judged(self, success: np.ndarray) -> dict[str, float]:
        """AIQ, mean |bias| of the tiers' mean success, and Brier score, on the held-out prompts."""
        mean_cost = self.cost_usd.mean(axis=0)
        policy = Policy(choices_by_worth(success, mean_cost, worth_grid(mean_cost)))
        n = len(success)
        aiq = policy_figures(policy, self.test, np.full((1, n), 1 / n, np.float32))["aiq"]
        return {
            "AIQ": float(aiq[0]),
            "bias": float(np.abs(success.mean(axis=0) - self.test.correct.mean(axis=0)).mean()),
            "Brier": float(((success - self.test.correct) ** 2).mean()),
        }


def own_cells(max_weight: float) -> Fit:
    """Each tier on its own outcomes, weighed by 1 / propensity up to a limit."""

    def fit(
        features: np.ndarray, correct: np.ndarray, propensity: np.ndarray, folds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        maps = []
        for tier, outcome in enumerate(correct.T):
            seen = np.isfinite(outcome)
            weight = np.minimum(1 / propensity[seen, tier], max_weight)
            maps.append(ridge(features[seen], outcome[seen, None], weight))
        return np.concatenate([w for w, _ in maps], axis=1), np.concatenate([b for _, b in maps])

    return fit


def shared_and_own(
    features: np.ndarray, correct: np.ndarray, propensity: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What tiers share from all outcomes, then each tier on its own."""
    return ridge_on_cells(features, correct, np.minimum(1 / np.nan_to_num(propensity, nan=1.0), MAX_FIT_WEIGHT))


def robust(max_weight: float) -> Fit:
    """All tiers together on doubly robust outcomes; estimates cross-fitted, weights up to a limit."""

    def fit(
        features: np.ndarray, correct: np.ndarray, propensity: np.ndarray, folds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        estimate = np.empty(correct.shape)
        for fold in np.unique(folds):
            held_out = folds == fold
            train = ~held_out
            weights, bias = shared_and_own(features[train], correct[train], propensity[train], folds[train])
            estimate[held_out] = np.clip(features[held_out] @ weights + bias, 0, 1)
        return ridge(features, doubly_robust(estimate, correct, np.maximum(propensity, 1 / max_weight)))

    return fit


def filled(
    features: np.ndarray, correct: np.ndarray, propensity: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All tiers together, gaps filled from the tiers that were observed."""
    weights, bias = gap_weights(correct, features)
    return ridge(features, with_gaps_filled(correct, features @ weights + bias))


FITS: dict[str, tuple[Fit, bool]] = {
    "kernel, gaps filled": (filled, False),
    "kernel, gaps filled; weighted calibration": (filled, True),
    "kernel per tier on its own outcomes": (own_cells(1), False),
    "kernel per tier, inverse propensity up to 3; weighted calibration": (own_cells(3), True),
    "kernel per tier, inverse propensity up to 20; weighted calibration": (own_cells(20), True),
    "kernel, shared and own; weighted calibration": (shared_and_own, True),
    "kernel, doubly robust up to 3; weighted calibration": (robust(3), True),
    "kernel, doubly robust up to 20; weighted calibration": (robust(20), True),
}
SHIPPED = "**SuccessEstimator** (kernel, doubly robust)"


def measure(split: Split) -> Iterator[dict[str, object]]:
    """One record per logging policy and way of fitting."""
    everything = SuccessEstimator(split.seed).fit(
        split.vectors, split.correct, cost_usd=split.cost_usd, groups=split.groups
    )
    yield {
        "logged by (simulated)": "nothing hidden",
        "fit": "SuccessEstimator on all outcomes",
        **split.judged(everything.predict_proba(split.test_vectors)),
    }
    basis = KernelBasis.fit(split.vectors, N_LANDMARKS, split.seed)
    features, new = basis.features(split.vectors), basis.features(split.test_vectors)
    folds = fold_numbers(split.groups, N_FOLDS, split.seed)
    rng = np.random.default_rng(split.seed)
    n, n_tiers = split.correct.shape
    for logged_by, distribution in split.logging_policies(features).items():
        action = (rng.random((n, 1)) > distribution.cumsum(axis=1)).sum(axis=1).clip(max=n_tiers - 1)
        is_logged = np.eye(n_tiers, dtype=bool)[action]
        correct, propensity = (np.where(is_logged, values, np.nan) for values in (split.correct, distribution))
        weight = np.minimum(1 / propensity, MAX_CALIBRATION_WEIGHT)
        for name, (fit, is_weighted) in FITS.items():
            out_of_fold = np.empty(correct.shape)
            for fold in range(N_FOLDS):
                rows = folds != fold
                weights, bias = fit(features[rows], correct[rows], propensity[rows], folds[rows])
                out_of_fold[~rows] = features[~rows] @ weights + bias
            weights, bias = fit(features, correct, propensity, folds)
            calibration = fit_calibration(out_of_fold, correct, weight if is_weighted else None)
            judged = split.judged(calibration.apply(new @ weights + bias))
            yield {"logged by (simulated)": logged_by, "fit": name, **judged}
        shipped = SuccessEstimator(split.seed).fit(split.vectors, correct, propensity=propensity, groups=split.groups)
        judged = split.judged(shipped.predict_proba(split.test_vectors))
        yield {"logged by (simulated)": logged_by, "fit": SHIPPED, **judged}


def tables(records: pd.DataFrame, n_splits: int) -> list[str]:
    """Markdown, one table per log: means over the splits."""
    lines = [f"Number of splits: {n_splits}.", ""]
    names = ["logged by (simulated)", "fit"]
    for log, of_log in records.groupby("log", sort=False):
        means = of_log.groupby(names, sort=False)[["AIQ", "bias", "Brier"]].mean().reset_index()
        lines += [f"### {log}", "", "| " + " | ".join(means.columns) + " |", "|---" * len(means.columns) + "|"]
        lines += [f"| {row[0]} | {row[1]} | {row[2]:.4f} | {row[3]:.4f} | {row[4]:.4f} |" for row in means.to_numpy()]
        lines.append("")
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Partial feedback on public outcome logs.")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    records: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as cache, threadpool_limits(1):
        for log in tqdm(options.logs, unit="log"):
            for seed in range(options.splits):
                split = Split.of(Path(root) / log, TIERS / f"{log}.toml", seed, Path(cache))
                records += [{"log": log, **record} for record in measure(split)]
    lines = tables(pd.DataFrame(records), options.splits)
    print("\n".join(lines))
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        PAGE.write_text(before + "\n".join([MARKERS[0], "", *lines, MARKERS[1]]) + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
