"""Judge a bundle on outcomes it was not trained on, through the graph that ships."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from router.bundle.bundle import Bundle
from router.policy import Dials, resolve_dials
from router.policy import Policy as RouterPolicy
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier
from training.errors import LogError
from training.evaluation import baselines
from training.evaluation.bundle_graph import BundleGraph, embed_with
from training.evaluation.metrics import (
    Interval,
    Outcomes,
    Policy,
    calibration_error,
    calibration_error_by_chance,
    choices_by_worth,
    curve,
    interval,
    policy_figures,
    reliability,
    resamples,
    worth_grid,
)
from training.evaluation.net_value import net_value
from training.evaluation.off_policy import N_FOLDS, LoggedChoices, OffPolicyReport, cross_fitted, evaluate_policy
from training.evaluation.result import DialResult, Evaluation, OffPolicyResult, PolicyResult
from training.evaluation.training_data import TrainingData
from training.log.costs import AttemptCosts, attempt_costs, costs_at_prices
from training.log.ingest import ingest
from training.log.sample import evenly
from training.log.sources import LogSource
from training.log.table import OutcomeTable, is_partial

MAX_JUDGED_PROMPTS = 50_000
"""Held-out prompts; an accuracy is then known to half a point, and more would not change what the report says."""

MIN_SEGMENT_PROMPTS = 50
MIN_COMPLETE_PROMPTS = 100
"""Of partial feedback, fewer prompts with the outcome of every tier are no sample of the rest, and judge nothing."""

_SEGMENT_RESAMPLES = 200
_LEAST_ACCURACY = 1e-9
_AT_RANDOM = {"apgr": 0.5, "cpt50": 0.5, "cpt80": 0.8}


def evaluate(
    bundle: str | Path | Bundle,
    logs: LogSource | Sequence[LogSource],
    *,
    prices: str | Path | None = None,
    price_factors: Mapping[str, float] | None = None,
    quality: float | None = None,
    worth_usd: float | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """Judge a bundle on the prompts of logs that it was not trained on and that every tier answered.

    Where these are too few, as in logs of one tier per request, it is judged off-policy (see
    training.evaluation.off_policy), which takes the propensities of the logged choices.

    prices: a file in the format of tiers.toml; price_factors: by provider, what its prices are multiplied by. With
        either, the same bundle decides at these prices, and attempts cost what their logged tokens cost at them.
    quality, worth_usd: dials to judge, as for Router.route; without them, the default quality.
    Raises BundleError, PriceError, DialError, LogError (also where nothing is left to judge on).
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    tiers, change = loaded.prices.tiers, np.ones(len(loaded.manifest.tiers))
    table = ingest(logs, tiers)
    on_step("ingest")
    dials = resolve_dials(loaded.manifest, RouterPolicy(), quality, worth_usd, critical=False)
    if prices is not None or price_factors:
        found = loaded.prices if prices is None else PriceTable.read(prices, loaded.manifest.tiers)
        loaded = replace(loaded, prices=found.scaled(price_factors or {}))
        repriced = np.where(np.isfinite(table.cost_usd), costs_at_prices(table, loaded.prices).cost_usd, np.nan)
        table, paid = replace(table, cost_usd=repriced), table
        change = _mean_cost(table, loaded.prices.tiers) / np.maximum(_mean_cost(paid, tiers), np.finfo(float).tiny)
    training = TrainingData.load(TrainingData.path_of(loaded.path), loaded.manifest.bundle_id)
    training = replace(training, cost_usd=training.cost_usd * change)  # the baselines see today's prices too
    evaluation = evaluate_table(loaded, table, training, dials=dials, seed=seed, on_step=on_step)
    if evaluation.off_policy and evaluation.off_policy.refused:
        raise LogError(f"no prompt to judge: {evaluation.off_policy.refused}")
    return evaluation


def _mean_cost(table: OutcomeTable, tiers: Sequence[Tier]) -> np.ndarray:
    return np.asarray(attempt_costs(table, tiers).cost_usd.mean(axis=0))


def evaluate_table(
    bundle: Bundle,
    table: OutcomeTable,
    training: TrainingData,
    *,
    vectors: np.ndarray | None = None,
    dials: Dials | None = None,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda step: None,
) -> Evaluation:
    """The same on an ingested table; vectors are the embeddings of its prompts, computed where not given.

    dials: to judge; None takes the default quality.

    Where nothing can be judged, no LogError is raised: `off_policy.refused` says why.
    """
    dials = dials or resolve_dials(bundle.manifest, RouterPolicy(), None, None, critical=False)
    trained_on = training.saw(table.groups)
    complete = np.isfinite(table.correct).all(axis=1)
    judged = ~trained_on & complete
    too_few = MIN_COMPLETE_PROMPTS if is_partial(table.correct[~trained_on]) else 2
    if judged.sum() < too_few:
        return _evaluate_off_policy(bundle, table, trained_on, dials, on_step)
    judged, n_complete = np.flatnonzero(judged), int(judged.sum())
    judged = judged[evenly(n_complete, MAX_JUDGED_PROMPTS)]
    vectors = None if vectors is None else vectors[judged]
    part = table.rows(judged)
    costs = attempt_costs(part, bundle.prices.tiers)
    manifest = bundle.manifest
    best = manifest.tiers.index(manifest.best_tier)
    outcomes = Outcomes(part.correct, costs.cost_usd, best)
    weights = resamples(part.n_prompts, seed)

    shipped = BundleGraph(bundle)
    estimates = shipped.estimates(part.prompts)
    on_step("estimates")
    worths = worth_grid(training.mean_cost_usd)
    router_policy = Policy(
        np.stack([shipped.choices(estimates, float(worth), 1.0) for worth in worths], axis=1),
        _gain(estimates["success"], best),
    )
    policies = _baseline_policies(training, part, outcomes, vectors, bundle, worths, seed)
    on_step("baselines")
    router = _result(router_policy, outcomes, weights)
    compared = {name: _result(policy, outcomes, weights) for name, policy in policies.items()}
    if "apgr" in router.figures:  # a random order recovers of the gap what it spends on calls
        compared["random"].figures.update({name: Interval(share, share, share) for name, share in _AT_RANDOM.items()})
    on_step("bootstrap")
    rivals = [name for name in compared if name != "oracle"]
    best_baseline = max(rivals, key=lambda name: compared[name].figures["aiq"].value)
    has_lengths = np.isfinite(part.output_tokens).any(axis=0)
    output_tokens = np.where(has_lengths, costs.output_tokens, np.nan)
    dial, shares = _dial(shipped, estimates, outcomes, output_tokens, weights)
    single = {
        tier: (_mean(part.correct[:, k], weights), _mean(costs.cost_usd[:, k] * 1000, weights))
        for k, tier in enumerate(manifest.tiers)
    }
    return Evaluation(
        bundle_id=manifest.bundle_id,
        tiers=manifest.tiers,
        best_tier=manifest.best_tier,
        n_prompts=part.n_prompts,
        n_trained_on=int(trained_on.sum()),
        n_incomplete=int((~complete & ~trained_on).sum()),
        n_not_drawn=n_complete - part.n_prompts,
        estimated_cost_share=costs.estimated_share,
        single=single,
        router=router,
        baselines=compared,
        best_baseline=best_baseline,
        lead=interval(router.aiq - compared[best_baseline].aiq),
        calibration={
            tier: (
                interval(calibration_error(estimates["success"][:, k], part.correct[:, k], weights)),
                _mean((estimates["success"][:, k] - part.correct[:, k]) ** 2, weights),
            )
            for k, tier in enumerate(manifest.tiers)
        },
        ece_by_chance={
            tier: calibration_error_by_chance(estimates["success"][:, k], seed) for k, tier in enumerate(manifest.tiers)
        },
        reliability={
            tier: reliability(estimates["success"][:, k], part.correct[:, k]) for k, tier in enumerate(manifest.tiers)
        },
        usd_per_correct={
            tier: _per_correct(costs.cost_usd[:, k], part.correct[:, k], weights)
            for k, tier in enumerate(manifest.tiers)
        },
        output_tokens_per_correct={
            tier: _per_correct(output_tokens[:, k], part.correct[:, k], weights)
            for k, tier in enumerate(manifest.tiers)
            if np.isfinite(output_tokens[:, k]).all()
        },
        net_value=net_value(worths, router_policy.choices, part.correct, costs.cost_usd, manifest.tiers),
        chosen=_chosen(shipped, estimates, outcomes, output_tokens, weights, dials),
        dial=dial,
        shares=shares,
        segments=_segments(part, outcomes, router_policy, policies, shipped, estimates, seed),
        length_log_error=_length_errors(part, estimates["output_tokens"], manifest.output_tokens, manifest.tiers),
        cost_ratio={
            tier: interval((weights @ estimates["cost_usd"][:, k]) / (weights @ measured.astype(np.float32)))
            for k, (tier, measured) in enumerate(zip(manifest.tiers, costs.cost_usd.T, strict=True))
            if measured.sum() > 0
        },
    )


def _evaluate_off_policy(
    bundle: Bundle, table: OutcomeTable, trained_on: np.ndarray, dials: Dials, on_step: Callable[[str], None]
) -> Evaluation:
    """What can be said where hardly any prompt has the outcome of every tier: no curves, only values of policies."""
    manifest = bundle.manifest
    usable = ~trained_on & (np.isfinite(table.correct) & np.isfinite(table.propensity)).any(axis=1)
    n_judged, estimated_cost_share = 0, 0.0
    if usable.sum() >= 2 * N_FOLDS:
        part = table.rows(usable)
        costs = attempt_costs(part, bundle.prices.tiers)
        result = _off_policy_result(bundle, part, costs, dials)
        n_judged, estimated_cost_share = part.n_prompts, costs.estimated_share
    else:
        result = OffPolicyResult(
            dials.quality,
            dials.worth_usd,
            None,
            {},
            f"of {table.n_prompts:,} prompts {int(trained_on.sum()):,} were trained on and "
            f"{int((~np.isfinite(table.correct).all(axis=1) & ~trained_on).sum()):,} lack an outcome of some tier, "
            f"{int(usable.sum()):,} of these with the propensity of the one they have; give a log of other prompts, "
            "with outcomes of every tier or with propensities",
        )
    on_step("off-policy")
    return Evaluation(
        bundle_id=manifest.bundle_id,
        tiers=manifest.tiers,
        best_tier=manifest.best_tier,
        n_prompts=n_judged,
        n_trained_on=int(trained_on.sum()),
        n_incomplete=int((~trained_on).sum()) - n_judged,
        n_not_drawn=0,
        estimated_cost_share=estimated_cost_share,
        single={},
        router=PolicyResult({}, [], np.empty(0)),
        baselines={},
        best_baseline=None,
        lead=None,
        calibration={},
        ece_by_chance={},
        reliability={},
        usd_per_correct={},
        output_tokens_per_correct={},
        net_value=None,
        chosen=None,
        dial=[],
        shares=np.empty((0, len(manifest.tiers))),
        segments={},
        length_log_error={},
        cost_ratio={},
        off_policy=result,
    )


def _off_policy_result(bundle: Bundle, part: OutcomeTable, costs: AttemptCosts, dials: Dials) -> OffPolicyResult:
    """The router at these dials, and every tier alone, on prompts with an outcome and its propensity."""
    manifest, shipped = bundle.manifest, BundleGraph(bundle)
    estimates = shipped.estimates(part.prompts)
    any_tier = logged_choices(part, costs.cost_usd, np.zeros(part.n_prompts, dtype=int))
    success, cost_usd = cross_fitted(
        any_tier, estimates["success"].astype(float), estimates["cost_usd"].astype(float), part.groups
    )

    def judged(choice: np.ndarray) -> OffPolicyReport:
        log = logged_choices(part, costs.cost_usd, choice)
        return evaluate_policy(log, np.eye(len(manifest.tiers))[choice], success, cost_usd)

    return OffPolicyResult(
        quality=dials.quality,
        worth_usd=dials.worth_usd,
        router=judged(shipped.choices(estimates, dials.worth_usd, dials.slack)),
        single={tier: judged(np.full(part.n_prompts, k)) for k, tier in enumerate(manifest.tiers)},
    )


def logged_choices(table: OutcomeTable, cost_usd: np.ndarray, choice: np.ndarray) -> LoggedChoices:
    """One logged choice per prompt, to judge the policy that takes `choice`, (n_prompts,).

    It is the policy's own tier wherever that has an outcome and a propensity, else another that has; each prompt
    needs one. cost_usd: (n_prompts, n_tiers).
    """
    rows = np.arange(table.n_prompts)
    is_logged = np.isfinite(table.correct) & np.isfinite(table.propensity)
    action = np.where(is_logged[rows, choice], choice, is_logged.argmax(axis=1))
    return LoggedChoices(action, table.propensity[rows, action], table.correct[rows, action], cost_usd[rows, action])


def _gain(success: np.ndarray, best: int) -> np.ndarray | None:
    """Predicted gain of the better of two tiers; None for more tiers."""
    return success[:, best] - success[:, 1 - best] if success.shape[1] == 2 else None


def _mean(values: np.ndarray, weights: np.ndarray) -> Interval:
    return interval(weights @ values.astype(np.float32))


def _result(policy: Policy, outcomes: Outcomes, weights: np.ndarray) -> PolicyResult:
    figures = policy_figures(policy, outcomes, weights)
    return PolicyResult(
        {name: interval(values) for name, values in figures.items()}, curve(policy, outcomes), figures["aiq"]
    )


def _baseline_policies(
    training: TrainingData,
    part: OutcomeTable,
    outcomes: Outcomes,
    vectors: np.ndarray | None,
    bundle: Bundle,
    worths: np.ndarray,
    seed: int,
) -> dict[str, Policy]:
    """Every baseline of the report; the learned ones are fitted on the bundle's own training data."""
    n, n_tiers = outcomes.correct.shape
    mean_cost = training.mean_cost_usd
    cheapest = int(mean_cost.argmin())
    rng = np.random.default_rng(seed)
    ordered = np.where(outcomes.correct >= 0.5, outcomes.cost_usd, np.inf)
    oracle = np.where(np.isfinite(ordered).any(axis=1), ordered.argmin(axis=1), outcomes.cost_usd.argmin(axis=1))
    policies = {
        "random": Policy(np.tile(np.arange(n_tiers), (n, 1))),
        "cheapest": Policy(np.full((n, 1), cheapest)),
        "strongest": Policy(np.full((n, 1), outcomes.best)),
        "oracle": Policy(oracle[:, None], _gain(outcomes.correct, outcomes.best)),
    }
    if vectors is None:
        vectors = embed_with(bundle, part.prompts)
    rows = rng.permutation(len(training.embedding))
    correct = training.correct[training.embedded[rows]]
    for fit in (baselines.knn, baselines.kmeans, baselines.linear):
        with threadpool_limits(1):  # as in training.train
            success = fit(training.embedding[rows], correct, vectors)
        policies[fit.__name__] = Policy(choices_by_worth(success, mean_cost, worths), _gain(success, outcomes.best))
    return policies


def _per_correct(amount: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> Interval:
    """What a correct answer takes; amount: USD or tokens of each attempt, (n_prompts,)."""
    return interval(
        (weights @ amount.astype(np.float32)) / np.maximum(weights @ correct.astype(np.float32), _LEAST_ACCURACY)
    )


def _dial(
    shipped: BundleGraph,
    estimates: Mapping[str, np.ndarray],
    outcomes: Outcomes,
    output_tokens: np.ndarray,
    weights: np.ndarray,
) -> tuple[list[DialResult], np.ndarray]:
    """What every quality of the dial keeps, and its shares of tiers."""
    results, shares = [], []
    for point in shipped.bundle.manifest.dial:
        dials = Dials(point.quality, point.slack, 0.0, critical=False, promised=point.promised)
        result = _chosen(shipped, estimates, outcomes, output_tokens, weights, dials)
        results.append(result)
        shares.append(list(result.shares.values()))
    return results, np.array(shares)


def _chosen(
    shipped: BundleGraph,
    estimates: Mapping[str, np.ndarray],
    outcomes: Outcomes,
    output_tokens: np.ndarray,
    weights: np.ndarray,
    dials: Dials,
) -> DialResult:
    """What the router at some dials keeps and costs; output_tokens: (n_prompts, n_tiers), NaN where none was logged."""
    rows = np.arange(len(outcomes.correct))
    choice = shipped.choices(estimates, dials.worth_usd, dials.slack)
    correct, cost_usd, tokens = (each[rows, choice] for each in (outcomes.correct, outcomes.cost_usd, output_tokens))
    best = weights @ outcomes.correct[:, outcomes.best].astype(np.float32)
    best_cost = weights @ outcomes.cost_usd[:, outcomes.best].astype(np.float32)
    accuracy, cost = weights @ correct.astype(np.float32), weights @ cost_usd.astype(np.float32)
    share = np.bincount(choice, minlength=outcomes.correct.shape[1]) / len(rows)
    return DialResult(
        quality=dials.quality,
        worth_usd=dials.worth_usd,
        slack=dials.slack,
        promised=dials.promised,
        accuracy=interval(accuracy),
        usd_per_1k=interval(1000 * cost),
        kept=interval(accuracy / np.maximum(best, _LEAST_ACCURACY)),
        cost_of_best=interval(cost / np.maximum(best_cost, 1e-12)),
        usd_per_correct=_per_correct(cost_usd, correct, weights),
        output_tokens_per_correct=_per_correct(tokens, correct, weights) if np.isfinite(tokens).all() else None,
        shares=dict(zip(shipped.bundle.manifest.tiers, share.tolist(), strict=True)),
    )


def _segments(
    part: OutcomeTable,
    outcomes: Outcomes,
    router: Policy,
    policies: Mapping[str, Policy],
    shipped: BundleGraph,
    estimates: Mapping[str, np.ndarray],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """AIQ of router and baselines, and what the default quality keeps, for segments with enough prompts."""
    manifest = shipped.bundle.manifest
    default = shipped.choices(estimates, 0.0, manifest.dial_point(manifest.default_quality).slack)
    result: dict[str, dict[str, Any]] = {}
    for segment in np.unique(part.segments):
        rows = np.flatnonzero(part.segments == segment)
        if not segment or len(rows) < MIN_SEGMENT_PROMPTS:
            continue
        local = Outcomes(outcomes.correct[rows], outcomes.cost_usd[rows], outcomes.best)
        weights = resamples(len(rows), seed, _SEGMENT_RESAMPLES)

        def aiq(
            policy: Policy, local: Outcomes = local, weights: np.ndarray = weights, rows: np.ndarray = rows
        ) -> dict[str, float]:
            return interval(policy_figures(Policy(policy.choices[rows]), local, weights)["aiq"]).to_json()

        chosen = np.arange(len(rows)), default[rows]
        result[str(segment)] = {
            "n_prompts": len(rows),
            "router": {"aiq": aiq(router)},
            "baselines": {name: {"aiq": aiq(policy)} for name, policy in policies.items()},
            "single": {tier: float(local.correct[:, k].mean()) for k, tier in enumerate(manifest.tiers)},
            "default_quality": {
                "accuracy": _mean(local.correct[chosen], weights).to_json(),
                "usd_per_1k": _mean(local.cost_usd[chosen] * 1000, weights).to_json(),
                "cost_of_best_tier": float(local.cost_usd[:, outcomes.best].mean() * 1000),
            },
        }
    return result


def _length_errors(
    part: OutcomeTable, predicted: np.ndarray, means: Sequence[float], tiers: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Mean absolute error of log output tokens, of the model and of the tier's mean, where lengths were logged."""
    errors = {}
    for k, tier in enumerate(tiers):
        rows = part.output_tokens[:, k] > 0
        if rows.any():
            logarithm = np.log(part.output_tokens[rows, k])
            errors[tier] = (
                float(np.abs(np.log(np.maximum(predicted[rows, k], 1e-3)) - logarithm).mean()),
                float(np.abs(np.log(means[k]) - logarithm).mean()),
            )
    return errors
