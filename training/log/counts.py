"""How many prompts of a log serve what: said in the same words by audit, training and report."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from training.log.table import OutcomeTable


@dataclass(frozen=True)
class PromptCounts:
    """The parts of a log, in prompts.

    learning: in the training part; promise: those of them that every tier answered, on which the promise rests.
    held_out: kept from training; judged: those of them that every tier answered, on which the figures rest.
    """

    learning: int
    promise: int
    held_out: int
    judged: int

    @classmethod
    def of(cls, table: OutcomeTable, in_test: np.ndarray) -> PromptCounts:
        """Of a table. in_test: the prompts that are held out, bool (n_prompts,)."""
        observed = np.isfinite(table.correct)
        complete, known = observed.all(axis=1), observed.any(axis=1)
        return cls(
            learning=int((known & ~in_test).sum()),
            promise=int((complete & ~in_test).sum()),
            held_out=int(in_test.sum()),
            judged=int((complete & in_test).sum()),
        )

    def to_json(self) -> dict[str, int]:
        """The entry "prompts" of the JSON of audit and training."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.learning:,} to learn from (every tier answered {self.promise:,} of them: promises rest on these), "
            f"{self.held_out:,} held out (every tier answered {self.judged:,} of them: figures rest on these)"
        )
