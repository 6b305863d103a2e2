"""Plans in the gateway: `broker/check=agreement` asks through LiteLLM's own router, and looks at the answers.

LiteLLM first chooses the entry `broker` of `model_list`, so that all its own checks of the request have been made. Just
before it would ask that entry's provider, the plan is run: each of its calls goes through LiteLLM's router as a request
of its own, to an offer's `model_name`, with the client's parameters and key. The answer that the plan returns is then
given to LiteLLM in place of a provider's, so it comes whole, also where the client wants a stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from router.decision import Decision
from router.errors import DialError, PlanError
from router.gateway.usage import billed_usd, reported_usage
from router.outcomes.log import OutcomeLog
from router.plan import Plan
from router.plan_result import Answer, PlanResult
from router.plans.checks import AGREEMENT, CheckModel
from router.plans.planner import MOST_CALLS
from router.portfolio.portfolio import Portfolio
from router.portfolio.prices import PriceTable, TierOffer
from router.portfolio.tiers import Offer
from router.request import MODEL, RequestDials, printable, request_prompt, response_headers
from router.router import Snapshot
from router.routing import Call

PLAN_KEY = "broker_plan"
"""Where the PlannedRequest stands in LiteLLM's request metadata."""

SCHEMA = "schema"
"""The check that the answer fits the request's `response_format`."""

_NOT_PARAMETERS = {
    "model", "messages", "stream", "stream_options", "metadata", "litellm_metadata", "cache", "num_retries",
    "disable_fallbacks", "mock_response", "mock_tool_calls", "mock_timeout", "mock_delay",
}  # fmt: skip
"""Names of a request's body that do not reach the calls of its plan as they are."""

_MOST_SCHEMAS = 256


class PlannedRequest:
    """A request that a plan answers.

    names: of the parameters that the client has set, such as `temperature`. result: once the plan has been run.
    """

    def __init__(
        self,
        plan: Plan,
        checks: Mapping[str, Callable[..., Any]],
        names: Collection[str],
        outcomes: OutcomeLog | None,
        prices: PriceTable,
        portfolio: Portfolio,
    ) -> None:
        self.result: PlanResult | None = None
        self._plan = plan
        self._checks = checks
        self._names = names
        self._outcomes = outcomes
        self._prices = prices
        self._portfolio = portfolio
        self._own: dict[str, Any] = {"disable_fallbacks": True}

    def __deepcopy__(self, memo: dict[int, Any]) -> PlannedRequest:
        return self  # LiteLLM copies a request's metadata; all copies are one request.

    def put_into(self, data: dict[str, Any]) -> dict[str, Any]:
        """The request's body, changed so that LiteLLM chooses the entry `broker`, once, and takes no cached answer.

        The calls of the plan have LiteLLM's own retries, and its cache as the client wants it.
        """
        if "cache" in data:
            self._own["cache"] = data["cache"]
        once = {"num_retries": 0, "disable_fallbacks": True, "cache": {"no-cache": True, "no-store": True}}
        data |= {"model": MODEL, **once}
        return data

    async def answered(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of LiteLLM's call with the plan's answer in them, in place of a provider's.

        Raises litellm.APIError where all calls of the plan failed, with the HTTP status of the last one.
        """
        responses: dict[str, Any] = {}
        parameters = {name: call[name] for name in self._names if name in call}
        metadata = {name: value for name, value in call["metadata"].items() if name != PLAN_KEY}

        async def ask(offer: Offer) -> Answer:
            response = responses[offer.model] = await _litellm_router().acompletion(
                model=offer.model,
                messages=call["messages"],
                metadata=dict(metadata),
                **self._own,
                **parameters,
            )
            base = self._prices.find(offer.model) or TierOffer(self._plan.tier, offer)
            answer = _answer(base.offer, response, self._prices.minute())
            self._count(base, answer.cost_usd, is_first=len(responses) == 1)
            return answer

        try:
            self.result = await self._plan.arun(ask, self._checks, log=self._outcomes, parallel=True)
        except PlanError as error:
            raise _upstream_error(error) from error
        response = responses[self.result.offer.model].model_copy(deep=True)
        response._hidden_params = {"response_cost": 0.0}  # LiteLLM has counted the cost of each call of the plan.
        return {**call, "mock_response": response}

    def _count(self, asked: TierOffer, cost_usd: float | None, *, is_first: bool) -> None:
        """Tell the portfolio of a call: the first stands in for what was decided, each other one counts beside it."""
        if is_first:
            self._portfolio.settle(self._plan.decision.decision_id, asked.tier, asked.offer, cost_usd)
        else:
            self._portfolio.count(asked.tier, asked.offer, cost_usd or 0.0)

    def headers(self) -> dict[str, str]:
        """The headers of the answer; where there is none, those of the plan."""
        plan, result = self._plan, self.result
        first = plan.first.offer
        headers: dict[str, str | None] = {
            "x-broker-first-tier": plan.tier,
            "x-broker-first-model": None if first is None else first.model,
            "x-broker-expected-cost-usd": f"{plan.cost_usd:.9f}",
        }
        if result is None:
            return response_headers(plan.decision) | printable({**headers, "x-broker-reason": plan.reason})
        headers |= {
            "x-broker-steps": ",".join(attempt.tier for attempt in result.attempts),
            "x-broker-cost-usd": f"{result.cost_usd:.9f}",
            "x-broker-reason": result.reason,
            "x-broker-stream": "begins when the answer is accepted",
        }
        return response_headers(plan.decision, result.offer.model, result.tier) | printable(headers)


class RequestPlanner:
    """Makes the plans of requests.

    portfolio: is told of every call. outcomes: takes every call of a plan. declared: checks with stated figures, as
    text, for checks that the bundle has not learned, such as "schema:sensitivity=0.99,specificity=0.3".
    Raises CheckError where such a text is wrong.
    """

    def __init__(self, portfolio: Portfolio, outcomes: OutcomeLog | None, declared: Collection[str] = ()) -> None:
        self._portfolio = portfolio
        self._outcomes = outcomes
        self._declared = {CheckModel.declared_by(text, 1).name: text for text in declared}

    def decide(
        self, snapshot: Snapshot, call: Call, dials: RequestDials, data: Mapping[str, Any]
    ) -> tuple[Decision, Call]:
        """The decision for a request that asks for checks, and the call with the offers that may answer it.

        call: what routes it. Where a plan answers the request, a PlannedRequest is put into the metadata of `data`.
        Where none does, the request is routed to one tier, and the reason says why.
        Raises DialError and CheckError where a check is not known, or cannot be run here.
        """
        checks = {name: function for name in dials.checks if (function := _function(name, data)) is not None}
        messages, request_id = data.get("messages"), data.get("litellm_call_id")
        if why := _not_planned(data, dials.checks, checks):
            decision, call = call.decide(request_prompt(data), messages=messages, request_id=request_id)
            return replace(decision, reason=f"not planned, since {why}; {decision.reason}"), call
        models = [self._model(snapshot, name) for name in dials.checks]
        plan, call = snapshot.planned(call, None, messages, models, MOST_CALLS, request_id=request_id)
        if plan.is_direct:
            is_same = plan.tier == plan.decision.tier
            propensity = plan.decision.propensity if is_same else 1.0
            direct = replace(
                plan.decision, tier=plan.tier, offer=plan.first.offer, reason=plan.reason, propensity=propensity
            )
            return direct, call
        if MODEL not in _litellm_router().model_names:
            raise DialError(f"plans need an entry `{MODEL}` in LiteLLM's model_list; see examples/litellm")
        body = (data.get("proxy_server_request") or {}).get("body") or data
        data["metadata"][PLAN_KEY] = PlannedRequest(
            plan, checks, set(body) - _NOT_PARAMETERS, self._outcomes, snapshot.prices, self._portfolio
        )
        return replace(plan.decision, reason=plan.reason), call

    def _model(self, snapshot: Snapshot, name: str) -> str | CheckModel:
        """What is known of a check: what the bundle has learned, else the figures that the operator has stated."""
        planner, text = snapshot.bundle.planner, self._declared.get(name)
        if text is None or planner is None or name in planner.known.names:
            return name
        return CheckModel.declared_by(text, len(snapshot.bundle.manifest.tiers))


def planned_of(data: Mapping[str, Any]) -> PlannedRequest | None:
    """What a request's metadata hold, in its body or in the arguments of its call; None where no plan answers it."""
    metadata = data.get("metadata")
    found = metadata.get(PLAN_KEY) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, PlannedRequest) else None


def _not_planned(data: Mapping[str, Any], asked: Collection[str], checks: Mapping[str, Any]) -> str:
    """Why no plan may answer a request; empty where one may."""
    if data.get("tools") or data.get("functions"):
        return "the request has tools"
    if data.get("messages") is None:
        return "the request is no chat"
    if data.get("n") not in (None, 1):
        return "the request asks for several answers"
    if SCHEMA in asked and SCHEMA not in checks:
        return "the request has no response_format that an answer could be checked by"
    return ""


def _function(name: str, data: Mapping[str, Any]) -> Callable[..., Any] | None:
    """What looks at an answer for a check; None where nothing needs to, or can."""
    if name == AGREEMENT:
        return None
    if name != SCHEMA:
        raise DialError(f"the check {name[:80]!r} cannot be run at this endpoint; expected {AGREEMENT} or {SCHEMA}")
    asked = data.get("response_format")
    return _schema_check(json.dumps(asked, sort_keys=True)) if isinstance(asked, Mapping) else None


@lru_cache(_MOST_SCHEMAS)
def _schema_check(response_format: str) -> Callable[..., Any] | None:
    """The check of a response_format, given as JSON; raises CheckError, and DialError without the extra `checks`."""
    try:
        from router.checks.schema import response_format_check
    except ImportError as error:
        raise DialError(str(error)) from error
    return response_format_check(json.loads(response_format))


def _answer(offer: Offer, response: Any, minute: int | None) -> Answer:
    """An answer of LiteLLM's as a plan takes it; raises ValueError where it has no text.

    minute: since midnight UTC, for prices that depend on the hour.
    """
    text = response.choices[0].message.content
    if not isinstance(text, str):
        raise ValueError("the answer has no text")
    hidden = getattr(response, "_hidden_params", None) or {}
    if hidden.get("cache_hit"):
        return Answer(text, cost_usd=0.0)
    usage = getattr(response, "usage", None)
    counted = reported_usage({} if usage is None else usage.model_dump())
    return Answer(
        text,
        cost_usd=billed_usd(offer, counted, hidden.get("response_cost"), minute),
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
    )


def _upstream_error(error: PlanError) -> Exception:
    """What LiteLLM raises for a provider that failed, of a plan all of whose calls failed.

    Its status is that of the last call, as after LiteLLM's own fallbacks; 502 where that has none, 503 where nobody was
    asked.
    """
    from litellm import APIError

    status = getattr(error.attempts[-1].error, "status_code", None) if error.attempts else 503
    is_error = isinstance(status, int) and 400 <= status <= 599
    found: Exception = APIError(status if is_error else 502, str(error), llm_provider="", model=MODEL)
    return found


def _litellm_router() -> Any:
    """LiteLLM's router in this proxy; raises DialError where there is none."""
    from litellm.proxy import proxy_server

    if proxy_server.llm_router is None:
        raise DialError("plans need the model_list of a running proxy; found none")
    return proxy_server.llm_router
