"""Laws of the policy in the library: what its file may say, whom its rules admit, and what the promise then covers."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import DialError, Policy, PolicyError, Router, Watcher
from router.clients import MASTER_KEY_NAME, Client, ClientRights
from router.errors import RefusedError
from router.policy_file import parse_policy, read_policy
from router.portfolio.tiers import Offer
from router.request import RequestDials
from router.restrictions import Restrictions

DOCS = Path(__file__).parent.parent / "docs" / "policy.md"
PROMPTS = ["What is 17 * 23?", "Prove that sqrt(2) is irrational.", "Bonjour", "Write a poem on rain. " * 30, ""]
REGIONS, PROVIDERS = ["local", "cn", "EU", "us"], ["local", "sim-east", "sim-west", "sim-cloud"]
TIERS = ["edge", "distilled", "frontier"]


def some_of(names: list[str]) -> st.SearchStrategy:
    return st.none() | st.lists(st.sampled_from(names), min_size=1, unique=True)


restrictions = st.builds(
    Restrictions,
    regions=some_of(REGIONS),
    providers=some_of(PROVIDERS),
    tiers=some_of(TIERS),
    critical=st.booleans(),
    max_usd=st.none() | st.floats(1e-6, 5e-3),
    exploration=st.booleans(),
)


@pytest.fixture(scope="module")
def plain(bundle) -> Router:
    return Router.load(bundle)


def under(router: Router, policy: Policy) -> Router:
    return Router(router.bundle, policy)


def in_class(router: Router, **rules) -> Router:
    return under(router, Policy(classes={"c": Restrictions(**rules)}))


# ---- whom the rules admit --------------------------------------------------------------------------


@settings(max_examples=60)
@given(every=restrictions, of_class=restrictions, regions=some_of(REGIONS), prompt=st.sampled_from(PROMPTS))
def test_who_may_answer_keeps_every_rule_and_what_the_request_asks_for(plain, every, of_class, regions, prompt):
    router = under(plain, Policy(every_request=every, classes={"c": of_class}, exploration=0.5))
    call = router.snapshot.call(worth_usd=1e-3, regions=regions, request_class="c")
    decision, call = call.decide(prompt)
    may_answer = [*call.offers_to_try(decision), *([decision.offer] if decision.offer else [])]
    for offer in may_answer:
        tier = router.prices.tier_of[offer.model]
        assert regions is None or offer.region in {name.lower() for name in regions}
        for rules in (every, of_class):
            assert rules.admits(tier, offer)
            if rules.max_usd is not None and decision.cost_usd:
                usd = decision.cost_usd[tier] if offer == decision.offer else 0.0
                assert usd <= rules.max_usd * (1 + 1e-6)
    assert decision.request_class == "c" and decision.fallback == (not decision.eligible)
    if decision.offer is None:
        assert decision.fallback and "fallback" in decision.reason
    if not (every.exploration and of_class.exploration):
        assert decision.propensity == 1


@settings(max_examples=60)
@given(of_class=restrictions, quality=st.sampled_from([0.8, 0.9, 0.95]), prompt=st.sampled_from(PROMPTS))
def test_the_promise_covers_a_choice_only_within_the_slack_of_all_that_could_answer(plain, of_class, quality, prompt):
    router = under(plain, Policy(classes={"c": of_class}))
    decision = router.route(prompt, quality=quality, request_class="c")
    if decision.promised:
        assert decision.success[decision.tier] >= max(decision.success.values()) - decision.slack
    elif not decision.fallback and not of_class.critical and plain.route(prompt, quality=quality).promised:
        assert "the promise does not cover it" in decision.reason


def test_a_policy_whose_rules_admit_all_changes_no_decision(plain):
    generous = Restrictions(regions=REGIONS, providers=PROVIDERS, tiers=TIERS, max_usd=1e6)
    router = under(plain, Policy(every_request=generous))
    for prompt in PROMPTS:
        for dials in ({}, {"quality": 0.9}, {"worth_usd": 0.01}, {"critical": True}):
            assert router.route(prompt, **dials) == plain.route(prompt, **dials)
    assert router.route_batch(PROMPTS) == plain.route_batch(PROMPTS)


def test_data_that_may_not_leave_the_device_stay_there_whatever_is_asked(plain):
    router = in_class(plain, tiers=["edge"])
    for dials in ({"quality": 1.0}, {"worth_usd": 1e6}, {"regions": ["local"]}):
        decision = router.route(PROMPTS[1], request_class="c", **dials)
        assert decision.tier == "edge" and not decision.promised
        assert "by class c distilled, frontier may not answer" in decision.reason or "regions" in dials
    nobody = router.route(PROMPTS[1], request_class="c", regions=["eu"])
    assert nobody.offer is None and nobody.fallback


def test_an_offer_without_a_region_is_in_none():
    stateless = Offer("m", "p", "", 1, 1.0, 1.0)
    assert not Restrictions(regions=["eu"]).admits("t", stateless) and Restrictions().admits("t", stateless)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"regions": ["mars"]}, "class c allows the regions mars; the offers that could answer have cn, eu, local, us"),
        ({"providers": ["nobody"]}, "class c allows the providers nobody"),
        ({"tiers": ["edge"], "regions": ["eu"]}, "class c: no offer keeps all of its rules"),
        ({"max_usd": 1e-9}, "class c allows a max_usd of 1e-09 for a request; the cheapest offer"),
    ],
)
@pytest.mark.parametrize("prompt", [PROMPTS[1], None, "word " * 400_000], ids=["text", "unread", "too long"])
def test_where_nobody_may_answer_the_reason_names_the_rule(plain, rules, said, prompt):
    decision, call = in_class(plain, **rules).snapshot.call(request_class="c").decide(prompt)
    assert decision.offer is None and decision.fallback and call.offers_to_try(decision) == []
    assert said in decision.reason or prompt is None and "cannot be read" in decision.reason


def test_rules_that_only_together_admit_nobody_are_named_together(plain):
    policy = Policy(every_request=Restrictions(regions=["eu"]), classes={"c": Restrictions(providers=["sim-cloud"])})
    assert "the rules of the policy and class c together" in under(plain, policy).route("x", request_class="c").reason


def test_a_class_is_critical_and_explores_as_it_says(plain):
    assert "critical request" in in_class(plain, critical=True).route(PROMPTS[1], request_class="c").reason
    policy = Policy(exploration=0.9, classes={"c": Restrictions(exploration=False), "d": Restrictions()})
    router = under(plain, policy)
    assert all(router.route(PROMPTS[0], worth_usd=0.0, request_class="c").propensity == 1 for _ in range(20))
    assert any(router.route(PROMPTS[0], worth_usd=0.0, request_class="d").propensity < 1 for _ in range(20))


def test_an_unknown_class_is_an_error_that_names_the_known_ones(plain):
    router = in_class(plain)
    for name in ("x", 1, ["c"]):
        with pytest.raises(DialError, match="expected c"):
            router.route("Hello", request_class=name)
    with pytest.raises(DialError, match="the policy has none"):
        plain.route("Hello", request_class="c")


# ---- the largest cost of one request ---------------------------------------------------------------


def test_the_limit_counts_several_answers_and_the_longest_that_the_request_takes(plain):
    free = plain.route(PROMPTS[1], quality=1.0)
    router = in_class(plain, max_usd=free.cost_usd["frontier"] * 1.01)
    call = router.snapshot.call(quality=1.0, request_class="c")
    assert call.route(PROMPTS[1]).tier == free.tier == "frontier"
    assert call.answered(5, float("inf")).route(PROMPTS[1]).tier != "frontier"
    assert call.answered(5, 1).route(PROMPTS[1]).tier == "frontier"


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 1.0, 1.2])
def test_a_plan_is_expected_to_cost_at_most_what_its_class_allows(plain, share):
    for worth in (0.01, 0.03, 1.0):
        free = plain.plan(PROMPTS[0], checks=["agreement"], worth_usd=worth)
        router = in_class(plain, max_usd=free.cost_usd * share)
        plan = router.plan(PROMPTS[0], checks=["agreement"], worth_usd=worth, request_class="c")
        assert plan.decision.fallback or plan.cost_usd <= free.cost_usd * share * (1 + 1e-6)
        assert not plan.decision.fallback or not any(plan.offers.values())


# ---- offers that share a name ----------------------------------------------------------------------


def test_who_asks_by_a_models_name_never_reaches_its_namesake_in_another_region(plain, tmp_path):
    text = (plain.bundle.path / "tiers.toml").read_text()
    (tmp_path / "prices.toml").write_text(text.replace('"sim/distilled-14b-eu"', '"sim/distilled-14b"'))
    router = in_class(plain, regions=["eu"])
    router.update_prices(tmp_path / "prices.toml")
    call = router.snapshot.call(request_class="c")
    assert call.route("Hello").offer.region == "eu"
    decision, call = call.asked_by_model().decide("Hello")
    assert call.offers_to_try(decision) == [] and "a model name of its own" in decision.reason


# ---- what clients may ask for ----------------------------------------------------------------------

ranges = st.none() | st.tuples(st.floats(0, 1), st.floats(0.01, 1)).map(lambda pair: tuple(sorted(pair)))


@given(
    quality=ranges,
    worth_usd=ranges,
    asked=st.builds(
        RequestDials,
        quality=st.none() | st.floats(0.01, 1),
        worth_usd=st.none() | st.floats(0, 1),
        critical=st.booleans(),
    ),
    default=st.floats(0.01, 1),
)
def test_the_dials_in_force_are_in_their_ranges_or_the_request_is_refused(quality, worth_usd, asked, default):
    rights = ClientRights(name="e", quality=quality, worth_usd=worth_usd)
    try:
        found = rights.dials_for(asked, default)
    except RefusedError as error:
        assert error.rule.startswith("e: may_set") and error.allowed and error.found and error.remedy
        return
    assert not found.critical
    is_free = found.quality is None and found.worth_usd is not None  # Then money decides alone, at any quality.
    in_force = 0.0 if is_free else default if found.quality is None else found.quality
    if quality is not None:
        assert quality[0] <= in_force <= quality[1] or is_free and quality[0] == 0
    if worth_usd is not None:
        assert worth_usd[0] <= (found.worth_usd or 0.0) <= worth_usd[1]


def test_one_entry_holds_for_a_client_its_key_before_its_team_before_all_others():
    named = "".join(f"[{entry}]\nmay_set = {{ quality = [0, {most}] }}\n" for entry, most in (
        ("keys.a", 0.1), (f"keys.{'0' * 64}", 0.2), ("teams.t", 0.3), (f"keys.{MASTER_KEY_NAME}", 0.4), ("others", 0.5),
    ))  # fmt: skip
    clients = parse_policy(named).clients
    for client, most in (
        (Client("f" * 64, "a", "t"), 0.1), (Client("0" * 64, "x", "t"), 0.2), (Client("f" * 64, "x", "t"), 0.3),
        (Client("f" * 64, "x", "u", "t"), 0.3), (Client(MASTER_KEY_NAME), 0.4), (Client(), 0.5),
        (Client("f" * 64, "0" * 64), 0.5), (Client("f" * 64, MASTER_KEY_NAME), 0.5),  # An alias is no hash.
    ):  # fmt: skip
        assert clients.rights(client).quality == (0, most)


def test_a_client_without_an_entry_is_refused_unless_the_file_says_nothing_of_clients():
    with pytest.raises(RefusedError, match="policy.toml allows only the keys and teams that it names; found key b"):
        parse_policy("[keys.a]").clients.rights(Client("0" * 64, "b"))
    rights = parse_policy('regions = ["eu"]').clients.rights(Client("0" * 64, "b"))
    assert rights.quality == (0, 1) and rights.worth_usd == (0, 0.1) and not rights.other_models


# ---- the file --------------------------------------------------------------------------------------


def test_one_message_names_all_that_is_wrong():
    with pytest.raises(PolicyError) as refusal:
        parse_policy(
            'regions = []\nfoo = 1\n[classes."a b"]\nmax_usd = -1\n[classes.c]\nregions = "eu"\ncritical = 1\n'
            '[keys.k]\nclasses = ["d"]\nmay_set = { quality = [1, 0.5], worth = 1 }\n'
            "[teams.t]\n[others]\nclasses = 3\n",
            "folder/policy.toml",
        )
    lines = str(refusal.value).splitlines()
    for place, said in (
        ("folder/policy.toml", "unknown foo"), ("folder/policy.toml", "regions is []"),
        ("[classes.a b]", "letters"), ("[classes.a b]", "max_usd is -1"), ("[classes.c]", "regions is 'eu'"),
        ("[classes.c]", "critical is 1"), ("[keys.k]", "no class d"), ("[keys.k]", "quality is [1, 0.5]"),
        ("[keys.k]", "unknown worth"), ("[teams.t]", "classes is missing"), ("[others]", "classes is 3"),
    ):  # fmt: skip
        assert any(place in line and said in line for line in lines), (place, said)


@given(
    text=st.text(max_size=200) | st.from_regex(r'\[(keys|classes|others|teams)[.a-z"]*\]\n[a-z_]+ = .*', fullmatch=True)
)
def test_any_text_is_a_policy_or_a_policy_error(text):
    try:
        parse_policy(text)
    except PolicyError as error:
        assert "policy.toml" in str(error)


def test_a_rule_for_a_tier_that_the_bundle_lacks_is_refused(plain):
    with pytest.raises(PolicyError, match=r"\[classes.c\]: tiers names edgy; expected any of the bundle's"):
        under(plain, parse_policy('[classes.c]\ntiers = ["edgy"]'))


def test_a_router_follows_the_file_and_a_broken_one_never_replaces_a_good_one(plain, tmp_path):
    path, router = tmp_path / "policy.toml", under(plain, Policy(default_quality=0.9))
    watcher = Watcher(router, policy=path)
    path.write_text('[classes.c]\nregions = ["eu"]\n')
    assert watcher.look() and router.route("Hello", request_class="c").offer.region == "eu"
    assert router.policy.default_quality == 0.9, "what the file does not speak of stays"
    for broken in ("regions = [", '[classes.c]\ntiers = ["x"]', "\x00", "a = " + "[" * 20_000, "1" * 2**20):
        path.write_text(broken)
        with pytest.raises(PolicyError):
            watcher.look()
        assert router.route("Hello", request_class="c").offer.region == "eu"
    path.write_text('[classes.c]\nregions = ["us"]\n')
    assert watcher.look() and not watcher.look()
    assert router.route("Hello", request_class="c").offer.region == "us"
    path.unlink()
    with pytest.raises(PolicyError, match="cannot be read"):
        read_policy(path)


def test_the_example_of_the_page_is_a_policy_and_does_what_the_page_says(plain):
    [text] = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    policy = parse_policy(text)
    router = under(plain, policy)
    assert router.route(PROMPTS[1], request_class="internal").offer.region in ("eu", "local")
    assert router.route(PROMPTS[1], quality=1.0, request_class="personal-data").tier == "edge"
    billing = policy.clients.rights(Client(key_alias="billing"))
    assert billing.dials_for(RequestDials(), 0.98).request_class == "personal-data"
    assert billing.dials_for(RequestDials(), 0.98) == billing.dials_for(
        RequestDials(request_class="personal-data"), 0.98
    )
    with pytest.raises(RefusedError, match="quality"):
        billing.dials_for(RequestDials(quality=0.5), 0.98)
    with pytest.raises(RefusedError, match="class 'public'"):
        billing.dials_for(RequestDials(request_class="public"), 0.98)
    assert policy.clients.rights(Client(team_alias="research")).critical
    assert not replace(policy.clients.rights(Client()), name="").critical


@pytest.mark.parametrize(
    "rules",
    [{"regions": []}, {"regions": "eu"}, {"providers": [""]}, {"tiers": [1]}, {"critical": 1}, {"max_usd": 0},
     {"max_usd": True}, {"max_usd": float("nan")}, {"exploration": None}],
)  # fmt: skip
def test_rules_of_another_type_are_refused(rules):
    with pytest.raises(DialError, match=next(iter(rules))):
        Restrictions(**rules)
