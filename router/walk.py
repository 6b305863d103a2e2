"""The way through a plan that is run: what to call next, given what came of the calls before."""

from __future__ import annotations

import os
import reprlib
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from router.checks.normalise import Normaliser
from router.checks.verdict import verdict_of
from router.decision import Decision
from router.errors import CheckError, PlanError
from router.plan_result import Answer, Attempt, PlanResult
from router.plans.checks import CheckModel
from router.plans.tree import Choices, Seen, Step, alone
from router.portfolio.tiers import Offer

if TYPE_CHECKING:
    from router.outcomes.log import OutcomeLog


class Happened(NamedTuple):
    """What came of calling a function: the value that it returned, or its error. latency_ms: how long it took."""

    value: Any
    error: Exception | None
    latency_ms: float


Calls = tuple[Callable[[], Any], ...]
"""Functions to be called at the same time."""

Part = Generator[Calls, tuple[Happened, ...], Any]
"""A part of the way: yields what is to be called, and takes what came of it."""


@dataclass(kw_only=True)
class Walk:
    """The way through one plan. It never calls anything itself: `router.running` does.

    first: the first step. choices: where the other steps are read; None where the plan is one call.
    offers: usable ones per tier, cheapest first. verifiers: that look at answers, in the order of the plan.
    prompt: for them and for the log.
    checks: functions by name. is_parallel: the first two calls are made at once where both are certain.
    worth_usd: what the plan takes a correct answer to be worth.
    Raises CheckError where a verifier has no function.
    """

    decision: Decision
    first: Step
    choices: Choices | None
    offers: Mapping[str, tuple[Offer, ...]]
    verifiers: tuple[CheckModel, ...]
    prompt: str | None
    ask: Callable[[Offer], Any]
    checks: Mapping[str, Callable[[str, str], Any]]
    normalise: Normaliser
    log: OutcomeLog | None
    is_parallel: bool
    worth_usd: float
    attempts: list[Attempt] = field(default_factory=list)
    _began: datetime = field(default_factory=lambda: datetime.now(UTC))
    _answers: dict[str, int] = field(default_factory=dict)  # tier -> its place in `attempts`
    _forms: dict[str, str | None] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)
    _stand_ins: set[str] = field(default_factory=set)
    _seen: list[Seen] = field(default_factory=list)
    _under_way: tuple[tuple[str, Offer], ...] = ()
    _called_at: float = 0.0

    def __post_init__(self) -> None:
        if missing := [check.name for check in self.verifiers if check.name not in self.checks]:
            raise CheckError(
                f"the plan looks by {', '.join(missing)}, which was not given to run it; "
                f'expected a function for each, as in {{"{missing[0]}": function}}'
            )

    def steps(self) -> Generator[Calls, tuple[Happened, ...], PlanResult]:
        """Yields what is to be called next, takes what came of it, and returns the result; writes the log at its end.

        Raises PlanError where no offer gave an answer.
        """
        returned = None
        try:
            tier, success, why = yield from self._way()
            returned = self._answers[tier]
            self.attempts[returned] = replace(self.attempts[returned], attempt_id=self.decision.decision_id)
            return self._result(returned, success, why)
        finally:
            self._write(returned)

    def _way(self) -> Part:
        """Which tier's answer is returned, P(it is right), and why the plan stops there."""
        if self.is_parallel:
            yield from self._ask_first_two()
        step = self.first
        while True:
            if (yield from self._ask(step.tier)):
                branch = yield from self._look(step)
                if branch.step is None:
                    return branch.returned, branch.success, "where the plan ends"
                step = branch.step
                continue
            self._failed.add(step.tier)
            instead = self._step_instead()
            if instead is not None:
                step = instead
            elif self._seen and self.choices is not None:
                return *self.choices.best_of(self._seen), "since nobody is left to ask"
            else:
                raise self._no_answer()

    def _ask_first_two(self) -> Part:
        """Ask the first two tiers at once, where the first answer changes nothing of who is asked second."""
        second = self.first.branches[0].step
        if self.first.is_checked or len(self.first.branches) > 1 or second is None:
            return
        tiers = [tier for tier in (self.first.tier, second.tier) if self.offers.get(tier)]
        yield from self._call(*((tier, self.offers[tier][0]) for tier in tiers))

    def _ask(self, tier: str) -> Part:
        """Ask the tier's offers until one answers; whether one did."""
        n_asked = sum(attempt.tier == tier for attempt in self.attempts)
        for offer in self.offers.get(tier, ())[n_asked:]:
            if tier in self._answers:
                break
            yield from self._call((tier, offer))
        return tier in self._answers

    def _call(self, *asked: tuple[str, Offer]) -> Part:
        """Ask offers of tiers at the same time, and note what came of it."""
        self._under_way, self._called_at = asked, time.perf_counter()
        happened = yield tuple(partial(self.ask, offer) for _, offer in asked)
        self._under_way = ()  # Whoever calls the plan off leaves them.
        for (tier, offer), came in zip(asked, happened, strict=True):
            self._take(tier, offer, came)

    def _take(self, tier: str, offer: Offer, came: Happened) -> None:
        """Note what came of a call."""
        given, error = came.value, came.error
        answer = Answer(given) if isinstance(given, str) else given
        attempt = Attempt(tier=tier, offer=offer, latency_ms=came.latency_ms, attempt_id=os.urandom(16).hex())
        if error is None and not isinstance(answer, Answer):
            error = TypeError(f"ask returned {reprlib.repr(given)}; expected a text or an Answer")
        if error is not None:
            attempt = replace(attempt, error=error)
        else:
            cost_usd, is_estimated = self._cost(tier, offer, answer)
            attempt = replace(
                attempt, answer=answer.text, cost_usd=cost_usd, cost_is_estimated=is_estimated,
                input_tokens=answer.input_tokens, output_tokens=answer.output_tokens,
            )  # fmt: skip
            self._answers[tier], self._forms[tier] = len(self.attempts), self._form(answer.text)
        self.attempts.append(attempt)

    def _cost(self, tier: str, offer: Offer, answer: Answer) -> tuple[float, bool]:
        """What a call cost in USD, and whether that is what was expected only."""
        if answer.cost_usd is not None:
            return float(answer.cost_usd), False
        n_input, n_output = answer.input_tokens, answer.output_tokens
        if n_input is not None and n_output is not None:
            return _usd(offer, n_input, n_output), False
        return self._expected_usd(tier, offer), True

    def _expected_usd(self, tier: str, offer: Offer | None = None) -> float:
        """What a call of a tier is expected to cost in USD, at one of its offers or at the cheapest."""
        decision, cheapest = self.decision, self.offers[tier][0]
        if offer in (None, cheapest) and tier in decision.cost_usd:
            return decision.cost_usd[tier]
        return _usd(offer or cheapest, decision.context_tokens, decision.output_tokens.get(tier, 0.0))

    def _form(self, text: str) -> str | None:
        try:
            return self.normalise(text)
        except Exception:  # A normaliser of the caller's. An answer without a form agrees with none.
            return None

    def _look(self, step: Step) -> Part:
        """Look at the answer of a step; the branch that the plan takes then."""
        place, score = self._answers[step.tier], 0
        for check in self.verifiers if step.is_checked else ():
            score = score * check.n_classes + (yield from self._check(check, place))
        pattern = self._pattern(step.tier) if step.compared else 0
        branch = step.branch(score, pattern)
        self._seen.append(Seen(tier=step.tier, score=score, pattern=pattern))
        if len(step.branches) > 1:
            self.attempts[place] = replace(self.attempts[place], seen=branch.seen)
        return branch

    def _check(self, check: CheckModel, place: int) -> Part:
        """What one check says of an answer, as the class of its score: the lowest where it could not look."""
        attempt = self.attempts[place]
        [came] = yield (partial(self.checks[check.name], self.prompt or "", attempt.answer or ""),)
        try:
            if came.error is not None:
                raise came.error
            verdict = verdict_of(came.value)
        except Exception as error:
            blind = error if isinstance(error, CheckError) else CheckError(f"check {check.name}: {_short(error)}")
            self.attempts[place] = replace(attempt, blind={**attempt.blind, check.name: blind})
            return 0
        self.attempts[place] = replace(attempt, verdicts={**attempt.verdicts, check.name: verdict})
        return check.class_of(verdict.score)

    def _pattern(self, tier: str) -> int:
        """The number of the pattern of agreement of this answer with those before it, as Step.branch takes it."""
        forms = [self._forms[each] for each in (*(seen.tier for seen in self._seen), tier)]

        def agree(one: int, other: int) -> bool:
            return forms[one] is not None and forms[one] == forms[other]

        if len(forms) == 2:
            return 0 if agree(0, 1) else 1
        if agree(0, 1):
            return 0 if agree(1, 2) else 1
        return 2 if agree(0, 2) else 3 if agree(1, 2) else 4

    def _step_instead(self) -> Step | None:
        """Asks the tier with the highest expected success that has neither failed nor been looked at; None: no such.

        An answer that is there already, since it was asked for at the same time as the one that failed, is taken
        unless the other tier is worth its price.
        """
        done = self._failed | {seen.tier for seen in self._seen}
        able = [tier for tier in self.decision.eligible if self.offers.get(tier) and tier not in done]
        if not able:
            return None
        success = self.decision.success
        tier = max(able, key=success.__getitem__)
        for there in able:
            if there in self._answers and self.worth_usd * (success[tier] - success[there]) <= self._expected_usd(tier):
                tier = there
        self._stand_ins.add(tier)
        if self.choices is not None and self._seen:
            return self.choices.step_instead(tier, self._seen)
        return alone(tier, success[tier], self.offers[tier])

    def _no_answer(self) -> PlanError:
        tried = ", ".join(
            f"{attempt.tier} ({attempt.offer.model} at {attempt.offer.provider}: {_short(attempt.error)})"
            for attempt in self.attempts
        )
        return PlanError(
            f"no answer: all calls failed: {tried}" if tried else f"no offer may answer; {self.decision.reason}",
            attempts=tuple(self.attempts),
        )

    def _result(self, returned: int, success: float, why: str) -> PlanResult:
        attempt = self.attempts[returned]
        story = ", then ".join(_words(each, is_stand_in=each.tier in self._stand_ins) for each in self.attempts)
        blind = "".join(
            f"; {name} could not look at the answer of {each.tier}, which counts as its worst verdict"
            for each in self.attempts
            for name in each.blind
        )
        return PlanResult(
            answer=attempt.answer or "",
            tier=attempt.tier,
            offer=attempt.offer,
            success=success,
            cost_usd=sum(each.cost_usd + each.checks_usd for each in self.attempts),
            cost_is_estimated=any(each.cost_is_estimated for each in self.attempts),
            attempts=tuple(self.attempts),
            reason=f"asked {story}; returned the answer of {attempt.tier}, right with {success:.1%} probability, {why}"
            + blind,
        )

    def _write(self, returned: int | None) -> None:
        """Log all attempts. The one that is returned is the decision's own row, so it is judged by the decision_id.

        Where the plan was called off, that row is the first of the calls that were under way.
        """
        if self.log is None:
            return
        is_planned = self.choices is not None
        self.log.decided(self.decision, self.prompt, timestamp=self._began, is_planned=is_planned)
        for place, attempt in enumerate(self.attempts):
            is_whole = attempt.answer is not None
            columns: dict[str, Any] = {
                "ended": "complete" if is_whole else "failed",
                "model": attempt.offer.model,
                "provider": attempt.offer.provider,
                "tier": attempt.tier,
                "input_tokens": attempt.input_tokens,
                "output_tokens": attempt.output_tokens,
                "cost_usd": attempt.cost_usd if is_whole and not attempt.cost_is_estimated else None,
                "latency_ms": attempt.latency_ms,
                "answer": self._forms[attempt.tier] if is_whole else None,
                "checks": attempt.verdicts,
            }
            if place == returned:
                self.log.outcome(self.decision.decision_id, **columns)
            else:
                prompt = self.prompt if is_whole else None
                self.log.attempt(self.decision, attempt_id=attempt.attempt_id, prompt=prompt, **columns)
        for place, (tier, offer) in enumerate(self._under_way):
            took_ms = (time.perf_counter() - self._called_at) * 1000
            left: dict[str, Any] = {
                "model": offer.model,
                "provider": offer.provider,
                "tier": tier,
                "latency_ms": took_ms,
            }
            if place == 0:
                self.log.outcome(self.decision.decision_id, ended="left", **left)
            else:
                self.log.attempt(self.decision, ended="left", **left)


def _usd(offer: Offer, input_tokens: float, output_tokens: float) -> float:
    """What so many tokens cost at the prices of an offer."""
    return (input_tokens * offer.usd_per_mtok_input + output_tokens * offer.usd_per_mtok_output) / 1e6


def _short(error: Exception | None) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _words(attempt: Attempt, *, is_stand_in: bool) -> str:
    """An attempt in the words of a reason."""
    if attempt.error is not None:
        return f"{attempt.tier} at {attempt.offer.provider} (failed: {type(attempt.error).__name__})"
    tier = f"{attempt.tier} in its place" if is_stand_in else attempt.tier
    return f"{tier} ({attempt.seen})" if attempt.seen else tier
