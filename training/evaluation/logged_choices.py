"""Logged decisions: the tier that was taken for each request, how likely that was, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.errors import LogError
from training.log.table import OutcomeTable


@dataclass(frozen=True)
class LoggedChoices:
    """One row per logged decision.

    action: int, the tier taken. propensity: P(this tier was taken), in (0, 1]. correct: 0..1. cost_usd: of that
    attempt, at the prices to judge at. All (n,).
    Raises LogError where a value is out of range or not finite, or an array has another length.
    """

    action: np.ndarray
    propensity: np.ndarray
    correct: np.ndarray
    cost_usd: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.action)
        if n < 2:
            raise LogError(f"found {n} logged decisions; expected at least 2 (some hundreds are sensible)")
        if not np.issubdtype(self.action.dtype, np.integer) or self.action.ndim != 1 or (self.action < 0).any():
            raise LogError("action is not a one-dimensional array of tier numbers from 0")
        for name, low, high in (("propensity", 0.0, 1.0), ("correct", 0.0, 1.0), ("cost_usd", 0.0, np.inf)):
            values = getattr(self, name)
            if values.shape != (n,):
                raise LogError(f"{name} has shape {values.shape}; expected ({n},), as action has")
            broken = ~(np.isfinite(values) & (values >= low) & (values <= high))
            if name == "propensity":
                broken |= values == 0
            if broken.any():
                wanted = "above 0 and at most 1" if name == "propensity" else f"finite, from {low:g} to {high:g}"
                raise LogError(
                    f"{name} of {int(broken.sum())} of {n} rows is not {wanted} (found {values[broken][0]}); "
                    "log what the router's decision says, or leave these rows out"
                )

    @classmethod
    def of(cls, table: OutcomeTable, cost_usd: np.ndarray, choice: np.ndarray) -> LoggedChoices:
        """One logged choice per prompt of a table, to judge the policy that takes `choice`, int (n_prompts,).

        It is the policy's own tier wherever that has an outcome and a propensity, otherwise another tier that has
        both; each prompt needs one. cost_usd: of each attempt, (n_prompts, n_tiers).
        """
        rows = np.arange(table.n_prompts)
        is_logged = np.isfinite(table.correct) & np.isfinite(table.propensity)
        action = np.where(is_logged[rows, choice], choice, is_logged.argmax(axis=1))
        return cls(
            action=action,
            propensity=table.propensity[rows, action],
            correct=table.correct[rows, action],
            cost_usd=cost_usd[rows, action],
        )
