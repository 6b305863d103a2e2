"""What MLflow is told of a training run."""

import io
import json
import logging
import shutil
import time
from contextlib import redirect_stderr
from pathlib import Path

import pandas as pd
import pytest
from stores import pictures

from training import TrainingConfig, tracking, train
from training.errors import ConfigError, TrackingError
from training.tracking import NoTracker, ambient_tracking_uri, default_tracking_uri, sqlite_uri, tracked_run


@pytest.fixture(scope="module")
def small_log(request):
    """A hundred and fifty questions of the sample log."""
    frame = pd.read_parquet(request.config.rootpath / "data" / "sample-log.parquet")
    return frame[frame.question_key.isin(sorted(frame.question_key.unique())[:150])]


@pytest.fixture(scope="module")
def run(request, small_log, tmp_path_factory):
    """One run on few prompts, its MLflow record, and the folder of its artifacts."""
    import mlflow

    folder = tmp_path_factory.mktemp("tracked")
    data = request.config.rootpath / "data"
    # A tier's name is free, also of what MLflow takes for the name of a metric.
    (folder / "tiers.toml").write_text((data / "tiers.toml").read_text().replace('"edge"', '"edge (4B, 50%)"'))
    before, level, printed = mlflow.get_tracking_uri(), logging.getLogger("mlflow").level, io.StringIO()
    with redirect_stderr(printed), pictures(are_drawn=True):  # the run makes its database, of which MLflow gives notice
        result = train(
            small_log, folder / "tiers.toml", folder / "models" / "small", TrainingConfig(), register_as="small-router"
        )
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
    evaluation = result.evaluation
    assert found["headline.kept"] == pytest.approx(evaluation.chosen.kept.value)
    assert found["headline.cost_of_best"] == pytest.approx(evaluation.chosen.cost_of_best.value)
    assert record.data.tags["mlflow.note.content"].startswith(evaluation.headline.text)
    labels = {name: value for name, value in found.items() if name.startswith("label.")}
    assert sum(labels.values()) == pytest.approx(1)
    assert set(labels) == {f"label.{tier}" for tier in ("none", "unknown", "edge _4B_ 50__", "distilled", "frontier")}
    assert "ece.edge _4B_ 50__" in found


def test_what_each_quality_of_the_dial_keeps_and_costs_are_metrics(run):
    result, record, _ = run
    for point in result.evaluation.dial:
        assert record.data.metrics[f"dial.{point.quality:g}.kept"] == pytest.approx(point.kept.value)
        assert record.data.metrics[f"dial.{point.quality:g}.cost_of_best"] == pytest.approx(point.cost_of_best.value)


def test_the_log_is_the_dataset_of_the_run(run):
    result, record, _ = run
    (used,) = record.inputs.dataset_inputs
    assert used.dataset.digest == result.log.digest[:36]
    assert json.loads(used.dataset.profile)["n_prompts"] == result.log.summary.n_prompts


def test_the_bundle_is_a_version_of_the_registered_model(run):
    import mlflow

    result, record, _ = run
    client = mlflow.MlflowClient(default_tracking_uri(result.bundle))
    (version,) = client.search_model_versions("name='small-router'")
    assert (version.run_id, version.tags) == (record.info.run_id, {"bundle_id": result.manifest.bundle_id})


def test_plots_and_the_whole_bundle_are_artifacts(run):
    result, record, folder = run
    artifacts = folder / "mlartifacts" / record.info.run_id / "artifacts"
    assert {path.name for path in (artifacts / "plots").iterdir()} == {
        "cost_quality.png", "calibration.png", "tier_mix.png", "net_value.png", "plans.png",
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
        tracker.log_pictures({})
        tracker.log_bundle(tmp_path)
    assert not any(tmp_path.iterdir())


# ---- what fails in MLflow costs nothing else -------------------------------------------------------


@pytest.fixture
def database(tmp_path, empty_database):
    """The tracking URI of a database of its own."""
    return sqlite_uri(Path(shutil.copy(empty_database, tmp_path / "mlflow.db")))


def test_an_artifact_store_that_cannot_be_written_costs_neither_the_bundle_nor_a_second_training(
    small_log, sample_tiers, tmp_path, database, unwritable, monkeypatch, caplog
):
    """The tracking URI is that of the environment, read when the run begins."""
    from mlflow import MlflowClient

    uri, steps = database, []
    MlflowClient(uri).create_experiment(tracking.EXPERIMENT, artifact_location=unwritable.as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = train(small_log, sample_tiers, tmp_path / "out" / "mine", on_step=steps.append)
    assert steps.count("ingest") == 1
    assert (result.bundle / "manifest.json").exists() and not (tmp_path / "out" / "mlflow.db").exists()
    assert result.tracking.startswith(f"tracking at {uri} failed: ") and str(unwritable.parent) in result.tracking
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert result.tracking in warning and "the bundle is complete" in warning and "\n" not in warning
    found = MlflowClient(uri).get_run(result.manifest.mlflow_run_id)
    assert found.info.status == "FINISHED" and found.data.params["bundle_id"] == result.manifest.bundle_id


@pytest.mark.parametrize("error", [OSError(28, "No space left"), ImportError("No module named 'boto3'"), KeyError("x")])
def test_whatever_the_tracker_raises_is_noted_once_and_nothing_more_is_tried(tmp_path, database, monkeypatch, error):
    from mlflow import MlflowClient

    tried = []

    def fails(*arguments, **options):
        tried.append(arguments)
        raise error

    monkeypatch.setattr(MlflowClient, "log_artifacts", fails)
    with tracked_run(database, "a") as tracker:
        tracker.log_bundle(tmp_path)
        tracker.log_bundle(tmp_path)
    assert len(tried) == 1 and tracker.problem.cause is error
    assert str(error).splitlines()[0] in tracker.outcome


def test_an_error_of_the_run_is_never_hidden_by_one_of_mlflow(database, monkeypatch):
    from mlflow import MlflowClient

    def away(*arguments):
        raise ConnectionError("gone")

    monkeypatch.setattr(MlflowClient, "set_terminated", away)
    with pytest.raises(ZeroDivisionError), tracked_run(database, "a"):
        raise ZeroDivisionError


def test_a_server_that_never_answers_is_given_up_soon(silent_server):
    began = time.monotonic()
    with pytest.raises(TrackingError, match="--tracking-uri"), tracked_run(silent_server, "a"):
        pass
    assert time.monotonic() - began < 30


def test_the_patience_of_the_environment_takes_precedence(monkeypatch):
    import os

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with tracking.asking_mlflow(5):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == str(tracking.N_RETRIES)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77" and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_a_password_in_an_address_is_in_no_message():
    uri = "https://me:secret@tracking.example"
    error = TrackingError(uri, OSError(f"no answer of {uri}/api"))
    assert "secret" not in str(error) and "secret" not in error.summary and "tracking.example" in error.summary


def test_a_database_that_cannot_be_opened_is_one_readable_error_at_once(unwritable):
    began = time.monotonic()
    with pytest.raises(TrackingError, match="unable to open database file") as refusal:
        tracked_run(sqlite_uri(unwritable / "mlflow.db"), "a").__enter__()
    assert str(unwritable) in str(refusal.value) and "--tracking-uri" in str(refusal.value)
    assert time.monotonic() - began < 10  # MLflow itself would try for minutes


# ---- whose run, and where --------------------------------------------------------------------------


def test_a_run_inside_an_active_run_is_nested_in_it_and_leaves_it_active(
    tmp_path, database, empty_database, monkeypatch
):
    import mlflow

    uri, other_uri = database, sqlite_uri(Path(shutil.copy(empty_database, tmp_path / "other.db")))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # so that it is taken back at the end
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        with tracking.asking_mlflow(5), mlflow.start_run() as parent:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
            assert ambient_tracking_uri() == uri  # that of the active run
            with tracked_run(uri, "a") as tracker:
                assert mlflow.active_run().info.run_id == parent.info.run_id
            with tracked_run(other_uri, "b") as elsewhere:
                pass
            assert mlflow.active_run().info.run_id == parent.info.run_id
    finally:
        mlflow.set_tracking_uri(before)
    found = mlflow.MlflowClient(uri).get_run(tracker.run_id)
    assert found.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert found.info.experiment_id == parent.info.experiment_id
    other = mlflow.MlflowClient(other_uri).get_run(elsewhere.run_id)
    assert "mlflow.parentRunId" not in other.data.tags


def test_the_environment_names_the_tracking_uri_where_nothing_else_does(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example")
    assert ambient_tracking_uri() == "http://tracking.example"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert ambient_tracking_uri() is None


@pytest.mark.parametrize("name", ["with space", "50%20off", "what?", "a#b", "[1]", "été 日本", "a&b=c;d@e:f", "100%"])
def test_any_name_of_a_folder_can_hold_the_database_and_its_artifacts(tmp_path, empty_database, name):
    from mlflow import MlflowClient

    out = tmp_path / name / "bundle"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text("{}")
    shutil.copy(empty_database, out.parent)
    uri = default_tracking_uri(out)
    with tracked_run(uri, "a") as tracker:
        tracker.log_bundle(out)
    assert tracker.outcome == "ok"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"bundle", "mlflow.db", "mlartifacts"}
    assert (tmp_path / name / "mlartifacts" / tracker.run_id / "artifacts" / "bundle" / "manifest.json").exists()
    assert [item.path for item in MlflowClient(uri).list_artifacts(tracker.run_id, "bundle")] == [
        "bundle/manifest.json"
    ]


def test_a_plain_path_gives_a_plain_uri():
    assert sqlite_uri(Path("/srv/models/mlflow.db")) == "sqlite:////srv/models/mlflow.db"
