"""Everything that was learned about the tiers, as one object: predicts in numpy, writes itself into a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from training.encoders.encoder import Encoder
from training.fit.calibrate import LOWEST_SUCCESS, Calibration
from training.fit.clusters import PromptClusters
from training.fit.estimator import Estimator, Forest
from training.fit.familiarity import Familiarity
from training.fit.lengths import LengthModel
from training.graph.builder import ENCODER_INPUTS, Graph
from training.graph.decision import DECISION_INPUTS, add_decision


@dataclass(frozen=True)
class TierModel:
    """Success and answer length of every tier.

    parts: averaged with weights, which sum to one, then calibrated, then drawn towards the tiers' means where a
    prompt is unlike those trained on. clusters: which training prompts a prompt is most like.
    """

    parts: tuple[Estimator, ...]
    weights: tuple[float, ...]
    calibration: Calibration
    familiarity: Familiarity
    lengths: LengthModel
    clusters: PromptClusters

    def success(self, embedding: np.ndarray) -> np.ndarray:
        """Calibrated P(correct), (n_prompts, n_tiers)."""
        predictions = [part.predict(embedding) for part in self.parts]
        calibrated = self.calibration.apply(np.average(predictions, axis=0, weights=self.weights))
        return self.familiarity.shrink(calibrated, self.familiarity.of(embedding))

    def raw_scores(self, embedding: np.ndarray) -> np.ndarray:
        """Raw scores of all trees, as the graph's tree ensemble gives them."""
        return self.forest.raw_scores(embedding)

    @property
    def forest(self) -> Forest:
        """The boosters of the one part that has any."""
        return next((part.forest for part in self.parts if part.forest.boosters), Forest(()))

    def head(self, n_dims: int) -> onnx.ModelProto:
        """The graph from `embedding`, float32 (n, n_dims), to `success`, `output_tokens` and `raw_scores`."""
        graph = Graph()
        self._add_to(graph, "embedding")
        outputs = ("success", "output_tokens", "raw_scores")
        return graph.model(
            {"embedding": (TensorProto.FLOAT, ["n", n_dims])},
            {name: (TensorProto.FLOAT, ["n", None]) for name in outputs},
        )

    def whole(self, encoder: Encoder) -> onnx.ModelProto:
        """The graph that ships: from tokens, prices and dials to the decision."""
        graph = Graph()
        self._add_to(graph, graph.include(encoder.graph))
        add_decision(graph, "success", "output_tokens")
        per_tier = {name: (TensorProto.FLOAT, ["n", "n_tiers"]) for name in ("success", "output_tokens", "cost_usd")}
        return graph.model(
            {**ENCODER_INPUTS, **DECISION_INPUTS},
            {
                **per_tier,
                "tier": (TensorProto.INT64, ["n"]),
                "familiarity": (TensorProto.FLOAT, ["n"]),
                "cluster": (TensorProto.INT64, ["n"]),
            },
        )

    def _add_to(self, graph: Graph, embedding: str) -> None:
        """The calibrated average of the parts is linear in their readouts: one matrix product each, then a clip."""
        self.lengths.add_to(graph, embedding)
        readouts = [part.add_to(graph, embedding) for part in self.parts]
        factors = [weight * self.calibration.slope for weight in self.weights]
        bias = sum((f * each.bias for f, each in zip(factors, readouts, strict=True)), start=self.calibration.intercept)
        total = graph.constant(bias)
        for factor, each in zip(factors, readouts, strict=True):
            total = graph.add("Gemm", each.value, graph.constant(each.weights * factor), total)
        limits = graph.constant(LOWEST_SUCCESS), graph.constant(1 - LOWEST_SUCCESS)
        self.clusters.add_to(graph, self.familiarity.add_to(graph, embedding, graph.add("Clip", total, *limits)))
