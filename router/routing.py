"""One call of the router, for one or many prompts: tokens, offers and graph in, decisions out."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from router.bundle.bundle import Bundle
from router.bundle.clusters import Cluster
from router.bundle.engine import batches, padded
from router.choosing import Choice, choose
from router.decision import Decision
from router.errors import DialError, PromptError
from router.graph_answer import NO_ANSWER, BilledTokens, GraphAnswer, rechosen
from router.policy import Dials, Policy
from router.portfolio.health import Key, key_of
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable
from router.portfolio.quote import Quote, graph_inputs, usable_offers
from router.portfolio.sessions import Turn, turn_of
from router.portfolio.terms import Request
from router.portfolio.tiers import Offer
from router.prompt import Messages, prompt_text
from router.reasons import why_chosen, why_left_out, why_none
from router.restrictions import CostLimit, OfferFilter, Restrictions

_MOST_TOKENS = 1e12


def new_decision_id() -> str:
    """32 random hexadecimal digits."""
    return os.urandom(16).hex()


class Decided(NamedTuple):
    """A decision, and the call that made it: with the offers only that the request may use."""

    decision: Decision
    call: Call


@dataclass(frozen=True, slots=True)
class Call:
    """All that is the same for every prompt of one call; what it returns is of one bundle and one price table.

    accepts: which offers the request accepts; None accepts all.
    portfolio: what limits who may answer how much; None limits nobody.
    request_class: of the policy; None for none. restrictions: the rules of the policy that the request must keep.
    cost_limit: the strictest of their limits on its cost; None where there is none.
    """

    bundle: Bundle
    prices: PriceTable
    policy: Policy
    dials: Dials
    accepts: OfferFilter | None
    portfolio: Portfolio | None = None
    request_class: str | None = None
    restrictions: tuple[Restrictions, ...] = ()
    cost_limit: CostLimit | None = None

    def needing(self, capabilities: Collection[str]) -> Call:
        """The same call for offers that have these capabilities too."""
        if not capabilities:
            return self
        return replace(self, accepts=self._filter().needing(capabilities))

    def answered(self, n_answers: int, most_output_tokens: float) -> Call:
        """The same call for a request that asks for so many answers, none of them longer than so many tokens."""
        if self.cost_limit is None:
            return self
        limit = replace(self.cost_limit, n_answers=n_answers, most_output_tokens=most_output_tokens)
        return replace(self, cost_limit=limit)

    def asked_by_model(self) -> Call:
        """The same call without offers whose model has a namesake that may not answer.

        Whoever asks by the model's name could reach either of them.
        """
        accepts = self.accepts
        if not self.restrictions or accepts is None or not self.prices.namesakes:
            return self
        may_answer = replace(accepts, capabilities=frozenset())
        mixed = [offers for offers in self.prices.namesakes.values() if not all(map(may_answer, offers))]
        return self._without(key_of(offer) for offers in mixed for offer in offers)

    def route(
        self,
        prompt: str | None,
        messages: Messages | None = None,
        context_tokens: float | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
    ) -> Decision:
        """The decision for one prompt or chat; arguments and errors are those of `decide`."""
        return self.decide(prompt, messages, context_tokens, request_id, session_id).decision

    def decide(
        self,
        prompt: str | None,
        messages: Messages | None = None,
        context_tokens: float | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
    ) -> Decided:
        """The decision for one prompt or chat, and who may answer it; the arguments are those of Router.route.

        Raises DialError where context_tokens is out of range.
        """
        if context_tokens is not None and not _in_range(context_tokens):
            raise DialError(f"context_tokens is {context_tokens!r}; expected a number from 0 to {_MOST_TOKENS:g}")
        try:
            text = prompt_text(prompt, messages)
        except PromptError as error:
            return self._unread(error, request_id)
        [ids] = self.bundle.token_ids([text])
        if context_tokens is None:
            context_tokens = self.bundle.manifest.encoder.context_tokens(len(text), len(ids))
        quote = self._quote(context_tokens)
        [answer] = self._answers(
            {
                "input_ids": np.array([ids], np.int64),
                "attention_mask": _mask(len(ids)),
                "context_tokens": np.array([context_tokens], np.float32),
                "usd_per_mtok_input": quote.usd_per_mtok_input,
                "usd_per_mtok_output": quote.usd_per_mtok_output,
                "eligible": quote.eligible,
                "worth_usd": self.dials.worth_input,
                "slack": self.dials.slack_input,
            }
        )
        has_caches = self.portfolio is not None and self.portfolio.has_caches
        turn = turn_of(messages, session_id) if has_caches else None
        return self._decided(answer, quote, context_tokens, request_id, turn)

    def route_batch(self, prompts: Sequence[str]) -> list[Decision]:
        """The decisions for many prompts; prompts of similar length go through the graph together."""
        decisions: dict[int, Decision] = {}
        texts: dict[int, str] = {}
        for row, prompt in enumerate(prompts):
            try:
                texts[row] = prompt_text(prompt, None)
            except PromptError as error:
                decisions[row] = self._unread(error, None).decision
        decisions.update(zip(texts, self._decisions(list(texts.values())), strict=True))
        return [decisions[row] for row in range(len(prompts))]

    def offers_to_try(self, decision: Decision) -> list[Offer]:
        """The offers for a request, in the order to try them, of a decision that this call has made.

        First those of the chosen tier, then those of each tier with a higher success on this prompt, the least of them
        first. Within a tier they are the offers that the request could use, cheapest first. The decision's own offer is
        the first of all; offers that are down or have reached a limit come last. In a fallback, offers whose context
        window is too small follow at the end of their tier: the estimate of the tokens may be wrong, and the provider
        has the last word.
        """
        success, tiers = decision.success, self.prices.tiers
        request = (tiers, decision.context_tokens, self.bundle.manifest.output_tokens, self.accepts)
        minute = self.prices.minute()
        usable = usable_offers(*request, minute=minute)
        if decision.fallback:
            every = usable_offers(*request, any_window=True, minute=minute)
            usable = [list(dict.fromkeys(fit + offers)) for fit, offers in zip(usable, every, strict=True)]
        offers = {tier.name: [offer for _, _, offer in found] for tier, found in zip(tiers, usable, strict=True)}
        bar = success.get(decision.tier, math.inf)
        may_answer = self.prices.may_answer(critical=self.dials.critical)
        better = [name for name in may_answer if success.get(name, 0.0) > bar]
        order = [decision.tier, *sorted(better, key=success.__getitem__)]
        found = [(name, offer) for name in order for offer in offers[name]]
        if self.portfolio is not None:
            chosen, portfolio, cost = decision.offer, self.portfolio, decision.cost_usd
            found.sort(
                key=lambda each: (each[1] != chosen, portfolio.is_closed(each[0], each[1], cost.get(each[0], 0.0)))
            )
        return [offer for _, offer in found]

    def usable_offers(self, decision: Decision) -> dict[str, tuple[Offer, ...]]:
        """The offers of each tier that the request of a decision could use, cheapest first, without those down."""
        tiers, minute = self.prices.tiers, self.prices.minute()
        n_output = self.bundle.manifest.output_tokens
        usable = usable_offers(tiers, decision.context_tokens, n_output, self.accepts, minute=minute)
        return {tier.name: tuple(offer for _, _, offer in found) for tier, found in zip(tiers, usable, strict=True)}

    def _decisions(self, texts: list[str]) -> list[Decision]:
        ids = self.bundle.token_ids(texts)
        encoder, dials = self.bundle.manifest.encoder, self.dials
        context = [encoder.context_tokens(len(text), len(row)) for text, row in zip(texts, ids, strict=True)]
        quotes = [self._quote(tokens) for tokens in context]
        found: dict[int, GraphAnswer] = {}
        for rows in batches(ids):
            answers = self._answers(
                {
                    **padded([ids[row] for row in rows]),
                    **graph_inputs([quotes[row] for row in rows]),
                    "context_tokens": np.array([context[row] for row in rows], np.float32),
                    "worth_usd": np.repeat(dials.worth_input, len(rows)),
                    "slack": np.repeat(dials.slack_input, len(rows)),
                }
            )
            found.update(zip(rows.tolist(), answers, strict=True))
        # In their own order: limits of the portfolio count who came first.
        return [self._decided(found[row], quotes[row], context[row], None).decision for row in range(len(texts))]

    def _answers(self, feeds: Mapping[str, np.ndarray]) -> list[GraphAnswer]:
        """What the graph says of each prompt; where it cannot be run, no answer to any, and why."""
        try:
            answers = [values.tolist() for values in self.bundle.engine.run(feeds)]
            return [GraphAnswer(*answer) for answer in zip(*answers, strict=True)]
        except Exception as error:  # ONNX Runtime raises bare subclasses of Exception.
            return [NO_ANSWER._replace(trouble=f"the graph cannot be run: {error}")] * len(feeds["input_ids"])

    def _unread(self, error: PromptError, request_id: str | None) -> Decided:
        """The decision where the prompt is no text, or the messages are no chat or have no text."""
        answer = NO_ANSWER._replace(trouble=f"the prompt cannot be read: {error}")
        return self._decided(answer, self._quote(0.0), 0.0, request_id)

    def _quote(self, context_tokens: float) -> Quote:
        return self.prices.quote(
            context_tokens,
            self.bundle.manifest.output_tokens,
            self.accepts,
            critical=self.dials.critical,
            minute=self.prices.minute(),
        )

    def _filter(self) -> OfferFilter:
        return self.accepts or OfferFilter(regions=None, capabilities=frozenset())

    def _without(self, keys: Iterable[Key]) -> Call:
        """The same call without some offers."""
        accepts = self._filter()
        return replace(self, accepts=replace(accepts, excluded=accepts.excluded.union(keys)))

    def _decided(
        self, answer: GraphAnswer, quote: Quote, context_tokens: float, request_id: str | None, turn: Turn | None = None
    ) -> Decided:
        """The decision that the graph's answer comes to, among the offers within the limit of the request's cost."""
        if (limit := self.cost_limit) is None:
            return Decided(self._decision(answer, quote, context_tokens, request_id, turn), self)
        tiers, typical = self.prices.tiers, self.bundle.manifest.output_tokens
        usable = usable_offers(
            tiers, context_tokens, typical, self.accepts, any_window=True, minute=self.prices.minute()
        )
        billed = BilledTokens.of(answer, quote, tiers, typical, context_tokens)
        costs = billed.costs(limit, tiers, usable)
        dear = [key for key, usd in costs.items() if usd > limit.max_usd]
        call = self
        if dear:
            call = self._without(dear)
            quote = call._quote(context_tokens)
            answer = rechosen(answer, billed, quote, tiers, self.dials)
        if dear and len(dear) == len(costs):
            answer = answer._replace(tier=-1, trouble=f"no tier is eligible: {limit.trouble(costs)}")
        return Decided(call._decision(answer, quote, context_tokens, request_id, turn), call)

    @property
    def _exploration(self) -> float:
        is_allowed = not self.restrictions or all(each.exploration for each in self.restrictions)
        return self.policy.exploration if is_allowed else 0.0

    def _left_out(self, quote: Quote, context_tokens: float) -> list[str]:
        """The tiers that could answer the request if the policy had no rules, and may not."""
        if not self.restrictions:
            return []
        free_filter = replace(self._filter(), restrictions=(), excluded=frozenset())
        could = replace(self, accepts=free_filter)._quote(context_tokens).open
        return [name for name in could if name not in quote.open]

    def _decision(
        self, answer: GraphAnswer, quote: Quote, context_tokens: float, request_id: str | None, turn: Turn | None = None
    ) -> Decision:
        """The decision that the graph's answer comes to, or the fallback and its trouble.

        A tier that may not answer, or that there is none of, is no answer.
        """
        manifest, dials = self.bundle.manifest, self.dials
        names, decision_id, exploration = manifest.tiers, new_decision_id(), self._exploration
        success = dict(zip(names, answer.success, strict=False))  # All three are empty where the prompt was not read.
        output_tokens = dict(zip(names, answer.output_tokens, strict=False))
        cost_usd = dict(zip(names, answer.cost_usd, strict=False))
        is_fallback = not (0 <= answer.tier < len(names) and names[answer.tier] in quote.open)
        is_unfamiliar = answer.familiarity is not None and answer.familiarity < 1
        if is_fallback:
            tier = self._fallback_tier(quote)
            choice = Choice(tier=tier, offer=quote.offers.get(tier), cost_usd=cost_usd)
            trouble = answer.trouble or why_none(quote.open, self._askable(), self.accepts, context_tokens)
            reason = f"fallback to {tier}: {trouble}"
        else:
            log_best = manifest.best_tier if dials.unproven else None
            request = Request(
                decision_id, names[answer.tier], log_best, quote.open, quote.offers, success, output_tokens, cost_usd,
                context_tokens, manifest.output_tokens, dials.worth_usd, dials.slack, exploration,
                self.accepts, turn, self.portfolio.sessions.warm(turn) if self.portfolio is not None else None,
            )  # fmt: skip
            choice = choose(request, self.portfolio)
            reason = why_chosen(choice, quote.open, dials, manifest, exploration)
            if left_out := self._left_out(quote, context_tokens):
                bar = max(success[name] for name in (*quote.open, *left_out)) - dials.slack
                covered = success[choice.tier] >= bar
                choice = choice._replace(covered=choice.covered and covered)
                reason += why_left_out(left_out, self.prices.tiers, self.restrictions, self.cost_limit)
                reason += "" if covered or not dials.promised else ", so the promise does not cover it"
            if is_unfamiliar:
                reason += (
                    f"; unlike the training log (familiarity {answer.familiarity:.2f}): "
                    "estimates drawn towards the means"
                )
        return Decision(
            tier=choice.tier,
            offer=choice.offer,
            success=success,
            output_tokens=output_tokens,
            cost_usd=choice.cost_usd,
            reason=reason,
            context_tokens=context_tokens,
            quality=dials.quality,
            worth_usd=dials.worth_usd,
            slack=dials.slack,
            promised=dials.promised and choice.covered and not is_fallback and not is_unfamiliar,
            fallback=is_fallback,
            bundle_id=manifest.bundle_id,
            price_table_id=self.prices.id,
            decision_id=decision_id,
            request_id=request_id,
            propensity=choice.propensity,
            familiarity=answer.familiarity,
            eligible=choice.eligible,
            cluster=self._cluster(answer.cluster),
            best_tier=choice.best_tier,
            shadow_usd=choice.shadow_usd,
            request_class=self.request_class,
        )

    def _cluster(self, number: int | None) -> Cluster | None:
        clusters = self.bundle.clusters
        return clusters[number] if number is not None and 0 <= number < len(clusters) else None

    def _askable(self) -> list[Offer]:
        """The offers of all tiers that such a request may ask."""
        names = self.prices.may_answer(critical=self.dials.critical)
        return [offer for tier in self.prices.tiers if tier.name in names for offer in tier.offers]

    def _fallback_tier(self, quote: Quote) -> str:
        """The policy's fallback tier or the best one; where it may not answer, the best on average of those that may.

        Where none may answer, the first of these all the same.
        """
        manifest = self.bundle.manifest
        tier = self.policy.fallback_tier or manifest.best_tier
        if tier in quote.open or not quote.open:
            return tier
        success = dict(zip(manifest.tiers, manifest.success, strict=True))
        return max(quote.open, key=success.__getitem__)


@lru_cache(256)
def _mask(n_tokens: int) -> np.ndarray:
    """The attention mask of one prompt, all of whose tokens count, int64 (1, n_tokens); nobody changes it."""
    return np.ones((1, n_tokens), np.int64)


def _in_range(context_tokens: object) -> bool:
    return isinstance(context_tokens, int | float | np.number) and bool(0 <= context_tokens <= _MOST_TOKENS)
