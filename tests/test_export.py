"""The bundle: its graph decides as the models do, nothing in it can change unseen, no prompt of the log is in it."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from uuid import uuid4

import lightgbm
import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import TensorProto, helper
from threadpoolctl import threadpool_limits

import training.pipeline
from router import Router
from router.bundle import FORMAT_VERSION, Bundle, Manifest
from router.bundle.clusters import parse_clusters
from router.bundle.engine import padded
from router.bundle.operators import OWN, refused_operators
from router.cli import main
from router.errors import BundleError
from router.golden import check_golden
from router.portfolio.tiers import read_tiers
from training import SuccessEstimator, TrainingConfig, TrainingResult, train
from training.encoders.embed import embed
from training.encoders.static import StaticRecipe, learn_static
from training.errors import ConfigError, LogError, ParityError
from training.evaluation.training_data import TrainingData
from training.export.bundle import draft_bundle
from training.export.golden import GOLDEN_PROMPTS
from training.export.parity import check_parity, threshold_rows
from training.fit.billing import InputModel
from training.fit.classifier import lightgbm_settings
from training.fit.clusters import PromptClusters
from training.fit.kernel import KernelBasis
from training.fit.lengths import LengthModel
from training.fit.model import TierModel
from training.graph.builder import Graph
from training.graph.decision import DECISION_INPUTS, add_decision, decide
from training.graph.session import cpu_session
from training.graph.trees import ensemble_attributes, float32_threshold
from training.log.costs import attempt_costs
from training.log.ingest import ingest

FILES = {
    "router.onnx", "tokenizer.json", "tiers.toml", "clusters.json", "golden.jsonl", "report.json", "report.html",
    "README.md", "manifest.json", "plan.onnx", "checks.json", "calibration.npz", "golden_plans.jsonl",
}  # fmt: skip
INPUTS = {
    "input_ids": (TensorProto.INT64, 2),
    "attention_mask": (TensorProto.INT64, 2),
    "context_tokens": (TensorProto.FLOAT, 1),
    "usd_per_mtok_input": (TensorProto.FLOAT, 2),
    "usd_per_mtok_output": (TensorProto.FLOAT, 2),
    "eligible": (TensorProto.BOOL, 2),
    "worth_usd": (TensorProto.FLOAT, 1),
    "slack": (TensorProto.FLOAT, 1),
}
OUTPUTS = {
    "success": (TensorProto.FLOAT, 2),
    "output_tokens": (TensorProto.FLOAT, 2),
    "cost_usd": (TensorProto.FLOAT, 2),
    "tier": (TensorProto.INT64, 1),
    "familiarity": (TensorProto.FLOAT, 1),
    "cluster": (TensorProto.INT64, 1),
}


class Lab:
    """An encoder and models on a few hundred prompts of the sample log."""

    def __init__(self, log, tiers):
        self.log = log
        self.encoder = learn_static(log.prompts, StaticRecipe(vocab_size=2000))
        self.embedding = embed(self.encoder, log.prompts, log.prompt_ids).vectors
        costs = attempt_costs(log, tiers)
        output_tokens = log.output_tokens.copy()
        output_tokens[:, 1] = np.nan  # one tier without lengths
        self.lengths = self.lengths_of(output_tokens, costs.mean_output_tokens)
        self.costs = costs
        context_tokens = np.array([len(prompt) for prompt in log.prompts]) / 4
        input_tokens = log.input_tokens.copy()
        input_tokens[:, 2] *= 100  # one tier that bills for more than the prompt
        basis = KernelBasis.fit(self.embedding, 50, seed=0)
        self.inputs = InputModel.fit(basis, self.embedding, input_tokens, context_tokens, log.groups, seed=0)

    def lengths_of(self, output_tokens, fallback):
        basis = KernelBasis.fit(self.embedding, 50, seed=0)
        return LengthModel.fit(basis, self.embedding, output_tokens, fallback, self.log.groups, seed=0)

    def model(self, correct=None):
        outcomes = self.log.correct if correct is None else correct
        success = SuccessEstimator().fit(self.embedding, outcomes, cost_usd=self.costs.cost_usd).model_
        clusters = PromptClusters.fit(success.basis, self.embedding, self.log, self.log.correct, seed=0)
        return TierModel(success, self.lengths, self.inputs, clusters)

    def parity(self, model, graph):
        return check_parity(model, self.encoder, graph, self.log.prompts[:60], self.embedding[:60], seed=0)


@pytest.fixture(scope="module")
def sample(request):
    folder = request.config.rootpath / "data"
    return folder / "sample-log.parquet", folder / "tiers.toml"


@pytest.fixture(scope="module")
def lab(sample):
    tiers = read_tiers(sample[1])
    log = ingest(sample[0], tiers)
    return Lab(log.rows(np.arange(300)), tiers)


@pytest.fixture(scope="module", params=["kernel and classifier", "kernel alone"])
def model(request, lab):
    correct = lab.log.correct.copy()
    if request.param == "kernel alone":
        correct[:, 0] = np.nan  # the cheapest tier is never observed, so no label is certain
    return lab.model(correct)


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy")


@dataclass(frozen=True)
class Small:
    """A whole training run on few prompts."""

    log: pd.DataFrame
    config: TrainingConfig
    result: TrainingResult


@pytest.fixture(scope="module")
def small(sample, tmp_path_factory):
    frame = pd.read_parquet(sample[0])
    log = frame[frame.question_key.isin(sorted(frame.question_key.unique())[:150])]
    config = TrainingConfig(cache=tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("models") / "small"
    return Small(log, config, train(log, sample[1], out, config, tracking_uri="none"))


# ---- the graph -------------------------------------------------------------------------------------


def test_trees_score_as_lightgbm_does_on_and_beside_every_kind_of_threshold(lab):
    model = lab.model()
    rows = threshold_rows(model, lab.embedding, seed=1)
    (found,) = cpu_session(model.head(rows.shape[1])).run(["raw_scores"], {"embedding": rows})
    expected = model.success.raw_scores(rows)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_graph_estimates_as_the_models_do(lab, model):
    session = cpu_session(model.whole(lab.encoder))
    some = slice(0, 40)
    feeds = {
        **padded(lab.encoder.token_ids(lab.log.prompts[some])),
        "context_tokens": np.full(40, 100, np.float32),
        "usd_per_mtok_input": np.ones((40, 3), np.float32),
        "usd_per_mtok_output": np.full((40, 3), 3, np.float32),
        "eligible": np.ones((40, 3), bool),
        "worth_usd": np.zeros(40, np.float32),
        "slack": np.zeros(40, np.float32),
    }
    success, output_tokens, cost_usd, tier, familiarity, cluster = session.run(list(OUTPUTS), feeds)
    np.testing.assert_allclose(familiarity, model.success.familiarity.of(lab.embedding[some]), atol=1e-5)
    np.testing.assert_allclose(success, model.success.predict(lab.embedding[some]), atol=1e-5)
    np.testing.assert_allclose(output_tokens, model.lengths.predict(lab.embedding[some]), rtol=1e-4)
    input_tokens = model.inputs.predict(lab.embedding[some], np.full(40, 100))
    assert input_tokens[:, 2].min() > 400
    np.testing.assert_allclose(cost_usd, (input_tokens + 3 * output_tokens) / 1e6, rtol=1e-4)
    np.testing.assert_array_equal(tier, success.argmax(axis=1))
    nearest = model.clusters.nearest(lab.embedding[some], tolerance=1e-5)
    assert all(number in numbers for number, numbers in zip(cluster, nearest, strict=True))


def test_parity_of_graph_and_models_is_found_and_measured(lab, model):
    parity = lab.parity(model, model.whole(lab.encoder))
    assert parity.success < 1e-4 and parity.output_tokens < 1e-3 and parity.raw_score_on_thresholds < 1e-4
    assert parity.familiarity < 1e-4
    assert (parity.n_prompts, parity.n_threshold_rows) == (60, 2000)


def test_models_that_learned_nothing_still_become_a_graph(lab):
    model = lab.model(correct=np.ones_like(lab.log.correct))
    model = replace(model, lengths=lab.lengths_of(np.full((300, 3), np.nan), np.full(3, 256.0)))
    assert lab.parity(model, model.whole(lab.encoder)).success < 1e-4


def test_thresholds_are_rounded_down_so_that_no_float32_changes_sides():
    rng = np.random.default_rng(0)
    for threshold in [*rng.normal(size=200), 0.1, 0.0, float(np.float32(0.1))]:
        rounded = float32_threshold(threshold)
        assert float(rounded) <= threshold < float(np.nextafter(rounded, np.float32(np.inf)))


def test_on_both_sides_of_zero_the_trees_go_where_lightgbm_goes():
    """LightGBM splits beside zero at +-1e-35, and takes what is no further from zero than that for zero."""
    rng = np.random.default_rng(0)
    feature = np.repeat([-1.0, 0.0, 1.0], 100).astype(np.float32) * rng.random(300).astype(np.float32)
    settings = {**lightgbm_settings(300, 0), "feature_fraction": 1.0}
    data = lightgbm.Dataset(feature[:, None], np.sign(feature) ** 2 + np.sign(feature))
    booster = lightgbm.train(settings, data, 20)
    graph = Graph()
    graph.trees("x", [booster])
    kinds = (TensorProto.FLOAT, ["n", 1])
    session = cpu_session(graph.model({"x": kinds}, {"raw_scores": kinds}))
    zero = np.float32(1e-35)
    beside = [np.nextafter(side, toward) for side in (-zero, zero) for toward in np.float32([-1, 1])]
    values = np.array([-zero, *beside, zero, 0.0, -0.0, -1e-40, 1e-40], np.float32)[:, None]
    assert np.ptp(booster.predict(values)) > 0.1
    np.testing.assert_allclose(session.run(None, {"x": values})[0][:, 0], booster.predict(values), atol=1e-5)


def test_a_categorical_split_is_refused_rather_than_mistaken():
    class Booster:
        def num_model_per_iteration(self):
            return 1

        def dump_model(self):
            return {"tree_info": [{"tree_structure": {"split_feature": 0, "decision_type": "==", "threshold": "1||2"}}]}

    with pytest.raises(ValueError, match="numerical splits only"):
        ensemble_attributes([Booster()])


def test_inputs_and_outputs_are_those_of_the_contract_and_operators_standard(bundle):
    graph = onnx.load(bundle / "router.onnx")
    assert [value.name for value in graph.graph.output][:4] == list(OUTPUTS)[:4]
    for expected, found in ((INPUTS, graph.graph.input), (OUTPUTS, graph.graph.output)):
        assert {
            value.name: (value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)) for value in found
        } == expected
    assert {domain.domain for domain in graph.opset_import} <= {"", "ai.onnx", "ai.onnx.ml"}
    assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx", "ai.onnx.ml"}
    assert not graph.functions


# ---- the decision ----------------------------------------------------------------------------------


def decision_session(n_tiers):
    """A graph with nothing but the decision in it."""
    graph = Graph()
    add_decision(graph, "success", graph.column("context_tokens"), "output_tokens")
    per_tier = (TensorProto.FLOAT, ["n", n_tiers])
    return cpu_session(
        graph.model(
            {"success": per_tier, "output_tokens": per_tier, **DECISION_INPUTS},
            {"cost_usd": per_tier, "tier": (TensorProto.INT64, ["n"])},
        )
    )


def by_the_rule(success, cost_usd, eligible, worth_usd, slack):
    """The rule of the design for one request, in words of Python."""
    tiers = [k for k in range(len(success)) if eligible[k]]
    if not tiers:
        return -1
    bar = max(success[k] for k in tiers) - slack
    admissible = [k for k in tiers if success[k] >= bar]
    return max(admissible, key=lambda k: (worth_usd * success[k] - cost_usd[k], success[k], -k))


@pytest.mark.parametrize("n_tiers", range(2, 7))
def test_the_graph_decides_by_the_rule(n_tiers):
    rng = np.random.default_rng(n_tiers)
    n = 3000
    feeds = {
        "success": rng.choice(np.linspace(0, 1, 21), (n, n_tiers)),  # ties are common
        "output_tokens": rng.choice([10, 100, 1000], (n, n_tiers)),
        "context_tokens": rng.choice([0, 50, 5000], n),
        "usd_per_mtok_input": rng.choice([0, 1, 2], (n, n_tiers)),
        "usd_per_mtok_output": rng.choice([0, 1, 8], (n, n_tiers)),
        "worth_usd": rng.choice([0, 0.001, 0.01, 10], n),
        "slack": rng.choice([0, 0.1, 0.33, 1], n),
    }
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    feeds["eligible"] = rng.random((n, n_tiers)) < 0.7
    cost_usd, tier = decision_session(n_tiers).run(["cost_usd", "tier"], feeds)
    expected_cost = feeds["context_tokens"][:, None] * feeds["usd_per_mtok_input"]
    expected_cost = (expected_cost + feeds["output_tokens"] * feeds["usd_per_mtok_output"]) / 1e6
    np.testing.assert_allclose(cost_usd, expected_cost, rtol=1e-6)
    dials = feeds["eligible"], feeds["worth_usd"], feeds["slack"]
    np.testing.assert_array_equal(tier, decide(feeds["success"], cost_usd, *dials))
    rows = zip(feeds["success"], cost_usd, *dials, strict=True)
    assert tier.tolist() == [by_the_rule(*row) for row in rows]
    assert set(tier.tolist()) == set(range(-1, n_tiers))


def test_the_dearest_price_and_the_largest_worth_still_decide():
    feeds = {
        "success": np.array([[0.2, 0.9]]),
        "output_tokens": np.array([[1e6, 1e6]]),
        "context_tokens": np.array([1e9]),
        "usd_per_mtok_input": np.array([[1e6, 1e7]]),
        "usd_per_mtok_output": np.array([[1e6, 1e7]]),
        "worth_usd": np.array([1e12]),
        "slack": np.array([1.0]),
    }
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()} | {"eligible": np.array([[True, True]])}
    assert decision_session(2).run(["tier"], feeds)[0].tolist() == [1]


# ---- the gate --------------------------------------------------------------------------------------


def tampered(graph, name_part, change):
    """The graph with one constant changed."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    for tensor in graph.graph.initializer:
        if name_part in tensor.name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(tensor)), tensor.name))
    return graph


def test_the_gate_refuses_a_graph_that_estimates_otherwise(lab):
    model = lab.model()
    graph = model.whole(lab.encoder)
    with pytest.raises(ParityError, match="not exported"):
        lab.parity(model, tampered(graph, "token_vectors", lambda table: table * 1.01 if table.ndim == 2 else table))
    with pytest.raises(ParityError, match="not exported"):
        lab.parity(model, tampered(graph, "token_vectors", lambda table: table * np.nan if table.ndim == 2 else table))


def test_the_gate_refuses_models_of_other_lengths_or_another_calibration(lab):
    model = lab.model()
    graph = model.whole(lab.encoder)
    longer = replace(model.lengths, scale=model.lengths.scale * 1.1)
    calibration = model.success.calibration
    surer = replace(model.success, calibration=replace(calibration, slope=calibration.slope * 1.1))
    for other in (replace(model, lengths=longer), replace(model, success=surer)):
        with pytest.raises(ParityError):
            lab.parity(other, graph)


def test_the_gate_refuses_a_graph_that_decides_by_another_rule(lab):
    model = lab.model()
    graph = model.whole(lab.encoder)
    for node in graph.graph.node:
        if node.op_type == "Sub" and node.input[1] == "cost_usd":
            node.op_type = "Add"  # takes the dearest
    with pytest.raises(ParityError, match="tier"):
        lab.parity(model, graph)


def test_where_the_gate_refuses_nothing_is_left_behind_and_the_former_bundle_stays(sample, small, monkeypatch):
    log, config, out = small.log, small.config, small.result.bundle
    before = sorted(path.name for path in out.parent.iterdir())
    whole = TierModel.whole

    def wrong(self, encoder):
        return tampered(whole(self, encoder), "token_vectors", lambda table: table * 1.01 if table.ndim == 2 else table)

    monkeypatch.setattr(TierModel, "whole", wrong)
    with pytest.raises(ParityError):
        train(log, sample[1], out, config, tracking_uri="none")
    monkeypatch.undo()
    monkeypatch.setattr(training.pipeline, "write_report", lambda *_: 1 / 0)  # fails when the draft is already there
    with pytest.raises(ZeroDivisionError):
        train(log, sample[1], out.with_name("new"), config, tracking_uri="none")
    assert sorted(path.name for path in out.parent.iterdir()) == before
    assert not any("tmp" in name or "new" in name for name in before)
    assert Bundle.load(out).manifest == small.result.manifest
    assert check_golden(out).passed


# ---- the folder ------------------------------------------------------------------------------------


def test_the_bundle_holds_exactly_the_files_of_the_contract(trained):
    assert {path.name for path in trained.bundle.iterdir()} == FILES
    manifest = json.loads((trained.bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest["tiers"] == ["edge", "distilled", "frontier"]
    assert manifest["training"]["data_digest"] == trained.log.digest
    assert manifest["training"]["first_timestamp"] < manifest["training"]["last_timestamp"]
    assert manifest["mlflow_run_id"] is None
    assert [tier.name for tier in read_tiers(trained.bundle / "tiers.toml")] == manifest["tiers"]


def test_every_number_in_the_bundle_is_json_that_any_language_reads(bundle):
    def refuse(constant):
        raise AssertionError(constant)

    for name in ("manifest.json", "report.json"):
        json.loads((bundle / name).read_text(), parse_constant=refuse)
    for line in (bundle / "golden.jsonl").read_text().split("\n")[:-1]:
        json.loads(line, parse_constant=refuse)


def test_a_draft_stands_elsewhere_until_it_is_complete_and_its_manifest_is_written_last(lab, trained, tmp_path):
    graph, tiers_text = lab.model().whole(lab.encoder), (trained.bundle / "tiers.toml").read_text()
    clusters = Bundle.load(trained.bundle).clusters
    draft = draft_bundle(tmp_path / "new", lab.encoder, graph, tiers_text, clusters, {}, trained.manifest)
    assert not (tmp_path / "new").exists()
    (draft.folder / "report.json").write_text("{}")
    manifest = draft.publish()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "new").iterdir()}
    assert written.pop("manifest.json") >= max(written.values())
    assert set(manifest.files) == set(written)
    assert Bundle.load(tmp_path / "new").manifest == manifest


def test_a_draft_that_cannot_be_finished_leaves_nothing(lab, trained, tmp_path):
    graph = lab.model().whole(lab.encoder)
    with pytest.raises(BundleError):
        draft_bundle(tmp_path / "new", lab.encoder, graph, "no tiers", (), {}, trained.manifest)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_any_byte_of_any_file_is_covered_by_a_digest(copy, name):
    path = copy / name
    content = bytearray(path.read_bytes())
    for position in (0, len(content) // 2, len(content) - 1):
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(BundleError, match=f"{name} has SHA-256"):
            Bundle.load(copy)
        content[position] ^= 1
    path.write_bytes(content)
    assert Bundle.load(copy)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.load(copy)


def changed_manifest(folder, change, *, seal):
    """Change the manifest; with seal, its digest is made to fit again."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    if seal:
        document.pop("digest")
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        document["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    path.write_text(json.dumps(document))


def test_the_manifests_digest_is_that_of_its_canonical_content(copy):
    changed_manifest(copy, lambda document: None, seal=True)
    assert Bundle.load(copy).manifest.bundle_id == json.loads((copy / "manifest.json").read_text())["digest"][:16]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["dial"][0].update(slack=1.0),
        lambda document: document.update(default_quality=0.1),
        lambda document: document["training"].update(n_prompts=10**6),
        lambda document: document.update(digest="0" * 64),
    ],
)
def test_an_altered_manifest_is_refused(copy, change):
    changed_manifest(copy, change, seal=False)
    with pytest.raises(BundleError, match="altered"):
        Bundle.load(copy)


@pytest.mark.parametrize("version", [0, FORMAT_VERSION + 1, "1", None])
def test_another_format_is_refused_whatever_else_it_says(copy, version):
    changed_manifest(copy, lambda document: document.update(format_version=version), seal=True)
    with pytest.raises(BundleError, match=f"expected {FORMAT_VERSION}"):
        Bundle.load(copy)


def test_a_manifest_with_missing_unknown_or_unreadable_content_is_refused(copy):
    text = (copy / "manifest.json").read_text()
    for broken in ("", "{", "[]", "null", text[:-20]):
        with pytest.raises(BundleError):
            Manifest.from_json(broken)
    changed_manifest(copy, lambda document: document.update(surprise=1), seal=True)
    with pytest.raises(BundleError, match="surprise"):
        Bundle.load(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(BundleError, match="no complete bundle"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(tiers=["edge", "edge", "frontier"]), "different names"),
        (lambda document: document.update(tiers=[]), "at least one"),
        (lambda document: document.update(best_tier="nowhere"), "found best_tier 'nowhere'; expected one of"),
        (lambda document: document["success"].pop(), "found 2 and 3 means"),
        (lambda document: document.update(output_tokens=[1, float("nan"), 3]), "numbers of at least 0"),
        (lambda document: document.update(output_tokens=[1, 10**400, 3]), "numbers of at least 0"),
        (lambda document: document["encoder"].update(max_chars=-1), "max_chars"),
        (lambda document: document["encoder"].update(tokens_per_char="a"), "numbers of at least 0 for tokens"),
        (lambda document: document.update(default_quality=0), "default_quality"),
        (lambda document: document.update(dial=[]), "without rows"),
        (lambda document: document["dial"][2].update(slack=float("nan")), "finite numbers"),
        (lambda document: document["dial"][2].update(n_needed="many"), "finite numbers"),
        (lambda document: document["dial"][2].update(segments=[1]), "another form"),
        (lambda document: document["dial"].reverse(), "qualities that rise"),
        (lambda document: document["dial"][-1].update(slack=1.0), "slacks that do not"),
        (lambda document: document["promise"].update(n_prompts="many"), "n_prompts"),
        (lambda document: document.update(promise=[]), "another form"),
        (lambda document: document["files"].update({"../x": "0" * 64}), "files of the folder itself"),
        (lambda document: document["files"].update({"/etc/passwd": "0" * 64}), "files of the folder itself"),
        (lambda document: document["files"].update({"..": "0" * 64}), "files of the folder itself"),
        (lambda document: document["files"].update({f"f{n}": "0" * 64 for n in range(200)}), "at most 100"),
    ],
)
def test_a_manifest_that_no_router_could_work_with_is_refused_though_its_digest_holds(copy, change, message):
    changed_manifest(copy, change, seal=True)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


@pytest.mark.parametrize("text", ["[" * 20_000, '{"format_version": ' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_an_absurd_manifest_or_list_of_clusters_is_refused(copy, text):
    with pytest.raises(BundleError):
        Manifest.from_json(text)
    with pytest.raises(BundleError):
        parse_clusters(text.encode(), "clusters.json")


def test_a_file_of_the_bundle_is_a_regular_one_inside_the_folder(copy, tmp_path):
    elsewhere = tmp_path / "elsewhere.md"
    (copy / "README.md").rename(elsewhere)
    (copy / "README.md").symlink_to(elsewhere)
    with pytest.raises(BundleError, match=r"README.md leads out of the folder, to .*; copy the file itself"):
        Bundle.load(copy)
    for make in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("README.md")):
        (copy / "README.md").rename(tmp_path / uuid4().hex) if (copy / "README.md").is_dir() else None
        (copy / "README.md").unlink(missing_ok=True)
        make(copy / "README.md")
        with pytest.raises(BundleError, match="README.md cannot be read"):
            Bundle.load(copy)


def test_links_inside_the_folder_and_to_the_folder_are_followed(copy, tmp_path):
    (copy / "README.md").rename(copy / "text.md")
    (copy / "README.md").symlink_to("text.md")
    (tmp_path / "champion").symlink_to(copy)
    assert Bundle.load(tmp_path / "champion").path == copy


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_beyond_all_measure_is_refused_by_its_size(copy, name):
    with (copy / name).open("r+b") as file:
        file.truncate(2**40)  # takes no space on the disk
    with pytest.raises(BundleError, match="1,099,511,627,776 bytes; expected at most"):
        Bundle.load(copy)


def test_a_manifest_survives_being_written_and_read(trained):
    assert Manifest.from_json(trained.manifest.to_json()) == trained.manifest


def test_a_folder_that_is_no_bundle_is_never_overwritten(sample, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "precious.txt"):
        with pytest.raises(ConfigError, match="is no bundle"):
            train(sample[0], sample[1], target, tracking_uri="none")
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_same_seed_and_cache_make_the_same_bytes(sample, small, tmp_path):
    again = train(small.log, sample[1], tmp_path / "again", small.config, tracking_uri="none")
    assert (small.result.encoder_reused, again.encoder_reused, again.n_embedded) == (False, True, 0)
    for name in ("router.onnx", "tokenizer.json", "golden.jsonl", "golden_plans.jsonl", "tiers.toml"):
        assert (small.result.bundle / name).read_bytes() == (again.bundle / name).read_bytes()
    assert small.result.manifest.dial == again.manifest.dial


def test_the_number_of_cores_changes_nothing(sample, small, tmp_path):
    """Not even the encoder's singular vectors, which depend on how a matrix product is divided."""
    found = set()
    for n_threads in (1, 2):
        with threadpool_limits(n_threads):
            config = replace(small.config, cache=tmp_path / f"cache-{n_threads}")
            bundle = train(small.log, sample[1], tmp_path / f"on-{n_threads}", config, tracking_uri="none")
        assert not bundle.encoder_reused
        found.add(bundle.manifest.bundle_id)
    assert len(found) == 1


# ---- golden prompts --------------------------------------------------------------------------------


def test_twenty_golden_prompts_decide_as_written_and_are_those_of_the_source(bundle, router):
    entries = [json.loads(line) for line in (bundle / "golden.jsonl").read_text().split("\n")[:-1]]
    assert [entry["prompt"] for entry in entries] == list(GOLDEN_PROMPTS)
    assert len(entries) == 20
    for entry in entries:
        decision = router.route(entry["prompt"])
        assert decision.tier == entry["tier"]
        for name in ("success", "output_tokens", "cost_usd"):
            np.testing.assert_allclose(list(getattr(decision, name).values()), entry[name], rtol=1e-5)
    assert check_golden(bundle).passed


def test_a_golden_familiarity_that_differs_fails_the_check(copy):
    lines = (copy / "golden.jsonl").read_text().split("\n")
    entry = json.loads(lines[3])
    lines[3] = json.dumps({**entry, "familiarity": entry["familiarity"] - 0.01})
    (copy / "golden.jsonl").write_text("\n".join(lines))
    digest = hashlib.sha256((copy / "golden.jsonl").read_bytes()).hexdigest()
    changed_manifest(copy, lambda document: document["files"].update({"golden.jsonl": digest}), seal=True)
    check = check_golden(copy)
    assert not check.passed and check.largest_difference == pytest.approx(0.01, abs=1e-4)


def test_a_graph_without_familiarity_is_refused_when_it_is_loaded(copy):
    graph = onnx.load(copy / "router.onnx")
    kept = [output for output in graph.graph.output if output.name != "familiarity"]
    del graph.graph.output[:]
    graph.graph.output.extend(kept)
    (copy / "router.onnx").write_bytes(graph.SerializeToString())
    digest = hashlib.sha256((copy / "router.onnx").read_bytes()).hexdigest()
    changed_manifest(copy, lambda document: document["files"].update({"router.onnx": digest}), seal=True)
    with pytest.raises(BundleError, match="no output familiarity"):
        Bundle.load(copy)


def test_a_graph_of_another_familiarity_is_refused_though_success_hardly_differs(lab):
    model = lab.model()

    def with_threshold(threshold):
        success = replace(model.success, familiarity=replace(model.success.familiarity, threshold=threshold))
        return replace(model, success=success)

    ours, other = with_threshold(1.0), with_threshold(1.0003)  # no prompt is quite familiar
    assert lab.parity(ours, ours.whole(lab.encoder)).familiarity < 1e-5
    with pytest.raises(ParityError, match="familiarity of graph and models differ"):
        lab.parity(ours, other.whole(lab.encoder))


@pytest.mark.parametrize(("name", "value"), [("success", 0.5), ("output_tokens", 9.0), ("cost_usd", 1.0)])
def test_a_golden_estimate_that_differs_fails_the_check_even_if_every_digest_holds(copy, name, value):
    lines = (copy / "golden.jsonl").read_text().split("\n")
    entry = json.loads(lines[3])
    entry[name][1] = value
    (copy / "golden.jsonl").write_text("\n".join([*lines[:3], json.dumps(entry), *lines[4:]]))
    with pytest.raises(BundleError, match="golden.jsonl has SHA-256"):
        check_golden(copy)
    digest = hashlib.sha256((copy / "golden.jsonl").read_bytes()).hexdigest()
    changed_manifest(copy, lambda document: document["files"].update({"golden.jsonl": digest}), seal=True)
    check = check_golden(copy)
    assert not check.passed and check.n_prompts == 20
    assert main(["verify", "--bundle", str(copy)]) == 1


# ---- graphs that are not ours ----------------------------------------------------------------------


def put_graph(folder, graph):
    """Put another graph into a bundle, digests and all."""
    content = graph if isinstance(graph, bytes) else graph.SerializeToString()
    (folder / "router.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    changed_manifest(folder, lambda document: document["files"].update({"router.onnx": digest}), seal=True)


def add_loop(graph):
    body = helper.make_graph([], "body", [], [])
    graph.graph.node.append(helper.make_node("Loop", [], [], body=body))


def add_foreign(graph):
    graph.graph.node.append(helper.make_node("Gelu", [], [], domain="com.microsoft"))
    graph.graph.node[-1].op_type = "Add"


def keep_elsewhere(graph):
    graph.graph.initializer[0].data_location = TensorProto.EXTERNAL


def keep_constant_elsewhere(graph):
    node = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [1.0]))
    node.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    graph.graph.node.append(node)


def claim_too_much(graph):
    graph.graph.initializer[0].dims[0] = 2**50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_loop, "router.onnx has the operator 'Loop'; expected only"),
        (lambda graph: graph.graph.node.append(helper.make_node("If", [], [])), "the operator 'If'"),
        (lambda graph: graph.graph.node.append(helper.make_node("Scan", [], [])), "the operator 'Scan'"),
        (lambda graph: graph.graph.node.append(helper.make_node("RandomNormal", [], [])), "'RandomNormal'"),
        (add_foreign, "com.microsoft"),
        (lambda graph: graph.functions.add(name="f"), "functions"),
        (lambda graph: graph.training_info.add(), "training steps"),
        (lambda graph: graph.graph.sparse_initializer.add(), "sparse"),
        (keep_elsewhere, "keeps a tensor in another file"),
        (keep_constant_elsewhere, "keeps a tensor in another file"),
        (claim_too_much, "expected them all to be there"),
    ],
)
def test_a_graph_with_what_the_exporter_never_writes_is_refused_by_name(copy, change, message):
    graph = onnx.load(copy / "router.onnx")
    change(graph)
    put_graph(copy, graph)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_the_operators_of_a_graph_are_those_that_its_bytes_say(bundle):
    content = (bundle / "router.onnx").read_bytes()
    assert {node.op_type for node in onnx.load(bundle / "router.onnx").graph.node} <= OWN
    assert refused_operators(content) == ""
    for cut in (1, len(content) // 2, len(content) - 1):
        assert "no ONNX graph" in refused_operators(content[:cut])
    assert "no ONNX graph" in refused_operators(b"\xff" * 100)


def test_a_graph_whose_answers_have_another_form_is_refused(copy):
    graph = onnx.load(copy / "router.onnx")
    for node in graph.graph.node:
        node.output[:] = ["inner" if name == "tier" else name for name in node.output]
    seven = helper.make_tensor("seven", TensorProto.INT64, [], [7])
    graph.graph.initializer.append(seven)
    graph.graph.node.append(helper.make_node("Add", ["inner", "seven"], ["tier"]))
    put_graph(copy, graph)
    with pytest.raises(BundleError, match="answers tier"):
        Bundle.load(copy)


class Rogue:
    """An engine that answers, or fails, in a way that no check at loading foresaw."""

    def __init__(self, answers):
        self.answers = answers

    def run(self, feeds):
        if isinstance(self.answers, Exception):
            raise self.answers
        return [np.array([value] * len(feeds["input_ids"])) for value in self.answers]


@pytest.mark.parametrize(
    "answers",
    [
        RuntimeError("indices out of bounds"),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 7, 1.0, 0),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], -9, 1.0, 10**6),
        ([0.1, 0.2, 0.3], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], -1, 1.0, -1),
    ],
)
def test_route_does_not_raise_whatever_the_graph_does(bundle, answers):
    router = Router(replace(Bundle.load(bundle), engine=Rogue(answers)))
    for decision in (router.route("Hello!"), *router.route_batch(["Hello!", "Hi", ""])):
        assert decision.fallback and decision.tier == router.bundle.manifest.best_tier and decision.reason


# ---- privacy ---------------------------------------------------------------------------------------


def test_no_prompt_of_the_log_is_in_any_file_that_training_writes_beside_its_cache(trained):
    longest = sorted(trained.log.prompts, key=len)[-50:]
    prompts = [*longest, *(prompt for prompt in trained.log.prompts[::40] if len(prompt) > 40)]
    assert len(prompts) > 80
    files = [*trained.bundle.iterdir(), TrainingData.path_of(trained.bundle)]
    contents = [path.read_bytes() for path in files]
    contents.append(pd.read_parquet(TrainingData.path_of(trained.bundle)).drop(columns="embedding").to_csv().encode())
    for prompt in prompts:
        for piece in (prompt, json.dumps(prompt)[1:-1], prompt[:40]):
            assert not any(piece.encode() in content for content in contents)


def test_the_training_part_belongs_to_its_bundle_alone(trained):
    path = TrainingData.path_of(trained.bundle)
    part = TrainingData.read(path, trained.manifest.bundle_id)
    assert len(part.groups) == trained.manifest.training["n_trained_on"]
    with pytest.raises(LogError, match="not of another"):
        TrainingData.read(path, "another")


def test_a_router_of_the_written_bundle_is_the_one_that_was_measured(trained):
    assert Router.load(trained.bundle).bundle.manifest == trained.manifest
    assert json.loads((trained.bundle / "report.json").read_text())["verdict"] == trained.evaluation.verdict
