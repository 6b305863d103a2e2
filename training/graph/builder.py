"""Building the ONNX graph: small helpers, tree ensembles, and the decision itself.

Only standard operators of `ai.onnx` and `ai.onnx.ml` are used, so any ONNX Runtime runs the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightgbm
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.encoders.encoder import ENCODER_INPUTS, IR_VERSION, OPSET, Encoder

ML_OPSET = 3

IMPOSSIBLE_SUCCESS = -2.0
"""Stands for a tier that is not eligible: below any success, by more than the largest slack of 1."""

LIGHTGBM_ZERO = np.float32(1e-35)
"""Splits beside zero stand at plus or minus this."""

DECISION_INPUTS = {
    "context_tokens": (TensorProto.FLOAT, ["n"]),
    "usd_per_mtok_input": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "usd_per_mtok_output": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "eligible": (TensorProto.BOOL, ["n", "n_tiers"]),
    "worth_usd": (TensorProto.FLOAT, ["n"]),
    "slack": (TensorProto.FLOAT, ["n"]),
}


@dataclass
class Graph:
    """Nodes and constants of a graph under construction; a value is known by its name."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    _n_names: int = 0
    _shared: dict[int, str] = field(default_factory=dict)

    def constant(self, value: Any, dtype: type[np.generic] = np.float32) -> str:
        """Name of a constant."""
        name = self._name("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Name of the (single) output of one more node."""
        name = output or self._name(operator.lower())
        domain = "ai.onnx.ml" if operator in ("Scaler", "TreeEnsembleRegressor") else ""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], domain=domain, **attributes))
        return name

    def affine(self, value: str, weights: np.ndarray, bias: np.ndarray) -> str:
        """Value @ weights + bias; (n, a) @ (a, b) + (b,)."""
        return self.add("Gemm", value, self.constant(weights), self.constant(bias))

    def once(self, owner: object, build: Callable[[], str]) -> str:
        """What `build` adds for an object, added the first time only."""
        if id(owner) not in self._shared:
            self._shared[id(owner)] = build()
        return self._shared[id(owner)]

    def column(self, value: str) -> str:
        """(n,) to (n, 1)."""
        return self.add("Unsqueeze", value, self.constant([1], np.int64))

    def model(
        self, inputs: Mapping[str, tuple[int, list[Any]]], outputs: Mapping[str, tuple[int, list[Any]]]
    ) -> onnx.ModelProto:
        """The finished model; raises onnx.checker.ValidationError where it is not a valid one."""
        graph = helper.make_graph(
            self.nodes,
            "router",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="token-broker")
        onnx.checker.check_model(model)
        return model

    def include(self, encoder: Encoder) -> str:
        """Take over an encoder's graph; returns the name of its embedding."""
        self.nodes.extend(encoder.graph.graph.node)
        self.initializers.extend(encoder.graph.graph.initializer)
        return "embedding"

    def trees(self, features: str, boosters: Sequence[lightgbm.Booster]) -> str:
        """`raw_scores` of LightGBM boosters, side by side, (n, sum of their outputs); once in a graph."""
        return self.add("TreeEnsembleRegressor", features, output="raw_scores", **ensemble_attributes(boosters))

    def _name(self, stem: str) -> str:
        self._n_names += 1
        return f"{stem}_{self._n_names}"


def ensemble_attributes(boosters: Sequence[lightgbm.Booster]) -> dict[str, Any]:
    """Attributes of one TreeEnsembleRegressor for all boosters; target = booster, or booster and class.

    LightGBM compares a float64 threshold with the feature, ONNX Runtime a float32 one: every threshold
    becomes the largest float32 that goes left at it, which leaves each comparison as it was.
    """
    nodes: dict[str, list[Any]] = {
        f"nodes_{key}": []
        for key in ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    }
    leaves: dict[str, list[Any]] = {f"target_{key}": [] for key in ("treeids", "nodeids", "ids", "weights")}
    n_targets = n_trees = 0
    for booster in boosters:
        outputs = booster.num_model_per_iteration()
        for index, tree in enumerate(booster.dump_model()["tree_info"]):
            _append_tree(nodes, leaves, tree["tree_structure"], n_trees, n_targets + index % outputs)
            n_trees += 1
        n_targets += outputs
    return {**nodes, **leaves, "n_targets": n_targets, "aggregate_function": "SUM", "post_transform": "NONE"}


def _append_tree(
    nodes: dict[str, list[Any]], leaves: dict[str, list[Any]], root: dict[str, Any], tree: int, target: int
) -> None:
    """Number a tree's nodes breadth first and append them."""
    queue = [root]
    number = 0
    while number < len(queue):
        node = queue[number]
        is_leaf = "leaf_value" in node
        if not is_leaf and node["decision_type"] != "<=":
            raise ValueError(f"found a split of type {node['decision_type']!r}; expected numerical splits only")
        left, right = (0, 0) if is_leaf else (len(queue), len(queue) + 1)
        row = {
            "treeids": tree,
            "nodeids": number,
            "featureids": 0 if is_leaf else node["split_feature"],
            "modes": "LEAF" if is_leaf else "BRANCH_LEQ",
            "values": 0.0 if is_leaf else float(float32_threshold(node["threshold"])),
            "truenodeids": left,
            "falsenodeids": right,
        }
        for key, value in row.items():
            nodes[f"nodes_{key}"].append(value)
        if is_leaf:
            leaf = {"treeids": tree, "nodeids": number, "ids": target, "weights": float(node["leaf_value"])}
            for key, value in leaf.items():
                leaves[f"target_{key}"].append(value)
        else:
            queue += [node["left_child"], node["right_child"]]
        number += 1


def float32_threshold(threshold: float) -> np.float32:
    """The largest float32 that goes left at a split of LightGBM, which takes all within LIGHTGBM_ZERO for 0."""
    nearest = np.float32(threshold)
    is_above = float(nearest) > threshold or -LIGHTGBM_ZERO <= nearest < 0
    return np.nextafter(nearest, np.float32(-np.inf)) if is_above else nearest


def add_decision(graph: Graph, success: str, output_tokens: str) -> None:
    """From estimates, prices and dials to `cost_usd` and `tier`.

    Among eligible tiers, those with success >= highest - slack are admissible; of these the largest
    worth_usd x success - cost_usd wins; of equals the highest success, then the first tier.
    """
    impossible = graph.constant(IMPOSSIBLE_SUCCESS)
    input_usd = graph.add("Mul", graph.column("context_tokens"), "usd_per_mtok_input")
    output_usd = graph.add("Mul", output_tokens, "usd_per_mtok_output")
    usd_per_million = graph.add("Add", input_usd, output_usd)
    cost = graph.add("Mul", usd_per_million, graph.constant(1e-6), output="cost_usd")
    open_success = graph.add("Where", "eligible", success, impossible)
    highest = graph.add("ReduceMax", open_success, axes=[1], keepdims=1)
    bar = graph.add("Sub", highest, graph.column("slack"))
    admissible = graph.add("GreaterOrEqual", open_success, bar)
    value = graph.add("Sub", graph.add("Mul", graph.column("worth_usd"), success), cost)
    utility = graph.add("Where", admissible, value, graph.constant(np.finfo(np.float32).min))
    largest = graph.add("ReduceMax", utility, axes=[1], keepdims=1)
    is_best = graph.add("GreaterOrEqual", utility, largest)
    candidates = graph.add("Where", is_best, open_success, impossible)
    # A column before the first tier, better than impossible only: the index of "none" less one is -1.
    none_first = graph.constant([0, 1, 0, 0], np.int64), graph.constant(IMPOSSIBLE_SUCCESS / 2)
    with_none = graph.add("Pad", candidates, *none_first)
    graph.add("Sub", graph.add("ArgMax", with_none, axis=1, keepdims=0), graph.constant(1, np.int64), output="tier")


def decide(
    success: np.ndarray, cost_usd: np.ndarray, eligible: np.ndarray, worth_usd: np.ndarray, slack: np.ndarray
) -> np.ndarray:
    """The rule of `add_decision` in numpy, to check the graph against. All float32; returns int (n,)."""
    open_success = np.where(eligible, success, np.float32(IMPOSSIBLE_SUCCESS))
    bar = open_success.max(axis=1, keepdims=True) - slack[:, None]
    admissible = eligible & (success >= bar)
    utility = np.where(admissible, worth_usd[:, None] * success - cost_usd, np.finfo(np.float32).min)
    is_best = admissible & (utility >= utility.max(axis=1, keepdims=True))
    return np.where(eligible.any(axis=1), np.where(is_best, success, np.float32(IMPOSSIBLE_SUCCESS)).argmax(axis=1), -1)


def encoder_inputs() -> dict[str, tuple[int, list[Any]]]:
    """Names, types and shapes of an encoder's inputs."""
    return {name: (TensorProto.INT64, ["n", "length"]) for name in ENCODER_INPUTS}
