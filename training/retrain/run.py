"""`broker retrain`: the circle, one turn per call; read `retrain` from top to bottom.

    log files ─ watermark ─ examine ─ train ─ judge ─ decide ─ commit ─► champion ─► Router, Watcher

A challenger takes over only where it is shown to be better, or where the champion is shown to break its promise, on
recent prompts that the champion was not trained on, and that the challenger's estimates have not seen either. New log
files are examined first: outcomes that contradict the champion's calibrated expectation (labels flipped, a model
exchanged, a day of garbage) would spoil training and judging alike, so such a file is set aside until someone accepts
it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from router.bundle.bundle import Bundle
from router.errors import BundleError
from router.golden import check_golden
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Tier, read_tiers
from training.config import RetrainConfig
from training.errors import ConfigError, StoreError
from training.evaluation.bundle_graph import BundleGraph, embed_with
from training.evaluation.training_data import TrainingData
from training.export.versions import versions
from training.log.sources import log_sources
from training.log.table import OutcomeTable
from training.pipeline import TrainingResult, train
from training.retrain.compare import Comparison, compare
from training.retrain.drift import Window, drift_report
from training.retrain.log_check import MAX_EXAMINED_PROMPTS, UNREADABLE, disk_errors, examine, prompt_ids_of
from training.retrain.registry import impatient_tracking, register
from training.retrain.store import LogFile, State, Store, StoredBundle, utc_now
from training.tracking import NO_TRACKING

_NOTHING_NEW = "nothing new: every log file was read before, and the settings are the same"


@dataclass(frozen=True)
class Receipt:
    """What a run did, for a scheduler to act on.

    run: number of the decision. champion, challenger: bundle_ids after it. n_judged: prompts compared on.
    promised, champion_kept: the quality that the former champion promises, and what it kept on recent prompts.
    set_aside: by log file of this run's logs, why it is kept out. tracking: "ok", "none", or what failed.
    """

    run: int
    promoted: bool
    reason: str
    champion: str | None
    challenger: str | None
    rows_new: int = 0
    rows_quarantined: int = 0
    net_value: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    worth_usd: float | None = None
    n_judged: int = 0
    promised: float | None = None
    champion_kept: Mapping[str, Any] | None = None
    set_aside: Mapping[str, str] = field(default_factory=dict)
    tracking: str = "none"
    finished_utc: str = ""

    def to_json(self) -> dict[str, Any]:
        """A line of receipts.jsonl."""
        return asdict(self)


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

    logs: files, folders or globs, best one file a day: a file is examined, and set aside, as a whole. They should name
        all that is to be trained on; what of it is new, the store knows.
    tracking_uri: of MLflow; None takes the store's own database, "none" tracks nothing. A server that is away holds
        nothing up: the receipt says so, and the next run makes up for it.
    on_step: told the name of each step that is done, those of training among them.

    Killed at any moment, the store has its last champion, and the next run recovers by itself.
    Raises StoreBusyError where another run holds the store, StoreError, and the errors of `train`; nothing is
    promoted then.
    """
    config, place = config or RetrainConfig(), Store(store)
    uri = place.tracking_uri if tracking_uri is None else tracking_uri
    tiers_read, tiers_text = read_tiers(tiers), Path(tiers).read_text(encoding="utf-8")
    found = _log_files(logs)
    with place.hold(), impatient_tracking():
        state = _with_paths(place.recover(), found)
        on_step("recovered")
        settings = _settings(config, tiers_text)
        is_same_setting = settings == state.settings
        new = {digest: path for digest, path in found.items() if _is_new(state.files.get(digest), config)}
        if not new and is_same_setting:
            state, tracking = register(state, place, uri, config)
            return _receipt(state, promoted=False, reason=_NOTHING_NEW, tracking=tracking)

        champion, uncompared = _champion(place, state, tiers_read)
        examined = {digest: examine(path, tiers_read, champion, config, place.cache) for digest, path in new.items()}
        on_step("examined")
        facts = _counts(state.files, examined)
        known = {**state.files, **examined}
        facts["set_aside"] = {
            str(path): known[digest].set_aside for digest, path in found.items() if known[digest].set_aside
        }
        taken = {digest: path for digest, path in found.items() if not known[digest].set_aside}
        if not taken or (is_same_setting and not new.keys() & taken.keys()):
            reason = _with_set_aside("no new row that can be used", examined)
            if state.receipt is not None and reason == state.receipt["reason"]:
                return _receipt(state, promoted=False, reason=reason, **facts)
            state = replace(_with_files(state, examined), n_runs=state.n_runs + 1, settings=settings)
            return _finish(state, place, uri, config, on_step, reason=reason, **facts)

        state = replace(_with_files(state, examined), n_runs=state.n_runs + 1, settings=settings)
        name = f"{state.n_runs:06d}"
        result, tracking_problem = _train(list(taken.values()), tiers, place, name, config, uri, progress, on_step)
        on_step("trained")
        challenger = Bundle.load(result.bundle)
        comparison = None
        if champion is not None and not uncompared:
            recent = prompt_ids_of(_newest(taken, state, config), place.cache)
            comparison = compare(champion, challenger, result.log, PriceTable.parse(tiers_text), recent, config)
        drift = _drift(champion, result.log, list(new.values()), place.cache)
        promoted, reason = _decide(state, challenger, uncompared, comparison, config)
        reason = _with_set_aside(reason, examined)
        on_step("judged")

        stored = _lineage(challenger, state)
        state = replace(
            state, bundles={**state.bundles, name: stored}, challenger=name, unregistered=(*state.unregistered, name)
        )
        state = state.with_champion(name) if promoted else state
        judged = {} if comparison is None else _judged(comparison)
        return _finish(
            state, place, uri, config, on_step,
            promoted=promoted, reason=reason, drift=drift, tracking=tracking_problem, **facts, **judged,
        )  # fmt: skip


def rollback(store: str | Path, *, tracking_uri: str | None = None, model_name: str = "token-broker") -> Receipt:
    """Put the champion before the present one back in its place; a bundle trained on the same data stays out.

    tracking_uri: of MLflow; None takes the store's own database where there is one. What is not told now, the next run
        of `retrain` makes up for.
    Raises StoreBusyError, and StoreError where there is no earlier champion, or it is damaged.
    """
    place = Store(store)
    uri = tracking_uri or (place.tracking_uri if place.has_tracking else NO_TRACKING)
    with place.hold(), impatient_tracking():
        state = place.recover()
        if not state.former:
            raise StoreError(f"{place.folder}: no earlier champion to go back to")
        *former, name = state.former
        if not check_golden(place.bundle(name)).passed:
            raise StoreError(f"{place.bundle(name)}: the earlier champion does not pass its golden prompts")
        taken_back = state.bundles[state.champion]
        state = replace(
            state,
            n_runs=state.n_runs + 1,
            champion=name,
            former=tuple(former),
            rolled_back=(*state.rolled_back, taken_back.data_digest),
        )
        reason = f"rolled back from {taken_back.bundle_id} to {state.bundle_id(name)}"
        return _finish(state, place, uri, RetrainConfig(model_name=model_name), lambda step: None, reason=reason)


# ---- the log files ---------------------------------------------------------------------------------


def _log_files(logs: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Log files by the SHA-256 of their content; of equal files the first."""
    sources = [logs] if isinstance(logs, str | Path) else list(logs)
    if unfit := [type(source).__name__ for source in sources if not isinstance(source, str | Path)]:
        raise ConfigError(f"found {unfit[0]} for a log; retrain needs files, or it cannot know what is new")
    found: dict[str, Path] = {}
    for path in log_sources(sources, None):
        assert isinstance(path, Path)
        with path.open("rb") as file:
            found.setdefault(hashlib.file_digest(file, "sha256").hexdigest(), path)
    return found


def _settings(config: RetrainConfig, tiers_text: str) -> dict[str, Any]:
    """All that makes a run decide otherwise on the same logs, as state.json gives it back."""
    document = {**asdict(config), "tiers": hashlib.sha256(tiers_text.encode()).hexdigest()}
    del document["accept_change"], document["model_name"]
    return dict(json.loads(json.dumps(document, default=str)))


def _is_new(known: LogFile | None, config: RetrainConfig) -> bool:
    return known is None or (config.accept_change and bool(known.set_aside))


def _with_paths(state: State, found: Mapping[str, Path]) -> State:
    """The watermark with the names that known files have now: a log that was rotated is the same log."""
    files = {
        digest: replace(file, path=str(found[digest])) if digest in found else file
        for digest, file in state.files.items()
    }
    return replace(state, files=files)


def _with_files(state: State, examined: Mapping[str, LogFile]) -> State:
    """The watermark with new files; one that has grown takes the place of what it was.

    A file that cannot be read is not in it: it may be half written, or the disk full, and is looked at again.
    """
    read = {digest: file for digest, file in examined.items() if not file.set_aside.startswith(UNREADABLE)}
    paths = {file.path for file in read.values()}
    kept = {digest: file for digest, file in state.files.items() if file.path not in paths}
    return replace(state, files={**kept, **read})


def _with_set_aside(reason: str, examined: Mapping[str, LogFile]) -> str:
    """The reason, and which new file was set aside, and why."""
    files = [file for file in examined.values() if file.set_aside]
    if not files:
        return reason
    others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
    return f"{reason}; set aside: {files[0].path}{others}: {files[0].set_aside}"


def _counts(former: Mapping[str, LogFile], examined: Mapping[str, LogFile]) -> dict[str, Any]:
    """rows_new and rows_quarantined; of a file that has grown, only by how much."""
    before = {file.path: file for file in former.values()}
    rows_new = rows_quarantined = 0
    for file in examined.values():
        old = before.get(file.path)
        n_old, n_old_quarantined = (old.n_rows, old.n_quarantined) if old and file.n_rows > old.n_rows else (0, 0)
        rows_new += file.n_rows - n_old
        rows_quarantined += max(0, file.n_quarantined - n_old_quarantined)
    return {"rows_new": rows_new, "rows_quarantined": rows_quarantined}


def _newest(taken: Mapping[str, Path], state: State, config: RetrainConfig) -> list[Path]:
    """The newest files that hold enough prompts to judge on: by their rows' timestamps, else as they came."""
    wanted = config.window_prompts / config.training.test_share
    order = {digest: number for number, digest in enumerate(state.files)}
    newest: list[Path] = []
    n_prompts = 0
    for digest in sorted(taken, key=lambda d: (state.files[d].last_timestamp, order[d]), reverse=True):
        if n_prompts >= wanted:
            break
        newest.append(taken[digest])
        n_prompts += state.files[digest].n_prompts
    return newest


# ---- training and judging --------------------------------------------------------------------------


def _champion(place: Store, state: State, tiers: Sequence[Tier]) -> tuple[Bundle | None, str]:
    """The champion, and why a challenger need not be compared with it; "" where it must."""
    if not state.champion:
        return None, "first bundle of this store, nothing to compare it with"
    try:
        champion = Bundle.load(place.bundle(state.champion))
    except BundleError as error:
        return None, f"the champion cannot be loaded ({error})"
    gone = set(champion.manifest.tiers) - {tier.name for tier in tiers}
    return champion, f"the champion asks {', '.join(sorted(gone))}, no longer in tiers.toml" if gone else ""


def _train(
    paths: Sequence[Path],
    tiers: str | Path,
    place: Store,
    name: str,
    config: RetrainConfig,
    uri: str,
    progress: bool,
    on_step: Callable[[str], None],
) -> tuple[TrainingResult, str]:
    """Train the challenger; where the tracking server is away, without it, and with what it said.

    Raises OSError where a file that could be read before could not: the disk is full, most likely.
    """
    out, settings = place.bundle(name), replace(config.training, cache=place.cache)
    tracking_problem = ""
    with disk_errors():
        try:
            result = train(paths, tiers, out, settings, tracking_uri=uri, progress=progress, on_step=on_step)
        except ConfigError as error:
            if not str(error).startswith("tracking at"):
                raise
            result = train(paths, tiers, out, settings, tracking_uri=NO_TRACKING, progress=progress, on_step=on_step)
            tracking_problem = str(error)
    if lost := [reason for reason in result.log.summary.quarantined if reason.startswith(UNREADABLE)]:
        raise OSError(f"a log file could be read at first, but not in training ({lost[0]}); is the disk full?")
    return result, tracking_problem


def _drift(champion: Bundle | None, log: OutcomeTable, new: Sequence[Path], scratch: Path) -> dict[str, Any] | None:
    """What moved between the former rows and the new, as the champion sees it; None where it cannot be said.

    new: the new log files. Only prompts that the champion was not trained on count.
    """
    if champion is None or champion.manifest.tiers != log.tiers:
        return None
    part = TrainingData.load(TrainingData.path_of(champion.path), champion.manifest.bundle_id)
    is_new, unseen = np.isin(log.prompt_ids, prompt_ids_of(new, scratch)), ~part.saw(log.groups)
    windows = []
    for mask in (~is_new & unseen, is_new & unseen):
        table = log.rows(np.flatnonzero(mask)[:MAX_EXAMINED_PROMPTS])
        if table.n_prompts < 2:
            return None
        windows.append(
            Window.of(table, embed_with(champion, table.prompts), BundleGraph(champion).estimates(table.prompts))
        )
    report = drift_report(*windows)
    return {"level": report.level, "summary": report.summary}


# ---- the decision and its record -------------------------------------------------------------------


def _decide(
    state: State, challenger: Bundle, uncompared: str, comparison: Comparison | None, config: RetrainConfig
) -> tuple[bool, str]:
    """Whether the challenger takes over, and why, in one line."""
    if challenger.manifest.training["data_digest"] in state.rolled_back:
        return False, "trained on the same data as a champion that was rolled back"
    golden = check_golden(challenger.path)
    if not golden.passed:
        return False, f"golden prompts failed: {len(golden.other_tier)} of {golden.n_prompts} went to another tier"
    if comparison is None:
        return True, uncompared
    return comparison.verdict(config.tolerated_loss)


def _lineage(challenger: Bundle, state: State) -> StoredBundle:
    manifest = challenger.manifest
    return StoredBundle(
        bundle_id=manifest.bundle_id,
        parent=state.bundle_id(state.champion) or "",
        data_digest=str(manifest.training["data_digest"]),
        code_version=code_version(),
        made_utc=utc_now(),
        mlflow_run_id=manifest.mlflow_run_id or "",
    )


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


def _judged(comparison: Comparison) -> dict[str, Any]:
    measures = {"quality": comparison.quality, "cost": comparison.cost_usd, "net_value": comparison.net_value}
    return {
        **{name: measure and measure.to_json() for name, measure in measures.items()},
        "worth_usd": comparison.worth_usd,
        "n_judged": comparison.n_prompts,
        "promised": comparison.promised,
        "champion_kept": comparison.champion_kept and comparison.champion_kept.to_json(),
    }


def _receipt(state: State, **facts: Any) -> Receipt:
    champion, challenger = state.bundle_id(state.champion), state.bundle_id(state.challenger)
    return Receipt(run=state.n_runs, champion=champion, challenger=challenger, finished_utc=utc_now(), **facts)


def _finish(
    state: State,
    place: Store,
    uri: str,
    config: RetrainConfig,
    on_step: Callable[[str], None],
    *,
    promoted: bool = False,
    tracking: str = "",
    **facts: Any,
) -> Receipt:
    """Commit the decision, have the link follow, tell MLflow, write the receipt, in this order.

    tracking: what failed already; MLflow is then left alone until the next run.
    """
    receipt = _receipt(state, promoted=promoted, tracking=tracking or "pending", **facts)
    state = replace(state, receipt=receipt.to_json(), is_registry_current=False)
    place.commit(state)
    on_step("committed")
    place.follow(replace(state, receipt=None))
    on_step("linked")
    if not tracking:
        state, tracking = register(state, place, uri, config)
    on_step("registered")
    receipt = replace(receipt, tracking=tracking)
    state = replace(state, receipt=receipt.to_json())
    place.commit(state)
    place.follow(state)
    return receipt
