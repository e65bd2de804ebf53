"""YAML text to plain JSON values and back.

No tags, no aliases, no objects; YAML 1.2's scalars, so `no` is text and 1e-3 a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]

from pegboard.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MISSING = "???"
"""A value that is still to be given."""

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
)
_RESOLVERS = (
    ("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", _BOOL, list("tTfF")),
    ("tag:yaml.org,2002:int", _INT, list("-+0123456789")),
    ("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789")),
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """SafeLoader narrowed to JSON values."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested more than {MAX_DEPTH} deep", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    # PyYAML takes every ? within { } or [ ] for the mark of a key, as YAML 1.1 did; there ??? is a value like elsewhere.
    def check_key(self) -> bool:
        return not self._at_missing() and bool(super().check_key())

    def check_plain(self) -> bool:
        return self._at_missing() or bool(super().check_plain())

    def scan_plain(self) -> Any:
        if not self._at_missing():
            return super().scan_plain()
        start = self.get_mark()
        self.forward(len(MISSING))
        return yaml.tokens.ScalarToken(MISSING, True, start, self.get_mark())

    def _at_missing(self) -> bool:
        size = len(MISSING)
        return bool(self.flow_level and self.prefix(size) == MISSING and self.peek(size) in "\0 \t\r\n,]}")

    def json_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text (quote it)", key_node.start_mark
                )
            if key_node.value in mapping:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            mapping[key_node.value] = self.construct_object(value_node, deep=True)
        return mapping

    def json_sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def json_scalar(self, node: yaml.ScalarNode) -> Any:
        return _convert(node.tag, str(node.value))

    def refuse(self, node: yaml.Node) -> Any:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not allowed", node.start_mark)


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """SafeDumper that also quotes what only our reader would take for a number."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> Any:
        # Within single quotes PyYAML writes Unicode's own line breaks in a way that it reads as something else.
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, _first)
    _Dumper.add_implicit_resolver(_tag, _pattern, _first)
    _Loader.add_constructor(_tag, _Loader.json_scalar)
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.json_scalar)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.json_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.json_sequence)
_Loader.add_constructor(None, _Loader.refuse)


def parse_config(text: str, where: str) -> dict[str, Any]:
    """Parse the text of a config file. Raises ConfigError naming `where`, line and column."""
    value = _parse(text, where)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where} holds a {type(value).__name__}, expected keys and values", fix="write `key: value` lines"
        )
    return value


def parse_value(text: str, where: str) -> Any:
    """Parse the right side of an override: YAML when it starts like a list, mapping or quoted text, else one scalar."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"', "'"):
        return _parse(stripped, where)
    for tag, pattern, _ in _RESOLVERS:
        if stripped and pattern.match(stripped):
            return _scalar(tag, stripped, where)
    return text


def dump_config(config: Mapping[str, Any]) -> str:
    """Return a resolved config as YAML text that loads to an equal value."""
    return dump_tree(_escape(config))


def dump_tree(tree: Mapping[str, Any]) -> str:
    """Return a composed config as YAML text, its references and `???` as they are."""
    text: str = yaml.dump(dict(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=MAX_BYTES)
    return text


def _parse(text: str, where: str) -> Any:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} is longer than {MAX_BYTES} characters", fix="a config holds settings, not data")
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: {error.problem or error.context}", fix="correct the YAML there") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{where}, character {error.position}: {error.reason}", fix="save it as plain UTF-8 text"
        ) from None
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: {error}", fix="correct the value") from None
    finally:
        if loader is not None:
            loader.dispose()


def _scalar(tag: str, text: str, where: str) -> Any:
    try:
        return _convert(tag, text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}", fix="correct the value") from None


def _convert(tag: str, text: str) -> Any:
    kind = tag.rpartition(":")[2]
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        number = text.lower()
        return float(number.replace(".inf", "inf"))
    return text


def _escape(value: Any) -> Any:
    """Return the value with `${` written so that it is not taken for a reference when the text is loaded again."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: "\\" * (2 * len(m[1]) + 1) + "${", value)
    if isinstance(value, Mapping):
        return {key: _escape(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escape(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError("a config cannot hold nan", fix="use a number or null")
    return value
