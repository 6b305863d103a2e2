"""What mkdocs shows: the Markdown of the whole repository where it stands, and a reference that is made anew each time.

A hook of mkdocs.yml. Links between pages are those of the repository, so they work on a code host too.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
PAGES = ("*.md", "docs/*.md", "data/*.md", "models/README.md", "benchmarks/*.md", "examples/*/*.md")
STYLE = "docs/site/style.css"
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
HELP_COLUMNS = "88"
MODULES = (
    "router", "router.plan", "router.outcomes", "router.checks", "router.checks.normalise", "router.checks.schema",
    "router.checks.pattern", "router.checks.python_tests", "router.checks.judge", "router.gateway", "training",
    "training.retrain",
)  # fmt: skip
"""What users import, in the order of the page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace what lies in docs/ by all documents, at their places in the repository, and the generated reference."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    pages = sorted({path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)})
    linked = {target for page in pages for target in _linked_files(page)}
    paths = [*map(str, pages), *sorted(linked - set(map(str, pages))), STYLE]
    found = [File(path, str(ROOT), config.site_dir, config.use_directory_urls) for path in paths]
    made = {"reference/command-line.md": command_line_page(), "reference/python.md": python_page()}
    generated = [File.generated(config, name, content=content) for name, content in made.items()]
    return Files([*kept, *found, *generated])


def _linked_files(page: Path) -> Iterator[str]:
    """Files that a page links to or shows, by their places in the repository."""
    for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        path = (ROOT / page.parent / target).resolve()
        if path.is_file():
            yield str(path.relative_to(ROOT))


# ---- the reference ---------------------------------------------------------------------------------


def command_line_page() -> str:
    """A page with the help of every command, as `broker COMMAND --help` prints it."""
    overview = _help()
    names = re.findall(r"^    ([a-z]+)(?=\s)", overview, re.MULTILINE)
    parts = ["# The command line", _block(overview)]
    for name in names:
        text = _help(name)
        parts += [f"## broker {name}", _block(text)]
        for inner in re.findall(r"^    ([a-z]+)(?=\s)", text, re.MULTILINE):
            parts += [f"### broker {name} {inner}", _block(_help(name, inner))]
    return "\n\n".join(parts) + "\n"


def _help(*words: str) -> str:
    from router.cli import main

    text = io.StringIO()
    with patch.dict("os.environ", COLUMNS=HELP_COLUMNS), redirect_stdout(text), redirect_stderr(sys.stderr):
        try:
            code: object = main([*words, "--help"])
        except SystemExit as end:
            code = end.code
    if code != 0:
        raise RuntimeError(f"broker {' '.join(words)} --help: found exit code {code}, expected 0; install the extras")
    return text.getvalue()


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def python_page() -> str:
    """A page with the docstrings of all that is public in MODULES; mkdocstrings fills it from the sources."""
    parts = ["# Python"]
    for module in MODULES:
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
        summary = (ast.get_docstring(tree) or "").split("\n\n")[0]
        parts += [f"## {module}", summary, *(f"::: {module}.{name}" for name in _public(tree))]
    return "\n\n".join(parts) + "\n"


def _source(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _public(tree: ast.Module) -> list[str]:
    """The names in `__all__`, or where a module has none, its classes and functions, in their order."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return list(ast.literal_eval(node.value))
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [name for name in defined if not name.startswith("_")]
