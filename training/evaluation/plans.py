"""What plans keep and cost on logged answers, against direct routing and against the best fixed cascade.

Fixed cascades are chosen on the training part, on the prompts that the bundle carries for its promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from router.bundle.manifest import DialPoint
from router.planning import PlanDials
from router.plans.checks import AGREEMENT, CheckModel
from router.plans.dial import expected_costs, logged_answers, replayed, simulated_classes
from router.plans.engine import PlanTables, look_inputs
from router.plans.planner import MOST_CALLS, Looks, Planner
from router.plans.replay import LoggedAnswers, Replayed
from router.plans.tree import Choices
from router.policy import Dials
from router.portfolio.quote import graph_inputs
from training.evaluation.cascades import Cascade, agreed, cascades, verified
from training.evaluation.judged import LEAST_ACCURACY, JudgedPrompts
from training.evaluation.metrics import hull, interval
from training.evaluation.plan_result import Conditional, CurveFigures, PlanDialResult, PlanEvaluation
from training.log.sample import evenly

MAX_PLANNED_PROMPTS = 5_000
"""Held-out prompts that plans are judged on; more would not change what is said."""

N_WORTHS = 40
_MOST_CONDITIONALS = 500
_LEAST_COST = 1e-12
_SHARES = {"cost_at_95": 0.95, "cost_at_98": 0.98, "cost_at_100": 1.0}


@dataclass(frozen=True)
class _Judged:
    """What is judged: estimates and logged answers of held-out prompts.

    success, cost_usd: expected; correct, paid: as logged; eligible: bool; all (n_prompts, n_tiers). weights: of
    resamples, (n_resamples, n_prompts). best: the tier that all is relative to.
    """

    success: np.ndarray
    cost_usd: np.ndarray
    eligible: np.ndarray
    correct: np.ndarray
    paid: np.ndarray
    answers: LoggedAnswers
    weights: np.ndarray
    best: int

    def rows(self, rows: np.ndarray) -> _Judged:
        """Some of the prompts."""
        numbers = self.answers.answer_number
        return _Judged(
            success=self.success[rows],
            cost_usd=self.cost_usd[rows],
            eligible=self.eligible[rows],
            correct=self.correct[rows],
            paid=self.paid[rows],
            answers=LoggedAnswers(
                None if numbers is None else numbers[rows], self.answers.classes[rows], self.answers.check_usd[rows]
            ),
            weights=self.weights[:, rows],
            best=self.best,
        )

    def figures(self, outcomes: np.ndarray, costs: np.ndarray) -> CurveFigures:
        """Of a family of policies; outcomes, costs: (n_prompts, n_policies). Single tiers are part of every family."""
        outcomes = np.concatenate([outcomes, self.correct], axis=1)
        costs = np.concatenate([costs, self.paid], axis=1)
        accuracy, cost = (self.weights @ each.astype(np.float32) for each in (outcomes, costs))
        best = accuracy[:, outcomes.shape[1] - self.correct.shape[1] + self.best]
        best_cost = cost[:, costs.shape[1] - self.paid.shape[1] + self.best]
        found = {name: np.empty(len(accuracy)) for name in _SHARES}
        for row in range(len(accuracy)):
            xs, ys = hull(cost[row], accuracy[row])
            for name, share in _SHARES.items():
                reached = ys[-1] >= share * best[row]
                at = float(np.interp(share * best[row], ys, xs)) if reached else float(best_cost[row])
                found[name][row] = min(1.0, at / max(float(best_cost[row]), _LEAST_COST))
        points = sorted(set(zip((1000 * cost[0]).tolist(), accuracy[0].tolist(), strict=True)))
        return CurveFigures(
            curve=tuple(points),
            cost_at={name: interval(values) for name, values in found.items()},
            max_kept=interval(accuracy.max(axis=1) / np.maximum(best, LEAST_ACCURACY)),
        )

    def dial_result(
        self, quality: float, outcome: np.ndarray, paid: np.ndarray, *, promised: bool, is_direct: bool
    ) -> PlanDialResult:
        """Of one policy; outcome, paid: (n_prompts,)."""
        columns = np.stack([outcome, paid, self.correct[:, self.best], self.paid[:, self.best]], axis=1)
        accuracy, cost, best, best_cost = (self.weights @ columns.astype(np.float32)).T
        return PlanDialResult(
            quality=quality,
            promised=promised,
            is_direct=is_direct,
            kept=interval(accuracy / np.maximum(best, LEAST_ACCURACY)),
            usd_per_1k=interval(1000 * cost),
            cost_share=interval(cost / np.maximum(best_cost, _LEAST_COST)),
        )


def judge_plans(
    judged: JudgedPrompts, worths: np.ndarray, simulated: Sequence[CheckModel] = ()
) -> dict[str, PlanEvaluation]:
    """Every check that both bundle and log know, and those that were declared, by name; empty without plans.

    worths: grid that takes a policy from cheapest to best, (n_worths,).
    """
    bundle, table = judged.graph.bundle, judged.table
    planner = bundle.planner
    if planner is None:
        return {}
    known = [AGREEMENT] if planner.known.agreement and (table.answer_number >= 0).any() else []
    known += [name for name in planner.known.verifiers if name in table.checks]
    looks = [planner.looks([name], MOST_CALLS) for name in known]
    looks += [planner.looks([check], MOST_CALLS) for check in simulated]
    dials = PlanDials(planner, bundle.manifest, bundle.prices)
    grid = worths[np.linspace(0, len(worths) - 1, min(N_WORTHS, len(worths))).round().astype(int)]
    return {look.names[0]: _judge(judged, planner, dials, look, grid) for look in looks}


def _judge(
    judged: JudgedPrompts, planner: Planner, dials: PlanDials, looks: Looks, worths: np.ndarray
) -> PlanEvaluation:
    part = _part(judged, looks)
    alone = planner.looks([], 1)

    def replays(at: np.ndarray, looks: Looks = looks) -> list[Replayed]:
        return replayed(planner.engine, part.success, part.cost_usd, part.eligible, at, looks.inputs, part.answers)

    def curve(found: Sequence[Replayed]) -> CurveFigures:
        return part.figures(
            np.stack([each.outcome(part.correct) for each in found], axis=1),
            np.stack([each.cost_usd(part.paid, part.answers.check_usd) for each in found], axis=1),
        )

    dial = dials.proven(looks)
    proven = [point.worth_usd for point in dial.points if point.worth_usd is not None]
    of_dial = dict(zip(proven, replays(np.array(proven)), strict=True)) if proven else {}
    results = []
    for point in judged.graph.bundle.manifest.dial:
        worth = dial.point(point.quality).worth_usd
        if worth is not None:
            found = of_dial[worth]
            outcome, paid = found.outcome(part.correct), found.cost_usd(part.paid, part.answers.check_usd)
        else:
            rows = np.arange(len(part.correct))
            choice = _direct_choice(judged, point)
            outcome, paid = part.correct[rows, choice], part.paid[rows, choice]
        promised = worth is not None or point.promised
        results.append(part.dial_result(point.quality, outcome, paid, promised=promised, is_direct=worth is None))
    default = dial.point(judged.graph.bundle.manifest.default_quality).worth_usd
    expected = (None, None) if default is None else _expected(planner, part, looks, default, of_dial[default])
    return PlanEvaluation(
        check=looks.names[0],
        simulated=any(check.declared for check in looks.verifiers),
        n_prompts=len(part.correct),
        plans=curve(replays(worths)),
        direct=curve(replays(worths, alone)),
        fixed_cascade=_fixed_cascade(judged, planner, part, looks),
        dial=tuple(results),
        expected_success=expected[0],
        expected_cost=expected[1],
        shapes={} if default is None else _shapes(of_dial[default], judged.tiers),
        conditionals=_conditionals(planner, part, looks),
    )


def _part(judged: JudgedPrompts, looks: Looks) -> _Judged:
    """The prompts that plans are judged on."""
    table, outcomes = judged.table, judged.outcomes
    rows = np.arange(table.n_prompts)[evenly(table.n_prompts, MAX_PLANNED_PROMPTS)]
    classes, usd = np.zeros((len(rows), len(judged.tiers)), int), np.zeros((len(rows), len(judged.tiers)))
    for check in looks.verifiers:
        if check.declared:
            classes = simulated_classes(check, outcomes.correct[rows], seed=judged.seed + 1)
            usd = usd + check.usd_input
        else:
            cells = table.checks[check.name]
            classes = check.classes_of(cells.score[rows])
            usd = np.where(np.isfinite(cells.cost_usd[rows]), cells.cost_usd[rows], check.usd_input)
    weights = judged.weights[:, rows]
    return _Judged(
        success=judged.estimates["success"][rows],
        cost_usd=judged.estimates["cost_usd"][rows],
        eligible=judged.estimates["eligible"][rows],
        correct=outcomes.correct[rows],
        paid=outcomes.cost_usd[rows],
        answers=LoggedAnswers(table.answer_number[rows] if looks.agreement else None, classes, usd),
        weights=weights / weights.sum(axis=1, keepdims=True),
        best=outcomes.best,
    )


def _direct_choice(judged: JudgedPrompts, point: DialPoint) -> np.ndarray:
    """The tier that answers each judged prompt at a quality without a plan."""
    dials = Dials(point.quality, point.slack, 0.0, critical=False, promised=point.promised)
    return judged.graph.answers(judged.estimates, dials)[evenly(judged.table.n_prompts, MAX_PLANNED_PROMPTS)]


def _expected(planner: Planner, part: _Judged, looks: Looks, worth: float, found: Replayed) -> tuple[float, float]:
    """Expected over measured, of success and of cost, at one worth."""
    fees = looks.inputs["check_usd"].tolist()
    success, cost = np.empty(len(part.correct)), np.empty(len(part.correct))
    names = tuple(str(tier) for tier in range(part.correct.shape[1]))
    for row in range(len(part.correct)):
        one = slice(row, row + 1)
        tables: PlanTables = planner.engine.run(
            part.success[one], part.cost_usd[one], part.eligible[one], np.array([[worth]], np.float32), looks.inputs
        )
        if tables.is_plan[0, 0]:
            choices = Choices.of(tables, names, agreement=looks.agreement)
            success[row], cost[row] = choices.expected(part.cost_usd[row].tolist(), fees)
        else:
            tier = int(tables.direct[0, 0])
            success[row], cost[row] = part.success[row, tier], part.cost_usd[row, tier]
    outcome = found.outcome(part.correct)
    paid = found.cost_usd(part.paid, part.answers.check_usd)
    return float(success.mean() / max(outcome.mean(), LEAST_ACCURACY)), float(
        cost.mean() / max(paid.mean(), _LEAST_COST)
    )


def _conditionals(planner: Planner, part: _Judged, looks: Looks) -> dict[str, Conditional]:
    """What the bundle expects of an answer after another one, against what the log shows."""
    part = part.rows(np.arange(len(part.correct))[evenly(len(part.correct), _MOST_CONDITIONALS)])
    n_tiers = part.correct.shape[1]
    perfect = CheckModel.with_figures("perfect", n_tiers, sensitivity=1.0, specificity=1.0)
    worth = np.zeros((len(part.correct), 1), np.float32)

    def after_two(check: CheckModel | None, *, agreement: bool) -> np.ndarray:
        inputs = look_inputs(check, n_tiers, agreement=agreement, max_calls=MOST_CALLS)
        return planner.engine.run(part.success, part.cost_usd, part.eligible, worth, inputs).after_two

    pairs = list(permutations(range(n_tiers), 2))
    failed = after_two(perfect, agreement=False)[:, :, :, 0, :, 0].sum(axis=3)  # (n, first, second, 3)
    expected, measured, alone = [], [], []
    for first, second in pairs:
        rows = part.correct[:, first] < 0.5
        seen, _, right = failed[rows, first, second].T
        expected.append(right / np.maximum(seen, _LEAST_COST))
        measured.append(part.correct[rows, second])
        alone.append(part.success[rows, second])
    found = {"right after a failure": _conditional(expected, measured, alone)}
    if looks.agreement:
        compared = after_two(None, agreement=True)[:, :, :, 0, 0, 0]  # (n, first, second, 3), where they agree
        expected, measured, alone = [], [], []
        for first, second in pairs:
            at = np.arange(len(part.correct))
            rows = part.answers.agree(at, np.full(len(at), first), np.full(len(at), second))
            seen, right, _ = compared[rows, first, second].T
            expected.append(right / np.maximum(seen, _LEAST_COST))
            measured.append(part.correct[rows, first])
            alone.append(part.success[rows, first])
        found["right where two agree"] = _conditional(expected, measured, alone)
    return found


def _conditional(expected: list[np.ndarray], measured: list[np.ndarray], alone: list[np.ndarray]) -> Conditional:
    means = (float(np.concatenate(each).mean()) if sum(map(len, each)) else 0.0 for each in (expected, measured, alone))
    return Conditional(*means)


def _shapes(found: Replayed, tiers: Sequence[str]) -> dict[str, float]:
    """The sequences of tiers that were asked, the most frequent first."""
    sequences, counts = np.unique(found.asked, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        " -> ".join(tiers[tier] for tier in sequences[at] if tier >= 0): float(counts[at] / len(found.asked))
        for at in order
    }


# ---- fixed cascades ----------------------------------------------------------------------------------------------


def _fixed_cascade(judged: JudgedPrompts, planner: Planner, part: _Judged, looks: Looks) -> CurveFigures:
    """The cascades that are on the upper hull of the training part, each judged on the held-out prompts."""
    calibration, bundle = planner.calibration, judged.graph.bundle
    quotes = [bundle.prices.quote(float(n), bundle.manifest.output_tokens) for n in calibration.context_tokens]
    nothing = np.empty((len(part.correct), 0))
    if not quotes:
        return part.figures(nothing, nothing)
    accuracy_of = calibration.correct.mean(axis=0)

    def follow(cascade: Cascade, correct: np.ndarray, paid: np.ndarray, answers: LoggedAnswers) -> Any:
        if answers.answer_number is None:
            return verified(cascade, correct, paid, answers.classes == 0, answers.check_usd)
        most_accurate = max(cascade, key=lambda tier: accuracy_of[tier])
        return agreed(cascade, correct, paid, answers.answer_number, most_accurate)

    expected = expected_costs(calibration, graph_inputs(quotes))
    known = logged_answers(calibration, looks)
    every = cascades(len(judged.tiers), agreement=looks.agreement)
    tried = [follow(cascade, calibration.correct, expected, known) for cascade in every]
    accuracy = np.array([outcome.mean() for outcome, _ in tried])
    cost = np.array([paid.mean() for _, paid in tried])
    xs, ys = hull(np.append(cost, expected.mean(axis=0)), np.append(accuracy, accuracy_of))
    on_hull = set(zip(xs.tolist(), ys.tolist(), strict=True))
    chosen = [each for each, x, y in zip(every, cost, accuracy, strict=True) if (float(x), float(y)) in on_hull]
    if not chosen:
        return part.figures(nothing, nothing)
    outcomes, costs = zip(*(follow(each, part.correct, part.paid, part.answers) for each in chosen), strict=True)
    return part.figures(np.stack(outcomes, axis=1), np.stack(costs, axis=1))
