"""The picture of the plans most used: whom they ask first, and how many requests go on to whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from training.evaluation.plan_result import PlanEvaluation

LEAST_SHARE = 0.02
"""Branches with a smaller share of requests are drawn together."""

_CALLS = ("asked first", "asked second", "asked third")
_GRAY, _TEXT = "#8a8f98", "#1f2933"
_WIDEST = 16.0  # line of all requests, in points
_ROW_INCHES = 0.27

Colors = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Branch:
    """What some requests come to: a tier that is asked, several rare ones together, or the end of the plan.

    share: of all requests. tier: that is asked; None for rare ones and for the end. next: what follows.
    """

    words: str
    share: float
    tier: str | None
    next: tuple[Branch, ...]


def branches(shares: Mapping[tuple[str, ...], float]) -> tuple[Branch, ...]:
    """The tree of the sequences of tiers that plans ask, the most frequent branch first.

    shares: of requests, by sequence; the empty sequence is where a plan ends.
    """
    by_tier: dict[str, dict[tuple[str, ...], float]] = {}
    for tiers, share in shares.items():
        if tiers:
            by_tier.setdefault(tiers[0], {})[tiers[1:]] = share
    found = []
    for tier, rest in by_tier.items():
        is_leaf = set(rest) == {()}
        found.append(Branch(tier, sum(rest.values()), tier, () if is_leaf else branches(rest)))
    found.sort(key=lambda branch: -branch.share)
    rare = [branch for branch in found if branch.share < LEAST_SHARE]
    if len(rare) > 1:
        others = Branch(f"{len(rare)} others", sum(branch.share for branch in rare), None, ())
        found = [*found[: -len(rare)], others]
    if () in shares:
        found.insert(0, Branch("answered", shares[()], None, ()))
    return tuple(found)


def plan_trees_figure(plans: Sequence[PlanEvaluation], colors: Colors) -> Figure:
    """One tree for each check that plans are used with, at least one. colors: of each tier."""
    trees = [branches(found.asked) for found in plans]
    heights = [sum(map(_rows, tree)) * _ROW_INCHES + 0.65 for tree in trees]
    figure = Figure(figsize=(7.2, sum(heights)), dpi=144, layout="constrained")
    panels = figure.add_gridspec(len(plans), 1, height_ratios=heights)
    for index, (found, tree) in enumerate(zip(plans, trees, strict=True)):
        axes = figure.add_subplot(panels[index])
        row = 0.0
        for branch in tree:
            _draw(axes, branch, 0, row, colors)
            row += _rows(branch)
        for call in range(max(map(len, found.asked))):
            axes.text(call, -0.9, _CALLS[call], fontsize=8, color=_GRAY, va="center")
        axes.set(xlim=(-0.05, 3), ylim=(row - 0.4, -1.3))
        axes.set_axis_off()
        kind = ", simulated verdicts" if found.simulated else ""
        axes.set_title(
            f"Whom plans ask at quality {found.default_quality:.2f}, looking at {found.check}{kind}",
            loc="left",
            fontsize=11,
        )
    return figure


def _rows(branch: Branch) -> int:
    return sum(map(_rows, branch.next)) or 1


def _draw(axes: Axes, branch: Branch, call: int, row: float, colors: Colors) -> float:
    """Draw a branch into the rows from `row` on; returns the row where it begins itself."""
    own = row + (_rows(branch) - 1) / 2
    share = "<1%" if branch.share < 0.005 else f"{branch.share:.0%}"
    color = colors[branch.tier] if branch.tier is not None else _GRAY
    axes.plot([call], [own], "o", ms=5, color=color, zorder=3)
    label = axes.text(
        call + 0.04, own, f"{branch.words} {share}", fontsize=8, va="center", zorder=4,
        color=_TEXT if branch.tier is not None else _GRAY,
    )  # fmt: skip
    label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    for each in branch.next:
        there = _draw(axes, each, call + 1, row, colors)
        middle = call + 0.8
        path = Path([(call, own), (middle, own), (middle, there), (call + 1, there)], [1, 4, 4, 4])
        width = max(0.8, _WIDEST * each.share)
        axes.add_patch(PathPatch(path, fill=False, edgecolor=color, alpha=0.35, lw=width, capstyle="butt"))
        row += _rows(each)
    return own
