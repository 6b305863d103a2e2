"""Laws of verdicts, of the judge and of running tests."""

import asyncio
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import RouterError
from router.checks import Verdict, verdict_of
from router.checks.judge import Judge, judge_prompt, score_of
from router.checks.python_tests import PythonTests, code_of
from router.errors import CheckError

ADD = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds."
ADDS = "assert add(2, 3) == 5"


# ---- verdicts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "score"),
    [(True, 1), (False, 0), (0.2, 0.2), (1, 1), (np.bool_(True), 1), (np.float32(0.5), 0.5), (Verdict(score=0.5), 0.5)],
)
def test_a_verdict_a_bool_and_a_score_are_verdicts(value, score):
    assert verdict_of(value).score == score


@pytest.mark.parametrize("value", [None, "PASS", math.nan, -0.1, 1.1, math.inf, [1], 1j, object()])
def test_anything_else_is_no_verdict(value):
    with pytest.raises(CheckError, match="expected"):
        verdict_of(value)


@pytest.mark.parametrize("cost_usd", [-0.1, math.nan, math.inf])
def test_a_cost_out_of_range_is_refused(cost_usd):
    with pytest.raises(CheckError, match="USD"):
        Verdict(score=1.0, cost_usd=cost_usd)


def test_a_coroutine_that_nobody_awaited_is_no_verdict():
    async def check(prompt, answer):
        return True

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckError, match="await"):
            verdict_of(check("", ""))


def test_an_error_of_a_check_is_the_brokers_and_says_what_was_paid():
    error = CheckError("broken", cost_usd=0.01)
    assert isinstance(error, RouterError) and error.cost_usd == 0.01 and str(error) == "broken"


# ---- the judge --------------------------------------------------------------------------------------------


def judge(reply, **settings_of_judge):
    return Judge(ask=lambda prompt: reply, **settings_of_judge)("2 + 2?", "4")


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("PASS", 1), ("It is right.\n\n**PASS**\n", 1), ("Verdict: fail.", 0), ("SCORE: 0.75", 0.75),
        ("score = .5", 0.5), ("1", 1), ("0.0", 0), ("PASS is tempting.\nFAIL", 0), ("0.7/1", 0.7),
    ],
)  # fmt: skip
def test_the_last_line_of_the_reply_is_the_verdict(reply, score):
    assert judge(reply) == Verdict(score=score, reason=f"the judge says {score:g}")


@pytest.mark.parametrize("reply", ["", "I cannot say.", "PASS\nor not", "SCORE: 7", "1.5", "PASS FAIL", "nan", None, 1])
def test_a_reply_without_a_verdict_says_nothing_but_was_paid(reply):
    with pytest.raises(CheckError, match="judge") as broken:
        judge(reply, usd_per_call=0.002)
    assert broken.value.cost_usd == 0.002


def test_a_verdict_states_its_cost():
    assert judge("PASS", usd_per_call=0.002).cost_usd == 0.002
    with pytest.raises(CheckError, match="USD"):
        judge("PASS", usd_per_call=-1)


def test_a_judge_that_cannot_be_asked_is_an_error_of_the_check():
    def ask(prompt):
        raise TimeoutError("no judge today")

    with pytest.raises(CheckError, match="no judge today") as broken:
        Judge(ask=ask)("p", "a")
    assert isinstance(broken.value.__cause__, TimeoutError)


def test_an_async_judge_is_awaited():
    async def ask(prompt):
        return "PASS" if "4" in prompt else 1 / 0

    check = Judge(ask=ask)
    assert asyncio.run(check("2 + 2?", "4")).score == 1
    with pytest.raises(CheckError, match="ZeroDivision"):
        asyncio.run(check("", ""))


@given(prompt=st.text(), answer=st.text())
def test_an_answer_stands_between_marks_that_it_cannot_contain(prompt, answer):
    text = judge_prompt(prompt, answer)
    assert text == judge_prompt(prompt, answer) and prompt in text and answer in text
    mark = text.split("the mark ", 1)[1][:24]
    assert text.count(mark) == 5 and mark not in prompt + answer
    again = judge_prompt(prompt, answer + mark)
    assert again.split("the mark ", 1)[1][:24] != mark


@given(reply=st.text())
def test_a_score_is_in_range_whatever_the_judge_says(reply):
    assert score_of(reply) is None or 0 <= score_of(reply) <= 1


# ---- running tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "tests", "score", "reason"),
    [
        (ADD, ADDS, 1, "passed"),
        ("def add(a, b):\n    return a + b", ADDS, 1, "passed"),
        (ADD, "def test_add():\n    assert add(2, 2) == 5", 0, "the tests raised AssertionError"),
        (ADD, "from answer import add\ndef test_add():\n    assert add(2, 2) == 4", 1, "passed"),
        ("```python\ndef test_own(): 1 / 0\ndef add(a, b): return a + b\n```", ADDS, 1, "passed"),
        ("```python\nadd = input()\n```", ADDS, 0, "the code raised EOFError"),
        ("I am afraid I cannot.", ADDS, 0, "the code raised SyntaxError"),
        ("import sys; sys.exit(0)", ADDS, 0, "the code raised SystemExit"),
        ("import os; os._exit(0)", ADDS, 0, "the process ended before the tests were through"),
        ("\ud800\0", ADDS, 0, "the code raised"),
        ("```bash\nls\n```", ADDS, 0, "the answer has no code"),
        ("", ADDS, 0, "the answer has no code"),
        ("if __name__ == '__main__':\n    1 / 0", "", 1, "passed"),
    ],
)
def test_code_passes_where_its_tests_run_through(code, tests, score, reason, capfd):
    verdict = PythonTests(tests=tests)("Write add.", code)
    assert verdict.score == score and verdict.reason.startswith(reason)
    assert capfd.readouterr() == ("", "")


def test_a_flood_of_output_goes_nowhere(capfd):
    assert PythonTests(tests="")("", "for _ in range(1000): print('x' * 10000)").score == 1
    assert capfd.readouterr() == ("", "")


def test_code_that_takes_too_much_fails():
    assert PythonTests(tests="", seconds=0.5)("", "while True: pass").reason == "not done after 0.5 s"
    assert PythonTests(tests="")("", "x = 'x' * (1 << 40)").reason == "the code raised MemoryError"
    assert "raised OSError" in PythonTests(tests="")("", "open('f', 'wb').write(bytes(1 << 25))").reason


def test_the_process_and_its_children_are_killed(tmp_path):
    pids = tmp_path / "pids"
    code = f"import os, time\nos.fork()\nopen({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')\ntime.sleep(60)"
    assert PythonTests(tests="", seconds=2.0)("", code).score == 0
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    deadline = time.monotonic() + 5
    while any(map(running, started)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, started))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_process_sees_no_environment_and_leaves_no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("A_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tests = f"import os, sys\nassert 'A_KEY' not in os.environ and {str(tmp_path)!r} not in sys.path\nopen('left', 'w')"
    assert PythonTests(tests=tests)("", "pass").reason == "passed"
    assert not list(tmp_path.iterdir())


def test_broken_tests_and_senseless_limits_are_refused():
    for broken in ({"tests": "assert ("}, {"tests": "", "seconds": 0}, {"tests": "", "memory_mb": 1}):
        with pytest.raises(CheckError):
            PythonTests(**broken)


def test_a_python_that_does_not_start_says_nothing_of_the_answer(monkeypatch):
    for executable in ("/nowhere/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        with pytest.raises(CheckError, match="cannot be run"):
            PythonTests(tests="")("", "pass")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("a = 1", "a = 1"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\nthen\n```py\nb = 2\n```\n```\n1\n```", "a = 1\n\nb = 2\n"),
        ("```Python\na = 1", "a = 1"),
        ("```bash\nls\n```", ""),
    ],
)
def test_the_code_is_what_stands_in_blocks_of_python(answer, code):
    assert code_of(answer) == code


@given(answer=st.text(st.sampled_from("`\npython =1")))
@settings(max_examples=200)
def test_every_answer_has_its_code(answer):
    assert isinstance(code_of(answer), str)


# ---- light ------------------------------------------------------------------------------------------------


def test_only_schema_and_pattern_need_the_extra():
    code = "import sys\nimport router.checks, router.checks.normalise, router.checks.judge, router.checks.python_tests"
    run = subprocess.run(
        [sys.executable, "-c", code + "\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"jsonschema", "referencing", "regex", "sympy"} & set(run.stdout.split())
    for module, package in (("schema", "jsonschema"), ("pattern", "regex")):
        code = f"import sys; sys.modules['{package}'] = None; import router.checks.{module}"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
        assert run.returncode and "token-broker[checks]" in run.stderr
