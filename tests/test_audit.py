"""What the audit says of a log. All outcomes here are simulated: the truth behind them is known."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from router.cli import main
from router.portfolio.tiers import read_tiers
from training.audit.audit import audit
from training.audit.ceiling import MIN_COMPLETE, repeated_ceiling
from training.audit.promises import needed_by_quality
from training.audit.report import audit_html, audit_text
from training.config import TrainingConfig
from training.dial.dial import COMPLETE_PROMPTS, calibrate_dial
from training.log.ingest import count_attempts, ingest
from training.reports.terminal import training_text


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """`broker audit` writes broken rows into the working folder."""
    monkeypatch.chdir(tmp_path)


PRICES = {"small": 0.1, "middle": 1.0, "large": 10.0}


def tiers_file(folder, prices=PRICES):
    path = folder / "tiers.toml"
    path.write_text(
        "\n".join(
            f'[[tiers]]\nname = "{name}"\n[[tiers.offers]]\nmodel = "{name}"\nprovider = "p"\nregion = "us"\n'
            f"context_window = 8192\nusd_per_mtok_input = {usd}\nusd_per_mtok_output = {usd}\n"
            for name, usd in prices.items()
        )
    )
    return path


def frame(correct, names=tuple(PRICES)):
    """correct: (n_prompts, n_tiers), NaN unobserved."""
    rows = [
        {"prompt": f"prompt {i}", "model": name, "correct": float(c), "input_tokens": 100, "output_tokens": 100}
        for i, line in enumerate(correct)
        for name, c in zip(names, line, strict=True)
        if np.isfinite(c)
    ]
    return pd.DataFrame(rows)


def audited(folder, correct, prices=PRICES):
    tiers = read_tiers(tiers_file(folder, prices))
    return audit(ingest(frame(correct, tuple(prices)), tiers), tiers)


def draw(success, seed=0):
    return (np.random.default_rng(seed).random(success.shape) < success).astype(float)


def shared_difficulty(n=3000, seed=1):
    ease = np.random.default_rng(seed).normal(size=n)
    return 1 / (1 + np.exp(-(1.5 * ease[:, None] + np.array([-0.5, 0.3, 1.2]))))


def specialists(n=3000):
    """Each tier is good at its own third of the prompts."""
    return np.where(np.arange(n)[:, None] % 3 == np.arange(3), 0.95, 0.3)


def test_where_tiers_differ_by_difficulty_only_the_ceiling_is_the_best_single_tier(tmp_path):
    """The oracle's lead is luck, and is called so; the truth is the expected maximum of the success probabilities."""
    success = shared_difficulty()
    found = audited(tmp_path, draw(success))
    truth = success.max(axis=1).mean()
    assert found.oracle.value > truth + 0.05
    assert abs(found.ceiling.estimate.value - truth) < 0.02
    assert abs(found.ceiling.lucky_oracle - found.oracle.value) < 0.01


@pytest.mark.parametrize("success", [shared_difficulty(), specialists()], ids=["difficulty", "specialists"])
def test_the_ceiling_lies_between_best_single_tier_and_oracle(tmp_path, success):
    ceiling = audited(tmp_path, draw(success)).ceiling
    assert ceiling.low <= ceiling.estimate.value <= ceiling.high
    assert ceiling.low - 0.02 <= success.max(axis=1).mean() <= ceiling.high


@pytest.mark.parametrize("success", [shared_difficulty(), specialists()], ids=["difficulty", "specialists"])
def test_repeated_attempts_bound_the_true_ceiling_and_measure_the_noise(success):
    n_attempts = np.full(success.shape, 10.0)
    n_correct = np.random.default_rng(2).binomial(10, success)
    (low, high), noise = repeated_ceiling(n_attempts, n_correct)
    truth = success.max(axis=1).mean()
    assert low - 0.01 <= truth <= high + 0.01
    assert high - low < 0.15
    assert noise == pytest.approx((success * (1 - success)).mean(), abs=0.01)


def test_attempts_are_counted_in_the_rows_of_the_table(tmp_path):
    tiers = read_tiers(tiers_file(tmp_path))
    log = pd.concat([frame(draw(specialists(60), seed)) for seed in range(3)])
    table = ingest(log, tiers)
    n_attempts, n_correct = count_attempts(log, tiers)
    assert (n_attempts == 3).all()
    np.testing.assert_allclose(n_correct / n_attempts, table.correct)


def test_a_log_with_repeated_attempts_says_what_they_bound(tmp_path, capsys):
    path = tmp_path / "log.parquet"
    pd.concat([frame(draw(specialists(MIN_COMPLETE), seed)) for seed in range(4)]).to_parquet(path)
    words = ["audit", "--logs", str(path), "--tiers", str(tiers_file(tmp_path))]
    assert main([*words, "--json"]) == 0
    low, high = json.loads(capsys.readouterr().out)["ceiling"]["repeats"]
    assert low < high
    assert main(words) == 0
    assert f"Repeated attempts bound the ceiling by {low:.1%} and {high:.1%}" in " ".join(
        capsys.readouterr().out.split()
    )


def test_permuting_tiers_permutes_the_answer(tmp_path):
    correct = draw(shared_difficulty(800))
    order = [2, 0, 1]
    names = list(PRICES)
    one = audited(tmp_path, correct)
    other = audited(tmp_path, correct[:, order], {names[k]: PRICES[names[k]] for k in order})
    assert one.best == other.best and one.action == other.action
    for name in names:
        assert one.per_tier[name].accuracy.value == pytest.approx(other.per_tier[name].accuracy.value)
        assert one.per_tier[name].pays == other.per_tier[name].pays
    assert one.effective_models.value == pytest.approx(other.effective_models.value)
    assert one.ceiling.estimate.value == pytest.approx(other.ceiling.estimate.value, abs=1e-3)


def test_a_copy_of_a_tier_is_no_effective_model(tmp_path):
    correct = draw(np.full((800, 2), 0.6))
    two = audited(tmp_path, correct, {"a": 0.1, "b": 1.0})
    three = audited(tmp_path, correct[:, [0, 1, 1]], {"a": 0.1, "b": 1.0, "copy": 1.0})
    assert two.effective_models.value == pytest.approx(2, abs=0.05)
    assert three.effective_models.value <= two.effective_models.value
    assert three.pairs["b", "copy"].phi == pytest.approx(1)
    assert three.oracle.value == pytest.approx(two.oracle.value)


def test_a_dearer_and_worse_tier_never_pays_and_one_tier_that_is_best_and_cheapest_needs_no_router(tmp_path):
    found = audited(tmp_path, draw(shared_difficulty(1500))[:, ::-1])
    assert {name for name, tier in found.per_tier.items() if not tier.pays} == {"middle", "large"}
    assert found.best == "small" and found.action == "do not route"
    assert found.verdict.startswith("Do not route")


def test_difficulty_that_is_shared_is_money(tmp_path):
    """Knowing the difficulty never costs more than mixing single tiers at the same accuracy."""
    found = audited(tmp_path, draw(shared_difficulty()))
    assert found.action == "route"
    for money in found.money:
        assert money.knowing_outcomes.value <= money.knowing_difficulty.value + 1e-6
        assert money.knowing_difficulty.value <= money.mix_of_singles.value + 1e-6


def test_a_stricter_promise_takes_more_prompts_and_the_strictest_a_better_router(tmp_path):
    needed = audited(tmp_path, draw(shared_difficulty(800))).needed
    *_, strictest = found = list(needed.values())
    assert (strictest.like_best, strictest.like_substitute) == (None, None)
    for names in ("like_best", "like_substitute"):
        counts = [getattr(n, names) for n in found[:-1]]
        assert counts == sorted(counts)
    assert all(n.like_best <= n.like_substitute for n in found[:-1])
    assert needed[0.98].like_substitute / needed[0.99].like_substitute == pytest.approx(0.25, rel=0.05)


def test_audit_and_dial_say_the_same_number_of_the_same_router():
    """A dial whose highest estimate is always the best tier's."""
    correct = draw(shared_difficulty(400))
    success = np.tile([0.1, 0.2, 0.9], (400, 1))
    dial = {point.quality: point for point in calibrate_dial(success, correct, TrainingConfig().confidence)}
    for quality, needed in needed_by_quality(correct, best=2).items():
        if not dial[quality].promised:
            assert dial[quality].n_needed == needed.like_best
        else:
            assert needed.like_best <= 400


def test_what_is_plenty_is_promised_and_what_is_far_too_few_is_refused():
    for n_prompts in (40, 150, 600, 20_000):
        success = shared_difficulty(n_prompts)
        correct = draw(success)
        dial = {point.quality: point for point in calibrate_dial(success, correct, TrainingConfig().confidence)}
        for quality, needed in needed_by_quality(correct, best=2).items():
            if needed.like_substitute and n_prompts > 2 * needed.like_substitute:
                assert dial[quality].promised
            if needed.like_best and n_prompts < needed.like_best / 4:
                assert not dial[quality].promised


def test_audit_bundle_and_report_count_the_same_prompts(trained, sample_log, sample_tiers):
    tiers = read_tiers(sample_tiers)
    found, manifest = audit(ingest(sample_log, tiers), tiers), trained.manifest
    assert (manifest.promise["n_prompts"], manifest.promise["prompts"]) == (found.n_training, COMPLETE_PROMPTS)
    card = (trained.bundle / "README.md").read_text()
    counts = trained.counts
    assert found.counts == counts and str(counts) in card
    assert str(counts) in " ".join(audit_text(found).split()) and str(counts) in training_text(trained)
    assert found.to_json()["prompts"] == counts.to_json()
    assert counts.promise == manifest.promise["n_prompts"] and counts.judged == trained.evaluation.n_prompts
    assert counts.learning == manifest.training["n_trained_on"] == trained.manifest.training["n_trained_on"]
    assert counts.learning + counts.held_out == manifest.training["n_prompts"]
    assert f"{found.n_training:,} {COMPLETE_PROMPTS}" in card
    assert f"in the training part: {found.n_training:,} of the" in " ".join(audit_text(found).split())
    for point in manifest.dial:
        assert f"| {point.quality:.2f} | {'yes' if point.promised else 'no'} | about {point.n_needed:,} |" in card
        needed = found.needed.get(point.quality)
        if needed and needed.like_substitute:
            assert needed.like_best / 4 <= point.n_needed <= needed.like_substitute


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_tiers_that_are_never_or_always_right_are_audited(tmp_path, value):
    found = audited(tmp_path, np.full((MIN_COMPLETE, 3), value))
    assert found.action == "do not route"
    json.dumps(found.to_json(), allow_nan=False)
    assert audit_text(found) and audit_html(found)


def test_partial_feedback_gets_counts_and_no_comparison(tmp_path, capsys):
    correct = np.full((400, 3), np.nan)
    correct[np.arange(400), np.arange(400) % 3] = 1.0
    path = tmp_path / "log.parquet"
    frame(correct).to_parquet(path)
    assert main(["audit", "--logs", str(path), "--tiers", str(tiers_file(tmp_path)), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["action"] == "not enough outcomes" and document["per_tier"] is None
    assert sum(document["n_outcomes"].values()) == 400


def test_the_command_prints_a_page_one_document_and_writes_a_page(tmp_path, capsys, sample_log, sample_tiers):
    words = ["audit", "--logs", str(sample_log), "--tiers", str(sample_tiers)]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["action"] in {"route", "do not route", "not enough outcomes"}
    assert document["ceiling"]["low"] <= document["ceiling"]["estimate"]["value"] <= document["ceiling"]["high"]
    page = tmp_path / "audit.html"
    assert main([*words, "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert " ".join(text.split()).startswith(" ".join(document["verdict"].split()))
    assert len(text.splitlines()) <= 65 and page.read_text().count("data:image/png") == 3


def test_names_are_text_in_the_page(tmp_path):
    found = audited(tmp_path, draw(shared_difficulty(300)))
    assert "<script>" not in audit_html(replace(found, verdict="<script>"))


def test_a_missing_log_is_bad_input(tmp_path, capsys):
    assert main(["audit", "--logs", str(tmp_path / "no.parquet"), "--tiers", str(tiers_file(tmp_path))]) == 2
    assert "no.parquet" in capsys.readouterr().err
