"""The report of a bundle: report.json, report.html, and the model card README.md."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from router.bundle.manifest import Manifest
from training.evaluation.result import Evaluation, FullEvaluation
from training.fit.never_asked import assumptions
from training.log.counts import PromptCounts
from training.log.table import OutcomeTable
from training.reports.evaluation_tables import evaluation_tables, label_table, promise_tables
from training.reports.html import page, picture
from training.reports.tables import Table


def write_report(
    folder: Path,
    manifest: Manifest,
    evaluation: Evaluation,
    log: OutcomeTable,
    counts: PromptCounts,
    labels: Mapping[str, Mapping[str, float]],
    pictures: Mapping[str, bytes],
) -> None:
    """Write report.json, report.html and README.md into a bundle's folder.

    labels: of `label_distribution`; pictures: those of `report_figures` as PNG.
    """
    document = {**evaluation.to_json(), "label_distribution": labels, "training": manifest.training}
    (folder / "report.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tables = [*evaluation_tables(evaluation), label_table(labels), *promise_tables(manifest)]
    facts = _facts(manifest, evaluation, log, counts)
    (folder / "report.html").write_text(_html(evaluation, facts, tables, pictures), encoding="utf-8")
    (folder / "README.md").write_text(_model_card(manifest, evaluation, facts, tables), encoding="utf-8")


def _facts(manifest: Manifest, evaluation: Evaluation, log: OutcomeTable, counts: PromptCounts) -> list[str]:
    """What the figures rest on, a sentence each."""
    training = manifest.training
    kind = "that every tier answered" if isinstance(evaluation, FullEvaluation) else "with partial feedback"
    facts = [
        *([training["note"]] if training["note"] else []),
        f"Log: {log.summary}.",
        *([f"Prompts: {counts}."] if isinstance(evaluation, FullEvaluation) else []),
        f"Trained on {training['n_trained_on']:,} prompts; judged on {evaluation.n_prompts:,} others {kind}, split by "
        f"question; {training['n_trees']} trees; encoder {manifest.encoder.name}.",
        *_sample(training),
        *assumptions(training.get("never_asked", {})),
        _meaning(evaluation),
        _promise(manifest),
    ]
    if evaluation.estimated_cost_share > 0:
        facts.append(
            f"The log lacks the cost of {evaluation.estimated_cost_share:.0%} of the judged attempts; "
            "those are estimated from mean answer lengths, so read costs as ratios."
        )
    return facts


def _sample(training: Mapping[str, Any]) -> list[str]:
    """How large the sample was, where the log was too large to be held in one place."""
    if "n_sampled" not in training:
        return []
    return [
        f"The log has {training['n_prompts']:,} prompts. The classifier, where it is part of the estimate, was fitted "
        f"on all training prompts. All else, and every figure here, comes from a sample of {training['n_sampled']:,}."
    ]


def _meaning(evaluation: Evaluation) -> str:
    """How to read the figures."""
    if not isinstance(evaluation, FullEvaluation):
        return (
            "Accuracy and cost are doubly robust off-policy estimates, from the outcome of the tier that was chosen "
            "and the propensity of that choice; in brackets 95 % intervals. Figures that need the outcome of every "
            "tier (curves, AIQ, calibration, baselines) cannot be computed from such a log."
        )
    return (
        "AIQ is the mean accuracy that a policy reaches, alone or mixed with single tiers, over all budgets from the "
        f"cheapest tier's cost to that of {evaluation.best_tier} "
        f"({evaluation.single[evaluation.best_tier][1].value:.4g} USD per 1,000 requests). cost_at_98 is the cost at "
        "98 % of the best tier's accuracy, relative to always asking the best tier. perf_gain is the highest accuracy "
        "of a policy relative to the best tier's, less 1. cost_save is the share of the best tier's cost that is saved "
        "at its full accuracy. "
        "In brackets: 95 % bootstrap intervals over prompts."
    )


def _promise(manifest: Manifest) -> str:
    parts = (manifest.promise[name] for name in ("statement", "assumption", "evidence") if name in manifest.promise)
    return (
        f"The dial's promise. {' '.join(parts)} The table of the promise says about how many such prompts a promise "
        "takes at slack 0: with so many it is made about every second time, with twice as many mostly. More prompts "
        "give more slack, and so save more."
    )


def _html(evaluation: Evaluation, facts: Sequence[str], tables: Sequence[Table], pictures: Mapping[str, bytes]) -> str:
    captions = {
        "cost_quality": "Cost and quality on prompts that training never saw. The title speaks of the dial, which is "
        "the diamond. The line is what the router reaches at any budget, found on these very prompts.",
        "calibration": "Predicted success against the share that was correct. Points on the line are exactly right.",
        "tier_mix": "Where requests go at each quality asked for.",
        "plans": "Plans: ask, look at the answer, go up only where it pays. Points: single tiers.",
        "plan_trees": "Whom plans ask, with shares of all requests; answered: the plan ends there.",
        "net_value": "Net value with worth_usd as the only dial, against the best single tier at each worth.",
    }
    shown = "".join(picture(content, captions[name]) for name, content in pictures.items())
    paragraphs = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in evaluation.summary[1:]) + paragraphs
    return page(
        "Router report", evaluation.summary[0], f"{shown}{paragraphs}{''.join(table.html() for table in tables)}"
    )


def _model_card(manifest: Manifest, evaluation: Evaluation, facts: Sequence[str], tables: Sequence[Table]) -> str:
    use = (
        "```python\nfrom router import Router\n\n"
        'router = Router.load("this folder")\nrouter.route("your prompt", quality=0.98).tier\n```'
    )
    title = f"# Router over {', '.join(manifest.tiers)}"
    sections = [title, *evaluation.summary, use, *facts, *(table.markdown() for table in tables)]
    return "\n\n".join(sections) + "\n"
