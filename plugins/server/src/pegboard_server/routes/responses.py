"""/v1/responses"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from pegboard_server.answers import ChatAnswer, Count, new_id
from pegboard_server.errors import ApiError, bad_request, internal, of_validation
from pegboard_server.items import Event, Items
from pegboard_server.labels import labelled
from pegboard_server.routes.chat import Conversation, prepare
from pegboard_server.schemas.chat import ChatRequest
from pegboard_server.schemas.responses import (
    CallItem,
    FlatSchema,
    MessageItem,
    NamedChoice,
    ReasoningItem,
    ResponseObject,
    ResponseRequest,
)
from pegboard_server.served import ServedDep
from pegboard_server.sse import EventStream, data, while_connected

router = APIRouter()


class Writer:
    """One response while it comes. `events` are numbered in the order in which they are asked for."""

    def __init__(self, body: ResponseRequest, conversation: Conversation) -> None:
        self._conversation = conversation
        self._answer = ChatAnswer(conversation.parser())
        self._count, self._items, self._number = Count(), Items(), 0
        params = conversation.job.params
        self._value: dict[str, Any] = {
            "id": new_id("resp"),
            "object": "response",
            "created_at": conversation.created,
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": conversation.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": body.text.model_dump(by_alias=True, exclude_none=True)
            if body.text
            else {"format": {"type": "text"}},
            "tool_choice": _choice(body),
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or []],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    async def whole(self) -> dict[str, Any]:
        """Return the complete response."""
        async for _ in self._events():
            pass
        return self._value

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the events. What fails after the first one ends the response as failed."""
        begun = False
        try:
            async for event in self._events():
                begun = True
                yield self._data(event)
        except Exception as error:
            if not begun:
                raise
            failure = error if isinstance(error, ApiError) else internal(error)
            for event in self._items.close("incomplete"):
                yield self._data(event)
            self._value |= {"status": "failed", "output": self._items.done}
            self._value["error"] = {"code": failure.code or "server_error", "message": failure.message}
            yield self._data({"type": "response.failed", "response": self._value})

    async def _events(self) -> AsyncGenerator[Event, None]:
        first = True
        async with self._conversation.served.stream([self._conversation.job]) as stream:
            async for output in stream:
                pieces = self._answer.take(output)
                self._count.add(output)
                if first:
                    first = False
                    yield {"type": "response.created", "response": dict(self._value)}
                    yield {"type": "response.in_progress", "response": dict(self._value)}
                for event in self._items.push(pieces):
                    yield event
        cut = self._answer.finish == "length"
        for event in self._items.close("incomplete" if cut else "completed"):
            yield event
        usage = self._count.usage
        self._value |= {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": self._items.done,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }
        yield {"type": "response.incomplete" if cut else "response.completed", "response": self._value}

    def _data(self, event: Event) -> bytes:
        self._number += 1
        return data({**event, "sequence_number": self._number - 1}, event["type"])


@router.post("/v1/responses", response_model=ResponseObject)
async def create_response(body: ResponseRequest, request: Request, served: ServedDep) -> Response:
    """Answer a text or a conversation. With `stream`, events as OpenAI names them. Nothing is stored, whatever `store` says."""
    served.check_open()
    served.check_fields(body)
    conversation = await while_connected(request, prepare(served, as_chat(body)))
    conversation.job = labelled(conversation.job, request, "chat", conversation.model)
    writer = Writer(body, conversation)
    if body.stream:
        return EventStream(writer.chunks(), served.options.keep_alive, done=False)
    return JSONResponse(await while_connected(request, writer.whole()))


def as_chat(body: ResponseRequest) -> ChatRequest:
    """Return the same request to /v1/chat/completions. Raises ApiError for what would need a memory."""
    for name in ("previous_response_id", "background"):
        if getattr(body, name):
            raise bad_request(f"{name}: responses are not stored; send the whole conversation", name, "unsupported")
    format_ = body.text.format if body.text else None
    wanted: dict[str, Any] | None = None
    if isinstance(format_, FlatSchema):
        wanted = {"type": "json_schema", "json_schema": {"name": format_.name, "schema": format_.schema_ or {}}}
    elif format_ is not None:
        wanted = {"type": format_.type}
    values: dict[str, Any] = {
        "model": body.model,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "tools": [_tool(tool.model_dump(exclude_none=True)) for tool in body.tools or []] or None,
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": wanted,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    if isinstance(body.tool_choice, NamedChoice):
        values["tool_choice"] = {"type": "function", "function": {"name": body.tool_choice.name}}
    try:
        return ChatRequest.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise of_validation([dict(each) for each in error.errors()]) from None


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for item in body.input:
        if isinstance(item, MessageItem):
            content = item.content if isinstance(item.content, str) else [part.model_dump() for part in item.content]
            messages.append({"role": item.role, "content": content})
        elif isinstance(item, CallItem):
            call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
            if not (messages and "tool_calls" in messages[-1]):
                messages.append({"role": "assistant", "content": None, "tool_calls": []})
            messages[-1]["tool_calls"].append(call)
        elif not isinstance(item, ReasoningItem):
            output = item.output if isinstance(item.output, str) else [part.model_dump() for part in item.output]
            messages.append({"role": "tool", "content": output, "tool_call_id": item.call_id})
    return messages


def _tool(flat: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {key: value for key, value in flat.items() if key not in ("type", "strict")},
    }


def _choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice
    return choice.model_dump() if isinstance(choice, NamedChoice) else choice or "auto"
