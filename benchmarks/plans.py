"""What plans keep and cost on public logs with answers or verdicts, and whether their promise holds.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/plans.py [--splits 5] [--logs mmlu_pro ...] [--no-simulated]
    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/plans.py --promise [--draws 300]

FOLDER is that of benchmarks/real_logs.py, and logs are split and trained on as there. Each bundle is judged on the
fifth of the questions that it did not see, with the answers and verdicts of the log. "agreement" compares the answers
of two tiers. On logs of five tiers and more, three verifiers are simulated besides: their verdicts are drawn with the
stated sensitivity and specificity, given whether the logged answer is right, whatever the difficulty; they cost
nothing. Figures are means over the splits; in brackets stands the standard error of that mean.

With --promise the prompts of a log are the population. Joint model, agreement and checks are learned anew, and the dial
is proven, on prompts drawn from it at random, with replacement, at prices drawn at random: each tier's over a range of
1,000. The plans are then followed on the whole log. A promise is broken where less is kept than was promised. It is
refused where it cannot be proven, or where plans that keep it cost more than always asking the best tier.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from router.plans.betting import least_proven
from router.plans.checks import CheckModel
from router.plans.dial import WORTHS, replayed
from router.plans.engine import PlanEngine, look_inputs
from router.plans.replay import LoggedAnswers
from router.portfolio.tiers import read_tiers
from training import SuccessEstimator, TrainingConfig, evaluate, train
from training.encoders.embed import embed
from training.encoders.make import make_encoder
from training.evaluation.plan_result import CurveFigures, PlanEvaluation
from training.fit.agreement import AgreementModel
from training.fit.joint import JointModel
from training.fit.plan_graph import plan_graph
from training.fit.verifiers import fit_verifier
from training.log.costs import attempt_costs
from training.log.ingest import ingest

LOGS = ("mmlu_pro", "zeroeval", "bfcl", "lexeval", "mbpp")
TIERS = Path(__file__).parent / "tiers"
SIMULATED = ((1.0, 1.0), (1.0, 0.86), (0.85, 0.65))
MIN_SIMULATED_TIERS = 5
QUALITIES = (0.90, 0.95, 0.98, 1.00)
CONFIDENCE = 0.95
PRICE_RANGE = 1000.0
CALIBRATION_PROMPTS = 1000
MOST_PROMPTS = 2000
COLUMNS = ("cost at 95 %", "at 98 %", "at 100 %", "most kept")


def tiers_of(log: Path) -> Path:
    """The tiers.toml for a log."""
    own = TIERS / f"{log.name}.toml"
    return own if own.exists() else log.parent / "pools" / own.name


def evaluations(
    log: Path, splits: int, folder: Path, bar: tqdm, *, is_simulated: bool
) -> list[dict[str, PlanEvaluation]]:
    """One evaluation of all checks per split."""
    results = []
    n_tiers = len(read_tiers(tiers_of(log)))
    simulated = [
        CheckModel.with_figures(f"simulated_{int(100 * s)}_{int(100 * t)}", n_tiers, sensitivity=s, specificity=t)
        for s, t in (SIMULATED if is_simulated and n_tiers >= MIN_SIMULATED_TIERS else ())
    ]
    for seed in range(splits):
        out, cache = folder / f"{log.name}-{seed}", folder / f"cache-{seed}"
        result = train(log, tiers_of(log), out, TrainingConfig(seed=seed, cache=cache), tracking_uri="none")
        plans = dict(result.evaluation.plans)
        if simulated:
            plans |= evaluate(out, log, simulated_checks=simulated).plans
        results.append(plans)
        bar.update()
    return results


def cell(values: Sequence[float]) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{np.mean(values):.3f} ({error:.3f})"


def row(name: str, figures: Sequence[CurveFigures]) -> str:
    """A row of the table."""
    names = list(figures[0].cost_at)
    cells = [cell([each.cost_at[at].value for each in figures]) for at in names]
    return f"| {name} | {' | '.join(cells)} | {cell([each.max_kept.value for each in figures])} |"


def table(results: Sequence[dict[str, PlanEvaluation]]) -> list[str]:
    """Markdown for one log."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    checks = [name for name in results[0] if all(name in each for each in results)]
    if checks:
        lines.append(row("direct", [each[checks[0]].direct for each in results]))
    for check in checks:
        of_check = [each[check] for each in results]
        for name in of_check[0].families:
            title = f"**{name}, {check}**" if name == "plans" else f"{name}, {check}"
            lines.append(row(title, [each.families[name] for each in of_check]))
    lines += ["", f"- {together(results)}"] if checks else []
    for check in checks:
        at = [next(point for point in each[check].dial if point.quality == 0.98) for each in results]
        expected = [each[check].expected_cost for each in results if each[check].expected_cost is not None]
        shapes = list(results[0][check].shapes.items())[:3]
        lines.append(
            f"- {check}: quality 0.98 promised in {sum(p.promised and not p.is_direct for p in at)} of {len(at)} "
            f"splits by plans; the dial keeps {cell([p.kept.value for p in at])} at "
            f"{cell([p.cost_share.value for p in at])} of the cost of always-best"
            + (f"; expected / measured cost {cell(expected)}" if expected else "")
            + (f"; most used in the first split: {', '.join(f'{k} {v:.0%}' for k, v in shapes)}" if shapes else "")
            + "."
        )
    return lines


def together(results: Sequence[dict[str, PlanEvaluation]]) -> str:
    """How well bundles know which models are right together, and how often one is after what was seen."""
    found = [next(iter(result.values())) for result in results]
    gain = cell([each.joint.gain.value for each in found])
    parts = [f"Log likelihood of which of {found[0].joint.n_tiers} models are right: {gain} nats above independence"]
    for name in {name: None for result in results for each in result.values() for name in each.conditionals}:
        seen = [next(each.conditionals[name] for each in r.values() if name in each.conditionals) for r in results]
        expected, measured, alone = (
            np.mean([getattr(one, what) for one in seen]) for what in ("expected", "measured", "if_independent")
        )
        error = cell([one.calibration_error.value for one in seen])
        error_alone = cell([one.calibration_error_if_independent.value for one in seen])
        parts.append(
            f"{name}: measured {measured:.3f}, expected {expected:.3f} (ECE {error}), "
            f"if independent {alone:.3f} (ECE {error_alone})"
        )
    return "; ".join(parts) + "."


# ---- the promise ---------------------------------------------------------------------------------------------------


class Population:
    """Prompts that every tier answered, with out-of-fold estimates."""

    def __init__(self, log: Path, cache: Path) -> None:
        tiers = read_tiers(tiers_of(log))
        whole = ingest(log, tiers)
        encoder, _ = make_encoder(TrainingConfig(), whole, cache)
        vectors = embed(encoder, whole.prompts, whole.prompt_ids, cache).vectors
        costs = attempt_costs(whole, tiers).cost_usd
        estimator = SuccessEstimator().fit(vectors, whole.correct, cost_usd=costs, groups=whole.groups)
        full = np.flatnonzero(np.isfinite(whole.correct).all(axis=1))
        full = np.random.default_rng(0).permutation(full)[:MOST_PROMPTS]
        self.success, self.correct, self.cost = estimator.out_of_fold_[full], whole.correct[full], costs[full]
        self.answers = whole.answer_number[full]
        self.scores = {name: (cells.score[full], cells.cost_usd[full]) for name, cells in whole.checks.items()}
        self.best = int(self.correct.mean(axis=0).argmax())

    @property
    def checks(self) -> list[str]:
        """What plans may look at on this log."""
        return (["agreement"] if (self.answers >= 0).any() else []) + list(self.scores)

    def draw(self, check: str, seed: int) -> dict[float, tuple[float, float] | None]:
        """For each quality: accuracy kept and cost share on the whole log; None where it is refused."""
        rng = np.random.default_rng(seed)
        rows = rng.integers(len(self.correct), size=CALIBRATION_PROMPTS)
        factor = PRICE_RANGE ** rng.uniform(-0.5, 0.5, self.correct.shape[1])
        paid = self.cost * factor
        expected = np.broadcast_to(paid[rows].mean(axis=0), self.cost.shape)
        joint = JointModel.fit(self.success[rows], self.correct[rows])
        agreement = AgreementModel.fit(self.success[rows], self.correct[rows], self.answers[rows])
        engine = PlanEngine(plan_graph(joint, agreement).SerializeToString())
        model, classes, fees = None, np.zeros(self.correct.shape, int), np.zeros(self.correct.shape)
        if check != "agreement":
            score, usd = self.scores[check]
            model = fit_verifier(check, self.success[rows], self.correct[rows], score[rows], usd[rows])
            if model is None:
                return dict.fromkeys(QUALITIES)
            classes, fees = model.classes_of(score), np.nan_to_num(usd)
        compares = check == "agreement"
        worths = WORTHS * expected[0].max()
        found = replayed(
            engine,
            self.success,
            expected,
            np.ones(self.correct.shape, bool),
            worths,
            look_inputs(model, self.correct.shape[1], agreement=compares, max_calls=3),
            LoggedAnswers(self.answers if compares else None, classes, fees),
        )
        outcomes = np.stack([each.outcome(self.correct) for each in found], axis=1)
        costs = np.array([each.cost_usd(paid, fees).mean() for each in found])
        proven = least_proven(outcomes[rows], self.correct[rows], QUALITIES, CONFIDENCE)
        accuracy, cost = self.correct[:, self.best].mean(), paid[:, self.best].mean()
        is_cheaper = costs <= cost
        return {
            quality: None if at is None or not is_cheaper[at] else (outcomes[:, at].mean() / accuracy, costs[at] / cost)
            for quality, at in proven.items()
        }


def promise_lines(population: Population, name: str, draws: int, bar: tqdm) -> list[str]:
    """Rows of the table of promises."""
    lines = []
    for check in population.checks:
        found: dict[float, list[tuple[float, float]]] = {quality: [] for quality in QUALITIES}
        for seed in range(draws):
            for quality, kept in population.draw(check, seed).items():
                if kept is not None:
                    found[quality].append(kept)
            bar.update()
        for quality, results in found.items():
            broken = sum(kept < quality for kept, _ in results) / draws
            means = [f"{value:.3f}" for value in np.mean(results, axis=0)] if results else ["", ""]
            lines.append(
                f"| {name}, {check} | {quality:.2f} | {1 - len(results) / draws:.1%} | {broken:.1%} | "
                f"{' | '.join(means)} |"
            )
    return lines


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Plans on public logs.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--logs", nargs="+", default=LOGS, choices=LOGS)
    parser.add_argument("--no-simulated", action="store_true", help="leave the simulated verifiers out")
    parser.add_argument("--promise", action="store_true", help="draw calibration prompts again and again")
    parser.add_argument("--draws", type=int, default=300)
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        if options.promise:
            print("| log, check | quality | refused | promise broken | kept | cost of always-best |")
            print("|---" * 6 + "|")
            for name in options.logs:
                population = Population(Path(root) / name, Path(folder))
                with tqdm(total=options.draws * len(population.checks), unit="draw", desc=name) as bar:
                    print("\n".join(promise_lines(population, name, options.draws, bar)), flush=True)
            return 0
        with tqdm(total=len(options.logs) * options.splits, unit="run") as bar:
            for name in options.logs:
                results = evaluations(
                    Path(root) / name, options.splits, Path(folder), bar, is_simulated=not options.no_simulated
                )
                print("\n".join([f"**{name}**", "", *table(results), ""]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
