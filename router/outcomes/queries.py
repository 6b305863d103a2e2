"""Questions to a log: what was spent, on what, and how good the answers were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from router.errors import OutcomeLogError
from router.outcomes.columns import is_of_check
from router.outcomes.reading import LogReader
from router.outcomes.storage import extra

GROUPS = ("tier", "model", "provider", "bundle_id", "ended", "judged_by", "day")
"""By what spend can be grouped; `day` is that of the attempt, UTC."""

SPEND_COLUMNS = ("cost_usd", "input_tokens", "output_tokens", "tokens_estimated", "ended", "correct", "check_*")
"""What `spend_of` needs of a log."""

_SUMS = ("usd", "input_tokens", "output_tokens", "is_request", "is_failure", "is_judged", "is_estimated")


@dataclass(frozen=True)
class Spend:
    """What some attempts have cost, and what became of them.

    group: the values that all of them share, by the names that were asked for; None where a row has none.
    requests: decisions, of which each has one row of its own. attempts: these and the attempts beside them.
    usd: of all attempts and checks, in USD. Attempts whose cost is not known count 0.
    unpriced: attempts with a whole answer and no known cost. estimated: those with estimated tokens.
    failed: attempts that ended as `failed` or `cut`.
    judged, correct: answers that someone judged, and the mean of what they said; None where nobody judged any.
    """

    group: dict[str, str | None]
    requests: int
    attempts: int
    usd: float
    unpriced: int
    estimated: int
    failed: int
    input_tokens: int
    output_tokens: int
    judged: int
    correct: float | None


def spend(
    reader: LogReader, by: Sequence[str] = (), *, since: datetime | None = None, until: datetime | None = None
) -> list[Spend]:
    """What was spent from a time on, and before another, by the values of some columns; dearest group first.

    by: any of GROUPS; none makes one group of all. since, until: UTC where they have no time zone.
    Raises OutcomeLogError for another name in `by`, and ImportError without pyarrow.
    """
    if unknown := [name for name in by if name not in GROUPS]:
        raise OutcomeLogError(f"cannot group by {', '.join(unknown)}; expected any of {', '.join(GROUPS)}")
    return spend_of(reader.table(since=since, until=until, columns=[*SPEND_COLUMNS, *by]), by)


def spend_of(table: Any, by: Sequence[str] = ()) -> list[Spend]:
    """As `spend`, of a table that LogReader has read with SPEND_COLUMNS and the columns in `by`."""
    measures = _measures(table, by)
    grouped = measures.group_by([f"by_{name}" for name in by]).aggregate(
        [*((name, "sum") for name in _SUMS), ("is_unpriced", "sum"), ("correct", "mean"), ("usd", "count")]
    )
    found = [_spend(row, by) for row in grouped.to_pylist() if row["usd_count"]]
    return sorted(found, key=lambda group: (-group.usd, *(str(value) for value in group.group.values())))


def _measures(table: Any, by: Sequence[str]) -> Any:
    """One row per attempt: what is summed, and the values by which it is grouped."""
    pa, compute = extra("pyarrow"), extra("pyarrow.compute")
    usd = compute.fill_null(table["cost_usd"], 0.0)
    for name in table.column_names:
        if is_of_check(name) and name.endswith("_usd"):
            usd = compute.add(usd, compute.fill_null(table[name], 0.0))
    is_whole = compute.fill_null(compute.equal(table["ended"], "complete"), False)
    columns = {
        "usd": usd,
        "input_tokens": table["input_tokens"],
        "output_tokens": table["output_tokens"],
        "correct": table["correct"],
        "is_request": compute.is_null(table["attempt_id"]),
        "is_failure": compute.is_in(table["ended"], value_set=pa.array(["failed", "cut"])),
        "is_judged": compute.is_valid(table["correct"]),
        "is_estimated": compute.fill_null(table["tokens_estimated"], False),
        "is_unpriced": compute.and_(is_whole, compute.is_null(table["cost_usd"])),
    }
    for name in by:
        column = compute.strftime(table["timestamp"], format="%Y-%m-%d") if name == "day" else table[name]
        columns[f"by_{name}"] = column
    return pa.table(columns)


def _spend(row: dict[str, Any], by: Sequence[str]) -> Spend:
    return Spend(
        group={name: row[f"by_{name}"] for name in by},
        requests=row["is_request_sum"],
        attempts=row["usd_count"],
        usd=row["usd_sum"],
        unpriced=row["is_unpriced_sum"],
        estimated=row["is_estimated_sum"],
        failed=row["is_failure_sum"],
        input_tokens=row["input_tokens_sum"] or 0,
        output_tokens=row["output_tokens_sum"] or 0,
        judged=row["is_judged_sum"],
        correct=row["correct_mean"],
    )
