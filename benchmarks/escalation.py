"""Whether a second encoder pays: static first, MiniLM only where the decision is close.

    BROKER_REAL_LOGS=FOLDER python benchmarks/escalation.py [--logs routellm zeroeval mmlu_pro] [--splits 3]

Needs the extras `train` and `encoders`. For each split another fifth of the questions is held out, and an estimator is
fitted on the static embedding of the rest, another on MiniLM's (both the product's blend). At every worth of the sweep
the share of held-out prompts whose two best tiers are closest in utility by the static estimate is decided anew by the
MiniLM one. Prints AIQ per share as a Markdown table, means over the splits. Embedding with MiniLM takes some 30 prompts
a second on one core; what was embedded is kept in --cache.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from router.portfolio.tiers import read_tiers
from training import SuccessEstimator, TrainingConfig
from training.encoders.embed import embed
from training.encoders.make import make_encoder
from training.evaluation.metrics import Outcomes, Policy, choices_by_worth, policy_figures, worth_grid
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import test_mask
from training.log.table import OutcomeTable

TIERS = Path(__file__).parent / "tiers"
LOGS = ("routellm", "zeroeval", "mmlu_pro")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)


def estimates(log: OutcomeTable, encoder: str, seed: int, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Success on the held-out prompts by the estimator on one encoder's embeddings, and which prompts they are."""
    tiers = read_tiers(TIERS / f"{cache.name}.toml")
    held_out = test_mask(log.groups, 0.2, seed)
    train = ~held_out & np.isfinite(log.correct).any(axis=1)
    known = log.rows(train)
    config = TrainingConfig(encoder=encoder, seed=seed)
    vectors = embed(make_encoder(config, known, cache / str(seed))[0], log.prompts, log.prompt_ids, cache).vectors
    fitted = SuccessEstimator(seed).fit(
        vectors[train], known.correct, cost_usd=attempt_costs(known, tiers).cost_usd, groups=known.groups
    )
    return fitted.predict_proba(vectors[held_out]), held_out


def aiq_by_share(log: OutcomeTable, seed: int, cache: Path) -> list[float]:
    """AIQ where each share of SHARES is escalated."""
    tiers = read_tiers(TIERS / f"{cache.name}.toml")
    static, held_out = estimates(log, "static", seed, cache)
    minilm, _ = estimates(log, "minilm", seed, cache)
    known, judged = log.rows(~held_out), log.rows(held_out)
    cost, cost_before = attempt_costs(judged, tiers).cost_usd, attempt_costs(known, tiers).cost_usd
    full = np.isfinite(judged.correct).all(axis=1) & np.isfinite(cost).all(axis=1)
    outcomes = Outcomes(judged.correct[full], cost[full], best=int(np.nanmean(known.correct, axis=0).argmax()))
    mean_cost = cost_before[np.isfinite(cost_before).all(axis=1)].mean(axis=0)
    worths = worth_grid(mean_cost)
    first, second = (choices_by_worth(success[full], mean_cost, worths) for success in (static, minilm))
    weights = np.full((1, int(full.sum())), 1 / full.sum())
    found = []
    for share in SHARES:
        choices = first.copy()
        for column, worth in enumerate(worths):
            utility = np.sort(worth * static[full] - mean_cost, axis=1)
            closest = np.argsort(utility[:, -1] - utility[:, -2])[: int(share * len(utility))]
            choices[closest, column] = second[closest, column]
        found.append(float(policy_figures(Policy(choices), outcomes, weights)["aiq"][0]))
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="AIQ against the share of decisions that a second encoder makes.")
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder of embeddings; a temporary one if not given")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    print("| log | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |\n|---" + "|---" * len(SHARES) + "|")
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(options.logs) * options.splits, unit="split") as bar:
        for name in options.logs:
            log = ingest(
                Path(root) / name, read_tiers(TIERS / f"{name}.toml"), quarantine=Path(folder) / "rows.parquet"
            )
            rows = []
            for seed in range(options.splits):
                rows.append(aiq_by_share(log, seed, (options.cache or Path(folder)) / name))
                bar.update()
            cells = [f"{mean:.4f}" for mean in np.mean(rows, axis=0)]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
