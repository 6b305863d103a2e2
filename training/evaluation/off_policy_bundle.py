"""Judge a bundle where hardly any prompt has the outcome of every tier: values of policies, no curves."""

from __future__ import annotations

import numpy as np

from router.bundle.bundle import Bundle
from router.policy import Dials
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.off_policy import N_FOLDS, OffPolicyReport, cross_fitted, evaluate_policy
from training.evaluation.result import OffPolicyEvaluation
from training.log.costs import AttemptCosts, attempt_costs
from training.log.table import OutcomeTable


def judge_off_policy(bundle: Bundle, table: OutcomeTable, trained_on: np.ndarray, dials: Dials) -> OffPolicyEvaluation:
    """Judge the router at these dials, and every tier alone, on prompts with an outcome and its propensity.

    trained_on: bool, (n_prompts,), prompts to leave out. Where too few prompts are left, `refused` says so.
    """
    manifest = bundle.manifest
    usable = ~trained_on & (np.isfinite(table.correct) & np.isfinite(table.propensity)).any(axis=1)
    n_judged, estimated_cost_share = 0, 0.0
    router: OffPolicyReport | None = None
    single: dict[str, OffPolicyReport] = {}
    refused = None
    if usable.sum() >= 2 * N_FOLDS:
        part = table.rows(usable)
        costs = attempt_costs(part, bundle.prices.tiers)
        router, single = _reports(bundle, part, costs, dials)
        n_judged, estimated_cost_share = part.n_prompts, costs.estimated_share
    else:
        incomplete = ~np.isfinite(table.correct).all(axis=1) & ~trained_on
        refused = (
            f"of {table.n_prompts:,} prompts {int(trained_on.sum()):,} were trained on and "
            f"{int(incomplete.sum()):,} lack an outcome of some tier, {int(usable.sum()):,} of these with the "
            "propensity of the one they have; give a log of other prompts, with outcomes of every tier or with "
            "propensities"
        )
    return OffPolicyEvaluation(
        bundle_id=manifest.bundle_id,
        tiers=manifest.tiers,
        best_tier=manifest.best_tier,
        n_prompts=n_judged,
        n_trained_on=int(trained_on.sum()),
        n_incomplete=int((~trained_on).sum()) - n_judged,
        n_not_drawn=0,
        estimated_cost_share=estimated_cost_share,
        quality=dials.quality,
        worth_usd=dials.worth_usd,
        router=router,
        single=single,
        refused=refused,
    )


def _reports(
    bundle: Bundle, part: OutcomeTable, costs: AttemptCosts, dials: Dials
) -> tuple[OffPolicyReport, dict[str, OffPolicyReport]]:
    """What the log says of the router at these dials, and of every tier alone."""
    tiers, graph = bundle.manifest.tiers, BundleGraph(bundle)
    estimates = graph.estimates(part.prompts)
    any_tier = LoggedChoices.of(part, costs.cost_usd, np.zeros(part.n_prompts, dtype=int))
    success, cost_usd = cross_fitted(
        any_tier, estimates["success"].astype(float), estimates["cost_usd"].astype(float), part.groups
    )

    def judge(choice: np.ndarray) -> OffPolicyReport:
        log = LoggedChoices.of(part, costs.cost_usd, choice)
        return evaluate_policy(log, np.eye(len(tiers))[choice], success, cost_usd)

    router = judge(graph.answers(estimates, dials))
    return router, {tier: judge(np.full(part.n_prompts, k)) for k, tier in enumerate(tiers)}
