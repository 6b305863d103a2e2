"""Laws of judging models: their verdicts are never believed blindly, but put right by how often they err."""

import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from router.cli import main
from router.decision import Decision
from router.errors import CheckError
from router.outcomes import OutcomeLog
from router.outcomes.correction import FEWEST, Accuracy
from router.outcomes.label import label
from router.outcomes.reading import LogReader

JUDGE = Accuracy(sensitivity=0.85, specificity=0.65, n_right=500, n_wrong=500)

# ---- the correction --------------------------------------------------------------------------------


def simulated(n, shift, seed=0):
    """Estimates that are wrong by `shift` log odds, the truth, and what a judge like JUDGE says of it."""
    draw = np.random.default_rng(seed)
    odds = draw.normal(0.5, 1.5, n)
    right = draw.random(n) < 1 / (1 + np.exp(-odds))
    passed = draw.random(n) < np.where(right, JUDGE.sensitivity, 1 - JUDGE.specificity)
    return 1 / (1 + np.exp(-(odds + shift))), right, passed


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1.0])
def test_corrected_verdicts_are_right_as_often_as_the_answers_though_the_estimates_are_not(shift):
    expected, right, passed = simulated(20_000, shift)
    corrected = JUDGE.corrected(expected, passed)
    assert corrected.mean() == pytest.approx(right.mean(), abs=0.02)
    assert shift == 0 or abs(expected.mean() - right.mean()) > 0.1
    assert abs(passed.mean() - right.mean()) > 0.05  # believed blindly, this judge is wrong


def test_corrected_verdicts_are_calibrated_and_say_more_than_verdict_or_estimate_alone():
    expected, right, passed = simulated(20_000, 1.0)
    corrected = JUDGE.corrected(expected, passed)
    for low in np.arange(0, 1, 0.2):
        inside = (corrected >= low) & (corrected < low + 0.2)
        assert corrected[inside].mean() == pytest.approx(right[inside].mean(), abs=0.04)
    errors = [np.mean((said * 1.0 - right) ** 2) for said in (corrected, expected, passed)]
    assert errors[0] == min(errors)


@given(arrays(float, 6, elements=st.floats(0, 1)), st.floats(0.55, 0.999), st.floats(0.55, 0.999))
def test_a_verdict_moves_an_estimate_its_own_way_and_keeps_the_order(expected, sensitivity, specificity):
    judge = Accuracy(sensitivity=sensitivity, specificity=specificity, n_right=50, n_wrong=50)
    expected = np.sort(expected)
    both = judge.corrected(np.tile(expected, 2), np.repeat([True, False], 6))
    passed, failed = both[:6], both[6:]
    assert ((both >= 0) & (both <= 1)).all() and (passed >= failed).all()
    assert (np.diff(passed) >= -1e-12).all() and (np.diff(failed) >= -1e-12).all()


def test_accuracy_is_counted_on_right_and_wrong_answers_apart():
    measured = Accuracy.measured([True] * 30 + [False] * 10 + [True] * 8 + [False] * 32, [True] * 40 + [False] * 40)
    assert (measured.n_right, measured.n_wrong) == (40, 40)
    assert measured.sensitivity == pytest.approx(30.5 / 41) and measured.specificity == pytest.approx(32.5 / 41)


@pytest.mark.parametrize(
    ("passed", "right", "message"),
    [
        ([True] * 100, [True] * 100, f"100 .* right and 0 wrong; expected {FEWEST} of each"),
        ([True, False] * 40, [True, True, False, False] * 20, "better than chance"),
        ([False] * 30 + [True] * 30, [True] * 30 + [False] * 30, "better than chance"),
    ],
)
def test_a_judge_that_cannot_be_measured_or_knows_nothing_corrects_nothing(passed, right, message):
    with pytest.raises(CheckError, match=message):
        Accuracy.measured(passed, right)


# ---- in a log --------------------------------------------------------------------------------------


def answered(log, text, success):
    decision = Decision(
        tier="small", offer=None, success={"small": success}, output_tokens={"small": 1.0}, cost_usd={"small": 0.001},
        reason="", context_tokens=5.0, quality=0.98, worth_usd=0.0, slack=0.1, promised=True, fallback=False,
        bundle_id="bundle", price_table_id="prices", decision_id=uuid4().hex, request_id=None, propensity=1.0,
        familiarity=1.0,
    )  # fmt: skip
    log.decided(decision, "Which word is right?", timestamp=datetime(2026, 11, 24, tzinfo=UTC))
    log.outcome(decision.decision_id, ended="complete", answer_text=text, tier="small")
    return decision.decision_id


@pytest.fixture
def kept(tmp_path):
    """A log of 60 answers that people have judged, and four that nobody has: two passed by the judge, two failed."""
    with OutcomeLog(tmp_path / "log", keep_prompts=True, keep_answers=True) as log:
        for number in range(60):
            is_right, is_error = number % 2 == 0, number % 10 < 2
            said = "good" if is_right != is_error else "bad"
            log.outcome(answered(log, said, 0.5), correct=is_right, judged_by="a reviewer")
        yield log, [answered(log, text, success) for text in ("good", "bad") for success in (0.3, 0.6)]


@pytest.fixture
def judge_at():
    """An endpoint that speaks OpenAI's protocol: its model passes each good answer, and costs 0.0004 USD a call."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers["Authorization"], body["model"]))
            reply = "PASS" if "\ngood\n" in body["messages"][0]["content"] else "It is wrong.\nFAIL"
            message = {"role": "assistant", "content": reply}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            document = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            content = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("x-litellm-response-cost", "0.0004")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_at_an_endpoint_sets_corrected_outcomes_of_what_nobody_judged(
    kept, judge_at, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("openai", reason="needs the extra `gateway`")
    log, ids = kept
    url, asked = judge_at
    monkeypatch.setenv("JUDGES_KEY", "sk-judge")
    arguments = ["outcomes", "label", "--outcomes", str(tmp_path / "log"), "--check", "grader=judge:big", "--decides"]
    arguments += ["--judge-at", url, "--judge-key", "JUDGES_KEY", "--json"]
    assert main(arguments) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["looked_at"], done["troubled"], done["outcomes"]) == (64, 0, 4)
    assert done["usd"] == pytest.approx(64 * 0.0004)
    assert {*asked} == {("Bearer sk-judge", "big")}
    accuracy = Accuracy(**done["accuracy"])
    assert (accuracy.n_right, accuracy.n_wrong) == (30, 30) and accuracy.sensitivity == pytest.approx(24.5 / 31)

    rows = [LogReader(tmp_path / "log").find(each).rows[0] for each in ids]
    scores = [row["correct"] for row in rows]
    expected = accuracy.corrected(np.array([0.3, 0.6, 0.3, 0.6]), np.array([True, True, False, False]))
    assert scores == pytest.approx(list(expected)) and all(0 < score < 1 for score in scores)
    assert {row["judged_by"] for row in rows} == {"check grader"}
    assert [row["check_grader"] for row in rows] == [1, 1, 0, 0]

    assert main(arguments) == 0  # again: nothing is left to ask, and nothing to set
    assert json.loads(capsys.readouterr().out) == {**done, "looked_at": 0, "passed": 0, "usd": 0, "outcomes": 0}


def test_what_a_judge_has_set_is_no_evidence_for_the_judge(kept, tmp_path):
    log, ids = kept
    reader = LogReader(tmp_path / "log")

    def judge(prompt, answer):
        return answer == "good"

    first = label(reader, log, "grader", judge, decides=True, corrects=True)
    again = label(reader, log, "grader", judge, decides=True, corrects=True)
    assert first.outcomes == 4 and again.accuracy == first.accuracy


def test_a_judge_that_nobody_can_be_compared_with_sets_no_outcome_and_its_verdicts_stay(tmp_path):
    with OutcomeLog(tmp_path / "log", keep_answers=True) as log:
        found = answered(log, "good", 0.5)
        with pytest.raises(CheckError, match="expected 20 of each"):
            label(LogReader(tmp_path / "log"), log, "grader", lambda *_: True, decides=True, corrects=True)
    row = LogReader(tmp_path / "log").find(found).rows[0]
    assert (row["check_grader"], row["correct"]) == (1, None)


def test_a_judge_that_is_away_is_not_asked_for_every_answer(kept, tmp_path):
    log, _ = kept
    calls = []

    def judge(prompt, answer):
        calls.append(answer)
        raise CheckError("the judge could not be asked: it is away")

    with pytest.raises(CheckError, match="it is away"):
        label(LogReader(tmp_path / "log"), log, "grader", judge, n_threads=4)
    assert len(calls) == 20
