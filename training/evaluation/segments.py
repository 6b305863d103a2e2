"""The same judgement within segments of the log."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from router.policy import Policy as RouterPolicy
from router.policy import resolve_dials
from training.evaluation.judged import JudgedPrompts, mean
from training.evaluation.metrics import Outcomes, Policy, interval, policy_figures, resamples

MIN_SEGMENT_PROMPTS = 50
"""Smaller segments are left out."""

SEGMENT_ERROR_RATE = 0.05
"""Chance that a router which is as good in every segment counts as worse in any of them (Bonferroni)."""

_N_RESAMPLES = 200


def judge_segments(judged: JudgedPrompts, router: Policy, baselines: Mapping[str, Policy]) -> dict[str, dict[str, Any]]:
    """AIQ of router and baselines, and what the default quality keeps, in each segment with enough prompts."""
    dials = resolve_dials(judged.graph.bundle.manifest, RouterPolicy(), None, None, critical=False)
    default = judged.graph.answers(judged.estimates, dials)
    segments = judged.table.segments
    return {
        str(segment): _judge_segment(judged, np.flatnonzero(segments == segment), default, router, baselines)
        for segment in np.unique(segments)
        if segment and (segments == segment).sum() >= MIN_SEGMENT_PROMPTS
    }


def _judge_segment(
    judged: JudgedPrompts, rows: np.ndarray, default: np.ndarray, router: Policy, baselines: Mapping[str, Policy]
) -> dict[str, Any]:
    """One segment, the prompts of these rows; default: the tier taken at the default quality, (n_prompts,)."""
    outcomes = judged.outcomes
    local = Outcomes(correct=outcomes.correct[rows], cost_usd=outcomes.cost_usd[rows], best=outcomes.best)
    weights = resamples(len(rows), judged.seed, _N_RESAMPLES)

    def aiq(policy: Policy) -> dict[str, dict[str, float]]:
        return {"aiq": interval(policy_figures(Policy(policy.choices[rows]), local, weights)["aiq"]).to_json()}

    chosen = np.arange(len(rows)), default[rows]
    return {
        "n_prompts": len(rows),
        "router": aiq(router),
        "baselines": {name: aiq(policy) for name, policy in baselines.items()},
        "single": {tier: float(local.correct[:, k].mean()) for k, tier in enumerate(judged.tiers)},
        "default_quality": {
            "accuracy": mean(local.correct[chosen], weights).to_json(),
            "usd_per_1k": mean(local.cost_usd[chosen] * 1000, weights).to_json(),
            "cost_of_best_tier": float(local.cost_usd[:, outcomes.best].mean() * 1000),
        },
    }


def worse_segments_of(difference: np.ndarray, segments: np.ndarray) -> dict[str, str]:
    """By how much the quality is lower, for each segment where that is significant.

    difference, segments: (n_prompts,). Prompts of no segment ("") are judged with all others, by the verdict.
    """
    names, sizes = np.unique(segments, return_counts=True)
    large = names[(sizes >= MIN_SEGMENT_PROMPTS) & (names != "")]
    worse: dict[str, str] = {}
    for name in large.tolist():
        of_segment = difference[segments == name]
        error = float(of_segment.std(ddof=1)) / len(of_segment) ** 0.5
        highest = float(of_segment.mean()) + NormalDist().inv_cdf(1 - SEGMENT_ERROR_RATE / len(large)) * error
        if highest < 0:
            worse[name] = f"{of_segment.mean() * 100:+.1f} points, {len(of_segment):,} prompts"
    return worse
