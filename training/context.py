"""What the steps of a training run share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.config import TrainingConfig
from training.tracking import Tracker


@dataclass(frozen=True)
class RunContext:
    """The settings of a run, and whom it tells what.

    cache: folder of embeddings and encoders. done: is called with the name of each step when it is done.
    under_way: is called with the name of a step that takes long and the share of it that is done.
    """

    config: TrainingConfig
    cache: Path
    tracker: Tracker
    done: Callable[[str], None]
    under_way: Callable[[str, float], None] = lambda step, share: None
