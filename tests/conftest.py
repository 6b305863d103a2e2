"""One small real training run on the simulated sample log, shared by every test that needs a bundle."""

import json
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from hypothesis import settings
from stores import (
    SAMPLE_LOG,
    SAMPLE_TIERS,
    Turn,
    days_of,
    instead_of_training,
    make_cheaper,
    make_first_store,
    pictures,
)

import training.audit.audit
import training.evaluation.judged
import training.evaluation.segments
import training.retrain.run
from router import Router
from router.bundle import Bundle
from training import TrainingConfig, TrainingResult, tracking, train
from training.evaluation.metrics import resamples
from training.retrain import Receipt

# The same examples in every run, and no example fails because the machine was busy. For new and more examples:
# pytest --hypothesis-profile=thorough.
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("tests")

LONGEST_FIRST = (
    "test_gateway.py", "test_retrain.py", "test_distributed.py", "test_ingest.py", "test_minilm.py", "test_circle.py",
    "test_serve.py", "test_policy_gateway.py", "test_gateway_plans.py", "test_telemetry.py", "test_full_disk.py",
    "test_evaluate.py", "test_tables.py",
    "test_fit_partial.py", "test_real_logs.py", "test_dial.py", "test_audit.py", "test_notebook.py", "test_export.py",
    "test_lost_store.py", "test_log_check.py", "test_maps.py", "test_browser_example.py", "test_node_example.py",
)  # fmt: skip
"""Files that take longest: started first, they leave no process with a long one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of `LONGEST_FIRST` before all others."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def quick_reports() -> Iterator[None]:
    """No pictures, and intervals from 100 resamples: both take longer than training on few prompts itself."""
    with pytest.MonkeyPatch.context() as patch, pictures(are_drawn=False):
        for module in (training.evaluation.judged, training.audit.audit):
            patch.setattr(module, "resamples", partial(resamples, n_bootstrap=100))
        patch.setattr(training.evaluation.segments, "_N_RESAMPLES", 20)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The sample log's bundle, with everything that training says about it."""

    def make(folder: Path) -> None:
        with pictures(are_drawn=True):
            made = train(SAMPLE_LOG, SAMPLE_TIERS, folder / "sample", TrainingConfig(), tracking_uri="none")
        (folder / "result.pickle").write_bytes(pickle.dumps(made))

    shared: TrainingResult = pickle.loads((made_once(tmp_path_factory, "trained", make) / "result.pickle").read_bytes())
    return shared


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that `make` fills. Several processes may share one run of the tests (`-n`): the first fills it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


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


@pytest.fixture(scope="session")
def in_use(bundle: Path) -> Bundle:
    """The sample log's bundle in memory: those who load it too share its graphs, which take longest to load."""
    return Bundle.load(bundle)


@pytest.fixture
def router(bundle: Path, in_use: Bundle) -> Router:
    """A router on the sample log's bundle."""
    return Router.load(bundle)


@pytest.fixture(scope="session")
def day() -> Callable[[int], pd.DataFrame]:
    """day(n): rows of the sample log, other questions for every n."""
    return days_of(pd.read_parquet(SAMPLE_LOG))


@pytest.fixture(scope="session")
def first_turn(
    tmp_path_factory: pytest.TempPathFactory, day: Callable[[int], pd.DataFrame]
) -> Iterator[tuple[Path, Receipt]]:
    """A store after its first run, with the logs of that run beside it, and the run's receipt.

    Its champion stays in memory, so that all who load a copy of it share its graphs.
    """
    folder = made_once(tmp_path_factory, "first-store", lambda empty: make_first_store(empty, day(0), SAMPLE_TIERS))
    champion = Bundle.load(folder / "store" / "bundles" / "000001")
    yield folder, Receipt(**json.loads((folder / "store" / "receipts.jsonl").read_text()))
    del champion


@pytest.fixture(scope="session")
def challenger(first_turn: tuple[Path, Receipt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first champion, but content with 80 % of the best tier's accuracy."""
    folder = tmp_path_factory.mktemp("challenger") / "cheaper"
    make_cheaper(first_turn[0] / "store" / "bundles" / "000001", folder)
    return folder


@pytest.fixture
def turn(first_turn: tuple[Path, Receipt], tmp_path: Path) -> Turn:
    """A copy of that store."""
    shutil.copytree(first_turn[0], tmp_path / "turn", symlinks=True)
    return Turn(tmp_path / "turn", SAMPLE_TIERS)


@pytest.fixture
def quick(challenger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training brings the cheaper challenger at once."""
    monkeypatch.setattr(training.retrain.run, "train", instead_of_training(challenger))


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

    def make(folder: Path) -> None:
        from mlflow import MlflowClient

        with tracking.asking_mlflow(1):
            MlflowClient(tracking.sqlite_uri(folder / "mlflow.db")).search_experiments()

    return made_once(tmp_path_factory, "empty-database", make) / "mlflow.db"


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
