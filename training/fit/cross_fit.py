"""Cross-fitting: an estimate for every prompt from a fit that did not see it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.errors import FitError
from training.log.split import fold_numbers

N_FOLDS = 5


def folds_of(groups: np.ndarray, seed: int) -> np.ndarray:
    """Fold of each prompt, int (n_prompts,); raises FitError where all prompts are in one fold."""
    folds = fold_numbers(groups, N_FOLDS, seed)
    if len(np.unique(folds)) < 2:
        raise FitError("all training prompts are of one or two groups (question_key), or too few; expected many")
    return folds


def out_of_fold(folds: np.ndarray, fit_predict: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """fit_predict(mask of the other folds, mask of the fold) for every fold, put together in the order of the prompts.

    folds: (n_prompts,). fit_predict returns one row for every prompt of the fold.
    """
    held_out = [folds == fold for fold in np.unique(folds)]
    order = np.concatenate([np.flatnonzero(rows) for rows in held_out])
    predictions = np.concatenate([fit_predict(~rows, rows) for rows in held_out])
    return predictions[np.argsort(order)]
