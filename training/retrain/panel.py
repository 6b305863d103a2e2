"""Panels: requests of which every tier was asked. What they say of a champion, and how large the next one should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.bundle.manifest import Manifest
from training.dial.betting import prompts_needed
from training.log.table import OutcomeTable
from training.retrain.candidate import Candidate
from training.retrain.doubt import ALPHA, Watch

USUAL_PANEL = 0.1
"""Share of the requests that a panel is asked for where nothing moved."""

LARGEST_PANEL = 0.3
"""Share of the requests that a panel is asked for at most: every tier is paid for on each of them."""

MIN_NEWEST = 30
"""With fewer of them, the largest panel is asked for."""


@dataclass(frozen=True)
class Panel:
    """Panel prompts as a champion answers them at a quality, in the order of their prompt_ids, which are digests.

    All arrays: (n_prompts,).
    chosen, best: outcomes, 0..1, of the tier that answers and of the best tier. expected: the success that the champion
    expects of the tier that answers.
    """

    prompt_ids: np.ndarray
    groups: np.ndarray
    chosen: np.ndarray
    best: np.ndarray
    expected: np.ndarray
    quality: float

    @classmethod
    def of(cls, champion: Candidate, log: OutcomeTable, quality: float) -> Panel:
        """All panel prompts of a log."""
        table, manifest = champion.panel(log), champion.bundle.manifest
        estimates = champion.estimates(table)
        rows, answering = np.arange(table.n_prompts), champion.answers(estimates, quality)
        best = manifest.tiers.index(manifest.best_tier)
        correct, success = table.correct[:, champion.columns], estimates["success"].astype(float)
        return cls(
            prompt_ids=table.prompt_ids,
            groups=table.groups,
            chosen=correct[rows, answering],
            best=correct[:, best],
            expected=success[rows, answering],
            quality=quality,
        )

    def rows(self, rows: np.ndarray) -> Panel:
        """Some of the prompts."""
        arrays = {name: values[rows] for name, values in vars(self).items() if name != "quality"}
        return Panel(**arrays, quality=self.quality)

    def among(self, prompt_ids: Sequence[str]) -> Panel:
        """Those of these prompts that are there, in the order in which they are named."""
        place = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids.tolist())}
        return self.rows(np.array([place[each] for each in prompt_ids if each in place], dtype=int))

    def new(self, watch: Watch) -> Panel:
        """Those that the watch does not know, one of each question."""
        known = np.isin(self.prompt_ids, [*watch.former, *watch.bet_on])
        rows = np.flatnonzero(~known & ~np.isin(self.groups, self.groups[known]))
        return self.rows(rows[np.sort(np.unique(self.groups[rows], return_index=True)[1])])


@dataclass(frozen=True)
class PanelRequest:
    """Of how many of the next requests every tier should be asked.

    share: of the requests. n_prompts: where as many come as in this run. reason: why, in one line.
    """

    n_prompts: int
    share: float
    reason: str


def next_panel(cause: str, newest: Panel | None, n_requests: int, manifest: Manifest) -> PanelRequest:
    """The next panel: what a proof lacks where there is a cause or nothing is promised without dials; else the usual.

    cause: why the champion's promise must be looked at more closely, in words; "" where it need not. newest: the newest
    panel prompts, which say how many a proof takes. n_requests: how many came in this run. manifest: of the champion.
    """
    default = manifest.dial_point(manifest.default_quality)
    if cause:
        return _request(cause, newest.quality if newest else None, *_lacking(newest), n_requests)
    if not default.promised and default.n_needed is not None:
        n_there = int(manifest.promise.get("n_prompts", 0))
        cause = f"{default.quality:g} is not promised"
        return _request(cause, default.quality, default.n_needed, n_there, n_requests)
    n_prompts = _part_of(n_requests, USUAL_PANEL)
    reason = f"nothing moved: the usual {USUAL_PANEL:.0%} of the requests"
    return PanelRequest(n_prompts=n_prompts, share=n_prompts / max(1, n_requests), reason=reason)


def _lacking(newest: Panel | None) -> tuple[int | None, int]:
    """About how many prompts like these prove their quality, None where no number does; and how many there are."""
    if newest is None or len(newest.prompt_ids) < MIN_NEWEST:
        return None, 0
    needed = prompts_needed(newest.chosen, newest.best[:, None], newest.quality, float(-np.log(ALPHA)))
    return needed, len(newest.prompt_ids)


def _request(cause: str, quality: float | None, needed: int | None, n_there: int, n_requests: int) -> PanelRequest:
    """What a proof lacks, from the usual panel to the largest; the largest where nobody knows what it takes."""
    n_prompts, reason = _part_of(n_requests, LARGEST_PANEL), f"{cause}: {LARGEST_PANEL:.0%} of the requests, the most"
    if needed is not None:
        n_prompts = min(max(needed - n_there, _part_of(n_requests, USUAL_PANEL)), n_prompts)
        reason = f"{cause}: a proof of {quality:g} takes about {needed:,} panel prompts, and {n_there:,} are there"
    return PanelRequest(n_prompts=n_prompts, share=n_prompts / max(1, n_requests), reason=reason)


def _part_of(n_requests: int, share: float) -> int:
    return int(np.ceil(share * n_requests))
