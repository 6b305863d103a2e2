"""A table of distilled word-piece vectors, which is part of the package; with it, static encoders need no torch.

`training.encoders.distill` makes the table; this module reads it. The vector of a text is the sum of the vectors of its
word pieces. So every token of a tokenizer that was learned from a log gets a distilled vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

PIECE_VECTORS = Path(__file__).parent / "assets" / "minilm-piece-vectors.npz"
"""The table in the package: the vocabulary of all-MiniLM-L6-v2."""

_UNKNOWN = "[UNK]"
_ARRAYS = ("pieces", "vectors", "scale", "lowercase", "source")


@dataclass(frozen=True, eq=False)
class PieceVectors:
    """Word pieces and their vectors; vector i is `vectors[i] * scale`.

    pieces: WordPiece strings, continuations with their `##`, (n_pieces,), distinct.
    vectors: int8, (n_pieces, n_dims).
    scale: float32, (n_dims,): the step of each dimension.
    lowercase: whether texts are first lower-cased and their accents removed, as the distilled model does.
    source: the model distilled and its licence.
    """

    pieces: tuple[str, ...]
    vectors: NDArray[np.int8]
    scale: NDArray[np.float32]
    lowercase: bool
    source: str

    def __post_init__(self) -> None:
        """Raise ValueError where the shapes or types do not fit each other."""
        if self.vectors.dtype != np.int8 or self.scale.dtype != np.float32:
            found = f"{self.vectors.dtype} and {self.scale.dtype}"
            raise ValueError(f"vectors and scale are {found}; expected int8 and float32")
        if self.scale.ndim != 1 or self.vectors.shape != (len(self.pieces), len(self.scale)):
            expected = (len(self.pieces), *self.scale.shape)
            raise ValueError(f"vectors have shape {self.vectors.shape}; pieces and scale ask for {expected}")
        if len(set(self.pieces)) != len(self.pieces):
            raise ValueError("pieces repeat; each needs exactly one vector")

    @classmethod
    def load(cls, path: str | Path = PIECE_VECTORS) -> "PieceVectors":
        """Read a table that `save` or `python -m training.encoders.distill` wrote; nothing is unpickled.

        Raises FileNotFoundError where there is no such file, ValueError where it is not such a table.
        """
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in _ARRAYS if name not in file]
            if missing:
                raise ValueError(
                    f"{Path(path).name} lacks {missing}; make it with `python -m training.encoders.distill`"
                )
            return cls(
                pieces=tuple(file["pieces"].tobytes().decode().split("\n")),
                vectors=file["vectors"],
                scale=file["scale"],
                lowercase=bool(file["lowercase"]),
                source=str(file["source"]),
            )

    def save(self, path: str | Path) -> None:
        """Write one `.npz`, in which `pieces` are the UTF-8 bytes of all pieces joined by newlines, as uint8."""
        with Path(path).open("wb") as file:
            np.savez_compressed(
                file,
                pieces=np.frombuffer("\n".join(self.pieces).encode(), np.uint8),
                vectors=self.vectors,
                scale=self.scale,
                lowercase=np.bool_(self.lowercase),
                source=np.str_(self.source),
            )

    @property
    def n_dims(self) -> int:
        """Length of a vector."""
        return len(self.scale)

    def compose(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Sum of the vectors of each text's word pieces, float32 (n_texts, n_dims).

        A word that the vocabulary cannot spell adds nothing, so a text in an unknown script is a zero vector. Sums are
        not normalised. Rare pieces already weigh more (`training.encoders.distill.zipf_weights`), before any weights
        that a log adds.
        """
        sums = np.zeros((len(texts), self.n_dims), np.int32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(list(texts), add_special_tokens=False)):
            known = [piece for piece in encoding.ids if piece < len(self.pieces)]
            self.vectors[known].sum(axis=0, dtype=np.int32, out=sums[row])
        return sums.astype(np.float32) * self.scale

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """Splits greedily into `pieces`; ids are rows of `vectors`, and n_pieces stands for an unknown word."""
        vocabulary = {piece: row for row, piece in enumerate((*self.pieces, _UNKNOWN))}
        tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=_UNKNOWN))
        tokenizer.normalizer = BertNormalizer(lowercase=self.lowercase)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        return tokenizer
