"""The notebooks run from top to bottom beside the sample log and its bundle, and are kept without outputs."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from training import TrainingData

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURES = {"01": 1, "02": 0, "03": 4, "04": 1, "05": 0, "06": 0}
NEEDS = {"05": "skl2onnx"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundle):
    """As a checkout after `broker demo`."""
    made = tmp_path_factory.mktemp("checkout")
    shutil.copytree(bundle, made / "models" / "demo")
    shutil.copy(TrainingData.path_of(bundle), TrainingData.path_of(made / "models" / "demo"))
    (made / "data").mkdir()
    for name in ("sample-log.parquet", "tiers.toml"):
        shutil.copy(ROOT / "data" / name, made / "data" / name)
    return made


@pytest.fixture(scope="module")
def client(folder):
    """One process for all notebooks, which then import everything once; each starts without the names of the others."""
    nothing = nbformat.v4.new_notebook()
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(nothing, timeout=300, kernel_name="python3", resources=resources)
    yield client
    client.nb = nothing
    client.execute(cleanup_kc=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the Jupyter kernel's own machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_pictures(path, client):
    number = path.stem[:2]
    if number in NEEDS:
        pytest.importorskip(NEEDS[number])
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client.nb = notebook
    client.execute(cleanup_kc=False)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES[number]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
