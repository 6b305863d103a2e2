"""What `evaluate` says of a bundle, and on what."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import training.evaluation.training_data
from router.bundle.bundle import Bundle
from router.errors import PriceError
from router.portfolio.prices import PriceTable
from training import TrainingConfig, evaluate, train
from training.dial.dial import DIAL_QUALITIES
from training.errors import LogError
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.evaluate import evaluate_table
from training.evaluation.metrics import FIGURES, Interval
from training.evaluation.net_value import break_evens
from training.evaluation.training_data import TrainingData
from training.log.split import test_mask as held_out_mask
from training.reports.evaluation_tables import first_table
from training.reports.figures import cost_quality_figure
from training.reports.terminal import training_text

KEYS_OF_THE_CONTRACT = {"n_prompts", "tiers", "single", "router", "baselines", "calibration", "dial"}
MORE_KEYS = {
    "cost_explained_by_tokens",
    "verdict", "bundle_id", "n_trained_on", "n_incomplete", "estimated_cost_share", "best_tier", "best_baseline",
    "lead_aiq", "n_not_drawn", "off_policy", "segments", "output_tokens", "cost_predicted_over_measured", "net_value",
    "chosen_dials", "plans", "headline",
}  # fmt: skip
BASELINES = {"random", "cheapest", "strongest", "oracle", "knn", "kmeans", "linear"}


@pytest.fixture(scope="module")
def sample(request):
    folder = request.config.rootpath / "data"
    return folder / "sample-log.parquet", folder / "tiers.toml"


@pytest.fixture(scope="module")
def log(sample):
    return pd.read_parquet(sample[0])


@pytest.fixture(scope="module")
def held_out(trained, log):
    """The rows that training did not see."""
    return log[log.question_key.isin(trained.log.groups[held_out_mask(trained.log.groups, 0.2, 0)])]


@pytest.fixture(scope="module")
def unseen(held_out):
    """Those of a hundred prompts."""
    return held_out[held_out.question_key.isin(sorted(held_out.question_key.unique())[:100])]


@pytest.fixture(scope="module")
def two_tiers(sample, log, tmp_path_factory):
    """A run on two tiers and few prompts."""
    folder = tmp_path_factory.mktemp("two")
    edge, _, frontier = sample[1].read_text().split("[[tiers]]\n")[1:]
    (folder / "tiers.toml").write_text("".join(f"[[tiers]]\n{tier}" for tier in (edge, frontier)))
    some = log[log.question_key.isin(sorted(log.question_key.unique())[:200])]
    return train(some, folder / "tiers.toml", folder / "two", TrainingConfig(), tracking_uri="none")


def assert_figure(figure):
    assert set(figure) == {"value", "low", "high"}
    assert figure["low"] <= figure["value"] <= figure["high"]


def assert_policy(policy, *, n_tiers):
    assert set(policy) == {*FIGURES, "curve"}
    for name in FIGURES[:5]:
        assert_figure(policy[name])
    for name in FIGURES[5:]:
        assert (policy[name] is None) or n_tiers == 2
    assert policy["curve"] == sorted(policy["curve"])
    assert all(cost >= 0 and 0 <= accuracy <= 1 for cost, accuracy in policy["curve"])


# ---- the document ----------------------------------------------------------------------------------


def test_the_document_has_the_keys_of_the_contract_and_known_ones_beside(trained):
    document = trained.evaluation.to_json()
    assert set(document) == KEYS_OF_THE_CONTRACT | MORE_KEYS
    assert document == json.loads(json.dumps(document, allow_nan=False))
    assert document["tiers"] == ["edge", "distilled", "frontier"]
    assert set(document["baselines"]) == BASELINES
    for policy in (document["router"], *document["baselines"].values()):
        assert_policy(policy, n_tiers=3)
    assert list(document["single"]) == document["tiers"]
    for single in document["single"].values():
        assert set(single) == {"accuracy", "usd_per_1k", "usd_per_correct", "output_tokens_per_correct"}
        assert_figure(single["accuracy"])
        assert_figure(single["usd_per_1k"])
    assert set(document["calibration"]) == {"ece", "brier", "per_tier"}
    assert_figure(document["calibration"]["ece"])
    assert_figure(document["calibration"]["brier"])
    assert [point["quality"] for point in document["dial"]] == list(DIAL_QUALITIES)
    for point in document["dial"]:
        assert {"quality", "slack", "promised", "accuracy", "usd_per_1k", "kept", "cost_of_best"} <= set(point)
        for name in ("accuracy", "usd_per_1k", "kept"):
            assert_figure(point[name])


def test_plans_and_their_rivals_have_the_same_figures(trained):
    plans = trained.evaluation.to_json()["plans"]
    assert set(plans) == {"agreement", "rubric"}
    figures = {"curve", "cost_at_95", "cost_at_98", "cost_at_100", "max_kept"}
    for found in plans.values():
        assert figures <= set(found)
        for rival in ("direct", "fixed_cascade", "threshold_cascade", "cascade_routing"):
            assert set(found[rival]) == figures
            assert found[rival]["curve"] == sorted(found[rival]["curve"])
            for name in figures - {"curve"}:
                assert_figure(found[rival][name])
        for name in ("log_likelihood", "if_independent", "gain"):
            assert_figure(found["joint"][name])
        assert_figure(found["conditionals"]["right after a failure"]["calibration_error"])
    assert "right where two agree" in plans["agreement"]["conditionals"]


def test_two_tiers_have_apgr_and_three_have_none(trained, two_tiers):
    three, two = trained.evaluation.to_json(), two_tiers.evaluation.to_json()
    for name in ("apgr", "cpt50", "cpt80"):
        assert three["router"][name] is None
        assert_figure(two["router"][name])
    assert two["baselines"]["oracle"]["apgr"]["value"] > two["router"]["apgr"]["value"] > 0.5
    assert two["baselines"]["random"]["apgr"]["value"] == 0.5
    for policy in (two["router"], *two["baselines"].values()):
        assert_policy(policy, n_tiers=2)


def test_the_headline_calibration_is_that_of_the_worst_tier(trained):
    calibration = trained.evaluation.to_json()["calibration"]
    assert calibration["ece"]["value"] == max(tier["ece"]["value"] for tier in calibration["per_tier"].values())


def test_figures_of_single_tiers_and_baselines_are_those_of_the_log(trained):
    held_out = trained.log.rows(held_out_mask(trained.log.groups, 0.2, 0))
    complete = np.isfinite(held_out.correct).all(axis=1)
    evaluation = trained.evaluation
    assert evaluation.n_prompts == complete.sum()
    assert evaluation.n_incomplete == (~complete).sum()
    for k, tier in enumerate(held_out.tiers):
        accuracy, usd_per_1k = evaluation.single[tier]
        assert accuracy.value == pytest.approx(held_out.correct[complete, k].mean(), rel=1e-5)
        assert usd_per_1k.value == pytest.approx(held_out.cost_usd[complete, k].mean() * 1000, rel=1e-5)
    best = evaluation.single[evaluation.best_tier]
    assert evaluation.baselines["strongest"].curve == [pytest.approx((best[1].value, best[0].value), rel=1e-5)]
    by_oracle = (held_out.correct[complete] >= 0.5).any(axis=1).mean()
    assert evaluation.baselines["oracle"].curve[0][1] == pytest.approx(by_oracle, abs=0.02)


def test_every_share_of_the_dial_adds_up_and_what_it_keeps_is_relative_to_the_best_tier(trained):
    evaluation = trained.evaluation
    np.testing.assert_allclose(evaluation.shares.sum(axis=1), 1)
    best = evaluation.single[evaluation.best_tier][0].value
    for point in evaluation.dial:
        assert point.kept.value == pytest.approx(point.accuracy.value / best, rel=1e-5)
    cost = [point.usd_per_1k.value for point in evaluation.dial]
    assert cost[0] < cost[-1]


# ---- on what ---------------------------------------------------------------------------------------


def alike(first, second):
    """The same documents but for the last digits of floats: sums in float32 depend on where arrays lie in memory."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[name], second[name]) for name in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(alike, first, second))
    return first == (pytest.approx(second, rel=1e-5) if isinstance(first, float) else second)


def test_prompts_that_were_trained_on_are_never_judged(trained, sample):
    """On the full log, evaluate says what training said of the part it held out."""
    again, first = (evaluation.to_json() for evaluation in (evaluate(trained.bundle, sample[0]), trained.evaluation))
    assert again.pop("n_trained_on") == trained.manifest.training["n_trained_on"]
    assert first.pop("n_trained_on") == 0
    for name in KEYS_OF_THE_CONTRACT - {"baselines"}:
        assert alike(again[name], first[name]), name
    for name in BASELINES:
        found, expected = again["baselines"][name]["aiq"], first["baselines"][name]["aiq"]
        assert found["value"] == pytest.approx(expected["value"], abs=0.002)


def test_nothing_left_to_judge_is_an_error_that_says_why(trained, log, unseen):
    part = TrainingData.load(trained.bundle)
    seen = log[log.question_key.isin(part.groups[:100].tolist())]
    with pytest.raises(LogError, match=r"no prompt to judge: .* were trained on"):
        evaluate(trained.bundle, seen)
    with pytest.raises(LogError, match="lack an outcome of some tier"):
        evaluate(trained.bundle, unseen[~unseen.model.str.contains("frontier")])


def test_without_its_training_part_a_bundle_is_not_judged(trained, unseen, tmp_path):
    bundle = replace(Bundle.load(trained.bundle), path=tmp_path / "elsewhere")
    with pytest.raises(LogError, match="leave trained-on prompts out"):
        evaluate(bundle, unseen)


def test_where_no_offer_is_eligible_the_fallback_is_judged(trained):
    bundle = Bundle.load(trained.bundle)
    tiny = PriceTable.parse(re.sub(r"context_window = \d+", "context_window = 1", bundle.prices.text))
    shipped = BundleGraph(replace(bundle, prices=tiny))
    choices = shipped.choices(shipped.estimates(["one", "two"]), worth_usd=0.0, slack=1.0)
    assert [bundle.manifest.tiers[choice] for choice in choices] == [bundle.manifest.best_tier] * 2


def test_a_tier_without_training_outcomes_is_refused_before_any_work(sample, log, tmp_path):
    with pytest.raises(LogError, match="no training outcome of frontier"):
        train(log[~log.model.str.contains("frontier")], sample[1], tmp_path / "a", tracking_uri="none")
    assert not (tmp_path / "a").exists()


# ---- the verdict -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lead", "words"),
    [
        (Interval(0.02, 0.01, 0.03), "The router beats the best baseline:"),
        (Interval(0.01, -0.01, 0.03), "The router is ahead of the best baseline, but within noise:"),
        (Interval(-0.01, -0.02, 0.01), "The router does NOT beat the best baseline (the difference is within noise):"),
        (Interval(0.0, 0.0, 0.0), "The router does NOT beat the best baseline"),
        (Interval(-0.02, -0.03, -0.01), "The router does NOT beat the best baseline:"),
    ],
)
def test_the_verdict_begins_with_whether_the_router_is_better(trained, lead, words):
    assert replace(trained.evaluation, lead=lead).verdict.startswith(words)


def test_terminal_report_card_picture_and_json_say_the_same_headline(trained):
    evaluation = trained.evaluation
    headline, dial = evaluation.headline, evaluation.chosen
    assert f"keeps {100 * dial.kept.value:.1f} %" in headline.text
    assert (
        f"for {100 * dial.cost_of_best.value:.0f} % (" in headline.text
        and f"USD {dial.usd_per_1k.value:.3g} instead" in headline.text
    )
    assert evaluation.to_json()["headline"] == headline.text == evaluation.summary[0]
    assert json.loads((trained.bundle / "report.json").read_text())["headline"] == headline.text
    assert headline.text in (trained.bundle / "README.md").read_text()
    page = html.unescape((trained.bundle / "report.html").read_text())
    assert f"<h1>{headline.text}</h1>" in page and evaluation.summary[1] in page
    printed = " ".join(training_text(trained).split())
    assert printed.startswith(headline.text) and evaluation.summary[1] in printed
    title = cost_quality_figure(evaluation).axes[0].get_title(loc="left")
    assert title.lower() == headline.short.lower()
    assert f"{100 * dial.kept.value:.1f} % of {evaluation.best_tier}'s accuracy" in title
    assert headline.metrics.items() <= evaluation.metrics.items()


def test_where_the_quality_is_not_promised_the_headline_says_so_and_names_the_highest_that_is(trained):
    evaluation = trained.evaluation
    dial = [replace(point, promised=point.quality < 0.95) for point in evaluation.dial]
    unproven = replace(evaluation, chosen=replace(evaluation.chosen, promised=False), dial=dial)
    lower = unproven.headline.instead
    assert lower.quality == 0.94 and "does not support a promise of this quality" in unproven.headline.text
    assert f"The highest that is promised, 0.94, keeps {100 * lower.kept.value:.1f} %" in unproven.headline.text
    assert "router, quality 0.94" in {row[0] for row in first_table(unproven).rows}
    nothing = replace(unproven, dial=[replace(point, promised=False) for point in dial])
    assert "No lower quality is promised." in nothing.headline.text
    assert evaluation.headline.instead is None and "promise" not in evaluation.headline.text


def test_the_first_table_has_the_figures_of_the_headline_and_of_the_plans(trained):
    evaluation = trained.evaluation
    rows = {row[0]: row[1:] for row in first_table(evaluation).rows}
    dial = evaluation.chosen
    shown = (f"{100 * dial.kept.value:.1f} %", f"{100 * dial.cost_of_best.value:.0f} %", f"{dial.usd_per_1k.value:.3g}")
    assert rows["router, quality 0.98"] == shown
    assert rows["always frontier"][:2] == ("100.0 %", "100 %")
    for name, found in evaluation.plans.items():
        point = next(point for point in found.dial if point.quality == dial.quality)
        assert point.is_direct or rows[f"plans that look at {name}"][1] == f"{100 * point.cost_share.value:.0f} %"


def test_the_lead_is_over_the_best_baseline_that_can_be_had(trained):
    evaluation = trained.evaluation
    rivals = {name: result.figures["aiq"].value for name, result in evaluation.baselines.items() if name != "oracle"}
    assert rivals[evaluation.best_baseline] == max(rivals.values())
    assert evaluation.lead.value == pytest.approx(evaluation.router.figures["aiq"].value - max(rivals.values()))
    report = (trained.bundle / "README.md").read_text()
    assert evaluation.verdict[1:] in report


def test_a_few_complete_prompts_among_partial_feedback_judge_nothing_alone(trained, unseen):
    """They are no sample of the rest: with propensities all prompts are judged off-policy."""
    first = unseen.drop_duplicates("prompt").assign(propensity=1 / 3)
    complete = unseen[unseen.prompt.isin(first.prompt.iloc[:3])].assign(propensity=1.0)
    log = pd.concat([first[~first.prompt.isin(complete.prompt)], complete])
    document = evaluate(trained.bundle, log).to_json()
    assert document["router"]["aiq"] is None and document["single"] == {} and document["calibration"]["ece"] is None
    assert document["off_policy"] is not None and document["n_prompts"] == first.prompt.nunique()
    assert document == json.loads(json.dumps(document, allow_nan=False))


def test_billed_tokens_of_prompts_that_training_did_not_see_are_right_on_average(trained):
    """Though the tokenizer was learned on the others, and so needs fewer tokens for them."""
    unseen = trained.log.rows(held_out_mask(trained.log.groups, 0.2, 0))
    estimated = BundleGraph(Bundle.load(trained.bundle)).estimates(unseen.prompts)["context_tokens"]
    assert estimated.sum() == pytest.approx(np.nanmean(unseen.input_tokens, axis=1).sum(), rel=0.02)


# ---- dials and prices ------------------------------------------------------------------------------


def test_the_default_dial_is_judged_unless_another_is_asked_for(trained, unseen):
    by_default = trained.evaluation.chosen
    [same] = [point for point in trained.evaluation.dial if point.quality == trained.manifest.default_quality]
    assert by_default == same
    chosen = evaluate(trained.bundle, unseen, quality=0.8, worth_usd=0.0).chosen
    assert chosen.quality == 0.8 and chosen.usd_per_1k.value < by_default.usd_per_1k.value
    free = evaluate(trained.bundle, unseen, worth_usd=0.0).chosen
    assert free.quality is None and free.usd_per_1k.value <= chosen.usd_per_1k.value
    assert sum(free.shares.values()) == pytest.approx(1)


def test_the_prices_of_the_bundle_itself_change_nothing_but_rounding(trained, held_out, sample, usual):
    """The log's costs are tokens x price, by offer; replayed, the cheapest offer of a tier answers."""
    before, after = trained.evaluation, evaluate(trained.bundle, held_out, prices=sample[1])
    assert after.chosen.shares == before.chosen.shares and after.chosen.accuracy == before.chosen.accuracy
    for tier in before.tiers:
        assert after.single[tier][1].value <= before.single[tier][1].value * (1 + 1e-6)
    assert usual.single == after.single


@pytest.fixture(scope="module")
def usual(trained, held_out):
    """The judgement at the prices of today, times one."""
    return evaluate(trained.bundle, held_out, price_factors={"sim-cloud": 1.0}, quality=0.9)


def test_a_price_shock_moves_costs_and_decisions_of_the_same_bundle(trained, held_out, usual):
    cut = evaluate(trained.bundle, held_out, price_factors={"sim-cloud": 0.1}, quality=0.9)
    assert cut.single["frontier"][1].value == pytest.approx(0.1 * usual.single["frontier"][1].value)
    assert cut.single["edge"] == usual.single["edge"]
    assert cut.chosen.shares["frontier"] > usual.chosen.shares["frontier"]
    # The baselines see today's prices too: after the cut they ask the frontier more, as the router does.
    assert cut.baselines["knn"].figures["perf_gain"].value >= usual.baselines["knn"].figures["perf_gain"].value - 0.01
    assert cut.router.figures["aiq"].value - cut.baselines["knn"].figures["aiq"].value < 0.05


def test_scaling_all_prices_and_the_worth_scales_net_value_and_changes_no_decision(trained, unseen):
    providers = {offer.provider for tier in Bundle.load(trained.bundle).prices.tiers for offer in tier.offers}
    one, ten = (
        evaluate(trained.bundle, unseen, price_factors=dict.fromkeys(providers, factor), worth_usd=factor * 0.002)
        for factor in (1.0, 10.0)
    )
    assert ten.chosen.shares == one.chosen.shares
    assert ten.chosen.usd_per_1k.value == pytest.approx(10 * one.chosen.usd_per_1k.value, rel=1e-4)


def test_replayed_prices_do_not_hide_how_many_costs_are_estimated(trained, unseen):
    lengths = np.where(unseen.index % 2, unseen.output_tokens, np.nan)
    untold = unseen.assign(cost_usd=np.nan, output_tokens=lengths)
    usual, cut = (evaluate(trained.bundle, untold, price_factors={"sim-cloud": factor}) for factor in (1.0, 0.1))
    assert cut.estimated_cost_share == usual.estimated_cost_share
    assert 0.4 < cut.estimated_cost_share < 0.6


@pytest.mark.parametrize(("factors", "found"), [({"nobody": 2.0}, "nobody"), ({"local": -1.0}, "-1.0")])
def test_factors_of_no_provider_or_below_zero_are_refused(trained, unseen, factors, found):
    with pytest.raises(PriceError, match=found):
        evaluate(trained.bundle, unseen, price_factors=factors)


# ---- net value -------------------------------------------------------------------------------------


def test_no_single_tier_is_worth_more_than_the_best_and_break_evens_are_where_it_changes(trained):
    found = trained.evaluation.net_value
    assert found.router[0] == pytest.approx(max(found.router[0], -trained.evaluation.single["edge"][1].value), rel=1e-6)
    worths = [change.worth_usd for change in found.break_even]
    assert worths == sorted(worths) and found.break_even[-1].dearer == trained.evaluation.best_tier
    for worth, best in zip(found.worth_usd, found.best_single, strict=True):
        passed = [change.dearer for change in found.break_even if change.worth_usd <= worth]
        name = passed[-1] if passed else found.break_even[0].cheaper
        assert found.single[name][found.worth_usd.index(worth)] == pytest.approx(best)


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 10)), min_size=1, max_size=6), st.floats(0, 1e4))
def test_break_evens_name_the_best_single_tier_at_any_worth(tiers, worth):
    accuracy, cost = np.array(tiers).T
    names = [str(k) for k in range(len(tiers))]
    changes = break_evens(accuracy, cost, names)
    at = str(int(np.lexsort((-accuracy, cost))[0]))
    for change in changes:
        assert change.cheaper == at
        if change.worth_usd > worth:
            break
        at = change.dearer
    value = worth * accuracy - cost
    assert value[int(at)] >= value.max() - 1e-9 * (1 + abs(value).max())


def test_of_a_large_training_part_only_some_embeddings_are_kept_and_baselines_are_fitted_on_them(
    trained, tmp_path, monkeypatch
):
    part = TrainingData.load(trained.bundle)
    n = len(part.groups)
    assert part.embedded.tolist() == list(range(n)) == TrainingData.rows_to_embed(n).tolist()
    monkeypatch.setattr(training.evaluation.training_data, "MAX_EMBEDDED_PROMPTS", 500)
    kept = TrainingData.rows_to_embed(n)
    assert len(kept) == 500 and 0 <= kept.min() and kept.max() < n and (np.diff(kept) > 0).all()
    smaller = replace(part, embedding=part.embedding[kept], embedded=kept)
    path = TrainingData.path_of(tmp_path / "copy")
    smaller.save(path, "a bundle")
    again = TrainingData.read(path, "a bundle")
    np.testing.assert_array_equal(again.embedding, smaller.embedding)
    np.testing.assert_array_equal(again.embedded, kept)
    np.testing.assert_array_equal(again.prompt_ids, part.prompt_ids)
    assert path.stat().st_size < 0.5 * TrainingData.path_of(trained.bundle).stat().st_size
    held_out = trained.log.rows(~again.saw(trained.log.groups))
    found = evaluate_table(Bundle.load(trained.bundle), held_out, again)
    before = trained.evaluation
    assert found.router.figures["aiq"].value == pytest.approx(before.router.figures["aiq"].value)
    assert found.baselines["knn"].figures["aiq"].value != before.baselines["knn"].figures["aiq"].value
    assert found.baselines["knn"].figures["aiq"].value > before.baselines["random"].figures["aiq"].value
