"""What others write becomes an outcome log. All files here are made by hand after the published formats."""

import json

import pandas as pd
import pytest

from router.cli import main
from router.portfolio.tiers import parse_tiers
from training.errors import LogError
from training.importing.importing import KINDS, import_log
from training.log.ingest import ingest

CHAT = [{"role": "user", "content": "What is 2 + 2?"}]
START, END = "2026-11-01T10:00:00Z", "2026-11-01T10:00:01.500Z"
BODY = {"model": "gpt-4o-mini", "messages": CHAT}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
ANSWER = {"id": "chatcmpl-1", "model": "gpt-4o-mini-2024-07-18", "created": 1793527200, "usage": USAGE}


@pytest.fixture
def imported(tmp_path):
    """Writes entries as JSONL and imports them: the log as a DataFrame, and what the import says."""

    def imported(kind, *entries, maps=()):
        path = tmp_path / "source.jsonl"
        path.write_text("".join(entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in entries))
        said = import_log(kind, [path], tmp_path / "log.parquet", maps)
        return pd.read_parquet(tmp_path / "log.parquet"), said

    return imported


def shown(log, row=0):
    """The values of a row that are not missing."""
    return {name: value for name, value in log.iloc[row].items() if not pd.isna(value)}


def test_requests_with_their_responses(imported):
    log, said = imported("openai", {"request": BODY, "response": ANSWER, "latency_ms": 900, "grade": "pass"})
    row = shown(log)
    assert json.loads(row.pop("messages")) == CHAT and row.pop("timestamp") == pd.Timestamp(
        1793527200, unit="s", tz="UTC"
    )
    assert row == {
        "model": "gpt-4o-mini-2024-07-18",
        "request_id": "chatcmpl-1",
        "input_tokens": 12,
        "output_tokens": 5,
        "cached_input_tokens": 4,
        "reasoning_tokens": 2,
        "latency_ms": 900.0,
    }
    assert said.n_judged == 0 and "--map correct=" in str(said) and "grade" in str(said)


def test_files_of_the_batch_interface_are_joined(tmp_path):
    requests, responses = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text(json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}))
    lines = [
        {
            "id": "b",
            "custom_id": "a",
            "response": {"status_code": 200, "request_id": "r", "body": ANSWER},
            "error": None,
        },
        {"id": "c", "custom_id": "unheard", "response": {"status_code": 200, "body": ANSWER}, "error": None},
    ]
    responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = import_log("openai", [requests, responses], tmp_path / "log.parquet")
    row = shown(pd.read_parquet(said.out))
    assert (row["request_id"], row["output_tokens"], json.loads(row["messages"])) == ("a", 5, CHAT)
    assert (said.n_read, said.n_taken, sum(said.left_out.values())) == (3, 1, 2)


def test_anthropic_counts_cached_tokens_beside_the_input(imported):
    usage = {"input_tokens": 10, "output_tokens": 3, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20}
    log, _ = imported("openai", {"request": BODY, "response": {"model": "claude", "usage": usage}})
    row = shown(log)
    assert (row["input_tokens"], row["cached_input_tokens"], row["cache_write_tokens"]) == (130, 100, 20)


SPEND = {
    "request_id": "r1",
    "call_type": "acompletion",
    "spend": 0.002,
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "startTime": START,
    "endTime": END,
    "model": "gpt-4o-mini",
    "model_group": "cheap",
    "custom_llm_provider": "openai",
    "metadata": {"usage_object": USAGE, "grade": "pass"},
    "cache_hit": "False",
    "messages": CHAT,
    "status": "success",
}


def test_spend_logs_of_litellm(imported):
    failed = {**SPEND, "request_id": "r2", "status": "failure", "messages": {}}
    unlogged, embedding = {**SPEND, "messages": {}}, {**SPEND, "call_type": "aembedding"}
    log, said = imported("litellm", SPEND, failed, unlogged, embedding, maps=["correct=metadata.grade:pass"])
    row = shown(log)
    assert row["timestamp"] == pd.Timestamp(START) and json.loads(row["messages"]) == CHAT
    expected = {
        "model": "gpt-4o-mini",
        "provider": "openai",
        "cost_usd": 0.002,
        "input_tokens": 12,
        "output_tokens": 5,
        "cached_input_tokens": 4,
        "reasoning_tokens": 2,
        "latency_ms": 1500.0,
        "correct": 1.0,
    }
    assert {name: row[name] for name in expected} == expected and "ended" not in row and "cache_hit" not in row
    assert log.ended.tolist()[1] == "failed" and len(log) == 2
    assert set(said.left_out) == {
        "no prompt: it was not logged, or this is no chat",
        "call_type aembedding is no chat",
    }


def test_spend_logs_of_litellm_as_csv_and_standard_logging_objects(tmp_path, imported):
    flat = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in SPEND.items()}
    pd.DataFrame([flat]).to_csv(tmp_path / "spend.csv", index=False)
    import_log("litellm", [tmp_path / "spend.csv"], tmp_path / "csv.parquet", ["correct=metadata.grade:pass"])
    as_csv = shown(pd.read_parquet(tmp_path / "csv.parquet"))
    standard = {**SPEND, "id": "r1", "response_cost": 0.002, "startTime": 1793527200.0, "endTime": 1793527201.5}
    del standard["spend"], standard["request_id"]
    log, _ = imported("litellm", standard, maps=["correct=metadata.grade:pass"])
    assert as_csv == shown(log)


OBSERVATION = {
    "id": "o1",
    "traceId": "t1",
    "type": "GENERATION",
    "startTime": START,
    "endTime": END,
    "level": "DEFAULT",
    "providedModelName": "gpt-4o-mini",
    "input": {"messages": CHAT},
    "output": "4",
    "usageDetails": {"input": 12, "output": 5, "total": 17},
    "costDetails": {"total": 0.002},
}


def test_langfuse_with_scores_of_a_file_of_their_own(imported):
    score = {"id": "s1", "traceId": "t1", "observationId": "o1", "name": "right", "value": 1, "dataType": "BOOLEAN"}
    log, said = imported("langfuse", score, OBSERVATION, {**OBSERVATION, "type": "SPAN"}, maps=["correct=scores.right"])
    row = shown(log)
    assert (row["model"], row["input_tokens"], row["output_tokens"], row["cost_usd"]) == ("gpt-4o-mini", 12, 5, 0.002)
    assert (row["correct"], row["latency_ms"], json.loads(row["messages"])) == (1.0, 1500.0, CHAT)
    assert (said.n_read, said.n_taken, sum(said.left_out.values())) == (3, 1, 2)


def test_langfuse_traces_hold_observations_and_scores(imported):
    snake = {
        "id": "o2",
        "type": "GENERATION",
        "provided_model_name": "m",
        "input": "What?",
        "start_time": "2026-11-01 10:00:00",
        "usage_details": {"input": 3, "output": 4},
        "total_cost": 0.1,
    }
    trace = {"id": "t", "scores": [{"name": "right", "value": 0}], "observations": [snake, OBSERVATION]}
    log, _ = imported("langfuse", trace, maps=["correct=scores.right"])
    assert log.model.tolist() == ["m", "gpt-4o-mini"] and log.correct.tolist() == [0, 0]
    assert shown(log)["prompt"] == "What?" and shown(log)["timestamp"] == pd.Timestamp(START)


def test_helicone(imported):
    entry = {
        "request_id": "h1",
        "request_created_at": START,
        "request_body": BODY,
        "response_model": "gpt-4o-mini-2024-07-18",
        "request_model": "gpt-4o-mini",
        "response_status": 200,
        "provider": "OPENAI",
        "delay_ms": 900,
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "prompt_cache_read_tokens": 4,
        "cost": 0.002,
        "scores": {"right": {"value": 1}},
    }
    log, _ = imported("helicone", entry, {**entry, "response_status": 429}, maps=["correct=scores.right.value"])
    row = shown(log)
    assert (row["model"], row["provider"], row["correct"]) == ("gpt-4o-mini-2024-07-18", "OPENAI", 1.0)
    assert (row["cost_usd"], row["latency_ms"], row["cached_input_tokens"]) == (0.002, 900.0, 4)
    assert log.ended.tolist()[1] == "failed"


def test_openrouters_activity_has_no_prompts_but_a_prompt_id(tmp_path):
    entry = {
        "generation_id": "gen-1",
        "created_at": "2026-11-01 10:00:00",
        "cost_total": 0.002,
        "tokens_prompt": 12,
        "tokens_completion": 5,
        "tokens_reasoning": 2,
        "tokens_cached": 4,
        "model_permaslug": "deepseek/deepseek-chat-v3",
        "provider_name": "DeepSeek",
        "cancelled": "false",
        "finish_reason_normalized": "stop",
        "generation_time_ms": 900,
    }
    pd.DataFrame([entry, {**entry, "cancelled": "true"}]).to_csv(tmp_path / "activity.csv", index=False)
    said = import_log("openrouter", [tmp_path / "activity.csv"], tmp_path / "log.parquet")
    log = pd.read_parquet(said.out)
    row = shown(log)
    assert row["prompt_id"] == row["request_id"] == "gen-1" and row["timestamp"] == pd.Timestamp(START)
    assert (row["cost_usd"], row["cached_input_tokens"], log.ended[1]) == (0.002, 4, "left")


def test_routerbench(tmp_path):
    entry = {
        "sample_id": "mmlu.1",
        "prompt": "Which?",
        "eval_name": "mmlu",
        "oracle_model_to_route_to": "gpt-4-1106-preview",
        "gpt-4-1106-preview": 1.0,
        "gpt-4-1106-preview|model_response": "(B)",
        "gpt-4-1106-preview|total_cost": 0.002,
        "zero-one-ai/Yi-34B-Chat": None,
        "zero-one-ai/Yi-34B-Chat|model_response": "",
        "zero-one-ai/Yi-34B-Chat|total_cost": 0,
    }
    pd.DataFrame([entry]).to_parquet(tmp_path / "wide.parquet")
    said = import_log("routerbench", [tmp_path / "wide.parquet"], tmp_path / "log.parquet")
    assert shown(pd.read_parquet(said.out)) == {
        "prompt": "Which?",
        "model": "gpt-4-1106-preview",
        "correct": 1.0,
        "dataset": "mmlu",
        "cost_usd": 0.002,
        "answer": "B",
    }
    assert (said.n_read, said.n_taken, said.left_out) == (1, 1, {"no score of zero-one-ai/Yi-34B-Chat": 1})


def test_sprout(tmp_path):
    result = {"num_input_tokens": 12, "num_output_tokens": 5, "response": "4", "score": 0.5}
    entry = {"key": "k", "dataset": "math", "prompt": "Which?", "golden_answer": "4", "openai-gpt-4o": result}
    pd.DataFrame([{**entry, "wxai-llama-3-1-8b-instruct": {**result, "score": 0.0}}]).to_parquet(tmp_path / "w.parquet")
    said = import_log("sprout", [tmp_path / "w.parquet"], tmp_path / "log.parquet")
    log = pd.read_parquet(said.out)
    assert shown(log) == {
        "prompt": "Which?",
        "model": "openai-gpt-4o",
        "correct": 0.5,
        "dataset": "math",
        "input_tokens": 12,
        "output_tokens": 5,
    }
    assert (said.n_read, said.n_taken, log.correct[1]) == (1, 2, 0)


def test_llmrouterbench(tmp_path):
    record = {
        "index": 1,
        "origin_query": "Which?",
        "prompt": "Question: Which? Answer:",
        "prediction": "B",
        "ground_truth": "B",
        "score": 1.0,
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "cost": 0.002,
    }
    document = {"model_name": "gpt-5", "dataset_name": "mmlupro", "split": "test", "records": [record, record]}
    (tmp_path / "gpt-5.json").write_text(json.dumps(document, indent=1))
    said = import_log("llmrouterbench", [tmp_path / "gpt-5.json"], tmp_path / "log.parquet")
    assert shown(pd.read_parquet(said.out)) == {
        "prompt": "Which?",
        "model": "gpt-5",
        "correct": 1.0,
        "dataset": "mmlupro",
        "input_tokens": 12,
        "output_tokens": 5,
        "cost_usd": 0.002,
        "answer": "B",
    }
    assert said.n_read == said.n_taken == 2


def test_routellm(tmp_path, imported):
    table = pd.DataFrame(
        {"prompt": ["Which?"], "gpt-4-1106-preview": [True], "mistralai/Mixtral-8x7B-Instruct-v0.1": [False]}
    )
    table.to_csv(tmp_path / "mmlu.csv", index=False)
    said = import_log("routellm", [tmp_path / "mmlu.csv"], tmp_path / "log.parquet")
    wide = dict(pd.read_parquet(said.out)[["model", "correct"]].values)
    judged, _ = imported("routellm", {"prompt": "Why?", "source": ["x"], "mixtral_response": "..", "mixtral_score": 3})
    assert wide == dict(judged[["model", "correct"]].values)


def test_any_other_file_by_maps(imported):
    entry = {"q": {"text": "What?"}, "response_model": "m", "judge": {"stars": 4}, "spend": "0.5", "tokens_out": 7}
    maps = [
        "prompt=q.text",
        "model=response_model",
        "correct=judge.stars/5",
        "cost_usd=spend",
        "output_tokens=tokens_out",
    ]
    log, said = imported("other", entry, "no JSON\n", {"q": {}}, maps=maps)
    assert shown(log) == {"prompt": "What?", "model": "m", "correct": 0.8, "cost_usd": 0.5, "output_tokens": 7}
    assert said.left_out == {"not a JSON object": 1, "no model": 1}
    assert "3 entries" in str(said) and "not a JSON object (1)" in str(said)


def test_a_chat_is_found_where_a_map_says_that_it_is_a_prompt(imported):
    log, _ = imported("other", {"call": {"messages": CHAT}, "model": "m"}, maps=["prompt=call.messages"])
    assert json.loads(shown(log)["messages"]) == CHAT


def test_columns_of_the_log_format_are_taken_as_they_are(imported):
    log, _ = imported("other", {"messages": CHAT, "model": "m", "correct": True, "timestamp": 1793527200})
    assert json.loads(shown(log)["messages"]) == CHAT and shown(log)["correct"] == 1


@pytest.mark.parametrize(
    ("entry", "maps", "words"),
    [
        (
            {"response_model": "m", "question": "q"},
            [],
            ["no model (1)", "--map model=response_model", "prompt=question"],
        ),
        ({"model": "m", "prompt": "p"}, ["correct=grade"], ["no entry has grade", "found the columns model, prompt"]),
        ({"model": "m", "prompt": "p", "correct": 4}, [], ["correct is not true, false or a number in 0..1", "4"]),
        ("", [], ["no entry at all"]),
    ],
)
def test_files_of_which_nothing_can_be_taken_are_refused_and_nothing_is_written(tmp_path, imported, entry, maps, words):
    with pytest.raises(LogError) as caught:
        imported("other", entry, maps=maps)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"source.jsonl"}


def test_a_pickle_is_never_read(tmp_path):
    with pytest.raises(LogError, match="can run any code.*read_pickle"):
        import_log("routerbench", [tmp_path / "routerbench_0shot.pkl"], tmp_path / "log.parquet")


def test_what_was_imported_is_read_by_all_that_read_logs(imported, tmp_path):
    entries = [
        {
            "request": {"model": m, "messages": [{"role": "user", "content": f"p{n}"}]},
            "response": {**ANSWER, "model": m},
            "grade": "pass" if n % 2 else "fail",
        }
        for n in range(20)
        for m in ("small", "large")
    ]
    imported("openai", *entries, maps=["correct=grade:pass"])
    offer = 'provider = "p", region = "x", context_window = 9999, usd_per_mtok_input = 1, usd_per_mtok_output = 2'
    tiers = parse_tiers(
        "".join(f'[[tiers]]\nname = "{m}"\noffers = [{{ model = "{m}", {offer} }}]\n' for m in ("small", "large"))
    )
    table = ingest(tmp_path / "log.parquet", tiers)
    assert table.n_prompts == 20 and not table.summary.quarantined and table.correct.mean() == 0.5


def test_the_command_says_what_it_took_and_what_not(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "p", "model": "m", "score": 5}) + "\nbroken\n")
    words = ["import", "other", str(path), "--out", str(tmp_path / "log.parquet"), "--map", "correct=score/5"]
    assert main(words) == 0
    assert "1 rows from 2 entries, 1 of them judged" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["n_read"], said["n_taken"], said["left_out"]) == (2, 1, {"not a JSON object": 1})
    assert main([*words[:-1], "correct=stars"]) == 2
    assert "no entry has stars" in capsys.readouterr().err
    assert set(KINDS) > {"openai", "litellm", "langfuse", "helicone", "openrouter", "routerbench", "sprout", "routellm"}
