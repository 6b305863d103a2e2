"""Who does what grows with the log: in this process, or on the workers of a cluster.

Two things grow: the table, and the classifier of the cheapest-correct label. All else has few parameters, and is fitted
on the table that `ingest` gives, which of a very large log is a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np

from router.portfolio.tiers import Tier
from training.config import TrainingConfig
from training.encoders.encoder import Encoder
from training.fit.success import LabelForest
from training.log.ingest import ingest
from training.log.sources import LogSource
from training.log.table import OutcomeTable


class Backend(Protocol):
    """Where the table comes from, and who fits the classifier."""

    def ingest(
        self, logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], quarantine: Path, *, drop_unparsed: bool
    ) -> OutcomeTable:
        """The log as a table, or a sample of it; broken rows go to `quarantine`."""

    def label_forest(
        self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray
    ) -> LabelForest | None:
        """Who fits the classifier on all training prompts; None where these are the table's.

        mean_output_tokens: (n_tiers,), of an attempt whose length was not logged.
        """

    def n_trained_on(self, in_table: int) -> int:
        """How many prompts the classifier was fitted on; in_table: training prompts of the table."""


class LocalBackend:
    """The table is the whole log, and the estimator fits the classifier itself."""

    def ingest(
        self, logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], quarantine: Path, *, drop_unparsed: bool
    ) -> OutcomeTable:
        """The whole log."""
        return ingest(logs, tiers, quarantine=quarantine, drop_unparsed=drop_unparsed)

    def label_forest(self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray) -> None:
        """Nobody else."""

    def n_trained_on(self, in_table: int) -> int:
        """Those of the table."""
        return in_table


@contextmanager
def backend_at(
    cluster: str | None, config: TrainingConfig, cache: Path, on_step: Callable[[str], None]
) -> Iterator[Backend]:
    """A Dask cluster at an address such as tcp://host:8786, or this process.

    cache: a folder; with a cluster one that all workers see. Raises ConfigError where the cluster cannot be used.
    """
    if cluster is None:
        yield LocalBackend()
        return
    from training.distributed.cluster import cluster_at  # Dask, only where asked for

    with cluster_at(cluster, config, cache, on_step) as found:
        yield found
