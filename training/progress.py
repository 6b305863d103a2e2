"""One bar on stderr for the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tqdm import tqdm

JUDGING_STEPS = ("estimates", "baselines", "bootstrap", "plans judged")
EVALUATION_STEPS = ("ingest", *JUDGING_STEPS)
TRAINING_STEPS = (
    "ingest", "encoder", "embed", "landmarks", "kernel, out of fold", "classifier, out of fold", "familiarity",
    "final fit", "lengths", "dial", "clusters", "plans", "parity", *JUDGING_STEPS, "done",
)  # fmt: skip
"""Names of the steps in their order. A run may leave some out, and have others in between."""


class StepBar:
    """How many of the known steps of a run are behind it; nothing is shown in its first second.

    steps: in their order. A step that a run leaves out counts as done with the next one.
    """

    def __init__(self, name: str, steps: Sequence[str], *, is_shown: bool = True) -> None:
        self._steps = list(steps)
        shape = "{desc}: {percentage:3.0f}%|{bar:30}| {n_fmt} of {total_fmt} steps, {elapsed}{postfix}"
        self._bar = tqdm(desc=name, total=len(steps), delay=1, disable=not is_shown, bar_format=shape)

    def done(self, step: str) -> None:
        """A step is done."""
        behind = self._steps.index(step) + 1 if step in self._steps else self._bar.n
        self._bar.set_postfix_str(step, refresh=False)
        self._bar.update(max(0, behind - self._bar.n))

    def under_way(self, step: str, share: float) -> None:
        """A step that takes long has come so far."""
        self._bar.set_postfix_str(f"{step} {100 * share:.0f} %")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._bar.update(len(self._steps) - self._bar.n)
        self._bar.close()
