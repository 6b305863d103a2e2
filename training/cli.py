"""The commands that training adds to `broker`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from router.bundle.bundle import Bundle
from router.command import DONE, Command, say
from router.errors import CheckError
from router.extras import install_command
from router.plans.checks import CheckModel
from router.portfolio.tiers import read_tiers
from router.router import Router
from training.audit.audit import audit as run_audit
from training.audit.report import audit_html, audit_text
from training.config import RetrainConfig, TrainingConfig
from training.evaluation.evaluate import evaluate as run_evaluation
from training.evaluation.result import Evaluation, FullEvaluation, OffPolicyEvaluation
from training.fit.never_asked import assumptions
from training.log.ingest import count_attempts, ingest
from training.pipeline import TrainingResult
from training.pipeline import train as run_training
from training.reports.evaluation_tables import evaluation_tables, label_table
from training.reports.tables import Table
from training.retrain import Receipt
from training.retrain import retrain as run_retraining
from training.retrain import rollback as run_rollback
from training.retrain.view import StoreView, receipt_text
from training.tracking import ambient_tracking_uri, default_tracking_uri

DEMO_BUNDLE = Path("models/demo")
AUDIT_QUARANTINE = Path("audit-quarantine.parquet")
DEMO_CHECKS = ["rubric"]
DEMO_PROMPTS = (
    "Good morning! How are you today?",
    "Write a SQL query that returns the three newest orders of each customer.",
    "请用一句话介绍一下这家公司的退货政策。",
    "Five friends sit in a row. Anna is not next to Ben, Carla is left of Dan, and Eva sits at an end. "
    "Prove who sits in the middle, step by step.",
)


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
    say(json.dumps(_result_document(result), ensure_ascii=False) if options.json else _result_text(result))
    return DONE


def _result_document(result: TrainingResult) -> dict[str, object]:
    return {
        "bundle": str(result.bundle),
        "bundle_id": result.manifest.bundle_id,
        "mlflow_run_id": result.manifest.mlflow_run_id,
        "tracking": result.tracking,
        "n_prompts": result.log.summary.n_prompts,
        "log": result.log.summary.to_json(),
        "n_embedded": result.n_embedded,
        "encoder_reused": result.encoder_reused,
        "rows_quarantined": sum(result.log.summary.quarantined.values()),
        "label_distribution": result.label_distribution["all"],
        "never_asked": result.manifest.training.get("never_asked", {}),
        "evaluation": result.evaluation.to_json(),
    }


def _result_text(result: TrainingResult) -> str:
    training = result.manifest.training
    return "\n".join(
        [
            result.evaluation.verdict,
            result.log.summary.lines,
            f"trained on {training['n_trained_on']:,} prompts, judged on {result.evaluation.n_prompts:,} others; "
            f"embedded {result.n_embedded:,} new prompts",
            *assumptions(training.get("never_asked", {})),
            "",
            _tables_text([*evaluation_tables(result.evaluation), label_table(result.label_distribution)]),
            "",
            f"bundle {result.manifest.bundle_id} in {result.bundle}; pictures in {result.bundle / 'report.html'}",
        ]
    )


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
    with tqdm(desc="evaluate", unit="step", delay=1) as bar:

        def done(step: str) -> None:
            bar.set_postfix_str(step, refresh=False)
            bar.update()

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
            on_step=done,
        )
    if options.json:
        document = {**evaluation.to_json(), "log": evaluation.log and evaluation.log.to_json()}
        say(json.dumps(document, ensure_ascii=False))
    else:
        say(_evaluation_text(evaluation))
    return DONE


def _evaluation_text(evaluation: Evaluation) -> str:
    lacking = "an outcome of every tier"
    if isinstance(evaluation, OffPolicyEvaluation):
        lacking = "an outcome with its propensity"
    left_out = f"{evaluation.n_trained_on:,} trained on, {evaluation.n_incomplete:,} without {lacking}"
    if evaluation.n_not_drawn:
        left_out += f", {evaluation.n_not_drawn:,} beyond the sample"
    return "\n".join(
        [
            evaluation.verdict,
            *([evaluation.chosen.text] if isinstance(evaluation, FullEvaluation) else []),
            *([evaluation.log.lines] if evaluation.log else []),
            f"{evaluation.n_prompts:,} prompts judged (left out: {left_out})",
            "",
            _tables_text(evaluation_tables(evaluation)),
        ]
    )


def _tables_text(tables: Sequence[Table]) -> str:
    return "\n\n".join(table.text() for table in tables)


def _sample() -> tuple[Path, Path]:
    """The simulated sample log and its tiers: in the package, or in the checkout's data/."""
    packaged = Path(__file__).parent / "sample"
    folder = packaged if packaged.is_dir() else Path(__file__).parent.parent / "data"
    return folder / "sample-log.parquet", folder / "tiers.toml"


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=DEMO_BUNDLE, help=f"folder of the bundle; default: {DEMO_BUNDLE}")


def _demo(options: argparse.Namespace) -> int:
    log, tiers = _sample()
    say(f"Training on the SIMULATED sample log {log.name}: it shows the line, and says nothing about real models.\n")
    note = (
        "Trained and judged on SIMULATED outcomes: no model was asked anything, and nothing here is about a real one."
    )
    config = TrainingConfig(note=note, keep_examples=True)
    result = run_training(log, tiers, options.out, config, progress=True)
    sys.stderr.flush()
    evaluation = result.evaluation
    say(evaluation.verdict)
    if isinstance(evaluation, FullEvaluation):  # the sample log has the outcome of every tier
        chosen = evaluation.chosen
        say(
            f"At quality {chosen.quality:.2f} it kept {chosen.kept.value:.1%} of {evaluation.best_tier}'s accuracy "
            f"at {chosen.cost_of_best.value:.0%} of its cost, "
            f"on {evaluation.n_prompts:,} simulated prompts it had not seen.\n"
        )
    router = Router.load(options.out)
    for prompt in DEMO_PROMPTS:
        decision = router.route(prompt)
        say(f"> {prompt}\n  {decision.reason} (USD {decision.cost_usd[decision.tier]:.6f})")
    router.prove_plans(DEMO_CHECKS)
    say(f"\nA plan, which looks at answers by the log's simulated check (docs/plans.md):\n> {DEMO_PROMPTS[1]}")
    say("\n".join(f"  {line}" for line in str(router.plan(DEMO_PROMPTS[1], checks=DEMO_CHECKS)).splitlines()))
    say(
        f"\nWhere to look next:\n  {options.out / 'report.html'}   pictures and tables of this run"
        f"\n  {_how_to_serve(options.out)}"
        f'\n  broker route --bundle {options.out} --quality 0.95 --explain "your prompt"'
        f"\n  broker train --logs YOUR_LOG --tiers YOUR_TIERS.toml --out models/NAME   (format: data/README.md)"
        f"\n  {_where_runs_are(options.out)}   every run, with its bundle"
    )
    return DONE


def _how_to_serve(bundle: Path) -> str:
    """How to put the bundle behind an endpoint, or what to install for it."""
    of_bundle = "" if bundle == DEMO_BUNDLE else f" --bundle {shlex.quote(str(bundle))}"
    command = f"broker serve --demo{of_bundle}"
    if find_spec("litellm") is None:
        return f"{install_command('gateway')}, then {command}   ask it over HTTP, without any key"
    return f"{command}   ask it over HTTP: stub providers, no key"


def _where_runs_are(out: Path) -> str:
    """The page of the tracking server, or the command that shows the runs of a database."""
    uri = ambient_tracking_uri() or default_tracking_uri(out)
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


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
demo = Command("the whole line on the simulated sample log", _demo_arguments, _demo)
retrain = Command("train a challenger on what is new, promote it where it is better", _retrain_arguments, _retrain)
store = Command("show a store of `broker retrain`: champion, bundles, what is set aside", _store_arguments, _store)
rollback = Command("put the champion before the present one back", _rollback_arguments, _rollback)
