"""A promise under drift: seldom doubted without drift, soon with it, and then lowered; the next panel is larger."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from stores import CHEAPER_IS_BETTER, assert_sound, bundle_id

import training.retrain.promise as promise
from router import Router
from router.bundle import Bundle
from router.golden import check_golden
from router.portfolio.prices import PriceTable
from router.portfolio.tiers import read_tiers
from training.errors import StoreError
from training.evaluation.training_data import TrainingData
from training.log.ingest import ingest
from training.retrain import rollback
from training.retrain.candidate import Candidate
from training.retrain.doubt import ALPHA, N_BETS, STAKES, Watch, growth_of, outcome_gains, rank_gains, wealth_after
from training.retrain.drift import DriftReport, Finding, Window, drift_report
from training.retrain.lower import lowered_dial, write_lowered
from training.retrain.panel import LARGEST_PANEL, USUAL_PANEL, next_panel
from training.retrain.promise import SUSPICION, promised_quality, watch_promise
from training.retrain.state import State
from training.retrain.view import receipt_text

QUALITY = 0.95


def run_of(rng, kept, n=60, harder=0.0, former=()):
    """A run's panel of a champion that keeps a share of the best tier's 80 %: its growth, and what was expected."""
    best = (rng.random(n) < 0.8).astype(float)
    share = (0.8 * kept - 0.05) / 0.8  # of the best tier's correct answers; of its wrong ones a quarter are right
    chosen = (rng.random(n) < np.where(best == 1, share, 0.25)).astype(float)
    expected = rng.normal(-harder, 1, n).round(1)  # with ties
    gains = rank_gains(expected, np.array(former), rng.random(n))
    return growth_of(outcome_gains(chosen, best, QUALITY), gains), [*former, *expected]


def first_doubt(seed, n_runs, kept=QUALITY, harder=0.0, since=0):
    """The run in which the promise is first in doubt, None where it never is. Drift begins in run `since`."""
    rng = np.random.default_rng(seed)
    runs, former = [], rng.normal(0, 1, 100).round(1).tolist()
    for run in range(n_runs):
        drifts = run >= since
        growth, former = run_of(rng, kept if drifts else 1.0, harder=harder if drifts else 0.0, former=former)
        runs.append(growth)
    found = np.flatnonzero(wealth_after(runs) >= 1 / ALPHA)
    return int(found[0]) if len(found) else None


# ---- the sequential test ---------------------------------------------------------------------------


def test_without_drift_hardly_any_champion_is_ever_doubted():
    """Simulated, for half a year of weekly looks at a champion that keeps exactly what it promises."""
    doubted = [first_doubt(seed, n_runs=26) is not None for seed in range(300)]
    assert np.mean(doubted) <= ALPHA


def test_a_champion_that_keeps_more_than_it_promises_is_doubted_even_less():
    doubted = [first_doubt(seed, n_runs=26, kept=1.0) is not None for seed in range(100)]
    assert np.mean(doubted) <= ALPHA / 2


@pytest.mark.parametrize(
    ("drift", "runs"),
    [({"kept": 0.93, "harder": 0.5}, 4), ({"kept": 0.70}, 5), ({"kept": 0.95, "harder": 0.8}, 3)],
)
def test_drift_is_seen_within_weeks_even_after_a_long_calm(drift, runs):
    """240 to 360 panel prompts, half of which a champion spent in calm: what was lost in it counts no more."""
    delays = [first_doubt(seed, 30 + runs, since=30, **drift) for seed in range(40)]
    seen = [delay is not None and delay >= 30 for delay in delays]
    assert np.mean(seen) >= 0.8


def test_ranks_are_uniform_whatever_is_ranked_and_however_many_ties_there_are():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 4000).astype(float)
    gains = rank_gains(values[10:], values[:10], rng.random(3990))
    assert abs(gains.mean()) < 0.03 and abs(gains.var() - 1 / 3) < 0.02
    assert abs(np.corrcoef(gains[1:], gains[:-1])[0, 1]) < 0.05


def test_the_wealth_begins_at_one_and_bets_that_win_nothing_lose_little():
    nothing = growth_of(*[np.zeros(10)] * N_BETS)
    assert wealth_after([nothing] * 5) == pytest.approx(np.ones(5))
    lost = growth_of(*[np.full(100, -0.9)] * N_BETS)
    assert wealth_after([lost] * 9).min() >= 1 / 10
    assert np.shape(lost) == (N_BETS, len(STAKES))


def test_a_promise_in_doubt_stays_so():
    won, lost = (growth_of(*[np.full(100, gain)] * N_BETS) for gain in (0.2, -0.2))
    watch = Watch().after(["a"], won)
    assert watch.is_in_doubt
    watch = watch.after(["b"], lost).after(["c"], lost)
    assert watch.wealth < 1 / ALPHA and watch.is_in_doubt


def test_the_state_holds_a_watch_and_older_states_have_none():
    watch = Watch(former=("a",)).after(["b", "c"], growth_of(*[np.array([0.1, -0.2])] * N_BETS))
    state = State(watch=watch)
    assert State.from_json(state.to_json(), "state.json") == state
    older = json.loads(state.to_json())
    del older["watch"]
    assert State.from_json(json.dumps(older), "state.json").watch is None
    with pytest.raises(StoreError, match="state.json"):
        State.from_json(json.dumps({**older, "watch": {"former": [], "bet_on": []}}), "state.json")


# ---- what is promised from then on -----------------------------------------------------------------


@pytest.fixture(scope="module")
def sample(request):
    data = request.config.rootpath / "data"
    tiers = data / "tiers.toml"
    return ingest(data / "sample-log.parquet", read_tiers(tiers)), PriceTable.parse(tiers.read_text())


@pytest.fixture(scope="module")
def champion(first_turn, sample):
    """The champion of the first store, which promises qualities below 1, and knows 120 prompts of the sample log."""
    return Candidate.at(Bundle.load(first_turn[0] / "store" / "bundles" / "000001"), sample[1])


def failing(log, tier, share):
    """The log with some of a tier's answers failed."""
    correct, k = log.correct.copy(), log.tiers.index(tier)
    correct[np.random.default_rng(0).random(len(correct)) < share, k] = 0.0
    return replace(log, correct=correct)


def test_what_is_promised_without_dials_is_watched_else_the_highest_promise(champion):
    manifest = champion.bundle.manifest
    assert not manifest.dial_point(manifest.default_quality).promised
    assert promised_quality(manifest) == max(point.quality for point in manifest.dial if point.promised)
    assert promised_quality(replace(manifest, default_quality=0.85)) == 0.85
    assert promised_quality(replace(manifest, dial=tuple(replace(p, promised=False) for p in manifest.dial))) is None


def test_a_lowered_dial_promises_no_more_anywhere(champion, sample):
    log = failing(sample[0], "edge", 0.8)
    newest = champion.panel(log).prompt_ids[:200].tolist()
    dial, n_prompts = lowered_dial(champion, log, sample[1], newest)
    former = champion.bundle.manifest.dial
    assert n_prompts > 200 and len(dial) == len(former)
    for low, high in zip(dial, former, strict=True):
        assert (low.quality, low.promised <= high.promised) == (high.quality, True)
        assert low.slack <= high.slack and low.kept <= high.kept
    slacks = [point.slack for point in dial]
    assert slacks == sorted(slacks, reverse=True)


def test_where_panels_keep_the_promise_nothing_is_lowered(champion, sample):
    """The outcomes are perfect."""
    log = replace(sample[0], correct=np.ones_like(sample[0].correct))
    assert lowered_dial(champion, log, sample[1], champion.panel(log).prompt_ids[:200].tolist())[0] is None


def test_where_the_panel_is_tiny_the_best_tier_answers(champion, sample):
    dial, _ = lowered_dial(champion, sample[0], sample[1], [])
    assert not any(point.promised for point in dial)


def test_a_lowered_version_is_a_sound_bundle_that_estimates_the_same(champion, tmp_path):
    bundle = Bundle.load(champion.bundle.path)
    dial = tuple(replace(point, promised=False, slack=0.0) for point in bundle.manifest.dial)
    manifest = write_lowered(bundle, dial, 321, tmp_path / "low")
    assert check_golden(tmp_path / "low").passed and manifest.bundle_id != bundle.manifest.bundle_id
    ours, theirs = Router.load(tmp_path / "low"), Router(bundle)
    low, high = (router.route("Prove it.", quality=0.9) for router in (ours, theirs))
    assert low.success == high.success and low.cost_usd == high.cost_usd
    assert (low.tier, low.promised, high.promised) == (manifest.best_tier, False, True)
    assert manifest.promise["n_prompts"] == 321 and "Lowered since training" in manifest.promise["evidence"]
    assert "lowered" in (tmp_path / "low" / "README.md").read_text().splitlines()[0]
    part = TrainingData.load(tmp_path / "low")
    assert len(part.prompt_ids) == len(champion.part.prompt_ids)


def test_a_lowered_version_promises_no_plan(champion, tmp_path):
    bundle = Bundle.load(champion.bundle.path)
    if bundle.planner is None:
        pytest.skip("the champion makes no plans")
    write_lowered(bundle, bundle.manifest.dial, 321, tmp_path / "low")
    lowered = Bundle.load(tmp_path / "low").planner
    assert lowered.calibration.n_prompts == 0
    assert lowered.known == bundle.planner.known


# ---- requests that move ----------------------------------------------------------------------------


def moved(share_of, rare, n=600):
    """A window of which `rare` is a share; all else is chat."""
    rng = np.random.default_rng(1)
    is_rare = rng.random(n) < share_of
    hard = rng.normal(0, 1, n)
    success = 1 / (1 + np.exp(hard[:, None] + is_rare[:, None] - np.array([0.0, 1.0, 2.0])))
    ones = np.ones((n, 3))
    return Window(
        tiers=("edge", "distilled", "frontier"),
        embedding=np.column_stack([is_rare, hard, rng.normal(size=(n, 6))]).astype(np.float32),
        segments=np.where(is_rare, rare, "chat"),
        correct=(rng.random((n, 3)) < success).astype(float),
        output_tokens=ones,
        cost_usd=ones,
        expected_success=success,
        expected_output_tokens=ones,
        expected_cost_usd=ones,
    )


def test_a_task_that_grows_from_one_to_twenty_four_percent_is_seen_and_the_promise_says_so(champion, sample):
    """The receipt then says that the promise does not cover such requests, and asks for a larger panel."""
    log, prices = sample
    report = drift_report(moved(0.01, "code"), moved(0.24, "code"))
    assert "share" in {finding.what for finding in report.moved}
    watched = watch_promise(champion, Watch(former=tuple(champion.panel(log).prompt_ids)), log, prices, 600, report)
    assert watched.report.standing == "not covered"
    assert "does not cover requests like the newest" in watched.report.summary and "code" in watched.report.summary
    assert watched.request.share > USUAL_PANEL and "requests moved" in watched.request.reason


def test_what_a_promise_does_not_cover_it_does_not_cover_in_later_runs_either(champion, sample):
    """Until it is proven anew. Later windows are compared with one that has the new requests, and show no change."""
    log, prices = sample
    former = tuple(champion.panel(log).prompt_ids)
    report = drift_report(moved(0.01, "code"), moved(0.24, "code"))
    left = watch_promise(champion, Watch(former=former), log, prices, 600, report).watch
    kept = State.from_json(State(watch=left).to_json(), "state.json").watch
    later = watch_promise(champion, kept, log, prices, 600, None)
    assert later.report.standing == "not covered" and "code" in later.report.summary
    assert "in an earlier run" in later.report.summary and later.request.n_prompts == USUAL_PANEL * 600
    assert watch_promise(champion, None, log, prices, 600, None).report.standing == "stands"  # a new champion


def test_where_nothing_moved_the_usual_panel_is_asked_for(champion, sample):
    log, prices = sample
    watched = watch_promise(champion, Watch(former=tuple(champion.panel(log).prompt_ids)), log, prices, 600, None)
    assert watched.report.standing == "stands" and watched.dial is None
    assert watched.request.n_prompts == USUAL_PANEL * 600


def test_a_larger_panel_is_asked_for_where_a_proof_is_near(champion):
    """What is lacking, from the usual panel to the largest; where no number is enough, none is asked for."""
    manifest = champion.bundle.manifest
    n_there = manifest.promise["n_prompts"]
    for n_needed, n_prompts in ((n_there + 100, 100), (n_there + 10, 60), (10_000, 180), (None, 60)):
        dial = tuple(replace(point, n_needed=n_needed) for point in manifest.dial)
        request = next_panel("", None, 600, replace(manifest, dial=dial))
        assert request.n_prompts == n_prompts
        assert ("is not promised" in request.reason) == (n_needed is not None)


def test_a_larger_panel_is_asked_for_before_the_promise_is_in_doubt(champion, sample):
    log, prices = sample
    suspected = Watch(former=tuple(champion.panel(log).prompt_ids)).after([], growth_of(*[np.full(20, 0.2)] * N_BETS))
    watched = watch_promise(champion, suspected, log, prices, 600, None)
    assert watched.report.standing == "stands" and SUSPICION <= watched.report.wealth < 1 / ALPHA
    assert watched.request.share > USUAL_PANEL and "bets against the promise" in watched.request.reason


def test_each_panel_prompt_is_bet_on_once(champion, sample):
    log, prices = sample
    first = watch_promise(champion, None, log, prices, 600, None).watch
    assert first.runs == () and set(first.former) == set(champion.panel(log).prompt_ids)
    begun = Watch(former=first.former[:100])
    again = watch_promise(champion, begun, log, prices, 600, None).watch
    assert len(again.runs) == 1 and 0 < len(again.bet_on) <= len(first.former) - 100
    assert watch_promise(champion, again, log, prices, 600, None).watch == again


def test_dearer_answers_alone_are_no_reason_for_a_larger_panel(champion, sample):
    dearer = Finding("cost", "edge", None, 1000, 1000, statistic=9.0, p_value=1e-9, effect=2.0)
    log, prices = sample
    watched = watch_promise(champion, Watch(), log, prices, 600, DriftReport(1000, 1000, (dearer,)))
    assert "nothing moved" in watched.request.reason


# ---- in the store ----------------------------------------------------------------------------------


@pytest.fixture
def doubtful(turn, day, quick, monkeypatch):
    """A store whose champion is in doubt, and whose next run promotes nobody and lowers every promise."""
    state = turn.store.read()
    won = growth_of(*[np.full(100, 0.2)] * N_BETS)
    with turn.store.hold():
        turn.store.commit(replace(state, watch=state.watch.after([], won)))
    day(1).to_parquet(turn.logs / "day1.parquet")

    def lowest(champion, log, prices, newest):
        return tuple(replace(point, promised=False, slack=0.0) for point in champion.bundle.manifest.dial), 77

    monkeypatch.setattr(promise, "lowered_dial", lowest)
    return turn


CAREFUL = replace(CHEAPER_IS_BETTER, min_judged=10_000)


def test_a_promise_in_doubt_is_lowered_before_there_is_a_better_champion(doubtful):
    former = bundle_id(doubtful.store.champion)
    receipt = doubtful(CAREFUL)
    assert not receipt.promoted and receipt.promise["standing"] == "lowered"
    assert receipt.champion == bundle_id(doubtful.store.champion) != former
    state = doubtful.store.read()
    stored = state.bundles[state.champion]
    assert (state.champion, stored.parent, state.former[-1]) == ("000002-lowered", former, "000001")
    assert "no longer promised" in receipt.reason and stored.data_digest == state.bundles["000001"].data_digest
    assert receipt.panel["share"] == pytest.approx(LARGEST_PANEL, abs=0.02)
    assert_sound(doubtful.store)
    # The next run knows what the panels said, and has nothing left to lower.
    assert doubtful(CAREFUL).panel == receipt.panel
    assert doubtful.store.read().watch.is_in_doubt


def test_a_lowered_promise_can_be_rolled_back(doubtful):
    former = bundle_id(doubtful.store.champion)
    doubtful(CAREFUL)
    assert rollback(doubtful.folder, tracking_uri="none").champion == former
    assert doubtful.store.read().watch is None


def test_a_new_champion_begins_without_doubt(doubtful, challenger):
    receipt = doubtful()
    assert receipt.promoted and receipt.champion == bundle_id(challenger)
    assert receipt.promise["standing"] == "stands" and not doubtful.store.read().watch.is_in_doubt


def test_the_first_receipt_asks_for_the_usual_panel(first_turn):
    folder, receipt = first_turn
    assert receipt.panel["share"] == pytest.approx(USUAL_PANEL, abs=0.01)
    n_prompts = pd.read_parquet(folder / "logs").prompt.nunique()
    assert receipt.panel["n_prompts"] == pytest.approx(USUAL_PANEL * n_prompts, abs=1)
    assert "next panel: ask every tier on 10% of the requests" in receipt_text(receipt)
