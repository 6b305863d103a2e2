"""Laws of the checks by JSON schema and by regular expression."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.checks.pattern import Pattern
from router.checks.schema import JsonSchema, response_format_check
from router.errors import CheckError

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "pattern": "^[A-Z]"}, "people": {"type": "integer", "minimum": 0}},
    "required": ["city"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "additionalProperties": False}
    },
    "$ref": "#/$defs/node",
}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["city", "people", "x"]), inner),
    max_leaves=6,
)


def nested(depth):
    return '{"next":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"city": "Oslo"}', "fits the schema"),
        (' {"city": "Oslo", "people": 7e5}\n', "fits the schema"),
        ("{}", "$ does not fit `required`"),
        ('{"city": "oslo"}', "$.city does not fit `pattern`"),
        ('{"city": "Oslo", "people": -1}', "$.people does not fit `minimum`"),
        ('{"city": "Oslo", "x": 1}', "$.x does not fit `additionalProperties`"),
        ("[]", "$ does not fit `type`"),
        ('```json\n{"city": "Oslo"}\n```', "the answer is not JSON"),
        ('{"city": "Oslo", "people": NaN}', "the answer is not JSON"),
        ('{"city": "Oslo", "people": 1e999}', "the answer is not JSON"),
        ("Oslo", "the answer is not JSON"),
        ("", "the answer is not JSON"),
        ("[" * 51 + "]" * 51, "the answer is nested more than 50 deep"),
        ("[" * 10**5, "the answer is nested more than 50 deep"),
    ],
)
def test_an_answer_passes_where_all_of_it_is_json_that_fits(answer, reason):
    verdict = JsonSchema(schema=CITY)("Where?", answer)
    assert verdict.reason == reason and verdict.score == (reason == "fits the schema") and verdict.cost_usd == 0


@given(answer=st.one_of(st.text(), PLAIN.map(json.dumps)))
def test_no_answer_makes_a_schema_fail_as_a_check(answer):
    for schema in (CITY, TREE, True, {"uniqueItems": True, "multipleOf": 0.1, "contains": {"enum": [1.0]}}):
        assert JsonSchema(schema=schema)("", answer).score in (0, 1)


def test_the_draft_of_a_schema_holds_and_later_changes_do_not():
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"const": 1}], "additionalItems": False}
    check = JsonSchema(schema=schema)
    schema["items"] = [{"const": 2}]
    assert [check("", text).score for text in ("[1]", "[2]", "[1, 1]")] == [1, 0, 0]


def test_a_schema_may_refer_to_itself():
    assert JsonSchema(schema=TREE)("", nested(49)).score == 1
    assert JsonSchema(schema=TREE)("", nested(50)).score == 0


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"properties": {"a": {"items": [{"$ref": "file:///etc/passwd"}]}}},
        {"$defs": {"a": {"$dynamicRef": "other.json#/a"}}},
        {"patternProperties": {"(a+)+$": {}}},
        {"properties": {"a": {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": "(a+)+$"}}},
        {"$schema": "http://json-schema.org/draft-04/schema#"},
        {"$schema": ["http://json-schema.org/draft-07/schema#"]},
        {"type": [{"a": number} for number in range(5000)]},
        {"not": {"dependencies": {"a": [{"a": number} for number in range(5000)]}}},
        {"type": "strnig"},
        {"pattern": "("},
        {"default": object()},
        {"description": "x" * 100_001},
        {"prefixItems": [{}] * 1001},
        json.loads(nested(60).replace("next", "not")),
        None,
        "object",
    ],
    ids=lambda schema: re.sub(r" at 0x[0-9a-f]*", "", str(schema)[:60])[:40],
)
def test_what_is_no_schema_or_cannot_be_bounded_is_refused(schema):
    with pytest.raises(CheckError, match="schema"):
        JsonSchema(schema=schema)


def test_nothing_is_downloaded(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: pytest.fail("a schema was downloaded"))
    with pytest.raises(CheckError, match="cannot be used"):
        JsonSchema(schema={"$id": "https://example.com/a/", "$ref": "#b"})("", "1")


def test_a_schema_without_an_end_is_an_error_of_the_check():
    turns = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {"d40": {}}
    for schema in ({"$ref": "#"}, {"$defs": turns, "$ref": "#/$defs/d0"}):
        began = time.perf_counter()
        with pytest.raises(CheckError):
            JsonSchema(schema=schema, seconds=0.2)("", "1")
        assert time.perf_counter() - began < 5


def test_unequal_items_are_told_apart_as_json_does_and_fast():
    check = JsonSchema(schema={"uniqueItems": True})
    for equal in ("[1, 1.0]", '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', "[[], []]"):
        assert check("", equal).score == 0
    assert check("", '[1, true, "1", 0, false, null]').score == 1
    assert check("", json.dumps([{"a": number} for number in range(20_000)])).score == 1


def test_a_response_format_is_a_check():
    assert response_format_check({"type": "text"}) is None
    anything = response_format_check({"type": "json_object"})
    assert [anything("", text).score for text in ('{"a": 1}', "[1]", "a")] == [1, 0, 0]
    named = response_format_check(
        {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
    )
    assert [named("", text).score for text in ('{"city": "Oslo"}', "{}")] == [1, 0]


@pytest.mark.parametrize(
    "response_format",
    [{}, {"type": "yaml"}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "x"}}],
)
def test_another_response_format_is_refused(response_format):
    with pytest.raises(CheckError, match="response_format"):
        response_format_check(response_format)


# ---- patterns ---------------------------------------------------------------------------------------------


@given(answer=st.text())
def test_a_pattern_matches_as_pythons_does(answer):
    pattern = r"\w+\s\d|^a?$"
    assert Pattern(pattern=pattern)("", answer).score == (re.search(pattern, answer) is not None)
    assert Pattern(pattern=pattern, whole=True)("", answer).score == (re.fullmatch(pattern, answer) is not None)


def test_a_pattern_that_does_not_end_is_an_error_of_the_check():
    check = Pattern(pattern=r"(?:(?:a|aa)+b?)+c", whole=True, seconds=0.1)
    began = time.perf_counter()
    with pytest.raises(CheckError, match="took longer"):
        check("", "a" * 5000)
    assert time.perf_counter() - began < 5


def test_too_long_answers_fail_without_a_look():
    long = '"' + "a" * 1_000_000 + '"'
    assert "characters" in Pattern(pattern="a")("", long).reason
    assert "characters" in JsonSchema(schema=True)("", long).reason


def test_broken_patterns_and_times_are_refused():
    for broken in ({"pattern": "("}, {"pattern": "a", "seconds": 0}, {"pattern": "a", "seconds": float("nan")}):
        with pytest.raises(CheckError):
            Pattern(**broken)
    with pytest.raises(CheckError):
        JsonSchema(schema=True, seconds=0)
