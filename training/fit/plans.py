"""What plans need to know: how tiers fail together, when answers agree, what checks are worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router.plans.calibration import Calibration
from router.plans.checks import KnownChecks
from router.plans.planner import CALIBRATION_FILE, CHECKS_FILE, PLAN_FILE
from training.fit.agreement import AgreementModel
from training.fit.joint import JointModel
from training.fit.plan_graph import plan_graph
from training.fit.verifiers import fit_verifier
from training.log.sample import evenly
from training.log.table import OutcomeTable, is_partial

MAX_TIERS = 12
"""Plans are weighed one by one, and there are K (K - 1)^2 of them."""

MIN_AGREEMENT_PROMPTS = 60
"""Prompts with the answers of two tiers that a bundle needs to compare answers."""

MAX_CALIBRATION_PROMPTS = 2_000
"""More would prove a dial a step cheaper, and take longer than a change of prices should."""


@dataclass(frozen=True)
class PlanModel:
    """What was learned of plans.

    joint: how tiers fail together. agreement: when answers agree. known: the checks. calibration: what promises are
    proven on.
    """

    joint: JointModel
    agreement: AgreementModel
    known: KnownChecks
    calibration: Calibration

    @classmethod
    def fit(
        cls, table: OutcomeTable, success: np.ndarray, output_tokens: np.ndarray, input_tokens: np.ndarray,
        context_tokens: np.ndarray,
    ) -> PlanModel | None:  # fmt: skip
        """From training prompts; None where there is one tier or more than MAX_TIERS.

        success: out of fold; output_tokens, input_tokens: expected, as billed; all (n_prompts, n_tiers).
        context_tokens: (n_prompts,).
        """
        if not 2 <= len(table.tiers) <= MAX_TIERS:
            return None
        agreement = AgreementModel.fit(success, table.correct, table.answer_number)
        verifiers = {
            name: check
            for name, cells in sorted(table.checks.items())
            if (check := fit_verifier(name, success, table.correct, cells.score, cells.cost_usd)) is not None
        }
        # Where most prompts were asked of one tier, those that all answered are no sample of the rest: plans and their
        # kin ask more tiers where answers look wrong.
        complete = np.flatnonzero(np.isfinite(table.correct).all(axis=1) & (not is_partial(table.correct)))
        rows = complete[evenly(len(complete), MAX_CALIBRATION_PROMPTS)]
        return cls(
            joint=JointModel.fit(success, table.correct),
            agreement=agreement,
            known=KnownChecks(agreement=_words(agreement), verifiers=verifiers),
            calibration=Calibration(
                success=success[rows].astype(np.float32),
                output_tokens=output_tokens[rows].astype(np.float32),
                input_tokens=input_tokens[rows].astype(np.float32),
                context_tokens=context_tokens[rows].astype(np.float32),
                correct=table.correct[rows].astype(np.float32),
                answer_number=table.answer_number[rows].astype(np.int16),
                scores={name: table.checks[name].score[rows].astype(np.float32) for name in verifiers},
            ),
        )

    def files(self) -> Mapping[str, bytes]:
        """The files of a bundle that plans."""
        graph = plan_graph(self.joint, self.agreement)
        return {
            PLAN_FILE: graph.SerializeToString(deterministic=True),
            CHECKS_FILE: self.known.to_text().encode(),
            CALIBRATION_FILE: self.calibration.to_bytes(),
        }


def _words(agreement: AgreementModel) -> Mapping[str, float | int | None] | None:
    if agreement.n_prompts < MIN_AGREEMENT_PROMPTS:
        return None
    return {"n_prompts": agreement.n_prompts, "agree_when_both_wrong": agreement.wrong_agree}
