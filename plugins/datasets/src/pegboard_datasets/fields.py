"""Taking typed fields out of a row, with errors that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pegboard.errors import DataError, nearest


def text_field(row: Mapping[str, Any], name: str, option: str) -> str:
    """Return the text in field `name`. Raises DataError naming the field, what was found, and the `option` that names the field."""
    if name not in row:
        have = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"no field {name!r}{nearest(name, map(str, row))}; the row has: {have}",
            fix=f"correct the row or set {option}",
        )
    value = row[name]
    if not isinstance(value, str):
        raise DataError(
            f"field {name!r} must be text, found {type(value).__name__}", fix=f"correct the row or set {option}"
        )
    return value


def messages_field(row: Mapping[str, Any], name: str, option: str) -> list[Mapping[str, Any]]:
    """Return the list of messages in field `name`, each with a text `role` and `content`. Raises DataError naming what is wrong."""
    if name not in row:
        have = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"no field {name!r}{nearest(name, map(str, row))}; the row has: {have}",
            fix=f"correct the row or set {option}",
        )
    messages = row[name]
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else type(messages).__name__
        raise DataError(
            f"field {name!r} must be a list of messages, found {found}", fix='write [{"role": …, "content": …}, …]'
        )
    for number, message in enumerate(messages):
        where = f"{name}[{number}]"
        if not isinstance(message, Mapping):
            raise DataError(
                f"{where} must be an object, found {type(message).__name__}", fix='write {"role": …, "content": …}'
            )
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = type(message[key]).__name__ if key in message else "nothing" + nearest(key, map(str, message))
                raise DataError(f"{where}.{key} must be text, found {found}", fix='write {"role": …, "content": …}')
    return messages
