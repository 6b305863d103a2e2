"""A graph under construction: nodes, constants, and the inputs that every graph of this project starts from.

Only standard operators of `ai.onnx` and `ai.onnx.ml` are used, so any ONNX Runtime runs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from training.graph.trees import ensemble_attributes

OPSET = 17
ML_OPSET = 3
IR_VERSION = 8

Values = Mapping[str, tuple[int, list[Any]]]
"""Name, type (of TensorProto) and shape of inputs or outputs; a string stands for a size that is free."""

ENCODER_INPUTS: Values = {
    "input_ids": (TensorProto.INT64, ["n", "length"]),
    "attention_mask": (TensorProto.INT64, ["n", "length"]),
}
"""What every encoder reads."""


@dataclass
class Graph:
    """Nodes and constants of a graph under construction; a value is known by its name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    _n_names: int = 0
    _shared: dict[int, str] = field(default_factory=dict)

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """Add a constant; returns its name."""
        name = self._name("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add a node; returns the name of its single output."""
        name = output or self._name(operator.lower())
        domain = "ai.onnx.ml" if operator in ("Scaler", "TreeEnsembleRegressor") else ""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def affine(self, value: str, weights: np.ndarray, bias: np.ndarray) -> str:
        """Value @ weights + bias; (n, a) @ (a, b) + (b,)."""
        return self.add("Gemm", value, self.constant(weights), self.constant(bias))

    def once(self, owner: object, build: Callable[[], str]) -> str:
        """The name that `build` returns; it is called for the first request of an owner only."""
        if id(owner) not in self._shared:
            self._shared[id(owner)] = build()
        return self._shared[id(owner)]

    def column(self, value: str) -> str:
        """(n,) to (n, 1)."""
        return self.add("Unsqueeze", value, self.constant([1], np.int64))

    def trees(self, features: str, boosters: Sequence[lightgbm.Booster]) -> str:
        """Add `raw_scores` of LightGBM boosters, side by side, (n, sum of their outputs); once per graph."""
        return self.add("TreeEnsembleRegressor", features, output="raw_scores", **ensemble_attributes(boosters))

    def include(self, encoder: onnx.ModelProto) -> str:
        """Add all nodes and constants of an encoder's graph; returns the name of its embedding."""
        self.nodes.extend(encoder.graph.node)
        self.initializers.extend(encoder.graph.initializer)
        return "embedding"

    def part(self, model: onnx.ModelProto, source: str, prefix: str) -> str:
        """Add a model of one input and one output, which reads the value `source`; returns the name of its output.

        prefix: of the names of all its values, so that they differ from those of other parts.
        """
        added = onnx.compose.add_prefix(model, prefix).graph
        names = {added.input[0].name: source}
        for node in added.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        self.nodes.extend(added.node)
        self.initializers.extend(added.initializer)
        return str(added.output[0].name)

    def model(self, inputs: Values, outputs: Values) -> onnx.ModelProto:
        """The finished model; raises onnx.checker.ValidationError where it is not a valid one."""
        graph = helper.make_graph(self.nodes, "router", value_infos(inputs), value_infos(outputs), self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="token-broker")
        onnx.checker.check_model(model)
        return model

    def _name(self, stem: str) -> str:
        self._n_names += 1
        return f"{stem}_{self._n_names}"


def value_infos(values: Values) -> list[onnx.ValueInfoProto]:
    """Inputs or outputs as ONNX describes them."""
    return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in values.items()]
