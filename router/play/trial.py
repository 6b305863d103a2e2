"""What the page asks and what it is told: a prompt, dials and prices in, decision, explanation and plan out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from threading import Lock
from typing import Any

from router.bundle.bundle import Bundle
from router.errors import PlayError
from router.plan import Plan
from router.plans.tree import step_json
from router.policy import Policy
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Offer
from router.router import Snapshot

SAMPLES = (
    "Good morning! How do I ask my neighbours to be quieter, politely?",
    "What is 17 * 23?",
    "Write a SQL query that returns the three newest orders of each customer.",
    "Prove that the square root of 2 is irrational.",
)
"""Prompts to begin with where the bundle has kept none of its log."""

MOST_SAMPLES, LONGEST_SAMPLE = 6, 160
MOST_USD_PER_MTOK = 1e6
_MOST_TABLES = 16
_KEYS = {"prompt", "quality", "worth_usd", "critical", "checks", "prices"}

Prices = Mapping[str, Sequence[tuple[float, float]]]
"""USD per million tokens of input and of output, of each offer of a tier."""


@dataclass(frozen=True)
class Trial:
    """A bundle to try out: nothing that is asked of it is kept, and no cap or budget counts it.

    name: of the bundle, for the page. prices: in force where the page changes none.
    """

    bundle: Bundle
    name: str
    prices: PriceTable
    _snapshots: dict[str, Snapshot] = field(default_factory=dict, init=False, repr=False, compare=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False, compare=False)

    def about(self) -> dict[str, Any]:
        """What the page shows before anything is asked: tiers, offers, prices, the dial, checks and sample prompts."""
        manifest, planner = self.bundle.manifest, self.bundle.planner
        return {
            "name": self.name,
            "bundle_id": manifest.bundle_id,
            "best_tier": manifest.best_tier,
            "default_quality": manifest.default_quality,
            "confidence": manifest.confidence,
            "note": manifest.training.get("note", ""),
            "n_trained_on": manifest.training.get("n_trained_on"),
            "dial": [{"quality": point.quality, "promised": point.promised} for point in manifest.dial],
            "checks": [] if planner is None else list(planner.known.names),
            "has_critical": any(tier.critical for tier in self.prices.tiers),
            "tiers": [
                {"name": tier.name, "offers": [_offer_json(offer) for offer in tier.offers]}
                for tier in self.prices.tiers
            ],
            "samples": _samples(self.bundle),
        }

    def begin_proofs(self) -> None:
        """Begin to prove plans at the prices in force, with each check that the page offers."""
        planner, dials = self.bundle.planner, self._snapshot({}).plan_dials
        if planner is not None and dials is not None:
            for check in reversed(planner.known.names):  # The page begins with the last.
                dials.now(planner.looks([check], 3))

    def answer(self, request: object) -> dict[str, Any]:
        """Decision, explanation and plan for a request of the page.

        Raises PlayError where the request has another form; DialError and CheckError as Router.plan does.
        """
        asked = _checked(request)
        snapshot = self._snapshot(asked.get("prices") or {})
        call = snapshot.call(asked.get("quality"), asked.get("worth_usd"), asked.get("critical", False))
        decision = call.route(asked["prompt"])
        plan = None
        if asked["checks"] and self.bundle.planner is not None:
            plan, _ = snapshot.planned(call, asked["prompt"], None, asked["checks"], 3)
        return {
            "decision": json.loads(decision.to_json()),
            "explanation": decision.explain().to_json(),
            "plan": plan and _plan_json(plan, is_proving=self._is_proving(snapshot, asked["checks"], plan)),
        }

    def _is_proving(self, snapshot: Snapshot, checks: list[str], plan: Plan) -> bool:
        """Whether plans are still being proven at these prices, so that the page should ask again soon."""
        planner, dials = self.bundle.planner, snapshot.plan_dials
        if planner is None or dials is None or plan.quality is None or plan.decision.fallback:
            return False
        return dials.now(planner.looks(checks, 3)) is None

    def _snapshot(self, changed: Prices) -> Snapshot:
        """The bundle at these prices; the last few are kept, since plans are proven for each."""
        table = with_prices(self.prices, changed)
        with self._lock:
            found = self._snapshots.pop(table.id, None) or Snapshot(self.bundle, table, Policy())
            self._snapshots[table.id] = found
            while len(self._snapshots) > _MOST_TABLES:
                self._snapshots.pop(next(iter(self._snapshots)))
        return found


def with_prices(table: PriceTable, changed: Prices) -> PriceTable:
    """The same offers at other list prices; an offer whose price changes loses its hours and its dearer steps.

    Raises PlayError where a tier is not known, or its number of offers is another.
    """
    tiers, is_changed = [], False
    unknown = set(changed) - {tier.name for tier in table.tiers}
    if unknown:
        raise PlayError(f"prices of {', '.join(sorted(unknown))}; expected tiers of the bundle")
    for tier in table.tiers:
        prices = changed.get(tier.name, [(each.usd_per_mtok_input, each.usd_per_mtok_output) for each in tier.offers])
        if len(prices) != len(tier.offers):
            raise PlayError(f"{len(prices)} prices of {tier.name}; expected one for each of {len(tier.offers)} offers")
        offers = tuple(_repriced(offer, *price) for offer, price in zip(tier.offers, prices, strict=True))
        is_changed |= offers != tier.offers
        tiers.append(replace(tier, offers=offers))
    if not is_changed:
        return table
    text = f"{table.text}\n# played at {json.dumps(changed, sort_keys=True)}"
    return PriceTable(tiers=tuple(tiers), id=sha256(text.encode()).hexdigest()[:16], text=text)


def _repriced(offer: Offer, usd_input: float, usd_output: float) -> Offer:
    if (usd_input, usd_output) == (offer.usd_per_mtok_input, offer.usd_per_mtok_output):
        return offer
    return replace(offer, usd_per_mtok_input=usd_input, usd_per_mtok_output=usd_output, above=(), hours=())


def _checked(request: object) -> dict[str, Any]:
    """A request of the page; raises PlayError where it is no such request. Dials are checked where they are used."""
    if not isinstance(request, dict) or not set(request) <= _KEYS or not isinstance(request.get("prompt"), str):
        raise PlayError(f"expected a JSON object with a text `prompt` and keys of {', '.join(sorted(_KEYS))}")
    checks, prices = request.get("checks") or [], request.get("prices") or {}
    if not isinstance(checks, list) or not all(isinstance(check, str) for check in checks):
        raise PlayError("checks: expected a list of names")
    if not isinstance(prices, dict):
        raise PlayError("prices: expected an object with a list of [input, output] for each tier")
    for tier, offers in prices.items():
        if not isinstance(offers, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in offers):
            raise PlayError(f"prices of {tier}: expected a list of [input, output]")
        if not all(_is_price(price) for pair in offers for price in pair):
            raise PlayError(f"prices of {tier}: expected USD per million tokens, from 0 to {MOST_USD_PER_MTOK:g}")
    return {**request, "checks": checks, "prices": prices}


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_USD_PER_MTOK


def _offer_json(offer: Offer) -> dict[str, Any]:
    names = ("model", "provider", "region", "usd_per_mtok_input", "usd_per_mtok_output")
    return {name: getattr(offer, name) for name in names}


def _plan_json(plan: Plan, *, is_proving: bool) -> dict[str, Any]:
    names = ("success", "cost_usd", "reason", "is_direct", "quality", "worth_usd", "promised")
    document = {name: getattr(plan, name) for name in names}
    return {**document, "checks": list(plan.checks), "is_proving": is_proving, "steps": step_json(plan.first)}


def _samples(bundle: Bundle) -> list[dict[str, str]]:
    """A short prompt of each kind of the log where the bundle has kept some; else general ones."""
    found: dict[str, str] = {}  # The kind, or the prompt where the log has no kinds, and the prompt.
    for cluster in sorted(bundle.clusters, key=lambda each: -each.n_prompts):
        whole = [each for each in cluster.examples if len(each) <= LONGEST_SAMPLE and not each.endswith("...")]
        if whole and len(found) < MOST_SAMPLES:
            prompt = min(whole, key=len)
            found.setdefault(next(iter(cluster.segments), prompt), prompt)
    return [{"kind": kind, "prompt": prompt} for kind, prompt in (found or {each: each for each in SAMPLES}).items()]
