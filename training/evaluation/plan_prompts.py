"""The prompts that plans and their rivals are replayed on: held-out ones, and those that the bundle carries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.plans.dial import expected_costs, logged_answers, simulated_classes
from router.plans.planner import Looks, Planner
from router.plans.replay import LoggedAnswers
from router.portfolio.quote import graph_inputs
from training.evaluation.judged import JudgedPrompts
from training.log.sample import evenly

MAX_PLANNED_PROMPTS = 5_000
"""Held-out prompts that plans are judged on; more would not change what is said."""


@dataclass(frozen=True)
class PlanPrompts:
    """Prompts that every tier answered.

    success, cost_usd: expected; correct, paid: as logged; eligible: bool; all (n_prompts, n_tiers).
    answers: what the log says of the answers. fees: what checking an answer is expected to cost, (n_tiers,).
    """

    success: np.ndarray
    cost_usd: np.ndarray
    eligible: np.ndarray
    correct: np.ndarray
    paid: np.ndarray
    answers: LoggedAnswers
    fees: np.ndarray

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.correct)

    @property
    def n_tiers(self) -> int:
        """Number of tiers."""
        return int(self.correct.shape[1])

    @property
    def agree(self) -> np.ndarray:
        """Whether two tiers gave the same answer, bool (n_prompts, n_tiers, n_tiers).

        As if all did where answers are not compared.
        """
        numbers = self.answers.answer_number
        if numbers is None:
            return np.ones((self.n_prompts, self.n_tiers, self.n_tiers), bool)
        one, other = numbers[:, :, None], numbers[:, None, :]
        return np.asarray((one >= 0) & (one == other))

    def rows(self, rows: np.ndarray | slice) -> PlanPrompts:
        """Some of the prompts."""
        numbers = self.answers.answer_number
        return PlanPrompts(
            success=self.success[rows],
            cost_usd=self.cost_usd[rows],
            eligible=self.eligible[rows],
            correct=self.correct[rows],
            paid=self.paid[rows],
            answers=LoggedAnswers(
                None if numbers is None else numbers[rows], self.answers.classes[rows], self.answers.check_usd[rows]
            ),
            fees=self.fees,
        )


def judged_rows(judged: JudgedPrompts) -> np.ndarray:
    """Which of the judged prompts plans are judged on, int."""
    return np.arange(judged.table.n_prompts)[evenly(judged.table.n_prompts, MAX_PLANNED_PROMPTS)]


def held_out_prompts(judged: JudgedPrompts, looks: Looks) -> PlanPrompts:
    """Those of `judged_rows`, at measured costs. Verdicts of a declared check are drawn with its figures."""
    table, outcomes, rows = judged.table, judged.outcomes, judged_rows(judged)
    classes, usd = np.zeros((len(rows), len(judged.tiers)), int), np.zeros((len(rows), len(judged.tiers)))
    for check in looks.verifiers:
        if check.declared:
            classes = simulated_classes(check, outcomes.correct[rows], seed=judged.seed + 1)
            usd = usd + check.usd_input
        else:
            cells = table.checks[check.name]
            classes = check.classes_of(cells.score[rows])
            usd = np.where(np.isfinite(cells.cost_usd[rows]), cells.cost_usd[rows], check.usd_input)
    return PlanPrompts(
        success=judged.estimates["success"][rows],
        cost_usd=judged.estimates["cost_usd"][rows],
        eligible=judged.estimates["eligible"][rows],
        correct=outcomes.correct[rows],
        paid=outcomes.cost_usd[rows],
        answers=LoggedAnswers(table.answer_number[rows] if looks.agreement else None, classes, usd),
        fees=looks.inputs["check_usd"],
    )


def training_prompts(judged: JudgedPrompts, planner: Planner, looks: Looks) -> PlanPrompts:
    """Those that the bundle carries for its promises, with out-of-fold estimates, at expected costs; perhaps none.

    An answer that was not checked counts as one that did not pass.
    """
    calibration, bundle = planner.calibration, judged.graph.bundle
    quotes = [bundle.prices.quote(float(n), bundle.manifest.output_tokens) for n in calibration.context_tokens]
    shape = calibration.correct.shape
    cost_usd = expected_costs(calibration, graph_inputs(quotes)) if quotes else np.zeros(shape, np.float32)
    return PlanPrompts(
        success=calibration.success,
        cost_usd=cost_usd,
        eligible=np.ones(shape, bool),
        correct=calibration.correct.astype(float),
        paid=cost_usd.astype(float),
        answers=logged_answers(calibration, looks),
        fees=looks.inputs["check_usd"],
    )
