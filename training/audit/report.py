"""An audit as a page in the terminal and as a self-contained HTML page with pictures."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from training.audit.audit import MIN_LOSS, Audit
from training.evaluation.metrics import Interval
from training.reports.html import drawn_hull, html_table, new_figure, page, picture

_WIDTH = 110
_ROUTER, _TIERS, _ORACLE, _NEUTRAL = "#0b6e4f", "#1f2933", "#c8963e", "#8a8f98"
_MAX_PAIRS = 6  # in the terminal; the page has all

_Table = tuple[Sequence[str], Sequence[Sequence[str]]]
_MAX_NAME = 20


def audit_text(audit: Audit) -> str:
    """The audit in columns, the verdict first; about 50 lines of 110 columns."""
    blocks = [textwrap.fill(audit.verdict, _WIDTH)]
    for title, (header, rows) in audit_tables(audit).items():
        shown, rest = (rows[:_MAX_PAIRS], len(rows) - _MAX_PAIRS) if title == "Pairs" else (rows, 0)
        shown = [[_short(cell) for cell in row] for row in shown]
        widths = [max(len(line[column]) for line in (header, *shown)) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (header, *shown)
        ]
        more = [f"and {rest} more, less alike"] if rest > 0 else []
        blocks.append("\n".join([title.upper(), *lines, *more]))
    blocks.append("\n".join(textwrap.fill(fact, _WIDTH) for fact in audit_facts(audit)))
    return "\n\n".join(blocks)


def audit_html(audit: Audit) -> str:
    """The audit as one HTML document."""
    captions = {
        "cost_accuracy": "Single tiers, their mixtures, a router that knows each prompt's difficulty, ceiling, oracle.",
        "errors": "Correlation of errors: tiers that fail together are one model.",
        "needed": "Complete prompts that a promise of quality takes.",
    }
    pictures = "".join(picture(figure, captions[name]) for name, figure in audit_figures(audit).items())
    facts = "".join(f"<p>{html.escape(fact)}</p>" for fact in audit_facts(audit))
    tables = "".join(
        f"<h2>{html.escape(title)}</h2>{html_table(*table)}" for title, table in audit_tables(audit).items()
    )
    return page("Routing audit", audit.verdict, f"{pictures}{facts}{tables}")


def audit_tables(audit: Audit) -> dict[str, _Table]:
    """Title to (header, rows)."""
    if audit.per_tier is None or audit.pairs is None or audit.needed is None:
        accuracy = audit.observed_accuracy
        rows = [
            [tier, f"{n:,}", "" if accuracy[tier] is None else f"{accuracy[tier]:.1%}"]
            for tier, n in audit.n_outcomes.items()
        ]
        return {"Tiers, each on its own prompts (not comparable)": (["tier", "outcomes", "accuracy"], rows)}
    tiers = [
        [name, f"{tier.n_outcomes:,}", _percent(tier.accuracy), _usd(tier.usd_per_1k),
         f"{tier.usd_per_correct.value * 1000:.3g}", _number(tier.output_tokens_per_correct),
         f"{tier.only_right.value:.1%}", f"{tier.cheapest_correct:.1%}", "yes" if tier.pays else "never"]
        for name, tier in audit.per_tier.items()
    ]  # fmt: skip
    pairs = [
        [f"{first} + {second}", f"{pair.both_right:.1%}", f"{pair.one_right:.1%}", f"{pair.none_right:.1%}",
         f"{pair.phi:.2f}"]
        for (first, second), pair in sorted(audit.pairs.items(), key=lambda entry: -entry[1].phi)
    ]  # fmt: skip
    header = ["tier", "outcomes", "accuracy", "USD/1k", "$/1k right", "tok/right", "only it", "cheapest", "pays"]
    return {
        "Tiers": (header, tiers),
        "Pairs": (["pair", "both right", "one right", "none right", "error correlation"], pairs),
        "Cost relative to always asking the best tier": (
            ["accuracy kept", "mix of single tiers", "knowing each prompt's difficulty"],
            [
                [f"{money.quality:.0%}", _percent(money.mix_of_singles), _percent(money.knowing_difficulty)]
                for money in audit.money
            ],
        ),
        "Complete prompts needed for a promise": (
            [f"quality {quality:g}" for quality in audit.needed],
            [[_number(n) if np.isfinite(n) else "no number is enough" for n in audit.needed.values()]],
        ),
    }


def audit_facts(audit: Audit) -> list[str]:
    """What the figures mean and rest on, a sentence or two each."""
    counted = f"{audit.n_complete:,} of {audit.n_prompts:,} prompts were answered by every tier"
    if audit.ceiling is None or audit.oracle is None or audit.effective_models is None:
        return [f"{counted}: which tier is better on which prompt cannot be said."]
    ceiling = audit.ceiling
    facts = [
        f"{counted}; all but the outcomes per tier is counted on these. Brackets: 95 % bootstrap.",
        f"Oracle {_percent(audit.oracle)}; luck and shared difficulty alone would give an oracle of "
        f"{ceiling.lucky_oracle:.1%}. The best possible router lies between {ceiling.low:.1%} ({audit.best}) and "
        f"{ceiling.high:.1%}; without that luck about {_percent(ceiling.estimate)}.",
        f"Effective independent models: {audit.effective_models.value:.1f} of {len(audit.tiers)}.",
    ]
    if ceiling.lucky_oracle > audit.oracle.high:
        facts.append(
            "The oracle is lower than luck and difficulty would make it: tiers fail together for other reasons too, or "
            "outcomes are fractions, so what knowing the difficulty saves may be overstated."
        )
    if len(audit.tiers) == 2:
        facts.append("Two tiers, one attempt each: skill cannot be told from luck; the estimate takes all to be luck.")
    if ceiling.repeats and ceiling.label_noise is not None:
        low, high = ceiling.repeats
        facts.append(
            f"Repeated attempts bound the ceiling by {low:.1%} and {high:.1%}; noise {ceiling.label_noise:.3f}."
        )
    if audit.estimated_cost_share > 0:
        facts.append(
            f"The log lacks the cost of {audit.estimated_cost_share:.0%} of the attempts; these are list prices times "
            "logged or typical tokens: read costs as ratios."
        )
    facts.append(
        "A tier that never pays is off the hull, and a router that knows the difficulty loses less than "
        f"{MIN_LOSS:.1%} without it, at any worth of an answer. Promises assume a router as good as the best tier: "
        "2 ln(20) x variance of its difference to its best substitute / ((1 - q) x accuracy)^2. "
        "What a router reads out of prompts, only training tells."
    )
    return facts


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
    axes.margins(x=0.15)
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
    finite = {f"{quality:g}": n for quality, n in (audit.needed or {}).items() if np.isfinite(n)}
    bars = axes.barh(list(finite), list(finite.values()), color=_NEUTRAL)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.axvline(audit.n_complete, color=_ROUTER, label=f"this log: {audit.n_complete:,}")
    axes.set(xlabel="complete prompts", ylabel="quality promised")
    axes.margins(x=0.15)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _short(cell: str) -> str:
    """A cell of the terminal: long names cut (the page has them whole), costs without their interval."""
    if cell[0:1].isdigit() and " (" in cell and "%" not in cell:
        return cell.split(" (")[0]
    names = (name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…" for name in cell.split(" + "))
    return cell if "%" in cell or "enough" in cell else " + ".join(names)


def _percent(figure: Interval) -> str:
    return f"{figure.value:.1%} ({figure.low * 100:.1f} to {figure.high * 100:.1f})"


def _usd(figure: Interval) -> str:
    return f"{figure.value:.3g} ({figure.low:.3g} to {figure.high:.3g})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else ""
