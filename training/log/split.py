"""Splits by group, so that no question is on two sides of a split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Split:
    """Which groups are held out from training; it can be told for any group, without the log."""

    test_share: float
    seed: int

    def in_test(self, groups: np.ndarray) -> np.ndarray:
        """True for the rows that no part of training sees."""
        return test_mask(groups, self.test_share, self.seed)


def group_positions(groups: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for each row, the same for all rows of a group.

    It depends on the group's name and the seed alone: a prompt keeps its side as the log grows.
    """
    names, inverse = np.unique(groups, return_inverse=True)
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    positions = [(int.from_bytes(digest, "big") >> 11) / 2**53 for digest in digests]  # 53 bits: never rounded up to 1
    return np.array(positions)[inverse]


def test_mask(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """True for about `share` of the groups: the rows that no part of training sees."""
    return group_positions(groups, seed) < share


def fold_numbers(groups: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Fold 0 .. n_folds - 1 of each row, for cross-fitting."""
    return (group_positions(groups, seed + 1) * n_folds).astype(int)
