"""How good are estimates of success, per kind of work and language? The tables of docs/results.md.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/calibration.py [--splits 5] [--logs LOG...] [--never-asked]

Each split holds out another fifth of the questions. Encoder and estimator are learned on the rest, as training does,
and judged on the prompts held out that every model answered. The first table says how well estimates order the prompts
of a model: by Spearman's rank correlation with the outcomes, and by the AUC (how often a prompt answered correctly has
a higher estimate than one that was not). "Task known" is the AUC of each task's rate of correct answers in training,
and "within tasks" the AUC among the prompts of one task. The second table says how exact the probabilities are: the
expected calibration error (ECE) per model, less that of estimates which are exactly right, on the same prompts by the
same bins. Figures are means over models and splits.

With --never-asked: what is estimated of a model on a task that it was never asked. Each model loses its outcomes on one
task of its own in training. The table has the mean distance between estimated and true share of correct answers on that
task, for estimates from the log as it is, for those without these outcomes, and for the model's rate elsewhere.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import rankdata, spearmanr
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.portfolio.tiers import Tier, read_tiers
from training import SuccessEstimator
from training.encoders.embed import embed
from training.encoders.static import learn_static
from training.evaluation.metrics import calibration_error, calibration_error_by_chance
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import test_mask
from training.log.table import OutcomeTable

KINDS = {
    "mmlu_pro": ("knowledge, ten choices", "English"),
    "routellm": ("knowledge and arithmetic", "English"),
    "zeroeval/gsm": ("arithmetic", "English"),
    "zeroeval/math-l5": ("mathematics", "English, LaTeX"),
    "zeroeval/crux": ("reading code", "Python"),
    "llmrouter": ("14 tasks mixed", "English"),
    "bfcl": ("tool calls", "English, JSON"),
    "lexeval": ("law", "Chinese"),
    "mbpp": ("writing code", "English, Python"),
}
"""Kind of work and language of the logs, or of a segment of one."""

LOGS = ("mmlu_pro", "routellm", "zeroeval", "llmrouter", "bfcl", "lexeval", "mbpp")
TEST_SHARE = 0.2
MIN_OF_EACH = 5
"""Right and wrong answers that an AUC takes, at least."""

MIN_HIDDEN = 30
"""Prompts of a task that are judged in a split, at least, with --never-asked."""


@dataclass(frozen=True)
class Held:
    """Estimates for the prompts held out in one split, and what became of them.

    success, correct: (n_prompts, n_tiers). task_rate: the rate of each tier on the prompt's task in training, same
    shape. segments: (n_prompts,), the tasks.
    """

    tiers: tuple[str, ...]
    success: np.ndarray
    correct: np.ndarray
    task_rate: np.ndarray
    segments: np.ndarray

    def rows(self, prefix: str) -> "Held":
        """The prompts whose segment begins so; all where the prefix has no slash."""
        if "/" not in prefix:
            return self
        kept = np.array([segment.startswith(prefix) for segment in self.segments])
        columns = ("success", "correct", "task_rate", "segments")
        return replace(self, **{name: getattr(self, name)[kept] for name in columns})


class Splits:
    """A log, its splits, and the embeddings of each by an encoder of its own training part."""

    def __init__(self, log: Path) -> None:
        own = Path(__file__).parent / "tiers" / f"{log.name}.toml"
        self.tiers: Sequence[Tier] = read_tiers(own if own.exists() else log.parent / "pools" / own.name)
        table = ingest(log, self.tiers)
        self.table = table.rows(np.isfinite(table.correct).any(axis=1))

    def parts(self, seed: int) -> tuple[OutcomeTable, np.ndarray, OutcomeTable, np.ndarray]:
        """Training part and its embeddings, prompts to judge and theirs."""
        tested = test_mask(self.table.groups, TEST_SHARE, seed)
        known, held = self.table.rows(~tested), self.table.rows(tested & np.isfinite(self.table.correct).all(axis=1))
        encoder = learn_static(known.prompts, seed=seed)
        vectors = [embed(encoder, part.prompts, part.prompt_ids).vectors for part in (known, held)]
        return known, vectors[0], held, vectors[1]

    def fitted(self, known: OutcomeTable, vectors: np.ndarray, seed: int) -> SuccessEstimator:
        """The product's estimator."""
        cost = attempt_costs(known, self.tiers).cost_usd
        return SuccessEstimator(seed).fit(vectors, known.correct, cost_usd=cost, groups=known.groups)

    def judge(self, seed: int) -> Held:
        """One split."""
        known, known_vectors, held, held_vectors = self.parts(seed)
        success = self.fitted(known, known_vectors, seed).predict_proba(held_vectors)
        rates = {task: np.nanmean(known.correct[known.segments == task], axis=0) for task in np.unique(known.segments)}
        overall = np.nanmean(known.correct, axis=0)
        task_rate = np.stack(
            [np.where(np.isfinite(rate := rates.get(t, overall)), rate, overall) for t in held.segments]
        )
        return Held(self.table.tiers, success, held.correct, task_rate, held.segments)


# ---- how well estimates order prompts, and how exact they are ------------------------------------------------


def auc(success: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """P(a right answer has the higher estimate than a wrong one), ties half; and its weight, 0 where there are few.

    success, correct: (n_prompts,). The weight is the inverse of the variance, but for a factor.
    """
    right = correct > 0.5
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if min(n_right, n_wrong) < MIN_OF_EACH:
        return 0.5, 0.0
    above = rankdata(success)[right].sum() - n_right * (n_right + 1) / 2
    return float(above / (n_right * n_wrong)), n_right * n_wrong / (n_right + n_wrong)


def mean_auc(columns: Iterator[tuple[np.ndarray, np.ndarray]]) -> float:
    """The weighted mean of the AUC over pairs of (success, correct); NaN where none has enough answers."""
    values, weights = zip(*(auc(*pair) for pair in columns), strict=True)
    return float(np.average(values, weights=weights)) if sum(weights) else float("nan")


def order(held: Held) -> list[float]:
    """Spearman, AUC, AUC of the task's rate, AUC within tasks: means over tiers."""
    tiers = range(len(held.tiers))
    tasks = [held.segments == task for task in np.unique(held.segments)]
    spearman = [spearmanr(held.success[:, k], held.correct[:, k]).statistic for k in tiers]
    return [
        float(np.nanmean(spearman)),
        mean_auc((held.success[:, k], held.correct[:, k]) for k in tiers),
        mean_auc((held.task_rate[:, k], held.correct[:, k]) for k in tiers) if len(tasks) > 1 else float("nan"),
        mean_auc((held.success[task, k], held.correct[task, k]) for task in tasks for k in tiers),
    ]


def excess(held: Held) -> np.ndarray:
    """ECE of each tier, and how far it is above that of exact estimates, (2, n_tiers)."""
    once = np.full((1, len(held.success)), 1 / len(held.success), dtype=np.float32)
    found = np.array([calibration_error(p, y, once)[0] for p, y in zip(held.success.T, held.correct.T, strict=True)])
    return np.stack([found, found - [calibration_error_by_chance(p) for p in held.success.T]])


def number(value: float, digits: int = 3, sign: str = "") -> str:
    """Empty where there is none."""
    return "" if np.isnan(value) else f"{value:{sign}.{digits}f}"


def order_rows(name: str, splits: Sequence[Held]) -> list[str]:
    """Rows of the first table for one log."""
    lines = []
    for prefix in (prefix for prefix in KINDS if prefix.split("/")[0] == name):
        kept = [held.rows(prefix) for held in splits]
        figures = np.mean([order(held) for held in kept], axis=0)
        cells = [*KINDS[prefix], f"`{prefix}`", f"{np.mean([len(held.correct) for held in kept]):.0f}"]
        lines.append(f"| {' | '.join([*cells, *(number(value) for value in figures)])} |")
    return lines


def excess_row(name: str, splits: Sequence[Held]) -> str:
    """The row of the second table for one log."""
    found = np.array([excess(held) for held in splits])
    above = found[:, 1]
    worst = int(above.mean(axis=0).argmax())
    brier = np.mean([((held.success - held.correct) ** 2).mean() for held in splits])
    cells = [
        f"`{name}`",
        f"{np.mean([len(held.correct) for held in splits]):.0f}",
        number(brier, 4),
        number(found[:, 0].mean()),
        number(above.mean(), sign="+"),
        f"{number(above.mean(axis=0)[worst], sign='+')} ({splits[0].tiers[worst]})",
        f"{int((above > 0.03).sum())} of {above.size}",
    ]
    return f"| {' | '.join(cells)} |"


# ---- a task that a tier was never asked ----------------------------------------------------------------------


def never_asked_row(splits: Splits, name: str, n_splits: int, bar: tqdm) -> str:
    """What is estimated of tiers on a task, asked it as logged and never asked it."""
    errors: list[list[float]] = []
    for seed in range(n_splits):
        known, known_vectors, held, held_vectors = splits.parts(seed)
        sizes = {task: int((held.segments == task).sum()) for task in np.unique(held.segments)}
        tasks = [task for task in sorted(sizes, key=lambda task: -sizes[task]) if sizes[task] >= MIN_HIDDEN]
        hidden = known.correct.copy()
        pairs = list(zip(range(len(known.tiers)), tasks, strict=False))
        for tier, task in pairs:
            hidden[known.segments == task, tier] = np.nan
        kept = np.isfinite(hidden).any(axis=1)
        without = replace(known, correct=hidden).rows(kept)
        asked = splits.fitted(known, known_vectors, seed).predict_proba(held_vectors)
        never = splits.fitted(without, known_vectors[kept], seed).predict_proba(held_vectors)
        for tier, task in pairs:
            rows = held.segments == task
            right = held.correct[rows, tier].mean()
            overall = np.nanmean(hidden[:, tier])
            errors.append([asked[rows, tier].mean() - right, never[rows, tier].mean() - right, overall - right])
        bar.update()
    sizes_of = np.abs(errors).mean(axis=0)
    cells = [f"`{name}`", str(len(errors)), *(number(value) for value in sizes_of)]
    cells.append(number(float(np.mean(errors, axis=0)[1]), sign="+"))
    return f"| {' | '.join(cells)} |"


def table(header: Sequence[str], rows: Sequence[str]) -> str:
    """Markdown."""
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *rows])


ORDER_HEADER = ("kind of work", "language", "log", "prompts judged", "Spearman", "AUC", "task known", "within tasks")
EXCESS_HEADER = ("log", "prompts judged", "Brier", "ECE", "above chance", "worst model", "models and splits above 0.03")
NEVER_HEADER = (
    "log", "models and splits", "asked as logged", "never asked", "by the model's rate elsewhere",
    "mean error, never asked",
)  # fmt: skip


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Order and calibration of estimates of success, per kind of work.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--never-asked", action="store_true", help="estimates for tasks that a model was never asked")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    order_lines: list[str] = []
    lines: list[str] = []
    with threadpool_limits(1), tqdm(total=len(options.logs) * options.splits, unit="split") as bar:
        for name in options.logs:
            splits = Splits(Path(root) / name)
            if options.never_asked:
                lines.append(never_asked_row(splits, name, options.splits, bar))
                continue
            judged = []
            for seed in range(options.splits):
                judged.append(splits.judge(seed))
                bar.update()
            order_lines += order_rows(name, judged)
            lines.append(excess_row(name, judged))
            print("\n".join([*order_lines[-1:], lines[-1]]), file=sys.stderr, flush=True)
    if order_lines:
        print(table(ORDER_HEADER, order_lines), end="\n\n")
    print(table(NEVER_HEADER if options.never_asked else EXCESS_HEADER, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
