"""Two bundles on the same prompts: paired figures with intervals, and the prompts that they answer differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from router.bundle.bundle import Bundle
from router.notebook import card
from router.policy import Policy as RouterPolicy
from router.policy import resolve_dials
from router.portfolio.prices import PriceTable
from training.errors import LogError
from training.evaluation.bundle_graph import BundleGraph
from training.evaluation.dials import dials_text
from training.evaluation.metrics import Interval, Outcomes, Policy, interval, policy_figures, resamples, worth_grid
from training.evaluation.segments import worse_segments_of
from training.evaluation.training_data import TrainingData
from training.log.costs import attempt_costs, costs_at_prices
from training.log.ingest import ingest
from training.log.sources import LogSource
from training.log.table import OutcomeTable
from training.reports.tables import Table

MIN_COMPARED_PROMPTS = 30
"""With fewer prompts no interval means anything."""


@dataclass(frozen=True)
class PairedFigure:
    """A figure of bundles A and B on the same prompts, and B - A with its paired 95 % interval."""

    a: float
    b: float
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "difference": self.difference.to_json()}


@dataclass(frozen=True)
class BundleComparison:
    """Bundles A and B on prompts that neither was trained on and that every tier of both answered.

    names: of A and B. quality, worth_usd: the dials of both, as they were given; without any, each bundle's own
    default quality decides. n_prompts: compared. n_differ: of these, answered by another tier.
    figures: by name. With the dials: `accuracy`, `usd_per_1k`, and `net_value` in USD per 1,000 requests where a worth
        is given. Over all budgets: `aiq`. Of the estimates: `brier`, over all tiers.
    worse_segments: by how much the accuracy of B is lower, by segment, where that is significant.
    differing: a row for each prompt that is answered by another tier: prompt, segment, and of A and B the tier, the
        estimate of its success, whether it was correct, and what it cost.
    """

    names: tuple[str, str]
    quality: float | None
    worth_usd: float | None
    n_prompts: int
    n_differ: int
    figures: Mapping[str, PairedFigure]
    worse_segments: Mapping[str, str]
    differing: pd.DataFrame = field(repr=False, compare=False)

    @property
    def verdict(self) -> str:
        """What is sure of the difference, in a sentence."""
        found = [
            f"{name} {'higher' if figure.difference.low > 0 else 'lower'}"
            for name, figure in self.figures.items()
            if figure.difference.low > 0 or figure.difference.high < 0
        ]
        _, b = self.names
        sure = f"surely different for {b}: {', '.join(found)}" if found else "no difference is beyond noise"
        return f"On {self.n_prompts:,} prompts, of which {self.n_differ:,} are answered by another tier: {sure}."

    @property
    def table(self) -> Table:
        """The figures, a row each."""
        a, b = self.names
        return Table.of(
            f"{a} and {b}, {self._dials}",
            self.figures.items(),
            [
                ("figure", lambda item: item[0]),
                (a, lambda item: f"{item[1].a:.4g}"),
                (b, lambda item: f"{item[1].b:.4g}"),
                ("difference (95 %)", lambda item: item[1].difference.text()),
            ],
        )

    @property
    def _dials(self) -> str:
        if self.quality is None and self.worth_usd is None:
            return "each at its default quality"
        return dials_text(self.quality, self.worth_usd or 0.0)

    def to_json(self) -> dict[str, Any]:
        """The JSON of `broker compare --json`; it holds no prompt."""
        return {
            "verdict": self.verdict,
            "names": list(self.names),
            "quality": self.quality,
            "worth_usd": self.worth_usd,
            "n_prompts": self.n_prompts,
            "n_differ": self.n_differ,
            "figures": {name: figure.to_json() for name, figure in self.figures.items()},
            "worse_segments": dict(self.worse_segments),
        }

    def _repr_html_(self) -> str:
        """The verdict above a row per figure, in a notebook."""
        return card([self.verdict], self.table.header, self.table.rows)


def compare(
    a: str | Path | Bundle,
    b: str | Path | Bundle,
    logs: LogSource | Sequence[LogSource],
    *,
    quality: float | None = None,
    worth_usd: float | None = None,
    prices: str | Path | None = None,
    maps: Sequence[str] = (),
    quarantine: Path | None = None,
    seed: int = 0,
) -> BundleComparison:
    """Compare two bundles on the prompts of logs that neither was trained on.

    Judged are prompts that every tier of both bundles answered. The bundles may differ in their tiers. Train both with
    the same seed, so that they hold out the same questions.

    prices: a file in the format of tiers.toml at which both decide, and attempts cost what their tokens cost; None
        takes each bundle's own prices. quality, worth_usd: dials, as for Router.route.
    maps: how columns of the logs are made from others. quarantine: a file for broken rows; None writes none.
    Raises BundleError, PriceError, DialError, LogError (also where fewer than MIN_COMPARED_PROMPTS are left).
    """
    bundles = [each if isinstance(each, Bundle) else Bundle.load(each) for each in (a, b)]
    tables = [ingest(logs, each.prices.tiers, maps=maps, quarantine=quarantine) for each in bundles]
    known = [TrainingData.load(each) for each in bundles]
    shared = _comparable(tables, known)
    sides = [
        _Side.of(bundle, table.rows(np.isin(table.prompt_ids, shared)), prices, quality, worth_usd)
        for bundle, table in zip(bundles, tables, strict=True)
    ]
    return _compared(_names_of(bundles), sides, quality, worth_usd, resamples(len(shared), seed))


def _comparable(tables: Sequence[OutcomeTable], known: Sequence[TrainingData]) -> np.ndarray:
    """Ids of the prompts that neither bundle was trained on and that every tier of both answered, ascending."""
    unseen = [~data.saw(tables[0].groups) for data in known]
    complete = [table.prompt_ids[np.isfinite(table.correct).all(axis=1)] for table in tables]
    shared = np.intersect1d(tables[0].prompt_ids[unseen[0] & unseen[1]], np.intersect1d(*complete))
    if len(shared) < MIN_COMPARED_PROMPTS:
        raise LogError(
            f"found {len(shared)} prompts to compare on (of {tables[0].n_prompts}, {int(unseen[0].sum())} and "
            f"{int(unseen[1].sum())} were not trained on, {len(complete[0])} and {len(complete[1])} have the outcome "
            f"of every tier); expected at least {MIN_COMPARED_PROMPTS}. Train both on the same log with the same seed, "
            "or give a log that neither has seen"
        )
    return shared


@dataclass(frozen=True)
class _Side:
    """One bundle on the prompts that are compared. choice: column of the tier that answers, int (n_prompts,)."""

    graph: BundleGraph
    table: OutcomeTable
    cost_usd: np.ndarray
    estimates: Mapping[str, np.ndarray]
    choice: np.ndarray

    @classmethod
    def of(
        cls, bundle: Bundle, table: OutcomeTable, prices: str | Path | None, quality: float | None, worth: float | None
    ) -> _Side:
        """Estimates and choices at these dials and prices."""
        dials = resolve_dials(bundle.manifest, RouterPolicy(), quality, worth, critical=False)
        logged_at = bundle.prices.tiers
        if prices is None:
            cost_usd = attempt_costs(table, logged_at).cost_usd
        else:
            bundle = replace(bundle, prices=PriceTable.read(prices, bundle.manifest.tiers))
            cost_usd = costs_at_prices(table, bundle.prices, logged_at=logged_at).cost_usd
        graph = BundleGraph(bundle)
        estimates = graph.estimates(table.prompts)
        return cls(graph, table, cost_usd, estimates, graph.answers(estimates, dials))

    def of_choice(self, cells: np.ndarray) -> np.ndarray:
        """The chosen tier's cell of each prompt; cells: (n_prompts, n_tiers)."""
        return np.asarray(np.take_along_axis(cells, self.choice[:, None], axis=1)[:, 0])

    @property
    def tier(self) -> np.ndarray:
        """Names of the tiers chosen."""
        return np.asarray(np.array(self.graph.bundle.manifest.tiers, dtype=object)[self.choice])

    @property
    def brier(self) -> np.ndarray:
        """Squared error of the estimates, mean over the tiers, (n_prompts,)."""
        return np.asarray(((self.estimates["success"] - self.table.correct) ** 2).mean(axis=1))

    def aiq(self, weights: np.ndarray) -> np.ndarray:
        """AIQ with worth_usd as the only dial, per resample."""
        correct = self.table.correct
        worths = worth_grid(self.cost_usd.mean(axis=0))
        policy = Policy(np.stack([self.graph.choices(self.estimates, float(worth), 1.0) for worth in worths], axis=1))
        judged = Outcomes(correct=correct, cost_usd=self.cost_usd, best=int(correct.mean(axis=0).argmax()))
        return policy_figures(policy, judged, weights)["aiq"]


def _compared(
    names: tuple[str, str],
    sides: Sequence[_Side],
    quality: float | None,
    worth_usd: float | None,
    weights: np.ndarray,
) -> BundleComparison:
    correct = [side.of_choice(side.table.correct) for side in sides]
    cost = [side.of_choice(side.cost_usd) for side in sides]
    values = {"accuracy": correct, "usd_per_1k": [1000 * each for each in cost]}
    if worth_usd is not None:
        values["net_value"] = [1000 * (worth_usd * right - paid) for right, paid in zip(correct, cost, strict=True)]
    values["brier"] = [side.brier for side in sides]
    figures = {name: _paired(weights @ ours, weights @ theirs) for name, (ours, theirs) in values.items()}
    figures["aiq"] = _paired(*(side.aiq(weights) for side in sides))
    a, b = sides
    differs = a.tier != b.tier
    columns: dict[str, Any] = {"prompt": a.table.prompts, "segment": a.table.segments}
    for side, label, right, paid in zip(sides, "ab", correct, cost, strict=True):
        columns |= {f"tier_{label}": side.tier, f"success_{label}": side.of_choice(side.estimates["success"])}
        columns |= {f"correct_{label}": right, f"cost_usd_{label}": paid}
    return BundleComparison(
        names=names,
        quality=quality,
        worth_usd=worth_usd,
        n_prompts=len(differs),
        n_differ=int(differs.sum()),
        figures=figures,
        worse_segments=worse_segments_of(correct[1] - correct[0], a.table.segments),
        differing=pd.DataFrame(columns)[differs].reset_index(drop=True),
    )


def _paired(a: np.ndarray, b: np.ndarray) -> PairedFigure:
    """From one value per resample, the sample itself first."""
    return PairedFigure(a=float(a[0]), b=float(b[0]), difference=interval(b - a))


def _names_of(bundles: Sequence[Bundle]) -> tuple[str, str]:
    """Folder names, which say more than ids; the ids where they are the same."""
    names = [bundle.path.name for bundle in bundles]
    if names[0] == names[1]:
        names = [bundle.manifest.bundle_id for bundle in bundles]
    return names[0], names[1]
