"""Who asks, what its request says of the answers, and the names in it that only the operator sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from router.clients import Client

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


def client_of(auth: Any) -> Client:
    """Who asks. auth: LiteLLM's UserAPIKeyAuth, which no request can write to; None for a client that is not known."""
    names = (getattr(auth, name, None) for name in ("token", "key_alias", "team_id", "team_alias"))
    return Client(*(name if isinstance(name, str) else "" for name in names))


def answers_wanted(data: Mapping[str, Any]) -> tuple[int, float]:
    """How many answers a request asks for, and the tokens of the longest answer that it takes, infinite for any."""
    counts = [data.get(name) for name in ("n", "best_of")]
    lengths = [data.get(name) for name in ("max_tokens", "max_completion_tokens")]
    n_answers = max((count for count in counts if type(count) is int), default=1)
    longest = min((length for length in lengths if type(length) is int and length > 0), default=math.inf)
    return max(1, n_answers), longest


def operators_names(data: Mapping[str, Any]) -> list[str]:
    """The names in a request's body that only the operator sets, since they would change who answers and how often."""
    names = [name for name in data if _is_operators(name)]
    extra = data.get("extra_body")  # The provider gets what stands in it in place of what LiteLLM has written.
    if isinstance(extra, Mapping):
        names += [f"extra_body.{name}" for name in extra if name == "model" or _is_operators(name)]
    return names


def _is_operators(name: object) -> bool:
    return isinstance(name, str) and (name in _WHO_ANSWERS or name.startswith(_WHERE_IT_RUNS))
