"""The prompts that a bundle is judged on: observed outcomes of every tier, the bundle's estimates, and resamples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router.bundle.bundle import Bundle
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.metrics import Interval, Outcomes, interval, resamples
from training.log.costs import attempt_costs
from training.log.table import OutcomeTable

LEAST_ACCURACY = 1e-9
"""Divisor in place of an accuracy of 0."""


@dataclass(frozen=True)
class JudgedPrompts:
    """Prompts that every tier answered, with what the bundle estimates for them.

    table: their outcomes. outcomes: the same, with the cost of each attempt.
    output_tokens: (n_prompts, n_tiers), logged or estimated; NaN for tiers without any logged length.
    estimated_cost_share: share of the attempts without a logged cost.
    estimates: of `BundleGraph.estimates`. weights: of `resamples`, (n_resamples, n_prompts).
    """

    graph: BundleGraph
    table: OutcomeTable
    outcomes: Outcomes
    output_tokens: np.ndarray
    estimated_cost_share: float
    estimates: Mapping[str, np.ndarray]
    weights: np.ndarray
    seed: int

    @classmethod
    def of(cls, bundle: Bundle, table: OutcomeTable, seed: int) -> JudgedPrompts:
        """From a bundle and complete prompts."""
        costs = attempt_costs(table, bundle.prices.tiers)
        graph, manifest = BundleGraph(bundle), bundle.manifest
        has_lengths = np.isfinite(table.output_tokens).any(axis=0)
        return cls(
            graph=graph,
            table=table,
            outcomes=Outcomes(
                correct=table.correct, cost_usd=costs.cost_usd, best=manifest.tiers.index(manifest.best_tier)
            ),
            output_tokens=np.where(has_lengths, costs.output_tokens, np.nan),
            estimated_cost_share=costs.estimated_share,
            estimates=graph.estimates(table.prompts),
            weights=resamples(table.n_prompts, seed),
            seed=seed,
        )

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers, in the order of all columns."""
        return self.graph.bundle.manifest.tiers

    def mean(self, values: np.ndarray) -> Interval:
        """Mean over the prompts; values: (n_prompts,)."""
        return mean(values, self.weights)

    def per_correct(self, amount: np.ndarray, correct: np.ndarray) -> Interval:
        """How much one correct answer takes; amount: USD or tokens of each attempt, correct: 0..1, (n_prompts,)."""
        return interval(
            (self.weights @ amount.astype(np.float32))
            / np.maximum(self.weights @ correct.astype(np.float32), LEAST_ACCURACY)
        )


def mean(values: np.ndarray, weights: np.ndarray) -> Interval:
    """Mean of values, (n_prompts,), over resamples with these weights, (n_resamples, n_prompts)."""
    return interval(weights @ values.astype(np.float32))
