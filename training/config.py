"""The settings of a training run, and of a run of `broker retrain`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from training.errors import ConfigError
from training.log.columns import parse_maps


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that changes what a run makes.

    encoder: "static", "minilm", or a sentence-transformers name or path.
    test_share: share of the questions that training never sees and the report is made on.
    confidence: with which the dial's promises hold. default_quality: of a request without dials.
    drop_unparsed: treat the outcome of a truncated generation as unobserved.
    maps: how columns of the log are made from others, for example "correct=score/5"; see data/README.md.
    keep_examples: store some prompts of each cluster in the bundle, for explanations; without it no prompt is stored.
    note: stands in the report, the model card and the manifest, for example what the log is.
    cache: folder of embeddings and encoders; None takes `.cache` beside the bundle.
    """

    encoder: str = "static"
    seed: int = 0
    test_share: float = 0.2
    confidence: float = 0.95
    default_quality: float = 0.98
    drop_unparsed: bool = False
    maps: tuple[str, ...] = ()
    keep_examples: bool = False
    note: str = ""
    cache: Path | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError where a setting is out of range, and MapError, which is one."""
        parse_maps(self.maps)
        for name in ("test_share", "confidence"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a share between 0 and 1")
        if not 0 < self.default_quality <= 1:
            raise ConfigError(f"default_quality is {self.default_quality!r}; expected a share above 0 and at most 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected a number of at least 0")


@dataclass(frozen=True)
class RetrainConfig:
    """What a run of `retrain` goes by.

    worth_usd: what a correct answer is worth, in net value = worth_usd x quality - cost; None takes what a correct
        answer of the best single tier costs, so that always asking that tier has the net value 0.
    quality_margin: the share of correct answers may be smaller by at most so much, with confidence; None takes what
        the default quality gives away, 0.02 for 0.98. Less takes thousands of held-out prompts to show.
    promotion_confidence: with which net value must be shown to be better, one-sided, from 0.5 up. The usual 0.8 is low
        on purpose: to keep a worse champion costs as much as to take a worse challenger, and panels are small
        (benchmarks/circle.md has what it is worth). That quality is not worse is shown with 97.5 % in any case.
    window_prompts: judged on are the newest log files, as many as hold so many held-out prompts.
    min_judged: with fewer, no challenger is judged, and the champion stays.
    accept_change: changes of tiers that someone looked at and accepts, each TIER or TIER@FILE: from the first log file
        on that is set aside for the tier, or from this one.
    model_name: in MLflow's model registry.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)
    worth_usd: float | None = None
    quality_margin: float | None = None
    promotion_confidence: float = 0.8
    window_prompts: int = 2000
    min_judged: int = 100
    accept_change: tuple[str, ...] = ()
    model_name: str = "token-broker"

    def __post_init__(self) -> None:
        """Raises ConfigError where a setting is out of range."""
        if self.worth_usd is not None and not 0 < self.worth_usd < float("inf"):
            raise ConfigError(f"worth_usd is {self.worth_usd!r}; expected USD above 0")
        if self.quality_margin is not None and not 0 <= self.quality_margin <= 1:
            raise ConfigError(f"quality_margin is {self.quality_margin!r}; expected a share from 0 to 1")
        if not 0.5 <= self.promotion_confidence < 1:
            raise ConfigError(f"promotion_confidence is {self.promotion_confidence!r}; expected a share from 0.5 to 1")
        for name in ("window_prompts", "min_judged"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected at least 2")

    @property
    def tolerated_loss(self) -> float:
        """The quality margin in force."""
        return 1 - self.training.default_quality if self.quality_margin is None else self.quality_margin
