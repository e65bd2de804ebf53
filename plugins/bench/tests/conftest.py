"""A server that speaks OpenAI's protocol as its requests' model name asks it to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web


@dataclass
class Server:
    """url: of it. bodies: of the requests that came, in order. open, most: streams at once, now and at most.

    hold: while it is not set, streams wait before their first token.
    """

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: int = 0
    most: int = 0

    @property
    def prompts(self) -> list[Any]:
        return [body.get("prompt", body.get("messages")) for body in self.bodies]

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "ok", "object": "model"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        mode = body["model"]
        if mode == "full":
            return web.json_response({"error": {"message": "too many requests"}}, status=429)
        if mode == "plain":
            return web.json_response({"choices": []})
        if mode == "every third fails" and len(self.bodies) % 3 == 0:
            return web.Response(status=500, text="no")
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if mode == "hang":
                await asyncio.sleep(6000)
            if mode == "crowd":  # nobody gets on before four are here
                while self.most < 4:
                    await asyncio.sleep(0.001)
            await self._stream(request, response, body, chat="messages" in body)
        finally:
            self.open -= 1
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse, body: Any, *, chat: bool) -> None:
        mode, count = body["model"], body["max_tokens"]

        async def send(value: Any) -> None:
            await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")

        def piece(text: str, finish: str | None = None) -> Any:
            inner = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{"index": 0, **inner, "finish_reason": finish}]}

        await response.write(b": hello\n\n")
        if chat:
            await send({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number in range(count):
            if mode == "cut" and number == 1:
                return
            if mode == "reset" and number == 1:
                request.transport.abort()  # type: ignore[union-attr]
                return
            if mode == "error":
                await send({"error": {"message": "it broke", "code": 500}})
                return
            if mode == "garbage":
                await response.write(b"data: {nonsense\n\n")
                return
            if mode == "odd":
                await send({"choices": ["?"]})
                return
            await send(piece("" if number == 1 else "a"))  # the second token has no text yet
        if mode != "empty":
            await send(piece("", "length"))
        if mode not in ("no usage", "empty"):
            await send({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
        await response.write(b"data: [DONE]\n\n")


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    up, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", made.models)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, made.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        up.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert up.wait(300)
    yield made
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()
