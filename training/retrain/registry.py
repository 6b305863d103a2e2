"""Keeps MLflow's model registry in line with the store: versions, lineage, aliases."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from training.errors import TrackingError
from training.retrain.context import RetrainContext
from training.retrain.state import State, StoredBundle
from training.tracking import (
    NO_TRACKING,
    REACH_S,
    TRACKED,
    WRITE_S,
    asking_mlflow,
    create_model,
    mlflow_client,
    tracked_run,
)


def register(state: State, context: RetrainContext) -> tuple[State, str]:
    """Bring the registry in line with the state, and commit that it is.

    Returns the state, and "ok", "none" (tracking is off) or what failed.
    """
    if context.uri == NO_TRACKING:
        return state, NO_TRACKING
    if state.is_registry_current:
        return state, TRACKED
    try:
        with asking_mlflow(REACH_S):
            client = _client_with_model(context.uri, context.config.model_name)
        with asking_mlflow(WRITE_S):
            _register_bundles(client, state, context)
    except Exception as error:  # whatever it is, it must not hold up retraining
        problem = error if isinstance(error, TrackingError) else TrackingError(context.uri, error)
        return state, problem.summary
    state = replace(state, unregistered=(), is_registry_current=True)
    context.store.commit(state)
    return state, TRACKED


def _client_with_model(uri: str, model: str) -> Any:
    """A client of MLflow, in whose registry the model is."""
    client = mlflow_client(uri)
    create_model(client, model, "Routers of `broker retrain`")
    return client


def _register_bundles(client: Any, state: State, context: RetrainContext) -> None:
    """Register bundles that are not registered yet, by bundle_id, and point the aliases."""
    model = context.config.model_name
    versions_found = client.search_model_versions(f"name='{model}'")
    found = {version.tags.get("bundle_id"): version.version for version in versions_found}
    for name in dict.fromkeys([*state.unregistered, state.champion, state.challenger]):
        folder = context.store.bundle(name)
        if name and (stored := state.bundles[name]).bundle_id not in found and folder.is_dir():  # else it is lost
            found[stored.bundle_id] = _new_version(client, context.uri, folder, stored, model)
    for alias, name in (("challenger", state.challenger), ("champion", state.champion)):
        if name and state.bundles[name].bundle_id in found:
            client.set_registered_model_alias(model, alias, found[state.bundles[name].bundle_id])


def _new_version(client: Any, uri: str, folder: Path, stored: StoredBundle, model: str) -> str:
    """Register one bundle with its lineage; returns the version.

    Where MLflow does not have the run of its training, a run is made for it. Where that run lacks files of the bundle,
    they are added.
    """
    lineage = {name: value for name, value in asdict(stored).items() if value}
    run = _run_of_training(client, stored)
    if run is None:
        with tracked_run(uri, folder.name) as tracker:
            tracker.log_params(lineage)
            tracker.log_bundle(folder)
        if tracker.problem is not None:
            raise tracker.problem
        run = client.get_run(tracker.run_id)
    elif not {path.name for path in folder.iterdir()} <= _names_of_artifacts(client, run):
        client.log_artifacts(run.info.run_id, str(folder), "bundle")
    source = f"{run.info.artifact_uri}/bundle"
    return str(client.create_model_version(model, source, run.info.run_id, tags=lineage).version)


def _run_of_training(client: Any, stored: StoredBundle) -> Any:
    """The run of MLflow in which a bundle was trained; None where this MLflow has none."""
    from mlflow.exceptions import MlflowException

    if not stored.mlflow_run_id:
        return None
    try:
        return client.get_run(stored.mlflow_run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _names_of_artifacts(client: Any, run: Any) -> set[str]:
    """Names of the files of the bundle that a run has."""
    return {PurePosixPath(item.path).name for item in client.list_artifacts(run.info.run_id, "bundle")}
