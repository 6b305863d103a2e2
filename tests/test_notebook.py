"""The notebooks run from top to bottom, on a part of the data, and show their pictures."""

import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter kernel's own machinery
@pytest.mark.parametrize(
    ("name", "n_pictures", "bundle"), [("01_train_and_route", 5, "notebook"), ("02_plans", 1, "plans")]
)
def test_a_notebook_runs_and_shows_its_pictures(name, n_pictures, bundle, tmp_path):
    (tmp_path / "data").mkdir()
    log = pd.read_parquet(ROOT / "data" / "sample-log.parquet")
    some = log[log.question_key.isin(sorted(log.question_key.unique())[::4])]
    some.to_parquet(tmp_path / "data" / "sample-log.parquet")
    shutil.copy(ROOT / "data" / "tiers.toml", tmp_path / "data" / "tiers.toml")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == n_pictures
    assert (tmp_path / "models" / bundle / "manifest.json").exists()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
