"""A tier that was never asked some kind of prompt: the bundle says what is assumed of it, and of how many prompts."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from router.bundle.clusters import Cluster
from training import TrainingConfig, train
from training.fit.never_asked import assumptions, never_asked

STRONG, HIDDEN = "frontier", "code"


def cluster_of(observed, rows, tiers):
    counts = {tier: int(observed[rows, k].sum()) for k, tier in enumerate(tiers) if observed[rows, k].any()}
    rates = dict.fromkeys(counts, 0.5)
    return Cluster(0, len(rows), success=rates, n_outcomes=counts, segments={}, examples=())


def test_a_segment_or_cluster_without_an_outcome_of_a_tier_is_named_with_its_prompts():
    tiers, segments = ("small", "large"), np.repeat(["law", "code", ""], [30, 50, 20])
    observed = np.ones((100, 2), dtype=bool)
    observed[:30, 1] = False
    clusters = [cluster_of(observed, np.arange(start, start + 25), tiers) for start in range(0, 100, 25)]
    found = never_asked(tiers, observed, segments, clusters)
    assert found == {"large": {"n_prompts": 30, "n_clusters": 1, "segments": {"law": 30}}}
    (sentence,) = assumptions(found)
    assert "large was never asked segment law and 1 group of like prompts: 30 training prompts" in sentence
    assert "no outcome of its own" in sentence


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_gaps_by_chance_are_no_kind_that_was_never_asked(share):
    rng, tiers = np.random.default_rng(0), ("small", "medium", "large")
    observed = rng.random((4000, 3)) < share
    segments = rng.choice(["a", "b", "c", "rare"], 4000, p=[0.5, 0.3, 0.199, 0.001])
    clusters = [cluster_of(observed, rows, tiers) for rows in np.array_split(rng.permutation(4000), 60)]
    assert never_asked(tiers, observed, segments, clusters) == {}


def test_a_complete_log_assumes_nothing(trained):
    assert "never_asked" not in trained.manifest.training
    assert "never asked" not in (trained.bundle / "README.md").read_text()


def test_bundle_and_report_say_what_is_assumed(sample_log, sample_tiers, tmp_path):
    log = pd.read_parquet(sample_log)
    some = log[log.question_key.isin(sorted(log.question_key.unique())[::3])]
    models = some.model[some.model.str.contains(STRONG)].unique()
    lacking = some[~(some.model.isin(models) & (some.dataset == HIDDEN))]
    assert 0 < len(some) - len(lacking) < len(some) / 4
    result = train(lacking, sample_tiers, tmp_path / "bundle", TrainingConfig(), tracking_uri="none")
    kinds = result.manifest.training["never_asked"]
    assert list(kinds) == [STRONG]
    assert list(kinds[STRONG]["segments"]) == [HIDDEN]
    (sentence,) = assumptions(kinds)
    assert sentence in (result.bundle / "README.md").read_text()
    assert json.loads((result.bundle / "report.json").read_text())["training"]["never_asked"] == kinds


def test_a_decision_says_of_which_tier_nothing_is_known_on_such_prompts(router):
    decision = router.route("Write a function that reverses a list.")
    assert "Never asked" not in str(decision.explain())
    known = {name: dict(getattr(decision.cluster, name)) for name in ("success", "n_outcomes")}
    for values in known.values():
        del values[STRONG]
    unasked = replace(decision, cluster=replace(decision.cluster, **known))
    assert f"Never asked any of them: {STRONG}." in str(unasked.explain())
