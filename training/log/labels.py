"""The cheapest-correct label: the cheapest tier that answers a prompt correctly."""

from __future__ import annotations

import numpy as np

NONE = -1
UNKNOWN = -2


def label_cheapest_correct(correct: np.ndarray, cost_usd: np.ndarray) -> np.ndarray:
    """Index of the cheapest tier that answered each prompt correctly.

    correct: 0..1, shape (n_prompts, n_tiers), 0.5 and more counts as correct; NaN where the tier was not observed.
    cost_usd: cost of that attempt, same shape; for an unobserved attempt what it would have cost; NaN where unknown.
    Returns int, shape (n_prompts,): a tier (of equally cheap ones the first); NONE where every tier was wrong; UNKNOWN
    where an unobserved tier could be correct and cheaper, or could be the only correct one.
    """
    observed = np.isfinite(correct)
    right = observed & (np.nan_to_num(correct) >= 0.5)
    known_cost = np.where(np.isfinite(cost_usd), cost_usd, np.inf)
    cheapest = np.where(right, known_cost, np.inf).argmin(axis=1)
    # A correct attempt of unknown cost counts as the dearest. It is still chosen where it is the only one.
    none_priced = ~(right & np.isfinite(known_cost)).any(axis=1)
    cheapest = np.where(none_priced, right.argmax(axis=1), cheapest)
    label = np.where(right.any(axis=1), cheapest, NONE)

    paid = np.take_along_axis(known_cost, cheapest[:, None], axis=1)
    could_be_cheaper = ~observed & ((cost_usd < paid) | np.isnan(cost_usd))
    undecided = np.where(right.any(axis=1), could_be_cheaper.any(axis=1), ~observed.all(axis=1))
    return np.where(undecided, UNKNOWN, label)


def label_distribution(label: np.ndarray, tiers: tuple[str, ...], segments: np.ndarray) -> dict[str, dict[str, float]]:
    """Share of each label, over all prompts (under "all") and per segment.

    label: as label_cheapest_correct returns it. segments: text, same length; "" is no segment.
    """
    names = {NONE: "none", UNKNOWN: "unknown", **dict(enumerate(tiers))}
    parts = {"all": np.ones(len(label), dtype=bool)}
    parts |= {str(segment): segments == segment for segment in np.unique(segments) if segment}
    return {
        part: {name: float(np.mean(label[rows] == value)) for value, name in names.items()}
        for part, rows in parts.items()
        if rows.any()
    }
