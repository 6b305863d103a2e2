"""Records a run in MLflow, or nowhere."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from training.errors import TrackingError

NO_TRACKING = "none"
EXPERIMENT = "token-broker"
_FORBIDDEN = re.compile(r"[^\w.\- ]")
"""Characters that MLflow refuses in the name of a metric; a tier may have any name."""


class Tracker(Protocol):
    """Takes what a training run records of itself."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None where nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings and facts of the run."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures."""

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Record plots, by name."""

    def log_bundle(self, folder: Path) -> None:
        """Record all files of a bundle."""


class NoTracker:
    """Discards everything; used when tracking is off."""

    run_id = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Discard."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Discard."""

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Discard."""

    def log_bundle(self, folder: Path) -> None:
        """Discard."""


class MlflowTracker:
    """Records everything in the active run of MLflow."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings and facts, each cut to 500 characters."""
        import mlflow

        mlflow.log_params({name: str(value)[:500] for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record figures; characters that MLflow refuses in a name become `_`."""
        import mlflow

        mlflow.log_metrics({_FORBIDDEN.sub("_", name): float(value) for name, value in metrics.items()})

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Record plots as `plots/<name>.png`."""
        import mlflow

        for name, figure in figures.items():
            mlflow.log_figure(figure, f"plots/{name}.png")

    def log_bundle(self, folder: Path) -> None:
        """Record the bundle as the artifact folder `bundle`."""
        import mlflow

        mlflow.log_artifacts(str(folder), "bundle")


@contextmanager
def tracked_run(tracking_uri: str, name: str) -> Iterator[Tracker]:
    """A run at an MLflow tracking URI (sqlite or server); "none" tracks nothing.

    Raises TrackingError where MLflow cannot be reached, or refuses what it is told.
    """
    if tracking_uri == NO_TRACKING:
        yield NoTracker()
        return
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        with without_notices():
            if mlflow.get_experiment_by_name(EXPERIMENT) is None:
                mlflow.create_experiment(EXPERIMENT, artifact_location=_artifact_location(tracking_uri))
            mlflow.set_experiment(EXPERIMENT)
            with redirect_stdout(sys.stderr), mlflow.start_run(run_name=name) as run:  # it prints the run's address
                yield MlflowTracker(run.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise TrackingError(tracking_uri, error) from error
    finally:
        mlflow.set_tracking_uri(before)


@contextmanager
def without_notices() -> Iterator[None]:
    """Keep the notices of MLflow and its database off stderr; warnings and errors still show.

    To be entered after MLflow was imported: the import sets these levels.
    """
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.level, logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def default_tracking_uri(out: Path) -> str:
    """The URI of a sqlite database beside the bundle `out`."""
    return f"sqlite:///{out.parent.resolve() / 'mlflow.db'}"


def _artifact_location(tracking_uri: str) -> str | None:
    """Where artifacts go: beside a local database; None for a server, which decides for itself."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return str(Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts")
