"""Checks log files and DataFrames row by row and puts all rows into one table `raw` of DuckDB.

A broken row does not harm the others: lines are read one by one, and values are cast with TRY. A broken row keeps
its content and the reason. See data/README.md for the format.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.func import SPECIAL

from router.errors import PromptError
from router.prompt import chat_text, valid_unicode
from training.log.columns import COLUMNS, ColumnMap, check_of, quoted, quoted_path
from training.log.machine import is_damaged
from training.log.readers import (
    LINES,
    MAX_LINE_BYTES,
    NOT_UTF8,
    PROMPTS_FILE,
    OtherEncodingError,
    arrow_table,
    check_encoding,
    columns_of_lines,
    columns_of_schema,
    csv_header,
    distinct,
    first_line,
    format_of,
    json_lines,
)
from training.log.table_columns import TableColumns
from training.log.values import (
    ANSWER,
    ANY_TIME,
    BAD_LABEL,
    BILLED,
    CORRECT,
    IS_INCOMPLETE,
    REASON,
    TIMESTAMP,
    number,
)  # fmt: skip
from training.log.verdicts import BROKEN_VERDICT, VERDICTS, VERDICTS_TYPE, verdicts_of_line, verdicts_of_table

_MAX_NAME = 64
_MAX_LABEL = 40


def create_raw(db: duckdb.DuckDBPyConnection) -> None:
    """Create the tables `raw`, `incomplete` and `log_columns` where they are missing, and what `append_log` needs.

    file: number of the log that the row comes from. prompt_key: hash of the prompt. timestamp: UTC.
    answer: a digest of the answer. verdicts: what checks said of it.
    reason: why the row is broken; NULL where it is not. source, content: name of the log and text of the row, of
        broken rows only. label: what stands in `correct` of a row that is broken because it cannot be read; else NULL.
    is_unreadable: true for a row that stands for a whole file that cannot be read; else NULL.
    Attempts that gave no whole answer are not in `raw`; `incomplete` has their number n by file.
    """
    db.create_function("chat_text", _chat_text, ["VARCHAR"], "VARCHAR", null_handling=SPECIAL)
    db.execute(f"""
        CREATE TABLE IF NOT EXISTS raw (file INTEGER, prompt_key UBIGINT, prompt VARCHAR, model VARCHAR,
        provider VARCHAR, dataset VARCHAR, question_key VARCHAR, correct DOUBLE, input_tokens DOUBLE,
        output_tokens DOUBLE, cost_usd DOUBLE, usd_per_mtok_input DOUBLE, usd_per_mtok_output DOUBLE,
        propensity DOUBLE, timestamp TIMESTAMP, parsed BOOLEAN, answer UBIGINT, verdicts {VERDICTS_TYPE},
        source VARCHAR, reason VARCHAR, content VARCHAR, label VARCHAR, is_unreadable BOOLEAN,
        is_incomplete BOOLEAN)
    """)
    db.execute("CREATE TABLE IF NOT EXISTS incomplete (file INTEGER, n BIGINT)")
    db.execute("CREATE TABLE IF NOT EXISTS log_columns (file INTEGER, name VARCHAR)")


def _chat_text(messages: str) -> str | None:
    """Text of a chat stored as JSON; None where it is not one."""
    try:
        return valid_unicode(chat_text(json.loads(messages)))
    except (ValueError, RecursionError, PromptError):
        return None


@dataclass(frozen=True)
class _Log:
    """A log that is being read. name: as broken rows give it. path: None for a DataFrame. maps: by target."""

    number: int
    name: str
    path: Path | None
    maps: Mapping[str, ColumnMap]


def append_log(
    db: duckdb.DuckDBPyConnection, source: Path | pd.DataFrame, number: int, maps: Sequence[ColumnMap] = ()
) -> None:
    """Check the rows of a log and add them to table `raw`; broken rows carry the reason and their content.

    number: of the log, for the column `file`. maps: columns that are made from others; each takes the place of the
        log's own column of that name, in every row.
    The names of the log's columns go to table `log_columns`. A file whose content cannot be read becomes one broken
    row. Raises what the machine raises, which says nothing of the log: OSError, MemoryError, and of duckdb IOException,
    OutOfMemoryException, FatalException, InternalException.
    """
    name, path = (f"DataFrame {number + 1}", None) if isinstance(source, pd.DataFrame) else (str(source), source)
    log = _Log(number=number, name=name, path=path, maps={made.target: made for made in maps})
    try:
        if isinstance(source, pd.DataFrame):
            _append_frame(db, log, source)
        elif format_of(source) == "parquet":
            _append_parquet(db, log, source)
        elif format_of(source) == "csv":
            _append_csv(db, log, source)
        else:
            _append_lines(db, log, source)
    except (duckdb.Error, pa.ArrowException, csv.Error, OSError, OtherEncodingError) as error:
        if not is_damaged(path, error):
            raise
        _append_unreadable(db, log, log.name, error)


def _append_unreadable(db: duckdb.DuckDBPyConnection, log: _Log, name: str, error: Exception) -> None:
    """Add one broken row that stands for a whole file. name: of the file, which may be that of the prompts."""
    db.execute(
        "INSERT INTO raw BY NAME SELECT ? AS file, ? AS source, ? AS reason, true AS is_unreadable",
        [log.number, name, f"cannot be read: {first_line(error)}"],
    )


def _append_columns(db: duckdb.DuckDBPyConnection, log: _Log, names: Sequence[str]) -> None:
    db.execute("INSERT INTO log_columns SELECT ?, unnest(?)", [log.number, [valid_unicode(name) for name in names]])


def _append_frame(db: duckdb.DuckDBPyConnection, log: _Log, frame: pd.DataFrame) -> None:
    if len(frame.columns) > 0:
        table = arrow_table(frame)
        _append_columns(db, log, columns_of_schema(table.schema))
        db.register("frame", table)
        _insert_table(db, log, "frame", table.column_names)
        db.unregister("frame")


def _append_parquet(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    schema = pq.read_schema(path)
    _append_columns(db, log, columns_of_schema(schema))
    _insert_table(db, log, f"read_parquet({quoted_path(path)})", schema.names)


def _append_csv(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    """Read strictly; where that fails, as it does where the ends of lines are mixed, read leniently."""
    check_encoding(path)
    names, delimiter = csv_header(path)
    if not names:
        return
    _append_columns(db, log, names)
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
            _insert_table(db, log, table, names)
            break
        except duckdb.InvalidInputException:
            if not is_strict:
                raise
    db.execute(f"""
        INSERT INTO raw BY NAME
        SELECT {log.number} AS file, {quoted(log.name)} AS source, any_value(csv_line) AS content,
               'line cannot be read: '
                   || replace(lower(min(error_type::VARCHAR)), 'invalid encoding', {quoted(NOT_UTF8)}) AS reason
        FROM rejects GROUP BY line
    """)


def _append_lines(db: duckdb.DuckDBPyConnection, log: _Log, path: Path) -> None:
    check_encoding(path)
    batches = json_lines(path)
    first = next(batches, None)
    if first is None:
        return
    following = next(batches, None)
    hidden = () if following is None else tuple(made.source for made in log.maps.values())
    _append_columns(db, log, [*columns_of_lines(first), *hidden])  # later lines may have the sources of maps
    rest = () if following is None else (following,)
    failures: list[Exception] = []
    lines = _keeping_failures(chain([first], rest, batches), failures)
    db.register("lines", pa.RecordBatchReader.from_batches(LINES, lines))
    try:
        _insert(db, log, _from_lines(log.maps), _LINE, has_checks=True)
    except duckdb.Error:
        if failures:  # else DuckDB hides them in the text of an error of its own
            raise failures[0] from None
        raise
    db.unregister("lines")


def _keeping_failures(batches: Iterator[pa.RecordBatch], failures: list[Exception]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except Exception as error:
        failures.append(error)
        raise


_BLANK = "chr(9) || chr(10) || chr(13) || ' '"
_FIELDS = json.dumps({name: "JSON" if name == "prompt" else "VARCHAR" for name in COLUMNS})


def _from_lines(maps: Mapping[str, ColumnMap]) -> str:
    """SELECT for _insert of the lines of a JSONL file."""

    def mapped(made: ColumnMap) -> str:
        arrow = "->" if made.target == "prompt" else "->>"
        text = f"coalesce({', '.join(f'(line {arrow} {pointer})' for pointer in made.pointers)})"
        return text if made.target == "prompt" else made.sql(text)

    def value(name: str) -> str:
        return mapped(maps[name]) if name in maps else f"fields.{name}"

    is_nested = f"coalesce(left({value('prompt')}, 1) IN ('[', '{{'), false)"
    fields = ", ".join(f"CASE WHEN is_object THEN {value(name)} END AS {name}" for name in COLUMNS[1:])
    return f"""
        SELECT CASE WHEN is_object AND NOT {is_nested} THEN ({value("prompt")}) ->> '$' END AS prompt, {fields},
               CASE WHEN is_object THEN {verdicts_of_line(maps, mapped)} END AS verdicts,
               is_object AND {is_nested} AS has_nested_prompt, original,
               CASE WHEN NOT is_object THEN coalesce(broken, 'not a JSON object') END AS defect
        FROM (SELECT CASE WHEN is_object THEN json_transform(line, '{_FIELDS}') END AS fields, line AS original, *
              FROM (SELECT *, broken IS NULL AND coalesce(TRY(json_type(line)) = 'OBJECT', false) AS is_object
                    FROM lines WHERE broken IS NOT NULL OR trim(line, {_BLANK}) <> ''))
    """


def _insert_table(db: duckdb.DuckDBPyConnection, log: _Log, table: str, names: Sequence[str]) -> None:
    """Check the rows of a table and add them to `raw`. table, names: as for _from_table."""
    has_checks = any(check_of(name) for name in (*names, *log.maps))
    _insert(db, log, _from_table(db, table, names, log.maps), _TABLE_ROW, has_checks=has_checks)


def _insert(db: duckdb.DuckDBPyConnection, log: _Log, rows: str, original: str, *, has_checks: bool) -> None:
    """Check rows and add them to `raw`.

    rows: SELECT of the log's columns as text, of `verdicts` as the log has them, of `has_nested_prompt` (a list or an
        object stands where a text should), of `defect` (why a row cannot be read, or NULL) and of `original`.
    original: SQL expression for a broken row's content, made from `original`.
    has_checks: whether rows may have verdicts; the SQL for them takes a while to plan.
    """
    broken, verdicts = (BROKEN_VERDICT, VERDICTS) if has_checks else ("NULL", "NULL")
    joined, clause = _joined_prompts(db, log)
    db.execute(f"""
        INSERT INTO raw BY NAME
        WITH f AS ({rows}),
        g AS (SELECT f.* REPLACE ({joined}, trim(model) AS model, trim(provider) AS provider,
                                  trim(correct) AS correct, trim(parsed) AS parsed),
                  {number("timestamp")} AS epoch FROM f {clause}),
        h AS (SELECT * REPLACE (CASE WHEN coalesce(prompt, '') <> '' THEN prompt
                                     WHEN messages IS NOT NULL THEN chat_text(messages) END AS prompt, {BILLED}),
                     {ANY_TIME} AS any_time FROM g),
        i AS (SELECT *, {IS_INCOMPLETE} AS is_incomplete, coalesce({REASON}, {broken}) AS reason FROM h)
        SELECT {log.number} AS file, hash(prompt) AS prompt_key, prompt, model, provider,
               left(dataset, {_MAX_NAME}) AS dataset,
               CASE WHEN length(question_key) > {_MAX_NAME} THEN sha256(question_key)[:16] ELSE question_key END
                   AS question_key,
               {CORRECT} AS correct, {number("input_tokens")} AS input_tokens,
               {number("output_tokens")} AS output_tokens, {number("cost_usd")} AS cost_usd,
               {number("usd_per_mtok_input")} AS usd_per_mtok_input,
               {number("usd_per_mtok_output")} AS usd_per_mtok_output, {number("propensity")} AS propensity,
               {TIMESTAMP} AS timestamp, TRY_CAST(parsed AS BOOLEAN) AS parsed, {ANSWER} AS answer,
               {verdicts} AS verdicts,
               CASE WHEN reason IS NOT NULL THEN {quoted(log.name)} END AS source, reason,
               CASE WHEN reason IS NOT NULL THEN {original} END AS content,
               CASE WHEN reason = {quoted(BAD_LABEL)} THEN left(correct, {_MAX_LABEL}) END AS label,
               is_incomplete
        FROM i
    """)
    moved = f"FROM raw WHERE file = {log.number} AND is_incomplete"
    db.execute(f"INSERT INTO incomplete SELECT {log.number}, count(*) {moved}; DELETE {moved}")


_TABLE_ROW = "to_json(original)::VARCHAR"
_LINE = "rtrim(original, chr(13) || chr(10))"


def _from_table(
    db: duckdb.DuckDBPyConnection, table: str, names: Sequence[str], maps: Mapping[str, ColumnMap] | None = None
) -> str:
    """SELECT for _insert of a table.

    names: of its columns as the file has them, which DuckDB may change; DuckDB may also add columns at the end.
    """
    maps = maps or {}
    described = [(name, kind) for name, kind, *_ in fetch(db, f"DESCRIBE SELECT * FROM {table}")]
    columns = TableColumns.of(described, names)

    def field(name: str) -> str:
        return columns.text(name, maps.get(name))

    fields = ", ".join(f"{field(name)} AS {name}" for name in COLUMNS)
    nested = columns.is_nested("prompt", maps.get("prompt"))
    return (
        f"SELECT {fields}, {verdicts_of_table(names, maps, field)} AS verdicts, {nested} AS has_nested_prompt, "
        "NULL::VARCHAR AS defect, log_row AS original "
        f"FROM {table} AS log_row({columns.identifiers})"
    )


def _joined_prompts(db: duckdb.DuckDBPyConnection, log: _Log) -> tuple[str, str]:
    """SQL that fills in prompts from `prompts.parquet` beside the log: (REPLACE list, JOIN clause)."""
    beside = None if log.path is None else log.path.with_name(PROMPTS_FILE)
    if beside is None or not beside.exists():
        return "f.prompt AS prompt", ""
    try:
        rows = _from_table(db, f"read_parquet({quoted_path(beside)})", pq.read_schema(beside).names)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not is_damaged(beside, error):
            raise
        _append_unreadable(db, log, str(beside), error)
        return "f.prompt AS prompt", ""
    shared = ("prompt", "messages", "question_key", "dataset")
    replaced = ", ".join(f"coalesce(nullif(f.{name}, ''), p.{name}) AS {name}" for name in shared)
    picked = ", ".join(f"min({name}) AS {name}" for name in shared)
    return replaced, f"LEFT JOIN (SELECT prompt_id, {picked} FROM ({rows}) GROUP BY 1) p ON f.prompt_id = p.prompt_id"


def fetch(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    """All rows of a query, so that the connection is free again."""
    return db.execute(query).fetchall()
