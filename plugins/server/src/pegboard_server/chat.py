"""Conversations: from OpenAI's messages to those of chat templates, and to token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pegboard.types import Message
from pegboard_server import limits
from pegboard_server.errors import bad_request
from pegboard_server.parsing import ToolUse
from pegboard_server.schemas.chat import ChatMessage, ChatRequest, NamedTool, Tool, ToolCall
from pegboard_server.served import Served


async def prompt_ids(
    served: Served,
    messages: Sequence[ChatMessage],
    tools: list[Tool] | None,
    *,
    generation_prompt: bool = True,
    variables: dict[str, Any] | None = None,
) -> list[int]:
    """Return the ids of a conversation. Raises ApiError beyond the limits, DataError when the template refuses it."""
    limit = served.options.limits
    if len(messages) > limit.messages:
        raise bad_request(f"messages: {len(messages)} are too many, at most {limit.messages} are allowed", "messages")
    limits.check_depth(variables, limit.schema_depth, "chat_template_kwargs")
    turns = [message(turn, number) for number, turn in enumerate(messages)]
    return await served.renderer.chat(
        turns, tool_values(tools) or None, generation_prompt=generation_prompt, variables=variables
    )


def message(turn: ChatMessage, number: int) -> Message:
    """Return a turn as chat templates know it: content is text, arguments of calls are values. number: for errors."""
    extras: dict[str, Any] = dict(turn.model_extra or {})
    if turn.tool_calls:
        extras["tool_calls"] = [_call(call, number) for call in turn.tool_calls]
    limits.check_depth(extras, 32, f"messages.{number}")
    role = "system" if turn.role == "developer" else turn.role
    return Message(role, _text(turn, number), extras)


def tool_values(tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
    """Return tools as templates and parsers take them, in OpenAI's shape."""
    return [tool.model_dump(exclude_none=True) for tool in tools or ()]


def tool_use(served: Served, body: ChatRequest) -> ToolUse:
    """Return what a request says about tools. Raises ApiError when it chooses what it does not offer, or beyond the limits."""
    tools = body.tools or []
    limits.check_tools(tools, served.options.limits)
    asked = body.tool_choice
    if isinstance(asked, NamedTool):
        choice = asked.function.name
        if choice not in [tool.function.name for tool in tools]:
            raise bad_request(f"tool_choice: no tool is called {choice[:64]!r}", "tool_choice")
    else:
        choice = asked or ("auto" if tools else "none")
    if choice != "none" and not tools:
        raise bad_request("tool_choice: there are no tools to choose from", "tool_choice")
    return ToolUse(tool_values(tools), choice, body.parallel_tool_calls is not False)


def _text(turn: ChatMessage, number: int) -> str:
    if turn.content is None or isinstance(turn.content, str):
        return turn.content or ""
    texts = []
    for part in turn.content:
        text = part.text if part.text is not None else part.refusal
        if part.type not in ("text", "input_text", "output_text", "refusal") or text is None:
            raise bad_request(
                f"messages.{number}: a part of type {part.type[:40]!r}, only text is understood", "messages"
            )
        texts.append(text)
    return "\n".join(texts)


def _call(call: ToolCall, number: int) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        raise bad_request(f"messages.{number}: the arguments of a call are not JSON", "messages") from None
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}
