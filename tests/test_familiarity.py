"""Prompts unlike those trained on: recognised in the graph, their estimates drawn towards the tiers' means."""

import base64
import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from training.fit.calibrate import LOWEST_SUCCESS
from training.fit.familiarity import FALSE_ALARM_RATE, Familiarity, fit_familiarity
from training.fit.kernel import KernelBasis
from training.graph.builder import Graph
from training.graph.session import cpu_session
from training.log import split

STRANGE = [
    base64.b64encode(np.random.default_rng(0).bytes(300)).decode(),
    "จงพิสูจน์ว่ารากที่สองของสองเป็นจำนวนอตรรกยะ",
    "የሁለት ስኩዌር ሩት ኢ-ምክንያታዊ መሆኑን አረጋግጥ።",
    "xq vvkz jjwq pzzt kqx wvbn zzq hjk qpw xzv bnmq wqz " * 4,  # A few random letters alone are on the edge.
    "🚀" * 40,
]
SUCCESS = st.floats(LOWEST_SUCCESS, 1 - LOWEST_SUCCESS)


@pytest.fixture(scope="module")
def clouds():
    """Embeddings of 600 prompts around twelve centres, (600, 23), their folds, and estimates of two tiers."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(12, 23))
    embedding = (centres[rng.integers(0, 12, 600)] + 0.2 * rng.normal(size=(600, 23))).astype(np.float32)
    return embedding, rng.integers(0, 5, 600), rng.uniform(0.2, 0.9, (600, 2)), centres


@pytest.fixture(scope="module")
def fitted(clouds):
    embedding, folds, success, _ = clouds
    return fit_familiarity(KernelBasis.fit(embedding, 60, 0), embedding, folds, success, 0)


def graph_of(familiarity, n_dims):
    """A graph from an embedding and estimates to shrunk estimates."""
    graph = Graph()
    familiarity.add_to(graph, "embedding", "estimate")
    inputs = {"embedding": (onnx.TensorProto.FLOAT, ["n", n_dims]), "estimate": (onnx.TensorProto.FLOAT, ["n", 2])}
    outputs = {"success": (onnx.TensorProto.FLOAT, ["n", 2]), "familiarity": (onnx.TensorProto.FLOAT, ["n"])}
    return cpu_session(graph.model(inputs, outputs))


# ---- laws ------------------------------------------------------------------------------------------


@given(estimate=SUCCESS, mean=SUCCESS, familiarity=st.floats(0, 1))
def test_a_shrunk_estimate_lies_between_itself_and_the_mean(estimate, mean, familiarity):
    whole = Familiarity(None, 0.5, np.array([mean]))
    (found,) = whole.shrink(np.array([[estimate]]), np.array([familiarity]))[0]
    assert min(estimate, mean) - 1e-12 <= found <= max(estimate, mean) + 1e-12


@given(estimate=SUCCESS, mean=SUCCESS, pair=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_the_stranger_the_prompt_the_nearer_its_estimates_to_the_means(estimate, mean, pair):
    whole = Familiarity(None, 0.5, np.array([mean]))
    strange, familiar = (whole.shrink(np.array([[estimate]]), np.array([one]))[0, 0] for one in sorted(pair))
    assert abs(strange - mean) <= abs(familiar - mean) + 1e-12


def test_up_to_the_threshold_not_a_bit_of_an_estimate_changes(clouds, fitted):
    """As the graph computes it, in float32."""
    embedding, _, success, _ = clouds
    estimate = success.astype(np.float32)
    found, familiarity = graph_of(fitted[0], 23).run(None, {"embedding": embedding, "estimate": estimate})
    assert (familiarity == 1).mean() > 0.9
    np.testing.assert_array_equal(found[familiarity == 1], estimate[familiarity == 1])


def test_on_the_way_out_estimates_move_without_a_jump_and_end_at_the_means(clouds, fitted):
    """From a centre outwards in small steps, in the graph and in numpy alike."""
    familiarity, _ = fitted
    far = clouds[3][0] + np.linspace(0, 30, 3001)[:, None] * np.eye(23)[0]
    way = {"embedding": far.astype(np.float32), "estimate": np.tile(np.float32([0.05, 0.95]), (3001, 1))}
    success, found = graph_of(familiarity, 23).run(None, way)
    assert found[0] == 1 and found[-1] < 1e-6
    assert np.abs(np.diff(found)).max() < 0.05
    assert np.abs(np.diff(success, axis=0)).max() < 0.05
    np.testing.assert_allclose(success[-1], familiarity.means, atol=1e-5)
    np.testing.assert_allclose(found, familiarity.of(way["embedding"]), atol=1e-5)


def test_the_threshold_keeps_its_rate_on_prompts_it_was_not_learned_from(clouds, fitted):
    """At most the rate in expectation: 4,000 fresh prompts of the same centres, a bound of one in ten thousand."""
    rng = np.random.default_rng(1)
    centres = clouds[3]
    fresh = (centres[rng.integers(0, 12, 4000)] + 0.2 * rng.normal(size=(4000, 23))).astype(np.float32)
    flagged = int((fitted[0].of(fresh) < 1).sum())
    # The threshold of 600 prompts is itself an order statistic: its rate is Beta distributed, below 0.026 as surely.
    assert flagged <= binom.ppf(0.9999, 4000, 0.026)
    assert (fitted[1] < 1).mean() <= FALSE_ALARM_RATE


def test_few_prompts_make_their_farthest_the_threshold(clouds):
    embedding, folds, success, _ = clouds
    few = slice(0, 60)
    _, familiarity = fit_familiarity(
        KernelBasis.fit(embedding[few], 60, 0), embedding[few], folds[few], success[few], 0
    )
    assert (familiarity == 1).all()


# ---- the bundle ------------------------------------------------------------------------------------


def test_strange_prompts_are_recognised_said_and_not_covered_by_the_promise(router):
    for prompt in STRANGE:
        decision = router.route(prompt, quality=0.9)
        assert decision.familiarity < 1, prompt
        assert not decision.promised
        assert f"unlike the training log (familiarity {decision.familiarity:.2f})" in decision.reason
        assert json.loads(decision.to_json())["familiarity"] == decision.familiarity


def test_hardly_any_held_out_prompt_of_the_log_is_strange(trained, router):
    log = trained.log
    held_out = np.flatnonzero(split.test_mask(log.groups, 0.2, 0))[:400]
    decisions = router.route_batch([log.prompts[row] for row in held_out], quality=0.9)
    flagged = [decision for decision in decisions if decision.familiarity < 1]
    assert len(flagged) <= binom.ppf(0.9999, len(decisions), 2 * FALSE_ALARM_RATE)
    familiar = next(decision for decision in decisions if decision.familiarity == 1)
    assert "unlike" not in familiar.reason
    assert familiar.promised == router.bundle.manifest.dial_point(0.9).promised


def test_a_prompt_that_cannot_be_read_has_no_familiarity(router):
    decision = router.route(None)
    assert (decision.familiarity, decision.fallback) == (None, True)


def test_estimates_of_a_strange_prompt_are_as_near_to_the_means_as_its_familiarity_says(router):
    """The manifest's means are of outcomes, those in the graph of estimates: 0.03 apart at most."""
    means = np.array(router.bundle.manifest.success)
    for prompt in STRANGE:
        decision = router.route(prompt)
        success = np.array(list(decision.success.values()))
        assert ((success >= LOWEST_SUCCESS) & (success <= 1 - LOWEST_SUCCESS)).all()
        assert np.abs(success - means).max() <= decision.familiarity + 0.03
