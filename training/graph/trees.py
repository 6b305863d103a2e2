"""LightGBM's trees as the attributes of one ONNX operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightgbm
import numpy as np

LIGHTGBM_ZERO = np.float32(1e-35)
"""LightGBM takes numbers no further than this from zero for zero, and splits beside zero at plus or minus this."""


def ensemble_attributes(boosters: Sequence[lightgbm.Booster]) -> dict[str, Any]:
    """Attributes of one TreeEnsembleRegressor that holds the trees of all boosters.

    A booster with one output is one target of the ensemble; a booster with several outputs is one target for each.
    LightGBM compares a feature with a float64 threshold, ONNX Runtime with a float32 threshold. Every threshold becomes
    the largest float32 that goes left at it, so that each comparison keeps its result.
    Raises ValueError where a split is not numerical.
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
    """Append a tree's nodes to `nodes` and its leaves to `leaves`; nodes are numbered breadth first."""
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
    """The largest float32 that LightGBM sends left at a split; see LIGHTGBM_ZERO for thresholds beside zero."""
    nearest = np.float32(threshold)
    is_above = float(nearest) > threshold or -LIGHTGBM_ZERO <= nearest < 0
    return np.nextafter(nearest, np.float32(-np.inf)) if is_above else nearest
