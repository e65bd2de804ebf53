"""What is refused before anything is compiled.

llguidance bounds its own work, but not its recursion (a chain of references is followed on the stack) and not all of its time (the
properties of one object cost their square, expressions that must match at once can cost exponentially), so the shape of what comes in is
bounded first. Every check is linear.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pegboard.errors import DataError
from pegboard_grammar.options import Options

MOST_MET = 8
"""Expressions that one text may have to match at once: twice as many have been seen to take half a minute."""
MOST_NAME_PATTERNS = 32
"""Patterns for the names of properties in a schema, of which each pair is tested for what both match."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions", "required")
_ALTERNATIVES = ("anyOf", "oneOf", "$ref")
_NO_CONSTRAINT = frozenset(
    {"$defs", "definitions", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "discriminator", "x-guidance"}
)
# In the order in which llguidance tells them apart: a comment, a text, an expression, the beginning of a schema.
_LITERAL = re.compile(r'(?://|#)[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\])+/|(?P<json>%json\s*)')


def check_size(what: str, value: str, options: Options) -> None:
    """Raise DataError when the text is too long, or is not text that UTF-8 can spell."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} holds half of a surrogate pair at character {error.start}", fix="send it as whole characters"
        ) from None
    _check(what, "bytes", size, options.max_bytes)


def check_pattern(what: str, pattern: str, options: Options) -> None:
    """Raise DataError when a regular expression is too long."""
    _check(what, "characters", len(pattern), options.max_pattern)


def check_choices(what: str, count: int, options: Options) -> None:
    """Raise DataError when there are too many choices."""
    _check(what, "choices", count, options.max_choices)


def check_rules(what: str, text: str, options: Options) -> None:
    """Raise DataError when a grammar has too many rules."""
    _check(what, "rules", text.count(":"), options.max_rules)


def check_lark(what: str, text: str, options: Options) -> None:
    """Raise DataError when expressions of a Lark grammar meet too often, alternatives are too many, or a schema in it is too large."""
    outside, place = [], 0
    while found := _LITERAL.search(text, place):
        outside.append(text[place : found.start()])
        place = found.end()
        if found["json"] is not None:
            try:
                schema, place = json.JSONDecoder().raw_decode(text, place)
            except (ValueError, RecursionError):
                line = text.count("\n", 0, place) + 1
                raise DataError(f"{what} has no schema after %json in line {line}", fix="write JSON there") from None
            check_schema(f"a schema in {what}", schema, options)
    operators = "".join([*outside, text[place:]])
    _check(what, "operators & and ~", operators.count("&") + operators.count("~"), MOST_MET)
    _check(what, "alternatives", operators.count("|"), options.max_choices)


def check_schema(what: str, schema: Any, options: Options) -> None:
    """Raise DataError when a schema (JSON values) is too deep, too wide or has too many alternatives."""
    objects = choices = patterns = name_patterns = 0
    merges = False
    for depth, value in _walk(schema):
        _check(what, "levels of nesting", depth, options.max_depth)
        if not isinstance(value, dict):
            continue
        objects += 1
        choices += len(_sized(value, "enum"))
        for key in _NAMED:
            _check(what, f"{key} in one object", len(_sized(value, key)), options.max_properties)
        names = [*_sized(value, "patternProperties")]
        name_patterns += len(names)
        for pattern in [*names, value.get("pattern")]:
            if isinstance(pattern, str):
                check_pattern(f"a pattern of {what}", pattern, options)
                patterns += 1
        merges = merges or _merges(value)
    _check(what, "objects", objects, options.max_objects)
    _check(what, "enum values", choices, options.max_choices)
    _check(what, "patterns in patternProperties", name_patterns, MOST_NAME_PATTERNS)
    if merges:
        _check(
            f"{what}, which combines schemas (allOf, or anyOf and $ref beside others),", "patterns", patterns, MOST_MET
        )


def _merges(schema: Mapping[str, Any]) -> bool:
    """Whether a schema may require two of its parts of the same text."""
    constraints = schema.keys() - _NO_CONSTRAINT
    if "allOf" in schema:
        return len(constraints) > 1 or len(_sized(schema, "allOf")) > 1
    return len(constraints) > 1 and any(key in schema for key in _ALTERNATIVES)


def _sized(schema: Mapping[str, Any], key: str) -> list[Any] | dict[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, (list, dict)) else []


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    """Yield (depth, value) of every object and list in a JSON value; the outermost one is at depth 1."""
    pending = [(1, value)]
    while pending:
        depth, value = pending.pop()
        if isinstance(value, (dict, list)):
            yield depth, value
            pending += [(depth + 1, inner) for inner in (value.values() if isinstance(value, dict) else value)]


def _check(what: str, unit: str, count: int, most: int) -> None:
    if count > most:
        raise DataError(f"{what} has {count} {unit}; at most {most} are allowed", fix="make it smaller")
