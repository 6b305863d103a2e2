"""The router: one prompt in, one decision out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock

from router.bundle.bundle import Bundle
from router.bundle.signature import TrustedKeys
from router.decision import Decision
from router.errors import BundleError, PromptError
from router.golden import proven
from router.plan import Plan
from router.planning import PlanDials, make_plan
from router.plans.checks import CheckModel
from router.plans.dial import PlanDial
from router.policy import Policy, resolve_dials
from router.policy_file import read_policy
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable
from router.prompt import Messages, prompt_text
from router.request import needed_capabilities
from router.restrictions import CostLimit, Restrictions, offer_filter
from router.routing import Call

_DEFAULT_POLICY = Policy()
_MAX_KNOWN_CALLS = 1000


class Router:
    """Sends each request to the cost-optimal tier. Safe to share between threads.

    >>> router = Router.load("models/demo")                                        # doctest: +SKIP
    >>> router.route("Prove that sqrt(2) is irrational.", quality=0.98).tier       # doctest: +SKIP
    'frontier'
    """

    def __init__(self, bundle: Bundle, policy: Policy = _DEFAULT_POLICY) -> None:
        """Use a bundle at its own prices; raises BundleError where it lacks the policy's fallback tier."""
        self._portfolio = Portfolio(bundle.prices)
        self._snapshot = Snapshot(bundle, bundle.prices, policy, self._portfolio)
        self._one_change_at_a_time = Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        policy: Policy = _DEFAULT_POLICY,
        *,
        n_threads: int = 1,
        trusted_keys: Collection[str | Path] | None = None,
    ) -> Router:
        """From the folder of a bundle.

        n_threads: threads of one call of the graph; more than one pays for large batches only.
        trusted_keys: files of Ed25519 public keys in PEM (extra `signing`), read now. One of them must have signed
            this bundle and each one that `reload` takes; None asks for no signature.
        Raises SignatureError where none has, and KeyFileError where a file holds no such key.
        Raises BundleError where the bundle is incomplete or altered, answers its golden prompts otherwise than it says,
        or lacks the policy's fallback tier.
        """
        trusted = None if trusted_keys is None else TrustedKeys.read(trusted_keys)
        return cls(proven(Bundle.load(path, n_threads=n_threads, trusted_keys=trusted)), policy)

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._snapshot.bundle

    @property
    def prices(self) -> PriceTable:
        """The price table in use."""
        return self._snapshot.prices

    @property
    def policy(self) -> Policy:
        """What holds unless a request says otherwise."""
        return self._snapshot.policy

    @property
    def portfolio(self) -> Portfolio:
        """Who has been asked how much under the caps and budgets of the price table."""
        return self._portfolio

    @property
    def snapshot(self) -> Snapshot:
        """Bundle and prices in use now, for work in several steps that must all see the same two."""
        return self._snapshot

    def reload(self, path: str | Path, prices: str | Path | None = None) -> None:
        """Take another bundle, and with it the prices of a file in the format of tiers.toml, or else its own.

        Both are swapped at once, so every decision is made by one bundle at one price table. Requests go on meanwhile:
        the new bundle is loaded, and its golden prompts are checked, in the calling thread before the swap.
        Raises BundleError, PriceError or PolicyError (see Snapshot) and keeps what was in use.
        """
        with self._one_change_at_a_time:
            present = self.bundle
            bundle = Bundle.load(path, n_threads=present.n_threads, trusted_keys=present.trusted_keys)
            bundle = proven(bundle)
            table = bundle.prices if prices is None else PriceTable.read(prices, bundle.manifest.tiers)
            snapshot = Snapshot(bundle, table, self.policy, self._portfolio)
            self._portfolio.take_prices(table)
            self._snapshot = snapshot

    def update_prices(self, path: str | Path) -> None:
        """Take the prices of a file in the format of tiers.toml; raises PriceError and keeps the present ones."""
        with self._one_change_at_a_time:
            before, bundle = self._snapshot, self.bundle
            table = PriceTable.read(path, bundle.manifest.tiers)
            self._portfolio.take_prices(table)
            self._snapshot = Snapshot(bundle, table, self.policy, self._portfolio)
            self._snapshot.prove_plans_of(before)

    def update_policy(self, path: str | Path) -> None:
        """Take the rules, classes and clients of a policy.toml (docs/policy.md) in place of the present ones.

        Raises PolicyError and keeps what was in use.
        """
        with self._one_change_at_a_time:
            before = self._snapshot
            policy = read_policy(path, before.policy)
            self._snapshot = Snapshot(before.bundle, before.prices, policy, self._portfolio)
            self._snapshot.prove_plans_of(before)

    def route(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        context_tokens: float | None = None,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
        request_id: str | None = None,
        session_id: str | None = None,
        request_class: str | None = None,
    ) -> Decision:
        """Decide which tier answers one request.

        prompt or messages: the text, or the chat (oldest message first).
        quality: in (0, 1], keep at least this share of the accuracy of always asking the best tier.
        worth_usd: what a correct answer is worth, from 0 to 1e12; without `quality`, money decides freely.
        critical: ask only the tier with the highest success among those reserved for critical requests, if any are.
        context_tokens: tokens of the whole conversation where the caller has counted them, from 0 to 1e12; estimated
            from the text where missing.
        regions, capabilities: an offer must be in one of these regions and have all these capabilities, in upper or
            lower case; no regions given: the policy's. Images, files and audio in `messages` need "vision" or "audio"
            by themselves, where any offer states it.
        request_id: the caller's own, carried into the decision. It changes nothing else, so it may be a client's.
        session_id: names the conversation; without it, a chat is known by its messages. An offer that answered the turn
            before, and has a price for cached input, competes with the cost of what it is expected to have cached.
        request_class: a class of the policy (docs/policy.md); its rules hold beside all that is asked for here.

        Never raises on any prompt: where the router cannot decide, the fallback tier answers and `reason` says why.
        Raises DialError where quality, worth_usd or context_tokens is out of range, critical is no bool, regions or
        capabilities is no collection of names, or request_class is no class of the policy.
        """
        snapshot = self._snapshot
        call = snapshot.call(quality, worth_usd, critical, regions, capabilities, request_class)
        if messages is not None:
            call = call.needing(needed_capabilities({"messages": messages}, snapshot.prices))
        return call.route(prompt, messages, context_tokens, request_id, session_id)

    def route_batch(
        self,
        prompts: Sequence[str],
        *,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
        request_class: str | None = None,
    ) -> list[Decision]:
        """Decide for many prompts with the same dials: the same decisions as one by one, but faster.

        Arguments are those of `route`. Never raises on any prompt; raises DialError as `route` does.
        """
        call = self._snapshot.call(quality, worth_usd, critical, regions, capabilities, request_class)
        return call.route_batch(prompts)

    def plan(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        checks: Collection[str | CheckModel] | None = None,
        max_calls: int = 3,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        context_tokens: float | None = None,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
        request_id: str | None = None,
        request_class: str | None = None,
    ) -> Plan:
        """The best plan to answer one request: whom to ask, what to look at, when to stop, and whom to ask next.

        checks: what may be looked at: "agreement" (of two tiers' answers), names of checks that the bundle learned, or
            checks whose figures were declared (CheckModel.with_figures). None takes "agreement" where the bundle knows
            it. max_calls: 1 to 3.
        quality: proven for plans at the prices in force, by a thread that begins with the first request; until it is
            done, and where no plan keeps the quality, the plan is direct routing. worth_usd alone is not proven.
        The other arguments are those of `route`.

        Never raises on any prompt. Raises DialError and CheckError on arguments that are out of range or not known.
        """
        snapshot = self._snapshot
        call = snapshot.call(quality, worth_usd, critical, regions, capabilities, request_class)
        return snapshot.planned(call, prompt, messages, checks, max_calls, context_tokens, request_id)[0]

    def prove_plans(self, checks: Collection[str | CheckModel] | None = None, *, max_calls: int = 3) -> PlanDial | None:
        """The dial of plans with these checks at the prices in force, proven now where it is not yet.

        None where the bundle has learned no plans. Raises as `plan` does.
        """
        snapshot = self._snapshot
        planner, dials = snapshot.bundle.planner, snapshot.plan_dials
        if planner is None or dials is None:
            return None
        return dials.proven(planner.looks(checks, max_calls))


@dataclass(frozen=True)
class Snapshot:
    """One bundle at one price table under one policy, which the router swaps as one.

    A snapshot never changes: all that is asked of it agrees, even if the router takes others meanwhile. Only the
    portfolio counts what is decided, where there are limits.
    Raises BundleError where the bundle lacks the policy's fallback tier, and PolicyError where it lacks a tier that a
    rule of the policy names.
    """

    bundle: Bundle
    prices: PriceTable
    policy: Policy
    portfolio: Portfolio | None = field(default=None, repr=False, compare=False)
    plan_dials: PlanDials | None = field(init=False, repr=False, compare=False)
    _known_calls: dict[tuple[object, ...], Call] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        planner, tiers = self.bundle.planner, self.bundle.manifest.tiers
        dials = None if planner is None else PlanDials(planner, self.bundle.manifest, self.prices)
        object.__setattr__(self, "plan_dials", dials)
        if self.policy.fallback_tier not in (None, *tiers):
            raise BundleError(
                f"{self.bundle.path}: the policy's fallback_tier is {self.policy.fallback_tier!r}; "
                f"expected one of the bundle's tiers: {', '.join(tiers)}"
            )
        self.policy.check_tiers(tiers)

    @property
    def default_quality(self) -> float:
        """The quality of a request without dials."""
        quality = self.policy.default_quality
        return self.bundle.manifest.default_quality if quality is None else quality

    def call(
        self,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
        request_class: str | None = None,
        client: Restrictions | None = None,
    ) -> Call:
        """What routes requests with these dials; arguments and errors are those of Router.route.

        client: the rules of the client that asks, of this snapshot's policy; None for none.
        """
        key = (quality, worth_usd, critical, request_class, client and client.name)
        try:
            call = self._known_calls.get(key)
        except TypeError:  # A value that is not hashable is no number, which resolve_dials says.
            call = None
        if call is None:
            rules = self.policy.restrictions(request_class, client)
            is_critical = True if any(each.critical for each in rules) else critical
            call = Call(
                bundle=self.bundle,
                prices=self.prices,
                policy=self.policy,
                dials=resolve_dials(self.bundle.manifest, self.policy, quality, worth_usd, critical=is_critical),
                accepts=offer_filter(self.policy.regions, (), rules, self.prices.tier_of),
                portfolio=self.portfolio,
                request_class=request_class,
                restrictions=rules,
                cost_limit=CostLimit.strictest(rules),
            )
            if len(self._known_calls) < _MAX_KNOWN_CALLS:
                self._known_calls[key] = call
        if regions is None and not capabilities:
            return call
        near = self.policy.regions if regions is None else regions
        return replace(call, accepts=offer_filter(near, capabilities, call.restrictions, self.prices.tier_of))

    def planned(
        self,
        call: Call,
        prompt: str | None,
        messages: Messages | None,
        checks: Collection[str | CheckModel] | None,
        max_calls: int,
        context_tokens: float | None = None,
        request_id: str | None = None,
    ) -> tuple[Plan, Call]:
        """The plan for one request, and the call with the offers that may answer it.

        call: of this snapshot. The other arguments and errors are those of Router.plan.
        """
        planner = self.bundle.planner
        looks = None if planner is None else planner.looks(checks, max_calls)
        if messages is not None:
            call = call.needing(needed_capabilities({"messages": messages}, self.prices))
        decision, call = call.decide(prompt, messages, context_tokens, request_id)
        try:
            text = prompt_text(prompt, messages)
        except PromptError:  # The decision is a fallback, and the plan is direct.
            text = None
        offers = call.usable_offers(decision)
        return make_plan(self.plan_dials, looks, call.dials, decision, offers, text, call.cost_limit), call

    def prove_plans_of(self, other: Snapshot) -> None:
        """Begin to prove the dials of plans that another snapshot of the same bundle had in use."""
        if self.plan_dials is not None and other.plan_dials is not None:
            for looks in other.plan_dials.in_use():
                self.plan_dials.now(looks)
