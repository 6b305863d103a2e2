"""The pictures of a bundle's report."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.evaluation.dials import dials_text
from training.evaluation.result import Evaluation, FullEvaluation
from training.reports.html import drawn_hull, new_figure
from training.reports.plan_tree import plan_trees_figure

_ROUTER, _BASELINES, _TIERS, _ORACLE, _DIAL = "#0b6e4f", "#8a8f98", "#1f2933", "#c8963e", "#b3361e"
_BASELINE_STYLES = {"knn": "--", "kmeans": ":", "linear": "-."}
_TIER_COLORS = "viridis"
_LEAST_HEIGHT = 0.02  # of the curves, in accuracy: less is noise, and would fill the picture


def report_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """All pictures of the report, by name; empty where the router was judged off-policy."""
    if not isinstance(evaluation, FullEvaluation):
        return {}
    figures = {
        "cost_quality": cost_quality_figure(evaluation),
        "calibration": calibration_figure(evaluation),
        "tier_mix": tier_mix_figure(evaluation),
        "net_value": net_value_figure(evaluation),
    }
    if evaluation.plans:
        figures["plans"] = plans_figure(evaluation)
    if used := [found for found in evaluation.plans.values() if found.asked]:
        figures["plan_trees"] = plan_trees_figure(used, _tier_colors(evaluation))
    return figures


def cost_quality_figure(evaluation: FullEvaluation) -> Figure:
    """Accuracy against cost: the dial as a diamond, the router's curve, the baselines', single tiers and oracle.

    The axis of accuracy shows the curves; a tier or oracle far from them stands at its edge, with its value.
    """
    figure, axes = new_figure(7.2, 4.6)
    singles = np.array([[cost.value, accuracy.value] for accuracy, cost in evaluation.single.values()])
    router_curve = _with_singles(np.array(evaluation.router.curve), singles)
    axes.plot(*router_curve, color=_ROUTER, lw=2.6, label="router, any budget", zorder=4)
    for name, style in _BASELINE_STYLES.items():
        points = np.array(evaluation.baselines[name].curve)
        axes.plot(*_with_singles(points, singles), style, color=_BASELINES, lw=1.3, label=name)
    axes.plot(*_with_singles(np.empty((0, 2)), singles), color=_TIERS, lw=0.9, alpha=0.5, label="mix of single tiers")
    dial = evaluation.chosen
    place = (dial.usd_per_1k.value, dial.accuracy.value)
    label = dials_text(dial.quality, dial.worth_usd).removeprefix("at ")
    axes.scatter(*place, marker="D", s=52, color=_DIAL, zorder=6, label=f"router at {label}")
    lowest, highest = router_curve[1].min(), max(router_curve[1].max(), place[1])
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
    axes.set_title(evaluation.headline.short[0].upper() + evaluation.headline.short[1:], loc="left", fontsize=11)
    axes.margins(x=0.12)
    axes.legend(fontsize=8.5, frameon=False, loc="upper left")
    return figure


def plans_figure(evaluation: FullEvaluation) -> Figure:
    """Accuracy against cost of plans with each check, above direct routing and the best fixed cascade."""
    checks = list(evaluation.plans.values())
    figure = Figure(figsize=(4.8 * len(checks) + 0.6, 3.8), dpi=144, layout="constrained")
    singles = np.array([[cost.value, accuracy.value] for accuracy, cost in evaluation.single.values()])
    for index, found in enumerate(checks):
        axes = figure.add_subplot(1, len(checks), index + 1)
        axes.spines[["top", "right"]].set_visible(False)
        curves = {
            "plans": (found.plans, "-", _ROUTER, 2.4),
            "direct routing": (found.direct, "--", _BASELINES, 1.4),
            "best fixed cascade": (found.fixed_cascade, ":", _BASELINES, 1.6),
        }
        drawn = {name: drawn_hull(np.array(each.curve)) for name, (each, *_) in curves.items()}
        for name, (_, style, color, width) in curves.items():
            axes.plot(*drawn[name], style, color=color, lw=width, label=name)
        axes.scatter(singles[:, 0], singles[:, 1], color=_TIERS, s=22, zorder=5)
        lowest, highest = (end(ys.min() if end is min else ys.max() for _, ys in drawn.values()) for end in (min, max))
        height = max(highest - lowest, _LEAST_HEIGHT)
        axes.set_ylim(lowest - 0.1 * height, highest + 0.15 * height)
        if singles[:, 0].min() > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("${x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("cost, USD per 1,000 requests")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        kind = " (simulated verdicts)" if found.simulated else ""
        axes.set_title(f"{found.check}{kind}", loc="left", fontsize=11)
        if index == 0:
            axes.set_ylabel("accuracy")
            axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    return figure


def calibration_figure(evaluation: FullEvaluation) -> Figure:
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


def tier_mix_figure(evaluation: FullEvaluation) -> Figure:
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


def net_value_figure(evaluation: FullEvaluation) -> Figure:
    """Net value of router and single tiers, less that of the best single tier at each worth, divided by the worth."""
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


def _tier_colors(evaluation: FullEvaluation) -> dict[str, tuple[float, ...]]:
    """The color of each tier in every picture; the cheapest first."""
    by_cost = sorted(evaluation.tiers, key=lambda tier: evaluation.single[tier][1].value)
    colors = mpl.colormaps[_TIER_COLORS](np.linspace(0.9, 0.12, len(by_cost)))
    return {tier: tuple(color) for tier, color in zip(by_cost, colors, strict=True)}


def _with_singles(points: np.ndarray, singles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hull of (cost, accuracy) points, those of single tiers among them."""
    return drawn_hull(np.concatenate([points.reshape(-1, 2), singles]))
