"""A log too large for one machine, in parts: what each worker of a cluster does with files, all on shared storage.

    log files ─ read_rows ─► rows by part ─ pivot_part ─► tables ─ draw_sample ─► sample
                                                            └───── prepare_part ─► vectors, labels, folds

A part holds all rows of its prompts (shuffled by the hash of the prompt), so it is pivoted by the same SQL as a whole
log is, and what is summed over parts depends neither on their number nor on who made them. Nothing here knows of Dask.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from router.files import replacing
from router.portfolio.tiers import Tier
from training.encoders.cache import read_encoder
from training.encoders.embed import embed
from training.encoders.encoder import Encoder
from training.fit.cross_fit import N_FOLDS
from training.log.cells import to_cells
from training.log.checked import database
from training.log.columns import ColumnMap, check_of, quoted, quoted_path
from training.log.costs import attempt_costs
from training.log.ingest import broken_rows, incomplete_rows, pivot, write_quarantine
from training.log.labels import UNKNOWN, label_cheapest_correct
from training.log.refusals import (
    found_columns,
    refuse_missing_sources,
    refuse_reserved_columns,
    refuse_unreadable_labels,
    refuse_unusable_log,
)
from training.log.rows import append_log, fetch
from training.log.split import Split, fold_numbers, group_positions
from training.log.table import CELL_MEASURES, CheckCells, IngestSummary, OutcomeTable, is_partial_count

WORKER_MEMORY = "1GB"
"""Of DuckDB, for each task; what goes beyond it is spilled to the worker's disk."""

_MIN_ROW_GROUP, _MAX_ROW_GROUP = 2_048, 100_000
_TEXTS = ("prompt_ids", "groups", "segments")
_PRICES = ("usd_per_mtok_input", "usd_per_mtok_output")
_DIGESTS: int = 2**256


# ---- rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFacts:
    """What a worker found in its log files. columns, not_used: as an IngestSummary has them."""

    n_usable: int
    n_incomplete: int
    columns: tuple[str, ...]
    not_used: dict[str, str]


def read_rows(
    paths: Sequence[Path], rows: Path, broken: Path, n_parts: int, maps: Sequence[ColumnMap] = ()
) -> RowFacts:
    """Check the rows of log files and write them ordered by part, so that a reader of one part skips the others.

    broken: a file for rows that cannot be used, with source, reason and content; not written where there is none.
    Raises LabelError.
    """
    with database(WORKER_MEMORY) as db:
        db.execute("SET threads = 1")
        for number, path in enumerate(paths):
            append_log(db, path, number, maps)
        refuse_unreadable_labels(db)
        [(n_good,)] = fetch(db, "SELECT count(*) FILTER (reason IS NULL) FROM raw")
        row_group = int(np.clip(n_good // n_parts, _MIN_ROW_GROUP, _MAX_ROW_GROUP))
        db.execute(
            "COPY (SELECT * EXCLUDE (file, source, reason, content, label, is_unreadable, is_incomplete), "
            f"prompt_key % {n_parts} AS part FROM raw WHERE reason IS NULL ORDER BY part) TO {quoted(str(rows))} "
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {row_group})"
        )
        write_quarantine(db, broken)
        columns, not_used = found_columns(db, maps)
        n_incomplete = incomplete_rows(db)
    return RowFacts(n_usable=int(n_good), n_incomplete=n_incomplete, columns=columns, not_used=not_used)


def gather_broken(
    broken: Sequence[Path], quarantine: Path | None, found: Sequence[RowFacts], maps: Sequence[ColumnMap]
) -> dict[str, Any]:
    """One quarantine file of all workers' broken rows; returns what an IngestSummary says of the log as a whole.

    Raises LogError where there are no other rows, no log has the source of a map, or a column has the reserved check's
    name.
    """
    columns = tuple(sorted({name for facts in found for name in facts.columns}))
    not_used = dict(sorted({name: meant for facts in found for name, meant in facts.not_used.items()}.items()))
    refuse_missing_sources(columns, not_used, maps)
    refuse_reserved_columns(columns, maps)
    with database() as db:
        if files := ", ".join(quoted_path(path) for path in broken if path.exists()):
            db.execute(f"INSERT INTO raw BY NAME SELECT * FROM read_parquet([{files}])")
        written = write_quarantine(db, quarantine)
        if not any(facts.n_usable for facts in found):
            refuse_unusable_log(db, columns, not_used, maps, quarantine if written else None)
        return {
            "quarantined": broken_rows(db),
            "incomplete": sum(facts.n_incomplete for facts in found),
            "columns": columns,
            "not_used": not_used,
            "quarantine": str(quarantine) if written else None,
        }


# ---- tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartFacts:
    """What is summed over the parts of a log. n_judged: prompts with an outcome; digest: a sum over prompts."""

    summary: IngestSummary
    n_observed: int
    n_judged: int
    n_without_propensity: int
    first_timestamp: datetime | None
    last_timestamp: datetime | None
    digest: int


def pivot_part(
    rows: Sequence[Path], part: int, table: Path, tiers: Sequence[Tier], *, drop_unparsed: bool
) -> PartFacts:
    """Write the table of one part, pivoted as that of a whole log is."""
    with database(WORKER_MEMORY) as db:
        db.execute("SET threads = 1")
        files = ", ".join(quoted_path(path) for path in rows)
        db.execute(f"INSERT INTO raw BY NAME SELECT * EXCLUDE (part) FROM read_parquet([{files}]) WHERE part = {part}")
        to_cells(db, tiers, drop_unparsed)
        found = pivot(db, tuple(tier.name for tier in tiers))
    write_table(found, table)
    observed = np.isfinite(found.correct)
    return PartFacts(
        summary=found.summary,
        n_observed=int(observed.sum()),
        n_judged=int(observed.any(axis=1).sum()),
        n_without_propensity=int((observed & np.isnan(found.propensity)).sum()),
        first_timestamp=found.first_timestamp,
        last_timestamp=found.last_timestamp,
        digest=_digest(found),
    )


def _digest(table: OutcomeTable) -> int:
    """A sum of digests of the prompts' outcomes, the same in whatever order and however divided."""
    always, prices = (
        np.concatenate([getattr(table, name) for name in names], axis=1).astype(np.float32)
        for names in (("correct", "output_tokens", "cost_usd", "propensity"), _PRICES)
    )
    logged = [row.tobytes() if np.isfinite(row).any() else b"" for row in prices]
    answers = [b""] * table.n_prompts
    for column, values in table.answer_columns.items():
        for place in np.flatnonzero((values >= 0).any(axis=1)).tolist():
            answers[place] += column.encode() + values[place].tobytes()
    rows = zip(table.prompt_ids.tolist(), always, logged, answers, strict=True)
    digests = (hashlib.sha256(name.encode() + row.tobytes() + rest + more).digest() for name, row, rest, more in rows)
    return sum(int.from_bytes(digest, "big") for digest in digests) % _DIGESTS


def whole_log(parts: Sequence[PartFacts], gathered: Mapping[str, Any]) -> PartFacts:
    """The facts of all parts together, and of the rows that no part has. gathered: of `gather_broken`."""
    summaries = [part.summary for part in parts]
    is_sparse = is_partial_count(sum(part.n_observed for part in parts), sum(part.n_judged for part in parts))
    n_without = sum(part.n_without_propensity for part in parts)
    timestamps = [part.first_timestamp for part in parts], [part.last_timestamp for part in parts]
    in_no_tier = _added(summary.in_no_tier for summary in summaries)
    return PartFacts(
        summary=IngestSummary(
            n_rows=sum(summary.n_rows for summary in summaries)
            + sum(gathered["quarantined"].values())
            + gathered["incomplete"],
            n_used=sum(summary.n_used for summary in summaries),
            n_prompts=sum(summary.n_prompts for summary in summaries),
            in_no_tier=dict(sorted(in_no_tier.items(), key=lambda entry: (-entry[1], entry[0]))),
            unjudged=sum(summary.unjudged for summary in summaries),
            unparsed=sum(summary.unparsed for summary in summaries),
            repeated=sum(summary.repeated for summary in summaries),
            observed_per_tier=_added(summary.observed_per_tier for summary in summaries),
            answers=sum(summary.answers for summary in summaries),
            checks=dict(sorted(_added(summary.checks for summary in summaries).items())),
            without_propensity=n_without if is_sparse else 0,
            unknown=dict(sorted(_added(summary.unknown for summary in summaries).items())),
            **gathered,
        ),
        n_observed=sum(part.n_observed for part in parts),
        n_judged=sum(part.n_judged for part in parts),
        n_without_propensity=n_without,
        first_timestamp=min((at for at in timestamps[0] if at), default=None),
        last_timestamp=max((at for at in timestamps[1] if at), default=None),
        digest=sum(part.digest for part in parts) % _DIGESTS,
    )


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for more in counts:
        total.update(more)
    return dict(total)


def write_table(table: OutcomeTable, path: Path) -> None:
    """One Parquet file, complete as soon as it has its name."""
    columns: dict[str, pa.Array] = {name: pa.array(getattr(table, name).tolist(), pa.string()) for name in _TEXTS}
    columns["prompts"] = pa.array(table.prompts, pa.large_string())
    columns["asked_at"] = pa.array(table.asked_at)
    for name, values in ({name: getattr(table, name) for name in CELL_MEASURES} | table.answer_columns).items():
        cells = np.ascontiguousarray(values)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(cells.ravel()), len(table.tiers))
    _write(pa.table(columns), path)


def read_tables(paths: Sequence[Path], tiers: tuple[str, ...], facts: PartFacts) -> OutcomeTable:
    """Tables of parts as one, prompts by rising prompt_id; summary and timestamps are those of `facts`."""
    tables = [pq.read_table(path) for path in paths]
    checks = sorted({check for table in tables for column in table.column_names if (check := check_of(column))})
    found = pa.concat_tables([table.select([*_TEXTS, "prompts", "asked_at", *CELL_MEASURES]) for table in tables])
    texts = {name: np.array(found[name].to_pylist(), dtype=np.str_) for name in _TEXTS}
    order = np.argsort(texts["prompt_ids"])
    unseen = np.full(len(tiers), np.nan)

    def cells(name: str, missing: np.ndarray) -> np.ndarray:
        """Of a column that only some parts have. missing: what a prompt of the other parts has, (n_tiers,)."""
        parts = [
            _rectangle(table[name]) if name in table.column_names else np.tile(missing, (table.num_rows, 1))
            for table in tables
        ]
        return np.asarray(np.concatenate(parts)[order])

    columns: dict[str, Any] = {name: text[order] for name, text in texts.items()}
    columns |= {name: _rectangle(found[name])[order] for name in CELL_MEASURES}
    columns["asked_at"] = found["asked_at"].to_numpy()[order]
    prompts = found["prompts"].to_pylist()
    return OutcomeTable(
        tiers=tiers,
        prompts=[prompts[row] for row in order],
        first_timestamp=facts.first_timestamp,
        last_timestamp=facts.last_timestamp,
        summary=facts.summary,
        answer_number=cells("answer", np.full(len(tiers), -1, np.int16)),
        checks={
            name: CheckCells(score=cells(f"check_{name}", unseen), cost_usd=cells(f"check_{name}_usd", unseen))
            for name in checks
        },
        **columns,
    )


def draw_sample(table: Path, sample: Path, share: float, seed: int) -> None:
    """Write about `share` of a table's prompts to another; groups stay whole, and it is the same share of any part."""
    found = pq.read_table(table)
    groups = np.array(found["groups"].to_pylist(), dtype=np.str_)
    # Another position than those that part training from test and fold from fold (see training.log.split).
    _write(found.filter(pa.array(group_positions(groups, seed + 2) < share)), sample)


# ---- what the classifier is fitted on --------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A part's labelled training prompts on disk. n_training: training prompts, the unlabelled ones too.

    n_rows: by label and fold.
    """

    path: Path
    n_training: int
    n_dims: int
    n_rows: dict[tuple[int, int], int]

    def n_without(self, left_out: int | None) -> int:
        """How many prompts are not in a fold."""
        return sum(n for (_, fold), n in self.n_rows.items() if fold != left_out)


def prepare_part(
    table: Path, prepared: Path, encoder: Path, tiers: Sequence[Tier], mean_output_tokens: np.ndarray, split: Split
) -> Prepared:
    """Embed and label the training prompts of one part, and write vectors, labels and folds.

    encoder: a folder that cache.write_encoder wrote. mean_output_tokens: as for attempt_costs.
    """
    none = PartFacts(IngestSummary(0, 0, 0, {}, {}, 0, 0, 0, {}), 0, 0, 0, None, None, 0)
    log = read_tables([table], tuple(tier.name for tier in tiers), none)
    known = log.rows(~split.in_test(log.groups) & np.isfinite(log.correct).any(axis=1))
    costs = attempt_costs(known, tiers, mean_output_tokens)
    label = label_cheapest_correct(known.correct, costs.cost_usd)
    rows = np.flatnonzero(label != UNKNOWN)
    labelled = known.rows(rows)
    if not len(rows):
        return Prepared(prepared, known.n_prompts, 0, {})
    vectors = embed(_encoder_at(encoder), labelled.prompts, labelled.prompt_ids).vectors
    folds = fold_numbers(labelled.groups, N_FOLDS, split.seed)
    columns = {
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
        "label": pa.array(label[rows], pa.int32()),
        "fold": pa.array(folds, pa.int32()),
    }
    _write(pa.table(columns), prepared)
    n_rows = Counter(zip(label[rows].tolist(), folds.tolist(), strict=True))
    return Prepared(prepared, known.n_prompts, vectors.shape[1], dict(n_rows))


@lru_cache(maxsize=1)
def _encoder_at(folder: Path) -> Encoder:
    """Read once per process."""
    return read_encoder(folder)[0]


def read_prepared(prepared: Prepared, present: Sequence[int], left_out: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 (n, n_dims), and classes float32 (n,), each label's place in `present`, without a fold."""
    columns = pq.read_table(prepared.path, filters=None if left_out is None else [("fold", "!=", left_out)])
    classes = np.searchsorted(np.asarray(present), columns["label"].to_numpy())
    return _rectangle(columns["vector"]), classes.astype(np.float32)


def _rectangle(column: pa.ChunkedArray) -> np.ndarray:
    """Lists of one length as rows."""
    values = column.combine_chunks()
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False).reshape(-1, values.type.list_size))


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as unfinished:  # A worker that was given up may still write the same file.
        pq.write_table(table, unfinished, compression="zstd")
