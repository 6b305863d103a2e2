"""The router: one prompt in, one decision out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from router.bundle import Bundle
from router.decision import Decision
from router.errors import BundleError, DialError, PromptError
from router.policy import Dials, Policy, offer_filter, resolve_dials
from router.prices import PriceTable, Quote
from router.prompt import Messages, prompt_text, valid_unicode
from router.tiers import Offer

_BATCH_SIZE = 64
_OUTPUTS = ["success", "output_tokens", "cost_usd", "tier"]
_DEFAULT_POLICY = Policy()


class Router:
    """Sends each request to the cost-optimal tier. Safe to share between threads.

    >>> router = Router.load("models/demo")                                        # doctest: +SKIP
    >>> router.route("Prove that sqrt(2) is irrational.", quality=0.98).tier       # doctest: +SKIP
    'frontier'
    """

    def __init__(self, bundle: Bundle, policy: Policy = _DEFAULT_POLICY) -> None:
        self._policy = policy
        # Bundle and prices are swapped as one, so that no decision mixes two of them.
        self._state = (_checked(bundle, policy), bundle.prices)

    @classmethod
    def load(cls, path: str | Path, policy: Policy = _DEFAULT_POLICY, *, n_threads: int = 1) -> Router:
        """From the folder of a bundle; raises BundleError where it is not complete and unaltered.

        n_threads: threads of one call of the graph; more than one pays for large batches only.
        """
        return cls(Bundle.load(path, n_threads=n_threads), policy)

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._state[0]

    @property
    def prices(self) -> PriceTable:
        """The price table in use."""
        return self._state[1]

    def reload(self, path: str | Path) -> None:
        """Take another bundle, with its own price table; raises BundleError and keeps the present one."""
        bundle = _checked(Bundle.load(path, n_threads=self.bundle.n_threads), self._policy)
        self._state = (bundle, bundle.prices)

    def update_prices(self, path: str | Path) -> None:
        """Take the prices of a file in the format of tiers.toml; raises PriceError and keeps the present ones."""
        bundle, _ = self._state
        self._state = (bundle, PriceTable.read(path, bundle.manifest.tiers))

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
        if context_tokens is not None and context_tokens < 0:
            raise DialError(f"context_tokens is {context_tokens!r}; expected at least 0")
        call = self._call(quality, worth_usd, critical, regions, capabilities)
        try:
            text = prompt_text(prompt, messages)
        except PromptError as error:
            return call.fallback(f"the prompt cannot be read: {error}", request_id)
        tokens = call.tokens([text])[0]
        if context_tokens is not None:
            tokens = _Tokens(tokens.ids, float(context_tokens))
        return call.decisions([tokens], [request_id])[0]

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
        decisions: list[Decision | None] = [None] * len(prompts)
        texts: dict[int, str] = {}
        for row, prompt in enumerate(prompts):
            try:
                texts[row] = prompt_text(prompt, None)
            except PromptError as error:
                decisions[row] = call.fallback(f"the prompt cannot be read: {error}", None)
        tokens = dict(zip(texts, call.tokens(list(texts.values())), strict=True))
        by_length = sorted(tokens, key=lambda row: len(tokens[row].ids))
        for start in range(0, len(by_length), _BATCH_SIZE):
            rows = by_length[start : start + _BATCH_SIZE]
            batch = call.decisions([tokens[row] for row in rows], [None] * len(rows))
            for row, decision in zip(rows, batch, strict=True):
                decisions[row] = decision
        return [decision for decision in decisions if decision is not None]

    def _call(
        self,
        quality: float | None,
        worth_usd: float | None,
        critical: bool,
        regions: Collection[str] | None,
        capabilities: Collection[str],
    ) -> _Call:
        bundle, prices = self._state
        return _Call(
            bundle,
            prices,
            resolve_dials(bundle.manifest, self._policy, quality, worth_usd, critical=critical),
            offer_filter(self._policy.regions if regions is None else regions, capabilities),
            critical,
            self._policy.fallback_tier or bundle.manifest.best_tier,
        )


class _Tokens(NamedTuple):
    """A prompt as the graph takes it."""

    ids: Sequence[int]
    context_tokens: float


@dataclass(frozen=True, slots=True)
class _Call:
    """All that is the same for every prompt of one call."""

    bundle: Bundle
    prices: PriceTable
    dials: Dials
    accepts: Callable[[Offer], bool] | None
    critical: bool
    fallback_tier: str

    def tokens(self, texts: Sequence[str]) -> list[_Tokens]:
        """Tokenise; nothing that is a text can make this fail."""
        encoder = self.bundle.manifest.encoder
        cut = [text[: encoder.max_chars] for text in texts]
        return [
            _Tokens(encoding.ids, encoder.context_tokens(len(text), len(encoding.ids)))
            for text, encoding in zip(texts, _encode(self.bundle, cut), strict=True)
        ]

    def decisions(self, batch: Sequence[_Tokens], request_ids: Sequence[str | None]) -> list[Decision]:
        """One run of the graph, and what it answered in words."""
        quotes = [self.quote(tokens.context_tokens) for tokens in batch]
        answers = self.run(batch, quotes)
        return [
            self.decision(tokens, quote, request_id, *answer)
            for tokens, quote, request_id, answer in zip(
                batch, quotes, request_ids, zip(*answers, strict=True), strict=True
            )
        ]

    def quote(self, context_tokens: float) -> Quote:
        """The cheapest eligible offers now."""
        return self.prices.quote(context_tokens, self.bundle.manifest.output_tokens, self.accepts)

    def run(self, batch: Sequence[_Tokens], quotes: Sequence[Quote]) -> tuple[list, ...]:
        """success, output_tokens, cost_usd (each n lists of n_tiers) and tier (n) from the graph."""
        n, length = len(batch), max(len(tokens.ids) for tokens in batch)
        input_ids = np.zeros((n, length), np.int64)
        attention_mask = np.zeros((n, length), np.int64)
        for row, tokens in enumerate(batch):
            input_ids[row, : len(tokens.ids)] = tokens.ids
            attention_mask[row, : len(tokens.ids)] = 1
        feeds = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "context_tokens": np.array([tokens.context_tokens for tokens in batch], np.float32),
            "usd_per_mtok_input": np.array([quote.usd_per_mtok_input for quote in quotes], np.float32),
            "usd_per_mtok_output": np.array([quote.usd_per_mtok_output for quote in quotes], np.float32),
            "eligible": np.array([self.eligible(quote) for quote in quotes], np.bool_),
            "worth_usd": np.full(n, self.dials.worth_usd, np.float32),
            "slack": np.full(n, self.dials.slack, np.float32),
        }
        return tuple(answer.tolist() for answer in self.bundle.session.run(_OUTPUTS, feeds))

    def eligible(self, quote: Quote) -> list[bool]:
        """Which tiers may answer: those with an offer and, of a critical request, those reserved for it."""
        if not self.critical or not any(tier.critical for tier in self.prices.tiers):
            return [offer is not None for offer in quote.offers]
        return [
            offer is not None and tier.critical for offer, tier in zip(quote.offers, self.prices.tiers, strict=True)
        ]

    def decision(
        self,
        tokens: _Tokens,
        quote: Quote,
        request_id: str | None,
        success: list[float],
        output_tokens: list[float],
        cost_usd: list[float],
        tier: int,
    ) -> Decision:
        """What the graph answered for one prompt, with its reason."""
        names = self.bundle.manifest.tiers
        is_fallback = tier < 0
        name = self.fallback_tier if is_fallback else names[tier]
        return Decision(
            tier=name,
            offer=quote.offers[names.index(name) if is_fallback else tier],
            success=dict(zip(names, success, strict=True)),
            output_tokens=dict(zip(names, output_tokens, strict=True)),
            cost_usd=dict(zip(names, cost_usd, strict=True)),
            reason=(
                f"fallback to {name}: no tier has an offer that is eligible for {tokens.context_tokens:.0f} input tokens"
                if is_fallback
                else self.reason(self.eligible(quote), success, tier)
            ),
            context_tokens=tokens.context_tokens,
            quality=self.dials.quality,
            worth_usd=self.dials.worth_usd,
            slack=self.dials.slack,
            promised=self.dials.promised and not is_fallback,
            fallback=is_fallback,
            bundle_id=self.bundle.manifest.bundle_id,
            price_table_id=self.prices.id,
            request_id=request_id,
            propensity=1.0,
        )

    def fallback(self, why: str, request_id: str | None) -> Decision:
        """The decision where a prompt never reached the graph."""
        manifest = self.bundle.manifest
        return Decision(
            tier=self.fallback_tier,
            offer=self.quote(0.0).offers[manifest.tiers.index(self.fallback_tier)],
            success={},
            output_tokens={},
            cost_usd={},
            reason=f"fallback to {self.fallback_tier}: {why}",
            context_tokens=0.0,
            quality=self.dials.quality,
            worth_usd=self.dials.worth_usd,
            slack=self.dials.slack,
            promised=False,
            fallback=True,
            bundle_id=manifest.bundle_id,
            price_table_id=self.prices.id,
            request_id=request_id,
            propensity=1.0,
        )

    def reason(self, eligible: Sequence[bool], success: Sequence[float], tier: int) -> str:
        """Why the graph chose this tier, in a sentence."""
        dials, names = self.dials, self.bundle.manifest.tiers
        highest = max(p for p, can_answer in zip(success, eligible, strict=True) if can_answer)
        n_admissible = sum(
            can_answer and p >= highest - dials.slack for p, can_answer in zip(success, eligible, strict=True)
        )
        if self.critical:
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
        if not all(eligible):
            out = ", ".join(name for name, can_answer in zip(names, eligible, strict=True) if not can_answer)
            why += f"; not eligible: {out}"
        return f"{names[tier]}: {why}"


def _encode(bundle: Bundle, texts: Sequence[str]) -> Sequence[Encoding]:
    """Encode texts; lone surrogates, which no tokenizer takes, are replaced first."""
    try:
        if len(texts) == 1:
            return [bundle.tokenizer.encode(texts[0])]
        return bundle.tokenizer.encode_batch_fast(list(texts))
    except (UnicodeEncodeError, TypeError):
        valid = [valid_unicode(text) for text in texts]
        return bundle.tokenizer.encode_batch_fast(valid)


def _checked(bundle: Bundle, policy: Policy) -> Bundle:
    """The bundle, if it has the policy's fallback tier; else raises BundleError."""
    if policy.fallback_tier not in (None, *bundle.manifest.tiers):
        raise BundleError(
            f"{bundle.path}: the policy's fallback_tier is {policy.fallback_tier!r}; "
            f"expected one of the bundle's tiers: {', '.join(bundle.manifest.tiers)}"
        )
    return bundle
