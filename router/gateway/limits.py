"""What a request says of the answers that it wants, and the names in it that only the operator sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WHO_ANSWERS = {
    "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "max_fallbacks",
    "num_retries", "max_retries", "retry_policy", "model_group_retry_policy",
    "model_list", "user_config", "deployment_id", "model_id", "specific_deployment", "custom_llm_provider",
    "api_base", "base_url", "api_key", "litellm_credential_name", "region_name",
    "models", "provider", "providerOptions", "route", "inference_geo", "service_tier",
}  # fmt: skip
"""Names by which a request would tell LiteLLM, or a provider that is itself a broker, whom to ask, how often, with
whose account, in which region, and at which price.

LiteLLM refuses some of them by itself, but an operator can allow those for requests to other models.
"""

_WHERE_IT_RUNS = ("aws_", "azure_", "vertex_")  # how the names of a cloud's region, project and account begin


def answers_wanted(data: Mapping[str, Any]) -> tuple[int, float]:
    """How many answers a request asks for, and the tokens of the longest answer that it takes, infinite for any.

    Where it says so in several places, the larger number counts. A request with an `extra_body` may say anything to the
    provider, so its answers may have any length.
    """
    extra = data.get("extra_body")
    places = [data, extra] if isinstance(extra, Mapping) else [data]
    counts = [_number(place.get(name)) for place in places for name in ("n", "best_of")]
    lengths = [_number(data.get(name)) for name in ("max_tokens", "max_completion_tokens")]
    longest = max((length for length in lengths if length is not None), default=0.0)
    n_answers = max((math.ceil(count) for count in counts if count is not None), default=1)
    return max(1, n_answers), math.inf if extra or longest <= 0 else longest


def _number(value: object) -> float | None:
    """The number that a provider would read, also from a text; None where it would read none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def operators_names(data: Mapping[str, Any]) -> list[str]:
    """The names in a request's body that only the operator sets, since they would change who answers and how often."""
    names = [name for name in data if _is_operators(name)]
    extra = data.get("extra_body")  # The provider gets what stands in it in place of what LiteLLM has written.
    if isinstance(extra, Mapping):
        names += [f"extra_body.{name}" for name in extra if name == "model" or _is_operators(name)]
    return names


def _is_operators(name: object) -> bool:
    return isinstance(name, str) and (name in _WHO_ANSWERS or name.startswith(_WHERE_IT_RUNS))
