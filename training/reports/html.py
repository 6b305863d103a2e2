"""One self-contained HTML page with pictures, and what all pictures of cost and accuracy share."""

from __future__ import annotations

import base64
import html
import io

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from training.evaluation.metrics import hull

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1f2933}"
    "h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}img{max-width:100%}figure{margin:1.5rem 0}"
    "figcaption{color:#606873;font-size:.9rem}.scroll{overflow-x:auto}"
    "table{border-collapse:collapse;font-size:.82rem}"
    "td,th{padding:.25rem .7rem .25rem 0;text-align:left;white-space:nowrap}"
    "th{white-space:normal;vertical-align:bottom;border-bottom:1px solid #9aa1ab}"
    "td{border-bottom:1px solid #e4e7eb;font-variant-numeric:tabular-nums}"
)


def page(title: str, headline: str, body: str) -> str:
    """The whole document. title, headline: text; body: HTML."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(headline)}</h1>{body}</html>\n"
    )


def new_figure(width: float, height: float) -> tuple[Figure, mpl.axes.Axes]:
    """A figure of this size in inches, with one pair of axes."""
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def drawn_hull(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs and accuracies along the hull of (cost, accuracy) points, (n_points, 2), as many as a smooth line needs.

    A mixture of two points is a straight line in cost, and a curve where the axis of cost is logarithmic.
    """
    xs, ys = hull(points[:, 0], points[:, 1])
    grid = np.unique(np.concatenate([xs, np.geomspace(max(xs[0], 1e-9), max(xs[-1], 1e-9), 300)]))
    grid = grid[(grid >= xs[0]) & (grid <= xs[-1])]
    return grid, np.interp(grid, xs, ys)


def png(figure: Figure) -> bytes:
    """A figure as PNG. Drawing takes longest, so draw once what is shown in several places."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def picture(content: bytes, caption: str) -> str:
    """A PNG inside the page, with its caption."""
    source = base64.b64encode(content).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{source}"><figcaption>{text}</figcaption></figure>'
