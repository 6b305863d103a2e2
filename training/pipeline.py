"""The training line, from a log to a bundle; read it from top to bottom."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from router.bundle import FORMAT_VERSION, Bundle, EncoderInfo, Manifest
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import tiers_text
from training.backend import Backend, backend_at
from training.config import TrainingConfig
from training.context import RunContext
from training.dial.dial import promise_statement
from training.encoders.embed import embed
from training.encoders.make import encoder_info, make_encoder
from training.errors import ConfigError, LogError
from training.evaluation.evaluate import evaluate_table
from training.evaluation.result import Evaluation
from training.evaluation.training_data import TrainingData
from training.export.bundle import check_target, draft_bundle
from training.export.parity import Parity, check_parity
from training.export.versions import versions
from training.fit.estimator import SuccessEstimator, success_estimator
from training.fit.never_asked import never_asked
from training.learn import Learned, learn
from training.log.costs import attempt_costs
from training.log.counts import PromptCounts
from training.log.labels import label_cheapest_correct, label_distribution
from training.log.part import LogPart
from training.log.sources import LogSource, sources_text
from training.log.split import Split
from training.log.table import OutcomeTable
from training.progress import TRAINING_STEPS, StepBar
from training.reports.figures import report_figures
from training.reports.html import png
from training.reports.report import write_report
from training.tracking import NO_TRACKING, ambient_tracking_uri, default_tracking_uri, tracked_run

logger = logging.getLogger(__name__)

MIN_PROMPTS = 60
"""Training prompts that a router is learned from, at least."""


@dataclass(frozen=True)
class TrainingResult:
    """What a run made and measured.

    counts: how many prompts serve what.
    label_distribution: share of each cheapest-correct label, per segment. n_embedded: prompts whose embedding was not
    in the cache. encoder_reused: an earlier run had learned the encoder. tracking: "ok", "none" (nothing is tracked),
    or what failed after training had begun, so that MLflow lacks a part of this run.
    """

    bundle: Path
    manifest: Manifest
    log: OutcomeTable
    counts: PromptCounts
    label_distribution: dict[str, dict[str, float]]
    evaluation: Evaluation
    parity: Parity
    n_embedded: int
    encoder_reused: bool
    tracking: str


def train(
    logs: LogSource | Sequence[LogSource],
    tiers: str | Path,
    out: str | Path,
    config: TrainingConfig | None = None,
    *,
    estimator: Any = None,
    cluster: str | None = None,
    tracking_uri: str | None = None,
    register_as: str | None = None,
    progress: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> TrainingResult:
    """Train a router on logged outcomes and write its bundle to the folder `out`.

    logs: files, folders, globs or DataFrames in the format of data/README.md. tiers: a tiers.toml.
    estimator: a SuccessEstimator with other settings, which is cloned and not changed. Or a classifier of your own with
        `fit` and `predict_proba`, which then takes the place of its voices. None: SuccessEstimator(config.seed).
    cluster: address of a Dask scheduler, such as tcp://host:8786 (extra `distributed`). Its workers read the log, which
        need not fit into one machine's memory, and fit the classifier on all of it. All else is fitted and judged here,
        on a sample. Logs and cache must stand on storage that all workers see. None does everything here.
    tracking_uri: of MLflow; "none" tracks nothing. None takes that of the active run of MLflow, in which this one is
        then nested; else MLFLOW_TRACKING_URI of the environment; else a sqlite database beside the bundle.
    register_as: a model in MLflow's registry, of which the bundle becomes a new version; None registers nothing.
    progress: a bar on stderr. on_step: called with the name of each step when it is done.

    Beside the bundle stand `<out>-training.parquet` (what `evaluate` fits its baselines on; no prompt text) and, where
    rows were broken, `<out>-quarantine.parquet`.

    Raises LogError, TierError, ConfigError, EncoderError, ParityError, ClusterError, and EstimatorError where your own
    classifier cannot be exported; `out` is then left as it was.
    TrackingError is a ConfigError: the run cannot be started in MLflow. What fails in MLflow later stops nothing: it is
    a warning, and in the result.
    """
    out, config = Path(out), config or TrainingConfig()
    prices = PriceTable.parse(tiers_text(tiers), source=str(tiers))
    if cluster is not None and estimator is not None:
        raise ConfigError("found a cluster and an estimator; the workers of a cluster fit the standard estimator only")
    chosen = success_estimator(estimator, config.seed)
    check_target(out)
    uri = tracking_uri or ambient_tracking_uri() or default_tracking_uri(out)
    with tracked_run(uri, out.name) as tracker, StepBar("train", TRAINING_STEPS, is_shown=progress) as bar:

        def done(step: str) -> None:
            bar.done(step)
            logger.info("%s", step)
            on_step(step)

        context = RunContext(config, config.cache or out.parent / ".cache", tracker, done, bar.under_way)
        # One thread for linear algebra: the same bundle on any number of cores, and pools of threads that wait for each
        # other in every small step are many times slower as soon as the machine has other work.
        with backend_at(cluster, context) as backend, threadpool_limits(1):
            result = _run(logs, prices, out, chosen, backend, context)
            if register_as is not None:
                tracker.register(register_as, {"bundle_id": result.manifest.bundle_id})
    if tracker.problem is not None:
        logger.warning("%s; the bundle is complete, but MLflow lacks a part of this run", tracker.outcome)
    return replace(result, tracking=tracker.outcome)


def _run(
    logs: LogSource | Sequence[LogSource],
    prices: PriceTable,
    out: Path,
    estimator: SuccessEstimator,
    backend: Backend,
    context: RunContext,
) -> TrainingResult:
    config = context.config
    log = backend.ingest(logs, prices.tiers, out.with_name(f"{out.name}-quarantine.parquet"))
    context.done("ingest")
    split = Split(config.test_share, config.seed)
    in_test = split.in_test(log.groups)
    counts = PromptCounts.of(log, in_test)
    in_training = ~in_test & np.isfinite(log.correct).any(axis=1)
    _check_split(log, in_training, in_test)

    encoder, encoder_reused = make_encoder(config, log.rows(in_training), context.cache)
    context.done("encoder")
    embeddings = embed(
        encoder, log.prompts, log.prompt_ids, context.cache, on_share=partial(context.under_way, "embed")
    )
    context.done("embed")
    known = LogPart.of(log, embeddings.vectors, prices.tiers, in_training)
    held_out = LogPart.of(log, embeddings.vectors, prices.tiers, in_test)

    info = encoder_info(encoder, log, embeddings.n_tokens, in_training)
    learned = learn(known, encoder, info, estimator, backend, context)
    graph = learned.model.whole(encoder)
    parity = check_parity(learned.model, encoder, graph, held_out.table.prompts, held_out.vectors, config.seed)
    context.done("parity")
    manifest = _manifest(learned, known, log, info, context)
    plan_files = {} if learned.plans is None else learned.plans.files()
    draft = draft_bundle(out, encoder, graph, prices.text, learned.model.clusters.members, plan_files, manifest)
    try:
        data = _training_data(learned, known, split)
        evaluation = evaluate_table(
            Bundle.load(draft.folder),
            held_out.table,
            data,
            vectors=held_out.vectors,
            seed=config.seed,
            on_step=context.done,
        )
        label = label_cheapest_correct(log.correct, attempt_costs(log, prices.tiers).cost_usd)
        labels = label_distribution(label, log.tiers, log.segments)
        pictures = {name: png(figure) for name, figure in report_figures(evaluation).items()}
        write_report(draft.folder, manifest, evaluation, log, counts, labels, pictures)
        manifest = draft.publish()
        data.save(TrainingData.path_of(out), manifest.bundle_id)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
    result = TrainingResult(
        bundle=out,
        manifest=manifest,
        log=log,
        counts=counts,
        label_distribution=labels,
        evaluation=evaluation,
        parity=parity,
        n_embedded=embeddings.n_computed,
        encoder_reused=encoder_reused,
        tracking=NO_TRACKING,
    )
    _track(result, sources_text(logs), known.costs.estimated_share, context)
    context.tracker.log_pictures(pictures)
    context.tracker.log_bundle(out)
    context.done("done")
    return result


def _manifest(
    learned: Learned, known: LogPart, log: OutcomeTable, encoder: EncoderInfo, context: RunContext
) -> Manifest:
    """What the runtime and a reader must know of the bundle."""
    config = context.config
    dial, best = learned.dial, log.tiers[learned.dial.best_tier]
    clusters, observed = learned.model.clusters.members, np.isfinite(known.table.correct)
    unasked = never_asked(log.tiers, observed, known.table.segments, clusters)
    training: dict[str, Any] = {
        "data_digest": log.digest,
        "n_prompts": log.summary.n_prompts,
        "n_trained_on": learned.n_trained_on,
        **({"n_sampled": log.n_prompts} if log.drawn_from else {}),
        "first_timestamp": log.first_timestamp and log.first_timestamp.isoformat(),
        "last_timestamp": log.last_timestamp and log.last_timestamp.isoformat(),
        "n_trees": learned.model.n_trees,
        "seed": config.seed,
        "test_share": config.test_share,
        "note": config.note,
        "estimated_cost_share": known.costs.estimated_share,
        **({"never_asked": unasked} if unasked else {}),
        **({"estimator": learned.settings} if learned.settings else {}),
    }
    return Manifest(
        format_version=FORMAT_VERSION,
        tiers=log.tiers,
        best_tier=best,
        success=tuple(np.clip(np.nanmean(dial.outcomes, axis=0), 0, 1).tolist()),
        output_tokens=tuple(known.costs.typical_output_tokens.tolist()),
        encoder=encoder,
        default_quality=config.default_quality,
        confidence=config.confidence,
        dial=dial.points,
        promise=promise_statement(dial.points, config.confidence, best, dial.n_prompts, dial.prompts),
        training=training,
        versions=versions(),
        mlflow_run_id=context.tracker.run_id,
        files={},
    )


def _training_data(learned: Learned, known: LogPart, split: Split) -> TrainingData:
    """What stays of the training prompts beside the bundle."""
    embedded = TrainingData.rows_to_embed(known.table.n_prompts)
    return TrainingData(
        prompt_ids=known.table.prompt_ids,
        groups=known.table.groups,
        embedding=known.vectors[embedded],
        embedded=embedded,
        out_of_fold=learned.out_of_fold,
        correct=known.table.correct,
        cost_usd=known.costs.cost_usd,
        others=split if learned.n_trained_on > known.table.n_prompts else None,
    )


def _check_split(log: OutcomeTable, in_training: np.ndarray, in_test: np.ndarray) -> None:
    """Raises LogError where a tier cannot be learned or nothing is held out, before any work is done."""
    n_known, n_tiers = int(in_training.sum()), len(log.tiers)
    if n_known < MIN_PROMPTS or n_tiers < 2:
        raise LogError(
            f"found {n_known} training prompts and {n_tiers} tiers; "
            f"expected at least {MIN_PROMPTS} prompts (300 and more are sensible) and 2 tiers"
        )
    observed = np.isfinite(log.correct)
    if unseen := [tier for tier, seen in zip(log.tiers, observed[in_training].any(axis=0), strict=True) if not seen]:
        raise LogError(f"found no training outcome of {', '.join(unseen)}; log some, or leave it out of tiers.toml")
    n_held_out = int(observed[in_test].any(axis=1).sum())
    if n_held_out < 2:
        raise LogError(
            f"found {n_held_out} prompts with an outcome in the held-out part ({int(in_test.sum())} of "
            f"{log.n_prompts} prompts); expected some hundreds, or no router can be judged"
        )


def _track(result: TrainingResult, source: str, estimated_cost_share: float, context: RunContext) -> None:
    """Settings, facts of the data, and what was measured. source: where the log came from."""
    manifest, evaluation, summary = result.manifest, result.evaluation, result.log.summary
    facts = {**asdict(context.config), **manifest.training}
    facts |= facts.pop("estimator", {})
    facts.pop("never_asked", None)  # Tables do not fit into MLflow's parameters.
    context.tracker.log_params({**facts, "bundle_id": manifest.bundle_id, "tiers": ", ".join(manifest.tiers)})
    metrics = evaluation.metrics | {f"label.{name}": share for name, share in result.label_distribution["all"].items()}
    metrics |= {"rows.quarantined": sum(summary.quarantined.values()), "rows.used": summary.n_used}
    context.tracker.log_metrics({**metrics, "estimated_cost_share": estimated_cost_share})
    read = {"n_rows": summary.n_rows, "n_used": summary.n_used, "n_prompts": summary.n_prompts}
    context.tracker.log_dataset(result.log.digest, source, read)
    context.tracker.log_note("\n\n".join(evaluation.summary))
