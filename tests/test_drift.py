"""The drift report: silent without drift, right about what moved, and modest about small windows."""

import json
from dataclasses import replace

import numpy as np
import pytest

from router.portfolio.tiers import read_tiers
from training.errors import LogError
from training.log.ingest import ingest
from training.retrain.drift import ALPHA, LEVELS, MIN_OBSERVED, THRESHOLDS, Finding, Window, drift_report

TIERS = ("small", "middle", "large")
SEGMENTS = np.array(["chat", "code", "math"])
EXPECTATIONS = ("expected_success", "expected_output_tokens", "expected_cost_usd")
REPEATED = range(12)


def window(n=1000, seed=0, shares=(0.5, 0.3, 0.2), hardness=0.0):
    """A simulated window of a champion whose expectations are right; hardness: how much is added to each prompt's."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, size=n, p=shares)
    hard = rng.normal(hardness, 1, n)
    embedding = np.column_stack([np.eye(3)[kind], hard, rng.normal(size=(n, 12))]) + 0.3 * rng.normal(size=(n, 16))
    success = 1 / (1 + np.exp(hard[:, None] - kind[:, None] / 2 - np.array([0.0, 1.0, 2.0])))
    tokens = np.exp(5 + 0.4 * hard[:, None] + np.array([0.0, 0.3, 0.6]) + kind[:, None] / 3)
    usd = tokens * np.array([1e-7, 1e-6, 1e-5])
    noise = np.exp(rng.normal(0, 0.5, (n, 3)))
    return Window(
        tiers=TIERS,
        embedding=embedding.astype(np.float32),
        segments=SEGMENTS[kind],
        correct=(rng.random((n, 3)) < success).astype(float),
        output_tokens=tokens * noise,
        cost_usd=usd * noise,
        expected_success=success,
        expected_output_tokens=tokens,
        expected_cost_usd=usd,
    )


def rows(of, index):
    arrays = {name: values[index] for name, values in vars(of).items() if isinstance(values, np.ndarray)}
    return replace(of, **arrays)


def with_cells(of, name, tier, change, where=True):
    cells = getattr(of, name).copy()
    k = TIERS.index(tier)
    cells[:, k] = np.where(where, change(cells[:, k]), cells[:, k])
    return replace(of, **{name: cells})


def failing(share, seed=5):
    rng = np.random.default_rng(seed)
    return lambda correct: np.where(rng.random(len(correct)) < share, 0.0, correct)


def places(report):
    return {(finding.what, finding.tier) for finding in report.moved}


def finding_of(report, what, tier=None, segment=None):
    (found,) = [f for f in report.findings if (f.what, f.tier, f.segment) == (what, tier, segment)]
    return found


# ---- without drift ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [100, 1000])
def test_random_halves_raise_nothing_more_often_than_alpha_allows(n):
    halves = [drift_report(window(n, 2 * seed), window(n, 2 * seed + 1)) for seed in REPEATED]
    assert sum(bool(report.moved) for report in halves) <= 1 + 3 * ALPHA * len(REPEATED)


def test_harder_prompts_move_the_prompts_and_blame_no_tier():
    reports = [drift_report(window(seed=seed), window(seed=100 + seed, hardness=1.5)) for seed in REPEATED]
    assert {finding_of(report, "prompts").level for report in reports} == {"alarm"}
    assert sum(any(finding.tier for finding in report.moved) for report in reports) <= 1 + 3 * ALPHA * len(REPEATED)


def test_harder_prompts_would_blame_the_tiers_without_expectations():
    blind = dict.fromkeys(EXPECTATIONS)
    report = drift_report(replace(window(), **blind), replace(window(seed=1, hardness=1.5), **blind))
    assert {("outcomes", tier) for tier in TIERS} <= places(report)


def test_a_mix_of_harder_segments_blames_no_tier_even_without_expectations():
    blind = dict.fromkeys(EXPECTATIONS)
    for seed in REPEATED[:4]:
        recent = window(seed=100 + seed, shares=(0.2, 0.2, 0.6))
        report = drift_report(replace(window(seed=seed), **blind), replace(recent, **blind))
        assert places(report) <= {("prompts", None), ("share", None)}
        assert finding_of(report, "share", segment="math").level == "alarm"


def test_observing_only_the_tier_that_a_router_chose_blames_none():
    for seed in REPEATED[:4]:
        recent = window(3000, seed=100 + seed)
        chosen = np.where(recent.expected_success[:, 0] > 0.6, 0, np.where(recent.expected_success[:, 1] > 0.6, 1, 2))
        hidden = chosen[:, None] != np.arange(3)
        names = ("correct", "output_tokens", "cost_usd")
        recent = replace(recent, **{name: np.where(hidden, np.nan, getattr(recent, name)) for name in names})
        assert drift_report(window(3000, seed), recent).moved == ()


# ---- simulated drift -------------------------------------------------------------------------------


def test_a_tier_that_fails_more_often_is_named_with_the_loss_in_points():
    recent = window(seed=1)
    worse = with_cells(recent, "correct", "large", failing(0.2))
    lost = 100 * (recent.correct - worse.correct)[:, 2].mean()
    report = drift_report(window(), worse)
    assert report.level == "alarm" and places(report) == {("outcomes", "large")}
    assert finding_of(report, "outcomes", "large").effect == pytest.approx(-lost, abs=4)


def test_a_tier_that_fails_in_one_segment_is_named_with_it():
    recent = window(seed=1)
    report = drift_report(window(), with_cells(recent, "correct", "middle", failing(0.5), recent.segments == "code"))
    assert places(report) == {("outcomes", "middle")}
    assert {finding.segment for finding in report.moved} <= {None, "code"}
    assert finding_of(report, "outcomes", "middle", "code").level == "alarm"


@pytest.mark.parametrize(("what", "name", "ratio"), [("length", "output_tokens", 1.5), ("cost", "cost_usd", 2.0)])
def test_longer_and_dearer_answers_are_named_with_their_ratio(what, name, ratio):
    report = drift_report(window(), with_cells(window(seed=1), name, "small", lambda cells: cells * ratio))
    assert places(report) == {(what, "small")}
    assert finding_of(report, what, "small").effect == pytest.approx(ratio, rel=0.1)


def test_a_doubled_segment_is_named_with_its_share():
    report = drift_report(window(3000), window(3000, seed=1, shares=(0.4, 0.2, 0.4)))
    assert finding_of(report, "share", segment="math").effect == pytest.approx(20, abs=4)
    assert places(report) <= {("share", None), ("prompts", None)}
    assert report.level == "alarm"


def test_other_prompts_in_one_segment_are_found_there():
    recent = window(3000, seed=1)
    embedding = recent.embedding + 3 * (recent.segments == "code")[:, None] * np.eye(16, dtype=np.float32)[9]
    report = drift_report(window(3000), replace(recent, embedding=embedding))
    assert {(f.what, f.segment) for f in report.moved} == {("prompts", None), ("prompts", "code")}


def test_a_new_segment_is_an_alarm_and_blames_no_tier():
    reference = rows(window(), window().segments != "math")
    report = drift_report(reference, window(seed=1))
    assert finding_of(report, "share", segment="math").level == "alarm"
    assert places(report) <= {("share", None), ("prompts", None)}


# ---- levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", THRESHOLDS)
def test_a_level_needs_both_significance_and_size(what):
    threshold = THRESHOLDS[what]
    finding = Finding(what, None, None, 1000, 1000, statistic=1.0, p_value=ALPHA, effect=threshold.alarm)
    assert finding.level == "alarm"
    assert replace(finding, effect=threshold.notice).level == "notice"
    assert replace(finding, effect=threshold.notice * 0.99).level == "none"
    assert replace(finding, p_value=ALPHA * 1.01).level == "none"
    if threshold.unit == "points":
        assert replace(finding, effect=-threshold.alarm).level == "alarm"
    if threshold.unit == "ratio":
        assert replace(finding, effect=1 / threshold.alarm).level == "alarm"


def test_a_small_effect_is_significant_in_many_rows_and_still_no_notice():
    report = drift_report(
        window(30_000), with_cells(window(30_000, seed=1), "cost_usd", "small", lambda usd: usd * 1.05)
    )
    found = finding_of(report, "cost", "small")
    assert found.p_value < 1e-6 and found.level == "none" and report.level == "none"


def test_tiny_windows_say_too_few():
    few = MIN_OBSERVED - 1
    report = drift_report(window(few), with_cells(window(few, seed=1), "correct", "large", failing(1.0)))
    assert report.level == "too few" and report.moved == ()
    assert all(finding.effect is None for finding in report.findings)
    assert report.summary.startswith("drift: too few")


def test_a_tier_without_outcomes_is_too_few_and_the_others_are_compared():
    recent = with_cells(window(seed=1), "correct", "middle", lambda correct: correct * np.nan)
    report = drift_report(window(), recent)
    assert finding_of(report, "outcomes", "middle").level == "too few"
    assert finding_of(report, "outcomes", "large").level == "none" and report.level == "none"


def test_windows_without_a_segment_in_common_cannot_blame_a_tier():
    both = window(2000)
    report = drift_report(rows(both, both.segments == "chat"), rows(both, both.segments == "math"))
    assert {f.level for f in report.findings if f.tier} == {"too few"} and report.level == "alarm"


def test_an_empty_window_is_too_few():
    empty = rows(window(), np.zeros(1000, dtype=bool))
    assert drift_report(window(), empty).level == drift_report(empty, empty).level == "too few"


def test_tiers_that_never_fail_and_cost_nothing_are_compared():
    def constant(seed):
        even = replace(window(100, seed), **dict.fromkeys(EXPECTATIONS))
        free, always = np.zeros((100, 3)), np.ones((100, 3))
        return replace(even, correct=always, cost_usd=free, output_tokens=always)

    reference, recent = constant(0), constant(1)
    assert drift_report(reference, recent).level == "none"
    broken = drift_report(reference, replace(recent, correct=np.zeros((100, 3))))
    assert finding_of(broken, "outcomes", "small").effect == pytest.approx(-100)
    assert broken.level == "alarm"


# ---- symmetries ------------------------------------------------------------------------------------


def test_swapped_windows_turn_the_effects_round():
    reference, recent = window(), with_cells(window(seed=1), "correct", "large", failing(0.2))
    there, back = drift_report(reference, recent), drift_report(recent, reference)
    for finding in there.findings:
        mirror = finding_of(back, finding.what, finding.tier, finding.segment)
        if finding.unit == "points":
            assert mirror.effect == pytest.approx(-finding.effect)
        if finding.unit == "ratio":
            assert mirror.effect == pytest.approx(1 / finding.effect)
        if finding.tier:
            assert mirror.statistic == pytest.approx(-finding.statistic)


def test_the_order_of_rows_and_tiers_changes_nothing_about_tiers():
    reference, recent = window(), with_cells(window(seed=1), "correct", "large", failing(0.2))
    plain = drift_report(reference, recent)
    shuffled = drift_report(reference, rows(recent, np.random.default_rng(0).permutation(1000)))

    def reversed_tiers(of):
        cells = {name: v[:, ::-1] for name, v in vars(of).items() if isinstance(v, np.ndarray) and v.shape[1:] == (3,)}
        return replace(of, tiers=TIERS[::-1], **cells)

    turned = drift_report(reversed_tiers(reference), reversed_tiers(recent))
    for finding in plain.findings:
        if finding.what == "prompts":
            continue
        for other in (shuffled, turned):
            same = finding_of(other, finding.what, finding.tier, finding.segment)
            assert (same.statistic, same.effect) == pytest.approx((finding.statistic, finding.effect))


def test_the_same_windows_and_seed_give_the_same_report():
    assert drift_report(window(), window(seed=1), seed=3) == drift_report(window(), window(seed=1), seed=3)


# ---- the report ------------------------------------------------------------------------------------


def test_the_report_is_one_line_and_json():
    recent = with_cells(window(seed=1), "cost_usd", "large", lambda usd: usd * 2)
    report = drift_report(window(), recent)
    assert "\n" not in report.summary
    assert report.summary.startswith("drift: alarm; cost of large: x ")
    assert report.summary.count("cost of large") == 1
    told = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert told["level"] == "alarm" and told["summary"] == report.summary and told["n_recent"] == 1000
    assert {finding["level"] for finding in told["findings"]} <= set(LEVELS)
    assert [finding.level for finding in report.moved] == sorted((f.level for f in report.moved), key=LEVELS.index)[
        ::-1
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiers": ("small", "middle", "huge")}, "tiers"),
        ({"embedding": np.zeros((1000, 5), np.float32)}, "dimensions"),
        ({"expected_success": None}, "expectations"),
    ],
)
def test_windows_of_different_champions_are_refused(change, message):
    with pytest.raises(LogError, match=message):
        drift_report(window(), replace(window(seed=1), **change))


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(LogError, match=r"cost_usd has shape \(1000, 2\); expected \(1000, 3\)"):
        replace(window(), cost_usd=np.zeros((1000, 2)))


def test_a_window_of_a_table_has_one_prompt_of_each_group(sample_log, sample_tiers):
    table = ingest(sample_log, read_tiers(sample_tiers))
    table = replace(table, groups=np.where(np.arange(table.n_prompts) < 10, "repeated", table.groups))
    embedding = np.arange(table.n_prompts, dtype=np.float32)[:, None]
    estimates = {name: np.full(table.correct.shape, 0.5) for name in ("success", "output_tokens", "cost_usd")}
    found = Window.of(table, embedding, estimates)
    kept = found.embedding[:, 0].astype(int)
    assert len(kept) == len(np.unique(table.groups)) and (kept < 10).sum() == 1
    assert np.array_equal(found.segments, table.segments[kept])
    assert np.array_equal(found.correct, table.correct[kept], equal_nan=True)
