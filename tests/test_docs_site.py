"""The documentation as a site: it builds without a warning, and asks no other host for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: it comes with the extra docs (make docs)")
pytest.importorskip("material", reason="mkdocs-material is not installed: it comes with the extra docs (make docs)")

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_no_page_asks_another_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?(https?:[^\s\">]*)", page.read_text())
        assert loaded == [], page


def test_the_reference_has_every_command_and_the_docstrings_of_what_is_public(site):
    commands = (site / "reference" / "command-line" / "index.html").read_text()
    assert all(f"broker {name}" in commands for name in ("train", "route", "serve", "outcomes show"))
    python = (site / "reference" / "python" / "index.html").read_text()
    assert all(f'id="{name}"' in python for name in ("router.Router.route", "router.outcomes.OutcomeLog.outcome"))
    assert "<code>quality</code>" in python  # arguments are a list
