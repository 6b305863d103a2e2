"""The router: one prompt in, one decision out."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tokenizers import Encoding

from router.bundle.bundle import Bundle
from router.decision import Decision
from router.errors import BundleError, DialError, PromptError
from router.policy import Dials, Policy, offer_filter, resolve_dials
from router.portfolio.prices import PriceTable, Quote
from router.portfolio.tiers import Offer
from router.prompt import Messages, prompt_text, valid_unicode
from router.rule import explored

_BATCH_SIZE = 64
_DEFAULT_POLICY = Policy()
_MAX_KNOWN_DIALS = 1000
_MOST_TOKENS = 1e12


class Router:
    """Sends each request to the cost-optimal tier. Safe to share between threads.

    >>> router = Router.load("models/demo")                                        # doctest: +SKIP
    >>> router.route("Prove that sqrt(2) is irrational.", quality=0.98).tier       # doctest: +SKIP
    'frontier'
    """

    def __init__(self, bundle: Bundle, policy: Policy = _DEFAULT_POLICY) -> None:
        self._policy = policy
        self._state = _State(_checked(bundle, policy), bundle.prices)
        self._one_change_at_a_time = Lock()

    @classmethod
    def load(cls, path: str | Path, policy: Policy = _DEFAULT_POLICY, *, n_threads: int = 1) -> Router:
        """From the folder of a bundle; raises BundleError where it is not complete and unaltered.

        n_threads: threads of one call of the graph; more than one pays for large batches only.
        """
        return cls(Bundle.load(path, n_threads=n_threads), policy)

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._state.bundle

    @property
    def prices(self) -> PriceTable:
        """The price table in use."""
        return self._state.prices

    @property
    def policy(self) -> Policy:
        """What holds unless a request says otherwise."""
        return self._policy

    def reload(self, path: str | Path, prices: str | Path | None = None) -> None:
        """Take another bundle, with its own price table or that of a file in the format of tiers.toml.

        Both from one moment on: every decision is made by one bundle at one price table. Requests go on
        meanwhile. Raises BundleError or PriceError and keeps what was in use.
        """
        with self._one_change_at_a_time:
            bundle = _checked(Bundle.load(path, n_threads=self.bundle.n_threads), self._policy)
            table = bundle.prices if prices is None else PriceTable.read(prices, bundle.manifest.tiers)
            self._state = _State(bundle, table)

    def update_prices(self, path: str | Path) -> None:
        """Take the prices of a file in the format of tiers.toml; raises PriceError and keeps the present ones."""
        with self._one_change_at_a_time:
            bundle = self.bundle
            self._state = _State(bundle, PriceTable.read(path, bundle.manifest.tiers))

    def route(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        context_tokens: int | None = None,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
        request_id: str | None = None,
    ) -> Decision:
        """Decide which tier answers one request.

        prompt or messages: the text, or the chat (oldest message first).
        quality: in (0, 1], keep at least this share of the accuracy of always asking the best tier.
        worth_usd: what a correct answer is worth; alone, it lets money decide freely.
        critical: only the highest success among the tiers that may answer critical requests.
        context_tokens: tokens of the whole conversation, where the caller has counted them.
        regions, capabilities: which offers are eligible for this request.
        request_id: carried into the decision.

        Never raises on any prompt: where the router cannot decide, the fallback tier answers and
        `reason` says why. Raises DialError where quality, worth_usd or context_tokens is out of range.
        """
        if context_tokens is not None and not _in_range(context_tokens):
            raise DialError(f"context_tokens is {context_tokens!r}; expected a number from 0 to {_MOST_TOKENS:g}")
        call = self._call(quality, worth_usd, critical, regions, capabilities)
        try:
            text = prompt_text(prompt, messages)
        except PromptError as error:
            return call.unread(error, request_id)
        return call.one(text, context_tokens, request_id)

    def route_batch(
        self,
        prompts: Sequence[str],
        *,
        quality: float | None = None,
        worth_usd: float | None = None,
        critical: bool = False,
        regions: Collection[str] | None = None,
        capabilities: Collection[str] = (),
    ) -> list[Decision]:
        """Decide for many prompts with the same dials: the same decisions as one by one, faster."""
        call = self._call(quality, worth_usd, critical, regions, capabilities)
        decisions: dict[int, Decision] = {}
        texts: dict[int, str] = {}
        for row, prompt in enumerate(prompts):
            try:
                texts[row] = prompt_text(prompt, None)
            except PromptError as error:
                decisions[row] = call.unread(error, None)
        decisions.update(zip(texts, call.many(list(texts.values())), strict=True))
        return [decisions[row] for row in range(len(prompts))]

    def _call(
        self,
        quality: float | None,
        worth_usd: float | None,
        critical: bool,
        regions: Collection[str] | None,
        capabilities: Collection[str],
    ) -> _Call:
        state = self._state
        try:
            dials = state.known_dials.get((quality, worth_usd, critical))
        except TypeError:  # not hashable, so no number
            dials = None
        if dials is None:
            dials = resolve_dials(state.bundle.manifest, self._policy, quality, worth_usd, critical=critical)
            if len(state.known_dials) < _MAX_KNOWN_DIALS:
                state.known_dials[quality, worth_usd, critical] = dials
        accepts = offer_filter(self._policy.regions if regions is None else regions, capabilities)
        return _Call(state.bundle, state.prices, dials, accepts, self._policy)


@dataclass(frozen=True)
class _State:
    """Bundle and prices, swapped as one, so that no decision mixes two of them."""

    bundle: Bundle
    prices: PriceTable
    known_dials: dict[tuple[float | None, float | None, bool], Dials] = field(default_factory=dict)


@dataclass(slots=True)
class _Call:
    """All that is the same for every prompt of one call."""

    bundle: Bundle
    prices: PriceTable
    dials: Dials
    accepts: Callable[[Offer], bool] | None
    policy: Policy

    def one(self, text: str, context_tokens: float | None, request_id: str | None) -> Decision:
        """The decision for one prompt."""
        encoder = self.bundle.manifest.encoder
        ids = self.encodings([text[: encoder.max_chars]])[0].ids
        if context_tokens is None:
            context_tokens = encoder.context_tokens(len(text), len(ids))
        quote = self.quote(context_tokens)
        dials = self.dials
        answer = self.run(
            np.array([ids], np.int64),
            np.ones((1, len(ids)), np.int64),
            np.array([context_tokens], np.float32),
            quote.usd_per_mtok_input,
            quote.usd_per_mtok_output,
            quote.eligible_critical if dials.critical else quote.eligible,
            dials.worth_input,
            dials.slack_input,
        )
        return self.decision(context_tokens, quote, request_id, *(values[0] for values in answer))

    def many(self, texts: Sequence[str]) -> list[Decision]:
        """The decisions for many prompts; those of like length go through the graph together."""
        encoder, dials = self.bundle.manifest.encoder, self.dials
        ids = [encoding.ids for encoding in self.encodings([text[: encoder.max_chars] for text in texts])]
        context = [encoder.context_tokens(len(text), len(row)) for text, row in zip(texts, ids, strict=True)]
        quotes = [self.quote(tokens) for tokens in context]
        order = sorted(range(len(texts)), key=lambda row: len(ids[row]))
        decisions: dict[int, Decision] = {}
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            input_ids = np.zeros((len(rows), len(ids[rows[-1]])), np.int64)
            attention_mask = np.zeros_like(input_ids)
            for line, row in enumerate(rows):
                input_ids[line, : len(ids[row])] = ids[row]
                attention_mask[line, : len(ids[row])] = 1
            batch = [quotes[row] for row in rows]
            answers = self.run(
                input_ids,
                attention_mask,
                np.array([context[row] for row in rows], np.float32),
                np.concatenate([quote.usd_per_mtok_input for quote in batch]),
                np.concatenate([quote.usd_per_mtok_output for quote in batch]),
                np.concatenate([quote.eligible_critical if dials.critical else quote.eligible for quote in batch]),
                np.repeat(dials.worth_input, len(rows)),
                np.repeat(dials.slack_input, len(rows)),
            )
            for row, *answer in zip(rows, *answers, strict=True):
                decisions[row] = self.decision(context[row], quotes[row], None, *answer)
        return [decisions[row] for row in range(len(texts))]

    def unread(self, error: PromptError, request_id: str | None) -> Decision:
        """The decision where a prompt is no prompt."""
        trouble = f"the prompt cannot be read: {error}"
        return self.decision(0.0, self.quote(0.0), request_id, [], [], [], -1, None, None, trouble)

    def encodings(self, texts: list[str]) -> Sequence[Encoding]:
        """Encode texts; lone surrogates, which no tokenizer takes, are replaced first."""
        try:  # the batch call even for one text: it does without offsets, which is faster
            return self.bundle.tokenizer.encode_batch_fast(texts)
        except (UnicodeEncodeError, TypeError):
            return self.bundle.tokenizer.encode_batch_fast([valid_unicode(text) for text in texts])

    def quote(self, context_tokens: float) -> Quote:
        """The cheapest eligible offers now."""
        return self.prices.quote(context_tokens, self.bundle.manifest.output_tokens, self.accepts)

    def run(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        context_tokens: np.ndarray,
        usd_per_mtok_input: np.ndarray,
        usd_per_mtok_output: np.ndarray,
        eligible: np.ndarray,
        worth_usd: np.ndarray,
        slack: np.ndarray,
    ) -> list[list[Any]]:
        """The OUTPUTS as lists: n lists of n_tiers values the first three, then n values each."""
        feeds = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "context_tokens": context_tokens,
            "usd_per_mtok_input": usd_per_mtok_input,
            "usd_per_mtok_output": usd_per_mtok_output,
            "eligible": eligible,
            "worth_usd": worth_usd,
            "slack": slack,
        }
        return [answer.tolist() for answer in self.bundle.engine.run(feeds)]

    def decision(
        self,
        context_tokens: float,
        quote: Quote,
        request_id: str | None,
        success: list[float],
        output_tokens: list[float],
        cost_usd: list[float],
        tier: int,
        familiarity: float | None,
        cluster: int | None,
        trouble: str | None = None,
    ) -> Decision:
        """What the graph answered for one prompt, and why; tier -1 is a fallback."""
        manifest, dials = self.bundle.manifest, self.dials
        names, decision_id = manifest.tiers, os.urandom(16).hex()
        is_fallback = tier < 0
        is_strange = familiarity is not None and familiarity < 1
        if is_fallback:
            tier, propensity = names.index(self.policy.fallback_tier or manifest.best_tier), 1.0
            trouble = trouble or f"no tier is eligible for {context_tokens:.0f} input tokens"
            reason = f"fallback to {names[tier]}: {trouble}"
        else:
            admissible = self.admissible(quote, success)
            best, share = tier, self.policy.exploration
            tier, propensity = explored(best, admissible, share, request_id or decision_id) if share else (best, 1.0)
            reason = self.reason(quote, len(admissible), best)
            if tier != best:
                reason = f"{names[tier]}: explored, as {share:g} of requests are; else {reason}"
            if is_strange:
                reason += (
                    f"; unlike the training log (familiarity {familiarity:.2f}): estimates drawn towards the means"
                )
        return Decision(
            names[tier],
            quote.offers[tier],
            dict(zip(names, success, strict=False)),
            dict(zip(names, output_tokens, strict=False)),
            dict(zip(names, cost_usd, strict=False)),
            reason,
            context_tokens,
            dials.quality,
            dials.worth_usd,
            dials.slack,
            dials.promised and not is_fallback and not is_strange,
            is_fallback,
            manifest.bundle_id,
            self.prices.id,
            decision_id,
            request_id,
            propensity,
            familiarity,
            () if is_fallback else self.eligible(quote),
            None if cluster is None else self.bundle.clusters[cluster],
        )

    def eligible(self, quote: Quote) -> tuple[str, ...]:
        """The tiers that could be asked."""
        is_open, names = quote.open_critical if self.dials.critical else quote.open, self.bundle.manifest.tiers
        return names if all(is_open) else tuple(name for name, can in zip(names, is_open, strict=True) if can)

    def admissible(self, quote: Quote, success: Sequence[float]) -> list[int]:
        """The tiers among which the graph chose: eligible, and within the slack of the highest success."""
        is_open = quote.open_critical if self.dials.critical else quote.open
        bar = max([p for p, can in zip(success, is_open, strict=True) if can]) - self.dials.slack
        return [tier for tier, p in enumerate(success) if p >= bar and is_open[tier]]

    def reason(self, quote: Quote, n_admissible: int, tier: int) -> str:
        """Why the graph chose this tier, in a sentence."""
        dials, names = self.dials, self.bundle.manifest.tiers
        is_open = quote.open_critical if dials.critical else quote.open
        if dials.critical:
            why = "critical request: highest success among the tiers that may answer it"
        elif dials.slack == 0:
            why = "highest success"
        elif n_admissible == 1:
            why = f"no other tier within {dials.slack:.3f} of the highest success"
        elif dials.worth_usd > 0:
            why = f"largest worth x success - cost of {n_admissible} admissible tiers"
        else:
            why = f"cheapest of {n_admissible} tiers within {dials.slack:.3f} of the highest success"
        if dials.quality is not None and not dials.promised:
            why += f"; the training log carries no promise of quality {dials.quality:g}"
            if dials.n_needed:
                why += f", which takes about {dials.n_needed:,} prompts like its own"
        if not all(is_open):
            why += f"; not eligible: {', '.join(name for name, can in zip(names, is_open, strict=True) if not can)}"
        return f"{names[tier]}: {why}"


def _checked(bundle: Bundle, policy: Policy) -> Bundle:
    """The bundle, if it has the policy's fallback tier; else raises BundleError."""
    if policy.fallback_tier not in (None, *bundle.manifest.tiers):
        raise BundleError(
            f"{bundle.path}: the policy's fallback_tier is {policy.fallback_tier!r}; "
            f"expected one of the bundle's tiers: {', '.join(bundle.manifest.tiers)}"
        )
    return bundle


def _in_range(context_tokens: object) -> bool:
    return isinstance(context_tokens, int | float | np.number) and bool(0 <= context_tokens <= _MOST_TOKENS)
