"""One small real training run on the simulated sample log, shared by every test that needs a bundle."""

import os
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from router import Router
from training import TrainingConfig, TrainingResult, tracking, train

ROOT = Path(__file__).parent.parent
SAMPLE_LOG = ROOT / "data" / "sample-log.parquet"
SAMPLE_TIERS = ROOT / "data" / "tiers.toml"

# The same examples in every run, and no example fails because the machine was busy.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

LONGEST_FIRST = (
    "test_retrain.py", "test_distributed.py", "test_gateway.py", "test_tables.py", "test_circle.py", "test_ingest.py",
    "test_fit_partial.py", "test_real_logs.py", "test_dial.py", "test_minilm.py", "test_evaluate.py", "test_audit.py",
    "test_maps.py", "test_paths.py", "test_export.py",
)  # fmt: skip
"""Files that take longest: started first, they leave no process with a long one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONGEST_FIRST` before all others."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The sample log's bundle, with everything that training says about it.

    Several pytest processes may share one run of the tests (`-n`): the first that needs the bundle trains it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    folder.mkdir(exist_ok=True)
    result = folder / "result.pickle"
    with FileLock(folder / "lock"):
        if not result.exists():
            made = train(SAMPLE_LOG, SAMPLE_TIERS, folder / "sample", TrainingConfig(), tracking_uri="none")
            result.write_bytes(pickle.dumps(made))
    shared: TrainingResult = pickle.loads(result.read_bytes())
    return shared


@pytest.fixture(scope="session")
def bundle(trained: TrainingResult) -> Path:
    """The folder of the sample log's bundle."""
    return trained.bundle


@pytest.fixture(scope="session")
def sample_log() -> Path:
    """The simulated sample log."""
    return SAMPLE_LOG


@pytest.fixture(scope="session")
def sample_tiers() -> Path:
    """Its tiers.toml."""
    return SAMPLE_TIERS


@pytest.fixture
def router(bundle: Path) -> Router:
    """A router on the sample log's bundle."""
    return Router.load(bundle)


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """The folder of public outcome logs that BROKER_REAL_LOGS names; skips where it is not set."""
    folder = os.environ.get("BROKER_REAL_LOGS")
    if not folder:
        pytest.skip("BROKER_REAL_LOGS is not set: it names the folder of public outcome logs")
    return Path(folder)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database that MLflow has prepared, which takes it seconds: to be copied."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    with tracking.asking_mlflow(1):
        MlflowClient(tracking.sqlite_uri(path)).search_experiments()
    return path


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that nobody can write to, not even root: where its parent should be, there is a file."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "folder"


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that takes connections and never answers; MLflow gives it one second."""
    monkeypatch.setattr(tracking, "REACH_S", 1)
    monkeypatch.setattr(tracking, "N_RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
