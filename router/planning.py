"""One plan: the dials that hold for it, the graph, and what comes out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from router.bundle.manifest import Manifest
from router.decision import Decision
from router.plan import Plan
from router.plans.dial import PlanDial, PlanPoint, prove_dial
from router.plans.planner import Looks, Planner
from router.plans.tree import Choices
from router.policy import Dials
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Offer
from router.restrictions import CostLimit

logger = logging.getLogger(__name__)

_MOST_DIALS = 32
_ONE_PROOF_AT_A_TIME = threading.Lock()


@dataclass
class PlanDials:
    """The dials of plans of one bundle at one price table, each proven once, in a thread of its own."""

    planner: Planner
    manifest: Manifest
    prices: PriceTable
    _found: dict[tuple[object, ...], PlanDial | None] = field(default_factory=dict)
    _looks: dict[tuple[object, ...], Looks] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self, looks: Looks) -> PlanDial | None:
        """The dial where it is proven; None while it is not, and then a thread proves it."""
        key = looks.key
        try:
            return self._found[key]
        except KeyError:
            self._begin(looks)
            return None

    def proven(self, looks: Looks) -> PlanDial:
        """The dial, proven here and now where it is not yet."""
        found = self._found.get(looks.key)
        return found if found is not None else self._prove(looks)

    def has_offers_of_proof(self, decision: Decision, offers: Mapping[str, tuple[Offer, ...]]) -> bool:
        """Whether a request may use the offers that proofs count on: of each tier the cheapest one of all."""
        quote = self.prices.quote(decision.context_tokens, self.manifest.output_tokens)
        return set(quote.open) <= set(decision.eligible) and all(
            offers.get(tier, ())[:1] == (offer,) for tier, offer in quote.offers.items()
        )

    def in_use(self) -> list[Looks]:
        """What was asked for."""
        return list(self._looks.values())

    def _begin(self, looks: Looks) -> None:
        with self._lock:
            if looks.key in self._found:
                return
            if len(self._found) >= _MOST_DIALS:
                oldest = next(iter(self._found))
                self._found.pop(oldest)
                self._looks.pop(oldest, None)
            self._found[looks.key], self._looks[looks.key] = None, looks
        # No daemon: ONNX Runtime aborts the process where a thread still runs a graph while Python shuts down.
        threading.Thread(target=self._prove_apart, args=(looks,), name="prove plans", daemon=False).start()

    def _prove_apart(self, looks: Looks) -> None:
        """Prove in a thread, one proof at a time; where that fails, nothing is promised, and plans are direct."""
        try:
            with _ONE_PROOF_AT_A_TIME:
                self._prove(looks)
        except Exception:
            logger.exception("the quality of plans that look at %s cannot be proven", " and ".join(looks.names))
            points = tuple(PlanPoint(point.quality, None, None, None) for point in self.manifest.dial)
            with self._lock:
                self._found[looks.key] = PlanDial(points, (), 0, 0.0)

    def _prove(self, looks: Looks) -> PlanDial:
        dial = prove_dial(
            self.planner.engine,
            self.planner.calibration,
            self.prices,
            [point.quality for point in self.manifest.dial],
            self.manifest.confidence,
            self.manifest.output_tokens,
            looks,
        )
        with self._lock:
            self._found[looks.key], self._looks[looks.key] = dial, looks
        return dial


def make_plan(
    dials: PlanDials | None,
    looks: Looks | None,
    asked: Dials,
    decision: Decision,
    offers: Mapping[str, tuple[Offer, ...]],
    prompt: str | None,
    cost_limit: CostLimit | None = None,
) -> Plan:
    """The plan for a request that was routed.

    asked: the dials of the request. decision: of direct routing. offers: usable ones per tier, cheapest first.
    cost_limit: a plan that is expected to cost more gives way to direct routing; None sets no limit.
    """

    def direct(reason: str) -> Plan:
        return Plan(
            decision=decision,
            tier=decision.tier,
            checks=() if looks is None else looks.names,
            success=decision.success.get(decision.tier, 0.0),
            cost_usd=decision.cost_usd.get(decision.tier, 0.0),
            reason=f"direct: {reason}; {decision.reason}",
            is_direct=True,
            quality=decision.quality,
            worth_usd=decision.worth_usd,
            promised=decision.promised,
            verifiers=() if looks is None else looks.verifiers,
            offers=offers,
            prompt=prompt,
        )

    if dials is None or looks is None:
        return direct("the bundle has learned no plans")
    if decision.fallback or asked.critical:
        return direct("the request is critical" if asked.critical else "the router could not decide")
    worth, covered, why = asked.worth_usd, False, ""
    if asked.quality is not None:
        dial = dials.now(looks)
        if dial is None:
            return direct("what keeps the quality is being proven")
        point = dial.point(asked.quality)
        if point.worth_usd is None:
            return direct(f"no plan is proven to keep {asked.quality:g} at these prices")
        worth = dial.at_least(max(worth, point.worth_usd))
        covered = worth in dial.worths and decision.familiarity == 1 and dials.has_offers_of_proof(decision, offers)
        keeps = f"which keeps {asked.quality:g} at these prices" if covered else "not proven for requests like this"
        why = f"a correct answer taken to be worth USD {worth:.3g}, {keeps}"
    else:
        why = f"a correct answer is worth USD {worth:.3g}"
    plan = _planned(dials.planner, looks, asked, decision, offers, prompt, worth, covered, why)
    if cost_limit is not None and not plan.is_direct and plan.cost_usd > cost_limit.max_usd:
        allowed = f"{cost_limit.name} allows a max_usd of {cost_limit.max_usd:g}"
        return direct(f"{allowed}, and a plan is expected to cost USD {plan.cost_usd:.6f}")
    return plan


def _planned(
    planner: Planner,
    looks: Looks,
    asked: Dials,
    decision: Decision,
    offers: Mapping[str, tuple[Offer, ...]],
    prompt: str | None,
    worth: float,
    covered: bool,
    why: str,
) -> Plan:
    names = tuple(decision.success)
    success = np.array([list(decision.success.values())], np.float32)
    cost_usd = np.array([list(decision.price_usd.values())], np.float32)
    eligible = np.array([[name in decision.eligible for name in names]])
    tables = planner.engine.run(success, cost_usd, eligible, np.array([[worth]], np.float32), looks.inputs)
    is_direct = not tables.is_plan[0, 0]
    tier = names[int((tables.direct if is_direct else tables.first)[0, 0])]
    choices = (
        None
        if is_direct
        else Choices.of(tables, names, agreement=looks.agreement, verifiers=looks.verifiers, offers=offers)
    )
    if choices is None:
        right, paid = decision.success[tier], decision.cost_usd[tier]
        reason = f"direct: no plan of at most {looks.max_calls} calls is worth more than asking {tier}; {why}"
    else:
        right, paid = choices.expected(list(decision.cost_usd.values()), looks.inputs["check_usd"].tolist())
        reason = f"ask {tier}, look at {' and '.join(looks.names)}, go up where it pays; {why}"
    return Plan(
        decision=decision,
        tier=tier,
        checks=looks.names,
        success=right,
        cost_usd=paid,
        reason=reason,
        is_direct=is_direct,
        quality=asked.quality,
        worth_usd=worth,
        promised=covered,
        verifiers=looks.verifiers,
        offers=offers,
        prompt=prompt,
        choices=choices,
    )
