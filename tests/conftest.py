"""One small real training run on the simulated sample log, shared by every test that needs a bundle."""

import os
from pathlib import Path

import pytest

from router import Router
from training import TrainingConfig, TrainingResult, train

ROOT = Path(__file__).parent.parent
SAMPLE_LOG = ROOT / "data" / "sample-log.parquet"
SAMPLE_TIERS = ROOT / "data" / "tiers.toml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The sample log's bundle, with everything that training says about it."""
    folder = tmp_path_factory.mktemp("models")
    return train(SAMPLE_LOG, SAMPLE_TIERS, folder / "sample", TrainingConfig(), tracking_uri="none")


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
