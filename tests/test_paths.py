"""Folders and files may have any name: what stands in a path is never taken for a pattern, a query or an escape."""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from router import Router
from router.portfolio.tiers import read_tiers
from training.log.checked import checked_logs
from training.log.ingest import ingest
from training.log.sources import log_sources

NAMES = ["with space", "50%20off", "what?", "a#b", "[1]", "été 日本", "it's", "a*", "{a,b}"]
MESSY = "50%20 off? #[1] it's été"
ROWS = pd.DataFrame(
    {"prompt": ["a", "b", "c"] * 2, "model": ["sim/edge-4b"] * 3 + ["sim/frontier-1"] * 3, "correct": 1}
)


def write(path, frame):
    """In the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_log_is_read_whatever_its_folder_is_called(tmp_path, sample_tiers, name):
    """As a file, as one of a folder, and as one of a glob, each in every format."""
    folder, suffixes = tmp_path / name, ("parquet", "csv", "jsonl")
    logs = [folder / f"day {name}.{suffix}" for suffix in suffixes]
    for log in logs:
        write(log, ROWS)
    sources = [*logs, folder, *(str(folder / f"*.{suffix}") for suffix in suffixes)]
    assert Counter(log_sources(sources, None)) == dict.fromkeys(logs, 3)
    assert ingest(sources, read_tiers(sample_tiers)).summary.n_used == 3 * 3 * 6


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize(("name", "other"), [("p[2]", "p2"), ("p*", "p1"), ("p?", "p1")])
def test_a_file_is_never_taken_for_a_pattern_of_others(tmp_path, sample_tiers, name, other, suffix):
    write(tmp_path / f"{name}.{suffix}", ROWS)
    write(tmp_path / f"{other}.{suffix}", ROWS.assign(prompt="another"))
    found = ingest(tmp_path / f"{name}.{suffix}", read_tiers(sample_tiers))
    assert found.prompts and set(found.prompts) == {"a", "b", "c"}


def test_broken_rows_and_checked_rows_are_kept_whatever_their_folder_is_called(tmp_path, sample_tiers):
    log, quarantine = tmp_path / "log.csv", tmp_path / MESSY / "broken.parquet"
    write(log, pd.concat([ROWS, ROWS[:1].assign(model=None)]))
    assert ingest(log, read_tiers(sample_tiers), quarantine=quarantine).summary.n_used == 6
    assert len(pd.read_parquet(quarantine)) == 1
    with checked_logs(tmp_path / MESSY / "cache") as rows:
        assert rows.read(log).n_rows == 7


def test_a_bundle_is_loaded_whatever_its_folder_is_called(bundle, tmp_path):
    copy = Path(shutil.copytree(bundle, tmp_path / MESSY / "bundle"))
    assert Router.load(copy).route("Hello!") == Router.load(bundle).route("Hello!")
