"""The notebook runs from top to bottom, on a part of the data, and shows its pictures."""

import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "01_train_and_route.ipynb"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter kernel's own machinery
def test_the_notebook_runs_and_shows_curve_and_calibration(tmp_path):
    (tmp_path / "data").mkdir()
    log = pd.read_parquet(ROOT / "data" / "sample-log.parquet")
    some = log[log.question_key.isin(sorted(log.question_key.unique())[::4])]
    some.to_parquet(tmp_path / "data" / "sample-log.parquet")
    shutil.copy(ROOT / "data" / "tiers.toml", tmp_path / "data" / "tiers.toml")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5
    assert (tmp_path / "models" / "notebook" / "manifest.json").exists()


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
