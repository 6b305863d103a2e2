"""The columns of the log format, the names that come near them, and columns that are made from others (`--map`)."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import MapError

COLUMNS = (
    "prompt", "messages", "prompt_id", "model", "correct", "request_id", "provider", "dataset", "input_tokens",
    "output_tokens", "cost_usd", "latency_ms", "timestamp", "propensity", "question_key", "parsed",
    "usd_per_mtok_input", "usd_per_mtok_output", "cache_hit", "tokens_estimated", "answer", "ended",
)  # fmt: skip
"""The columns of the log format that are read, beside those of checks; see data/README.md."""

KNOWN_COLUMNS = (*COLUMNS, "cached_input_tokens", "cache_write_tokens", "reasoning_tokens")
"""All columns of the log format; the last ones are not used yet."""

RESERVED_CHECK = "agreement"
"""No column may have this check's name: it compares the answers of two tiers."""

CHECK_COLUMN = "check_[A-Za-z0-9_]+"
"""A regular expression for the columns of checks: `check_NAME`, and `check_NAME_usd` for what the check cost."""

_NUMBERS = {
    "correct", "input_tokens", "output_tokens", "cost_usd", "latency_ms", "propensity", "usd_per_mtok_input",
    "usd_per_mtok_output",
}  # fmt: skip
_CONDITIONS = {"correct", "parsed"}

_OTHER_NAMES = {
    "prompt": "question query instruction user_prompt prompt_text input input_text",
    "messages": "chat conversation request_messages input_messages",
    "model": "response_model request_model model_name model_id model_group llm llm_model engine deployment",
    "correct": "is_correct correctness score label rating feedback thumb thumbs stars success passed reward grade",
    "provider": "custom_llm_provider llm_provider api_provider vendor",
    "input_tokens": "prompt_tokens tokens_in tokens_input n_input_tokens num_input_tokens input_token_count "
    "prompt_token_count tokens_prompt native_tokens_prompt",
    "output_tokens": "completion_tokens tokens_out tokens_output n_output_tokens num_output_tokens output_token_count "
    "candidates_token_count generated_tokens tokens_completion native_tokens_completion",
    "cached_input_tokens": "cached_tokens cache_read_input_tokens",
    "cache_write_tokens": "cache_creation_input_tokens",
    "cost_usd": "spend cost usd response_cost total_cost calculated_total_cost",
    "latency_ms": "latency duration duration_ms",
    "timestamp": "start_time created created_at request_time date datetime time ts",
    "propensity": "pscore action_probability",
    "answer": "final_answer extracted_answer normalized_answer",
}


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


_MEANT = {_bare(other): name for name, others in _OTHER_NAMES.items() for other in others.split()}
_MEANT |= {_bare(name): name for name in KNOWN_COLUMNS}


def check_of(column: str) -> str | None:
    """The name of the check whose verdict or cost a column has; None where it is no column of a check."""
    name = column.removeprefix("check_").removesuffix("_usd")
    is_check = re.fullmatch(CHECK_COLUMN, column) and name and not name.endswith("_usd")
    return name if is_check else None


def reserved_columns(columns: Iterable[str], maps: Sequence[ColumnMap]) -> list[str]:
    """The columns that have the reserved check's name and are not the source of a map."""
    sources = {made.source for made in maps}
    return [name for name in columns if check_of(name) == RESERVED_CHECK and name not in sources]


@dataclass(frozen=True)
class ColumnMap:
    """How a column of the log format is made from another column of the log.

    source: a column's name; where the log has no column of that name, dots in it lead into nested values:
        `usage.prompt_tokens`, `choices.0.finish_reason`.
    divisor: the source's numbers are divided by it. value: 1 where the source is this text, without regard to case, and
    0 where it is another. Where both are None, the source takes the target's name.
    """

    target: str
    source: str
    divisor: float | None = None
    value: str | None = None

    def sql(self, text: str) -> str:
        """SQL for the target as text. text: SQL for the source as text, NULL where it is missing."""
        if self.divisor is not None:
            return f"coalesce((TRY_CAST({text} AS DOUBLE) / {self.divisor!r})::VARCHAR, {text})"
        if self.value is not None:
            value = quoted(self.value.lower())
            is_equal = f"lower(trim({text})) = {value} OR TRY_CAST({text} AS DOUBLE) = TRY_CAST({value} AS DOUBLE)"
            return f"CASE WHEN NOT {is_given(text)} THEN NULL WHEN {is_equal} THEN '1' ELSE '0' END"
        return text

    @property
    def pointers(self) -> tuple[str, ...]:
        """JSON pointers to the source in an object, as SQL: as one name, and, where it has dots, as a path."""
        return tuple(dict.fromkeys(quoted(path) for path in ("/" + _escaped(self.source), _path(self.source))))

    def within(self, columns: Collection[str]) -> tuple[str, str] | None:
        """The column that holds the source, and the JSON pointer to it in there; None where no column does.

        The longest name that the source begins with is taken. The column itself has the pointer "".
        """
        parts = self.source.split(".")
        for n in range(len(parts), 0, -1):
            if (column := ".".join(parts[:n])) in columns:
                return column, _path(".".join(parts[n:]))
        return None

    def is_in(self, columns: Collection[str]) -> bool:
        """Whether a log may have the source. columns: its own, and the "column.inner" that are known of nested ones."""
        found = self.within(columns)
        return found is not None and (not found[1] or not any(name.startswith(found[0] + ".") for name in columns))


def _escaped(name: str) -> str:
    return name.replace("~", "~0")


def _path(source: str) -> str:
    return "".join(f"/{_escaped(part)}" for part in source.split(".")) if source else ""


_GRAMMAR = re.compile(r"(?P<target>[^=]+)=(?P<source>[^=/:]+)(/(?P<divisor>[^=/:]+)|:(?P<value>.+))?")


def parse_maps(texts: Iterable[str]) -> tuple[ColumnMap, ...]:
    """Column maps from their texts: TARGET=SOURCE, TARGET=SOURCE/NUMBER or TARGET=SOURCE:VALUE.

    A dot is a part of a column's name, or leads into nested values (ColumnMap).
    Raises MapError, also where two maps make the same column.
    """
    maps: list[ColumnMap] = []
    for text in texts:
        made = _parse(text)
        if any(made.target == other.target for other in maps):
            raise MapError(text, f"{made.target} is mapped twice")
        maps.append(made)
    return tuple(maps)


def _parse(text: str) -> ColumnMap:
    parts = _GRAMMAR.fullmatch(text)
    target, source = (parts["target"].strip(), parts["source"].strip()) if parts else ("", "")
    if parts is None or not target or not source:
        raise MapError(text, "it is not COLUMN=SOURCE, COLUMN=SOURCE/NUMBER or COLUMN=SOURCE:VALUE")
    check = check_of(target)
    if check == RESERVED_CHECK:
        raise MapError(text, f"the check {check} is reserved for comparing the answers of two tiers")
    if target not in COLUMNS and check is None:
        raise MapError(text, f"{target} is not a column of the log format ({', '.join(COLUMNS)}, check_NAME)")
    if parts["value"] is not None:
        if target not in _CONDITIONS and target != f"check_{check}":
            raise MapError(text, f"SOURCE:VALUE is for check_NAME, {' and '.join(sorted(_CONDITIONS))} only")
        return ColumnMap(target=target, source=source, value=parts["value"].strip())
    if parts["divisor"] is not None:
        if target not in _NUMBERS and check is None:
            raise MapError(text, f"SOURCE/NUMBER is for columns of numbers, and {target} is none")
        return ColumnMap(target=target, source=source, divisor=_divisor(text, parts["divisor"]))
    return ColumnMap(target=target, source=source)


def _divisor(text: str, written: str) -> float:
    try:
        divisor = float(written)
    except ValueError:
        raise MapError(text, f"{written.strip()!r} is not a number") from None
    if not 0 < divisor < math.inf:
        raise MapError(text, f"{written.strip()} is not a number above 0")
    return divisor


def not_used(columns: Sequence[str], maps: Sequence[ColumnMap]) -> dict[str, str]:
    """Columns of a log that are not used, although their name is near that of a column that it lacks, by name."""
    taken = {*columns, *(made.target for made in maps)}
    sources = {made.source for made in maps}
    found = {}
    for name in columns:
        meant = _MEANT.get(_bare(name.rpartition(".")[2]))
        if meant and meant not in taken and name not in KNOWN_COLUMNS and name not in sources:
            found[name] = meant
    return found


def likely_maps(columns: Iterable[str], targets: Collection[str]) -> dict[str, list[str]]:
    """Columns, also "column.inner", whose name is near that of a column of the log format, by that column.

    targets: the columns of the log format that are looked for.
    """
    found: dict[str, list[str]] = {}
    for name in columns:
        meant = _MEANT.get(_bare(name.rpartition(".")[2]))
        if meant in targets and meant != name:
            found.setdefault(str(meant), []).append(name)
    return {target: found[target] for target in targets if target in found}


def suggested_maps(near_misses: Mapping[str, str], targets: Collection[str] = KNOWN_COLUMNS) -> str:
    """The maps that make columns of the log format of those that `not_used` found, as options; "" where there are none.

    targets: the columns of the log format to speak of.
    """
    sources: dict[str, list[str]] = {}
    for name, meant in near_misses.items():
        sources.setdefault(meant, []).append(name)
    maps = [
        f"--map {target}={sources[target][0]}"
        + (f" (or {', '.join(sources[target][1:])})" if sources[target][1:] else "")
        for target in KNOWN_COLUMNS
        if target in sources and target in targets
    ]
    return ", ".join(maps)


def is_given(text: str) -> str:
    """SQL for whether a text has a value. What pandas and R write for a missing value is none."""
    return f"coalesce(lower({text}) NOT IN ('', 'nan', 'none', 'null', 'nat', 'na', '<na>'), false)"


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def quoted_path(path: Path) -> str:
    """A file to read as a literal of SQL: this file only, though DuckDB takes a path for a glob."""
    return quoted(glob.escape(str(path)))
