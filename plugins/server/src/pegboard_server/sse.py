"""Server-sent events, and requests whose client may go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pegboard_server.errors import ApiError, internal

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


def data(value: Mapping[str, Any], event: str | None = None) -> bytes:
    """Return an event of JSON."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; it is cancelled when the client goes away, and ApiError (499) is raised."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "the client has gone")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """Sends events as they come, a comment now and then between them, and ends them when the client goes away.

    The status is sent with the first event or comment: an error that comes before it is answered as any other, a later one becomes
    the last event. keep_alive: seconds between comments. done: whether OpenAI's mark ends the stream. The generator of events is
    always closed, so that what it holds is freed.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], keep_alive: float, *, done: bool = True) -> None:
        super().__init__(media_type=self.media_type)
        self._events, self._keep_alive, self._done = events, keep_alive, done
        self._started = self._ended = False
        self._lock = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as an ASGI application."""
        pump = asyncio.create_task(self._pump(send))
        watch = asyncio.create_task(self._watch(receive, send))
        try:
            await asyncio.wait({pump, watch}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            for task in (watch, pump):
                task.cancel()
            await asyncio.gather(watch, pump, return_exceptions=True)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        try:
            async for event in self._events:
                await self._send(send, event)
        except Exception as error:
            if not self._started:
                raise
            failure = error if isinstance(error, ApiError) else internal(error)
            await self._send(send, data(failure.body))
        await self._send(send, DONE if self._done else b"", more=False)

    async def _watch(self, receive: Receive, send: Send) -> None:
        while True:
            try:
                message = await asyncio.wait_for(receive(), self._keep_alive)
            except TimeoutError:
                await self._send(send, COMMENT)
                continue
            if message["type"] == "http.disconnect":
                return

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with self._lock:  # comments come from another task
            if self._ended:
                return
            self._ended = not more
            if not self._started:
                self._started = True
                await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
