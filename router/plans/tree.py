"""The steps of a plan: whom it asks, what it looks at, and what it does then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from router.plans.checks import CheckModel
from router.plans.engine import PlanTables
from router.portfolio.tiers import Offer

PATTERNS = ("all agree", "{0} and {1} agree", "{0} and {2} agree", "{1} and {2} agree", "no two agree")

_LEAST = 1e-12


@dataclass(frozen=True)
class Branch:
    """What is done where a certain thing was seen.

    seen: in words. probability: that it is seen, given that the step is reached. key: the class of the check's score
    and the number of the pattern of agreement, None where that is not looked at. step: who is asked next, None where
    the plan ends. returned: the tier whose answer is returned then, and success: P(it is right).
    """

    seen: str
    probability: float
    key: tuple[int | None, int | None]
    step: Step | None
    returned: str | None
    success: float | None


@dataclass(frozen=True)
class Step:
    """A call of a plan.

    tier: is asked. offer: the cheapest usable one. is_checked: whether the verifiers look at the answer. compared:
    whether it is compared with the answers before. branches: what comes then, by what is seen.
    """

    tier: str
    offer: Offer | None
    is_checked: bool
    compared: bool
    branches: tuple[Branch, ...]

    def branch(self, score_class: int, pattern: int) -> Branch:
        """What to do after this score and this pattern of agreement (of two or three answers)."""
        seen = (score_class if self.is_checked else None, pattern if self.compared else None)
        return next(branch for branch in self.branches if branch.key == seen)


class Seen(NamedTuple):
    """An answer of a plan under way. score: the class of its score. pattern: of its agreement with those before."""

    tier: str
    score: int
    pattern: int


@dataclass(frozen=True)
class Choices:
    """The tables of one prompt, of which a plan's steps are read.

    tiers: names. first: the tier asked first. The others are as in PlanTables, of one worth and of this first tier.
    agreement: whether answers are compared. verifiers: that look at answers, in the order of their names.
    offers: usable ones per tier, cheapest first.
    """

    tiers: tuple[str, ...]
    first: int
    second: list[int]
    is_checked: np.ndarray
    third: np.ndarray
    after_one: list[list[float]]
    after_two: np.ndarray
    after_three: np.ndarray
    agreement: bool
    verifiers: tuple[CheckModel, ...]
    offers: Mapping[str, tuple[Offer, ...]]

    @classmethod
    def of(
        cls,
        tables: PlanTables,
        tiers: tuple[str, ...],
        *,
        agreement: bool,
        verifiers: tuple[CheckModel, ...] = (),
        offers: Mapping[str, tuple[Offer, ...]] | None = None,
    ) -> Choices:
        """From the tables of one prompt at one worth. verifiers and offers are for words and steps only."""
        first = int(tables.first[0, 0])
        return cls(
            tiers=tiers,
            first=first,
            second=tables.second[0, 0, first].tolist(),
            is_checked=tables.is_checked[0, 0, first],
            third=tables.third[0, 0, first],
            after_one=tables.after_one[0, first].tolist(),
            after_two=tables.after_two[0, first],
            after_three=tables.after_three[0, first],
            agreement=agreement,
            verifiers=verifiers,
            offers=offers or {},
        )

    def expected(self, cost_usd: Sequence[float], check_usd: Sequence[float]) -> tuple[float, float]:
        """P(the answer returned is right), and what is paid on average; both arguments (n_tiers,)."""
        success, cost = 0.0, cost_usd[self.first] + check_usd[self.first]
        for score, second in enumerate(self.second):
            reached, right = self.after_one[score]
            if second < 0:
                success += right
                continue
            cost += cost_usd[second] * reached
            after_two = self.after_two[second, score]  # (B, 2, 3)
            if not self.is_checked[second, score]:
                success += float(after_two.sum(axis=0)[:, 1:].max(axis=1).sum())
                continue
            cost += check_usd[second] * reached
            thirds = self.third[second, score].tolist()
            for other, of_other in enumerate(after_two.tolist()):
                for agree, (seen, *rights) in enumerate(of_other):
                    third = thirds[other][agree]
                    if third < 0:
                        success += max(rights)
                        continue
                    cost += cost_usd[third] * seen
                    patterns = self.after_three[second, third, score, other].tolist()  # (5, 4)
                    success += sum(max(pattern[1:]) for pattern in (patterns[:2] if agree == 0 else patterns[2:]))
        return success, cost

    def first_step(self) -> Step:
        """The plan's steps as a tree."""
        branches = []
        for score, second in enumerate(self.second):
            seen, right = self.after_one[score]
            branches.append(
                Branch(
                    seen=_score_words(self.verifiers, score) or "any answer",
                    probability=seen,
                    key=(score if self.verifiers else None, None),
                    step=None if second < 0 else self._second_step(second, score, seen),
                    returned=self.tiers[self.first] if second < 0 else None,
                    success=right / max(seen, _LEAST) if second < 0 else None,
                )
            )
        return self._step(self.first, bool(self.verifiers), False, branches)

    def step_instead(self, tier: str, seen: Sequence[Seen]) -> Step:
        """The step that asks this tier after one or two answers, where the one that the plan would ask has failed."""
        number, score = self.tiers.index(tier), seen[0].score
        if len(seen) == 1:
            return self._second_step(number, score, self.after_one[score][0])
        second = self.tiers.index(seen[1].tier)
        return self._third_step((self.first, second, number), (score, seen[1].score, seen[1].pattern))

    def best_of(self, seen: Sequence[Seen]) -> tuple[str, float]:
        """Which of one or two answers is returned where nobody is left to ask, and P(it is right)."""
        if len(seen) == 1:
            found, *rights = self.after_one[seen[0].score]
        else:
            second = self.tiers.index(seen[1].tier)
            found, *rights = self.after_two[second, seen[0].score, seen[1].score, seen[1].pattern].tolist()
        best = rights.index(max(rights))
        return seen[best].tier, rights[best] / max(found, _LEAST)

    def _second_step(self, second: int, score: int, reached: float) -> Step:
        names = (self.tiers[self.first], self.tiers[second])
        goes_on = bool(self.is_checked[second, score])
        is_checked = goes_on and bool(self.verifiers)
        after = self.after_two[second, score].astype(float)  # (B, 2, 3)
        branches = []
        for other in range(len(after)) if is_checked else (None,):
            for agree in (0, 1) if self.agreement else (None,):
                found = after.sum(axis=0) if other is None else after[other]
                seen, *rights = found.sum(axis=0) if agree is None else found[agree]
                at = (score, other or 0, agree or 0)
                third = int(self.third[(second, *at)]) if goes_on else -1
                which = int(rights[1] > rights[0])
                words = [] if other is None else [_score_words(self.verifiers, other)]
                words += [] if agree is None else ["they agree" if agree == 0 else "they differ"]
                branches.append(
                    Branch(
                        seen=", ".join(words) or "any answer",
                        probability=float(seen) / max(reached, _LEAST),
                        key=(other, agree),
                        step=None if third < 0 else self._third_step((self.first, second, third), at),
                        returned=names[which] if third < 0 else None,
                        success=float(rights[which]) / max(float(seen), _LEAST) if third < 0 else None,
                    )
                )
        return self._step(second, is_checked, self.agreement, branches)

    def _third_step(self, asked: tuple[int, int, int], at: tuple[int, int, int]) -> Step:
        names = tuple(self.tiers[tier] for tier in asked)
        score, other, agree = at
        after = self.after_three[asked[1], asked[2], score, other].astype(float)  # (5, 4)
        reached = float(self.after_two[asked[1], score, other, agree, 0])
        patterns = ((0, 1) if agree == 0 else (2, 3, 4)) if self.agreement else (0,)
        branches = []
        for pattern in patterns:
            seen, rights = float(after[pattern, 0]), after[pattern, 1:]
            which = int(rights.argmax())
            branches.append(
                Branch(
                    seen=PATTERNS[pattern].format(*names) if self.agreement else "any answer",
                    probability=seen / max(reached, _LEAST),
                    key=(None, pattern if self.agreement else None),
                    step=None,
                    returned=names[which],
                    success=float(rights[which]) / max(seen, _LEAST),
                )
            )
        return self._step(asked[2], False, self.agreement, branches)

    def _step(self, tier: int, is_checked: bool, compared: bool, branches: list[Branch]) -> Step:
        name = self.tiers[tier]
        offers = self.offers.get(name, ())
        return Step(name, offers[0] if offers else None, is_checked, compared, tuple(branches))


def _score_words(verifiers: tuple[CheckModel, ...], score: int) -> str:
    """What a class of scores means, such as "tests pass"."""
    words = []
    for check in reversed(verifiers):
        score, own = divmod(score, check.n_classes)
        if check.n_classes == 2:
            words.append(f"{check.name} {'passes' if own else 'fails'}")
        else:
            low = check.thresholds[own - 1] if own else 0.0
            words.append(f"{check.name} at least {low:g}" if own else f"{check.name} below {check.thresholds[0]:g}")
    return ", ".join(reversed(words))


def alone(tier: str, success: float, offers: tuple[Offer, ...]) -> Step:
    """The step that asks a tier and returns its answer. success: P(it is right). offers: usable ones of the tier."""
    done = Branch(seen="any answer", probability=1.0, key=(None, None), step=None, returned=tier, success=success)
    return Step(tier, offers[0] if offers else None, is_checked=False, compared=False, branches=(done,))


def step_json(step: Step) -> dict[str, Any]:
    """A step and all that hangs on it, as plain values."""
    return {
        "tier": step.tier,
        "model": step.offer.model if step.offer else None,
        "is_checked": step.is_checked,
        "compared": step.compared,
        "branches": [
            {
                "seen": branch.seen,
                "probability": branch.probability,
                "step": branch.step and step_json(branch.step),
                "returned": branch.returned,
                "success": branch.success,
            }
            for branch in step.branches
        ],
    }


def step_lines(step: Step, indent: str) -> list[str]:
    """A line of text for each thing that may be seen after a step."""
    lines = []
    for branch in step.branches:
        seen = f"{indent}{branch.seen} ({branch.probability:.0%}): "
        if branch.step is None:
            lines.append(f"{seen}return the answer of {branch.returned}, right with {branch.success:.1%} probability")
        else:
            lines += [f"{seen}ask {branch.step.tier}", *step_lines(branch.step, indent + "  ")]
    return lines
