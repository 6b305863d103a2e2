"""Clusters of the training prompts, by which an explanation shows logged prompts like the one that was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from router.bundle.manifest import is_count, is_number
from router.errors import BundleError


@dataclass(frozen=True, slots=True)
class Cluster:
    """Logged prompts that are alike, and how often each tier answered them correctly.

    number: its place in clusters.json, which is the graph's output `cluster`.
    success: share of correct answers per tier, in 0..1; where the log has partial feedback, a doubly robust estimate.
        It omits tiers that answered none of these prompts.
    n_outcomes: number of answers of each of these tiers.
    segments: share of the prompts in each segment of the log, the largest first; empty where the log has no segments.
    examples: some of the prompts, cut short; empty unless the training run was told to keep them.
    """

    number: int
    n_prompts: int
    success: Mapping[str, float]
    n_outcomes: Mapping[str, int]
    segments: Mapping[str, float]
    examples: tuple[str, ...]


def clusters_text(clusters: tuple[Cluster, ...]) -> str:
    """The text of clusters.json, one cluster per line."""
    names = [name for name in Cluster.__dataclass_fields__ if name != "number"]
    rows = [json.dumps({name: getattr(c, name) for name in names}, ensure_ascii=False) for c in clusters]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def parse_clusters(text: bytes, source: str) -> tuple[Cluster, ...]:
    """Clusters from the content of clusters.json; raises BundleError where it has another form."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list) or not rows:
            raise TypeError(f"found {type(rows).__name__}, expected a list that is not empty")
        clusters = tuple(
            Cluster(number, **{**row, "examples": tuple(row["examples"])}) for number, row in enumerate(rows)
        )
        for cluster in clusters:
            shares, counts = [*cluster.success.values(), *cluster.segments.values()], cluster.n_outcomes.values()
            if set(cluster.success) != set(cluster.n_outcomes) or not all(isinstance(e, str) for e in cluster.examples):
                raise TypeError(f"in cluster {cluster.number} tiers or examples have another form")
            if not all(is_number(share) for share in shares) or not all(
                is_count(n) for n in [cluster.n_prompts, *counts]
            ):
                raise TypeError(f"in cluster {cluster.number} shares or counts are no numbers")
        return clusters
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{source}: not a list of clusters ({error}); train or copy the bundle again") from error
