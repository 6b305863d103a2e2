"""Laws of running a plan: no answer that was given is lost, what was paid is added up, and the log says all of it."""

import asyncio
import json
import threading
import time
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import Router
from router.checks import Verdict
from router.decision import Decision
from router.errors import CheckError, PlanError
from router.outcomes import OutcomeLog
from router.plan import Plan
from router.plan_result import Answer
from router.plans.checks import CheckModel
from router.plans.tree import Choices
from router.portfolio.tiers import parse_tiers
from training.log.ingest import ingest

NAMES = ("a", "b", "c")
TIERS = parse_tiers(
    "".join(
        f'[[tiers]]\nname = "{name}"\noffers = [{", ".join(offers)}]\n'
        for name, offers in {
            name: [
                f'{{ model = "{name}{place}", provider = "p{place}", region = "x", context_window = 9999, '
                f"usd_per_mtok_input = {price}, usd_per_mtok_output = {price} }}"
                for place in (1, 2)
            ]
            for name, price in zip(NAMES, (1, 10, 100), strict=True)
        }.items()
    )
)
OFFERS = {tier.name: tier.offers for tier in TIERS}
TESTS = CheckModel.with_figures("tests", 3, sensitivity=0.9, specificity=0.8)
USD = {"a": 0.001, "b": 0.01, "c": 0.1}


def decide(**more):
    fields = {
        "tier": "c", "offer": OFFERS["c"][0], "success": {"a": 0.5, "b": 0.6, "c": 0.9},
        "output_tokens": dict.fromkeys(NAMES, 20.0), "cost_usd": USD, "reason": "highest success",
        "context_tokens": 5.0, "quality": None, "worth_usd": 1.0, "slack": 1.0, "promised": False, "fallback": False,
        "bundle_id": "bundle", "price_table_id": "prices", "decision_id": uuid4().hex, "request_id": None,
        "propensity": 1.0, "familiarity": 1.0, "eligible": NAMES,
    }  # fmt: skip
    return Decision(**{**fields, **more})


def plan(choices=None, verifiers=(), decision=None, offers=OFFERS, prompt="What is 2 + 2?"):
    tier = NAMES[0] if choices is not None else "c"
    return Plan(
        decision=decision or decide(),
        tier=tier,
        checks=(),
        success=0.8,
        cost_usd=0.02,
        reason="a plan",
        is_direct=choices is None,
        quality=None,
        worth_usd=1.0,
        promised=False,
        verifiers=verifiers,
        offers=offers,
        choices=choices,
        prompt=prompt,
    )


def compare(third=True, offers=OFFERS, **more):
    """Ask a and b; where they differ, ask c if there is a third call."""
    rng = np.random.default_rng(0)
    thirds = np.full((3, 1, 1, 2), -1)
    thirds[:, 0, 0, 1] = [-1, 2, 1] if third else -1
    choices = Choices(
        tiers=NAMES,
        first=0,
        second=[1],
        is_checked=np.ones((3, 1), bool),
        third=thirds,
        after_one=[[1.0, 0.5]],
        after_two=np.tile([[0.6, 0.5, 0.55], [0.4, 0.1, 0.2]], (3, 1, 1, 1, 1)),
        after_three=np.sort(rng.random((3, 3, 1, 1, 5, 4)), axis=-1)[..., ::-1],
        agreement=True,
        verifiers=(),
        offers=offers,
    )
    return plan(choices, offers=offers, **more)


def look(**more):
    """Ask a; where the tests fail, ask b."""
    choices = Choices(
        tiers=NAMES,
        first=0,
        second=[1, -1],
        is_checked=np.zeros((3, 2), bool),
        third=np.full((3, 2, 2, 2), -1),
        after_one=[[0.4, 0.1], [0.6, 0.5]],
        after_two=np.full((3, 2, 2, 2, 3), [0.2, 0.02, 0.15]),
        after_three=np.zeros((3, 3, 2, 2, 5, 4)),
        agreement=False,
        verifiers=(TESTS,),
        offers=OFFERS,
    )
    return plan(choices, verifiers=(TESTS,), **more)


def asker(answers, asked=None):
    """An `ask` that answers by the offer's model, or else its tier; an exception is raised."""

    def ask(offer):
        if asked is not None:
            asked.append(offer.model)
        found = answers.get(offer.model, answers.get(offer.model[0], "no"))
        if isinstance(found, Exception):
            raise found
        return found

    return ask


def tiers(result):
    return [attempt.tier for attempt in result.attempts]


# ---- the way ---------------------------------------------------------------------------------------


def test_a_direct_plan_is_one_call():
    result = plan().run(asker({"c": "4"}))
    assert (result.answer, result.tier, result.offer.model, result.success) == ("4", "c", "c1", 0.8)
    assert tiers(result) == ["c"]
    assert result.reason == "asked c; returned the answer of c, right with 80.0% probability, where the plan ends"


def test_the_plan_goes_by_what_it_sees():
    agreed = compare().run(asker({"a": "4", "b": "4.0", "c": "5"}))
    assert tiers(agreed) == ["a", "b"] and agreed.attempts[1].seen == "they agree"
    assert agreed.answer == "4.0" and agreed.success == pytest.approx(0.55 / 0.6)
    for answers, seen in {
        "455": "b and c agree", "454": "a and c agree", "456": "no two agree",
    }.items():  # fmt: skip
        result = compare().run(asker(dict(zip(NAMES, answers, strict=True))))
        assert tiers(result) == ["a", "b", "c"] and result.attempts[2].seen == seen
    passed = look().run(asker({"a": "4"}), {"tests": lambda prompt, answer: answer == "4"})
    assert tiers(passed) == ["a"] and passed.attempts[0].seen == "tests passes"
    failed = look().run(asker({"a": "5", "b": "4"}), {"tests": lambda prompt, answer: answer == "4"})
    assert (failed.answer, tiers(failed)) == ("4", ["a", "b"]) and "a (tests fails), then b" in failed.reason


def test_answers_without_a_normal_form_agree_with_none():
    result = compare().run(asker({}), normalise=lambda text: None)
    assert tiers(result) == ["a", "b", "c"] and result.attempts[2].seen == "no two agree"
    assert compare().run(asker({}), normalise=lambda text: 1 / 0).attempts[2].seen == "no two agree"


def test_checks_see_the_prompt_and_the_answer():
    seen = []
    look().run(asker({"a": "four"}), {"tests": lambda *args: seen.append(args) or True})
    assert seen == [("What is 2 + 2?", "four")]


def test_a_verifier_that_is_missing_is_refused_before_anything_is_asked():
    asked = []
    with pytest.raises(CheckError, match="tests"):
        look().run(asker({}, asked), {"other": lambda prompt, answer: True})
    assert asked == []


# ---- failures --------------------------------------------------------------------------------------


def test_a_failed_call_takes_the_next_offer_of_the_tier():
    result = plan().run(asker({"c1": TimeoutError("late"), "c2": "4"}))
    assert (result.answer, result.offer.model) == ("4", "c2")
    assert [type(attempt.error) for attempt in result.attempts] == [TimeoutError, type(None)]
    assert "c at p1 (failed: TimeoutError), then c" in result.reason


def test_a_failed_first_tier_is_replaced_by_the_one_with_the_highest_success():
    result = compare().run(asker({"a": OSError(), "b": "4", "c": "5"}))
    assert (result.answer, result.tier, result.success) == ("5", "c", 0.9)
    assert "then c in its place" in result.reason
    result = compare().run(asker({"a": OSError(), "b": "4", "c": OSError()}))
    assert (result.answer, result.tier, result.success) == ("4", "b", 0.6)


def test_a_failed_later_tier_is_replaced_and_the_plan_goes_on():
    result = compare().run(asker({"a": "4", "b": OSError(), "c": "4"}))
    assert tiers(result) == ["a", "b", "b", "c"] and result.attempts[3].seen == "they agree"
    result = compare().run(asker({"a": "4", "b": OSError(), "c": OSError()}))
    assert (result.answer, result.success) == ("4", 0.5) and "since nobody is left to ask" in result.reason
    result = compare().run(asker({"a": "4", "b": "5", "c": OSError()}))
    assert (result.answer, result.success) == ("5", pytest.approx(0.5)) and "nobody is left" in result.reason


def test_where_all_calls_fail_the_error_names_each():
    with pytest.raises(PlanError) as failed:
        compare().run(asker({name: OSError("no line") for name in NAMES}))
    assert [attempt.offer.model for attempt in failed.value.attempts] == ["a1", "a2", "c1", "c2", "b1", "b2"]
    assert all(model in str(failed.value) for model in ("a1 at p1", "b2 at p2")) and "no line" in str(failed.value)
    with pytest.raises(PlanError, match="no offer may answer"):
        plan(offers={}).run(asker({}))


def test_only_tiers_that_may_answer_stand_in():
    asked = []
    with pytest.raises(PlanError):
        plan(decision=decide(eligible=("c",))).run(asker({"c": OSError()}, asked))
    assert asked == ["c1", "c2"]


@pytest.mark.parametrize("broken", [CheckError("no judge", cost_usd=0.5), ValueError("bug"), None, float("nan"), 2.0])
def test_a_check_that_cannot_look_counts_as_its_worst_verdict(broken):
    def tests(prompt, answer):
        if isinstance(broken, Exception):
            raise broken
        return broken

    result = look().run(asker({"a": Answer("4", cost_usd=0.25), "b": "5"}), {"tests": tests})
    assert tiers(result) == ["a", "b"] and set(result.attempts[0].blind) == {"tests"}
    assert result.attempts[0].checks_usd == (0.5 if isinstance(broken, CheckError) else 0)
    assert "tests could not look at the answer of a" in result.reason


OUTCOMES = st.sampled_from(["4", "5", "6", Answer("4", cost_usd=0.5), OSError(), TimeoutError(), None])


@given(
    answers=st.fixed_dictionaries({offer.model: OUTCOMES for tier in TIERS for offer in tier.offers}),
    make=st.sampled_from([plan, compare, look, lambda: compare(third=False)]),
    says=st.sampled_from([True, False, 0.3, Verdict(score=1, cost_usd=0.125), CheckError("blind", cost_usd=0.25)]),
    is_parallel=st.booleans(),
    is_async=st.booleans(),
)
def test_no_error_loses_an_answer_and_the_cost_is_the_sum(answers, make, says, is_parallel, is_async):
    asked, given_answers, fees = [], [], []

    def ask(offer):
        asked.append(offer.model)
        if isinstance(answers[offer.model], str | Answer):
            given_answers.append(offer.model)
        return asker(answers)(offer)

    def tests(prompt, answer):
        fees.append(getattr(says, "cost_usd", 0.0))
        if isinstance(says, Exception):
            raise says
        return says

    def go():
        arguments = (ask, {"tests": tests})
        if is_async:
            return asyncio.run(make().arun(*arguments, parallel=is_parallel))
        return make().run(*arguments, parallel=is_parallel)

    try:
        result = go()
    except PlanError as error:
        assert not given_answers
        assert sorted(attempt.offer.model for attempt in error.attempts) == sorted(asked) == sorted(answers)
        return
    assert given_answers and sorted(asked) == sorted(attempt.offer.model for attempt in result.attempts)
    assert len(set(asked)) == len(asked)
    assert {attempt.offer.model for attempt in result.attempts if attempt.answer} == set(given_answers)
    [returned] = [attempt for attempt in result.attempts if attempt.offer == result.offer]
    assert (returned.answer, returned.tier) == (result.answer, result.tier)
    expected = [
        (0.5 if isinstance(answers[model], Answer) else USD[model[0]] * (1 if model.endswith("1") else 0))
        for model in given_answers
    ]
    seconds = [model for model in given_answers if model.endswith("2") and isinstance(answers[model], str)]
    expected += [25 * OFFERS[model[0]][1].usd_per_mtok_input / 1e6 for model in seconds]
    assert result.cost_usd == pytest.approx(sum(expected) + sum(fees))
    assert result.cost_usd == sum(attempt.cost_usd + attempt.checks_usd for attempt in result.attempts)
    assert json.loads(result.to_json())["tier"] == result.tier


# ---- costs -----------------------------------------------------------------------------------------


def test_what_a_call_cost_is_known_computed_or_expected():
    for given_answer, usd, is_estimated in (
        (Answer("4", cost_usd=0.0), 0.0, False),
        (Answer("4", input_tokens=1000, output_tokens=500), 0.15, False),
        (Answer("4", output_tokens=500), 0.1, True),
        ("4", 0.1, True),
    ):
        result = plan().run(asker({"c": given_answer}))
        assert (result.cost_usd, result.cost_is_estimated) == (pytest.approx(usd), is_estimated)
    for wrong in ({"cost_usd": -1}, {"cost_usd": float("nan")}, {"output_tokens": -1}):
        with pytest.raises(ValueError, match="expected at least 0"):
            Answer("4", **wrong)


def test_json_has_no_text_of_answers_verdicts_or_errors():
    def tests(prompt, answer):
        return Verdict(score=0, reason="secret-verdict")

    offers = {"a1": OSError("secret-error"), "a2": "secret-answer", "b": "secret-other"}
    text = look().run(asker(offers), {"tests": tests}).to_json()
    assert "secret" not in text and "2 + 2" not in text and "OSError" in text


# ---- at once, and async ----------------------------------------------------------------------------


def test_parallel_asks_the_first_two_at_once_at_the_same_cost():
    both = threading.Barrier(2, timeout=10)

    def ask(offer):
        if offer.model != "c1":
            both.wait()
        return offer.model

    result = compare().run(ask, parallel=True)
    assert result.cost_usd == compare().run(lambda offer: offer.model).cost_usd
    assert tiers(result) == ["a", "b", "c"]

    async def wait(offer):
        await asyncio.sleep(0.3)
        return "4"

    began = time.monotonic()
    assert tiers(asyncio.run(compare().arun(wait, parallel=True))) == ["a", "b"]
    assert time.monotonic() - began < 0.55


@pytest.mark.parametrize(("worth_usd", "asked", "returned"), [(1.0, "a b a c", "c"), (0.2, "a b a", "b")])
def test_where_the_first_of_two_fails_the_other_answers_unless_a_better_tier_is_worth_its_price(
    worth_usd, asked, returned
):
    found = replace(compare(), worth_usd=worth_usd)
    result = found.run(asker({"a": OSError(), "b": "4", "c": "4"}), parallel=True)
    assert " ".join(tiers(result)) == asked and result.tier == returned
    assert result.cost_usd == pytest.approx(sum(USD[tier] for tier in asked.replace("a", "").split()))


def test_parallel_asks_one_by_one_where_the_first_answer_is_looked_at():
    asked = []
    result = look().run(asker({}, asked), {"tests": lambda prompt, answer: True}, parallel=True)
    assert asked == ["a1"] == [attempt.offer.model for attempt in result.attempts]


def test_async_functions_are_awaited_and_others_do_not_stop_the_loop():
    loop_thread = []

    async def tests(prompt, answer):
        loop_thread.append(threading.current_thread())
        return False

    def ask(offer):
        assert threading.current_thread() is not threading.main_thread()
        return "4"

    result = asyncio.run(look().arun(ask, {"tests": tests}))
    assert tiers(result) == ["a", "b"] and loop_thread == [threading.main_thread()]


def test_an_async_function_in_run_is_an_error_that_says_so():
    async def ask(offer):
        return "4"

    with pytest.raises(PlanError, match="use arun"):
        plan().run(ask)


def test_whoever_is_cancelled_has_logged_what_was_answered(tmp_path):
    async def ask(offer):
        if offer.model == "b1":
            await asyncio.sleep(60)
        return "4"

    async def main():
        async with asyncio.timeout(0.3):
            await compare().arun(ask, log=OutcomeLog(tmp_path))

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert OutcomeLog(tmp_path).compact().attempts == 2
    found = rows(tmp_path)
    assert (found["a1"]["ended"], found["b1"]["ended"]) == ("complete", "left")
    assert found["b1"]["attempt_id"] is None and found["b1"]["latency_ms"] > 200


def test_two_calls_that_nobody_waits_for_are_both_logged_as_left(tmp_path):
    async def ask(offer):
        await asyncio.sleep(60)

    async def main():
        async with asyncio.timeout(0.2):
            await compare().arun(ask, log=OutcomeLog(tmp_path), parallel=True)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    OutcomeLog(tmp_path).compact()
    assert {model: row["ended"] for model, row in rows(tmp_path).items()} == {"a1": "left", "b1": "left"}


# ---- the log ---------------------------------------------------------------------------------------


def rows(folder):
    found = [row for file in folder.glob("day=*/*.parquet") for row in pq.ParquetFile(file).read().to_pylist()]
    return {row["model"]: row for row in found}


def test_every_attempt_is_a_row_with_digest_and_verdicts_and_no_text(tmp_path):
    decision = decide()
    offers = {"a1": OSError(), "a2": Answer("secret", cost_usd=0.25), "b": "other"}
    with OutcomeLog(tmp_path, keep_prompts=True) as log:
        result = look(decision=decision).run(
            asker(offers), {"tests": lambda prompt, answer: Verdict(score=0.25, cost_usd=0.125)}, log=log
        )
        for attempt in result.attempts:
            log.outcome(attempt.attempt_id, correct=float(attempt.offer == result.offer))
        log.compact()
    assert log.n_lost == 0
    found = rows(tmp_path)
    assert set(found) == {"a1", "a2", "b1"}
    assert [found[model]["ended"] for model in ("a1", "a2", "b1")] == ["failed", "complete", "complete"]
    returned, other = found["b1"], found["a2"]
    assert returned["attempt_id"] is None and {row["decision_id"] for row in found.values()} == {decision.decision_id}
    assert all(row["propensity"] is None for row in found.values())
    assert (other["cost_usd"], returned["cost_usd"], found["a1"]["cost_usd"]) == (0.25, None, None)
    assert (other["check_tests"], other["check_tests_usd"], returned["check_tests"]) == (0.25, 0.125, None)
    assert (other["correct"], returned["correct"]) == (0.0, 1.0)
    assert other["prompt"] == returned["prompt"] == "What is 2 + 2?"
    assert len(other["answer"]) == 16 and other["answer"] != returned["answer"] and "secret" not in str(found)


def test_training_reads_answers_and_verdicts_of_the_log(tmp_path):
    log = OutcomeLog(tmp_path, keep_prompts=True)
    for answers, passes in (("44", True), ("45", False)):
        ask = asker(dict(zip("ab", answers, strict=True)))
        for result in (
            compare(third=False, prompt=f"agree {answers}").run(ask, log=log),
            look(prompt=f"look {answers}").run(ask, {"tests": lambda prompt, answer, passes=passes: passes}, log=log),
        ):
            for attempt in result.attempts:
                log.outcome(attempt.attempt_id, correct=True)
    log.compact()
    table = ingest(tmp_path, TIERS)
    numbers = dict(zip(table.prompts, table.answer_number.tolist(), strict=True))
    assert numbers["agree 44"] == [0, 0, -1] and numbers["agree 45"] == [0, 1, -1]
    scores = dict(zip(table.prompts, table.checks["tests"].score[:, 0].tolist(), strict=True))
    assert (scores["look 44"], scores["look 45"]) == (1.0, 0.0)
    assert table.summary.n_used == 7 and not table.summary.quarantined


def test_a_direct_plan_keeps_its_propensity(tmp_path):
    with OutcomeLog(tmp_path) as log:
        plan(decision=decide(propensity=0.75)).run(asker({}), log=log)
        log.compact()
    assert rows(tmp_path)["c1"]["propensity"] == 0.75 and rows(tmp_path)["c1"]["prompt"] is None


def test_a_log_that_cannot_write_loses_no_answer(tmp_path, unwritable):
    log = OutcomeLog(tmp_path)
    assert compare().run(asker({"a": "\ud800", "b": "\ud800"}), log=log).answer == "\ud800"
    assert log.compact().unreadable == 0


def test_verdicts_that_come_late_reach_the_row_and_leave_the_others_as_they_were(tmp_path):
    log, first, second = OutcomeLog(tmp_path), decide(), decide()
    for each, name in ((first, "tests"), (second, "judge")):
        look(decision=each).run(asker({"a": "4"}), {"tests": lambda prompt, answer: True}, log=log)
        log.compact()
        log.outcome(each.decision_id, checks={name: Verdict(score=0.5, cost_usd=0.25)})
        log.compact()
    found = {
        row["decision_id"]: row
        for file in tmp_path.glob("day=*/*.parquet")
        for row in pq.ParquetFile(file).read().to_pylist()
    }
    assert (found[first.decision_id]["check_tests"], found[first.decision_id].get("check_judge")) == (0.5, None)
    assert (found[second.decision_id]["check_tests"], found[second.decision_id]["check_judge_usd"]) == (1.0, 0.25)
    assert log.n_lost == 0


# ---- with a bundle ---------------------------------------------------------------------------------


def test_what_a_plan_expects_is_what_running_it_brings_on_average(bundle):
    """Each branch in its turn, as often as the plan expects it: success and cost come out as promised."""
    router = Router.load(bundle)
    names, chat = router.bundle.manifest.tiers, [{"role": "user", "content": "What is 17 * 23?"}]
    tests = CheckModel.with_figures("tests", len(names), sensitivity=0.95, specificity=0.9, usd=0.0001)
    found = router.plan(messages=chat, checks=["agreement", tests], worth_usd=0.01)
    assert found.prompt == "What is 17 * 23?" and not found.is_direct
    means = []

    def go(step, taken, probability):
        for branch in step.branches:
            path = [*taken, (step, branch)]
            if branch.step is not None:
                go(branch.step, path, probability * branch.probability)
                continue
            texts, passes = texts_for(path)
            result = found.run(
                lambda offer, texts=texts: texts[tier_of(offer)],
                {"tests": lambda prompt, answer, passes=passes: Verdict(score=passes[answer[-1]], cost_usd=0.0001)},
                normalise=lambda text: text[0],
            )
            assert (result.tier, result.success) == (branch.returned, branch.success)
            assert tiers(result) == [step.tier for step, _ in path]
            means.append(np.array([result.success, result.cost_usd]) * probability * branch.probability)

    def tier_of(offer):
        return next(name for name, offers in found.offers.items() if offer in offers)

    def texts_for(path):
        """Answers that agree, and a check that passes them, as the branches of a path say. A text: form, then place."""
        forms = "123"
        if path[-1][1].key[1] is not None:
            two = len(path) == 2
            forms = (
                {0: "11", 1: "12"}[path[1][1].key[1]]
                if two
                else ("111", "112", "121", "122", "123")[path[-1][1].key[1]]
            )
        texts = {step.tier: f"{form}{place}" for place, ((step, _), form) in enumerate(zip(path, forms, strict=False))}
        return texts, {str(place): float(branch.key[0] or 0) for place, (_, branch) in enumerate(path)}

    go(found.first, [], 1.0)
    assert sum(means) == pytest.approx([found.success, found.cost_usd], rel=1e-3)


def test_a_bundle_answers_whatever_the_plan_is(bundle):
    router = Router.load(bundle)
    router.prove_plans()
    for dials in ({"quality": 0.9}, {"worth_usd": 0.1}, {"critical": True}, {"quality": 1.0}):
        found = router.plan("What is 17 * 23?", **dials)
        result = found.run(lambda offer: Answer("391", cost_usd=0.001))
        assert result.answer == "391" and result.cost_usd == 0.001 * len(result.attempts)
        assert found.is_direct == (len(result.attempts) == 1)
    silent = router.plan([])  # no text: the decision is a fallback
    assert silent.run(lambda offer: "391").tier == silent.decision.tier
