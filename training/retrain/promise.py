"""What the panel says of the champion's promise: where it stands now, what is promised from now on, the next panel.

The promise was proven on the prompts of a log, for requests like these. Panels show what becomes of it (`doubt`): once
it is in doubt, the champion's dial is proven anew, and what does not pass is lowered: `lowered_dial`. This waits for no
better champion. Larger panels are asked for where requests moved or the promise is in doubt. They show what the promise
is worth, and teach the next challenger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from router.bundle.manifest import DialPoint, Manifest
from router.portfolio.prices import PriceTable
from training.dial.betting import prompts_needed
from training.log.table import OutcomeTable
from training.retrain.candidate import Candidate
from training.retrain.doubt import ALPHA, Watch, growth_of, outcome_gains, rank_gains
from training.retrain.drift import DriftReport, Finding
from training.retrain.lower import lowered_dial

USUAL_PANEL = 0.1
"""Share of the requests that a panel is asked for where nothing moved."""

LARGEST_PANEL = 0.3
"""Share of the requests that a panel is asked for at most: every tier is paid for on each of them."""

N_NEWEST = 200
"""The newest panel prompts, as many as say what the promise is worth now."""

SUSPICION = 4.0
"""A larger panel is asked for once the bets against the promise have come to this: 20 puts it in doubt."""

MIN_NEWEST = 30
"""With fewer of them, the largest panel is asked for."""

Standing = Literal["none", "stands", "not covered", "in doubt", "lowered"]


@dataclass(frozen=True)
class PanelRequest:
    """How many of the next requests every tier should be asked. share: of the requests; n_prompts: where as many come
    as in this run. reason: why, in one line.
    """

    n_prompts: int
    share: float
    reason: str


@dataclass(frozen=True)
class PromiseReport:
    """Where the promise of the bundle in use stands.

    quality: the share of the best tier's accuracy that is promised without dials; where none is, the highest one that
        is promised at all; None where none is.
    standing: "none": nothing is promised. "stands". "not covered": the requests moved, and the promise does not speak
        of requests like these. "in doubt": the panels contradict it. "lowered": this run lowered it.
    wealth: of the bets against the promise; it is in doubt once this has come to 20.
    n_panel: panel prompts since it was made. kept: the share kept on the newest of them, None where there are none.
    summary: all this, in one line.
    """

    quality: float | None
    standing: Standing
    wealth: float
    n_panel: int
    kept: float | None
    summary: str

    def to_json(self) -> dict[str, Any]:
        """As a receipt has it."""
        return asdict(self)


@dataclass(frozen=True)
class Watched:
    """A promise after a run. dial: the lowered dial, None where nothing is lowered. watch: for the next run.

    n_rests_on: how many prompts the lowered dial rests on.
    """

    report: PromiseReport
    request: PanelRequest
    watch: Watch
    dial: tuple[DialPoint, ...] | None = None
    n_rests_on: int = 0


@dataclass(frozen=True)
class _Panel:
    """Panel prompts at the quality promised, in the order of their prompt_ids, which are digests. All (n_prompts,).

    chosen, best: outcomes, 0..1, of the tier that answers and of the best tier. expected: the success that the champion
    expects of the tier that answers.
    """

    prompt_ids: np.ndarray
    groups: np.ndarray
    chosen: np.ndarray
    best: np.ndarray
    expected: np.ndarray

    @classmethod
    def of(cls, champion: Candidate, log: OutcomeTable, quality: float) -> _Panel:
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
        )

    def rows(self, rows: np.ndarray) -> _Panel:
        """Some of the prompts."""
        return _Panel(**{name: values[rows] for name, values in vars(self).items()})

    def among(self, prompt_ids: Sequence[str]) -> _Panel:
        """Those of these prompts that are there, in the order in which they are named."""
        place = {prompt_id: row for row, prompt_id in enumerate(self.prompt_ids.tolist())}
        return self.rows(np.array([place[each] for each in prompt_ids if each in place], dtype=int))

    def new(self, watch: Watch) -> _Panel:
        """Those that the watch does not know, one of each question."""
        known = np.isin(self.prompt_ids, [*watch.former, *watch.bet_on])
        rows = np.flatnonzero(~known & ~np.isin(self.groups, self.groups[known]))
        return self.rows(rows[np.sort(np.unique(self.groups[rows], return_index=True)[1])])


def watch_promise(
    champion: Candidate,
    watch: Watch | None,
    log: OutcomeTable,
    prices: PriceTable,
    n_requests: int,
    drift: DriftReport | None,
) -> Watched:
    """Bet on the panel prompts that are new, say where the promise stands, and lower it where it is in doubt.

    watch: None where the champion has just taken over: then there is nothing to bet on yet.
    log: with one column for each tier of `prices`. n_requests: prompts of the log files that are new; of
        all, where none is.
    """
    manifest = champion.bundle.manifest
    moved = [f for f in drift.moved if f.what in ("prompts", "share", "outcomes")] if drift else []
    quality = promised_quality(manifest)
    if watch is None:
        watch = Watch(former=tuple(champion.panel(log).prompt_ids.tolist()))
    if quality is None:
        report = PromiseReport(
            quality=None,
            standing="none",
            wealth=watch.wealth,
            n_panel=len(watch.bet_on),
            kept=None,
            summary="no quality is promised",
        )
        return Watched(report=report, request=_request(report, None, n_requests, moved), watch=watch)
    panel = _Panel.of(champion, log, quality)
    watch = _bet(watch, panel, quality)
    newest = panel.among(watch.bet_on[-N_NEWEST:])
    dial, n_rests_on = lowered_dial(champion, log, prices, watch.bet_on[-N_NEWEST:]) if watch.is_in_doubt else (None, 0)
    report = _report(quality, watch, newest, moved, manifest.dial, dial)
    request = _request(report, newest, n_requests, moved)
    return Watched(report=report, request=request, watch=watch, dial=dial, n_rests_on=n_rests_on)


def promised_quality(manifest: Manifest) -> float | None:
    """The quality that is promised without dials; where that is none, the highest one that is promised."""
    default = manifest.dial_point(manifest.default_quality)
    if default.promised:
        return default.quality
    return max((point.quality for point in manifest.dial if point.promised), default=None)


def _bet(watch: Watch, panel: _Panel, quality: float) -> Watch:
    """The watch after the bets on the panel prompts that are new.

    Their order and what breaks ties come from digests, which have nothing to do with prompts or outcomes.
    """
    new = panel.new(watch)
    if not len(new.prompt_ids):
        return watch
    former = panel.among([*watch.former, *watch.bet_on]).expected
    ties = np.array([_uniform(prompt_id) for prompt_id in new.prompt_ids.tolist()])
    growth = growth_of(outcome_gains(new.chosen, new.best, quality), rank_gains(new.expected, former, ties))
    return watch.after(new.prompt_ids.tolist(), growth)


def _uniform(prompt_id: str) -> float:
    """A number in [0, 1) that is the same for the same prompt."""
    return int.from_bytes(blake2b(prompt_id.encode(), digest_size=6).digest(), "big") / 2**48


def _report(
    quality: float,
    watch: Watch,
    newest: _Panel,
    moved: Sequence[Finding],
    former: Sequence[DialPoint],
    dial: Sequence[DialPoint] | None,
) -> PromiseReport:
    """newest: panel prompts. moved: what drifted. former, dial: the dial, and what this run lowered it to."""
    kept = float(newest.chosen.mean() / newest.best.mean()) if newest.best.any() else None
    strays = [finding for finding in moved if finding.what in ("prompts", "share")]
    seen = f"bets against it came to {watch.wealth:.2g} on {len(watch.bet_on):,} panel prompts"
    if kept is not None:
        seen += f", {kept:.3f} kept on the newest {len(newest.prompt_ids):,}"
    standing: Standing = "stands"
    what = f"the promise of {quality:g} stands: {seen}"
    if dial is not None:
        standing, what = "lowered", f"the promise of {quality:g} was in doubt: {seen}; {_lowered(former, dial)}"
    elif watch.is_in_doubt:
        standing, what = "in doubt", f"the promise of {quality:g} is in doubt: {seen}; its slack stays, as they keep it"
    elif strays:
        standing = "not covered"
        grown = next(
            (finding for finding in strays if finding.what == "share" and (finding.effect or 0) > 0), strays[0]
        )
        what = f"the promise of {quality:g} does not cover requests like the newest: {grown}; {seen}"
    return PromiseReport(
        quality=quality,
        standing=standing,
        wealth=watch.wealth,
        n_panel=len(watch.bet_on),
        kept=kept,
        summary=what,
    )


def _lowered(former: Sequence[DialPoint], dial: Sequence[DialPoint]) -> str:
    """What is lowered, in words."""
    pairs = [(old, new) for old, new in zip(former, dial, strict=True) if old.promised]
    gone = [f"{new.quality:g}" for _, new in pairs if not new.promised]
    less = [f"{new.quality:g} (slack {old.slack:g} to {new.slack:g})" for old, new in pairs
            if new.promised and new.slack < old.slack]  # fmt: skip
    parts = [f"no longer promised, so that the best tier answers: {', '.join(gone)}"] if gone else []
    return "; ".join(parts + ([f"more careful: {', '.join(less)}"] if less else []))


def _request(report: PromiseReport, newest: _Panel | None, n_requests: int, moved: Sequence[Finding]) -> PanelRequest:
    """The next panel: the usual one, or where requests moved or the promise is in doubt, what a proof lacks."""
    usual, largest = (int(np.ceil(share * n_requests)) for share in (USUAL_PANEL, LARGEST_PANEL))

    def request(n_prompts: int, reason: str) -> PanelRequest:
        return PanelRequest(n_prompts=n_prompts, share=n_prompts / max(1, n_requests), reason=reason)

    if report.standing in ("in doubt", "lowered"):
        cause = "the promise is in doubt"
    elif report.wealth >= SUSPICION:
        cause = f"bets against the promise came to {report.wealth:.2g}"
    elif moved:
        cause = f"requests moved ({moved[0]})"
    else:
        return request(usual, f"nothing moved: the usual {USUAL_PANEL:.0%} of the requests")
    n_newest = 0 if newest is None else len(newest.prompt_ids)
    needed = None
    if newest is not None and report.quality is not None and n_newest >= MIN_NEWEST:
        needed = prompts_needed(newest.chosen, newest.best[:, None], report.quality, float(-np.log(ALPHA)))
    if needed is None:
        return request(largest, f"{cause}: the largest panel, {LARGEST_PANEL:.0%} of the requests")
    n_prompts = min(max(needed - n_newest, usual), largest)
    return request(
        n_prompts, f"{cause}: about {needed:,} panel prompts like the newest would prove {report.quality:g}, and "
        f"{n_newest:,} are there"
    )  # fmt: skip
