"""/v1/responses: text and functions. Nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pegboard_server.schemas.base import Body, JsonObjectFormat, Part, TextFormat
from pegboard_server.schemas.chat import ContentPart, Name


class MessageItem(Part):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class CallItem(Part):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class ResultItem(Part):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]


class ReasoningItem(Part):
    """Reasoning of an earlier answer; left out of the prompt."""

    type: Literal["reasoning"]


class FunctionTool(Part):
    """A function that the model may call."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Part):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class FlatSchema(Part):
    """JSON of a schema, without the wrapping of chats."""

    type: Literal["json_schema"]
    name: str = ""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextSettings(Part):
    """format: what the answer must match."""

    format: Annotated[TextFormat | JsonObjectFormat | FlatSchema, Field(discriminator="type")] | None = None


class ReasoningSettings(Part):
    """effort: goes to the chat template."""

    effort: str | None = None


class ResponseRequest(Body):
    """store and the fields after it are taken and mean nothing here."""

    model: str | None = Field(default=None, max_length=1024)
    input: str | Annotated[list[MessageItem | CallItem | ResultItem | ReasoningItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    temperature: float | None = Field(default=None, ge=0, le=1000)
    top_p: float | None = Field(default=None, ge=0, le=1)
    stream: bool | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    previous_response_id: str | None = None
    background: bool | None = None

    store: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class ResponseUsage(Part):
    """Tokens of an answer."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseObject(Part):
    """The answer. output: items of type message, reasoning and function_call."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    model: str
    output: list[dict[str, Any]]
    usage: ResponseUsage | None = None
