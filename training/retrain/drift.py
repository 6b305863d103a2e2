"""What moved between two windows of a log: the prompts, and each tier's outcomes, lengths and costs given the prompts.

- `prompts`: classifier two-sample test (Lopez-Paz and Oquab 2017). A logistic regression on the embeddings of half of
  the rows tells recent from reference prompts. Its AUC on the other half is tested by ranks, which is exact because
  that half was not fitted on. (Pooled cross-validation is not exact: its folds depend on each other.)
- `share`: a segment's share of the prompts, Fisher's exact test.
- `outcomes`, `length`, `cost` of a tier: correctness, and logarithms of output tokens and of USD, by analysis of
  covariance: the difference between the windows at equal expectations of the champion for the prompt (calibrated
  success, tokens, USD of every tier) and in equal segments. A harder mix of prompts moves the expectations as well;
  what is left comes from the provider. Where all tiers move together, first suspect prompts whose hardness the
  champion cannot see, or whoever judges the answers.

p-values are adjusted by Bonferroni in three families: the whole windows, the shares of segments, and what happens
inside the segments. So the chance of any wrong finding is at most about ALPHA in each family, whatever else moved, and
however the tests depend on each other. (A false discovery rate admits more wrong findings the more right ones there
are.) A level needs both significance and a minimum effect (THRESHOLDS): with millions of rows everything is
significant, with thirty almost nothing is.

A report informs people; no level stops a promotion. An alarm says that something really moved, not that the challenger
is worse: a new mix of prompts or a new price raises one, and retraining is the answer to both. The challenger is judged
on the recent prompts themselves, and log files that contradict the champion were set aside before (`log_check`).
benchmarks/drift.md has the rate of false alarms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from scipy.stats import fisher_exact, mannwhitneyu

from training.errors import LogError
from training.log.table import OutcomeTable
from training.retrain.two_samples import MIN_OBSERVED, Difference, adjusted_difference, dummies, recency

What = Literal["prompts", "share", "outcomes", "length", "cost"]
Unit = Literal["auc", "points", "ratio"]
Level = Literal["too few", "none", "notice", "alarm"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""By rising urgency. "too few": too few observations to tell. notice: a change, worth a look. alarm: a large change,
find out why. No level stops a promotion."""

ALPHA = 0.01
"""Highest adjusted p-value of a notice or an alarm."""
_LOWEST_TOKENS = 1.0
_LOWEST_USD = 1e-9  # so that the cost of a free tier has a logarithm
_OBSERVATIONS: Mapping[What, str] = {"outcomes": "correct", "length": "output_tokens", "cost": "cost_usd"}
_ESTIMATES: Mapping[What, str] = {"outcomes": "success", "length": "output_tokens", "cost": "cost_usd"}
_EXPECTATIONS: Mapping[What, str] = {what: f"expected_{name}" for what, name in _ESTIMATES.items()}
_SCALES: Mapping[What, Callable[[np.ndarray], np.ndarray]] = {
    "outcomes": lambda correct: correct,
    "length": lambda tokens: np.log(np.maximum(tokens, _LOWEST_TOKENS)),
    "cost": lambda usd: np.log(np.maximum(usd, _LOWEST_USD)),
}


@dataclass(frozen=True)
class Threshold:
    """The least effects of a notice and of an alarm."""

    unit: Unit
    notice: float
    alarm: float


THRESHOLDS: Mapping[What, Threshold] = {
    "prompts": Threshold(unit="auc", notice=0.55, alarm=0.65),
    "share": Threshold(unit="points", notice=3.0, alarm=10.0),
    "outcomes": Threshold(unit="points", notice=2.0, alarm=5.0),
    "length": Threshold(unit="ratio", notice=1.1, alarm=1.25),
    "cost": Threshold(unit="ratio", notice=1.1, alarm=1.25),
}
"""A share s of wholly new prompts gives an AUC of (1 + s) / 2: a notice stands for 10 %, an alarm for 30 %.
Points are percentage points, up or down; a ratio counts as much as its inverse."""


@dataclass(frozen=True)
class Window:
    """A part of the log, as arrays. Its rows should be independent, and none a training prompt of the champion.

    A champion expects too much of prompts that it was trained on, so that later prompts would look like drift. For the
    reference take prompts held out from its training.

    embedding: (n_prompts, n_dims), by the same encoder in both windows. segments: text (n_prompts,).
    correct, output_tokens, cost_usd: (n_prompts, n_tiers), NaN where not observed.
    expected_success, expected_output_tokens, expected_cost_usd: the same champion's estimates in both windows,
        (n_prompts, n_tiers); None where not given: only the segments then tell harder prompts from worse tiers.
    """

    tiers: tuple[str, ...]
    embedding: np.ndarray = field(repr=False)
    segments: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    output_tokens: np.ndarray = field(repr=False)
    cost_usd: np.ndarray = field(repr=False)
    expected_success: np.ndarray | None = field(default=None, repr=False)
    expected_output_tokens: np.ndarray | None = field(default=None, repr=False)
    expected_cost_usd: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises LogError where an array has another shape."""
        n = len(self.embedding)
        cells = dict.fromkeys((*_OBSERVATIONS.values(), *self.expectations), (n, len(self.tiers)))
        for name, expected in {**cells, "segments": (n,)}.items():
            if (found := getattr(self, name).shape) != expected:
                raise LogError(f"window: {name} has shape {found}; expected {expected}, as prompts and tiers have it")

    @classmethod
    def of(
        cls, table: OutcomeTable, embedding: np.ndarray, estimates: Mapping[str, np.ndarray] | None = None
    ) -> Window:
        """One prompt of each group of a table, so that repeated questions do not count as independent.

        embedding: (n_prompts, n_dims). estimates: `BundleGraph.estimates` of the same prompts, by the champion.
        """
        _, first = np.unique(table.groups, return_index=True)
        expected = (
            {} if estimates is None else {f"expected_{name}": estimates[name][first] for name in _ESTIMATES.values()}
        )
        return cls(
            tiers=table.tiers,
            embedding=embedding[first],
            segments=table.segments[first],
            correct=table.correct[first],
            output_tokens=table.output_tokens[first],
            cost_usd=table.cost_usd[first],
            **expected,
        )

    @property
    def expectations(self) -> tuple[str, ...]:
        """Names of the expectations that are given."""
        return tuple(name for name in _EXPECTATIONS.values() if getattr(self, name) is not None)

    def measured(self, what: What) -> np.ndarray:
        """What is compared of the tiers, (n_prompts, n_tiers); NaN where not observed."""
        return _SCALES[what](getattr(self, _OBSERVATIONS[what]))

    def expected(self, what: What) -> np.ndarray:
        """What the champion expects of it, (n_prompts, n_tiers); (n_prompts, 0) where no expectation is given."""
        expectation = getattr(self, _EXPECTATIONS[what])
        return np.empty((len(self.segments), 0)) if expectation is None else _SCALES[what](expectation)


@dataclass(frozen=True)
class Finding:
    """One comparison of the recent window with the reference.

    tier, segment: None where all of them count together.
    n_reference, n_recent: observations on either side. The level is "too few" where either is below MIN_OBSERVED, or
        where prompts differ so much that too few of them can be compared at equal expectations and segments.
    statistic: U (prompts), odds ratio (share; None where infinite), t (outcomes, length, cost).
    p_value: adjusted. effect: recent against reference, in `unit`. All three are None at "too few".
    """

    what: What
    tier: str | None
    segment: str | None
    n_reference: int
    n_recent: int
    statistic: float | None = None
    p_value: float | None = None
    effect: float | None = None

    @property
    def unit(self) -> Unit:
        """The unit of the effect."""
        return THRESHOLDS[self.what].unit

    @property
    def level(self) -> Level:
        """The level, by both significance and size."""
        if self.p_value is None:
            return "too few"
        if self.p_value > ALPHA or self.size < THRESHOLDS[self.what].notice:
            return "none"
        return "alarm" if self.size >= THRESHOLDS[self.what].alarm else "notice"

    @property
    def size(self) -> float:
        """The effect regardless of its direction, comparable to THRESHOLDS; NaN at "too few"."""
        if self.effect is None:
            return np.nan
        if self.unit == "ratio":
            return max(self.effect, 1 / self.effect)
        return abs(self.effect)

    def __str__(self) -> str:
        place = f"{self.what} of {self.tier}" if self.tier else self.what
        place += f" in {self.segment}" if self.segment is not None else ""
        if self.effect is None:
            return f"{place}: too few ({self.n_recent:,} against {self.n_reference:,})"
        effects = {
            "auc": f"AUC {self.effect:.2f}",
            "points": f"{self.effect:+.1f} points",
            "ratio": f"x {self.effect:.2f}",
        }
        return f"{place}: {effects[self.unit]} (p {self.p_value:.1g})"


@dataclass(frozen=True)
class DriftReport:
    """Every comparison that was made.

    findings: the whole windows first, then each segment with enough observations.
    """

    n_reference: int
    n_recent: int
    findings: tuple[Finding, ...]

    @property
    def level(self) -> Level:
        """The most urgent level of any finding; "too few" where nothing could be compared."""
        return max((finding.level for finding in self.findings), key=LEVELS.index)

    @property
    def moved(self) -> tuple[Finding, ...]:
        """Notices and alarms: alarms first, the whole windows before their segments, then by p-value."""
        moved = [finding for finding in self.findings if finding.level in ("notice", "alarm")]
        return tuple(sorted(moved, key=lambda f: (f.level != "alarm", f.segment is not None, f.p_value)))

    @property
    def summary(self) -> str:
        """One line: the level, the three strongest changes (each of a tier once), and how much was compared."""
        once: dict[tuple[str | None, ...], Finding] = {}
        for finding in self.moved:
            once.setdefault((finding.what, finding.tier, finding.segment if finding.what == "share" else None), finding)
        named = [str(finding) for finding in once.values()]
        n_too_few = sum(finding.level == "too few" for finding in self.findings)
        compared = (
            f"{len(self.findings) - n_too_few} comparisons of {self.n_recent:,} prompts with {self.n_reference:,}"
        )
        parts = [f"drift: {self.level}", *named[:3], *(["..."] if len(named) > 3 else []), compared]
        return "; ".join([*parts, f"too few observations for {n_too_few} more"] if n_too_few else parts)

    def to_json(self) -> dict[str, Any]:
        """Level, summary and all findings; ready for `json.dumps`."""
        findings = [{**asdict(finding), "unit": finding.unit, "level": finding.level} for finding in self.findings]
        windows = {"n_reference": self.n_reference, "n_recent": self.n_recent}
        return {"level": self.level, "summary": self.summary, **windows, "findings": findings}


def drift_report(reference: Window, recent: Window, *, seed: int = 0) -> DriftReport:
    """Compare the recent window with the reference.

    seed: of the halves of the classifier of `prompts`.
    Raises LogError where tiers, dimensions or expectations differ between the windows.
    """
    _check_comparable(reference, recent)
    sides = (reference, recent)
    scores = recency(reference.embedding, recent.embedding, seed)
    is_recent = np.repeat([False, True], [len(reference.segments), len(recent.segments)])
    names, codes = np.unique(np.concatenate([window.segments for window in sides]), return_inverse=True)
    measured = {what: np.concatenate([window.measured(what) for window in sides]) for what in _OBSERVATIONS}
    expected = {what: np.concatenate([window.expected(what) for window in sides]) for what in _OBSERVATIONS}

    def within(code: int | None) -> Iterator[Finding]:
        segment, rows = (None, np.full(len(codes), True)) if code is None else (str(names[code]), codes == code)
        yield _prompts(segment, scores[rows & ~is_recent], scores[rows & is_recent])
        if segment is not None:
            yield _share(segment, rows[~is_recent], rows[is_recent])
        for what, k in product(_OBSERVATIONS, range(len(reference.tiers))):
            seen = rows & ~np.isnan(measured[what][:, k])
            covariates = expected[what][seen]
            if segment is None:
                covariates = np.hstack([covariates, dummies(codes[seen])])
            difference = adjusted_difference(measured[what][seen, k], is_recent[seen], covariates)
            yield _tier(what, reference.tiers[k], segment, is_recent[seen], difference)

    whole = list(within(None))
    parts = [f for code in _large(codes, is_recent) for f in within(code) if f.p_value is not None]
    shares = [finding for finding in parts if finding.what == "share"]
    inside = [finding for finding in parts if finding.what != "share"]
    findings = [finding for family in (whole, shares, inside) for finding in _adjusted(family)]
    return DriftReport(n_reference=len(reference.segments), n_recent=len(recent.segments), findings=tuple(findings))


def _check_comparable(reference: Window, recent: Window) -> None:
    """Raises LogError where the windows cannot be compared."""
    for name, expected, found in (
        ("tiers", reference.tiers, recent.tiers),
        ("dimensions of the embedding", reference.embedding.shape[1], recent.embedding.shape[1]),
        ("expectations", reference.expectations, recent.expectations),
    ):
        if found != expected:
            raise LogError(
                f"windows differ in {name}: recent {found}, reference {expected}; "
                "make both with the tiers, the encoder and the estimates of one champion"
            )


def _large(codes: np.ndarray, is_recent: np.ndarray) -> list[int]:
    """Codes of segments with MIN_OBSERVED prompts in a window; none where all prompts are of one segment."""
    counts = [np.bincount(codes[rows], minlength=int(codes.max(initial=-1)) + 1) for rows in (is_recent, ~is_recent)]
    large = np.flatnonzero(np.maximum(*counts) >= MIN_OBSERVED)
    return [] if len(counts[0]) < 2 else large.tolist()


def _prompts(segment: str | None, reference: np.ndarray, recent: np.ndarray) -> Finding:
    """Do recent prompts look more recent than reference prompts do? (n_prompts,) each, NaN where not asked."""
    reference, recent = reference[~np.isnan(reference)], recent[~np.isnan(recent)]
    finding = Finding(what="prompts", tier=None, segment=segment, n_reference=len(reference), n_recent=len(recent))
    if not _enough(finding):
        return finding
    test = mannwhitneyu(recent, reference, alternative="greater")
    auc = float(test.statistic) / (len(reference) * len(recent))
    return replace(finding, statistic=float(test.statistic), p_value=float(test.pvalue), effect=auc)


def _share(segment: str, reference: np.ndarray, recent: np.ndarray) -> Finding:
    """Is the segment a larger or a smaller part of the prompts? Masks of its prompts, (n_prompts,) each."""
    finding = Finding(what="share", tier=None, segment=segment, n_reference=len(reference), n_recent=len(recent))
    if not _enough(finding):
        return finding
    test = fisher_exact([[recent.sum(), (~recent).sum()], [reference.sum(), (~reference).sum()]])
    odds_ratio = float(test.statistic) if np.isfinite(test.statistic) else None
    points = 100 * float(recent.mean() - reference.mean())
    return replace(finding, statistic=odds_ratio, p_value=float(test.pvalue), effect=points)


def _tier(what: What, tier: str, segment: str | None, is_recent: np.ndarray, difference: Difference | None) -> Finding:
    """The finding about a tier; is_recent: (n_observed,); None where windows have too little in common."""
    finding = Finding(
        what=what,
        tier=tier,
        segment=segment,
        n_reference=int((~is_recent).sum()),
        n_recent=int(is_recent.sum()),
    )
    if difference is None:
        return finding
    effect = 100 * difference.value if what == "outcomes" else float(np.exp(difference.value))
    return replace(finding, statistic=difference.t, p_value=difference.p_value, effect=effect)


def _enough(finding: Finding) -> bool:
    return min(finding.n_reference, finding.n_recent) >= MIN_OBSERVED


def _adjusted(family: list[Finding]) -> list[Finding]:
    """The findings with their p-values multiplied by the number of tests (Bonferroni)."""
    n_tested = sum(finding.p_value is not None for finding in family)
    return [f if f.p_value is None else replace(f, p_value=min(1.0, f.p_value * n_tested)) for f in family]
