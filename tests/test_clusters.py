"""What a decision says of similar logged prompts is what the log has of them."""

import json

import numpy as np
import pandas as pd
import pytest

from router import Router
from router.bundle.bundle import Bundle
from router.bundle.clusters import parse_clusters
from router.errors import BundleError
from training import TrainingConfig, train
from training.evaluation.training_data import TrainingData
from training.fit.clusters import MAX_EXAMPLE_CHARS, PromptClusters
from training.fit.kernel import KernelBasis


@pytest.fixture(scope="module")
def part(trained):
    return TrainingData.load(trained.bundle)


@pytest.fixture(scope="module")
def known(trained, part):
    return trained.log.rows(np.isin(trained.log.prompt_ids, part.prompt_ids))


def test_every_training_prompt_is_in_one_cluster_and_is_routed_to_it(trained, known):
    router = Router.load(trained.bundle)
    clusters = router.bundle.clusters
    assert sum(cluster.n_prompts for cluster in clusters) == known.n_prompts
    assert [cluster.number for cluster in clusters] == list(range(len(clusters)))
    found = [decision.cluster for decision in router.route_batch(known.prompts)]
    size = np.bincount([cluster.number for cluster in found], minlength=len(clusters))
    # A prompt halfway between two landmarks may go either way in float32.
    np.testing.assert_allclose(size, [cluster.n_prompts for cluster in clusters], atol=1)


def test_a_cluster_has_what_its_prompts_came_to(trained, known):
    router = Router.load(trained.bundle)
    number = np.array([decision.cluster.number for decision in router.route_batch(known.prompts)])
    n_checked = 0
    for cluster in router.bundle.clusters:
        rows = number == cluster.number
        if rows.sum() != cluster.n_prompts:  # one halfway between two landmarks
            continue
        n_checked += 1
        for k, tier in enumerate(known.tiers):
            assert cluster.success[tier] == pytest.approx(np.nanmean(known.correct[rows, k]))
            assert cluster.n_outcomes[tier] == np.isfinite(known.correct[rows, k]).sum()
        largest, share = next(iter(cluster.segments.items()))
        assert share == pytest.approx((known.segments[rows] == largest).mean())
        assert list(cluster.segments.values()) == sorted(cluster.segments.values(), reverse=True)
    assert n_checked > 0.8 * len(router.bundle.clusters)


def test_what_similar_prompts_came_to_speaks_for_the_estimate(trained, part):
    """On held-out prompts: the cluster's share of correct answers goes with the estimate, and with the outcome."""
    bundle = Bundle.load(trained.bundle)
    held_out = trained.log.rows(~np.isin(trained.log.groups, part.groups))
    decisions = Router(bundle).route_batch(held_out.prompts)
    for k, tier in enumerate(held_out.tiers):
        shown = np.array([decision.cluster.success[tier] for decision in decisions])
        estimated = np.array([decision.success[tier] for decision in decisions])
        seen = np.isfinite(held_out.correct[:, k])
        assert np.corrcoef(shown, estimated)[0, 1] > 0.6
        constant = np.mean((held_out.correct[seen, k] - shown.mean()) ** 2)
        assert np.mean((held_out.correct[seen, k] - shown[seen]) ** 2) < constant


def test_no_prompt_is_in_the_bundle_unless_asked_for(trained, sample_log, sample_tiers, tmp_path):
    assert not any(cluster.examples for cluster in Bundle.load(trained.bundle).clusters)
    log = pd.read_parquet(sample_log)
    some = log[log.question_key.isin(sorted(log.question_key.unique())[::8])]
    kept = train(some, sample_tiers, tmp_path / "kept", TrainingConfig(keep_examples=True), tracking_uri="none")
    bundle = Bundle.load(kept.bundle)
    texts = {" ".join(prompt.split()) for prompt in kept.log.prompts}
    examples = [example for cluster in bundle.clusters for example in cluster.examples]
    assert examples
    for example in examples:
        assert len(example) <= MAX_EXAMPLE_CHARS
        assert example in texts or any(text.startswith(example.removesuffix("...")) for text in texts)
    decision = Router(bundle).route(kept.log.prompts[0])
    assert decision.cluster.examples[0] in str(decision.explain())
    assert not any(example in decision.to_json() for example in decision.cluster.examples)


def test_the_explanation_names_similar_prompts_and_the_log_of_decisions_only_their_number(router):
    decision = router.route("What is 17 * 23?")
    lines = str(decision.explain())
    assert f"a group of {decision.cluster.n_prompts:,} similar logged prompts" in lines
    counts = decision.cluster.n_outcomes
    assert all(
        f"{tier} {100 * share:.0f} % of {counts[tier]}" in lines for tier, share in decision.cluster.success.items()
    )
    assert decision.explain().to_json()["similar"]["n_prompts"] == decision.cluster.n_prompts
    assert json.loads(decision.to_json())["cluster"] == decision.cluster.number


def test_what_is_not_like_the_log_says_so_and_what_cannot_be_read_has_no_like(router):
    strange = router.route("dGhlIHJpdmVyIHJvc2UgYWxsIG5pZ2h0IGFuZCBieSBtb3JuaW5n" * 4)
    assert strange.familiarity < 1 and "not quite like this one" in str(strange.explain())
    assert router.route(None).cluster is None


def test_clusters_that_no_prompt_is_near_to_are_left_out(trained):
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(400, 40)).astype(np.float32)
    basis = KernelBasis.fit(embedding, 50, 0)
    few = trained.log.rows(np.arange(3))
    few.segments[:] = ""
    few.correct[:] = [[1.0, np.nan, 0.0], [0.0, np.nan, 0.0], [1.0, np.nan, np.nan]]
    fitted = PromptClusters.fit(basis, embedding[:3], few, few.correct, seed=0)
    (only,) = fitted.members
    edge, _, frontier = few.tiers
    assert only.n_prompts == 3 and only.success == {edge: pytest.approx(2 / 3), frontier: 0.0} and only.segments == {}
    assert set(fitted.of_landmark) == {0}
    assert fitted.nearest(embedding) == [{0}] * len(embedding)


GOOD = {"n_prompts": 3, "success": {"a": 0.5}, "n_outcomes": {"a": 2}, "segments": {}, "examples": []}
BAD = [{}, {"n_prompts": 3}, {**GOOD, "success": None}, {**GOOD, "n_outcomes": {}}, {**GOOD, "segments": None}]


def test_an_estimate_of_a_tier_that_was_not_asked_is_no_answer_of_it(trained):
    """Doubly robust outcomes are known of every tier, the log's answers are not."""
    log = trained.log.rows(np.arange(100))
    log.correct[:, 0] = np.nan
    embedding = np.random.default_rng(0).normal(size=(100, 40)).astype(np.float32)
    basis = KernelBasis.fit(embedding, 20, 0)
    for cluster in PromptClusters.fit(basis, embedding, log, np.full(log.correct.shape, 0.7), seed=0).members:
        assert log.tiers[0] not in cluster.success and log.tiers[0] not in cluster.n_outcomes
        assert cluster.success[log.tiers[1]] == pytest.approx(0.7)


@pytest.mark.parametrize(
    "text", [b"{}", b"[]", b"[1]", b"\xff", b"[" * 100_000, *(json.dumps([row]).encode() for row in BAD)]
)
def test_a_list_of_another_form_is_refused(text):
    with pytest.raises(BundleError, match="x: not a list of clusters"):
        parse_clusters(text, "x")
