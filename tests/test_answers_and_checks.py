"""Laws of answers and checks in a log: a verdict belongs to one answer, and a log without any is what it was."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from router.portfolio.tiers import parse_tiers
from training.errors import LogError, MapError
from training.log.answers import numbered
from training.log.checked import checked_logs
from training.log.ingest import ingest

MODELS = ("small", "middle", "large")
TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{{ model = "{name}", provider = "p", region = "x", '
        "context_window = 9999, usd_per_mtok_input = 1, usd_per_mtok_output = 2 }]\n"
        for name in MODELS
    )
)


def asked(*rows, prompt="p"):
    """A log of one prompt: each row is a model and further columns."""
    return pd.DataFrame([{"prompt": prompt, "model": model, "correct": 1.0, **more} for model, more in rows])


def answered(*answers, **more):
    """A log of one prompt with the answers of the tiers in turn."""
    return asked(*((model, {"answer": answer, **more}) for model, answer in zip(MODELS, answers, strict=False)))


def in_every_format(log, folder):
    """The log as a frame, as an Arrow table, as JSONL, as CSV and as Parquet; missing values are left out of JSONL."""
    rows = [{name: value for name, value in row.items() if not pd.isna(value)} for row in log.to_dict("records")]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log.to_csv(folder / "a.csv", index=False)
    log.to_parquet(folder / "a.parquet", index=False)
    return [log, pa.Table.from_pandas(log), *(folder / f"a.{kind}" for kind in ("jsonl", "csv", "parquet"))]


def numbers(log):
    return ingest(log, TIERS).answer_number.tolist()


# Answers


def test_two_tiers_agree_where_both_have_an_answer_and_the_answers_are_equal(tmp_path):
    log = pd.concat([answered("x", "y", "x"), answered("z", None, "z").assign(prompt="q"), answered(None, "y", "Y")])
    log.iloc[6:, 0] = "r"
    for source in in_every_format(log, tmp_path):
        table = ingest(source, TIERS)
        found = dict(zip(table.prompts, table.answer_number.tolist(), strict=True))
        assert found == {"p": [0, 1, 0], "q": [0, -1, 0], "r": [-1, 0, 1]}
        assert table.answer_number.dtype == np.int16 and table.summary.answers == 7
        assert "answers of 7 rows" in str(table.summary) and table.summary.to_json()["answers"] == 7


def test_answers_are_numbered_in_the_order_of_tiers():
    answer = np.array([[7, 3, 7, 9], [1, 1, 1, 1], [5, 6, 5, 6]], np.uint64)
    given = np.array([[True, True, True, True], [False, True, False, True], [True, False, False, True]])
    assert numbered(answer, given).tolist() == [[0, 1, 0, 2], [-1, 0, -1, 0], [0, -1, -1, 1]]


def test_an_answer_that_is_a_whole_number_is_the_same_beside_missing_ones():
    whole = [answered(12).head(1), answered(None, 12, None), answered(None, None, "12").tail(1)]
    assert numbers([whole[0], whole[1].astype({"answer": float}), whole[2]]) == [[0, 0, 0]]


def test_an_empty_text_is_an_answer_and_what_stands_for_a_missing_value_is_none():
    assert numbers(answered("", "", "x")) == [[0, 0, 1]]
    assert numbers(answered("nan", "None", "NA")) == [[-1, -1, -1]]


def test_a_database_has_no_text_of_an_answer(tmp_path):
    secret = "what nobody may see"
    answered(secret, secret).to_csv(tmp_path / "a.csv", index=False)
    with checked_logs() as rows:
        rows.read(tmp_path / "a.csv")
        found = rows.connection.execute("SELECT * FROM raw").fetchall()
    assert len(found) == 2 and secret not in str(found)


# Verdicts


def test_a_check_has_a_score_and_a_cost_and_is_not_seen_elsewhere(tmp_path):
    log = asked(
        ("small", {"check_tests": True, "check_tests_usd": None}),
        ("middle", {"check_tests": False, "check_tests_usd": 0.5}),
        ("large", {"check_tests": None, "check_tests_usd": 0.25}),
    )
    for source in in_every_format(log, tmp_path):
        table = ingest(source, TIERS)
        np.testing.assert_array_equal(table.checks["tests"].score, [[1, 0, np.nan]])
        np.testing.assert_array_equal(table.checks["tests"].cost_usd, [[0, 0.5, np.nan]])
        assert list(table.checks) == ["tests"] and table.summary.checks == {"tests": 2}
        assert "checks: tests (2 rows)" in str(table.summary) and table.summary.to_json()["checks"] == {"tests": 2}


def test_a_log_has_any_number_of_checks_and_files_with_others_are_joined(tmp_path):
    first = asked(("small", {"check_judge_k5": 0.2, "check_schema": 1}))
    second = asked(("middle", {"check_Tests2": 0.5, "check_judge_k5": 0.8}))
    first.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    second.to_parquet(tmp_path / "b.parquet")
    asked(("large", {})).to_csv(tmp_path / "c.csv", index=False)
    table = ingest(tmp_path, TIERS)
    assert list(table.checks) == ["Tests2", "judge_k5", "schema"]
    np.testing.assert_array_equal(table.checks["judge_k5"].score, [[0.2, 0.8, np.nan]])
    np.testing.assert_array_equal(table.checks["schema"].score, [[1, np.nan, np.nan]])
    assert str(table.summary).endswith("checks: Tests2 (1 rows), judge_k5 (2 rows), schema (1 rows)")


def test_each_line_of_jsonl_may_have_checks_of_its_own(tmp_path):
    rows = [
        {"prompt": "p", "model": "small", "correct": 1},
        {"prompt": 'say "check_a": 1', "model": "small", "correct": 1},
        {"prompt": "p", "model": "middle", "correct": 1, "check_late": True, "check_late_usd": 2},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = ingest(tmp_path, TIERS)
    assert list(table.checks) == ["late"]
    assert table.checks["late"].cost_usd[table.prompts.index("p")].tolist()[1] == 2


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"check_tests": 3.5}, "check_tests is not true, false or a number in 0..1"),
        ({"check_tests": "maybe"}, "check_tests is not true, false or a number in 0..1"),
        ({"check_tests": 1, "check_tests_usd": -1.0}, "check_tests_usd is not a number from 0 to 1e12"),
        ({"check_tests_usd": float("inf")}, "check_tests_usd is not a number from 0 to 1e12"),
        ({"check_a": 1, "check_b": -1, "check_c": 1}, "check_b is not true, false or a number in 0..1"),
    ],
)
def test_a_broken_verdict_is_set_aside_with_a_reason(tmp_path, broken, reason):
    log = pd.concat([asked(("small", broken)), asked(("small", {}), ("large", {}))])
    for source in in_every_format(log, tmp_path):
        assert ingest(source, TIERS).summary.quarantined == {reason: 1}


def test_what_is_no_name_of_a_check_is_no_check():
    columns = {"check_": 1, "check_a-b": 7, "check_a_usd_usd": 7, "checks": 7, "check_é": 7, "recheck_a": 7}
    assert ingest(answered("x", "y", **columns), TIERS).checks == {}


def test_the_name_of_agreement_is_reserved(tmp_path):
    log = answered("x", "y", check_agreement=1)
    for source in in_every_format(log, tmp_path):
        with pytest.raises(LogError, match="column check_agreement: no check can be called agreement"):
            ingest(source, TIERS)
    with pytest.raises(MapError, match="reserved"):
        ingest(log, TIERS, maps=["check_agreement=same"])
    for source in in_every_format(log, tmp_path):
        assert list(ingest(source, TIERS, maps=["check_same=check_agreement"]).checks) == ["same"]
    with checked_logs() as rows:
        facts = rows.read(tmp_path / "a.jsonl")
    assert facts.is_unreadable and "reserved" not in facts.reason and "check_agreement" in facts.reason


# Columns made from others


def test_answers_and_checks_are_made_from_other_columns(tmp_path):
    log = answered("x", "x").rename(columns={"answer": "letter"}).assign(verdict=["PASS", "fail"], cents=[10, 20])
    maps = ["answer=letter", "check_tests=verdict:pass", "check_tests_usd=cents/100"]
    for source in in_every_format(log, tmp_path):
        table = ingest(source, TIERS, maps=maps)
        assert table.answer_number.tolist() == [[0, 0, -1]]
        np.testing.assert_array_equal(table.checks["tests"].score, [[1, 0, np.nan]])
        np.testing.assert_array_equal(table.checks["tests"].cost_usd, [[0.1, 0.2, np.nan]])


def test_a_map_takes_the_place_of_a_check_of_that_name(tmp_path):
    log = answered("x", "y", check_tests=3).assign(other=[4, 2])
    for source in in_every_format(log, tmp_path):
        table = ingest(source, TIERS, maps=["check_tests=other/4"])
        np.testing.assert_array_equal(table.checks["tests"].score, [[1, 0.5, np.nan]])


@pytest.mark.parametrize(
    "text", ["check_a_usd=cost:1", "answer=letter:A", "answer=letter/2", "check_=x", "check_a-b=x"]
)
def test_a_map_of_another_kind_says_what_is_wrong(text):
    with pytest.raises(MapError):
        ingest(answered("x", "y"), TIERS, maps=[text])


# Repeated attempts


def repeated(n_prompts, **columns):
    """Prompts that the first two tiers were asked three times: "a", "a" and "b", with a verdict that knows the answer.

    The rows of a prompt are in an order of its own.
    """
    rows = [
        {"prompt": f"p{n}", "model": model, "correct": float(answer == "a"), "answer": answer,
         "check_is_a": float(answer == "a"), "check_is_b": float(answer == "b"), **columns}
        for n in range(n_prompts) for model in MODELS[:2] for answer in "aab"
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_answer_and_verdicts_of_repeated_attempts_are_those_of_one_whatever_the_order_of_rows():
    log = repeated(40)
    tables = [ingest(log.sample(frac=1, random_state=seed), TIERS) for seed in range(3)]
    assert len({table.digest for table in tables}) == 1
    is_a, is_b = (tables[0].checks[name].score[:, :2] for name in ("is_a", "is_b"))
    assert (is_a + is_b == 1).all(), "two verdicts of one attempt"
    agree = tables[0].answer_number[:, 0] == tables[0].answer_number[:, 1]
    assert (agree == (is_a[:, 0] == is_a[:, 1])).all(), "verdicts are those of the answer"
    assert np.isclose(tables[0].correct[:, :2], 2 / 3).all(), "outcomes are averaged as ever"


def test_tiers_agree_as_often_as_their_single_attempts_do():
    table = ingest(repeated(1000), TIERS)
    is_a = table.checks["is_a"].score[:, :2]
    assert is_a.mean() == pytest.approx(2 / 3, abs=0.04)
    assert (is_a[:, 0] == is_a[:, 1]).mean() == pytest.approx((2 / 3) ** 2 + (1 / 3) ** 2, abs=0.06)


def test_the_attempt_is_a_judged_one_that_has_an_answer_or_a_verdict():
    for n in range(8):
        judged = asked(("small", {"answer": f"judged {n}"}), ("small", {}), ("large", {"answer": f"judged {n}"}))
        others = asked(*[("small", {"answer": f"not judged {k}", "correct": None}) for k in range(5)])
        assert numbers(pd.concat([judged, others])) == [[0, -1, 0]]
    assert numbers(pd.concat([asked(("small", {}), ("large", {})), others])) == [[0, -1, -1]]


# What does not change


def test_a_log_without_answers_and_checks_is_what_it_was():
    log = asked(("small", {}), ("large", {}))
    table = ingest(log, TIERS)
    empty = log.assign(answer=None, check_tests=None, check_tests_usd=0.5)
    assert ingest(empty, TIERS).digest == table.digest
    for found in (table, ingest(empty, TIERS)):
        assert (found.answer_number == -1).all() and found.checks == {}
        assert not {"answers", "checks"} & found.summary.to_json().keys() and "answers" not in str(found.summary)


def test_the_digest_changes_with_an_answer_and_with_a_verdict():
    logs = [
        answered("x", "x"),
        answered("x", "y"),
        answered("x", "x", check_a=1),
        answered("x", "x", check_a=0),
        answered("x", "x", check_b=1),
        answered("x", "x", check_a=1, check_a_usd=2),
        answered(None, None, check_a=1),
    ]
    assert len({ingest(log, TIERS).digest for log in logs}) == len(logs)


def test_rows_keeps_answers_and_checks():
    table = ingest(repeated(4), TIERS)
    picked = table.rows(np.array([2, 0]))
    np.testing.assert_array_equal(picked.answer_number, table.answer_number[[2, 0]])
    for name, cells in table.checks.items():
        np.testing.assert_array_equal(picked.checks[name].score, cells.score[[2, 0]])
        np.testing.assert_array_equal(picked.checks[name].cost_usd, cells.cost_usd[[2, 0]])
    assert table.rows(np.arange(4)).digest == table.digest
