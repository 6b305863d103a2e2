"""Net value against the worth of a correct answer: of the router, and of always asking one tier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class BreakEven:
    """Where the best single tier changes: above this worth it is `dearer`, just below it `cheaper`."""

    worth_usd: float
    cheaper: str
    dearer: str


@dataclass(frozen=True)
class NetValue:
    """worth_usd x accuracy - cost, in USD per 1,000 requests, at each worth.

    router: with worth_usd as its only dial. single: per tier.
    """

    worth_usd: Sequence[float]
    router: Sequence[float]
    single: Mapping[str, Sequence[float]]
    break_even: Sequence[BreakEven]

    @property
    def best_single(self) -> list[float]:
        """Net value of the best single tier at each worth."""
        return [float(value) for value in np.max(list(self.single.values()), axis=0)]

    def to_json(self) -> dict[str, Any]:
        """The entry "net_value"."""
        return {**asdict(self), "best_single": self.best_single}


def net_value(
    worth_usd: np.ndarray, choices: np.ndarray, correct: np.ndarray, cost_usd: np.ndarray, tiers: Sequence[str]
) -> NetValue:
    """choices: the router's tier at each worth, (n_prompts, n_worths); correct, cost_usd: (n_prompts, n_tiers)."""
    rows = np.arange(len(correct))[:, None]
    router = 1000 * (worth_usd * correct[rows, choices] - cost_usd[rows, choices]).mean(axis=0)
    accuracy, cost = correct.mean(axis=0), cost_usd.mean(axis=0)
    single = 1000 * (worth_usd[:, None] * accuracy - cost)
    return NetValue(
        worth_usd=worth_usd.tolist(),
        router=router.tolist(),
        single=dict(zip(tiers, single.T.tolist(), strict=True)),
        break_even=break_evens(accuracy, cost, tiers),
    )


def break_evens(accuracy: np.ndarray, cost_usd: np.ndarray, tiers: Sequence[str]) -> list[BreakEven]:
    """The worths at which the best single tier changes, rising; accuracy, cost_usd: means per tier, (n_tiers,).

    The upper envelope of the lines worth x accuracy - cost: from the cheapest tier on, always the next crossing.
    """
    at = int(np.lexsort((-accuracy, cost_usd))[0])
    found: list[BreakEven] = []
    while (accuracy > accuracy[at]).any():
        better = np.flatnonzero(accuracy > accuracy[at])
        worth = (cost_usd[better] - cost_usd[at]) / (accuracy[better] - accuracy[at])
        nearest = better[np.lexsort((-accuracy[better], worth))[0]]
        found.append(BreakEven(float(worth.min()), tiers[at], tiers[nearest]))
        at = int(nearest)
    return found
