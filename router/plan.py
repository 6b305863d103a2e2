"""A plan for one request: whom to ask first, what to look at, when to stop, and whom to ask next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from router.decision import Decision
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


@dataclass(frozen=True)
class Plan:
    """The best plan for one request, with all that it was chosen from.

    decision: of direct routing, for the same request. tier: is asked first; it may be another than that of the
    decision, since a plan's promise is proven at the prices in force and the decision's at any prices.
    checks: names of what may be looked at. success: P(the answer returned is right). cost_usd: expected, every call and
    check paid for. reason: in a sentence. is_direct: the plan is one call and looks at nothing.
    quality, worth_usd: the dials in force; worth_usd is what the plan takes a correct answer to be worth.
    promised: whether `quality` is promised for plans like this, at the prices in force.
    """

    decision: Decision
    tier: str
    checks: tuple[str, ...]
    success: float
    cost_usd: float
    reason: str
    is_direct: bool
    quality: float | None
    worth_usd: float
    promised: bool
    verifiers: tuple[CheckModel, ...] = field(default=(), repr=False)
    prompt: str | None = field(default=None, repr=False, compare=False)
    offers: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict, repr=False)
    choices: Choices | None = field(default=None, repr=False, compare=False)

    @cached_property
    def first(self) -> Step:
        """The first call; the other steps hang on its branches."""
        if self.choices is None:
            tier = self.tier
            offers = self.offers.get(tier, ())
            done = Branch(
                seen="any answer", probability=1.0, key=(None, None), step=None, returned=tier, success=self.success
            )
            return Step(tier, offers[0] if offers else None, is_checked=False, compared=False, branches=(done,))
        return self.choices.first_step(self)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step that may come to pass, each before those that hang on it."""
        found: list[Step] = []

        def add(step: Step) -> None:
            found.append(step)
            for branch in step.branches:
                if branch.step is not None:
                    add(branch.step)

        add(self.first)
        return tuple(found)

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan as a tree in text, one line for each thing that may be seen."""
        return (f"ask {self.first.tier}", *_lines(self.first, "  "))

    def __str__(self) -> str:
        return "\n".join((self.reason, *self.lines))

    def to_json(self) -> str:
        """One line of JSON. It never holds the prompt."""
        return json.dumps(
            {
                "steps": _step_json(self.first),
                "checks": list(self.checks),
                "success": self.success,
                "cost_usd": self.cost_usd,
                "reason": self.reason,
                "is_direct": self.is_direct,
                "quality": self.quality,
                "worth_usd": self.worth_usd,
                "promised": self.promised,
                "decision": json.loads(self.decision.to_json()),
            },
            ensure_ascii=False,
            allow_nan=False,
        )


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "tier": step.tier,
        "model": step.offer.model if step.offer else None,
        "is_checked": step.is_checked,
        "compared": step.compared,
        "branches": [
            {
                "seen": branch.seen,
                "probability": branch.probability,
                "step": branch.step and _step_json(branch.step),
                "returned": branch.returned,
                "success": branch.success,
            }
            for branch in step.branches
        ],
    }


def _lines(step: Step, indent: str) -> list[str]:
    lines = []
    for branch in step.branches:
        seen = f"{indent}{branch.seen} ({branch.probability:.0%}): "
        if branch.step is None:
            lines.append(f"{seen}return the answer of {branch.returned}, right with {branch.success:.1%} probability")
        else:
            lines += [f"{seen}ask {branch.step.tier}", *_lines(branch.step, indent + "  ")]
    return lines


@dataclass(frozen=True)
class Choices:
    """The tables of one prompt, of which a plan's steps are read.

    tiers: names. first: the tier asked first. The others are as in PlanTables, of one worth and of this first tier.
    agreement: whether answers are compared.
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

    @classmethod
    def of(cls, tables: PlanTables, tiers: tuple[str, ...], *, agreement: bool) -> Choices:
        """From the tables of one prompt at one worth."""
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

    def first_step(self, plan: Plan) -> Step:
        """The plan's steps as a tree."""
        branches = []
        for score, second in enumerate(self.second):
            seen, right = self.after_one[score]
            branches.append(
                Branch(
                    seen=_score_words(plan.verifiers, score) or "any answer",
                    probability=seen,
                    key=(score if plan.verifiers else None, None),
                    step=None if second < 0 else self._second_step(plan, second, score, seen),
                    returned=self.tiers[self.first] if second < 0 else None,
                    success=right / max(seen, _LEAST) if second < 0 else None,
                )
            )
        return self._step(plan, self.first, bool(plan.verifiers), False, branches)

    def _second_step(self, plan: Plan, second: int, score: int, reached: float) -> Step:
        names = (self.tiers[self.first], self.tiers[second])
        goes_on = bool(self.is_checked[second, score])
        is_checked = goes_on and bool(plan.verifiers)
        after = self.after_two[second, score].astype(float)  # (B, 2, 3)
        branches = []
        for other in range(len(after)) if is_checked else (None,):
            for agree in (0, 1) if self.agreement else (None,):
                found = after.sum(axis=0) if other is None else after[other]
                seen, *rights = found.sum(axis=0) if agree is None else found[agree]
                at = (score, other or 0, agree or 0)
                third = int(self.third[(second, *at)]) if goes_on else -1
                which = int(rights[1] > rights[0])
                words = [] if other is None else [_score_words(plan.verifiers, other)]
                words += [] if agree is None else ["they agree" if agree == 0 else "they differ"]
                branches.append(
                    Branch(
                        seen=", ".join(words) or "any answer",
                        probability=float(seen) / max(reached, _LEAST),
                        key=(other, agree),
                        step=None if third < 0 else self._third_step(plan, (self.first, second, third), at),
                        returned=names[which] if third < 0 else None,
                        success=float(rights[which]) / max(float(seen), _LEAST) if third < 0 else None,
                    )
                )
        return self._step(plan, second, is_checked, self.agreement, branches)

    def _third_step(self, plan: Plan, asked: tuple[int, int, int], at: tuple[int, int, int]) -> Step:
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
        return self._step(plan, asked[2], False, self.agreement, branches)

    def _step(self, plan: Plan, tier: int, is_checked: bool, compared: bool, branches: list[Branch]) -> Step:
        name = self.tiers[tier]
        offers = plan.offers.get(name, ())
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
