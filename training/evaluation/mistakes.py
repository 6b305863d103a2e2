"""The errors of a bundle, prompt by prompt: where it was wrong, and where it paid more than needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from router.bundle.bundle import Bundle
from router.policy import Policy as RouterPolicy
from router.policy import resolve_dials
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.training_data import TrainingData
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.labels import label_cheapest_correct
from training.log.sources import LogSource

WRONG_ANOTHER_RIGHT = "wrong, another tier was right"
WRONG_ALL_WRONG = "wrong, no tier was right"
RIGHT_BUT_DEAR = "right, a cheaper tier was right too"
KINDS = (WRONG_ANOTHER_RIGHT, WRONG_ALL_WRONG, RIGHT_BUT_DEAR)


def mistakes(
    bundle: str | Path | Bundle,
    logs: LogSource | Sequence[LogSource],
    *,
    quality: float | None = None,
    worth_usd: float | None = None,
    maps: Sequence[str] = (),
) -> pd.DataFrame:
    """What a bundle got wrong on prompts of logs that it was not trained on, one row for each such prompt.

    Columns: prompt, segment, kind (of KINDS), tier (that answered), success (its estimate), cost_usd (that it cost),
    right_tier (the cheapest that was right; None where none was), right_success, right_cost_usd, and for each tier
    `success.TIER` and `correct.TIER`. The surest mistakes of each kind stand first. `attrs["n_prompts"]` says of how
    many judged prompts these are. Left out are prompts of which the answering tier's outcome was not observed.

    A wrong answer is no mistake of the router where luck decides: an estimate of 0.9 is wrong once in ten times.

    quality, worth_usd: dials, as for Router.route; without them, the default quality. maps: as for TrainingConfig.
    Raises BundleError, DialError, LogError.
    """
    loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    dials = resolve_dials(loaded.manifest, RouterPolicy(), quality, worth_usd, critical=False)
    table = ingest(logs, loaded.prices.tiers, maps=maps)
    unseen = ~TrainingData.load(loaded).saw(table.groups) & np.isfinite(table.correct).any(axis=1)
    table = table.rows(unseen)
    cost_usd = attempt_costs(table, loaded.prices.tiers).cost_usd
    graph = BundleGraph(loaded)
    estimates = graph.estimates(table.prompts)
    success, tier = estimates["success"], graph.answers(estimates, dials)
    names = np.array([*table.tiers, None], dtype=object)
    best = label_cheapest_correct(table.correct, np.where(np.isfinite(table.correct), cost_usd, np.inf))
    right_tier = np.where(best >= 0, best, len(table.tiers))  # the last name is None

    def cell(values: np.ndarray, column: np.ndarray) -> np.ndarray:
        padded = np.column_stack([values, np.full(len(values), np.nan)])
        return np.asarray(np.take_along_axis(padded, column[:, None], axis=1)[:, 0])

    outcome = cell(table.correct, tier)
    columns = {
        "prompt": table.prompts,
        "segment": table.segments,
        "kind": np.select(
            [(outcome < 0.5) & (best >= 0), outcome < 0.5, (outcome >= 0.5) & (right_tier != tier)], KINDS, ""
        ),
        "tier": names[tier],
        "success": cell(success, tier),
        "cost_usd": cell(cost_usd, tier),
        "right_tier": names[right_tier],
        "right_success": cell(success, right_tier),
        "right_cost_usd": cell(cost_usd, right_tier),
        **{f"success.{name}": column for name, column in zip(table.tiers, success.T, strict=True)},
        **{f"correct.{name}": column for name, column in zip(table.tiers, table.correct.T, strict=True)},
    }
    found = pd.DataFrame(columns)
    found = found[found.kind != ""].assign(kind=lambda each: pd.Categorical(each.kind, KINDS))
    found = found.sort_values(["kind", "success"], ascending=[True, False]).reset_index(drop=True)
    found.attrs["n_prompts"] = int(np.isfinite(outcome).sum())
    return found
