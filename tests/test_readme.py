"""What the documents show runs, and what they link to is there."""

import re
import shutil
from pathlib import Path

import pytest

from router.cli import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", ROOT / "models" / "README.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))


def test_the_readmes_python_runs(bundle, tmp_path, monkeypatch, capsys):
    shutil.copytree(bundle, tmp_path / "models" / "demo")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENTS[0].read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in {"edge", "distilled", "frontier"}


def test_the_commands_the_readme_names_exist(capsys):
    named = set(re.findall(r"`?broker ([a-z]+)", DOCUMENTS[0].read_text(encoding="utf-8")))
    assert {"train", "route", "evaluate", "verify"} <= named
    for command in named:
        with pytest.raises(SystemExit) as leave:
            main([command, "--help"])
        assert leave.value.code == 0
        assert "usage: broker" in capsys.readouterr().out


@pytest.mark.parametrize("document", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.parent.name or "README")
def test_every_relative_link_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_the_bundles_contract_is_in_the_models_readme(trained):
    text = DOCUMENTS[2].read_text(encoding="utf-8")
    for name in (path.name for path in trained.bundle.iterdir()):
        assert f"`{name}`" in text
