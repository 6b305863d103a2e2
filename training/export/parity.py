"""The parity gate: the graph estimates and decides as the models that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import lightgbm
import numpy as np
import onnx

from router.bundle.engine import OUTPUTS, padded
from training.encoders.encoder import Encoder
from training.errors import ParityError
from training.fit.model import TierModel
from training.graph.decision import decide
from training.graph.session import cpu_session
from training.graph.trees import float32_threshold

TOLERANCE_SUCCESS = 1e-4
TOLERANCE_RAW_SCORE = 1e-4
TOLERANCE_FAMILIARITY = 1e-4
TOLERANCE_TOKENS = 1e-3  # relative
_MAX_PARITY_PROMPTS = 500


@dataclass(frozen=True)
class Parity:
    """Largest differences between the graph and the models it was made from.

    output_tokens: relative. raw_score_on_thresholds: of the trees, on `threshold_rows`.
    """

    success: float
    output_tokens: float
    familiarity: float
    raw_score_on_thresholds: float
    n_prompts: int
    n_threshold_rows: int

    def require(self) -> None:
        """Raise ParityError where a difference exceeds its tolerance, or is NaN; familiarity first: success has it."""
        found = {
            "familiarity": (self.familiarity, TOLERANCE_FAMILIARITY),
            "success": (self.success, TOLERANCE_SUCCESS),
            "output tokens": (self.output_tokens, TOLERANCE_TOKENS),
            "raw scores on thresholds": (self.raw_score_on_thresholds, TOLERANCE_RAW_SCORE),
        }
        for what, (difference, tolerance) in found.items():
            if not difference <= tolerance:
                raise ParityError(
                    f"{what} of graph and models differ by {difference:.2g}; expected at most {tolerance:g}; "
                    "not exported"
                )


def check_parity(
    model: TierModel, encoder: Encoder, graph: onnx.ModelProto, prompts: list[str], embedding: np.ndarray, seed: int
) -> Parity:
    """Compare the graph with the models on prompts held out of training, and on rows placed on split thresholds.

    prompts: at most 500 of them are used. embedding: of the same prompts, float32 (n_prompts, n_dims).
    Raises ParityError where estimates, decisions or clusters differ.
    """
    rows = np.random.default_rng(seed).permutation(len(prompts))[:_MAX_PARITY_PROMPTS]
    on_thresholds = threshold_rows(model, embedding[rows], seed)
    differences = _differences(model, encoder, graph, [prompts[row] for row in rows], embedding[rows], seed)
    success, output_tokens, familiarity = differences.max(axis=0).tolist()  # NaN where any is
    parity = Parity(
        success=success,
        output_tokens=output_tokens,
        familiarity=familiarity,
        raw_score_on_thresholds=_raw_score_difference(model, on_thresholds),
        n_prompts=len(rows),
        n_threshold_rows=len(on_thresholds),
    )
    parity.require()
    return parity


def _differences(
    model: TierModel, encoder: Encoder, graph: onnx.ModelProto, prompts: list[str], embedding: np.ndarray, seed: int
) -> np.ndarray:
    """Of each prompt the difference in success, output tokens (relative) and familiarity, (n_prompts, 3).

    Raises ParityError where a decision or a cluster differs.
    """
    expected = (
        model.success.predict(embedding),
        model.lengths.predict(embedding),
        model.success.familiarity.of(embedding),
    )
    nearest = model.clusters.nearest(embedding, TOLERANCE_FAMILIARITY)
    differences = np.zeros((len(prompts), 3))
    session = cpu_session(graph)
    rng = np.random.default_rng(seed)
    n_tiers = expected[0].shape[1]
    for row, ids in enumerate(encoder.token_ids(prompts)):
        feeds = {**padded([ids]), **_random_request(rng, n_tiers)}
        success, output_tokens, cost_usd, tier, familiarity, cluster = session.run(OUTPUTS, feeds)
        differences[row] = (
            np.abs(success - expected[0][row]).max(),
            np.abs(output_tokens / expected[1][row] - 1).max(),
            np.abs(familiarity - expected[2][row]).max(),
        )
        decided = decide(success, cost_usd, feeds["eligible"], feeds["worth_usd"], feeds["slack"])
        if decided[0] != tier[0]:
            raise ParityError(f"prompt {row}: the graph chose tier {tier[0]}, the rule says {decided[0]}; not exported")
        input_tokens = model.inputs.predict(embedding[[row]], feeds["context_tokens"])[0]
        _check_decision(int(tier[0]), expected[0][row], input_tokens, expected[1][row], feeds)
        if cluster[0] not in nearest[row]:
            raise ParityError(
                f"prompt {row}: the graph says cluster {cluster[0]}, the models {nearest[row]}; not exported"
            )
    return differences


def _raw_score_difference(model: TierModel, embedding: np.ndarray) -> float:
    """Largest difference between the trees in LightGBM and in the graph; 0 without trees."""
    if model.success.classifier is None:
        return 0.0
    (raw_scores,) = cpu_session(model.head(embedding.shape[1])).run(["raw_scores"], {"embedding": embedding})
    return float(np.abs(raw_scores - model.success.raw_scores(embedding)).max())


def _random_request(rng: np.random.Generator, n_tiers: int) -> dict[str, np.ndarray]:
    """Random prices, dials and eligibility of one request, from a wide range."""
    eligible = rng.random((1, n_tiers)) < 0.8
    return {
        "context_tokens": rng.integers(1, 5000, 1).astype(np.float32),
        "usd_per_mtok_input": np.exp(rng.uniform(-4, 4, (1, n_tiers))).astype(np.float32),
        "usd_per_mtok_output": np.exp(rng.uniform(-3, 5, (1, n_tiers))).astype(np.float32),
        "eligible": eligible,
        "worth_usd": rng.choice(np.array([0, 0, 1e-4, 1e-3, 1e-2, 1.0], np.float32), 1),
        "slack": rng.choice(np.array([0, 0.01, 0.05, 0.2, 1.0], np.float32), 1),
    }


def _check_decision(
    tier: int,
    success: np.ndarray,
    input_tokens: np.ndarray,
    output_tokens: np.ndarray,
    feeds: Mapping[str, np.ndarray],
) -> None:
    """Raise ParityError where the graph's tier is not the best one by the models' own estimates, within tolerances."""
    eligible = feeds["eligible"][0]
    if not eligible.any():
        if tier != -1:
            raise ParityError(f"the graph chose tier {tier} where none is eligible; not exported")
        return
    prices = feeds["usd_per_mtok_input"][0], feeds["usd_per_mtok_output"][0]
    cost = (input_tokens * prices[0] + output_tokens * prices[1]) / 1e6
    worth, slack = float(feeds["worth_usd"][0]), float(feeds["slack"][0])
    bar = success[eligible].max() - slack
    utility = worth * success - cost
    surely_admissible = eligible & (success >= bar + 2 * TOLERANCE_SUCCESS)
    margin = 2 * worth * TOLERANCE_SUCCESS + 2 * TOLERANCE_TOKENS * cost.max()
    better = surely_admissible & (utility > utility[tier] + margin)
    if not eligible[tier] or success[tier] < bar - 2 * TOLERANCE_SUCCESS or better.any():
        raise ParityError(
            f"the graph chose tier {tier}; by the models it is not admissible or not the best; not exported"
        )


def threshold_rows(model: TierModel, embedding: np.ndarray, seed: int, n_rows: int = 2000) -> np.ndarray:
    """Embeddings in which one feature is exactly a split threshold, or the next float32 below or above it.

    embedding: rows to start from, (n, n_dims). Returns float32 (n_rows, n_dims).
    """
    rng = np.random.default_rng(seed)
    classifier = model.success.classifier
    splits = [] if classifier is None else _splits(classifier.forest.booster)
    rows = embedding[rng.integers(0, len(embedding), n_rows)].copy()
    if not splits:  # nothing could be learned, for example because all outcomes are the same
        return rows
    for row, pick in zip(rows, rng.integers(0, len(splits), n_rows), strict=True):
        feature, threshold = splits[pick]
        at = float32_threshold(threshold)
        row[feature] = rng.choice([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))])
    return rows


def _splits(booster: lightgbm.Booster) -> list[tuple[int, float]]:
    """Feature and threshold of every split."""
    found: list[tuple[int, float]] = []
    stack = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while stack:
        node = stack.pop()
        if "split_feature" in node:
            found.append((node["split_feature"], node["threshold"]))
            stack += [node["left_child"], node["right_child"]]
    return found
