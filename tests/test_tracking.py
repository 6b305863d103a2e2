"""What MLflow is told of a training run."""

import io
import json
import logging
from contextlib import redirect_stderr

import pandas as pd
import pytest

from training import TrainingConfig, train
from training.errors import ConfigError, TrackingError
from training.tracking import NoTracker, default_tracking_uri, tracked_run

# MLflow's own way with its database.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """One run on few prompts, its MLflow record, and the folder of its artifacts."""
    import mlflow

    folder = tmp_path_factory.mktemp("tracked")
    data = request.config.rootpath / "data"
    frame = pd.read_parquet(data / "sample-log.parquet")
    log = frame[frame.question_key.isin(sorted(frame.question_key.unique())[:150])]
    # A tier's name is free, also of what MLflow takes for the name of a metric.
    (folder / "tiers.toml").write_text((data / "tiers.toml").read_text().replace('"edge"', '"edge (4B, 50%)"'))
    before, level, printed = mlflow.get_tracking_uri(), logging.getLogger("mlflow").level, io.StringIO()
    with redirect_stderr(printed):  # the run makes its database, of which MLflow gives notice
        result = train(log, folder / "tiers.toml", folder / "models" / "small", TrainingConfig())
    assert "INFO" not in printed.getvalue()
    assert (mlflow.get_tracking_uri(), logging.getLogger("mlflow").level) == (before, level)
    client = mlflow.MlflowClient(default_tracking_uri(result.bundle))
    return result, client.get_run(result.manifest.mlflow_run_id), folder / "models"


def test_the_run_is_in_a_database_beside_the_bundle_and_in_its_manifest(run):
    result, record, folder = run
    assert (folder / "mlflow.db").exists()
    assert json.loads((result.bundle / "manifest.json").read_text())["mlflow_run_id"] == record.info.run_id
    assert record.info.status == "FINISHED"
    assert record.info.run_name == "small"


def test_settings_data_digest_and_time_span_are_parameters(run):
    result, record, _ = run
    found = record.data.params
    assert found["data_digest"] == result.log.digest
    assert found["first_timestamp"] == result.manifest.training["first_timestamp"]
    assert found["last_timestamp"] == result.manifest.training["last_timestamp"]
    assert found["bundle_id"] == result.manifest.bundle_id
    assert (found["encoder"], found["seed"]) == ("static", "0")


def test_figures_and_label_distribution_are_metrics(run):
    result, record, _ = run
    found = record.data.metrics
    assert found["aiq"] == pytest.approx(result.evaluation.router.figures["aiq"].value)
    assert found["baseline.knn.aiq"] == pytest.approx(result.evaluation.baselines["knn"].figures["aiq"].value)
    labels = {name: value for name, value in found.items() if name.startswith("label.")}
    assert sum(labels.values()) == pytest.approx(1)
    assert set(labels) == {f"label.{tier}" for tier in ("none", "unknown", "edge _4B_ 50__", "distilled", "frontier")}
    assert "ece.edge _4B_ 50__" in found


def test_plots_and_the_whole_bundle_are_artifacts(run):
    result, record, folder = run
    artifacts = folder / "mlartifacts" / record.info.run_id / "artifacts"
    assert {path.name for path in (artifacts / "plots").iterdir()} == {
        "cost_quality.png", "calibration.png", "tier_mix.png", "net_value.png",
    }  # fmt: skip
    for path in result.bundle.iterdir():
        assert (artifacts / "bundle" / path.name).read_bytes() == path.read_bytes()


def test_an_address_that_is_none_is_one_readable_error(tmp_path):
    with (
        pytest.raises(TrackingError, match="tracking at nonsense://x failed") as refusal,
        tracked_run("nonsense://x", "a"),
    ):
        pass
    assert refusal.value.uri == "nonsense://x" and isinstance(refusal.value, ConfigError)
    assert refusal.value.cause is refusal.value.__cause__ and "\n" not in refusal.value.summary


def test_without_tracking_nothing_is_imported_or_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)  # an import would fail
    with tracked_run("none", "a") as tracker:
        assert isinstance(tracker, NoTracker)
        assert tracker.run_id is None
        tracker.log_params({"a": 1})
        tracker.log_metrics({"b": 2.0})
        tracker.log_figures({})
        tracker.log_bundle(tmp_path)
    assert not any(tmp_path.iterdir())
