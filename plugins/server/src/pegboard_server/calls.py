"""Calls that a request forces: what grammar they must follow, and how their JSON is read while it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.interfaces.parser import OutputParser, Parsed
from pegboard.types import GrammarSpec

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def call_grammar(tools: Sequence[Mapping[str, Any]], choice: str, *, parallel: bool) -> GrammarSpec:
    """Return the grammar of a forced call.

    choice: a function's name, whose arguments alone are written; or "required": a list of {"name": …, "arguments": …}.
    """
    functions = {tool["function"]["name"]: tool["function"].get("parameters") or ANY_OBJECT for tool in tools}
    if choice != "required":
        return GrammarSpec("json_schema", json.dumps(functions[choice]))
    homes = {name: f"#/$defs/{number}" for number, name in enumerate(functions)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": {"$ref": home}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, home in homes.items()
    ]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    schema["$defs"] = {str(number): _moved(functions[name], home) for number, (name, home) in enumerate(homes.items())}
    if not parallel:
        schema["maxItems"] = 1
    return GrammarSpec("json_schema", json.dumps(schema))


def _moved(schema: Any, home: str) -> Any:
    """Return a schema whose references to itself hold at another place of a document, `home`."""
    if isinstance(schema, list):
        return [_moved(item, home) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: home + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, home)
        for key, value in schema.items()
    }


class ForcedCall(OutputParser):
    """The arguments of the one function `name`, and nothing else."""

    def __init__(self, name: str) -> None:
        self._name = name

    def push(self, text: str) -> list[Parsed]:
        name, self._name = self._name, ""
        return [Parsed(tool=0, name=name, arguments=text)] if text or name else []

    def finish(self) -> list[Parsed]:
        return [Parsed(tool=0, name=self._name)] if self._name else []


class ForcedCalls(OutputParser):
    """A JSON list of {"name": …, "arguments": …}.

    Reads character by character and keeps only how deep it is, so that arguments go on as they come. Text that begins otherwise is
    content.
    """

    def __init__(self) -> None:
        self._depth = 0  # 1: in the list, 2: in a call, 3 and more: in a value of a call
        self._plain = False
        self._index = -1
        self._token = ""  # the key or value of a call that is being read
        self._key: str | None = None
        self._string = self._escaped = False
        self._name = self._held = ""

    def push(self, text: str) -> list[Parsed]:
        found: list[Parsed] = []
        for place, character in enumerate(text):
            if self._plain:
                return [*_joined(found), Parsed(content=text[place:])]
            found += self._read(character)
        return _joined(found)

    def finish(self) -> list[Parsed]:
        return [Parsed(tool=self._index, name=self._name, arguments=self._held)] if self._held and self._name else []

    def _read(self, character: str) -> list[Parsed]:
        if self._depth == 0:
            if character == "[" and self._index < 0:
                self._depth = 1
            elif not character.isspace():
                self._plain = True
                return [Parsed(content=character)]
            return []
        if self._depth == 1:
            if character == "{":
                self._depth, self._index = 2, self._index + 1
                self._key, self._token, self._name, self._held = None, "", "", ""
            elif character == "]":
                self._depth = 0
            return []
        return self._in_call(character)

    def _in_call(self, character: str) -> list[Parsed]:
        if self._string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = False
            return self._take(character)
        if character == '"':
            self._string = True
            return self._take(character)
        if self._depth == 2 and character in ",}":
            ended = self._end_value()
            if character == "}":
                self._depth = 1
            return ended
        if self._depth == 2 and character == ":" and self._key is None:
            self._key, self._token = _text(self._token), ""
            return []
        self._depth += (character in "{[") - (character in "}]")
        return self._take(character)

    def _take(self, character: str) -> list[Parsed]:
        """Keep a character of a key or a value; those of arguments go on at once when the name is known."""
        if self._key != "arguments":
            self._token += character
            return []
        if not self._name:
            self._held += character
            return []
        if character.isspace() and not self._string and self._depth == 2:  # around the value
            return []
        return [Parsed(tool=self._index, arguments=character)]

    def _end_value(self) -> list[Parsed]:
        key, value = self._key, self._token
        self._key, self._token = None, ""
        if key != "name":
            return []
        self._name = _text(value)
        held, self._held = self._held.strip(), ""
        return [Parsed(tool=self._index, name=self._name, arguments=held)]


def _text(token: str) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        return token.strip()


def _joined(pieces: Sequence[Parsed]) -> list[Parsed]:
    """Put the pieces of one call together."""
    found: list[Parsed] = []
    for piece in pieces:
        if found and piece.tool is not None and piece.tool == found[-1].tool and not piece.name:
            last = found.pop()
            piece = Parsed(tool=last.tool, name=last.name, arguments=last.arguments + piece.arguments)
        found.append(piece)
    return found
