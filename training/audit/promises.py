"""How many prompts a promise takes, before there is a router to make it.

The figure is that of the dial, `training.dial.betting.prompts_needed`. It depends on the router at slack 0, which
always asks the tier with the highest estimate. Before training that router is not known, so two others stand for it:

- One that always asks the best tier. Most trained routers are close to it at slack 0.
- One that is as accurate as the best tier, but right on other prompts, on as many as the best substitute is.

A router that is more accurate than the best tier takes fewer prompts, and a less accurate one more. Only the former can
promise a quality of 1.
"""

from __future__ import annotations

import numpy as np

from training.audit.result import PromptsNeeded
from training.config import TrainingConfig
from training.dial.betting import prompts_needed
from training.dial.dial import COMPLETE_PROMPTS
from training.log.split import Split
from training.log.table import OutcomeTable

QUALITIES = (0.95, 0.98, 0.99, 1.0)


def held_out(table: OutcomeTable) -> np.ndarray:
    """The prompts that `broker train` would keep from training, by its default settings, bool (n_prompts,)."""
    config = TrainingConfig()
    return Split(config.test_share, config.seed).in_test(table.groups)


def needed_by_quality(correct: np.ndarray, best: int) -> dict[float, PromptsNeeded]:
    """Prompts needed per promised quality.

    correct: complete prompts of the training part, (n_prompts, n_tiers). best: index of the best tier.
    """
    enough = float(-np.log(1 - TrainingConfig().confidence))
    of_best, others = correct[:, best], np.delete(correct, best, axis=1)
    accuracy = others.sum(axis=0)
    substitute = others[:, accuracy.argmax()]
    as_accurate = substitute + (of_best - substitute).sum() / max(1, len(correct))

    def needed(quality: float) -> PromptsNeeded:
        like_best = prompts_needed(of_best, correct, quality, enough)
        apart = prompts_needed(as_accurate, correct[:, [best]], quality, enough)
        return PromptsNeeded(
            like_best=like_best,
            like_substitute=None if like_best is None or apart is None else max(like_best, apart),
        )

    return {quality: needed(quality) for quality in QUALITIES}


def promise_takes(quality: float, needed: PromptsNeeded, best: str, n_training: int) -> str:
    """How many prompts the promise takes and how many there are, in a sentence. best: name of the best tier."""
    if needed.like_best is None:
        return f"A promise of {quality:g} takes a router that is more accurate than {best}."
    apart = "more" if needed.like_substitute is None else f"about {needed.like_substitute:,}"
    return (
        f"A promise of {quality:g} takes about {needed.like_best:,} {COMPLETE_PROMPTS}, for a router like {best}, and "
        f"{apart} for one that is as accurate but right on other prompts: there are {n_training:,} to learn from."
    )
