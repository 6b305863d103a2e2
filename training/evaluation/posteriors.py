"""What the bundle expects of one, two and three answers to a prompt, before and after it has seen those of the log.

All of it is read from the plan graph, so rivals that decide by it see the same estimates as plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from router.plans.engine import PlanEngine, PlanTables
from router.plans.planner import Looks
from router.plans.replay import ALL, FIRST_SECOND, FIRST_THIRD, NONE, SECOND_THIRD
from training.evaluation.plan_prompts import PlanPrompts

_MOST_VALUES = 4_000_000
"""Of the largest array that the graph makes at once."""

_LEAST = 1e-12


@dataclass(frozen=True)
class Posteriors:
    """P(the best of the answers is right) for each of n prompts, and which one it is.

    The best answer is the one that is right with the highest probability, given all that was seen. Of several K (tiers)
    the first is the tier asked first, the next the second, the last the third; a tier asked twice has 0. The last
    answer is not checked; where answers are compared, all of them are.

    one, two, three: before anything was asked, if so many tiers are asked; (n, K), (n, K, K), (n, K, K, K).
    one_seen, two_after_one, three_after_one: after the first answer was checked; the same shapes.
    two_seen, three_after_two: after two answers were checked and compared; (n, K, K), (n, K, K, K).
    best_of_two: which of two is best where the second was not checked, best_of_two_seen: where it was, 0 or 1;
    best_of_three: 0, 1 or 2.
    """

    one: np.ndarray
    two: np.ndarray
    three: np.ndarray
    one_seen: np.ndarray
    two_after_one: np.ndarray
    three_after_one: np.ndarray
    two_seen: np.ndarray
    three_after_two: np.ndarray
    best_of_two: np.ndarray
    best_of_two_seen: np.ndarray
    best_of_three: np.ndarray

    @classmethod
    def of(cls, engine: PlanEngine, looks: Looks, prompts: PlanPrompts) -> Posteriors:
        """Run the plan graph on the prompts, at least one, and follow the logged answers."""
        classes, agree = prompts.answers.classes, prompts.agree
        parts = [
            _posteriors(prompts.success[rows], tables, classes[rows], agree[rows])
            for rows, tables in tables_in_batches(engine, prompts, looks.inputs)
        ]
        return cls(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def tables_in_batches(
    engine: PlanEngine, prompts: PlanPrompts, inputs: Mapping[str, np.ndarray], worth_usd: float = 1.0
) -> Iterator[tuple[slice, PlanTables]]:
    """The tables of the plan graph at one worth, for some prompts at a time, which saves memory.

    inputs: of router.plans.engine.look_inputs. What is expected of answers hangs on no worth.
    """
    per_prompt = 20 * prompts.n_tiers**3 * inputs["verdicts"].shape[1] ** 2
    size = int(np.clip(_MOST_VALUES // per_prompt, 1, 256))
    for start in range(0, prompts.n_prompts, size):
        rows = slice(start, start + size)
        success = np.ascontiguousarray(prompts.success[rows], np.float32)
        cost_usd = np.ascontiguousarray(prompts.cost_usd[rows], np.float32)
        worth = np.full((len(success), 1), worth_usd, np.float32)
        yield rows, engine.run(success, cost_usd, np.ascontiguousarray(prompts.eligible[rows]), worth, inputs)


def _posteriors(
    success: np.ndarray, tables: PlanTables, classes: np.ndarray, agree: np.ndarray
) -> dict[str, np.ndarray]:
    """The fields of Posteriors for a batch. classes: of the logged verdicts, (n, K); agree: as PlanPrompts has it."""
    n, k = success.shape
    row, first = np.ogrid[:n, :k]
    row2, first2, second2 = np.ogrid[:n, :k, :k]
    row3, first3, second3, third3 = np.ogrid[:n, :k, :k, :k]

    unchecked = tables.after_two.sum(axis=4)  # (n, K, K, B, 2, 3)
    two = _best(unchecked).sum(axis=-1)  # (n, K, K, B)
    three = _best(tables.after_three)  # (n, K, K, K, B, B, 5)
    three_after_one = three.reshape(*three.shape[:5], -1) @ np.ones(three.shape[5] * three.shape[6], np.float32)
    seen_one, right_one = np.moveaxis(tables.after_one[row, first, classes], -1, 0)  # (n, K) each

    class2, class3 = classes[row2, first2], classes[row3, first3]
    seen_two = tables.after_two[row2, first2, second2, class2, classes[row2, second2], np.where(agree, 0, 1)]
    on_the_way = three[row3, first3, second3, third3, class3, classes[row3, second3]]  # (n, K, K, K, 5)
    where_they_agree, where_they_differ = on_the_way[..., :2].sum(axis=-1), on_the_way[..., 2:].sum(axis=-1)
    at_the_end = tables.after_three[
        row3, first3, second3, third3, class3, classes[row3, second3], _patterns(agree), 1:
    ]  # (n, K, K, K, 3)
    return {
        "one": success,
        "two": two.sum(axis=-1),
        "three": three_after_one.sum(axis=-1),
        "one_seen": right_one / np.maximum(seen_one, _LEAST),
        "two_after_one": two[row2, first2, second2, class2] / np.maximum(seen_one, _LEAST)[:, :, None],
        "three_after_one": three_after_one[row3, first3, second3, third3, class3]
        / np.maximum(seen_one, _LEAST)[:, :, None, None],
        "two_seen": _best(seen_two) / np.maximum(seen_two[..., 0], _LEAST),
        "three_after_two": np.where(agree[..., None], where_they_agree, where_they_differ)
        / np.maximum(seen_two[..., 0], _LEAST)[..., None],
        "best_of_two": unchecked[row2, first2, second2, class2, np.where(agree, 0, 1), 1:].argmax(axis=-1),
        "best_of_two_seen": seen_two[..., 1:].argmax(axis=-1),
        "best_of_three": at_the_end.argmax(axis=-1).astype(np.int8),
    }


def _best(seen: np.ndarray) -> np.ndarray:
    """P(seen and the best answer is right), of the tables of PlanTables; their last axis is gone."""
    best = seen[..., 1]
    for answer in range(2, seen.shape[-1]):  # several times as fast as max(axis=-1)
        best = np.maximum(best, seen[..., answer])
    return best


def _patterns(agree: np.ndarray) -> np.ndarray:
    """The pattern of agreement of each three tiers, int (n, K, K, K)."""
    first_second, first_third, second_third = agree[:, :, :, None], agree[:, :, None, :], agree[:, None, :, :]
    where_two_agree = np.where(first_third, ALL, FIRST_SECOND)
    return np.where(
        first_second, where_two_agree, np.where(first_third, FIRST_THIRD, np.where(second_third, SECOND_THIRD, NONE))
    )
