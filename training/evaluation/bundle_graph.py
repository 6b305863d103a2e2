"""The graph that ships, in pieces: estimates once, decisions for many dials, embeddings alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.utils

from router.bundle.bundle import GRAPH_FILE, Bundle
from router.bundle.engine import OUTPUTS
from training.graph.builder import ENCODER_INPUTS
from training.graph.decision import DECISION_INPUTS
from training.graph.session import cpu_session, padded

_BATCH_SIZE = 64


@dataclass(frozen=True)
class BundleGraph:
    """A bundle's graph, cut where estimates become decisions, so that many dials can be tried on one estimate."""

    bundle: Bundle

    @cached_property
    def _decision_part(self) -> Any:
        model = onnx.load(self.bundle.path / GRAPH_FILE)
        return cpu_session(
            onnx.utils.Extractor(model).extract_model(
                ["success", "output_tokens", *DECISION_INPUTS], ["cost_usd", "tier"]
            )
        )

    def estimates(self, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """success, output_tokens, cost_usd (n_prompts, n_tiers), context_tokens (n_prompts,), and the prices used."""
        encoder = self.bundle.manifest.encoder
        encodings = self.bundle.tokenizer.encode_batch_fast([prompt[: encoder.max_chars] for prompt in prompts])
        ids = [encoding.ids for encoding in encodings]
        context = np.array(
            [encoder.context_tokens(len(prompt), len(row)) for prompt, row in zip(prompts, ids, strict=True)],
            np.float32,
        )
        quotes = [self.bundle.prices.quote(tokens, self.bundle.manifest.output_tokens) for tokens in context.tolist()]
        request = {
            "context_tokens": context,
            "usd_per_mtok_input": np.concatenate([quote.usd_per_mtok_input for quote in quotes]),
            "usd_per_mtok_output": np.concatenate([quote.usd_per_mtok_output for quote in quotes]),
            "eligible": np.concatenate([quote.eligible for quote in quotes]),
            "worth_usd": np.zeros(len(ids), np.float32),
            "slack": np.zeros(len(ids), np.float32),
        }
        names = OUTPUTS[:3]
        found = {name: np.empty((len(ids), len(self.bundle.manifest.tiers)), np.float32) for name in names}
        order = np.argsort([len(row) for row in ids], kind="stable")
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            feeds = {**padded([ids[row] for row in rows]), **{name: value[rows] for name, value in request.items()}}
            for name, value in zip(names, self.bundle.engine.run(feeds), strict=False):
                found[name][rows] = value
        return {**request, **found}

    def choices(self, estimates: Mapping[str, np.ndarray], worth_usd: float, slack: float) -> np.ndarray:
        """The tier chosen for every prompt at one setting of the dials, int (n_prompts,); else the fallback."""
        n = len(estimates["context_tokens"])
        feeds = {name: estimates[name] for name in ("success", "output_tokens", *DECISION_INPUTS)}
        feeds |= {"worth_usd": np.full(n, worth_usd, np.float32), "slack": np.full(n, slack, np.float32)}
        (tier,) = self._decision_part.run(["tier"], feeds)
        manifest = self.bundle.manifest
        return np.where(tier < 0, manifest.tiers.index(manifest.best_tier), tier)


def embed_with(bundle: Bundle, prompts: Sequence[str]) -> np.ndarray:
    """Embeddings by the encoder inside a bundle's graph, float32 (n_prompts, n_dims)."""
    whole = onnx.load(bundle.path / GRAPH_FILE)
    whole.graph.value_info.append(
        onnx.helper.make_tensor_value_info("embedding", onnx.TensorProto.FLOAT, ["n", "n_dims"])
    )
    session = cpu_session(onnx.utils.Extractor(whole).extract_model(list(ENCODER_INPUTS), ["embedding"]))
    cut = [prompt[: bundle.manifest.encoder.max_chars] for prompt in prompts]
    ids = [encoding.ids for encoding in bundle.tokenizer.encode_batch_fast(cut)]
    return np.concatenate([session.run(None, padded([row]))[0] for row in ids])
