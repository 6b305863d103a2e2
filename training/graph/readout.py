"""Estimates whose last step is linear, so that several of them can be averaged in one step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Readout:
    """The last step of an estimate: value @ weights + bias, float32 (n, n_tiers).

    value: name of a float32 (n, n_values) in the graph; weights: (n_values, n_tiers); bias: (n_tiers,).
    """

    value: str
    weights: np.ndarray
    bias: np.ndarray
