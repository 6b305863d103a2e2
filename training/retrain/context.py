"""What every step of a run of `retrain` needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from training.config import RetrainConfig
from training.retrain.store import Store


@dataclass(frozen=True)
class RetrainContext:
    """Where a run works and what it goes by.

    uri: MLflow's tracking URI, or "none". progress: bars on stderr. on_step: told the name of each step that is done.
    command: the command line that repeats the run.
    """

    store: Store
    config: RetrainConfig
    uri: str
    progress: bool = False
    command: str = ""
    on_step: Callable[[str], None] = lambda step: None
