"""The table of a log: one row for each prompt, one column for each tier, NaN where a tier was not asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from router.notebook import card
from training.log.columns import suggested_maps

MIN_TIERS_PER_PROMPT = 1.5
"""With fewer observed tiers per prompt, on average, two tiers can hardly be compared on the same prompts."""


@dataclass(frozen=True)
class IngestSummary:
    """How many rows of a log were used, and what the others were: n_rows = n_used + quarantined + in_no_tier +
    incomplete.

    quarantined: broken rows by reason. in_no_tier: rows by model, of models that no tier names.
    incomplete: rows of attempts that gave no whole answer, of which nothing is learned.
    unjudged: rows without `correct`, which count for tokens and cost only.
    unparsed: rows whose outcome counts as unobserved because the generation was truncated.
    repeated: rows beyond the first of the same prompt and model; they are averaged.
    without_propensity: outcomes of partial feedback whose propensity is not known; 0 where feedback is not partial.
    unknown: values of used rows that count as not logged, such as a count of 0 tokens, by what is wrong with them.
    answers: used rows with an answer. checks: used rows with a verdict, by check.
    columns: names of all columns that the logs have. not_used: columns that are not used although their name is near
        that of a column which their log lacks, with that name.
    quarantine: the file that has the broken rows; None where none was written.
    """

    n_rows: int
    n_used: int
    n_prompts: int
    quarantined: dict[str, int]
    in_no_tier: dict[str, int]
    unjudged: int
    unparsed: int
    repeated: int
    observed_per_tier: dict[str, int]
    incomplete: int = 0
    without_propensity: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    answers: int = 0
    checks: Mapping[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = field(default=(), repr=False)
    not_used: Mapping[str, str] = field(default_factory=dict)
    quarantine: str | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The entry "log" of every command's JSON; `answers` and `checks` are in it where the log has any."""
        entry = {**asdict(self), "columns": list(self.columns)}
        return {name: value for name, value in entry.items() if value or name not in ("answers", "checks")}

    @property
    def lines(self) -> str:
        """The summary for a terminal: a line, and another that names the file of the broken rows, if there is one."""
        return f"log: {self}" + (f"\nbroken rows are in {self.quarantine}" if self.quarantine else "")

    def __str__(self) -> str:
        parts = [f"{self.n_used:,} of {self.n_rows:,} rows used, {self.n_prompts:,} prompts"]
        parts += [f"{count:,} rows quarantined: {reason}" for reason, count in self.quarantined.items()]
        if self.in_no_tier:
            models = ", ".join(list(self.in_no_tier)[:5]) + (", ..." if len(self.in_no_tier) > 5 else "")
            parts.append(f"{sum(self.in_no_tier.values()):,} rows of models in no tier ({models})")
        if self.incomplete:
            parts.append(f"{self.incomplete:,} rows of attempts that gave no whole answer")
        notes = {"not judged yet": self.unjudged, "truncated": self.unparsed, "repeated, averaged": self.repeated}
        parts += [f"{count:,} rows {what}" for what, count in notes.items() if count]
        parts += [f"{count:,} values taken as unknown: {what}" for what, count in self.unknown.items()]
        if self.not_used:
            parts.append(f"columns that are not used, but may be meant: {suggested_maps(self.not_used)}")
        parts.append("observed: " + ", ".join(f"{tier} {n:,}" for tier, n in self.observed_per_tier.items()))
        if self.answers or self.checks:
            parts.append(self._said)
        if self.without_propensity:
            parts.append(
                f"no propensity of {self.without_propensity:,} outcomes: "
                "estimates may be biased towards what was logged"
            )
        return "; ".join(parts)

    @property
    def _said(self) -> str:
        said = [f"answers of {self.answers:,} rows"] if self.answers else []
        checks = ", ".join(f"{name} ({count:,} rows)" for name, count in self.checks.items())
        return ", ".join(said + ([f"checks: {checks}"] if checks else []))


@dataclass(frozen=True)
class CheckCells:
    """What a check said of the tiers' answers. Both are float64 (n_prompts, n_tiers), NaN where the check was not seen.

    score: 0..1; 1 = the answer passed. cost_usd: what the check cost, 0 where the log does not say.
    """

    score: np.ndarray = field(repr=False)
    cost_usd: np.ndarray = field(repr=False)


CELL_MEASURES = (
    "correct", "input_tokens", "output_tokens", "cost_usd", "usd_per_mtok_input", "usd_per_mtok_output", "propensity",
)  # fmt: skip
"""The measures that a table has for each prompt and tier."""


def is_partial(correct: np.ndarray) -> bool:
    """Whether feedback is partial: there are few outcomes beside that of the tier chosen for each prompt.

    correct: (n_prompts, n_tiers), NaN where not observed.
    """
    n_observed = np.isfinite(correct).sum(axis=1)
    return is_partial_count(int(n_observed.sum()), int((n_observed > 0).sum()))


def is_partial_count(n_observed: int, n_judged: int) -> bool:
    """The same from two counts: of outcomes, and of prompts that have any."""
    return n_observed < MIN_TIERS_PER_PROMPT * n_judged


@dataclass(frozen=True)
class OutcomeTable:
    """One row per prompt, one column per tier.

    prompt_ids: first 16 hexadecimal digits of the SHA-256 of each prompt, ascending.
    groups: of prompts that stay on the same side of a split. segments: `dataset` of the log, or "".
    asked_at: when the prompt was last asked, datetime64[us] in UTC; NaT where the log does not say.
    correct, input_tokens, output_tokens, cost_usd: float64, shape (n_prompts, n_tiers);
        NaN where not observed. cost_usd is the attempt's own cost, else its tokens x price.
    usd_per_mtok_input, usd_per_mtok_output: same shape; the price at the time of the attempt, where the log has it.
    propensity: same shape; probability with which the tier's outcome came to be observed, NaN where the log
        does not say.
    answer_number: int16, same shape; which of the prompt's distinct answers the tier gave, 0, 1, ... in the order of
        tiers; -1 where it gave none or the log does not say. Two tiers agree where both are >= 0 and equal.
    checks: what each check said of these answers, by the check's name.
    drawn_from: for a sample, the digest of the whole log; summary and timestamps are then of the whole log, too.
    """

    tiers: tuple[str, ...]
    prompts: list[str] = field(repr=False)
    prompt_ids: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    segments: np.ndarray = field(repr=False)
    asked_at: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    input_tokens: np.ndarray = field(repr=False)
    output_tokens: np.ndarray = field(repr=False)
    cost_usd: np.ndarray = field(repr=False)
    usd_per_mtok_input: np.ndarray = field(repr=False)
    usd_per_mtok_output: np.ndarray = field(repr=False)
    propensity: np.ndarray = field(repr=False)
    answer_number: np.ndarray = field(repr=False)
    checks: Mapping[str, CheckCells] = field(repr=False)
    first_timestamp: datetime | None
    last_timestamp: datetime | None
    summary: IngestSummary
    drawn_from: str = ""

    @property
    def n_prompts(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 of prompts, tiers, outcomes, their propensities; and of prices, answers, checks that the log has."""
        content = hashlib.sha256(json.dumps([self.tiers, self.prompt_ids.tolist()]).encode())
        logged_prices = [
            cells for cells in (self.usd_per_mtok_input, self.usd_per_mtok_output) if np.isfinite(cells).any()
        ]
        for cells in (self.correct, self.output_tokens, self.cost_usd, self.propensity, *logged_prices):
            content.update(np.ascontiguousarray(cells, dtype=np.float32).tobytes())
        for name, values in self.answer_columns.items():
            content.update(name.encode() + np.ascontiguousarray(values).tobytes())
        content.update(self.drawn_from.encode())
        return content.hexdigest()

    @property
    def answer_columns(self) -> dict[str, np.ndarray]:
        """Answer numbers, scores and costs of checks, by their column of the log; only those with a value."""
        found = {"answer": self.answer_number} if (self.answer_number >= 0).any() else {}
        for name, cells in sorted(self.checks.items()):
            if np.isfinite(cells.score).any():
                found |= {f"check_{name}": cells.score, f"check_{name}_usd": cells.cost_usd}
        return found

    def _repr_html_(self) -> str:
        """What was read, above a row per tier, in a notebook; it holds no prompt."""
        rows = [
            [tier, f"{int(np.isfinite(correct).sum()):,}", _mean_text(correct, ".1%"), _mean_text(1000 * cost, ".4g")]
            for tier, correct, cost in zip(self.tiers, self.correct.T, self.cost_usd.T, strict=True)
        ]
        names, counts = np.unique(self.segments[self.segments != ""], return_counts=True)
        segments = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
        sentences = [f"{self.n_prompts:,} prompts. Log: {self.summary}.", f"Segments: {segments}." if segments else ""]
        return card(sentences, ["tier", "outcomes", "accuracy", "logged USD per 1,000"], rows)

    def rows(self, index: np.ndarray) -> OutcomeTable:
        """The table with only these prompts. index: integers or a mask, (n,)."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        columns = ("prompt_ids", "groups", "segments", "asked_at", *CELL_MEASURES, "answer_number")
        picked = {name: getattr(self, name)[index] for name in columns}
        return OutcomeTable(
            tiers=self.tiers,
            prompts=[self.prompts[i] for i in index],
            checks={
                name: CheckCells(score=cells.score[index], cost_usd=cells.cost_usd[index])
                for name, cells in self.checks.items()
            },
            first_timestamp=self.first_timestamp,
            last_timestamp=self.last_timestamp,
            summary=self.summary,
            drawn_from=self.drawn_from,
            **picked,
        )


def _mean_text(values: np.ndarray, form: str) -> str:
    """Mean of the known values; "" where there is none."""
    known = values[np.isfinite(values)]
    return format(float(known.mean()), form) if len(known) else ""
