"""policy.toml: what an operator writes about requests and clients. docs/policy.md explains the format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from router.clients import DEFAULT_RIGHTS, ClientRights, Clients, Range
from router.errors import PolicyError, TierError
from router.files import read_bounded
from router.policy import Policy
from router.portfolio.fields import first_of, number_of, refuse_unknown, shown, table_of, text_of, texts_of
from router.portfolio.tiers import load_toml
from router.restrictions import Restrictions

MOST_BYTES = 2**20
"""No policy.toml is larger."""

_RULES = {"regions", "providers", "tiers", "critical", "max_usd", "exploration"}
_RIGHTS = {"classes", "default_class", "may_set", "other_models"}
_DIALS = {"quality", "worth_usd", "critical", "check"}
_TABLES = {"classes", "keys", "teams", "others"}
_CLASS_NAME = re.compile(r"[\w.-]+", re.ASCII)
_MOST_WORTH_USD = 1e12

T = TypeVar("T")


def read_policy(path: str | Path, base: Policy | None = None) -> Policy:
    """The policy of a file.

    base: its rules, classes and clients are those of the file; all else stays.
    Raises PolicyError, which names all that is wrong, one line for each.
    """
    try:
        text = read_bounded(Path(path), MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read ({error.strerror}); expected a policy.toml") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path}: byte {error.start} is not UTF-8; save the file with the encoding UTF-8") from error
    return parse_policy(text, str(path), base)


def parse_policy(text: str, source: str = "policy.toml", base: Policy | None = None) -> Policy:
    """The policy of a text in the format of policy.toml; arguments and errors are those of `read_policy`."""
    try:
        document = load_toml(text)
    except ValueError as error:
        raise PolicyError(f"{source}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise PolicyError(f"{source}: lists or tables are nested too deep") from error
    return _Reader(source).policy(document, base or Policy())


class _Reader:
    """Reads one document, and collects what is wrong with it.

    source: the file, for errors. Clients read the names of entries: they have the file's name without its folder.
    """

    def __init__(self, source: str) -> None:
        self._source, self._name = source, Path(source).name
        self._trouble: list[str] = []

    def policy(self, document: Mapping[str, Any], base: Policy) -> Policy:
        """The policy; raises PolicyError where something is wrong."""
        source = self._source
        self._take(None, refuse_unknown, document, _RULES | _TABLES, source)
        every_request = self._restrictions(document, source)
        of_classes = self._tables(document, "classes")
        classes = {name: self._class(name, entry) for name, entry in of_classes.items()}
        clients = self._clients(document, tuple(classes))
        if self._trouble:
            raise PolicyError("\n".join(self._trouble))
        return replace(base, every_request=every_request, classes=classes, clients=clients)

    def _class(self, name: str, entry: Any) -> Restrictions:
        place = f"{self._source} [classes.{name}]"
        if not _CLASS_NAME.fullmatch(name):
            self._trouble.append(f"{place}: a class has a name of letters, digits, points, - and _")
        table: Mapping[str, Any] = self._take({}, table_of, entry, place)
        self._take(None, refuse_unknown, table, _RULES, place)
        return self._restrictions(table, place) or Restrictions(name=self._public(place))

    def _clients(self, document: Mapping[str, Any], classes: tuple[str, ...]) -> Clients:
        keys, teams = self._tables(document, "keys"), self._tables(document, "teams")
        others: ClientRights | None = None
        if "others" in document:
            others = self._rights(document["others"], f"{self._source} [others]", classes)
        elif not keys and not teams:  # The file says nothing of clients.
            others = replace(DEFAULT_RIGHTS, name=self._name, other_models=False)
        return Clients(
            keys={name: self._named(entry, "keys", name, classes) for name, entry in keys.items()},
            teams={name: self._named(entry, "teams", name, classes) for name, entry in teams.items()},
            others=others,
            source=self._name,
        )

    def _named(self, entry: Any, kind: str, name: str, classes: tuple[str, ...]) -> ClientRights:
        place = f"{self._source} [{kind}.{name}]"
        if not name:
            self._trouble.append(f"{place}: the name is empty; expected that of a {kind[:-1]}")
        return self._rights(entry, place, classes)

    def _rights(self, entry: Any, place: str, known: tuple[str, ...]) -> ClientRights:
        table: Mapping[str, Any] = self._take({}, table_of, entry, place)
        self._take(None, refuse_unknown, table, _RULES | _RIGHTS, place)
        classes = self._take((), texts_of, table, "classes", place)
        default = self._take(None, text_of, table, "default_class", place) if "default_class" in table else None
        if known and not classes:
            self._trouble.append(f"{place}: classes is missing or empty; expected any of {', '.join(known)}")
        if unknown := [name for name in (*classes, *([default] if default else [])) if name not in known]:
            self._trouble.append(f"{place}: found no class {first_of(unknown)}; expected any of {', '.join(known)}")
        elif default is not None and default not in classes:
            self._trouble.append(f"{place}: default_class is {default}; expected one of its classes")
        may_set: Mapping[str, Any] = self._take({}, table_of, table.get("may_set", {}), f"{place}: may_set")
        self._take(None, refuse_unknown, may_set, _DIALS, f"{place}: may_set")
        return ClientRights(
            name=self._public(place),
            classes=classes,
            default_class=classes[0] if default is None and len(classes) == 1 else default,
            quality=self._take(None, _range, may_set, "quality", f"{place}: may_set", 1.0),
            worth_usd=self._take(None, _range, may_set, "worth_usd", f"{place}: may_set", _MOST_WORTH_USD),
            critical=self._take(False, _flag, may_set, "critical", f"{place}: may_set", False),
            checks=self._take(frozenset(), _checks, may_set, f"{place}: may_set"),
            other_models=self._take(False, _flag, table, "other_models", place, False),
            restrictions=self._restrictions(table, place),
        )

    def _restrictions(self, table: Mapping[str, Any], place: str) -> Restrictions | None:
        """The rules of an entry; None where it has none."""
        if not _RULES & set(table):
            return None
        names = {key: self._take(None, _names, table, key, place) for key in ("regions", "providers", "tiers")}
        return Restrictions(
            **names,
            critical=self._take(False, _flag, table, "critical", place, False),
            max_usd=self._take(None, _max_usd, table, place),
            exploration=self._take(True, _flag, table, "exploration", place, True),
            name=self._public(place),
        )

    def _public(self, place: str) -> str:
        return self._name + place.removeprefix(self._source)

    def _tables(self, document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._take({}, table_of, document.get(key, {}), f"{self._source}: {key}")
        return found

    def _take(self, otherwise: Any, read: Callable[..., T], *arguments: Any) -> Any:
        """What `read` gives; where it finds something wrong, that is noted, and `otherwise` stands in."""
        try:
            return read(*arguments)
        except TierError as error:
            self._trouble.append(str(error))
            return otherwise


def _names(table: Mapping[str, Any], key: str, place: str) -> tuple[str, ...] | None:
    if key not in table:
        return None
    names = texts_of(table, key, place)
    if not names or "" in names:
        raise TierError(f"{place}: {key} is {shown(table[key])}; expected at least one name, and no empty one")
    return names


def _flag(table: Mapping[str, Any], key: str, place: str, otherwise: bool) -> bool:
    value = table.get(key, otherwise)
    if not isinstance(value, bool):
        raise TierError(f"{place}: {key} is {shown(value)}; expected true or false")
    return value


def _max_usd(table: Mapping[str, Any], place: str) -> float | None:
    return number_of(table, "max_usd", place, above=0, most=_MOST_WORTH_USD) if "max_usd" in table else None


def _range(table: Mapping[str, Any], key: str, place: str, most: float) -> Range | None:
    """[least, largest] of a dial, or true for all that the dial can be; None where the key is missing or false."""
    value = table.get(key, False)
    if isinstance(value, bool):
        return (0.0, most) if value else None
    if not isinstance(value, list) or len(value) != 2:
        raise TierError(f"{place}: {key} is {shown(value)}; expected [least, largest], true or false")
    low, high = (number_of({key: each}, key, place, most=most) for each in value)
    if low > high or (key == "quality" and high == 0):
        largest = ", the largest above 0" if key == "quality" else ""
        raise TierError(f"{place}: {key} is {shown(value)}; expected [least, largest] in this order{largest}")
    return low, high


def _checks(table: Mapping[str, Any], place: str) -> frozenset[str] | None:
    """The checks that a client may ask for: a list, or true for all (None)."""
    value = table.get("check", False)
    if isinstance(value, bool):
        return None if value else frozenset()
    return frozenset(texts_of(table, "check", place))
