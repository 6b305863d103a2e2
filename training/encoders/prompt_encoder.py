"""Prompts to embeddings as a step of a scikit-learn pipeline: the encoders of `train`, or one of your own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from training.encoders.embed import embed
from training.encoders.encoder import N_SURFACE
from training.encoders.make import transformer_encoder
from training.encoders.static import learn_static
from training.errors import EncoderError


class PromptEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Embeddings of prompts, float32 (n_prompts, n_dims).

    make_pipeline(PromptEncoder(), SuccessEstimator()).fit(prompts, outcomes)

    encoder: as in TrainingConfig: "static", "minilm", or a sentence-transformers name or path. Or any object with
        `encode(list of texts)`, such as a model of sentence-transformers or model2vec: such an object can be compared
        with others, but not shipped; its embeddings have no surface columns: SuccessEstimator(n_surface=0).
    seed: of the static encoder, which `fit` learns from the prompts.

    Learned: encoder_ (training.encoders.encoder.Encoder, or the object), n_surface_ (columns at the end of an embedding
    that are counts and lengths).
    """

    def __init__(self, encoder: Any = "static", seed: int = 0) -> None:
        self.encoder = encoder
        self.seed = seed

    def fit(self, X: Sequence[str], y: Any = None) -> PromptEncoder:  # noqa: N803
        """Learn the static encoder from prompts; any other encoder is taken as it is.

        Raises EncoderError where the encoder is neither a name nor an object with `encode`.
        """
        if self.encoder == "static":
            self.encoder_: Any = learn_static(list(X), seed=self.seed)
        elif isinstance(self.encoder, str):
            self.encoder_ = transformer_encoder(self.encoder)
        elif callable(getattr(self.encoder, "encode", None)):
            self.encoder_ = self.encoder
        else:
            raise EncoderError(f"found {type(self.encoder).__name__}; expected a name, or an object with encode(texts)")
        self.n_surface_ = N_SURFACE if isinstance(self.encoder, str) else 0
        return self

    def transform(self, X: Sequence[str]) -> np.ndarray:  # noqa: N803
        """Embeddings of prompts, float32 (n_prompts, n_dims)."""
        check_is_fitted(self, "encoder_")
        prompts = list(X)
        if isinstance(self.encoder, str):
            return embed(self.encoder_, prompts, np.arange(len(prompts)).astype(str)).vectors
        vectors = np.asarray(self.encoder_.encode(prompts), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(prompts):
            raise EncoderError(f"encode gave shape {vectors.shape} for {len(prompts)} texts; expected one row for each")
        return vectors
