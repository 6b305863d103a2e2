"""The quality dial: how far below the highest success a tier may be, so that a promised share of accuracy is kept.

The promise of a quality q: with confidence 1 - delta, the accuracy kept is at least q x that of always asking the best
tier, for requests like those of the log and in whatever order prices rank the tiers. `training.dial.betting` tests it.

The dial starts from always asking the best tier, which needs no proof: a quality that is not promised is answered so
(`router.rule.or_best_tier`). It moves away only by what is proven, and only where that is shown to save.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from router.bundle.manifest import DialPoint
from training.dial.betting import Bets

DIAL_QUALITIES = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.00)
SLACKS = np.concatenate([np.arange(0, 0.1, 0.005), np.arange(0.1, 0.3, 0.01), np.arange(0.3, 1.0001, 0.05)])

MAX_DIAL_PROMPTS = 100_000
"""More prompts would widen the slack by less than a step."""

COMPLETE_PROMPTS = "prompts that every tier answered, in the training part"
"""What a promise rests on and is counted in, wherever it is spoken of."""

EXPLORED_PROMPTS = "prompts with the outcome of a tier chosen at random, in the training part"
"""The same for partial feedback with propensities."""

MIN_SEGMENT_PROMPTS = 200
MAX_SEGMENTS = 20
"""Segments with at least so many prompts get a bound of their own; the largest segments first, at most so many."""

NEWEST_SHARE = 0.2
MIN_NEWEST_PROMPTS = 100
"""The newest share of the prompts, and at least so many, may contradict a slack above 0: requests drift."""


def calibrate_dial(
    success: np.ndarray,
    correct: np.ndarray,
    confidence: float,
    *,
    cost_usd: np.ndarray | None = None,
    segments: np.ndarray | None = None,
    asked_at: np.ndarray | None = None,
    largest: float = 1.0,
    promise: bool = True,
    qualities: Sequence[float] = DIAL_QUALITIES,
) -> tuple[DialPoint, ...]:
    """For each quality the largest slack that keeps it, with confidence, in whatever order prices rank the tiers.

    success: calibrated, for prompts that were not trained on, (n_prompts, n_tiers).
    correct: 0..1, same shape. Only prompts that every tier answered count. For partial feedback: doubly robust
        outcomes. The order of the prompts must have nothing to do with their outcomes, such as that of their digests.
    cost_usd: of each attempt, complete, same shape. With it, a quality is promised only where its slack is shown to
        save as well (see `saves`): a proven choice that costs more than always asking the best tier helps nobody.
    segments: text, (n_prompts,). With it, the accuracy kept is also bounded within large segments, all at once
        (Bonferroni).
    asked_at: datetime64, (n_prompts,), NaT where not known. The newest prompts (see `newest_prompts`) have a veto: a
        slack above 0 is not taken where their own accuracy kept is below the quality, even if the proof on all
        prompts would allow it. Requests drift, and future ones are more like the newest. Without drift the proof is
        usually the stricter of the two.
    largest: the largest absolute value of one outcome. For doubly robust outcomes, the largest 1 / propensity.
    promise: False where `correct` cannot be relied on, such as partial feedback without propensities. Slacks are
        then found in the same way, as the best estimate there is, but none is promised.
    Returns one point per quality, in the order of `qualities`, which must rise.

    Fixed-sequence testing (Angelopoulos et al. 2021, "Learn then test") goes from slack 0 upwards and stops at the
    first slack that does not pass. A slack must pass for the tier of the lowest estimate among the admissible ones, for
    every order in which prices can rank the tiers, and with every tier in the place of the best one. All of these must
    pass, so none needs a correction (intersection-union test). A quality that not even slack 0 keeps is not promised.
    Each quality is tested on its own, at the full confidence. No number of prompts is needed for a quality that is
    proven and does not save: more of them would not help.
    """
    full = np.flatnonzero(np.isfinite(correct).all(axis=1))[:MAX_DIAL_PROMPTS]
    success, correct = success[full], correct[full]
    if not len(correct):
        return tuple(DialPoint(quality, 0.0, 0.0, promised=False, n_needed=None) for quality in qualities)
    enough = float(-np.log(1 - confidence))
    largest = max(largest, float(np.abs(correct).max()))  # changes nothing where `largest` is right
    bets = cache(lambda slack: Bets.at(slack, success, correct, enough, largest))  # most slacks are never tried
    newest = np.empty(0, int) if asked_at is None else newest_prompts(asked_at[full])
    n_passing = _count_passing(bets, newest, qualities)
    passing = {quality: float(SLACKS[max(0, n - 1)]) for quality, n in n_passing.items()}
    slacks = np.minimum.accumulate(list(passing.values())).tolist()  # a higher quality never has more slack
    costs = None if cost_usd is None else cost_usd[full]
    pays = {slack: costs is None or saves(slack, success, correct, costs, confidence) for slack in set(slacks)}
    kept = {
        slack: bets(slack).kept(max((q for q in qualities if n_passing[q] and passing[q] >= slack), default=0.0))
        for slack in set(slacks)
    }
    within: Mapping[str, Mapping[float, float]] = {}
    if segments is not None:
        within = _kept_within_segments(segments[full], success, correct, set(slacks), enough, largest)
    return tuple(
        DialPoint(
            quality,
            slack,
            kept[slack],
            promised=n_passing[quality] > 0 and pays[slack] and promise,
            n_needed=_n_needed(bets(0.0), quality, passes=n_passing[quality] > 0, pays=pays[slack])
            if promise
            else None,
            segments={name: bounds[slack] for name, bounds in within.items()},
        )
        for slack, quality in zip(slacks, qualities, strict=True)
    )


def _count_passing(bets: Callable[[float], Bets], newest: np.ndarray, qualities: Sequence[float]) -> dict[float, int]:
    """How many slacks pass at each quality, counted from slack 0 upwards. newest: rows that have a veto."""
    of_newest = cache(lambda slack: bets(slack).rows(newest))

    def passes(slack: float, quality: float) -> bool:
        if bets(slack).log_wealth(quality) < bets(slack).enough:
            return False
        return slack == 0 or not len(newest) or not of_newest(slack).contradicts(quality)

    found = {}
    for quality in qualities:
        failing = (index for index, slack in enumerate(SLACKS.tolist()) if not passes(slack, quality))
        found[quality] = next(failing, len(SLACKS))
    return found


def _n_needed(bets: Bets, quality: float, *, passes: bool, pays: bool) -> int | None:
    """About how many prompts the promise takes at slack 0, never at odds with the test of the prompts that there are.

    passes: whether the quality passed at slack 0. Then these prompts are enough; if not, it takes more than these.
    pays: whether its slack saves. If it passes and does not, more prompts would not help.
    """
    n_prompts, found = len(bets.correct), bets.n_needed(quality)
    if passes:
        return (n_prompts if found is None else min(found, n_prompts)) if pays else None
    return None if found is None else max(found, n_prompts + 1)


def saves(slack: float, success: np.ndarray, correct: np.ndarray, cost_usd: np.ndarray, confidence: float) -> bool:
    """Whether the cheapest tier within the slack costs no more than the best tier, in the log and with confidence.

    All arrays: (n_prompts, n_tiers). Tiers are ranked by their mean cost, as prices mostly rank them. The upper bound
    of the mean paired difference in cost is that of the normal approximation.
    """
    ranked = np.argsort(cost_usd.mean(axis=0), kind="stable")
    admissible = success >= success.max(axis=1, keepdims=True) - slack
    chosen = ranked[admissible[:, ranked].argmax(axis=1)]
    extra = cost_usd[np.arange(len(chosen)), chosen] - cost_usd[:, correct.mean(axis=0).argmax()]
    error = extra.std() / np.sqrt(max(1, len(extra) - 1))
    return bool(extra.mean() + NormalDist().inv_cdf(confidence) * error <= 0)


def newest_prompts(asked_at: np.ndarray) -> np.ndarray:
    """Rows of the newest NEWEST_SHARE of the prompts with a time, at least MIN_NEWEST_PROMPTS.

    asked_at: datetime64, (n_prompts,), NaT where not known. Empty where fewer than MIN_NEWEST_PROMPTS have a time.
    """
    known = np.sort(asked_at[~np.isnat(asked_at)])
    if len(known) < MIN_NEWEST_PROMPTS:
        return np.empty(0, int)
    n_newest = max(MIN_NEWEST_PROMPTS, round(NEWEST_SHARE * len(known)))
    return np.flatnonzero(asked_at >= known[-n_newest])  # NaT compares as False


def promise_statement(
    dial: Sequence[DialPoint], confidence: float, best_tier: str, n_prompts: int, prompts: str = COMPLETE_PROMPTS
) -> dict[str, Any]:
    """What the manifest and the model card say about the dial: statement, assumption, evidence.

    n_prompts: how many prompts the dial rests on. prompts: which prompts these are.
    """
    rests_on = {"n_prompts": n_prompts, "prompts": prompts}
    promised = [point for point in dial if point.promised]
    if not promised:
        return {
            "statement": (
                "None: the training log carries no promise, of any quality. So at every quality the best tier of the "
                f"log ({best_tier}) answers, unless worth_usd says otherwise."
            ),
            "evidence": f"The dial rests on {n_prompts:,} {prompts}.",
            **rests_on,
        }
    return {
        "statement": (
            f"With {confidence:.0%} confidence for each quality up to {promised[-1].quality:g}, the accuracy kept "
            f"relative to always asking the best tier ({best_tier} in the log) is at least the quality asked for, "
            "whatever the prices: in every order in which they can rank the tiers. At a quality that is not promised "
            "the best tier of the log itself answers, unless worth_usd says otherwise."
        ),
        "assumption": (
            "Requests are exchangeable with the log's prompts, and an order of prices holds for all of them. The "
            "promise is of the average over many requests, not of each."
        ),
        "evidence": (
            f"{n_prompts:,} {prompts}, judged by estimates that did not see them (out of fold); fixed-sequence testing "
            "by betting, which assumes nothing of how outcomes are distributed. Where at least "
            f"{MIN_NEWEST_PROMPTS} of these prompts have times, no slack above 0 is taken that the newest contradict."
        ),
        **rests_on,
    }


def _kept_within_segments(
    segments: np.ndarray, success: np.ndarray, correct: np.ndarray, slacks: set[float], enough: float, largest: float
) -> Mapping[str, Mapping[float, float]]:
    """Lower bounds of the accuracy kept within segments, against the tier that is best overall, by slack."""
    best = int(correct.mean(axis=0).argmax())
    names, sizes = np.unique(segments, return_counts=True)
    large = [
        str(names[at]) for at in np.argsort(-sizes, kind="stable") if names[at] and sizes[at] >= MIN_SEGMENT_PROMPTS
    ][:MAX_SEGMENTS]
    corrected = enough + float(np.log(max(1, len(large))))

    def bound(rows: np.ndarray, slack: float) -> float:
        return Bets.at(slack, success[rows], correct[rows], corrected, largest, references=(best,)).kept()

    return {name: {slack: bound(segments == name, slack) for slack in slacks} for name in sorted(large)}
