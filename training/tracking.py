"""Records a run in MLflow, or nowhere.

Every call of MLflow names its tracking URI. MLflow's settings of this process, and a run that is active in it, stay as
they are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from training.errors import TrackingError

NO_TRACKING = "none"
TRACKED = "ok"
EXPERIMENT = "token-broker"

REACH_S, WRITE_S = 5, 20
"""How long a server may take to answer a small request, and to take a file, in seconds."""

N_RETRIES = 1
"""How often a request that failed is tried again."""

_FORBIDDEN = re.compile(r"[^\w.\- ]")
"""Characters that MLflow refuses in the name of a metric; a tier may have any name."""

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


class Tracker(Protocol):
    """Takes what a training run records of itself. No method raises: what fails is in `problem`."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None where nothing is tracked."""

    @property
    def problem(self) -> TrackingError | None:
        """The first failure; nothing more is recorded after it. None where there was none."""

    @property
    def outcome(self) -> str:
        """For a receipt: "ok", "none" (nothing is tracked), or what failed."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings and facts of the run."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures."""

    def log_note(self, text: str) -> None:
        """Record what the page of the run says first."""

    def log_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Record pictures (PNG), by name."""

    def log_dataset(self, digest: str, source: str, facts: Mapping[str, Any]) -> None:
        """Record which log was trained on: its digest, where it came from, and how large it is."""

    def log_bundle(self, folder: Path) -> None:
        """Record all files of a bundle."""

    def register(self, model: str, tags: Mapping[str, str]) -> None:
        """Make the recorded bundle a new version of a registered model, which is made where there is none."""


class NoTracker:
    """Discards everything; used when tracking is off."""

    run_id = None
    problem = None
    outcome = NO_TRACKING

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Discard."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Discard."""

    def log_note(self, text: str) -> None:
        """Discard."""

    def log_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Discard."""

    def log_dataset(self, digest: str, source: str, facts: Mapping[str, Any]) -> None:
        """Discard."""

    def log_bundle(self, folder: Path) -> None:
        """Discard."""

    def register(self, model: str, tags: Mapping[str, str]) -> None:
        """Discard."""


class MlflowTracker:
    """Records everything in one run of MLflow, until something fails."""

    def __init__(self, client: Any, uri: str, run_id: str) -> None:
        self.run_id = run_id
        self.problem: TrackingError | None = None
        self._client, self._uri = client, uri

    @property
    def outcome(self) -> str:
        """For a receipt: "ok", or what failed."""
        return TRACKED if self.problem is None else self.problem.summary

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings and facts, each cut to 500 characters."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)[:500]) for name, value in params.items()]
        self._record(partial(self._client.log_batch, self.run_id, params=entries))

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures; characters that MLflow refuses in a name become `_`."""
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        entries = [Metric(_FORBIDDEN.sub("_", name), float(value), now_ms, 0) for name, value in metrics.items()]
        self._record(partial(self._client.log_batch, self.run_id, metrics=entries))

    def log_note(self, text: str) -> None:
        """Record a text as the description of the run."""
        self._record(partial(self._client.set_tag, self.run_id, "mlflow.note.content", text))

    def log_pictures(self, pictures: Mapping[str, bytes]) -> None:
        """Record pictures as `plots/<name>.png`."""

        def send() -> None:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in pictures.items():
                    (Path(folder) / f"{name}.png").write_bytes(content)
                self._client.log_artifacts(self.run_id, folder, "plots")

        if pictures:
            self._record(send)

    def log_dataset(self, digest: str, source: str, facts: Mapping[str, Any]) -> None:
        """Record the log as the dataset of the run; MLflow keeps 36 characters of the digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        log = Dataset("outcome log", digest[:36], "local", json.dumps({"uri": source}), profile=json.dumps(facts))
        used = DatasetInput(log, [InputTag("mlflow.data.context", "training")])
        self._record(partial(self._client.log_inputs, self.run_id, datasets=[used]))

    def register(self, model: str, tags: Mapping[str, str]) -> None:
        """Make the artifact folder `bundle` a new version of the model."""

        def new_version() -> None:
            create_model(self._client, model, "Routers of `broker train`")
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/bundle"
            self._client.create_model_version(model, source, self.run_id, tags=dict(tags))

        self._record(new_version)

    def log_bundle(self, folder: Path) -> None:
        """Record the bundle as the artifact folder `bundle`."""
        self._record(partial(self._client.log_artifacts, self.run_id, str(folder), "bundle"))

    def end(self, status: str) -> None:
        """Tell MLflow that the run is "FINISHED" or "FAILED"; also after a failure, which may be of artifacts only."""
        self._try(partial(self._client.set_terminated, self.run_id, status), REACH_S)

    def _record(self, action: Callable[[], object]) -> None:
        if self.problem is None:
            self._try(action, WRITE_S)

    def _try(self, action: Callable[[], object], patience_s: int) -> None:
        """Note whatever is raised: it must not cost the result of the run."""
        try:
            with asking_mlflow(patience_s):
                action()
        except Exception as error:
            self.problem = self.problem or TrackingError(self._uri, error)


@contextmanager
def tracked_run(tracking_uri: str, name: str) -> Iterator[Tracker]:
    """A run at an MLflow tracking URI (a database or a server); "none" tracks nothing.

    Where a run of the same tracking URI is active in this thread, the new one is nested in it.
    Raises TrackingError where the run cannot be started. What fails later is in the tracker's `outcome`.
    """
    if tracking_uri == NO_TRACKING:
        yield NoTracker()
        return
    try:
        with asking_mlflow(REACH_S):
            tracker = _start_run(tracking_uri, name)
    except Exception as error:
        raise TrackingError(tracking_uri, error) from error
    try:
        yield tracker
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")


def _start_run(uri: str, name: str) -> MlflowTracker:
    from mlflow.tracking.context.registry import resolve_tags
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client = mlflow_client(uri)
    parent = _active_run(uri)
    if parent is not None:
        experiment_id, tags = parent.info.experiment_id, {MLFLOW_PARENT_RUN_ID: parent.info.run_id}
    elif (experiment := client.get_experiment_by_name(EXPERIMENT)) is not None:
        experiment_id, tags = experiment.experiment_id, {}
    else:
        experiment_id, tags = client.create_experiment(EXPERIMENT, artifact_location=_artifact_location(uri)), {}
    run = client.create_run(experiment_id, tags=resolve_tags(tags), run_name=name)
    return MlflowTracker(client, uri, run.info.run_id)


def mlflow_client(uri: str) -> Any:
    """An MlflowClient of a tracking URI. Raises what keeps a database from being opened, at once."""
    from mlflow import MlflowClient

    if _is_database(uri):  # MLflow itself tries ten times, for minutes
        from sqlalchemy import create_engine

        engine = create_engine(uri)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    return MlflowClient(uri, registry_uri=uri)


def create_model(client: Any, model: str, description: str) -> None:
    """Put a model into MLflow's registry, where it is not yet."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def asking_mlflow(patience_s: int) -> Iterator[None]:
    """Calls of MLflow give up soon on a server that does not answer, and leave stdout and stderr to results and errors.

    patience_s: for one request, unless the environment sets MLFLOW_HTTP_REQUEST_TIMEOUT.
    """
    import mlflow  # noqa: F401  its import sets the levels of the loggers below

    impatience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(patience_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(N_RETRIES)}
    added = {name: value for name, value in impatience.items() if name not in os.environ}
    least = {"mlflow": logging.WARNING, "alembic": logging.WARNING, "urllib3": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in least}
    os.environ.update(added)
    for name, level in least.items():
        logging.getLogger(name).setLevel(max(before[name], level))
    try:
        with redirect_stdout(sys.stderr):  # it prints the run's address
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def ambient_tracking_uri() -> str | None:
    """The tracking URI of the active run of MLflow in this thread, else MLFLOW_TRACKING_URI; None where neither is."""
    mlflow = sys.modules.get("mlflow")  # where nobody has imported it, no run is active
    if mlflow is not None and mlflow.active_run() is not None:
        return str(mlflow.get_tracking_uri())
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def _active_run(uri: str) -> Any:
    """The active run of MLflow in this thread, if it is at this tracking URI; else None."""
    import mlflow

    run = mlflow.active_run()
    return run if run is not None and mlflow.get_tracking_uri() == uri else None


def default_tracking_uri(out: Path) -> str:
    """The URI of a sqlite database beside the bundle `out`."""
    return sqlite_uri(out.parent.resolve() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The URI of a sqlite database, whatever characters stand in its absolute path."""
    from sqlalchemy import URL

    uri = URL.create("sqlite", database=str(path)).render_as_string()
    # With this prefix MLflow would make a folder of the quoted name.
    return uri if uri == f"sqlite:///{path}" else uri.replace("sqlite:", "sqlite+pysqlite:", 1)


def _artifact_location(uri: str) -> str | None:
    """Where artifacts go, as a URI: beside a sqlite database; None for a server, which decides for itself."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy import make_url

    database = make_url(uri).database
    return (Path(database).resolve().parent / "mlartifacts").as_uri() if database and database != ":memory:" else None


def _is_database(uri: str) -> bool:
    return uri.partition(":")[0].partition("+")[0] in _DATABASES
