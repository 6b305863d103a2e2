"""One call of the router, for one or many prompts: tokens, offers and graph in, decisions out."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from router.bundle.bundle import Bundle
from router.bundle.clusters import Cluster
from router.bundle.engine import batches, padded
from router.choosing import Choice, choose
from router.decision import Decision
from router.errors import DialError, PromptError
from router.policy import Dials, OfferFilter, Policy
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable
from router.portfolio.quote import Quote, graph_inputs, usable_offers
from router.portfolio.sessions import Turn, turn_of
from router.portfolio.terms import Request
from router.portfolio.tiers import Offer
from router.prompt import Messages, prompt_text

_MOST_TOKENS = 1e12


class _Answer(NamedTuple):
    """What the graph says of one prompt: the engine's OUTPUTS in their order; tier -1 where none is eligible.

    trouble: why there is no answer, in words; empty where the graph gave one.
    """

    success: list[float]
    output_tokens: list[float]
    cost_usd: list[float]
    tier: int
    familiarity: float | None
    cluster: int | None
    trouble: str = ""


_NO_ANSWER = _Answer([], [], [], -1, None, None)


def new_decision_id() -> str:
    """32 random hexadecimal digits."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class Call:
    """All that is the same for every prompt of one call; what it returns is of one bundle and one price table.

    accepts: which offers the request accepts; None accepts all.
    portfolio: what limits who may answer how much; None limits nobody.
    """

    bundle: Bundle
    prices: PriceTable
    policy: Policy
    dials: Dials
    accepts: OfferFilter | None
    portfolio: Portfolio | None = None

    def needing(self, capabilities: Collection[str]) -> Call:
        """The same call for offers that have these capabilities too."""
        if not capabilities:
            return self
        accepts = self.accepts or OfferFilter(regions=None, capabilities=frozenset())
        return replace(self, accepts=accepts.needing(capabilities))

    def route(
        self,
        prompt: str | None,
        messages: Messages | None = None,
        context_tokens: float | None = None,
        request_id: str | None = None,
        session_id: str | None = None,
    ) -> Decision:
        """The decision for one prompt or chat; the arguments are those of Router.route.

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
                "attention_mask": np.ones((1, len(ids)), np.int64),
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
        return self._decision(answer, quote, context_tokens, request_id, turn)

    def route_batch(self, prompts: Sequence[str]) -> list[Decision]:
        """The decisions for many prompts; prompts of similar length go through the graph together."""
        decisions: dict[int, Decision] = {}
        texts: dict[int, str] = {}
        for row, prompt in enumerate(prompts):
            try:
                texts[row] = prompt_text(prompt, None)
            except PromptError as error:
                decisions[row] = self._unread(error, None)
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
        if self.portfolio is not None and not self.portfolio.is_idle:
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
        found: dict[int, _Answer] = {}
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
        return [self._decision(found[row], quotes[row], context[row], None) for row in range(len(texts))]

    def _answers(self, feeds: Mapping[str, np.ndarray]) -> list[_Answer]:
        """What the graph says of each prompt; where it cannot be run, no answer to any, and why."""
        try:
            answers = [values.tolist() for values in self.bundle.engine.run(feeds)]
            return [_Answer(*answer) for answer in zip(*answers, strict=True)]
        except Exception as error:  # ONNX Runtime raises bare subclasses of Exception.
            return [_NO_ANSWER._replace(trouble=f"the graph cannot be run: {error}")] * len(feeds["input_ids"])

    def _unread(self, error: PromptError, request_id: str | None) -> Decision:
        """The decision where the prompt is no text, or the messages are no chat or have no text."""
        answer = _NO_ANSWER._replace(trouble=f"the prompt cannot be read: {error}")
        return self._decision(answer, self._quote(0.0), 0.0, request_id)

    def _quote(self, context_tokens: float) -> Quote:
        return self.prices.quote(
            context_tokens,
            self.bundle.manifest.output_tokens,
            self.accepts,
            critical=self.dials.critical,
            minute=self.prices.minute(),
        )

    def _decision(
        self, answer: _Answer, quote: Quote, context_tokens: float, request_id: str | None, turn: Turn | None = None
    ) -> Decision:
        """The decision that the graph's answer comes to, or the fallback and its trouble.

        A tier that may not answer, or that there is none of, is no answer.
        """
        manifest, dials = self.bundle.manifest, self.dials
        names, decision_id = manifest.tiers, new_decision_id()
        success = dict(zip(names, answer.success, strict=False))  # All three are empty where the prompt was not read.
        output_tokens = dict(zip(names, answer.output_tokens, strict=False))
        cost_usd = dict(zip(names, answer.cost_usd, strict=False))
        is_fallback = not (0 <= answer.tier < len(names) and names[answer.tier] in quote.open)
        is_unfamiliar = answer.familiarity is not None and answer.familiarity < 1
        if is_fallback:
            tier = self._fallback_tier(quote)
            choice = Choice(tier=tier, offer=quote.offers.get(tier), cost_usd=cost_usd)
            reason = f"fallback to {tier}: {answer.trouble or self._why_none(quote, context_tokens)}"
        else:
            log_best = manifest.best_tier if dials.unproven else None
            request = Request(
                decision_id, names[answer.tier], log_best, quote.open, quote.offers, success, output_tokens, cost_usd,
                context_tokens, manifest.output_tokens, dials.worth_usd, dials.slack, self.policy.exploration,
                self.accepts, turn, self.portfolio.sessions.warm(turn) if self.portfolio is not None else None,
            )  # fmt: skip
            choice = choose(request, self.portfolio)
            reason = self._reason(choice, quote)
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
        )

    def _cluster(self, number: int | None) -> Cluster | None:
        clusters = self.bundle.clusters
        return clusters[number] if number is not None and 0 <= number < len(clusters) else None

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

    def _why_none(self, quote: Quote, context_tokens: float) -> str:
        """Why no tier was chosen: what no offer has, or a prompt that is too long."""
        if quote.open:
            return "the graph chose none of the tiers that may answer"
        names = self.prices.may_answer(critical=self.dials.critical)
        offers = [offer for tier in self.prices.tiers if tier.name in names for offer in tier.offers]
        if self.accepts is not None and (trouble := self.accepts.trouble(offers)):
            return f"no tier is eligible: {trouble}"
        widest = max(offer.context_window for offer in offers if self.accepts is None or self.accepts(offer))
        return (
            f"no tier is eligible for {context_tokens:.0f} input tokens and an answer: "
            f"the largest context window is {widest} tokens"
        )

    def _reason(self, choice: Choice, quote: Quote) -> str:
        """Why the tier was chosen, in a sentence."""
        dials, names, best_tier = self.dials, self.bundle.manifest.tiers, self.bundle.manifest.best_tier
        tier, n_admissible = choice.best, choice.n_admissible
        if dials.unproven and tier == best_tier:
            why = "the best tier of the log"
        elif dials.critical:
            why = "critical request: highest success among the tiers that may answer it"
        elif dials.slack == 0:
            why = "highest success"
        elif n_admissible == 1:
            why = f"no other tier within {dials.slack:.3f} of the highest success"
        elif dials.worth_usd > 0:
            why = f"largest worth x success - cost of {n_admissible} admissible tiers"
        else:
            why = f"cheapest of {n_admissible} tiers within {dials.slack:.3f} of the highest success"
        why += choice.why_limited
        if dials.unproven:
            why += self._why_unproven(quote)
        if len(quote.open) < len(names):
            why += f"; not eligible: {', '.join(name for name in names if name not in quote.open)}"
        if choice.tier != tier:
            return f"{choice.tier}: explored, as {self.policy.exploration:g} of requests are; else {tier}: {why}"
        return f"{tier}: {why}"

    def _why_unproven(self, quote: Quote) -> str:
        """That the quality is not promised, and what it would take."""
        dials, manifest = self.dials, self.bundle.manifest
        why = ""
        if manifest.best_tier not in quote.open:
            why += f"; the best tier of the log, {manifest.best_tier}, may not answer"
        why += f"; the training log carries no promise of quality {dials.quality:g}"
        if dials.n_needed:
            why += f", which takes about {dials.n_needed:,} {manifest.promise.get('prompts', 'prompts')}"
            why += f": there are {manifest.promise.get('n_prompts', 0):,}"
        return why


def _in_range(context_tokens: object) -> bool:
    return isinstance(context_tokens, int | float | np.number) and bool(0 <= context_tokens <= _MOST_TOKENS)
