"""A plan for one request: whom to ask first, what to look at, when to stop, and whom to ask next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from router.checks import AsyncCheck, Check
from router.checks.normalise import Normaliser
from router.checks.normalise import normalise as normalise_answer
from router.decision import Decision
from router.notebook import tree
from router.plan_result import PlanResult
from router.plans.checks import CheckModel
from router.plans.tree import Choices, Step, alone, step_json, step_lines
from router.portfolio.tiers import Offer
from router.running import Ask, AsyncAsk, arun, run
from router.walk import Walk

if TYPE_CHECKING:
    from router.outcomes.log import OutcomeLog


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
            return alone(self.tier, self.success, self.offers.get(self.tier, ()))
        return self.choices.first_step()

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

    def run(
        self,
        ask: Ask,
        checks: Mapping[str, Check] | None = None,
        *,
        normalise: Normaliser = normalise_answer,
        log: OutcomeLog | None = None,
        parallel: bool = False,
    ) -> PlanResult:
        """Ask, look at the answers, and go on as planned; the answer with all that led to it. Run a plan only once.

        ask: sends the prompt, which is the caller's, to an offer; returns the answer's text, or an Answer with its
            cost. An exception, such as of a timeout, is a failed call: the tier's next offer is asked. Where all have
            failed, the eligible tier with the highest expected success that has not failed is asked in its place.
        checks: the verifiers by name; each is called with prompt and answer, as router.checks says. A check that fails
            has seen nothing, which counts as its worst verdict.
        normalise: what two answers are compared by; answers for which it returns None agree with none.
        log: takes every attempt, with a digest of its answer, and what was said of it.
        parallel: make the first two calls at once, in threads, where the plan makes both for sure, at the same cost.
            Where the first of them fails, the other's answer is returned unless a better tier is worth its price.

        Raises CheckError, before anything is asked, where a verifier of the plan is missing in `checks`, and PlanError
        where all calls failed. An error of one call never loses the answer of another.
        """
        return run(self._walk(ask, checks, normalise, log, parallel))

    async def arun(
        self,
        ask: Ask | AsyncAsk,
        checks: Mapping[str, Check | AsyncCheck] | None = None,
        *,
        normalise: Normaliser = normalise_answer,
        log: OutcomeLog | None = None,
        parallel: bool = False,
    ) -> PlanResult:
        """As `run`, in an event loop. Functions that are not async are called in threads."""
        return await arun(self._walk(ask, checks, normalise, log, parallel))

    def _walk(
        self, ask: Any, checks: Mapping[str, Any] | None, normalise: Normaliser, log: OutcomeLog | None, parallel: bool
    ) -> Walk:
        return Walk(
            decision=self.decision,
            first=self.first,
            choices=self.choices,
            offers=self.offers,
            verifiers=self.verifiers,
            prompt=self.prompt,
            ask=ask,
            checks=checks or {},
            normalise=normalise,
            log=log,
            is_parallel=parallel,
            worth_usd=self.worth_usd,
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The plan as a tree in text, one line for each thing that may be seen."""
        return (f"ask {self.first.tier}", *step_lines(self.first, "  "))

    def __str__(self) -> str:
        return "\n".join((self.reason, *self.lines))

    def _repr_html_(self) -> str:
        """The reason above the tree of what may be seen, in a notebook."""
        return tree(self.reason, self.lines)

    def to_json(self) -> str:
        """One line of JSON. It never holds the prompt."""
        return json.dumps(
            {
                "steps": step_json(self.first),
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
