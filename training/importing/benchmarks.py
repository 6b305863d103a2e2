"""Adapters for public tables of many models' answers to the same prompts. These say which answers were right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.checks.normalise import normalise
from training.importing.row import Adapter, LeftOut, Record, Rows, at, number, parsed

_LONGEST_ANSWER = 200
"""Characters. Two longer answers are hardly ever equal."""


def routerbench() -> Adapter:
    """RouterBench's wide table: a row for each prompt; of each model its score, its response and its cost."""

    def rows(record: Record) -> Rows:
        models = [name.removesuffix("|total_cost") for name in record if name.endswith("|total_cost")]
        if not models:
            yield LeftOut("no column MODEL|total_cost")
        for model in models:
            if number(record.get(model)) is None:
                yield LeftOut(f"no score of {model}")
                continue
            yield {
                "prompt": record.get("prompt"),
                "dataset": record.get("eval_name"),
                "model": model,
                "correct": record[model],
                "cost_usd": record.get(f"{model}|total_cost"),
                "answer": _answer(record.get(f"{model}|model_response")),
            }

    return Adapter(rows=rows)


def sprout() -> Adapter:
    """SPROUT's wide table: a row for each prompt; of each model an object with its score and its counts of tokens."""

    def rows(record: Record) -> Rows:
        results = {name: parsed(value) for name, value in record.items()}
        models = [name for name, value in results.items() if isinstance(value, Mapping) and "score" in value]
        if not models:
            yield LeftOut("no column with the score of a model")
        for model in models:
            if number(results[model]["score"]) is None:
                yield LeftOut(f"no score of {model}")
                continue
            yield {
                "prompt": record.get("prompt"),
                "dataset": record.get("dataset"),
                "model": model,
                "correct": results[model]["score"],
                "input_tokens": results[model].get("num_input_tokens"),
                "output_tokens": results[model].get("num_output_tokens"),
            }

    return Adapter(rows=rows)


def llmrouterbench() -> Adapter:
    """LLMRouterBench's results: an object for each data set and model, with a list `records`."""

    def expand(record: Record) -> Iterator[Record | LeftOut]:
        records = record.get("records")
        if not isinstance(records, list):
            yield LeftOut("no list `records`")
            return
        shared = {name: record.get(name) for name in ("model_name", "dataset_name")}
        yield from ({**shared, **inner} for inner in records if isinstance(inner, Mapping))

    def rows(record: Record) -> Rows:
        yield {
            "prompt": at(record, "origin_query", "prompt"),
            "dataset": record.get("dataset_name"),
            "model": record.get("model_name"),
            "correct": record.get("score"),
            "input_tokens": record.get("prompt_tokens"),
            "output_tokens": record.get("completion_tokens"),
            "cost_usd": record.get("cost"),
            "answer": _answer(record.get("prediction")),
        }

    return Adapter(rows=rows, expand=expand)


_ROUTELLM_JUDGED = {"mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt4": "gpt-4-1106-preview"}
_GOOD_ENOUGH = 4


def routellm() -> Adapter:
    """RouteLLM's tables of MMLU and GSM8K (true or false for each model), and its `gpt4_dataset`.

    In the latter a judge has scored Mixtral from 1 to 5 against GPT-4's answer. As in RouteLLM's own training, Mixtral
    is right from 4 on, and GPT-4, the measure, always is.
    """

    def rows(record: Record) -> Rows:
        if "mixtral_score" in record:
            score = number(record["mixtral_score"])
            correct = {"mixtral": None if score is None else float(score >= _GOOD_ENOUGH), "gpt4": 1.0}
            found = {_ROUTELLM_JUDGED[name]: value for name, value in correct.items()}
        else:
            found = {name: value for name, value in record.items() if _is_verdict(value)}
        if not found:
            yield LeftOut("no column with true or false for a model")
        for model, value in found.items():
            if value is None:
                yield LeftOut(f"no score of {model}")
            else:
                yield {"prompt": record.get("prompt"), "model": model, "correct": value}

    return Adapter(rows=rows)


def _is_verdict(value: Any) -> bool:
    return isinstance(value, bool) or str(value).lower() in ("true", "false")


def _answer(text: Any) -> str | None:
    """An answer in its normal form, in which two answers can be compared; None where it is long or missing."""
    return normalise(text) if isinstance(text, str) and len(text) <= _LONGEST_ANSWER else None
