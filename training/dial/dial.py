"""The quality dial: how far below the highest success a tier may be, so that a promised share of accuracy is kept.

The promise of a quality q: with confidence 1 - delta, the accuracy kept is at least q x that of always asking the best
tier, for requests like those of the log and in whatever order prices rank the tiers. It is tested by betting
(Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86): prompt by prompt, a
stake is set on z = y - q x b, where y is the outcome of the tier chosen and b that of the best tier. Were the mean of z
at most 0, the wealth would on average never rise above the 1 that it began with, so it would come to 1 / delta with
probability delta at most (Ville's inequality). Nothing is assumed of the outcomes' distribution, and no number of
prompts is too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router.bundle.manifest import DialPoint

DIAL_QUALITIES = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.00)
SLACKS = np.concatenate([np.arange(0, 0.1, 0.005), np.arange(0.1, 0.3, 0.01), np.arange(0.3, 1.0001, 0.05)])

MAX_DIAL_PROMPTS = 100_000
"""More would widen the slack by less than a step."""

MIN_SEGMENT_PROMPTS = 200
MAX_SEGMENTS = 20
"""Bounds within segments are for those of so many prompts, the largest first."""

NEWEST_SHARE = 0.2
MIN_NEWEST_PROMPTS = 100
"""Prompts, of those that every tier answered, that no slack above 0 may contradict: requests drift."""

MAX_STAKE = 0.5
"""Share of the wealth that one prompt can lose."""

N_CHECKPOINTS = 8
"""So often, evenly spread over the prompts, the wealth is looked at; once enough is enough, whatever comes later."""

MAX_QUALITY = 1.25
"""Bounds of the accuracy kept are looked for up to here."""

_BOUND_PRECISION = 0.001
_MOST_PROMPTS = 10**9


def calibrate_dial(
    success: np.ndarray,
    correct: np.ndarray,
    confidence: float,
    *,
    segments: np.ndarray | None = None,
    asked_at: np.ndarray | None = None,
    largest: float = 1.0,
    promise: bool = True,
    qualities: Sequence[float] = DIAL_QUALITIES,
) -> tuple[DialPoint, ...]:
    """For each quality the largest slack that keeps it, with confidence, in whatever order prices rank the tiers.

    success: calibrated, for prompts that were not trained on, (n_prompts, n_tiers).
    correct: 0..1, same shape; only prompts that every tier answered count. Of partial feedback: doubly robust outcomes.
        Prompts stand in an order that has nothing to do with their outcomes, as that of their digests.
    segments: text, (n_prompts,); the accuracy kept is then bounded within large segments too, all at once (Bonferroni).
    asked_at: datetime64, (n_prompts,), NaT where not known. The newest fifth, of them 100 at least, has
        a veto: a slack above 0 with which their own accuracy kept is below the quality is not taken, though the proof
        on all prompts would allow it. Requests drift, and those to come are more like the newest; without drift the
        proof is mostly the stricter.
    largest: what one outcome can come to; of doubly robust outcomes the largest 1 / propensity.
    promise: False where `correct` is not to be relied on, as of partial feedback without propensities: slacks are
        found in the same way, as the best estimate there is, and none is promised.

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then test") from slack 0 upwards stops at the first slack
    that does not pass. It must pass for the tier of the lowest estimate among the admissible ones, for every order in
    which prices can rank the tiers, and with every tier in the place of the best one: as all must pass, none needs a
    correction (intersection-union test). A quality that not even slack 0 keeps is not promised. Each quality is tested
    for itself, at the full confidence.
    """
    full = np.flatnonzero(np.isfinite(correct).all(axis=1))[:MAX_DIAL_PROMPTS]
    success, correct = success[full], correct[full]
    if not len(correct):
        return tuple(DialPoint(quality, 0.0, 0.0, promised=False, n_needed=None) for quality in qualities)
    enough = float(-np.log(1 - confidence))
    largest = max(largest, float(np.abs(correct).max()))  # no more than it was, where `largest` is right
    tables = {slack: _Table.at(slack, success, correct, enough, largest) for slack in SLACKS.tolist()}
    newest = np.empty(0, int) if asked_at is None else newest_prompts(asked_at[full])
    of_newest = {slack: table.rows(newest) for slack, table in tables.items() if slack > 0 and len(newest)}
    found: dict[float, tuple[float, bool]] = {}
    for quality in qualities:
        passing = 0
        while (
            passing < len(SLACKS)
            and tables[SLACKS[passing]].log_wealth(quality) >= enough
            and not (passing and len(newest) and of_newest[SLACKS[passing]].contradicts(quality))
        ):
            passing += 1
        found[quality] = float(SLACKS[max(0, passing - 1)]), passing > 0
    slacks = np.minimum.accumulate([slack for slack, _ in found.values()]).tolist()  # no higher quality, more slack
    kept = {
        slack: tables[slack].kept(
            max((q for q, (most, passes) in found.items() if passes and most >= slack), default=0.0)
        )
        for slack in set(slacks)
    }
    within: Mapping[str, Mapping[float, float]] = {}
    if segments is not None:
        within = _within_segments(segments[full], success, correct, set(slacks), enough, largest)
    return tuple(
        DialPoint(
            quality,
            slack,
            kept[slack],
            promised=passes and promise,
            n_needed=tables[0.0].n_needed(quality) if promise else None,
            segments={name: bounds[slack] for name, bounds in within.items()},
        )
        for slack, (quality, (_, passes)) in zip(slacks, found.items(), strict=True)
    )


def newest_prompts(asked_at: np.ndarray) -> np.ndarray:
    """Rows of the newest NEWEST_SHARE, at least MIN_NEWEST_PROMPTS; none where fewer than these have a time."""
    known = np.sort(asked_at[~np.isnat(asked_at)])
    if len(known) < MIN_NEWEST_PROMPTS:
        return np.empty(0, int)
    n_newest = max(MIN_NEWEST_PROMPTS, round(NEWEST_SHARE * len(known)))
    return np.flatnonzero(asked_at >= known[-n_newest])  # NaT compares as False


def promise_statement(dial: Sequence[DialPoint], confidence: float, best_tier: str, n_prompts: int) -> dict[str, Any]:
    """What the manifest and the model card say of the dial: statement, assumption, evidence; n_prompts it rests on."""
    promised = [point for point in dial if point.promised]
    if not promised:
        return {"statement": "None: the training log carries no promise, of any quality.", "n_prompts": n_prompts}
    return {
        "statement": (
            f"With {confidence:.0%} confidence for each quality up to {promised[-1].quality:g}, the accuracy kept "
            f"relative to always asking the best tier ({best_tier} in the log) is at least the quality asked for, "
            "whatever the prices: in every order in which they can rank the tiers."
        ),
        "assumption": (
            "Requests are exchangeable with the log's prompts, and an order of prices holds for all of them. The "
            "promise is of the average over many requests, not of each."
        ),
        "evidence": (
            f"{n_prompts:,} prompts, judged by estimates that did not see them (out of fold); fixed-sequence testing "
            "by betting, which assumes nothing of how outcomes are distributed. Where at least "
            f"{MIN_NEWEST_PROMPTS} of these prompts have times, no slack above 0 is taken that the newest contradict."
        ),
        "n_prompts": n_prompts,
    }


def _within_segments(
    segments: np.ndarray, success: np.ndarray, correct: np.ndarray, slacks: set[float], enough: float, largest: float
) -> Mapping[str, Mapping[float, float]]:
    """Lower bounds of the accuracy kept within segments, against the tier that is best overall, by slack."""
    best = int(correct.mean(axis=0).argmax())
    names, sizes = np.unique(segments, return_counts=True)
    large = [
        str(names[at]) for at in np.argsort(-sizes, kind="stable") if names[at] and sizes[at] >= MIN_SEGMENT_PROMPTS
    ][:MAX_SEGMENTS]
    return {
        name: {
            slack: _Table.at(
                slack, success[rows], correct[rows], enough + float(np.log(len(large))), largest, references=(best,)
            ).kept()
            for slack in slacks
        }
        for name in sorted(large)
        for rows in [segments == name]
    }


@dataclass(frozen=True)
class _Table:
    """The prompts at one slack. correct: (n_prompts, n_tiers); sets: admissible tiers as a bit mask, lowest: the
    admissible tier of the lowest estimate, (n_prompts,). enough: log wealth that proves; references: tiers that may be
    the best.
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
    ) -> _Table:
        admissible = success >= success.max(axis=1, keepdims=True) - slack
        lowest = np.where(admissible, success, np.inf).argmin(axis=1)
        sets = admissible @ (1 << np.arange(correct.shape[1]))
        # The hardest reference first: most tests that fail then fail at once.
        order = tuple(np.argsort(-correct.mean(axis=0), kind="stable").tolist()) if references is None else references
        return cls(correct, sets, lowest, enough, largest, order)

    def log_wealth(self, quality: float) -> float:
        """The largest that bets on `quality` came to, in the worst case; below `enough`, only an upper bound of it."""
        least = np.inf
        for reference in self.references:
            least = min(least, self._log_wealths(quality, reference).max())
            if least < self.enough:
                break
        return float(least)

    def _log_wealths(self, quality: float, reference: int) -> np.ndarray:
        """The least over all orders of prices, (N_CHECKPOINTS,).

        As the stakes are the same for each order, the log wealth is a sum over prompts.
        """
        z = self.correct - quality * self.correct[:, reference, None]
        rows = np.arange(len(z))
        of_lowest = z[rows, self.lowest]
        n_before = np.maximum(rows, 1)
        mean = np.concatenate([[0.0], np.cumsum(of_lowest)[:-1]]) / n_before
        square = np.concatenate([[0.0], np.cumsum(of_lowest**2)[:-1]])
        variance = (0.25 * self.largest**2 + np.maximum(square - n_before * mean**2, 0.0)) / (rows + 1)
        worst_loss = quality * self.largest + self.largest - 1
        stake = np.minimum(np.sqrt(2 * self.enough / (len(z) * variance)), MAX_STAKE / max(worst_loss, 1e-9))
        growth = np.log1p(stake[:, None] * z)
        of_lowest_estimates = _by_checkpoint(growth[rows, self.lowest], np.zeros(len(z), int), 1)[:, 0]
        is_admissible = (self.sets[:, None] >> np.arange(z.shape[1])) & 1
        at_worst = np.where(is_admissible, growth, np.inf).min(axis=1).sum()
        if at_worst >= self.enough:  # passes however tiers are chosen, so no order need be tried
            return np.asarray(np.minimum(at_worst, of_lowest_estimates))
        return np.asarray(np.minimum(_least_over_orders(_placed(growth, self.sets)), of_lowest_estimates))

    def kept(self, low: float = 0.0) -> float:
        """Lower confidence bound of the accuracy kept: the largest quality that passes; `low` is known to pass."""
        high = MAX_QUALITY
        while high - low > _BOUND_PRECISION:
            middle = (low + high) / 2
            low, high = (middle, high) if self.log_wealth(middle) >= self.enough else (low, middle)
        return low

    def rows(self, rows: np.ndarray) -> _Table:
        """The same of some prompts only."""
        return replace(self, correct=self.correct[rows], sets=self.sets[rows], lowest=self.lowest[rows])

    def contradicts(self, quality: float) -> bool:
        """Whether the accuracy kept by these very prompts is below the quality in some order of prices."""
        best = self.correct.mean(axis=0).argmax()
        z = self.correct - quality * self.correct[:, best, None]
        of_lowest_estimates = z[np.arange(len(z)), self.lowest].sum()
        return bool(min(of_lowest_estimates, _least_over_orders(_placed(z, self.sets))[-1]) < 0)

    def n_needed(self, quality: float) -> int | None:
        """About how many prompts like these would prove the quality; None where no number would.

        With stakes of sqrt(2 L / (n variance)), L the wealth needed, the log wealth of n prompts is a sqrt(n) - L.
        """
        least = min(float(self._log_wealths(quality, reference)[-1]) for reference in self.references)
        growth = (least + self.enough) / self.enough
        n = len(self.correct) * (2 / growth) ** 2 if growth > 0 else np.inf
        return int(np.ceil(n)) if n <= _MOST_PROMPTS else None


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
    sets = np.arange(n_sets)
    sizes = np.bitwise_count(sets)
    least = np.full((n, n_sets), np.inf)
    least[:, 0] = 0.0
    for size in range(n_tiers):
        layer = sets[sizes == size]
        for tier in range(n_tiers):
            before = layer[(layer >> tier) & 1 == 0]
            after = before | (1 << tier)
            least[:, after] = np.minimum(least[:, after], least[:, before] + gain[:, before, tier])
    return np.asarray(least[:, -1])
