"""False alarms and power of the drift report on a public outcome log: the tables of drift.md.

    BROKER_REAL_LOGS=FOLDER .venv/bin/python benchmarks/drift.py [--write]

A small part of mmlu_pro's questions trains a champion. Of the others, disjoint windows of n prompts each are drawn
without replacement, so that without more ado nothing drifts. Every drift is SIMULATED on the recent window (a
doubled segment: on the reference, of which half of that segment is left out).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from off_policy import attempts, markdown, write
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from router.bundle.bundle import Bundle
from router.policy import Policy, resolve_dials
from router.portfolio.tiers import read_tiers
from training import TrainingConfig, train
from training.evaluation.bundle_graph import BundleGraph, embed_with
from training.log.costs import attempt_costs
from training.log.ingest import ingest
from training.log.split import test_mask
from training.retrain.drift import THRESHOLDS, DriftReport, Finding, Window, drift_report

LOG = "mmlu_pro"
TIERS = Path(__file__).parent / "tiers" / f"{LOG}.toml"
PAGE = Path(__file__).with_suffix(".md")
SIZES = (300, 1000, 3000)
MOVED_TIER, MOVED_SEGMENT = "gemini-pro", "mmlu_pro/law"
FLIPPED, LONGER, DEARER = 0.2, 1.5, 2.0
SEED = 0


@dataclass(frozen=True)
class Population:
    """Prompts that the champion was not trained on, and the tier that answers at quality 0.98, (n_prompts,)."""

    window: Window
    routed: np.ndarray

    @classmethod
    def of(cls, log: Path, folder: Path) -> "Population":
        """Train the champion on 30 % of the questions, keep one prompt of each other question."""
        tiers = read_tiers(TIERS)
        table = ingest(log, tiers)
        held_out = test_mask(table.groups, 0.7, seed=1)
        names = [tier.offers[0].model for tier in tiers]
        config = TrainingConfig(cache=folder / "cache")
        train(attempts(table.rows(~held_out), names), TIERS, folder / LOG, config, tracking_uri="none")
        rest = table.rows(held_out)
        rest = rest.rows(np.unique(rest.groups, return_index=True)[1])
        rest = replace(rest, cost_usd=attempt_costs(rest, tiers).cost_usd)
        shipped = BundleGraph(Bundle.load(folder / LOG))
        estimates = shipped.estimates(rest.prompts)
        window = Window.of(rest, embed_with(shipped.bundle, rest.prompts), estimates)
        # Window.of orders by group, as rest is already.
        dials = resolve_dials(shipped.bundle.manifest, Policy(), 0.98, None, critical=False)
        routed = shipped.answers(estimates, dials)
        return cls(window, routed)

    def halves(self, n: int, rng: np.random.Generator, tilt: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Two disjoint samples of n rows; tilt: log odds that a row is drawn for the recent one, (n_prompts,)."""
        rows = rng.permutation(len(self.routed))
        if tilt is None:
            return rows[:n], rows[n : 2 * n]
        recent = np.argsort(tilt + rng.gumbel(size=len(rows)))[-n:]  # n draws without replacement, odds exp(tilt)
        return rows[~np.isin(rows, recent)][:n], recent


Windows = tuple[Window, Window]
Drift = Callable[[Population, int, np.random.Generator], Windows]
Belongs = Callable[[Finding], bool]


def part(window: Window, rows: np.ndarray) -> Window:
    """Some rows of a window."""
    arrays = {name: getattr(window, name) for name in vars(window) if name != "tiers"}
    return Window(window.tiers, **{name: values[rows] for name, values in arrays.items()})


def nothing(population: Population, n: int, rng: np.random.Generator) -> Windows:
    """No drift."""
    reference, recent = population.halves(n, rng)
    return part(population.window, reference), part(population.window, recent)


def only_routed(population: Population, n: int, rng: np.random.Generator) -> Windows:
    """No drift, but of a recent prompt only the tier is observed that the champion's dial chose."""
    reference, rows = population.halves(n, rng)
    hidden = population.routed[rows][:, None] != np.arange(len(population.window.tiers))
    recent = part(population.window, rows)
    cells = {name: np.where(hidden, np.nan, getattr(recent, name)) for name in ("correct", "output_tokens", "cost_usd")}
    return part(population.window, reference), replace(recent, **cells)


def harder(population: Population, n: int, rng: np.random.Generator) -> Windows:
    """Recent prompts are those of which the champion expects less."""
    expected = population.window.expected_success.mean(axis=1)
    tilt = -(expected - expected.mean()) / expected.std()
    return tuple(part(population.window, rows) for rows in population.halves(n, rng, tilt))


def harder_unseen(population: Population, n: int, rng: np.random.Generator) -> Windows:
    """Recent prompts are those that more tiers failed than the champion expected: it cannot see that they are hard."""
    tilt = np.nanmean(population.window.expected_success - population.window.correct, axis=1)
    return tuple(part(population.window, rows) for rows in population.halves(n, rng, tilt))


def doubled(population: Population, n: int, rng: np.random.Generator) -> Windows:
    """The reference lacks half of a segment."""
    rows, recent = population.halves(n, rng)
    spare = np.setdiff1d(np.arange(len(population.routed)), np.concatenate([rows, recent]))
    of_it = np.flatnonzero(population.window.segments[rows] == MOVED_SEGMENT)
    others = rng.permutation(spare[population.window.segments[spare] != MOVED_SEGMENT])
    left_out = of_it[: len(of_it) // 2]
    rows[left_out] = others[: len(left_out)]
    return part(population.window, rows), part(population.window, recent)


def changed(name: str, change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Drift:
    """The recent cells of one tier are others."""

    def apply(population: Population, n: int, rng: np.random.Generator) -> Windows:
        reference, recent = nothing(population, n, rng)
        cells = getattr(recent, name).copy()
        k = recent.tiers.index(MOVED_TIER)
        cells[:, k] = change(cells[:, k], rng)
        return reference, replace(recent, **{name: cells})

    return apply


def flip(correct: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some outcomes are the opposite."""
    return np.where(rng.random(len(correct)) < FLIPPED, 1 - correct, correct)


def fail(correct: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some outcomes are failures."""
    return np.where(rng.random(len(correct)) < FLIPPED, 0.0, correct)


def longer(output_tokens: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Longer answers."""
    return output_tokens * LONGER


def dearer(cost_usd: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Dearer answers."""
    return cost_usd * DEARER


def of_tier(what: str) -> Belongs:
    """Findings of that kind about the tier that moved."""
    return lambda finding: finding.what == what and finding.tier == MOVED_TIER


def of_prompts(finding: Finding) -> bool:
    """Findings that blame the prompts, not a tier."""
    return finding.what in ("prompts", "share")


def of_moved_segment(finding: Finding) -> bool:
    """Findings about the share of the segment that moved."""
    return finding.what == "share" and finding.segment == MOVED_SEGMENT


def whole(finding: Finding) -> bool:
    """Findings about all segments together."""
    return finding.segment is None


# What is simulated, the findings that are right, and of these those of which one must be made.
DRIFTS: dict[str, tuple[Drift, Belongs, Belongs]] = {
    f"{FLIPPED:.0%} of {MOVED_TIER}'s outcomes flipped": (changed("correct", flip), of_tier("outcomes"), whole),
    f"{FLIPPED:.0%} of {MOVED_TIER}'s outcomes failed": (changed("correct", fail), of_tier("outcomes"), whole),
    f"output tokens of {MOVED_TIER} x {LONGER}": (changed("output_tokens", longer), of_tier("length"), whole),
    f"cost of {MOVED_TIER} x {DEARER}": (changed("cost_usd", dearer), of_tier("cost"), whole),
    f"share of {MOVED_SEGMENT} doubled": (doubled, of_prompts, of_moved_segment),
    "harder prompts": (harder, of_prompts, of_prompts),
    "harder prompts, unseen by the champion": (harder_unseen, of_prompts, of_prompts),
}
NULLS: dict[str, Drift] = {"random halves": nothing, "random halves, recent only routed": only_routed}


def reports(drift: Drift, population: Population, n: int, repetitions: int, bar: tqdm) -> Iterator[DriftReport]:
    """One report per repetition."""
    for repetition in range(repetitions):
        rng = np.random.default_rng([SEED, n, repetition])
        yield drift_report(*drift(population, n, rng), seed=repetition)
        bar.update()


def percent(flags: list[bool]) -> str:
    """Share of those that are true."""
    return f"{100 * float(np.mean(flags)):.1f}"


def null_row(found: list[DriftReport]) -> list[str]:
    """How often anything is found, by level and kind."""
    columns = [percent([any(f.what == what for f in report.moved) for report in found]) for what in THRESHOLDS]
    return [percent([bool(r.moved) for r in found]), percent([r.level == "alarm" for r in found]), *columns]


def power_row(found: list[DriftReport], belongs: Belongs, must: Belongs) -> list[str]:
    """How often it is found, is an alarm, and something else is blamed."""
    hits = [[f for f in report.moved if belongs(f) and must(f)] for report in found]
    return [
        percent([bool(hit) for hit in hits]),
        percent([any(f.level == "alarm" for f in hit) for hit in hits]),
        percent([any(not belongs(f) for f in report.moved) for report in found]),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="False alarms and power of the drift report.")
    parser.add_argument("--repetitions", type=int, default=200, help="of random halves")
    parser.add_argument("--drifts", type=int, default=25, help="repetitions of the rest")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.name}")
    options = parser.parse_args()
    root = os.environ.get("BROKER_REAL_LOGS")
    if not root:
        sys.stderr.write("BROKER_REAL_LOGS is not set; expected the folder of the public outcome logs\n")
        return 2
    total = len(SIZES) * (options.repetitions + options.drifts * (len(NULLS) - 1 + len(DRIFTS)))
    nulls, powers = [], []
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder, tqdm(total=total, unit="report") as bar:
        population = Population.of(Path(root) / LOG, Path(folder))
        for name, drift in NULLS.items():
            for n in SIZES:
                repetitions = options.repetitions if drift is nothing else options.drifts
                found = list(reports(drift, population, n, repetitions, bar))
                nulls.append([name, f"{n:,}", f"{repetitions}", *null_row(found)])
        for name, (drift, belongs, must) in DRIFTS.items():
            for n in SIZES:
                found = list(reports(drift, population, n, options.drifts, bar))
                powers.append([name, f"{n:,}", *power_row(found, belongs, must)])
    lines = ["### Without drift: reports (%) with a finding", ""]
    lines += markdown(["windows", "n", "reports", "any notice or alarm", "any alarm", *THRESHOLDS], nulls)
    lines += [f"### Simulated drift: reports (%), of {options.drifts}", ""]
    lines += markdown(["simulated", "n", "found", "as an alarm", "something else found"], powers)
    print("\n".join(lines))
    sys.stderr.write(f"{time.process_time():.0f} s of CPU\n")
    if options.write:
        write(lines, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
