"""Write a bundle: parity first, manifest last."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightgbm
import numpy as np
import onnx

from router.bundle.bundle import (
    CLUSTERS_FILE,
    GOLDEN_FILE,
    GRAPH_FILE,
    MANIFEST_FILE,
    REQUIRED_FILES,
    TIERS_FILE,
    TOKENIZER_FILE,
    Manifest,
)
from router.bundle.clusters import Cluster, clusters_text
from router.bundle.engine import OUTPUTS
from router.router import Router
from training.encoders.embed import encoder_session, padded
from training.encoders.encoder import Encoder
from training.errors import ConfigError, ParityError
from training.fit.model import TierModel
from training.graph.builder import decide, float32_threshold

TOLERANCE_SUCCESS = 1e-4
TOLERANCE_RAW_SCORE = 1e-4
TOLERANCE_FAMILIARITY = 1e-4
TOLERANCE_TOKENS = 1e-3  # relative
_MAX_PARITY_PROMPTS = 500

GOLDEN_PROMPTS = (
    "",
    "Hello!",
    "What is 17 * 23?",
    "Prove that the square root of 2 is irrational.",
    "Summarise the following text in one sentence: The river rose all night, and by morning the bridge was gone.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring and type hints.",
    "SELECT name, count(*) FROM orders GROUP BY name HAVING count(*) > 3; -- explain this query",
    "A train leaves at 9:40 and travels 210 km at 84 km/h. When does it arrive? Answer with the time only.",
    "Extract every date as JSON: 'Signed on 3 May 2021, valid until 2024-05-03, renewed 04/05/24.'",
    "Translate into German: The committee postponed the decision once more.",
    "请用一句话解释什么是量子纠缠。",
    "一个水池有两个进水管，单独注满分别需要6小时和4小时，一起开需要多久？",
    "¿Cuál es la diferencia entre un virus y una bacteria?",
    "東京から京都まで新幹線で何時間かかりますか？",
    "Объясни теорему Пифагора простыми словами.",
    "🚀🧪 What do these emoji suggest? ❤️‍🔥",
    "Three boxes are labelled apples, oranges and mixed; every label is wrong. You may draw one fruit from one box. "
    "Which box do you draw from, and how do you then label all three?",
    "Review this contract clause for risks to the tenant: 'The landlord may enter at any time without notice.'",
    "def f(x):\n    return [i for i in range(x) if all(i % j for j in range(2, i))]\n\nWhat does f(10) return?",
    "word " * 600,
)
"""Fixed prompts, so that no bundle carries a log's."""


@dataclass(frozen=True)
class Parity:
    """Largest differences between the graph and the models it was made from."""

    success: float
    output_tokens: float
    familiarity: float
    raw_score_on_thresholds: float
    n_prompts: int
    n_threshold_rows: int


def check_parity(
    model: TierModel, encoder: Encoder, graph: onnx.ModelProto, prompts: list[str], embedding: np.ndarray, seed: int
) -> Parity:
    """Compare the graph with the models on prompts held out of training, and on rows placed on split thresholds.

    prompts, embedding: of the same prompts. Raises ParityError where estimates or decisions differ.
    """
    rows = np.random.default_rng(seed).permutation(len(prompts))[:_MAX_PARITY_PROMPTS]
    prompts, embedding = [prompts[row] for row in rows], embedding[rows]
    on_thresholds = threshold_rows(model, embedding, seed)
    raw_difference = _raw_score_difference(model, on_thresholds)
    success_model = model.success
    expected = (
        success_model.predict(embedding),
        model.lengths.predict(embedding),
        success_model.familiarity.of(embedding),
    )
    nearest = model.clusters.nearest(embedding, TOLERANCE_FAMILIARITY)
    differences = np.zeros((len(prompts), 3))
    session = encoder_session(graph)
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
        _check_decision(int(tier[0]), expected[0][row], expected[1][row], feeds)
        if cluster[0] not in nearest[row]:
            raise ParityError(
                f"prompt {row}: the graph says cluster {cluster[0]}, the models {nearest[row]}; not exported"
            )
    difference_success, difference_tokens, difference_familiarity = differences.max(axis=0).tolist()  # NaN where any is
    found = {
        "success": (difference_success, TOLERANCE_SUCCESS),
        "output tokens": (difference_tokens, TOLERANCE_TOKENS),
        "familiarity": (difference_familiarity, TOLERANCE_FAMILIARITY),
        "raw scores on thresholds": (raw_difference, TOLERANCE_RAW_SCORE),
    }
    for what, (difference, tolerance) in found.items():
        if not difference <= tolerance:
            raise ParityError(
                f"{what} of graph and models differ by {difference:.2g}; expected at most {tolerance:g}; not exported"
            )
    return Parity(
        difference_success,
        difference_tokens,
        difference_familiarity,
        raw_difference,
        len(prompts),
        len(on_thresholds),
    )


def _raw_score_difference(model: TierModel, embedding: np.ndarray) -> float:
    """Largest difference between the trees in LightGBM and in the graph; 0 without trees."""
    if model.success.classifier is None:
        return 0.0
    (raw_scores,) = encoder_session(model.head(embedding.shape[1])).run(["raw_scores"], {"embedding": embedding})
    return float(np.abs(raw_scores - model.success.raw_scores(embedding)).max())


def _random_request(rng: np.random.Generator, n_tiers: int) -> dict[str, np.ndarray]:
    """Prices, dials and eligibility of one request, drawn widely."""
    eligible = rng.random((1, n_tiers)) < 0.8
    return {
        "context_tokens": rng.integers(1, 5000, 1).astype(np.float32),
        "usd_per_mtok_input": np.exp(rng.uniform(-4, 4, (1, n_tiers))).astype(np.float32),
        "usd_per_mtok_output": np.exp(rng.uniform(-3, 5, (1, n_tiers))).astype(np.float32),
        "eligible": eligible,
        "worth_usd": rng.choice(np.array([0, 0, 1e-4, 1e-3, 1e-2, 1.0], np.float32), 1),
        "slack": rng.choice(np.array([0, 0.01, 0.05, 0.2, 1.0], np.float32), 1),
    }


def _check_decision(tier: int, success: np.ndarray, output_tokens: np.ndarray, feeds: Mapping[str, np.ndarray]) -> None:
    """The graph's tier must be the best one by the models' own estimates, up to the tolerances."""
    eligible = feeds["eligible"][0]
    if not eligible.any():
        if tier != -1:
            raise ParityError(f"the graph chose tier {tier} where none is eligible; not exported")
        return
    prices = feeds["usd_per_mtok_input"][0], feeds["usd_per_mtok_output"][0]
    cost = (feeds["context_tokens"][0] * prices[0] + output_tokens * prices[1]) / 1e6
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
    """Embeddings in which a feature sits exactly on a split threshold, or one float32 beside it."""
    rng = np.random.default_rng(seed)
    classifier = model.success.classifier
    splits = [] if classifier is None else _splits(classifier.forest.booster)
    rows = embedding[rng.integers(0, len(embedding), n_rows)].copy()
    if not splits:  # nothing could be learned, as from outcomes that are all the same
        return rows
    for row, pick in zip(rows, rng.integers(0, len(splits), n_rows), strict=True):
        feature, threshold = splits[pick]
        at = float32_threshold(threshold)
        row[feature] = rng.choice([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))])
    return rows


def _splits(booster: lightgbm.Booster) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    stack = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    while stack:
        node = stack.pop()
        if "split_feature" in node:
            found.append((node["split_feature"], node["threshold"]))
            stack += [node["left_child"], node["right_child"]]
    return found


# ---- the folder ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BundleDraft:
    """A bundle being written, in a folder beside its place; nothing stands at its place until `publish`."""

    folder: Path
    target: Path
    manifest: Manifest

    def publish(self, **changes: Any) -> Manifest:
        """Digest every file, write the manifest last, put the folder in its place."""
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.iterdir())
            if path.name != MANIFEST_FILE
        }
        manifest = replace(self.manifest, files=files, **changes)
        (self.folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
        replaced = self.target.with_name(f".{self.target.name}.{uuid4().hex}.old")
        if self.target.exists():
            self.target.rename(replaced)
        self.folder.rename(self.target)
        shutil.rmtree(replaced, ignore_errors=True)
        return manifest


def check_target(target: Path) -> None:
    """Raises ConfigError where a bundle must not be written: a folder that holds something else."""
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / MANIFEST_FILE).exists()):
        raise ConfigError(f"{target} exists and is no bundle; name a new folder with --out, or remove it")


def draft_bundle(
    target: Path,
    encoder: Encoder,
    graph: onnx.ModelProto,
    tiers_text: str,
    clusters: tuple[Cluster, ...],
    manifest: Manifest,
) -> BundleDraft:
    """Write graph, tokenizer, tiers, clusters and golden prompts into a folder beside `target`, loadable already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.{uuid4().hex}.tmp")
    folder.mkdir()
    try:
        (folder / GRAPH_FILE).write_bytes(graph.SerializeToString(deterministic=True))
        (folder / TOKENIZER_FILE).write_text(encoder.tokenizer_json, encoding="utf-8")
        (folder / TIERS_FILE).write_text(tiers_text, encoding="utf-8")
        (folder / CLUSTERS_FILE).write_text(clusters_text(clusters), encoding="utf-8")
        (folder / GOLDEN_FILE).write_text("", encoding="utf-8")
        draft = _loadable(folder, manifest)
        lines = [json.dumps(entry, ensure_ascii=False) for entry in golden_entries(Router.load(folder))]
        (folder / GOLDEN_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return BundleDraft(folder, target, _loadable(folder, draft))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _loadable(folder: Path, manifest: Manifest) -> Manifest:
    """Write a manifest for what stands in the folder now, so that the runtime loads it."""
    names = REQUIRED_FILES
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    manifest = replace(manifest, files=files)
    (folder / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def golden_entries(router: Router) -> list[dict[str, Any]]:
    """What the runtime decides on the golden prompts, at the default quality and the bundle's own prices."""
    entries = []
    for prompt in GOLDEN_PROMPTS:
        decision = router.route(prompt)
        entries.append(
            {
                "prompt": prompt,
                "context_tokens": decision.context_tokens,
                "slack": decision.slack,
                "worth_usd": decision.worth_usd,
                "success": list(decision.success.values()),
                "output_tokens": list(decision.output_tokens.values()),
                "cost_usd": list(decision.cost_usd.values()),
                "tier": decision.tier,
                "familiarity": decision.familiarity,
            }
        )
    return entries


def versions() -> dict[str, str]:
    """Versions of what made the bundle."""
    packages = ("token-broker", "lightgbm", "numpy", "onnx", "onnxruntime", "scikit-learn", "tokenizers")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
