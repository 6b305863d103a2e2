"""`broker retrain`: one run at a time trains a challenger and decides whether it takes over; read `retrain` from top.

    log files ─ which are new ─ check ─ train ─ judge ─ commit ─► champion ─► Router, Watcher

A challenger takes over only where it is shown to be better, or where the champion is shown to break its promise. Both
are judged on recent prompts that the champion was not trained on, with estimates of the challenger that have not seen
them either. New log files are checked first: outcomes that contradict the champion's calibrated expectation (labels
flipped, a model exchanged, a day of garbage) would spoil training and judging alike. Such a file is set aside until
someone accepts the change. Each log file is read once.

Errors of the machine, as of a full disk, are raised before anything is decided: they say nothing of a log or a bundle.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from router.bundle.bundle import Bundle
from router.bundle.manifest import Manifest
from router.golden import GoldenCheck
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import tiers_text
from training.config import RetrainConfig
from training.errors import StoreError, TrackingError
from training.export.versions import versions
from training.log.checked import CheckedLogs, checked_logs
from training.log.columns import parse_maps
from training.log.table import IngestSummary
from training.pipeline import TrainingResult, train
from training.retrain.champion import Champion, find_champion, load_bundle, raising_errors_of_the_machine
from training.retrain.command import command_of
from training.retrain.context import RetrainContext
from training.retrain.evidence import MAX_FILES_TOGETHER
from training.retrain.log_check import examine, read_known_files, read_new_files
from training.retrain.log_files import (
    LogFiles,
    changes_to_accept,
    find_log_files,
    in_time,
    new_files,
    with_present_names,
)
from training.retrain.lower import write_lowered
from training.retrain.promise import Watched
from training.retrain.receipt import Receipt
from training.retrain.registry import register
from training.retrain.state import State, StoredBundle
from training.retrain.store import LOWERED, Store, utc_now
from training.retrain.verdict import Verdict, judge
from training.tracking import NO_TRACKING, TRACKED, ambient_tracking_uri

_NOTHING_NEW = "nothing new: every log file was read before, and the settings are the same"
_AFTER_ROLLBACK = "add new log files and run retrain again; no challenger of the same data takes over"


def retrain(
    logs: str | Path | Sequence[str | Path],
    tiers: str | Path,
    store: str | Path,
    config: RetrainConfig | None = None,
    *,
    tracking_uri: str | None = None,
    progress: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Receipt:
    """Train a challenger where the logs have anything new, and promote it where it is better.

    logs: files, folders or globs that name all that is to be trained on; the store knows what of it is new. Best is one
        file a day: a file is checked, and set aside, as a whole.
    tracking_uri: of MLflow; "none" tracks nothing. None takes that of the active run of MLflow, else
        MLFLOW_TRACKING_URI of the environment, else the store's own database. Where MLflow cannot be used, the run
        goes on, the receipt says what failed, and the next run tells MLflow.
    on_step: told the name of each step that is done, those of training among them.

    A run that is killed at any moment leaves the last champion in its place, and the next run recovers by itself.
    A store that lost its champion goes back to the last one that loads, and a challenger is judged anew.
    Raises StoreBusyError where another run holds the store, StoreError, OSError, MemoryError, and the errors of
    `train`; nothing is promoted then.
    """
    config, place = config or RetrainConfig(), Store(store)
    uri = tracking_uri or ambient_tracking_uri() or place.tracking_uri
    command = command_of(logs, tiers, store, config, tracking_uri)
    context = RetrainContext(store=place, config=config, uri=uri, progress=progress, command=command, on_step=on_step)
    prices = PriceTable.parse(tiers_text(tiers), source=str(tiers))
    found = find_log_files(logs)
    with place.hold():
        state, bundle = _recover(context, found)
        on_step("recovered")
        settings = _settings(config, prices.text)
        has_new_settings = settings != state.settings
        accepting = changes_to_accept(config.accept_change, state, found)
        new = new_files(found, state.files, accepting)
        if not new and not has_new_settings:
            return _nothing_new(state, LogFiles(found=found, new={}, former=state.files), context)

        champion = Champion.of(state, bundle, prices.tiers)
        with checked_logs(place.cache, maps=parse_maps(config.training.maps)) as rows:
            files = read_new_files(rows, found, new, state)
            if champion.bundle is not None and files.taken_new:
                files = examine(rows, files, accepting, champion.bundle, state.champion, prices.tiers)
            on_step("examined")
            if not files.taken or not (files.taken_new or has_new_settings):
                return _nothing_usable(state, settings, files, context)

            files = read_known_files(rows, files)
            state = replace(_after(state, files), n_runs=state.n_runs + 1, settings=settings)
            result, tracking_problem = _train(rows, tiers, state.run_name, context)
            on_step("trained")
            challenger = load_bundle(place, state.run_name)
            verdict = judge(champion, challenger, result.log, rows, files, prices, state, config)
        on_step("judged")
        state = _with_challenger(state, challenger, promoted=verdict.promoted)
        if verdict.watched is not None:
            state = _with_promise(state, verdict.watched, champion.bundle, context)
        receipt = _receipt(
            state, files.explain(verdict.reason), files, context, verdict=verdict, log=result.log.summary
        )
        return _finish(state, receipt, context, tracking_problem)


def rollback(store: str | Path, *, tracking_uri: str | None = None, model_name: str = "token-broker") -> Receipt:
    """Make the former champion champion again; no bundle that is trained on the present one's data is promoted then.

    tracking_uri: as for `retrain`, but the store's own database is taken only where there is one. Where MLflow is not
        told now, the next run of `retrain` tells it.
    Raises StoreBusyError, StoreError where there is no earlier champion, and BundleError where it is damaged.
    """
    place = Store(store)
    uri = tracking_uri or ambient_tracking_uri() or (place.tracking_uri if place.has_tracking else NO_TRACKING)
    context = RetrainContext(store=place, config=RetrainConfig(model_name=model_name), uri=uri)
    with place.hold():
        state = place.recover()
        if not state.former:
            raise StoreError(f"{place.folder}: no earlier champion to go back to")
        name = state.former[-1]
        if not GoldenCheck.of(load_bundle(place, name)).passed:
            raise StoreError(f"{place.bundle(name)}: the earlier champion does not pass its golden prompts")
        taken_back = state.bundles[state.champion]
        state = replace(
            state.back_at(name),
            n_runs=state.n_runs + 1,
            rolled_back=(*state.rolled_back, taken_back.data_digest),
        )
        reason = f"rolled back from {taken_back.bundle_id} to {state.bundle_id(name)}; {_AFTER_ROLLBACK}"
        return _finish(state, Receipt.of(state, reason), context)


# ---- steps -----------------------------------------------------------------------------------------


def _settings(config: RetrainConfig, tiers: str) -> dict[str, Any]:
    """All settings that can change a decision on the same logs, as state.json holds them."""
    document = {**asdict(config), "tiers": hashlib.sha256(tiers.encode()).hexdigest()}
    del document["accept_change"], document["model_name"]
    return dict(json.loads(json.dumps(document, default=str)))


def _recover(context: RetrainContext, logs: Mapping[str, Path]) -> tuple[State, Bundle | None]:
    """The state of the store and its champion; where that is lost, an earlier one, which is committed first."""
    found = find_champion(context.store.recover(), context.store)
    state = found.state
    if found.reason:
        _finish(state, Receipt.of(state, found.reason), context)
        state = context.store.recover()
    return with_present_names(state, logs), found.bundle


def _after(state: State, files: LogFiles) -> State:
    """The state with what is known of log files now."""
    kept = files.watermark
    newest = in_time(kept, files.evidence)[-MAX_FILES_TOGETHER:]
    evidence = {digest: files.evidence[digest] for digest in newest}
    return replace(state, files=kept, evidence=evidence, accepted=files.accepted)


def _nothing_new(state: State, files: LogFiles, context: RetrainContext) -> Receipt:
    """Tell MLflow what it may have missed, and no more."""
    reason = files.explain(_NOTHING_NEW)
    if state.taken_back:
        reason += f"; {state.taken_back} was rolled back: {_AFTER_ROLLBACK}"
    state, tracking = register(state, context)
    return _receipt(state, reason, files, context, tracking=tracking)


def _nothing_usable(state: State, settings: dict[str, Any], files: LogFiles, context: RetrainContext) -> Receipt:
    """Commit which files were set aside, unless the last run has said the same already."""
    reason = files.explain("no new row that can be used")
    after = replace(_after(state, files), settings=settings)
    if after == state and state.receipt is not None and state.receipt.get("set_aside") == files.set_aside:
        return _receipt(state, reason, files, context)
    after = replace(after, n_runs=state.n_runs + 1)
    return _finish(after, _receipt(after, reason, files, context), context)


def _receipt(
    state: State,
    reason: str,
    files: LogFiles,
    context: RetrainContext,
    *,
    verdict: Verdict | None = None,
    log: IngestSummary | None = None,
    tracking: str = NO_TRACKING,
) -> Receipt:
    """The receipt of a run of `retrain`, with the commands that accept the changes which files are set aside for.

    Where it did not look at panels, it asks for the same panel as the last one.
    """
    receipt = Receipt.of(state, reason, files=files, verdict=verdict, log=log, tracking=tracking)
    commands = {
        tier: f"{context.command} --accept-change {shlex.quote(option)}"
        for tier, option in files.options_to_accept.items()
    }
    panel = receipt.panel or (state.receipt or {}).get("panel")
    return replace(receipt, accept_commands=commands, panel=panel)


def _train(rows: CheckedLogs, tiers: str | Path, name: str, context: RetrainContext) -> tuple[TrainingResult, str]:
    """Train the challenger once; returns it, and what failed in MLflow.

    Where MLflow cannot be used from the start, training goes untracked.
    """
    out, settings = context.store.bundle(name), replace(context.config.training, cache=context.store.cache)

    def trained(uri: str) -> TrainingResult:
        return train(rows, tiers, out, settings, tracking_uri=uri, progress=context.progress, on_step=context.on_step)

    with raising_errors_of_the_machine():
        try:
            result = trained(context.uri)
        except TrackingError as error:  # raised before training begins
            return trained(NO_TRACKING), error.summary
    return result, result.tracking if result.tracking not in (TRACKED, NO_TRACKING) else ""


def _with_challenger(state: State, challenger: Bundle, *, promoted: bool) -> State:
    """The state with the challenger that this run made, as champion where it is promoted."""
    manifest, name = challenger.manifest, state.run_name
    state = replace(_with_bundle(state, name, manifest, manifest.mlflow_run_id or ""), challenger=name)
    return state.with_champion(name) if promoted else state


def _with_promise(state: State, watched: Watched, champion: Bundle | None, context: RetrainContext) -> State:
    """The state with what panels said of the promise; where it is lowered, with the version that promises less."""
    if watched.dial is not None and champion is not None:
        name = f"{state.run_name}{LOWERED}"
        manifest = write_lowered(champion, watched.dial, watched.n_rests_on, context.store.bundle(name))
        context.on_step("lowered")
        state = _with_bundle(state, name, manifest, "").with_lowered(name)  # MLflow's run has the files of training
    return replace(state, watch=watched.watch)


def _with_bundle(state: State, name: str, manifest: Manifest, mlflow_run_id: str) -> State:
    """The state with a bundle that this run made from, or against, the champion."""
    stored = StoredBundle(
        bundle_id=manifest.bundle_id,
        parent=state.bundle_id(state.champion) or "",
        data_digest=str(manifest.training["data_digest"]),
        code_version=code_version(),
        made_utc=utc_now(),
        mlflow_run_id=mlflow_run_id,
    )
    return replace(state, bundles={**state.bundles, name: stored}, unregistered=(*state.unregistered, name))


def code_version() -> str:
    """The package's version, and the commit where it runs from a checkout."""
    found, folder = versions()["token-broker"], Path(__file__).parent.parent.parent
    if not (folder / ".git").exists():
        return found
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return found
    return f"{found}+{done.stdout.strip()}"


def _finish(state: State, receipt: Receipt, context: RetrainContext, tracking_problem: str = "") -> Receipt:
    """Commit the decision, point the link, tell MLflow, and write the receipt, in this order.

    tracking_problem: what MLflow said in this run already; it is then left alone until the next run.
    """
    store = context.store
    receipt = replace(receipt, tracking=tracking_problem or "pending")
    state = replace(state, receipt=receipt.to_json(), is_registry_current=False)
    store.commit(state)
    context.on_step("committed")
    store.follow(replace(state, receipt=None))
    context.on_step("linked")
    if not tracking_problem:
        state, tracking_problem = register(state, context)
    context.on_step("registered")
    receipt = replace(receipt, tracking=tracking_problem)
    state = replace(state, receipt=receipt.to_json())
    store.commit(state)
    store.follow(state)
    return receipt
