"""A bundle that is judged: at today's prices, and never by estimates that saw the prompts that it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from router.bundle.bundle import Bundle
from router.policy import Policy, resolve_dials
from router.portfolio.prices import PriceTable
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.training_data import TrainingData
from training.log.table import OutcomeTable
from training.retrain.champion import training_data_of


@dataclass(frozen=True)
class Candidate:
    """A bundle at today's prices, and what it was trained on. columns: of its tiers in the price table."""

    bundle: Bundle
    part: TrainingData
    columns: np.ndarray

    @classmethod
    def at(cls, bundle: Bundle, prices: PriceTable) -> Candidate:
        """The bundle at these prices, which may have more tiers than the bundle."""
        column = {tier.name: number for number, tier in enumerate(prices.tiers)}
        columns = np.array([column[name] for name in bundle.manifest.tiers])
        priced = replace(bundle, prices=replace(prices, tiers=tuple(prices.tiers[number] for number in columns)))
        return cls(bundle=priced, part=training_data_of(bundle), columns=columns)

    @cached_property
    def graph(self) -> BundleGraph:
        """The bundle's graph, in pieces."""
        return BundleGraph(self.bundle)

    def estimates(self, table: OutcomeTable) -> dict[str, np.ndarray]:
        """As `BundleGraph.estimates`, but out of fold where the bundle was trained on a prompt."""
        if not table.n_prompts:
            cells = np.empty((0, len(self.columns)), np.float32)
            return {"success": cells, "cost_usd": cells, "eligible": cells > 0, "context_tokens": cells[:, 0]}
        found = self.graph.estimates(table.prompts)
        if not len(self.part.prompt_ids):
            return found
        order = np.argsort(self.part.prompt_ids)
        at = np.searchsorted(self.part.prompt_ids, table.prompt_ids, sorter=order).clip(max=len(order) - 1)
        seen = self.part.prompt_ids[order[at]] == table.prompt_ids
        return {**found, "success": np.where(seen[:, None], self.part.out_of_fold[order[at]], found["success"])}

    def answers(self, estimates: Mapping[str, np.ndarray], quality: float | None = None) -> np.ndarray:
        """Which of the bundle's tiers answers at a quality, int (n_prompts,); None: without dials."""
        dials = resolve_dials(self.bundle.manifest, Policy(), quality, None, critical=False)
        return self.graph.answers(estimates, dials)

    def choices(self, estimates: Mapping[str, np.ndarray]) -> np.ndarray:
        """The tier that answers without dials, as a column of the price table, int (n_prompts,)."""
        return np.asarray(self.columns[self.answers(estimates)])

    def panel(self, log: OutcomeTable) -> OutcomeTable:
        """The prompts that each of the bundle's tiers was asked and that the bundle was not trained on.

        log: with a column for each tier of the price table, as the panel has.
        """
        return log.rows(np.isfinite(log.correct[:, self.columns]).all(axis=1) & ~self.part.saw(log.groups))
