"""What plans keep and cost on logged answers, against direct routing and against other ways to ask several tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from router.bundle.manifest import DialPoint
from router.planning import PlanDials
from router.plans.checks import AGREEMENT, CheckModel
from router.plans.dial import PlanDial, replayed
from router.plans.engine import PlanTables
from router.plans.planner import MOST_CALLS, Looks, Planner
from router.plans.replay import Replayed
from router.plans.tree import Choices
from router.policy import Dials
from training.evaluation.judged import LEAST_ACCURACY, JudgedPrompts
from training.evaluation.metrics import hull, interval
from training.evaluation.plan_prompts import PlanPrompts, held_out_prompts, judged_rows, training_prompts
from training.evaluation.plan_result import Conditional, CurveFigures, JointFit, PlanDialResult, PlanEvaluation
from training.evaluation.plan_rivals import cascade_routing, fixed_cascades, threshold_cascades
from training.evaluation.posteriors import Posteriors, tables_in_batches
from training.evaluation.together import MAX_PROMPTS, judge_agreement, judge_joint
from training.log.sample import evenly

N_WORTHS = 40
_LEAST_COST = 1e-12
_SHARES = {"cost_at_95": 0.95, "cost_at_98": 0.98, "cost_at_100": 1.0}


@dataclass(frozen=True)
class _Judged:
    """The prompts that are judged, with weights of resamples, (n_resamples, n_prompts).

    best: the tier that all is relative to.
    """

    prompts: PlanPrompts
    weights: np.ndarray
    best: int

    @classmethod
    def of(cls, judged: JudgedPrompts, looks: Looks) -> _Judged:
        """Those that plans are judged on."""
        weights = judged.weights[:, judged_rows(judged)]
        weights = weights / weights.sum(axis=1, keepdims=True)
        return cls(prompts=held_out_prompts(judged, looks), weights=weights, best=judged.outcomes.best)

    @property
    def sample(self) -> tuple[PlanPrompts, np.ndarray]:
        """The prompts that together.py looks at, and their weights."""
        rows = np.arange(self.prompts.n_prompts)[evenly(self.prompts.n_prompts, MAX_PROMPTS)]
        weights = self.weights[:, rows]
        return self.prompts.rows(rows), weights / weights.sum(axis=1, keepdims=True)

    def figures(self, outcomes: np.ndarray, costs: np.ndarray) -> CurveFigures:
        """Of a family of policies; outcomes, costs: (n_prompts, n_policies). Single tiers are part of every family."""
        n_policies = outcomes.shape[1]
        outcomes = np.concatenate([outcomes, self.prompts.correct], axis=1)
        costs = np.concatenate([costs, self.prompts.paid], axis=1)
        accuracy, cost = (self.weights @ each.astype(np.float32) for each in (outcomes, costs))
        best, best_cost = accuracy[:, n_policies + self.best], cost[:, n_policies + self.best]
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
        prompts = self.prompts
        columns = np.stack([outcome, paid, prompts.correct[:, self.best], prompts.paid[:, self.best]], axis=1)
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
    if not looks:
        return {}
    dials = PlanDials(planner, bundle.manifest, bundle.prices)
    grid = worths[np.linspace(0, len(worths) - 1, min(N_WORTHS, len(worths))).round().astype(int)]
    joint = judge_joint(planner.engine, *_Judged.of(judged, looks[0]).sample)
    return {look.names[0]: _judge(judged, planner, dials, look, grid, joint) for look in looks}


def _judge(
    judged: JudgedPrompts, planner: Planner, dials: PlanDials, looks: Looks, worths: np.ndarray,
    joint: tuple[JointFit, Conditional],
) -> PlanEvaluation:  # fmt: skip
    """Plans with one check. worths: (n_worths,). joint: of `judge_joint`."""
    part = _Judged.of(judged, looks)
    conditionals = {"right after a failure": joint[1]}
    if looks.agreement:
        conditionals["right where two agree"] = judge_agreement(planner.engine, *part.sample)
    prompts, fees = part.prompts, part.prompts.answers.check_usd

    def replays(at: np.ndarray, looks: Looks = looks) -> list[Replayed]:
        return replayed(
            planner.engine, prompts.success, prompts.cost_usd, prompts.eligible, at, looks.inputs, prompts.answers
        )

    def curve(found: Sequence[Replayed]) -> CurveFigures:
        return part.figures(
            np.stack([each.outcome(prompts.correct) for each in found], axis=1),
            np.stack([each.cost_usd(prompts.paid, fees) for each in found], axis=1),
        )

    dial = dials.proven(looks)
    proven = [point.worth_usd for point in dial.points if point.worth_usd is not None]
    of_dial = dict(zip(proven, replays(np.array(proven)), strict=True)) if proven else {}
    quality = judged.graph.bundle.manifest.default_quality
    default = dial.point(quality).worth_usd
    expected = (None, None) if default is None else _expected(planner, prompts, looks, default, of_dial[default])
    return PlanEvaluation(
        check=looks.names[0],
        simulated=any(check.declared for check in looks.verifiers),
        n_prompts=prompts.n_prompts,
        plans=curve(replays(worths)),
        direct=curve(replays(worths, planner.looks([], 1))),
        dial=_dial_results(judged, part, dial, of_dial),
        default_quality=quality,
        expected_success=expected[0],
        expected_cost=expected[1],
        asked={} if default is None else _asked(of_dial[default], judged.tiers),
        conditionals=conditionals,
        joint=joint[0],
        **_rivals(judged, planner, part, looks, worths),
    )


def _dial_results(
    judged: JudgedPrompts, part: _Judged, dial: PlanDial, of_dial: Mapping[float, Replayed]
) -> tuple[PlanDialResult, ...]:
    """What is kept and paid at each quality. of_dial: plans by the worth that a quality was proven for."""
    prompts, rows, results = part.prompts, np.arange(part.prompts.n_prompts), []
    for point in judged.graph.bundle.manifest.dial:
        worth = dial.point(point.quality).worth_usd
        if worth is not None:
            found = of_dial[worth]
            outcome, paid = found.outcome(prompts.correct), found.cost_usd(prompts.paid, prompts.answers.check_usd)
        else:
            choice = _direct_choice(judged, point)
            outcome, paid = prompts.correct[rows, choice], prompts.paid[rows, choice]
        promised = worth is not None or point.promised
        results.append(part.dial_result(point.quality, outcome, paid, promised=promised, is_direct=worth is None))
    return tuple(results)


def _rivals(
    judged: JudgedPrompts, planner: Planner, part: _Judged, looks: Looks, worths: np.ndarray
) -> dict[str, CurveFigures]:
    """The curves of other ways to ask several tiers, by their fields of PlanEvaluation."""
    held_out, training = part.prompts, training_prompts(judged, planner, looks)
    expected = Posteriors.of(planner.engine, looks, held_out)
    nothing = np.empty((held_out.n_prompts, 0))
    fixed, with_thresholds = (nothing, nothing), (nothing, nothing)
    if training.n_prompts:
        of_training = Posteriors.of(planner.engine, looks, training)
        fixed = fixed_cascades(training, held_out)
        with_thresholds = threshold_cascades(training, of_training, held_out, expected)
    return {
        "fixed_cascade": part.figures(*fixed),
        "threshold_cascade": part.figures(*with_thresholds),
        "cascade_routing": part.figures(*cascade_routing(held_out, expected, worths)),
    }


def _direct_choice(judged: JudgedPrompts, point: DialPoint) -> np.ndarray:
    """The tier that answers each judged prompt at a quality without a plan."""
    dials = Dials(point.quality, point.slack, 0.0, critical=False, promised=point.promised)
    return np.asarray(judged.graph.answers(judged.estimates, dials)[judged_rows(judged)])


def _expected(
    planner: Planner, prompts: PlanPrompts, looks: Looks, worth: float, found: Replayed
) -> tuple[float, float]:
    """Expected over measured, of success and of cost, at one worth."""
    fees, names = prompts.fees.tolist(), tuple(str(tier) for tier in range(prompts.n_tiers))
    success, cost = [], []
    for rows, tables in tables_in_batches(planner.engine, prompts, looks.inputs, worth):
        for at, (own_success, own_cost) in enumerate(zip(prompts.success[rows], prompts.cost_usd[rows], strict=True)):
            if tables.is_plan[at, 0]:
                one = PlanTables(*(getattr(tables, name)[at : at + 1] for name in PlanTables.__slots__))
                choices = Choices.of(one, names, agreement=looks.agreement)
                expected = choices.expected(own_cost.tolist(), fees)
            else:
                tier = int(tables.direct[at, 0])
                expected = float(own_success[tier]), float(own_cost[tier])
            success.append(expected[0])
            cost.append(expected[1])
    outcome = found.outcome(prompts.correct).mean()
    paid = found.cost_usd(prompts.paid, prompts.answers.check_usd).mean()
    return (
        float(np.mean(success) / max(outcome, LEAST_ACCURACY)),
        float(np.mean(cost) / max(paid, _LEAST_COST)),
    )


def _asked(found: Replayed, tiers: Sequence[str]) -> dict[tuple[str, ...], float]:
    """The sequences of tiers that were asked, the most frequent first."""
    sequences, counts = np.unique(found.asked, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {
        tuple(tiers[tier] for tier in sequences[at] if tier >= 0): float(counts[at] / len(found.asked)) for at in order
    }
