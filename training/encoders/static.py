"""The static encoder: a tokenizer and a table of token vectors, learned from the log's own prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import scipy.sparse
from onnx import TensorProto, helper
from sklearn.utils.extmath import randomized_svd
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from training.encoders.encoder import MAX_CHARS_PER_TOKEN, Encoder, pooling, pooling_tables, token_kinds
from training.encoders.ngrams import cjk_ngrams
from training.encoders.piece_vectors import PieceVectors
from training.graph.builder import ENCODER_INPUTS, IR_VERSION, OPSET, value_infos
from training.log.sample import evenly

N_NGRAM_DIMS = 64

NGRAM_WEIGHT = 3.0
"""Of n-grams in a prompt that has other words, too: the names, digits and option letters in Chinese text say less."""

MAX_NGRAM_PROMPTS = 20_000
"""Vectors of n-grams are learned from at most so many prompts: with more they change little, and take longer."""


@dataclass(frozen=True)
class StaticRecipe:
    """How a static encoder is learned from a log.

    vocab_size: tokens of the tokenizer. n_lsa, n_distilled: dimensions of the two parts of a token's vector.
    max_tokens, max_chars: where a prompt is cut. max_sample: at most so many prompts are learned from.
    version: raise it whenever `learn_static` would make another encoder of the same prompts.
    """

    vocab_size: int = 16_000
    n_lsa: int = 64
    n_distilled: int = 64
    max_tokens: int = 1024
    max_chars: int = 8192
    max_sample: int = 200_000
    version: int = 3


def learn_static(prompts: Sequence[str], recipe: StaticRecipe = StaticRecipe(), seed: int = 0) -> Encoder:  # noqa: B008
    """Learn a tokenizer and a table of token vectors from prompts alone, without labels.

    The tokenizer is a byte-level BPE, so no language has unknown tokens. The vector of a token has two parts. The first
    is the token's row of a truncated SVD of the idf-weighted (prompt x token) matrix (latent semantic analysis,
    Deerwester et al. 1990). The second is made of the token's text (see `_of_texts`), rotated to its main directions on
    these prompts. The vector of a prompt is the sum of its tokens' vectors, each part scaled to length one.
    """
    chosen = np.random.default_rng(seed).permutation(len(prompts))[: recipe.max_sample]
    texts = [prompts[i][: recipe.max_chars] for i in np.sort(chosen)]
    tokenizer = _byte_level_bpe(texts, recipe)
    counts = _count_matrix(tokenizer, texts)
    token_texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    parts = [
        _lsa(counts, recipe.n_lsa, seed),
        _main_directions(_of_texts(token_texts, counts, seed), counts, recipe.n_distilled),
    ]
    graph = _static_graph(parts, token_kinds(token_texts))
    return Encoder(
        name="static",
        tokenizer_json=tokenizer.to_str(),
        graph=graph,
        max_chars=recipe.max_chars,
        max_tokens=recipe.max_tokens,
    )


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


def _of_texts(token_texts: Sequence[str], counts: scipy.sparse.csr_matrix, seed: int) -> np.ndarray:
    """Vectors of tokens from what stands in their texts, (n_tokens, n_dims).

    The sum of the distilled vectors of the word pieces in a token's text (as model2vec composes static embeddings). The
    distilled model reads no Chinese, Japanese or Korean. A token with such characters has instead the sum of the
    vectors of the character n-grams in it, by LSA of the prompts' n-grams, in dimensions of their own.
    """
    distilled: np.ndarray = PieceVectors.load().compose(token_texts) * _idf(counts)[:, None]
    inside = cjk_ngrams(token_texts)
    few = counts[evenly(counts.shape[0], MAX_NGRAM_PROMPTS)] @ inside
    known = np.bincount(few.indices, minlength=few.shape[1]) > 1
    if known.sum() < 2:
        return distilled
    of_ngrams = inside[:, known] @ _lsa(few[:, known], N_NGRAM_DIMS, seed)
    distilled[np.diff(inside.indptr) > 0] = 0
    return np.concatenate([_evened(distilled, counts), NGRAM_WEIGHT * _evened(of_ngrams, counts)], axis=1)


def _evened(part: np.ndarray, counts: scipy.sparse.csr_matrix) -> np.ndarray:
    """Scaled so that the prompts that have anything of this part have vectors of length one on average."""
    lengths = np.linalg.norm(counts @ part, axis=1)
    return np.asarray(part / max(lengths[lengths > 0].mean(), 1e-9) if lengths.any() else part)


def _idf(counts: scipy.sparse.csr_matrix) -> np.ndarray:
    """Inverse document frequency of each column, (n_columns,)."""
    return np.asarray(np.log((counts.shape[0] + 1) / (np.bincount(counts.indices, minlength=counts.shape[1]) + 1)) + 1)


def _lsa(counts: scipy.sparse.csr_matrix, n_dims: int, seed: int) -> np.ndarray:
    """Idf x right singular vectors of the row-normalised idf-weighted counts, (n_columns, n_dims)."""
    idf = _idf(counts)
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
    """The encoder's graph: sums each part over a prompt's tokens, scales it to length one, appends the surface columns.

    parts: vectors of the tokens, each (n_tokens, its width). kinds: (n_tokens, len(TOKEN_KINDS)).
    """
    names = [f"part_{index}" for index in range(len(parts))]
    nodes = pooling("token_vectors", names)
    for name in names:
        nodes.append(helper.make_node("LpNormalization", [name], [f"{name}_unit"], axis=1, p=2))
    units = [f"{name}_unit" for name in names]
    nodes.append(helper.make_node("Concat", [*units, "kinds", "log_length"], ["embedding"], axis=1))
    initializers = pooling_tables("token_vectors", [*parts, kinds])
    outputs = value_infos({"embedding": (TensorProto.FLOAT, ["n", "n_dims"])})
    graph = helper.make_graph(nodes, "encoder", value_infos(ENCODER_INPUTS), outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
