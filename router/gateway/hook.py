"""The router behind an endpoint: a hook for LiteLLM's proxy that answers for the model `broker`.

A request for `broker` is routed by the bundle, goes to the cheapest offer of the chosen tier, and carries the offers to
try next as LiteLLM's own fallbacks. Dials stand in the model's name, `broker/quality=0.98,worth=0.002` or
`broker/critical`, or in the request's metadata, `{"broker": {"quality": 0.98, "worth_usd": 0.002, "critical": true}}`,
which wins over the name. What was decided, and what became of it, goes into an `OutcomeLog` where there is one. Every
other model passes untouched. An offer's `model` in the price table is a `model_name` of LiteLLM's `model_list`; keys
stay in LiteLLM's own configuration. See examples/litellm.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from router.decision import Decision
from router.errors import DialError
from router.outcomes.log import OutcomeLog
from router.policy import offer_filter
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import Offer
from router.router import Router

try:
    from litellm.integrations.custom_logger import CustomLogger
    from litellm.proxy._types import ProxyException
except ImportError as error:
    raise ImportError("router.gateway needs LiteLLM's proxy: pip install 'token-broker[gateway]'") from error

MODEL = "broker"
DECISION_KEY = "broker_decision"  # in LiteLLM's request metadata, where its logging callbacks find the Decision too

_CALL_TYPES = {"completion", "acompletion", "text_completion", "atext_completion"}
_DIALS_IN_NAME = f"{MODEL}/quality=Q, {MODEL}/worth=USD, {MODEL}/critical or several with commas between"
_NUMBERS_IN_NAME = {"quality": "quality", "worth": "worth_usd"}
_TOOLS = "tools"


class BrokerHook(CustomLogger):
    """LiteLLM callback that routes every request for `broker`; answers say why in the headers `x-broker-*`.

    router: may take other prices or another bundle at any time; they hold from the next request on.
    outcomes: takes every decision and, of an answer, who gave it, its tokens, cost and latency; whether it was right is
        for someone else to say, later, by the decision_id that the client was told. It never fails a request.
    """

    def __init__(self, router: Router, outcomes: OutcomeLog | None = None) -> None:
        super().__init__()
        self._router = router
        self._outcomes = outcomes

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Put the offer chosen in place of `broker` and the next ones into `fallbacks`; LiteLLM calls this.

        data: the request's body, changed in place; a request's own `fallbacks` stay as they are.
        Raises ProxyException (HTTP 400) where a dial is wrong or no offer may answer.
        """
        model = data.get("model")
        if not isinstance(model, str) or model.partition("/")[0] != MODEL:
            return None
        if call_type not in _CALL_TYPES:
            raise _refusal(f"{MODEL} answers chat completions and text completions; found a call of type {call_type}")
        metadata = data.setdefault("metadata", {})
        try:
            decision, offers = self._route(read_dials(model, metadata.get(MODEL)), data)
        except DialError as error:
            raise _refusal(str(error)) from error
        if not offers:
            raise _refusal(f"no offer in the price table may answer this request; {decision.reason}")
        metadata[DECISION_KEY] = replace(decision, offer=offers[0])
        data["model"], *fallbacks = dict.fromkeys(offer.model for offer in offers)
        if fallbacks:
            data.setdefault("fallbacks", fallbacks)
        if self._outcomes is not None:
            self._outcomes.decided(metadata[DECISION_KEY], _prompt(data), messages=data.get("messages"))
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
        group = answer.get("model_group") or metadata.get("model_group")
        who: dict[str, Any] = {}
        # Of a stream that its provider did not count, LiteLLM says 0.
        input_tokens, output_tokens = answer.get("prompt_tokens") or None, answer.get("completion_tokens") or None
        for tier in self._router.prices.tiers:
            for offer in tier.offers:
                if offer.model == group:
                    who = {"model": offer.model, "provider": offer.provider, "tier": tier.name}
                    if input_tokens is not None and output_tokens is not None:
                        usd = input_tokens * offer.usd_per_mtok_input + output_tokens * offer.usd_per_mtok_output
                        who["cost_usd"] = usd / 1e6
        self._outcomes.outcome(
            decision.decision_id,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            latency_ms=(end_time - start_time).total_seconds() * 1000,
            **who,
        )

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
        return response_headers(decision) if isinstance(decision, Decision) else None

    def _route(self, dials: RequestDials, data: Mapping[str, Any]) -> tuple[Decision, list[Offer]]:
        """The decision for a request, and the offers to try, best first.

        It runs in LiteLLM's event loop on purpose: a decision of the static encoder takes less time than
        the way to another thread and back.
        """
        prices = self._router.prices
        capabilities = needed_capabilities(data, prices)
        decision = self._router.route(
            _prompt(data),
            messages=data.get("messages"),
            quality=dials.quality,
            worth_usd=dials.worth_usd,
            critical=dials.critical,
            capabilities=capabilities,
            request_id=data.get("litellm_call_id"),
        )
        accepts = offer_filter(self._router.policy.regions, capabilities)
        return decision, list(offers_to_try(decision, prices, accepts, critical=dials.critical))


@dataclass(frozen=True, slots=True)
class RequestDials:
    """The dials of one request, as Router.route takes them."""

    quality: float | None = None
    worth_usd: float | None = None
    critical: bool = False


def read_dials(model: str, metadata: object = None) -> RequestDials:
    """The dials of a request.

    model: `broker`, or `broker/` and dials, as in `broker/quality=0.98,worth=0.002` or `broker/critical`.
    metadata: what the request's metadata holds under `broker`: a mapping with any of `quality`,
    `worth_usd` and `critical`, each of which wins over the name; None where there is nothing.
    Raises DialError where this is not so; whether a number is in range is for Router.route to say.
    """
    named = _dials_in_name(model)
    if metadata is None:
        return RequestDials(**named)
    if not isinstance(metadata, Mapping) or not {"quality", "worth_usd", "critical"}.issuperset(metadata):
        raise DialError(
            f"metadata.{MODEL} is {reprlib.repr(metadata)}; "
            "expected an object with any of quality, worth_usd and critical"
        )
    for name, value in metadata.items():
        if name == "critical":
            if not isinstance(value, bool):
                raise DialError(f"metadata.{MODEL}.critical is {reprlib.repr(value)}; expected true or false")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise DialError(f"metadata.{MODEL}.{name} is {reprlib.repr(value)}; expected a number")
    return RequestDials(**{**named, **metadata})


def _dials_in_name(model: str) -> dict[str, Any]:
    _, slash, text = model.partition("/")
    dials: dict[str, Any] = {}
    for word in text.split(",") if slash else []:
        name, _, number = word.partition("=")
        try:
            dial, value = ("critical", True) if word == "critical" else (_NUMBERS_IN_NAME[name], float(number))
        except (KeyError, ValueError):
            raise DialError(f"model {model!r}: {word!r} is no dial; expected {_DIALS_IN_NAME}") from None
        if dial in dials:
            raise DialError(f"model {model!r}: {name} stands there more than once; expected {_DIALS_IN_NAME}")
        dials[dial] = value
    return dials


def needed_capabilities(data: Mapping[str, Any], prices: PriceTable) -> frozenset[str]:
    """What a request's offers must be capable of: `tools` where it brings tools.

    A price table in which no offer states `tools` says nothing about tools, so nothing is asked of it.
    """
    if not (data.get("tools") or data.get("functions")):
        return frozenset()
    stated = any(_TOOLS in offer.capabilities for tier in prices.tiers for offer in tier.offers)
    return frozenset({_TOOLS}) if stated else frozenset()


def offers_to_try(
    decision: Decision, prices: PriceTable, accepts: Callable[[Offer], bool] | None, *, critical: bool
) -> Iterator[Offer]:
    """The offer chosen, the others of its tier, then those of the next better tiers.

    Better is a higher success on this prompt, the least of them first; within a tier the least expected cost
    of this request comes first. Offers whose context window the request does not fit are left out; but where it
    fits none, and the decision is a fallback, all offers of the fallback tier stay: their provider has the last word.

    accepts: further conditions on an offer; None where there are none.
    critical: only tiers that may answer critical requests.
    """
    success, chosen = decision.success, [tier for tier in prices.tiers if tier.name == decision.tier]
    bar = success.get(decision.tier, math.inf)
    reserved = critical and any(tier.critical for tier in prices.tiers)
    better = [tier for tier in prices.tiers if success.get(tier.name, 0.0) > bar and (tier.critical or not reserved)]
    if decision.offer is not None:
        yield decision.offer
    for tier in chosen + sorted(better, key=lambda tier: success[tier.name]):
        n_output = decision.output_tokens.get(tier.name, 0.0)
        costs_usd = [
            (decision.context_tokens * offer.usd_per_mtok_input + n_output * offer.usd_per_mtok_output, index)
            for index, offer in enumerate(tier.offers)
            if offer != decision.offer
            and (accepts is None or accepts(offer))
            and (decision.fallback or decision.context_tokens + n_output <= offer.context_window)
        ]
        for _, index in sorted(costs_usd):
            yield tier.offers[index]


def response_headers(decision: Decision) -> dict[str, str]:
    """The headers that tell a client of its decision; printable ASCII, all else is escaped.

    The expected cost is missing where the router could not decide.
    """
    headers = {
        "x-broker-tier": decision.tier,
        "x-broker-decision-id": decision.decision_id,
        "x-broker-reason": decision.reason,
    }
    if decision.offer is not None:
        headers["x-broker-model"] = decision.offer.model
    if not decision.fallback:
        headers["x-broker-expected-cost-usd"] = f"{decision.cost_usd[decision.tier]:.9f}"
    return {name: value.encode("unicode_escape").decode("ascii").strip() for name, value in headers.items()}


def _prompt(data: Mapping[str, Any]) -> Any:
    """The prompt of a text completion as one text, where it is texts; None for a chat."""
    prompt = data.get("prompt")
    if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
        return "\n\n".join(prompt)
    return prompt


def _refusal(message: str) -> ProxyException:
    return ProxyException(message=message, type="invalid_request_error", param="model", code=400)
