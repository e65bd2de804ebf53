"""/tokenize, /detokenize, /tokenizer_info"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pegboard_server.schemas.base import Body, Ids, Part
from pegboard_server.schemas.chat import ChatMessage, Tool


class TokenizeRequest(Body):
    """A text, or a conversation as /v1/chat/completions would have it."""

    model: str | None = Field(default=None, max_length=1024)
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class Tokens(Part):
    """count: of the tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    model: str | None = Field(default=None, max_length=1024)
    tokens: Ids


class Text(Part):
    """The text of tokens, special ones included."""

    prompt: str


class TokenizerInfo(Part):
    """Texts of the markers, None for one that the tokenizer lacks. chat_template: in Jinja. model_max_length: tokens of the context."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int
    model_max_length: int
