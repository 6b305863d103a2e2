"""Testing a promise of quality by betting, in whatever order prices rank the tiers.

Prompt by prompt, a stake is set on z = y - q x b: y is the outcome of the tier chosen, b that of the best tier, and q
the quality (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86). If the
mean of z were at most 0, the wealth would on average never rise above the 1 that it began with, so it would come to
1 / delta with probability delta at most (Ville's inequality). Nothing is assumed of the distribution of outcomes, and
no number of prompts is too small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

MAX_STAKE = 0.5
"""Largest share of the wealth that one prompt can lose."""

N_CHECKPOINTS = 8
"""The wealth is looked at so often, evenly spread over the prompts. Once it is enough, what comes later is ignored."""

MAX_QUALITY = 1.25
"""Lower bounds of the accuracy kept are searched up to this value."""

_BOUND_PRECISION = 0.001
_MOST_PROMPTS = 10**9
_N_HALVINGS = 40  # of the range of stakes


@dataclass(frozen=True)
class Bets:
    """Bets on the accuracy kept at one slack.

    correct: outcomes, (n_prompts, n_tiers). sets: the admissible tiers of each prompt as a bit mask, int (n_prompts,).
    lowest: the admissible tier with the lowest estimate, int (n_prompts,). enough: log wealth that proves a quality.
    largest: the largest absolute value of an outcome. references: tiers that may be the best one.
    """

    correct: np.ndarray
    sets: np.ndarray
    lowest: np.ndarray
    enough: float
    largest: float
    references: tuple[int, ...]

    @classmethod
    def at(
        cls,
        slack: float,
        success: np.ndarray,
        correct: np.ndarray,
        enough: float,
        largest: float,
        references: tuple[int, ...] | None = None,
    ) -> Bets:
        """From success and correct, (n_prompts, n_tiers). references: None tries every tier as the best one."""
        admissible = success >= success.max(axis=1, keepdims=True) - slack
        lowest = np.where(admissible, success, np.inf).argmin(axis=1)
        sets = admissible @ (1 << np.arange(correct.shape[1]))
        # The hardest reference comes first: most tests that fail then fail at once.
        order = tuple(np.argsort(-correct.mean(axis=0), kind="stable").tolist()) if references is None else references
        return cls(correct, sets, lowest, enough, largest, order)

    def log_wealth(self, quality: float) -> float:
        """The largest log wealth that bets on `quality` reach in the worst case.

        Where this is below `enough`, it is only an upper bound: the search stops at the first reference that fails.
        """
        least = np.inf
        for reference in self.references:
            least = min(least, self._log_wealths(quality, reference).max())
            if least < self.enough:
                break
        return float(least)

    def _log_wealths(self, quality: float, reference: int) -> np.ndarray:
        """The least log wealth over all orders of prices, (N_CHECKPOINTS,).

        The stakes are the same for each order, so the log wealth is a sum over prompts.
        """
        z = self.correct - quality * self.correct[:, reference, None]
        rows = np.arange(len(z))
        of_lowest = z[rows, self.lowest]
        n_before = np.maximum(rows, 1)
        mean = np.concatenate([[0.0], np.cumsum(of_lowest)[:-1]]) / n_before
        square = np.concatenate([[0.0], np.cumsum(of_lowest**2)[:-1]])
        variance = (0.25 * self.largest**2 + np.maximum(square - n_before * mean**2, 0.0)) / (rows + 1)
        largest_stake = _largest_stake(quality, self.largest)
        stake = np.minimum(np.sqrt(2 * self.enough / (len(z) * variance)), largest_stake)
        growth = np.log1p(stake[:, None] * z)
        of_lowest_estimates = _by_checkpoint(growth[rows, self.lowest], np.zeros(len(z), int), 1)[:, 0]
        is_admissible = (self.sets[:, None] >> np.arange(z.shape[1])) & 1
        at_worst = np.where(is_admissible, growth, np.inf).min(axis=1).sum()
        if at_worst >= self.enough:  # passes however tiers are chosen, so no order needs a try
            return np.asarray(np.minimum(at_worst, of_lowest_estimates))
        return np.asarray(np.minimum(_least_over_orders(_placed(growth, self.sets)), of_lowest_estimates))

    def kept(self, low: float = 0.0) -> float:
        """Lower confidence bound of the accuracy kept: the largest quality that passes; `low` is known to pass."""
        high = MAX_QUALITY
        while high - low > _BOUND_PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if self.log_wealth(middle) >= self.enough else (low, middle)
        return low

    def rows(self, rows: np.ndarray) -> Bets:
        """The same bets on some prompts only."""
        return replace(self, correct=self.correct[rows], sets=self.sets[rows], lowest=self.lowest[rows])

    def contradicts(self, quality: float) -> bool:
        """Whether the accuracy kept on these very prompts is below the quality in some order of prices."""
        best = self.correct.mean(axis=0).argmax()
        z = self.correct - quality * self.correct[:, best, None]
        of_lowest_estimates = z[np.arange(len(z)), self.lowest].sum()
        return bool(min(of_lowest_estimates, _least_over_orders(_placed(z, self.sets))[-1]) < 0)

    def n_needed(self, quality: float) -> int | None:
        """About how many prompts like these prove the quality for the lowest estimate; see `prompts_needed`."""
        kept = self.correct[np.arange(len(self.correct)), self.lowest]
        return prompts_needed(kept, self.correct[:, list(self.references)], quality, self.enough, self.largest)


def prompts_needed(
    kept: np.ndarray, references: np.ndarray, quality: float, enough: float, largest: float = 1.0
) -> int | None:
    """About how many prompts a promise of this quality takes; None where no number of them is enough.

    kept: the outcomes of the tiers that a router asks, (n_prompts,). references: the outcomes of the tiers that may be
    the best one, (n_prompts, n_references). enough: log wealth that proves a quality. largest: as in `Bets`.

    At the best stake that the test may set, a prompt adds mean(log(1 + stake x z)) to the log wealth on average (Kelly
    1956). So the proof takes `enough` / this growth, with the reference that takes the most. With so many prompts the
    promise is made about every second time, with half of them seldom, with twice as many mostly.
    """
    needed = 0.0
    for reference in references.T:
        growth = _best_growth(kept - quality * reference, _largest_stake(quality, largest))
        needed = max(needed, enough / growth if growth > 0 else np.inf)
    return int(np.ceil(needed)) if 0 < needed <= _MOST_PROMPTS else None


def _largest_stake(quality: float, largest: float) -> float:
    """Loses MAX_STAKE of the wealth where the tier chosen has the worst outcome there is and the best tier the best."""
    worst_loss = quality * largest + largest - 1
    return MAX_STAKE / max(worst_loss, 1e-9)


def _best_growth(z: np.ndarray, largest_stake: float) -> float:
    """The largest mean of log(1 + stake x z) over stakes from 0 to the largest; z: (n_prompts,). 0 if there is none."""
    if not len(z) or z.mean() <= 0:
        return 0.0
    values, counts = np.unique(z, return_counts=True)
    share = counts / len(z)
    low, high = 0.0, largest_stake
    for _ in range(_N_HALVINGS):  # the slope of the mean falls as the stake rises
        middle = (low + high) / 2
        low, high = (middle, high) if share @ (values / (1 + middle * values)) > 0 else (low, middle)
    return float(share @ np.log1p(high * values))


def _by_checkpoint(growth: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    """Growth of each group up to each checkpoint, (N_CHECKPOINTS, n_groups); growth, group: (n_prompts,)."""
    block = np.arange(len(growth)) * N_CHECKPOINTS // len(growth)
    sums = np.bincount(block * n_groups + group, growth, N_CHECKPOINTS * n_groups)
    return np.asarray(sums.reshape(N_CHECKPOINTS, n_groups).cumsum(axis=0))


def _placed(growth: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Growth up to each checkpoint by tier k after the tiers of set S: where k is admissible and none of S is.

    (N_CHECKPOINTS, n_sets, n_tiers).
    """
    n_tiers = growth.shape[1]
    placed = np.empty((N_CHECKPOINTS, 2**n_tiers, n_tiers))
    for tier in range(n_tiers):
        within = _by_checkpoint(growth[:, tier] * ((sets >> tier) & 1), sets, 2**n_tiers)  # the admissible set is S
        for other in range(n_tiers):  # then: it lies within S
            halves = within.reshape(N_CHECKPOINTS, -1, 2, 1 << other)
            halves[:, :, 1] += halves[:, :, 0]
        placed[:, :, tier] = within[:, ::-1]  # none of S: all within its complement
    return placed


def _least_over_orders(gain: np.ndarray) -> np.ndarray:
    """The least sum over all orders of the tiers, (n,), where tier k after set S adds gain[:, S, k]."""
    n, n_sets, n_tiers = gain.shape
    least = np.full((n, n_sets), np.inf)
    least[:, 0] = 0.0
    for before, after, tier in _steps(n_tiers):
        least[:, after] = np.minimum(least[:, after], least[:, before] + gain[:, before, tier])
    return np.asarray(least[:, -1])


@cache
def _steps(n_tiers: int) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Sets of tiers, the same sets with one tier more, and that tier; smaller sets come first."""
    sets = np.arange(2**n_tiers)
    sizes = np.bitwise_count(sets)
    layers = [(sets[sizes == size], tier) for size in range(n_tiers) for tier in range(n_tiers)]
    without = [(layer[(layer >> tier) & 1 == 0], tier) for layer, tier in layers]
    return [(before, before | (1 << tier), tier) for before, tier in without]
