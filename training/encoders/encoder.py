"""Encoders: from tokens to an embedding, as an ONNX graph that trains and serves alike.

Every encoder's graph takes input_ids and attention_mask, int64 (n, length), and gives `embedding`,
float32 (n, n_dims): vectors of the text, shares of token kinds, and the log of the length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
import scipy.sparse
from onnx import TensorProto, helper, numpy_helper
from sklearn.utils.extmath import randomized_svd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.encoders.piece_vectors import PieceVectors

OPSET = 17
IR_VERSION = 8
TOKEN_KINDS = (
    "bytes", "word_start", "lower", "upper", "digit", "space", "newline", "math", "code", "punctuation", "cjk", "other",
)  # fmt: skip
N_SURFACE = len(TOKEN_KINDS) + 1
"""Trailing columns of every embedding that are not vectors of the text: token kinds and the log of the length."""

MAX_CHARS_PER_TOKEN = 16
_INT8_MAX = 127
ENCODER_INPUTS = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and the graph that embeds its tokens.

    max_chars, max_tokens: where a text is cut, before and after tokenising.
    """

    name: str
    tokenizer_json: str = field(repr=False)
    graph: onnx.ModelProto = field(repr=False)
    max_chars: int
    max_tokens: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of tokenizer and graph."""
        content = self.tokenizer_json.encode() + self.graph.SerializeToString(deterministic=True)
        return hashlib.sha256(content + f"{self.max_chars},{self.max_tokens}".encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without padding, truncation set."""
        return Tokenizer.from_str(self.tokenizer_json)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as the router sees them."""
        encodings = self.tokenizer.encode_batch_fast([text[: self.max_chars] for text in texts])
        return [encoding.ids for encoding in encodings]


@dataclass(frozen=True)
class StaticRecipe:
    """How a static encoder is learned from a log.

    version: raise it whenever `learn_static` would make another encoder of the same prompts.
    """

    vocab_size: int = 16_000
    n_lsa: int = 64
    n_distilled: int = 64
    max_tokens: int = 1024
    max_chars: int = 8192
    max_sample: int = 200_000
    version: int = 2


def learn_static(prompts: Sequence[str], recipe: StaticRecipe = StaticRecipe(), seed: int = 0) -> Encoder:  # noqa: B008
    """A tokenizer and a table of token vectors, learned from prompts without labels.

    The tokenizer is a byte-level BPE, so no language has unknown tokens. A token's vector has two
    parts: its row of a truncated SVD of the idf-weighted (prompt x token) matrix (latent semantic
    analysis, Deerwester et al. 1990), and the sum of the distilled vectors of its text's word pieces
    (as model2vec composes static embeddings), rotated to its main directions on these prompts. A
    prompt is the mean of its tokens' vectors, each part scaled to length one.
    """
    chosen = np.random.default_rng(seed).permutation(len(prompts))[: recipe.max_sample]
    texts = [prompts[i][: recipe.max_chars] for i in np.sort(chosen)]
    tokenizer = _byte_level_bpe(texts, recipe)
    counts = _count_matrix(tokenizer, texts)
    token_texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    idf = np.log((counts.shape[0] + 1) / (np.bincount(counts.indices, minlength=counts.shape[1]) + 1)) + 1.0
    parts = [
        _lsa(counts, idf, recipe.n_lsa, seed),
        _main_directions(PieceVectors.load().compose(token_texts) * idf[:, None], counts, recipe.n_distilled),
    ]
    graph = _static_graph(parts, token_kinds(token_texts))
    return Encoder("static", tokenizer.to_str(), graph, recipe.max_chars, recipe.max_tokens)


def with_token_kinds(name: str, tokenizer: Tokenizer, graph: onnx.ModelProto, max_tokens: int) -> Encoder:
    """An encoder from a transformer's graph (`embedding` float32 (n, n_dims)), token kinds added to its vectors."""
    texts = [_readable(tokenizer, token) for token in range(tokenizer.get_vocab_size())]
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == "embedding":
                node.output[index] = "vectors"
    for node in model.graph.node:
        for index, source in enumerate(node.input):
            if source == "embedding":
                node.input[index] = "vectors"
    model.graph.initializer.extend(_pooling_tables("token_kinds", [token_kinds(texts)]))
    model.graph.node.extend(_pooling("token_kinds", []))
    model.graph.node.append(helper.make_node("Concat", ["vectors", "kinds", "log_length"], ["embedding"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", "n_dims"]))
    return Encoder(name, tokenizer.to_str(), model, max_tokens * MAX_CHARS_PER_TOKEN, max_tokens)


def token_kinds(texts: Sequence[str]) -> np.ndarray:
    """How many characters of each kind the tokens have, float32 (n_tokens, len(TOKEN_KINDS))."""
    table = np.zeros((len(texts), len(TOKEN_KINDS)), dtype=np.float32)
    for row, text in enumerate(texts):
        counts = dict.fromkeys(TOKEN_KINDS, 0)
        counts["bytes"] = len(text.encode("utf-8", "replace"))
        counts["word_start"] = int(len(text) > 1 and text[0] == " " and text[1].isalpha())
        for char in text:
            counts[_kind(char)] += 1
        table[row] = [counts[kind] for kind in TOKEN_KINDS]
    return table


def _kind(char: str) -> str:
    if char.isspace():
        return "newline" if char == "\n" else "space"
    if char.isdigit():
        return "digit"
    if "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af":
        return "cjk"
    if char.isalpha():
        return "upper" if char.isupper() else "lower"
    if char in "+-*/=^<>%$\\°±×÷√∑∫≤≥":
        return "math"
    if char in "{}[]()_`#;|&@~":
        return "code"
    return "punctuation" if char.isascii() else "other"


def _readable(tokenizer: Tokenizer, token: int) -> str:
    """Text of a token of any tokenizer; special tokens have none."""
    return tokenizer.decode([token]).removeprefix("##")


def _byte_level_bpe(texts: Sequence[str], recipe: StaticRecipe) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))  # a word of the vocabulary needs no merging: faster
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=2,
        max_token_length=MAX_CHARS_PER_TOKEN,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(recipe.max_tokens)
    return tokenizer


def _count_matrix(tokenizer: Tokenizer, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """How often each prompt has each token, float32 (n_prompts, n_tokens)."""
    ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in tokenizer.encode_batch_fast(list(texts))]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    indices = np.concatenate(ids) if ids else np.zeros(0, np.int32)
    shape = (len(ids), tokenizer.get_vocab_size())
    counts = scipy.sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=shape)
    counts.sum_duplicates()
    return counts


def _lsa(counts: scipy.sparse.csr_matrix, idf: np.ndarray, n_dims: int, seed: int) -> np.ndarray:
    """Idf x right singular vectors of the row-normalised idf-weighted counts, (n_tokens, n_dims)."""
    weighted = counts @ scipy.sparse.diags(idf)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    weighted = scipy.sparse.diags(1 / np.maximum(norms, 1e-9)) @ weighted
    n_dims = min(n_dims, min(weighted.shape) - 1)
    _, _, right = randomized_svd(weighted.astype(np.float32).tocsr(), n_dims, n_iter=3, random_state=seed)
    return np.asarray(idf[:, None] * right.T)


def _main_directions(part: np.ndarray, counts: scipy.sparse.csr_matrix, n_dims: int) -> np.ndarray:
    """Token vectors rotated and cut to the main directions of the prompts they pool to; linear, so still a table."""
    pooled = counts @ part
    pooled /= np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-9)
    _, directions = np.linalg.eigh(np.cov(pooled, rowvar=False))
    return np.asarray(part @ directions[:, ::-1][:, :n_dims])


def _static_graph(parts: Sequence[np.ndarray], kinds: np.ndarray) -> onnx.ModelProto:
    """Gather, masked sum, each part to length one; kinds per token and log length beside them."""
    names = [f"part_{index}" for index in range(len(parts))]
    nodes = _pooling("token_vectors", names)
    for name in names:
        nodes.append(helper.make_node("LpNormalization", [name], [f"{name}_unit"], axis=1, p=2))
    units = [f"{name}_unit" for name in names]
    nodes.append(helper.make_node("Concat", [*units, "kinds", "log_length"], ["embedding"], axis=1))
    initializers = _pooling_tables("token_vectors", [*parts, kinds])
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "length"]) for name in ENCODER_INPUTS]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", "n_dims"])
    graph = helper.make_graph(nodes, "encoder", inputs, [output], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _pooling_tables(table: str, blocks: Sequence[np.ndarray]) -> list[onnx.TensorProto]:
    """What `_pooling` reads: the blocks and a column of ones side by side, and the width of each.

    The table is int8 with a scale per column: a quarter of the memory traffic, which is most of an encoder's time
    on prompts that differ. Estimators are fitted on what the rounded table gives. Counts are stored as they are.
    """
    ones = np.ones((len(blocks[0]), 1))
    widths = np.array([block.shape[1] for block in (*blocks, ones)], dtype=np.int64)
    values = np.concatenate([*blocks, ones], axis=1)
    scale = np.abs(values).max(axis=0) / _INT8_MAX
    scale[(values == np.round(values)).all(axis=0) & (scale <= 1)] = 1.0
    levels = np.round(values / np.maximum(scale, np.finfo(np.float32).tiny)).astype(np.int8)
    return [
        numpy_helper.from_array(levels, table),
        numpy_helper.from_array(scale.astype(np.float32), f"{table}_scale"),
        numpy_helper.from_array(widths, f"{table}_widths"),
    ]


def _pooling(table: str, parts: Sequence[str]) -> list[onnx.NodeProto]:
    """Nodes from ids and mask to sums of the table's rows over a prompt's tokens, block by block.

    parts: names for the sums of all blocks but the last two, which are the token kinds (`kinds`, per
    token) and the count of tokens (`log_length`, its logarithm, (n, 1)).
    """

    def constant(name: str, value: np.ndarray) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))

    return [
        constant("pool_axis", np.array([1], np.int64)),
        constant("pool_one", np.array(1.0, np.float32)),
        helper.make_node("Gather", [table, "input_ids"], ["token_levels"]),  # int8 (n, length, n_dims)
        helper.make_node("Cast", ["token_levels"], ["token_rows"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "pool_axis"], ["mask_row"]),  # (n, 1, length)
        helper.make_node("MatMul", ["mask_row", "token_rows"], ["pooled_row"]),  # (n, 1, n_dims)
        helper.make_node("Squeeze", ["pooled_row", "pool_axis"], ["pooled_levels"]),
        helper.make_node("Mul", ["pooled_levels", f"{table}_scale"], ["pooled"]),
        helper.make_node("Split", ["pooled", f"{table}_widths"], [*parts, "kinds_sum", "n_tokens"], axis=1),
        helper.make_node("Max", ["n_tokens", "pool_one"], ["n_tokens_or_one"]),
        helper.make_node("Div", ["kinds_sum", "n_tokens_or_one"], ["kinds"]),
        helper.make_node("Log", ["n_tokens_or_one"], ["log_length"]),
    ]
