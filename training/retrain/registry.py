"""Keeps MLflow's model registry in line with the store: versions, lineage, aliases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from training.errors import TrackingError
from training.retrain.context import RetrainContext
from training.retrain.store import State, Store, StoredBundle
from training.tracking import NO_TRACKING, MlflowTracker, tracked_run, without_notices


def register(state: State, context: RetrainContext) -> tuple[State, str]:
    """Bring the registry in line with the state, and commit that it is.

    Returns the state, and "ok", "none" (tracking is off) or what failed.
    """
    if context.uri == NO_TRACKING:
        return state, NO_TRACKING
    if state.is_registry_current:
        return state, "ok"
    from mlflow.exceptions import MlflowException

    try:
        with without_notices():
            _register_bundles(state, context.store, context.uri, context.config.model_name)
    except TrackingError as error:
        return state, error.summary
    except (MlflowException, OSError) as error:
        return state, TrackingError(context.uri, error).summary
    state = replace(state, unregistered=(), is_registry_current=True)
    context.store.commit(state)
    return state, "ok"


def _register_bundles(state: State, store: Store, uri: str, model: str) -> None:
    """Register bundles that are not registered yet, by bundle_id, and point the aliases."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(uri, registry_uri=uri)
    try:
        client.create_registered_model(model, description="Routers of `broker retrain`")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions_found = client.search_model_versions(f"name='{model}'")
    found = {version.tags.get("bundle_id"): version.version for version in versions_found}
    for name in dict.fromkeys([*state.unregistered, state.champion, state.challenger]):
        if name and (stored := state.bundles[name]).bundle_id not in found:
            found[stored.bundle_id] = _new_version(client, uri, store.bundle(name), stored, model)
    for alias, name in (("challenger", state.challenger), ("champion", state.champion)):
        if name:
            client.set_registered_model_alias(model, alias, found[state.bundles[name].bundle_id])


def _new_version(client: Any, uri: str, folder: Path, stored: StoredBundle, model: str) -> str:
    """Register one bundle with its lineage; returns the version.

    Where its training was not tracked, a run is made for it.
    """
    lineage = {name: value for name, value in asdict(stored).items() if value}
    run_id = stored.mlflow_run_id
    if not run_id:
        with tracked_run(uri, folder.name) as tracker:
            assert isinstance(tracker, MlflowTracker)
            tracker.log_params(lineage)
            tracker.log_bundle(folder)
            run_id = tracker.run_id
    source = f"{client.get_run(run_id).info.artifact_uri}/bundle"
    return str(client.create_model_version(model, source, run_id, tags=lineage).version)


@contextmanager
def impatient_tracking() -> Iterator[None]:
    """Let MLflow give up soon on a server that does not answer; settings in the environment take precedence."""
    impatience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    added = {name: value for name, value in impatience.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
