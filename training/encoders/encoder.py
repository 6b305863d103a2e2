"""An encoder: from tokens to an embedding, as an ONNX graph that trains and serves alike.

Every encoder's graph takes `input_ids` and `attention_mask`, int64 (n, length), and gives `embedding`,
float32 (n, n_dims): first vectors of the text, then N_SURFACE columns: shares of token kinds and the log of the length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

TOKEN_KINDS = (
    "bytes", "word_start", "lower", "upper", "digit", "space", "newline", "math", "code", "punctuation", "cjk", "other",
)  # fmt: skip
N_SURFACE = len(TOKEN_KINDS) + 1
"""How many columns at the end of every embedding are not vectors of the text: token kinds and the log of the length."""

MAX_CHARS_PER_TOKEN = 16
_INT8_MAX = 127


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
        """SHA-256 of tokenizer, graph and cuts."""
        content = self.tokenizer_json.encode() + self.graph.SerializeToString(deterministic=True)
        return hashlib.sha256(content + f"{self.max_chars},{self.max_tokens}".encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which cuts at max_tokens and does not pad."""
        return Tokenizer.from_str(self.tokenizer_json)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, as the router sees them."""
        encodings = self.tokenizer.encode_batch_fast([text[: self.max_chars] for text in texts])
        return [encoding.ids for encoding in encodings]


def with_token_kinds(name: str, tokenizer: Tokenizer, graph: onnx.ModelProto, max_tokens: int) -> Encoder:
    """An encoder from a transformer's graph: its `embedding`, float32 (n, d), becomes the vectors of the text.

    graph: reads `input_ids` and `attention_mask`; it is copied and not changed.
    """
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
    model.graph.initializer.extend(pooling_tables("token_kinds", [token_kinds(texts)]))
    model.graph.node.extend(pooling("token_kinds", []))
    model.graph.node.append(helper.make_node("Concat", ["vectors", "kinds", "log_length"], ["embedding"], axis=1))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", "n_dims"]))
    return Encoder(
        name=name,
        tokenizer_json=tokenizer.to_str(),
        graph=model,
        max_chars=max_tokens * MAX_CHARS_PER_TOKEN,
        max_tokens=max_tokens,
    )


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
    if is_cjk(char):
        return "cjk"
    if char.isalpha():
        return "upper" if char.isupper() else "lower"
    if char in "+-*/=^<>%$\\°±×÷√∑∫≤≥":
        return "math"
    if char in "{}[]()_`#;|&@~":
        return "code"
    return "punctuation" if char.isascii() else "other"


def is_cjk(char: str) -> bool:
    """Whether a character is Chinese, Japanese or Korean: an ideograph, kana or a Hangul syllable."""
    return "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\uac00" <= char <= "\ud7af"


def _readable(tokenizer: Tokenizer, token: int) -> str:
    """Text of a token of any tokenizer; special tokens have none."""
    return tokenizer.decode([token]).removeprefix("##")


def pooling_tables(table: str, blocks: Sequence[np.ndarray]) -> list[onnx.TensorProto]:
    """What `pooling` reads: the blocks and a column of ones side by side, a scale per column, the width of each block.

    blocks: a row per token, each (n_tokens, its width).
    The table is int8 with a scale per column. That takes a quarter of the memory traffic, which is most of a static
    encoder's time. Estimators are fitted on what the rounded table gives. Counts of at most 127 are stored exactly.
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


def pooling(table: str, parts: Sequence[str]) -> list[onnx.NodeProto]:
    """Nodes that sum the rows of a table over each prompt's tokens, block by block.

    table: name of the table that `pooling_tables` made. parts: names for the sums of all its blocks but the last two.
    The last two become `kinds`, the token kinds per token, and `log_length`, the logarithm of the number of tokens,
    (n, 1).
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
