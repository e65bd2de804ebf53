"""From what a request asks for to the text that llguidance compiles, in its dialect of Lark."""

from __future__ import annotations

import json
import re
from typing import Any

from pegboard.errors import DataError
from pegboard.types import GrammarSpec
from pegboard_grammar.limits import check_choices, check_lark, check_pattern, check_rules, check_schema, check_size
from pegboard_grammar.options import Options

NAMES = {
    "json_schema": "the JSON schema",
    "json_object": "the grammar of JSON objects",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "ebnf": "the grammar",
}
"""Kind -> what to call it in an error."""

NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Allow every token that spells allowed text. llguidance would otherwise allow only the token that its tokenizer chooses."""

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_WHITESPACE = r"[\x20\x0A\x0D\x09]"


def lark_of(spec: GrammarSpec, options: Options) -> str:
    """Return the Lark text. Raises DataError where the value is no schema, expression, list or grammar, or exceeds a limit."""
    if spec.kind not in NAMES:
        raise DataError(f"there are no grammars of kind {spec.kind!r}", fix=f"use one of: {', '.join(NAMES)}")
    what = NAMES[spec.kind]
    check_size(what, spec.value, options)
    if spec.kind == "json_object":
        text = _schema(what, {"type": "object"}, options)
    elif spec.kind == "json_schema":
        text = _schema(what, _json(what, spec.value), options)
    elif spec.kind == "regex":
        text = _regex(what, spec.value, options)
    elif spec.kind == "choice":
        text = _choice(what, _json(what, spec.value), options)
    else:
        text = _ebnf(what, spec.value, options)
    return text + NO_FORCING


def _schema(what: str, schema: Any, options: Options) -> str:
    schema = {} if schema is True else schema
    if not isinstance(schema, dict):
        said = "false, which nothing matches" if schema is False else f"a {type(schema).__name__}"
        raise DataError(f"{what} is {said}", fix='send an object such as {"type": "object"}')
    check_schema(what, schema, options)
    settings: dict[str, Any] = {"lenient": options.lenient}
    if options.whitespace:
        settings["whitespace_pattern"] = f"{_WHITESPACE}{{1,{options.whitespace}}}"
    else:
        settings["whitespace_flexible"] = False
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        raise DataError(f"x-guidance in {what} is a {type(own).__name__}", fix="make it an object, or leave it out")
    try:
        text = json.dumps({**schema, "x-guidance": {**settings, **own}}, allow_nan=False)
    except ValueError:
        raise DataError(f"{what} holds a number too large for JSON", fix="use numbers below 1e308") from None
    return f"start: %json {text}"


def _regex(what: str, pattern: str, options: Options) -> str:
    from llguidance import regex_to_lark

    check_pattern(what, pattern, options)
    # Slashes around nothing would begin a comment.
    return f"start: /{regex_to_lark(pattern, 'dws')}/" if pattern else 'start: ""'


def _choice(what: str, choices: Any, options: Options) -> str:
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{what} is no list of one or more texts", fix='send JSON such as ["yes", "no"]')
    check_choices(what, len(choices), options)
    # One terminal is one expression, where alternatives of a rule would be as many expressions.
    texts = (json.dumps(choice, ensure_ascii=False).replace("\x7f", "\\u007f") for choice in choices)
    return "start: CHOICE\nCHOICE: " + " | ".join(texts)


def _ebnf(what: str, text: str, options: Options) -> str:
    check_rules(what, text, options)
    if _GBNF.search(text):
        text = _from_gbnf(what, text)
    check_lark(what, text, options)
    return text


def _from_gbnf(what: str, text: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except RecursionError:
        raise DataError(f"{what} is nested too deeply", fix="give parts of it rules of their own") from None
    except Exception as error:  # the library raises bare exceptions
        raise DataError(f"{what} is not GBNF: {str(error)[:300]}", fix="mend it there, or write Lark") from None


def _json(what: str, value: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(value, parse_constant=refuse)
    except RecursionError:
        raise DataError(f"{what} is nested too deeply", fix="make it flatter, with $defs and $ref") from None
    except ValueError as error:
        raise DataError(f"{what} is not JSON: {error}", fix="send one JSON value") from None
