"""The dial of plans: what a correct answer must be worth, so that a quality is kept at the prices now in force."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.plans.betting import least_proven
from router.plans.calibration import Calibration
from router.plans.checks import CheckModel
from router.plans.engine import PlanEngine, PlanTables
from router.plans.planner import Looks
from router.plans.replay import LoggedAnswers, Replayed, replay
from router.portfolio.prices import PriceTable
from router.portfolio.quote import graph_inputs

WORTHS = np.geomspace(300.0, 0.3, 20)
"""Worths of a correct answer that are tried, in mean costs of the best tier; the most careful first."""

MIN_PROMPTS = 300
"""With fewer prompts nothing is proven: what plans know of tiers and checks was fitted on prompts like these, these
among them, and on few prompts a fit flatters itself (by 1.6 points with six tiers and 120 prompts, 0.4 with four and
500)."""

_MOST_VALUES = 4_000_000
"""Of the largest array that the graph makes at once, so that a proof takes some tens of megabytes."""
_LEAST_USD = 1e-9


@dataclass(frozen=True)
class PlanPoint:
    """What a quality comes to.

    worth_usd: a correct answer's worth that keeps the quality; None where none is proven, or plans that keep it would
    cost more than always asking the best tier.
    kept, cost_share: on the calibration prompts, accuracy and expected cost relative to always asking the best tier;
    None where nothing is proven.
    """

    quality: float
    worth_usd: float | None
    kept: float | None
    cost_share: float | None


@dataclass(frozen=True)
class PlanDial:
    """The dial of plans with certain checks at certain prices.

    points: one for each quality, in rising order. worths: those that were tried, falling. n_prompts: that it rests on.
    seconds: what the proof took.
    """

    points: tuple[PlanPoint, ...]
    worths: tuple[float, ...]
    n_prompts: int
    seconds: float

    def point(self, quality: float) -> PlanPoint:
        """The row of the lowest quality that is at least the one given; the last row where none is."""
        return next((point for point in self.points if point.quality >= quality), self.points[-1])

    def at_least(self, worth_usd: float) -> float:
        """The least worth that was tried and is at least so high; itself where none is."""
        return min((worth for worth in self.worths if worth >= worth_usd), default=worth_usd)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "n_prompts": self.n_prompts,
            "points": [
                {"quality": each.quality, "worth_usd": each.worth_usd, "kept": each.kept, "cost_share": each.cost_share}
                for each in self.points
            ],
        }


def prove_dial(
    engine: PlanEngine,
    calibration: Calibration,
    prices: PriceTable,
    qualities: Sequence[float],
    confidence: float,
    typical_output_tokens: Sequence[float],
    looks: Looks,
) -> PlanDial:
    """Find for each quality the least worth that keeps it on the calibration prompts, with this confidence.

    The plans are made at these prices by the graph, and followed through the logged answers and verdicts. For a check
    that was declared, verdicts are drawn with its stated figures (seeded), so the promise holds if they do.
    typical_output_tokens: the manifest's, (n_tiers,). looks: what plans may look at.
    """
    start = time.perf_counter()
    calibration = calibration.looked_at(
        looks.agreement, [check.name for check in looks.verifiers if not check.declared]
    )
    quotes = [prices.quote(float(tokens), typical_output_tokens) for tokens in calibration.context_tokens]
    n_usable = len(quotes) if calibration.n_prompts >= MIN_PROMPTS else 0
    if not n_usable:
        points = tuple(PlanPoint(quality, None, None, None) for quality in qualities)
        return PlanDial(points, (), calibration.n_prompts, time.perf_counter() - start)
    request = graph_inputs(quotes)
    cost_usd = expected_costs(calibration, request)
    is_open = request["eligible"]
    mean_cost = np.where(is_open, cost_usd, 0.0).sum(axis=0) / np.maximum(is_open.sum(axis=0), 1)
    best = int(np.where(is_open.any(axis=0), calibration.correct.mean(axis=0), -1.0).argmax())
    worths = WORTHS * max(float(mean_cost[best]), _LEAST_USD)
    answers = logged_answers(calibration, looks)
    replays = replayed(engine, calibration.success, cost_usd, request["eligible"], worths, looks.inputs, answers)
    outcomes = np.stack([each.outcome(calibration.correct) for each in replays], axis=1)
    costs = np.array([each.cost_usd(cost_usd, answers.check_usd).mean() for each in replays])
    proven = least_proven(outcomes, calibration.correct, qualities, confidence)
    best_accuracy = max(float(calibration.correct[:, best].mean()), _LEAST_USD)

    def point(quality: float) -> PlanPoint:
        at = proven[quality]
        share = None if at is None else float(costs[at] / max(mean_cost[best], _LEAST_USD))
        if at is None or share is None or share > 1:
            return PlanPoint(quality, None, None, None)
        return PlanPoint(quality, float(worths[at]), float(outcomes[:, at].mean()) / best_accuracy, share)

    return PlanDial(
        points=tuple(point(quality) for quality in qualities),
        worths=tuple(worths.tolist()),
        n_prompts=calibration.n_prompts,
        seconds=time.perf_counter() - start,
    )


def expected_costs(calibration: Calibration, request: Mapping[str, np.ndarray]) -> np.ndarray:
    """Expected cost of each attempt at the prices of a request, float32 (n_prompts, n_tiers)."""
    usd = calibration.input_tokens * request["usd_per_mtok_input"]
    usd = usd + calibration.output_tokens * request["usd_per_mtok_output"]
    return np.asarray(usd * 1e-6, np.float32)


def replayed(
    engine: PlanEngine,
    success: np.ndarray,
    cost_usd: np.ndarray,
    eligible: np.ndarray,
    worths: np.ndarray,
    looks: Mapping[str, np.ndarray],
    answers: LoggedAnswers,
) -> list[Replayed]:
    """What the best plan of each prompt does with the logged answers, at each worth.

    success, cost_usd: expected, (n_prompts, n_tiers); eligible: bool, same shape; worths: (n_worths,). looks: of
    router.plans.engine.look_inputs.
    """
    parts: list[list[Replayed]] = []
    n_tiers, n_classes = success.shape[1], looks["verdicts"].shape[1]
    per_prompt = max(2 * len(worths), 20) * n_tiers**3 * n_classes**2
    batch = int(np.clip(_MOST_VALUES // per_prompt, 1, 256))
    for start in range(0, len(success), batch):
        rows = slice(start, start + batch)
        n = len(success[rows])
        tables: PlanTables = engine.run(
            np.ascontiguousarray(success[rows], np.float32),
            np.ascontiguousarray(cost_usd[rows], np.float32),
            np.ascontiguousarray(eligible[rows]),
            np.tile(np.asarray(worths, np.float32), (n, 1)),
            looks,
        )
        part = answers.rows(rows)
        parts.append([replay(tables, part, worth) for worth in range(len(worths))])
    return [
        Replayed(*(np.concatenate([getattr(part[worth], name) for part in parts]) for name in Replayed.__slots__))
        for worth in range(len(worths))
    ]


def logged_answers(calibration: Calibration, looks: Looks) -> LoggedAnswers:
    """Verdicts of the calibration prompts, and their answers where these are compared."""
    shape = calibration.correct.shape
    classes, usd = np.zeros(shape, int), np.zeros(shape)
    for check in looks.verifiers:
        if check.declared:
            found = simulated_classes(check, calibration.correct, seed=zlib.crc32(check.name.encode()))
        else:
            found = check.classes_of(calibration.scores[check.name])
        classes = classes * check.n_classes + found
        usd = usd + check.usd_input
    return LoggedAnswers(calibration.answer_number if looks.agreement else None, classes, usd)


def simulated_classes(check: CheckModel, correct: np.ndarray, seed: int = 0) -> np.ndarray:
    """Classes of scores drawn with a check's figures, given whether each answer is right; int, shape of `correct`."""
    draws = np.random.default_rng(seed).random(correct.shape)
    chance = check.verdicts_input[0].astype(float)  # (n_tiers, n_classes, 2); declared figures have no slope
    right = (correct >= 0.5).astype(int)
    tiers = np.arange(correct.shape[1])
    reached = np.cumsum(chance, axis=1)[tiers[None, :], :, right]  # (n_prompts, n_tiers, n_classes)
    return np.asarray((draws[:, :, None] >= reached[:, :, :-1]).sum(axis=2))
