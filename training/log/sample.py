"""Samples of the rows of a large log."""

from __future__ import annotations

import numpy as np


def evenly(n: int, at_most: int) -> np.ndarray | slice:
    """At most `at_most` of n rows, spread evenly over them; all rows where n is no larger."""
    return slice(None) if n <= at_most else np.arange(at_most) * n // at_most
