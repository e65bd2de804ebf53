"""Conversations to ids, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError
from pegboard.interfaces.transform import Transform
from pegboard.types import Message, Row
from pegboard_datasets.fields import messages_field, text_field
from pegboard_datasets.options import ChatOptions, InstructOptions

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class Chat(Transform):
    """One conversation a row."""

    def __init__(self, options: ChatOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example, learning what `learn` says. Raises DataError naming the field that is missing or wrong."""
        raw = messages_field(row, self._options.messages, "data.format.messages")
        messages = [
            Message(m["role"], m["content"], {k: v for k, v in m.items() if k not in ("role", "content")}) for m in raw
        ]
        if self._options.learn != "all" and not any(m.role == "assistant" for m in messages):
            raise DataError(
                "no message has the role 'assistant', so there is nothing to learn", fix="set data.format.learn=all"
            )
        return [_example(messages, self._options.learn, tokenizer, tools=row.get(self._options.tools) or None)]


class Instruct(Transform):
    """One request and its answer a row."""

    def __init__(self, options: InstructOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example. Raises DataError naming the field that is missing or wrong."""
        options = self._options
        request = text_field(row, options.prompt, "data.format.prompt")
        if row.get(options.context):
            request += "\n\n" + text_field(row, options.context, "data.format.context")
        answer = text_field(row, options.response, "data.format.response")
        system = [Message("system", options.system)] if options.system is not None else []
        messages = [*system, Message("user", request), Message("assistant", answer)]
        return [_example(messages, options.learn, tokenizer)]


def _example(
    messages: Sequence[Message], learn: str, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None = None
) -> Row:
    if not tokenizer.has_chat_template:
        raise DataError(
            "the model's tokenizer has no chat template", fix="use data.format=text, or a model made for chat"
        )
    input_ids, mask = tokenizer.chat_with_mask(messages, roles=learn, tools=tools)
    return Row(input_ids, mask)
