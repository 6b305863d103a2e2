"""Adapters for what gateways and tracing tools write. None of these says whether an answer was right: a map does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from training.importing.row import Adapter, LeftOut, Record, Row, Rows, asked, at, ms_between, number, parsed, tokens

NO_CHAT = "no prompt: it was not logged, or this is no chat"


def openai() -> Adapter:
    """Requests with their responses, as the interfaces of OpenAI have them, one pair in a line.

    A line has `request` and `response` (or `body` and `response`), or is the response with `messages` beside it. Files
    of the batch interface are joined by `custom_id`: name the file of requests before the file of responses.
    """
    waiting: dict[str, Any] = {}

    def expand(record: Record) -> Iterator[Record | LeftOut]:
        identifier = record.get("custom_id")
        if identifier is None or ("body" in record and "response" in record):
            yield record
        elif "body" in record:
            waiting[str(identifier)] = record["body"]
            yield LeftOut("a request, which is taken with its response")
        elif str(identifier) not in waiting:
            yield LeftOut("a response without its request: name the file of requests first")
        else:
            yield {**record, "request": waiting.pop(str(identifier))}

    def rows(record: Record) -> Rows:
        request = at(record, "request", "body", "kwargs") or record
        response = at(record, "response.body", "response", "completion") or record
        failed = at(record, "error", "response.body.error", "response.error") is not None
        row: Row = {
            **asked(request),
            **tokens(at(response, "usage")),
            "model": at(response, "model") or at(request, "model"),
            "request_id": at(record, "custom_id", "request_id", "response.request_id", "response.id", "id"),
            "timestamp": at(response, "created", "created_at") or at(record, "timestamp", "created_at"),
            "latency_ms": at(record, "latency_ms", "duration_ms"),
            "ended": "failed" if failed else None,
        }
        yield row

    return Adapter(rows=rows, expand=expand)


_LITELLM_CHATS = {
    "", "completion", "acompletion", "text_completion", "atext_completion", "responses", "aresponses",
    "anthropic_messages", "generate_content", "agenerate_content", "generate_content_stream",
    "agenerate_content_stream", "pass_through_endpoint",
}  # fmt: skip


def litellm() -> Adapter:
    """LiteLLM's spend logs (the table LiteLLM_SpendLogs) and standard logging objects.

    Spend logs have prompts only where LiteLLM was told to store them (`store_prompts_in_spend_logs`).
    """

    def rows(record: Record) -> Rows:
        if (kind := str(record.get("call_type") or "")) not in _LITELLM_CHATS:
            yield LeftOut(f"call_type {kind} is no chat")
            return
        start, end = at(record, "startTime"), at(record, "endTime")
        usage = parsed(at(record, "metadata.usage_object", "response.usage"))
        details = {name: value for name, value in tokens(usage).items() if name.endswith(("e_tokens", "g_tokens"))}
        yield {
            **(asked(record.get("messages")) or asked(record.get("proxy_server_request"))),
            **details,
            "cached_input_tokens": tokens(usage)["cached_input_tokens"],
            "input_tokens": at(record, "prompt_tokens"),
            "output_tokens": at(record, "completion_tokens"),
            "model": at(record, "model", "model_group"),
            "provider": at(record, "custom_llm_provider"),
            "request_id": at(record, "request_id", "id"),
            "cost_usd": at(record, "spend", "response_cost"),
            "timestamp": start,
            "latency_ms": at(record, "request_duration_ms") or ms_between(start, end),
            "cache_hit": str(record.get("cache_hit")).lower() == "true" or None,
            "ended": "failed" if record.get("status") == "failure" else None,
        }

    return Adapter(rows=rows)


def langfuse() -> Adapter:
    """Langfuse's exports: observations of the blob storage or the interface, traces with their observations, scores.

    Scores of a file of their own are joined to the observations that follow: name it first. They are found by maps
    as `scores.NAME`, for example correct=scores.correctness.
    """
    scores: dict[str, dict[str, Any]] = {}

    def expand(record: Record) -> Iterator[Record | LeftOut]:
        if at(record, "observations") is not None:
            for inner in parsed(record["observations"]):
                if isinstance(inner, Mapping):
                    yield {"input": record.get("input"), **inner, "scores": _by_name(record.get("scores"))}
        elif at(record, "name") is not None and at(record, "value", "stringValue", "string_value") is not None:
            for place in ("observationId", "observation_id", "traceId", "trace_id"):
                if (identifier := at(record, place)) is not None:
                    scores.setdefault(str(identifier), {}).update(_by_name([record]))
                    break
            yield LeftOut("a score, which is taken with its observation")
        else:
            known = [scores.get(str(at(record, *names)), {}) for names in (("traceId", "trace_id"), ("id",))]
            yield {**record, "scores": {**_by_name(record.get("scores")), **known[0], **known[1]}}

    def rows(record: Record) -> Rows:
        if (kind := str(record.get("type") or "GENERATION").upper()) != "GENERATION":
            yield LeftOut(f"an observation of type {kind} is no call of a model")
            return
        usage = at(record, "usageDetails", "usage_details", "usage") or {}
        start = at(record, "startTime", "start_time")
        yield {
            **asked(record.get("input")),
            "input_tokens": at(usage, "input", "promptTokens", "prompt_tokens") or at(record, "promptTokens"),
            "output_tokens": at(usage, "output", "completionTokens", "completion_tokens")
            or at(record, "completionTokens"),
            "cached_input_tokens": at(usage, "input_cached_tokens", "cache_read_input_tokens"),
            "reasoning_tokens": at(usage, "output_reasoning_tokens"),
            "model": at(record, "providedModelName", "provided_model_name", "model", "modelName"),
            "request_id": at(record, "id"),
            "cost_usd": at(record, "totalCost", "total_cost", "calculatedTotalCost", "costDetails.total")
            or at(record, "cost_details.total"),
            "timestamp": start,
            "latency_ms": ms_between(start, at(record, "endTime", "end_time")),
            "ended": "failed" if str(record.get("level")).upper() == "ERROR" else None,
        }

    return Adapter(rows=rows, expand=expand)


def _by_name(scores: Any) -> dict[str, Any]:
    """Langfuse's scores by name, from a list of scores, or from names with their values."""
    scores = parsed(scores)
    if isinstance(scores, Mapping):
        return {name: value[0] if isinstance(value, list) and value else value for name, value in scores.items()}
    found = [score for score in scores or () if isinstance(score, Mapping) and score.get("name")]
    return {str(score["name"]): at(score, "value", "stringValue", "string_value") for score in found}


def helicone() -> Adapter:
    """Helicone's requests with their bodies: `npx @helicone/export --include-body`, its interface, or its page."""

    def rows(record: Record) -> Rows:
        status = number(at(record, "response_status", "status"))
        written, read = at(record, "prompt_cache_write_tokens"), at(record, "prompt_cache_read_tokens")
        yield {
            **(asked(record.get("request_body")) or asked(record.get("request"))),
            "input_tokens": at(record, "prompt_tokens"),
            "output_tokens": at(record, "completion_tokens"),
            "cached_input_tokens": read,
            "cache_write_tokens": written,
            "reasoning_tokens": at(record, "reasoning_tokens"),
            "model": at(record, "model_override", "response_model", "request_model", "model"),
            "provider": at(record, "provider"),
            "request_id": at(record, "request_id"),
            "cost_usd": at(record, "cost_usd", "costUSD", "cost"),
            "timestamp": at(record, "request_created_at", "created_at"),
            "latency_ms": at(record, "delay_ms", "latency"),
            "ended": "failed" if status is not None and not 200 <= status < 300 else None,
        }

    return Adapter(rows=rows)


def openrouter() -> Adapter:
    """OpenRouter's activity, a row for each generation. It has no prompts: `prompt_id` is the generation's id.

    Such rows can be trained on once a `prompts.parquet` (`prompt_id`, `prompt`) stands beside the log.
    """

    def rows(record: Record) -> Rows:
        if at(record, "generation_id") is None:
            yield LeftOut("no generation_id: this is no activity by generation")
            return
        cancelled = str(record.get("cancelled")).lower() == "true"
        failed = record.get("finish_reason_normalized") == "error"
        yield {
            "prompt_id": at(record, "generation_id"),
            "request_id": at(record, "generation_id"),
            "model": at(record, "model_permaslug", "model"),
            "provider": at(record, "provider_name"),
            "input_tokens": at(record, "tokens_prompt"),
            "output_tokens": at(record, "tokens_completion"),
            "cached_input_tokens": at(record, "tokens_cached"),
            "reasoning_tokens": at(record, "tokens_reasoning"),
            "cost_usd": at(record, "cost_total"),
            "timestamp": at(record, "created_at"),
            "latency_ms": at(record, "generation_time_ms"),
            "ended": "left" if cancelled else "failed" if failed else None,
        }

    return Adapter(rows=rows)
