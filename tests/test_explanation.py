"""What a decision says would change it does change it."""

import io
import json
import re
import tomllib
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router import Policy, Router
from router.cli import main
from router.explanation import percent, usd

PROMPTS = (
    "Good morning! How are you today?",
    "Write a SQL query that returns the three newest orders of each customer.",
    "Five friends sit in a row. Anna is not next to Ben. Prove who sits in the middle, step by step.",
    "请用一句话介绍一下这家公司的退货政策。",
)
SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_factor(bundle, tier, factor, path, critical=("frontier",)):
    """A price file in which one tier's offers cost `factor` of what they do."""
    text = (bundle / "tiers.toml").read_text()
    lines = []
    for entry in tomllib.loads(text)["tiers"]:
        lines += ["[[tiers]]", f'name = "{entry["name"]}"', f"critical = {str(entry['name'] in critical).lower()}"]
        for offer in entry["offers"]:
            scale = factor if entry["name"] == tier else 1.0
            own = offer.get("self_hosted")
            price = (0.02 + 0.06) / (own["utilization"] * own["mtok_per_hour"]) if own else None
            lines += [
                "[[tiers.offers]]",
                *(f'{key} = "{offer[key]}"' for key in ("model", "provider", "region")),
                f"context_window = {offer['context_window']}",
                f"usd_per_mtok_input = {scale * (price or offer.get('usd_per_mtok_input'))!r}",
                f"usd_per_mtok_output = {scale * (price or offer.get('usd_per_mtok_output'))!r}",
            ]
    path.write_text("\n".join(lines))
    return path


@SETTINGS
@given(st.sampled_from(PROMPTS), st.floats(0.5, 1.0), st.floats(1e-5, 0.05))
def test_at_the_worth_that_is_named_first_another_tier_wins_and_just_before_it_none_does(
    router, prompt, quality, worth
):
    decision = router.route(prompt, quality=quality, worth_usd=worth)
    for is_dearer in (True, False):
        named = [
            change
            for change in decision.explain().changes
            if change.worth_usd and (decision.cost_usd[change.tier] > decision.cost_usd[decision.tier]) == is_dearer
        ]
        if not named:
            continue
        first, sign = named[0], 1 if is_dearer else -1
        assert sign * (first.worth_usd - worth) >= -1e-9 * worth
        beyond = router.route(prompt, quality=quality, worth_usd=first.worth_usd * (1 + sign * 1e-3))
        assert beyond.tier == first.tier
        middle = router.route(prompt, quality=quality, worth_usd=(worth + first.worth_usd) / 2)
        if abs(first.worth_usd - worth) > 1e-3 * worth:
            assert middle.tier == decision.tier


@SETTINGS
@given(st.sampled_from(PROMPTS), st.floats(0.5, 0.9))
def test_at_the_price_that_is_named_the_tier_wins(bundle, tmp_path_factory, prompt, quality):
    router, path = Router.load(bundle), tmp_path_factory.mktemp("prices") / "prices.toml"
    decision = router.route(prompt, quality=quality)
    for change in decision.explain().changes:
        if change.price_factor is not None:
            for factor, wins in ((change.price_factor * 0.999, True), (change.price_factor * 1.001, False)):
                router.update_prices(with_factor(bundle, change.tier, factor, path))
                assert (router.route(prompt, quality=quality).tier == change.tier) == wins


def test_a_tier_that_is_not_admissible_says_how_far_it_is(router):
    decision = router.route(PROMPTS[2], quality=1.0)
    explanation = decision.explain()
    assert decision.tier in explanation.admissible
    for change in explanation.changes:
        if change.slack is not None:
            assert change.slack == pytest.approx(max(decision.success.values()) - decision.success[change.tier])
            assert change.slack > decision.slack
            assert change.text.startswith(f"{change.tier} (") and "a lower quality would admit it" in change.text


PROMISED = st.fixed_dictionaries({}, optional={"quality": st.floats(0.5, 1.0), "worth_usd": st.floats(1e-5, 1.0)})


@SETTINGS
@given(st.sampled_from([*PROMPTS, "", "Who?", "zqx 7 %% <<>> \u0000", "Prove it. " * 400]), PROMISED, st.booleans())
def test_an_explanation_names_the_tier_what_it_costs_and_no_figure_that_the_decision_does_not_have(
    router, prompt, dials, is_critical
):
    decision = router.route(prompt, critical=is_critical, **dials)
    explanation = decision.explain()
    text = " ".join([*explanation.why, *(change.text for change in explanation.changes)])
    assert explanation.why[0].startswith(f"{decision.tier} answers: ")
    assert f"{decision.tier} is right with {percent(decision.success[decision.tier])} probability" in text
    assert f"costs {usd(decision.cost_usd[decision.tier])}" in text
    assert len(decision.eligible) == 1 or "The choice costs " in text
    worths = [change.worth_usd for change in explanation.changes if change.worth_usd is not None]
    known = {usd(amount) for amount in (*decision.cost_usd.values(), decision.worth_usd, *worths)}
    assert set(re.findall(r"USD [0-9.e-]*[0-9]", text)) <= known
    shown = set(re.findall(r"[(h] ?(\d+\.\d %)", text))
    assert shown <= {percent(success) for success in decision.success.values()}
    for tier, figure, amount in re.findall(r"(edge|distilled|frontier) \((\d+\.\d %), (USD [0-9.]*[0-9])\)", text):
        assert (figure, amount) == (percent(decision.success[tier]), usd(decision.cost_usd[tier]))
    assert "familiarity 1.00" not in text


def test_the_cost_of_the_choice_is_told_as_a_share_of_who_is_better(router):
    decision = router.route(PROMPTS[3], quality=0.98)
    assert decision.tier == "distilled" and decision.success["frontier"] > decision.success["distilled"]
    share = decision.cost_usd["distilled"] / decision.cost_usd["frontier"]
    assert f"The choice costs {100 * share:.0f} % of frontier, which is more likely" in str(decision.explain())


def test_an_explored_decision_says_so_and_what_it_costs(bundle):
    curious = Router(Router.load(bundle).bundle, Policy(exploration=0.9))
    explored = next(found for found in (curious.route(PROMPTS[0]) for _ in range(50)) if found.propensity > 0.5)
    text = str(explored.explain())
    assert f"{explored.tier} answers to explore" in text and f"{explored.tier} is right with" in text
    assert "What would change the rule's choice of" in text


@pytest.mark.parametrize(
    ("amount", "shown"), [(0, "0"), (0.00287123, "0.00287"), (12.5, "12.5"), (1234.5, "1230"), (4.2e-7, "0.00000042")]
)
def test_money_has_three_digits_and_no_exponent(amount, shown):
    assert usd(amount) == f"USD {shown}"


def test_tiers_that_are_not_eligible_are_not_explained(router):
    decision = router.route(PROMPTS[0], regions=["local"], worth_usd=1.0)
    assert decision.eligible == ("edge",) and decision.explain().changes == ()
    nowhere = router.route(PROMPTS[0], regions=[])
    assert nowhere.fallback and nowhere.eligible == () and str(nowhere.explain()) == nowhere.reason


def test_of_a_critical_request_no_lower_quality_is_offered(tmp_path, bundle):
    router = Router.load(bundle)
    router.update_prices(with_factor(bundle, "edge", 1.0, tmp_path / "prices.toml", critical=("distilled", "frontier")))
    explanation = router.route(PROMPTS[2], critical=True).explain()
    assert [change.slack is not None for change in explanation.changes] == [True]
    assert "below the highest success" in str(explanation) and "lower quality" not in str(explanation)


def test_the_command_explains(bundle, capsys, monkeypatch):
    assert main(["route", "--bundle", str(bundle), "--explain", "--quality", "0.8", PROMPTS[0]]) == 0
    assert "is right with" in capsys.readouterr().out
    assert main(["route", "--bundle", str(bundle), "--explain", "--json", PROMPTS[0]]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["explanation"]["tier"] == document["tier"]
    assert {change["tier"] for change in document["explanation"]["changes"]} == set(document["eligible"]) - {
        document["tier"]
    }
    stdin = SimpleNamespace(buffer=io.BytesIO(json.dumps({"prompt": PROMPTS[0]}).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["route", "--bundle", str(bundle), "--explain", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["explanation"]["tier"]
