"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from training.errors import ConfigError
from training.fit import Target


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that changes what a run makes.

    encoder: "static", "minilm", "minilm-int8" (half the time, a quarter of the size, behind a gate), or a
        sentence-transformers name or path.
    target: see training.SuccessEstimator.
    test_share: share of the questions that training never sees and the report is made on.
    confidence: with which the dial's promises hold. default_quality: of a request without dials.
    drop_unparsed: treat the outcome of a truncated generation as unobserved.
    note: stands in the report, the model card and the manifest, for example what the log is.
    cache: folder of embeddings and encoders; None takes `.cache` beside the bundle.
    """

    encoder: str = "static"
    target: Target = "auto"
    seed: int = 0
    test_share: float = 0.2
    confidence: float = 0.95
    default_quality: float = 0.98
    drop_unparsed: bool = False
    note: str = ""
    cache: Path | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError where a setting is out of range."""
        if self.target not in get_args(Target):
            raise ConfigError(f"target is {self.target!r}; expected one of {', '.join(get_args(Target))}")
        for name in ("test_share", "confidence"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a share between 0 and 1")
        if not 0 < self.default_quality <= 1:
            raise ConfigError(f"default_quality is {self.default_quality!r}; expected a share above 0 and at most 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected a number of at least 0")
