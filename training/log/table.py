"""The table of a log: one row for each prompt, one column for each tier, NaN where a tier was not asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

MIN_TIERS_PER_PROMPT = 1.5
"""With fewer observed tiers per prompt, on average, two tiers can hardly be compared on the same prompts."""


@dataclass(frozen=True)
class IngestSummary:
    """How many rows of a log were used, and what the others were.

    quarantined: broken rows by reason. in_no_tier: rows by model, of models that no tier names.
    unjudged: rows without `correct`, which count for tokens and cost only.
    unparsed: rows whose outcome counts as unobserved because the generation was truncated.
    repeated: rows beyond the first of the same prompt and model; they are averaged.
    without_propensity: outcomes of partial feedback whose propensity is not known; 0 where feedback is not partial.
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
    without_propensity: int = 0

    def __str__(self) -> str:
        parts = [f"{self.n_used:,} of {self.n_rows:,} rows used, {self.n_prompts:,} prompts"]
        parts += [f"{count:,} rows quarantined: {reason}" for reason, count in self.quarantined.items()]
        if self.in_no_tier:
            models = ", ".join(list(self.in_no_tier)[:5]) + (", ..." if len(self.in_no_tier) > 5 else "")
            parts.append(f"{sum(self.in_no_tier.values()):,} rows of models in no tier ({models})")
        notes = {"not judged yet": self.unjudged, "truncated": self.unparsed, "repeated, averaged": self.repeated}
        parts += [f"{count:,} rows {what}" for what, count in notes.items() if count]
        parts.append("observed: " + ", ".join(f"{tier} {n:,}" for tier, n in self.observed_per_tier.items()))
        if self.without_propensity:
            parts.append(
                f"no propensity of {self.without_propensity:,} outcomes: "
                "estimates may be biased towards what was logged"
            )
        return "; ".join(parts)


CELL_MEASURES = ("correct", "input_tokens", "output_tokens", "cost_usd", "propensity")
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
    propensity: same shape; probability with which the tier's outcome came to be observed, NaN where the log
        does not say.
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
    propensity: np.ndarray = field(repr=False)
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
        """SHA-256 of prompts, tiers, outcomes and their propensities."""
        content = hashlib.sha256(json.dumps([self.tiers, self.prompt_ids.tolist()]).encode())
        for cells in (self.correct, self.output_tokens, self.cost_usd, self.propensity):
            content.update(np.ascontiguousarray(cells, dtype=np.float32).tobytes())
        content.update(self.drawn_from.encode())
        return content.hexdigest()

    def rows(self, index: np.ndarray) -> OutcomeTable:
        """The table with only these prompts. index: integers or a mask, (n,)."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        columns = ("prompt_ids", "groups", "segments", "asked_at", *CELL_MEASURES)
        picked = {name: getattr(self, name)[index] for name in columns}
        return OutcomeTable(
            tiers=self.tiers,
            prompts=[self.prompts[i] for i in index],
            first_timestamp=self.first_timestamp,
            last_timestamp=self.last_timestamp,
            summary=self.summary,
            drawn_from=self.drawn_from,
            **picked,
        )
