"""Training on the workers of a Dask cluster (extra `distributed`): the table in parts, the classifier on all of them.

The client holds a sample of at most about MAX_SAMPLE prompts, on which all that has few parameters is fitted. All files
in between stand on storage that client and workers see. Workers are sent names of files and settings, never a model or
a session, and what a worker that dies had in memory is made again from these files.
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from router.portfolio.tiers import Tier
from training.context import RunContext
from training.distributed.parts import (
    PartFacts,
    Prepared,
    draw_sample,
    gather_broken,
    pivot_part,
    prepare_part,
    read_prepared,
    read_rows,
    read_tables,
    whole_log,
)
from training.distributed.workers import Workers, workers_at
from training.encoders.cache import write_encoder
from training.encoders.encoder import Encoder
from training.errors import ConfigError
from training.fit.classifier import LABEL_ROUNDS, FitForest, Forest, lightgbm_settings
from training.log.columns import parse_maps
from training.log.refusals import refuse_single_tier_log
from training.log.sources import LogSource, as_sources, log_sources
from training.log.split import Split
from training.log.table import OutcomeTable

MAX_SAMPLE = 200_000
"""Prompts that the client holds: as many as any step that is fitted on the sample looks at, the encoder's."""

ROWS_PER_PART = 300_000
"""60,000 prompts where five tiers answered each: some hundred megabytes on the worker that has them in hand."""

BYTES_PER_PART = 200 * 2**20
"""Of log files, where prompts are long: some gigabyte of text."""

ROWS_PER_READ = 2_000_000
"""Of log files that one task reads, at most; a file is never divided."""

_HEAD_BYTES = 2**20  # of a text file, whose lines are counted
_COMPRESSED_BYTES_PER_ROW = 20
_NAMES = {  # what lightgbm.train and its scikit-learn classes call the same thing
    "min_data_in_leaf": "min_child_samples",
    "feature_fraction": "colsample_bytree",
    "bagging_fraction": "subsample",
    "bagging_freq": "subsample_freq",
    "lambda_l2": "reg_lambda",
    "seed": "random_state",
}


@contextmanager
def cluster_at(address: str, context: RunContext) -> Iterator[DaskBackend]:
    """The cluster of a Dask scheduler; what it writes between the steps is removed at the end.

    Raises ConfigError where Dask is not installed, or scheduler, workers or versions are not as they must be.
    """
    context.cache.mkdir(parents=True, exist_ok=True)
    with (
        workers_at(address) as workers,
        tempfile.TemporaryDirectory(prefix=".cluster-", dir=context.cache.resolve()) as scratch,
    ):
        yield DaskBackend(workers, Path(scratch), context)


@dataclass
class DaskBackend:
    """A Backend: the table is a sample, and workers fit the classifier on all that is not in it, too."""

    workers: Workers
    scratch: Path
    context: RunContext
    _tables: list[Path] = field(default_factory=list)
    _n_trained_on: int = 0

    @property
    def split(self) -> Split:
        """Which prompts are held out, and the seed of folds and fits."""
        return Split(self.context.config.test_share, self.context.config.seed)

    def ingest(self, logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], quarantine: Path) -> OutcomeTable:
        """At most about MAX_SAMPLE prompts of the log, whole groups of them; the rest stays with the workers."""
        paths = _files(logs, quarantine)
        self.workers.check([*paths, self.scratch])
        n_rows = [_n_rows(path) for path in paths]
        size = sum(path.stat().st_size for path in paths)
        n_parts = max(1, math.ceil(sum(n_rows) / ROWS_PER_PART), math.ceil(size / BYTES_PER_PART))
        batches = _batches(paths, n_rows, min(ROWS_PER_READ, sum(n_rows) // (2 * len(self.workers.addresses))))
        rows = [self._file("rows", number) for number in range(len(batches))]
        broken = [self._file("broken", number) for number in range(len(batches))]
        maps = parse_maps(self.context.config.maps)
        found = self.workers.run(read_rows, batches, rows, broken, n_parts=n_parts, maps=maps)
        gathered = gather_broken(broken, quarantine, found, maps)
        self.context.done("rows")
        self._tables = [self._file("table", part) for part in range(n_parts)]
        parts = self.workers.run(
            pivot_part,
            [rows] * n_parts,
            range(n_parts),
            self._tables,
            tiers=tiers,
            drop_unparsed=self.context.config.drop_unparsed,
        )
        for path in rows:
            path.unlink()
        facts = whole_log(parts, gathered)
        self.context.done("tables")
        table = self._sample(facts, tuple(tier.name for tier in tiers))
        refuse_single_tier_log(table, maps)
        return table

    def _sample(self, facts: PartFacts, tiers: tuple[str, ...]) -> OutcomeTable:
        share = MAX_SAMPLE / max(1, facts.summary.n_prompts)
        if share >= 1:
            return read_tables(self._tables, tiers, facts)
        samples = [self._file("sample", part) for part in range(len(self._tables))]
        self.workers.run(draw_sample, self._tables, samples, share=share, seed=self.split.seed)
        return replace(read_tables(samples, tiers, facts), drawn_from=f"{facts.digest:064x}")

    def fit_label_forest(self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray) -> FitForest:
        """LightGBM on all labelled training prompts, which workers embed when it is first asked for."""
        prepared: list[Prepared] = []

        def fit(left_out: int | None) -> Forest:
            if not prepared:
                prepared.extend(self._prepare(encoder, tiers, mean_output_tokens))
            present = sorted({label for part in prepared for label, _ in part.n_rows})
            return self._fit(prepared, present, left_out)

        return fit

    def n_trained_on(self, in_table: int) -> int:
        """All training prompts, where the classifier was fitted at all."""
        return self._n_trained_on or in_table

    def _prepare(self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray) -> list[Prepared]:
        folder = self.scratch / "encoder"
        write_encoder(folder, encoder)
        files = [self._file("prepared", part) for part in range(len(self._tables))]
        parts = self.workers.run(
            prepare_part, self._tables, files,
            encoder=folder, tiers=tiers, mean_output_tokens=mean_output_tokens, split=self.split,
        )  # fmt: skip
        self._n_trained_on = sum(part.n_training for part in parts)
        self.context.done("vectors and labels")
        return parts

    def _fit(self, parts: Sequence[Prepared], present: Sequence[int], left_out: int | None) -> Forest:
        """One fit by all workers, each on the parts it has been given."""
        import dask.array as da
        from dask.distributed import wait
        from lightgbm.dask import DaskLGBMRegressor

        chosen = [(part, part.n_without(left_out)) for part in parts if part.n_without(left_out)]
        n_prompts = sum(n for _, n in chosen)
        settings: dict[str, Any] = lightgbm_settings(n_prompts, self.split.seed)
        del settings["num_threads"]  # a worker's own
        settings = {_NAMES.get(name, name): value for name, value in settings.items()}

        client = self.workers.client

        def work() -> str:
            with client.as_current(), _quiet():
                loaded = self.workers.submit(
                    read_prepared, [part for part, _ in chosen], present=present, left_out=left_out
                )
                for failed in [each for each in wait(loaded).done if each.status != "finished"]:
                    failed.result()  # raises what the worker raised
                x, y = (
                    da.concatenate(
                        [
                            da.from_delayed(client.submit(_item, both, place, pure=False), (n, *width), np.float32)
                            for both, (part, n) in zip(loaded, chosen, strict=True)
                            for width in [(part.n_dims,) if place == 0 else ()]
                        ]
                    )
                    for place in (0, 1)
                )
                # Not DaskLGBMClassifier: that counts classes worker by worker, and fails where one lacks a rare class.
                model = DaskLGBMRegressor(
                    client=client,
                    objective="multiclass",
                    num_class=max(2, len(present)),
                    n_estimators=LABEL_ROUNDS,
                    **settings,
                ).fit(x, y)
                return str(model.booster_.model_to_string())

        return Forest(lightgbm.Booster(model_str=self.workers.while_all_live(work)))

    def _file(self, kind: str, number: int) -> Path:
        return self.scratch / f"{kind}-{number:06d}.parquet"


@contextmanager
def _quiet() -> Iterator[None]:
    """lightgbm.dask prints where it looks for ports, and warns of a default that it passes to itself."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Parameter n_jobs will be ignored", UserWarning)
        yield


def _item(values: Sequence[Any], place: int) -> Any:
    return values[place]


def _files(logs: LogSource | Sequence[LogSource], quarantine: Path) -> list[Path]:
    """Log files by their full names; raises ConfigError for a DataFrame."""
    found = list(log_sources(as_sources(logs), quarantine))
    if not all(isinstance(path, Path) for path in found):
        raise ConfigError("found a DataFrame for a log; with a cluster give files, which its workers can read")
    return [path.resolve() for path in found if isinstance(path, Path)]


def _n_rows(path: Path) -> int:
    """About how many rows a log file has."""
    try:
        if path.suffix == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        size = path.stat().st_size
        if path.suffix in (".gz", ".zst"):
            return size // _COMPRESSED_BYTES_PER_ROW
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        return head.count(b"\n") * size // max(1, len(head)) + 1
    except (pa.ArrowException, OSError):
        return 0  # the worker that reads it says what is wrong


def _batches(paths: Sequence[Path], n_rows: Sequence[int], at_most: int) -> list[list[Path]]:
    """Files that are read together, at most so many rows of them, or one file."""
    batches: list[list[Path]] = []
    room = 0
    for path, n in zip(paths, n_rows, strict=True):
        if not batches or n > room:
            batches.append([])
            room = at_most
        batches[-1].append(path)
        room -= n
    return batches
