"""Plans on logged answers: what would have been asked, seen, returned and paid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from router.plans.engine import PlanTables

ALL, FIRST_SECOND, FIRST_THIRD, SECOND_THIRD, NONE = range(5)
"""Patterns of three answers: which of them are equal."""


@dataclass(frozen=True)
class LoggedAnswers:
    """What a log says of the answers of all tiers on n prompts.

    answer_number: which of the prompt's distinct answers each tier gave, -1 for none, int (n, n_tiers); None where
    answers are not compared, which counts as if all agreed.
    classes: class of the check's score of each answer, int (n, n_tiers); all 0 without a check.
    check_usd: what checking each answer cost, (n, n_tiers).
    """

    answer_number: np.ndarray | None
    classes: np.ndarray
    check_usd: np.ndarray

    def agree(self, rows: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether tiers `one` and `other` of the rows gave the same answer; all (m,)."""
        if self.answer_number is None:
            return np.ones(len(rows), bool)
        first = self.answer_number[rows, one]
        return np.asarray((first >= 0) & (first == self.answer_number[rows, other]))

    def rows(self, rows: slice) -> LoggedAnswers:
        """Of some prompts."""
        numbers = None if self.answer_number is None else self.answer_number[rows]
        return LoggedAnswers(numbers, self.classes[rows], self.check_usd[rows])


@dataclass(frozen=True, slots=True)
class Replayed:
    """What plans did. All (n_prompts,), but asked.

    returned: the tier whose answer was returned, int. asked: the tiers asked, in order, -1 for nobody, int
    (n_prompts, 3). is_checked: which of these answers were checked, bool (n_prompts, 3).
    """

    returned: np.ndarray
    asked: np.ndarray
    is_checked: np.ndarray

    @property
    def n_calls(self) -> np.ndarray:
        """Calls made, int."""
        return np.asarray((self.asked >= 0).sum(axis=1))

    def outcome(self, correct: np.ndarray) -> np.ndarray:
        """Of the answers returned; correct: (n_prompts, n_tiers)."""
        return np.asarray(correct[np.arange(len(correct)), self.returned])

    def cost_usd(self, cost_usd: np.ndarray, check_usd: np.ndarray) -> np.ndarray:
        """Of all calls and checks; both arguments (n_prompts, n_tiers)."""
        rows = np.arange(len(cost_usd))[:, None]
        paid = np.where(self.asked >= 0, cost_usd[rows, self.asked], 0.0)
        return np.asarray((paid + np.where(self.is_checked, check_usd[rows, self.asked], 0.0)).sum(axis=1))


def replay(tables: PlanTables, answers: LoggedAnswers, worth: int = 0) -> Replayed:
    """Follow each prompt's plan at one of the worths (by its number) through the logged answers."""
    n = len(tables.first)
    asked = np.full((n, 3), -1)
    is_checked = np.zeros((n, 3), bool)
    asked[:, 0] = np.where(tables.is_plan[:, worth], tables.first[:, worth], tables.direct[:, worth])
    is_checked[:, 0] = tables.is_plan[:, worth]
    returned = asked[:, 0].copy()

    rows = np.flatnonzero(tables.is_plan[:, worth])
    first = asked[rows, 0]
    score = answers.classes[rows, first]
    asked[rows, 1] = tables.second[rows, worth, first, score]
    going_on = asked[rows, 1] >= 0
    rows, first, score = rows[going_on], first[going_on], score[going_on]
    second = asked[rows, 1]
    agree = np.where(answers.agree(rows, first, second), 0, 1)
    checked = tables.is_checked[rows, worth, first, second, score]
    is_checked[rows, 1] = checked

    other = answers.classes[rows, second]
    after_two = tables.after_two[rows, first, second, score]  # (m, B, 2, 3)
    at = np.arange(len(rows))
    not_looked_at = after_two.sum(axis=1)
    rights = np.where(checked[:, None], after_two[at, other, agree, 1:], not_looked_at[at, agree, 1:])
    returned[rows] = np.where(rights[:, 1] > rights[:, 0], second, first)

    third = np.where(checked, tables.third[rows, worth, first, second, score, other, agree], -1)
    asked[rows, 2] = third
    going_on = third >= 0
    rows, first, second, third, score, other, agree = (
        each[going_on] for each in (rows, first, second, third, score, other, agree)
    )
    with_first, with_second = answers.agree(rows, first, third), answers.agree(rows, second, third)
    pattern = np.where(agree == 0, np.where(with_first, ALL, FIRST_SECOND), np.where(with_first, FIRST_THIRD, NONE))
    pattern = np.where((agree == 1) & ~with_first & with_second, SECOND_THIRD, pattern)
    right = tables.after_three[rows, first, second, third, score, other, pattern, 1:].argmax(axis=1)
    returned[rows] = np.stack([first, second, third], axis=1)[np.arange(len(rows)), right]
    return Replayed(returned=returned, asked=asked, is_checked=is_checked)
