"""The report of a bundle: pictures, report.html, report.json, and the model card README.md."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from router.bundle.manifest import Manifest
from training.evaluation.metrics import Interval
from training.evaluation.result import Evaluation, OffPolicyResult, dials_text, off_policy_figures
from training.log.table import OutcomeTable
from training.reports.html import drawn_hull, html_table, new_figure, page, picture

_ROUTER, _BASELINES, _TIERS, _ORACLE = "#0b6e4f", "#8a8f98", "#1f2933", "#c8963e"
_BASELINE_STYLES = {"knn": "--", "kmeans": ":", "linear": "-."}
_TIER_COLORS = "viridis"
_LEAST_HEIGHT = 0.02  # of the curves, in accuracy: less is noise, and would fill the picture


# ---- pictures --------------------------------------------------------------------------------------


def report_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """All pictures of the report, by name; none of a router that was judged off-policy."""
    if evaluation.off_policy:
        return {}
    return {
        "cost_quality": cost_quality_figure(evaluation),
        "calibration": calibration_figure(evaluation),
        "tier_mix": tier_mix_figure(evaluation),
        "net_value": net_value_figure(evaluation),
    }


def cost_quality_figure(evaluation: Evaluation) -> Figure:
    """Accuracy against cost: the router's curve above the baselines', single tiers and oracle as points.

    The axis of accuracy shows the curves; a tier or oracle far from them stands at its edge, with its value.
    """
    figure, axes = new_figure(7.2, 4.6)
    singles = np.array([[cost.value, accuracy.value] for accuracy, cost in evaluation.single.values()])
    router_curve = _with_singles(np.array(evaluation.router.curve), singles)
    axes.plot(*router_curve, color=_ROUTER, lw=2.6, label="router", zorder=4)
    for name, style in _BASELINE_STYLES.items():
        points = np.array(evaluation.baselines[name].curve)
        axes.plot(*_with_singles(points, singles), style, color=_BASELINES, lw=1.3, label=name)
    axes.plot(*_with_singles(np.empty((0, 2)), singles), color=_TIERS, lw=0.9, alpha=0.5, label="mix of single tiers")
    lowest, highest = router_curve[1].min(), router_curve[1].max()
    height = max(highest - lowest, _LEAST_HEIGHT)
    bottom, top = lowest - 0.5 * height, highest + 0.5 * height
    axes.set_ylim(bottom, top)
    places = {tier: (*point, "o", _TIERS) for tier, point in zip(evaluation.single, singles.tolist(), strict=True)}
    places["oracle (one lucky run)"] = (*evaluation.baselines["oracle"].curve[0], "*", _ORACLE)
    for name, (cost, accuracy, marker, color) in places.items():
        at = float(np.clip(accuracy, bottom + 0.05 * (top - bottom), top - 0.05 * (top - bottom)))
        beyond = "" if at == accuracy else f" {'↑' if accuracy > at else '↓'} {accuracy:.0%}"
        axes.scatter([cost], [at], marker=marker, color=color, zorder=5, s=28 if marker == "o" else 120)
        axes.annotate(name + beyond, (cost, at), xytext=(7, -11), textcoords="offset points", fontsize=8.5, color=color)
    if singles[:, 0].min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("${x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("cost, USD per 1,000 requests")
    axes.set_ylabel("accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    saving = 1 - evaluation.router.figures["cost_at_98"].value
    axes.set_title(
        f"98 % of {evaluation.best_tier}'s accuracy at {saving * 100:.0f} % less cost", loc="left", fontsize=11
    )
    axes.margins(x=0.12)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
    return figure


def calibration_figure(evaluation: Evaluation) -> Figure:
    """Reliability diagram per tier: predicted success against the share that was correct."""
    n = len(evaluation.tiers)
    columns = min(n, 5)
    lines = -(-n // columns)
    figure = Figure(figsize=(2.5 * columns + 0.6, 2.6 * lines + 0.5), dpi=144, layout="constrained")
    for index, tier in enumerate(evaluation.tiers):
        axes = figure.add_subplot(lines, columns, index + 1)
        predicted, correct, count = np.array(evaluation.reliability[tier]).T
        axes.plot([0, 1], [0, 1], color=_BASELINES, lw=1)
        error = 1.96 * np.sqrt(np.maximum(correct * (1 - correct), 0.01) / count)
        axes.errorbar(predicted, correct, yerr=error, fmt="o", ms=3.5, lw=1, color=_ROUTER)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        ece = evaluation.calibration[tier][0].value
        axes.set_title(f"{tier}\nECE {ece:.3f}, by chance {evaluation.ece_by_chance[tier]:.3f}", fontsize=8.5)
        axes.tick_params(labelsize=8)
        if index % columns == 0:
            axes.set_ylabel("share correct", fontsize=8.5)
        axes.set_xlabel("predicted success", fontsize=8.5)
    return figure


def tier_mix_figure(evaluation: Evaluation) -> Figure:
    """Share of requests per tier against the quality asked for."""
    figure, axes = new_figure(7.2, 3.2)
    qualities = [f"{point.quality:.2f}" for point in evaluation.dial]
    bottom = np.zeros(len(qualities))
    for tier, color in _tier_colors(evaluation).items():
        share = evaluation.shares[:, evaluation.tiers.index(tier)]
        axes.bar(qualities, share, bottom=bottom, color=color, width=0.82, label=tier)
        bottom += share
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("share of requests")
    axes.set_xlabel("quality asked for (share of the best tier's accuracy to keep)")
    axes.set_title("Where requests go; cheapest tier at the bottom", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def net_value_figure(evaluation: Evaluation) -> Figure:
    """Net value of router and single tiers, less that of the best single tier at each worth, divided by the worth."""
    assert evaluation.net_value is not None
    found = evaluation.net_value
    figure, axes = new_figure(7.2, 3.6)
    worth, best = np.array(found.worth_usd)[1:], np.array(found.best_single)[1:]

    def points(values: Sequence[float]) -> np.ndarray:
        return np.asarray((np.array(values)[1:] - best) / (10 * worth))

    for tier, color in _tier_colors(evaluation).items():
        axes.plot(worth, points(found.single[tier]), color=color, lw=1.4, label=f"always {tier}")
    axes.plot(worth, points(found.router), color=_ROUTER, lw=2.6, label="router", zorder=4)
    axes.axhline(0, color=_TIERS, lw=0.8, alpha=0.5)
    changes = [change.worth_usd for change in found.break_even if change.worth_usd > 0]
    for change in changes:
        axes.axvline(change, color=_BASELINES, lw=0.8, ls=":")
    if changes:
        axes.set_xlim(max(worth[0], min(changes) / 30), min(worth[-1], 100 * max(changes)))
    top = max(float(points(found.router).max()), 1.0)
    axes.set_ylim(-2 * top, 1.25 * top)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("${x:g}")
    axes.set_xlabel("worth of a correct answer (dotted: where the best single tier changes)")
    axes.set_ylabel("points of accuracy")
    axes.set_title("Net value over the best single tier, as accuracy it is worth", loc="left", fontsize=11)
    axes.legend(fontsize=8.5, frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


def _tier_colors(evaluation: Evaluation) -> dict[str, tuple[float, ...]]:
    """The color of each tier in every picture; the cheapest first."""
    by_cost = sorted(evaluation.tiers, key=lambda tier: evaluation.single[tier][1].value)
    colors = mpl.colormaps[_TIER_COLORS](np.linspace(0.9, 0.12, len(by_cost)))
    return {tier: tuple(color) for tier, color in zip(by_cost, colors, strict=True)}


def _with_singles(points: np.ndarray, singles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hull of (cost, accuracy) points, those of single tiers among them."""
    return drawn_hull(np.concatenate([points.reshape(-1, 2), singles]))


# ---- files -----------------------------------------------------------------------------------------


def write_report(
    folder: Path,
    manifest: Manifest,
    evaluation: Evaluation,
    log: OutcomeTable,
    labels: Mapping[str, Mapping[str, float]],
    figures: Mapping[str, Figure],
) -> None:
    """Write report.json, report.html and README.md into a bundle's folder."""
    document = {**evaluation.to_json(), "label_distribution": labels, "training": manifest.training}
    (folder / "report.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tables = report_tables(evaluation, labels) | _promise_tables(manifest)
    (folder / "report.html").write_text(_html(manifest, evaluation, log, tables, figures), encoding="utf-8")
    (folder / "README.md").write_text(_model_card(manifest, evaluation, log, tables), encoding="utf-8")


def report_tables(
    evaluation: Evaluation, labels: Mapping[str, Mapping[str, float]] | None
) -> dict[str, tuple[Sequence[str], list[Sequence[str]]]]:
    """Every table of the report: title to (header, rows)."""
    tables = _off_policy_table(evaluation.off_policy) if evaluation.off_policy else _figure_tables(evaluation)
    if labels is not None:
        tables["Cheapest-correct label"] = (
            ["segment", *labels["all"]],
            [[segment, *(f"{share:.1%}" for share in shares.values())] for segment, shares in labels.items()],
        )
    return tables


_Tables = dict[str, tuple[Sequence[str], list[Sequence[str]]]]


def _promise_tables(manifest: Manifest) -> _Tables:
    """What is promised, what it would take, and how far the promise goes within segments."""
    header: Sequence[str] = ["quality", "promised", "prompts that carry a promise", "kept at least"]
    rows: list[Sequence[str]] = [
        [f"{point.quality:.2f}", "yes" if point.promised else "no",
         f"about {point.n_needed:,}" if point.n_needed else "cannot be said", f"{point.kept:.3f}"]
        for point in manifest.dial
    ]  # fmt: skip
    tables: _Tables = {"The promise": (header, rows)}
    if segments := sorted(manifest.dial[0].segments):
        tables["Accuracy kept at least, within segments, by quality"] = (
            ["segment", *(f"{point.quality:.2f}" for point in manifest.dial)],
            [[name, *(f"{point.segments[name]:.3f}" for point in manifest.dial)] for name in segments],
        )
    return tables


def _off_policy_table(found: OffPolicyResult) -> _Tables:
    """What the log says of router and single tiers; no table where it says nothing."""
    if found.router is None:
        return {}
    reports = {f"router {dials_text(found)}": found.router}
    reports |= {f"always {tier}": report for tier, report in found.single.items()}
    return {
        "Off-policy": (
            ["policy", "accuracy", "USD per 1,000 requests", "effective sample size", "not judged because"],
            [
                [name, *map(_cell, off_policy_figures(report)), f"{report.effective_sample_size:,.0f}",
                 report.refused or ""]
                for name, report in reports.items()
            ],
        )
    }  # fmt: skip


def _figure_tables(evaluation: Evaluation) -> _Tables:
    policies = {"router": evaluation.router, **evaluation.baselines}
    names = [name for name in ("aiq", "perf_gain", "cost_save", "cost_at_98", "cost_at_95", "apgr", "cpt50", "cpt80")
             if name in evaluation.router.figures]  # fmt: skip
    tables: _Tables = {
        "Router and baselines": (
            ["policy", *names],
            [[name, *(_cell(result.figures.get(figure)) for figure in names)] for name, result in policies.items()],
        ),
        "Single tiers": (
            ["tier", "accuracy", "USD per 1,000 requests", "USD per 1,000 correct answers",
             "output tokens per correct answer"],
            [
                [tier, _cell(accuracy), _cell(cost), _cell(evaluation.usd_per_correct[tier].times(1000)),
                 _cell(evaluation.output_tokens_per_correct.get(tier))]
                for tier, (accuracy, cost) in evaluation.single.items()
            ],
        ),
        "Estimates": (
            ["tier", "ECE of success", "ECE by chance", "Brier score", "predicted / measured cost",
             "log error of output tokens", "of the tier's mean"],
            [
                [tier, _cell(evaluation.calibration[tier][0]), f"{evaluation.ece_by_chance[tier]:.3f}",
                 _cell(evaluation.calibration[tier][1]), _cell(evaluation.cost_ratio.get(tier)),
                 *(f"{error:.3f}" for error in evaluation.length_log_error.get(tier, ()))]
                for tier in evaluation.tiers
            ],
        ),
        "Quality dial": (
            ["quality", "slack", "promised", "accuracy kept", "cost of always-best", "USD per 1,000 requests",
             "USD per 1,000 correct answers", "output tokens per correct answer", ""],
            [
                [f"{point.quality:.2f}", f"{point.slack:.3f}", "yes" if point.promised else "no",
                 _cell(point.kept), _cell(point.cost_of_best), _cell(point.usd_per_1k),
                 _cell(point.usd_per_correct.times(1000)), _cell(point.output_tokens_per_correct),
                 "costs more than it saves" if point.cost_of_best.value > 1 else ""]
                for point in evaluation.dial
            ],
        ),
    }  # fmt: skip
    if evaluation.net_value and evaluation.net_value.break_even:
        tables["Single tiers by the worth of a correct answer"] = (
            ["worth in USD, from", "best single tier"],
            [
                ["0", evaluation.net_value.break_even[0].cheaper],
                *([f"{change.worth_usd:.4g}", change.dearer] for change in evaluation.net_value.break_even),
            ],
        )
    if evaluation.segments:
        tables["Segments (AIQ)"] = (
            ["segment", "prompts", "router", "knn", "kmeans", "linear", "mix of single tiers"],
            [
                [name, f"{entry['n_prompts']:,}", f"{entry['router']['aiq']['value']:.3f}"]
                + [
                    f"{entry['baselines'][rival]['aiq']['value']:.3f}"
                    for rival in ("knn", "kmeans", "linear", "random")
                ]
                for name, entry in evaluation.segments.items()
            ],
        )
    return tables


def _cell(figure: Interval | None) -> str:
    if figure is None:
        return ""
    digits = 3 if abs(figure.value) < 10 else 2 if abs(figure.value) < 100 else 0
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def _facts(manifest: Manifest, evaluation: Evaluation, log: OutcomeTable) -> list[str]:
    """What the figures rest on, a sentence each."""
    training = manifest.training
    facts = [
        *([training["note"]] if training["note"] else []),
        f"Log: {log.summary}.",
        f"Trained on {training['n_trained_on']:,} prompts; judged on {evaluation.n_prompts:,} others "
        f"{'with partial feedback' if evaluation.off_policy else 'that every tier answered'}, split by question; "
        f"{training['n_trees']} trees; encoder {manifest.encoder.name}.",
        *_sample(training),
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
    """What of the log was held in one place, where that was not all of it."""
    if "n_sampled" not in training:
        return []
    return [
        f"The log has {training['n_prompts']:,} prompts. Its classifier was fitted on all training prompts where it is "
        f"part of the estimate; all else, and every figure here, comes from a sample of {training['n_sampled']:,}."
    ]


def _meaning(evaluation: Evaluation) -> str:
    """What the figures are."""
    if evaluation.off_policy:
        return (
            "Accuracy and cost are doubly robust off-policy estimates, from the outcome of the tier that was chosen "
            "and the propensity of that choice; in brackets 95 % intervals. Figures that need the outcome of every "
            "tier (curves, AIQ, calibration, baselines) cannot be had from such a log."
        )
    return (
        f"AIQ is the mean accuracy on the hull of policy and single tiers, over the cost from the cheapest tier's to "
        f"{evaluation.best_tier}'s ({evaluation.single[evaluation.best_tier][1].value:.4g} USD per 1,000 requests). "
        "cost_at_98 is the cost relative to always asking the best tier at 98 % of its accuracy. "
        "In brackets: 95 % bootstrap interval over prompts."
    )


def _promise(manifest: Manifest) -> str:
    parts = (manifest.promise[name] for name in ("statement", "assumption", "evidence") if name in manifest.promise)
    return f"The dial's promise. {' '.join(parts)}"


def _html(
    manifest: Manifest,
    evaluation: Evaluation,
    log: OutcomeTable,
    tables: Mapping[str, tuple[Sequence[str], list[Sequence[str]]]],
    figures: Mapping[str, Figure],
) -> str:
    captions = {
        "cost_quality": "Cost and quality on prompts that training never saw.",
        "calibration": "Predicted success against what happened; on the line is right.",
        "tier_mix": "What the quality dial does.",
        "net_value": "What worth_usd as the only dial brings, against the best single tier at each worth.",
    }
    pictures = "".join(picture(figure, captions[name]) for name, figure in figures.items())
    facts = "".join(f"<p>{html.escape(fact)}</p>" for fact in _facts(manifest, evaluation, log))
    sections = "".join(f"<h2>{html.escape(title)}</h2>{html_table(*table)}" for title, table in tables.items())
    return page("Router report", evaluation.verdict, f"{pictures}{facts}{sections}")


def _model_card(
    manifest: Manifest,
    evaluation: Evaluation,
    log: OutcomeTable,
    tables: Mapping[str, tuple[Sequence[str], list[Sequence[str]]]],
) -> str:
    def table(header: Sequence[str], rows: list[Sequence[str]]) -> str:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    sections = "\n\n".join(f"## {title}\n\n{table(*content)}" for title, content in tables.items())
    facts = "\n\n".join(_facts(manifest, evaluation, log))
    use = (
        "```python\nfrom router import Router\n\n"
        'router = Router.load("this folder")\nrouter.route("your prompt", quality=0.98).tier\n```'
    )
    return f"# Router over {', '.join(manifest.tiers)}\n\n{evaluation.verdict}\n\n{use}\n\n{facts}\n\n{sections}\n"
