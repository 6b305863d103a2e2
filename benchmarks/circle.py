"""The circle, turned for ten SIMULATED weeks: what `broker retrain` is worth against a router that is never retrained.

    .venv/bin/python benchmarks/circle.py [--seeds 5] [--requests 600] [--panel 0.1] [--promotion-confidence 0.8]
        [--no-drift]

Nothing here is about a real model: prompts and outcomes are those of data/make_sample_log.py, whose success
probabilities are known, so that regret and quality are exact and not sampled. A first log has every tier's outcome on
a few hundred prompts. Then, week by week, the champion of a store routes requests with some exploration; decisions and
outcomes go through an `OutcomeLog` on disk, one outcome per request, and of a random panel of a tenth of the requests
every tier is asked afterwards, into a file of its own; `retrain` reads both as they are. Where its receipt asks for a
larger panel, the next one is so large. Meanwhile the mix of prompts drifts from easy to hard and to kinds of work that
the first log hardly had (unless --no-drift), and prices fall: the distilled tier's by 5 % a week, and in week 5 to a
third at once. The frozen router is the first champion; it sees today's prices too, and decides on the same requests.

Regret: net value (worth x success - cost) of the best tier of each request, less that of the tier chosen, in USD per
1,000 requests. Kept: success of the tiers chosen, relative to always asking the tier that is best that week.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from tqdm import tqdm

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))

import make_sample_log as sample  # noqa: E402
from router import Policy, Router  # noqa: E402
from router.outcomes import OutcomeLog  # noqa: E402
from router.portfolio.prices import PriceTable  # noqa: E402
from training.config import RetrainConfig, TrainingConfig  # noqa: E402
from training.retrain import Receipt, retrain  # noqa: E402

N_WEEKS = 10
WEEK_OF_CUT = 5
WORTH_USD = 0.02
QUALITY = 0.95
EXPLORATION = 0.05
PANEL = 0.1
START = datetime(2026, 3, 2, 8, tzinfo=UTC)


@dataclass(frozen=True)
class World:
    """Prompts in the order in which they are asked, and what is true of them; arrays (n_prompts, n_tiers).

    success: P(correct). tokens: input, output, (n_prompts, n_tiers) each.
    """

    prompts: list[str]
    segments: list[str]
    success: np.ndarray
    input_tokens: np.ndarray
    output_tokens: np.ndarray
    tiers: tuple[str, ...]

    @classmethod
    def simulated(cls, n_first: int, n_a_week: int, seed: int, *, drifts: bool = True) -> World:
        """The first log's prompts are mostly easy chat and arithmetic; each week has a harder and wider mix.

        drifts: False mixes the same prompts evenly over all weeks.
        """
        rng = np.random.default_rng(seed)
        sample.N_PROMPTS = 2 * (n_first + N_WEEKS * n_a_week)
        prompts = sample.write_prompts(sample.read_families(DATA / "prompt_templates"), rng)
        hidden = sample.hidden_difficulty(prompts, rng)
        behaviours = sample.BEHAVIOURS
        success = np.stack([sample.success(behaviours[tier], prompts, hidden, rng) for tier in behaviours], axis=1)
        output = np.stack([sample.answer_lengths(behaviours[tier], prompts, rng) for tier in behaviours], axis=1)
        # Each place in time takes the prompt left whose lateness comes next: late prompts are hard, or of new kinds.
        difficulty = np.array([prompt.difficulty for prompt in prompts]) + hidden
        is_new_kind = np.array([prompt.family.segment in ("code", "reasoning") for prompt in prompts])
        lateness = 0.5 * difficulty + 1.5 * is_new_kind + rng.normal(0, 3.0, len(prompts))
        asked = np.sort(rng.permutation(len(prompts))[: n_first + N_WEEKS * n_a_week])
        order = asked[np.argsort(lateness[asked], kind="stable")]
        blocks = np.split(order, n_first + n_a_week * np.arange(N_WEEKS))
        order = np.concatenate([rng.permutation(block) for block in blocks])
        if not drifts:
            order = rng.permutation(order)
        return cls(
            prompts=[prompts[at].text for at in order],
            segments=[prompts[at].family.segment for at in order],
            success=success[order],
            input_tokens=np.array([sample.count_tokens(prompts[at].text) for at in order], float),
            output_tokens=output[order],
            tiers=tuple(behaviours),
        )

    def cost_usd(self, rows: np.ndarray, prices: PriceTable) -> np.ndarray:
        """What each tier's first offer asks for these prompts, (n_rows, n_tiers)."""
        offers = [tier.offers[0] for tier in prices.tiers]
        per_input = np.array([offer.usd_per_mtok_input for offer in offers])
        per_output = np.array([offer.usd_per_mtok_output for offer in offers])
        return (self.input_tokens[rows, None] * per_input + self.output_tokens[rows] * per_output) / 1e6


def tiers_of_week(week: int) -> str:
    """A tiers.toml: one offer a tier, the distilled tier's price falling."""
    factor = 0.95**week * (1 / 3 if week >= WEEK_OF_CUT else 1.0)
    offers = {"edge": (0.25, 0.25), "distilled": (0.9 * factor, 3.6 * factor), "frontier": (3.0, 12.0)}
    return "\n".join(
        f'[[tiers]]\nname = "{tier}"\n[[tiers.offers]]\nmodel = "sim/{tier}"\nprovider = "sim-{tier}"\nregion = "sim"\n'
        f"context_window = 131072\nusd_per_mtok_input = {price[0]:.6f}\nusd_per_mtok_output = {price[1]:.6f}"
        for tier, price in offers.items()
    )


@dataclass(frozen=True)
class Week:
    """What became of a week's requests, under the circle's router and under the frozen one.

    promised: the quality that the circle's router promised, None where it did not. kept_error: standard error that
    the choice of these requests leaves in `kept`. n_panel: requests of which every tier was asked. panel_usd: what the
    tiers that the router had not chosen cost on these, in USD per 1,000 requests of the week; no regret includes it.
    """

    week: int
    regret: float
    frozen_regret: float
    kept: float
    frozen_kept: float
    kept_error: float
    promised: float | None
    n_panel: int
    panel_usd: float
    receipt: Receipt

    @property
    def is_broken(self) -> bool:
        """Whether less than QUALITY is kept, by more than two standard errors."""
        return self.kept < QUALITY - 2 * self.kept_error

    @property
    def is_lowered(self) -> bool:
        """Whether the run at the end of the week lowered the promise."""
        return (self.receipt.promise or {}).get("standing") == "lowered"


def turns(
    world: World,
    n_first: int,
    n_a_week: int,
    folder: Path,
    seed: int,
    panel_share: float = PANEL,
    promotion_confidence: float = RetrainConfig.promotion_confidence,
) -> Iterator[Week]:
    """Route, log, retrain, week by week; deterministic, as decisions get ids of the seed and the row, not random ones.

    The ids seed exploration.
    """
    rng = np.random.default_rng([seed, 1])
    is_correct = rng.random(world.success.shape) < world.success
    logs, store, tiers = folder / "outcomes", folder / "store", folder / "tiers.toml"
    tiers.write_text(tiers_of_week(0))
    first = folder / "first.parquet"
    before = START - timedelta(days=7)
    _all_tiers(world, np.arange(n_first), is_correct, PriceTable.parse(tiers_of_week(0)), before).to_parquet(first)
    config = RetrainConfig(
        training=TrainingConfig(default_quality=QUALITY),
        worth_usd=WORTH_USD,
        promotion_confidence=promotion_confidence,
        window_prompts=4000,
    )
    retrain(first, tiers, store, config, tracking_uri="none")
    frozen = Router.load(store / "champion")
    outcomes, panel = OutcomeLog(logs, keep_prompts=True), folder / "panel"
    panel.mkdir()
    share = panel_share
    for week in range(1, N_WEEKS + 1):
        rows = n_first + (week - 1) * n_a_week + np.arange(n_a_week)
        tiers.write_text(tiers_of_week(week))
        router = Router.load(store / "champion", Policy(exploration=EXPLORATION))
        for each in (router, frozen):
            each.update_prices(tiers)
        cost = world.cost_usd(rows, router.prices)
        chosen, promised = np.empty(n_a_week, int), None
        for number, row in enumerate(rows):
            at = START + timedelta(days=7 * (week - 1), seconds=number)
            with patch("router.routing.new_decision_id", return_value=f"{seed}-{row}"):
                decision = router.route(world.prompts[row])
            tier = chosen[number] = world.tiers.index(decision.tier)
            promised = decision.quality if decision.promised else None
            outcomes.decided(decision, world.prompts[row], timestamp=at)
            outcomes.outcome(
                decision.decision_id,
                correct=bool(is_correct[row, tier]),
                input_tokens=int(world.input_tokens[row]),
                output_tokens=int(world.output_tokens[row, tier]),
                cost_usd=float(cost[number, tier]),
            )
        outcomes.compact()
        asked = np.sort(rng.permutation(rows)[: round(share * n_a_week)])
        if len(asked):
            _all_tiers(world, asked, is_correct, router.prices, at).to_parquet(panel / f"week-{week:02}.parquet")
        of_frozen = [world.tiers.index(d.tier) for d in frozen.route_batch([world.prompts[row] for row in rows])]
        receipt = retrain([first, *([panel] if len(asked) else []), logs], tiers, store, config, tracking_uri="none")
        share = max(panel_share, receipt.panel["share"]) if panel_share else 0.0
        yield _week(week, world.success[rows], cost, chosen, np.array(of_frozen), promised, asked - rows[0], receipt)


def _week(
    week: int,
    success: np.ndarray,
    cost: np.ndarray,
    chosen: np.ndarray,
    of_frozen: np.ndarray,
    promised: float | None,
    panel: np.ndarray,
    receipt: Receipt,
) -> Week:
    """panel: numbers of the week's requests of which every tier was asked."""
    value = WORTH_USD * success - cost
    at = np.arange(len(value))
    best = success[:, success.mean(axis=0).argmax()]

    def regret(choice: np.ndarray) -> float:
        return float(1000 * (value.max(axis=1) - value[at, choice]).mean())

    def kept(choice: np.ndarray) -> float:
        return float(success[at, choice].mean() / best.mean())

    spread = (success[at, chosen] - kept(chosen) * best).std(ddof=1)
    error = float(spread / best.mean() / len(at) ** 0.5)
    panel_usd = float(1000 * (cost[panel].sum() - cost[panel, chosen[panel]].sum()) / len(at))
    return Week(
        week=week,
        regret=regret(chosen),
        frozen_regret=regret(of_frozen),
        kept=kept(chosen),
        frozen_kept=kept(of_frozen),
        kept_error=error,
        promised=promised,
        n_panel=len(panel),
        panel_usd=panel_usd,
        receipt=receipt,
    )


def _all_tiers(
    world: World, rows: np.ndarray, is_correct: np.ndarray, prices: PriceTable, at: datetime
) -> pd.DataFrame:
    """Every tier's outcome, asked for on purpose: the propensity is 1."""
    cost = world.cost_usd(rows, prices)
    return pd.DataFrame(
        {
            "prompt": world.prompts[row],
            "model": f"sim/{tier}",
            "correct": is_correct[row, k],
            "input_tokens": world.input_tokens[row],
            "output_tokens": world.output_tokens[row, k],
            "cost_usd": cost[number, k],
            "propensity": 1.0,
            "timestamp": at,
        }
        for number, row in enumerate(rows)
        for k, tier in enumerate(world.tiers)
    )


def summary(results: Mapping[int, list[Week]]) -> list[str]:
    """The tables of circle.md: means over seeds by week, then every seed. results: the weeks, by seed."""
    header = (
        "week", "regret", "of the frozen router", "kept", "least of any seed", "of the frozen router", "promised",
        "promoted", "lowered", "panel", "USD of the panel",
    )  # fmt: skip
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for weeks in zip(*results.values(), strict=True):
        regret, frozen_regret, kept, frozen_kept, panel, usd = (
            np.mean([getattr(week, name) for week in weeks])
            for name in ("regret", "frozen_regret", "kept", "frozen_kept", "n_panel", "panel_usd")
        )
        counts = [
            sum(flags)
            for flags in (
                [week.promised is not None for week in weeks],
                [week.receipt.promoted for week in weeks],
                [week.is_lowered for week in weeks],
            )
        ]
        lines.append(
            f"| {weeks[0].week} | {regret:.3f} | {frozen_regret:.3f} | {kept:.3f} "
            f"| {min(week.kept for week in weeks):.3f} | {frozen_kept:.3f} "
            f"| {' | '.join(f'{count} of {len(weeks)}' for count in counts)} | {panel:.0f} | {usd:.2f} |"
        )
    lines += [
        "",
        "| seed | regret | least kept, and in which week | weeks broken | promoted in | lowered in |",
        "|---" * 6 + "|",
    ]
    for seed, weeks in results.items():
        least = min(weeks, key=lambda week: week.kept)
        found = [
            ", ".join(str(week.week) for week in weeks if flag(week)) or "-"
            for flag in (lambda w: w.is_broken, lambda w: w.receipt.promoted, lambda w: w.is_lowered)
        ]
        lines.append(
            f"| {seed} | {_against_frozen([weeks]):+.1%} | {least.kept:.3f} ({least.week}) | {' | '.join(found)} |"
        )
    return [
        *lines,
        "",
        f"Regret over all weeks: {_against_frozen(list(results.values())):+.1%} against the frozen router.",
    ]


def _against_frozen(results: list[list[Week]]) -> float:
    ours, theirs = (sum(getattr(w, name) for weeks in results for w in weeks) for name in ("regret", "frozen_regret"))
    return float(ours / theirs - 1)


def main() -> int:
    """Turn the circle for several seeds, and print the tables."""
    parser = argparse.ArgumentParser(description="Ten simulated weeks of routing and retraining.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=600, help="a week")
    parser.add_argument("--first", type=int, default=600, help="prompts of the first log")
    parser.add_argument(
        "--panel", type=float, default=PANEL, help="least share of requests of which every tier is asked"
    )
    parser.add_argument(
        "--promotion-confidence",
        type=float,
        default=RetrainConfig.promotion_confidence,
        help="with which a challenger must be better",
    )
    parser.add_argument("--no-drift", action="store_true", help="the mix of requests stays as it is in the first log")
    options = parser.parse_args()
    results: dict[int, list[Week]] = {}
    with tqdm(total=options.seeds * N_WEEKS, unit="week") as bar:
        for seed in range(options.seeds):
            world = World.simulated(options.first, options.requests, seed, drifts=not options.no_drift)
            with tempfile.TemporaryDirectory() as folder:
                weeks = []
                for week in turns(
                    world, options.first, options.requests, Path(folder), seed, options.panel,
                    options.promotion_confidence,
                ):  # fmt: skip
                    weeks.append(week)
                    bar.update()
                    if options.seeds == 1:
                        bar.write(f"{week.week} {week.receipt.reason}")
                results[seed] = weeks
    print("\n".join(summary(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
