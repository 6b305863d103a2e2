"""What a run of `retrain` did, in one document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from training.log.table import IngestSummary
from training.retrain.log_files import LogFiles
from training.retrain.state import State
from training.retrain.store import utc_now
from training.retrain.verdict import Verdict


@dataclass(frozen=True)
class Receipt:
    """What a run did, for a scheduler to act on.

    run: number of the decision. promoted: whether the challenger took over. reason: why, or why not, in one line.
    champion, challenger: bundle_ids after the run. rows_new, rows_quarantined: rows of new files, and the broken ones.
    net_value, quality, cost: of champion and challenger on the same prompts, and the difference; None where they were
        not compared. worth_usd: of a correct answer, in the net value. n_judged: prompts that they were compared on.
    drift: `level` and `summary` of the drift report; None where there was none. It stops no promotion.
    promise: where the promise of the bundle in use stands, as a PromiseReport; None where it was not looked at.
    panel: how many of the next requests every tier should be asked: `share` of the requests, `n_prompts` where as many
        come as in this run, and `reason`. A run that trains nothing repeats the last one. None after a rollback.
    promised, champion_kept: the quality that the former champion promises, and what it kept on recent prompts.
    set_aside: by log file of this run's logs, why it is kept out. accept_commands: by tier that files are set aside
        for, the command line that accepts the change. log: what was read of the other files, and what was not, as
        `broker train --json` says it; None where nothing was trained. tracking: "ok", "none", or what failed.
    """

    run: int
    promoted: bool
    reason: str
    champion: str | None
    challenger: str | None
    rows_new: int = 0
    rows_quarantined: int = 0
    net_value: Mapping[str, Any] | None = None
    quality: Mapping[str, Any] | None = None
    cost: Mapping[str, Any] | None = None
    drift: Mapping[str, Any] | None = None
    promise: Mapping[str, Any] | None = None
    panel: Mapping[str, Any] | None = None
    worth_usd: float | None = None
    n_judged: int = 0
    promised: float | None = None
    champion_kept: Mapping[str, Any] | None = None
    set_aside: Mapping[str, str] = field(default_factory=dict)
    accept_commands: Mapping[str, str] = field(default_factory=dict)
    log: Mapping[str, Any] | None = None
    tracking: str = "none"
    finished_utc: str = ""

    @classmethod
    def of(
        cls,
        state: State,
        reason: str,
        *,
        files: LogFiles | None = None,
        verdict: Verdict | None = None,
        log: IngestSummary | None = None,
        tracking: str = "none",
    ) -> Receipt:
        """The receipt of a run that leaves this state. files, verdict, log: None where the run did not come so far."""
        rows_new, rows_quarantined = files.n_new_rows if files else (0, 0)
        return cls(
            run=state.n_runs,
            promoted=verdict is not None and verdict.promoted,
            reason=reason,
            champion=state.bundle_id(state.champion),
            challenger=state.bundle_id(state.challenger),
            rows_new=rows_new,
            rows_quarantined=rows_quarantined,
            set_aside=files.set_aside if files else {},
            log=log.to_json() if log else None,
            tracking=tracking,
            finished_utc=utc_now(),
            **(_judged(verdict) if verdict else {}),
        )

    def to_json(self) -> dict[str, Any]:
        """A line of receipts.jsonl."""
        return asdict(self)


def _judged(verdict: Verdict) -> dict[str, Any]:
    """The fields that a verdict fills."""
    fields: dict[str, Any] = {}
    if verdict.drift is not None:
        fields["drift"] = {"level": verdict.drift.level, "summary": verdict.drift.summary}
    if verdict.watched is not None:
        fields |= {"promise": verdict.watched.report.to_json(), "panel": asdict(verdict.watched.request)}
    found = verdict.comparison
    if found is None:
        return fields
    measures = {"quality": found.quality, "cost": found.cost_usd, "net_value": found.net_value}
    return {
        **fields,
        **{name: measure and measure.to_json() for name, measure in measures.items()},
        "worth_usd": found.worth_usd,
        "n_judged": found.n_prompts,
        "promised": found.promised,
        "champion_kept": found.champion_kept and found.champion_kept.to_json(),
    }
