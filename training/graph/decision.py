"""The decision: as a part of the graph, and in numpy to check the graph against."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from training.graph.builder import Graph, Values

IMPOSSIBLE_SUCCESS = -2.0
"""Stands for a tier that is not eligible: below any success, by more than the largest slack of 1."""

DECISION_INPUTS: Values = {
    "context_tokens": (TensorProto.FLOAT, ["n"]),
    "usd_per_mtok_input": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "usd_per_mtok_output": (TensorProto.FLOAT, ["n", "n_tiers"]),
    "eligible": (TensorProto.BOOL, ["n", "n_tiers"]),
    "worth_usd": (TensorProto.FLOAT, ["n"]),
    "slack": (TensorProto.FLOAT, ["n"]),
}
"""What the decision reads beside the estimates."""


def add_decision(graph: Graph, success: str, input_tokens: str, output_tokens: str) -> None:
    """Add `cost_usd` and `tier`, computed from estimates, prices and dials.

    success, input_tokens, output_tokens: names of the estimates, each float32 (n, n_tiers); tokens as they are billed.
    Beside them DECISION_INPUTS are read.
    Among eligible tiers, those with success >= highest success - slack are admissible. Of these, the tier with the
    largest worth_usd x success - cost_usd wins; of equal ones that with the highest success, then the first.
    `tier` is -1 where no tier is eligible.
    """
    impossible = graph.constant(IMPOSSIBLE_SUCCESS)
    input_usd = graph.add("Mul", input_tokens, "usd_per_mtok_input")
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
    # A column before the first tier wins only where every tier is impossible: then its index less one, -1, is the tier.
    none_first = graph.constant([0, 1, 0, 0], np.int64), graph.constant(IMPOSSIBLE_SUCCESS / 2)
    with_none = graph.add("Pad", candidates, *none_first)
    graph.add("Sub", graph.add("ArgMax", with_none, axis=1, keepdims=0), graph.constant(1, np.int64), output="tier")


def decide(
    success: np.ndarray, cost_usd: np.ndarray, eligible: np.ndarray, worth_usd: np.ndarray, slack: np.ndarray
) -> np.ndarray:
    """The rule of `add_decision` in numpy, to check the graph against.

    success, cost_usd: float32 (n, n_tiers). eligible: bool, same shape. worth_usd, slack: float32 (n,).
    Returns the tier of each row, int (n,); -1 where no tier is eligible.
    """
    open_success = np.where(eligible, success, np.float32(IMPOSSIBLE_SUCCESS))
    bar = open_success.max(axis=1, keepdims=True) - slack[:, None]
    admissible = eligible & (success >= bar)
    utility = np.where(admissible, worth_usd[:, None] * success - cost_usd, np.finfo(np.float32).min)
    is_best = admissible & (utility >= utility.max(axis=1, keepdims=True))
    return np.where(eligible.any(axis=1), np.where(is_best, success, np.float32(IMPOSSIBLE_SUCCESS)).argmax(axis=1), -1)
