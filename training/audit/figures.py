"""The pictures of an audit."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.audit.result import Audit
from training.dial.dial import COMPLETE_PROMPTS
from training.reports.html import drawn_hull, new_figure

_ROUTER, _TIERS, _ORACLE, _NEUTRAL = "#0b6e4f", "#1f2933", "#c8963e", "#8a8f98"


def audit_figures(audit: Audit) -> dict[str, Figure]:
    """All pictures by name; none where no comparison is possible."""
    if audit.per_tier is None:
        return {}
    return {"cost_accuracy": _cost_accuracy(audit), "errors": _errors(audit), "needed": _needed(audit)}


def _cost_accuracy(audit: Audit) -> Figure:
    figure, axes = new_figure(7.2, 4.6)
    assert audit.per_tier and audit.ceiling
    points = np.array([[tier.usd_per_1k.value, tier.accuracy.value] for tier in audit.per_tier.values()])
    frontier = np.array(audit.frontier)
    for line, color, label in (
        (frontier, _ROUTER, "knowing each prompt's difficulty"),
        (points, _TIERS, "mix of single tiers"),
    ):
        axes.plot(*drawn_hull(line), color=color, label=label, lw=2 if color == _ROUTER else 1)
    axes.scatter(points[:, 0], points[:, 1], color=_TIERS, s=28, zorder=5)
    for name, point in zip(audit.per_tier, points, strict=True):
        axes.annotate(name, point, xytext=(5, -10), textcoords="offset points", fontsize=8)
    axes.axhline(audit.ceiling.estimate.value, color=_ROUTER, ls="--", lw=1, label="ceiling, without luck")
    axes.axhline(audit.ceiling.high, color=_ORACLE, ls=":", label="oracle (one lucky run)")
    if points[:, 0].min() > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("${x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set(xlabel="cost, USD per 1,000 requests", ylabel="accuracy")
    axes.margins(x=0.15, y=0.1)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure


def _errors(audit: Audit) -> Figure:
    n = len(audit.tiers)
    figure, axes = new_figure(3.2 + 0.55 * n, 2.2 + 0.45 * n)
    place = {tier: k for k, tier in enumerate(audit.tiers)}
    phi = np.eye(n)
    for (first, second), pair in (audit.pairs or {}).items():
        phi[place[first], place[second]] = phi[place[second], place[first]] = pair.phi
    axes.imshow(phi, vmin=-1, vmax=1, cmap="BrBG")
    for (row, column), value in np.ndenumerate(phi):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                  color="white" if abs(value) > 0.7 else _TIERS)  # fmt: skip
    axes.set_xticks(range(n), audit.tiers, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(n), audit.tiers, fontsize=8)
    return figure


def _needed(audit: Audit) -> Figure:
    figure, axes = new_figure(6.4, 2.6)
    known = {f"{quality:g}": n for quality, n in (audit.needed or {}).items() if n.like_best and n.like_substitute}
    least, most = ([getattr(n, name) for n in known.values()] for name in ("like_best", "like_substitute"))
    axes.hlines(list(known), least, most, color=_NEUTRAL, lw=2, zorder=1)
    axes.scatter(least, list(known), color=_TIERS, s=28, label="a router like the best tier")
    axes.scatter(most, list(known), color=_NEUTRAL, s=28, label="as accurate, right elsewhere")
    for count, name in (*zip(least, known, strict=True), *zip(most, known, strict=True)):
        axes.annotate(f"{count:,}", (count, name), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
    axes.axvline(max(1, audit.n_training), color=_ROUTER, label=f"this log: {audit.n_training:,}")
    axes.set(xlabel=COMPLETE_PROMPTS, ylabel="quality promised")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.15, y=0.2)
    axes.legend(fontsize=8, frameon=False)
    return figure
