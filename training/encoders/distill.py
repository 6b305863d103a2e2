"""Distil a sentence-transformers model into one vector per word piece: the table that `PieceVectors` reads.

    python -m training.encoders.distill [MODEL] [--out FILE]

Every piece of the model's own WordPiece vocabulary passes through the model alone. The pooled vectors are reduced by
PCA, weighted by how rare the pieces are expected to be, and stored as int8. The idea is that of Model2Vec (Tulkens and
van Dongen, 2024).

The package model2vec itself is not used: since version 0.8.1 its extra `distill` needs transformers below 5.4, and a
newer one is locked here. Version 0.8.0, which has no such limit, makes nearly the same table, with a mean cosine of
0.9996 after a rotation. With that table, 96 % of the decisions on the sample log stay as they are, and the AIQ is 0.828
instead of 0.830 (95 % interval 0.81 to 0.86).
"""

import argparse
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from training.encoders.piece_vectors import PIECE_VECTORS, PieceVectors
from training.encoders.transformer import PACKAGED, load_transformer
from training.errors import ConfigError, EncoderError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

_LOGGER = logging.getLogger(__name__)
_BATCH = 512
_PLACEHOLDER = re.compile(r"\[unused\d+\]")


def distill(name_or_path: str = PACKAGED, n_dims: int = 256) -> PieceVectors:
    """Distil a model; takes about half a minute for MiniLM on one core.

    name_or_path: as for `load_transformer`; the model's tokenizer must be BERT's WordPiece.
    n_dims: dimensions that the PCA keeps, at most the model's own.
    Raises EncoderError where the tokenizer is of another kind, ConfigError where n_dims is out of range, and what
    `load_transformer` raises.
    """
    model = load_transformer(name_or_path)
    tokenizer: Tokenizer = model.tokenizer.backend_tokenizer
    _check_word_piece(tokenizer, name_or_path)
    ids = _usable_ids(tokenizer, set(model.tokenizer.all_special_ids))
    _LOGGER.info("%d of %d word pieces pass through %s", len(ids), tokenizer.get_vocab_size(), name_or_path)
    components = principal_components(_pool_alone(model, ids), n_dims)
    vectors, scale = quantise(components * zipf_weights(len(ids))[:, None])
    return PieceVectors(
        pieces=tuple(str(tokenizer.id_to_token(piece)) for piece in ids),
        vectors=vectors,
        scale=scale,
        lowercase=bool(tokenizer.normalizer.lowercase),
        source=_source(name_or_path, model),
    )


def principal_components(rows: NDArray[np.float32], n_dims: int) -> NDArray[np.float32]:
    """Project centred rows on their leading principal components, (n, d) to (n, n_dims), not whitened.

    The sign of a component is chosen so that its largest entry is positive; the result is the same every time.
    Raises ConfigError where `n_dims` is not in 1..d.
    """
    if not 1 <= n_dims <= rows.shape[1]:
        raise ConfigError(f"n_dims is {n_dims}; expected 1 to {rows.shape[1]}, the dimensions of the model")
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, components = np.linalg.eigh(centred.T @ centred)  # (d, d), variances ascending
    components = components[:, ::-1][:, :n_dims]
    largest = components[np.abs(components).argmax(axis=0), np.arange(n_dims)]
    projected: NDArray[np.float32] = (centred @ (components * np.sign(largest))).astype(np.float32)
    return projected


def zipf_weights(n_pieces: int, a: float = 1e-4) -> NDArray[np.float32]:
    """Weight a / (a + p) of each piece, (n_pieces,), rising with rank; p is its probability under Zipf's law.

    The formula is the smooth inverse frequency of Arora, Liang and Ma (2017). A vocabulary is sorted by frequency only
    roughly; BERT's begins with single characters. The weights keep the sum of a text's vectors from being mostly
    punctuation and digits.
    """
    probability = 1 / np.arange(1, n_pieces + 1)
    weights: NDArray[np.float32] = (a / (a + probability / probability.sum())).astype(np.float32)
    return weights


def quantise(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round to int8 with one step per dimension: rows equal `vectors * scale` to within scale / 2.

    Returns vectors, int8 (n, d) in -127..127, and scale, float32 (d,), 1 where a dimension is all zero.
    """
    largest = np.abs(rows).max(axis=0)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(rows / scale).astype(np.int8), scale


def _check_word_piece(tokenizer: "Tokenizer", name: str) -> None:
    """Raise EncoderError unless `PieceVectors` can split texts as this tokenizer does."""
    found = type(tokenizer.model).__name__, type(tokenizer.normalizer).__name__
    if found != ("WordPiece", "BertNormalizer"):
        raise EncoderError(
            f"the tokenizer of {name!r} is {' after '.join(found)}; only WordPiece after BertNormalizer can be "
            "distilled. Distil a model with such a tokenizer, or use this one undistilled, as the encoder"
        )


def _usable_ids(tokenizer: "Tokenizer", special: set[int]) -> list[int]:
    """Ids of the pieces that a text can contain, ascending: no special tokens and no placeholders."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return sorted(id_ for piece, id_ in vocabulary.items() if id_ not in special and not _PLACEHOLDER.fullmatch(piece))


def _pool_alone(model: "SentenceTransformer", ids: Sequence[int]) -> NDArray[np.float32]:
    """Pooled output of the model for `[CLS] piece [SEP]`, not normalised, (n_pieces, d)."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize

    start, end = model.tokenizer.cls_token_id, model.tokenizer.sep_token_id
    pooled = []
    with torch.inference_mode():
        for first in range(0, len(ids), _BATCH):
            batch = torch.tensor(ids[first : first + _BATCH])
            input_ids = torch.stack([torch.full_like(batch, start), batch, torch.full_like(batch, end)], dim=1)
            features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
            for module in model:
                features = features if isinstance(module, Normalize) else module(features)
            pooled.append(features["sentence_embedding"].numpy())
    return np.concatenate(pooled)


def _source(name_or_path: str, model: "SentenceTransformer") -> str:
    """Name and licence of the model; only the last part of a local path is named."""
    if name_or_path == PACKAGED:
        return "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0"
    name = Path(name_or_path).name if Path(name_or_path).exists() else name_or_path
    return f"{name}, {model.model_card_data.license or 'licence not stated'}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of `python -m training.encoders.distill`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.encoders.distill", description="Distil word-piece vectors."
    )
    parser.add_argument("model", nargs="?", default=PACKAGED, metavar="MODEL", help="minilm (default), path or name")
    parser.add_argument("--out", type=Path, default=PIECE_VECTORS, metavar="FILE", help="default: the shipped table")
    parser.add_argument("--dims", type=int, default=256, metavar="N", help="dimensions kept (default 256)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    _LOGGER.setLevel(logging.INFO)
    table = distill(options.model, options.dims)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.save(options.out)
    size = options.out.stat().st_size / 1e6
    _LOGGER.info("%s: %d pieces, %d dimensions, %.2f MB", options.out.name, len(table.pieces), table.n_dims, size)


if __name__ == "__main__":
    main()
