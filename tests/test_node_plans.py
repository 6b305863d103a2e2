"""Plans of the Node service are those of Python: the same tree of calls, the same chances."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from test_node_example import EXAMPLES, PASSAGES, Service, install, serving, start_and_fail
from test_plans import resealed

from router import Router
from router.plans.planner import PLAN_FILES

PROMPTS = [
    *PASSAGES, "", "Hello!", PASSAGES[2] * 150, "word " * 600,
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive?",
]  # fmt: skip
WORTHS = [0, 0.0005, 0.005, 0.05, 1]
CHECKS = [["agreement"], ["rubric"], ["rubric", "agreement"], []]
PROMPT = "What is 17 * 23?"


@pytest.fixture(scope="module")
def node() -> None:
    install(EXAMPLES / "node")


@pytest.fixture(scope="module")
def service(node, bundle, tmp_path_factory) -> Iterator[Service]:
    with serving(bundle, tmp_path_factory.mktemp("log") / "stderr") as running:
        yield running


@pytest.fixture(scope="module")
def python(bundle) -> Router:
    return Router.load(bundle)


def plan_of(service: Service, request: dict) -> dict:
    status, plan = service.ask("POST", "/plan", json.dumps(request).encode())
    assert status == 200, plan
    return plan


def assert_same_plan(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in ("checks", "is_direct", "quality", "worth_usd", "promised"):
        assert found[name] == expected[name]
    assert found["success"] == pytest.approx(expected["success"], abs=1e-4)
    assert found["cost_usd"] == pytest.approx(expected["cost_usd"], rel=1e-4)
    assert found["decision"]["tier"] == expected["decision"]["tier"]
    assert_same_step(found["steps"], expected["steps"])


def assert_same_step(found: dict, expected: dict) -> None:
    names = ("tier", "model", "is_checked", "compared")
    assert [found[name] for name in names] == [expected[name] for name in names]
    for branch, other in zip(found["branches"], expected["branches"], strict=True):
        assert list(branch) == list(other)
        assert (branch["seen"], branch["returned"]) == (other["seen"], other["returned"])
        assert branch["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert (branch["step"] is None) == (other["step"] is None)
        if branch["step"] is None:
            assert branch["success"] == pytest.approx(other["success"], abs=1e-4)
        else:
            assert_same_step(branch["step"], other["step"])


# ---- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checks", CHECKS, ids="+".join)
def test_every_plan_is_pythons(service, python, checks):
    n_steps = set()
    for number, (prompt, worth) in enumerate(product(PROMPTS, WORTHS)):
        request = {"prompt": prompt, "checks": checks, "worth_usd": worth, "max_calls": (3, 3, 2, 3, 1, 3)[number % 6]}
        plan = python.plan(**request)
        assert_same_plan(plan_of(service, request), json.loads(plan.to_json()))
        n_steps.add(len(plan.steps))
    assert len(n_steps) > 1 or not checks


def test_checks_of_several_classes_are_read_as_in_python(node, bundle, tmp_path):
    planner = Router.load(bundle).bundle.planner
    rubric, n_tiers = planner.known.verifiers["rubric"], planner.n_tiers
    tier = ((0.6, 0.05), (0.3, 0.25), (0.1, 0.7))
    graded = replace(
        rubric, name="graded", thresholds=(0.25, 0.755), verdicts=((tier,) * n_tiers,) * 2, usd=(1e-6,) * n_tiers
    )
    copy = resealed(
        bundle,
        tmp_path / "bundle",
        checks=replace(planner.known, verifiers={"rubric": rubric, "graded": graded}),
        calibration=replace(
            planner.calibration, scores=dict.fromkeys(("rubric", "graded"), planner.calibration.scores["rubric"])
        ),
    )
    python, seen = Router.load(copy), set()
    with serving(copy, tmp_path / "log") as running:
        for prompt, worth, checks in product(PROMPTS[:4], WORTHS[1:], (["graded"], ["rubric", "agreement", "graded"])):
            request = {"prompt": prompt, "checks": checks, "worth_usd": worth}
            plan = python.plan(**request)
            assert_same_plan(plan_of(running, request), json.loads(plan.to_json()))
            seen |= {branch.seen for step in plan.steps for branch in step.branches}
    assert {"graded below 0.25", "graded at least 0.755", "graded below 0.25, rubric fails"} <= seen


def test_the_worth_that_python_proves_for_a_quality_gives_the_same_plan(service, python):
    """Which worth that is depends on prices and on logged answers, so only Python can say it."""
    python.prove_plans(["rubric"])
    plans = [python.plan(prompt, checks=["rubric"], quality=0.9) for prompt in PROMPTS]
    assert any(plan.promised for plan in plans) and not all(plan.is_direct for plan in plans)
    for prompt, plan in zip(PROMPTS, plans, strict=True):
        found = plan_of(service, {"prompt": prompt, "checks": ["rubric"], "worth_usd": plan.worth_usd})
        assert_same_step(found["steps"], json.loads(plan.to_json())["steps"])
        assert found["quality"] is None and not found["promised"]


@pytest.mark.parametrize(
    "request_",
    [{"prompt": PROMPT, "critical": True}, {"prompt": 3}, {}, {"prompt": PROMPT, "regions": ["mars"]},
     {"prompt": PROMPT, "regions": ["eu", "us"]}, {"messages": [{"role": "user", "content": PROMPT}], "checks": None}],
    ids=str,
)  # fmt: skip
def test_a_request_of_any_kind_gets_pythons_plan(service, python, request_):
    request = {**request_, "worth_usd": 0.02}
    assert_same_plan(plan_of(service, request), json.loads(python.plan(**request).to_json()))


@pytest.mark.parametrize(
    ("request_", "trouble"),
    [({}, "worth_usd is nothing; expected"), ({"worth_usd": -1}, "worth_usd is -1; expected"),
     ({"worth_usd": 1e300}, "from 0 to 1e12"), ({"worth_usd": "1"}, "worth_usd is"),
     ({"worth_usd": 1, "quality": 0.9}, "quality is 0.9; expected worth_usd"),
     ({"worth_usd": 1, "checks": ["tests"]}, 'has not learned the check "tests"; expected some of: agreement, rubric'),
     ({"worth_usd": 1, "checks": ["__proto__"]}, "has not learned the check"),
     ({"worth_usd": 1, "checks": "agreement"}, "expected a list of names"),
     ({"worth_usd": 1, "checks": [3]}, "expected a list of names"),
     ({"worth_usd": 1, "max_calls": 4}, "max_calls is 4; expected 1 to 3"),
     ({"worth_usd": 1, "max_calls": 1.5}, "max_calls is 1.5"), ({"worth_usd": 1, "calls": 2}, "unknown calls"),
     ({"worth_usd": 1, "context_tokens": -1}, "context_tokens is -1")],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_planned_is_refused_with_what_was_found_and_expected(service, request_, trouble):
    status, answer = service.ask("POST", "/plan", json.dumps({"prompt": "my secret", **request_}).encode())
    assert status == 400 and trouble in answer["error"]
    assert "secret" not in service.log.read_text()


def test_bodies_and_methods_are_bounded_as_for_routing(service):
    assert service.ask("GET", "/plan")[0] == 405
    assert service.ask("POST", "/plan", b"[]")[0] == service.ask("POST", "/plan", b"{")[0] == 400
    assert service.ask("POST", "/plan", b" " * (5 * 1024 * 1024))[0] == 413


def test_a_bundle_that_makes_no_plans_routes(node, bundle, tmp_path):
    copy = resealed(bundle, tmp_path / "bundle", without=PLAN_FILES)
    with serving(copy, tmp_path / "log") as running:
        request = {"prompt": PROMPT, "worth_usd": 0.02}
        found, expected = plan_of(running, request), Router.load(copy).plan(**request)
    assert_same_plan(found, json.loads(expected.to_json()))
    assert found["reason"].startswith("direct: the bundle has learned no plans; ")


@pytest.mark.parametrize(
    "change", [{"tier": "nobody"}, {"is_direct": None}, {"success": 0.5}, {"cost_usd": 1}], ids=str
)
def test_a_bundle_that_plans_otherwise_does_not_start(node, bundle, tmp_path, change):
    lines = (bundle / "golden_plans.jsonl").read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), **change})
    copy = resealed(bundle, tmp_path / "bundle", golden_plans="\n".join(lines) + "\n")
    assert "of 20 plans are others" in start_and_fail(copy)


def test_a_bundle_without_its_golden_plans_does_not_start(node, bundle, tmp_path):
    empty = resealed(bundle, tmp_path / "empty", golden_plans="")
    assert "0 of 0 plans are others" in start_and_fail(empty)
    missing = resealed(bundle, tmp_path / "missing", without=("golden_plans.jsonl",))
    assert "golden_plans.jsonl missing" in start_and_fail(missing)
