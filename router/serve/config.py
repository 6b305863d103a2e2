"""LiteLLM's configuration, written from the tiers: one entry per offer, and what keeps a broken one from holding all.

No key ever stands in it, only the names of environment variables. Which variables an offer needs follows from its
`model` and `provider`:

- `model` begins with a provider that LiteLLM knows (`deepseek/deepseek-chat`): it is taken as it is.
- LiteLLM knows `provider`: the model is `provider/model`.
- Otherwise the provider is a server that speaks OpenAI's protocol, at the address in `<PROVIDER>_API_BASE`.

The key is in `<PROVIDER>_API_KEY`. Where `<PROVIDER>_API_BASE` is set, requests go there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from router.portfolio.tiers import Offer, Tier
from router.request import MODEL

MASTER_KEY = "LITELLM_MASTER_KEY"
"""The environment variable with the key that clients send."""

ROUTER_SETTINGS = {"num_retries": 0, "stream_timeout": 3, "timeout": 60, "disable_cooldowns": True}
"""Seconds and counts; examples/litellm/README.md says why. An offer that fails hands over to the next one at once.

Which offers are left alone, router.portfolio.health says. LiteLLM's own cooldowns would do it a second time: after two
failures a minute, whatever the share, and also where no other offer is left, so that requests get a 429.
"""

_PRICE_NAMES = (
    "input_cost_per_token", "output_cost_per_token",
    "cache_read_input_token_cost", "cache_creation_input_token_cost",
)  # fmt: skip
_REFERENCE = "os.environ/"
_OWN_CREDENTIALS = {
    "azure", "azure_ai", "bedrock", "bedrock_converse", "sagemaker", "sagemaker_chat", "vertex_ai", "vertex_ai_beta",
    "watsonx", "oci", "sap", "snowflake", "databricks", "github_copilot", "chatgpt", "ollama", "ollama_chat",
}  # fmt: skip
"""Providers that ask for more than a key, or for none. LiteLLM reads what they need from the environment itself."""


@dataclass(frozen=True)
class MissingVariable:
    """An environment variable that is named and not set. models: the `model_name`s that need it."""

    name: str
    models: tuple[str, ...]


def litellm_config(
    tiers: Iterable[Tier], environment: Mapping[str, str], known_providers: Collection[str]
) -> dict[str, Any]:
    """The whole configuration of LiteLLM's proxy.

    environment: which variables are set; no value of it gets into the configuration. known_providers: LiteLLM's.
    """
    offers = [offer for tier in tiers for offer in tier.offers]
    broker = {"model": f"openai/{MODEL}", "mock_response": "litellm.InternalServerError"}
    free = dict.fromkeys(_PRICE_NAMES, 0)  # A plan's calls are billed at their own models.
    always = {"cooldown_time": 0}  # A plan whose calls all fail says nothing of the next one.
    return {
        "model_list": [
            *(model_entry(offer, environment, known_providers) for offer in offers),
            {"model_name": MODEL, "litellm_params": {**broker, **free, **always}},
        ],
        "router_settings": dict(ROUTER_SETTINGS),
        "general_settings": {"always_include_stream_usage": True, "master_key": _REFERENCE + MASTER_KEY},
    }


def model_entry(offer: Offer, environment: Mapping[str, str], known_providers: Collection[str]) -> dict[str, Any]:
    """The entry of an offer in LiteLLM's `model_list`; `litellm_config` says the rest."""
    first, slash, _ = offer.model.partition("/")
    stated = offer.provider.lower()
    own_base = api_base_variable(stated)
    if slash and first in known_providers and own_base not in environment:
        provider, model = first, offer.model
    elif slash and first in known_providers:
        provider, model = stated, offer.model
    elif stated in known_providers:
        provider, model = stated, f"{stated}/{offer.model}"
    else:
        provider, model = stated, f"openai/{offer.model}"
    base, key = api_base_variable(provider), f"{_variable(provider)}_API_KEY"
    params: dict[str, Any] = {"model": model}
    if provider in _OWN_CREDENTIALS:
        return {"model_name": offer.model, "litellm_params": params}
    if provider not in known_providers:  # A server of one's own may need no key. It must not get that of OpenAI.
        params |= {"api_base": _REFERENCE + base, "api_key": _REFERENCE + key if key in environment else "none"}
        params |= _prices(offer)  # LiteLLM's own price map does not know it.
    else:
        params |= {"api_base": _REFERENCE + base} if base in environment else {}
        params["api_key"] = _REFERENCE + key
    return {"model_name": offer.model, "litellm_params": params}


def missing_variables(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    needed_by: Callable[[str], Mapping[str, Any]],
) -> list[MissingVariable]:
    """The variables that a configuration of LiteLLM needs and that are not set, sorted by name.

    needed_by: `litellm.validate_environment`, which knows of a model whether its keys are there under other names.
    """
    missing: dict[str, list[str]] = {}
    for entry in config.get("model_list") or []:
        params, name = entry.get("litellm_params") or {}, str(entry.get("model_name"))
        names = [each for each in _references(params) if each not in environment]
        if not names and not set(params) & {"api_key", "api_base", "mock_response"}:
            names = list(needed_by(str(params.get("model")))["missing_keys"])
        elif names and "api_base" not in params and needed_by(str(params.get("model")))["keys_in_environment"]:
            names = []
        for each in names:
            missing.setdefault(each, []).append(name)
    rest = {name: value for name, value in config.items() if name != "model_list"}
    for each in _references(rest):
        if each not in environment:
            missing.setdefault(each, [])
    return [MissingVariable(name=name, models=tuple(dict.fromkeys(missing[name]))) for name in sorted(missing)]


def _references(value: object) -> Iterator[str]:
    """The names of all environment variables to which a configuration refers."""
    if isinstance(value, str) and value.startswith(_REFERENCE):
        yield value.removeprefix(_REFERENCE)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def _prices(offer: Offer) -> dict[str, float]:
    """What LiteLLM bills for a model that is not in its price map.

    Without a price of their own, cached tokens cost as much as others.
    """
    cached, written = offer.usd_per_mtok_cached_input, offer.usd_per_mtok_cache_write
    prices = (
        offer.usd_per_mtok_input,
        offer.usd_per_mtok_output,
        offer.usd_per_mtok_input if cached is None else cached,
        offer.usd_per_mtok_input if written is None else written,
    )
    return {name: price / 1e6 for name, price in zip(_PRICE_NAMES, prices, strict=True)}


def api_base_variable(provider: str) -> str:
    """The environment variable with the address of a provider: `sim-east` gives `SIM_EAST_API_BASE`."""
    return f"{_variable(provider)}_API_BASE"


def _variable(provider: str) -> str:
    """The beginning of the names of a provider's variables: `sim-east` gives `SIM_EAST`."""
    return re.sub(r"\W", "_", provider, flags=re.ASCII).upper()
