"""What a check says of an answer."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from router.errors import CheckError


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says of one answer.

    score: in 0..1; 1 = passed, 0 = failed.
    cost_usd: what this look at the answer cost, in USD; 0 or more.
    reason: why, in a few plain words.

    Raises CheckError where score or cost_usd is out of range.
    """

    score: float
    cost_usd: float = 0.0
    reason: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:  # NaN is not, either
            raise CheckError(f"the score of a check is {self.score}; expected a number from 0 to 1")
        if not (math.isfinite(self.cost_usd) and self.cost_usd >= 0):
            raise CheckError(f"the cost of a check is {self.cost_usd} USD; expected a finite number of at least 0")


Check = Callable[[str, str], Verdict | bool | float]
"""A check: takes prompt and answer, returns a verdict, a bool (True = passed) or a score in 0..1."""

AsyncCheck = Callable[[str, str], Awaitable[Verdict | bool | float]]
"""A check that is awaited."""


def verdict_of(value: object) -> Verdict:
    """The verdict that a check returned, whichever of the allowed types it has.

    value: a Verdict, a bool (True = passed), or a number from 0 to 1. Numbers of numpy count as numbers.
    Raises CheckError for anything else, such as None, NaN, text, or a coroutine that nobody has awaited.
    """
    if isinstance(value, Verdict):
        return value
    if isinstance(value, Real | np.bool_):
        return Verdict(score=float(value))
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that it was never awaited
        raise CheckError("the check returned a coroutine; await it first, or use a check that is not async")
    raise CheckError(
        f"the check returned {reprlib.repr(value)}; expected a Verdict, True or False, or a number in 0..1"
    )
