"""Log files and DataFrames, row by row into one table of text-free, checked values; what is broken says why.

One bad row costs only itself: lines are read one by one, values are cast with TRY, and a row that cannot be
used keeps its content and the reason. See data/README.md for the format.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.func import SPECIAL

from router.errors import PromptError
from router.prompt import chat_text, valid_unicode
from training.errors import LogError

LogSource: TypeAlias = str | Path | pd.DataFrame

_COLUMNS = (
    "prompt", "messages", "prompt_id", "model", "correct", "request_id", "provider", "dataset", "input_tokens",
    "output_tokens", "cost_usd", "latency_ms", "timestamp", "propensity", "question_key", "parsed",
)  # fmt: skip
_FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PROMPTS_FILE = "prompts.parquet"
_MAX_LINE_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024
_MAX_NAME = 64


def create_raw(db: duckdb.DuckDBPyConnection) -> None:
    """The empty table `raw`, which `append_log` fills; where `reason` is not NULL a row is broken."""
    db.create_function("chat_text", _chat_text, ["VARCHAR"], "VARCHAR", null_handling=SPECIAL)
    db.execute(_RAW)


_RAW = """
    CREATE TABLE raw (prompt_key UBIGINT, prompt VARCHAR, model VARCHAR, provider VARCHAR, dataset VARCHAR,
    question_key VARCHAR, correct DOUBLE, input_tokens DOUBLE, output_tokens DOUBLE, cost_usd DOUBLE,
    propensity DOUBLE, timestamp TIMESTAMP, parsed BOOLEAN, source VARCHAR, reason VARCHAR, content VARCHAR)
"""


def _chat_text(messages: str) -> str | None:
    """Text of a chat stored as JSON; None where it is not one."""
    try:
        return valid_unicode(chat_text(json.loads(messages)))
    except (ValueError, RecursionError, PromptError):
        return None


def log_sources(logs: Sequence[Any], quarantine: Path | None) -> Iterator[Path | pd.DataFrame]:
    """DataFrames as they are, all else as files; raises LogError where there is no log."""
    for log in logs:
        if isinstance(log, pd.DataFrame):
            yield log
        elif isinstance(log, str | Path):
            yield from (file for file in _files(str(log)) if quarantine is None or not _is_same(file, quarantine))
        else:
            raise LogError(f"found {type(log).__name__} for a log; expected a path, a glob or a DataFrame")


def _files(source: str) -> list[Path]:
    """The log files of a file, a folder or a glob; hidden files and `prompts.parquet` are not logs."""
    path = Path(source)
    if path.is_dir():
        found = [item for item in path.rglob("*") if item.is_file() and not _is_hidden(item.relative_to(path))]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file()]
    files = sorted(item for item in found if _suffix(item) in _FORMATS and item.name != _PROMPTS_FILE)
    if not files:
        raise LogError(f"{source}: found no log; expected a file, folder or glob of .parquet, .jsonl or .csv")
    return files


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _suffix(path: Path) -> str:
    """The suffix that tells the format, `.gz` and `.zst` aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    return suffixes[-1] if suffixes else ""


def append_log(db: duckdb.DuckDBPyConnection, source: Path | pd.DataFrame, number: int) -> None:
    """Add a source's rows to table `raw`; what cannot be used carries the reason and its content."""
    place = f"DataFrame {number + 1}" if isinstance(source, pd.DataFrame) else str(source)
    try:
        if isinstance(source, pd.DataFrame):
            _append_frame(db, source, place)
        else:
            {"parquet": _append_parquet, "csv": _append_csv, "jsonl": _append_lines}[_FORMATS[_suffix(source)]](
                db, source
            )
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, pa.ArrowException, csv.Error, OSError) as error:
        _append_unreadable(db, place, error)


def _append_unreadable(db: duckdb.DuckDBPyConnection, place: str, error: Exception) -> None:
    """One broken row that stands for a whole file."""
    row = [place, f"cannot be read: {first_line(error)}"]
    db.execute("INSERT INTO raw BY NAME SELECT ? AS source, ? AS reason", row)


def _append_frame(db: duckdb.DuckDBPyConnection, frame: pd.DataFrame, place: str) -> None:
    if len(frame.columns) > 0:
        table = _arrow_table(frame)
        db.register("frame", table)
        _insert(db, _from_table(db, "frame", table.column_names), _TABLE_ROW, place)
        db.unregister("frame")


def _append_parquet(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    rows = _from_table(db, f"read_parquet({quoted(str(path))})", pq.read_schema(path).names)
    _insert(db, rows, _TABLE_ROW, str(path), path)


def _append_csv(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Add a CSV file's rows; strictly, or else, where lines end now one way and now another, leniently."""
    names, delimiter = _csv_header(path)
    if not names:
        return
    columns = ", ".join(f"{quoted(name)}: 'VARCHAR'" for name in _distinct(names))
    for is_strict in (True, False):
        table = (
            f"read_csv({quoted(str(path))}, columns = {{{columns}}}, header = true, auto_detect = false, "
            f"delim = {quoted(delimiter)}, quote = '\"', escape = '\"', strict_mode = {is_strict}, "
            f"max_line_size = {_MAX_LINE_BYTES}, store_rejects = true, "
            "rejects_table = 'rejects', rejects_scan = 'rejected_scans')"
        )
        db.execute("DROP TABLE IF EXISTS rejects; DROP TABLE IF EXISTS rejected_scans")
        try:
            _insert(db, _from_table(db, table, names), _TABLE_ROW, str(path), path)
            break
        except duckdb.InvalidInputException:
            if not is_strict:
                raise
    db.execute(f"""
        INSERT INTO raw BY NAME
        SELECT {quoted(str(path))} AS source, any_value(csv_line) AS content,
               'line cannot be read: ' || lower(min(error_type::VARCHAR)) AS reason
        FROM rejects GROUP BY line
    """)


def _csv_header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter; no names where the file is empty."""
    with pa.input_stream(str(path), compression="detect") as stream:
        line = io.BufferedReader(stream).readline(_MAX_LINE_BYTES).decode("utf-8-sig", "replace")
    delimiter = max(",;\t", key=line.count)
    return next(csv.reader([line], delimiter=delimiter), []), delimiter


def _append_lines(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    db.register("lines", pa.RecordBatchReader.from_batches(_LINES, _lines(path)))
    _insert(db, _FROM_LINES, _LINE, str(path), path)
    db.unregister("lines")


_LINES = pa.schema([("line", pa.string()), ("broken", pa.string())])
_BLANK = "chr(9) || chr(10) || chr(13) || ' '"
_FIELDS = json.dumps({name: "JSON" if name == "prompt" else "VARCHAR" for name in _COLUMNS})
_PROMPT_FIELD = "CASE WHEN left(fields.prompt, 1) NOT IN ('[', '{') THEN fields.prompt ->> '$' END AS prompt"
_FROM_LINES = f"""
    SELECT {_PROMPT_FIELD}, {", ".join(f"fields.{name} AS {name}" for name in _COLUMNS[1:])}, original,
           CASE WHEN NOT is_object THEN coalesce(broken, 'not a JSON object') END AS unreadable
    FROM (SELECT CASE WHEN is_object THEN json_transform(line, '{_FIELDS}') END AS fields, line AS original, *
          FROM (SELECT *, broken IS NULL AND coalesce(TRY(json_type(line)) = 'OBJECT', false) AS is_object
                FROM lines WHERE broken IS NOT NULL OR trim(line, {_BLANK}) <> ''))
"""


def _lines(path: Path) -> Iterator[pa.RecordBatch]:
    """The lines of a JSONL file, in columns as _LINES has them; a file cut short ends with a broken line."""
    lines: list[bytes] = []
    size = 0
    failure = None
    try:
        for line in _byte_lines(path):
            lines.append(line)
            size += len(line)
            if size > _BATCH_BYTES:
                yield _line_batch(lines)
                lines, size = [], 0
    except (OSError, pa.ArrowException) as error:
        failure = f"cannot be read to its end: {first_line(error)}"
    if lines:
        yield _line_batch(lines)
    if failure:
        yield pa.record_batch([[None], [failure]], schema=_LINES)


def _byte_lines(path: Path) -> Iterator[bytes]:
    """Lines as they are, a byte order mark aside; of a line beyond _MAX_LINE_BYTES only its beginning."""
    with pa.input_stream(str(path), compression="detect") as file:
        stream = io.BufferedReader(file)
        if stream.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
        while line := stream.readline(_MAX_LINE_BYTES):
            yield line
            while len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = stream.readline(_MAX_LINE_BYTES)


def _line_batch(lines: list[bytes]) -> pa.RecordBatch:
    """Lines as text; one that is not UTF-8 carries that as its reason."""
    try:
        return pa.record_batch(
            [pa.array(lines, pa.binary()).cast(pa.string()), pa.nulls(len(lines), pa.string())], schema=_LINES
        )
    except pa.ArrowInvalid:
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        broken = [None if text.encode() == line else "not UTF-8" for text, line in zip(texts, lines, strict=True)]
        return pa.record_batch([texts, broken], schema=_LINES)


def _insert(db: duckdb.DuckDBPyConnection, rows: str, original: str, place: str, source: Path | None = None) -> None:
    """Check rows and add them to `raw`.

    rows: SELECT of the log's columns as text, of `unreadable` (a reason or NULL) and of `original`.
    original: SQL for a broken row's content, from `original`.
    """
    joined, clause = _joined_prompts(db, source)
    db.execute(f"""
        INSERT INTO raw BY NAME
        WITH f AS ({rows}),
        g AS (SELECT f.* REPLACE ({joined}, trim(model) AS model, trim(provider) AS provider,
                                  trim(correct) AS correct, trim(parsed) AS parsed),
                  {_number("timestamp")} AS epoch FROM f {clause}),
        h AS (SELECT * REPLACE (CASE WHEN coalesce(prompt, '') <> '' THEN prompt
                                     WHEN messages IS NOT NULL THEN chat_text(messages) END AS prompt),
                     {_ANY_TIME} AS any_time FROM g),
        i AS (SELECT *, {_REASON} AS reason FROM h)
        SELECT hash(prompt) AS prompt_key, prompt, model, provider, left(dataset, {_MAX_NAME}) AS dataset,
               CASE WHEN length(question_key) > {_MAX_NAME} THEN sha256(question_key)[:16] ELSE question_key END
                   AS question_key,
               {_CORRECT} AS correct, {_number("input_tokens")} AS input_tokens,
               {_number("output_tokens")} AS output_tokens, {_number("cost_usd")} AS cost_usd,
               {_number("propensity")} AS propensity,
               {_TIMESTAMP} AS timestamp, TRY_CAST(parsed AS BOOLEAN) AS parsed,
               CASE WHEN reason IS NOT NULL THEN {quoted(place)} END AS source, reason,
               CASE WHEN reason IS NOT NULL THEN {original} END AS content
        FROM i
    """)


_TABLE_ROW = "to_json(original)::VARCHAR"
_LINE = "rtrim(original, chr(13) || chr(10))"


def _from_table(db: duckdb.DuckDBPyConnection, table: str, names: Sequence[str]) -> str:
    """SELECT for _insert of a table whose columns really have these names; DuckDB may add some at the end."""
    described = [(name, kind) for name, kind, *_ in fetch(db, f"DESCRIBE SELECT * FROM {table}")]
    distinct = _distinct([*names, *(name for name, _ in described[len(names) :])])
    kinds = {name: kind for name, (_, kind) in zip(distinct, described, strict=True)}
    fields = ", ".join(f"{_field(name, kinds.get(name))} AS {name}" for name in _COLUMNS)
    columns = ", ".join(_identifier(name) for name in distinct)
    return f"SELECT {fields}, NULL::VARCHAR AS unreadable, log_row AS original FROM {table} AS log_row({columns})"


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, made distinct as SQL compares them, without case; the log's own columns keep theirs."""
    taken = {name for name in _COLUMNS if name in names}
    distinct: list[str] = []
    for name in names:
        free, number = name or "unnamed", 1
        while free.lower() in taken and (free not in taken or free in distinct or free not in _COLUMNS):
            number += 1
            free = f"{name}_{number}"
        taken.add(free.lower())
        distinct.append(free)
    return distinct


def _field(name: str, kind: str | None) -> str:
    """SQL for one column of the log format as text; NULL where the source does not have it."""
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


def _joined_prompts(db: duckdb.DuckDBPyConnection, source: Path | None) -> tuple[str, str]:
    """(REPLACE list, JOIN clause) that fill in what `prompts.parquet` beside the log knows of a prompt."""
    beside = None if source is None else source.with_name(_PROMPTS_FILE)
    if beside is None or not beside.exists():
        return "f.prompt AS prompt", ""
    try:
        rows = _from_table(db, f"read_parquet({quoted(str(beside))})", pq.read_schema(beside).names)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        _append_unreadable(db, str(beside), error)
        return "f.prompt AS prompt", ""
    shared = ("prompt", "messages", "question_key", "dataset")
    replaced = ", ".join(f"coalesce(nullif(f.{name}, ''), p.{name}) AS {name}" for name in shared)
    picked = ", ".join(f"min({name}) AS {name}" for name in shared)
    return replaced, f"LEFT JOIN (SELECT prompt_id, {picked} FROM ({rows}) GROUP BY 1) p ON f.prompt_id = p.prompt_id"


def _arrow_table(frame: pd.DataFrame) -> pa.Table:
    """A DataFrame with distinct text for column names."""
    names = _distinct([str(name) for name in frame.columns])
    return pa.table([_arrow_column(frame.iloc[:, column]) for column in range(len(names))], names=names)


def _arrow_column(column: pd.Series) -> pa.Array | pa.ChunkedArray:
    """As text where Arrow or DuckDB has no type for the values, as for a column of numbers and texts."""
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        column = column.dt.tz_convert(None)
    try:
        array = pa.array(column, from_pandas=True)
        if not isinstance(array.type, pa.BaseExtensionType) and array.type != pa.float16():
            return array
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        pass
    return pa.array([_as_text(value) for value in column], pa.string())


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return valid_unicode(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple | dict | np.ndarray):
        return json.dumps(
            value, skipkeys=True, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item)
        )
    return None if value is None or value is pd.NA or value is pd.NaT or value != value else str(value)


def _number(name: str) -> str:
    """SQL for a column as a number; NULL where it is empty or not a number."""
    return f"CASE WHEN isfinite(TRY_CAST({name} AS DOUBLE)) THEN TRY_CAST({name} AS DOUBLE) + 0.0 END"  # no -0.0


def _is_given(name: str) -> str:
    """SQL: the column holds something; what pandas or R write for a missing value is nothing."""
    return f"coalesce(lower({name}) NOT IN ('', 'nan', 'none', 'null', 'nat', 'na', '<na>'), false)"


_CORRECT = f"CASE lower(correct) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 ELSE {_number('correct')} END"
_EPOCH = "epoch / CASE WHEN epoch < 1e11 THEN 1 WHEN epoch < 1e14 THEN 1e3 WHEN epoch < 1e17 THEN 1e6 ELSE 1e9 END"
_ANY_TIME = f"coalesce(TRY_CAST(timestamp AS TIMESTAMPTZ), TRY(to_timestamp({_EPOCH})))::TIMESTAMP"
_TIMESTAMP = "CASE WHEN any_time BETWEEN TIMESTAMP '1970-01-01' AND TIMESTAMP '2199-12-31' THEN any_time END"
_AMOUNTS = ("input_tokens", "output_tokens", "cost_usd", "latency_ms")
_BROKEN_AMOUNTS = " ".join(
    f"WHEN {_is_given(name)} AND coalesce(NOT {_number(name)} BETWEEN 0 AND 1e12, true) "
    f"THEN '{name} is not a number from 0 to 1e12'"
    for name in _AMOUNTS
)
_REASON = f"""
    CASE
        WHEN unreadable IS NOT NULL THEN unreadable
        WHEN NOT {_is_given("model")} THEN 'no model'
        WHEN prompt IS NULL AND messages IS NOT NULL THEN 'messages is not a chat'
        WHEN prompt IS NULL AND prompt_id IS NOT NULL THEN 'no prompt, and prompt_id is not in a {_PROMPTS_FILE} beside'
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


def first_line(error: Exception) -> str:
    """What an error says, without the details below."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
