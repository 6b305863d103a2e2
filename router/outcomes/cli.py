"""`broker outcomes`: ask an outcome log, compact it, write it to one file, and let checks look at its answers."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from router.checks.verdict import Check, verdict_of
from router.command import DONE, FAILED, Command, say, usd_text
from router.errors import CheckError, OutcomeLogError
from router.outcomes.export import FORMATS, export
from router.outcomes.label import Labels, label
from router.outcomes.log import OutcomeLog
from router.outcomes.queries import GROUPS, Spend, spend
from router.outcomes.reading import LoggedDecision, LogReader

OUTCOMES = "logs/router"
"""Where `broker serve` writes its log."""

JUDGE_AT = "http://127.0.0.1:4000/v1"
JUDGE_KEY = "LITELLM_MASTER_KEY"
_JUDGES_AT_ONCE = 8

_AGO = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_TIME = "today, yesterday, 30m, 12h, 7d (ago), 2026-11-24 or 2026-11-24T18:00, UTC"


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="show|compact|export|label")
    show = _action(actions, "show", "what the log says of a decision, or what was spent", _show)
    show.add_argument("decision_id", nargs="?", metavar="DECISION_ID", help="of the header x-broker-decision-id")
    show.add_argument(
        "--by", action="append", choices=GROUPS, default=[], help="group what was spent; may be given again"
    )
    _span_arguments(show)
    _action(actions, "compact", "bring what the service has logged into Parquet, for training", _compact)
    written = _action(actions, "export", "write the rows of the log to one file", _export)
    written.add_argument("--out", type=Path, required=True, help=f"file to write: {', '.join(FORMATS)}")
    _span_arguments(written)
    labels = _action(actions, "label", "let a check look at the answers that were kept", _label)
    _label_arguments(labels)
    _span_arguments(labels)


def _label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check",
        required=True,
        metavar="NAME=KIND:VALUE",
        help="json=schema:FILE, date=pattern:REGEX, grader=judge:MODEL, or tests=python:FILE (which runs the answers: "
        "only those you trust)",
    )
    parser.add_argument(
        "--decides",
        action="store_true",
        help="set the outcome of answers that nobody has judged: as the check says; of a judge, the probability that "
        "the answer is right, by how often the judge was right where people have judged",
    )
    parser.add_argument(
        "--judge-at",
        default=JUDGE_AT,
        metavar="URL",
        help=f"where the judging model is asked, in OpenAI's protocol; default: {JUDGE_AT}, the service",
    )
    parser.add_argument(
        "--judge-key",
        default=JUDGE_KEY,
        metavar="VARIABLE",
        help=f"environment variable with its key; default: {JUDGE_KEY}",
    )


def _action(actions: Any, name: str, help: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=help, description=help)
    parser.set_defaults(run_action=run)
    parser.add_argument("--outcomes", default=OUTCOMES, help=f"folder or fsspec URL of the log; default: {OUTCOMES}")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    return parser


def _span_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", type=_moment, metavar="TIME", help=f"from then on: {_TIME}")
    parser.add_argument("--until", type=_moment, metavar="TIME", help="before then; default: now")


def _moment(text: str) -> datetime:
    """The time that an option names; raises ArgumentTypeError."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if text in ("today", "yesterday"):
        return midnight - timedelta(days=text == "yesterday")
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected {_TIME}") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _run(options: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = options.run_action
    return run(options)


def _show(options: argparse.Namespace) -> int:
    reader = LogReader(options.outcomes)
    if options.decision_id is None:
        groups = spend(reader, options.by, since=options.since, until=options.until)
        say(json.dumps([asdict(group) for group in groups]) if options.json else _spend_text(groups, options.by))
        return DONE
    if options.by or options.since or options.until:
        raise OutcomeLogError("found --by, --since or --until beside a DECISION_ID; expected one or the other")
    found = reader.find(options.decision_id)
    if options.json:
        say(json.dumps({"rows": [_row_json(row) for row in found.rows], "waiting": found.waiting}, ensure_ascii=False))
    else:
        say(_decision_text(options.decision_id, found))
    return DONE if found.rows else FAILED


def _compact(options: argparse.Namespace) -> int:
    done = OutcomeLog(options.outcomes).compact()
    text = (
        f"{options.outcomes}: {done.attempts:,} new rows, {done.outcomes:,} rows got outcomes, "
        f"{done.orphans:,} outcomes wait for their decision, {done.unreadable:,} lines or files put aside"
    )
    say(json.dumps(asdict(done)) if options.json else text)
    return DONE


def _export(options: argparse.Namespace) -> int:
    n_rows = export(LogReader(options.outcomes), options.out, since=options.since, until=options.until)
    document = {"out": str(options.out), "n_rows": n_rows}
    say(json.dumps(document) if options.json else f"{options.out}: {n_rows:,} rows")
    return DONE


def _label(options: argparse.Namespace) -> int:
    name, kind, value = _stated(options.check)
    is_judge = kind == "judge"
    check = _judge(value, options.judge_at, options.judge_key) if is_judge else _check(kind, value)
    with OutcomeLog(options.outcomes) as log:
        done = label(
            LogReader(options.outcomes), log, name, check,
            decides=options.decides, corrects=is_judge, since=options.since, until=options.until,
            n_threads=_JUDGES_AT_ONCE if is_judge else 1,
        )  # fmt: skip
    say(json.dumps(asdict(done)) if options.json else _labels_text(name, done))
    return DONE


def _labels_text(name: str, done: Labels) -> str:
    lines = [
        f"check {name}: looked at {done.looked_at:,} answers, {done.passed:,} passed; could not look at "
        f"{done.troubled:,}; set the outcome of {done.outcomes:,}"
    ]
    if done.usd:
        lines.append(f"the check cost {done.usd:.6f} USD")
    if measured := done.accuracy:
        lines.append(
            f"it passes {measured.sensitivity:.0%} of {measured.n_right:,} right answers and fails "
            f"{measured.specificity:.0%} of {measured.n_wrong:,} wrong ones that people have judged; outcomes are "
            f"corrected by that"
        )
    return "\n".join(lines)


def _stated(text: str) -> tuple[str, str, str]:
    """The name, kind and value that --check states; raises CheckError."""
    name, _, stated = text.partition("=")
    kind, colon, value = stated.partition(":")
    if not re.fullmatch("[A-Za-z0-9_]+", name) or not colon or kind not in ("pattern", "schema", "python", "judge"):
        raise CheckError(
            f"found {text[:80]!r}; expected NAME=pattern:REGEX, NAME=schema:FILE, NAME=python:FILE or NAME=judge:MODEL"
        )
    return name, kind, value


def _judge(model: str, url: str, key_variable: str) -> Check:
    from router.checks.endpoint import ModelAt
    from router.checks.judge import Judge

    judge = Judge(ask=ModelAt(model, base_url=url, api_key=os.environ.get(key_variable) or "none"))
    return lambda prompt, answer: verdict_of(judge(prompt, answer))


def _check(kind: str, value: str) -> Check:
    """The check of a kind; raises CheckError."""
    if kind == "pattern":
        from router.checks.pattern import Pattern

        return Pattern(pattern=value)
    content = Path(value).read_text(encoding="utf-8")
    if kind == "python":
        from router.checks.python_tests import PythonTests

        return PythonTests(tests=content)
    from router.checks.schema import JsonSchema

    try:
        return JsonSchema(schema=json.loads(content))
    except ValueError as error:
        raise CheckError(f"{value}: not JSON: {error}") from error


def _row_json(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the log for JSON: the time as ISO text, the decision as an object, and nothing that is missing."""
    known = {name: value for name, value in row.items() if value is not None}
    if "decision" in known:
        known["decision"] = json.loads(known["decision"])
    return {**known, "timestamp": row["timestamp"].isoformat()}


def _spend_text(groups: Sequence[Spend], by: Sequence[str]) -> str:
    if not groups:
        return "no decisions in that time"
    names = ("requests", "attempts", "USD", "input tokens", "output tokens", "failed", "judged", "correct")
    lines = [" ".join([*(f"{name:<20}" for name in by), *(f"{name:>13}" for name in names)])]
    for group in groups:
        correct = "" if group.correct is None else f"{group.correct:.3f}"
        counts = (group.requests, group.attempts, usd_text(group.usd), group.input_tokens, group.output_tokens)
        cells = [f"{each:,}" if isinstance(each, int) else each for each in (*counts, group.failed, group.judged)]
        labels = [f"{group.group[name] or '-':<20}" for name in by]
        lines.append(" ".join([*labels, *(f"{cell:>13}" for cell in (*cells, correct))]))
    if len(groups) > 1:
        lines.append(f"in all {usd_text(sum(group.usd for group in groups))} USD")
    if unpriced := sum(group.unpriced for group in groups):
        lines.append(f"{unpriced:,} answers have no known cost and count 0")
    if estimated := sum(group.estimated for group in groups):
        lines.append(f"{estimated:,} attempts have estimated tokens")
    return "\n".join(lines)


def _decision_text(wanted: str, found: LoggedDecision) -> str:
    if not found.rows:
        waiting = f"; an outcome waits for it: {dict(found.waiting)}" if found.waiting else ""
        return f"{wanted} is not in this log{waiting}"
    lines = []
    for row in found.rows:
        if row["decision"]:
            lines += _reason_lines(json.loads(row["decision"]))
        known = {name: value for name, value in row.items() if value is not None and name not in ("decision", "prompt")}
        lines.append("attempt" if row["attempt_id"] else "answer")
        lines += [f"  {name:<20} {value}" for name, value in known.items()]
    return "\n".join(lines)


def _reason_lines(decision: dict[str, Any]) -> list[str]:
    lines = [decision["reason"], f"  {'tier':<20} {'success':>8} {'expected USD':>13}"]
    lines += [
        f"  {tier:<20} {success:>8.3f} {usd_text(decision['cost_usd'][tier]):>13}"
        for tier, success in decision["success"].items()
    ]
    return lines


outcomes = Command("ask, compact, export and label an outcome log (extra: outcomes)", _arguments, _run)
