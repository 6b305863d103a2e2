"""A part of the log with all that training and judging take from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from router.portfolio.tiers import Tier
from training.log.costs import AttemptCosts, attempt_costs
from training.log.table import OutcomeTable


@dataclass(frozen=True)
class LogPart:
    """Some prompts of a log: their outcomes, their embeddings, and what attempts cost.

    vectors: float32 (n_prompts, n_dims).
    """

    table: OutcomeTable
    vectors: np.ndarray
    tiers: Sequence[Tier]

    @classmethod
    def of(cls, log: OutcomeTable, vectors: np.ndarray, tiers: Sequence[Tier], rows: np.ndarray) -> LogPart:
        """The rows (a mask) of a log and of the embeddings of its prompts."""
        return cls(log.rows(rows), vectors[rows], tiers)

    @cached_property
    def costs(self) -> AttemptCosts:
        """Of all attempts, made and not made; what the log lacks is estimated from this part alone."""
        return attempt_costs(self.table, self.tiers)
