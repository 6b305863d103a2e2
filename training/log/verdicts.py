"""SQL that reads what checks said of the answer of a row: a list with an entry for each check of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from training.log.columns import CHECK_COLUMN, RESERVED_CHECK, ColumnMap, check_of, quoted
from training.log.values import AMOUNT, LABEL, is_no_amount, is_no_label, label, number

_WRITTEN = "STRUCT(name VARCHAR, score VARCHAR, usd VARCHAR)[]"
"""Verdicts as the log has them, all of it text. name: the NAME of `check_NAME`; score, usd: NULL where missing."""

VERDICTS_TYPE = "STRUCT(name VARCHAR, score DOUBLE, usd DOUBLE)[]"
"""Verdicts of a usable row, ordered by name. score: 0..1. usd: what the check cost, 0 where the log does not say."""


def verdicts_of_table(columns: Iterable[str], maps: Mapping[str, ColumnMap], field: Callable[[str], str]) -> str:
    """SQL for the verdicts of a table's row, as the log has them.

    columns: of the table. maps: by target. field: SQL for a column of the log format as text.
    """
    names = {check_of(column): None for column in (*columns, *maps)}
    entries = ", ".join(
        f"{{'name': {quoted(name)}, 'score': {field(f'check_{name}')}, 'usd': {field(f'check_{name}_usd')}}}"
        for name in names
        if name not in (None, RESERVED_CHECK)
    )
    return f"[{entries}]::{_WRITTEN}" if entries else f"NULL::{_WRITTEN}"


def verdicts_of_line(maps: Mapping[str, ColumnMap], value: Callable[[ColumnMap], str]) -> str:
    """SQL for the verdicts of `line`, a JSON object as text, as the log has them. Each line may have other checks.

    maps: by target. value: SQL for the column that a map makes, as text.
    """
    made = {column: value(made) for column, made in maps.items() if check_of(column)}
    mapped = "".join(f" WHEN {quoted(column)} THEN {sql}" for column, sql in made.items())

    def text(column: str) -> str:
        own = f"line ->> ('/' || {column})"
        return f"CASE {column}{mapped} ELSE {own} END" if mapped else own

    names = f"""
        list_filter(
            list_transform(
                list_filter(json_keys(line), lambda key: regexp_full_match(key, '{CHECK_COLUMN}')),
                lambda key: regexp_extract(key, '^check_(.+?)(_usd)?$', 1)),
            lambda name: NOT ends_with(name, '_usd') AND name <> '{RESERVED_CHECK}')
    """
    if made:
        names = f"list_concat({names}, [{', '.join(quoted(str(check_of(column))) for column in made)}])"
    score, usd = text("('check_' || name)"), text("('check_' || name || '_usd')")
    found = f"list_transform(list_distinct({names}), lambda name: {{'name': name, 'score': {score}, 'usd': {usd}}})"
    has_checks = "true" if made else "contains(line, '\"check_')"
    return f"CASE WHEN {has_checks} THEN {found} END"


def _first(is_so: str) -> str:
    """SQL for the column of the first check of a row whose verdict is so; NULL where none is."""
    return f"'check_' || list_sort(list_filter(verdicts, lambda verdict: {is_so}))[1].name"


BROKEN_VERDICT = f"""
    CASE WHEN verdicts IS NOT NULL THEN coalesce(
        {_first(is_no_label("trim(verdict.score)"))} || ' is not {LABEL}',
        {_first(is_no_amount("trim(verdict.usd)"))} || '_usd is not {AMOUNT}') END
"""
"""SQL for what is wrong with the verdicts of a row; NULL where nothing is."""

VERDICTS = f"""
    CASE WHEN verdicts IS NOT NULL THEN nullif(list_sort(list_filter(
        list_transform(verdicts, lambda verdict: {{
            'name': verdict.name, 'score': {label("trim(verdict.score)")},
            'usd': coalesce({number("trim(verdict.usd)")}, 0)}}),
        lambda verdict: verdict.score IS NOT NULL)), []) END
"""
"""SQL for the verdicts of a row as numbers; NULL where no check said anything."""
