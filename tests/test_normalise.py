"""Laws of the normal form in which answers are compared."""

import json
import string
import time

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.checks.normalise import Matches, normalise, same

FORMS = {
    # option letters
    "B": ["B", "b", "(B)", "(b).", "**B**", "B.", "Option B", "The answer is (B).", "Answer: B", "\\boxed{\\text{B}}",
          "B) 5 apples", "(B) Paris", "**B. The mitochondria**", "so the answer is B. A is wrong.", "答案：Ｂ。"],
    "AC": ["AC", "A, C", "A and C", "The answer is A and C."],
    "BDACE": ["BDACE", "B, D, A, C, E"],
    # numbers
    "1234.5": ["1,234.50", "1234.5", "$1,234.50", "+1234.5", "The answer is 1,234.5.", "\\(1{,}234.5\\)", "12345e-1",
               "Thus it is so.\n#### 1,234.5", "<think>The answer is 3.</think>1234.5", '{"answer": 1234.50}'],
    "0": ["0", "-0", "0.00", "−0"],
    "-3": ["-3", "−3", "-3.0", "-6/2", "x = -3", "\\boxed{-3}"],
    "0.5": ["0.5", ".5", "1/2", "\\frac12", "\\dfrac{1}{2}", "$\\frac{2}{4}$", "Hence \\boxed{\\frac{1}{2}} it is."],
    "1/3": ["1/3", "2/6", "\\frac{1}{3}"],
    "50%": ["50%", "50 %", "50\\%", "50.0%"],
    "5kg": ["5 kg", "5kg", "5.0 KG", "5\\text{ kg}", "The answer is 5 kg. That is a lot."],
    "007": ["007"],
    # formulas
    "12sqrt(3)": ["12\\sqrt{3}", "12√3", "12 * sqrt(3)", "12sqrt3", "\\boxed{12\\sqrt3}"],
    "25pi": ["25\\pi", "25π", "25*pi", "25 pi"],
    "2^(10)": ["2^{10}", "2^10"],
    "1/sqrt(3)": ["\\frac{1}{\\sqrt{3}}", "1/√3"],
    "(1,2)": ["(1, 2)", "\\left(1,\\,2\\right)"],
    "90°": ["90^\\circ", "90°"],
    # words
    "yes": ["yes", "Yes.", "YES", '"Yes"', "The answer is yes.", "Answer: **Yes**\n\nThe reason is long.", "Yes!"],
    "new york": ["New York", "new  york.", "`New York`", "Final answer: New York"],
    # JSON
    '{"a":1,"b":["x"]}': ['{"b": ["x"], "a": 1.0}', '```json\n{"a": 1, "b": ["x"]}\n```',
                          'Here it is:\n```json\n{"a": 1, "b": ["x"]}\n```\nDone.'],
    "paris": ['{"reasoning": "It is the capital.", "answer": "Paris"}', "Paris"],
}  # fmt: skip

DIFFERENT = [
    ("5", "5 kg"), ("5", "5%"), ("21/2", "2\\frac{1}{2}"), ("21/2", "2 1/2"), ("1 3", "13"), ("1   3", "13"),
    ("07", "7"),
    ("\\sqrt{3}x", "\\sqrt{3x}"), ("\\frac{1}{2}x", "\\frac{1}{2x}"), ("5!", "5"), ("5²", "52"), ("2**3", "2*3"),
    ("A. Lincoln", "A. Hamilton"), ("J. K. Rowling", "J. R. R. Tolkien"), ("A: Paris", "A: Rome"), ("(A) and (B)", "A"),
    ("The answer is St. Paul", "The answer is St. Louis"), ("aBcD", "abcd"), ("[1, 2]", "[2, 1]"), ("[true]", "[1]"),
    ("The answer is as follows:\n1", "The answer is as follows:\n2"), ("Answer:\n1. a\n2. b", "Answer:\n1. b\n2. a"),
    ("#### 1. Start", "#### 1. End"), ("The answer is hard.\nIt is 5", "The answer is hard.\nIt is 6"),
    ('{"answer": "yes", "to": "Bob"}', '{"answer": "yes", "to": "Eve"}'),
]  # fmt: skip

PIECES = [
    "answer is ", "Answer: ", "\\boxed{", "}", "{", "$", "\\frac", "\\sqrt", "^", "_", "**", "`", "```", "json",
    "\n", " ", '"', "'", "(", ")", "[", "]", ",", ".", "!", "-", "/", "*", "#### ", "A", "b", "B.", "and", "1",
    "20", "0", "007", "e5", "kg", "%", "pi", "√", "x=", "</think>", "答案是", "\\text{", "true", "NaN", ":", "é",
    "ＡＢ", "\ud800", "\0", "İ", "ß",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_ways_to_write_one_answer_have_one_form(form):
    assert {text: normalise(text) for text in FORMS[form]} == dict.fromkeys(FORMS[form], form)


def test_the_forms_of_different_answers_differ():
    forms = [normalise(form) for form in FORMS]
    assert len(set(forms)) == len(forms)
    for a, b in DIFFERENT:
        assert normalise(a) is not None and not same(a, b), (a, b, normalise(a))


@pytest.mark.parametrize("empty", ["", "  \n", '""', "****", "<think>5</think>", '{"answer": ""}', '{"answer": null}'])
def test_without_an_answer_there_is_no_form_and_nothing_agrees(empty):
    assert normalise(empty) is None
    assert not same(empty, empty)


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)))
@example("{" * 5000)
@example("[" * 200_000)
@example("1" * 5000)
@example("[1e999]")
@settings(max_examples=400)
def test_a_form_is_its_own_form_whatever_the_text(text):
    form = normalise(text)
    assert form is None or (form and normalise(form) == form)


@given(number=st.integers(-(10**12), 10**12), places=st.integers(0, 6))
def test_a_number_has_one_form(number, places):
    value = f"{number / 10**places:.{places}f}" if places else str(number)
    ways = [value, f"{float(value):,.{places}f}", f"The answer is {value}.", f"${value}$"]
    forms = {normalise(way) for way in ways}
    assert len(forms) == 1 and float(forms.pop()) == float(value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(string.printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abcd"), JSON_VALUES, min_size=1))
def test_the_order_and_the_spaces_of_json_make_no_difference(value):
    assert same(json.dumps(value), json.dumps(dict(reversed(value.items())), indent=1))
    assert json.loads(normalise(json.dumps(value))) == value


@given(a=st.text(), b=st.text())
def test_agreement_is_symmetric_and_takes_any_normaliser(a, b):
    assert same(a, b) == same(b, a)
    assert same(a, b, str.strip) == (a.strip() == b.strip())
    assert not same(a, b, lambda text: None)


def test_an_expected_answer_is_a_check():
    assert Matches(expected="0.5")("", "The answer is \\frac{1}{2}.").score == 1
    assert Matches(expected="0.5")("", "I do not know.").score == 0
    assert Matches(expected="ab", normaliser=str.upper)("", "AB").score == 1


@pytest.mark.parametrize(
    "hostile",
    ["." * 10**6, "*" * 10**6, "{" * 10**6, " " * 10**6, "answer is " * 10**5, "\\boxed{" * 10**5, "```json\n" * 10**5,
     "\"'" * 10**5, "\\frac{" * 80, "A" * 499, "answer is " + "A. " * 160],
)  # fmt: skip
def test_no_text_takes_long(hostile):
    began = time.perf_counter()
    normalise(hostile)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("log", ["mmlu_pro", "lexeval", "bfcl", "zeroeval"])
def test_answers_of_real_logs_agree_as_their_sources_say(real_logs, log):
    """Answers that a source has normalised keep their differences, but for program output, where spaces count."""
    rows = pd.read_parquet(real_logs / log / "outcomes.parquet", columns=["prompt_id", "dataset", "answer"]).dropna()
    rows = rows[rows.dataset != "zeroeval/crux"].drop_duplicates()
    forms = {answer: normalise(answer) for answer in rows.answer.unique()}
    assert all(form is None or normalise(form) == form for form in forms.values())
    rows["form"] = rows.answer.map(forms)
    merged = 1 - len(rows.drop_duplicates(["prompt_id", "form"])) / len(rows)
    assert merged < 0.01
