"""Two bundles on the same prompts, and the mistakes of one."""

import argparse
import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from router import Router
from training import TrainingData, compare, mistakes
from training.errors import LogError
from training.evaluation.compare_command import compare as command
from training.evaluation.compare_command import comparison_text
from training.evaluation.mistakes import KINDS


@pytest.fixture(scope="module")
def champion(first_turn):
    return first_turn[0] / "store" / "bundles" / "000001"


@pytest.fixture(scope="module")
def found(champion, challenger, sample_log):
    return compare(champion, challenger, sample_log)


def test_a_bundle_does_not_differ_from_itself(champion, sample_log):
    found = compare(champion, champion, sample_log, worth_usd=0.002)
    assert found.n_differ == len(found.differing) == 0
    assert set(found.figures) == {"accuracy", "usd_per_1k", "net_value", "brier", "aiq"}
    for figure in found.figures.values():
        assert figure.a == figure.b
        assert figure.difference.low == figure.difference.high == 0


def test_a_bundle_that_is_content_with_less_is_cheaper_and_the_prompts_that_differ_say_why(found):
    cost = found.figures["usd_per_1k"]
    assert cost.difference.high < 0 and "usd_per_1k lower" in found.verdict
    assert found.figures["brier"].difference.value == 0  # the same estimates, at another dial
    rows = found.differing
    assert 0 < len(rows) == found.n_differ < found.n_prompts
    assert (rows.tier_a != rows.tier_b).all()
    total = 1000 * (rows.cost_usd_b - rows.cost_usd_a).sum() / found.n_prompts
    assert total == pytest.approx(cost.difference.value, rel=1e-4)


def test_compared_are_held_out_prompts_and_both_choose_as_the_router_does(found, champion, challenger):
    seen = TrainingData.load(champion)
    ids = [hashlib.sha256(prompt.encode()).hexdigest()[:16] for prompt in found.differing.prompt]
    assert not np.isin(ids, seen.prompt_ids).any()
    for bundle, tiers in ((champion, found.differing.tier_a), (challenger, found.differing.tier_b)):
        decisions = Router.load(bundle).route_batch(found.differing.prompt.tolist()[:20])
        assert [decision.tier for decision in decisions] == tiers.tolist()[:20]


def test_bundles_that_leave_nothing_to_compare_on_are_refused(trained, champion, sample_log):
    some = pd.read_parquet(sample_log)
    few = some[some.question_key.isin(sorted(some.question_key.unique())[:5])]
    with pytest.raises(LogError, match="prompts to compare on"):
        compare(trained.bundle, champion, few)


def test_the_command_writes_the_prompts_and_prints_none(champion, challenger, sample_log, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = [str(champion), str(challenger), "--logs", str(sample_log), "--differing", str(tmp_path / "differing.csv")]
    assert command.run(parser.parse_args([*words, "--json"])) == 0
    document, written = json.loads(capsys.readouterr().out), pd.read_csv(tmp_path / "differing.csv")
    assert document["n_differ"] == len(written)
    assert not any(prompt in json.dumps(document) for prompt in written.prompt[:5])


def test_the_text_has_every_figure_and_who_answers_instead(found):
    text = comparison_text(found)
    assert all(name in text for name in found.figures)
    assert f"{found.differing.tier_a[0]} -> {found.differing.tier_b[0]}" in text


def test_every_mistake_is_one_and_says_who_would_have_been_right(trained, sample_log):
    found = mistakes(trained.bundle, sample_log, quality=0.9)
    wrong = found[found.kind == KINDS[0]]
    assert set(found.kind) == set(KINDS)
    assert 0 < len(found) < found.attrs["n_prompts"]
    assert found.attrs["n_prompts"] >= trained.evaluation.n_prompts  # also prompts that not every tier answered
    for row in wrong.itertuples(index=False):
        values = dict(zip(found.columns, row, strict=True))
        assert values[f"correct.{row.tier}"] < 0.5 <= values[f"correct.{row.right_tier}"]
        assert values[f"success.{row.tier}"] == row.success
    dear = found[found.kind == KINDS[2]]
    assert (dear.right_cost_usd < dear.cost_usd).all()
    assert found[found.kind == KINDS[1]].right_tier.isna().all()
    assert np.array_equal(wrong.success, np.sort(wrong.success)[::-1])


def test_mistakes_are_as_many_as_the_evaluation_says(trained, sample_log):
    found = mistakes(trained.bundle, sample_log)
    wrong = found.kind.isin(KINDS[:2]).sum()
    assert wrong / found.attrs["n_prompts"] == pytest.approx(1 - trained.evaluation.chosen.accuracy.value, abs=0.01)
