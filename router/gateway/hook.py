"""The router behind an endpoint: a hook for LiteLLM's proxy that answers for the model `broker`.

A request for `broker` is routed by the bundle, goes to the cheapest offer of the chosen tier, and carries the offers to
try next as LiteLLM's own fallbacks. `router.request` says where a request's dials stand, and `router.gateway.limits`
which of them a client may set. What was decided, and what became of it, goes into an `OutcomeLog` where there is one.
Every other model passes untouched. An offer's `model` in the price table is a `model_name` of LiteLLM's `model_list`;
keys stay in LiteLLM's own configuration. See examples/litellm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, NamedTuple

from router.decision import Decision
from router.errors import DialError
from router.gateway.limits import ClientLimits, operators_names
from router.gateway.usage import Usage, answer_text, billed_usd, estimated_tokens, reported_usage
from router.outcomes.log import OutcomeLog
from router.portfolio.tiers import Offer
from router.request import MODEL, needed_capabilities, read_dials, request_prompt, response_headers
from router.router import Router

try:
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.proxy._types import ProxyException
except ImportError as error:
    raise ImportError("router.gateway needs LiteLLM's proxy: pip install 'token-broker[gateway]'") from error

DECISION_KEY = "broker_decision"
"""Where the Decision stands in LiteLLM's request metadata; LiteLLM's logging callbacks find it there too."""

_CALL_TYPES = {"completion", "acompletion", "text_completion", "atext_completion"}


class BrokerHook(CustomLogger):
    """LiteLLM callback that routes every request for `broker`; answers say why in the headers `x-broker-*`.

    router: may take other prices or another bundle at any time; they hold from the next request on.
    outcomes: takes every decision and, of each answer, who gave it, its tokens, cost and latency. Tokens that the
        provider did not count are estimated. An answer from LiteLLM's own cache costs nothing and has no tokens.
        Whether the answer was right is for someone else to say later, by the decision_id in the headers. Logging
        never fails a request.
    allowed_dials: the dials that a client may set, any of `quality`, `worth_usd` and `critical`.
    max_worth_usd: the largest `worth_usd` that a client may set, in USD.
    Raises DialError where either is none of these.
    """

    def __init__(
        self,
        router: Router,
        outcomes: OutcomeLog | None = None,
        *,
        allowed_dials: Collection[str] = ("quality", "worth_usd"),
        max_worth_usd: float = 0.1,
    ) -> None:
        super().__init__()
        self._router = router
        self._outcomes = outcomes
        self._limits = ClientLimits(allowed_dials=allowed_dials, max_worth_usd=max_worth_usd)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Put the offer chosen in place of `broker` and the next ones into `fallbacks`; LiteLLM calls this.

        data: the request's body, changed in place.
        Raises ProxyException (HTTP 400) where a dial is wrong or not for clients to set, where the request itself
        would say who answers and how often (`fallbacks`, `num_retries`, ...), or where no offer may answer.
        """
        model = data.get("model")
        if not isinstance(model, str) or model.partition("/")[0] != MODEL:
            return None
        if call_type not in _CALL_TYPES:
            raise _refusal(f"{MODEL} answers chat completions and text completions; found a call of type {call_type}")
        if names := operators_names(data):
            raise _refusal(f"found {', '.join(names)} in a request to {MODEL}; the broker sets this, so leave it out")
        metadata = data.setdefault("metadata", {})
        try:
            decision, offers = self._route(data)
        except DialError as error:
            raise _refusal(str(error)) from error
        if not offers:
            raise _refusal(f"no offer in the price table may answer this request; {decision.reason}")
        metadata[DECISION_KEY] = replace(decision, offer=offers[0])  # A fallback may have had no offer.
        data["model"], *fallbacks = dict.fromkeys(offer.model for offer in offers)
        if fallbacks:
            data["fallbacks"] = fallbacks
        if self._outcomes is not None:
            self._outcomes.decided(metadata[DECISION_KEY], request_prompt(data), messages=data.get("messages"))
        return data

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: datetime, end_time: datetime
    ) -> None:
        """What became of a routed request, once its answer is whole; LiteLLM calls this."""
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        decision = metadata.get(DECISION_KEY)
        if self._outcomes is None or not isinstance(decision, Decision):
            return
        answer = kwargs.get("standard_logging_object") or {}
        model = answer.get("model_group") or metadata.get("model_group")
        answered = self._answered_by(model)
        latency_ms = (end_time - start_time).total_seconds() * 1000
        if kwargs.get("cache_hit"):  # LiteLLM has given an earlier answer again: no model was asked.
            outcome: dict[str, Any] = {"cache_hit": True, "cost_usd": 0.0}
        else:
            usage = self._usage(decision, answer, response_obj)
            outcome = asdict(usage)
            if answered is not None:
                outcome["cost_usd"] = billed_usd(answered.offer, usage, answer.get("response_cost"))
        if answered is not None:
            outcome |= {"model": answered.offer.model, "provider": answered.offer.provider, "tier": answered.tier}
        elif isinstance(model, str):
            outcome |= {"model": model, "provider": str(answer.get("custom_llm_provider") or ""), "tier": ""}
        self._outcomes.outcome(decision.decision_id, latency_ms=latency_ms, **outcome)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """Headers of the answer to a routed request, be it whole, streamed or an error; LiteLLM calls this."""
        decision = (data.get("metadata") or {}).get(DECISION_KEY)
        if not isinstance(decision, Decision):
            return None
        model = _answering_model(response)
        answered = self._answered_by(model)
        return response_headers(decision, model, None if answered is None else answered.tier)

    def _route(self, data: Mapping[str, Any]) -> tuple[Decision, list[Offer]]:
        """The decision for a request, and the offers to try, best first; raises DialError.

        It runs in LiteLLM's event loop on purpose: a decision of the static encoder takes less time than
        the way to another thread and back.
        """
        dials = read_dials(data["model"], data["metadata"].get(MODEL))
        self._limits.check(dials)
        snapshot = self._router.snapshot  # One bundle and one price table for all that follows.
        call = snapshot.call(
            quality=dials.quality,
            worth_usd=dials.worth_usd,
            critical=dials.critical,
            capabilities=needed_capabilities(data, snapshot.prices),
        )
        decision = call.route(
            request_prompt(data), messages=data.get("messages"), request_id=data.get("litellm_call_id")
        )
        return decision, call.offers_to_try(decision)

    def _usage(self, decision: Decision, answer: Mapping[str, Any], response: object) -> Usage:
        """The tokens of an answer as the provider counted them; what it did not count is estimated."""
        reported = (answer.get("metadata") or {}).get("usage_object") or answer
        usage = reported_usage(reported)
        n_input, n_output = usage.input_tokens, usage.output_tokens
        if n_input is not None and n_output is not None:
            return usage
        return replace(
            usage,
            input_tokens=n_input or round(decision.context_tokens) or None,
            output_tokens=n_output or estimated_tokens(self._router.bundle, answer_text(response)),
            tokens_estimated=True,
        )

    def _answered_by(self, model: object) -> _Answered | None:
        """The offer of a model in the present price table; None where it has none."""
        for tier in self._router.prices.tiers:
            for offer in tier.offers:
                if offer.model == model:
                    return _Answered(tier.name, offer)
        return None


class _Answered(NamedTuple):
    """Who has answered a request."""

    tier: str
    offer: Offer


def _answering_model(response: object) -> str | None:
    """The `model_name` that has answered, which LiteLLM leaves in the headers of a response; None for an error."""
    headers = (getattr(response, "_hidden_params", None) or {}).get("additional_headers") or {}
    model = headers.get("x-litellm-model-group")
    return model if isinstance(model, str) else None


def _refusal(message: str) -> ProxyException:
    return ProxyException(message=message, type="invalid_request_error", param="model", code=400)
