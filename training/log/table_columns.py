"""SQL for the values of a table's columns, all of them as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.log.columns import ColumnMap, quoted
from training.log.readers import distinct


@dataclass(frozen=True)
class TableColumns:
    """The columns of a table that DuckDB reads.

    names: as SQL tells them apart. kinds: their types in DuckDB. places: where in these lists a name of the log stands.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    places: dict[str, int]

    @classmethod
    def of(cls, described: Sequence[tuple[str, str]], names: Sequence[str]) -> TableColumns:
        """From what DuckDB says of a table.

        described: (name, type) of its columns. names: as the file has them, which DuckDB may change; DuckDB may also
            add columns at the end.
        """
        originals = [*names, *(name for name, _ in described[len(names) :])]
        found = distinct(originals)
        places = {name: place for place, name in reversed(list(enumerate(found)))}
        places |= {name: place for place, name in reversed(list(enumerate(originals))) if name not in places}
        return cls(names=tuple(found), kinds=tuple(kind for _, kind in described), places=places)

    @property
    def identifiers(self) -> str:
        """All columns, for a list of SQL."""
        return ", ".join(map(_identifier, self.names))

    def text(self, target: str, made: ColumnMap | None) -> str:
        """SQL for a column of the log format as text. made: the map that makes it, or None."""
        if made is None:
            return self._plain(target, target)
        held = made.within(self.places)
        if held is None:
            return "NULL::VARCHAR"
        column, pointer = held
        text = self._inner(column, pointer) if pointer else self._plain(target, column)
        if pointer and target == "prompt":
            text = f"CASE WHEN NOT {self.is_nested(target, made)} THEN {text} END"
        return made.sql(text)

    def is_nested(self, target: str, made: ColumnMap | None) -> str:
        """SQL for whether a list or an object stands where the text of a column should."""
        held = (target, "") if made is None else made.within(self.places)
        if held is None or held[0] not in self.places:
            return "false"
        column, pointer = held
        if pointer:
            text = self._plain("", column)
            kind = f"CASE WHEN json_valid({text}) THEN json_type({text}, {quoted(pointer)}) END"
            return f"coalesce({kind} IN ('ARRAY', 'OBJECT'), false)"
        place = self.places[column]
        return f"{_identifier(self.names[place])} IS NOT NULL" if _is_nested(self.kinds[place]) else "false"

    def _inner(self, column: str, pointer: str) -> str:
        """SQL for a value inside a nested column, or inside a text that is JSON."""
        text = self._plain("", column)
        return f"CASE WHEN json_valid({text}) THEN {text} ->> {quoted(pointer)} END"

    def _plain(self, target: str, column: str) -> str:
        if column not in self.places:
            return "NULL::VARCHAR"
        place = self.places[column]
        return _as_text(target, _identifier(self.names[place]), self.kinds[place])


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "JSON"))


def _as_text(target: str, column: str, kind: str) -> str:
    """SQL for a column of the log format as text. column: the identifier of the column that it is read from."""
    if _is_nested(kind):
        return "NULL::VARCHAR" if target == "prompt" else f"to_json({column})::VARCHAR"
    if kind == "BLOB":
        return f"TRY(decode({column}))"
    if kind in ("FLOAT", "DOUBLE") and target.endswith(("_id", "_key", "answer")):
        # whole numbers, where pandas had missing ones
        return f"regexp_replace({column}::VARCHAR, '\\.0$', '')"
    return f"{column}::VARCHAR"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
