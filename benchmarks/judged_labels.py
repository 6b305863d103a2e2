"""What outcomes from a judging model teach, believed blindly and corrected.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/judged_labels.py [--splits 5]

FOLDER holds one log per sub-folder, in the format of data/README.md. Of every split a fifth of the questions is held
out. Of the training prompts, people have judged a tenth; of the others only a judge says something. The judge is
SIMULATED: it passes 85 % of the right answers and fails 65 % of the wrong ones. How often it errs is measured on the
tenth, and estimates learned from the tenth are the prior of its corrected verdicts, as `broker outcomes label` does.
Then success is estimated from each kind of outcome, and judged on the held-out prompts with their true outcomes.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from partial_feedback import LOGS, TIERS, Split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.outcomes.correction import Accuracy
from training import SuccessEstimator

SENSITIVITY, SPECIFICITY = 0.85, 0.65
SHARE_JUDGED = 0.1


def measure(split: Split) -> dict[str, dict[str, float]]:
    """AIQ, bias and Brier score by the outcomes that were learned from."""
    rng = np.random.default_rng(split.seed)
    truth = split.correct >= 0.5
    by_people = rng.random(len(truth)) < SHARE_JUDGED
    passed = rng.random(truth.shape) < np.where(truth, SENSITIVITY, 1 - SPECIFICITY)
    accuracy = Accuracy.measured(passed[by_people].ravel().tolist(), truth[by_people].ravel().tolist())

    def learned(rows: np.ndarray, correct: np.ndarray) -> SuccessEstimator:
        estimator = SuccessEstimator(split.seed)
        return estimator.fit(
            split.vectors[rows], correct[rows], cost_usd=split.cost_usd[rows], groups=split.groups[rows]
        )

    everything = np.ones(len(truth), bool)
    few = learned(by_people, split.correct)
    expected = few.predict_proba(split.vectors)
    corrected = np.stack([accuracy.corrected(expected[:, k], passed[:, k]) for k in range(truth.shape[1])], axis=1)
    estimators = {
        f"people's, {SHARE_JUDGED:.0%} of the prompts": few,
        "and the judge's, believed": learned(everything, np.where(by_people[:, None], split.correct, passed)),
        "and the judge's, corrected": learned(everything, np.where(by_people[:, None], split.correct, corrected)),
        "people's, all prompts": learned(everything, split.correct),
    }
    return {name: split.judged(found.predict_proba(split.test_vectors)) for name, found in estimators.items()}


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description="Outcomes from a simulated judge, on public outcome logs.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    records = []
    with (
        tempfile.TemporaryDirectory() as cache,
        threadpool_limits(1),
        tqdm(total=len(options.logs) * options.splits) as bar,
    ):
        for log in options.logs:
            for seed in range(options.splits):
                split = Split.of(Path(root) / log, TIERS / f"{log}.toml", seed, Path(cache))
                records += [{"log": log, "outcomes": name, **found} for name, found in measure(split).items()]
                bar.update()
    table = pd.DataFrame(records).groupby(["log", "outcomes"], sort=False).mean().reset_index()
    print("| " + " | ".join(table.columns) + " |\n" + "|---" * len(table.columns) + "|")
    for row in table.itertuples(index=False):
        print(f"| {row[0]} | {row[1]} | {row[2]:.4f} | {row[3]:.4f} | {row[4]:.4f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
