"""A prompt and its answer to one sequence, through the tokenizer's chat template or as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pegboard.errors import DataError
from pegboard.types import Message, Row

if TYPE_CHECKING:
    from pegboard.interfaces.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]] | None


def conversation_row(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    learn: str = "assistant",
    start: int = 0,
    tools: Tools = None,
    part: str = "",
    extras: Mapping[str, Any] | None = None,
) -> Row:
    """Return a conversation as the chat template renders it. learn, start: as in `Tokenizer.chat_with_mask`."""
    _needs_template(tokenizer)
    ids, mask = tokenizer.chat_with_mask(messages, roles=learn, tools=tools, start=start)
    return Row(ids, mask, extras or {}, part)


def plain_row(
    prompt: str,
    answer: str,
    tokenizer: Tokenizer,
    *,
    learn: str = "assistant",
    part: str = "",
    extras: Mapping[str, Any] | None = None,
) -> Row:
    """Return a prompt, its answer and the end-of-text token. Both are tokenized apart, so that the mask is exact."""
    before, after = tokenizer.encode(prompt), tokenizer.encode(answer, special=False)
    # Some tokenizers end every text with a marker; here the text goes on.
    while before and before[-1] in tokenizer.eos_ids and len(before) > 1:
        before = before[:-1]
    after = [*after, *tokenizer.eos_ids[:1]]
    return Row(before + after, [learn == "all"] * len(before) + [True] * len(after), extras or {}, part)


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, tools: Tools = None) -> list[int]:
    """Return a conversation that ends where the assistant is to speak."""
    _needs_template(tokenizer)
    return tokenizer.chat(messages, tools=tools)


def _needs_template(tokenizer: Tokenizer) -> None:
    if not tokenizer.has_chat_template:
        raise DataError(
            "the model's tokenizer has no chat template",
            fix="set data.format.chat=false for prompts and answers, use data.format=text, or a model made for chat",
        )
