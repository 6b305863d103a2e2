"""A lower promise: what panels leave of a champion's dial, and a version of the champion that promises no more.

The version has the same graph, tiers and training data, and another dial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from router.bundle.bundle import Bundle
from router.bundle.manifest import DialPoint, Manifest
from router.plans.calibration import Calibration
from router.plans.planner import CALIBRATION_FILE
from router.portfolio.prices import PriceTable
from training.dial.dial import SLACKS, calibrate_dial, promise_statement
from training.errors import LogError
from training.evaluation.training_data import TrainingData
from training.export.bundle import draft_version
from training.log.costs import costs_at_prices
from training.log.table import OutcomeTable
from training.retrain.candidate import Candidate

MARGIN = 1.0
"""Once a promise is in doubt, the newest panel prompts must keep it by so many standard errors."""

MODEL_CARD = "README.md"

_PROMPTS = "prompts that every tier answered, those of panels among them"
_LOWERED = "Lowered since training: panels put the promise in doubt, and what they do not keep is promised no more."


def lowered_dial(
    champion: Candidate, log: OutcomeTable, prices: PriceTable, newest: Sequence[str]
) -> tuple[tuple[DialPoint, ...] | None, int]:
    """The champion's dial where panels have their say, and how many prompts it rests on; None where it stays.

    Each promised quality keeps its slack, or as much of it as passes both:
    - the proof that every dial is made by, on all prompts of the log with every tier's outcome (estimates are out of
      fold where the champion was trained on them), the newest having a veto;
    - the newest panel prompts, named by prompt_id: at today's prices they keep the quality by MARGIN standard errors.
    A quality that not even slack 0 keeps is promised no more: the best tier then answers.
    """
    manifest, part, columns = champion.bundle.manifest, champion.part, champion.columns
    is_judged = ~part.saw(log.groups) | np.isin(log.prompt_ids, part.prompt_ids)
    table = log.rows(np.isfinite(log.correct[:, columns]).all(axis=1) & is_judged)
    estimates = champion.estimates(table)
    today = calibrate_dial(
        estimates["success"].astype(float),
        table.correct[:, columns],
        manifest.confidence,
        cost_usd=costs_at_prices(table, prices).cost_usd[:, columns],
        segments=table.segments,
        asked_at=table.asked_at,
        qualities=[point.quality for point in manifest.dial],
    )
    rows = np.flatnonzero(np.isin(table.prompt_ids, newest))
    panel, of_panel = table.rows(rows), {name: values[rows] for name, values in estimates.items()}
    dial = tuple(
        _lower_of(former, now, _slack_kept(champion, panel, of_panel, former)) if former.promised else former
        for former, now in zip(manifest.dial, today, strict=True)
    )
    is_lower = any(
        former.promised and (not now.promised or now.slack < former.slack)
        for former, now in zip(manifest.dial, dial, strict=True)
    )
    return (_falling(dial) if is_lower else None), table.n_prompts


def _slack_kept(
    champion: Candidate, panel: OutcomeTable, estimates: Mapping[str, np.ndarray], point: DialPoint
) -> float | None:
    """The largest slack up to that of the point with which the panel keeps its quality; None where none does.

    Slacks are tried from 0 upwards, up to the first that does not pass. estimates: of the panel.
    """
    manifest, rows = champion.bundle.manifest, np.arange(panel.n_prompts)
    correct = panel.correct[:, champion.columns]
    best, passing = correct[:, manifest.tiers.index(manifest.best_tier)], None
    for slack in (*SLACKS[SLACKS < point.slack].tolist(), point.slack):
        gain = correct[rows, champion.graph.choices(estimates, 0.0, slack)] - point.quality * best
        if len(gain) < 2 or gain.mean() < MARGIN * gain.std(ddof=1) / len(gain) ** 0.5:
            break
        passing = slack
    return passing


def _lower_of(former: DialPoint, now: DialPoint, slack: float | None) -> DialPoint:
    """A row of the lowered dial. now: as it would be proven today. slack: what the newest panel prompts keep."""
    return replace(
        now,
        slack=min(former.slack, now.slack, 0.0 if slack is None else slack),
        kept=min(former.kept, now.kept),
        promised=now.promised and slack is not None,
    )


def _falling(dial: Sequence[DialPoint]) -> tuple[DialPoint, ...]:
    """The dial with slacks that never rise with the quality."""
    slacks = np.minimum.accumulate([point.slack for point in dial]).tolist()
    return tuple(replace(point, slack=slack) for point, slack in zip(dial, slacks, strict=True))


def write_lowered(champion: Bundle, dial: Sequence[DialPoint], n_rests_on: int, target: Path) -> Manifest:
    """Write a version of a bundle with a lower dial to `target`, and its training data beside it.

    No plan is promised any more: what plans are proven on is as old as the promise that is in doubt. Plans at a given
    worth stay. The report is that of training; the model card says so.
    dial: the lowered one. n_rests_on: how many prompts it rests on. Returns the manifest of the version.
    Raises BundleError or OSError where it cannot be written; nothing is at `target` then.
    """
    former = champion.manifest
    promise = promise_statement(dial, former.confidence, former.best_tier, n_rests_on, _PROMPTS)
    promise["evidence"] += f" {_LOWERED}"
    manifest = replace(former, dial=tuple(dial), promise=promise, files={})
    changed = _changed_files(champion, promise["statement"])
    version = draft_version(champion.path, target, manifest, changed).publish()
    try:
        part = TrainingData.load(champion)
    except LogError:  # it is lost already, and the split says what may have been trained on
        return version
    part.save(TrainingData.path_of(target), version.bundle_id)
    return version


def _changed_files(champion: Bundle, statement: str) -> dict[str, bytes]:
    """What is other in the files of the version, by their names."""
    changed = {}
    if MODEL_CARD in champion.manifest.files:
        note = (
            f"> **The promise of this version was lowered** since {champion.manifest.bundle_id} was trained. "
            f"{statement} What follows is as of training.\n\n"
        )
        changed[MODEL_CARD] = note.encode() + (champion.path / MODEL_CARD).read_bytes()
    if champion.planner is not None:
        changed[CALIBRATION_FILE] = _nothing(champion.planner.calibration).to_bytes()
    return changed


def _nothing(calibration: Calibration) -> Calibration:
    """No prompts, of the same tiers and checks: nothing can be proven on them."""
    scores = {name: values[:0] for name, values in calibration.scores.items()}
    arrays = {name: values[:0] for name, values in vars(calibration).items() if name != "scores"}
    return Calibration(**arrays, scores=scores)
