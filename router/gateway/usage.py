"""What an answer has billed: its tokens as LiteLLM reports them, or as the bundle's tokenizer estimates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router.bundle.bundle import Bundle
from router.portfolio.tiers import Offer


@dataclass(frozen=True)
class Usage:
    """The tokens of one answer; None where unknown.

    cached_input_tokens, cache_write_tokens: those of the input that the provider read from its prompt cache, or wrote
        into it. reasoning_tokens: those of the output that are no part of the visible answer.
    tokens_estimated: whether input_tokens or output_tokens is an estimate, since the provider has not counted it.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    tokens_estimated: bool = False


def reported_usage(reported: Mapping[str, Any]) -> Usage:
    """The tokens of an answer from LiteLLM's usage object, in which all providers' counts have OpenAI's meaning.

    Cached and written tokens are part of the prompt's there, and reasoning tokens of the completion's. 0 tokens of a
    prompt or a completion is unknown: LiteLLM says so of a stream whose tokens its provider did not count. A part that
    is larger than the whole is cut to it.
    """
    n_input, n_output = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
    prompt, completion = _details(reported, "prompt_tokens_details"), _details(reported, "completion_tokens_details")
    n_cached = _count(prompt.get("cached_tokens"), reported.get("cache_read_input_tokens"))
    n_written = _count(
        prompt.get("cache_write_tokens"),
        prompt.get("cache_creation_tokens"),
        reported.get("cache_creation_input_tokens"),
    )
    n_cached = _at_most(n_cached, n_input or 0)
    return Usage(
        input_tokens=n_input,
        output_tokens=n_output,
        cached_input_tokens=n_cached,
        cache_write_tokens=_at_most(n_written, (n_input or 0) - (n_cached or 0)),
        reasoning_tokens=_at_most(_count(completion.get("reasoning_tokens")), n_output or 0),
    )


def estimated_tokens(bundle: Bundle, text: str) -> int | None:
    """Tokens that a provider would bill for a text, by the bundle's tokenizer and its ratio; None for no text."""
    if not text:
        return None
    [ids] = bundle.token_ids([text])
    return max(1, round(bundle.manifest.encoder.context_tokens(len(text), len(ids))))


def answer_text(response: object) -> str:
    """All that a model has written in a response of LiteLLM, or in one chunk of a streamed one.

    That is reasoning, answer and the arguments of its tool calls.
    """
    found: list[object] = []
    for choice in getattr(response, "choices", None) or []:
        message = getattr(choice, "message", None) or getattr(choice, "delta", None)
        found += [getattr(choice, "text", None)]
        found += [getattr(message, name, None) for name in ("reasoning_content", "content", "refusal")]
        calls = [getattr(call, "function", None) for call in getattr(message, "tool_calls", None) or []]
        for call in [*calls, getattr(message, "function_call", None)]:
            found += [getattr(call, "name", None), getattr(call, "arguments", None)]
    return "\n".join(text for text in found if isinstance(text, str) and text)


def visible_text(response: object) -> str | None:
    """What the client reads in a whole response of LiteLLM: the text of its first answer; None where there is none."""
    choices = getattr(response, "choices", None) or [None]
    message = getattr(choices[0], "message", None)
    text = getattr(message, "content", None) if message is not None else getattr(choices[0], "text", None)
    return text if isinstance(text, str) else None


def billed_usd(offer: Offer, usage: Usage, litellm_usd: float | None = None, minute: int | None = None) -> float | None:
    """What an answer has cost in USD at the prices of the offer; None where its tokens are not known.

    minute: since midnight UTC, for prices that depend on the hour; None takes those outside all `hours`.
    litellm_usd: the cost at LiteLLM's own prices. It counts only where the provider's prompt cache was at work, the
        offer states no price for that, and LiteLLM knows one (its cost is above 0). The price of fresh input would be
        wrong there.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    offer = offer.at(usage.input_tokens, minute)
    n_cached, n_written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    cached_price, write_price = offer.usd_per_mtok_cached_input, offer.usd_per_mtok_cache_write
    if litellm_usd and ((n_cached and cached_price is None) or (n_written and write_price is None)):
        return litellm_usd
    fresh_price = offer.usd_per_mtok_input
    usd_per_million = (
        (usage.input_tokens - n_cached - n_written) * fresh_price
        + n_cached * (fresh_price if cached_price is None else cached_price)
        + n_written * (fresh_price if write_price is None else write_price)
        + usage.output_tokens * offer.usd_per_mtok_output
    )
    return usd_per_million / 1e6


def _count(*candidates: object) -> int | None:
    """The first of some values that is a number of tokens above 0."""
    return next((value for value in candidates if isinstance(value, int) and value > 0), None)


def _at_most(value: int | None, limit: int) -> int | None:
    return None if value is None else min(value, limit)


def _details(reported: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = reported.get(name)
    return details if isinstance(details, Mapping) else {}
