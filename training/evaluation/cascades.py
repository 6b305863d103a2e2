"""Fixed cascades: the same two or three tiers in the same order for every prompt (FrugalGPT, Chen et al. 2023, without
its estimates). A baseline for plans, and what an audit can say of a check before any training.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

Cascade = tuple[int, ...]


def cascades(n_tiers: int, *, agreement: bool) -> list[Cascade]:
    """Two or three different tiers in order; where answers are compared, the order of the first two says nothing."""
    every = [*permutations(range(n_tiers), 2), *permutations(range(n_tiers), 3)]
    return [each for each in every if not agreement or each[0] < each[1]]


def verified(
    tiers: Cascade, correct: np.ndarray, cost_usd: np.ndarray, fails: np.ndarray, check_usd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Outcome and cost of a cascade on every prompt, (n_prompts,): ask, check, go on where the check fails.

    The last answer is returned unchecked. fails: 0 or 1, or the probability; check_usd: of each check; all arguments
    (n_prompts, n_tiers).
    """
    outcome, cost, reached = np.zeros(len(correct)), np.zeros(len(correct)), np.ones(len(correct))
    for tier in tiers[:-1]:
        cost += reached * (cost_usd[:, tier] + check_usd[:, tier])
        outcome += reached * (1 - fails[:, tier]) * correct[:, tier]
        reached = reached * fails[:, tier]
    return outcome + reached * correct[:, tiers[-1]], cost + reached * cost_usd[:, tiers[-1]]


def agreed(
    tiers: Cascade, correct: np.ndarray, cost_usd: np.ndarray, answer_number: np.ndarray, most_accurate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Outcome and cost of a cascade on every prompt, (n_prompts,): ask two; where they differ, ask the third.

    What two agree on is returned, else the answer of the tier `most_accurate`, one of the cascade's. answer_number: -1
    where a tier gave none, (n_prompts, n_tiers).
    """
    first, second = tiers[:2]
    agree = answers_agree(answer_number, first, second)
    cost = cost_usd[:, first] + cost_usd[:, second]
    returned = np.where(agree, first, most_accurate)
    if len(tiers) == 3:
        third = tiers[2]
        cost = cost + np.where(agree, 0.0, cost_usd[:, third])
        with_third = answers_agree(answer_number, first, third) | answers_agree(answer_number, second, third)
        returned = np.where(~agree & with_third, third, returned)
    return correct[np.arange(len(correct)), returned], cost


def answers_agree(answer_number: np.ndarray, one: int, other: int) -> np.ndarray:
    """Whether two tiers gave the same answer, bool (n_prompts,)."""
    return np.asarray((answer_number[:, one] >= 0) & (answer_number[:, one] == answer_number[:, other]))
