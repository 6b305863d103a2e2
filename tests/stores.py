"""Stores to test `retrain` on. Training is slow, so it is replaced by bundles that were trained before."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import training.pipeline
from router import Router
from router.bundle import Bundle
from router.bundle.manifest import read_manifest
from router.golden import check_golden
from router.portfolio.tiers import read_tiers
from training import TrainingConfig
from training.config import RetrainConfig
from training.evaluation.training_data import TrainingData
from training.export.golden import golden_files
from training.log.ingest import ingest
from training.reports.figures import report_figures
from training.retrain import retrain
from training.retrain.store import Store
from training.tracking import tracked_run

DATA = Path(__file__).parent.parent / "data"
SAMPLE_LOG, SAMPLE_TIERS = DATA / "sample-log.parquet", DATA / "tiers.toml"

# The first champion keeps all of the best tier's accuracy, the challenger 80 % of it: it is cheaper. Where an answer
# is worth next to nothing, and no loss of quality is too large, that makes it better.
CHEAPER_IS_BETTER = RetrainConfig(
    training=TrainingConfig(default_quality=1.0), worth_usd=1e-9, quality_margin=1.0, min_judged=10
)


@contextmanager
def pictures(*, are_drawn: bool) -> Iterator[None]:
    """Whether training draws the pictures of its report."""
    with pytest.MonkeyPatch.context() as patch:
        figures = report_figures if are_drawn else lambda evaluation: {}
        patch.setattr(training.pipeline, "report_figures", figures)
        yield


def days_of(frame: pd.DataFrame) -> Callable[[int], pd.DataFrame]:
    """day(n): the rows of fifty other questions for every n, of 150 for n = 0."""
    keys = np.random.default_rng(0).permutation(sorted(frame.question_key.unique()))

    def rows(number: int) -> pd.DataFrame:
        part = keys[:150] if number == 0 else keys[100 + 50 * number : 150 + 50 * number]
        return frame[frame.question_key.isin(part)].copy()

    return rows


def make_first_store(folder: Path, first_day: pd.DataFrame, tiers: Path) -> None:
    """A store after its first run, with the logs of that run beside it."""
    (folder / "logs").mkdir()
    first_day.to_parquet(folder / "logs" / "day0.parquet")
    retrain(folder / "logs", tiers, folder / "store", CHEAPER_IS_BETTER, tracking_uri="none")


def make_cheaper(first: Path, folder: Path) -> None:
    """A copy of a bundle that is content with 80 % of the best tier's accuracy."""
    shutil.copytree(first, folder)

    def seal(manifest):
        (folder / "manifest.json").write_text(manifest.to_json())
        return manifest

    manifest = seal(replace(read_manifest(first), default_quality=0.8))
    lines = golden_files(Router(Bundle.load(folder)))["golden.jsonl"]
    (folder / "golden.jsonl").write_text(lines)
    golden = hashlib.sha256(lines.encode()).hexdigest()
    training = {**manifest.training, "data_digest": "of other data"}
    manifest = seal(replace(manifest, training=training, files={**manifest.files, "golden.jsonl": golden}))
    part = TrainingData.load(first)
    part.save(TrainingData.path_of(folder), manifest.bundle_id)


class Turn:
    """A store with its logs, and runs in it: `turn(config)`."""

    def __init__(self, folder: Path, tiers: Path) -> None:
        self.logs, self.folder, self.tiers = folder / "logs", folder / "store", tiers
        self.store = Store(self.folder)

    def __call__(self, config=CHEAPER_IS_BETTER, *, tiers=None, tracking_uri="none", **options):
        return retrain(self.logs, tiers or self.tiers, self.folder, config, tracking_uri=tracking_uri, **options)


def instead_of_training(bundle):
    """Does what `train` leaves behind, with a bundle that was trained before."""

    def train(logs, tiers, out, config, *, tracking_uri, progress, on_step):
        with tracked_run(tracking_uri, out.name) as tracker:
            shutil.copytree(bundle, out)
            shutil.copy(TrainingData.path_of(bundle), TrainingData.path_of(out))
            tracker.log_bundle(out)
        log = ingest(logs, read_tiers(tiers), quarantine=out.with_name(f"{out.name}-quarantine.parquet"))
        return SimpleNamespace(bundle=out, log=log, tracking=tracker.outcome)

    return train


def bundle_id(folder):
    return Bundle.load(folder).manifest.bundle_id


def assert_sound(store):
    """A champion that loads and passes its golden prompts; every bundle whole; one receipt a run."""
    assert check_golden(store.champion).passed
    for folder in (store.folder / "bundles").iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            Bundle.load(folder)
    runs = [json.loads(text)["run"] for text in (store.folder / "receipts.jsonl").read_text().splitlines()]
    assert runs == sorted(set(runs))


def flipped(frame, model):
    of_model = frame.model.str.contains(model)
    return frame.assign(correct=frame.correct ^ of_model)
