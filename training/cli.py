"""The commands that training adds to `broker`."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from router.bundle.bundle import Bundle
from router.command import DONE, Command, say
from router.errors import CheckError
from router.plans.checks import CheckModel
from router.portfolio.tiers import read_tiers
from training.audit.audit import audit as run_audit
from training.audit.report import audit_html, audit_text
from training.config import RetrainConfig, TrainingConfig
from training.demo import demo_arguments, run_demo
from training.evaluation.evaluate import evaluate as run_evaluation
from training.log.ingest import count_attempts, ingest
from training.pipeline import TrainingResult
from training.pipeline import train as run_training
from training.progress import EVALUATION_STEPS, StepBar
from training.reports.terminal import evaluation_text, training_text
from training.retrain import Receipt
from training.retrain import retrain as run_retraining
from training.retrain import rollback as run_rollback
from training.retrain.view import StoreView, receipt_text

AUDIT_QUARANTINE = Path("audit-quarantine.parquet")
_ENCODERS = "static, minilm, or a sentence-transformers name or path"


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logs", nargs="+", required=True, help="outcome logs: files, folders or globs")
    parser.add_argument("--tiers", required=True, type=Path, help="tiers.toml")
    parser.add_argument("--out", required=True, type=Path, help="folder of the bundle, for example models/NAME")
    parser.add_argument("--encoder", default="static", help=_ENCODERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--default-quality", type=float, default=0.98, help="of a request without dials")
    parser.add_argument("--drop-unparsed", action="store_true", help="treat truncated generations as unobserved")
    _examples_argument(parser)
    map_argument(parser)
    parser.add_argument("--note", default="", help="stands in report and manifest, for example what the log is")
    parser.add_argument(
        "--cache", type=Path, help="folder of embeddings and encoders; default: .cache beside the bundle"
    )
    parser.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="of a Dask scheduler, for example tcp://host:8786, whose workers read the log",
    )
    _tracking_argument(parser, "mlflow.db beside the bundle")
    parser.add_argument("--register-as", metavar="MODEL", help="make the bundle a version of this model in MLflow")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")


def _tracking_argument(parser: argparse.ArgumentParser, default: str) -> None:
    help = f'of MLflow; default: the environment\'s MLFLOW_TRACKING_URI, else {default}; "none" tracks nothing'
    parser.add_argument("--tracking-uri", help=help)


def _examples_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-examples", action="store_true", help="store some of the log's prompts in the bundle, for explanations"
    )


def map_argument(parser: argparse.ArgumentParser) -> None:
    """The option --map of all commands that read logs."""
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        dest="maps",
        metavar="COLUMN=SOURCE",
        help="make a column of the log from another: model=response_model takes its name, correct=score/5 divides, "
        "correct=thumb:1 is right where thumb is 1; may be given again",
    )


def _quarantine_argument(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--quarantine", type=Path, help=f"Parquet file for broken rows; default: {default}")


def _writable(quarantine: Path) -> Path | None:
    """The file that a command chose by itself; None where it cannot write there."""
    folder = quarantine.parent
    return quarantine if os.access(folder, os.W_OK) else None


def _train(options: argparse.Namespace) -> int:
    config = TrainingConfig(
        encoder=options.encoder,
        seed=options.seed,
        default_quality=options.default_quality,
        drop_unparsed=options.drop_unparsed,
        maps=tuple(options.maps),
        keep_examples=options.keep_examples,
        note=options.note,
        cache=options.cache,
    )
    result = run_training(
        options.logs,
        options.tiers,
        options.out,
        config,
        cluster=options.cluster,
        tracking_uri=options.tracking_uri,
        register_as=options.register_as,
        progress=True,
    )
    say(json.dumps(_result_document(result), ensure_ascii=False) if options.json else training_text(result))
    return DONE


def _result_document(result: TrainingResult) -> dict[str, object]:
    return {
        "bundle": str(result.bundle),
        "bundle_id": result.manifest.bundle_id,
        "mlflow_run_id": result.manifest.mlflow_run_id,
        "tracking": result.tracking,
        "n_prompts": result.log.summary.n_prompts,
        "prompts": result.counts.to_json(),
        "log": result.log.summary.to_json(),
        "n_embedded": result.n_embedded,
        "encoder_reused": result.encoder_reused,
        "rows_quarantined": sum(result.log.summary.quarantined.values()),
        "label_distribution": result.label_distribution["all"],
        "never_asked": result.manifest.training.get("never_asked", {}),
        "evaluation": result.evaluation.to_json(),
    }


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, type=Path, help="folder of a bundle")
    parser.add_argument("--logs", nargs="+", required=True, help="outcome logs: files, folders or globs")
    parser.add_argument("--quality", type=float, help="judge this dial; default: the bundle's default quality")
    parser.add_argument("--worth-usd", type=float, help="judge this dial: what a correct answer is worth, in USD")
    parser.add_argument("--prices", type=Path, help="replay the log at these prices, in the format of tiers.toml")
    parser.add_argument(
        "--price-factor",
        action="append",
        type=_price_factor,
        default=[],
        metavar="PROVIDER=FACTOR",
        help="replay the log with a provider's prices multiplied, for example alibaba=0.1; may be given again",
    )
    parser.add_argument(
        "--simulate-check",
        action="append",
        default=[],
        dest="simulated",
        metavar="NAME:sensitivity=S,specificity=T[,usd=C]",
        help="judge plans with a check whose verdicts are drawn with these figures; may be given again",
    )
    map_argument(parser)
    _quarantine_argument(parser, "NAME-evaluation-quarantine.parquet beside the bundle")
    parser.add_argument("--tables", action="store_true", help="print every table, not only the first")
    parser.add_argument("--json", action="store_true", help="print the evaluation as one JSON document")


def _price_factor(text: str) -> tuple[str, float]:
    provider, equals, factor = text.rpartition("=")
    try:
        if equals and provider:
            return provider, float(factor)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"found {text!r}; expected PROVIDER=FACTOR, for example alibaba=0.1")


def _evaluate(options: argparse.Namespace) -> int:
    bundle = options.bundle.resolve()
    loaded = Bundle.load(options.bundle)
    n_tiers = len(loaded.manifest.tiers)
    if options.simulated and loaded.planner is None:
        raise CheckError(f"{options.bundle} has learned no plans, so none can use a check; train it again")
    simulated = [CheckModel.declared_by(text, n_tiers) for text in options.simulated]
    beside = bundle.with_name(f"{bundle.name}-evaluation-quarantine.parquet")
    with StepBar("evaluate", EVALUATION_STEPS) as bar:
        evaluation = run_evaluation(
            loaded,
            options.logs,
            prices=options.prices,
            price_factors=dict(options.price_factor),
            quality=options.quality,
            worth_usd=options.worth_usd,
            maps=options.maps,
            quarantine=options.quarantine or _writable(beside),
            simulated_checks=simulated,
            on_step=bar.done,
        )
    if options.json:
        document = {**evaluation.to_json(), "log": evaluation.log and evaluation.log.to_json()}
        say(json.dumps(document, ensure_ascii=False))
    else:
        say(evaluation_text(evaluation, every_table=options.tables))
    return DONE


def _retrain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logs", nargs="+", required=True, help="all outcome logs to train on, best one file a day")
    parser.add_argument("--tiers", required=True, type=Path, help="tiers.toml, with today's prices")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store; services follow STORE/champion")
    parser.add_argument("--encoder", default="static", help=_ENCODERS)
    parser.add_argument("--default-quality", type=float, default=0.98, help="of a request without dials")
    parser.add_argument("--drop-unparsed", action="store_true", help="treat truncated generations as unobserved")
    map_argument(parser)
    _examples_argument(parser)
    parser.add_argument("--worth-usd", type=float, help="what a correct answer is worth; default: what it costs")
    parser.add_argument(
        "--quality-margin",
        type=float,
        help="tolerated loss of quality, a share; default: what --default-quality gives away",
    )
    parser.add_argument(
        "--promotion-confidence",
        type=float,
        default=RetrainConfig.promotion_confidence,
        help="with which a challenger's net value must be better, one-sided; default: %(default)s",
    )
    parser.add_argument(
        "--accept-change",
        action="append",
        default=[],
        metavar="TIER[@FILE]",
        help="the tier really changed: take the log files that were set aside for it, from this file on (default: the "
        "first), and expect of it from then on what they show; may be given again",
    )
    parser.add_argument("--model-name", default=RetrainConfig.model_name, help="in MLflow's model registry")
    _tracking_argument(parser, "mlflow.db in the store")
    parser.add_argument("--json", action="store_true", help="print the receipt as one JSON document")


def retrain_config(options: argparse.Namespace) -> RetrainConfig:
    """The settings that the options of `broker retrain` stand for."""
    return RetrainConfig(
        training=TrainingConfig(
            encoder=options.encoder,
            default_quality=options.default_quality,
            drop_unparsed=options.drop_unparsed,
            maps=tuple(options.maps),
            keep_examples=options.keep_examples,
        ),
        worth_usd=options.worth_usd,
        quality_margin=options.quality_margin,
        promotion_confidence=options.promotion_confidence,
        accept_change=tuple(options.accept_change),
        model_name=options.model_name,
    )


def _retrain(options: argparse.Namespace) -> int:
    config = retrain_config(options)
    receipt = run_retraining(
        options.logs, options.tiers, options.store, config, tracking_uri=options.tracking_uri, progress=True
    )
    _say_receipt(receipt, as_json=options.json)
    return DONE


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--model-name", default=RetrainConfig.model_name, help="in MLflow's model registry")
    _tracking_argument(parser, "mlflow.db in the store, where there is one")
    parser.add_argument("--json", action="store_true", help="print the receipt as one JSON document")


def _rollback(options: argparse.Namespace) -> int:
    receipt = run_rollback(options.store, tracking_uri=options.tracking_uri, model_name=options.model_name)
    _say_receipt(receipt, as_json=options.json)
    return DONE


def _say_receipt(receipt: Receipt, *, as_json: bool) -> None:
    say(json.dumps(receipt.to_json(), ensure_ascii=False) if as_json else receipt_text(receipt))


def _store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, metavar="STORE", help="folder of the store")
    parser.add_argument("--json", action="store_true", help="print the view as one JSON document")


def _store(options: argparse.Namespace) -> int:
    view = StoreView.of(options.store)
    say(json.dumps(view.to_json(), ensure_ascii=False) if options.json else view.text())
    return DONE


def _audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logs", nargs="+", required=True, help="outcome logs: files, folders or globs")
    parser.add_argument("--tiers", required=True, type=Path, help="tiers.toml")
    parser.add_argument("--html", type=Path, help="write one self-contained page with pictures here")
    map_argument(parser)
    _quarantine_argument(parser, "PAGE-quarantine.parquet beside --html, else audit-quarantine.parquet here")
    parser.add_argument("--json", action="store_true", help="print the audit as one JSON document")


def _audit(options: argparse.Namespace) -> int:
    tiers = read_tiers(options.tiers)
    beside = options.html.with_name(f"{options.html.stem}-quarantine.parquet") if options.html else AUDIT_QUARANTINE
    table = ingest(options.logs, tiers, maps=options.maps, quarantine=options.quarantine or _writable(beside))
    attempts = count_attempts(options.logs, tiers, maps=options.maps) if table.summary.repeated else None
    found = run_audit(table, tiers, attempts)
    if options.html:
        options.html.write_text(audit_html(found), encoding="utf-8")
    say(json.dumps(found.to_json(), ensure_ascii=False) if options.json else audit_text(found))
    return DONE


audit = Command("say whether routing can pay, from outcome logs alone", _audit_arguments, _audit)
train = Command("learn a router from outcome logs and write its bundle", _train_arguments, _train)
evaluate = Command("judge a bundle on logged outcomes it was not trained on", _evaluate_arguments, _evaluate)
demo = Command("the whole line on the simulated sample log", demo_arguments, run_demo)
retrain = Command("train a challenger on what is new, promote it where it is better", _retrain_arguments, _retrain)
store = Command("show a store of `broker retrain`: champion, bundles, what is set aside", _store_arguments, _store)
rollback = Command("put the champion before the present one back", _rollback_arguments, _rollback)
