"""Input tokens that each tier bills for a request, which may be a run of many calls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.fit.kernel import KernelBasis
from training.fit.lengths import LengthModel
from training.graph.builder import Graph

MAX_INPUT_FACTOR = 4.0
"""A tier that typically bills more than so many times the prompt's tokens bills for something else than the prompt: the
calls of an agent, each with its context sent again, or a long system prompt. That is learned, not multiplied."""

MIN_INPUT_FACTOR = 0.05
"""Of the prompt's tokens, at least: where most of them are read from a cache at a lower price."""

NEGLIGIBLE = 0.01
"""A factor so near to 1 is 1: less is the noise of counting."""


@dataclass(frozen=True)
class InputModel:
    """Billed input tokens of a tier: its factor x context tokens, or what is learned from the prompt.

    factor: (n_tiers,), 0 for a tier whose input tokens are learned.
    learned: expected input tokens of these tiers, about 0 for the others; None where there is no such tier.
    """

    factor: np.ndarray
    learned: LengthModel | None

    @classmethod
    def fit(
        cls,
        basis: KernelBasis,
        embedding: np.ndarray,
        input_tokens: np.ndarray,
        context_tokens: np.ndarray,
        groups: np.ndarray,
        seed: int,
    ) -> InputModel:
        """input_tokens: as billed, (n_prompts, n_tiers), NaN where not known; context_tokens: (n_prompts,)."""
        known = np.isfinite(input_tokens)
        ratio = np.where(known, input_tokens, np.nan) / np.maximum(context_tokens, 1.0)[:, None]
        factor, is_learned = np.ones(input_tokens.shape[1]), np.zeros(input_tokens.shape[1], dtype=bool)
        for tier, seen in enumerate(known.T):
            if seen.any():
                is_learned[tier] = np.median(ratio[seen, tier]) > MAX_INPUT_FACTOR
                share = input_tokens[seen, tier].sum() / max(context_tokens[seen].sum(), 1.0)
                share = 1.0 if abs(share - 1) < NEGLIGIBLE else np.clip(share, MIN_INPUT_FACTOR, MAX_INPUT_FACTOR)
                factor[tier] = 0.0 if is_learned[tier] else share
        if not is_learned.any():
            return cls(factor, None)
        tokens = np.where(is_learned, input_tokens, np.nan)
        count = np.maximum(np.isfinite(tokens).sum(axis=0), 1)
        means = np.where(is_learned, np.nansum(tokens, axis=0) / count, np.finfo(np.float32).tiny)
        return cls(factor, LengthModel.fit(basis, embedding, tokens, means, groups, seed))

    def predict(self, embedding: np.ndarray, context_tokens: np.ndarray) -> np.ndarray:
        """Expected billed input tokens, (n_prompts, n_tiers); context_tokens: (n_prompts,)."""
        tokens: np.ndarray = context_tokens[:, None] * self.factor
        return tokens if self.learned is None else tokens + self.learned.predict(embedding)

    def add_to(self, graph: Graph, embedding: str) -> str:
        """Name of the billed input tokens, (n, n_tiers), from the graph's input `context_tokens`."""
        tokens = graph.add("Mul", graph.column("context_tokens"), graph.constant(self.factor[None]))
        return tokens if self.learned is None else graph.add("Add", tokens, self.learned.add_to(graph, embedding))
