"""The graph that ships, in pieces: estimates once, decisions for many dials, embeddings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.utils

from router.bundle import Bundle
from router.bundle.engine import OUTPUTS, batches, padded
from router.bundle.manifest import GRAPH_FILE
from router.policy import Dials
from router.portfolio.quote import graph_inputs
from training.graph.builder import ENCODER_INPUTS
from training.graph.session import cpu_session

_ESTIMATES_AND_DIALS = ("success", "cost_usd", "eligible", "worth_usd", "slack")
"""What the tier depends on, once costs are known at the prices in force."""


@dataclass(frozen=True)
class BundleGraph:
    """A bundle's graph, cut where estimates become decisions, so that many dials can be tried on one estimate."""

    bundle: Bundle

    @cached_property
    def _decision_part(self) -> Any:
        model = onnx.load(self.bundle.path / GRAPH_FILE)
        return cpu_session(onnx.utils.Extractor(model).extract_model(list(_ESTIMATES_AND_DIALS), ["tier"]))

    def estimates(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """success, output_tokens, cost_usd (n_prompts, n_tiers), context_tokens (n_prompts,), and the prices used."""
        encoder = self.bundle.manifest.encoder
        ids = self.bundle.token_ids(prompts)
        context = np.array(
            [encoder.context_tokens(len(prompt), len(row)) for prompt, row in zip(prompts, ids, strict=True)],
            np.float32,
        )
        quotes = [self.bundle.prices.quote(tokens, self.bundle.manifest.output_tokens) for tokens in context.tolist()]
        request = {
            "context_tokens": context,
            **graph_inputs(quotes),
            "worth_usd": np.zeros(len(ids), np.float32),
            "slack": np.zeros(len(ids), np.float32),
        }
        names = OUTPUTS[:3]
        found = {name: np.empty((len(ids), len(self.bundle.manifest.tiers)), np.float32) for name in names}
        for rows in batches(ids):
            feeds = {**padded([ids[row] for row in rows]), **{name: value[rows] for name, value in request.items()}}
            for name, value in zip(names, self.bundle.engine.run(feeds), strict=False):
                found[name][rows] = value
        return {**request, **found}

    def choices(self, estimates: Mapping[str, np.ndarray], worth_usd: float, slack: float) -> np.ndarray:
        """The tier that the graph chooses for every prompt, int (n_prompts,); else the fallback."""
        n = len(estimates["context_tokens"])
        dials = {"worth_usd": np.full(n, worth_usd, np.float32), "slack": np.full(n, slack, np.float32)}
        feeds = {name: {**estimates, **dials}[name] for name in _ESTIMATES_AND_DIALS}
        (tier,) = self._decision_part.run(["tier"], feeds)
        manifest = self.bundle.manifest
        return np.where(tier < 0, manifest.tiers.index(manifest.best_tier), tier)

    def answers(self, estimates: Mapping[str, np.ndarray], dials: Dials) -> np.ndarray:
        """The tier that answers every prompt at these dials, int (n_prompts,), by router.rule.or_best_tier."""
        chosen = self.choices(estimates, dials.worth_usd, dials.slack)
        if not dials.unproven:
            return chosen
        best = self.bundle.manifest.tiers.index(self.bundle.manifest.best_tier)
        leaves = ~estimates["eligible"][:, best]
        if dials.worth_usd > 0:
            rows = np.arange(len(chosen))
            success, cost_usd = estimates["success"].astype(float), estimates["cost_usd"].astype(float)
            value = dials.worth_usd * success - cost_usd
            more, better = value[rows, chosen] - value[:, best], success[rows, chosen] - success[:, best]
            leaves |= (more > 0) | ((more == 0) & (better > 0))
        return np.where(leaves, chosen, best)


def embed_with(bundle: Bundle, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings by the encoder inside a bundle's graph, each prompt alone; float32 (n_prompts, n_dims)."""
    whole = onnx.load(bundle.path / GRAPH_FILE)
    whole.graph.value_info.append(
        onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", "n_dims"])
    )
    session = cpu_session(onnx.utils.Extractor(whole).extract_model(list(ENCODER_INPUTS), ["embedding"]))
    ids = bundle.token_ids(prompts)
    return np.concatenate([session.run(None, padded([row]))[0] for row in ids])
