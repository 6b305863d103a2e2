"""Who does what grows with the log: this process, or the workers of a cluster.

Two things grow: the table, and the classifier of the cheapest-correct label. All else has few parameters. It is fitted
on the table that `ingest` gives, which is a sample of a very large log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from router.portfolio.tiers import Tier
from training.context import RunContext
from training.encoders.encoder import Encoder
from training.fit.classifier import FitForest
from training.log.ingest import ingest
from training.log.sources import LogSource
from training.log.table import OutcomeTable


class Backend(Protocol):
    """Makes the table, and says who fits the classifier."""

    def ingest(self, logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], quarantine: Path) -> OutcomeTable:
        """The log as a table, or a sample of it; broken rows go to the file `quarantine`."""

    def fit_label_forest(
        self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray
    ) -> FitForest | None:
        """Fits LightGBM on the labels of all training prompts; None where these are the table's.

        mean_output_tokens: (n_tiers,), stands for the length of an attempt that was not logged.
        """

    def n_trained_on(self, in_table: int) -> int:
        """How many prompts the classifier was fitted on; in_table: training prompts of the table."""


@dataclass(frozen=True)
class LocalBackend:
    """Does everything in this process: the table is the whole log, and the estimator fits the classifier itself."""

    context: RunContext

    def ingest(self, logs: LogSource | Sequence[LogSource], tiers: Sequence[Tier], quarantine: Path) -> OutcomeTable:
        """The whole log."""
        config = self.context.config
        return ingest(logs, tiers, quarantine=quarantine, drop_unparsed=config.drop_unparsed, maps=config.maps)

    def fit_label_forest(self, encoder: Encoder, tiers: Sequence[Tier], mean_output_tokens: np.ndarray) -> None:
        """None: the training prompts are the table's."""

    def n_trained_on(self, in_table: int) -> int:
        """Those of the table."""
        return in_table


@contextmanager
def backend_at(cluster: str | None, context: RunContext) -> Iterator[Backend]:
    """The Dask cluster at an address such as tcp://host:8786, or this process where the address is None.

    With a cluster the cache of the run must be a folder that all workers see. Raises ConfigError where the cluster
    cannot be used.
    """
    if cluster is None:
        yield LocalBackend(context)
        return
    from training.distributed.cluster import cluster_at  # Dask, only where asked for

    with cluster_at(cluster, context) as found:
        yield found
