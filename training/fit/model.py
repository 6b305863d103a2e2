"""Everything that was learned of the tiers, as one object: predicts in numpy, writes itself into a graph."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from training.encoders.encoder import Encoder
from training.fit.billing import InputModel
from training.fit.clusters import PromptClusters
from training.fit.lengths import LengthModel
from training.fit.success import SuccessModel
from training.graph.builder import ENCODER_INPUTS, Graph
from training.graph.decision import DECISION_INPUTS, add_decision


@dataclass(frozen=True)
class TierModel:
    """Success, answer length and billed input of every tier, and the group of training prompts a prompt belongs to."""

    success: SuccessModel
    lengths: LengthModel
    inputs: InputModel
    clusters: PromptClusters

    @property
    def n_trees(self) -> int:
        """Trees in the graph."""
        return 0 if self.success.classifier is None else self.success.classifier.forest.n_trees

    def head(self, n_dims: int) -> onnx.ModelProto:
        """The graph from `embedding`, float32 (n, n_dims), to `success` and `output_tokens`.

        With a classifier it also gives `raw_scores`.
        """
        graph = Graph()
        self._add_to(graph, "embedding")
        outputs = ["success", "output_tokens"] + ["raw_scores"] * (self.success.classifier is not None)
        return graph.model(
            {"embedding": (TensorProto.FLOAT, ["n", n_dims])},
            {name: (TensorProto.FLOAT, ["n", None]) for name in outputs},
        )

    def whole(self, encoder: Encoder) -> onnx.ModelProto:
        """The graph that ships: from tokens, prices and dials to the decision."""
        graph = Graph()
        self._add_to(graph, graph.include(encoder.graph))
        add_decision(graph, "success", self.inputs.add_to(graph, "embedding"), "output_tokens")
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
        self.lengths.add_to(graph, embedding, output="output_tokens")
        similarity = self.success.add_to(graph, embedding)
        self.clusters.add_to(graph, similarity)
