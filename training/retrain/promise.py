"""What the panel says of the champion's promise: where it stands now, what is promised from now on, the next panel.

The promise was proven on the prompts of a log, for requests like these. Panels show what becomes of it (`doubt`): once
it is in doubt, the champion's dial is proven anew, and what does not pass is lowered: `lowered_dial`. This waits for no
better champion. Larger panels are asked for where requests moved or the promise is in doubt. They show what the promise
is worth, and teach the next challenger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from router.bundle.manifest import DialPoint, Manifest
from router.portfolio.prices import PriceTable
from training.log.table import OutcomeTable
from training.retrain.candidate import Candidate
from training.retrain.doubt import Watch, growth_of, outcome_gains, rank_gains
from training.retrain.drift import DriftReport, Finding
from training.retrain.lower import lowered_dial
from training.retrain.panel import Panel, PanelRequest, next_panel

N_NEWEST = 200
"""The newest panel prompts, as many as say what the promise is worth now."""

SUSPICION = 4.0
"""A larger panel is asked for once the bets against the promise have come to this: 20 puts it in doubt."""

Standing = Literal["none", "stands", "not covered", "in doubt", "lowered"]


@dataclass(frozen=True)
class PromiseReport:
    """Where the promise of the bundle in use stands.

    quality: the share of the best tier's accuracy that is promised without dials; where none is, the highest one that
        is promised at all; None where none is.
    standing: "none": nothing is promised. "stands". "not covered": the requests moved, in this run or in an earlier one
        since the promise was proven, and it does not speak of requests like these. "in doubt": the panels contradict
        it. "lowered": this run lowered it.
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
    strays = _strays(moved)
    if watch is None:
        watch = Watch(former=tuple(champion.panel(log).prompt_ids.tolist()))
    elif strays and not watch.moved:
        watch = replace(watch, moved=str(strays[0]))
    if quality is None:
        report = PromiseReport(
            quality=None,
            standing="none",
            wealth=watch.wealth,
            n_panel=len(watch.bet_on),
            kept=None,
            summary="no quality is promised",
        )
        request = next_panel(_cause(report, moved), None, n_requests, manifest)
        return Watched(report=report, request=request, watch=watch)
    panel = Panel.of(champion, log, quality)
    watch = _bet(watch, panel, quality)
    newest = panel.among(watch.bet_on[-N_NEWEST:])
    dial, n_rests_on = lowered_dial(champion, log, prices, watch.bet_on[-N_NEWEST:]) if watch.is_in_doubt else (None, 0)
    if dial is not None:
        watch = replace(watch, moved="")  # It is proven anew, on the newest requests, too.
    report = _report(quality, watch, newest, strays, manifest.dial, dial)
    request = next_panel(_cause(report, moved), newest, n_requests, manifest)
    return Watched(report=report, request=request, watch=watch, dial=dial, n_rests_on=n_rests_on)


def promised_quality(manifest: Manifest) -> float | None:
    """The quality that is promised without dials; where that is none, the highest one that is promised."""
    default = manifest.dial_point(manifest.default_quality)
    if default.promised:
        return default.quality
    return max((point.quality for point in manifest.dial if point.promised), default=None)


def _bet(watch: Watch, panel: Panel, quality: float) -> Watch:
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
    newest: Panel,
    strays: Sequence[Finding],
    former: Sequence[DialPoint],
    dial: Sequence[DialPoint] | None,
) -> PromiseReport:
    """newest: panel prompts. strays: of `_strays`. former, dial: the dial, and what this run lowered it to."""
    kept = float(newest.chosen.mean() / newest.best.mean()) if newest.best.any() else None
    seen = f"bets against it came to {watch.wealth:.2g} on {len(watch.bet_on):,} panel prompts"
    if kept is not None:
        seen += f", {kept:.3f} kept on the newest {len(newest.prompt_ids):,}"
    standing: Standing = "stands"
    what = f"the promise of {quality:g} stands: {seen}"
    if dial is not None:
        standing, what = "lowered", f"the promise of {quality:g} was in doubt: {seen}; {_lowered(former, dial)}"
    elif watch.is_in_doubt:
        standing, what = "in doubt", f"the promise of {quality:g} is in doubt: {seen}; its slack stays, as they keep it"
    elif strays or watch.moved:
        standing = "not covered"
        what = f"the promise of {quality:g} does not cover requests like the newest: {_where(strays, watch)}; {seen}"
    return PromiseReport(
        quality=quality,
        standing=standing,
        wealth=watch.wealth,
        n_panel=len(watch.bet_on),
        kept=kept,
        summary=what,
    )


def _strays(moved: Sequence[Finding]) -> list[Finding]:
    """What shows requests that the promise does not speak of; a segment that grew comes first."""
    strays = [finding for finding in moved if finding.what in ("prompts", "share")]
    return sorted(strays, key=lambda finding: not (finding.what == "share" and (finding.effect or 0) > 0))


def _where(strays: Sequence[Finding], watch: Watch) -> str:
    """How requests moved, in words."""
    return str(strays[0]) if strays else f"{watch.moved} in an earlier run"


def _lowered(former: Sequence[DialPoint], dial: Sequence[DialPoint]) -> str:
    """What is lowered, in words."""
    pairs = [(old, new) for old, new in zip(former, dial, strict=True) if old.promised]
    gone = [f"{new.quality:g}" for _, new in pairs if not new.promised]
    less = [f"{new.quality:g} (slack {old.slack:g} to {new.slack:g})" for old, new in pairs
            if new.promised and new.slack < old.slack]  # fmt: skip
    parts = [f"no longer promised, so that the best tier answers: {', '.join(gone)}"] if gone else []
    return "; ".join(parts + ([f"more careful: {', '.join(less)}"] if less else []))


def _cause(report: PromiseReport, moved: Sequence[Finding]) -> str:
    """Why a larger panel than usual is asked for, in words; "" where nothing asks for it."""
    if report.standing in ("in doubt", "lowered"):
        return "the promise is in doubt"
    if report.wealth >= SUSPICION:
        return f"bets against the promise came to {report.wealth:.2g}"
    return f"requests moved ({moved[0]})" if moved else ""
