"""What a client may ask of a routed request: the dials it may set, and the names that only the operator sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from router.errors import DialError
from router.request import RequestDials

DIALS = ("quality", "worth_usd", "critical", "check")

_WHO_ANSWERS = {
    "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "max_fallbacks",
    "num_retries", "max_retries", "retry_policy", "model_group_retry_policy",
    "model_list", "user_config", "deployment_id", "model_id", "specific_deployment", "custom_llm_provider",
    "api_base", "base_url", "api_key", "litellm_credential_name", "region_name",
}  # fmt: skip
"""Names by which a request would tell LiteLLM whom to ask, how often, and with whose account.

LiteLLM refuses some of them by itself, but an operator can allow those for requests to other models.
"""

_WHERE_IT_RUNS = ("aws_", "azure_", "vertex_")  # how the names of a cloud's region, project and account begin


@dataclass(frozen=True)
class ClientLimits:
    """Which dials a client may set, and how far.

    allowed_dials: any of DIALS. max_worth_usd: the largest worth_usd, in USD.
    Raises DialError where a dial has another name, or max_worth_usd is below 0 or no number.
    """

    allowed_dials: Collection[str]
    max_worth_usd: float

    def __post_init__(self) -> None:
        allowed = self.allowed_dials
        is_list = isinstance(allowed, Collection) and not isinstance(allowed, str)
        if not is_list or not all(name in DIALS for name in allowed):
            raise DialError(f"allowed_dials is {allowed!r}; expected a list with any of {', '.join(DIALS)}")
        if not (isinstance(self.max_worth_usd, Real) and self.max_worth_usd >= 0):
            raise DialError(f"max_worth_usd is {self.max_worth_usd!r}; expected a number of USD of at least 0")

    def check(self, dials: RequestDials) -> None:
        """Raises DialError where a client may not set a dial, or not so high."""
        asked = {
            "quality": dials.quality is not None,
            "worth_usd": dials.worth_usd is not None,
            "critical": dials.critical,
            "check": bool(dials.checks),
        }
        for name, is_set in asked.items():
            if is_set and name not in self.allowed_dials:
                allowed = ", ".join(each for each in DIALS if each in self.allowed_dials) or "no dial"
                raise DialError(f"{name} is not for clients of this endpoint to set; expected {allowed}")
        if dials.worth_usd is not None and dials.worth_usd > self.max_worth_usd:
            raise DialError(
                f"worth_usd is {dials.worth_usd:g}; expected at most {self.max_worth_usd:g} at this endpoint"
            )


def operators_names(data: Mapping[str, Any]) -> list[str]:
    """The names in a request's body that only the operator sets, since they would change who answers and how often."""
    names = [name for name in data if _is_operators(name)]
    extra = data.get("extra_body")  # The provider gets what stands in it in place of what LiteLLM has written.
    if isinstance(extra, Mapping):
        names += [f"extra_body.{name}" for name in extra if name == "model" or _is_operators(name)]
    return names


def _is_operators(name: object) -> bool:
    return isinstance(name, str) and (name in _WHO_ANSWERS or name.startswith(_WHERE_IT_RUNS))
