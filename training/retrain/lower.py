"""Write the champion anew with a lower promise: the same graph, tiers and training data, another dial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from router.bundle.bundle import Bundle
from router.bundle.manifest import DialPoint, Manifest
from router.plans.calibration import Calibration
from router.plans.planner import CALIBRATION_FILE
from training.dial.dial import promise_statement
from training.errors import LogError
from training.evaluation.training_data import TrainingData
from training.export.bundle import draft_version

MODEL_CARD = "README.md"

_PROMPTS = "prompts that every tier answered, those of panels among them"


def write_lowered(champion: Bundle, dial: Sequence[DialPoint], n_rests_on: int, target: Path) -> Manifest:
    """Write a version of a bundle with a lower dial to `target`, and its training data beside it.

    No plan is promised any more: what plans are proven on is as old as the promise that is in doubt. Plans at a given
    worth stay. The report is that of training; the model card says so.
    dial: the lowered one. n_rests_on: how many prompts it rests on. Returns the manifest of the version.
    Raises BundleError or OSError where it cannot be written; nothing is at `target` then.
    """
    former = champion.manifest
    statement = promise_statement(dial, former.confidence, former.best_tier, n_rests_on, _PROMPTS)
    manifest = replace(former, dial=tuple(dial), promise=statement, files={})
    changed = _changed_files(champion, statement["statement"])
    version = draft_version(champion.path, target, manifest, changed).publish()
    try:
        part = TrainingData.load(TrainingData.path_of(champion.path), former.bundle_id)
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
