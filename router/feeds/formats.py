"""The formats of price maps: LiteLLM's map, OpenRouter's list of models, and CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from router.errors import PriceMapError
from router.portfolio.schedule import Above, Hours

REGIONS = {
    "openai": "us", "anthropic": "us", "gemini": "us", "xai": "us", "groq": "us", "together_ai": "us", "cerebras": "us",
    "fireworks_ai": "us", "deepinfra": "us", "perplexity": "us", "mistral": "eu", "scaleway": "eu", "ovhcloud": "eu",
    "nebius": "eu", "cohere_chat": "ca", "ai21": "il", "deepseek": "cn", "dashscope": "cn", "moonshot": "cn",
    "zai": "cn", "volcengine": "cn", "minimax": "cn", "tencent": "cn", "xiaomi_mimo": "cn", "ollama": "local",
}  # fmt: skip
"""Where a provider is at home. That is not always where it serves, so it is a proposal."""

UNKNOWN_REGION = "unknown"
_CHAT_MODES = ("chat", "responses", "completion")
_MTOK = 1_000_000
_ABOVE = re.compile(r"(input|output)_cost_per_token_above_(\d+)k_tokens")


@dataclass(frozen=True)
class PricedModel:
    """A model at a provider with its prices, as a price map states them.

    context_window: None where the map does not say. note: what of its prices is not taken over; "" for nothing.
    Prices as those of an Offer.
    """

    model: str
    provider: str
    region: str
    context_window: int | None
    usd_per_mtok_input: float
    usd_per_mtok_output: float
    usd_per_mtok_cached_input: float | None = None
    usd_per_mtok_cache_write: float | None = None
    capabilities: tuple[str, ...] = ()
    above: tuple[Above, ...] = ()
    hours: tuple[Hours, ...] = ()
    note: str = ""


def litellm_models(document: Mapping[str, Any]) -> Iterator[PricedModel]:
    """The chat models with prices in LiteLLM's map."""
    for name, entry in document.items():
        if name == "sample_spec" or not isinstance(entry, Mapping) or entry.get("mode", "chat") not in _CHAT_MODES:
            continue
        tiered = [step for step in entry.get("tiered_pricing") or () if isinstance(step, Mapping)]
        first = {**entry, **tiered[0]} if tiered else entry
        usd_input, usd_output = _usd(first.get("input_cost_per_token")), _usd(first.get("output_cost_per_token"))
        if usd_input is None or usd_output is None:
            continue
        provider = str(entry.get("litellm_provider") or name.partition("/")[0])
        abilities = {"tools": "supports_function_calling", "vision": "supports_vision", "audio": "supports_audio_input"}
        yield PricedModel(
            model=name,
            provider=provider,
            region=REGIONS.get(provider, UNKNOWN_REGION),
            context_window=_tokens(entry.get("max_input_tokens") or entry.get("max_tokens")),
            usd_per_mtok_input=usd_input,
            usd_per_mtok_output=usd_output,
            usd_per_mtok_cached_input=_usd(first.get("cache_read_input_token_cost")) or None,
            usd_per_mtok_cache_write=_usd(first.get("cache_creation_input_token_cost")) or None,
            capabilities=tuple(ability for ability, key in abilities.items() if entry.get(key)),
            above=_tiered(tiered) if tiered else _litellm_above(entry, usd_input, usd_output),
            note="off-peak prices by weekday are left out" if "off_peak_pricing" in entry else "",
        )


def _litellm_above(entry: Mapping[str, Any], usd_input: float, usd_output: float) -> tuple[Above, ...]:
    steps = sorted({int(found[2]) for key in entry if (found := _ABOVE.fullmatch(key))})

    def usd(name: str, step: int) -> float | None:
        return _usd(entry.get(f"{name}_above_{step}k_tokens"))

    return tuple(
        Above(
            input_tokens=step * 1000,
            usd_per_mtok_input=usd("input_cost_per_token", step) or usd_input,
            usd_per_mtok_output=usd("output_cost_per_token", step) or usd_output,
            usd_per_mtok_cached_input=usd("cache_read_input_token_cost", step) or None,
            usd_per_mtok_cache_write=usd("cache_creation_input_token_cost", step) or None,
        )
        for step in steps
    )


def _tiered(steps: list[Mapping[str, Any]]) -> tuple[Above, ...]:
    found = []
    for step in steps[1:]:
        usd_input, usd_output = _usd(step.get("input_cost_per_token")), _usd(step.get("output_cost_per_token"))
        start = _tokens((step.get("range") or [None])[0])
        if usd_input is not None and usd_output is not None and start:
            found.append(Above(input_tokens=start, usd_per_mtok_input=usd_input, usd_per_mtok_output=usd_output))
    return tuple(found)


def openrouter_models(models: list[Any]) -> Iterator[PricedModel]:
    """The models with fixed prices in OpenRouter's list (`GET /api/v1/models`), by LiteLLM's names for them."""
    for entry in models:
        pricing = entry.get("pricing") if isinstance(entry, Mapping) else None
        if not isinstance(pricing, Mapping):
            continue
        usd_input, usd_output = _usd(pricing.get("prompt")), _usd(pricing.get("completion"))
        if usd_input is None or usd_output is None:
            continue
        inputs = (entry.get("architecture") or {}).get("input_modalities") or ()
        can = [("tools", "tools" in (entry.get("supported_parameters") or ())), ("vision", "image" in inputs)]
        above, note = _overrides(pricing.get("overrides") or entry.get("overrides") or (), usd_input, usd_output)
        yield PricedModel(
            model=f"openrouter/{entry.get('id')}",
            provider="openrouter",
            region=UNKNOWN_REGION,
            context_window=_tokens(entry.get("context_length")),
            usd_per_mtok_input=usd_input,
            usd_per_mtok_output=usd_output,
            usd_per_mtok_cached_input=_usd(pricing.get("input_cache_read")) or None,
            usd_per_mtok_cache_write=_usd(pricing.get("input_cache_write")) or None,
            capabilities=tuple(name for name, is_able in [*can, ("audio", "audio" in inputs)] if is_able),
            above=above,
            note=note,
        )


def _overrides(overrides: Any, usd_input: float, usd_output: float) -> tuple[tuple[Above, ...], str]:
    """Prices above thresholds; and a note where others depend on the hour, which are left out."""
    found, note = {}, ""
    for each in overrides:
        threshold = _tokens(each.get("min_prompt_tokens"))
        if "utc_start" in each or not threshold:
            note = "prices by hour are left out"
            continue
        prompt, completion = _usd(each.get("prompt")), _usd(each.get("completion"))
        found[threshold] = Above(
            input_tokens=threshold,
            usd_per_mtok_input=usd_input if prompt is None else prompt,
            usd_per_mtok_output=usd_output if completion is None else completion,
            usd_per_mtok_cached_input=_usd(each.get("input_cache_read")) or None,
        )
    return tuple(found[threshold] for threshold in sorted(found)), note


_PRICE_COLUMN = re.compile(
    r"(?:(?P<before>[a-z]{3})_)?per_mtok_(?P<what>input|output|cached_input|cache_write)"
    r"|(?P<what2>input|output)_(?P<after>[a-z]{3})_per_mtok"
)


def csv_models(rows: Iterator[Mapping[str, str]], usd_per: Mapping[str, float], source: str) -> Iterator[PricedModel]:
    """The rows of a CSV with `model`, `provider` and prices per million tokens.

    Price columns are `usd_per_mtok_input`, `cny_per_mtok_output` and so on; `per_mtok_input` is in the currency of the
    column `currency`. usd_per: what one unit of another currency is in USD.
    Raises PriceMapError where a rate or a price is missing.
    """
    for number, row in enumerate(rows, 2):
        place = f"{source}: line {number}"
        prices: dict[str, float] = {}
        for column, text in row.items():
            found = _PRICE_COLUMN.fullmatch((column or "").strip().lower())
            if found and (text or "").strip():
                currency = found["before"] or found["after"] or row.get("currency") or "usd"
                prices[str(found["what"] or found["what2"])] = _amount(text, place) * _rate(currency, usd_per, place)
        if not row.get("model") or not {"input", "output"} <= set(prices):
            raise PriceMapError(f"{place}: expected model, usd_per_mtok_input and usd_per_mtok_output")
        provider = row.get("provider") or "unknown"
        yield PricedModel(
            model=str(row["model"]),
            provider=provider,
            region=row.get("region") or REGIONS.get(provider, UNKNOWN_REGION),
            context_window=_tokens(row.get("context_window")),
            usd_per_mtok_input=prices["input"],
            usd_per_mtok_output=prices["output"],
            usd_per_mtok_cached_input=prices.get("cached_input"),
            usd_per_mtok_cache_write=prices.get("cache_write"),
            capabilities=tuple((row.get("capabilities") or "").split()),
        )


def _rate(currency: str, usd_per: Mapping[str, float], place: str) -> float:
    code = currency.strip().upper()
    if code == "USD":
        return 1.0
    if code not in usd_per:
        raise PriceMapError(f"{place}: prices are in {code}; state the rate, for example --usd-per {code}=0.14")
    return usd_per[code]


def _amount(text: str, place: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = -1.0
    if not 0 <= amount < math.inf:
        raise PriceMapError(f"{place}: found {text!r} for a price; expected a number of at least 0")
    return amount


def _usd(per_token: Any) -> float | None:
    """USD per million tokens; None where the price is missing, negative (it varies) or no number."""
    try:
        usd = float(per_token) * _MTOK
    except (TypeError, ValueError):
        return None
    return round(usd, 9) if 0 <= usd < math.inf else None


def _tokens(value: Any) -> int | None:
    try:
        tokens = int(float(value))
    except (TypeError, ValueError, OverflowError):
        return None
    return tokens if tokens > 0 else None
