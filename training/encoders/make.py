"""The encoder that the settings name, and what the runtime must know of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from router.bundle import EncoderInfo
from training.config import TrainingConfig
from training.encoders.cache import EncoderCache
from training.encoders.encoder import Encoder, with_token_kinds
from training.encoders.static import StaticRecipe
from training.log.table import OutcomeTable

MAX_TRANSFORMER_TOKENS = 256
"""Where transformers cut a prompt, special tokens included."""

MAX_BILLED_RATIO = 4.0
"""Billed tokens per token of a prompt, at most. A log with more bills for something else than the prompts, such as the
many calls of an agent's run. It then says nothing of a prompt's size, which decides what fits a context window."""


def make_encoder(config: TrainingConfig, log: OutcomeTable, cache: Path) -> tuple[Encoder, bool]:
    """The encoder that the settings name, and whether it was in the cache.

    log: the training prompts, from which a static encoder is learned. cache: a folder, in which it is then kept.
    Raises what `export_transformer` raises where the settings name a transformer.
    """
    if config.encoder == "static":
        return EncoderCache(cache / "encoders").static(log.prompts, log.prompt_ids, StaticRecipe(), config.seed)
    return transformer_encoder(config.encoder), False


def transformer_encoder(name: str) -> Encoder:
    """The encoder of a sentence-transformers name or path; raises what `export_transformer` raises."""
    from training.encoders.transformer import export_transformer  # needs torch: imported only where it is used

    tokenizer, graph = export_transformer(name, MAX_TRANSFORMER_TOKENS)
    return with_token_kinds(name, tokenizer, graph, MAX_TRANSFORMER_TOKENS)


def encoder_info(encoder: Encoder, log: OutcomeTable, n_tokens: np.ndarray, in_training: np.ndarray) -> EncoderInfo:
    """What the runtime must know of the encoder; the token ratios are measured on the log.

    n_tokens: of each prompt by this encoder, int (n_prompts,). in_training: bool (n_prompts,).
    A tokenizer needs fewer tokens for the prompts it was learned from than for others. Tokens per character are
    therefore measured on the prompts held out, and billed tokens per character on the training prompts.
    """
    n_chars = np.array([len(prompt) for prompt in log.prompts])
    uncut = (n_tokens < encoder.max_tokens) & (n_tokens > 0)
    unseen = uncut & ~in_training
    if not unseen.any():
        unseen = uncut
    tokens_per_char = float(n_tokens[unseen].sum() / max(1, n_chars[unseen].sum())) if unseen.any() else 0.25
    billed = np.isfinite(log.input_tokens).any(axis=1) & uncut & in_training
    ratio = 1.0
    if billed.any():
        billed_tokens = float(np.nanmean(log.input_tokens[billed], axis=1).sum())
        ratio = billed_tokens / n_chars[billed].sum() / tokens_per_char
        if ratio > MAX_BILLED_RATIO:
            ratio = 1.0
    return EncoderInfo(
        name=encoder.name,
        digest=encoder.digest,
        max_chars=encoder.max_chars,
        max_tokens=encoder.max_tokens,
        tokens_per_char=tokens_per_char,
        billed_tokens_per_token=ratio,
    )
