"""Laws of outcomes on other scales and of columns made from others: no row is lost by the value of its outcome."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest

from router.portfolio.tiers import parse_tiers
from training import TrainingConfig
from training.errors import LabelError, LogError, MapError
from training.log.columns import parse_maps
from training.log.ingest import count_attempts, ingest

TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{{ model = "{name}", provider = "p", region = "x", '
        "context_window = 9999, usd_per_mtok_input = 1, usd_per_mtok_output = 2 }]\n"
        for name in ("small", "large")
    )
)


def scored(name, values):
    """A log of two tiers: each prompt has these values in turn."""
    rows = [
        {"prompt": f"p{n}", "model": model, name: values[(n + place) % len(values)]}
        for n in range(30)
        for place, model in enumerate(("small", "large"))
    ]
    return pd.DataFrame(rows)


def in_every_format(log, folder):
    """The log as a frame, as JSONL, as CSV and as Parquet."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log.to_dict("records")))
    log.to_csv(folder / "a.csv", index=False)
    log.to_parquet(folder / "a.parquet", index=False)
    return [log, *(folder / f"a.{kind}" for kind in ("jsonl", "csv", "parquet"))]


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        ([1, -1], "-1"),
        ([1, 2, 3, 4, 5], "2"),
        ([0, 50, 100], "100"),
        (["yes", "no"], "no"),
        (["true", "bad"], "bad"),
        ([0.0, 1.0, 87.5], "87.5"),
    ],
)
def test_outcomes_on_another_scale_refuse_the_file_and_name_the_values(tmp_path, values, seen):
    log = scored("correct", values)
    for source in in_every_format(log, tmp_path):
        with pytest.raises(LabelError) as caught:
            ingest(source, TIERS)
        error = caught.value
        assert error.n_labelled == 60 and error.n_unreadable == sum(error.values.values())
        assert any(value.removesuffix(".0") == seen for value in error.values)
        assert "--map correct=correct/5" in str(error) and seen in str(error)
        assert ("DataFrame 1" if source is log else str(source)) in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_few_typos_among_many_outcomes_refuse_nothing():
    log = scored("correct", [0, 1]).astype({"correct": object})
    log.loc[:3, "correct"] = 7
    assert sum(ingest(log, TIERS).summary.quarantined.values()) == 4
    many = pd.concat([scored("correct", [0, 1])] * 10, ignore_index=True).astype({"correct": object})
    many.loc[:4, "correct"] = 7
    assert sum(ingest(many, TIERS).summary.quarantined.values()) == 5, "5 of 600 are less than 1 %"


@pytest.mark.parametrize("values", [[1, -1, -1], [3, 4, 5]])
def test_a_file_of_few_rows_is_refused_where_most_cannot_be_read(values):
    log = pd.DataFrame({"prompt": "p", "model": ["small", "large", "large"], "correct": values})
    with pytest.raises(LabelError):
        ingest(log, TIERS)


@pytest.mark.parametrize(
    ("values", "how", "expected"),
    [
        ([1, 2, 3, 4, 5, None], "correct=score/5", [0.2, 0.4, 0.6, 0.8, 1, None]),
        ([0, 87.5, 100], "correct=score/100", [0, 0.875, 1]),
        ([1, -1, None], "correct=score:1", [1, 0, None]),
        (["Good", "bad", ""], "correct=score:good", [1, 0, None]),
        (["a:b/c", "d", None], "correct = score : a:b/c", [1, 0, None]),
        ([True, False, None], "correct=score", [1, 0, None]),
    ],
)
def test_a_map_says_what_correct_means_in_every_format(tmp_path, values, how, expected):
    as_it_is = ingest(scored("correct", expected), TIERS)
    for source in in_every_format(scored("score", values), tmp_path):
        table = ingest(source, TIERS, maps=[how])
        assert table.digest == as_it_is.digest
        assert table.summary.not_used == {} and not table.summary.quarantined
    np.testing.assert_array_equal(count_attempts(source, TIERS, maps=[how])[0], np.isfinite(as_it_is.correct))


def test_a_column_may_be_mapped_onto_itself():
    table = ingest(scored("correct", [1, 3, 5]), TIERS, maps=["correct=correct/5"])
    assert set(table.correct.ravel()) == {0.2, 0.6, 1.0}


def test_a_map_takes_the_place_of_the_column_in_every_row():
    log = scored("score", [5, None]).assign(correct=1)
    table = ingest(log, TIERS, maps=["correct=score/5"])
    assert table.summary.unjudged == 30


def test_any_column_can_be_renamed(tmp_path):
    log = scored("correct", [0, 1]).assign(spend=2.0)
    log = log.rename(columns={"model": "response.model", "prompt": 'we~ird "question"'})
    maps = ["model=response.model", 'prompt=we~ird "question"', "cost_usd=spend/100"]
    for source in in_every_format(log, tmp_path):
        table = ingest(source, TIERS, maps=maps)
        assert set(table.cost_usd.ravel()) == {0.02} and table.n_prompts == 30


def test_what_is_no_number_is_still_named_after_a_division():
    with pytest.raises(LabelError, match=r"good \(20 times\)"):
        ingest(scored("score", [5, "good", "4"]), TIERS, maps=["correct=score/5"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("correct", "is not COLUMN=SOURCE"),
        ("correct=", "is not COLUMN=SOURCE"),
        ("=score", "is not COLUMN=SOURCE"),
        ("correct=score/5/2", "is not COLUMN=SOURCE"),
        ("correct=score/0", "0 is not a number above 0"),
        ("correct=score/five", "'five' is not a number"),
        ("correct=score/inf", "not a number above 0"),
        ("colour=score", "colour is not a column of the log format"),
        ("model=name/5", "model is none"),
        ("model=name:x", "correct and parsed only"),
    ],
)
def test_a_map_that_cannot_be_understood_says_what_is_wrong(text, problem):
    for use in (lambda: parse_maps([text]), lambda: TrainingConfig(maps=(text,))):
        with pytest.raises(MapError) as caught:
            use()
        assert caught.value.text == text and problem in caught.value.problem and problem in str(caught.value)


def test_two_maps_of_one_column_are_refused():
    with pytest.raises(MapError, match="mapped twice"):
        parse_maps(["correct=a", "correct=b"])


def test_a_map_of_a_column_that_no_log_has_is_refused_with_the_columns_found(tmp_path):
    log = scored("stars", [5, 1])
    for source in in_every_format(log, tmp_path):
        with pytest.raises(LogError, match="no log has the column score that --map names; found the columns model, pr"):
            ingest(source, TIERS, maps=["correct=score/5"])


NESTED = [
    {
        "call": {"model": model, "messages": [{"role": "user", "content": f"p{n}"}]},
        "usage": {"prompt_tokens": 7, "details": {"spend": 2.0}},
        "judges": [{"grade": "pass" if n % 2 else "fail"}],
    }
    for n in range(30)
    for model in ("small", "large")
]
NESTED_MAPS = ["model=call.model", "messages=call.messages", "correct=judges.0.grade:pass"]
NESTED_MAPS += ["input_tokens=usage.prompt_tokens", "cost_usd=usage.details.spend/100"]


def nested_in_every_format(folder):
    """As a frame of objects, as JSONL, as Parquet with structs, and as CSV with JSON in its fields."""
    log = pd.DataFrame(NESTED)
    log.to_parquet(folder / "n.parquet")
    (folder / "n.jsonl").write_text("".join(json.dumps(row) + "\n" for row in NESTED))
    log.map(json.dumps).to_csv(folder / "n.csv", index=False)
    return [log, *(folder / f"n.{kind}" for kind in ("jsonl", "parquet", "csv"))]


def test_dots_lead_into_nested_values_in_every_format(tmp_path):
    for source in nested_in_every_format(tmp_path):
        table = ingest(source, TIERS, maps=NESTED_MAPS)
        assert table.n_prompts == 30 and not table.summary.quarantined
        assert set(table.cost_usd.ravel()) == {0.02} and set(table.input_tokens.ravel()) == {7}
        assert table.correct.mean() == 0.5


def test_a_column_whose_name_has_the_dots_comes_before_a_nested_value(tmp_path):
    rows = [{"prompt": "p", "model": m, "a.b": 1, "a": {"b": 0}} for m in ("small", "large")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in (tmp_path / "a.jsonl", pd.DataFrame(rows)):
        assert ingest(source, TIERS, maps=["correct=a.b"]).correct.tolist() == [[1, 1]]


def test_a_path_that_leads_nowhere_is_refused_with_the_columns_found(tmp_path):
    for source in nested_in_every_format(tmp_path)[:3]:
        with pytest.raises(LogError, match=r"no log has the column usage.promt_tokens .* usage.prompt_tokens"):
            ingest(source, TIERS, maps=[*NESTED_MAPS[:3], "input_tokens=usage.promt_tokens"])


def test_a_chat_that_stands_for_a_prompt_at_the_end_of_a_path_makes_the_row_a_broken_one(tmp_path):
    for source in nested_in_every_format(tmp_path)[:3]:
        with pytest.raises(LogError, match="prompt is a list or an object"):
            ingest(source, TIERS, maps=["prompt=call.messages", *NESTED_MAPS[:1], *NESTED_MAPS[2:]])


FOREIGN = [
    {"question": f"p{n}", "llm": model, "grade": "pass", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    for n in range(3)
    for model in ("small", "large")
]
ADVICE = [
    "missing: prompt (or messages, or prompt_id), model, correct",
    "found the columns grade, llm, question, usage, usage.completion_tokens, usage.prompt_tokens",
    "perhaps --map prompt=question, --map model=llm, --map correct=grade",
    "useful, but not used: --map input_tokens=usage.prompt_tokens, --map output_tokens=usage.completion_tokens",
]


def refusal(log, **more):
    with pytest.raises(LogError) as caught:
        ingest(log, TIERS, **more)
    return str(caught.value)


def test_one_message_names_all_that_is_missing_what_is_there_and_what_may_be_meant(tmp_path):
    (tmp_path / "foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in FOREIGN))
    for source in (pd.DataFrame(FOREIGN), tmp_path / "foreign.jsonl"):
        said = refusal(source)
        assert all(part in said for part in ADVICE), said


def test_what_the_message_proposes_is_what_makes_the_log_usable(tmp_path):
    [proposed, useful] = (part.replace("--map ", "").split(", ") for part in (ADVICE[2][8:], ADVICE[3][22:]))
    maps = [*proposed[:2], proposed[2] + ":pass", *useful]
    table = ingest(pd.DataFrame(FOREIGN), TIERS, maps=maps)
    assert table.n_prompts == 3 and set(table.input_tokens.ravel()) == {7} and not table.summary.not_used


def test_a_wrong_map_is_told_together_with_all_else_that_is_missing():
    said = refusal(pd.DataFrame(FOREIGN), maps=["correct=score/5", "model=name"])
    assert "no log has the column name, score that --map names; missing: prompt" in said and ADVICE[1] in said


def test_a_log_without_outcomes_and_without_a_known_model_is_told_both():
    said = refusal(pd.DataFrame(FOREIGN).assign(llm="other"), maps=["prompt=question", "model=llm"])
    assert "no tier of tiers.toml names a model of the log, which has other (6 rows)" in said
    assert "missing: correct" in said and "perhaps --map correct=grade" in said and ADVICE[3] in said
    judged = refusal(pd.DataFrame(FOREIGN).assign(llm="other", correct=1), maps=["prompt=question", "model=llm"])
    assert "correct" not in judged.replace("`correct`", "")


def test_an_empty_source_of_the_outcome_is_named():
    log = pd.DataFrame(FOREIGN).assign(grade=None)
    assert "`grade`, of which `correct` is made, is empty" in refusal(
        log, maps=["prompt=question", "model=llm", "correct=grade:pass"]
    )
