"""Conversations in the layouts that data sets have them in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pegboard.errors import DataError, nearest
from pegboard.types import Message
from pegboard_datasets.fields import kind

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Who speaks, as ShareGPT's exports and their descendants write it."""

_TURN = re.compile(r"\n\n(Human|Assistant):")
_LAYOUT = 'write {"role": …, "content": …}'


def read_messages(value: object, where: str, option: str) -> list[Message]:
    """Return a list of messages, each {"role", "content"} (OpenAI) or {"from", "value"} (ShareGPT), with its further keys.

    Content is text, a list of parts of type text, or null beside tool calls. Raises DataError naming what is wrong `where`.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else kind(value)
        raise DataError(
            f"field {where!r} must be a list of messages, found {found}",
            fix=f'write [{{"role": …, "content": …}}, …] or set {option}',
        )
    return [_message(item, f"{where}[{number}]") for number, item in enumerate(value)]


def as_messages(value: object, role: str, where: str, option: str) -> list[Message]:
    """Return text as one message of `role`, and a list of messages as it is."""
    if isinstance(value, str):
        return [Message(role, value)]
    return read_messages(value, where, option)


def parse_dialogue(text: str, where: str) -> list[Message]:
    """Return the turns of a transcript in the layout of hh-rlhf: `\\n\\nHuman: …\\n\\nAssistant: …`.

    Raises DataError when the text does not begin with a turn.
    """
    first, *rest = _TURN.split(text if text.startswith("\n\n") else "\n\n" + text.lstrip())
    if first.strip() or not rest:
        raise DataError(
            f"field {where!r} must be a dialogue that begins with 'Human:' or 'Assistant:'",
            fix="add a field of the prompt, or give lists of messages",
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(rest[::2], rest[1::2], strict=True)]


def shared_turns(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Return how many messages two conversations begin with in common, the last of either not counted."""
    most = min(len(first), len(second)) - 1
    return next((i for i in range(most) if first[i] != second[i]), most)


def _message(item: object, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be an object, found {kind(item)}", fix=_LAYOUT)
    if "role" not in item and "from" in item:
        who = _text(item, "from", where)
        if who not in SHAREGPT_ROLES:
            raise DataError(
                f"{where}.from is {who!r}{nearest(who, SHAREGPT_ROLES)}", fix=f"use one of: {', '.join(SHAREGPT_ROLES)}"
            )
        rest = {key: value for key, value in item.items() if key not in ("from", "value")}
        return Message(SHAREGPT_ROLES[who], _text(item, "value", where), rest)
    rest = {key: value for key, value in item.items() if key not in ("role", "content")}
    return Message(_text(item, "role", where), _content(item, where), rest)


def _content(item: Mapping[str, Any], where: str) -> str:
    value = item.get("content")
    if value is None and item.get("tool_calls"):
        return ""
    if isinstance(value, list):
        return "".join(_part(part, f"{where}.content[{number}]") for number, part in enumerate(value))
    return _text(item, "content", where)


def _part(part: object, where: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") != "text":
        found = part.get("type") if isinstance(part, Mapping) else kind(part)
        raise DataError(f"{where} must be a part of type text, found {found}", fix="leave out what is no text")
    return _text(part, "text", where)


def _text(item: Mapping[str, Any], key: str, where: str) -> str:
    if not isinstance(item.get(key), str):
        found = kind(item[key]) if key in item else "nothing" + nearest(key, map(str, item))
        raise DataError(f"{where}.{key} must be text, found {found}", fix=_LAYOUT)
    return str(item[key])
