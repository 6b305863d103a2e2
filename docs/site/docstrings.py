"""Docstrings of this project as Markdown: lines that begin with the name of an argument become a list.

An extension of griffe, which reads the sources for mkdocstrings.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^(`?[A-Za-z_*][\w.*]*`?(?:, `?[A-Za-z_*][\w.*]*`?| or `?[A-Za-z_]\w*`?)*): (.*)$")
DIRECTIVE = re.compile(r" *# doctest: .*$", re.MULTILINE)
SENTENCE_OF_ITS_OWN = re.compile(r"^(Raises|Returns|Rejects) ")


class Lists(griffe.Extension):
    """Rewrites every docstring once it is read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the text of a docstring by Markdown."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring with arguments as a list, what is raised as paragraphs, and examples as code."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    return "\n\n".join(_block(block) for block in blocks)


def _block(text: str) -> str:
    if text.startswith(">>>"):
        return f"```pycon\n{DIRECTIVE.sub('', text)}\n```"
    if text.startswith("    "):
        return text
    parts: list[str] = []
    for line in text.splitlines():
        if argument := ARGUMENT.match(line):
            name = argument[1].replace("`", "")
            parts.append(f"- `{name}`: {argument[2]}")
        elif not parts or SENTENCE_OF_ITS_OWN.match(line) or (parts[-1].startswith("- ") and not line.startswith(" ")):
            parts.append(line)
        else:
            parts[-1] += f" {line.strip()}"
    return re.sub(r"\n\n(- .*)\n\n(?=- )", r"\n\n\1\n", "\n\n".join(parts))
