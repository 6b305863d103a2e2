"""`broker retrain`: the circle, one turn per call; read `retrain` from top to bottom.

    log files ─ watermark ─ examine ─ train ─ judge ─ decide ─ commit ─► champion ─► Router, Watcher

A challenger takes over only where it is shown to be better on held-out prompts that neither bundle was trained on:
the split depends on question and seed alone, so what one run held out the next one holds out too. New log files are
examined first: outcomes that contradict the champion's calibrated expectation (labels flipped, a model exchanged, a day
of garbage) would spoil training and judging alike, so such a file is set aside until someone accepts it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np

from router.bundle import Bundle
from router.errors import BundleError
from router.golden import check_golden
from router.prices import PriceTable
from router.tiers import Tier, log_names, read_tiers
from training.config import TrainingConfig
from training.costs import attempt_costs
from training.drift import Window, drift_report
from training.errors import ConfigError, StoreError
from training.evaluate import MIN_SEGMENT_PROMPTS
from training.export import versions
from training.logfiles import append_log, create_raw, fetch, first_line, log_sources
from training.metrics import Interval, interval, resamples
from training.outcomes import OutcomeTable, is_partial
from training.pipeline import TrainingResult, train
from training.replay import LoggedChoices, compare_policies
from training.shipped import Shipped, embed_with
from training.store import LogFile, State, Store, StoredBundle, utc_now
from training.track import NO_TRACKING, MlflowTracker, tracked_run
from training.training_part import TrainingPart

MIN_EXAMINED = 20
"""Fewer outcomes of a tier in a log file show nothing."""

LEAST_SHIFT = 0.25
"""A tier's accuracy in a file may be so far from the champion's expectation."""

LEAST_EXCESS_BRIER = 0.03
"""The Brier score of a tier in a file may be so far above the one that a calibrated champion expects."""

LEAST_SHARE_FLIPPED = 0.7
"""And by so much of what labels that are all flipped would add to it."""

N_STANDARD_ERRORS = 4.0
"""By so many standard errors a contradiction must exceed zero: chance alone does so once in 30,000."""

MIN_COVERAGE = 0.8
"""Of the prompts on which champion and challenger differ, this share must have the outcomes of both choices."""

SEGMENT_ERROR_RATE = 0.05
"""Chance that any segment of a challenger that is as good everywhere counts as worse (Bonferroni)."""

_MAX_EXAMINED_PROMPTS = 5000
_UNREADABLE = "cannot be read:"
_NOTHING_NEW = "nothing new: every log file was read before, and the settings are the same"


@dataclass(frozen=True)
class RetrainConfig:
    """What a run of `retrain` goes by.

    worth_usd: what a correct answer is worth, in net value = worth_usd x quality - cost; None takes what a correct
        answer of the best single tier costs, so that always asking that tier has the net value 0.
    quality_margin: the quality may be worse by at most so much, with confidence: 0.02 is two percentage points, about
        what the default quality of 0.98 gives away; less takes thousands of held-out prompts to show.
    window_prompts: held-out prompts to judge on, of the newest log files; older ones only where these are too few.
    min_judged: with fewer, no challenger is judged, and the champion stays.
    accept_change: take log files that were set aside, because someone looked.
    model_name: in MLflow's model registry.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    worth_usd: float | None = None
    quality_margin: float = 0.02
    window_prompts: int = 2000
    min_judged: int = 100
    accept_change: bool = False
    model_name: str = "token-broker"

    def __post_init__(self) -> None:
        """Raises ConfigError where a setting is out of range."""
        if self.worth_usd is not None and not 0 < self.worth_usd < float("inf"):
            raise ConfigError(f"worth_usd is {self.worth_usd!r}; expected USD above 0")
        if not 0 <= self.quality_margin <= 1:
            raise ConfigError(f"quality_margin is {self.quality_margin!r}; expected a share from 0 to 1")
        for name in ("window_prompts", "min_judged"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected at least 2")


@dataclass(frozen=True)
class Measure:
    """One measure of both, and the difference challenger - champion with its paired 95 % interval.

    champion, challenger: None where only the difference is known (off-policy).
    """

    champion: float | None
    challenger: float | None
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """As the receipt has it."""
        return {**asdict(self), "difference": self.difference.to_json()}


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same prompts, without dials, at the prices of tiers.toml.

    quality: share of correct answers. cost_usd, net_value: USD per request. worse_segments: what is significantly worse
    there, by segment. refused: why they cannot be compared; the measures are None then.
    """

    n_prompts: int
    worth_usd: float | None = None
    quality: Measure | None = None
    cost_usd: Measure | None = None
    net_value: Measure | None = None
    worse_segments: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""

    def verdict(self, quality_margin: float) -> tuple[bool, str]:
        """Whether the challenger takes over, and why or why not, in one line."""
        if self.refused or self.quality is None or self.net_value is None:
            return False, self.refused
        quality, net_value = self.quality.difference, self.net_value.difference
        quality_text, net_text = _points(quality), _usd_per_1k(net_value)
        if quality.low < -quality_margin:
            return False, (
                f"quality may be worse: {quality_text}, where a loss of at most {quality_margin * 100:g} points "
                f"is tolerated; {self.n_prompts:,} prompts"
            )
        if self.worse_segments:
            found = "; ".join(f"{segment} {how}" for segment, how in self.worse_segments.items())
            return False, f"quality is worse in a segment: {found}"
        if net_value.low <= 0:
            return False, f"net value is not better with confidence: {net_text}; {self.n_prompts:,} prompts"
        return True, f"net value is better: {net_text}; quality {quality_text}; {self.n_prompts:,} prompts"


@dataclass(frozen=True)
class Receipt:
    """What a run did, for a scheduler to act on.

    run: number of the decision. champion, challenger: bundle_ids after it. n_judged: prompts compared on.
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
    on_step: told the name of each step that is done.

    Killed at any moment, the store has its last champion, and the next run recovers by itself.
    Raises StoreBusyError where another run holds the store, StoreError, and the errors of `train`; nothing is
    promoted then.
    """
    config, place = config or RetrainConfig(), Store(store)
    uri = place.tracking_uri if tracking_uri is None else tracking_uri
    tiers_read, tiers_text = read_tiers(tiers), Path(tiers).read_text(encoding="utf-8")
    found = _log_files(logs)
    with place.hold(), _impatient_tracking():
        state = _with_paths(place.recover(), found)
        on_step("recovered")
        settings = _settings(config, tiers_text)
        is_same_setting = settings == state.settings
        new = {digest: path for digest, path in found.items() if _is_new(state.files.get(digest), config)}
        if not new and is_same_setting:
            state, tracking = _register(state, place, uri, config)
            return _receipt(state, promoted=False, reason=_NOTHING_NEW, tracking=tracking)

        champion, uncompared = _champion(place, state, tiers_read)
        examined = {digest: _examine(path, tiers_read, champion, config, place.cache) for digest, path in new.items()}
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
        result, tracking_problem = _train(list(taken.values()), tiers, place, name, config, uri, progress)
        on_step("trained")
        challenger = Bundle.load(result.bundle)
        recent = _prompt_ids(_newest(taken, state, config), place.cache)
        comparison = None
        if champion is not None and not uncompared:
            comparison = compare(champion, challenger, result.log, tiers_text, tiers_read, recent, config)
        drift = _drift(champion, result.log, _prompt_ids(list(new.values()), place.cache))
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
    with place.hold(), _impatient_tracking():
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
    read = {digest: file for digest, file in examined.items() if not file.set_aside.startswith(_UNREADABLE)}
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


@contextmanager
def _raw_rows(paths: Sequence[Path], scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The checked rows of log files as table `raw`, in a database on disk that is removed at the end."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".rows-", dir=scratch) as folder:
        with _disk_errors(), duckdb.connect(str(Path(folder) / "rows.duckdb")) as db:
            create_raw(db)
            for number, path in enumerate(paths):
                append_log(db, path, number)
            yield db


@contextmanager
def _disk_errors() -> Iterator[None]:
    """DuckDB's way to say that the disk is full is no OSError."""
    try:
        yield
    except duckdb.IOException as error:
        raise OSError(first_line(error)) from error


def _examine(
    path: Path, tiers: Sequence[Tier], champion: Bundle | None, config: RetrainConfig, scratch: Path
) -> LogFile:
    """Count a file's rows, and hold its outcomes against what the champion expects."""
    with _raw_rows([path], scratch) as db:
        [(n_rows, n_broken, n_prompts, last)] = fetch(
            db,
            "SELECT count(*), count(reason), count(DISTINCT prompt_key) FILTER (reason IS NULL), "
            "max(timestamp) FILTER (reason IS NULL) FROM raw",
        )
        reasons = fetch(
            db, "SELECT reason FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        )
        suspicion = reasons[0][0] if reasons else ""
        if not suspicion.startswith(_UNREADABLE):
            if config.accept_change:
                suspicion = ""
            elif 2 * n_broken > n_rows:
                suspicion = f"{n_broken:,} of {n_rows:,} rows are broken ({suspicion})"
            else:
                suspicion = "" if champion is None else _contradiction(db, champion, tiers)
    return LogFile(str(path), n_rows, n_broken, n_prompts, last.isoformat() if last else "", suspicion)


def _contradiction(db: duckdb.DuckDBPyConnection, champion: Bundle, tiers: Sequence[Tier]) -> str:
    """Which tier's outcomes cannot be what the champion expects of these prompts, and why; "" where none."""
    rows = fetch(
        db,
        "SELECT prompt, model, avg(correct) FROM raw WHERE reason IS NULL AND correct IS NOT NULL AND prompt_key IN "
        f"(SELECT DISTINCT prompt_key FROM raw ORDER BY 1 LIMIT {_MAX_EXAMINED_PROMPTS}) GROUP BY 1, 2 ORDER BY 1, 2",
    )
    tier_of = {name: tier.name for tier in tiers for offer in tier.offers for name in log_names(offer)}
    known = champion.manifest.tiers
    cells = [
        (prompt, known.index(tier_of[model]), correct) for prompt, model, correct in rows if tier_of.get(model) in known
    ]
    if not cells:
        return ""
    prompts = sorted({prompt for prompt, _, _ in cells})
    place = {prompt: row for row, prompt in enumerate(prompts)}
    success = Shipped(champion).estimates(prompts)["success"]
    at = np.array([(place[prompt], column) for prompt, column, _ in cells])
    expected, correct = success[at[:, 0], at[:, 1]].astype(float), np.array([value for _, _, value in cells])
    for column, tier in enumerate(known):
        of_tier = at[:, 1] == column
        if of_tier.sum() < MIN_EXAMINED:
            continue
        p, y = expected[of_tier], correct[of_tier]
        answers = f"{len(y):,} answers; labels or model changed? look, then --accept-change"
        if _exceeds(y - p, LEAST_SHIFT) or _exceeds(p - y, LEAST_SHIFT):
            return f"{tier} answered {y.mean():.0%} right where {p.mean():.0%} was expected ({answers})"
        all_flipped = float(((1 - 2 * p) ** 2).mean())  # what flipping every label adds to the Brier score
        if _exceeds((y - p) ** 2 - p * (1 - p), max(LEAST_EXCESS_BRIER, LEAST_SHARE_FLIPPED * all_flipped)):
            found, usual = ((y - p) ** 2).mean(), (p * (1 - p)).mean()
            return f"{tier} has a Brier score of {found:.2f} where {usual:.2f} was expected ({answers})"
    return ""


def _exceeds(values: np.ndarray, least: float) -> bool:
    """Whether the mean is at least so large, and surely above 0."""
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    return bool(values.mean() >= max(least, N_STANDARD_ERRORS * error))


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


def _prompt_ids(paths: Sequence[Path], scratch: Path) -> np.ndarray:
    """The prompt_ids, as an OutcomeTable has them, of the usable rows of log files."""
    with _raw_rows(paths, scratch) as db:
        rows = fetch(db, "SELECT DISTINCT sha256(prompt)[:16] FROM raw WHERE reason IS NULL ORDER BY 1")
    return np.array([prompt_id for (prompt_id,) in rows], dtype=np.str_)


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
) -> tuple[TrainingResult, str]:
    """Train the challenger; where the tracking server is away, without it, and with what it said.

    Raises OSError where a file that could be read before could not: the disk is full, most likely.
    """
    out, settings = place.bundle(name), replace(config.training, cache=place.cache)
    tracking_problem = ""
    with _disk_errors():
        try:
            result = train(paths, tiers, out, settings, tracking_uri=uri, progress=progress)
        except ConfigError as error:
            if not str(error).startswith("tracking at"):
                raise
            result = train(paths, tiers, out, settings, tracking_uri=NO_TRACKING, progress=progress)
            tracking_problem = str(error)
    if lost := [reason for reason in result.log.summary.quarantined if reason.startswith(_UNREADABLE)]:
        raise OSError(f"a log file could be read at first, but not in training ({lost[0]}); is the disk full?")
    return result, tracking_problem


def compare(
    champion: Bundle,
    challenger: Bundle,
    log: OutcomeTable,
    tiers_text: str,
    tiers: Sequence[Tier],
    recent: np.ndarray,
    config: RetrainConfig,
) -> Comparison:
    """Both bundles on the recent prompts that neither was trained on, as they answer a request without dials.

    log: with the columns of `tiers`, among which are all tiers of both. recent: prompt_ids.
    """
    parts = [TrainingPart.load(TrainingPart.path_of(b.path), b.manifest.bundle_id) for b in (champion, challenger)]
    trained_on = np.concatenate([part.groups for part in parts])
    table = log.rows(np.isin(log.prompt_ids, recent) & ~np.isin(log.groups, trained_on))
    table = table.rows(np.isfinite(table.correct).any(axis=1))
    if table.n_prompts < config.min_judged:
        return Comparison(table.n_prompts, refused=_too_few(table.n_prompts, config))
    has_tokens = np.isfinite(table.input_tokens) & np.isfinite(table.output_tokens)
    repriced = replace(table, cost_usd=np.where(has_tokens, np.nan, table.cost_usd))
    cost_usd = attempt_costs(repriced, tiers).cost_usd
    prices = PriceTable.parse(tiers_text)
    ours, theirs = (_choices(bundle, prices, table.prompts) for bundle in (champion, challenger))
    worth_usd = config.worth_usd or _cost_of_a_correct_answer(table.correct, cost_usd)
    if is_partial(table.correct):
        return _compare_off_policy(
            table, cost_usd, ours, theirs, _estimates(challenger, prices, table.prompts), worth_usd, config
        )
    return _compare_paired(table, cost_usd, ours, theirs, worth_usd, config)


def _compare_paired(
    table: OutcomeTable,
    cost_usd: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    worth_usd: float,
    config: RetrainConfig,
) -> Comparison:
    """Where most tiers answered most prompts: what each choice really came to. ours, theirs: (n_prompts,)."""
    rows = np.arange(table.n_prompts)
    judged = np.isfinite(table.correct[rows, ours]) & np.isfinite(table.correct[rows, theirs])
    differ = ours != theirs
    n_differ, n_known = int(differ.sum()), int((differ & judged).sum())
    if judged.sum() < config.min_judged:
        return Comparison(int(judged.sum()), refused=_too_few(int(judged.sum()), config))
    if n_known < MIN_COVERAGE * n_differ:
        lacking = np.unique(
            np.concatenate([side[differ & np.isnan(table.correct[rows, side])] for side in (ours, theirs)])
        )
        return Comparison(
            int(judged.sum()),
            refused=f"champion and challenger differ on {n_differ:,} prompts, of which only {n_known:,} have the "
            f"outcomes of both; ask {', '.join(table.tiers[k] for k in lacking)} more of the prompts",
        )
    rows = rows[judged]
    ours, theirs = ours[judged], theirs[judged]
    quality = np.stack([table.correct[rows, ours], table.correct[rows, theirs]])
    cost = np.stack([cost_usd[rows, ours], cost_usd[rows, theirs]])
    weights = resamples(len(rows), config.training.seed)
    return Comparison(
        n_prompts=len(rows),
        worth_usd=worth_usd,
        quality=_measure(quality, weights),
        cost_usd=_measure(cost, weights),
        net_value=_measure(worth_usd * quality - cost, weights),
        worse_segments=_worse_segments(quality[1] - quality[0], table.segments[rows]),
    )


def _compare_off_policy(
    table: OutcomeTable,
    cost_usd: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    worth_usd: float,
    config: RetrainConfig,
) -> Comparison:
    """Where each prompt has the outcome of the tier that was chosen: doubly robust, from the logged propensities.

    The interval of the net value adds those of quality and cost, which is wider than it need be.
    """
    known = np.isfinite(table.correct) & (table.propensity > 0) & (table.propensity <= 1)
    rows = np.flatnonzero(known.sum(axis=1) == 1)
    if len(rows) < config.min_judged:
        return Comparison(len(rows), refused=_too_few(len(rows), config) + " (with one outcome and its propensity)")
    action = known[rows].argmax(axis=1)
    log = LoggedChoices(action, table.propensity[rows, action], table.correct[rows, action], cost_usd[rows, action])
    one_hot = np.eye(len(table.tiers))
    found = compare_policies(
        log, one_hot[ours[rows]], one_hot[theirs[rows]],
        predicted["success"][rows].astype(float), predicted["cost_usd"][rows].astype(float),
    )  # fmt: skip
    if found.quality is None or found.cost_usd is None:
        return Comparison(len(rows), refused=f"the log does not carry a comparison: {found.refused}")
    quality = Interval(found.quality.value, found.quality.low, found.quality.high)
    cost = Interval(found.cost_usd.value, found.cost_usd.low, found.cost_usd.high)
    net_value = Interval(
        worth_usd * quality.value - cost.value, worth_usd * quality.low - cost.high, worth_usd * quality.high - cost.low
    )
    q, c, v = (Measure(None, None, difference) for difference in (quality, cost, net_value))
    return Comparison(len(rows), worth_usd, quality=q, cost_usd=c, net_value=v)


def _choices(bundle: Bundle, prices: PriceTable, prompts: Sequence[str]) -> np.ndarray:
    """The tier, as a column of `prices`, of every prompt without dials, int (n_prompts,)."""
    manifest = bundle.manifest
    column = {tier.name: number for number, tier in enumerate(prices.tiers)}
    priced = _at_prices(bundle, prices)
    slack = manifest.dial_point(manifest.default_quality).slack
    shipped = Shipped(priced)
    columns = np.array([column[name] for name in manifest.tiers])
    return np.asarray(columns[shipped.choices(shipped.estimates(prompts), 0.0, slack)])


def _estimates(bundle: Bundle, prices: PriceTable, prompts: Sequence[str]) -> dict[str, np.ndarray]:
    return Shipped(_at_prices(bundle, prices)).estimates(prompts)


def _at_prices(bundle: Bundle, prices: PriceTable) -> Bundle:
    """The bundle at other prices; `prices` may have more tiers."""
    named = {tier.name: tier for tier in prices.tiers}
    return replace(bundle, prices=replace(prices, tiers=tuple(named[name] for name in bundle.manifest.tiers)))


def _cost_of_a_correct_answer(correct: np.ndarray, cost_usd: np.ndarray) -> float:
    """USD per correct answer of the tier with the highest accuracy; 1 where it is free. Both (n_prompts, n_tiers)."""
    known = np.isfinite(correct)
    accuracy = np.where(known, correct, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    best = int(accuracy.argmax())
    return float(cost_usd[known[:, best], best].mean() / accuracy[best]) if accuracy[best] > 0 else 1.0


def _measure(both: np.ndarray, weights: np.ndarray) -> Measure:
    """both: champion's and challenger's values, (2, n_prompts). weights: (n_resamples, n_prompts)."""
    return Measure(float(both[0].mean()), float(both[1].mean()), interval(weights @ (both[1] - both[0])))


def _worse_segments(difference: np.ndarray, segments: np.ndarray) -> dict[str, str]:
    """Segments where the quality is significantly lower; both (n_prompts,)."""
    names, sizes = np.unique(segments, return_counts=True)
    large = names[sizes >= MIN_SEGMENT_PROMPTS]
    worse: dict[str, str] = {}
    for name in large.tolist():
        of_segment = difference[segments == name]
        error = float(of_segment.std(ddof=1)) / len(of_segment) ** 0.5
        highest = float(of_segment.mean()) + NormalDist().inv_cdf(1 - SEGMENT_ERROR_RATE / len(large)) * error
        if highest < 0:
            worse[name or "(no segment)"] = f"{of_segment.mean() * 100:+.1f} points, {len(of_segment):,} prompts"
    return worse


def _too_few(n_prompts: int, config: RetrainConfig) -> str:
    return (
        f"only {n_prompts:,} recent prompts that neither bundle was trained on can be judged; "
        f"{config.min_judged:,} needed"
    )


def _points(difference: Interval) -> str:
    return f"{difference.value * 100:+.2f} points ({difference.low * 100:+.2f} to {difference.high * 100:+.2f})"


def _usd_per_1k(difference: Interval) -> str:
    low, value, high = (1000 * usd for usd in (difference.low, difference.value, difference.high))
    return f"{value:+.4g} USD per 1,000 requests ({low:+.4g} to {high:+.4g})"


def _drift(champion: Bundle | None, log: OutcomeTable, new: np.ndarray) -> dict[str, Any] | None:
    """What moved between the former rows and the new, as the champion sees it; None where it cannot be said.

    new: prompt_ids of the new log files. Only prompts that the champion was not trained on count.
    """
    if champion is None or champion.manifest.tiers != log.tiers:
        return None
    trained_on = TrainingPart.load(TrainingPart.path_of(champion.path), champion.manifest.bundle_id).groups
    is_new, unseen = np.isin(log.prompt_ids, new), ~np.isin(log.groups, trained_on)
    windows = []
    for mask in (~is_new & unseen, is_new & unseen):
        table = log.rows(np.flatnonzero(mask)[:_MAX_EXAMINED_PROMPTS])
        if table.n_prompts < 2:
            return None
        windows.append(
            Window.of(table, embed_with(champion, table.prompts), Shipped(champion).estimates(table.prompts))
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
    return comparison.verdict(config.quality_margin)


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
    found, folder = versions()["token-broker"], Path(__file__).parent.parent
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
        state, tracking = _register(state, place, uri, config)
    on_step("registered")
    receipt = replace(receipt, tracking=tracking)
    state = replace(state, receipt=receipt.to_json())
    place.commit(state)
    place.follow(state)
    return receipt


# ---- MLflow's model registry -----------------------------------------------------------------------


def _register(state: State, place: Store, uri: str, config: RetrainConfig) -> tuple[State, str]:
    """Have the registry follow the state, unless it does already; the state, and "ok", "none" or what failed."""
    if uri == NO_TRACKING:
        return state, NO_TRACKING
    if state.is_registry_current:
        return state, "ok"
    from mlflow.exceptions import MlflowException

    try:
        _register_bundles(state, place, uri, config.model_name)
    except (MlflowException, ConfigError, OSError) as error:
        return state, f"tracking at {uri} failed: {str(error).splitlines()[0][:300]}"
    state = replace(state, unregistered=(), is_registry_current=True)
    place.commit(state)
    return state, "ok"


def _register_bundles(state: State, place: Store, uri: str, model: str) -> None:
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
            found[stored.bundle_id] = _new_version(client, uri, place.bundle(name), stored, model)
    for alias, name in (("challenger", state.challenger), ("champion", state.champion)):
        if name:
            client.set_registered_model_alias(model, alias, found[state.bundles[name].bundle_id])


def _new_version(client: Any, uri: str, folder: Path, stored: StoredBundle, model: str) -> str:
    """Register one bundle with its lineage; where its run was not tracked, as a run of its own."""
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
def _impatient_tracking() -> Iterator[None]:
    """Keep MLflow from trying for minutes to reach a server that is away; what the environment says goes first."""
    impatience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    added = {name: value for name, value in impatience.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
