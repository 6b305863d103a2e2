"""The training line, from a log to a bundle; read it from top to bottom."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.bundle.bundle import FORMAT_VERSION, Bundle, DialPoint, Manifest
from router.portfolio.tiers import Tier, read_tiers
from training.backend import Backend, backend_at
from training.config import TrainingConfig
from training.dial.dial import calibrate_dial, promise_statement
from training.encoders.embed import embed
from training.encoders.make import encoder_info, make_encoder
from training.errors import LogError
from training.evaluation.evaluate import MIN_COMPLETE_PROMPTS, evaluate_table, logged_choices
from training.evaluation.off_policy import MAX_UNSUPPORTED_SHARE, Overlap
from training.evaluation.result import Evaluation
from training.evaluation.training_data import TrainingData
from training.export.bundle import check_target, draft_bundle
from training.export.parity import Parity, check_parity
from training.export.versions import versions
from training.fit.calibrate import doubly_robust
from training.fit.clusters import PromptClusters
from training.fit.lengths import LengthModel
from training.fit.model import TierModel
from training.fit.success import PARTS, SuccessEstimator
from training.log.costs import AttemptCosts, attempt_costs
from training.log.labels import label_cheapest_correct, label_distribution
from training.log.sources import LogSource
from training.log.split import Split
from training.log.table import OutcomeTable, is_partial
from training.reports.report import report_figures, write_report
from training.tracking import Tracker, default_tracking_uri, tracked_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What a run made and measured.

    selection: out-of-fold AIQ of each target that was tried. label_distribution: per segment.
    n_embedded: prompts whose embedding was not in the cache. encoder_reused: an earlier run had learned it.
    """

    bundle: Path
    manifest: Manifest
    log: OutcomeTable
    label_distribution: dict[str, dict[str, float]]
    evaluation: Evaluation
    parity: Parity
    selection: dict[str, float]
    n_embedded: int
    encoder_reused: bool


def train(
    logs: LogSource | Sequence[LogSource],
    tiers: str | Path,
    out: str | Path,
    config: TrainingConfig | None = None,
    *,
    cluster: str | None = None,
    tracking_uri: str | None = None,
    progress: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> TrainingResult:
    """Train a router on logged outcomes and write its bundle to the folder `out`.

    logs: files, folders, globs or DataFrames in the format of data/README.md. tiers: a tiers.toml.
    cluster: address of a Dask scheduler, such as tcp://host:8786 (extra `distributed`): its workers read the log, which
        need not fit into one machine's memory, and fit the classifier on all of it; all else is fitted and judged here,
        on a sample. Logs and cache must stand on storage that all workers see. None does everything here.
    tracking_uri: of MLflow; None takes a sqlite database beside the bundle, "none" tracks nothing.
    progress: bars on stderr. on_step: told the name of each step that is done.

    Beside the bundle stand `<out>-training.parquet` (what `evaluate` fits its baselines on; no prompt
    text) and, where rows were broken, `<out>-quarantine.parquet`.

    Raises LogError, TierError, ConfigError, EncoderError, ParityError, ClusterError; `out` is then left as it was.
    """
    out, config = Path(out), config or TrainingConfig()
    check_target(out)
    tiers_read, tiers_text = read_tiers(tiers), Path(tiers).read_text(encoding="utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    uri = default_tracking_uri(out) if tracking_uri is None else tracking_uri
    cache = config.cache or out.parent / ".cache"
    with tracked_run(uri, out.name) as tracker, tqdm(desc="train", unit="step", delay=1, disable=not progress) as bar:

        def done(step: str) -> None:
            bar.set_postfix_str(step, refresh=False)
            bar.update()
            logger.info("%s", step)
            on_step(step)

        # One thread for linear algebra: the same bundle on any number of cores, and pools of threads that wait for each
        # other in every small step are many times slower as soon as the machine has other work.
        with backend_at(cluster, config, cache, done) as place, threadpool_limits(1):
            return _run(logs, tiers_read, tiers_text, out, config, cache, place, tracker, done, progress)


def _run(
    logs: LogSource | Sequence[LogSource],
    tiers: tuple[Tier, ...],
    tiers_text: str,
    out: Path,
    config: TrainingConfig,
    cache: Path,
    place: Backend,
    tracker: Tracker,
    done: Callable[[str], None],
    progress: bool,
) -> TrainingResult:
    quarantine = out.with_name(f"{out.name}-quarantine.parquet")
    log = place.ingest(logs, tiers, quarantine, drop_unparsed=config.drop_unparsed)
    done("ingest")
    label = label_cheapest_correct(log.correct, attempt_costs(log, tiers).cost_usd)
    labels = label_distribution(label, log.tiers, log.segments)
    split = Split(config.test_share, config.seed)
    in_test = split.in_test(log.groups)
    in_training = ~in_test & np.isfinite(log.correct).any(axis=1)
    _check_split(log, in_training, in_test)

    encoder, reused = make_encoder(config, log.rows(in_training), cache)
    done("encoder")
    embeddings = embed(encoder, log.prompts, log.prompt_ids, cache, progress=progress)
    done("embed")

    known, vectors = log.rows(in_training), embeddings.vectors[in_training]
    costs = attempt_costs(known, tiers)
    estimator = SuccessEstimator(config.target, config.seed).fit(
        vectors,
        known.correct,
        propensity=known.propensity,
        cost_usd=costs.cost_usd,
        groups=known.groups,
        label_forest=place.label_forest(encoder, tiers, costs.mean_output_tokens),
        on_step=done,
    )
    has_classifier = "cheapest_correct" in PARTS[estimator.target_]
    n_trained_on = place.n_trained_on(known.n_prompts) if has_classifier else known.n_prompts
    lengths = LengthModel.fit(
        estimator.basis_, vectors, known.output_tokens, costs.mean_output_tokens, known.groups, config.seed
    )
    done("lengths")
    outcomes, dial, n_evidence = _outcomes_and_dial(known, costs.cost_usd, estimator.out_of_fold_, config.confidence)
    done("dial")
    clusters = PromptClusters.fit(
        estimator.basis_, vectors, known, outcomes, config.seed, keep_examples=config.keep_examples
    )
    done("clusters")

    model = TierModel(
        estimator.parts_, estimator.weights_, estimator.calibration_, estimator.familiarity_, lengths, clusters
    )
    graph = model.whole(encoder)
    held_out = log.rows(in_test)
    parity = check_parity(model, encoder, graph, held_out.prompts, embeddings.vectors[in_test], config.seed)
    done("parity")
    best = log.tiers[best_tier(outcomes)]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        tiers=log.tiers,
        best_tier=best,
        success=tuple(np.clip(np.nanmean(outcomes, axis=0), 0, 1).tolist()),
        output_tokens=tuple(costs.mean_output_tokens.tolist()),
        encoder=encoder_info(encoder, log, embeddings.n_tokens, in_training),
        default_quality=config.default_quality,
        confidence=config.confidence,
        dial=dial,
        promise=promise_statement(dial, config.confidence, best, n_evidence),
        training={
            "data_digest": log.digest,
            "n_prompts": log.summary.n_prompts,
            "n_trained_on": n_trained_on,
            **({"n_sampled": log.n_prompts} if log.drawn_from else {}),
            "first_timestamp": log.first_timestamp and log.first_timestamp.isoformat(),
            "last_timestamp": log.last_timestamp and log.last_timestamp.isoformat(),
            "target": estimator.target_,
            "n_trees": model.forest.n_trees,
            "seed": config.seed,
            "test_share": config.test_share,
            "note": config.note,
            "estimated_cost_share": costs.estimated_share,
        },
        versions=versions(),
        mlflow_run_id=tracker.run_id,
        files={},
    )
    draft = draft_bundle(out, encoder, graph, tiers_text, clusters.members, manifest)
    try:
        embedded = TrainingData.rows_to_embed(known.n_prompts)
        part = TrainingData(
            prompt_ids=known.prompt_ids,
            groups=known.groups,
            embedding=vectors[embedded],
            embedded=embedded,
            out_of_fold=estimator.out_of_fold_,
            correct=known.correct,
            cost_usd=costs.cost_usd,
            others=split if n_trained_on > known.n_prompts else None,
        )
        evaluation = evaluate_table(
            Bundle.load(draft.folder),
            held_out,
            part,
            vectors=embeddings.vectors[in_test],
            seed=config.seed,
            on_step=done,
        )
        figures = report_figures(evaluation)
        write_report(draft.folder, manifest, evaluation, log, labels, figures)
        manifest = draft.publish()
        part.save(TrainingData.path_of(out), manifest.bundle_id)
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
    _track(tracker, config, manifest, log, labels, costs, evaluation, estimator.selection_)
    tracker.log_figures(figures)
    tracker.log_bundle(out)
    done("done")
    return TrainingResult(
        bundle=out,
        manifest=manifest,
        log=log,
        label_distribution=labels,
        evaluation=evaluation,
        parity=parity,
        selection=estimator.selection_,
        n_embedded=embeddings.n_computed,
        encoder_reused=reused,
    )


def _check_split(log: OutcomeTable, in_training: np.ndarray, in_test: np.ndarray) -> None:
    """Raises LogError where a tier cannot be learned or nothing is held out, before any work is done."""
    observed = np.isfinite(log.correct)
    if unseen := [tier for tier, seen in zip(log.tiers, observed[in_training].any(axis=0), strict=True) if not seen]:
        raise LogError(f"found no training outcome of {', '.join(unseen)}; log some, or leave it out of tiers.toml")
    n_held_out = int(observed[in_test].any(axis=1).sum())
    if n_held_out < 2:
        raise LogError(
            f"found {n_held_out} prompts with an outcome in the held-out part ({int(in_test.sum())} of "
            f"{log.n_prompts} prompts); expected some hundreds, or no router can be judged"
        )


def _outcomes_and_dial(
    known: OutcomeTable, cost_usd: np.ndarray, success: np.ndarray, confidence: float
) -> tuple[np.ndarray, tuple[DialPoint, ...], int]:
    """What tiers and dial are judged by in training, the dial, and how many prompts it rests on.

    Judged by are the logged outcomes, of partial feedback doubly robust ones. success: out of fold, (n_prompts,
    n_tiers). The dial then promises what it says only where all but 1 % of outcomes have a propensity and the log
    carries the value of every tier alone (`Overlap.refusal`); or else on a panel, the prompts of which every tier was
    asked, if these are enough.
    """
    n_complete = int(np.isfinite(known.correct).all(axis=1).sum())
    on_complete = partial(
        calibrate_dial, success, known.correct, confidence, segments=known.segments, asked_at=known.asked_at
    )
    if not is_partial(known.correct):
        return known.correct, on_complete(), n_complete
    has_propensity = np.isfinite(known.propensity)
    share = has_propensity[np.isfinite(known.correct)].mean()
    is_explored = bool(share >= 1 - MAX_UNSUPPORTED_SHARE) and all(
        _is_carried(known, cost_usd, tier) for tier in range(len(known.tiers))
    )
    # Of explored feedback, the rare answer of a fallback says nothing of how its tier was chosen, and is left out.
    correct = np.where(has_propensity, known.correct, np.nan) if is_explored else known.correct
    outcomes = doubly_robust(success, correct, known.propensity)
    if not is_explored and n_complete >= MIN_COMPLETE_PROMPTS:
        return outcomes, on_complete(), n_complete
    largest = float(1 / np.nanmin(known.propensity)) if is_explored else 1.0
    dial = calibrate_dial(
        success,
        outcomes,
        confidence,
        segments=known.segments,
        asked_at=known.asked_at,
        largest=largest,
        promise=is_explored,
    )
    return outcomes, dial, len(outcomes)


def _is_carried(known: OutcomeTable, cost_usd: np.ndarray, tier: int) -> bool:
    """Whether the log says what always asking one tier comes to."""
    choice = np.full(known.n_prompts, tier)
    log = logged_choices(known, cost_usd, choice)
    return Overlap.of(log, np.eye(len(known.tiers))[choice]).refusal is None


def best_tier(correct: np.ndarray) -> int:
    """The tier with the highest accuracy, on the prompts that every tier answered where there are any."""
    full = np.isfinite(correct).all(axis=1)
    return int(np.nanmean(correct[full] if full.any() else correct, axis=0).argmax())


def _track(
    tracker: Tracker,
    config: TrainingConfig,
    manifest: Manifest,
    log: OutcomeTable,
    labels: dict[str, dict[str, float]],
    costs: AttemptCosts,
    evaluation: Evaluation,
    selection: dict[str, float],
) -> None:
    """Settings, facts of the data, and what was measured."""
    facts = {**asdict(config), **manifest.training, "bundle_id": manifest.bundle_id, "tiers": ", ".join(log.tiers)}
    tracker.log_params(facts)
    metrics = {name: figure.value for name, figure in evaluation.router.figures.items()}
    metrics |= {f"baseline.{name}.aiq": result.figures["aiq"].value for name, result in evaluation.baselines.items()}
    metrics |= {f"label.{name}": share for name, share in labels["all"].items()}
    metrics |= {f"ece.{tier}": figures[0].value for tier, figures in evaluation.calibration.items()}
    metrics |= {f"out_of_fold_aiq.{target}": aiq for target, aiq in selection.items()}
    metrics |= {"rows.quarantined": sum(log.summary.quarantined.values()), "rows.used": log.summary.n_used}
    metrics["estimated_cost_share"] = costs.estimated_share
    tracker.log_metrics(metrics)
