"""What is assumed of a tier on prompts of a kind that it was never asked.

No outcome speaks for its estimates there. They assume that the tier does as well, compared with the other tiers, as on
the prompts that it was asked. That may be wrong, so the bundle says where it is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from router.bundle.clusters import Cluster

MIN_EXPECTED = 5.0
"""Outcomes that a tier would have on a kind of prompt at its share of the whole log. Where this is at least so many and
it has none, chance is no explanation (e^-5 is 0.7 %)."""


def never_asked(
    tiers: Sequence[str], observed: np.ndarray, segments: np.ndarray, clusters: Sequence[Cluster]
) -> dict[str, dict[str, Any]]:
    """For each tier that was never asked some kind of prompt: how many such prompts the log has, and which.

    A kind is a segment of the log or a cluster of like prompts.

    observed: which outcomes the training prompts have, bool (n_prompts, n_tiers). segments: of each prompt,
    (n_prompts,), "" where it has none. clusters: of the same prompts.

    Returns for each such tier `segments` (the number of prompts in each segment), `n_clusters`, and `n_prompts`, those
    of the segments or those of the clusters, whichever are more.
    """
    members = {str(name): segments == name for name in np.unique(segments) if name}
    found = {}
    for tier, asked in zip(tiers, observed.T, strict=True):
        least = MIN_EXPECTED / max(asked.mean(), np.finfo(float).tiny)  # prompts of a kind
        of_segments = {
            name: int(rows.sum()) for name, rows in members.items() if rows.sum() >= least and not asked[rows].any()
        }
        of_clusters = [c.n_prompts for c in clusters if c.n_prompts >= least and tier not in c.n_outcomes]
        if of_segments or of_clusters:
            found[tier] = {
                "n_prompts": max(sum(of_segments.values()), sum(of_clusters)),
                "n_clusters": len(of_clusters),
                "segments": of_segments,
            }
    return found


def assumptions(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence or two per tier. found: of `never_asked`."""
    return [
        f"{tier} was never asked {_kinds(kinds)}: {kinds['n_prompts']:,} training prompts. Its estimates there rest on "
        "no outcome of its own; they assume that it does as well, compared with the other tiers, as elsewhere."
        for tier, kinds in found.items()
    ]


def _kinds(kinds: Mapping[str, Any]) -> str:
    segments, n_clusters = sorted(kinds["segments"]), kinds["n_clusters"]
    parts = []
    if segments:
        parts.append(f"{'segment' if len(segments) == 1 else 'segments'} {', '.join(segments)}")
    if n_clusters:
        parts.append(f"{n_clusters:,} {'group' if n_clusters == 1 else 'groups'} of like prompts")
    return " and ".join(parts)
