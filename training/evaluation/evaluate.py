"""Judge a bundle on outcomes it was not trained on, through the graph that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from router.bundle.bundle import Bundle
from router.plans.checks import CheckModel
from router.policy import Dials, resolve_dials
from router.policy import Policy as RouterPolicy
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier
from training.errors import LogError
from training.evaluation.baselines import baseline_policies, gain
from training.evaluation.dials import judge_dials, judge_whole_dial
from training.evaluation.judged import JudgedPrompts
from training.evaluation.metrics import (
    Interval,
    Policy,
    calibration_error,
    calibration_error_by_chance,
    curve,
    interval,
    policy_figures,
    reliability,
    worth_grid,
)
from training.evaluation.net_value import net_value
from training.evaluation.off_policy_bundle import judge_off_policy
from training.evaluation.plans import judge_plans
from training.evaluation.result import Evaluation, FullEvaluation, OffPolicyEvaluation, PolicyResult
from training.evaluation.segments import judge_segments
from training.evaluation.training_data import TrainingData
from training.log.costs import attempt_costs, costs_at_prices
from training.log.ingest import ingest
from training.log.sample import evenly
from training.log.sources import LogSource
from training.log.table import OutcomeTable, is_partial

MAX_JUDGED_PROMPTS = 50_000
"""Held-out prompts; an accuracy is then known to half a point, and more would not change what the report says."""

MIN_COMPLETE_PROMPTS = 100
"""Fewer prompts with the outcome of every tier are no sample of the rest of partial feedback; nothing rests on them."""

_AT_RANDOM = {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8}


def evaluate(
    bundle: str | Path | Bundle,
    logs: LogSource | Sequence[LogSource],
    *,
    prices: str | Path | None = None,
    price_factors: Mapping[str, float] | None = None,
    quality: float | None = None,
    worth_usd: float | None = None,
    maps: Sequence[str] = (),
    quarantine: Path | None = None,
    simulated_checks: Sequence[CheckModel] = (),
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Judge a bundle on the prompts of logs that it was not trained on.

    Returns a FullEvaluation on the prompts that every tier answered. Where these are too few, as in logs of one tier
    per request, an OffPolicyEvaluation, which needs the propensities of the logged choices (see
    training.evaluation.off_policy). This is fair as long as whether an answer was judged depends on neither tier nor
    outcome.

    prices: a file in the format of tiers.toml; price_factors: by provider, what its prices are multiplied by. With
        either, the same bundle decides at these prices, and attempts cost what their logged tokens cost at them.
    simulated_checks: checks whose verdicts are drawn with their stated figures, for plans.
    quality, worth_usd: dials to judge, as for Router.route; without them, the default quality.
    maps: how columns of the logs are made from others, as for TrainingConfig. quarantine: a file for broken rows; None
        writes none.
    Raises BundleError, PriceError, DialError, LogError (also where nothing is left to judge on).
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    tiers, change = loaded.prices.tiers, np.ones(len(loaded.manifest.tiers))
    table = ingest(logs, tiers, maps=maps, quarantine=quarantine)
    on_step("ingest")
    dials = resolve_dials(loaded.manifest, RouterPolicy(), quality, worth_usd, critical=False)
    if prices is not None or price_factors:
        found = loaded.prices if prices is None else PriceTable.read(prices, loaded.manifest.tiers)
        loaded = replace(loaded, prices=found.scaled(price_factors or {}))
        at_these_prices = costs_at_prices(table, loaded.prices, logged_at=tiers).cost_usd
        repriced = np.where(np.isfinite(table.cost_usd), at_these_prices, np.nan)
        table, paid = replace(table, cost_usd=repriced), table
        change = _mean_cost(table, loaded.prices.tiers) / np.maximum(_mean_cost(paid, tiers), np.finfo(float).tiny)
    training = TrainingData.load(loaded)
    training = replace(training, cost_usd=training.cost_usd * change)  # the baselines see today's prices too
    evaluation = evaluate_table(
        loaded, table, training, dials=dials, simulated_checks=simulated_checks, seed=seed, on_step=on_step
    )
    if isinstance(evaluation, OffPolicyEvaluation) and evaluation.refused:
        raise LogError(f"no prompt to judge: {evaluation.refused} (read: {table.summary})")
    return replace(evaluation, log=table.summary)


def _mean_cost(table: OutcomeTable, tiers: Sequence[Tier]) -> np.ndarray:
    return np.asarray(attempt_costs(table, tiers).cost_usd.mean(axis=0))


def evaluate_table(
    bundle: Bundle,
    table: OutcomeTable,
    training: TrainingData,
    *,
    vectors: np.ndarray | None = None,
    dials: Dials | None = None,
    simulated_checks: Sequence[CheckModel] = (),
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """The same on an ingested table.

    vectors: embeddings of its prompts, (n_prompts, n_dims); computed where None. dials: to judge; None takes the
    default quality. Where nothing can be judged, OffPolicyEvaluation.refused says why, and no LogError is raised.
    """
    dials = dials or resolve_dials(bundle.manifest, RouterPolicy(), None, None, critical=False)
    trained_on = training.saw(table.groups)
    complete = np.isfinite(table.correct).all(axis=1)
    usable = np.flatnonzero(~trained_on & complete)
    too_few = MIN_COMPLETE_PROMPTS if is_partial(table.correct[~trained_on]) else 2
    if len(usable) < too_few:
        off_policy = judge_off_policy(bundle, table, trained_on, dials)
        on_step("off-policy")
        return off_policy
    drawn = usable[evenly(len(usable), MAX_JUDGED_PROMPTS)]
    judged = JudgedPrompts.of(bundle, table.rows(drawn), seed)
    on_step("estimates")
    vectors = None if vectors is None else vectors[drawn]
    compared = _compare(judged, training, vectors, on_step)
    plans = judge_plans(judged, worth_grid(training.mean_cost_usd), simulated_checks)
    on_step("plans judged")
    return FullEvaluation(
        bundle_id=bundle.manifest.bundle_id,
        tiers=judged.tiers,
        best_tier=bundle.manifest.best_tier,
        n_prompts=len(drawn),
        n_trained_on=int(trained_on.sum()),
        n_incomplete=int((~complete & ~trained_on).sum()),
        n_not_drawn=len(usable) - len(drawn),
        estimated_cost_share=judged.estimated_cost_share,
        chosen=judge_dials(judged, dials),
        dial=judge_whole_dial(judged),
        plans=plans,
        **compared,
        **_per_tier(judged),
    )


def _compare(
    judged: JudgedPrompts, training: TrainingData, vectors: np.ndarray | None, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """Fields of a FullEvaluation that compare the router, with worth_usd as its only dial, with all baselines."""
    outcomes, weights = judged.outcomes, judged.weights
    worths = worth_grid(training.mean_cost_usd)
    router_policy = Policy(
        np.stack([judged.graph.choices(judged.estimates, float(worth), 1.0) for worth in worths], axis=1),
        gain(judged.estimates["success"], outcomes.best),
    )
    policies = baseline_policies(judged, training, vectors, worths)
    on_step("baselines")

    def result(policy: Policy, known: Mapping[str, float]) -> PolicyResult:
        figures = policy_figures(policy, outcomes, weights)
        intervals = {name: interval(values) for name, values in figures.items()}
        intervals |= {name: Interval(share, share, share) for name, share in known.items()}
        return PolicyResult(figures=intervals, curve=curve(policy, outcomes), aiq=figures["aiq"])

    router = result(router_policy, {})
    # A random order of calls recovers the share of the gap that it spends on calls.
    random = _AT_RANDOM if "apgr" in router.figures else {}
    compared = {name: result(policy, random if name == "random" else {}) for name, policy in policies.items()}
    on_step("bootstrap")
    rivals = [name for name in compared if name != "oracle"]
    best_baseline = max(rivals, key=lambda name: compared[name].figures["aiq"].value)
    return {
        "router": router,
        "baselines": compared,
        "best_baseline": best_baseline,
        "lead": interval(router.aiq - compared[best_baseline].aiq),
        "net_value": net_value(worths, router_policy.choices, outcomes.correct, outcomes.cost_usd, judged.tiers),
        "segments": judge_segments(judged, router_policy, policies),
    }


def _per_tier(judged: JudgedPrompts) -> dict[str, Any]:
    """Fields of a FullEvaluation with an entry per tier."""
    weights, seed = judged.weights, judged.seed
    columns = list(zip(judged.tiers, judged.outcomes.correct.T, judged.outcomes.cost_usd.T, strict=True))
    success = dict(zip(judged.tiers, judged.estimates["success"].T, strict=True))
    cost = dict(zip(judged.tiers, judged.estimates["cost_usd"].T, strict=True))
    tokens = dict(zip(judged.tiers, judged.output_tokens.T, strict=True))
    return {
        "single": {tier: (judged.mean(correct), judged.mean(paid * 1000)) for tier, correct, paid in columns},
        "calibration": {
            tier: (
                interval(calibration_error(success[tier], correct, weights)),
                judged.mean((success[tier] - correct) ** 2),
            )
            for tier, correct, _ in columns
        },
        "ece_by_chance": {tier: calibration_error_by_chance(estimated, seed) for tier, estimated in success.items()},
        "reliability": {tier: reliability(success[tier], correct) for tier, correct, _ in columns},
        "usd_per_correct": {tier: judged.per_correct(paid, correct) for tier, correct, paid in columns},
        "output_tokens_per_correct": {
            tier: judged.per_correct(tokens[tier], correct)
            for tier, correct, _ in columns
            if np.isfinite(tokens[tier]).all()
        },
        "length_log_error": _length_errors(judged),
        "cost_ratio": {
            tier: interval((weights @ cost[tier]) / (weights @ paid.astype(np.float32)))
            for tier, _, paid in columns
            if paid.sum() > 0
        },
        "cost_explained": _explained_shares(judged),
    }


def _explained_shares(judged: JudgedPrompts) -> dict[str, float]:
    """Share of each tier's logged cost that the prompt's tokens and the logged answer's explain at list price."""
    estimates, answers, is_logged = judged.estimates, judged.table.output_tokens, np.isfinite(judged.table.cost_usd)
    of_prompt = estimates["context_tokens"][:, None] * estimates["usd_per_mtok_input"]
    usd = (of_prompt + np.nan_to_num(answers) * estimates["usd_per_mtok_output"]) / 1e6
    explained, paid = ((is_logged * amount).sum(axis=0) for amount in (usd, judged.outcomes.cost_usd))
    return {tier: float(explained[k] / paid[k]) for k, tier in enumerate(judged.tiers) if paid[k] > 0}


def _length_errors(judged: JudgedPrompts) -> dict[str, tuple[float, float]]:
    """Mean absolute error of log output tokens, of the model and of the tier's mean, where lengths were logged."""
    errors = {}
    means = judged.graph.bundle.manifest.output_tokens
    for k, tier in enumerate(judged.tiers):
        rows = judged.table.output_tokens[:, k] > 0
        if rows.any():
            logarithm = np.log(judged.table.output_tokens[rows, k])
            predicted = np.maximum(judged.estimates["output_tokens"][rows, k], 1e-3)
            errors[tier] = (
                float(np.abs(np.log(predicted) - logarithm).mean()),
                float(np.abs(np.log(means[k]) - logarithm).mean()),
            )
    return errors
