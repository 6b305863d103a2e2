"""From outcome logs to one table: prompts down, tiers across, unobserved cells left open.

DuckDB reads, checks and pivots, in a database on disk, so that a log need not fit into memory;
only the pivoted table does.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from router.errors import PromptError
from router.prompt import chat_text
from router.tiers import Tier, log_names
from training.errors import LogError

LogSource = str | Path | pd.DataFrame

_COLUMNS = (
    "prompt", "messages", "prompt_id", "model", "correct", "request_id", "provider", "dataset", "input_tokens",
    "output_tokens", "cost_usd", "latency_ms", "timestamp", "propensity", "question_key", "parsed",
)  # fmt: skip
_FORMATS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_PROMPTS_FILE = "prompts.parquet"
_MAX_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class IngestSummary:
    """How many rows of what.

    quarantined: rows per reason. in_no_tier: rows per model that no tier names.
    unjudged: rows without `correct`, which count for tokens and cost only.
    unparsed: rows whose outcome was set aside because the generation was truncated.
    repeated: rows beyond the first of their (prompt, model), averaged.
    """

    n_rows: int
    n_used: int
    n_prompts: int
    quarantined: dict[str, int]
    in_no_tier: dict[str, int]
    unjudged: int
    unparsed: int
    repeated: int
    observed_per_tier: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{self.n_used:,} of {self.n_rows:,} rows used, {self.n_prompts:,} prompts"]
        parts += [f"{count:,} rows quarantined: {reason}" for reason, count in self.quarantined.items()]
        if self.in_no_tier:
            models = ", ".join(list(self.in_no_tier)[:5]) + (", ..." if len(self.in_no_tier) > 5 else "")
            parts.append(f"{sum(self.in_no_tier.values()):,} rows of models in no tier ({models})")
        notes = {"not judged yet": self.unjudged, "truncated": self.unparsed, "repeated, averaged": self.repeated}
        parts += [f"{count:,} rows {what}" for what, count in notes.items() if count]
        parts.append("observed: " + ", ".join(f"{tier} {n:,}" for tier, n in self.observed_per_tier.items()))
        return "; ".join(parts)


@dataclass(frozen=True)
class OutcomeTable:
    """One row per prompt, one column per tier.

    prompt_ids: first 16 hexadecimal digits of the SHA-256 of each prompt, ascending.
    groups: prompts of one group stay on one side of a split. segments: `dataset` of the log, or "".
    correct, input_tokens, output_tokens, cost_usd: float64, shape (n_prompts, n_tiers);
        NaN where not observed. cost_usd is the attempt's own cost, else its tokens x price.
    """

    tiers: tuple[str, ...]
    prompts: list[str] = field(repr=False)
    prompt_ids: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    segments: np.ndarray = field(repr=False)
    correct: np.ndarray = field(repr=False)
    input_tokens: np.ndarray = field(repr=False)
    output_tokens: np.ndarray = field(repr=False)
    cost_usd: np.ndarray = field(repr=False)
    first_timestamp: datetime | None
    last_timestamp: datetime | None
    summary: IngestSummary

    @property
    def n_prompts(self) -> int:
        """Number of rows."""
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 of prompts, tiers and outcomes."""
        content = hashlib.sha256(json.dumps([self.tiers, self.prompt_ids.tolist()]).encode())
        for cells in (self.correct, self.output_tokens, self.cost_usd):
            content.update(np.ascontiguousarray(cells, dtype=np.float32).tobytes())
        return content.hexdigest()

    def rows(self, index: np.ndarray) -> OutcomeTable:
        """The same table with only these prompts (integers or a mask)."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else index
        picked = {
            name: getattr(self, name)[index]
            for name in ("prompt_ids", "groups", "segments", "correct", "input_tokens", "output_tokens", "cost_usd")
        }
        return OutcomeTable(
            tiers=self.tiers,
            prompts=[self.prompts[i] for i in index],
            first_timestamp=self.first_timestamp,
            last_timestamp=self.last_timestamp,
            summary=self.summary,
            **picked,
        )


def ingest(
    logs: LogSource | Sequence[LogSource],
    tiers: Sequence[Tier],
    *,
    quarantine: Path | None = None,
    drop_unparsed: bool = False,
    memory_limit: str = "4GB",
) -> OutcomeTable:
    """Read logs (files, folders, globs, DataFrames; Parquet, JSONL, CSV) into one table.

    quarantine: a Parquet file to write broken rows to, each with its source and reason; not written
        where no row is broken.
    drop_unparsed: treat the outcome of a truncated generation (`parsed` = false) as unobserved.
    memory_limit: of DuckDB; what goes beyond it is spilled to disk.

    Raises LogError where nothing can be read, or where no prompt has outcomes in two tiers.
    """
    sources = [logs] if isinstance(logs, str | Path | pd.DataFrame) else list(logs)
    with _database(memory_limit) as db:
        for number, source in enumerate(_sources(sources)):
            _append(db, source, number)
        _write_quarantine(db, quarantine)
        _to_cells(db, tiers, drop_unparsed)
        table = _pivot(db, tuple(tier.name for tier in tiers))
    _refuse_single_tier_log(table)
    return table


@contextmanager
def _database(memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty table `raw` in a database on disk, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="token-broker-") as folder:
        db = duckdb.connect(str(Path(folder) / "log.duckdb"))
        try:
            db.execute(f"SET memory_limit = '{memory_limit}'")
            db.execute("SET preserve_insertion_order = false")
            db.execute("SET enable_progress_bar = false")
            db.create_function("chat_text", _chat_text, ["VARCHAR"], "VARCHAR")
            columns = ", ".join(f"{name} VARCHAR" for name in (*_COLUMNS, "source", "reason", "content"))
            db.execute(f"CREATE TABLE raw ({columns})")
            yield db
        finally:
            db.close()


def _chat_text(messages: str) -> str | None:
    """Text of a chat stored as JSON; None where it is not one."""
    try:
        return chat_text(json.loads(messages))
    except (ValueError, PromptError):
        return None


def _sources(logs: Sequence[LogSource]) -> Iterator[Path | pd.DataFrame]:
    """DataFrames as they are, all else as files; raises LogError where a path leads to no log."""
    for log in logs:
        if isinstance(log, pd.DataFrame):
            yield log
        else:
            yield from _files(str(log))


def _files(source: str) -> list[Path]:
    """The log files of a file, a folder or a glob; a `prompts.parquet` holds prompts, not outcomes."""
    path = Path(source)
    if path.is_dir():
        found = [item for item in path.rglob("*") if item.is_file()]
    elif path.exists():
        found = [path]
    else:
        found = [Path(name) for name in glob.glob(source, recursive=True) if Path(name).is_file()]
    files = sorted(item for item in found if _suffix(item) in _FORMATS and item.name != _PROMPTS_FILE)
    if not files:
        raise LogError(f"{source}: found no log; expected a file, folder or glob of .parquet, .jsonl or .csv")
    return files


def _suffix(path: Path) -> str:
    """The suffix that tells the format, `.gz` and `.zst` aside."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".zst")]
    return suffixes[-1] if suffixes else ""


def _append(db: duckdb.DuckDBPyConnection, source: Path | pd.DataFrame, number: int) -> None:
    """Add a source's rows to table `raw`, as text; what cannot be used carries the reason and its content."""
    place = f"DataFrame {number + 1}" if isinstance(source, pd.DataFrame) else str(source)
    rejects = f"rejects_{number}"
    try:
        relation = _relation(db, source, rejects, number)
        described = {name: kind for name, kind, *_ in db.execute(f"DESCRIBE {relation}").fetchall()}
        is_json = _JSON_LINE in described
        fields = ", ".join(f"{_field(name, described, is_json)} AS {name}" for name in _COLUMNS)
        joined, clause = _joined_prompts(source)
        db.execute(f"""
            INSERT INTO raw BY NAME
            WITH r AS ({relation}),
            f AS (SELECT {fields}, {_JSON_LINE if is_json else "to_json(r)::VARCHAR"} AS content,
                         {_NOT_AN_OBJECT if is_json else "false"} AS not_an_object FROM r),
            g AS (SELECT f.* REPLACE ({joined}) FROM f {clause}),
            h AS (SELECT * REPLACE (coalesce(prompt, chat_text(messages)) AS prompt) FROM g),
            i AS (SELECT * EXCLUDE (content, not_an_object), content, {_REASON} AS reason FROM h)
            SELECT * EXCLUDE (messages) REPLACE (CASE WHEN reason IS NOT NULL THEN content END AS content),
                   {_quoted(place)} AS source
            FROM i
        """)
        if not isinstance(source, pd.DataFrame) and _FORMATS[_suffix(source)] != "parquet":
            db.execute(f"""
                INSERT INTO raw BY NAME
                SELECT {_quoted(place)} AS source, csv_line AS content,
                       'line cannot be read: ' || lower(error_type::VARCHAR) AS reason FROM {rejects}
            """)
    except duckdb.Error as error:
        reason = f"file cannot be read: {str(error).splitlines()[0]}"
        db.execute("INSERT INTO raw BY NAME SELECT ? AS source, ? AS reason", [place, reason])


_JSON_LINE = "json_line"
_NOT_AN_OBJECT = f"NOT json_valid({_JSON_LINE}) OR json_type({_JSON_LINE}) <> 'OBJECT'"


def _relation(db: duckdb.DuckDBPyConnection, source: Path | pd.DataFrame, rejects: str, number: int) -> str:
    """A SELECT of all rows of one source, in its own columns."""
    if isinstance(source, pd.DataFrame):
        name = f"frame_{number}"
        db.register(name, pa.Table.from_pandas(source, preserve_index=False))
        return f"SELECT * FROM {name}"
    path = _quoted(str(source))
    if _FORMATS[_suffix(source)] == "parquet":
        return f"SELECT * FROM read_parquet({path})"
    tolerant = (
        f"store_rejects = true, rejects_table = '{rejects}', rejects_scan = '{rejects}_scan', "
        f"null_padding = true, max_line_size = {_MAX_LINE_BYTES}"
    )
    if _FORMATS[_suffix(source)] == "csv":
        return (
            f"SELECT * FROM read_csv({path}, header = true, all_varchar = true, delim = ',', quote = '\"', {tolerant})"
        )
    return (
        f"SELECT * FROM read_csv({path}, columns = {{'{_JSON_LINE}': 'VARCHAR'}}, header = false, "
        f"delim = '\x02', quote = '', escape = '', auto_detect = false, {tolerant}) WHERE trim({_JSON_LINE}) <> ''"
    )


def _field(name: str, described: dict[str, str], is_json: bool) -> str:
    """SQL for one column of the log format as text; NULL where the source does not have it."""
    if is_json:
        document = f"CASE WHEN NOT ({_NOT_AN_OBJECT}) THEN {_JSON_LINE} END"
        if name == "messages":
            return f"json_extract({document}, '$.messages')::VARCHAR"
        return f"json_extract_string({document}, '$.{name}')"
    if name not in described:
        return "NULL::VARCHAR"
    if name == "messages" and described[name] != "VARCHAR":
        return f"to_json({name})::VARCHAR"
    return f"{name}::VARCHAR"


def _joined_prompts(source: Path | pd.DataFrame) -> tuple[str, str]:
    """(REPLACE list, JOIN clause) that fill in what `prompts.parquet` beside the log knows of a prompt."""
    beside = None if isinstance(source, pd.DataFrame) else source.with_name(_PROMPTS_FILE)
    if beside is None or not beside.exists():
        return "f.prompt AS prompt", ""
    known = duckdb.read_parquet(str(beside)).columns
    shared = [name for name in ("prompt", "question_key", "dataset") if name in known]
    replaced = ", ".join(f"coalesce(f.{name}, p.{name}::VARCHAR) AS {name}" for name in shared)
    picked = ", ".join(f"any_value({name}) AS {name}" for name in shared)
    one_each = f"SELECT prompt_id::VARCHAR AS prompt_id, {picked} FROM read_parquet({_quoted(str(beside))}) GROUP BY 1"
    return replaced, f"LEFT JOIN ({one_each}) p ON f.prompt_id = p.prompt_id"


def _number(name: str) -> str:
    """SQL for a column as a number; NULL where it is empty or not a number."""
    return f"CASE WHEN isfinite(TRY_CAST({name} AS DOUBLE)) THEN TRY_CAST({name} AS DOUBLE) END"


def _is_given(name: str) -> str:
    """SQL: the column holds something; NaN, as pandas writes a missing number, is nothing."""
    return f"coalesce(lower({name}) NOT IN ('', 'nan', 'none', 'null'), false)"


_CORRECT = f"CASE lower(correct) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 ELSE {_number('correct')} END"
_TIMESTAMP = f"coalesce(TRY_CAST(timestamp AS TIMESTAMPTZ), to_timestamp({_number('timestamp')}))"
_REASON = f"""
    CASE
        WHEN not_an_object THEN 'not a JSON object'
        WHEN NOT {_is_given("model")} THEN 'no model'
        WHEN prompt IS NULL AND messages IS NOT NULL THEN 'messages is not a chat'
        WHEN prompt IS NULL AND prompt_id IS NOT NULL THEN 'no prompt, and prompt_id is not in a {_PROMPTS_FILE} beside'
        WHEN coalesce(prompt, '') = '' THEN 'no prompt'
        WHEN {_is_given("correct")} AND coalesce(NOT ({_CORRECT}) BETWEEN 0 AND 1, true)
            THEN 'correct is not true, false or a number in 0..1'
        {
    " ".join(
        f"WHEN {_is_given(name)} AND coalesce({_number(name)} < 0, true) THEN '{name} is not a number of at least 0'"
        for name in ("input_tokens", "output_tokens", "cost_usd", "latency_ms")
    )
}
        WHEN {_is_given("propensity")} AND coalesce(NOT ({_number("propensity")} > 0 AND {
    _number("propensity")
} <= 1), true)
            THEN 'propensity is not a number above 0 and at most 1'
        WHEN {_is_given("timestamp")} AND {_TIMESTAMP} IS NULL THEN 'timestamp is not a point in time'
        WHEN {_is_given("parsed")} AND TRY_CAST(parsed AS BOOLEAN) IS NULL THEN 'parsed is not true or false'
    END
"""


def _write_quarantine(db: duckdb.DuckDBPyConnection, quarantine: Path | None) -> None:
    """Write broken rows; raises LogError where no row is left."""
    [(n_rows, n_good)] = _rows(db, "SELECT count(*), count(*) FILTER (reason IS NULL) FROM raw")
    if quarantine is not None and n_rows > n_good:
        quarantine.parent.mkdir(parents=True, exist_ok=True)
        db.execute(
            "COPY (SELECT source, reason, content FROM raw WHERE reason IS NOT NULL ORDER BY ALL) "
            f"TO {_quoted(str(quarantine))} (FORMAT parquet, COMPRESSION zstd)"
        )
    if n_good == 0:
        reasons = _rows(db, "SELECT DISTINCT source || ': ' || reason FROM raw ORDER BY 1 LIMIT 3")
        found = "; ".join(reason for (reason,) in reasons) or "no row at all"
        raise LogError(f"the log has no usable row (found {found}); each row needs a prompt, a model and `correct`")


def _to_cells(db: duckdb.DuckDBPyConnection, tiers: Sequence[Tier], drop_unparsed: bool) -> None:
    """From rows to `prompts` and `cells` (prompt, tier): repeats averaged first, then models of a tier."""
    db.execute("CREATE TABLE offers (model VARCHAR, provider VARCHAR, tier INTEGER, usd_in DOUBLE, usd_out DOUBLE)")
    db.executemany(
        "INSERT INTO offers VALUES (?, ?, ?, ?, ?)",
        [
            (name, offer.provider, index, offer.usd_per_mtok_input, offer.usd_per_mtok_output)
            for index, tier in enumerate(tiers)
            for offer in tier.offers
            for name in log_names(offer)
        ],
    )
    correct = (
        f"CASE WHEN {drop_unparsed} AND NOT coalesce(TRY_CAST(parsed AS BOOLEAN), true) THEN NULL ELSE {_CORRECT} END"
    )
    db.execute(f"""
        CREATE TABLE attempts AS
        WITH named AS (SELECT model, min(tier) AS tier, avg(usd_in) AS usd_in, avg(usd_out) AS usd_out FROM offers GROUP BY 1),
        priced AS (SELECT model, provider, avg(usd_in) AS usd_in, avg(usd_out) AS usd_out FROM offers GROUP BY 1, 2)
        SELECT sha256(raw.prompt)[:16] AS prompt_id, raw.prompt, raw.question_key, raw.dataset, raw.model, named.tier,
               {correct} AS correct, {_number("input_tokens")} AS input_tokens, {_number("output_tokens")} AS output_tokens,
               coalesce({_number("cost_usd")},
                        ({_number("input_tokens")} * coalesce(priced.usd_in, named.usd_in)
                         + {_number("output_tokens")} * coalesce(priced.usd_out, named.usd_out)) / 1e6) AS cost_usd,
               TRY_CAST(parsed AS BOOLEAN) = false AS is_unparsed,
               NOT {_is_given("correct")} AS is_unjudged,
               {_TIMESTAMP} AS timestamp
        FROM raw LEFT JOIN named ON raw.model = named.model
                 LEFT JOIN priced ON raw.model = priced.model AND raw.provider = priced.provider
        WHERE reason IS NULL
    """)
    db.execute(r"""
        CREATE TABLE prompts AS
        SELECT prompt_id, min(prompt) AS prompt, coalesce(min(dataset), '') AS segment,
               coalesce(min(question_key), sha256(coalesce(nullif(lower(regexp_replace(min(prompt), '[^\p{L}\p{N}]', '', 'g')), ''), min(prompt)))[:16]) AS question_group,
               row_number() OVER (ORDER BY prompt_id) - 1 AS row
        FROM attempts WHERE tier IS NOT NULL GROUP BY prompt_id
    """)
    db.execute("""
        CREATE TABLE cells AS
        WITH per_model AS (
            SELECT prompt_id, tier, model, avg(correct) AS correct, avg(input_tokens) AS input_tokens,
                   avg(output_tokens) AS output_tokens, avg(cost_usd) AS cost_usd
            FROM attempts WHERE tier IS NOT NULL GROUP BY 1, 2, 3)
        SELECT row, tier, avg(correct) AS correct, avg(input_tokens) AS input_tokens,
               avg(output_tokens) AS output_tokens, avg(cost_usd) AS cost_usd
        FROM per_model JOIN prompts USING (prompt_id) GROUP BY 1, 2
    """)


def _pivot(db: duckdb.DuckDBPyConnection, tiers: tuple[str, ...]) -> OutcomeTable:
    prompts = db.sql("SELECT prompt_id, prompt, segment, question_group FROM prompts ORDER BY row").to_arrow_table()
    cells = db.execute("SELECT * FROM cells").fetchnumpy()
    arrays = {}
    for name in ("correct", "input_tokens", "output_tokens", "cost_usd"):
        arrays[name] = np.full((prompts.num_rows, len(tiers)), np.nan)
        arrays[name][cells["row"], cells["tier"]] = np.ma.filled(cells[name], np.nan)
    [(first, last)] = _rows(db, "SELECT min(timestamp)::TIMESTAMP, max(timestamp)::TIMESTAMP FROM attempts")
    return OutcomeTable(
        tiers=tiers,
        prompts=prompts["prompt"].to_pylist(),
        prompt_ids=np.array(prompts["prompt_id"].to_pylist(), dtype=np.str_),
        groups=np.array(prompts["question_group"].to_pylist(), dtype=np.str_),
        segments=np.array(prompts["segment"].to_pylist(), dtype=np.str_),
        first_timestamp=first,
        last_timestamp=last,
        summary=_summary(db, tiers, arrays["correct"]),
        **arrays,
    )


def _summary(db: duckdb.DuckDBPyConnection, tiers: tuple[str, ...], correct: np.ndarray) -> IngestSummary:
    [(n_rows, n_good)] = _rows(db, "SELECT count(*), count(*) FILTER (reason IS NULL) FROM raw")
    [(n_used, n_unjudged, n_unparsed, n_distinct)] = _rows(
        db,
        "SELECT count(*), count(*) FILTER (is_unjudged), count(*) FILTER (is_unparsed AND correct IS NULL), "
        "count(DISTINCT (prompt_id, model)) FROM attempts WHERE tier IS NOT NULL",
    )
    quarantined = _rows(db, "SELECT reason, count(*) FROM raw WHERE reason IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1")
    in_no_tier = _rows(db, "SELECT model, count(*) FROM attempts WHERE tier IS NULL GROUP BY 1 ORDER BY 2 DESC, 1")
    return IngestSummary(
        n_rows=n_rows,
        n_used=n_used,
        n_prompts=len(correct),
        quarantined=dict(quarantined),
        in_no_tier=dict(in_no_tier),
        unjudged=n_unjudged,
        unparsed=n_unparsed,
        repeated=n_used - n_distinct,
        observed_per_tier={tier: int(n) for tier, n in zip(tiers, np.isfinite(correct).sum(0), strict=True)},
    )


def _refuse_single_tier_log(table: OutcomeTable) -> None:
    observed = np.isfinite(table.correct).sum(axis=1)
    if not (observed >= 2).any():
        raise LogError(
            f"no prompt has outcomes in two tiers (found: {table.summary}); routing is learned from the difference "
            "between tiers, so ask at least some prompts of two tiers, or check that tiers.toml names the log's models"
        )


def _rows(db: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return db.execute(query).fetchall()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
