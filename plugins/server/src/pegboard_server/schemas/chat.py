"""/v1/chat/completions"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pegboard_server.schemas.base import Body, Part, ResponseFormat, Sampling, Usage

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.\-]+$")]


class ContentPart(Part):
    """A part of a message; `text` and `refusal` are understood."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Part):
    """arguments: text of JSON."""

    name: str
    arguments: str


class ToolCall(Part):
    """A call that the assistant made."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Part):
    """A turn. Further fields go to the chat template as they are."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None


class Function(Part):
    """parameters: a JSON schema of an object."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class NamedFunction(Part):
    """The name alone."""

    name: str


class NamedTool(Part):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(Sampling):
    """Of OpenAI's fields, those that say how an account is served are taken and mean nothing here."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True

    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    modalities: list[Literal["text"]] | None = None


class TopLogprob(Part):
    """bytes: of the token, in UTF-8."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of the answer, and the most probable ones in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Part):
    """One entry a token."""

    content: list[TokenLogprob] | None = None


class AnswerMessage(Part):
    """What the model wrote."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Part):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Part):
    """The whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TokenizeChat(Body):
    """The conversation of /tokenize."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
