"""`key=value` and `~key` on the command line, and how two configs merge."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pegboard.config.text import MAX_DEPTH, MISSING, parse_value
from pegboard.errors import ConfigError, nearest

_SEGMENT = re.compile(r"[A-Za-z0-9_][\w-]*")
_PATH_SECTIONS = ("model", "data")


def apply_overrides(config: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `config` with the overrides merged in.

    Those between two deletions count as one small config, so their order is free.
    """
    result: dict[str, Any] = dict(config)
    pending: dict[str, Any] = {}
    for override in overrides:
        if override.startswith("~"):
            result, pending = merge(result, pending), {}
            result = _delete(result, _path(override[1:], override), override)
            continue
        pending = merge(pending, parse_override(override), partial=True)
    return merge(result, pending)


def parse_override(override: str) -> dict[str, Any]:
    """Return `a.b=value` as {"a": {"b": value}}. Raises ConfigError."""
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is no override", fix="write key=value, or ~key to delete a key")
    first, *rest = _path(key, override)
    branch: Any = parse_value(value, f"the override {override!r}")
    for part in reversed(rest):
        branch = {part: branch}
    return {first: branch}


def merge(base: Mapping[str, Any], over: Mapping[str, Any], *, partial: bool = False) -> dict[str, Any]:
    """Return `over` laid on `base`: mappings merge, everything else replaces; see `pegboard.config` for sections.

    partial: `base` holds a few keys only, so that a mapping in it may be part of a section whose `use` comes later.
    """
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge_value(key, merged[key], value, partial) if key in merged else value
    return merged


def _merge_value(key: str, base: Any, over: Any, partial: bool) -> Any:
    if isinstance(base, Mapping) and isinstance(over, str):
        bare = _bare_key(key, base, partial)
        over = {bare: over} if bare else over
    elif isinstance(base, str) and isinstance(over, Mapping) and base != MISSING:
        base = {_usual_key(key): base}
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        fresh = "use" in base and "use" in over and base["use"] != over["use"]
        return dict(over) if fresh else merge(base, over, partial=partial)
    if isinstance(base, list) and isinstance(over, Mapping) and over and all(part.isdigit() for part in over):
        return _merge_list(key, base, over, partial)
    return over


def _merge_list(key: str, base: list[Any], over: Mapping[str, Any], partial: bool) -> list[Any]:
    merged = list(base)
    for part, value in over.items():
        if int(part) >= len(merged):
            raise ConfigError(
                f"{key}.{part}: the list {key} has {len(merged)} items (from 0)",
                fix=f"write the whole list: {key}=[...]",
            )
        merged[int(part)] = _merge_value("", merged[int(part)], value, partial)
    return merged


def _bare_key(key: str, section: Mapping[str, Any], partial: bool) -> str | None:
    """Return the key that a bare string means in a section, or None where the mapping is no section."""
    usual = _usual_key(key)
    if partial or usual in section:
        return usual
    return next((name for name in ("use", "path") if name in section), None)


def _usual_key(key: str) -> str:
    return "path" if key in _PATH_SECTIONS else "use"


def _path(key: str, override: str) -> list[str]:
    parts = key.split(".")
    if not all(_SEGMENT.fullmatch(part) for part in parts):
        raise ConfigError(
            f"{key!r} in {override!r} is no key", fix="write section.key=value; quote the whole for the shell"
        )
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{override[:60]!r}… is nested more than {MAX_DEPTH} deep", fix="correct the key")
    return parts


def _delete(config: Any, path: list[str], override: str) -> Any:
    """Return the config without the value at `path`; a list item is deleted by its number."""
    head, rest = path[0], path[1:]
    if isinstance(config, list) and head.isdigit() and int(head) < len(config):
        item = [_delete(config[int(head)], rest, override)] if rest else []
        return [*config[: int(head)], *item, *config[int(head) + 1 :]]
    if not isinstance(config, Mapping) or head not in config:
        known = list(config) if isinstance(config, Mapping) else []
        raise ConfigError(
            f"{override}: there is no key {head!r} to delete{nearest(head, known)}",
            fix="correct the key, or leave it out",
        )
    if rest:
        return {**config, head: _delete(config[head], rest, override)}
    return {key: value for key, value in config.items() if key != head}
