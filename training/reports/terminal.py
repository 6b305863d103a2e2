"""What `broker train` and `broker evaluate` say in a terminal: the headline, and where the rest is."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence

from router.command import own_command
from training.evaluation.result import Evaluation, FullEvaluation, OffPolicyEvaluation
from training.fit.never_asked import assumptions
from training.pipeline import TrainingResult
from training.reports.evaluation_tables import evaluation_tables, first_table, promise_line
from training.reports.tables import Table

_WIDTH = 110


def training_text(result: TrainingResult) -> str:
    """What a training run made and measured."""
    evaluation, report = result.evaluation, result.bundle / "report.html"
    return "\n".join(
        [
            *first_lines(evaluation),
            "",
            promise_line(result.manifest),
            *([f"prompts: {result.counts}"] if isinstance(evaluation, FullEvaluation) else []),
            result.log.summary.lines,
            *assumptions(result.manifest.training.get("never_asked", {})),
            "",
            f"bundle {result.manifest.bundle_id} is in {result.bundle}; all tables and pictures: {report}",
            f"try it: {own_command()} play --bundle {shlex.quote(str(result.bundle))}",
        ]
    )


def first_lines(evaluation: Evaluation, *, with_curve: bool = True) -> list[str]:
    """The headline with the small table that goes with it, and what the curve says."""
    headline, *curve = (textwrap.fill(line, _WIDTH, break_on_hyphens=False) for line in evaluation.summary)
    lines = [headline]
    if isinstance(evaluation, FullEvaluation):
        lines += ["", first_table(evaluation).text()]
    return lines + (["", *curve] if curve and with_curve else [])


def evaluation_text(evaluation: Evaluation, *, every_table: bool) -> str:
    """What a judgement found. every_table: print all its tables, not only the first."""
    lacking = "an outcome of every tier"
    if isinstance(evaluation, OffPolicyEvaluation):
        lacking = "an outcome with its propensity"
    left_out = f"{evaluation.n_trained_on:,} trained on, {evaluation.n_incomplete:,} without {lacking}"
    if evaluation.n_not_drawn:
        left_out += f", {evaluation.n_not_drawn:,} beyond the sample"
    tables = evaluation_tables(evaluation)
    every_table = every_table or not isinstance(evaluation, FullEvaluation)  # Off-policy there is but one.
    return "\n".join(
        [
            *first_lines(evaluation),
            "",
            f"prompts: {evaluation.n_prompts:,} judged; left out: {left_out}",
            *([evaluation.log.lines] if evaluation.log else []),
            "",
            _tables_text(tables) if every_table else f"{len(tables)} more tables: --tables, or --json",
        ]
    )


def _tables_text(tables: Sequence[Table]) -> str:
    return "\n\n".join(table.text() for table in tables)
