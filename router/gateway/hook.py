"""The router behind an endpoint: a hook for LiteLLM's proxy that answers for the model `broker`.

A request for `broker` is routed by the bundle, goes to the cheapest offer of the chosen tier, and carries the offers to
try next as LiteLLM's own fallbacks. `router.request` says where a request's dials stand, and the router's policy what
each client may ask for (docs/policy.md). What was decided, and what became of it, goes into an `OutcomeLog` where there
is one. Every other model passes untouched, where the policy allows it. An offer's `model` in the price table is a
`model_name` of LiteLLM's `model_list`; keys stay in LiteLLM's own configuration. See examples/litellm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from router.clients import ClientRights
from router.decision import Decision
from router.errors import CheckError, DialError, RefusedError
from router.extras import install_command
from router.gateway.attempts import (
    ATTEMPTS_KEY,
    COMPLETE,
    CUT,
    FAILED,
    LEFT,
    Attempts,
    attempts_of,
    is_finished,
    streamed_text,
)
from router.gateway.health import Failure, Pace, failure_of, pace_of
from router.gateway.limits import answers_wanted, operators_names
from router.gateway.plans import PLAN_KEY, RequestPlanner, planned_of
from router.gateway.usage import Usage, answer_text, billed_usd, estimated_tokens, reported_usage, visible_text
from router.outcomes.log import OutcomeLog
from router.outcomes.observers import Observer, Observers
from router.request import MODEL, needed_capabilities, read_dials, request_prompt, response_headers
from router.router import Router, Snapshot
from router.routing import Call

try:
    from litellm.integrations.custom_logger import CustomLogger

    from router.gateway.rights import DECISION_KEY, is_routed, refusal, refuse_unpoliced, rights_of
except ImportError as error:
    raise ImportError(f"router.gateway needs LiteLLM's proxy: {install_command('gateway')}") from error

_CLIENT_IS_GONE = 499  # the HTTP status that LiteLLM gives a request whose client has closed the connection

_CALL_TYPES = {"completion", "acompletion", "text_completion", "atext_completion"}


class BrokerHook(CustomLogger):
    """LiteLLM callback that routes every request for `broker`; answers say why in the headers `x-broker-*`.

    router: may take other prices, another bundle or another policy at any time; they hold from the next request on. The
        policy says which dials and classes each client may ask for, and whether it may ask for other models.
    outcomes: takes every decision and, of each attempt to answer it, who was asked, how it ended, its tokens, cost and
        latency. Tokens that the provider did not count are estimated. An answer from LiteLLM's own cache costs nothing
        and has no tokens. Whether the answer was right is for someone else to say later, by the decision_id in the
        headers. A client's `no-log` changes nothing of this. Logging never fails a request.
    watch_health: offers that fail, throttle or turn slow lose their traffic (docs/portfolio.md); False leaves that to
        LiteLLM's own cooldowns.
    declared_checks: figures of checks that the bundle has not learned, for `broker/check=NAME`, as in
        "schema:sensitivity=0.99,specificity=0.3"; see router.gateway.plans.
    observer: is told of each routed request.
    Raises CheckError where one of the checks is wrong.
    """

    def __init__(
        self,
        router: Router,
        outcomes: OutcomeLog | None = None,
        *,
        declared_checks: Collection[str] = (),
        watch_health: bool = True,
        observer: Observer | None = None,
    ) -> None:
        super().__init__()
        self._router = router
        self._outcomes = outcomes
        self._observer = observer or Observers()
        self._health = router.portfolio.health if watch_health else None
        self._planner = RequestPlanner(router.portfolio, outcomes, declared_checks)

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Put the offer chosen in place of `broker` and the next ones into `fallbacks`; LiteLLM calls this.

        data: the request's body, changed in place.
        Raises ProxyException: HTTP 403 where the policy does not allow the client what it asks for; 400 where a dial is
        wrong, where the request itself would say who answers and how often (`fallbacks`, `num_retries`, ...), or where
        no offer may answer.
        """
        snapshot = self._router.snapshot  # One bundle, one price table and one policy for all that follows.
        rights = rights_of(snapshot, user_api_key_dict, data.get("model"))
        if not is_routed(data.get("model")):
            return None
        if call_type not in _CALL_TYPES:
            raise refusal(f"{MODEL} answers chat completions and text completions; found a call of type {call_type}")
        data.pop("router_settings_override", None)  # It has fallbacks of its own.
        if names := operators_names(data):
            raise refusal(f"found {', '.join(names)} in a request to {MODEL}; the broker sets this, so leave it out")
        metadata = data.setdefault("metadata", {})
        metadata.pop(PLAN_KEY, None)  # A client's own would be none.
        began_s = time.perf_counter()
        try:
            decision, call = self._route(snapshot, rights, data)
        except (DialError, CheckError) as error:
            raise refusal(str(error), code=403 if isinstance(error, RefusedError) else 400) from error
        offers = call.offers_to_try(decision)
        if not offers:
            raise refusal(f"no offer in the price table may answer this request; {decision.reason}")
        decision = metadata[DECISION_KEY] = replace(decision, offer=offers[0])  # A fallback may have had no offer.
        self._observer.routed(decision, time.perf_counter() - began_s, data, _session_id(data))
        if planned := planned_of(data):
            return planned.put_into(data)  # The plan logs what it does.
        data["model"], *fallbacks = dict.fromkeys(offer.model for offer in offers)
        if fallbacks:
            data["fallbacks"] = fallbacks
        elif call.restrictions:  # LiteLLM's own fallbacks know nothing of these.
            data["disable_fallbacks"] = True
        metadata[ATTEMPTS_KEY] = Attempts(
            decision, frozenset((data["model"], *fallbacks)) if call.restrictions else None
        )
        if self._outcomes is not None:
            self._outcomes.decided(decision, request_prompt(data), messages=data.get("messages"))
        return data

    async def async_pre_call_deployment_hook(self, kwargs: dict[str, Any], call_type: Any) -> dict[str, Any] | None:
        """Note who is asked now, or run the request's plan; LiteLLM calls this at the beginning of each attempt.

        Raises HTTPException (403) where the policy does not allow this attempt, however it came about.
        """
        if planned := planned_of(kwargs):
            return await planned.answered(kwargs)
        attempts = attempts_of(kwargs)
        refuse_unpoliced(self._router.policy.clients, attempts, kwargs)
        if attempts is not None:
            model = kwargs["metadata"].get("model_group")
            if attempts.model not in (None, model):
                self._log_attempt(attempts, CUT)
            attempts.begin(model, is_simulated=kwargs.get("mock_response") is not None)
        return None

    async def async_post_call_failure_deployment_hook(
        self, request_data: Mapping[str, Any], exception: Exception, call_type: Any, fallback_depth: int | None = None
    ) -> None:
        """Log an attempt that failed before its answer began; LiteLLM calls this before it asks the next model."""
        if attempts := attempts_of(request_data):
            if failure := failure_of(exception):
                self._tell_health(attempts.model, failure)
            self._log_attempt(attempts, FAILED)

    async def async_post_call_streaming_iterator_hook(
        self, user_api_key_dict: Any, response: Any, request_data: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """The chunks of a stream as they are, and a log of one that breaks or that its client leaves."""
        attempts, chunks = attempts_of(request_data), list[Any]()
        if attempts is not None:
            attempts.received = getattr(response, "chunks", ())
        try:
            async for chunk in response:
                if attempts is not None:
                    chunks.append(chunk)
                yield chunk
        except (GeneratorExit, asyncio.CancelledError):
            if attempts is not None and not is_finished(chunks):
                self._log_attempt(attempts, LEFT, chunks)
            raise
        except Exception:
            if attempts is not None:
                self._log_attempt(attempts, CUT, chunks)
            raise

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,
        traceback_str: str | None = None,
    ) -> None:
        """Log an attempt that LiteLLM has called off, since the client is gone; LiteLLM calls this for each error."""
        attempts = attempts_of(request_data)
        if attempts is not None and getattr(original_exception, "status_code", None) == _CLIENT_IS_GONE:
            self._log_attempt(attempts, LEFT)
        decision = (request_data.get("metadata") or {}).get(DECISION_KEY)
        if isinstance(decision, Decision):
            self._observer.gave_up(decision)

    async def async_logging_hook(
        self, kwargs: dict[str, Any], result: Any, call_type: str
    ) -> tuple[dict[str, Any], Any]:
        """Log an answer that is whole, and return all as it is; LiteLLM calls this before it logs an answer itself.

        It does so whatever the client's `no-log` says, unlike `async_log_success_event`.
        """
        attempts = attempts_of(kwargs.get("litellm_params") or {})
        response = kwargs.get("async_complete_streaming_response") or result
        if attempts is not None and attempts.model is not None:
            if response is None or attempts.ended_without_reason:
                self._log_attempt(attempts, CUT, attempts.received)
            else:
                self._log_answer(attempts, attempts.model, kwargs, answer_text(response), visible_text(response))
        return kwargs, result

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: dict[str, str] | None = None,
        litellm_call_info: dict[str, Any] | None = None,
    ) -> dict[str, str] | None:
        """Headers of the answer to a routed request, be it whole, streamed or an error; LiteLLM calls this."""
        if planned := planned_of(data):
            return planned.headers()
        decision = (data.get("metadata") or {}).get(DECISION_KEY)
        if not isinstance(decision, Decision):
            return None
        model = _answering_model(response)
        answered = self._router.prices.find(model)
        return response_headers(decision, model, None if answered is None else answered.tier)

    def _route(self, snapshot: Snapshot, rights: ClientRights, data: Mapping[str, Any]) -> tuple[Decision, Call]:
        """The decision for a request, and the call that made it; raises DialError and CheckError.

        It runs in LiteLLM's event loop on purpose: a decision of the static encoder takes less time than
        the way to another thread and back.
        """
        asked = read_dials(data["model"], data["metadata"].get(MODEL))
        dials = rights.dials_for(asked, snapshot.default_quality)
        call = snapshot.call(
            quality=dials.quality,
            worth_usd=dials.worth_usd,
            critical=dials.critical,
            capabilities=needed_capabilities(data, snapshot.prices),
            request_class=dials.request_class,
            client=rights.restrictions,
        )
        call = call.asked_by_model().answered(*answers_wanted(data))
        if dials.checks:
            return self._planner.decide(snapshot, call, dials, data)
        return call.decide(
            request_prompt(data),
            messages=data.get("messages"),
            request_id=data.get("litellm_call_id"),
            session_id=_session_id(data),
        )

    def _log_answer(
        self, attempts: Attempts, model: str, call: Mapping[str, Any], text: str, visible: str | None
    ) -> None:
        """Log an answer that is whole. call: what LiteLLM knows of it. text: what the model has written.

        visible: what the client reads of it, which the log keeps only where it keeps answers.
        """
        answer = call.get("standard_logging_object") or {}
        decision_id, answered = attempts.decision.decision_id, self._router.prices.find(model)
        if call.get("cache_hit"):  # LiteLLM has given an earlier answer again: no model was asked.
            outcome: dict[str, Any] = {"cache_hit": True, "cost_usd": 0.0}
        else:
            usage = self._usage(attempts.decision, answer, text)
            outcome = self._billed(model, usage, answer.get("response_cost"))
            if answered is not None and self._health is not None:
                pace = pace_of(call, usage.output_tokens) or Pace("", None)
                self._health.succeeded(answered.offer, pace.latency_ms, pace.kind)
        if answered is not None:
            self._router.portfolio.settle(decision_id, answered.tier, answered.offer, outcome.get("cost_usd"))
        outcome["latency_ms"] = attempts.end()
        if self._outcomes is not None:
            outcome |= self._who(model, str(answer.get("custom_llm_provider") or ""))
            self._outcomes.outcome(decision_id, ended=COMPLETE, answer_text=visible, **outcome)

    def _log_attempt(self, attempts: Attempts, ended: str, chunks: Sequence[Any] = ()) -> None:
        """Log an attempt that gave no whole answer, if one is under way. chunks: what the client got of a stream."""
        model = attempts.model
        if model is None:
            return
        if ended == CUT:
            self._tell_health(model, Failure("the answer broke off", None))
        outcome: dict[str, Any] = {"ended": ended, "latency_ms": attempts.end(), **self._who(model)}
        if self._outcomes is None:
            return
        if chunks:  # A provider may count what it has sent only at the end, so nothing before is its count.
            outcome |= self._billed(model, self._usage(attempts.decision, {}, streamed_text(chunks)))
        if chunks or ended == LEFT:
            self._outcomes.outcome(attempts.decision.decision_id, **outcome)
        else:  # Another model may be asked.
            self._outcomes.attempt(attempts.decision, **outcome)

    def _tell_health(self, model: str | None, failure: Failure) -> None:
        """An attempt at a model has failed, and its offer is at fault."""
        answered = self._router.prices.find(model)
        if answered is not None and self._health is not None:
            self._health.failed(answered.offer, failure.why, failure.retry_after_s)

    def _usage(self, decision: Decision, answer: Mapping[str, Any], text: str) -> Usage:
        """The tokens of an answer as the provider counted them; what it did not count is estimated.

        answer: as LiteLLM logs it, with the provider's count. text: what the model has written.
        """
        reported = (answer.get("metadata") or {}).get("usage_object") or answer
        usage = reported_usage(reported)
        n_input, n_output = usage.input_tokens, usage.output_tokens
        if n_input is not None and n_output is not None:
            return usage
        return replace(
            usage,
            input_tokens=n_input or round(decision.context_tokens) or None,
            output_tokens=n_output or estimated_tokens(self._router.bundle, text),
            tokens_estimated=True,
        )

    def _billed(self, model: str, usage: Usage, litellm_usd: float | None = None) -> dict[str, Any]:
        """The columns of the tokens and, where the model is an offer, of their cost."""
        answered = self._router.prices.find(model)
        if answered is None:
            return asdict(usage)
        minute = self._router.prices.minute()
        return {**asdict(usage), "cost_usd": billed_usd(answered.offer, usage, litellm_usd, minute)}

    def _who(self, model: str, provider: str = "") -> dict[str, str]:
        """The columns that say who was asked. A model that is no offer has no tier, and LiteLLM's `provider`."""
        answered = self._router.prices.find(model)
        if answered is None:
            return {"model": model, "provider": provider, "tier": ""}
        return {"model": answered.offer.model, "provider": answered.offer.provider, "tier": answered.tier}


def _answering_model(response: object) -> str | None:
    """The `model_name` that has answered, which LiteLLM leaves in the headers of a response; None for an error."""
    headers = (getattr(response, "_hidden_params", None) or {}).get("additional_headers") or {}
    model = headers.get("x-litellm-model-group")
    return model if isinstance(model, str) else None


def _session_id(data: Mapping[str, Any]) -> str | None:
    """The name that a client has given the conversation, as LiteLLM takes it; None where it has given none."""
    metadata = data.get("metadata")
    names = data.get("litellm_session_id"), metadata.get("session_id") if isinstance(metadata, Mapping) else None
    return next((name for name in names if isinstance(name, str) and name), None)
