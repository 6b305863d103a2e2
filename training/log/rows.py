"""Checks log files and DataFrames row by row and puts all rows into one table `raw` of DuckDB.

A broken row does not harm the others: lines are read one by one, and values are cast with TRY. A broken row keeps
its content and the reason. See data/README.md for the format.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.func import SPECIAL

from router.errors import PromptError
from router.prompt import chat_text, valid_unicode
from training.log.readers import (
    COLUMNS,
    LINES,
    MAX_LINE_BYTES,
    arrow_table,
    csv_header,
    distinct,
    first_line,
    json_lines,
)

FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
"""Formats by suffix. `.gz` and `.zst` may follow the suffix of a text format."""

PROMPTS_FILE = "prompts.parquet"
"""Beside a log file: the prompts that its `prompt_id` refers to. It is not a log itself."""

_MAX_NAME = 64


def create_raw(db: duckdb.DuckDBPyConnection) -> None:
    """Create the table `raw`, unless the database has it, and the functions that `append_log` needs.

    file: number of the log that the row comes from. prompt_key: hash of the prompt. timestamp: UTC.
    reason: why the row is broken; NULL where it is not. source, content: name of the log and text of the row, of
        broken rows only.
    is_unreadable: true for a row that stands for a whole file that cannot be read; else NULL.
    """
    db.create_function("chat_text", _chat_text, ["VARCHAR"], "VARCHAR", null_handling=SPECIAL)
    db.execute("""
        CREATE TABLE IF NOT EXISTS raw (file INTEGER, prompt_key UBIGINT, prompt VARCHAR, model VARCHAR,
        provider VARCHAR, dataset VARCHAR, question_key VARCHAR, correct DOUBLE, input_tokens DOUBLE,
        output_tokens DOUBLE, cost_usd DOUBLE, propensity DOUBLE, timestamp TIMESTAMP, parsed BOOLEAN,
        source VARCHAR, reason VARCHAR, content VARCHAR, is_unreadable BOOLEAN)
    """)


def _chat_text(messages: str) -> str | None:
    """Text of a chat stored as JSON; None where it is not one."""
    try:
        return valid_unicode(chat_text(json.loads(messages)))
    except (ValueError, RecursionError, PromptError):
        return None


def format_of(path: Path) -> str | None:
    """The format that a file's name tells; None where it is no log."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    return FORMATS.get(suffixes[-1]) if suffixes else None


@dataclass(frozen=True)
class _Log:
    """A log that is being read. name: as broken rows give it. path: None for a DataFrame."""

    number: int
    name: str
    path: Path | None


def append_log(db: duckdb.DuckDBPyConnection, source: Path | pd.DataFrame, number: int) -> None:
    """Check the rows of a log and add them to table `raw`; broken rows carry the reason and their content.

    number: of the log, for the column `file`. A file that cannot be read becomes one broken row.
    Raises duckdb.OutOfMemoryException.
    """
    is_frame = isinstance(source, pd.DataFrame)
    log = _Log(number, f"DataFrame {number + 1}" if is_frame else str(source), None if is_frame else source)
    try:
        if isinstance(source, pd.DataFrame):
            _append_frame(db, log, source)
        elif format_of(source) == "parquet":
            _append_parquet(db, log, source)
        elif format_of(source) == "csv":
            _append_csv(db, log, source)
        else:
            _append_lines(db, log, source)
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, pa.ArrowException, csv.Error, OSError) as error:
        _append_unreadable(db, log, log.name, error)


def _append_unreadable(db: duckdb.DuckDBPyConnection, log: _Log, name: str, error: Exception) -> None:
    """Add one broken row that stands for a whole file. name: of the file, which may be that of the prompts."""
    db.execute(
        "INSERT INTO raw BY NAME SELECT ? AS file, ? AS source, ? AS reason, true AS is_unreadable",
        [log.number, name, f"cannot be read: {first_line(error)}"],
    )


def _append_frame(db: duckdb.DuckDBPyConnection, log: _Log, frame: pd.DataFrame) -> None:
    if len(frame.columns) > 0:
        table = arrow_table(frame)
        db.register("frame", table)
        _insert(db, log, _from_table(db, "frame", table.column_names), _TABLE_ROW)
        db.unregister("frame")


def _append_parquet(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    rows = _from_table(db, f"read_parquet({quoted_path(path)})", pq.read_schema(path).names)
    _insert(db, log, rows, _TABLE_ROW)


def _append_csv(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    """Read strictly; where that fails, as it does where the ends of lines are mixed, read leniently."""
    names, delimiter = csv_header(path)
    if not names:
        return
    columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in distinct(names))
    for is_strict in (True, False):
        table = (
            f"read_csv({quoted_path(path)}, columns = {{{columns}}}, header = true, auto_detect = false, "
            f"delim = {quoted(delimiter)}, quote = '\"', escape = '\"', strict_mode = {is_strict}, "
            f"max_line_size = {MAX_LINE_BYTES}, store_rejects = true, "
            "rejects_table = 'rejects', rejects_scan = 'rejected_scans')"
        )
        db.execute("DROP TABLE IF EXISTS rejects; DROP TABLE IF EXISTS rejected_scans")
        try:
            _insert(db, log, _from_table(db, table, names), _TABLE_ROW)
            break
        except duckdb.InvalidInputException:
            if not is_strict:
                raise
    db.execute(f"""
        INSERT INTO raw BY NAME
        SELECT {log.number} AS file, {quoted(log.name)} AS source, any_value(csv_line) AS content,
               'line cannot be read: ' || lower(min(error_type::VARCHAR)) AS reason
        FROM rejects GROUP BY line
    """)


def _append_lines(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    db.register("lines", pa.RecordBatchReader.from_batches(LINES, json_lines(path)))
    _insert(db, log, _FROM_LINES, _LINE)
    db.unregister("lines")


_BLANK = "chr(9) || chr(10) || chr(13) || ' '"
_FIELDS = json.dumps({name: "JSON" if name == "prompt" else "VARCHAR" for name in COLUMNS})
_PROMPT_FIELD = "CASE WHEN left(fields.prompt, 1) NOT IN ('[', '{') THEN fields.prompt ->> '$' END AS prompt"
_FROM_LINES = f"""
    SELECT {_PROMPT_FIELD}, {", ".join(f"fields.{name} AS {name}" for name in COLUMNS[1:])}, original,
           CASE WHEN NOT is_object THEN coalesce(broken, 'not a JSON object') END AS defect
    FROM (SELECT CASE WHEN is_object THEN json_transform(line, '{_FIELDS}') END AS fields, line AS original, *
          FROM (SELECT *, broken IS NULL AND coalesce(TRY(json_type(line)) = 'OBJECT', false) AS is_object
                FROM lines WHERE broken IS NOT NULL OR trim(line, {_BLANK}) <> ''))
"""


def _insert(db: duckdb.DuckDBPyConnection, log: _Log, rows: str, original: str) -> None:
    """Check rows and add them to `raw`.

    rows: SELECT of the log's columns as text, of `defect` (why a row cannot be read, or NULL) and of `original`.
    original: SQL expression for a broken row's content, made from `original`.
    """
    joined, clause = _joined_prompts(db, log)
    db.execute(f"""
        INSERT INTO raw BY NAME
        WITH f AS ({rows}),
        g AS (SELECT f.* REPLACE ({joined}, trim(model) AS model, trim(provider) AS provider,
                                  trim(correct) AS correct, trim(parsed) AS parsed),
                  {_number("timestamp")} AS epoch FROM f {clause}),
        h AS (SELECT * REPLACE (CASE WHEN coalesce(prompt, '') <> '' THEN prompt
                                     WHEN messages IS NOT NULL THEN chat_text(messages) END AS prompt, {_BILLED}),
                     {_ANY_TIME} AS any_time FROM g),
        i AS (SELECT *, {_REASON} AS reason FROM h)
        SELECT {log.number} AS file, hash(prompt) AS prompt_key, prompt, model, provider,
               left(dataset, {_MAX_NAME}) AS dataset,
               CASE WHEN length(question_key) > {_MAX_NAME} THEN sha256(question_key)[:16] ELSE question_key END
                   AS question_key,
               {_CORRECT} AS correct, {_number("input_tokens")} AS input_tokens,
               {_number("output_tokens")} AS output_tokens, {_number("cost_usd")} AS cost_usd,
               {_number("propensity")} AS propensity,
               {_TIMESTAMP} AS timestamp, TRY_CAST(parsed AS BOOLEAN) AS parsed,
               CASE WHEN reason IS NOT NULL THEN {quoted(log.name)} END AS source, reason,
               CASE WHEN reason IS NOT NULL THEN {original} END AS content
        FROM i
    """)


_TABLE_ROW = "to_json(original)::VARCHAR"
_LINE = "rtrim(original, chr(13) || chr(10))"


def _from_table(db: duckdb.DuckDBPyConnection, table: str, names: Sequence[str]) -> str:
    """SELECT for _insert of a table.

    names: of its columns as the file has them, which DuckDB may change; DuckDB may also add columns at the end.
    """
    described = [(name, kind) for name, kind, *_ in fetch(db, f"DESCRIBE SELECT * FROM {table}")]
    found = distinct([*names, *(name for name, _ in described[len(names) :])])
    kinds = {name: kind for name, (_, kind) in zip(found, described, strict=True)}
    fields = ", ".join(f"{_field(name, kinds.get(name))} AS {name}" for name in COLUMNS)
    columns = ", ".join(_identifier(name) for name in found)
    return f"SELECT {fields}, NULL::VARCHAR AS defect, log_row AS original FROM {table} AS log_row({columns})"


def _field(name: str, kind: str | None) -> str:
    """SQL for one column of the log format as text; NULL where the log does not have it. kind: its type, or None."""
    is_nested = kind is not None and (kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "JSON")))
    if kind is None or (is_nested and name == "prompt"):
        return "NULL::VARCHAR"
    if is_nested:
        return f"to_json({name})::VARCHAR"
    if kind == "BLOB":
        return f"TRY(decode({name}))"
    if kind in ("FLOAT", "DOUBLE") and name.endswith(("_id", "_key")):  # whole numbers, where pandas had missing ones
        return f"regexp_replace({name}::VARCHAR, '\\.0$', '')"
    return f"{name}::VARCHAR"


def _joined_prompts(db: duckdb.DuckDBPyConnection, log: _Log) -> tuple[str, str]:
    """SQL that fills in prompts from `prompts.parquet` beside the log: (REPLACE list, JOIN clause)."""
    beside = None if log.path is None else log.path.with_name(PROMPTS_FILE)
    if beside is None or not beside.exists():
        return "f.prompt AS prompt", ""
    try:
        rows = _from_table(db, f"read_parquet({quoted_path(beside)})", pq.read_schema(beside).names)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        _append_unreadable(db, log, str(beside), error)
        return "f.prompt AS prompt", ""
    shared = ("prompt", "messages", "question_key", "dataset")
    replaced = ", ".join(f"coalesce(nullif(f.{name}, ''), p.{name}) AS {name}" for name in shared)
    picked = ", ".join(f"min({name}) AS {name}" for name in shared)
    return replaced, f"LEFT JOIN (SELECT prompt_id, {picked} FROM ({rows}) GROUP BY 1) p ON f.prompt_id = p.prompt_id"


def _number(name: str) -> str:
    """SQL for a column as a number; NULL where it is empty or not a number."""
    return f"CASE WHEN isfinite(TRY_CAST({name} AS DOUBLE)) THEN TRY_CAST({name} AS DOUBLE) + 0.0 END"  # no -0.0


def _is_given(name: str) -> str:
    """SQL for whether a column has a value. What pandas and R write for a missing value is none."""
    return f"coalesce(lower({name}) NOT IN ('', 'nan', 'none', 'null', 'nat', 'na', '<na>'), false)"


_CORRECT = f"CASE lower(correct) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 ELSE {_number('correct')} END"
_EPOCH = "epoch / CASE WHEN epoch < 1e11 THEN 1 WHEN epoch < 1e14 THEN 1e3 WHEN epoch < 1e17 THEN 1e6 ELSE 1e9 END"
_ANY_TIME = f"coalesce(TRY_CAST(timestamp AS TIMESTAMPTZ), TRY(to_timestamp({_EPOCH})))::TIMESTAMP"
_TIMESTAMP = "CASE WHEN any_time BETWEEN TIMESTAMP '1970-01-01' AND TIMESTAMP '2199-12-31' THEN any_time END"
_IS_CACHE_HIT = "TRY_CAST(cache_hit AS BOOLEAN)"  # No model was asked, so nothing was billed.
_BILLED = f"""
    CASE WHEN {_IS_CACHE_HIT} THEN NULL ELSE cost_usd END AS cost_usd,
    CASE WHEN {_IS_CACHE_HIT} THEN NULL ELSE output_tokens END AS output_tokens,
    CASE WHEN {_IS_CACHE_HIT} OR TRY_CAST(tokens_estimated AS BOOLEAN) THEN NULL ELSE input_tokens END AS input_tokens
"""
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd", "latency_ms")
_BROKEN_AMOUNTS = " ".join(
    f"WHEN {_is_given(name)} AND coalesce(NOT {_number(name)} BETWEEN 0 AND 1e12, true) "
    f"THEN '{name} is not a number from 0 to 1e12'"
    for name in _AMOUNTS
)
_REASON = f"""
    CASE
        WHEN defect IS NOT NULL THEN defect
        WHEN NOT {_is_given("model")} THEN 'no model'
        WHEN prompt IS NULL AND messages IS NOT NULL THEN 'messages is not a chat'
        WHEN prompt IS NULL AND prompt_id IS NOT NULL THEN 'no prompt, and prompt_id is not in a {PROMPTS_FILE} beside'
        WHEN coalesce(prompt, '') = '' THEN 'no prompt'
        WHEN {_is_given("correct")} AND coalesce(NOT {_CORRECT} BETWEEN 0 AND 1, true)
            THEN 'correct is not true, false or a number in 0..1'
        {_BROKEN_AMOUNTS}
        WHEN {_is_given("propensity")}
            AND coalesce(NOT {_number("propensity")} BETWEEN 0 AND 1 OR {_number("propensity")} = 0, true)
            THEN 'propensity is not a number above 0 and at most 1'
        WHEN {_is_given("timestamp")} AND {_TIMESTAMP} IS NULL THEN 'timestamp is not a point in time from 1970 to 2199'
        WHEN {_is_given("parsed")} AND TRY_CAST(parsed AS BOOLEAN) IS NULL THEN 'parsed is not true or false'
    END
"""


def fetch(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query, so that the connection is free again."""
    return db.execute(query).fetchall()


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def quoted_path(path: Path) -> str:
    """A file to read as a literal of SQL: this file only, though DuckDB takes a path for a glob."""
    return quoted(glob.escape(str(path)))
