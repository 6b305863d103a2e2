"""Where a run is written down: MLflow, or nowhere."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from training.errors import ConfigError

NO_TRACKING = "none"
_FORBIDDEN = re.compile(r"[^\w.\- ]")  # in the name of a metric; tiers may have any name
EXPERIMENT = "token-broker"


class Tracker(Protocol):
    """What a training run tells about itself."""

    @property
    def run_id(self) -> str | None:
        """The run's identity, None where nothing is tracked."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings and facts of the run."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Figures."""

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Plots, by name."""

    def log_bundle(self, folder: Path) -> None:
        """The bundle's folder."""


class NoTracker:
    """Tells nobody."""

    run_id = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Nothing."""

    def log_bundle(self, folder: Path) -> None:
        """Nothing."""


class MlflowTracker:
    """Tells MLflow, in the run that is active."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Settings and facts of the run."""
        import mlflow

        mlflow.log_params({name: str(value)[:500] for name, value in params.items()})

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Figures."""
        import mlflow

        mlflow.log_metrics({_FORBIDDEN.sub("_", name): float(value) for name, value in metrics.items()})

    def log_figures(self, figures: Mapping[str, Figure]) -> None:
        """Plots as `plots/<name>.png`."""
        import mlflow

        for name, figure in figures.items():
            mlflow.log_figure(figure, f"plots/{name}.png")

    def log_bundle(self, folder: Path) -> None:
        """The bundle as artifact folder `bundle`."""
        import mlflow

        mlflow.log_artifacts(str(folder), "bundle")


@contextmanager
def tracked_run(tracking_uri: str, name: str) -> Iterator[Tracker]:
    """A run at an MLflow tracking URI (sqlite or server); "none" tracks nothing.

    Raises ConfigError where MLflow cannot be reached or refuses.
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
        raise ConfigError(f"tracking at {tracking_uri} failed: {error}; see --tracking-uri") from error
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
    """A sqlite database beside the bundles."""
    return f"sqlite:///{out.parent.resolve() / 'mlflow.db'}"


def _artifact_location(tracking_uri: str) -> str | None:
    """Artifacts of a local database stand beside it; a server decides for itself."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return str(Path(tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts")
