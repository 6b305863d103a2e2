"""Laws of int8 encoders: near the original, independent of neighbours, and never shipped where decisions change."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from router.portfolio.tiers import read_tiers
from training.encoders.embed import embed, encoder_session, padded
from training.encoders.encoder import ENCODER_INPUTS, N_SURFACE, StaticRecipe, learn_static, with_token_kinds
from training.encoders.quantize import MAX_CHANGED, MAX_PROMPTS, QuantizationCheck, check_quantized, quantized
from training.errors import EncoderError, LogError, ParityError
from training.fit.clusters import PromptClusters
from training.fit.estimator import KernelBasis
from training.fit.lengths import LengthModel
from training.fit.model import TierModel
from training.fit.success import SuccessEstimator
from training.log.costs import attempt_costs
from training.log.ingest import ingest

N_DIMS = 32
N_PROMPTS = 1000
FITTED_ON = np.arange(N_PROMPTS) < 300
SLACKS = (0.0, 0.02, 0.05, 0.1)


@pytest.fixture(scope="module")
def log(sample_log, sample_tiers):
    return ingest(sample_log, read_tiers(sample_tiers)).rows(np.arange(N_PROMPTS))


@pytest.fixture(scope="module")
def static(log):
    return learn_static(log.prompts, StaticRecipe(vocab_size=500, n_lsa=4, n_distilled=4))


def residual_network(n_tokens, seed=0):
    """Token vectors, two residual layers of products with weights, masked mean: a transformer without attention."""
    rng = np.random.default_rng(seed)
    constants = {"table": rng.normal(size=(n_tokens, N_DIMS)), "two": np.array([2]), "one": np.array([1])}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden_0"])]
    for layer in range(2):
        constants[f"wide_{layer}"] = rng.normal(size=(N_DIMS, 4 * N_DIMS)) / np.sqrt(N_DIMS)
        constants[f"narrow_{layer}"] = rng.normal(size=(4 * N_DIMS, N_DIMS)) / np.sqrt(4 * N_DIMS)
        nodes += [
            helper.make_node("MatMul", [f"hidden_{layer}", f"wide_{layer}"], [f"up_{layer}"]),
            helper.make_node("Relu", [f"up_{layer}"], [f"active_{layer}"]),
            helper.make_node("MatMul", [f"active_{layer}", f"narrow_{layer}"], [f"down_{layer}"]),
            helper.make_node("Add", [f"hidden_{layer}", f"down_{layer}"], [f"hidden_{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Cast", ["attention_mask"], ["float_mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["float_mask", "two"], ["column"]),
        helper.make_node("Mul", ["hidden_2", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["total"], keepdims=0),
        helper.make_node("LpNormalization", ["total"], ["embedding"], axis=1, p=2),
    ]
    tensors = [
        numpy_helper.from_array(value.astype(np.int64 if value.ndim == 1 else np.float32), name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in ENCODER_INPUTS],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", N_DIMS])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="module")
def exact(static):
    tokenizer = static.tokenizer
    return with_token_kinds("network", tokenizer, residual_network(tokenizer.get_vocab_size()), 256)


@pytest.fixture(scope="module")
def int8(exact):
    return quantized(exact)


def run(encoder, prompts):
    return encoder_session(encoder.graph).run(["embedding"], padded(encoder.token_ids(prompts)))[0]


# ---- the graph -------------------------------------------------------------------------------------


def test_int8_stays_near_the_original(log, exact, int8):
    rounded, original = run(int8, log.prompts[:50]), run(exact, log.prompts[:50])
    vectors = slice(None, -N_SURFACE)
    cosine = (rounded[:, vectors] * original[:, vectors]).sum(axis=1)
    assert cosine.min() > 0.999
    assert np.abs(rounded - original).max() > 1e-5, "nothing was rounded"
    np.testing.assert_array_equal(rounded[:, -N_SURFACE:], original[:, -N_SURFACE:])


def test_an_embedding_depends_on_neither_neighbours_nor_padding(log, int8):
    longest = max(log.prompts, key=len)
    for prompt in ("", "Hi", log.prompts[0]):
        alone = run(int8, [prompt])
        beside = run(int8, [longest * 3, prompt, "x"])
        np.testing.assert_allclose(beside[1], alone[0], atol=1e-6)


def test_int8_graph_has_standard_operators_only_and_no_float_weights(exact, int8):
    assert {node.domain for node in int8.graph.graph.node} <= {"", "ai.onnx"}
    kinds = {tensor.name: tensor.data_type for tensor in int8.graph.graph.initializer if len(tensor.dims) == 2}
    large = {name for name in kinds if not name.endswith("step")}
    assert large and {kinds[name] for name in large} == {TensorProto.INT8}
    assert int8.graph.ByteSize() < 0.35 * exact.graph.ByteSize()


def test_products_are_made_in_integers(int8, tmp_path):
    """What ONNX Runtime makes of the graph: no product with weights is left in floating point."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(int8.graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == 4


def test_sums_of_two_products_fit_into_int16(int8):
    """Processors without VNNI add pairs of products there."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.graph.graph.initializer}
    levels = [value for name, value in constants.items() if name.startswith(("wide", "narrow")) and "levels" in name]
    assert len(levels) == 4
    assert 2 * 255 * max(np.abs(value.astype(int)).max() for value in levels) < 2**15


def test_rows_and_weights_of_zeros_stay_zero(exact):
    graph = onnx.ModelProto.FromString(exact.graph.SerializeToString())
    for tensor in graph.graph.initializer:
        if tensor.name in ("table", "wide_0"):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), tensor.name))
    found = run(quantized(replace(exact, graph=graph)), ["Hello"])
    np.testing.assert_array_equal(found[:, :-N_SURFACE], 0)


def test_int8_encoder_knows_its_original_and_is_another_to_the_cache(exact, int8):
    assert (int8.name, int8.unquantized) == ("network-int8", exact)
    assert int8.digest != exact.digest
    assert (int8.max_chars, int8.max_tokens) == (exact.max_chars, exact.max_tokens)


def test_encoder_without_products_is_refused(static):
    with pytest.raises(EncoderError, match="'static' has no product with weights"):
        quantized(static)


# ---- the gate --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A model fitted on a part of the log, and the embeddings of all of it."""

    model: TierModel
    vectors: np.ndarray


@pytest.fixture(scope="module")
def fitted(log, int8, sample_tiers):
    vectors = embed(int8, log.prompts, log.prompt_ids).vectors
    known, known_vectors = log.rows(FITTED_ON), vectors[FITTED_ON]
    costs = attempt_costs(known, read_tiers(sample_tiers))
    estimator = SuccessEstimator("success").fit(known_vectors, known.correct, cost_usd=costs.cost_usd)
    basis = KernelBasis.fit(known_vectors, 50, seed=0)
    lengths = LengthModel.fit(basis, known_vectors, known.output_tokens, costs.mean_output_tokens, known.groups, seed=0)
    clusters = PromptClusters.fit(estimator.basis_, known_vectors, known, known.correct, seed=0)
    learned = (estimator.parts_, estimator.weights_, estimator.calibration_, estimator.familiarity_)
    return Fitted(TierModel(*learned, lengths, clusters), vectors)


def gate(fitted, unquantized, log, tiers):
    held_out, vectors = log.rows(~FITTED_ON), fitted.vectors[~FITTED_ON]
    return check_quantized(fitted.model, unquantized, held_out, vectors, read_tiers(tiers), SLACKS, seed=0)


def test_the_gate_passes_the_encoder_that_was_rounded(fitted, log, exact, sample_tiers):
    check = gate(fitted, exact, log, sample_tiers)
    assert check.n_prompts == MAX_PROMPTS
    assert check.cosine > 0.999
    assert check.changed <= MAX_CHANGED


def test_without_rounding_nothing_changes(fitted, log, int8, sample_tiers):
    check = gate(fitted, int8, log, sample_tiers)
    assert (check.changed, check.aiq) == (0, check.aiq_unquantized)
    assert check.cosine == pytest.approx(1, abs=1e-6)


def test_the_gate_refuses_what_is_no_rounding_of_the_encoder(fitted, log, exact, sample_tiers):
    another = residual_network(exact.tokenizer.get_vocab_size(), seed=1)
    other = with_token_kinds("network", exact.tokenizer, another, exact.max_tokens)
    with pytest.raises(ParityError, match=r"mean cosine .* of decisions changed.*use --encoder minilm instead"):
        gate(fitted, other, log, sample_tiers)


def test_int8_is_not_judged_without_prompts_that_every_tier_answered(fitted, log, exact, sample_tiers):
    partial = replace(log, correct=np.where(np.arange(3) == 0, np.nan, log.correct))
    with pytest.raises(LogError, match="found 0 held-out prompts that every tier answered.*use --encoder minilm"):
        gate(fitted, exact, partial, sample_tiers)


SOUND = QuantizationCheck(n_prompts=400, cosine=0.996, changed=0.04, aiq=0.801, aiq_unquantized=0.804)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cosine": 0.97}, r"mean cosine 0\.970, at least 0\.98"),
        ({"changed": 0.06}, r"6\.0% of decisions changed, at most 5\.0%"),
        ({"aiq": 0.798}, r"AIQ 0\.7980 for 0\.8040, at most 0\.005 less"),
        ({"changed": float("nan")}, "nan% of decisions changed"),
    ],
)
def test_each_limit_refuses_alone(change, message):
    SOUND.require()
    with pytest.raises(ParityError, match=rf"on 400 held-out prompts .*{message}.*not exported"):
        replace(SOUND, **change).require()


def test_a_gain_is_no_fault():
    replace(SOUND, cosine=1.0, changed=0.0, aiq=0.9).require()
