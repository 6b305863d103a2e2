"""Whether the challenger takes over, and why or why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.bundle.bundle import Bundle
from router.golden import GoldenCheck
from router.portfolio.prices import PriceTable
from training.config import RetrainConfig
from training.evaluation.bundle_graph import BundleGraph, embed_with
from training.log.checked import CheckedLogs
from training.log.table import OutcomeTable
from training.retrain.candidate import Candidate
from training.retrain.champion import Champion, training_data_of
from training.retrain.compare import Comparison, compare
from training.retrain.drift import DriftReport, Window, drift_report
from training.retrain.log_files import LogFiles
from training.retrain.promise import Watched, watch_promise
from training.retrain.state import State

MAX_WINDOW_PROMPTS = 5000
"""Most prompts of either window of the drift report."""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger takes over.

    reason: why or why not, and what drifted, in one line. comparison: None where champion and challenger were not
    compared. drift: None where there was no report. watched: the promise of the bundle in use after the run; None where
    there is none, or not all of its tiers are in tiers.toml.
    """

    promoted: bool
    reason: str
    comparison: Comparison | None
    drift: DriftReport | None
    watched: Watched | None


def judge(
    champion: Champion,
    challenger: Bundle,
    log: OutcomeTable,
    rows: CheckedLogs,
    files: LogFiles,
    prices: PriceTable,
    state: State,
    config: RetrainConfig,
) -> Verdict:
    """Compare champion and challenger on recent prompts, and say what drifted and where the promise stands.

    log: what the challenger was trained from; rows: the same, by file. state: before the run.
    """
    comparison = None
    if champion.bundle is not None and not champion.uncompared:
        recent = rows.prompt_ids(files.newest(config.window_prompts / config.training.test_share))
        comparison = compare(champion.bundle, challenger, log, prices, recent, config)
    promoted, reason = _decide(challenger, champion.uncompared, comparison, state.rolled_back, config)
    drift = None
    is_new = np.isin(log.prompt_ids, rows.prompt_ids(list(files.taken_new.values())))
    if champion.bundle is not None and champion.bundle.manifest.tiers == log.tiers:
        drift = _drift(champion.bundle, log, is_new)
    if drift is not None and drift.level in ("notice", "alarm"):
        reason = f"{reason}; {drift.summary}"
    watched, n_requests = None, int(is_new.sum()) or log.n_prompts
    if promoted:
        watched = watch_promise(Candidate.at(challenger, prices), None, log, prices, n_requests, drift)
    elif champion.bundle is not None and not champion.uncompared:
        watched = watch_promise(Candidate.at(champion.bundle, prices), state.watch, log, prices, n_requests, drift)
    if watched is not None and watched.report.standing not in ("none", "stands"):
        reason = f"{reason}; {watched.report.summary}"
    return Verdict(promoted=promoted, reason=reason, comparison=comparison, drift=drift, watched=watched)


def _decide(
    challenger: Bundle,
    uncompared: str,
    comparison: Comparison | None,
    rolled_back: Sequence[str],
    config: RetrainConfig,
) -> tuple[bool, str]:
    """Whether the challenger takes over, and why, in one line."""
    if challenger.manifest.training["data_digest"] in rolled_back:
        return False, (
            "trained on the same data as a champion that was rolled back; "
            "a challenger can take over when there are new log files"
        )
    golden = GoldenCheck.of(challenger)
    if not golden.passed:
        return False, f"golden prompts failed: {golden.in_words}"
    if comparison is None:
        return True, uncompared
    return comparison.verdict(config.tolerated_loss, config.promotion_confidence)


def _drift(champion: Bundle, log: OutcomeTable, is_new: np.ndarray) -> DriftReport | None:
    """What moved between the former prompts and the new ones, as the champion sees it; None where it cannot be said.

    is_new: mask (n_prompts,). Only prompts that the champion was not trained on count.
    """
    unseen = ~training_data_of(champion).saw(log.groups)
    windows = []
    for mask in (~is_new & unseen, is_new & unseen):
        table = log.rows(np.flatnonzero(mask)[:MAX_WINDOW_PROMPTS])
        if table.n_prompts < 2:
            return None
        windows.append(
            Window.of(table, embed_with(champion, table.prompts), BundleGraph(champion).estimates(table.prompts))
        )
    return drift_report(*windows)
