"""When do answers agree: the chance that two or three tiers give the same answer, by which of them are right.

Right answers mostly agree. Wrong ones may agree too: there is a popular wrong answer, or the log's label is wrong.
So two tiers that agree are right more often, but not always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np

N_PATTERNS = 5
"""After three answers: all agree; first and second; first and third; second and third; none."""

PAIR_PROMPTS = 10.0
"""What a pair or triple of tiers shows counts against what all of them show as if that had been seen so often."""

POOL_PROMPTS = 3.0
"""What all pairs show counts against the prior in the same way."""

_RIGHT_AND_RIGHT, _RIGHT_AND_WRONG, _WRONG_AND_WRONG = 0.98, 0.02, 0.3
"""The prior: the chance that two answers agree, before anything was seen."""

_LEAST = 1e-4


@dataclass(frozen=True)
class AgreementModel:
    """The chance of each pattern of agreement, as tables for the plan graph.

    A chance moves in a straight line from prompts that are hard for all tiers (mean estimate 0) to easy ones (1).

    of_two: (K, K, 8, 6) float64, for the tiers asked first and second. Rows: hard or easy x first wrong or right x
        second wrong or right. Columns: agree or not x (1, first is right, second is right) x the chance.
    of_three: (K, K, K, 16, 20). Rows: hard or easy x wrong or right of three. Columns: patterns x (1, first, second,
        third is right) x the chance. Both are 0 where a tier would be asked twice.
    n_prompts: prompts with the answers of two tiers or more; 0 where the log has no answers.
    wrong_agree: P(two tiers agree | both are wrong) over all pairs; None where that was never seen.
    """

    of_two: np.ndarray
    of_three: np.ndarray
    n_prompts: int
    wrong_agree: float | None

    @classmethod
    def fit(cls, success: np.ndarray, correct: np.ndarray, answer_number: np.ndarray) -> AgreementModel:
        """From estimates, outcomes and answers, each (n_prompts, n_tiers).

        correct: 0..1, NaN where not observed. answer_number: which answer a tier gave, -1 where none: it then agrees
        with no other.
        """
        seen = _Seen.of(success, correct, answer_number)
        two, both_wrong = _fit_two(seen)
        of_two, of_three = _tables(two, _fit_three(seen), seen.n_tiers)
        n_prompts = int(((answer_number >= 0).sum(axis=1) >= 2).sum())
        return cls(of_two=of_two, of_three=of_three, n_prompts=n_prompts, wrong_agree=both_wrong)


@dataclass(frozen=True)
class _Seen:
    """What the log shows: easy: mean estimate, (n,); right: bool (n, K); known: bool (n, K); answers: int (n, K)."""

    easy: np.ndarray
    right: np.ndarray
    known: np.ndarray
    answers: np.ndarray

    @classmethod
    def of(cls, success: np.ndarray, correct: np.ndarray, answer_number: np.ndarray) -> _Seen:
        has_answers = np.asarray((answer_number >= 0).any(axis=1))
        known = np.asarray(np.isfinite(correct) & has_answers[:, None])
        return cls(easy=success.mean(axis=1), right=np.asarray(correct >= 0.5), known=known, answers=answer_number)

    @property
    def n_tiers(self) -> int:
        return int(self.right.shape[1])

    def agree(self, one: int, other: int) -> np.ndarray:
        """Whether two tiers gave the same answer, bool (n,)."""
        return np.asarray((self.answers[:, one] >= 0) & (self.answers[:, one] == self.answers[:, other]))

    def where(self, tiers: tuple[int, ...], right: tuple[int, ...]) -> np.ndarray:
        """Prompts on which just these tiers were right or wrong, bool (n,)."""
        at = list(tiers)
        rows = self.known[:, at].all(axis=1)
        return np.asarray(rows & (self.right[:, at] == np.array(right, dtype=bool)).all(axis=1))


def _prior(one_right: int, other_right: int) -> float:
    if one_right != other_right:
        return _RIGHT_AND_WRONG
    return _RIGHT_AND_RIGHT if one_right else _WRONG_AND_WRONG


def _line(easy: np.ndarray, seen: np.ndarray, prior: np.ndarray, weight: float) -> np.ndarray:
    """The chance of each of m things at the hard and at the easy end, (2, m), by least squares.

    easy: (n,). seen: 0 or 1, (n, m), one of them in each row. prior: (2, m), which counts as `weight` prompts at each
    end.
    """
    ends = np.stack([1 - easy, easy], axis=1)
    solved = np.linalg.solve(ends.T @ ends + weight * np.eye(2), ends.T @ seen + weight * prior)
    solved = np.maximum(solved, _LEAST)
    return np.asarray(solved / solved.sum(axis=1, keepdims=True))


def _fit_two(seen: _Seen) -> tuple[dict[tuple[int, int], np.ndarray], float | None]:
    """P(agree or not | right or wrong) of each ordered pair, (2 ends, 2, 2, 2 things), and P(agree | both wrong)."""
    pairs = list(permutations(range(seen.n_tiers), 2))
    found = {pair: np.empty((2, 2, 2, 2)) for pair in pairs}
    both_wrong = None
    for right in product((0, 1), repeat=2):
        rows = {pair: seen.where(pair, right) for pair in pairs}
        things = {pair: _one_of(seen.agree(*pair)[rows[pair]]) for pair in pairs}
        easy, every = _stacked(seen.easy, rows, things)
        if right == (0, 0) and len(every):
            both_wrong = float(every[:, 0].mean())
        chance = _prior(*right)
        prior = np.tile([chance, 1 - chance], (2, 1))
        pooled = _line(easy, every, prior, POOL_PROMPTS * seen.n_tiers)  # Each prompt is there once for each pair.
        for pair in pairs:
            found[pair][:, right[0], right[1]] = _line(seen.easy[rows[pair]], things[pair], pooled, PAIR_PROMPTS)
    return found, both_wrong


def _fit_three(seen: _Seen) -> dict[tuple[int, int, int], np.ndarray]:
    """P(pattern | right or wrong, whether the first two agree) of each ordered triple, (2 ends, 2, 2, 2, 5).

    Empty where there are two tiers only.
    """
    triples = list(permutations(range(seen.n_tiers), 3))
    if not triples:
        return {}
    found = {triple: np.zeros((2, 2, 2, 2, N_PATTERNS)) for triple in triples}
    for right in product((0, 1), repeat=3):
        for first_two_agree in (True, False):
            rows, things = {}, {}
            for first, second, third in triples:
                triple = (first, second, third)
                rows[triple] = seen.where(triple, right) & (seen.agree(first, second) == first_two_agree)
                at = rows[triple]
                with_first, with_second = seen.agree(first, third)[at], seen.agree(second, third)[at]
                things[triple] = _one_of(with_first) if first_two_agree else _one_of(with_first, with_second)
            easy, every = _stacked(seen.easy, rows, things)
            prior = np.tile(_prior_of_third(right, first_two_agree), (2, 1))
            pooled = _line(easy, every, prior, POOL_PROMPTS * seen.n_tiers)
            patterns = slice(0, 2) if first_two_agree else slice(2, N_PATTERNS)
            for triple in triples:
                chances = _line(seen.easy[rows[triple]], things[triple], pooled, PAIR_PROMPTS)
                found[triple][:, right[0], right[1], right[2], patterns] = chances
    return found


def _prior_of_third(right: tuple[int, ...], first_two_agree: bool) -> np.ndarray:
    with_first, with_second = _prior(right[0], right[2]), _prior(right[1], right[2])
    if first_two_agree:
        return np.array([with_first, 1 - with_first])
    share = np.array([with_first, with_second]) / max(1.0, (with_first + with_second) / 0.98)
    return np.append(share, 1 - share.sum())


def _one_of(*things: np.ndarray) -> np.ndarray:
    """Each of some things that exclude each other, and that none of them is so; (n, number of things + 1)."""
    columns = np.stack(things, axis=1)
    return np.concatenate([columns, ~columns.any(axis=1, keepdims=True)], axis=1).astype(float)


def _stacked(
    easy: np.ndarray, rows: Mapping[Any, np.ndarray], things: Mapping[Any, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What all pairs or triples show, one below the other."""
    return np.concatenate([easy[each] for each in rows.values()]), np.concatenate(list(things.values()))


def _tables(
    two: dict[tuple[int, int], np.ndarray], three: dict[tuple[int, int, int], np.ndarray], n_tiers: int
) -> tuple[np.ndarray, np.ndarray]:
    """The chances as the plan graph multiplies them."""
    of_two = np.zeros((n_tiers, n_tiers, 2, 2, 2, 2, 3))  # ends, right, right, agree or not, 3
    of_three = np.zeros((n_tiers, n_tiers, n_tiers, 2, 2, 2, 2, N_PATTERNS, 4))
    for pair in permutations(range(n_tiers), 2):
        for right in product((0, 1), repeat=2):
            chance = two[pair][:, right[0], right[1]]  # (2 ends, 2)
            of_two[pair][:, right[0], right[1]] = chance[:, :, None] * np.array([1, *right])
    for triple in permutations(range(n_tiers), 3):
        for right in product((0, 1), repeat=3):
            of_pair = two[triple[:2]][:, right[0], right[1]][:, [0, 0, 1, 1, 1]]  # (2 ends, 5)
            chance = of_pair * three[triple][:, right[0], right[1], right[2]]
            of_three[triple][:, right[0], right[1], right[2]] = chance[:, :, None] * np.array([1, *right])
    return of_two.reshape(n_tiers, n_tiers, 8, 6), of_three.reshape(n_tiers, n_tiers, n_tiers, 16, 20)
