"""How objects show themselves in a notebook: sentences and a small table, as HTML without any script or style sheet."""

from __future__ import annotations

import html
from collections.abc import Sequence


def card(
    sentences: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None
) -> str:
    """Paragraphs above a table; bold: the row that stands out. All text is escaped."""
    paragraphs = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences if sentence)
    if not rows:
        return paragraphs
    head = "".join(f'<th style="text-align:left;padding-right:1em">{html.escape(name)}</th>' for name in header)
    lines = "".join(_line(row, number == bold) for number, row in enumerate(rows))
    return f"{paragraphs}<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _line(cells: Sequence[str], is_bold: bool) -> str:
    weight = "bold" if is_bold else "normal"
    style = f'style="text-align:left;padding-right:1em;font-weight:{weight}"'
    return "<tr>" + "".join(f"<td {style}>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def tree(sentence: str, lines: Sequence[str]) -> str:
    """A paragraph above lines that keep their indentation. All text is escaped."""
    text = html.escape("\n".join(lines))
    return f"<p>{html.escape(sentence)}</p><pre>{text}</pre>"
