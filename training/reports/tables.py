"""A table of text cells, as text in columns, as HTML and as Markdown."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """A title, a header and rows of cells; every row has exactly one cell per column.

    Make it with `Table.of`. Raises ValueError where a row is shorter or longer than the header.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"table {self.title!r}: found a row of {len(row)} cells; expected {len(self.header)}")

    @classmethod
    def of(cls, title: str, items: Iterable[T], columns: Sequence[tuple[str, Callable[[T], str | None]]]) -> Table:
        """One row per item, one column per (name, function that gives the item's cell).

        A cell is None where there is nothing to say; it is then empty. White space in cells becomes single spaces.
        """

        def cell(text: str | None) -> str:
            return " ".join((text or "").split())

        return cls(
            title=title,
            header=tuple(cell(name) for name, _ in columns),
            rows=tuple(tuple(cell(of(item)) for _, of in columns) for item in items),
        )

    def text(self) -> str:
        """Columns of equal width below the title in capitals, for a terminal."""
        lines = (self.header, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([self.title.upper(), *(line.rstrip() for line in padded)])

    def html(self) -> str:
        """A heading and a table that scrolls sideways where it is wider than the page."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in self.rows)
        title = html.escape(self.title)
        return f'<h2>{title}</h2><div class="scroll"><table>{line(self.header, "th")}{body}</table></div>'

    def markdown(self) -> str:
        """A second-level heading and a table."""

        def line(cells: Sequence[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        rows = [line(self.header), line(["---"] * len(self.header)), *map(line, self.rows)]
        return "\n".join([f"## {self.title}", "", *rows])
