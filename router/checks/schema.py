"""An answer that must be JSON, and may have to fit a JSON schema (extra `checks`).

Schemas may come from clients, so looking at an answer is bounded in time, and nothing is ever downloaded.
"""

from __future__ import annotations

import json
import math
import reprlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from router.checks.normalise import canonical_json
from router.checks.verdict import Verdict
from router.errors import CheckError
from router.extras import install_command

try:
    import regex
    from jsonschema import Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
    from jsonschema.exceptions import SchemaError, ValidationError
    from jsonschema.validators import extend
    from referencing import Registry
    from referencing.exceptions import Unresolvable
except ImportError as error:
    raise ImportError(f"router.checks.schema needs {error.name}: {install_command('checks')}") from error

MOST_CHARACTERS = 1_000_000
DEEPEST = 50
LARGEST_SCHEMA = 100_000
MOST_OBJECTS = 1_000
LONGEST_NUMBER = 300
SECONDS = 1.0

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


class _OutOfTimeError(Exception):
    """The time for one answer is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema:
    """A check: the whole answer is JSON and fits a schema.

    >>> JsonSchema(schema={"type": "object", "required": ["city"]})("Where?", '{"city": "Oslo"}').score
    1.0

    schema: a JSON schema of draft 6 or newer; without `$schema` it is draft 2020-12. `format` is not checked. It has at
        most 100,000 characters as JSON and 1,000 objects, and is nested at most 50 deep.
    seconds: looking at one answer takes no longer.

    Raises CheckError where the schema is no valid schema, or has what cannot be looked at safely: a `$ref` that leaves
    the schema (nothing is downloaded), `patternProperties` (their expressions cannot be stopped), `$schema` inside.
    When called, raises CheckError where the schema refers to itself without end, or the time is over.
    Answers of more than a million characters, or nested more than 50 deep, fail.
    """

    schema: Mapping[str, Any] | bool
    seconds: float = SECONDS
    _validator: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise CheckError(f"seconds is {self.seconds}; expected a number above 0")
        object.__setattr__(self, "_validator", _validator_of(self.schema))

    def __call__(self, prompt: str, answer: str) -> Verdict:
        """Score 1 where the answer fits the schema, else 0."""
        if len(answer) > MOST_CHARACTERS:
            return Verdict(score=0.0, reason=f"the answer has more than {MOST_CHARACTERS} characters")
        try:
            value = json.loads(answer, parse_float=_finite, parse_int=_whole, parse_constant=_refuse)
            too_deep = _deeper_than(value, DEEPEST)
        except ValueError:
            return Verdict(score=0.0, reason="the answer is not JSON")
        except RecursionError:
            too_deep = True
        if too_deep:
            return Verdict(score=0.0, reason=f"the answer is nested more than {DEEPEST} deep")
        return self._verdict_of(value)

    def _verdict_of(self, value: Any) -> Verdict:
        before = _deadline.set(time.monotonic() + self.seconds)
        try:
            error = next(self._validator.iter_errors(value), None)
        except _OutOfTimeError:
            raise CheckError(f"the schema took longer than {self.seconds} s on an answer") from None
        except (Unresolvable, RecursionError, regex.error) as problem:
            raise CheckError(f"the schema cannot be used: {reprlib.repr(str(problem))}") from problem
        finally:
            _deadline.reset(before)
        if error is None:
            return Verdict(score=1.0, reason="fits the schema")
        what = "is not allowed" if error.validator is None else f"does not fit `{error.validator}`"
        return Verdict(score=0.0, reason=f"{error.json_path[:80]} {what}")


def response_format_check(response_format: Mapping[str, Any]) -> JsonSchema | None:
    """The check that a request's `response_format` amounts to, as OpenAI defines it; None for plain text.

    response_format: `{"type": "json_object"}`, `{"type": "json_schema", "json_schema": {"schema": {...}}}` or
        `{"type": "text"}`.
    Raises CheckError for another type, and as JsonSchema does.
    """
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return JsonSchema(schema={"type": "object"})
    if kind == "json_schema":
        named = response_format.get("json_schema")
        if isinstance(named, Mapping) and isinstance(named.get("schema"), Mapping):
            return JsonSchema(schema=named["schema"])
        raise CheckError("response_format is json_schema without json_schema.schema; expected a JSON schema there")
    raise CheckError(f"the type of response_format is {reprlib.repr(kind)}; expected text, json_object or json_schema")


def _validator_of(schema: Mapping[str, Any] | bool) -> Any:
    if not isinstance(schema, Mapping | bool):
        raise CheckError(f"the schema is {reprlib.repr(schema)}; expected an object, or true or false")
    try:
        text = json.dumps(schema if isinstance(schema, bool) else dict(schema))
        own = json.loads(text)  # a copy, which nobody else changes
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckError(f"the schema is not JSON: {reprlib.repr(str(error))}") from error
    if len(text) > LARGEST_SCHEMA or _deeper_than(own, DEEPEST):
        raise CheckError(f"the schema has more than {LARGEST_SCHEMA} characters or is nested more than {DEEPEST} deep")
    draft = _draft_of(own.pop("$schema", None)) if isinstance(own, dict) else Draft202012Validator
    parts = list(_objects_in(own))
    if len(parts) > MOST_OBJECTS:
        raise CheckError(f"the schema has {len(parts)} objects; expected at most {MOST_OBJECTS}")
    for part in parts:
        _refuse_unbounded(part)
    try:
        draft.check_schema(own)
    except (SchemaError, RecursionError, OverflowError) as error:
        raise CheckError(f"the schema is not valid: {reprlib.repr(str(error))}") from error
    return _bounded(draft)(own, registry=Registry())


def _draft_of(stated: object) -> Any:
    """The validator of the draft that `$schema` states; that of draft 2020-12 where it states none."""
    drafts = (Draft6Validator, Draft7Validator, Draft201909Validator, Draft202012Validator)
    for draft in drafts:
        if isinstance(stated, str) and stated.rstrip("#") == draft.META_SCHEMA["$schema"].rstrip("#"):
            return draft
    if stated is None:
        return Draft202012Validator
    raise CheckError(f"$schema is {reprlib.repr(stated)}; expected that of draft 6, 7, 2019-09 or 2020-12")


def _refuse_unbounded(part: dict[str, Any]) -> None:
    """Raises CheckError where an object of a schema could start a download, or keep jsonschema itself busy for long.

    An inner `$schema` would leave the bounded validator, and `patternProperties` uses expressions that nobody stops.
    Lists of names must be text: jsonschema compares other items pair by pair while it looks whether a schema is valid.
    """
    if "$schema" in part or "patternProperties" in part:
        raise CheckError("the schema has patternProperties, or $schema inside; neither can be bounded in time")
    for name in _REFERENCES:
        if isinstance(part.get(name), str) and not part[name].startswith("#"):
            raise CheckError(
                f"the schema refers to {reprlib.repr(part[name])}; only references within it (#...) are followed"
            )
    needed = [of for name in ("dependencies", "dependentRequired") if isinstance(of := part.get(name), dict)]
    lists_of_names = [part.get("type"), part.get("required"), *(names for of in needed for names in of.values())]
    for names in lists_of_names:
        if isinstance(names, list) and not all(isinstance(name, str) for name in names):
            raise CheckError(f"the schema is not valid: {reprlib.repr(names)} has more than names")


@cache
def _bounded(draft: Any) -> Any:
    """The validator of a draft that stops at the deadline: each keyword looks at the clock first."""
    own = {"pattern": _pattern, "uniqueItems": _unique_items, "additionalProperties": _additional_properties}
    return extend(draft, {name: _timed(keyword) for name, keyword in {**draft.VALIDATORS, **own}.items()})


def _timed(keyword: Callable[..., Any]) -> Callable[..., Any]:
    def look(*arguments: Any) -> Any:
        if time.monotonic() > _deadline.get():
            raise _OutOfTimeError
        return keyword(*arguments)

    return look


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema's own, but a match that takes too long is stopped."""
    if validator.is_type(instance, "string"):
        left = max(_deadline.get() - time.monotonic(), 0.001)
        try:
            found = regex.search(pattern, instance, timeout=left)
        except TimeoutError:
            raise _OutOfTimeError from None
        if not found:
            yield ValidationError("does not match")


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema's own, but in time proportional to the number of items."""
    if unique and validator.is_type(instance, "array") and len(set(map(canonical_json, instance))) < len(instance):
        yield ValidationError("has equal items")


def _additional_properties(validator: Any, extras: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """As jsonschema's own without patternProperties, but in the order of the answer."""
    if validator.is_type(instance, "object"):
        known = schema.get("properties", {})
        for name in instance:
            if name in known:
                continue
            if extras is False:
                yield ValidationError("is not known", path=[name])
            yield from validator.descend(instance[name], extras, path=name)


def _finite(text: str) -> int | float:
    number = float(text)
    if math.isinf(number):
        _refuse(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        _refuse(text)
    return int(text)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant[:20]} is no number of JSON, or too large")


def _objects_in(value: Any) -> Iterator[dict[str, Any]]:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _deeper_than(value: Any, deepest: int) -> bool:
    level = [value]
    for _ in range(deepest + 1):
        level = [part for part in level if isinstance(part, dict | list)]
        if not level:
            return False
        level = [child for part in level for child in (part.values() if isinstance(part, dict) else part)]
    return True
