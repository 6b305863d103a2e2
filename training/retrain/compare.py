"""Champion and challenger on the same prompts: quality, cost and net value, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from router.bundle.bundle import Bundle
from router.portfolio.prices import PriceTable
from training.config import RetrainConfig
from training.evaluation.evaluate import MIN_COMPLETE_PROMPTS
from training.evaluation.logged_choices import LoggedChoices
from training.evaluation.metrics import Interval, interval, resamples
from training.evaluation.off_policy import compare_policies
from training.evaluation.segments import worse_segments_of
from training.log.costs import costs_at_prices
from training.log.table import OutcomeTable, is_partial
from training.retrain.candidate import Candidate

MIN_COVERAGE = 0.8
"""Of the prompts on which champion and challenger choose differently, at least this share must have both outcomes."""


@dataclass(frozen=True)
class Measure:
    """One measure of champion and challenger, and the difference challenger - champion with its paired 95 % interval.

    champion, challenger: None where only the difference is known (off-policy).
    """

    champion: float | None
    challenger: float | None
    difference: Interval

    def least(self, confidence: float) -> float:
        """Lower bound of the difference with this one-sided confidence.

        The normal approximation, as wide as the lower half of the 95 % interval.
        """
        normal = NormalDist()
        standard_error = (self.difference.value - self.difference.low) / normal.inv_cdf(0.975)
        return self.difference.value - normal.inv_cdf(confidence) * standard_error

    def to_json(self) -> dict[str, Any]:
        """The measure as a receipt has it."""
        return {**asdict(self), "difference": self.difference.to_json()}


@dataclass(frozen=True)
class Comparison:
    """Champion and challenger on the same prompts, without dials, at the prices of tiers.toml.

    quality: share of correct answers. cost_usd, net_value: USD per request. worth_usd: of a correct answer.
    worse_segments: how much lower the quality is, by segment, where that is significant.
    refused: why they cannot be compared; the measures are None then.
    promised: the share of the best tier's accuracy that the champion promises to keep. champion_kept: the share that
        it kept on recent prompts which every tier was asked and which it was not trained on. Both are None where
        these prompts are too few, or nothing was promised.
    """

    n_prompts: int
    worth_usd: float | None = None
    quality: Measure | None = None
    cost_usd: Measure | None = None
    net_value: Measure | None = None
    worse_segments: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    promised: float | None = None
    champion_kept: Interval | None = None

    def verdict(self, quality_margin: float, confidence: float) -> tuple[bool, str]:
        """Whether the challenger takes over, and why or why not, in one line.

        confidence: with which its net value must be better, one-sided.
        """
        if self.refused or self.quality is None or self.net_value is None:
            return False, self.refused
        quality, net_value = self.quality.difference, self.net_value.difference
        quality_text, net_text = _points(quality), _usd_per_1k(net_value)
        better = f"better with {100 * confidence:g}% confidence"
        if self.broken_promise and quality.value > 0:
            return True, f"{self.broken_promise}; quality {quality_text}; {self.n_prompts:,} prompts"
        if quality.low < -quality_margin:
            return False, (
                f"quality may be worse: {quality_text}, where a loss of at most {quality_margin * 100:g} points "
                f"is tolerated; {self.n_prompts:,} prompts"
            )
        if self.worse_segments:
            found = "; ".join(f"{segment} {how}" for segment, how in self.worse_segments.items())
            return False, f"quality is worse in a segment: {found}"
        if net_value.value <= 0 or self.net_value.least(confidence) <= 0:
            return False, f"net value is not {better}: {net_text}; {self.n_prompts:,} prompts"
        return True, f"net value is {better}: {net_text}; quality {quality_text}; {self.n_prompts:,} prompts"

    @property
    def broken_promise(self) -> str:
        """A sentence where the champion surely no longer keeps the quality it promises; "" where it may keep it."""
        kept = self.champion_kept
        if kept is None or self.promised is None or kept.high >= self.promised:
            return ""
        return (
            f"the champion no longer keeps the quality it promises: {kept.value:.3f} ({kept.low:.3f} to "
            f"{kept.high:.3f}) of the best tier's, {self.promised:g} promised"
        )


def compare(
    champion: Bundle,
    challenger: Bundle,
    log: OutcomeTable,
    prices: PriceTable,
    recent: np.ndarray,
    config: RetrainConfig,
) -> Comparison:
    """Compare both bundles, without dials, on recent prompts that the champion was not trained on.

    For a prompt that the challenger was trained on, its out-of-fold estimates are used: those of models that did not
    see the prompt. So a few hundred new prompts are enough to judge on.

    log: with one column for each tier of `prices`. prices: today's, with all tiers of both bundles. recent: prompt_ids.
    """
    ours, theirs = (Candidate.at(bundle, prices) for bundle in (champion, challenger))
    log = log.rows(np.isin(log.prompt_ids, recent) & ~ours.part.saw(log.groups))
    promised, kept = _promise_kept(ours, log, config)
    return replace(_compare(ours, theirs, log, prices, config), promised=promised, champion_kept=kept)


def _promise_kept(
    champion: Candidate, table: OutcomeTable, config: RetrainConfig
) -> tuple[float | None, Interval | None]:
    """The quality that the champion promises without dials, and what it kept on these prompts; see Comparison."""
    manifest = champion.bundle.manifest
    point = manifest.dial_point(manifest.default_quality)
    table = table.rows(np.isfinite(table.correct).all(axis=1))
    if not point.promised or table.n_prompts < config.min_judged:
        return None, None
    choice = champion.choices(champion.estimates(table))
    outcome = table.correct[np.arange(table.n_prompts), choice]
    best = table.correct[:, table.correct.mean(axis=0).argmax()]
    weights = resamples(table.n_prompts, config.training.seed)
    return point.quality, interval((weights @ outcome) / np.maximum(weights @ best, 1e-9))


def _compare(
    champion: Candidate, challenger: Candidate, table: OutcomeTable, prices: PriceTable, config: RetrainConfig
) -> Comparison:
    """Compare both on the prompts of a table, which the champion was not trained on."""
    table = table.rows(np.isfinite(table.correct).any(axis=1))
    if table.n_prompts < config.min_judged:
        return Comparison(n_prompts=table.n_prompts, refused=_too_few(table.n_prompts, config))
    complete = np.isfinite(table.correct).all(axis=1)
    if complete.mean() < MIN_COVERAGE and complete.sum() >= max(config.min_judged, MIN_COMPLETE_PROMPTS):
        table = table.rows(complete)  # a panel, which says more than all the other prompts
    cost_usd = costs_at_prices(table, prices).cost_usd
    predicted = challenger.estimates(table)
    ours, theirs = champion.choices(champion.estimates(table)), challenger.choices(predicted)
    worth_usd = config.worth_usd or cost_of_a_correct_answer(table.correct, cost_usd)
    if is_partial(table.correct):
        return _compare_off_policy(table, cost_usd, ours, theirs, predicted, worth_usd, config)
    return _compare_paired(table, cost_usd, ours, theirs, worth_usd, config)


def _compare_paired(
    table: OutcomeTable,
    cost_usd: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    worth_usd: float,
    config: RetrainConfig,
) -> Comparison:
    """Compare logged outcomes, where most tiers answered most prompts. ours, theirs: columns chosen, (n_prompts,)."""
    rows = np.arange(table.n_prompts)
    judged = np.isfinite(table.correct[rows, ours]) & np.isfinite(table.correct[rows, theirs])
    differ = ours != theirs
    n_differ, n_known = int(differ.sum()), int((differ & judged).sum())
    if judged.sum() < config.min_judged:
        return Comparison(n_prompts=int(judged.sum()), refused=_too_few(int(judged.sum()), config))
    if n_known < MIN_COVERAGE * n_differ:
        lacking = np.unique(
            np.concatenate([side[differ & np.isnan(table.correct[rows, side])] for side in (ours, theirs)])
        )
        return Comparison(
            n_prompts=int(judged.sum()),
            refused=f"champion and challenger differ on {n_differ:,} prompts, of which only {n_known:,} have the "
            f"outcomes of both; ask {', '.join(table.tiers[k] for k in lacking)} more of the prompts",
        )
    rows = rows[judged]
    ours, theirs = ours[judged], theirs[judged]
    quality = np.stack([table.correct[rows, ours], table.correct[rows, theirs]])
    cost = np.stack([cost_usd[rows, ours], cost_usd[rows, theirs]])
    weights = resamples(len(rows), config.training.seed)
    return Comparison(
        n_prompts=len(rows),
        worth_usd=worth_usd,
        quality=_measure(quality, weights),
        cost_usd=_measure(cost, weights),
        net_value=_measure(worth_usd * quality - cost, weights),
        worse_segments=worse_segments_of(quality[1] - quality[0], table.segments[rows]),
    )


def _compare_off_policy(
    table: OutcomeTable,
    cost_usd: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    predicted: Mapping[str, np.ndarray],
    worth_usd: float,
    config: RetrainConfig,
) -> Comparison:
    """Compare doubly robust estimates, where each prompt has the outcome of the chosen tier and its propensity.

    The interval of the net value is the sum of those of quality and cost, which is wider than necessary.
    """
    known = np.isfinite(table.correct) & (table.propensity > 0) & (table.propensity <= 1)
    rows = np.flatnonzero(known.sum(axis=1) == 1)
    if len(rows) < config.min_judged:
        refused = _too_few(len(rows), config) + " (with one outcome and its propensity)"
        return Comparison(n_prompts=len(rows), refused=refused)
    action = known[rows].argmax(axis=1)
    log = LoggedChoices(
        action=action,
        propensity=table.propensity[rows, action],
        correct=table.correct[rows, action],
        cost_usd=cost_usd[rows, action],
    )
    one_hot = np.eye(len(table.tiers))
    found = compare_policies(
        log, one_hot[ours[rows]], one_hot[theirs[rows]],
        predicted["success"][rows].astype(float), predicted["cost_usd"][rows].astype(float),
    )  # fmt: skip
    if found.quality is None or found.cost_usd is None:
        return Comparison(n_prompts=len(rows), refused=f"the log does not carry a comparison: {found.refused}")
    quality = Interval(value=found.quality.value, low=found.quality.low, high=found.quality.high)
    cost = Interval(value=found.cost_usd.value, low=found.cost_usd.low, high=found.cost_usd.high)
    net_value = Interval(
        value=worth_usd * quality.value - cost.value,
        low=worth_usd * quality.low - cost.high,
        high=worth_usd * quality.high - cost.low,
    )
    return Comparison(
        n_prompts=len(rows),
        worth_usd=worth_usd,
        quality=Measure(champion=None, challenger=None, difference=quality),
        cost_usd=Measure(champion=None, challenger=None, difference=cost),
        net_value=Measure(champion=None, challenger=None, difference=net_value),
    )


def cost_of_a_correct_answer(correct: np.ndarray, cost_usd: np.ndarray) -> float:
    """USD per correct answer of the tier with the highest accuracy; 1 where no tier was ever correct.

    correct, cost_usd: (n_prompts, n_tiers); correct is NaN where not observed.
    """
    known = np.isfinite(correct)
    accuracy = np.where(known, correct, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    best = int(accuracy.argmax())
    return float(cost_usd[known[:, best], best].mean() / accuracy[best]) if accuracy[best] > 0 else 1.0


def _measure(both: np.ndarray, weights: np.ndarray) -> Measure:
    """both: champion's and challenger's values, (2, n_prompts). weights: (n_resamples, n_prompts)."""
    champion, challenger = both
    return Measure(
        champion=float(champion.mean()),
        challenger=float(challenger.mean()),
        difference=interval(weights @ (challenger - champion)),
    )


def _too_few(n_prompts: int, config: RetrainConfig) -> str:
    return (
        f"only {n_prompts:,} recent prompts that the champion was not trained on can be judged; "
        f"{config.min_judged:,} needed"
    )


def _points(difference: Interval) -> str:
    return f"{difference.value * 100:+.2f} points ({difference.low * 100:+.2f} to {difference.high * 100:+.2f})"


def _usd_per_1k(difference: Interval) -> str:
    low, value, high = (1000 * usd for usd in (difference.low, difference.value, difference.high))
    return f"{value:+.4g} USD per 1,000 requests (95% interval {low:+.4g} to {high:+.4g})"
