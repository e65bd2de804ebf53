"""Conversations, and requests with their answers, to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError
from pegboard.interfaces.transform import Transform
from pegboard.types import Message, Row
from pegboard_datasets.conversation import read_messages
from pegboard_datasets.encode import conversation_row, plain_row
from pegboard_datasets.fields import field, text_field
from pegboard_datasets.options import ChatOptions, InstructOptions

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer


class Chat(Transform):
    """One conversation a row."""

    def __init__(self, options: ChatOptions) -> None:
        self._options = options

    def __call__(self, row: Mapping[str, Any], tokenizer: Tokenizer) -> Sequence[Row]:
        """Return one example, learning what `learn` says. Raises DataError naming the field that is missing or wrong."""
        name, option = self._options.messages, "data.format.messages"
        messages = read_messages(field(row, name, option), name, option)
        if self._options.system is not None and messages[0].role != "system":
            messages = [Message("system", self._options.system), *messages]
        if self._options.learn != "all" and not any(m.role == "assistant" for m in messages):
            raise DataError(
                "no message has the role 'assistant', so there is nothing to learn", fix="set data.format.learn=all"
            )
        tools = row.get(self._options.tools) or None
        return [conversation_row(messages, tokenizer, learn=self._options.learn, tools=tools)]


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
        if not options.chat:
            return [plain_row(request, answer, tokenizer, learn=options.learn)]
        system = [Message("system", options.system)] if options.system is not None else []
        messages = [*system, Message("user", request), Message("assistant", answer)]
        return [conversation_row(messages, tokenizer, learn=options.learn)]
